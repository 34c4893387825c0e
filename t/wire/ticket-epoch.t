# "ssl_session_epoch" withdraws stateless tickets under keys of the fleet, too.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::EarlyData qw(session_pem);
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds resumed full);
use Test::More;

my @protocols = qw(TLSv1.2 TLSv1.3);

# Withdraws what was made up to now, and nothing that is made from the next second on: it holds for six
# seconds more than it says. What a machine has heard of it before is a second old, then.
sub withdraw {
    my ($redis) = @_;
    my $at = time - 6;
    $redis->cmd('SET', 'tls:epoch', $at);
    wait_until { time > $at + 7 } 5, 'the second after the next';
}

for my $kind (@kinds) {
    subtest "$kind: withdrawn tickets" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind, more => 'ssl_session_epoch epoch;');
        my ($a, $b) = map { $site->server } 1 .. 2;
        $b->made(protocol => $_) for @protocols;
        my %old;
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            my $seen = $b->visit(protocol => $protocol, session => $made->{session});
            resumed($seen, "$protocol, before");
            $old{$protocol} = [ $made->{session}, $protocol eq 'TLSv1.3' ? @{ $seen->{sessions} } : () ];
        }
        withdraw($site->redis);
        for my $protocol (@protocols) {
            for my $session (@{ $old{$protocol} }) {
                full($_->visit(protocol => $protocol, session => $session), "$protocol, withdrawn") for $a, $b;
            }
            my $made = $a->made(protocol => $protocol);
            resumed($b->visit(protocol => $protocol, session => $made->{session}), "$protocol, made later");
        }
        # It stays in force while it cannot be asked for, and so do the keys.
        $site->redis->kill;
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            resumed($b->visit(protocol => $protocol, session => $made->{session}), "$protocol, the store is away");
            full($b->visit(protocol => $protocol, session => $old{$protocol}[0]), "$protocol, withdrawn, the store is away");
        }
        $_->nothing_else for $a, $b;
    };

    subtest "$kind: an epoch that was never heard" => sub {
        # The keys are of another store.
        my ($redis, $gone) = (redis(), redis());
        my $epoch = "ssl_session_backend epoch { server ${\ $gone->address }; } ssl_session_epoch epoch;";
        my $site = SSLSession::TicketSite->new(kind => $kind, redis => $redis, fetch => 'epoch', more => $epoch);
        $gone->kill;
        my ($a, $b) = map { $site->server } 1 .. 2;
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            full($_->visit(protocol => $protocol, session => $made->{session}), "$protocol") for $a, $b;
        }
        ok $b->nginx->log_count(qr/SSL session epoch "epoch" in "epoch" has not been heard yet/), 'which the log says';
        $gone->start;
        # It is asked for with each ticket.
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            wait_until { $b->visit(protocol => $protocol, session => $made->{session})->{reused} } 10, "$protocol: resumed once it is heard";
        }
        $_->nothing_else('has not been heard yet') for $a, $b;
    };

    subtest "$kind: a long ClientHello" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind, more => 'ssl_session_epoch epoch;');
        my ($a, $b) = map { $site->server } 1 .. 2;
        # Nothing is read ahead of OpenSSL of a ClientHello that is longer than 32 KB.
        my $long = sub {
            my ($protocol, $session) = @_;
            my $alpn = join ',', 'http/1.1', map { 'x' x 250 . $_ } 1000 .. 1140;
            return s_client(port => $b->port, sni => 'one', protocol => $protocol, sess_in => session_pem($session), args => [ -alpn => $alpn ]);
        };
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            resumed($b->visit(protocol => $protocol, session => $made->{session}), "$protocol, before");
            is $long->($protocol, $made->{session})->reused, 1, 'and by a long one';
            withdraw($site->redis);
            is $long->($protocol, $made->{session})->reused, 0, "$protocol, withdrawn meanwhile: a full handshake";
        }
        $_->nothing_else for $a, $b;
    };
}

done_testing;
