# Virtual servers: whatever nginx by itself does with a session of one at another, it does with
# the module as well, but for sessions of clients that have shown a certificate: those are good for
# the name that they were made for (t/wire/verify.t says why).

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use IO::Socket::INET;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my @protocols = qw(TLSv1.2 TLSv1.3);

# By name; each of two nginx has these on ports of its own.
my @listen = qw(names reject plain);
my @port   = map { my %port = map { $_ => free_port() } @listen; \%port } 1, 2;

sub conf {
    my ($port, $more) = @_;
    my $answer = 'location / { return 200 "$server_name $ssl_session_reused $ssl_client_verify\n"; }';
    return <<"CONF";
    $more
    ssl_session_tickets   off;
    ssl_protocols         TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name first.example.test;
        ssl_certificate     $certs->{rsa_crt};
        ssl_certificate_key $certs->{rsa_key};
        $answer
    }
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name second.example.test;
        ssl_certificate     $certs->{ec_crt};
        ssl_certificate_key $certs->{ec_key};
        $answer
    }
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name verifies.example.test;
        ssl_certificate        $certs->{ec_crt};
        ssl_certificate_key    $certs->{ec_key};
        ssl_verify_client      on;
        ssl_client_certificate $certs->{ca_crt};
        $answer
    }
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name trusts-another.example.test;
        ssl_certificate        $certs->{ec_crt};
        ssl_certificate_key    $certs->{ec_key};
        ssl_verify_client      on;
        ssl_client_certificate $certs->{rsa2_crt};
        $answer
    }
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name asks.example.test;
        ssl_certificate        $certs->{ec_crt};
        ssl_certificate_key    $certs->{ec_key};
        ssl_verify_client      optional;
        ssl_client_certificate $certs->{ca_crt};
        $answer
    }
    # It has no certificate of its own: the first one's is used.
    server {
        listen 127.0.0.1:$port->{names} ssl;
        server_name bare.example.test;
        $answer
    }
    server {
        listen 127.0.0.1:$port->{reject} ssl;
        ssl_reject_handshake on;
        location / { return 403; }
    }
    server {
        listen 127.0.0.1:$port->{reject} ssl;
        server_name first.example.test;
        ssl_certificate     $certs->{rsa_crt};
        ssl_certificate_key $certs->{rsa_key};
        $answer
    }
    server {
        listen 127.0.0.1:$port->{plain};
        listen 127.0.0.1:$port->{names} ssl;
        server_name both.example.test;
        ssl_certificate     $certs->{rsa2_crt};
        ssl_certificate_key $certs->{rsa2_key};
        $answer
    }
CONF
}

my $plain = nginx(module => 0, conf => conf($port[0], 'ssl_session_cache shared:vhosts:1m;'));
my $nginx = nginx(conf => conf($port[1], <<"CONF"));
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF

my %cert = (
    none    => [],
    ours    => [ cert => $certs->{client_crt}, key => $certs->{client_key} ],
    foreign => [ cert => $certs->{rsa2_crt},   key => $certs->{rsa2_key} ],
);

# One visit: what the client saw, and the session to offer next time. Words of OpenSSL are left out.
sub visit {
    my ($port, $listen, $protocol, $name, $cert, @more) = @_;
    my $client = tls_client(port => $port->{$listen}, protocol => $protocol, @{ $cert{$cert} },
        (defined $name ? (sni => "$name.example.test") : ()), @more);
    my ($head, $body) = $client->request;
    return (defined $client->alert ? 'alert ' . $client->alert : 'refused') if !defined $head;
    my ($status) = $head =~ m{^HTTP/1\.1 (\d+)};
    my $said = join ' ', $client->reused ? 'reused' : 'new', $status, $status == 200 ? $body =~ s/\n//r : ();
    return ($said, ($client->sessions)[-1]);
}

# A session's first visit, and its second, at both of them: [first, second] each.
sub both {
    my ($protocol, $from, $to) = @_;
    my @said;
    for my $port (@port) {
        my ($first, $session) = visit($port, 'names', $protocol, @$from);
        # nginx has those removed whose clients it did not let in.
        if ($first =~ / 200 / && $port == $port[1]) {
            my $key = cache_key($session);
            wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
        }
        my ($second) = defined $session
            ? visit($port, 'names', $protocol, @$to, session => $session) : 'no session';
        push @said, [ $first, $second ];
    }
    return @said;
}

for my $protocol (@protocols) {
    for my $name (undef, qw(first second bare both)) {
        subtest "$protocol: resumption at " . ($name // 'the server for no name') => sub {
            my ($by_itself, $ours) = both($protocol, [ $name, 'none' ], [ $name, 'none' ]);
            my $is = ($name // 'first') . '.example.test';
            is_deeply $ours, [ "new 200 $is . NONE", "reused 200 $is r NONE" ], 'new, then reused';
            is_deeply $by_itself, $ours, 'as nginx by itself';
        };
    }

    subtest "$protocol: resumption at the one that verifies clients" => sub {
        my ($by_itself, $ours) = both($protocol, [ 'verifies', 'ours' ], [ 'verifies', 'ours' ]);
        is_deeply $ours, [ 'new 200 verifies.example.test . SUCCESS', 'reused 200 verifies.example.test r SUCCESS' ],
            'new, then reused, and the client is known';
        is_deeply $by_itself, $ours, 'as nginx by itself';
    };

    subtest "$protocol: a session of one server, offered to each other one" => sub {
        my @visits = ([qw(first none)], [qw(second none)], [qw(bare none)], [qw(both none)], [qw(verifies ours)],
            [qw(verifies none)], [ 'trusts-another', 'foreign' ], [ 'trusts-another', 'none' ], [qw(asks none)], [qw(asks ours)]);
        for my $from (@visits) {
            for my $to (@visits) {
                my ($by_itself, $ours) = both($protocol, $from, $to);
                my $what = "@$from, @$to";
                # Where clients are verified otherwise, or the name is another one in TLS 1.2, nginx by itself
                # may resume all the same.
                if ($ours->[1] !~ /^new/ || $by_itself->[1] =~ /^new/) {
                    is_deeply $ours, $by_itself, "$what: as nginx by itself";
                } else {
                    isnt "@$from", "@$to", "$what: another server or another client";
                    my ($full) = visit($port[1], 'names', $protocol, @$to);
                    is $ours->[1], $full, "$what: a full handshake";
                }
                next if $to->[0] !~ /^(?:verifies|trusts-another)$/ || $to->[1] ne 'none' || $from->[0] eq $to->[0];
                unlike $ours->[1], qr/ 200 /, "$what: verification is not bypassed";
            }
        }
    };

    subtest "$protocol: ssl_reject_handshake" => sub {
        my @said;
        for my $port (@port) {
            my ($first, $session) = visit($port, 'reject', $protocol, 'first', 'none');
            if ($port == $port[1]) {
                my $key = cache_key($session);
                wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
            }
            push @said, [
                $first,
                (map { (visit($port, 'reject', $protocol, $_, 'none'))[0] } undef, 'other'),
                map { (visit($port, 'reject', $protocol, $_, 'none', session => $session))[0] }
                    'first', undef, 'other',
            ];
        }
        my ($by_itself, $ours) = @said;
        is_deeply [ @$ours[ 0 .. 2 ] ], [ 'new 200 first.example.test . NONE', ('alert 112') x 2 ],
            'a handshake is refused but for that name';
        # nginx by itself resumes sessions of TLS 1.2 by other names, against RFC 6066, section 3.
        @$by_itself[ 4, 5 ] = ('alert 112') x 2 if $protocol eq 'TLSv1.2';
        is_deeply $ours, $by_itself, 'with a session: as nginx by itself';
    };
}

subtest 'a server without TLS' => sub {
    my $gets = $relay->requests;
    my $sock = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port[1]{plain}");
    print {$sock} "GET / HTTP/1.0\r\n\r\n";
    like do { local $/; <$sock> }, qr{^HTTP/1\.1 200 .*\r\n\r\nboth\.example\.test  \n$}s, 'answers';
    is scalar($relay->requests), $gets, 'and has nothing to do with sessions';
};

$_->quit for $nginx, $plain;
is_deeply [ $nginx->errors ], [], 'no error in the log';
is_deeply [ $plain->errors ], [], 'nor in that of nginx by itself';

done_testing;
