# Lookups of one session that are under way at the same time are one request; what waits for a
# slow store is bounded.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

sub conf {
    my ($port, $server, %more) = @_;
    my %limit = (connect_timeout => '20s', fetch_timeout => '30s', store_timeout => '60s', %{ $more{limit} // {} });
    return <<"CONF";
    ssl_session_backend store {
        server $server;
        ${\ join "\n        ", map { "$_ $limit{$_};" } sort keys %limit }
    }
    ssl_session_fetch store ${\ ($more{single_use} ? 'single_use' : '') };
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    ${\ ($more{conf} // '') }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 \$ssl_session_fetch_status; }
    }
CONF
}

# Redis behind a relay, and nginx.
sub start {
    my (%more) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $relay->port, %more));
    return ($port, $redis, $relay, $nginx);
}

sub stored_session {
    my ($port, $redis, $protocol) = @_;
    my $client = tls_client(port => $port, protocol => $protocol);
    $client->request;
    wait_until { $redis->cmd('EXISTS', cache_key($client->session)) } 5, 'the session in the store';
    return $client->session;
}

# What nginx says of a client that has gone; OpenSSL's words where its callback has found out.
my $gone = qr/peer closed connection in SSL handshake|Connection reset by peer\) while SSL handshaking|:callback failed\) while SSL handshaking/;

# Clients that have sent their ClientHello; each is { protocol =>, session => }.
sub begin { my ($port, @clients) = @_; return map { tls_client(port => $port, %$_)->start } @clients }

# Waits until nginx has read that many of them: each then waits for its lookup, or is done with it.
sub wait_lookups {
    my ($nginx, $from, $n) = @_;
    wait_until { $nginx->log_count(qr/\[debug\] .*SSL_get_error: (?:2|11)\b/, from => $from) >= $n } 10, "$n handshakes to wait";
}

# The outcomes, and how many were resumed.
sub ends {
    my (@clients) = @_;
    my %count;
    for my $client (@clients) {
        my $status = $client->request // 'no answer: ' . $client->error;
        $count{$status}++;
        $count{resumed} += $client->reused;
    }
    delete $count{resumed} if !$count{resumed};
    return \%count;
}

sub gets { return scalar $_[0]->requests('GET') }

sub nothing_else {
    my ($nginx, $except) = @_;
    is_deeply [ $nginx->errors(warn => 1, $except ? (except => $except) : ()) ], [], 'nothing else in the log';
}

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: twenty clients that offer one session make one request" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my $session = stored_session($port, $redis, $protocol);
        $relay->hold;
        my $from    = $nginx->log_pos;
        my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 20);
        wait_lookups($nginx, $from, 20);
        is gets($relay), 1, 'one GET';
        $relay->release;
        is_deeply ends(@clients), { HIT => 20, resumed => 20 }, 'all resume';
        is gets($relay), 1, 'still one';
        is_deeply ends(begin($port, { protocol => $protocol, session => $session })), { HIT => 1, resumed => 1 }, 'one later';
        is gets($relay), 2, 'is a request of its own';
        nothing_else($nginx);
    };

    subtest "$protocol: different sessions are asked for one by one" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my @sessions = map { stored_session($port, $redis, $protocol) } 1 .. 4;
        $redis->cmd('DEL', cache_key($sessions[3]));
        $relay->hold;
        my $from    = $nginx->log_pos;
        my @clients = begin($port, map { { protocol => $protocol, session => $_ } } (@sessions) x 3);
        wait_lookups($nginx, $from, 12);
        is gets($relay), 4, 'one GET for each';
        $relay->release;
        my @gone = @clients[ 3, 7, 11 ];
        is_deeply ends(@gone), { MISS => 3 }, 'one is not there';
        is_deeply ends(@clients[ 0 .. 2, 4 .. 6, 8 .. 10 ]), { HIT => 9, resumed => 9 }, 'each gets its own';
        nothing_else($nginx);
    };

    subtest "$protocol: a miss is a miss for all" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my $session = stored_session($port, $redis, $protocol);
        $redis->cmd('DEL', cache_key($session));
        $relay->hold;
        my $from    = $nginx->log_pos;
        my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 10);
        wait_lookups($nginx, $from, 10);
        $relay->release;
        is_deeply ends(@clients), { MISS => 10 }, 'all make full handshakes';
        is gets($relay), 1, 'one GET';
        nothing_else($nginx);
    };

    subtest "$protocol: a timeout is a timeout for all" => sub {
        my ($port, $redis, $relay, $nginx) = start(limit => { fetch_timeout => 1000 * patience() . 'ms' });
        my $session = stored_session($port, $redis, $protocol);
        $relay->drop(1, 'request');
        my $from    = $nginx->log_pos;
        my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 10);
        wait_lookups($nginx, $from, 10);
        is_deeply ends(@clients), { TIMEOUT => 10 }, 'all make full handshakes';
        is gets($relay), 1, 'one GET';
        nothing_else($nginx, qr/ is down: no answer|SSL sessions not stored in/);
    };

    subtest "$protocol: clients that go leave the lookup to the others" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my $session = stored_session($port, $redis, $protocol);
        $relay->hold;
        my $from    = $nginx->log_pos;
        my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 10);
        wait_lookups($nginx, $from, 10);
        # The first is the one that made the request.
        my @gone = splice @clients, 0, 3;
        push @gone, pop @clients;
        $gone[0]->reset;
        $_->close for @gone[ 1 .. $#gone ];
        wait_until { $nginx->log_count(qr/$gone/,
            from => $from) >= @gone } 5, 'nginx to see them go';
        push @clients, begin($port, { protocol => $protocol, session => $session });
        wait_lookups($nginx, $from, 11);
        is gets($relay), 1, 'one GET';
        $relay->release;
        is_deeply ends(@clients), { HIT => 7, resumed => 7 }, 'the others resume, and one that came later';
        is gets($relay), 1, 'still one';
        nothing_else($nginx);
    };

    subtest "$protocol: when all have gone, the next one is served" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my $session = stored_session($port, $redis, $protocol);
        $relay->hold;
        my $from    = $nginx->log_pos;
        my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 5);
        wait_lookups($nginx, $from, 5);
        $_->close for @clients;
        wait_until { $nginx->log_count(qr/$gone/, from => $from) >= 5 } 5, 'nginx to see them go';
        my @late = begin($port, ({ protocol => $protocol, session => $session }) x 3);
        wait_lookups($nginx, $from, 8);
        $relay->release;
        is_deeply ends(@late), { HIT => 3, resumed => 3 }, 'it resumes';
        cmp_ok gets($relay), '<=', 2, 'with one GET more at most';
        nothing_else($nginx);
    };

    subtest "$protocol: a corrupt entry is told to all, and removed" => sub {
        my ($port, $redis, $relay, $nginx) = start();
        my $session = stored_session($port, $redis, $protocol);
        my $other   = stored_session($port, $redis, $protocol);
        for my $entry ('no session at all', $redis->cmd('GET', cache_key($other))) {
            my $dels = $redis->calls('del');
            $redis->cmd('SET', cache_key($session), $entry);
            $relay->hold;
            my $from    = $nginx->log_pos;
            my $gets    = gets($relay);
            my @clients = begin($port, ({ protocol => $protocol, session => $session }) x 20);
            wait_lookups($nginx, $from, 20);
            is gets($relay) - $gets, 1, 'one GET';
            my $accepted = $relay->stats->{accepted};
            $relay->release;
            is_deeply ends(@clients), { CORRUPT => 20 }, 'all make full handshakes';
            wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'its removal';
            # What was asked for after that is answered after that.
            is_deeply ends(begin($port, { protocol => $protocol, session => $other })), { HIT => 1, resumed => 1 }, 'the next is in step';
            is $redis->calls('del') - $dels, 1, 'the removal is asked for once, not twenty times';
            is $relay->stats->{accepted}, $accepted, 'on the same connection';
            cmp_ok $nginx->log_count(qr/corrupt SSL session/, from => $from), '<=', 2, 'and not said twenty times';
        }
        nothing_else($nginx, qr/corrupt SSL session/);
    };
}

subtest 'what many waited for is put into a nearer tier once' => sub {
    my ($port, $near) = (free_port(), redis());
    my ($far_port, $far, $relay) = start();
    my $session = stored_session($far_port, $far, 'TLSv1.2');
    my $conf  = conf($port, '127.0.0.1:' . $relay->port) =~ s/fetch store/fetch ${\ $near->url } store/r;
    my $nginx = nginx(conf => $conf);
    my $from  = $nginx->log_pos;
    $relay->hold;
    my @clients = begin($port, ({ protocol => 'TLSv1.2', session => $session }) x 10);
    # One that comes later would find what the others have been given, or be a lookup of its own.
    wait_until { $nginx->log_count(qr/ SSL session fetch .*: asked "store"/, from => $from) >= 10 } 10,
        'all to wait for the last tier';
    $relay->release;
    is_deeply ends(@clients), { HIT => 10, resumed => 10 }, 'all resume';
    is $far->calls('get'), 1, 'one GET';
    my $asked = $near->calls('get');
    wait_until { $near->cmd('EXISTS', cache_key($session)) } 5, 'the session in the nearer tier';
    is_deeply ends(begin($port, { protocol => 'TLSv1.2', session => $session })), { HIT => 1, resumed => 1 }, 'the next one';
    is $near->calls('get'), $asked + 1, 'asks the nearer tier';
    is $near->calls('set'), 1, 'which was given it once';
    is $far->calls('get'), 1, 'and only that';
    nothing_else($nginx);
};

subtest 'takes are never one request' => sub {
    my ($port, $redis, $relay, $nginx) = start(single_use => 1);
    my $session = stored_session($port, $redis, 'TLSv1.3');
    $relay->hold;
    my $from    = $nginx->log_pos;
    my @clients = begin($port, ({ protocol => 'TLSv1.3', session => $session }) x 10);
    wait_lookups($nginx, $from, 10);
    # The relay may have to read the last one yet.
    ok wait_until { 10 == $relay->requests('GETDEL') } 5, 'each its own';
    $relay->release;
    is_deeply ends(@clients), { HIT => 1, MISS => 9, resumed => 1 }, 'one gets it';
    nothing_else($nginx);
};

subtest 'queue bounds the requests that are unanswered' => sub {
    my ($port, $redis, $relay, $nginx) = start(limit => { queue => 2 });
    my @offers = map { { protocol => 'TLSv1.2', session => stored_session($port, $redis, 'TLSv1.2') } } 1 .. 5;
    # With this answer those to the stores have come.
    is_deeply ends(begin($port, $offers[0])), { HIT => 1, resumed => 1 }, 'a hit to begin with';
    my $gets = gets($relay);
    $relay->hold;
    my $from    = $nginx->log_pos;
    my @two     = begin($port, @offers[ 0, 1 ]);
    wait_lookups($nginx, $from, 2);
    my @three   = begin($port, @offers[ 2 .. 4 ]);
    $_->handshake for @three;
    is_deeply [ map { $_->reused } @three ], [ 0, 0, 0 ], 'over it handshakes are full, at once';
    my @same    = begin($port, (@offers[ 0, 1 ]) x 3);
    wait_lookups($nginx, $from, 8);
    is gets($relay) - $gets, 2, 'two requests';
    is_deeply ends(@three), { DOWN => 3 }, 'those over it are DOWN';
    is $nginx->log_count(qr/\[warn\] .* redis \S+: queue of 2 is full, \d+ requests dropped$doing$/, from => $from), 1, 'said once';
    $relay->release;
    is_deeply ends(@two, @same), { HIT => 8, resumed => 8 }, 'the two, and those who joined them, resume';
    is_deeply ends(begin($port, $offers[4])), { HIT => 1, resumed => 1 }, 'and there is room again';
    is $nginx->log_count(qr/ is down: /), 0, 'it is no failure of the server';
    nothing_else($nginx, qr/queue of 2 is full|SSL sessions not stored in/);
};

# Full handshakes one after the other, for some seconds, each with a session of some KB.
sub load {
    my ($port, $seconds) = @_;
    my $process = SSLSession::Process->spawn(name => 's_time', out => tmpdir() . '/s_time', cmd => [
        qw(openssl s_time -new -time), $seconds, '-connect', "127.0.0.1:$port",
        '-cert', $certs->{client_crt}, '-key', $certs->{client_key} ]);
    $process->wait_exit(20 + 5 * $seconds);
    my ($n) = slurp(tmpdir() . '/s_time') =~ /(\d+) connections in \d+\.\d+s; / or die slurp(tmpdir() . '/s_time');
    unlink tmpdir() . '/s_time';
    return $n;
}

subtest 'a store that is slow for a while costs bounded memory' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(log => 'notice', conf => conf($port, '127.0.0.1:' . $redis->port,
        limit => { queue => 100 },
        conf => 'ssl_verify_client optional_no_ca;'));
    load($port, 1);
    my ($session) = map { $_->session } tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1);
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'it is up to date';
    my $size = $redis->cmd('DBSIZE');
    my $rss  = $nginx->rss;
    $redis->pause;
    my $from = $nginx->log_pos;
    my $start = time;
    my $n     = load($port, 3);
    my $lines = time - $start + 1;
    my $grown = $nginx->rss - $rss;
    note "$n sessions, $grown KB";
    cmp_ok $n, '>', 200, "$n handshakes were made";
    cmp_ok $grown, '<', 2048, 'the worker has grown by less than two megabytes';
    my $dropped = 0;
    for ($nginx->errors(warn => 1, from => $from)) {
        $dropped += $1 if /\[warn\] .*: (\d+) SSL sessions not stored in "store", (?:redis \S+ is not available|the queue is full)$/;
    }
    cmp_ok $dropped, '>', 0, 'what was dropped is said';
    cmp_ok $nginx->log_count(qr/queue of 100 is full/, from => $from), '<=', $lines, 'once a second';
    cmp_ok $nginx->log_count(qr/SSL sessions not stored in/, from => $from), '<=', $lines, 'once a second';
    $redis->resume;
    wait_until { $redis->cmd('DBSIZE') >= $size + 100 } 10, 'what had waited';
    $session = stored_session($port, $redis, 'TLSv1.2');
    is $redis->cmd('DBSIZE'), $size + 101, 'as many sessions as the queue holds had waited';
    is_deeply ends(begin($port, { protocol => 'TLSv1.2', session => $session })), { HIT => 1, resumed => 1 }, 'then it serves';
    nothing_else($nginx, qr/queue of 100 is full|SSL sessions not stored in/);
};

done_testing;
