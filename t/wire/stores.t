# docs/stores.md: what becomes of sessions in stores that evict, and behind proxies.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use IO::Socket::INET;
use Test::More;

my $certs = certs();

sub edge {
    my ($server, %line) = @_;
    my $port  = free_port();
    my $fetch = delete $line{fetch} // '';
    my $wait  = 3 * patience() . 's';
    %line = (server => $server, connect_timeout => $wait, fetch_timeout => $wait, %line);
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend store { @{[ map { "$_ $line{$_};" } sort keys %line ]} }
    ssl_session_fetch   store $fetch;
    ssl_session_store   store;
    ssl_session_timeout 300s;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    return { nginx => $nginx, port => $port };
}

sub visit {
    my ($edge, %arg) = @_;
    my $client = tls_client(port => $edge->{port}, protocol => 'TLSv1.2', %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return { status => $status, reused => $client->reused, session => ($client->sessions)[0] // $client->session };
}

# A session that is in the store, and found there.
sub good_session {
    my ($edge, %arg) = @_;
    my $session;
    wait_until { $session = visit($edge, %arg)->{session}; visit($edge, %arg, session => $session)->{reused} } 10, 'a hit';
    return $session;
}

# --- a Redis that evicts ---

# A client that comes back to a Redis that is full of sessions nobody has asked for, while others push those out.
sub comes_back {
    my ($policy) = @_;
    # As many samples as allowed: what is evicted is then what the policy says, and not nearly that.
    my $redis   = redis(conf => [ "maxmemory-policy $policy", 'maxmemory-samples 64' ]);
    my $edge    = edge('127.0.0.1:' . $redis->port);
    my $session = good_session($edge);
    my $n       = 0;
    my $once    = sub { $redis->cmd('SET', 'tls:once' . $n++, 'x' x 240, 'EX', 600) for 1 .. $_[0] };
    # As the epoch.
    $redis->cmd('SET', 'tls:without-ttl', 1);
    $once->(1000);
    # It is counted in seconds for how long nobody has asked. Nothing has to go before the client is back.
    wait_until { $redis->cmd('OBJECT', 'IDLETIME', 'tls:once999') >= 3 } 10, 'some time';
    visit($edge, session => $session)->{reused} or die 'not resumed';
    $redis->cmd('CONFIG', 'SET', 'maxmemory', $redis->info('used_memory') + 20_000);
    my $reused = 1;
    while ($reused && $redis->info('evicted_keys') < 300) {
        $reused = visit($edge, session => $session)->{reused};
        $once->(20);
    }
    cmp_ok $redis->info('evicted_keys'), '>', 0, "$policy: the Redis has evicted";
    is $redis->cmd('EXISTS', 'tls:without-ttl'), 1, 'nothing without a ttl' if $policy =~ /^volatile/;
    is scalar($edge->{nginx}->errors), 0, 'and refused nothing';
    return $reused;
}

subtest 'a client of TLS 1.2 that comes back' => sub {
    is comes_back('volatile-lru'), 1, 'is resumed, if what was not asked for goes';
    is comes_back('allkeys-lru'), 1, 'the same, whatever has a ttl';
    is comes_back('volatile-ttl'), 0, 'is not, if what expires first goes: its session is the oldest';
};

# --- a Redis that waits for replicas ---

subtest 'a master that has lost its replicas, and single_use' => sub {
    my $redis   = redis();
    my $edge    = edge('127.0.0.1:' . $redis->port, fetch => 'single_use');
    my @client  = (protocol => 'TLSv1.3');
    # A ticket that was not used yet.
    my $session = visit($edge, @client, session => good_session($edge, @client))->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the ticket in the store';
    $redis->cmd(qw(CONFIG SET min-replicas-to-write 1));
    my $seen = visit($edge, @client, session => $session);
    is $seen->{status}, 'ERROR', 'taking is writing';
    is $seen->{reused}, 0, 'full handshake';
    ok $edge->{nginx}->log_like(qr/ refused \d+ requests, the last with "NOREPLICAS /), 'the log has the words';
    is $edge->{nginx}->log_count(qr/ is down/), 0, 'it does not count as down';
    $redis->cmd(qw(CONFIG SET min-replicas-to-write 0));
    ok good_session($edge, @client), 'afterwards all is as before';
};

# --- twemproxy ---

sub twemproxy {
    my ($server, $redis) = @_;
    my ($dir, $port, $stats) = (new_dir('twemproxy'), free_port(), free_port());
    spew("$dir/conf", "pool:\n  listen: 127.0.0.1:$port\n  hash: fnv1a_64\n  distribution: ketama\n", $redis ? "  redis: true\n" : '',
        "  servers:\n   - 127.0.0.1:${\ $server->port}:1\n");
    my $process = SSLSession::Process->spawn(name => 'nutcracker', out => "$dir/out",
        cmd => [ 'nutcracker', '-c', "$dir/conf", '-s', $stats, '-o', "$dir/log", '-p', "$dir/pid" ]);
    wait_until { IO::Socket::INET->new("127.0.0.1:$port") } 10, 'twemproxy';
    return ($process, $port);
}

my $twemproxy = grep { -x "$_/nutcracker" } split /:/, $ENV{PATH};

subtest 'a Redis behind twemproxy' => sub {
    plan skip_all => 'no nutcracker' if !$twemproxy;
    my ($process, $port) = twemproxy(my $redis = redis(), 1);
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for my $fetch ('', 'single_use') {
            my $edge = edge("127.0.0.1:$port", fetch => $fetch);
            ok good_session($edge, protocol => $protocol), "$protocol $fetch: is resumed";
            is scalar($edge->{nginx}->errors), 0, 'nothing is refused';
        }
    }
    for my $case ([ client_name => 'web1' ], [ database => 1 ]) {
        my ($directive, $value) = @$case;
        my $edge = edge("127.0.0.1:$port", $directive => $value);
        my $session = visit($edge)->{session};
        isnt visit($edge, session => $session)->{status}, 'HIT', "$directive: there is nothing";
        ok $edge->{nginx}->log_like(qr/ is down: server closed connection/), 'it ends the connection';
    }
    $process->kill_all;
};

subtest 'a memcached behind twemproxy' => sub {
    plan skip_all => 'no nutcracker' if !$twemproxy;
    my ($process, $port) = twemproxy(memcached());
    my $edge    = edge("127.0.0.1:$port", protocol => 'memcached');
    my $session = visit($edge)->{session};
    isnt visit($edge, session => $session)->{status}, 'HIT', 'there is nothing: it passes no meta commands';
    ok $edge->{nginx}->log_like(qr/memcached \S+ is down: server closed connection/), 'it ends the connection';
    $process->kill_all;
};

done_testing;
