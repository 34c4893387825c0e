# The variables, wherever nginx has a use for them: each request of a connection sees what became of
# its handshake.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my ($redis, $port, $h2_port, $status_port) = (redis(), map { free_port() } 1 .. 3);
my $wait = patience();
my $h2   = nginx_version() >= 1_025_001 ? ['ssl', 'http2 on;'] : ['ssl http2', ''];

my $location = <<'CONF';
        location / {
            add_header X-Fetch "$ssl_session_fetch_status|$ssl_session_fetch_tier|$ssl_session_fetch_time|$ssl_session_store_status" always;
            if ($ssl_session_fetch_status = HIT) { return 200 "if: hit, map: $kind\n"; }
            return 200 "if: none, map: $kind\n";
        }
        location /rewrite { rewrite ^ /$kind/$ssl_session_fetch_status? permanent; }
CONF
my $nginx = nginx(log => 'notice', conf => <<"CONF");
    ssl_session_backend store { server 127.0.0.1:${\ $redis->port}; connect_timeout ${wait}s; fetch_timeout ${wait}s; }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    keepalive_requests  100;
    map \$ssl_session_fetch_status \$kind { default other; "" none; HIT found; MISS lost; }
    log_format sessions '\$server_protocol \$connection_requests "\$ssl_session_fetch_status" "\$ssl_session_fetch_tier" "\$ssl_session_fetch_time" "\$ssl_session_store_status" \$kind';
    access_log sessions.log sessions;
    server { listen 127.0.0.1:$port ssl; $location }
    server { listen 127.0.0.1:$h2_port $h2->[0]; $h2->[1] $location }
    server { listen 127.0.0.1:$status_port; access_log off; location / { return 200 "[\$ssl_session_fetch_status\$ssl_session_fetch_time\$ssl_session_fetch_tier\$ssl_session_store_status]"; } location /status { ssl_session_status; } }
CONF

sub logged { return [ split /\n/, slurp($nginx->dir . '/sessions.log') ] }

# A client with a session of the store's.
sub session {
    my ($protocol) = @_;
    my $client = tls_client(port => $port, protocol => $protocol);
    defined $client->request or die 'no answer: ' . $client->error;
    my $session = ($client->sessions)[0];
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

# An answer as it comes, up to its last words.
sub exchange {
    my ($client, $path, $end) = @_;
    $client->write("GET $path HTTP/1.1\r\nHost: a\r\n\r\n") or die $client->error;
    my $answer = '';
    while ($answer !~ /$end/) {
        my $more = $client->read // die 'no answer: ' . $client->error;
        die "the end after: $answer" if !length $more;
        $answer .= $more;
    }
    return $answer;
}

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: each request of a connection that is kept" => sub {
        my $session = session($protocol);
        my $before  = @{ logged() };
        my $client  = tls_client(port => $port, protocol => $protocol, session => $session);
        my @answers = map { exchange($client, '/', 'map: \w+\n') } 1 .. 5;
        $client->close;
        my @heads = map { /^X-Fetch: (.*?)\r$/m } @answers;
        is scalar(@heads), 5, 'five answers';
        my $stored = $protocol eq 'TLSv1.3' ? 'STORED' : '';
        like $heads[0], qr/^HIT\|store\|0\.\d{6}\|$stored$/, 'a header';
        is_deeply \@heads, [ ($heads[0]) x 5 ], 'the same in each';
        is scalar(grep { /if: hit, map: found/ } @answers), 5, '"if" and "map"';
        wait_until { @{ logged() } == $before + 5 } 5, 'the access log';
        my @lines = @{ logged() }[ $before .. $before + 4 ];
        my $time  = (split /\|/, $heads[0])[2];
        is_deeply \@lines, [ map { sprintf 'HTTP/1.1 %d "HIT" "store" "%s" "%s" found', $_, $time, $stored || '-' } 1 .. 5 ],
            'the access log';
    };
}

subtest 'a first visit' => sub {
    my $client = tls_client(port => $port, protocol => 'TLSv1.2');
    my $answer = exchange($client, '/', 'map: \w+\n');
    like $answer, qr/^X-Fetch: \|\|\|STORED\r$/m, 'empty, and a session that is stored';
    like $answer, qr/if: none, map: none/, 'an empty one is none';
};

subtest 'rewrite' => sub {
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => session('TLSv1.2'));
    like exchange($client, '/rewrite', '</html>'), qr{^Location: \S+/found/HIT\r$}m, 'a path made of them';
};

subtest 'HTTP/2: each stream of a connection' => sub {
    my $session = session('TLSv1.3');
    my $client  = tls_client(port => $h2_port, protocol => 'TLSv1.3', session => $session, alpn => ['h2'], handshake => 1);
    ok $client->reused, 'a session of the other server, by the store';
    # RFC 9113 §3.4 and §4.1; the request in entries of the static table (RFC 7541, appendix A).
    my $frame   = sub { my ($type, $flags, $stream, $body) = @_; return substr(pack('N', length $body), 1) . pack('CCN', $type, $flags, $stream) . $body };
    my $request = "\x82\x87\x84\x41\x01a";
    $client->write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . $frame->(4, 0, 0, '') . join '', map { $frame->(1, 5, $_, $request) } 1, 3, 5)
        or die $client->error;
    my @lines;
    wait_until { (@lines = grep { m{^HTTP/2\.0} } @{ logged() }) >= 3 } 10, 'the access log';
    s/"0\.\d{6}"/"TIME"/ for @lines;
    is_deeply \@lines, [ map { qq(HTTP/2.0 $_ "HIT" "store" "TIME" "STORED" found) } 1 .. 3 ], 'what it says';
    $client->close;
};

subtest 'not TLS' => sub {
    is `curl -sS --noproxy '*' http://127.0.0.1:$status_port/`, '[]', 'all are empty';
};

subtest 'handshakes that no request follows count' => sub {
    my $count = sub {
        my ($result) = @_;
        my ($n) = `curl -sS --noproxy '*' http://127.0.0.1:$status_port/status`
            =~ /handshakes_total\{listen="127.0.0.1:$port",protocol="TLSv1.2",result="$result"\} (\d+)/;
        return $n;
    };
    my $lines = @{ logged() };
    my $session = session('TLSv1.2');
    my ($full, $resumed) = map { $count->($_) } qw(full resumed);
    for my $offer (undef, $session) {
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $offer);
        $client->handshake or die $client->error;
        $client->close;
    }
    is $count->('full'), $full + 1, 'a full one';
    is $count->('resumed'), $resumed + 1, 'a resumed one';
    is scalar(@{ logged() }), $lines + 1, 'and the log has but the request that was made';
};

is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the error log';
done_testing;
