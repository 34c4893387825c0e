package SSLSession::Memcached;

# A real memcached on a TCP port or a unix socket of the test's own, and a small client.

use strict;
use warnings;

use parent 'SSLSession::Server';
use SSLSession::Util qw(free_port new_dir);

# port => ..., or unix => 1: a socket in place of a port; bind => '10.0.0.1' in place of 127.0.0.1
# memory => 64 (MB), item_size => '1m' (of the largest item), args => [more]
# start => 0 leaves it stopped
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('memcached');
    my $self = bless { log => "$dir/log", arg => \%arg }, $class;
    if ($arg{unix}) { $self->{unix} = "$dir/sock" }
    else            { $self->{port} = $arg{port} // free_port() }
    $self->start unless defined $arg{start} && !$arg{start};
    return $self;
}

sub host    { $_[0]{arg}{bind} // '127.0.0.1' }
sub address { $_[0]{unix} ? "unix:$_[0]{unix}" : $_[0]->host . ":$_[0]{port}" }
sub url     { 'memcached://' . $_[0]->address }

# Starts it, or starts it again on the same address, empty; with arguments of new() changed.
sub start {
    my ($self, %change) = @_;
    my $arg = $self->{arg} = { %{ $self->{arg} }, %change };
    return $self->_run([
        # Its maintainer's references to entries would now and then hide them from keys().
        qw(memcached -t 1 -o no_lru_maintainer), '-m', $arg->{memory} // 64, '-I', $arg->{item_size} // '1m',
        $< ? () : qw(-u root),
        defined $self->{unix} ? ('-s', $self->{unix}) : (qw(-U 0 -l), $self->host, '-p', $self->{port}),
        @{ $arg->{args} // [] },
    ], sub { eval { $self->raw("version\r\n") } });
}

# Sends requests as they are and returns all that is answered to them.
sub raw {
    my ($self, $bytes) = @_;
    return scalar $self->_with_connection('-', sub {
        # Answered last.
        $self->_send($bytes, "mn\r\n");
        my $answer = eval { $self->_take(qr/((?:.*\r\n)?)MN\r\n\z/s) };
        return $answer if defined $answer;
        # It closes after an error that leaves the two out of step.
        my $err = $@;
        $answer = $self->{bytes};
        $self->_forget;
        length $answer ? $answer : die $err;
    });
}

# cmd('mg key v t') or cmd('ms key 5 T60', 'value'): the answer, without the last line's end.
sub cmd {
    my ($self, $line, $data) = @_;
    return $self->raw("$line\r\n" . (defined $data ? "$data\r\n" : '')) =~ s/\r\n\z//r;
}

# An entry's value, undef when there is none.
sub get {
    my ($self, $key) = @_;
    my ($size, $rest) = $self->raw("mg $key v\r\n") =~ /^VA (\d+)[^\r\n]*\r\n(.*)/s or return undef;
    return substr $rest, 0, $size;
}

# Its remaining life in seconds, -1: no end; undef when there is none.
sub ttl { my ($self, $key) = @_; return ($self->cmd("mg $key t") =~ /^HD t(-?\d+)/)[0] }

sub set {
    my ($self, $key, $value, $ttl) = @_;
    my $said = $self->cmd("set $key 0 " . ($ttl // 0) . ' ' . length $value, $value);
    return $said eq 'STORED' || die "memcached: $said\n";
}

# All keys, sorted.
sub keys {
    my ($self) = @_;
    my $dump = scalar $self->_with_connection('-', sub {
        $self->_send("lru_crawler metadump all\r\n");
        $self->_take(qr/((?:key=[^\n]*\n)*)END\r\n/s);
    });
    my @keys = sort map { s/%([0-9A-Fa-f]{2})/chr hex $1/ger } $dump =~ /^key=(\S+)/mg;
    return @keys;
}

# One of the figures of "stats", or all of them; of another group with a second argument.
sub stats {
    my ($self, $name, $group) = @_;
    my %stats = $self->raw('stats' . ($group ? " $group" : '') . "\r\n") =~ /^STAT (\S+) (.*?)\r$/mg;
    return defined $name ? $stats{$name} : \%stats;
}

1;
