# Whatever a lookup comes to, the handshake comes to its end; the variable says what it was.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $port  = free_port();

# The tests of a hung store wait this long; a lookup that takes longer on a busy machine would be
# a TIMEOUT where something else is expected.
my $fetch_timeout = 100 * patience();

sub conf {
    my (@limits) = @_;
    return <<"CONF";
    ssl_session_backend store {
        server 127.0.0.1:${\ $relay->port};
        connect_timeout ${\ (500 * patience()) }ms;
        @limits
    }
    ssl_session_fetch store;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_reused|\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$ssl_session_fetch_time";
        }
    }
CONF
}

my $nginx = nginx(conf => conf("fetch_timeout ${fetch_timeout}ms;"));

# One connection and one request: what the server says about it, and the client.
sub visit {
    my %arg    = @_;
    my $client = tls_client(port => $port, %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($reused, $status, $tier, $time) = split /\|/, $answer;
    is $client->reused, $reused eq 'r' ? 1 : 0, 'both sides agree on whether the session was reused';
    return { reused => $client->reused, status => $status, tier => $tier, time => $time, client => $client };
}

# A session, once it is in the store.
sub stored_session {
    my ($protocol) = @_;
    my $session = visit(protocol => $protocol)->{client}->session;
    wait_until { defined $redis->cmd('GET', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

# The store may still count as down for what an earlier test has done to it.
sub wait_for_hits {
    my ($protocol) = @_;
    my ($fresh, $hit);
    wait_until {
        my $first  = tls_client(port => $port, protocol => $protocol);
        $first->request;
        my $again = tls_client(port => $port, protocol => $protocol, session => $first->session);
        ($again->request // '') =~ /^r\|HIT/;
    } 15, 'hits';
}

# nginx itself writes the line about recv().
my $nothing_worse = qr/\[error\].* (?:is down: |corrupt SSL session |refused \d+ requests|redis 127\.0\.0\.1:\d+: |recv\(\) failed \(104: )/;

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: HIT" => sub {
        wait_for_hits($protocol);
        my $session = stored_session($protocol);
        my $seen = visit(protocol => $protocol, session => $session);
        is $seen->{status}, 'HIT', 'outcome';
        is $seen->{reused}, 1, 'resumed';
        is $seen->{tier}, 'store', 'the tier has the name of the backend';
        like $seen->{time}, qr/^\d+\.\d{6}$/, 'and it took a time';
    };

    subtest "$protocol: no session offered, no lookup" => sub {
        my $gets = $relay->requests('GET');
        my $seen = visit(protocol => $protocol);
        is $seen->{status}, '', 'no outcome';
        is $seen->{time}, '', 'no time';
        is scalar($relay->requests('GET')), $gets, 'nothing asked';
    };

    subtest "$protocol: an entry that is gone is a MISS" => sub {
        my $session = stored_session($protocol);
        $redis->cmd('DEL', cache_key($session));
        my $seen = visit(protocol => $protocol, session => $session);
        is $seen->{status}, 'MISS', 'outcome';
        is $seen->{reused}, 0, 'full handshake';
        is $seen->{tier}, '', 'no tier had it';
        my $new = $seen->{client}->session;
        wait_until { $redis->cmd('GET', cache_key($new)) } 5, 'the new session in the store';
        is visit(protocol => $protocol, session => $new)->{status}, 'HIT', 'its session is good';
    };

    my $other = stored_session($protocol);
    my $value = $redis->cmd('GET', cache_key($other));
    my %corrupt = (
        'garbage'                       => 'no session at all',
        'an empty entry'                => '',
        'an entry cut short'            => substr($value, 0, -1),
        'an entry with more behind it'  => "$value\0",
        'an entry for another ID'       => $value,
        'an entry larger than any that is stored' => 'x' x 16415,
        'an entry of a megabyte'        => 'x' x 1_000_000,
    );
    for my $what (sort keys %corrupt) {
        subtest "$protocol: $what is CORRUPT" => sub {
            my $session  = stored_session($protocol);
            my $accepted = $relay->stats->{accepted};
            $redis->cmd('SET', cache_key($session), $corrupt{$what});
            my $start = time;
            my $seen  = visit(protocol => $protocol, session => $session);
            is $seen->{status}, 'CORRUPT', 'outcome';
            is $seen->{reused}, 0, 'full handshake';
            my $new = $seen->{client}->session;
            isnt cache_key($new), cache_key($session), 'a new session';
            wait_until { $redis->cmd('EXISTS', cache_key($new)) } 5, 'the new session in the store';
            ok eval { wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5 }, 'the corrupt entry is removed';
            cmp_ok time - $start, '<', 2 * patience(), 'all that in less than two seconds';
            is visit(protocol => $protocol, session => $new)->{status}, 'HIT', 'the next lookup is in step';
            # What lies behind a very long one is not waited for.
            is $relay->stats->{accepted} - $accepted, $what =~ /megabyte/ ? 1 : 0, 'on the same connection, or another';
        };
    }

    subtest "$protocol: an entry of exactly the largest size is read" => sub {
        my $session = stored_session($protocol);
        $redis->cmd('SET', cache_key($session), 'x' x 16414);
        is visit(protocol => $protocol, session => $session)->{status}, 'CORRUPT', 'outcome';
        wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'it was looked into and removed';
        ok 1, 'it was looked into and removed';
    };

    subtest "$protocol: an error reply is an ERROR, and the connection goes on" => sub {
        my $session  = stored_session($protocol);
        my $accepted = $relay->stats->{accepted};
        $redis->cmd('DEL', cache_key($session));
        $redis->cmd('LPUSH', cache_key($session), 'of another type');
        my $seen = visit(protocol => $protocol, session => $session);
        is $seen->{status}, 'ERROR', 'outcome';
        is $seen->{reused}, 0, 'full handshake';
        # One line a second at most: that of the other protocol may stand for this one.
        $nginx->log_like(qr/\[error\].* refused \d+ requests, the last with "WRONGTYPE /);
        is visit(protocol => $protocol, session => $seen->{client}->session)->{status}, 'HIT', 'then a hit';
        is $relay->stats->{accepted}, $accepted, 'on the same connection';
    };

    subtest "$protocol: a connection closed during the lookup is an ERROR" => sub {
        for my $end (qw(close_all reset_all)) {
            my $session = stored_session($protocol);
            $relay->hold;
            my $client = tls_client(port => $port, protocol => $protocol, session => $session)->start;
            wait_until { $relay->stats->{reply} > 100 } 5, 'a held reply';
            $relay->$end;
            $relay->release;
            like $client->request, qr/^\.\|ERROR\|\|/, "$end: full handshake, and why";
            is $client->reused, 0, 'not resumed';
            # The server had shown that it works, so it is not counted as down.
            is visit(protocol => $protocol, session => $session)->{status}, 'HIT', 'a new connection serves the next';
        }
    };

    subtest "$protocol: no answer is a TIMEOUT, then the store is DOWN, then it is back" => sub {
        my $session = stored_session($protocol);
        my $from    = $nginx->log_pos;
        $relay->drop;
        my $seen = visit(protocol => $protocol, session => $session);
        is $seen->{status}, 'TIMEOUT', 'outcome';
        is $seen->{reused}, 0, 'full handshake';
        $nginx->log_like(qr/\[error\].* is down: no answer within \d+ ms/, from => $from);
        $seen = visit(protocol => $protocol, session => $session);
        is $seen->{status}, 'DOWN', 'outcome while the breaker is open';
        is $seen->{reused}, 0, 'full handshake';
        cmp_ok $seen->{time}, '<', $fetch_timeout / 1000 / 2, 'at once';
        $relay->drop(0);
        wait_until { visit(protocol => $protocol, session => $session)->{status} eq 'HIT' } 15, 'hits';
        $nginx->log_like(qr/\[notice\].* is up again/, from => $from);
        is $nginx->log_count(qr/ is down: /, from => $from), 1, 'one line when it went down';
        is $nginx->log_count(qr/ is up again/, from => $from), 1, 'one line when it was back';
    };

    subtest "$protocol: nonsense in place of an answer is an ERROR" => sub {
        for my $reply ("HTTP/1.1 400 Bad Request\r\n\r\n", "*1\r\n\$1\r\nx\r\n", "\$-7\r\n", "+OK\n") {
            wait_for_hits($protocol);
            my $session = stored_session($protocol);
            $relay->hold('request');
            my $client = tls_client(port => $port, protocol => $protocol, session => $session)->start;
            wait_until { $relay->stats->{request} } 5, 'a held request';
            $relay->push_reply($reply);
            (my $text = $reply) =~ s/[\r\n].*//s;
            like $client->request, qr/^\.\|ERROR\|\|/, "\"$text\": full handshake, and why";
            $relay->release('request');
        }
        wait_for_hits($protocol);
    };
}

for my $reply ("+OK\r\n", ":1\r\n") {
    (my $text = $reply) =~ s/\r\n//;
    subtest "the answer to another command, $text, is an ERROR" => sub {
        wait_for_hits('TLSv1.2');
        my $session = stored_session('TLSv1.2');
        $relay->hold('request');
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->start;
        wait_until { $relay->stats->{request} } 5, 'a held request';
        $relay->push_reply($reply);
            ok $client->handshake(seconds => 5), 'the handshake goes on';
        like $client->request, qr/^\.\|ERROR\|\|/, 'full handshake, and why';
        $client->close;
        $relay->release('request');
    };
}

subtest 'a connection that gives other sessions again and again is given up' => sub {
    my $from = $nginx->log_pos;
    wait_for_hits('TLSv1.2');
    my $other = stored_session('TLSv1.2');
    my $value = $redis->cmd('GET', cache_key($other));
    my $accepted = $relay->stats->{accepted};
    # One line a second: the first end of a connection here may be too close to one before.
    wait_until {
        my $session = stored_session('TLSv1.2');
        $redis->cmd('SET', cache_key($session), $value);
        my $seen = visit(protocol => 'TLSv1.2', session => $session);
        is $seen->{reused}, 0, 'full handshake';
        $nginx->log_count(qr/\[error\] .*: reply with another session /, from => $from);
    } 10, 'a line in the log';
    is visit(protocol => 'TLSv1.2', session => $other)->{status}, 'HIT', 'and the next lookup is in step';
    cmp_ok $relay->stats->{accepted}, '>', $accepted, 'on another connection';
};

subtest 'a reply that nobody asked for ends the connection, not what follows' => sub {
    wait_for_hits('TLSv1.2');
    my $session = stored_session('TLSv1.2');
    my $from = $nginx->log_pos;
    # One line a second, as above.
    wait_until {
        wait_for_hits('TLSv1.2');
        $relay->push_reply("\$4\r\nevil\r\n");
        eval { wait_until { $nginx->log_count(qr/reply to no request/, from => $from) } 0.2 };
    } 10, 'a line in the log';
    wait_until { visit(protocol => 'TLSv1.2', session => $session)->{status} eq 'HIT' } 15, 'hits';
};

subtest 'nothing else in the log' => sub {
    is_deeply [ $nginx->errors(warn => 1, except => qr/$nothing_worse|not stored in "store"/) ], [], 'nothing';
};

subtest 'a store that refuses connections is DOWN' => sub {
    # There is one line a second.
    my $quiet = time + 2;
    wait_until { time >= $quiet } 5;
    wait_for_hits('TLSv1.2');
    my %session = map { $_ => stored_session($_) } qw(TLSv1.2 TLSv1.3);
    my $from = $nginx->log_pos;
    $relay->stop;
    for my $protocol (sort keys %session) {
        for (1 .. 3) {
            my $seen = visit(protocol => $protocol, session => $session{$protocol});
            like $seen->{status}, qr/^DOWN$/, "$protocol: outcome";
            is $seen->{reused}, 0, 'full handshake';
            cmp_ok $seen->{time}, '<', 0.04 * patience(), 'at once';
        }
    }
    $nginx->log_like(qr/\[error\].* is down: connect\(\) failed \(111: Connection refused\)/, from => $from);
    is $nginx->log_count(qr/ is down: /, from => $from), 1, 'said once';
};

subtest 'a full queue is DOWN for what does not fit into it, with one warning a second at most' => sub {
    $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    # Long enough for the test to hold its one lookup in the queue.
    $nginx->reload(conf('queue 1;', 'fetch_timeout 30s;', 'store_timeout 30s;'));
    wait_until { !$nginx->old_workers } 20, 'exit of the old worker';
    my ($from, $start) = ($nginx->log_pos, time);
    my %session = ('TLSv1.2' => stored_session('TLSv1.2'));
    # There is no room for the second ticket, nor for the first one while an answer is on its way.
    $session{'TLSv1.3'} = wait_until {
        my ($ticket) = visit(protocol => 'TLSv1.3')->{client}->sessions;
        eval { wait_until { $redis->cmd('EXISTS', cache_key($ticket)) } 0.5 } && $ticket;
    } 10, 'a session in the store';
    # The queue is empty when a lookup has gone through.
    wait_until { visit(protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{status} eq 'HIT' } 5, 'room in the queue';
    # Who offers the session that is looked up waits with it; there is no room for another one.
    my %other = ('TLSv1.2' => visit(protocol => 'TLSv1.2')->{client}->session, 'TLSv1.3' => $session{'TLSv1.3'});
    wait_until { visit(protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{status} eq 'HIT' } 5, 'room in the queue';
    my $gets = $relay->requests('GET');
    $relay->hold;
    my $waits = tls_client(port => $port, protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->start;
    wait_until { $relay->requests('GET') == $gets + 1 } 5, 'its lookup';
    my $joins = tls_client(port => $port, protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->start;
    for (1 .. 5) {
        for my $protocol (sort keys %session) {
            my $seen = visit(protocol => $protocol, session => $other{$protocol});
            is $seen->{status}, 'DOWN', "$protocol: outcome";
            is $seen->{reused}, 0, 'full handshake';
        }
    }
    my $seconds = 1 + int(time - $start);
    is scalar($relay->requests('GET')), $gets + 1, 'none of them asked';
    $relay->release;
    like $waits->request, qr/^r\|HIT\|store\|/, 'the one in the queue resumes';
    like $joins->request, qr/^r\|HIT\|store\|/, 'and so does one that wants the same';
    $nginx->log_like(qr/\[warn\].* queue of 1 is full, \d+ requests dropped/, from => $from);
    cmp_ok $nginx->log_count(qr/\[warn\].* queue of 1 is full/, from => $from), '<=', $seconds, 'one warning a second';
    wait_until { visit(protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{status} eq 'HIT' } 5, 'room again';
    is_deeply [ $nginx->errors(from => $from) ], [], 'no error';
};

$nginx->quit;
is_deeply [ $nginx->errors(except => $nothing_worse) ], [], 'nothing else in the log';

done_testing;
