# A session is removed, from wherever it may be resumed from, after a fatal alert on the connection of a
# client that has proved to have its secret, and not after what anybody can do who has seen it go by.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::EarlyData qw(record_flight);
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

# http{} with a TLS server on $port. backends => { name => server }, fetch and store => targets;
# more => lines.
sub conf {
    my ($port, %arg) = @_;
    my $backends = join '', map { <<"CONF" } sort keys %{ $arg{backends} };
    ssl_session_backend $_ {
        server $arg{backends}{$_};
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout   60s;
        store_timeout   60s;
    }
CONF
    return <<"CONF";
$backends
    ssl_session_fetch   $arg{fetch};
    ssl_session_store   $arg{store};
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_session_tickets @{[ $arg{tickets} // 'off' ]};
    @{ $arg{more} // [] }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier"; }
    }
CONF
}

# A redis behind a relay: ( redis, relay, its address ).
sub store {
    my $redis = redis();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    return ($redis, $relay, '127.0.0.1:' . $relay->port);
}

# One connection and one request.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    return { seen => $answer, reused => $client->reused, client => $client,
        session => $client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session };
}

# A new session, once it is in the store.
sub stored {
    my ($port, $redis, %arg) = @_;
    my $session = visit($port, %arg)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

# Resumes a session, and has OpenSSL withdraw it: a record that does not decrypt.
sub withdraw {
    my ($port, $session) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 1, 'it is resumed';
    $client->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64);
    is $client->wait_closed, 'eof', 'and the connection closed after a record that does not decrypt';
}

sub is_ended { my ($client) = @_; ok $client->wait_closed, 'the server ends the connection' }

sub in_peace {
    my (@nginx) = @_;
    is_deeply [ $_->errors(warn => 1, except => qr/SSL_do_handshake|SSL_read/) ], [], 'nothing else in the log' for @nginx;
}

subtest 'a session that is withdrawn is removed from the zones that hits have copied it into' => sub {
    my ($redis, $relay, $server) = store();
    my %arg  = (backends => { store => $server }, fetch => 'shared:near:1m store', store => 'store');
    my @port = map { free_port() } 1, 2;
    my ($here, $elsewhere) = map { nginx(conf => conf($_, %arg)) } @port;
    my $session = stored($port[0], $redis);
    for my $port (@port) {
        is visit($port, session => $session)->{seen}, 'HIT|store', 'a hit in the store';
        is visit($port, session => $session)->{seen}, 'HIT|shared:near', 'is copied into the zone';
    }
    withdraw($port[0], $session);
    is visit($port[0], session => $session)->{seen}, 'MISS|', 'it is in neither of them any more';
    is_deeply [ $relay->requests('DEL') ], [ [ 'DEL', cache_key($session) ] ], 'and the store is told once';
    is visit($port[1], session => $session)->{seen}, 'HIT|shared:near', 'the zone of another machine keeps its copy';
    in_peace($here, $elsewhere);
};

subtest 'a session that is withdrawn is removed from each target once, whether it is fetched or stored there' => sub {
    my %of = map { my @store = store(); ($_ => { redis => $store[0], relay => $store[1], server => $store[2] }) } qw(both fetched stored);
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { map { $_ => $of{$_}{server} } keys %of },
        fetch => 'fetched both', store => 'stored both'));
    my $session = stored($port, $of{both}{redis});
    is visit($port, session => $session)->{seen}, 'HIT|both', 'a hit, copied';
    wait_until { $of{$_}{redis}->cmd('EXISTS', cache_key($session)) } 5, "the session in $_" for sort keys %of;
    withdraw($port, $session);
    for my $target (sort keys %of) {
        wait_until { !$of{$target}{redis}->cmd('EXISTS', cache_key($session)) } 5, "removal from $target";
        is_deeply [ $of{$target}{relay}->requests('DEL') ], [ [ 'DEL', cache_key($session) ] ], "removed from $target once";
    }
    in_peace($nginx);
};

# What ends a connection by a fatal alert of the server's, or of the client's.
my %alert = (
    'a record that does not decrypt' => sub { $_[0]->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64) },
    'an alert of the client'         => sub {
        my ($client) = @_;
        # Its own OpenSSL gets what does not decrypt.
        Net::SSLeay::BIO_write($client->{rbio}, "\x17\x03\x03\x00\x40" . 'x' x 64);
        ok !defined $client->read, 'the client ends the connection: ' . $client->error;
    },
);

for my $what (sort keys %alert) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$protocol, $what: removed is the session of the connection, made or resumed in it" => sub {
            my ($redis, $relay, $server) = store();
            my $port    = free_port();
            my $nginx   = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store'));
            my $session = stored($port, $redis, protocol => $protocol);
            for my $resumed (0, 1) {
                my $keys   = $redis->keys;
                my $client = tls_client(port => $port, protocol => $protocol, handshake => 1, $resumed ? (session => $session) : ());
                is $client->reused, $resumed, $resumed ? 'resumed' : 'full handshake';
                my $made = $protocol eq 'TLSv1.3' ? 2 - $resumed : 1 - $resumed;
                wait_until { $redis->keys == $keys + $made } 5, 'its sessions in the store';
                $alert{$what}->($client);
                is_ended($client);
                wait_until { $redis->keys == $keys + $made - 1 } 5, 'one session less';
                is scalar($relay->requests('DEL')), 1 + $resumed, 'one removal';
                # Of TLS 1.3 it is the ticket that was given last, which the client need not have read.
                is_deeply +($relay->requests('DEL'))[-1], [ 'DEL', cache_key($client->session) ], 'of its session'
                    if $protocol eq 'TLSv1.2';
                ok $redis->cmd('EXISTS', cache_key($session)), 'the ticket that was shown stays'
                    if $protocol eq 'TLSv1.3';
            }
            in_peace($nginx);
        };
    }
}

subtest 'with ssl_session_cache builtin, too, and not what gives way to another session' => sub {
    my ($redis, $relay, $server) = store();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store',
        more => [ 'ssl_session_cache builtin:1;' ]));
    my @sessions = map { stored($port, $redis) } 1 .. 3;
    is visit($port, session => $_)->{seen}, 'HIT|store', 'it is in the store' for @sessions[0, 1];
    is_deeply [ $relay->requests('DEL') ], [], 'nothing was removed';
    # The builtin cache has the other one.
    withdraw($port, $sessions[0]);
    wait_until { !$redis->cmd('EXISTS', cache_key($sessions[0])) } 5, 'its removal';
    is_deeply [ $relay->requests('DEL') ], [ [ 'DEL', cache_key($sessions[0]) ] ], 'removed';
    in_peace($nginx);
};

# What somebody does who has seen a session ID, or a ticket, and not the secret. Each gets the port and a
# session of somebody else's, and returns when the server has done with him.

# A hand-made record in place of what comes after a ClientHello with the session ID.
sub follow_up {
    my ($bytes) = @_;
    return sub {
        my ($port, $session) = @_;
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->start;
        wait_until { $client->_pull(5); $client->received =~ /^\x16\x03\x03..\x02/s } 5, 'ServerHello';
        $client->send_raw($bytes);
        is_ended($client);
    };
}

# A handshake with the session, less its secret and with other settings. It fails, or is a full one.
sub handshake {
    my (%arg) = @_;
    return sub {
        my ($port, $session) = @_;
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => without_secret($session), %arg);
        return is_ended($client) unless $client->handshake;
        is $client->reused, 0, 'not resumed';
        $client->close;
    };
}

# A client that has its ServerHello, and does no more than that.
sub leave {
    my ($how) = @_;
    return sub {
        my ($port, $session) = @_;
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->start;
        wait_until { $client->_pull(5); $client->received =~ /^\x16\x03\x03..\x02/s } 5, 'ServerHello';
        $how->($client);
    };
}

my $handshake_timeout = 1 + patience();
my %observer = (
    'a wrong Finished'            => follow_up("\x14\x03\x03\x00\x01\x01" . "\x16\x03\x03\x00\x28" . 'x' x 40),
    'what is no handshake'        => follow_up("\x17\x03\x03\x00\x02xx"),
    'a fatal alert'               => follow_up("\x15\x03\x03\x00\x02\x02\x28"),
    'close_notify'                => follow_up("\x15\x03\x03\x00\x02\x01\x00"),
    'another secret'              => handshake(),
    'another secret, and nothing of his cipher' => handshake(ciphers => 'ECDHE-ECDSA-CHACHA20-POLY1305'),
    # SSL_OP_NO_EXTENDED_MASTER_SECRET
    'another secret, and no extended master secret' => handshake(options => 1),
    'the end of the connection'   => leave(sub { $_[0]->close }),
    'the end of his side'         => leave(sub { $_[0]->half_close; is_ended($_[0]) }),
    'a reset'                     => leave(sub { $_[0]->reset }),
    'nothing, until it times out' => leave(sub { is_ended($_[0]) }),
);

# The observer is there, and the owner's session is as it was.
sub unharmed {
    my ($port, $redis, $relay, $session, $observe, %arg) = @_;
    $observe->($port, $session);
    my $owner = visit($port, session => $session, %arg);
    is $owner->{seen}, 'HIT|store', 'its owner resumes it afterwards';
    is $owner->{reused}, 1, 'indeed';
    is_deeply [ $relay->requests('DEL') ], [], 'nothing was removed';
}

for my $what (sort keys %observer) {
    subtest "TLS 1.2, an observer who shows a session ID, and then: $what" => sub {
        my ($redis, $relay, $server) = store();
        my $port  = free_port();
        my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store',
            more => [ "client_header_timeout ${handshake_timeout}s;" ]));
        unharmed($port, $redis, $relay, stored($port, $redis), $observer{$what});
        in_peace($nginx);
    };
}

subtest 'TLS 1.2, a ticket of his own, and beside it the session ID of another client' => sub {
    my ($redis, $relay, $server) = store();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store', tickets => 'on'));
    my $session = stored($port, $redis, no_ticket => 1);
    my $own     = visit($port)->{session};
    unharmed($port, $redis, $relay, $session, sub {
        my $both = beside_ticket($own, session_id($session));
        withdraw($port, $both);
    }, no_ticket => 1);
    $nginx->quit;
    in_peace($nginx);
};

# What an owner has sent up to the server's answer, to be sent again by somebody who has recorded it.
sub first_flight {
    my ($port, $session) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.3', session => $session)->start;
    ok $client->handshake, 'the owner resumes';
    return $client->client_hello;
}

# A flight again, and after the ServerHello a record.
sub replay {
    my ($port, $flight, $bytes) = @_;
    my $client = tls_client(port => $port);
    $client->send_raw($flight);
    wait_until { $client->_pull(5); $client->received =~ /^\x16\x03\x03..\x02/s } 5, 'ServerHello';
    $client->send_raw($bytes) if defined $bytes;
    $client->half_close if !defined $bytes;
    is_ended($client);
}

my %replayed = (
    'a record that does not decrypt' => "\x17\x03\x03\x00\x40" . 'x' x 64,
    'a fatal alert'                  => "\x15\x03\x03\x00\x02\x02\x28",
    'the end of the connection'      => undef,
);

for my $what (sort keys %replayed) {
    subtest "TLS 1.3, an observer who sends a ClientHello again, and then: $what" => sub {
        my ($redis, $relay, $server) = store();
        my $port  = free_port();
        my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store'));
        my $session = stored($port, $redis, protocol => 'TLSv1.3');
        my $hello   = first_flight($port, $session);
        unharmed($port, $redis, $relay, $session, sub { replay($port, $hello, $replayed{$what}) }, protocol => 'TLSv1.3');
        in_peace($nginx);
    };

    subtest "TLS 1.3, an observer who sends early data again, and then: $what" => sub {
        my ($redis, $relay, $server) = store();
        my $port  = free_port();
        my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store',
            more => [ 'ssl_early_data on;' ]));
        my $session = stored($port, $redis, protocol => 'TLSv1.3');
        # Not all of a request, so that the server goes on reading.
        my $flight  = record_flight(session => $session, early_data => "GET / HTTP/1.0\r\n");
        unharmed($port, $redis, $relay, $session, sub { replay($port, $flight, $replayed{$what}) }, protocol => 'TLSv1.3');
        in_peace($nginx);
    };
}

subtest 'TLS 1.3, an observer who shows a ticket without its secret' => sub {
    my ($redis, $relay, $server) = store();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store'));
    my $session = stored($port, $redis, protocol => 'TLSv1.3');
    unharmed($port, $redis, $relay, $session, handshake(protocol => 'TLSv1.3'), protocol => 'TLSv1.3');
    in_peace($nginx);
};

subtest 'the same with single_use takes the ticket away, as the documentation says' => sub {
    my ($redis, $relay, $server) = store();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store single_use', store => 'store'));
    my $session = stored($port, $redis, protocol => 'TLSv1.3');
    handshake(protocol => 'TLSv1.3')->($port, $session);
    is visit($port, session => $session, protocol => 'TLSv1.3')->{seen}, 'MISS|', 'its owner makes a full handshake';
    is_deeply [ $relay->requests('DEL') ], [], 'nothing else was removed';
    in_peace($nginx);
};

# The owner's session is there for him, whoever has shown it in a handshake of another version of TLS.
sub shown_as {
    my ($port, $nginx, $protocol, $session, $shown, %arg) = @_;
    my $where = delete $arg{where};
    my $from  = $nginx->log_pos;
    my $seen  = visit($port, %arg, session => $shown);
    is $seen->{reused}, 0, 'not resumed';
    is $seen->{seen}, "MISS|$where", 'withheld';
    my $owner = visit($port, %arg, protocol => $protocol, session => $session);
    is $owner->{seen}, "HIT|$where", 'its owner resumes it afterwards';
    is $nginx->log_count(qr/session fetch [0-9a-f]{8}: is of another version of TLS$/, from => $from), 1, 'the log says why';
}

subtest 'a session of TLS 1.2 that is shown in a handshake of TLS 1.1' => sub {
    my ($redis, $relay, $server) = store();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, backends => { store => $server }, fetch => 'store', store => 'store',
        more => [ 'ssl_ciphers ALL:@SECLEVEL=0;' ]) =~ s/ssl_protocols .*;/ssl_protocols TLSv1.1 TLSv1.2;/r);
    my @client  = (ciphers => 'ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0');
    my $session = stored($port, $redis, @client);
    (my $shown = $session) =~ s/\x02\x02\x03\x03/\x02\x02\x03\x02/ or die 'no version';
    shown_as($port, $nginx, 'TLSv1.2', $session, $shown, @client, protocol => 'TLSv1.1', where => 'store');
    is_deeply [ $relay->requests('DEL') ], [], 'nothing was removed';
    in_peace($nginx);
};

subtest 'without a key, a ticket that is shown as a session ID, and the other way round' => sub {
    my $port  = free_port();
    my $nginx = nginx(key => 0, conf => conf($port, fetch => 'shared:tls:1m', store => 'shared:tls:1m'));
    for (['TLSv1.3', 'TLSv1.2'], ['TLSv1.2', 'TLSv1.3']) {
        my ($of, $as)       = @$_;
        my ($session, $own) = map { visit($port, protocol => $_)->{session} } $of, $as;
        shown_as($port, $nginx, $of, $session, with_session_id($own, session_id($session)), protocol => $as, where => 'shared:tls');
    }
    in_peace($nginx);
};

done_testing;
