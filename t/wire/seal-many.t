# A ClientHello with hundreds of tickets of TLS 1.3, of the right key id and with wrong tags: after a few
# of them none is looked at any more.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Crypt::PRNG qw(random_bytes);
use Test::More;

my $certs = certs();
my $redis = redis();
my %target = (redis => 'store', zone => 'shared:tls:1m');
my %port   = map { $_ => free_port() } keys %target;

# As many as there is room for in what is read ahead of OpenSSL.
use constant MANY => 400;
# As in src/handshake/fetch.rs, of foreign ones, too.
use constant MAX_UNKNOWN => 4;

sub conf {
    my ($kind) = @_;
    return <<"CONF";
    ssl_session_backend store {
        server          127.0.0.1:@{[ $redis->port ]};
        connect_timeout 60s;
        fetch_timeout   60s;
        store_timeout   60s;
    }
    ssl_session_fetch   $target{$kind};
    ssl_session_store   $target{$kind};
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port{$kind} ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
}

# TEST_MANY_CPU=n: measures n of each, without a debug log.
my $measure = $ENV{TEST_MANY_CPU};
my %nginx = map { $_ => nginx(conf => conf($_), $measure ? (log => 'notice') : ()) } keys %target;

# A ticket that none of the keys has issued, with the first byte of one that a key has.
my $key_id = substr issue_id('TLSv1.3'), 0, 1;
sub forged { return $key_id . random_bytes(31) }
# And one with another first byte.
sub foreign { return chr(1 ^ ord $key_id) . random_bytes(31) }

# The ClientHello of a client that offers a session, with other tickets in the place of its own. The
# binders are of nobody: OpenSSL looks at one of a session that is found only.
sub hello {
    my ($kind, $session, @tickets) = @_;
    my $hello = tls_client(port => $port{$kind}, protocol => 'TLSv1.3', session => $session, unconnected => 1)->client_hello;
    # record (5), handshake (4); version (2), random (32), session ID, cipher suites, compression
    my $message = substr $hello, 9;
    my $at = 34;
    $at += 1 + unpack "x$at C", $message;
    $at += 2 + unpack "x$at n", $message;
    $at += 1 + unpack "x$at C", $message;
    my ($head, $list) = (substr($message, 0, $at), substr $message, $at + 2);
    my $kept = '';
    while (length $list) {
        my ($type, $data) = unpack 'n n/a', $list;
        substr $list, 0, 4 + length $data, '';
        $kept .= pack 'n n/a*', $type, $data if $type != 41;
    }
    my $identities = join '', map { pack 'n/a* N', $_, 0 } @tickets;
    my $binders    = pack('C/a*', 'b' x 32) x @tickets;
    $kept .= pack 'n n/a*', 41, pack 'n/a* n/a*', $identities, $binders;
    my $body = $head . pack 'n/a*', $kept;
    $body = "\1" . substr(pack('N', length $body), 1) . $body;
    return join '', map { pack 'C n n/a*', 22, 0x301, $_ } unpack '(a16384)*', $body;
}

# What the server begins to say: a ServerHello, or an alert.
sub answered {
    my ($kind, $hello) = @_;
    my $client = tls_client(port => $port{$kind}, protocol => 'TLSv1.3');
    $client->send_raw($hello);
    wait_until { $client->_pull(0.01); length $client->received } 10, 'an answer';
    my $answer = ord substr $client->received, 0, 1;
    $client->reset;
    return $answer == 22 ? 'ServerHello' : $answer == 21 ? 'alert' : $answer;
}

my %session;
for my $kind (sort keys %target) {
    my $client = tls_client(port => $port{$kind}, protocol => 'TLSv1.3');
    $client->request;
    ($session{$kind}) = ($client->sessions)[-1];
    my $key = cache_key($session{$kind});
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'the session in the store' if $kind eq 'redis';
}

if ($measure) {
    for my $kind (sort keys %target) {
        for my $what ('one ticket', 'other key ids', 'right key ids', 'one ticket', 'other key ids', 'right key ids') {
            my @hellos = map {
                hello($kind, $session{$kind}, $what eq 'one ticket' ? forged() : map { $what =~ /right/ ? forged() : foreign() } 1 .. MANY)
            } 1 .. 20;
            my $before = $nginx{$kind}->cpu;
            answered($kind, $hellos[ $_ % @hellos ]) for 1 .. $measure;
            my $seconds = $nginx{$kind}->cpu - $before;
            note sprintf '%s, %s: %.0f us of CPU each', $kind, $what, $seconds / $measure * 1e6;
        }
    }
    ok 1, 'measured';
    done_testing;
    exit;
}

for my $kind (sort keys %target) {
    my $good = session_id($session{$kind});
    my $looked = sub {
        my ($from) = @_;
        my $log = $nginx{$kind}->log($from);
        return { (map { my $status = $_; ($status => scalar(() = $log =~ /SSL session fetch [0-9a-f]{8}: $status/g)) } qw(FORGED FOREIGN)),
            found => $log =~ /: is good, made/ ? 1 : 0 };
    };

    my %many = (FORGED => \&forged, FOREIGN => \&foreign);
    for my $status (sort keys %many) {
        subtest "$kind: many tickets that are $status" => sub {
            my $hello = hello($kind, $session{$kind}, map { $many{$status}->() } 1 .. MANY);
            cmp_ok length $hello, '>', 27_000, 'much of what is read ahead';
            my $from = $nginx{$kind}->log_pos;
            is answered($kind, $hello), 'ServerHello', 'a full handshake';
            ok $nginx{$kind}->log_like(qr/SSL session fetch [0-9a-f]{8}: $status/, from => $from), 'they are';
            is_deeply $looked->($from), { FORGED => 0, FOREIGN => 0, found => 0, $status => MAX_UNKNOWN }, 'a few were looked at';
        };
    }

    for my $before (0, 1, MAX_UNKNOWN - 1, MAX_UNKNOWN, MANY - 1) {
        my $found = $before < MAX_UNKNOWN;
        subtest "$kind: one of ours behind $before forged ones: " . ($found ? 'found' : 'not found') => sub {
            my $from = $nginx{$kind}->log_pos;
            my $hello = hello($kind, $session{$kind}, (map { forged() } 1 .. $before), $good);
            # The binder is wrong, which shows only if there is a session.
            is answered($kind, $hello), $found ? 'alert' : 'ServerHello', $found ? 'its binder is looked at' : 'a full handshake';
            is $looked->($from)->{found}, $found ? 1 : 0, 'as the log has it';
        };
    }
}

subtest 'all of this has harmed nobody' => sub {
    for my $kind (sort keys %target) {
        is tls_client(port => $port{$kind}, protocol => 'TLSv1.3', session => $session{$kind})->request, 'HIT', "$kind: resumed";
        is_deeply [ $nginx{$kind}->errors(warn => 1, except => qr/SSL_do_handshake\(\) failed/) ], [], 'no other error in the log';
    }
};

done_testing;
