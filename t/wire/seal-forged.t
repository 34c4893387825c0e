# Session IDs that we have not issued: nobody is asked for them. Those with the key id of our key are FORGED,
# all others FOREIGN.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Crypt::PRNG qw(random_bytes);
use Test::More;

my $certs = certs();
my $redis = redis();
my $memcached = memcached();
my $near = redis();
my $wait = 3 * patience() . 's';
my %port = map { $_ => free_port() } qw(redis memcached tiers single shared);
my $limits = "connect_timeout $wait; fetch_timeout $wait;";

sub conf {
    my ($kind) = @_;
    my $target = $kind eq 'shared' ? 'shared:tls:1m' : 'store';
    my $cache  = $kind eq 'shared' ? '' : 'ssl_session_cache shared:own:1m;';
    my $fetch  = { tiers => 'shared:near:1m near store', single => 'store single_use' }->{$kind} // $target;
    return <<"CONF";
    ssl_session_backend store {
        server ${\ ($kind eq 'memcached' ? $memcached : $redis)->address };
        protocol ${\ ($kind eq 'memcached' ? 'memcached' : 'redis') };
        $limits
    }
    ssl_session_backend near { server ${\ $near->address }; $limits }
    ssl_session_fetch   $fetch;
    ssl_session_store   $target;
    $cache
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port{$kind} ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier|\$ssl_session_fetch_time"; }
    }
CONF
}

my %nginx = map { $_ => nginx(conf => conf($_)) } keys %port;

sub visit {
    my ($kind, %arg) = @_;
    my $client = tls_client(port => $port{$kind}, %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier, $time) = split /\|/, $answer;
    return { status => $status, tier => $tier, time => $time, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

# What the stores of an nginx have been asked, by their own account.
sub lookups_of {
    my ($kind) = @_;
    return '' if $kind eq 'shared';
    return join ' ', map { "$_ " . $memcached->stats($_) } qw(get_hits get_misses get_expired cmd_get) if $kind eq 'memcached';
    return join ' ', map { my $store = $_; map { "$_ " . $store->calls($_) } qw(get getdel) } $redis, $near;
}

# A session ID with one bit changed.
sub flipped {
    my ($id, $bit) = @_;
    vec($id, $bit, 1) ^= 1;
    return $id;
}

for my $kind (sort keys %port) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$kind, $protocol" => sub {
            my $seen = visit($kind, protocol => $protocol);
            my $session = $seen->{session};
            # What is stored is on its way. The first of two tickets comes first.
            my $known = sub {
                return 1 if $kind eq 'shared';
                return defined($kind eq 'memcached' ? $memcached->get(cache_key($session)) : $redis->cmd('GET', cache_key($session)));
            };
            wait_until { $known->() } 5, 'the session in the store';

            my $id = session_id($session);
            my (%count, %expected);
            my $offer = sub {
                my ($made_up, $status) = @_;
                $expected{"$status||0"}++;
                my $seen = visit($kind, protocol => $protocol, session => with_session_id($session, $made_up));
                $count{"$seen->{status}|$seen->{tier}|$seen->{reused}"}++;
            };
            # Those that are stored by these handshakes must not count as questions of ours.
            my $before = lookups_of($kind);
            $offer->(flipped($id, $_), $_ < 8 ? 'FOREIGN' : 'FORGED') for 0 .. 255;
            $offer->($_, unknown_status($_)) for map { random_bytes(32) } 1 .. 40;
            # The right key id, or all but the tag.
            $offer->(substr($id, 0, 1) . random_bytes(31), 'FORGED') for 1 .. 40;
            $offer->(substr($id, 0, 20) . random_bytes(12), 'FORGED') for 1 .. 40;
            my $other_key = new_session_key();
            $offer->(issue_id($protocol, $other_key), 'FOREIGN') for 1 .. 20;
            # What was issued for another version of TLS.
            $offer->(issue_id($protocol eq 'TLSv1.3' ? 'TLSv1.2' : 'TLSv1.3'), 'FORGED') for 1 .. 20;
            is_deeply \%count, \%expected, 'each is forged or foreign, and the handshake full';
            is lookups_of($kind), $before, 'nobody was asked';

            # One that was issued, but never stored, is looked for.
            my $issued = visit($kind, protocol => $protocol, session => with_session_id($session, issue_id($protocol)));
            is $issued->{status}, 'MISS', 'one that is well made is looked for';
            isnt lookups_of($kind), $before, 'and that is counted' if $kind ne 'shared';
            $seen = visit($kind, protocol => $protocol, session => $session);
            is $seen->{status}, 'HIT', 'and the true one is resumed';
            is $seen->{reused}, 1, 'by its client';
        };
    }
}

subtest 'an ID that was seen in one version of TLS, and is shown in another' => sub {
    for my $kind (qw(redis single)) {
        for my $way ([qw(TLSv1.2 TLSv1.3)], [qw(TLSv1.3 TLSv1.2)]) {
            my ($protocol, $other) = @$way;
            my ($victim, $own) = map { visit($kind, protocol => $_)->{session} } $protocol, $other;
            wait_until { $redis->cmd('EXISTS', cache_key($victim)) } 5, 'the session in the store';
            my $before = lookups_of($kind);
            my $seen = visit($kind, protocol => $other, session => with_session_id($own, session_id($victim)));
            is $seen->{status}, 'FORGED', "$kind, $protocol, shown in $other";
            is lookups_of($kind), $before, 'nobody was asked';
            is visit($kind, protocol => $protocol, session => $victim)->{status}, 'HIT', 'and its client still resumes';
        }
    }
};

subtest 'session IDs of another length' => sub {
    for my $length (1, 16, 31) {
        my $session = visit('redis', protocol => 'TLSv1.2')->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
        my $before = lookups_of('redis');
        my $id     = session_id($session);
        # In the ClientHello, where the length comes before it.
        my $client = tls_client(port => $port{redis}, protocol => 'TLSv1.2', session => $session);
        my $hello  = $client->client_hello;
        my $at = index $hello, $id;
        my $shorter = substr($hello, 0, $at - 1) . chr($length) . substr($id, 0, $length) . substr($hello, $at + 32);
        # The record and the message are shorter, too.
        substr($shorter, 3, 2) = pack 'n', unpack('n', substr $shorter, 3, 2) - 32 + $length;
        substr($shorter, 7, 2) = pack 'n', unpack('n', substr $shorter, 7, 2) - 32 + $length;
        my $from = $nginx{redis}->log_pos;
        my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port{redis}) or die "connect: $!";
        syswrite $socket, $shorter;
        sysread $socket, my $answer, 5;
        is ord $answer, 0x16, "$length bytes: the handshake goes on";
        ok $nginx{redis}->log_like(qr/SSL session fetch [0-9a-f]{8}: FOREIGN/, from => $from), 'it is foreign';
        is lookups_of('redis'), $before, 'nobody was asked';
        close $socket;
    }
};

is_deeply [ $_->errors(warn => 1) ], [], 'nothing in the log' for values %nginx;

done_testing;
