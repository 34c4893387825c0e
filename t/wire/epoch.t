# "ssl_session_epoch": sessions that were made up to a moment are withdrawn in the whole fleet at
# once, without a reload.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes ();

my $certs = certs();
my $wait  = 3 * patience() . 's';

sub conf {
    my ($port, $servers, %arg) = @_;
    my $fetch = $arg{fetch} // 'store';
    my $block = $servers =~ /^redis:/ ? '' : "ssl_session_backend store { $servers connect_timeout $wait; fetch_timeout ${\ ($arg{timeout} // $wait) }; }";
    return <<"CONF";
    $block
    ssl_session_fetch   $fetch;
    ssl_session_store   ${\ ($fetch =~ s/ single_use//r) };
    ssl_session_epoch   ${\ ($arg{name} // 'epoch') };
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @{ $arg{more} // [] }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier) = split /\|/, $answer;
    return { status => $status, tier => $tier, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

sub stored {
    my ($port, $redis, %arg) = @_;
    my $session = visit($port, %arg)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

# Withdraws what was made up to now, and nothing that is made from the next second on: it holds for six
# seconds more than it says.
sub withdraw { my ($redis) = @_; my $at = time - 6; $redis->cmd('SET', 'tls:epoch', $at); next_second(1); return $at }

# Sessions are as old as whole seconds tell.
sub next_second { my $last = time + ($_[0] // 0); wait_until { time > $last } 5, 'the next second' }

sub nothing_else {
    my ($nginx, @but) = @_;
    my $but = join '|', 'corrupt nothing', @but;
    is_deeply [ $nginx->errors(warn => 1, except => qr/$but/) ], [], 'nothing else in the log';
}

subtest 'two servers with two workers each, a nearer tier, and both protocols' => sub {
    my $redis = redis();
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(workers => 2, log => 'info', conf => conf($_, 'server ' . $redis->address . ';', fetch => 'shared:near:1m store')) } @port;
    my %old = map { $_ => stored($port[0], $redis, protocol => $_) } qw(TLSv1.2 TLSv1.3);
    for my $protocol (sort keys %old) {
        for my $port (@port) {
            is visit($port, protocol => $protocol, session => $old{$protocol})->{status}, 'HIT', "$protocol: a hit before" for 1 .. 6;
        }
    }
    # Whatever a worker has heard of it before is a second old, then.
    my $epoch = withdraw($redis);
    for my $protocol (sort keys %old) {
        for my $port (@port) {
            for (1 .. 6) {
                my $seen = visit($port, protocol => $protocol, session => $old{$protocol});
                is $seen->{status}, 'MISS', "$protocol: it is gone, from the nearer tier, too";
                is $seen->{reused}, 0, 'full handshake';
            }
        }
        ok !$redis->cmd('EXISTS', cache_key($old{$protocol})), 'and the store is rid of it';
        my $new = stored($port[0], $redis, protocol => $protocol);
        is visit($_, protocol => $protocol, session => $new)->{status}, 'HIT', 'one that was made later is resumed' for @port;
    }
    for my $nginx (@nginx) {
        cmp_ok $nginx->log_count(qr/\[notice\] .*SSL session epoch "epoch" in "store" is $epoch: sessions made until then are not resumed/),
            '==', 1, 'each server says so once';
    }
    $redis->cmd('DEL', 'tls:epoch');
    next_second(1);
    my $again = visit($port[0], session => with_session_id($old{'TLSv1.2'}, session_id($old{'TLSv1.2'})));
    is $again->{status}, 'MISS', 'it does not come back';
    nothing_else($_) for @nginx;
};

subtest 'a machine asks for it once a second at most, ahead of a lookup, and only then' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(workers => 4, conf => conf($port, 'server 127.0.0.1:' . $relay->port . ';'));
    my $asked = sub { scalar grep { $_->[1] eq 'tls:epoch' } $relay->requests('GET') };
    my $session = stored($port, $redis);
    is $asked->(), 0, 'not where no session is offered';
    my $start = Time::HiRes::time();
    is visit($port, session => $session)->{status}, 'HIT', 'a hit' for 1 .. 50;
    my $seconds = Time::HiRes::time() - $start;
    cmp_ok $asked->(), '>=', 1, 'it was asked for';
    cmp_ok $asked->(), '<=', 1 + $seconds, 'once a second';
    my @gets = map { $_->[1] } $relay->requests('GET');
    is_deeply [ @gets[ 0, 1 ] ], [ 'tls:epoch', cache_key($session) ], 'ahead of the lookup';
    # Another tag, another key id.
    for ([ 31 => 'FORGED' ], [ 0 => 'FOREIGN' ]) {
        my ($place, $status) = @$_;
        my $id = session_id($session);
        substr $id, $place, 1, chr(1 ^ ord substr $id, $place, 1);
        is visit($port, session => with_session_id($session, $id))->{status}, $status, "not for one that is $status" for 1 .. 5;
    }
    nothing_else($nginx);
};

subtest 'a worker that was idle does not resume what was withdrawn meanwhile' => sub {
    # The epoch is on another server than the session: which answers first is open.
    my @redis = (redis(), redis());
    my $port  = free_port();
    my @relay = map { relay(upstream => '127.0.0.1:' . $_->port) } @redis;
    my $nginx = nginx(conf => conf($port, join ' ', map { 'server 127.0.0.1:' . $_->port . ';' } @relay));
    my (%on, @sessions);
    for (1 .. 40) {
        my $session = visit($port)->{session};
        my $where = wait_until { my ($n) = grep { $redis[$_]->cmd('EXISTS', cache_key($session)) } 0, 1; defined $n && "on $n" } 5, 'the session';
        push @{ $on{$where} }, $session;
    }
    visit($port, session => $on{'on 0'}[0]);
    my ($there) = grep { my $n = $_; grep { $_->[1] eq 'tls:epoch' } $relay[$n]->requests('GET') } 0, 1;
    my $session = $on{ 'on ' . (1 - $there) }[0];
    ok defined $session, 'a session on the other server';
    withdraw($redis[$there]);
    $_->hold('reply') for @relay;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session)->start;
    wait_until { $relay[ 1 - $there ]->stats->{reply} > 100 && $relay[$there]->stats->{reply} } 5, 'both answers';
    $relay[ 1 - $there ]->release('reply');
    wait_until { !$relay[ 1 - $there ]->stats->{reply} } 5, 'the session to be on its way';
    is $client->received, '', 'the handshake waits for the epoch';
    $relay[$there]->release('reply');
    is $client->request, 'MISS|store', 'and then it is full';
    nothing_else($nginx);
};

subtest 'what is no moment is said, and changes nothing' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx = nginx(conf => conf($port, 'server ' . $redis->address . ';', name => 'revoked-until'));
    my $session = stored($port, $redis);
    for my $bad ('now', '', time . '000', '-1', 'x' x 20_000) {
        $redis->cmd('SET', 'tls:revoked-until', $bad);
        my $from = $nginx->log_pos;
        wait_until { visit($port, session => $session)->{status} eq 'HIT'
            && $nginx->log_count(qr/\[error\] .*invalid SSL session epoch "revoked-until" in "store", \d+ times/, from => $from) } 5, 'the line';
        is visit($port, session => $session)->{status}, 'HIT', 'sessions are resumed as ever';
    }
    $redis->cmd('DEL', 'tls:revoked-until');
    $redis->cmd('LPUSH', 'tls:revoked-until', 'x');
    $nginx->log_like(qr/refused \d+ requests, the last with "WRONGTYPE/) if wait_until { visit($port, session => $session);
        $nginx->log_count(qr/WRONGTYPE/) } 5, 'an error';
    is visit($port, session => $session)->{status}, 'HIT', 'nor does an error of the store';
    nothing_else($nginx, 'invalid SSL session epoch', 'WRONGTYPE');
};

subtest 'a store that does not answer holds up one handshake a second, and none fails' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, 'server 127.0.0.1:' . $relay->port . ';', fetch => 'shared:near:1m store', timeout => '50ms'));
    my $session = stored($port, $redis);
    is visit($port, session => $session)->{tier}, 'shared:near', 'it is near';
    next_second();
    $relay->drop;
    my $start = Time::HiRes::time();
    is visit($port, session => $session)->{status}, 'HIT', 'what is near is resumed' for 1 .. 30;
    my $seconds = Time::HiRes::time() - $start;
    cmp_ok $seconds, '<', 30 * 0.05 * patience(), 'they have not all waited';
    $relay->drop(0);
    nothing_else($nginx, 'is down: no answer', 'is not available');
};

subtest 'stateless tickets, on a machine that has heard' => sub {
    my $redis = redis();
    my ($port, $own) = (free_port(), free_port());
    my $nginx = nginx(log => 'info', conf => conf($port, 'server ' . $redis->address . ';', more => [
        "server { listen 127.0.0.1:$own ssl; ssl_session_tickets on; location / { return 200 '|'; } }" ]));
    my $asks = stored($port, $redis);
    is visit($port, session => $asks)->{reused}, 1, 'a session that makes it ask';
    my %ticket = map { $_ => visit($own, protocol => $_)->{session} } qw(TLSv1.2 TLSv1.3);
    is visit($own, protocol => $_, session => $ticket{$_})->{reused}, 1, "$_: resumed before" for sort keys %ticket;
    withdraw($redis);
    is visit($port, session => $asks)->{reused}, 0, 'it hears';
    for my $protocol (sort keys %ticket) {
        my $seen = visit($own, protocol => $protocol, session => $ticket{$protocol});
        is $seen->{reused}, 0, "$protocol: not resumed afterwards";
        is visit($own, protocol => $protocol, session => $seen->{session})->{reused}, 1, 'a new one is';
    }
    nothing_else($nginx, '"ssl_session_tickets" is on');
};

subtest 'stateless tickets under keys of the fleet ask for themselves' => sub {
    my $redis = redis();
    my @port  = (free_port(), free_port());
    my @nginx = map {
        my $conf = conf($_, 'server ' . $redis->address . ';', more => ['ssl_session_ticket_keys store;']);
        nginx(log => 'info', conf => $conf =~ s/tickets off/tickets on/r);
    } @port;
    for my $nginx (@nginx) {
        wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys';
    }
    my @protocols = qw(TLSv1.2 TLSv1.3);
    my $resumed = sub { my ($at, $session) = @_; return visit($port[$at], protocol => $_, session => $session->{$_}) };
    my %made = map { $_ => visit($port[0], protocol => $_)->{session} } @protocols;
    is $resumed->(1, \%made)->{status}, 'TICKET', "$_: resumed before" for @protocols;
    # Its machine has not asked for a second.
    next_second(1);
    my %renewed = map { $_ => $resumed->(0, \%made)->{session} } @protocols;
    withdraw($redis);
    for my $at (0, 1) {
        is $resumed->($at, \%made)->{reused}, 0, "$_: not resumed at $at afterwards" for @protocols;
        is $resumed->($at, \%renewed)->{reused}, 0, "$_: nor what it was renewed by" for @protocols;
    }
    my %new = map { $_ => visit($port[0], protocol => $_)->{session} } @protocols;
    is $resumed->(1, \%new)->{reused}, 1, "$_: a new one is" for @protocols;
    nothing_else($_) for @nginx;
};

subtest 'nor does a client get round it with a stateless ticket' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $conf  = conf($port, 'server ' . $redis->address . ';', more => ['ssl_session_ticket_keys store;']);
    my $nginx = nginx(log => 'info', conf => $conf =~ s/tickets off/tickets on/r);
    wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys';
    my @protocols = qw(TLSv1.2 TLSv1.3);
    my $file = tmpdir() . '/session.';
    # What is longer than 32 KB is not read ahead of OpenSSL, except by a patched nginx.
    my @long  = (args => [ '-alpn', join ',', 'http/1.1', map { 'x' x 250 . $_ } 1000 .. 1140 ]);
    my $visit = sub { my ($protocol, @arg) = @_; s_client(port => $port, protocol => $protocol, @arg) };
    $visit->($_, sess_out => $file . $_) for @protocols;
    for my $protocol (@protocols) {
        my @in = (sess_in => $file . $protocol);
        wait_until { $visit->($protocol, @in)->reused && $visit->($protocol, @in, @long)->reused } 5,
            "$protocol: one that cannot ask resumes just after one that has";
    }
    # It was not asked for a second.
    next_second(1);
    withdraw($redis);
    is $visit->($_, sess_in => $file . $_, @long)->reused, 0, "$_: nothing that may be withdrawn" for @protocols;
    is $visit->($_, sess_in => $file . $_)->reused, 0, "$_: nor what is" for @protocols;
    nothing_else($nginx);
};

subtest 'a second ClientHello that comes when the epoch is to be asked for again' => sub {
    # Nothing is looked up for a server without a cache, so that its handshakes cannot wait.
    my ($redis, $port, $asks) = (redis(), free_port(), free_port());
    my $conf  = conf($port, 'server ' . $redis->address . ';', more => ['ssl_session_ticket_keys store;', 'ssl_session_cache off;', 'ssl_ecdh_curve secp384r1;',
        "server { listen 127.0.0.1:$asks ssl; ssl_session_cache none; location / { return 200 '|'; } }" ]);
    my $nginx = nginx(log => 'info', conf => $conf =~ s/tickets off/tickets on/r);
    wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys';
    my @tls13 = (protocol => 'TLSv1.3');
    my $session = visit($port, @tls13, groups => 'P-384')->{session};
    wait_until { visit($asks, @tls13, groups => 'P-384', session => $session); visit($port, @tls13, groups => 'P-384', session => $session)->{reused} } 5, 'an answer';
    my $client = tls_client(port => $port, @tls13, groups => 'X25519:P-384', session => $session)->start;
    wait_until { $client->_pull(0.1); $client->hello_retried } 5, 'a HelloRetryRequest';
    next_second(1);
    ok $client->handshake, 'the handshake goes on' or diag $client->error;
    nothing_else($nginx);
};

for my $cache ('shared:own:1m', 'builtin:100 shared:own:1m') {
    subtest "nginx's own cache, $cache, does not bring a withdrawn session back" => sub {
        my ($redis, $port) = (redis(), free_port());
        my $nginx = nginx(conf => conf($port, 'server ' . $redis->address . ';', more => ["ssl_session_cache $cache;"]));
        my $session = stored($port, $redis);
        $redis->cmd('FLUSHALL');
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
        is $client->reused, 1, 'it has the session';
        $client->close;
        withdraw($redis);
        is visit($port, session => $session)->{reused}, 0, 'and does not resume it any more';
        my $new = visit($port)->{session};
        $redis->cmd('DEL', cache_key($new));
        is visit($port, session => $new)->{reused}, 1, 'a new one it does';
        nothing_else($nginx, '"ssl_session_cache builtin" is not used, as "ssl_session_epoch" is set');
    };
}

subtest 'with single_use' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx = nginx(conf => conf($port, 'server ' . $redis->address . ';', fetch => 'store single_use'));
    my @session = map { stored($port, $redis, protocol => 'TLSv1.3') } 1 .. 2;
    is visit($port, protocol => 'TLSv1.3', session => $session[0])->{status}, 'HIT', 'a hit';
    withdraw($redis);
    is visit($port, protocol => 'TLSv1.3', session => $session[1])->{status}, 'MISS', 'withdrawn';
    is $redis->cmd('GET', 'tls:epoch') > 0, 1, 'the epoch itself is read, not taken';
    nothing_else($nginx);
};

subtest 'a ticket of a resumption does not outlive what was resumed' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx;
    my @tls13 = (protocol => 'TLSv1.3');
    # A worker that has just heard that there is none resumes once more after it was set.
    my $renewed = wait_until {
        # One that has heard of it does not forget it.
        $nginx->quit if $nginx;
        $redis->cmd('DEL', 'tls:epoch');
        $nginx = nginx(conf => conf($port, 'server ' . $redis->address . ';'));
        my $session = stored($port, $redis, @tls13);
        visit($port, @tls13, session => $session);
        $redis->cmd('SET', 'tls:epoch', time);
        my $seen = visit($port, @tls13, session => $session);
        $seen->{status} eq 'HIT' && $seen->{session};
    } 30, 'a resumption in time';
    next_second(1);
    is visit($port, @tls13, session => $renewed)->{status}, 'MISS', 'its ticket is younger, and withdrawn with it';
    nothing_else($nginx);
};

subtest 'a client cannot get round it' => sub {
    my ($redis, $port) = (redis(), free_port());
    my $nginx = nginx(conf => conf($port, 'server ' . $redis->address . ';', fetch => 'shared:near:1m store'));
    my $file  = tmpdir() . '/session.pem';
    # Nothing is read ahead of OpenSSL of a ClientHello that is longer than 32 KB. A patched nginx
    # lets OpenSSL read, and asks.
    my @long = (port => $port, protocol => 'TLSv1.3',
        args => [ '-alpn', join ',', 'http/1.1', map { 'x' x 250 . $_ } 1000 .. 1140 ]);
    s_client(port => $port, protocol => 'TLSv1.3', sess_out => $file);
    wait_until { $redis->cmd('DBSIZE') == 2 } 5, 'its tickets in the store';
    is s_client(@long, sess_in => $file, sess_out => "$file.2")->reused, nginx_patched() ? 1 : 0,
        'a worker that has not asked for the epoch resumes nothing without having asked';
    # Another handshake has asked.
    is visit($port, protocol => 'TLSv1.3', session => stored($port, $redis, protocol => 'TLSv1.3'))->{status}, 'HIT', 'a hit';
    is s_client(@long, sess_in => $file)->reused, 1, 'then it does, from the nearer tier';
    withdraw($redis);
    is s_client(@long, sess_in => $file)->reused, 0, 'and not what is withdrawn meanwhile';
    nothing_else($nginx);
};

done_testing;
