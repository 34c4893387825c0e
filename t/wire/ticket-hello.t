# What a ClientHello may have of tickets under keys of the fleet: the second one after a HelloRetryRequest,
# several identities, tickets beside session IDs, and what is broken or made up.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::EarlyData qw(early_client record_flight send_flight session_pem settle);
use SSLSession::Fixture;
use SSLSession::Sealing qw(ticket_key_id);
use SSLSession::TicketSite qw(resumed full);
use Crypt::Digest qw(digest_data);
use Crypt::Mac::HMAC qw(hmac);
use Crypt::PRNG qw(random_bytes);
use Test::More;

my @protocols = qw(TLSv1.2 TLSv1.3);
my $redis     = redis();
my $relay     = relay(upstream => $redis->address);

# Of one store: where tickets are on, where sessions are stored, and where they cannot be.
my %kind = (native => 'native', fallback => 'fallback', stored => 'ssl_session_tickets off; ssl_session_store live;', tls12 => 'tls12');
sub site { my ($kind, %arg) = @_; return SSLSession::TicketSite->new(redis => $redis, live => '127.0.0.1:' . $relay->port, kind => $kind{$kind}, %arg) }

my %server = map { $_ => site($_)->server } sort keys %kind;
my @kinds  = sort keys %kind;

sub ticket { return session_id($_[0]) }

# The session with another ticket of that length.
sub with_ticket {
    my ($der, $ticket) = @_;
    my $own = ticket($der);
    length $own == length $ticket or die 'another length';
    substr $der, index($der, $own), length $own, $ticket;
    return $der;
}

sub made { my ($protocol, %arg) = @_; return $server{native}->made(protocol => $protocol, %arg)->{session} }

# A session that is in the store.
sub stored {
    my ($protocol) = @_;
    my $session = $server{stored}->made(protocol => $protocol, no_ticket => 1)->{session};
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
    return $session;
}

subtest 'tickets are read wherever the keys are' => sub {
    for my $protocol (@protocols) {
        my $session = made($protocol);
        resumed($server{$_}->visit(protocol => $protocol, session => $session), "$_, $protocol") for @kinds;
    }
};

subtest 'a ticket that was changed on its way' => sub {
    for my $protocol (@protocols) {
        my $session = made($protocol);
        my $ticket  = ticket($session);
        # The name, the vector, what is encrypted, and the MAC.
        for my $at (20, 40, length($ticket) - 1) {
            my $broken = $ticket;
            substr($broken, $at, 1) ^= "\1";
            full($server{$_}->visit(protocol => $protocol, session => with_ticket($session, $broken)), "$_, $protocol, byte $at") for @kinds;
        }
        full($server{$_}->visit(protocol => $protocol, session => with_ticket($session, substr($ticket, 0, 16) . "\0" x (length($ticket) - 16))), "$_, $protocol, zeros") for @kinds;
        resumed($server{$_}->visit(protocol => $protocol, session => $session), "$_, $protocol, as it was") for @kinds;
    }
};

# --- names of keys ---

# A name that the site's key has made.
sub right_name {
    my $key  = slurp(session_key());
    my $body = substr(hmac('SHA256', $key, 'keyid'), 0, 1) . random_bytes(7);
    return $body . substr hmac('SHA256', $key, "tkname$body"), 0, 8;
}

sub entry { return SSLSession::Sealing::cache_key(ticket_key_id($_[0])) }
sub asked { my ($name) = @_; my $entry = entry($name); return scalar grep { $_->[1] eq $entry } $relay->requests('GET') }
sub named { my ($session, $name) = @_; return with_ticket($session, $name . substr ticket($session), 16) }

subtest 'names of keys that nobody has' => sub {
    for my $protocol (@protocols) {
        my $session = made($protocol);
        for my $kind (@kinds) {
            my $server = $server{$kind};
            my $from   = $relay->requests('GET');
            my $right  = right_name();
            my @wrong  = (random_bytes(16), substr($right, 0, 15) . (substr($right, 15) ^ "\1"), chr(ord($right) ^ 1) . substr $right, 1);
            full($server->visit(protocol => $protocol, session => named($session, $_)), "$kind, $protocol, a name that was made up") for @wrong;
            my $seen = $server->visit(protocol => $protocol, session => named($session, $right));
            full($seen, "$kind, $protocol, a name of ours");
            wait_until { asked($right) } 5, 'the store is asked for that';
            is asked($_), 0, 'and not for the others' for @wrong;
            full($server->visit(protocol => $protocol, session => named($session, $right)), 'again') for 1 .. 3;
            is asked($right), 1, 'once';
        }
    }
};

subtest 'a key that this machine has not heard of' => sub {
    for my $protocol (@protocols) {
        for my $kind (@kinds) {
            my $session = made($protocol);
            my $ticket  = ticket($session);
            # Its secret is that of the key that encrypts, under another name.
            my $own  = substr $ticket, 0, 16;
            my $id   = ticket_key_id($own);
            my $open = unseal($id, $redis->cmd('GET', SSLSession::Sealing::cache_key($id))) // die 'no key';
            my ($type, $secret) = unpack 'a x16 a64', $open;
            my $name = right_name();
            $redis->cmd('SET', entry($name), seal(ticket_key_id($name), $type . $name . $secret . pack 'Q>', 60_000));
            my $body = $name . substr $ticket, 16, -32;
            my $new  = with_ticket($session, $body . hmac('SHA256', substr($secret, 32), $body));
            my $seen = $server{$kind}->visit(protocol => $protocol, session => $new);
            resumed($seen, "$kind, $protocol: the handshake waits for it");
            is asked($name), 1, 'the store was asked once';
            # What is encrypted with a key that no longer encrypts is made anew.
            my ($last) = grep { length $_ } $protocol eq 'TLSv1.3' ? $seen->{sessions}[-1] : $seen->{session};
            is substr(ticket($last), 0, 16), $own, 'its client gets a ticket of the key that encrypts' if $kind eq 'native';
        }
    }
};

# --- HelloRetryRequest ---

subtest 'HelloRetryRequest' => sub {
    for my $kind (@kinds) {
        my $server  = site($kind, more => 'ssl_ecdh_curve secp384r1;')->server;
        my $session = $server{native}->made(protocol => 'TLSv1.3')->{session};
        my $seen = $server->visit(protocol => 'TLSv1.3', groups => 'X25519:P-384', session => $session);
        resumed($seen, $kind);
        ok $seen->{client}->hello_retried, 'the client had to try again';
        my $broken = with_ticket($session, substr(ticket($session), 0, -1) . chr(ord(substr ticket($session), -1) ^ 1));
        $seen = $server->visit(protocol => 'TLSv1.3', groups => 'X25519:P-384', session => $broken);
        full($seen, "$kind, broken");
        ok $seen->{client}->hello_retried, 'the client had to try again';
        $server->nothing_else;
    }
};

# --- identities of TLS 1.3 ---

# HKDF-Expand-Label (RFC 8446, 7.1) for one block.
sub expand_label {
    my ($hash, $secret, $label, $context, $length) = @_;
    my $info = pack 'n C/a C/a', $length, "tls13 $label", $context;
    return substr hmac($hash, $secret, "$info\1"), 0, $length;
}

# A ClientHello that offers these: sessions, or [a session, other bytes for its ticket].
sub hello_with {
    my (@offers) = @_;
    my ($first) = grep { !ref } @offers;
    my $hello = tls_client(port => 1, protocol => 'TLSv1.3', sni => 'one', unconnected => 1, session => $first)->client_hello;
    my $body  = substr $hello, 9;
    # version, random, session ID, cipher suites, compression
    my ($head) = $body =~ /^(.{34})/s;
    my $rest = substr $body, 34;
    my ($id, $suites, $compression, $extensions) = unpack 'C/a n/a C/a n/a', $rest;
    my $before = '';
    while (length $extensions) {
        my ($type, $data) = unpack 'n n/a', $extensions;
        substr $extensions, 0, 4 + length $data, '';
        $before .= pack 'n n/a*', $type, $data if $type != 41;
    }
    my (@identities, @binder);
    for my $offer (@offers) {
        my ($session, $ticket) = ref $offer ? @$offer : ($offer, ticket($offer));
        my %field  = SSLSession::Client::_der_fields((SSLSession::Client::_der($session))[1]);
        my $hash   = $field{0x04}[0] eq "\x13\x02" ? 'SHA384' : 'SHA256';
        my $size   = length digest_data($hash, '');
        my $early  = hmac($hash, "\0" x $size, $field{0x04}[2]);
        my $key    = expand_label($hash, $early, 'res binder', digest_data($hash, ''), $size);
        push @identities, pack 'n/a* N', $ticket, 0;
        push @binder, { hash => $hash, size => $size, key => expand_label($hash, $key, 'finished', '', $size) };
    }
    my $identities = pack 'n/a*', join '', @identities;
    my $length     = 2;
    $length += 1 + $_->{size} for @binder;
    my $psk = pack('n n', 41, length($identities) + $length) . $identities;
    my $all = $head . pack('C/a* n/a* C/a* n', $id, $suites, $compression, length($before) + length($psk) + $length) . $before . $psk;
    my $message = "\1" . substr(pack('N', length($all) + $length), 1) . $all;
    my $binders = join '', map { pack 'C/a*', hmac($_->{hash}, $_->{key}, digest_data($_->{hash}, $message)) } @binder;
    $message .= pack 'n/a*', $binders;
    return pack 'C n n/a*', 22, 0x0301, $message;
}

# Which of the identities was chosen: its number, 'none', or the alert.
sub chosen {
    my ($server, @offers) = @_;
    my $client = tls_client(port => $server->port);
    $client->send_raw(hello_with(@offers));
    wait_until { $client->_pull(0.1); length $client->received > 100 || $client->{gone} || defined $client->alert } 10, 'a ServerHello';
    my $hello = $client->received;
    return 'alert ' . ($client->alert // '?') if ord $hello != 22;
    my ($id, $extensions) = unpack 'x43 C/a x3 n/a', $hello;
    while (length $extensions) {
        my ($type, $data) = unpack 'n n/a', $extensions;
        return unpack 'n', $data if $type == 41;
        substr $extensions, 0, 4 + length $data, '';
    }
    return 'none';
}

subtest 'several identities' => sub {
    my %off = map { $_ => 1 } qw(fallback stored tls12);
    for my $kind (@kinds) {
        my $server = $server{$kind};
        my ($ticket, $session) = (made('TLSv1.3'), stored('TLSv1.3'));
        my $other   = [ $session, issue_id('TLSv1.3') ];
        my $broken  = [ $ticket, substr(ticket($ticket), 0, -1) . chr(ord(substr ticket($ticket), -1) ^ 1) ];
        my $foreign = [ $ticket, random_bytes(length ticket($ticket)) ];
        is chosen($server, $ticket),           0, "$kind: a ticket";
        is chosen($server, $ticket, $session), 0, "$kind: a ticket, a session";
        is chosen($server, $foreign, $ticket), $off{$kind} ? 'none' : 1, "$kind: a ticket of nobody, a ticket";
        is chosen($server, $broken, $ticket),  $off{$kind} ? 'none' : 1, "$kind: a broken ticket, a ticket";
        # Servers with tickets know no others.
        is chosen($server, $session),          $off{$kind} ? 0 : 'none', "$kind: a session";
        is chosen($server, $session, $ticket), $off{$kind} ? 0 : 1,      "$kind: a session, a ticket";
        is chosen($server, $foreign, $session), $off{$kind} ? 1 : 'none', "$kind: a ticket of nobody, a session";
        is chosen($server, $other, $ticket),   $off{$kind} ? 'none' : 1, "$kind: a session that is not there, a ticket";
        like chosen($server, [ $ticket, '' ], $ticket), qr/^(?:alert 50|none|1)$/, "$kind: an empty identity";
        like chosen($server, $ticket, [ $ticket, '' ]), qr/^(?:alert 50|0)$/, "$kind: an empty identity, last";
        is chosen($server, ($foreign) x 40, $ticket), $off{$kind} ? 'none' : 40, "$kind: forty of nobody, a ticket";
        is chosen($server, $ticket, ($foreign) x 40), 0, "$kind: a ticket, forty of nobody";
    }
};

# --- TLS 1.2 ---

subtest 'a ticket beside a session ID' => sub {
    for my $kind (@kinds) {
        my $ticket = made('TLSv1.2');
        my $id     = session_id(stored('TLSv1.2'));
        my $seen   = $server{$kind}->visit(protocol => 'TLSv1.2', session => beside_ticket($ticket, $id));
        resumed($seen, "$kind: an ID of ours");
        resumed($server{$kind}->visit(protocol => 'TLSv1.2', session => beside_ticket($ticket, issue_id('TLSv1.2'))), "$kind: one that is not in the store");
        resumed($server{$kind}->visit(protocol => 'TLSv1.2', session => beside_ticket($ticket, "\1" x 32)), "$kind: one that was made up");
    }
};

# --- servers without resumption ---

subtest 'a server that resumes nothing' => sub {
    my $off  = site('stored', more => 'ssl_session_cache off;')->server;
    my $back = site('fallback', more => 'ssl_session_cache off;')->server;
    for my $protocol (@protocols) {
        my $session = made($protocol);
        for my $server ($off, $back) {
            for my $seen (map { $server->visit(protocol => $protocol, session => $session) } 1 .. 2) {
                full($seen, "$protocol, a ticket");
                is_deeply [ grep { length ticket($_) > 32 } @{ $seen->{sessions} } ], [], 'and none is given';
            }
        }
    }
    $_->nothing_else for $off, $back;
};

# Servers of one socket, of which one resumes nothing.
subtest 'a server that resumes nothing beside one that does' => sub {
    for my $kind (qw(fallback tls12)) {
        for my $default (qw(on off)) {
            my @servers = map { [ name => $_, more => $_ eq 'off' ? 'ssl_session_cache off;' : '' ] } $default, $default eq 'on' ? 'off' : 'on';
            my $server = site($kind)->server(servers => \@servers);
            # Before 1.29.2 it is the default server that decides for both.
            $server->made(protocol => 'TLSv1.3', sni => 'on') if $default eq 'on';
            for my $protocol (@protocols) {
                for my $seen (map { $server->visit(protocol => $protocol, sni => 'off') } 1 .. 2) {
                    full($seen, "$kind, $protocol, the default is $default");
                    is scalar(grep { length ticket($_) > 32 } @{ $seen->{sessions} }), 0, 'no ticket is given';
                }
            }
            $server->nothing_else;
        }
    }
};

# --- early data ---

for my $kind (qw(native fallback)) {
    subtest "$kind: early data with a stateless ticket" => sub {
        my %early = (servers => [ [ more => 'ssl_early_data on;' ] ]);
        my %single = map { $_ => site($kind, fetch => $_)->server(%early) } 'live', 'live single_use';
        my ($any, $once) = @single{ 'live', 'live single_use' };
        my $made  = sub { my ($server) = @_; $server->made(protocol => 'TLSv1.3')->{session} };
        my $visit = sub { my ($server, $session) = @_; early_client(port => $server->port, sni => 'one', session => $session, request => "GET / HTTP/1.0\r\nHost: one\r\n\r\n") };
        is $visit->($any, $made->($once))->early_data, 'accepted', 'accepted where tickets are good for many';
        for my $session ($made->($once), $made->($any)) {
            for (1 .. 2) {
                my $seen = $visit->($once, $session);
                is $seen->early_data, 'rejected', '"single_use": refused';
                is $seen->reused, 1, 'and resumed';
            }
        }
        my $flight = record_flight(sni => 'one', session => $made->($once));
        my $lines  = () = $once->nginx->access_log =~ /\n/g;
        my $got    = settle(send_flight($flight, 4, $once->port));
        is_deeply $got, { answered => 4, resumed => 4 }, 'a flight is sent four times';
        $once->nginx->quit;
        is scalar(() = $once->nginx->access_log =~ /\n/g), $lines, 'and nobody served';
        $_->nothing_else for $any, $once;
    };
}

# An empty identity is no extension.
$_->nothing_else("bad extension") for values %server;

done_testing;
