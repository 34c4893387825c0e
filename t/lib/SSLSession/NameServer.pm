package SSLSession::NameServer;

# A name server for nginx's "resolver": all names are the same to it.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(new_dir slurp spew);

use IO::Socket::INET;
use Socket qw(inet_aton);

# Answers questions for A with what say() was told, and those for AAAA with nothing.
sub new {
    my ($class) = @_;
    my $self = bless { dir => new_dir('dns') }, $class;
    my $sock = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'udp') or die $@;
    $self->{port} = $sock->sockport;
    $self->say('nothing');
    my $dir = $self->{dir};
    SSLSession::Process->spawn(name => 'name server', keep => [$sock], code => sub {
        open my $asked, '>>', "$dir/asked";
        $asked->autoflush;
        while (defined(my $from = $sock->recv(my $query, 512))) {
            my ($id, $name) = unpack 'n x10 a*', $query;
            my ($type) = unpack 'n', ($name =~ s/^[^\0]*\0//r);
            print {$asked} $type == 1 ? 'A' : $type == 28 ? 'AAAA' : $type, "\n";
            my ($what, @rest) = split ' ', slurp("$dir/answer");
            next if $what eq 'nothing';
            my ($ttl, @addresses) = $what eq 'addresses' && $type == 1 ? @rest : 0;
            my $rcode = { NXDOMAIN => 3, SERVFAIL => 2 }->{$what} // 0;
            $sock->send(pack('n n n4', $id, 0x8180 | $rcode, 1, scalar @addresses, 0, 0)
                . substr($query, 12)
                . join('', map { pack 'n n n N n a4', 0xc00c, 1, 1, $ttl, 4, inet_aton($_) } @addresses), 0, $from);
        }
    });
    return $self;
}

sub port { $_[0]{port} }

# 'nothing' (no answer), 'NXDOMAIN', 'SERVFAIL' or 'addresses', ttl, address, ...
sub say {
    my ($self, @answer) = @_;
    my $new = spew("$self->{dir}/new", "@answer");
    rename $new, "$self->{dir}/answer" or die $!;
}

# How many questions there were.
sub asked { my ($self, $type) = @_; return scalar grep { !$type || $_ eq $type } split /\n/, slurp("$self->{dir}/asked") }

1;
