# A connection to a server that has nothing to do costs no time, whatever the event method.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

# How long a worker is watched, and what it may use of that, in seconds. One that spins uses all of
# it, or a half where others have the processor too.
use constant IDLE => 1;
use constant USED => 0.1;

# Distributions have epoll only; the nginx built here has all of them.
my $skip;
if (event_methods() < 2) {
    my $binary = root() . '/target/nginx-vendored/nginx';
    my $module = root() . '/target/vendored/ngx_http_ssl_session_module.so';
    my @newer  = grep { -e $module && -M $_ < -M $module } map { glob root() . "/$_" } qw(src/*.rs src/*/*.rs core/src/*.rs);
    if (!-x $binary || !-e $module) {
        $skip = 'this nginx has epoll only, and "make build-vendored" was not run';
    } elsif (@newer) {
        $skip = 'this nginx has epoll only, and what "make build-vendored" made is out of date';
    } else {
        # A run of its own: the fixture asks its nginx but once what it can do.
        local @ENV{qw(TEST_NGINX_BINARY TEST_NGINX_LOAD_MODULES)} = ($binary, $module);
        exit 1 if $ENV{FAULT_SPIN_AGAIN}++;
        # Its output is this one's.
        my $status = system $^X, (map { "-I$_" } @INC), __FILE__;
        require POSIX;
        POSIX::_exit($status ? 1 : 0);
    }
}

my $certs = certs();

my %reply = (
    'a server that answers'         => ["\$-1\r\n", 'MISS'],
    'a server that answers nothing' => ['', 'TIMEOUT'],
);

for my $method (event_methods()) {
    for my $what (sort keys %reply) {
        subtest "$method, $what" => sub { watched($method, 'tcp', @{ $reply{$what} }) };
    }
    subtest "$method, a unix socket" => sub { watched($method, 'unix', "\$-1\r\n", 'MISS') };
}

SKIP: {
    skip $skip, 1 if defined $skip;
    ok event_methods() > 1, 'more than one event method was tried';
}

done_testing;

sub watched {
    my ($method, $where, $reply, $outcome) = @_;
    my $port   = free_port();
    my $server = fake_server(unix => $where eq 'unix', canned => [ sub { uc $_[0] eq 'GET' ? $reply : "+OK\r\n" } ]);
    my $address = $where eq 'unix' ? 'unix:' . $server->unix : '127.0.0.1:' . $server->port;
    my $fetch  = int(300 * patience());
    my $nginx  = nginx(method => $method, log => 'notice', conf => <<"CONF");
    ssl_session_backend store {
        server          $address;
        connect_timeout 20s;
        fetch_timeout   ${fetch}ms;
        store_timeout   20s;
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    $nginx->log_like(qr/using the "$method" event method/);
    my $idle = sub {
        my ($when) = @_;
        my ($cpu, $since) = ($nginx->cpu, time);
        wait_until { time - $since >= IDLE } 2 * IDLE, 'time to pass';
        my $used = $nginx->cpu - $cpu;
        cmp_ok $used, '<', USED, "no time is used $when";
    };

    my $first = tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1);
    wait_until { $server->requests('SET') } 5, 'store';
    is $server->stats->{accepted}, 1, 'there is a connection';
    $idle->('after the first store');

    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $first->session);
    is $client->request, $outcome, 'outcome' or diag $client->error;
    is scalar($server->requests('GET')), 1, 'it was asked';
    $idle->('after the first lookup');

    $first->close;
    $nginx->quit;
    is_deeply [ $nginx->errors(warn => 1, $outcome eq 'TIMEOUT' ? (except => qr/is down: no answer|sessions not stored/) : ()) ], [],
        'nothing else in the log';
}
