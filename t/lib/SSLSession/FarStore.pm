package SSLSession::FarStore;

# A real store at the far end of a SSLSession::Wire, an nginx at the near one, and clients that come
# back to it: what a fault of the network means for handshakes.

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Client;
use SSLSession::Memcached;
use SSLSession::Nginx;
use SSLSession::Process;
use SSLSession::Redis;
use SSLSession::Sealing qw(cache_key);
use SSLSession::Util qw(free_port new_dir slurp spew wait_until);

use List::Util qw(sum0);
use Socket qw(inet_aton);
use Time::HiRes qw(time);

# wire => ..., kind => 'redis', 'rediss' (over TLS) or 'memcached'
# limits => { fetch_timeout => '50ms', ... }: what stands in the backend besides
sub new {
    my ($class, %arg) = @_;
    my ($wire, $kind) = @arg{qw(wire kind)};
    my $self = bless { wire => $wire, kind => $kind, port => free_port() }, $class;
    my $bind = $wire->far_host;
    $self->{store} = $wire->far(sub {
        $kind eq 'memcached' ? SSLSession::Memcached->new(bind => $bind)
            : SSLSession::Redis->new(bind => $bind, $kind eq 'rediss' ? (tls => 1) : ());
    });
    my $conf = $self->_conf($arg{limits} // {});
    $self->{nginx} = SSLSession::Nginx->new(conf => $conf, log => $arg{log} // 'info');
    return $self;
}

sub _conf {
    my ($self, $limits) = @_;
    my $certs  = certs();
    my $server = $self->server;
    my %limit  = %$limits;
    $limit{protocol} = 'memcached' if $self->{kind} eq 'memcached';
    %limit = (%limit, ssl => 'on', ssl_name => 'backend.example', ssl_trusted_certificate => $certs->{ca_crt})
        if $self->{kind} eq 'rediss';
    return <<"CONF";
    ssl_session_backend far {
        server $server;
        ${\ join "\n        ", map { "$_ $limit{$_};" } sort keys %limit }
    }
    ssl_session_fetch   far;
    ssl_session_store   far;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$self->{port} ssl;
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_fetch_time"; }
        location /status { ssl_session_status; }
    }
CONF
}

sub nginx  { $_[0]{nginx} }
sub store  { $_[0]{store} }

# The store's address, for nginx.
sub server {
    my ($self) = @_;
    my $store = $self->{store};
    return $store->host . ':' . ($self->{kind} eq 'rediss' ? $store->tls_port : $store->port);
}

# A handshake: (how its lookup ended, how long that took, what was wrong with the handshake).
sub visit {
    my ($self, $session, $protocol) = @_;
    my $client = eval {
        SSLSession::Client->new(port => $self->{port}, protocol => $protocol // 'TLSv1.2', session => $session);
    } or return ('', 0, $@ =~ s/\s+/ /gr);
    my $answer = $client->request // return ('', 0, $client->error || 'no answer');
    my ($status, $time) = split /\|/, $answer;
    my $wrong = !!$client->reused eq ($status eq 'HIT') ? '' : "$status, reused: " . $client->reused;
    return ($status, $time, $wrong);
}

# What the server's counters have come to: a sum over their labels, as 'failures' or 'connections'.
sub counted {
    my ($self, $name) = @_;
    my $page = SSLSession::Client->new(port => $self->{port})->request('/status');
    return sum0($page =~ /^nginx_ssl_session_server_${name}_total\{[^}]*\} (\d+)$/mg);
}

# How many connections nginx has to the store, as the system has it.
sub links {
    my ($self) = @_;
    my ($host, $port) = $self->server =~ /^(.*):(\d+)$/;
    my $remote = sprintf '%08X:%04X', unpack('L', inet_aton($host)), $port;
    # In the near place; of the store itself the test has no connection there.
    return scalar grep { my @field = split; $field[2] eq $remote && $field[3] eq '01' } split /\n/, slurp('/proc/net/tcp');
}

# A session that the store has.
sub session {
    my ($self, $protocol) = @_;
    $protocol //= 'TLSv1.2';
    return wait_until {
        my $client = SSLSession::Client->new(port => $self->{port}, protocol => $protocol);
        $client->request // die 'no answer: ' . $client->error;
        my $session = $protocol eq 'TLSv1.3' ? ($client->sessions)[-1] : $client->session;
        my $key     = cache_key(SSLSession::Client::session_id($session));
        eval { wait_until { $self->has($key) } 2, 'the session in the store' } && $session;
    } 10, 'a session';
}

sub has {
    my ($self, $key) = @_;
    return $self->{kind} eq 'memcached' ? defined $self->{store}->get($key) : $self->{store}->cmd('EXISTS', $key);
}

# Clients that come one after the other, until finish(): so many processes of them, of which every
# other one speaks TLS 1.3. pause => seconds between two.
sub begin {
    my ($self, %arg) = @_;
    my $dir = new_dir('load');
    for my $n (1 .. $arg{clients} // 2) {
        my $protocol = $n % 2 ? 'TLSv1.2' : 'TLSv1.3';
        my $session  = $self->session($protocol);
        my $pause    = $arg{pause} // 0.002;
        push @{ $self->{load} }, SSLSession::Process->spawn(name => 'clients', out => "$dir/log", code => sub {
            open my $log, '>', "$dir/$n" or die "$!\n";
            until (-e "$dir/end") {
                my $began = time;
                my ($status, $time, $wrong) = $self->visit($session, $protocol);
                printf $log "%.4f %s %s %s\n", $began, $status || '-', $time || 0, $wrong;
                $log->flush;
                Time::HiRes::sleep($pause);
            }
        });
    }
    $self->{load_dir} = $dir;
    return $self;
}

# Those that came, by time: [when it began, status, seconds, what was wrong].
sub visits {
    my ($self) = @_;
    my @all = map { [ split ' ', $_, 4 ] } map { split /(?<=\n)/, slurp($_) } glob "$self->{load_dir}/[0-9]*";
    @all = grep { @$_ >= 3 } @all;
    chomp for map { $_->[3] //= '' } @all;
    return sort { $a->[0] <=> $b->[0] } @all;
}

sub finish {
    my ($self) = @_;
    spew("$self->{load_dir}/end");
    $_->wait_exit(10) for @{ delete $self->{load} };
    return $self->visits;
}

# How many of them ended how.
sub outcomes {
    my %seen;
    $seen{ $_->[1] }++ for @_;
    return %seen;
}

1;
