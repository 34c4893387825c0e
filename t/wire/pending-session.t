# Beside somebody whose callback is to be asked again later, as that of ssl_session_fetch_by_lua is, on an
# OpenSSL with OpenResty's patch: the module neither reads nor frees what that returns.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

plan skip_all => 'no C compiler' if system('cc --version >/dev/null 2>&1') != 0;
my $libraries = `ldd '${\ nginx_binary() }' 2>/dev/null`;
plan skip_all => 'nginx has OpenSSL in itself' if $libraries !~ /\blibssl\./;

my $library = tmpdir() . '/pending_session.so';
my $said    = `cc -shared -fPIC -Wall -Werror -o '$library' '${\ root() }/t/lib/pending_session.c' 2>&1`;
is $said, '', 'the other one is built';

my $certs = certs();
my $redis = redis();
my $wait  = 3 * patience() . 's';

for my $epoch ('', 'ssl_session_epoch epoch;') {
    my $port  = free_port();
    my $nginx = nginx(env => { LD_PRELOAD => $library }, conf => <<"CONF");
    ssl_session_backend fleet { server ${\ $redis->address }; connect_timeout $wait; fetch_timeout $wait; store_timeout $wait; }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    $epoch
    server {
        listen 127.0.0.1:$port ssl;
        ssl_certificate        $certs->{ec_crt};
        ssl_certificate_key    $certs->{ec_key};
        ssl_verify_client      optional;
        ssl_client_certificate $certs->{ca_crt};
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status"; }
    }
CONF
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$protocol $epoch" => sub {
            my ($worker) = $nginx->workers;
            my @client   = (port => $port, protocol => $protocol, cert => $certs->{client_crt}, key => $certs->{client_key});
            my $first    = tls_client(@client);
            is $first->request, '. ', 'a client that is new';
            my $session = ($first->sessions)[-1] // $first->session;
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';
            is tls_client(@client, session => $session)->request, 'r HIT', 'what the store has is resumed, and nobody else asked';
            $redis->cmd('FLUSHALL');
            my $from = $nginx->log_pos;
            is tls_client(@client, session => $session)->request, '. MISS', 'what it does not have is pending elsewhere';
            is $nginx->log_count(qr/^the session is pending$/, from => $from), 1, 'and OpenSSL is told so';
            is_deeply [ $nginx->workers ], [$worker], 'the worker lives';
        };
    }
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], 'no error in the log';
}

done_testing;
