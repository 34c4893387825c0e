# The event methods: a suspended handshake costs no time, whatever the client has sent.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

use Time::HiRes qw(time);

# How long a handshake is held, and what the worker may use of it, in seconds. One that spins uses
# all of it, or half where others have the processor too.
use constant HELD => 1;
use constant USED => 0.15;

my $certs = certs();
my $redis = redis();

for my $method (event_methods()) {
    subtest $method => sub {
        my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
        my $port  = free_port();
        my $nginx = nginx(method => $method, log => 'notice', conf => <<"CONF");
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch     fleet;
    ssl_session_store     fleet;
    ssl_session_tickets   off;
    ssl_early_data        on;
    ssl_certificate       $certs->{ec_crt};
    ssl_certificate_key   $certs->{ec_key};
    ssl_protocols         TLSv1.2 TLSv1.3;
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status \$ssl_early_data\\n"; }
    }
CONF
        $nginx->log_like(qr/using the "$method" event method/);

        my $held = sub {
            my ($start) = @_;
            my $before = $relay->requests('GET');
            $relay->hold;
            my $client = $start->();
            wait_until { $relay->requests('GET') > $before } 10, 'lookup';
            wait_until { unread($port) == 0 } 10, 'nginx to read what was sent' unless nginx_patched($method);
            my ($cpu, $since) = ($nginx->cpu, time);
            wait_until { time - $since >= HELD } 2 * HELD, 'time to pass';
            cmp_ok $nginx->cpu - $cpu, '<', USED, 'no time is used while it waits';
            is scalar($relay->requests('GET')), $before + 1, 'still one lookup';
            $relay->release;
            return $client;
        };

        my $session = sub {
            my $client = tls_client(port => $port, protocol => $_[0]);
            $client->request // diag $client->error;
            my ($der) = ($client->sessions)[-1];
            my $key = cache_key($der);
            wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
            return $der;
        };

        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            subtest "$protocol, a ClientHello" => sub {
                my %offer  = (port => $port, protocol => $protocol, session => $session->($protocol));
                my $client = $held->(sub { tls_client(%offer)->start });
                is $client->request, "r HIT \n", 'resumed' or diag $client->error;
            };
        }

        subtest 'a ClientHello and the beginning of the next record' => sub {
            my %offer  = (port => $port, protocol => 'TLSv1.2', session => $session->('TLSv1.2'));
            # A warning, user_canceled, which servers pass over.
            my ($kept, $later) = unpack 'a3a*', "\x15\x03\x03\x00\x02\x01\x5a";
            my $client = $held->(sub {
                my $client = tls_client(%offer)->start;
                $client->send_raw($kept);
                return $client;
            });
            $client->send_raw($later);
            is $client->request, "r HIT \n", 'resumed, with the bytes in their order'
                or diag $client->error;
        };

        my %size = ('a small request' => 0, 'all that nginx allows' => 16_000);
        for my $what (sort keys %size) {
            subtest "early data: $what" => sub {
                my $file = tmpdir() . "/$method-$size{$what}.pem";
                my $early = "POST / HTTP/1.0\r\nContent-Length: $size{$what}\r\n\r\n" . 'x' x $size{$what};
                # Its lookup comes behind the store: both go through one connection.
                s_client(port => $port, protocol => 'TLSv1.3', sess_out => $file);
                my $client = $held->(sub {
                    return s_client_start(port => $port, protocol => 'TLSv1.3', sess_in => $file,
                        early_data => $early, path => undef, args => ['-ign_eof']);
                });
                is $client->early_data, 'accepted', 'accepted' or diag $client->output;
                is $client->reused, 1, 'resumed';
                # It is 1 for as long as the handshake goes on, which a slow machine ends first.
                like $client->response, qr/^r HIT 1?$/, 'answered';
            };
        }

        $nginx->quit;
        is_deeply [ $nginx->errors ], [], 'no error in the log';
    };
}

done_testing;

# Bytes on connections to that port which nginx has not read.
sub unread {
    my ($port) = @_;
    my $local = sprintf '%s:%04X', '0100007F', $port;
    my $sum = 0;
    for (split /\n/, slurp('/proc/net/tcp')) {
        my (undef, $from, undef, undef, $queues) = split;
        $sum += hex((split /:/, $queues)[1]) if $from eq $local;
    }
    return $sum;
}
