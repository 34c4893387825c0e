# "ssl_session_ticket_keys": stateless tickets under keys that a fleet shares.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use Test::More;

my $certs = certs();

sub conf {
    my ($port, $redis, %arg) = @_;
    my $target = ref $redis ? 'store' : $redis;
    my $server = ref $redis ? $redis->address : '127.0.0.1:1';
    return <<"CONF";
    ssl_session_backend store { server $server; fetch_timeout ${\ ($arg{fetch_timeout} // (1000 * patience()) . 'ms') }; }
    ssl_session_ticket_keys $target ${\ ($arg{keys} // '') };
    ${\ join '', map { "ssl_session_$_ $target;\n" } @{ $arg{sessions} // [] } }
    ssl_session_tickets ${\ ($arg{tickets} // 'on') };
    ssl_session_timeout ${\ ($arg{timeout} // '50s') };
    ${\ ($arg{more} // '') }
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        server_name one;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_store_status|\$pid"; }
    }
    server {
        listen 127.0.0.1:$port ssl;
        server_name two;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_store_status|\$pid"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, sni => 'one', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $stored, $pid) = split /\|/, $answer;
    return { status => $status, stored => $stored, pid => $pid, reused => $client->reused,
        session => scalar($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

# Waits until servers have keys to encrypt with.
sub ready {
    for my $nginx (@_) {
        wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys';
    }
}

my @protocols = qw(TLSv1.2 TLSv1.3);

for my $kind (qw(redis memcached)) {
    subtest "$kind: two servers resume each other's tickets" => sub {
        my $store = $kind eq 'redis' ? redis() : memcached();
        my %port  = map { $_ => free_port() } qw(A B);
        my $target = $kind eq 'redis' ? $store : $store->url;
        my %nginx = map { $_ => nginx(conf => conf($port{$_}, $target)) } sort keys %port;
        ready(values %nginx);
        for my $protocol (@protocols) {
            my $made = visit($port{A}, protocol => $protocol);
            is_deeply [ @$made{qw(status stored reused)} ], [ '', '', 0 ], "$protocol: new at A";
            my $session = $made->{session};
            for my $who (qw(B A B)) {
                my $seen = visit($port{$who}, protocol => $protocol, session => $session);
                is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$protocol: resumed at $who";
                $session = $seen->{session} if $protocol eq 'TLSv1.3';
            }
        }
        $store->kill;
        for my $protocol (@protocols) {
            my $made = visit($port{B}, protocol => $protocol);
            my $seen = visit($port{A}, protocol => $protocol, session => $made->{session});
            is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$protocol: the store is away";
        }
        is_deeply [ $nginx{$_}->errors(warn => 1, except => $gone) ], [], "$_: nothing in the log" for qw(A B);
    };
}

subtest 'keys change, and tickets are good all the same' => sub {
    my $redis = redis();
    my %port  = map { $_ => free_port() } qw(A B);
    my %nginx = map { $_ => nginx(log => 'info', conf => conf($port{$_}, $redis, keys => 'period=1s keep=3', timeout => '40s')) } sort keys %port;
    ready(values %nginx);
    my $changes = sub { $_[0]->log_count(qr/SSL session ticket key has changed/) };
    my %session = map { $_ => visit($port{A}, protocol => $_)->{session} } @protocols;
    my ($visits, $resumed) = (0, 0);
    my $until = time + 8;
    while (time < $until || $changes->($nginx{A}) < 6) {
        for my $protocol (@protocols) {
            my $seen = visit($port{ (qw(A B))[ $visits++ % 2 ] }, protocol => $protocol, session => $session{$protocol});
            $resumed += $seen->{reused} && $seen->{status} eq 'TICKET';
            $session{$protocol} = $seen->{session};
        }
    }
    is $resumed, $visits, "all of $visits visits were resumed over " . $changes->($nginx{A}) . ' changes';
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'sessions are stored, and tickets made while the store is away' => sub {
    my $redis = redis();
    my %port  = map { $_ => free_port() } qw(A B);
    my %arg   = (sessions => [qw(fetch store)], tickets => 'off', more => 'ssl_session_fallback tickets;');
    my %nginx = map { $_ => nginx(conf => conf($port{$_}, $redis, %arg)) } sort keys %port;
    ready(values %nginx);
    for my $sni (qw(one two)) {
        for my $protocol (@protocols) {
            my $visit = sub { my ($who, $session) = @_; visit($port{$who}, protocol => $protocol, session => $session, sni => $sni) };
            my $made  = $visit->('A');
            is_deeply [ @$made{qw(status stored reused)} ], [ '', 'STORED', 0 ], "$protocol, $sni: stored";
            wait_until { $redis->cmd('EXISTS', cache_key($made->{session})) } 5, 'the session in the store';
            my $seen = $visit->('B', $made->{session});
            is_deeply [ @$seen{qw(status reused)} ], [ 'HIT', 1 ], 'resumed from the store';
            $redis->kill;
            my $full = $visit->('A', $made->{session});
            is $full->{reused}, 0, 'the store is away: a full handshake';
            # The first one may have come before it was seen.
            wait_until { ($full = $visit->('A'))->{stored} eq 'TICKET' } 5, 'a ticket';
            my $session = $full->{session};
            $seen = undef;
            wait_until { $seen = $visit->('B', $session); $seen->{stored} ne 'DROPPED' } 5, 'B has seen it, too';
            for my $who (qw(B A B A)) {
                $seen = $visit->($who, $session);
                is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "resumed at $who";
                $session = $seen->{session};
            }
            is visit($port{A}, protocol => $protocol, no_ticket => 1, sni => $sni)->{stored}, 'DROPPED',
                'nothing for a client of TLS 1.2 that takes no tickets' if $protocol eq 'TLSv1.2';
            $redis->start;
            wait_until { $visit->($_)->{stored} eq 'STORED' } 10, "the store is back at $_" for qw(A B);
            $seen = $visit->('B', $session);
            is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], 'a ticket is resumed with the store there';
            next if $protocol eq 'TLSv1.2';
            # A link that is slow for a moment counts as none.
            wait_until { $seen->{stored} eq 'STORED' or $seen = $visit->('B', $session), 0 } 5, 'what it gets is stored';
            wait_until { $redis->cmd('EXISTS', cache_key($seen->{session})) } 5, 'the session in the store';
            $seen = $visit->('A', $seen->{session});
            is_deeply [ @$seen{qw(status reused)} ], [ 'HIT', 1 ], 'from where it is resumed';
        }
    }
    is_deeply [ $nginx{$_}->errors(warn => 1, except => $gone) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'a connection for stores that was lost is made again while tickets take their place' => sub {
    my $redis = redis();
    my $relay = relay(upstream => $redis->address);
    my $port  = free_port();
    my $conf  = conf($port, $redis, sessions => [qw(fetch store)], tickets => 'off', more => 'ssl_session_fallback tickets;');
    my ($from, $to) = ($redis->address, '127.0.0.1:' . $relay->port);
    my $nginx = nginx(conf => $conf =~ s/server $from/server $to/r);
    ready($nginx);
    my $visit = sub { visit($port, protocol => 'TLSv1.3', session => $_[0]) };
    my $made  = $visit->();
    is $made->{stored}, 'STORED', 'stored';
    wait_until { $redis->cmd('EXISTS', cache_key($made->{session})) } 5, 'the session in the store';
    is $visit->($made->{session})->{status}, 'HIT', 'the connection for lookups is well';
    # What is there stays, and nothing new comes.
    $relay->refuse;
    my ($id) = map { /^id=(\d+) .* cmd=set(?:ex)? / ? $1 : () } split /\n/, $redis->cmd(qw(CLIENT LIST));
    $redis->cmd(qw(CLIENT KILL ID), $id);
    wait_until { $visit->()->{stored} eq 'TICKET' } 5, 'a ticket in its place';
    $relay->refuse(0);
    my $seen;
    wait_until { ($seen = $visit->())->{stored} eq 'STORED' } 15, 'the store has its connection again';
    wait_until { $redis->cmd('EXISTS', cache_key($seen->{session})) } 5, 'the session in the store';
    is_deeply [ $nginx->errors(warn => 1, except => qr/127\.0\.0\.1:\d+[ ,:]/) ], [], 'nothing else in the log';
};

for my $waits (1, 0) {
    subtest 'a key that is not known is asked for' . ($waits ? ', and waited for' : '') => sub {
        my $redis = redis();
        my %port  = map { $_ => free_port() } qw(A B);
        my %arg   = $waits ? (sessions => [qw(fetch store)]) : ();
        my $one   = nginx(conf => conf($port{A}, $redis, %arg));
        ready($one);
        $redis->cmd('FLUSHALL');
        my $other = nginx(conf => conf($port{B}, $redis, %arg));
        ready($other);
        for my $protocol (@protocols) {
            # Both make keys, and each looks for the head once a minute.
            my $made = visit($port{B}, protocol => $protocol);
            my $seen = visit($port{A}, protocol => $protocol, session => $made->{session});
            is $seen->{reused}, 0, "$protocol: not known at first" if !$waits && $protocol eq $protocols[0];
            wait_until { $seen = visit($port{A}, protocol => $protocol, session => $made->{session}); $seen->{reused} } 5, 'the key' if !$waits;
            is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$protocol: resumed";
        }
        is_deeply [ $_->errors(warn => 1) ], [], 'nothing in the log' for $one, $other;
    };
}

subtest 'clients of TLS 1.2 that know tickets only' => sub {
    my $redis = redis();
    my %port  = map { $_ => free_port() } qw(A B);
    my %arg   = (sessions => [qw(fetch store)], tickets => 'off', more => 'ssl_session_tickets_tls12 on;');
    my %nginx = map { $_ => nginx(conf => conf($port{$_}, $redis, %arg)) } sort keys %port;
    ready(values %nginx);
    for my $sni (qw(one two)) {
        my $made = visit($port{A}, protocol => 'TLSv1.2', sni => $sni);
        my $seen = visit($port{B}, protocol => 'TLSv1.2', session => $made->{session}, sni => $sni);
        is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$sni: resumed by a ticket";
        $made = visit($port{A}, protocol => 'TLSv1.2', no_ticket => 1, sni => $sni);
        is $made->{stored}, 'STORED', 'a client without tickets: stored';
        wait_until { $redis->cmd('EXISTS', cache_key($made->{session})) } 5, 'the session in the store';
        $seen = visit($port{B}, protocol => 'TLSv1.2', session => $made->{session}, no_ticket => 1, sni => $sni);
        is_deeply [ @$seen{qw(status reused)} ], [ 'HIT', 1 ], 'resumed by its session ID';
        $made = visit($port{A}, protocol => 'TLSv1.3', sni => $sni);
        is $made->{stored}, 'STORED', 'TLS 1.3 is stateful';
    }
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'a key that is taken away takes its ticket keys with it' => sub {
    my $redis = redis();
    my ($old, $new) = (new_session_key(), new_session_key());
    my %port  = map { $_ => free_port() } qw(A B);
    my $write = sub { my ($who, @rings) = @_; conf($port{$who}, $redis, keys => 'period=8s', more => join '', map { "ssl_session_key $_;" } @rings) };
    my %nginx = map { $_ => nginx(log => 'info', conf => $write->($_, $old)) } sort keys %port;
    ready(values %nginx);
    my $resumes = sub {
        my ($who, $protocol, $session) = @_;
        return visit($port{$who}, protocol => $protocol, session => $session)->{reused};
    };
    my %made = map { $_ => visit($port{A}, protocol => $_)->{session} } @protocols;
    for my $rings ([$old, $new], [$new, $old]) {
        for my $who (sort keys %port) {
            $nginx{$who}->reload($write->($who, @$rings));
            is $resumes->($who, $_, $made{$_}), 1, "$_: resumed at $who with both keys" for @protocols;
        }
    }
    # What the old key has named is in the head of the new one, too.
    for my $who (sort keys %port) {
        wait_until { $redis->keys >= 4 } 5, 'two heads and their keys';
        $nginx{$who}->reload($write->($who, $new));
        is $resumes->($who, $_, $made{$_}), 0, "$_: not resumed at $who without the old one" for @protocols;
    }
    for my $protocol (@protocols) {
        my $session;
        wait_until {
            $session = visit($port{A}, protocol => $protocol)->{session};
            $resumes->('B', $protocol, $session);
        } 5, "$protocol: there are other keys at once";
        is $resumes->('A', $protocol, $session), 1, 'on both';
    }
    is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);
};

subtest 'an answer to a worker that exits brings no key back that was taken away' => sub {
    my $redis = redis();
    my $relay = relay(upstream => $redis->address);
    my ($old, $new) = (new_session_key(), new_session_key());
    my ($first, $port) = (free_port(), free_port());
    my $conf = sub { my ($at, $key) = @_; conf($at, $redis, keys => 'period=60s', fetch_timeout => '30s', more => "ssl_session_key $key;") };
    # There is a head of the old key.
    ready(nginx(log => 'info', conf => $conf->($first, $old)));
    my ($from, $to) = ($redis->address, '127.0.0.1:' . $relay->port);
    $relay->hold('reply');
    my $nginx = nginx(log => 'info', conf => $conf->($port, $old) =~ s/server $from/server $to/r);
    wait_until { $relay->stats->{reply} } 5, 'the head on its way';
    # Keeps the worker.
    my $client = tls_client(port => $port);
    $client->send_raw(substr $client->client_hello, 0, 10);
    my $pos = $nginx->log_pos;
    $nginx->reload($conf->($port, $new));
    wait_until { $nginx->log_count(qr/SSL session ticket key has changed/, from => $pos) } 10, 'new keys';
    $relay->release('reply');
    wait_until { !$relay->stats->{reply} } 5, 'the answer';
    $client->close;
    wait_until { !$nginx->old_workers } 10, 'the end of the old worker';
    for my $protocol (@protocols) {
        my $made = visit($port, protocol => $protocol);
        my $seen = visit($port, protocol => $protocol, session => $made->{session});
        is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$protocol: resumed";
    }
    is $nginx->log_count(qr/SSL session ticket key has changed/, from => $pos), 1, 'they have not changed again';
};

subtest 'without a master, a reload that takes the keys away' => sub {
    my $redis = redis();
    my $conf  = conf(free_port(), $redis, keys => 'period=1s');
    my $nginx = nginx(start => 0, main => 'master_process off;', log => 'info', conf => $conf);
    my $dir   = $nginx->dir;
    my $process = SSLSession::Process->spawn(name => 'nginx', out => "$dir/output", cmd => [ $nginx->_command('-e', "$dir/first.log") ]);
    ready($nginx);
    $nginx->write_conf($conf =~ s/ssl_session_ticket_keys .*//r);
    my $pos = $nginx->log_pos;
    $process->signal('HUP');
    # nginx has unmapped the zone that the configuration before has, and keeps that for half a minute.
    wait_until { $nginx->log_count(qr/using the "\w+" event method/, from => $pos) } 10, 'the reload';
    my $asked = time + 1;
    wait_until { time > $asked } 5, 'questions that are not asked any more';
    ok $process->alive, 'nginx is there';
    $process->signal('QUIT');
    is $process->wait_exit, 0, 'and ends in order';
};

subtest 'a machine that starts without the store has no keys, and does without' => sub {
    my $redis = redis();
    my $port  = free_port();
    $redis->kill;
    my $zone  = join '', map { "ssl_session_$_ shared:tls:1m;" } qw(fetch store);
    my $nginx = nginx(log => 'info', conf => conf($port, $redis, more => $zone));
    my %made  = map { $_ => visit($port, protocol => $_) } @protocols;
    for my $protocol (@protocols) {
        is $made{$protocol}{stored}, 'STORED', "$protocol: no stateless ticket";
        my $seen = visit($port, protocol => $protocol, session => $made{$protocol}{session});
        # At a server with tickets OpenSSL asks for no session of TLS 1.3.
        next if $protocol eq 'TLSv1.3';
        is_deeply [ @$seen{qw(status reused)} ], [ 'HIT', 1 ], 'but a session, which is resumed';
    }
    $redis->start;
    ready($nginx);
    for my $protocol (@protocols) {
        my $made = visit($port, protocol => $protocol);
        is $made->{stored}, '', "$protocol: a stateless ticket when the store is there";
        my $seen = visit($port, protocol => $protocol, session => $made->{session});
        is_deeply [ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], 'which is resumed';
    }
    is_deeply [ $nginx->errors(warn => 1, except => $gone) ], [], 'nothing else in the log';
};

subtest 'a key that cannot be changed goes on, and the log says so once' => sub {
    my $redis = redis();
    my $port  = free_port();
    my $nginx = nginx(log => 'info', conf => conf($port, $redis, keys => 'period=1s'));
    ready($nginx);
    my $old   = qr/\[warn\] .*SSL session ticket key is in use for longer than 1 s: it cannot be changed in "store"/;
    my $again = qr/\[notice\] .*SSL session ticket key changes again in "store"/;
    $redis->kill;
    my %made  = map { $_ => visit($port, protocol => $_)->{session} } @protocols;
    wait_until { $nginx->log_count($old) } 10, 'the line';
    my $asked = time + 1;
    wait_until { time > $asked } 5, 'some questions more';
    is visit($port, protocol => $_, session => $made{$_})->{status}, 'TICKET', "$_: resumed meanwhile" for @protocols;
    is $nginx->log_count($old), 1, 'one line';
    $redis->start;
    wait_until { $nginx->log_count($again) } 10, 'and one when it is over';
    is visit($port, protocol => $_, session => $made{$_})->{status}, 'TICKET', "$_: resumed afterwards" for @protocols;

    # What is in the place of the head, for as long as it is there.
    $redis->cmd('SET', $_, 'rubbish') for $redis->keys;
    wait_until { $nginx->log_count(qr/\[error\] .*invalid SSL session ticket keys in "store", \d+ times: are they of another "ssl_session_key"\?/) } 10, 'invalid';
    my $changes = $nginx->log_count(qr/ticket key has changed/);
    $redis->cmd('FLUSHALL');
    wait_until { $nginx->log_count(qr/ticket key has changed/) > $changes } 10, 'a change when it is gone';
    is visit($port, protocol => $_, session => $made{$_})->{status}, 'TICKET', "$_: resumed after that" for @protocols;
    is_deeply [ $nginx->errors(warn => 1, except => qr/$gone|in use for longer|invalid SSL session ticket keys/) ], [], 'nothing else in the log';
};

# How long a session of a ticket is good, as the client is told.
sub lifetime {
    my $file = spew(tmpdir() . '/session.der', $_[0]);
    my ($hint) = `openssl sess_id -inform DER -in $file -noout -text` =~ /lifetime hint: (\d+)/;
    return $hint;
}

subtest 'a ticket of a fallback has its own time' => sub {
    my $redis = redis();
    my $port  = free_port();
    my $fallback = 'ssl_session_fallback tickets; ssl_session_fallback_timeout 7s;';
    my $times = sub { my ($expected, $what) = @_; is lifetime(visit($port, protocol => $_)->{session}), $expected->{$_}, "$_: $what" for @protocols };
    my $nginx = nginx(conf => conf($port, $redis, sessions => [qw(fetch store)], tickets => 'off', more => $fallback));
    ready($nginx);
    $times->({ 'TLSv1.3' => 50 }, 'what is stored has the usual one');
    $redis->kill;
    wait_until { visit($port, protocol => 'TLSv1.3')->{stored} eq 'TICKET' } 5, 'a ticket';
    $times->({ map { $_ => 7 } @protocols }, 'a ticket in its place');
    $redis->start;
    wait_until { visit($port, protocol => 'TLSv1.3')->{stored} eq 'STORED' } 10, 'the store is back';
    $nginx->reload(conf($port, $redis, sessions => [qw(fetch store)], tickets => 'off', more => "$fallback ssl_session_tickets_tls12 on;"));
    $times->({ map { $_ => 50 } @protocols }, 'and one for a client that knows nothing else, the usual one');
};

done_testing;
