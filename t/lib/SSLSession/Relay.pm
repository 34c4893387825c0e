package SSLSession::Relay;

# A TCP relay in a process of its own, and a server with canned replies: both do to the bytes
# what the test tells them to, while they run.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Relay::Loop;
use SSLSession::Util qw(free_port new_dir);

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use List::Util qw(min);
use Socket qw(AF_UNIX IPPROTO_TCP PF_UNSPEC SOCK_STREAM SOL_SOCKET SO_LINGER TCP_NODELAY);
use Storable qw(freeze thaw);
use Time::HiRes qw(sleep time);

# upstream => 'host:port' or '/path', or canned => [...] for a server that answers by itself.
# port => ..., unix => 1 (listens on a socket, see ->unix, in place of a port).
# Any of the orders below as an argument, too: delay => 100, chunk => 1, ...
sub new {
    my ($class, %arg) = @_;
    my $self = bless {}, $class;
    my $listener;
    if ($arg{unix}) {
        $self->{unix} = new_dir('relay') . '/sock';
        $listener = IO::Socket::UNIX->new(Local => $self->{unix}, Listen => 511);
    } else {
        $self->{port} = $arg{port} // free_port();
        $listener = IO::Socket::INET->new(
            LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 511, ReuseAddr => 1);
    }
    $listener or croak "relay: $! $@";
    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or croak "socketpair: $!";
    $self->{process} = SSLSession::Process->spawn(name => 'relay', keep => [ $listener, $theirs ], code => sub {
        SSLSession::Relay::Loop->new($listener, $theirs, \%arg)->run;
    });
    close $theirs;
    $self->{control} = $ours;
    for my $order (qw(hold delay chunk drop split_records refuse drip stall mute)) {
        $self->$order(ref $arg{$order} ? @{ $arg{$order} } : $arg{$order}) if defined $arg{$order};
    }
    return $self;
}

sub port    { $_[0]{port} }
sub unix    { $_[0]{unix} }
sub process { $_[0]{process} }
sub url     { $_[0]{unix} ? "redis://unix:$_[0]{unix}" : "redis://127.0.0.1:$_[0]{port}" }

# Orders. They hold for the bytes that come after they have returned, on old and new connections.
# $way is 'reply' (the default: from the upstream) or 'request'.
sub hold    { my ($self, $way) = @_; $self->_ask(hold => _way($way), 1) }       # until release()
sub release { my ($self, $way) = @_; $self->_ask(hold => _way($way), 0) }
sub delay   { my ($self, $ms, $way) = @_; $self->_ask(delay => _way($way), $ms / 1000) }
sub drop    { my ($self, $on, $way) = @_; $self->_ask(drop => _way($way), $on // 1) }
sub chunk   { my ($self, $n, $way) = @_; $self->_ask(chunk => _way($way), $n) } # segments of n bytes
sub cut     { my ($self, $n, $way) = @_; $self->_ask(cut => _way($way), $n) }   # n bytes more, then closes
sub refuse  { my ($self, $on) = @_; $self->_ask(refuse => $on // 1) }           # closes what comes
# The same with RST; and n bytes on each connection, of now and later, then silence, until
# stall(undef): not for those it has befallen.
sub reset_after { my ($self, $n, $way) = @_; $self->_ask(cut => _way($way), $n, 1) }
sub stall { my ($self, $n, $way) = @_; $self->_ask(stall => _way($way), $n) }
sub drip  { my ($self, $on, $way) = @_; $self->chunk($on // 1 ? 1 : 0, $way) }  # byte by byte
sub mute  { my ($self, $on) = @_; $self->drop($on, $_) for qw(request reply) }  # accepts, says nothing
sub upstream { my ($self, $to) = @_; $self->_ask(upstream => $to) }             # for new connections
sub deaf  { my ($self, $on) = @_; $self->_ask(deaf => $on // 1) }               # does not even accept
sub close_all { $_[0]->_ask('close_all') }
sub reset_all { $_[0]->_ask('reset_all') }                                      # with RST
# What clients send in TLS records of at most n bytes, as long as it is in the clear.
sub split_records { my ($self, $n) = @_; $self->_ask(split_records => $n) }
# Sends these bytes, never asked for, on all connections.
sub push_reply { my ($self, $bytes) = @_; $self->_ask(push_reply => $bytes) }

# What befalls the n-th reply (of RESP or memcached; of TLS a record) from now, 1 being the next;
# give the order while no reply is under way. swap() is for the n-th and the one after it.
sub garble_value { my ($self, $n) = @_; $self->_ask(edit => 'garble_value', $n // 1) }
sub duplicate    { my ($self, $n) = @_; $self->_ask(edit => 'duplicate', $n // 1) }
sub swap         { my ($self, $n) = @_; $self->_ask(edit => 'swap', $n // 1) }
sub lose         { my ($self, $n) = @_; $self->_ask(edit => 'lose', $n // 1) }
# All bits of it; of all replies without a number, until garble(0).
sub garble { my ($self, $n) = @_; $self->_ask($n ? (edit => 'garble', $n) : (garble => !defined $n)) }

# The RESP commands and memcached requests that have come so far, as [name, argument, ...] each (a
# value last); of the name only.
sub requests {
    my ($self, $name) = @_;
    return grep { !defined $name || uc $_->[0] eq uc $name } @{ $self->_ask('requests') };
}

# { accepted, open: connections; reads: how often request bytes came; request, reply: bytes held }
sub stats { $_[0]->_ask('stats') }

# No longer there: connections are refused by the system.
sub stop { $_[0]{process}->kill_all }

sub _way { return { 1 => 'reply', reply => 'reply', request => 'request' }->{ $_[0] // 1 } // croak "no way: $_[0]" }

sub _ask {
    my ($self, @order) = @_;
    _put($self->{control}, \@order);
    my $answer = _get($self->{control}) or croak 'the relay is gone';
    return $answer->[0];
}

sub _put {
    my ($fh, $message) = @_;
    my $bytes = freeze($message);
    $bytes = pack('N', length $bytes) . $bytes;
    while (length $bytes) {
        my $n = syswrite $fh, $bytes or return;
        substr $bytes, 0, $n, '';
    }
}

sub _get {
    my ($fh) = @_;
    my $read = sub {
        my ($want) = @_;
        my $bytes = '';
        while (length $bytes < $want) {
            sysread $fh, $bytes, $want - length $bytes, length $bytes or return;
        }
        return $bytes;
    };
    my $length = $read->(4) // return;
    return thaw($read->(unpack 'N', $length) // return);
}

1;
