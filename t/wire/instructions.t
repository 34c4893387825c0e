# What a handshake costs a worker, in instructions and allocations, against what was recorded: a
# regression shows on any machine. Improvements are recorded by "bench/instructions write".

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Instructions qw(measure recorded record_file);
use Test::More;

plan skip_all => 'counts under valgrind itself' if $ENV{TEST_NGINX_USE_VALGRIND};
my ($of) = slurp(record_file()) =~ m{^#.*(nginx/\S+),}m;
plan skip_all => "recorded with $of" if `'@{[ nginx_binary() ]}' -v 2>&1` !~ m{\Q$of\E\b};

# Another compiler, OpenSSL or nginx counts a little otherwise; what is below this is noise: of timers in
# what the module does, and in all of it of signatures, which take two millions, now more and now fewer.
use constant { MARGIN => 0.15, NOISE => 300, NOISE_OF_ALL => 6000 };

# Of which the module alone decides: without it, what has grown may be OpenSSL's.
my %at_most = (
    more        => sub { $_[0] * (1 + MARGIN) + NOISE_OF_ALL },
    module      => sub { $_[0] * (1 + MARGIN / 3) + NOISE },
    allocations => sub { $_[0] * 1.1 + 1.5 },
);

my $recorded = recorded();
my @lines    = measure();
for my $line (@lines) {
    my ($sessions, $handshake, $all, %count) = @$line[0 .. 2];
    @count{qw(more module allocations)} = @$line[3 .. 5];
    my $before = $recorded->{$sessions}{$handshake}
        or fail("$sessions, $handshake: not recorded in " . record_file()), next;
    my (undef, %before) = shift @$before;
    @before{qw(more module allocations)} = @$before;
    for my $what (qw(more module allocations)) {
        # What was recorded as less than nothing was noise.
        my $limit = $at_most{$what}->($before{$what} > 0 ? $before{$what} : 0);
        cmp_ok $count{$what}, '<=', $limit, sprintf '%s, %s: %s, recorded %s', $sessions, $handshake, $what, $before{$what};
    }
    # Nothing is measured where the module does nothing.
    my $works = $sessions ne 'idle';
    ok $works ? $count{module} > 1000 : $count{module} == 0, "$sessions, $handshake: the module " . ($works ? 'works' : 'does nothing');
}
is scalar @lines, scalar(map { keys %$_ } values %$recorded), 'all that was recorded was counted';

done_testing;
