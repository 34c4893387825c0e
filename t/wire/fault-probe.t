# Servers that are slow or half dead: when the link to them is given up, and when it comes back.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Select;
use IO::Socket::INET;
use List::Util qw(min);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

sub conf {
    my ($port, $server, %limit) = @_;
    my $limits = join ' ', map { "$_ $limit{$_};" } sort keys %limit;
    return <<"CONF";
    ssl_session_backend store { server $server; $limits }
    ssl_session_fetch   store;
    ssl_session_store   off;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    client_header_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
}

sub ms { return int($_[0] * patience()) . 'ms' }

# Sessions that no server here has: lookups of them are all that they see.
my ($session, $other);
{
    my $port  = free_port();
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_fetch   shared:any:1m;
    ssl_session_store   shared:any:1m;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port ssl; location / { return 200 ok; } }
CONF
    ($session, $other) = map { tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->session } 1 .. 2;
    $nginx->stop;
}

sub client {
    my ($port, $offered) = @_;
    return tls_client(port => $port, protocol => 'TLSv1.2', session => $offered // $session);
}
sub outcome { my $client = client(@_); return $client->request // $client->error }

sub log_has_only {
    my ($nginx, $pattern) = @_;
    is_deeply [ $nginx->errors(warn => 1, $pattern ? (except => $pattern) : ()) ], [], 'nothing else in the log';
}

sub ends { my ($nginx) = @_; ok eval { $nginx->quit; 1 }, 'and it exits in order' or diag $@ }

# The first connection is closed when it is asked. What the first probe gets is $probe, and all
# after it are answered.
sub comes_back {
    my ($probe, %limit) = @_;
    my $port = free_port();
    my ($lookups, $probes) = (0, 0);
    my $server = fake_server(canned => [ sub {
        my ($command) = @_;
        return ++$probes == 1 ? $probe : "+PONG\r\n" if uc $command eq 'PING';
        return ++$lookups == 1 ? { close => 1 } : "\$-1\r\n";
    } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $server->port,
        connect_timeout => ms(100), fetch_timeout => ms(200), %limit));
    is outcome($port), 'ERROR', 'it closes when it is asked';
    $nginx->log_like(qr/\[error\] .*redis 127\.0\.0\.1:\d+ is down: server closed connection/);
    wait_until { outcome($port) eq 'DOWN' or die 'asked'; $server->requests('PING') == 1 } 10, 'a probe';
    my @seen;
    my $back = eval { wait_until { push @seen, outcome($port); $seen[-1] eq 'MISS' } 10, 'an answer' };
    ok $back, 'it is asked again in the end' or diag "@seen[-5 .. -1]";
    is_deeply [ grep { !/^(?:DOWN|MISS)$/ } @seen ], [], 'and until then it is down';
    is scalar($server->requests('PING')), 2, 'the next probe was a success';
    is $server->stats->{accepted}, 3, 'on a connection of its own';
    is $nginx->log_count(qr/\[notice\] .*redis 127\.0\.0\.1:\d+ is up again/), 1, 'which is said';
    is outcome($port), 'MISS', 'and it stays';
    # nginx itself tells of a reset.
    log_has_only($nginx, qr/is down: server closed connection|recv\(\) failed \(104:/);
    ends($nginx);
}

my %half = (
    'half an answer'                   => '+PO',
    'nothing'                          => '',
    'half an answer and its end'       => { bytes => '+PO', close => 1 },
    'an error'                         => "-LOADING Redis is loading the dataset in memory\r\n",
    'half an error'                    => '-LOADING',
    'a reset'                          => { reset => 1 },
    'an answer to something else'      => "\$-1\r\n",
);
for my $what (sort keys %half) {
    subtest "a probe gets $what: the one after it is another try" => sub { comes_back($half{$what}) };
}

subtest 'a probe gets its answer byte by byte, never to its end: the one after it is another try' => sub {
    my ($port, $own) = (free_port(), free_port());
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $own, Listen => 8, ReuseAddr => 1)
        or die "listen: $@";
    my $nginx = nginx(conf => conf($port, "127.0.0.1:$own", connect_timeout => ms(100), fetch_timeout => ms(200)));
    my $ask   = client($port)->start;
    my $first = accept_from($listener);
    wait_until { sysread $first, my $bytes, 1024 } 5, 'GET';
    close $first;
    is $ask->request, 'ERROR', 'it closes when it is asked';
    wait_until { outcome($port); IO::Select->new($listener)->can_read(0) } 10, 'a probe';
    my $probe = accept_from($listener);
    # Something is heard all the time.
    my $given_up = wait_until {
        defined syswrite $probe, 'x' or return 1;
        my $n = sysread $probe, my $bytes, 1024;
        defined $n ? $n == 0 : !$!{EAGAIN};
    } 5, 'end of the probe';
    ok $given_up, 'it is given up all the same';
    wait_until { outcome($port); IO::Select->new($listener)->can_read(0) } 10, 'the next probe';
    $probe = accept_from($listener);
    wait_until { sysread $probe, my $bytes, 1024 } 5, 'PING';
    syswrite $probe, "+PONG\r\n";
    $nginx->log_like(qr/is up again/);
    log_has_only($nginx, qr/is down: server closed connection/);
    ends($nginx);
};

subtest 'connecting and the probe together may take longer than connect_timeout' => sub {
    my $port = free_port();
    my $lookups = 0;
    my $slow = 150 * patience();
    my $server = fake_server(canned => [ sub {
        my ($command) = @_;
        return { close => 1 } if uc $command eq 'GET' && ++$lookups == 1;
        return { bytes => uc $command eq 'PING' ? "+PONG\r\n" : "\$-1\r\n", delay => $slow };
    } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $server->port,
        connect_timeout => ms(100), fetch_timeout => ms(1000)));
    is outcome($port), 'ERROR', 'it closes when it is asked';
    my $back = eval { wait_until { outcome($port) eq 'MISS' } 10, 'an answer' };
    ok $back, 'it comes back' or diag $@;
    is scalar($server->requests('PING')), 1, 'with the first probe';
    is $nginx->log_count(qr/is up again/), 1, 'which is said';
    is outcome($port), 'MISS', 'and it stays' for 1 .. 3;
    log_has_only($nginx, qr/is down: server closed connection/);
    ends($nginx);
};

subtest 'a probe is the greeting and PING: each of them has to be accepted' => sub {
    my $port = free_port();
    my %told = (SELECT => 0, PING => 0, GET => 0);
    my $server = fake_server(canned => [ sub {
        my $name = uc $_[0];
        my $time = ++$told{$name};
        return $time == 1 ? "+OK\r\n" : "\$-1\r\n" if $name eq 'GET';
        return $time == 3 ? "-ERR DB index is out of range\r\n" : "+OK\r\n" if $name eq 'SELECT';
        return $time == 1 ? "-LOADING Redis is loading the dataset in memory\r\n" : "+PONG\r\n";
    } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $server->port,
        connect_timeout => ms(2000), fetch_timeout => ms(2000), database => 3));
    is outcome($port), 'ERROR', 'it answers something else';
    my @seen;
    wait_until { push @seen, outcome($port); $seen[-1] eq 'MISS' } 20, 'an answer';
    is_deeply [ grep { !/^(?:DOWN|MISS)$/ } @seen ], [], 'until it is asked again it is down';
    is_deeply [ map { $_->[0] } $server->requests ],
        [ qw(SELECT GET), (qw(SELECT PING)) x 3, 'GET' ], 'nothing is asked before a probe is accepted';
    is_deeply [ map { $_->[1] } $server->requests('SELECT') ], [ (3) x 4 ], 'each connection selects the database';
    is $nginx->log_count(qr/is up again/), 1, 'one line when it is back';
    log_has_only($nginx, qr/is down: reply to no request/);
    ends($nginx);
};

subtest 'a server that accepts the greeting and closes when it is asked is down' => sub {
    my $port = free_port();
    my $server = fake_server(canned => [ sub { uc $_[0] eq 'GET' ? { close => 1 } : "+OK\r\n" } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $server->port,
        connect_timeout => ms(2000), fetch_timeout => ms(2000), database => 3));
    is outcome($port), 'ERROR', 'the first lookup';
    is outcome($port), 'DOWN', 'the second';
    is $nginx->log_count(qr/is down: server closed connection/), 1, 'it is said';
    log_has_only($nginx, qr/is down: server closed connection|recv\(\) failed \(104:/);
    ends($nginx);
};

subtest 'a connection that takes long to come is not taken for a silent one' => sub {
    my ($port, $own) = (free_port(), free_port());
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $own, Listen => 1, ReuseAddr => 1)
        or die "listen: $@";
    # A queue that is full takes no more: whoever comes has to try again, a second later.
    my @crowd;
    for (1 .. 64) {
        my $sock = IO::Socket::INET->new(Proto => 'tcp', Blocking => 0) or die "socket: $@";
        connect $sock, Socket::pack_sockaddr_in($own, Socket::inet_aton('127.0.0.1'));
        push @crowd, $sock;
        last if !IO::Select->new($sock)->can_write(0.2 * patience());
    }
    my $fetch = 1.5 * patience();
    my $nginx = nginx(conf => conf($port, "127.0.0.1:$own",
        connect_timeout => ms(20_000), fetch_timeout => ms(1500)));
    my $client = client($port);
    my $start  = time;
    $client->start;
    wait_until { connecting($own) > 1 } 5, 'attempt to connect';
    my %crowd = map { $_->sockport => 1 } @crowd;
    my @others;
    my $link = wait_until {
        IO::Select->new($listener)->can_read(0) or return;
        my $sock = accept_from($listener);
        return $sock if !$crowd{ $sock->peerport };
        push @others, $sock;
        return;
    } 10, 'the connection';
    my $took = time - $start;
    plan skip_all => sprintf 'connecting took but %.3f s', $took if $took < 0.3;
    note sprintf 'connecting took %.3f s of %.1f', $took, $fetch;
    wait_until { sysread $link, my $bytes, 1024 } 5, 'GET';

    is $client->request, 'TIMEOUT', 'the handshake does not wait longer';
    cmp_ok time - $start, '>=', $fetch - 0.05, 'nor shorter';
    syswrite $link, "\$-1\r\n";
    $client = client($port)->start;
    my $asked = eval { wait_until { sysread $link, my $bytes, 1024 } 5, 'GET' };
    ok $asked, 'the connection stays in use';
    syswrite $link, "\$-1\r\n";
    is $client->request, 'MISS', 'and its answers count';
    ok !IO::Select->new($listener)->can_read(0), 'there is no other one';
    log_has_only($nginx);
    ends($nginx);
};

subtest 'a request is not held back while another is unanswered' => sub {
    plan skip_all => 'no times under valgrind' if $ENV{TEST_NGINX_USE_VALGRIND};
    my ($port, $own) = (free_port(), free_port());
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $own, Listen => 8, ReuseAddr => 1)
        or die "listen: $@";
    my $nginx = nginx(log => 'notice', conf => conf($port, "127.0.0.1:$own",
        connect_timeout => '20s', fetch_timeout => '20s'));
    my $link;
    my $ask = sub {
        my $client = client($port, @_);
        $client->client_hello;
        my $start = time;
        $client->start;
        $link //= accept_from($listener);
        IO::Select->new($link)->can_read(10) or die 'no request';
        my $took = time - $start;
        sysread $link, my $bytes, 4096;
        return ($took, $client);
    };
    my $answer = sub { syswrite $link, "\$-1\r\n" x $_[0] };
    # Systems confirm what comes on a new connection at once, and later take their time for it.
    for (1 .. 60) {
        $ask->();
        $answer->(1);
    }
    my @took;
    for (1 .. 12) {
        my (undef, $one)  = $ask->();
        # Of the same session there would be one request.
        my ($took, $two) = $ask->($other);
        push @took, $took;
        $answer->(2);
    }
    note 'the second request took ' . join ' ', map { sprintf '%.1f', 1000 * $_ } @took;
    # A request that is held back is held for 40 ms, each time.
    cmp_ok min(@took), '<', 0.02, 'the second of two requests comes at once';
    log_has_only($nginx);
    $nginx->stop;
};

done_testing;

# A connection, whose reads do not wait.
sub accept_from {
    my ($listener) = @_;
    IO::Select->new($listener)->can_read(10 * patience()) or die 'no connection';
    my $sock = $listener->accept or die "accept: $!";
    $sock->blocking(0);
    return $sock;
}

# How many try to connect to that port.
sub connecting {
    my ($port) = @_;
    my $remote = sprintf '0100007F:%04X', $port;
    return scalar grep { my @field = split; $field[2] eq $remote && $field[3] eq '02' } split /\n/, slurp('/proc/net/tcp');
}
