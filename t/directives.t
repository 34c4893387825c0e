# What the directives accept, and what they say to everything else.
#
# A block with --- emerg must not start: nginx must exit with 1, and its only [emerg] must be that
# text with the place of the line that ends in "# here". A block with --- warn must start and say
# exactly that, in the same way. Every other block must start and say nothing.

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

# Names that cannot be resolved are none of this test's time.
$ENV{RES_OPTIONS} = 'timeout:1 attempts:1';

my %certs = certs();
$ENV{TEST_NGINX_CRT} = $certs{ec_crt};
$ENV{TEST_NGINX_KEY} = $certs{ec_key};

add_block_preprocessor(sub {
    my ($block) = @_;
    $ENV{"TEST_NGINX_${_}_PORT"} = free_port() for qw(TLS TLS2 TLS3);
    $block->set_value(config  => '')      if !defined $block->config;
    $block->set_value(request => 'GET /') if !defined $block->request;
    # What nginx says is in its log, too.
    $block->set_value(suppress_stderr => 1) if defined $block->emerg || defined $block->warn;
    if (defined $block->emerg) {
        # These modes watch an nginx that runs.
        $block->set_value(SKIP => 1) if $ENV{TEST_NGINX_CHECK_LEAK} || $ENV{TEST_NGINX_USE_VALGRIND};
        $block->set_value(must_die => 1);
        $block->set_value(error_log => '[emerg]');
        return;
    }
    my @none = qw([error] [crit] [alert] [emerg]);
    push @none, '[warn]' if !defined $block->warn;
    $block->set_value(no_error_log => join "\n", @none);
    $block->set_value(no_shutdown_error_log => "[alert]\n[emerg]");
});

add_test_cleanup_handler(sub {
    my ($block) = @_;
    return if defined $block->SKIP;
    my ($level) = grep { defined $block->$_ } qw(emerg warn) or return;
    return if $ENV{TEST_NGINX_CHECK_LEAK};

    my $root = server_root();
    my @places = map { _marked($_) } "$root/conf/nginx.conf", glob "$root/html/*.conf";
    is scalar @places, 1, $block->name . ' - one line is marked';
    chomp(my $text = $block->$level);
    my @said = map { /\[$level\] \d+#\d+: (.*)/ } split /\n/, slurp("$root/logs/error.log");
    is_deeply \@said, ["$text in $places[0]"], $block->name . " - what is said, and its place";
});

sub _marked {
    my ($file) = @_;
    my $number = 0;
    return map { $number++; /# here$/ ? "$file:$number" : () } split /\n/, slurp($file);
}

run_tests();

__DATA__

=== TEST 1: an unknown backend to fetch from
--- http_config
    ssl_session_fetch nowhere; # here
--- emerg: unknown SSL session backend "nowhere" in "ssl_session_fetch"



=== TEST 2: an unknown backend to store in, after one that is known
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_fetch fleet;
    ssl_session_store
        fleet
        fleets; # here
--- emerg: unknown SSL session backend "fleets" in "ssl_session_store"



=== TEST 3: ssl_session_fetch twice
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_fetch shared:tls:1m; # here
--- emerg: "ssl_session_fetch" directive is duplicate



=== TEST 4: ssl_session_store twice, the first time off
--- http_config
    ssl_session_store off;
    ssl_session_store shared:tls:1m; # here
--- emerg: "ssl_session_store" directive is duplicate



=== TEST 5: two backends of one name
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_backend fleet { # here
        server 127.0.0.1;
    }
--- emerg: duplicate SSL session backend "fleet"



=== TEST 6: a target to fetch from twice
--- http_config
    ssl_session_fetch redis://127.0.0.1 shared:tls:1m redis://127.0.0.1; # here
--- emerg: duplicate target "redis://127.0.0.1" in "ssl_session_fetch"



=== TEST 7: a target to store in twice
--- http_config
    ssl_session_store fleet fleet; # here
--- emerg: duplicate target "fleet" in "ssl_session_store"



=== TEST 8: off before another target
--- http_config
    ssl_session_fetch off shared:tls:1m; # here
--- emerg: "off" goes with no other target in "ssl_session_fetch"



=== TEST 9: off behind another target
--- http_config
    ssl_session_store shared:tls:1m off; # here
--- emerg: "off" goes with no other target in "ssl_session_store"



=== TEST 10: a scheme that is not spoken
--- http_config
    ssl_session_fetch http://127.0.0.1; # here
--- emerg: invalid target "http://127.0.0.1" in "ssl_session_fetch": unsupported scheme



=== TEST 11: schemes are in lower case
--- http_config
    ssl_session_store Redis://127.0.0.1; # here
--- emerg: invalid target "Redis://127.0.0.1" in "ssl_session_store": unsupported scheme



=== TEST 12: an empty target
--- http_config
    ssl_session_fetch ""; # here
--- emerg: invalid target "" in "ssl_session_fetch": empty target



=== TEST 13: a URL without a host
--- http_config
    ssl_session_fetch redis://; # here
--- emerg: invalid target "redis://" in "ssl_session_fetch": no host



=== TEST 14: a URL with a port and no host
--- http_config
    ssl_session_fetch redis://:6379; # here
--- emerg: no host in ":6379" of the "ssl_session_fetch" directive



=== TEST 15: a URL with a database and no host
--- http_config
    ssl_session_store redis:///1; # here
--- emerg: invalid target "redis:///1" in "ssl_session_store": no host



=== TEST 16: a unix socket without a path
--- http_config
    ssl_session_store redis://unix:; # here
--- emerg: invalid target "redis://unix:" in "ssl_session_store": no host



=== TEST 17: a password in a URL
--- http_config
    ssl_session_fetch redis://:secret@127.0.0.1; # here
--- emerg: invalid target "redis://:secret@127.0.0.1" in "ssl_session_fetch": user and password are not supported



=== TEST 18: a database that is no number
--- http_config
    ssl_session_fetch redis://127.0.0.1/sessions; # here
--- emerg: invalid target "redis://127.0.0.1/sessions" in "ssl_session_fetch": invalid database



=== TEST 19: a negative database
--- http_config
    ssl_session_fetch redis://127.0.0.1/-1; # here
--- emerg: invalid target "redis://127.0.0.1/-1" in "ssl_session_fetch": invalid database



=== TEST 20: a database beyond 32 bits, of a unix socket
--- http_config
    ssl_session_fetch redis://unix:/run/redis.sock:/4294967296; # here
--- emerg: invalid target "redis://unix:/run/redis.sock:/4294967296" in "ssl_session_fetch": invalid database



=== TEST 21: a port beyond 65535 in a URL
--- http_config
    ssl_session_fetch redis://127.0.0.1:65536; # here
--- emerg: invalid port in "127.0.0.1:65536" of the "ssl_session_fetch" directive



=== TEST 22: a port that is no number
--- http_config
    ssl_session_store redis://127.0.0.1:redis; # here
--- emerg: invalid port in "127.0.0.1:redis" of the "ssl_session_store" directive



=== TEST 23: port 0, of a server in a block
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:0; # here
    }
--- emerg: invalid port in "127.0.0.1:0" of the "server" directive



=== TEST 24: an IPv6 address without its closing bracket
--- http_config
    ssl_session_fetch redis://[::1:6379; # here
--- emerg: invalid host in "[::1:6379" of the "ssl_session_fetch" directive



=== TEST 25: what is no IPv6 address
--- http_config
    ssl_session_backend fleet {
        server [::g]:6379; # here
    }
--- emerg: invalid IPv6 address in "[::g]:6379" of the "server" directive



=== TEST 26: a path behind a server
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:6379/1; # here
    }
--- emerg: invalid host in "127.0.0.1:6379/1" of the "server" directive



=== TEST 27: a host that nobody knows in a URL
--- http_config
    ssl_session_fetch redis://sessions.invalid; # here
--- emerg: host not found in "sessions.invalid" of the "ssl_session_fetch" directive



=== TEST 28: a host that nobody knows in a block
--- http_config
    ssl_session_backend fleet {
        server sessions.invalid:7000; # here
    }
--- emerg: host not found in "sessions.invalid:7000" of the "server" directive



=== TEST 29: a URL in the place of a server
--- http_config
    ssl_session_backend fleet {
        server redis://127.0.0.1; # here
    }
--- emerg: invalid host in "redis://127.0.0.1" of the "server" directive



=== TEST 30: a time in words
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout soon; # here
    }
--- emerg: "fetch_timeout" directive invalid value



=== TEST 31: a time in a unit that there is not
--- http_config
    ssl_session_backend fleet {
        server          127.0.0.1;
        connect_timeout 10us; # here
    }
--- emerg: "connect_timeout" directive invalid value



=== TEST 32: a negative time
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        store_timeout -1s; # here
    }
--- emerg: "store_timeout" directive invalid value



=== TEST 33: no time at all to connect
--- http_config
    ssl_session_backend fleet {
        server          127.0.0.1;
        connect_timeout 0;
    } # here
--- emerg: "connect_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 34: no time at all to fetch
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout 0ms;
    } # here
--- emerg: "fetch_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 35: no time at all to store
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        store_timeout 0s;
    } # here
--- emerg: "store_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 36: a queue of none
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  0;
    } # here
--- emerg: "queue" must not be 0 in ssl_session_backend "fleet"



=== TEST 37: a queue that is no number
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  4k; # here
    }
--- emerg: "queue" directive invalid number



=== TEST 38: a negative queue
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  -1; # here
    }
--- emerg: "queue" directive invalid number



=== TEST 39: a size that is none
--- http_config
    ssl_session_fetch shared:tls:big; # here
--- emerg: invalid size "big" of zone "tls" of the "ssl_session_fetch" directive



=== TEST 40: a negative size
--- http_config
    ssl_session_fetch shared:tls:-1m; # here
--- emerg: invalid size "-1m" of zone "tls" of the "ssl_session_fetch" directive



=== TEST 41: a zone without a size
--- http_config
    ssl_session_store shared:tls; # here
--- emerg: invalid target "shared:tls" in "ssl_session_store": invalid zone, "shared:NAME:SIZE" expected



=== TEST 42: a zone without a name
--- http_config
    ssl_session_store shared::1m; # here
--- emerg: invalid target "shared::1m" in "ssl_session_store": invalid zone, "shared:NAME:SIZE" expected



=== TEST 43: a zone of less than eight pages
--- http_config
    ssl_session_fetch shared:tls:8k; # here
--- emerg: zone "tls" of the "ssl_session_fetch" directive is too small



=== TEST 44: a zone that nginx's own cache has, which comes first
--- http_config
    ssl_session_cache shared:tls:1m;
    ssl_session_fetch shared:tls:1m; # here
--- emerg: the shared memory zone "tls" is already declared for a different use



=== TEST 45: a zone that nginx's own cache wants, which comes later
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_cache shared:tls:1m; # here
--- emerg: the shared memory zone "tls" is already declared for a different use



=== TEST 46: a zone in two sizes
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:2m; # here
--- emerg: the size 2097152 of shared memory zone "tls" conflicts with already declared size 1048576



=== TEST 47: a backend without a server
--- http_config
    ssl_session_backend fleet {
        fetch_timeout 10ms;
    } # here
--- emerg: no "server" in ssl_session_backend "fleet"



=== TEST 48: a backend with two servers
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:7000;
        server 127.0.0.1:7001; # here
    }
--- emerg: "server" directive is duplicate



=== TEST 49: a value given twice in a backend
--- http_config
    ssl_session_backend fleet {
        server     127.0.0.1;
        key_prefix a:;
        key_prefix b:; # here
    }
--- emerg: "key_prefix" directive is duplicate



=== TEST 50: a key_prefix of more than 128 bytes
--- http_config eval
"    ssl_session_backend fleet {
        server     127.0.0.1;
        key_prefix " . 'p' x 129 . ";
    } # here
"
--- emerg: "key_prefix" is longer than 128 bytes in ssl_session_backend "fleet"



=== TEST 51: an unknown directive in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        servers 127.0.0.1; # here
    }
--- emerg: unknown directive "servers"



=== TEST 52: a directive of another place in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_tickets off; # here
    }
--- emerg: "ssl_session_tickets" directive is not allowed here



=== TEST 53: a backend in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_backend other { # here
            server 127.0.0.1;
        }
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 54: a directive of a backend outside of it
--- http_config
    fetch_timeout 10ms; # here
--- emerg: "fetch_timeout" directive is not allowed here



=== TEST 55: a directive of a backend in a server
--- config
    key_prefix tls:; # here
--- emerg: "key_prefix" directive is not allowed here



=== TEST 56: a directive of a backend in an upstream
--- http_config
    upstream app {
        server 127.0.0.1:8080;
        store_timeout 1s; # here
    }
--- emerg: "store_timeout" directive is not allowed here



=== TEST 57: a parameter of an upstream's server in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=2; # here
    }
--- emerg: invalid number of arguments in "server" directive



=== TEST 58: ssl_session_fetch without a target
--- http_config
    ssl_session_fetch; # here
--- emerg: invalid number of arguments in "ssl_session_fetch" directive



=== TEST 59: ssl_session_store without a target
--- http_config
    ssl_session_store; # here
--- emerg: invalid number of arguments in "ssl_session_store" directive



=== TEST 60: a backend without a name
--- http_config
    ssl_session_backend { # here
        server 127.0.0.1;
    }
--- emerg: invalid number of arguments in "ssl_session_backend" directive



=== TEST 61: a backend with two names
--- http_config
    ssl_session_backend fleet other { # here
        server 127.0.0.1;
    }
--- emerg: invalid number of arguments in "ssl_session_backend" directive



=== TEST 62: a backend without its block
--- http_config
    ssl_session_backend fleet; # here
--- emerg: directive "ssl_session_backend" has no opening "{"



=== TEST 63: a block behind ssl_session_fetch
--- http_config
    ssl_session_fetch shared:tls:1m { # here
    }
--- emerg: directive "ssl_session_fetch" is not terminated by ";"



=== TEST 64: too many values in a backend
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout 10ms 20ms; # here
    }
--- emerg: invalid number of arguments in "fetch_timeout" directive



=== TEST 65: no value in a backend
--- http_config
    ssl_session_backend fleet {
        server; # here
    }
--- emerg: invalid number of arguments in "server" directive



=== TEST 66: ssl_session_fetch in a server
--- config
    ssl_session_fetch shared:tls:1m; # here
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 67: ssl_session_store in a server
--- config
    ssl_session_store off; # here
--- emerg: "ssl_session_store" directive is not allowed here



=== TEST 68: ssl_session_backend in a server
--- config
    ssl_session_backend fleet { # here
        server 127.0.0.1;
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 69: ssl_session_fetch in a location
--- config
    location /t {
        ssl_session_fetch off; # here
    }
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 70: ssl_session_store in a location
--- config
    location /t {
        ssl_session_store shared:tls:1m; # here
    }
--- emerg: "ssl_session_store" directive is not allowed here



=== TEST 71: ssl_session_backend in a location
--- config
    location /t {
        ssl_session_backend fleet { # here
            server 127.0.0.1;
        }
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 72: ssl_session_fetch outside of http
--- main_config
    ssl_session_fetch shared:tls:1m; # here
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 73: a backend named off
--- http_config
    ssl_session_backend off { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "off"



=== TEST 74: a backend with a URL for a name
--- http_config
    ssl_session_backend redis://127.0.0.1 { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "redis://127.0.0.1"



=== TEST 75: a backend named like a zone
--- http_config
    ssl_session_backend shared:tls:1m { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "shared:tls:1m"



=== TEST 76: a backend with an empty name
--- http_config
    ssl_session_backend "" { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name ""



=== TEST 77: what is wrong in an included file is found there
--- http_config
    ssl_session_backend fleet {
        server  127.0.0.1;
        include $TEST_NGINX_SERVER_ROOT/html/fleet.conf;
    }
--- user_files
>>> fleet.conf
fetch_timeout 20ms;
queue many; # here
--- emerg: "queue" directive invalid number



=== TEST 78: an unknown backend of an included file is found there
--- http_config
    include $TEST_NGINX_SERVER_ROOT/html/sessions.conf;
--- user_files
>>> sessions.conf
ssl_session_fetch shared:tls:1m;
ssl_session_store shared:tls:1m fleet; # here
--- emerg: unknown SSL session backend "fleet" in "ssl_session_store"



=== TEST 79: every form of a Redis URL, as tiers
--- http_config
    ssl_session_fetch redis://127.0.0.1 redis://localhost redis://127.0.0.1:7000
                      redis://127.0.0.1:7000/3 redis://127.0.0.1/ redis://[::1] redis://[::1]:7000/15
                      redis://unix:/run/sessions.sock redis://unix:/run/sessions.sock:/2;
    ssl_session_store redis://unix:/run/other.sock:/0 redis://127.0.0.1;



=== TEST 80: zones of shared memory, one for both directions
--- http_config
    ssl_session_fetch shared:near:32k shared:far:1M;
    ssl_session_store shared:far:1M shared:other:1048576;



=== TEST 81: a backend with all of its directives, used before it is defined
--- http_config
    ssl_session_fetch shared:tls:1m fleet;
    ssl_session_store fleet shared:tls:1m redis://127.0.0.1/1;
    ssl_session_backend fleet {
        server          localhost:7000;
        key_prefix      'site a:';
        connect_timeout 1s;
        fetch_timeout   50;
        store_timeout   "1m 30s";
        queue           1;
    }
    ssl_session_backend unused { server unix:/run/sessions.sock; }
    ssl_session_backend "with spaces" { server [::1]; key_prefix ""; }



=== TEST 82: include within a backend, and of all directives
--- http_config
    include $TEST_NGINX_SERVER_ROOT/html/sessions.conf;
--- user_files
>>> sessions.conf
ssl_session_fetch fleet;
ssl_session_store fleet;
ssl_session_backend fleet { include $TEST_NGINX_SERVER_ROOT/html/fleet.inc; }
>>> fleet.inc
server 127.0.0.1:7000;
fetch_timeout 10ms;



=== TEST 83: off, for both
--- http_config
    ssl_session_fetch off;
    ssl_session_store off;



=== TEST 84: a key_prefix of 128 bytes
--- http_config eval
"    ssl_session_backend fleet { server 127.0.0.1; key_prefix " . 'p' x 128 . "; }
    ssl_session_fetch fleet;
"



=== TEST 85: a server with tickets on, as they are by default, gets a warning
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; } # here
--- warn: "ssl_session_tickets" is on, so that clients keep their sessions and "ssl_session_store" gets none of TLSv1.3, for the server



=== TEST 86: several servers with tickets on get one warning
--- http_config
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_session_tickets off; }
    server { # here
        listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl;
        ssl_session_tickets on;
    }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl; server_name other; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS3_PORT ssl; }
--- warn: "ssl_session_tickets" is on, so that clients keep their sessions and "ssl_session_store" gets none of TLSv1.3, for the server and 2 other servers



=== TEST 87: no warning with tickets off
--- http_config
    ssl_session_tickets off;
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 88: no warning without the directives
--- http_config
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 89: no warning when both are off, and with a backend that nobody uses
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_fetch   off;
    ssl_session_store   off;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 90: no warning for servers that resume nothing, or speak no TLS
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_session_cache off; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT; }
