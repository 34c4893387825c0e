# A worker that is told to finish: it holds nobody up, loses no session and leaves in peace.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Select;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# Exits at once, in seconds.
my $at_once = 0.7 * patience();

sub conf {
    my ($port, $server, %limit) = @_;
    my %all = (connect_timeout => 500 * patience() . 'ms', fetch_timeout => 200 * patience() . 'ms', %limit);
    my $limits = join ' ', map { "$_ $all{$_};" } sort keys %all;
    return <<"CONF";
    ssl_session_backend store { server $server; $limits }
    ssl_session_fetch store;
    ssl_session_store store;
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

sub start {
    my (%limit) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $main  = delete $limit{main};
    my $nginx = nginx(main => $main, conf => conf($port, '127.0.0.1:' . $relay->port, %limit));
    return ($port, $redis, $relay, $nginx);
}

sub in_store {
    my ($redis, @sessions) = @_;
    return scalar grep { $redis->cmd('EXISTS', cache_key($_)) } @sessions;
}

# Sessions of full handshakes, in TLS 1.3 all tickets.
sub full_handshakes {
    my ($port) = @_;
    my @sessions;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $client = tls_client(port => $port, protocol => $protocol);
        is $client->request, '', "$protocol: full handshake";
        push @sessions, $client->sessions;
    }
    return @sessions;
}

# The seconds until everything has exited.
sub seconds_to_quit {
    my ($nginx) = @_;
    my $start = time;
    $nginx->quit(20);
    return time - $start;
}

sub in_peace {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing in the log';
}

subtest 'no longer than worker_shutdown_timeout, when the client has gone' => sub {
    # Of the store's own timeouts none is the reason.
    my ($port, $redis, $relay, $nginx) = start(fetch_timeout => '60s', store_timeout => '60s',
        main => 'worker_shutdown_timeout 1s;');
    my ($session) = full_handshakes($port);
    wait_until { in_store($redis, $session) } 5, 'the session in the store';
    my $asked = $relay->requests;
    $relay->hold;
    my $waits = tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->start;
    wait_until { $relay->requests > $asked } 5, 'its lookup';
    # For as long as a client is in its handshake nginx itself waits.
    $waits->close;
    my $seconds = seconds_to_quit($nginx);
    cmp_ok $seconds, '>=', 0.9, 'what is in flight has its time';
    cmp_ok $seconds, '<', 1 + 3 * patience(), 'and no more';
    is $nginx->log_count(qr/\[warn\] .*: redis \S+: 1 requests without an answer, as "worker_shutdown_timeout" is over/), 1, 'it is said';
    $relay->release;
};

subtest 'QUIT with a connection that was never opened' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    cmp_ok seconds_to_quit($nginx), '<', $at_once, 'at once';
    in_peace($nginx);
};

subtest 'QUIT with an idle connection' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    my @sessions = full_handshakes($port);
    wait_until { in_store($redis, @sessions) == @sessions } 5, 'the sessions in the store';
    wait_until { !$relay->stats->{reply} } 5, 'an idle connection';
    is $relay->stats->{open}, 1, 'it is open';
    cmp_ok seconds_to_quit($nginx), '<', $at_once, 'at once';
    wait_until { !$relay->stats->{open} } 5, 'its end';
    in_peace($nginx);
};

subtest 'HUP with an idle connection' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    for my $round (1 .. 3) {
        my @sessions = full_handshakes($port);
        wait_until { in_store($redis, @sessions) == @sessions } 5, 'the sessions in the store';
        $nginx->reload;
        my $start = time;
        wait_until { !$nginx->old_workers } 5, 'exit of the old worker';
        cmp_ok time - $start, '<', $at_once, "round $round: at once";
    }
    wait_until { $relay->stats->{open} <= 1 } 5, 'the end of their connections';
    $nginx->quit;
    in_peace($nginx);
};

subtest 'TERM with requests open' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    full_handshakes($port);
    $relay->hold;
    full_handshakes($port);
    my $start = time;
    $nginx->stop;
    cmp_ok time - $start, '<', $at_once, 'at once';
    in_peace($nginx);
};

for my $signal (qw(QUIT HUP)) {
    # Waits for the worker that was told to go.
    my $gone = sub {
        my ($nginx) = @_;
        return $signal eq 'QUIT' ? !$nginx->process->alive : !$nginx->old_workers;
    };
    my $tell = sub {
        my ($nginx) = @_;
        return $nginx->reload if $signal eq 'HUP';
        my $from = $nginx->log_pos;
        $nginx->signal('QUIT');
        $nginx->log_like(qr/gracefully shutting down/, from => $from);
    };

    subtest "$signal: stores that the server has not read yet are waited for" => sub {
        my ($port, $redis, $relay, $nginx) = start(store_timeout => '30s');
        full_handshakes($port);
        $relay->hold('request');
        my @sessions = full_handshakes($port);
        is in_store($redis, @sessions), 0, 'held on their way';
        $tell->($nginx);
        ok !$gone->($nginx), 'the worker stays';
        $relay->release('request');
        wait_until { $gone->($nginx) } 5, 'exit';
        is in_store($redis, @sessions), @sessions, 'all sessions are in the store';
        $nginx->quit;
        in_peace($nginx);
    };

    subtest "$signal: stores without an answer are waited for, then let go" => sub {
        my ($port, $redis, $relay, $nginx) = start(store_timeout => 1000 * patience() . 'ms');
        full_handshakes($port);
        $relay->hold;
        my $start = time;
        my @sessions = full_handshakes($port);
        $tell->($nginx);
        wait_until { $gone->($nginx) } 10, 'exit';
        my $took = time - $start;
        cmp_ok $took, '>=', 0.9 * patience(), 'it waited for store_timeout';
        cmp_ok $took, '<', 2.5 * patience(), 'and not much longer';
        is in_store($redis, @sessions), @sessions, 'what it had sent is in the store';
        $relay->release;
        $nginx->quit;
        in_peace($nginx, ' is down: no answer within');
    };

    subtest "$signal: a handshake over a lookup is finished, and what it makes is stored" => sub {
        my ($port, $redis, $relay, $nginx) = start(fetch_timeout => '30s', store_timeout => '30s');
        my @sessions = full_handshakes($port);
        wait_until { in_store($redis, @sessions) == @sessions } 5, 'the sessions in the store';
        my @names = $redis->keys;
        $relay->hold;
        my $hit  = tls_client(port => $port, protocol => 'TLSv1.3', session => $sessions[-1])->start;
        my $miss = tls_client(port => $port, protocol => 'TLSv1.2', session => $sessions[0]);
        $redis->cmd('DEL', cache_key($sessions[0]));
        $miss->start;
        wait_until { $relay->requests('GET') == 2 } 5, 'their lookups';
        $tell->($nginx);
        ok !$gone->($nginx), 'the worker stays';
        $relay->release;
        is $hit->request,  'HIT',  'one is resumed' or diag $hit->error;
        is $miss->request, 'MISS', 'the other is not' or diag $miss->error;
        wait_until { $gone->($nginx) } 5, 'exit';
        is in_store($redis, $hit->sessions, $miss->sessions), 2, 'the new session and the new ticket are in the store';
        $nginx->quit;
        in_peace($nginx);
    };

    subtest "$signal: a handshake that began before it ends after it; its sessions are stored" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my @clients = map { tls_client(port => $port, protocol => $_) } qw(TLSv1.2 TLSv1.3);
        my $from = $nginx->log_pos;
        for my $client (@clients) {
            $client->send_raw(substr $client->client_hello, 0, 50);
        }
        wait_until { $nginx->log_count(qr/SSL_do_handshake: -1/) >= 2 } 5, 'handshakes under way';
        $tell->($nginx);
        for my $client (@clients) {
            # The rest of the ClientHello, then what follows.
            $client->send_raw(substr $client->client_hello, 50);
            $client->{started} = 1;
            is $client->request, '', 'full handshake' or diag $client->error;
        }
        wait_until { $gone->($nginx) } 5, 'exit';
        my @sessions = map { $_->sessions } @clients;
        is in_store($redis, @sessions), 3, 'its session and both tickets are in the store';
        $nginx->quit;
        in_peace($nginx);
    };

    subtest "$signal: a client that keeps its connection, and an idle one to the store" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my @sessions = full_handshakes($port);
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $sessions[0], handshake => 1);
        is $client->reused, 1, 'resumed';
        $tell->($nginx);
        # It would be a connection of a worker that has no other use for it.
        wait_until { !$relay->stats->{open} } 5, 'the end of the idle connection';
        is $client->request, 'HIT', 'the client is served';
        wait_until { $gone->($nginx) } 5, 'exit';
        $nginx->quit;
        in_peace($nginx);
    };
}

subtest 'QUIT while the store hangs' => sub {
    my ($port, $redis, $relay, $nginx) = start(store_timeout => 500 * patience() . 'ms');
    my @sessions = full_handshakes($port);
    wait_until { in_store($redis, @sessions) == @sessions } 5, 'the sessions in the store';
    $redis->pause;
    my $waits = tls_client(port => $port, protocol => 'TLSv1.2', session => $sessions[0])->start;
    wait_until { $relay->requests('GET') } 5, 'its lookup';
    my $seconds = do { $nginx->signal('QUIT'); my $start = time; $waits->request; $nginx->quit; time - $start };
    cmp_ok $seconds, '<', 2 * patience(), 'no longer than the timeouts';
    is $waits->reused, 0, 'the handshake that waited was finished in full';
    $redis->resume;
    in_peace($nginx, ' is down: no answer within', 'SSL sessions not stored in');
};

subtest 'QUIT while the connection to the store is being opened' => sub {
    my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1) or die "listen: $!";
    # Its queue is full: who comes now has to wait.
    my @first;
    while (@first < 10) {
        push @first, IO::Socket::INET->new(
            PeerAddr => '127.0.0.1', PeerPort => $server->sockport, Timeout => 0.2) // last;
    }
    plan skip_all => 'this system lets everybody in' if @first == 10;
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $server->sockport,
        connect_timeout => '20s', store_timeout => '20s'));
    is tls_client(port => $port, protocol => 'TLSv1.2')->request, '', 'full handshake, not held up';
    $nginx->signal('QUIT');
    $nginx->log_like(qr/gracefully shutting down/);
    my ($said, $deadline) = ('', time + 10 * patience());
    my $select = IO::Select->new($server);
    while ($said !~ /SET/ && time < $deadline && $nginx->process->alive) {
        for my $fh ($select->can_read(0.1)) {
            if ($fh == $server) {
                $select->add($server->accept);
            } else {
                sysread $fh, $said, 4096, length $said or $select->remove($fh);
            }
        }
    }
    like $said, qr/SET/, 'the session was sent when the server let it in';
    # It gets no answer.
    $nginx->stop;
    in_peace($nginx);
};

subtest 'QUIT while the store is down' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    $relay->stop;
    full_handshakes($port);
    cmp_ok seconds_to_quit($nginx), '<', $at_once, 'at once';
    in_peace($nginx, ' is down: connect\(\) failed', 'SSL sessions not stored in');
};

done_testing;
