# "hedge": a lookup without an answer is made at a second server that has the same entries.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Edge;
use Test::More;

my $hedge = 40 * patience();
my $whole = 4000 * patience();

# An nginx with a backend of these lines.
sub edge {
    my ($backend, %arg) = @_;
    my $wait = delete $arg{fetch_timeout} // $whole;
    return SSLSession::Edge->new(
        backend => "$backend hedge ${hedge}ms; connect_timeout ${whole}ms; fetch_timeout ${wait}ms;", %arg);
}

sub answer { return SSLSession::Edge::answer(@_) }

# A master with a replica, and an nginx that knows both; with "behind" it reaches the master by a relay.
sub pair {
    my ($behind, %arg) = @_;
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $relay   = $behind && relay(upstream => $master->address);
    my $address = $relay ? '127.0.0.1:' . $relay->port : $master->address;
    return ($master, $replica, edge("server $address; server ${\ $replica->address } replica;", %arg), $relay);
}

subtest 'a replica answers while the master is stopped' => sub {
    my ($master, $replica, $edge) = pair();
    my @some   = $edge->sessions(10, 'TLSv1.2', 2, $master, $replica);
    $_->cmd(qw(CONFIG RESETSTAT)) for $master, $replica;
    is $edge->status($_), 'HIT', 'a hit' for @some;
    is $master->calls('get'), 10, 'of the master';
    is $replica->calls('get'), $edge->metric('hedged_lookups'), 'and not of the replica, as long as the master answers';
    my $before = $edge->metric('hedges_won');
    $master->pause;
    for my $n (0 .. 2) {
        my ($status, $ms) = $edge->timed($some[$n]);
        is $status, 'HIT', 'the replica answers';
        cmp_ok $ms, '>=', $hedge - 2, sprintf 'not before the time is over: %d ms', $ms;
        cmp_ok $ms, '<', $whole / 4, 'long before the lookup would be late';
    }
    is $edge->metric('hedges_won') - $before, 3, 'three hedges have won';
    $master->resume;
    wait_until { $master->calls('get') >= 13 } 5, 'the answers of the master';
    is $edge->status($_), 'HIT', 'they are discarded, and the link is in step' for @some;
    is $edge->metric('errors'), 0, 'no request was lost';
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'a miss of the replica ends nothing' => sub {
    my ($master, $empty) = (redis(), redis());
    my $relay = relay(upstream => $master->address);
    my $edge  = edge("server 127.0.0.1:${\ $relay->port }; server ${\ $empty->address } replica;");
    my ($session) = $edge->sessions(1, 'TLSv1.2', 1, $master);
    is $edge->status($session), 'HIT', 'a hit while the master is fast';
    my $delay = 5 * $hedge;
    $relay->delay($delay);
    my ($status, $ms) = $edge->timed($session);
    is $status, 'HIT', 'and while it is slow';
    cmp_ok $ms, '>=', $delay, 'when its answer is there';
    cmp_ok $empty->calls('get'), '>=', 1, 'the other one was asked';
    cmp_ok $edge->metric('hedged_lookups'), '>=', 1, 'which is counted';
    is $edge->metric('hedges_won'), 0, 'and has not won';
    $master->cmd('FLUSHALL');
    is $edge->status($session), 'MISS', 'a miss of the master is one';
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'the link to the master ends before the replica answers' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my ($one, $two) = map { relay(upstream => $_->address) } $master, $replica;
    my $edge = edge("server 127.0.0.1:${\ $one->port }; server 127.0.0.1:${\ $two->port } replica;");
    my ($session) = $edge->sessions(1, 'TLSv1.2', 2, $master, $replica);
    is $edge->status($session), 'HIT', 'a hit';
    $_->hold for $one, $two;
    my $client = $edge->client($session)->start;
    wait_until { $two->requests('GET') } 5, 'the question at the replica';
    $one->close_all;
    wait_until { $edge->said(qr/ server closed connection \(\d+ times\)/) } 5, 'the end of the link';
    $two->release;
    is answer($client), 'HIT', 'the replica has it';
    is $edge->metric('hedges_won'), 1, 'counted';

    # And where the replica does not have it either.
    $one->release;
    wait_until { $edge->status($session) eq 'HIT' } 5, 'a link to the master';
    $replica->cmd(qw(REPLICAOF NO ONE));
    $replica->cmd('FLUSHALL');
    $_->hold for $one, $two;
    my $asked = $two->requests('GET');
    $client = $edge->client($session)->start;
    wait_until { $two->requests('GET') > $asked } 5, 'the question at the replica';
    my $lost = $edge->metric('errors');
    $one->close_all;
    wait_until { $edge->metric('errors') > $lost } 5, 'the end of the link';
    $two->release;
    is answer($client), 'ERROR', 'a miss of the replica says nothing';
};

subtest 'a master that is down is not waited for' => sub {
    my ($master, $replica, $edge) = pair();
    my @some = $edge->sessions(30, 'TLSv1.2', 2, $master, $replica);
    $master->kill;
    is_deeply $edge->statuses(@some), { HIT => 30 }, 'the replica answers';
    is $edge->said(qr/ redis \Q${\ $master->address }\E is down: /), 1, 'while the master is down';
    my ($status, $ms) = $edge->timed($some[0]);
    cmp_ok $ms, '<', $hedge, sprintf 'at once: after %d ms', $ms;
    cmp_ok $edge->metric('hedged_lookups'), '<=', 5, 'which is no hedge';
    $replica->cmd(qw(REPLICAOF NO ONE));
    $replica->cmd('FLUSHALL');
    is $edge->status($some[0]), 'DOWN', 'what it lacks is not known';
    $master->start;
    wait_until { $edge->status($some[0]) eq 'MISS' } 10, 'the master is asked again';
};

subtest 'both are silent' => sub {
    my ($master, $replica) = (redis(), redis());
    my $edge = edge("server ${\ $master->address }; server ${\ $replica->address } replica;", fetch_timeout => 4 * $hedge);
    my ($session) = $edge->sessions(1, 'TLSv1.2', 1, $master);
    $_->pause for $master, $replica;
    my ($status, $ms) = $edge->timed($session);
    is $status, 'TIMEOUT', 'the handshake goes on without';
    cmp_ok $ms, '>=', 4 * $hedge - 2, 'after fetch_timeout';
    cmp_ok $ms, '<', 8 * $hedge + 500 * patience(), 'and no later';
    $_->resume for $master, $replica;
};

subtest 'a take is made once' => sub {
    my ($master, $replica, $edge, $relay) = pair(1, fetch => 'single_use');
    my @tickets = $edge->sessions(5, 'TLSv1.3', 2, $master, $replica);
    my ($plain) = $edge->sessions(1, 'TLSv1.2', 2, $master, $replica);
    $relay->delay(3 * $hedge);
    $_->cmd(qw(CONFIG RESETSTAT)) for $master, $replica;
    my $before = $edge->metric('hedged_lookups');
    is $edge->status($_), 'HIT', 'resumed' for @tickets;
    is $edge->metric('hedged_lookups'), $before, 'no take was made twice';
    is $replica->calls('get'), 0, 'nothing was read at the replica';
    # It gets the master's by replication.
    is $master->calls('getdel'), 5, 'the master was asked once each';
    is $edge->status($plain), 'HIT', 'a lookup of TLS 1.2';
    is $edge->metric('hedged_lookups'), $before + 1, 'was';
    is $edge->status($_), 'MISS', 'a ticket is good for one handshake' for @tickets;
};

subtest 'the epoch is read where it was set' => sub {
    my ($master, $replica, $edge, $relay) = pair(1, http => 'ssl_session_epoch epoch;');
    my @some = $edge->sessions(4, 'TLSv1.2', 2, $master, $replica);
    $replica->cmd(qw(CONFIG RESETSTAT));
    $relay->delay(3 * $hedge);
    my $epochs = $relay->requests('GET');
    # Each waits for both answers; the first asks for the epoch.
    wait_until {
        is $edge->status($_), 'HIT', 'resumed' for @some;
        grep { $_->[1] eq 'tls:epoch' } ($relay->requests('GET'))[ $epochs .. $relay->requests('GET') - 1 ];
    } 10, 'the question for the epoch';
    is $replica->calls('get'), $edge->metric('hedged_lookups'), 'the replica was asked for sessions';
    my @of_epoch = grep { $_->[1] eq 'tls:epoch' } $relay->requests('GET');
    cmp_ok $replica->calls('get'), '<=', $relay->requests('GET') - @of_epoch, 'and never for the epoch';
};

subtest 'no more than a share of the lookups is made twice' => sub {
    my ($master, $replica, $edge, $relay) = pair(1);
    my @some    = $edge->sessions(100, 'TLSv1.2', 2, $master, $replica);
    my $before  = $edge->metric('hedged_lookups');
    $relay->hold;
    my @clients = map { $edge->client($_)->start } @some;
    wait_until { $relay->requests('GET') >= 100 } 10, 'all of them at the master';
    wait_until { $edge->metric('hedged_lookups') - $before >= 10 } 5, 'some at the replica';
    # Those are resumed at once, the others when the master goes on.
    my $at = time;
    wait_until { $edge->metric('hedges_won') - $before >= 10 } 5, 'and answered there';
    $relay->release;
    my %count;
    $count{ answer($_) }++ for @clients;
    is_deeply \%count, { HIT => 100 }, 'all are resumed';
    my $twice = $edge->metric('hedged_lookups') - $before;
    cmp_ok $twice, '<=', 15, "ten that were saved and one in twenty: $twice of 100";
};

subtest 'replicas of a cluster' => sub {
    my $cluster = redis_cluster(timeout => 30_000 * patience());
    my ($master) = $cluster->masters;
    my @replicas = $cluster->replicas($master);
    my $edge = edge("server ${\ $master->address }; cluster on;");
    # Those of one master, with its replica.
    my @some;
    wait_until { push @some, grep { $cluster->node_of_key($_->{key}) == $master } $edge->made('TLSv1.2'); @some == 4 } 20, 'sessions';
    wait_until { my %has = map { $_ => 1 } $replicas[0]->keys; !grep { !$has{ $_->{key} } } @some } 5, 'copies';
    is_deeply $edge->statuses(@some), { HIT => 4 }, 'hits';
    my $before = $edge->metric('hedges_won');
    $master->pause;
    my ($status, $ms) = $edge->timed($some[0]);
    is $status, 'HIT', 'while the master is stopped its replica answers';
    cmp_ok $ms, '<', $whole / 4, sprintf 'after %d ms', $ms;
    is $edge->metric('hedges_won') - $before, 1, 'a hedge';
    cmp_ok $edge->metric('hedges_won', $replicas[0]->address), '>=', 1, 'of that replica';
    $master->resume;
    is_deeply $edge->statuses(@some), { HIT => 4 }, 'and then the master';
    is_deeply [ $edge->errors(warn => 1, except => qr/SSL sessions not stored in/) ], [], 'nothing in the log';
};

subtest 'replicas that Sentinels name' => sub {
    my $fleet = redis_sentinel(down_after => 60_000);
    my ($master, $replica, $sentinel) = ($fleet->master, $fleet->replicas, $fleet->sentinels);
    my $edge = edge("server ${\ $sentinel->address }; sentinel fleet;");
    my @some = $edge->sessions(3, 'TLSv1.2', 2, $master, $replica);
    is $edge->status($some[0]), 'HIT', 'a hit';
    $master->pause;
    my ($status, $ms) = $edge->timed($some[0]);
    is $status, 'HIT', 'while the master is stopped its replica answers';
    cmp_ok $ms, '<', $whole / 4, sprintf 'after %d ms', $ms;
    cmp_ok $edge->metric('hedges_won', $replica->address), '>=', 1, 'a hedge';
    $master->resume;
    is_deeply $edge->statuses(@some), { HIT => 3 }, 'and then the master';
};

subtest 'off' => sub {
    for my $line ('', 'hedge off;') {
        my ($status) = nginx(start => 0, conf => "ssl_session_backend store { server 127.0.0.1; $line }")->conf_test;
        is $status, 0, "\"$line\" is off";
    }
};

done_testing;
