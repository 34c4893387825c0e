# stream{}: the same directives, the same lookups, the same handshakes.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use Test::More;

plan skip_all => 'this nginx has no stream{}' unless has_stream();

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $ms    = 4000 * patience();

my $tls = <<"CONF";
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_session_tickets off;
CONF

my $backend = <<"CONF";
    ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; fetch_timeout ${ms}ms; connect_timeout ${ms}ms; store_timeout ${ms}ms; }
CONF

my $answer = 'return "$ssl_session_reused $ssl_session_fetch_status $ssl_session_fetch_tier $ssl_session_store_status";';

sub block {
    my ($port, $fetch, %arg) = @_;
    my $store = $arg{store} // $fetch =~ s/ single_use//r;
    return <<"CONF";
$backend$tls
    ssl_session_fetch $fetch;
    ssl_session_store $store;
    ${\ ($arg{more} // '')}
    server { listen 127.0.0.1:$port ssl ${\ ($arg{listen} // '')}; $answer }
CONF
}

# An nginx that has stream{} only: http{} is empty.
sub start {
    my ($fetch, %arg) = @_;
    my $port = free_port();
    return ($port, nginx(log => 'notice', conf => $arg{http} // '', stream => block($port, $fetch, %arg)));
}

# What a handshake came to, and the client.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, %arg);
    $client->handshake or return ('', $client);
    return (rest($client), $client);
}

sub rest {
    my ($client) = @_;
    my $text = '';
    while (length(my $more = $client->read // '')) { $text .= $more }
    return $text;
}

sub stored {
    my ($port, %arg) = @_;
    my $keys = $redis->keys;
    my ($text, $client) = visit($port, %arg);
    is $text, '.   STORED', 'a full handshake';
    wait_until { $redis->keys > $keys } 5, 'its session in the store';
    return $arg{protocol} eq 'TLSv1.2' ? $client->session : ($client->sessions)[-1];
}

for my $protocol ('TLSv1.2', 'TLSv1.3') {
    subtest "$protocol: a session of another server" => sub {
        my ($first)  = start('store');
        my ($second, $nginx) = start('store');
        my $session = stored($first, protocol => $protocol);
        my $gets    = $relay->requests('GET');
        my ($text, $client) = visit($second, protocol => $protocol, session => $session);
        like $text, qr/^r HIT stream:store (?:STORED)?$/, 'resumed';
        ok $client->reused, 'the client says so, too';
        is $relay->requests('GET'), $gets + 1, 'one lookup';
        my ($again) = visit($second, protocol => $protocol, session => with_session_id($session, issue_id($protocol)));
        like $again, qr/^\. MISS  STORED$/, 'what is not there is a full handshake';
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };
}

subtest 'others are served while it waits, and before it comes to them' => sub {
    my ($port, $nginx) = start('store', listen => 'proxy_protocol');
    my %prefix  = (prefix => "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n");
    my $session = stored($port, protocol => 'TLSv1.3', %prefix);
    my $gets    = $relay->requests('GET');
    $relay->hold;
    my $waits = tls_client(port => $port, protocol => 'TLSv1.3', session => $session, %prefix);
    $waits->start;
    wait_until { $relay->requests('GET') > $gets } 10, 'a lookup';
    my ($text) = visit($port, protocol => 'TLSv1.3', %prefix);
    is $text, '.   STORED', 'another one is served meanwhile';
    $relay->release;
    ok $waits->handshake, 'and the handshake goes on';
    is rest($waits), 'r HIT stream:store STORED', 'resumed';
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

subtest 'a client that leaves, and a store that does not answer' => sub {
    my ($port, $nginx) = start('store');
    my @sessions = map { stored($port, protocol => 'TLSv1.2') } 1 .. 5;
    my $session  = $sessions[0];
    # With the link for lookups.
    visit($port, protocol => 'TLSv1.2', session => $session);
    my $fds      = $nginx->fds;
    $relay->hold;
    for (@sessions) {
        my $gets = $relay->requests('GET');
        my $gone = tls_client(port => $port, protocol => 'TLSv1.2', session => $_);
        $gone->start;
        wait_until { $relay->requests('GET') > $gets } 10, 'a lookup';
        $gone->reset;
    }
    wait_until { $nginx->fds == $fds } 10, 'the connections to be closed';
    $relay->release;
    my ($text) = visit($port, protocol => 'TLSv1.2', session => $session);
    is $text, 'r HIT stream:store ', 'the next one is resumed';
    is_deeply [ $nginx->errors ], [], 'no error in the log';

    my $soon = 300 * patience();
    $backend =~ s/fetch_timeout \K\d+/$soon/;
    my ($late, $waiting) = start('store');
    $session = stored($late, protocol => 'TLSv1.2');
    $relay->drop;
    ($text) = visit($late, protocol => 'TLSv1.2', session => $session);
    like $text, qr/^\. TIMEOUT  (?:STORED|DROPPED)$/, 'a full handshake';
    like $waiting->log_like(qr/is down: no answer/), qr/backend: "stream:store"$/, 'the log tells whose store it is';
    $relay->drop(0);
};

# OpenSSL removes a session whose connection ended without a close_notify of its own, and forgets that it
# has sent one when the client only closes its socket.
subtest 'a client that closes without a word keeps its session' => sub {
    my $long = join '', map { '$a' } 1 .. 1000;
    my ($port, $nginx) = (free_port());
    $nginx = nginx(log => 'notice', conf => '', stream => block($port, 'store', more => 'map $remote_addr $a { default ' . 'x' x 3000 . '; }')
        =~ s/\Q$answer\E/return "$long";/r);
    for my $protocol ('TLSv1.2', 'TLSv1.3') {
        my $keys   = $redis->keys;
        my $client = tls_client(port => $port, protocol => $protocol);
        ok $client->handshake, "$protocol: a handshake";
        $client->half_close;
        is length rest($client), 3_000_000, 'what the server has sent after the client had closed its side';
        my $session = $protocol eq 'TLSv1.2' ? $client->session : ($client->sessions)[-1];
        undef $client;
        my $again = tls_client(port => $port, protocol => $protocol, session => $session);
        ok $again->handshake && $again->reused, 'it is resumed';
        ok $redis->keys > $keys, 'from the store';
    }
    is $relay->requests('DEL'), 0, 'nothing is removed from there';
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

subtest 'single_use: a ticket is good for one handshake' => sub {
    my ($port) = start('store single_use');
    my $session = stored($port, protocol => 'TLSv1.3');
    my @seen = map { (visit($port, protocol => 'TLSv1.3', session => $session))[0] } 1 .. 3;
    is_deeply \@seen, [ 'r HIT stream:store STORED', ('. MISS  STORED') x 2 ], 'taken once';
};

subtest 'beside http{}: one zone, sessions of their own, counted' => sub {
    my ($http, $status) = (free_port(), free_port());
    my $location = $answer =~ s/return/return 200/r;
    my ($stream, $nginx) = start('shared:near:1m store', http => <<"CONF");
$backend$tls
    ssl_session_fetch shared:near:1m store;
    ssl_session_store shared:near:1m store;
    server { listen 127.0.0.1:$http ssl; location / { $location } }
    server { listen 127.0.0.1:$status; location / { ssl_session_status; } }
CONF
    my $session = stored($stream, protocol => 'TLSv1.2');
    is((visit($stream, protocol => 'TLSv1.2', session => $session))[0], 'r HIT stream:shared:near ', 'resumed in stream{}');
    # OpenSSL keeps them apart by the context of sessions that nginx sets (SSL_CTX_set_session_id_context(3)).
    my $client = tls_client(port => $http, protocol => 'TLSv1.2', session => $session);
    is $client->request, '. HIT shared:near STORED', 'in http{} it is found, and not resumed';
    is tls_client(port => $http, protocol => 'TLSv1.2', session => $client->session)->request, 'r HIT shared:near ', 'its own is';

    my $json = decode_json(`curl -fsS --noproxy '*' 'http://127.0.0.1:$status/?format=json'`);
    my ($listen) = grep { $_->{listen} eq "127.0.0.1:$stream" && $_->{protocol} eq 'TLSv1.2' } @{ $json->{listens} };
    is_deeply $listen->{handshakes}, { full => 1, resumed => 1 }, 'handshakes of stream{}' or diag explain $listen;
    my %tier = map { $_->{tier} => $_ } @{ $json->{tiers} };
    is_deeply [ sort keys %tier ], [ sort map { ($_, "stream:$_") } qw(shared:near store) ], 'tiers of both';
    is $tier{'stream:shared:near'}{lookups}{HIT}, 1, 'and what was found there';
    my %server = map { $_->{backend} => $_ } @{ $json->{servers} };
    is_deeply [ sort keys %server ], [ 'store', 'stream:store' ], 'servers of both';
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

subtest 'only stream{} has sessions, and http{} shows what was counted' => sub {
    my $status = free_port();
    my ($port) = start('store', http => "server { listen 127.0.0.1:$status; location / { ssl_session_status; } }");
    stored($port, protocol => 'TLSv1.3');
    like `curl -fsS --noproxy '*' http://127.0.0.1:$status/`,
        qr/^nginx_ssl_session_handshakes_total\{listen="127\.0\.0\.1:$port",protocol="TLSv1\.3",result="full"\} 1$/m, 'counted';
};

subtest 'a reload, and the end' => sub {
    my ($port, $nginx) = start('shared:near:1m store');
    my $session = stored($port, protocol => 'TLSv1.2');
    $nginx->reload;
    is((visit($port, protocol => 'TLSv1.2', session => $session))[0], 'r HIT stream:shared:near ', 'the zone has it still');
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

subtest 'reloads that bring and take the block, and its module' => sub {
    my ($http, $port) = (free_port(), free_port());
    my $conf  = "$backend$tls ssl_session_fetch store; ssl_session_store store; server { listen 127.0.0.1:$http ssl; }";
    my $nginx = nginx(log => 'notice', conf => $conf);
    for my $round (1 .. 3) {
        $nginx->{stream} = block($port, 'store');
        $nginx->reload($conf);
        my $session = stored($port, protocol => 'TLSv1.2');
        is((visit($port, protocol => 'TLSv1.2', session => $session))[0], 'r HIT stream:store ', 'with it');
        delete $nginx->{stream};
        $nginx->reload($conf);
        ok tls_client(port => $http, protocol => 'TLSv1.2')->handshake, 'without it';
    }
    wait_until { !$nginx->old_workers } 10, 'the end of old workers';
    is_deeply [ $nginx->errors ], [], 'no error in the log';
    is $nginx->log_count(qr/exited on signal/), 0, 'no worker died';
};

subtest 'variables in a log' => sub {
    my $log = tmpdir() . '/stream.log';
    my ($port, $nginx) = start('store', more => <<"CONF");
log_format sessions '\$ssl_session_fetch_status/\$ssl_session_fetch_time/\$ssl_session_fetch_tier/\$ssl_session_store_status';
    access_log $log sessions;
CONF
    my $session = stored($port, protocol => 'TLSv1.2');
    visit($port, protocol => 'TLSv1.2', session => $session);
    wait_until { slurp($log) =~ /\n.*\n/ } 5, 'two lines';
    like slurp($log), qr{^-/-/-/STORED\nHIT/0\.\d{6}/stream:store/-\n\z}, 'what they say';
};

SKIP: {
    skip 'this nginx has no virtual servers in stream{}', 1 if !has_stream_servers();
    subtest 'virtual servers' => sub {
        my $port = free_port();
        my $two  = join "\n", map { "server { listen 127.0.0.1:$port ssl; server_name $_.test; return \"$_ \$ssl_session_reused \$ssl_session_fetch_status\"; }" } qw(one two);
        my $nginx = nginx(log => 'notice', conf => '', stream => block(free_port(), 'store') . $two);
        for my $name (qw(one two)) {
            my $keys = $redis->keys;
            my ($text, $client) = visit($port, protocol => 'TLSv1.2', sni => "$name.test");
            is $text, "$name . ", "$name: a full handshake";
            wait_until { $redis->keys > $keys } 5, 'its session in the store';
            is((visit($port, protocol => 'TLSv1.2', sni => "$name.test", session => $client->session))[0], "$name r HIT", 'resumed');
        }
    };
}

sub refused {
    my ($stream, $pattern, $name, %arg) = @_;
    my ($code, $said) = conf_test(conf => '', stream => $stream, %arg);
    isnt $code, 0, $name;
    like $said, $pattern, 'and why';
}

subtest 'what is refused' => sub {
    my $good = block(free_port(), 'store');
    my ($code, $said) = conf_test(conf => '', stream => $good);
    is $code, 0, 'nothing of that' or diag $said;
    refused($good . "ssl_session_fetch off;\n", qr/\[emerg\] .*"ssl_session_fetch" directive is duplicate in /, 'a directive twice');
    refused($good, qr/\[emerg\] .*no "ssl_session_key" to seal sessions with for "stream:store" in "ssl_session_fetch" in /,
        'a store without keys', key => 0);
    refused(($good =~ s/ssl_session_fetch\K store/ nowhere/r), qr/\[emerg\] .*unknown SSL session backend "nowhere" in "ssl_session_fetch" in /,
        'a backend of nobody');
    my $keys = 'ssl_session_ticket_keys store';
    ($code, $said) = conf_test(conf => '', stream => "$good $keys; ssl_session_fallback tickets;\n");
    is $code, 0, 'nor that' or diag $said;
    refused("$good $keys period=8d;\n", qr/\[emerg\] .*invalid time "8d" for "period" in "ssl_session_ticket_keys": it must be 1 second to 7 days in /,
        'a period that is too long');
    refused($good . "ssl_session_fallback tickets;\n", qr/\[emerg\] .*"ssl_session_fallback" without "ssl_session_ticket_keys" in /,
        'a fallback without keys of tickets');
    refused("$good $keys;\nssl_session_ticket_key " . spew(tmpdir() . '/tickets.key', 'k' x 80) . ";\n",
        qr/\[emerg\] .*the server in \S+:\d+ has "ssl_session_ticket_key", which is not allowed beside "ssl_session_ticket_keys" in /,
        'key files beside keys of the fleet');
    refused("$good upstream u { server 127.0.0.1:1; ssl_session_status; }", qr/\[emerg\] .*"ssl_session_status" directive is not allowed here/,
        'a status page');
    refused(($good =~ s/store \{/store { proxy_pass x;/r), qr/\[emerg\] .*"proxy_pass" directive is not allowed here/, 'what belongs elsewhere');
    refused("map \$remote_addr \$ssl_session_fetch_tier { default x; }\n$good",
        qr/\[emerg\] .*the duplicate "ssl_session_fetch_tier" variable in /, 'a variable of somebody else');
    refused($good =~ s/server \{ listen.*\n//r . "server { listen 127.0.0.1:1; ssl_session_store off; return x; }",
        qr/\[emerg\] .*"ssl_session_store" directive is not allowed here/, 'in a server');
};

SKIP: {
    skip 'stream{} is in this nginx', 1 unless SSLSession::Nginx->stream_module && !$ENV{TEST_NGINX_STATIC};
    subtest 'the module of stream{} is loaded after ours' => sub {
        my $port  = free_port();
        my $nginx = nginx(log => 'notice', conf => '', stream_last => 1, stream => block($port, 'store'));
        my $session = stored($port, protocol => 'TLSv1.3');
        is((visit($port, protocol => 'TLSv1.3', session => $session))[0], 'r HIT stream:store STORED', 'resumed');
    };
}

subtest 'tickets that clients keep are warned of' => sub {
    my $port = free_port();
    my ($code, $said) = conf_test(conf => '', stream => block($port, 'store') =~ s/tickets off/tickets on/r);
    is $code, 0, 'allowed';
    like $said, qr/\[warn\] .*"ssl_session_tickets" is on, .* to the server in \S+:\d+$/m, 'and said';
    return if !has_stream_servers();
    ($code, $said) = conf_test(conf => '', stream => block($port, 'store') =~ s/tickets off/tickets on/r =~ s/(listen [^;]*;)/$1 server_name one.test;/r);
    like $said, qr/\[warn\] .*"ssl_session_tickets" is on, .* to the server "one\.test" in \S+:\d+$/m, 'with its name';
};

subtest 'one directive without the other is warned of, whatever the other block has' => sub {
    my $both = "ssl_session_fetch shared:web:1m; ssl_session_store shared:web:1m;\n";
    for my $case ([qw(fetch store)], [qw(store fetch)]) {
        my ($there, $missing) = @$case;
        my $stream = block(free_port(), 'store');
        is $stream =~ s/^\s*ssl_session_$missing store;//m, 1, 'a line less';
        my ($code, $said) = conf_test(conf => $both, stream => $stream);
        is $code, 0, "no $missing: allowed";
        my @warnings = $said =~ /\[warn\] (.*)/g;
        is scalar @warnings, 1, 'and said once' or diag $said;
        like $warnings[0], qr/"ssl_session_$there" without "ssl_session_$missing": .* in \S+:\d+$/, 'with its place';
        ($code, $said) = conf_test(conf => $both, stream => "$stream ssl_session_$missing off;\n");
        unlike $said, qr/\[warn\]/, 'not where it is off';
    }
};

done_testing;
