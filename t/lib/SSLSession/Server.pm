package SSLSession::Server;

# What the real stores have in common: a life that a test can end, stop and begin again on the
# same addresses, and one connection over which the test itself talks to them.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(wait_until patience slurp);

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;

sub port    { $_[0]{port} }
sub unix    { $_[0]{unix} }
sub process { $_[0]{process} }
sub log     { slurp($_[0]{log}) }

# Ends in order, from SIGKILL, hangs (accepts, never answers), goes on.
sub stop   { my ($self) = @_; $self->_forget; $self->{process}->cont; $self->{process}->stop('TERM') }
sub kill   { my ($self) = @_; $self->_forget; $self->{process}->kill_all }
sub pause  { $_[0]{process}->pause }
sub resume { $_[0]{process}->cont }

# Ended at once, if it still runs, and there again; what is given changes what new() was told.
sub restart { my ($self, %change) = @_; $self->kill; return $self->start(%change) }

# Runs a program and waits until $ready says yes.
sub _run {
    my ($self, $cmd, $ready) = @_;
    $self->_forget;
    $self->{process} = SSLSession::Process->spawn(name => $cmd->[0], out => $self->{log}, cmd => $cmd);
    wait_until {
        croak "$cmd->[0]: " . $self->log unless $self->{process}->alive;
        $ready->();
    } 10, $cmd->[0];
    return $self;
}

# Does it with a connection that may be one to the server that was there before: then again.
# What dies with a text that begins with $answer is an answer, and final.
sub _with_connection {
    my ($self, $answer, $do) = @_;
    my $fresh = !$self->{sock};
    my @result = eval { $self->_connect; $do->() };
    if (my $err = $@) {
        croak $err if $err =~ /^$answer/;
        $self->_forget;
        croak $err if $fresh;
        $self->_connect;
        @result = $do->();
    }
    return wantarray ? @result : $result[-1];
}

sub _connect {
    my ($self) = @_;
    return if $self->{sock};
    $self->{sock} = $self->{port} && !$self->{by_unix}
        ? IO::Socket::INET->new(PeerAddr => $self->host, PeerPort => $self->{port}, Timeout => 5)
        : IO::Socket::UNIX->new(Peer => $self->{unix});
    $self->{sock} or die "connect: $!\n";
    $self->{bytes} = '';
}

sub _forget { delete @{ $_[0] }{qw(sock known)} }

sub _send {
    my ($self, @bytes) = @_;
    print { $self->{sock} } @bytes;
    $self->{sock}->flush;
}

# The next bytes up to a pattern's match ($1 of it), or of that number.
sub _take {
    my ($self, $what) = @_;
    my $deadline = time + 10 * patience();
    while (1) {
        my $bytes = \$self->{bytes};
        if (ref $what) {
            return $1 if $$bytes =~ s/\A$what//;
        } elsif (length $$bytes >= $what) {
            return substr $$bytes, 0, $what, '';
        }
        # A paused server must not hang the test.
        IO::Select->new($self->{sock})->can_read($deadline - time) or die "no answer\n";
        sysread $self->{sock}, $$bytes, 65536, length $$bytes or die "the connection was closed\n";
    }
}

1;
