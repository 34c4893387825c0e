package SSLSession::Client;

# A TLS client whose bytes the test holds in its hands: OpenSSL works on memory BIOs, and every
# byte goes to the socket, and comes from it, through this module.

use strict;
use warnings;

use SSLSession::Util qw(patience);

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use Net::SSLeay 1.88 ();
use Socket qw(IPPROTO_TCP SOL_SOCKET SO_LINGER TCP_NODELAY);
use Time::HiRes qw(sleep time);

Net::SSLeay::initialize();

my %version = ('TLSv1' => 0x301, 'TLSv1.1' => 0x302, 'TLSv1.2' => 0x303, 'TLSv1.3' => 0x304);

# port => ... (or unix => path; host => '127.0.0.1')
# sni => name, name => what the Host header says (the same), protocol => 'TLSv1.2' | 'TLSv1.3' (or min => and max =>),
# session => what session() gave, as often as you like,
# cert => and key => files, groups => 'X25519:P-384', ciphers => TLS 1.2 list, alpn => [names],
# no_ticket => 1, options => SSL_OP bits
# prefix => bytes before the TLS (PROXY protocol)
# How the ClientHello leaves: records => n: in TLS records of n bytes; segment => n: in segments
# of n bytes. handshake => 1: does the handshake at once and dies if it fails.
sub new {
    my ($class, %arg) = @_;
    my $self = bless { %arg, received => '', sent => '', tickets => [] }, $class;

    my $ctx = $self->{ctx} = Net::SSLeay::CTX_new_with_method(Net::SSLeay::TLS_client_method())
        or croak 'SSL_CTX_new';
    my $min = $arg{min} // $arg{protocol};
    my $max = $arg{max} // $arg{protocol};
    # Below TLS 1.2 OpenSSL 3 asks for the security level 0.
    Net::SSLeay::CTX_set_cipher_list($ctx, $arg{ciphers} // 'DEFAULT:@SECLEVEL=0') or croak 'ciphers';
    Net::SSLeay::CTX_set_min_proto_version($ctx, $min ? $version{$min} : 0) or croak "min $min";
    Net::SSLeay::CTX_set_max_proto_version($ctx, $max ? $version{$max} : 0) or croak "max $max";
    Net::SSLeay::CTX_set_options($ctx, $arg{options}) if $arg{options};
    Net::SSLeay::CTX_set_options($ctx, Net::SSLeay::OP_NO_TICKET()) if $arg{no_ticket};
    # The client side of a cache, or no callback is called for the TLS 1.3 tickets.
    Net::SSLeay::CTX_set_session_cache_mode($ctx, 0x0001 | 0x0300);
    my $tickets = $self->{tickets};
    Net::SSLeay::CTX_sess_set_new_cb($ctx, sub {
        my ($ssl, $session) = @_;
        push @$tickets, Net::SSLeay::i2d_SSL_SESSION($session);
        return 0;
    });
    if ($arg{cert}) {
        Net::SSLeay::CTX_use_certificate_chain_file($ctx, $arg{cert}) or croak "cert $arg{cert}";
        Net::SSLeay::CTX_use_PrivateKey_file($ctx, $arg{key}, Net::SSLeay::FILETYPE_PEM())
            or croak "key $arg{key}";
    }
    if ($arg{groups}) {
        Net::SSLeay::CTX_set1_groups_list($ctx, $arg{groups}) or croak "groups $arg{groups}";
    }
    Net::SSLeay::CTX_set_alpn_protos($ctx, $arg{alpn}) if $arg{alpn};

    my $ssl = $self->{ssl} = Net::SSLeay::new($ctx) or croak 'SSL_new';
    $self->{rbio} = Net::SSLeay::BIO_new(Net::SSLeay::BIO_s_mem());
    $self->{wbio} = Net::SSLeay::BIO_new(Net::SSLeay::BIO_s_mem());
    Net::SSLeay::set_bio($ssl, $self->{rbio}, $self->{wbio});
    Net::SSLeay::set_tlsext_host_name($ssl, $arg{sni}) if defined $arg{sni};
    if (defined $arg{session}) {
        my $session = Net::SSLeay::d2i_SSL_SESSION($arg{session}) or croak 'd2i_SSL_SESSION';
        Net::SSLeay::set_session($ssl, $session) or croak 'set_session';
        Net::SSLeay::SESSION_free($session);
    }
    Net::SSLeay::set_connect_state($ssl);

    $self->connect unless $arg{unconnected};
    $self->handshake or croak 'handshake: ' . $self->error if $arg{handshake};
    return $self;
}

# The TCP connection; new() makes it unless it was told unconnected => 1.
sub connect {
    my ($self) = @_;
    $self->{sock} = defined $self->{unix}
        ? IO::Socket::UNIX->new(Peer => $self->{unix})
        : IO::Socket::INET->new(
            PeerAddr => $self->{host} // '127.0.0.1', PeerPort => $self->{port}, Timeout => 10);
    $self->{sock} or croak "connect: $@";
    setsockopt $self->{sock}, IPPROTO_TCP, TCP_NODELAY, 1 unless defined $self->{unix};
    $self->{sock}->blocking(0);
    $self->send_raw($self->{prefix}) if defined $self->{prefix};
    return $self;
}

sub sock { $_[0]{sock} }
sub ssl  { $_[0]{ssl} }

# --- the wire ---

# The ClientHello's bytes (TLS records). Made once; whoever takes them sends them.
sub client_hello {
    my ($self) = @_;
    if (!defined $self->{hello}) {
        Net::SSLeay::do_handshake($self->{ssl});
        $self->{hello} = $self->_take_output;
    }
    return $self->{hello};
}

# The same bytes in TLS records of at most $n bytes. A function.
sub refragment {
    my ($bytes, $n) = @_;
    my $out = '';
    while (length $bytes) {
        my ($head, $length) = unpack 'a3n', $bytes;
        my $body = substr $bytes, 5, $length;
        substr $bytes, 0, 5 + $length, '';
        while (length $body) {
            my $part = substr $body, 0, $n, '';
            $out .= $head . pack('n', length $part) . $part;
        }
    }
    return $out;
}

# Sends bytes as they are: in segments of segment => n bytes, pause => seconds apart (a
# millisecond: less, and the other side sees several at once). False when the peer is gone.
sub send_raw {
    my ($self, $bytes, %arg) = @_;
    my $size = $arg{segment} || length $bytes || 1;
    my $select = IO::Select->new($self->{sock});
    my $first = 1;
    while (length $bytes) {
        sleep($arg{pause} // 0.001) if !$first;
        $first = 0;
        my $part = substr $bytes, 0, $size, '';
        while (length $part) {
            my $n = syswrite $self->{sock}, $part;
            if (defined $n) {
                $self->{sent} .= substr $part, 0, $n, '';
            } elsif ($!{EAGAIN}) {
                $select->can_write(10 * patience()) or croak 'the peer reads nothing';
            } else {
                $self->{gone} = $! + 0;
                return 0;
            }
        }
    }
    return 1;
}

# Sends the ClientHello as new() was told, or as told here, and returns: nothing is read.
sub start {
    my ($self, %arg) = @_;
    return $self if $self->{started}++;
    my $hello   = $self->client_hello;
    my $records = $arg{records} // $self->{records};
    $hello = refragment($hello, $records) if $records;
    $self->send_raw($hello, segment => $arg{segment} // $self->{segment}, pause => $arg{pause});
    return $self;
}

# All bytes the server has sent, and that were sent to it.
sub received { $_[0]{received} }
sub sent     { $_[0]{sent} }

# FIN after what was sent; the server may go on.
sub half_close { my ($self) = @_; shutdown $self->{sock}, 1; return $self }

# RST.
sub reset {
    my ($self) = @_;
    setsockopt $self->{sock}, SOL_SOCKET, SO_LINGER, pack 'II', 1, 0;
    return $self->close;
}

# FIN, without a close_notify.
sub close { my ($self) = @_; $self->{sock}->close if $self->{sock}; delete $self->{sock}; return $self }

# Waits for the server's end: 'eof', 'reset', or undef when it does not come in time.
sub wait_closed {
    my ($self, $seconds) = @_;
    my $deadline = time + ($seconds // 5) * patience();
    until ($self->{gone}) {
        my $left = $deadline - time;
        return undef if $left <= 0;
        $self->_pull($left);
    }
    return $self->{gone} eq 'eof' ? 'eof' : 'reset';
}

# --- the handshake ---

# From wherever it stands to its end: true when it is done. After a false, error() tells.
# seconds => 10
sub handshake {
    my ($self, %arg) = @_;
    return 1 if $self->{done};
    $self->start(%arg);
    my $ok = $self->_drive(sub { Net::SSLeay::do_handshake($self->{ssl}) }, $arg{seconds});
    return $self->{done} = $ok && $ok == 1;
}

# As far as the client's last flight of a full handshake of TLS 1.2, which is returned: send_raw() sends
# it, and handshake() goes on.
sub last_flight {
    my ($self) = @_;
    $self->start;
    while (1) {
        Net::SSLeay::do_handshake($self->{ssl});
        my $flight = $self->_take_output;
        return $flight if length $flight;
        $self->_pull(10 * patience()) or croak 'no flight of the server';
    }
}

# Why it failed: OpenSSL's words, 'eof', 'reset' or 'timeout'.
sub error { $_[0]{error} // '' }

# The number of a TLS alert the server sent in the clear, or undef.
sub alert {
    my ($self) = @_;
    my $bytes = $self->{received};
    while (length $bytes >= 5) {
        my ($type, $length) = unpack 'Cx2n', $bytes;
        return ord substr $bytes, 6, 1 if $type == 21 && $length == 2;
        substr $bytes, 0, 5 + $length, '';
    }
    return undef;
}

# Whether the server asked for a second ClientHello.
sub hello_retried {
    my ($self) = @_;
    # The random of a ServerHello that is a HelloRetryRequest: RFC 8446, 4.1.3.
    return index($self->{received}, pack 'H*', 'cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c') >= 0;
}

sub reused   { Net::SSLeay::session_reused($_[0]{ssl}) ? 1 : 0 }
sub protocol { Net::SSLeay::get_version($_[0]{ssl}) }
sub cipher   { Net::SSLeay::get_cipher($_[0]{ssl}) }

# The session to offer next time, as DER: OpenSSL's own object would serve but once in TLS 1.3.
# There it comes after the handshake: first a request().
sub session { Net::SSLeay::i2d_SSL_SESSION(Net::SSLeay::get_session($_[0]{ssl})) }

# In TLS 1.3 all sessions that came, one per ticket.
sub sessions { @{ $_[0]{tickets} } }

# What names a session on the wire, in hex: TLS 1.2 its ID, TLS 1.3 its ticket. A function.
sub session_name {
    my ($der) = @_;
    my %field = _der_fields((_der($der))[1]);
    # SSL_SESSION_ASN1: version, ssl_version, cipher, session_id, master_key, ..., [10] ticket
    my $ticket = $field{0xaa} && (_der($field{0xaa}[0]))[1];
    return unpack 'H*', $ticket // $field{0x04}[1];
}

sub session_id { return pack 'H*', session_name($_[0]) }

# The session with another of 32 bytes in the place of that: what a client offers that makes one up.
sub with_session_id {
    my ($der, $id) = @_;
    my $at = index $der, session_id($der);
    $at >= 0 && length $id == 32 or croak 'no session ID of 32 bytes';
    substr $der, $at, 32, $id;
    return $der;
}

# The session with another secret: what an observer has, who has only seen its name on the wire.
sub without_secret {
    my ($der) = @_;
    my %field  = _der_fields((_der($der))[1]);
    my $secret = $field{0x04}[2];
    substr $der, index($der, $secret), length $secret, 'x' x length $secret;
    return $der;
}

# The session of a stateless ticket of TLS 1.2, with those bytes for the session ID that a client offers
# beside its ticket (RFC 5077, 3.4).
sub beside_ticket {
    my ($der, $id) = @_;
    my %field = _der_fields((_der($der))[1]);
    my $own   = $field{0x04}[1];
    $field{0xaa} && length $own == length $id or croak 'no ticket with a session ID of that length';
    substr $der, index($der, $own), length $own, $id;
    return $der;
}

sub _der {
    my ($der) = @_;
    my ($tag, $length) = unpack 'CC', $der;
    my $at = 2;
    if ($length & 0x80) {
        my $n = $length & 0x7f;
        $length = 0;
        $length = $length << 8 | $_ for unpack 'C*', substr $der, 2, $n;
        $at += $n;
    }
    return ($tag, substr($der, $at, $length), $at + $length);
}

sub _der_fields {
    my ($der) = @_;
    my %field;
    while (length $der) {
        my ($tag, $value, $size) = _der($der);
        push @{ $field{$tag} }, $value;
        substr $der, 0, $size, '';
    }
    return %field;
}

# --- the application ---

# Encrypts and sends; false when it could not.
sub write {
    my ($self, $bytes) = @_;
    return $self->_drive(sub { Net::SSLeay::write($self->{ssl}, $bytes) });
}

# What the server sent next, '' at its end, undef when nothing comes.
sub read {
    my ($self, $seconds) = @_;
    my $got;
    my $ok = $self->_drive(sub {
        ($got, my $n) = Net::SSLeay::read($self->{ssl});
        return $n;
    }, $seconds);
    return $got if $ok && defined $got && length $got;
    return $self->error =~ /^(?:eof|closed)$/ ? '' : undef;
}

# A whole HTTP/1.0 request: the body of the answer (in list context head and body), undef without
# an answer. It reads to the end, and so gets the tickets of TLS 1.3.
sub request {
    my ($self, $path, @headers) = @_;
    $path //= '/';
    my $host = $self->{name} // $self->{sni} // 'localhost';
    $self->handshake or return;
    $self->write(join "\r\n", "GET $path HTTP/1.0", "Host: $host", @headers, '', '') or return;
    my $answer = '';
    while (length(my $more = $self->read // '')) {
        $answer .= $more;
    }
    my ($head, $body) = split /\r\n\r\n/, $answer, 2;
    return wantarray ? ($head, $body) : $body;
}

# --- inside ---

sub _take_output {
    my ($self) = @_;
    my $out = '';
    while (Net::SSLeay::BIO_pending($self->{wbio})) {
        $out .= Net::SSLeay::BIO_read($self->{wbio}) // last;
    }
    return $out;
}

# Takes in what is there, waiting for it at most that long. False at the end and when none came.
sub _pull {
    my ($self, $seconds) = @_;
    return 0 if $self->{gone} || !IO::Select->new($self->{sock})->can_read($seconds);
    my $n = sysread $self->{sock}, my $bytes, 65536;
    if (!defined $n) {
        $self->{gone} = $! + 0 unless $!{EAGAIN};
        return 0;
    }
    if ($n == 0) {
        $self->{gone} = 'eof';
        return 0;
    }
    $self->{received} .= $bytes;
    Net::SSLeay::BIO_write($self->{rbio}, $bytes);
    return 1;
}

# Calls until it is done, moving bytes between OpenSSL and the socket.
sub _drive {
    my ($self, $call, $seconds) = @_;
    my $deadline = time + ($seconds // 10) * patience();
    delete $self->{error};
    while (1) {
        Net::SSLeay::ERR_clear_error();
        my $result = $call->();
        my $err    = defined $result && $result > 0 ? 0 : Net::SSLeay::get_error($self->{ssl}, $result // -1);
        my $reason = $err == Net::SSLeay::ERROR_SSL()
            ? Net::SSLeay::ERR_error_string(Net::SSLeay::ERR_get_error()) : '';
        my $out = $self->_take_output;
        $self->send_raw($out) if length $out;
        return $result if !$err;
        if ($err == Net::SSLeay::ERROR_ZERO_RETURN()) {
            $self->{error} = 'closed';
            return 0;
        }
        if ($err != Net::SSLeay::ERROR_WANT_READ()) {
            $self->{error} = $reason || "SSL_get_error() $err";
            return 0;
        }
        my $left = $deadline - time;
        if ($left <= 0) {
            $self->{error} = 'timeout';
            return 0;
        }
        if (!$self->_pull($left) && $self->{gone}) {
            $self->{error} = $self->{gone} eq 'eof' ? 'eof' : 'reset';
            return 0;
        }
    }
}

sub DESTROY {
    my ($self) = @_;
    return if ${^GLOBAL_PHASE} eq 'DESTRUCT';
    Net::SSLeay::free($self->{ssl}) if $self->{ssl};
    Net::SSLeay::CTX_free($self->{ctx}) if $self->{ctx};
}

1;
