# Early data cannot be replayed: what a client has sent as 0-RTT data, and somebody has recorded and
# sends to all servers of a fleet as often as he likes, is done once ("single_use").

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(client_hello early_client early_records record_flight send_flight settle);
use SSLSession::EarlyFleet;
use Test::More;

my $times  = int(1000 / patience());
my $fewer  = int(200 / patience());
my $number = 0;

sub fleet { SSLSession::EarlyFleet->new(@_) }

# http{} with sessions in this store.
sub http {
    my ($address, %arg) = @_;
    my $wait  = $arg{wait} // '40s';
    my $fetch = $arg{fetch} // 'store single_use';
    my $store = $arg{store} // 'store';
    return <<"CONF";
    ssl_session_backend store {
        server          $address;
        protocol        ${\ ($arg{protocol} // 'redis') };
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout   $wait;
        store_timeout   60s;
    }
    ssl_session_fetch $fetch;
    ssl_session_store $store;
    @{ $arg{more} // [] }
CONF
}

# Replays of one client's flight: what became of them, and that nothing but the take has stopped
# those that were refused.
sub replayed {
    my ($fleet, $n, %arg) = @_;
    my $path = '/pay-' . ++$number;
    my ($flight, $witness) = $fleet->flights($path, %arg);
    my $came = $fleet->replay($flight, $n);
    is $came->{answered}, $n, "$n replays, a ServerHello for each";
    is $fleet->replay($witness, 1)->{answered}, 1, 'and for another one of the same age';
    is_deeply [ $fleet->executed("$path-witness") ], [1], 'which is early enough still';
    return ($came, $fleet->executed($path));
}

sub nothing_else { my ($fleet) = @_; is_deeply [ map { $_->errors(warn => 1) } $fleet->edges ], [], 'nothing in the logs' }

# What a client is told that asks again where its early data was refused: its request's body.
sub owner {
    my ($fleet, $session, $path, %arg) = @_;
    my $host = $arg{sni} // 'localhost';
    return early_client(port => ($fleet->ports)[0], session => $session, path => $path,
        request => "POST $path HTTP/1.0\r\nHost: $host\r\nContent-Length: 0\r\n\r\n", %arg);
}

# A client whose flight has been seen on its way to the first server, and waits there: client, flight,
# and the relay that holds it.
sub held_owner {
    my ($fleet, $session, $path) = @_;
    my $front = relay(upstream => '127.0.0.1:' . ($fleet->ports)[0]);
    $front->hold('request');
    my $owner  = owner($fleet, $session, $path, port => $front->port);
    my $flight = wait_until {
        my $sent = join '', map { @$_ } $front->requests;
        early_records($sent) && $sent;
    } 10, 'early data';
    return ($owner, $flight, $front);
}

# Refused as early data, and done once all the same, after a handshake with this end.
sub done_once_later {
    my ($fleet, $client, $path, $end) = @_;
    is $client->early_data, 'rejected', 'early data refused' or diag $client->output;
    is $client->response, "$end\n", 'asked again, answered';
    is $client->exit, 0, 'and nothing has failed';
    is_deeply [ $fleet->executed($path) ], [''], 'done once, and not in early data';
}

subtest "redis: one client's early data, $times times at two servers" => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port));
    my ($came, @done) = replayed($fleet, $times);
    is $came->{resumed}, 1, 'one is resumed';
    is_deeply \@done, [1], 'done once, in early data';
    is $redis->calls('getdel'), $times + 1, 'Redis was asked for each';
    my $links = () = $redis->clients;
    cmp_ok $links, '>=', 4, 'by two workers of two servers';
    cmp_ok $links, '<=', 8, 'some of which have stored something';
    nothing_else($fleet);
};

subtest 'memcached: the same' => sub {
    my $store = memcached();
    my $fleet = fleet(store => $store, http => http('127.0.0.1:' . $store->port, protocol => 'memcached'));
    my ($came, @done) = replayed($fleet, $fewer);
    is $came->{resumed}, 1, 'one is resumed';
    is_deeply \@done, [1], 'done once, in early data';
    nothing_else($fleet);
};

subtest 'shared: the same, at the workers of one server' => sub {
    my $fleet = fleet(edges => 1, http => <<'CONF');
    ssl_session_fetch shared:tls:1m single_use;
    ssl_session_store shared:tls:1m;
CONF
    my ($came, @done) = replayed($fleet, $fewer);
    is $came->{resumed}, 1, 'one is resumed';
    is_deeply \@done, [1], 'done once, in early data';
    nothing_else($fleet);
};

subtest 'without the module, the servers sharing a ticket key: done again and again' => sub {
    my $key = spew(tmpdir() . '/ticket.key', map { chr rand 256 } 1 .. 80);
    my $fleet = fleet(module => 0, http => <<"CONF");
    ssl_session_tickets    on;
    ssl_session_ticket_key $key;
CONF
    my ($came, @done) = replayed($fleet, $fewer);
    cmp_ok scalar(@done), '>', 1, 'replays are seen as such by this test';
    note "done @{[ scalar @done ]} times of $fewer";
    is $came->{resumed}, scalar @done, 'each that was resumed';
};

subtest 'with sessions in Redis, but without single_use: done again and again' => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port, fetch => 'store'));
    my ($came, @done) = replayed($fleet, $fewer);
    cmp_ok scalar(@done), '>', 1, 'a store alone is no protection';
    note "done @{[ scalar @done ]} times of $fewer";
    nothing_else($fleet);
};

subtest 'the store is down: a full handshake, and the request after it' => sub {
    my $redis = redis();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $fleet = fleet(workers => 1, store => $redis, http => http('127.0.0.1:' . $relay->port));
    my ($session, $other) = $fleet->tickets;
    $relay->refuse;
    $relay->close_all;
    # Asked once more before it is known, and not asked after that.
    done_once_later($fleet, owner($fleet, $session, '/down-1'), '/down-1', '. ERROR');
    done_once_later($fleet, owner($fleet, $other,   '/down-2'), '/down-2', '. DOWN');
    is_deeply [ map { $_->errors(warn => 1, except => $gone) } $fleet->edges ], [],
        'nothing in the logs but that it is down';
};

subtest 'the store is slow: the same' => sub {
    my $redis = redis();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $fleet = fleet(workers => 1, edges => 1, store => $redis,
        http => http('127.0.0.1:' . $relay->port, wait => 100 * patience() . 'ms'));
    my ($session) = $fleet->tickets;
    $relay->hold;
    done_once_later($fleet, owner($fleet, $session, '/slow'), '/slow', '. TIMEOUT');
    is $redis->calls('getdel'), 1, 'though Redis had given the ticket away';
    $relay->release;
};

subtest 'a nearer tier gives no early data' => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port,
        fetch => 'shared:near:1m store single_use', store => 'shared:near:1m store'));
    my ($came, @done) = replayed($fleet, $fewer);
    is $came->{resumed}, 1, 'one is resumed, though the nearer tiers have what they had';
    is_deeply \@done, [1], 'done once, in early data';

    my ($session, $lost) = $fleet->tickets;
    my $client = early_client(port => ($fleet->ports)[0], session => $session, path => '/both');
    is $client->early_data, 'accepted', 'early data is accepted';
    is $client->response, "r HIT store\n", 'of a session that came from the last tier';
    # It is no early data any more where the client's Finished came before it was read.
    is scalar($fleet->executed('/both')), 1, 'and done once';

    $redis->cmd('DEL', cache_key($lost));
    done_once_later($fleet, owner($fleet, $lost, '/near'), '/near', '. MISS');
    nothing_else($fleet);
};

my $ticket_key = spew(tmpdir() . '/ticket.key', map { chr rand 256 } 1 .. 80);
# The keys are shared, or only one of the servers could be made to do it again.
my %ticket_keys = ('a file' => ["ssl_session_ticket_key $ticket_key;", 'r'], 'the fleet' => ['ssl_session_ticket_keys store;', 'r TICKET']);
for my $keys (sort keys %ticket_keys) {
    my ($directive, $end) = @{ $ticket_keys{$keys} };
    subtest "stateless tickets under a key of $keys: resumed, without early data" => sub {
        my $redis = redis();
        my $fleet = fleet(log => 'info', http => http('127.0.0.1:' . $redis->port, more => [ 'ssl_session_tickets on;', $directive ]));
        for my $edge ($keys eq 'the fleet' ? $fleet->edges : ()) {
            wait_until { $edge->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys';
        }
        my ($session, $other) = $fleet->tickets;
        my $flight = record_flight(session => $session, path => '/stateless');
        is $fleet->replay($flight, $fewer)->{resumed}, $fewer, 'all replays are resumed';
        is_deeply [ $fleet->executed('/stateless') ], [], 'and nothing is done';
        done_once_later($fleet, owner($fleet, $other, '/owner'), '/owner', $end);
        is $redis->calls('getdel'), 0, 'nothing was taken';
        is_deeply [ map { $_->errors(warn => 1, except => qr/"ssl_session_tickets" is on/) } $fleet->edges ], [],
            'nothing else in the logs';
    };
}

subtest 'after a HelloRetryRequest: one take, resumed, without early data' => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port, more => ['ssl_ecdh_curve P-384;']));
    my ($session, $other) = $fleet->tickets(groups => 'P-384');
    my @groups = (args => [qw(-groups X25519:P-384)]);
    done_once_later($fleet, owner($fleet, $session, '/retry', @groups), '/retry', 'r HIT store');
    is $redis->calls('getdel'), 1, 'one take';

    my $flight = record_flight(session => $other, path => '/retry-replayed', @groups);
    $fleet->replay($flight, $fewer);
    is_deeply [ $fleet->executed('/retry-replayed') ], [], 'and of replays nothing is done';
    nothing_else($fleet);
};

subtest 'an observer who shows the ticket first has burnt it' => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port));
    # Its ClientHello, as it is and with another binder: he has seen the ticket, but not its key.
    for my $binder (0, 1) {
        my ($session) = $fleet->tickets;
        my $path = "/observed-$binder";
        my ($owner, $flight, $front) = held_owner($fleet, $session, $path);
        my $hello = client_hello($flight);
        substr($hello, -1) ^= "\1" if $binder;
        my $came = settle(send_flight($hello, 1, ($fleet->ports)[1]));
        is_deeply $came, { answered => !$binder || 0, resumed => !$binder || 0 },
            $binder ? 'he is refused' : 'he is answered, and can go no further';
        is_deeply [ $fleet->executed($path) ], [], 'which does nothing';
        $front->release('request');
        done_once_later($fleet, $owner, $path, '. MISS');
    }
    is_deeply [ map { $_->errors(warn => 1, except => qr/binder does not verify/) } $fleet->edges ], [],
        'nothing in the logs but that';
};

# RFC 8446, 8: no server can keep apart what a client sends again because it was refused.
subtest 'an observer who shows all of it first: the client asks for it once more' => sub {
    my $redis = redis();
    my $fleet = fleet(store => $redis, http => http('127.0.0.1:' . $redis->port));
    my ($session) = $fleet->tickets;
    my ($owner, $flight, $front) = held_owner($fleet, $session, '/shown');
    is_deeply $fleet->replay($flight, $fewer), { answered => $fewer, resumed => 1 }, 'one of his is resumed';
    $front->release('request');
    is $owner->early_data, 'rejected', 'the early data of the client is refused';
    is_deeply [ $fleet->executed('/shown') ], [ 1, '' ], 'done once in early data, and once when it was asked again';
};

# A connection has its callback from the default server's context, before the name is known.
for my $case (
    [ 'both alike',                          '', '', 1, 'r HIT store' ],
    [ 'the default server has no cache',     'ssl_session_cache off;', '', 0, '.' ],
    [ 'the other one has no cache',          '', 'ssl_session_cache off;', 1, 'r HIT store' ],
    [ 'both have stateless tickets',         'ssl_session_tickets on;', 'ssl_session_tickets on;', 0, 'r' ],
    # Which the default server does not read.
    [ 'the other one has stateless tickets', '', 'ssl_session_tickets on;', 0, '.' ],
    [ 'the other one accepts no early data', '', 'ssl_early_data off;', 1, 'r HIT store' ],
) {
    my ($what, $default, $other, $accepted, $end) = @$case;
    subtest "a server that is not the default one, $what" => sub {
        my $redis = redis();
        my @lines = map { join ' ', $_, /early_data/ ? () : 'ssl_early_data on;', /tickets/ ? () : 'ssl_session_tickets off;' }
            $default, $other;
        my $fleet = fleet(edges => 1, http => http('127.0.0.1:' . $redis->port),
            servers => [ "$lines[0] server_name first.example.test;", "$lines[1] server_name second.example.test;" ]);
        my @name = (sni => 'second.example.test');
        my ($session, $mine) = $fleet->tickets(@name);
        my $flight = record_flight(session => $session, path => '/named', @name);
        is $fleet->replay($flight, 20)->{answered}, 20, 'replays are answered';
        is_deeply [ $fleet->executed('/named') ], [ (1) x $accepted ], $accepted ? 'and done once' : 'and not done';
        return done_once_later($fleet, owner($fleet, $mine, '/mine', @name), '/mine', $end) if !$accepted;
        my $client = early_client(port => ($fleet->ports)[0], session => $mine, path => '/mine', @name);
        is $client->early_data, 'accepted', 'its owner\'s early data is accepted';
        is $client->response, "$end\n", 'and answered';
        is scalar($fleet->executed('/mine')), 1, 'done once';
    };
}

done_testing;
