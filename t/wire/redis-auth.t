# Redis servers that want to know who is there: what a connection begins with, and what becomes of
# one that is refused.
#
# The ACL of a user for nginx; without one of these something is refused:
#     ~tls:* +get +set +del
# and besides
#     +ping             so that ACL LOG has no entries for the probes of a server that was down
#     +select           with a database other than 0
#     +getdel           with single_use (which needs +get for TLS 1.2 only)
#     +client|setname   with client_name; without it the connection has no name, and works

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;
use Time::HiRes qw(time);

my $certs = certs();

# What must not be in any log.
my @secrets;

sub secret {
    my ($name) = @_;
    push @secrets, "$name-" . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
    return $secrets[-1];
}

sub password_file {
    my ($password, $file) = @_;
    $file //= new_dir('password') . '/file';
    spew($file, "$password\n");
    chmod 0600, $file;
    return $file;
}

my (@edges, %port);

# What an nginx says in http{} whose sessions are in $target; with more, that is a backend.
sub conf {
    my ($port, $target, %line) = @_;
    my $wait  = 2 * patience();
    my $fetch = delete $line{fetch} // '';
    %line = (connect_timeout => "${wait}s", fetch_timeout => "${wait}s", %line) if %line;
    my $block = %line ? "ssl_session_backend $target { @{[ map { qq($_ $line{$_};) } sort keys %line ]} }" : '';
    return <<"CONF";
    $block
    ssl_session_fetch   $target $fetch;
    ssl_session_store   $target;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
}

sub edge {
    my $port = free_port();
    push @edges, nginx(conf => conf($port, @_));
    $port{ $edges[-1] } = $port;
    return $edges[-1];
}

# One connection and one request.
sub visit {
    my ($edge, $session, %arg) = @_;
    my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2', session => $session, %arg);
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, and yet reused" if $status ne 'HIT' && $client->reused;
    return { status => $status, session => $client->session };
}

sub status { return visit(@_)->{status} }

# Waits until sessions are stored and found. What the first session was.
sub resumes {
    my ($edge, $what, %arg) = @_;
    my $session;
    my $hit = eval {
        wait_until { $session = visit($edge, undef, %arg)->{session}; status($edge, $session, %arg) eq 'HIT' } 10, 'a hit';
    };
    is $hit, 1, $what;
    return $session;
}

sub logged {
    my ($edge, $pattern, @more) = @_;
    my $what = @more % 2 ? shift @more : "it is logged";
    like eval { $edge->log_like($pattern, @more) }, $pattern, $what;
}

# Lines of [error] and above without their heads, from a position on.
sub said {
    my ($edge, $from) = @_;
    return [ map { s/.*?\] \d+#\d+: (?:\*\d+ )?//r =~ s/127\.0\.0\.1:\d+/STORE/r =~ s/$doing$//r } $edge->errors(from => $from) ];
}

my $wrongpass = qr/is down: server refused: "WRONGPASS invalid username-password pair or user is disabled\."$doing$/;

my $plain = secret('plain');
my $redis = redis(conf => ['databases 16'], users => { nginx => '>' . secret('acl') . ' ~tls:* +get +set +del +ping' });
my $acl   = $secrets[-1];
my $at    = 'server 127.0.0.1:' . $redis->port;
my %at    = (server => '127.0.0.1:' . $redis->port);
$redis->cmd(qw(CONFIG SET requirepass), $plain);

subtest 'a password, from a file and in a URL' => sub {
    # What has to be encoded in a URL, and what a line of a file may hold.
    my $odd = secret('odd') . " :/@%41?#\"'\\\xc3\xa9";
    $redis->cmd(qw(ACL SETUSER default), ">$odd");
    my $encoded = $odd =~ s/([^A-Za-z0-9])/sprintf '%%%02X', ord $1/ger;
    push @secrets, $odd, $encoded;
    resumes(edge(store => (%at, password_file => password_file($odd))), 'by file');
    resumes(edge("redis://:$encoded\@127.0.0.1:" . $redis->port), 'by URL');
    $redis->cmd(qw(ACL SETUSER default), "<$odd");
    
};

subtest 'an ACL user with the commands that are needed, and no others' => sub {
    $redis->cmd(qw(ACL LOG RESET));
    my $edge = edge(store => (%at, username => 'nginx', password_file => password_file($acl)));
    my $all  = sub {
        my $session = resumes($edge, 'a store and a hit');
        $redis->cmd('SET', cache_key($session), 'corrupt');
        is status($edge, $session), 'CORRUPT', 'a lookup';
        wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'DEL';
        is status($edge, $session), 'MISS', 'and a removal';
    };
    $all->();
    is_deeply $redis->cmd(qw(ACL LOG)), [], 'nothing was refused';
    is_deeply [ grep { $_ ne 'default' } map { $_->{user} } $redis->clients ], [ ('nginx') x 2 ],
        'the connections are that user\'s';

    resumes(edge('redis://nginx:' . $acl . '@127.0.0.1:' . $redis->port), 'a URL with a user');

    my $refused = sub { map { my %entry = @$_; $entry{object} } @{ $redis->cmd(qw(ACL LOG)) } };
    for my $command (qw(get set del)) {
        $redis->cmd(qw(ACL LOG RESET));
        $redis->cmd(qw(ACL SETUSER nginx), "-$command");
        my $session = visit($edge)->{session};
        if ($command eq 'del') {
            # What nginx stores comes first; then there is something to be removed.
            wait_until { $redis->cmd('EXISTS', cache_key($session)) } 5, 'the session in the store';
            $redis->cmd('SET', cache_key($session), 'corrupt');
        }
        status($edge, $session);
        wait_until { $refused->() } 5, 'ACL LOG';
        is_deeply [ $refused->() ], [$command], "without +$command there is something refused";
        $redis->cmd(qw(ACL SETUSER nginx), "+$command");
    }

    # A server that was down is asked whether it works.
    $redis->kill;
    wait_until { status($edge, visit($edge)->{session}) eq 'DOWN' } 5, 'DOWN';
    $redis->start(users => { nginx => ">$acl ~tls:* +get +set +del" });
    my $from = $edge->log_pos;
    resumes($edge, 'it comes back, even without +ping');
    is_deeply [ $refused->() ], ['ping'], 'which is refused';
    logged($edge, qr/is up again/, from => $from);
    $redis->cmd(qw(ACL SETUSER nginx), '+ping');
    $redis->cmd(qw(ACL LOG RESET));
    $all->();
    is_deeply $redis->cmd(qw(ACL LOG)), [], 'otherwise nothing is';
    $redis->cmd(qw(CONFIG SET requirepass), $plain);
};

subtest 'single_use needs +getdel' => sub {
    $redis->cmd(qw(ACL SETUSER taker on), '>' . secret('taker'), qw(~tls:* +set +del +ping));
    my $edge = edge(store => (%at, username => 'taker', password_file => password_file($secrets[-1]),
        fetch => 'single_use'));
    my $from = $edge->log_pos;
    my @tls13 = (protocol => 'TLSv1.3');
    is status($edge, visit($edge, undef, @tls13)->{session}, @tls13), 'ERROR', 'refused';
    logged($edge, qr/refused 1 requests, the last with "NOPERM .*'getdel'/, from => $from);
    $redis->cmd(qw(ACL SETUSER taker +getdel));
    my $session = resumes($edge, 'taken', @tls13);
    is status($edge, $session, @tls13), 'MISS', 'once';
};

subtest 'a wrong password: refused, then down, with pauses, until the server has it' => sub {
    my $later = secret('later');
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $edge  = edge(store => (server => '127.0.0.1:' . $relay->port, password_file => password_file($later)));
    my $start   = time;
    my $session = visit($edge)->{session};
    logged($edge, $wrongpass, "the log has the server's words");
    is status($edge, $session), 'DOWN', 'not asked';
    wait_until { visit($edge, $session); $relay->stats->{accepted} >= 6 } 20, 'six connections';
    # Five pauses, of 1.5 s on average: of each chance takes off any part.
    cmp_ok time - $start, '>', 0.15, 'they have pauses between them';
    is_deeply [ map { $_->[0] } $relay->requests('SET'), $relay->requests('GET') ], [], 'no session is sent';
    is_deeply said($edge),
        ['redis STORE is down: server refused: "WRONGPASS invalid username-password pair or user is disabled."'],
        'the log says it once';

    $redis->cmd(qw(ACL SETUSER default), ">$later");
    resumes($edge, 'no reload is needed when the server has changed its mind');
    is $edge->log_count(qr/is up again/), 1, 'the log says so';
    $redis->cmd(qw(ACL SETUSER default), "<$later");
};

subtest 'a lookup that meets the refusal is an ERROR' => sub {
    my $edge    = edge(store => (%at, password_file => password_file(secret('bad'))));
    my $good    = edge(store => (%at, password_file => password_file($plain)));
    my $session = resumes($good, 'there is a session');
    is status($edge, $session), 'ERROR', 'of the server';
    is status($edge, $session), 'DOWN', 'of which the next one knows';
    $edge = edge(store => (%at, username => 'nobody', password_file => password_file($plain)));
    is status($edge, $session), 'ERROR', 'a user that is not there';
    logged($edge, $wrongpass, "the log has the server's words");
};

subtest 'a server that needs a password, and none is given' => sub {
    my $edge    = edge(store => %at);
    my $session = visit($edge)->{session};
    my $noauth  = qr/\[error\].* refused 1 requests, the last with "NOAUTH Authentication required\."$doing$/;
    logged($edge, $noauth, "the log has the server's words");
    is status($edge, $session), 'ERROR', 'the outcome';
    is $edge->log_count(qr/is down/), 0, 'each request is refused; the server is not down';
    $redis->cmd(qw(ACL SETUSER default nopass));
    $session = resumes($edge, 'when none is needed any more it is good');
    $redis->cmd(qw(ACL SETUSER default resetpass), ">$plain");
};

subtest 'a password for a server that has none' => sub {
    my $open = redis();
    my $edge = edge(store => (server => '127.0.0.1:' . $open->port,
        password_file => password_file(secret('needless'))));
    visit($edge);
    logged($edge, qr/is down: server refused: "ERR AUTH <password> called without any password configured/);
};

subtest 'a server that repeats what it does not understand' => sub {
    my $old  = redis(conf => ['rename-command AUTH ""']);
    my $edge = edge(store => (server => '127.0.0.1:' . $old->port, username => 'nginx',
        password_file => password_file(secret('repeated'))));
    visit($edge);
    logged($edge, qr/is down: server refused: "/);
    is index($edge->log, $secrets[-1]), -1, 'the password is not in the log';
};

subtest 'a password that changes on the server, then in the file' => sub {
    my ($first, $second) = (secret('first'), secret('second'));
    my $file = password_file($first);
    $redis->cmd(qw(ACL SETUSER changing on), ">$first", qw(~tls:* +get +set +del +ping));
    my $edge = edge(store => (%at, username => 'changing', password_file => $file));
    my $session = resumes($edge, 'the first one');
    $redis->cmd(qw(ACL SETUSER changing resetpass), ">$second");
    is status($edge, $session), 'HIT', 'a connection that is there goes on';
    $redis->cmd(qw(CLIENT KILL USER changing));
    wait_until { status($edge, $session) ne 'HIT' } 5, 'the refusal';
    logged($edge, $wrongpass, "the log has the server's words");
    password_file($second, $file);
    $edge->reload;
    is status($edge, $session), 'HIT', 'after a reload the first lookup is a hit';
    is $edge->log_count(qr/is up again/), 0, 'as nothing was down';
};

subtest 'who, by what name, where: in this order, and nothing before the answer' => sub {
    my $password = secret('order');
    $redis->cmd(qw(ACL SETUSER ordered on), ">$password", qw(~tls:* +get +set +del +ping +select +client|setname));
    for my $way (qw(block URL)) {
        my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
        my $addr  = '127.0.0.1:' . $relay->port;
        my @name  = $way eq 'block' ? [qw(CLIENT SETNAME edge-1)] : ();
        my $edge  = $way eq 'URL' ? edge("redis://ordered:$password\@$addr/5") : edge(store => (server => $addr,
            username => 'ordered', password_file => password_file($password), database => 5, client_name => 'edge-1'));
        my @greeting = ([ 'AUTH', 'ordered', $password ], @name, [qw(SELECT 5)]);
        if ($way eq 'block') {
            $relay->hold;
            my $client = tls_client(port => $port{$edge}, protocol => 'TLSv1.2');
            defined $client->request or die $client->error;
            wait_until { $relay->stats->{reply} >= 15 } 5, 'three answers';
            is_deeply [ $relay->requests ], \@greeting, "$way: the greeting, and no session";
            $relay->release;
            wait_until { $relay->requests('SET') } 5, 'SET';
        }
        my $session = resumes($edge, "$way: a hit");
        my @all = $relay->requests;
        is_deeply [ @all[ 0 .. $#greeting ] ], \@greeting, "$way: the connection begins with it";
        is_deeply [ map { [ @$_{qw(user name db)} ] } grep { $_->{user} eq 'ordered' } $redis->clients ],
            [ ([ 'ordered', @name ? 'edge-1' : '', 5 ]) x 2 ], "$way: CLIENT LIST";
        $redis->cmd(qw(SELECT 5));
        is $redis->cmd('EXISTS', cache_key($session)), 1, "$way: the session is in that database";
        $redis->cmd(qw(SELECT 0));
        is $redis->cmd('EXISTS', cache_key($session)), 0, "$way: and in no other";

        # Then the same with a server that was down.
        $relay->refuse;
        $relay->close_all;
        wait_until { status($edge, $session) eq 'DOWN' } 5, 'DOWN';
        my $seen = $relay->requests;
        $relay->refuse(0);
        wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
        @all = $relay->requests;
        is_deeply [ @all[ $seen .. $seen + @greeting ] ], [ @greeting, ['PING'] ], "$way: a probe ends with PING";
    }
};

subtest 'a name that is not allowed does no harm' => sub {
    $redis->cmd(qw(ACL SETUSER nameless on), '>' . secret('nameless'), qw(~tls:* +get +set +del +ping));
    my $edge = edge(store => (%at, username => 'nameless', password_file => password_file($secrets[-1]),
        client_name => 'edge'));
    resumes($edge, 'a hit');
    is_deeply [ map { $_->{name} } grep { $_->{user} eq 'nameless' } $redis->clients ], [ ('') x 2 ], 'it has no name';
    is_deeply said($edge), [], 'and the log no error';
};

subtest 'a database that is not there, or not allowed' => sub {
    my $file = password_file($plain);
    my $edge = edge(store => (%at, password_file => $file, database => 16));
    visit($edge);
    logged($edge, qr/is down: server refused: "ERR DB index is out of range"$doing$/);
    $edge = edge(store => (%at, username => 'nginx', password_file => password_file($acl), database => 1));
    visit($edge);
    logged($edge, qr/is down: server refused: "NOPERM .*'select'/);
    is $redis->cmd('DBSIZE'), scalar($redis->keys('tls:*')), 'nothing lands elsewhere';
};

subtest 'a greeting that is never answered' => sub {
    my $relay = relay(upstream => '127.0.0.1:' . $redis->port);
    my $ms    = 150 * patience();
    my $edge  = edge(store => (server => '127.0.0.1:' . $relay->port, password_file => password_file($plain),
        connect_timeout => "${ms}ms", fetch_timeout => "${ms}ms"));
    my $good  = edge(store => (%at, password_file => password_file($plain)));
    my $session = resumes($good, 'there is a session');
    $relay->drop;
    is status($edge, $session), 'TIMEOUT', 'a lookup waits for its own time';
    logged($edge, qr/is down: no answer within \d+ ms$doing$/);
    is status($edge, $session), 'DOWN', 'the next one not at all';
    is scalar(grep { $_->[0] =~ /ET$/ } $relay->requests), 0, 'no session was sent';
    $relay->drop(0);
    wait_until { status($edge, $session) eq 'HIT' } 10, 'a hit';
    is scalar(@{ said($edge) }), 1, 'one line in the log';
};

subtest 'a server that was started anew is greeted anew' => sub {
    my $password = secret('restart');
    my $server = redis(users => { again => ">$password ~tls:* +get +set +del +ping +select" }, conf => ['user default off']);
    my $edge   = edge(store => (server => '127.0.0.1:' . $server->port, username => 'again',
        password_file => password_file($password), database => 3));
    my $idle    = $edge->fds;
    my $session = resumes($edge, 'a hit');
    $server->restart;
    wait_until { $edge->fds == $idle } 5, 'the connection to be closed';
    is status($edge, $session), 'MISS', 'it is empty, and the lookup accepted';
    resumes($edge, 'it is used on');
    is_deeply [ map { [ @$_{qw(user db)} ] } $server->clients ], [ ([ 'again', 3 ]) x 2 ],
        'by the same user, in the same database';
    is_deeply said($edge), [], 'the log has no error';
};

subtest 'unix sockets and IPv6' => sub {
    my $unix = 'unix:' . $redis->unix;
    $redis->cmd(qw(ACL SETUSER local on), '>' . secret('local'), qw(~tls:* +get +set +del +ping +select));
    my $file = password_file($secrets[-1]);
    resumes(edge(store => (server => $unix, username => 'local', password_file => $file, database => 2)),
        'a socket in a block');
    resumes(edge("redis://local:$secrets[-1]\@$unix:/4"), 'a socket in a URL');
    is_deeply [ sort map { $_->{db} } grep { $_->{user} eq 'local' && $_->{flags} =~ /U/ } $redis->clients ], [ 2, 2, 4, 4 ],
        'CLIENT LIST knows both';
    SKIP: {
        skip 'no IPv6 here', 1 if slurp('/proc/net/if_inet6') !~ /^0{31}1 /m;
        my $six = redis(bind => '::1', password => $plain);
        resumes(edge(store => (server => '[::1]:' . $six->port, password_file => password_file($plain))), 'IPv6 in a block');
        my $edge = edge("redis://:$plain\@[::1]:" . $six->port . '/1');
        resumes($edge, 'IPv6 in a URL');
        is scalar(grep { $_->{addr} =~ /^\[::1\]:/ } $six->clients), 4, 'CLIENT LIST knows both';
        $six->kill;
        wait_until { status($edge, visit($edge)->{session}) eq 'DOWN' } 5, 'DOWN';
        like said($edge)->[-1], qr/^redis \[::1\]:\d+ is down: connect\(\) failed \(111: Connection refused\)$/,
            'and the log its address';
    }
};

subtest 'no password in a log' => sub {
    cmp_ok scalar @secrets, '>', 10, 'passwords there were';
    for my $edge (@edges) {
        my $dir  = $edge->dir;
        my $text = join '', map { slurp($_) } glob "$dir/*.log $dir/output";
        my @found = grep { index($text, $_) >= 0 } @secrets;
        is_deeply \@found, [], "of $dir";
    }
    my ($edge) = grep { slurp($_->dir . '/nginx.conf') =~ /password_file/ } @edges;
    my ($dir, $binary) = ($edge->dir, nginx_binary());
    my $dump = `'$binary' -T -p '$dir/' -c '$dir/nginx.conf' 2>&1`;
    like $dump, qr/password_file/, 'nginx -T shows the configuration';
    is scalar(grep { index($dump, $_) >= 0 } @secrets), 0, 'and with password_file no password';
    is $_->log_count(qr/\[(?:emerg|alert|crit)\]/), 0, 'nothing worse than errors' for @edges;
};

done_testing;
