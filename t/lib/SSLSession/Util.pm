package SSLSession::Util;

# Places, ports, temporary files and waiting. Everything else of the fixture stands on this.

use strict;
use warnings;

use Carp qw(croak);
use Cwd qw(abs_path);
use Exporter qw(import);
use Fcntl qw(O_CREAT O_RDWR LOCK_EX LOCK_NB);
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use File::Temp ();
use IO::Socket::INET;
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(root tmpdir new_dir free_port free_node_port wait_until patience slurp spew state_of freeze
                    nginx_binary module_path $doing $gone);

# What a line of the log about a server ends with, after a hint if there is one.
our $doing = qr/(?: \(hint: [^()]*\))?(?: while [\w ]+)?, backend: "[^"]*"/;

# What the log has of a server that was killed: what it still had to answer ends in one of two ways.
our $gone = qr/ is down: | is not available|connection failed \(104: |server closed connection \(/;

# On each exit of a test, however it comes, the END blocks must run.
$SIG{$_} = sub { exit 1 } for qw(INT TERM HUP);
$SIG{PIPE} = 'IGNORE';

my $owner = $$;
my $root  = abs_path(dirname(__FILE__) . '/../../..');
my $tmpdir;
my @port_locks;

# The root of the checkout.
sub root { $root }

# The test's own directory; it goes when the test ends (kept with TEST_NGINX_NO_CLEAN=1).
sub tmpdir {
    # In /tmp and short: a unix socket's path has 108 bytes.
    return $tmpdir //= File::Temp::tempdir('sslsess-XXXXXX', TMPDIR => 1);
}

my $dirs = 0;

# A new directory in tmpdir().
sub new_dir {
    my ($name) = @_;
    my $dir = tmpdir() . "/$name" . ($dirs++ || '');
    make_path($dir);
    return $dir;
}

# A TCP port that nobody has and that no other test is given.
#
# Ports come from below Linux's range for outgoing connections, and under the locks of
# Test::Nginx::Util, so tests of both kinds run side by side. A lock lasts as long as the test.
my @spare;

sub free_port { return _port(\@spare, 2000, 5500) }

# The same for a node of a cluster, which has another port 10000 above it: that one lies above those that
# others are given, and below Linux's range as well.
my @spare_of_nodes;

sub free_node_port { return _port(\@spare_of_nodes, 5001, 193) }

sub _port {
    my ($spare, $from, $blocks) = @_;
    my $locks = "/tmp/test-nginx-port-locks-$<";
    make_path($locks);
    for (1 .. 10_000) {
        while (@$spare) {
            my $port = shift @$spare;
            my $try  = IO::Socket::INET->new(
                LocalAddr => '0.0.0.0', LocalPort => $port, Proto => 'tcp', Listen => 1, ReuseAddr => 1);
            return $port if $try;
        }
        # One lock stands for four ports, the first of them 1988 plus a multiple of four.
        my $first = 1988 + 4 * int($from + rand $blocks);
        sysopen(my $lock, "$locks/port-$first.lock", O_CREAT | O_RDWR, 0600) or next;
        flock($lock, LOCK_EX | LOCK_NB) or next;
        push @port_locks, $lock;
        @$spare = $first .. $first + 3;
    }
    croak 'no free port';
}

# How much longer than on a bare machine things may take.
sub patience { $ENV{TEST_NGINX_USE_VALGRIND} ? 10 : $ENV{TEST_PATIENCE} || 1 }

# wait_until { condition } $seconds, 'what': the condition's value once it is true; dies when it
# does not become true. Use it wherever a sleep comes to mind.
sub wait_until (&$;$) {
    my ($condition, $seconds, $what) = @_;
    $seconds *= patience();
    # TEST_WAIT=4: so many times longer where the machine itself may stop for seconds. A wait that
    # succeeds takes no longer by it; short ones are also for what does not come.
    $seconds *= $ENV{TEST_WAIT} if $ENV{TEST_WAIT} && $seconds >= 5;
    my $deadline = time + $seconds;
    while (1) {
        my $value = $condition->();
        return $value if $value;
        last if time > $deadline;
        sleep 0.01;
    }
    croak sprintf 'timed out after %gs: %s', $seconds, $what // 'condition';
}

sub slurp {
    my ($file, $from) = @_;
    open my $fh, '<:raw', $file or return '';
    seek $fh, $from, 0 if $from;
    local $/;
    return scalar(<$fh>) // '';
}

# The state of a process, as ps shows it: 'T' for one that is stopped; '' for one that is gone.
sub state_of {
    my ($pid) = @_;
    my ($state) = slurp("/proc/$pid/stat") =~ /^\d+ \(.*\) (\S)/s;
    return $state // '';
}

# SIGSTOP, and returns once they stand still, with all their threads: until then they may still
# answer. They go on with SIGCONT.
sub freeze {
    my @pids = @_;
    kill STOP => @pids;
    for my $pid (@pids) {
        wait_until { !grep { state_of($_) !~ /^[TXZ]?$/ } map { m{/proc/(\d+/task/\d+)$} } glob "/proc/$pid/task/*" } 5,
            "process $pid to stop";
    }
}

# Writes a file and returns its name.
sub spew {
    my ($file, @text) = @_;
    open my $fh, '>:raw', $file or croak "$file: $!";
    print {$fh} @text;
    close $fh or croak "$file: $!";
    return $file;
}

# The nginx to test with.
sub nginx_binary {
    my ($built_for) = slurp("$root/target/nginx-binary") =~ /(\S+)/;
    my $binary = $ENV{TEST_NGINX_BINARY} || $built_for || 'nginx';
    return $binary if $binary =~ m{/};
    my ($found) = grep { -x } map { "$_/$binary" } split(/:/, $ENV{PATH}), '/usr/sbin';
    return $found || croak "no nginx: set TEST_NGINX_BINARY";
}

# The module to test.
sub module_path {
    return $ENV{TEST_NGINX_LOAD_MODULES} || "$root/target/ngx_http_ssl_session_module.so";
}

# Declared first of all modules, so this END runs after the one that stops the processes.
END {
    if ($$ == $owner && defined $tmpdir) {
        local ($?, $!, $@);
        if ($ENV{TEST_NGINX_NO_CLEAN}) {
            print STDERR "# kept: $tmpdir\n";
        } else {
            remove_tree($tmpdir);
        }
    }
}

1;
