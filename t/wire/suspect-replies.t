# Replies that change places: each of two lookups has the other's session. That is noticed, and costs
# no session, in whatever turn of the event loop the replies come.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Process;
use SSLSession::Relay::Frames qw(next_request);
use IO::Select;
use IO::Socket::INET;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Test::More;
use Time::HiRes qw(sleep);

use constant ROUNDS => 20;

my $certs    = certs();
my $port     = free_port();
my $said     = tmpdir() . '/said';
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "listen: $@";
SSLSession::Process->spawn(name => 'store', keep => [$listener], code => \&serve);

my $nginx = nginx(conf => <<"CONF");
    ssl_session_key off;
    ssl_session_backend store {
        server          127.0.0.1:@{[ $listener->sockport ]};
        connect_timeout 10s;
        fetch_timeout   10s;
        store_timeout   10s;
    }
    ssl_session_fetch   store;
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
CONF
my ($worker) = $nginx->workers;

my (@removed, @strange, $swapped);
for my $round (1 .. ROUNDS) {
    my @sessions = map { new_session() } 1 .. 4;
    my $from     = -s $said;
    # The worker finds all four ClientHellos in one turn.
    my @clients = map { tls_client(port => $port, protocol => 'TLSv1.2', session => $_) } @sessions;
    $_->client_hello for @clients;
    freeze($worker);
    $_->start for @clients;
    kill CONT => $worker;
    my @words = map { $_->request // $_->error } @clients;
    # Comes after all that was written for these.
    new_session();
    my @heard = heard($from);
    $swapped++ if grep { $_ eq 'swap' } @heard;
    push @removed, "@words" if grep { $_ eq 'DEL' } @heard;
    push @strange, "@words" if "@words" !~ /^CORRUPT CORRUPT(?: (?:HIT|ERROR)){2}$/ && grep { $_ eq 'swap' } @heard;
}
cmp_ok $swapped, '>=', ROUNDS / 2, 'the store found the four lookups in one piece';
is_deeply \@strange, [], 'the two whose replies changed places have no session, the others may';
is_deeply \@removed, [], 'and no session was removed';
is_deeply [ grep { !/corrupt SSL session|reply with another session|server closed connection/ } $nginx->errors ], [],
    'the log says no more than that';

done_testing;

# A session that is in the store.
sub new_session {
    my $from   = -s $said;
    my $client = tls_client(port => $port, protocol => 'TLSv1.2');
    $client->request // die $client->error;
    wait_until { grep { $_ eq 'SET' } heard($from) } 10, 'the session in the store';
    return $client->session;
}

# What the store was asked to do since.
sub heard { my ($from) = @_; return split /\n/, substr slurp($said), $from // 0 }

# The store: of four lookups in one piece the first two replies change places, at once, and the
# others come a little later.
sub serve {
    my (%kept, %rest);
    my $open = IO::Select->new($listener);
    while (1) {
        for my $fh ($open->can_read) {
            if ($fh == $listener) {
                my $link = $listener->accept;
                setsockopt $link, IPPROTO_TCP, TCP_NODELAY, 1;
                $open->add($link);
                next;
            }
            if (!sysread $fh, my $bytes, 65536) {
                $open->remove($fh);
                close $fh;
                next;
            } else {
                $rest{$fh} .= $bytes;
            }
            my (@commands, @replies);
            while (my $request = next_request(\$rest{$fh})) {
                my ($command, $key, $value) = @$request;
                push @commands, uc $command;
                $kept{$key} = $value if $commands[-1] eq 'SET';
                push @replies, $commands[-1] ne 'GET' ? "+OK\r\n"
                    : defined $kept{$key} ? '$' . length($kept{$key}) . "\r\n$kept{$key}\r\n" : "\$-1\r\n";
            }
            if (@commands == grep({ $_ eq 'GET' } @commands) && @commands == 4) {
                syswrite $fh, $replies[1] . $replies[0];
                push @commands, 'swap';
                for my $reply (@replies[ 2, 3 ]) {
                    sleep 0.0005;
                    syswrite $fh, $reply;
                }
            } else {
                syswrite $fh, join '', @replies;
            }
            open my $out, '>>', $said or die "$said: $!";
            print {$out} map { "$_\n" } @commands;
        }
    }
}
