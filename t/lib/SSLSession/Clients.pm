package SSLSession::Clients;

# The clients of tools/clients, of which most are in clients/: programs of a few lines that make N visits one
# after another and P at once, with what is set by default or with what has to be switched on.

use strict;
use warnings;

use SSLSession::Browser;
use SSLSession::Certs ();
use SSLSession::Firefox;
use SSLSession::Nginx;
use SSLSession::Process;
use SSLSession::Util qw(free_port new_dir patience root slurp spew wait_until);

use Exporter qw(import);
use File::Path qw(make_path);
use IO::Socket::INET;
use JSON::PP ();

our @EXPORT_OK = qw(@clients version missing install);

my $from   = root() . '/clients';
my $target = root() . '/target/clients';
my $python = "$target/python/bin/python";

# PyPI's, for $python.
my @modules  = qw(curl_cffi==0.17.0 requests==2.34.2 httpx==0.28.1 aiohttp==3.14.5);

sub has { my ($program) = @_; return grep { -x "$_/$program" } split /:/, $ENV{PATH} }

# What a command says, of which the pattern has the version.
sub said {
    my ($pattern, @cmd) = @_;
    open my $fh, '-|', 'sh', '-c', 'exec "$@" 2>&1', 'sh', @cmd or return;
    my $said = join '', <$fh>;
    return $said =~ $pattern ? join ', ', grep { defined } $1, $2 : undef;
}

sub python { my ($what, $how) = @_; return said(qr/^(\S.*)/, $how // $python, '-c', $what) }

# Each: name; kind; cmd: followed by URL, N and P, or what returns all of it; or code that visits (PORT, N, P). on: what
# is switched on. version: what returns it, undef where the client is not there. at_once: it can make visits at
# the same time. first_unseen: the first visit asks for nothing. only12: it has no TLS 1.3.
our @clients = (
    { name => 'Chromium', kind => 'browser', code => sub { browse(chromium => @_) }, at_once => 1, h3 => \&chromium_h3,
      version => sub { SSLSession::Browser::binary() && said(qr/([\d.]+)/, SSLSession::Browser::binary(), '--version') } },
    { name => 'Firefox', kind => 'browser', code => sub { browse(firefox => @_) }, at_once => 1, h3 => \&firefox_h3,
      version => sub { SSLSession::Firefox::binary() && said(qr/([\d.]+\w*)/, SSLSession::Firefox::binary(), '--version') } },

    { name => 'curl', kind => 'tool', cmd => sub { my ($url, $n, $p, $ca) = @_; ('curl', '-sS', '--cacert', $ca, ($url) x $n) },
      version => sub { said(qr{^curl (\S+) .*?(OpenSSL/\S+)}, qw(curl -V)) } },
    { name => 'wget', kind => 'tool', cmd => sub { my ($url, $n, $p, $ca) = @_; ('wget', '-qO-', "--ca-certificate=$ca", ($url) x $n) },
      version => sub { has('wget') && said(qr/Wget ([\d.]+).*?\+ssl\/(\w+)/s, qw(wget -V)) } },
    { name => 'openssl s_client', kind => 'tool', on => '`-sess_out`, `-sess_in`', cmd => [ "$from/openssl.sh" ], at_once => 1,
      version => sub { said(qr/OpenSSL (\S+)/, qw(openssl version)) } },
    { name => 'gnutls-cli', kind => 'tool', on => '`--resume`', cmd => [ "$from/gnutls.sh" ], first_unseen => 1,
      version => sub { has('gnutls-cli') && said(qr/gnutls-cli ([\d.]+)/, qw(gnutls-cli --version)) } },
    { name => 'NSS tstclnt', kind => 'tool', cmd => [ "$from/nss.sh", 'ids' ],
      version => sub { has('tstclnt') && debian('libnss3') } },
    { name => 'NSS tstclnt -u', title => 'NSS tstclnt', kind => 'tool', on => '`-u`: tickets', cmd => [ "$from/nss.sh", 'tickets' ],
      version => sub { has('tstclnt') && debian('libnss3') } },

    { name => 'Go net/http', kind => 'library', cmd => [ "$target/go", 'default' ], at_once => 1, version => sub { go() } },
    { name => 'Go net/http, cache', title => 'Go net/http', kind => 'library', on => '`ClientSessionCache`', cmd => [ "$target/go", 'cache' ],
      at_once => 1, version => sub { go() } },
    { name => 'Java HttpsURLConnection', kind => 'library', cmd => [ qw(java -cp), $target, qw(Visits url) ], at_once => 1, version => sub { java() } },
    { name => 'Java HttpClient', kind => 'library', cmd => [ qw(java -cp), $target, qw(Visits client) ], at_once => 1, version => sub { java() } },
    { name => 'Node.js https', kind => 'library', cmd => [ 'node', "$from/node.js", 'https' ], at_once => 1,
      version => sub { has('node') && said(qr/v(\S+)/, qw(node -v)) } },
    { name => 'Node.js fetch', kind => 'library', cmd => [ 'node', "$from/node.js", 'fetch' ], at_once => 1,
      version => sub { has('node') && said(qr/(.+)/, qw(node -p), 'process.versions.node + ", undici " + process.versions.undici') } },
    { name => 'Python http.client', kind => 'library', cmd => [ $python, "$from/visits.py", 'http_client' ], at_once => 1,
      version => sub { python('import platform; print(platform.python_version())') } },
    { name => 'Python ssl', kind => 'library', on => '`session=`', cmd => [ $python, "$from/visits.py", 'ssl_session' ], at_once => 1,
      version => sub { python('import platform, ssl; print(platform.python_version() + ", " + " ".join(ssl.OPENSSL_VERSION.split()[:2]))') } },
    (map { my $module = $_; {
      name => "Python $module", kind => 'library', cmd => [ $python, "$from/visits.py", $module ], at_once => 1,
      version => sub { python("import $module; print($module.__version__)") } } } qw(requests httpx aiohttp)),
    { name => 'curl_cffi', title => 'Python curl_cffi (BoringSSL)', kind => 'library', cmd => [ $python, "$from/visits.py", 'curl_cffi' ],
      version => sub { python('import curl_cffi; print(curl_cffi.__version__)') } },
    { name => 'pycurl', title => 'pycurl (libcurl, GnuTLS)', kind => 'library', cmd => [ '/usr/bin/python3', "$from/visits.py", 'pycurl' ],
      version => sub { pycurl() } },
    { name => 'pycurl, share', title => 'pycurl (libcurl, GnuTLS)', kind => 'library', on => '`CurlShare`, for handles of their own',
      cmd => [ '/usr/bin/python3', "$from/visits.py", 'pycurl_share' ], version => sub { pycurl() } },
    { name => 'Ruby Net::HTTP', kind => 'library', cmd => [ 'ruby', "$from/visits.rb", 'calls' ], at_once => 1, version => sub { ruby() } },
    { name => 'Ruby Net::HTTP, object', title => 'Ruby Net::HTTP', kind => 'library', on => 'one object, started again',
      cmd => [ 'ruby', "$from/visits.rb", 'object' ], version => sub { ruby() } },
    { name => 'PHP curl', kind => 'library', cmd => [ 'php', "$from/visits.php", 'new' ], version => sub { php() } },
    { name => 'PHP curl, handle', title => 'PHP curl', kind => 'library', on => 'one handle', cmd => [ 'php', "$from/visits.php", 'one' ], version => sub { php() } },
    { name => 'PHP curl, share', title => 'PHP curl', kind => 'library', on => '`curl_share_init()`', cmd => [ 'php', "$from/visits.php", 'share' ],
      at_once => 1, version => sub { php() } },
    { name => 'PHP streams', kind => 'library', cmd => [ 'php', "$from/visits.php", 'streams' ], version => sub { has('php') && said(qr/PHP (\S+)/, qw(php -v)) } },
    { name => 'Perl LWP', kind => 'library', cmd => [ 'perl', "$from/lwp.pl", 'default' ], version => sub { lwp() } },
    { name => 'Perl LWP, cache', title => 'Perl LWP', kind => 'library', on => '`SSL_reuse_ctx` with a cache', cmd => [ 'perl', "$from/lwp.pl", 'cache' ], version => sub { lwp() } },
    { name => 'Erlang httpc', kind => 'library', cmd => [ 'escript', "$from/visits.escript", 'default' ], at_once => 1, version => sub { erlang() } },
    { name => 'Erlang httpc, auto', title => 'Erlang httpc', kind => 'library', on => '`{session_tickets, auto}`',
      # Not at once: the store of its tickets, in OTP 25, ends with an error then.
      cmd => [ 'escript', "$from/visits.escript", 'auto' ], version => sub { erlang() } },
    { name => 'Rust ureq', title => 'Rust ureq (rustls)', kind => 'library', cmd => [ "$target/rustls/release/visits", 'calls' ], at_once => 1, version => sub { ureq() } },
    { name => 'Rust ureq, agent', title => 'Rust ureq (rustls)', kind => 'library', on => 'one `Agent`', cmd => [ "$target/rustls/release/visits", 'agent' ],
      at_once => 1, version => sub { ureq() } },

    { name => 'aioquic', title => 'Python aioquic', kind => 'library', on => '`session_ticket`', only_h3 => 1, h3 => \&aioquic,
      version => sub { aioquic_python() && python('import aioquic; print(aioquic.__version__)', aioquic_python()) } },

    { name => 'mbed TLS', kind => 'IoT', on => '`mbedtls_ssl_set_session()`', cmd => [ "$target/mbedtls" ], only12 => 1,
      version => sub { -x "$target/mbedtls" && debian('libmbedtls-dev') } },
    { name => 'wolfSSL', kind => 'IoT', on => '`wolfSSL_set_session()`', cmd => [ "$target/wolfssl", 'ids' ],
      version => sub { -x "$target/wolfssl" && debian('libwolfssl-dev') } },
    { name => 'wolfSSL, tickets', title => 'wolfSSL', kind => 'IoT', on => 'and `wolfSSL_CTX_UseSessionTicket()`', cmd => [ "$target/wolfssl", 'tickets' ],
      version => sub { -x "$target/wolfssl" && debian('libwolfssl-dev') } },

    { name => 'nginx proxy_pass', kind => 'proxy', code => sub { nginx_proxy('', @_) }, only12 => !new_nginx(), at_once => new_nginx(),
      version => sub { nginx_version() } },
    (new_nginx() ? () : { name => 'nginx proxy_pass, TLS 1.3', title => 'nginx proxy_pass', kind => 'proxy', on => '`proxy_ssl_protocols` with `TLSv1.3`', at_once => 1,
      code => sub { nginx_proxy('proxy_ssl_protocols TLSv1.2 TLSv1.3;', @_) }, version => sub { nginx_version() } }),
    { name => 'HAProxy', kind => 'proxy', code => \&haproxy, at_once => 1, version => sub { has('haproxy') && said(qr/version ([\d.]+)/, qw(haproxy -v)) } },
);

# Its proxy_ssl_protocols have TLS 1.3 by default since 1.23.4.
sub new_nginx     { return SSLSession::Nginx->version >= 1023004 }
sub nginx_version { return (SSLSession::Nginx::version_text() =~ m{nginx/([\d.]+)})[0] }

sub debian { my ($package) = @_; return said(qr/^(?:\d+:)?([\w.]+)/, qw(dpkg-query -W -f ${Version}), $package) }
sub go     { return -x "$target/go" ? said(qr/go(\d\S*)/, qw(go version)) : undef }
sub java   { return -f "$target/Visits.class" && has('java') ? said(qr/version "(\S+)"/, qw(java -version)) : undef }
sub pycurl { return python('import pycurl; v = pycurl.version_info(); print(v[1] + ", " + v[5])', '/usr/bin/python3') }
sub ruby   { return has('ruby') && said(qr/(.+)/, qw(ruby -ropenssl -e), 'puts RUBY_VERSION') }
sub php    { return has('php') && said(qr/(\d.*)/, qw(php -r), 'echo PHP_VERSION, ", ", curl_version()["ssl_version"];') }
sub lwp    { return said(qr/^([\d.]+, .*)/, 'perl', '-e', 'use LWP::UserAgent; use LWP::Protocol::https; use IO::Socket::SSL; print "$LWP::UserAgent::VERSION, IO::Socket::SSL $IO::Socket::SSL::VERSION"') }
sub erlang { return has('escript') && has('erl') && said(qr/^(\d+.*)/, qw(erl -noshell -eval), 'application:load(ssl), {ok, V} = application:get_key(ssl, vsn), io:format("~s, ssl ~s~n", [erlang:system_info(otp_release), V]), halt().') }
sub ureq   { return -x "$target/rustls/release/visits" ? join ', ', slurp("$from/rustls/Cargo.lock") =~ /name = "ureq"\nversion = "(\S+)"/, map { "rustls $_" } slurp("$from/rustls/Cargo.lock") =~ /name = "rustls"\nversion = "(\S+)"/ : undef }

my %version;
sub version { my ($client) = @_; return $version{ $client->{name} } //= $client->{version}->() || undef }
sub missing { my ($client) = @_; return version($client) ? undef : 'not there; tools/clients install' }

# One of each for all visits, as they take seconds to start.
my %browser;

sub browse {
    my ($name, $port, $visits, $at_once) = @_;
    my $browser = $browser{$name} //= $name eq 'chromium'
        ? SSLSession::Browser->new(args => ['--ignore-certificate-errors'])
        : SSLSession::Firefox->new;
    my $url  = "https://localhost:$port/visit";
    my $said = '';
    $said .= $browser->open("$url?$_")->eval('document.body.textContent') for 1 .. $visits;
    return $said if !$at_once;
    my $fetches = "Promise.all([1, 2, 3, 4].slice(0, $at_once).map(n => fetch('$url?at_once=' + n, { cache: 'no-store' }).then(r => r.text()))).then(all => all.join(''))";
    return $said . $browser->eval($fetches);
}

sub close_browsers { $_->close for values %browser; %browser = () }

# HTTP/3, each visit over a connection of its own.
my ($aioquic, $asked);
sub aioquic_python { ($asked++, chomp($aioquic = `${\ root()}/tools/quic-client 2>/dev/null`)) if !$asked; return $aioquic }

sub aioquic {
    my ($port, $visits) = @_;
    my $session = new_dir('quic') . '/session';
    my $said = '';
    for (1 .. $visits) {
        $said .= qx('${\ aioquic_python()}' ${\ root()}/t/lib/quic_client.py $port /visit --save $session @{[ -f $session ? "--session $session" : '' ]} 2>&1);
    }
    return $said;
}

sub chromium_h3 {
    my ($port, $visits, $closed) = @_;
    my $crt  = SSLSession::Certs::certs()->{server_crt};
    my $spki = qx(openssl x509 -in $crt -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64);
    chomp $spki;
    my $browser = SSLSession::Browser->new(
        args => [ '--enable-quic', '--host-resolver-rules=MAP localhost 127.0.0.1', "--origin-to-force-quic-on=localhost:$port", "--ignore-certificate-errors-spki-list=$spki" ]);
    return visits_h3($browser, $port, $visits, $closed);
}

sub firefox_h3 {
    my ($port, $visits, $closed) = @_;
    my $browser = SSLSession::Firefox->new(ca => SSLSession::Certs::certs()->{ca_crt}, prefs => {
        'network.http.http3.alt-svc-mapping-for-testing' => "localhost;h3=:$port",
        'network.http.http3.disable_when_third_party_roots_found' => JSON::PP::false,
        'network.dns.native_https_query' => JSON::PP::false,
    });
    return visits_h3($browser, $port, $visits, $closed);
}

sub visits_h3 {
    my ($browser, $port, $visits, $closed) = @_;
    my ($said, $wrong) = ('', '');
    # One that comes as its connection ends is no visit, or one over TCP.
    for (1 .. 2 * $visits) {
        eval { $said .= $browser->open("https://localhost:$port/visit?$_")->eval('document.body.textContent'); 1 } or $wrong = $@;
        last if $closed->() >= $visits;
    }
    $browser->close;
    return "$said$wrong";
}

# Visits by way of a proxy, which is the client.
sub through {
    my ($port, $visits, $at_once) = @_;
    my $ask = sub {
        my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 20) or die "connect: $@\n";
        print $socket "GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n";
        return $socket;
    };
    my $said = '';
    $said .= join '', readline $ask->() for 1 .. $visits;
    $said .= join '', readline $_ for map { $ask->() } 1 .. $at_once;
    return $said;
}

sub nginx_proxy {
    my ($more, $port, @visits) = @_;
    my $front = free_port();
    my $nginx = SSLSession::Nginx->new(module => 0, log => 'info', conf => <<"CONF");
    server { listen 127.0.0.1:$front; $more location / { proxy_pass https://127.0.0.1:$port; proxy_ssl_server_name on; proxy_ssl_name localhost; } }
CONF
    my $said = through($front, @visits);
    $nginx->stop;
    return $said;
}

sub haproxy {
    my ($port, @visits) = @_;
    my ($dir, $front) = (new_dir('haproxy'), free_port());
    my $ca = (SSLSession::Certs::certs())->{ca_crt};
    spew("$dir/conf", <<"CONF");
global
    nbthread 1
defaults
    mode http
    timeout connect 20s
    timeout client 20s
    timeout server 20s
listen front
    bind 127.0.0.1:$front
    server fleet 127.0.0.1:$port ssl verify required ca-file $ca sni str(localhost)
CONF
    my $process = SSLSession::Process->spawn(name => 'haproxy', cmd => [ qw(haproxy -db -f), "$dir/conf" ], out => "$dir/out");
    wait_until { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $front) } 10, 'HAProxy';
    my $said = through($front, @visits);
    $process->kill_all;
    return $said;
}

# What is missing: packages, and what is built of clients/.
sub install {
    make_path($target);
    run(root() . '/tools/install-deps', 'clients');
    run('python3', '-m', 'venv', "$target/python") if !-x $python;
    run($python, qw(-m pip install --quiet --disable-pip-version-check), @modules);
    run('gcc', '-O1', '-Wall', '-o', "$target/mbedtls", "$from/mbedtls.c", qw(-lmbedtls -lmbedx509 -lmbedcrypto));
    run('gcc', '-O1', '-Wall', '-o', "$target/wolfssl", "$from/wolfssl.c", '-lwolfssl');
    run('javac', '-d', $target, "$from/Visits.java");
    run('env', "GOCACHE=$target/go-cache", 'GOTOOLCHAIN=local', 'CGO_ENABLED=0', 'go', 'build', '-o', "$target/go", "$from/go.go");
    run(qw(cargo build --quiet --release --locked --manifest-path), "$from/rustls/Cargo.toml", '--target-dir', "$target/rustls");
}

# The others are of use without this one.
sub run { my (@cmd) = @_; print "@cmd\n"; system(@cmd) == 0 or print "FAILED: $cmd[0]\n" }

END { local ($?, $!, $@); close_browsers() }

1;
