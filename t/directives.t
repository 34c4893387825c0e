# What the directives accept, and what they say to everything else.
#
# A block with --- emerg must not start: nginx must exit with 1, and its only [emerg] must be that
# text with the place of the line that ends in "# here". A block with --- warn must start and say
# exactly that, in the same way. Every other block must start and say nothing.
#
# There is a line "ssl_session_key" before what stands in --- http_config, but with --- keyless.
#
# What OpenSSL refuses nginx tells in its words and without a place: --- before is a pattern of
# that, and --- emerg comes after it.

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
$ENV{"TEST_NGINX_\U$_"} = $certs{$_}
    for qw(ca_crt crl_pem client_crt client_key client_enc_key client_pass wrong_pass);

# Files with passwords, by what is wrong with them. No message has the password.
my $password = 's3cret';
my %file = (
    PASS       => "$password\n",
    PASS_WORLD => "$password\n",
    PASS_EMPTY => '',
    PASS_EOL   => "\r\n",
    PASS_TWO   => "$password\nsecond\n",
    PASS_NULL  => "$password\0\n",
    PASS_LONG  => $password . 'x' x (4097 - length $password),
    PASS_MAX   => $password . 'x' x (4096 - length $password) . "\r\n",
);
for my $name (keys %file) {
    chmod $name eq 'PASS_WORLD' ? 0644 : 0600, spew(tmpdir() . "/$name", $file{$name});
    $ENV{"TEST_NGINX_$name"} = tmpdir() . "/$name";
}
$ENV{TEST_NGINX_PASS_DIR} = tmpdir();

# Files of keys. A key may end as a line does.
my $key = 'k' x 31 . "\n";
my %key = (KEY_ONE => $key, KEY_TWO => 'K' x 32, KEY_SAME => $key, KEY_WORLD => 'w' x 32, KEY_SHORT => 's' x 31,
    KEY_LONG => 'l' x 33, KEY_EMPTY => '', KEY_TICKET => 't' x 80);
for my $name (keys %key) {
    chmod $name eq 'KEY_WORLD' ? 0644 : 0600, spew(tmpdir() . "/$name", $key{$name});
    $ENV{"TEST_NGINX_$name"} = tmpdir() . "/$name";
}

my @levels = qw(emerg warn);

add_block_preprocessor(sub {
    my ($block) = @_;
    $ENV{"TEST_NGINX_${_}_PORT"} = free_port() for qw(TLS TLS2 TLS3);
    $block->set_value(config  => '')      if !defined $block->config;
    $block->set_value(request => 'GET /') if !defined $block->request;
    if (!defined $block->keyless) {
        $block->set_value(http_config => '    ssl_session_key ' . session_key() . ";\n" . ($block->http_config // ''));
    }
    # What nginx says is in its log, too.
    $block->set_value(suppress_stderr => 1) if grep { defined $block->$_ } @levels;
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
    return if $ENV{TEST_NGINX_CHECK_LEAK};
    my $root = server_root();
    my $log  = slurp("$root/logs/error.log");
    unlike $log, qr/$password/, $block->name . ' - no password in the log';
    my ($level) = grep { defined $block->$_ } @levels or return;

    my @said = map { /\[$level\] \d+#\d+: (.*)/ } split /\n/, $log;
    local $ENV{TEST_NGINX_SERVER_ROOT} = $root;
    my ($before, $text) = map { s/\s+$//r =~ s/\$(TEST_NGINX_\w+)/$ENV{$1}/gr }
        $block->before // '', $block->$level;
    like shift @said, qr/^$before/, $block->name . ' - what is said before' if length $before;
    my @places = map { _marked($_) } "$root/conf/nginx.conf", glob "$root/html/*.conf";
    @places == 1 or die $block->name . ": one line is to be marked\n";
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
--- emerg: invalid target "redis://:6379" in "ssl_session_fetch": no host



=== TEST 15: a URL with a database and no host
--- http_config
    ssl_session_store redis:///1; # here
--- emerg: invalid target "redis:///1" in "ssl_session_store": no host



=== TEST 16: a unix socket without a path
--- http_config
    ssl_session_store redis://unix:; # here
--- emerg: invalid target "redis://unix:" in "ssl_session_store": no host



=== TEST 17: a database that is no number
--- http_config
    ssl_session_fetch redis://127.0.0.1/sessions; # here
--- emerg: invalid target "redis://127.0.0.1/sessions" in "ssl_session_fetch": invalid database



=== TEST 18: a negative database
--- http_config
    ssl_session_fetch redis://127.0.0.1/-1; # here
--- emerg: invalid target "redis://127.0.0.1/-1" in "ssl_session_fetch": invalid database



=== TEST 19: a database beyond 32 bits, of a unix socket
--- http_config
    ssl_session_fetch redis://unix:/run/redis.sock:/4294967296; # here
--- emerg: invalid target "redis://unix:/run/redis.sock:/4294967296" in "ssl_session_fetch": invalid database



=== TEST 20: a port beyond 65535 in a URL
--- http_config
    ssl_session_fetch redis://127.0.0.1:65536; # here
--- emerg: invalid port in "127.0.0.1:65536" of the "ssl_session_fetch" directive



=== TEST 21: a port that is no number
--- http_config
    ssl_session_store redis://127.0.0.1:redis; # here
--- emerg: invalid port in "127.0.0.1:redis" of the "ssl_session_store" directive



=== TEST 22: port 0, of a server in a block
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:0; # here
    }
--- emerg: invalid port in "127.0.0.1:0" of the "server" directive



=== TEST 23: an IPv6 address without its closing bracket
--- http_config
    ssl_session_fetch redis://[::1:6379; # here
--- emerg: invalid host in "[::1:6379" of the "ssl_session_fetch" directive



=== TEST 24: what is no IPv6 address
--- http_config
    ssl_session_backend fleet {
        server [::g]:6379; # here
    }
--- emerg: invalid IPv6 address in "[::g]:6379" of the "server" directive



=== TEST 25: a path behind a server
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:6379/1; # here
    }
--- emerg: invalid host in "127.0.0.1:6379/1" of the "server" directive



=== TEST 26: a host that nobody knows in a URL
--- http_config
    ssl_session_fetch redis://sessions.invalid; # here
--- emerg: host not found in "sessions.invalid" of the "ssl_session_fetch" directive



=== TEST 27: a host that nobody knows in a block
--- http_config
    ssl_session_backend fleet {
        server sessions.invalid:7000; # here
    }
--- emerg: host not found in "sessions.invalid:7000" of the "server" directive



=== TEST 28: a URL in the place of a server
--- http_config
    ssl_session_backend fleet {
        server redis://127.0.0.1; # here
    }
--- emerg: invalid host in "redis://127.0.0.1" of the "server" directive



=== TEST 29: a time in words
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout soon; # here
    }
--- emerg: "fetch_timeout" directive invalid value



=== TEST 30: a time in a unit that there is not
--- http_config
    ssl_session_backend fleet {
        server          127.0.0.1;
        connect_timeout 10us; # here
    }
--- emerg: "connect_timeout" directive invalid value



=== TEST 31: a negative time
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        store_timeout -1s; # here
    }
--- emerg: "store_timeout" directive invalid value



=== TEST 32: no time at all to connect
--- http_config
    ssl_session_backend fleet {
        server          127.0.0.1;
        connect_timeout 0;
    } # here
--- emerg: "connect_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 33: no time at all to fetch
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout 0ms;
    } # here
--- emerg: "fetch_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 34: no time at all to store
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        store_timeout 0s;
    } # here
--- emerg: "store_timeout" must not be 0 in ssl_session_backend "fleet"



=== TEST 35: a queue of none
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  0;
    } # here
--- emerg: "queue" must not be 0 in ssl_session_backend "fleet"



=== TEST 36: a queue that is no number
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  4k; # here
    }
--- emerg: "queue" directive invalid number



=== TEST 37: a negative queue
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        queue  -1; # here
    }
--- emerg: "queue" directive invalid number



=== TEST 38: a size that is none
--- http_config
    ssl_session_fetch shared:tls:big; # here
--- emerg: invalid size "big" of zone "tls" of the "ssl_session_fetch" directive



=== TEST 39: a negative size
--- http_config
    ssl_session_fetch shared:tls:-1m; # here
--- emerg: invalid size "-1m" of zone "tls" of the "ssl_session_fetch" directive



=== TEST 40: a zone without a size
--- http_config
    ssl_session_store shared:tls; # here
--- emerg: invalid target "shared:tls" in "ssl_session_store": invalid zone, "shared:NAME:SIZE" expected



=== TEST 41: a zone without a name
--- http_config
    ssl_session_store shared::1m; # here
--- emerg: invalid target "shared::1m" in "ssl_session_store": invalid zone, "shared:NAME:SIZE" expected



=== TEST 42: a zone of less than eight pages
--- http_config
    ssl_session_fetch shared:tls:8k; # here
--- emerg: zone "tls" of the "ssl_session_fetch" directive is too small



=== TEST 43: a zone that nginx's own cache has, which comes first
--- http_config
    ssl_session_cache shared:tls:1m;
    ssl_session_fetch shared:tls:1m; # here
--- emerg: the shared memory zone "tls" is already declared for a different use



=== TEST 44: a zone that nginx's own cache wants, which comes later
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_cache shared:tls:1m; # here
--- emerg: the shared memory zone "tls" is already declared for a different use



=== TEST 45: a zone in two sizes
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:2m; # here
--- emerg: the size 2097152 of shared memory zone "tls" conflicts with already declared size 1048576



=== TEST 46: a backend without a server
--- http_config
    ssl_session_backend fleet {
        fetch_timeout 10ms;
    } # here
--- emerg: no "server" in ssl_session_backend "fleet"



=== TEST 47: a value given twice in a backend
--- http_config
    ssl_session_backend fleet {
        server     127.0.0.1;
        key_prefix a:;
        key_prefix b:; # here
    }
--- emerg: "key_prefix" directive is duplicate



=== TEST 48: a key_prefix of more than 128 bytes
--- http_config eval
"    ssl_session_backend fleet {
        server     127.0.0.1;
        key_prefix " . 'p' x 129 . ";
    } # here
"
--- emerg: "key_prefix" is longer than 128 bytes in ssl_session_backend "fleet"



=== TEST 49: an unknown directive in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        servers 127.0.0.1; # here
    }
--- emerg: unknown directive "servers"



=== TEST 50: a directive of another place in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_tickets off; # here
    }
--- emerg: "ssl_session_tickets" directive is not allowed here



=== TEST 51: a backend in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_backend other { # here
            server 127.0.0.1;
        }
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 52: a directive of a backend outside of it
--- http_config
    fetch_timeout 10ms; # here
--- emerg: "fetch_timeout" directive is not allowed here



=== TEST 53: a directive of a backend in a server
--- config
    key_prefix tls:; # here
--- emerg: "key_prefix" directive is not allowed here



=== TEST 54: a directive of a backend in an upstream
--- http_config
    upstream app {
        server 127.0.0.1:8080;
        store_timeout 1s; # here
    }
--- emerg: "store_timeout" directive is not allowed here



=== TEST 55: ssl_session_fetch without a target
--- http_config
    ssl_session_fetch; # here
--- emerg: invalid number of arguments in "ssl_session_fetch" directive



=== TEST 56: ssl_session_store without a target
--- http_config
    ssl_session_store; # here
--- emerg: invalid number of arguments in "ssl_session_store" directive



=== TEST 57: a backend without a name
--- http_config
    ssl_session_backend { # here
        server 127.0.0.1;
    }
--- emerg: invalid number of arguments in "ssl_session_backend" directive



=== TEST 58: a backend with two names
--- http_config
    ssl_session_backend fleet other { # here
        server 127.0.0.1;
    }
--- emerg: invalid number of arguments in "ssl_session_backend" directive



=== TEST 59: a backend without its block
--- http_config
    ssl_session_backend fleet; # here
--- emerg: directive "ssl_session_backend" has no opening "{"



=== TEST 60: a block behind ssl_session_fetch
--- http_config
    ssl_session_fetch shared:tls:1m { # here
    }
--- emerg: directive "ssl_session_fetch" is not terminated by ";"



=== TEST 61: too many values in a backend
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1;
        fetch_timeout 10ms 20ms; # here
    }
--- emerg: invalid number of arguments in "fetch_timeout" directive



=== TEST 62: no value in a backend
--- http_config
    ssl_session_backend fleet {
        server; # here
    }
--- emerg: invalid number of arguments in "server" directive



=== TEST 63: ssl_session_fetch in a server
--- config
    ssl_session_fetch shared:tls:1m; # here
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 64: ssl_session_store in a server
--- config
    ssl_session_store off; # here
--- emerg: "ssl_session_store" directive is not allowed here



=== TEST 65: ssl_session_backend in a server
--- config
    ssl_session_backend fleet { # here
        server 127.0.0.1;
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 66: ssl_session_fetch in a location
--- config
    location /t {
        ssl_session_fetch off; # here
    }
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 67: ssl_session_store in a location
--- config
    location /t {
        ssl_session_store shared:tls:1m; # here
    }
--- emerg: "ssl_session_store" directive is not allowed here



=== TEST 68: ssl_session_backend in a location
--- config
    location /t {
        ssl_session_backend fleet { # here
            server 127.0.0.1;
        }
    }
--- emerg: "ssl_session_backend" directive is not allowed here



=== TEST 69: ssl_session_fetch outside of http
--- main_config
    ssl_session_fetch shared:tls:1m; # here
--- emerg: "ssl_session_fetch" directive is not allowed here



=== TEST 70: a backend named off
--- http_config
    ssl_session_backend off { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "off"



=== TEST 71: a backend with a URL for a name
--- http_config
    ssl_session_backend redis://127.0.0.1 { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "redis://127.0.0.1"



=== TEST 72: a backend named like a zone
--- http_config
    ssl_session_backend shared:tls:1m { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "shared:tls:1m"



=== TEST 73: a backend with an empty name
--- http_config
    ssl_session_backend "" { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name ""



=== TEST 74: what is wrong in an included file is found there
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



=== TEST 75: an unknown backend of an included file is found there
--- http_config
    include $TEST_NGINX_SERVER_ROOT/html/sessions.conf;
--- user_files
>>> sessions.conf
ssl_session_fetch shared:tls:1m;
ssl_session_store shared:tls:1m fleet; # here
--- emerg: unknown SSL session backend "fleet" in "ssl_session_store"



=== TEST 76: a user without a password
--- http_config
    ssl_session_fetch redis://nginx@127.0.0.1; # here
--- emerg: invalid target "redis://***@127.0.0.1" in "ssl_session_fetch": no password, "user:password@" or ":password@" expected



=== TEST 77: neither user nor password before an at sign
--- http_config
    ssl_session_fetch redis://@127.0.0.1; # here
--- emerg: invalid target "redis://***@127.0.0.1" in "ssl_session_fetch": no password, "user:password@" or ":password@" expected



=== TEST 78: a colon alone before an at sign
--- http_config
    ssl_session_store rediss://:@127.0.0.1; # here
--- emerg: invalid target "rediss://***@127.0.0.1" in "ssl_session_store": no password, "user:password@" or ":password@" expected



=== TEST 79: a percent sign that encodes nothing
--- http_config
    ssl_session_fetch redis://nginx:s3cret%zz@127.0.0.1; # here
--- emerg: invalid target "redis://***@127.0.0.1" in "ssl_session_fetch": invalid percent-encoding in user or password



=== TEST 80: a percent sign in a user
--- http_config
    ssl_session_fetch redis://50%:s3cret@127.0.0.1; # here
--- emerg: invalid target "redis://***@127.0.0.1" in "ssl_session_fetch": invalid percent-encoding in user or password



=== TEST 81: a password for memcached
--- http_config
    ssl_session_store memcached://nginx:s3cret@127.0.0.1; # here
--- emerg: invalid target "memcached://***@127.0.0.1" in "ssl_session_store": user and password are not supported for memcached, which would need SASL



=== TEST 82: a database of memcached
--- http_config
    ssl_session_fetch memcached://127.0.0.1/1; # here
--- emerg: invalid target "memcached://127.0.0.1/1" in "ssl_session_fetch": memcached has no databases



=== TEST 83: a database of memcached on a unix socket
--- http_config
    ssl_session_fetch memcached://unix:/run/m.sock:/0; # here
--- emerg: invalid target "memcached://unix:/run/m.sock:/0" in "ssl_session_fetch": memcached has no databases



=== TEST 84: memcached without a host
--- http_config
    ssl_session_fetch memcached://; # here
--- emerg: invalid target "memcached://" in "ssl_session_fetch": no host



=== TEST 85: TLS to memcached is for a backend to say
--- http_config
    ssl_session_fetch memcacheds://127.0.0.1; # here
--- emerg: invalid target "memcacheds://127.0.0.1" in "ssl_session_fetch": unsupported scheme



=== TEST 86: rediss without a host
--- http_config
    ssl_session_fetch rediss://; # here
--- emerg: invalid target "rediss://" in "ssl_session_fetch": no host



=== TEST 87: a password, and a wrong database
--- http_config
    ssl_session_fetch redis://nginx:s3cret@127.0.0.1/x; # here
--- emerg: invalid target "redis://***@127.0.0.1/x" in "ssl_session_fetch": invalid database



=== TEST 88: a password with a slash, which has to be encoded
--- http_config
    ssl_session_fetch redis://nginx:s3cret/s3cret@127.0.0.1; # here
--- emerg: invalid target "redis://***@127.0.0.1" in "ssl_session_fetch": invalid database



=== TEST 89: a password, and no host
--- http_config
    ssl_session_fetch redis://nginx:s3cret@; # here
--- emerg: invalid target "redis://***@" in "ssl_session_fetch": no host



=== TEST 90: a password, and a port without a host
--- http_config
    ssl_session_fetch redis://:s3cret@:6379; # here
--- emerg: invalid target "redis://***@:6379" in "ssl_session_fetch": no host



=== TEST 91: a password, and a scheme that is not spoken
--- http_config
    ssl_session_fetch http://nginx:s3cret@127.0.0.1; # here
--- emerg: invalid target "http://***@127.0.0.1" in "ssl_session_fetch": unsupported scheme



=== TEST 92: a password, and a wrong port
--- http_config
    ssl_session_fetch redis://nginx:s3cret@127.0.0.1:65536; # here
--- emerg: invalid port in "127.0.0.1:65536" of the "ssl_session_fetch" directive



=== TEST 93: a password, and a host that nobody knows
--- http_config
    ssl_session_store redis://nginx:s3cret@sessions.invalid; # here
--- emerg: host not found in "sessions.invalid" of the "ssl_session_store" directive



=== TEST 94: a target with a password twice
--- http_config
    ssl_session_fetch redis://nginx:s3cret@127.0.0.1 redis://nginx:s3cret@127.0.0.1; # here
--- emerg: duplicate target "redis://***@127.0.0.1" in "ssl_session_fetch"



=== TEST 95: a password in a target that is no URL
--- http_config
    ssl_session_fetch redis:/nginx:s3cret@127.0.0.1; # here
--- emerg: unknown SSL session backend "***@127.0.0.1" in "ssl_session_fetch"



=== TEST 96: a password in the name of a backend
--- http_config
    ssl_session_backend redis://nginx:s3cret@127.0.0.1 { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "redis://***@127.0.0.1"



=== TEST 97: a URL with a password in the place of a server
--- http_config
    ssl_session_backend fleet {
        server redis://nginx:s3cret@127.0.0.1; # here
    }
--- emerg: invalid host in "redis://***@127.0.0.1" of the "server" directive



=== TEST 98: a password before a server
--- http_config
    ssl_session_backend fleet {
        server nginx:s3cret@127.0.0.1:6379; # here
    }
--- emerg: invalid port in "***@127.0.0.1:6379" of the "server" directive



=== TEST 99: single_use without a target
--- http_config
    ssl_session_fetch single_use; # here
--- emerg: "single_use" is allowed at the end of "ssl_session_fetch" only



=== TEST 100: single_use before the targets
--- http_config
    ssl_session_fetch single_use redis://127.0.0.1; # here
--- emerg: "single_use" is allowed at the end of "ssl_session_fetch" only



=== TEST 101: single_use between the targets
--- http_config
    ssl_session_fetch shared:tls:1m single_use redis://127.0.0.1; # here
--- emerg: "single_use" is allowed at the end of "ssl_session_fetch" only



=== TEST 102: single_use twice
--- http_config
    ssl_session_fetch redis://127.0.0.1 single_use single_use; # here
--- emerg: "single_use" is allowed at the end of "ssl_session_fetch" only



=== TEST 103: single_use of nothing
--- http_config
    ssl_session_fetch off single_use; # here
--- emerg: "off" goes with no other parameter in "ssl_session_fetch"



=== TEST 104: single_use for a store
--- http_config
    ssl_session_store redis://127.0.0.1 single_use; # here
--- emerg: "single_use" is allowed at the end of "ssl_session_fetch" only



=== TEST 105: a backend named single_use
--- http_config
    ssl_session_backend single_use { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "single_use"



=== TEST 106: a weight of nothing
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=0; # here
    }
--- emerg: invalid parameter "weight=0"



=== TEST 107: a weight beyond 65535
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=65536; # here
    }
--- emerg: invalid parameter "weight=65536"



=== TEST 108: a weight that is no number
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=two; # here
    }
--- emerg: invalid parameter "weight=two"



=== TEST 109: a weight without a number
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight; # here
    }
--- emerg: invalid parameter "weight"



=== TEST 110: a weight with a sign
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=+2; # here
    }
--- emerg: invalid parameter "weight=+2"



=== TEST 111: a max_fails with a sign
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 max_fails=+1; # here
    }
--- emerg: invalid parameter "max_fails=+1"



=== TEST 112: an empty weight
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=; # here
    }
--- emerg: invalid parameter "weight="



=== TEST 113: a negative max_fails
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 max_fails=-1; # here
    }
--- emerg: invalid parameter "max_fails=-1"



=== TEST 114: a max_fails beyond 32 bits
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 max_fails=4294967296; # here
    }
--- emerg: invalid parameter "max_fails=4294967296"



=== TEST 115: a fail_timeout in words
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 fail_timeout=soon; # here
    }
--- emerg: invalid parameter "fail_timeout=soon"



=== TEST 116: an empty fail_timeout
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 fail_timeout=; # here
    }
--- emerg: invalid parameter "fail_timeout="



=== TEST 117: a fail_timeout of less than a second
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 fail_timeout=100ms; # here
    }
--- emerg: invalid parameter "fail_timeout=100ms"



=== TEST 118: a value of backup
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 backup=1; # here
    }
--- emerg: invalid parameter "backup=1"



=== TEST 119: a value of down
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 down=off; # here
    }
--- emerg: invalid parameter "down=off"



=== TEST 120: a parameter of an upstream's server only
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 max_conns=10; # here
    }
--- emerg: invalid parameter "max_conns=10"



=== TEST 121: a parameter in capital letters
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 Backup; # here
    }
--- emerg: invalid parameter "Backup"



=== TEST 122: the first of several wrong parameters
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=2 slow_start=1s weight=x; # here
    }
--- emerg: invalid parameter "slow_start=1s"



=== TEST 123: the only server is down
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 down;
    } # here
--- emerg: no "server" that is neither "down" nor "backup" in ssl_session_backend "fleet"



=== TEST 124: the only server is a backup
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 backup;
    } # here
--- emerg: no "server" that is neither "down" nor "backup" in ssl_session_backend "fleet"



=== TEST 125: all servers are down or a backup
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:7000 down;
        server 127.0.0.1:7001 backup;
        server 127.0.0.1:7002 down;
    } # here
--- emerg: no "server" that is neither "down" nor "backup" in ssl_session_backend "fleet"



=== TEST 126: a server twice
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.1 weight=2;
    } # here
--- emerg: duplicate "server" "127.0.0.1:6379" in ssl_session_backend "fleet"



=== TEST 127: a server twice, with its port
--- http_config
    ssl_session_backend fleet {
        server localhost:7000;
        server localhost:7001;
        server localhost:7000 backup;
    } # here
--- emerg: duplicate "server" "localhost:7000" in ssl_session_backend "fleet"



=== TEST 128: a unix socket twice
--- http_config
    ssl_session_backend fleet {
        server unix:/run/r.sock;
        server unix:/run/r.sock;
    } # here
--- emerg: duplicate "server" "unix:/run/r.sock" in ssl_session_backend "fleet"



=== TEST 129: a server twice, once with the default port
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:6379;
        server 127.0.0.1;
    } # here
--- emerg: duplicate "server" "127.0.0.1:6379" in ssl_session_backend "fleet"



=== TEST 130: a server of memcached twice, once with the default port
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.1:11211;
        protocol memcached;
    } # here
--- emerg: duplicate "server" "127.0.0.1:11211" in ssl_session_backend "fleet"



=== TEST 131: a Sentinel twice, once with the default port
--- http_config
    ssl_session_backend fleet {
        sentinel mymaster;
        server localhost;
        server localhost:6379;
        server localhost:26379 down;
    } # here
--- emerg: duplicate "server" "localhost:26379" in ssl_session_backend "fleet"



=== TEST 132: a weight in a cluster
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 weight=2;
        cluster on;
    } # here
--- emerg: "weight" and "backup" of a "server" have no meaning with "cluster" in ssl_session_backend "fleet"



=== TEST 133: a backup in a cluster
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 backup;
        cluster on;
    } # here
--- emerg: "weight" and "backup" of a "server" have no meaning with "cluster" in ssl_session_backend "fleet"



=== TEST 134: a weight of a Sentinel
--- http_config
    ssl_session_backend fleet {
        sentinel mymaster;
        server 127.0.0.1 weight=1;
    } # here
--- emerg: "weight" and "backup" of a "server" have no meaning with "sentinel" in ssl_session_backend "fleet"



=== TEST 135: a protocol that is not spoken
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol http;
    } # here
--- emerg: "protocol" is neither "redis" nor "memcached" in ssl_session_backend "fleet"



=== TEST 136: an empty protocol
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol "";
    } # here
--- emerg: "protocol" is neither "redis" nor "memcached" in ssl_session_backend "fleet"



=== TEST 137: cluster with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        cluster on;
    } # here
--- emerg: "cluster" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 138: sentinel with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        sentinel mymaster;
    } # here
--- emerg: "sentinel" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 139: username with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        username nginx;
    } # here
--- emerg: "username" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 140: password_file with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "password_file" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 141: client_name with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        client_name edge;
    } # here
--- emerg: "client_name" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 142: database with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        database 1;
    } # here
--- emerg: "database" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 143: the password of a Sentinel with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        sentinel_password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "sentinel_password_file" without "sentinel" in ssl_session_backend "fleet"



=== TEST 144: a key_prefix with a space for memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        key_prefix 'site a:';
        protocol memcached;
    } # here
--- emerg: invalid "key_prefix": memcached allows no space in a key in ssl_session_backend "fleet"



=== TEST 145: a key_prefix with a control character for memcached
--- http_config eval
qq{    ssl_session_backend fleet {
        server     127.0.0.1;
        protocol   memcached;
        key_prefix a\x7f;
    } # here
}
--- emerg: invalid "key_prefix": memcached allows no control character (0x7f) in a key in ssl_session_backend "fleet"



=== TEST 146: a cluster under Sentinel
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        cluster on;
        sentinel mymaster;
    } # here
--- emerg: "cluster" and "sentinel" exclude each other in ssl_session_backend "fleet"



=== TEST 147: a database in a cluster
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        cluster on;
        database 1;
    } # here
--- emerg: "database" must be 0 with "cluster" in ssl_session_backend "fleet"



=== TEST 148: a user without a password_file
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        username nginx;
    } # here
--- emerg: "username" without "password_file" in ssl_session_backend "fleet"



=== TEST 149: a user of a Sentinel without a password
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel mymaster;
        sentinel_username nginx;
        password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "sentinel_username" without "sentinel_password_file" in ssl_session_backend "fleet"



=== TEST 150: a password of a Sentinel without a Sentinel
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel_password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "sentinel_password_file" without "sentinel" in ssl_session_backend "fleet"



=== TEST 151: a database beyond 32 bits
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        database 4294967296;
    } # here
--- emerg: "database" is too large in ssl_session_backend "fleet"



=== TEST 152: an empty sentinel
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel "";
    } # here
--- emerg: "sentinel" is empty in ssl_session_backend "fleet"



=== TEST 153: an empty username
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        username "";
        password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "username" is empty in ssl_session_backend "fleet"



=== TEST 154: an empty sentinel_username
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel_username "";
        sentinel mymaster;
        sentinel_password_file $TEST_NGINX_PASS;
    } # here
--- emerg: "sentinel_username" is empty in ssl_session_backend "fleet"



=== TEST 155: an empty client_name
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        client_name "";
    } # here
--- emerg: "client_name" is empty in ssl_session_backend "fleet"



=== TEST 156: a client_name with a space
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        client_name "edge 1";
    } # here
--- emerg: "client_name" has characters that Redis does not take in ssl_session_backend "fleet"



=== TEST 157: a cluster that is neither on nor off
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        cluster yes; # here
    }
--- emerg: invalid value "yes" in "cluster" directive, it must be "on" or "off"



=== TEST 158: a negative database in a backend
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        database -1; # here
    }
--- emerg: "database" directive invalid number



=== TEST 159: a database in words
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        database sessions; # here
    }
--- emerg: "database" directive invalid number



=== TEST 160: cluster twice
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1; cluster off;
        cluster on; # here
    }
--- emerg: "cluster" directive is duplicate



=== TEST 161: password_file twice
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1; password_file $TEST_NGINX_PASS;
        password_file $TEST_NGINX_PASS; # here
    }
--- emerg: "password_file" directive is duplicate



=== TEST 162: a password in the place of a password_file
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password s3cret; # here
    }
--- emerg: unknown directive "password"



=== TEST 163: server's parameters on a line of their own
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        weight 2; # here
    }
--- emerg: unknown directive "weight"



=== TEST 164: a directive of a backend's TLS outside of it
--- http_config
    ssl_verify on; # here
--- emerg: "ssl_verify" directive is not allowed here



=== TEST 165: password_file that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_SERVER_ROOT/none.pass;
    } # here
--- emerg: invalid "password_file": open() "$TEST_NGINX_SERVER_ROOT/none.pass" failed (2: No such file or directory)



=== TEST 166: password_file that is empty
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_EMPTY;
    } # here
--- emerg: invalid "password_file": "$TEST_NGINX_PASS_EMPTY" is empty



=== TEST 167: password_file that everybody can read
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_WORLD;
    } # here
--- warn: "$TEST_NGINX_PASS_WORLD" can be read by everybody



=== TEST 168: sentinel_password_file that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel mymaster;
        sentinel_password_file $TEST_NGINX_SERVER_ROOT/none.pass;
    } # here
--- emerg: invalid "sentinel_password_file": open() "$TEST_NGINX_SERVER_ROOT/none.pass" failed (2: No such file or directory)



=== TEST 169: sentinel_password_file that is empty
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel mymaster;
        sentinel_password_file $TEST_NGINX_PASS_EMPTY;
    } # here
--- emerg: invalid "sentinel_password_file": "$TEST_NGINX_PASS_EMPTY" is empty



=== TEST 170: sentinel_password_file that everybody can read
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel mymaster;
        sentinel_password_file $TEST_NGINX_PASS_WORLD;
    } # here
--- warn: "$TEST_NGINX_PASS_WORLD" can be read by everybody



=== TEST 171: password_file is relative to the configuration
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file none.pass;
    } # here
--- emerg: invalid "password_file": open() "$TEST_NGINX_SERVER_ROOT/conf/none.pass" failed (2: No such file or directory)



=== TEST 172: password_file with a line end only
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_EOL;
    } # here
--- emerg: invalid "password_file": "$TEST_NGINX_PASS_EOL" is empty



=== TEST 173: password_file of more than 4096 bytes
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_LONG;
    } # here
--- emerg: invalid "password_file": "$TEST_NGINX_PASS_LONG" is longer than 4096 bytes



=== TEST 174: password_file that is a directory
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_DIR;
    } # here
--- emerg: invalid "password_file": read() "$TEST_NGINX_PASS_DIR" failed (21: Is a directory)



=== TEST 175: ssl_certificate without its key
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_certificate $TEST_NGINX_CLIENT_CRT;
    } # here
--- before: no "ssl_certificate_key" is defined for certificate "$TEST_NGINX_CLIENT_CRT" in
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 176: an empty ssl_name
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_name "";
    } # here
--- emerg: invalid "ssl_name" in ssl_session_backend "fleet"



=== TEST 177: ssl_name without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_name redis.example;
    } # here
--- emerg: "ssl_name" without "ssl on" in ssl_session_backend "fleet"



=== TEST 178: ssl_server_name without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_server_name on;
    } # here
--- emerg: "ssl_server_name" without "ssl on" in ssl_session_backend "fleet"



=== TEST 179: ssl_verify without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_verify off;
    } # here
--- emerg: "ssl_verify" without "ssl on" in ssl_session_backend "fleet"



=== TEST 180: ssl_verify_depth without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_verify_depth 2;
    } # here
--- emerg: "ssl_verify_depth" without "ssl on" in ssl_session_backend "fleet"



=== TEST 181: ssl_trusted_certificate without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_trusted_certificate $TEST_NGINX_CA_CRT;
    } # here
--- emerg: "ssl_trusted_certificate" without "ssl on" in ssl_session_backend "fleet"



=== TEST 182: ssl_crl without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_crl $TEST_NGINX_CRL_PEM;
    } # here
--- emerg: "ssl_crl" without "ssl on" in ssl_session_backend "fleet"



=== TEST 183: ssl_certificate without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_certificate $TEST_NGINX_CLIENT_CRT;
    } # here
--- emerg: "ssl_certificate" without "ssl on" in ssl_session_backend "fleet"



=== TEST 184: ssl_certificate_key without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_certificate_key $TEST_NGINX_CLIENT_KEY;
    } # here
--- emerg: "ssl_certificate_key" without "ssl on" in ssl_session_backend "fleet"



=== TEST 185: ssl_password_file without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_password_file $TEST_NGINX_CLIENT_PASS;
    } # here
--- emerg: "ssl_password_file" without "ssl on" in ssl_session_backend "fleet"



=== TEST 186: ssl_protocols without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_protocols TLSv1.3;
    } # here
--- emerg: "ssl_protocols" without "ssl on" in ssl_session_backend "fleet"



=== TEST 187: ssl_ciphers without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_ciphers HIGH;
    } # here
--- emerg: "ssl_ciphers" without "ssl on" in ssl_session_backend "fleet"



=== TEST 188: ssl_conf_command without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_conf_command Options -MiddleboxCompat;
    } # here
--- emerg: "ssl_conf_command" without "ssl on" in ssl_session_backend "fleet"



=== TEST 189: ssl_session_reuse without ssl
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_reuse off;
    } # here
--- emerg: "ssl_session_reuse" without "ssl on" in ssl_session_backend "fleet"



=== TEST 190: an ssl_name that TLS cannot carry
--- http_config eval
"    ssl_session_backend fleet {
        server   127.0.0.1;
        ssl      on;
        ssl_name " . 'n' x 256 . ";
    } # here
"
--- emerg: invalid "ssl_name" in ssl_session_backend "fleet"



=== TEST 191: a version of TLS that there is not
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_protocols TLSv1.2 TLSv1.4; # here
    }
--- emerg: invalid value "TLSv1.4"



=== TEST 192: ssl_protocols without a value
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_protocols; # here
    }
--- emerg: invalid number of arguments in "ssl_protocols" directive



=== TEST 193: a version of TLS twice
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1; ssl on;
        ssl_protocols TLSv1.2 TLSv1.2; # here
    }
--- warn: duplicate value "TLSv1.2"



=== TEST 194: ssl_conf_command without a value
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_conf_command Options; # here
    }
--- emerg: invalid number of arguments in "ssl_conf_command" directive



=== TEST 195: a flag of TLS that is neither on nor off
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_session_reuse always; # here
    }
--- emerg: invalid value "always" in "ssl_session_reuse" directive, it must be "on" or "off"



=== TEST 196: a depth in words
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_verify_depth deep; # here
    }
--- emerg: "ssl_verify_depth" directive invalid number



=== TEST 197: ssl_password_file that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl_password_file none.pass; # here
    }
--- emerg: open() "$TEST_NGINX_SERVER_ROOT/conf/none.pass" failed (2: No such file or directory)



=== TEST 198: ssl_password_file twice
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1; ssl_password_file $TEST_NGINX_CLIENT_PASS;
        ssl_password_file $TEST_NGINX_CLIENT_PASS; # here
    }
--- emerg: "ssl_password_file" directive is duplicate



=== TEST 199: a command that OpenSSL does not know
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_conf_command Nonsense on;
    } # here
--- before: SSL_CONF_cmd\("Nonsense", "on"\) failed \(SSL:
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 200: a value that OpenSSL does not know
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_conf_command MinProtocol TLSv1.4;
    } # here
--- before: SSL_CONF_cmd\("MinProtocol", "TLSv1.4"\) failed \(SSL:
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 201: ciphers that there are not
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_ciphers NONSENSE;
    } # here
--- before: SSL_CTX_set_cipher_list\("NONSENSE"\) failed \(SSL:
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 202: ssl_trusted_certificate that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_trusted_certificate none.pem;
    } # here
--- before: (?:SSL_CTX_load_verify_locations\(|cannot load certificate )"$TEST_NGINX_SERVER_ROOT/conf/none.pem".* failed \(SSL: .*No such file
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 203: ssl_trusted_certificate without a certificate
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_trusted_certificate $TEST_NGINX_CLIENT_PASS;
    } # here
--- before: (?:SSL_CTX_load_verify_locations\(|cannot load certificate )"$TEST_NGINX_CLIENT_PASS".* failed \(SSL:
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 204: ssl_crl that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_crl none.pem;
    } # here
--- before: (?:X509_LOOKUP_load_file\(|cannot load CRL )"$TEST_NGINX_SERVER_ROOT/conf/none.pem".* failed \(SSL: .*No such file
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 205: ssl_certificate that is not there
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_certificate none.crt;
        ssl_certificate_key $TEST_NGINX_CLIENT_KEY;
    } # here
--- before: cannot load certificate "$TEST_NGINX_SERVER_ROOT/conf/none.crt": .*No such file
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 206: a key of another certificate
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_certificate $TEST_NGINX_CLIENT_CRT;
        ssl_certificate_key $TEST_NGINX_KEY;
    } # here
--- before: SSL_CTX_use_PrivateKey\("$TEST_NGINX_KEY"\) failed \(SSL: .*mismatch
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 207: a password that does not open the key
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        ssl on;
        ssl_certificate $TEST_NGINX_CLIENT_CRT;
        ssl_certificate_key $TEST_NGINX_CLIENT_ENC_KEY;
        ssl_password_file $TEST_NGINX_WRONG_PASS;
    } # here
--- before: cannot load certificate key "$TEST_NGINX_CLIENT_ENC_KEY": .*failed \(SSL:
--- emerg: invalid TLS settings in ssl_session_backend "fleet"



=== TEST 208: every form of a Redis URL, as tiers
--- http_config
    ssl_session_fetch redis://127.0.0.1 redis://localhost redis://127.0.0.1:7000
                      redis://127.0.0.1:7000/3 redis://127.0.0.1/ redis://[::1] redis://[::1]:7000/15
                      redis://unix:/run/sessions.sock redis://unix:/run/sessions.sock:/2;
    ssl_session_store redis://unix:/run/other.sock:/0 redis://127.0.0.1;



=== TEST 209: zones of shared memory, one for both directions
--- http_config
    ssl_session_fetch shared:near:32k shared:far:1M;
    ssl_session_store shared:far:1M shared:other:1048576;



=== TEST 210: a backend with all of its directives, used before it is defined
--- http_config
    ssl_session_fetch shared:tls:1m fleet;
    ssl_session_store fleet shared:tls:1m redis://127.0.0.1/1;
    ssl_session_backend fleet {
        server          localhost:7000;
        key_prefix      'site a:';
        connect_timeout 1s;
        fetch_timeout   50;
        store_timeout   "1m 30s";
        keepalive       1h;
        queue           1;
    }
    ssl_session_backend unused { server unix:/run/sessions.sock; }
    ssl_session_backend "with spaces" { server [::1]; key_prefix ""; }



=== TEST 211: include within a backend, and of all directives
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



=== TEST 212: off, for both
--- http_config
    ssl_session_fetch off;
    ssl_session_store off;



=== TEST 213: a key_prefix of 128 bytes
--- http_config eval
"    ssl_session_backend fleet { server 127.0.0.1; key_prefix " . 'p' x 128 . "; }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
"



=== TEST 214: URLs of all schemes, with and without passwords
--- http_config
    ssl_session_fetch redis://nginx:s3cret@127.0.0.1 redis://:s3cret@localhost:7000/3 redis://nginx:@127.0.0.1
                      redis://ng%3Ainx:s3%40%2f%00cret@[::1]/1 redis://:s3@cret@unix:/run/a@b.sock:/2
                      rediss://127.0.0.1 rediss://nginx:s3cret@127.0.0.1:6380/4 rediss://unix:/run/tls.sock
                      memcached://127.0.0.1 memcached://localhost:7000/ memcached://[::1] memcached://unix:/run/m.sock;
    ssl_session_store redis://:s3cret@localhost:7000/3 memcached://[::1];



=== TEST 215: several servers, with all parameters
--- http_config
    ssl_session_backend fleet {
        server localhost:7000 weight=2 max_fails=3 fail_timeout=30s;
        server 127.0.0.1:7000 weight=65535 max_fails=0;
        server 127.0.0.1:7001 fail_timeout=1m;
        server 127.0.0.1:7002 down;
        server unix:/run/sessions.sock backup weight=1;
        server [::1] backup down fail_timeout=0;
    }
    ssl_session_fetch shared:tls:1m fleet single_use;
    ssl_session_store fleet;



=== TEST 216: Redis, with all of its directives
--- http_config
    ssl_session_backend fleet {
        server          unix:/run/redis.sock;
        server          127.0.0.1:7000;
        protocol        redis;
        cluster         off;
        username        nginx;
        password_file   $TEST_NGINX_PASS;
        database        15;
        client_name     edge-1/tls;
        key_prefix      'a {b} c:';
        connect_timeout 1s;
        fetch_timeout   20ms;
        store_timeout   2s;
        queue           10;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;



=== TEST 217: a Redis Cluster
--- http_config
    ssl_session_backend fleet {
        server        127.0.0.1:7001 max_fails=2 fail_timeout=5s;
        server        127.0.0.1:7002 down;
        cluster       on;
        protocol      redis;
        database      0;
        password_file $TEST_NGINX_PASS;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;



=== TEST 218: Redis under Sentinel
--- http_config
    ssl_session_backend fleet {
        server                 127.0.0.1;
        server                 localhost:7000;
        sentinel               mymaster;
        sentinel_username      watcher;
        sentinel_password_file $TEST_NGINX_PASS;
        username               nginx;
        password_file          $TEST_NGINX_PASS_MAX;
        database               1;
        client_name            edge;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;



=== TEST 219: memcached
--- http_config
    ssl_session_backend fleet {
        server     127.0.0.1 weight=2;
        server     unix:/run/m.sock;
        server     127.0.0.1:7000 backup;
        protocol   memcached;
        cluster    off;
        database   0;
        key_prefix tls:;
        ssl        off;
    }
    ssl_session_fetch fleet single_use;
    ssl_session_store fleet;



=== TEST 220: TLS, with all of its directives
--- http_config
    ssl_session_backend fleet {
        server                  127.0.0.1:6380;
        ssl                     on;
        ssl_name                redis.example;
        ssl_server_name         on;
        ssl_verify              on;
        ssl_verify_depth        3;
        ssl_trusted_certificate $TEST_NGINX_CA_CRT;
        ssl_crl                 $TEST_NGINX_CRL_PEM;
        ssl_certificate         $TEST_NGINX_CLIENT_CRT;
        ssl_certificate_key     $TEST_NGINX_CLIENT_ENC_KEY;
        ssl_password_file       $TEST_NGINX_CLIENT_PASS;
        ssl_protocols           TLSv1.2 TLSv1.3;
        ssl_ciphers             HIGH:!aNULL;
        ssl_conf_command        Options -MiddleboxCompat;
        ssl_conf_command        Ciphersuites TLS_AES_128_GCM_SHA256;
        ssl_session_reuse       off;
    }
    ssl_session_backend cluster    { server 127.0.0.1; cluster on; ssl on; ssl_verify off; }
    ssl_session_backend sentinel   { server 127.0.0.1; sentinel m; ssl on; ssl_trusted_certificate $TEST_NGINX_CA_CRT; }
    ssl_session_backend memcached  { server 127.0.0.1; protocol memcached; ssl on; }
    ssl_session_fetch fleet cluster sentinel memcached;
    ssl_session_store fleet cluster sentinel memcached;



=== TEST 221: the system's certificates, where TLS is verified against no others
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; ssl on; }
    ssl_session_fetch fleet rediss://127.0.0.1;
    ssl_session_store fleet rediss://127.0.0.1;



=== TEST 222: single_use, and a cache that OpenSSL would look into first, gets a warning
--- http_config
    ssl_session_fetch   redis://127.0.0.1 single_use;
    ssl_session_store   redis://127.0.0.1;
    ssl_session_tickets off;
    ssl_session_cache   builtin:100 shared:other:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; } # here
--- warn: "ssl_session_cache builtin" is not used, as "single_use" is set



=== TEST 223: a server with tickets on, as they are by default, gets a warning
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; } # here
--- warn: "ssl_session_tickets" is on, so that clients keep their sessions and "ssl_session_store" gets none but of clients without tickets: use "ssl_session_ticket_keys", or add "ssl_session_tickets off;" to the server



=== TEST 224: several servers with tickets on get one warning
--- http_config
    ssl_session_store   shared:tls:1m;
    ssl_session_fetch   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_session_tickets off; }
    server { # here
        listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl;
        server_name www.example.com www.example.org;
        ssl_session_tickets on;
    }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl; server_name other; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS3_PORT ssl; }
--- warn: "ssl_session_tickets" is on, so that clients keep their sessions and "ssl_session_store" gets none but of clients without tickets: use "ssl_session_ticket_keys", or add "ssl_session_tickets off;" to the server "www.example.com" and 2 other servers



=== TEST 225: no warning with tickets off
--- http_config
    ssl_session_tickets off;
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 226: no warning without the directives
--- http_config
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 227: no warning when both are off, and with a backend that nobody uses
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_fetch   off;
    ssl_session_store   off;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 228: no warning for servers that resume nothing, or speak no TLS
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_session_cache off; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT; }



=== TEST 229: a remote target to fetch from, and no key
--- keyless
--- http_config
    ssl_session_fetch redis://127.0.0.1; # here
--- emerg: no "ssl_session_key" to seal sessions with for "redis://127.0.0.1" in "ssl_session_fetch"



=== TEST 230: a remote target to store in, and no key
--- keyless
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_store
        shared:tls:1m
        memcached://127.0.0.1; # here
--- emerg: no "ssl_session_key" to seal sessions with for "memcached://127.0.0.1" in "ssl_session_store"



=== TEST 231: a backend that is used, and no key
--- keyless
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_store fleet; # here
--- emerg: no "ssl_session_key" to seal sessions with for "fleet" in "ssl_session_store"



=== TEST 232: the password of a target is not shown for want of a key
--- keyless
--- http_config
    ssl_session_fetch redis://:s3cret@127.0.0.1; # here
--- emerg: no "ssl_session_key" to seal sessions with for "redis://127.0.0.1" in "ssl_session_fetch"



=== TEST 233: zones of this machine need no key
--- keyless
--- http_config
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;



=== TEST 234: keys, of which the first seals
--- keyless
--- http_config
    ssl_session_key   $TEST_NGINX_KEY_ONE;
    ssl_session_key   $TEST_NGINX_KEY_TWO;
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store redis://127.0.0.1;



=== TEST 235: a key where nothing is fetched or stored
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_ONE;



=== TEST 236: a key behind what needs it
--- keyless
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store redis://127.0.0.1;
    ssl_session_key   $TEST_NGINX_KEY_ONE;



=== TEST 237: a key's file that is not there
--- keyless
--- http_config
    ssl_session_key none.key; # here
--- emerg: invalid "ssl_session_key": open() "$TEST_NGINX_SERVER_ROOT/conf/none.key" failed (2: No such file or directory)



=== TEST 238: a directory in the place of a key
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_PASS_DIR; # here
--- emerg: invalid "ssl_session_key": read() "$TEST_NGINX_PASS_DIR" failed (21: Is a directory)



=== TEST 239: a key that is a byte short
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_SHORT; # here
--- emerg: invalid "ssl_session_key": "$TEST_NGINX_KEY_SHORT" must be 32 bytes



=== TEST 240: a key that is a byte too long
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_LONG; # here
--- emerg: invalid "ssl_session_key": "$TEST_NGINX_KEY_LONG" must be 32 bytes



=== TEST 241: a key that is empty
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_EMPTY; # here
--- emerg: invalid "ssl_session_key": "$TEST_NGINX_KEY_EMPTY" must be 32 bytes



=== TEST 242: a key that is for tickets
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_TICKET; # here
--- emerg: invalid "ssl_session_key": "$TEST_NGINX_KEY_TICKET" must be 32 bytes



=== TEST 243: a key that everybody can read
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_WORLD; # here
--- warn: "$TEST_NGINX_KEY_WORLD" can be read by everybody



=== TEST 244: a key's file twice
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_ONE;
    ssl_session_key $TEST_NGINX_KEY_TWO;
    ssl_session_key $TEST_NGINX_KEY_ONE; # here
--- emerg: duplicate "ssl_session_key": the key in "$TEST_NGINX_KEY_ONE" is already there



=== TEST 245: one key in two files
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_ONE;
    ssl_session_key $TEST_NGINX_KEY_SAME; # here
--- emerg: duplicate "ssl_session_key": the key in "$TEST_NGINX_KEY_SAME" is already there



=== TEST 246: ssl_session_key without a file
--- keyless
--- http_config
    ssl_session_key; # here
--- emerg: invalid number of arguments in "ssl_session_key" directive



=== TEST 247: ssl_session_key with two files in one line
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_ONE $TEST_NGINX_KEY_TWO; # here
--- emerg: invalid number of arguments in "ssl_session_key" directive



=== TEST 248: ssl_session_key in server{}
--- keyless
--- http_config
    server {
        ssl_session_key $TEST_NGINX_KEY_ONE; # here
    }
--- emerg: "ssl_session_key" directive is not allowed here



=== TEST 249: off behind a key
--- keyless
--- http_config
    ssl_session_key $TEST_NGINX_KEY_ONE;
    ssl_session_key off; # here
--- emerg: "off" goes with no other "ssl_session_key"



=== TEST 250: a key behind off
--- keyless
--- http_config
    ssl_session_key off;
    ssl_session_key $TEST_NGINX_KEY_ONE; # here
--- emerg: "off" goes with no other "ssl_session_key"



=== TEST 251: off twice
--- keyless
--- http_config
    ssl_session_key off;
    ssl_session_key off; # here
--- emerg: "ssl_session_key" directive is duplicate



=== TEST 252: off, said once
--- keyless
--- http_config
    ssl_session_key   off; # here
    ssl_session_fetch shared:tls:1m redis://127.0.0.1 memcached://127.0.0.1;
    ssl_session_store redis://127.0.0.1;
--- warn: "ssl_session_key" is off: whoever can read "redis://127.0.0.1" can decrypt the connections of the sessions in it



=== TEST 253: off, where only a backend is stored in
--- keyless
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_store fleet;
    ssl_session_fetch fleet;
    ssl_session_key off; # here
--- warn: "ssl_session_key" is off: whoever can read "fleet" can decrypt the connections of the sessions in it



=== TEST 254: off, where there are only zones
--- keyless
--- http_config
    ssl_session_key   off;
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;



=== TEST 255: no_client_cert
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store shared:tls:1m redis://127.0.0.1 no_client_cert;



=== TEST 256: no_client_cert without a target
--- keyless
--- http_config
    ssl_session_store no_client_cert; # here
--- emerg: "no_client_cert" is allowed at the end of "ssl_session_store" only



=== TEST 257: no_client_cert before the targets
--- keyless
--- http_config
    ssl_session_store no_client_cert shared:tls:1m; # here
--- emerg: "no_client_cert" is allowed at the end of "ssl_session_store" only



=== TEST 258: no_client_cert of nothing
--- keyless
--- http_config
    ssl_session_store off no_client_cert; # here
--- emerg: "off" goes with no other parameter in "ssl_session_store"



=== TEST 259: no_client_cert to fetch
--- keyless
--- http_config
    ssl_session_fetch shared:tls:1m no_client_cert; # here
--- emerg: "no_client_cert" is allowed at the end of "ssl_session_store" only



=== TEST 260: a backend named no_client_cert
--- keyless
--- http_config
    ssl_session_backend no_client_cert { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "no_client_cert"



=== TEST 261: an epoch
--- http_config
    ssl_session_epoch revoked_until.2-A;
    ssl_session_fetch shared:tls:1m redis://127.0.0.1;
    ssl_session_store shared:tls:1m redis://127.0.0.1;



=== TEST 262: an epoch of 32 characters
--- http_config
    ssl_session_epoch abcdefghijklmnopqrstuvwxyz012345;
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store redis://127.0.0.1;



=== TEST 263: an epoch of 33 characters
--- http_config
    ssl_session_epoch abcdefghijklmnopqrstuvwxyz0123456; # here
--- emerg: invalid name "abcdefghijklmnopqrstuvwxyz0123456" in "ssl_session_epoch": it must be 1 to 32 letters, digits and "._-"



=== TEST 264: an epoch without a name
--- http_config
    ssl_session_epoch ""; # here
--- emerg: invalid name "" in "ssl_session_epoch": it must be 1 to 32 letters, digits and "._-"



=== TEST 265: an epoch with a space in its name
--- http_config
    ssl_session_epoch "a b"; # here
--- emerg: invalid name "a b" in "ssl_session_epoch": it must be 1 to 32 letters, digits and "._-"



=== TEST 266: an epoch twice
--- http_config
    ssl_session_epoch one;
    ssl_session_epoch two; # here
--- emerg: "ssl_session_epoch" directive is duplicate



=== TEST 267: an epoch in server{}
--- http_config
    server {
        ssl_session_epoch one; # here
    }
--- emerg: "ssl_session_epoch" directive is not allowed here



=== TEST 268: an epoch where nothing is shared with other machines
--- http_config
    ssl_session_epoch one; # here
    ssl_session_fetch shared:tls:1m;
    ssl_session_store redis://127.0.0.1;
--- emerg: "ssl_session_epoch" without a target of "ssl_session_fetch" that other machines share



=== TEST 269: an epoch without a key
--- keyless
--- http_config
    ssl_session_epoch one; # here
    ssl_session_fetch shared:tls:1m;
--- emerg: "ssl_session_epoch" without "ssl_session_key"



=== TEST 270: an epoch, and a cache that OpenSSL would look into first, get a warning
--- http_config
    ssl_session_epoch   one;
    ssl_session_fetch   redis://127.0.0.1;
    ssl_session_store   redis://127.0.0.1;
    ssl_session_tickets off;
    ssl_session_cache   builtin:100 shared:other:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; } # here
--- warn: "ssl_session_cache builtin" is not used, as "ssl_session_epoch" is set



=== TEST 271: a server where OpenSSL protects early data itself gets a warning, and none about tickets
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    ssl_early_data      on;
    server { # here
        listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl;
        ssl_conf_command Options AntiReplay;
    }
    server {
        listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl;
        ssl_conf_command    Options AntiReplay;
        ssl_session_tickets off;
    }
--- warn: "ssl_conf_command Options AntiReplay" has OpenSSL resume sessions of TLSv1.3 of its own cache only, so that none is fetched or stored: use "ssl_session_fetch ... single_use" in its place, for the server and 1 other server



=== TEST 272: no warning where there is no early data, no resumption, or no such option
--- http_config
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_session_tickets off;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_conf_command Options AntiReplay; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl; ssl_early_data on; ssl_conf_command Options AntiReplay; ssl_session_cache off; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS3_PORT ssl; ssl_early_data on; }



=== TEST 273: a cache of OpenSSL's, which nobody checks, gets a warning
--- http_config
    ssl_session_fetch   redis://127.0.0.1;
    ssl_session_store   redis://127.0.0.1;
    ssl_session_tickets off;
    ssl_session_cache   builtin;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; } # here
--- warn: "ssl_session_cache builtin" is not used: OpenSSL resumes from it without checking how the client was verified, use "shared:name:size"



=== TEST 274: the shortest lifetime
--- http_config
    ssl_session_lifetime 1s;
    ssl_session_fetch    shared:tls:1m;
    ssl_session_store    shared:tls:1m;



=== TEST 275: the longest lifetime
--- http_config
    ssl_session_lifetime 1w;
    ssl_session_fetch    shared:tls:1m;
    ssl_session_store    shared:tls:1m;



=== TEST 276: no lifetime
--- http_config
    ssl_session_lifetime 0; # here
--- emerg: invalid time "0" in "ssl_session_lifetime": it must be 1 second to 7 days



=== TEST 277: a lifetime that is too long
--- http_config
    ssl_session_lifetime 8d; # here
--- emerg: invalid time "8d" in "ssl_session_lifetime": it must be 1 second to 7 days



=== TEST 278: a lifetime in milliseconds
--- http_config
    ssl_session_lifetime 1500ms; # here
--- emerg: invalid time "1500ms" in "ssl_session_lifetime": it must be 1 second to 7 days



=== TEST 279: two lifetimes
--- http_config
    ssl_session_lifetime 1h;
    ssl_session_lifetime 2h; # here
--- emerg: "ssl_session_lifetime" directive is duplicate



=== TEST 280: a lifetime in server{}
--- http_config
    server {
        ssl_session_lifetime 1h; # here
    }
--- emerg: "ssl_session_lifetime" directive is not allowed here


=== TEST 281: sessions bound to the certificate
--- http_config
    ssl_session_bind  certificate;
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;



=== TEST 282: sessions bound to names
--- http_config
    ssl_session_bind  names;
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;



=== TEST 283: sessions bound to something else
--- http_config
    ssl_session_bind name; # here
--- emerg: invalid value "name" in "ssl_session_bind": it must be "certificate" or "names"



=== TEST 284: sessions bound to two things
--- http_config
    ssl_session_bind names certificate; # here
--- emerg: invalid number of arguments in "ssl_session_bind" directive



=== TEST 285: sessions bound twice
--- http_config
    ssl_session_bind names;
    ssl_session_bind names; # here
--- emerg: "ssl_session_bind" directive is duplicate



=== TEST 286: sessions of a server{} bound
--- http_config
    server {
        ssl_session_bind names; # here
    }
--- emerg: "ssl_session_bind" directive is not allowed here


=== TEST 287: a host that nobody knows in a URL, and a resolver
--- http_config
    ssl_session_fetch redis://sessions.invalid; # here
    ssl_session_store redis://sessions.invalid;
    resolver 127.0.0.1;
--- warn: host not found in "sessions.invalid" of the "ssl_session_fetch" directive: it is down until "resolver" finds it



=== TEST 288: a host that nobody knows in a block, and a resolver before it
--- http_config
    resolver 127.0.0.1;
    ssl_session_backend fleet {
        server sessions.invalid; # here
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
--- warn: host not found in "sessions.invalid" of the "server" directive: it is down until "resolver" finds it



=== TEST 289: a host that nobody knows, and a resolver in server{}
--- http_config
    ssl_session_fetch redis://sessions.invalid; # here
    server {
        resolver 127.0.0.1;
    }
--- emerg: host not found in "sessions.invalid" of the "ssl_session_fetch" directive



=== TEST 290: a host that nobody knows with a bad path, and a resolver
--- http_config
    resolver 127.0.0.1;
    ssl_session_backend fleet {
        server sessions.invalid/2; # here
    }
--- emerg: invalid host in "sessions.invalid/2" of the "server" directive



=== TEST 291: keepalive off
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive off;
    }



=== TEST 292: keepalive of a minute
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive 1m;
    }



=== TEST 293: keepalive of no time
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive 0s;
    } # here
--- emerg: invalid "keepalive": it must be "off" or 1 to 32767 seconds in ssl_session_backend "fleet"



=== TEST 294: keepalive of less than a second
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive 500ms;
    } # here
--- emerg: invalid "keepalive": it must be "off" or 1 to 32767 seconds in ssl_session_backend "fleet"



=== TEST 295: keepalive that is too long
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive 10h;
    } # here
--- emerg: invalid "keepalive": it must be "off" or 1 to 32767 seconds in ssl_session_backend "fleet"



=== TEST 296: keepalive that is no time
--- http_config
    ssl_session_backend fleet {
        server    127.0.0.1;
        keepalive on;
    } # here
--- emerg: invalid "keepalive": it must be "off" or 1 to 32767 seconds in ssl_session_backend "fleet"



=== TEST 297: password_file of two lines
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        password_file $TEST_NGINX_PASS_TWO;
    } # here
--- emerg: invalid "password_file": "$TEST_NGINX_PASS_TWO" has a line end or a null byte in it



=== TEST 298: sentinel_password_file with a null byte
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel mymaster;
        sentinel_password_file $TEST_NGINX_PASS_NULL;
    } # here
--- emerg: invalid "sentinel_password_file": "$TEST_NGINX_PASS_NULL" has a line end or a null byte in it



=== TEST 299: hedge that is no time
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        hedge on;
    } # here
--- emerg: invalid "hedge": it must be "off" or a time in ssl_session_backend "fleet"



=== TEST 300: hedge of no time
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        hedge 0;
    } # here
--- emerg: "hedge" must not be 0 in ssl_session_backend "fleet"



=== TEST 301: hedge as long as a lookup takes at most
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        hedge 50ms;
    } # here
--- emerg: "hedge" must be shorter than "fetch_timeout" in ssl_session_backend "fleet"



=== TEST 302: hedge without a second place
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        hedge 5ms;
    } # here
--- emerg: "hedge" needs a second place with the same entries: "cluster", "sentinel", or a "server" that is a "replica" in ssl_session_backend "fleet"



=== TEST 303: hedge with servers that share the keys
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1:7000;
        server 127.0.0.1:7001;
        server 127.0.0.1:7002 backup;
        hedge 5ms;
    } # here
--- emerg: "hedge" needs a second place with the same entries: "cluster", "sentinel", or a "server" that is a "replica" in ssl_session_backend "fleet"



=== TEST 304: hedge with a replica that is down
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica down;
        hedge 5ms;
    } # here
--- emerg: "hedge" needs a second place with the same entries: "cluster", "sentinel", or a "server" that is a "replica" in ssl_session_backend "fleet"



=== TEST 305: hedge with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        protocol memcached;
        hedge 5ms;
    } # here
--- emerg: "hedge" needs a second place with the same entries: "cluster", "sentinel", or a "server" that is a "replica" in ssl_session_backend "fleet"



=== TEST 306: replica_reads without a replica
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        replica_reads on;
    } # here
--- emerg: "replica_reads" needs a second place with the same entries: "cluster", "sentinel", or a "server" that is a "replica" in ssl_session_backend "fleet"



=== TEST 307: a replica that nobody reads
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        hedge off;
    } # here
--- emerg: a "server" that is a "replica" without "hedge" or "replica_reads" in ssl_session_backend "fleet"



=== TEST 308: a replica of two servers
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2;
        server 127.0.0.3 replica;
        hedge 5ms;
    } # here
--- emerg: a "replica" needs one other "server", and no more in ssl_session_backend "fleet"



=== TEST 309: a replica of nobody
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1 replica;
        hedge 5ms;
    } # here
--- emerg: a "replica" needs one other "server", and no more in ssl_session_backend "fleet"



=== TEST 310: a replica that is a backup
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica backup;
        hedge 5ms;
    } # here
--- emerg: "replica" and "backup" of a "server" exclude each other in ssl_session_backend "fleet"



=== TEST 311: a replica with memcached
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        protocol memcached;
        hedge 5ms;
    } # here
--- emerg: "replica" of a "server" is not supported by "protocol memcached" in ssl_session_backend "fleet"



=== TEST 312: a replica in a cluster
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        cluster on;
    } # here
--- emerg: "replica" of a "server" has no meaning with "cluster" in ssl_session_backend "fleet"



=== TEST 313: hedge and replica_reads
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        server 127.0.0.2 replica;
        server 127.0.0.3 replica weight=2;
        hedge 49ms;
        replica_reads on;
    }



=== TEST 314: hedge in a cluster
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        cluster on;
        hedge 5ms;
    }



=== TEST 315: replica_reads with Sentinels
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        sentinel fleet;
        replica_reads on;
    }



=== TEST 316: both are off
--- http_config
    ssl_session_backend fleet {
        server 127.0.0.1;
        hedge off;
        replica_reads off;
    }



=== TEST 317: keys of tickets, and nothing else
--- http_config
    ssl_session_ticket_keys shared:tickets:1m;



=== TEST 318: keys of tickets in a zone, with the shortest times
--- http_config
    ssl_session_ticket_keys shared:tickets:1m keep=1 period=1s;



=== TEST 319: keys of tickets with the longest times, beside sessions
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
    ssl_session_ticket_keys shared:tickets:1m period=7d keep=60;



=== TEST 320: tickets and a store, without a warning
--- http_config
    ssl_session_store redis://127.0.0.1;
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_ticket_keys shared:tickets:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 321: all that depends on keys of tickets
--- http_config
    ssl_session_fallback         tickets;
    ssl_session_fallback_timeout 7d;
    ssl_session_tickets_tls12    on;
    ssl_session_store            shared:tls:1m redis://127.0.0.1;
    ssl_session_fetch            shared:tls:1m redis://127.0.0.1;
    ssl_session_ticket_keys shared:tickets:1m;



=== TEST 322: what depends on keys of tickets is off, and there are none
--- http_config
    ssl_session_fallback      off;
    ssl_session_tickets_tls12 off;
    ssl_session_store         redis://127.0.0.1;
    ssl_session_fetch         redis://127.0.0.1;



=== TEST 323: keys of tickets with period=0
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=0; # here
--- emerg: invalid time "0" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days



=== TEST 324: keys of tickets with period=
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=; # here
--- emerg: invalid time "" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days



=== TEST 325: keys of tickets with period=1500ms
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=1500ms; # here
--- emerg: invalid time "1500ms" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days



=== TEST 326: keys of tickets with period=8d
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=8d; # here
--- emerg: invalid time "8d" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days



=== TEST 327: keys of tickets with period=x
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=x; # here
--- emerg: invalid time "x" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days



=== TEST 328: keys of tickets with keep=0
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 keep=0; # here
--- emerg: invalid number "0" for "keep" in "ssl_session_ticket_keys": it must be 1 to 60



=== TEST 329: keys of tickets with keep=61
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 keep=61; # here
--- emerg: invalid number "61" for "keep" in "ssl_session_ticket_keys": it must be 1 to 60



=== TEST 330: keys of tickets with keep=1.5
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 keep=1.5; # here
--- emerg: invalid number "1.5" for "keep" in "ssl_session_ticket_keys": it must be 1 to 60



=== TEST 331: keys of tickets with keep=-1
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 keep=-1; # here
--- emerg: invalid number "-1" for "keep" in "ssl_session_ticket_keys": it must be 1 to 60



=== TEST 332: keys of tickets with keep=
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 keep=; # here
--- emerg: invalid number "" for "keep" in "ssl_session_ticket_keys": it must be 1 to 60



=== TEST 333: keys of tickets with an unknown parameter
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 renew=1h; # here
--- emerg: invalid parameter "renew=1h" in "ssl_session_ticket_keys"



=== TEST 334: keys of tickets in two targets
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 shared:tickets:1m; # here
--- emerg: invalid parameter "shared:tickets:1m" in "ssl_session_ticket_keys"



=== TEST 335: keys of tickets with a parameter twice
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=1h period=1h; # here
--- emerg: duplicate parameter "period=1h" in "ssl_session_ticket_keys"



=== TEST 336: keys of tickets with too many parameters
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=1h keep=2 keep=3; # here
--- emerg: invalid number of arguments in "ssl_session_ticket_keys" directive



=== TEST 337: keys of tickets nowhere
--- http_config
    ssl_session_ticket_keys; # here
--- emerg: invalid number of arguments in "ssl_session_ticket_keys" directive



=== TEST 338: keys of tickets off
--- http_config
    ssl_session_ticket_keys off; # here
--- emerg: invalid target "off" in "ssl_session_ticket_keys": leave the directive out



=== TEST 339: keys of tickets in a parameter
--- http_config
    ssl_session_ticket_keys single_use; # here
--- emerg: invalid target "single_use" in "ssl_session_ticket_keys"



=== TEST 340: keys of tickets in a target that is none
--- http_config
    ssl_session_ticket_keys http://127.0.0.1; # here
--- emerg: invalid target "http://127.0.0.1" in "ssl_session_ticket_keys": unsupported scheme



=== TEST 341: keys of tickets in a backend that nobody knows
--- http_config
    ssl_session_ticket_keys nowhere; # here
--- emerg: unknown SSL session backend "nowhere" in "ssl_session_ticket_keys"



=== TEST 342: keys of tickets twice
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1;
    ssl_session_ticket_keys redis://127.0.0.1; # here
--- emerg: "ssl_session_ticket_keys" directive is duplicate



=== TEST 343: keys of tickets in server{}
--- http_config
    server {
        ssl_session_ticket_keys redis://127.0.0.1; # here
    }
--- emerg: "ssl_session_ticket_keys" directive is not allowed here



=== TEST 344: keys of tickets without a key
--- keyless
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1; # here
--- emerg: "ssl_session_ticket_keys" without "ssl_session_key"



=== TEST 345: keys of tickets with the key off
--- keyless
--- http_config
    ssl_session_key off;
    ssl_session_ticket_keys redis://127.0.0.1; # here
--- emerg: "ssl_session_ticket_keys" without "ssl_session_key"



=== TEST 346: keys of tickets beside those of a file
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1; # here
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    include $TEST_NGINX_SERVER_ROOT/html/site.conf;
--- user_files
>>> site.conf
server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }
server {
    listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl;
    ssl_session_ticket_key $TEST_NGINX_KEY_TICKET;
}
--- emerg: the server in $TEST_NGINX_SERVER_ROOT/html/site.conf:2 has "ssl_session_ticket_key", which is not allowed beside "ssl_session_ticket_keys"



=== TEST 347: a ssl_session_timeout of more periods than there are keys
--- http_config
    ssl_session_ticket_keys redis://127.0.0.1 period=1m; # here
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl; ssl_session_timeout 3601s; }
--- emerg: "ssl_session_timeout" of 3601 seconds is more than 60 periods of "ssl_session_ticket_keys"



=== TEST 348: a ssl_session_timeout of as many periods as there are keys
--- http_config
    ssl_session_ticket_keys shared:tickets:1m period=1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; ssl_session_timeout 1h; }



=== TEST 349: a fallback of another kind
--- http_config
    ssl_session_fallback on; # here
--- emerg: invalid value "on" in "ssl_session_fallback": it must be "tickets" or "off"



=== TEST 350: a fallback twice
--- http_config
    ssl_session_fallback off;
    ssl_session_fallback tickets; # here
--- emerg: "ssl_session_fallback" directive is duplicate



=== TEST 351: a fallback of two words
--- http_config
    ssl_session_fallback tickets off; # here
--- emerg: invalid number of arguments in "ssl_session_fallback" directive



=== TEST 352: a fallback in server{}
--- http_config
    server {
        ssl_session_fallback tickets; # here
    }
--- emerg: "ssl_session_fallback" directive is not allowed here



=== TEST 353: a fallback without keys of tickets
--- http_config
    ssl_session_store redis://127.0.0.1;
    ssl_session_fallback tickets; # here
--- emerg: "ssl_session_fallback" without "ssl_session_ticket_keys"



=== TEST 354: a fallback without a store
--- http_config
    ssl_session_fallback tickets; # here
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_ticket_keys redis://127.0.0.1;
--- emerg: "ssl_session_fallback" without a target of "ssl_session_store" that other machines share



=== TEST 355: a fallback with a store of this machine
--- http_config
    ssl_session_fallback tickets; # here
    ssl_session_store shared:tls:1m;
    ssl_session_ticket_keys redis://127.0.0.1;
--- emerg: "ssl_session_fallback" without a target of "ssl_session_store" that other machines share



=== TEST 356: a ssl_session_fallback_timeout of 0
--- http_config
    ssl_session_fallback_timeout 0; # here
--- emerg: invalid time "0" in "ssl_session_fallback_timeout": it must be 1 second to 7 days



=== TEST 357: a ssl_session_fallback_timeout of 8d
--- http_config
    ssl_session_fallback_timeout 8d; # here
--- emerg: invalid time "8d" in "ssl_session_fallback_timeout": it must be 1 second to 7 days



=== TEST 358: a ssl_session_fallback_timeout of 1500ms
--- http_config
    ssl_session_fallback_timeout 1500ms; # here
--- emerg: invalid time "1500ms" in "ssl_session_fallback_timeout": it must be 1 second to 7 days



=== TEST 359: a ssl_session_fallback_timeout of soon
--- http_config
    ssl_session_fallback_timeout soon; # here
--- emerg: invalid time "soon" in "ssl_session_fallback_timeout": it must be 1 second to 7 days



=== TEST 360: a ssl_session_fallback_timeout twice
--- http_config
    ssl_session_fallback_timeout 1h;
    ssl_session_fallback_timeout 1h; # here
--- emerg: "ssl_session_fallback_timeout" directive is duplicate



=== TEST 361: a ssl_session_fallback_timeout in server{}
--- http_config
    server {
        ssl_session_fallback_timeout 1h; # here
    }
--- emerg: "ssl_session_fallback_timeout" directive is not allowed here



=== TEST 362: a ssl_session_fallback_timeout without keys of tickets
--- http_config
    ssl_session_store redis://127.0.0.1;
    ssl_session_fallback_timeout 1h; # here
--- emerg: "ssl_session_fallback_timeout" without "ssl_session_ticket_keys"



=== TEST 363: ssl_session_tickets_tls12 of another word
--- http_config
    ssl_session_tickets_tls12 yes; # here
--- emerg: invalid value "yes" in "ssl_session_tickets_tls12": it must be "on" or "off"



=== TEST 364: ssl_session_tickets_tls12 twice
--- http_config
    ssl_session_tickets_tls12 off;
    ssl_session_tickets_tls12 on; # here
--- emerg: "ssl_session_tickets_tls12" directive is duplicate



=== TEST 365: ssl_session_tickets_tls12 in server{}
--- http_config
    server {
        ssl_session_tickets_tls12 on; # here
    }
--- emerg: "ssl_session_tickets_tls12" directive is not allowed here



=== TEST 366: ssl_session_tickets_tls12 without keys of tickets
--- http_config
    ssl_session_store redis://127.0.0.1;
    ssl_session_tickets_tls12 on; # here
--- emerg: "ssl_session_tickets_tls12" without "ssl_session_ticket_keys"



=== TEST 367: single_use of a target by its name, wherever it stands
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_backend us { server 127.0.0.1:6380; }
    ssl_session_fetch shared:tls:1m eu us redis://127.0.0.1:6381 single_use=eu;
    ssl_session_store eu us;



=== TEST 368: single_use of a target by its address
--- http_config
    ssl_session_fetch shared:tls:1m redis://:s3cret@127.0.0.1 redis://127.0.0.1:6380 single_use=redis://:s3cret@127.0.0.1;
    ssl_session_store redis://:s3cret@127.0.0.1 redis://127.0.0.1:6380;



=== TEST 369: single_use of several targets that other machines share gets a warning
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_fetch eu redis://:s3cret@127.0.0.1:6380 single_use; # here
    ssl_session_store eu redis://:s3cret@127.0.0.1:6380;
--- warn: "single_use" takes tickets out of "redis://127.0.0.1:6380", the last of several targets: name the one that all machines take them from, as in "single_use=target"



=== TEST 370: single_use of one target that other machines share, and of one that they do not
--- http_config
    ssl_session_fetch shared:tls:1m redis://127.0.0.1 single_use;
    ssl_session_store shared:tls:1m redis://127.0.0.1;



=== TEST 371: single_use of a target that is none of them
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_fetch redis://127.0.0.1 single_use=eu; # here
--- emerg: "single_use" names "eu", which is no target of "ssl_session_fetch"



=== TEST 372: single_use of an address that is none of them
--- http_config
    ssl_session_fetch redis://127.0.0.1 single_use=redis://:s3cret@127.0.0.1; # here
--- emerg: "single_use" names "redis://***@127.0.0.1", which is no target of "ssl_session_fetch"



=== TEST 373: single_use of nothing by name
--- http_config
    ssl_session_fetch redis://127.0.0.1 single_use=; # here
--- emerg: "single_use" names "", which is no target of "ssl_session_fetch"



=== TEST 374: single_use of a target, before the targets
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_fetch single_use=eu eu; # here
--- emerg: "single_use=eu" is allowed at the end of "ssl_session_fetch" only



=== TEST 375: single_use of a target, of a store
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_store eu single_use=eu; # here
--- emerg: "single_use=eu" is allowed at the end of "ssl_session_fetch" only



=== TEST 376: a backend named like the parameter
--- http_config
    ssl_session_backend single_use=eu { # here
        server 127.0.0.1;
    }
--- emerg: invalid SSL session backend name "single_use=eu"



=== TEST 377: single_use, and several targets to store in that it does not take from
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_backend us { server 127.0.0.1:6380; }
    ssl_session_fetch redis://127.0.0.1:6381 single_use;
    ssl_session_store shared:tls:1m eu us; # here
--- emerg: "ssl_session_store" has several targets that other machines share, and not "redis://127.0.0.1:6381", out of which "single_use" takes tickets



=== TEST 378: single_use, and one target to store in that other machines share
--- http_config
    ssl_session_backend writes { server 127.0.0.1; }
    ssl_session_fetch shared:tls:1m redis://127.0.0.1 single_use;
    ssl_session_store shared:tls:1m writes;



=== TEST 379: an epoch in a target that is named
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_fetch shared:tls:1m eu redis://127.0.0.1:6380;
    ssl_session_store shared:tls:1m eu redis://127.0.0.1:6380;
    ssl_session_epoch epoch eu;



=== TEST 380: an epoch in an unknown target
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_epoch epoch eu; # here
--- emerg: unknown SSL session backend "eu" in "ssl_session_epoch"



=== TEST 381: an epoch in a target that nothing is fetched from
--- http_config
    ssl_session_backend eu { server 127.0.0.1; }
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store eu;
    ssl_session_epoch epoch eu; # here
--- emerg: "ssl_session_epoch" names no target of "ssl_session_fetch" that other machines share



=== TEST 382: an epoch in a zone
--- http_config
    ssl_session_fetch shared:tls:1m redis://127.0.0.1;
    ssl_session_epoch epoch shared:tls:1m; # here
--- emerg: "ssl_session_epoch" names no target of "ssl_session_fetch" that other machines share



=== TEST 383: an epoch off
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_epoch epoch off; # here
--- emerg: invalid target "off" in "ssl_session_epoch": leave the directive out



=== TEST 384: an epoch in a target, and another word
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_epoch epoch redis://127.0.0.1 more; # here
--- emerg: invalid number of arguments in "ssl_session_epoch" directive



=== TEST 385: how many tickets a full handshake brings
--- http_config
    ssl_session_ticket_count 1;
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;



=== TEST 386: how many tickets: none
--- http_config
    ssl_session_ticket_count 0; # here
--- emerg: invalid number "0" in "ssl_session_ticket_count": it must be 1 to 16



=== TEST 387: how many tickets: too many
--- http_config
    ssl_session_ticket_count 17; # here
--- emerg: invalid number "17" in "ssl_session_ticket_count": it must be 1 to 16



=== TEST 388: how many tickets: no number
--- http_config
    ssl_session_ticket_count +2; # here
--- emerg: invalid number "+2" in "ssl_session_ticket_count": it must be 1 to 16



=== TEST 389: how many tickets, twice
--- http_config
    ssl_session_ticket_count 2;
    ssl_session_ticket_count 2; # here
--- emerg: "ssl_session_ticket_count" directive is duplicate



=== TEST 390: how many tickets of a server{}
--- http_config
    server {
        ssl_session_ticket_count 1; # here
    }
--- emerg: "ssl_session_ticket_count" directive is not allowed here



=== TEST 391: sessions that are looked up and never stored get a warning
--- http_config
    ssl_session_backend fleet { server 127.0.0.1; }
    ssl_session_fetch shared:tls:1m fleet; # here
--- warn: "ssl_session_fetch" without "ssl_session_store": no session made here is stored (hint: add "ssl_session_store", or "ssl_session_store off;" if that is meant)



=== TEST 392: sessions that are stored and never looked up get a warning
--- http_config
    ssl_session_store shared:tls:1m; # here
--- warn: "ssl_session_store" without "ssl_session_fetch": no stored session is looked up (hint: add "ssl_session_fetch", or "ssl_session_fetch off;" if that is meant)



=== TEST 393: single_use and no store get a warning
--- http_config
    ssl_session_fetch redis://127.0.0.1 single_use; # here
--- warn: "ssl_session_fetch" without "ssl_session_store": no session made here is stored (hint: add "ssl_session_store", or "ssl_session_store off;" if that is meant)



=== TEST 394: keys of tickets do not stand in for a store
--- http_config
    ssl_session_ticket_keys shared:tickets:1m;
    ssl_session_fetch redis://127.0.0.1; # here
--- warn: "ssl_session_fetch" without "ssl_session_store": no session made here is stored (hint: add "ssl_session_store", or "ssl_session_store off;" if that is meant)



=== TEST 395: keys of tickets alone, without a warning
--- http_config
    ssl_session_ticket_keys shared:tickets:1m;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; }



=== TEST 396: a store that is off is not forgotten
--- http_config
    ssl_session_fetch redis://127.0.0.1;
    ssl_session_store off;



=== TEST 397: lookups that are off are not forgotten
--- http_config
    ssl_session_fetch off;
    ssl_session_store redis://127.0.0.1;



=== TEST 398: one that is off needs no other
--- http_config
    ssl_session_fetch off;



=== TEST 399: two servers with tickets on get one warning
--- http_config
    ssl_session_fetch   redis://127.0.0.1;
    ssl_session_store   redis://127.0.0.1;
    ssl_certificate     $TEST_NGINX_CRT;
    ssl_certificate_key $TEST_NGINX_KEY;
    server { listen 127.0.0.1:$TEST_NGINX_TLS_PORT ssl; server_name one.example; } # here
    server { listen 127.0.0.1:$TEST_NGINX_TLS2_PORT ssl; }
--- warn: "ssl_session_tickets" is on, so that clients keep their sessions and "ssl_session_store" gets none but of clients without tickets: use "ssl_session_ticket_keys", or add "ssl_session_tickets off;" to the server "one.example" and 1 other server
