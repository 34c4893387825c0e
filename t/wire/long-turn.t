# A turn of the event loop that takes longer than a lookup may: the time that the worker was busy with
# other clients is not the server's.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use constant FETCH_TIMEOUT => 0.05;
# Full handshakes with RSA, which take about a millisecond each.
use constant CLIENTS => 250;

my $certs = certs();
my ($port, $redis) = (free_port(), redis());
# An answer takes a fifth of the time that it may.
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
$relay->delay(1000 * FETCH_TIMEOUT / 5, 'reply');

sub conf {
    return <<"CONF";
    ssl_session_backend store {
        server 127.0.0.1:${\ $relay->port};
        fetch_timeout ${\ (1000 * FETCH_TIMEOUT)}ms;
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{rsa_crt};
    ssl_certificate_key $certs->{rsa_key};
    server {
        listen 127.0.0.1:$port ssl backlog=1024;
        location / { return 200 "\$ssl_session_fetch_status \$ssl_session_fetch_time"; }
    }
CONF
}

# How many connections the worker has.
sub connections {
    my ($worker) = @_;
    return scalar grep { /^socket:/ } map { readlink // '' } glob "/proc/$worker/fd/*";
}

# One client that offers a session, and then many that do not, all in one turn. Others connect
# meanwhile: nginx accepts one of them in each of the next turns, which do not wait for the answer.
sub crowd {
    my ($nginx, $session) = @_;
    my ($worker) = $nginx->workers;
    my $before = connections($worker);
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
    my @others = map { tls_client(port => $port, protocol => 'TLSv1.2') } 1 .. CLIENTS;
    wait_until { connections($worker) >= $before + 1 + CLIENTS } 20, 'all connections';
    freeze($worker);
    $_->start for $client, @others;
    push @others, map { tls_client(port => $port, protocol => 'TLSv1.2') } 1 .. 10;
    kill CONT => $worker;
    return ($client, @others);
}

for my $fresh (0, 1) {
    my $what = $fresh ? 'a worker that is not yet connected' : 'a worker that is connected';
    subtest "$what: a healthy server is not down after a long turn" => sub {
        my $nginx = nginx(events => 'worker_connections 1024;', conf => conf());
        my $first = tls_client(port => $port, protocol => 'TLSv1.2');
        $first->request;
        wait_until { $redis->cmd('EXISTS', cache_key($first->session)) } 5, 'the session in Redis';
        if ($fresh) {
            $nginx->quit;
            $nginx = nginx(events => 'worker_connections 1024;', conf => conf());
        }
        my ($client, @others) = crowd($nginx, $first->session);
        my ($outcome, $time) = split / /, $client->request // $client->error;
        is $outcome, 'HIT', 'the lookup is answered';
        cmp_ok $time, '>', FETCH_TIMEOUT, 'although the turn took longer than a lookup may'
            unless $ENV{TEST_NGINX_USE_VALGRIND};
        is scalar(grep { !defined $_->request } @others), 0, 'the others are served';
        is $nginx->log_count(qr/ is down: /), 0, 'the server is not down';
        is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
        # A session of each is stored: none was lost with a connection.
        my $stored = grep { $redis->cmd('EXISTS', cache_key($_->session)) } @others;
        is $stored, scalar @others, 'and their sessions are stored';
        $nginx->quit;
    };
}

done_testing;
