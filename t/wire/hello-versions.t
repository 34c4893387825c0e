# What of a ClientHello is looked up: by protocol version, and beside stateless tickets.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;


my $certs = certs();
my $redis = redis();
my $relay = relay(upstream => '127.0.0.1:' . $redis->port);

my @protocols = qw(TLSv1.2 TLSv1.3);
my %says = (
    both => 'ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off;',
    tls12 => 'ssl_protocols TLSv1.2; ssl_session_tickets off;',
    tls13 => 'ssl_protocols TLSv1.3; ssl_session_tickets off;',
    tickets => 'ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;',
    tickets2 => 'ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;',
);
my %port = map { $_ => free_port() } map { ("rsa $_", "ec $_") } keys %says;

my $backend = <<"CONF";
    ssl_session_backend fleet {
        server        127.0.0.1:@{[ $relay->port ]};
        fetch_timeout 60s;
        store_timeout 60s;
    }
    ssl_session_fetch fleet;
    ssl_session_store fleet;
CONF

# Servers of two processes, for what one of them cannot have: two ticket keys.
sub servers {
    my $servers = '';
    for my $name (@_) {
        my ($kind, $server) = split ' ', $name;
        $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port{$name} ssl;
        $says{$server}
        ssl_certificate     $certs->{"${kind}_crt"};
        ssl_certificate_key $certs->{"${kind}_key"};
        location / { return 200 "\$ssl_protocol \$ssl_session_reused \$ssl_session_fetch_status\\n"; }
    }
CONF
    }
    return $servers;
}

my $other = nginx(conf => $backend . servers(grep { /tickets2/ } keys %port));
my $nginx = nginx(conf => $backend . servers(grep { !/tickets2/ } keys %port));

sub lookups { return map { $_->[1] } $relay->requests('GET') }

sub stored {
    my ($session) = @_;
    return wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'store';
}

# Whatever either nginx has sent to redis is there when something later is.
use constant SETTLED => 2;

sub settle {
    stored(session(port => $port{$_}, protocol => 'TLSv1.2', no_ticket => 1)) for 'ec both', 'ec tickets2';
}

# The last session that a full handshake gives.
sub session {
    my (%arg) = @_;
    my $client = tls_client(%arg);
    $client->request // diag $client->error;
    return ($client->sessions)[-1];
}

# What a client with these arguments is told, and what was looked up meanwhile.
sub told {
    my (%arg) = @_;
    my $before = lookups();
    my $client = tls_client(%arg);
    my $body = $client->request // $client->error;
    chomp $body;
    my @now = lookups();
    return ($body, [ @now[$before .. $#now] ], $client);
}

for my $kind (qw(rsa ec)) {
    for my $protocol (@protocols) {
        subtest "$kind, $protocol: its own session" => sub {
            my %arg = (port => $port{"$kind both"}, protocol => $protocol);
            my $session = session(%arg);
            stored($session);
            my ($told, $lookups) = told(%arg, session => $session);
            is $told, "$protocol r HIT", 'resumed';
            is_deeply $lookups, [ cache_key($session) ], 'one lookup, of that session';
        };

        subtest "$kind, $protocol, stateless tickets: not looked up" => sub {
            my %arg = (port => $port{"$kind tickets"}, protocol => $protocol);
            settle();
            my $keys = $redis->cmd('DBSIZE');
            my $session = session(%arg);
            my ($told, $lookups) = told(%arg, session => $session);
            is $told, "$protocol r ", 'resumed, without an outcome';
            is_deeply $lookups, [], 'no lookup';
            # TLS 1.2: what goes into the store has the session ID, which a client with the ticket
            # does not have.
            if ($protocol eq 'TLSv1.3') {
                settle();
                is $redis->cmd('DBSIZE'), $keys + SETTLED, 'nor was it stored';
            }
        };

        subtest "$kind, $protocol: a stateless ticket that another server has sealed" => sub {
            my $session = session(port => $port{"$kind tickets2"}, protocol => $protocol);
            for (1 .. 3) {
                my ($told, $lookups) = told(
                    port => $port{"$kind tickets"}, protocol => $protocol, session => $session);
                is $told, "$protocol . ", 'full handshake, without an outcome';
                is_deeply $lookups, [], 'no lookup';
            }
        };

        subtest "$kind, $protocol: a stateless ticket, offered where tickets are off" => sub {
            my $session = session(port => $port{"$kind tickets"}, protocol => $protocol);
            my ($told, $lookups, $client) = told(
                port => $port{"$kind both"}, protocol => $protocol, session => $session);
            # With TLS 1.2 the client makes up a session ID, to see whether it comes back.
            my $made_up = $protocol eq 'TLSv1.2';
            is $told, "$protocol . " . ($made_up ? made_up_status($client) : ''), 'full handshake';
            is_deeply $lookups, [], 'what was not issued is not looked up';
        };
    }

    subtest "$kind, stateless tickets on: a TLS 1.2 client that takes none" => sub {
        my %arg = (port => $port{"$kind tickets"}, protocol => 'TLSv1.2', no_ticket => 1);
        my $session = session(%arg);
        stored($session);
        my ($told, $lookups) = told(%arg, session => $session);
        is $told, 'TLSv1.2 r HIT', 'resumed by its session ID';
        is_deeply $lookups, [ cache_key($session) ], 'one lookup';
    };

    subtest "$kind: a client of TLS 1.3 at a server of TLS 1.2 only" => sub {
        my %arg = (port => $port{"$kind tls12"}, min => 'TLSv1.2', max => 'TLSv1.3');
        my ($told, $lookups, $client) = told(%arg);
        # The session ID that it makes up for middleboxes: OpenSSL will ask for it.
        is $told, 'TLSv1.2 . ' . made_up_status($client), 'full handshake';
        is_deeply $lookups, [], 'its legacy session ID was not looked up';
        my $session = ($client->sessions)[-1];
        stored($session);
        ($told, $lookups) = told(%arg, session => $session);
        is $told, 'TLSv1.2 r HIT', 'resumed';
        is_deeply $lookups, [ cache_key($session) ], 'one lookup, of that session';
    };

    subtest "$kind: a session of TLS 1.2, offered to a server of TLS 1.3" => sub {
        my $session = session(port => $port{"$kind both"}, protocol => 'TLSv1.2');
        stored($session);
        for my $server (qw(both tls13)) {
            my ($told, $lookups, $client) = told(
                port => $port{"$kind $server"}, min => 'TLSv1.2', max => 'TLSv1.3', session => $session);
            is $told, 'TLSv1.3 . ', "$server: full handshake of TLS 1.3";
            is hello_key($client), cache_key($session), 'although it was offered';
            is_deeply $lookups, [], 'no lookup';
        }
    };

    subtest "$kind: the random legacy session ID of TLS 1.3 is not looked up" => sub {
        my %arg = (port => $port{"$kind both"}, min => 'TLSv1.2', max => 'TLSv1.3');
        my ($told, $lookups, $client) = told(%arg);
        is $told, 'TLSv1.3 . ', 'full handshake';
        like hello_key($client), qr/^tls:.{43}$/, 'it sent one';
        is_deeply $lookups, [], 'no lookup';
        my $session = ($client->sessions)[-1];
        stored($session);
        ($told, $lookups, $client) = told(%arg, session => $session);
        is $told, 'TLSv1.3 r HIT', 'resumed';
        is_deeply $lookups, [ cache_key($session) ], 'only the ticket was looked up';
        isnt hello_key($client), cache_key($session), 'which is not the legacy session ID';
    };

    subtest "$kind: a session of TLS 1.3, offered to a server of TLS 1.2 only" => sub {
        my $session = session(port => $port{"$kind both"}, protocol => 'TLSv1.3');
        stored($session);
        my ($told, $lookups, $client) = told(
            port => $port{"$kind tls12"}, min => 'TLSv1.2', max => 'TLSv1.3', session => $session);
        # OpenSSL asks for the legacy session ID, which nobody has issued.
        is $told, 'TLSv1.2 . ' . made_up_status($client), 'full handshake';
        is_deeply $lookups, [], 'no lookup, of the ticket neither';
    };

    subtest "$kind: a session with another certificate is not resumed" => sub {
        my $there = $kind eq 'rsa' ? 'ec' : 'rsa';
        for my $protocol (@protocols) {
            my $session = session(port => $port{"$kind both"}, protocol => $protocol);
            stored($session);
            my ($told, $lookups) = told(
                port => $port{"$there both"}, protocol => $protocol, session => $session);
            is $told, "$protocol . HIT", 'found, and refused by OpenSSL';
            is scalar(@$lookups), 1, 'one lookup';
        }
    };
}

for ($nginx, $other) {
    $_->quit;
    is_deeply [ $_->errors ], [], 'no error in the log';
}

done_testing;

# The key under which the session_id field of a ClientHello would be looked up.
sub hello_key {
    my ($client) = @_;
    # record (5), handshake (4), version (2), random (32)
    my ($id) = unpack 'x43 C/a', $client->client_hello;
    return SSLSession::Sealing::cache_key($id);
}
