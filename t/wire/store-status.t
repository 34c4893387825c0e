# $ssl_session_store_status: what became of a new session.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

my $certs = certs();

# An nginx whose answer is the variable.
sub site {
    my ($directives, %arg) = @_;
    my $port = free_port();
    my $nginx = nginx(log => 'notice', conf => <<"CONF");
    $directives
    ssl_session_tickets @{[ $arg{tickets} // 'off' ]};
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        @{[ $arg{server} // '' ]}
        location / { return 200 "[\$ssl_session_store_status]"; }
    }
CONF
    return ($port, $nginx);
}

sub visit {
    my ($port, $protocol, %arg) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return ($status, $client);
}

sub backend { "ssl_session_backend store { server 127.0.0.1:$_[0]; }" }

for my $where (qw(redis shared both)) {
    subtest $where => sub {
        my $redis = redis();
        my $to = { redis => 'store', shared => 'shared:tls:1m', both => 'shared:tls:1m store' }->{$where};
        my ($port) = site(backend($redis->port) . " ssl_session_fetch $to; ssl_session_store $to;");
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            my ($status, $client) = visit($port, $protocol);
            is $status, '[STORED]', "$protocol: a full handshake";
            my $session = ($client->sessions)[0];
            my ($again, $resumed);
            wait_until { ($again, $resumed) = visit($port, $protocol, session => $session); $resumed->reused } 5, 'resumption';
            is $again, $protocol eq 'TLSv1.2' ? '[]' : '[STORED]', 'a resumption: new is a ticket only';
        }
    };
}

subtest 'stored, and never looked for' => sub {
    my $redis = redis();
    my ($port) = site(backend($redis->port) . ' ssl_session_fetch off; ssl_session_store store;');
    is +(visit($port, $_))[0], '[STORED]', $_ for qw(TLSv1.2 TLSv1.3);
};

subtest 'nothing is to be stored' => sub {
    my $redis = redis();
    my ($port) = site(backend($redis->port) . ' ssl_session_fetch store; ssl_session_store off;');
    is +(visit($port, $_))[0], '[]', "$_, no target" for qw(TLSv1.2 TLSv1.3);
    my ($stateless) = site(backend($redis->port) . ' ssl_session_fetch off; ssl_session_store store;', tickets => 'on');
    is +(visit($stateless, 'TLSv1.3'))[0], '[]', 'stateless tickets';
};

subtest 'no server, and one of two targets' => sub {
    my $port_of_nobody = free_port();
    for my $to ('store', 'shared:tls:1m store') {
        my ($port) = site(backend($port_of_nobody) . " ssl_session_fetch off; ssl_session_store $to;");
        my $status;
        # The first one waits for the connection.
        wait_until { ($status) = visit($port, 'TLSv1.2'); $status eq '[DROPPED]' } 5, "dropped: $to";
        is +(visit($port, 'TLSv1.3'))[0], '[DROPPED]', "TLSv1.3: $to";
    }
};

subtest 'a client with a certificate' => sub {
    my $verify = "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};";
    for my $word (qw(SKIPPED STORED)) {
        my $parameter = $word eq 'SKIPPED' ? ' no_client_cert' : '';
        my ($port) = site("ssl_session_fetch off; ssl_session_store shared:tls:1m$parameter;", server => $verify);
        my %cert = (cert => $certs->{client_crt}, key => $certs->{client_key});
        is +(visit($port, $_, %cert))[0], "[$word]", "$_:$parameter" for qw(TLSv1.2 TLSv1.3);
        is +(visit($port, 'TLSv1.2'))[0], '[STORED]', 'one without';
    }
};

done_testing;
