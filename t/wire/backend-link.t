# The connection of a worker to the server of its backend.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Select;
use IO::Socket::INET;
use List::Util qw(min);
use Test::More;
use Time::HiRes qw(sleep time);

my $certs = certs();

# What a lookup may take beyond its timeout, in seconds.
my $late = 0.04 * patience();

# http{} with a TLS server on $port whose sessions are in $target.
sub conf {
    my ($port, $target, @more) = @_;
    return <<"CONF";
    @more
    ssl_session_fetch $target;
    ssl_session_store $target;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time|\$pid";
        }
    }
CONF
}

# A backend with limits that suit a slow machine, but for those given.
sub backend {
    my ($server, %limit) = @_;
    my %all = (connect_timeout => 500 * patience() . 'ms', fetch_timeout => 200 * patience() . 'ms', %limit);
    return "ssl_session_backend store { server $server; " . join(' ', map { "$_ $all{$_};" } sort keys %all) . ' }';
}

# One connection and one request.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $time, $pid) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return { status => $status, time => $time, pid => $pid, session => $client->session, client => $client };
}

sub stored_session {
    my ($port, $redis, %arg) = @_;
    my $session = visit($port, %arg)->{session};
    wait_until { defined $redis->cmd('GET', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

sub wait_for_hit {
    my ($port, $session) = @_;
    return wait_until {
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
        ($client->request // '') =~ /^HIT/;
    } 15, 'a hit';
}

# Connections to it, besides the one of the test.
sub links { my ($redis) = @_; return scalar(() = $redis->cmd('CLIENT', 'LIST') =~ /^id=/mg) - 1 }

sub lines_are {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing else in the log';
}

subtest 'the connection is opened when there is something to do, and stays' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, $relay->url));
    my $silent = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
    my $hello  = tls_client(port => $port, protocol => 'TLSv1.2');
    $hello->send_raw(substr $hello->client_hello, 0, 50);
    $nginx->log_like(qr/\[debug\] .*SSL_do_handshake: -1/);
    is $relay->stats->{accepted}, 0, 'none at start, nor for what is no ClientHello yet';
    my $session = stored_session($port, $redis);
    is $relay->stats->{accepted}, 1, 'one for the first session to store';
    is visit($port, session => $session)->{status}, 'HIT', 'hit' for 1 .. 3;
    is $relay->stats->{accepted}, 2, 'one more for lookups, the same one ever after';
    is_deeply [ $relay->requests('PING'), $relay->requests('SELECT') ], [], 'it asks nothing that it need not';
    lines_are($nginx);
};

subtest 'one connection for lookups per worker, and one for what is stored' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(workers => 2, conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port)));
    my $session = stored_session($port, $redis);
    my %served;
    # Held open, so that the other worker has its turn.
    my @open;
    wait_until {
        push @open, tls_client(port => $port, protocol => 'TLSv1.2', session => $session) for 1 .. 20;
        $served{ visit($port, session => $session)->{pid} }++;
        for my $client (@open) {
            $served{ (split /\|/, $client->request)[2] }++;
        }
        @open = ();
        keys %served == 2;
    } 20, 'answers of both workers';
    is links($redis), 3, 'two workers, of which one has stored something';
    lines_are($nginx);
};

subtest 'the requests of one turn of the event loop leave in one write' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port, fetch_timeout => '10s')));
    plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
    my @sessions = map { stored_session($port, $redis) } 1 .. 8;
    my $from = $nginx->log_pos;
    my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_) } @sessions;
    wait_until { $nginx->log_count(qr/\[debug\] .* accept: /, from => $from) == @clients } 5, 'accepted connections';
    # The turn that begins when the worker goes on finds them all.
    my ($worker) = $nginx->workers;
    $nginx->halt($worker);
    $_->start for @clients;
    my $asked = $nginx->log_pos;
    kill CONT => $worker;
    for my $client (@clients) {
        like $client->request, qr/^HIT/, 'each has its own session';
        is $client->reused, 1, 'resumed';
    }
    # Nothing but the backend's connection is without TLS.
    is $nginx->log_count(qr/\[debug\] .* send: fd:\d+ (\d+) of \1$/, from => $asked), 1, 'one write';
    lines_are($nginx);
};

subtest 'the requests of several turns leave in one write when the worker is busy' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port, fetch_timeout => '10s')));
    plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
    my @sessions = map { stored_session($port, $redis) } 1 .. 24;
    my ($worker) = $nginx->workers;
    my ($least, $lookups) = (scalar @sessions, 0);
    # A turn may take longer than requests are held. Where they are not, it is one write for each in
    # every try.
    for my $try (1 .. 8) {
        # nginx accepts one connection in a turn.
        my $asked = $nginx->log_pos;
        $nginx->halt($worker);
        my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_)->start } @sessions;
        kill CONT => $worker;
        $lookups += grep { ($_->request // '') =~ /^HIT/ && $_->reused } @clients;
        my $writes = $nginx->log_count(qr/\[debug\] .* send: fd:\d+ (\d+) of \1$/, from => $asked);
        $least = $writes if $writes < $least;
    }
    is $lookups, 8 * @sessions, 'all are resumed';
    cmp_ok $least, '<=', @sessions / 2, scalar(@sessions) . " lookups in $least writes";
    lines_are($nginx);
};

subtest 'where much is stored several sessions leave in one write, also when the worker is idle in between' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port, fetch_timeout => '10s')));
    plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
    stored_session($port, $redis);
    my ($each, @writes) = (16);
    my $store = sub {
        my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2') } 1 .. $each;
        my @flights = map { $_->last_flight } @clients;
        my $from    = $nginx->log_pos;
        # The worker is done with one, and asleep, before the next one comes.
        for my $client (@clients) {
            $client->send_raw(shift @flights);
            IO::Select->new($client->sock)->can_read(10);
            sleep 0.0002;
        }
        $_[0]->() if @_;
        is scalar(grep { $_->handshake } @clients), $each, 'full handshakes';
        my @keys = map { cache_key($_->session) } @clients;
        @clients = ();
        wait_until { !grep { !$redis->cmd('EXISTS', $_) } @keys } 5, 'their sessions in the store';
        return $nginx->log_count(qr/\[debug\] .* send: fd:\d+ (\d+) of \1$/, from => $from);
    };
    # A busy machine may leave more time between two of them.
    do { push @writes, $store->() } until $writes[-1] <= $each / 2 || @writes == 40;
    cmp_ok min(@writes), '<=', $each / 2, "$each sessions stored in @writes writes";
    $store->(sub { $nginx->signal('QUIT') });
    pass 'what waits is written by a worker that exits';
    lines_are($nginx);
};

subtest 'answers that come meanwhile have nothing written' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port, fetch_timeout => '10s')));
    plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
    my @sessions = map { stored_session($port, $redis) } 1 .. 96;
    my ($worker) = $nginx->workers;
    my $least = @sessions;
    # As above, but so many that the first ones have their answers long before the last ones ask.
    for my $try (1 .. 4) {
        my $asked = $nginx->log_pos;
        $nginx->halt($worker);
        my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_)->start } @sessions;
        kill CONT => $worker;
        is scalar(grep { ($_->request // '') =~ /^HIT/ && $_->reused } @clients), scalar @sessions, 'all are resumed';
        my $writes = $nginx->log_count(qr/\[debug\] .* send: fd:\d+ (\d+) of \1$/, from => $asked);
        $least = $writes if $writes < $least;
    }
    cmp_ok $least, '<=', @sessions / 4, scalar(@sessions) . " lookups in $least writes";
    lines_are($nginx);
};

for my $timeout (50, 200) {
    subtest "a lookup ends at its timeout of $timeout ms" => sub {
        my ($port, $redis) = (free_port(), redis());
        my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
        my $limits = $timeout == 50
            ? conf($port, $relay->url)
            : conf($port, 'store', backend('127.0.0.1:' . $relay->port, fetch_timeout => "${timeout}ms"));
        my $nginx = nginx(conf => $limits);
        my $session = stored_session($port, $redis);
        my (@times, @took);
        # The least of some: what other work on the machine adds is not the module's.
        for (1 .. 5) {
            wait_for_hit($port, $session);
            $relay->drop;
            my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
            my $start  = time;
            $client->handshake;
            push @took, time - $start;
            my ($status, $time) = split /\|/, $client->request;
            $relay->drop(0);
            is $status, 'TIMEOUT', 'outcome';
            # The loop's clock may be some milliseconds behind when a turn has begun.
            cmp_ok $time, '>=', $timeout / 1000 - 0.01, 'not earlier';
            push @times, $time;
        }
        my ($time) = sort { $a <=> $b } @times;
        my ($took) = sort { $a <=> $b } @took;
        cmp_ok $time, '<=', $timeout / 1000 + $late, 'nor later';
        cmp_ok $took, '<=', $timeout / 1000 + 2 * $late, 'and so does the handshake';
        lines_are($nginx, 'no answer within \d+ ms on this connection');
    };
}

subtest 'late replies are passed over and harm no other lookup' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $relay->port, fetch_timeout => 300 * patience() . 'ms')));
    my @sessions = map { stored_session($port, $redis) } 1 .. 6 * patience();
    my %seen;
    my $round = sub {
        my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_)->start } @sessions;
        for my $n (0 .. $#clients) {
            my ($status) = split /\|/, $clients[$n]->request;
            $seen{$status}++;
            is $clients[$n]->reused, $status eq 'HIT' ? 1 : 0, 'resumed if and only if it is a hit';
            is session_name($clients[$n]->session), session_name($sessions[$n]), 'its own session'
                if $clients[$n]->reused;
        }
    };
    # It takes its time and keeps talking: two bytes each millisecond, of several replies, of which the
    # first ones are complete in time.
    $relay->chunk(2);
    $round->() for 1 .. 3;
    cmp_ok $seen{TIMEOUT} // 0, '>', 0, 'lookups have timed out';
    is_deeply [ grep { !/^(?:TIMEOUT|HIT)$/ } sort keys %seen ], [], 'nothing else has become of them';
    # The rest of them is still on its way when the next ones ask.
    $relay->chunk(0);
    $round->();
    wait_until { !$relay->stats->{reply} } 20, 'the last late reply';
    %seen = ();
    $round->();
    is_deeply \%seen, { HIT => scalar @sessions }, 'then all are hits again';
    is $relay->stats->{accepted}, 2, 'on the one connection for lookups';
    lines_are($nginx);
};

subtest 'a reply that comes byte by byte in time is a hit' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port, chunk => 1);
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $relay->port, fetch_timeout => '10s')));
    my $session = stored_session($port, $redis);
    is visit($port, session => $session)->{status}, 'HIT', 'hit' for 1 .. 2;
    lines_are($nginx);
};

subtest 'a store that hangs costs four timeouts, and is used again when it goes on' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port, fetch_timeout => '100ms')));
    my $session = stored_session($port, $redis);
    wait_for_hit($port, $session);
    $redis->pause;
    my ($waited, $seen) = (0);
    while (($seen = visit($port, session => $session))->{status} eq 'TIMEOUT') { $waited++ }
    is $seen->{status}, 'DOWN', 'it is down when it was silent for long';
    cmp_ok $waited, '>=', 1, 'until then';
    cmp_ok $waited, '<=', 4, 'lookups wait';
    for (1 .. 10) {
        $seen = visit($port, session => $session);
        is $seen->{status}, 'DOWN', 'the others are not asked for';
        cmp_ok $seen->{time}, '<', $late, 'and do not wait';
    }
    $redis->resume;
    wait_for_hit($port, $session);
    is visit($port, session => $session)->{status}, 'HIT', 'without a reload';
    is $nginx->log_count(qr/ is down: /), 1, 'one line when it went down';
    is $nginx->log_count(qr/ is up again/), 1, 'one line when it was back';
    lines_are($nginx, ' is down: no answer within', 'SSL sessions not stored in');
};

subtest 'a store that is killed and started again on the same port is used again' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port)));
    my $session = stored_session($port, $redis);
    wait_for_hit($port, $session);
    my $value = $redis->cmd('GET', cache_key($session));
    my $from  = $nginx->log_pos;
    $redis->kill;
    $nginx->log_like(qr/server closed connection|recv\(\) failed/, from => $from);
    for (1 .. 5) {
        my $seen = visit($port, session => $session);
        is $seen->{status}, 'DOWN', 'full handshake meanwhile';
        cmp_ok $seen->{time}, '<', $late, 'at once';
    }
    $redis->start;
    $redis->cmd('SET', cache_key($session), $value);
    wait_for_hit($port, $session);
    $nginx->log_like(qr/\[notice\] .* is up again/, from => $from);
    lines_are($nginx, ' is down: connect\(\) failed', 'SSL sessions not stored in', 'recv\(\) failed \(104: ');
};

subtest 'an idle connection that the store closes is no trouble' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $redis->port)));
    my $session = stored_session($port, $redis);
    for my $how ('CLIENT KILL', 'timeout') {
        is visit($port, session => $session)->{status}, 'HIT', 'hit';
        my $from = $nginx->log_pos;
        if ($how eq 'timeout') {
            $redis->cmd(qw(CONFIG SET timeout 1));
            $nginx->log_like(qr/server closed connection/, from => $from, seconds => 15);
            $redis->cmd(qw(CONFIG SET timeout 0));
        } else {
            $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
            $nginx->log_like(qr/server closed connection/, from => $from);
        }
        is links($redis), 0, "$how: closed";
        is visit($port, session => $session)->{status}, 'HIT', 'the next lookup is a hit';
        is links($redis), 1, 'on a new connection';
    }
    lines_are($nginx);
};

subtest 'a reply cut anywhere does not put the next connection out of step' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, 'store', backend('127.0.0.1:' . $relay->port)));
    my $session = stored_session($port, $redis);
    my $length  = length $redis->cmd('GET', cache_key($session));
    for my $end (1, 4, 6, 100, 6 + $length, 7 + $length) {
        wait_for_hit($port, $session);
        $relay->cut($end);
        is visit($port, session => $session)->{status}, 'ERROR', "after $end bytes";
        # The store of this full handshake has opened the next one.
        wait_for_hit($port, $session);
    }
    # Of one session there would be one lookup.
    my @sessions = ($session, map { stored_session($port, $redis) } 1 .. 2);
    for my $end (qw(close_all reset_all)) {
        for my $bytes (5, 50) {
            wait_for_hit($port, $session);
            $relay->hold;
            my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_)->start } @sessions;
            wait_until { $relay->stats->{reply} >= 3 * $length } 5, 'held replies';
            $relay->$end;
            $relay->release;
            like $_->request, qr/^ERROR/, "$end: each of those that wait" for @clients;
        }
    }
    wait_for_hit($port, $session);
    lines_are($nginx, 'redis 127\.0\.0\.1:\d+: server closed connection',
        'redis 127\.0\.0\.1:\d+: connection failed \(104: ', ' is down: server closed connection',
        'recv\(\) failed \(104: ', 'SSL sessions not stored in');
};

done_testing;
