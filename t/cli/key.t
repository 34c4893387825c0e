# nginx-ssl-session key: keys are made for their owner alone, told by their ids, and never shown; which nodes have which.

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

# A node with these keys, and the URL of its status page.
sub node {
    my (@keys) = @_;
    my ($port, $tls) = (free_port(), free_port());
    my $certs = certs();
    my $keys  = join ' ', map { "ssl_session_key $_;" } @keys ? @keys : 'off';
    nginx(log => 'notice', conf => <<"CONF");
    $keys
    ssl_session_fetch   shared:tls:1m;
    ssl_session_store   shared:tls:1m;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server { listen 127.0.0.1:$port; location = /sessions { ssl_session_status; } location = /other { return 200 other; } }
    server { listen 127.0.0.1:$tls ssl; server_name localhost; location = /sessions { ssl_session_status; } }
CONF
    return wantarray ? ("http://127.0.0.1:$port/sessions", "https://localhost:$tls/sessions") : "http://127.0.0.1:$port/sessions";
}

# What names it in tables.
sub name { return $_[0] =~ m{//([^/]+)} ? $1 : $_[0] }

subtest 'which nodes have which keys' => sub {
    my ($old, $new) = ($file, another());
    $new = another() while key_id($new) eq key_id($old);
    my ($old_id, $new_id) = map { key_id($_) } $old, $new;
    my ($first, $https) = node($old);
    my %node = (old => $first, known => scalar node($old, $new), new => scalar node($new, $old), bare => scalar node());

    my ($exit, $value, $err) = command_json('key', 'nodes', $node{old});
    is $exit, 0, 'one node' or diag $err;
    is_deeply $value, { ok => JSON::PP::true(), missing => [], nodes => [ { node => name($node{old}), error => undef,
        keys => [ { block => 'http', key_id => $old_id, seals => JSON::PP::true() } ] } ] }, 'has its key' or diag explain $value;

    # The steps of docs/operation.md, "Changing the key", on the way.
    for my $step ([ 'the new key on one of two', qw(old known) ], [ 'the new key first on one of two', qw(known new) ]) {
        my ($what, @names) = @$step;
        ($exit, $value) = command_json('key', 'nodes', @node{@names});
        is $exit, 0, "$what: costs nothing" or diag explain $value;
    }
    ($exit, my $out) = command('key', 'nodes', @node{qw(known new)});
    like $out, qr/^http\{\} +$old_id +$new_id\n\Q${\ name($node{known}) }\E +seals  opens\n\Q${\ name($node{new}) }\E +opens  seals\n/, 'who has which';
    like $out, qr/^In http\{\} nodes seal by $old_id and $new_id: a key is being changed\.\nEach node has /m, 'it says so';

    my @lacks = @node{qw(old known new)};
    ($exit, $value) = command_json('key', 'nodes', @lacks);
    is $exit, 1, 'a key that seals, and that one has not';
    my $missing = [ { block => 'http', key_id => $new_id, nodes => [ name($node{old}) ], sealed_at => [ name($node{new}) ] } ];
    is_deeply $value->{missing}, $missing, 'is named' or diag explain $value;
    ($exit, $out) = command('key', 'nodes', @lacks);
    is $exit, 1, 'for people';
    like $out, qr/^\Q${\ name($node{old}) }\E +seals  -$/m, 'in the table';
    like $out, qr/^1\. \Q${\ name($node{old}) }\E: without key $new_id, by which \Q${\ name($node{new}) }\E seals\n   Sessions of that key are FOREIGN there: add its ssl_session_key to http\{\}\.$/m, 'and below it';

    my $saved = spew(tmpdir() . '/saved', `curl -fsS '$node{old}'`);
    my @other = ("$node{new}?format=prometheus", "$node{known}?format=json", $saved);
    ($exit, $value) = command_json('key', 'nodes', @other);
    is $exit, 1, 'in the other formats, and from a file';
    is_deeply [ $value->{missing}[0]{key_id}, $value->{missing}[0]{nodes} ], [ $new_id, [$saved] ], 'the same' or diag explain $value;

    ($exit, $value) = command_json('key', 'nodes', @node{qw(old bare)});
    is $exit, 1, 'a node without any key';
    is_deeply $value->{missing}[0]{nodes}, [ name($node{bare}) ], 'lacks it';
    ($exit, $out) = command('key', 'nodes', $node{bare});
    is $exit, 3, 'without others there is nothing to compare';
    is $out, "No node has an ssl_session_key.\n", 'it says so';

    ($exit, $out, $err) = command('key', 'nodes', $https, '--cacert', certs()->{ec_crt});
    is $exit, 0, 'over TLS' or diag $out, $err;
    ($exit, $out) = command('key', 'nodes', $https);
    is $exit, 3, 'by a certificate that does not verify';
    like $out, qr/certificate verify failed.*see --cacert$/m, 'it says so';

    my $dead = 'http://127.0.0.1:' . free_port() . '/';
    for my $wrong ([ $dead, qr/no connection: connection refused/ ], [ $node{old} =~ s/sessions$/none/r, qr/it answers 404: is the path right\?/ ],
        [ $node{old} =~ s/sessions$/other/r, qr/that is no ssl_session_status/ ], [ tmpdir() . '/none', qr/no such file or directory: name a URL or a file/ ]) {
        my ($place, $says) = @$wrong;
        ($exit, $out) = command('key', 'nodes', $node{old}, $place);
        is $exit, 3, "not known: $place";
        like $out, qr/^\Q$place\E: $says/m, 'it says why';
        ($exit) = command('key', 'nodes', @lacks, $place);
        is $exit, 1, 'what is known is a finding all the same';
    }
    for my $wrong ([], [ $node{old}, $node{old} ], ['ftp://127.0.0.1/'], ['http://user:secret@127.0.0.1/']) {
        ($exit) = command('key', 'nodes', @$wrong);
        is $exit, 2, "wrong usage: @$wrong";
    }
};

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
