# Early data and HelloRetryRequest, each and both, in handshakes that are suspended.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(early_client early_records);
use Test::More;

my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
my @kinds = qw(rsa ec);
my %port  = map { ("$_ early" => free_port(), "$_ retry" => free_port()) } @kinds;

sub conf {
    my ($timeout) = @_;
    my $servers = '';
    for my $kind (@kinds) {
        # The second one asks clients whose first key share is of another group to try again.
        for my $does ('early', 'retry') {
            my $curve = $does eq 'retry' ? 'ssl_ecdh_curve secp384r1;' : '';
            $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port{"$kind $does"} ssl;
        $curve
        ssl_early_data      on;
        ssl_certificate     $certs->{"${kind}_crt"};
        ssl_certificate_key $certs->{"${kind}_key"};
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status \$ssl_early_data\\n"; }
    }
CONF
        }
    }
    return <<"CONF";
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout $timeout;
        store_timeout 60s;
    }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
$servers
CONF
}

my $nginx = nginx(conf => conf('60s'));

my $sessions = 0;
my $served;

# A session for s_client, in a file.
sub session_file {
    my ($port) = @_;
    my $file = tmpdir() . '/session' . $sessions++ . '.pem';
    s_client(port => $port, protocol => 'TLSv1.3', sess_out => $file);
    # When a later one is in the store, this one is: they go through one connection.
    session($port);
    return $file;
}

# A session for the raw client.
sub session {
    my ($port) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.3', groups => 'P-384:X25519');
    $client->request // diag $client->error;
    my ($session) = ($client->sessions)[-1];
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';
    return $session;
}

# A client whose lookup is held, and what lets it go and tells how many lookups there were.
sub held {
    my ($start) = @_;
    my $before = $relay->requests('GET');
    $served = $nginx->access_log =~ tr/\n//;
    $relay->hold;
    my $client = $start->();
    wait_until { $relay->requests('GET') > $before } 10, 'lookup';
    return ($client, sub {
        $relay->release;
        $client->finish if $client->can('finish');
        return $relay->requests('GET') - $before;
    });
}

for my $kind (@kinds) {
    my $port = $port{"$kind early"};

    subtest "$kind: early data is answered, as such" => sub {
        my $front = relay(upstream => "127.0.0.1:$port");
        my $file  = session_file($port);
        my ($client, $end) = held(sub { early_client(port => $front->port, sess_in => $file) });
        wait_until { early_records(join '', map { @$_ } $front->requests) && !$front->stats->{request} } 10, 'early data';
        # $ssl_early_data is 1 until the client's Finished comes: it must not come first.
        $front->hold('request');
        $relay->release;
        wait_until { ($nginx->access_log =~ tr/\n//) > $served } 10, 'answer';
        $front->release('request');
        is $end->(), 1, 'one lookup';
        is $client->early_data, 'accepted', 'early data accepted' or diag $client->output;
        is $client->response, "r HIT 1\n", 'answered before the handshake has ended';
        $front->stop;
    };

    subtest "$kind: as much early data as nginx allows" => sub {
        my $file = session_file($port);
        my ($client, $end) = held(sub { early_client(port => $port, sess_in => $file, size => 16_000) });
        is $end->(), 1, 'one lookup';
        is $client->reused, 1, 'resumed';
        is $client->early_data, 'accepted', 'early data accepted';
        like $client->response, qr/^r HIT 1?$/, 'answered';
    };

    subtest "$kind: early data in many segments, its ClientHello in small records" => sub {
        my $front = relay(upstream => "127.0.0.1:$port");
        $front->split_records(7);
        $front->chunk(100, 'request');
        my $file = session_file($port);
        my ($client, $end) = held(sub {
            return early_client(port => $front->port, sess_in => $file, size => 5000);
        });
        is $end->(), 1, 'one lookup';
        is $client->early_data, 'accepted', 'early data accepted' or diag $client->output;
        like $client->response, qr/^r HIT 1?$/, 'answered';
        $front->stop;
    };

    subtest "$kind: early data with a session that the store does not know" => sub {
        my $file = session_file($port);
        $redis->cmd('FLUSHALL');
        my ($client, $end) = held(sub {
            return early_client(port => $port, sess_in => $file, request => "GET / HTTP/1.0\r\n\r\n");
        });
        is $end->(), 1, 'one lookup';
        is $client->reused, 0, 'full handshake';
        is $client->early_data, 'rejected', 'early data rejected';
        is $client->response, ". MISS \n", 'asked again, answered';
    };

    $port = $port{"$kind retry"};
    my %group = (groups => 'X25519:P-384');

    for my $cut ({}, { segment => 1 }, { records => 3 }, { segment => 1, records => 3 }) {
        my $how = join '', map { ", $_ $cut->{$_}" } sort keys %$cut;
        subtest "$kind: HelloRetryRequest, the lookup held$how" => sub {
            my $session = session($port);
            my ($client, $end) = held(sub {
                return tls_client(port => $port, protocol => 'TLSv1.3', %group, %$cut,
                    session => $session)->start;
            });
            is $client->received, '', 'nothing is said before the answer is there';
            is $end->(), 1, 'one lookup';
            is $client->request, "r HIT \n", 'resumed' or diag $client->error;
            ok $client->hello_retried, 'the client had to try again';
            is_deeply +($relay->requests('GET'))[-1], [ 'GET', cache_key($session) ], 'no second lookup';
        };
    }

    subtest "$kind: HelloRetryRequest with a session that the store does not know" => sub {
        my $session = session($port);
        $redis->cmd('FLUSHALL');
        my ($client, $end) = held(sub {
            return tls_client(port => $port, protocol => 'TLSv1.3', %group, session => $session)->start;
        });
        $relay->release;
        is $client->request, ". MISS \n", 'full handshake' or diag $client->error;
        ok $client->hello_retried, 'the client had to try again';
        is $end->(), 1, 'one lookup';
    };

    subtest "$kind: HelloRetryRequest and no session" => sub {
        my $before = $relay->requests('GET');
        my $client = tls_client(port => $port, protocol => 'TLSv1.3', %group);
        is $client->request, ".  \n", 'full handshake' or diag $client->error;
        ok $client->hello_retried, 'the client had to try again';
        is scalar($relay->requests('GET')), $before, 'no lookup';
    };

    for my $size (0, 16_000) {
        subtest "$kind: HelloRetryRequest and early data with $size bytes more" => sub {
            my $file = session_file($port);
            my ($client, $end) = held(sub {
                return early_client(port => $port, sess_in => $file, size => $size,
                    args => [qw(-groups X25519:P-384)], request => "GET / HTTP/1.0\r\n\r\n");
            });
            is $end->(), 1, 'one lookup';
            is $client->reused, 1, 'resumed' or diag $client->early_data;
            is $client->early_data, 'rejected', 'early data rejected';
            is $client->response, "r HIT \n", 'asked again, answered';
        };
    }
}

subtest 'early data, and the lookup ends at its timeout' => sub {
    $nginx->reload(conf('100ms'));
    my $file = session_file($port{'ec early'});
    # Another answer first, or the server is taken for dead.
    $relay->delay(500);
    my $client = early_client(port => $port{'ec early'}, sess_in => $file, size => 16_000,
        request => "GET / HTTP/1.0\r\n\r\n");
    is $client->reused, 0, 'full handshake';
    is $client->early_data, 'rejected', 'early data rejected';
    is $client->response, ". TIMEOUT \n", 'asked again, answered';
    $relay->delay(0);
};

$nginx->quit;
is_deeply [ $nginx->errors(except => qr/is down: no answer within/) ], [], 'no error in the log';

done_testing;
