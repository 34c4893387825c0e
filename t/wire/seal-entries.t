# Entries that are not what they should be: each is refused and removed, the handshake is full, and
# the new session is stored.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $memcached = memcached();
my $dropped = new_session_key();
my $wait = 3 * patience() . 's';

my %port = map { $_ => free_port() } qw(redis memcached tiers);
my $limits = "connect_timeout $wait; fetch_timeout $wait;";

# A server of each kind; both keys are known, and the first one issues.
my $second = new_session_key();
my %nginx = map { my $kind = $_; ($kind => nginx(conf => <<"CONF")) } keys %port;
    ssl_session_key ${\ session_key() };
    ssl_session_key $second;
    ssl_session_backend store {
        server ${\ ($kind eq 'memcached' ? $memcached : $redis)->address };
        protocol ${\ ($kind eq 'memcached' ? 'memcached' : 'redis') };
        $limits
    }
    ssl_session_fetch   ${\ ($kind eq 'tiers' ? 'shared:near:1m' : '') } store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port{$kind} ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier"; }
    }
CONF

# The store of a kind: get, set, exists.
my %store = (
    redis => {
        get => sub { $redis->cmd('GET', $_[0]) },
        set => sub { $redis->cmd('SET', $_[0], $_[1]) },
    },
    memcached => {
        get => sub { $memcached->get($_[0]) },
        set => sub { $memcached->set($_[0], $_[1], 600) },
    },
);
$store{tiers} = $store{redis};

sub visit {
    my ($kind, %arg) = @_;
    my $client = tls_client(port => $port{$kind}, %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier) = split /\|/, $answer;
    return { status => $status, tier => $tier, reused => $client->reused,
        session => ($client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session) };
}

# A session and its entry, once it is in the store.
sub stored {
    my ($kind, $protocol) = @_;
    my $session = visit($kind, protocol => $protocol)->{session};
    my $entry = wait_until { $store{$kind}{get}->(cache_key($session)) } 5, 'the session in the store';
    return ($session, $entry);
}

sub flip { my ($bytes, $at) = @_; substr($bytes, $at, 1) ^= "\x10"; return $bytes }

# The DER of a session with something changed, that fits: time and timeout have fields of their own.
sub made_earlier {
    my ($der, $seconds) = @_;
    $der =~ s/(\xa1\x06\x02\x04)(.{4})(\xa2)/$1 . pack('N', unpack('N', $2) - $seconds) . $3/se or die 'no time';
    return $der;
}

# What becomes of an entry, given the session and the entry of it and of another session, and the
# words for it in the log.
my %bad = (
    'the entry of another session, under this one\'s name' => [ sub { $_[3] }, 'does not open' ],
    'cut by a byte'            => [ sub { substr $_[1], 0, -1 }, 'does not open' ],
    'cut to its header'        => [ sub { substr $_[1], 0, 14 }, 'too short for an envelope' ],
    'empty'                    => [ sub { '' }, 'too short for an envelope' ],
    'extended by a byte'       => [ sub { "$_[1]\0" }, 'does not open' ],
    'a bit flipped in the version' => [ sub { flip($_[1], 0) }, 'envelope of version 17' ],
    'a bit flipped in the key id'  => [ sub { flip($_[1], 1) }, 'sealed with another key' ],
    'a bit flipped in the nonce'   => [ sub { flip($_[1], 2) }, 'does not open' ],
    'a bit flipped in the session' => [ sub { flip($_[1], 14) }, 'does not open' ],
    'a bit flipped in the tag'     => [ sub { flip($_[1], -1) }, 'does not open' ],
    'of an old version'        => [ sub { seal(session_id($_[0]), unseal(session_id($_[0]), $_[1]), undef, version => 0) }, 'envelope of version 0' ],
    'sealed with the second key'   => [ sub { seal(session_id($_[0]), unseal(session_id($_[0]), $_[1]), $second) }, qr/sealed with another key|does not open/ ],
    'sealed with a key that was dropped' => [ sub { seal(session_id($_[0]), unseal(session_id($_[0]), $_[1]), $dropped) }, qr/sealed with another key|does not open/ ],
    'not sealed'               => [ sub { unseal(session_id($_[0]), $_[1]) }, 'envelope of version 48' ],
    'no session, sealed'       => [ sub { seal(session_id($_[0]), 'garbage') }, 'not a session' ],
    'a session and a byte more, sealed' => [ sub { seal(session_id($_[0]), unseal(session_id($_[0]), $_[1]) . "\0") }, 'not a session' ],
    'another session, sealed for this one' => [ sub { seal(session_id($_[0]), unseal(session_id($_[2]), $_[3])) }, 'another session' ],
    'an expired session'       => [ sub { seal(session_id($_[0]), made_earlier(unseal(session_id($_[0]), $_[1]), 100_000)) }, 'expired' ],
    'a session of the other protocol' => [ sub {
        my ($session, undef, undef, undef, $foreign, $foreign_entry) = @_;
        my $der = unseal(session_id($foreign), $foreign_entry);
        substr($der, index($der, session_id($foreign)), 32) = session_id($session);
        return seal(session_id($session), $der);
    }, 'session of another protocol' ],
);

for my $kind (sort keys %port) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my ($other, $other_entry)     = stored($kind, $protocol);
        my ($foreign, $foreign_entry) = stored($kind, $protocol eq 'TLSv1.2' ? 'TLSv1.3' : 'TLSv1.2');
        for my $what (sort keys %bad) {
            subtest "$kind, $protocol: $what" => sub {
                my ($make, $why) = @{ $bad{$what} };
                my ($session, $entry) = stored($kind, $protocol);
                my $from = $nginx{$kind}->log_pos;
                $store{$kind}{set}->(cache_key($session), $make->($session, $entry, $other, $other_entry, $foreign, $foreign_entry));
                my $seen = visit($kind, protocol => $protocol, session => $session);
                is $seen->{status}, 'CORRUPT', 'the outcome';
                is $seen->{tier}, 'store', 'and whose entry it was';
                is $seen->{reused}, 0, 'full handshake';
                $why = qr/\Q$why\E/ unless ref $why;
                is $nginx{$kind}->log_count(qr/\[debug\].* SSL session fetch [0-9a-f]{8}: $why$/, from => $from), 1, 'the log has the reason'
                    or diag grep { /session fetch/ } $nginx{$kind}->log($from);
                ok eval { wait_until { !defined $store{$kind}{get}->(cache_key($session)) } 5 }, 'the entry is removed';
                wait_until { defined $store{$kind}{get}->(cache_key($seen->{session})) } 5, 'the new session in the store';
                is visit($kind, protocol => $protocol, session => $session)->{status}, 'MISS', 'then it is missing, in all tiers';
                is visit($kind, protocol => $protocol, session => $seen->{session})->{status}, 'HIT', 'the new session is resumed';
            };
        }
    }
}

subtest 'every single bit counts' => sub {
    # OpenSSL's own checks would let some of these pass.
    my ($session, $entry) = stored('redis', 'TLSv1.2');
    my $seen = visit('redis', protocol => 'TLSv1.2', session => $session);
    is $seen->{status}, 'HIT', 'the entry is good';
    my ($good) = stored('redis', 'TLSv1.2');
    my %status;
    for my $at (0 .. length($entry) - 1) {
        $redis->cmd('SET', cache_key($session), flip($entry, $at));
        $status{ visit('redis', protocol => 'TLSv1.2', session => $session)->{status} }++;
        # Two in a row that do not open would end the connection.
        visit('redis', protocol => 'TLSv1.2', session => $good);
    }
    is_deeply \%status, { CORRUPT => length $entry }, 'each was refused';
};

subtest 'a session whose life has ended between two servers that do not agree about the time' => sub {
    # A second more than OpenSSL gives it, and none less.
    my ($session, $entry) = stored('redis', 'TLSv1.2');
    my $der = unseal(session_id($session), $entry);
    my ($timeout) = $der =~ /\xa2[\x03-\x06]\x02[\x01-\x04](.{1,4}?)\xa4/s or die 'no timeout';
    $timeout = unpack 'N', substr "\0\0\0$timeout", -4;
    $redis->cmd('SET', cache_key($session), seal(session_id($session), made_earlier($der, $timeout - 60)));
    is visit('redis', protocol => 'TLSv1.2', session => $session)->{status}, 'HIT', 'a minute before its end';
    $redis->cmd('SET', cache_key($session), seal(session_id($session), made_earlier($der, $timeout + 60)));
    is visit('redis', protocol => 'TLSv1.2', session => $session)->{status}, 'CORRUPT', 'a minute after it';
};

is_deeply [ $_->errors(warn => 1, except => qr/corrupt SSL session [0-9a-f]{8} in "store", \w+ 127\.0\.0\.1:\d+, \d+ times: /) ], [],
    'nothing else in the log' for values %nginx;

done_testing;
