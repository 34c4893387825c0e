# A fork of nginx has its version and its signature, and other structures: the module that was built for the
# one is refused by the other before it reads any of them.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

plan skip_all => 'the module is built with its nginx' if $ENV{TEST_NGINX_STATIC};
plan skip_all => 'no C compiler' if system('cc --version >/dev/null 2>&1') != 0;

my $library = tmpdir() . '/fork.so';
my $said    = `cc -shared -fPIC -Wall -Werror -o '$library' '${\ root() }/t/lib/fork.c' 2>&1`;
is $said, '', 'the fork is built';

# nginx -t there, with the module.
sub tried {
    my ($fork) = @_;
    local %ENV = (%ENV, LD_PRELOAD => $library, FORK => $fork);
    return conf_test(conf => '', has_stream() ? (stream => '    server { listen 127.0.0.1:' . free_port() . '; return ok; }') : ());
}

my ($code, $output) = tried('');
is $code, 0, 'the nginx that it was built for loads the module' or diag $output;

my %forks = (
    'ngx_core_module working_directory'                 => 'ngx_core_conf_t',
    'ngx_http_core_module variables_hash_bucket_size'   => 'ngx_http_core_main_conf_t',
    'ngx_http_core_module connection_pool_size'         => 'ngx_http_core_srv_conf_t',
    'ngx_http_core_module resolver_timeout'             => 'ngx_http_core_loc_conf_t',
    'ngx_http_ssl_module ssl_verify_depth'              => 'ngx_http_ssl_srv_conf_t',
    'ngx_http_ssl_module ssl_session_ticket_key'        => 'ngx_http_ssl_srv_conf_t',
    'variable request_uri'                              => 'ngx_http_request_t',
    'variable sent_http_link'                           => 'ngx_http_request_t',
);
%forks = (%forks,
    'ngx_stream_core_module variables_hash_bucket_size' => 'ngx_stream_core_main_conf_t',
    'ngx_stream_core_module resolver_timeout'           => 'ngx_stream_core_srv_conf_t',
    'ngx_stream_ssl_module ssl_verify_depth'            => qr/ngx_stream_ssl_(?:srv_)?conf_t/,
) if has_stream();

my $version = join '.', map { int(nginx_version() / $_) % 1000 } 1_000_000, 1000, 1;
for my $fork (sort keys %forks) {
    my ($code, $output) = tried($fork);
    subtest $fork => sub {
        like $output, qr/^forked$/m, 'is in the table';
        is $code, 1, 'the configuration is refused, without a crash';
        like $output, qr/\[emerg\] .*the SSL session module was built for another nginx \Q$version\E than this one, which may be a fork of it: "$forks{$fork}" differs; build the module with the sources of this nginx/,
            'and the line says why' or diag $output;
    };
}

subtest 'worker connections' => sub {
    my $nginx = nginx(start => 0, no_hup => 1, conf => '', main => 'master_process off;',
        env => { LD_PRELOAD => $library, FORK => 'worker connections' });
    ok !eval { $nginx->start; 1 }, 'nginx does not start';
    like $nginx->log, qr/^forked$/m, '... whose connections are others';
    like $nginx->log, qr/\[emerg\] .*the SSL session module was built for another nginx \Q$version\E than this one, which may be a fork of it: "ngx_connection_t", "ngx_event_t" differ;/,
        'and says why';
};

done_testing;
