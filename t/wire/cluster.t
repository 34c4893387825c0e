# A Redis Cluster: each key is asked for at the master of its slot, wherever that is by now.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use List::Util qw(sum0);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my %port;

# An nginx with sessions in a cluster, of which it is told these addresses; %line are lines of the
# backend.
sub edge {
    my ($seeds, %line) = @_;
    my $port  = free_port();
    my $fetch = delete $line{fetch} // '';
    my $http  = delete $line{http} // '';
    my $wait  = 2000 * patience() . 'ms';
    %line = (cluster => 'on', connect_timeout => $wait, fetch_timeout => $wait, %line);
    my $nginx = nginx(conf => <<"CONF");
    $http
    ssl_session_backend fleet {
        @{[ map { "server $_;" } @$seeds ]}
        @{[ map { "$_ $line{$_};" } sort keys %line ]}
    }
    ssl_session_fetch   fleet $fetch;
    ssl_session_store   fleet;
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

# What is offered: { protocol, session, key }.
sub client {
    my ($edge, $offer) = @_;
    return tls_client(port => $port{$edge}, protocol => $offer->{protocol}, session => $offer->{session});
}

# The outcome of a client's lookup, with which its handshake agrees.
sub answer {
    my ($client) = @_;
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, reused: " . $client->reused if $client->reused != ($status eq 'HIT');
    return $status;
}

sub status { return answer(client(@_)) }

# How often each outcome comes when these are offered.
sub statuses { my ($edge, @offers) = @_; my %n; $n{ status($edge, $_) }++ for @offers; return \%n }

# New sessions, half of them of each protocol.
sub made {
    my ($edge, $n, @protocols) = @_;
    @protocols = qw(TLSv1.2 TLSv1.3) if !@protocols;
    return map {
        my $protocol = $protocols[ $_ % @protocols ];
        my $client = client($edge, { protocol => $protocol });
        answer($client);
        my $session = $client->session;
        +{ protocol => $protocol, session => $session, key => cache_key($session) };
    } 1 .. $n;
}

# The same, once they are in the cluster.
sub sessions {
    my ($edge, $cluster, $n, @protocols) = @_;
    my @new = made($edge, $n, @protocols);
    wait_until { my %has = map { $_ => 1 } $cluster->keys; !grep { !$has{ $_->{key} } } @new } 10, 'the sessions in the cluster';
    return @new;
}

# Those whose keys that node has.
sub at { my ($node, @offers) = @_; my %has = map { $_ => 1 } $node->keys; return grep { $has{ $_->{key} } } @offers }

# One more of that node's.
sub session_at {
    my ($edge, $cluster, $node, @protocols) = @_;
    return wait_until { (at($node, sessions($edge, $cluster, 3, @protocols)))[0] } 10, 'a session of that master';
}

sub slot_of { my ($cluster, $offer) = @_; return $cluster->slot($offer->{key}) }

sub reset_stats { $_->cmd(qw(CONFIG RESETSTAT)) for $_[0]->alive }
sub calls       { my ($cluster, $command) = @_; return sum0(map { $_->calls($command) } $cluster->alive) }
# Connections but for the test's own and one over which another node has sent keys.
sub links       { my ($node) = @_; return scalar grep { $_->{flags} eq 'N' && $_->{cmd} !~ /^restore/ } $node->clients }

# How often nodes have sent somebody on.
sub sent_on {
    my ($cluster, $word) = @_;
    return sum0(map { ($_->info("errorstat_$word") // '') =~ /count=(\d+)/ } $cluster->alive);
}

# An edge that has the map of the slots.
sub knows_map {
    my ($edge, $cluster) = @_;
    my $asked = calls($cluster, 'cluster|slots');
    wait_until { status($edge, {}); calls($cluster, 'cluster|slots') > $asked } 5, 'the question for the map';
    # It has the answer when it sends a second one nowhere else.
    wait_until {
        my $before = sent_on($cluster, 'MOVED');
        sessions($edge, $cluster, 6);
        sent_on($cluster, 'MOVED') == $before;
    } 5, 'the map';
    return $edge;
}

my $cluster = redis_cluster(timeout => 5000 * patience());
my @masters = $cluster->masters;
my @nobody  = map { '127.0.0.1:' . free_port() } 1 .. 2;
# One is told of one node; the other of dead ones first, then of replicas.
my $A = edge([ $masters[0]->address ]);
my $B = edge([ @nobody, map { $_->address } reverse $cluster->nodes ]);

subtest 'the map is learned once, and then each request goes where the key is' => sub {
    knows_map($_, $cluster) for $A, $B;
    cmp_ok calls($cluster, 'cluster|slots'), '<=', 4, 'one or two questions of each server';
    reset_stats($cluster);
    my @sessions = sessions($A, $cluster, 60);
    for my $master (@masters) {
        my $keys = at($master, @sessions);
        cmp_ok $keys, '>', 5, "a master's share: $keys of 60";
    }
    is_deeply statuses($B, @sessions), { HIT => 60 }, 'what one server has made the other resumes';
    is_deeply statuses($A, @sessions), { HIT => 60 }, 'and itself';
    is sent_on($cluster, 'MOVED'), 0, 'no request was sent on';
    # One may have been due since the map was learned.
    cmp_ok calls($cluster, 'cluster|slots'), '<=', 1, 'nor the map asked for';
    is sum0(map { $_->calls('get') } @masters), 120, 'one GET a lookup';
    is $_->calls('get'), 0, 'none at a replica' for $cluster->replicas;
    is links($_), 4, 'two connections of each server' for @masters;
    is_deeply [ $A->errors(warn => 1) ], [], 'nothing in the log';
    my @said = $B->errors(warn => 1, except => qr/SSL sessions not stored in/);
    for my $dead (@nobody) {
        cmp_ok scalar(grep { / redis \Q$dead\E is down: connect\(\) failed / } @said), '<=', 1, 'a dead one is named once';
    }
    is_deeply [ grep { !/ redis (?:\Q$nobody[0]\E|\Q$nobody[1]\E) is down: / } @said ], [], 'and nothing else';
};

subtest 'the first lookups, before the map' => sub {
    my @sessions = sessions($A, $cluster, 18);
    my $relay = relay(upstream => $masters[0]->address);
    my $new   = edge([ '127.0.0.1:' . $relay->port ]);
    my @links = map { links($_) } @masters;
    reset_stats($cluster);
    $relay->hold;
    my @clients = map { client($new, $_)->start } @sessions;
    wait_until { $relay->requests('GET') >= 18 } 5, 'all of them at one node';
    $relay->release;
    is_deeply [ map { answer($_) } @clients ], [ ('HIT') x 18 ], 'are sent on to hits';
    cmp_ok sent_on($cluster, 'MOVED'), '>', 5, 'that were elsewhere';
    wait_until { calls($cluster, 'cluster|slots') } 5, 'the question for the map';
    for my $n (1, 2) {
        cmp_ok links($masters[$n]) - $links[$n], '<=', 2, 'all of them over one connection, and what is stored over another';
        cmp_ok $masters[$n]->info('total_connections_received'), '<=', 2, 'and no other has been';
    }
    $new->quit;
};

subtest 'what is sent on has no time of its own' => sub {
    my ($part, $whole) = (400 * patience(), 900 * patience());
    my $session = session_at($A, $cluster, $masters[1]);
    my $relay = relay(upstream => $masters[0]->address, delay => $part);
    my $new   = edge([ '127.0.0.1:' . $relay->port ], fetch_timeout => "${whole}ms");
    reset_stats($cluster);
    $masters[1]->pause;
    my $at   = time;
    my $said = status($new, $session);
    my $took = 1000 * (time - $at);
    $masters[1]->resume;
    is $said, 'TIMEOUT', 'the node that it was sent on to is silent';
    is sent_on($cluster, 'MOVED'), 1, 'sent on once';
    cmp_ok $took, '>', $whole - 50, sprintf 'the handshake goes on after %d ms', $took;
    cmp_ok $took, '<', $whole + $part - 50, 'and not after the times of both';
    wait_until { status($new, $session) eq 'HIT' } 5, 'a hit when the node speaks again';
    $new->quit;
};

subtest 'a slot has moved' => sub {
    my $session = session_at($A, $cluster, $masters[0]);
    my $slot = slot_of($cluster, $session);
    $cluster->move_slots($masters[1], $slot);
    reset_stats($cluster);
    is status($A, $session), 'HIT', 'sent on, and found';
    is sent_on($cluster, 'MOVED'), 1, 'once';
    is status($A, $session), 'HIT', 'again';
    is sent_on($cluster, 'MOVED'), 1, 'not sent on any more';
    wait_until { calls($cluster, 'cluster|slots') } 5, 'the question for the new map';
    is calls($cluster, 'cluster|slots'), 1, 'one';
    $cluster->move_slots($masters[0], $slot);
    status($B, $session);
    wait_until { my $n = sent_on($cluster, 'MOVED'); statuses($_, ($session) x 3) for $A, $B; sent_on($cluster, 'MOVED') == $n } 5, 'the slot back';
};

subtest 'removal' => sub {
    # Moved after the edge has learned where it was: no lookup has shown it the new place.
    my $session = session_at($A, $cluster, $masters[0]);
    $cluster->cmd('SET', $session->{key}, 'rubbish');
    is status($A, $session), 'CORRUPT', 'an entry that is no session';
    wait_until { !$cluster->cmd('EXISTS', $session->{key}) } 5, 'its removal';
    is status($A, $session), 'MISS', 'is gone';

    $session = session_at($A, $cluster, $masters[0]);
    my $slot = slot_of($cluster, $session);
    $cluster->cmd('SET', $session->{key}, 'rubbish');
    $cluster->open_slot($masters[2], $slot)->migrate($masters[2], $slot, $session->{key});
    reset_stats($cluster);
    is status($A, $session), 'CORRUPT', 'the same with a slot that is on its way';
    $cluster->close_slot($masters[2], $slot);
    wait_until { !$cluster->cmd('EXISTS', $session->{key}) } 5, 'its removal, where it is by now';
    cmp_ok $masters[0]->calls('del') + $masters[2]->calls('del'), '>=', 1, 'by DEL';
    is_deeply [ $A->errors(warn => 1, except => qr/corrupt SSL session/) ], [], 'nothing else in the log';
};

subtest 'what is taken is taken once, wherever it is' => sub {
    my $taker = knows_map(edge([ $masters[1]->address ], fetch => 'single_use'), $cluster);
    my $session = session_at($taker, $cluster, $masters[0], 'TLSv1.3');
    reset_stats($cluster);
    is_deeply [ map { status($taker, $session) } 1 .. 2 ], [ 'HIT', 'MISS' ], 'once';
    is $masters[0]->calls('getdel'), 2, 'by GETDEL';
    is sent_on($cluster, 'MOVED'), 0, 'at the right node';

    $session = session_at($taker, $cluster, $masters[0], 'TLSv1.3');
    my $slot = slot_of($cluster, $session);
    $cluster->open_slot($masters[2], $slot)->migrate($masters[2], $slot, $session->{key});
    reset_stats($cluster);
    is_deeply [ map { status($taker, $session) } 1 .. 2 ], [ 'HIT', 'MISS' ], 'while its slot is on its way';
    is sent_on($cluster, 'ASK'), 2, 'sent on with ASK';
    $cluster->close_slot($masters[2], $slot);
    ok !$cluster->cmd('EXISTS', $session->{key}), 'it is gone';

    $session = session_at($taker, $cluster, $masters[0], 'TLSv1.3');
    $cluster->move_slots($masters[1], slot_of($cluster, $session));
    reset_stats($cluster);
    is_deeply [ map { status($taker, $session) } 1 .. 2 ], [ 'HIT', 'MISS' ], 'after its slot has moved';
    is sent_on($cluster, 'MOVED'), 1, 'sent on with MOVED';
    ok !$cluster->cmd('EXISTS', $session->{key}), 'it is gone';
    is_deeply [ $taker->errors(warn => 1) ], [], 'nothing in the log';
    $taker->quit;
};

subtest 'a slot is on its way, to a master that has none yet' => sub {
    my $new = redis(conf => [ 'cluster-enabled yes', 'cluster-config-file nodes.conf', 'cluster-port ' . free_port() ]);
    my ($bus) = $new->cmd(qw(CONFIG GET cluster-port))->[1];
    $new->cmd(qw(CLUSTER MEET 127.0.0.1), $_->port, $_->{bus}) for $cluster->nodes;
    @$new{qw(bus id)} = ($bus, $new->cmd(qw(CLUSTER MYID)));
    push @{ $cluster->{nodes} }, $new;
    $cluster->wait_ok;

    my ($here, $there) = map { session_at($A, $cluster, $masters[0], $_) } qw(TLSv1.2 TLSv1.3);
    my @slots = map { slot_of($cluster, $_) } $here, $there;
    $cluster->open_slot($new, $_) for @slots;
    $cluster->migrate($new, $slots[1]);
    reset_stats($cluster);
    is_deeply statuses($A, ($here) x 5), { HIT => 5 }, 'what has not left is found where it is';
    is sent_on($cluster, 'ASK'), 0, 'at once';
    is_deeply statuses($A, ($there) x 30), { HIT => 30 }, 'what has left is found';
    is sent_on($cluster, 'ASK'), 30, 'with ASK each time';
    is $new->calls('asking'), 30, 'and ASKING';
    cmp_ok links($new), '<=', 2, 'over two connections at most: ' . links($new);
    cmp_ok $new->info('total_connections_received'), '<=', 2, 'and no other has been';

    $cluster->migrate($new, $slots[0]);
    $cluster->close_slot($new, $_) for @slots;
    is_deeply statuses($A, $here, $there), { HIT => 2 }, 'when all is there';
    wait_until { my $n = sent_on($cluster, 'MOVED'); statuses($A, $here, $there); sent_on($cluster, 'MOVED') == $n } 5, 'the new map';
    cmp_ok links($new), '>=', 1, 'and then there is one';
    cmp_ok links($new), '<=', 2, 'or one more for what is stored';
    is_deeply [ $A->errors(warn => 1, except => qr/corrupt SSL session/) ], [], 'nothing in the log';
};

# What nodes say of where they are. Others learn a name by gossip.
sub announce {
    my ($type, @more) = @_;
    $_->cmd(qw(CONFIG SET cluster-preferred-endpoint-type), $type, @more) for $cluster->alive;
    my ($name) = $more[1] // return;
    wait_until { !grep { grep { !ref && $_ ne $name } map { $_->[2][0] } @{ $_->cmd(qw(CLUSTER SLOTS)) } } $cluster->alive } 15, 'the names';
}

# By the map, and when nodes send on.
sub finds_all {
    my ($new) = @_;
    my @sessions = sessions($new, $cluster, 24);
    reset_stats($cluster);
    is_deeply statuses($new, @sessions), { HIT => 24 }, 'are found';
    is sent_on($cluster, 'MOVED'), 0, 'by the map';
    my ($session) = at($masters[2], @sessions);
    $cluster->move_slots($masters[1], slot_of($cluster, $session));
    is status($new, $session), 'HIT', 'and when they send on';
    is sent_on($cluster, 'MOVED'), 1, 'once';
    is_deeply [ $new->errors(warn => 1, except => qr/not stored in "fleet"/) ], [], 'nothing in the log';
    $new->quit;
}

subtest 'nodes that do not say where they are' => sub {
    announce('unknown-endpoint');
    finds_all(knows_map(edge([ $masters[0]->address ]), $cluster));
};

subtest 'nodes that are announced by their names' => sub {
    # They are not at the addresses that come with the names.
    announce(qw(hostname cluster-announce-hostname node.sessions.invalid));
    my $dns = name_server();
    $dns->say('addresses', 60, '127.0.0.1');
    my $new = edge([ $masters[0]->address ], http => "resolver 127.0.0.1:@{[ $dns->port ]};");
    my $said = sub { return $new->log_count(qr/\[notice\] .*redis node\.sessions\.invalid:\d+ is at redis 127\.0\.0\.1:\d+/) };
    eval { wait_until { status($new, {}); $said->() >= $cluster->masters } 10, 'all names' };
    is $said->(), scalar(() = $cluster->masters), 'it is said of each';
    cmp_ok $dns->asked('A'), '>=', 1, 'the names are asked for';
    finds_all($new);

    my $blind = edge([ $masters[0]->address ]);
    my $why   = qr/\[error\] .*: CLUSTER SLOTS names "node\.sessions\.invalid", and there is no "resolver" to find it with \(\d+ times\)/;
    wait_until { status($blind, {}); $blind->log_count($why) } 10, 'an error without a resolver';
    wait_until { status($blind, {}); $blind->log_count(qr/\[error\] .* sends to "node\.sessions\.invalid", and there is no "resolver" to find it with \(\d+ times\)/) } 10,
        'and when they send on';
    pass 'it is said what is missing';
    $blind->quit;
};

subtest 'TLS, a password, no replicas; and a master is lost' => sub {
    # What directives.md says that a user may have to do, and one who may not do all of it.
    my $may = '>open-sesame ~tls:* +get +set +del +ping +asking';
    my $cluster = redis_cluster(replicas => 0, tls => 1, timeout => 1000, password => 'of-nodes',
        users => { nginx => "$may +cluster|slots", blind => $may });
    my ($dead, @others) = $cluster->masters;
    my $file = spew(tmpdir() . '/cluster.pass', "open-sesame\n");
    chmod 0600, $file;
    my %line = (ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt}, password_file => $file);
    # The longest pause between two attempts.
    my @seeds = map { '127.0.0.1:' . $_->tls_port . ' fail_timeout=1s' } $dead, @others;
    my $edge = knows_map(edge(\@seeds, %line, username => 'nginx'), $cluster);
    my @sessions = sessions($edge, $cluster, 24);
    reset_stats($cluster);
    is_deeply statuses($edge, @sessions), { HIT => 24 }, 'hits';
    is sent_on($cluster, 'MOVED'), 0, 'at the right nodes';
    cmp_ok sum0(map { $_->calls('get') } $_), '>', 1, 'each has its share' for $dead, @others;
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';

    my $blind = edge([ $seeds[0] ], %line, username => 'blind');
    reset_stats($cluster);
    is_deeply statuses($blind, @sessions), { HIT => 24 }, 'hits of a user who may not see the map';
    cmp_ok sent_on($cluster, 'MOVED'), '>', 2, 'by being sent on';
    cmp_ok $_->info('total_connections_received'), '<=', 2, 'over two connections to each at most' for $dead, @others;
    $blind->quit;

    my @its = at($dead, @sessions);
    my %its = map { $_ => 1 } @its;
    my @rest = grep { !$its{$_} } @sessions;
    my $from = $edge->log_pos;
    my $at   = time;
    $dead->kill;
    my $lost = statuses($edge, @its);
    is_deeply $lost, { DOWN => scalar @its }, 'lookups at the dead one';
    wait_until { !grep { $_->cmd(qw(CLUSTER INFO)) !~ /^cluster_state:fail/ } @others } 20, 'the cluster to give up';
    is_deeply statuses($edge, @rest), { ERROR => scalar @rest }, 'then the cluster is down: full handshakes';
    my ($its, $rest) = map { $_->[0] } \@its, \@rest;
    like status($edge, $its), qr/^(?:DOWN|ERROR)$/, 'also for the keys of the dead one';
    my @said = grep { /refused \d+ requests, the last with "CLUSTERDOWN / } $edge->errors(from => $from);
    cmp_ok scalar(@said), '>=', 1, 'which is said';
    cmp_ok scalar(@said), '<=', 2 * (1 + time - $at), 'once a second and node at most';
    $dead->start;
    wait_until { status($edge, $rest) eq 'HIT' } 20, 'hits when it is back';
    # Each node has a time of its own.
    $cluster->wait_ok;
    # What comes first for the one that was dead makes the edge try it, and is not stored.
    my $new = wait_until { (at($dead, made($edge, 3)))[0] } 15, 'a session at the one that was dead';
    is status($edge, $new), 'HIT', 'which is found, too';
    is_deeply statuses($edge, @rest), { HIT => scalar @rest }, 'the others have what they had';
};

done_testing;
