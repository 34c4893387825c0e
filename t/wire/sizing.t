# What "nginx-ssl-session size" computes with is what an nginx makes: entries, and connections to a store.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use Test::More;

my $certs = certs();
my $known = decode_json(slurp(root() . '/cli/src/size/measured.json'));

sub near {
    my ($got, $expected, $share, $what) = @_;
    ok abs($got - $expected) <= $share * $expected, $what or diag "$got, expected $expected";
}

subtest 'entries of a real nginx are as large as the constants say' => sub {
    my @redis   = map { redis() } 1 .. 3;
    my $port    = free_port();
    my $servers = join ' ', map { 'server ' . $_->address . ';' } @redis;
    my $wait    = 2 * patience() . 's';
    my $nginx   = nginx(conf => <<"CONF");
    ssl_session_backend fleet { $servers connect_timeout $wait; fetch_timeout $wait; }
    ssl_session_fetch      fleet;
    ssl_session_store      fleet;
    ssl_session_tickets    off;
    ssl_certificate        $certs->{ec_crt};
    ssl_certificate_key    $certs->{ec_key};
    ssl_client_certificate $certs->{ca_crt};
    ssl_verify_client      optional;
    ssl_protocols          TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_reused"; } }
CONF
    my $der = length `openssl x509 -in $certs->{client_crt} -outform DER`;
    my @keys;
    for my $version (qw(1.2 1.3)) {
        for my $kind (qw(none ecdsa)) {
            my @cert  = $kind eq 'none' ? () : (cert => $certs->{client_crt}, key => $certs->{client_key});
            my $visit = sub {
                my $client = tls_client(port => $port, sni => 'www.example.com', name => 'www.example.com', protocol => "TLSv$version", @cert, @_);
                my $said = $client->request // die $client->error;
                return ($client->session, $said);
            };
            my %before = map { $_ => 1 } map { $_->keys } @redis;
            my $stored = 0;
            my $grown  = sub {
                my ($more) = @_;
                wait_until { ($stored + $more) == grep { !$before{$_} } map { $_->keys } @redis } 15, 'the store';
                $stored += $more;
            };
            my $session;
            for (1 .. 4) {
                ($session) = $visit->();
                $grown->($version eq '1.2' ? 1 : 2);
            }
            my (undef, $reused) = $visit->(session => $session);
            is $reused, 'r', "TLS $version, $kind: resumed";
            $grown->($version eq '1.2' ? 0 : 1);

            # The certificates are of another size than those that were measured with.
            my $certificate = $kind eq 'none' ? 0 : $known->{certificate}{$kind} - $der;
            my $expected    = $known->{entry}{$version}{$kind} - $certificate;
            for my $redis (@redis) {
                for my $key (grep { !$before{$_} } $redis->keys) {
                    near($redis->cmd('STRLEN', $key), $expected, 0.1, "TLS $version, $kind: an entry");
                    is length $key, $known->{key}, 'its name';
                    near($redis->cmd('MEMORY', 'USAGE', $key), $known->{redis}{usage}{$version}{$kind}, 0.1, 'in memory') if $kind eq 'none';
                    push @keys, [ $key, $redis ];
                }
            }
        }
    }
    is scalar @keys, 2 * (4 + 9), 'entries of all';
    # They are made when there is something to ask for.
    for (1 .. 100) {
        last unless grep { $_->clients < 2 } @redis;
        my $session = tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1)->session;
        tls_client(port => $port, protocol => 'TLSv1.2', handshake => 1, session => $session);
    }
    is_deeply [ map { scalar $_->clients } @redis ], [ 2, 2, 2 ], 'a worker has two connections to each server';

    # bench/sizes spreads entries over servers as the module does.
    my $script = 'import sys; sys.path.insert(0, sys.argv[1]); from rendezvous import Rendezvous; '
        . 'print(*map(Rendezvous(sys.argv[2].split(",")).pick, [key.encode() for key in sys.argv[3:]]))';
    open my $out, '-|', 'python3', '-B', '-c', $script, root() . '/bench/lib', join(',', map { $_->address } @redis), map { $_->[0] } @keys or die $!;
    my @picked = split ' ', <$out>;
    close $out or die 'python3 failed';
    is_deeply [ map { $redis[$_]->address } @picked ], [ map { $_->[1]->address } @keys ], 'each entry is where bench/sizes puts it';
};

done_testing;
