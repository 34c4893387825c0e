# The first day: what is wrong with a server, or with what is said of it here, is told in one line
# with what to change.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my $secret = spew(tmpdir() . '/secret', "s3cret-word\n");
my $other  = spew(tmpdir() . '/other', "0ther-word\n");
chmod 0600, $secret, $other;

# An nginx with a backend of these lines, and visits to it until the log has a hint.
sub hinted {
    my ($name, $line, %arg) = @_;
    my $hint = delete $arg{hint};
    my $says = delete $arg{says};
    my $env  = delete $arg{env};
    my $fetch = delete $arg{fetch} // '';
    my $target = delete $arg{target};
    my $wait = 3 * patience() . 's';
    my %conf = (connect_timeout => $wait, fetch_timeout => $wait, %arg);
    my $block = $target ? '' : "ssl_session_backend store { $line @{[ map { qq{$_ $conf{$_};} } sort keys %conf ]} }";
    $target //= 'store';
    subtest $name => sub {
        my $port  = free_port();
        my $nginx = nginx(env => $env // {}, conf => <<"CONF");
    $block
    ssl_session_fetch   $target $fetch;
    ssl_session_store   $target;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
CONF
        my $start = time;
        my $visit = sub {
            my $first = tls_client(port => $port, protocol => 'TLSv1.3', @_);
            $first->request // die $first->error;
            return $first->session;
        };
        my $line = eval { wait_until { my $session = $visit->(); $visit->(session => $session); ($nginx->log =~ /(.*\(hint: .*)/)[0] } 10, 'a hint' }
            // diag $nginx->log;
        like $line, qr/\[error\] \d+#\d+: $says(?: \(\d+ times\))? \(hint: \Q$hint\E\)$doing$/, 'the line';
        $visit->(session => $visit->()) for 1 .. 5;
        my @lines = $nginx->log =~ /^.*\[error\].*$/mg;
        cmp_ok scalar @lines, '<=', 1 + time - $start, 'once a second at most' or diag join "\n", @lines;
        is scalar(grep { !/\(hint: / } @lines), 0, 'nothing else is in the log' or diag join "\n", @lines;
        is scalar(grep { /s3cret|0ther/ } @lines), 0, 'nor is the password';
        $nginx->quit;
    };
}

sub at { my ($server) = @_; return 'server ' . (ref $server ? $server->address : $server) . ';' }
my $redis = qr/redis [\d.]+:\d+/;

my $protected = do {
    my $socket = IO::Socket::INET->new(Proto => 'udp', PeerAddr => '192.0.2.1:9');
    my $address = $socket && $socket->sockhost;
    defined $address && $address !~ /^127\./ ? $address : undef;
};
SKIP: {
    skip 'only the loopback interface', 1 if !$protected;
    my $server = redis(conf => ['bind 0.0.0.0', 'protected-mode yes']);
    hinted 'Redis in protected mode', at("$protected:" . $server->port),
        says => qr/$redis is down: server refused: "DENIED Redis is running in protected mode because .*\.\.\."/,
        hint => 'give the server a password, "requirepass" or ACL SETUSER, and set "password_file"';
}

hinted 'a password is needed', at(redis(password => 's3cret-word')),
    says => qr/$redis refused \d+ requests, the last with "NOAUTH Authentication required\."/,
    hint => 'set "password_file", and "username" if it is a user\'s';

hinted 'a password is not needed', at(redis()), password_file => $secret,
    says => qr/$redis is down: server refused: "ERR AUTH <password> called without any password configured.*"/,
    hint => 'the server has no password: remove "password_file", or set "requirepass" there';

hinted 'another password', at(redis(password => 's3cret-word')), password_file => $other,
    says => qr/$redis is down: server refused: "WRONGPASS .*"/,
    hint => 'check "username" and "password_file" by ACL GETUSER at the server';

my %nginx = (username => 'nginx', password_file => $secret);
hinted 'no right to one command', at(redis(users => { nginx => '>s3cret-word ~tls:* +get +set +del +ping' })), %nginx,
    fetch => 'single_use',
    says => qr/$redis refused \d+ requests, the last with "NOPERM .* 'getdel' command"/,
    hint => 'at the server: ACL SETUSER nginx +getdel';

hinted 'no right to the keys', at(redis(users => { nginx => '>s3cret-word ~other:* +get +set +del +ping' })), %nginx,
    says => qr/$redis refused \d+ requests, the last with "NOPERM .*key.*"/,
    hint => 'at the server: ACL SETUSER nginx ~PREFIX*, PREFIX being "key_prefix"';

hinted 'no right to SELECT', at(redis(users => { nginx => '>s3cret-word ~tls:* +get +set +del +ping' })), %nginx, database => 3,
    says => qr/$redis is down: server refused: "NOPERM .*"/,
    hint => 'at the server: ACL SETUSER nginx +select';

hinted 'no such database', at(redis()), database => 99,
    says => qr/$redis is down: server refused: "ERR DB index is out of range"/,
    hint => 'remove "database", or raise "databases" at the server';

{
    my $few = redis(conf => ['maxclients 1']);
    my $one = IO::Socket::INET->new(PeerAddr => $few->address);
    hinted 'too many clients', at($few),
        says => qr/$redis is down: server refused: "ERR max number of clients reached"/,
        hint => 'raise "maxclients" at the server: CONFIG SET maxclients N';
}

hinted 'a server that does not know GETDEL', at(redis(conf => ['rename-command GETDEL ""'])), fetch => 'single_use',
    says => qr/$redis refused \d+ requests, the last with "ERR unknown command ['`]GETDEL['`]\.\.\."/,
    hint => '"single_use" needs GETDEL, which Redis has from 6.2 on';

hinted 'a server that does not know SELECT', at(redis(conf => ['rename-command SELECT ""'])), database => 3,
    says => qr/$redis is down: server refused: "ERR unknown command ['`]SELECT['`]\.\.\."/,
    hint => 'remove "database", or raise "databases" at the server';

hinted 'a full server', at(redis(maxmemory => '1')),
    says => qr/$redis refused \d+ requests, the last with "OOM .*"/,
    hint => 'raise "maxmemory", or at the server: CONFIG SET maxmemory-policy volatile-lru';

{
    # What proxies do with what they do not know.
    my $proxy = sub {
        my ($unknown) = @_;
        return fake_server(canned => [ sub { uc $_[0] eq $unknown ? { close => 1 } : uc $_[0] eq 'GET' ? "\$-1\r\n" : "+OK\r\n" } ]);
    };
    hinted 'a proxy that ends the connection for CLIENT SETNAME', at('127.0.0.1:' . $proxy->('CLIENT')->port),
        password_file => $secret, client_name => 'edge',
        says => qr/$redis is down: server closed connection/, hint => 'remove "client_name"';
    hinted 'a proxy that ends the connection for SELECT', at('127.0.0.1:' . $proxy->('SELECT')->port),
        password_file => $secret, database => 3,
        says => qr/$redis is down: server closed connection/,
        hint => 'remove "database", or raise "databases" at the server';
}

{
    my $redis_tls = redis(tls => 1);
    my $of_tls = 'the server speaks TLS: "ssl on", or "rediss://"';
    hinted 'a port of TLS', at('127.0.0.1:' . $redis_tls->tls_port),
        says => qr/$redis is down: (?:server closed connection|connection failed \(104: Connection reset by peer\))/,
        hint => 'if the server wants TLS: "ssl on", or "rediss://"';
    hinted 'a port of TLS that says so', at('127.0.0.1:' . fake_server(canned => ["\x15\x03\x01\x00\x02\x02\x46"])->port),
        says => qr/$redis is down: reply of unexpected type 0x15/, hint => $of_tls;
}

my $no_tls = 'if the server speaks no TLS: "ssl off", or "redis://"';
my %tls = (ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt}, connect_timeout => 500 * patience() . 'ms');
hinted 'a port without TLS', at(redis()), %tls,
    says => qr/$redis is down: SSL handshake timed out/, hint => "$no_tls; if it is far away: raise \"connect_timeout\"";
hinted 'a port without TLS that answers', at('127.0.0.1:' . fake_server(on_connect => "-ERR no\r\n", canned => [])->port), %tls,
    says => qr/$redis is down: SSL handshake failed: .*wrong version number.*/, hint => $no_tls;
hinted 'a memcached without TLS', at(memcached()), %tls, protocol => 'memcached',
    says => qr/memcached [\d.]+:\d+ is down: SSL handshake .*/, hint => $no_tls;

my $authority = 'name the server\'s CA in "ssl_trusted_certificate"';
hinted 'another CA', at('127.0.0.1:' . redis(tls => 1)->tls_port), %tls, ssl_trusted_certificate => $certs->{other_ca_crt},
    says => qr/$redis is down: SSL handshake failed: certificate verify error: .*/, hint => $authority;
hinted 'another name', at('127.0.0.1:' . redis(tls => 1)->tls_port), %tls, ssl_name => 'elsewhere.example',
    says => qr/$redis is down: SSL handshake failed: certificate does not match "elsewhere\.example"/,
    hint => 'set "ssl_name" to a name that the certificate has';
for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    hinted "a certificate is wanted, $protocol", at('127.0.0.1:' . redis(tls => { clients => 'yes' })->tls_port), %tls,
        ssl_protocols => $protocol,
        says => qr/$redis is down: .*alert.*/,
        hint => 'if the server wants a certificate: "ssl_certificate" and "ssl_certificate_key"';
}

{
    my $closed = fake_server(canned => ["-NOAUTH Authentication required.\r\n"]);
    hinted 'a Sentinel wants a password', at('127.0.0.1:' . $closed->port), sentinel => 'mymaster',
        says => qr/$redis refused \d+ requests, the last with "NOAUTH .*"/,
        hint => 'set "sentinel_password_file", and "sentinel_username" if it is a user\'s';
    hinted 'a Sentinel has another password', at(redis(password => 's3cret-word')), sentinel => 'mymaster', sentinel_password_file => $other,
        says => qr/$redis is down: server refused: "WRONGPASS .*"/,
        hint => 'check "sentinel_username" and "sentinel_password_file" by ACL GETUSER at the server';
}

{
    my $meta = 'meta commands need memcached 1.6.10, and no proxy that does not know them';
    my $fake = sub {
        my ($version, $noop) = @_;
        my $said = sub { $_[0] eq 'version' ? "$version\r\n" : $_[0] eq 'mn' ? $noop : "EN\r\n" };
        return at('127.0.0.1:' . fake_server(canned => [$said])->port);
    };
    my $down = qr/memcached [\d.]+:\d+ is down/;
    hinted 'an old memcached', $fake->('VERSION 1.5.22', "ERROR\r\n"), protocol => 'memcached',
        says => qr/$down: server refused: "VERSION 1\.5\.22"/, hint => $meta;
    hinted 'a proxy without meta commands', $fake->('VERSION 1.6.21', "ERROR\r\n"), protocol => 'memcached',
        says => qr/$down: server refused: "ERROR"/, hint => $meta;
    hinted 'one that ends the connection for them', $fake->('VERSION 1.6.21', { close => 1 }), protocol => 'memcached',
        says => qr/$down: server closed connection/, hint => $meta;
}

hinted 'a server that is no Sentinel', at(redis()), sentinel => 'mymaster',
    says => qr/$redis refused \d+ requests, the last with "ERR unknown command ['`]SENTINEL['`]\.\.\."/,
    hint => 'with "sentinel" each "server" is a Sentinel, port 26379';
hinted 'a server that is no node of a cluster', at(redis()), cluster => 'on',
    says => qr/$redis refused \d+ requests, the last with "ERR This instance has cluster support disabled"/,
    hint => 'the server is no node of a cluster: remove "cluster"';
hinted 'a node of a cluster', at((redis_cluster(masters => 2, replicas => 0)->nodes)[0]),
    says => qr/$redis refused \d+ requests, the last with "MOVED \d+ 127\.0\.0\.1:\d+"/,
    hint => 'the server is a node of a cluster: set "cluster on"';

{
    my $master = redis();
    hinted 'a replica', at(redis(replicaof => $master)->wait_replica),
        says => qr/$redis refused \d+ requests, the last with "READONLY .*"/,
        hint => 'the server is a replica: name its master, or its Sentinels with "sentinel"';
}

done_testing;
