# ssl_session_bind: whether a session outlives its server's certificate. docs/directives.md.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs     = certs();
my @protocols = qw(TLSv1.2 TLSv1.3);
my $redis     = redis();
my $dir       = new_dir('pki');

# A certificate with these names, and its key. (type => of the key)
sub certificate {
    my ($name, $names, %arg) = @_;
    my @type = $arg{type} ? (-newkey => $arg{type}) : qw(-newkey ec -pkeyopt ec_paramgen_curve:P-256);
    system('openssl', qw(req -x509 -nodes -days 30), @type, '-subj', $arg{subject} // "/O=$name/CN=a.test",
        ($names ? ('-addext', "subjectAltName=$names") : ()),
        '-keyout', "$dir/$name.key", '-out', "$dir/$name.crt", '-noenc') == 0 or die "no certificate $name";
    return $name;
}

open my $stderr, '>&', \*STDERR or die $!;
open STDERR, '>', "$dir/log" or die $!;
certificate('ec',      'DNS:a.test,DNS:*.b.test,IP:127.0.0.1');
certificate('renewed', 'IP:127.0.0.1,DNS:*.B.test,DNS:a.test');
certificate('rsa',     'DNS:a.test,DNS:*.b.test,IP:127.0.0.1', type => 'rsa:2048');
certificate('fewer',   'DNS:a.test,IP:127.0.0.1');
certificate('plain',         undef, subject => '/CN=a.test');
certificate('plain-renewed', undef, subject => '/CN=a.test');
certificate('plain-other',   undef, subject => '/CN=b.test');
open STDERR, '>&', $stderr or die $!;

my $ticket_key = spew("$dir/ticket.key", 'k' x 80);

# Where sessions are kept.
my %keep = (
    zone      => 'ssl_session_fetch shared:tls:1m; ssl_session_store shared:tls:1m; ssl_session_tickets off;',
    nginx     => 'ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_cache shared:own:1m; ssl_session_tickets off;',
    stateless => "ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_tickets on; ssl_session_ticket_key $ticket_key;",
    redis     => <<"CONF",
    ssl_session_backend fleet { server ${\ $redis->address }; connect_timeout 60s; fetch_timeout 60s; store_timeout 60s; }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
CONF
);

sub tls_of { return join '', map { "ssl_certificate $dir/$_.crt; ssl_certificate_key $dir/$_.key;\n" } split ' ', $_[0] }

# A server with these certificates. (bind => value, more => text)
sub site {
    my ($keep, $port, $names, %arg) = @_;
    my $bind = $arg{bind} ? "ssl_session_bind $arg{bind};" : '';
    return <<"CONF";
    $keep{$keep}
    $bind
    ssl_protocols TLSv1.2 TLSv1.3;
    access_log    off;
    server {
        listen 127.0.0.1:$port ssl;
        server_name a.test;
        @{[ tls_of($names) ]}
        @{[ $arg{more} // '' ]}
        location / { return 200 "\$ssl_client_verify \$ssl_session_fetch_status"; }
    }
CONF
}

my $protocol;

sub visit {
    my ($port, %arg) = @_;
    my $tls = tls_client(port => $port, protocol => $protocol, sni => 'a.test', name => 'a.test', %arg);
    my ($head, $body) = $tls->request;
    my $status = defined $head ? (split ' ', $head)[1] : 'closed';
    my ($session) = $protocol eq 'TLSv1.3' ? $tls->sessions : $tls->session;
    return { status => $status, resumed => $tls->reused, session => $session, says => $body // '', error => $tls->error };
}

# The session of a client that has not been here, which is resumed where it was made.
sub session {
    my ($keep, $port, @client) = @_;
    my $first = visit($port, @client);
    is "$first->{status} $first->{resumed}", '200 0', 'the first visit is a full handshake' or diag $first->{error};
    wait_until { $redis->cmd('EXISTS', cache_key($first->{session})) } 10, 'the session in the store' if $keep eq 'redis';
    is visit($port, @client, session => $first->{session})->{resumed}, 1, 'it is resumed';
    return $first->{session};
}

sub each_protocol {
    my ($what, $code) = @_;
    for (@protocols) {
        $protocol = $_;
        subtest "$what: $protocol" => $code;
    }
}

# What sessions come to after a change of certificates: [from, to, by the certificate, by names].
my %changes = (
    'the same'              => [ 'ec', 'ec', 1, 1 ],
    'renewed'               => [ 'ec', 'renewed', 0, 1 ],
    'for fewer names'       => [ 'ec', 'fewer', 0, 0 ],
    'for more names'        => [ 'fewer', 'ec', 0, 0 ],
    'two in another order'  => [ 'ec rsa', 'rsa ec', 0, 1 ],
    'one of two left'       => [ 'ec rsa', 'rsa', 0, 1 ],
    'another one beside it' => [ 'rsa', 'rsa fewer', 0, 0 ],
    'renewed, no names but the subject'     => [ 'plain', 'plain-renewed', 0, 1 ],
    'another subject, no names beside that' => [ 'plain', 'plain-other', 0, 0 ],
    'from the subject to names'             => [ 'plain', 'ec', 0, 0 ],
);
for my $change (sort keys %changes) {
    my ($from, $to, @resumed) = @{ $changes{$change} };
    for my $bind (qw(certificate names)) {
        my $resumed = shift @resumed;
        each_protocol("by $bind, after a reload, $change", sub {
            my $port  = free_port();
            my $keep  = $protocol eq 'TLSv1.2' ? 'nginx' : 'stateless';
            # Sessions of all kinds go by the same.
            $keep = 'zone' if $change eq 'renewed';
            my $nginx = nginx(conf => site($keep, $port, $from, bind => $bind));
            my $session = session($keep, $port);
            $nginx->reload(site($keep, $port, $to, bind => $bind));
            my $seen = visit($port, session => $session);
            is "$seen->{status} $seen->{resumed}", "200 $resumed", $resumed ? 'resumed' : 'a full handshake' or diag $seen->{error};
        });
    }
}

each_protocol('at a node whose certificate is not renewed yet, and back', sub {
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(conf => site('redis', $port[$_], (qw(ec renewed))[$_], bind => 'names')) } 0, 1;
    for my $from (0, 1) {
        my $session = session('redis', $port[$from]);
        is visit($port[ 1 - $from ], session => $session)->{resumed}, 1, 'resumed at the other node';
    }
});

each_protocol('a node bound to names and one that is not', sub {
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(conf => site('redis', $port[$_], 'ec', bind => (qw(names certificate))[$_])) } 0, 1;
    for my $from (0, 1) {
        my $session = session('redis', $port[$from]);
        my $seen = visit($port[ 1 - $from ], session => $session);
        is "$seen->{status} $seen->{resumed}", '200 0', 'a full handshake at the other node';
    }
});

each_protocol('what is asked of clients counts all the same', sub {
    my $port   = free_port();
    my $verify = sub { "ssl_verify_client on; ssl_client_certificate $certs->{ $_[0] };" };
    my @client = (cert => $certs->{client_crt}, key => $certs->{client_key});
    my $nginx  = nginx(conf => site('zone', $port, 'ec', bind => 'names', more => $verify->('ca_crt')));
    my $session = session('zone', $port, @client);
    $nginx->reload(site('zone', $port, 'renewed', bind => 'names', more => $verify->('ca_crt')));
    my $seen = visit($port, @client, session => $session);
    is "$seen->{status} $seen->{resumed}", '200 1', 'a renewed certificate of the server: resumed';
    like $seen->{says}, qr/^SUCCESS /, 'as the same client';
    $nginx->reload(site('zone', $port, 'renewed', bind => 'names', more => $verify->('ca_renewed_crt')));
    is visit($port, @client, session => $session)->{status}, 400, 'another CA of the same name: refused';
    $nginx->reload(site('zone', $port, 'renewed', bind => 'names', more => $verify->('ca_crt')));
    is visit($port, @client, session => $session)->{resumed}, 1, 'the first one again: resumed';
});

each_protocol('certificates with variables', sub {
    my $port  = free_port();
    symlink "$dir/ec.$_", "$dir/$port.$_" for qw(crt key);
    my $conf  = sub {
        site('zone', $port, 'plain', bind => 'names')
            =~ s/plain\.crt/\$ssl_server_name-$port.crt/r =~ s/plain\.key/\$ssl_server_name-$port.key/r;
    };
    symlink "$dir/ec.$_", "$dir/a.test-$port.$_" for qw(crt key);
    my $nginx   = nginx(conf => $conf->());
    my $session = session('zone', $port);
    for (qw(crt key)) {
        unlink "$dir/a.test-$port.$_";
        symlink "$dir/renewed.$_", "$dir/a.test-$port.$_";
    }
    $nginx->reload($conf->());
    is visit($port, session => $session)->{resumed}, 1, 'resumed: they are not known when the configuration is read';
});

each_protocol('a server without a certificate', sub {
    plan skip_all => 'nginx before 1.19.4 rejects no handshakes' if nginx_version() < 1_019_004;
    my $port  = free_port();
    my $conf  = sub {
        site('zone', $port, $_[0], bind => 'names')
            . "server { listen 127.0.0.1:$port ssl default_server; ssl_reject_handshake on; }\n";
    };
    my $nginx   = nginx(conf => $conf->('ec'));
    my $session = session('zone', $port);
    $nginx->reload($conf->('renewed'));
    is visit($port, session => $session)->{resumed}, 1, 'is the default one: resumed by name';
});

SKIP: {
    skip 'this nginx has no stream{}', 1 unless has_stream();
    each_protocol('in stream{}', sub {
        my ($port, $http) = (free_port(), free_port());
        my $conf = sub {
            my ($name) = @_;
            return <<"CONF";
    $keep{redis}
    ssl_session_bind names;
    ssl_protocols    TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; @{[ tls_of($name) ]} return "\$ssl_session_fetch_status"; }
CONF
        };
        my $handshake = sub {
            my $tls = tls_client(port => $_[0], protocol => $protocol, sni => 'a.test', session => $_[1]);
            $tls->handshake or diag $tls->error;
            1 while length($tls->read // '');
            return $tls;
        };
        my $nginx = nginx(conf => site('redis', $http, 'ec', bind => 'names'), stream => $conf->('ec'));
        my $first = $handshake->($port);
        my ($session) = $protocol eq 'TLSv1.3' ? $first->sessions : $first->session;
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'the session in the store';
        $nginx->reload(site('redis', $http, 'renewed', bind => 'names'), stream => $conf->('renewed'));
        is $handshake->($port, $session)->reused, 1, 'resumed with a renewed certificate';
        is visit($http, session => $session)->{resumed}, 0, 'in http{} it is of another block';
    });
}

# --- servers that differ are noticed ---

subtest 'sessions that are found and not resumed are warned of once' => sub {
    $protocol = 'TLSv1.2';
    my @port  = (free_port(), free_port());
    my @nginx = map { nginx(conf => site('redis', $port[$_], (('ec rsa', 'rsa ec'))[$_])) } 0, 1;
    my $session = session('redis', $port[0]);
    my $line  = qr/\[warn\] \d+#\d+: (\d+) of the last (\d+) SSL sessions that were found could not be resumed: they are of other certificates, of the same in another order, or of other settings/;
    for (1 .. 33) {
        my $seen = visit($port[1], session => $session);
        "$seen->{resumed} $seen->{says}" eq '0 NONE HIT' or fail("it is not resumed there: $seen->{resumed} $seen->{says}");
    }
    is $nginx[1]->log_count($line), 1, 'one line where they are found';
    is $nginx[0]->log_count($line), 0, 'and none where they are resumed';
};

done_testing;
