package SSLSession::Firefox;

# A headless Firefox with one page, driven by the Marionette protocol.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(free_port new_dir patience slurp spew wait_until);

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use Time::HiRes qw(time);

my $json = JSON::PP->new->utf8->allow_nonref;

# The program, or undef where none is installed.
sub binary {
    my @names = qw(firefox-esr firefox);
    return $ENV{TEST_FIREFOX} // (grep { -x } map { my $name = $_; map { "$_/$name" } split /:/, $ENV{PATH} } @names)[0];
}

# prefs => { name => value }; ca => FILE of a CA to trust, which takes certutil
sub new {
    my ($class, %arg) = @_;
    my $binary = binary() // croak('no Firefox');
    my $dir    = new_dir('firefox');
    my $port   = free_port();
    my $self   = bless { dir => $dir, log => "$dir/log", id => 0, bytes => '' }, $class;
    my %prefs  = (
        'marionette.port' => $port,
        # Connections that a page does not ask for.
        'browser.chrome.site_icons'                    => JSON::PP::false,
        'network.http.speculative-parallel-limit'      => 0,
        'network.http.connection-retry-timeout'        => 0,
        'network.captive-portal-service.enabled'       => JSON::PP::false,
        'network.connectivity-service.enabled'         => JSON::PP::false,
        'network.proxy.type'                           => 0,
        'network.trr.mode'                             => 5,
        %{ $arg{prefs} // {} });
    mkdir "$dir/profile" or croak "$dir/profile: $!";
    spew("$dir/profile/user.js", join '', map { "user_pref(\"$_\", " . $json->encode($prefs{$_}) . ");\n" } sort keys %prefs);
    system('certutil', '-A', '-d', "sql:$dir/profile", '--empty-password', '-n', 'ca', '-t', 'C,,', '-i', $arg{ca}) == 0 or croak 'certutil' if $arg{ca};
    my @cmd = ($binary, '--headless', '--marionette', '--no-remote', '--profile', "$dir/profile", 'about:blank');
    $self->{process} = SSLSession::Process->spawn(
        name => 'firefox', out => $self->{log},
        code => sub {
            # Fonts and settings of whoever runs the test have no part in it.
            @ENV{qw(HOME XDG_CONFIG_HOME XDG_CACHE_HOME)} = ($dir, $dir, $dir);
            delete @ENV{ grep { /^(?:DISPLAY|DBUS_.*|WAYLAND_DISPLAY)$/ } keys %ENV };
            $SIG{PIPE} = 'DEFAULT';
            { no warnings 'exec'; exec { $cmd[0] } @cmd; }
            die "exec $cmd[0]: $!\n";
        });
    $self->{socket} = wait_until {
        $self->{process}->alive or croak 'Firefox is gone: ' . slurp($self->{log});
        IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
    } 30, 'Firefox';
    # Who it is.
    $self->_message(20 * patience()) // croak 'Firefox says nothing: ' . slurp($self->{log});
    $self->call('WebDriver:NewSession', acceptInsecureCerts => JSON::PP::true);
    return $self;
}

sub process { $_[0]{process} }

# Any command of the protocol: its result; dies with what the browser says against it.
sub call {
    my ($self, $method, %params) = @_;
    my $id = ++$self->{id};
    my $message = $json->encode([ 0, $id, $method, \%params ]);
    print { $self->{socket} } length($message) . ":$message" or croak 'Firefox is gone: ' . slurp($self->{log});
    my $answer = $self->_message(20 * patience()) // croak "$method: no answer: " . slurp($self->{log});
    my (undef, undef, $error, $result) = @$answer;
    croak "$method: $error->{error}: $error->{message}" if $error;
    return $result;
}

# Opens a page, and returns when it is loaded.
sub open {
    my ($self, $url) = @_;
    $self->call('WebDriver:Navigate', url => $url);
    return $self;
}

# The value of an expression.
sub eval {
    my ($self, $expression) = @_;
    return $self->call('WebDriver:ExecuteScript', script => "return $expression", args => [])->{value};
}

# Ends it in order, and whatever of it is left.
sub close {
    my ($self) = @_;
    eval { $self->call('Marionette:Quit', flags => ['eForceQuit']) };
    eval { $self->{process}->wait_exit(5) };
    return $self->{process}->kill_all;
}

# The next message; undef when none comes in time.
sub _message {
    my ($self, $seconds) = @_;
    my $deadline = time + $seconds;
    until ($self->{bytes} =~ /^(\d+):/ && length($self->{bytes}) >= $+[0] + $1) {
        my $left = $deadline - time;
        IO::Select->new($self->{socket})->can_read($left > 0 ? $left : 0) or return;
        sysread $self->{socket}, $self->{bytes}, 65536, length $self->{bytes}
            or croak 'Firefox is gone: ' . slurp($self->{log});
    }
    my ($length) = $self->{bytes} =~ /^(\d+):/;
    my $message = $json->decode(substr $self->{bytes}, length($length) + 1, $length);
    substr $self->{bytes}, 0, length($length) + 1 + $length, '';
    return $message;
}

1;
