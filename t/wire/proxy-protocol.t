# A PROXY protocol header in front of the ClientHello, in the same segment and apart.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use IO::Socket::INET;
use Socket qw(inet_aton);

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $port  = free_port();

my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch     fleet;
    ssl_session_store     fleet;
    ssl_session_tickets   off;
    ssl_protocols         TLSv1.2 TLSv1.3;
    ssl_certificate       $certs->{ec_crt};
    ssl_certificate_key   $certs->{ec_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl proxy_protocol;
        location / {
            return 200 "\$ssl_session_reused \$ssl_session_fetch_status \$proxy_protocol_addr:\$proxy_protocol_port\\n";
        }
    }
CONF

my %header = (
    1 => "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n",
    # Version 2, PROXY, TCP over IPv4.
    2 => "\r\n\r\n\0\r\nQUIT\n\x21\x11" . pack('n/a', inet_aton('192.0.2.1') . inet_aton('192.0.2.2') . pack 'nn', 1234, 443),
);
my $from = '192.0.2.1:1234';

# A client that has sent header and ClientHello.
sub client {
    my ($header, $way, %arg) = @_;
    my $client = tls_client(port => $port, %arg);
    if ($way eq 'together') {
        # One write, so that nginx has both at once.
        $client->send_raw($header . $client->client_hello);
        $client->{started} = 1;
    } elsif ($way eq 'header and half of it') {
        my $hello = $client->client_hello;
        $client->send_raw($header . substr $hello, 0, 100);
        $client->send_raw(substr($hello, 100), segment => 1);
        $client->{started} = 1;
    } else {
        $client->send_raw($header);
        # nginx has read it when it has answered another one that came later.
        my $other = tls_client(port => $port, prefix => $header{1}, protocol => 'TLSv1.2');
        like $other->request, qr/^\. /, 'the header comes first';
        $client->start;
    }
    return $client;
}

for my $version (sort keys %header) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        # nginx wants the header itself in one piece.
        for my $way ('together', 'header and half of it', 'header apart') {
            subtest "version $version, $protocol, $way" => sub {
                my %arg    = (protocol => $protocol);
                my $before = $relay->requests('GET');
                my $client = client($header{$version}, $way, %arg);
                is $client->request, ".  $from\n", 'no session: full handshake' or diag $client->error;
                is scalar($relay->requests('GET')), $before, 'no lookup';
                my ($session) = ($client->sessions)[-1];
                wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';

                $relay->hold;
                $client = client($header{$version}, $way, %arg, session => $session);
                wait_until { $relay->requests('GET') == $before + 1 } 10, 'lookup';
                is_deeply +($relay->requests('GET'))[-1], [ 'GET', cache_key($session) ], 'its session is looked up';
                $relay->release;
                is $client->request, "r HIT $from\n", 'and resumed' or diag $client->error;
                is scalar($relay->requests('GET')), $before + 1, 'one lookup';

                $redis->cmd('FLUSHALL');
                $client = client($header{$version}, $way, %arg, session => $session);
                is $client->request, ". MISS $from\n", 'an unknown one: full handshake' or diag $client->error;
            };
        }
    }
}

subtest 'a client that goes away' => sub {
    my $client  = client($header{1}, 'together', protocol => 'TLSv1.2');
    $client->request;
    my $session = $client->session;
    my $fds     = $nginx->fds;
    my $before  = $relay->requests('GET');
    $relay->hold;
    $client = client($header{1}, 'together', protocol => 'TLSv1.2', session => $session);
    wait_until { $relay->requests('GET') == $before + 1 } 10, 'lookup';
    $client->reset;
    ok wait_until { $nginx->fds <= $fds } 5, 'its connection is closed while the lookup goes on';
    $relay->release;
};

subtest 'a header that is none' => sub {
    my $from   = $nginx->log_pos;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', prefix => "PROXY NONSENSE\r\n");
    ok !$client->handshake, 'is refused';
    $client = tls_client(port => $port, protocol => 'TLSv1.2');
    ok !$client->handshake, 'and so is a ClientHello without one';
    is $nginx->log_count(qr/broken header/, from => $from), 2, 'nginx says why';
};

$nginx->quit;
is_deeply [ $nginx->errors(except => qr/broken header/) ], [], 'no other error in the log';

done_testing;
