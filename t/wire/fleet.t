# A fleet: servers and workers that have nothing in common but the store.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

sub conf {
    my ($port, $target, $who, @more) = @_;
    return <<"CONF";
    ssl_session_backend store {
        ${\ ($target =~ /^redis:\/\/(.*)/ ? "server $1;" : 'server 127.0.0.1:1;') }
        connect_timeout ${\ (500 * patience() ) }ms;
        fetch_timeout 30s;
    }
    ssl_session_fetch ${\ ($target =~ /^redis/ ? 'store' : $target) };
    ssl_session_store ${\ ($target =~ /^redis/ ? 'store' : $target) };
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @more
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|$who|\$pid"; }
    }
CONF
}

sub visit {
    my ($port, $protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $who, $pid) = split /\|/, $answer;
    return { status => $status, who => $who, pid => $pid, reused => $client->reused, client => $client,
        session => $client->session };
}

sub stored_session {
    my ($port, $protocol, $redis) = @_;
    my $session = visit($port, $protocol)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

subtest 'two servers resume the sessions of each other' => sub {
    my $redis = redis();
    my %port  = (A => free_port(), B => free_port());
    my %nginx = map { $_ => nginx(conf => conf($port{$_}, $redis->url, $_)) } sort keys %port;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for my $way ([ 'A', 'B' ], [ 'B', 'A' ]) {
            my ($one, $other) = @$way;
            my $session = stored_session($port{$one}, $protocol, $redis);
            for my $who ($other, $one, $other) {
                my $seen = visit($port{$who}, $protocol, $session);
                is $seen->{who}, $who, "$protocol from $one: $who answers";
                is $seen->{status}, 'HIT', 'outcome';
                is $seen->{reused}, 1, 'resumed';
            }
        }
        # From one to the other and on: each resumption of TLS 1.3 gives a session of its own.
        my $session = stored_session($port{A}, $protocol, $redis);
        for my $who (qw(B A B A)) {
            my $seen = visit($port{$who}, $protocol, $session);
            is $seen->{reused}, 1, "$protocol: resumed at $who with what the other has given";
            $session = $seen->{session};
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        }
    }
    my $session = stored_session($port{A}, 'TLSv1.2', $redis);
    $nginx{A}->quit;
    is visit($port{B}, 'TLSv1.2', $session)->{reused}, 1, 'it outlives the server that made it';
    $nginx{B}->quit;
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'real clients: openssl s_client from one server to the other' => sub {
    my $redis = redis();
    my %port  = (A => free_port(), B => free_port());
    my %nginx = map { $_ => nginx(conf => conf($port{$_}, $redis->url, $_)) } sort keys %port;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $file  = tmpdir() . "/$protocol.pem";
        my $keys  = $redis->cmd('DBSIZE');
        my $first = s_client(port => $port{A}, protocol => $protocol, sess_out => $file);
        is $first->reused, 0, "$protocol: new at A";
        wait_until { $redis->cmd('DBSIZE') >= $keys + ($protocol eq 'TLSv1.3' ? 2 : 1) } 5, 'the session in the store';
        my $second = s_client(port => $port{B}, protocol => $protocol, sess_in => $file);
        is $second->reused, 1, 'reused at B';
        like $second->response, qr/^HIT\|B\|/, 'and B says so';
    }
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

for my $kind (qw(redis shared)) {
    subtest "$kind: workers share sessions" => sub {
        my $port  = free_port();
        my $redis = redis();
        my $nginx = nginx(workers => 3, conf => conf($port, $kind eq 'redis' ? $redis->url : 'shared:tls:1m', 'A'));
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            my (%hits, $misses);
            my $made    = visit($port, $protocol);
            my $session = $made->{session};
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store' if $kind eq 'redis';
            wait_until {
                # Several at once, so that each worker gets its turn.
                my @clients = map { tls_client(port => $port, protocol => $protocol, session => $session) } 1 .. 9;
                $_->handshake for @clients;
                for my $client (@clients) {
                    my ($status, undef, $pid) = split /\|/, $client->request;
                    $status eq 'HIT' && $client->reused ? $hits{$pid}++ : $misses++;
                }
                keys %hits == 3;
            } 20, 'hits of all workers';
            is $misses, undef, "$protocol: all were resumed, whoever served them";
            ok $hits{ $made->{pid} }, 'the worker that made it among them';
        }
        is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
    };
}

# Handshakes over lookups that wait, on a server with these sessions.
sub held_clients {
    my ($port, $relay, $sessions) = @_;
    my $gets    = $relay->requests('GET');
    my @clients = map { tls_client(port => $port, protocol => $_->[0], session => $_->[1])->start } @$sessions;
    wait_until { $relay->requests('GET') >= $gets + @clients } 10, 'their lookups';
    return @clients;
}

sub resumed {
    my ($what, @clients) = @_;
    for my $client (@clients) {
        like $client->request, qr/^HIT\|/, "$what: answered" or diag $client->error;
        is $client->reused, 1, 'and resumed';
    }
}

subtest 'reload during lookups loses no connection' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(workers => 2, conf => conf($port, $relay->url, 'A'));
    my @sessions = map { [ $_ => stored_session($port, $_, $redis) ] } (qw(TLSv1.2 TLSv1.3)) x 3;
    $relay->hold;
    my @before = held_clients($port, $relay, \@sessions);
    $nginx->reload;
    my @after = held_clients($port, $relay, \@sessions);
    $nginx->reload;
    my @last = held_clients($port, $relay, \@sessions);
    ok scalar($nginx->old_workers), 'the old workers wait for their lookups';
    $relay->release;
    resumed('before both', @before);
    resumed('between', @after);
    resumed('after both', @last);
    wait_until { !$nginx->old_workers } 10, 'exit of the old workers';
    $nginx->quit;
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'reload to a configuration without the store, during lookups' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, $relay->url, 'A'));
    my @sessions = map { [ $_ => stored_session($port, $_, $redis) ] } qw(TLSv1.2 TLSv1.3);
    $relay->hold;
    my @before = held_clients($port, $relay, \@sessions);
    $nginx->reload(conf($port, 'off', 'A'));
    is visit($port, $_->[0], $_->[1])->{reused}, 0, 'the new workers look nothing up' for @sessions;
    $relay->release;
    resumed('begun before', @before);
    wait_until { !$nginx->old_workers } 10, 'exit of the old worker';
    $nginx->reload(conf($port, $relay->url, 'A'));
    is visit($port, $_->[0], $_->[1])->{reused}, 1, 'and with the store again they resume' for @sessions;
    $nginx->quit;
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'binary upgrade during lookups loses no connection' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(workers => 2, daemon => 1, conf => conf($port, $relay->url, 'A'));
    # A worker that looks a session up already does not ask again for another client.
    my ($before, $during, $after) = map {
        [ map { [ $_ => stored_session($port, $_, $redis) ] } (qw(TLSv1.2 TLSv1.3)) x 3 ]
    } 1 .. 3;
    my $master = $nginx->pid;
    $relay->hold;
    my @before = held_clients($port, $relay, $before);
    $nginx->upgrade(quit => 0);
    isnt $nginx->pid, $master, 'another master';
    # Old and new workers serve side by side.
    my @during = held_clients($port, $relay, $during);
    kill QUIT => $master;
    wait_until { !$nginx->workers($master) } 20, 'the old workers to accept nothing more';
    my @after = held_clients($port, $relay, $after);
    $relay->release;
    resumed('before', @before);
    resumed('during', @during);
    resumed('after', @after);
    wait_until { !grep { $_ == $master } $nginx->process->group } 20, 'exit of the old master';
    is visit($port, $_->[0], $_->[1])->{reused}, 1, 'and on' for @$before, @$during, @$after;
    $nginx->quit;
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

done_testing;
