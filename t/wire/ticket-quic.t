# Tickets under keys of the fleet in HTTP/3, where no handshake has to wait for them.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds);
use JSON::PP qw(decode_json);
use Test::More;

my $said = `'@{[ nginx_binary() ]}' -V 2>&1`;
plan skip_all => 'this nginx has no HTTP/3' if $said !~ /--with-http_v3_module/;
my $python = `@{[ root() ]}/tools/quic-client 2>/dev/null`;
plan skip_all => 'no client of HTTP/3 (tools/quic-client)' if $?;
chomp $python;

sub visit {
    my ($server, @args) = @_;
    my $out = new_dir('quic') . '/out';
    my $process = SSLSession::Process->spawn(name => 'quic', out => $out,
        cmd => [ $python, root() . '/t/lib/quic_client.py', $server->port, '/', @args ]);
    $process->wait_exit(60);
    my ($json) = slurp($out) =~ /^(\{.*\})$/m;
    my $seen = $json ? decode_json($json) : { error => slurp($out) };
    @$seen{qw(status stored)} = split /\|/, $seen->{body} // '';
    return $seen;
}

for my $kind (@kinds) {
    subtest "$kind: a ticket of another server" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind);
        my ($a, $b) = map { my $port = free_port(); $site->server(port => $port, servers => [ [ more => "listen 127.0.0.1:$port quic;" ] ]) } 1 .. 2;
        my $file = tmpdir() . "/$kind";
        my $made;
        wait_until { $made = visit($a, '--save', $file); $kind ne 'fallback' || $made->{stored} eq 'TICKET' } 20, 'a ticket' or diag explain $made;
        for my $from (1, 0) {
            my $seen = visit($b, '--session', $file);
            is $seen->{status}, 'TICKET', $from ? 'resumed' : 'and with the store away' or diag explain $seen;
            ok $seen->{resumed}, 'the client says so, too';
            $site->redis->kill if $from;
        }
        # One of TCP is good here as well.
        my $tcp = $b->made(protocol => 'TLSv1.3');
        is $a->visit(protocol => 'TLSv1.3', session => $tcp->{session})->{status}, 'TICKET', 'TCP beside it';
        $_->nothing_else for $a, $b;
    };
}

done_testing;
