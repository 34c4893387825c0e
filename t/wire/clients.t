# Clients that people use resume their sessions, over HTTP/1.1 and HTTP/2.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use Test::More;

my $certs = certs();
my $redis = redis();
# Each lookup takes some time, so each resumed handshake has been suspended.
my $relay = relay(upstream => '127.0.0.1:' . $redis->port, delay => 20);
my @kinds     = qw(rsa ec);
my @protocols = qw(TLSv1.2 TLSv1.3);
my %port      = map { $_ => free_port() } @kinds;

my $servers = '';
for my $kind (@kinds) {
    $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port{$kind} ssl http2;
        ssl_certificate     $certs->{"${kind}_crt"};
        ssl_certificate_key $certs->{"${kind}_key"};
        location / {
            return 200 "=\$server_protocol \$ssl_protocol \$ssl_session_reused \$ssl_session_fetch_status=\\n";
        }
    }
CONF
}
my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    # Each request has a connection, and a handshake, of its own.
    keepalive_requests  1;
$servers
CONF

# What nginx said to a program, one answer after the other, and all that the program said.
sub answers {
    my (%arg) = @_;
    my $dir = new_dir('client');
    my $process = SSLSession::Process->spawn(
        name => $arg{cmd}[0], cmd => $arg{cmd}, out => "$dir/out", in => spew("$dir/in", $arg{in} // ''));
    my $status = eval { $process->wait_exit(20) };
    $process->kill_all;
    my $out = slurp("$dir/out");
    return ([ $out =~ /=(HTTP[^=]*)=/g ], $out, $status);
}

sub has { my ($program) = @_; return grep { -x "$_/$program" } split /:/, $ENV{PATH} }

sub lookups { return scalar(my @all = $relay->requests('GET')) }

for my $kind (@kinds) {
    my $url = "https://localhost:$port{$kind}/";

    for my $protocol (@protocols) {
        my ($version) = $protocol =~ /v(.*)/;
        my %told = map { $_ => [ "HTTP/$_ $protocol . ", "HTTP/$_ $protocol r HIT" ] } '1.0', '1.1', '2.0';

        subtest "$kind, $protocol: openssl s_client" => sub {
            my $file   = tmpdir() . "/$kind-$protocol.pem";
            my $before = lookups();
            my @client = map { s_client(port => $port{$kind}, protocol => $protocol, sni => 'localhost', @$_) }
                [ sess_out => $file ], [ sess_in => $file ];
            is_deeply [ map { $_->response =~ /=(.*)=/ } @client ], $told{'1.0'}, 'resumes';
            is lookups(), $before + 1, 'one lookup';
        };

        subtest "$kind, $protocol: openssl s_client -reconnect" => sub {
            plan skip_all => 'it has no session yet when it reconnects' if $protocol eq 'TLSv1.3';
            my $before = lookups();
            my $client = s_client(port => $port{$kind}, protocol => $protocol, path => undef, args => ['-reconnect']);
            is_deeply [ $client->output =~ /^(New|Reused), TLSv/mg ], [ 'New', ('Reused') x 5 ], 'resumes five times';
            is lookups(), $before + 5, 'five lookups';
        };

        # An HTTP/2 connection curl 7 ends without close_notify, after which OpenSSL does not offer
        # its session again: so the first one is always of HTTP/1.1.
        for my $http ('1.1', '2') {
            SKIP: {
                skip 'no curl', 1 if !has('curl');
                subtest "$kind, $protocol: curl, HTTP/$http" => sub {
                    my $before = lookups();
                    my @one = ('-sSk', '--resolve', "localhost:$port{$kind}:127.0.0.1",
                        "--tlsv$version", '--tls-max', $version, $url);
                    my ($told, $out, $status) = answers(
                        cmd => [ 'curl', '--http1.1', @one, '--next', "--http$http", @one ]);
                    is $status, 0, 'exit code' or diag $out;
                    is_deeply $told, [ $told{'1.1'}[0], $told{ $http eq '2' ? '2.0' : '1.1' }[1] ], 'resumes'
                        or diag $out;
                    is lookups(), $before + 1, 'one lookup';
                };
            }
        }

        SKIP: {
            skip 'no gnutls-cli', 1 if !has('gnutls-cli');
            subtest "$kind, $protocol: gnutls-cli" => sub {
                my $before = lookups();
                # It comes back at once, without a request in between.
                my $slow = relay(upstream => "127.0.0.1:$port{$kind}", delay => [ 100, 'request' ]);
                my ($told, $out) = answers(
                    cmd => [ 'gnutls-cli', '--resume', '--insecure', '--waitresumption', '--no-ca-verification',
                             '--priority', "NORMAL:-VERS-ALL:+VERS-TLS$version",
                             '--port', $slow->port, 'localhost' ],
                    in  => "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
                like $out, qr/\*\*\* This is a resumed session/, 'says so' or diag $out;
                is_deeply $told, [ $told{'1.0'}[1] ], 'and so does nginx';
                is lookups(), $before + 1, 'one lookup';
            };
        }

        SKIP: {
            skip 'no python3 with ssl', 1 if !has('python3') || system(qw(python3 -c), 'import ssl');
            subtest "$kind, $protocol: Python" => sub {
                my $before = lookups();
                my ($told, $out) = answers(cmd => [ 'python3', '-c', <<'PYTHON', $port{$kind}, "TLSv1_$version" =~ s/_1\./_/r ]);
import socket, ssl, sys
port, version = int(sys.argv[1]), getattr(ssl.TLSVersion, sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.minimum_version = context.maximum_version = version
session = None
for n in range(2):
    with socket.create_connection(('127.0.0.1', port)) as tcp:
        with context.wrap_socket(tcp, server_hostname='localhost', session=session) as tls:
            tls.sendall(b'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n')
            answer = b''
            while (more := tls.recv(65536)):
                answer += more
            print(answer.decode(), 'reused' if tls.session_reused else 'new')
            session = tls.session
PYTHON
                is_deeply $told, $told{'1.0'}, 'resumes' or diag $out;
                is_deeply [ $out =~ /^ (new|reused)$/mg ], [qw(new reused)], 'and knows it';
                is lookups(), $before + 1, 'one lookup';
            };
        }

        subtest "$kind, $protocol: HTTP/2 by ALPN, its lookup held" => sub {
            my $file = tmpdir() . "/$kind-$protocol-h2.pem";
            # With a request, or it may be gone before the tickets come.
            s_client(port => $port{$kind}, protocol => $protocol, sess_out => $file);
            my $before = lookups();
            $relay->hold;
            my $client = s_client_start(port => $port{$kind}, protocol => $protocol, sess_in => $file,
                path => undef, args => [ '-alpn', 'h2,http/1.1' ]);
            wait_until { lookups() > $before } 10, 'lookup';
            $relay->release;
            is $client->reused, 1, 'resumes';
            like $client->output, qr/^ALPN protocol: h2$/m, 'and the protocol is chosen';
        };
    }
}

$nginx->quit;
is_deeply [ $nginx->errors ], [], 'no error in the log';

done_testing;
