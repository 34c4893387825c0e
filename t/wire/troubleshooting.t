# docs/troubleshooting.md: each cause that it names is produced, in the way that it says, and has to
# show in variables, counters and the log as the guide says; then its remedy is applied.
#
# A cause's section has a table, whose rows are visits: seen() makes one, and compares. Rows, lines of
# the log and commands of a section that its test does not come to fail.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use HTTP::Tiny;
use JSON::PP qw(decode_json);
use Test::More;

my $certs     = certs();
my $wait      = 3 * patience() . 's';
my @protocols = qw(TLSv1.2 TLSv1.3);
my $name      = 'www.example.com';

my %guide = read_guide(slurp(root() . '/docs/troubleshooting.md'));
# The section that is on trial.
our $section;

# The counters that tell causes apart: none of them may grow but those that the guide names.
my $telling = qr/^(?:unusable_hits_total|tier_takes_total|tier_drops_total|server_queue_full_total)\{/;

my @causes = (
    'Tickets are on' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, tickets => 'on') } qw(A B);
        for my $protocol (@protocols) {
            my $session = seen('at A', $A, protocol => $protocol);
            seen('at A again', $A, protocol => $protocol, session => $session);
            seen('at B', $B, protocol => $protocol, session => $session);
        }
        resumes($A, $B, $redis, protocols => ['TLSv1.2'], no_ticket => 1);
        mend($B, tickets => 'off');
        for my $protocol (@protocols) {
            my $made = sub { visit($A, protocol => $protocol)->{session} };
            seen(($protocol =~ s/v/ /r) . ' at B, on at A only', $B, protocol => $protocol, session => $made);
        }
        mend($A, tickets => 'off');
        mend($B, tickets => 'on');
        seen('TLS 1.3 at B, on at B only', $B, protocol => 'TLSv1.3', session => stored($A, $redis, protocol => 'TLSv1.3'));
        like commands(nginx => $B), qr/ssl_session_tickets on;.*listen .* ssl;/s, 'the commands show it';
        mend($B, tickets => 'off');
        resumes($A, $B, $redis);
    },

    'Ticket keys of its own' => sub {
        my $redis = redis();
        my %with  = (servers => $redis, tickets => 'on', http => 'ssl_session_ticket_keys fleet;');
        my ($A, $B) = (node('A', %with), node('B', %with, keys => [ new_session_key() ]));
        # The keys come a moment after the server.
        my $made = sub {
            my ($node, $protocol) = @_;
            my $session;
            wait_until {
                $session = visit($node, protocol => $protocol)->{session};
                visit($node, protocol => $protocol, session => $session)->{fetch} eq 'TICKET';
            } 10, 'ticket keys';
            return $session;
        };
        for my $protocol (@protocols) {
            $made->($B, $protocol);
            my $session = $made->($A, $protocol);
            seen('at A again', $A, protocol => $protocol, session => $session);
            seen('at B', $B, protocol => $protocol, session => $session);
        }
        my $said = sub {
            my $dir = new_dir('keys');
            spew("$dir/session.key", slurp($_[0]{keys}[0]));
            return commands(dir => $dir, nginx => $_[0]);
        };
        my ($ours, $theirs) = map { $said->($_) } $A, $B;
        like $ours, qr/ssl_session_ticket_keys fleet;/, 'the commands show it';
        isnt +(split ' ', $ours)[0], (split ' ', $theirs)[0], 'other keys';
        mend($B, keys => [ session_key() ]);
        for my $protocol (@protocols) {
            $made->($B, $protocol);
            my $seen = visit($B, protocol => $protocol, session => $made->($A, $protocol));
            is "$seen->{reused} $seen->{fetch}", 'r TICKET', "$protocol: resumed at B";
        }
    },

    'OpenSSL protects early data itself' => sub {
        my $redis = redis();
        my $early = 'ssl_early_data on;';
        my $A = node('A', servers => $redis, http => $early);
        my $B = node('B', servers => $redis, http => "$early ssl_conf_command Options AntiReplay;");
        my $session = seen('TLS 1.3 at B', $B, protocol => 'TLSv1.3', session => stored($A, $redis, protocol => 'TLSv1.3'));
        seen('TLS 1.3 at B again', $B, protocol => 'TLSv1.3', session => $session);
        resumes($A, $B, $redis, protocols => ['TLSv1.2']);
        like commands(nginx => $B), qr/ssl_early_data on;.*AntiReplay/s, 'the commands show it';
        mend($B, http => $early);
        resumes($A, $B, $redis);
    },

    'Another certificate' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, certs => ['ec2']));
        seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        my $prints = sub { my @all = commands(A => $A, B => $B) =~ /Fingerprint=(\S+)/g; return @all };
        my ($ours, $theirs) = $prints->();
        isnt $ours, $theirs, 'the fingerprints differ';
        mend($B, certs => ['ec']);
        ($ours, $theirs) = $prints->();
        is $ours, $theirs, 'the fingerprints are the same';
        resumes($A, $B, $redis);
        mend($A, certs => [qw(ec rsa)]);
        mend($B, certs => [qw(rsa ec)]);
        seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
    },

    'Other rules for clients' => sub {
        my $redis = redis();
        my $asks  = sub { join '', 'ssl_verify_client optional;', map { "ssl_client_certificate $certs->{$_};" } @_ };
        my $A = node('A', servers => $redis, server => $asks->('ca_crt'));
        for my $other ($asks->('other_ca_crt'), $asks->('ca_bundle_crt'), '') {
            my $B = node('B', servers => $redis, server => $other);
            seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
            my $said = commands(A => $A, B => $B);
            my @names = map { join ',', sort /CN ?= ?([\w ]+)/g } split /(?=^Acceptable|^No client)/m, $said;
            is scalar @names, 2, 'two lists' or diag $said;
            isnt $names[0], $names[1], 'which differ';
            mend($B, server => $asks->('ca_crt'));
            resumes($A, $B, $redis);
        }
        for my $more ("ssl_trusted_certificate $certs->{other_ca_crt};", "ssl_crl $certs->{crl_pem};", 'ssl_verify_depth 2;') {
            my $B = node('B', servers => $redis, server => $asks->('ca_crt') . $more);
            seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        }
    },

    'Another default server' => sub {
        plan skip_all => 'nginx goes by the server that the client asks for' if nginx_version() >= 1_029_002;
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, catch_all => 1));
        seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        like commands(nginx => $B), qr/ssl_reject_handshake on;.*ssl_certificate /s, 'the commands show it';
        mend($A, catch_all => 1);
        resumes($A, $B, $redis);
    },

    'Other protocols' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, protocols => 'TLSv1.2'));
        my %both = (min => 'TLSv1.2', max => 'TLSv1.3');
        seen('a session of TLS 1.3, at a machine with TLS 1.2', $B, %both, session => stored($A, $redis, %both));
        seen('a session of TLS 1.2, at a machine with TLS 1.3', $A, %both, session => stored($B, $redis, %both));
        mend($B, protocols => 'TLSv1.2 TLSv1.3');
        resumes($A, $B, $redis);
        resumes($A, $B, $redis, protocols => ['both'], %both);
    },

    'Servers of one socket differ' => sub {
        plan skip_all => 'nginx goes by the default server' if nginx_version() < 1_029_002;
        my $redis = redis();
        my %differ = (catch_all => 1, tickets => 'on', server => 'ssl_session_tickets off;');
        my ($A, $B) = map { node($_, servers => $redis, keys => ['off'], %differ) } qw(A B);
        my $made = sub {
            my $session = visit($A, protocol => 'TLSv1.3')->{session};
            wait_until { $redis->cmd('EXISTS', plain_key($session)) } 10, 'the session in the store';
            return $session;
        };
        seen('TLS 1.3 at B, with `ssl_session_key off`', $B, protocol => 'TLSv1.3', session => $made->());
        like commands(nginx => $B), qr/ssl_session_tickets on;.*ssl_reject_handshake on;.*ssl_session_tickets off;/s, 'the commands show it';
        mend($_, tickets => 'off', server => '') for $A, $B;
        is visit($B, protocol => 'TLSv1.3', session => $made->())->{reused}, 'r', 'resumed where they do not differ';
        mend($_, keys => [ session_key() ], %differ) for $A, $B;
        resumes($A, $B, $redis);
    },

    'Cipher suites with another hash' => sub {
        my $redis = redis();
        my $suite = sub { "ssl_conf_command Ciphersuites TLS_$_[0];" };
        my $A = node('A', servers => $redis, http => $suite->('AES_256_GCM_SHA384') . 'ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384;');
        my $B = node('B', servers => $redis, http => $suite->('AES_128_GCM_SHA256') . 'ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256;');
        seen('at B', $B, protocol => 'TLSv1.3', session => stored($A, $redis, protocol => 'TLSv1.3'));
        like commands(A => $A, B => $B), qr/TLS_AES_256_GCM_SHA384\n.*TLS_AES_128_GCM_SHA256\n/, 'the commands show it';
        resumes($A, $B, $redis, protocols => ['TLSv1.2']);
        mend($_, http => $suite->('AES_128_GCM_SHA256')) for $A, $B;
        resumes($A, $B, $redis);
    },

    'No extended master secret on one machine' => sub {
        my $redis = redis();
        my $none  = 'ssl_conf_command Options -ExtendedMasterSecret;';
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, http => $none));
        seen('TLS 1.2 at B, off at B only', $B, protocol => 'TLSv1.2', session => stored($A, $redis, protocol => 'TLSv1.2'));
        like commands(A => $A, B => $B), qr/: yes\n.*: no\n/, 'the commands show it';
        resumes($A, $B, $redis, protocols => ['TLSv1.3']);
        mend($A, http => $none);
        mend($B, http => '');
        seen('TLS 1.2 at B, off at A only', $B, protocol => 'TLSv1.2', session => stored($A, $redis, protocol => 'TLSv1.2'));
        mend($A, http => '');
        resumes($A, $B, $redis);
    },

    'A cipher that is gone' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis) } qw(A B);
        my ($old, $new) = map { "ECDHE-ECDSA-AES${_}" } '256-GCM-SHA384', '128-GCM-SHA256';
        my $session = stored($A, $redis, protocol => 'TLSv1.2', ciphers => $old);
        seen('TLS 1.2 at B, by a client that has lost the cipher', $B, protocol => 'TLSv1.2', session => $session, ciphers => $new);
        is visit($B, protocol => 'TLSv1.2', session => $session, ciphers => "$new:$old")->{reused}, 'r', 'with both it is resumed';
        resumes($A, $B, $redis);
    },

    'The client offers no session' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis) } qw(A B);
        for my $protocol (@protocols) {
            stored($A, $redis, protocol => $protocol);
            seen('at B, without a session', $B, protocol => $protocol);
            # Two that are under way at once.
            my @clients = map { client($B, protocol => $protocol)->start } 1, 2;
            compare('at B, without a session', visited($B, $_)) for @clients;

            my $before = counted($B);
            my $client = client($B, protocol => $protocol);
            $client->handshake or die $client->error;
            my @line = map {
                $client->write("GET / HTTP/1.1\r\nHost: $name\r\n\r\n");
                wait_until { ($client->read // '') =~ /\bok\z/ } 10, 'an answer';
                logged($B);
            } 1, 2;
            is $line[1]{request}, 2, 'the second of its connection';
            compare('a second request of a connection', { %{ $line[1] }, before => $before, node => $B });
            is grown($before, counted($B), 'handshakes_total'), 1, 'one handshake';
        }
        resumes($A, $B, $redis);
    },

    'The session has ended' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, http => 'ssl_session_timeout 2s;') } qw(A B);
        my %session = map { $_ => visit($A, protocol => "TLSv1.$_")->{session} } 2, 3;
        my $made = time;
        # Whoever asks for it finds that it is over. A client gives a ticket a second more.
        wait_until { $redis->keys; $redis->info('expired_keys') >= 3 && time >= $made + 4 } 10, 'the end of the sessions';
        seen("TLS 1.$_ at B", $B, protocol => "TLSv1.$_", session => $session{$_}) for 2, 3;
        like commands(redis => $redis), qr/^expired_keys:[3-9]\r?$/m, 'the commands show it';
        mend($_, http => 'ssl_session_timeout 1h;') for $A, $B;
        resumes($A, $B, $redis);
    },

    'A clock that is wrong' => sub {
        my ($library) = glob '/usr/lib/*/faketime/libfaketime.so.1' or die 'no libfaketime: tools/install-deps';
        my $clock = spew(tmpdir() . '/clock', "+600\n");
        # What nginx forgets to hand on would be forgotten by the clock, too.
        my %env = (FAKETIME_TIMESTAMP_FILE => $clock, FAKETIME_NO_CACHE => 1, FAKETIME_DONT_FAKE_MONOTONIC => 1);
        my $redis = redis();
        my $A = node('A', servers => $redis);
        my $B = node('B', servers => $redis, env => { %env, LD_PRELOAD => $library }, main => join ' ', map { "env $_;" } sort keys %env);
        for my $protocol (@protocols) {
            my $session = stored($A, $redis, protocol => $protocol);
            seen('at B', $B, protocol => $protocol, session => $session);
            wait_until { !$redis->cmd('EXISTS', cache_key($session)) } 5, 'its removal';
            is visit($A, protocol => $protocol, session => $session)->{fetch}, 'MISS', 'it is missing everywhere then';
        }
        resumes($B, $A, $redis);
        like commands(redis => $redis), qr/^(\d{10})\n\d{10}\n\z/, 'the commands show times';
        spew($clock, "+0\n");
        resumes($A, $B, $redis);
        # Under valgrind the library leaves behind what it shares with its children.
        my $pid = $B->{nginx}->pid;
        $B->{nginx}->stop;
        unlink map { "/dev/shm/$_$pid" } qw(faketime_shm_ sem.faketime_sem_);
    },

    'Withdrawn by the epoch' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, http => 'ssl_session_epoch epoch;') } qw(A B);
        my %session = map { $_ => stored($A, $redis, protocol => $_) } @protocols;
        # It holds for the six seconds after it, too; those would have to be waited for.
        my $epoch = time - 6;
        $redis->cmd('SET', 'tls:epoch', $epoch);
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;
        is counted($B)->{'tier_removals_total{tier="fleet"}'}, 2, 'and removed';
        like commands(redis => $redis), qr/^$epoch\n\d{10}\n\z/, 'the commands show it';
        wait_until { time > $epoch + 6 } 5, 'the next second';
        resumes($A, $B, $redis);
    },

    'An epoch that is ahead' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, http => 'ssl_session_epoch epoch;') } qw(A B);
        my %session = map { $_ => stored($A, $redis, protocol => $_) } @protocols;
        $redis->cmd('SET', 'tls:epoch', time + 200);
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;
        seen('at B', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        cmp_ok commands(redis => $redis), '>', 0, 'the commands show it';
        my $epoch = time - 6;
        $redis->cmd('SET', 'tls:epoch2', $epoch);
        mend($_, http => 'ssl_session_epoch epoch2;') for $A, $B;
        wait_until { time > $epoch + 6 } 5, 'the next second';
        resumes($A, $B, $redis);
    },

    'An epoch not heard yet' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, fetch => 'shared:near:1m fleet', store => 'shared:near:1m'));
        my %session = map { $_ => visit($B, protocol => $_)->{session} } @protocols;
        $redis->kill;
        mend($B, http => 'ssl_session_epoch epoch;');
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;
        $redis->start;
        wait_until { visit($B, protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{fetch} eq 'HIT' } 10, 'a hit';
        is visit($B, protocol => 'TLSv1.3', session => $session{'TLSv1.3'})->{fetch}, 'HIT', 'none was removed';
        resumes($A, $B, $redis);
        $redis->kill;
        is visit($B, protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{fetch}, 'HIT', 'and it goes on';
    },

    'Another key, or none' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, keys => [ new_session_key() ]));
        for my $protocol (@protocols) {
            seen('at B, with another key', $B, protocol => $protocol, session => stored($A, $redis, protocol => $protocol));
        }
        my $sum = sub { my $dir = new_dir('keys'); spew("$dir/session.key", slurp($_[0]{keys}[0])); return commands(dir => $dir) };
        isnt $sum->($A), $sum->($B), 'the commands show it';
        mend($B, keys => ['off']);
        for my $protocol (@protocols) {
            seen('at B, with `ssl_session_key off`', $B, protocol => $protocol, session => stored($A, $redis, protocol => $protocol));
        }
        mend($B, keys => [ session_key() ]);
        is $sum->($A), $sum->($B), 'the same file';
        resumes($A, $B, $redis);
    },

    'Keys changed in the wrong order' => sub {
        my $redis = redis();
        my ($old, $new) = (new_session_key(), new_session_key());
        my ($A, $B) = (node('A', servers => $redis, keys => [ $new, $old ]), node('B', servers => $redis, keys => [$old]));
        for my $protocol (@protocols) {
            mend($B, keys => [$old]);
            my $session = stored($A, $redis, protocol => $protocol);
            seen('at B, which does not have the new key yet', $B, protocol => $protocol, session => $session);
            mend($B, keys => [ $old, $new ]);
            is visit($B, protocol => $protocol, session => $session)->{reused}, 'r', 'with the new key after the old one it is resumed';
        }
        mend($A, keys => [ $old, $new ]);
        for my $protocol (@protocols) {
            mend($B, keys => [$new]);
            my $session = stored($A, $redis, protocol => $protocol);
            seen('at B, which does not have the old key any more', $B, protocol => $protocol, session => $session);
            mend($B, keys => [ $new, $old ]);
            is visit($B, protocol => $protocol, session => $session)->{reused}, 'r', 'with the old key after the new one it is resumed';
        }
        like commands(nginx => $B), qr/ssl_session_key \Q$new\E;.*ssl_session_key \Q$old\E;/s, 'the commands show keys and order';
        resumes($A, $B, $redis);
    },

    'The store has lost it' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis) } qw(A B);
        my %session = map { $_ => stored($A, $redis, protocol => $_) } @protocols;
        $redis->restart;
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;
        resumes($A, $B, $redis);
        %session = map { $_ => stored($A, $redis, protocol => $_) } @protocols;
        $redis->cmd('FLUSHALL');
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;

        my $session = stored($A, $redis, protocol => 'TLSv1.2');
        cmp_ok $redis->cmd('MEMORY', 'USAGE', cache_key($session)), '<', 400, 'a session takes less than 400 bytes';
        $redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
        $redis->cmd('CONFIG', 'SET', 'maxmemory', $redis->info('used_memory') + 200_000);
        my $more = 0;
        wait_until { $redis->cmd('SET', 'more' . $more++, 'x' x 20_000); !$redis->cmd('EXISTS', cache_key($session)) } 20, 'no room for the session';
        seen('at B', $B, protocol => 'TLSv1.2', session => $session);
        like commands(redis => $redis), qr/^uptime_in_seconds:\d+\r?\nevicted_keys:[1-9]\d*\r?\nmaxmemory\n[1-9]\d*\n/m, 'the commands show it';
        $redis->cmd('CONFIG', 'SET', 'maxmemory', 0);
        resumes($A, $B, $redis);
    },

    'The store refuses sessions' => sub {
        my $password = secret('pass');
        my %case = (
            OOM => [ [], sub { $_[0]->cmd('CONFIG', 'SET', 'maxmemory', $_[1] ? 1 : 0) } ],
            READONLY => [ [], sub { $_[0]->cmd('REPLICAOF', $_[1] ? ('127.0.0.1', free_port()) : ('NO', 'ONE')) } ],
            NOPERM => [ [ users => { nginx => '>pass ~tls:* +get +set +del +ping' } ],
                sub { $_[0]->cmd('ACL', 'SETUSER', 'nginx', $_[1] ? '-set' : '+set') } ],
        );
        for my $case (sort keys %case) {
            my ($more, $refuse) = @{ $case{$case} };
            my $redis = redis(@$more);
            my ($A, $B) = map { node($_, servers => $redis, @$more ? (backend => "username nginx; password_file $password;") : ()) } qw(A B);
            $refuse->($redis, 1);
            for my $protocol (@protocols) {
                my $session = seen('at A', $A, protocol => $protocol);
                seen('at B', $B, protocol => $protocol, session => $session);
            }
            like $A->{nginx}->log, qr/ the last with "$case /, "$case is in the log";
            $refuse->($redis, 0);
            resumes($A, $B, $redis);
        }
    },

    'The store refuses lookups' => sub {
        my ($right, $wrong) = (secret('pass'), secret('wrong'));
        my $redis = redis(password => 'pass', users => { nginx => '>pass ~tls:* +get +set +del +ping', writer => '>pass ~tls:* +set +del +ping' });
        my $may = "password_file $right;";
        my $A = node('A', servers => $redis, backend => $may);
        my %other = ('without a password' => '', 'without the right to get' => "username writer; $may", 'with a wrong password' => "password_file $wrong;");
        for my $what (sort keys %other) {
            my $B = node('B', servers => $redis, backend => $other{$what});
            my $session = stored($A, $redis, protocol => 'TLSv1.3');
            seen("at B, $what", $B, protocol => 'TLSv1.3', session => $session);
            if ($what eq 'with a wrong password') {
                is visit($B, protocol => 'TLSv1.3', session => $session)->{fetch}, 'DOWN', 'then it counts as down';
            } else {
                seen("at B, $what", $B, protocol => 'TLSv1.2', session => stored($A, $redis, protocol => 'TLSv1.2'));
            }
            mend($B, backend => "username nginx; $may");
            resumes($A, $B, $redis);
        }
    },

    'The store is down' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis) } qw(A B);
        my %session = map { $_ => stored($A, $redis, protocol => $_) } @protocols;
        $redis->stop;
        # It may wait for the connection before it is known.
        wait_until { visit($B, protocol => 'TLSv1.2', session => $session{'TLSv1.2'})->{fetch} eq 'DOWN' } 10, 'the worker to know';
        seen('at B', $B, protocol => $_, session => $session{$_}) for @protocols;
        my ($down) = map { counted($B)->{$_} } grep { /^server_down_workers/ } sort keys %{ counted($B) };
        is $down, 1, 'a worker takes it for down';
        $redis->start;
        wait_until { visit($_, protocol => 'TLSv1.2')->{store} eq 'STORED' } 10, 'the worker to know' for $A, $B;
        resumes($A, $B, $redis);
    },

    'The store is too slow' => sub {
        my $redis = redis();
        my $relay = relay(upstream => $redis->address, delay => 100 * patience());
        my $A = node('A', servers => $redis);
        my $B = node('B', servers => $relay, limits => "connect_timeout $wait; fetch_timeout ${\ (50 * patience()) }ms;");
        for my $protocol (@protocols) {
            my $session = stored($A, $redis, protocol => $protocol);
            seen('at B', $B, protocol => $protocol, session => $session);
            # New workers know nothing of that.
            mend($B);
        }
        my $session = stored($A, $redis, protocol => 'TLSv1.2');
        $relay->hold;
        wait_until { visit($B, protocol => 'TLSv1.2', session => $session)->{fetch} eq 'DOWN' } 10, 'where nothing comes it counts as down';
        $relay->release;
        my ($tier) = grep { $_->{tier} eq 'fleet' } @{ json($B)->{tiers} };
        # The clock of nginx is as old as its turn of the loop.
        cmp_ok $tier->{lookup_seconds}{p99}, '>', 0.025 * patience(), 'JSON has how long it took';
        mend($B, limits => "connect_timeout $wait; fetch_timeout 30s;");
        resumes($A, $B, $redis);
    },

    'The queue is full' => sub {
        my $redis = redis();
        my $relay = relay(upstream => $redis->address);
        my $limits = 'connect_timeout 30s; fetch_timeout 60s; store_timeout 60s;';
        my $A = node('A', servers => $redis);
        my $B = node('B', servers => $relay, limits => $limits, backend => 'queue 1;');
        my @all = map { stored($A, $redis, protocol => $_) } @protocols, 'TLSv1.2';
        my $held = sub {
            my ($protocol, $session) = @_;
            my $gets   = $relay->requests('GET');
            my $client = client($B, protocol => $protocol, session => $session)->start;
            wait_until { $relay->requests('GET') > $gets } 10, 'its lookup';
            return $client;
        };
        $relay->hold;
        my @waits = $held->('TLSv1.2', $all[2]);
        # What is stored has a queue of its own.
        visit($B, protocol => 'TLSv1.2');
        wait_until { $relay->requests('SET') } 10, 'a store';
        for my $i (0, 1) {
            seen('at B', $B, protocol => $protocols[$i], session => $all[$i]);
        }
        my ($in_flight) = map { counted($B)->{$_} } grep { /^server_in_flight/ } keys %{ counted($B) };
        is $in_flight, 2, 'as many as the queues allow';
        $relay->release;
        is visited($B, $waits[0])->{reused}, 'r', 'the one that had room is resumed';
        mend($B, backend => 'queue 4096;');
        $relay->hold;
        @waits = map { $held->($protocols[$_], $all[$_]) } 0, 1;
        $relay->release;
        is visited($B, $_)->{reused}, 'r', 'now there is room' for @waits;
    },

    'Another place in the store' => sub {
        my $redis = redis();
        my $A = node('A', servers => $redis);
        my %place = (key_prefix => 'other:', database => 3);
        for my $what (sort keys %place) {
            my $B = node('B', servers => $redis, backend => "$what $place{$what};");
            seen("at B, with another `$what`", $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
            wait_until { commands(redis => $redis) =~ ($what eq 'database' ? qr/^db0:.*\ndb3:/m : qr/^ +\d+ other\n +\d+ tls\n/m) } 10, 'the commands to show it';
            resumes($B, $B);
            mend($B, backend => '');
            resumes($A, $B, $redis);
        }
    },

    'A zone is of one machine' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, fetch => 'shared:tls:1m', store => 'shared:tls:1m') } qw(A B);
        for my $protocol (@protocols) {
            my $session = visit($A, protocol => $protocol)->{session};
            seen('at B', $B, protocol => $protocol, session => $session);
            is visit($A, protocol => $protocol, session => $session)->{reused}, 'r', 'where it was made it is resumed';
            mend($A);
            is visit($A, protocol => $protocol, session => $session)->{reused}, 'r', 'after a reload, too';
            $A->{nginx}->stop;
            $A->{nginx}->start;
            seen('at A, started anew', $A, protocol => $protocol, session => $session);
        }
        like commands(nginx => $B), qr/ssl_session_fetch shared:.*ssl_session_store shared:/s, 'the commands show it';
        mend($_, fetch => 'shared:tls:1m fleet', store => 'shared:tls:1m fleet') for $A, $B;
        resumes($A, $B, $redis);
    },

    'Servers written differently' => sub {
        my @redis = (redis(), redis());
        my @port  = map { $_->port } @redis;
        my $A = node('A', servers => [ map { "127.0.0.1:$_" } @port ]);
        my $B = node('B', servers => [ map { "127.0.0.1:$_" } @port ]);
        my %other = (
            'another name' => [ "127.0.0.1:$port[0]", "localhost:$port[1]" ],
            weights        => [ "127.0.0.1:$port[0] weight=50", "127.0.0.1:$port[1]" ],
            'one server'   => [ "127.0.0.1:$port[0]" ],
        );
        my %of;
        for my $what (sort keys %other) {
            mend($B, servers => $other{$what});
            %of = ();
            # Of many sessions some are on the other server.
            wait_until {
                my $session = stored($A, \@redis, protocol => 'TLSv1.2');
                $of{ visit($B, protocol => 'TLSv1.2', session => $session)->{fetch} } //= $session;
                $of{HIT} && $of{MISS};
            } 30, 'a hit and a miss';
            is join(' ', sort keys %of), 'HIT MISS', "$what: some are found";
            seen('at B, some sessions', $B, protocol => 'TLSv1.2', session => $of{MISS});
        }
        mend($B, servers => $other{'another name'});
        like commands(nginx => $_), qr/server +\S+:$port[0]\n.*server +\S+:$port[1]\n/s, 'the commands show them' for $A, $B;
        mend($B, servers => [ map { "127.0.0.1:$_" } reverse @port ]);
        is visit($B, protocol => 'TLSv1.2', session => $of{$_})->{reused}, 'r', "$_ before" for sort keys %of;
        resumes($A, $B, \@redis) for 1 .. 3;
    },

    'ssl_session_cache is off' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis), node('B', servers => $redis, server => 'ssl_session_cache off;'));
        seen('at B, where it is off', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        like commands(nginx => $B), qr/ssl_session_cache off;/, 'the commands show it';
        mend($A, server => 'ssl_session_cache off;');
        mend($B, server => '');
        for (2, 3) {
            my $protocol = "TLSv1.$_";
            my $made = sub { seen('at A, where it is off', $A, protocol => $protocol) };
            seen("TLS 1.$_ at B, off at A", $B, protocol => $protocol, session => $made);
        }
        mend($_, server => 'ssl_session_cache none;') for $A, $B;
        resumes($A, $B, $redis);
    },

    'A directive is missing on one machine' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', servers => $redis, store => undef), node('B', servers => $redis));
        for my $protocol (@protocols) {
            my $session = seen('at A, without `ssl_session_store`', $A, protocol => $protocol);
            seen('at B, after it', $B, protocol => $protocol, session => $session);
        }
        my $said = commands(nginx => $A);
        like $said, qr/ssl_session_fetch fleet;/, 'the commands show one';
        unlike $said, qr/ssl_session_store \w/, 'and not the other';
        mend($A, store => 'fleet');
        mend($B, fetch => undef);
        seen('at B, without `ssl_session_fetch`', $B, protocol => $_, session => stored($A, $redis, protocol => $_)) for @protocols;
        mend($B, fetch => 'fleet');
        resumes($A, $B, $redis);
    },

    'A machine without the module' => sub {
        my $redis = redis();
        my ($A, $B) = (node('A', module => 0, tickets => 'on'), node('B', servers => $redis));
        my ($status, $said) = conf_test(module => 0, conf => $guide{'What to look at'}{nginx} =~ s/^server.*//msr);
        isnt $status, 0, 'the log_format is refused';
        like $guide{'A machine without the module'}{text}, qr/`(unknown "ssl_session_fetch_status" variable)`/, 'as the guide says';
        like $said, qr/unknown "ssl_session_fetch_status" variable/, 'in these words';
        for (2, 3) {
            my $protocol = "TLSv1.$_";
            my $made = sub { visit($A, protocol => $protocol)->{session} };
            seen("TLS 1.$_ at B, from a machine without it", $B, protocol => $protocol, session => $made);
        }
        mend($A, tickets => 'off');
        my $session = visit($A, protocol => 'TLSv1.3')->{session};
        is visit($B, protocol => 'TLSv1.3', session => $session)->{fetch}, unknown_status(session_id($session)),
            'what it issues itself is foreign';
        is visit($A, protocol => $_, session => stored($B, $redis, protocol => $_))->{reused}, '.', 'it resumes nothing' for @protocols;
        $A = node('A', servers => $redis);
        resumes($A, $B, $redis);
    },

    'A ticket offered twice' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, fetch => 'fleet single_use') } qw(A B);
        my $session = stored($A, $redis, protocol => 'TLSv1.3');
        is visit($B, protocol => 'TLSv1.3', session => $session)->{reused}, 'r', 'the first time it is resumed';
        seen('TLS 1.3 at B, again with the same ticket', $B, protocol => 'TLSv1.3', session => $session);
        $session = stored($A, $redis, protocol => 'TLSv1.3');
        for my $node ($A, $B, $A) {
            my $seen = visit($node, protocol => 'TLSv1.3', session => $session);
            is $seen->{reused}, 'r', 'one ticket after the other is resumed';
            $session = $seen->{session};
            in_store($redis, $session);
        }
        wait_until {
            my @said = commands(A => $A, B => $B, section => 'Try it yourself', again => 1) =~ /^(\w+), TLSv1\.3/mg;
            "@said" eq 'New Reused New';
        } 20, 'the commands to show it';
        mend($B, certs => ['rsa']);
        is visit($B, protocol => 'TLSv1.3', session => $session)->{fetch}, 'HIT', 'found where it is of no use';
        is visit($A, protocol => 'TLSv1.3', session => $session)->{fetch}, 'MISS', 'it is used up';
    },

    'Sessions with client certificates are not stored' => sub {
        my $redis = redis();
        my %arg   = (servers => $redis, server => "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};");
        my ($A, $B) = map { node($_, %arg, store => 'fleet no_client_cert') } qw(A B);
        my %client = (cert => $certs->{client_crt}, key => $certs->{client_key});
        for my $protocol (@protocols) {
            my $session = seen('at A', $A, protocol => $protocol, %client);
            seen('at B', $B, protocol => $protocol, %client, session => $session);
        }
        mend($_, store => 'fleet') for $A, $B;
        resumes($A, $B, $redis, %client);
        mend($A, server => $arg{server} =~ s/optional/on/r);
        for my $protocol (@protocols) {
            seen('at A, which refuses the client', $A, protocol => $protocol);
            seen('at A, which refuses the client', $A, protocol => $protocol, cert => $certs->{client_other_crt}, key => $certs->{client_other_key});
        }
    },

    'Another server name' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, server => "ssl_verify_client optional; ssl_client_certificate $certs->{ca_crt};") } qw(A B);
        my %client = (cert => $certs->{client_crt}, key => $certs->{client_key});
        for my $protocol (@protocols) {
            my $session = stored($A, $redis, protocol => $protocol, %client);
            seen('at B, by another name', $_, protocol => $protocol, %client, session => $session, sni => 'other.example.com') for $B, $A;
            is visit($B, protocol => $protocol, %client, session => $session)->{reused}, 'r', 'by its own name it is resumed';
        }
    },

    'The session is too large' => sub {
        my $redis = redis();
        my ($A, $B) = map { node($_, servers => $redis, server => 'ssl_verify_client optional_no_ca;') } qw(A B);
        my $file  = new_dir('large') . '/large';
        my $names = join ',', map { sprintf 'DNS:%s%03d.example.test', 'x' x 40, $_ } 1 .. 280;
        spew("$file.cnf", "[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nsubjectAltName=$names\n");
        system("openssl req -x509 -nodes -days 30 -subj /CN=large -newkey ec -pkeyopt ec_paramgen_curve:P-256"
            . " -config $file.cnf -keyout $file.key -out $file.crt >$file.log 2>&1") == 0 or die slurp("$file.log");
        for my $protocol (@protocols) {
            my %client  = (protocol => $protocol, cert => "$file.crt", key => "$file.key");
            my $session = seen('at A', $A, %client);
            seen('at B', $B, %client, session => $session);
        }
        resumes($A, $B, $redis, cert => $certs->{client_crt}, key => $certs->{client_key});
    },
);

is_deeply [ sort grep { $guide{$_}{rows} } keys %guide ], [ sort map { $causes[ 2 * $_ ] } 0 .. @causes / 2 - 1 ],
    'each cause of the guide is tested here, and no other one';

while (my ($heading, $produce) = splice @causes, 0, 2) {
    subtest $heading => sub { try_cause($heading, $produce) };
}

subtest 'What to look at' => sub {
    my $redis = redis();
    my ($A, $B) = map { node($_, servers => $redis) } qw(A B);
    resumes($A, $B, $redis);
    # Addresses, dates and times are those of another day.
    my $shape = sub { $_[0] =~ s/^\S+ \[[^]]*\] //r =~ s/time=0\.\d{6}/time=T/r };
    my @lines = map { s/^    //r } $guide{'What to look at'}{text} =~ /^(    \S+ \[.*)$/mg;
    is scalar @lines, 2, 'two examples';
    is $shape->((split /\n/, slurp("$A->{dir}/resumption.log"))[-1]), $shape->($lines[0]), 'a client that is new';
    is $shape->((split /\n/, slurp("$B->{dir}/resumption.log"))[-1]), $shape->($lines[1]), 'one that comes back';

    my ($prometheus, $json) = split /^(?=\{)/m, commands(nginx => $B, section => 'What to look at');
    like $prometheus, qr/^nginx_ssl_session_fetches_total\{.*status="HIT"\} 1$/m, 'counters';
    for my $counter (map { /^\w+/g } map { @{ $_->{counters} } } map { values %{ $_->{rows} // {} } } values %guide) {
        like $prometheus, qr/^nginx_ssl_session_$counter\{/m, "$counter is shown" if $counter !~ /^(?:tier_takes|server_queue)/;
    }
    is decode_json($json)->{version}, 2, 'JSON';
};

subtest 'Try it yourself' => sub {
    my $redis = redis();
    my ($A, $B) = map { node($_, servers => $redis, certs => ['rsa']) } qw(A B);
    my ($expected) = $guide{'Try it yourself'}{text} =~ /^((?:    (?:New|Reused), .*\n)+)/m;
    $expected =~ s/^    //mg;
    my $said;
    # B may be asked before the store has it.
    wait_until { $said = commands(A => $A, B => $B, dir => new_dir('try'), section => 'Try it yourself'); $said eq $expected } 20, 'what the guide says'
        or diag $said;
    is $said, $expected, 'it says what the guide has';
    mend($B, certs => ['rsa2']);
    is_deeply [ commands(A => $A, B => $B, dir => new_dir('try'), section => 'Try it yourself') =~ /^(\w+),/mg ], [ ('New') x 4 ],
        'and New where it does not resume';
};

subtest 'What you see' => sub {
    my @table = @{ $guide{'What you see'}{table} };
    cmp_ok scalar @table, '>', 15, 'there are rows';
    my %anchor = map { (lc =~ s/[^\w -]//gr =~ tr/ /-/r) => $_ } keys %guide;
    my %led;
    my $same = sub {
        my ($line, $cause, $row) = @_;
        return !grep({ $line->{$_} ne $row->{$_} } qw(reused fetch store))
            && !grep { my $counter = $_; !grep { $_ eq $counter } @{ $row->{counters} } } @{ $line->{counters} };
    };
    for my $line (@table) {
        my $what = join ' ', map({ $line->{$_} } qw(reused fetch store)), @{ $line->{counters} };
        for my $link ($line->{last} =~ /\]\(#([^)]+)\)/g) {
            my $cause = $anchor{$link} or fail("$link is a section"), next;
            # It has no visits of its own.
            next if $cause eq 'Found and withheld';
            my @rows  = grep { $same->($line, $cause, $guide{$cause}{rows}{$_}) } keys %{ $guide{$cause}{rows} };
            ok scalar(@rows), "$what: \"$cause\" shows so";
            $led{$cause}{$_} = 1 for @rows;
        }
    }
    for my $cause (grep { $guide{$_}{rows} } sort keys %guide) {
        ok $led{$cause}{$_}, "$cause, $_: is in the table" for sort keys %{ $guide{$cause}{rows} };
    }
};

done_testing;

# The sections of the guide, by their headings: text; the commands (sh) and the configuration (nginx)
# in it; of a cause rows, by what is visited, and lines of the log.
sub read_guide {
    my ($text) = @_;
    my ($in_causes, %guide) = (0);
    for my $part (split /^(?=##+ )/m, $text) {
        my ($level, $heading, $body) = $part =~ /^(##+) ([^\n]*)\n(.*)\z/s or next;
        $in_causes = $heading eq 'Causes' if $level eq '##';
        my %one = (text => $body);
        ($one{$_}) = $body =~ /^```$_\n(.*?)^```$/ms for qw(sh nginx);
        my @table;
        for my $row ($body =~ /^\| (.*) \|$/mg) {
            my @cell = split / ?\| ?/, $row =~ s/\| *$//r, -1;
            next if $row =~ /^[-|]+$/ || $row =~ /\breused \| fetch\b/;
            my ($what, $last) = $in_causes ? (shift @cell, undef) : (undef, pop @cell);
            my ($reused, $fetch, $store, $counters) = map { [ /`([^`]*)`/g ] } @cell;
            push @table, { what => $what, last => $last, counters => $counters // [],
                reused => "@$reused", fetch => "@$fetch", store => "@$store" };
        }
        $one{table} = \@table;
        if ($in_causes && $level eq '###') {
            $one{rows} = { map { $_->{what} => $_ } @table };
            my $lines = () = $body =~ /^(?:Log of|`nginx -t` at) /mg;
            while ($body =~ /^(?:Log of (A|B|A and B)|`nginx -t` at (A|B|A and B)), (error|warn|notice): `(.*)`$/mg) {
                my $pattern = join '.*?', map { quotemeta } split /…/, $4, -1;
                push @{ $one{log} }, { node => $_, level => $3, text => $4, conf => defined $2, pattern => qr/^$pattern/ }
                    for split / and /, $1 // $2;
                $lines--;
            }
            die "$heading: a line of the log is no line" if $lines;
        }
        $guide{$heading} = \%one;
    }
    return %guide;
}

# Produces a cause, and looks at what was left out.
sub try_cause {
    my ($heading, $produce) = @_;
    local $section = { %{ $guide{$heading} // return fail('a section') }, nodes => [], seen => {}, commands => 0 };
    $produce->();
    is_deeply [ sort keys %{ $section->{seen} } ], [ sort keys %{ $section->{rows} } ], 'all visits of the guide were made';
    ok $section->{commands}, 'its commands were run' if $section->{sh};
    for my $line (@{ $section->{log} // [] }) {
        my @nodes = grep { $_->{name} eq $line->{node} } @{ $section->{nodes} };
        my $said  = sub { my ($node) = @_; return $line->{conf} ? @{ $node->{warnings} } : map { message($_) } split /\n/, $node->{nginx}->log };
        my $there = eval { wait_until { grep { $_->[0] eq $line->{level} && $_->[1] =~ $line->{pattern} } map { $said->($_) } @nodes } 5, 'the line' };
        ok $there, "log of $line->{node}: $line->{text}";
    }
    for my $node (@{ $section->{nodes} }) {
        my @known = grep { $_->{node} eq $node->{name} } @{ $section->{log} // [] };
        my @other = grep { my $message = message($_); !grep { $message->[0] eq $_->{level} && $message->[1] =~ $_->{pattern} } @known }
            $node->{nginx}->errors(warn => 1);
        is_deeply \@other, [], "log of $node->{name}: nothing else";
    }
}

# Level and text of a line in error.log, or of what nginx -t says.
sub message {
    my ($line) = @_;
    return [ $1, $2 ] if $line =~ /\[(\w+)\] (?:\d+#\d+: )?(?:\*\d+ )?(.*)/;
    return [ '', $line ];
}

# A server of the fleet, with the configuration of the guide.
#
# servers => Redis, relay or addresses; keys => files, or 'off'; certs => names in certs()
# fetch, store => targets, undef: no such line; tickets, protocols => what their directives say
# limits, backend => lines of the backend; http, server => of http{} and of the site
# catch_all => 1: a default server before the site, which refuses all; module => 0: it has none
# env, main => of nginx()
sub node {
    my ($name, %arg) = @_;
    my $node = {
        name => $name, port => free_port(), status_port => free_port(), keys => [ session_key() ], certs => ['ec'],
        fetch => 'fleet', store => 'fleet', tickets => 'off', protocols => 'TLSv1.2 TLSv1.3',
        limits => "connect_timeout $wait; fetch_timeout $wait;", backend => '', http => '', server => '', module => 1, lines => 0, %arg,
    };
    $node->{nginx} = nginx(log => 'notice', conf => conf($node), map { ($_ => $node->{$_}) } grep { defined $node->{$_} } qw(module env main));
    $node->{dir} = $node->{nginx}->dir;
    push @{ $section->{nodes} }, $node;
    return warned($node);
}

# Changes a configuration, and reloads.
sub mend {
    my ($node, %change) = @_;
    %$node = (%$node, %change);
    $node->{nginx}->reload(conf($node));
    return warned($node);
}

sub warned {
    my ($node) = @_;
    push @{ $node->{warnings} }, map { message($_) } split /\n/, ($node->{nginx}->conf_test)[1]
        if grep { $_->{conf} } @{ $section->{log} // [] };
    return $node;
}

sub conf {
    my ($node) = @_;
    my $look = $guide{'What to look at'}{nginx};
    is $look =~ s/\b8080\b/$node->{status_port}/, 1, 'a port' or die;
    my $ours = '';
    if ($node->{module}) {
        my $to = $node->{servers};
        my @server = ref $to eq 'ARRAY' ? @$to : '127.0.0.1:' . $to->port;
        $ours = join "\n", map({ "ssl_session_key $_;" } @{ $node->{keys} }),
            "ssl_session_backend fleet {", map({ "server $_;" } @server), $node->{limits}, $node->{backend}, '}',
            map { defined $node->{$_} ? "ssl_session_$_ $node->{$_};" : () } qw(fetch store);
    } else {
        # What it does not know is nothing.
        $look =~ s/\$ssl_session_(?:fetch|store)_\w+/-/g;
        $look =~ s/ssl_session_status;//;
    }
    my $certs = join ' ', map { "ssl_certificate $certs->{qq{${_}_crt}}; ssl_certificate_key $certs->{qq{${_}_key}};" } @{ $node->{certs} };
    my $first = $node->{catch_all} ? "server { listen 127.0.0.1:$node->{port} ssl default_server; ssl_reject_handshake on; }" : '';
    return <<"CONF";
$ours
$look
$node->{http}
ssl_session_tickets $node->{tickets};
ssl_protocols       $node->{protocols};
$first
server {
    listen 127.0.0.1:$node->{port} ssl;
    server_name $name;
    $certs
    $node->{server}
    location / { return 200 "ok"; }
}
CONF
}

# --- visits ---

sub client {
    my ($node, %client) = @_;
    return tls_client(port => $node->{port}, sni => $name, %client);
}

# A visit: what the log has of it, and the session that the client has of it then.
sub visit {
    my ($node, %client) = @_;
    my $before = counted($node);
    return visited($node, client($node, %client), $before);
}

sub visited {
    my ($node, $client, $before) = @_;
    $before //= counted($node);
    defined $client->request or die "no answer from $node->{name}: " . $client->error;
    my $session = $client->protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session;
    return { %{ logged($node) }, session => $session // $client->{session}, before => $before, node => $node };
}

# The next line of the log.
sub logged {
    my ($node) = @_;
    my $number = $node->{lines}++;
    my $line = wait_until { my @lines = slurp("$node->{dir}/resumption.log") =~ /^(.*)\n/mg; $lines[$number] } 10, 'a line in the log';
    my %line = ("protocol=$line" =~ s/=\S+ \[.*?\] /=/r) =~ /(\w+)=(\S+)/g;
    return \%line;
}

# The visit that the guide calls so shows as it says. Returns the session that the client has then.
# session may be a function that makes one: of the IDs that nobody has issued with a key one in 256 has the key
# id of the key all the same, and is FORGED.
sub seen {
    my ($what, $node, %client) = @_;
    my $session = delete $client{session};
    my $visit;
    for (1 .. 4) {
        $visit = visit($node, %client, session => ref $session eq 'CODE' ? $session->() : $session);
        last if $visit->{fetch} ne 'FORGED';
    }
    compare($what, $visit);
    return $visit->{session};
}

sub compare {
    my ($what, $visit) = @_;
    my $row = $section->{rows}{$what} // return fail("\"$what\" is in the guide");
    $section->{seen}{$what} = 1;
    my ($node, $before) = @{$visit}{qw(node before)};
    $what = "$visit->{protocol} $what";
    # Where the guide has two, which one it is is chance.
    my @store = split / /, $row->{store};
    my ($store) = (grep({ $_ eq $visit->{store} } @store), @store);
    is "$visit->{reused} $visit->{fetch} $visit->{store}", "$row->{reused} $row->{fetch} $store", "$what: reused, fetch, store";
    return unless $node->{module};
    if ($row->{fetch} eq 'MISS') {
        my $withheld = !!grep { /^tier_lookups_total\{status="HIT"/ } @{ $row->{counters} };
        is $visit->{tier} ne '-', $withheld, "$what: a target had it only if it is withheld";
    }
    my $after;
    # What servers say of a session comes after the handshake.
    eval { wait_until { $after = counted($node); !grep { !grown($before, $after, $_) } @{ $row->{counters} } } 5, 'counters' };
    ok grown($before, $after, $_), "$what: $_" for @{ $row->{counters} };
    my @telling = grep { /$telling/ || ($row->{fetch} ne 'HIT' && /^tier_lookups_total\{.*status="HIT"/) } keys %$after;
    @telling = grep { !/^tier_drops_total/ } @telling if @store > 1;
    my @other = grep {
        my $counter = $_;
        $after->{$counter} != ($before->{$counter} // 0) && !grep { is_of($counter, $_) } @{ $row->{counters} };
    } @telling;
    is_deeply \@other, [], "$what: nothing else was counted";
    # The same as in the log.
    my %same = (fetches_total => $visit->{fetch}, new_sessions_total => $visit->{store});
    return if $visit->{request} > 1;
    for my $counter (sort keys %same) {
        my @grown = map { /status="(\w+)"/ } grep { /^$counter\{/ && $after->{$_} != ($before->{$_} // 0) } sort keys %$after;
        is "@grown", $same{$counter} =~ s/^-$//r, "$what: $counter";
    }
}

# A session that A has made is resumed at B. (protocols => [...], more of tls_client())
sub resumes {
    my ($A, $B, $redis, %client) = @_;
    my $protocols = delete $client{protocols} // \@protocols;
    for my $protocol (@$protocols) {
        my %one = (%client, $protocol eq 'both' ? () : (protocol => $protocol));
        my $session = $redis ? stored($A, $redis, %one) : visit($A, %one)->{session};
        my $seen;
        wait_until { $seen = visit($B, %one, session => $session); $redis || $seen->{fetch} ne 'MISS' } 5, 'the session';
        is "$seen->{reused} $seen->{fetch}", 'r HIT', "$protocol from $A->{name} to $B->{name}: resumed";
    }
}

# A session of that server, once it is in the store.
sub stored {
    my ($node, $redis, %client) = @_;
    my $seen = visit($node, %client);
    is $seen->{store}, 'STORED', "$seen->{protocol} at $node->{name}: stored";
    in_store($redis, $seen->{session}, $node->{keys}[0]);
    return $seen->{session};
}

sub in_store {
    my ($redis, $session, $key) = @_;
    wait_until { grep { $_->cmd('EXISTS', cache_key($session, $key)) } ref $redis eq 'ARRAY' ? @$redis : $redis } 10, 'the session in the store';
}

# --- counters ---

my $http;

sub get {
    my ($node, $query) = @_;
    $http //= HTTP::Tiny->new(no_proxy => ['127.0.0.1'], timeout => 10 * patience());
    my $answer = $http->get("http://127.0.0.1:$node->{status_port}/ssl-sessions?format=$query");
    die "$answer->{status} $answer->{content}" unless $answer->{success};
    return $answer->{content};
}

sub json { return decode_json(get($_[0], 'json')) }

# All that are counted, by name and labels as in the guide.
sub counted {
    my ($node) = @_;
    return {} unless $node->{module};
    return { get($node, 'prometheus') =~ /^nginx_ssl_session_(\w+\{[^}]*\}) (\S+)$/mg };
}

# Whether a counter with all of its labels is one of those that the guide means.
sub is_of {
    my ($counter, $meant) = @_;
    my ($name, $label) = $meant =~ /^(\w+)(?:\{(.*)\})?$/;
    return $counter =~ /^$name\{/ && (!defined $label || $counter =~ /[{,]\Q$label\E[,}]/);
}

sub grown {
    my ($before, $after, $meant) = @_;
    my $sum = 0;
    $sum += $after->{$_} - ($before->{$_} // 0) for grep { is_of($_, $meant) } keys %$after;
    return $sum;
}

# --- commands ---

# Runs the commands of the section, on these: A and B, for what they are called there; redis, nginx =>
# whom they ask; dir => where; again => 1: the last of them twice.
sub commands {
    my (%on) = @_;
    my $what = $guide{ $on{section} // '' } // $section;
    $section->{commands}++ if $section;
    my $sh = $what->{sh};
    $sh .= $1 if $on{again} && $sh =~ /([^\n]*\n)\z/;
    for my $name (qw(A B)) {
        my $host = lc $name . '.example.com:443';
        $sh =~ s/\b\Q$host\E\b/127.0.0.1:$on{$name}{port}/g if $on{$name};
    }
    $sh =~ s/\b8080\b/$on{nginx}{status_port}/g if $on{nginx};
    my $before = "export no_proxy='*'\n";
    $before .= "redis-cli() { command redis-cli -p ${\ $on{redis}->port } \"\$@\"; }\n" if $on{redis};
    $before .= "nginx() { '${\ nginx_binary() }' -p '$on{nginx}{dir}/' -c '$on{nginx}{dir}/nginx.conf' -e stderr \"\$@\"; }\n" if $on{nginx};
    my $dir  = $on{dir} // new_dir('commands');
    my $file = spew("$dir/commands", $before, $sh);
    my $said = `cd '$dir' && timeout ${\ (30 * patience()) } bash '$file' </dev/null 2>&1`;
    $_->{lines} = () = slurp("$_->{dir}/resumption.log") =~ /\n/g for grep { $_ } @on{qw(A B)};
    return $said;
}

# A file of a password.
sub secret {
    my ($password) = @_;
    my $file = spew(tmpdir() . "/$password.pass", "$password\n");
    chmod 0600, $file;
    return $file;
}
