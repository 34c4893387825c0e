# Clients that go away while their sessions are looked up leave nothing behind.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use Time::HiRes qw(time);

# What nginx gives a client to send its request, in seconds.
use constant HEADER_TIMEOUT => 1;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my ($port, $hasty) = (free_port(), free_port());
my @protocols = qw(TLSv1.2 TLSv1.3);

sub conf {
    return <<"CONF";
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch     fleet;
    ssl_session_store     fleet;
    ssl_session_tickets   off;
    ssl_early_data        on;
    ssl_protocols         TLSv1.2 TLSv1.3;
    ssl_certificate       $certs->{ec_crt};
    ssl_certificate_key   $certs->{ec_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
    server {
        listen 127.0.0.1:$hasty ssl;
        client_header_timeout @{[ HEADER_TIMEOUT ]}s;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
}

my $nginx;

# What a client needs to offer a session that is in the store.
sub offer {
    my ($protocol) = @_;
    my $client = tls_client(port => $port, protocol => $protocol);
    $client->request // diag $client->error;
    my ($session) = ($client->sessions)[-1];
    my $key = cache_key($session);
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
    return (protocol => $protocol, session => $session);
}

# Clients that wait for lookups, each with what it offers. Those that offer the same session wait
# for one lookup.
sub waiting {
    my @offers = @_;
    my %session = map { $_->{session} => 1 } @offers;
    my $before = $relay->requests('GET');
    $relay->hold;
    my @clients = map { tls_client(port => $port, %$_)->start } @offers;
    wait_until { $relay->requests('GET') == $before + keys %session } 10, 'lookups';
    return @clients;
}

sub resumes {
    my ($offer) = @_;
    is tls_client(port => $port, %$offer)->request, "r HIT\n", 'and the next one resumes';
}

my %goes = (
    'closes'      => sub { $_[0]->close },
    'resets'      => sub { $_[0]->reset },
    'half-closes' => sub { $_[0]->half_close },
);

$nginx = nginx(conf => conf());
# From here on there are two connections to redis: what is stored, and what is looked up.
my $idle = $nginx->fds + 2;
tls_client(port => $port, offer('TLSv1.2'))->request;

# How many files are open when no client is there any more: nginx may close a connection a moment
# after the client has its end.
sub rest {
    wait_until { $nginx->fds == $idle } 10, 'the end of all connections of clients';
    return $idle;
}

for my $protocol (@protocols) {
    for my $how (sort keys %goes) {
        subtest "$protocol: the client $how" => sub {
            my %offer   = offer($protocol);
            my %unknown = offer_unknown();
            my $fds = rest();
            my ($client) = waiting(\%offer);
            is $nginx->fds, $fds + 1, 'a connection';
            $goes{$how}->($client);
            ok wait_until { $nginx->fds == $fds } 5, 'which nginx closes while the lookup goes on';
            is $client->wait_closed, 'eof', 'and tells it' if $how eq 'half-closes';
            my $said = nginx_patched() && $how eq 'half-closes' ? "\x15\x03\x03\x00\x02\x02\x5a" : '';
            is $client->received =~ s/^\x15\x03[\x00-\x04]/\x15\x03\x03/r, $said, $said ? 'the alert user_canceled' : 'nothing was answered';
            # Its place is taken by another one, whom the late answer must not reach.
            my ($next) = waiting(\%unknown);
            $relay->release;
            is $next->request, ". MISS\n", 'the late answer is not taken for that of another one';
            resumes(\%offer);
            ok wait_until { $nginx->fds == $fds } 5, 'no connection is left';
        };
    }

    subtest "$protocol: client_header_timeout" => sub {
        my %offer = offer($protocol);
        my $fds   = rest();
        my $from  = $nginx->log_pos;
        my $start = time;
        my ($client) = waiting({ %offer, port => $hasty });
        is $client->wait_closed(HEADER_TIMEOUT + 5), 'eof', 'closes the connection';
        cmp_ok time - $start, '>=', HEADER_TIMEOUT - 0.05, 'and not earlier';
        is $client->received, '', 'nothing was answered';
        $nginx->log_like(qr/client timed out.*while SSL handshaking/, from => $from);
        ok wait_until { $nginx->fds == $fds } 5, 'no connection is left while the lookup goes on';
        $relay->release;
        resumes(\%offer);
    };

    subtest "$protocol: the client sends more than it should" => sub {
        plan skip_all => 'it stays in the socket' if nginx_patched();
        my %offer = offer($protocol);
        my $fds   = rest();
        my $from  = $nginx->log_pos;
        my ($client) = waiting(\%offer);
        my $record = pack 'Cnn/a', 23, 0x303, 'x' x 16_384;
        # Some of it stays in the system's buffers when nginx has closed.
        $client->send_raw($record) or last for 1 .. 20;
        ok $client->wait_closed, 'the connection is closed while the lookup goes on';
        $nginx->log_like(qr/client sent more than \d+ bytes while its SSL session was fetched/, from => $from);
        ok wait_until { $nginx->fds == $fds } 5, 'no connection is left';
        $relay->release;
        resumes(\%offer);
    };
}

subtest 'a client that dies with early data on its way' => sub {
    my $file = tmpdir() . '/early.pem';
    s_client(port => $port, protocol => 'TLSv1.3', sess_out => $file);
    my $fds    = rest();
    my $before = $relay->requests('GET');
    $relay->hold;
    my $client = s_client_start(port => $port, protocol => 'TLSv1.3', sess_in => $file,
        early_data => 'GET / HTTP/1.0' . "\r\nX: " . 'x' x 10_000, path => undef);
    wait_until { $relay->requests('GET') > $before } 10, 'lookup';
    $client->process->kill_all;
    ok wait_until { $nginx->fds == $fds } 5, 'its connection is closed while the lookup goes on';
    $relay->release;
    my %offer = offer('TLSv1.3');
    resumes(\%offer);
};

$nginx->quit;
# OpenSSL's words for the data that came in place of a handshake.
is_deeply [ $nginx->errors(except => qr/SSL_(?:do_handshake|read_early_data)\(\) failed/) ], [],
    'no other error in the log';

# Valgrind keeps what was freed, and finds by itself what was not.
for my $how ($ENV{TEST_NGINX_USE_VALGRIND} ? () : sort keys %goes) {
    subtest "several hundred clients: each $how" => sub {
        # Without its debug log, which is slow.
        $nginx = nginx(log => 'notice', conf => conf());
        # The first one is what half of them have in common.
        my %offers = map { my $protocol = $_; $protocol => [ map { { offer($protocol) } } 0 .. 10 ] } @protocols;
        tls_client(port => $port, %{ $offers{'TLSv1.2'}[0] })->request;
        my $fds    = rest();
        my $round = sub {
            my ($rounds) = @_;
            for my $n (1 .. $rounds) {
                my @clients = waiting(@{ $offers{ $protocols[ $n % 2 ] } }[ (0) x 10, 1 .. 10 ]);
                $goes{$how}->($_) for @clients;
                wait_until { $nginx->fds == $fds } 10, 'end of the connections';
                $relay->release;
            }
        };
        $round->(8);
        my $rss = $nginx->rss;
        $round->(20);
        # A kilobyte for each of them would be 400.
        cmp_ok $nginx->rss - $rss, '<', 300, 'no memory is left behind';
        ok wait_until { $nginx->fds == $fds } 5, 'nor a connection';
        resumes($offers{$_}[0]) for @protocols;
        $nginx->quit;
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };
}

done_testing;

# What a client needs to offer a session of TLS 1.2 that is not in the store.
sub offer_unknown {
    my %offer = offer('TLSv1.2');
    $redis->cmd('DEL', cache_key($offer{session}));
    return %offer;
}
