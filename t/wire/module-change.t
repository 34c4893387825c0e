# A reload with another file of the module, as of a new version: what the old one has counted, it has
# counted in a layout of its own, and the new one begins with a zone of its own.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use File::Copy qw(copy);
use HTTP::Tiny;
use Test::More;

plan skip_all => 'the module is in nginx' if $ENV{TEST_NGINX_STATIC};

my $certs = certs();
my ($port, $shown) = (free_port(), free_port());
my $conf = <<"CONF";
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port ssl; location / { return 200 ok; } }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF

sub counted {
    my $answer = HTTP::Tiny->new(no_proxy => ['127.0.0.1'], timeout => 10 * patience())->get("http://127.0.0.1:$shown/");
    die "$answer->{status} $answer->{content}" unless $answer->{success};
    return { $answer->{content} =~ /^nginx_ssl_session_(\w+\{[^}]*\}) (\d+)$/mg };
}

sub visit { is tls_client(port => $port, protocol => 'TLSv1.3')->request, 'ok', 'a visit' }

my $full  = qq(handshakes_total{listen="127.0.0.1:$port",protocol="TLSv1.3",result="full"});
my $nginx = nginx(conf => $conf);
visit() for 1 .. 3;
my $before = counted();
is $before->{$full}, 3, 'counted';

$nginx->reload($conf);
is_deeply counted(), $before, 'a reload with the same file goes on with it';

my $copy = new_dir('module') . '/module.so';
copy($ENV{TEST_NGINX_LOAD_MODULES}, $copy) or die "$copy: $!";
{
    local $ENV{TEST_NGINX_LOAD_MODULES} = $copy;
    $nginx->reload($conf);
}
is_deeply [ grep { counted()->{$_} } sort keys %{ counted() } ], [], 'another file begins anew';
visit();
is counted()->{$full}, 1, 'and counts';
is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';

done_testing;
