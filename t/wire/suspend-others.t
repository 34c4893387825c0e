# While one handshake waits for a lookup, the worker serves the others.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use IO::Socket::INET;
use Time::HiRes qw(time);

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my ($tls, $plain) = (free_port(), free_port());

sub conf {
    return <<"CONF";
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch     fleet;
    ssl_session_store     fleet;
    ssl_session_tickets   off;
    ssl_protocols         TLSv1.2 TLSv1.3;
    ssl_certificate       $certs->{ec_crt};
    ssl_certificate_key   $certs->{ec_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$tls ssl;
        listen 127.0.0.1:$plain;
        location / {
            return 200 "\$ssl_session_reused \$ssl_session_fetch_status \$ssl_session_fetch_time\\n";
        }
    }
CONF
}

# What a client needs to offer a session that is in the store.
sub session {
    my ($protocol) = @_;
    my $client = tls_client(port => $tls, protocol => $protocol);
    $client->request // die $client->error;
    my ($session) = ($client->sessions)[-1];
    my $key = cache_key($session);
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
    return { port => $tls, protocol => $protocol, session => $session };
}

# Clients whose handshakes wait, as many as sessions.
sub waiting {
    my (@sessions) = @_;
    my $before  = $relay->requests('GET');
    my @clients = map { tls_client(%$_)->start } @sessions;
    wait_until { $relay->requests('GET') == $before + @sessions } 10, 'lookups';
    return @clients;
}

sub sent_nothing { my ($client) = @_; return !IO::Select->new($client->sock)->can_read(0) }

{
    my $nginx = nginx(conf => conf());
    is scalar($nginx->workers), 1, 'one worker for all that follows';

    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$protocol: a handshake waits, others are served, it resumes" => sub {
            my $session = session($protocol);
            $relay->hold;
            my ($client) = waiting($session);

            like tls_client(port => $tls, protocol => $_)->request, qr/^\. {2}$/, "full $_ handshake"
                for qw(TLSv1.2 TLSv1.3);
            my $sock = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$plain");
            print {$sock} "GET / HTTP/1.0\r\n\r\n";
            like do { local $/; <$sock> }, qr/^HTTP.* 200 /, 'request without TLS';
            ok sent_nothing($client), 'the first one still waits';

            $relay->release;
            like $client->request, qr/^r HIT \d\.\d{6}$/, 'and resumes' or diag $client->error;
        };

        subtest "$protocol: 100 ms of waiting are seen in the variable" => sub {
            my $session = session($protocol);
            $relay->delay(100);
            my $start  = time;
            my $client = tls_client(%$session);
            my ($time) = ($client->request // '') =~ /^r HIT (\d\.\d{6})$/;
            cmp_ok $time // 0, '>=', 0.1, 'at least what redis took';
            cmp_ok $time // 0, '<=', time - $start, 'at most what the client saw';
            $relay->delay(0);
        };
    }

    subtest 'many handshakes wait at once, and all resume' => sub {
        my @sessions = map { session($_ % 2 ? 'TLSv1.2' : 'TLSv1.3') } 1 .. 40;
        $relay->hold;
        my @clients = waiting(@sessions);
        is scalar(grep { sent_nothing($_) } @clients), 40, 'all wait';
        $relay->release;
        is scalar(grep { ($_->request // '') =~ /^r HIT / } @clients), 40, 'all resume';
    };

    subtest 'answers of which each is for another one' => sub {
        my @sessions = map { session('TLSv1.2') } 1 .. 9;
        # Every third is no longer there, every other third is no session.
        my @key   = map { cache_key($_->{session}) } @sessions;
        $redis->cmd('DEL', $key[$_]) for 1, 4, 7;
        $redis->cmd('SET', $key[$_], 'x' x 150) for 2, 5, 8;
        my $from = $nginx->log_pos;
        $relay->hold;
        my @clients = waiting(@sessions);
        $relay->chunk(7);
        $relay->release;
        my @got = map { join ' ', (split ' ', $_->request // $_->error)[0, 1] } @clients;
        is_deeply \@got, [ ('r HIT', '. MISS', '. CORRUPT') x 3 ], 'each got its own';
        $relay->chunk(0);
        # At most once a second, with their number.
        $nginx->log_like(qr/\[error\].*corrupt SSL session [0-9a-f]{8} in "fleet"/, from => $from);
        wait_until { !$redis->cmd('EXISTS', @key[ 2, 5, 8 ]) } 10, 'removal of what is corrupt';
    };

    $nginx->quit;
    is_deeply [ $nginx->errors(except => qr/corrupt SSL session/) ], [], 'no other error in the log';
}

subtest 'a waiting handshake is not closed when connections run out' => sub {
    my $limit = 16;
    my $nginx = nginx(conf => conf(), events => "worker_connections $limit;");
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = session($protocol);
        $relay->hold;
        my ($client) = waiting($session);
        # These say nothing, so nginx may close them to make room.
        my @idle = map { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$tls") } 1 .. 2 * $limit;
        wait_until {
            grep { IO::Select->new($_)->can_read(0) && !sysread $_, my $none, 1 } @idle
        } 10, 'an idle connection to be closed';
        ok sent_nothing($client), 'it was left alone';
        $relay->release;
        like $client->request, qr/^r HIT /, "and resumes, $protocol" or diag $client->error;
        close $_ for @idle;
        # All of their ends must have been seen before the next round counts on free connections.
        wait_until { eval { tls_client(port => $tls)->request } } 10, 'room';
    }
    $nginx->quit;
    # Said once a second at most.
    ok $nginx->log_count(qr/worker_connections are not enough, reusing connections/),
        'connections did run out';
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

done_testing;
