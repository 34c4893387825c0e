# What a lookup that is late, a link that is silent, one that something on the way has forgotten, and
# a server that is down mean for others.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# The timeout of lookups, in seconds.
my $timeout = 0.2 * patience();

# http{} with a TLS server on $port; sessions are fetched from $server, and new ones stored in $store.
sub conf {
    my ($port, $server, %arg) = @_;
    my $ms    = int(1000 * $timeout) . 'ms';
    my %limit = (connect_timeout => $ms, fetch_timeout => $ms, %{ $arg{limits} // {} });
    my $store = $arg{store} // 'store';
    my $fetch = $arg{fetch} // 'store';
    return <<"CONF";
    ssl_session_backend store {
        server $server;
        ${\ join "\n        ", map { "$_ $limit{$_};" } sort keys %limit }
    }
    ssl_session_fetch   $fetch;
    ssl_session_store   $store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time"; }
    }
CONF
}

# Sessions of TLS 1.3 are taken with single_use, those of TLS 1.2 are not.
our $protocol = 'TLSv1.2';

sub client {
    my ($port, $session) = @_;
    return tls_client(port => $port, protocol => $protocol, session => $session);
}

# How a lookup ends; in list context also how long it took.
sub outcome {
    my ($port, $session) = @_;
    my $client = client($port, $session);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $time) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return wantarray ? ($status, $time) : $status;
}

sub new_session {
    my ($port, $redis) = @_;
    my $client = client($port);
    $client->request;
    my $session = $protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session;
    my $key     = cache_key($session);
    wait_until { $redis->cmd('EXISTS', $key) } 5, 'the session in the store';
    return $session;
}

sub after { my ($seconds) = @_; my $end = time + $seconds; wait_until { time > $end } $seconds + 1 }

# What is between nginx and the server has forgotten the connections that there are. New ones work.
sub forget {
    my ($relay) = @_;
    $relay->stall(0, $_) for qw(request reply);
    $relay->stall(undef, $_) for qw(request reply);
}

sub start {
    my (%arg) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $relay->port . ' ' . ($arg{parameters} // ''), %arg));
    my @sessions = map { new_session($port, $redis) } 1 .. $arg{sessions} // 1;
    return ($port, $redis, $relay, $nginx, @sessions);
}

sub log_has_only {
    my ($nginx, $pattern) = @_;
    is_deeply [ $nginx->errors(warn => 1, $pattern ? (except => $pattern) : ()) ], [], 'nothing else in the log';
}

# Longer than a link has to be idle.
my $idle = 1.2;

my %forgotten = (
    'is dropped' => \&forget,
    'is reset'   => sub { $_[0]->reset_after(1, 'request') },
    'is closed'  => sub { $_[0]->cut(1, 'request') },
);

for my $what (sort keys %forgotten) {
    subtest "what is asked on an idle link $what: the lookup is made again, in time" => sub {
        my ($port, $redis, $relay, $nginx, $session) = start();
        is outcome($port, $session), 'HIT', 'a hit to begin with';
        after($idle);
        my $gets = $relay->requests('GET');
        $forgotten{$what}->($relay);
        my ($status, $time) = outcome($port, $session);
        is $status, 'HIT', 'a hit all the same';
        cmp_ok $time, '<', $timeout, 'within its time';
        is $relay->requests('GET') - $gets, 2, 'it was asked twice';
        is_deeply [ map { scalar outcome($port, $session) } 1 .. 3 ], [ ('HIT') x 3 ], 'and so are the next ones';
        is $redis->calls('getdel') + $redis->calls('set'), 1, 'nothing was changed';
        log_has_only($nginx);
    };

    subtest "what is taken on an idle link $what: it is asked for once" => sub {
        local $protocol = 'TLSv1.3';
        my ($port, $redis, $relay, $nginx, @sessions) = start(fetch => 'store single_use', sessions => 3);
        is outcome($port, $sessions[0]), 'HIT', 'a hit to begin with';
        after($idle);
        my $takes = $relay->requests('GETDEL');
        $forgotten{$what}->($relay);
        my ($status, $time) = outcome($port, $sessions[1]);
        is $status, $what eq 'is dropped' ? 'TIMEOUT' : 'ERROR', 'it is lost';
        cmp_ok $time, '<', 2 * $timeout, 'and nobody waits longer';
        is $relay->requests('GETDEL') - $takes, 1, 'it was not asked for again';
        is outcome($port, $sessions[2]), 'HIT', 'the next one is a hit';
        log_has_only($nginx, qr/redis \S+: (?:no answer within|server closed|connection failed)/);
        is $nginx->log_count(qr/ is down/), 0, 'the server is not down';
    };
}

subtest 'a server that is away when a link was idle is asked again once and no more' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    after($idle);
    my $gets = $relay->requests('GET');
    $relay->mute;
    my ($status, $time) = outcome($port, $session);
    is $status, 'TIMEOUT', 'there is nobody';
    cmp_ok $time, '<', 1.5 * $timeout, 'it does not wait longer';
    cmp_ok scalar($relay->requests('GET')) - $gets, '<=', 2, 'it was asked for twice at most';
    log_has_only($nginx, qr/ is down: no answer within/);
};

subtest 'a lookup that is late ends nothing but itself' => sub {
    my ($port, $redis, $relay, $nginx, @sessions) = start(sessions => 2);
    is outcome($port, $_), 'HIT', 'a hit to begin with' for @sessions;
    my $accepted = $relay->stats->{accepted};
    my $gets     = $relay->requests('GET');
    $relay->hold;
    is outcome($port, $sessions[0]), 'TIMEOUT', 'one is late';
    # It asks when the link is silent.
    my $second = client($port, $sessions[1])->start;
    wait_until { $relay->requests('GET') == $gets + 2 } 5, 'the next lookup';
    $relay->release;
    like $second->request, qr/^HIT/, 'the next one is in time';
    is outcome($port, $sessions[0]), 'HIT', 'the link is in step';
    wait_until { $relay->stats->{open} == 2 } 5, 'the end of the second link';
    cmp_ok $relay->stats->{accepted}, '<=', $accepted + 1, 'the first one has stayed';
    is outcome($port, $sessions[0]), 'HIT', 'and is in use';
    log_has_only($nginx);
};

subtest 'Redis sleeps for longer than a lookup may take: what is asked while it sleeps is in time' => sub {
    my ($port, $redis) = (free_port(), redis(conf => ['enable-debug-command yes']));
    my $nginx   = nginx(conf => conf($port, '127.0.0.1:' . $redis->port));
    my $session = new_session($port, $redis);
    is outcome($port, $session), 'HIT', 'a hit to begin with';
    for (1 .. 3) {
        my $paused = time;
        my $first  = client($port, $session);
        $redis->pause;
        $first->start;
        like $first->request, qr/^TIMEOUT/, 'the one that has to wait too long is late';
        my $second = client($port, $session)->start;
        after(0.2 * $timeout);
        $redis->resume;
        like $second->request, qr/^HIT/, 'the one after it is not';
        is outcome($port, $session), 'HIT', 'nor is the next';
    }
    log_has_only($nginx);
};

subtest 'Redis does not let anybody write: lookups go on, and what was to be stored is' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start(limits => { store_timeout => int(300 * patience()) . 'ms' });
    $redis->cmd(qw(CLIENT PAUSE), 60_000, 'WRITE');
    my @stored;
    my $end = time + 3 * 0.3 * patience();
    my %seen;
    while (time < $end) {
        $seen{ scalar outcome($port, $session) }++;
        push @stored, client($port);
        $stored[-1]->request;
    }
    is_deeply [ keys %seen ], ['HIT'], 'all lookups are hits' or diag explain \%seen;
    is $nginx->log_count(qr/ is down/), 0, 'the server is not down';
    $redis->cmd(qw(CLIENT UNPAUSE));
    my @keys = map { cache_key($_->session) } @stored;
    wait_until { $redis->cmd('EXISTS', @keys) == @keys } 5, 'all of the new sessions';
    pass 'none is lost';
    log_has_only($nginx);
};

subtest 'a link that is forgotten at work costs one lookup' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    is outcome($port, $session), 'HIT', 'a hit to begin with';
    forget($relay);
    my ($status, $time) = outcome($port, $session);
    is $status, 'TIMEOUT', 'one is late';
    # The second link has an answer by then, or shortly.
    wait_until { outcome($port, $session) eq 'HIT' } 5, 'a hit';
    is $nginx->log_count(qr/ is down/), 0, 'the server is not down';
    is $nginx->log_count(qr/redis \S+: no answer within \d+ ms on this connection \(1 times\)/), 1, 'it is said';
    log_has_only($nginx, qr/ on this connection /);
};

# How often the server was probed while it was asked all the time for so many seconds.
sub probes {
    my ($port, $server, $session, $seconds) = @_;
    my %seen;
    my $end = time + $seconds;
    while (time < $end) {
        $seen{ (split /\|/, client($port, $session)->request)[0] }++;
        after(0.01);
    }
    note join ' ', map { "$_ $seen{$_}" } sort keys %seen;
    return (scalar($server->requests('PING')), %seen);
}

# The most lines like that in one second of the log.
sub most {
    my ($nginx, $pattern) = @_;
    my %lines;
    $lines{$_}++ for $nginx->log =~ /^(\S+ \S+) [^\n]*$pattern/mg;
    return max(0, values %lines);
}

# What it answers, and fetch_timeout in milliseconds: the longer that is, the later a failure shows.
my %fails = (
    'says nothing to requests'            => [ '', 50 ],
    'says nothing to requests for 200 ms' => [ '', 200 ],
    'ends the link with a request'        => [ { close => 1 }, 50 ],
);

for my $what (sort keys %fails) {
    my ($answer, $timeout) = @{ $fails{$what} };
    subtest "a server that answers probes and $what does not go up and down" => sub {
        my ($port, $redis) = (free_port(), redis());
        my $server = fake_server(canned => [ sub { uc $_[0] eq 'PING' ? "+PONG\r\n" : $answer } ]);
        my $nginx  = nginx(conf => conf($port, '127.0.0.1:' . $server->port, store => $redis->url,
            limits => { fetch_timeout => int($timeout * patience()) . 'ms' }));
        my $session = new_session($port, $redis);
        my ($probes) = probes($port, $server, $session, 4);
        # Pauses of up to 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 s and then 5 s; with each failure of the first kind
        # goes a PING on a second link.
        cmp_ok $probes, '<=', 20, "$probes probes in four seconds";
        cmp_ok most($nginx, 'is down'), '<=', 1, 'at most one line a second when it goes down';
        cmp_ok most($nginx, 'is up again'), '<=', 1, 'and one when it is up';
        cmp_ok $nginx->log_count(qr/ is down/), '>', 0, 'but it is said';
    };
}

subtest 'a server that takes too long for each lookup goes down and stays down' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $relay->port, store => $redis->url,
        limits => { fetch_timeout => int(50 * patience()) . 'ms' }));
    my $session = new_session($port, $redis);
    is outcome($port, $session), 'HIT', 'a hit to begin with';
    $relay->delay(65 * patience());
    my $line;
    wait_until { outcome($port, $session); $line = $nginx->log_count(qr/ is down: no answer in time for \d+ ms/) } 10,
        'the server to be down';
    my ($probes, %seen) = probes($port, $relay, $session, 2);
    is_deeply [ keys %seen ], ['DOWN'], 'nobody waits for it any more';
    is $nginx->log_count(qr/ is up again/), 0, 'a probe that is late does not help';
    $relay->delay(0);
    wait_until { outcome($port, $session) eq 'HIT' } 10, 'a hit';
    is $nginx->log_count(qr/ is up again/), 1, 'it is up when it is in time';
};

subtest 'what one worker finds down the others do not ask, and one of them probes' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(workers => 4, conf => conf($port, '127.0.0.1:' . $relay->port, store => $redis->url)
        =~ s/(location \/ \{ return 200 ")/$1\$pid|/r);
    my $session = new_session($port, $redis);
    # Several at once, so that all workers have their turn.
    my %served;
    my $round = sub {
        my @clients = map { client($port, $session)->start } 1 .. 8;
        my @seen    = map { [ split /\|/, $_->request ] } @clients;
        $served{ $_->[0] }++ for @seen;
        return map { $_->[1] } @seen;
    };
    wait_until { $round->(); keys %served == 4 } 20, 'answers of all workers';
    $relay->mute;
    wait_until { !grep { $_ ne 'DOWN' } $round->() } 10, 'it is down for all';
    my $pings = $relay->requests('PING');
    my $end   = time + 2;
    my %seen;
    while (time < $end) {
        $seen{$_}++ for $round->();
        after(0.02);
    }
    is_deeply [ keys %seen ], ['DOWN'], 'nobody asks it' or diag explain \%seen;
    # Pauses of up to 0.1, 0.2, 0.4 and 0.8 s, and each probe takes its time.
    my $probes = $relay->requests('PING') - $pings;
    cmp_ok $probes, '>=', 1, 'it is probed';
    cmp_ok $probes, '<=', 8, "by one worker at a time: $probes probes";
    is $nginx->log_count(qr/ is down: /), 1, 'one line when it went down';
    $relay->mute(0);
    wait_until { !grep { $_ ne 'HIT' } $round->() } 10, 'it is up for all';
    %served = ();
    wait_until { $round->(); keys %served == 4 } 20, 'answers of all workers';
    is $nginx->log_count(qr/ is up again/), 1, 'one line when it is back';
    log_has_only($nginx, qr/ is down: no answer within/);
};

# The timers of the system for connections to a port: [what, seconds].
sub timers {
    my ($port) = @_;
    my $remote = sprintf '0100007F:%04X', $port;
    return map { my ($kind, $when) = split /:/, (split)[5]; [ hex $kind, hex($when) / 100 ] }
        grep { my @field = split; $field[2] eq $remote && $field[3] eq '01' } split /\n/, slurp('/proc/net/tcp');
}

for my $case ([ undef, 30 ], [ '7s', 7 ], [ 'off', undef ]) {
    my ($value, $seconds) = @$case;
    subtest 'keepalive ' . ($value // 'by default') => sub {
        my ($port, $redis) = (free_port(), redis());
        my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $redis->port, limits => { $value ? (keepalive => $value) : () }));
        my $session = new_session($port, $redis);
        is outcome($port, $session), 'HIT', 'a hit';
        # Those of another kind are for what was just sent, and the test has a connection of its own.
        my $asked = wait_until {
            my @all   = timers($redis->port);
            my @asked = grep { $_->[0] == 2 } @all;
            !(grep { $_->[0] != 2 && $_->[0] } @all) && @asked == (defined $seconds ? 2 : 0) && \@asked;
        } 5, defined $seconds ? 'two connections that the system asks about' : 'none';
        cmp_ok abs($_->[1] - $seconds), '<=', 2 * patience(), "after $seconds seconds: $_->[1]" for @$asked;
        log_has_only($nginx);
    };
}

done_testing;
