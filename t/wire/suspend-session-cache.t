# Beside each kind of nginx's own ssl_session_cache: off stays off, nginx's goes on to work, and OpenSSL's
# (builtin) is not used.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my @protocols = qw(TLSv1.2 TLSv1.3);
my %cache = (
    default => '',
    off     => 'ssl_session_cache off;',
    none    => 'ssl_session_cache none;',
    builtin => 'ssl_session_cache builtin:100;',
    shared  => 'ssl_session_cache shared:own:1m;',
    both    => 'ssl_session_cache builtin:100 shared:own:1m;',
);

# Two servers that share redis only, each with all kinds of caches.
my @port  = map { { map { $_ => free_port() } keys %cache } } 1, 2;
my @nginx = map { nginx(conf => conf($_)) } @port;

sub conf {
    my ($port) = @_;
    my $servers = '';
    for my $kind (sort keys %cache) {
        $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port->{$kind} ssl;
        $cache{$kind}
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
    ssl_certificate     $certs->{rsa_crt};
    ssl_certificate_key $certs->{rsa_key};
$servers
CONF
}

sub session {
    my (%arg) = @_;
    my $client = tls_client(%arg);
    $client->request // diag $client->error;
    return ($client->sessions)[-1] // $client->session;
}

for my $protocol (@protocols) {
    for my $kind (sort grep { $_ ne 'off' } keys %cache) {
        subtest "$protocol, $kind" => sub {
            my $session = session(port => $port[0]{$kind}, protocol => $protocol);
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';
            for my $node (0, 1) {
                my %arg = (port => $port[$node]{$kind}, protocol => $protocol, session => $session);
                my $before = $relay->requests('GET');
                is tls_client(%arg)->request, "r HIT\n", "resumed on server $node";
                is scalar($relay->requests('GET')), $before + 1, 'one lookup';
            }

            # What redis has lost.
            $redis->cmd('FLUSHALL');
            my $other = session(port => $port[0]{$kind}, protocol => $protocol);
            wait_until { $redis->cmd('EXISTS', cache_key($other)) } 10, 'store';
            $redis->cmd('FLUSHALL');
            my $own = $kind =~ /shared|both/ ? 'r' : '.';
            is tls_client(port => $port[0]{$kind}, protocol => $protocol, session => $other)->request, "$own MISS\n",
                $own eq 'r' ? 'what redis has lost is still in its own cache' : 'what redis has lost is lost';
            is tls_client(port => $port[1]{$kind}, protocol => $protocol, session => $other)->request, ". MISS\n",
                'and not in that of the other one';
        };
    }

    subtest "$protocol, off" => sub {
        # Whatever was on its way to redis is there when something later is.
        for my $port (@port) {
            my $later = session(port => $port->{none}, protocol => $protocol);
            wait_until { $redis->cmd('EXISTS', cache_key($later)) } 10, 'store';
        }
        my $keys = $redis->cmd('DBSIZE');
        my $made = session(port => $port[0]{off}, protocol => $protocol);
        my $elsewhere = session(port => $port[0]{none}, protocol => $protocol);
        wait_until { $redis->cmd('EXISTS', cache_key($elsewhere)) } 10, 'store';
        is $redis->cmd('DBSIZE'), $keys + ($protocol eq 'TLSv1.3' ? 2 : 1), 'only the session made elsewhere is stored';
        my $before = $relay->requests('GET');
        is tls_client(port => $port[0]{off}, protocol => $protocol, session => $_)->request, ". \n", 'not resumed'
            for $elsewhere, grep { length $_ } $made;
        is scalar($relay->requests('GET')), $before, 'nor looked up';
    };
}

for my $nginx (@nginx) {
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], 'no error in the log';
}

done_testing;
