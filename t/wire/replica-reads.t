# "replica_reads": lookups go to a replica, and to its master where the replica has no answer.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Edge;
use List::Util qw(sum0);
use Test::More;

my $whole = 3000 * patience();

# An nginx with a backend of these lines.
sub edge {
    my ($backend, %arg) = @_;
    my $wait = delete $arg{fetch_timeout} // $whole;
    return SSLSession::Edge->new(
        backend => "$backend replica_reads on; connect_timeout ${whole}ms; fetch_timeout ${wait}ms;", %arg);
}

sub answer { return SSLSession::Edge::answer(@_) }

# A master with a replica, and an nginx that knows both.
sub pair {
    my (%arg) = @_;
    my $lines   = delete $arg{lines} // '';
    my $master  = redis();
    my $replica = redis(replicaof => $master, conf => delete $arg{conf} // [])->wait_replica;
    return ($master, $replica, edge("server ${\ $master->address }; server ${\ $replica->address } replica; $lines", %arg));
}

sub reset_stats { $_->cmd(qw(CONFIG RESETSTAT)) for @_ }

# It gets no more from its master, and has nothing.
sub cut_off { my ($replica) = @_; $replica->cmd(qw(REPLICAOF NO ONE)); $replica->cmd('FLUSHALL'); return $replica }

subtest 'a replica answers, and the master stores' => sub {
    my ($master, $replica, $edge) = pair();
    my @some = $edge->sessions(5, 'TLSv1.2', 2, $master, $replica);
    reset_stats($master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits';
    is $replica->calls('get'), 5, 'of the replica';
    is $master->calls('get'), 0, 'none of the master';
    is $edge->metric('replica_misses'), 0, 'nor a miss';
    is $edge->metric('hedged_lookups'), 0, 'nor a hedge';
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'what a replica lacks the master has' => sub {
    my ($master, $replica, $edge) = pair();
    cut_off($replica);
    my @some = $edge->sessions(5, 'TLSv1.2', 1, $master);
    reset_stats($master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits';
    is $replica->calls('get'), 5, 'the replica was asked';
    is $master->calls('get'), 5, 'and the master';
    is $edge->metric('replica_misses', $replica->address), 5, 'which is counted';
    $master->cmd('FLUSHALL');
    is $edge->status($some[0]), 'MISS', 'what both lack is a miss';
};

subtest 'takes are made at the master, and the epoch is read there' => sub {
    my ($master, $replica, $edge) = pair(fetch => 'single_use', http => 'ssl_session_epoch epoch;');
    my @tickets = $edge->sessions(5, 'TLSv1.3', 2, $master, $replica);
    my ($plain) = $edge->sessions(1, 'TLSv1.2', 2, $master, $replica);
    reset_stats($master, $replica);
    is_deeply $edge->statuses(@tickets), { HIT => 5 }, 'tickets';
    is $master->calls('getdel'), 5, 'are taken out of the master';
    is $replica->calls('get'), 0, 'and not looked for elsewhere';
    is_deeply $edge->statuses(@tickets), { MISS => 5 }, 'once';
    is $edge->status($plain), 'HIT', 'a lookup of TLS 1.2';
    is $replica->calls('get'), 1, 'is the replica\'s';
    # Another key of this name is the replica's own business.
    cut_off($replica);
    $replica->cmd('SET', 'tls:epoch', time + 60);
    wait_until { $edge->status($plain); $master->calls('get') >= 2 } 5, 'the question for the epoch';
    is $edge->status($plain), 'HIT', 'what a replica has for an epoch does not count';
    $master->cmd('SET', 'tls:epoch', time + 60);
    wait_until { $edge->status($plain) eq 'MISS' } 5, 'what the master has does';
};

subtest 'a replica that has lost its master' => sub {
    my ($master, $replica, $edge) = pair(conf => ['replica-serve-stale-data no']);
    my @some = $edge->sessions(5, 'TLSv1.2', 2, $master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits';
    $replica->cmd('REPLICAOF', '127.0.0.1', free_port());
    wait_until { !eval { $replica->cmd('GET', 'x'); 1 } } 5, 'the refusal';
    my $accepted = $replica->info('total_connections_received');
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'the master answers';
    is $edge->metric('replica_misses'), 5, 'in the place of the replica';
    is $edge->said(qr/ redis \Q${\ $replica->address }\E refused \d+ requests, the last with "MASTERDOWN [^"]*" while fetching/), 1, 'one line, without a hint';
    is_deeply [ $edge->errors(warn => 1, except => qr/MASTERDOWN/) ], [], 'and no other';
    is $replica->info('total_connections_received'), $accepted, 'over the same connection';
};

subtest 'a replica that loads its data' => sub {
    my $master  = redis();
    my $loading = fake_server(canned => ["-LOADING Redis is loading the dataset in memory\r\n"]);
    my $edge = edge("server ${\ $master->address }; server 127.0.0.1:${\ $loading->port } replica;");
    my @some = $edge->sessions(5, 'TLSv1.2', 1, $master);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'the master answers';
    is $edge->said(qr/ refused \d+ requests, the last with "LOADING /), 1, 'one line';
};

subtest 'a replica that is stopped' => sub {
    my $hedge = 40 * patience();
    my ($master, $replica, $edge) = pair(lines => "hedge ${hedge}ms;");
    my @some = $edge->sessions(3, 'TLSv1.2', 2, $master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 3 }, 'hits';
    $replica->pause;
    my ($status, $ms) = $edge->timed($some[0]);
    is $status, 'HIT', 'with "hedge" the master answers';
    cmp_ok $ms, '<', $whole / 4, sprintf 'after %d ms', $ms;
    is $edge->metric('hedges_won', $master->address), 1, 'a hedge';
    $master->cmd('FLUSHALL');
    is $edge->status($some[1]), 'MISS', 'its miss is one';
    $replica->resume;

    ($master, $replica, $edge) = pair(fetch_timeout => 100 * patience());
    @some = $edge->sessions(3, 'TLSv1.2', 2, $master, $replica);
    is $edge->status($some[0]), 'HIT', 'a hit';
    $replica->pause;
    is $edge->status($some[0]), 'TIMEOUT', 'without "hedge" a lookup is late';
    wait_until { $edge->status($some[0]) eq 'HIT' } 10, 'until the replica is down';
    is $edge->said(qr/ redis \Q${\ $replica->address }\E is down: no answer within/), 1, 'which is said';
    is_deeply $edge->statuses(@some), { HIT => 3 }, 'then the master answers';
    $replica->resume;
};

subtest 'a replica that dies, and a master that does' => sub {
    my ($master, $replica, $edge) = pair();
    my @some = $edge->sessions(5, 'TLSv1.2', 2, $master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits';
    $replica->kill;
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'without the replica';
    $replica->start->wait_replica;
    wait_until { $replica->calls('get') || do { $edge->status($some[0]); 0 } } 10, 'the replica is in use again';
    $master->kill;
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'and without the master';
    cut_off($replica);
    is $edge->status($some[0]), 'DOWN', 'what the replica lacks the master cannot tell';
};

subtest 'the near one of two replicas' => sub {
    my $master = redis();
    my ($near, $far) = map { redis(replicaof => $master)->wait_replica } 1 .. 2;
    my $relay = relay(upstream => $far->address, delay => 60 * patience());
    my $edge  = edge("server ${\ $master->address }; server 127.0.0.1:${\ $relay->port } replica; server ${\ $near->address } replica;");
    my @some = $edge->sessions(40, 'TLSv1.2', 3, $master, $near, $far);
    is_deeply $edge->statuses(@some), { HIT => 40 }, 'hits';
    my $tried = $relay->requests('GET');
    cmp_ok $tried, '>=', 1, 'the far one is tried';
    cmp_ok $tried, '<=', 10, "and hardly used: $tried of 40";
    cmp_ok $near->calls('get'), '>=', 30, 'as the near one is';
    $near->kill;
    is_deeply $edge->statuses(@some), { HIT => 40 }, 'and is there when the near one is not';
    cmp_ok $relay->requests('GET'), '>=', 35, 'for all';
};

subtest 'an entry of no use is said of the replica' => sub {
    my ($master, $replica, $edge) = pair();
    cut_off($replica);
    my ($one) = $edge->sessions(1, 'TLSv1.2', 1, $master);
    $replica->cmd('SET', $one->{key}, 'nonsense');
    is $edge->status($one), 'CORRUPT', 'an entry';
    is $edge->said(qr/corrupt SSL session [0-9a-f]{8} in "store", redis \Q${\ $replica->address }\E, 1 times/), 1, 'with its server';
};

subtest 'a cluster' => sub {
    my $cluster = redis_cluster(timeout => 2000 * patience());
    my ($seed)  = $cluster->masters;
    my $edge    = edge("server ${\ $seed->address }; cluster on;");
    my @masters = $cluster->masters;
    my @some    = $edge->sessions(12, 'TLSv1.2', 2, $cluster->nodes);
    my $calls   = sub { sum0(map { $_->calls('get') } @_) };
    wait_until {
        reset_stats($cluster->nodes);
        $edge->statuses(@some);
        !$calls->(@masters);
    } 10, 'the map';
    is_deeply $edge->statuses(@some), { HIT => 12 }, 'hits';
    is $calls->(@masters), 0, 'none of the masters';
    cmp_ok $calls->($_), '>=', 1, 'of a replica' for $cluster->replicas;
    is sum0(map { ($_->info('errorstat_MOVED') // '') =~ /count=(\d+)/ } $cluster->nodes), 0, 'none was sent on';

    my $dead = $cluster->kill_master($masters[0]);
    my %n = %{ $edge->statuses(@some) };
    is_deeply \%n, { HIT => 12 }, 'a dead master does not keep its replica from answering';
    my $new = $cluster->wait_failover($dead);
    is_deeply $edge->statuses(@some), { HIT => 12 }, 'nor another one';
    $dead->start;
    wait_until { $dead->cmd('ROLE')->[0] eq 'slave' && $dead->info('master_link_status') eq 'up' } 30, 'the old master to follow';
    $cluster->wait_ok;
    is_deeply $edge->statuses(@some), { HIT => 12 }, 'nor its return';
};

subtest 'Sentinels' => sub {
    my $fleet = redis_sentinel();
    my ($master, $replica, $sentinel) = ($fleet->master, $fleet->replicas, $fleet->sentinels);
    my $edge = edge("server ${\ $sentinel->address }; sentinel fleet;");
    my @some = $edge->sessions(5, 'TLSv1.2', 2, $master, $replica);
    reset_stats($master, $replica);
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits';
    is $replica->calls('get'), 5, 'of the replica';
    is $master->calls('get'), 0, 'none of the master';
    $replica->cmd(qw(CONFIG SET replica-serve-stale-data no));
    $replica->cmd('REPLICAOF', '127.0.0.1', free_port());
    wait_until { !eval { $replica->cmd('GET', 'x'); 1 } } 5, 'the refusal of one that has lost it';
    is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits of the master';
    is $edge->said(qr/ is down: /), 0, 'it is no master that is none any more';
    $replica->cmd('REPLICAOF', '127.0.0.1', $master->port);
    $replica->wait_replica;
    $fleet->wait_ok(2);
    my $new = $fleet->failover;
    is $new, $replica, 'they change places';
    wait_until { $master->cmd('ROLE')->[0] eq 'slave' && $master->info('master_link_status') eq 'up' } 20, 'the old master to follow';
    reset_stats($master, $replica);
    # The Sentinels are asked for replicas when there is another master, and every ten seconds.
    wait_until { is_deeply $edge->statuses(@some), { HIT => 5 }, 'hits all the time'; $master->calls('get') >= 5 } 25, 'reads at the new replica';
    is $edge->said(qr/ is down: /), 0, 'nobody has gone down';
};

subtest 'a server of the configuration without replicas' => sub {
    my ($status, $said) = nginx(start => 0, conf => 'ssl_session_backend store { server 127.0.0.1; replica_reads on; }')->conf_test;
    isnt $status, 0, 'is refused';
};

done_testing;
