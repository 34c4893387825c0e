# nginx-ssl-session key: keys are made for their owner alone, told by their ids, and never shown.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use SSLSession::Sealing qw(issue_id);
use Test::More;

my $file = tmpdir() . '/new.key';

sub key_id { return sprintf '%02x', ord issue_id('TLSv1.3', $_[0]) }

subtest 'a new key' => sub {
    my ($exit, $out, $err) = command('key', 'new', $file);
    is $exit, 0, 'exit status' or diag $err;
    my $key = slurp($file);
    is length $key, 32, '32 bytes';
    is sprintf('%04o', (stat $file)[2] & 07777), '0600', 'for its owner alone';
    is $out, "$file: key id ${\ key_id($file) }, mode 0600\n", 'its key id, as session IDs have it';

    ($exit, $out, $err) = command('key', 'new', $file);
    is $exit, 2, 'it is not made twice';
    like $err, qr/^nginx-ssl-session: \Q$file\E exists and is left as it is: name another file$/, 'it says so';
    is slurp($file), $key, 'and is as it was';
    ($exit) = command('key', 'new', tmpdir() . '/none/such.key');
    is $exit, 3, 'where there is no such directory';
    isnt $key, slurp(another()), 'another one is another one';
};

my $another = 0;

sub another {
    my $file = tmpdir() . '/another-' . ++$another . '.key';
    my ($exit) = command('key', 'new', $file);
    return $file;
}

subtest 'keys are shown by their ids' => sub {
    my ($exit, $out) = command('key', 'show', $file);
    is $exit, 0, 'exit status';
    like $out, qr/^\Q$file\E  ${\ key_id($file) } +0600/m, 'key id and mode';

    my $open = another();
    chmod 0644, $open;
    ($exit, my $value) = command_json('key', 'show', $file, $open);
    is $exit, 1, 'one that everybody can read is a finding';
    is_deeply $value->{keys}[0], { file => $file, key_id => key_id($file), mode => '0600', findings => [] }, 'one';
    is_deeply $value->{keys}[1]{findings}, ["everybody can read it: chmod 600 $open"], 'the other one';

    chmod 0606, $open;
    (undef, $value) = command_json('key', 'show', $open);
    is_deeply $value->{keys}[0]{findings}, ["everybody can read and change it: chmod 600 $open"], 'one that everybody can change';

    my $short = spew(tmpdir() . '/short.key', 'x' x 31);
    chmod 0600, $short;
    ($exit, $out) = command('key', 'show', $short);
    is $exit, 1, 'one that is too short';
    like $out, qr/31 bytes, 32 expected/, 'it says so';
    my $long = spew(tmpdir() . '/long.key', 'x' x 33);
    ($exit, $out) = command('key', 'show', $long);
    like $out, qr/more than 32 bytes, 32 expected/, 'one that is too long';
    ($exit) = command('key', 'show', tmpdir() . '/none.key');
    is $exit, 3, 'one that is not there';
};

subtest 'copies are compared' => sub {
    my $copy = spew(tmpdir() . '/copy.key', slurp($file));
    my ($exit, $out) = command('key', 'check', $file, $copy);
    is $exit, 0, 'a copy' or diag $out;
    like $out, qr/^the same key$/m, 'it says so';

    my $other = another();
    ($exit, $out) = command('key', 'check', $file, $copy, $other);
    is $exit, 1, 'another key';
    like $out, qr/^\Q$other\E  .*another key$/m, 'it is named';

    # Another key of the same id is another one all the same.
    my $same_id;
    do { $same_id = another_of_id($file) } until $same_id;
    ($exit) = command('key', 'check', $file, $same_id);
    is $exit, 1, 'another key of the same id';
    ($exit, $out) = command('key', 'check', key_id($file), $file, $same_id);
    is $exit, 1, 'also where their id comes first' or diag $out;
    ($exit) = command('key', 'check', $file, '+5');
    is $exit, 3, 'a file, and no id, which is not there';
    ($exit, $out) = command('key', 'check', $file, key_id($file));
    is $exit, 0, 'the id of another machine';
    like $out, qr/^the same key id, as one other key in 256 has it$/m, 'what that is worth';
    ($exit) = command('key', 'check', $file, key_id($file) eq '00' ? '01' : '00');
    is $exit, 1, 'another id';
    ($exit) = command('key', 'check', $file);
    is $exit, 2, 'one alone cannot be compared';
};

sub another_of_id {
    my ($file) = @_;
    my $other = SSLSession::Sealing::new_session_key(tmpdir() . '/same.key');
    return key_id($other) eq key_id($file) ? $other : undef;
}

subtest 'no key is ever shown' => sub {
    my $key = unpack 'H*', slurp($file);
    for my $args ([ 'show', $file ], [ 'check', $file, $file ]) {
        for my $json ([], ['--json']) {
            my (undef, $out, $err) = command('key', @$args, @$json);
            unlike "$out$err", qr/${\ substr $key, 0, 8 }/, "key @$args[0] @$json";
        }
    }
};

done_testing();
