# ssl_session_status: what it counts, in a form that Prometheus reads.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use MIME::Base64 qw(encode_base64);
use Test::More;

my $certs = certs();
my ($port, $status, $redis) = (free_port(), free_port(), redis());
my $conf = <<"CONF";
    ssl_session_backend store { server 127.0.0.1:${\ $redis->port}; }
    ssl_session_fetch shared:tls:1m store;
    ssl_session_store shared:tls:1m store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
    gzip on; gzip_types text/plain;
    server { listen 127.0.0.1:$status; location / { ssl_session_status; allow 127.0.0.1; deny all; } }
CONF
my $nginx = nginx(workers => 2, log => 'notice', conf => $conf);

sub metrics {
    my $body = `curl -fsS http://127.0.0.1:$status/`;
    my %value;
    while ($body =~ /^nginx_ssl_session_(\w+\{[^}]*\}) (\S+)$/mg) { $value{$1} = $2 }
    return \%value;
}

sub visit {
    my ($protocol, $session) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, session => $session);
    defined $client->request or die 'no answer: ' . $client->error;
    return $client;
}

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    my $labels = qq(listen="127.0.0.1:$port",protocol="$protocol");
    my $before = metrics();
    my $session = (visit($protocol)->sessions)[0];
    wait_until { visit($protocol, $session)->reused } 5, 'resumption';
    visit($protocol, $session) for 1 .. 9;
    my $after = metrics();
    is $after->{qq(handshakes_total{$labels,result="full"})}, 1, "$protocol: a full handshake";
    is $after->{qq(handshakes_total{$labels,result="resumed"})}, 10, 'resumed ones';
    is $after->{qq(fetches_total{$labels,status="HIT"})}, 10, 'hits';
}
subtest 'promtool finds nothing to say' => sub {
    plan skip_all => 'no promtool' if !grep { -x "$_/promtool" } split /:/, $ENV{PATH};
    my $said = `curl -fsS http://127.0.0.1:$status/ | promtool check metrics 2>&1`;
    is $?, 0, 'check metrics' or diag $said;
    is $said, '', 'no warnings';
};

subtest 'the answer' => sub {
    my $head = `curl -fsSI http://127.0.0.1:$status/`;
    like $head, qr{^HTTP/1\.1 200 }, 'HEAD';
    like $head, qr{^Content-Type: text/plain; version=0\.0\.4; charset=utf-8\r$}mi, 'type';
    my ($len) = $head =~ /^Content-Length: (\d+)/mi;
    is length(`curl -fsS http://127.0.0.1:$status/`), $len, 'length';
    like $head, qr{^Cache-Control: no-store\r$}mi, 'not to be kept';
    is `curl -sS -o /dev/null -w '%{http_code}' -d x http://127.0.0.1:$status/`, 405, 'POST';
};

subtest 'in which form' => sub {
    my $type = sub { my ($path, @args) = @_; return `curl -sS -o /dev/null -w '%{http_code} %{content_type}' @args 'http://127.0.0.1:$status$path'` };
    my %type = (prometheus => 'text/plain; version=0.0.4; charset=utf-8', json => 'application/json', html => 'text/html; charset=utf-8');
    is $type->("/?format=$_"), "200 $type{$_}", "format=$_" for sort keys %type;
    is $type->("/?format=$_"), '400 text/html', "format=$_: there is no such" for '', 'xml', 'JSON', 'jsonp';
    is $type->("/?buckets=$_"), '400 text/html', "buckets=$_: there are no such" for '', 'some', 'ALL';
    my %accept = (
        '*/*' => 'prometheus', 'application/json' => 'json',
        'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8' => 'html',
        'application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2' => 'prometheus',
    );
    is $type->('/', "-H 'Accept: $_'"), "200 $type{$accept{$_}}", "Accept: $_" for sort keys %accept;
    is $type->('/', "-H Accept:"), "200 $type{prometheus}", 'no Accept';
    is $type->('/?a=b&format=json', "-H 'Accept: text/html'"), "200 $type{json}", 'the argument counts more';
    like `curl -sSI http://127.0.0.1:$status/`, qr/^Vary: Accept\r$/mi, 'caches are told';
    like `curl -sS -H 'Accept-Encoding: gzip' -D - -o /dev/null http://127.0.0.1:$status/`, qr/^Content-Encoding: gzip\r$/mi, 'and gzip knows its type';
    is `curl -sS --compressed http://127.0.0.1:$status/ | grep -c handshakes_total`, `curl -sS http://127.0.0.1:$status/ | grep -c handshakes_total`, 'the same, compressed';
};

subtest 'JSON has the same numbers' => sub {
    my $json = decode_json(`curl -fsS 'http://127.0.0.1:$status/?format=json'`);
    my $metrics = metrics();
    is_deeply [ sort keys %$json ], [qw(build epochs keys listens protocols servers tiers time version zones)], 'its parts';
    is $json->{version}, 2, 'the version of the schema';
    cmp_ok abs($json->{time} - time), '<', 60, 'the time';
    my ($listen) = grep { $_->{listen} eq "127.0.0.1:$port" && $_->{protocol} eq 'TLSv1.3' } @{ $json->{listens} };
    is $listen->{handshakes}{resumed}, 10, 'resumed';
    # Each number of JSON, by the name and labels that it has for Prometheus.
    my %label  = (listens => [qw(listen protocol)], protocols => ['protocol'], tiers => ['tier'], servers => [qw(backend server)], zones => ['tier'], epochs => [qw(block name)]);
    my %prefix = (listens => '', protocols => '', tiers => 'tier_', servers => 'server_', zones => 'zone_', epochs => 'epoch_');
    my ($seen, @other) = (0);
    for my $kind (sort keys %label) {
        for my $record (@{ $json->{$kind} }) {
            my %number = %$record;
            my $labels = join ',', map { my $value = delete $number{$_}; qq($_="$value") } @{ $label{$kind} };
            for my $key (sort keys %number) {
                my ($name, $value) = ("$prefix{$kind}$key", $number{$key});
                my %same = !ref $value ? ('' => $value)
                    : $value->{buckets} ? map { ($_ => $value->{$_}) } qw(count sum)
                    : %$value;
                for my $word (keys %same) {
                    my $more = !ref $value || $value->{buckets} ? qr/\}/ : qr/,\w+="$word"\}/;
                    my $end  = ref $value && $value->{buckets} ? "_$word" : qr/(?:_total)?/;
                    my @found = map { $metrics->{$_} } grep { /^$name$end\{\Q$labels\E$more$/ } keys %$metrics;
                    $seen++;
                    push @other, "$kind $key $word: @found and $same{$word}" if @found != 1 || $found[0] != $same{$word};
                }
            }
        }
    }
    is_deeply \@other, [], 'numbers';
    cmp_ok $seen, '>', 100, 'all are the same';
    my ($lookups) = map { $_->{lookup_seconds} } grep { $_->{tier} eq 'store' } @{ $json->{tiers} };
    my $buckets = 0;
    $buckets += $_->[1] for @{ $lookups->{buckets} };
    is $buckets, $lookups->{count}, 'buckets add up';
};

subtest 'some of the buckets, or all' => sub {
    my $bounds = sub {
        my %count = `curl -fsS 'http://127.0.0.1:$status/$_[0]'` =~ /^nginx_ssl_session_(\w+_bucket\{[^}]*\}) (\d+)$/mg;
        return \%count;
    };
    visit('TLSv1.3', with_session_id((visit('TLSv1.3')->sessions)[0], issue_id('TLSv1.3')));
    my ($some, $all) = ($bounds->(''), $bounds->('?buckets=all'));
    my @of = grep { /^suspension_seconds_bucket\{protocol="TLSv1\.3"/ } keys %$some;
    is scalar @of, 21, 'so many of one histogram';
    is scalar(grep { /^suspension_seconds_bucket\{protocol="TLSv1\.3"/ } keys %$all), 82, 'and of all that there are';
    is_deeply { map { $_ => $all->{$_} } keys %$some }, $some, 'which say the same';
    cmp_ok $some->{'tier_lookup_seconds_bucket{tier="store",le="+Inf"}'}, '>', 0, 'something was counted';
};

subtest 'what is known and not counted' => sub {
    my ($tls, $stream, $shown, $store) = (free_port(), free_port(), free_port(), redis());
    my @key = map { new_session_key() } 1 .. 3;
    my $id  = sub { return unpack 'H2', issue_id('TLSv1.3', $_[0]) };
    my $server = sub { return $conf =~ /^\s+ssl_session_tickets off;\n(?:\s+ssl_\w+ .*\n)+/m ? "$&$_[0]" : die 'no server' };
    my $backend = "ssl_session_backend store { server 127.0.0.1:${\ $store->port}; connect_timeout 5s; fetch_timeout 5s; }";
    my $one = nginx(log => 'notice', conf => $server->(<<"CONF"), !has_stream() ? () : (stream => $server->(<<"STREAM")));
    $backend
    ssl_session_key   $key[0];
    ssl_session_key   $key[1];
    ssl_session_fetch shared:tls:1m store;
    ssl_session_store shared:tls:1m store;
    ssl_session_epoch "of-this";
    server { listen 127.0.0.1:$tls ssl; location / { return 204; } }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF
    $backend
    ssl_session_key   $key[2];
    ssl_session_fetch shared:tls:1m;
    ssl_session_store shared:tls:1m;
    server { listen 127.0.0.1:$stream ssl; return 1; }
STREAM
    my $body  = sub { return `curl -fsS 'http://127.0.0.1:$shown/?$_[0]'` };
    my $value = sub { return ($body->('') =~ /^nginx_ssl_session_\Q$_[0]\E (\S+)$/m)[0] };
    my $json  = sub { return decode_json($body->('format=json')) };

    my @expected = (map({ [ 'http', $id->($key[$_]), $_ + 1 ] } 0, 1), has_stream() ? [ 'stream', $id->($key[2]), 1 ] : ());
    my @shown = $body->('') =~ /^nginx_ssl_session_key_info\{block="(\w+)",key_id="(\w+)",position="(\d+)"\} 1$/mg;
    is_deeply \@shown, [ map { @$_ } @expected ], 'the keys, in their order';
    is_deeply [ map { [ @$_{qw(block key_id position)} ] } @{ $json->()->{keys} } ], \@expected, 'also in JSON';
    my $secret = join '|', map { my $key = slurp($_); map { quotemeta } $key, unpack('H8', $key), substr(encode_base64($key), 0, 8) } @key;
    unlike $body->($_), qr/$secret/i, "nothing else of a key: $_" for 'format=prometheus', 'format=json';

    my ($nginx_is)  = `'@{[ nginx_binary() ]}' -v 2>&1` =~ m{^nginx version: \w+/([\d.]+)}m;
    my ($module_is) = slurp(root() . '/Cargo.toml') =~ /^version = "(.*)"$/m;
    my $openssl     = qr/\d+\.\d+\.\d+[^"]*/;
    my $build       = $json->()->{build};
    is "$build->{version} $build->{nginx}", "$module_is $nginx_is", 'versions';
    like $build->{openssl}, qr/^$openssl$/, 'of OpenSSL';
    like $build->{openssl_built}, qr/^(?:$openssl)?$/, 'also where the module was built for another one';
    isnt $build->{openssl_built}, $build->{openssl}, 'and only there';
    my $line = join ',', map { qq($_="$build->{$_}") } qw(version nginx openssl openssl_built);
    is $value->("build_info{$line}"), 1, 'for Prometheus';
    # nginx names what it was built with, and what it runs with if that is another.
    my ($was, $runs) = `'@{[ nginx_binary() ]}' -V 2>&1` =~ /^built with OpenSSL (\S+).*?(?:running with OpenSSL (\S+)|$)/m;
    is $build->{openssl}, $runs // $was, 'as nginx has it';

    my @epoch = map { "epoch_$_\{block=\"http\",name=\"of-this\"}" } qw(heard seconds);
    is_deeply [ map { $value->($_) } @epoch ], [ 0, 0 ], 'the epoch was not heard';
    my ($zone, $free) = map { "zone_$_\{tier=\"shared:tls\"}" } qw(entries free_bytes);
    my ($size, $empty) = ($value->('zone_size_bytes{tier="shared:tls"}'), $value->($free));
    is $value->($zone), 0, 'an empty zone';
    cmp_ok $size, '>', 0.9 * 2**20, 'has most of its size for sessions';
    cmp_ok $size, '<', 2**20, 'and not all';
    cmp_ok $empty, '>', $size - 4096, 'which is free';
    my $visit = sub {
        my $client = tls_client(port => $tls, protocol => 'TLSv1.3', session => $_[0]);
        defined $client->request or die 'no answer: ' . $client->error;
        return $client;
    };
    my $session = ($visit->()->sessions)[0];
    is $value->($zone), 2, 'two tickets';
    my $used = $empty - $value->($free);
    cmp_ok $used, '>', 2 * 150, 'take memory';
    is $used % 128, 0, 'in pieces';
    is $value->('zone_entries{tier="stream:shared:tls"}'), 2, 'of the zone that stream{} has, too' if has_stream();
    is_deeply [ map { $_->{tier} } @{ $json->()->{zones} } ], [ 'shared:tls', has_stream() ? 'stream:shared:tls' : () ], 'each once';
    wait_until { $visit->($session)->reused } 5, 'resumption';
    is_deeply [ map { $value->($_) } @epoch ], [ 1, 0 ], 'there is no epoch';
    $store->cmd('SET', 'tls:of-this', 1_700_000_000);
    wait_until { $visit->($session); $value->($epoch[1]) == 1_700_000_000 } 10, 'the epoch';
    is_deeply $json->()->{epochs}, [ { block => 'http', name => 'of-this', seconds => 1_700_000_000, heard => 1 } ], 'in JSON';
};

subtest 'a reload brings the module' => sub {
    plan skip_all => 'the module is in nginx' if $ENV{TEST_NGINX_STATIC};
    my ($tls, $shown) = (free_port(), free_port());
    my $text  = "ssl_session_key ${\ session_key()};\n" . ($conf =~ s/(fetch|store) shared:tls:1m store/$1 shared:tls:1m/gr =~ s/$port/$tls/r =~ s/$status/$shown/r);
    my $plain = $text =~ s/^.*ssl_session_(?:key|backend|fetch|store|epoch|status)\b.*\n//mgr =~ s/\$ssl_session_(?:fetch|store)_\w+//gr;
    my $one = nginx(module => 0, log => 'notice', conf => $plain);
    $one->reload($text, main => 'load_module ' . module_path() . ';');
    wait_until { !$one->old_workers } 10, 'exit of the old worker';
    my $visit = sub { my $client = tls_client(port => $tls, protocol => 'TLSv1.2', session => $_[0]); $client->request; return $client };
    my $session = $visit->()->session;
    is $visit->($session)->reused, 1, 'a session is resumed';
    like scalar(`curl -fsS http://127.0.0.1:$shown/`), qr/^nginx_ssl_session_fetches_total\{.*status="HIT"\} 1$/m, 'and counted';
    is_deeply [ $one->errors ], [], 'no complaint';
};

# What lies in its zones may be laid out otherwise.
subtest 'a second file of the module has zones of its own' => sub {
    plan skip_all => 'the module is in nginx' if $ENV{TEST_NGINX_STATIC};
    my ($tls, $shown, $second) = (free_port(), free_port(), tmpdir() . '/second.so');
    my $text = "ssl_session_key ${\ session_key()};\n" . ($conf =~ s/(fetch|store) shared:tls:1m store/$1 shared:tls:1m/gr =~ s/$port/$tls/r =~ s/$status/$shown/r);
    system('cp', module_path(), $second) == 0 or die 'cp';
    my $one = nginx(module => 0, log => 'notice', main => 'load_module ' . module_path() . ';', conf => $text);
    my $value = sub { return (`curl -fsS http://127.0.0.1:$shown/` =~ /^nginx_ssl_session_\Q$_[0]\E (\S+)$/m)[0] // 0 };
    my @both  = (qq(handshakes_total{listen="127.0.0.1:$tls",protocol="TLSv1.2",result="full"}), 'zone_entries{tier="shared:tls"}');
    my $visit = sub {
        my $client = tls_client(port => $tls, protocol => 'TLSv1.2', session => $_[0]);
        defined $client->request or die 'no answer: ' . $client->error;
        return $client;
    };
    my $session = $visit->()->session;
    is_deeply [ map { $value->($_) } @both ], [ 1, 1 ], 'counted, and stored';
    $one->reload($text);
    is_deeply [ map { $value->($_) } @both ], [ 1, 1 ], 'a reload of the first one keeps both';
    $one->reload($text, main => "load_module $second;");
    wait_until { !$one->old_workers } 10, 'exit of the old worker';
    is_deeply [ map { $value->($_) } @both ], [ 0, 0 ], 'the second one begins anew';
    is $visit->($session)->reused, 0, 'without the sessions';
    is_deeply [ map { $value->($_) } @both ], [ 1, 1 ], 'and goes on';
    is_deeply [ $one->errors ], [], 'no complaint';
};

subtest 'where nothing is counted' => sub {
    my $shown = free_port();
    my $one = nginx(log => 'notice', conf => "server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }");
    my @metrics = grep { !/^#/ } split /\n/, `curl -sS http://127.0.0.1:$shown/`;
    is scalar @metrics, 1, 'one line';
    like $metrics[0], qr/^nginx_ssl_session_build_info\{/, 'says what runs';
    is_deeply decode_json(`curl -sS 'http://127.0.0.1:$shown/?format=json'`)->{tiers}, [], 'an empty list';
    my $url  = "http://127.0.0.1:$shown/?format=json";
    my @said = split /\n/, `curl -sS -o /dev/null -w '%{http_code} %{size_download}\\n' -H 'If-None-Match: *' $url --next -sS -o /dev/null -w '%{http_code} %{num_connects}\\n' $url`;
    is_deeply \@said, [ '304 0', '200 0' ], 'who has it gets no body, and uses the connection on';
    is_deeply [ $one->errors ], [], 'and no complaint';
};

subtest 'a zone of sessions with the name of that of the counters' => sub {
    my ($status, $said) = conf_test(conf => $conf =~ s/shared:tls:1m/"shared:SSL session counters:4m"/gr);
    isnt $status, 0, 'is refused';
    like $said, qr/\[emerg\].* shared memory zone "SSL session counters" is already declared for a different use/, 'by nginx';
};

subtest 'targets' => sub {
    my $before = metrics();
    my $session = (visit('TLSv1.2')->sessions)[0];
    my $moved = sub { metrics()->{$_[0]} - $before->{$_[0]} };
    is $moved->('tier_stores_total{tier="shared:tls"}'), 1, 'stored in the zone';
    is $moved->('tier_stores_total{tier="store"}'), 1, 'and in Redis';
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in Redis';
    $redis->cmd('DEL', cache_key($session));
    visit('TLSv1.2', $session);
    is $moved->('tier_lookups_total{tier="shared:tls",status="HIT"}'), 1, 'found in the zone';
    is $moved->('tier_lookups_total{tier="store",status="HIT"}'), 0, 'and not asked for in Redis';
    cmp_ok $moved->('tier_bytes_total{tier="shared:tls",direction="fetched"}'), '>', 100, 'bytes';
};

subtest 'a handshake that waits, and one without an answer' => sub {
    my ($waits, $shown) = (free_port(), free_port());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $one = nginx(log => 'notice', conf => $conf =~ s/shared:tls:1m //gr =~ s/server 127[^;]*;/server 127.0.0.1:${\ $relay->port}; fetch_timeout 100ms;/r
        =~ s/$port/$waits/r =~ s/$status/$shown/r);
    my $value = sub {
        my ($what) = @_;
        my ($number) = `curl -fsS http://127.0.0.1:$shown/` =~ /^nginx_ssl_session_\Q$what\E (\S+)$/m;
        return $number;
    };
    my $visit = sub {
        my $client = tls_client(port => $waits, protocol => 'TLSv1.3', session => $_[0]);
        $client->request;
        return $client;
    };
    my $session = ($visit->()->sessions)[0];
    wait_until { $visit->($session)->reused } 5, 'resumption';
    my $waited = $value->('suspension_seconds_count{protocol="TLSv1.3"}');
    $visit->($session);
    is $value->('suspension_seconds_count{protocol="TLSv1.3"}'), $waited + 1, 'it was suspended';
    is $value->('tier_lookup_seconds_count{tier="store"}'), $waited + 1, 'a lookup';
    $relay->drop;
    $visit->($session);
    is $value->('tier_lookups_total{tier="store",status="TIMEOUT"}'), 1, 'a timeout';
    cmp_ok $value->('tier_lookup_seconds_sum{tier="store"}'), '>=', 0.09, 'and its time';
    is $value->(qq(fetches_total{listen="127.0.0.1:$waits",protocol="TLSv1.3",status="TIMEOUT"})), 1, 'of a handshake';
    is $value->('tier_lookup_seconds_bucket{tier="store",le="+Inf"}'), $waited + 2, 'all are in the last bucket';
};

subtest 'servers, and a worker that dies' => sub {
    my ($waits, $shown, $own) = (free_port(), free_port(), redis());
    my $server = 'redis 127.0.0.1:' . $own->port;
    my $one = nginx(log => 'notice', conf => $conf =~ s/shared:tls:1m //gr =~ s/server 127[^;]*;/server 127.0.0.1:${\ $own->port} fail_timeout=1s;/r
        =~ s/$port/$waits/r =~ s/$status/$shown/r);
    my $value = sub {
        my ($what, $more) = (@_, '');
        my ($number) = `curl -fsS http://127.0.0.1:$shown/`
            =~ /^nginx_ssl_session_server_$what\{backend="store",server="\Q$server\E"\Q$more\E\} (\S+)$/m;
        return $number;
    };
    my $visit = sub {
        my $client = tls_client(port => $waits, protocol => 'TLSv1.2', session => $_[0]);
        defined $client->request or die 'no answer: ' . $client->error;
        return $client;
    };
    is $value->('requests_total'), undef, 'not before it is asked';
    my $session = ($visit->()->sessions)[0];
    wait_until { $visit->($session)->reused } 5, 'resumption';
    my $asked = $value->('requests_total');
    $visit->($session) for 1 .. 5;
    is $value->('requests_total'), $asked + 5, 'requests';
    is $value->('connections_total'), 2, 'a connection for lookups, and one for stores';
    wait_until { $value->('in_flight') == 0 } 5, 'answers';
    is $value->('available_workers'), 1, 'available';
    cmp_ok $value->('bytes_total', ',direction="received"'), '>', 5 * 150, 'bytes of answers';

    $own->stop;
    wait_until { $visit->($session); $value->('available_workers') == 0 } 5, 'down';
    is $value->('transitions_total', ',to="down"'), 1, 'a transition';
    $own = redis(port => $own->port);
    wait_until { $visit->($session); $value->('available_workers') == 1 } 10, 'up';
    is $value->('transitions_total', ',to="up"'), 1, 'and back';

    my $requests = $value->('requests_total');
    my ($worker) = $one->workers;
    kill KILL => $worker;
    wait_until { my ($new) = $one->workers; defined $new && $new != $worker } 10, 'another worker';
    wait_until { defined $value->('available_workers') } 5, 'its answer';
    is $value->('available_workers'), 0, 'a worker that is gone counts no more';
    is $value->('requests_total'), $requests, 'what it has counted does';
    $visit->($session);
    is $value->('available_workers'), 1, 'the new one has asked';
    cmp_ok $value->('requests_total'), '>', $requests, 'and counts on';
};

subtest 'an entry of no use is no hit' => sub {
    my $session = (visit('TLSv1.2')->sessions)[0];
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in Redis';
    # The zone must not have it.
    my ($one, $shown) = (free_port(), free_port());
    my $other = nginx(log => 'notice', conf => $conf =~ s/shared:tls:1m //gr =~ s/$port/$one/r =~ s/$status/$shown/r
        =~ s/store \{/store { connect_timeout 5s; fetch_timeout 5s;/r);
    $redis->cmd('SET', cache_key($session), 'rubbish');
    my $client = tls_client(port => $one, protocol => 'TLSv1.2', session => $session);
    is $client->request, 'CORRUPT', 'corrupt';
    my $body = `curl -fsS http://127.0.0.1:$shown/`;
    like $body, qr/^nginx_ssl_session_tier_lookups_total\{tier="store",status="CORRUPT"\} 1$/m, 'in the target, too';
    like $body, qr/^nginx_ssl_session_tier_lookups_total\{tier="store",status="HIT"\} 0$/m, 'and no hit';
};

subtest 'a server that is not there, and fewer workers' => sub {
    my ($waits, $shown, $socket) = (free_port(), free_port(), tmpdir() . '/nobody.sock');
    my $text = $conf =~ s/shared:tls:1m //gr =~ s/server 127[^;]*;/server unix:$socket;/r =~ s/$port/$waits/r =~ s/$status/$shown/r;
    my $one = nginx(workers => 2, log => 'notice', conf => $text =~ s/(?<=fetch_status)"/ \$pid"/r);
    my $value = sub {
        my ($number) = `curl -fsS http://127.0.0.1:$shown/` =~ /^nginx_ssl_session_\Q$_[0]\E(?:\{[^}]*\Q$_[1]\E"?\})? (\S+)$/m;
        return $number;
    };
    my $visit = sub { tls_client(port => $waits, protocol => 'TLSv1.2', session => $_[0]) };
    my $session = do { my $client = $visit->(); $client->request; $client->session };
    # One of them finds it down; the other hears of that, and has had no connection to it.
    my %down;
    wait_until { my ($status, $pid) = split ' ', $visit->($session)->request; $down{$pid} = 1 if $status eq 'DOWN'; keys %down == 2 } 10,
        'both workers to take it for down';
    is $value->('server_down_workers', $socket), 2, 'both are counted';
    is $value->('server_available_workers', $socket), 0, 'it is down, and not available';
    cmp_ok $value->('tier_lookups_total', 'status="DOWN"'), '>', 0, 'lookups are DOWN';
    cmp_ok $value->('tier_lookup_seconds_count', 'tier="store"'), '<=', 2, 'only that which finds it down in a worker takes time';
    $one->reload($text, workers => 1);
    wait_until { !$one->old_workers } 5, 'exit of the old workers';
    is $value->('server_down_workers', $socket), 0, 'workers that are gone count no more';
};

subtest 'early data is one handshake, too' => sub {
    my ($early, $shown, $file) = (free_port(), free_port(), tmpdir() . '/early.pem');
    my $one = nginx(log => 'notice', conf => "ssl_early_data on;\n" . ($conf =~ s/$port/$early/r =~ s/$status/$shown/r));
    my $value = sub {
        my ($number) = `curl -fsS http://127.0.0.1:$shown/` =~ /handshakes_total\{listen="127.0.0.1:$early",protocol="TLSv1.3",result="$_[0]"\} (\S+)$/m;
        return $number;
    };
    # s_client must have its session from s_client.
    s_client(port => $early, protocol => 'TLSv1.3', sess_out => $file);
    is $value->('full'), 1, 'a full one';
    my $client = s_client(port => $early, protocol => 'TLSv1.3', sess_in => $file, path => undef,
        early_data => "GET / HTTP/1.0\r\n\r\n", args => ['-ign_eof']);
    is $client->early_data, 'accepted', 'accepted' or diag $client->output;
    is $value->('full'), 1, 'no other full one';
    is $value->('resumed'), 1, 'and one that is resumed';
};

my $all = metrics();
$nginx->reload($conf);
my $after = metrics();
is_deeply { map { $_ => $after->{$_} } grep { !/in_flight|available/ } keys %$all }, { map { $_ => $all->{$_} } grep { !/in_flight|available/ } keys %$all }, 'a reload keeps them';
done_testing;
