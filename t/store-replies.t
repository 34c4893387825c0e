# What a store may answer to one lookup, each answer given by a server that knows nothing else.
#
# The first of two requests makes a session, and asks nobody. The second offers it, the store is
# asked and answers with --- reply; the handshake must become a full one.
#
# --- status      the outcome of that lookup
# --- says        what error.log must say, without its head; nothing of level error and above else
# --- closes      the store closes the connection behind its reply
# --- timeout_ms  fetch_timeout

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

my %certs = certs();
$ENV{TEST_NGINX_CRT} = $certs{ec_crt};
$ENV{TEST_NGINX_KEY} = $certs{ec_key};

add_block_preprocessor(sub {
    my ($block) = @_;
    $ENV{"TEST_NGINX_${_}_PORT"} = free_port() for qw(TLS STORE);
    # There is no server of canned replies under load: one block shows a store that is not there.
    $block->set_value(SKIP => 1) if $ENV{TEST_NGINX_CHECK_LEAK} && $block->name !~ /: nil$/;
    my $timeout = $block->timeout_ms // 10_000;
    $block->set_value(http_config => <<"CONF");
    ssl_session_key ${\ session_key() };
    ssl_session_backend store {
        server          127.0.0.1:\$TEST_NGINX_STORE_PORT;
        connect_timeout 10s;
        fetch_timeout   ${timeout}ms;
    }
    ssl_session_fetch   store;
    ssl_session_store   off;
    ssl_session_tickets off;
    ssl_certificate     \$TEST_NGINX_CRT;
    ssl_certificate_key \$TEST_NGINX_KEY;
    # In a zone, or nginx would leak the session that it keeps as a client when it exits.
    upstream tls { zone upstream 64k; server 127.0.0.1:\$TEST_NGINX_TLS_PORT; }
    server {
        listen 127.0.0.1:\$TEST_NGINX_TLS_PORT ssl;
        location / { return 200 "\$ssl_session_reused [\$ssl_session_fetch_status] [\$ssl_session_fetch_tier]\\n"; }
    }
CONF
    $block->set_value(config => <<'CONF');
    location /t {
        proxy_pass          https://tls;
        proxy_ssl_protocols TLSv1.2;
    }
CONF
    my $tier = $block->tier // '';
    $block->set_value(request => [ 'GET /t', 'GET /t' ]);
    $block->set_value(response_body => [ ". [] []\n", '. [' . $block->status . "] [$tier]\n" ]);

    $block->set_value(tcp_listen => '$TEST_NGINX_STORE_PORT');
    $block->set_value(tcp_reply => $block->reply);
    $block->set_value(tcp_no_close => 1) if !defined $block->closes;
    # The one lookup, under the session's name.
    $block->set_value(tcp_query => qr/^\*2\r\n\$3\r\nGET\r\n\$47\r\ntls:[\w-]{43}\r\n$/);
    $block->set_value(tcp_query_len => 67);

    $block->set_value(no_error_log => "[alert]\n[crit]\n[emerg]");
    $block->set_value(no_shutdown_error_log => "[alert]\n[crit]\n[emerg]");
});

add_response_body_check(sub {
    my ($block, $body, $req_idx) = @_;
    return if $req_idx == 0 || $ENV{TEST_NGINX_CHECK_LEAK};
    my $port = $ENV{TEST_NGINX_STORE_PORT};
    my @said = map { /\[error\] \d+#\d+: (?:\*\d+ )?(.*?)(?: while \w.*|, backend: .*)?$/ }
        split /\n/, slurp(server_root() . '/logs/error.log');
    s/\b127\.0\.0\.1:$port\b/STORE/ for @said;
    # t/wire/hints.t is about these.
    s/ \(hint: [^()]*\)// for @said;
    # A hash of the session's ID, and a time.
    s/\b[0-9a-f]{8}\b/HASH/, s/\b\d+ ms$/N ms/ for @said;
    my @expected = split /\n/, $block->says // '';
    is_deeply \@said, \@expected, $block->name . ' - error log';
});

run_tests();

__DATA__

=== TEST 1: nil
--- reply eval: "\$-1\r\n"
--- status: MISS



=== TEST 2: an error, BUSY
--- reply eval: "-BUSY Redis is busy running a script.\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "BUSY Redis is busy running a script."



=== TEST 3: an error, NOAUTH
--- reply eval: "-NOAUTH Authentication required.\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "NOAUTH Authentication required."



=== TEST 4: an error, WRONGTYPE
--- reply eval: "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "WRONGTYPE Operation against a key holding the wrong kind of value"



=== TEST 5: an error, OOM
--- reply eval: "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "OOM command not allowed when used memory > 'maxmemory'."



=== TEST 6: an error without a text
--- reply eval: "-\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with ""



=== TEST 7: what is no RESP
--- reply eval: "HTTP/1.1 400 Bad Request\r\n\r\n"
--- status: ERROR
--- says
redis STORE is down: reply of unexpected type 0x48



=== TEST 8: an array, which is an answer to something else
--- reply eval: "*1\r\n\$5\r\nhello\r\n"
--- status: ERROR
--- says
redis STORE is down: reply of unexpected type 0x2a



=== TEST 9: RESP3's null, which was not agreed on but is clear
--- reply eval: "_\r\n"
--- status: MISS



=== TEST 10: RESP3's push, which answers nothing, and the answer
--- reply eval: ">2\r\n+invalidate\r\n*0\r\n\$-1\r\n"
--- status: MISS



=== TEST 11: a status, which is an answer to something else
--- reply eval: "+OK\r\n"
--- status: ERROR
--- says
redis STORE is down: reply to no request



=== TEST 12: an integer, which is an answer to something else
--- reply eval: ":1\r\n"
--- status: ERROR
--- says
redis STORE is down: reply to no request



=== TEST 13: a length that is no number
--- reply eval: "\$many\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length



=== TEST 14: a negative length that is not nil
--- reply eval: "\$-2\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length



=== TEST 15: a length beyond 64 bits
--- reply eval: "\$18446744073709551616\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length



=== TEST 16: a line that does not end
--- reply eval: "+" x 5000
--- status: ERROR
--- says
redis STORE is down: reply with an invalid line



=== TEST 17: a line without its carriage return
--- reply eval: "\$-1\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid line



=== TEST 18: a bulk that is longer than it says
--- reply eval: "\$2\r\nhello\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid line



=== TEST 19: a bulk that is no session
--- reply eval: "\$5\r\nhello\r\n"
--- status: CORRUPT
--- tier: store
--- says
corrupt SSL session HASH in "store", redis STORE, 1 times: too short for an envelope



=== TEST 20: an empty bulk
--- reply eval: "\$0\r\n\r\n"
--- status: CORRUPT
--- tier: store
--- says
corrupt SSL session HASH in "store", redis STORE, 1 times: too short for an envelope



=== TEST 21: a bulk of 16 KB and an envelope, the most that is read
--- reply eval: "\$16414\r\n" . ("\x30" x 16414) . "\r\n"
--- status: CORRUPT
--- tier: store
--- says
corrupt SSL session HASH in "store", redis STORE, 1 times: envelope of version 48



=== TEST 22: a bulk over 16 KB and an envelope
--- reply eval: "\$16415\r\n" . ("\x30" x 16415) . "\r\n"
--- status: CORRUPT
--- tier: store
--- says
corrupt SSL session HASH in "store", redis STORE, 1 times: too large



=== TEST 23: a bulk over 16 KB that is not waited for
--- reply eval: "\$65534\r\n"
--- status: CORRUPT
--- tier: store
--- says
corrupt SSL session HASH in "store", redis STORE, 1 times: too large



=== TEST 24: a bulk over 512 MB
--- reply eval: "\$536870913\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length



=== TEST 25: the connection closed without a reply
--- reply eval: ""
--- closes
--- status: ERROR
--- says
redis STORE is down: server closed connection



=== TEST 26: the connection closed in the middle of a reply
--- reply eval: "\$100\r\nhello"
--- closes
--- status: ERROR
--- says
redis STORE is down: server closed connection



=== TEST 27: the connection closed behind the reply
--- reply eval: "\$-1\r\n"
--- closes
--- status: MISS



=== TEST 28: a reply, and one never asked for
--- reply eval: "\$-1\r\n\$-1\r\n"
--- status: MISS
--- says
redis STORE is down: reply to no request



=== TEST 29: no reply at all: one lookup that is late says nothing
--- reply eval: ""
--- timeout_ms: 100
--- status: TIMEOUT



=== TEST 30: half a reply is none
--- reply eval: "\$100\r\nhello"
--- timeout_ms: 1000
--- status: TIMEOUT



=== TEST 31: an array that is null
--- reply eval: "*-1\r\n"
--- status: MISS



=== TEST 32: a push with arrays deeper than any
--- reply eval: ">1\r\n" . "*1\r\n" x 7
--- status: ERROR
--- says
redis STORE is down: reply of unexpected type 0x2a



=== TEST 33: a push of more values than any
--- reply eval: ">1000000\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length



=== TEST 34: a map, which RESP3 has
--- reply eval: "%1\r\n+key\r\n+value\r\n"
--- status: ERROR
--- says
redis STORE is down: reply of unexpected type 0x25



=== TEST 35: RESP3's null with something behind it
--- reply eval: "_x\r\n"
--- status: ERROR
--- says
redis STORE is down: reply with an invalid line



=== TEST 36: RESP3's push is no answer
--- reply eval: ">1\r\n+hello\r\n"
--- timeout_ms: 1000
--- status: TIMEOUT



=== TEST 37: a cluster's redirection, without cluster on
--- reply eval: "-MOVED 3999 127.0.0.1:6381\r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "MOVED 3999 127.0.0.1:6381"



=== TEST 38: a redirection to nowhere
--- reply eval: "-ASK 3999 \r\n"
--- status: ERROR
--- says
redis STORE refused 1 requests, the last with "ASK 3999 "



=== TEST 39: the first line of an array is enough
--- reply eval: "*1000\r\n"
--- status: ERROR
--- says
redis STORE is down: reply of unexpected type 0x2a



=== TEST 40: a push longer than any
--- reply eval: ">1\r\n\$65536\r\n" . "x" x 65536
--- status: ERROR
--- says
redis STORE is down: reply with an invalid length
