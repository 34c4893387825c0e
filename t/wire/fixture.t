# The fixture itself, on an nginx without the module: what fails here is not the module's fault.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();
my ($port, $plain, $hrr) = (free_port(), free_port(), free_port());

my $conf = <<"CONF";
    ssl_session_tickets off;
    ssl_session_cache   shared:fixture:1m;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl;
        ssl_early_data on;
        location / { return 200 "\$ssl_protocol \$ssl_session_reused \$ssl_early_data \$ssl_server_name\\n"; }
    }
    server {
        listen 127.0.0.1:$hrr ssl;
        ssl_ecdh_curve secp384r1;
        location / { return 200 "hrr\\n"; }
    }
    server {
        listen 127.0.0.1:$plain;
        location / { return 200 "plain\\n"; }
    }
CONF

use constant SNI => 'localhost';

my $nginx = nginx(module => 0, conf => $conf);

subtest 'nginx starts, with the workers asked for' => sub {
    is scalar($nginx->workers), 1, 'one worker';
    is_deeply [ $nginx->errors ], [], 'no error';
    cmp_ok $nginx->fds, '>', 0, 'its open files are counted';
    cmp_ok $nginx->rss, '>', 0, 'its memory is counted';
    cmp_ok $nginx->cpu, '>=', 0, 'its time is counted';
};

subtest 'conf_test tells what is wrong' => sub {
    my ($exit, $said) = conf_test(module => 0, conf => 'nonsense;');
    is $exit, 1, 'exit code';
    like $said, qr/\[emerg\].*unknown directive "nonsense" in .*:\d+/, 'message';
    ($exit) = conf_test(module => 0, conf => '');
    is $exit, 0, 'a good one passes';
};

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: s_client resumes" => sub {
        my $file  = tmpdir() . "/$protocol.pem";
        my $first = s_client(port => $port, protocol => $protocol, sess_out => $file, sni => SNI);
        is $first->exit, 0, 'exit code';
        is $first->reused, 0, 'new';
        is $first->protocol, $protocol, 'protocol';
        is $first->response, "$protocol .  localhost\n", 'answer';
        my $second = s_client(port => $port, protocol => $protocol, sess_in => $file, sni => SNI);
        is $second->reused, 1, 'reused';
        is $second->response, "$protocol r  localhost\n", 'answer';
        is $second->session_id, $first->session_id, 'same session ID' if $protocol eq 'TLSv1.2';
    };

    subtest "$protocol: the raw client resumes, its ClientHello in pieces" => sub {
        my $first = tls_client(port => $port, protocol => $protocol);
        is $first->request, "$protocol .  \n", 'answer' or diag $first->error;
        is $first->reused, 0, 'new';
        is $first->protocol, $protocol, 'protocol';
        my $session = $first->session;
        my $name    = session_name($session);
        is length $name, 64, 'the session has a name of 32 bytes';
        is scalar($first->sessions), $protocol eq 'TLSv1.3' ? 2 : 1, 'all tickets are kept';
        for my $cut ({ segment => 1 }, { records => 3 }, { segment => 1, records => 3 }) {
            my $client = tls_client(port => $port, protocol => $protocol, session => $session, %$cut);
            is $client->request, "$protocol r  \n", join ' ', %$cut;
            is $client->reused, 1, 'reused';
            like unpack('H*', $client->client_hello), qr/$name/, 'the ClientHello offered it';
            is substr($client->sent, 3, 2), pack('n', 3), 'records were cut' if $cut->{records};
        }
    };
}

subtest 'early data goes through a relay that cuts it' => sub {
    my $relay = relay(upstream => "127.0.0.1:$port");
    my $file  = tmpdir() . '/early.pem';
    s_client(port => $port, protocol => 'TLSv1.3', sess_out => $file);
    $relay->split_records(7);
    $relay->chunk(100, 'request');
    my $early = s_client(port => $relay->port, protocol => 'TLSv1.3', sess_in => $file,
        early_data => "GET / HTTP/1.0\r\n\r\n", path => undef, args => ['-ign_eof']);
    is $early->reused, 1, 'reused';
    is $early->early_data, 'accepted', 'early data accepted';
    # It is 1 for as long as the handshake goes on, which a slow machine ends first.
    like $early->response, qr/^TLSv1\.3 r 1? $/, 'answered';
    cmp_ok $relay->stats->{accepted}, '==', 1, 'through the relay';
};

subtest 'HelloRetryRequest' => sub {
    my $client = tls_client(port => $hrr, protocol => 'TLSv1.3', groups => 'X25519:P-384');
    is $client->request, "hrr\n", 'answer' or diag $client->error;
    ok $client->hello_retried, 'retried';
    my $other = tls_client(port => $hrr, protocol => 'TLSv1.3', groups => 'P-384', handshake => 1);
    ok !$other->hello_retried, 'not retried when the group fits';
};

subtest 'a client that goes away, and one that talks nonsense' => sub {
    my $from = $nginx->log_pos;
    my $client = tls_client(port => $port);
    $client->send_raw(substr $client->client_hello, 0, 20);
    $client->half_close;
    is $client->wait_closed, 'eof', 'half-close';
    tls_client(port => $port)->start->reset;
    my $garbage = tls_client(port => $plain);
    ok !$garbage->handshake, 'no handshake with a plain server';
    like $garbage->error, qr/wrong version|packet length|eof/i, 'and it says why';
    my $nonsense = tls_client(port => $port, protocol => 'TLSv1.2', ciphers => 'NULL-SHA256:@SECLEVEL=0');
    ok !$nonsense->handshake, 'no shared cipher';
    is $nonsense->alert, 40, 'alert handshake_failure';
    $nginx->log_like(qr/no shared cipher/, from => $from);
    is_deeply [ $nginx->errors(except => qr/SSL_do_handshake/) ], [], 'nothing worse in the log';
};

subtest 'reload: new workers, the old connection goes on' => sub {
    my $client = tls_client(port => $port, handshake => 1);
    my ($old) = $nginx->workers;
    $nginx->reload;
    my ($new) = $nginx->workers;
    isnt $new, $old, 'another worker';
    is_deeply [ $nginx->old_workers ], [$old], 'the old one finishes';
    like $client->request, qr/^TLSv1/, 'and answers';
    wait_until { !$nginx->old_workers } 5, 'exit of the old worker';
    eval { $nginx->reload('nonsense;') };
    like $@, qr/unknown directive "nonsense"/, 'a wrong configuration is refused';
    $nginx->write_conf($conf);
};

subtest 'binary upgrade' => sub {
    my $port   = free_port();
    my $nginx  = nginx(module => 0, daemon => 1, method => (event_methods)[-1],
        conf => "server { listen 127.0.0.1:$port; location / { return 200 ok; } }");
    my $master = $nginx->pid;
    $nginx->upgrade(wait => 1);
    isnt $nginx->pid, $master, 'another master';
    is scalar($nginx->workers), 1, 'with its worker';
    is_deeply [ grep { $_ == $master } $nginx->process->group ], [], 'the first one is gone';
    $nginx->quit;
    is_deeply [ $nginx->process->group ], [], 'graceful exit of all';
    is_deeply [ $nginx->errors ], [], 'no error';
};

subtest 'redis: commands, restart, pause' => sub {
    my $redis = redis();
    is $redis->cmd('SET', 'k', "v\r\n\0"), 'OK', 'SET';
    is $redis->cmd('GET', 'k'), "v\r\n\0", 'GET';
    is $redis->cmd('GET', 'nothing'), undef, 'nil';
    is_deeply [ $redis->keys ], ['k'], 'keys';
    eval { $redis->cmd('NONSENSE') };
    like $@, qr/unknown command/, 'an error reply dies';
    ok -S $redis->unix, 'unix socket';
    $redis->pause;
    $redis->resume;
    is $redis->cmd('DBSIZE'), 1, 'goes on after a pause';
    $redis->kill;
    ok !eval { $redis->cmd('PING') }, 'gone';
    $redis->start;
    is $redis->cmd('DBSIZE'), 0, 'is there again, empty';

    my $locked = redis(args => ['--requirepass', 'secret'], password => 'secret');
    is $locked->cmd('PING'), 'PONG', 'with a password';
};

subtest 'redis: passwords, users and what it says about its clients' => sub {
    my $redis = redis(password => 'secret', maxmemory => '3mb',
        users => { nginx => '>pass ~tls:* +get +set' });
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $redis->port);
    my $said = sub { print {$sock} "@_\r\n"; my $line = <$sock>; $line =~ s/\r\n//r };
    like $said->('PING'), qr/^-NOAUTH/, 'not without the password';
    is $said->('AUTH secret'), '+OK', 'the password';
    is $said->('AUTH nginx pass'), '+OK', 'a user';
    is $said->('SET tls:a b'), '+OK', 'who may do this';
    like $said->('SET a b'), qr/^-NOPERM/, 'and not that';
    is $redis->cmd('GET', 'tls:a'), 'b', 'the fixture may do all';
    is $redis->calls('set'), 1, 'calls are counted';
    my ($client) = $redis->clients;
    is $client->{user}, 'nginx', 'the one client but ourselves';
    is $redis->info('maxmemory'), 3 << 20, 'INFO';
    $redis->restart(password => 'another');
    like eval { $redis->cmd('AUTH', 'secret') } // $@, qr/WRONGPASS/, 'another password after a restart';
};

subtest 'redis: a replica, an IPv6 address' => sub {
    my $master  = redis(password => 'secret');
    my $replica = redis(replicaof => $master, password => 'secret')->wait_replica;
    $master->cmd('SET', 'a', 'b');
    wait_until { $replica->cmd('GET', 'a') } 5, 'the entry';
    is $replica->cmd('GET', 'a'), 'b', 'follows its master';
    like eval { $replica->cmd('SET', 'a', 'c') } // $@, qr/READONLY/, 'read-only';
    my $six = redis(bind => '::1');
    like $six->url, qr{^redis://\[::1\]:\d+$}, 'IPv6';
    is $six->cmd('PING'), 'PONG', 'answers';
};

# What s_client thinks of the certificate on a port: the number of OpenSSL's first error.
sub verdict {
    my ($port, @args) = @_;
    my $client = s_client(port => $port, request => "PING\r\nQUIT\r\n",
        args => [ '-CAfile', $certs->{ca_crt}, qw(-verify_hostname backend.example), @args ]);
    return ($client->output =~ /^(?:verify error:num=| *Verify return code: )(\d+)/m)[0] // 'none';
}

subtest 'redis with TLS, and certificates of all kinds' => sub {
    my %wrong = (expired => 10, self => 18, other => 20, leaf => 20, wrong => 62, revoked => 23);
    my $redis = redis(port => 0, tls => 1);
    is $redis->cmd('PING'), 'PONG', 'no plain port, and it answers';
    is $redis->url, 'rediss://127.0.0.1:' . $redis->tls_port, 'URL';
    is verdict($redis->tls_port), 0, 'a good certificate';
    for my $name (qw(rsa chain deep)) {
        $redis->restart(tls => { cert => "backend_$name" });
        is verdict($redis->tls_port), 0, $name;
    }
    is verdict($redis->tls_port, qw(-verify_depth 1)), 22, 'a chain that is too long';
    for my $name (sort keys %wrong) {
        $redis->restart(tls => { cert => "backend_$name" });
        my @crl = $name eq 'revoked' ? (-CRL => $certs->{crl_pem}, '-crl_check_all') : ();
        is verdict($redis->tls_port, @crl), $wrong{$name}, $name;
    }

    $redis->restart(tls => { clients => 'yes', protocols => 'TLSv1.2', ciphers => 'ECDHE-ECDSA-AES256-GCM-SHA384' });
    my $ping = sub {
        s_client(port => $redis->tls_port, request => "PING\r\nQUIT\r\n", args => [@_])->output =~ /\+PONG/ ? 1 : 0;
    };
    my @key = (-key => $certs->{client_enc_key}, -pass => "file:$certs->{client_pass}");
    is $ping->(), 0, 'not without a certificate';
    is $ping->(-cert => $certs->{client_other_crt}, -key => $certs->{client_other_key}), 0, 'not with any';
    is $ping->(-cert => $certs->{client_crt}, @key), 1, 'but with ours, and its encrypted key';
    is $ping->(-cert => $certs->{client_crt}, @key, '-tls1_3'), 0, 'not with TLS 1.3';
    is $ping->(-cert => $certs->{client_crt}, @key, qw(-cipher ECDHE-ECDSA-AES128-GCM-SHA256)), 0, 'nor another cipher';
};

subtest 'memcached: requests, restart, pause' => sub {
    for my $where (qw(port unix)) {
        my $memcached = memcached(unix => $where eq 'unix', item_size => '2m');
        is $memcached->cmd('ms a 4 T60', "\0\r\n\xff"), 'HD', "$where: set";
        is $memcached->get('a'), "\0\r\n\xff", 'get';
        is $memcached->get('b'), undef, 'a miss';
        ok $memcached->ttl('a') > 50, 'ttl';
        is $memcached->raw("mg a t v\r\nnonsense\r\n"), "VA 4 t60\r\n\0\r\n\xff\r\nERROR\r\n", 'raw';
        is_deeply [ $memcached->keys ], ['a'], 'keys';
        ok $memcached->set(big => 'x' x 1_500_000), 'an item of more than 1 MB';
        ok !eval { $memcached->set(big => 'x' x 2_500_000) }, 'but not over the limit';
        is $memcached->stats('cmd_set'), 2, 'figures';
        $memcached->pause;
        $memcached->resume;
        $memcached->kill;
        ok !eval { $memcached->get('a'); 1 }, 'gone';
        $memcached->start;
        is_deeply [ $memcached->keys ], [], 'is there again, empty';
    }
};

subtest 'a Redis Cluster: slots on the move, failover' => sub {
    my $cluster = redis_cluster();
    is scalar($cluster->masters), 3, 'masters';
    is scalar($cluster->replicas), 3, 'replicas';
    my @keys = sort map { "k$_" } 1 .. 20;
    $cluster->cmd('SET', $_, "value of $_") for @keys;
    is_deeply [ $cluster->keys ], \@keys, 'keys, wherever they are';

    my $slot = $cluster->slot('k1');
    my $from = $cluster->node_of_key('k1');
    my ($to) = grep { $_ != $from } $cluster->masters;
    my $moved = "redis: MOVED $slot 127.0.0.1:";
    my $get   = sub { eval { $_[0]->cmd('GET', 'k1') } // $@ };
    like $get->($to), qr/^$moved${\ $from->port}\b/, 'MOVED';
    $cluster->open_slot($to, $slot);
    is $get->($from), 'value of k1', 'half-way: still there';
    $cluster->migrate($to, $slot);
    like $get->($from), qr/^redis: ASK $slot 127.0.0.1:${\ $to->port}\b/, 'then ASK';
    $cluster->close_slot($to, $slot);
    like $get->($from), qr/^$moved${\ $to->port}\b/, 'then MOVED';
    $cluster->move_slots($from, $slot)->wait_ok;
    is $get->($from), 'value of k1', 'and back';

    my ($replica) = $cluster->replicas($from);
    is $cluster->failover($from), $replica, 'an orderly failover, to the replica';
    is $cluster->node_of_key('k1'), $replica, 'which has the slot';
    $cluster->kill_master($replica);
    is $cluster->wait_failover($replica), $from, 'a death, and the other one takes over';
    is $cluster->cmd('GET', 'k1'), 'value of k1', 'with the data';
    $replica->start;
    $cluster->wait_ok;
    is $cluster->master_of($replica), $from, 'the dead one is back, as a replica';
};

subtest 'a Redis Cluster with TLS and a password' => sub {
    my $cluster = redis_cluster(masters => 2, replicas => 0, tls => 1, port => 0, password => 'secret');
    my ($from, $to) = ($cluster->node_of_key('k1'));
    ($to) = grep { $_ != $from } $cluster->nodes;
    $cluster->cmd(qw(SET k1 value));
    like eval { $to->cmd(qw(GET k1)) } // $@, qr/^redis: MOVED \d+ 127.0.0.1:${\ $from->tls_port}\b/, 'MOVED';
    $cluster->move_slots($to, $cluster->slot('k1'));
    is $cluster->wait_ok->node_of_key('k1'), $to, 'a slot moves';
    is $to->cmd(qw(GET k1)), 'value', 'with its key';
};

subtest 'sentinels follow the master' => sub {
    for my $count (1, 3) {
        my $fleet = redis_sentinel(sentinels => $count, $count == 3 ? (tls => 1, port => 0, password => 'secret') : ());
        my ($first, $second) = $fleet->nodes;
        is $fleet->master, $first, "$count: the first master";
        is_deeply [ $fleet->replicas ], [$second], 'its replica';
        if ($count == 1) {
            is $fleet->failover, $second, 'an orderly failover';
            $fleet->wait_ok;
            ($first, $second) = ($second, $first);
        }
        $first->cmd(qw(SET a b));
        is $first->cmd(qw(WAIT 1 5000)), 1, 'the replica has what is written';
        is $fleet->kill_master, $first, 'its death';
        is $fleet->wait_failover($first), $second, 'and the other one takes over';
        is $fleet->master_port, $second->replication_port, 'all say so';
        is $second->cmd(qw(GET a)), 'b', 'with the data';
        next if $count == 3;
        $first->start;
        $fleet->wait_ok;
        is $first->cmd('ROLE')->[0], 'slave', 'the dead one is back, as a replica';
    }
};

subtest 'relay: delays, holds, cuts, drops' => sub {
    my $redis = redis();
    my $relay = relay(upstream => $redis->unix);
    my $link  = sub { bless { port => $relay->port }, 'SSLSession::Redis' };
    my $redis_by_relay = $link->();
    is $redis_by_relay->cmd('PING'), 'PONG', 'passes on';

    $relay->delay(150);
    my $start = time;
    is $redis_by_relay->cmd('PING'), 'PONG', 'delayed';
    cmp_ok time - $start, '>=', 0.14, 'by that long';
    $relay->delay(0);

    $relay->hold;
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port);
    print {$sock} "*1\r\n\$4\r\nPING\r\n";
    wait_until { $relay->stats->{reply} == 7 } 5, 'held reply';
    $relay->release;
    is scalar(<$sock>), "+PONG\r\n", 'released';

    $relay->cut(3);
    print {$sock} "*1\r\n\$4\r\nPING\r\n";
    is do { local $/; <$sock> }, '+PO', 'closed in the middle of a reply';

    $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port);
    $relay->drop;
    print {$sock} "*1\r\n\$4\r\nPING\r\n*2\r\n\$3\r\nGET\r\n\$1\r\nx\r\n";
    wait_until { $relay->requests('GET') == 1 } 5, 'the request';
    is_deeply [ ($relay->requests)[-1] ], [ [ 'GET', 'x' ] ], 'requests are recorded';
    $relay->reset_all;
    is sysread($sock, my $none, 1), undef, 'reset';

    $relay->refuse;
    $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port);
    is sysread($sock, $none, 1), 0, 'closed at once';
};

# What comes until nothing more does: '(eof)' or '(reset)' at the end when it is one.
sub comes {
    my ($sock, $want) = @_;
    my $bytes = '';
    while (length $bytes < length $want && IO::Select->new($sock)->can_read(5)) {
        my $n = sysread $sock, $bytes, 1, length $bytes;
        return $bytes . ($n // '(reset)') =~ s/^0$/(eof)/r if !$n;
    }
    return $bytes;
}

subtest 'relay: faults of single replies' => sub {
    my $redis = redis();
    $redis->cmd('SET', $_, "value$_") for 1 .. 3;
    my $memcached = memcached();
    $memcached->set($_, "value$_") for 1 .. 3;
    for ([ $redis, "\$6\r\nvalue%s\r\n", map { "GET $_\r\n" } 1 .. 3 ],
        [ $memcached, "VA 6\r\nvalue%s\r\n", map { "mg $_ v\r\n" } 1 .. 3 ]) {
        my ($server, $reply, @asked) = @$_;
        my @replies = map { sprintf $reply, $_ } 1 .. 3;
        my $asked = join '', @asked;
        my $relay = relay(upstream => '127.0.0.1:' . $server->port);
        my $sock  = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port);
        my $is = sub {
            my ($what, @want) = @_;
            print {$sock} $asked;
            my $want = join '', @want;
            is comes($sock, $want), $want, ref($server) . ": $what";
        };
        my $flip = sub { $_[0] ^ "\xff" x length $_[0] };
        $is->('as they are', @replies);
        $relay->garble(2);
        $is->('one garbled', $replies[0], $flip->($replies[1]), $replies[2]);
        $relay->garble_value(2);
        $is->('a value garbled', $replies[0], $replies[1] =~ s/value2/$flip->('value2')/er, $replies[2]);
        $relay->duplicate;
        $is->('one twice', @replies[ 0, 0, 1, 2 ]);
        $relay->swap(2);
        $is->('two swapped', @replies[ 0, 2, 1 ]);
        $relay->lose(3);
        $is->('one lost', @replies[ 0, 1 ]);
        $relay->garble;
        $is->('all garbled', map { $flip->($_) } @replies);
        $relay->garble(0);
        $relay->drip;
        $is->('byte by byte', @replies);
    }
};

subtest 'relay: faults of connections' => sub {
    my $redis = redis();
    my $relay = relay(upstream => $redis->unix);
    my $link  = sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port, @_) };
    my $sock  = $link->();
    $relay->stall(3);
    print {$sock} "PING\r\n";
    is comes($sock, '+PO'), '+PO', 'three bytes';
    ok !IO::Select->new($sock)->can_read(0.1), 'then silence';
    $relay->stall(undef);
    my $other = $link->();
    print {$_} "PING\r\n" for $sock, $other;
    is comes($other, "+PONG\r\n"), "+PONG\r\n", 'later ones are served';
    ok !IO::Select->new($sock)->can_read(0), 'that one never again';
    $relay->reset_after(3);
    print {$other} "PING\r\n";
    is comes($other, '+PONG'), '+PO(reset)', 'a reset in the middle of a reply';
    $relay->mute;
    print {$sock = $link->()} "PING\r\n";
    ok !IO::Select->new($sock)->can_read(0.1), 'accepted, never answered';
    $relay->mute(0);
    my $accepted = $relay->stats->{accepted};
    $relay->deaf;
    my $waits = $link->(Blocking => 0);
    ok !IO::Select->new($waits)->can_write(0.1), 'not accepted';
    $relay->deaf(0);
    ok +IO::Select->new($waits)->can_write(5), 'accepted when the system tries again';
    wait_until { $relay->stats->{accepted} == $accepted + 1 } 5, 'the connection';
};

subtest 'relay: the requests of memcached' => sub {
    my $memcached = memcached(unix => 1);
    my $relay = relay(upstream => $memcached->unix);
    my $sock  = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $relay->port);
    print {$sock} "ms k 4 T60\r\na\r\nb\r\nmg k v";
    wait_until { $relay->requests('ms') } 5, 'the first request';
    print {$sock} "\r\nset k 0 0 1\r\nx\r\nmn\r\n";
    wait_until { $relay->requests('mn') } 5, 'the last one';
    is_deeply [ $relay->requests ], [
        [ qw(ms k 4 T60), "a\r\nb" ], [qw(mg k v)], [qw(set k 0 0 1 x)], ['mn'],
    ], 'each is one';
};

subtest 'a TLS relay tells what each handshake was' => sub {
    my $redis = redis();
    my $ping  = sub {
        my ($port, @args) = @_;
        s_client(port => $port, request => "PING\r\nQUIT\r\n", @args)->output =~ /\+PONG/ ? 1 : 0;
    };
    for my $protocol (qw(TLSv1.2 TLSv1.3)) {
        my $relay = tls_relay(upstream => $redis->unix, clients => 'optional',
            stateful => $protocol eq 'TLSv1.2');
        my $file = tmpdir() . "/relay-$protocol.pem";
        my %arg  = (protocol => $protocol, sni => 'backend.example');
        is $ping->($relay->port, %arg, sess_out => $file), 1, "$protocol: answers";
        is $ping->($relay->port, %arg, sess_in => $file), 1, 'again';
        $relay->restart;
        is $ping->($relay->port, protocol => $protocol, sess_in => $file,
            args => [ '-cert', $certs->{client_crt}, '-key', $certs->{client_key} ]), 1, 'after a restart';
        my @seen = $relay->wait_handshakes(3);
        is_deeply [ map { [ @$_{qw(offered reused protocol sni error)} ] } @seen ], [
            [ 0, 0, $protocol, 'backend.example', undef ], [ 1, 1, $protocol, 'backend.example', undef ],
            [ 1, 0, $protocol, undef, undef ],
        ], 'all of it was seen';
        is $seen[0]{client_cert}, undef, 'no certificate';
        is $seen[2]{client_cert}, '/CN=client', 'a certificate';
    }
    my $strict = tls_relay(upstream => $redis->unix, clients => 'yes', protocol => 'TLSv1.2');
    is $ping->($strict->port), 0, 'not without a certificate';
    like +($strict->wait_handshakes(1))[0]{error}, qr/peer did not return a certificate/, 'it says why';
};

subtest 's_server as a backend' => sub {
    my $server = s_server(sni => 'backend.example', protocol => 'TLSv1.2', args => ['-no_ticket']);
    my $file = tmpdir() . '/s_server.pem';
    for my $how (qw(out in)) {
        my $client = s_client_start(port => $server->port, sni => 'backend.example', "sess_$how" => $file,
            request => "PING $how\n");
        wait_until { $server->output =~ /^PING $how/m } 5, 'the request';
        $server->say("+PONG\r\n");
        wait_until { slurp($client->{out}) =~ /^\+PONG/m } 5, 'the reply';
        $server->hang_up;
        is $client->reused, $how eq 'in' ? 1 : 0, "session $how";
    }
    my $output = $server->output;
    is scalar(() = $output =~ /^Reused session-id/mg), 1, 'one session was reused';
    is scalar(() = $output =~ /^Hostname in TLS extension: "backend\.example"/mg), 2, 'SNI';
};

subtest 'a server with canned replies' => sub {
    my $count = 0;
    my $fake = fake_server(chunk => 1, canned => [
        "+one\r\n",
        sub { '+' . join(' ', ++$count, @_) . "\r\n" },
        { bytes => "\$5\r\nab", close => 1 },
    ]);
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $fake->port);
    print {$sock} "*1\r\n\$1\r\na\r\n*2\r\n\$1\r\nb\r\n\$1\r\nc\r\n";
    is scalar(<$sock>), "+one\r\n", 'first';
    is scalar(<$sock>), "+1 b c\r\n", 'computed';
    print {$sock} "*1\r\n\$1\r\nd\r\n";
    is do { local $/; <$sock> }, "\$5\r\nab", 'cut';
};

subtest 'a browser' => sub {
    plan skip_all => 'no Chromium' if !SSLSession::Browser::binary();
    my $page = browser(width => 400, height => 300);
    $page->open("http://127.0.0.1:$plain/");
    is $page->eval('document.body.innerText'), "plain\n", 'reads a page';
    is_deeply $page->eval('Promise.resolve([innerWidth, innerHeight])'), [ 400, 300 ], 'of its size';
    is_deeply [ $page->requests ], ["http://127.0.0.1:$plain/"], 'and tells what it has asked for';
    ok !eval { $page->eval('nonsense()'); 1 }, 'what is wrong';
    like $@, qr/ReferenceError/, 'it says';
    is_deeply [ $page->complaints ], [], 'nothing is wrong with the page';
    $page->eval('setTimeout(() => { throw new Error("thrown") }); console.error("said")');
    wait_until { (() = $page->complaints) == 2 } 5, 'complaints';
    like join(' ', sort $page->complaints), qr/^Error: thrown\n.* said$/s, 'both';
    like slurp($page->screenshot(tmpdir() . '/page.png')), qr/^\x89PNG\r\n/, 'a picture';
    is $page->close, 0, 'it ends';
    is_deeply [ $page->process->group ], [], 'with all its processes';
};

subtest 'graceful exit' => sub {
    $nginx->quit;
    ok !$nginx->process->alive, 'gone';
    is_deeply [ grep { !/SSL_do_handshake|nonsense/ } $nginx->errors ], [], 'in peace';
};

done_testing;
