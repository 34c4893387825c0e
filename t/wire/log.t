# What the error log says of a handshake and of a store: what was being done, for whom, and where.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $ms    = 500 * patience();

# An nginx with a log of that level, and with that certificate.
sub site {
    my ($log, $fetch, $cert) = (@_, 'ec');
    my $port  = free_port();
    my $nginx = nginx(log => $log, conf => <<"CONF");
    ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; fetch_timeout ${ms}ms; connect_timeout ${ms}ms; }
    ssl_session_fetch $fetch;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{"${cert}_crt"};
    ssl_certificate_key $certs->{"${cert}_key"};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
CONF
    return ($port, $nginx);
}

sub visit {
    my ($port, $protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return ($status, $client);
}

sub stored {
    my ($port, $protocol) = @_;
    my (undef, $client) = visit($port, $protocol);
    my $session = ($client->sessions)[0];
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

my ($debug_port, $debugged) = site('debug', 'shared:near:1m store');
for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: the debug log tells of a handshake" => sub {
        my $session = stored($debug_port, $protocol);
        plan skip_all => 'nginx has no debug log' if $debugged->log !~ /\[debug\]/;
        my $from = $debugged->log_pos;
        my ($status) = visit($debug_port, $protocol, $session);
        is $status, 'HIT', 'resumed';
        my @all   = grep { /SSL session/ } split /\n/, substr $debugged->log, $from;
        my ($c)   = $all[0] =~ /\[debug\] \d+#\d+: (\*\d+) /;
        my ($id)  = map { /fetch ([0-9a-f]{8}): asked/ } @all;
        my @story = map { s/.*?\Q$c\E //r =~ s/$id/HASH/r =~ s/\b\d+ (us|bytes|s)\b/N $1/gr } grep { /: \Q$c\E / } @all;
        is_deeply [ grep { !/store/ || /fetch/ } @story ], [
            'SSL session fetch: 1 session IDs to look up',
            'SSL session fetch HASH: MISS in "shared:near", N bytes, N us',
            'SSL session fetch HASH: asked "store"',
            'SSL session fetch: handshake suspended',
            'SSL session fetch HASH: HIT in "store", N bytes, N us',
            'SSL session fetch: HIT in N us',
            'SSL session fetch: handshake goes on',
            'SSL session fetch HASH: is good, made N s ago',
            'SSL session: resumed handshake, HIT in N us',
        ], 'from the ClientHello to its end';
        like $story[-1], qr/^SSL session store [0-9a-f]{8}: N bytes for N s$/, 'and of the new ticket' if $protocol eq 'TLSv1.3';
        my $named = unpack 'H*', session_id($session);
        is index($debugged->log, $named), -1, 'the ID is not in it';
    };
}

subtest 'a line about a client' => sub {
    my ($port, $nginx) = site('info', 'store');
    my $session = stored($port, 'TLSv1.2');
    $redis->cmd('SET', cache_key($session), 'rubbish');
    my ($status) = visit($port, 'TLSv1.2', $session);
    is $status, 'CORRUPT', 'an entry that is of no use';
    my $line = $nginx->log_like(qr/corrupt SSL session/);
    like $line, qr/\[error\] \d+#\d+: \*\d+ corrupt SSL session [0-9a-f]{8} in "store", redis \Q127.0.0.1:${\ $relay->port}\E, 1 times: too short for an envelope while fetching SSL session, client: 127\.0\.0\.1, server: 127\.0\.0\.1:$port$/,
        'says why, what was done, for whom, and where it was';
    (undef, my $client) = visit($port, 'TLSv1.2');
    $client->close;
    is $nginx->log_count(qr/closed connection .*while fetching/), 0, 'lines of nginx are as they were';
};

subtest 'a session that is found and of no use here' => sub {
    my ($port, $nginx) = site('info', 'store');
    my ($other, $second) = site('info', 'store', 'rsa');
    my $session = stored($port, 'TLSv1.3');
    my ($status, $client) = visit($other, 'TLSv1.3', $session);
    is $status, 'HIT', 'found';
    ok !$client->reused, 'and not resumed';
    like $second->log_like(qr/was found and not resumed/), qr/\[info\] \d+#\d+: \*\d+ SSL session was found and not resumed: it is of another certificate, or of other settings while fetching SSL session, client: 127\.0\.0\.1, server: 127\.0\.0\.1:$other$/,
        'is told';
};

subtest 'lines about a server' => sub {
    my $ended = sub {
        my ($nginx, $action, $what) = @_;
        my $line = eval { $nginx->log_like($what) };
        like $line, qr/$what.*? while $action, backend: "store"$/, $action;
    };
    my $acl = redis(conf => ['requirepass secret']);
    my ($unused, $nginx) = site('notice', 'store');
    my $session = stored($unused, 'TLSv1.2');

    $relay->drop;
    is +(visit($unused, 'TLSv1.2', $session))[0], 'TIMEOUT', 'no answer';
    $ended->($nginx, 'fetching SSL session', qr/\[error\] \d+#\d+: redis \S+ is down: no answer within \d+ ms/);
    $relay->drop(0);
    wait_until { (visit($unused, 'TLSv1.2', $session))[0] eq 'HIT' } 10, 'a hit';
    like $nginx->log_like(qr/is up again/), qr/ redis \S+ is up again, backend: "store"$/, 'and back';

    my $case = sub {
        my ($address, $more, $action, $what) = @_;
        my $port = free_port();
        my $one = nginx(log => 'notice', conf => <<"CONF");
    ssl_session_backend store { server $address; connect_timeout ${ms}ms; $more }
    ssl_session_fetch off;
    ssl_session_store store;
    ssl_session_tickets off;
    server { listen 127.0.0.1:$port ssl; ssl_certificate $certs->{ec_crt}; ssl_certificate_key $certs->{ec_key}; location / { return 200 ok; } }
CONF
        visit($port, 'TLSv1.2');
        $ended->($one, $action, $what);
    };
    my $own = '127.0.0.1:' . free_port();
    $case->($own, '', 'connecting to backend', qr/redis \Q$own\E is down: connect\(\) failed/);
    $case->($redis->address, 'ssl on;', 'SSL handshaking to backend', qr/redis \S+ is down: SSL handshake (?:failed: |timed out)/);
    my $password = spew(tmpdir() . '/password', 'wrong');
    chmod 0600, $password;
    $case->($acl->address, "password_file $password;", 'greeting backend', qr/redis \S+ is down: server refused: "WRONGPASS/);
    $case->($acl->address, '', 'storing SSL session', qr/redis \S+ refused 1 requests, the last with "NOAUTH /);
};

done_testing;
