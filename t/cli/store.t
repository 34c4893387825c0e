# nginx-ssl-session store: what is in Redis and memcached, what an entry says, and the epoch.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Command;
use SSLSession::Fixture;
use SSLSession::Sealing qw(seal issue_id new_session_key);
use MIME::Base64 qw(encode_base64);
use Test::More;

my $certs = certs();
my $long  = 'connect_timeout 20s; fetch_timeout 20s; store_timeout 20s;';
my $key   = session_key();
my $id    = sprintf '%02x', ord issue_id('TLSv1.3');

# A server that stores there, and its port.
sub server {
    my ($store, %arg) = @_;
    my $port = free_port();
    my $protocol = $store->url =~ /^memcached/ ? 'protocol memcached;' : '';
    nginx(log => 'notice', conf => <<"CONF");
    ssl_session_backend store { server ${\ $store->address }; $protocol $long }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_epoch   epoch;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        ${\ ($arg{http} // '') }
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    return $port;
}

# What an entry has; undef if there is none.
sub value { my ($store, $name) = @_; return $store->can('get') ? $store->get($name) : $store->cmd('GET', $name) }

# A session of that server, which is in the store.
sub session_at {
    my ($port, $protocol, $store, %arg) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, %arg);
    $client->request;
    my $session = $client->session;
    wait_until { defined value($store, cache_key($session)) } 10, 'the session in the store';
    return $session;
}

my %store = (redis => redis(), memcached => memcached());

for my $kind (sort keys %store) {
    my $store = $store{$kind};
    my $url   = $store->url;
    my $port  = server($store);

    subtest "$kind: an empty store" => sub {
        my ($exit, $value) = command_json('store', 'stats', $url);
        is $exit, 0, 'exit status';
        is $value->{entries}, 0, 'no entries';
        ($exit, my $out) = command('store', 'epoch', $url);
        is $exit, 0, 'no epoch';
        is $out, "tls:epoch: there is none, and no session is withdrawn\n", 'it says so';
    };

    my %session = map { $_ => session_at($port, $_, $store) } 'TLSv1.2', 'TLSv1.3';

    subtest "$kind: entries are counted" => sub {
        my ($exit, $value) = command_json('store', 'stats', $url);
        is $exit, 0, 'exit status';
        is $value->{entries}, 3, 'one of TLS 1.2, two of TLS 1.3';
        is_deeply $value->{kinds}, [ { entries => 'sealed', key_id => $id, count => 3 } ], 'by whom they are sealed';
        cmp_ok $value->{ttl}{max}, '<=', 300, 'how long they live on';
        cmp_ok $value->{ttl}{min}, '>', 200, 'all of them';
        my @sizes = sort { $a <=> $b } map { length value($store, $_) } $store->keys;
        is_deeply $value->{bytes}, { min => $sizes[0], median => $sizes[1], max => $sizes[2] }, 'their sizes';
        ($exit, $value) = command_json('store', 'stats', $url, '--limit', 2);
        is $value->{entries}, 2, 'no more than asked for';
        ok $value->{sample}, 'which is a sample';
        ($exit, my $out) = command('store', 'stats', $url);
        like $out, qr/^entries +3 with the prefix tls:\nbytes +min \d+, .*\n.*\nsealed +3 with key id $id\n/, 'for people';
    };

    subtest "$kind: an entry is opened" => sub {
        for my $protocol (sort keys %session) {
            my $session = $session{$protocol};
            my $hex = unpack 'H*', session_id($session);
            my ($exit, $value) = command_json('store', 'inspect', $url, $hex, '--key', $key);
            is $exit, 0, "$protocol: exit status";
            is $value->{entry}, cache_key($session), 'its name';
            is $value->{protocol}, $protocol, 'its version';
            like $value->{cipher}, qr/AES/, 'its cipher suite';
            is $value->{expires} - $value->{made}, 300, 'how long it lives';
            cmp_ok abs($value->{made} - time), '<', 100, 'when it was made';
            is $value->{full_handshake}, $value->{made}, 'when its full handshake was';
            ok !$value->{client_certificate}, 'without a certificate';
            ok $value->{usable}, 'of use';
            my ($again, $out) = command('store', 'inspect', $url, $hex, '--key', $key);
            unlike $out, qr/\Q$hex\E/i, 'without its ID';

            my $file = spew(tmpdir() . '/session.pem', "-----BEGIN SSL SESSION PARAMETERS-----\n",
                encode_base64($session), "-----END SSL SESSION PARAMETERS-----\n");
            ($exit, $value) = command_json('store', 'inspect', $url, $file, '--key', $key);
            is $exit, 0, 'by the file of a client' or diag explain $value;
            is $value->{entry}, cache_key($session), 'the same';

            ($exit, $value) = command_json('store', 'inspect', $url, $hex, '--key', new_session_key());
            is $exit, 1, 'with another key';
            like $value->{finding}, qr/^that key has not issued this session ID/, 'it says so';
        }
        my $name = cache_key($session{'TLSv1.3'});
        my ($exit, $value) = command_json('store', 'inspect', $url, unpack 'H*', session_id($session{'TLSv1.3'}));
        is $exit, 1, 'without a key';
        like $value->{finding}, qr/give --key/, 'it says so';
        ($exit, $value) = command_json('store', 'inspect', $url, $name);
        is $exit, 0, 'by its name';
        is_deeply [ @$value{qw(entry sealed key_id)} ], [ $name, JSON::PP::true(), $id ], 'only its outside is seen';
        is $value->{protocol}, undef, 'and nothing that is in it';
        ($exit, $value) = command_json('store', 'inspect', $url, 'tls:none');
        is $exit, 1, 'one that is not there';
    };

    subtest "$kind: the epoch" => sub {
        ok tls_client(port => $port, protocol => 'TLSv1.2', session => $session{'TLSv1.2'}, handshake => 1)->reused,
            'before it a session is resumed';
        my ($exit, $out) = command('store', 'epoch', $url, 'set', 'now');
        is $exit, 0, 'it is set' or diag $out;
        my ($epoch) = $out =~ /^tls:epoch is (\d+) \(.*, \d+s ago\): sessions made until then are withdrawn$/;
        cmp_ok abs($epoch - time), '<', 60, 'to now';
        is value($store, 'tls:epoch'), $epoch, 'in the store';
        wait_until {
            my $client = tls_client(port => $port, protocol => 'TLSv1.2', session => $session{'TLSv1.2'});
            $client->request;
            !$client->reused;
        } 10, 'a session that is withdrawn';
        ($exit, my $value) = command_json('store', 'epoch', $url);
        is_deeply [ $exit, $value->{epoch} ], [ 0, $epoch ], 'it is shown';
        ($exit, $out, my $err) = command('store', 'epoch', $url, 'set', $epoch - 1);
        is $exit, 2, 'it does not go back';
        like $err, qr/^nginx-ssl-session: it is $epoch already/, 'it says so';
        ($exit) = command('store', 'epoch', $url, 'set', time + 1000);
        is $exit, 2, 'nor far ahead';
        is value($store, 'tls:epoch'), $epoch, 'it is as it was';
        $kind eq 'redis' ? $store->cmd('SET', 'tls:epoch', 'soon') : $store->set('tls:epoch', 'soon');
        ($exit, $out) = command('store', 'epoch', $url);
        is $exit, 1, 'one that is no number is a finding';
        ($exit, $value) = command_json('store', 'stats', $url);
        is $value->{others}, 1, 'stats tell it from sessions';
    };
}

subtest 'a client with a certificate, and a server name' => sub {
    my $redis = redis();
    my $port  = server($redis, http => "ssl_verify_client on; ssl_client_certificate $certs->{ca_crt};");
    my $file  = tmpdir() . '/client.pem';
    s_client(port => $port, protocol => 'TLSv1.3', sni => 'localhost', sess_out => $file,
        args => [ '-cert', $certs->{client_crt}, '-key', $certs->{client_key} ])->ok or die 'no handshake';
    my ($exit, $value) = command_json('store', 'inspect', $redis->url, $file, '--key', $key);
    is $exit, 0, 'exit status' or diag explain $value;
    ok $value->{client_certificate}, 'the certificate is in it';
    is $value->{server_name}, 'localhost', 'the name';
    like $value->{binding}, qr/^[0-9a-f]{32}$/, 'what its client was judged by';
    cmp_ok $value->{chain_ends}, '>', time, 'and until when';
};

subtest 'entries that are not as they should be' => sub {
    my $redis = redis();
    $redis->cmd('SET', 'tls:' . 'x' x 43, '0 a session', 'EX', 100);
    $redis->cmd('SET', 'tls:' . 'y' x 43, 'nonsense');
    my ($exit, $value) = command_json('store', 'stats', $redis->url);
    is $exit, 1, 'a finding';
    is_deeply [ sort map { $_->{entries} } @{ $value->{kinds} } ], [ 'not sealed', 'unknown' ], 'of two kinds';
    is $value->{without_end}, 1, 'one has no end';
    my $session = issue_id('TLSv1.3');
    $redis->cmd('SET', SSLSession::Sealing::cache_key($session), seal(issue_id('TLSv1.3'), 'x'), 'EX', 100);
    ($exit, $value) = command_json('store', 'inspect', $redis->url, unpack('H*', $session), '--key', $key);
    is $exit, 1, 'one of another session';
    like $value->{finding}, qr/does not open$/, 'it says so';
};

subtest 'passwords' => sub {
    my $redis = redis(password => 's3cret/');
    my $plain = $redis->url;
    my $file  = spew(tmpdir() . '/redis.pass', "s3cret/\n");
    my ($exit, $out, $err) = command('store', 'stats', $plain);
    is $exit, 3, 'none';
    like $err, qr/asks for a password: see --password-file$/, 'it says so';
    ($exit, $out, $err) = command('store', 'stats', $plain, '--password-file', $file);
    is $exit, 0, 'in a file' or diag $err;
    ($exit, $out, $err) = command('store', 'stats', $plain =~ s{//}{//:s3cret%2F@}r);
    is $exit, 0, 'in the URL' or diag $err;
    ($exit, $out, $err) = command('store', 'stats', $plain =~ s{//}{//nginx@}r, '--password-file', $file);
    is $exit, 2, 'a user without a colon';
    like $err, qr/: "user:@" expected, as --password-file has the password$/, 'it says how a user is written then';
    for my $url ($plain =~ s{//}{//:wr0ng@}r, $plain =~ s{//}{//u:wr0ng@}r, 'redis://u:wr0ng@127.0.0.1:1',
        'redis://:wr0ng%2@127.0.0.1', 'http://u:wr0ng@x') {
        ($exit, $out, $err) = command('store', 'stats', $url);
        cmp_ok $exit, '>', 1, 'a wrong one';
        unlike "$out$err", qr/wr0ng/, 'is not shown' ;
        is scalar(() = $err =~ /\n/g), 1, 'one line';
    }
};

subtest 'a user with no more rights than docs/command.md says' => sub {
    my ($rights) = slurp(root() . '/docs/command.md') =~ /a user needs\n(.*?) for that, `\+get` for what follows, and `\+set` to set/s;
    my @rights = $rights =~ /`(\S+)`/g;
    is scalar @rights, 5, 'they are there' or diag $rights;
    my $redis = redis();
    $redis->cmd('SET', 'tls:' . 'x' x 43, "\1xx", 'EX', 100);
    $redis->cmd(qw(ACL SETUSER operator on >s3cret), @rights);
    my $url = $redis->url =~ s{//}{//operator:@}r;
    my @as  = ('--password-file', spew(tmpdir() . '/operator.pass', 's3cret'));
    my ($exit, $value, $err) = command_json('store', 'stats', $url, @as);
    is_deeply [ $exit, $value->{entries} ], [ 0, 1 ], 'stats' or diag $err;
    ($exit, $value, $err) = command_json('store', 'inspect', $url, 'tls:' . 'x' x 43, @as);
    is $exit, 0, 'inspect, by a name' or diag $err;
    ($exit, undef, $err) = command('store', 'epoch', $url, @as);
    is $exit, 3, 'epoch, without get';
    like $err, qr/this user may not do so: "NOPERM /, 'it says so';
    $redis->cmd(qw(ACL SETUSER operator +get));
    ($exit, undef, $err) = command('store', 'epoch', $url, @as);
    is $exit, 0, 'epoch' or diag $err;
    $redis->cmd(qw(ACL SETUSER operator +set));
    ($exit, undef, $err) = command('store', 'epoch', $url, 'set', 'now', @as);
    is $exit, 0, 'which is set' or diag $err;
};

subtest 'over TLS, and by a unix socket' => sub {
    my $redis = redis(tls => 1);
    my ($exit, $out, $err) = command('store', 'stats', $redis->tls_url, '--cacert', $certs->{ca_crt});
    is $exit, 0, 'over TLS' or diag $err;
    ($exit, $out, $err) = command('store', 'stats', $redis->tls_url);
    is $exit, 3, 'a certificate that does not verify';
    like $err, qr/certificate verify failed/, 'it says so';
    ($exit, $out, $err) = command({ SSL_CERT_FILE => $certs->{ca_crt} }, 'store', 'stats', $redis->tls_url);
    is $exit, 0, 'by the CAs of the system' or diag $err;
    ($exit, $out, $err) =
        command({ SSL_CERT_FILE => $certs->{ca_crt} }, 'store', 'stats', $redis->tls_url, '--cacert', $certs->{other_ca_crt});
    is $exit, 3, 'by others, and not by those';
    ($exit, $out, $err) = command('store', 'stats', "redis://unix:$redis->{unix}");
    is $exit, 0, 'by a unix socket' or diag $err;
    ($exit, $out, $err) = command('store', 'stats', "rediss://unix:$redis->{unix}", '--timeout', '1s');
    is $exit, 3, 'over TLS by one that has none';
    like $err, qr/TLS/, 'nothing is sent in the clear';
};

done_testing();
