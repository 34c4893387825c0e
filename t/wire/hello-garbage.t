# What is no ClientHello, or a broken one, gets the same answer as from nginx without the module.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my ($port, $plain_port) = (free_port(), free_port());

sub conf {
    my ($port, $more) = @_;
    return <<"CONF";
    $more
    ssl_session_tickets   off;
    ssl_protocols         TLSv1.2 TLSv1.3;
    # RSA: its signatures have but one length.
    ssl_certificate       $certs->{rsa_crt};
    ssl_certificate_key   $certs->{rsa_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused\\n"; }
    }
CONF
}

# The level at which nginx tells why a handshake failed, and not more, as there is much of it.
my $nginx = nginx(log => 'info', conf => conf($port, <<"CONF"));
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $redis->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF
my $plain = nginx(log => 'info', module => 0, conf => conf($plain_port, ''));

# The bytes of an answer, but for what is new in each handshake: of those records only the lengths.
sub shape {
    my ($bytes) = @_;
    # A page of nginx about plain HTTP has the time in it.
    if ($bytes =~ /^(?:HTTP|<html>)/) {
        $bytes =~ s/^Date: .*\r\n//m;
        return $bytes;
    }
    my @records;
    while (length $bytes >= 5) {
        my ($type, $version, $length) = unpack 'Cnn', $bytes;
        my $body = substr $bytes, 5, $length;
        my $content = $type == 22 || $type == 23 ? length $body : unpack 'H*', $body;
        push @records, sprintf '%d %04x %s', $type, $version, $content;
        substr $bytes, 0, 5 + $length, '';
    }
    push @records, unpack 'H*', $bytes if length $bytes;
    return join ', ', @records;
}

# What the log says about a failed handshake, but for times and numbers.
sub reasons {
    my ($server, $from) = @_;
    return map { s/.*?(\[\w+\]) \S+ \*\d+/$1/r =~ s/, client: .*//r }
        grep { /SSL_do_handshake|while SSL handshaking|client sent/ }
        split /\n/, $server->log($from);
}

# Sends the same bytes, in these pieces, to both. Whoever has got the answer that nginx by itself
# gives ends the connection, so what the module does with one that ends early is not compared here.
sub same {
    my ($name, @pieces) = @_;
    my %said;
    my $expected = 0;
    for my $to ([ plain => $plain, $plain_port ], [ module => $nginx, $port ]) {
        my ($who, $server, $to_port) = @$to;
        my $from   = $server->log_pos;
        my $client = tls_client(port => $to_port);
        for my $piece (@pieces) {
            $client->send_raw($piece) or last;
        }
        if ($who eq 'module') {
            eval { wait_until { $client->_pull(0.01); $client->{gone} || length $client->received >= $expected } 5 };
        }
        $client->half_close unless $client->{gone};
        $client->wait_closed;
        $expected = length $client->received;
        $said{$who} = [ shape($client->received), reasons($server, $from) ];
    }
    my $as_it_is = join("\n", @{ $said{module} }) eq join("\n", @{ $said{plain} });
    return $as_it_is if !defined $name;
    ok $as_it_is, $name . (length $said{plain}[0] ? '' : ' (no answer)')
        or is_deeply $said{module}, $said{plain}, 'the difference';
    return $as_it_is;
}

sub record { my ($type, $body, $version) = @_; return pack 'Cnn/a', $type, $version // 0x301, $body }
sub handshake { my ($type, $body) = @_; return pack('C', $type) . substr(pack('N', length $body), 1) . $body }

# ClientHellos, whole, and the message in each.
my %hello;
for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    my $client = tls_client(port => $port, protocol => $protocol);
    $client->request;
    my ($session) = ($client->sessions)[-1];
    my $key = cache_key($session);
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
    $hello{$protocol} = tls_client(port => $port, protocol => $protocol, unconnected => 1)->client_hello;
    $hello{"$protocol with a session"} = tls_client(port => $port, protocol => $protocol,
        unconnected => 1, session => $session)->client_hello;
}
# The two servers do not know each other's sessions, and redis shall know none of these.
$redis->cmd('FLUSHALL');

subtest 'what is not TLS' => sub {
    same('HTTP', "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
    same('HTTP, the beginning', 'GET');
    same('zeros', "\0" x 100);
    same('0xff', "\xff" x 100);
    same('a line of text', "EHLO localhost\r\n");
    same('nothing');
    same('a PROXY protocol header', "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" . $hello{'TLSv1.2'});
};

subtest 'SSLv2' => sub {
    # msg_type, version, lengths of cipher specs, session ID and challenge.
    my $ciphers = pack 'H*', '0000350100800000ff';
    my $v2 = sub {
        my ($version, $id) = @_;
        my $body = pack('Cnnnn', 1, $version, length $ciphers, length $id, 16) . $ciphers . $id . 'c' x 16;
        return pack('n', 0x8000 | length $body) . $body;
    };
    same('a ClientHello of SSL 2',                           $v2->(0x0002, ''));
    same('a ClientHello of TLS 1.2 in SSL 2 form',           $v2->(0x0303, ''));
    same('the same with a session ID',                       $v2->(0x0303, 'i' x 16));
    same('the same in two pieces',         unpack 'a10 a*',  $v2->(0x0303, ''));
    same('one cut off',                               substr $v2->(0x0303, ''), 0, 20);
};

for my $which (sort keys %hello) {
    my $whole   = $hello{$which};
    my ($head, $message) = unpack 'a5 a*', $whole;

    subtest "$which: records" => sub {
        same('as it is', $whole);
        same('cut off in the head',      substr $whole, 0, 3);
        same('cut off after the head',   substr $whole, 0, 5);
        same('cut off in the message',   substr $whole, 0, 60);
        same('cut off before the end',   substr $whole, 0, -1);
        same('an empty record first',    record(22, ''), $whole);
        same('an empty record between',  record(22, substr $message, 0, 50), record(22, ''), record(22, substr $message, 50));
        same('forty empty records',      record(22, '') x 40, $whole);
        same('an alert, close_notify',   record(21, "\1\0"));
        same('an alert, fatal',          record(21, "\2\x28"));
        same('an alert within',          record(22, substr $message, 0, 50), record(21, "\1\x5a"), record(22, substr $message, 50));
        same('a fatal alert within',     record(22, substr $message, 0, 50), record(21, "\2\x28"));
        same('ChangeCipherSpec first',   record(20, "\1"), $whole);
        same('ChangeCipherSpec within',  record(22, substr $message, 0, 50), record(20, "\1"), record(22, substr $message, 50));
        same('application data within',  record(22, substr $message, 0, 50), record(23, 'x' x 50), record(22, substr $message, 50));
        same('a record of unknown type', record(22, substr $message, 0, 50), record(99, 'x' x 50));
        same('a record too long',        "\x16\x03\x01\xff\xff" . 'x' x 100);
        same('a version of no record',   "\x16\x05\x05" . substr $whole, 3);
        same('SSL 3 in the record',      "\x16\x03\x00" . substr $whole, 3);
        same('another version within',   record(22, substr($message, 0, 50), 0x0301), record(22, substr($message, 50), 0x0305));
    };

    subtest "$which: messages" => sub {
        my ($body) = unpack 'x4 a*', $message;
        same('a ServerHello',              record(22, handshake(2, $body)));
        same('a HelloRequest',             record(22, handshake(0, '')));
        same('a Finished',                 record(22, handshake(20, 'x' x 12)));
        same('an empty ClientHello',       record(22, handshake(1, '')));
        same('a ClientHello of one byte',  record(22, handshake(1, "\3")));
        same('a length of 16 MB',          record(22, "\1\xff\xff\xff" . $body));
        same('a length too large by one',  record(22, substr(handshake(1, $body . 'x'), 0, -1)));
        same('a length too small by one',  record(22, handshake(1, substr $body, 0, -1) . substr $body, -1));
        same('something behind it',        record(22, handshake(1, $body . 'x')));
        same('another message behind it',  record(22, $message . handshake(1, $body)));
        same('version 2.0 in it',          record(22, handshake(1, "\2\0" . substr $body, 2)));
        same('version 3.0 in it',          record(22, handshake(1, "\3\0" . substr $body, 2)));
        same('a session ID of 33 bytes',   record(22, handshake(1, substr($body, 0, 34) . "\x21" . 'i' x 33 . substr $body, 35 + ord substr $body, 34, 1)));
    };

    subtest "$which: each part of it changed" => sub {
        my @different;
        my $tried = 0;
        # Prime to the usual lengths of fields, so that in time all kinds of bytes are met.
        for (my $at = 1; $at < length $whole; $at += 7) {
            for my $flip (0x01, 0xff) {
                my $broken = $whole;
                substr($broken, $at, 1) ^= chr $flip;
                $tried++;
                push @different, sprintf '%d ^ %02x', $at, $flip if !same(undef, $broken);
            }
        }
        is_deeply \@different, [], "$tried broken ClientHellos";
    };
}

subtest 'all of this has harmed nobody' => sub {
    like tls_client(port => $port, protocol => $_)->request, qr/^\.$/, "$_ is served" for qw(TLSv1.2 TLSv1.3);
    for ($nginx, $plain) {
        $_->quit;
        is_deeply [ $_->errors(except => qr/SSL_do_handshake\(\) failed/) ], [], 'no other error in the log';
    }
};

done_testing;
