# Each fault of a link to Redis, in lookups, in new sessions and in connecting.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::FaultMatrix;
use Test::More;

my $redis = redis();

run_matrix(
    column(name => 'fetch',   meets => 'lookup',  server => $redis, aside => $redis->url),
    column(name => 'store',   meets => 'store',   server => $redis),
    column(name => 'connect', meets => 'connect', server => $redis, aside => $redis->url),
);

done_testing;
