# Resumption skips no verification of a client's certificate: whoever comes with a session, made
# wherever, is let in as it would be after a full handshake, or not at all. The classes of
# CVE-2014-3616 and CVE-2025-23419.
#
# What a full handshake would bring is asked of the same nginx. The certificate that counts is, where
# a session resumes, the one that it was made with, as the server asks for none; else it is the one
# that the client has now.
#
# Before 1.29.2, where the name is dispatched after the session lookup, nginx with a cache of its own
# does not keep to this, and since then not where servers differ in a CRL only.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

my %verifies = (
    no         => '',
    on         => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt};",
    'on-other' => "ssl_verify_client on; ssl_client_certificate $certs->{other_ca_crt};",
    optional   => "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};",
    # Lets in whom it cannot verify, and says so: such a session must open no other door.
    any        => "ssl_verify_client optional_no_ca; ssl_client_certificate $certs->{ca_crt};",
    # The session ID context is made of the certificates: this one has another.
    'on-rsa'   => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt};",
);
my @servers = sort keys %verifies;

# These differ from "on" in what the session ID context, of certificates and of CAs' names, is not
# made of.
my %like_on = (
    crl   => "$verifies{on} ssl_crl $certs->{crl_pem};",
    deep  => "$verifies{on} ssl_verify_depth 3;",
    trust => "$verifies{on} ssl_trusted_certificate $certs->{ca_bundle_crt};",
);

# One listening socket for each of these: it is the default server there.
my @defaults = qw(no on any);

my %client = (
    none  => [],
    good  => [ cert => $certs->{client_crt},       key => $certs->{client_key} ],
    other => [ cert => $certs->{client_other_crt}, key => $certs->{client_other_key} ],
);
my @clients = sort keys %client;
$client{$_} = [ cert => $certs->{"backend_${_}_crt"}, key => $certs->{"backend_${_}_key"} ] for qw(revoked deep);

# Where to go to: the names in the ClientHello and in the Host header, and who goes there.
my @places = (
    (map { { sni => $_, host => $_, clients => \@clients } } @servers),
    { sni => undef,     host => 'no-such',  clients => \@clients },
    { sni => 'unknown', host => 'unknown',  clients => ['none'] },
    { sni => undef,     host => 'on',       clients => ['none'] },
    { sni => 'no',      host => 'on',       clients => ['none'] },
    { sni => 'any',     host => 'on-other', clients => ['none'] },
);
$_->{text} = join ' ', $_->{sni} // 'no name', $_->{host} eq ($_->{sni} // '') ? () : "(Host: $_->{host})" for @places;
# The default server is one that a session can come from, too; the places after it show nothing new.
my @origins = @places[ 0 .. @servers ];

sub conf {
    my ($port, $sessions) = @_;
    my $conf = <<"CONF";
    $sessions
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    access_log          off;
CONF
    my %all = (%verifies, %like_on);
    for my $name (sort keys %all) {
        my $listen = join ' ',
            map { "listen 127.0.0.1:$port->{$_} ssl" . ($_ eq $name ? ' default_server;' : ';') } @defaults;
        my $type   = $name eq 'on-rsa' ? 'rsa' : 'ec';
        $conf .= <<"CONF";
    server {
        $listen
        server_name         $name.example.test;
        ssl_certificate     $certs->{"${type}_crt"};
        ssl_certificate_key $certs->{"${type}_key"};
        $all{$name}
        location / { return 200 "\$server_name \$ssl_client_verify [\$ssl_client_fingerprint] \$ssl_session_reused"; }
    }
CONF
    }
    return $conf;
}

my (%port, %full);
my ($tier, $listen, $protocol);

# How the client was served, whether it has resumed, and a session to offer. In TLS 1.3 that is the
# first of two, as nginx has the last one removed when it refuses the client.
sub visit {
    my ($place, $client, $session) = @_;
    my $tls = tls_client(
        port => $port{$listen}, protocol => $protocol, @{ $client{$client} }, session => $session,
        name => "$place->{host}.example.test",
        (defined $place->{sni} ? (sni => "$place->{sni}.example.test") : ()));
    my ($head, $body) = $tls->request;
    my $status  = defined $head ? (split ' ', $head)[1] : defined $tls->alert ? 'alert ' . $tls->alert : 'closed';
    my $resumed = $tls->reused;
    my $said    = '';
    if ($status eq 200) {
        ($said, my $r) = $body =~ /^(.*) (\S+)$/;
        $r eq ($resumed ? 'r' : '.') or die "server and client disagree: $body";
    }
    my ($first) = $tls->sessions;
    return { served => $status eq 200, answer => "$status $said", resumed => $resumed, session => $first };
}

sub full_handshake {
    my ($place, $client) = @_;
    return $full{"$tier $listen $protocol $place->{text} $client"} //= visit($place, $client);
}

# A session made there by that client, offered everywhere by all clients. What went wrong, as text.
sub offer_everywhere {
    my ($from, $maker, $count) = @_;
    my $server = $from->{sni} // $listen;
    # The certificate that the session stands for.
    my $holds  = $verifies{$server} ? $maker : 'none';
    my ($made, @wrong);
    my $make = sub {
        $made = visit($from, $maker);
        defined $made->{session} or die "$maker at $from->{text}: no session";
    };
    $make->();
    for my $to (@places) {
        for my $client (@{ $to->{clients} }) {
            my $now  = visit($to, $client, $made->{session});
            my $full = full_handshake($to, $now->{resumed} ? $holds : $client);
            $count->{all}++;
            $count->{resumed}++   if $now->{resumed};
            $count->{elsewhere}++ if $now->{resumed} && $now->{served} && ($to->{sni} // $listen) ne $server;
            $count->{refused}++   if !$now->{served};
            if ($now->{served} && $now->{answer} ne $full->{answer}) {
                push @wrong, "$maker at $from->{text}, then $client at $to->{text}: $now->{answer}"
                    . ($now->{resumed} ? ', resumed' : '') . "; full handshake: $full->{answer}";
            }
            # nginx has the session of a client that it refuses removed, OpenSSL one that fails.
            $make->() if !$now->{served} && ($now->{resumed} || !$now->{session});
        }
    }
    # Had the store lost it on the way, nothing would have been tried.
    if ($made->{served}) {
        my $again = visit($from, $maker, $made->{session});
        push @wrong, "$maker at $from->{text}: its session does not resume there: $again->{answer}"
            if !$again->{resumed} || $again->{answer} ne $made->{answer};
        $count->{same}++;
    }
    return @wrong;
}

sub matrix {
    subtest "$tier, $protocol, the default server verifies: $listen" => sub {
        my %count = map { $_ => 0 } qw(all resumed elsewhere refused same);
        my @wrong;
        for my $from (@origins) {
            # Who is not asked for a certificate shows none.
            my @makers = $verifies{ $from->{sni} // $listen } ? @clients : ('none');
            push @wrong, offer_everywhere($from, $_, \%count) for @makers;
        }
        is_deeply \@wrong, [], 'all that are let in are let in by a full handshake, as the same client';
        cmp_ok $count{same}, '>=', @origins, 'sessions resume where they were made';
        # In TLS 1.2, and where clients are verified, a session is for its name.
        cmp_ok $count{elsewhere}, '>', 0, 'some resume at another server' if $listen eq 'no' && $protocol eq 'TLSv1.3';
        cmp_ok $count{refused}, '>', 0, 'some are refused';
        note join ', ', map { "$_: $count{$_}" } sort keys %count;
    };
}

# From 1.29.2 on nginx by itself lets a session pass from one to the other of these.
sub left_out {
    subtest "$tier, $protocol: servers that differ in what the session ID context leaves out" => sub {
        for ([qw(on revoked crl)], [qw(deep deep on)], [qw(trust other on)]) {
            my ($from, $client, $to) = @$_;
            my ($first, $second) = map { { sni => $_, host => $_, text => $_ } } $from, $to;
            my $full = full_handshake($second, $client);
            ok !$full->{served}, "$client at $to: refused";
            my $made = visit($first, $client);
            ok $made->{served}, "$client at $from: let in";
            my $now = visit($second, $client, $made->{session});
            is $now->{answer}, $full->{answer}, "$client at $from, then at $to: refused as well";
            is $now->{resumed}, 0, 'and not resumed';
        }
    };
}

my $redis = redis();
my %sessions = (
    redis => <<"CONF",
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $redis->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF
    shared => 'ssl_session_fetch shared:tls:10m; ssl_session_store shared:tls:10m;',
);

for (sort keys %sessions) {
    $tier = $_;
    %port = map { $_ => free_port() } @defaults;
    my $nginx = nginx(log => 'notice', conf => conf(\%port, $sessions{$tier}));
    # What is below the tiers is the same: one socket will do for the second.
    for ($tier eq 'redis' ? @defaults : 'on') {
        $listen = $_;
        for (qw(TLSv1.2 TLSv1.3)) {
            $protocol = $_;
            matrix();
            left_out() if $listen eq 'on';
        }
    }
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], "$tier: no error in the log";
}

done_testing;
