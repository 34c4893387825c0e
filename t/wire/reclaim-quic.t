# As reclaim.t, over QUIC. There nginx may close a client from its first packet on, so each callback
# of OpenSSL's in a handshake ("get", "new", "remove") may run for a client that nginx closes.

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

# nginx closes idle clients when a sixteenth of the connections, or less, is free. That is enough
# for the streams of one client, each of which is a connection.
use constant { CONNECTIONS => 256, RESERVE => 256 / 16 };

# See quic.t. Where handshakes cannot wait, the store is not asked for sessions and gets none, but
# sessions are removed from it.
my ($openssl) = $said =~ /running with OpenSSL (\d+\.\d+)/ ? $1 : $said =~ /built with OpenSSL (\d+\.\d+)/;
my $waits = nginx_version() < 1_029_000 || $openssl < 3.5 || $ENV{TEST_NGINX_PATCHED};

my $certs = certs();
my $redis = redis();
# A name server that never answers: nginx knows the address of "localhost" from its configuration.
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

# The answer to a client, or the error.
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

# Files with sessions of that server.
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

# Whether something that was sent to that port is not read yet.
sub unread {
    my $port = sprintf ':%04X', @_;
    return grep { $_->[1] =~ /$port$/ && $_->[4] !~ /:0+$/ } map { [ split ] } split /\n/, slurp('/proc/net/tcp');
}

# Leaves the worker with the reserve and one connection more, for the client: the next one closes
# idle clients. Those that are made here are not idle, as their handshakes have begun. Each is a
# socket, as are those that nginx listens on and its channel to the master.
sub fill {
    my ($nginx, $port) = @_;
    my $wanted = CONNECTIONS - RESERVE - 1;
    my @fill = map {
        my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) // die $@;
        syswrite $sock, "\x16";
        $sock;
    } 1 .. $wanted - $nginx->sockets;
    wait_until { $nginx->sockets == $wanted && !unread($port) } 5, 'a worker with one free connection';
    return @fill;
}

# Why there is no connection to the store. Each gets the relay to the store, nginx, and a function
# that makes nginx store sessions.
my %store = (
    'not connected yet' => { is => sub { } },
    'not connected yet, and its name is to be resolved' => { host => 'localhost', is => sub { } },
    'whose connection was closed' => { is => sub {
        my ($relay, $nginx, $ask) = @_;
        my $before = $nginx->sockets;
        my $keys   = $redis->keys;
        $ask->();
        wait_until { $redis->keys >= $keys + 2 && $nginx->sockets == $before + 1 } 5, 'its sessions in the store';
        $redis->cmd(qw(CLIENT KILL TYPE normal));
        wait_until { $nginx->sockets == $before } 5, 'the end of the connection to the store';
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

# For each callback: a client that makes OpenSSL call it, given a session, and what the client sees.
# nginx may close the client as soon as OpenSSL has returned, with an error of its own.
my $answered = qr/^r HIT$|^\. \w*$|^ConnectionError 0x0 graceful shutdown$/;
my %call = (
    # Without early data in the session, --early only makes aioquic tell the error of a handshake.
    get => { visit => sub { visit($_[0], '--session', $_[1], '--early') }, sees => $answered },
    new => { visit => sub { visit($_[0]) }, sees => $answered },
    # decrypt_error (RFC 9001, section 4.8). Handshakes that cannot wait resume sessions of a zone
    # only.
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
                # The next worker finds them in the zone, and is not connected to the store.
                @sessions = sessions($port, 2);
                my $own = $nginx->sockets;
                $nginx->reload(conf($port, $server, $zone, "$zone store"));
                # At first it has the channel of the old one, too.
                wait_until { !$nginx->old_workers && $nginx->sockets == $own } 10, 'the end of the old worker';
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
