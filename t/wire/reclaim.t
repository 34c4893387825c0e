# A worker that has no free connection left ends idle ones of its clients, wherever it needs one:
# ngx_get_connection() runs their read handlers (ngx_drain_connections()). The module must not need
# one while OpenSSL is at work for a client, who may be among them.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use Test::More;

# A worker with so many of them looks for idle ones from the last sixteenth on.
use constant { CONNECTIONS => 64, RESERVE => 64 / 16 };

my $certs = certs();
my $redis = redis();

sub conf {
    my ($port, $relay) = @_;
    return <<"CONF";
    ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    keepalive_timeout     600s;
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status"; }
    }
CONF
}

# How many connections the worker has, those that it listens on and its channel to the master among
# them: each is a socket.
sub connections {
    my ($nginx) = @_;
    my ($worker) = $nginx->workers;
    return scalar grep { /^socket:/ } map { readlink // '' } glob "/proc/$worker/fd/*";
}

# Takes what the worker has left, but the reserve: whatever needs one more ends idle ones.
sub fill {
    my ($nginx, $port) = @_;
    my $free = CONNECTIONS - RESERVE - connections($nginx);
    my @fill = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) // die $@ } 1 .. $free;
    wait_until { connections($nginx) == CONNECTIONS - RESERVE } 5, 'a worker with no free connection';
    return @fill;
}

subtest 'a session is removed, and the store has closed the connection' => sub {
    my $port  = free_port();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(events => 'worker_connections ' . CONNECTIONS . ';', conf => conf($port, $relay));
    my ($worker) = $nginx->workers;
    # Two that stay, the first of which is the oldest that could be ended.
    my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1) } 1 .. 2;
    for my $client (@clients) {
        $client->write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        like $client->read, qr/^HTTP\/1.1 200 /, 'a client that stays';
        wait_until { $redis->cmd('EXISTS', cache_key($client->session)) } 5, 'its session in the store';
    }
    my $before = connections($nginx);
    $relay->close_all;
    wait_until { connections($nginx) < $before } 5, 'the end of the connection to the store';
    my @fill = fill($nginx, $port);
    # No record of the session's: OpenSSL ends it, and says so.
    $clients[0]->send_raw("\x17\x03\x03\x00\x40" . 'A' x 64);
    is $clients[0]->read, undef, 'the client is refused';
    like $clients[0]->error, qr/bad record mac/, 'with an alert';
    is_deeply [ $nginx->workers ], [$worker], 'the worker lives';
    close $_ for @fill;
    my $session = $clients[1]->session;
    is tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->request, 'r HIT', 'others are resumed';
    is_deeply [ $nginx->workers ], [$worker], 'by the same worker';
    $nginx->quit;
    is_deeply [ $nginx->errors(except => qr/SSL_read\(\) failed/) ], [], 'no error in the log';
};

done_testing;
