# A fork that has a callback of its own for the ClientHello in http{}: ours, in its place, calls it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

plan skip_all => 'no C compiler' if system('cc --version >/dev/null 2>&1') != 0;
# What nginx sets itself goes first.
plan skip_all => 'this nginx has one, of which it says so in each context' if nginx_version() >= 1_029_002;

my $library = tmpdir() . '/fork_hello.so';
my $said    = `cc -shared -fPIC -Wall -Werror -o '$library' '${\ root() }/t/lib/fork_hello.c' 2>&1`;
is $said, '', 'the fork is built';

my $certs = certs();
my ($http, $stream) = (free_port(), free_port());
my $tls = "ssl_certificate $certs->{ec_crt}; ssl_certificate_key $certs->{ec_key}; ssl_protocols TLSv1.2 TLSv1.3;";
my $nginx = nginx(
    env  => { LD_PRELOAD => $library },
    conf => <<"CONF",
    ssl_session_ticket_keys shared:keys:1m;
    server {
        listen 127.0.0.1:$http ssl;
        $tls
        location / { return 200 "\$ssl_session_reused"; }
    }
CONF
    has_stream() ? (stream => <<"CONF") : (),
    ssl_session_ticket_keys shared:streamkeys:1m;
    server {
        listen 127.0.0.1:$stream ssl;
        $tls
        return "\$ssl_session_reused";
    }
CONF
);

my $line = qr/^the fork has read the ClientHello$/;
for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    my $from   = $nginx->log_pos;
    my $client = tls_client(port => $http, protocol => $protocol);
    is $client->request, '.', "$protocol: a client is served";
    is $nginx->log_count($line, from => $from), 1, 'its ClientHello was shown to the fork, too';
}
SKIP: {
    skip 'no stream{}', 2 if !has_stream();
    my $from = $nginx->log_pos;
    ok tls_client(port => $stream)->handshake, 'a client of stream{} is served';
    is $nginx->log_count($line, from => $from), 0, 'its ClientHello was not';
}
$nginx->quit;

done_testing;
