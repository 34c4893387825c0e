# Where a backend can be, and what it is asked for there.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::IP;
use Test::More;

my $certs = certs();

sub conf {
    my ($port, $target, @more) = @_;
    return <<"CONF";
    @more
    ssl_session_fetch $target;
    ssl_session_store $target;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier"; }
    }
CONF
}

sub visit {
    my ($port, $protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$protocol: resumed if and only if it is a hit";
    return { status => $status, tier => $tier, session => $client->session };
}

sub name { return substr cache_key($_[0]), length 'tls:' }

# A session, once it is in the store; what a slow machine loses is made again.
sub stored_session {
    my ($port, $protocol, $redis, $key) = @_;
    return wait_until {
        my $session = visit($port, $protocol)->{session};
        eval { wait_until { $redis->cmd('EXISTS', $key->(name($session))) } 1 } && $session;
    } 10, 'a session in the store';
}

# Targets without a backend block have the default timeouts, too short for a busy machine.
my $late = qr/ is down: (?:no answer|connect\(\) timed out)|SSL sessions not stored in/;

# A session is stored and found; $key makes its key of its name. The tier's name is $tier.
sub works {
    my ($port, $redis, $tier, $key) = @_;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = stored_session($port, $protocol, $redis, $key);
        # The first lookup on a slow machine may be late.
        my $seen = wait_until {
            my $client = tls_client(port => $port, protocol => $protocol, session => $session);
            my $answer = $client->request;
            $client->reused && $answer;
        } 10, 'a hit';
        is $seen, "HIT|$tier", "$protocol: hit";
    }
}

my $plain = sub { "tls:$_[0]" };

subtest 'a unix socket' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $target = 'redis://unix:' . $redis->unix;
    my $nginx  = nginx(conf => conf($port, $target));
    works($port, $redis, $target, $plain);
    like $redis->cmd('CLIENT', 'LIST'), qr/ addr=\Q${\ $redis->unix}\E:0 /, 'it is the one in use';
    is_deeply [ $nginx->errors(warn => 1, except => $late) ], [], 'nothing in the log';

    my $from = $nginx->log_pos;
    my $session = visit($port, 'TLSv1.2')->{session};
    $redis->kill;
    unlink $redis->unix;
    # The end of the connection may meet the first of them.
    wait_until { visit($port, 'TLSv1.2', $session)->{status} eq 'DOWN' } 5, 'no lookup without the socket';
    $nginx->log_like(qr/\[error\] .*redis unix:\S+ is down: connect\(\) failed \(2: No such file or directory\)/, from => $from);
};

subtest 'a unix socket in a backend, and with a database' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, 'store', 'ssl_session_backend store { server unix:' . $redis->unix . '; }'));
    works($port, $redis, 'store', $plain);
    $redis->cmd('FLUSHALL');
    my $target = 'redis://unix:' . $redis->unix . ':/5';
    $nginx->reload(conf($port, $target));
    $redis->cmd('SELECT', 5);
    works($port, $redis, $target, $plain);
    is_deeply [ $nginx->errors(warn => 1, except => $late) ], [], 'nothing in the log';
};

my $has_ipv6 = do { my $try = IO::Socket::IP->new(LocalHost => '::1', LocalPort => 0, Listen => 1); !!$try };

subtest 'an IPv6 address' => sub {
    plan skip_all => 'no IPv6' if !$has_ipv6;
    my ($port, $redis) = (free_port(), redis());
    $redis->cmd('PING');
    # The connection of the test stays.
    $redis->cmd('CONFIG', 'SET', 'bind', '::1');
    my $target = 'redis://[::1]:' . $redis->port;
    my $nginx  = nginx(conf => conf($port, $target));
    works($port, $redis, $target, $plain);
    like $redis->cmd('CLIENT', 'LIST'), qr/ addr=\[::1\]:\d+ /, 'it is the one in use';
    is_deeply [ $nginx->errors(warn => 1, except => $late) ], [], 'nothing in the log';
};

subtest 'the default port is 6379, and the log says which address is meant' => sub {
    my $port  = free_port();
    # Nobody listens at that address, so that no server of this machine is disturbed.
    my $nginx = nginx(conf => conf($port, 'redis://127.6.3.79'));
    visit($port, 'TLSv1.2');
    $nginx->log_like(qr/redis 127\.6\.3\.79:6379 is down: connect\(\) failed/);
};

subtest 'a database' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay  = relay(upstream => '127.0.0.1:' . $redis->port);
    my $target = $relay->url . '/3';
    my $nginx  = nginx(conf => conf($port, $target));
    $redis->cmd('SELECT', 3);
    works($port, $redis, $target, $plain);
    cmp_ok scalar($redis->keys), '>=', 3, 'the keys are there';
    $redis->cmd('SELECT', 0);
    is_deeply [ $redis->keys ], [], 'and in no other';
    is +($relay->requests)[0][0], 'SELECT', 'it is selected before all else';
    cmp_ok scalar($relay->requests('SELECT')), '<=', $relay->stats->{accepted}, 'once for a connection';
    my $selects = $relay->requests('SELECT');
    $redis->cmd('SELECT', 3);
    my $from = $nginx->log_pos;
    $relay->close_all;
    $nginx->log_like(qr/server closed connection/, from => $from);
    works($port, $redis, $target, $plain);
    cmp_ok scalar($relay->requests('SELECT')), '>', $selects, 'and again for the next';
    is_deeply [ $nginx->errors(warn => 1, except => $late) ], [], 'nothing in the log';
};

subtest 'a database that the server does not have' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, $relay->url . '/99'));
    my $session = visit($port, 'TLSv1.2')->{session};
    $nginx->log_like(qr/\[error\] .*redis 127\.0\.0\.1:\d+ is down: /);
    # A busy machine may have been too late for the answer.
    my $why = qr/server refused: "ERR DB index is out of range"|no answer|connect\(\) timed out/;
    is_deeply [ grep { / is down: / && !/ is down: (?:$why)/ } $nginx->errors ], [], 'the log says why';
    is visit($port, 'TLSv1.2', $session)->{status}, 'DOWN', 'it counts as down';
    # Nothing is asked in the database where the connection began, not even what was on its way.
    my $probes = scalar $relay->requests('SELECT');
    wait_until {
        visit($port, 'TLSv1.2', $session)->{status} eq 'DOWN' or die 'not down';
        $relay->requests('SELECT') >= $probes + 2;
    } 10, 'probes';
    is_deeply [ $relay->requests('GET') ], [], 'no lookup';
    is $nginx->log_count(qr/ is down: /), 1, 'said once';
    $redis->cmd('SELECT', 0);
    is_deeply [ $redis->keys ], [], 'and nothing was stored where it does not belong';
    is_deeply [ $nginx->errors(warn => 1, except => qr/ is down: (?:server refused|no answer|connect)|SSL sessions not stored in/) ], [],
        'nothing else in the log';
};

subtest 'key_prefix' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $backend = sub { "ssl_session_backend store { server 127.0.0.1:${\ $redis->port}; key_prefix $_[0];"
        . ' connect_timeout 10s; fetch_timeout 10s; }' };
    my $nginx = nginx(conf => conf($port, 'store', $backend->('fleet-a/')));
    works($port, $redis, 'store', sub { "fleet-a/$_[0]" });
    is_deeply [ grep { !m{^fleet-a/[\w-]{43}$} } $redis->keys ], [], 'all keys have it, and the name in base64url';
    my $session = stored_session($port, 'TLSv1.2', $redis, sub { "fleet-a/$_[0]" });
    $nginx->reload(conf($port, 'store', $backend->('fleet-b/')));
    is visit($port, 'TLSv1.2', $session)->{status}, 'MISS', 'another fleet does not see it';
    $nginx->reload(conf($port, 'store', $backend->('""')));
    works($port, $redis, 'store', sub { $_[0] });
    is_deeply [ $nginx->errors(warn => 1, except => $late) ], [], 'nothing in the log';
};

done_testing;
