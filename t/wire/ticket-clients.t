# Clients that people use are resumed by tickets of another server: with the store there, without it, and
# those of a fallback. A front sends each connection to the next server. In TLS 1.2 some know session IDs, some
# know tickets, and ssl_session_tickets_tls12 gives each what it knows.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Firefox;
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

spew(tmpdir() . '/visits.go', <<'GO');
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
)

func main() {
	version := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[os.Args[2]]
	config := &tls.Config{
		ServerName: "localhost", InsecureSkipVerify: true, MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
	for n := 0; n < 2; n++ {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], config)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		io.WriteString(conn, "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
		answer, err := io.ReadAll(conn)
		fmt.Println(string(answer), err)
		conn.Close()
	}
}
GO

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

# Without the network, and without what whoever runs the test has set or kept.
sub go_build {
    my $dir = tmpdir();
    my @env = ("HOME=$dir", "GOCACHE=$dir/go-cache", "GOPATH=$dir/go", 'GOENV=off', 'GOTOOLCHAIN=local', 'GOFLAGS=-mod=mod', 'GOPROXY=off', 'CGO_ENABLED=0');
    my $process = SSLSession::Process->spawn(name => 'go', cmd => [ 'env', @env, 'go', 'build', '-o', "$dir/visits", "$dir/visits.go" ], out => "$dir/go-build");
    my $status = eval { $process->wait_exit(120 * patience()) };
    $process->kill_all;
    return !($status // 1) || (diag(slurp("$dir/go-build")), 0);
}

# One of each for all visits, as they take seconds to start.
my %browser;

sub browse {
    my ($name, $new, $port, $visits) = @_;
    my $said = '';
    eval {
        my $browser = $browser{$name} //= $new->();
        $said .= $browser->open("https://localhost:$port/?$_")->eval('document.body.textContent') . "\n" for 1 .. $visits // 2;
    };
    return "$said$@";
}

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
    go      => sub { my ($port, $version) = @_; return run('', tmpdir() . '/visits', $port, $version) },
    chromium => sub { my ($port) = @_; return browse(chromium => sub { browser(args => ['--ignore-certificate-errors']) }, $port) },
    firefox  => sub { my ($port, $version, $visits) = @_; return browse(firefox => sub { SSLSession::Firefox->new }, $port, $visits) },
);

# What they know of TLS 1.2; the others know session IDs and tickets.
my %only_ids     = map { $_ => 1 } qw(curl);
my %only_tickets = map { $_ => 1 } qw(go firefox);

sub works {
    my ($client) = @_;
    my ($program) = split ' ', $client;
    return !!SSLSession::Browser::binary() if $client eq 'chromium';
    return !!SSLSession::Firefox::binary() if $client eq 'firefox';
    return 0 if !has($program);
    return !system q(python3 -c 'import ssl' 2>/dev/null) if $program eq 'python3';
    return !system q(java --list-modules 2>/dev/null | grep -q jdk.compiler) if $program eq 'java';
    return go_build() if $program eq 'go';
    return 1;
}

my %works   = map { $_ => works($_) } keys %client;
my @clients = grep { $works{$_} } sort keys %client;
note "clients: @clients";
for my $client (grep { !$works{$_} } sort keys %client) {
    subtest $client => sub { plan skip_all => 'not installed, or of no use' };
}

# Two servers, and a front. For each purpose it has a port, for which a browser that has been there for another has no
# session, and another port with TLS 1.2 only.
sub fleet {
    my ($site, @purposes) = @_;
    my %to     = (both => '', old => '');
    my @server = map {
        my $old    = free_port();
        my $server = $site->server(servers => [ [ name => 'localhost' ], [ name => 'localhost', port => $old, more => 'ssl_protocols TLSv1.2;' ] ]);
        $to{both} .= "server 127.0.0.1:" . $server->port . ';';
        $to{old}  .= "server 127.0.0.1:$old;";
        $server;
    } 1 .. 2;
    $_->made(protocol => 'TLSv1.3', sni => 'localhost') for @server;
    my $stream = '';
    my %port;
    for my $to (sort keys %to) {
        $stream .= "upstream $to { $to{$to} }\n";
        for my $purpose (@purposes) {
            $port{$purpose}{$to} = free_port();
            $stream .= "server { listen 127.0.0.1:$port{$purpose}{$to}; proxy_pass $to; }\n";
        }
    }
    return { front => nginx(module => 0, conf => '', stream => $stream), port => \%port, server => \@server };
}

sub resumes {
    my ($fleet, $purpose, $client, $version, $how) = @_;
    # A browser takes TLS 1.3 where it can.
    my $to   = $version eq '1.2' && $client =~ /^(?:chromium|firefox)$/ ? 'old' : 'both';
    my $port = $fleet->{port}{$purpose}{$to};
    # Some come back faster than a busy store stores.
    my $slow = $how eq 'HIT' && relay(upstream => "127.0.0.1:$port", delay => [ 100, 'request' ]);
    my $out  = $client{$client}->($slow ? $slow->port : $port, $version);
    my @seen = $out =~ /(\w*)\|\w*\|(\d+)\|NONE/g;
    my ($first, $here, $second, $there) = $client eq 'gnutls-cli' ? ('', 0, @seen) : @seen;
    # A ClientHello for TLS 1.3 has a session ID that the client makes up; those of some Go have one in any case.
    # One in 256 has the key id of the key.
    my $none = qr/^(?:FOREIGN|FORGED)?$/;
    like $first, $none, 'a full handshake' or diag $out;
    like $second, $how ? qr/^$how$/ : $none, $how ? 'and a resumption' : 'and another one' or diag $out;
    isnt $there, $here, 'at the other server';
}

# Else browsers stay on a connection.
my @more = (more => 'keepalive_timeout 0;');

for my $kind (@kinds) {
    my $site  = SSLSession::TicketSite->new(kind => $kind, @more);
    my $fleet = fleet($site, 'there', 'away');
    for my $store ('there', 'away') {
        $site->redis->kill if $store eq 'away';
        for my $client (@clients) {
            for my $version ('1.2', '1.3') {
                next if $only_ids{$client} && $version eq '1.2';
                subtest "$kind, the store of keys is $store: $client, TLS $version" => sub { resumes($fleet, $store, $client, $version, 'TICKET') };
            }
        }
    }
    $_->nothing_else for @{ $fleet->{server} };
}

for my $tls12 ('off', 'on') {
    my $fleet = fleet(SSLSession::TicketSite->new(kind => "ssl_session_tickets off; ssl_session_store live; ssl_session_tickets_tls12 $tls12;", @more), 'visits', 'four');
    for my $client (@clients) {
        my $how = $tls12 eq 'on' && !$only_ids{$client} ? 'TICKET' : $only_tickets{$client} ? '' : 'HIT';
        subtest "ssl_session_tickets_tls12 $tls12: $client, TLS 1.2" => sub { resumes($fleet, 'visits', $client, '1.2', $how) };
        # Which stays stateful.
        subtest "ssl_session_tickets_tls12 on: $client, TLS 1.3" => sub { resumes($fleet, 'visits', $client, '1.3', 'HIT') } if $tls12 eq 'on';
    }
    subtest 'Firefox shows a ticket of TLS 1.2 once, and gets no other one with it' => sub {
        my $out = $client{firefox}->($fleet->{port}{four}{old}, '1.2', 4);
        is_deeply [ map { $_ eq 'TICKET' ? 1 : 0 } $out =~ /(\w*)\|\w*\|\d+\|NONE/g ], [ 0, 1, 0, 1 ], 'every other visit' or diag $out;
    } if $tls12 eq 'on' && $works{firefox};
    $_->nothing_else for @{ $fleet->{server} };
}

$_->close for values %browser;

done_testing;
