# No session makes a handshake fail that succeeds without it: A and B share a store and differ, or the
# client has changed since it got its session.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(early_client);
use Test::More;

use constant NO_EMS => 1;    # SSL_OP_NO_EXTENDED_MASTER_SECRET

my $certs     = certs();
my $redis     = redis();
my @protocols = qw(TLSv1.2 TLSv1.3);
my $wait      = 3 * patience() . 's';
my $no_ems    = 'ssl_conf_command Options -ExtendedMasterSecret;';
my (@nodes, $legacy);

# A server of the fleet: lines of its http{}, and of nginx().
sub node {
    my ($lines, %arg) = @_;
    my $port = free_port();
    my $conf = sub {
        my ($lines) = @_;
        my $where = $arg{where} // <<"CONF";
    ssl_session_backend fleet { server ${\ $redis->address }; connect_timeout $wait; fetch_timeout $wait; store_timeout $wait; }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
CONF
        return <<"CONF";
    $where
    ssl_session_tickets off;
    ssl_protocols       TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_ciphers         DEFAULT:\@SECLEVEL=0;
    server {
        listen 127.0.0.1:$port ssl;
        server_name www.example.test;
        ssl_certificate     $certs->{rsa_crt};
        ssl_certificate_key $certs->{rsa_key};
        $lines
        location / { return 200 "\$ssl_session_reused \$ssl_session_fetch_status"; }
    }
CONF
    };
    my $nginx = nginx(conf => $conf->($lines), %{ $arg{nginx} // {} });
    push @nodes, $nginx;
    return { nginx => $nginx, port => $port, conf => $conf };
}

# What a visit comes to, and the client's next session.
sub visit {
    my ($node, %client) = @_;
    my $client = tls_client(port => $node->{port}, sni => 'www.example.test', %client);
    my $said   = $client->request // 'failed: ' . ($client->alert // $client->error);
    return ($said, $said =~ /^failed/ ? undef : ($client->sessions)[-1] // $client->session, $client);
}

# A session of that node, once it is in the store.
sub stored {
    my ($node, %client) = @_;
    my ($said, $session) = visit($node, %client);
    defined $session or die $said;
    my $key = cache_key($session);
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'the session in the store';
    return $session;
}

my $A = node('');

subtest 'extended master secret: a server without it makes a full handshake' => sub {
    my $B = node($no_ems);
    for my $protocol ('TLSv1', 'TLSv1.1', 'TLSv1.2') {
        my $session = stored($A, protocol => $protocol);
        is +(visit($A, protocol => $protocol, session => $session))[0], 'r HIT', "$protocol: resumed where it was made";
        my ($said, $next) = visit($B, protocol => $protocol, session => $session);
        is $said, '. MISS', "$protocol: a full handshake where there is no extended master secret";
        is +(visit($B, protocol => $protocol, session => $session))[0], '. MISS', "$protocol: as often as it is offered";
        is +(visit($A, protocol => $protocol, session => $session))[0], 'r HIT', "$protocol: it stays in the store";
        is +(visit($B, protocol => $protocol, session => stored($B, protocol => $protocol)))[0], 'r HIT', "$protocol: its own are resumed";
        is +(visit($A, protocol => $protocol, session => $next))[0], '. HIT', "$protocol: and are of no use elsewhere";
    }
    my $session = stored($A, protocol => 'TLSv1.3');
    is +(visit($B, protocol => 'TLSv1.3', session => $session))[0], 'r HIT', 'TLSv1.3 knows no such thing';
};

subtest 'extended master secret: a client that leaves it out is refused' => sub {
    my $B = node($no_ems);
    my $session = stored($A, protocol => 'TLSv1.2');
    like +(visit($A, protocol => 'TLSv1.2', session => $session, options => NO_EMS))[0], qr/^failed: /, 'RFC 7627 section 5.3';
    is +(visit($A, protocol => 'TLSv1.2', options => NO_EMS))[0], '. ', 'without a session it is not';
    is +(visit($B, protocol => 'TLSv1.2', session => $session, options => NO_EMS))[0], '. MISS',
        'a server that does without, too, makes a full handshake';
};

subtest "extended master secret: sessions of nginx's own cache" => sub {
    # A callback of nginx's comes after ours, and has what was stored before a reload.
    my $node = node('', where => 'ssl_session_cache shared:own:1m; ssl_session_fetch shared:near:1m; ssl_session_store off;');
    my ($said, $session) = visit($node, protocol => 'TLSv1.2');
    is +(visit($node, protocol => 'TLSv1.2', session => $session))[0], 'r MISS', 'resumed from it';
    $node->{nginx}->reload($node->{conf}->($no_ems));
    is +(visit($node, protocol => 'TLSv1.2', session => $session))[0], '. MISS', 'a full handshake after the reload';
};

subtest 'a zone of the machine' => sub {
    my $node = node('', where => 'ssl_session_fetch shared:near:1m; ssl_session_store shared:near:1m;');
    my ($said, $session) = visit($node, protocol => 'TLSv1.2');
    is +(visit($node, protocol => 'TLSv1.2', session => $session))[0], 'r HIT', 'resumed from it';
    $node->{nginx}->reload($node->{conf}->($no_ems));
    is +(visit($node, protocol => 'TLSv1.2', session => $session))[0], '. MISS', 'a full handshake after the reload';
};

subtest 'ciphers: a client that has lost that of its session' => sub {
    my @cipher = ('ECDHE-RSA-AES256-SHA384', 'ECDHE-RSA-AES128-SHA256');
    my $session = stored($A, protocol => 'TLSv1.2', ciphers => $cipher[0]);
    is +(visit($A, protocol => 'TLSv1.2', session => $session, ciphers => $cipher[1]))[0], '. MISS', 'a full handshake';
    is +(visit($A, protocol => 'TLSv1.2', session => $session, ciphers => "$cipher[1]:$cipher[0]"))[0], 'r HIT', 'with both it is resumed';
    $session = stored($A, protocol => 'TLSv1.3');
    is +(visit($A, protocol => 'TLSv1.3', session => $session, ciphers => $cipher[1]))[0], 'r HIT', 'TLSv1.3 goes by the hash';
};

subtest 'ciphers: a server that does not offer that of the session' => sub {
    my $B = node('ssl_ciphers ECDHE-RSA-AES128-GCM-SHA256;');
    my $session = stored($A, protocol => 'TLSv1.2', ciphers => 'ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256');
    is +(visit($B, protocol => 'TLSv1.2', session => $session))[0], 'r HIT', 'it resumes';
};

subtest 'ciphers: a server whose OpenSSL has none of the algorithm' => sub {
    my $conf = spew(tmpdir() . '/legacy.cnf', <<'CNF');
openssl_conf = init
[init]
providers = providers
[providers]
default = on
legacy  = on
[on]
activate = 1
CNF
    my $ciphers = 'SEED-SHA:AES128-SHA:@SECLEVEL=0';
    plan skip_all => 'no legacy provider' if `openssl ciphers -s -provider legacy -provider default '$ciphers' 2>&1` !~ /SEED/;
    $legacy = 1;
    my ($old, $B) = (node("ssl_ciphers $ciphers;", nginx => { env => { OPENSSL_CONF => $conf } }), node("ssl_ciphers $ciphers;"));
    my $file = tmpdir() . '/seed.pem';
    local $ENV{OPENSSL_CONF} = $conf;
    my @client = (protocol => 'TLSv1.2', args => [ '-cipher', $ciphers ]);
    my $client = s_client(port => $old->{port}, @client, sess_out => $file);
    like $client->output, qr/^New, .* SEED-SHA$/m, 'a session with SEED' or diag $client->output;
    my $resumed;
    wait_until { $resumed = s_client(port => $old->{port}, @client, sess_in => $file)->response; $resumed =~ /HIT/ } 10, 'store';
    is $resumed, 'r HIT', 'resumed where there is SEED';
    is s_client(port => $B->{port}, @client, sess_in => $file)->response, '. MISS', 'a full handshake where there is none';
};

for my $protocol (@protocols) {
    subtest "$protocol: a client that asks for fragments of another length" => sub {
        my $dir = new_dir('fragments');
        my @length = ([], [ '-maxfraglen', 512 ], [ '-maxfraglen', 1024 ]);
        for my $had (@length) {
            my $file = "$dir/session@$had.pem";
            for my $wants (@length) {
                my @visit = (port => $A->{port}, protocol => $protocol);
                is s_client(@visit, sess_out => $file, args => $had)->response, '. ', 'new';
                # When a later one is in the store, this one is: they go through one connection.
                stored($A, protocol => $protocol);
                is s_client(@visit, sess_in => $file, args => $wants)->response,
                    "@$had" eq "@$wants" ? 'r HIT' : '. MISS', "had (@$had), wants (@$wants)";
            }
        }
    };
}

subtest 'compression is not resumed' => sub {
    # Without a key, so that the entry can be changed.
    my $B = node('', where => <<"CONF");
    ssl_session_key     off;
    ssl_session_backend fleet { server ${\ $redis->address }; key_prefix plain:; connect_timeout $wait; fetch_timeout $wait; }
    ssl_session_fetch   fleet;
    ssl_session_store   fleet;
CONF
    my (undef, $session) = visit($B, protocol => 'TLSv1.2');
    my $key = plain_key($session) =~ s/^tls:/plain:/r;
    wait_until { $redis->cmd('EXISTS', $key) } 10, 'store';
    is +(visit($B, protocol => 'TLSv1.2', session => $session))[0], 'r HIT', 'resumed';
    $redis->cmd('SET', $key, compressed($redis->cmd('GET', $key)));
    is +(visit($B, protocol => 'TLSv1.2', session => $session))[0], '. MISS', 'a full handshake';
};

# What goes well without any help.

subtest 'other versions' => sub {
    my $B = node('ssl_protocols TLSv1.1 TLSv1.2;');
    my ($said, undef, $client) = visit($B, session => stored($A, protocol => 'TLSv1.3'), min => 'TLSv1.2', max => 'TLSv1.3');
    is $said, '. ' . made_up_status($client), 'TLSv1.3 at TLSv1.2';
    is +(visit($A, session => stored($A, protocol => 'TLSv1.2'), min => 'TLSv1', max => 'TLSv1.3'))[0], '. ', 'TLSv1.2 at TLSv1.3';
    like +(visit($B, session => stored($A, protocol => 'TLSv1.1'), min => 'TLSv1', max => 'TLSv1.2'))[0], qr/^\. /, 'TLSv1.1 at TLSv1.2';
};

subtest 'no encrypt-then-MAC' => sub {
    my $B = node('ssl_conf_command Options -EncryptThenMac;');
    my %client = (protocol => 'TLSv1.2', ciphers => 'ECDHE-RSA-AES256-SHA384');
    is +(visit($B, %client, session => stored($A, %client)))[0], 'r HIT', 'resumed';
    is +(visit($A, %client, session => stored($B, %client)))[0], 'r HIT', 'the other way round, too';
};

subtest 'another application protocol' => sub {
    for my $protocol (@protocols) {
        my $session = stored($A, protocol => $protocol, alpn => ['http/1.1']);
        is +(visit($A, protocol => $protocol, session => $session, alpn => [ 'other', 'http/1.0' ]))[0], 'r HIT', "$protocol: resumed"
            if nginx_version() >= 1_021_004;
        is +(visit($A, protocol => $protocol, session => stored($A, protocol => $protocol)))[0], 'r HIT', "$protocol: none";
    }
};

subtest 'early data at a server that takes none' => sub {
    my ($early, $file) = (node('ssl_early_data on;'), tmpdir() . '/early.pem');
    s_client(port => $early->{port}, protocol => 'TLSv1.3', sess_out => $file);
    my $client = early_client(port => $A->{port}, sess_in => $file, request => "GET / HTTP/1.0\r\n\r\n");
    is $client->early_data, 'rejected', 'rejected';
    is $client->response, 'r HIT', 'and resumed';
};

subtest 'the debug log tells' => sub {
    my $log = join '', map { $_->log } @nodes;
    plan skip_all => 'nginx has no debug log' if $log !~ /\[debug\]/;
    like $log, qr/SSL session fetch [0-9a-f]{8}: $_$/m, $_
        for 'has an extended master secret, which is off at this server', 'has a cipher that the client does not offer',
            $legacy ? 'has a cipher that this OpenSSL does not have' : (), 'is for fragments of another length', 'is compressed';
    like $log, qr/SSL session of another cache: has an extended master secret/, 'of another cache, too';
};

$_->quit for @nodes;
my @errors = map { $_->errors(except => qr/session of another protocol/) } @nodes;
is scalar @errors, 1, 'no error in the logs' or diag join "\n", @errors;
like $errors[0], qr/inconsistent extms/, 'but that of the client that left the extension out';

done_testing;

# A session in DER with the number of a method of compression: [11], before [13], and [18] or [19].
sub compressed {
    my ($der) = @_;
    my ($more) = unpack 'x C', $der;
    my $body = substr $der, $more & 0x80 ? 2 + ($more & 0x7f) : 2;
    $body =~ s/(?=\xad\x03\x02\x01\x01[\xb2\xb3])/\xab\x03\x04\x01\x01/ or die 'no flags at the end';
    return "\x30\x82" . pack('n', length $body) . $body;
}
