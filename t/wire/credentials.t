# Credentials that change while nginx runs: new connections have them, without a reload.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use POSIX ();
use Test::More;

my $certs = certs();

# What must not be in any log.
my @secrets;

sub secret {
    my ($name) = @_;
    push @secrets, "$name-" . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
    return $secrets[-1];
}

# Puts a file in the place of another one, as programs do that write secrets.
sub put {
    my ($file, $text, $mode) = @_;
    spew("$file.new", $text);
    chmod $mode // 0600, "$file.new" or die $!;
    rename "$file.new", $file or die $!;
    return $file;
}

sub new_file { return put(new_dir('credentials') . '/file', @_) }

my (@edges, %port);

# An nginx whose sessions are in a backend of these lines; $more is for the nginx.
sub edge {
    my ($line, %more) = @_;
    my $port = free_port();
    my $wait = 2 * patience();
    my %line = (client_name => "edge-$port", connect_timeout => "${wait}s", fetch_timeout => "${wait}s", %$line);
    my $block = join ' ', map { my $name = $_; map { "$name $_;" } ref $line{$_} ? @{ $line{$_} } : $line{$_} } sort keys %line;
    my $edge = nginx(%more, conf => <<"CONF");
    ssl_session_backend store { $block }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
    $port{$edge} = $port;
    push @edges, $edge;
    return $edge;
}

# One connection and one request.
sub visit {
    my ($edge, $session) = @_;
    my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $session);
    my $status = $client->request // die 'no answer: ' . $client->error;
    return { status => $status, session => $client->session };
}

sub status { return visit(@_)->{status} }

# Waits until sessions are stored and found. What the first session was.
sub resumes {
    my ($edge, $what) = @_;
    my $session;
    my $hit = eval {
        wait_until { $session = visit($edge)->{session}; status($edge, $session) eq 'HIT' } 10, 'a hit';
    };
    is $hit, 1, $what;
    return $session;
}

# Lines of [warn] and above about files.
sub lines {
    my ($edge, $pattern, %arg) = @_;
    return grep { /\[(?:warn|error|crit|alert|emerg)\]/ && /$pattern/ } split /\n/, substr $edge->log, $arg{from} // 0;
}

my $first = secret('first');
my $redis = redis(password => $first);
my %at    = (server => '127.0.0.1:' . $redis->port);

# Ends the connections of an nginx, of its name or another one, and waits until it knows. How many
# there were.
sub cut {
    my ($edge, $server, $name) = @_;
    $server //= $redis;
    $name   //= "edge-$port{$edge}";
    my @ours = map { $_->{id} } grep { $_->{name} eq $name } $server->clients;
    my $fds = $edge->fds;
    $server->cmd(qw(CLIENT KILL ID), $_) for @ours;
    wait_until { $edge->fds <= $fds - @ours } 5, 'nginx to close its side';
    return scalar @ours;
}

subtest 'a password that changes on the server and in the file' => sub {
    my ($old, $new) = ($first, secret('second'));
    my $file = new_file("$old\n");
    my $edge = edge({ %at, password_file => $file });
    my $session = resumes($edge, 'the first one');
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    put($file, "$new\n");
    is status($edge, $session), 'HIT', 'connections that are there go on';
    is cut($edge), 2, 'they end';
    is status($edge, $session), 'HIT', 'the first lookup on a new one is a hit';
    is_deeply [ lines($edge, 'is down|refused') ], [], 'nothing was refused';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

subtest 'a file that changes after the connection was begun' => sub {
    my ($old, $new) = ($first, secret('late'));
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $file  = new_file("$old\n");
    my $edge  = edge({ server => '127.0.0.1:' . $relay->port, password_file => $file });
    my $session = resumes($edge, 'a session');
    my $seen = $relay->stats->{accepted};
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    # The greeting is sent with the old password, and its answer comes when the file has the new one.
    cut($edge);
    $relay->hold;
    my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $session)->start;
    wait_until { $relay->stats->{reply} } 5, 'the refusal';
    put($file, "$new\n");
    $relay->release;
    is $client->request, 'HIT', 'the lookup that met the refusal is a hit';
    is $relay->stats->{accepted}, $seen + 2, 'on a second connection';

    # The same for what is stored.
    $redis->cmd(qw(CONFIG SET requirepass), my $newer = secret('later'));
    cut($edge);
    $relay->hold;
    my $stored = visit($edge)->{session};
    wait_until { $relay->stats->{reply} } 5, 'the refusal';
    put($file, "$newer\n");
    $relay->release;
    is eval { wait_until { $redis->cmd('EXISTS', cache_key($stored)) } 5, 'EXISTS' }, 1,
        'a session that met the refusal is stored';
    is_deeply [ lines($edge, 'is down|refused') ], [], 'nothing is logged';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

subtest 'the password changes on the server first' => sub {
    my ($old, $new) = ($first, secret('outage'));
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $file  = new_file("$old\n");
    my $edge  = edge({ server => '127.0.0.1:' . $relay->port, password_file => $file });
    my $session = resumes($edge, 'a session');
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    cut($edge);
    my $seen = $relay->stats->{accepted};
    is status($edge, $session), 'ERROR', 'the server refuses what the file has';
    is status($edge, $session), 'DOWN', 'and is down';
    # One, and a probe where this machine is slow.
    cmp_ok $relay->stats->{accepted}, '<=', $seen + 2, 'the file has nothing else to try: no connection is made for it';
    put($file, "$new\n");
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
    like eval { $edge->log_like(qr/is up again/) }, qr/is up again/, 'a probe has the new one';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

subtest 'a file that is written to, as fast as the clock of its times allows' => sub {
    # Same size, and the same time as far as the file system has it.
    my ($old, $new) = ($first, 'other' . substr $first, 5);
    push @secrets, $new;
    my $file = new_file("$old\n");
    my $edge = edge({ %at, password_file => $file });
    my $session = resumes($edge, 'a session');
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    my @times = (stat $file)[ 8, 9 ];
    open my $fh, '+<', $file or die $!;
    print {$fh} $new;
    close $fh or die $!;
    utime @times, $file or die $!;
    cut($edge);
    is status($edge, $session), 'HIT', 'the first lookup is a hit';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

subtest "a link is moved, as Kubernetes does" => sub {
    my ($old, $new) = ($first, secret('linked'));
    my $dir = new_dir('secrets');
    for ([ one => $old ], [ two => $new ]) {
        mkdir "$dir/$_->[0]" or die $!;
        put("$dir/$_->[0]/password", $_->[1]);
    }
    symlink 'one', "$dir/..data" or die $!;
    symlink '..data/password', "$dir/password" or die $!;
    my $edge = edge({ %at, password_file => "$dir/password" });
    my $session = resumes($edge, 'a session');
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    symlink 'two', "$dir/..data.new" or die $!;
    rename "$dir/..data.new", "$dir/..data" or die $!;
    cut($edge);
    is status($edge, $session), 'HIT', 'the first lookup is a hit';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

subtest 'Sentinels' => sub {
    my ($old, $new) = (secret('watched'), secret('watched2'));
    my $fleet = redis_sentinel(sentinels => 1, replicas => 0, sentinel => { password => $old });
    my ($sentinel) = $fleet->sentinels;
    my $file = new_file($old);
    my $edge = edge({ server => $sentinel->address, sentinel => 'fleet', sentinel_password_file => $file });
    my $session = resumes($edge, 'a session');
    $sentinel->cmd(qw(ACL SETUSER default resetpass), ">$new");
    put($file, $new);
    is cut($edge, $sentinel, ''), 1, 'the link to the Sentinel ends';
    my $ours = sub { grep { $_->{name} eq '' && $_->{user} eq 'default' } $sentinel->clients };
    # It is asked once a second.
    ok eval { wait_until { status($edge, $session) eq 'HIT' or die; $ours->() } 10, 'the link' }, 'there is another one';
    is_deeply [ lines($edge, 'is down|refused') ], [], 'nothing was refused';
};

subtest 'an ACL user' => sub {
    my ($old, $new) = (secret('user'), secret('user2'));
    $redis->cmd(qw(ACL SETUSER nginx on), ">$old", qw(~tls:* +get +set +del +ping +client|setname));
    my $file = new_file("$old\n");
    my $edge = edge({ %at, username => 'nginx', password_file => $file });
    my $session = resumes($edge, 'a session');
    $redis->cmd(qw(ACL SETUSER nginx resetpass), ">$new");
    put($file, "$new\n");
    cut($edge);
    is status($edge, $session), 'HIT', 'the first lookup is a hit';
};

subtest 'what cannot be used is said, and the last password is' => sub {
    my $file = new_file("$first\n");
    my $edge = edge({ %at, password_file => $file });
    my $session = resumes($edge, 'a session');
    my $is_said = sub {
        my ($what, $text, $change) = @_;
        my $from = $edge->log_pos;
        $change->();
        for (1 .. 2) {
            cut($edge);
            is status($edge, $session), 'HIT', "$what: the last password is used";
        }
        my @lines = lines($edge, 'what was read before', from => $from);
        is scalar @lines, 1, "$what: one line";
        like $lines[0], qr/\[error\] .*redis 127\.0\.0\.1:\d+: $text, what was read before is used \(1 times\), backend: "store"$/,
            "$what: what it says";
        # The log has one line a second.
        select undef, undef, undef, 1.1;
    };
    my $quoted = quotemeta $file;
    $is_said->('empty', qq("$quoted" is empty), sub { put($file, "\n") });
    $is_said->('too long', qq("$quoted" is longer than 4096 bytes), sub { put($file, 'x' x 4097) });
    $is_said->('two lines', qq("$quoted" has a line end or a null byte in it), sub { put($file, "a\nb\n") });
    $is_said->('null', qq("$quoted" has a line end or a null byte in it), sub { put($file, "a\0b") });
    $is_said->('a pipe', qq("$quoted" is no regular file),
        sub { unlink $file; POSIX::mkfifo($file, 0600) or die $! });
    $is_said->('gone', qr/stat\(\) "$quoted" failed \(2: No such file or directory\)/, sub { unlink $file });
    $is_said->('a directory', qq("$quoted" is no regular file), sub { mkdir $file or die $! });
    rmdir $file or die $!;
    my $new = secret('mended');
    put($file, $new);
    $redis->cmd(qw(CONFIG SET requirepass), $new);
    cut($edge);
    is status($edge, $session), 'HIT', 'a good one is used again';
    $redis->cmd(qw(CONFIG SET requirepass), $first);
};

SKIP: {
    skip 'only root has workers with fewer rights', 1 if $>;
    subtest 'a file that the workers cannot read' => sub {
        my $file = new_file("$first\n");
        my $edge = edge({ %at, password_file => $file }, user => 'nobody nogroup', workers => 2);
        my $session = resumes($edge, 'the password that the master has read');
        my @lines = lines($edge, 'cannot be read');
        is scalar @lines, 1, 'one line, of one worker';
        like $lines[0], qr/\[warn\] .*"\Q$file\E" of "password_file" cannot be read by user "nobody" \(13: Permission denied\)/,
            'what it says';
        my $new = secret('unread');
        put($file, $new);
        my $from = $edge->log_pos;
        cut($edge);
        is status($edge, $session), 'HIT', 'the last password goes on';
        $redis->cmd(qw(CONFIG SET requirepass), $new);
        $edge->reload;
        is status($edge, $session), 'HIT', 'until a reload';
        $redis->cmd(qw(CONFIG SET requirepass), $first);
    };
}

# --- TLS ---

# Copies of the certificate and the key of a name, where they can be replaced.
sub pair_files {
    my ($name) = @_;
    my $dir = new_dir('pair');
    return { map { $_ => put("$dir/file.$_", slurp($certs->{"${name}_$_"})) } qw(crt key) };
}

sub tls_edge {
    my ($server, $pair, %more) = @_;
    return edge({ server => $server, ssl => 'on', ssl_trusted_certificate => $certs->{ca_crt},
        $pair ? (ssl_certificate => $pair->{crt}, ssl_certificate_key => $pair->{key}) : (), %more });
}

my $open = redis();

for my $protocol (qw(TLSv1.2 TLSv1.3)) {
    subtest "$protocol: a certificate and its key" => sub {
        my $tls  = tls_relay(upstream => $open->address, clients => 'yes', protocol => $protocol);
        my $pair = pair_files('client');
        my $edge = tls_edge($tls->address, $pair);
        my $session = resumes($edge, 'a session');
        # Those of the next connection for lookups.
        my $next = sub {
            my $before = $tls->handshakes;
            cut($edge, $open);
            is status($edge, $session), 'HIT', 'a hit';
            my ($handshake) = @{ [ $tls->wait_handshakes($before + 1) ] }[$before];
            return $handshake;
        };
        is $next->()->{reused}, 1, 'a new connection has the session of the last one';
        is $next->()->{client_cert}, '/CN=client', 'and the certificate';

        # Of another type of key, of the same, and with an intermediate.
        for ([ backend_rsa => 'backend' ], [ client_big => 'big client' ], [ backend_chain => 'backend' ], [ client => 'client' ]) {
            my ($name, $subject) = @$_;
            my $from = $edge->log_pos;
            put($pair->{$_}, slurp($certs->{"${name}_$_"})) for qw(crt key);
            my $handshake = $next->();
            is $handshake->{client_cert}, "/CN=$subject", "$name is shown";
            is $handshake->{offered}, 0, 'and no session, which was made with the other';
            is $next->()->{reused}, 1, 'the next connection offers one of it';
            is_deeply [ lines($edge, '.', from => $from) ], [], 'nothing is logged';
        }
    };
}

subtest 'a certificate and a key that are replaced one after the other' => sub {
    my $tls  = tls_relay(upstream => $open->address, clients => 'yes');
    my $pair = pair_files('client');
    my $edge = tls_edge($tls->address, $pair, ssl_session_reuse => 'off');
    my $session = resumes($edge, 'a session');
    my $shown = sub {
        my $before = $tls->handshakes;
        cut($edge, $open);
        is status($edge, $session), 'HIT', 'a hit';
        return @{ [ $tls->wait_handshakes($before + 1) ] }[$before]->{client_cert};
    };
    my %not = (key => 'the key of "ssl_certificate"', crt => 'a certificate in PEM');
    for ([ client_big => qw(crt key) ], [ client => qw(key crt) ], [ backend_rsa => qw(crt key) ], [ client => qw(crt key) ]) {
        my ($name, $first, $last) = @$_;
        my $before = $shown->();
        my $from = $edge->log_pos;
        put($pair->{$first}, slurp($certs->{"${name}_$first"}));
        is $shown->(), $before, "$name: the old pair with a new $first";
        is $shown->(), $before, 'again';
        my @lines = lines($edge, '.', from => $from);
        is scalar @lines, 1, 'one line';
        like $lines[0], qr/\[error\] .*redis \S+: "\Q$pair->{key}\E" is not $not{key}, what was read before is used/, 'of the key';
        put($pair->{$last}, slurp($certs->{"${name}_$last"}));
        isnt $shown->(), $before, "the new pair with a new $last";
        select undef, undef, undef, 1.1;
    }
    for my $which (qw(crt key)) {
        my $from = $edge->log_pos;
        put($pair->{$which}, "nonsense\n");
        is $shown->(), '/CN=client', "$which is nonsense: the pair that was read before";
        my @lines = lines($edge, '.', from => $from);
        is scalar @lines, 1, 'one line';
        my $not = $which eq 'crt' ? 'a certificate in PEM' : 'a key in PEM that "ssl_password_file" opens';
        like $lines[0], qr/\[error\] .*redis \S+: "\Q$pair->{$which}\E" is not \Q$not\E, what was/, 'of it';
        put($pair->{$which}, slurp($certs->{"client_$which"}));
        select undef, undef, undef, 1.1;
    }
    my $from = $edge->log_pos;
    put($pair->{crt}, slurp($certs->{client_crt}) . substr slurp($certs->{sub_crt}), 0, 200);
    is $shown->(), '/CN=client', 'half a chain: the pair that was read before';
    is scalar(lines($edge, 'is not a certificate in PEM', from => $from)), 1, 'one line';
};

subtest 'an encrypted key' => sub {
    my $tls  = tls_relay(upstream => $open->address, clients => 'yes');
    my $pair = pair_files('client');
    put($pair->{key}, slurp($certs->{client_enc_key}));
    my $edge = tls_edge($tls->address, $pair, ssl_password_file => $certs->{client_pass});
    my $session = resumes($edge, 'a session');
    for my $name (qw(client_big client)) {
        put($pair->{crt}, slurp($certs->{"${name}_crt"}));
        my $key = `openssl pkey -in $certs->{"${name}_key"} -aes256 -passout file:$certs->{client_pass}`;
        like $key, qr/ENCRYPTED/, 'a key';
        put($pair->{key}, $key);
        my $before = $tls->handshakes;
        cut($edge, $open);
        is status($edge, $session), 'HIT', 'a hit';
        is @{ [ $tls->wait_handshakes($before + 1) ] }[$before]->{client_cert},
            $name eq 'client' ? '/CN=client' : '/CN=big client', "$name is shown";
    }
};

subtest 'a redis-server that trusts another CA from now on' => sub {
    my $server = redis(tls => { clients => 'yes' });
    my $pair   = pair_files('client');
    my $edge   = tls_edge('127.0.0.1:' . $server->tls_port, $pair);
    my $session = resumes($edge, 'a session');
    $server->cmd(qw(CONFIG SET tls-ca-cert-file), $certs->{other_ca_crt});
    put($pair->{$_}, slurp($certs->{"client_other_$_"})) for qw(crt key);
    is status($edge, $session), 'HIT', 'connections that are there go on';
    cut($edge, $server);
    is status($edge, $session), 'HIT', 'the first lookup on a new one is a hit';
    is_deeply [ lines($edge, '.') ], [], 'nothing is logged';
};

subtest 'the CA of the server, and a revocation list' => sub {
    my $dir = new_dir('trust');
    my ($ca, $crl) = (put("$dir/ca", slurp($certs->{ca_crt})), put("$dir/crl", slurp($certs->{crl_pem})));
    my $tls  = tls_relay(upstream => $open->address);
    my $edge = tls_edge($tls->address, undef, ssl_trusted_certificate => $ca, ssl_crl => $crl);
    my $session = resumes($edge, 'a session');
    my $now = sub { cut($edge, $open); return status($edge, $session) };
    is $now->(), 'HIT', 'a new connection';
    put($ca, slurp($certs->{other_ca_crt}));
    isnt $now->(), 'HIT', 'another CA: the certificate is refused, although there is a session of the server';
    like eval { $edge->log_like(qr/certificate verify error/) }, qr/is down: SSL handshake failed/, 'the log says why';
    put($ca, slurp($certs->{ca_bundle_crt}));
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit with both';
    put($crl, slurp($certs->{sub_crl}));
    isnt $now->(), 'HIT', 'without the list of its CA';
    put($crl, slurp($certs->{crl_pem}));
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit with it';

    my $from = $edge->log_pos;
    put($ca, 'nonsense');
    is $now->(), 'HIT', 'what was read before is used';
    my @lines = lines($edge, 'what was read before', from => $from);
    is scalar @lines, 1, 'one line';
    like $lines[0], qr/\[error\] .*"\Q$ca\E" is not a certificate in PEM/, 'of the file';
};

subtest 'no password in a log' => sub {
    for my $edge (@edges) {
        my $dir  = $edge->dir;
        my $text = join '', map { slurp($_) } glob "$dir/*.log $dir/output";
        my @found = grep { index($text, $_) >= 0 } @secrets;
        is_deeply \@found, [], "of $dir";
        is $edge->log_count(qr/\[(?:emerg|alert|crit)\]/), 0, 'and nothing worse than errors';
    }
};

done_testing;
