# A worker that dies in the middle of everything harms nobody else.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

sub conf {
    my ($port, $targets, @more) = @_;
    return <<"CONF";
    @more
    ssl_session_fetch $targets;
    ssl_session_store $targets;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$pid"; }
    }
CONF
}

# Undef when the worker has died over it.
sub visit {
    my ($port, %arg) = @_;
    my $client = eval { tls_client(port => $port, protocol => 'TLSv1.2', %arg) } or return;
    my $answer = $client->request // return;
    my ($status, $pid) = split /\|/, $answer;
    return if !defined $pid;
    return { status => $status, pid => $pid, reused => $client->reused, client => $client, session => $client->session };
}

# Handshakes without end, full and resumed, in a process of its own; one line for each that failed.
sub load {
    my ($port, $out) = @_;
    return SSLSession::Process->spawn(name => 'load', out => $out, code => sub {
        while (1) {
            for my $protocol (qw(TLSv1.2 TLSv1.3)) {
                my $first = visit($port, protocol => $protocol);
                my $again = $first && visit($port, protocol => $protocol, session => $first->{session});
                syswrite STDOUT, $again ? "$again->{status} $again->{reused}\n" : "failed\n";
            }
        }
    });
}

# Only what nginx says about the worker's death.
my $killed = qr/worker process \d+ exited on signal 9/;

for my $kind ('shared', 'redis', 'shared in front of redis') {
    subtest "$kind: a worker killed under load; the others and what is stored go on" => sub {
        my ($port, $redis) = (free_port(), redis());
        my $store = "ssl_session_backend store { server 127.0.0.1:${\ $redis->port};"
            . ' connect_timeout 10s; fetch_timeout 10s; store_timeout 10s; }';
        my %targets = ('shared' => 'shared:tls:2m', 'redis' => 'store', 'shared in front of redis' => 'shared:tls:2m store');
        my $nginx = nginx(workers => 2, log => 'notice', conf => conf($port, $targets{$kind}, $store));
        my %session = map { $_ => visit($port, protocol => $_)->{session} } qw(TLSv1.2 TLSv1.3);
        wait_until { $redis->cmd('DBSIZE') == 3 } 5, 'the sessions in the store' if $kind ne 'shared';

        my $out  = tmpdir() . "/load-$kind";
        my @load = map { load($port, $out) } 1 .. 2;
        for my $round (1 .. 8) {
            my $before = -s $out // 0;
            wait_until { (-s $out // 0) > $before + 100 } 20, 'load';
            my @workers = $nginx->workers;
            my $victim  = $workers[ $round % @workers ];
            kill KILL => $victim;
            wait_until { $nginx->log_count(qr/worker process $victim exited on signal 9/) } 10, 'its death';
            my @now = wait_until { my @w = $nginx->workers; my @live = grep { $_ != $victim } @w; @live >= 2 && \@live } 10, 'another';
            # Each of them finds what was there before, and what is new.
            for my $protocol (sort keys %session) {
                my $seen = visit($port, protocol => $protocol, session => $session{$protocol});
                is $seen && $seen->{reused}, 1, "death $round, $protocol: an old session resumes";
            }
            my $new = visit($port);
            wait_until { $redis->cmd('EXISTS', cache_key($new->{session})) } 5, 'the session in the store' if $kind eq 'redis';
            my $seen = visit($port, session => $new->{session});
            is $seen && $seen->{status}, 'HIT', 'a new one, too';
        }
        $_->stop for @load;
        my %seen;
        $seen{$_}++ for split /\n/, slurp($out);
        cmp_ok $seen{'HIT 1'} // 0, '>', 50, 'the load was resumed';
        # A death takes with it what that worker had in its hands, of each of the two.
        cmp_ok $seen{failed} // 0, '<=', 8 * 2 * 2, 'and lost no more than died with the worker';
        is $seen{"$_ 1"}, undef, "never resumed as $_" for qw(MISS CORRUPT ERROR);
        is_deeply [ grep { /CORRUPT|ERROR/ } keys %seen ], [], 'nothing was found broken';
        $nginx->quit;
        is_deeply [ $nginx->errors(warn => 1, except => $killed) ], [], 'nothing else in the log';
    };
}

subtest 'a worker killed while its handshakes wait for the store' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $store = "ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; connect_timeout 10s; fetch_timeout 10s; }";
    my $nginx = nginx(conf => conf($port, 'store', $store));
    # Of one session there would be one lookup.
    my @sessions = map { visit($port)->{session} } 1 .. 5;
    wait_until { $redis->cmd('DBSIZE') == @sessions } 5, 'the sessions in the store';
    $relay->hold;
    my @waiting = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_)->start } @sessions;
    wait_until { $relay->requests('GET') == 5 } 5, 'their lookups';
    my ($victim) = $nginx->workers;
    kill KILL => $victim;
    ok $_->wait_closed, 'its clients are told by the system' for @waiting;
    $relay->release;
    wait_until { grep { $_ != $victim } $nginx->workers } 10, 'another worker';
    my $seen = wait_until { visit($port, session => $sessions[0]) } 10, 'an answer';
    is $seen->{status}, 'HIT', 'the next worker looks up with a connection of its own';
    isnt $seen->{pid}, $victim, 'it is another one';
    $nginx->quit;
    is_deeply [ $nginx->errors(warn => 1, except => $killed) ], [], 'nothing else in the log';
};

done_testing;
