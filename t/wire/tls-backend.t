# TLS to the server of a backend: that it works, what is said in it, and how it ends.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

# http{} with a TLS server on $port whose sessions are in $target.
sub conf {
    my ($port, $target, @more) = @_;
    return <<"CONF";
    @more
    ssl_session_fetch $target;
    ssl_session_store $target;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status";
        }
    }
CONF
}

# A backend over TLS with limits that suit a slow machine; more, or others, as given.
sub backend {
    my ($server, %more) = @_;
    my $ms  = 1000 * patience() . 'ms';
    my %all = (ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt},
        connect_timeout => $ms, fetch_timeout => $ms, %more);
    return "ssl_session_backend store { server $server; "
        . join(' ', map { "$_ $all{$_};" } grep { defined $all{$_} } sort keys %all) . ' }';
}

# nginx whose sessions are at that server, and its port.
sub nginx_with {
    my ($server, %more) = @_;
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'store', backend($server, %more)));
    return ($nginx, $port);
}

# One connection and one request: the outcome, and the client.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return ($status, $client);
}

# A session that is stored, in $redis (in its database $db).
sub stored_session {
    my ($port, $redis, $db) = @_;
    my (undef, $client) = visit($port);
    my $session = $client->session;
    my $stored  = $db
        ? sub { ($redis->info("db$db") // '') =~ /keys=\d/ }
        : sub { $redis->cmd('EXISTS', cache_key($session)) };
    wait_until { $stored->() } 5, 'the session in the store';
    return $session;
}

# That a session is stored, and found again.
sub works {
    my ($port, $redis, $what, $db) = @_;
    my $session = stored_session($port, $redis, $db);
    is +(visit($port, session => $session))[0], 'HIT', "$what: a hit";
    return $session;
}

sub lines_are {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing else in the log';
}

subtest 'rediss:// goes by what the system trusts' => sub {
    my $redis = redis(tls => 1, users => { nginx => '>secret ~tls:* +@all' });
    my ($port, $address) = (free_port(), '127.0.0.1:' . $redis->tls_port);
    my $nginx = nginx(env => { SSL_CERT_FILE => $certs->{ca_crt} }, conf => conf($port, $redis->tls_url));
    works($port, $redis, 'alone');
    lines_are($nginx);
    $nginx->reload(conf($port, "rediss://nginx:secret\@$address/3"));
    works($port, $redis, 'with user and database', 3);
    my ($link) = grep { $_->{user} eq 'nginx' } $redis->clients;
    is $link->{db}, 3, 'as that user, in that database';
    lines_are($nginx);

    $nginx = nginx(env => { SSL_CERT_FILE => $certs->{other_ca_crt} }, conf => conf($port = free_port(), $redis->tls_url));
    visit($port);
    $nginx->log_like(qr/redis \Q$address\E is down: SSL handshake failed: certificate verify error: \((?:19|20):/);
};

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    for my $socket (qw(TCP unix)) {
        subtest "$protocol over $socket: nothing is readable on the wire" => sub {
            my $redis = redis(tls => { protocols => $protocol }, users => { nginx => '>secret ~tls:* +@all' });
            my $relay = relay(upstream => '127.0.0.1:' . $redis->tls_port, unix => $socket eq 'unix');
            my $server = $relay->unix ? 'unix:' . $relay->unix : '127.0.0.1:' . $relay->port;
            my ($nginx, $port) = nginx_with($server, username => 'nginx', client_name => 'edge',
                database => 2, password_file => spew(tmpdir() . '/pass', "secret\n"));
            works($port, $redis, $protocol, 2);
            my ($link) = grep { $_->{name} eq 'edge' } $redis->clients;
            is_deeply [ @$link{qw(user db)} ], [ 'nginx', 2 ], 'user and database';
            my $bytes = join '', map { @$_ } $relay->requests;
            like $bytes, qr/^\x16\x03/, 'TLS from the first byte on';
            unlike $bytes, qr/tls:|secret|edge|nginx|GET|SET|AUTH/, 'the rest is sealed';
            is $relay->stats->{accepted}, 2, 'one connection for lookups, and one for stores';
            lines_are($nginx);
        };
    }
}

subtest 'two nginx share sessions through it' => sub {
    my $redis = redis(tls => 1);
    my @nginx = map { [ nginx_with('localhost:' . $redis->tls_port) ] } 1 .. 2;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        for my $from (0, 1) {
            my (undef, $client) = visit($nginx[$from][1], protocol => $protocol);
            my ($session) = $client->sessions;
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
            my ($status) = visit($nginx[ 1 - $from ][1], protocol => $protocol, session => $session);
            is $status, 'HIT', "$protocol, from $from to " . (1 - $from);
        }
    }
    lines_are($_->[0]) for @nginx;
};

subtest 'memcached behind TLS' => sub {
    my $memcached = memcached();
    my $tls = tls_relay(upstream => $memcached->address);
    my ($nginx, $port) = nginx_with($tls->address, protocol => 'memcached');
    my (undef, $client) = visit($port);
    my $session = $client->session;
    wait_until { (visit($port, session => $session))[0] eq 'HIT' } 5, 'a hit';
    is $_->{error}, undef, 'handshake' for $tls->handshakes;
    lines_are($nginx);
};

subtest 'the name is sent unless that is off, and never an address' => sub {
    my $redis = redis();
    my $tls   = tls_relay(upstream => $redis->address);
    my ($ip, $host) = ($tls->address, 'localhost:' . $tls->port);
    my $port = free_port();
    my $nginx;
    my $n = 0;
    for my $case (
        [ $host, {}, 'localhost' ],
        [ $host, { ssl_server_name => 'on' }, 'localhost' ],
        [ $host, { ssl_server_name => 'off' }, undef ],
        [ $ip, {}, undef ],
        [ $ip, { ssl_name => 'backend.example' }, 'backend.example' ],
        [ $ip, { ssl_name => 'backend.example.' }, 'backend.example' ],
        [ $ip, { ssl_name => 'backend.example', ssl_server_name => 'off' }, undef ],
        [ $host, { ssl_name => '127.0.0.1' }, undef ],
        [ $host, { ssl_name => '[::1]' }, undef ],
    ) {
        my ($server, $more, $sni) = @$case;
        my $conf = conf($port, 'store', backend($server, %$more));
        $nginx = $nginx ? $nginx->reload($conf) : nginx(conf => $conf);
        my $what = join ' ', $server =~ /(.*):/, map { "$_ $more->{$_}" } sort keys %$more;
        works($port, $redis, $what);
        # One for stores, and one for lookups.
        my $seen = ($tls->wait_handshakes($n += 2))[-1];
        is $seen->{sni}, $sni, "$what: " . ($sni // 'none sent');
    }
    is scalar($tls->handshakes), $n, 'two handshakes each';
    lines_are($nginx);

    for my $case ([ $host, 'localhost' ], [ $ip, undef ]) {
        my ($server, $sni) = @$case;
        my $port = free_port();
        my $nginx = nginx(env => { SSL_CERT_FILE => $certs->{ca_crt} }, conf => conf($port, "rediss://$server"));
        works($port, $redis, "rediss://$server");
        is +($tls->wait_handshakes(++$n))[-1]{sni}, $sni, 'the same of a URL: ' . ($sni // 'none sent');
        lines_are($nginx);
    }
};

subtest 'several replies in one TLS record, and several records at once' => sub {
    for my $method (event_methods()) {
        my $redis = redis();
        my $relay = relay(upstream => $redis->address);
        my $tls   = tls_relay(upstream => '127.0.0.1:' . $relay->port);
        my $port  = free_port();
        my $nginx = nginx(method => $method, conf => conf($port, 'store',
            backend($tls->address, fetch_timeout => '10s'), 'ssl_verify_client optional_no_ca;'));
        for my $cert (undef, 'client_big') {
            my %cert = $cert ? (cert => $certs->{"${cert}_crt"}, key => $certs->{"${cert}_key"}) : ();
            # The second time these are some 40 KB: more than one record, and than is read at once.
            my @sessions = map {
                my (undef, $client) = visit($port, %cert);
                my $session = $client->session;
                wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
                $session;
            } 1 .. 10;
            my $length = 0;
            $length += length $redis->cmd('GET', cache_key($_)) for @sessions;
            cmp_ok $length, '>', 20_000, 'more than a record' if $cert;
            $relay->hold;
            my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_, %cert)->start } @sessions;
            wait_until { $relay->stats->{reply} > $length } 10, 'all replies';
            # The TLS side finds them all when it goes on.
            $tls->pause;
            $relay->release;
            wait_until { !$relay->stats->{reply} } 5, 'them to be passed on';
            $tls->resume;
            for my $client (@clients) {
                is $client->request, 'HIT', "$method: a hit";
                is $client->reused, 1, 'resumed';
            }
        }
        is scalar($tls->handshakes), 2, 'all on one connection, and what was stored on another';
        lines_are($nginx);
    }
};

subtest 'records that come in pieces' => sub {
    my $redis = redis(tls => 1);
    my $relay = relay(upstream => '127.0.0.1:' . $redis->tls_port, chunk => 3);
    $relay->chunk(5, 'request');
    my ($nginx, $port) = nginx_with('127.0.0.1:' . $relay->port, connect_timeout => '30s', fetch_timeout => '10s');
    works($port, $redis, 'in pieces');
    lines_are($nginx);
};

# --- client certificates ---

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: a server that wants a certificate" => sub {
        my $redis = redis();
        my $tls   = tls_relay(upstream => $redis->address, clients => 'yes', protocol => $protocol);
        my %own   = (ssl_certificate => $certs->{client_crt}, ssl_certificate_key => $certs->{client_key});
        my ($nginx, $port) = nginx_with($tls->address, %own);
        works($port, $redis, 'with a certificate');
        is +($tls->handshakes)[-1]{client_cert}, '/CN=client', 'it is shown';
        $nginx->reload(conf($port, 'store', backend($tls->address, %own,
            ssl_certificate_key => $certs->{client_enc_key}, ssl_password_file => $certs->{client_pass})));
        works($port, $redis, 'with an encrypted key');
        is +($tls->handshakes)[-1]{client_cert}, '/CN=client', 'it is shown';
        lines_are($nginx);

        my $session = stored_session($port, $redis);
        my %fault = (
            'without one' => [ {}, $protocol eq 'TLSv1.2'
                ? qr/(?:sslv3|tls) alert handshake failure.*SSL alert number 40/
                : qr/tlsv13 alert certificate required.*SSL alert number 116/ ],
            'of another CA' => [ { ssl_certificate => $certs->{client_other_crt}, ssl_certificate_key => $certs->{client_other_key} },
                qr/tlsv1 alert unknown ca.*SSL alert number 48/ ],
        );
        # In TLS 1.3 the server says so when the handshake is over for the client.
        my $where = $protocol eq 'TLSv1.2'
            ? qr/SSL handshake failed: SSL_do_handshake\(\) failed/ : qr/SSL_read\(\) failed/;
        for my $what (sort keys %fault) {
            my ($more, $text) = @{ $fault{$what} };
            $nginx->reload(conf($port, 'store', backend($tls->address, %$more)));
            my $from = $nginx->log_pos;
            like +(visit($port, session => $session))[0], qr/^(?:ERROR|DOWN)$/, "$what: a full handshake";
            $nginx->log_like(qr/redis \Q${\ $tls->address}\E is down: $where \(SSL: error:\w+:SSL routines:\w*:$text\)$doing$/, from => $from);
            is +(visit($port, session => $session))[0], 'DOWN', 'then it is not asked' for 1 .. 3;
            is $nginx->log_count(qr/\[error\]/, from => $from), 1, 'one line';
        }
        $nginx->reload(conf($port, 'store', backend($tls->address, %own)));
        works($port, $redis, 'with a certificate again');
    };
}

subtest 'redis-server that wants a certificate' => sub {
    my $redis = redis(tls => { clients => 'yes' });
    my $address = '127.0.0.1:' . $redis->tls_port;
    my ($nginx, $port) = nginx_with($address,
        ssl_certificate => $certs->{client_crt}, ssl_certificate_key => $certs->{client_key});
    works($port, $redis, 'with a certificate');
    lines_are($nginx);
    $nginx->reload(conf($port, 'store', backend($address)));
    visit($port);
    $nginx->log_like(qr/redis \Q$address\E is down: .*certificate required/);
};

# --- what a server may do later ---

# The s_server answers, and nginx has read it: what is said next is an order of its own.
sub answer {
    my ($server, $nginx, $bytes) = @_;
    my $from = $nginx->log_pos;
    $server->say($bytes);
    $nginx->log_like(qr/\[debug\] .*SSL_read: ${\ length $bytes}$/, from => $from);
}

sub count { my ($server, $pattern) = @_; return scalar(() = $server->output =~ /$pattern/mg) }

for my $case (['TLSv1.3', 'k'], ['TLSv1.3', 'K'], ['TLSv1.2', 'r']) {
    my ($protocol, $order) = @$case;
    my $what = $order eq 'r' ? 'a new handshake' : 'new keys' . ($order eq 'K' ? ' for both sides' : '');
    subtest "$protocol: $what in the middle" => sub {
        my $server = s_server(protocol => $protocol);
        my ($nginx, $port) = nginx_with('127.0.0.1:' . $server->port, fetch_timeout => '10s', store_timeout => '10s');
        plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
        my $stored = 0;
        my $store  = sub {
            visit($port);
            $stored++;
            wait_until { count($server, '^SET') == $stored } 5, 'the store';
            answer($server, $nginx, "+OK\r\n");
        };
        for my $n (1 .. 2) {
            $store->();
            $server->say("$order\n");
            wait_until { count($server, '^SSL_do_handshake -> 1') == $n } 5, 'the change';
            $store->();
            pass 'it goes on';
        }
        is count($server, '^CIPHER is'), 1, 'one connection';
        lines_are($nginx);
    };
}

# --- its end ---

# What the worker does at its end: 'quit', or 'reload', where another one follows.
sub leave {
    my ($nginx, $how) = @_;
    return $nginx->quit if $how eq 'quit';
    $nginx->reload;
    wait_until { !$nginx->old_workers } 10, 'exit of the old worker';
}

for my $how (qw(quit reload)) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$how, $protocol: an idle link is closed in order" => sub {
            my $server = s_server(protocol => $protocol);
            my ($nginx, $port) = nginx_with('127.0.0.1:' . $server->port, store_timeout => '10s');
            plan skip_all => 'nginx without --with-debug' if $nginx->log !~ /\[debug\]/;
            visit($port);
            wait_until { $server->output =~ /^SET/m } 5, 'the store';
            answer($server, $nginx, "+OK\r\n");
            leave($nginx, $how);
            # What it says of a close_notify; without one it would be ERROR.
            wait_until { $server->output =~ /^(?:DONE|ERROR)/m } 5, 'the end';
            like $server->output, qr/^DONE/m, 'close_notify';
            lines_are($nginx);
        };
    }

    subtest "$how: what is to be stored is stored first" => sub {
        my $redis = redis(tls => 1);
        my $relay = relay(upstream => '127.0.0.1:' . $redis->tls_port);
        my ($nginx, $port) = nginx_with('127.0.0.1:' . $relay->port, connect_timeout => '10s', store_timeout => '10s');
        # In the TLS handshake, and in use.
        for my $way ('handshake', 'busy') {
            $relay->hold;
            my (undef, $client) = visit($port);
            wait_until { $relay->stats->{reply} > 0 } 5, 'a held reply';
            my ($worker) = $nginx->workers;
            $way eq 'busy' && $how eq 'quit' ? $nginx->signal('QUIT') : $nginx->reload;
            wait_until { grep { $_ == $worker } $nginx->old_workers } 5, 'the worker to leave';
            ok !$redis->cmd('EXISTS', cache_key($client->session)), "$way: not stored yet" if $way eq 'handshake';
            $relay->release;
            wait_until { $redis->cmd('EXISTS', cache_key($client->session)) } 5, 'the session in the store';
            wait_until { !grep { $_ == $worker } $nginx->process->group } 5, 'exit of the worker';
            pass "$way: stored, then it left";
            # Which has its link ready then.
            works($port, $redis, 'the next worker') if $way eq 'handshake';
        }
        lines_are($nginx);
    };
}

done_testing;
