# "ssl_session_epoch" while it cannot be asked for: what this machine has heard of it stays in force,
# and a machine that has never heard of it resumes nothing.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $wait  = 3 * patience() . 's';
my @near  = ('shared:near:1m store');

sub backend {
    my ($name, $redis) = @_;
    return "ssl_session_backend $name { server ${\ $redis->address}; connect_timeout $wait; fetch_timeout $wait; }\n";
}

sub conf {
    my ($port, $backends, $targets, %arg) = @_;
    return <<"CONF";
    $backends
    ssl_session_fetch   $targets;
    ssl_session_store   $targets;
    ssl_session_epoch   ${\ ($arg{name} // 'epoch') };
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$pid"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier, $pid) = split /\|/, $answer;
    return { status => $status, tier => $tier, pid => $pid, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

sub stored {
    my ($port, $redis, %arg) = @_;
    my $session = visit($port, %arg)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

# Withdraws what was made up to now, and nothing that is made from the next second on: it holds for six
# seconds more than it says. What a machine has heard of it before is a second old, then.
sub withdraw {
    my ($redis, $name) = @_;
    my $at = time - 6;
    $redis->cmd('SET', 'tls:' . ($name // 'epoch'), $at);
    wait_until { time > $at + 7 } 5, 'the second after the next';
    return $at;
}

sub withheld {
    my ($port, $session, $what, %arg) = @_;
    my $seen = visit($port, session => $session, %arg);
    is_deeply [ @$seen{qw(status reused)} ], [ 'MISS', 0 ], "$what: a full handshake";
    return $seen;
}

sub resumed {
    my ($port, $session, $what, %arg) = @_;
    my $seen = visit($port, session => $session, %arg);
    is_deeply [ @$seen{qw(status reused)} ], [ 'HIT', 1 ], "$what: resumed";
    return $seen;
}

# What there is to say about a store that is away, and a worker that was killed.
my @outage = ('is down: ', 'is not available', 'server closed connection', 'connection failed', 'worker process \d+ exited on signal 9');
my $heard  = qr/\[notice\] .*SSL session epoch "epoch" in "store" is \d+: sessions made until then are not resumed/;
my $unheard = qr/\[warn\] .*SSL session epoch "epoch" in "store" has not been heard yet: no session is resumed until then, \d+ were not/;

sub nothing_else {
    my ($nginx, @but) = @_;
    my $but = join '|', 'corrupt nothing', @but;
    is_deeply [ $nginx->errors(warn => 1, except => qr/$but/) ], [], 'nothing else in the log';
}

my %begins_anew = (
    'a worker that is killed' => sub {
        my ($nginx) = @_;
        my ($victim) = $nginx->workers;
        kill KILL => $victim;
        wait_until { grep { $_ != $victim } $nginx->workers } 10, 'another worker';
    },
    'a reload' => sub { $_[0]->reload },
);

for my $how (sort keys %begins_anew) {
    subtest "what was heard outlives $how, and the store" => sub {
        my ($redis, $port) = (redis(), free_port());
        my $nginx = nginx(log => 'info', conf => conf($port, backend(store => $redis), @near));
        my %old = map { my $protocol = $_; $protocol => [ map { stored($port, $redis, protocol => $protocol) } 1 .. 3 ] } qw(TLSv1.2 TLSv1.3);
        for my $protocol (sort keys %old) {
            my $seen = resumed($port, $old{$protocol}[0], "$protocol, before", protocol => $protocol);
            is $seen->{tier}, 'shared:near', 'it is near';
        }
        withdraw($redis);
        my ($pid) = map { withheld($port, $old{$_}[0], "$_, withdrawn", protocol => $_)->{pid} } sort keys %old;
        my %new = map { $_ => stored($port, $redis, protocol => $_) } sort keys %old;
        $redis->kill;
        withheld($port, $old{$_}[1], "$_, the store is away", protocol => $_) for sort keys %old;
        $begins_anew{$how}->($nginx);
        for my $protocol (sort keys %old) {
            my $seen = withheld($port, $old{$protocol}[2], "$protocol, after $how", protocol => $protocol);
            isnt $seen->{pid}, $pid, 'by another worker';
            $seen = resumed($port, $new{$protocol}, "$protocol, one that was made later", protocol => $protocol);
            is $seen->{tier}, 'shared:near', 'which is near';
        }
        is $nginx->log_count($heard), 1, 'it was said once';
        nothing_else($nginx, @outage);
    };
}

subtest 'what one worker has heard holds for the other one' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx = nginx(workers => 2, log => 'info', conf => conf($port, backend(store => $redis), @near));
    my @old = map { visit($port)->{session} } 1 .. 60;
    wait_until { $redis->cmd('EXISTS', cache_key($old[-1])) } 5, 'the last one in the store';
    withdraw($redis);
    my $heard_by = withheld($port, shift @old, 'withdrawn')->{pid};
    $redis->cmd('DEL', 'tls:epoch');
    my %seen;
    # Half of them without a store that has the entry, and half without a store.
    while (@old > 30) { $seen{ withheld($port, shift @old, 'the entry is gone')->{pid} }++ }
    $redis->kill;
    while (@old) { $seen{ withheld($port, shift @old, 'the store is away')->{pid} }++ }
    delete $seen{$heard_by};
    is scalar keys %seen, 1, 'the other worker, too';
    is $nginx->log_count($heard), 1, 'it was said once';
    nothing_else($nginx, @outage);
};

subtest 'an entry that is gone stays in force over a reload, and not when nginx is started anew' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx = nginx(log => 'info', conf => conf($port, backend(store => $redis), @near));
    my @old = map { stored($port, $redis) } 1 .. 4;
    my $at  = withdraw($redis);
    withheld($port, $old[0], 'withdrawn');
    $redis->cmd('DEL', 'tls:epoch');
    $nginx->reload;
    withheld($port, $old[1], 'after the reload');
    $nginx->quit;
    $nginx->start;
    resumed($port, $old[2], 'an nginx that was started later');
    $nginx->quit;
    $redis->cmd('SET', 'tls:epoch', $at);
    $nginx->start;
    withheld($port, $old[3], 'one that finds it in the store');
    nothing_else($nginx);
};

subtest 'a machine that has never heard of it resumes nothing' => sub {
    my ($front, $store, $port) = (redis(), redis(), free_port());
    my $conf = conf($port, backend(front => $front) . backend(store => $store), 'front store');
    my $first = nginx(conf => $conf);
    my %old = map { $_ => stored($port, $front, protocol => $_) } qw(TLSv1.2 TLSv1.3);
    resumed($port, $old{$_}, "$_, before", protocol => $_) for sort keys %old;
    $first->quit;
    $store->kill;

    my $nginx = nginx(workers => 2, log => 'info', conf => $conf);
    my $start = time;
    for my $protocol (sort keys %old) {
        withheld($port, $old{$protocol}, $protocol, protocol => $protocol) for 1 .. 10;
        ok $front->cmd('EXISTS', cache_key($old{$protocol})), 'which is not removed';
        my $new = visit($port, protocol => $protocol)->{session};
        wait_until { $front->cmd('EXISTS', cache_key($new)) } 5, 'a new one in the store';
        withheld($port, $new, "$protocol, one that was made just now", protocol => $protocol);
    }
    my $lines = $nginx->log_count($unheard);
    cmp_ok $lines, '>=', 1, 'it is said';
    cmp_ok $lines, '<=', 2 * (2 + time - $start), 'once a second by each worker';

    $store->start;
    wait_until { visit($port, session => $old{'TLSv1.2'})->{status} eq 'HIT' } 10, 'a hit';
    # By both workers, whichever of them has asked.
    resumed($port, $old{$_}, "$_, once it was asked for", protocol => $_) for ('TLSv1.2', 'TLSv1.3') x 5;
    $store->kill;
    resumed($port, $old{$_}, "$_, which is good as long as nginx runs", protocol => $_) for sort keys %old;
    nothing_else($nginx, @outage, $unheard);
};

subtest "nginx's own cache resumes nothing, either, before the epoch was heard" => sub {
    my ($redis, $port) = (redis(), free_port());
    my $conf = conf($port, backend(store => $redis), 'store') . 'ssl_session_cache shared:own:1m;';
    $redis->kill;
    my $nginx = nginx(log => 'info', conf => $conf);
    my $session = visit($port)->{session};
    is visit($port, session => $session)->{reused}, 0, 'not resumed' for 1 .. 3;
    cmp_ok $nginx->log_count($unheard), '>=', 1, 'it is said';
    $redis->start;
    wait_until { visit($port, session => $session)->{reused} } 10, 'its resumption';
    nothing_else($nginx, @outage, $unheard);
};

for my $what ('name', 'target') {
    subtest "with another $what nothing is known of it" => sub {
        my ($redis, $port) = (redis(), free_port());
        my $nginx = nginx(log => 'info', conf => conf($port, backend(store => $redis), @near));
        my @old = map { stored($port, $redis) } 1 .. 2;
        $redis->cmd('SET', 'tls:epoch', time + 200);
        wait_until { visit($port, session => $old[0])->{status} eq 'MISS' } 5, 'the first one to be withdrawn';
        withheld($port, visit($port)->{session}, 'what is made now');
        $redis->kill;
        my ($name, $target) = $what eq 'name' ? ('epoch2', 'store') : ('epoch', 'other');
        $nginx->reload(conf($port, backend($target => $redis), "shared:near:1m $target", name => $name));
        withheld($port, $old[1], 'until it was asked for');
        $nginx->log_like(qr/\[warn\] .*SSL session epoch "$name" in "$target" has not been heard yet/);
        # What was there is gone with it.
        $redis->start;
        wait_until { visit($port, session => $old[1])->{status} eq 'HIT' } 10, 'a hit';
        nothing_else($nginx, @outage, 'has not been heard yet');
    };
}

subtest 'http{} and stream{} each ask for their own' => sub {
    plan skip_all => 'no stream{}' if !has_stream();
    my ($redis, @port) = (redis(), free_port(), free_port());
    my $http   = conf($port[0], backend(store => $redis), 'store');
    my $stream = conf($port[1], backend(store => $redis), 'store') =~ s/location .*/return "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$pid\\n";/r;
    my $nginx  = nginx(log => 'info', conf => $http, stream => $stream);
    my $over   = sub {
        my $client = tls_client(port => $port[1], protocol => 'TLSv1.2', @_);
        $client->handshake or die $client->error;
        return { reused => $client->reused, session => $client->session };
    };
    my @old = (stored($port[0], $redis), $over->()->{session});
    wait_until { $redis->cmd('EXISTS', cache_key($old[1])) } 5, 'the session in the store';
    withdraw($redis);
    withheld($port[0], $old[0], 'http');
    is $nginx->log_count(qr/epoch "epoch" in "stream:store" is /), 0, 'only http{} has heard of it';
    is $over->(session => $old[1])->{reused}, 0, 'stream: a full handshake';
    is $nginx->log_count(qr/epoch "epoch" in "stream:store" is /), 1, 'and then stream{}';
    is $nginx->log_count($heard), 1, 'each once';
    nothing_else($nginx);
};

done_testing;
