# Early data cannot be replayed where the tickets are in a Redis Cluster: not while slots move, and
# not by way of a node that sends the servers on.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(record_flight);
use SSLSession::EarlyFleet;
use List::Util qw(sum0);
use Test::More;

my $times   = int(1000 / patience());
my $fewer   = int(200 / patience());
my $cluster = redis_cluster(masters => 3, replicas => 0);
my @nodes   = $cluster->nodes;
my $fleet   = SSLSession::EarlyFleet->new(store => $cluster, http => <<"CONF");
    ssl_session_backend store {
        server          127.0.0.1:${\ $nodes[0]->port };
        cluster         on;
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout   40s;
        store_timeout   60s;
    }
    ssl_session_fetch store single_use;
    ssl_session_store store;
CONF

sub takes { return sum0(map { $_->calls('getdel') } @nodes) }

# So many replays of a client's flight; $between is done in the middle, with the slot of its ticket.
my $number = 0;

sub done_once {
    my ($n, $between) = @_;
    my $path = '/pay-' . ++$number;
    my ($session, $other) = $fleet->tickets;
    my ($flight, $witness) = map { record_flight(session => $_->[0], path => $path . $_->[1]) } [ $session, '' ], [ $other, '-witness' ];
    my $before = takes();
    my $left = $between ? $between->($cluster->slot(cache_key($session))) : 0;
    my $came = $fleet->replay($flight, $n);
    $left->() if $left;
    my $later = $left ? $fleet->replay($flight, $n) : { answered => 0, resumed => 0 };
    my $all = $left ? 2 * $n : $n;
    is $came->{answered} + $later->{answered}, $all, "$all replays, a ServerHello for each";
    is $came->{resumed}, 1, 'one is resumed';
    is $later->{resumed}, 0, 'and none later';
    cmp_ok takes() - $before, '>=', $all, 'the cluster was asked for each';
    is_deeply [ $fleet->executed($path) ], [1], 'done once, in early data';
    is $fleet->replay($witness, 1)->{answered}, 1, 'another one of the same age';
    is_deeply [ $fleet->executed("$path-witness") ], [1], 'is early enough still';
}

# How often nodes have sent somebody on.
sub sent_on { my ($word) = @_; return sum0(map { ($_->info("errorstat_$word") // '') =~ /count=(\d+)/ } @nodes) }

sub other_than { my ($slot) = @_; my $node = $cluster->node_of_slot($slot); return (grep { $_ != $node } @nodes)[0] }

subtest "one client's early data, $times times at two servers" => sub { done_once($times) };

subtest 'the ticket is on its way to another node (ASK), and then there (MOVED)' => sub {
    done_once($fewer, sub {
        my ($slot) = @_;
        my $to = other_than($slot);
        $cluster->open_slot($to, $slot)->migrate($to, $slot);
        return sub { $cluster->close_slot($to, $slot) };
    });
    cmp_ok sent_on('ASK'), '>=', $fewer, 'all were sent on';
};

subtest 'the ticket has moved, and the servers do not know it (MOVED)' => sub {
    my $moved = sent_on('MOVED');
    done_once($fewer, sub {
        my ($slot) = @_;
        $cluster->move_slots(other_than($slot), $slot);
        return 0;
    });
    cmp_ok sent_on('MOVED'), '>', $moved, 'some were sent on';
};

is_deeply [ map { $_->errors(warn => 1) } $fleet->edges ], [], 'nothing in the logs';

done_testing;
