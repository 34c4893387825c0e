# As reclaim.t, over QUIC: there nginx may end a client from its first packet on, all through the
# handshake. So whatever OpenSSL asks for in it ("get", "new", "remove") can end the client that it is
# about.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use JSON::PP qw(decode_json);
use Test::More;
use Time::HiRes qw(time);

my $said = `'@{[ nginx_binary() ]}' -V 2>&1`;
plan skip_all => 'this nginx has no HTTP/3' if $said !~ /--with-http_v3_module/;
my $python = `@{[ root() ]}/tools/quic-client 2>/dev/null`;
plan skip_all => 'no client of HTTP/3 (tools/quic-client)' if $?;
chomp $python;

# A worker with so many of them looks for idle ones when no more than a sixteenth is free: each stream
# of a client's takes one of those.
use constant { CONNECTIONS => 256, RESERVE => 256 / 16 };

# See quic.t: where handshakes cannot wait, nothing is looked up or stored elsewhere, only removed.
my ($openssl) = $said =~ /running with OpenSSL (\d+\.\d+)/ ? $1 : $said =~ /built with OpenSSL (\d+\.\d+)/;
my $waits = nginx_version() < 1_029_000 || $openssl < 3.5 || $ENV{TEST_NGINX_PATCHED};

my $certs = certs();
my $redis = redis();
# It never answers, and need not: what a name stands for is known from the start.
my $dns   = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'udp') or die $@;

sub conf {
    my ($port, $server, $fetch, $store) = @_;
    my $resolver = $server =~ /^localhost/ ? 'resolver 127.0.0.1:' . $dns->sockport . ';' : '';
    return <<"CONF";
    $resolver
    ssl_session_backend store { server $server; fetch_timeout ${\ (5000 * patience()) }ms; }
    ssl_session_fetch   $fetch;
    ssl_session_store   $store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.3;
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port quic;
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status"; }
    }
CONF
}

# The answer that a client gets, or why it gets none.
sub visit {
    my ($port, @args) = @_;
    my $out = new_dir('quic') . '/out';
    my $process = SSLSession::Process->spawn(name => 'quic', out => $out,
        cmd => [ $python, root() . '/t/lib/quic_client.py', $port, '/', @args ]);
    $process->wait_exit(60);
    my ($json) = slurp($out) =~ /^(\{.*\})$/m;
    my $seen = $json ? decode_json($json) : { error => slurp($out) };
    return $seen->{body} // $seen->{error};
}

# Files with sessions that a server has given.
my $files = 0;

sub sessions {
    my ($port, $n) = @_;
    return map {
        my $file = tmpdir() . '/session' . $files++;
        my $seen = visit($port, '--save', $file);
        $seen eq '. ' or die $seen;
        $file;
    } 1 .. $n;
}

# How many connections the worker has but for those over QUIC: each is a socket.
sub connections {
    my ($nginx) = @_;
    my ($worker) = $nginx->workers;
    return scalar grep { /^socket:/ } map { readlink // '' } glob "/proc/$worker/fd/*";
}

# Whether there is something that nginx has not read of what was sent to a port.
sub unread {
    my $port = sprintf ':%04X', @_;
    return grep { $_->[1] =~ /$port$/ && $_->[4] !~ /:0+$/ } map { [ split ] } split /\n/, slurp('/proc/net/tcp');
}

# Takes what the worker has left, but for the reserve and one more, by handshakes that have begun:
# they are not idle.
sub fill {
    my ($nginx, $port) = @_;
    my $wanted = CONNECTIONS - RESERVE - 1;
    my @fill = map {
        my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) // die $@;
        syswrite $sock, "\x16";
        $sock;
    } 1 .. $wanted - connections($nginx);
    wait_until { connections($nginx) == $wanted && !unread($port) } 5, 'a worker with one free connection';
    return @fill;
}

# How the way to the store is: each is given a relay to it, and what makes the worker ask there.
my %store = (
    'not connected yet' => { is => sub { } },
    'not connected yet, and its name is to be resolved' => { host => 'localhost', is => sub { } },
    'whose connection was closed' => { is => sub {
        my ($relay, $nginx, $ask) = @_;
        my $before = connections($nginx);
        my $keys   = $redis->keys;
        $ask->();
        wait_until { $redis->keys >= $keys + 2 && connections($nginx) == $before + 1 } 5, 'its sessions in the store';
        $redis->cmd(qw(CLIENT KILL TYPE normal));
        wait_until { connections($nginx) == $before } 5, 'the end of the connection to the store';
    } },
    'that is down, and a probe is due' => { is => sub {
        my ($relay, $nginx, $ask) = @_;
        $relay->refuse;
        $ask->();
        $nginx->log_like(qr/ is down: /);
        my $due = time + 0.1;
        wait_until { time > $due } 1, 'the pause before a probe';
    } },
);

# When OpenSSL calls: what its client does then, given a session, and has to see. nginx may end the
# client as soon as OpenSSL has returned, and says so.
my $answered = qr/^r HIT$|^\. \w*$|^ConnectionError 0x0 graceful shutdown$/;
my %call = (
    # There is no early data, but aioquic tells what ends a handshake only to who does not wait for one.
    get => { visit => sub { visit($_[0], '--session', $_[1], '--early') }, sees => $answered },
    new => { visit => sub { visit($_[0]) }, sees => $answered },
    # decrypt_error (RFC 9001, section 4.8). The session comes from a zone, as it does everywhere.
    remove => { visit => sub { visit($_[0], '--session', $_[1], '--bad-finished') }, sees => qr/^ConnectionError 0x133 /,
        zone => 'shared:near:1m' },
);
delete @call{qw(get new)} if !$waits;

my $others = free_port();
my $relay  = relay(upstream => '127.0.0.1:' . $redis->port);
my $nginx  = nginx(conf => conf($others, '127.0.0.1:' . $relay->port, 'store', 'store'));
my @known  = $waits ? (sessions($others, 1)) x 2 : ();

for my $call (sort keys %call) {
    my ($visit, $sees, $zone) = @{ $call{$call} }{qw(visit sees zone)};
    for my $store (sort keys %store) {
        subtest "$call; a store $store" => sub {
            my $port   = free_port();
            my $relay  = relay(upstream => '127.0.0.1:' . $redis->port);
            my $server = ($store{$store}{host} // '127.0.0.1') . ':' . $relay->port;
            my ($fetch, @more) = $zone // 'store';
            my $nginx  = nginx(events => 'worker_connections ' . CONNECTIONS . ';', conf => conf($port, $server, $fetch, $fetch));
            my @sessions = @known;
            if ($zone) {
                # A worker that has not asked the store yet finds them in the zone.
                @sessions = sessions($port, 2);
                my $own = connections($nginx);
                $nginx->reload(conf($port, $server, $zone, "$zone store"));
                # At first it also has the old one's channel.
                wait_until { !$nginx->old_workers && connections($nginx) == $own } 10, 'the end of the old worker';
            }
            my ($worker) = $nginx->workers;
            $store{$store}{is}->($relay, $nginx, sub { tls_client(port => $port)->request });
            my @fill = fill($nginx, $port);
            my $first = $visit->($port, $sessions[0]);
            like $first, $sees, 'the client is told';
            note $first;
            is_deeply [ $nginx->workers ], [$worker], 'the worker lives';
            $_->close for @fill;
            $relay->refuse(0);
            my $seen;
            ok eval { wait_until { ($seen = visit($port, '--session', $sessions[1])) =~ /^r HIT/ } 5 }, 'another one is resumed' or diag $seen;
            is_deeply [ $nginx->workers ], [$worker], 'by the same worker';
            $nginx->quit;
            is_deeply [ $nginx->errors(except => qr/SSL_do_handshake\(\) failed|redis \S+ is down: /) ], [], 'no error in the log';
        };
    }
}

done_testing;
