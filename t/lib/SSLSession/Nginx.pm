package SSLSession::Nginx;

# One nginx with a configuration and a directory of its own.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Sealing qw(session_key);
use SSLSession::Util qw(module_path new_dir nginx_binary slurp spew state_of freeze wait_until);

use Carp qw(croak);
use POSIX ();

my @all;

# conf     what stands in http{}
# main     what stands outside of it; events: what stands in events{}
# stream   what stands in stream{}, where has_stream(); stream_last: its module is loaded after ours
# workers  1
# user     of the workers; by default whoever runs the test
# method   'epoll', 'poll' or 'select'
# module   0: the module is not loaded
# key      0: there is no "ssl_session_key"; otherwise session_key(), unless conf has one
# log      level of error_log, 'debug'
# env      { NAME => 'value' } for the process
# daemon   1: needed for upgrade(), as nginx does not upgrade under its first parent
# start    0: only written, for conf_test() or start()
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('nginx');
    my $self = bless {
        dir => $dir, conf_file => "$dir/nginx.conf", error_log => "$dir/error.log",
        access_log => "$dir/access.log", pid_file => "$dir/nginx.pid", workers => 1,
        log => 'debug', module => 1, %arg,
    }, $class;
    $self->write_conf($arg{conf});
    push @all, $self;
    $self->start unless defined $arg{start} && !$arg{start};
    return $self;
}

sub dir        { $_[0]{dir} }
sub pid        { $_[0]{process} && $_[0]{process}->pid }
sub process    { $_[0]{process} }
sub error_log  { $_[0]{error_log} }
sub access_log { slurp($_[0]{access_log}) }

# Writes nginx.conf anew, for a reload() to read.
sub write_conf {
    my ($self, $conf) = @_;
    my $dir  = $self->{dir};
    my $load = $self->{module} && !$ENV{TEST_NGINX_STATIC} ? 'load_module ' . module_path() . ';' : '';
    # Workers of root would be nobody's, who may not read the test's files.
    my $user = $> == 0 ? 'user ' . ($self->{user} // 'root') . ';' : '';
    my $use  = $self->{method} ? "use $self->{method};" : '';
    my $temp = join "\n    ", map { "${_}_temp_path $dir/$_;" } qw(client_body proxy);
    my $nginx_v = version_text();
    for my $module (qw(fastcgi uwsgi scgi)) {
        $temp .= "\n    ${module}_temp_path $dir/$module;" if $nginx_v !~ /--without-http_$module/;
    }
    my @blocks = ([ http => $conf ], $self->{stream} ? [ stream => $self->{stream} ] : ());
    if ($self->{module} && ($self->{key} // 1)) {
        $_->[1] = '    ssl_session_key ' . session_key() . ";\n$_->[1]"
            for grep { $_->[1] !~ /\bssl_session_key\s/ } @blocks;
    }
    ($conf, my $stream) = map { $_->[1] } @blocks;
    if ($stream) {
        my $module = stream_module();
        my @load = ($module ? "load_module $module;" : '', $load);
        $load = join "\n", $self->{stream_last} ? reverse @load : @load;
        $stream = "stream {\n$stream\n}";
    }
    my $events = join ' ', $use, $self->{events} // 'worker_connections 1024;';
    my $main   = $self->{main} // '';
    my $ktls   = $ENV{TEST_NGINX_KTLS} && $conf !~ /ssl_conf_command/ ? 'ssl_conf_command Options KTLS;' : '';
    my $daemon = $self->{daemon} ? 'on' : 'off';
    spew($self->{conf_file}, <<"CONF");
daemon $daemon;
worker_processes $self->{workers};
pid $self->{pid_file};
error_log $self->{error_log} $self->{log};
$user
$load
$main
events { $events }
http {
    access_log $self->{access_log};
    $temp
    default_type text/plain;
    $ktls
$conf
}
@{[ $stream // '' ]}
CONF
    return $self;
}

# The file of its module for stream{}: '' where nginx has it in itself, undef where there is none.
# Distributions have it in a package of its own, of which the other Debian's is unpacked beside nginx.
sub stream_module {
    return '' if version_text() =~ /--with-stream(?:\s|$)/;
    my ($path) = version_text() =~ /--modules-path=(\S+)/ or return;
    my ($beside) = nginx_binary() =~ m{^(.*)/};
    my ($file) = grep { -f } map { "$_/ngx_stream_module.so" } "$beside/root$path", $path;
    return $file;
}

my $stream_servers;

# Whether stream{} has virtual servers: since 1.25.5, and not in each fork.
sub stream_servers {
    my ($class) = @_;
    return 0 unless defined stream_module();
    my $servers = 'server { listen 127.0.0.1:' . SSLSession::Util::free_port() . '; server_name one.test; return one; }';
    $stream_servers //= ($class->new(start => 0, module => 0, conf => '', stream => $servers)->conf_test)[0] == 0;
    return $stream_servers;
}

my $version_text;

# What nginx -V says.
sub version_text {
    my $binary = nginx_binary();
    return $version_text //= `'$binary' -V 2>&1`;
}

# 1022001 for 1.22.1.
sub version {
    my ($major, $minor, $patch) = version_text() =~ m{nginx/(\d+)\.(\d+)\.(\d+)} or croak 'nginx -V';
    return ($major * 1000 + $minor) * 1000 + $patch;
}

# The event methods it was built with; packages often have no other than epoll.
sub event_methods {
    my $built = version_text();
    return ('epoll', grep { $built =~ /--with-${_}_module/ } qw(poll select));
}

sub _command {
    my ($self, @more) = @_;
    return (nginx_binary(), '-p', "$self->{dir}/", '-c', $self->{conf_file}, @more);
}

# As Test::Nginx::Util: 1 for its own options, else the options themselves.
sub _valgrind {
    my ($self) = @_;
    my $options = $ENV{TEST_NGINX_USE_VALGRIND} or return;
    $options = '--tool=memcheck --leak-check=full --show-possibly-lost=no' if $options =~ /^\d+$/;
    $options .= " --suppressions=valgrind.suppress" if -f 'valgrind.suppress';
    return (qw(valgrind -q), split ' ', $options);
}

# Returns once every worker is in its loop.
sub start {
    my ($self) = @_;
    local %ENV = (%ENV, %{ $self->{env} // {} });
    my $out = "$self->{dir}/output";
    $self->{process} = SSLSession::Process->spawn(
        name => 'nginx', out => $out, cmd => [ $self->_valgrind, $self->_command('-e', "$self->{dir}/first.log") ]);
    my $launcher = $self->{process};
    my $failed = sub {
        croak 'nginx does not start: ' . slurp($out) . slurp("$self->{dir}/first.log")
            . join "\n", $self->errors;
    };
    if ($self->{daemon}) {
        $launcher->wait_exit(20) and $failed->();
        my $pid = wait_until { $self->_pid_in('') } 10, 'pid file';
        $self->{process} = SSLSession::Process->adopt(pid => $pid, name => 'nginx');
    }
    wait_until {
        $failed->() unless $self->{process}->alive;
        $self->_pid_in('') && $self->_ready($self->pid) >= $self->{workers};
    } 20, 'start of nginx';
    # In this mode each configuration must work as the second one of a running nginx, too.
    $self->reload if $ENV{TEST_NGINX_USE_HUP} && !$self->{no_hup};
    return $self;
}

sub _pid_in {
    my ($self, $suffix) = @_;
    my ($pid) = slurp("$self->{pid_file}$suffix") =~ /^(\d+)\n/;
    return $pid;
}

# Pids of the workers that serve; with a master's pid, of that master's (during an upgrade there
# are two).
sub workers {
    my ($self, $master) = @_;
    my $gone = $self->_stopping;
    my @pids = grep { !$gone->{$_} } $self->_children($master // $self->pid);
    return @pids;
}

# Pids of the workers that finish what they have and then exit.
sub old_workers {
    my ($self) = @_;
    my $gone = $self->_stopping;
    my @pids = grep { $gone->{$_} } $self->{process}->group;
    return @pids;
}

sub _children {
    my ($self, $master) = @_;
    my $log = $self->log;
    return grep {
        my ($parent) = slurp("/proc/$_/stat") =~ /^\d+ \(.*\) \S (\d+)/s;
        # A cache manager is a child as well.
        defined $parent && $parent == $master && $log =~ /start worker process $_$/m
    } $self->{process}->group;
}

sub _stopping {
    my ($self) = @_;
    return { map { $_ => 1 } $self->log =~ /\[notice\] (\d+)#\d+: (?:gracefully shutting down|exiting)$/mg };
}

# How many workers of that master have come as far as their event loop. Below the level debug
# nothing tells; the listening sockets have been there since before the first worker.
sub _ready {
    my ($self, $master) = @_;
    my @workers = $self->{log} =~ /^(?:debug|info|notice)$/
        ? $self->workers($master)
        : grep { $_ != $master } $self->{process}->group;
    if ($self->{log} eq 'debug' && version_text() =~ /--with-debug/) {
        my $log = $self->log;
        @workers = grep { $log =~ /\[debug\] $_#\d+: worker cycle$/m } @workers;
    }
    return scalar @workers;
}

sub signal { my ($self, $signal) = @_; return $self->{process}->signal($signal) }

# Stops a worker, and returns once it stands still; it goes on with CONT.
sub halt {
    my ($self, $worker) = @_;
    freeze($worker);
    return $worker;
}

# HUP. Returns once the new workers serve and the old ones accept nothing any more; what they
# have goes on. Dies with nginx's words when it refuses the configuration. workers => n: so many
# from now on; stream => text: what is in stream{} from now on.
sub reload {
    my ($self, $conf, %arg) = @_;
    $self->{$_} = $arg{$_} // $self->{$_} for qw(workers stream main);
    $self->write_conf($conf) if defined $conf;
    my $from = $self->log_pos;
    my @old  = $self->workers;
    $self->signal('HUP');
    wait_until {
        my @emerg = grep { /\[emerg\]/ } $self->errors(from => $from);
        croak "reload: @emerg" if @emerg;
        my %old = map { $_ => 1 } @old;
        my @now = $self->workers;
        @now >= $self->{workers} && !grep({ $old{$_} } @now) && $self->_ready($self->pid) >= $self->{workers};
    } 20, 'reload of nginx';
    return $self;
}

# Binary upgrade, with the same binary. Returns once the new master's workers serve and the old
# master has been told to quit (quit => 0: not told). wait => 1 waits for the end of the old one.
sub upgrade {
    my ($self, %arg) = @_;
    $self->{daemon} or croak 'upgrade() needs nginx(daemon => 1)';
    my $old = $self->pid;
    $self->signal('USR2');
    my $new = wait_until {
        my $pid = $self->_pid_in('');
        ($self->_pid_in('.oldbin') // 0) == $old && $pid && $pid != $old && $pid;
    } 20, 'new master';
    wait_until { $self->_ready($new) >= $self->{workers} } 20, 'workers of the new master';
    # The new one stays in the old one's process group.
    $self->{process}{pid} = $new;
    if ($arg{quit} // 1) {
        CORE::kill('QUIT', $old);
        wait_until { !$self->workers($old) } 20, 'old workers to stop accepting';
        if ($arg{wait}) {
            wait_until { !grep { $_ == $old } $self->{process}->group } 20, 'end of the old master';
        }
    }
    return $self;
}

# Graceful exit: returns when all is over; dies when it takes longer than $seconds.
sub quit {
    my ($self, $seconds) = @_;
    $self->signal('QUIT');
    $self->{process}->wait_exit($seconds // 10);
    wait_until { !$self->{process}->group } $seconds // 10, 'exit of the workers';
    return $self->{process}->kill_all;
}

# Fast exit. Under valgrind in order too, for its report.
sub stop { my ($self) = @_; return $self->{process}->stop('TERM', 5 * SSLSession::Util::patience()) }

# SIGKILL to all of it.
sub kill { $_[0]{process}->kill_all }

# nginx -t: (exit code, what it said).
sub conf_test {
    my ($self) = @_;
    my $out = "$self->{dir}/conf_test";
    unlink $out;
    my $process = SSLSession::Process->spawn(
        name => 'nginx -t', out => $out, cmd => [ $self->_command('-t', '-e', 'stderr') ]);
    my $status = $process->wait_exit(20);
    return ($status & 127 ? 128 + ($status & 127) : $status >> 8, slurp($out));
}

# error.log from a position on, and the position of its end.
sub log     { my ($self, $from) = @_; return slurp($self->{error_log}, $from) }
sub log_pos { return -s $_[0]{error_log} || 0 }

# Waits for a line that matches and returns it. (qr/.../, seconds => 5, from => log_pos())
sub log_like {
    my ($self, $pattern, %arg) = @_;
    return wait_until {
        my ($line) = grep { $_ =~ $pattern } split /\n/, $self->log($arg{from});
        $line;
    } $arg{seconds} // 5, "\"$pattern\" in error.log";
}

# How many lines match by now.
sub log_count {
    my ($self, $pattern, %arg) = @_;
    return scalar grep { $_ =~ $pattern } split /\n/, $self->log($arg{from});
}

# The lines from [error] up. (from => log_pos(), except => qr/.../, warn => 1: from [warn] up)
sub errors {
    my ($self, %arg) = @_;
    my $levels = $arg{warn} ? 'emerg|alert|crit|error|warn' : 'emerg|alert|crit|error';
    return grep { /\[(?:$levels)\]/ && !($arg{except} && $_ =~ $arg{except}) }
        split /\n/, $self->log($arg{from});
}

# What its workers have used and hold: CPU seconds, resident KB, open files, sockets among them.
sub cpu { return _sum($_[0], sub { (split ' ', (slurp("/proc/$_[0]/stat") =~ /\) (.*)/s)[0])[11, 12] })
                 / POSIX::sysconf(POSIX::_SC_CLK_TCK()) }
# Under a sanitizer, which keeps what was freed, the memory of each is the same.
sub rss { return $ENV{TEST_NGINX_SANITIZE} ? 1 : _sum($_[0], sub { slurp("/proc/$_[0]/status") =~ /^VmRSS:\s*(\d+)/m }) }
sub fds { return _at_rest($_[0], sub { scalar(() = glob "/proc/$_[0]/fd/*") }) }
sub sockets { return _at_rest($_[0], sub { scalar grep { /^socket:/ } map { readlink // '' } glob "/proc/$_[0]/fd/*" }) }

# A worker that sleeps has closed what it had of its master's, and what clients have left. One that
# is never seen asleep is counted as it is.
sub _at_rest {
    my ($self, $of) = @_;
    eval { wait_until { !grep { state_of($_) !~ /^[ST]$/ } $self->workers } 2, 'workers to sleep' };
    return _sum($self, $of);
}

sub _sum {
    my ($self, $of) = @_;
    my $sum = 0;
    for my $pid ($self->workers) { $sum += $_ for $of->($pid) }
    return $sum;
}

# What a failed test wants to know first.
END {
    if (@all && $INC{'Test/More.pm'} && !Test::More->builder->is_passing) {
        local ($?, $!, $@);
        for my $nginx (@all) {
            my @lines = $nginx->errors(warn => 1);
            splice @lines, 20 if @lines > 20;
            Test::More::diag("$nginx->{error_log}: $_") for @lines;
        }
    }
}

1;
