# What clients see of a Redis Cluster that changes: slots move, a master dies, its replica takes
# over, it comes back.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Stream qw(between rate outcomes longest_gap);
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(time);

my $certs   = certs();
my $port    = free_port();
my $timeout = 1000 * patience();
my $wait    = 500 * patience();
my $cluster = redis_cluster(timeout => $timeout);
my ($one, $two, $three) = $cluster->masters;
my $nginx = nginx(log => 'info', conf => <<"CONF");
    ssl_session_backend fleet {
        server ${\ $one->address };
        server ${\ $two->address };
        cluster on;
        connect_timeout ${\ $wait }ms;
        fetch_timeout   ${\ $wait }ms;
    }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF

# A stock of sessions, each with the place of its master for a tag.
sub stock {
    my ($n) = @_;
    my %key;
    wait_until {
        for (1 .. $n - keys %key) {
            my $protocol = $_ % 2 ? 'TLSv1.2' : 'TLSv1.3';
            my $client   = tls_client(port => $port, protocol => $protocol);
            defined $client->request or die $client->error;
            my $session = $client->session;
            $key{ cache_key($session) } = [ $protocol, $session ];
        }
        # The first ones may have come before there was a map, or a connection.
        my %at = map { my $n = $_; map { $_ => $n } ($one, $two, $three)[$n]->keys } 0 .. 2;
        delete $key{$_} for grep { !defined $at{$_} } keys %key;
        unshift @{ $key{$_} }, $at{$_} for grep { @{ $key{$_} } == 2 } keys %key;
        keys %key == $n;
    } 20, 'a stock of sessions';
    return \%key;
}

sub failed  { return grep { !$_->{ok} } @_ }
sub slowest { return max(0, map { $_->{ms} } @_) }

# Clients but for the test's own and other nodes that send keys.
sub links { my ($node) = @_; return scalar grep { $_->{flags} eq 'N' && $_->{cmd} !~ /^restore/ } $node->clients }

sub moved { return ($_[0]->info('errorstat_MOVED') // '') =~ /count=(\d+)/ ? $1 : 0 }

my $stock  = stock(60);
my ($fds, $rss) = ($nginx->fds, $nginx->rss);
my $stream = SSLSession::Stream->new(port => $port, stock => [ values %$stock ], seconds => 80 * patience());
$stream->wait_more(200);

subtest 'slots move' => sub {
    # All with sessions of one master, and as many without before them: who asks for the last one has the
    # map asked for when all have moved.
    my @keys  = grep { $stock->{$_}[0] == 0 } keys %$stock;
    my %with  = map { $cluster->slot($_) => 1 } @keys;
    my @slots = ((grep { !$with{$_} } 0 .. 99), keys %with);
    my $began = time;
    $cluster->move_slots($two, @slots);
    my $ended = time;
    $stream->wait_more(200);
    my $moved   = moved($one);
    $stream->wait_more(100);
    my @records = $stream->records;
    my @before  = between(undef, $began, @records);
    my @during  = between($began, $ended, @records);
    my @after   = between($ended, undef, @records);
    my $gap     = longest_gap(grep { $_->{tag} eq '0' } @records);
    diag sprintf 'cluster reshard: %d slots with %d of %d sessions in %d ms, handshakes meanwhile %d, failed %d, hit rate '
        . 'before %.1f %%, during %.1f %%, after %.1f %%, longest time without hits %d ms, slowest handshake %.0f ms',
        scalar @slots, scalar @keys, scalar keys %$stock, 1000 * ($ended - $began), scalar @during, scalar failed(@records),
        rate(@before), rate(@during), rate(@after), $gap, slowest(@during);
    cmp_ok scalar(@during), '>', 10, 'there are handshakes meanwhile';
    is scalar(failed(@records)), 0, 'none fails';
    cmp_ok rate(@before), '>=', 95, 'sessions are found before';
    cmp_ok rate(@during), '>=', 95, 'meanwhile';
    cmp_ok rate(@after), '>=', 95, 'and afterwards';
    is moved($one), $moved, 'where they are by now has been learned';
    # A machine that does many other things may be slow.
    is_deeply [ $nginx->errors(warn => 1, except => qr/ no answer within |SSL sessions not stored in/) ], [], 'nothing in the log';
};

subtest 'a master dies, its replica takes over, it comes back' => sub {
    my ($killed, $over, $back, $restart, $follows);
    $_->cmd('WAIT', 1, 5000) for $cluster->masters;
    # What the first subtest has moved, and what was there.
    my %its   = map { $_ => 1 } 0, 1;
    my $its   = sub { return grep { $its{ $_->{tag} } } @_ };
    $killed   = time;
    $cluster->kill_master($two);
    my $new   = $cluster->wait_failover($two);
    $over     = time;
    wait_until {
        20 <= grep { $_->{reused} } $its->(between($over, undef, $stream->records));
    } 10, 'hits of the sessions of the dead one';
    $stream->wait_more(200);
    $restart = time;
    $two->start;
    wait_until { $two->cmd('ROLE')->[0] eq 'slave' && $two->info('master_link_status') eq 'up' } 20, 'the dead one to follow';
    $cluster->wait_ok;
    $follows = time;
    $two->cmd(qw(CONFIG RESETSTAT));
    $stream->wait_more(200);

    my @records = $stream->stop;
    # Nobody takes over before that time is over.
    my $early   = $killed + 0.8 * $timeout / 1000;
    my ($first) = grep { $_->{reused} } $its->(between($early, undef, @records));
    $back = $first->{at};
    my @before = between(undef, $killed, @records);
    my @during = between($killed, $back, @records);
    my @after  = between($back, $restart, @records);
    my @return = between($restart, $follows, @records);
    my @last   = between($follows, undef, @records);
    my $gap    = longest_gap($its->(@records));
    diag sprintf 'cluster failover: cluster-node-timeout %d ms, handshakes %d, failed %d, longest time without hits %d ms, '
        . 'all nodes agree on its successor after %d ms, hit rate before %.1f %%, during %.1f %% (%s), after %.1f %%, '
        . 'while the dead one comes back %.1f %%, then %.1f %%, slowest handshake %.0f ms', $timeout, scalar @records,
        scalar failed(@records), $gap, 1000 * ($over - $killed), rate(@before), rate(@during), outcomes(@during), rate(@after),
        rate(@return), rate(@last), slowest(between($killed, undef, @records));
    is scalar(failed(@records)), 0, 'no handshake fails';
    cmp_ok rate(@before), '>=', 95, 'all sessions are found before';
    is rate($its->(between($killed + 0.1, $early, @records))), 0, 'those of the dead one are not found while it has no successor';
    cmp_ok $gap, '<', 1000 * ($over - $killed) + 1500 * patience(), 'but soon when it has one';
    cmp_ok rate(@after), '>=', 95, 'all are found with it';
    cmp_ok rate(@return), '>=', 95, 'while the dead one comes back';
    cmp_ok rate(@last), '>=', 95, 'and when it is there';
    is $two->calls('get'), 0, 'which is a replica now, and not asked';
    cmp_ok slowest(@during), '<', 1000 * patience(), 'no handshake waits for what does not come';
    my $seconds = 1 + int($restart - $killed);
    my @said = $nginx->errors(warn => 1);
    cmp_ok scalar(grep { / \Q${\ $two->address }\E is down: / } @said), '<=', 2, 'the log names the dead one once or twice';
    cmp_ok scalar(grep { /refused \d+ requests, the last with "CLUSTERDOWN / } @said), '<=', 3 * $seconds, 'and what the others say';
    cmp_ok scalar(grep { /SSL sessions not stored in/ } @said), '<=', 1 + $seconds, 'and what is not stored';
    cmp_ok scalar(grep { /: (?:connection failed|server closed connection) .*\(\d+ times\)$doing$/ } @said), '<=', 1, 'and its connection';
    is_deeply [ grep { !/ is down: |refused \d+ requests, the last with "CLUSTERDOWN |SSL sessions not stored in|\(\d+ times\)$doing$/ } @said ],
        [], 'nothing else';
};

subtest 'a master hangs, and wakes up when it is one no longer' => sub {
    my ($replica) = $cluster->replicas($three);
    $_->cmd('WAIT', 1, 5000) for $cluster->masters;
    my $from   = $nginx->log_pos;
    my $stream = SSLSession::Stream->new(port => $port, stock => [ values %$stock ], seconds => 60 * patience());
    $stream->wait_more(200);
    my $its  = sub { return grep { $_->{tag} eq '2' } @_ };
    my $hung = time;
    $three->pause;
    wait_until { $replica->cmd('ROLE')->[0] eq 'master' } 20, 'its replica';
    my $over = time;
    wait_until { 20 <= grep { $_->{reused} } $its->(between($over, undef, $stream->records)) } 10, 'hits of its sessions';
    $stream->wait_more(200);
    my $woken = time;
    $three->resume;
    wait_until { $three->cmd('ROLE')->[0] eq 'slave' && $three->info('master_link_status') eq 'up' } 20, 'it to follow';
    $cluster->wait_ok;
    my $follows = time;
    $stream->wait_more(200);
    my @records = $stream->stop;
    my @without = between($hung, $over, @records);
    my ($back)  = grep { $_->{reused} } $its->(between($over, undef, @records));
    my @after   = between($back->{at}, $woken, @records);
    my $gap     = longest_gap($its->(@records));
    diag sprintf 'cluster master hung: handshakes %d, failed %d, longest time without hits %d ms, replica has taken over after %d ms, '
        . 'without a master %.1f %% (%s), then %.1f %%, while the old one wakes up %.1f %%, then %.1f %%, slowest handshake %.0f ms',
        scalar @records, scalar failed(@records), $gap, 1000 * ($over - $hung), rate(@without), outcomes(@without),
        rate(@after), rate(between($woken, $follows, @records)), rate(between($follows, undef, @records)), slowest(@records);
    is scalar(failed(@records)), 0, 'no handshake fails';
    my @waited = grep { $_->{ms} >= $wait } @without;
    cmp_ok scalar(@waited), '<=', 12, 'few wait for it: ' . @waited;
    cmp_ok slowest(@without), '<', 2 * $wait + 300 * patience(), 'and not longer than they may';
    cmp_ok $gap, '<', 1000 * ($over - $hung) + 1500 * patience(), 'its sessions are found soon when there is another master';
    cmp_ok rate(@after), '>=', 95, 'all of them';
    cmp_ok rate(between($woken, $follows, @records)), '>=', 90, 'while the old one wakes up';
    cmp_ok rate(between($follows, undef, @records)), '>=', 95, 'and in the end';
    is $nginx->log_count(qr/ redis \Q${\ $three->address }\E is down: /, from => $from), 1, 'said once';
};

subtest 'what is left over' => sub {
    # What may be more are connections to servers of the configuration that are no masters any more.
    wait_until { $nginx->fds <= $fds + 4 } 10, "descriptors: $fds, then " . $nginx->fds;
    cmp_ok $nginx->fds, '<=', $fds + 4, "as many descriptors as before: $fds, " . $nginx->fds;
    cmp_ok links($_), '<=', 2, 'at most two connections to each node' for $cluster->alive;
    cmp_ok $nginx->rss - $rss, '<', 4096, sprintf 'memory: %d KB, then %d KB', $rss, $nginx->rss;
};

done_testing;
