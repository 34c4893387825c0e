# What a real redis-server says when it cannot do what it is asked: the lookup has the right
# outcome, the log the server's words, once a second at most, and the connection stays in step.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my %port;

# An nginx whose sessions are with a server; each has a log of its own.
sub edge {
    my ($server, %line) = @_;
    my $port  = free_port();
    my $fetch = delete $line{fetch} // '';
    my $wait  = 3 * patience() . 's';
    %line = (server => '127.0.0.1:' . $server->port, connect_timeout => $wait, fetch_timeout => $wait, %line);
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend store { @{[ map { "$_ $line{$_};" } sort keys %line ]} }
    ssl_session_fetch   store $fetch;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
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

# A session that is in the store, and found there.
sub good_session {
    my ($edge) = @_;
    my $session;
    wait_until { $session = new_session($edge); status($edge, $session) eq 'HIT' } 10, 'a hit';
    return $session;
}

# nginx's connections, by the numbers that the server has given them.
sub links_of {
    my ($redis) = @_;
    my @id;
    wait_until { @id = sort map { $_->{id} } grep { $_->{flags} eq 'N' } $redis->clients; @id == 2 } 5,
        'a connection for lookups, and one for stores';
    return "@id";
}

# With a connection to a server that is brought into a state, and out of it:
# words => what the server says, hint => what is to be done, fetch => a lookup's outcome, stores => whether they succeed, anew =>
# whether it is connected to anew, as the address may lead to another server now.
sub refuses {
    my ($name, $redis, %arg) = @_;
    subtest $name => sub {
        my $edge    = edge($redis);
        my $session = good_session($edge);
        my $links   = links_of($redis);
        my $start   = time;
        $arg{enter}->();
        is status($edge, $session), $arg{fetch}, 'the outcome of a lookup';
        my @new = map { my $new = new_session($edge); status($edge, $session); $new } 1 .. 15;
        my $line = qr/\[error\] \d+#\d+: redis 127\.0\.0\.1:\d+ refused \d+ requests, the last with "$arg{words}"$doing$/;
        like eval { $edge->log_like($line) }, $line, 'the words are in the log';
        like $edge->log, qr/ \(hint: \Q$arg{hint}\E\)/, 'with what is to be done' if $arg{hint};
        cmp_ok $edge->log_count($line), '<=', 1 + time - $start, 'once a second at most';
        is status($edge, $session), $arg{fetch}, 'the last lookup is as the first';
        $arg{leave}->();
        is status($edge, $session), 'HIT', 'afterwards it is a hit';
        my @there = grep { $redis->cmd('EXISTS', cache_key($_)) } @new;
        is scalar(@there), $arg{stores} ? 15 : 0, 'what has become of the stores';
        my @same = grep { " $links " =~ / $_ / } split / /, links_of($redis);
        is scalar(@same), $arg{anew} ? 0 : 2, $arg{anew} ? 'there are new connections' : 'the connections are the same';
        is $edge->log_count(qr/redis \S+ is down/), 0, 'the server never counted as down';
        is scalar($edge->errors(except => $line)), 0, 'nothing else is in the log';
        $edge->quit;
    };
}

my $redis = redis();

refuses 'OOM', $redis,
    words => q(OOM command not allowed when used memory > 'maxmemory'\.),
    fetch => 'HIT', stores => 0,
    enter => sub { $redis->cmd(qw(CONFIG SET maxmemory 1)) },
    leave => sub { $redis->cmd(qw(CONFIG SET maxmemory 0)) };

refuses 'MISCONF', $redis,
    words => 'MISCONF (?:Redis|Valkey) is configured to save RDB snapshots, but it\'s currently unable to persist to disk\..*',
    fetch => 'HIT', stores => 0,
    enter => sub {
        # What it writes cannot get its name.
        mkdir $redis->dir . '/dump.rdb';
        $redis->cmd(qw(CONFIG SET save), '3600 1');
        $redis->cmd('BGSAVE');
        wait_until { $redis->info('rdb_last_bgsave_status') eq 'err' } 10, 'a failure';
    },
    leave => sub { $redis->cmd(qw(CONFIG SET stop-writes-on-bgsave-error no)) };

refuses 'NOREPLICAS', $redis,
    words => 'NOREPLICAS Not enough good replicas to write\.',
    hint  => 'bring its replicas back, or lower "min-replicas-to-write" there',
    fetch => 'HIT', stores => 0,
    enter => sub { $redis->cmd(qw(CONFIG SET min-replicas-to-write 1)) },
    leave => sub { $redis->cmd(qw(CONFIG SET min-replicas-to-write 0)) };

refuses 'NOPERM', $redis,
    words => q(NOPERM (?:this user|User \w+) has no permissions to run the 'get' command.*),
    fetch => 'ERROR', stores => 1,
    enter => sub { $redis->cmd(qw(ACL SETUSER default -get)) },
    leave => sub { $redis->cmd(qw(ACL SETUSER default +get)) };

refuses 'BUSY', $redis,
    words => 'BUSY (?:Redis|Valkey) is busy running a script\..*',
    fetch => 'ERROR', stores => 0,
    enter => sub {
        $redis->cmd(qw(CONFIG SET busy-reply-threshold 1));
        my $script = 'while true do end';
        my $caller = IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . $redis->port) or die;
        $caller->print("*3\r\n\$4\r\nEVAL\r\n\$" . length($script) . "\r\n$script\r\n\$1\r\n0\r\n");
        wait_until { !eval { $redis->cmd('PING') } && $@ =~ /BUSY/ } 5, 'BUSY';
    },
    leave => sub {
        $redis->cmd(qw(SCRIPT KILL));
        wait_until { eval { $redis->cmd('PING') } } 5, 'the end of the script';
    };

{
    my $replica = redis(replicaof => $redis)->wait_replica;
    refuses 'READONLY', $redis,
        words => q(READONLY You can't write against a read only replica\.),
        fetch => 'HIT', stores => 0, anew => 1,
        enter => sub {
            # It has all there is; now the two change places.
            my $offset = sub { $_[0]->info('master_repl_offset') };
            wait_until { $offset->($replica) == $offset->($redis) } 5, 'the replica';
            $replica->cmd(qw(REPLICAOF NO ONE));
            $redis->cmd('REPLICAOF', '127.0.0.1', $replica->port);
            $redis->wait_replica;
        },
        leave => sub { $redis->cmd(qw(REPLICAOF NO ONE)) };

    refuses 'MASTERDOWN', $redis,
        words => q(MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'\.),
        fetch => 'ERROR', stores => 0, anew => 1,
        enter => sub {
            $replica->kill;
            # It would refuse a write for being READONLY first.
            $redis->cmd(qw(CONFIG SET replica-read-only no replica-serve-stale-data no));
            $redis->cmd('REPLICAOF', '127.0.0.1', $replica->port);
        },
        leave => sub { $redis->cmd(qw(REPLICAOF NO ONE)) };
}

# A server that takes its time to load what it has saved; the fixture waits for the end of that.
sub start_loading {
    my ($server) = @_;
    $server->_run([ $server->program, $server->dir . '/redis.conf', qw(--key-load-delay 500) ],
        sub { eval { $server->cmd('PING') } || $@ =~ /LOADING/ });
    return $server->info('loading');
}

sub loaded {
    my ($server) = @_;
    $server->cmd(qw(CONFIG SET key-load-delay 0));
    wait_until { !$server->info('loading') } 10, 'the end of loading';
}

subtest 'LOADING' => sub {
    my $slow = redis(conf => [ 'enable-debug-command yes', 'loading-process-events-interval-bytes 1024' ]);
    my $edge = edge($slow);
    my $idle = $edge->fds;
    my $session = good_session($edge);
    $slow->cmd(qw(DEBUG POPULATE 20000));
    $slow->cmd('SAVE');

    $slow->kill;
    wait_until { $edge->fds < $idle + 1 } 5, 'the connection to be closed';
    is start_loading($slow), 1, 'it loads';
    is status($edge, $session), 'ERROR', 'a lookup on a new connection';
    my $words = qr/refused \d+ requests, the last with "LOADING (?:Redis|Valkey) is loading the dataset in memory"$doing$/;
    like $edge->log_like($words), $words, 'the words are in the log';
    my $new = new_session($edge);
    is status($edge, $new), 'ERROR', 'another';
    is $slow->info('loading'), 1, 'it still loads';
    loaded($slow);
    is status($edge, $session), 'HIT', 'then a hit';
    is status($edge, $new), 'MISS', 'what was to be stored meanwhile was dropped';
    is $edge->log_count(qr/is down/), 0, 'the server never counted as down';

    $slow->kill;
    wait_until { status($edge, $session) eq 'DOWN' } 5, 'DOWN';
    is start_loading($slow), 1, 'it loads again';
    my $probes = sub { ($slow->info('cmdstat_ping') // '') =~ /rejected_calls=(\d+)/ ? $1 : 0 };
    my $before = $probes->();
    wait_until { status($edge, $session); $probes->() > $before } 10, 'a probe';
    is $slow->calls('get'), 0, 'a server that was down gets no lookup while it loads';
    loaded($slow);
    is $edge->log_count(qr/is up again/), 0, 'it was down all the time';
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
    is $edge->log_count(qr/is (?:down|up again)/), 2, 'and is up again, by itself';
};

subtest 'a server that cannot save is found to work, for what it can do' => sub {
    my $edge    = edge($redis, fetch_timeout => 200 * patience() . 'ms');
    my $session = good_session($edge);
    # PING is a command that it refuses then; lookups are not.
    $redis->cmd(qw(CONFIG SET stop-writes-on-bgsave-error yes));
    ok !eval { $redis->cmd('PING') }, 'PING is refused';
    $redis->pause;
    my $waits = client($edge, $session)->start;
    is answer($waits), 'TIMEOUT', 'it hangs';
    wait_until { status($edge, $session) eq 'DOWN' } 5, 'DOWN';
    $redis->resume;
    my $back = eval { wait_until { status($edge, $session) eq 'HIT' } 5, 'a hit' };
    ok $back, 'and is back';
    $redis->cmd(qw(CONFIG SET stop-writes-on-bgsave-error no));
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
    $edge->quit;
};

subtest 'a server with too many clients' => sub {
    my $few  = redis();
    my $edge = edge($few);
    my $session = good_session($edge);
    $few->cmd(qw(CONFIG SET maxclients 1));
    $few->cmd('CLIENT', 'KILL', 'ID', $_) for split / /, links_of($few);
    # It may be that nginx has not seen that yet.
    wait_until { status($edge, $session) =~ /^(?:ERROR|DOWN)$/ } 5, 'an error';
    wait_until { status($edge, $session) eq 'DOWN' } 5, 'DOWN';
    like $edge->log_like(qr/max number of clients/), qr/"ERR max number of clients reached"/, 'the log has the words';
    $few->cmd(qw(CONFIG SET maxclients 100));
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
    is $edge->log_count(qr/is (?:down|up again)/), 2, 'down and up again';
};

subtest 'a command that the server does not know' => sub {
    # A Redis before 6.2 has no GETDEL.
    my $old  = redis(conf => ['rename-command GETDEL ""']);
    my $edge = edge($old, fetch => 'single_use');
    my @tls13   = (protocol => 'TLSv1.3');
    my $session = new_session($edge, undef, @tls13);
    is status($edge, $session, @tls13), 'ERROR', 'refused';
    my $words = qr/refused 1 requests, the last with "ERR unknown command/;
    like $edge->log_like($words), $words, 'the log says so';
    is index($edge->log, cache_key($session) =~ s/^tls://r), -1, 'and does not name the session';

    my $mute = redis(conf => ['rename-command SET ""']);
    $edge    = edge($mute);
    $session = new_session($edge);
    like $edge->log_like($words), $words, 'a store';
    is index($edge->log, cache_key($session) =~ s/^tls://r), -1, 'is not in the log either';
};

subtest 'MOVED, by a node of a cluster that is taken for a single server' => sub {
    my $cluster = redis_cluster(masters => 2, replicas => 0);
    my ($node)  = $cluster->nodes;
    my $edge    = edge($node);
    my ($session, $moved);
    wait_until {
        my $new    = new_session($edge);
        my $status = status($edge, $new);
        $session = $new if $status eq 'HIT';
        $moved   = $new if $status eq 'ERROR';
        $session && $moved;
    } 10, 'keys of both nodes';
    my $links = links_of($node);
    ok 1, 'a key of the other node is an ERROR, one of this node a hit';
    my ($words) = $edge->log =~ /refused \d+ requests, the last with "(MOVED \d+ \S+)"$doing$/m;
    my ($slot) = ($words // '') =~ /(\d+)/;
    is $words, 'MOVED ' . ($slot // 'slot') . ' 127.0.0.1:' . ($cluster->nodes)[1]->port, 'the log has the words';
    is status($edge, $moved), 'ERROR', 'again';
    is status($edge, $session), 'HIT', 'and again';
    is links_of($node), $links, 'on the same connections';
    is $edge->log_count(qr/is down/), 0, 'the server is not down';
};

subtest 'answers of all kinds, in one segment and in pieces' => sub {
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $edge  = edge($relay);
    my @round = qw(HIT MISS ERROR CORRUPT HIT large HIT);
    for my $chunk (undef, 100, 7) {
        my @sessions = map { good_session($edge) } @round;
        my $links = links_of($redis);
        for my $i (0 .. $#round) {
            my $key = cache_key($sessions[$i]);
            $redis->cmd('DEL', $key) if $round[$i] =~ /MISS|ERROR/;
            $redis->cmd('LPUSH', $key, 'x') if $round[$i] eq 'ERROR';
            $redis->cmd('SET', $key, 'garbage') if $round[$i] eq 'CORRUPT';
            $redis->cmd('SET', $key, "\r\n\$-1\r\n" x 3000)
                if $round[$i] eq 'large' && ($chunk // 100) >= 100;
        }
        my @expected = map { $_ ne 'large' ? $_ : ($chunk // 100) >= 100 ? 'CORRUPT' : 'HIT' } @round;
        my $asked = $relay->requests('GET');
        # What it gets meanwhile it answers at once.
        $redis->pause;
        my @clients = map { client($edge, $_)->start } @sessions;
        wait_until { $relay->requests('GET') == $asked + @round } 5, 'all lookups';
        $relay->chunk($chunk);
        $redis->resume;
        is_deeply [ map { answer($_) } @clients ], \@expected,
            'each has its own, in pieces of ' . ($chunk // 'any size');
        $relay->chunk(undef);
        is links_of($redis), $links, 'the connections are the same';
    }
    is $edge->log_count(qr/is down/), 0, 'it was never down';
    $edge->quit;
};

for my $bytes (100_000, 2_000_000, 100_000_000) {
    subtest "an entry of $bytes bytes in place of a session" => sub {
        my $edge  = edge($redis);
        my @good  = map { good_session($edge) } 1 .. 2;
        my $large = good_session($edge);
        $redis->cmd('SET', cache_key($large), 'x' x $bytes);
        # Lookups behind it, which the end of the connection does not concern.
        $redis->pause;
        my @clients = map { client($edge, $_)->start } $good[0], $large, $good[1];
        $redis->resume;
        is_deeply [ map { answer($_) } @clients ], [qw(HIT CORRUPT HIT)], 'is corrupt, and others are hits';
        wait_until { !$redis->cmd('EXISTS', cache_key($large)) } 5, 'the entry to be removed';
        is status($edge, $large), 'MISS', 'and is removed';
        is status($edge, $good[0]), 'HIT', 'the server is good';
        my $line = qr/corrupt SSL session [0-9a-f]{8} in "store", redis 127\.0\.0\.1:\d+, 1 times: too large/;
        like $edge->log_like($line), $line, 'the log says why';
        is scalar($edge->errors(except => $line)), 0, 'and nothing else';
        $edge->quit;
    };
}

done_testing;
