# Each fault of a link to Redis while the worker authenticates.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::FaultMatrix;
use Test::More;

my %password = (default => 'matrix-default', nginx => 'matrix-nginx');
my %file     = map { $_ => spew(tmpdir() . "/$_.pass", "$password{$_}\n") } keys %password;
my $redis    = redis(password => $password{default},
    users => { nginx => ">$password{nginx} ~tls:* +get +set +del +ping" });

my @columns = (
    column(name => 'AUTH with a password', meets => 'greeting', server => $redis,
        backend => ["password_file $file{default};"]),
    column(name => 'AUTH as a user', meets => 'greeting', server => $redis,
        backend => [ 'username nginx;', "password_file $file{nginx};" ]),
);
my @logs = map { $_->{nginx}->error_log } @columns;
run_matrix(@columns);

is_deeply [ grep { slurp($_) =~ /matrix-(?:default|nginx)/ } @logs ], [], 'no password in a log';

done_testing;
