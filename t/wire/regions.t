# Two regions, each with a store of its own: the near one is read first, both are written, and a ticket that
# is good for one handshake has one place where it is taken.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::EarlyData qw(record_flight send_flight settle);
use SSLSession::Fixture;
use List::Util qw(sum0);
use Test::More;

my $certs = certs();
my $whole = 4000 * patience();
my @both  = qw(TLSv1.2 TLSv1.3);

# An nginx of the region "eu" or "us". eu => and us => addresses of the stores, of which the near one is
# asked first unless fetch => says otherwise; at => "lines" of both backends, eu_at => of one alone.
sub site {
    my ($near, %arg) = @_;
    my ($port, $shown) = (free_port(), free_port());
    my $far   = $near eq 'eu' ? 'us' : 'eu';
    my $fetch = $arg{fetch} // "$near $far";
    my $backends = join '', map { <<"CONF" } qw(eu us);
    ssl_session_backend $_ {
        server          $arg{$_};
        protocol        ${\ ($arg{"${_}_protocol"} // 'redis') };
        connect_timeout ${whole}ms;
        fetch_timeout   ${\ ($arg{"${_}_timeout"} // $whole) }ms;
        store_timeout   60s;
    }
CONF
    my $nginx = nginx(log => 'info', conf => <<"CONF");
$backends
    ssl_session_fetch   $fetch;
    ssl_session_store   ${\ ($arg{store} // 'eu us') };
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @{ $arg{more} // [] }
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$ssl_session_fetch_time|\$ssl_session_store_status|\$ssl_early_data"; }
    }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF
    return { nginx => $nginx, port => $port, shown => $shown, near => $near };
}

# How often a target was asked.
sub asked {
    my ($site, $tier) = @_;
    my $page = `curl -fsS --noproxy '*' http://127.0.0.1:$site->{shown}/`;
    return sum0($page =~ /^nginx_ssl_session_tier_lookups_total\{tier="$tier",[^}]*\} (\S+)$/mg);
}

sub visit {
    my ($site, $protocol, $session, %arg) = @_;
    my $client = tls_client(port => $site->{port}, protocol => $protocol, session => $session, %arg);
    return seen($client);
}

sub seen {
    my ($client) = @_;
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier, $time, $stored) = split /\|/, $answer;
    return { answer => "$status $tier", ms => 1000 * ($time || 0), stored => $stored, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

sub has { my ($store, $session) = @_; return scalar grep { $_ eq cache_key($session) } $store->keys }

# A session that a site has made, once it is in these stores.
sub made {
    my ($site, $protocol, @stores) = @_;
    my $session = visit($site, $protocol)->{session};
    wait_until { @stores == grep { has($_, $session) } @stores } 5, 'the session in the stores';
    return $session;
}

sub resumed_from {
    my ($site, $protocol, $session, $tier, $what) = @_;
    my $seen = visit($site, $protocol, $session);
    is $seen->{answer}, "HIT $tier", $what // "found in $tier";
    is $seen->{reused}, 1, 'and resumed';
    return $seen;
}

sub forget {
    my ($store, $session) = @_;
    my $key = cache_key($session);
    $store->isa('SSLSession::Memcached') ? $store->cmd("md $key") : $store->cmd('DEL', $key);
}

sub quiet {
    my ($site, $but) = @_;
    is_deeply [ $site->{nginx}->errors(warn => 1, $but ? (except => $but) : ()) ], [], 'nothing else in the log';
}

for my $pair ([ 'redis', 'redis' ], [ 'memcached', 'redis' ], [ 'redis', 'cluster' ]) {
    my ($near, $far) = @$pair;
    subtest "$near near, $far far: the near one is read, both are written" => sub {
        my %make = (redis => \&redis, memcached => \&memcached, cluster => sub { redis_cluster(masters => 3, replicas => 0) });
        my ($eu, $us) = map { $make{$_}->() } $near, $far;
        my ($first) = $us->isa('SSLSession::Cluster') ? $us->nodes : $us;
        my @stores  = ($eu, $us->isa('SSLSession::Cluster') ? () : $us);
        my %at = (eu => $eu->address, us => $first->address . ($us eq $first ? '' : '; cluster on'),
            eu_protocol => $near eq 'memcached' ? 'memcached' : 'redis');
        my ($here, $there) = (site('eu', %at), site('us', %at));
        for my $protocol (@both) {
            my $session = made($here, $protocol, @stores);
            resumed_from($here, $protocol, $session, 'eu', "$protocol: a hit in the near one");
            is asked($here, 'us'), 0, 'nothing is asked of the far one' if $protocol eq 'TLSv1.2';
            my $before = asked($here, 'us');
            resumed_from($here, $protocol, $session, 'eu') for 1 .. 3;
            is asked($here, 'us'), $before, 'however often';
            wait_until { visit($there, $protocol, $session)->{answer} eq 'HIT us' } 5, 'the session in the other region';
            forget($eu, $session);
            resumed_from($here, $protocol, $session, 'us', 'what the near one lacks the far one has');
            wait_until { has($eu, $session) } 5, 'the session in the near one';
            $before = asked($here, 'us');
            resumed_from($here, $protocol, $session, 'eu', 'and the near one has it for the next visit');
            is asked($here, 'us'), $before, 'without the far one';
        }
        quiet($_) for $here, $there;
    };
}

subtest 'a far store that is slow, away or hangs delays no handshake and no other store' => sub {
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my $site  = site('eu', eu => $eu->address, us => '127.0.0.1:' . $relay->port);
    for my $protocol (@both) {
        visit($site, $protocol);
        $relay->hold('request');
        my $seen = visit($site, $protocol);
        is $seen->{stored}, 'STORED', "$protocol: handed to both";
        wait_until { has($eu, $seen->{session}) } 5, 'the session in the near one';
        ok !has($us, $seen->{session}), 'while the far one has not got it yet';
        resumed_from($site, $protocol, $seen->{session}, 'eu');
        $relay->release('request');
        wait_until { has($us, $seen->{session}) } 5, 'and in the far one, late';
    }
    $relay->refuse;
    $relay->close_all;
    wait_until { visit($site, 'TLSv1.2')->{stored} eq 'DROPPED' } 10, 'a far one that is known to be down';
    for my $protocol (@both) {
        my $session = made($site, $protocol, $eu);
        resumed_from($site, $protocol, $session, 'eu', "$protocol: stored in the near one all the same");
        forget($eu, $session);
        my $seen = visit($site, $protocol, $session);
        is $seen->{answer}, 'DOWN ', 'what the near one lacks is a full handshake';
        cmp_ok $seen->{ms}, '<', $whole / 4, 'at once';
    }
    quiet($site, qr/is down: |not stored in "us"|server closed connection/);
};

subtest 'a far store costs its round trip for a miss and for a take, and nothing else' => sub {
    my $away = 400 * patience();
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my %at    = (eu => $eu->address, us => '127.0.0.1:' . $relay->port, more => ['ssl_session_epoch epoch eu;']);
    my %site  = map { $_ => site('eu', %at, fetch => $_) } 'eu us', 'eu us single_use=us';
    my ($plain, $takes) = @site{ 'eu us', 'eu us single_use=us' };
    my %made  = map { $_ => made($plain, $_, $eu, $us) } @both;
    my $taken = made($takes, 'TLSv1.3', $us);
    # Both know the way.
    visit($_, 'TLSv1.2', with_session_id($made{'TLSv1.2'}, issue_id('TLSv1.2'))) for values %site;
    $relay->delay($away);
    for my $protocol (@both) {
        my $seen = resumed_from($plain, $protocol, $made{$protocol}, 'eu', "$protocol: a hit in the near one");
        cmp_ok $seen->{ms}, '<', $away / 2, sprintf 'does not wait for the far one: %d ms', $seen->{ms};
        forget($eu, $made{$protocol});
        $seen = resumed_from($plain, $protocol, $made{$protocol}, 'us', 'a miss there');
        cmp_ok $seen->{ms}, '>=', $away - 5, sprintf 'waits for it: %d ms', $seen->{ms};
        cmp_ok $seen->{ms}, '<', 2 * $away, 'once';
    }
    my $seen = resumed_from($takes, 'TLSv1.3', $taken, 'us', 'a take');
    cmp_ok $seen->{ms}, '>=', $away - 5, sprintf 'waits for it: %d ms', $seen->{ms};
    $seen = resumed_from($takes, 'TLSv1.2', $made{'TLSv1.2'}, 'eu', 'and TLS 1.2 beside it');
    cmp_ok $seen->{ms}, '<', $away / 2, sprintf 'does not: %d ms', $seen->{ms};
    quiet($_) for values %site;
};

subtest 'the near one fails: the far one is asked within its time' => sub {
    my $near_time = 600 * patience();
    for my $protocol (@both) {
        my ($eu, $us) = (redis(), redis());
        my $relay = relay(upstream => $eu->address);
        my $site  = site('eu', eu => '127.0.0.1:' . $relay->port, us => $us->address, eu_timeout => $near_time);
        my $session = made($site, $protocol, $eu, $us);
        resumed_from($site, $protocol, $session, 'eu', "$protocol: both are there");

        $relay->drop;
        my $seen = resumed_from($site, $protocol, $session, 'us', 'no answer: the far one is asked');
        cmp_ok $seen->{ms}, '>=', $near_time - 5, sprintf 'after fetch_timeout of the near one: %d ms', $seen->{ms};
        cmp_ok $seen->{ms}, '<', $near_time + $whole, 'and no later than both times together';
        wait_until { visit($site, $protocol, $session)->{ms} < $near_time / 2 } 20, 'it counts as down';
        $seen = resumed_from($site, $protocol, $session, 'us', 'down');
        cmp_ok $seen->{ms}, '<', $near_time / 2, sprintf 'the far one is asked at once: %d ms', $seen->{ms};
        $relay->drop(0);
        $relay->close_all;
        wait_until { visit($site, $protocol, $session)->{answer} eq 'HIT eu' } 20, 'the near one is back';

        $eu->cmd('DEL', cache_key($session));
        $eu->cmd('LPUSH', cache_key($session), 'no string');
        $seen = resumed_from($site, $protocol, $session, 'us', 'an error: the far one is asked');
        cmp_ok $seen->{ms}, '<', $near_time / 2, sprintf 'at once: %d ms', $seen->{ms};

        $relay->refuse;
        $relay->close_all;
        $seen = resumed_from($site, $protocol, $session, 'us', 'gone: the far one is asked');
        cmp_ok $seen->{ms}, '<', $near_time + $whole, sprintf '%d ms', $seen->{ms};

        $us->kill;
        $seen = wait_until { my $seen = visit($site, $protocol, $session); $seen->{answer} eq 'DOWN ' && $seen } 10, 'both down';
        is $seen->{reused}, 0, 'both are down: a full handshake';
        is $seen->{ms} < $near_time, 1, 'at once';
    }
};

subtest 'an entry of the near one that is no session is removed there, and found at the far one the next time' => sub {
    my ($eu, $us) = (redis(), redis());
    my $site = site('eu', eu => $eu->address, us => $us->address);
    for my $protocol (@both) {
        my $session = made($site, $protocol, $eu, $us);
        $eu->cmd('SET', cache_key($session), 'not sealed', 'EX', 100);
        is visit($site, $protocol, $session)->{answer}, 'CORRUPT eu', "$protocol: a full handshake";
        wait_until { !has($eu, $session) } 5, 'removal';
        ok has($us, $session), 'the far one keeps its own';
        resumed_from($site, $protocol, $session, 'us', 'which is found');
    }
    quiet($site, qr/corrupt SSL session/);
};

subtest 'a session that is withdrawn by a fatal alert is removed from both' => sub {
    my ($eu, $us) = (redis(), redis());
    my %at = (eu => $eu->address, us => $us->address);
    my ($here, $there) = (site('eu', %at), site('us', %at));
    my $session = made($here, 'TLSv1.2', $eu, $us);
    my $client  = tls_client(port => $there->{port}, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 1, 'resumed in the other region';
    $client->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64);
    $client->wait_closed;
    wait_until { !has($_, $session) } 5, 'removal' for $eu, $us;
    is visit($here, 'TLSv1.2', $session)->{answer}, 'MISS ', 'nowhere any more';
};

my $flights = 0;

subtest 'a removal that one of them does not hear is lost there' => sub {
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my $site  = site('eu', eu => $eu->address, us => '127.0.0.1:' . $relay->port);
    my $session = made($site, 'TLSv1.2', $eu, $us);
    my $client  = tls_client(port => $site->{port}, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 1, 'resumed';
    $relay->refuse;
    $relay->close_all;
    $client->send_raw("\x17\x03\x03\x00\x40" . 'x' x 64);
    $client->wait_closed;
    wait_until { !has($eu, $session) } 5, 'removal';
    # Or the other one would hear of it yet.
    $site->{nginx}->log_like(qr/ is down: .*"us"/);
    $relay->refuse(0);
    wait_until { visit($site, 'TLSv1.2', $session)->{answer} eq 'HIT us' } 20, 'the session, where it was not heard of';
    wait_until { has($eu, $session) } 5, 'and its copy in the other one';
    quiet($site, qr/is down: |not stored in "us"|server closed connection|SSL_read/);
};

# One flight of early data, twice at each of these machines: how many were resumed, and how often it was done.
sub replayed {
    my ($session, @sites) = @_;
    my $path   = '/early-' . ++$flights;
    my $flight = record_flight(session => $session, path => $path);
    my $resumed = sum0(map { settle(send_flight($flight, 1, $_->{port}))->{resumed} } @sites, @sites);
    return ($resumed, sum0(map { scalar(() = $_->{nginx}->access_log =~ /POST \Q$path\E /g) } @sites));
}

for my $case (
    [ 'both take from us',            'eu us single_use=us', 'us eu single_use=us' ],
    [ 'each takes from its far one',  'eu us single_use',    'us eu single_use'    ],
    [ 'each takes from its near one', 'eu us single_use=eu', 'us eu single_use=us' ],
    [ 'the last one of both is us',   'eu us single_use',    'eu us single_use'    ],
) {
    my ($what, $one, $other) = @$case;
    subtest "single_use, $what: a ticket is good for one handshake of both regions" => sub {
        my ($eu, $us) = (redis(), redis());
        my %at = (eu => $eu->address, us => $us->address, more => ['ssl_early_data on;']);
        my ($here, $there) = (site('eu', %at, fetch => $one), site('us', %at, fetch => $other));
        for my $from ($here, $there) {
            my $client = tls_client(port => $from->{port}, protocol => 'TLSv1.3');
            $client->request;
            my ($session) = $client->sessions;
            wait_until { has($eu, $session) || has($us, $session) } 5, 'the ticket';
            # What is stored in both is there by now, or soon.
            my $tell = visit($from, 'TLSv1.2')->{session};
            wait_until { has($eu, $tell) && has($us, $tell) } 5, 'what was stored after it';
            is has($eu, $session) + has($us, $session), 1, 'the ticket is in one of them';
            my ($resumed, $done) = replayed($session, $here, $there);
            is $resumed, 1, "made in $from->{near}: one of four copies of a flight is resumed";
            is $done, 1, 'and its early data done once';
        }
        # What is not taken is read near.
        my $session = made($here, 'TLSv1.2', $eu, $us);
        resumed_from($here, 'TLSv1.2', $session, 'eu');
        resumed_from($there, 'TLSv1.2', $session, (split ' ', $other)[0]);
        quiet($_, qr/"single_use" takes/) for $here, $there;
    };
}

subtest 'single_use, both take from us: a ticket of either region is resumed in the other' => sub {
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my %at    = (eu => $eu->address, us => '127.0.0.1:' . $relay->port);
    my %site  = map { $_ => site($_, %at, fetch => { eu => 'eu us', us => 'us eu' }->{$_} . ' single_use=us') } qw(eu us);
    for my $way ([ qw(eu us) ], [ qw(us eu) ]) {
        my ($from, $to) = map { $site{$_} } @$way;
        my $session = made($from, 'TLSv1.3', $us);
        resumed_from($to, 'TLSv1.3', $session, 'us', "from $way->[0] to $way->[1]");
        is visit($_, 'TLSv1.3', $session)->{answer}, 'MISS ', 'and nowhere again' for $from, $to;
    }
    is $eu->calls('getdel'), 0, 'nothing is taken from the other one';
    # Nor where the one to take from cannot be asked.
    my $session = made($site{eu}, 'TLSv1.3', $us);
    $eu->cmd('SET', cache_key($session), $us->cmd('GET', cache_key($session)), 'EX', 100);
    $relay->refuse;
    $relay->close_all;
    for my $site (map { ($_) x 2 } @site{qw(eu us)}) {
        is visit($site, 'TLSv1.3', $session)->{reused}, 0, 'a full handshake while it is away';
    }
    ok has($eu, $session), 'and a copy elsewhere stays where it is';
    is $eu->calls('getdel'), 0, 'unasked';
    quiet($_, qr/is down: |not stored in "us"|server closed connection/) for values %site;
};

# Withdraws what was made up to now, and nothing that is made from the next second on: it holds for six
# seconds more than it says.
sub withdraw { my (@stores) = @_; $_->cmd('SET', 'tls:epoch', time - 6) for @stores; next_second(1) }

# Sessions are as old as whole seconds tell.
sub next_second { my $last = time + ($_[0] // 0); wait_until { time > $last } 5, 'the next second' }

subtest 'an epoch that each region has in its own store' => sub {
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my %at    = (eu => $eu->address, us => '127.0.0.1:' . $relay->port);
    my %site  = map { $_ => site($_, %at, more => ["ssl_session_epoch epoch $_;"]) } qw(eu us);
    my $old   = made($site{eu}, 'TLSv1.2', $eu, $us);
    resumed_from($site{$_}, 'TLSv1.2', $old, $_, "$_: resumed before") for qw(eu us);
    is scalar(grep { $_->[1] eq 'tls:epoch' } $relay->requests('GET')), 1, 'us is asked for it by its own machine alone';
    withdraw($eu);
    is visit($site{eu}, 'TLSv1.2', $old)->{answer}, 'MISS eu', 'set in eu: withdrawn there';
    resumed_from($site{us}, 'TLSv1.2', $old, 'us', 'and not in us');
    withdraw($eu, $us);
    is visit($site{us}, 'TLSv1.2', $old)->{answer}, 'MISS us', 'until it is set in us';

    # Without the other region tickets are renewed as ever.
    $relay->refuse;
    $relay->close_all;
    my $session = made($site{eu}, 'TLSv1.3', $eu);
    my $start   = time;
    wait_until {
        my $seen = resumed_from($site{eu}, 'TLSv1.3', $session, 'eu', 'us is away: a ticket is resumed');
        $session = $seen->{session};
        wait_until { has($eu, $session) } 5, 'and renewed';
        next_second();
        time > $start + 6;
    } 30, 'longer than an answer is good for';
    quiet($_, qr/is down: |not stored in "us"|server closed connection/) for values %site;
};

subtest 'an epoch in the far one, as it is by default' => sub {
    my ($eu, $us) = (redis(), redis());
    my %at   = (eu => $eu->address, us => $us->address, more => ['ssl_session_epoch epoch;']);
    my %site = map { $_ => site($_, %at) } qw(eu us);
    my $old  = made($site{eu}, 'TLSv1.2', $eu, $us);
    resumed_from($site{$_}, 'TLSv1.2', $old, $_, "$_: resumed before") for qw(eu us);
    withdraw($eu);
    resumed_from($site{eu}, 'TLSv1.2', $old, 'eu', 'set in eu: eu does not hear of it');
    is visit($site{us}, 'TLSv1.2', $old)->{answer}, 'MISS us', 'us does';
    withdraw($eu, $us);
    is visit($site{eu}, 'TLSv1.2', $old)->{answer}, 'MISS eu', 'set in both: both do';
    quiet($_) for values %site;
};

subtest 'stateless tickets whose keys are in one of the two' => sub {
    my ($eu, $us) = (redis(), redis());
    my $relay = relay(upstream => $us->address);
    my %at    = (eu => $eu->address, us => '127.0.0.1:' . $relay->port, more => ['ssl_session_ticket_keys us;', 'ssl_session_tickets_tls12 on;']);
    my %site  = map { $_ => site($_, %at) } qw(eu us);
    for my $site (values %site) {
        wait_until { $site->{nginx}->log_count(qr/SSL session ticket key has changed in "us"/) } 10, 'ticket keys';
    }
    my $ticket = visit($site{eu}, 'TLSv1.2')->{session};
    is visit($site{$_}, 'TLSv1.2', $ticket)->{answer}, 'TICKET ', "made in eu, resumed in $_" for qw(eu us);
    $relay->refuse;
    $relay->close_all;
    is visit($site{eu}, 'TLSv1.2', $ticket)->{answer}, 'TICKET ', 'and while us cannot be reached';
    is_deeply [ grep { !/^tls:[\w-]{43}$/ } $eu->keys ], [], 'eu has no keys of tickets';
    quiet($_, qr/is down: |not stored in "us"|server closed connection/) for values %site;
};

subtest 'a fallback while one of the two is away' => sub {
    my ($eu, $us) = (redis(), redis());
    my %relay = (eu => relay(upstream => $eu->address), us => relay(upstream => $us->address));
    my %at    = map { $_ => '127.0.0.1:' . $relay{$_}->port } qw(eu us);
    $at{more} = [ 'ssl_session_ticket_keys us;', 'ssl_session_fallback tickets;' ];
    my ($plain, $takes) = map { site('eu', %at, fetch => $_) } 'eu us', 'eu us single_use=us';
    my $stored = sub { my ($site, $protocol) = @_; return visit($site, $protocol)->{stored} };
    for my $site ($plain, $takes) {
        wait_until { $site->{nginx}->log_count(qr/SSL session ticket key has changed in "us"/) } 10, 'ticket keys';
        is $stored->($site, $_), 'STORED', "$_: stored" for @both;
    }
    for my $away (qw(eu us)) {
        $relay{$away}->refuse;
        $relay{$away}->close_all;
        for my $site ($plain, $takes) {
            wait_until { $stored->($site, 'TLSv1.2') eq 'TICKET' } 20, "$away is away: a ticket in TLS 1.2";
        }
        is $stored->($plain, 'TLSv1.3'), 'TICKET', 'and in TLS 1.3';
        is $stored->($takes, 'TLSv1.3'), $away eq 'us' ? 'TICKET' : 'STORED', 'unless tickets are in the other one';
        $relay{$away}->refuse(0);
        for my $site ($plain, $takes) {
            wait_until { 2 == grep { $stored->($site, $_) eq 'STORED' } @both } 20, "$away is back";
        }
    }
    quiet($_, qr/is down: |not stored in|server closed connection/) for $plain, $takes;
};

done_testing;
