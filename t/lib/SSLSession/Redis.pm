package SSLSession::Redis;

# A real redis-server on a TCP port and a unix socket of the test's own, and a small client.

use strict;
use warnings;

use parent 'SSLSession::Server';
use SSLSession::Certs qw(certs);
use SSLSession::Util qw(free_port new_dir spew wait_until);

# port => ..., or 0 for none; bind => '::1' in place of 127.0.0.1
# tls => 1, or { cert => a name of certs() ('backend'), ca => for clients' certificates ('ca_crt'),
#     clients => 'yes' | 'no' | 'optional' ('no'), protocols => 'TLSv1.2', ciphers => ...,
#     ciphersuites => ..., session_caching => 'yes' | 'no' }: a TLS port, beside the plain one
# password => 'secret' (of the user "default", and for its master)
# users => { nginx => '>pass ~tls:* +get +set' } (they are "on")
# replicaof => another of these, maxmemory => '3mb' (nothing is evicted)
# conf => ['line of redis.conf', ...], args => ['--appendonly', 'yes', ...]
# sentinel => 1: it is a sentinel; start => 0 leaves it stopped
#
# For cmd() there is a user "fixture", who may do all. It authenticates only when it must.
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('redis');
    my $self = bless {
        unix => "$dir/sock", log => "$dir/log", dir => $dir, arg => \%arg,
        port => $arg{port} // free_port(),
        tls_port => $arg{tls} && ($arg{tls_port} // free_port()),
        # The socket where there is no plain port; else one connection less to tell apart there.
        by_unix => $arg{bind} ? 1 : 0,
    }, $class;
    $self->configure;
    $self->start unless defined $arg{start} && !$arg{start};
    return $self;
}

sub program  { $ENV{TEST_REDIS_SERVER} || 'redis-server' }
sub tls_port { $_[0]{tls_port} }
sub dir      { $_[0]{dir} }
sub host     { $_[0]{arg}{bind} // '127.0.0.1' }
sub address  { $_[0]->_at($_[0]{port} || $_[0]{tls_port}) }
sub url      { ($_[0]{port} ? 'redis://' : 'rediss://') . $_[0]->address }
sub tls_url  { 'rediss://' . $_[0]->_at($_[0]{tls_port}) }
sub _at      { my ($self, $port) = @_; return ($self->host =~ /:/ ? '[' . $self->host . ']' : $self->host) . ":$port" }

# Starts it, or starts it again on the same addresses, empty; with arguments of new() changed.
sub start {
    my ($self, %change) = @_;
    $self->configure(%change) if %change;
    my $cmd = [ $self->program, "$self->{dir}/redis.conf", @{ $self->{arg}{args} // [] },
        $self->{arg}{sentinel} ? '--sentinel' : () ];
    return $self->_run($cmd, sub { eval { $self->cmd('PING') } });
}

# Writes redis.conf. Left alone by start() otherwise: the server may have rewritten it.
sub configure {
    my ($self, %change) = @_;
    my $arg  = $self->{arg} = { %{ $self->{arg} }, %change };
    my @conf = (
        "port $self->{port}", 'bind ' . $self->host, "unixsocket $self->{unix}", "dir $self->{dir}",
        'daemonize no', 'user fixture on nopass ~* &* +@all',
        $arg->{sentinel} ? () : ('save ""', 'appendonly no', 'repl-diskless-sync-delay 0'),
    );
    # It would answer nobody beyond loopback.
    push @conf, 'protected-mode no' if $arg->{bind};
    push @conf, $self->_tls_conf if $self->{tls_port};
    push @conf, "requirepass $arg->{password}", "masterauth $arg->{password}" if defined $arg->{password};
    push @conf, map { "user $_ on $arg->{users}{$_}" } sort keys %{ $arg->{users} // {} };
    push @conf, "maxmemory $arg->{maxmemory}" if defined $arg->{maxmemory};
    push @conf, 'replicaof ' . $arg->{replicaof}->host . ' ' . $arg->{replicaof}->replication_port
        if $arg->{replicaof};
    spew("$self->{dir}/redis.conf", map { "$_\n" } @conf, @{ $arg->{conf} // [] });
}

sub _tls_conf {
    my ($self) = @_;
    my %tls   = ref $self->{arg}{tls} ? %{ $self->{arg}{tls} } : ();
    my $certs = certs();
    my $cert  = $tls{cert} // 'backend';
    my @conf  = (
        "tls-port $self->{tls_port}", "tls-cert-file $certs->{qq{${cert}_crt}}",
        "tls-key-file $certs->{qq{${cert}_key}}", 'tls-ca-cert-file ' . $certs->{ $tls{ca} // 'ca_crt' },
        'tls-auth-clients ' . ($tls{clients} // 'no'),
    );
    for my $name (qw(protocols ciphers ciphersuites session_caching)) {
        push @conf, 'tls-' . ($name =~ tr/_/-/r) . qq{ "$tls{$name}"} if defined $tls{$name};
    }
    return @conf;
}

# Where its replicas and its cluster reach it.
sub replication_port { $_[0]{port} || $_[0]{tls_port} }

# cmd('GET', 'key'): the reply: a string or number, undef for nil, a reference to a list for an
# array; an error reply dies with its text, "redis: ...".
sub cmd {
    my ($self, @args) = @_;
    return scalar $self->_with_connection('redis: ', sub { $self->_cmd(@args) });
}

# All keys, sorted.
sub keys {
    my ($self, $pattern) = @_;
    my @keys = sort @{ $self->cmd('KEYS', $pattern // '*') };
    return @keys;
}

# A field of INFO, or all of them.
sub info {
    my ($self, $field) = @_;
    my %info = $self->cmd('INFO', 'all') =~ /^([^#:\r\n][^:\r\n]*):(.*?)\r?$/mg;
    return defined $field ? $info{$field} : \%info;
}

# How often a command was called since the start: 'get', 'client|setname'. AUTH counts ours, too.
sub calls {
    my ($self, $command) = @_;
    return ($self->info("cmdstat_\L$command") // '') =~ /^calls=(\d+)/ ? $1 : 0;
}

# The connections to it, but for our own, as CLIENT LIST has them: { addr, name, user, db, ... }.
sub clients {
    my ($self) = @_;
    my $own = $self->cmd('CLIENT', 'ID');
    return grep { $_->{id} != $own }
        map { +{ /(\S+?)=(\S*)/g } } split /\n/, $self->cmd('CLIENT', 'LIST');
}

# Waits until it follows its master.
sub wait_replica {
    my ($self) = @_;
    wait_until { ($self->info('master_link_status') // '') eq 'up' } 15, 'the replica';
    return $self;
}

sub _cmd {
    my ($self, @args) = @_;
    $self->_send('*' . @args . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @args);
    my $reply = $self->_reply;
    return $reply if ref $reply ne 'SCALAR';
    if ($$reply =~ /^redis: (?:NOAUTH|NOPERM)/ && !$self->{known}++) {
        $self->_cmd('AUTH', 'fixture', '');
        return $self->_cmd(@args);
    }
    die "$$reply\n";
}

sub _reply {
    my ($self) = @_;
    my ($type, $rest) = unpack 'a a*', $self->_take(qr/(.*?)\r\n/s);
    return $rest if $type eq '+' || $type eq ':';
    return \"redis: $rest" if $type eq '-';
    die "not a reply: $type$rest\n" if $type ne '$' && $type ne '*';
    return undef if $rest < 0;
    return [ map { $self->_reply } 1 .. $rest ] if $type eq '*';
    my $bytes = $self->_take($rest + 2);
    return substr $bytes, 0, $rest;
}

1;
