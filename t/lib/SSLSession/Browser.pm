package SSLSession::Browser;

# A headless Chromium with one page, driven by the DevTools protocol over a pair of pipes.

use strict;
use warnings;

use SSLSession::Process;
use SSLSession::Util qw(new_dir patience slurp spew);

use Carp qw(croak);
use IO::Select;
use JSON::PP ();
use MIME::Base64 qw(decode_base64);
use POSIX ();
use Time::HiRes qw(time);

my $json = JSON::PP->new->utf8->allow_nonref;

# The program, or undef where none is installed.
sub binary {
    my @names = qw(chromium-headless-shell chromium google-chrome);
    return $ENV{TEST_CHROMIUM} // (grep { -x } map { my $name = $_; map { "$_/$name" } split /:/, $ENV{PATH} } @names)[0];
}

# width => 1280, height => 800, mobile => 0, args => [more of the command line]
sub new {
    my ($class, %arg) = @_;
    my $dir  = new_dir('browser');
    my $self = bless { dir => $dir, log => "$dir/log", id => 0, bytes => '', requests => [], complaints => [] }, $class;
    my @cmd = (binary() // croak('no browser'),
        # On Debian chromium without it is a program with windows.
        '--headless', '--remote-debugging-pipe', "--user-data-dir=$dir/profile", '--no-first-run',
        # What it would do on its own is of no use here.
        qw(--no-proxy-server --disable-background-networking --disable-component-update --disable-default-apps
           --disable-extensions --disable-sync --disable-breakpad --disable-gpu --hide-scrollbars),
        # /dev/shm is 64 MB in a container.
        '--disable-dev-shm-usage',
        # Chromium's sandbox does not work for root.
        $> == 0 ? '--no-sandbox' : (), @{ $arg{args} // [] }, 'about:blank');
    pipe my $commands, $self->{to} or croak "pipe: $!";
    pipe $self->{from}, my $answers or croak "pipe: $!";
    $self->{process} = SSLSession::Process->spawn(
        name => 'browser', out => $self->{log}, keep => [ $commands, $answers ],
        code => sub {
            # It reads from 3 and writes to 4, and neither may be taken by the other before.
            my ($in, $out) = map { fcntl($_, 0, 10) or die "F_DUPFD: $!\n" } $commands, $answers;
            POSIX::dup2($in, 3);
            POSIX::dup2($out, 4);
            POSIX::close($_) for $in, $out;
            # Fonts and settings of whoever runs the test have no part in it.
            @ENV{qw(HOME XDG_CONFIG_HOME XDG_CACHE_HOME)} = ($dir, $dir, $dir);
            delete @ENV{ grep { /^(?:DISPLAY|DBUS_.*|WAYLAND_DISPLAY)$/ } keys %ENV };
            $SIG{PIPE} = 'DEFAULT';
            { no warnings 'exec'; exec { $cmd[0] } @cmd; }
            die "exec $cmd[0]: $!\n";
        });
    close $_ for $commands, $answers;
    $self->{to}->autoflush;
    my $target = $self->call('Target.createTarget', url => 'about:blank')->{targetId};
    $self->{session} = $self->call('Target.attachToTarget', targetId => $target, flatten => JSON::PP::true)->{sessionId};
    $self->call("$_.enable") for qw(Page Runtime Network Log);
    $self->viewport(map { $arg{$_} } qw(width height mobile));
    return $self;
}

sub process { $_[0]{process} }

# What the page has asked for, and what it or the browser has complained about, from new() on.
sub requests   { @{ $_[0]->_listen->{requests} } }
sub complaints { @{ $_[0]->_listen->{complaints} } }

# Any command of the protocol: its result; dies with what the browser says against it.
sub call {
    my ($self, $method, %params) = @_;
    my $id = ++$self->{id};
    my $message = $json->encode({ id => $id, method => $method, params => \%params,
        $self->{session} ? (sessionId => $self->{session}) : () });
    print { $self->{to} } "$message\0" or croak 'the browser is gone: ' . slurp($self->{log});
    my $deadline = time + 20 * patience();
    while (1) {
        my $answer = $self->_message($deadline - time) // croak "$method: no answer: " . slurp($self->{log});
        next if ($answer->{id} // 0) != $id;
        croak "$method: $answer->{error}{message}" if $answer->{error};
        return $answer->{result};
    }
}

# Opens a page, and returns when it is loaded.
sub open {
    my ($self, $url) = @_;
    $self->{loaded} = 0;
    my $result = $self->call('Page.navigate', url => $url);
    croak "$url: $result->{errorText}" if $result->{errorText};
    my $deadline = time + 20 * patience();
    $self->_message($deadline - time) // croak "$url: not loaded" until $self->{loaded};
    return $self;
}

# The value of an expression, or of the promise that it is.
sub eval {
    my ($self, $expression) = @_;
    my $result = $self->call('Runtime.evaluate', expression => $expression,
        returnByValue => JSON::PP::true, awaitPromise => JSON::PP::true);
    my $wrong = $result->{exceptionDetails} or return $result->{result}{value};
    croak "$expression: " . ($wrong->{exception}{description} // $wrong->{text});
}

sub viewport {
    my ($self, $width, $height, $mobile) = @_;
    $self->call('Emulation.setDeviceMetricsOverride', width => $width // 1280, height => $height // 800,
        deviceScaleFactor => 1, mobile => $mobile ? JSON::PP::true : JSON::PP::false);
    return $self;
}

# 'dark' or 'light', whatever the system prefers.
sub color_scheme {
    my ($self, $scheme) = @_;
    $self->call('Emulation.setEmulatedMedia', features => [ { name => 'prefers-color-scheme', value => $scheme } ]);
    return $self;
}

# The page as PNG, all of it or as much as its width and that height have.
sub screenshot {
    my ($self, $file, $height) = @_;
    my $size = $self->call('Page.getLayoutMetrics')->{cssContentSize};
    my $shot = $self->call('Page.captureScreenshot', format => 'png', captureBeyondViewport => JSON::PP::true,
        clip => { x => 0, y => 0, width => $size->{width}, height => $height // $size->{height}, scale => 1 });
    return spew($file, decode_base64($shot->{data}));
}

# Ends it in order, and whatever of it is left.
sub close {
    my ($self) = @_;
    delete $self->{session};
    eval { $self->call('Browser.close') };
    eval { $self->{process}->wait_exit(5) };
    return $self->{process}->kill_all;
}

# Takes in what has come.
sub _listen { my ($self) = @_; 1 while $self->_message(0); return $self }

# The next message, of which events are noted; undef when none comes in time.
sub _message {
    my ($self, $seconds) = @_;
    my $deadline = time + $seconds;
    my $end;
    while (($end = index $self->{bytes}, "\0") < 0) {
        my $left = $deadline - time;
        IO::Select->new($self->{from})->can_read($left > 0 ? $left : 0) or return;
        sysread $self->{from}, $self->{bytes}, 65536, length $self->{bytes}
            or croak 'the browser is gone: ' . slurp($self->{log});
    }
    my $message = $json->decode(substr $self->{bytes}, 0, $end);
    substr $self->{bytes}, 0, $end + 1, '';
    my ($event, $of) = ($message->{method} // '', $message->{params});
    $self->{loaded} = 1 if $event eq 'Page.loadEventFired';
    push @{ $self->{requests} }, $of->{request}{url} if $event eq 'Network.requestWillBeSent';
    push @{ $self->{complaints} }, $of->{exceptionDetails}{exception}{description} // $of->{exceptionDetails}{text}
        if $event eq 'Runtime.exceptionThrown';
    push @{ $self->{complaints} }, join ' ', map { $_->{value} // $_->{description} // '' } @{ $of->{args} }
        if $event eq 'Runtime.consoleAPICalled' && $of->{type} =~ /^(?:error|warning|assert)$/;
    push @{ $self->{complaints} }, "$of->{entry}{text} $of->{entry}{url}"
        if $event eq 'Log.entryAdded' && $of->{entry}{level} =~ /^(?:error|warning)$/;
    return $message;
}

1;
