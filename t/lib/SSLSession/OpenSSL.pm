package SSLSession::OpenSSL;

# openssl s_client and s_server, as a person would use them.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(new_dir patience slurp spew);

use Carp qw(croak);

my %flag = ('TLSv1' => '-tls1', 'TLSv1.1' => '-tls1_1', 'TLSv1.2' => '-tls1_2', 'TLSv1.3' => '-tls1_3');

# port => ... (host => '127.0.0.1'), sni => name, protocol => 'TLSv1.2', sess_in => and
# sess_out => files, early_data => bytes, path => '/' (undef: no request, ends after the
# handshake), request => the whole of it, binary => another openssl, args => [more],
# program => 'openssl'.
# Returns at once; finish() waits, and the readers do too.
sub start {
    my ($class, %arg) = @_;
    my $dir  = new_dir('s_client');
    my $self = bless { %arg, dir => $dir, out => "$dir/out" }, $class;
    my $path = exists $arg{path} ? $arg{path} : '/';
    my $host = $arg{sni} // 'localhost';
    my $request = $arg{request} // (defined $path ? "GET $path HTTP/1.0\r\nHost: $host\r\n\r\n" : undef);
    my @cmd = ($arg{program} // 'openssl', 's_client',
        '-connect', ($arg{host} // '127.0.0.1') . ":$arg{port}");
    push @cmd, defined $arg{sni} ? ('-servername', $arg{sni}) : '-noservername';
    push @cmd, $flag{ $arg{protocol} } // croak "no protocol $arg{protocol}" if $arg{protocol};
    push @cmd, '-sess_in',  $arg{sess_in}  if defined $arg{sess_in};
    push @cmd, '-sess_out', $arg{sess_out} if defined $arg{sess_out};
    push @cmd, '-early_data', spew("$dir/early", $arg{early_data}) if defined $arg{early_data};
    # With a request it ends when the server closes, and so has read the tickets of TLS 1.3.
    push @cmd, '-ign_eof' if defined $request;
    push @cmd, @{ $arg{args} // [] };
    $self->{process} = SSLSession::Process->spawn(
        name => 's_client', cmd => \@cmd, out => $self->{out}, in => spew("$dir/in", $request // ''));
    return $self;
}

sub run { my $class = shift; return $class->start(@_)->finish }

sub process { $_[0]{process} }

# Waits for its end; one that takes too long is stopped, and is no success.
sub finish {
    my ($self, $seconds) = @_;
    if (!defined $self->{exit}) {
        my $status = eval { $self->{process}->wait_exit($seconds // 15) };
        $status = $self->{process}->kill_all || 256 if !defined $status;
        $self->{exit} = $status & 127 ? 128 + ($status & 127) : $status >> 8;
        $self->{process}->kill_all;
    }
    return $self;
}

sub exit   { $_[0]->finish->{exit} }
sub output { slurp($_[0]->finish->{out}) }

# True when a handshake came to its end.
sub ok { $_[0]->output =~ /^(?:New|Reused), TLSv/m ? 1 : 0 }

# 1, 0, or undef without a handshake.
sub reused { my ($is) = $_[0]->output =~ /^(New|Reused), TLSv/m; return $is && ($is eq 'Reused' ? 1 : 0) }

sub protocol { ($_[0]->output =~ /^ *Protocol *: *(\S+)/m, $_[0]->output =~ /^(?:New|Reused), (TLSv[\d.]+)/m)[0] }

# TLS 1.2's session ID, in hex.
sub session_id { ($_[0]->output =~ /^ *Session-ID: *([0-9A-F]*)/m)[0] }

# 'accepted', 'rejected' or 'not sent'.
sub early_data { ($_[0]->output =~ /^Early data was (\S.*\S)\s*$/m)[0] }

# The HTTP answer, without what s_client says: head and body, or the body.
sub response {
    my ($self) = @_;
    # What it says of tickets it writes in blocks, between which an answer may come.
    my ($head, $rest) = $self->output =~ m{(HTTP/1\.\d \d.*?)\r\n\r\n(.*)}s or return;
    if ($head =~ /^Content-Length: (\d+)/mi) {
        $rest = substr $rest, 0, $1;
    } else {
        $rest =~ s/(?:---\n|closed\n|read R BLOCK\n).*//s;
    }
    return wantarray ? ($head, $rest) : $rest;
}

package SSLSession::OpenSSL::Server;

# openssl s_server: a server that speaks TLS, but says only what it is told to.

use SSLSession::Certs qw(certs);
use SSLSession::Process;
use SSLSession::Util qw(free_port new_dir slurp wait_until);

use Carp qw(croak);
use POSIX ();

# port => ..., cert => a name of certs() ('backend'), ca => for clients' certificates ('ca_crt'),
# clients => 'yes' | 'no' | 'optional' ('no'), protocol => 'TLSv1.2', ciphers => of TLS 1.2,
# ciphersuites => of TLS 1.3, sni => a name: output() says whether a client asked for any,
# args => ['-no_ticket', ...].
# It serves one connection after the other: the next one waits until the first is closed.
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('s_server');
    my $self = bless { port => $arg{port} // free_port(), out => "$dir/out" }, $class;
    my $certs = certs();
    my $cert  = $arg{cert} // 'backend';
    my @pair  = ($certs->{"${cert}_crt"}, $certs->{"${cert}_key"});
    my @cmd   = (qw(stdbuf -oL openssl s_server -accept), "127.0.0.1:$self->{port}",
        '-cert', $pair[0], '-key', $pair[1], '-cert_chain', $pair[0]);
    push @cmd, '-servername', $arg{sni}, '-cert2', $pair[0], '-key2', $pair[1] if defined $arg{sni};
    push @cmd, $flag{ $arg{protocol} } // croak "no protocol $arg{protocol}" if $arg{protocol};
    push @cmd, '-cipher', $arg{ciphers} if defined $arg{ciphers};
    push @cmd, '-ciphersuites', $arg{ciphersuites} if defined $arg{ciphersuites};
    push @cmd, { yes => '-Verify', optional => '-verify' }->{ $arg{clients} } // croak("clients $arg{clients}"), 3,
        '-verify_return_error', '-CAfile', $certs->{ $arg{ca} // 'ca_crt' } if ($arg{clients} // 'no') ne 'no';
    push @cmd, @{ $arg{args} // [] };
    # Its input must not end, or it does.
    POSIX::mkfifo("$dir/in", 0600) or croak "mkfifo: $!";
    open $self->{say}, '+<', "$dir/in" or croak "$dir/in: $!";
    $self->{process} = SSLSession::Process->spawn(name => 's_server', cmd => \@cmd, out => $self->{out}, in => "$dir/in");
    wait_until {
        croak 's_server: ' . $self->output unless $self->{process}->alive;
        $self->output =~ /^ACCEPT/m;
    } 10, 's_server';
    return $self;
}

sub port    { $_[0]{port} }
sub url     { "rediss://127.0.0.1:$_[0]{port}" }
sub process { $_[0]{process} }
sub stop    { $_[0]{process}->kill_all }

# All it has said: 'Reused session-id', 'CIPHER is', 'Hostname in TLS extension: "..."'.
sub output { slurp($_[0]{out}) }

# Sends these bytes to the client. They must not begin with a letter, which would be a command.
# Wait until output() shows the connection: else they do the handshake, and it says nothing of it.
sub say { my ($self, $bytes) = @_; return syswrite $self->{say}, $bytes }

# Ends the connection, and serves the next.
sub hang_up { my ($self) = @_; return syswrite $self->{say}, "q\n" }

1;
