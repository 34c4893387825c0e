package SSLSession::Command;

# The command nginx-ssl-session, which is built when it is first used. Without cargo the test is skipped.
#
#     use SSLSession::Command;
#     my ($exit, $out, $err) = command('check', '127.0.0.1:8443');
#     my ($exit, $value) = command_json('check', '127.0.0.1:8443');

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(new_dir root slurp);

use Carp qw(croak);
use Exporter ();
use JSON::PP ();
use Test::More ();

our @EXPORT = qw(command command_json);

my $binary;

sub import {
    my ($class) = @_;
    # Whoever only compiles the test runs nothing.
    goto &Exporter::import if $binary || $^C;
    if (!grep { -x "$_/cargo" } split /:/, $ENV{PATH}) {
        Test::More::plan(skip_all => 'no cargo, which builds the command');
    }
    my $root = root();
    my $said = `'$root/tools/build-cli' 2>&1`;
    ($binary) = $said =~ m{^(/\S+/nginx-ssl-session)$}m;
    croak "tools/build-cli: $said" if $? || !$binary;
    goto &Exporter::import;
}

# Its exit status, standard output, and standard error. A hash before the arguments: for the environment.
sub command {
    my (@args) = @_;
    my %env = ref $args[0] ? %{ shift @args } : ();
    my $dir = new_dir('command');
    my $process = SSLSession::Process->spawn(name => 'nginx-ssl-session', out => "$dir/err", code => sub {
        open STDOUT, '>', "$dir/out" or die "$dir/out: $!";
        local %ENV = (%ENV, %env);
        exec { $binary } $binary, @args or die "exec: $!";
    });
    my $status = $process->wait_exit(60);
    return ($status & 127 ? 128 + ($status & 127) : $status >> 8, slurp("$dir/out"), slurp("$dir/err"));
}

# Its exit status, what its JSON says, and standard error.
sub command_json {
    my ($exit, $out, $err) = command('--json', @_);
    return ($exit, eval { JSON::PP::decode_json($out) } // croak("no JSON: $out$err"), $err);
}

1;
