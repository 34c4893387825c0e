# Each fault of a link to Redis over TLS, in the handshake and after it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::FaultMatrix;
use Test::More;

my $redis = redis(tls => 1);
my $ca    = certs()->{ca_crt};

sub tls_column {
    my (%arg) = @_;
    my @lines = ('ssl on;', "ssl_trusted_certificate $ca;", @{ delete $arg{lines} // [] });
    return column(
        server => $redis, upstream => '127.0.0.1:' . $redis->tls_port, backend => \@lines, %arg);
}

# A stall, a cut and a reset come at the beginning, or in the middle of what the server sends first.
run_matrix(
    tls_column(name => 'fetch', meets => 'tls_lookup', aside => $redis->url),
    tls_column(name => 'TLS 1.2 handshake', meets => 'handshake',
        lines => [ 'ssl_protocols TLSv1.2;', 'ssl_session_reuse off;' ]),
    tls_column(name => 'TLS 1.3 handshake', meets => 'handshake', at => 700,
        lines => [ 'ssl_protocols TLSv1.3;', 'ssl_session_reuse off;' ]),
    tls_column(name => 'abbreviated TLS 1.2 handshake', meets => 'handshake', at => 60,
        lines => ['ssl_protocols TLSv1.2;']),
    tls_column(name => 'abbreviated TLS 1.3 handshake', meets => 'handshake', at => 100,
        lines => ['ssl_protocols TLSv1.3;']),
);

done_testing;
