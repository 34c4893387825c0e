# A new connection to a server offers the TLS session of the last one, to nobody else, and not
# if it does not work.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use IO::Select;
use IO::Socket::INET;
use Test::More;

my $certs = certs();

# How often a connection is made while memory is watched, and half as often before.
my $rounds = $ENV{TEST_NGINX_USE_VALGRIND} ? 4 : 300;

# http{} with a TLS server on $port whose sessions are in $targets.
sub conf {
    my ($port, $targets, @more) = @_;
    return <<"CONF";
    @more
    ssl_session_fetch $targets;
    ssl_session_store $targets;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status";
        }
    }
CONF
}

sub backend {
    my ($name, $server, %more) = @_;
    my $ms  = 1000 * patience() . 'ms';
    my %all = (ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt},
        connect_timeout => $ms, fetch_timeout => $ms, %more);
    return "ssl_session_backend $name { " . join(' ', map { "server $_;" } split ' ', $server)
        . join(' ', map { "$_ $all{$_};" } sort keys %all) . ' }';
}

sub nginx_with {
    my ($server, %more) = @_;
    my $port  = free_port();
    return (nginx(conf => conf($port, 'store', backend('store', $server, %more))), $port);
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit";
    return ($status, $client);
}

sub stored_session {
    my ($port, @redis) = @_;
    my (undef, $client) = visit($port);
    my $session = $client->session;
    wait_until { grep { $_->cmd('EXISTS', cache_key($session)) } @redis } 5, 'the session in the store';
    return $session;
}

# The first lookups may still be on a link that has just been closed.
sub wait_for_hit {
    my ($port, $session) = @_;
    return wait_until {
        my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
        ($client->request // '') eq 'HIT';
    } 15, 'a hit';
}

sub lines_are {
    my ($nginx, @allowed) = @_;
    my $allowed = join '|', @allowed;
    is_deeply [ $nginx->errors(warn => 1, @allowed ? (except => qr/$allowed/) : ()) ], [], 'nothing else in the log';
}

# What a link that ends in use may leave in the log.
my @lost = ('server closed connection', 'connection failed \(104: ', 'SSL_(?:read|write)\(\) failed', 'recv\(\) failed');

# All handshakes so far: 'full', 'offered' (in vain), 'reused' or 'failed'.
sub kinds {
    my ($tls) = @_;
    return [ map { $_->{error} ? 'failed' : $_->{reused} ? 'reused' : $_->{offered} ? 'offered' : 'full' } $tls->handshakes ];
}

my @ways = (
    [ 'TLS 1.2 with tickets', protocol => 'TLSv1.2' ],
    [ 'TLS 1.2 with session IDs', protocol => 'TLSv1.2', stateful => 1 ],
    [ 'TLS 1.3 with tickets', protocol => 'TLSv1.3' ],
    [ 'TLS 1.3 with stateful tickets', protocol => 'TLSv1.3', stateful => 1 ],
    [ 'TLS 1.3 with one ticket', protocol => 'TLSv1.3', tickets => 1 ],
);

for my $case (@ways) {
    my ($what, %how) = @$case;
    subtest "$what: whichever way the link ends" => sub {
        my $redis = redis();
        my $tls   = tls_relay(upstream => $redis->address, %how);
        my $relay = relay(upstream => $tls->address);
        my ($nginx, $port) = nginx_with('127.0.0.1:' . $relay->port);
        my $session = stored_session($port, $redis);
        my $n = 0;
        my %end = (
            close_notify => sub { $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes)) },
            'FIN alone'  => sub { $relay->close_all },
            RST          => sub { $relay->reset_all },
        );
        # Where the server keeps the session itself, it forgets it when the link ends otherwise.
        my @abrupt = $how{stateful} ? () : ('FIN alone', 'RST');
        for my $end ('close_notify', @abrupt, 'close_notify') {
            $end{$end}->();
            wait_for_hit($port, $session);
            # A lookup may have met the end, whose full handshake has a session to store on a link of its own.
            my ($first, @others) = @{ kinds($tls) };
            is $first, 'full', "after $end: the first link";
            is_deeply [ grep { $_ ne 'reused' } @others ], [], 'all others reuse its session';
            cmp_ok scalar @others, '>', $n, 'and there is another one';
            $n = @others;
        }
        is $nginx->log_count(qr/SSL handshake done, session reused/), $n, 'and so the debug log has it'
            if $nginx->log =~ /\[debug\]/;
        is $nginx->log_count(qr/ is down: /), 0, 'it never counted as down';
        lines_are($nginx, @lost);
    };
}

subtest 'ssl_session_reuse off' => sub {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $redis = redis();
        my $tls   = tls_relay(upstream => $redis->address, protocol => $protocol);
        my ($nginx, $port) = nginx_with($tls->address, ssl_session_reuse => 'off');
        my $session = stored_session($port, $redis);
        for (1 .. 2) {
            $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
            wait_for_hit($port, $session);
        }
        my @kinds = @{ kinds($tls) };
        is_deeply [ grep { $_ ne 'full' } @kinds ], [], "$protocol: none is offered";
        cmp_ok scalar @kinds, '>=', 3, 'for each link';
        lines_are($nginx, @lost);
    }
};

subtest 'redis-server and s_server resume them' => sub {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $redis = redis(tls => { protocols => $protocol });
        my ($nginx, $port) = nginx_with('127.0.0.1:' . $redis->tls_port);
        my $session = stored_session($port, $redis);
        $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
        wait_for_hit($port, $session);
        like $nginx->log, qr/SSL handshake done, session reused/, "redis-server, $protocol" if $nginx->log =~ /\[debug\]/;

        my $server = s_server(protocol => $protocol);
        ($nginx, $port) = nginx_with('127.0.0.1:' . $server->port, store_timeout => '10s');
        for my $n (1 .. 2) {
            visit($port);
            wait_until { (() = $server->output =~ /^SET/mg) == $n } 5, 'the store';
            # In TLS 1.3 the tickets come with the answer.
            my $from = $nginx->log_pos;
            $server->say("+OK\r\n");
            $nginx->log_like(qr/SSL_read: 5/, from => $from) if $nginx->log =~ /\[debug\]/;
            $from = $nginx->log_pos;
            $server->hang_up;
            $nginx->log_like(qr/server closed connection/, from => $from) if $nginx->log =~ /\[debug\]/;
        }
        is scalar(() = $server->output =~ /^Reused session-id/mg), 1, "s_server, $protocol";
        lines_are($nginx);
    }
};

subtest 'a session is offered to none but its own server' => sub {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my @redis = map { redis() } 1 .. 2;
        # Such as would resume each other's: one process, two ports, would; here it is enough that
        # neither is offered what it has not given.
        my @tls = map { tls_relay(upstream => $_->address, protocol => $protocol) } @redis;
        my ($nginx, $port) = nginx_with(join ' ', map { $_->address } @tls);
        # Sessions of both servers, one after the other.
        my @session;
        wait_until {
            my $session = stored_session($port, @redis);
            $session[$_] //= $session for grep { $redis[$_]->cmd('EXISTS', cache_key($session)) } 0, 1;
            $session[0] && $session[1];
        } 10, 'a session at each';
        for my $n (1 .. 2) {
            $_->cmd(qw(CLIENT KILL TYPE normal SKIPME yes)) for @redis;
            wait_for_hit($port, $_) for @session;
            for my $tls (@tls) {
                # A lookup may have met the end, whose full handshake has a session to store on a link of its own.
                my ($first, @others) = @{ kinds($tls) };
                is_deeply [ $first, grep { $_ ne 'reused' } @others ], ['full'], "$protocol: its own";
                cmp_ok scalar @others, '>=', $n, 'for each link';
            }
        }
        lines_are($nginx, @lost);
    }
};

subtest 'a session is not offered under another policy' => sub {
    my $redis = redis();
    my $tls   = tls_relay(upstream => $redis->address, cert => 'backend_other');
    my $port  = free_port();
    my @backends = (backend('trusting', $tls->address, ssl_verify => 'off'), backend('strict', $tls->address));
    my $nginx = nginx(conf => conf($port, 'trusting strict', @backends));
    my $session = stored_session($port, $redis);
    $nginx->log_like(qr/ is down: SSL handshake failed: certificate verify error/);
    # What is stored has a link of its own, which may come later, and offers what the first one has got.
    wait_until { 2 == grep { $_ eq 'full' } @{ kinds($tls) } } 5, 'two backends of one server: both have their own';
    is_deeply [ grep { !/^(?:full|reused)$/ } @{ kinds($tls) } ], [], 'and offer no other';
    for (1 .. 2) {
        $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
        wait_for_hit($port, $session);
    }
    wait_until { grep { $_ eq 'reused' } @{ kinds($tls) } } 5, 'a session that is reused';

    # What has failed to verify is not offered either: not by the backend above, nor later.
    my $n = $tls->handshakes;
    $nginx->reload(conf($port, 'strict', $backends[1]));
    visit($port);
    $nginx->log_like(qr/ is down: SSL handshake failed: certificate verify error/, from => 0);
    wait_until { visit($port, session => $session); $tls->handshakes >= $n + 3 } 10, 'probes';
    is_deeply [ grep { $_ ne 'full' } @{ kinds($tls) }[ $n .. $n + 2 ] ], [], 'after a reload none is offered';
    is $nginx->log_count(qr/ is up again/), 0, 'and it is not trusted';
};

subtest 'a session that the server does not accept' => sub {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $redis = redis();
        my $tls   = tls_relay(upstream => $redis->address, protocol => $protocol);
        my ($nginx, $port) = nginx_with($tls->address);
        my $session = stored_session($port, $redis);
        # With other keys, then with another protocol, then with sessions that are never accepted.
        my $n = 1;
        for my $change ({}, { protocol => $protocol eq 'TLSv1.2' ? 'TLSv1.3' : 'TLSv1.2' }, { resume => 0 }) {
            my ($name) = %$change;
            $tls->restart(%$change);
            wait_for_hit($port, $session);
            # A lookup may have met the end, whose full handshake has a session to store on a link of its own.
            my ($first, @others) = @{ kinds($tls) };
            is_deeply [ $first, grep { !/^(?:offered|reused)$/ } @others ], ['full'], 'only the first one offers nothing';
            cmp_ok scalar(grep { $_ eq 'offered' } @others), '>=', $n++, 'offered, then a full handshake';
        }
        is $nginx->log_count(qr/SSL handshake failed/), 0, 'no handshake fails';
        lines_are($nginx, @lost, ' is down: connect\(\) failed', 'not stored in');
    }
};

# In front of a TLS server: answers a ClientHello that offers a session with 'alert', 'close' or
# 'silence' alone. What the ClientHellos were is in the file.
sub picky_server {
    my ($address, $file, $answer) = @_;
    my $listener = IO::Socket::INET->new(
        LocalAddr => '127.0.0.1', LocalPort => free_port(), Listen => 10, ReuseAddr => 1) or die "listen: $@";
    SSLSession::Process->spawn(name => 'picky', keep => [$listener], code => sub {
        open my $log, '>>', $file or die "$file: $!";
        my @silent;
        while (my $client = $listener->accept) {
            my $link = { sock => $client };
            my $hello;
            $hello = SSLSession::TlsRelay::Loop->hello($link) until $hello;
            my $offered = $hello->{offered};
            syswrite $log, $offered ? "offered\n" : "full\n";
            if ($offered) {
                sysread $client, my $hello, 65536;
                syswrite $client, "\x15\x03\x03\x00\x02\x02\x28" if $answer eq 'alert';
                push @silent, $client if $answer eq 'silence';
                next;
            }
            my $upstream = IO::Socket::INET->new(PeerAddr => $address) or next;
            my %other = ($client => $upstream, $upstream => $client);
            PASS: while (1) {
                for my $from (IO::Select->new($client, $upstream)->can_read) {
                    sysread $from, my $bytes, 65536 or last PASS;
                    syswrite $other{$from}, $bytes;
                }
            }
        }
    });
    return '127.0.0.1:' . $listener->sockport;
}

my %reason = (
    alert   => qr/SSL handshake failed: SSL_do_handshake\(\) failed \(SSL: .*alert handshake failure.*\)/,
    close   => qr/SSL handshake failed: peer closed connection in SSL handshake/,
    silence => 'SSL handshake timed out',
);

for my $answer (sort keys %reason) {
    subtest "a session that is answered with $answer is not offered again" => sub {
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            my $redis = redis();
            my $file  = new_dir("picky") . "/hellos";
            my $tls   = tls_relay(upstream => $redis->address, protocol => $protocol);
            my $picky = picky_server($tls->address, $file, $answer);
            my ($nginx, $port) = nginx_with($picky, connect_timeout => 500 * patience() . 'ms');
            my $session = stored_session($port, $redis);
            $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes));
            # The first may still be on the old link.
            wait_until { visit($port, session => $session); slurp($file) =~ /offered/ } 5, 'an offer';
            wait_for_hit($port, $session);
            is slurp($file), "full\noffered\nfull\n", "$protocol: the one after it is without";
            is $nginx->log_count(qr/redis \Q$picky\E is down: $reason{$answer}/), 1, 'one line when it failed';
            is $nginx->log_count(qr/ is up again/), 1, 'one when it was back';
            lines_are($nginx, @lost, ' is down: SSL handshake', 'not stored in');
        }
    };
}

subtest 'many tickets and many connections: nothing is left over' => sub {
    my $redis = redis();
    for my $case ([ 'TLSv1.3', 20 ], [ 'TLSv1.3', 0 ], [ 'TLSv1.2', 0 ]) {
        my ($protocol, $tickets) = @$case;
        my $tls  = tls_relay(upstream => $redis->address, protocol => $protocol, tickets => $tickets);
        my $port = free_port();
        my $nginx = nginx(log => 'notice', conf => conf($port, 'store', backend('store', $tls->address)));
        my $session = stored_session($port, $redis);
        my $again = sub {
            $redis->cmd(qw(CLIENT KILL TYPE normal SKIPME yes)) >= 1 or die 'no link';
            wait_for_hit($port, $session);
        };
        $again->() for 1 .. $rounds / 2;
        my ($rss, $fds) = ($nginx->rss, $nginx->fds);
        $again->() for 1 .. $rounds;
        my $after = $nginx->rss;
        # A session is a kilobyte at least, and there are $rounds of them.
        cmp_ok $after - $rss, '<=', 200, "$protocol, $tickets tickets: $rss KB before, $after KB after"
            unless $ENV{TEST_NGINX_USE_VALGRIND};
        # The link for stores may have come since.
        wait_until { $nginx->fds <= $fds + 1 } 5, 'the end of the last connection';
        my %kinds;
        $kinds{$_}++ for @{ kinds($tls) };
        # There is no session before the first answer was read: a few links may be made until then.
        if ($tickets || $protocol eq 'TLSv1.2') { cmp_ok $kinds{full}, '<=', 4, 'few full handshakes' }
        else                                    { is $kinds{full}, scalar @{ kinds($tls) }, 'full handshakes alone' }
        is_deeply [ grep { !/^(?:full|reused)$/ } keys %kinds ], [], 'none fails, or is offered in vain';
        $nginx->quit;
        lines_are($nginx, @lost);
    }
};

done_testing;
