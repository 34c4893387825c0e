# "single_use": a ticket of TLS 1.3 is taken out of the store, and so resumes one handshake of the
# whole fleet.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

# http{} with a TLS server on $port; backends "store" and, with near =>, "near".
sub conf {
    my ($port, %arg) = @_;
    my $backend = '';
    if ($arg{server}) {
        $backend = <<"CONF";
    ssl_session_backend store {
        server $arg{server};
        protocol ${\ ($arg{protocol} // 'redis') };
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout ${\ ($arg{fetch_timeout} // '40s') };
        store_timeout 60s;
    }
CONF
    }
    return <<"CONF";
$backend
    ssl_session_fetch $arg{fetch};
    ssl_session_store $arg{store};
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_ecdh_curve      P-384:X25519;
    @{ $arg{more} // [] }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$pid"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.3', %arg);
    return seen($client);
}

# What became of a client's handshake, and what its server says about it.
sub seen {
    my ($client) = @_;
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier, $pid) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit"
        if $client->reused != ($status eq 'HIT');
    return { status => $status, tier => $tier, pid => $pid, reused => $client->reused, client => $client,
        session => $client->session };
}

sub outcomes { my %count; $count{ $_->{status} }++ for @_; return \%count }

sub stored_session {
    my ($port, $store, %arg) = @_;
    my $session = visit($port, %arg)->{session};
    wait_until { grep { $_ eq cache_key($session) } $store->keys } 5, 'the session in the store';
    return $session;
}

# N clients that have sent their ClientHello with one session, at the ports in turn.
sub begin {
    my ($n, $session, @ports) = @_;
    return map { tls_client(port => $ports[ $_ % @ports ], protocol => 'TLSv1.3', session => $session)->start } 1 .. $n;
}

sub nothing_else { my ($nginx) = @_; is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log' }

# Two nginx with one store, behind a relay.
sub fleet {
    my ($store, %arg) = @_;
    my $relay = relay(upstream => '127.0.0.1:' . $store->port);
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(conf => conf($_, server => '127.0.0.1:' . $relay->port,
        fetch => 'store single_use', store => 'store', %arg)) } @port;
    return ($relay, \@port, \@nginx);
}

subtest 'redis: of 100 clients at two servers with one ticket, one is resumed' => sub {
    my $redis = redis();
    my ($relay, $port, $nginx) = fleet($redis);
    for my $way (qw(request reply)) {
        my $session = stored_session($port->[0], $redis);
        my ($takes, $calls) = (scalar $relay->requests('GETDEL'), $redis->calls('getdel'));
        $relay->hold($way);
        my @clients = begin(100, $session, @$port);
        wait_until { $relay->requests('GETDEL') - $takes >= 100 } 20, 'all lookups';
        $relay->release($way);
        my @seen = map { seen($_) } @clients;
        is_deeply outcomes(@seen), { HIT => 1, MISS => 99 }, "${way}s held: one hit";
        is scalar(grep { $_->{reused} } @seen), 1, 'one resumed';
        is $redis->calls('getdel') - $calls, 100, 'Redis has seen a hundred GETDEL';
        is visit($port->[$_], session => $session)->{status}, 'MISS', 'and nobody is resumed by it later' for 0, 1;
    }
    is $redis->calls('get'), 0, 'and no GET';
    nothing_else($_) for @$nginx;
};

subtest 'memcached: of 100 clients at two servers with one ticket, one is resumed' => sub {
    my $store = memcached();
    my ($relay, $port, $nginx) = fleet($store, protocol => 'memcached');
    # A connection begins with a greeting, whose answer must not be held.
    visit($_, session => stored_session($_, $store)) for @$port;
    # Read by all before one has claimed it, and then the other way round.
    for my $way (qw(reply request)) {
        my $session = stored_session($port->[0], $store);
        my $reads = $relay->requests('mg');
        $relay->hold($way);
        my @clients = begin(100, $session, @$port);
        wait_until { $relay->requests('mg') - $reads >= 100 } 20, 'all lookups';
        wait_until { $relay->stats->{reply} > 100 * 100 } 10, 'all entries' if $way eq 'reply';
        my $hits = $store->stats('get_hits');
        $relay->release($way);
        my @seen = map { seen($_) } @clients;
        is_deeply outcomes(@seen), { HIT => 1, MISS => 99 }, "${way}s held: one hit";
        is scalar(grep { $_->{reused} } @seen), 1, 'one resumed';
        cmp_ok $hits, '>=', 100, 'although all of them had read it' if $way eq 'reply';
        is visit($port->[$_], session => $session)->{status}, 'MISS', 'and nobody is resumed by it later' for 0, 1;
    }
    nothing_else($_) for @$nginx;
};

subtest 'shared: of 100 clients at several workers with one ticket, one is resumed' => sub {
    my $port  = free_port();
    my $nginx = nginx(workers => 2, conf => conf($port, fetch => 'shared:tls:1m single_use', store => 'shared:tls:1m'));
    my (%served, @seen);
    for my $round (1 .. 20) {
        my $session = visit($port)->{session};
        # All of them wait when the workers go on.
        $nginx->halt($_) for $nginx->workers;
        my @clients = begin(100, $session, $port);
        kill CONT => $nginx->workers;
        @seen = map { seen($_) } @clients;
        is_deeply outcomes(@seen), { HIT => 1, MISS => 99 }, 'one hit';
        is scalar(grep { $_->{reused} } @seen), 1, 'one resumed';
        is visit($port, session => $session)->{status}, 'MISS', 'and nobody is resumed by it later';
        %served = ();
        $served{ $_->{pid} }++ for @seen;
        last if keys %served == 2 && $round >= 2;
    }
    is scalar(keys %served), 2, 'both workers have served them: ' . join ' and ', values %served;
    nothing_else($nginx);
};

subtest 'sessions of TLS 1.2 are read, not taken' => sub {
    my $redis = redis();
    my ($relay, $port, $nginx) = fleet($redis);
    my $session = stored_session($port->[0], $redis, protocol => 'TLSv1.2');
    is visit($port->[ $_ % 2 ], protocol => 'TLSv1.2', session => $session)->{status}, 'HIT', "time $_" for 1 .. 4;
    is $redis->calls('get'), 4, 'by GET';
    is $redis->calls('getdel'), 0, 'not by GETDEL';
    nothing_else($_) for @$nginx;
};

subtest 'each resumption gives a ticket for the next one' => sub {
    my $redis = redis();
    my ($relay, $port, $nginx) = fleet($redis);
    my $session = stored_session($port->[0], $redis);
    for my $n (1 .. 5) {
        my $seen = visit($port->[ $n % 2 ], session => $session);
        is $seen->{status}, 'HIT', 'hit';
        is visit($port->[ $n % 2 ], session => $session)->{status}, 'MISS', 'once';
        $session = $seen->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    }
    nothing_else($_) for @$nginx;
};

for my $kind (qw(redis shared)) {
    subtest "$kind: after a HelloRetryRequest the session is there still, taken once" => sub {
        my $redis = redis();
        my $port  = free_port();
        my $nginx = nginx(conf => $kind eq 'redis'
            ? conf($port, server => '127.0.0.1:' . $redis->port, fetch => 'store single_use', store => 'store')
            : conf($port, fetch => 'shared:tls:1m single_use', store => 'shared:tls:1m'));
        my $session = visit($port)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store' if $kind eq 'redis';
        # Its key share is for a group that the server does not take.
        my $seen = visit($port, session => $session, groups => 'P-256:P-384');
        ok $seen->{client}->hello_retried, 'the client was asked for another ClientHello';
        is $seen->{status}, 'HIT', 'hit';
        is $seen->{reused}, 1, 'resumed';
        is $redis->calls('getdel'), 1, 'one GETDEL' if $kind eq 'redis';
        is visit($port, session => $session)->{status}, 'MISS', 'it is used up';
        nothing_else($nginx);
    };
}

subtest 'a nearer tier is not asked for what is taken, and not refilled' => sub {
    my ($port, $redis) = (free_port(), redis());
    my @server = (server => '127.0.0.1:' . $redis->port);
    # With copies in the nearer tier, as there are where sessions were not taken before.
    my $nginx = nginx(conf => conf($port, @server, fetch => 'shared:near:1m store', store => 'shared:near:1m store'));
    my $session = stored_session($port, $redis);
    $nginx->reload(conf($port, @server, fetch => 'shared:near:1m store single_use', store => 'shared:near:1m store'));
    my $seen = visit($port, session => $session);
    is $seen->{status}, 'HIT', 'hit';
    is $seen->{tier}, 'store', 'in the last tier, though the nearer one has it';
    is $redis->calls('getdel'), 1, 'by GETDEL';
    is visit($port, session => $session)->{status}, 'MISS', 'the copy in the nearer tier is no use';
    my $old = stored_session($port, $redis, protocol => 'TLSv1.2');
    is visit($port, protocol => 'TLSv1.2', session => $old)->{tier}, 'shared:near', 'a session of TLS 1.2 comes from there';

    $nginx->reload(conf($port, @server, fetch => 'shared:near:1m store single_use', store => 'store'));
    $session = stored_session($port, $redis);
    is visit($port, session => $session)->{tier}, 'store', 'one that only the last tier has';
    $nginx->reload(conf($port, @server, fetch => 'shared:near:1m store', store => 'store'));
    is visit($port, session => $session)->{status}, 'MISS', 'it was not put into the nearer tier';
    $session = stored_session($port, $redis);
    visit($port, session => $session);
    is visit($port, session => $session)->{tier}, 'shared:near', 'as it is where sessions are read';
    nothing_else($nginx);
};

for my $cache ('shared:own:1m', 'builtin', 'builtin:100 shared:own:1m') {
    subtest "nginx's own cache, $cache, does not bring a taken session back" => sub {
        my $redis = redis();
        my ($relay, $port, $nginx) = fleet($redis, more => ["ssl_session_cache $cache;"]);
        my $session = stored_session($port->[0], $redis);
        is visit($port->[1], session => $session)->{status}, 'HIT', 'taken at the other server';
        my $seen = visit($port->[0], session => $session);
        is $seen->{reused}, 0, 'where it was made it is no longer good';
        is $seen->{status}, 'MISS', 'as the store says';

        $session = stored_session($port->[0], $redis);
        is visit($port->[0], session => $session)->{status}, 'HIT', 'taken where it was made';
        is visit($port->[$_], session => $session)->{reused}, 0, 'no longer good anywhere' for 0, 1;

        # The built-in one is not used at all: OpenSSL would ask it first.
        my $from = $nginx->[0]->log_pos;
        $nginx->[0]->reload;
        is $nginx->[0]->log_count(qr/\[warn\] .* "ssl_session_cache builtin" is not used, as "single_use" is set/, from => $from),
            $cache =~ /builtin/ ? 1 : 0, 'nginx says so';
        my $old = stored_session($port->[0], $redis, protocol => 'TLSv1.2');
        $redis->cmd('DEL', cache_key($old));
        my $client = tls_client(port => $port->[0], protocol => 'TLSv1.2', session => $old, handshake => 1);
        is $client->reused, $cache =~ /shared/ ? 1 : 0, 'a session of TLS 1.2 is resumed from a shared one';
        is_deeply [ $_->errors(warn => 1, except => qr/"ssl_session_cache builtin" is not used/) ], [], 'nothing else in the log' for @$nginx;
    };
}

subtest 'a take that is not answered in time: full handshake, and the ticket is gone' => sub {
    my $redis = redis();
    my ($relay, $port, $nginx) = fleet($redis, fetch_timeout => 100 * patience() . 'ms');
    my $session = stored_session($port->[0], $redis);
    $relay->hold;
    my $seen = visit($port->[0], session => $session);
    is $seen->{status}, 'TIMEOUT', 'outcome';
    is $seen->{reused}, 0, 'full handshake';
    is $redis->cmd('EXISTS', cache_key($session)), 0, 'Redis had given it away';
    $relay->release;
    wait_until { visit($port->[$_], session => $session)->{status} eq 'MISS' } 10, "server $_ to be served again" for 0, 1;
    is $redis->calls('get'), 0, 'no GET at any time';
};

subtest 'a take while the store is down: full handshake, and the ticket is good later' => sub {
    my $redis = redis();
    my ($relay, $port, $nginx) = fleet($redis);
    my $session = stored_session($port->[0], $redis);
    $relay->refuse;
    $relay->close_all;
    wait_until { visit($port->[0], session => $session)->{status} eq 'DOWN' } 5, 'it to be down';
    is visit($port->[0], session => $session)->{reused}, 0, 'full handshake';
    $relay->refuse(0);
    # Where it is not yet up again the lookup does not reach it.
    my $seen = wait_until { my $seen = visit($port->[0], session => $session); $seen->{status} !~ /DOWN|ERROR/ && $seen } 10, 'it to be up';
    is $seen->{status}, 'HIT', 'hit, when it is back';
    is visit($port->[0], session => $session)->{status}, 'MISS', 'once';
};

done_testing;
