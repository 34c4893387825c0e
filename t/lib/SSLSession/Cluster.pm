package SSLSession::Cluster;

# A real Redis Cluster: every node a redis-server on a port of 127.0.0.1.

use strict;
use warnings;

use SSLSession::Redis;
use SSLSession::Util qw(free_port wait_until);

use Carp qw(croak);

use constant SLOTS => 16384;

# masters => 3, replicas => 1 (of each), timeout => cluster-node-timeout (1000 ms);
# password, users, tls, conf, args: as for a single Redis. With tls the nodes speak TLS among
# themselves, too, and have plain ports beside unless told port => 0.
#
# It returns when every node knows all others and every replica follows its master. The slots are
# in equal parts with the first nodes. A node's death is noticed by the others after two to three
# times the timeout; with less than 500 ms a slow machine sees deaths that are none.
sub new {
    my ($class, %arg) = @_;
    my $masters  = delete $arg{masters}  // 3;
    my $replicas = delete $arg{replicas} // 1;
    my $timeout  = delete $arg{timeout}  // 1000;
    my @conf = (
        'cluster-enabled yes', 'cluster-config-file nodes.conf', "cluster-node-timeout $timeout",
        'cluster-replica-validity-factor 0', 'cluster-allow-replica-migration no',
        'repl-ping-replica-period 1',
        $arg{tls} ? ('tls-cluster yes', 'tls-replication yes') : (), @{ $arg{conf} // [] },
    );
    my @nodes = map {
        my $bus  = free_port();
        my $node = SSLSession::Redis->new(%arg, conf => [ "cluster-port $bus", @conf ]);
        @$node{qw(bus id)} = ($bus, $node->cmd(qw(CLUSTER MYID)));
        $node;
    } 1 .. $masters * (1 + $replicas);
    my $self = bless { nodes => \@nodes, tls => $arg{tls} }, $class;
    $self->_create($masters);
    return $self;
}

sub _create {
    my ($self, $masters) = @_;
    my @nodes = $self->nodes;
    for my $i (0 .. $#nodes) {
        $nodes[$i]->cmd(qw(CLUSTER SET-CONFIG-EPOCH), $i + 1);
        $nodes[$i]->cmd(qw(CLUSTER ADDSLOTSRANGE), _share($i, $masters)) if $i < $masters;
        # All with all: left to gossip it takes seconds.
        $nodes[$i]->cmd(qw(CLUSTER MEET 127.0.0.1), $self->port($_), $_->{bus}) for @nodes[ 0 .. $i - 1 ];
    }
    for my $node (@nodes) {
        wait_until {
            my @known = $self->_known($node);
            @known == @nodes && !grep { $_->{flags} =~ /handshake|fail|noaddr/ } @known;
        } 20, 'all nodes';
    }
    for my $i ($masters .. $#nodes) {
        $nodes[$i]->cmd(qw(CLUSTER REPLICATE), $nodes[ $i % $masters ]{id});
    }
    $self->wait_ok;
}

sub _share {
    my ($i, $masters) = @_;
    return (int(SLOTS * $i / $masters), int(SLOTS * ($i + 1) / $masters) - 1);
}

# All that were started, as Redis objects, and what they are now: as the live ones say.
sub nodes    { @{ $_[0]{nodes} } }
sub masters  { my ($self) = @_; return $self->_with_role('master') }
sub replicas { my ($self, $of) = @_; return grep { !$of || $self->master_of($_) == $of } $self->_with_role('slave') }
sub alive    { grep { $_->process->alive } $_[0]->nodes }

sub _with_role { my ($self, $role) = @_; return grep { $_->cmd('ROLE')->[0] eq $role } $self->alive }

sub master_of {
    my ($self, $replica) = @_;
    my ($own) = grep { $_->{flags} =~ /myself/ } $self->_known($replica);
    return $self->_node($own->{master});
}

# For MEET, MIGRATE and whoever else is one of them.
sub port { my ($self, $node) = @_; return $self->{tls} ? $node->tls_port : $node->port }

# A slot or, in the place of one, the key it is for.
sub slot { my ($self, $key) = @_; return ($self->alive)[0]->cmd(qw(CLUSTER KEYSLOT), $key) }

# The master of a slot, undef when there is none alive.
sub node_of_slot {
    my ($self, $slot) = @_;
    for my $node ($self->masters) {
        my ($own) = grep { $_->{flags} =~ /myself/ } $self->_known($node);
        return $node if grep { $_->[0] <= $slot && $slot <= $_->[1] } @{ $own->{slots} };
    }
    return undef;
}
sub node_of_key { my ($self, $key) = @_; return $self->node_of_slot($self->slot($key)) }

# cmd('GET', 'key') at the key's master. For other commands: ($cluster->nodes)[0]->cmd(...).
sub cmd {
    my ($self, @args) = @_;
    my $node = $self->node_of_key($args[1]) or croak "no master for $args[1]";
    return $node->cmd(@args);
}

# All keys, sorted.
sub keys { my ($self, @pattern) = @_; return sort map { $_->keys(@pattern) } $self->masters }

# Kills a master, without waiting: wait_failover($dead) does that, and returns the new master.
sub kill_master { my ($self, $node) = @_; $node->kill; return $node }

sub wait_failover {
    my ($self, $dead) = @_;
    my $new;
    wait_until {
        my ($seen) = grep { $_->{id} eq $dead->{id} } $self->_known(($self->alive)[0]);
        ($new) = grep { $_ != $dead && ($self->{was}{$_->{id}} // '') eq $dead->{id} } $self->masters;
        $new && $seen->{flags} =~ /fail(?!\?)|slave/;
    } 30, 'another master';
    $self->wait_ok;
    return $new;
}

# The orderly one: a master and its replica change places. Returns the new master.
sub failover {
    my ($self, $master) = @_;
    my ($replica) = $self->replicas($master) or croak 'no replica';
    $replica->cmd(qw(CLUSTER FAILOVER));
    wait_until { $replica->cmd('ROLE')->[0] eq 'master' } 20, 'the other master';
    $self->wait_ok;
    return $replica;
}

# Waits until all live nodes find the cluster ok and agree on it, and replicas follow.
sub wait_ok {
    my ($self) = @_;
    my @alive = $self->alive;
    wait_until {
        my %views;
        for my $node (@alive) {
            return 0 if $node->cmd(qw(CLUSTER INFO)) !~ /^cluster_state:ok/;
            return 0 if ($node->info('master_link_status') // 'up') ne 'up';
            $views{ join ' ', sort map { "$_->{id}>$_->{master}" . join ',', map { "@$_" } @{ $_->{slots} } }
                grep { $_->{flags} !~ /fail/ } $self->_known($node) }++;
        }
        CORE::keys %views == 1;
    } 30, 'the cluster';
    # Whose replica each one is, for the time when it is none any more.
    for my $node ($self->_known($alive[0])) {
        $self->{was}{ $node->{id} } = $node->{master} if $node->{master} ne '-';
    }
    return $self;
}

# Resharding: slots with all that is in them to another master; the old one says MOVED from then on.
sub move_slots {
    my ($self, $to, @slots) = @_;
    for my $slot (@slots) {
        $self->open_slot($to, $slot);
        $self->migrate($to, $slot);
        $self->close_slot($to, $slot);
    }
    return $self;
}

# The first of its three steps. Until the last one the old master says ASK for keys of the slot
# that it has not, because they never were or because migrate() took them away.
sub open_slot {
    my ($self, $to, $slot) = @_;
    my $from = $self->node_of_slot($slot);
    $to->cmd(qw(CLUSTER SETSLOT), $slot, 'IMPORTING', $from->{id});
    $from->cmd(qw(CLUSTER SETSLOT), $slot, 'MIGRATING', $to->{id});
    return $self;
}

# These keys of the slot, or all.
sub migrate {
    my ($self, $to, $slot, @keys) = @_;
    return $self->_migrate($self->node_of_slot($slot), $to, $slot, @keys);
}

sub _migrate {
    my ($self, $from, $to, $slot, @keys) = @_;
    @keys = @{ $from->cmd(qw(CLUSTER GETKEYSINSLOT), $slot, 1_000_000) } if !@keys;
    $from->cmd('MIGRATE', '127.0.0.1', $self->port($to), '', 0, 5000, qw(AUTH2 fixture), '', 'KEYS', @keys) if @keys;
    return $self;
}

# The last one. A key that was written there meanwhile goes along.
sub close_slot {
    my ($self, $to, $slot) = @_;
    my $from   = $self->node_of_slot($slot);
    my @others = grep { $_ != $to } $self->masters;
    $to->cmd(qw(CLUSTER SETSLOT), $slot, 'NODE', $to->{id});
    wait_until {
        $self->_migrate($from, $to, $slot);
        eval { $_->cmd(qw(CLUSTER SETSLOT), $slot, 'NODE', $to->{id}) for @others; 1 };
    } 10, "slot $slot to be empty";
    return $self;
}

sub _node { my ($self, $id) = @_; return (grep { $_->{id} eq $id } $self->nodes)[0] }

# CLUSTER NODES as one node sees it: { id, flags, master, slots => [[first, last], ...] } each.
sub _known {
    my ($self, $node) = @_;
    return map {
        my ($id, $at, $flags, $master, $sent, $got, $epoch, $link, @slots) = split ' ';
        +{ id => $id, flags => $flags, master => $master, slots =>
            [ map { /^(\d+)(?:-(\d+))?$/ ? [ $1, $2 // $1 ] : () } @slots ] };
    } split /\n/, $node->cmd(qw(CLUSTER NODES));
}

1;
