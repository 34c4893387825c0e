package SSLSession::Property;

# Whether a session brings more, or less, than a full handshake: asked of draws of configurations and
# of what clients do there (SSLSession::Property::Draw), and not of examples.
#
# For each visit, with whatever session:
#   I1  what a full handshake refuses is refused;
#   I2  what a full handshake accepts is served;
#   I3  variables say of the client what they say after a full handshake.
#
# What a full handshake comes to is asked of the same nginx with the same configuration, without this
# module and without caches and tickets. It is that of the client who is there; where a session was
# resumed, that of the one for whom it stands: who has a session has its secret.

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Client;
use SSLSession::EarlyData qw(early_client);
use SSLSession::Nginx;
use SSLSession::Property::Draw qw(copy);
use SSLSession::Redis;
use SSLSession::Sealing qw(session_key);
use SSLSession::Util qw(free_port module_path new_dir root slurp spew);

use Digest::MD5 qw(md5_hex);
use Exporter qw(import);
use File::Path qw(remove_tree);
use JSON::PP ();
use Time::HiRes qw(time);

our @EXPORT_OK = qw(run shrink report kept to_json from_json);

my $json = JSON::PP->new->canonical->allow_nonref;
sub to_json   { return $json->encode($_[0]) }
sub from_json { return $json->decode($_[0]) }

my $certs = certs();
my %ca = (
    x => $certs->{ca_crt}, y => $certs->{other_ca_crt}, bundle => $certs->{ca_bundle_crt},
    renewed => $certs->{ca_renewed_crt},
);
my %who = (none => []);
{
    my %file = (
        good => 'client', other => 'client_other', renewed => 'client_renewed', revoked => 'backend_revoked',
        deep => 'backend_deep', leaf => 'backend_leaf', self => 'backend_self', expired => 'backend_expired',
    );
    while (my ($who, $file) = each %file) {
        $who{$who} = [ cert => $certs->{"${file}_crt"}, key => $certs->{"${file}_key"} ];
    }
}

# What tells who the client is and where it is; the last of all is for us.
my @shown = qw(server_name ssl_server_name ssl_protocol ssl_client_verify ssl_client_fingerprint
               ssl_client_s_dn ssl_client_i_dn ssl_client_escaped_cert);

# --- configurations ---

# The text of http{} or stream{}. port => of its sockets, full => 1: for full handshakes,
# stream => 1: for stream{}.
sub conf_text {
    my ($conf, %arg) = @_;
    my $http = $conf->{http};
    my $text = $arg{full} ? '' : _http_text($http);
    $text .= <<"CONF";
    map \$ssl_server_name \$certificate { default $certs->{ec_crt}; b.example.test $certs->{ec2_crt}; }
    map \$ssl_server_name \$certificate_key { default $certs->{ec_key}; b.example.test $certs->{ec2_key}; }
CONF
    return $text . _servers_text($conf, %arg);
}

my $redis;
sub _redis { return $redis //= SSLSession::Redis->new }

sub _http_text {
    my ($http) = @_;
    my %target = (redis => 'fleet', shared => 'shared:sessions:1m');
    my @fetch = map { $target{$_} } @{ $http->{fetch} };
    my @store = map { $target{$_} } @{ $http->{store} };
    my $text  = "    ssl_session_key @{[ session_key() ]};\n";
    # The fallback needs a store that others share.
    my $keys = _has('ssl_session_ticket_keys') && $http->{ticket_keys} ? $http->{ticket_keys} : '';
    my $back = $keys && $http->{fallback} && grep { $_ ne 'shared' } @{ $http->{store} };
    @store = map { $back && $_ eq 'fleet' ? 'gone' : $_ } @store;
    $text .= "    ssl_session_backend gone { server 127.0.0.1:1; }\n" if $back;
    if ($keys eq 'redis' || grep { $_ eq 'fleet' } @fetch, @store) {
        $text .= "    ssl_session_backend fleet { server 127.0.0.1:@{[ _redis()->port ]};"
            . " fetch_timeout 5s; store_timeout 5s; }\n";
    }
    $text .= "    ssl_session_fetch @fetch" . ($http->{single_use} ? ' single_use' : '') . ";\n" if @fetch;
    $text .= "    ssl_session_store @store" . ($http->{no_client_cert} ? ' no_client_cert' : '') . ";\n" if @store;
    $text .= "    ssl_session_lifetime $http->{lifetime};\n" if $http->{lifetime} && _has('ssl_session_lifetime');
    $text .= "    ssl_session_bind $http->{bind};\n" if $http->{bind} && _has('ssl_session_bind');
    $text .= "    ssl_session_epoch epoch;\n" if $http->{epoch} && grep { $_ eq 'fleet' } @fetch;
    if ($keys) {
        $text .= "    ssl_session_ticket_keys " . ($keys eq 'redis' ? 'fleet' : 'shared:keys:1m') . ";\n";
        $text .= "    ssl_session_fallback tickets;\n" if $back;
        $text .= "    ssl_session_fallback_timeout $http->{fallback_timeout};\n" if $back && $http->{fallback_timeout};
        $text .= "    ssl_session_tickets_tls12 on;\n" if $http->{tickets_tls12};
    } elsif ($http->{shared_key}) {
        $text .= "    ssl_session_ticket_key @{[ _ticket_key() ]};\n";
    }
    return $text . _caching_text($http);
}

# An older module does not have all directives.
my %has;
sub _has {
    my ($directive) = @_;
    my $module = module_path();
    return $has{$module}{$directive} //= slurp($module) =~ /$directive/ ? 1 : 0;
}

my $ticket_key;
sub _ticket_key { return $ticket_key //= spew(new_dir('tickets') . '/key', 'k' x 80) }

# What http{} and server{} may both say.
sub _caching_text {
    my ($from) = @_;
    my $text = '';
    $text .= "    ssl_session_tickets $from->{tickets};\n" if $from->{tickets};
    $text .= "    ssl_session_timeout $from->{timeout};\n" if $from->{timeout};
    $text .= "    ssl_session_cache @{[ $from->{cache} =~ s/shared/shared:own:1m/r ]};\n" if $from->{cache};
    return $text;
}

sub _servers_text {
    my ($conf, %arg) = @_;
    my $text = '';
    my (%default, %taken);
    for my $server (@{ $conf->{servers} }) {
        my @listens = _listens($server);
        # stream{} of older nginx has no names, and one server for each socket.
        my $nameless = $arg{stream} && SSLSession::Nginx->version < 1_025_005;
        @listens = grep { !$taken{$_}++ } @listens if $nameless;
        next if !@listens;
        $text .= "    server {\n";
        for my $socket (@listens) {
            my $default = !$nameless && $server->{default} && !$default{$socket}++ ? ' default_server' : '';
            $text .= "        listen 127.0.0.1:$arg{port}[$socket] ssl$default;\n";
        }
        $text .= _server_text($server, nameless => $nameless, stream => $arg{stream});
        $text .= $arg{full}
            ? "    ssl_session_cache off;\n    ssl_session_tickets off;\n"
            : _caching_text($server) =~ s/^/    /gmr;
        my $says = join '|', (map { "\$$_" } @shown), $arg{full} ? '' : '$ssl_session_fetch_status', '$ssl_session_reused';
        if ($arg{stream} && $arg{brief}) {
            $text .= "    }\n";
            next;
        }
        if ($arg{stream}) {
            $says =~ s/\$server_name|\$ssl_client_escaped_cert/-/g;
            $text .= "        return \"$says\";\n    }\n";
            next;
        }
        # A client that is refused is told the same.
        $text .= <<"CONF" unless $arg{brief};
        error_page 400 495 496 497 /refused;
        error_page 421 /misdirected;
        location / { return 200 "$says"; }
        location = /refused { internal; return 400 "$says"; }
        location = /misdirected { internal; return 421 "$says"; }
CONF
        $text .= "    }\n";
    }
    return $text;
}

sub _listens { return sort @{ $_[0]{listen} } }

# Everything that a full handshake depends on.
sub _server_text {
    my ($server, %arg) = @_;
    my @lines;
    push @lines, 'server_name ' . join ' ', map { length ? qq("$_") : '""' } @{ $server->{names} } if !$arg{nameless};
    if ($server->{reject}) {
        push @lines, 'ssl_reject_handshake on';
    } elsif ($server->{cert} eq 'var') {
        push @lines, 'ssl_certificate $certificate', 'ssl_certificate_key $certificate_key';
    } else {
        push @lines, "ssl_certificate " . $certs->{"$server->{cert}_crt"},
            "ssl_certificate_key " . $certs->{"$server->{cert}_key"};
    }
    if ($server->{ca}) {
        push @lines, "ssl_verify_client $server->{verify}", "ssl_client_certificate $ca{ $server->{ca} }";
    }
    push @lines, "ssl_verify_depth $server->{depth}" if defined $server->{depth};
    push @lines, "ssl_crl $certs->{crl_pem}" if $server->{crl};
    push @lines, "ssl_trusted_certificate $ca{ $server->{trusted} }" if $server->{trusted};
    push @lines, 'ssl_protocols ' . join ' ', map { "TLSv$_" } split ' ', $server->{protocols} // '1.2 1.3';
    push @lines, 'ssl_early_data on' if $server->{early} && !$arg{stream};
    push @lines, 'ssl_conf_command Options -ExtendedMasterSecret' if $server->{no_ems};
    push @lines, "ssl_ecdh_curve $server->{curve}" if $server->{curve};
    return join '', map { "        $_;\n" } @lines;
}

# The sockets that a configuration has.
sub _sockets {
    my ($conf) = @_;
    my %has = map { $_ => 1 } map { _listens($_) } @{ $conf->{servers} };
    return sort keys %has;
}

# --- a draw carried out ---

# The same ports for all draws: they are locked until the process ends.
my %ports;
sub _ports { my ($whose) = @_; return $ports{$whose} //= [ free_port(), free_port() ] }

# Returns { visits, offered, resumed, tickets, elsewhere, served, faults => [...] }: "tickets" are those that
# were resumed by a ticket under keys of the fleet. A fault has the id of its
# step and "kind", which is alike for faults that are alike; stop => 1: at the first one.
# { untaken => nginx's words } if nginx does not take the configuration.
sub run {
    my ($draw, %arg) = @_;
    my $self = bless {
        %arg, draw => $draw, full => {}, session => {}, started => [], conf => [ @{ $draw->{nodes} } ],
        count => { map { $_ => 0 } qw(visits offered resumed tickets elsewhere served refused) }, faults => [],
    };
    _redis()->cmd('FLUSHALL');
    my $done = eval {
        $self->_start;
        for my $step (@{ $draw->{steps} }) {
            if    (defined $step->{reload}) { $self->_reload($step) }
            elsif ($step->{epoch})          { _redis()->cmd(SET => 'tls:epoch', time - 6) }
            else                            { $self->_step($step) }
            last if $self->{stop} && @{ $self->{faults} };
        }
        1;
    };
    my $error = $@;
    $self->_stop;
    if (!$done) {
        return { untaken => $1 } if $error =~ /(\[emerg\][^\n]*)/;
        die "seed $draw->{seed}: $error";
    }
    return { %{ $self->{count} }, faults => $self->{faults} };
}

sub _start {
    my ($self) = @_;
    my $draw = $self->{draw};
    my %arg  = (log => $ENV{PROPERTY_LOG} // 'notice');
    # Full handshakes of all configurations in one nginx, each on ports of its own.
    my $n    = 0;
    my %in   = (stream => $draw->{stream});
    my $full = join '', map { _servers_text($_, %in, full => 1, port => _ports('conf' . $n++)) } @{ $draw->{confs} };
    $full = conf_text({ http => {}, servers => [] }, %in, full => 1) . $full;
    push @{ $self->{started} }, SSLSession::Nginx->new(%arg, $self->_blocks($full), module => 0);
    for my $node (0 .. $#{ $draw->{nodes} }) {
        local $ENV{TEST_NGINX_LOAD_MODULES} = $self->_module($node);
        my $conf = conf_text($draw->{confs}[ $self->{conf}[$node] ], %in, port => _ports("node$node"));
        push @{ $self->{started} }, $self->{node}[$node] = SSLSession::Nginx->new(%arg, $self->_blocks($conf));
    }
}

# OLD_MODULE is an older one, for nodes that are not upgraded yet.
sub _module {
    my ($self, $node) = @_;
    return $self->_is_old($node) ? $ENV{OLD_MODULE} : module_path();
}

sub _is_old { my ($self, $node) = @_; return $ENV{OLD_MODULE} && grep { $_ == $node } @{ $self->{draw}{old} // [] } }

# Arguments for SSLSession::Nginx.
sub _blocks {
    my ($self, $text) = @_;
    return $self->{draw}{stream} ? (stream => $text, conf => '') : (conf => $text);
}

sub _stop {
    my ($self) = @_;
    my %known;
    for my $nginx (@{ $self->{started} }) {
        $nginx->stop;
        for ($nginx->log =~ /^(.*\[alert\].*)$/mg) {
            # "[alert] 7#7: *1 text, client: ...". What nginx by itself has to say is no fault.
            my ($what) = /\[alert\] [\d#]+: (?:\*\d+ )?([^,]*)/;
            $what =~ s/\d+/0/g;
            push @{ $self->{faults} }, { kind => "log $what", text => $_ }
                if $nginx != $self->{started}[0] && !$known{$what};
            $known{$what} = 1;
        }
        remove_tree($nginx->dir) unless $ENV{TEST_NGINX_NO_CLEAN};
    }
}

sub _reload {
    my ($self, $step) = @_;
    my $n = $step->{reload} % @{ $self->{node} };
    $self->{conf}[$n] = $step->{conf} % @{ $self->{draw}{confs} };
    my $conf = $self->{draw}{confs}[ $self->{conf}[$n] ];
    local $ENV{TEST_NGINX_LOAD_MODULES} = $self->_module($n);
    my %block = $self->_blocks(conf_text($conf, stream => $self->{draw}{stream}, port => _ports("node$n")));
    $self->{node}[$n]{stream} = $block{stream};
    $self->{node}[$n]->reload($block{conf});
}

# Whether tickets that come from there allow early data: what the default server says counts, as a name that
# is dispatched later does not change it (SSL_new(3), SSL_set_SSL_CTX(3)).
sub _takes_early {
    my ($conf, $socket) = @_;
    my @there = grep { grep { $_ == $socket } _listens($_) } @{ $conf->{servers} };
    my ($default) = ((grep { $_->{default} } @there), @there);
    return $default->{early};
}

sub _step {
    my ($self, $step) = @_;
    my $node  = $step->{node} % @{ $self->{node} };
    my $conf  = $self->{conf}[$node];
    my @has   = _sockets($self->{draw}{confs}[$conf]);
    my $at    = { conf => $conf, socket => $has[ $step->{socket} % @has ] };
    my $given = defined $step->{offer} ? $self->{session}{ $step->{offer} } : undef;
    my @der   = @{ $given->{sessions} // [] };
    my $der   = @der ? $der[ ($step->{ticket} // 0) % @der ] : undef;
    # RFC 7627 5.3 has a handshake fail whose client has forgotten of extended master secrets.
    my $client = { %$step, stream => $self->{draw}{stream}, no_ems => $der ? $given->{no_ems} : $step->{no_ems} };
    # Early data goes to the name that the session is of, or the client gives up. Where a ticket allows none
    # OpenSSL's client goes by the one before it, and its server accepts that and ends the connection
    # ("too much early data"), with nginx alone as well.
    delete $client->{early} if !$der || $client->{stream} || !$given->{tls13} || !$given->{early}
        || ($given->{sni} // '') ne ($step->{sni} // '');
    $client->{tls} = '1.3' if $client->{early};

    my $now = _visit(_ports("node$node")->[ $at->{socket} ], $client, $der);
    my $own = $self->_full($at, $client, $step->{who});
    my ($stands, $holder);
    if ($now->{resumed}) {
        $holder = $given->{holder};
        # Nobody knows whom it stands for: its maker was not answered.
        $stands = $self->_full($at, $client, $holder) if defined $holder;
    } elsif (defined $now->{status}) {
        $holder = length $now->{show}{ssl_client_fingerprint} ? $step->{who} : 'none';
    }
    $self->{session}{ $step->{id} } = {
        sessions => $now->{sessions}, holder => $holder, no_ems => $client->{no_ems}, sni => $step->{sni},
        tls13 => ($now->{show}{ssl_protocol} // "") eq "TLSv1.3",
        early => _takes_early($self->{draw}{confs}[$conf], $at->{socket}),
        at => "$node $conf $at->{socket} " . ($step->{sni} // ''),
    };

    my $count = $self->{count};
    $count->{visits}++;
    $count->{offered}++   if $der;
    $count->{resumed}++   if $now->{resumed};
    $count->{tickets}++   if $now->{resumed} && $now->{ticket};
    $count->{elsewhere}++ if $now->{resumed} && $given->{at} ne $self->{session}{ $step->{id} }{at};
    $count->{ $now->{served} ? 'served' : 'refused' }++;
    return if $now->{resumed} && !$stands;
    # Where the module has nothing to do nginx is by itself.
    my $http = $self->{draw}{confs}[$conf]{http};
    return if !@{ $http->{fetch} } && !@{ $http->{store} } && !$http->{ticket_keys} || $self->_is_old($node);

    my $protocol = $now->{show}{ssl_protocol} || $own->{show}{ssl_protocol} || "TLSv$step->{tls}";
    my $renamed = $der && ($given->{sni} // '') ne ($step->{sni} // '');
    # Whoever is refused by the server that only Host: leads to, as the one whose session it is would
    # be, has got another certificate since: the client decides what it offers.
    my $elsewhere = lc($step->{sni} // '') ne lc $step->{host};
    # By which server's rules nginx judges a full handshake is its own, and where stream{} has names it
    # depends on how fast the client is: what it came to once may be otherwise.
    my $by_chance = $client->{stream} && SSLSession::Nginx->version >= 1_025_005;
    return if $by_chance && !$now->{resumed} && $now->{shaken} && $own->{shaken};
    my @faults = _judge($now, $own, $stands);
    for (1 .. ($by_chance ? 5 : 0)) {
        last if !@faults;
        $self->{full} = {};
        $own    = $self->_full($at, $client, $step->{who});
        $stands = $self->_full($at, $client, $holder) if $stands;
        @faults = _judge($now, $own, $stands);
    }
    for my $fault (@faults) {
        next if $elsewhere && $fault =~ /like its maker/;
        my $kind = join ' ', $fault, $now->{resumed} ? 'resumed' : 'full', $protocol, $renamed ? 'another name' : ();
        push @{ $self->{faults} },
            { step => $step->{id}, kind => $kind, now => $now, own => $own, stands => $stands, holder => $holder };
    }
}

# What is wrong with a visit, if anything: compared with a full handshake of the client, and of whom
# its session stands for if it has resumed.
sub _judge {
    my ($now, $own, $stands) = @_;
    my $full = $stands // $own;
    return 'I1 served' if $now->{served} && !$full->{served};
    if (!$now->{served}) {
        return 'I2 fails'   if !$now->{shaken} && $own->{shaken};
        return 'I2 refused' if $full->{served};
        return 'I2 refused like its maker' if $own->{served};
        return;
    }
    my @differ = grep { $now->{show}{$_} ne $full->{show}{$_} } @shown;
    # Of the certificate all differ as a rule.
    my ($client) = grep { /client/ } @differ;
    return map { "I3 $_" } (grep { !/client/ } @differ), $client // ();
}

# A full handshake there with the certificate of $who.
sub _full {
    my ($self, $at, $client, $who) = @_;
    my $key = join ' ', $at->{conf}, $at->{socket}, $who,
        map { $client->{$_} // '-' } qw(sni host tls no_ems no_ticket);
    return $self->{full}{$key} //=
        _visit(_ports("conf$at->{conf}")->[ $at->{socket} ], { %$client, who => $who, early => 0 }, undef);
}

# { shaken, served, status, resumed, show => {...}, sessions => [...] }
sub _visit {
    my ($port, $client, $session) = @_;
    return _early_visit($port, $client, $session) if $client->{early};
    my %range = $client->{tls} eq 'any' ? (min => 'TLSv1.2', max => 'TLSv1.3') : (protocol => "TLSv$client->{tls}");
    my $tls   = SSLSession::Client->new(
        port => $port, name => $client->{host}, session => $session, %range, @{ $who{ $client->{who} } },
        (defined $client->{sni} ? (sni => $client->{sni}) : ()),
        ($client->{no_ticket} ? (no_ticket => 1) : ()),
        # SSL_OP_NO_EXTENDED_MASTER_SECRET
        ($client->{no_ems} ? (options => 1) : ()));
    my $shaken = $tls->handshake;
    my ($head, $body) = !$shaken ? () : $client->{stream} ? _stream_answer($tls) : $tls->request;
    my %visit = (shaken => $shaken ? 1 : 0, resumed => $shaken ? $tls->reused : 0, sessions => [ $tls->sessions ]);
    $visit{ends} = defined $tls->alert ? 'alert ' . $tls->alert : $tls->error if !defined $head;
    _read_answer(\%visit, $head, $body);
    return \%visit;
}

# What stream{} says, as if it were an answer in HTTP.
sub _stream_answer {
    my ($tls) = @_;
    my $answer = '';
    while (length(my $more = $tls->read // '')) { $answer .= $more }
    return length $answer ? ('HTTP/1.1 200 OK', $answer) : ();
}

sub _read_answer {
    my ($visit, $head, $body) = @_;
    $visit->{show} = {};
    return if !defined $head;
    $visit->{status} = (split ' ', $head)[1];
    $visit->{served} = $visit->{status} eq 200;
    my @said = split /\|/, $body // '', -1;
    return if @said != @shown + 2;
    @{ $visit->{show} }{@shown} = @said;
    $_ = length ? md5_hex($_) : '' for $visit->{show}{ssl_client_escaped_cert};
    $visit->{resumed} = $said[-1] eq 'r' ? 1 : 0;
    $visit->{ticket}  = $said[-2] eq 'TICKET' ? 1 : 0;
}

# The same by s_client, whose request is in early data as far as the session allows it.
sub _early_visit {
    my ($port, $client, $session) = @_;
    my %cert = @{ $who{ $client->{who} } };
    my $request = "GET / HTTP/1.0\r\nHost: $client->{host}\r\n\r\n";
    my $early   = early_client(
        port => $port, session => $session, sni => $client->{sni}, host => '127.0.0.1',
        # Again after the handshake, where the server takes no early data. The first answer ends it.
        early_data => $request, request => $request,
        args => [ $cert{cert} ? ('-cert', $cert{cert}, '-key', $cert{key}, '-cert_chain', $cert{cert}) : () ]);
    # s_client may be in the middle of another line.
    my ($head, $size, $body) = $early->output =~ m{(HTTP/1\.1 \d.*?\r\nContent-Length: (\d+)\r\n.*?)\r\n\r\n(.*)}s;
    $body = substr $body, 0, $size if defined $head;
    my %visit = (
        shaken => $early->ok, resumed => $early->reused // 0, sessions => [], early => $early->early_data);
    $visit{ends} = 'closed' if !defined $head;
    _read_answer(\%visit, $head, $body);
    return \%visit;
}

# --- a failing draw made small ---

# The smallest draw found that has a fault of the same kind: (draw, the fault, how many were tried).
sub shrink {
    my ($draw, $kind, %arg) = @_;
    my $deadline = time + ($arg{seconds} // 60);
    my $tried = 0;
    my ($best, $fault);
    my $try = sub {
        my ($candidate) = @_;
        return 0 if time > $deadline;
        $tried++;
        my $result  = run($candidate, stop => 1);
        my ($found) = grep { $_->{kind} eq $kind } @{ $result->{faults} // [] };
        ($best, $fault) = ($candidate, $found) if $found;
        return $found ? 1 : 0;
    };
    $try->(_ancestry($draw, $arg{step})) if defined $arg{step};
    $best || $try->($draw) or return (undef, undef, $tried);
    my $again = 1;
    while ($again) {
        $again = 0;
        my $n = 0;
        for (my $size = @{ $best->{steps} } / 2; $size >= 2; $size /= 2) {
            for (my $from = 0; $from < @{ $best->{steps} };) {
                my $candidate = copy($best);
                splice @{ $candidate->{steps} }, $from, $size;
                $from += int $size if !$try->($candidate);
            }
        }
        while (1) {
            my @smaller = _smaller($best);
            last if $n > $#smaller || time > $deadline;
            if ($try->($smaller[$n]->())) { $again = 1 } else { $n++ }
        }
    }
    return ($best, $fault, $tried);
}

# Only the visits that a session comes from, and what else was done.
sub _ancestry {
    my ($draw, $id) = @_;
    my %step = map { $_->{id} => $_ } @{ $draw->{steps} };
    my %keep;
    for (my $at = $id; defined $at && $step{$at}; $at = $step{$at}{offer}) { $keep{$at} = 1 }
    my @steps = grep { $_->{id} <= $id && ($keep{ $_->{id} } || !defined $_->{who}) } @{ $draw->{steps} };
    return _prune({ %$draw, steps => \@steps });
}

# Without configurations that no node ever has.
sub _prune {
    my ($draw) = @_;
    my $pruned = copy($draw);
    for my $n (reverse 1 .. $#{ $pruned->{confs} }) {
        my @used = (@{ $pruned->{nodes} }, map { $_->{conf} } grep { defined $_->{reload} } @{ $pruned->{steps} });
        _drop_conf($pruned, $n) if !grep { $_ == $n } @used;
    }
    return $pruned;
}

# What could be left out, most first: each makes a smaller draw.
sub _smaller {
    my ($draw) = @_;
    my @smaller;
    my $edit = sub {
        my ($change) = @_;
        push @smaller, sub { my $new = copy($draw); $change->($new); return _prune($new) };
    };
    for my $n (reverse 0 .. $#{ $draw->{steps} }) { $edit->(sub { splice @{ $_[0]{steps} }, $n, 1 }) }
    for my $n (reverse 1 .. $#{ $draw->{nodes} }) { $edit->(sub { splice @{ $_[0]{nodes} }, $n, 1 }) }
    for my $n (reverse 1 .. $#{ $draw->{confs} }) { $edit->(sub { _drop_conf($_[0], $n) }) }
    for my $c (0 .. $#{ $draw->{confs} }) {
        my $conf = $draw->{confs}[$c];
        for my $s (reverse 0 .. $#{ $conf->{servers} }) {
            $edit->(sub { splice @{ $_[0]{confs}[$c]{servers} }, $s, 1 }) if @{ $conf->{servers} } > 1;
        }
        for my $key (sort keys %{ $conf->{http} }) {
            my $value = $conf->{http}{$key};
            if (!ref $value) {
                next if $key eq 'tickets' && $value eq 'off';
                $edit->(sub { delete $_[0]{confs}[$c]{http}{$key} });
            } elsif (@$value) {
                for my $n (0 .. $#$value) { $edit->(sub { splice @{ $_[0]{confs}[$c]{http}{$key} }, $n, 1 }) }
            }
        }
        for my $s (0 .. $#{ $conf->{servers} }) { _smaller_server($edit, $c, $s, $conf->{servers}[$s]) }
    }
    for my $n (0 .. $#{ $draw->{steps} }) {
        my $step = $draw->{steps}[$n];
        for my $key (qw(offer no_ticket no_ems early ticket)) {
            $edit->(sub { delete $_[0]{steps}[$n]{$key} }) if defined $step->{$key};
        }
        next if !defined $step->{who};
        $edit->(sub { $_[0]{steps}[$n]{socket} = 0 }) if $step->{socket};
        $edit->(sub { $_[0]{steps}[$n]{node} = 0 }) if $step->{node};
        $edit->(sub { $_[0]{steps}[$n]{host} = $step->{sni} }) if defined $step->{sni} && $step->{host} ne $step->{sni};
        $edit->(sub { $_[0]{steps}[$n]{who} = 'none' }) if $step->{who} ne 'none';
        if ($step->{tls} eq 'any') {
            for my $tls ('1.2', '1.3') { $edit->(sub { $_[0]{steps}[$n]{tls} = $tls }) }
        }
    }
    return @smaller;
}

sub _smaller_server {
    my ($edit, $c, $s, $server) = @_;
    my $change = sub { my ($what) = @_; $edit->(sub { $what->($_[0]{confs}[$c]{servers}[$s]) }) };
    for my $key (sort keys %$server) {
        next if grep { $key eq $_ } qw(cert listen names verify);
        $change->(sub { delete $_[0]{$_} for $key, $key eq 'ca' ? 'verify' : () });
    }
    for my $key (qw(listen names)) {
        next if @{ $server->{$key} } < 2;
        for my $n (0 .. $#{ $server->{$key} }) { $change->(sub { splice @{ $_[0]{$key} }, $n, 1 }) }
    }
    $change->(sub { $_[0]{cert} = 'ec' }) if $server->{cert} ne 'ec';
}

sub _drop_conf {
    my ($draw, $n) = @_;
    splice @{ $draw->{confs} }, $n, 1;
    my $renumber = sub { $_[0] == $n ? 0 : $_[0] > $n ? $_[0] - 1 : $_[0] };
    $_ = $renumber->($_) for @{ $draw->{nodes} };
    $_->{conf} = $renumber->($_->{conf}) for grep { defined $_->{reload} } @{ $draw->{steps} };
}

# The draws of t/property that this nginx is for, by name. Those with "todo" fail still, with a fault
# of their "kind"; "since" and "before" are versions of nginx (1029002).
sub kept {
    my %kept;
    my $version = SSLSession::Nginx->version;
    for my $file (glob root() . '/t/property/*.json') {
        my $draw = from_json(slurp($file));
        next if $version < ($draw->{since} // 0) || $version >= ($draw->{before} // 1e9);
        my ($name) = $file =~ m{([^/]+)\.json$};
        $kept{ $name =~ tr/-/ /r } = $draw;
    }
    return %kept;
}

# --- for people ---

# A draw and its fault as text.
sub report {
    my ($draw, $fault) = @_;
    my $text = "$fault->{kind}\n";
    for my $n (0 .. $#{ $draw->{confs} }) {
        my @on = grep { $draw->{nodes}[$_] == $n } 0 .. $#{ $draw->{nodes} };
        my $conf = $draw->{confs}[$n];
        my @old = $ENV{OLD_MODULE} ? grep { $_ < @{ $draw->{nodes} } } @{ $draw->{old} // [] } : ();
        $text .= "an older module: node @old\n" if @old && !$n;
        $text .= ($draw->{stream} ? 'stream: ' : '') . "configuration $n" . (@on ? ', at the start of node ' . join(' and ', @on) : '') . ":\n"
            . _http_text($conf->{http}) . _servers_text($conf, brief => 1, stream => $draw->{stream}, port => [ 'socket0', 'socket1' ]);
    }
    $text =~ s{\S*/test-certs/\d+/}{}g;
    $text .= _step_text($_) . "\n" for @{ $draw->{steps} };
    if ($fault->{now}) {
        $text .= 'now:                     ' . _visit_text($fault->{now}) . "\n";
        $text .= 'full handshake:          ' . _visit_text($fault->{own}) . "\n";
        $text .= sprintf "%-25s%s\n", "the same as \"$fault->{holder}\":", _visit_text($fault->{stands}) if $fault->{stands};
    } else {
        $text .= "log: $fault->{text}\n";
    }
    return $text . 'draw: ' . to_json($draw) . "\n";
}

sub _step_text {
    my ($step) = @_;
    return "$step->{id}. node $step->{reload} reloads, with configuration $step->{conf}" if defined $step->{reload};
    return "$step->{id}. all sessions are withdrawn" if $step->{epoch};
    return "$step->{id}. client \"$step->{who}\" of TLS $step->{tls} at node $step->{node}, socket $step->{socket}, "
        . (defined $step->{sni} ? "name $step->{sni}" : 'no name') . ", Host: $step->{host}"
        . (defined $step->{offer} ? ", with session " . ($step->{ticket} // 0) . " of visit $step->{offer}" : '')
        . join '', map { $step->{$_} ? ", $_" : () } qw(no_ems no_ticket early);
}

sub _visit_text {
    my ($visit) = @_;
    my $show = $visit->{show};
    return join ' ', $visit->{status} // $visit->{ends} // '?', $visit->{resumed} ? '(resumed)' : (),
        map { my $name = s/^ssl_(?:client_)?//r; length($show->{$_} // '') ? "$name=" . substr($show->{$_}, 0, 30) : () } @shown;
}

1;
