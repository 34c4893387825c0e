# What the network between nginx and the store may do, with a real store: forget connections, end them
# by RST, and take all packets for a while. Packets are passed, or not, by a process of the test.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::FarStore;
use SSLSession::Fixture;
use SSLSession::Wire;
use List::Util qw(first max);
use Test::More;
use Time::HiRes qw(time);

if (my $why = SSLSession::Wire->unavailable) {
    plan skip_all => $why;
}

my $wire = wire();

# The timeout of lookups, in seconds.
my $timeout = 0.4 * patience();
# Longer than a link has to be idle.
my $idle = 1.2;

sub ms { return int(1000 * $_[0]) . 'ms' }
sub after { my ($seconds) = @_; my $end = time + $seconds; wait_until { time > $end } $seconds + 1 }

sub store {
    my ($kind, %limits) = @_;
    my $limits = { fetch_timeout => ms($timeout), connect_timeout => ms($timeout), %limits };
    return SSLSession::FarStore->new(wire => $wire, kind => $kind, limits => $limits);
}

# Stores of all kinds, each with a session, with links that are idle.
my @kinds = qw(redis rediss memcached);
my %store = map { $_ => store($_) } @kinds;
my %known = map { $_ => $store{$_}->session } @kinds;

sub log_has_only {
    my ($store, $from, $pattern) = @_;
    is_deeply [ $store->nginx->errors(warn => 1, from => $from, $pattern ? (except => $pattern) : ()) ], [],
        'nothing else in the log';
}

# Does something to links that were idle for a while. $check gets the kind, the store, its session and
# where its log ends.
sub idle_links {
    my ($fault, $check) = @_;
    # Both links of each are there, and work.
    for my $kind (@kinds) {
        wait_until {
            $known{$kind} = $store{$kind}->session;
            ($store{$kind}->visit($known{$kind}))[0] eq 'HIT';
        } 10, 'a hit';
        is $store{$kind}->links, 2, "$kind: two links";
    }
    my %from = map { $_ => $store{$_}->nginx->log_pos } @kinds;
    my %failures = map { $_ => $store{$_}->counted('failures') } @kinds;
    after($idle);
    $fault->();
    for my $kind (@kinds) {
        $check->($kind, $store{$kind}, $known{$kind}, $from{$kind});
        is $store{$kind}->counted('failures'), $failures{$kind}, "$kind: no failure of the server";
        is $store{$kind}->nginx->log_count(qr/ is down/), 0, "$kind: it is not down";
    }
}

sub is_hit {
    my ($kind, $store, $session, $from) = @_;
    my ($status, $time, $wrong) = $store->visit($session);
    is "$status$wrong", 'HIT', "$kind: the next visit is a hit";
    cmp_ok $time, '<', $timeout, "$kind: within the time of a lookup: $time";
    is_deeply [ map { ($store->visit($session))[0] } 1 .. 5 ], [ ('HIT') x 5 ], "$kind: and so are those after it";
    ok $store->session, "$kind: new sessions are stored";
    log_has_only($store, $from);
    return $time;
}

subtest 'the network forgets links that are idle: lookups are made again on a new one, in time' => sub {
    idle_links(sub { $wire->forget; $wire->stats }, sub {
        my $time = is_hit(@_);
        cmp_ok $time, '>=', 0.4 * $timeout, "$_[0]: when the old one was silent for half of it: $time";
    });
    my $stats = $wire->stats;
    cmp_ok $stats->{lost}, '>=', @kinds, 'packets have vanished';
    cmp_ok $stats->{links}, '<=', 4 * @kinds, "few new links: $stats->{links}";
};

subtest 'what is stored on a link that was forgotten is lost, and nothing after it' => sub {
    idle_links(sub { $wire->forget }, sub {
        my ($kind, $store, $session, $from) = @_;
        # Its session goes out on the old link. That this is dead shows after half a timeout of lookups.
        is +($store->visit)[2], '', "$kind: a client without a session is served";
        ok $store->session, "$kind: others are stored";
        is +($store->visit($session))[0], 'HIT', "$kind: a hit";
        log_has_only($store, $from, qr/ on this connection \(\d+ times\) while storing SSL session/);
    });
};

subtest 'links that are idle are refused when something is asked: no failure' => sub {
    idle_links(sub { $wire->refuse }, sub {
        my $time = is_hit(@_);
        cmp_ok $time, '<', 0.4 * $timeout, "$_[0]: at once: $time";
    });
};

subtest 'links that are idle are reset from the middle: no failure' => sub {
    idle_links(sub { $wire->reset }, sub { is_hit(@_) });
};

subtest 'with keepalive a link that was forgotten is found dead before it is needed' => sub {
    my $kept    = store('redis', keepalive => '1s');
    my $session = $kept->session;
    is +($kept->visit($session))[0], 'HIT', 'a hit';
    is $kept->links, 2, 'two links';
    my $from  = $kept->nginx->log_pos;
    $wire->forget;
    # A second of silence, and three questions, one each second.
    wait_until { $kept->links == 0 } 8, 'the end of both links';
    my $time = is_hit('redis', $kept, $session, $from);
    cmp_ok $time, '<', 0.4 * $timeout, "at once: $time";
    is $kept->counted('failures'), 0, 'no failure of the server';
};

# How long all packets vanish while clients come, in seconds.
for my $seconds (1, 5) {
    subtest "all packets vanish for $seconds s while clients come" => sub {
        my $length = $seconds * patience();
        # Shorter, so that the server is down for most of that.
        my $short  = 0.1 * patience();
        my @kinds  = $seconds > 1 ? 'redis' : qw(redis memcached);
        my %store  = map { $_ => store($_, fetch_timeout => ms($short)) } @kinds;
        $store{$_}->begin(clients => 2, pause => 0.01) for @kinds;
        for my $kind (@kinds) {
            wait_until { grep { $_->[1] eq 'HIT' } $store{$kind}->visits } 10, "hits of $kind";
        }
        after(0.3);
        $wire->hole;
        my $began = time;
        after($length);
        $wire->hole(0);
        my $ended = time;
        for my $kind (@kinds) {
            wait_until { grep { $_->[0] > $ended && $_->[1] eq 'HIT' } $store{$kind}->visits } 20, "hits of $kind";
        }
        after(0.5);
        for my $kind (@kinds) {
            my @visits = $store{$kind}->finish;
            is_deeply [ grep { length } map { $_->[3] } @visits ], [], "$kind: no handshake fails";
            my @during = grep { $_->[0] > $began && $_->[0] < $ended } @visits;
            # Some have begun before it, and then had to wait.
            my @began  = grep { $_->[0] <= $began && $_->[0] > $began - $short && $_->[1] ne 'HIT' } @visits;
            my %seen   = SSLSession::FarStore::outcomes(@began, @during);
            note "$kind: ", join ' ', map { "$_ $seen{$_}" } sort keys %seen;
            is_deeply [ sort keys %seen ], [qw(DOWN TIMEOUT)], "$kind: lookups are late, then not made";
            my $down = (first { $_->[1] eq 'DOWN' } @during)->[0];
            cmp_ok $down - $began, '<', 4 * $short + 0.3 * patience(), "$kind: the server is down after four timeouts";
            my @late = grep { $_->[0] > $down + 0.05 * patience() && $_->[1] ne 'DOWN' } @during;
            is scalar @late, 0, "$kind: from then on nobody waits";
            cmp_ok max(map { $_->[2] } @during), '<', $short + 0.2 * patience(), "$kind: and nobody has waited longer than that";
            my $hit = (first { $_->[0] > $ended && $_->[1] eq 'HIT' } @visits)->[0] - $ended;
            cmp_ok $hit, '<', $length + 0.5 * patience(), "$kind: hits again after as long at the most";
            my @after = grep { $_->[0] > $ended + $hit } @visits;
            my $hits  = grep { $_->[1] eq 'HIT' } @after;
            cmp_ok $hits, '>=', 0.95 * @after, sprintf "%s: then all of them: %d of %d, after %.2f s", $kind, $hits, scalar @after, $hit;
            my $nginx = $store{$kind}->nginx;
            is $nginx->log_count(qr/\[error\] .* is down: no answer within/), 1, "$kind: one line when it goes down";
            is $nginx->log_count(qr/\[notice\] .* is up again/), 1, "$kind: one when it is up";
            is_deeply [ $nginx->errors(warn => 1, except => qr/ is down: | \d+ SSL sessions not stored in /) ], [], "$kind: nothing else";
        }
    };
}

done_testing;
