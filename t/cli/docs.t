# docs/command.md: each option and each finding is described, and --help of each fits a screen.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use Test::More;

my $page = slurp(root() . '/docs/command.md');

subtest 'the help of each fits a screen, and its options are described' => sub {
    my %described = map { $_ => 1 } $page =~ /`(--[a-z-]+)/g;
    my %there = ('--json' => 1);
    for my $name ('', 'check', 'key', map({ "key $_" } qw(new show check nodes)), 'store',
        map({ "store $_" } qw(stats inspect epoch)), 'explain', 'size') {
        my ($exit, $out) = command(split(/ /, $name), '--help');
        is $exit, 0, "$name --help";
        cmp_ok scalar(() = $out =~ /\n/g), '<=', 24, 'lines';
        my ($options) = $out =~ /^Options:\n(.*)/ms;
        $there{$_} = 1 for grep { !/^--(?:help|version)$/ } $options =~ /^ +(?:-\w, )?(--[a-z-]+)/mg;
    }
    is_deeply [ grep { !$described{$_} } sort keys %there ], [], 'nothing is missing';
    # Of openssl: -sess_out.
    is_deeply [ grep { !$there{$_} } sort keys %described ], [], 'nothing is there that is not';
};

subtest 'each finding of check is described' => sub {
    my ($advice) = slurp(root() . '/cli/src/check/judge.rs') =~ /^fn advice.*?\n(.*?)^\}/ms;
    my @codes = $advice =~ /^        "([a-z-]+)" =>/mg;
    cmp_ok scalar @codes, '>', 15, 'there are some';
    my ($table) = $page =~ /^\| code \|.*?\n(.*?)^$/ms;
    my @rows = map { /`([a-z-]+)`/g } map { (split /\|/)[1] } grep { !/^\|-/ } split /\n/, $table;
    is_deeply [ sort @rows ], [ sort @codes ], 'each once';
};

subtest 'each example is one that the command takes' => sub {
    my @examples = $page =~ /^ +\$ nginx-ssl-session (.*)$/mg;
    cmp_ok scalar @examples, '>', 8, 'there are some';
    for my $example (@examples) {
        # Whoever lacks an argument, or has one too many, is told so before anything is done.
        my ($exit, undef, $err) = command(split(/ /, $example), '--no-such-option');
        like $err, qr/^error: unexpected argument '--no-such-option'/, $example;
        ($exit, undef, $err) = command(split(/ /, $example), '--help');
        is $exit, 0, 'its subcommand';
    }
};

subtest 'completions and pages for man' => sub {
    my $dir = new_dir('man');
    my ($exit) = command('generate', 'man', $dir);
    is $exit, 0, 'pages';
    like slurp("$dir/nginx-ssl-session-check.1"), qr/^\.TH nginx.ssl.session.check 1/m, 'one for each subcommand';
    for my $shell (qw(bash zsh fish)) {
        ($exit, my $out) = command('generate', 'completions', $shell);
        is $exit, 0, $shell;
        like $out, qr/no-request/, 'its options';
    }
    ($exit) = command('generate', 'man', '/none/such');
    is $exit, 3, 'where there is no such directory';
};

done_testing();
