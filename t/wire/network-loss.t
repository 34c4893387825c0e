# What loss and delay of packets between nginx and the store mean for lookups, with a real store.
# Packets are lost, or kept back, by a process of the test.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::FarStore;
use SSLSession::Fixture;
use SSLSession::Wire;
use List::Util qw(sum0);
use Test::More;
use Time::HiRes qw(time);

if (my $why = SSLSession::Wire->unavailable) {
    plan skip_all => $why;
}

my $wire = wire();

# The default timeout of lookups, in seconds, where the machine is fast enough.
my $timeout = 0.05 * patience();
# How often what a busy machine has spoiled is tried.
my $tries = 4;

sub ms { return int(1000 * $_[0]) . 'ms' }
sub after { my ($seconds) = @_; my $end = time + $seconds; wait_until { time > $end } $seconds + 1 }

sub store {
    my ($kind, %limits) = @_;
    return SSLSession::FarStore->new(wire => $wire, kind => $kind,
        limits => { fetch_timeout => ms($timeout), connect_timeout => ms(2 * $timeout), %limits });
}

sub outcomes { return join ' ', map { "$_->[0] $_->[1]" } pairs_of(SSLSession::FarStore::outcomes(@_)) }
sub pairs_of { my %of = @_; return map { [ $_, $of{$_} ] } sort keys %of }

# What becomes of clients of all stores while so many per cent of the packets are lost.
sub under_loss {
    my ($percent, %store) = @_;
    my %from = map { $_ => $store{$_}->nginx->log_pos } keys %store;
    my $hits = sub {
        my ($since) = @_;
        for my $kind (keys %store) {
            wait_until { grep { $_->[0] > $since && $_->[1] eq 'HIT' } $store{$kind}->visits } 10, "hits of $kind";
        }
    };
    $_->begin(clients => 2, pause => 0.01) for values %store;
    $hits->(0);
    $wire->loss($percent);
    $wire->stats;
    my $began = time;
    after(5);
    my %told = %{ $wire->stats };
    $wire->loss(0);
    my $ended = time;
    $hits->($ended);
    my @all = map { $_->finish } values %store;
    $told{wrong}  = [ grep { length } map { $_->[3] } @all ];
    $told{down}   = sum0(map { $store{$_}->nginx->log_count(qr/ is down: /, from => $from{$_}) } keys %store);
    my @during    = grep { $_->[0] > $began && $_->[0] < $ended } @all;
    my %seen      = SSLSession::FarStore::outcomes(@during);
    $told{late}   = ($seen{TIMEOUT} // 0) / @during;
    $told{missed} = 1 - ($seen{HIT} // 0) / @during;
    note outcomes(@during), ", $told{lost} of $told{packets} packets lost, $told{links} new links, $told{down} times down";
    return \%told;
}

# A lookup is a packet with data each way. TCP sends what is lost again after 200 ms, or sooner when
# something else goes over the link: each loss makes one lookup late at the most, and some that wait
# behind it.
for my $percent (1, 5) {
    subtest "$percent % of the packets are lost" => sub {
        my %store = map { $_ => store($_, fetch_timeout => ms(2 * $timeout)) } qw(redis memcached);
        my $due   = 2 * $percent / 100;
        my ($told, $wrong);
        for (1 .. $tries) {
            $told = under_loss($percent, %store);
            push @$wrong, @{ $told->{wrong} };
            last if $told->{late} <= 3 * $due && !($percent == 1 && $told->{down});
        }
        is_deeply $wrong, [], 'no handshake fails';
        cmp_ok $told->{lost}, '>', 0, 'packets are lost';
        cmp_ok $told->{late}, '<=', 3 * $due, sprintf 'few lookups are late: %.1f %%', 100 * $told->{late};
        cmp_ok $told->{missed}, '<=', 5 * $due, sprintf 'all but %.1f %% are hits', 100 * $told->{missed};
        cmp_ok $told->{links}, '<=', $told->{lost} + 2, 'no more new links than packets were lost';
        is $told->{down}, 0, 'no server is down for it' if $percent == 1;
    };
}

# A server that is so far away, found by an nginx that has just been started.
sub far_away {
    my ($kind, $delay, %limits) = @_;
    my $store   = store($kind, %limits);
    my $session = $store->session;
    $store->nginx->quit;
    my $from = $store->nginx->log_pos;
    $wire->delay($delay * patience());
    $store->nginx->start;
    return ($store, $session, $from);
}

sub visits {
    my ($store, $session, $seconds) = @_;
    my $end = time + $seconds;
    my @visits;
    while (time < $end) {
        push @visits, [ time, $store->visit($session) ];
        after(0.02);
    }
    is_deeply [ grep { length } map { $_->[3] } @visits ], [], 'no handshake fails';
    return @visits;
}

# As far as 20 ms are with the default timeout, with room for a busy machine.
for my $kind (qw(redis rediss memcached)) {
    subtest "$kind answers after more than half a timeout and less than one: hits" => sub {
        my ($store, $session, $from) = far_away($kind, 60, fetch_timeout => ms(4 * $timeout), connect_timeout => ms(4 * $timeout));
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'a hit';
        my @visits;
        for (1 .. $tries) {
            @visits = visits($store, $session, 1);
            # Longer than a link has to be idle to be asked about sooner.
            after(1.1);
            push @visits, visits($store, $session, 0.1);
            last if !grep { $_->[1] ne 'HIT' } @visits;
        }
        is outcomes(@visits), 'HIT ' . @visits, 'all of them, also on a link that was idle';
        is $store->nginx->log_count(qr/ is down/, from => $from), 0, 'the server is not down';
        $wire->delay(0);
    };
}

# An answer takes longer than a lookup may: less than four times as long, or as long as that. In the
# first case a server has answered each lookup, too late, for twenty timeouts. A worker that a busy
# machine has kept from its work finds an answer all the same.
for my $case ([ 80, 2 * $timeout ], [ 100, $timeout ]) {
    my ($delay, $limit) = @$case;
    my $ms = ms($limit);
    subtest "a server is $delay ms away, each way, and lookups may take $ms: it is down" => sub {
        my $store   = store('redis', connect_timeout => ms(10 * $timeout), fetch_timeout => $ms);
        my $session = $store->session;
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'a hit to begin with';
        my $from = $store->nginx->log_pos;
        $wire->delay($delay * patience());
        my %seen;
        wait_until {
            my $visit = [ time, $store->visit($session) ];
            push @{ $seen{ $visit->[1] } }, $visit;
            $seen{DOWN};
        } 20, 'it is down';
        my @late = @{ $seen{TIMEOUT} // [] };
        my $hits = @{ $seen{HIT} // [] };
        note scalar(@late), " late, $hits hits";
        cmp_ok scalar(@late), '>', $hits, 'all are late, then it is down';
        my $took = $seen{DOWN}[0][0] - $late[0][0];
        cmp_ok $took, '>', 3 * $limit, sprintf 'not at once: %.2f s', $took;
        cmp_ok $took, '<', 22 * $limit + 1, 'after twenty timeouts at the most' if !$hits;
        my $line = $store->nginx->log_like(qr/ is down: /, from => $from);
        if ($limit > $timeout) {
            my $hint = 'if the server is far away: raise "fetch_timeout"';
            like $line, qr/: redis \S+ is down: no answer in time for \d+ ms \(hint: \Q$hint\E\)$doing$/,
                'the log says what to change';
        } else {
            like $line, qr/: redis \S+ is down: no answer (?:in time for|within) \d+ ms/, 'the log says for how long';
        }
        my @visits = visits($store, $session, 1);
        my $down   = grep { $_->[1] eq 'DOWN' } @visits;
        cmp_ok $down, '>=', 0.9 * @visits, 'and stays so, as no probe is in time: ' . outcomes(@visits);
        $wire->delay(0);
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'hits when the way is short again';
        cmp_ok $store->nginx->log_count(qr/ is up again/, from => $from), '>=', 1, 'it is up';
    };
}

my %connects = (
    'TCP takes longer than connect_timeout' => [ 'redis', 100, {}, 'connect() timed out', 'if the server is far away: raise "connect_timeout"' ],
    'TLS takes longer than connect_timeout' => [ 'rediss', 40, { ssl_protocols => 'TLSv1.2' }, 'SSL handshake timed out',
        'if the server speaks no TLS: "ssl off", or "redis://"; if it is far away: raise "connect_timeout"' ],
);

for my $what (sort keys %connects) {
    my ($kind, $delay, $limits, $says, $hint) = @{ $connects{$what} };
    subtest "$what: the server is down, and the log says what to change" => sub {
        my ($store, $session, $from) = far_away($kind, $delay, fetch_timeout => ms(10 * $timeout), %$limits);
        wait_until { ($store->visit($session))[0] eq 'DOWN' } 5, 'it is down';
        my $line = $store->nginx->log_like(qr/ is down: /, from => $from);
        like $line, qr/: redis \S+ is down: \Q$says\E \(hint: \Q$hint\E\)$doing$/, 'the line';
        is_deeply { map { $_->[1] => 1 } visits($store, $session, 0.5) }, { DOWN => 1 }, 'nobody waits';
        $wire->delay(0);
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'hits when the way is short again';
    };
}

for my $kind (qw(redis rediss)) {
    subtest "$kind is 100 ms away, each way: hits when both timeouts allow for it" => sub {
        my ($store, $session, $from) = far_away($kind, 100,
            fetch_timeout => ms(10 * $timeout), connect_timeout => ms(10 * $timeout));
        # The first one waits for the connection, too.
        like +($store->visit($session))[0], qr/^(?:HIT|TIMEOUT)$/, 'the first one may be late';
        wait_until { ($store->visit($session))[0] eq 'HIT' } 5, 'a hit';
        my @visits = visits($store, $session, 1.5);
        is_deeply { map { $_->[1] => 1 } @visits }, { HIT => 1 }, 'hits from then on';
        is $store->nginx->log_count(qr/ is down/, from => $from), 0, 'the server is not down';
        $wire->delay(0);
    };
}

done_testing;
