# When a server counts as down, how it is found to be back, and what is said about it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use IO::Socket::INET;
use List::Util qw(max sum);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# http{} with a TLS server on $port. Lookups go to @servers, new sessions to $store (a URL or
# "off"), so that only lookups count there.
sub conf {
    my ($port, $servers, $store, %limit) = @_;
    my %all = (connect_timeout => 500 * patience() . 'ms', fetch_timeout => 500 * patience() . 'ms', %limit);
    return <<"CONF";
    ssl_session_backend asked {
        ${\ join "\n        ", map { "server $_;" } ref $servers ? @$servers : $servers }
        ${\ join "\n        ", map { "$_ $all{$_};" } sort keys %all }
    }
    ssl_session_fetch asked;
    ssl_session_store $store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time"; }
    }
CONF
}

# How a lookup ends; in list context also how long it took.
sub outcome {
    my ($port, $session) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $time) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit"
        if $client->reused != ($status eq 'HIT');
    return wantarray ? ($status, $time) : $status;
}

sub outcomes { my ($port, $session, $n) = @_; return [ map { scalar outcome($port, $session) } 1 .. $n ] }

sub new_session {
    my ($port, $redis) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2');
    $client->request;
    my $key = cache_key($client->session);
    wait_until { $redis->cmd('EXISTS', $key) } 5, 'the session in the store';
    return $client->session;
}

sub wait_hit {
    my ($port, $session) = @_;
    return wait_until { outcome($port, $session) eq 'HIT' } 20, 'a hit';
}

sub after { my ($seconds) = @_; my $end = time + $seconds; wait_until { time > $end } $seconds + 1 }

# A Redis behind a relay, where lookups go, and nginx, and a session that is there.
sub start {
    my ($parameters, %limit) = @_;
    my ($port, $redis) = (free_port(), redis());
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $relay->port . " $parameters", $redis->url, %limit));
    my $session = new_session($port, $redis);
    is outcome($port, $session), 'HIT', 'a hit to begin with';
    return ($port, $redis, $relay, $nginx, $session);
}

# nginx meets the end of a connection with a request unread as a reset, or as an end.
my $closed = qr/(?:server closed connection|connection failed \(104: Connection reset by peer\))/;

# From now on the server closes each connection before it answers; or no longer.
sub breaks { my ($relay) = @_; $relay->refuse; $relay->close_all }
sub works  { my ($relay) = @_; $relay->refuse(0) }

sub downs  { my ($nginx, %arg) = @_; return $nginx->log_count(qr/\[error\] .* redis \S+ is down: /, %arg) }
sub ups    { my ($nginx, %arg) = @_; return $nginx->log_count(qr/\[notice\] .* redis \S+ is up again/, %arg) }

sub nothing_else {
    my ($nginx) = @_;
    is_deeply [ $nginx->errors(warn => 1, except => qr/redis 127\.0\.0\.1:\d+(?: is down)?: /) ], [], 'nothing else in the log';
}

subtest 'max_fails failures open it, fewer do not' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start('max_fails=3');
    breaks($relay);
    is_deeply outcomes($port, $session, 2), [ qw(ERROR ERROR) ], 'two failures';
    is downs($nginx), 0, 'do not open it';
    my $line = $nginx->log_like(qr/\[error\] .* redis \S+: /);
    like $line, qr/: redis 127\.0\.0\.1:${\ $relay->port }: $closed \(1 times\)$doing$/, 'and are told';
    is outcome($port, $session), 'ERROR', 'a third';
    $nginx->log_like(qr/ redis 127\.0\.0\.1:${\ $relay->port } is down: $closed$doing$/);
    my ($status, $time) = outcome($port, $session);
    is $status, 'DOWN', 'the next lookup does not ask';
    cmp_ok $time, '<', 0.1 * patience(), 'and does not wait';
    works($relay);
    wait_hit($port, $session);
    is downs($nginx), 1, 'one line when it went down';
    is ups($nginx), 1, 'one when it is back';
    is_deeply outcomes($port, $session, 5), [ ('HIT') x 5 ], 'and it stays';
    is ups($nginx), 1, 'still one';

    # There is one line a second.
    after(1.1);
    breaks($relay);
    is_deeply outcomes($port, $session, 3), [ ('ERROR') x 3 ], 'again three';
    is outcome($port, $session), 'DOWN', 'open it';
    works($relay);
    wait_hit($port, $session);
    is downs($nginx), 2, 'a line each time';
    is ups($nginx), 2, 'a line each time';
    nothing_else($nginx);
};

subtest 'an answer resets the count' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start('max_fails=2 fail_timeout=1m');
    for (1 .. 3) {
        breaks($relay);
        is outcome($port, $session), 'ERROR', 'a failure';
        works($relay);
        is outcome($port, $session), 'HIT', 'then an answer';
    }
    is downs($nginx), 0, 'never down';
    breaks($relay);
    is_deeply outcomes($port, $session, 3), [ qw(ERROR ERROR DOWN) ], 'without an answer between them it is';
    nothing_else($nginx);
};

subtest 'failures count within fail_timeout' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start('max_fails=2 fail_timeout=1s');
    breaks($relay);
    for (1 .. 3) {
        is outcome($port, $session), 'ERROR', 'a failure';
        after(1.1);
    }
    is downs($nginx), 0, 'they are too far apart';
    my $start = time;
    my $got   = outcomes($port, $session, 3);
    SKIP: {
        skip 'too slow a machine', 1 if time - $start > 0.9;
        is_deeply $got, [ qw(ERROR ERROR DOWN) ], 'these are not';
    }
    nothing_else($nginx);
};

subtest 'max_fails=0 never opens it' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start('max_fails=0');
    breaks($relay);
    my $accepted = $relay->stats->{accepted};
    is_deeply outcomes($port, $session, 20), [ ('ERROR') x 20 ], 'each lookup tries';
    is $relay->stats->{accepted} - $accepted, 20, 'with a connection';
    is downs($nginx), 0, 'never down';
    works($relay);
    is outcome($port, $session), 'HIT', 'the first lookup that can hits';
    is ups($nginx), 0, 'nothing to be up from';
    nothing_else($nginx);
};

subtest 'while a probe is under way, nothing is asked or kept for later' => sub {
    my ($port, $redis, $relay, $nginx, $session) = start('max_fails=1',
        connect_timeout => '20s', fetch_timeout => 3000 * patience() . 'ms');
    breaks($relay);
    is outcome($port, $session), 'ERROR', 'it closes';
    $nginx->log_like(qr/ is down: $closed$doing$/);
    works($relay);
    # A probe has as long as a lookup.
    $relay->hold;
    wait_until { outcome($port, $session); scalar $relay->requests('PING') } 10, 'a probe';
    my $gets     = $relay->requests('GET');
    my $accepted = $relay->stats->{accepted};
    my $start    = time;
    my @seen     = map { [ outcome($port, $session) ] } 1 .. 10;
    is_deeply [ map { $_->[0] } @seen ], [ ('DOWN') x 10 ], 'lookups are DOWN';
    cmp_ok max(map { $_->[1] } @seen), '<', 0.1 * patience(), 'at once';
    is scalar($relay->requests('PING')), 1, 'one probe at a time';
    is $relay->stats->{accepted}, $accepted, 'on one connection';
    is ups($nginx), 0, 'it is not up yet';
    $relay->release;
    $nginx->log_like(qr/ is up again$doing$/);
    is scalar($relay->requests('GET')), $gets, 'none of the lookups is sent late';
    is outcome($port, $session), 'HIT', 'the next one is';
    is $relay->stats->{accepted}, $accepted, 'on the connection of the probe';
    is downs($nginx), 1, 'down once';
    nothing_else($nginx);
};

# A server that closes each connection; tells when they came.
sub closer {
    my $file     = new_dir('closer') . '/times';
    my $port     = free_port();
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 64, ReuseAddr => 1) or die $@;
    SSLSession::Process->spawn(name => 'closer', keep => [$listener], code => sub {
        open my $out, '>>', $file;
        $out->autoflush;
        while (my $client = $listener->accept) {
            print {$out} time, "\n";
        }
    });
    return ($port, sub { return split /\n/, slurp($file) });
}

# The pauses between attempts to connect, in seconds, under a steady stream of lookups.
sub pauses {
    my ($parameters, $n) = @_;
    my ($port, $redis)   = (free_port(), redis());
    my ($closer, $times) = closer();
    my $nginx   = nginx(conf => conf($port, "127.0.0.1:$closer $parameters", $redis->url));
    my $session = new_session($port, $redis);
    my @times;
    wait_until { outcome($port, $session); @times = $times->(); @times > $n } 20, 'attempts';
    is downs($nginx), 1, 'said once, however many attempts fail';
    is ups($nginx), 0, 'none succeeds';
    nothing_else($nginx);
    return map { $times[$_] - $times[ $_ - 1 ] } 1 .. $n;
}

# What a pause may take longer: the next lookup starts the attempt.
my $late = 0.1 * patience();

subtest 'the pauses between probes are shorter than one that doubles, up to fail_timeout' => sub {
    my @full   = (0.1, 0.2, 0.4, 0.8, 1, 1);
    my @pauses = pauses('max_fails=1 fail_timeout=1s', scalar @full);
    note join ' ', map { sprintf '%.3f', $_ } @pauses;
    for my $n (0 .. $#full) {
        cmp_ok $pauses[$n], '<', $full[$n] + $late, "pause $n: no more than $full[$n] s";
    }
    # Chance takes off any part of each. That all are as long as they may be does not happen in a million times.
    my @short = grep { $pauses[$_] < 0.9 * $full[$_] } 0 .. $#full;
    cmp_ok scalar(@short), '>', 0, 'some are shorter';
};

# The most lines about one server in one second of the log.
sub most_lines {
    my ($nginx) = @_;
    my %lines;
    for ($nginx->errors(warn => 1)) {
        my ($second) = /^(\S+ \S+) /;
        my ($server) = /(127\.0\.0\.1:\d+)/;
        $lines{ $second . ' ' . ($server // 'no server') }++;
    }
    return max(0, values %lines);
}

# Each takes a relay and lets the server fail from then on.
my %outage = (
    'it refuses connections'        => sub { $_[0]->stop },
    'it closes new connections'     => sub { breaks($_[0]) },
    'it resets connections at work' => sub { $_[0]->hold('request') },
    'it says nothing'               => sub { $_[0]->drop },
);

for my $what (sort keys %outage) {
    subtest "under load, $what: at most one line a second and server" => sub {
        my $redis = redis();
        my @relay = map { relay(upstream => '127.0.0.1:' . $redis->port) } 1 .. 2;
        # By max_fails.
        my @port  = (free_port(), free_port());
        my @nginx = map {
            my $max_fails = $_;
            nginx(conf => conf($port[$_], [ map { '127.0.0.1:' . $_->port . " max_fails=$max_fails" } @relay ],
                $redis->url, fetch_timeout => 20 * patience() . 'ms'));
        } 0, 1;
        my @sessions = map { new_session($port[0], $redis) } 1 .. 10;
        $outage{$what}->($_) for @relay;
        my $end = time + 1.5;
        my @seen;
        while (time < $end) {
            for my $n (0, 1) {
                my @clients = map { tls_client(port => $port[$n], protocol => 'TLSv1.2', session => $_)->start } @sessions;
                if ($what =~ /resets/) {
                    $_->reset_all for @relay;
                }
                for my $client (@clients) {
                    $client->handshake or fail('a handshake failed: ' . $client->error);
                    $seen[$n]{ (split /\|/, $client->request)[0] }++;
                }
            }
        }
        for my $n (0, 1) {
            note "max_fails=$n: ", join ' ', map { "$_ $seen[$n]{$_}" } sort keys %{ $seen[$n] };
            is $seen[$n]{HIT}, undef, "max_fails=$n: no lookup hits";
            cmp_ok most_lines($nginx[$n]), '<=', 1, 'at most one line';
            cmp_ok downs($nginx[$n]), $n ? '>' : '==', 0, $n ? 'they are down' : 'none is ever down';
            cmp_ok downs($nginx[$n]) - ups($nginx[$n]), '<=', 2, 'each once, unless it was up again';
            cmp_ok scalar($nginx[$n]->errors(warn => 1)), '>', 0, 'but it is said';
        }
    };
}

subtest 'a server that greets well and then hangs is found out' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $fake  = fake_server(canned => [ sub { return { SELECT => "+OK\r\n", PING => "+PONG\r\n" }->{ uc $_[0] } // '' } ]);
    my $nginx = nginx(conf => conf($port, '127.0.0.1:' . $fake->port . ' max_fails=2', $redis->url,
        database => 1, fetch_timeout => 50 * patience() . 'ms'));
    my $session = new_session($port, $redis);
    my @seen;
    wait_until { push @seen, scalar outcome($port, $session); $seen[-1] eq 'DOWN' } 10, 'the breaker to open';
    my $down = pop @seen;
    is_deeply \@seen, [ ('TIMEOUT') x @seen ], 'lookups time out';
    cmp_ok scalar(@seen), '<=', 4, 'a few of them: ' . @seen;
    is downs($nginx), 1, 'said once';
    cmp_ok $nginx->log_count(qr/\[error\] .* redis \S+: no answer within \d+ ms on this connection \(1 times\)/), '==', 1, 'and the first failure before it';
    cmp_ok scalar($fake->requests('SELECT')), '>=', 2, 'it greeted well each time';
    nothing_else($nginx);
};

done_testing;
