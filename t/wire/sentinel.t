# Redis Sentinel: sessions are with the master that the sentinels name, and follow it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Stream qw(between rate outcomes longest_gap);
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my %port;

# An nginx that asks these sentinels; %line are lines of the backend.
sub edge {
    my ($sentinels, %line) = @_;
    my $port = free_port();
    my $http = delete $line{http} // '';
    my $wait = 500 * patience() . 'ms';
    %line = (sentinel => 'fleet', client_name => 'edge', connect_timeout => $wait, fetch_timeout => $wait, %line);
    my $nginx = nginx(log => 'info', conf => <<"CONF");
    $http
    ssl_session_backend store {
        @{[ map { "server $_;" } @$sentinels ]}
        @{[ map { "$_ $line{$_};" } sort keys %line ]}
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    $port{$nginx} = $port;
    return $nginx;
}

# What is offered: [tag, protocol, session].
sub client {
    my ($edge, $offer) = @_;
    return tls_client(port => $port{$edge}, protocol => $offer->[1] // 'TLSv1.2', session => $offer->[2]);
}

sub answer {
    my ($client) = @_;
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, reused: " . $client->reused if $client->reused != ($status eq 'HIT');
    return $status;
}

sub status { return answer(client(@_)) }
sub key    { return cache_key($_[0][2]) }

# A new session, wherever it comes to be.
sub made {
    my ($edge, $protocol) = @_;
    my $client = client($edge, [ '', $protocol // 'TLSv1.2' ]);
    answer($client);
    return [ 'old', $client->{protocol}, $client->session ];
}

# Sessions that this server has, of both protocols. The first ones may come before the master is
# known, or there.
sub sessions {
    my ($edge, $redis, $n) = @_;
    my @found;
    wait_until {
        my $protocol = @found % 2 ? 'TLSv1.3' : 'TLSv1.2';
        my $made = made($edge, $protocol);
        push @found, $made if eval { wait_until { $redis->cmd('EXISTS', key($made)) } 0.3 };
        @found == $n;
    } 20, 'sessions at the master';
    return @found;
}

sub secret { my $file = spew(tmpdir() . "/$_[0].pass", "$_[0]\n"); chmod 0600, $file; return $file }
sub nobody { return '127.0.0.1:' . free_port() }
sub links  { my ($redis) = @_; return scalar grep { $_->{name} eq 'edge' } $redis->clients }

sub failed  { return grep { !$_->{ok} } @_ }
sub slowest { return max(0, map { $_->{ms} } @_) }

# Lines that an edge may write on the way to another master.
my $on_the_way = qr/ is down: | refused \d+ requests, the last with "(?:READONLY|MASTERDOWN|LOADING) |SSL sessions not stored in| no answer within |: server closed connection \(|: connection failed \(/;

# Asked in turn: the first sentinel of the list is dead from the start.
my $fleet = redis_sentinel(sentinels => 3, password => 'of-data', sentinel => { password => 'of-sentinels' });
my @lines = (password_file => secret('of-data'), sentinel_password_file => secret('of-sentinels'));
my @asked = (nobody(), map { $_->address } $fleet->sentinels);
my $edge  = edge(\@asked, @lines);
my @stock;

subtest 'the master is found' => sub {
    my ($master, $replica) = ($fleet->master, $fleet->replicas);
    @stock = sessions($edge, $master, 40);
    $_->cmd(qw(CONFIG RESETSTAT)) for $master, $replica;
    is scalar(grep { status($edge, $_) eq 'HIT' } @stock), 40, 'hits';
    is $master->calls('get'), 40, 'at the master';
    is $replica->calls('get'), 0, 'none at the replica';
    is links($master), 2, 'a connection for lookups, and one for what is stored';
    is links($replica), 0, 'none to the replica';
    my $said = qr/\[notice\] .* master "fleet" is redis \Q${\ $master->address }\E/;
    is $edge->log_count($said), 1, 'which is said once';
    is $edge->log_count(qr/of-data|of-sentinels/), 0, 'and no password';
    is_deeply [ $edge->errors(except => qr/ redis \Q$asked[0]\E is down: /) ], [], 'nothing else is wrong';
};

subtest 'the sentinels do not let one in, or do not know the name' => sub {
    for my $case (
        [ 'no password', qr/is down: server refused: "NOAUTH |refused \d+ requests, the last with "NOAUTH /, password_file => secret('of-data') ],
        [ 'a wrong password', qr/is down: server refused: "(?:WRONGPASS|ERR invalid password)/, @lines, sentinel_password_file => secret('wrong') ],
        [ 'another name', qr/knows no address of master "nobody" \(\d+ times\)/, @lines, sentinel => 'nobody' ],
    ) {
        my ($what, $words, @its) = @$case;
        my $began = time;
        my $other = edge([ ($fleet->sentinels)[0]->address ], @its);
        wait_until { status($other, $stock[0]); $other->log_count($words) } 5, $what;
        is status($other, $stock[0]), 'DOWN', "$what: the store is down";
        # As often as it is asked for.
        my $until = time + 0.8;
        wait_until { status($other, $stock[0]); time > $until } 5;
        my $lines = $other->log_count($words);
        cmp_ok $lines, '<=', 1 + time - $began, "said once a second at most: $lines";
        is $other->log_count(qr/of-data|wrong|of-sentinels/), 0, 'without the password';
        $other->quit;
    }
};

# Handshakes while $change->($old master) makes another one master, which it returns.
sub change {
    my ($what, $change) = @_;
    my $old = $fleet->master;
    $old->cmd('WAIT', 1, 5000);
    my $from   = $edge->log_pos;
    my $stream = SSLSession::Stream->new(port => $port{$edge}, stock => \@stock, seconds => 60 * patience());
    $stream->wait_more(100);
    my $began = time;
    my $new   = $change->($old);
    my $there = time;
    # In a planned one the old master is told last.
    my $named = qr/\[notice\] .* master "fleet" is redis \Q${\ $new->address }\E/;
    $edge->log_like($named, from => $from, seconds => 20);
    my $known = time;
    cmp_ok $known - $there, '<', 1.5 * patience(), 'the sentinels are asked often enough';
    wait_until { my @last = between($known, undef, $stream->records); 20 <= grep { $_->{reused} } @last } 15, 'hits';
    $stream->wait_more(200);
    my $ended   = time;
    my @records = $stream->records;
    my ($lost)  = grep { !$_->{reused} && $_->{tag} eq 'old' } between($began, undef, @records);
    my ($back)  = grep { $_->{reused} && $lost && $_->{at} > $lost->{at} } between($began, undef, @records);
    my ($off, $on) = map { $_ ? $_->{at} : $began } $lost, $back;
    my @after = grep { $_->{at} > max($on, $known) } @records;
    my $gap   = longest_gap(grep { $_->{tag} eq 'old' } @records);
    diag sprintf 'sentinel %s: down-after-milliseconds 500, handshakes %d, failed %d, longest time without hits %d ms, the sentinels '
        . 'agree on another master after %d ms, it is used after %d ms, hit rate before %.1f %%, without a master %.1f %% (%s), after %.1f %%, slowest handshake %.0f ms',
        $what, scalar @records, scalar failed(@records), $gap, 1000 * ($there - $began), 1000 * ($known - $began), rate(between(undef, $began, @records)),
        rate(between($off, $on, @records)), outcomes(between($off, $on, @records)), rate(@after),
        slowest(@records);
    is scalar(failed(@records)), 0, 'no handshake fails';
    cmp_ok rate(between(undef, $began, @records)), '>=', 95, 'all sessions are found before';
    cmp_ok rate(@after), '>=', 95, 'and after';
    cmp_ok $gap, '<', 1000 * ($there - $began) + 1500 * patience(), 'hits come back soon';
    cmp_ok slowest(@records), '<', 1000 * patience(), 'no handshake waits for what does not come';
    is $edge->log_count($named, from => $from), 1, 'the new master is named once';
    is_deeply [ $edge->errors(warn => 1, from => $from, except => $on_the_way) ], [], 'nothing unforeseen in the log';
    return ($old, $new, $stream);
}

# What a former master sees of the edge when it is a replica.
sub is_left_alone {
    my ($old, $stream) = @_;
    wait_until { $old->cmd('ROLE')->[0] eq 'slave' && $old->info('master_link_status') eq 'up' } 20, 'the old master to follow';
    $old->cmd(qw(CONFIG RESETSTAT));
    $stream->wait_more(100);
    is $old->calls('get'), 0, 'the old master is not read from';
    is $old->info('errorstat_READONLY'), undef, 'nor written to';
    my @records = $stream->stop;
    is scalar(failed(@records)), 0, 'no handshake fails';
}

subtest 'a planned failover' => sub {
    my ($old, $new, $stream) = change('failover', sub { $fleet->failover });
    is_left_alone($old, $stream);
};

subtest 'the master dies, and one sentinel with it' => sub {
    ($fleet->sentinels)[0]->kill;
    my ($old, $new, $stream) = change('kill', sub { my $old = $fleet->kill_master; $fleet->wait_failover($old) });
    $old->start;
    is_left_alone($old, $stream);
};

subtest 'a master that is announced by its name' => sub {
    my $master   = redis();
    my $sentinel = redis(sentinel => 1, conf => [
        'sentinel resolve-hostnames yes', 'sentinel announce-hostnames yes', 'sentinel monitor fleet localhost ' . $master->port . ' 1' ]);
    is_deeply $sentinel->cmd(qw(SENTINEL GET-MASTER-ADDR-BY-NAME fleet)), [ 'localhost', $master->port ], 'so it is announced';
    my $dns  = name_server();
    my $edge = edge([ $sentinel->address ], http => "resolver 127.0.0.1:@{[ $dns->port ]} valid=1s;");
    wait_until { made($edge); $dns->asked } 10, 'the question for its name';
    is status($edge, (made($edge))[0]), 'DOWN', 'without an address it is down';
    $dns->say('addresses', 60, '127.0.0.1');
    wait_until { made($edge); $master->cmd('DBSIZE') } 20, 'a session in the store';
    my ($session) = sessions($edge, $master, 1);
    is status($edge, $session), 'HIT', 'it is found';
    is $edge->log_count(qr/\[notice\] .*master "fleet" is redis localhost:@{[ $master->port ]}/), 1, 'said';
    is $edge->log_count(qr/\[notice\] .*redis localhost:\d+ is at redis 127\.0\.0\.1:/), 1, 'and where it is';

    my $blind = edge([ $sentinel->address ]);
    wait_until { made($blind); $blind->log_count(qr/\[error\] .*knows a name, and there is no "resolver" to find it with, of master "fleet" \(\d+ times\)/) } 10,
        'an error without a resolver';
    $_->quit for $edge, $blind;
};

# --- a sentinel that says what the test wants ---

my $names = tmpdir() . '/names';

# What a sentinel says of its master.
sub naming {
    my ($redis) = @_;
    return "*2\r\n\$9\r\n127.0.0.1\r\n\$" . length($redis->port) . "\r\n" . $redis->port . "\r\n";
}

# What the one says that reads it from the file.
sub says {
    my ($redis) = @_;
    spew("$names.new", naming($redis));
    rename "$names.new", $names or die "rename: $!";
}

subtest 'a master that is one no longer' => sub {
    my ($one, $two) = (redis(), redis());
    says($one);
    my $sentinel = fake_server(canned => [ sub { slurp($names) } ]);
    my $edge = edge([ '127.0.0.1:' . $sentinel->port ]);
    my ($session) = sessions($edge, $one, 1);
    my $from  = $edge->log_pos;
    my $asked = $sentinel->requests;
    $one->cmd('REPLICAOF', '127.0.0.1', $two->port);
    $one->wait_replica;
    # It still has its connection. Something to store is what it refuses.
    wait_until { made($edge); $edge->log_count(qr/ redis \Q${\ $one->address }\E is down: server is not the master/, from => $from) } 5,
        'the refusal';
    wait_until { made($edge); $sentinel->requests > $asked } 5, 'a question for the sentinel';
    # It knows nothing new.
    my ($began, $asks) = (time, scalar $sentinel->requests);
    $one->cmd(qw(CONFIG RESETSTAT));
    is status($edge, $session), 'DOWN', 'a replica is not asked' for 1 .. 20;
    my $rate = ($sentinel->requests - $asks) / (time - $began + 0.25);
    cmp_ok $rate, '<=', 5, 'the sentinel is not asked in each handshake';
    is $one->calls('get'), 0, 'no GET';
    says($two);
    my ($new) = sessions($edge, $two, 1);
    is status($edge, $new), 'HIT', 'the other one is, when the sentinel names it';
    is $edge->log_count(qr/ is down: /, from => $from), 1, 'said once';
    is_deeply [ $edge->errors(warn => 1, from => $from, except => $on_the_way) ], [], 'nothing else in the log';
    is links($one), 0, 'no connection is left';
};

subtest 'a sentinel that has not heard of the new master' => sub {
    my $new = redis();
    my $old = redis(replicaof => $new)->wait_replica;
    # The last one it hears of is the right one, and stays it.
    my @sentinels = map { fake_server(canned => [ naming($_) ]) } $old, $new, $old;
    my $edge = edge([ map { '127.0.0.1:' . $_->port } @sentinels ]);
    my ($session) = sessions($edge, $new, 1);
    my $from  = $edge->log_pos;
    my $asked = sub { scalar map { $_->requests } @sentinels };
    my $until = $asked->() + 4;
    my %count;
    wait_until { $count{ status($edge, $session) }++; $asked->() >= $until } 20, 'more questions';
    is_deeply [ keys %count ], ['HIT'], 'hits all the time';
    is $edge->log_count(qr/ is redis |\[error\]/, from => $from), 0, 'and nothing to say';
};

subtest 'over TLS' => sub {
    my $fleet = redis_sentinel(tls => 1, port => 0, sentinel => { port => 0 });
    my $edge  = edge([ map { '127.0.0.1:' . $_->tls_port } $fleet->sentinels ], ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt},
        connect_timeout => 1000 * patience() . 'ms');
    my @some = sessions($edge, $fleet->master, 4);
    is_deeply [ map { status($edge, $_) } @some ], [ ('HIT') x 4 ], 'hits';
    is_deeply [ $edge->errors ], [], 'nothing in the log';
};

done_testing;
