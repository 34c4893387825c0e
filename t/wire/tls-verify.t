# Which certificates of a backend's server are accepted, and what becomes of the others.

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
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status";
        }
    }
CONF
}

sub backend {
    my ($server, %more) = @_;
    my $ms  = 1000 * patience() . 'ms';
    my %all = (ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt},
        connect_timeout => $ms, fetch_timeout => $ms, %more);
    return "ssl_session_backend store { server $server; "
        . join(' ', map { "$_ $all{$_};" } grep { defined $all{$_} } sort keys %all) . ' }';
}

# One connection and one request: the outcome, and the client.
sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return ($status, $client);
}

# Waits until sessions are stored and found.
sub wait_for_hit {
    my ($port, $session) = @_;
    return wait_until {
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
        my $hit = ($client->request // '') eq 'HIT';
        $session = $client->session;
        $hit;
    } 15, 'a hit';
}

# A redis-server, started again for each certificate, and one nginx, which is reloaded.
my $redis   = redis(tls => 1);
my $address = '127.0.0.1:' . $redis->tls_port;
my $port    = free_port();
my $nginx   = nginx(conf => conf($port, 'store', backend($address)));
my $cert    = 'backend';

sub set_up {
    my ($new, %more) = @_;
    if ($new ne $cert) {
        # The worker that has a link to it is to say nothing about its end.
        $nginx->reload(conf($port, 'off', backend($address)));
        wait_until { !$nginx->old_workers } 10, 'exit of the old worker';
        $redis->restart(tls => { cert => $cert = $new });
    }
    my $from = $nginx->log_pos;
    my $server = delete $more{server} // $address;
    $nginx->reload(conf($port, 'store', backend($server, %more)));
    return $from;
}

my $both = spew(tmpdir() . '/both.crt', slurp($certs->{sub_crt}), slurp($certs->{ca_crt}));
my $host = 'localhost:' . $redis->tls_port;

# what, the server's certificate, directives
my @good = (
    ['an address in the certificate', 'backend'],
    ['a name in the certificate', 'backend', server => $host],
    ['ssl_name', 'backend', ssl_name => 'backend.example'],
    ['ssl_name with an IPv6 address', 'backend', ssl_name => '::1'],
    ['TLS 1.2', 'backend', ssl_protocols => 'TLSv1.2'],
    ['a revocation list that has it not', 'backend', ssl_crl => $certs->{crl_pem}],
    ['one CA of a file of several', 'backend', ssl_trusted_certificate => $certs->{ca_bundle_crt}],
    ['another one of them', 'backend_other', ssl_trusted_certificate => $certs->{ca_bundle_crt}],
    ['itself as what is trusted', 'backend_self', ssl_trusted_certificate => $certs->{backend_self_crt}],
    ['RSA', 'backend_rsa'],
    ['a chain of the default depth', 'backend_chain'],
    ['a chain, lists of both CAs', 'backend_chain', ssl_crl => $certs->{crl_pem}],
    ['a chain of depth 2', 'backend_deep', ssl_verify_depth => 2],
    ['an intermediate certificate of ours', 'backend_leaf', ssl_trusted_certificate => $both],
    ['the name of another', 'backend_wrong', ssl_name => 'elsewhere.example'],
    ['the address of another', 'backend_wrong', ssl_name => '127.0.0.99'],
    ['a wildcard', 'server', ssl_name => 'any.example.test'],
    map { [ "anything without ssl_verify: $_", $_, ssl_verify => 'off', ssl_trusted_certificate => undef ] }
        qw(backend_self backend_expired backend_other backend_revoked backend_wrong),
);

for my $case (@good) {
    my ($what, $cert, %more) = @$case;
    subtest "accepted: $what" => sub {
        my $from = set_up($cert, %more);
        my (undef, $client) = visit($port);
        wait_until { $redis->cmd('EXISTS', cache_key($client->session)) } 5, 'the session in the store';
        is +(visit($port, session => $client->session))[0], 'HIT', 'a hit';
        is_deeply [ $nginx->errors(warn => 1, from => $from) ], [], 'nothing in the log';
    };
}

my $session = do {
    my (undef, $client) = visit($port);
    $client->session;
};

# what, the server's certificate, the reason, directives; where the chain cannot be built to its end,
# versions of OpenSSL differ in which of their complaints they keep
my $no_issuer = qr/certificate verify error: \((?:20:unable to get local issuer certificate|21:unable to verify the first certificate)\)$doing$/;
my $too_long  = qr/certificate verify error: \((?:20:unable to get local issuer certificate|22:certificate chain too long)\)$doing$/;
my $number = sub { my ($n, $text) = @_; "certificate verify error: ($n:$text)" };
my @bad = (
    ['self-signed', 'backend_self', $number->(18, 'self-signed certificate')],
    ['self-signed, in TLS 1.2', 'backend_self', $number->(18, 'self-signed certificate'), ssl_protocols => 'TLSv1.2'],
    ['of another CA', 'backend_other', $no_issuer],
    ['what the system does not trust', 'backend', qr/\((?:19|20):/, ssl_trusted_certificate => undef],
    ['expired', 'backend_expired', $number->(10, 'certificate has expired')],
    ['revoked', 'backend_revoked', $number->(23, 'certificate revoked'), ssl_crl => $certs->{crl_pem}],
    ['no list of its CA', 'backend_other', $number->(3, 'unable to get certificate CRL'),
        ssl_trusted_certificate => $certs->{other_ca_crt}, ssl_crl => $certs->{crl_pem}],
    ['without its intermediate certificate', 'backend_leaf', $no_issuer],
    ['a chain longer than depth 0', 'backend_chain', $too_long, ssl_verify_depth => 0],
    ['a chain longer than the default depth', 'backend_deep', $too_long],
    ['of another address', 'backend_wrong', 'certificate does not match "127.0.0.1"'],
    ['of another host', 'backend_wrong', 'certificate does not match "localhost"', server => $host],
    ['not of ssl_name', 'backend', 'certificate does not match "else.example"', ssl_name => 'else.example'],
    ['not of the address in ssl_name', 'backend', 'certificate does not match "127.0.0.2"', ssl_name => '127.0.0.2'],
    ['a wildcard of another level', 'server', 'certificate does not match "a.b.example.test"', ssl_name => 'a.b.example.test'],
);

for my $case (@bad) {
    my ($what, $cert, $reason, %more) = @$case;
    subtest "refused: $what" => sub {
        my $from  = set_up($cert, %more);
        my $links = $redis->info('total_connections_received');
        # The one that begins it does not wait until it is refused.
        visit($port);
        $nginx->log_like(qr/ is down: /, from => $from);
        is +(visit($port, session => $session))[0], 'DOWN', 'full handshakes' for 1 .. 20;
        cmp_ok $redis->info('total_connections_received') - $links, '<=', 10, 'it is not asked each time';
        my ($line, @more) = $nginx->errors(from => $from, warn => 1, except => qr/SSL sessions? not stored in "store"/);
        is_deeply \@more, [], 'one line';
        my $text = ref $reason ? $reason : qr/\Q$reason\E$doing$/;
        like $line, qr/\[error\] \d+#\d+: redis \Q$address\E is down: SSL handshake failed: .*$text/, 'that says why';
        is scalar(() = $line =~ /\d:\d{4,5}\b/g), 1, 'with the address once';
        is $redis->calls($_), 0, "no $_" for $what eq 'expired' ? qw(set get) : ();
    };
}

subtest 'a lookup that waits meanwhile is a full handshake' => sub {
    set_up('backend_self');
    is +(visit($port, session => $session))[0], 'ERROR', 'outcome';
};

subtest 'a server that gets a right certificate is used again, without a reload' => sub {
    my $from = set_up('backend_self');
    visit($port);
    $nginx->log_like(qr/ is down: /, from => $from);
    $redis->restart(tls => { cert => $cert = 'backend' });
    wait_for_hit($port, $session);
    $nginx->log_like(qr/\[notice\] .* redis \Q$address\E is up again/, from => $from);
    is $nginx->log_count(qr/ is down: /, from => $from), 1, 'one line when it went down';
};

subtest 'nothing is said to a server that is not to be trusted' => sub {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $plain = relay(upstream => $redis->address);
        my $tls   = tls_relay(upstream => '127.0.0.1:' . $plain->port, cert => 'backend_self', protocol => $protocol);
        my $more  = backend($tls->address, password_file => spew(tmpdir() . '/pass', 'secret'));
        my $nginx = nginx(conf => conf(my $port = free_port(), 'store', $more));
        visit($port);
        $nginx->log_like(qr/certificate verify error: \(18:/);
        # It is the client's side that refuses, and after its last message.
        my ($seen) = $tls->wait_handshakes(1);
        is $seen->{error}, undef, "$protocol: for the server the handshake is over";
        is_deeply [ $plain->requests ], [], 'not the password, nor a session';
        $nginx->quit;
        is_deeply [ $plain->requests ], [], 'nor at the end';
    }
};

subtest 'openssl s_server' => sub {
    my $server = s_server(cert => 'backend_expired');
    my $nginx  = nginx(conf => conf(my $port = free_port(), 'store', backend('127.0.0.1:' . $server->port)));
    visit($port);
    $nginx->log_like(qr/ is down: SSL handshake failed: certificate verify error: \(10:certificate has expired\)$doing$/);
    unlike $server->output, qr/^\*/m, 'is told nothing';
    $nginx->quit;
    is_deeply [ $nginx->errors(except => qr/ is down: /) ], [], 'nothing else in the log';
};

$nginx->quit;
is_deeply [ $nginx->errors(except => qr/ is down: /) ], [], 'nothing else in the log';

done_testing;
