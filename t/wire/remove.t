# What OpenSSL withdraws, after a fatal alert, is removed from wherever it may be resumed from.

use strict;
use warnings;

use lib 't/lib';
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
    ssl_session_tickets off;
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

done_testing;
