# Sessions are sealed: nothing readable is in a store, each implementation of docs/envelope.md reads
# the entries of the others, and keys are rotated without losing a session.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use MIME::Base64 qw(decode_base64url);
use Test::More;

my $certs = certs();

sub conf {
    my ($port, $target, @more) = @_;
    return <<"CONF";
    ssl_session_fetch $target;
    ssl_session_store $target;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    @more
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_tier"; }
    }
CONF
}

# A backend whose timeouts no busy machine reaches.
sub backend {
    my ($server, $protocol) = @_;
    my $wait = 3 * patience() . 's';
    return "ssl_session_backend store { server $server; protocol $protocol;"
        . " connect_timeout $wait; fetch_timeout $wait; }";
}

sub visit {
    my ($port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', %arg);
    my $answer = $client->request // die 'no answer: ' . $client->error;
    my ($status, $tier) = split /\|/, $answer;
    is $client->reused, $status eq 'HIT' ? 1 : 0, "$status: resumed if and only if it is a hit"
        if $client->reused != ($status eq 'HIT');
    my @sessions = $client->protocol eq 'TLSv1.3' ? $client->sessions : $client->session;
    return { status => $status, tier => $tier, client => $client, session => $sessions[-1], sessions => \@sessions };
}

sub nothing_else { my ($nginx, @but) = @_; is_deeply [ $nginx->errors(warn => 1, @but) ], [], 'nothing else in the log' }

# The secret of a session in DER, as the server has it: SSL_SESSION_ASN1.master_key.
sub secret {
    my ($der) = @_;
    my ($secret) = $der =~ /\x04\x20.{32}\x04([\x20\x30].{32,48})/s or die 'no session';
    return substr $secret, 1, ord $secret;
}

my %kind = (
    redis => sub {
        my $redis = redis();
        return ($redis->address, sub { $redis->cmd('GET', @_) }, sub { $redis->cmd('SET', @_) });
    },
    memcached => sub {
        my $memcached = memcached();
        return ($memcached->address, sub { $memcached->get(@_) }, sub { $memcached->set(@_, 600) });
    },
);

for my $kind (sort keys %kind) {
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        subtest "$kind, $protocol: an entry is what the documentation says" => sub {
            my ($server, $get, $set) = $kind{$kind}->();
            my ($port, $other) = (free_port(), free_port());
            my @nginx = map { nginx(conf => conf($_, 'store', backend($server, $kind))) } $port, $other;
            my $seen = visit($port, protocol => $protocol);
            is scalar @{ $seen->{sessions} }, $protocol eq 'TLSv1.3' ? 2 : 1, 'sessions';
            for my $session (@{ $seen->{sessions} }) {
                my $id    = session_id($session);
                my $entry = wait_until { $get->(cache_key($session)) } 5, 'the entry';
                is substr($entry, 0, 1), "\1", 'the version';
                is substr($entry, 1, 1), substr($id, 0, 1), 'the key id';
                my $der = unseal($id, $entry);
                ok defined $der, 'it opens for its session ID' or next;
                is length $entry, 30 + length $der, 'and is that much longer';
                isnt index($der, $id), -1, 'the session ID is in the session';
                is index($entry, $_), -1, 'and nothing of it in the entry' for $id, secret($der), substr $der, 0, 8;
                is index($entry, substr $id, 1), -1, 'not even its end';

                # The other way round: an entry that was written by the other implementation.
                $set->(cache_key($session), seal($id, $der));
                is visit($other, protocol => $protocol, session => $session)->{status}, 'HIT',
                    'one that was sealed by other means is resumed';
            }
            my @ids = map { session_id($_) } @{ $seen->{sessions} };
            isnt $ids[0], $ids[1], 'each ticket is another one' if @ids > 1;
            nothing_else($_) for @nginx;
        };
    }
}

subtest 'session IDs are issued for every server, and are not alike' => sub {
    my $redis = redis();
    my $port  = free_port();
    my $nginx = nginx(conf => conf($port, 'store', backend($redis->address, 'redis'), 'ssl_session_cache shared:own:1m;',
        "server { listen 127.0.0.1:$port ssl; server_name other.example.test; ssl_certificate $certs->{rsa_crt};"
        . " ssl_certificate_key $certs->{rsa_key}; return 200 '|'; }"));
    my %seen;
    for my $sni (undef, 'other.example.test') {
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            for my $n (1 .. 20) {
                my $seen = visit($port, protocol => $protocol, defined $sni ? (sni => $sni) : ());
                for my $id (map { session_id($_) } @{ $seen->{sessions} }) {
                    is length $id, 32, 'an ID of 32 bytes' if length $id != 32;
                    $seen{ substr $id, 1, 19 }++;
                    # What is issued here and there is the same but for the random part.
                    my $name = SSLSession::Sealing::cache_key($id);
                    wait_until { $redis->cmd('EXISTS', $name) } 5, 'an entry by the name of an issued ID';
                }
            }
        }
    }
    is scalar(grep { $_ > 1 } values %seen), 0, 'no random part came twice';
    cmp_ok scalar(keys %seen), '==', 2 * 20 * (1 + 2), 'all were seen';
    is $redis->cmd('DBSIZE'), scalar keys %seen, 'and nothing else is in the store';
    nothing_else($nginx);
};

# What the zone's memory has of a session: its secret, and its session ID.
sub in_memory {
    my ($nginx, @needles) = @_;
    my ($worker) = $nginx->workers;
    my %found;
    open my $maps, '<', "/proc/$worker/maps" or die "maps: $!";
    open my $mem, '<:raw', "/proc/$worker/mem" or die "mem: $!";
    while (my $line = <$maps>) {
        # Shared memory of nginx; what the worker has for itself is another matter.
        my ($from, $to) = $line =~ m{^([0-9a-f]+)-([0-9a-f]+) rw-s .*/dev/zero} or next;
        no warnings 'portable';
        sysseek $mem, hex $from, 0;
        sysread $mem, my $bytes, hex($to) - hex $from;
        # An entry is in pieces there.
        for my $n (0 .. $#needles) {
            $found{$n} = 1 if grep { index($bytes, substr $needles[$n], $_, 16) >= 0 } 0 .. length($needles[$n]) - 16;
        }
    }
    return join ' ', map { $found{$_} ? 'there' : 'not there' } 0 .. $#needles;
}

subtest 'shared memory holds envelopes, too' => sub {
    my $redis = redis();
    for my $sealed (1, 0) {
        my $port  = free_port();
        my $nginx = nginx(conf => conf($port, 'shared:tls:1m store',
            ($sealed ? () : "ssl_session_key off;"), backend($redis->address, 'redis')));
        my $seen  = visit($port);
        my $id    = session_id($seen->{session});
        my $key   = $sealed ? cache_key($seen->{session}) : plain_key($seen->{session});
        my $entry = wait_until { $redis->cmd('GET', $key) } 5, 'the entry';
        my $der   = $sealed ? unseal($id, $entry) : $entry;
        is visit($port, session => $seen->{session})->{tier}, 'shared:tls', 'it is in the zone';
        is in_memory($nginx, $entry, secret($der), $id), $sealed ? 'there not there not there' : 'there there there',
            $sealed ? 'the zone has the envelope, not the secret, not the ID' : 'without a key it has all three';
        my @off = $sealed ? () : (except => qr/"ssl_session_key" is off: whoever can read "store" can decrypt/);
        nothing_else($nginx, @off);
    }
};

subtest 'keys are rotated without losing a session, and dropped to revoke' => sub {
    my $redis = redis();
    my ($old, $new) = (new_session_key(), new_session_key());
    my @port  = (free_port(), free_port());
    my $write = sub {
        my ($port, @keys) = @_;
        return conf($port, 'store', backend($redis->address, 'redis'), map { "ssl_session_key $_;" } @keys);
    };
    my @nginx = map { nginx(conf => $write->($_, $old)) } @port;
    my %made;
    # A session that was made at the first server now, by the key that issues.
    my $make = sub {
        my ($name, $protocol, $key) = @_;
        my $session = visit($port[0], protocol => $protocol)->{session};
        wait_until { $redis->cmd('EXISTS', cache_key($session, $key)) } 5, 'its entry';
        $made{$name}{$protocol} = $session;
    };
    my $finds = sub {
        my ($at, $name, $expected) = @_;
        is visit($port[$at], protocol => $_, session => $made{$name}{$_})->{status}, $expected,
            "$_: $name at server $at" for qw(TLSv1.2 TLSv1.3);
    };
    $make->(old => $_, $old) for qw(TLSv1.2 TLSv1.3);
    $finds->($_, old => 'HIT') for 0, 1;

    # Step one: all servers know the new key. Step two: it comes first. Step three: the old one goes.
    $nginx[$_]->reload($write->($port[$_], $old, $new)) for 0, 1;
    $finds->($_, old => 'HIT') for 0, 1;
    $nginx[0]->reload($write->($port[0], $new, $old));
    $make->(new => $_, $new) for qw(TLSv1.2 TLSv1.3);
    $finds->($_, old => 'HIT'), $finds->($_, new => 'HIT') for 0, 1;
    $nginx[1]->reload($write->($port[1], $new, $old));
    $finds->($_, old => 'HIT'), $finds->($_, new => 'HIT') for 0, 1;
    $nginx[$_]->reload($write->($port[$_], $new)) for 0, 1;
    $finds->($_, new => 'HIT') for 0, 1;
    my $gets = $redis->calls('get');
    $finds->($_, old => 'FOREIGN') for 0, 1;
    is $redis->calls('get'), $gets, 'what the old key has issued is not even looked for';
    nothing_else($_) for @nginx;
};

subtest 'a server without the key of the others' => sub {
    my $redis = redis();
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(conf => conf($_, 'store', backend($redis->address, 'redis'), 'ssl_session_key ' . new_session_key() . ';')) } @port;
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $session = visit($port[0], protocol => $protocol)->{session};
        wait_until { visit($port[0], protocol => $protocol, session => $session)->{status} eq 'HIT' } 5, 'a hit where it was made';
        is visit($port[1], protocol => $protocol, session => $session)->{status}, 'FOREIGN', "$protocol: foreign elsewhere";
    }
    nothing_else($_) for @nginx;
};

subtest 'a key that is dropped takes the sessions in a cache of nginx with it' => sub {
    my $redis = redis();
    my ($old, $new, $port) = (new_session_key(), new_session_key(), free_port());
    my $write = sub { conf($port, 'store', backend($redis->address, 'redis'), 'ssl_session_cache shared:own:1m;',
        map { "ssl_session_key $_;" } @_) };
    my $nginx = nginx(conf => $write->($old));
    my $session = visit($port)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session, $old)) } 5, 'its entry';
    $redis->cmd('FLUSHALL');
    my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 1, "nginx's own cache has it";
    $client->close;
    $nginx->reload($write->($new, $old));
    $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 1, 'after a reload, too';
    $client->close;
    $nginx->reload($write->($new));
    $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session, handshake => 1);
    is $client->reused, 0, 'and no more when its key is gone';
    nothing_else($nginx);
};

done_testing;
