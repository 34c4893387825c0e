# What loss and delay of packets between nginx and the store mean for lookups, with a real store.
# Packets are lost, or kept back, by a process of the test.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::FarStore;
use SSLSession::Fixture;
use SSLSession::Wire;
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

# A lookup is a packet with data each way. TCP sends what is lost again after 200 ms, or at once when
# something else goes over the link.
for my $percent (1, 5) {
    subtest "$percent % of the packets are lost" => sub {
        my @kinds = qw(redis memcached);
        my %store = map { $_ => store($_) } @kinds;
        my $told;
        for my $try (1 .. $tries) {
            my %from = map { $_ => $store{$_}->nginx->log_pos } @kinds;
            $store{$_}->begin(clients => 2, pause => 0.01) for @kinds;
            for my $kind (@kinds) {
                wait_until { grep { $_->[1] eq 'HIT' } $store{$kind}->visits } 10, "hits of $kind";
            }
            $wire->loss($percent);
            $wire->stats;
            my $began = time;
            after(5);
            my $stats = $wire->stats;
            $wire->loss(0);
            my $ended = time;
            $told = { began => $began, ended => $ended, stats => $stats };
            my %downs;
            for my $kind (@kinds) {
                wait_until { grep { $_->[0] > $ended && $_->[1] eq 'HIT' } $store{$kind}->visits } 10, "hits of $kind";
                $told->{visits}{$kind} = [ $store{$kind}->finish ];
                $told->{downs} += $store{$kind}->nginx->log_count(qr/ is down: /, from => $from{$kind});
            }
            # Two losses that meet are rare with 1 %, and a busy machine may take part in it.
            last if $percent > 1 || !$told->{downs};
        }
        my ($stats, %visits) = ($told->{stats}, %{ $told->{visits} });
        my @all = map { @{ $visits{$_} } } @kinds;
        is_deeply [ grep { length } map { $_->[3] } @all ], [], 'no handshake fails';
        for my $kind (@kinds) {
            my @during = grep { $_->[0] > $told->{began} && $_->[0] < $told->{ended} } @{ $visits{$kind} };
            note "$kind: ", outcomes(@during);
        }
        my @during = grep { $_->[0] > $told->{began} && $_->[0] < $told->{ended} } @all;
        note "$stats->{lost} of $stats->{packets} packets lost, $stats->{links} new links, down $told->{downs} times";
        cmp_ok $stats->{lost}, '>', 0, 'packets are lost';
        my %seen = SSLSession::FarStore::outcomes(@during);
        # Each lookup has two packets that may be lost, and others may wait behind it.
        my $share = ($seen{TIMEOUT} // 0) / @during;
        cmp_ok $share, '<=', 3 * 2 * $percent / 100, sprintf 'few lookups are late: %.1f %%', 100 * $share;
        my $lost = @during - ($seen{HIT} // 0);
        cmp_ok $lost / @during, '<=', 5 * 2 * $percent / 100, sprintf 'the rest are hits, but for %.1f %%', 100 * $lost / @during;
        cmp_ok $stats->{links}, '<=', $stats->{lost} + 2, 'no more new links than packets were lost';
        is $told->{downs}, 0, 'no server is down for it' if $percent == 1;
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

for my $kind (qw(redis rediss memcached)) {
    subtest "$kind is 20 ms away, each way: hits with the default timeout" => sub {
        my ($store, $session, $from) = far_away($kind, 20);
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'a hit';
        my @visits;
        for (1 .. $tries) {
            @visits = visits($store, $session, 1);
            # Longer than a link has to be idle to be asked about sooner.
            after(1.1);
            push @visits, visits($store, $session, 0);
            push @visits, [ time, $store->visit($session) ];
            last if !grep { $_->[1] ne 'HIT' } @visits;
        }
        note outcomes(@visits);
        is scalar(grep { $_->[1] ne 'HIT' } @visits), 0, 'all are hits, also on a link that was idle';
        is $store->nginx->log_count(qr/ is down/, from => $from), 0, 'the server is not down';
        $wire->delay(0);
    };
}

# The time of an answer is longer than that of lookups; shorter, or as long as four of these.
for my $delay (40, 100) {
    subtest "a server is $delay ms away, each way: it is down with the default timeout" => sub {
        my $store   = store('redis', connect_timeout => ms(10 * $timeout));
        my $session = $store->session;
        is +($store->visit($session))[0], 'HIT', 'a hit to begin with';
        my $from = $store->nginx->log_pos;
        $wire->delay($delay * patience());
        my $began = time;
        my %seen;
        wait_until { $seen{ ($store->visit($session))[0] }++; $seen{DOWN} } 10, 'it is down';
        my $took = time - $began;
        note join ' ', map { "$_ $seen{$_}" } sort keys %seen;
        is_deeply [ sort keys %seen ], [qw(DOWN TIMEOUT)], 'all are late, then it is down';
        cmp_ok $took, '>', 3 * $timeout, "not at once: $took";
        cmp_ok $took, '<', 22 * $timeout + 1, 'after twenty timeouts at the most';
        my $line = $store->nginx->log_like(qr/ is down: /, from => $from);
        if ($delay < 100) {
            like $line, qr/: redis \S+ is down: no answer in time for \d+ ms \(hint: if the server is far away: raise "fetch_timeout"\)$doing$/,
                'the log says what to change';
        } else {
            like $line, qr/: redis \S+ is down: no answer (?:in time for|within) \d+ ms/, 'the log says for how long';
        }
        is_deeply { map { $_->[1] => 1 } visits($store, $session, 1) }, { DOWN => 1 }, 'and stays so, as no probe is in time';
        is $store->nginx->log_count(qr/ is down: /, from => $from), 1, 'it is said once';
        $wire->delay(0);
        wait_until { ($store->visit($session))[0] eq 'HIT' } 10, 'hits when the way is short again';
        is $store->nginx->log_count(qr/ is up again/, from => $from), 1, 'it is up';
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
