# All that has the version of the module has the same one, and what is packaged is there.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my ($version) = slurp(root() . '/Cargo.toml') =~ /^\[workspace\.package\]\nversion = "([\d.]+)"$/m;
ok $version, 'Cargo.toml has it' or BAIL_OUT('no version');

for my $file (map { "$_/Cargo.toml" } qw(bench/load bench/seal cli fuzz tools/constant-time)) {
    like slurp(root() . "/$file"), qr/^version = "\Q$version\E"$/m, $file;
}
for my $file (map { $_ ? "$_/Cargo.lock" : 'Cargo.lock' } '', qw(bench/seal cli fuzz tools/constant-time)) {
    like slurp(root() . "/$file"), qr/^name = "session-core"\nversion = "\Q$version\E"$/m, $file;
}
like slurp(root() . '/debian/changelog'), qr/\Alibnginx-mod-http-ssl-session \(\Q$version\E-\d+\) /, 'debian/changelog';

my ($first, $changes) = slurp(root() . '/CHANGELOG.md') =~ /^## (\S+)[^\n]*\n(.*?)(?=^## |\z)/ms;
is $first, $version, 'CHANGELOG.md';
like $changes, qr/\A\n### Upgrading\n/, '... which says first what an upgrade asks for';

my $spec = slurp(root() . '/packaging/rpm/nginx-ssl-session.spec');
like $spec, qr/^Version: +\Q$version\E$/m, 'the spec';
like $spec, qr/^%changelog\n\* .* - \Q$version\E-\d+$/m, '... and its changelog';

my ($build) = $spec =~ /^%build\n(.*?)^%files/ms;
for my $file (map { split ' ' } $spec =~ /^%(?:doc|license) (.*)$/mg, $build =~ m{\b((?:tools|debian)/\S+)}g) {
    ok -e root() . "/$file", "$file, which the spec has, is there";
}

done_testing;
