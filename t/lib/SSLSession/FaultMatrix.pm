package SSLSession::FaultMatrix;

# A table of faults and of what they meet. Each column is an nginx with a relay between it and a
# real store; each row is a fault, which befalls all columns at the same time. What a cell must show
# stands in the table; what all of them must show is in _check().

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Client;
use SSLSession::Nginx;
use SSLSession::Relay;
use SSLSession::Sealing qw(cache_key);
use SSLSession::Util qw(free_port freeze patience slurp wait_until);

use Exporter qw(import);
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(column run_matrix);

# fetch_timeout, store_timeout and connect_timeout, in milliseconds.
use constant TIMEOUT => 200;
# What a busy machine may add to the time of a lookup, and to that of all handshakes that stand in
# line for this one process, in milliseconds.
use constant SLACK => 180;
use constant LINE  => 1500;
# How soon after the end of a fault there are hits again, in seconds: a pause of the breaker, and
# what still drips.
use constant RECOVERY => 4;
# How often a row is run that a busy machine has spoiled.
use constant TRIES => 4;
# How much memory a second pass over the table may add, in KB.
use constant GROWTH => 512;

# The faults. Each is there until _heal(), or befalls the next reply only; a stall, a cut and a
# reset come after that many bytes.
my %fault = (
    'a delay within the timeout' => sub { $_[0]->delay(TIMEOUT * patience() / 10) },
    'a delay beyond the timeout' => sub { $_[0]->delay(3 * TIMEOUT * patience()) },
    'a stall'                    => sub { my ($relay, $at) = @_; $relay->stall($at) },
    'a cut'                      => sub { my ($relay, $at) = @_; $relay->cut($at) },
    'a reset'                    => sub { my ($relay, $at) = @_; $relay->reset_after($at) },
    'all is garbled'             => sub { $_[0]->garble },
    'a reply is garbled'         => sub { $_[0]->garble(1) },
    'a value is garbled'         => sub { $_[0]->garble_value(1) },
    'a reply comes twice'        => sub { $_[0]->duplicate(1) },
    'two replies change places'  => sub { $_[0]->swap(1) },
    'a reply is lost'            => sub { $_[0]->lose(1) },
    # The first byte comes in time, the last one does not.
    'byte by byte'               => sub { $_[0]->drip; $_[0]->delay(0.6 * TIMEOUT * patience()) },
    'silence'                    => sub { $_[0]->mute },
    'nobody accepts'             => sub { $_[0]->deaf },
    'connections are closed'     => sub { $_[0]->refuse },
    'connections are refused'    => sub { $_[0]->stop },
);

# What a fault meets:
#     lookup     lookups on a connection that has worked
#     tls_lookup the same, where a "reply" is a TLS record
#     store      new sessions, on a connection that has worked
#     connect    lookups that make a connection, which begins with them
#     greeting   lookups that make a connection, which begins with AUTH or the like
#     handshake  lookups that make a connection, which begins with a TLS handshake
#
# A cell: what the four lookups that meet the fault may be, ">", what four that come while it is
# still there may be, or after it if it was one reply's. With "!" one of them at least has to be.
# Then: "down" if the server goes down once ("down?": it may), "lost" if one entry may be gone
# afterwards, "stored" if new sessions are in the store nonetheless.
# Where sessions are stored over the same link, they may have found the server before the lookups.
my @table = (
    [ 'a delay within the timeout',
        lookup     => 'HIT > HIT',
        tls_lookup => 'HIT > HIT',
        store      => '- > HIT stored',
        connect    => 'HIT > HIT',
        greeting   => 'HIT > HIT',
        handshake  => 'HIT > HIT' ],
    [ 'a delay beyond the timeout',
        lookup     => 'TIMEOUT > TIMEOUT|DOWN down?',
        tls_lookup => 'TIMEOUT > TIMEOUT|DOWN down?',
        store      => '- > TIMEOUT|DOWN down?',
        connect    => 'TIMEOUT > TIMEOUT|DOWN down?',
        greeting   => 'TIMEOUT > TIMEOUT|DOWN down',
        handshake  => 'TIMEOUT > TIMEOUT|DOWN down' ],
    # Three bytes have come in time, and no complete reply: that is silence. The link is given up when
    # it has been silent for long, or when another one works.
    [ 'a stall',
        lookup     => 'TIMEOUT > TIMEOUT|DOWN down?',
        tls_lookup => 'TIMEOUT > TIMEOUT|DOWN down?',
        store      => '- > TIMEOUT|DOWN down?',
        connect    => 'TIMEOUT > TIMEOUT|DOWN down?',
        greeting   => 'TIMEOUT > TIMEOUT|DOWN down',
        handshake  => 'TIMEOUT > TIMEOUT|DOWN down' ],
    # A connection that has worked may end: the next one does. If it was idle for long, what was asked
    # on it is asked again.
    [ 'a cut',
        lookup     => 'ERROR|HIT > HIT',
        tls_lookup => 'ERROR|HIT > HIT',
        store      => '- > HIT',
        connect    => 'ERROR > DOWN down',
        greeting   => 'ERROR > DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    [ 'a reset',
        lookup     => 'ERROR|HIT > HIT',
        tls_lookup => 'ERROR|HIT > HIT',
        store      => '- > HIT',
        connect    => 'ERROR > DOWN down',
        greeting   => 'ERROR > DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    # In TLS the connection merely ends, and the next one shows what the server is like.
    [ 'all is garbled',
        lookup     => 'ERROR > DOWN down',
        tls_lookup => 'ERROR > ERROR|DOWN down',
        store      => '- > DOWN|ERROR down',
        connect    => 'ERROR > DOWN down',
        greeting   => 'ERROR > DOWN down',
        handshake  => 'ERROR > DOWN down' ],
    [ 'a reply is garbled',
        lookup     => 'ERROR > DOWN down',
        tls_lookup => 'ERROR > HIT',
        store      => '- > DOWN|HIT|ERROR down?',
        connect    => 'ERROR > DOWN down',
        greeting   => 'ERROR > DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    # The entry is removed over the link for stores, before or after the next lookup.
    [ 'a value is garbled',
        lookup     => 'CORRUPT!|HIT! > MISS|HIT! lost',
        connect    => 'CORRUPT!|HIT! > MISS|HIT! lost' ],
    # From here on answers belong to others: after the second one the connection is closed.
    [ 'a reply comes twice',
        lookup     => 'HIT!|CORRUPT!|ERROR > DOWN|HIT|MISS down? lost',
        tls_lookup => 'HIT|ERROR > HIT',
        store      => '- > DOWN|HIT|ERROR down?',
        connect    => 'HIT!|CORRUPT!|ERROR > DOWN|HIT|MISS down? lost',
        greeting   => 'ERROR > DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    # Where there is one reply only it waits for the second one.
    [ 'two replies change places',
        lookup     => 'CORRUPT!|HIT|ERROR > HIT|MISS lost',
        tls_lookup => 'TIMEOUT|ERROR|HIT > DOWN|HIT down?',
        store      => '- > HIT stored',
        connect    => 'CORRUPT!|HIT|ERROR > HIT|MISS lost',
        greeting   => 'TIMEOUT|ERROR > TIMEOUT|DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    [ 'a reply is lost',
        lookup     => 'CORRUPT!|ERROR > HIT|MISS lost',
        tls_lookup => 'TIMEOUT|ERROR|HIT > DOWN|HIT down?',
        store      => '- > HIT|ERROR|DOWN down?',
        connect    => 'CORRUPT!|ERROR > HIT|MISS lost',
        greeting   => 'TIMEOUT|ERROR > TIMEOUT|DOWN|HIT down',
        handshake  => 'ERROR > DOWN|HIT down' ],
    # A server that completes no reply in time is silent, however many bytes of it have come. A worker
    # that had to wait for the processor has the first reply as a whole; it comes first to what it
    # reads.
    [ 'byte by byte',
        lookup     => 'TIMEOUT!|HIT > TIMEOUT|DOWN|HIT down?',
        tls_lookup => 'TIMEOUT > TIMEOUT|DOWN down?',
        store      => '- > TIMEOUT|DOWN|HIT down? stored',
        connect    => 'TIMEOUT!|HIT > TIMEOUT|DOWN|HIT down?',
        greeting   => 'TIMEOUT!|HIT > TIMEOUT|DOWN|HIT down?',
        handshake  => 'TIMEOUT > TIMEOUT|DOWN down' ],
    [ 'silence',
        lookup     => 'TIMEOUT > TIMEOUT|DOWN down?',
        tls_lookup => 'TIMEOUT > TIMEOUT|DOWN down?',
        store      => '- > TIMEOUT|DOWN down?',
        connect    => 'TIMEOUT > TIMEOUT|DOWN down?',
        greeting   => 'TIMEOUT > TIMEOUT|DOWN down',
        handshake  => 'TIMEOUT > TIMEOUT|DOWN down' ],
    [ 'nobody accepts',
        lookup     => 'HIT > HIT',
        tls_lookup => 'HIT > HIT',
        store      => '- > HIT stored',
        connect    => 'TIMEOUT > TIMEOUT|DOWN down',
        greeting   => 'TIMEOUT > TIMEOUT|DOWN down',
        handshake  => 'TIMEOUT > TIMEOUT|DOWN down' ],
    [ 'connections are closed',
        lookup     => 'HIT > HIT',
        tls_lookup => 'HIT > HIT',
        store      => '- > HIT stored',
        connect    => 'ERROR > DOWN down',
        greeting   => 'ERROR > DOWN down',
        handshake  => 'ERROR > DOWN down' ],
    [ 'connections are refused',
        lookup     => 'DOWN > DOWN down',
        tls_lookup => 'DOWN > DOWN down',
        store      => '- > DOWN down',
        connect    => 'DOWN > DOWN down',
        greeting   => 'DOWN > DOWN down',
        handshake  => 'DOWN > DOWN down' ],
);

# Rows that take long and are not run a second time; and one whose bytes do not wait for a slow
# machine.
my %slow = map { $_ => 1 } 'a delay beyond the timeout', 'a stall', 'byte by byte';

# A column: an nginx whose backend is behind a relay.
# name     => for the tests' names
# meets    => what the faults meet there, see above
# server   => the store, a SSLSession::Redis or ::Memcached
# upstream => its address (address())
# backend  => lines of the block
# aside    => URL: sessions are stored there, past the relay
# at       => 3: how many bytes come before a stall, a cut or a reset
sub column {
    my (%arg) = @_;
    my %column = (at => 3, upstream => $arg{server}->address, %arg);
    my $certs  = certs();
    my $port   = free_port();
    my $relay  = SSLSession::Relay->new(upstream => $column{upstream});
    my $ms     = TIMEOUT * patience() . 'ms';
    my $kind   = $arg{server}->isa('SSLSession::Redis') ? 'redis' : 'memcached';
    my $store  = $column{aside} // 'faulty';
    # With fail_timeout the pauses are short, too.
    my $nginx  = SSLSession::Nginx->new(log => 'notice', conf => <<"CONF");
    ssl_session_backend faulty {
        server          127.0.0.1:@{[ $relay->port ]} max_fails=1 fail_timeout=1s;
        protocol        $kind;
        connect_timeout $ms;
        fetch_timeout   $ms;
        store_timeout   $ms;
        @{ $column{backend} // [] }
    }
    ssl_session_fetch   faulty;
    ssl_session_store   $store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / {
            return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time|\$ssl_session_id";
        }
    }
CONF
    my ($pid) = $nginx->workers;
    return { %column, port => $port, relay => $relay, nginx => $nginx, pid => $pid,
        peer => "$kind 127.0.0.1:" . $relay->port };
}

# Runs the table for these columns, and most of it once more.
sub run_matrix {
    my (@columns) = @_;
    my %rss;
    for my $pass (1, 2) {
        for my $row (@table) {
            my ($fault, %cell) = @$row;
            next if $pass == 2 && $slow{$fault} || $fault eq 'byte by byte' && patience() > 1;
            my @met = grep { $cell{ $_->{meets} } } @columns or next;
            for my $column (_row_in_time($fault, \%cell, @met)) {
                my $cell = $column->{cell};
                subtest "$fault, $column->{name} ($pass)" => sub {
                    for (@{ $cell->{checks} }) {
                        my (undef, $name, @wrong) = @$_;
                        ok !@wrong, $name or diag join "\n", @wrong;
                    }
                    note $cell->{note};
                };
            }
        }
        for my $column (@columns) {
            $rss{ $column->{name} }{$pass} = $column->{nginx}->rss;
        }
    }
    for my $column (@columns) {
        my ($name, $nginx, $pid) = @$column{qw(name nginx pid)};
        subtest "$name: nothing is left over" => sub {
            is_deeply [ $nginx->workers ], [$pid], 'the worker is the same';
            note "$rss{$name}{1} KB, $rss{$name}{2} KB";
            cmp_ok $rss{$name}{2} - $rss{$name}{1}, '<', GROWTH * patience(), 'memory stays as it was';
            ok eval { $nginx->quit; 1 }, 'nginx exits in order' or diag $@;
            is $nginx->log_count(qr/\[(?:emerg|alert|crit)\]/), 0, 'no alert';
        };
    }
}

sub _cell {
    my ($text) = @_;
    my ($first, $then, $more) = $text =~ /^(\S+) > (\S+) ?(.*)/ or die "not a cell: $text\n";
    my %more = map { $_ => 1 } split / /, $more;
    return { first => $first, then => $then, stored => $more{stored}, lost => $more{lost} // 0,
        down => $more{down} ? '1' : $more{'down?'} ? '[01]' : '0' };
}

# One fault in all columns; again, if something has its time and is not as it should be, and a
# process that has a part in it had to wait for a processor so long that this may be why. Returns
# the columns.
sub _row_in_time {
    my ($fault, $expected, @columns) = @_;
    for my $try (1 .. TRIES) {
        $_->{cell} = _cell($expected->{ $_->{meets} }) for @columns;
        my $before = _waits(@columns);
        _row($fault, @columns);
        my $after  = _waits(@columns);
        my $waited = max(map { $after->{$_} - ($before->{$_} // 0) } keys %$after);
        $_->{cell}{checks} = [ _check($_) ] for @columns;
        my @failed = grep { @$_ > 2 } map { @{ $_->{cell}{checks} } } @columns;
        last if !@failed || grep { $_->[0] eq 'always' } @failed;
        last if $waited < TIMEOUT * patience() / 4;
        diag sprintf '%s: %.0f ms without a processor', $fault, $waited;
    }
    return @columns;
}

# How long each of them has waited for a processor so far, in milliseconds (proc(5), schedstat).
sub _waits {
    my (@columns) = @_;
    my @pids = ($$, map { ($_->{pid}, map { $_->process->pid } @$_{qw(relay server)}) } @columns);
    return { map { $_ => ((split ' ', slurp("/proc/$_/schedstat"))[1] // 0) / 1e6 } @pids };
}

# One fault in all columns.
sub _row {
    my ($fault, @columns) = @_;
    for my $column (@columns) {
        my $cell = $column->{cell};
        # Each of its lines is there once a second.
        wait_until { time > ($column->{said} // 0) + 1.1 } 5, "$column->{name}: a second";
        $cell->{stock} = _prime($column);
        $cell->{fds}   = _fds($column);
        $cell->{from}  = $column->{nginx}->log_pos;
    }
    my @apart = grep { $_->{meets} =~ /^(?:connect|greeting|handshake)$/ } @columns;
    $_->{relay}->close_all for @apart;
    _wait_link_gone(@apart);
    $fault{$fault}->($_->{relay}, $_->{at}) for @columns;
    _wait_link_gone(grep { !$_->{relay}->process->alive } @columns);

    for my $wave (qw(first then)) {
        _wave($wave, map {
            my @stock = $_->{cell}{$wave} eq '-' ? () : @{ $_->{cell}{stock} }[ 0 .. 3 ];
            [ $_, @stock, [ 'TLSv1.2' ], [ 'TLSv1.3' ] ];
        } @columns);
    }

    my $healed = time;
    _heal($_) for @columns;
    for my $column (@columns) {
        my $cell  = $column->{cell};
        my @stock = @{ $cell->{stock} };
        my $hits  = sub { !grep { _visit($column, @$_)->{word} ne 'HIT' } @stock[ 4, 5 ] };
        $cell->{back}  = eval { wait_until { $hits->() } RECOVERY, 'hits'; time - $healed };
        $cell->{after} = [ map { _visit($column, @$_) } @stock[ 0 .. 3 ] ];
        # Stored, or not, in the fault.
        my @new = map { $_->{session} // () } @{ $cell->{first_results} };
        $cell->{new}   = [ map { _visit($column, 'TLSv1.2', $_) } @new ];
        eval { wait_until { _fds($column) == $cell->{fds} } 5, 'descriptors' };
        $cell->{left}  = _fds($column) - $cell->{fds};
    }
}

# Six sessions that are in the store, as [protocol, session]: four to be offered in the fault, and
# one of each protocol for the time after it.
sub _prime {
    my ($column) = @_;
    my @made;
    for my $protocol (qw(TLSv1.2 TLSv1.3 TLSv1.2 TLSv1.2 TLSv1.3)) {
        # TLS 1.3 gives two.
        my $wanted = $protocol eq 'TLSv1.3' && @made == 1 ? 2 : 1;
        push @made, wait_until { _stored($column, $protocol, $wanted) } 10,
            "$column->{name}: a session in the store";
    }
    @made = map { @$_ } @made;
    wait_until { _visit($column, @{ $made[4] })->{word} eq 'HIT' } 5, "$column->{name}: a hit";
    return \@made;
}

# So many new sessions; undef when they do not get to the store soon.
sub _stored {
    my ($column, $protocol, $wanted) = @_;
    my $client = _client($column, $protocol);
    defined $client->request or die "$column->{name}: " . $client->error;
    my @sessions = $protocol eq 'TLSv1.2' ? $client->session : $client->sessions;
    splice @sessions, $wanted;
    my $store = $column->{server};
    my $has   = $store->can('get')
        ? sub { defined $store->get($_[0]) }
        : sub { $store->cmd('EXISTS', $_[0]) };
    for my $session (@sessions) {
        my $key = cache_key(SSLSession::Client::session_id($session));
        eval { wait_until { $has->($key) } 1 } or return undef;
    }
    return [ map { [ $protocol, $_ ] } @sessions ];
}

sub _fds { my ($column) = @_; return scalar(() = glob "/proc/$column->{pid}/fd/*") }

sub _wait_link_gone {
    for my $column (@_) {
        wait_until { _fds($column) < $column->{cell}{fds} } 5, "$column->{name}: end of the link";
    }
}

sub _client {
    my ($column, $protocol, $session) = @_;
    return SSLSession::Client->new(
        port => $column->{port}, protocol => $protocol, session => $session);
}

# What became of a handshake and its request.
sub _result {
    my ($client, $protocol, $session) = @_;
    my $answer = $client->request;
    my %result = (protocol => $protocol, offered => defined $session,
        word => 'none', time => 0, reused => 0, own => 1);
    if (!defined $answer) {
        $result{error} = $client->error || 'no answer';
        return \%result;
    }
    (@result{qw(word time)}, my $id) = split /\|/, $answer, -1;
    $result{time}  ||= 0;
    $result{reused}  = $client->reused;
    $result{session} = $client->session if $protocol eq 'TLSv1.2' && !$result{offered};
    # In TLS 1.3 the ID is a new one; there the binder has shown that the session is the client's.
    $result{own} = lc $id eq SSLSession::Client::session_name($session)
        if $result{reused} && $protocol eq 'TLSv1.2';
    # nginx has closed its side then: the descriptor is gone.
    $client->wait_closed;
    $client->close;
    return \%result;
}

sub _visit { my ($column, @what) = @_; return _result(_client($column, @what), @what) }

# Handshakes in several columns, all at once: [column, [protocol, session], ...] each. A worker
# finds all ClientHellos in one turn of its event loop.
sub _wave {
    my ($name, @waves) = @_;
    my @open;
    for (@waves) {
        my ($column, @what) = @$_;
        my @clients = map { _client($column, @$_) } @what;
        $_->client_hello for @clients;
        push @open, { column => $column, what => \@what, clients => \@clients };
    }
    for my $wave (@open) {
        wait_until { _are_accepted($wave->{column}, @{ $wave->{clients} }) } 5, "$wave->{column}{name}: accepted connections";
    }
    freeze(map { $_->{column}{pid} } @open);
    for my $wave (@open) { $_->start for @{ $wave->{clients} } }
    my $start = time;
    kill CONT => $_->{column}{pid} for @open;
    for my $wave (@open) {
        my ($cell, $clients, $what) = ($wave->{column}{cell}, @$wave{qw(clients what)});
        my @results = map { _result($clients->[$_], @{ $what->[$_] }) } 0 .. $#$clients;
        $cell->{"${name}_results"} = \@results;
        $cell->{"${name}_took"}    = 1000 * (time - $start);
    }
}

# Whether nginx has accepted them: until then its end of a connection has no inode (proc_pid_net(5)).
sub _are_accepted {
    my ($column, @clients) = @_;
    my %inode;
    for my $end (split /\n/, slurp('/proc/net/tcp')) {
        my ($ours, $theirs, $inode) = (split ' ', $end)[ 1, 2, 9 ];
        $inode{ hex $1 } = $inode if $ours =~ /:(\w+)\z/ && hex $1 == $column->{port} && $theirs =~ /:(\w+)\z/;
    }
    return !grep { !$inode{ $_->sock->sockport } } @clients;
}

sub _heal {
    my ($column) = @_;
    my $relay = $column->{relay};
    if (!$relay->process->alive) {
        $column->{relay} = SSLSession::Relay->new(
            upstream => $column->{upstream}, port => $relay->port);
        return;
    }
    $relay->$_(0) for qw(delay chunk garble mute refuse deaf);
    $relay->$_(undef) for qw(stall cut);
}

# What a cell has shown: [when, name, what is wrong about it...] for each thing that it has to show:
# 'always', or 'in time' if a busy machine may spoil it.
sub _check {
    my ($column) = @_;
    my $cell = $column->{cell};
    my @all  = map { @$_ } @$cell{qw(first_results then_results after new)};
    my @strange = map { $_->{word} || 'none' } grep { $_->{reused} != ($_->{word} eq 'HIT') } @all;
    my @checks  = (
        [ always => 'no handshake fails', map { $_->{error} // () } @all ],
        [ always => 'resumed if and only if it is a hit', @strange ],
        [ always => 'each with its own session', map { $_->{protocol} } grep { !$_->{own} } @all ],
        map({ _check_wave($cell, $_) } qw(first then)),
    );

    my @gone  = map { $_->{word} } grep { $_->{word} ne 'HIT' } @{ $cell->{after} };
    my ($new) = map { $_->{word} } @{ $cell->{new} }, { word => 'none' };
    my $stored = $new eq 'HIT' || !$cell->{stored} && $new eq 'MISS';
    my $back   = $cell->{back};
    push @checks,
        [ 'in time', 'hits return, without a reload', defined $back ? () : 'they do not' ],
        [ 'in time', 'and each session is a hit or a miss', grep { $_ ne 'MISS' } @gone ],
        [ 'in time', 'no more are gone than were bad', @gone > $cell->{lost} ? scalar @gone : () ],
        [ 'in time', 'a new session is stored, where that can be', $stored ? () : $new ],
        # What is removed makes a link for it where nothing is stored.
        [ always => 'no descriptor is left', $cell->{left} > ($column->{aside} ? 1 : 0) ? $cell->{left} : () ];

    my $peer  = quotemeta $column->{peer};
    my @log   = split /\n/, $column->{nginx}->log($cell->{from});
    my $downs = grep { /\[error\] .*: $peer is down: / } @log;
    my $ups   = grep { /\[notice\] .*: $peer is up again/ } @log;
    $column->{said} = time if $downs || $ups;
    my $about = qr/$peer(?: is down)?: |$peer refused |SSL sessions not stored|corrupt SSL session/;
    my %times;
    for (grep { /$about/ && !/$peer is down: / } @log) {
        my ($second, $text) = m{^(\S+ \S+) \[\w+\] \d+#\d+: (?:\*\d+ )?(.*)} or next;
        # Session hashes and counts.
        $text =~ s/\b(?:[0-9a-f]{8}|\d+)\b/N/g;
        $times{"$second $text"}++;
    }
    my $expected = $downs =~ /^$cell->{down}$/;
    my @others   = grep { /\[(?:emerg|alert|crit|error|warn)\]/ && !/$about/ } @log;
    push @checks,
        [ 'in time', 'whether the server was down', $expected ? () : "$downs times" ],
        [ 'in time', 'and up again', $ups == $downs ? () : "$ups times" ],
        [ always => 'nothing else is in the log', @others ],
        [ always => 'and of a kind one line a second', grep { $times{$_} > 1 } sort keys %times ];
    $cell->{note} = sprintf '%s > %s; down %d, gone %d, new %s, back after %.0f ms',
        @$cell{qw(first_words then_words)}, $downs, scalar @gone, $new, 1000 * ($back // 0);
    return @checks;
}

sub _check_wave {
    my ($cell, $wave) = @_;
    my ($timeout, $line) = map { $_ * patience() } TIMEOUT + SLACK, TIMEOUT + SLACK + LINE;
    my @results = @{ $cell->{"${wave}_results"} };
    my @words   = map { $_->{word} } grep { $_->{offered} } @results;
    my @without = map { $_->{word} } grep { !$_->{offered} } @results;
    my %may     = map { $_ => 1 } split /\|/, $cell->{$wave} =~ tr/!//dr;
    my $wrong   = grep { !$may{$_} } @words;
    for my $must ($cell->{$wave} =~ /(\w+)!/g) {
        $wrong ||= !grep { $_ eq $must } @words;
    }
    $cell->{"${wave}_words"} = "@words";
    my $took    = $cell->{"${wave}_took"};
    my @overdue = grep { $_ > $timeout } map { 1000 * $_->{time} } @results;
    return [ 'in time', "$wave: $cell->{$wave}", $wrong ? "@words" : () ],
        [ always => 'no lookup without a session', grep { $_ ne '' } @without ],
        [ 'in time', 'no lookup lasts longer than its timeout', map { "$_ ms" } @overdue ],
        [ 'in time', 'nor do the handshakes', $took > $line ? "$took ms" : () ];
}

1;
