package SSLSession::Relay::Loop;

# The process of a SSLSession::Relay: moves the bytes, and does to them what it is told.

use strict;
use warnings;

use SSLSession::Relay::Frames qw(next_request next_reply);

use Errno qw(EAGAIN);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use List::Util ();
use Socket ();
use Time::HiRes qw(sleep time);

sub new {
    my ($class, $listener, $control, $arg) = @_;
    return bless {
        listener => $listener, control => $control, upstream => $arg->{upstream},
        canned => $arg->{canned}, answered => 0, on_connect => $arg->{on_connect},
        way  => { request => {}, reply => {} },
        stat => { accepted => 0, reads => 0 },
        requests => [], pairs => {}, edits => [],
    }, $class;
}

# A pair is { client, upstream, request => [[due, bytes], ...], reply => ..., parse => bytes }.
sub run {
    my ($self) = @_;
    while (1) {
        my $read = IO::Select->new($self->{control}, $self->{crowd} ? () : $self->{listener});
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
        # Of what has come on several connections meanwhile nobody knows the order. A store goes before
        # the lookup of a client that came back.
        my %stores = map { $_->{client} => 1 } grep { $_->{stores} } values %{ $self->{pairs} };
        for my $fh (sort { ($stores{$b} // 0) <=> ($stores{$a} // 0) } $read->can_read($wait)) {
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
sub cut   { my ($self, $way, $n, $reset) = @_; @{ $self->{way}{$way} }{qw(cut reset)} = ($n, $reset); $self->flush }
sub garble { $_[0]{garble} = $_[1] }
sub edit   { my ($self, $how, $n) = @_; $self->{edits}[ $n - 1 ] = $how; 1 }
sub refuse        { $_[0]{refuse} = $_[1] }
sub split_records { $_[0]{split_records} = $_[1] }
sub upstream      { $_[0]{upstream} = $_[1] }
sub requests      { $_[0]{requests} }
sub close_all     { my ($self) = @_; $self->end($_) for values %{ $self->{pairs} }; 1 }
sub reset_all     { my ($self) = @_; $self->end($_, 1) for values %{ $self->{pairs} }; 1 }
sub push_reply    { my ($self, $bytes) = @_; $self->queue($_, 'reply', $bytes) for values %{ $self->{pairs} }; $self->flush; 1 }

sub stall {
    my ($self, $way, $n) = @_;
    $self->{way}{$way}{stall} = $n;
    for my $pair (values %{ $self->{pairs} }) {
        $pair->{left}{$way} = $n if defined $n || $pair->{left}{$way};
    }
    return 1;
}

# The listener's queue is full: the system answers nobody.
sub deaf {
    my ($self, $on) = @_;
    if ($on && !$self->{crowd}) {
        $self->accept while IO::Select->new($self->{listener})->can_read(0);
        listen $self->{listener}, 0;
        my ($where) = getsockname $self->{listener};
        for (1 .. 2) {
            socket my $sock, $self->{listener}->sockdomain, Socket::SOCK_STREAM(), 0 or die "socket: $!\n";
            IO::Handle::blocking($sock, 0);
            connect $sock, $where;
            push @{ $self->{crowd} }, $sock;
        }
    } elsif (!$on && $self->{crowd}) {
        # The first is in the queue, the other one never came that far.
        close $_ for @{ delete $self->{crowd} };
        close $self->{listener}->accept;
        listen $self->{listener}, 511;
    }
    return 1;
}

sub stats {
    my ($self) = @_;
    my %held = (request => 0, reply => 0);
    for my $pair (values %{ $self->{pairs} }) {
        for my $way (keys %held) { $held{$way} += length($_->[1] // "") for @{ $pair->{$way} } }
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
    my $pair = { client => $client, upstream => $upstream, request => [], reply => [], parse => '', tls => '',
        left => { map { $_ => $self->{way}{$_}{stall} } qw(request reply) } };
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
        $self->queue($pair, $way, delete $pair->{partial}) if $way eq 'reply' && length($pair->{partial} // '');
        push @{ $pair->{$way} }, [ time, undef ];
        return;
    }
    if ($way eq 'request') {
        $self->{stat}{reads}++;
        $self->record($pair, $bytes);
        $bytes = $self->resplit($pair, $bytes) if $self->{split_records};
    }
    $bytes = $self->edited($pair, $bytes) if $way eq 'reply';
    $self->queue($pair, $way, $bytes) if defined $pair->{upstream};
}

# Replies after what has been ordered for them. Once a connection is taken apart it stays so.
sub edited {
    my ($self, $pair, $bytes) = @_;
    if (@{ $self->{edits} } || defined $pair->{partial}) {
        $pair->{partial} .= $bytes;
        $bytes = '';
        while (defined(my $reply = next_reply(\$pair->{partial}))) {
            my $how = defined $pair->{first} ? '' : shift @{ $self->{edits} } // '';
            if ($how eq 'swap') {
                $pair->{first} = $reply;
                next;
            }
            $reply = _flip($reply) if $how eq 'garble';
            $reply =~ s/^((?:\$|VA |VALUE )[^\n]*\n)(.*?)(\r\n(?:END\r\n)?)\z/$1 . _flip($2) . $3/es if $how eq 'garble_value';
            $bytes .= $reply if $how ne 'lose';
            $bytes .= $reply if $how eq 'duplicate';
            $bytes .= delete $pair->{first} if defined $pair->{first};
        }
    }
    return $self->{garble} ? _flip($bytes) : $bytes;
}

sub _flip { my ($bytes) = @_; return $bytes ^ "\xff" x length $bytes }

# Notes each whole request, and answers it where there is no upstream.
sub record {
    my ($self, $pair, $bytes) = @_;
    # In TLS what came in one read is one request.
    $pair->{opaque} //= $bytes =~ /^\x16\x03/ ? 1 : 0;
    $pair->{parse} .= $bytes;
    while (my $request = $pair->{opaque} ? length $pair->{parse} && [ $pair->{parse} ] : next_request(\$pair->{parse})) {
        $pair->{parse} = '' if $pair->{opaque};
        push @{ $self->{requests} }, $request;
        $pair->{stores} = 1 if $request->[0] =~ /^(?:set|ms)$/i;
        $self->answer($pair, @$request) if $self->{canned};
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
    for my $pair (sort { ($b->{stores} // 0) <=> ($a->{stores} // 0) } values %{ $self->{pairs} }) {
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
        $self->end($pair, $set->{reset});
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
        if (defined(my $left = $pair->{left}{$way})) {
            $queue->[0][1] = $bytes = substr $bytes, 0, $left;
            if (!length $bytes) {
                shift @$queue;
                next;
            }
        }
        $bytes = substr $bytes, 0, $set->{cut} if defined $set->{cut};
        my $n = syswrite $to, $bytes;
        if (!defined $n) {
            return 1 if $! == EAGAIN;
            $self->end($pair);
            return;
        }
        substr $queue->[0][1], 0, $n, '';
        $pair->{left}{$way} -= $n if defined $pair->{left}{$way};
        shift @$queue if !length $queue->[0][1];
        if (defined $set->{cut} && ($set->{cut} -= $n) <= 0) {
            delete $set->{cut};
            $self->end($pair, $set->{reset});
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
