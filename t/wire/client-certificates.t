# Sessions of clients that have shown a certificate: they live no longer than it, and can be kept out
# of the store.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();

sub conf {
    my ($port, $parameter, @more) = @_;
    return <<"CONF";
    ssl_session_backend store { server ${\ $redis->address }; connect_timeout ${\ (3 * patience()) }s; fetch_timeout ${\ (3 * patience()) }s; }
    ssl_session_fetch   store;
    ssl_session_store   store $parameter;
    ssl_session_timeout 5d;
    ssl_session_lifetime 7d;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_verify_client   optional_no_ca;
    @more
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_client_verify|\$ssl_client_s_dn"; }
    }
CONF
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $verify, $name) = split /\|/, $answer;
    return { status => $status, verify => $verify, name => $name, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

# A self-signed certificate that ends in so many seconds: as client's arguments.
my $made = 0;
sub certificate {
    my ($seconds) = @_;
    my $base = tmpdir() . '/client-' . ++$made;
    my $date = sub { POSIX::strftime('%Y%m%d%H%M%SZ', gmtime $_[0]) };
    my $dir  = new_dir('ca');
    spew("$dir/index.txt", '');
    spew("$dir/cnf", "[ca]\ndefault_ca=c\n[c]\ndatabase=$dir/index.txt\nnew_certs_dir=$dir\ndefault_md=sha256\npolicy=p\nrand_serial=yes\n[p]\ncommonName=supplied\n");
    for my $command (
        [ qw(req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj), "/CN=client $made", '-keyout', "$base.key", '-out', "$base.csr" ],
        [ qw(ca -batch -notext -selfsign -config), "$dir/cnf", '-keyfile', "$base.key", '-in', "$base.csr", '-out', "$base.crt",
            '-startdate', $date->(time - 1000), '-enddate', $date->(time + $seconds) ],
    ) {
        system('openssl ' . join(' ', map { "'$_'" } @$command) . " >$base.log 2>&1") == 0 or die slurp("$base.log");
    }
    return (cert => "$base.crt", key => "$base.key");
}

my $port  = free_port();
my $nginx = nginx(conf => conf($port, ''));

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: the ttl is the shorter life" => sub {
        my $day = 24 * 60 * 60;
        for my $case ([ 'the certificate ends first', 2 * $day, 2 * $day ], [ 'the session ends first', 100 * $day, 5 * $day ]) {
            my ($what, $life, $ttl) = @$case;
            my %client  = certificate($life);
            my $session = visit($port, protocol => $protocol, %client)->{session};
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
            my $left = $redis->cmd('TTL', cache_key($session));
            ok $left <= $ttl && $left > $ttl - 60 * patience(), "$what: $left of $ttl seconds";
            my $again = visit($port, protocol => $protocol, %client, session => $session);
            is $again->{status}, 'HIT', 'it is resumed';
            like $again->{name}, qr/CN=client $made/, 'and the client known';
        }
        my $session = visit($port, protocol => $protocol)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        cmp_ok $redis->cmd('TTL', cache_key($session)), '>', 5 * $day - 60 * patience(), 'without a certificate the session has its own';
    };

    subtest "$protocol: no session outlives its certificate" => sub {
        my $life = 3 * patience();
        my %client  = certificate($life);
        my $start   = time;
        my $session = visit($port, protocol => $protocol, %client)->{session};
        # The machine may have been so busy that it is over; then there is nothing to see.
        wait_until { $redis->cmd('EXISTS', cache_key($session)) || time > $start + $life } 20, 'the session in the store';
        # The store forgets to let it expire.
        my $kept = $redis->cmd('PERSIST', cache_key($session));
        wait_until { time > $start + $life + 1 } 20, 'the end of the certificate';
        my $from  = $nginx->log_pos;
        my $again = visit($port, protocol => $protocol, %client, session => $session);
        is $again->{reused}, 0, 'it is not resumed';
        # As in any full handshake with it.
        like $again->{status}, qr/400 The SSL certificate error/, 'and nginx refuses the certificate';
        like $nginx->log($from), qr/SSL session fetch [0-9a-f]{8}: expired\n/, 'the log says why' if $kept;
        wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'its removal';
        my $expired = visit($port, protocol => $protocol, %client);
        like $expired->{status}, qr/400 The SSL certificate error/, 'nor is a new one made that could be used';
        $session = visit($port, protocol => $protocol)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'a session after it in the store';
        is $redis->cmd('EXISTS', cache_key($expired->{session})), 0, 'one of an expired certificate is not stored';
    };
}

subtest 'no_client_cert' => sub {
    $nginx->reload(conf($port, 'no_client_cert'));
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my %client = (protocol => $protocol, cert => $certs->{client_crt}, key => $certs->{client_key});
        my $shown  = visit($port, %client);
        like $shown->{name}, qr/CN=client/, "$protocol: a client with a certificate";
        my $other  = visit($port, protocol => $protocol);
        wait_until { $redis->cmd('EXISTS', cache_key($other->{session})) } 5, 'the session of another one in the store';
        is $redis->cmd('EXISTS', cache_key($shown->{session})), 0, 'is not stored';
        is visit($port, %client, session => $shown->{session})->{status}, 'MISS', 'and not found';
        is visit($port, protocol => $protocol, session => $other->{session})->{status}, 'HIT', 'the other one is';
    }
};

is_deeply [ $nginx->errors(warn => 1, except => qr/corrupt SSL session .*: expired /) ], [], 'nothing else in the log';

done_testing;
