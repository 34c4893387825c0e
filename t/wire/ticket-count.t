# ssl_session_ticket_count: how many tickets, and so entries, a full handshake of TLS 1.3 brings. A
# resumption brings one, and a handshake of TLS 1.2 makes one session.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $long  = 'connect_timeout 20s; fetch_timeout 20s; store_timeout 20s;';

# Where the log ends once all that the worker has done is in it. nginx logs a write after it, so a
# store may show what was written before the log does.
sub log_end {
    my ($nginx, $port) = @_;
    my $from = $nginx->log_pos;
    return $from if $nginx->log !~ /\[debug\]/;
    my $later = tls_client(port => $port);
    wait_until { $nginx->log_count(qr/\[debug\] .* accept: /, from => $from) } 10, 'the log';
    return $nginx->log_pos;
}

# How many entries come of a full handshake, and of one that resumes its session.
sub entries {
    my ($protocol, $http, $server) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend store { server ${\ $redis->address }; $long }
    ssl_session_fetch store;
    ssl_session_store store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    $http
    server {
        listen 127.0.0.1:$port ssl;
        $server
        location / { return 200 "\$ssl_session_fetch_status \$ssl_session_store_status"; }
    }
CONF
    my (@entries, $session);
    # With the links of both kinds.
    my $first = tls_client(port => $port, protocol => $protocol);
    $first->request;
    wait_until { $redis->cmd('EXISTS', cache_key($first->session)) } 10, 'the first session in the store';
    for my $fetched ('', 'HIT') {
        my $stored = $fetched && $protocol eq 'TLSv1.2' ? '' : 'STORED';
        my ($before, $from) = ($redis->calls('set'), log_end($nginx, $port));
        my $client = tls_client(port => $port, protocol => $protocol, session => $session);
        is $client->request, "$fetched $stored", "$protocol: " . ($fetched ? 'resumed' : 'a full handshake');
        $session = $client->session;
        # The last one: the others have come before it, over the same connection.
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'the session in the store' if $stored;
        push @entries, $redis->calls('set') - $before;
        next if $nginx->log !~ /\[debug\]/;
        log_end($nginx, $port);
        is $nginx->log_count(qr/\[debug\] .* send: fd:\d+ (\d+) of \1$/, from => $from),
            ($stored ? 1 : 0) + ($fetched ? 1 : 0), 'all of them are in one write';
    }
    is_deeply [ $nginx->errors(warn => 1) ], [], 'nothing in the log';
    return \@entries;
}

is_deeply entries('TLSv1.3', '', ''), [ 2, 1 ], "by default: OpenSSL's number";
is_deeply entries('TLSv1.3', "ssl_session_ticket_count $_;", ''), [ $_, 1 ], "$_ after a full handshake" for 1, 4;
is_deeply entries('TLSv1.2', 'ssl_session_ticket_count 4;', ''), [ 1, 0 ], 'TLS 1.2 is as before';
is_deeply entries('TLSv1.3', 'ssl_session_ticket_count 4;', 'ssl_conf_command NumTickets 3;'), [ 3, 1 ],
    'a server that says another number has its own';

done_testing;
