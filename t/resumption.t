# nginx is both sides of TLS: it proxies to itself, and resumes as any client does.
#
# --- sessions    what stands in http{}; without it sessions are fetched from the store, a Redis,
#                 and stored there
# --- server      what stands in the TLS server; its answer is "PROTOCOL REUSED [STATUS] [TIER]"
# --- location    what stands in its location in place of that answer
# --- proxy       what stands in the location that proxies to it, at /t
# --- answers     what one request after the other gets
# --- stored      how many sessions are in the Redis in the end

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::Nginx::Socket 'no_plan';

master_on();
no_long_string();
# Ports that no outgoing connection gets.
server_port(my $port = free_port());
server_port_for_client($port);
# In some modes each block takes seconds.
alarm 1200;

my $redis = redis();
$ENV{TEST_NGINX_REDIS_PORT} = $redis->port;
$ENV{TEST_NGINX_REDIS_SOCK} = $redis->unix;

my %certs = certs();
$ENV{ 'TEST_NGINX_' . uc } = $certs{$_} for qw(rsa_crt rsa_key ec_crt ec_key);

# "listen ... http2" until 1.25.1, and its own directive from there on.
my $h2_directive = nginx_version() >= 1_025_001;
$ENV{TEST_NGINX_LISTEN_H2} = $h2_directive ? '' : 'http2';
$ENV{TEST_NGINX_H2_ON}     = $h2_directive ? 'http2 on;' : '';

add_block_preprocessor(sub {
    my ($block) = @_;
    $ENV{"TEST_NGINX_${_}_PORT"} = free_port() for qw(TLS);
    my $or = sub { my ($name, $default) = @_; $block->$name // $default };

    my $sessions = $or->(sessions => 'ssl_session_fetch store; ssl_session_store store;');
    my $server   = $or->(server   => '');
    my $location = $or->(location =>
        'return 200 "$ssl_protocol $ssl_session_reused [$ssl_session_fetch_status] [$ssl_session_fetch_tier]\n";');
    my $proxy    = $or->(proxy    => '');
    my $more     = $or->(http_config => '');
    $server .= 'ssl_certificate $TEST_NGINX_EC_CRT; ssl_certificate_key $TEST_NGINX_EC_KEY;'
        if $server !~ /ssl_certificate/;

    # The timeouts are no subject here: none must pass on a busy machine.
    $block->set_value(http_config => <<"CONF");
    ssl_session_key ${\ session_key() };
    ssl_session_backend store {
        server          127.0.0.1:\$TEST_NGINX_REDIS_PORT;
        connect_timeout 10s;
        fetch_timeout   10s;
        store_timeout   10s;
    }
    $sessions
    # A connection for each request: from 1.29.7 on the default is to keep it.
    proxy_http_version 1.0;
    $more
    # In a zone, or nginx would leak the session that it keeps as a client when it exits.
    upstream tls { zone upstream 64k; server 127.0.0.1:\$TEST_NGINX_TLS_PORT; }
    server {
        listen 127.0.0.1:\$TEST_NGINX_TLS_PORT ssl \$TEST_NGINX_LISTEN_H2;
        \$TEST_NGINX_H2_ON
        @{[ $server =~ /ssl_session_tickets/ ? '' : 'ssl_session_tickets off;' ]}
        $server
        location / { $location }
    }
CONF
    $block->set_value(config => <<"CONF") if !defined $block->config;
    location /t {
        proxy_pass              https://tls;
        proxy_ssl_session_reuse on;
        $proxy
    }
CONF
    if (defined(my $answers = $block->answers)) {
        my @answers = split /\n/, $answers;
        $block->set_value(request       => [ ('GET /t') x @answers ]) if !defined $block->request;
        $block->set_value(response_body => [ map { "$_\n" } @answers ]);
    }
    # A server with tickets gets its warning, and one with OpenSSL's cache.
    my @none = qw([error] [crit] [alert] [emerg]);
    if ($server =~ /ssl_session_tickets on|ssl_session_cache builtin/) {
        $block->set_value(suppress_stderr => 1);
    } else {
        push @none, '[warn]';
    }
    $block->set_value(no_error_log => join "\n", @none);
    $block->set_value(no_shutdown_error_log => join "\n", @none);
    $redis->cmd('FLUSHALL');
});

add_test_cleanup_handler(sub {
    my ($block) = @_;
    return if $ENV{TEST_NGINX_CHECK_LEAK};
    my $name = $block->name;
    if (defined $block->stored) {
        my ($count, $db) = split ' ', $block->stored;
        $redis->cmd('SELECT', $db // 0);
        # What is stored is on its way when the answer is there.
        my @keys;
        eval { wait_until { @keys = $redis->keys; @keys >= $count } 5, 'sessions' };
        is scalar @keys, $count, "$name - sessions are stored";
        is scalar(grep { !/^tls:[\w-]{43}$/ } @keys), 0, "$name - under their names";
        $redis->cmd('SELECT', 0);
    }
    if (defined $block->logged) {
        my $log = server_root() . '/logs/sessions.log';
        my $lines = () = $block->logged =~ /\n/g;
        eval { wait_until { (() = slurp($log) =~ /\n/g) >= $lines } 5, 'lines in the log' };
        is slurp($log), $block->logged, "$name - access log";
    }
});

# What the TLS server says over HTTP/2, first to a client without a session and then to one that
# has the first one's.
sub twice_by_h2 {
    my ($protocol) = @_;
    my %to = (port => $ENV{TEST_NGINX_TLS_PORT},
        protocol => $protocol, alpn => ['h2']);
    my $first  = tls_client(%to);
    my $answer = _h2_answer($first);
    return $answer . _h2_answer(tls_client(%to, session => $first->session));
}

# RFC 9113, as much of it as one GET takes.
sub _h2_answer {
    my ($client) = @_;
    my $frame = sub { my ($type, $flags, $stream, $payload) = @_;
        return substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload };
    # GET, https, / and the authority, by the static table of RFC 7541.
    my $headers = "\x82\x87\x84\x41" . pack('C/a', 'localhost');
    $client->handshake or return $client->error . "\n";
    $client->write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . $frame->(4, 0, 0, '') . $frame->(1, 5, 1, $headers));
    my ($in, $body) = ('', '');
    while (length(my $more = $client->read // '')) {
        $in .= $more;
        while (length $in >= 9) {
            my ($high, $low, $type, $flags) = unpack 'CnCC', $in;
            my $length = $high << 16 | $low;
            last if length $in < 9 + $length;
            $body .= substr $in, 9, $length if $type == 0;
            return $body if $type == 0 && $flags & 1;
            substr $in, 0, 9 + $length, '';
        }
    }
    return "$body, cut\n";
}

run_tests();

__DATA__

=== TEST 1: TLS 1.2, RSA certificate
--- server
    ssl_certificate     $TEST_NGINX_RSA_CRT;
    ssl_certificate_key $TEST_NGINX_RSA_KEY;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 2: TLS 1.2, ECDSA certificate
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 3: TLS 1.3, RSA certificate: two tickets, and another with each resumption
--- server
    ssl_certificate     $TEST_NGINX_RSA_CRT;
    ssl_certificate_key $TEST_NGINX_RSA_KEY;
    ssl_protocols       TLSv1.2 TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [store]
TLSv1.3 r [HIT] [store]
--- stored: 4



=== TEST 4: TLS 1.3, ECDSA certificate
--- server
    ssl_protocols TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [store]
TLSv1.3 r [HIT] [store]
--- stored: 4



=== TEST 5: both certificates at one server, resumed with the one that is asked for
--- server
    ssl_certificate     $TEST_NGINX_RSA_CRT;
    ssl_certificate_key $TEST_NGINX_RSA_KEY;
    ssl_certificate     $TEST_NGINX_EC_CRT;
    ssl_certificate_key $TEST_NGINX_EC_KEY;
--- proxy
    proxy_ssl_protocols TLSv1.2;
    proxy_ssl_ciphers   ECDHE-RSA-AES128-GCM-SHA256;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]



=== TEST 6: a client that does not resume
--- config
    location /t {
        proxy_pass              https://tls;
        proxy_ssl_protocols     TLSv1.2;
        proxy_ssl_session_reuse off;
    }
--- answers
TLSv1.2 . [] []
TLSv1.2 . [] []
--- stored: 2



=== TEST 7: shared memory, TLS 1.2
--- sessions
    ssl_session_fetch shared:tls:32k;
    ssl_session_store shared:tls:32k;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [shared:tls]
TLSv1.2 r [HIT] [shared:tls]
--- stored: 0



=== TEST 8: shared memory, TLS 1.3
--- sessions
    ssl_session_fetch shared:tls:32k;
    ssl_session_store shared:tls:32k;
--- server
    ssl_protocols TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [shared:tls]
TLSv1.3 r [HIT] [shared:tls]
--- stored: 0



=== TEST 9: a hit of the second tier refills the first
--- sessions
    ssl_session_fetch shared:tls:32k store;
    ssl_session_store store;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
TLSv1.2 r [HIT] [shared:tls]
--- stored: 1



=== TEST 10: a session stored in both tiers is found in the first
--- sessions
    ssl_session_fetch shared:tls:32k store;
    ssl_session_store shared:tls:32k store;
--- server
    ssl_protocols TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [shared:tls]
--- stored: 3



=== TEST 11: a tier behind a remote one is asked when that one misses
--- sessions
    ssl_session_fetch store shared:tls:32k;
    ssl_session_store shared:tls:32k;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [shared:tls]
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 12: a URL in place of a backend, TCP
--- sessions
    ssl_session_fetch store;
    ssl_session_store redis://127.0.0.1:$TEST_NGINX_REDIS_PORT;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 13: a URL in place of a backend, unix socket
--- sessions
    ssl_session_fetch store;
    ssl_session_store redis://unix:$TEST_NGINX_REDIS_SOCK;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 14: a URL with a database
--- sessions
    ssl_session_fetch off;
    ssl_session_store redis://127.0.0.1:$TEST_NGINX_REDIS_PORT/5;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
--- stored: 1 5



=== TEST 15: a unix socket with a database
--- sessions
    ssl_session_fetch off;
    ssl_session_store redis://unix:$TEST_NGINX_REDIS_SOCK:/6;
--- server
    ssl_protocols TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
--- stored: 2 6



=== TEST 16: stored but not fetched
--- sessions
    ssl_session_fetch off;
    ssl_session_store store;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 . [] []
--- stored: 2



=== TEST 17: fetched but not stored
--- sessions
    ssl_session_fetch store;
    ssl_session_store off;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 . [MISS] []
--- stored: 0



=== TEST 18: without the directives nothing is fetched, and nothing is resumed
--- sessions
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 . [] []
--- stored: 0



=== TEST 19: ssl_session_cache off stays off, TLS 1.2
--- server
    ssl_session_cache off;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 . [] []
--- stored: 0



=== TEST 20: ssl_session_cache off stays off, TLS 1.3
--- server
    ssl_session_cache off;
    ssl_protocols     TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 . [] []
--- stored: 0



=== TEST 21: ssl_session_cache none
--- server
    ssl_session_cache none;
    ssl_protocols     TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [store]
--- stored: 3



=== TEST 22: ssl_session_cache builtin
--- server
    ssl_session_cache builtin:20;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 23: ssl_session_cache shared
--- server
    ssl_session_cache shared:nginx:32k;
    ssl_protocols     TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [HIT] [store]
--- stored: 3



=== TEST 24: ssl_session_cache builtin is not used where the store misses
--- sessions
    ssl_session_fetch store;
    ssl_session_store off;
--- server
    ssl_session_cache builtin:20;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 . [MISS] []



=== TEST 25: ssl_session_cache shared goes on working where the store misses, TLS 1.2
--- sessions
    ssl_session_fetch store;
    ssl_session_store off;
--- server
    ssl_session_cache shared:nginx:32k;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [MISS] []



=== TEST 26: ssl_session_cache shared goes on working where shared memory misses, TLS 1.3
--- sessions
    ssl_session_fetch shared:tls:32k;
    ssl_session_store off;
--- server
    ssl_session_cache shared:nginx:32k;
    ssl_protocols     TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [MISS] []
TLSv1.3 r [MISS] []



=== TEST 27: stateless tickets of TLS 1.2 are not looked up, and not stored
--- server
    ssl_session_tickets on;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [] []
--- stored: 0



=== TEST 28: stateless tickets of TLS 1.3 are not looked up, and not stored
--- server
    ssl_session_tickets on;
    ssl_protocols       TLSv1.3;
--- proxy
    proxy_ssl_protocols TLSv1.3;
--- answers
TLSv1.3 . [] []
TLSv1.3 r [] []
--- stored: 0



=== TEST 29: a client of TLS 1.3 at a server of TLS 1.2, which does not look for its random session ID
--- server
    ssl_protocols TLSv1.2;
--- http_config
    # One in 256 that are random has the key id of the key.
    map $ssl_session_fetch_status $ended { default $ssl_session_fetch_status; FORGED FOREIGN; }
--- location
    return 200 "$ssl_protocol $ssl_session_reused [$ended] [$ssl_session_fetch_tier]\n";
--- proxy
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
--- answers
TLSv1.2 . [FOREIGN] []
TLSv1.2 r [HIT] [store]
--- stored: 1



=== TEST 30: the variables in a map, in "if" and in a header
--- http_config
    map $ssl_session_fetch_status $found {
        ""      none;
        HIT     "from $ssl_session_fetch_tier";
        default no;
    }
--- location
    add_header X-Status $ssl_session_fetch_status;
    if ($ssl_session_fetch_status = HIT) {
        return 200 "if: HIT, map: $found\n";
    }
    return 200 "if: no, map: $found\n";
--- answers
if: no, map: none
if: HIT, map: from store
--- response_headers eval
["!X-Status", "X-Status: HIT"]



=== TEST 31: the variables in an access log
--- http_config
    log_format sessions "$ssl_session_reused [$ssl_session_fetch_status] [$ssl_session_fetch_tier]";
--- server
    access_log $TEST_NGINX_SERVER_ROOT/logs/sessions.log sessions;
--- proxy
    proxy_ssl_protocols TLSv1.2;
--- answers
TLSv1.2 . [] []
TLSv1.2 r [HIT] [store]
--- logged
. [-] [-]
r [HIT] [store]



=== TEST 32: the time of a lookup, in seconds with microseconds
--- location
    return 200 "$ssl_session_reused [$ssl_session_fetch_time]\n";
--- request eval
["GET /t", "GET /t"]
--- response_body_like eval
['^\. \[\]$', '^r \[(?!0\.000000)\d+\.\d{6}\]$']



=== TEST 33: a connection that is kept alive keeps its status
--- http_config
    upstream kept {
        zone      kept 64k;
        server    127.0.0.1:$TEST_NGINX_TLS_PORT;
        keepalive 1;
    }
--- config
    # One after the other: made and closed, resumed, kept.
    location /t/close {
        proxy_pass https://kept;
    }
    location /t/keep {
        proxy_pass         https://kept;
        proxy_http_version 1.1;
        proxy_set_header   Connection "";
    }
--- location
    return 200 "$connection_requests $ssl_session_reused $ssl_session_fetch_status $ssl_session_fetch_tier\n";
--- request eval
["GET /t/close", "GET /t/keep", "GET /t/keep", "GET /t/keep"]
--- answers eval
"1 .  \n1 r HIT store\n2 r HIT store\n3 r HIT store\n"



=== TEST 34: the variables are empty without TLS
--- config
    location /t {
        return 200 "[$ssl_session_fetch_status] [$ssl_session_fetch_time] [$ssl_session_fetch_tier]\n";
    }
--- answers
[] [] []



=== TEST 35: HTTP/2, TLS 1.3
--- server
    ssl_protocols TLSv1.2 TLSv1.3;
--- location
    return 200 "$server_protocol $ssl_protocol $ssl_session_reused [$ssl_session_fetch_status]\n";
--- request
GET /
--- response_body_filters eval
sub { main::twice_by_h2('TLSv1.3') }
--- response_body
HTTP/2.0 TLSv1.3 . []
HTTP/2.0 TLSv1.3 r [HIT]
--- stored: 3



=== TEST 36: HTTP/2, TLS 1.2
--- location
    return 200 "$server_protocol $ssl_protocol $ssl_session_reused [$ssl_session_fetch_status]\n";
--- request
GET /
--- response_body_filters eval
sub { main::twice_by_h2('TLSv1.2') }
--- response_body
HTTP/2.0 TLSv1.2 . []
HTTP/2.0 TLSv1.2 r [HIT]
--- stored: 1
