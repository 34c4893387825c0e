package SSLSession::Certs;

# Certificates for tests, made once and kept in target/test-certs.

use strict;
use warnings;

use SSLSession::Util qw(root spew slurp);

use Carp qw(croak);
use Exporter qw(import);
use File::Path qw(make_path remove_tree);
use File::Temp ();

our @EXPORT_OK = qw(certs);

# Count up whenever what is made below changes.
my $edition = 1;

# A hash of file names: {rsa,ec}_{crt,key} of self-signed server certificates for localhost,
# 127.0.0.1 and *.example.test; {rsa2,ec2}_{crt,key} others with the same names; ca_{crt,key} and,
# signed by it, client_{crt,key}, client_big_{crt,key} (several KB) and server_{crt,key}.
sub certs {
    my $dir = root() . "/target/test-certs/$edition";
    _make($dir) unless -d $dir;
    my %file;
    for my $path (glob "$dir/*") {
        my ($name) = $path =~ m{([^/]+)$};
        (my $key = $name) =~ tr/./_/;
        $file{$key} = $path;
    }
    return wantarray ? %file : \%file;
}

sub _make {
    my ($final) = @_;
    (my $parent = $final) =~ s{/[^/]+$}{};
    make_path($parent);
    my $dir = File::Temp::tempdir('new-XXXXXX', DIR => $parent);

    my $names = 'DNS:localhost,DNS:*.example.test,IP:127.0.0.1';
    my @rsa   = qw(-newkey rsa:2048);
    my @ec    = qw(-newkey ec -pkeyopt ec_paramgen_curve:P-256);
    my $self  = sub {
        my ($name, @key) = @_;
        _openssl($dir, qw(req -x509 -nodes -days 7300 -subj /CN=localhost),
            '-addext', "subjectAltName=$names", @key, '-keyout', "$name.key", '-out', "$name.crt");
    };
    $self->('rsa',  @rsa);
    $self->('rsa2', @rsa);
    $self->('ec',   @ec);
    $self->('ec2',  @ec);

    _openssl($dir, qw(req -x509 -nodes -days 7300 -subj), '/CN=test CA', @ec,
        qw(-keyout ca.key -out ca.crt));
    my $signed = sub {
        my ($name, $subject, $alt) = @_;
        spew("$dir/ext", "subjectAltName=$alt\n");
        _openssl($dir, qw(req -new -nodes -subj), $subject, @ec, '-keyout', "$name.key", '-out', 'csr');
        _openssl($dir, qw(x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 7300),
            '-extfile', 'ext', '-out', "$name.crt");
    };
    $signed->('server', '/CN=localhost', $names);
    $signed->('client', '/CN=client', 'DNS:client.example.test');
    $signed->('client_big', '/CN=big client',
        join ',', map { sprintf 'DNS:%s%03d.example.test', 'x' x 40, $_ } 1 .. 60);
    unlink map { "$dir/$_" } qw(ext csr ca.srl);
    chmod 0755, $dir;
    chmod 0644, glob "$dir/*";

    # Tests run in parallel: the first to be ready wins, the others use what it made.
    rename $dir, $final or remove_tree($dir);
    -d $final or croak "cannot make $final";
}

sub _openssl {
    my ($dir, @args) = @_;
    my $log = "$dir/../log.$$";
    my $pid = fork() // croak "fork: $!";
    if ($pid == 0) {
        chdir $dir;
        open STDOUT, '>', $log;
        open STDERR, '>&', \*STDOUT;
        { no warnings; exec 'openssl', @args }
        require POSIX;
        POSIX::_exit(127);
    }
    waitpid $pid, 0;
    my $status = $?;
    my $output = slurp($log);
    unlink $log;
    croak "openssl @args: $output" if $status;
}

1;
