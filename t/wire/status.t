# ssl_session_status: what it counts, in a form that Prometheus reads.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my ($port, $status, $redis) = (free_port(), free_port(), redis());
my $conf = <<"CONF";
    ssl_session_backend store { server 127.0.0.1:${\ $redis->port}; }
    ssl_session_fetch shared:tls:1m store;
    ssl_session_store shared:tls:1m store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
    server { listen 127.0.0.1:$status; location / { ssl_session_status; allow 127.0.0.1; deny all; } }
CONF
my $nginx = nginx(workers => 2, log => 'notice', conf => $conf);

sub metrics {
    my $body = `curl -fsS http://127.0.0.1:$status/`;
    my %value;
    while ($body =~ /^nginx_ssl_session_(\w+\{[^}]*\}) (\S+)$/mg) { $value{$1} = $2 }
    return \%value;
}

sub visit {
    my ($protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    defined $client->request or die 'no answer: ' . $client->error;
    return $client;
}

print STDERR `curl -isS http://127.0.0.1:$status/` if $ENV{SHOW};
for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    my $labels = qq(listen="127.0.0.1:$port",protocol="$protocol");
    my $before = metrics();
    my $session = (visit($protocol)->sessions)[0];
    wait_until { visit($protocol, $session)->reused } 5, 'resumption';
    visit($protocol, $session) for 1 .. 9;
    my $after = metrics();
    is $after->{qq(handshakes_total{$labels,result="full"})}, 1, "$protocol: a full handshake";
    is $after->{qq(handshakes_total{$labels,result="resumed"})}, 10, 'resumed ones';
    is $after->{qq(fetches_total{$labels,status="HIT"})}, 10, 'hits';
}
my $all = metrics();
print STDERR `curl -isS http://127.0.0.1:$status/ | grep -v bucket` if $ENV{SHOW};
$nginx->reload($conf);
is_deeply metrics(), $all, 'a reload keeps them';
done_testing;
