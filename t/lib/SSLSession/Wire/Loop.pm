package SSLSession::Wire::Loop;

# The process of a SSLSession::Wire: makes a second network namespace beside the one that it is
# started in, with a TUN device in each, and passes packets of IPv4 between the two. The orders are
# lines of text, so that others can give them, too:
#
#     perl -It/lib -MSSLSession::Wire::Loop -e 'SSLSession::Wire::Loop->main'
#
# reads them from standard input and answers each with a line. The first line says that it is ready.
# The process itself is in the far namespace: nsenter --net=/proc/PID/ns/net.

use strict;
use warnings;

use Exporter qw(import);
use Fcntl qw(O_RDWR);
use List::Util qw(min);
use POSIX ();
use Socket qw(AF_INET SOCK_DGRAM inet_aton);
use Time::HiRes qw(time);

our @EXPORT_OK = qw(near_address far_address new_network enter_network lo_up);

use constant {
    near_address => '10.77.0.1',
    far_address  => '10.77.0.2',
    CLONE_NEWNET => 0x40000000,
    TUNSETIFF    => 0x400454ca,
    IFF_TUN      => 0x0001,
    IFF_NO_PI    => 0x1000,
    IFF_UP       => 0x0001,
    SIOCSIFFLAGS => 0x8914,
    SIOCSIFADDR  => 0x8916,
    SIOCSIFNETMASK => 0x891c,
    FIN => 0x01, SYN => 0x02, RST => 0x04, ACK => 0x10,
};

# unshare and setns, by machine.
my %number = (x86_64 => [ 272, 308 ], aarch64 => [ 97, 268 ], riscv64 => [ 97, 268 ]);

sub _number { return ($number{ (POSIX::uname())[4] } // die "system calls of this machine are not known\n")->[ $_[0] ] }

# Moves this process into a network of its own, or into that of an open /proc/PID/ns/net.
sub new_network { syscall(_number(0), CLONE_NEWNET) == 0 or die "unshare: $!\n" }
sub enter_network { syscall(_number(1), fileno $_[0], CLONE_NEWNET) == 0 or die "setns: $!\n" }

sub lo_up { _set_up('lo') }

sub _set_up {
    my ($name, $address) = @_;
    socket my $sock, AF_INET, SOCK_DGRAM, 0 or die "socket: $!\n";
    my @orders = [ SIOCSIFFLAGS, pack 's x14', IFF_UP ];
    unshift @orders, map { [ $_->[0], pack 'S x2 a4 x8', AF_INET, inet_aton($_->[1]) ] }
        [ SIOCSIFADDR, $address ], [ SIOCSIFNETMASK, '255.255.255.0' ] if $address;
    for my $order (@orders) {
        ioctl $sock, $order->[0], my $request = pack('a16 a16', $name, $order->[1]) or die "$name: $!\n";
    }
}

# A device in the namespace in which this process is.
sub _tun {
    my ($address) = @_;
    sysopen my $tun, '/dev/net/tun', O_RDWR or die "/dev/net/tun: $!\n";
    ioctl $tun, TUNSETIFF, my $request = pack('a16 S x14', 'wire', IFF_TUN | IFF_NO_PI) or die "TUNSETIFF: $!\n";
    _set_up('wire', $address);
    return $tun;
}

sub main { my ($class) = @_; return $class->run(\*STDIN, \*STDOUT) }

# Passes packets and obeys, until there is nobody to obey.
sub run {
    my ($class, $orders, $answers) = @_;
    my $self = bless {
        loss => 0, delay => 0, hole => 0, links => {},
        queue => { near => [], far => [] },
        stat  => { map { $_ => 0 } qw(packets lost data lost_data links) },
    }, $class;
    # A wire does not wait for its turn on a busy machine.
    setpriority 0, 0, -20;
    lo_up();
    my $near = _tun(near_address);
    new_network();
    lo_up();
    my $far = _tun(far_address);
    $self->{tun} = { near => $near, far => $far };
    syswrite $answers, "ready\n";
    my $said = '';
    while (1) {
        my $rin = '';
        vec($rin, fileno $_, 1) = 1 for $near, $far, $orders;
        my @due = map { @$_ ? $_->[0][0] : () } values %{ $self->{queue} };
        my $wait = @due ? min(@due) - time : undef;
        select $rin, undef, undef, defined $wait && $wait < 0 ? 0 : $wait;
        $self->flush;
        if (vec $rin, fileno $orders, 1) {
            sysread $orders, $said, 4096, length $said or return;
            while ($said =~ s/^(.*)\n//) {
                my ($name, @words) = split ' ', $1;
                my $order = $self->can("order_$name");
                syswrite $answers, ($order ? $self->$order(@words) : "no order $name") . "\n";
            }
        }
        for my $side (qw(near far)) {
            next if !vec $rin, fileno $self->{tun}{$side}, 1;
            sysread $self->{tun}{$side}, my $packet, 65536 or die "tun: $!\n";
            $self->take($side, $packet);
        }
    }
}

# Each holds for packets that come after its answer.
sub order_loss  { $_[0]{loss} = $_[1] / 100; return 'ok' }     # per cent, of each way
sub order_delay { $_[0]{delay} = $_[1] / 1000; return 'ok' }   # milliseconds, of each way
sub order_hole  { $_[0]{hole} = $_[1]; return 'ok' }           # all packets vanish
# The connections that there are: their packets vanish, or are answered with RST; or both ends get
# a RST now, and further packets are answered with one.
sub order_forget { $_->{fate} //= 'vanish' for values %{ $_[0]{links} }; return 'ok' }
sub order_refuse { $_->{fate} //= 'reset' for values %{ $_[0]{links} }; return 'ok' }

sub order_reset {
    my ($self) = @_;
    for my $name (grep { !$self->{links}{$_}{fate} } keys %{ $self->{links} }) {
        my $link = $self->{links}{$name};
        $link->{fate} = 'reset';
        my ($near, $far) = unpack 'a6 a6', $name;
        $self->send('near', _reset($far, $near, $link->{far}, undef)) if defined $link->{far};
        $self->send('far', _reset($near, $far, $link->{near}, undef)) if defined $link->{near};
    }
    return 'ok';
}

# What has passed or was lost since the last time: packets, those with data, connections.
sub order_stats {
    my ($self) = @_;
    my $stat = $self->{stat};
    my $line = join ' ', map { "$_=$stat->{$_}" } sort keys %$stat;
    $_ = 0 for values %$stat;
    return $line;
}

# Takes a packet in that comes from a side.
sub take {
    my ($self, $side, $packet) = @_;
    # Of TCP over IPv4 only: systems talk of other things, too, when they get a device.
    return if unpack('C', $packet) >> 4 != 4 || unpack('x9 C', $packet) != 6;
    my $ip = 4 * (unpack('C', $packet) & 15);
    my ($from, $to) = unpack 'x12 a4 a4', $packet;
    my ($source, $target, $seq, $ack, $offset, $flags) = unpack "x$ip n n N N C C", $packet;
    ($from, $to) = (pack('a4 n', $from, $source), pack('a4 n', $to, $target));
    my $data = unpack('x2 n', $packet) - $ip - 4 * ($offset >> 4);
    my $length = $data + ($flags & (SYN | FIN) ? 1 : 0);
    # Both ends, 6 bytes each, the near one first.
    my $name = $side eq 'near' ? $from . $to : $to . $from;
    my $stat = $self->{stat};
    # A connection that begins anew between the same ports is another one.
    delete $self->{links}{$name} if $flags & SYN && !($flags & ACK) && ($self->{links}{$name}{seq} // -1) != $seq;
    my $link = $self->{links}{$name} //= do { $stat->{links}++; { seq => $seq } };
    $stat->{packets}++;
    $stat->{data}++ if $data;
    if ($self->{hole} || rand() < $self->{loss} || ($link->{fate} // '') eq 'vanish') {
        $stat->{lost}++;
        $stat->{lost_data}++ if $data;
        return;
    }
    if ($link->{fate}) {
        # As RFC 9293, 3.10.7.1 has it.
        my @numbers = $flags & ACK ? ($ack, undef) : (0, ($seq + $length) & 0xffffffff);
        $self->send($side, _reset($to, $from, @numbers)) if !($flags & RST);
        return;
    }
    my $next = ($seq + $length) & 0xffffffff;
    # What is sent again does not count back.
    $link->{$side} = $next if !defined $link->{$side} || (($next - $link->{$side}) & 0xffffffff) < 0x80000000;
    $self->send($side eq 'near' ? 'far' : 'near', $packet);
}

# A packet for a side; after the delay.
sub send {
    my ($self, $side, $packet) = @_;
    push @{ $self->{queue}{$side} }, [ time + $self->{delay}, $packet ];
    $self->flush if !$self->{delay};
}

sub flush {
    my ($self) = @_;
    my $now = time;
    for my $side (qw(near far)) {
        my $queue = $self->{queue}{$side};
        syswrite $self->{tun}{$side}, (shift @$queue)->[1] while @$queue && $queue->[0][0] <= $now;
    }
}

# A packet with RST between two ends.
sub _reset {
    my ($from, $to, $seq, $ack) = @_;
    my ($source, $target) = map { substr $_, 4, 2 } $from, $to;
    my $tcp = sub { pack 'a2 a2 N N C C n n n', $source, $target, $seq, $ack // 0, 5 << 4,
        defined $ack ? RST | ACK : RST, 0, $_[0], 0 };
    my @addresses = map { substr $_, 0, 4 } $from, $to;
    my $sum = _checksum(pack('a4 a4 x C n', @addresses, 6, 20) . $tcp->(0));
    my $ip = sub { pack 'C C n n n C C n a4 a4', 0x45, 0, 40, 0, 0, 64, 6, $_[0], @addresses };
    return $ip->(_checksum($ip->(0))) . $tcp->($sum);
}

sub _checksum {
    my ($bytes) = @_;
    my $sum = unpack '%32n*', $bytes;
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    return ~$sum & 0xffff;
}

1;
