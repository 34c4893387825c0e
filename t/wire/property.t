# A session brings a client no more and no less than a full handshake: draws of configurations and
# visits (t/lib/SSLSession/Property.pm), few here and many with "make property".
#
# t/property has draws that have once failed, made small; a name says what they show. One that says
# "todo" fails still.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Property qw(run report kept);
use SSLSession::Property::Draw qw(draw);
use Test::More;
use Time::HiRes qw(time);

our $TODO;

my %sum = map { $_ => 0 } qw(visits offered resumed elsewhere refused);

# A draw carried out: its faults.
sub faults {
    my ($draw) = @_;
    my $result = run($draw);
    $sum{$_} += $result->{$_} // 0 for keys %sum;
    diag("seed $draw->{seed}: $result->{untaken}") if $result->{untaken};
    return @{ $result->{faults} // [] };
}

my %known;
my %kept = kept();
for my $name (sort keys %kept) {
    my $draw = $kept{$name};
    $known{ $draw->{kind} } = 1 if $draw->{todo};
    local $TODO = $draw->{todo};
    my @faults = faults($draw);
    ok !@faults, $name or diag(report($draw, $faults[0]));
}

# The first ones are the same each time; then comes what was never tried.
my $random = int(time * 1000) % 1_000_000_000;
note "SEED=$random";
my $seconds = ($ENV{PROPERTY_SECONDS} // 12) * patience();
my $began   = time;
my @seeds   = (1 .. 4, $random .. $random + 1000);
my $drawn   = 0;
my @faults;
while (!@faults && (time - $began < $seconds || $drawn < 5)) {
    my $seed = $seeds[ $drawn++ ] // last;
    my $draw = draw($seed, stream => has_stream());
    @faults = map { "SEED=$seed DRAWS=1 tools/property\n" . report($draw, $_) }
        grep { !$known{ $_->{kind} } } faults($draw);
}
ok !@faults, "$drawn draws" or diag($faults[0]);
note join ', ', map { "$_: $sum{$_}" } sort keys %sum;
cmp_ok $sum{resumed}, '>', $sum{visits} / 20, 'many visits resume';
cmp_ok $sum{elsewhere}, '>', 0, 'some elsewhere than where their session was made';
cmp_ok $sum{refused}, '>', 0, 'some are refused';

done_testing;
