# Clients whose end comes together with their first bytes. An event method that reports changes
# tells of both at once, and never again.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

# How many clients there are each time.
use constant CLIENTS => 20;

my $certs = certs();

for my $method (event_methods()) {
    my $redis = redis();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $port  = free_port();
    my $limit = 60 * patience();
    my $nginx = nginx(method => $method, log => 'notice', conf => <<"CONF");
    ssl_session_backend fleet {
        server          127.0.0.1:@{[ $relay->port ]};
        connect_timeout ${limit}s;
        fetch_timeout   ${limit}s;
        store_timeout   ${limit}s;
    }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    # Longer than anything here: it is the client's end that ends a connection.
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
    my $fresh = sub { my $client = tls_client(port => $port, protocol => $_[0]); $client->request; ($client->sessions)[-1] };
    my %session = map { $_ => $fresh->($_) } qw(TLSv1.2 TLSv1.3);
    # What is looked up for one client is not asked for again by another one meanwhile.
    my @sessions = map { $fresh->('TLSv1.2') } 1 .. CLIENTS;
    # With the connections to the server, and no others.
    my $idle;
    my $settle = sub {
        tls_client(port => $port, protocol => 'TLSv1.2', session => $fresh->('TLSv1.2'))->request;
        wait_until { !clients($port) } 5, 'end of all connections';
        $idle = $nginx->fds;
    };
    $settle->();

    my %goes = (
        closes        => sub { $_[0]->close },
        'half-closes' => sub { $_[0]->half_close },
        resets        => sub { $_[0]->reset },
    );

    # All that the clients do comes while the worker is stopped: it learns of it in one event.
    my $at_once = sub {
        my ($how, $make) = @_;
        my ($worker) = $nginx->workers;
        my $ok = eval { $nginx->halt($worker) };
        my $error = $@;
        my @clients;
        if ($ok) {
            for (1 .. CLIENTS) {
                my ($client, $bytes) = $make->();
                $client->send_raw($bytes);
                $goes{$how}->($client);
                push @clients, $client;
            }
        }
        kill CONT => $worker;
        die $error if !$ok;
        return @clients;
    };

    my $nothing_left = sub {
        my ($what) = @_;
        my $gone = eval { wait_until { $nginx->fds == $idle && !clients($port) } 5, 'end of the connections' };
        ok $gone, $what or diag $nginx->fds - $idle, ' connections are left, ', clients($port, '08'), ' of them in CLOSE-WAIT';
        return if $gone;
        # Not to fail again below for the same reason.
        $nginx->stop;
        $nginx->start;
        $settle->();
    };

    # Reads of 2 and of 4 KB end where the long ones do.
    my @parts = (
        [ 'a byte',                    sub { substr $_[0]->client_hello, 0, 1 } ],
        [ 'a part of a ClientHello',   sub { substr $_[0]->client_hello, 0, 40 } ],
        [ 'all but its last byte',     sub { substr $_[0]->client_hello, 0, -1 } ],
        [ '2 KB of a long one',        sub { long_hello(2048) } ],
        [ '6 KB of a long one',        sub { long_hello(2048 + 4096) } ],
        [ 'a record that is not TLS',  sub { "GET / HTTP/1.0\r\n\r\n" } ],
    );

    for my $part (@parts) {
        my ($what, $bytes) = @$part;
        for my $how (sort keys %goes) {
            subtest "$method: a client sends $what and $how" => sub {
                my @clients = $at_once->($how, sub {
                    my $client = tls_client(port => $port);
                    return ($client, $bytes->($client));
                });
                $nothing_left->('nothing is left of it, at once');
            };
        }
    }

    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for my $how (sort keys %goes) {
            subtest "$method, $protocol: a client sends its ClientHello and $how; the server answers" => sub {
                my @clients = $at_once->($how, sub {
                    my $client = tls_client(port => $port, protocol => $protocol, session => $session{$protocol});
                    return ($client, $client->client_hello);
                });
                $nothing_left->('nothing is left of it');
            };
        }
    }

    subtest "$method: the same, and the server answers later" => sub {
        for my $how (sort keys %goes) {
            my $before = $relay->requests('GET');
            $relay->hold;
            my @offered = @sessions;
            my @clients = $at_once->($how, sub {
                my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => shift @offered);
                return ($client, $client->client_hello);
            });
            # A reset may be known before anything is read.
            wait_until { $relay->requests('GET') == $before + CLIENTS } 5, 'lookups' if $how ne 'resets';
            $relay->release;
            $nothing_left->("$how: nothing is left when the answer has come");
        }
    };

    subtest "$method: and others are served" => sub {
        for my $protocol (sort keys %session) {
            my $client = tls_client(port => $port, protocol => $protocol, session => $fresh->($protocol));
            is $client->request, "r HIT\n", "$protocol resumes" or diag $client->error;
        }
        ok eval { $nginx->quit; 1 }, 'until nginx exits in order' or diag $@;
        is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
    };
}

# A server without sessions, chosen by its name when the handshake has begun at one that has them.
#
# What OpenSSL makes of that is as a rule the same with nginx's own cache, and differs from one nginx to
# another: the default server of the listening socket counts until the name is dispatched.
subtest 'ssl_session_cache off at a server chosen by its name' => sub {
    my $redis = redis();
    my $both = sub {
        my ($port, $sessions) = @_;
        return <<"CONF";
    $sessions
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    keepalive_timeout   600s;
    server {
        listen 127.0.0.1:$port ssl;
        server_name with.example.test;
        location / { return 200 "with \$ssl_session_reused"; }
    }
    server {
        listen 127.0.0.1:$port ssl;
        server_name without.example.test;
        ssl_session_cache off;
        location / { return 200 "without \$ssl_session_reused"; }
    }
CONF
    };
    my ($port, $plain_port) = (free_port(), free_port());
    my $limits = 'connect_timeout 20s; fetch_timeout 20s;';
    my $nginx = nginx(log => 'notice', conf => $both->($port, <<"CONF"));
    ssl_session_backend fleet { server 127.0.0.1:@{[ $redis->port ]}; $limits }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF
    my $plain = nginx(module => 0, log => 'notice', conf => $both->($plain_port, 'ssl_session_cache shared:plain:1m;'));

    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for my $from (qw(with without)) {
            for my $to (qw(with without)) {
                my %seen;
                for ([ ours => $port ], [ plain => $plain_port ]) {
                    my ($whose, $at) = @$_;
                    my $first = tls_client(port => $at, protocol => $protocol, sni => "$from.example.test");
                    my $answer = $first->request // $first->error;
                    my ($session) = ($first->sessions)[-1];
                    # A server without sessions may give none.
                    my $second = tls_client(port => $at, protocol => $protocol, sni => "$to.example.test",
                        defined $session ? (session => $session) : ());
                    $seen{$whose} = "$answer, " . ($second->request // $second->error);
                }
                # nginx by itself resumes sessions of TLS 1.2 by other names, against RFC 6066, section 3.
                $seen{plain} =~ s/r\z/./ if $protocol eq 'TLSv1.2' && $from ne $to;
                is $seen{ours}, $seen{plain}, "$protocol: from $from to $to as with nginx's own cache ($seen{plain})";
            }
        }
    }

    # Many connections, and what each of them has: a filter that stays with a connection is
    # seen in nothing but its time and its memory.
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $client = tls_client(port => $port, protocol => $protocol, sni => 'without.example.test');
        $client->handshake or diag $client->error;
        for (1 .. 3) {
            $client->write("GET / HTTP/1.1\r\nHost: without.example.test\r\n\r\n");
            like $client->read, qr/without \./, "$protocol: it answers";
        }
        $client->close;
    }
    my $fds = $nginx->fds;
    my $rss;
    for my $round (1 .. 6) {
        my @clients = map {
            tls_client(port => $port, protocol => 'TLSv1.2', sni => 'without.example.test', handshake => 1)
        } 1 .. 50;
        $_->close for @clients;
        wait_until { $nginx->fds == $fds } 10, 'end of the connections';
        $rss //= $nginx->rss if $round == 2;
    }
    cmp_ok $nginx->rss - $rss, '<', 300, 'connections to it leave nothing behind' if !$ENV{TEST_NGINX_USE_VALGRIND};
    ok eval { $nginx->quit; 1 }, 'nginx exits in order' or diag $@;
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
    $plain->stop;
};

done_testing;

# The beginning of a ClientHello longer than that, of so many bytes.
sub long_hello {
    my ($length) = @_;
    # A handshake message of 12 KB in one record, most of it an extension that nobody knows.
    my $body = pack('CCn', 1, 0, 12_000) . "\x03\x03" . "r" x 32 . "\0" . pack('n', 2) . "\x13\x01" . "\x01\0"
        . pack('n', 11_900) . pack('nn', 0xfafa, 11_896) . 'x' x 11_896;
    return substr pack('Cnn', 22, 0x301, length $body) . $body, 0, $length;
}

# nginx's connections at that port which are in use; with a state, in that one ('08': CLOSE-WAIT).
sub clients {
    my ($port, $state) = @_;
    my $local = sprintf '0100007F:%04X', $port;
    return scalar grep {
        my @field = split;
        # ESTABLISHED and CLOSE-WAIT; the others are the system's.
        $field[1] eq $local && (defined $state ? $field[3] eq $state : $field[3] =~ /^(?:01|08)$/);
    } split /\n/, slurp('/proc/net/tcp');
}
