# A backend whose name has several addresses. The names are in a hosts file of the test's own,
# which takes a mount namespace.

use strict;
use warnings;

use File::Temp ();
use Test::More;

my $hosts;

BEGIN {
    # perl -c runs this block too, and must not run the test.
    if (!$ENV{SSL_SESSION_TEST_HOSTS} && !$^C) {
        plan skip_all => 'no mount namespaces for this user'
            if system('unshare --mount mount --bind /etc/hosts /etc/hosts >/dev/null 2>&1') != 0;
        my $file = File::Temp->new(UNLINK => 0);
        print {$file} "127.0.0.1 localhost\n",
            "127.0.0.2 first.refuses\n127.0.0.1 first.refuses\n",
            "127.0.0.1 last.refuses\n127.0.0.2 last.refuses\n",
            "127.0.0.2 all.refuse\n127.0.0.3 all.refuse\n";
        close $file;
        chmod 0644, "$file";
        $ENV{SSL_SESSION_TEST_HOSTS} = "$file";
        exec qw(unshare --mount sh -c), 'mount --bind "$SSL_SESSION_TEST_HOSTS" /etc/hosts && exec "$@"',
            'sh', $^X, (map { "-I$_" } @INC), $0 or die "unshare: $!";
    }
    unlink $ENV{SSL_SESSION_TEST_HOSTS} if $ENV{SSL_SESSION_TEST_HOSTS};
}

use lib 't/lib';
use SSLSession::Fixture;

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
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 \$ssl_session_fetch_status; }
    }
CONF
}

sub hit {
    my ($port, $redis) = @_;
    my $first = tls_client(port => $port, protocol => 'TLSv1.2');
    $first->request;
    wait_until { $redis->cmd('DBSIZE') } 5, 'the session in the store';
    return wait_until {
        my $again = tls_client(port => $port, protocol => 'TLSv1.2', session => $first->session);
        ($again->request // '') eq 'HIT' && $again->reused;
    } 10, 'a hit';
}

sub close_links {
    my ($nginx, $redis) = @_;
    my $from = $nginx->log_pos;
    $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
    $nginx->log_like(qr/server closed connection/, from => $from);
}

for my $name ('first.refuses', 'last.refuses') {
    subtest "$name: the address that serves is found" => sub {
        my ($port, $redis) = (free_port(), redis());
        my $nginx = nginx(conf => conf($port, "redis://$name:" . $redis->port));
        for (1 .. 3) {
            ok hit($port, $redis), 'hit';
            close_links($nginx, $redis);
        }
        is_deeply [ $nginx->errors(warn => 1) ], [], 'the server was never down: nothing in the log';
    };
}

subtest 'the other address is found when the server moves there' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => conf($port, "redis://first.refuses:" . $redis->port));
    for my $address ('127.0.0.1', '127.0.0.2', '127.0.0.1') {
        $redis->cmd('CONFIG', 'SET', 'bind', $address);
        ok hit($port, $redis), "hit at $address";
        like $redis->cmd('CLIENT', 'LIST'), qr/ laddr=\Q$address\E:\d+ (?!.*cmd=client)/, 'it is the one in use';
        close_links($nginx, $redis);
    }
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
};

for my $at ([ '127.0.0.1', '127.0.0.2' ], [ '127.0.0.2', '127.0.0.1' ]) {
    subtest "the master is found at $at->[0], where the other address is a replica's" => sub {
        my $port    = free_port();
        my $master  = redis(bind => $at->[0]);
        my $replica = redis(port => $master->port, bind => $at->[1], replicaof => $master)->wait_replica;
        my $nginx   = nginx(conf => conf($port, 'redis://first.refuses:' . $master->port));
        ok wait_until {
            my $first = tls_client(port => $port, protocol => 'TLSv1.2');
            $first->request;
            my $session = $first->session;
            eval { wait_until { $master->cmd('EXISTS', cache_key($session)) } 0.2 };
        } 5, 'a session that is stored';
        is $nginx->log_count(qr/ is down/), 0, 'none was down';
        $nginx->quit;
        is_deeply [ $nginx->errors(except => qr/READONLY/) ], [], 'and the log has nothing else';
    };
}

subtest 'the server is down when all addresses refuse' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx  = nginx(conf => conf($port, "redis://all.refuse:" . $redis->port));
    my $client = tls_client(port => $port, protocol => 'TLSv1.2');
    is $client->request, '', 'full handshake';
    my $again = tls_client(port => $port, protocol => 'TLSv1.2', session => $client->session);
    is $again->request, 'DOWN', 'outcome';
    is $again->reused, 0, 'full handshake';
    is $nginx->log_count(qr/\[error\] .* is down: connect\(\) failed \(111: Connection refused\)/), 1, 'said once';
    is_deeply [ $nginx->errors(warn => 1, except => qr/$gone|SSL sessions not stored in/) ], [], 'nothing else';
};

done_testing;
