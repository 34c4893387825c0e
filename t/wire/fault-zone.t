# Workers that are killed while they change a zone of shared memory: what they leave is not taken
# for whole, and the others go on.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use Test::More;
use Time::HiRes qw(time);

# No larger than nginx allows, so that it is full soon and entries give way.
use constant ZONE => '32k';
# Handshakes that fill it twice.
use constant FILL => 120;

my $certs = certs();

sub conf {
    my ($port) = @_;
    my $zone = 'shared:tls:' . ZONE;
    return <<"CONF";
    ssl_session_fetch   $zone;
    ssl_session_store   $zone;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status \$pid"; }
    }
CONF
}

# A handshake, and whether its session is resumed; undef where the worker has gone meanwhile.
sub stored_and_resumed {
    my ($port, $protocol) = @_;
    my $client = eval { tls_client(port => $port, protocol => $protocol) } or return;
    defined eval { $client->request } or return;
    my ($session) = ($client->sessions)[-1] // return;
    my $again = eval { tls_client(port => $port, protocol => $protocol, session => $session) } or return;
    my $answer = eval { $again->request } // return;
    return $again->reused;
}

# After a worker was killed: nothing but that is in the log, and all workers use the zone.
sub goes_on {
    my ($nginx, $port, $workers, $kills) = @_;
    wait_until { $nginx->workers >= 1 && alive_workers($nginx) == $workers } 20, 'another worker';
    my ($failed, $new) = (0, 0);
    for my $n (1 .. FILL) {
        my $resumed = stored_and_resumed($port, $n % 2 ? 'TLSv1.2' : 'TLSv1.3');
        $failed++ if !defined $resumed;
        $new++ if defined $resumed && !$resumed;
    }
    is $failed, 0, 'no handshake fails';
    is $new, 0, 'each session is stored and resumed';
    # A zone without this line was not killed under its lock.
    my $expected = qr/worker process \d+ exited on signal 9|shared memory zone "[^"]*" was locked by \d+/;
    is $nginx->log_count(qr/exited on signal 9/), $kills, 'as many workers were killed as should be';
    is_deeply [ $nginx->errors(warn => 1, except => $expected) ], [], 'nothing else in the log';
}

# start() waits for workers by the log; here they come and go.
sub alive_workers {
    my ($nginx) = @_;
    my $master = $nginx->pid;
    return scalar grep { $_ != $master } $nginx->process->group;
}

sub worker_of {
    my ($nginx) = @_;
    my $master = $nginx->pid;
    my ($worker) = grep { $_ != $master } reverse $nginx->process->group;
    return $worker;
}

# Clients that handshake until they are stopped.
sub load {
    my ($port, $count) = @_;
    return map {
        SSLSession::Process->spawn(name => 'load', code => sub {
            while (1) {
                eval { tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->close; 1 }
                    or select undef, undef, undef, 0.01;
            }
        });
    } 1 .. $count;
}

# --- where it hurts: a debugger stops the worker within the change and kills it ---

# gdb's commands; each of them ends with the worker stopped where it shall die, and where there are
# several, so do its successors. nginx exports these functions, so they are there without debug
# information. Only zones call those of the slab pool.
my %place = (
    'before an entry has memory'          => [ [ 'tbreak ngx_slab_alloc_locked', 'continue' ] ],
    'when an entry has memory'            => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'finish' ] ],
    'within the allocation'               => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'stepi 40' ] ],
    'when an entry has a part of its memory' =>
        [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'finish', 'tbreak ngx_slab_alloc_locked', 'continue' ] ],
    'before an entry is in the tree'      => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'tbreak ngx_rbtree_insert', 'continue' ] ],
    'while an entry comes into the tree'  => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'tbreak ngx_rbtree_insert', 'continue', 'stepi 25' ] ],
    'when an entry is in the tree'        => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'tbreak ngx_rbtree_insert', 'continue', 'finish' ] ],
    'before an old entry leaves the tree' => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'tbreak ngx_rbtree_delete', 'continue' ] ],
    'while an old entry leaves the tree'  => [ [ 'tbreak ngx_slab_alloc_locked', 'continue', 'tbreak ngx_rbtree_delete', 'continue', 'stepi 30' ] ],
    'before the memory of an old entry is free' => [ [ 'tbreak ngx_slab_free_locked', 'continue' ] ],
    'while the memory of an old entry is freed' => [ [ 'tbreak ngx_slab_free_locked', 'continue', 'stepi 60' ] ],
    'when an old entry has lost a part of its memory' =>
        [ [ 'tbreak ngx_slab_free_locked', 'continue', 'finish', 'tbreak ngx_slab_free_locked', 'continue' ] ],
    'before it has emptied what another left' =>
        [ [ 'tbreak ngx_slab_free_locked', 'continue' ], [ 'tbreak ngx_slab_init', 'continue' ] ],
    'while it empties what another left'      =>
        [ [ 'tbreak ngx_slab_free_locked', 'continue' ], [ 'tbreak ngx_slab_init', 'continue', 'stepi 200' ] ],
    'when it has emptied what another left'   =>
        [ [ 'tbreak ngx_slab_free_locked', 'continue' ], [ 'tbreak ngx_slab_init', 'continue', 'finish' ],
          [ 'tbreak ngx_slab_init', 'continue', 'tbreak ngx_slab_alloc_locked', 'continue', 'finish', 'stepi 10' ] ],
);

# Why there is no debugging here, or undef.
sub no_debugger {
    return 'valgrind runs the program itself' if $ENV{TEST_NGINX_USE_VALGRIND};
    return 'no gdb' if !grep { -x "$_/gdb" } split /:/, $ENV{PATH};
    my $sleeper = SSLSession::Process->spawn(name => 'sleep', cmd => [ 'sleep', 60 ]);
    my $out = tmpdir() . '/gdb-try';
    my $gdb = debug_start($sleeper->pid, $out, 'info program', 'detach');
    eval { $gdb->wait_exit(30) };
    $_->kill_all for $gdb, $sleeper;
    return slurp($out) =~ /image of/ ? undef : 'gdb may not attach to processes here';
}

sub debug_start {
    my ($pid, $out, @commands) = @_;
    # Without the symbols of libraries, which take seconds to read.
    my @init = ('set auto-solib-add off', 'set confirm off', 'set pagination off', 'set debuginfod enabled off');
    return SSLSession::Process->spawn(name => 'gdb', out => $out, cmd => [
        'gdb', '-nx', '-batch', (map { (-iex => $_) } @init), '-p', $pid, (map { (-ex => $_) } @commands) ]);
}

my $why_not = no_debugger();

for my $what (sort keys %place) {
    subtest "a worker dies $what" => sub {
        plan skip_all => $why_not if defined $why_not;
        my $port  = free_port();
        my $nginx = nginx(log => 'notice', conf => conf($port));
        # Full, so that old entries have to go.
        tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->close for 1 .. FILL;
        my $deaths = 0;
        for my $commands (@{ $place{$what} }) {
            my $worker = wait_until { worker_of($nginx) } 20, 'worker';
            my ($out, $go) = map { tmpdir() . "/gdb-$_" } qw(out go);
            unlink $out, $go;
            my $gdb = debug_start($worker, $out, @$commands, 'printf "stopped here\n"',
                "shell while [ ! -e $go ]; do sleep 0.01; done", 'kill');
            # Before that nobody may touch the zone.
            eval { wait_until { slurp($out) =~ /breakpoint 1 at/ } 20, 'the debugger' };
            my ($load) = load($port, 1);
            my $died = eval {
                wait_until { slurp($out) =~ /stopped here/ } 20, 'the place';
                # Its successor finds what it has left in its own time.
                $load->kill_all;
                spew($go, '');
                wait_until { state_of($worker) =~ /^[ZX]?$/ } 10, 'its death';
            };
            $load->kill_all;
            $gdb->kill_all;
            ok $died && slurp($out) =~ /stopped here/, 'it died there' or diag slurp($out);
            ok eval { $nginx->log_like(qr/shared memory zone "[^"]*" was locked by $worker/) }, 'with the lock of the zone';
            $deaths++;
        }
        goes_on($nginx, $port, 1, $deaths);
        ok eval { $nginx->quit; 1 }, 'nginx exits in order' or diag $@;
    };
}

# --- anywhere: many workers killed under load ---

subtest 'workers are killed one after the other while others store' => sub {
    my $kills = $ENV{TEST_NGINX_USE_VALGRIND} ? 3 : 25;
    my $port  = free_port();
    my $nginx = nginx(log => 'notice', workers => 2, conf => conf($port));
    my @load  = load($port, 2);
    for my $n (1 .. $kills) {
        my $worker = worker_of($nginx);
        # Not before it has stored something: by the time it has used.
        my $until = time + 0.02 + rand 0.05;
        wait_until { time > $until } 1;
        kill KILL => $worker;
        wait_until { $nginx->log_count(qr/worker process \d+ exited on signal 9/) == $n && alive_workers($nginx) == 2 }
            20, 'another worker';
    }
    $_->kill_all for @load;
    goes_on($nginx, $port, 2, $kills);
    note $nginx->log_count(qr/was locked by/), ' of them had the lock';
    ok eval { $nginx->quit; 1 }, 'nginx exits in order' or diag $@;
};

done_testing;
