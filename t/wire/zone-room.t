# A full zone of shared memory: how many sessions give way for a large one, and that they are counted.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use JSON::PP qw(decode_json);
use List::Util qw(shuffle);
use Test::More;

my $certs = certs();

# A client's certificate of about so many bytes, which a session keeps.
sub client_of {
    my ($bytes) = @_;
    my $dir = new_dir('client');
    spew("$dir/ext", 'subjectAltName=' . join(',', map { sprintf 'DNS:%s%04d.example.test', 'x' x 40, $_ } 1 .. $bytes / 59) . "\n");
    system("cd $dir && { openssl req -new -nodes -subj /CN=client -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout key -out csr"
        . " && openssl x509 -req -in csr -CA $certs->{ca_crt} -CAkey $certs->{ca_key} -CAserial serial -CAcreateserial -days 30 -extfile ext -out crt; } >log 2>&1") == 0
        or die slurp("$dir/log");
    return (cert => "$dir/crt", key => "$dir/key");
}

my %large = (6_000 => [ client_of(6_000) ], 14_000 => [ client_of(14_000) ], 20_000 => [ client_of(20_000) ]);

sub site {
    my ($zone, @more) = @_;
    my ($port, $shown) = (free_port(), free_port());
    my $conf = <<"CONF";
    ssl_session_fetch      shared:tls:$zone single_use;
    ssl_session_store      shared:tls:$zone;
    ssl_session_tickets    off;
    ssl_certificate        $certs->{ec_crt};
    ssl_certificate_key    $certs->{ec_key};
    ssl_client_certificate $certs->{ca_crt};
    ssl_verify_client      optional;
    ssl_protocols          TLSv1.2 TLSv1.3;
    @more
    server { listen 127.0.0.1:$port ssl; location / { return 204; } }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF
    return { nginx => nginx(log => 'notice', conf => $conf), conf => $conf, port => $port, shown => $shown };
}

sub visit {
    my ($site, @client) = @_;
    my $client = tls_client(port => $site->{port}, protocol => 'TLSv1.2', @client);
    defined $client->request or die 'no answer: ' . $client->error;
    return $client;
}

# What is counted of the zone.
sub tier {
    my ($site) = @_;
    my ($one) = @{ decode_json(`curl -fsS 'http://127.0.0.1:$site->{shown}/?format=json'`)->{tiers} };
    return $one;
}

# How full it is.
sub zone {
    my ($site) = @_;
    my ($one) = @{ decode_json(`curl -fsS 'http://127.0.0.1:$site->{shown}/?format=json'`)->{zones} };
    return $one;
}

# Resumes tickets of TLS 1.3 up to the first that is gone. Each is taken and leaves its place to the one
# that its client gets in its stead. Gives those.
sub resume {
    my ($site, @tickets) = @_;
    my @new;
    for my $ticket (@tickets) {
        my $client = visit($site, protocol => 'TLSv1.3', session => $ticket);
        last if !$client->reused;
        push @new, $client->sessions;
    }
    return @new;
}

# A zone that is full of tickets of TLS 1.3, which lie in no order of age: their clients have come back
# at random. Gives them, oldest first.
sub scattered {
    my ($site, $times) = @_;
    my @tickets = map { visit($site, protocol => 'TLSv1.3')->sessions } 1 .. $times;
    # The oldest have given way.
    @tickets = resume($site, reverse @tickets);
    # For the two that the last of them was given, who was not resumed, the first of these have gone.
    splice @tickets, 0, 2;
    # Always in the same order.
    srand 7;
    for (1 .. 3) {
        my $all = @tickets;
        @tickets = resume($site, shuffle(@tickets));
        die 'somebody gave way' if @tickets != $all;
    }
    return @tickets;
}

for my $zone (qw(48k 96k)) {
    for my $bytes (sort { $a <=> $b } keys %large) {
        subtest "a session of $bytes bytes in a full zone of $zone" => sub {
            my $site    = site($zone);
            my @tickets = scattered($site, $zone =~ s/k//r * 3);
            my @client  = @{ $large{$bytes} };
            # Two are those of a client that was not resumed: see scattered().
            my $filled = zone($site);
            is $filled->{entries}, @tickets + 2, 'entries are counted';
            cmp_ok $filled->{free_bytes}, '<', 1024, 'nothing is free';
            my $before  = tier($site);
            my $first   = visit($site, @client);
            my $after   = tier($site);
            my $entries = zone($site)->{entries} - $filled->{entries};
            my $again   = visit($site, @client, session => $first->session);
            my $evicted = $after->{evictions} - $before->{evictions};
            my $gone    = @tickets - resume($site, reverse @tickets);
            note 'of ', scalar @tickets, ", $gone are gone, and the large one is ", $again->reused ? 'there' : 'not there';
            is $after->{stores} - $before->{stores}, $bytes < 16_000 ? 1 : 0, $bytes < 16_000 ? 'is stored' : 'is not stored';
            is $again->reused, $bytes < 16_000 ? 1 : 0, 'and resumes' if $bytes < 16_000;
            cmp_ok $evicted, '<=', 1 + $bytes / 256, 'no more give way than make room for it';
            is $evicted, 0, 'none gives way to what is not stored' if $bytes > 16_000;
            # Two were none of these: see scattered().
            cmp_ok $gone, '<=', $evicted, 'others are all there';
            cmp_ok $gone, '>=', $evicted - 2, 'and who gave way is counted';
            is $after->{drops}{no_room}, 0, 'there was room';
            is $entries, $after->{stores} - $before->{stores} - $evicted, 'and who gave way is no entry any more';
        };
    }
}

subtest 'what has expired does not give way' => sub {
    my $short = 'ssl_session_timeout 1s;';
    my $site  = site('40k', $short);
    visit($site) for 1 .. 50;
    my $last = visit($site)->session;
    wait_until { !visit($site, session => $last)->reused } 5, 'their end';
    # So many fit; with the expired ones they would not.
    $site->{nginx}->reload($site->{conf} =~ s/\Q$short//r);
    visit($site) for 1 .. 70;
    is tier($site)->{evictions}, 0, 'room that comes free so is not counted';
    visit($site) for 1 .. 200;
    my $evicted = tier($site)->{evictions};
    cmp_ok $evicted, '>', 100, 'unlike those that had time left';
    cmp_ok $evicted, '<', 250, 'each once';
};

subtest 'a zone that is large enough' => sub {
    my $site = site('1m');
    visit($site) for 1 .. 50;
    is tier($site)->{evictions}, 0, 'nobody gives way';
    my $zone = zone($site);
    is $zone->{entries}, 50, 'entries';
    my $used = $zone->{size_bytes} - $zone->{free_bytes};
    cmp_ok $used, '>', 50 * 150, 'take memory';
    cmp_ok $used, '<', 50 * 1024, 'which is counted by what they need, and not by pages';
    $site->{nginx}->reload($site->{conf});
    is_deeply zone($site), $zone, 'a reload keeps them';
};

done_testing;
