# A ClientHello in whatever pieces it comes, and of whatever size, is looked up all the same.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my $port  = free_port();

sub conf {
    my ($fetch) = @_;
    return <<"CONF";
    $fetch
    ssl_session_tickets   off;
    ssl_protocols         TLSv1.2 TLSv1.3;
    ssl_certificate       $certs->{rsa_crt};
    ssl_certificate_key   $certs->{rsa_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
}

my $nginx = nginx(conf => conf(<<"CONF"));
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF

# The same server as nginx is by itself.
my $plain_port = free_port();
(my $plain_conf = conf('')) =~ s/127\.0\.0\.1:$port/127.0.0.1:$plain_port/;
$plain_conf =~ s/ \\\$ssl_session_fetch_status| \$ssl_session_fetch_status//;
my $plain = nginx(module => 0, conf => $plain_conf);

sub session {
    my ($protocol) = @_;
    my $client = tls_client(port => $port, protocol => $protocol);
    $client->request // diag $client->error;
    my ($session) = ($client->sessions)[-1];
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';
    return $session;
}

my @cuts = ({ segment => 1 }, { segment => 100 }, { records => 3 }, { segment => 1, records => 3 }, { records => 1 });

# What openssl s_client offers when its ClientHello, by names for ALPN, has about so many bytes.
sub large {
    my ($size) = @_;
    return args => [ '-alpn', join ',', 'http/1.1', map { sprintf '%03d%s', $_, 'x' x 197 } 1 .. $size / 201 ];
}

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    my %arg = (port => $port, protocol => $protocol);

    for my $cut (@cuts) {
        my $how = join ', ', map { "$_ $cut->{$_}" } sort keys %$cut;
        subtest "$protocol, $how" => sub {
            my $session = session($protocol);
            my $before  = $relay->requests('GET');
            my $client  = tls_client(%arg, %$cut);
            is $client->request, ". \n", 'no session: full handshake' or diag $client->error;
            is scalar($relay->requests('GET')), $before, 'no lookup';

            $client = tls_client(%arg, %$cut, session => $session);
            is $client->request, "r HIT\n", 'a session: resumed' or diag $client->error;
            is scalar($relay->requests('GET')), $before + 1, 'one lookup';

            # By now redis has forgotten it.
            $redis->cmd('FLUSHALL');
            $client = tls_client(%arg, %$cut, session => $session);
            is $client->request, ". MISS\n", 'an unknown one: full handshake' or diag $client->error;
            is scalar($relay->requests('GET')), $before + 2, 'one lookup';
        };
    }

    subtest "$protocol: nothing is looked up before the last byte has come" => sub {
        my $session = session($protocol);
        my $before  = $relay->requests('GET');
        my $client  = tls_client(%arg, session => $session);
        my $hello   = $client->client_hello;
        $client->send_raw(substr $hello, 0, -1);
        # The worker has seen it once it has answered somebody who came later.
        like tls_client(%arg)->request, qr/^\. $/, 'another one is served';
        is scalar($relay->requests('GET')), $before, 'no lookup';
        $client->send_raw(substr $hello, -1);
        $client->{started} = 1;
        is $client->request, "r HIT\n", 'resumed after it' or diag $client->error;
        is scalar($relay->requests('GET')), $before + 1, 'one lookup';
    };

    for my $case ([ 15_000, 'whole' ], [ 15_000, 'in segments', chunk => [ 1000, 'request' ] ],
                  [ 15_000, 'in small records', split_records => 100 ], [ 30_000, 'whole' ]) {
        my ($size, $how, %cut) = @$case;
        subtest "$protocol: $size bytes, $how" => sub {
            my $front = relay(upstream => "127.0.0.1:$port", %cut);
            my $file  = tmpdir() . "/$protocol.pem";
            # Its lookup comes behind the store: both go through one connection.
            s_client(port => $port, protocol => $protocol, sess_out => $file);
            my $before = $relay->requests('GET');
            my $client = s_client(
                port => $front->port, protocol => $protocol, sess_in => $file, large($size));
            is $client->response, "r HIT\n", 'resumed';
            is scalar($relay->requests('GET')), $before + 1, 'one lookup';
            cmp_ok length(join '', map { @$_ } $front->requests), '>', $size, 'it was that large';
            $front->stop;
        };
    }

    # More than is read ahead of OpenSSL, which goes on without a lookup.
    for my $case ([ 15_000, 'in records of one byte', split_records => 1 ], [ 60_000, 'whole' ]) {
        my ($size, $how, %cut) = @$case;
        subtest "$protocol: $size bytes, $how" => sub {
            my $front = relay(upstream => "127.0.0.1:$port", %cut);
            my $file  = tmpdir() . "/$protocol.pem";
            s_client(port => $port, protocol => $protocol, sess_out => $file);
            my $before = $relay->requests('GET');
            my $client = s_client(
                port => $front->port, protocol => $protocol, sess_in => $file, large($size));
            if (nginx_patched()) {
                is $client->response, "r HIT\n", 'resumed: OpenSSL reads it';
            } else {
                is $client->response, ". SKIPPED\n", 'full handshake: nobody was asked';
                is scalar($relay->requests('GET')), $before, 'no lookup';
            }
            $front->stop;
        };
    }

    subtest "$protocol: more than OpenSSL allows" => sub {
        my $session = session($protocol);
        my $before  = $relay->requests('GET');
        my $hello   = tls_client(%arg, session => $session)->client_hello;
        # The handshake message, made longer.
        my ($type, $length, $body) = unpack 'x5 C a3 a*', $hello;
        $body .= "\0" x 140_000;
        my $message = pack('C', $type) . substr(pack('N', length $body), 1) . $body;
        for my $size (16_384, 1000) {
            my $records = '';
            for (my $rest = $message; length $rest; ) {
                my $part = substr $rest, 0, $size, '';
                $records .= "\x16\x03\x01" . pack('n', length $part) . $part;
            }
            my @said = map {
                my $client = tls_client(port => $_);
                # nginx may have closed before it has got all.
                $client->send_raw($records);
                $client->wait_closed;
                unpack 'H*', $client->received;
            } $plain_port, $port;
            is $said[0], '15030300020' . '22f', "records of $size bytes: refused"
                if $size == 16_384;
            is $said[1], $said[0], "records of $size bytes: in the same words as nginx by itself";
        }
        is scalar($relay->requests('GET')), $before, 'no lookup';
    };
}

for ($nginx, $plain) {
    $_->quit;
    is_deeply [ $_->errors(except => qr/excessive message size/) ], [], 'no other error in the log';
}

done_testing;
