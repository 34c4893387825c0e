# The pages at the top and in docs/: every configuration in them is one that nginx accepts, every link
# leads somewhere, every directive is described with its syntax and its default, and every line of the
# log is explained.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Clients qw(@clients);
use SSLSession::Fixture;
use Test::More;

my $certs = certs();
my @top   = qw(README.md SECURITY.md CONTRIBUTING.md);
my %text  = map { m{([^/]+)$} => slurp($_) } map({ root() . "/$_" } @top), glob root() . '/docs/*.md';
my ($blocks, %table) = directives();
my @examples;

subtest 'each configuration passes nginx -t' => sub {
    for my $name (sort keys %text) {
        my $number = 0;
        while ($text{$name} =~ /^```nginx\n(.*?)^```$/msg) {
            my $example = $1;
            push @examples, $example;
            my $what = sprintf '%s, line %d', $name, 1 + (substr($text{$name}, 0, $-[1]) =~ tr/\n//);
            my ($status, $said) = conf_of($example)->conf_test;
            is $status, 0, $what or diag $said;
            is_deeply [ $said =~ /\[(?:warn|error|alert|emerg)\].*/g ], [], "$what: without a warning";
        }
    }
    cmp_ok scalar @examples, '>', 8, 'there are some';
};

subtest 'a configuration that is wrong does not pass' => sub {
    my ($example) = grep { /^ssl_session_backend/ } @examples;
    for my $change ([ qr/server /, 'serve ' ], [ qr/;/, '' ], [ qr/redis\.pass/, 'not-there.pass' ]) {
        my ($status) = conf_of($example =~ s/$change->[0]/$change->[1]/r)->conf_test;
        isnt $status, 0, "$change->[0]";
    }
};

subtest 'every directive is described, and used in a configuration that runs' => sub {
    my $conf = join "\n", @examples, map { slurp($_) } glob root() . '/nginx-conf/*.conf';
    $conf =~ s/#.*//g;
    my $docs = $text{'directives.md'};
    cmp_ok keys %table, '>', 25, 'there are directives';
    for my $name (sort keys %table) {
        like $conf, qr/(?:^|\{)\s*$name[\s;]/m, "$name: in an example";
        if ($blocks->{$name}) {
            my ($section) = $docs =~ /^### $name\n(.*?)(?=^##)/ms or fail("$name has no section"), next;
            like $section, qr/^\| Syntax \| `$name(?: [^`]+|;)`.* \|\n\| Default \| .+ \|\n\| Context \| (?:`http`, `stream`|`location`) \|$/m,
                "$name: syntax, default, context";
        } elsif ($name eq 'server') {
            like $docs, qr/^`server address \[.*\];`$/m, "$name: syntax";
        } else {
            my @rows = $docs =~ /^(\| `$name [^`]+;`[^|]* \| (?:–|`[^`]+`) \|)/mg;
            is scalar @rows, 1, "$name: syntax and default";
        }
    }
    my @rows = $docs =~ /^\| `(\w+) [^`]*;`/mg;
    is_deeply [ grep { !$table{$_} } @rows ], [], 'nothing else is described';

    my ($syntax) = $docs =~ /^`server address (.*);`$/m;
    for my $parameter ($syntax =~ /\[(\w+)/g) {
        like $docs, qr/^\| `$parameter(?:=\w+)?` \| (?:`\w+`)? *\| /m, "server: $parameter";
        like $conf, qr/^\s*server\s[^;]*\b$parameter\b/m, "$parameter: in an example";
    }
};

subtest 'every default is what the code has' => sub {
    my $conf    = slurp(root() . '/src/conf/backend.rs');
    my $client  = slurp(root() . '/src/ffi/client.rs');
    my $breaker = slurp(root() . '/core/src/breaker.rs');
    my $one = sub {
        my ($in, $pattern) = @_;
        my @found = $in =~ /$pattern/g;
        is scalar @found, 1, "$pattern is there once" or return '';
        return $found[0] =~ tr/_//dr;
    };
    # The same wherever it is asked for.
    my $each = sub {
        my ($in, $pattern) = @_;
        my %found = map { $_ => 1 } $in =~ /$pattern/g;
        is scalar keys %found, 1, "$pattern is the same everywhere" or return '';
        return (keys %found)[0];
    };
    my $time = sub { my ($ms) = @_; return $ms =~ /^(\d+)000$/ ? "$1s" : "${ms}ms" };
    my $flag = sub { $_[0] eq 'true' ? 'on' : 'off' };
    my ($fails, $window) = $breaker =~ /const DEFAULT: Self = Config \{ max_fails: (\d+), fail_timeout: ([\d_]+) \}/;
    my $protocols = $one->($client, qr/^const PROTOCOLS: ngx_uint_t = \((.*?)\) as/m);
    my %code = (
        protocol    => $one->($conf, qr/^\s+None \| Some\(b"(\w+)"\) =>/m),
        key_prefix  => $one->($conf, qr/^const KEY_PREFIX: &\[u8\] = b"(.*)";/m),
        queue       => $one->($conf, qr/^const QUEUE: usize = (\d+);/m),
        keepalive   => $one->($conf, qr/^const KEEPALIVE: u32 = (\d+);/m) . 's',
        database    => $each->($conf, qr/self\.database\.or\((\d)\)/),
        cluster     => $flag->($each->($conf, qr/self\.cluster\.or\((\w+)\)/)),
        hedge       => $one->($conf, qr/Some\(b"(\w+)"\) \| None => None/),
        replica_reads => $flag->($each->($conf, qr/self\.replica_reads\.or\((\w+)\)/)),
        ssl         => $flag->($one->($conf, qr/match self\.ssl\.or\((\w+)\)/)),
        ssl_verify  => $flag->($one->($client, qr/verify: conf\.verify\.or\((\w+)\)/)),
        ssl_session_reuse => $flag->($one->($client, qr/conf\.session_reuse\.or\((\w+)\)/)),
        ssl_server_name   => $flag->($one->($conf, qr/sni: self\.tls\.server_name\.or\((\w+)\)/)),
        ssl_verify_depth  => $one->($client, qr/^const VERIFY_DEPTH: usize = (\d+);/m),
        ssl_ciphers       => $one->($client, qr/^const CIPHERS: &CStr = c"(\w+)";/m),
        ssl_protocols     => join(' ', map { /NGXSSLTLSv1(\d)?/ ? 'TLSv1' . ($1 ? ".$1" : '') : () } split /\|/, $protocols),
        weight       => $one->($conf, qr/parameters\.weight\.unwrap_or\((\d+)\)/),
        max_fails    => $fails,
        fail_timeout => $time->($window =~ tr/_//dr),
        map { ($_ => $time->($one->($conf, qr/^const \U$_\E: u64 = (\d+);/m))) } qw(connect_timeout fetch_timeout store_timeout),
    );
    my ($section)  = $text{'directives.md'} =~ /^### ssl_session_backend\n(.*?)^## /ms;
    my %documented = $section =~ /^\| `(\w+)[ =][^|]*\| `([^`]+)` \|/mg;
    is_deeply \%documented, \%code, 'as documented';
    my $tickets = slurp(root() . '/src/conf/tickets.rs');
    my ($table) = $text{'directives.md'} =~ /^### ssl_session_ticket_keys\n(.*?)^### /ms;
    my %parameter = $table =~ /^\| `(\w+)=\w+` \| `(\w+)` \|/mg;
    is_deeply \%parameter, {
        period => $one->($tickets, qr/^const PERIOD: u64 = (\d+) \* 60 \* 60;/m) . 'h',
        keep   => $one->($tickets, qr/^const KEEP: u64 = (\d+);/m),
    }, 'as are those of ticket keys';
    for my $name (qw(ssl_session_fetch ssl_session_store ssl_session_fallback ssl_session_tickets_tls12)) {
        like $text{'directives.md'}, qr/^\| Default \| `$name off;` \|$/m, "$name is off";
    }
};

subtest 'every variable is described' => sub {
    my @variables = slurp(root() . '/src/status/variables.rs') =~ /const NAME: &'static str = "(\w+)"/g;
    cmp_ok scalar @variables, '>=', 3, 'there are some';
    like $text{'directives.md'}, qr/^\| `\$$_` \| /m, $_ for @variables;
};

subtest 'every client of tools/clients is in the table' => sub {
    my ($table) = $text{'clients.md'} =~ /^<!-- clients -->\n(.*?)^<!-- end of clients -->/ms or return fail('a table of them');
    for my $client (@clients) {
        my $name = $client->{title} // $client->{name};
        like $table, qr/^\| \Q$client->{kind}\E \| \Q$name\E \| /m, $name;
    }
    unlike $table, qr/failed|nginx: /, 'each was seen, and resumed as by nginx';
};

subtest 'every line of the log is explained' => sub {
    my ($table) = $text{'operation.md'} =~ /^## Log lines\n(.*?)^## /ms or return fail('a table of them');
    $table =~ s/`//g;
    my $lines = 0;
    # The macro itself is no line.
    for my $file (grep { !m{/ffi/log\.rs$} } glob root() . '/src/{*,*/*}.rs') {
        my $source = slurp($file);
        while ($source =~ /\b(?:log_at!\s*\(.*?,\s*(\w+),|say_at\(\s*Level::(\w+),.*?format_args!\(\s*)\s*"((?:[^"\\]|\\.)*)"/sg) {
            my ($level, $format) = (lc($1 // $2), $3);
            next if $level eq 'emerg' || $level eq 'debug';
            $lines++;
            # What it says beside what is put in, in this order.
            $format =~ s/\\\n\s*//g;
            $format =~ s/\\"/"/g;
            my $pattern = join '.*', map { quotemeta } grep { /[a-z]/ } map { s/^\W+|\W+$//gr } split /\{[^}]*\}/, $format;
            ok scalar($table =~ /^\| $level \| .*$pattern/m), "$level: $format";
        }
    }
    cmp_ok $lines, '>', 12, 'there are some';
};

subtest 'every hint is explained' => sub {
    my ($table) = $text{'operation.md'} =~ /^### Hints\n(.*?)(?=^\S(?!\|)[^\n]*debug)/ms or return fail('a table of them');
    my ($texts) = slurp(root() . '/core/src/hint.rs') =~ /^impl fmt::Display for Hint.*?\n\{?(.*?)^\}/ms;
    my $hints = 0;
    while ($texts =~ /"((?:[^"\\]|\\.)*)"/sg) {
        my $hint = $1 =~ s/\\\n\s*//gr =~ s/\\"/"/gr;
        my $pattern = join '\w*', map { quotemeta } split /\{\w*\}/, $hint, -1;
        $hints++;
        ok scalar($table =~ /^\| `$pattern` \| .* \|$/m), $hint;
    }
    cmp_ok $hints, '>', 20, 'there are some';
};

subtest 'every link leads somewhere' => sub {
    my $links = 0;
    my %at_top = map { $_ => 1 } @top;
    for my $file (map { root() . "/$_" } @top, map({ "docs/$_" } grep { !$at_top{$_} } sort keys %text), 'nginx-conf/README.md') {
        my ($dir) = $file =~ m{^(.*)/};
        for my $link (slurp($file) =~ /\]\((?!https?:)([^)]+)\)/g) {
            my ($path, $anchor) = split /#/, $link;
            my $to = length $path ? "$dir/$path" : $file;
            $links++;
            ok -e $to, "$link exists";
            # As GitHub makes them of headings.
            my @anchors = map { lc =~ s/[^\w -]//gr =~ tr/ /-/r } -f $to ? slurp($to) =~ /^#+ (.*)$/mg : ();
            ok scalar(grep { $_ eq $anchor } @anchors), "$link is a heading" if defined $anchor;
        }
    }
    cmp_ok $links, '>', 10, 'there are some';
};

subtest 'the tests of each guarantee are there' => sub {
    my $names = 0;
    for my $tests ($text{'guarantees.md'} =~ /^\*Tests:\* (.*?)(?=\n\n|\z)/msg) {
        my $source;
        while ($tests =~ /`([\w.\/-]+)`|"([^"]+)"/g) {
            if (defined $1) {
                my $file = root() . "/$1";
                ok -f $file, $1;
                $source = -f $file ? slurp($file) : '';
                next;
            }
            # Some are made of parts; those of Rust are names of functions.
            my $name  = $2 =~ s/\s+/ /gr;
            my @parts = grep { /\w/ } split /, |…/, $name;
            $names++;
            ok !grep({ my $part = $_ =~ s/^\s+|\s+$//gr; index($source, $part) < 0 && $source !~ /\bfn \w*\Q@{[ $part =~ tr{ }{_}r ]}\E/ } @parts), $name;
        }
    }
    cmp_ok $names, '>', 15, 'there are some';
};

subtest 'the rights of a user are what is needed' => sub {
    my ($section) = $text{'operation.md'} =~ /^## The user at the Redis\n(.*?)^## /ms;
    my ($base)    = $section =~ /^    user nginx on >password (.+)$/m;
    my %right;
    for (split /\n/, $section) {
        my ($words, $what) = /^\| `(.*?)` \| (.+) \|$/ or next;
        $right{$what} = $words =~ s/\\\|/|/gr;
    }
    my $rights = sub {
        my ($what) = @_;
        my ($key) = grep { /\Q$what\E/ } sort keys %right;
        return $right{ $key // return fail("nothing about $what") };
    };
    my $file = spew(tmpdir() . '/acl.pass', "secret\n");
    chmod 0600, $file;
    my $wait = 3 * patience() . 's';
    my $in   = sub {
        my ($lines, $fetch) = @_;
        my $port = free_port();
        my $nginx = nginx(conf => <<"CONF");
    ssl_session_backend fleet {
        $lines
        username nginx; password_file $file; connect_timeout $wait; fetch_timeout $wait;
    }
    ssl_session_fetch   fleet $fetch;
    ssl_session_store   fleet;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    server {
        listen 127.0.0.1:$port ssl; ssl_certificate $certs->{ec_crt}; ssl_certificate_key $certs->{ec_key};
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
        for my $protocol (qw(TLSv1.2 TLSv1.3)) {
            # The first requests find out where the server is.
            ok wait_until {
                my @visit = (port => $port, protocol => $protocol);
                my $first = tls_client(@visit);
                $first->request // die $first->error;
                (tls_client(@visit, session => $first->session)->request // '') eq 'HIT';
            } 15, "$protocol: a hit";
        }
        return $nginx;
    };
    # None of Redis' own complaints may be about us.
    my $refused = sub { map { my %entry = @$_; $entry{username} =~ /nginx|watcher/ ? $entry{object} : () } map { @{ $_->cmd(qw(ACL LOG)) } } @_ };

    my $user = ">secret $base " . join ' ', map { $rights->($_) } 'single_use', '`database`', 'client_name', 'Sentinel, at the master';
    my $set  = redis_sentinel(name => 'mymaster', users => { nginx => $user },
        sentinel => { users => { watcher => '>secret ' . join ' ', map { $rights->($_) } 'at the Sentinels', 'the same, with `hedge`' } });
    my ($sentinel) = $set->sentinels;
    $in->("server 127.0.0.1:@{[ $sentinel->port ]}; sentinel mymaster; sentinel_username watcher; "
        . "sentinel_password_file $file; database 2; client_name edge; hedge 1ms;", 'single_use');
    is_deeply [ $refused->($sentinel, $set->nodes) ], [], 'Sentinel, single_use, a database, a name: nothing is refused';

    my $cluster = redis_cluster(masters => 2, replicas => 1, users => { nginx => ">secret $base " . join ' ', map { $rights->($_) } '`cluster on`', '`replica_reads` in a cluster' });
    my @nodes   = $cluster->nodes;
    $in->("server 127.0.0.1:@{[ $nodes[0]->port ]}; cluster on; replica_reads on;", '');
    is_deeply [ $refused->(@nodes) ], [], 'Cluster: nothing is refused';
    is $nodes[0]->cmd(qw(ACL DRYRUN nginx ASKING)), 'OK', 'nor would ASKING be';
    isnt $nodes[0]->cmd(qw(ACL DRYRUN nginx FLUSHALL)), 'OK', 'as other commands would be';
};

done_testing;

# The directives of blocks and all there are, by the tables of the source.
sub directives {
    my $source = join '', map { slurp($_) } glob root() . '/src/conf/*.rs';
    my %type   = $source =~ /^impl Directive for (\w+) \{.*?const NAME: &'static CStr = c"(\w+)";/msg;
    my %in;
    for my $table (qw(MAIN_COMMANDS COMMANDS BACKEND_COMMANDS)) {
        my ($list) = $source =~ /^(?:pub static|const) $table: [^\n]*?= (.*?)^[\]}]\)?;/ms or die "no $table";
        $in{$table} = { map { $_ => 1 } $list =~ /\b(?:value|flag|slot)\(\s*c"(\w+)"/g,
            map { $type{$_} // die "no name of $_" } $list =~ /directive::<(\w+)>/g };
    }
    my %blocks = (%{ $in{MAIN_COMMANDS} }, %{ $in{COMMANDS} });
    return (\%blocks, %blocks, %{ $in{BACKEND_COMMANDS} });
}

# An nginx with that example; what is in http{}, or all of it. What it refers to is there.
sub conf_of {
    my ($example) = @_;
    my $port = free_port();
    ($example) = $example =~ /^http \{\n(.*)^\}$/ms if $example =~ /^http \{/m;
    $example =~ s/\blisten +443 ssl\b/listen 127.0.0.1:$port ssl/;
    my $server = $example =~ /\bserver \{/ ? '' : <<"CONF";
    ssl_session_tickets off;
    server { listen 127.0.0.1:$port ssl; ssl_certificate site.pem; ssl_certificate_key site.key; }
CONF
    my $stream = $example =~ /^stream \{\n(.*)^\}$/ms ? $1 : undef;
    my $nginx = nginx(start => 0, !$stream ? (conf => $example . $server)
        : has_stream() ? (conf => '', stream => $stream) : (conf => ''));
    my %file  = (
        'site.pem' => 'ec_crt', 'site.key' => 'ec_key', 'ca.pem' => 'ca_crt', 'crl.pem' => 'crl_pem',
        'client.pem' => 'client_crt', 'client.key' => 'client_key',
        'client-encrypted.key' => 'client_enc_key', 'client-key.pass' => 'client_pass',
    );
    spew($nginx->dir . "/$_", slurp($certs->{ $file{$_} })) for keys %file;
    my %secret = ('redis.pass' => "secret\n", 'sentinel.pass' => "secret\n",
        'session.key' => 'k' x 32, 'session-new.key' => 'K' x 32);
    for my $name (keys %secret) {
        spew($nginx->dir . "/$name", $secret{$name});
        chmod 0600, $nginx->dir . "/$name";
    }
    return $nginx;
}
