# Sessions in shared memory, alone and in front of a store.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

sub conf {
    my ($port, $targets, @more) = @_;
    return <<"CONF";
    ssl_session_fetch $targets;
    ssl_session_store $targets;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @more
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$ssl_session_fetch_time|\$pid"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier, $time, $pid) = split /\|/, $answer;
    return { status => $status, tier => $tier, time => $time, pid => $pid, reused => $client->reused,
        client => $client, session => $client->session };
}

sub in_peace {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing in the log';
}

subtest 'a zone needs nothing else' => sub {
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'shared:tls:1m'));
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $first = visit($port, protocol => $protocol);
        is $first->{status}, '', "$protocol: no session offered, no lookup";
        for (1 .. 3) {
            my $again = visit($port, protocol => $protocol, session => $first->{session});
            is $again->{status}, 'HIT', 'outcome';
            is $again->{reused}, 1, 'resumed';
            is $again->{tier}, 'shared:tls', 'the tier is named without its size';
        }
        # Another process's session, of which this one knows nothing.
        my $other = nginx(conf => conf(my $elsewhere = free_port(), 'shared:tls:1m'));
        my $seen  = visit($elsewhere, protocol => $protocol, session => $first->{session});
        is $seen->{status}, 'MISS', 'elsewhere it is a miss';
        is $seen->{reused}, 0, 'and a full handshake';
        is $seen->{tier}, '', 'of no tier';
        in_peace($other);
    }
    in_peace($nginx);
};

subtest 'a full zone: the oldest sessions give way' => sub {
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'shared:tls:40k'), log => 'notice');
    my @sessions;
    push @sessions, visit($port)->{session} for 1 .. 400;
    # Newest first, as each one that is not found makes a new one, for which others give way.
    my @resumed = map { visit($port, session => $_)->{reused} } reverse @sessions;
    is $resumed[0], 1, 'the newest resumes';
    is $resumed[-1], 0, 'the oldest does not';
    like join('', @resumed), qr/^1+0+$/, 'by age, without exception: none that is older than one that is gone';
    cmp_ok scalar(grep { $_ } @resumed), '>=', 20, 'the zone is made use of';
    in_peace($nginx);
};

subtest 'age counts, not use' => sub {
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'shared:tls:40k'), log => 'notice');
    my $first = visit($port)->{session};
    my $gone  = 0;
    for (1 .. 400) {
        $gone = !visit($port, session => $first)->{reused} and last;
        visit($port);
    }
    ok $gone, 'a session that is in use goes, too, when its time has come';
    in_peace($nginx);
};

subtest 'a full zone takes larger sessions, too' => sub {
    my $port  = free_port();
    my $nginx = nginx(log => 'notice', conf => conf($port, 'shared:tls:64k',
        "ssl_client_certificate $certs->{ca_crt};", 'ssl_verify_client optional;'));
    visit($port) for 1 .. 400;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my @client = (protocol => $protocol, cert => $certs->{client_big_crt}, key => $certs->{client_big_key});
        my $first  = visit($port, @client);
        is visit($port, @client, session => $first->{session})->{reused}, 1, "$protocol: one of several KB resumes";
    }
    my $small = visit($port);
    is visit($port, session => $small->{session})->{reused}, 1, 'and a small one after them';
    in_peace($nginx);
};

subtest 'a session ends with its time' => sub {
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'shared:tls:1m', 'ssl_session_timeout 2s;'));
    my %session = map { $_ => visit($port, protocol => $_)->{session} } qw(TLSv1.2 TLSv1.3);
    my $start = time;
    is visit($port, protocol => $_, session => $session{$_})->{status}, 'HIT', "$_: at first a hit" for sort keys %session;
    for my $protocol (sort keys %session) {
        my $seen = wait_until {
            my $seen = visit($port, protocol => $protocol, session => $session{$protocol});
            $seen->{status} eq 'MISS' && $seen;
        } 6, 'its end';
        is $seen->{reused}, 0, "$protocol: then a miss";
    }
    cmp_ok time - $start, '>=', 0.9, 'not before';
    in_peace($nginx);
};

subtest 'expired sessions make room before others give way' => sub {
    my $port  = free_port();
    my $short = 'ssl_session_timeout 1s;';
    my $nginx = nginx(log => 'notice', conf => conf($port, 'shared:tls:40k', $short));
    visit($port) for 1 .. 30;
    my $last = visit($port)->{session};
    wait_until { !visit($port, session => $last)->{reused} } 5, 'their end';
    $nginx->reload(conf($port, 'shared:tls:40k'));
    my $kept = visit($port)->{session};
    visit($port) for 1 .. 15;
    is visit($port, session => $kept)->{reused}, 1, 'one that lives is still there';
    in_peace($nginx);
};

subtest 'a zone survives a reload' => sub {
    my $port  = free_port();
    my $nginx = nginx(workers => 2, conf => conf($port, 'shared:tls:1m'));
    my %session = map { $_ => visit($port, protocol => $_)->{session} } qw(TLSv1.2 TLSv1.3);
    for my $round (1 .. 3) {
        my %old = map { $_ => 1 } $nginx->workers;
        $nginx->reload;
        for my $protocol (sort keys %session) {
            my $seen = visit($port, protocol => $protocol, session => $session{$protocol});
            ok !$old{ $seen->{pid} }, "reload $round: a new worker";
            is $seen->{reused}, 1, "$protocol: resumed";
        }
    }
    eval { $nginx->reload('nonsense;') };
    like $@, qr/unknown directive "nonsense"/, 'a configuration that is refused';
    is visit($port, session => $session{'TLSv1.2'})->{reused}, 1, 'changes nothing';
    # nginx itself makes a new zone of another size.
    $nginx->reload(conf($port, 'shared:tls:2m'));
    is visit($port, session => $session{'TLSv1.2'})->{status}, 'MISS', 'a zone of another size begins empty';
    my $new = visit($port)->{session};
    $nginx->reload(conf($port, 'off'));
    is visit($port, session => $new)->{reused}, 0, 'without a zone nothing is resumed';
    $nginx->reload(conf($port, 'shared:tls:2m'));
    is visit($port, session => $new)->{status}, 'MISS', 'and a zone that was away begins empty';
    wait_until { !$nginx->old_workers } 10, 'exit of the old workers';
    in_peace($nginx, 'unknown directive "nonsense"');
};

subtest 'two zones are two zones, and one may be used twice' => sub {
    my $port  = free_port();
    my $conf  = conf($port, 'shared:one:1m');
    (my $split = $conf) =~ s/store shared:one:1m/store shared:two:1m/;
    my $nginx = nginx(conf => $split);
    my $session = visit($port)->{session};
    is visit($port, session => $session)->{status}, 'MISS', 'stored in one, looked for in the other';
    (my $both = $conf) =~ s/fetch shared:one:1m/fetch shared:one:1m shared:two:1m/;
    $nginx->reload($both);
    $session = visit($port)->{session};
    my $seen = visit($port, session => $session);
    is $seen->{tier}, 'shared:one', 'the first of two that has it';
    in_peace($nginx);
};

subtest 'in front of a store: a hit there fills the zone' => sub {
    my $redis = redis();
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my ($port, $elsewhere) = (free_port(), free_port());
    # The test waits for the store longer than the default.
    my $store = "ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; fetch_timeout 10s; connect_timeout 10s; }";
    my $nginx = nginx(conf => conf($port, 'shared:tls:1m store', $store, 'ssl_session_timeout 100s;'));
    my $other = nginx(conf => conf($elsewhere, $redis->url, 'ssl_session_timeout 100s;'));
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = visit($elsewhere, protocol => $protocol)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        my $gets = $relay->requests('GET');
        my $seen = visit($port, protocol => $protocol, session => $session);
        is $seen->{status}, 'HIT', "$protocol: outcome";
        is $seen->{tier}, 'store', 'it came from the store';
        is $seen->{reused}, 1, 'resumed';
        is $relay->requests('GET'), $gets + 1, 'by one request';
        for (1 .. 2) {
            $seen = visit($port, protocol => $protocol, session => $session);
            is $seen->{tier}, 'shared:tls', 'then it is at hand';
            is $seen->{status}, 'HIT', 'outcome';
            is $seen->{reused}, 1, 'resumed';
        }
        is $relay->requests('GET'), $gets + 1, 'and the store is not asked';
        is_deeply [ grep { $_->[1] eq cache_key($session) } $relay->requests('SET') ], [], 'nor told what it knows';

        # Sessions of its own go to both.
        my $own = visit($port, protocol => $protocol)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($own)) } 5, 'the session in the store';
        is visit($elsewhere, protocol => $protocol, session => $own)->{reused}, 1, 'the other server resumes it';
        is visit($port, protocol => $protocol, session => $own)->{tier}, 'shared:tls', 'here it is at hand';

        $seen = visit($port, protocol => $protocol, session => visit($elsewhere, protocol => $protocol)->{session});
        like $seen->{status}, qr/^(?:HIT|MISS)$/, 'and others are looked for in the store';
    }
    in_peace($_) for $nginx, $other;
};

subtest 'what is in the zone resumes while the store is down' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, 'shared:tls:1m ' . $relay->url));
    my %session = map { $_ => visit($port, protocol => $_)->{session} } qw(TLSv1.2 TLSv1.3);
    wait_until { $redis->cmd('DBSIZE') == 3 } 5, 'the sessions in the store';
    $relay->stop;
    for my $protocol (sort keys %session) {
        my $seen = visit($port, protocol => $protocol, session => $session{$protocol});
        is $seen->{status}, 'HIT', "$protocol: outcome";
        is $seen->{reused}, 1, 'resumed';
    }
    $nginx->reload(conf($port, 'shared:other:1m ' . $relay->url));
    my $seen = visit($port, session => $session{'TLSv1.2'});
    is $seen->{status}, 'DOWN', 'what is not in it is not known: the trouble of the store outlives the miss';
    is $seen->{reused}, 0, 'full handshake';
    in_peace($nginx, ' is down: connect\(\) failed', 'SSL sessions not stored in', 'server closed connection');
};

subtest 'a session that came from the store ends with its own time, not later' => sub {
    my $redis = redis();
    my ($port, $elsewhere) = (free_port(), free_port());
    my $store = "ssl_session_backend store { server 127.0.0.1:${\ $redis->port}; fetch_timeout 10s; connect_timeout 10s; }";
    my $nginx = nginx(conf => conf($port, 'shared:tls:1m store', $store, 'ssl_session_timeout 1h;'));
    my $other = nginx(conf => conf($elsewhere, 'store', $store, 'ssl_session_timeout 3s;'));
    my $session = visit($elsewhere, protocol => 'TLSv1.3')->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    is visit($port, protocol => 'TLSv1.3', session => $session)->{tier}, 'store', 'from the store';
    my $seen = visit($port, protocol => 'TLSv1.3', session => $session);
    is $seen->{tier}, 'shared:tls', 'then from the zone';
    wait_until { visit($port, protocol => 'TLSv1.3', session => $session)->{status} eq 'MISS' } 10, 'its end';
    is $redis->cmd('EXISTS', cache_key($session)), 0, 'in both';
    # OpenSSL 3.2 and later take the last second for none: that is seen here dozens of times.
    in_peace($_, 'SSL sessions that were found could not be resumed') for $nginx, $other;
};

done_testing;
