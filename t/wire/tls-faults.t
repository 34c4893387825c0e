# Servers with which no TLS handshake comes about: no client notices, the log says why, once, and
# the server is used again when it is all right.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my $connect_timeout = 400 * patience();

# http{} with a TLS server on $port whose sessions are at $server.
sub conf {
    my ($port, $server, @more) = @_;
    return <<"CONF";
    ssl_session_backend store {
        server $server;
        connect_timeout ${connect_timeout}ms;
        fetch_timeout ${\ (5 * $connect_timeout)}ms;
        ssl on;
        ssl_trusted_certificate $certs->{ca_crt};
        @more
    }
    ssl_session_fetch store;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time";
        }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $time) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return ($status, $time, $client);
}

sub wait_for_hit {
    my ($port, $session) = @_;
    return wait_until {
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
        ($client->request // '') =~ /^HIT/;
    } 20, 'a hit';
}

# The store, and the port where nginx looks for it over TLS: behind it is what a test puts there.
my $redis  = redis(tls => 1);
my $there  = free_port();
my $server = "127.0.0.1:$there";
my $port   = free_port();
my $good   = sub { tls_relay(port => $there, upstream => $redis->address) };
my $now    = $good->();
my $nginx  = nginx(conf => conf($port, $server));
my $down   = qr/\[error\] \d+#\d+: redis \Q$server\E is down: /;

my $session = do {
    my (undef, undef, $client) = visit($port);
    wait_until { $redis->cmd('EXISTS', cache_key($client->session)) } 5, 'the session in the store';
    $client->session;
};
wait_for_hit($port, $session);
my $fds = $nginx->fds;

# Puts another server there, makes clients come, and the right one back. $outcome is that of the
# lookup that waits while the handshake fails; @more are directives.
sub fault {
    my ($what, $make, $text, $outcome, @more) = @_;
    subtest $what => sub {
        $now->stop;
        $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
        $now = $make->();
        # A new worker has nothing to do with what was before.
        $nginx->reload(conf($port, $server, @more));
        wait_until { !$nginx->old_workers } 10, 'exit of the old worker';
        my $from  = $nginx->log_pos;
        my $start = time;
        my ($status) = visit($port, session => $session);
        like $status, qr/^$outcome$/, 'outcome';
        cmp_ok time - $start, '<', 3 * $connect_timeout / 1000, 'in time';
        $nginx->log_like(qr/$down/, from => $from);
        for (1 .. 5) {
            my ($status, $time) = visit($port, session => $session);
            is $status, 'DOWN', 'then it is not asked';
        }
        # A probe fails, too, and says nothing.
        wait_until { visit($port); $nginx->log_count(qr/ is still down: /, from => $from) } 10, 'a probe'
            if $nginx->log =~ /\[debug\]/;
        my ($line, @more) = $nginx->errors(from => $from, warn => 1, except => qr/SSL sessions? not stored in "store"/);
        like $line, qr/$down(?:$text)$doing$/, 'the log says why';
        is_deeply \@more, [], 'in one line';

        $now->stop;
        $now = $good->();
        wait_for_hit($port, $session);
        is $nginx->log_count(qr/\[notice\] .*redis \Q$server\E is up again$doing$/, from => $from), 1, 'used again';
        wait_until { $nginx->fds <= $fds } 5, 'the descriptors of before';
        pass 'no descriptor is left';
    };
}

my $failed = 'SSL handshake failed: ';
my $said   = sub { my ($text) = @_; return qr/${failed}SSL_do_handshake\(\) failed \(SSL: error:[0-9A-F]+:SSL routines:\w*:$text\)/ };
my $closed = qr/${failed}peer closed connection in SSL handshake(?: \(104: Connection reset by peer\))?/;

# A relay in front of a redis-server with TLS, to which something is done.
my $relayed = sub {
    my ($do) = @_;
    return sub {
        my $relay = relay(port => $there, upstream => '127.0.0.1:' . $redis->tls_port);
        $do->($relay);
        return $relay;
    };
};
my $canned = sub { my @reply = @_; return sub { fake_server(port => $there, canned => [@reply]) } };

fault('a server without TLS', $canned->("-ERR unknown command\r\n"), $said->('wrong version number'), 'ERROR');
fault('one that speaks first', sub { fake_server(port => $there, on_connect => "+hello\r\n", canned => []) },
    $said->('wrong version number'), 'ERROR');
# It answers if it takes a random byte for the end of a line.
fault('redis-server without TLS', sub { redis(port => $there) },
    qr/${\ $said->('wrong version number')}|SSL handshake timed out/, 'ERROR|TIMEOUT');

fault('a server of TLS 1.0 alone', sub { tls_relay(port => $there, upstream => $redis->address,
    protocol => 'TLSv1', ciphers => 'ALL:@SECLEVEL=0') },
    $said->('(?:tlsv1 alert protocol version:SSL alert number 70|unsupported protocol)'), 'ERROR');
fault('a server of TLS 1.3 for a client of TLS 1.2', sub { tls_relay(port => $there, upstream => $redis->address,
    protocol => 'TLSv1.3') }, $said->('tlsv1 alert protocol version:SSL alert number 70'), 'ERROR', 'ssl_protocols TLSv1.2;');
fault('no common cipher', sub { tls_relay(port => $there, upstream => $redis->address,
    protocol => 'TLSv1.2', ciphers => 'ECDHE-ECDSA-AES128-GCM-SHA256') },
    $said->('(?:sslv3|tls) alert handshake failure:SSL alert number 40'), 'ERROR', 'ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384;');
fault('no common cipher of TLS 1.3', sub { tls_relay(port => $there, upstream => $redis->address,
    protocol => 'TLSv1.3', ciphersuites => 'TLS_AES_128_GCM_SHA256') },
    $said->('(?:sslv3|tls) alert handshake failure:SSL alert number 40'), 'ERROR',
    'ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;');
fault('an alert', $canned->("\x15\x03\x03\x00\x02\x02\x50"), $said->('tlsv1 alert internal error:SSL alert number 80'), 'ERROR');
fault('an impossible message', $canned->("\x16\x03\x03\x00\x04\x02\x00\x00\x00"), $said->('[^)]*'), 'ERROR');
fault('a record too long', $canned->("\x16\x03\x03\xff\xff" . 'x' x 70_000), $said->('[^)]*(?:length|long)[^)]*'), 'ERROR');

fault('silence', $canned->(), 'SSL handshake timed out', 'TIMEOUT');
fault('a server that hangs', sub { my $server = $good->(); $server->pause; $server }, 'SSL handshake timed out', 'TIMEOUT');
fault('a handshake that takes too long', $relayed->(sub { $_[0]->drip; $_[0]->delay(0.6 * $connect_timeout) }), 'SSL handshake timed out', 'TIMEOUT');
fault("silence after $_ bytes", $relayed->(sub { my ($relay) = @_; $relay->stall($_) }), 'SSL handshake timed out', 'TIMEOUT')
    for 3, 600;

fault('closed at once', $relayed->(sub { $_[0]->refuse }), $closed, 'ERROR');
# The beginning of a ServerHello.
my $hello = "\x16\x03\x03\x02\xbc\x02\x00\x02\xb8\x03\x03" . 'x' x 100;
for my $bytes ('', substr($hello, 0, 1), substr($hello, 0, 5), $hello) {
    my $n = length $bytes;
    my $end = $n == 1 || $n > 5 ? 'reset' : 'close';
    fault("$end after $n bytes", $canned->({ bytes => $bytes, $end => 1 }), $closed, 'ERROR');
}

subtest 'a link that ends at any point of the handshake, or right after it' => sub {
    $now->stop;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $tls = tls_relay(upstream => $redis->address, protocol => $protocol);
        $now = relay(port => $there, upstream => $tls->address);
        for my $bytes (100, 700, 900, 1000, 1100, 1300) {
            for my $end ($bytes % 200 ? 'cut' : 'reset_after') {
                $nginx->reload(conf($port, $server));
                wait_until { !$nginx->old_workers } 10, 'exit of the old worker';
                my $from = $nginx->log_pos;
                $now->$end($bytes);
                my ($status) = visit($port, session => $session);
                $status =~ /^(?:ERROR|HIT)$/ or is $status, 'ERROR or HIT', 'outcome';
                wait_for_hit($port, $session);
                my @lines = $nginx->errors(from => $from, except => qr/ is down: (?:$closed|server closed connection)$doing$|server closed connection \(1 times\)$doing$/);
                is_deeply \@lines, [], "$protocol, $end($bytes): nothing else in the log";
            }
        }
        $now->stop;
    }
    wait_until { $nginx->fds <= $fds } 5, 'the descriptors of before';
};

subtest 'hundreds of handshakes that fail leave nothing behind' => sub {
    my $rounds = $ENV{TEST_NGINX_USE_VALGRIND} ? 4 : 200;
    my %server = (
        'without TLS' => [ $canned->("-ERR unknown command\r\n"), $said->('wrong version number') ],
        'self-signed' => [ sub { tls_relay(port => $there, upstream => $redis->address, cert => 'backend_self') },
            qr/${failed}certificate verify error: \(18:self-signed certificate\)/ ],
    );
    for my $what (sort keys %server) {
        my ($make, $text) = @{ $server{$what} };
        $now = $make->();
        # This one never counts as down.
        my $nginx = nginx(log => 'notice', conf => conf(my $port = free_port(), "$server max_fails=0"));
        my $start = time;
        my $once  = sub {
            my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
            $client->request =~ /^ERROR/ or die 'not refused';
        };
        $once->() for 1 .. $rounds;
        my $fds = $nginx->fds;
        # The allocator settles late now and then; what leaks grows each time.
        my $grown;
        for (1 .. 4) {
            my $rss = $nginx->rss;
            $once->() for 1 .. $rounds;
            $grown = $nginx->rss - $rss;
            last if $grown <= 40;
        }
        cmp_ok $grown, '<=', 40, "$what: memory stays" unless $ENV{TEST_NGINX_USE_VALGRIND};
        # The second line comes a second after the first.
        $once->() while time - $start < 2;
        wait_until { $nginx->fds <= $fds } 5, 'the end of the last connection';
        $nginx->quit;
        my @lines = $nginx->errors(warn => 1);
        is_deeply [ grep { !/redis \Q$server\E: $text \(\d+ times\)$doing$|SSL sessions? not stored in/ } @lines ], [], 'each line says why';
        my ($times) = (0);
        $times += /\((\d+) times\)$doing$/ ? $1 : 0 for @lines;
        cmp_ok $times, '>', 1, 'and how often';
        cmp_ok scalar(grep { /times\)$doing$/ } @lines), '<=', 2 + time - $start, 'one a second at most';
        $now->stop;
    }
};

done_testing;
