# How long stateless tickets under keys of the fleet are good: "ssl_session_lifetime", "ssl_session_timeout"
# and "ssl_session_fallback_timeout".

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds resumed full);
use Test::More;

my @protocols = qw(TLSv1.2 TLSv1.3);

# What there is to see once tickets have ended: all of them end meanwhile.
my @later;

for my $kind (@kinds) {
    subtest "$kind: the time of a session" => sub {
        my $life = 4 * patience();
        my %site = (
            lifetime => SSLSession::TicketSite->new(kind => $kind, more => "ssl_session_lifetime ${life}s;"),
            timeout  => SSLSession::TicketSite->new(kind => $kind, timeout => "${life}s", keys => 'period=10m'),
        );
        my %server = map { $_ => [ map { my $it = $_; $it->server } ($site{$_}) x 2 ] } sort keys %site;
        my @made;
        for my $limit (sort keys %site) {
            my ($a, $b) = @{ $server{$limit} };
            $b->made(protocol => 'TLSv1.3');
            for my $protocol (@protocols) {
                my $start = time;
                my $made  = $a->made(protocol => $protocol);
                my $last  = $made->{session};
                push @made, [ $limit, $protocol, time + $life, $last ];
                # A renewal is younger, and has no more time where the lifetime counts.
                wait_until { time > $start + 1 } 10, 'another second';
                my $seen = $b->visit(protocol => $protocol, session => $last);
                resumed($seen, "$limit, $protocol: before its end") if time < $start + $life;
                push @made, [ $limit, "$protocol, its renewal", time + ($limit eq 'timeout' ? $life : 0), $seen->{session} ]
                    if $protocol eq 'TLSv1.3' && $seen->{reused};
                $made[-1][2] = $made[-2][2] if $limit eq 'lifetime' && $protocol eq 'TLSv1.3' && $seen->{reused};
            }
        }
        push @later, sub {
            for (@made) {
                my ($limit, $protocol, $end, $session) = @$_;
                wait_until { time > $end + 1 } $life + 5, 'its end';
                my ($version) = $protocol =~ /^([^,]*)/;
                full($_->visit(protocol => $version, session => $session), "$kind, $limit, $protocol: after its end") for @{ $server{$limit} };
            }
            $_->nothing_else for map { @$_ } values %server;
        };
    };
}

# What a client is told that its ticket is good for, in seconds: field 9 of OpenSSL's session.
sub hint {
    my ($session) = @_;
    my %field = SSLSession::Client::_der_fields((SSLSession::Client::_der($session))[1]);
    return unpack 'N', substr "\0\0\0" . (SSLSession::Client::_der($field{0xa9}[0]))[1], -4;
}

subtest 'tickets of a fallback have a time of their own' => sub {
    my $life = 4 * patience();
    my $site = SSLSession::TicketSite->new(kind => 'fallback', more => "ssl_session_fallback_timeout ${life}s;", timeout => '1h');
    my ($a, $b) = map { $site->server } 1 .. 2;
    $b->made(protocol => 'TLSv1.3');
    my @made;
    for my $protocol (@protocols) {
        my $start = time;
        my $made  = $a->made(protocol => $protocol);
        my $end   = time + $life;
        my $first = $made->{session};
        cmp_ok hint($first), '<=', $life, "$protocol: the client is told";
        # In TLS 1.2 nothing comes of a resumption.
        my $seen = $b->visit(protocol => $protocol, session => $first);
        resumed($seen, "$protocol: before its end") if time < $start + $life;
        push @made, [ $protocol, $end, $first ];
        next if $protocol eq 'TLSv1.2' || !$seen->{reused};
        cmp_ok hint($seen->{session}), '<=', $life, "$protocol: of its renewal, too";
        push @made, [ $protocol, time + $life, $seen->{session} ];
    }
    push @later, sub {
        for (@made) {
            my ($protocol, $end, $session) = @$_;
            wait_until { time > $end + 1 } $life + 5, 'its end';
            full($_->visit(protocol => $protocol, session => $session), "of a fallback, $protocol: after its end") for $a, $b;
        }
        $_->nothing_else for $a, $b;
    };
};

subtest 'and no more than others' => sub {
    my $site = SSLSession::TicketSite->new(kind => 'fallback', more => 'ssl_session_fallback_timeout 1h;', timeout => '100s');
    my ($a, $b) = map { $site->server } 1 .. 2;
    for my $protocol (@protocols) {
        cmp_ok hint($a->made(protocol => $protocol)->{session}), '<=', 100, "$protocol: what sessions have";
    }
    $_->nothing_else for $a, $b;
};

subtest 'after their ends' => sub { $_->() for @later };

done_testing;
