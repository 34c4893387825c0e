# nginx-ssl-session check: a fleet in order, and one in which each of some nodes has another fault.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use SSLSession::Sealing qw(new_session_key session_key);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my $long  = 'connect_timeout 20s; fetch_timeout 20s; store_timeout 20s;';
my $redis = redis();
my @faked;

# A node, and its address. What differs from the others is in %arg.
sub node {
    my (%arg) = (cert => 'ec', http => '', tickets => 'off', protocols => 'TLSv1.2 TLSv1.3', redis => $redis,
        server => '', store => 'ssl_session_fetch store; ssl_session_store store;', @_);
    my $port = free_port();
    my $key  = $arg{key} ? "ssl_session_key $arg{key};" : '';
    my @node = (log => 'notice', module => $arg{module} // 1);
    if ($arg{ahead}) {
        # What nginx forgets to hand on would be forgotten by the clock, too.
        my ($library) = glob '/usr/lib/*/faketime/libfaketime.so.1' or die 'no libfaketime: tools/install-deps';
        my %env = (FAKETIME => "+$arg{ahead}", FAKETIME_DONT_FAKE_MONOTONIC => 1);
        push @node, env => { %env, LD_PRELOAD => $library }, main => join ' ', map { "env $_;" } sort keys %env;
    }
    my $conf = $arg{module} // 1 ? <<"CONF" : '';
    $key
    ssl_session_backend store { server ${\ $arg{redis}->address }; $long }
    $arg{store}
CONF
    my $nginx = nginx(@node, conf => <<"CONF");
    $conf
    ssl_session_tickets $arg{tickets};
    ssl_protocols       $arg{protocols};
    ssl_certificate     $certs->{"$arg{cert}_crt"};
    ssl_certificate_key $certs->{"$arg{cert}_key"};
    $arg{http}
    server {
        listen 127.0.0.1:$port ssl;
        $arg{server}
        location / { return 200 ok; }
    }
CONF
    push @faked, $nginx if $arg{ahead};
    return "127.0.0.1:$port";
}

# A key with another key id, of which there are 256.
sub other_key {
    my $id = sub { substr SSLSession::Sealing::issue_id('TLSv1.3', @_), 0, 1 };
    my $key;
    do { $key = new_session_key() } while $id->($key) eq $id->(session_key());
    return $key;
}

# What a check of six nodes comes to, which takes no longer than somebody waits for it.
sub check_six {
    my ($what, @nodes) = @_;
    my $began = time;
    my ($exit, $value) = command_json('check', @nodes);
    my $took = time - $began;
    diag sprintf 'six nodes, %s: %.1f s', $what, $took;
    cmp_ok $took, '<', 10 * patience(), "$what: in less than ten seconds";
    return ($exit, $value);
}

# The codes of findings, and the nodes that they name.
sub found {
    my ($value, $names) = @_;
    my %found;
    for my $finding (@{ $value->{findings} }) {
        my $at = join ' ', sort map { $names->{$_} // $_ } @{ $finding->{nodes} };
        push @{ $found{ $finding->{code} } }, "$at: " . join ' ', sort @{ $finding->{protocols} };
    }
    return \%found;
}

my @fleet = map { node() } 1 .. 3;

subtest 'a fleet in order' => sub {
    my ($exit, $out, $err) = command('check', @fleet);
    is $exit, 0, 'exit status' or diag $out;
    is $err, '', 'nothing on standard error';
    like $out, qr/^All 3 nodes resume each other's sessions\.$/m, 'it says so';
    for my $version ('TLS 1.2', 'TLS 1.3') {
        like $out, qr/^\Q$version\E: .*\n +A +B +C\n(?:[ABC] +yes +yes +yes\n){3}/m, "$version: each resumes all";
    }
    like $out, qr/^A  \Q$fleet[0]\E  stateful  stateful  \S+  [0-9a-f]{2} +5m00s +off$/m, 'what a node is like';
    unlike $out, qr/\e/, 'no colours where nobody sees them';

    ($exit, my $value) = command_json('check', @fleet);
    is $exit, 0, 'as JSON';
    ok $value->{ok}, 'it is well';
    is scalar @{ $value->{pairs} }, 18, 'each pair in both versions';
    is_deeply [ grep { $_->{resumed} != 1 || $_->{tries} != 1 } @{ $value->{pairs} } ], [], 'at the first try';
    my ($key_id) = map { sprintf '%02x', ord } SSLSession::Sealing::issue_id('TLSv1.3');
    is_deeply [ map { $_->{key_id} } @{ $value->{nodes} } ], [ ($key_id) x 3 ], 'the key id';

    ($exit, $out) = command('check', $fleet[0] =~ s/.*:/localhost:/r);
    is $exit, 0, 'a name, of which one address may have nobody' or diag $out;
    like $out, qr/^server name localhost,/, 'which is the one that is asked for';

    ($exit, $out) = command('check', '--no-request', $fleet[0]);
    is $exit, 0, 'one node, without a request' or diag $out;
    like $out, qr/^It resumes its own sessions\.$/m, 'it says so';
};

subtest 'nodes with a fault each' => sub {
    my $dead = '127.0.0.1:' . free_port();
    my %node = (
        good        => $fleet[0],
        fine        => $fleet[1],
        certificate => node(cert => 'ec2'),
        key         => node(key => other_key()),
        tickets     => node(tickets => 'on'),
        protocols   => node(protocols => 'TLSv1.2'),
        cache       => node(http => 'ssl_session_cache off;'),
        alone       => node(redis => redis()),
        dead        => $dead,
        lives       => node(http => 'ssl_session_timeout 1m; ssl_early_data on;'),
    );
    my %names = reverse %node;
    my @order = qw(good fine certificate key tickets protocols cache alone dead lives);
    my ($exit, $value) = command_json('check', @node{@order});
    is $exit, 1, 'exit status';
    my $found = found($value, \%names);
    is_deeply $found, {
        certificate  => ['certificate: TLSv1.2 TLSv1.3'],
        key          => ['key: TLSv1.2 TLSv1.3'],
        tickets      => ['tickets: TLSv1.2 TLSv1.3'],
        protocols    => ['protocols: TLSv1.3'],
        'no-session' => ['cache: TLSv1.2'],
        'not-issued' => ['cache: TLSv1.3'],
        unreachable  => ['dead: TLSv1.2 TLSv1.3'],
        lifetime     => ['lives: TLSv1.3'],
        'early-data' => ['lives: TLSv1.3'],
        store        => $found->{store},
    }, 'each is named, and nothing else' or diag explain $found;
    my ($store) = grep { $_->{code} eq 'store' } @{ $value->{findings} };
    my ($islands) = $store->{message} =~ /others: (.*?)\./;
    is_deeply [ map { join ' ', sort split / / } split / \| /, $islands ], [ 'A B E F J', 'H' ],
        'the one that has another store is by itself' or diag explain $store;
    for my $finding (@{ $value->{findings} }) {
        like $finding->{advice}, qr/^[A-Z].*\.$/, "$finding->{code}: what to do";
        like $finding->{advice}, qr/\Q$finding->{directive}\E/, "$finding->{code}: the directive"
            unless $finding->{code} eq 'unreachable';
    }
    my ($pair) = grep { $_->{from} eq $node{good} && $_->{to} eq $node{fine} } @{ $value->{pairs} };
    is $pair->{resumed}, 1, 'those that are well resume each other';

    my ($again, $out) = command('check', @node{qw(good certificate dead)});
    is $again, 1, 'the same for people';
    like $out, qr/^\d\. C \(TLS 1\.2, TLS 1\.3\): no connection: connection refused\n   Start nginx there/m, 'dead';
    like $out, qr/^\d\. B \(TLS 1\.2, TLS 1\.3\): certificates differ: .*\n   Give all nodes the same ssl_certificate/m,
        'certificate';
};

subtest 'six nodes in order, and six with a fault each' => sub {
    my @six = (@fleet, map { node() } 1 .. 3);
    my ($exit, $value) = check_six('in order', @six);
    is $exit, 0, 'in order: exit status' or diag explain $value->{findings};
    is scalar(grep { $_->{resumed} } @{ $value->{pairs} }), 2 * 6 * 6, 'each resumes the sessions of each';

    my %node = (
        certificate => node(cert => 'ec2'),
        key         => node(key => other_key()),
        tickets     => node(tickets => 'on'),
        protocols   => node(protocols => 'TLSv1.2'),
        ems         => node(http => 'ssl_conf_command Options -ExtendedMasterSecret;'),
        clock       => node(ahead => 600),
    );
    ($exit, $value) = check_six('with a fault each', @node{ sort keys %node });
    is $exit, 1, 'with a fault each: exit status';
    my $found = found($value, { reverse %node });
    is_deeply $found, {
        certificate              => ['certificate: TLSv1.2 TLSv1.3'],
        key                      => ['key: TLSv1.2 TLSv1.3'],
        tickets                  => ['tickets: TLSv1.2 TLSv1.3'],
        protocols                => ['protocols: TLSv1.3'],
        'extended-master-secret' => ['ems: TLSv1.2'],
        clock                    => ['clock: TLSv1.2 TLSv1.3'],
    }, 'each is named, and nothing else' or diag explain $value->{findings};
    my ($clock) = map { $_->{message} } grep { $_->{code} eq 'clock' } @{ $value->{findings} };
    like $clock, qr/^clocks differ: B is (?:9m5\d|10m0\d)s ahead$/, 'by how much';
    # Under valgrind the library leaves behind what it shares with its children.
    for my $nginx (@faked) {
        my $pid = $nginx->pid;
        $nginx->stop;
        unlink map { "/dev/shm/$_$pid" } qw(faketime_shm_ sem.faketime_sem_);
    }
};

subtest 'what only shows in one of two directions, or in TLS 1.2' => sub {
    my $silent = node(store => 'ssl_session_fetch store;');
    my ($exit, $value) = command_json('check', @fleet[ 0, 1 ], $silent);
    my $found = found($value, { $silent => 'silent' });
    is_deeply $found, { own => ['silent: TLSv1.2 TLSv1.3'] }, 'a node that stores nothing' or diag explain $found;

    my $deaf = node(store => 'ssl_session_store store;');
    ($exit, $value) = command_json('check', $fleet[0], $deaf);
    $found = found($value, { $deaf => 'deaf' });
    is_deeply $found, { own => ['deaf: TLSv1.2 TLSv1.3'] }, 'a node that looks nothing up' or diag explain $found;

    my $old = node(http => 'ssl_conf_command Options -ExtendedMasterSecret;');
    ($exit, $value) = command_json('check', @fleet[ 0, 1 ], $old);
    $found = found($value, { $old => 'old' });
    is_deeply $found, { 'extended-master-secret' => ['old: TLSv1.2'] }, 'no extended master secret'
        or diag explain $found;

    my $apart = node(store => 'ssl_session_fetch shared:z:1m store; ssl_session_store shared:z:1m;');
    ($exit, $value) = command_json('check', $fleet[0], $apart);
    my ($one_way) = @{ $value->{findings} };
    is $one_way->{code}, 'one-way', 'a node that stores where others do not look' or diag explain $value->{findings};
    like $one_way->{message}, qr/^sessions of B are not resumed at A; the other way they are$/, 'which way';

    my $suites = node(http => 'ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;');
    ($exit, $value) = command_json('check', @fleet[ 0, 1 ], $suites);
    $found = found($value, { $suites => 'suites' });
    is_deeply $found, { 'cipher-suites' => ['suites: TLSv1.3'] }, 'cipher suites of another hash' or diag explain $found;

    my $plain = node(module => 0);
    ($exit, $value) = command_json('check', @fleet[ 0, 1 ], $plain);
    $found = found($value, { $plain => 'plain' });
    is_deeply [ sort keys %$found ], ['not-issued'], 'a node without the module' or diag explain $found;
    like $found->{'not-issued'}[0], qr/^plain: /, 'it is named';
};

subtest 'stateless tickets under keys of the fleet' => sub {
    my @keys  = (tickets => 'on', http => 'ssl_session_ticket_keys store;');
    my @alike = map { node(@keys) } 1 .. 2;
    my $other = node(@keys, redis => redis());
    # Who has just begun has no keys yet.
    for my $node (@alike, $other) {
        wait_until {
            my (undef, $value) = command_json('check', $node);
            $value->{nodes}[0]{'TLSv1.3'}{sessions} eq 'stateless';
        } 20, 'keys';
    }
    my ($exit, $out) = command('check', @alike);
    is $exit, 0, 'are as good as sessions in a store' or diag $out;
    like $out, qr/^B  \S+  stateless  stateless  /m, 'they are such';
    ($exit, my $value) = command_json('check', @alike, $other);
    my $found = found($value, { $other => 'other', map { $alike[$_] => $_ } 0, 1 });
    is_deeply $found, { tickets => ['0 1 other: TLSv1.2 TLSv1.3'] }, 'keys of its own' or diag explain $found;
};

subtest 'clients with certificates' => sub {
    my @verify = map {
        node(http => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt};")
    } 1 .. 2;
    my ($exit, $value) = command_json('check', @verify);
    is_deeply [ sort keys %{ found($value) } ], ['client-certificate'], 'without one nothing is resumed';
    my @cert = ('--cert', $certs->{client_crt}, '--key', $certs->{client_key}, '--name', 'localhost');
    ($exit, my $out) = command('check', @cert, @verify);
    is $exit, 0, 'with one all is' or diag $out;
    ($exit, $value) = command_json('check', @cert, $fleet[0], $verify[0]);
    is_deeply [ sort keys %{ found($value) } ], ['store'], 'other rules for clients';
    my ($advice) = map { $_->{advice} } @{ $value->{findings} };
    like $advice, qr/ssl_verify_client and files of CAs/, 'it is thought of';
};

subtest 'early data' => sub {
    my @early = map { node(http => 'ssl_early_data on;') } 1 .. 2;
    my ($exit, $value) = command_json('check', '--replay', '--path', '/x', @early);
    is $exit, 1, 'it can be replayed';
    is_deeply [ sort keys %{ found($value) } ], ['replay'], 'which is a finding';
    my ($replay) = @{ $value->{replays} };
    is_deeply [ map { $_->{early_data} } @{ $replay->{sent} } ], [ ('accepted') x 3 ], 'accepted each time';

    my @once = map {
        node(http => 'ssl_early_data on;', store => 'ssl_session_fetch store single_use; ssl_session_store store;')
    } 1 .. 2;
    ($exit, my $out) = command('check', '--replay', @once);
    is $exit, 0, 'with single_use it cannot' or diag $out;
    like $out, qr/^early data with a ticket of A, sent 3 times: accepted once, at B$/m, 'accepted once';
};

subtest 'nobody, and wrong usage' => sub {
    my ($exit, $out) = command('check', '127.0.0.1:' . free_port());
    is $exit, 3, 'no node answers: nothing is known' or diag $out;
    for my $wrong ([], ['a:b'], [ '--timeout', 'x', 'a' ], [ $fleet[0], $fleet[0] ], [ '--cert', 'x', 'a' ],
        [ '--path', '/', 'a' ], [ '--replay', '--path', 'x', 'a' ], [ '--replay', '--path', '/ x', 'a' ]) {
        my ($exit, $out, $err) = command('check', @$wrong);
        is $exit, 2, "check @$wrong";
        like $err, qr/\S/, 'it says why';
    }
    ($exit, $out, my $err) = command('check', '--cacert', $certs->{other_ca_crt}, $fleet[0]);
    is $exit, 3, 'a certificate that does not verify';
    like $out, qr/its certificate does not verify: self-signed certificate/, 'it says so';
    ($exit, $out) = command('check', '--cacert', $certs->{ec_crt}, '--name', 'localhost', $fleet[0]);
    is $exit, 0, 'one that does' or diag $out;
    ($exit, $out) = command('check', '--cacert', $certs->{ec_crt}, '--name', 'www.example.com', $fleet[0]);
    is $exit, 3, 'one of another site';
    like $out, qr/its certificate does not verify: hostname mismatch/i, 'it says so';
};

done_testing();
