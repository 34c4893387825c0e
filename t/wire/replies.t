# Answers of a store that have a history: it keeps what it is given, and the test says what it
# makes of it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my $port  = free_port();

# What the store answers is code that is given to the fake server, which is a process of its own;
# the test says which by a file.
my $script = tmpdir() . '/answer';

my %answer = (
    as_it_is  => sub { $_[0] },
    cut       => sub { substr $_[0], 0, -1 },
    extended  => sub { "$_[0]\0" },
    empty     => sub { '' },
    # The length of the whole counts the byte, too, so that only the end of the session is wrong.
    short_der => sub { my ($der) = @_; substr $der, -1, 1, ''; _with_length($der) },
    flipped   => sub { my ($der) = @_; substr $der, 0, 1, "\x31"; $der },
    too_large => sub { $_[0] . "\0" x (16 * 1024 + 1 - length $_[0]) },
);

# SSL_SESSION_ASN1 is a SEQUENCE of less than 64 KB.
sub _with_length {
    my ($der) = @_;
    my ($first) = unpack 'xC', $der;
    return pack('CC', 0x30, length($der) - 2) . substr $der, 2 if $first < 0x80;
    return pack('CCC', 0x30, 0x81, length($der) - 3) . substr $der, 3 if $first == 0x81;
    return pack('CCn', 0x30, 0x82, length($der) - 4) . substr $der, 4;
}

sub bulk { defined $_[0] ? '$' . length($_[0]) . "\r\n$_[0]\r\n" : "\$-1\r\n" }

my %kept;

# In the server's process: one RESP command, and what is said to it.
sub serve {
    my ($command, $key, $value) = @_;
    if (uc $command eq 'SET') {
        $kept{$key} = $value;
        return "+OK\r\n";
    }
    return delete $kept{$key} ? ":1\r\n" : ":0\r\n" if uc $command eq 'DEL';
    return "+PONG\r\n" if uc $command eq 'PING';
    my $how = slurp($script);
    return $1 if $how =~ /^raw (.*)/s;
    return bulk((grep { $_ ne $kept{$key} } values %kept)[0]) if $how eq 'another';
    return bulk(defined $kept{$key} ? $answer{$how}->($kept{$key}) : undef);
}

my $store = fake_server(canned => [ \&serve ]);
sub answers { spew($script, $_[0]) }

# The sessions are not sealed: here it is about what OpenSSL makes of them.
my $nginx = nginx(conf => <<"CONF");
    ssl_session_key off;
    ssl_session_backend store {
        server          127.0.0.1:@{[ $store->port ]};
        connect_timeout 10s;
        fetch_timeout   10s;
        store_timeout   10s;
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_reused [\$ssl_session_fetch_status] [\$ssl_session_fetch_tier]"; }
    }
CONF

# What a worker has open that knows nobody yet.
my $idle_fds = $nginx->fds;

# Lines of [error] and above that have come since the last question, without their heads.
my $seen = $nginx->log_pos;
sub said {
    my @lines = $nginx->errors(from => $seen);
    $seen = $nginx->log_pos;
    s/.*?\] \d+#\d+: (?:\*\d+ )?//, s/ while \w.*//, s/$doing$//, s/\b[0-9a-f]{8}\b/HASH/,
        s/127\.0\.0\.1:\d+/STORE/ for @lines;
    return \@lines;
}

# Waits until all sessions of a client are in the store. How many there were.
sub stored {
    my ($client, $seconds) = @_;
    my @keys = map { plain_key($_) } $client->protocol eq 'TLSv1.3' ? $client->sessions : $client->session;
    wait_until {
        my %set = map { $_->[1] => 1 } $store->requests('SET');
        !grep { !$set{$_} } @keys;
    } $seconds // 5, 'SET';
    return scalar @keys;
}

# A session that is in the store. What befalls the connection for stores may hold them back for a while.
sub session {
    my ($protocol) = @_;
    my $client;
    wait_until {
        $client = tls_client(port => $port, protocol => $protocol);
        $client->request or die $client->error;
        eval { stored($client, 0.5) };
    } 10, 'a session in the store';
    return $client->session;
}

sub client_with {
    my ($protocol, $session) = @_;
    return tls_client(port => $port, protocol => $protocol, session => $session);
}

# What a client is told, or why it is not.
sub answer { my ($client) = @_; return $client->request // $client->error }

sub offer { answer(client_with(@_)) }

# Has the store close what is open, and waits for nginx to see it: there is a connection for lookups,
# and there may be one for stores.
sub new_connection {
    # One for lookups, and one for what is stored and removed.
    wait_until { my $open = $nginx->fds - $idle_fds; $open == 1 || $open == 2 } 5,
        'nothing to be open but connections to the store';
    $store->close_all;
    wait_until { $nginx->fds == $idle_fds } 5, 'nginx to close it, too';
}

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: the entry as it was stored" => sub {
        answers('as_it_is');
        is offer($protocol, session($protocol)), 'r [HIT] [store]', 'is resumed';
        is_deeply said(), [], 'nothing in the log';
    };

    for my $how (qw(cut extended empty short_der flipped another)) {
        subtest "$protocol: the entry $how" => sub {
            # Of these a connection may bring but one in a row.
            new_connection(), session($protocol) if $how eq 'another';
            my $session = session($protocol);
            answers($how);
            my $dels = $store->requests('DEL');
            my $client = client_with($protocol, $session);
            is answer($client), '. [CORRUPT] [store]', 'is corrupt, and the handshake full';
            # Once a second at most.
            is_deeply [ grep { !/^corrupt SSL session HASH in "store", redis STORE, \d+ times: [\w ]+$/ } @{ said() } ], [],
                'the log says nothing else';
            wait_until { $store->requests('DEL') > $dels } 5, 'DEL';
            my @removed = map { $_->[1] } $store->requests('DEL');
            is_deeply [ @removed[ $dels .. $#removed ] ], [ plain_key($session) ], 'that entry is removed';
            is stored($client), $protocol eq 'TLSv1.3' ? 2 : 1, 'the new session is stored';
            answers('as_it_is');
            is offer($protocol, $session), '. [MISS] []', 'afterwards it is missing';
        };
    }
}

subtest 'a corrupt entry is logged' => sub {
    is $nginx->log_like(qr/corrupt SSL session/) =~ s/.*?(corrupt .*?), client.*/$1/r
        =~ s/\b[0-9a-f]{8}\b/HASH/r =~ s/127\.0\.0\.1:\d+/STORE/r,
        'corrupt SSL session HASH in "store", redis STORE, 1 times: not a session while fetching SSL session', 'by a hash';
};

subtest 'an entry over 16 KB is skipped and removed, and the connection stays in step' => sub {
    my $before = $store->stats->{accepted};
    for my $chunk (undef, 1000) {
        my ($session, $other) = (session('TLSv1.2'), session('TLSv1.2'));
        $store->chunk($chunk);
        answers('too_large');
        is offer('TLSv1.2', $session), '. [CORRUPT] [store]', 'a full handshake';
        answers('as_it_is');
        is offer('TLSv1.2', $other), 'r [HIT] [store]', 'the next answer is the next one';
        is offer('TLSv1.2', $session), '. [MISS] []', 'the entry is gone';
    }
    $store->chunk(undef);
    is_deeply [ grep { !/^corrupt SSL session HASH in "store", redis STORE, \d+ times: [\w ]+$/ } @{ said() } ], [], 'no other error';
    is $store->stats->{accepted}, $before, 'the connection is the same';
};

subtest 'an error refuses one lookup, and the connection goes on' => sub {
    my $session = session('TLSv1.2');
    my $before  = $store->stats->{accepted};
    answers("raw -BUSY Redis is busy running a script\r\n");
    is offer('TLSv1.2', $session), '. [ERROR] []', 'a full handshake';
    answers('as_it_is');
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'the next lookup hits';
    is_deeply said(),
        ['redis STORE refused 1 requests, the last with "BUSY Redis is busy running a script"'],
        'the log says so';
    is $store->stats->{accepted}, $before, 'the connection is the same';
};

subtest 'replies byte by byte' => sub {
    $store->chunk(1);
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = session($protocol);
        is offer($protocol, $session), 'r [HIT] [store]', "$protocol: a hit";
        answers("raw \$-1\r\n");
        is offer($protocol, $session), '. [MISS] []', "$protocol: nil";
        answers("raw -ERR no\r\n");
        is offer($protocol, $session), '. [ERROR] []', "$protocol: an error";
        answers('as_it_is');
    }
    $store->chunk(undef);
    # A refusal is logged once a second at most, and there was one just before.
    is_deeply [ grep { !/^redis STORE refused \d requests, the last with "ERR no"$/ } @{ said() } ], [],
        'nothing else in the log';
};

subtest 'several replies in one segment go to those who asked' => sub {
    my @sessions = map { session('TLSv1.2') } 1 .. 4;
    $store->hold;
    my $gets    = $store->requests('GET');
    my @clients = map { client_with('TLSv1.2', $_)->start } @sessions;
    wait_until { $store->requests('GET') == $gets + 4 } 5, 'four lookups';
    $store->release;
    is $_->request, 'r [HIT] [store]', 'resumed' for @clients;
    is_deeply [ map { session_name($_->session) } @clients ], [ map { session_name($_) } @sessions ],
        'each by its own session';
    is_deeply said(), [], 'nothing in the log';
};

subtest 'two entries of other sessions in a row' => sub {
    my @sessions = map { session('TLSv1.2') } 1 .. 2;
    my $before   = $store->stats->{accepted};
    answers('another');
    is offer('TLSv1.2', $_), '. [CORRUPT] [store]', 'a full handshake' for @sessions;
    answers('as_it_is');
    my $session = session('TLSv1.2');
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'the next is resumed';
    # What waited to be removed has gone with its connection.
    cmp_ok $store->stats->{accepted} - $before, '>=', 1, 'over another connection';
    cmp_ok $store->stats->{accepted} - $before, '<=', 2, 'and no more than that';
    is_deeply [ grep { !/^corrupt SSL session/ } @{ said() } ],
        ['redis STORE: reply with another session (1 times)'], 'the log says why';
};

# From here on the store does what makes nginx give the connection up. It asks again after a pause. The
# log has one line a second that it is down.
sub back_again {
    my ($session) = @_;
    answers('as_it_is');
    # There is one line a second.
    my $quiet = time + 2;
    wait_until { time >= $quiet } 5;
    my $back = wait_until { offer('TLSv1.2', $session) eq 'r [HIT] [store]' } 20, 'the store to be up again';
    # For what is stored, too.
    wait_until {
        my $sets = $store->requests('SET');
        answer(tls_client(port => $port, protocol => 'TLSv1.2'));
        eval { wait_until { $store->requests('SET') > $sets } 0.5 };
    } 20, 'a store';
    return $back;
}

for my $case (
    [ 'an array in place of the entry', "*1\r\n\$1\r\na\r\n", 'reply of unexpected type 0x2a' ],
    [ 'a map in place of the entry',    "%1\r\n+a\r\n:1\r\n", 'reply of unexpected type 0x25' ],
    [ 'a status in place of the entry', "+OK\r\n",            'reply to no request' ],
    [ 'an integer in place of the entry', ":1\r\n",           'reply to no request' ],
) {
    my ($name, $bytes, $why) = @$case;
    subtest $name => sub {
        my $session = session('TLSv1.2');
        answers("raw $bytes");
        is offer('TLSv1.2', $session), '. [ERROR] []', 'a full handshake';
        is_deeply said(), ["redis STORE is down: $why"], 'the log says why';
        ok back_again($session), 'another connection is good';
        is_deeply [ grep { !/SSL sessions not stored/ } @{ said() } ], [], 'without an error';
    };
}

subtest 'what RESP3 has beyond RESP2' => sub {
    my $session = session('TLSv1.2');
    my $before  = $store->stats->{accepted};
    answers("raw _\r\n");
    is offer('TLSv1.2', $session), '. [MISS] []', 'its null is a miss';
    my $push = ">2\r\n\$10\r\ninvalidate\r\n*1\r\n\$3\r\nkey\r\n";
    $store->push_reply($push);
    answers("raw $push\$-1\r\n");
    is offer('TLSv1.2', $session), '. [MISS] []', 'a message that answers nothing is passed over';
    answers('as_it_is');
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'and the connection stays in step';
    is $store->stats->{accepted}, $before, 'the same one';
    is_deeply said(), [], 'without an error';
};

subtest 'a reply never asked for' => sub {
    my $session = session('TLSv1.2');
    my $before  = $store->stats->{accepted};
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'the connection is good';
    $store->push_reply(bulk('for nobody'));
    $nginx->log_like(qr/\[error\].*is down: reply to no request/, from => $seen);
    ok back_again($session), 'another connection is good';
    # It was said on both.
    cmp_ok $store->stats->{accepted}, '>', $before, 'it is another';
    is_deeply [ grep { !/^redis STORE(?: is down)?: reply to no request/ } @{ said() } ], [], 'the log says why';
};

subtest 'the store closes an idle connection' => sub {
    my $session = session('TLSv1.2');
    my $before  = $store->stats->{accepted};
    new_connection();
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'the next lookup takes a new one at once';
    cmp_ok $store->stats->{accepted} - $before, '<=', 2, 'one more, and one for what is stored';
    is_deeply said(), [], 'nothing worth an error';
};

subtest 'the store closes instead of replying' => sub {
    my $session = session('TLSv1.2');
    is offer('TLSv1.2', $session), 'r [HIT] [store]', 'the connection is good';
    $store->hold;
    my $gets   = $store->requests('GET');
    my $client = client_with('TLSv1.2', $session)->start;
    wait_until { $store->requests('GET') > $gets } 5, 'the lookup';
    $store->close_all;
    is $client->request, '. [ERROR] []', 'a full handshake';
    $store->release;
    # That is logged once a second at most, and there was a line just before.
    is_deeply [ grep { !/^redis STORE: server closed connection \(\d+ times\)$/ } @{ said() } ], [],
        'a server that has answered before does not count as down';
    ok back_again($session), 'another connection is good';
};

subtest 'a log of all this names no session' => sub {
    my @keys = map { $_->[1] =~ s/^tls://r } $store->requests('SET');
    cmp_ok scalar @keys, '>', 20, 'sessions there were';
    my $log = $nginx->log;
    is scalar(grep { index($log, $_) >= 0 } @keys), 0, 'not by their keys';
    my @ids = map { unpack 'H*', MIME::Base64::decode_base64url($_) } @keys;
    is scalar(grep { length == 64 && $log =~ /\Q$_/i } @ids), 0, 'not by their IDs';
};

$nginx->quit;
is_deeply said(), [], 'a graceful exit in peace';
is $nginx->log_count(qr/\[(?:alert|crit|emerg)\]/), 0, 'nothing worse than errors';

done_testing;
