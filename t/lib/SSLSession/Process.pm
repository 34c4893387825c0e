package SSLSession::Process;

# A program or a forked piece of Perl that a test starts, and surely stops. Signals go only to
# processes started here and to their descendants, which stay in the process group of the first.

use strict;
use warnings;

use SSLSession::Util qw(freeze slurp wait_until);

use Carp qw(croak);
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(sleep time);

my $owner = $$;
my @started;

# spawn(name => ..., cmd => [...]) or spawn(name => ..., code => sub {...});
# out => FILE takes standard output and standard error, in => FILE gives standard input,
# keep => [handles] are all that stays open for code.
sub spawn {
    my ($class, %arg) = @_;
    my $pid = fork() // croak "fork: $!";
    if ($pid == 0) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        open STDIN, '<', $arg{in} // '/dev/null';
        if (defined $arg{out}) {
            open STDOUT, '>>', $arg{out};
            open STDERR, '>&', \*STDOUT;
        }
        # Never exit(): the END blocks are the test's.
        if ($arg{code}) {
            # A socket of the test's that stayed open here would never send its FIN.
            my %keep = map { $_ => 1 } 0 .. 2, map { fileno $_ } @{ $arg{keep} // [] };
            # Not closed but given to /dev/null, as Perl counts the users of each number.
            my $null = POSIX::open('/dev/null');
            POSIX::dup2($null, $_)
                for grep { !$keep{$_} && -e "/proc/self/fd/$_" } map { m{(\d+)$} } glob '/proc/self/fd/*';
            eval { $arg{code}->(); 1 } or print STDERR "$arg{name}: $@";
            POSIX::_exit($@ ? 1 : 0);
        }
        $SIG{PIPE} = 'DEFAULT';
        { no warnings 'exec'; exec { $arg{cmd}[0] } @{ $arg{cmd} }; }
        print STDERR "exec $arg{cmd}[0]: $!\n";
        POSIX::_exit(127);
    }
    return $class->_own($pid, $arg{name} // $arg{cmd}[0], 1);
}

# A daemon that a program of ours has just started, leader of a process group of its own.
sub adopt {
    my ($class, %arg) = @_;
    return $class->_own($arg{pid}, $arg{name}, 0);
}

sub _own {
    my ($class, $pid, $name, $child) = @_;
    # Both sides do this: whoever comes first, the group is there for the signals that follow.
    setpgrp($pid, $pid) if $child;
    my $self = bless { pid => $pid, group => $pid, name => $name, child => $child }, $class;
    push @started, $self;
    return $self;
}

sub pid { $_[0]{pid} }

# Undef while it runs, else what waitpid() said (0 for a daemon, which is nobody's child).
sub status {
    my ($self) = @_;
    return $self->{status} if defined $self->{status};
    if ($self->{child}) {
        my $got = waitpid $self->{pid}, WNOHANG;
        $self->{status} = $? if $got == $self->{pid};
        $self->{status} = 0 if $got == -1;
    } elsif (!_running($self->{pid})) {
        $self->{status} = 0;
    }
    return $self->{status};
}

sub alive { !defined $_[0]->status }

sub signal {
    my ($self, $signal) = @_;
    return $self->alive && kill $signal, $self->{pid};
}

sub pause { freeze($_[0]{pid}) if $_[0]->alive }
sub cont  { $_[0]->signal('CONT') }

# Waits for the exit and returns what waitpid() said; dies when it does not come in time.
sub wait_exit {
    my ($self, $seconds) = @_;
    wait_until { !$self->alive } $seconds // 10, "exit of $self->{name}";
    # The group's number may be another's before this test ends, if nobody is left in it.
    $self->{gone} = 1 if !$self->group;
    return $self->status;
}

# The pids in its process group that are alive.
sub group {
    my ($self) = @_;
    my @found;
    for my $stat (glob '/proc/[0-9]*/stat') {
        my ($pid, $state, $group) = slurp($stat) =~ /^(\d+) \(.*\) (\S) \S+ (\d+)/s or next;
        push @found, $pid if $group == $self->{group} && $state !~ /[ZX]/;
    }
    @found = sort { $a <=> $b } @found;
    return @found;
}

# Ends it and everything it started: asks, waits, then insists. Returns the status.
sub stop {
    my ($self, $signal, $seconds) = @_;
    $self->cont;
    if ($self->signal($signal // 'TERM')) {
        eval { $self->wait_exit($seconds // 5) };
    }
    return $self->kill_all;
}

# SIGKILL to it and everything it started; returns when they are gone.
sub kill_all {
    my ($self) = @_;
    return $self->status if $self->{gone};
    wait_until {
        my @pids = $self->group;
        kill 'KILL', @pids if @pids;
        $self->status;
        !@pids && !$self->alive;
    } 5, "end of $self->{name}";
    # From here on the group's number may be another's.
    $self->{gone} = 1;
    return $self->status;
}

sub _running {
    my ($pid) = @_;
    my ($state) = slurp("/proc/$pid/stat") =~ /^\d+ \(.*\) (\S)/s;
    return defined $state && $state !~ /[ZX]/;
}

END {
    if ($$ == $owner) {
        local ($?, $!, $@);
        for my $process (reverse @started) {
            next if $process->{gone};
            eval { $process->stop('TERM', 2) };
            print STDERR "# $@" if $@;
        }
    }
}

1;
