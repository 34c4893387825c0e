# Beside OpenSSL's own protection against replays ("ssl_conf_command Options AntiReplay" with early data):
# there OpenSSL resumes what its own cache has, and no other session of TLS 1.3.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my $redis = redis();
my $wait  = 3 * patience() . 's';
my $anti  = 'ssl_early_data on; ssl_conf_command Options AntiReplay;';
my @nodes;

# A server of the fleet, with these lines.
sub node {
    my ($lines, %arg) = @_;
    my $port  = free_port();
    my $fetch = $arg{fetch} // 'fleet';
    my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend fleet { server ${\ $redis->address }; connect_timeout $wait; fetch_timeout $wait; store_timeout $wait; }
    ssl_session_fetch   $fetch;
    ssl_session_store   fleet;
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        ssl_certificate     $certs->{ec_crt};
        ssl_certificate_key $certs->{ec_key};
        $lines
        location / { return 200 "\$ssl_session_reused|\$ssl_session_fetch_status|\$ssl_session_store_status"; }
    }
CONF
    push @nodes, $nginx;
    return { nginx => $nginx, port => $port };
}

# What a visit comes to, and the client's next session.
sub visit {
    my ($node, %client) = @_;
    my $client = tls_client(port => $node->{port}, protocol => 'TLSv1.3', %client);
    my $said   = $client->request // die $client->error;
    return ($said, ($client->sessions)[-1] // $client->session);
}

# A session of that node, once it is in the store.
sub stored {
    my ($node, %client) = @_;
    my ($said, $session) = visit($node, %client);
    wait_until { $redis->cmd('EXISTS', cache_key($session)) } 10, 'the session in the store';
    return $session;
}

# The entries, once all that was asked for has been done.
sub entries {
    my ($node) = @_;
    stored($node, protocol => 'TLSv1.2', no_ticket => 1);
    return $redis->cmd('DBSIZE');
}

my $A = node('ssl_session_tickets off; ssl_early_data on;');

for my $tickets (qw(off on)) {
    for my $fetch ('fleet', 'fleet single_use') {
        subtest "tickets $tickets, fetch $fetch" => sub {
            my $B = node("ssl_session_tickets $tickets; $anti", fetch => $fetch);
            my $session = stored($A);
            my $before  = entries($B);
            my ($said, $next) = visit($B);
            is $said, '.||SKIPPED', 'a new client: nothing is stored';
            is +(visit($B, session => $next))[0], '.||SKIPPED', 'when it comes back, OpenSSL does not resume: nothing is asked for';
            is +(visit($B, session => $session))[0], '.||SKIPPED', 'nor for a session of another server';
            is entries($B), $before + 1, 'no entry is made or removed but that of TLS 1.2';
            is +(visit($A, session => $session))[0], 'r|HIT|STORED', 'the other server still resumes it';
            my $old = stored($B, protocol => 'TLSv1.2', no_ticket => 1);
            is +(visit($B, protocol => 'TLSv1.2', session => $old, no_ticket => 1))[0], 'r|HIT|', 'TLS 1.2 is resumed';
        };
    }
}

subtest 'without early data the option is of no effect' => sub {
    my $B = node('ssl_session_tickets off; ssl_conf_command Options AntiReplay;');
    is +(visit($B, session => stored($A)))[0], 'r|HIT|STORED', 'resumed';
};

subtest "OpenSSL's own cache is not used: nobody checks what it resumes" => sub {
    my $B = node("ssl_session_tickets off; ssl_session_cache builtin; $anti");
    my ($said, $session) = visit($B);
    is $said, '.||SKIPPED', 'nothing is stored';
    is +(visit($B, session => $session))[0], '.||SKIPPED', 'nor resumed';
    is +(visit($B, session => stored($A)))[0], '.||SKIPPED', 'nor is one of another server: it could be replayed there';
};

$_->quit for @nodes;
is_deeply [ map { $_->errors } @nodes ], [], 'no error in the logs';

done_testing;
