package SSLSession::Clients::Site;

# Where clients go (tools/clients): two servers with the module and one store, behind one address, and a plain
# nginx with its own cache. Each purpose has a port.

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Nginx;
use SSLSession::Process;
use SSLSession::Redis;
use SSLSession::Relay;
use SSLSession::Util qw(free_port new_dir patience root slurp spew tmpdir wait_until);

use IO::Socket::INET;

# The servers of each purpose: TLS's version; fleet: what http{} has (below), or plain nginx; h3: with HTTP/3; more: what
# else is in server{}.
my %server = (
    'id module'     => [ 12 ],
    'ticket module' => [ 12, fleet => 'tls12' ],
    'tls13 module'  => [ 13 ],
    (map { ("burst $_" => [ 13, more => "ssl_conf_command NumTickets $_;" ]) } 1, 2, 4),
    'early'         => [ 13, fleet => 'early', more => 'ssl_early_data on;' ],
    'id nginx'      => [ 12, plain => 1, more => 'ssl_session_tickets off;' ],
    'ticket nginx'  => [ 12, plain => 1 ],
    'tls13 nginx'   => [ 13, plain => 1, more => 'ssl_session_tickets off;' ],
    # Without early data, which nginx has over QUIC only where handshakes cannot wait.
    'h3 module'     => [ 13, h3 => 1 ],
    'h3 nginx'      => [ 13, plain => 1, h3 => 1, more => 'ssl_session_tickets off;' ],
);

# HTTP/3 where nginx has it, and can let a handshake of it wait: since 1.29, with OpenSSL 3.5, it has to be patched for that.
sub has_h3 {
    my $said = SSLSession::Nginx::version_text();
    my ($openssl) = $said =~ /running with OpenSSL (\d+\.\d+)/ ? $1 : $said =~ /built with OpenSSL (\d+\.\d+)/;
    return $said =~ /--with-http_v3_module/ && (SSLSession::Nginx->version < 1_029_000 || $openssl < 3.5 || $ENV{TEST_NGINX_PATCHED});
}
delete @server{ grep { /^h3/ } keys %server } if !has_h3();

# A connection of HTTP/3 lasts a little: Firefox takes the ticket of one that does. Then it is idle for too long.
my $once_h3 = 'keepalive_timeout 2s;';

# What http{} of a fleet has.
my %fleet = (
    ids   => 'ssl_session_fetch store; ssl_session_tickets off;',
    tls12 => 'ssl_session_fetch store; ssl_session_tickets off; ssl_session_tickets_tls12 on; ssl_session_ticket_keys store;',
    early => 'ssl_session_fetch store single_use; ssl_session_tickets off;',
);

sub new {
    my ($class) = @_;
    my $redis = SSLSession::Redis->new;
    # It hears what the store is asked.
    my $store = SSLSession::Relay->new(upstream => '127.0.0.1:' . $redis->port);
    my $self  = bless { redis => $redis, store => $store, log => tmpdir() . '/visits', ca => certs()->{ca_crt} }, $class;
    my (%to, $stream);
    for my $kind (sort keys %fleet) {
        for (1 .. 2) {
            my %port = map { $_ => free_port() } grep { _fleet($_) eq $kind } keys %server;
            push @{ $self->{nodes} }, $self->_node($kind, \%port);
            push @{ $to{$_} }, $port{$_} for keys %port;
        }
    }
    my %plain = map { $_ => free_port() } grep { _fleet($_) eq '' } keys %server;
    push @{ $self->{nodes} }, $self->_node('', \%plain);
    push @{ $to{$_} }, $plain{$_} for keys %plain;
    for my $purpose (sort keys %to) {
        my $name = $purpose =~ tr/ /_/r;
        my $front = free_port();
        $stream .= "upstream $name { @{[ map { qq{server 127.0.0.1:$_;} } @{ $to{$purpose} } ]} }\n"
            . "server { listen 127.0.0.1:$front; proxy_pass $name; }\n";
        $stream .= "server { listen 127.0.0.1:$front udp; proxy_pass $name; }\n" if $purpose =~ /^h3/;
        $self->{front_port}{$purpose} = $front;
        # Clients on the machine itself come back before the store has heard of them.
        $self->{late}{$purpose} = SSLSession::Relay->new(upstream => "127.0.0.1:$front", delay => [ 100, 'request' ]);
        $self->{ports}{$purpose} = { map { $_ => 1 } @{ $to{$purpose} } };
    }
    $self->{front} = SSLSession::Nginx->new(module => 0, conf => '', stream => $stream, log => 'info');
    return $self;
}

sub _fleet {
    my (undef, %of) = @{ $server{ $_[0] } };
    return $of{plain} ? '' : $of{fleet} // 'ids';
}

sub _node {
    my ($self, $kind, $port) = @_;
    my $certs   = certs();
    my $wait    = 5000 * patience() . 'ms';
    my $module  = $kind ne '';
    my $status_port = free_port();
    my $address = '127.0.0.1:' . $self->{store}->port;
    my $status  = $module ? '$ssl_session_fetch_status|$ssl_session_store_status' : '|';
    my $conf    = $module
        ? "ssl_session_backend store { server $address; connect_timeout $wait; fetch_timeout $wait; store_timeout $wait; }\n"
            . "ssl_session_store store; $fleet{$kind}"
        : 'ssl_session_cache shared:tls:1m;';
    for my $purpose (sort keys %$port) {
        my ($version, %of) = @{ $server{$purpose} };
        $conf .= "\n" . <<"CONF";
    server {
        listen 127.0.0.1:$port->{$purpose} ssl;
        ${\ ($of{h3} ? "listen 127.0.0.1:$port->{$purpose} quic; $once_h3" : 'keepalive_timeout 0;') }
        server_name localhost;
        ssl_protocols TLSv1.${\ ($version - 10) };
        ${\ ($of{more} // '') }
        # What it says later is that the handshake is through.
        set \$early \$ssl_early_data;
        location / { return 200 "\$server_protocol\\n"; }
    }
CONF
    }
    my $nginx = SSLSession::Nginx->new(log => 'info', module => $module, conf => <<"CONF");
    log_format visits '\$server_port|\$pid|\$ssl_session_reused|$status|\$early|\$server_protocol|\$uri';
    access_log $self->{log} visits;
    ssl_certificate     $certs->{server_crt};
    ssl_certificate_key $certs->{server_key};
    $conf
    server { listen 127.0.0.1:$status_port; access_log off; location / { stub_status; } }
CONF
    push @{ $self->{status} }, $status_port if grep { /^h3/ } keys %$port;
    $kind eq 'tls12' and wait_until { $nginx->log_count(qr/SSL session ticket key has changed/) } 20, 'ticket keys';
    return $nginx;
}

# The purposes for which that client comes.
sub runs {
    my ($self, $client) = @_;
    return grep {
        /^h3/ ? $client->{h3} : $client->{only_h3} ? 0 : /^burst/ ? $client->{at_once} : !(/^tls13|^early/ && $client->{only12})
    } sort keys %server;
}

# What is seen of its visits: how many came back, and were resumed; at another server; with early data; by what; how
# many tickets were shown. All that it said is "out".
sub run {
    my ($self, $client, $purpose) = @_;
    my $at_once = $purpose =~ /^burst/ ? 4 : 0;
    my $visits  = $at_once ? 1 : 3;
    my $h3      = $purpose =~ /^h3/;
    my $port    = $h3 ? $self->{front_port}{$purpose} : $self->{late}{$purpose}->port;
    my $from    = -s $self->{log} || 0;
    my $asked   = () = $self->{store}->requests('GET');
    my $wanted  = $client->{first_unseen} ? 1 : $visits + $at_once;
    my $seen    = sub {
        my @visits = grep { $self->{ports}{$purpose}{ $_->[0] } && $_->[7] eq '/visit' && (!$h3 || $_->[6] eq 'HTTP/3.0') }
            map { [ split /\|/, $_, -1 ] } split /\n/, slurp($self->{log}, $from);
        return @visits;
    };
    my $out     = $h3 && ref $client->{h3}
        ? eval { $client->{h3}->($port, $visits, sub { $self->closed; return scalar(my @so_far = $seen->()) }) } // "$@"
        : $client->{code}
        ? eval { $client->{code}->($port, $visits, $at_once) } // "$@"
        : $self->_program($client, "https://localhost:$port/visit", $visits, $at_once);
    eval { wait_until { $seen->() >= $wanted } 5, 'visits' };
    my @seen = $seen->();
    return { out => "$purpose: " . @seen . " visits in place of $wanted\n$out" } if @seen < $wanted || @seen > $wanted && !$h3;
    my %run  = (out => $out, returns => scalar @seen, resumed => 0, elsewhere => 0, early => 0);
    my $last = '';
    $run{returns}-- if !$client->{first_unseen};
    for my $n (0 .. $#seen) {
        my (undef, $pid, $reused, $status, undef, $early) = @{ $seen[$n] };
        return { out => "$purpose: the first visit is resumed\n$out" } if $n == 0 && $reused eq 'r' && !$client->{first_unseen};
        $run{resumed}++ if $reused eq 'r';
        $run{elsewhere}++ if $reused eq 'r' && ($client->{first_unseen} || !$at_once && $pid ne $last || $purpose =~ /nginx/);
        $run{by}{ $status eq 'TICKET' ? 'ticket' : 'ID' }++ if $reused eq 'r' && $status ne '';
        $run{early}++ if $early;
        $last = $pid;
    }
    if ($at_once) {
        my @gets = $self->{store}->requests('GET');
        my %keys = map { $_->[1] => 1 } @gets[ $asked .. $#gets ];
        $run{tickets} = keys %keys;
    }
    return \%run;
}

# Waits until no connection is left where there is HTTP/3, but for the one that asks.
sub closed {
    my ($self) = @_;
    for my $port (@{ $self->{status} }) {
        wait_until {
            my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die "status: $!\n";
            print $socket "GET / HTTP/1.0\r\n\r\n";
            join('', readline $socket) =~ /^Active connections: 1 /m;
        } 30, 'the end of connections';
    }
    return;
}

sub _program {
    my ($self, $client, $url, @visits) = @_;
    my $dir = new_dir('client');
    my %env = (CLIENT_CA => $self->{ca}, NODE_EXTRA_CA_CERTS => $self->{ca}, HOME => $dir, TMPDIR => $dir, LC_ALL => 'C.UTF-8',
        PYTHONWARNINGS => 'ignore', ERL_CRASH_DUMP_BYTES => 0);
    my @cmd = ref $client->{cmd} eq 'CODE' ? $client->{cmd}->($url, @visits, $self->{ca}) : (@{ $client->{cmd} }, $url, @visits);
    my $process = SSLSession::Process->spawn(name => $client->{name}, out => "$dir/out", code => sub {
        $ENV{$_} = $env{$_} for keys %env;
        delete @ENV{ grep { /_proxy$/i || /^SSL_CERT|_CA_BUNDLE$/ } keys %ENV };
        $SIG{PIPE} = 'DEFAULT';
        { no warnings 'exec'; exec { $cmd[0] } @cmd; }
        die "exec $cmd[0]: $!\n";
    });
    eval { $process->wait_exit(60 * patience()) };
    $process->kill_all;
    return slurp("$dir/out");
}

# What the servers are, for the table.
sub versions {
    my $said = SSLSession::Nginx::version_text();
    my ($nginx)   = $said =~ m{nginx version: nginx/([\d.]+)};
    my ($openssl) = $said =~ /running with (OpenSSL [\d.]+)/ ? $1 : $said =~ /built with (OpenSSL [\d.]+)/;
    return "nginx $nginx with $openssl";
}

1;
