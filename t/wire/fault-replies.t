# Servers that answer what nobody asked for, without end, or before they were asked.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use IO::Select;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# The timeouts of a backend, far away from everything that is measured here, in seconds.
use constant TIMEOUT => 20;

# What comes at once comes within this, on a slow machine too, in seconds.
my $at_once = 2 * patience();

sub conf {
    my ($port, $server, %arg) = @_;
    my $timeout = TIMEOUT * patience();
    my $fetch   = ($arg{fetch} // TIMEOUT) * patience();
    return <<"CONF";
    ssl_session_backend store {
        server          $server;
        connect_timeout ${timeout}s;
        fetch_timeout   ${fetch}s;
        store_timeout   ${timeout}s;
    }
    ssl_session_fetch   @{[ $arg{target} // 'store' ]};
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

# Sessions that are in no store: lookups of them are all that the servers here see.
my (%session, @sessions);
{
    my $port  = free_port();
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_fetch   shared:any:1m;
    ssl_session_store   shared:any:1m;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port ssl; location / { return 200 ok; } }
CONF
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $client = tls_client(port => $port, protocol => $protocol);
        $client->request // die $client->error;
        ($session{$protocol}) = ($client->sessions)[-1];
    }
    @sessions = map { tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->session } 1 .. 3;
    $nginx->stop;
}

sub client {
    my ($port, $protocol, $session) = @_;
    $protocol //= 'TLSv1.2';
    return tls_client(port => $port, protocol => $protocol, session => $session // $session{$protocol});
}

# The outcome of a lookup whose handshake has to go on at once.
sub outcome {
    my ($port, $protocol) = @_;
    my $start  = time;
    my $client = client($port, $protocol);
    my $status = $client->request;
    my $took   = time - $start;
    cmp_ok $took, '<', $at_once, 'the handshake is not held up' or diag $client->error;
    return $status;
}

# No lines but these, and none of them raw.
sub log_has_only {
    my ($nginx, $pattern) = @_;
    is_deeply [ $nginx->errors(warn => 1, except => $pattern) ], [], 'nothing else in the log';
}

sub ends { my ($nginx) = @_; ok eval { $nginx->quit; 1 }, 'and it exits in order' or diag $@ }

# A server of the test's own: $serve->($socket, $command) for each connection, whose bytes it
# reads and writes as it likes.
sub own_server {
    my ($serve) = @_;
    my $listener = IO::Socket::INET->new(
        LocalAddr => '127.0.0.1', LocalPort => free_port(), Listen => 64, ReuseAddr => 1) or die "listen: $@";
    my $process = SSLSession::Process->spawn(name => 'server', keep => [$listener], code => sub {
        $SIG{PIPE} = 'IGNORE';
        my @open;
        while (my $sock = $listener->accept) {
            push @open, $sock if $serve->($sock);
        }
    });
    return ($listener->sockport, $process);
}

for my $reply ("+OK\r\n", "+PONG\r\n", ":1\r\n") {
    my $name = substr $reply, 0, -2;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$protocol: $name to GET ends the handshake's wait at once, as ERROR" => sub {
            my $port  = free_port();
            my $store = fake_server(canned => [$reply]);
            my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $store->port));
            is outcome($port, $protocol), 'ERROR', 'outcome';
            is $store->requests('GET'), 1, 'it was asked';
            $nginx->log_like(qr/\[error\] .*redis 127\.0\.0\.1:\d+ is down: reply to no request/);
            log_has_only($nginx, qr/is down: reply to no request/);
            ends($nginx);
        };
    }
}

subtest 'the same, where several handshakes wait' => sub {
    my $port  = free_port();
    # All three have been asked before the first answer.
    my $asked = 0;
    my $store = fake_server(canned => [ sub { ++$asked == 3 ? "\$-1\r\n+OK\r\n" : '' } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $store->port));
    # Of one session there would be one lookup.
    my ($last, @first) = map { client($port, 'TLSv1.2', $_) } @sessions;
    $_->start for @first;
    wait_until { $store->requests('GET') == 2 } 10, 'two lookups';
    my $start = time;
    $last->start;
    my @outcomes = map { $_->request // $_->error } @first, $last;
    cmp_ok time - $start, '<', $at_once, 'all go on at once';
    is_deeply [ sort @outcomes ], [ sort qw(MISS ERROR ERROR) ], 'a good answer counts, for one of them';
    log_has_only($nginx, qr/is down: reply to no request/);
    ends($nginx);
};

subtest 'several handshakes that offer one session wait for one answer' => sub {
    for my $case ([ "\$-1\r\n", 'MISS' ], [ "+OK\r\n", 'ERROR' ], [ "\$1\r\nx\r\n", 'CORRUPT' ]) {
        my ($reply, $outcome) = @$case;
        my $port  = free_port();
        my $store = fake_server(canned => [$reply]);
        $store->hold;
        my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $store->port));
        my @same  = map { client($port)->start } 1 .. 3;
        # This one asks for itself, when the others have been heard.
        my $last = client($port, 'TLSv1.2', $sessions[0])->start;
        wait_until { $store->requests('GET') == 2 } 10, 'two lookups';
        $store->release;
        my @outcomes = map { $_->request // $_->error } @same;
        is_deeply \@outcomes, [ ($outcome) x 3 ], "$outcome for each of them";
        $last->request;
        is scalar($store->requests('GET')), 2, 'the server was asked once for them';
        log_has_only($nginx, qr/: reply to no request|corrupt SSL session/);
        ends($nginx);
    }
};

# A value is announced, and then bytes come as fast as they are read. The server notes when it is
# rid of the client.
sub endless {
    my ($head, $more) = @_;
    my $closed = tmpdir() . '/closed';
    unlink $closed;
    my ($port, $process) = own_server(sub {
        my ($sock) = @_;
        sysread $sock, my $command, 65536;
        syswrite $sock, $head;
        my $sent = length $head;
        my $deadline = time + TIMEOUT * patience();
        while (time < $deadline) {
            my $n = syswrite $sock, $more;
            last if !defined $n;
            $sent += $n;
        }
        spew("$closed.new", $sent);
        rename "$closed.new", $closed;
        return 0;
    });
    return ($port, $process, $closed);
}

my %endless = (
    'a value of a terabyte'                  => [ "\$1000000000000\r\n", "\0" x 262_144, 'ERROR' ],
    'the longest number there is'            => [ "\$18446744073709551615\r\n", "\0" x 262_144, 'ERROR' ],
    'a value too large, and more of them'    => [ '', '$1000000' . "\r\n" . "x" x 1_000_000 . "\r\n", 'CORRUPT' ],
    'one value after the other'              => [ '', "\$100\r\n" . "x" x 100 . "\r\n", qr/^(?:CORRUPT|ERROR)$/ ],
    'misses without end'                     => [ '', "\$-1\r\n" x 50_000, qr/^(?:MISS|ERROR)$/ ],
    'an error message without end'           => [ '-ERR ', 'x' x 262_144, 'ERROR' ],
    'a number without end'                   => [ '$', '1' x 262_144, 'ERROR' ],
);

for my $what (sort keys %endless) {
    subtest "$what: refused, and the connection is closed" => sub {
        my ($head, $more, $outcome) = @{ $endless{$what} };
        my $port  = free_port();
        my ($server, $process, $closed) = endless($head, $more);
        # The debug log would say so for each read.
        my $nginx = nginx(log => 'notice', conf => conf($port, "127.0.0.1:$server"));
        # Settled memory: a handshake that looks nothing up.
        tls_client(port => $port, protocol => 'TLSv1.2')->request for 1 .. 3;
        my $rss = $nginx->rss;
        my $status = outcome($port);
        ref $outcome ? like($status, $outcome, 'outcome') : is($status, $outcome, 'outcome');
        for (1 .. 5) {
            my $client = tls_client(port => $port, protocol => 'TLSv1.2');
            my $start  = time;
            ok defined $client->request, 'another client is served';
            cmp_ok time - $start, '<', $at_once, 'and not held up';
        }
        my $sent = eval { wait_until { slurp($closed) } 10 } || 9e9;
        # What stood in the system's buffers counts here, too.
        cmp_ok $sent, '<', 64 * 1024 * 1024, 'soon';
        cmp_ok $nginx->rss - $rss, '<', 6 * 1024, 'memory stays as it was';
        log_has_only($nginx, qr/ is down: |redis 127\.0\.0\.1:\d+: |refused \d+ requests|corrupt SSL session/);
        $process->kill_all;
        ends($nginx);
    };
}

# A reply begins, and its rest comes a byte each millisecond. The server notes how long it has had the
# client.
sub dripping {
    my ($head) = @_;
    my $closed = tmpdir() . '/closed';
    unlink $closed;
    my ($port, $process) = own_server(sub {
        my ($sock) = @_;
        sysread $sock, my $command, 65536;
        my $start = time;
        syswrite $sock, $head;
        while (time - $start < TIMEOUT * patience()) {
            select undef, undef, undef, 0.001;
            defined syswrite $sock, ':' or last;
        }
        spew("$closed.new", time - $start);
        rename "$closed.new", $closed;
        return 0;
    });
    return ($port, $process, $closed);
}

my %dripping = (
    'a value'                                => [ "\$16000\r\n", 'TIMEOUT' ],
    'a value that is too long'               => [ "\$60000\r\n", 'CORRUPT' ],
    'an array of which only a string lacks'  => [ "*130001\r\n" . ":1\r\n" x 130_000 . "\$9999\r\n", 'ERROR' ],
    'a message that nobody asked for'        => [ ">9000\r\n" . ":1\r\n" x 8_999 . "\$9999\r\n", 'TIMEOUT' ],
);

for my $what (sort keys %dripping) {
    subtest "$what that never comes to its end: it costs no time, and is silence" => sub {
        my ($head, $outcome) = @{ $dripping{$what} };
        my ($port, $fetch) = (free_port(), 1);
        my ($server, $process, $closed) = dripping($head);
        my $nginx = nginx(log => 'notice', conf => conf($port, "127.0.0.1:$server", fetch => $fetch));
        my $cpu = $nginx->cpu;
        is client($port)->request, $outcome, 'outcome';
        # What is skipped ends no lookup after its own: the next one finds the server silent.
        is client($port)->request, 'TIMEOUT', 'of the next' if $outcome eq 'CORRUPT';
        my $after = wait_until { slurp($closed) } TIMEOUT, 'the end of the connection';
        # After four timeouts.
        cmp_ok $after, '<', 6 * $fetch * patience(), 'the connection is given up in time';
        cmp_ok $nginx->cpu - $cpu, '<', 0.15 * $fetch * patience(), 'and has cost next to nothing'
            unless $ENV{TEST_NGINX_USE_VALGRIND};
        log_has_only($nginx, qr/ is down: |: reply to no request|corrupt SSL session/);
        $process->kill_all;
        ends($nginx);
    };
}

subtest 'what an error reply says reaches the log without its control characters' => sub {
    my $port  = free_port();
    my $words = "ERR \e[31mred\a \b\0 \t one\rtwo \x7f \xc2\x9b \xff end";
    my $store = fake_server(canned => ["-$words\r\n"]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $store->port));
    is outcome($port), 'ERROR', 'outcome';
    my $line = $nginx->log_like(qr/\[error\] .* refused 1 requests, the last with "/);
    unlike $line, qr/[^\x20-\x7e]/, 'the line is of characters that can be shown';
    like $line, qr/"ERR \\x1b\[31mred/, 'and the others can be told';
    like $line, qr/ end"/, 'to the end';
    log_has_only($nginx, qr/refused 1 requests/);
    ends($nginx);

    # The answer to a greeting is another place where it is told.
    $nginx = nginx(conf => conf($port, '127.0.0.1:1', target => 'redis://127.0.0.1:' . $store->port . '/1'));
    client($port)->request;
    $line = $nginx->log_like(qr/\[error\] .* is down: server refused: "/);
    unlike $line, qr/[^\x20-\x7e]/, 'nor in the line about a connection that begins so';
    like $line, qr/"ERR \\x1b\[31mred.* end"/, 'which says it all';
    ends($nginx);
};

# As a server with too many clients does: it speaks first, and ends its side.
sub full_house {
    return own_server(sub {
        my ($sock) = @_;
        syswrite $sock, "-ERR max number of clients reached\r\n";
        shutdown $sock, 1;
        # It stays open on the other side.
        return 1;
    });
}

subtest 'a server that refuses and ends its side before it is asked' => sub {
    my $port = free_port();
    my ($server, $process) = full_house();
    my $nginx = nginx(conf => conf($port, "127.0.0.1:$server"));
    like outcome($port), qr/^(?:ERROR|DOWN)$/, 'outcome';
    $nginx->log_like(qr/\[error\] .*redis 127\.0\.0\.1:$server (?:refused 1 requests, the last with "ERR max number of clients reached"|is down: )/);
    log_has_only($nginx, qr/max number of clients|is down: (?:server closed connection|reply to no request)/);
    ends($nginx);
};

subtest 'the same, all of it in the event that tells that the connection is there' => sub {
    my $port = free_port();
    my ($rsa, $plain) = (free_port(), free_port());
    my ($server, $process) = full_house();
    # Signatures that take a while: they are what the worker does between its connect() and the
    # next events.
    my $conf = conf($port, "127.0.0.1:$server") . <<"CONF";
    server {
        listen 127.0.0.1:$rsa ssl;
        ssl_certificate     $certs->{rsa_crt};
        ssl_certificate_key $certs->{rsa_key};
        location / { return 200 ok; }
    }
    server {
        listen 127.0.0.1:$plain;
        location / { return 200 ok; }
    }
CONF
    for my $round (1 .. 3) {
        my $nginx = nginx(log => 'notice', conf => $conf);
        # A worker that answers has closed what it does not need of its master's. It stays open.
        my $awake = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$plain") || die $@;
        print {$awake} "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        like scalar <$awake>, qr{^HTTP/1\.1 200 }, 'the worker is there';
        my $fds   = $nginx->fds;
        my $first = client($port);
        my @busy  = map { tls_client(port => $rsa, protocol => 'TLSv1.2') } 1 .. 40;
        # The order in which they are reported is that in which something came.
        wait_until { $nginx->fds >= $fds + 41 } 10, 'accepted connections';
        my ($worker) = $nginx->workers;
        $nginx->halt($worker);
        $_->start for $first, @busy;
        my $start = time;
        kill CONT => $worker;
        like $first->request, qr/^(?:ERROR|DOWN)$/, 'outcome' or diag $first->error;
        cmp_ok time - $start, '<', $at_once, 'the handshake is not held up';
        $_->close for @busy;
        log_has_only($nginx, qr/max number of clients|is down: (?:server closed connection|reply to no request)/);
        is $nginx->log_count(qr/redis 127\.0\.0\.1:$server .*(?:max number of clients|is down: server closed)/) > 0, 1,
            'the log has its words or its end';
        ends($nginx);
    }
};

subtest 'of several addresses the log names the one that failed' => sub {
    my $port   = free_port();
    my $server = free_port();
    # Names of this machine have one address as a rule: nginx sees another file of them.
    my $hosts = spew(tmpdir() . '/hosts', "127.0.0.1 localhost\n", map { "127.1.2.$_ several.test\n" } 3, 4);
    my $real  = nginx_binary();
    my $sees  = spew(tmpdir() . '/nginx-with-hosts', <<"SH");
#!/bin/sh
exec unshare -m@{[ $> == 0 ? '' : 'r' ]} sh -c 'mount --bind $hosts /etc/hosts && exec "\$\@"' sh '$real' "\$\@"
SH
    chmod 0755, $sees;
    my $how = `unshare -m@{[ $> == 0 ? '' : 'r' ]} sh -c 'mount --bind $hosts /etc/hosts && getent ahosts several.test' 2>&1`;
    plan skip_all => 'no name with several addresses can be had here'
        if grep { $how !~ /^127\.1\.2\.$_ /m } 3, 4;
    local $ENV{TEST_NGINX_BINARY} = $sees;

    my %listener = map {
        $_ => scalar IO::Socket::INET->new(
            LocalAddr => $_, LocalPort => $server, Listen => 8, ReuseAddr => 1) || die "$_: $@"
    } qw(127.1.2.3 127.1.2.4);
    my $conf  = conf($port, "several.test:$server");
    my $nginx = nginx(conf => $conf);
    # Neither answers; where the connection is tells which of them is the first.
    my $client = client($port)->start;
    my $first = wait_until {
        my ($name) = grep { IO::Select->new($listener{$_})->can_read(0) } sort keys %listener;
        $name;
    } 10, 'connection';
    my ($second) = grep { $_ ne $first } keys %listener;
    $nginx->stop;

    close delete $listener{$first};
    $nginx  = nginx(conf => $conf);
    $client = client($port)->start;
    my $asked = eval { wait_until { IO::Select->new($listener{$second})->can_read(0) } 5 };
    ok $asked, 'the second is asked when the first refuses';
    is_deeply [ $nginx->errors(warn => 1) ], [], 'and nothing is said about it';
    $nginx->stop;

    close delete $listener{$second};
    $nginx = nginx(conf => $conf);
    is outcome($port), 'DOWN', 'none is there';
    my $line = $nginx->log_like(qr/ is down: /);
    like $line, qr/\[error\] .*redis \Q$second\E:$server is down: connect\(\) failed \(111: Connection refused\)/,
        'the last one tried, which ended the attempt';
    log_has_only($nginx, qr/is down: connect/);
    ends($nginx);
};

done_testing;
