# nginx-ssl-session explain: what the log of a real server says, and what each outcome points to.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $long  = 'connect_timeout 20s; fetch_timeout 20s; store_timeout 20s;';
my ($format) = slurp(root() . '/docs/troubleshooting.md') =~ /^(log_format  resumption .*?;)$/ms;

# A log of lines, each as often as said.
my $logs = 0;

sub log_of {
    my ($format, @lines) = @_;
    my $text = join '', map { my ($count, @values) = @$_; sprintf("$format\n", @values) x $count } @lines;
    return spew(tmpdir() . '/log-' . ++$logs, $text);
}

my $plain = '192.0.2.7 [26/Nov/2026:%s:14:03 +0000] %s reused=%s fetch=%s tier=- time=%s store=%s request=%d';

subtest 'the log of a server' => sub {
    my ($port, $redis) = (free_port(), redis());
    my $nginx = nginx(log => 'notice', conf => <<"CONF");
    $format
    access_log ${\ tmpdir() }/resumption.log resumption;
    ssl_session_backend store { server ${\ $redis->address }; $long }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 ok; }
    }
CONF
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $client = tls_client(port => $port, protocol => $protocol);
        $client->request;
        my $session = $client->session;
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'the session in the store';
        tls_client(port => $port, protocol => $protocol, session => $session)->request;
    }
    my $file = tmpdir() . '/resumption.log';
    wait_until { (() = slurp($file) =~ /\n/g) == 4 } 5, 'four lines';
    my ($exit, $value) = command_json('explain', $file);
    is $exit, 0, 'exit status';
    is_deeply [ @$value{qw(handshakes resumed unreadable)} ], [ 4, 2, 0 ], 'two of four were resumed';
    is_deeply [ map { "$_->{protocol} $_->{handshakes} $_->{resumed}" } @{ $value->{protocols} } ],
        [ 'TLSv1.2 2 1', 'TLSv1.3 2 1' ], 'by protocol';
    my ($hit) = grep { $_->{fetch} eq 'HIT' } @{ $value->{outcomes} };
    cmp_ok $hit->{p50}, '>', 0, 'how long the lookup took';
};

subtest 'the log of an nginx without the module, as docs/sizing.md has it' => sub {
    my $page = slurp(root() . '/docs/sizing.md');
    my ($log)     = $page =~ /^```nginx\n(log_format .*?)^```$/ms or return fail('a log_format');
    my ($command) = $page =~ /^nginx-ssl-session explain --format '(.*)' tls\.log$/m or return fail('a command');
    my $port = free_port();
    my $file = tmpdir() . '/tls.log';
    my $nginx = nginx(module => 0, conf => $log =~ s/tls\.log/$file/r . <<"CONF");
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 ok; }
    }
CONF
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $client = tls_client(port => $port, protocol => $protocol);
        $client->request;
        tls_client(port => $port, protocol => $protocol, session => $client->session)->request;
    }
    wait_until { (() = slurp($file) =~ /\n/g) == 4 } 5, 'four lines';
    my ($exit, $value) = command_json('explain', '--format', $command, $file);
    is $exit, 0, 'exit status';
    is_deeply [ map { "$_->{protocol} $_->{handshakes} $_->{resumed}" } @{ $value->{protocols} } ],
        [ 'TLSv1.2 2 1', 'TLSv1.3 2 1' ], 'by protocol';
    my $sum = 0;
    $sum += $_->{handshakes} for @{ $value->{hours} };
    is $sum, 4, 'by hour';
};

subtest 'each outcome and its cause' => sub {
    my $file = log_of($plain,
        [ 70, '10', 'TLSv1.3', 'r', 'HIT', '0.000184', 'STORED', 1 ],
        [ 20, '10', 'TLSv1.3', '.', '-', '-', 'STORED', 1 ],
        [ 5, '11', 'TLSv1.2', '.', 'DOWN', '0.000000', 'DROPPED', 1 ],
        [ 4, '11', 'TLSv1.2', '.', 'TIMEOUT', '0.050321', 'STORED', 1 ],
        [ 1, '11', 'TLSv1.2', '.', 'HIT', '0.000200', 'STORED', 1 ],
        [ 50, '11', 'TLSv1.2', '.', 'DOWN', '-', 'DROPPED', 2 ],
        [ 3, '11', '-', '-', '-', '-', '-', 1 ]);
    my ($exit, $value) = command_json('explain', $file);
    is $exit, 1, 'a store that is down is a finding';
    my %outcome = map { ("$_->{fetch}" . ($_->{reused} ? ' r' : '') => $_) } @{ $value->{outcomes} };
    is $outcome{DOWN}{section}, 'docs/troubleshooting.md#the-store-is-down', 'down';
    is $outcome{DOWN}{count}, 5, 'of further requests of a connection none counts';
    is $outcome{TIMEOUT}{section}, 'docs/troubleshooting.md#the-store-is-too-slow', 'too slow';
    is $outcome{HIT}{section}, 'docs/troubleshooting.md#another-certificate', 'another certificate';
    is $outcome{'HIT r'}{section}, undef, 'for what is well nothing';
    is_deeply [ @$value{qw(handshakes further_requests without_tls)} ], [ 100, 50, 3 ], 'what is counted, and what not';
    is_deeply $value->{hours}, [ { hour => '2026-11-26 10h', handshakes => 90, resumed => 70 },
        { hour => '2026-11-26 11h', handshakes => 10, resumed => 0 } ], 'by hour';
    ($exit, my $out) = command('explain', $file);
    like $out, qr/^100 handshakes, 70\.0 % resumed$/m, 'for people';
    like $out, qr/^5\.0 % +5 +\. +DOWN +DROPPED +0\.00 ms .* the store is down$/m, 'an outcome';
    like $out, qr/^the store is down: docs\/troubleshooting\.md#the-store-is-down$/m, 'where to read on';
    ($exit) = command('explain', log_of($plain, [ 99, '10', 'TLSv1.3', 'r', 'HIT', '0.000184', 'STORED', 1 ]));
    is $exit, 0, 'where all is well there is none';
};

subtest 'a session that is withheld, and one that is gone' => sub {
    my $line = $plain =~ s/tier=-/tier=%s/r;
    my $file = log_of($line,
        [ 7, '10', 'TLSv1.3', 'r', 'HIT', 'fleet', '0.000184', 'STORED', 1 ],
        [ 2, '10', 'TLSv1.3', '.', 'MISS', 'fleet', '0.000184', 'STORED', 1 ],
        [ 1, '10', 'TLSv1.3', '.', 'MISS', '-', '0.000184', 'STORED', 1 ]);
    my ($exit, $value) = command_json('explain', $file);
    is $exit, 1, 'that one client in five is withheld its session is a finding';
    my %miss = map { ($_->{withheld} ? 'withheld' : 'gone') => $_ } grep { $_->{fetch} eq 'MISS' } @{ $value->{outcomes} };
    is_deeply [ map { "$_->{count} $_->{cause} $_->{section}" } @miss{qw(withheld gone)} ],
        [ '2 found and withheld docs/troubleshooting.md#found-and-withheld',
        '1 not found: the session has ended docs/troubleshooting.md#the-session-has-ended' ], 'each has its cause';
    ($exit, $value) = command_json('explain', '--format', '$ssl_session_reused $ssl_session_fetch_status',
        log_of('%s %s', [ 9, 'r', 'HIT' ], [ 1, '.', 'MISS' ]));
    my ($miss) = grep { $_->{fetch} eq 'MISS' } @{ $value->{outcomes} };
    is $miss->{withheld}, undef, 'without the target it is not known';
    like $miss->{cause}, qr/ended, or is withheld$/, 'which it says';
};

subtest 'other formats' => sub {
    my @values = ([ 9, 'r', 'HIT', 'TLSv1.3' ], [ 1, '.', 'MISS', 'TLSv1.3' ]);
    my $file = log_of('{"r":"%s","f":"%s","p":"%s"}', @values);
    my $json = q(log_format x escape=json '{"r":"$ssl_session_reused",' '"f":"$ssl_session_fetch_status","p":"$ssl_protocol"}';);
    my ($exit, $value, $err) = command_json('explain', '--format', $json, $file);
    is_deeply [ @$value{qw(handshakes resumed)} ], [ 10, 9 ], 'a log_format as the configuration has it';
    like $err, qr/add \$connection_requests to the log_format/, 'requests are counted';
    ($exit, my $out, $err) = command('explain', $file);
    is $exit, 3, 'lines of another format';
    like $err, qr/^nginx-ssl-session: 10 of 10 lines are not of that format: give --format/, 'it says what to do';
    ($exit, $out, $err) = command('explain', '--format', '$remote_addr', $file);
    is $exit, 2, 'a format that says nothing of it';
    ($exit) = command('explain', '/none/such.log');
    is $exit, 3, 'a file that is not there';
};

done_testing();
