# nginx-ssl-session size: what docs/sizing.md says, and sums that can be done by hand.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use Test::More;

my $doc   = slurp(root() . '/docs/sizing.md');
my $known = decode_json(slurp(root() . '/cli/src/size/measured.json'));

# What it prints.
sub size {
    my ($exit, $out, $err) = command('size', @_);
    is $exit, 0, "size @_" or diag $err;
    return $out;
}

sub fleet {
    my ($exit, $value, $err) = command_json('size', '--rate', @_);
    is $exit, 0, "size --rate @_" or diag $err;
    return $value;
}

sub near {
    my ($got, $expected, $share, $what) = @_;
    ok abs($got - $expected) <= $share * $expected, $what or diag "$got, expected $expected";
}

subtest 'every table and example of the page is what the command prints' => sub {
    my $tables = join "\n", map { size($_) } qw(--constants --table);
    my @tables = $tables =~ /((?:^\|.*\n)+)/mg;
    is scalar @tables, 8, 'tables';
    my $first = sub { ($_[0] =~ /^(.*)/)[0] };
    for my $table (@tables) {
        my $head = $first->($table);
        my ($shown) = $doc =~ /^(\Q$head\E\n(?:\|.*\n)+)/m;
        is $shown, $table, $head;
    }
    my $examples = 0;
    # Those of docs/command.md are indented.
    my $pages = $doc . slurp(root() . '/docs/command.md') =~ s/^ {4}//mgr;
    while ($pages =~ /^\$ nginx-ssl-session size ([^\n]*)\n((?:\w[^\n]*\n)+)/mg) {
        my ($words, $said) = ($1, $2);
        is size(split ' ', $words), $said, $words;
        $examples++;
    }
    is $examples, 3, 'examples';
};

subtest 'the page says when and with what it was measured' => sub {
    my $with = $known->{measured};
    like $doc, qr/\Q$with->{versions}{$_}\E/, "$_ $with->{versions}{$_}" for sort keys %{ $with->{versions} };
    like $doc, qr/\Q$with->{machine}\E/, 'the machine';
};

subtest 'a fleet twice as large needs twice as much' => sub {
    my ($one, $two) = map { fleet($_, '--machines', 4, '--shards', 1) } 1000, 2000;
    near($two->{$_}, 2 * $one->{$_}, 1e-9, $_) for qw(sessions operations cpus bytes_to_store);
    my $longer = fleet(1000, '--lifetime', '2h');
    near($longer->{sessions}, 2 * $one->{sessions}, 1e-9, 'twice the lifetime, twice the sessions');
    is $longer->{operations}, $one->{operations}, 'and as many operations';
};

subtest 'what is stored is counted by hand' => sub {
    my @alone = ('--lifetime', '100', '--tls13', 1);
    is fleet(10, @alone, '--resumed', 0)->{sessions}, 2000, 'two tickets of a full handshake';
    is fleet(10, @alone, '--resumed', 0, '--tickets', 1)->{sessions}, 1000, 'one, where one is given';
    is fleet(10, @alone, '--resumed', 1)->{sessions}, 1000, 'one of a resumption';
    is fleet(10, @alone, '--resumed', 1, '--single-use', '--return', 40)->{sessions}, 400, 'until it is taken';
    is fleet(10, @alone, '--resumed', 1, '--single-use')->{sessions}, 1000, 'or for its whole life';
    is fleet(10, '--lifetime', 100, '--tls13', 0, '--resumed', 0.4)->{sessions}, 600, 'TLS 1.2: one of a full handshake';
    is fleet(10, '--tls13', 0, '--resumed', 0.4)->{operations}, 10, 'an operation for each handshake';
    is fleet(10, @alone, '--resumed', 1)->{operations}, 20, 'TLS 1.3: a lookup and a store';
    is fleet(10, @alone, '--resumed', 1, '--store', 'memcached', '--single-use')->{operations}, 30, 'memcached takes in two steps';
    my $links = fleet(10, '--machines', 3, '--workers', 5, '--shards', 7);
    is_deeply [ @$links{qw(connections_of_shard connections max_connections)} ], [ 30, 210, 45 ], 'two connections of a worker to each shard';
};

subtest 'no shard has more than it may' => sub {
    for my $words ([], [ '--lifetime', '1d' ], [ '--shard-memory', '512m', '--fill', 0.5 ], [ '--busy', 0.1 ]) {
        my $sized = fleet(20000, @$words);
        my %given = ('--shard-memory' => '16g', '--fill' => 0.75, '--busy' => 0.5, @$words);
        my $most  = $given{'--shard-memory'} eq '16g' ? 16 * 2**30 : 512 * 2**20;
        cmp_ok $sized->{memory_of_shard}, '<=', $most * $given{'--fill'}, "@$words: memory";
        cmp_ok $sized->{cpus_of_shard_at_most}, '<=', $given{'--busy'}, 'CPU';
        cmp_ok $sized->{limit_mb}, '<=', $most / 2**20, 'maxmemory';
    }
};

subtest 'all of it for programs' => sub {
    my (undef, $measured) = command_json('size', '--constants');
    is_deeply $measured, $known, 'what was measured';
    my (undef, $tables) = command_json('size', '--table');
    is scalar @{ $tables->{fleets} }, 12, 'the fleets';
    my ($memcached) = grep { $_->{options} eq '--store memcached' } @{ $tables->{variants} };
    is_deeply $memcached->{needs}, fleet(10000, '--store', 'memcached'), 'each as if it had been asked for';
};

subtest 'wrong usage' => sub {
    for my $wrong ([], [ '--rate', 0 ], [ '--rate', 'x' ], [ '--rate', 1, '--tls13', 2 ], [ '--rate', 1, '--lifetime', '1w' ],
        [ '--rate', 1, '--shard-memory', '1k' ], [ '--rate', 1, '--workers', 0 ], [ '--rate', 1, '--store', 'x' ],
        [ '--rate', 1, '--fill', 0 ], [ '--rate', 1, '--busy', 0 ], [ '--rate', 1, '--table' ]) {
        my ($exit, $out, $err) = command('size', @$wrong);
        is $exit, 2, "size @$wrong";
        like $err, qr/\S/, 'it says why';
    }
    my ($exit, undef, $err) = command('size', '--rate', 1, '--machines', 100000);
    is $exit, 2, 'connections for which there is no room';
    like $err, qr/^nginx-ssl-session: 1600000 connections take more than 75% of --shard-memory: name more$/, 'it says so';
};

done_testing();
