package SSLSession::TlsRelay;

# A TLS server in a process of its own, in front of a plain one, which writes down what each
# handshake was.

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Process;
use SSLSession::Util qw(free_port new_dir slurp wait_until);

use Carp qw(croak);
use IO::Socket::INET;
use JSON::PP qw(decode_json);

# upstream => 'host:port' or '/path', port => ...
# cert => a name of certs() ('backend'), ca => for clients' certificates ('ca_crt'),
# clients => 'yes' | 'no' | 'optional' ('no'), protocol => 'TLSv1.2' (or min => and max =>),
# ciphers => of TLS 1.2, ciphersuites => of TLS 1.3, tickets => how many in TLS 1.3 (2),
# stateful => 1: sessions by ID, no stateless tickets; resume => 0: every session is refused.
sub new {
    my ($class, %arg) = @_;
    my $self = bless { arg => \%arg, port => $arg{port} // free_port(), file => new_dir('tls') . '/log' }, $class;
    return $self->start;
}

sub port    { $_[0]{port} }
sub process { $_[0]{process} }
sub address { "127.0.0.1:$_[0]{port}" }
sub url     { "rediss://127.0.0.1:$_[0]{port}" }

# There again, with what is given changed, and with other keys: it knows no session of before.
sub restart { my ($self, @change) = @_; $self->stop; return $self->start(@change) }
sub stop    { $_[0]{process}->kill_all }
sub pause   { $_[0]{process}->pause }
sub resume  { $_[0]{process}->cont }

sub start {
    my ($self, %change) = @_;
    my $arg = $self->{arg} = { %{ $self->{arg} }, %change };
    my $listener = IO::Socket::INET->new(
        LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 511, ReuseAddr => 1) or croak "listen: $@";
    # Made here, so that what is wrong is said here.
    my $loop = SSLSession::TlsRelay::Loop->new($listener, $self->{file}, $arg, scalar certs());
    $self->{process} = SSLSession::Process->spawn(
        name => 'tls_relay', keep => [$listener], code => sub { $loop->run });
    return $self;
}

# All handshakes so far, the failed ones too, as they ended: { sni (undef: none), offered: a session
# was, reused, protocol, cipher, client_cert: its subject, error: OpenSSL's or undef }.
sub handshakes {
    my ($self) = @_;
    return map { decode_json($_) } split /\n/, slurp($self->{file});
}

# The same, once there are so many.
sub wait_handshakes {
    my ($self, $n) = @_;
    wait_until { $self->handshakes >= $n } 10, "$n handshakes";
    return $self->handshakes;
}

package SSLSession::TlsRelay::Loop;

use Carp qw(croak);
use Errno qw(EAGAIN);
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP qw(encode_json);
use Net::SSLeay 1.88 ();
use Socket qw(IPPROTO_TCP MSG_PEEK TCP_NODELAY);
use Time::HiRes qw(sleep);

Net::SSLeay::initialize();

my %version = ('TLSv1' => 0x301, 'TLSv1.1' => 0x302, 'TLSv1.2' => 0x303, 'TLSv1.3' => 0x304);

sub new {
    my ($class, $listener, $file, $arg, $certs) = @_;
    my $ctx = Net::SSLeay::CTX_new_with_method(Net::SSLeay::TLS_server_method()) or croak 'SSL_CTX_new';
    my $cert = $arg->{cert} // 'backend';
    Net::SSLeay::CTX_use_certificate_chain_file($ctx, $certs->{"${cert}_crt"}) or croak "cert $cert";
    Net::SSLeay::CTX_use_PrivateKey_file($ctx, $certs->{"${cert}_key"}, Net::SSLeay::FILETYPE_PEM()) or croak "key $cert";
    for (['min', \&Net::SSLeay::CTX_set_min_proto_version], ['max', \&Net::SSLeay::CTX_set_max_proto_version]) {
        my ($end, $set) = @$_;
        my $protocol = $arg->{$end} // $arg->{protocol} // next;
        $set->($ctx, $version{$protocol} // croak "no protocol $protocol") or croak "$end $protocol";
    }
    !defined $arg->{ciphers} || Net::SSLeay::CTX_set_cipher_list($ctx, $arg->{ciphers}) or croak 'ciphers';
    !defined $arg->{ciphersuites} || Net::SSLeay::CTX_set_ciphersuites($ctx, $arg->{ciphersuites}) or croak 'ciphersuites';
    my $clients = $arg->{clients} // 'no';
    if ($clients ne 'no') {
        Net::SSLeay::CTX_load_verify_locations($ctx, $certs->{ $arg->{ca} // 'ca_crt' }, '') or croak 'ca';
        Net::SSLeay::CTX_set_verify($ctx, Net::SSLeay::VERIFY_PEER()
            | ($clients eq 'yes' ? Net::SSLeay::VERIFY_FAIL_IF_NO_PEER_CERT() : 0));
    }
    Net::SSLeay::CTX_set_session_id_context($ctx, 'tls_relay', 9);
    Net::SSLeay::CTX_set_num_tickets($ctx, $arg->{tickets}) if defined $arg->{tickets};
    Net::SSLeay::CTX_set_options($ctx, Net::SSLeay::OP_NO_TICKET()) if $arg->{stateful} || defined $arg->{resume} && !$arg->{resume};
    Net::SSLeay::CTX_set_session_cache_mode($ctx, $arg->{stateful} ? Net::SSLeay::SESS_CACHE_SERVER() : Net::SSLeay::SESS_CACHE_OFF());
    Net::SSLeay::CTX_set_mode($ctx, Net::SSLeay::MODE_ENABLE_PARTIAL_WRITE() | Net::SSLeay::MODE_ACCEPT_MOVING_WRITE_BUFFER());
    return bless { listener => $listener, ctx => $ctx, file => $file, upstream => $arg->{upstream}, links => {} }, $class;
}

# A link is { sock, ssl, hello => what it asked for, up => 1 after the handshake, upstream, in => bytes
# for the upstream, out => for the client, eof => of the upstream }.
sub run {
    my ($self) = @_;
    open $self->{log}, '>>', $self->{file} or die "$self->{file}: $!\n";
    while (1) {
        my @links = values %{ $self->{links} };
        my $read  = IO::Select->new($self->{listener}, map { $_->{sock}, $_->{eof} ? () : $_->{upstream} // () } @links);
        my $write = IO::Select->new(map {
            ((length $_->{out} || $_->{wants_write} ? $_->{sock} : ()), (length $_->{in} ? $_->{upstream} : ()))
        } @links);
        my ($readable) = IO::Select->select($read, $write, undef, 10);
        $self->accept if grep { $_ == $self->{listener} } @{ $readable // [] };
        for my $link (@links) {
            my $was = $link->{up};
            my $on  = $self->step($link);
            # What came with the end of the handshake is in OpenSSL, not in the socket.
            $on &&= $self->step($link) if !$was && $link->{up};
            $self->end($link) if !$on;
        }
    }
}

sub accept {
    my ($self) = @_;
    my $sock = $self->{listener}->accept or return;
    $sock->blocking(0);
    setsockopt $sock, IPPROTO_TCP, TCP_NODELAY, 1;
    my $ssl = Net::SSLeay::new($self->{ctx});
    Net::SSLeay::set_fd($ssl, fileno $sock);
    $self->{links}{$sock} = { sock => $sock, ssl => $ssl, in => '', out => '' };
}

# Does what can be done now; false at the end.
sub step {
    my ($self, $link) = @_;
    # A ticket that did not open may have left one.
    Net::SSLeay::ERR_clear_error();
    $link->{up} or return $self->handshake($link);
    while (1) {
        my ($got, $n) = Net::SSLeay::read($link->{ssl}, 65536);
        if (!defined $got || !length $got) {
            $self->wants($link, $n // -1) or return 0;
            last;
        }
        $link->{in} .= $got;
    }
    my $n = sysread $link->{upstream}, $link->{out}, 65536, length $link->{out};
    return 0 if !defined $n && $! != EAGAIN;
    $link->{eof} = 1 if defined $n && $n == 0;
    if (length $link->{in}) {
        my $n = syswrite $link->{upstream}, $link->{in};
        return 0 if !defined $n && $! != EAGAIN;
        substr $link->{in}, 0, $n // 0, '';
    }
    while (length $link->{out}) {
        my $n = Net::SSLeay::write($link->{ssl}, $link->{out});
        if ($n <= 0) {
            $self->wants($link, $n) or return 0;
            last;
        }
        substr $link->{out}, 0, $n, '';
    }
    return !$link->{eof} || length $link->{out};
}

sub handshake {
    my ($self, $link) = @_;
    if (!$link->{hello}) {
        $link->{hello} = $self->hello($link) // return 1;
    }
    my $result = Net::SSLeay::accept($link->{ssl});
    if ($result != 1 && $self->wants($link, $result)) {
        return 1;
    }
    my $error = $result == 1 ? undef : Net::SSLeay::ERR_error_string(Net::SSLeay::ERR_get_error());
    my $cert  = Net::SSLeay::get_peer_certificate($link->{ssl});
    syswrite $self->{log}, encode_json({
        %{ $link->{hello} },
        reused      => Net::SSLeay::session_reused($link->{ssl}) ? 1 : 0,
        protocol    => Net::SSLeay::get_version($link->{ssl}),
        cipher      => Net::SSLeay::get_cipher($link->{ssl}),
        client_cert => $cert ? Net::SSLeay::X509_NAME_oneline(Net::SSLeay::X509_get_subject_name($cert)) : undef,
        error       => $error,
    }) . "\n";
    Net::SSLeay::X509_free($cert) if $cert;
    return 0 if defined $error;
    $link->{upstream} = $self->{upstream} =~ m{^/}
        ? IO::Socket::UNIX->new(Peer => $self->{upstream}) : IO::Socket::INET->new(PeerAddr => $self->{upstream});
    $link->{upstream} or return 0;
    $link->{upstream}->blocking(0);
    return $link->{up} = 1;
}

# Whether it is only that OpenSSL waits for the socket.
sub wants {
    my ($self, $link, $result) = @_;
    my $error = Net::SSLeay::get_error($link->{ssl}, $result);
    $link->{wants_write} = $error == Net::SSLeay::ERROR_WANT_WRITE();
    return $link->{wants_write} || $error == Net::SSLeay::ERROR_WANT_READ();
}

# What the ClientHello, which stays in the socket, asks for: { sni, offered }; undef as long as it
# is not there as a whole. (On a resumed session OpenSSL would tell the name in the session.)
sub hello {
    my ($self, $link) = @_;
    my %hello = (sni => undef, offered => 0);
    recv $link->{sock}, my $bytes, 65536, MSG_PEEK;
    return \%hello if !length $bytes || ord $bytes != 22;
    if (length $bytes < 5 || length $bytes < 5 + unpack 'x3n', $bytes) {
        # Readable as it is, or gone.
        sleep 0.001;
        return $link->{peeks}++ < 5000 ? undef : \%hello;
    }
    # Record and message header, version, random; session ID; cipher suites; compression.
    my ($id, $extensions) = unpack 'x43 C/a n/x C/x n/a', $bytes;
    my %extension;
    while (length($extensions // '') >= 4) {
        my ($type, $body) = unpack 'n n/a', $extensions;
        $extension{$type} = $body;
        substr $extensions, 0, 4 + length $body, '';
    }
    $hello{sni} = unpack 'x3 n/a', $extension{0} if exists $extension{0};
    # pre_shared_key, session_ticket; where there are versions (of TLS 1.3) the session ID is random.
    my $legacy = !exists $extension{43} && length $id;
    $hello{offered} = 1 if exists $extension{41} || length($extension{35} // '') || $legacy;
    return \%hello;
}

sub end {
    my ($self, $link) = @_;
    delete $self->{links}{ $link->{sock} };
    Net::SSLeay::shutdown($link->{ssl}) if $link->{up};
    Net::SSLeay::free($link->{ssl});
    close $_ for grep { defined } @$link{qw(sock upstream)};
}

1;
