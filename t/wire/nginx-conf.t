# nginx-conf/: each file runs as its README.md says, with nothing changed but the ports, and does
# what its first lines promise.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::EarlyData qw(early_client record_flight send_flight settle);
use IO::Socket::INET;
use Test::More;

my $readme = slurp(root() . '/nginx-conf/README.md');
my ($prepare, $run, $visit, $second) = $readme =~ /^```sh\n(.*?)^```$/msg;
my %store = $readme =~ /^### (\S+\.conf)\n(?:(?!^#).)*?^```sh\n(.*?)^```$/msg;
my $redis = redis();

# In place of the ports of the stores that README.md starts.
my %other = (
    (map { $_ => free_port() } 8080, 6380, 6381, 6390, 6401, 6402, 11211, 11212, 26379, 26380, 26381),
    (map { $_ => free_node_port() } 7001, 7002, 7003),
);

# A checkout with a name that a shell has to be told about.
my $checkout = new_dir('check out');
mkdir "$checkout/$_" or die "$_: $!" for qw(target nginx-conf);
symlink module_path(), "$checkout/target/ngx_http_ssl_session_module.so" or die "symlink: $!";
spew("$checkout/target/nginx-binary", nginx_binary() . "\n");

my @files = map { m{([^/]+)$} } glob root() . '/nginx-conf/*.conf';
my %port  = map { $_ => free_port() } @files;
for my $file (map { m{([^/]+)$} } glob root() . '/nginx-conf/*') {
    my $text = slurp(root() . "/nginx-conf/$file");
    if ($port{$file}) {
        is $text =~ s/\b8443\b/$port{$file}/g, 1, "$file: has one port";
        $text = with_ports($text);
    }
    spew("$checkout/nginx-conf/$file", $text);
}

is shell($prepare, 'prepare'), 0, 'what README.md says to do first succeeds'
    or diag slurp("$checkout/prepare");
is +(stat "$checkout/target/try/session.key")[2] & 0777, 0600, 'nobody else can read the key';
is -s "$checkout/target/try/session.key", 32, 'which has its size';
is shell($second =~ s/^"\$\(cat .*//mr, 'second'), 0, 'and what it says of a second server'
    or diag slurp("$checkout/second");
is slurp("$checkout/target/try-2/session.key"), slurp("$checkout/target/try/session.key"), 'which has the same key';

my $url  = $redis->url;
my %case = (
    'redis.conf'   => { first => $url,    stored => 1 },
    'backend.conf' => { first => 'fleet', stored => 1 },
    'tiers.conf'   => { first => 'shared:tls', stored => 1, after_restart => $url },
    'early-data.conf' => { first => $url, stored => 1 },
    'status.conf'  => { first => 'shared:tls', stored => 1, shows => 1 },
    'shared.conf'  => { first => 'shared:tls', stored => 0 },
    # nginx reads what is made for it; the nodes agree that there is a cluster one after the other.
    'redis-tls.conf' => { store => 1, made => 'redis.acl' },
    'cluster.conf'   => { store => 1, log => qr/"CLUSTERDOWN |not stored in "fleet", no server is available/ },
    map { ("$_.conf" => { store => 1 }) } qw(servers sentinel memcached),
);
is_deeply [ sort @files ], [ sort keys %case ], 'each file of nginx-conf/ is tested here';

for my $file (grep { $case{$_} && !$case{$_}{store} } @files) {
    my $case = $case{$file};
    subtest $file => sub {
        like $readme, qr/^\| \[\Q$file\E\]\(\Q$file\E\) \|/m, 'README.md tells of it';
        $redis->cmd('FLUSHALL');
        my $nginx = start($file);
        my %session;
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            my $client = tls_client(port => $port{$file}, sni => 'localhost', protocol => $protocol);
            is $client->request, "$protocol, reused: ., lookup:   \n", "$protocol: a first visit"
                or diag $client->error;
            $session{$protocol} = $client->session;
            if ($case->{stored}) {
                my $keys = $protocol eq 'TLSv1.2' ? 1 : 3;
                wait_until { $redis->keys('tls:*') == $keys } 10, 'the session in Redis';
            }
            is resumed($file, $protocol, \%session), $case->{first}, "$protocol: resumed";
        }
        if ($file eq 'redis.conf') {
            (my $command = $visit) =~ s/\b8443\b/$port{$file}/g;
            local $ENV{no_proxy} = '*';
            my ($status, $said);
            wait_until {
                unlink "$checkout/visit";
                $status = shell($command, 'visit');
                $said   = slurp("$checkout/visit");
                # It may come back before the store has its session.
                $status != 0 || $said !~ /lookup: (?:MISS|TIMEOUT|DOWN)/;
            } 10, 'an answer in time';
            is $status, 0, "README.md's client succeeds";
            like $said, qr/^\S+ reused: \., lookup: *\n\S+ reused: r, lookup: HIT \Q$url\E 0\.\d{6}\n\z/,
                'and is resumed as it says';
        }
        if ($case->{shows}) {
            my $at   = "--noproxy '*' -sS http://127.0.0.1:$other{8080}/ssl-sessions";
            my $body = `curl $at`;
            like $body, qr/^nginx_ssl_session_handshakes_total\{listen="0\.0\.0\.0:$port{$file}",protocol="$_",result="resumed"\} 1$/m, "$_: counted" for keys %session;
            is `curl -o /dev/null -w '%{http_code} %{content_type}' $at -H 'Accept: text/html'`, '200 text/html; charset=utf-8', 'a page';
            my ($location) = slurp("$checkout/target/try/$file") =~ /^( *location = .*?\})/ms;
            like $location, qr/^ *allow  127\.0\.0\.1;\n *deny   all;$/m, 'and closed to others';
        }
        if (my $tier = $case->{after_restart}) {
            stop($nginx);
            $nginx = start($file);
            is resumed($file, 'TLSv1.2', \%session), $tier, 'resumed after a restart, from the second tier';
            is resumed($file, 'TLSv1.2', \%session), $case->{first}, 'and then from the first one';
        }
        stop($nginx);
        is scalar($redis->keys('*')) > 0 ? 1 : 0, $case->{stored},
            $case->{stored} ? 'Redis has sessions' : 'Redis has none';
        is_deeply [ grep { !/\[notice\]/ && !/ is down: no answer within / } split /\n/,
            slurp("$checkout/target/try/error.log") ], [], 'nothing above a notice in the log';
    };
}

for my $file (grep { $case{$_} && $case{$_}{store} } @files) {
    subtest "$file, with the store that README.md starts" => sub {
        like $readme, qr/^\| \[\Q$file\E\]\(\Q$file\E\) \|/m, 'README.md tells of it';
        my $text = with_ports($store{$file} // die "README.md starts no store for $file");
        $text =~ s/\bmemcached -l/memcached -u root -l/ if !$<;
        my $store = shell_start($text, "store-$file");
        my $made  = $case{$file}{made};
        wait_until { -s "$checkout/target/try/$made" } 20, $made if $made;
        my %listens = map { $_ => 1 } values %other, $redis->port;
        for my $to (grep { $listens{$_} } $text =~ /\b(\d{4,5})\b/g) {
            wait_until { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$to") } 20, "something at $to";
        }
        my $nginx = start($file);
        my $from;
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            # What comes before the store is ready, or too late for a busy machine, comes again.
            my @seen;
            my $found = eval { wait_until {
                die slurp("$checkout/store-$file") unless $store->alive;
                my $client = tls_client(port => $port{$file}, sni => 'localhost', protocol => $protocol);
                my $said   = $client->request // die $client->error;
                die "a first visit: $said" if $said ne "$protocol, reused: ., lookup:   \n";
                my $tier = resumed($file, $protocol, { $protocol => $client->session });
                push @seen, $tier;
                $tier !~ /reused: \./ && $tier;
            } 30, 'a resumption' };
            if (!defined $found) {
                diag "$@after @{[ scalar @seen ]} visits, the last of them: $seen[-1]";
                diag slurp("$checkout/target/try/error.log"), slurp("$checkout/store-$file");
            }
            is $found, 'fleet', "$protocol: resumed";
            $from //= -s "$checkout/target/try/error.log";
        }
        stop($nginx);
        my $log = $case{$file}{log} // qr/(?!)/;
        is_deeply [ grep { !/\[notice\]| is down: no answer within / && $_ !~ $log } split /\n/, slurp("$checkout/target/try/error.log", $from) ], [],
            'once the store is ready there is nothing above a notice in the log';
        $store->kill_all;
    };
}

subtest 'tiers.conf: its log tells of each visit' => sub {
    my @lines = grep { !/"(?:TIMEOUT|DOWN)"/ } split /\n/, slurp("$checkout/target/try/sessions.log");
    is scalar(@lines), 6, 'a line for each';
    like $lines[0], qr/^127\.0\.0\.1 \[.*\] TLSv1\.2 \. "-" "-" "-"$/, 'of a first visit';
    like $lines[1], qr/\] TLSv1\.2 r "HIT" "shared:tls" "0\.\d{6}"$/, 'of one that was resumed';
    like $lines[4], qr/\] TLSv1\.2 r "HIT" "\Q$url\E" "0\.\d{6}"$/, 'of one from the second tier';
};

subtest 'early-data.conf: a recorded request is executed once' => sub {
    my ($log, @done, @seen) = ("$checkout/target/try/application.log");
    # None is accepted where the machine is too busy for Redis to be in time.
    eval { wait_until {
        unlink $log;
        my $nginx = start('early-data.conf');
        my @at    = (port => $port{'early-data.conf'}, sni => 'localhost');
        my $client = tls_client(@at, protocol => 'TLSv1.3');
        $client->request // die $client->error;
        my ($session, $other) = $client->sessions;
        wait_until { 2 == grep { $redis->cmd('EXISTS', cache_key($_, "$checkout/target/try/session.key")) } $session, $other }
            10, 'the sessions in Redis';
        my $flight = record_flight(session => $session, path => '/application/pay', sni => 'localhost');
        my $came   = settle(send_flight($flight, 20, $port{'early-data.conf'}));
        is $came->{answered}, 20, 'all copies are answered';
        my $owner = early_client(@at, session => $other, path => '/application/own');
        my $said  = $owner->response // '';
        stop($nginx);
        @done = slurp($log) =~ m{"POST /application/pay }g;
        # Its Finished may come before nginx has read the request: then it is not early any more.
        push @seen, "$came->{resumed} of 20 copies resumed, @{[ scalar @done ]} executed, the owner's: " . $owner->early_data . ", $said";
        @done && $owner->early_data eq 'accepted' && $said =~ /^early data: 1?\n\z/;
    } 30, 'early data to be accepted' } or diag $@, @seen, slurp("$checkout/target/try/error.log");
    is scalar @done, 1, 'and one is executed';
};

subtest 'backend.conf: every directive of the block with its default' => sub {
    my ($block) = slurp(root() . '/nginx-conf/backend.conf') =~ /ssl_session_backend fleet \{\n(.*?)\n *\}/s;
    my %said    = map { /^\s*(\w+)\s+([^;]+);/ ? ($1, $2) : () } split /\n/, $block;
    my ($address, @parameters) = split ' ', delete $said{server};
    is $address, '127.0.0.1:6379', 'the address of the server, which has none';
    my ($section)  = slurp(root() . '/docs/directives.md') =~ /^### ssl_session_backend\n(.*?)^## /ms;
    my %documented = $section =~ /^\| `(\w+) [^|]*\| `([^`]+)` \|/mg;
    is_deeply \%said, \%documented, 'as docs/directives.md has them';
    my %parameter = $section =~ /^\| `(\w+)=[^|]*\| `([^`]+)` \|/mg;
    is_deeply { map { split /=/ } @parameters }, \%parameter, 'and its parameters';
};

done_testing;

# With ports of this test's own.
sub with_ports {
    my ($text) = @_;
    $text =~ s/\b(6379|(@{[ join '|', keys %other ]}))\b/$2 ? $other{$2} : $redis->port/ge;
    return $text;
}

# Runs a piece of README.md in the checkout: its exit code.
sub shell {
    my ($text, $name) = @_;
    return shell_start($text, $name)->wait_exit(60) >> 8;
}

sub shell_start {
    my ($text, $name) = @_;
    return SSLSession::Process->spawn(
        name => $name, out => "$checkout/$name",
        cmd  => [ 'sh', '-c', "cd \"\$0\" && { set -e\n$text\n}", $checkout ]);
}

# nginx, by README.md's line for redis.conf.
sub start {
    my ($file) = @_;
    (my $command = $run) =~ s/\bredis\.conf\b.*/$file/ or die 'no line to start nginx with in README.md';
    my $process = SSLSession::Process->spawn(
        name => 'nginx', out => "$checkout/output",
        cmd  => [ 'sh', '-c', "cd \"\$0\" && exec $command", $checkout ]);
    wait_until {
        die "nginx does not start: " . slurp("$checkout/output") . slurp("$checkout/target/try/error.log")
            unless $process->alive;
        -s "$checkout/target/try/nginx.pid" && IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port{$file}");
    } 20, 'start of nginx';
    return $process;
}

sub stop {
    my ($process) = @_;
    $process->signal('QUIT');
    is $process->wait_exit(20), 0, 'nginx ends in order';
    wait_until { !$process->group } 10, 'end of the workers';
}

# Comes back with the session: the tier it was found in; what the server said if it was not. The
# files have the default timeouts, which a busy machine exceeds now and then: it comes again then.
sub resumed {
    my ($file, $protocol, $session) = @_;
    my $said;
    wait_until {
        my $client = tls_client(port => $port{$file}, sni => 'localhost', protocol => $protocol,
            session => $session->{$protocol});
        $said = $client->request // $client->error;
        $said !~ /lookup: (?:TIMEOUT|DOWN)/;
    } 20, 'an answer in time';
    return $said =~ /^\Q$protocol\E, reused: r, lookup: HIT (\S+) 0\.\d{6}$/ ? $1 : $said;
}
