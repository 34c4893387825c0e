package SSLSession::Wire;

# A network between two places that loses, delays and forgets what it is told to, in a process of
# its own. The test itself moves to the near place, and so does all that it starts from then on; what
# is started in far() is at the other one. Nothing of the machine's network can be reached from either.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Wire::Loop qw(near_address far_address new_network enter_network lo_up);

use Carp qw(croak);
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM);

# Why there can be none; undef if there can.
sub unavailable {
    return 'needs root' if $> != 0;
    return 'needs /dev/net/tun' if !-c '/dev/net/tun';
    # In a child: to try is to move.
    my $pid = fork() // croak "fork: $!";
    if (!$pid) {
        require POSIX;
        POSIX::_exit(eval { new_network(); open my $tun, '+<', '/dev/net/tun' or die; 1 } ? 0 : 1);
    }
    waitpid $pid, 0;
    return $? ? 'needs network namespaces' : undef;
}

sub new {
    my ($class) = @_;
    my $self = bless {}, $class;
    new_network();
    lo_up();
    open $self->{near}, '<', '/proc/self/ns/net' or croak "ns/net: $!";
    socketpair($self->{control}, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or croak "socketpair: $!";
    my $process = SSLSession::Process->spawn(name => 'wire', keep => [$theirs], code => sub {
        SSLSession::Wire::Loop->run($theirs, $theirs);
    });
    close $theirs;
    $self->_answer eq 'ready' or croak 'the wire does not begin';
    open $self->{far}, '<', '/proc/' . $process->pid . '/ns/net' or croak "ns/net: $!";
    return $self;
}

# The addresses of the two places, as seen from the other one.
sub near_host { near_address }
sub far_host  { far_address }

# Does something in the far place: what it starts, binds and connects stays there.
sub far {
    my ($self, $do) = @_;
    enter_network($self->{far});
    my @result = eval { $do->() };
    my $err = $@;
    enter_network($self->{near});
    die $err if $err;
    return wantarray ? @result : $result[-1];
}

# Orders. They hold for what is sent after they have returned, both ways.
sub loss  { my ($self, $percent) = @_; $self->_ask(loss => $percent) }
sub delay { my ($self, $ms) = @_; $self->_ask(delay => $ms) }
# All packets vanish, until hole(0).
sub hole  { my ($self, $on) = @_; $self->_ask(hole => $on // 1) }
# Of the connections that there are: all packets vanish; are answered with RST; or both ends get one now.
sub forget { $_[0]->_ask('forget') }
sub refuse { $_[0]->_ask('refuse') }
sub reset  { $_[0]->_ask('reset') }

# What has come since the last time: { packets, lost, data: packets with data, lost_data, links: new
# connections }.
sub stats { return { $_[0]->_ask('stats') =~ /(\w+)=(\d+)/g } }

sub _ask {
    my ($self, @order) = @_;
    syswrite $self->{control}, "@order\n";
    my $answer = $self->_answer;
    croak "the wire: $answer" if $answer =~ /^no order/;
    return $answer;
}

sub _answer {
    my ($self) = @_;
    my $line = '';
    while ($line !~ s/\n\z//) {
        sysread $self->{control}, $line, 4096, length $line or croak 'the wire is gone';
    }
    return $line;
}

1;
