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
my $edition = 3;

# A hash of file names. For nginx: {rsa,ec}_{crt,key} of self-signed server certificates for
# localhost, 127.0.0.1 and *.example.test; {rsa2,ec2}_{crt,key} others with the same names;
# ca_{crt,key} and, signed by it, client_{crt,key}, client_big_{crt,key} (several KB) and
# server_{crt,key}.
#
# For backends, _{crt,key} each, for localhost, 127.0.0.1, ::1 and backend.example, signed by ca
# where nothing else is said:
#     backend, backend_rsa   good ones, of both key types
#     backend_chain          signed by sub, an intermediate CA, whose certificate is in the file
#     backend_leaf           the same, without the intermediate's (which is in sub_crt)
#     backend_deep           two intermediates, both in the file
#     backend_expired, backend_revoked (see crl_pem, of ca and sub), backend_wrong (other names)
#     backend_self           self-signed
#     backend_other          signed by other_ca_{crt,key}; client_other is a client of that CA
#
# ca_renewed_{crt,key} has the name of ca and another key; client_renewed is a client of that CA.
# ca_bundle_crt holds other_ca and ca; client_enc_key is client_key encrypted, with the password
# in client_pass; wrong_pass holds another one.
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
        my ($name, $subject, $alt, %arg) = @_;
        my $ca = $arg{ca} // 'ca';
        spew("$dir/ext", $arg{ext} // "subjectAltName=$alt\n");
        _openssl($dir, qw(req -new -nodes -subj), $subject, @{ $arg{type} // \@ec },
            '-keyout', "$name.key", '-out', 'csr');
        _openssl($dir, qw(x509 -req -in csr -CAcreateserial -days 7300), '-CA', "$ca.crt",
            '-CAkey', "$ca.key", '-extfile', 'ext', '-out', "$name.crt");
    };
    $signed->('server', '/CN=localhost', $names);
    $signed->('client', '/CN=client', 'DNS:client.example.test');
    $signed->('client_big', '/CN=big client',
        join ',', map { sprintf 'DNS:%s%03d.example.test', 'x' x 40, $_ } 1 .. 60);
    _backend($dir, $signed, \@ec, \@rsa);
    unlink map { "$dir/$_" } qw(ext csr), map { m{([^/]+)$} } glob "$dir/{*.srl,db*,conf}";
    chmod 0755, $dir;
    chmod 0644, glob "$dir/*";

    # Tests run in parallel: the first to be ready wins, the others use what it made.
    rename $dir, $final or remove_tree($dir);
    -d $final or croak "cannot make $final";
}

sub _backend {
    my ($dir, $signed, $ec, $rsa) = @_;
    my $names = 'DNS:localhost,DNS:backend.example,IP:127.0.0.1,IP:::1';
    my $is_ca = "basicConstraints=critical,CA:TRUE\n";
    $signed->('backend',     '/CN=backend', $names);
    $signed->('backend_rsa', '/CN=backend', $names, type => $rsa);
    $signed->('backend_wrong', '/CN=elsewhere', 'DNS:elsewhere.example,IP:127.0.0.99');
    _openssl($dir, qw(req -x509 -nodes -days 7300 -subj /CN=backend), '-addext',
        "subjectAltName=$names", @$ec, qw(-keyout backend_self.key -out backend_self.crt));

    _openssl($dir, qw(req -x509 -nodes -days 7300 -subj), '/CN=other CA', @$ec,
        qw(-keyout other_ca.key -out other_ca.crt));
    $signed->('backend_other', '/CN=backend', $names, ca => 'other_ca');
    $signed->('client_other', '/CN=other client', 'DNS:client.example.test', ca => 'other_ca');
    _openssl($dir, qw(req -x509 -nodes -days 7300 -subj), '/CN=test CA', @$ec,
        qw(-keyout ca_renewed.key -out ca_renewed.crt));
    $signed->('client_renewed', '/CN=renewed client', 'DNS:client.example.test', ca => 'ca_renewed');
    spew("$dir/ca_bundle.crt", slurp("$dir/other_ca.crt"), slurp("$dir/ca.crt"));

    $signed->('sub',  '/CN=intermediate', '', ext => $is_ca);
    $signed->('sub2', '/CN=second intermediate', '', ext => $is_ca, ca => 'sub');
    $signed->('backend_leaf', '/CN=backend', $names, ca => 'sub');
    $signed->('backend_deep', '/CN=backend', $names, ca => 'sub2');
    spew("$dir/backend_chain.crt", map { slurp("$dir/$_.crt") } qw(backend_leaf sub));
    spew("$dir/backend_chain.key", slurp("$dir/backend_leaf.key"));
    spew("$dir/backend_deep.crt", map { slurp("$dir/$_.crt") } qw(backend_deep sub2 sub));

    # What only `openssl ca` can do.
    spew("$dir/conf", <<'CONF');
[ca]
default_ca = it
[it]
database = db
rand_serial = yes
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
CONF
    spew("$dir/db");
    my @ca = qw(ca -batch -config conf);
    _openssl($dir, qw(req -new -nodes -subj /CN=backend), '-addext', "subjectAltName=$names", @$ec,
        qw(-keyout backend_expired.key -out csr));
    _openssl($dir, @ca, qw(-cert ca.crt -keyfile ca.key -notext -in csr -out backend_expired.crt),
        qw(-startdate 20200101000000Z -enddate 20210101000000Z));
    # It leaves another copy, named after the serial number.
    unlink grep { m{/[0-9A-F]{30,}\.pem$} } glob "$dir/*.pem";
    $signed->('backend_revoked', '/CN=backend', $names);
    _openssl($dir, @ca, qw(-cert ca.crt -keyfile ca.key -revoke backend_revoked.crt));
    for my $name (qw(ca sub)) {
        _openssl($dir, @ca, '-cert', "$name.crt", '-keyfile', "$name.key",
            '-gencrl', '-crldays', 7300, '-out', "$name.crl");
        spew("$dir/db");
    }
    spew("$dir/crl.pem", map { slurp("$dir/$_.crl") } qw(ca sub));

    spew("$dir/client.pass", "secret of the client\n");
    spew("$dir/wrong.pass",  "another secret\n");
    _openssl($dir, qw(pkey -in client.key -aes256 -passout file:client.pass -out client_enc.key));
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
