# A real memcached as a backend.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use List::Util qw(uniq);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my @both  = qw(TLSv1.2 TLSv1.3);
my %port;

# An nginx with a backend of these servers, or with a URL; http => lines of http{}.
sub edge {
    my ($servers, %line) = @_;
    my $port   = free_port();
    my $http   = delete $line{http} // '';
    my $fetch  = delete $line{fetch} // '';
    my $wait   = 3 * patience() . 's';
    my $target = ref $servers ? 'store' : $servers;
    %line = (connect_timeout => $wait, fetch_timeout => $wait, %line, protocol => 'memcached');
    my @lines  = ((map { "server $_;" } ref $servers ? @$servers : ()), map { "$_ $line{$_};" } sort keys %line);
    my $block  = ref $servers ? "ssl_session_backend store { @lines }" : '';
    my $nginx = nginx(conf => <<"CONF");
    $block
    $http
    ssl_session_fetch   $target $fetch;
    ssl_session_store   $target;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_verify_client   optional_no_ca;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    $port{$nginx} = $port;
    return $nginx;
}

sub client {
    my ($edge, $session, %arg) = @_;
    return tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $session, %arg);
}

sub answer {
    my ($client) = @_;
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, and yet reused" if $status ne 'HIT' && $client->reused;
    return $status;
}

sub new_session { my $client = client(@_); answer($client); return $client->session }
sub status      { return answer(client(@_)) }

# Waits for a hit with one session, or with new ones; returns the session.
sub hit      { my @of = @_; wait_until { status(@of) eq 'HIT' } 10, 'a hit'; return $of[1] }
sub good_session {
    my ($edge, undef, %arg) = @_;
    my $session;
    wait_until { $session = new_session($edge, undef, %arg); status($edge, $session, %arg) eq 'HIT' } 10, 'a hit';
    return $session;
}

sub logged {
    my ($edge, $pattern, $what, %arg) = @_;
    like eval { $edge->log_like($pattern, %arg) }, $pattern, $what;
}

# Lines of [error] and above but for those expected.
sub no_other_errors {
    my ($edge, $except) = @_;
    my @lines = $edge->errors(except => $except // qr/\A(?!)/);
    is_deeply \@lines, [], 'nothing else in the log';
}

# Ended in order it takes up to a second: at the end of the test they are killed.
my @servers;

sub server {
    push @servers, memcached(@_);
    return $servers[-1];
}

my $memcached = server();
my $address   = $memcached->address;

subtest 'two nginx share sessions' => sub {
    my $socket = server(unix => 1);
    for my $server ($memcached, $socket) {
        my @edges = (edge([ $server->address ]), edge($server->url));
        for my $protocol (@both) {
            for my $pair ([0, 1], [1, 0]) {
                my ($from, $to) = @edges[@$pair];
                my $session = good_session($from, undef, protocol => $protocol);
                # A URL has the short timeouts that a busy machine may miss.
                hit($to, $session, protocol => $protocol);
                ok defined $server->get(cache_key($session)), "$protocol: a session from " . ($server->unix // 'TCP');
            }
        }
        my $gone = good_session($edges[0]);
        $server->cmd('md ' . cache_key($gone));
        is status($edges[0], $gone), 'MISS', 'an entry that is gone is a miss';
        no_other_errors($edges[0]);
    }
};

subtest 'an entry lives as long as its session' => sub {
    my $day = 24 * 60 * 60;
    for my $case ([ 300, 300 ], [ 5 * $day, 5 * $day ], [ 400 * $day, 7 * $day ]) {
        my ($timeout, $seconds) = @$case;
        my $edge = edge([$address], key_prefix => 'site:', http => "ssl_session_timeout ${timeout}s; ssl_session_lifetime 7d;");
        for my $protocol (@both) {
            my $start   = time;
            my $session = new_session($edge, undef, protocol => $protocol);
            my $key     = cache_key($session) =~ s/^tls:/site:/r;
            wait_until { defined $memcached->get($key) } 5, 'the entry';
            # A point in time is in whole seconds of two clocks.
            my $least = $seconds - (time - $start) - 3;
            my $left  = $memcached->ttl($key);
            ok $left > $least && $left <= $seconds + 2, "$protocol: $left seconds of $seconds are left";
            is status($edge, $session, protocol => $protocol), 'HIT', 'it is found';
        }
    }
};

subtest 'a session that looks like answers and requests' => sub {
    my $dir = new_dir('cert');
    my $cn  = "x\r\nEN\r\nVA 4\r\nabcd\r\nmd x\r\nflush_all\r\n";
    my @req = qw(req -x509 -nodes -days 30 -newkey ec -pkeyopt ec_paramgen_curve:P-256);
    system('openssl', @req, '-subj', "/CN=$cn", '-keyout', "$dir/key", '-out', "$dir/crt") == 0 or die;
    my $edge = edge([$address], http => 'ssl_session_key off;');
    for my $protocol (@both) {
        my %arg = (protocol => $protocol, cert => "$dir/crt", key => "$dir/key");
        my $session = good_session($edge, undef, %arg);
        like $memcached->get(plain_key($session)), qr/\Q$cn\E/, "$protocol: it is stored as it is, and resumed";
    }
    no_other_errors($edge);
};

subtest 'what is corrupt or withdrawn is removed' => sub {
    my $edge = edge([$address]);
    my %make = (
        garbage => sub { 'garbage' },
        empty   => sub { '' },
        cut     => sub { substr $_[0], 0, -1 },
        large   => sub { 'x' x 16_415 },
        huge    => sub { "EN\r\n" x 200_000 },
    );
    for my $what (sort keys %make) {
        my $session = good_session($edge);
        my $key     = cache_key($session);
        $memcached->set($key, $make{$what}->($memcached->get($key)), 60);
        my $connections = $memcached->stats('total_connections');
        is status($edge, $session), 'CORRUPT', "$what: the outcome";
        wait_until { !defined $memcached->get($key) } 5, 'the removal';
        is status($edge, $session), 'MISS', 'then it is gone';
        # What lies behind a long one is not waited for.
        is $memcached->stats('total_connections') - $connections, $what eq 'huge' ? 1 : 0, 'over the same connection, or another';
    }
    my $session = good_session($edge);
    my $client  = client($edge, $session, handshake => 1);
    ok $client->reused, 'a session in use';
    # It does not decrypt: OpenSSL answers with a fatal alert and drops the session.
    $client->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64);
    wait_until { !defined $memcached->get(cache_key($session)) } 5, 'the removal';
    is status($edge, $session), 'MISS', 'is gone after a fatal alert';
    no_other_errors($edge, qr/corrupt SSL session|SSL_read\(\) failed/);
};

subtest 'single_use' => sub {
    my $without_cas = server(args => ['-C']);
    for my $server ($memcached, $without_cas) {
        my $edge = edge([ $server->address ], fetch => 'single_use');
        my @tls13 = (protocol => 'TLSv1.3');
        my $session = good_session($edge, undef, @tls13);
        is status($edge, $session, @tls13), 'MISS', 'taken once';
        $session = good_session($edge);
        is status($edge, $session), 'HIT', 'TLS 1.2 is read';
        no_other_errors($edge);
    }
};

# Stores that the server refuses: the log has its words, once a second, and nothing gets out of step.
sub refuses_stores {
    my ($server, $words, $store) = @_;
    my $edge  = edge([ $server->address ]);
    my $small = good_session($edge);
    my $connections = $server->stats('total_connections');
    my $line  = qr/\[error\] \d+#\d+: memcached 127\.0\.0\.1:\d+ refused \d+ requests, the last with "$words"$doing$/;
    my $start = time;
    my @new   = $store->($edge);
    logged($edge, $line, 'the log has the words');
    cmp_ok $edge->log_count($line), '<=', 1 + time - $start, 'once a second at most';
    is_deeply [ uniq map { status($edge, $_) } @new ], ['MISS'], 'what was refused is missing';
    is status($edge, $small), 'HIT', 'what was there is a hit';
    is $server->stats('total_connections'), $connections, 'over the same connection';
    no_other_errors($edge, $line);
    return $edge;
}

subtest 'an item that is too large for the server' => sub {
    my $server = server(item_size => 2048, args => [qw(-o slab_chunk_max=1024)]);
    my @big    = (cert => $certs->{client_big_crt}, key => $certs->{client_big_key});
    my $edge = refuses_stores($server, 'SERVER_ERROR object too large for cache',
        sub { my ($edge) = @_; map { new_session($edge, undef, @big) } 1 .. 10 });
    is status($edge, good_session($edge)), 'HIT', 'smaller ones are stored';
};

subtest 'a server without memory' => sub {
    my $server = server(memory => 2, args => [qw(-M -I 512k -o slab_chunk_max=262144)]);
    refuses_stores($server, 'SERVER_ERROR out of memory storing object', sub {
        my ($edge) = @_;
        my $size = length $server->get(cache_key(good_session($edge)));
        my $fill = 0;
        for my $n ($size - 8 .. $size + 8) {
            my ($value, $out) = ('x' x $n, '');
            until ($out =~ /SERVER_ERROR out of memory/) {
                my @set = map { sprintf "ms tls:%043d %d q\r\n%s\r\n", $fill++, $n, $value } 1 .. 500;
                $out = $server->raw(join '', @set);
                die $out if $fill > 200_000;
            }
        }
        return map { new_session($edge) } 1 .. 10;
    });
};

subtest 'servers that are not for us' => sub {
    my $file = spew(tmpdir() . '/version', 'ERROR');
    my $fake = fake_server(canned => [ sub {
        my %say = (version => slurp($file), mn => slurp($file) =~ /^VERSION 1\.6\.20/ ? 'ERROR' : 'MN');
        return ($say{ $_[0] } // 'EN') . "\r\n";
    } ]);
    my $edge = edge([ '127.0.0.1:' . $fake->port ]);
    my $session = new_session($edge);
    logged($edge, qr/is down: server refused: "ERROR"$doing$/, 'one that does not know "version"');
    # The last is a proxy, which has a version of its own and no meta commands.
    for my $version ('1.4.15', '1.6.9', '1.6.20') {
        spew($file, "VERSION $version");
        $edge = edge([ '127.0.0.1:' . $fake->port ]);
        is status($edge, $session), 'ERROR', "version $version: a lookup";
        my $said = $version eq '1.6.20' ? 'ERROR' : "VERSION $version";
        logged($edge, qr/is down: server refused: "\Q$said\E"$doing$/, 'the log has its words');
        is status($edge, $session), 'DOWN', 'the next lookup';
    }
    is_deeply [ uniq map { $_->[0] } $fake->requests ], [qw(version mn)], 'nothing was sent to them';
    spew($file, 'VERSION 1.6.21');
    wait_until { status($edge, $session) eq 'MISS' } 10, 'an answer';
    logged($edge, qr/\[notice\].* is up again$doing$/, 'a new version is good');

    my $users = spew(tmpdir() . '/users', "user:password\n");
    my $auth = server(start => 0, args => [ '-Y', $users ]);
    # It does not talk to the fixture either.
    $auth->_run([ qw(memcached -t 1 -U 0 -l 127.0.0.1), '-p', $auth->port, $< ? () : qw(-u root), '-Y', $users ],
        sub { IO::Socket::INET->new(PeerAddr => $auth->address) });
    $edge = edge([ $auth->address ]);
    is status($edge, $session), 'ERROR', 'one that wants a password';
    logged($edge, qr/is down: server refused: "CLIENT_ERROR unauthenticated"$doing$/, 'the log says so');

    my $binary = server(start => 0);
    $binary->_run([ qw(memcached -t 1 -U 0 -B binary -l 127.0.0.1), '-p', $binary->port, $< ? () : qw(-u root) ],
        sub { IO::Socket::INET->new(PeerAddr => $binary->address) });
    my $ms = 100 * patience() . 'ms';
    $edge = edge([ $binary->address ], connect_timeout => $ms, fetch_timeout => $ms);
    is status($edge, $session), 'TIMEOUT', 'one that speaks the binary protocol';
    logged($edge, qr/is down: no answer within \d+ ms$doing$/, 'waits for more');
};

subtest 'a server with too many connections' => sub {
    my $few  = server(args => [qw(-c 40)]);
    my $edge = edge([ $few->address ]);
    my @others = map { IO::Socket::INET->new(PeerAddr => $few->address) } 1 .. 50;
    # Those are there when this one is answered or closed.
    wait_until { ($few->stats('rejected_connections') // 0) >= 1 } 5, 'the limit';
    my $session = new_session($edge);
    logged($edge, qr/is down: server refused: "ERROR Too many open connections"$doing$/, 'the log has its words');
    is status($edge, $session), 'DOWN', 'the outcome';
    @others = ();
    ok good_session($edge), 'when there is room it is good';
    is $edge->log_count(qr/is (?:down|up again)/), 2, 'down and up again';
};

subtest 'answers of all kinds at once, and in pieces' => sub {
    my $relay = relay(upstream => $address);
    my $edge  = edge([ '127.0.0.1:' . $relay->port ]);
    my @round = (qw(HIT MISS CORRUPT), 'large', ('HIT') x 8);
    for my $chunk (undef, 100, 1) {
        my @sessions = map { good_session($edge) } @round;
        for my $i (0 .. $#round) {
            my $key = cache_key($sessions[$i]);
            $memcached->cmd("md $key")                              if $round[$i] eq 'MISS';
            $memcached->set($key, "\r\nEN\r\n", 60)                 if $round[$i] eq 'CORRUPT';
            $memcached->set($key, "EN\r\nHD\r\n" x 2_500, 60)       if $round[$i] eq 'large' && ($chunk // 2) > 1;
        }
        my @expected = map { $_ ne 'large' ? $_ : ($chunk // 2) > 1 ? 'CORRUPT' : 'HIT' } @round;
        my $accepted = $relay->stats->{accepted};
        my $asked    = $relay->requests('mg');
        $memcached->pause;
        my @clients  = map { client($edge, $_)->start } @sessions;
        wait_until { $relay->requests('mg') == $asked + @round } 5, 'all lookups';
        $relay->chunk($chunk);
        $memcached->resume;
        is_deeply [ map { answer($_) } @clients ], \@expected,
            'each has its own, in pieces of ' . ($chunk // 'any size');
        $relay->chunk(undef);
        is $relay->stats->{accepted}, $accepted, 'over one connection';
    }
    is $edge->log_count(qr/is down/), 0, 'it was never down';
};

subtest 'a server that dies, comes back, hangs and goes on' => sub {
    my $server = server();
    my $edge   = edge([ $server->address ], fetch_timeout => 200 * patience() . 'ms');
    my $session = good_session($edge);

    my $from = $edge->log_pos;
    $server->kill;
    wait_until { status($edge, $session) eq 'DOWN' } 5, 'DOWN';
    my $down = qr/\[error\].*: memcached 127\.0\.0\.1:\d+ is down: connect\(\) failed \(111: Connection refused\)$doing$/;
    logged($edge, $down, 'killed', from => $from);
    $server->start;
    wait_until { status($edge, $session) eq 'MISS' } 10, 'an answer';
    logged($edge, qr/\[notice\].*: memcached 127\.0\.0\.1:\d+ is up again$doing$/, 'back, and empty', from => $from);
    ok +($session = good_session($edge)), 'it is used again';
    is $edge->log_count(qr/ is (?:down|up again)/, from => $from), 2, 'two lines for that';

    # Each of these lines is there once a second.
    my $quiet = time + 2;
    wait_until { time >= $quiet } 5;
    $from = $edge->log_pos;
    $server->pause;
    is status($edge, $session), 'TIMEOUT', 'it hangs';
    logged($edge, qr/is down: no answer within \d+ ms$doing$/, 'the log says so', from => $from);
    is status($edge, $session), 'DOWN', 'from then on it is not asked';
    $server->resume;
    hit($edge, $session);
    logged($edge, qr/is up again$doing$/, 'it goes on, with what it had', from => $from);
    is $edge->log_count(qr/ is (?:down|up again)/, from => $from), 2, 'two lines for that';
};

subtest 'several servers, of which one is lost' => sub {
    my @servers  = map { server() } 1 .. 3;
    my $edge     = edge([ map { $_->address } @servers ]);
    my @sessions = map { good_session($edge) } 1 .. 24;
    my %home;
    for my $i (0 .. 2) { $home{$_} = $i for $servers[$i]->keys }
    is scalar(uniq values %home), 3, 'all three have some';
    my %at;
    push @{ $at{ $home{ cache_key($_) } } }, $_ for @sessions;
    my $outcomes = sub { [ uniq map { status($edge, $_) } map { @{ $at{$_} } } @_ ] };
    $servers[0]->kill;
    is_deeply $outcomes->(1, 2), ['HIT'], 'those of the others are hits';
    wait_until { status($edge, $at{0}[0]) eq 'MISS' } 5, 'the loss to be noticed';
    is_deeply $outcomes->(0), ['MISS'], 'those of the lost one are missing';
    is_deeply [ uniq map { my $new = new_session($edge); status($edge, $new) } 1 .. 12 ], ['HIT'],
        'what it would have now is with the others';
    is_deeply $outcomes->(1, 2), ['HIT'], 'which still have theirs';
    $servers[0]->start;
    wait_until { new_session($edge); $servers[0]->keys } 10, 'entries on the server that is back';
    is_deeply $outcomes->(1, 2), ['HIT'], 'when it is back they still have theirs';
    is $edge->log_count(qr/ is (?:down|up again)/), 2, 'down and up again, once each';
};

$_->kill for grep { $_->process } @servers;
done_testing;
