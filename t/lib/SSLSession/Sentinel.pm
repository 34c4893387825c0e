package SSLSession::Sentinel;

# A Redis master with a replica, and sentinels that watch them.

use strict;
use warnings;

use SSLSession::Redis;
use SSLSession::Util qw(wait_until);

use Carp qw(croak);

# name => 'fleet', sentinels => 1 (or 3), replicas => 1, down_after => 500 and
# failover_timeout => 2000 (ms); password, users, tls, conf, args: as for a single Redis, for the
# master and its replicas; sentinel => { arguments of a Redis for the sentinels: password, ... }.
#
# It returns when the sentinels know the replicas and each other.
sub new {
    my ($class, %arg) = @_;
    my $own  = delete $arg{sentinel} // {};
    my %mine = map { $_ => delete $arg{$_} } qw(name sentinels replicas down_after failover_timeout);
    my $name = $mine{name} // 'fleet';
    push @{ $arg{conf} }, 'repl-ping-replica-period 1', $arg{tls} ? 'tls-replication yes' : ();
    my $master   = SSLSession::Redis->new(%arg);
    my @replicas = map { SSLSession::Redis->new(%arg, replicaof => $master) } 1 .. $mine{replicas} // 1;
    $_->wait_replica for @replicas;

    my $count = $mine{sentinels} // 1;
    my @conf  = (
        "sentinel monitor $name 127.0.0.1 " . $master->replication_port . ' ' . (1 + int($count / 2)),
        "sentinel down-after-milliseconds $name " . ($mine{down_after} // 500),
        "sentinel failover-timeout $name " . ($mine{failover_timeout} // 2000),
        defined $arg{password} ? "sentinel auth-pass $name $arg{password}" : (),
        $arg{tls} ? 'tls-replication yes' : (), @{ $own->{conf} // [] },
    );
    my @sentinels = map { SSLSession::Redis->new(tls => $arg{tls}, %$own, sentinel => 1, conf => \@conf) } 1 .. $count;
    my $self = bless {
        name => $name, nodes => [ $master, @replicas ], sentinels => \@sentinels,
    }, $class;
    # What these are for is not how long sentinels take to find each other. Later they wait four
    # of the second period before they undo another's work, and must have time to learn of it.
    $_->cmd(qw(SENTINEL DEBUG INFO-PERIOD 200 PING-PERIOD 100 ASK-PERIOD 100 PUBLISH-PERIOD 100)) for @sentinels;
    $self->wait_ok(1 + @replicas);
    $_->cmd(qw(SENTINEL DEBUG PUBLISH-PERIOD 500)) for @sentinels;
    return $self;
}

sub name      { $_[0]{name} }
sub sentinels { @{ $_[0]{sentinels} } }
sub nodes     { @{ $_[0]{nodes} } }

# The master, as the sentinels have it; undef while they do not agree.
sub master {
    my ($self) = @_;
    my %port = map { join(' ', @{ $_->cmd(qw(SENTINEL GET-MASTER-ADDR-BY-NAME), $self->{name}) // [] }) => 1 }
        grep { $_->process->alive } $self->sentinels;
    return undef if keys %port != 1;
    my ($port) = (keys %port)[0] =~ / (\d+)$/ or return undef;
    return (grep { $_->replication_port == $port } $self->nodes)[0];
}

sub master_port { my ($self) = @_; my $master = $self->master; return $master && $master->replication_port }
sub replicas    { my ($self) = @_; my $master = $self->master // 0; return grep { $_ != $master } $self->nodes }

# Kills the master without waiting, and returns it, for wait_failover($dead).
sub kill_master {
    my ($self) = @_;
    my $master = $self->master or croak 'no master';
    $master->kill;
    return $master;
}

# The new master: another one than $old, which all sentinels name, and which is one.
sub wait_failover {
    my ($self, $old) = @_;
    return wait_until {
        my $new = $self->master;
        $new && $new != $old && $new->process->alive && $new->cmd('ROLE')->[0] eq 'master' && $new;
    } 60, 'another master';
}

# The orderly one: master and replica change places. Returns the new master.
sub failover {
    my ($self) = @_;
    my $old = $self->master or croak 'no master';
    ($self->sentinels)[0]->cmd(qw(SENTINEL FAILOVER), $self->{name});
    return $self->wait_failover($old);
}

# Waits until all sentinels see each other and $nodes healthy servers.
sub wait_ok {
    my ($self, $nodes) = @_;
    $nodes //= grep { $_->process->alive } $self->nodes;
    my @sentinels = grep { $_->process->alive } $self->sentinels;
    for my $sentinel (@sentinels) {
        wait_until {
            my %master = @{ $sentinel->cmd(qw(SENTINEL MASTER), $self->{name}) };
            my @up = grep { my %replica = @$_; $replica{flags} eq 'slave' && $replica{'master-link-status'} eq 'ok' }
                @{ $sentinel->cmd(qw(SENTINEL REPLICAS), $self->{name}) };
            $master{flags} eq 'master' && @up == $nodes - 1 && $master{'num-other-sentinels'} == @sentinels - 1;
        } 30, 'the sentinels';
    }
    return $self;
}

1;
