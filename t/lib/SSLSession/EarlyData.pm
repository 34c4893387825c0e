package SSLSession::EarlyData;

# Early data (0-RTT): clients that send it, what of it was seen on the wire, and flights of it that
# are recorded and sent again.

use strict;
use warnings;

use SSLSession::OpenSSL;
use SSLSession::Relay;
use SSLSession::Util qw(new_dir patience spew wait_until);

use Carp qw(croak);
use Exporter qw(import);
use IO::Select;
use IO::Socket::INET;
use MIME::Base64 qw(encode_base64);
use Time::HiRes qw(time);

our @EXPORT_OK = qw(session_pem early_client early_records record_flight client_hello send_flight settle);

# A session in DER as a file for s_client.
sub session_pem {
    my ($der) = @_;
    return spew(new_dir('session') . '/pem', "-----BEGIN SSL SESSION PARAMETERS-----\n", encode_base64($der),
        "-----END SSL SESSION PARAMETERS-----\n");
}

# An s_client that sends early data. size => of the request's body, session => in DER in place of
# sess_in; the rest as s_client_start() has it. A "request" follows after the handshake, accepted
# or not: without one the client asks once.
sub early_client {
    my (%arg) = @_;
    my $body = 'x' x (delete $arg{size} // 0);
    my $path = delete $arg{path} // '/';
    my $host = $arg{sni} // 'localhost';
    my @session = exists $arg{session} ? (sess_in => session_pem(delete $arg{session})) : ();
    return SSLSession::OpenSSL->start(
        protocol => 'TLSv1.3', path => undef,
        early_data => "POST $path HTTP/1.0\r\nHost: $host\r\nContent-Length: @{[ length $body ]}\r\n\r\n$body",
        %arg, @session, args => [ '-ign_eof', @{ $arg{args} // [] } ]);
}

# How many whole records of early data there are in what a client has sent.
sub early_records { return scalar grep { 23 == ord } _records($_[0]) }

sub _records {
    my ($bytes) = @_;
    my @records;
    while (length $bytes >= 5) {
        my $size = 5 + unpack 'x3n', $bytes;
        last if length $bytes < $size;
        push @records, substr $bytes, 0, $size, '';
    }
    return @records;
}

# The bytes that an early_client() sends before it has heard from anybody. No server gets them.
sub record_flight {
    my (%arg) = @_;
    my $sink   = SSLSession::Relay->new(canned => []);
    my $client = early_client(%arg, port => $sink->port);
    my $flight = wait_until {
        my $sent = join '', map { @$_ } $sink->requests;
        early_records($sent) && $sent;
    } 10, 'early data';
    $_->kill_all for $client->process, $sink->process;
    return $flight;
}

# Its ClientHello alone.
sub client_hello { return (_records($_[0]))[0] }

# N connections to the ports in turn, on each of which the flight was sent: they are all there
# before the first of them speaks.
sub send_flight {
    my ($flight, $n, @ports) = @_;
    my @sent = map {
        my $port = $ports[ $_ % @ports ];
        my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or croak "connect: $@";
        +{ sock => $sock, got => '', port => $port };
    } 1 .. $n;
    for my $one (@sent) {
        (syswrite($one->{sock}, $flight) // 0) == length $flight or croak "send: $!";
    }
    return @sent;
}

# Waits until their servers have done with them, and returns what became of them: { answered,
# resumed }, how many got a ServerHello, and one that resumes. A server that has said so has decided
# about the early data, too: it does what it has accepted, and ends the connection. Where it goes on
# waiting for the handshake's end it has accepted none, and the client's side ends: not before, as
# nginx gives up a request that it proxies when it sees that.
sub settle {
    my (@sent) = @_;
    my %of     = map { fileno $_->{sock} => $_ } @sent;
    my $select = IO::Select->new(map { $_->{sock} } @sent);
    my $deadline = time + 20 * patience();
    while (my $left = $select->count) {
        my @ready = $select->can_read(0.3 * patience());
        if (!@ready) {
            croak "no answer on $left of " . @sent . ' connections' if time > $deadline;
            shutdown $_, 1 for grep { $of{ fileno $_ }{resumed} } $select->handles;
        }
        for my $sock (@ready) {
            my $one = $of{ fileno $sock };
            if (!sysread $sock, $one->{got}, 65536, length $one->{got}) {
                $select->remove($sock);
                next;
            }
            next if defined $one->{resumed} || !defined($one->{resumed} = _resumes($one->{got}));
            shutdown $sock, 1 if !$one->{resumed};
        }
    }
    close $_->{sock} for @sent;
    return {
        answered => scalar(grep { defined $_->{resumed} } @sent),
        resumed  => scalar(grep { $_->{resumed} } @sent),
    };
}

# Whether a ServerHello (RFC 8446, 4.1.3) has the extension pre_shared_key; undef without one.
sub _resumes {
    my ($hello) = _records($_[0]);
    return undef if !defined $hello || $hello !~ /^\x16..(..)\x02/s;
    my ($id, $extensions) = unpack 'x43 C/a x3 n/a', $hello;
    while (length $extensions) {
        my ($type, $body) = unpack 'n n/a', $extensions;
        return 1 if $type == 41;
        substr $extensions, 0, 4 + length $body, '';
    }
    return 0;
}

1;
