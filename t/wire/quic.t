# HTTP/3: handshakes of QUIC are suspended where nginx can let them wait, and go on without a lookup
# where it cannot.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use Test::More;

my $said = `'@{[ nginx_binary() ]}' -V 2>&1`;
plan skip_all => 'this nginx has no HTTP/3' if $said !~ /--with-http_v3_module/;
my $python = `@{[ root() ]}/tools/quic-client 2>/dev/null`;
plan skip_all => 'no client of HTTP/3 (tools/quic-client)' if $?;
chomp $python;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $ms    = 10_000 * patience();

# Since 1.29 and OpenSSL 3.5 nginx gives OpenSSL the handshake by OpenSSL's own functions: it reads
# from nobody, and only the callback can wait.
my ($openssl) = $said =~ /running with OpenSSL (\d+\.\d+)/ ? $1 : $said =~ /built with OpenSSL (\d+\.\d+)/;
my $native = nginx_version() >= 1_029_000 && $openssl >= 3.5;
my $waits  = !$native || $ENV{TEST_NGINX_PATCHED};

sub site {
    my ($fetch, %arg) = @_;
    my ($port, $status) = (free_port(), free_port());
    my $conf = <<"CONF";
    ssl_session_backend store { server 127.0.0.1:${\ $relay->port}; fetch_timeout ${ms}ms; connect_timeout ${ms}ms; store_timeout ${ms}ms; }
    ssl_session_fetch   $fetch;
    ssl_session_store   @{[ $fetch =~ s/ single_use//r ]};
    ssl_session_tickets off;
    ssl_early_data      @{[ $arg{early} // 'off' ]};
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.3;
    server {
        listen 127.0.0.1:$port quic;
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$http3 \$ssl_session_reused \$ssl_session_fetch_status \$ssl_session_fetch_tier \$ssl_session_store_status"; }
    }
    server { listen 127.0.0.1:$status; location / { ssl_session_status; } }
CONF
    my $nginx = nginx(log => 'notice', conf => $conf);
    my $value = sub {
        my ($number) = `curl -fsS --noproxy '*' http://127.0.0.1:$status/` =~ /^nginx_ssl_session_\Q$_[0]\E\{listen="127.0.0.1:$port",protocol="TLSv1.3"$_[1]\} (\S+)$/m;
        return $number // 0;
    };
    return ($port, $nginx, $value, $conf);
}

# A client by itself, and what it says in the end.
sub client {
    my ($port, @args) = @_;
    my $out = new_dir('quic') . '/out';
    my $process = SSLSession::Process->spawn(name => 'quic', out => $out,
        cmd => [ $python, root() . '/t/lib/quic_client.py', $port, '/', @args ]);
    return sub {
        $process->wait_exit(60);
        my ($json) = slurp($out) =~ /^(\{.*\})$/m;
        return $json ? decode_json($json) : { error => slurp($out) };
    };
}

sub visit { return client(@_)->() }

# A file with a session that is in the store; or would be, where nobody could wait for it.
sub stored {
    my ($port, $name, $stored) = (@_, $waits ? 'STORED' : 'SKIPPED');
    my $file = tmpdir() . "/$name";
    my $keys = $redis->keys;
    my $seen = visit($port, '--save', $file);
    is $seen->{body}, "h3 .   $stored", 'a full handshake' or diag explain $seen;
    wait_until { $redis->keys == $keys + ($waits ? 2 : 0) } 10, 'its sessions in the store';
    return $file;
}

subtest 'a session of another server' => sub {
    my ($first)  = site('store');
    my ($second, $nginx, $value) = site('store');
    my $session = stored($first, 'other');
    my $gets    = $relay->requests('GET');
    my $seen    = visit($second, '--session', $session);
    if ($waits) {
        is $seen->{body}, 'h3 r HIT store STORED', 'resumed' or diag explain $seen;
        ok $seen->{resumed}, 'the client says so, too';
        is $relay->requests('GET'), $gets + 1, 'one lookup';
        is $value->('handshakes_total', ',result="resumed"'), 1, 'counted';
        is $value->('fetches_total', ',status="SKIPPED"'), 0, 'nothing was skipped';
    } else {
        is $seen->{body}, 'h3 . SKIPPED  SKIPPED', 'a full handshake, whose session nobody could fetch' or diag explain $seen;
        is $relay->requests('GET'), $gets, 'no lookup';
        is scalar($redis->keys), 0, 'and nothing stored';
        is $value->('fetches_total', ',status="SKIPPED"'), 1, 'which is counted';
    }
};

subtest 'what nginx cannot do is said at the start' => sub {
    my (undef, undef, undef, $conf) = site('store');
    my $warning = qr/\[warn\] .*"ssl_session_fetch" asks zones of this machine only in handshakes of QUIC: this nginx does not let them wait in /;
    my $said = sub { my (undef, $said) = conf_test(conf => $_[0]); return scalar(() = $said =~ /$warning/g) };
    is $said->($conf), $waits ? 0 : 1, $waits ? 'nothing' : 'once';
    is $said->($conf =~ s/ quic;/ ssl reuseport;/r =~ s/listen 127\.0\.0\.1:\d+ ssl;\n//r), 0, 'not without QUIC';
    is $said->($conf =~ s/ssl_session_(fetch|store) +\K[^;]+/shared:near:1m/gr), 0, 'nor with zones alone';
};

subtest 'a zone of this machine answers at once' => sub {
    my ($port) = site('shared:near:1m store');
    my $session = stored($port, 'near', 'STORED');
    my $gets = $relay->requests('GET');
    my $seen = visit($port, '--session', $session);
    is $seen->{body}, 'h3 r HIT shared:near STORED', 'resumed' or diag explain $seen;
    is $relay->requests('GET'), $gets, 'and the store is not asked';
};

subtest 'a session where its client would be verified otherwise' => sub {
    my ($here, $there) = (free_port(), free_port());
    my $server = sub {
        my ($port, $more) = @_;
        my $listen = "listen 127.0.0.1:$port quic; listen 127.0.0.1:$port ssl;";
        return "server { $listen return 444; } server { $listen server_name localhost; $more location / { return 200 \"\$http3 \$ssl_session_reused\"; } }\n";
    };
    my $nginx = nginx(log => 'notice', conf => <<"CONF");
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.3;
    @{[ $server->($here, '') ]}
    @{[ $server->($there, "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};") ]}
CONF
    my $file = tmpdir() . '/verified';
    is visit($here, '--save', $file)->{body}, 'h3 .', 'a full handshake';
    is visit($here, '--session', $file)->{body}, 'h3 r', 'resumed at its own server';
    is visit($there, '--session', $file)->{body}, 'h3 .', 'and not at the other one';
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

if ($waits) {
    subtest 'a store that is 40 ms away' => sub {
        my ($port) = site('store');
        my @sessions = map { stored($port, "far-$_") } 1 .. 10;
        $relay->delay(40);
        my @seen = map { $_->() } map { client($port, '--session', $_) } @sessions;
        $relay->delay(0);
        is scalar(grep { ($_->{body} // '') eq 'h3 r HIT store STORED' } @seen), 10, 'all of ten are resumed' or diag explain \@seen;
        is scalar(grep { $_->{ms} < 40 } @seen), 0, 'and have waited';
    };

    subtest 'others are served while it waits' => sub {
        my ($port, $nginx) = site('store');
        my @sessions = map { stored($port, "held-$_") } 1 .. 4;
        my $gets = $relay->requests('GET');
        $relay->hold;
        my @clients = map { client($port, '--session', $_) } @sessions;
        wait_until { $relay->requests('GET') >= $gets + @sessions } 20, 'lookups';
        is tls_client(port => $port, protocol => 'TLSv1.3')->request, ' .   STORED', 'a client of TCP';
        is visit($port)->{body}, 'h3 .   STORED', 'and one of QUIC, meanwhile';
        $relay->release;
        my @seen = map { $_->() } @clients;
        is_deeply [ map { $_->{body} // $_->{error} } @seen ], [ ('h3 r HIT store STORED') x @seen ], 'all are resumed';
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };

    subtest 'a store that does not answer' => sub {
        $ms = 300 * patience();
        my ($port, $nginx) = site('store');
        my $session = stored($port, 'late');
        $relay->drop;
        my $seen = visit($port, '--session', $session);
        is $seen->{body} =~ s/ (?:STORED|DROPPED)$//r, 'h3 . TIMEOUT ', 'a full handshake' or diag explain $seen;
        $relay->drop(0);
    };

    subtest 'a client that has to be refused is so at once' => sub {
        plan skip_all => 'since 1.29 nginx tells nobody of it, but where it is patched'
            if nginx_version() >= 1_029_000 && !$ENV{TEST_NGINX_PATCHED};
        my ($port, $nginx) = site('store');
        my $session = stored($port, 'refused');
        my $gets    = $relay->requests('GET');
        my $seen    = visit($port, '--session', $session, '--no-alpn');
        is $relay->requests('GET'), $gets + 1, 'after a lookup';
        like $seen->{error}, qr/0x178/, 'no_application_protocol' or diag explain $seen;
        cmp_ok $seen->{ms}, '<', 2000 * patience(), 'long before a timeout';
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };

    subtest 'a client that vanishes' => sub {
        my ($port, $nginx) = site('store');
        my $session = stored($port, 'gone');
        my $fds  = $nginx->fds;
        my $gets = $relay->requests('GET');
        $relay->hold;
        my $out = new_dir('quic') . '/out';
        my $process = SSLSession::Process->spawn(name => 'quic', out => $out,
            cmd => [ $python, root() . '/t/lib/quic_client.py', $port, '/', '--session', $session ]);
        wait_until { $relay->requests('GET') > $gets } 20, 'a lookup';
        $process->kill_all;
        $relay->release;
        is visit($port, '--session', $session)->{body}, 'h3 r HIT store STORED', 'others are served';
        $nginx->quit(60);
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };

    subtest 'a reload ends a handshake that waits, and its worker' => sub {
        $ms = 4000 * patience();
        my ($port, $nginx) = site('store');
        my $session = stored($port, 'reloaded');
        my $gets    = $relay->requests('GET');
        $relay->hold;
        my $client = client($port, '--session', $session, '--early');
        wait_until { $relay->requests('GET') > $gets } 20, 'a lookup';
        $nginx->reload;
        my $seen = $client->();
        # Without an error; since 1.29 ngx_quic_close_connection() makes one of its own of that.
        like $seen->{error}, qr/0x[01] graceful shutdown/, 'nginx closes it' or diag explain $seen;
        wait_until { !$nginx->old_workers } 20, 'the end of the old worker';
        $relay->release;
        is visit($port, '--session', $session)->{body}, 'h3 r HIT store STORED', 'its client is resumed when it connects anew';
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };

    subtest 'single_use: a ticket is good for one handshake' => sub {
        my ($port, $nginx) = site('store single_use', early => 'on');
        my $session = stored($port, 'once');
        my @seen = map { visit($port, '--session', $session, '--early') } 1 .. 3;
        is_deeply [ map { $_->{body} =~ /^h3 (\S+ \S*)/ } @seen ], [ 'r HIT', '. MISS', '. MISS' ], 'taken once' or diag explain \@seen;
        # The layer that nginx has for older versions of OpenSSL takes no early data.
        is_deeply [ map { $_->{early} ? 1 : 0 } @seen ], [ $native ? 1 : 0, 0, 0 ], 'and so is its early data';
    };
}

done_testing;
