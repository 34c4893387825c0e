# A stable address behind which the servers change: a proxy, a Service or a virtual IP. Links that are
# open stay with the server that they were opened to, and what it says has to lead to new ones.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(sleep time);

my $certs = certs();
my %port;

# An nginx whose sessions are with a server of these lines.
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
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location /     { return 200 "\$ssl_session_fetch_status"; }
        location /prom { ssl_session_status; }
    }
CONF
    $port{$nginx} = $port;
    return $nginx;
}

sub visit {
    my ($edge, $session, %arg) = @_;
    my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $session, %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return ($status, $client->session);
}

sub status { return (visit(@_))[0] }
sub stored { my ($edge, @arg) = @_; return (visit($edge, undef, @arg))[1] }

# A session that is in the store, and found there.
sub good_session {
    my ($edge) = @_;
    my $session;
    wait_until { $session = stored($edge); status($edge, $session) eq 'HIT' } 10, 'a hit';
    return $session;
}

# Two servers change places, and the address leads to the new master from now on.
sub change_places {
    my ($relay, $old, $new) = @_;
    wait_until { $old->info('master_repl_offset') == $new->info('master_repl_offset') } 5, 'the replica';
    $new->cmd(qw(REPLICAOF NO ONE));
    $old->cmd('REPLICAOF', '127.0.0.1', $new->port);
    $old->wait_replica;
    $relay->upstream($new->address);
}

sub errors_of {
    my ($edge) = @_;
    my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2');
    my $text = $client->request('/prom');
    my %sum;
    $sum{$1} += $2 while $text =~ /^nginx_ssl_session_server_errors_total\{[^}]*error="(\w+)"\} (\d+)$/mg;
    return \%sum;
}

for my $case ([ stores => '', 'TLSv1.2' ], [ takes => 'single_use', 'TLSv1.3' ]) {
    my ($what, $fetch, $protocol) = @$case;
    subtest "the master becomes a replica: $what" => sub {
        my $old   = redis();
        my $new   = redis(replicaof => $old)->wait_replica;
        my $relay = relay(upstream => $old->address);
        my $edge  = edge('127.0.0.1:' . $relay->port, fetch => $fetch);
        my @with  = (protocol => $protocol);
        my $keeps = good_session($edge);
        my $taken = stored($edge, @with);
        wait_until { $old->cmd('DBSIZE') >= 2 } 5, 'the sessions in the store';
        change_places($relay, $old, $new);
        my $start = time;
        is status($edge, $taken, @with), 'HIT', 'the first lookup is a hit' . ($fetch ? ', which takes what it finds' : '');
        wait_until { status($edge, stored($edge, @with), @with) eq 'HIT' } 10, 'a hit';
        cmp_ok time - $start, '<', 3 * patience(), 'is there soon';
        is status($edge, $keeps), 'HIT', 'what was stored before is found';
        is $edge->log_count(qr/is down/), 0, 'the server was never down';
        wait_until { !grep { $_->{flags} eq 'N' } $old->clients } 5, 'no link to the old master';
        ok 1, 'the old master has no link any more';
        my $lines = $edge->log_count(qr/refused \d+ requests, the last with "READONLY /);
        cmp_ok $lines, '>=', 1, 'the log has it';
        cmp_ok $lines, '<=', 1 + time - $start, 'once a second at most';
        $edge->quit;
        is scalar($edge->errors(except => qr/READONLY/)), 0, 'and nothing else';
    };
}

subtest 'a replica stays one' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $feeds   = edge($master->address);
    my $session = good_session($feeds);
    wait_until { $replica->cmd('DBSIZE') == $master->cmd('DBSIZE') } 5, 'the session at the replica';
    my $relay = relay(upstream => $replica->address);
    my $edge  = edge('127.0.0.1:' . $relay->port);
    my $start = time;
    my %seen;
    while (time - $start < 2.5) {
        stored($edge);
        $seen{ status($edge, $session) }++;
    }
    is_deeply [ keys %seen ], ['HIT'], 'lookups go on';
    is $edge->log_count(qr/is down/), 0, 'it does not count as down';
    cmp_ok $relay->stats->{accepted}, '<=', 2 * (2 + time - $start), 'it is connected to anew once a second at most, for lookups and for stores';
    cmp_ok $relay->stats->{accepted}, '>', 2, 'and it is';
    $edge->quit;
};

subtest 'a server that loads' => sub {
    # The first connections are to one that loads, and goes on to do so.
    my $redis = redis();
    my $slow  = fake_server(canned => ["-LOADING Redis is loading the dataset in memory\r\n"]);
    my $relay = relay(upstream => '127.0.0.1:' . $slow->port);
    my $edge  = edge('127.0.0.1:' . $relay->port);
    is status($edge, stored($edge)), 'ERROR', 'no answer';
    $relay->upstream($redis->address);
    good_session($edge);
    ok 1, 'the next link is to another server';
    is $edge->log_count(qr/is down/), 0, 'none was down';
    $edge->quit;
};

subtest 'what is in flight ends with its answers' => sub {
    my $old   = redis();
    my $new   = redis(replicaof => $old)->wait_replica;
    my $relay = relay(upstream => $old->address);
    my $edge  = edge('127.0.0.1:' . $relay->port, fetch_timeout => 10 * patience() . 's', store_timeout => 10 * patience() . 's');
    my @sessions = map { good_session($edge) } 1 .. 3;
    change_places($relay, $old, $new);
    $relay->hold;
    my $gets = $relay->requests('GET');
    my @clients = map { tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $_)->start } @sessions;
    wait_until { $relay->requests('GET') == $gets + 3 } 5, 'lookups';
    stored($edge);
    wait_until { $relay->stats->{reply} } 5, 'replies';
    $relay->release;
    is $_->request, 'HIT', 'a hit' for @clients;
    wait_until { status($edge, stored($edge)) eq 'HIT' } 10, 'a hit';
    is $edge->log_count(qr/is down|lost|closed/), 0, 'nothing was lost';
    $edge->quit;
};

subtest 'a node of a cluster becomes a replica, and sends to its own address' => sub {
    my $port    = free_port();
    my $front   = relay(port => $port, upstream => '127.0.0.1:1');
    my $cluster = redis_cluster(masters => 1, replicas => 0, conf => [ "cluster-announce-port $port" ]);
    my ($new)   = $cluster->nodes;
    # The old one, which is a replica by now.
    my $old = fake_server(canned => [ sub {
        my ($command) = @_;
        return "-ERR no\r\n" if $command eq 'CLUSTER';
        return "-MOVED 1 127.0.0.1:$port\r\n";
    } ]);
    $front->upstream($new->address);
    my $edge    = edge("127.0.0.1:$port", cluster => 'on');
    my $session = good_session($edge);
    $front->close_all;
    $front->upstream('127.0.0.1:' . $old->port);
    # Links to the old one, which are refused once and live on.
    wait_until { status($edge, $session) eq 'ERROR' } 5, 'an error';
    like $edge->log_like(qr/to its own address/), qr/\[error\] \d+#\d+: redis 127\.0\.0\.1:$port sends to its own address \(\d+ times\) \(hint: .*\)$doing$/,
        'the log says so, where a new link is no better';
    cmp_ok errors_of($edge)->{redirect}, '>=', 1, 'and it is counted';
    my $accepted = $front->stats->{accepted};
    my $start    = time;
    while (time - $start < 1.5) { status($edge, $session) }
    cmp_ok $front->stats->{accepted} - $accepted, '<=', 2 * (2 + time - $start), 'once a second at most it is tried';
    is $edge->log_count(qr/is down/), 0, 'it does not count as down';
    $front->upstream($new->address);
    wait_until { status($edge, $session) eq 'HIT' } 5, 'a hit';
    ok 1, 'the address leads to the master again';
    $edge->quit;
};

subtest 'the same with real nodes: the lookup goes on' => sub {
    my $port    = free_port();
    my $front   = relay(port => $port, upstream => '127.0.0.1:1');
    my $cluster = redis_cluster(masters => 1, replicas => 1);
    my ($old)   = $cluster->masters;
    my ($new)   = $cluster->replicas;
    my $edge    = edge("127.0.0.1:$port", cluster => 'on');
    $_->cmd(qw(CONFIG SET cluster-announce-port), $port) for $old, $new;
    $front->upstream($old->address);
    my $session = good_session($edge);
    my $stored  = sub { $_[0]->cmd('DBSIZE') };
    wait_until { $stored->($old) == $stored->($new) } 5, 'all at the replica';
    $front->upstream($new->address);
    $new->cmd(qw(CLUSTER FAILOVER TAKEOVER));
    wait_until { $old->cmd('ROLE')->[0] eq 'slave' && $new->cmd('ROLE')->[0] eq 'master' } 20, 'the other master';
    wait_until { $old->cmd('CLUSTER', 'INFO') =~ /cluster_state:ok/ } 10, 'the cluster';
    is status($edge, $session), 'HIT', 'the first lookup is a hit';
    good_session($edge);
    is scalar($edge->errors), 0, 'nothing in the log';
    $edge->quit;
};

subtest 'nodes that send to each other' => sub {
    my @port = map { free_port() } 1 .. 2;
    my @node = map {
        my $other = $port[ 1 - $_ ];
        fake_server(port => $port[$_], canned => [ sub { $_[0] eq 'CLUSTER' ? "-ERR no\r\n" : "-MOVED 1 127.0.0.1:$other\r\n" } ]);
    } 0, 1;
    my $edge = edge("127.0.0.1:$port[0]", cluster => 'on');
    is status($edge, stored($edge)), 'ERROR', 'no answer';
    like $edge->log_like(qr/sent on/), qr/\[error\] \d+#\d+: redis 127\.0\.0\.1:\d+ sends on what was sent on 4 times \(\d+ times\)$doing$/, 'the log says so';
    cmp_ok errors_of($edge)->{redirect}, '>=', 1, 'and it is counted';
    $edge->quit;
};

done_testing;
