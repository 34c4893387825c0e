# What a handshake has taken it gives back: after some thousands of each kind the worker holds as
# much memory and as many files as before.

use strict;
use warnings;

# It takes its time.
BEGIN { $ENV{TEST_DEADLINE} ||= 900 }

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

plan skip_all => 'valgrind counts better' if $ENV{TEST_NGINX_USE_VALGRIND};
plan skip_all => 'nothing is given back' if $ENV{TEST_NGINX_SANITIZE};

my $certs = certs();

# Handshakes of each kind while memory is watched. TEST_MEMORY_ROUNDS gives more.
my $rounds = $ENV{TEST_MEMORY_ROUNDS} || 600;

# What the worker may grow over them, in KB: some pages of the allocator's. The least that a
# handshake could lose, a session or a ClientHello, would be 150 bytes each time and 90 KB in all.
my $growth = 80;

my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my %port  = map { $_ => free_port() } qw(remote local);

sub conf {
    my ($targets) = @_;
    return <<"CONF";
    ssl_session_backend store {
        server 127.0.0.1:${\ $relay->port};
        connect_timeout 10s;
        fetch_timeout 10s;
        store_timeout 10s;
    }
    ssl_session_fetch $targets;
    ssl_session_store $targets;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    client_header_timeout 10s;
    access_log off;
CONF
}

sub server { "server { listen 127.0.0.1:$_[0] ssl; location / { return 200 \$ssl_session_fetch_status; } }" }

my %nginx = (
    remote => nginx(log => 'notice', conf => conf('store') . server($port{remote})),
    local  => nginx(log => 'notice', conf => conf('shared:tls:64k') . server($port{local})),
);

sub visit {
    my ($where, %arg) = @_;
    my $client = tls_client(port => $port{$where}, %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return ($status, $client);
}

sub session {
    my ($where, $protocol) = @_;
    my (undef, $client) = visit($where, protocol => $protocol);
    return ($client->sessions)[0];
}

# Runs it again and again; $nginx must be after it as it was before. What is lost is lost each time:
# memory that does not grow over one run of several only grew to what the largest bunch needs.
sub flat {
    my ($nginx, $times, $once, $growth) = (@_, $growth);
    my $pids = join ' ', $nginx->workers;
    my ($rss, $after, $fds);
    for (1 .. 6) {
        ($rss, $fds) = ($nginx->rss, $nginx->fds);
        $once->() for 1 .. $times * $rounds;
        $after = $nginx->rss;
        last if $after - $rss <= $growth;
    }
    cmp_ok $after - $rss, '<=', $growth, "memory: $rss KB before, $after KB after";
    # The last connection may still be on its way out.
    wait_until { $nginx->fds <= $fds + 1 } 5, 'the end of the last connection';
    cmp_ok $nginx->fds, '<=', $fds + 1, "files: $fds before";
    is join(' ', $nginx->workers), $pids, 'the same worker';
}

# Outcomes of handshakes that offer $session, and what they should be.
sub outcomes {
    my ($where, $protocol, $session, $outcome) = @_;
    my %seen;
    flat($nginx{$where}, 1, sub {
        my ($status, $client) = visit($where, protocol => $protocol, session => $session);
        $seen{ $status . ($client->reused ? ' resumed' : ' full') }++;
    });
    is_deeply [ keys %seen ], [$outcome], "all: $outcome";
}

for my $where (qw(remote local)) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$where, $protocol: full handshakes" => sub { outcomes($where, $protocol, undef, ' full') };
        subtest "$where, $protocol: misses" => sub {
            my $session = session($where, $protocol);
            if ($where eq 'remote') {
                wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
                $redis->cmd('DEL', cache_key($session));
            } else {
                # A zone that is new is empty.
                $nginx{local}->reload(conf("shared:$protocol:64k") . server($port{local}));
                wait_until { !$nginx{local}->old_workers } 5, 'exit of the old worker';
            }
            outcomes($where, $protocol, $session, 'MISS full');
        };
        subtest "$where, $protocol: hits" => sub {
            my $session = session($where, $protocol);
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store' if $where eq 'remote';
            if ($where eq 'local' && $protocol eq 'TLSv1.3') {
                # Each of them leaves a ticket, for which older ones give way in time.
                my %seen;
                flat($nginx{$where}, 1, sub {
                    my ($status, $client) = visit($where, protocol => $protocol, session => $session);
                    $seen{ $status . ($client->reused ? ' resumed' : ' full') }++;
                    ($session) = $client->sessions;
                });
                is_deeply [ keys %seen ], ['HIT resumed'], 'all: HIT resumed';
            } else {
                outcomes($where, $protocol, $session, 'HIT resumed');
            }
        };
    }
}

subtest 'clients that vanish during the lookup' => sub {
    # Six sessions of each protocol; the first is offered by five clients, who wait for one lookup.
    my @offers;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my @own = map { session('remote', $protocol) } 1 .. 6;
        for my $session (@own) {
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        }
        push @offers, map { { protocol => $protocol, session => $_ } } @own, ($own[0]) x 4;
    }
    # In bunches of 60, as several lookups wait at once: six times as many handshakes as of other
    # kinds, so that the bunches' own ups and downs do not count.
    flat($nginx{remote}, 1 / 10, sub {
        for my $end (qw(reset close half_close)) {
            $relay->hold;
            my @clients = map { tls_client(port => $port{remote}, %$_)->start } @offers;
            wait_until { $relay->stats->{reply} > 1000 } 5, 'lookups';
            $_->$end for @clients;
            $relay->release;
            wait_until { !$relay->stats->{reply} } 5, 'the last reply';
        }
    }, 2 * $growth);
    my ($status) = visit('remote', protocol => 'TLSv1.2', session => $offers[0]{session});
    is $status, 'HIT', 'others are served';
};

subtest 'garbage in place of a ClientHello' => sub {
    flat($nginx{remote}, 1, sub {
        my $client = tls_client(port => $port{remote}, protocol => 'TLSv1.2');
        $client->client_hello;
        $client->send_raw("\x16\x03\x01\x00\x10" . 'x' x 16);
        $client->wait_closed;
    });
};

subtest 'half a ClientHello and the end of the connection, both at once' => sub {
    my ($worker) = $nginx{remote}->workers;
    # They are accepted before, and what comes is seen when the worker goes on.
    tls_client(port => $port{remote}, protocol => 'TLSv1.2', handshake => 1) for 1 .. 2;
    my @clients = map { tls_client(port => $port{remote}, protocol => 'TLSv1.2') } 1 .. 3;
    tls_client(port => $port{remote}, protocol => 'TLSv1.2', handshake => 1);
    $nginx{remote}->halt($worker);
    for my $client (@clients) {
        $client->send_raw(substr $client->client_hello, 0, 40);
        $client->half_close;
    }
    kill CONT => $worker;
    # Not only at client_header_timeout.
    is $_->wait_closed(5), 'eof', 'let go' for @clients;
};

subtest 'corrupt entries' => sub {
    flat($nginx{remote}, 1 / 2, sub {
        my $session = session('remote', 'TLSv1.2');
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        $redis->cmd('SET', cache_key($session), 'x' x 1000);
        my ($status) = visit('remote', protocol => 'TLSv1.2', session => $session);
        $status eq 'CORRUPT' or die "not CORRUPT but $status";
    });
};

subtest 'a store that comes and goes' => sub {
    my $session = session('remote', 'TLSv1.2');
    flat($nginx{remote}, 1 / 2, sub {
        $relay->reset_all;
        visit('remote', protocol => 'TLSv1.2', session => $session);
    });
};

subtest 'a store that is down' => sub {
    my %session = map { $_ => session('remote', $_) } qw(TLSv1.2 TLSv1.3);
    $relay->stop;
    # What was queued for it, and its connection, are given back first.
    wait_until { (visit('remote', protocol => 'TLSv1.2', session => $session{'TLSv1.2'}))[0] eq 'DOWN' } 5, 'DOWN';
    outcomes('remote', $_, $session{$_}, 'DOWN full') for sort keys %session;
};

for my $where (sort keys %nginx) {
    $nginx{$where}->quit;
    is_deeply [ $nginx{$where}->errors(except => qr/ is down: |corrupt SSL session |recv\(\) failed|connection failed|server closed/) ],
        [], "$where: nothing else in the log";
}

done_testing;
