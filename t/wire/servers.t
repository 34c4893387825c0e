# Several servers: the key chooses one, and what becomes of one is no matter of the others' keys.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

# http{} with a TLS server on $port; @$servers are parameters of "server".
sub conf {
    my ($port, $servers, @more) = @_;
    return <<"CONF";
    ssl_session_backend fleet {
        ${\ join "\n        ", map { "server $_;" } @$servers }
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout   ${\ (500 * patience()) }ms;
        @more
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 \$ssl_session_fetch_status; }
    }
CONF
}

# One connection and one request: the outcome, and the client.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit"
        if $client->reused != ($status eq 'HIT');
    return ($status, $client);
}

# New sessions, TLS 1.2 unless told otherwise, once all of them are in the stores.
sub sessions {
    my ($port, $stores, $n, $protocol) = @_;
    my @sessions = map { (visit($port, protocol => $protocol // 'TLSv1.2'))[1]->session } 1 .. $n;
    wait_until { my %has = held($stores); !grep { !$has{ cache_key($_) } } @sessions } 10, 'the sessions in the stores';
    return @sessions;
}

# Where each key is: key => places in @$stores.
sub held {
    my ($stores) = @_;
    my %has;
    for my $n (0 .. $#$stores) {
        push @{ $has{$_} }, $n for eval { $stores->[$n]->keys };
    }
    return %has;
}

# How often each outcome came when these sessions are offered; TLS 1.2 unless told first.
sub outcomes {
    my ($port, @sessions) = @_;
    my $protocol = @sessions && $sessions[0] =~ /^TLSv/ ? shift @sessions : 'TLSv1.2';
    my %count;
    $count{ (visit($port, protocol => $protocol, session => $_))[0] }++ for @sessions;
    return \%count;
}

# The sessions that one of the stores has, and the others.
sub parted {
    my ($store, @sessions) = @_;
    my %has = held([$store]);
    return ([ grep { $has{ cache_key($_) } } @sessions ], [ grep { !$has{ cache_key($_) } } @sessions ]);
}

sub addresses { return map { $_->address } @_ }

# Connections to a Redis but for the test's own.
sub links { return scalar $_[0]->clients }

subtest 'keys are spread, alike on each machine, in any order, and after a reload' => sub {
    my @redis = map { redis() } 1 .. 3;
    my @names = addresses(@redis);
    my %port  = (A => free_port(), B => free_port());
    my %nginx = (A => nginx(conf => conf($port{A}, \@names)), B => nginx(conf => conf($port{B}, [ reverse @names ])));
    my @sessions = sessions($port{A}, \@redis, 90);
    my @sizes = map { $_->cmd('DBSIZE') } @redis;
    cmp_ok $_, '>', 10, "each server has its share: $_ of 90" for @sizes;
    my %has = held(\@redis);
    is scalar(grep { @$_ != 1 } values %has), 0, 'each session is on one server';
    is_deeply outcomes($port{$_}, @sessions), { HIT => 90 }, "$_ finds them all" for qw(A B);
    $nginx{A}->reload;
    is_deeply outcomes($port{A}, @sessions), { HIT => 90 }, 'after a reload, too';
    $nginx{B}->reload(conf($port{B}, [ @names[ 1, 2, 0 ] ]));
    is_deeply outcomes($port{B}, @sessions), { HIT => 90 }, 'and in yet another order';
    is $_->info('keyspace_misses'), 0, 'no server is asked for what another has' for @redis;
    is links($_), 2, 'one connection of each worker' for @redis;
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'a weight shifts shares' => sub {
    my @redis = map { redis() } 1 .. 3;
    my ($one, $two, $heavy) = addresses(@redis);
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, [ $one, $two, $heavy ]));
    my @sessions = sessions($port, \@redis, 150);
    my ($its, $others) = parted($redis[2], @sessions);
    cmp_ok scalar(@$its), '<', 80, 'a third or so with equal weights: ' . @$its;
    $nginx->reload(conf($port, [ $one, $two, "$heavy weight=8" ]));
    is_deeply outcomes($port, @$its), { HIT => scalar @$its }, 'what the heavy one had it keeps';
    my $moved = outcomes($port, @$others)->{MISS} // 0;
    cmp_ok @$its + $moved, '>', 95, 'eight tenths with the weight: ' . (@$its + $moved);
    is $redis[$_]->info('keyspace_misses'), 0, 'what moves, moves there' for 0, 1;
    is $redis[2]->info('keyspace_misses'), $moved, 'all of it';
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

subtest 'a server more takes its share of the keys, the rest stays' => sub {
    my @redis = map { redis() } 1 .. 3;
    my @names = addresses(@redis);
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, [ @names[ 0, 1 ] ]));
    my @sessions = sessions($port, \@redis, 120);
    is links($redis[2]), 0, 'nothing at the third';
    $nginx->reload(conf($port, \@names));
    my $count = outcomes($port, @sessions);
    my $moved = $count->{MISS} // 0;
    cmp_ok $moved, '>', 15, "a share moves: $moved of 120";
    cmp_ok $moved, '<', 66, 'a share only';
    is_deeply $count, { HIT => 120 - $moved, MISS => $moved }, 'the others hit';
    is $redis[$_]->info('keyspace_misses'), 0, 'and stay where they were' for 0, 1;
    $nginx->reload(conf($port, [ @names[ 0, 1 ] ]));
    is_deeply outcomes($port, @sessions), { HIT => 120 }, 'without it all is as before';
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: one server is lost, and comes back" => sub {
        # What it has survives the kill.
        my @redis = map { redis(conf => [ 'appendonly yes', 'appendfsync always' ]) } 1 .. 3;
        my $port  = free_port();
        my $nginx = nginx(conf => conf($port, [ addresses(@redis) ]));
        my @sessions = sessions($port, \@redis, 40, $protocol);
        my ($its, $others) = parted($redis[1], @sessions);
        cmp_ok scalar(@$its), '>', 2, 'it has some: ' . @$its;
        my %had = held([ @redis[ 0, 2 ] ]);

        my $from = $nginx->log_pos;
        $redis[1]->kill;
        my %lost;
        my @new;
        for my $session (@$its) {
            my ($status, $client) = visit($port, protocol => $protocol, session => $session);
            $lost{$status}++;
            push @new, $client->session;
        }
        # The first of them may be the one that finds it out.
        my $found_out = delete($lost{DOWN}) // 0;
        cmp_ok $found_out, '<=', 1, 'at most one lookup is spent on the dead server';
        is_deeply \%lost, { MISS => @$its - $found_out }, 'its keys miss';
        is_deeply outcomes($port, $protocol, @$others), { HIT => scalar @$others }, 'all others hit';
        # One may have been made for the server that was not known to be dead.
        my %has;
        wait_until { %has = held([ @redis[ 0, 2 ] ]); @new - 1 <= grep { $has{ cache_key($_) } } @new } 5,
            'the new sessions on the others';
        my @kept = grep { $has{ cache_key($_) } } @new;
        is_deeply outcomes($port, $protocol, @kept), { HIT => scalar @kept }, 'they hit while it is away';
        is $nginx->log_count(qr/\[error\] .* redis \Q${\ $redis[1]->address }\E is down: /, from => $from), 1, 'said once';

        $redis[1]->start;
        wait_until { (visit($port, protocol => $protocol, session => $its->[0]))[0] eq 'HIT' } 15, 'a hit at the server that is back';
        is_deeply outcomes($port, $protocol, @sessions), { HIT => 40 }, 'it has its keys again: all hit';
        is $nginx->log_count(qr/\[notice\] .* redis \Q${\ $redis[1]->address }\E is up again/, from => $from), 1, 'said once';
        is_deeply [ $nginx->errors(warn => 1, except => qr/$gone|SSL sessions not stored in/) ], [], 'nothing else in the log';
    };
}

# A full handshake whose session comes to be in that store.
sub stores_in {
    my ($port, $redis) = @_;
    return wait_until {
        my $session = (visit($port))[1]->session;
        eval { wait_until { $redis->cmd('EXISTS', cache_key($session)) } 0.3 } && $session;
    } 15, 'a session in the store';
}

subtest 'a backup is used when all others are down, and only then' => sub {
    my @redis = map { redis() } 1 .. 3;
    my ($one, $two, $backup) = addresses(@redis);
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, [ "$backup backup", $one, $two ]));
    my $silent = sub { is links($redis[2]), 0, "$_[0]: nothing at the backup" };
    is_deeply outcomes($port, sessions($port, [ @redis[ 0, 1 ] ], 30)), { HIT => 30 }, 'the others serve';
    $silent->('all there');
    $redis[0]->kill;
    stores_in($port, $redis[1]);
    outcomes($port, sessions_or_not($port, 20));
    $silent->('one down');

    $redis[1]->kill;
    my $session = stores_in($port, $redis[2]);
    is((visit($port, session => $session))[0], 'HIT', 'the backup serves');
    cmp_ok $redis[2]->cmd('DBSIZE'), '>', 0, 'it has what comes';

    $redis[0]->start;
    stores_in($port, $redis[0]);
    my $size = $redis[2]->cmd('DBSIZE');
    my @new  = sessions($port, [ $redis[0] ], 20);
    is_deeply outcomes($port, @new), { HIT => 20 }, 'a server that is back serves';
    is $redis[2]->cmd('DBSIZE'), $size, 'the backup gets nothing more';
    is_deeply [ $nginx->errors(warn => 1, except => qr/$gone|SSL sessions not stored in/) ], [], 'nothing else in the log';
};

# As many sessions, wherever they are kept.
sub sessions_or_not { my ($port, $n) = @_; return map { (visit($port))[1]->session } 1 .. $n }

subtest '"down" is never asked' => sub {
    my @redis = map { redis() } 1 .. 3;
    my ($one, $two, $down) = addresses(@redis);
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, [ $one, "$down down", $two ]));
    is_deeply outcomes($port, sessions($port, [ @redis[ 0, 1 ] ], 40)), { HIT => 40 }, 'the others serve';
    my @sessions = sessions($port, [ @redis[ 0, 1 ] ], 5);
    $_->kill for @redis[ 0, 1 ];
    my $count = wait_until { my $all = outcomes($port, @sessions); ($all->{DOWN} // 0) == 5 && $all } 10, 'no server';
    is_deeply $count, { DOWN => 5 }, 'not when nobody else is there';
    is $redis[2]->calls($_), 0, "no \U$_" for qw(get set);
    # The test's own is one.
    is $redis[2]->info('total_connections_received'), 1, 'no connection';
};

subtest 'no server is left: each handshake is full, and at once' => sub {
    my @redis = map { redis() } 1 .. 2;
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, [ addresses(@redis) ]));
    my @sessions = sessions($port, \@redis, 10);
    $_->kill for @redis;
    wait_until { (outcomes($port, @sessions)->{DOWN} // 0) == 10 } 10, 'both known to be down';
    like join(' ', $nginx->errors(warn => 1)), qr/SSL sessions not stored in "fleet", no server is available/, 'and why';
    $_->start for @redis;
    wait_until { my $s = (visit($port))[1]->session; (visit($port, session => $s))[0] eq 'HIT' } 15, 'hits, of one or the other';
};

subtest 'memcached: spread, one lost, and back' => sub {
    my @store = map { memcached() } 1 .. 3;
    my @names = addresses(@store);
    my %port  = (A => free_port(), B => free_port());
    my %nginx = (
        A => nginx(conf => conf($port{A}, \@names, 'protocol memcached;')),
        B => nginx(conf => conf($port{B}, [ reverse @names ], 'protocol memcached;')),
    );
    my @sessions = sessions($port{A}, \@store, 60);
    my %has = held(\@store);
    is scalar(grep { @$_ != 1 } values %has), 0, 'each session is on one server';
    cmp_ok scalar($_->keys), '>', 5, 'each server has its share' for @store;
    is_deeply outcomes($port{$_}, @sessions), { HIT => 60 }, "$_ finds them all" for qw(A B);
    is $_->stats('get_misses'), 0, 'no server is asked for what another has' for @store;

    my ($its, $others) = parted($store[0], @sessions);
    $store[0]->kill;
    is_deeply outcomes($port{$_}, @$others), { HIT => scalar @$others }, "$_: the others' keys hit" for qw(A B);
    my $count = outcomes($port{A}, @$its);
    is $count->{HIT}, undef, 'its own do not';
    cmp_ok $count->{DOWN} // 0, '<=', 1, 'and at most one lookup is spent on it';
    $store[0]->start;
    wait_until { visit($port{A}); scalar $store[0]->keys } 15, 'a session on the server that is back';
    is_deeply outcomes($port{B}, @$others), { HIT => scalar @$others }, 'no key of the others has moved';
    is_deeply [ $nginx{$_}->errors(warn => 1, except => qr/$gone|SSL sessions not stored in/) ], [],
        "$_: nothing else in the log" for qw(A B);
};

done_testing;
