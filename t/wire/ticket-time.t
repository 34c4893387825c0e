# How long stateless tickets under keys of the fleet are good: "ssl_session_lifetime", "ssl_session_timeout"
# and "ssl_session_fallback_timeout".

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds resumed full);
use Test::More;

my @protocols = qw(TLSv1.2 TLSv1.3);

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
        for (@made) {
            my ($limit, $protocol, $end, $session) = @$_;
            wait_until { time > $end + 1 } $life + 5, 'its end';
            my ($version) = $protocol =~ /^([^,]*)/;
            full($_->visit(protocol => $version, session => $session), "$limit, $protocol: after its end") for @{ $server{$limit} };
        }
        $_->nothing_else for map { @$_ } values %server;
    };
}

done_testing;
