# A worker without a free connection closes idle clients when it needs one: ngx_get_connection()
# calls their read handlers (ngx_drain_connections()). The module must not need a connection inside
# a callback of OpenSSL's: nginx may close the client that OpenSSL is working for.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(early_client early_records record_flight);
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

# nginx closes idle clients when a sixteenth of the connections, or less, is free.
use constant { CONNECTIONS => 64, RESERVE => 64 / 16 };

my $certs = certs();
my $redis = redis();
# A name server that never answers: nginx knows the address of "localhost" from its configuration.
my $dns   = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'udp') or die $@;
my @http2 = nginx_version() >= 1_025_001 ? ('', 'http2 on;') : ('http2', '');

# Sessions are looked up in one backend and stored in another, both of the same Redis: a client that
# resumes does not make the worker connect to the second.
sub site {
    my ($fetched, $stored, %arg) = @_;
    my $port   = free_port();
    my $server = $arg{name} ? 'localhost' : '127.0.0.1';
    my $resolver = $arg{name} ? 'resolver 127.0.0.1:' . $dns->sockport . ';' : '';
    return ($port, nginx(events => 'worker_connections ' . CONNECTIONS . ';', conf => <<"CONF"));
    $resolver
    ssl_session_backend fetched { server 127.0.0.1:${\ $fetched->port}; fetch_timeout 60s; }
    ssl_session_backend stored  { server $server:${\ $stored->port}; }
    ssl_session_fetch   fetched;
    ssl_session_store   stored;
    ssl_session_tickets off;
    ssl_early_data      on;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    keepalive_timeout     600s;
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl $http2[0];
        $http2[1]
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status \$ssl_early_data"; }
    }
CONF
}

sub store { return relay(upstream => '127.0.0.1:' . $redis->port) }

# Another nginx, which puts sessions into the store.
my @stores   = (store(), store());
my ($others) = site(@stores);

sub session {
    my ($protocol) = @_;
    my $client = tls_client(port => $others, protocol => $protocol);
    $client->request // die $client->error;
    my $session = $client->session;
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'a session in the store';
    return $session;
}

# Leaves the worker with the reserve only: the next connection closes idle clients. Each connection
# is a socket, as are those that nginx listens on and its channel to the master.
sub fill {
    my ($nginx, $port) = @_;
    my $free = CONNECTIONS - RESERVE - $nginx->sockets;
    my @fill = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) // die $@ } 1 .. $free;
    wait_until { $nginx->sockets == CONNECTIONS - RESERVE } 5, 'a worker with no free connection';
    return @fill;
}

sub answers { my ($nginx) = @_; return $nginx->access_log =~ tr/\n// }

# --- why there is no connection to the store ---

# Each gets the relay to the store, nginx, and a function that makes nginx store a session.
my %store = (
    'not connected yet' => { is => sub { } },
    'not connected yet, and its name is to be resolved' => { name => 1, is => sub { } },
    'whose connection was closed' => { is => sub {
        my ($stored, $nginx, $ask) = @_;
        my ($before, $keys) = ($nginx->sockets, scalar $redis->keys);
        $ask->();
        wait_until { $redis->keys > $keys && $nginx->sockets == $before + 1 } 5, 'a session stored';
        # Redis has answered by now. This closes the connection for lookups, too.
        $redis->cmd(qw(CLIENT KILL TYPE normal));
        wait_until { $nginx->sockets == $before - 1 } 5, 'the end of the connections to the store';
    } },
    'that is down, and a probe is due' => { down => 1, is => sub {
        my ($stored, $nginx, $ask) = @_;
        $stored->stop;
        $ask->();
        $nginx->log_like(qr/ is down: /);
        my $due = time + 0.1;
        wait_until { time > $due } 1, 'the pause before a probe';
    } },
);

# --- in which state the client is, and which callback OpenSSL calls ---

# These cannot happen:
# - "get", and "new" without early data: nginx does not close a client in its handshake over TCP
#   (ngx_http_ssl_handshake()), nor any client of stream{} and mail{} (ngx_reusable_connection()).
# - "remove" in a lingering close: nginx reads no TLS there (ngx_ssl_shutdown()).

# A record that is not encrypted. OpenSSL sends an alert and removes the session.
my $garbage = "\x17\x03\x03\x00\x40" . 'A' x 64;

# Each returns two functions: one makes OpenSSL call the callback, one checks what the client sees.
my %client = (
    'remove: keep-alive' => sub {
        my ($port, $nginx, $session) = @_;
        my $client = keep_alive($port, $session);
        return (sub { $client->send_raw($garbage) }, sub { alerted($client) });
    },
    # nginx does not close this client while it reads from it, but it does close the next ones.
    'remove: idle HTTP/2' => sub {
        my ($port, $nginx, $session) = @_;
        my $client = http2($port, $session);
        return (sub { $client->send_raw($garbage) }, sub { alerted($client) });
    },
    # While nginx waits for the rest of a frame, it may close the client that it reads from.
    'remove: HTTP/2 within a frame' => sub {
        my ($port, $nginx, $session) = @_;
        my $client = http2($port, $session);
        $client->write("\0\0\x08\x06\0");
        return (sub { $client->send_raw($garbage) }, sub { alerted($client) });
    },
    'remove: no request yet' => sub {
        my ($port, $nginx, $session) = @_;
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
        return (sub { $client->send_raw($garbage) }, sub { alerted($client) });
    },
    'remove: early data' => sub {
        my ($port, $nginx, undef, $session13) = @_;
        my $flight = record_flight(session => $session13, early_data => "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        my $client = tls_client(port => $port);
        my $before = answers($nginx);
        $client->send_raw($flight);
        wait_until { answers($nginx) > $before } 5, 'an answer';
        return (sub { $client->send_raw($garbage) }, sub {
            is $client->wait_closed, 'eof', 'the connection ends';
            # Level, description and type, and the tag.
            like $client->received, qr/\x17\x03\x03\x00\x13.{19}\z/s, 'with an alert';
        });
    },
    # The request is answered before the handshake ends, so the handshake ends in an idle
    # connection.
    'new: early data' => sub {
        my ($port, $nginx, undef, $session13, $fetched) = @_;
        my $front  = relay(upstream => "127.0.0.1:$port");
        my $gets   = $fetched->requests('GET');
        my $before = answers($nginx);
        $fetched->hold;
        my $client = early_client(port => $front->port, session => $session13,
            early_data => "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        wait_until { $fetched->requests('GET') > $gets } 5, 'a lookup';
        wait_until { early_records(join '', map { @$_ } $front->requests) && !$front->stats->{request} } 5, 'early data';
        $front->hold('request');
        $fetched->release;
        wait_until { answers($nginx) > $before && $front->stats->{request} } 5, 'an answer';
        return (sub { $front->release('request') }, sub {
            wait_until { slurp($client->{out}) =~ /New Session Ticket arrived/ || !$client->process->alive } 5, 'an end';
            $front->stop;
            like $client->output, qr/New Session Ticket arrived/, 'the client has a new session';
            is $client->early_data, 'accepted', 'early data is accepted';
            like $client->response, qr/^r HIT 1/, 'and answered';
        });
    },
);

sub keep_alive {
    my ($port, $session) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
    $client->write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    my $answer = $client->read // die $client->error;
    $answer =~ /\r\nr HIT \z/ or die $answer;
    return $client;
}

# A client that has exchanged settings (RFC 9113, section 3.4).
sub http2 {
    my ($port, $session) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, alpn => ['h2'], handshake => 1);
    my $settings = "\0\0\0\x04\0\0\0\0\0";
    $client->write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n$settings");
    my $got = '';
    # The last frame is the acknowledgement of the client's.
    wait_until { $got .= $client->read // die $client->error; $got =~ /\0\0\0\x04\x01\0\0\0\0/ } 5, 'settings';
    return $client;
}

sub alerted {
    my ($client) = @_;
    # HTTP/2 may say more before.
    1 while length($client->read // '');
    like $client->error, qr/bad record mac/, 'the client gets an alert';
}

for my $client (sort keys %client) {
    for my $store (sort keys %store) {
        subtest "$client; a store $store" => sub {
            my ($fetched, $stored) = (store(), store());
            my ($port, $nginx) = site($fetched, $stored, %{ $store{$store} });
            my ($worker) = $nginx->workers;
            my ($session, $session13, $neighbour) = map { session("TLSv1.$_") } 2, 3, 2;
            # The oldest is closed first.
            my ($provoke, $seen) = $client{$client}->($port, $nginx, $session, $session13, $fetched);
            my @neighbours = map { keep_alive($port, $neighbour) } 1 .. 2;
            $store{$store}{is}->($stored, $nginx, sub { tls_client(port => $port, protocol => 'TLSv1.2')->request });
            my @fill  = fill($nginx, $port);
            my $keys  = $redis->keys;
            my $about = $client =~ /early/ ? $session13 : $session;
            $provoke->();
            $seen->();
            is_deeply [ $nginx->workers ], [$worker], 'the worker lives';
            # Who has sent what may be recorded removes nothing.
            my $removes = $client ne 'remove: early data';
            if ($removes && !$store{$store}{down} && "@{[ $nginx->workers ]}" eq $worker) {
                my $done = $client =~ /^new/ ? sub { $redis->keys > $keys } : sub { !$redis->cmd('EXISTS', cache_key($about)) };
                ok eval { wait_until { $done->() } 2 }, 'and the store has it';
            }
            $_->close for @fill, @neighbours;
            my $next = tls_client(port => $port, protocol => 'TLSv1.2', session => $neighbour);
            is $next->request, 'r HIT ', 'another client is resumed' or diag $next->error;
            is_deeply [ $nginx->workers ], [$worker], 'by the same worker';
            ok $redis->cmd('EXISTS', cache_key($about)), 'and the session stays' if !$removes;
            $nginx->quit;
            # Some versions of nginx call a bad record critical.
            is_deeply [ $nginx->errors(except => qr/SSL_read(?:_early_data)?\(\) failed|redis \S+ is down: /) ], [], 'no error in the log';
        };
    }
}

done_testing;
