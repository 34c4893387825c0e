# Wherever a session was kept, its client gets by it what a full handshake would get at the server that
# it comes to: docs/guarantees.md. Each case here is the smallest in which that was once not so.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use MIME::Base64 qw(decode_base64);
use Test::More;

my $certs     = certs();
my @protocols = qw(TLSv1.2 TLSv1.3);
my $redis     = redis();
my $dir       = new_dir('pki');

# --- certificates ---

sub openssl {
    my $log = "$dir/log";
    system('openssl ' . join(' ', map { "'$_'" } @_) . " >$log 2>&1") == 0 or die "openssl @_: " . slurp($log);
}

my $made = 0;

# A certificate of that name, signed by an authority that was made here or by itself.
# (ca => 1: an authority, ends => time); its crt, key and the like are files.
sub certificate {
    my ($name, $issuer, %arg) = @_;
    my $base = "$dir/" . ++$made;
    my $date = sub { POSIX::strftime('%Y%m%d%H%M%SZ', gmtime $_[0]) };
    my $it   = { crt => "$base.crt", key => "$base.key", dir => $base };
    openssl(qw(req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj), "/CN=$name", '-keyout', $it->{key}, '-out', "$base.csr");
    mkdir $base;
    spew("$base/index", '');
    spew("$base/cnf", <<"CONF");
[ca]
default_ca = c
[c]
database = $base/index
new_certs_dir = $base
default_md = sha256
policy = p
rand_serial = yes
unique_subject = no
[p]
commonName = supplied
[ca_1]
basicConstraints = critical,CA:TRUE
subjectKeyIdentifier = hash
[ca_0]
basicConstraints = CA:FALSE
CONF
    my $by = $issuer ? [ '-config', "$issuer->{dir}/cnf", '-cert', $issuer->{crt}, '-keyfile', $issuer->{key} ]
        : [ '-selfsign', '-config', "$base/cnf", '-keyfile', $it->{key} ];
    openssl(qw(ca -batch -notext), @$by, '-extensions', 'ca_' . ($arg{ca} // 0), '-in', "$base.csr", '-out', $it->{crt},
        '-startdate', $date->(time - 1000), '-enddate', $date->($arg{ends} // time + 1e7));
    # What the client sends: its own, and those of the authorities between.
    spew("$base.chain", join '', map { slurp($_->{crt}) } $it, @{ $arg{sent} // [] });
    $it->{chain} = "$base.chain";
    return $it;
}

# What a client shows, for visit().
sub shows { my ($it) = @_; return (cert => $it->{chain}, key => $it->{key}) }

# A revocation list. (revoked => certificate, ends => time)
sub revocation_list {
    my ($ca, %arg) = @_;
    my @by = ('-config', "$ca->{dir}/cnf", '-cert', $ca->{crt}, '-keyfile', $ca->{key});
    openssl('ca', @by, '-revoke', $arg{revoked}{crt}) if $arg{revoked};
    my $file = "$dir/" . ++$made . '.crl';
    openssl('ca', @by, '-gencrl', '-crlsec', ($arg{ends} // time + 1e7) - time, '-out', $file);
    return $file;
}

my %ca   = (x => certificate('CA', undef, ca => 1), y => certificate('CA', undef, ca => 1));
my %user = (x => certificate('user of x', $ca{x}), y => certificate('user of y', $ca{y}));

# --- servers and clients ---

my $ticket_key = "$dir/ticket.key";
spew($ticket_key, join '', map { chr rand 256 } 1 .. 80);

# Where sessions are kept.
my %keep = (
    redis     => <<"CONF",
    ssl_session_backend fleet { server ${\ $redis->address }; connect_timeout 60s; fetch_timeout 60s; store_timeout 60s; }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
    ssl_session_tickets off;
CONF
    zone      => 'ssl_session_fetch shared:tls:1m; ssl_session_store shared:tls:1m; ssl_session_tickets off;',
    # What nginx and OpenSSL keep, behind a zone that has nothing.
    nginx     => 'ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_cache shared:own:1m; ssl_session_tickets off;',
    builtin   => 'ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_cache builtin; ssl_session_tickets off;',
    both      => 'ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_cache builtin shared:own:1m; ssl_session_tickets off;',
    filled    => 'ssl_session_fetch shared:tls:1m; ssl_session_store shared:tls:1m; ssl_session_cache builtin; ssl_session_tickets off;',
    stateless => "ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_tickets on; ssl_session_ticket_key $ticket_key;",
    # Stateless tickets, too, under keys of the fleet.
    fleet     => 'ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_ticket_keys shared:tickets:1m; ssl_session_tickets on;',
    off       => "ssl_session_fetch shared:tls:1m; ssl_session_store off; ssl_session_cache off; ssl_session_tickets on; ssl_session_ticket_key $ticket_key;",
);
# OpenSSL has a cache for each socket, which the module puts out of use.
my @resuming = grep { $_ ne 'builtin' } sort keys %keep;

sub site {
    my ($keep, @servers) = @_;
    return <<"CONF";
    $keep{$keep}
    ssl_session_timeout 1h;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_verify_depth    5;
    access_log          off;
@servers
CONF
}

# A server of that name. (port, at => what stands in it)
sub server {
    my ($port, $name, $more) = @_;
    return <<"CONF";
    server {
        listen 127.0.0.1:$port ssl;
        server_name $name;
        @{[ $more // '' ]}
        location / { return 200 "\$server_name \$ssl_client_verify \$ssl_client_s_dn"; }
    }
CONF
}

# The default server of a socket, like all others.
sub default_server { my ($port) = @_; return "    server { listen 127.0.0.1:$port ssl default_server; return 444; }\n" }

sub verify { my ($ca, $how) = @_; return "ssl_verify_client @{[ $how // 'on' ]}; ssl_client_certificate $ca->{crt};" }

sub by_openssl { my ($ca) = @_; return "ssl_conf_command VerifyMode Require; ssl_conf_command VerifyCAFile $ca->{crt};" }

sub start {
    my ($conf, %arg) = @_;
    my $nginx = nginx(log => 'info', conf => $conf, %arg);
    my $keys  = grep { /ssl_session_ticket_keys/ } $conf, values %arg;
    wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 10, 'ticket keys' if $keys;
    return $nginx;
}

my $protocol;

# What becomes of a client: status, what the server says, whether it resumed, sessions to offer.
sub visit {
    my ($port, $name, %arg) = @_;
    my $tls = tls_client(port => $port, protocol => $protocol, sni => $name, name => $name // 'a', %arg);
    my ($head, $body) = $tls->request;
    my $status = defined $head ? (split ' ', $head)[1] : 'closed';
    # The first one: nginx has the last one removed when it refuses the client.
    my ($session) = $protocol eq 'TLSv1.3' ? $tls->sessions : $tls->session;
    return {
        status => $status, resumed => $tls->reused, session => $session, last => scalar(($tls->sessions)[-1]),
        seen   => $status eq 200 ? "200 $body" : $status, error => $tls->error,
    };
}

# The session of a first visit, which was let in.
sub session {
    my ($keep, @visit) = @_;
    my $first = visit(@visit);
    is $first->{status}, 200, 'the first visit' or diag $first->{error};
    is $first->{resumed}, 0, 'is a full handshake';
    wait_until { $redis->cmd('EXISTS', cache_key($first->{session})) } 10, 'the session in the store' if $keep eq 'redis';
    return $first->{session};
}

sub resumes {
    my ($what, $session, @visit) = @_;
    my $seen = visit(@visit, session => $session);
    is "$seen->{status} $seen->{resumed}", '200 1', "$what: resumed" or diag $seen->{error};
    return $seen;
}

# As the same client would be served without a session.
sub full {
    my ($what, $session, $status, @visit) = @_;
    my $full = visit(@visit);
    is $full->{status}, $status, "$what: a full handshake comes to $status" or diag $full->{error};
    my $seen = visit(@visit, session => $session);
    is $seen->{seen}, $full->{seen}, 'with the session it comes to the same' or diag $seen->{error};
    is $seen->{resumed}, 0, 'by a full handshake';
    return $seen;
}

# One subtest for each of some places where sessions are kept, and for each protocol.
sub each_way {
    my ($what, $keeps, $code) = @_;
    for my $keep (@$keeps) {
        for (@protocols) {
            $protocol = $_;
            subtest "$what: $keep, $protocol" => sub { $code->($keep) };
        }
    }
}

# What nginx says of the caches that are not used.
my $unused = qr/"ssl_session_cache builtin" is not used/;

sub nothing_else {
    for my $nginx (@_) {
        $nginx->quit;
        is_deeply [ $nginx->errors(warn => 1, except => qr/$unused|is on, so that clients keep their sessions/) ], [], 'nothing else in the log';
    }
}

# --- the rules of verifying ---

each_way('sockets whose default servers are alike', [ grep { $_ ne 'filled' } @resuming ], sub {
    my ($keep) = @_;
    my @port  = (free_port(), free_port());
    my $conf  = sub { my %arg = @_; site($keep, map { default_server($port[$_]) . server($port[$_], 'a', verify($ca{ $arg{$_} })) } sort keys %arg) };
    my @nginx = start($conf->(0 => 'x', 1 => 'y'));
    my @x     = shows($user{x});
    my $session = session($keep, $port[0], 'a', @x);
    resumes('at its own socket', $session, $port[0], 'a', @x);
    full('at the other one', $session, 400, $port[1], 'a', @x);
    nothing_else(@nginx);
});

each_way('nodes of a fleet whose CAs have the same name', ['redis'], sub {
    my @port  = (free_port(), free_port());
    my @nginx = map { start(site('redis', default_server($port[$_]) . server($port[$_], 'a', verify($ca{ (qw(x y))[$_] })))) } 0, 1;
    my @x     = shows($user{x});
    my $session = session('redis', $port[0], 'a', @x);
    resumes('at its own node', $session, $port[0], 'a', @x);
    full('at the other one', $session, 400, $port[1], 'a', @x);
    nothing_else(@nginx);
});

each_way('made without a name, shown with one', [ sort keys %keep ], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $crl   = revocation_list($ca{x}, revoked => my $revoked = certificate('revoked', $ca{x}));
    my $nginx = start(site($keep, server($port, 'a', verify($ca{x})), server($port, 'b', verify($ca{x}) . " ssl_crl $crl;")));
    my @shows = shows($revoked);
    my $session = session($keep, $port, undef, @shows);
    # Nobody keeps it where OpenSSL alone would.
    $keep eq 'builtin'
        ? full('without a name', $session, 200, $port, undef, @shows)
        : resumes('without a name', $session, $port, undef, @shows);
    # What OpenSSL was given is not left with it.
    full('by name, where it is revoked', $session, 400, $port, 'b', @shows);
    nothing_else($nginx);
});

my %changes = (
    'verified from now on, not at all before' => { from => '', to => verify($ca{x}), without => 1 },
    'verified from now on, optional before'   => { from => verify($ca{x}, 'optional'), to => verify($ca{x}), without => 1 },
    'verified from now on, by nobody before'  => { from => verify($ca{x}, 'optional_no_ca'), to => verify($ca{x}), without => 1 },
    'still let in, optional before'           => { from => verify($ca{x}, 'optional'), to => verify($ca{x}) },
    'still let in, on before'                 => { from => verify($ca{x}), to => verify($ca{x}, 'optional') },
    'still let in, by another depth'          => { from => verify($ca{x}), to => verify($ca{x}) . ' ssl_verify_depth 4;' },
    # OpenSSL can be told to ask for certificates, which nginx then lets in and shows.
    'shown otherwise, asked for by OpenSSL'   => { from => by_openssl($ca{x}), to => by_openssl($ca{y}) },
    'refused, by another CA of that name'     => { from => verify($ca{x}), to => verify($ca{y}), status => 400 },
);
{
    my $sub  = certificate('between', $ca{x}, ca => 1);
    my $deep = certificate('user of between', $sub, sent => [$sub]);
    $changes{'refused, by a smaller depth'} = { from => verify($ca{x}), to => verify($ca{x}) . ' ssl_verify_depth 0;', status => 400, user => $deep };
    my $gone = certificate('revoked', $ca{x});
    my $crl  = revocation_list($ca{x}, revoked => $gone);
    $changes{'refused, by a revocation list'}       = { from => verify($ca{x}), to => verify($ca{x}) . " ssl_crl $crl;", status => 400, user => $gone };
    $changes{'still let in, by a revocation list'}  = { from => verify($ca{x}), to => verify($ca{x}) . " ssl_crl $crl;" };
}

# The default server stays as it is, so that the session ID context does before 1.29.2.
for my $change (sort keys %changes) {
    my %it = (status => 200, user => $user{x}, %{ $changes{$change} });
    my @shows = shows($it{user});
    each_way("after a reload, $change", [qw(zone stateless fleet)], sub {
        my ($keep) = @_;
        my $port  = free_port();
        my $conf  = sub { site($keep, default_server($port) . server($port, 'a', $_[0])) };
        my $nginx = start($conf->($it{from}));
        my $session = session($keep, $port, 'a', $it{without} ? () : @shows);
        resumes('before', $session, $port, 'a', @shows);
        $nginx->reload($conf->($it{to}));
        full('after', $session, $it{status}, $port, 'a', @shows);
        nothing_else($nginx);
    });
    each_way("at another node, $change", ['redis'], sub {
        my @port  = (free_port(), free_port());
        my @nginx = map { start(site('redis', default_server($port[$_]) . server($port[$_], 'a', $it{ (qw(from to))[$_] }))) } 0, 1;
        my $session = session('redis', $port[0], 'a', $it{without} ? () : @shows);
        resumes('at its own node', $session, $port[0], 'a', @shows);
        full('at the other one', $session, $it{status}, $port[1], 'a', @shows);
        nothing_else(@nginx);
    });
}

each_way('refused without a certificate, back with one', [qw(zone nginx stateless fleet)], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $nginx = start(site($keep, server($port, 'a', verify($ca{x}))));
    my $first = visit($port, 'a');
    is $first->{status}, 400, 'the first visit is refused';
    full('the second', $first->{session}, 200, $port, 'a', shows($user{x}));
    my $other = visit($port, 'a', shows($user{y}));
    is $other->{status}, 400, 'so is one with a certificate of another CA';
    full('after that', $other->{session}, 200, $port, 'a', shows($user{x}));
    nothing_else($nginx);
});

each_way('where clients are verified a session is for its name', [qw(zone nginx stateless fleet)], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $nginx = start(site($keep, server($port, 'a b', verify($ca{x}, 'optional'))));
    my $session = session($keep, $port, 'a');
    resumes('at its own', $session, $port, 'a');
    # nginx would end the handshake, or answer 421.
    full('at another one of the same server', $session, 200, $port, 'b');
    nothing_else($nginx);
});

# --- the server's own certificate ---

each_way('a certificate by the name', [qw(zone stateless fleet)], sub {
    my ($keep) = @_;
    my $port  = free_port();
    symlink $certs->{"ec_$_"}, "$dir/x.$_" for qw(crt key);
    symlink $certs->{"ec2_$_"}, "$dir/y.$_" for qw(crt key);
    my $more  = "ssl_certificate $dir/\$ssl_server_name.crt; ssl_certificate_key $dir/\$ssl_server_name.key;";
    my $nginx = start(site($keep, server($port, 'x y', $more)));
    my $session = session($keep, $port, 'x');
    resumes('of the same name', $session, $port, 'x');
    full('of another one', $session, 200, $port, 'y');
    nothing_else($nginx);
});

# --- names that regular expressions decide about ---

each_way('regular expressions', ['zone'], sub {
    my @port = (free_port(), free_port());
    # nginx knows the server by itself when OpenSSL asks for the session.
    my $told = nginx_version() >= 1_029_002;
    my $nginx = start(site('zone',
        default_server($port[0]), server($port[0], 'plain'), server($port[0], '~^on', verify($ca{x})), server($port[0], '~^off'),
        default_server($port[1]), server($port[1], '~^off')));
    my @x = shows($user{x});
    for ([ 'where clients are verified', $port[0], 'on1', @x ], [ 'where others verify clients at the socket', $port[0], 'off1' ]) {
        my ($what, @visit) = @$_;
        my $session = session('zone', @visit);
        $told ? resumes($what, $session, @visit) : full($what, $session, 200, @visit);
    }
    my $session = session('zone', $port[0], 'plain');
    resumes('of a name without one', $session, $port[0], 'plain');
    full('where it decides', $session, 200, $port[0], 'on1', @x);
    $session = session('zone', $port[1], 'off1');
    resumes('where nobody is verified at the socket', $session, $port[1], 'off1');
    nothing_else($nginx);
});

# --- how long ---

# Each case is looked at before and after an end that all of them wait for together: $code begins it
# and returns what is to be seen afterwards. A machine so busy that a life is over before it was seen
# shows nothing.
sub each_way_ends {
    my ($what, $keeps, $code) = @_;
    my @after;
    each_way($what, $keeps, sub {
        my ($keep) = @_;
        my $at = $protocol;
        my ($end, $then) = $code->($keep);
        push @after, [ "$what: $keep, $at, afterwards", sub { $protocol = $at; wait_until { time > $end } 30, 'the end'; $then->() } ];
    });
    subtest $_->[0] => $_->[1] for @after;
}

sub life { return 3 * patience() }

# In redis, which is made to keep it: how long it would have. Undef where that is over.
sub kept {
    my ($session, $end) = @_;
    wait_until { $redis->cmd('EXISTS', cache_key($session)) || time > $end } 30, 'the session in the store';
    my $ttl = $redis->cmd('TTL', cache_key($session));
    return $redis->cmd('PERSIST', cache_key($session)) ? $ttl : undef;
}

each_way_ends('renewals end with the lifetime', [ grep { !/^(?:both|filled)$/ } @resuming ], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $life  = life();
    my $nginx = start(site($keep, "ssl_session_lifetime ${life}s;", server($port, 'a')));
    my $start = time;
    my $first = visit($port, 'a');
    my $end   = time + $life;
    my $ttl   = $keep eq 'redis' ? kept($first->{session}, $end) : 0;
    cmp_ok $ttl, '<=', $life, 'the store forgets it in time' if $ttl;
    # A renewal is made a second later than the session, or it would be good as long anyway.
    wait_until { time > $start + 1 } 10, 'another second';
    my $again = visit($port, 'a', session => $first->{session});
    is $again->{resumed}, 1, 'resumed before its end' if defined $ttl && time < $start + $life;
    my $last  = $protocol eq 'TLSv1.3' ? $again->{last} : $first->{session};
    $ttl = kept($last, $end) if $keep eq 'redis' && $protocol eq 'TLSv1.3';
    cmp_ok $ttl, '<', $life, 'its renewal, too' if $ttl && $protocol eq 'TLSv1.3';
    return ($end, sub {
        # On a busy machine it was no renewal.
        full('after its end', $again->{resumed} ? $last : $first->{session}, 200, $port, 'a');
        nothing_else($nginx);
    });
});

each_way_ends('a chain ends with its first certificate', [qw(redis nginx stateless fleet)], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $nginx = start(site($keep, server($port, 'a', verify($ca{x}))));
    my $end   = time + life();
    my $sub   = certificate('between', $ca{x}, ca => 1, ends => $end);
    my $user  = certificate('user of between', $sub, sent => [$sub]);
    my $first = visit($port, 'a', shows($user));
    my $ttl   = $keep eq 'redis' && $first->{status} eq 200 ? kept($first->{session}, $end) : 0;
    cmp_ok $ttl, '<=', life(), 'the store forgets it in time' if $ttl;
    my $again = visit($port, 'a', shows($user), session => $first->{session});
    is $again->{resumed}, 1, 'resumed before its end' if defined $ttl && time < $end - 1;
    ok 1, 'it was made';
    return ($end, sub {
        full('after its end', $first->{session}, 400, $port, 'a', shows($user));
        nothing_else($nginx);
    });
});

each_way_ends('a revocation list ends', [qw(zone stateless fleet)], sub {
    my ($keep) = @_;
    my $port  = free_port();
    my $end   = time + life() + 1;
    my $crl   = revocation_list($ca{x}, ends => $end);
    my $nginx = start(site($keep, server($port, 'a', verify($ca{x}) . " ssl_crl $crl;")));
    my @x     = shows($user{x});
    my $first = visit($port, 'a', @x);
    my $again = visit($port, 'a', @x, session => $first->{session});
    is $again->{resumed}, 1, 'resumed before its end' if time < $end - 1;
    ok 1, 'it was made';
    return ($end + 1, sub {
        full('after its end', $first->{session}, 400, $port, 'a', @x);
        nothing_else($nginx);
    });
});

# --- ssl_ocsp ---

{
    my $sub  = certificate('between', $ca{x}, ca => 1);
    my $deep = certificate('user of between', $sub, sent => [$sub]);
    my ($port, $responder) = (free_port());
    # It answers what nginx asks, a GET with the request in its path.
    my $answer = sub {
        my ($client) = @_;
        my ($path) = (<$client> // '') =~ m{^GET /(\S+)} or return;
        1 while (<$client> // '') =~ /\S/;
        spew("$dir/ocsp.req", decode_base64($path =~ s/%(..)/chr hex $1/egr));
        openssl(qw(ocsp -ndays 1 -index), "$sub->{dir}/index", '-CA', $sub->{crt}, '-rsigner', $sub->{crt}, '-rkey', $sub->{key},
            '-reqin', "$dir/ocsp.req", '-respout', "$dir/ocsp.resp");
        my $body = slurp("$dir/ocsp.resp");
        print $client join "\r\n", 'HTTP/1.0 200 OK', 'Content-Type: application/ocsp-response', 'Content-Length: ' . length $body, '', $body;
    };
    sub responder {
        return if $responder;
        my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "listen: $@";
        $responder = SSLSession::Process->spawn(name => 'ocsp', keep => [$listen], out => "$dir/ocsp.log", code => sub {
            while (my $client = $listen->accept) { $answer->($client); close $client }
        });
    }
    each_way('ssl_ocsp verifies again what the client sent', [qw(redis nginx stateless fleet)], sub {
        my ($keep) = @_;
        responder();
        my $https = free_port();
        my $ocsp  = "ssl_ocsp leaf; ssl_ocsp_responder http://127.0.0.1:$port/;";
        my $nginx = start(site($keep, server($https, 'a', verify($ca{x}) . " $ocsp")));
        my $first = visit($https, 'a', shows($deep));
        is $first->{status}, 200, 'a first visit' or diag slurp("$dir/ocsp.log");
        full('the next', $first->{session}, 200, $https, 'a', shows($deep));
        is scalar($redis->cmd('EXISTS', cache_key($first->{session}))), 0, 'it is not in the store' if $keep eq 'redis';
        nothing_else($nginx);
    });
    each_way('ssl_ocsp finds the issuer without the client', ['redis'], sub {
        responder();
        my $https = free_port();
        my $both  = "$dir/both.crt";
        spew($both, join '', map { slurp($_->{crt}) } $ca{x}, $sub);
        my $ocsp  = "ssl_client_certificate $both; ssl_ocsp leaf; ssl_ocsp_responder http://127.0.0.1:$port/;";
        my $nginx = start(site('redis', server($https, 'a', "ssl_verify_client on; $ocsp")));
        my @alone = (cert => $deep->{crt}, key => $deep->{key});
        my $session = session('redis', $https, 'a', @alone);
        resumes('the next', $session, $https, 'a', @alone);
        nothing_else($nginx);
    });
}

# --- entries of a version that said nothing ---

# A session without what it says of its full handshake: field 18 of OpenSSL's.
sub silent {
    my ($der) = @_;
    my ($tag, $body) = SSLSession::Client::_der($der);
    my $out = '';
    while (length $body) {
        my ($field, undef, $size) = SSLSession::Client::_der($body);
        my $part = substr $body, 0, $size, '';
        $out .= $part if $field != 0xb2;
    }
    my $size = length $out;
    return pack('C', $tag) . ($size < 128 ? pack('C', $size) : $size < 256 ? pack('CC', 0x81, $size) : pack('Cn', 0x82, $size)) . $out;
}

each_way('entries that say nothing', ['redis'], sub {
    my $port  = free_port();
    my $nginx = start(site('redis', "ssl_session_lifetime ${\ (20 * patience()) }s;",
        server($port, 'off'), server($port, 'on', verify($ca{x})), server($port, 'optional', verify($ca{x}, 'optional'))));
    my @x = shows($user{x});
    my $silence = sub {
        my ($session) = @_;
        my ($id, $key) = (session_id($session), cache_key($session));
        my $der = unseal($id, $redis->cmd('GET', $key)) // die 'the entry does not open';
        my $silent = silent($der);
        cmp_ok length $silent, '<', length $der, 'it says something';
        $redis->cmd('SET', $key, seal($id, $silent));
    };
    my $session = session('redis', $port, 'off');
    $silence->($session);
    my $again = resumes('where nobody is verified', $session, $port, 'off');
    if ($protocol eq 'TLSv1.3') {
        wait_until { $redis->cmd('EXISTS', cache_key($again->{last})) } 10, 'its renewal';
        my $der = unseal(session_id($again->{last}), $redis->cmd('GET', cache_key($again->{last})));
        cmp_ok length silent($der), '<', length $der, 'which says something';
    }
    for my $name (qw(on optional)) {
        $session = session('redis', $port, $name, @x);
        $silence->($session);
        full("$name, with a certificate", $session, 200, $port, $name, @x);
    }
    $session = session('redis', $port, 'optional');
    $silence->($session);
    full('optional, without one', $session, 200, $port, 'optional', @x);
    nothing_else($nginx);
});

# --- stream{} ---

SKIP: {
    skip 'this nginx has no stream{}', 1 unless has_stream();
    each_way('stream{}', [qw(redis stateless fleet)], sub {
        my ($keep) = @_;
        my @port = (free_port(), free_port());
        my $stream = site($keep, map { my $which = (qw(x y))[$_]; <<"CONF" } 0, 1) =~ s/access_log.*//r;
    server { listen 127.0.0.1:$port[$_] ssl; ${\ verify($ca{$which}) } return "\$ssl_client_verify"; }
CONF
        my $nginx = start('', stream => $stream);
        my $call = sub {
            my ($n, %arg) = @_;
            my $tls = tls_client(port => $port[$n], protocol => $protocol, sni => 'a', name => 'a', shows($user{x}), %arg);
            my $said = $tls->handshake ? $tls->read // '' : '';
            my ($session) = $protocol eq 'TLSv1.3' ? $tls->sessions : $tls->session;
            return ("$said " . $tls->reused, $session);
        };
        my ($said, $session) = $call->(0);
        is $said, 'SUCCESS 0', 'a first visit';
        wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'the session in the store' if $keep eq 'redis';
        is(($call->(0, session => $session))[0], 'SUCCESS 1', 'resumed where it was made');
        is(($call->(1))[0], ' 0', 'refused at a server with another CA of that name');
        is(($call->(1, session => $session))[0], ' 0', 'with the session as well');
        nothing_else($nginx);
    });
}

done_testing;
