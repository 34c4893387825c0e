# Stateless tickets under keys of the fleet open no door that a full handshake does not open, and none for
# longer: those of "ssl_session_tickets on", and those of a fallback.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds resumed full);
use Test::More;

my $certs     = certs();
my @protocols = qw(TLSv1.2 TLSv1.3);
my $redis     = redis();

my %verifies = (
    no       => '',
    on       => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt};",
    optional => "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};",
    other    => "ssl_verify_client on; ssl_client_certificate $certs->{other_ca_crt};",
    # The session ID context is made of the CA's name, and this one has the same.
    renewed  => "ssl_verify_client on; ssl_client_certificate $certs->{ca_renewed_crt};",
    crl      => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt}; ssl_crl $certs->{crl_pem};",
);
my %shows = (
    none => [],
    map({ $_ => [ cert => $certs->{"${_}_crt"}, key => $certs->{"${_}_key"} ] } 'client', 'backend_revoked'),
);

# Made there, by that client, and offered there by this one, which is let in or not.
my @cases = (
    [ no       => 'none',            'no',       'none',   'resumed' ],
    [ no       => 'none',            'on',       'client', 200 ],
    [ no       => 'none',            'on',       'none',   400 ],
    [ optional => 'none',            'on',       'none',   400 ],
    [ optional => 'none',            'optional', 'client', 'resumed' ],
    [ on       => 'client',          'on',       'client', 'resumed' ],
    [ on       => 'client',          'no',       'client', 200 ],
    [ on       => 'client',          'optional', 'client', 200 ],
    [ on       => 'client',          'other',    'client', 400 ],
    [ on       => 'client',          'renewed',  'client', 400 ],
    [ on       => 'backend_revoked', 'crl',      'backend_revoked', 400 ],
    [ on       => 'client',          'crl',      'client', 200 ],
);

for my $kind (@kinds) {
    subtest "$kind: clients' certificates" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind, redis => $redis);
        my @servers = map { [ name => $_, more => $verifies{$_} ] } sort keys %verifies;
        my ($a, $b) = map { $site->server(servers => \@servers) } 1 .. 2;
        # So that what comes to it knows that the store is away.
        $b->made(protocol => $_, sni => 'no') for @protocols;
        for my $protocol (@protocols) {
            for my $case (@cases) {
                my ($from, $maker, $to, $who, $becomes) = @$case;
                my $what = "$protocol, $maker at $from, $who at $to";
                # In TLS 1.2 a session is for its name, which is that of the server here: nothing is
                # resumed elsewhere.
                my $made = $a->made(protocol => $protocol, sni => $from, @{ $shows{$maker} });
                is $made->{code}, 200, "$what: made";
                my $seen = $b->visit(protocol => $protocol, sni => $to, session => $made->{session}, @{ $shows{$who} });
                if ($becomes eq 'resumed') {
                    resumed($seen, $what);
                    is $seen->{verify}, $made->{verify}, 'and told the same of its client';
                } else {
                    is $seen->{reused}, 0, "$what: a full handshake";
                    is $seen->{code}, $becomes, "comes to $becomes";
                }
            }
        }
        $_->nothing_else for $a, $b;
    };

    # The same name at two machines whose configurations differ.
    subtest "$kind: machines that verify otherwise" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind, redis => $redis);
        my %server = map { $_ => $site->server(servers => [ [ more => $verifies{$_} ] ]) } sort keys %verifies;
        $_->made(protocol => 'TLSv1.3', @{ $shows{client} }) for @server{qw(no on optional crl)};
        for my $protocol (@protocols) {
            for my $case (@cases) {
                my ($from, $maker, $to, $who, $becomes) = @$case;
                my $what = "$protocol, $maker at $from, $who at $to";
                my $made = $server{$from}->made(protocol => $protocol, @{ $shows{$maker} });
                is $made->{code}, 200, "$what: made";
                my $seen = $server{$to}->visit(protocol => $protocol, session => $made->{session}, @{ $shows{$who} });
                if ($becomes eq 'resumed') {
                    resumed($seen, $what);
                } else {
                    is $seen->{reused}, 0, "$what: a full handshake";
                    is $seen->{code}, $becomes, "comes to $becomes";
                }
            }
        }
        $_->nothing_else for values %server;
    };
}

subtest 'the fallback leaves clients with certificates out where the store does' => sub {
    my $site = SSLSession::TicketSite->new(kind => 'fallback', redis => $redis, store => 'no_client_cert');
    my ($a, $b) = map { $site->server(servers => [ [ more => $verifies{optional} ] ]) } 1 .. 2;
    for my $protocol (@protocols) {
        my $made = $a->made(protocol => $protocol);
        resumed($b->visit(protocol => $protocol, session => $made->{session}), "$protocol, without a certificate");
        $made = $a->visit(protocol => $protocol, @{ $shows{client} });
        is $made->{verify}, 'SUCCESS', "$protocol: with a certificate";
        isnt $made->{stored}, 'TICKET', 'no ticket';
        for my $session ($protocol eq 'TLSv1.3' ? @{ $made->{sessions} } : $made->{session}) {
            full($b->visit(protocol => $protocol, session => $session, @{ $shows{client} }), 'with what it has got');
        }
    }
    $_->nothing_else for $a, $b;
};

done_testing;
