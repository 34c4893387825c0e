package SSLSession::Redis;

# A real redis-server on a TCP port and a unix socket of the test's own, and a small client.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(free_port new_dir wait_until patience slurp);

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;

# args => ['--requirepass', ...] go to redis-server; password => what cmd() authenticates with;
# start => 0 leaves it stopped.
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('redis');
    my $self = bless {
        port => $arg{port} // free_port(), unix => "$dir/sock", log => "$dir/log", dir => $dir,
        args => $arg{args} // [], password => $arg{password},
    }, $class;
    $self->start unless defined $arg{start} && !$arg{start};
    return $self;
}

sub port    { $_[0]{port} }
sub unix    { $_[0]{unix} }
sub url     { "redis://127.0.0.1:$_[0]{port}" }
sub process { $_[0]{process} }

# Starts it, or starts it again on the same addresses, empty.
sub start {
    my ($self) = @_;
    $self->{process} = SSLSession::Process->spawn(
        name => 'redis-server',
        out  => $self->{log},
        cmd  => [ 'redis-server', '--port', $self->{port}, qw(--bind 127.0.0.1 --daemonize no),
                  '--unixsocket', $self->{unix}, '--save', '', qw(--appendonly no),
                  '--dir', $self->{dir}, @{ $self->{args} } ],
    );
    wait_until {
        croak 'redis-server: ' . slurp($self->{log}) unless $self->{process}->alive;
        # Alive is what answers: a NOAUTH is an answer too.
        eval { $self->cmd('PING'); 1 } || $@ =~ /NOAUTH/;
    } 10, 'redis-server';
    return $self;
}

# Ends in order, from SIGKILL, hangs (accepts, never answers), goes on.
sub stop   { my ($self) = @_; $self->_forget; $self->{process}->cont; $self->{process}->stop('TERM') }
sub kill   { my ($self) = @_; $self->_forget; $self->{process}->kill_all }
sub pause  { $_[0]{process}->pause }
sub resume { $_[0]{process}->cont }

# cmd('GET', 'key'): the reply: a string or number, undef for nil, a reference to a list for an
# array; an error reply dies with its text.
sub cmd {
    my ($self, @args) = @_;
    my $fresh = !$self->{sock};
    my $reply = eval { $self->_cmd(@args) };
    if (my $err = $@) {
        $self->_forget unless $err =~ /^redis: /;
        # The connection may be one to the server that was there before.
        return $self->_cmd(@args) if !$fresh && $err !~ /^redis: /;
        croak $err;
    }
    return $reply;
}

# All keys, sorted.
sub keys {
    my ($self, $pattern) = @_;
    my @keys = sort @{ $self->cmd('KEYS', $pattern // '*') };
    return @keys;
}

sub _forget { delete $_[0]{sock} }

sub _cmd {
    my ($self, @args) = @_;
    if (!$self->{sock}) {
        $self->{sock} = IO::Socket::INET->new(
            PeerAddr => '127.0.0.1', PeerPort => $self->{port}, Proto => 'tcp', Timeout => 5)
            or die "connect to redis: $!\n";
        $self->{bytes} = '';
        $self->_cmd('AUTH', $self->{password}) if defined $self->{password};
    }
    print { $self->{sock} } '*' . @args . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @args;
    $self->{sock}->flush;
    my $reply = $self->_reply;
    die $$reply . "\n" if ref $reply eq 'SCALAR';
    return $reply;
}

# The next bytes up to a pattern's match, or of that number.
sub _take {
    my ($self, $what) = @_;
    my $deadline = time + 10 * patience();
    while (1) {
        my $bytes = \$self->{bytes};
        if (ref $what) {
            return $1 if $$bytes =~ s/^$what//;
        } elsif (length $$bytes >= $what) {
            return substr $$bytes, 0, $what, '';
        }
        # A paused server must not hang the test.
        IO::Select->new($self->{sock})->can_read($deadline - time) or die "redis did not answer\n";
        sysread $self->{sock}, $$bytes, 65536, length $$bytes or die "redis closed the connection\n";
    }
}

sub _reply {
    my ($self) = @_;
    my ($type, $rest) = unpack 'a a*', $self->_take(qr/(.*?)\r\n/s);
    return $rest if $type eq '+' || $type eq ':';
    return \"redis: $rest" if $type eq '-';
    die "not a reply: $type$rest\n" if $type ne '$' && $type ne '*';
    return undef if $rest < 0;
    return [ map { $self->_reply } 1 .. $rest ] if $type eq '*';
    my $bytes = $self->_take($rest + 2);
    return substr $bytes, 0, $rest;
}

1;
