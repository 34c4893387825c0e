# tools/size says what docs/sizing.md says, and its constants are those of entries that an nginx makes.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use Test::More;

my $certs = certs();
my $doc   = slurp(root() . '/docs/sizing.md');
my $known = decode_json(slurp(root() . '/tools/size.json'));

# What it prints; with --json, as a hash.
sub size {
    my (@words) = @_;
    open my $out, '-|', 'python3', root() . '/tools/size', @words or die "tools/size: $!";
    my $said = do { local $/; <$out> };
    close $out or die "tools/size @words failed";
    return "@words" =~ /--json/ ? decode_json($said) : $said;
}

sub fleet { return size('--json', '--rate', @_) }

sub near {
    my ($got, $expected, $share, $what) = @_;
    ok abs($got - $expected) <= $share * $expected, $what or diag "$got, expected $expected";
}

subtest 'every table and example of the page is what the tool prints' => sub {
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
    while ($doc =~ /^```console\n\$ tools\/size ([^\n]*)\n(.*?)^```$/msg) {
        my ($words, $said) = ($1, $2);
        is size(split ' ', $words), $said, $words;
        $examples++;
    }
    cmp_ok $examples, '>=', 1, 'there is an example';
};

subtest 'the page says when and with what it was measured' => sub {
    my $with = $known->{measured};
    like $doc, qr/\Q$with->{versions}{$_}\E/, "$_ $with->{versions}{$_}" for sort keys %{ $with->{versions} };
    like $doc, qr/\Q$with->{machine}\E/, 'the machine';
};

subtest 'help fits a screen' => sub {
    cmp_ok scalar(split /\n/, size('--help')), '<=', 40, 'lines';
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

subtest 'entries of a real nginx are as large as the constants say' => sub {
    my @redis   = map { redis() } 1 .. 3;
    my $port    = free_port();
    my $servers = join ' ', map { 'server ' . $_->address . ';' } @redis;
    my $wait    = 2 * patience() . 's';
    my $nginx   = nginx(conf => <<"CONF");
    ssl_session_backend fleet { $servers connect_timeout $wait; fetch_timeout $wait; }
    ssl_session_fetch      fleet;
    ssl_session_store      fleet;
    ssl_session_tickets    off;
    ssl_certificate        $certs->{ec_crt};
    ssl_certificate_key    $certs->{ec_key};
    ssl_client_certificate $certs->{ca_crt};
    ssl_verify_client      optional;
    ssl_protocols          TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_reused"; } }
CONF
    my $der = length `openssl x509 -in $certs->{client_crt} -outform DER`;
    my @keys;
    for my $version (qw(1.2 1.3)) {
        for my $kind (qw(none ecdsa)) {
            my @cert  = $kind eq 'none' ? () : (cert => $certs->{client_crt}, key => $certs->{client_key});
            my $visit = sub {
                my $client = tls_client(port => $port, sni => 'www.example.com', name => 'www.example.com', protocol => "TLSv$version", @cert, @_);
                my $said = $client->request // die $client->error;
                return ($client->session, $said);
            };
            my %before = map { $_ => 1 } map { $_->keys } @redis;
            my $stored = 0;
            my $grown  = sub {
                my ($more) = @_;
                wait_until { ($stored + $more) == grep { !$before{$_} } map { $_->keys } @redis } 15, 'the store';
                $stored += $more;
            };
            my $session;
            for (1 .. 4) {
                ($session) = $visit->();
                $grown->($version eq '1.2' ? 1 : 2);
            }
            my (undef, $reused) = $visit->(session => $session);
            is $reused, 'r', "TLS $version, $kind: resumed";
            $grown->($version eq '1.2' ? 0 : 1);

            # The certificates are of another size than those that were measured with.
            my $certificate = $kind eq 'none' ? 0 : $known->{certificate}{$kind} - $der;
            my $expected    = $known->{entry}{$version}{$kind} - $certificate;
            for my $redis (@redis) {
                for my $key (grep { !$before{$_} } $redis->keys) {
                    near($redis->cmd('STRLEN', $key), $expected, 0.1, "TLS $version, $kind: an entry");
                    is length $key, $known->{key}, 'its name';
                    near($redis->cmd('MEMORY', 'USAGE', $key), $known->{redis}{usage}{$version}{$kind}, 0.1, 'in memory') if $kind eq 'none';
                    push @keys, [ $key, $redis ];
                }
            }
        }
    }
    is scalar @keys, 2 * (4 + 9), 'entries of all';
    # They are made when there is something to ask for.
    for (1 .. 100) {
        last unless grep { $_->clients < 2 } @redis;
        my $session = tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->session;
        tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1, session => $session);
    }
    is_deeply [ map { scalar $_->clients } @redis ], [ 2, 2, 2 ], 'a worker has two connections to each server';

    # bench/sizes spreads entries over servers as the module does.
    my $script = 'import sys; sys.path.insert(0, sys.argv[1]); from rendezvous import Rendezvous; '
        . 'print(*map(Rendezvous(sys.argv[2].split(",")).pick, [key.encode() for key in sys.argv[3:]]))';
    open my $out, '-|', 'python3', '-B', '-c', $script, root() . '/bench/lib', join(',', map { $_->address } @redis), map { $_->[0] } @keys or die $!;
    my @picked = split ' ', <$out>;
    close $out or die 'python3 failed';
    is_deeply [ map { $redis[$_]->address } @picked ], [ map { $_->[1]->address } @keys ], 'each entry is where bench/sizes puts it';
};

done_testing;
