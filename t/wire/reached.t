# A server is down when nothing reaches it: a connection that cannot be made, while others work, is no
# matter of the others.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs   = certs();
my $connect = 0.8 * patience();

# http{} with a TLS server on $port. A client waits for much less than a connection may take, as by default: the
# others go on being answered. Sessions are in a Redis with TLS at $server.
sub conf {
    my ($port, $server) = @_;
    my ($fetch_ms, $connect_ms) = map { int(1000 * $_) } 0.2 * patience(), $connect;
    return <<"CONF";
    ssl_session_backend store {
        server $server;
        ssl on;
        ssl_trusted_certificate $certs->{ca_crt};
        connect_timeout ${connect_ms}ms;
        fetch_timeout   ${fetch_ms}ms;
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$pid|\$ssl_session_fetch_status"; }
    }
CONF
}

sub client {
    my ($port, $session) = @_;
    return tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
}

# Several clients at once, so that all workers have their turn: [pid, outcome] of each.
sub visits {
    my ($port, $session) = @_;
    my @clients = map { client($port, $session)->start } 1 .. 8;
    return map { [ split /\|/, $_->request ] } @clients;
}

# Two workers that have connections to a Redis behind a relay, and a session that is there.
sub start {
    my ($port, $redis) = (free_port(), redis(tls => 1));
    my $relay = relay(upstream => '127.0.0.1:' . $redis->tls_port);
    my $nginx = nginx(workers => 2, conf => conf($port, '127.0.0.1:' . $relay->port));
    my $new   = client($port);
    $new->request;
    wait_until { $redis->cmd('EXISTS', cache_key($new->session)) } 5, 'the session in the store';
    my (%hits, $session);
    $session = $new->session;
    wait_until { $_->[1] eq 'HIT' and $hits{ $_->[0] }++ for visits($port, $session); keys %hits == 2 } 20,
        'hits of both workers';
    return ($port, $redis, $relay, $nginx, $session);
}

# The connections for lookups.
sub lookups { my ($redis) = @_; return grep { $_->{cmd} eq 'get' } $redis->clients }

# One that is refused in a moment, before the other worker has had an answer, is a reason to ask whether the server
# is there.
subtest 'the new connection of one worker hangs: the other one goes on' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    my @links = lookups($redis);
    is scalar(@links), 2, 'each worker has its connection for lookups';
    my $from = $nginx->log_pos;
    $relay->deaf;
    $redis->cmd('CLIENT', 'KILL', 'ID', $links[0]{id});
    my %seen;
    # Until the connection of the other worker has failed several times.
    my $end = time + 4 * $connect;
    while (time < $end) {
        $seen{ $_->[0] }{ $_->[1] }++ for visits($port, $session);
    }
    note explain \%seen;
    my @well = grep { keys %{ $seen{$_} } == 1 && $seen{$_}{HIT} } keys %seen;
    is scalar(@well), 1, 'one worker has had hits and nothing else';
    is scalar(keys %seen), 2, 'of two';
    is $nginx->log_count(qr/ is down/, from => $from), 0, 'the server is not down';
    cmp_ok $nginx->log_count(qr/\[error\] .*redis \S+: (?:connect\(\)|SSL handshake) timed out.* \(\d+ times\)/, from => $from), '>=', 1, 'the log says why';
    is scalar(lookups($redis)), 1, 'over one connection';
    $relay->deaf(0);
    my %hits;
    wait_until { $_->[1] eq 'HIT' and $hits{ $_->[0] }++ for visits($port, $session); keys %hits == 2 } 20,
        'hits of both workers';
    is $nginx->log_count(qr/ is down/, from => $from), 0, 'nor was it';
    is_deeply [ $nginx->errors(from => $from, warn => 1, except => qr/redis \S+: |SSL sessions? not stored/) ], [],
        'nothing else in the log';
};

subtest 'a connection that was kept ends while the server is asked whether it is there' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    $relay->drop;
    wait_until { !grep { $_->[1] ne 'DOWN' } visits($port, $session) } 20, 'the server to be down';
    my $accepted = $relay->stats->{accepted};
    wait_until { visits($port, $session); $relay->stats->{accepted} > $accepted } 20, 'a probe';
    $redis->cmd('CLIENT', 'KILL', 'ID', $_->{id}) for lookups($redis);
    visits($port, $session);
    $relay->drop(0);
    my %hits;
    wait_until { $_->[1] eq 'HIT' and $hits{ $_->[0] }++ for visits($port, $session); keys %hits == 2 } 20,
        'hits of both workers';
    pass 'it is found to be there';
};

subtest 'all connections end, and no new one is made: the server is down, at once' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    my $from = $nginx->log_pos;
    $relay->refuse;
    $relay->close_all;
    my %seen;
    wait_until { my @all = visits($port, $session); $seen{ $_->[1] }++ for @all; !grep { $_->[1] ne 'DOWN' } @all } 10,
        'nobody asks it';
    is $nginx->log_count(qr/\[error\] .* is down: /, from => $from), 1, 'said once';
    $relay->refuse(0);
    my %hits;
    wait_until { $_->[1] eq 'HIT' and $hits{ $_->[0] }++ for visits($port, $session); keys %hits == 2 } 20,
        'hits of both workers';
    is $nginx->log_count(qr/ is up again/, from => $from), 1, 'and that it is up again';
};

subtest 'a server that hangs is down, and keeps its connections' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start();
    my @links = sort map { $_->{id} } lookups($redis);
    is scalar(@links), 2, 'each worker has its connection for lookups';
    my $from = $nginx->log_pos;
    $redis->pause;
    wait_until { !grep { $_->[1] ne 'DOWN' } visits($port, $session) } 20, 'nobody asks it';
    is $nginx->log_count(qr/\[error\] .* is down: /, from => $from), 1, 'said once';
    $redis->resume;
    my %hits;
    wait_until { $_->[1] eq 'HIT' and $hits{ $_->[0] }++ for visits($port, $session); keys %hits == 2 } 20,
        'hits of both workers';
    is $nginx->log_count(qr/ is up again/, from => $from), 1, 'and that it is up again';
    is_deeply [ sort map { $_->{id} } lookups($redis) ], \@links, 'over the same connections';
};

done_testing;
