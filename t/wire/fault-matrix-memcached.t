# Each fault of a link to memcached, in lookups, in new sessions and in connecting.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::FaultMatrix;
use Test::More;

my $memcached = memcached();

run_matrix(
    column(name => 'fetch',   meets => 'lookup',   server => $memcached, aside => $memcached->url),
    column(name => 'store',   meets => 'store',    server => $memcached),
    column(name => 'connect', meets => 'greeting', server => $memcached, aside => $memcached->url),
);

done_testing;
