# When a lookup is made, and in which order fetch, certificate and store come.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);

# A fleet of two: what is resumed here was made there, by a process that shares nothing else.
my %port  = map { $_ => [ free_port(), free_port() ] } qw(rsa ec named);
my @nginx = map { my $node = $_; nginx(conf => conf($node)) } 0, 1;

sub conf {
    my ($node) = @_;
    my $servers = '';
    for my $kind (qw(rsa ec)) {
        $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port{$kind}[$node] ssl;
        ssl_certificate     $certs->{"${kind}_crt"};
        ssl_certificate_key $certs->{"${kind}_key"};
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
    }
    return <<"CONF";
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
$servers
    map \$ssl_server_name \$by_name { default $certs->{rsa_crt}; other.example.test $certs->{ec_crt}; }
    map \$ssl_server_name \$key_by_name { default $certs->{rsa_key}; other.example.test $certs->{ec_key}; }
    server {
        listen 127.0.0.1:$port{named}[$node] ssl;
        ssl_certificate     \$by_name;
        ssl_certificate_key \$key_by_name;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
}

sub stored {
    my (@sessions) = @_;
    wait_until { $redis->cmd('EXISTS', map { cache_key($_) } @sessions) == @sessions } 10, 'store';
}

# What redis itself has counted; a command never used has no line.
sub gets {
    my ($calls) = $redis->cmd('INFO', 'commandstats') =~ /^cmdstat_get:calls=(\d+)/m;
    return $calls // 0;
}

for my $kind (qw(rsa ec)) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$kind, $protocol: no session offered, no lookup" => sub {
            my $before = gets();
            my $client = tls_client(port => $port{$kind}[0], protocol => $protocol);
            is $client->request, ". \n", 'full handshake, and no outcome' or diag $client->error;
            is gets(), $before, 'redis was not asked';
            is scalar($relay->requests('GET')), $before, 'nothing was on the way to it';
        };

        subtest "$kind, $protocol: one session offered, one lookup" => sub {
            my $first = tls_client(port => $port{$kind}[0], protocol => $protocol);
            $first->request;
            my ($session) = ($first->sessions)[-1];
            stored($first->sessions);
            my $before = gets();
            for my $node (0, 1) {
                my $client = tls_client(
                    port => $port{$kind}[$node], protocol => $protocol, session => $session);
                is $client->request, "r HIT\n", "resumed on server $node" or diag $client->error;
                is gets(), $before + 1 + $node, 'redis was asked once';
                is_deeply +($relay->requests('GET'))[-1], [ 'GET', cache_key($session) ], 'for that session';
                stored($client->sessions) if $protocol eq 'TLSv1.3';
            }
        };

        subtest "$kind, $protocol: a session that the store does not know, one lookup" => sub {
            my $first = tls_client(port => $port{$kind}[0], protocol => $protocol);
            $first->request;
            my ($session) = ($first->sessions)[-1];
            stored($session);
            $redis->cmd('DEL', cache_key($session));
            my $before = gets();
            my $client = tls_client(port => $port{$kind}[1], protocol => $protocol, session => $session);
            is $client->request, ". MISS\n", 'full handshake' or diag $client->error;
            is gets(), $before + 1, 'redis was asked once';
        };
    }
}

# What one connection did, as the log tells it in debug lines of the connection's number.
sub steps {
    my ($nginx, $from) = @_;
    my @steps;
    for (split /\n/, $nginx->log($from)) {
        push @steps, 'fetch'        if /SSL session fetch [0-9a-f]{8}: asked /;
        push @steps, $1             if /SSL session fetch: (\w+) in/;
        push @steps, 'certificate'  if /ssl cert: "/;
        push @steps, 'store'        if /SSL session store [0-9a-f]{8}/;
    }
    return @steps;
}

SKIP: {
    skip 'the steps are told by the log of an nginx with debugging', 2
        if `'@{[ nginx_binary() ]}' -V 2>&1` !~ /--with-debug/;

    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $tickets = $protocol eq 'TLSv1.3' ? 2 : 1;
        subtest "$protocol: order of fetch, certificate selection and store" => sub {
            my %name  = (sni => 'other.example.test', protocol => $protocol);
            my $first = tls_client(port => $port{named}[0], %name);
            $first->request or diag $first->error;
            my ($session) = ($first->sessions)[-1];
            stored($first->sessions);
            my $from   = $nginx[1]->log_pos;
            my $client = tls_client(port => $port{named}[1], %name, session => $session);
            is $client->request, "r HIT\n", 'a hit' or diag $client->error;
            stored($client->sessions) if $protocol eq 'TLSv1.3';
            is_deeply [ steps($nginx[1], $from) ],
                $protocol eq 'TLSv1.2' ? [qw(fetch HIT)] : [qw(fetch HIT store)],
                $protocol eq 'TLSv1.2'
                    ? 'no certificate selection, no store'
                    : 'no certificate selection, the new ticket is stored';

            $redis->cmd('DEL', cache_key($session));
            $from   = $nginx[1]->log_pos;
            $client = tls_client(port => $port{named}[1], %name, session => $session);
            is $client->request, ". MISS\n", 'a miss' or diag $client->error;
            stored($client->sessions);
            is_deeply [ steps($nginx[1], $from) ],
                [ qw(fetch MISS certificate), ('store') x $tickets ], 'fetch, certificate, store';
            isnt cache_key(($client->sessions)[-1]), cache_key($session), 'another session';
        };
    }
}

$_->quit for @nginx;
is_deeply [ map { $_->errors } @nginx ], [], 'no error in the logs';

done_testing;
