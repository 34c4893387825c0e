# Virtual servers of one socket that differ in tickets or protocols: since nginx 1.29.2 the one that the
# client names decides which session OpenSSL asks for, and before it the default server. Whatever nginx
# resumes from its own cache is resumed from a store, and the outcome tells of what OpenSSL has asked for.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $debug = `'@{[ nginx_binary() ]}' -V 2>&1` =~ /--with-debug/;

my %protocols = (tls12 => 'TLSv1.2', tls13 => 'TLSv1.3', both => 'TLSv1.2 TLSv1.3');
my @servers   = map { my $protocols = $_; map { "$protocols-$_" } qw(off on) } sort keys %protocols;
my @defaults  = ('reject', @servers);

# Each has a port for each kind of default server.
my $single_use = 'ssl_session_fetch store single_use; ssl_session_store store;';
my %says = (
    nginx => 'ssl_session_cache shared:vhosts:10m;',
    redis => 'ssl_session_fetch store; ssl_session_store store;',
    zone  => 'ssl_session_fetch shared:tls:10m; ssl_session_store shared:tls:10m;',
    taken => $single_use,
    keyless => "ssl_session_key off; ssl_session_fetch store; ssl_session_store store;",
);
my @same = map { "same $_" } qw(both-on tls12-off);
my %port = map { my $who = $_; $who => { map { $_ => free_port() } @defaults, $who eq 'taken' ? @same : () } } keys %says;

sub server {
    my ($port, $name, $server) = @_;
    return <<"CONF" if $server eq 'reject';
    server { listen 127.0.0.1:$port ssl; server_name $name; ssl_reject_handshake on; }
CONF
    my ($protocols, $tickets) = split /-/, $server;
    return <<"CONF";
    server {
        listen 127.0.0.1:$port ssl;
        server_name $name;
        ssl_protocols       $protocols{$protocols};
        ssl_session_tickets $tickets;
        ssl_certificate     $certs->{ec_crt};
        ssl_certificate_key $certs->{ec_key};
        location / { return 200 "\$ssl_session_reused|\$ssl_session_fetch_status"; }
    }
CONF
}

sub conf {
    my ($who) = @_;
    my $store = $who eq 'nginx' ? '' : <<"CONF";
    ssl_session_backend store {
        server          127.0.0.1:@{[ $redis->port ]};
        key_prefix      $who:;
        connect_timeout 60s;
        fetch_timeout   60s;
        store_timeout   60s;
    }
CONF
    my $conf = "$store    $says{$who}\n";
    for my $default (@defaults) {
        my $port = $port{$who}{$default};
        $conf .= server($port, 'default.test', $default) . join '', map { server($port, "$_.test", $_) } @servers;
    }
    for my $same ($who eq 'taken' ? @same : ()) {
        my ($server) = $same =~ /(\S+)$/;
        $conf .= server($port{$who}{$same}, $_, $server) for 'default.test', "$server.test";
    }
    # nginx by itself does not know the module's variable.
    $conf =~ s/\|\$ssl_session_fetch_status/|/g if $who eq 'nginx';
    return $conf;
}

my %nginx = map { $_ => nginx(module => $_ ne 'nginx', conf => conf($_)) } keys %says;

# Whether OpenSSL has asked for a session in a visit to nginx by itself.
sub asked { my ($from) = @_; return $nginx{nginx}->log_count(qr/ssl get session: /, from => $from) }

# What a visit came to, and the session that it gives.
sub visit {
    my ($who, $default, $name, %client) = @_;
    my $from   = $nginx{nginx}->log_pos;
    my $client = tls_client(port => $port{$who}{$default}, sni => "$name.test", %client);
    my $answer = $client->request;
    return { failed => 1 } if !defined $answer;
    my ($reused, $status) = split /\|/, $answer, -1;
    return { reused => $reused, status => $status, session => ($client->sessions)[-1] // undef, made_up => made_up_status($client),
        ($who eq 'nginx' ? (asked => asked($from)) : ()) };
}

sub stored {
    my ($who, $session) = @_;
    return if !defined $session || $who =~ /^(?:nginx|zone)$/ || length session_id($session) != 32;
    my $key = ($who eq 'keyless' ? plain_key($session) : cache_key($session)) =~ s/^tls:/$who:/r;
    wait_until { $redis->cmd('EXISTS', $key) } 10, "the session in the store of $who";
}

# What a server is told who has been visited at $first, then at $second.
sub twice {
    my ($who, $default, $protocol, $first, $second, %client) = @_;
    my $made = visit($who, $default, $first, protocol => $protocol,
        ($client{no_ticket} ? (no_ticket => 1) : ()));
    return { failed => 1 } if !defined $made->{session};
    stored($who, $made->{session});
    return visit($who, $default, $second, session => $made->{session}, %client);
}

my @clients = (
    [ 'TLSv1.2', 'a client of TLS 1.2',                      protocol => 'TLSv1.2' ],
    [ 'TLSv1.2', 'a client of TLS 1.2 without tickets',      protocol => 'TLSv1.2', no_ticket => 1 ],
    [ 'TLSv1.2', 'a client of both, a session of TLS 1.2',   min => 'TLSv1.2', max => 'TLSv1.3' ],
    [ 'TLSv1.3', 'a client of TLS 1.3',                      protocol => 'TLSv1.3' ],
    [ 'TLSv1.3', 'a client of both, a session of TLS 1.3',   min => 'TLSv1.2', max => 'TLSv1.3' ],
);
# From where to where: the same server, and the pairs in which the other one asks for something else.
my @ways = ((map { [ $_, $_ ] } 'default', @servers), [qw(both-off both-on)], [qw(both-on both-off)],
    [qw(both-off tls12-off)], [qw(both-off tls13-off)]);

for my $default (@defaults) {
    subtest "default server: $default" => sub {
        my ($visits, $resumed) = (0, 0);
        for my $client (@clients) {
            my ($protocol, $what, %client) = @$client;
            for my $way (@ways) {
                my $by_itself = twice('nginx', $default, $protocol, @$way, %client);
                for my $who (sort grep { $_ ne 'nginx' } keys %nginx) {
                    my $seen = twice($who, $default, $protocol, @$way, %client);
                    my $where = "$who, $what, from $way->[0] to $way->[1]";
                    if ($by_itself->{failed} || $seen->{failed}) {
                        is !!$seen->{failed}, !!$by_itself->{failed}, "$where: refused" if !$seen->{failed} || !$by_itself->{failed};
                        next;
                    }
                    $visits++;
                    $resumed += $seen->{reused} eq 'r';
                    my ($reused, $status) = @$seen{qw(reused status)};
                    # nginx by itself resumes those, against RFC 6066, section 3.
                    if ($protocol eq 'TLSv1.2' && $way->[0] ne $way->[1]) {
                        isnt $reused, 'r', "$where: not resumed by another name" if $reused eq 'r';
                        next if !$debug || $who eq 'keyless';
                        my $asked = $status =~ /^(?:MISS|FORGED|FOREIGN)$/;
                        is $status, $by_itself->{asked} ? 'MISS' : '', "$where: the outcome" if !$asked != !$by_itself->{asked};
                        next;
                    }
                    # Without keys nothing tells before OpenSSL asks what an ID is for.
                    next if $who eq 'keyless' && keyless($by_itself, $seen, $where);
                    is $reused, $by_itself->{reused}, "$where: resumed as by nginx itself" if $reused ne $by_itself->{reused};
                    next if !$debug;
                    my $expected = !$by_itself->{asked} ? '' : $reused eq 'r' ? 'HIT' : 'FOREIGN';
                    # One in 256 that a client makes up has the key id of the key.
                    $expected = 'FORGED' if $expected eq 'FOREIGN' && $status eq 'FORGED' && $seen->{made_up} eq 'FORGED';
                    is $status, $expected, "$where: the outcome" if $status ne $expected;
                }
            }
        }
        cmp_ok $visits,  '>=', 40, "$visits second visits";
        cmp_ok $resumed, '>=', 20, "of which $resumed were resumed, as by nginx itself";
    };
}

subtest 'single_use: a ticket is left alone where no server of the socket would ask for it' => sub {
    for my $same (qw(both-on tls12-off)) {
        my $session = visit('taken', 'both-off', 'both-off', protocol => 'TLSv1.3')->{session};
        stored('taken', $session);
        my $seen = visit('taken', "same $same", $same, min => 'TLSv1.2', max => 'TLSv1.3', session => $session);
        isnt $seen->{reused}, 'r', "$same: not resumed";
        isnt $seen->{status}, 'HIT', 'nor looked up';
        is visit('taken', 'both-off', 'both-off', protocol => 'TLSv1.3', session => $session)->{status}, 'HIT',
            'and where it was made it is good';
        is visit('taken', 'both-off', 'both-off', protocol => 'TLSv1.3', session => $session)->{status}, 'MISS', 'once';
    }
};

subtest 'stream{}' => sub {
    plan skip_all => 'this nginx has no virtual servers in stream{}' if !has_stream_servers() || nginx_version() < 1_029_002;
    my $port = free_port();
    my $nginx = nginx(conf => '', stream => <<"CONF");
    ssl_session_backend store { server 127.0.0.1:@{[ $redis->port ]}; key_prefix stream:; fetch_timeout 60s; store_timeout 60s; }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port ssl default_server; ssl_reject_handshake on; return ''; }
    server {
        listen 127.0.0.1:$port ssl;
        server_name named.test;
        ssl_session_tickets off;
        return "\$ssl_session_reused|\$ssl_session_fetch_status";
    }
CONF
    my $visit = sub {
        my $client = tls_client(port => $port, sni => 'named.test', protocol => 'TLSv1.3', handshake => 1, @_);
        my $text = '';
        while (length(my $more = $client->read // '')) { $text .= $more }
        return ($text, ($client->sessions)[-1]);
    };
    my ($said, $session) = $visit->();
    is $said, '.|', 'a full handshake';
    stored('stream', $session);
    is +($visit->(session => $session))[0], 'r|HIT', 'then a resumption';
    $nginx->quit;
    is_deeply [ $nginx->errors ], [], 'no error in the log';
};

sub keyless {
    my ($by_itself, $seen, $where) = @_;
    my $what = "$seen->{reused} $seen->{status}";
    my @right = !$by_itself->{asked} ? "$by_itself->{reused} " : $by_itself->{reused} eq 'r' ? ('r HIT', '. SKIPPED') : ('. MISS', '. SKIPPED');
    ok 0, "$where: '$what', not '" . join("' or '", @right) . "'" if $debug && !grep { $_ eq $what } @right;
    return 1;
}

$_->quit for values %nginx;
is_deeply [ $_->errors ], [], 'no error in the log' for values %nginx;

done_testing;
