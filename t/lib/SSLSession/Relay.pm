package SSLSession::Relay;

# A TCP relay in a process of its own, and a server with canned replies: both do to the bytes
# what the test tells them to, while they run.

use strict;
use warnings;

use SSLSession::Process;
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
    for my $order (qw(hold delay chunk drop split_records refuse)) {
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
sub close_all { $_[0]->_ask('close_all') }
sub reset_all { $_[0]->_ask('reset_all') }                                      # with RST
# What clients send in TLS records of at most n bytes, as long as it is in the clear.
sub split_records { my ($self, $n) = @_; $self->_ask(split_records => $n) }
# Sends these bytes, never asked for, on all connections.
sub push_reply { my ($self, $bytes) = @_; $self->_ask(push_reply => $bytes) }

# The RESP commands that have come so far, as [name, argument, ...] each; of the name only.
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

package SSLSession::Relay::Loop;

use Errno qw(EAGAIN);
use Time::HiRes qw(sleep time);

sub new {
    my ($class, $listener, $control, $arg) = @_;
    return bless {
        listener => $listener, control => $control, upstream => $arg->{upstream},
        canned => $arg->{canned}, answered => 0, on_connect => $arg->{on_connect},
        way  => { request => {}, reply => {} },
        stat => { accepted => 0, reads => 0 },
        requests => [], pairs => {},
    }, $class;
}

# A pair is { client, upstream, request => [[due, bytes], ...], reply => ..., parse => bytes }.
sub run {
    my ($self) = @_;
    while (1) {
        my $read = IO::Select->new($self->{control}, $self->{listener});
        for my $pair (values %{ $self->{pairs} }) {
            $read->add(grep { defined && !$pair->{eof}{$_} } @$pair{qw(client upstream)});
        }
        my $now  = time;
        my @due  = map { $_->[0] } map { (@{ $_->{request} }[0] // (), @{ $_->{reply} }[0] // ()) }
            values %{ $self->{pairs} };
        my $held = grep { $_->{hold} } values %{ $self->{way} };
        my $wait = @due ? List::Util::min(@due) - $now : 1;
        $wait = 0 if $wait < 0;
        # What is held has no time: do not spin on it.
        $wait = 0.01 if $held && $wait < 0.01;
        for my $fh ($read->can_read($wait)) {
            if ($fh == $self->{control}) {
                my $order = SSLSession::Relay::_get($fh) or return;
                my ($name, @args) = @$order;
                my $answer = $self->$name(@args);
                SSLSession::Relay::_put($fh, [$answer]);
            } elsif ($fh == $self->{listener}) {
                $self->accept;
            } else {
                $self->readable($fh);
            }
        }
        $self->flush;
    }
}

sub hold  { $_[0]{way}{ $_[1] }{hold}  = $_[2]; $_[0]->flush }
sub delay { $_[0]{way}{ $_[1] }{delay} = $_[2] }
sub drop  { $_[0]{way}{ $_[1] }{drop}  = $_[2] }
sub chunk { $_[0]{way}{ $_[1] }{chunk} = $_[2] }
sub cut   { $_[0]{way}{ $_[1] }{cut}   = $_[2]; $_[0]->flush }
sub refuse        { $_[0]{refuse} = $_[1] }
sub split_records { $_[0]{split_records} = $_[1] }
sub requests      { $_[0]{requests} }
sub close_all     { my ($self) = @_; $self->end($_) for values %{ $self->{pairs} }; 1 }
sub reset_all     { my ($self) = @_; $self->end($_, 1) for values %{ $self->{pairs} }; 1 }
sub push_reply    { my ($self, $bytes) = @_; $self->queue($_, 'reply', $bytes) for values %{ $self->{pairs} }; $self->flush; 1 }

sub stats {
    my ($self) = @_;
    my %held = (request => 0, reply => 0);
    for my $pair (values %{ $self->{pairs} }) {
        for my $way (keys %held) { $held{$way} += length $_->[1] for @{ $pair->{$way} } }
    }
    return { %{ $self->{stat} }, %held, open => scalar keys %{ $self->{pairs} } };
}

sub accept {
    my ($self) = @_;
    my $client = $self->{listener}->accept or return;
    $self->{stat}{accepted}++;
    return close $client if $self->{refuse};
    my $upstream;
    if (defined $self->{upstream}) {
        $upstream = $self->{upstream} =~ m{^/}
            ? IO::Socket::UNIX->new(Peer => $self->{upstream})
            : IO::Socket::INET->new(PeerAddr => $self->{upstream});
        return close $client if !$upstream;
    }
    for my $sock (grep { defined } $client, $upstream) {
        $sock->blocking(0);
        setsockopt $sock, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1;
    }
    my $pair = { client => $client, upstream => $upstream, request => [], reply => [], parse => '', tls => '' };
    $self->{pairs}{$client} = $pair;
    $self->queue($pair, 'reply', $self->{on_connect}) if defined $self->{on_connect};
}

sub readable {
    my ($self, $fh) = @_;
    my ($pair) = grep { grep { defined && $_ == $fh } @$_{qw(client upstream)} } values %{ $self->{pairs} };
    return if !$pair;
    my $way = $fh == $pair->{client} ? 'request' : 'reply';
    my $n = sysread $fh, my $bytes, 65536;
    return if !defined $n && $! == EAGAIN;
    return $self->end($pair) if !defined $n;
    if ($n == 0) {
        # Passed on when all before it has been.
        $pair->{eof}{$fh} = 1;
        push @{ $pair->{$way} }, [ time, undef ];
        return;
    }
    if ($way eq 'request') {
        $self->{stat}{reads}++;
        $self->record($pair, $bytes);
        $bytes = $self->resplit($pair, $bytes) if $self->{split_records};
    }
    $self->queue($pair, $way, $bytes) if defined $pair->{upstream};
}

# Notes each whole RESP command, and answers it where there is no upstream.
sub record {
    my ($self, $pair, $bytes) = @_;
    $pair->{parse} .= $bytes;
    while (length $pair->{parse}) {
        my @command;
        my $rest = $pair->{parse};
        if ($rest =~ s/^\*(\d+)\r\n//) {
            for (1 .. $1) {
                $rest =~ s/^\$(\d+)\r\n// or return;
                return if length $rest < $1 + 2;
                push @command, substr $rest, 0, $1;
                substr $rest, 0, $1 + 2, '';
            }
        } elsif ($rest =~ /^\*/) {
            return;
        } else {
            # Another protocol: what came in one read is one request.
            @command = ($rest);
            $rest = '';
        }
        $pair->{parse} = $rest;
        push @{ $self->{requests} }, \@command;
        $self->answer($pair, @command) if $self->{canned};
    }
}

sub answer {
    my ($self, $pair, @command) = @_;
    my $canned = $self->{canned};
    return if !@$canned;
    my $next  = $self->{answered}++;
    my $reply = $canned->[ $next < @$canned ? $next : -1 ];
    $reply = $reply->(@command) if ref $reply eq 'CODE';
    $reply = { bytes => $reply } if ref $reply ne 'HASH';
    $self->queue($pair, 'reply', $reply->{bytes}, $reply->{delay}) if length($reply->{bytes} // '');
    push @{ $pair->{reply} }, [ time + ($reply->{delay} // 0) / 1000, undef, $reply->{reset} ]
        if $reply->{close} || $reply->{reset};
}

# Puts handshake records that are in the clear into smaller records.
sub resplit {
    my ($self, $pair, $bytes) = @_;
    return $bytes if $pair->{tls_done};
    my $in  = $pair->{tls} . $bytes;
    my $out = '';
    while (length $in) {
        if (ord $in != 22) {
            $pair->{tls_done} = 1;
            last;
        }
        last if length $in < 5 || length $in < 5 + unpack 'x3n', $in;
        my ($head, $length) = unpack 'a3n', $in;
        my $body = substr $in, 5, $length;
        substr $in, 0, 5 + $length, '';
        while (length $body) {
            my $part = substr $body, 0, $self->{split_records}, '';
            $out .= $head . pack('n', length $part) . $part;
        }
    }
    $pair->{tls} = $pair->{tls_done} ? '' : $in;
    $out .= $in if $pair->{tls_done};
    return $out;
}

sub queue {
    my ($self, $pair, $way, $bytes, $delay) = @_;
    my $set = $self->{way}{$way};
    return if $set->{drop} || !length $bytes;
    my $due = time + ($delay // 0) / 1000 + ($set->{delay} // 0);
    if (my $size = $set->{chunk}) {
        # A millisecond between them, or the system would put them together again.
        while (length $bytes) {
            my $last = @{ $pair->{$way} } ? $pair->{$way}[-1][0] + 0.001 : 0;
            push @{ $pair->{$way} }, [ $due > $last ? $due : $last, substr $bytes, 0, $size, '' ];
        }
    } else {
        push @{ $pair->{$way} }, [ $due, $bytes ];
    }
}

sub flush {
    my ($self) = @_;
    for my $pair (values %{ $self->{pairs} }) {
        for my $way (qw(request reply)) {
            $self->flush_way($pair, $way) or last;
        }
    }
    return 1;
}

sub flush_way {
    my ($self, $pair, $way) = @_;
    my $set   = $self->{way}{$way};
    my $queue = $pair->{$way};
    my $to    = $pair->{ $way eq 'request' ? 'upstream' : 'client' };
    if (defined $set->{cut} && !$set->{cut}) {
        delete $set->{cut};
        $self->end($pair);
        return;
    }
    while (@$queue && $queue->[0][0] <= time && !$set->{hold}) {
        my ($due, $bytes, $reset) = @{ $queue->[0] };
        if (!defined $bytes) {
            shift @$queue;
            # The upstream's end, or a canned one, ends all; the client's own is only a half.
            if ($way eq 'reply' || $reset || !defined $to) {
                $self->end($pair, $reset);
                return;
            }
            shutdown $to, 1;
            next;
        }
        $bytes = substr $bytes, 0, $set->{cut} if defined $set->{cut};
        my $n = syswrite $to, $bytes;
        if (!defined $n) {
            return 1 if $! == EAGAIN;
            $self->end($pair);
            return;
        }
        substr $queue->[0][1], 0, $n, '';
        shift @$queue if !length $queue->[0][1];
        if (defined $set->{cut} && ($set->{cut} -= $n) <= 0) {
            delete $set->{cut};
            $self->end($pair);
            return;
        }
    }
    return 1;
}

sub end {
    my ($self, $pair, $reset) = @_;
    delete $self->{pairs}{ $pair->{client} };
    setsockopt $pair->{client}, Socket::SOL_SOCKET(), Socket::SO_LINGER(), pack 'II', 1, 0 if $reset;
    close $_ for grep { defined } @$pair{qw(client upstream)};
}

1;
