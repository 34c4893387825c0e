# A server's name is resolved again at run time, by the "resolver" of http{}.
#
# The name is "localhost": the system, which is asked when the configuration is read, says
# 127.0.0.1, and the name server of these tests what it is told to.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use List::Util qw(uniq);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# --- nginx and its store ---

# A Redis at several addresses, one port.
my $redis = redis(bind => '127.0.0.1 127.0.0.2 127.0.0.3');

sub conf {
    my ($port, $dns, %arg) = @_;
    my $server = $arg{server} // 'localhost:' . $redis->port;
    return <<"CONF";
    resolver 127.0.0.1:$dns->{port} ${\ ($arg{resolver} // '') };
    resolver_timeout ${\ ($arg{timeout} // '30s') };
    ssl_session_backend store {
        server $server;
        connect_timeout ${\ (500 * patience()) }ms;
        fetch_timeout ${\ ($arg{fetch_timeout} // 500 * patience() . 'ms') };
    }
    ssl_session_fetch store;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 \$ssl_session_fetch_status; }
    }
CONF
}

sub start {
    my (%arg) = @_;
    my ($port, $dns) = (free_port(), name_server());
    $dns->say(@{ $arg{say} }) if $arg{say};
    return ($port, $dns, nginx(conf => conf($port, $dns, %arg)));
}

sub client { my ($port, $session) = @_; return tls_client(port => $port, protocol => 'TLSv1.2', session => $session) }

sub new_session {
    my ($port) = @_;
    my $client = client($port);
    $client->request;
    my $key = cache_key($client->session);
    wait_until { $redis->cmd('EXISTS', $key) } 5, 'the session in the store';
    return $client->session;
}

# Where the worker is connected to.
sub linked {
    my ($nginx) = @_;
    my ($pid) = $nginx->workers;
    my $port  = sprintf '%04X', $redis->port;
    my %socket = map { $_ => 1 } map { readlink($_) // '' } glob "/proc/$pid/fd/*";
    return uniq map { join '.', unpack 'C4', pack 'V', hex $_->[0] }
        grep { $_->[1] eq $port && $_->[2] eq '01' && $socket{"socket:[$_->[3]]"} }
        map { [ /^\s*\d+: \S+ ([0-9A-F]{8}):([0-9A-F]{4}) ([0-9A-F]{2}) (?:\S+ +){5}(\d+) / ] }
        grep { / 01 / } split /\n/, slurp('/proc/net/tcp');
}

# Lookups until the worker is connected to that address, and no other; all of them hit.
sub hits_until {
    my ($port, $session, $nginx, $address) = @_;
    my %seen;
    my $moved = eval { wait_until {
        my $client = client($port, $session);
        $seen{ $client->request // $client->error }++;
        join(' ', linked($nginx)) eq $address;
    } 10, "a connection to $address" };
    ok $moved, "connected to $address" or diag "linked: @{[ linked($nginx) ]}";
    my $all = delete $seen{HIT} // 0;
    is_deeply \%seen, {}, "all $all lookups meanwhile hit";
}

sub hits {
    my ($port, $session, $n) = @_;
    is_deeply [ map { scalar client($port, $session)->request } 1 .. $n ], [ ('HIT') x $n ], "$n hits";
}

# Lookups until the name server has been asked again.
sub hits_until_asked {
    my ($port, $session, $dns, $more) = @_;
    my ($asked, %seen) = ($dns->asked('A'));
    wait_until { $seen{ client($port, $session)->request // '' }++; $dns->asked('A') >= $asked + ($more // 1) } 10, 'a question';
    is_deeply [ keys %seen ], ['HIT'], 'lookups hit';
}

sub errors { my ($nginx, @more) = @_; return $nginx->errors(warn => 1, @more) }

# These go on while the others run.
my ($patient_port, $patient_dns, $patient) = start(say => ['NXDOMAIN']);
my $patient_session = new_session($patient_port);
wait_until { client($patient_port, $patient_session)->request; errors($patient) } 10, 'an error';
my $patient_since = time;
my ($idle_port, $idle_dns, $idle) = start(resolver => 'valid=1s', say => [ 'addresses', 1, '127.0.0.1' ]);
new_session($idle_port);
wait_until { $idle_dns->asked('AAAA') } 5, 'its first question';
my $idle_asked = $idle_dns->asked;
my $idle_since = time;
my ($lasting_port, $lasting_dns, $lasting) = start(say => [ 'addresses', 600, '127.0.0.1' ]);
my $lasting_session = new_session($lasting_port);
wait_until { $lasting_dns->asked('AAAA') } 5, 'its first question';
my $lasting_asked = $lasting_dns->asked;

subtest 'the connection follows the address, and each lookup hits' => sub {
    my ($port, $dns, $nginx) = start(resolver => 'valid=1s', say => [ 'addresses', 60, '127.0.0.2' ]);
    is $dns->asked, 0, 'nothing is asked before there is a lookup';
    my $session = new_session($port);
    my $old = '127.0.0.1';
    for my $address ('127.0.0.2', '127.0.0.3', '127.0.0.1') {
        $dns->say('addresses', 60, $address);
        hits_until($port, $session, $nginx, $address);
        is $nginx->log_count(qr/\[notice\] .*: redis \Q$old\E:\d+ has moved to redis \Q$address\E:\d+$doing$/), 1, 'said once';
        $old = $address;
    }
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

SKIP: {
    skip 'this nginx has no stream{}', 1 unless has_stream();
    subtest 'so it is in stream{}, by its own "resolver"' => sub {
        my ($port, $dns) = (free_port(), name_server());
        $dns->say('addresses', 60, '127.0.0.2');
        my ($wrong, $more) = (name_server(), free_port());
        my $nginx = nginx(conf => '', stream => conf($port, $dns, resolver => 'valid=1s')
            =~ s/location.*/return \$ssl_session_fetch_status;/r
            . "server { listen 127.0.0.1:$more; resolver 127.0.0.1:$wrong->{port}; return x; }");
        my $lookup = sub {
            my $client = client($port, @_);
            $client->handshake or return;
            return ($client->read // '', $client->session);
        };
        my (undef, $session) = $lookup->();
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        my %seen;
        wait_until { $seen{ ($lookup->($session))[0] }++; join(' ', linked($nginx)) eq '127.0.0.2' } 10, 'the new address';
        is_deeply [ keys %seen ], ['HIT'], 'lookups hit';
        is $wrong->asked, 0, 'that of a server is for itself';
        is_deeply [ errors($nginx) ], [], 'nothing in the log';
    };
}

subtest 'the address in use stays while it is one of those of the name' => sub {
    my ($port, $dns, $nginx) = start(resolver => 'valid=1s', say => [ 'addresses', 60, '127.0.0.3', '127.0.0.1', '127.0.0.2' ]);
    my $session = new_session($port);
    hits_until_asked($port, $session, $dns, 2);
    hits($port, $session, 5);
    is join(' ', linked($nginx)), '127.0.0.1', 'in use as before';
    is $nginx->log_count(qr/has moved/), 0, 'and nothing said';
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

subtest 'an answer that is late holds nothing up' => sub {
    my ($port, $dns, $nginx) = start(resolver => 'valid=1s');
    my $session = new_session($port);
    wait_until { $dns->asked } 5, 'a question';
    hits($port, $session, 10);
    # nginx repeats its question after 5 seconds.
    $dns->say('addresses', 60, '127.0.0.2');
    is join(' ', linked($nginx)), '127.0.0.1', 'at the address that was there first';
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

subtest 'no address any more: the old one is kept, and one line says so' => sub {
    my @trouble = ('NXDOMAIN', 'SERVFAIL', 'nothing', 'addresses');
    my @all = map { [ start(resolver => 'valid=1s', timeout => '1s', say => [ 'addresses', 60, '127.0.0.2' ]) ] } @trouble;
    my @session = map { new_session($_->[0]) } @all;
    hits_until($all[$_][0], $session[$_], $all[$_][2], '127.0.0.2') for 0 .. $#all;
    $all[$_][1]->say($trouble[$_], 60) for 0 .. $#all;
    for my $n (0 .. $#all) {
        my ($port, undef, $nginx) = @{ $all[$n] };
        my %seen;
        wait_until { $seen{ client($port, $session[$n])->request // '' }++; scalar errors($nginx) } 10, 'an error';
        hits($port, $session[$n], 10);
        is_deeply [ keys %seen ], ['HIT'], "$trouble[$n]: no lookup fails";
        is join(' ', linked($nginx)), '127.0.0.2', 'the address stays';
        my @errors = errors($nginx);
        is scalar(@errors), 1, 'one line';
        like $errors[0], qr/\[error\] .*: redis \S+: "localhost" could not be resolved/, 'that says what';
    }
};

subtest 'the address changes while lookups are under way: neither they nor the next fail' => sub {
    my ($port, $dns, $nginx) = start(fetch_timeout => '20s', resolver => 'valid=1s', say => [ 'addresses', 60, '127.0.0.1' ]);
    # Each lookup for a session of its own: a request, which may make it ask for the name.
    my @sessions = map { new_session($port) } 1 .. 40;
    hits_until_asked($port, $sessions[0], $dns, 1);
    $dns->say('addresses', 60, '127.0.0.2');
    $redis->pause;
    my $from = $nginx->log_pos;
    my @clients;
    wait_until {
        push @clients, client($port, shift @sessions)->start;
        eval { wait_until { $nginx->log_count(qr/has moved to/, from => $from) } 0.2 };
    } 6, 'the new address';
    push @clients, map { client($port, shift @sessions)->start } 1 .. 3;
    $redis->resume;
    my %seen;
    $seen{ $_->request // $_->error }++ for @clients;
    my $all = delete $seen{HIT};
    is_deeply \%seen, {}, "all $all hit";
    hits_until($port, $sessions[0], $nginx, '127.0.0.2');
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

subtest 'the name moves away from an address that hangs' => sub {
    my $moved = redis(bind => '127.0.0.2');
    my $old   = relay(port => $moved->port, upstream => '127.0.0.2:' . $moved->port);
    my ($port, $dns, $nginx) = start(server => 'localhost:' . $moved->port, fetch_timeout => 3 * patience() . 's',
        resolver => 'valid=1s', say => [ 'addresses', 60, '127.0.0.1' ]);
    my $session = sub {
        my $client = client($port);
        $client->request;
        wait_until { $moved->cmd('EXISTS', cache_key($client->session)) } 5, 'the session in the store';
        return $client->session;
    };
    my @sessions = map { $session->() } 1 .. 40;
    hits_until_asked($port, $sessions[0], $dns, 1);
    $old->hold;
    $dns->say('addresses', 60, '127.0.0.2');
    my $from = $nginx->log_pos;
    my @lost;
    wait_until {
        push @lost, client($port, shift @sessions)->start;
        eval { wait_until { $nginx->log_count(qr/has moved to/, from => $from) } 0.2 };
    } 6, 'the new address';
    is scalar(client($port, shift @sessions)->request), 'HIT', "the next lookup hits, time $_" for 1 .. 3;
    # The old worker goes with all of that unanswered.
    $nginx->reload;
    my %seen;
    $seen{ $_->request // $_->error }++ for @lost;
    is_deeply [ keys %seen ], ['TIMEOUT'], 'those that wait for the old one make full handshakes';
    ok eval { wait_until { !$nginx->old_workers } 5, 'exit' }, 'the old worker exits';
    is $nginx->log_count(qr/127\.0\.0\.2:\d+ is down/, from => $from), 0, 'the new address is not called down';
    is_deeply [ grep { /\[alert\]/ } errors($nginx) ], [], 'nothing left open';
    ok eval { wait_until { (client($port, $sessions[0])->request // '') eq 'HIT' } 10 }, 'hits in the end';
    $old->release;
};

subtest 'reload and exit with a question under way' => sub {
    my ($port, $dns, $nginx) = start(timeout => '60s');
    my $session = new_session($port);
    wait_until { $dns->asked } 5, 'a question';
    my $asked = $dns->asked;
    $nginx->reload;
    ok eval { wait_until { !$nginx->old_workers } 5, 'exit' }, 'the old worker does not wait for the answer';
    hits($port, $session, 3);
    wait_until { $dns->asked > $asked } 5, 'a question of the new worker';
    my $start = time;
    $nginx->quit;
    cmp_ok time - $start, '<', 3 * patience(), 'nor does it at a graceful exit';
    $nginx->start;
    $asked = $dns->asked;
    hits($port, $session, 1);
    wait_until { $dns->asked > $asked } 5, 'a question';
    $start = time;
    $nginx->stop;
    cmp_ok time - $start, '<', 3 * patience(), 'nor at a fast one';
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

subtest 'a name that does not resolve yet' => sub {
    my ($port, $dns, $nginx) = start(server => 'sessions.invalid:' . $redis->port, resolver => 'valid=1s', say => ['NXDOMAIN']);
    client($port)->request;
    wait_until { scalar grep { /resolved/ } errors($nginx) } 5, 'an error';
    my ($said) = grep { /resolved/ } errors($nginx);
    like $said, qr/\[error\] .*: redis sessions\.invalid:\d+: "sessions\.invalid" could not be resolved \(3: Host not found\)$doing$/, 'it is asked for';
    my $session = client($port);
    $session->request;
    is scalar(client($port, $session->session)->request), 'DOWN', 'until it is there it is down';
    $dns->say('addresses', 60, '127.0.0.2');
    my %seen;
    wait_until { $seen{ client($port)->request // '' }++; linked($nginx) } 10, 'a connection';
    is join(' ', linked($nginx)), '127.0.0.2', 'there it is';
    hits($port, new_session($port), 3);
    is $nginx->log_count(qr/\[notice\] .*: redis sessions\.invalid:\d+ is at redis 127\.0\.0\.2:\d+$doing$/), 1, 'said once';
    $dns->say('addresses', 60, '127.0.0.3');
    hits_until($port, new_session($port), $nginx, '127.0.0.3');
    is scalar(grep { !/could not be resolved|not stored in/ } errors($nginx)), 0, 'nothing else in the log';
};

subtest 'an address is not resolved, and without a resolver nothing is' => sub {
    my ($port, $dns, $nginx) = start(server => '127.0.0.1:' . $redis->port, say => [ 'addresses', 60, '127.0.0.2' ]);
    hits($port, new_session($port), 3);
    is $dns->asked, 0, 'not asked';
    my $conf = conf($port, $dns) =~ s/^ *resolver.*;\n//mgr;
    $nginx->reload($conf);
    hits($port, new_session($port), 3);
    is $dns->asked, 0, 'not asked';
    is_deeply [ errors($nginx) ], [], 'nothing in the log';
};

subtest 'an answer holds for its ttl' => sub {
    hits($lasting_port, $lasting_session, 5);
    is $lasting_dns->asked, $lasting_asked, 'not asked again within ten minutes';
    is_deeply [ errors($lasting) ], [], 'nothing in the log';
};

subtest 'nothing is asked while there are no lookups' => sub {
    wait_until { time > $idle_since + 3 } 4;
    is $idle_dns->asked, $idle_asked, 'not in seconds, although the answer held for one';
    my $session = new_session($idle_port);
    wait_until { $idle_dns->asked > $idle_asked } 5, 'a question';
    hits($idle_port, $session, 3);
    is_deeply [ errors($idle) ], [], 'nothing in the log';
};

subtest 'a name that did not resolve is tried again after ten seconds' => sub {
    is $patient->log_count(qr/\[error\]/), 1, 'one line by now';
    my $asked = $patient_dns->asked('A');
    $patient_dns->say('addresses', 60, '127.0.0.2');
    my $session = new_session($patient_port);
    hits($patient_port, $session, 3);
    my $early = $patient_since + 9 > time;
    is $patient_dns->asked('A'), $asked, 'not asked before' if $early;
    hits_until($patient_port, $session, $patient, '127.0.0.2');
    is scalar(errors($patient)), 1, 'and no line more';
};

done_testing;
