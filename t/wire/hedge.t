# "hedge": a lookup without an answer is made at a second server that has the same entries.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use List::Util qw(sum0);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my (%port, %shown);
my $hedge = 40 * patience();
my $whole = 4000 * patience();

# An nginx with a backend of these lines.
sub edge {
    my ($backend, %arg) = @_;
    my ($port, $shown) = (free_port(), free_port());
    my $nginx = nginx(log => 'info', conf => <<"CONF");
    ssl_session_backend store {
        $backend
        hedge ${hedge}ms; connect_timeout ${whole}ms; fetch_timeout ${\ ($arg{fetch_timeout} // $whole) }ms;
    }
    ssl_session_fetch   store ${\ ($arg{fetch} // '') };
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ${\ ($arg{http} // '') }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF
    ($port{$nginx}, $shown{$nginx}) = ($port, $shown);
    return $nginx;
}

# What is offered: { protocol, session }.
sub client {
    my ($edge, $offer) = @_;
    return tls_client(port => $port{$edge}, protocol => $offer->{protocol} // 'TLSv1.2', session => $offer->{session});
}

sub answer {
    my ($client) = @_;
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, reused: " . $client->reused if $client->reused != ($status eq 'HIT');
    return $status;
}

sub status { return answer(client(@_)) }

# The outcome, and how many milliseconds it took.
sub timed { my $at = time; my $status = status(@_); return ($status, 1000 * (time - $at)) }

# N sessions that all of these have.
sub sessions {
    my ($edge, $n, $protocol, @stores) = @_;
    my @made = map {
        my $client = client($edge, { protocol => $protocol });
        answer($client);
        my $session = $client->session;
        +{ protocol => $protocol, session => $session, key => cache_key($session) };
    } 1 .. $n;
    for my $store (@stores) {
        wait_until { my %has = map { $_ => 1 } $store->keys; !grep { !$has{ $_->{key} } } @made } 10, 'the sessions';
    }
    return @made;
}

# A metric of servers, the sum of all.
sub metric {
    my ($edge, $name) = @_;
    my $page = `curl -fsS http://127.0.0.1:$shown{$edge}/`;
    return sum0($page =~ /^nginx_ssl_session_server_${name}_total\{[^}]*\} (\S+)$/mg);
}

subtest 'a replica answers while the master is stopped' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $edge    = edge("server ${\ $master->address }; server ${\ $replica->address } replica;");
    my @some    = sessions($edge, 10, 'TLSv1.2', $master, $replica);
    $_->cmd(qw(CONFIG RESETSTAT)) for $master, $replica;
    is status($edge, $_), 'HIT', 'a hit' for @some;
    is $master->calls('get'), 10, 'of the master';
    is $replica->calls('get'), metric($edge, 'hedged_lookups'), 'and not of the replica, as long as the master answers';
    my $before = metric($edge, 'hedges_won');
    $master->pause;
    for my $n (0 .. 2) {
        my ($status, $ms) = timed($edge, $some[$n]);
        is $status, 'HIT', 'the replica answers';
        cmp_ok $ms, '>=', $hedge - 2, sprintf 'not before the time is over: %d ms', $ms;
        cmp_ok $ms, '<', $whole / 4, 'long before the lookup would be late';
    }
    is metric($edge, 'hedges_won') - $before, 3, 'three hedges have won';
    $master->resume;
    wait_until { $master->calls('get') >= 13 } 5, 'the answers of the master';
    is status($edge, $_), 'HIT', 'they are discarded, and the link is in step' for @some;
    is metric($edge, 'errors'), 0, 'no request was lost';
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'a miss of the replica ends nothing' => sub {
    my ($master, $empty) = (redis(), redis());
    my $relay = relay(upstream => $master->address);
    my $edge  = edge("server 127.0.0.1:${\ $relay->port }; server ${\ $empty->address } replica;");
    my ($session) = sessions($edge, 1, 'TLSv1.2', $master);
    is status($edge, $session), 'HIT', 'a hit while the master is fast';
    my $delay = 5 * $hedge;
    $relay->delay($delay);
    my ($status, $ms) = timed($edge, $session);
    is $status, 'HIT', 'and while it is slow';
    cmp_ok $ms, '>=', $delay, 'when its answer is there';
    cmp_ok $empty->calls('get'), '>=', 1, 'the other one was asked';
    cmp_ok metric($edge, 'hedged_lookups'), '>=', 1, 'which is counted';
    is metric($edge, 'hedges_won'), 0, 'and has not won';
    $master->cmd('FLUSHALL');
    is status($edge, $session), 'MISS', 'a miss of the master is one';
    is_deeply [ $edge->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'the link to the master ends before the replica answers' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my ($one, $two) = map { relay(upstream => $_->address) } $master, $replica;
    my $edge = edge("server 127.0.0.1:${\ $one->port }; server 127.0.0.1:${\ $two->port } replica;");
    my ($session) = sessions($edge, 1, 'TLSv1.2', $master, $replica);
    is status($edge, $session), 'HIT', 'a hit';
    $_->hold for $one, $two;
    my $client = client($edge, $session)->start;
    wait_until { $two->requests('GET') } 5, 'the question at the replica';
    $one->close_all;
    $edge->log_like(qr/ server closed connection \(\d+ times\)/);
    $two->release;
    is answer($client), 'HIT', 'the replica has it';
    is metric($edge, 'hedges_won'), 1, 'counted';

    # And where the replica does not have it either.
    $one->release;
    wait_until { status($edge, $session) eq 'HIT' } 5, 'a link to the master';
    $replica->cmd(qw(REPLICAOF NO ONE));
    $replica->cmd('FLUSHALL');
    $_->hold for $one, $two;
    my $asked = $two->requests('GET');
    $client = client($edge, $session)->start;
    wait_until { $two->requests('GET') > $asked } 5, 'the question at the replica';
    my $lost = metric($edge, 'errors');
    $one->close_all;
    wait_until { metric($edge, 'errors') > $lost } 5, 'the end of the link';
    $two->release;
    is answer($client), 'ERROR', 'a miss of the replica says nothing';
};

subtest 'both are silent' => sub {
    my ($master, $replica) = (redis(), redis());
    my $edge = edge("server ${\ $master->address }; server ${\ $replica->address } replica;", fetch_timeout => 4 * $hedge);
    my ($session) = sessions($edge, 1, 'TLSv1.2', $master);
    $_->pause for $master, $replica;
    my ($status, $ms) = timed($edge, $session);
    is $status, 'TIMEOUT', 'the handshake goes on without';
    cmp_ok $ms, '>=', 4 * $hedge - 2, 'after fetch_timeout';
    cmp_ok $ms, '<', 8 * $hedge + 500 * patience(), 'and no later';
    $_->resume for $master, $replica;
};

subtest 'a take is made once' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $relay   = relay(upstream => $master->address);
    my $edge    = edge("server 127.0.0.1:${\ $relay->port }; server ${\ $replica->address } replica;", fetch => 'single_use');
    my @tickets = sessions($edge, 5, 'TLSv1.3', $master, $replica);
    my ($plain) = sessions($edge, 1, 'TLSv1.2', $master, $replica);
    $relay->delay(3 * $hedge);
    $_->cmd(qw(CONFIG RESETSTAT)) for $master, $replica;
    my $before = metric($edge, 'hedged_lookups');
    is status($edge, $_), 'HIT', 'resumed' for @tickets;
    is metric($edge, 'hedged_lookups'), $before, 'no take was made twice';
    is $replica->calls('get'), 0, 'nothing was read at the replica';
    # It gets the master's by replication.
    is $master->calls('getdel'), 5, 'the master was asked once each';
    is status($edge, $plain), 'HIT', 'a lookup of TLS 1.2';
    is metric($edge, 'hedged_lookups'), $before + 1, 'was';
    is status($edge, $_), 'MISS', 'a ticket is good for one handshake' for @tickets;
};

subtest 'the epoch is read where it was set' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $relay   = relay(upstream => $master->address);
    my $edge    = edge("server 127.0.0.1:${\ $relay->port }; server ${\ $replica->address } replica;",
        http => 'ssl_session_epoch epoch;');
    my @some = sessions($edge, 4, 'TLSv1.2', $master, $replica);
    $replica->cmd(qw(CONFIG RESETSTAT));
    $relay->delay(3 * $hedge);
    my $epochs = $relay->requests('GET');
    # Each waits for both answers; the first asks for the epoch.
    wait_until {
        is status($edge, $_), 'HIT', 'resumed' for @some;
        grep { $_->[1] eq 'tls:epoch' } ($relay->requests('GET'))[ $epochs .. $relay->requests('GET') - 1 ];
    } 10, 'the question for the epoch';
    is $replica->calls('get'), metric($edge, 'hedged_lookups'), 'the replica was asked for sessions';
    my @of_epoch = grep { $_->[1] eq 'tls:epoch' } $relay->requests('GET');
    cmp_ok $replica->calls('get'), '<=', $relay->requests('GET') - @of_epoch, 'and never for the epoch';
};

subtest 'no more than a share of the lookups is made twice' => sub {
    my $master  = redis();
    my $replica = redis(replicaof => $master)->wait_replica;
    my $relay   = relay(upstream => $master->address);
    my $edge    = edge("server 127.0.0.1:${\ $relay->port }; server ${\ $replica->address } replica;");
    my @some    = sessions($edge, 100, 'TLSv1.2', $master, $replica);
    my $before  = metric($edge, 'hedged_lookups');
    $relay->hold;
    my @clients = map { client($edge, $_)->start } @some;
    wait_until { $relay->requests('GET') >= 100 } 10, 'all of them at the master';
    wait_until { metric($edge, 'hedged_lookups') - $before >= 10 } 5, 'some at the replica';
    # Those are resumed at once, the others when the master goes on.
    my $at = time;
    wait_until { metric($edge, 'hedges_won') - $before >= 10 } 5, 'and answered there';
    $relay->release;
    my %count;
    $count{ answer($_) }++ for @clients;
    is_deeply \%count, { HIT => 100 }, 'all are resumed';
    my $twice = metric($edge, 'hedged_lookups') - $before;
    cmp_ok $twice, '<=', 15, "ten that were saved and one in twenty: $twice of 100";
};

subtest 'off' => sub {
    for my $line ('', 'hedge off;') {
        my ($status) = nginx(start => 0, conf => "ssl_session_backend store { server 127.0.0.1; $line }")->conf_test;
        is $status, 0, "\"$line\" is off";
    }
};

done_testing;
