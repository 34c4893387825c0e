# What is stored, for how long, and what is not.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

sub conf {
    my ($port, $target, @more) = @_;
    return <<"CONF";
    ssl_session_backend store {
        server $target;
        connect_timeout ${\ (500 * patience() ) }ms;
        fetch_timeout ${\ (200 * patience() ) }ms;
    }
    ssl_session_fetch store;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @more
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_client_verify|\$ssl_client_s_dn"; }
    }
CONF
}

sub start {
    my (@more) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $relay->port, @more));
    return ($port, $redis, $relay, $nginx);
}

# One connection and one request.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $verify, $name) = split /\|/, $answer;
    return { status => $status, reused => $client->reused, client => $client, session => $client->session,
        verify => $verify, name => $name };
}

sub wait_stored {
    my ($redis, @sessions) = @_;
    wait_until { @sessions == grep { $redis->cmd('EXISTS', cache_key($_)) } @sessions } 5, 'the sessions in the store';
}

# When the session of an entry ends, by its own fields for the time of its making and its timeout.
sub ends {
    my ($session, $entry) = @_;
    my $der = unseal(session_id($session), $entry);
    my ($time, $timeout) = $der =~ /\xa1[\x03-\x0a]\x02[\x01-\x08](.{4,5})\xa2[\x03-\x06]\x02[\x01-\x04](.{1,4}?)[\xa3\xa4]/s
        or die 'not a session';
    my $number = sub { my $n = 0; $n = $n << 8 | $_ for unpack 'C*', $_[0]; return $n };
    return $number->($time) + $number->($timeout);
}

sub in_peace {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing in the log';
}

subtest 'stored: a full handshake of TLS 1.2, and each ticket of TLS 1.3' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    my $sets = 0;
    my $made = sub {
        my ($more, $what, @sessions) = @_;
        $sets += $more;
        wait_stored($redis, @sessions);
        my @all = $relay->requests('SET');
        is scalar(@all), $sets, $what;
        my %key = map { $_->[1] => 1 } @all;
        ok !(grep { !$key{ cache_key($_) } } @sessions), 'under the name the client knows it by';
    };
    my $tls12 = visit($port, protocol => 'TLSv1.2');
    $made->(1, 'one session of TLS 1.2', $tls12->{session});
    my $tls13 = visit($port, protocol => 'TLSv1.3');
    $made->(2, 'two tickets of TLS 1.3', $tls13->{client}->sessions);
    my $again = visit($port, protocol => 'TLSv1.2', session => $tls12->{session});
    is $again->{reused}, 1, 'TLS 1.2 resumed';
    $made->(0, 'no session is made by it');
    $again = visit($port, protocol => 'TLSv1.3', session => $tls13->{session});
    is $again->{reused}, 1, 'TLS 1.3 resumed';
    $made->(1, 'one new ticket', $again->{client}->sessions);
    for my $session ($tls13->{client}->sessions, $again->{client}->sessions) {
        is visit($port, protocol => 'TLSv1.3', session => $session)->{reused}, 1, 'each ticket resumes';
    }
    in_peace($nginx);
};

subtest 'a client that keeps TLS 1.2 tickets gets a session ID where they are off' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    my $seen = visit($port, protocol => 'TLSv1.2', no_ticket => 1);
    wait_stored($redis, $seen->{session});
    is visit($port, protocol => 'TLSv1.2', session => $seen->{session})->{reused}, 1, 'resumed';
    in_peace($nginx);
};

subtest 'not stored: stateless tickets' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $conf  = conf($port, '127.0.0.1:' . $relay->port);
    $conf =~ s/ssl_session_tickets off;//;
    my $nginx = nginx(conf => $conf);
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $seen = visit($port, protocol => $protocol);
        my $again = visit($port, protocol => $protocol, session => $seen->{session});
        is $again->{reused}, 1, "$protocol: resumed by its ticket";
        is $again->{status}, '', 'without a lookup';
    }
    # Behind them in the same line, so they would have come before it.
    my $id = visit($port, protocol => 'TLSv1.2', no_ticket => 1);
    wait_stored($redis, $id->{session});
    is scalar($relay->requests('SET')), 1, 'only what the client has no ticket for is stored';
    is scalar($redis->keys), 1, 'one key';
    $nginx->quit;
    in_peace($nginx, '"ssl_session_tickets" is on');
};

subtest 'not stored: with ssl_session_store off, or with ssl_session_cache off' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $conf  = conf($port, '127.0.0.1:' . $relay->port);
    (my $off = $conf) =~ s/ssl_session_store store/ssl_session_store off/;
    my $nginx = nginx(conf => $off);
    visit($port, protocol => $_) for qw(TLSv1.2 TLSv1.3);
    $nginx->reload(conf($port, '127.0.0.1:' . $relay->port, 'ssl_session_cache off;'));
    visit($port, protocol => $_) for qw(TLSv1.2 TLSv1.3);
    $nginx->quit;
    is_deeply [ $relay->requests ], [], 'nothing sent';
    in_peace($nginx);
};

subtest 'storing never delays a handshake' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    my $fastest = sub {
        my ($protocol) = @_;
        my @took;
        for (1 .. 10) {
            my $client = tls_client(port => $port, protocol => $protocol);
            my $start  = time;
            $client->request // die $client->error;
            push @took, time - $start;
        }
        @took = sort { $a <=> $b } @took;
        return $took[0];
    };
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        $fastest->($protocol);
        my $from = $relay->requests('SET');
        $relay->delay(400, 'request');
        my $took = $fastest->($protocol);
        cmp_ok $took, '<', 0.2 * patience(), "$protocol: while the store takes 400 ms";
        wait_until { $relay->requests('SET') >= $from + 10 } 10, 'the sessions, afterwards';
        $relay->delay(0, 'request');
        wait_until { !$relay->stats->{request} } 5, 'the last request';
    }
    in_peace($nginx);
};

subtest 'store down: handshakes unaffected, each loss counted, one warning a second' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    $relay->stop;
    my ($start, $made, @lines) = (time, 0);
    # Each of these makes one session to store. The last line must be of the last of them.
    wait_until {
        my $seen = visit($port, protocol => 'TLSv1.2');
        $made++;
        @lines = grep { /SSL sessions not stored in/ } split /\n/, $nginx->log;
        @lines == 3;
    } 10, 'three warnings';
    my $seconds = time - $start;
    cmp_ok $seconds, '>=', 1.9, 'they came a second apart';
    my $sum = 0;
    for my $line (@lines) {
        like $line, qr/\[warn\] \d+#\d+: \d+ SSL sessions not stored in "store", redis 127\.0\.0\.1:\d+ is not available$/, 'its text';
        $sum += ($line =~ /: (\d+) SSL sessions/)[0];
    }
    # What was on its way before the server was known to be down stands behind the line about that.
    cmp_ok $sum, '>=', $made - 1, 'together they count the sessions that were lost';
    cmp_ok $sum, '<=', $made, 'and no others';
    in_peace($nginx, ' is down: connect\(\) failed \(111: ', 'SSL sessions not stored in');
};

subtest 'a store that refuses to store: said, handshakes unaffected' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    $redis->cmd(qw(CONFIG SET maxmemory 1));
    my $seen = visit($port, protocol => 'TLSv1.2');
    is $seen->{status}, '', 'full handshake';
    $nginx->log_like(qr/\[error\] .* refused 1 requests, the last with "OOM command not allowed/);
    $redis->cmd(qw(CONFIG SET maxmemory 0));
    $seen = visit($port, protocol => 'TLSv1.2');
    wait_stored($redis, $seen->{session});
    is visit($port, session => $seen->{session})->{status}, 'HIT', 'then it stores again';
    is $relay->stats->{accepted}, 2, 'on the same connections';
    in_peace($nginx, 'refused \d+ requests');
};

subtest 'the ttl is the remaining life of the session' => sub {
    for my $timeout (300, 7200) {
        my ($port, $redis, $relay, $nginx) = start("ssl_session_timeout ${timeout}s;");
        my @sessions = visit($port, protocol => 'TLSv1.2')->{session};
        my $tls13 = visit($port, protocol => 'TLSv1.3');
        push @sessions, $tls13->{client}->sessions;
        my $again = visit($port, protocol => 'TLSv1.3', session => $tls13->{session});
        is $again->{reused}, 1, 'resumed, for one more ticket';
        push @sessions, $again->{client}->sessions;
        wait_stored($redis, @sessions);
        is scalar(@sessions), 4, 'of TLS 1.2, two of TLS 1.3 and one of a resumption';
        for my $session (@sessions) {
            my $left = ends($session, $redis->cmd('GET', cache_key($session))) - time;
            my $ttl  = $redis->cmd('TTL', cache_key($session));
            # OpenSSL asks the system for the time, nginx once in a turn of its event loop.
            cmp_ok $ttl, '<=', $timeout + patience(), "not longer than ssl_session_timeout $timeout";
            cmp_ok abs($ttl - $left), '<=', 2 * patience(), "and no other than the session's own";
        }
        in_peace($nginx);
    }
};

subtest 'a resumed ticket that has aged: what it leads to is stored for no longer than it lives' => sub {
    my ($port, $redis, $relay, $nginx) = start('ssl_session_timeout 5s;');
    my $first = visit($port, protocol => 'TLSv1.3');
    wait_stored($redis, $first->{session});
    wait_until { $redis->cmd('TTL', cache_key($first->{session})) <= 3 } 10, 'two seconds of its life to pass';
    my $again = visit($port, protocol => 'TLSv1.3', session => $first->{session});
    is $again->{reused}, 1, 'resumed';
    my ($ticket) = $again->{client}->sessions;
    wait_stored($redis, $ticket);
    my $left = ends($ticket, $redis->cmd('GET', cache_key($ticket))) - time;
    my $ttl  = $redis->cmd('PTTL', cache_key($ticket)) / 1000;
    cmp_ok abs($ttl - $left), '<=', 1.5 * patience(), 'the ttl is what the session says';
    in_peace($nginx);
};

subtest 'sessions with a client certificate of several KB' => sub {
    my ($port, $redis, $relay, $nginx) = start(
        "ssl_client_certificate $certs->{ca_crt};", 'ssl_verify_client optional;', 'ssl_verify_depth 2;');
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my @client = (protocol => $protocol, cert => $certs->{client_big_crt}, key => $certs->{client_big_key});
        my $first = visit($port, @client);
        is $first->{verify}, 'SUCCESS', "$protocol: verified";
        wait_stored($redis, $first->{session});
        cmp_ok length $redis->cmd('GET', cache_key($first->{session})), '>', 3 * 1024, 'several KB in the store';
        my $again = visit($port, @client, session => $first->{session});
        is $again->{status}, 'HIT', 'outcome';
        is $again->{reused}, 1, 'resumed';
        is $again->{verify}, 'SUCCESS', 'still verified';
        like $again->{name}, qr/CN=big client/, 'and known by name';
    }
    in_peace($nginx);
};

subtest 'sessions too large are not stored, with one warning a second' => sub {
    my ($port, $redis, $relay, $nginx) = start('ssl_verify_client optional_no_ca;');
    my $dir = tmpdir();
    my $alt = join ',', map { sprintf 'DNS:%s%03d.example.test', 'x' x 40, $_ } 1 .. 280;
    spew("$dir/huge.cnf", "[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nsubjectAltName=$alt\n");
    system("openssl req -x509 -nodes -days 7300 -subj /CN=huge -newkey ec -pkeyopt ec_paramgen_curve:P-256"
        . " -config $dir/huge.cnf -keyout $dir/huge.key -out $dir/huge.crt >$dir/huge.log 2>&1") == 0 or die slurp("$dir/huge.log");
    my @client = (cert => "$dir/huge.crt", key => "$dir/huge.key");
    my ($start, $from) = (time, $nginx->log_pos);
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for (1 .. 3) {
            my $seen = visit($port, protocol => $protocol, @client);
            like $seen->{name}, qr/CN=huge/, "$protocol: full handshake";
            is visit($port, protocol => $protocol, @client, session => $seen->{session})->{status}, 'MISS', 'and again';
        }
    }
    my $seconds = 1 + int(time - $start);
    my $line = $nginx->log_like(qr/\[warn\] .*\d+ SSL sessions larger than 16384 bytes not stored, the last of \d+/, from => $from);
    cmp_ok +($line =~ /the last of (\d+)/)[0], '>', 16384, 'it says how large';
    cmp_ok $nginx->log_count(qr/SSL sessions larger than/, from => $from), '<=', $seconds, 'one a second';
    my $small = visit($port, protocol => 'TLSv1.2');
    wait_stored($redis, $small->{session});
    is scalar($redis->keys), 1, 'others are stored';
    in_peace($nginx, 'SSL sessions larger than 16384');
};

subtest 'a session that OpenSSL removes is removed from the store' => sub {
    my ($port, $redis, $relay, $nginx) = start();
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = visit($port, protocol => $protocol)->{session};
        wait_stored($redis, $session);
        my $client = tls_client(port => $port, protocol => $protocol, session => $session, handshake => 1);
        is $client->reused, 1, "$protocol: resumed";
        my $dels = $relay->requests('DEL');
        # A record that does not decrypt: OpenSSL answers with a fatal alert and drops the session.
        $client->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64);
        is $client->wait_closed, 'eof', 'closed after a record that does not decrypt';
        wait_until { $relay->requests('DEL') > $dels } 5, 'a removal';
        SKIP: {
            # The session of a connection of TLS 1.3 is none of those in its tickets.
            skip 'TLS 1.2 only', 2 if $protocol ne 'TLSv1.2';
            is_deeply [ ($relay->requests('DEL'))[-1] ], [ [ 'DEL', cache_key($session) ] ], 'of its key';
            is visit($port, protocol => $protocol, session => $session)->{status}, 'MISS', 'it is gone';
        }
    }
    in_peace($nginx, 'SSL_do_handshake|SSL_read');
};

subtest 'an expired session of TLS 1.2 that is still in the store is removed, and not resumed' => sub {
    # Not so short that it ends before it is stored.
    my $timeout = 2 * patience();
    my ($port, $redis, $relay, $nginx) = start("ssl_session_timeout ${timeout}s;");
    my $session = visit($port, protocol => 'TLSv1.2')->{session};
    wait_stored($redis, $session);
    is $redis->cmd('PERSIST', cache_key($session)), 1, 'the store forgets to let it expire';
    my $ends = ends($session, $redis->cmd('GET', cache_key($session)));
    # OpenSSL counts whole seconds, on a clock that may lag behind this one by a tick.
    wait_until { time > $ends + 2 } 10, 'its end';
    my $seen = visit($port, protocol => 'TLSv1.2', session => $session);
    is $seen->{reused}, 0, 'full handshake';
    is $seen->{status}, 'CORRUPT', 'and why';
    wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'removal';
    ok 1, 'removed';
    in_peace($nginx, 'corrupt SSL session [0-9a-f]{8} in .*, 1 times: expired ');
};

done_testing;
