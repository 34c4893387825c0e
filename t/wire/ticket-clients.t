# Clients that people use are resumed by tickets of another server: with the store there, without it, and
# those of a fallback. A front sends each connection to the next server.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds);
use Test::More;

plan skip_all => 'this nginx has no stream{}' unless has_stream();

sub has { my ($program) = @_; return grep { -x "$_/$program" } split /:/, $ENV{PATH} }

sub run {
    my ($in, @cmd) = @_;
    my $dir = new_dir('client');
    my $process = SSLSession::Process->spawn(name => $cmd[0], cmd => \@cmd, out => "$dir/out", in => spew("$dir/in", $in));
    eval { $process->wait_exit(30 * patience()) };
    $process->kill_all;
    return slurp("$dir/out");
}

my $request = "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";

spew(tmpdir() . '/Visits.java', <<'JAVA');
import java.io.*;
import java.security.cert.X509Certificate;
import javax.net.ssl.*;
public class Visits {
    public static void main(String[] args) throws Exception {
        TrustManager all = new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String type) {}
            public void checkServerTrusted(X509Certificate[] chain, String type) {}
            public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
        };
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, new TrustManager[] { all }, null);
        for (int n = 0; n < 2; n++) {
            try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("localhost", Integer.parseInt(args[0]))) {
                socket.setEnabledProtocols(new String[] { args[1] });
                socket.getOutputStream().write("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n".getBytes());
                System.out.println(new String(socket.getInputStream().readAllBytes()));
            }
        }
    }
}
JAVA

my $python = <<'PYTHON';
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
            print(answer.decode())
            session = tls.session
PYTHON

my $node = <<'NODE';
const tls = require('tls'), [port, version] = process.argv.slice(1);
const visit = (session, then) => {
    let last = session, answer = '';
    const options = { port, host: '127.0.0.1', servername: 'localhost', rejectUnauthorized: false, minVersion: version, maxVersion: version, session };
    const socket = tls.connect(options, () => socket.write('GET / HTTP/1.0\r\nHost: localhost\r\n\r\n'));
    socket.on('session', s => last = s);
    socket.on('data', data => answer += data);
    socket.on('close', () => { console.log(answer); then(last) });
    socket.on('error', error => console.log(error));
};
visit(undefined, session => visit(session, () => {}));
NODE

# What each of them says of two visits, the second with the session of the first.
my %client = (
    'openssl s_client' => sub {
        my ($port, $version) = @_;
        my $file = new_dir('session') . '/pem';
        return join '', map { s_client(port => $port, protocol => "TLSv$version", sni => 'localhost', @$_)->output } [ sess_out => $file ], [ sess_in => $file ];
    },
    curl => sub {
        my ($port, $version) = @_;
        my @one = ('-sSk', '--http1.1', '--resolve', "localhost:$port:127.0.0.1", '-H', 'Connection: close', "--tlsv$version", '--tls-max', $version, "https://localhost:$port/");
        return run('', 'curl', @one, '--next', @one);
    },
    'gnutls-cli' => sub {
        my ($port, $version) = @_;
        # It sends its input in the second one.
        return run($request, qw(gnutls-cli --resume --insecure --waitresumption --no-ca-verification --priority),
            "NORMAL:-VERS-ALL:+VERS-TLS$version", '--port', $port, 'localhost');
    },
    python3 => sub { my ($port, $version) = @_; return run('', 'python3', '-c', $python, $port, "TLSv$version" =~ tr/./_/r) },
    node    => sub { my ($port, $version) = @_; return run('', 'node', '-e', $node, $port, "TLSv$version") },
    java    => sub { my ($port, $version) = @_; return run('', 'java', tmpdir() . '/Visits.java', $port, "TLSv$version") },
);

sub works {
    my ($client) = @_;
    my ($program) = split ' ', $client;
    return 0 if !has($program);
    return !system q(python3 -c 'import ssl' 2>/dev/null) if $program eq 'python3';
    return !system q(java --list-modules 2>/dev/null | grep -q jdk.compiler) if $program eq 'java';
    return 1;
}

my @clients = grep { works($_) } sort keys %client;
note "clients: @clients";

for my $kind (@kinds) {
    my $site = SSLSession::TicketSite->new(kind => $kind);
    my @server = map { $site->server(servers => [ [ name => 'localhost' ] ]) } 1 .. 2;
    $_->made(protocol => 'TLSv1.3', sni => 'localhost') for @server;
    my $port  = free_port();
    my $to    = join ' ', map { "server 127.0.0.1:" . $_->port . ';' } @server;
    my $front = nginx(module => 0, conf => '', stream => "upstream servers { $to } server { listen 127.0.0.1:$port; proxy_pass servers; }");
    for my $store ('there', 'away') {
        $site->redis->kill if $store eq 'away';
        for my $client (@clients) {
            for my $version ('1.2', '1.3') {
                # It takes no tickets there.
                next if $client eq 'curl' && $version eq '1.2';
                subtest "$kind, the store of keys is $store: $client, TLS $version" => sub {
                    my $out  = $client{$client}->($port, $version);
                    my @seen = $out =~ /(TICKET|)\|[A-Z]*\|(\d+)\|NONE/g;
                    my ($first, $here, $second, $there) = $client eq 'gnutls-cli' ? ('', 0, @seen) : @seen;
                    is $first, '', 'a full handshake' or diag $out;
                    is $second, 'TICKET', 'and a resumption' or diag $out;
                    isnt $there, $here, 'at the other server';
                };
            }
        }
    }
    $_->nothing_else for @server;
}

done_testing;
