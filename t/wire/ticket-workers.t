# The keys of stateless tickets are those of all workers of a machine, of those that come later, and of
# http{} and stream{}.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::TicketSite qw(@kinds resumed full);
use Test::More;

my @protocols = qw(TLSv1.2 TLSv1.3);

sub tickets { my ($server, %arg) = @_; return map { $_ => $server->made(protocol => $_, %arg)->{session} } @protocols }

# The next $n visits with each of them are resumed. Which workers have served them.
sub all_resumed {
    my ($server, $session, $n, $what) = @_;
    my (%pid, @not);
    for my $protocol (@protocols) {
        for my $visit (1 .. $n) {
            my $seen = $server->visit(protocol => $protocol, session => $session->{$protocol});
            push @not, "$protocol, visit $visit: " . ($seen->{status} // $seen->{error}) if !$seen->{reused} || $seen->{status} ne 'TICKET';
            $pid{ $seen->{pid} // '' } = 1;
        }
    }
    is_deeply \@not, [], "$what: resumed from the first visit on";
    return sort keys %pid;
}

for my $kind (@kinds) {
    subtest "$kind: several workers" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind);
        my ($a, $b) = map { $site->server(workers => 3) } 1 .. 2;
        my %session = tickets($a);
        my %seen;
        wait_until { $seen{$_} = 1 for all_resumed($b, \%session, 5, 'by whichever worker'); keys %seen >= 2 } 20, 'two workers';
        $_->nothing_else for $a, $b;
    };

    # The store is away: what they know, they have from those before.
    subtest "$kind: who comes later" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind);
        my ($a, $b) = map { $site->server(workers => 2) } 1 .. 2;
        my %session = tickets($a);
        all_resumed($b, \%session, 2, 'before');
        $site->redis->kill;
        $b->nginx->reload;
        my @pids = all_resumed($b, \%session, 4, 'after a reload');
        my %old  = map { $_ => 1 } my @victims = $b->nginx->workers;
        kill KILL => @victims;
        wait_until { my @now = grep { !$old{$_} } $b->nginx->workers; @now == 2 } 10, 'other workers';
        @pids = all_resumed($b, \%session, 4, 'after all workers were killed');
        is_deeply [ grep { $old{$_} } @pids ], [], 'by others';
        my %later = tickets($b);
        all_resumed($a, \%later, 2, 'what they make');
        $_->nothing_else('exited on signal 9') for $a, $b;
    };

    subtest "$kind: an upgrade of the binary" => sub {
        my $site = SSLSession::TicketSite->new(kind => $kind);
        my $a = $site->server;
        my $b = $site->server(daemon => 1);
        my %session = tickets($a);
        all_resumed($b, \%session, 2, 'before');
        my $from = $b->nginx->log_pos;
        $b->nginx->upgrade(wait => 1);
        # It has asked the store, as any machine that begins.
        $b->ready(from => $from);
        all_resumed($b, \%session, 4, 'after');
        my %later = tickets($b);
        all_resumed($a, \%later, 2, 'what it makes');
        $_->nothing_else for $a, $b;
    };
}

subtest 'a reload that changes where the keys are' => sub {
    my %site = map { $_ => SSLSession::TicketSite->new(kind => 'native') } qw(here there);
    my ($a, $b) = map { $site{$_}->server } qw(here there);
    my %session = tickets($b);
    full($a->visit(protocol => $_, session => $session{$_}), "$_: of another store") for @protocols;
    my %own = tickets($a);
    $a->nginx->reload($site{there}->conf(SSLSession::TicketSite::block($a->port)));
    # It asks for the key by its name before it asks which one comes next.
    wait_until { $a->visit(protocol => 'TLSv1.3', session => $session{'TLSv1.3'})->{reused} } 10, 'the first resumption';
    all_resumed($a, \%own, 2, 'its own tickets');
    all_resumed($a, \%session, 2, 'after the reload');
    $_->nothing_else for $a, $b;
};

subtest 'a zone of this machine' => sub {
    my $site = SSLSession::TicketSite->new(kind => 'native');
    my $port = free_port();
    my $conf = $site->conf(SSLSession::TicketSite::block($port)) =~ s/ssl_session_ticket_keys \Klive/shared:keys:1m/r;
    my $nginx = nginx(conf => $conf, log => 'info', workers => 2);
    my $server = bless { site => $site, nginx => $nginx, port => $port, in => 'http' }, 'SSLSession::TicketSite::Server';
    wait_until { $nginx->log_count(qr/ticket key has changed in "shared:keys"/) } 10, 'ticket keys';
    my %session = tickets($server);
    all_resumed($server, \%session, 4, 'before');
    $nginx->reload;
    all_resumed($server, \%session, 4, 'after a reload');
    $server->nothing_else;
};

# --- stream{} ---

SKIP: {
    skip 'this nginx has no stream{}', 1 unless has_stream();
    for my $kind (@kinds) {
        subtest "stream{}, $kind: two servers" => sub {
            my $site = SSLSession::TicketSite->new(kind => $kind);
            my ($a, $b) = map { $site->server(in => 'stream', workers => 2) } 1 .. 2;
            my %session = tickets($a);
            all_resumed($b, \%session, 3, 'at the other one');
            $site->redis->kill;
            all_resumed($b, \%session, 3, 'the store is away');
            $b->nginx->reload;
            all_resumed($b, \%session, 3, 'after a reload');
            $_->nothing_else for $a, $b;
        };

        subtest "$kind: http{} and stream{} of one target" => sub {
            my $site = SSLSession::TicketSite->new(kind => $kind);
            my ($http, $stream)   = $site->server(in => 'both');
            my ($http2, $stream2) = $site->server(in => 'both');
            for ([ $http, $http2 ], [ $stream, $stream2 ]) {
                my ($here, $there) = @$_;
                my %session = tickets($here);
                all_resumed($there, \%session, 2, $there->{in});
            }
            my ($name) = map { substr session_id($_), 0, 16 } { tickets($http) }->{'TLSv1.3'};
            is substr(session_id({ tickets($stream2) }->{'TLSv1.3'}), 0, 16), $name, 'both have the same keys';
            $_->nothing_else for $http, $http2;
        };
    }

    subtest 'stream{}: sessions are stored, and tickets made while the store is away' => sub {
        my $site = SSLSession::TicketSite->new(kind => 'ssl_session_tickets off; ssl_session_store live; ssl_session_fallback tickets;');
        my ($a, $b) = map { $site->server(in => 'stream') } 1 .. 2;
        my $redis = $site->redis;
        for my $protocol (@protocols) {
            my $made = $a->made(protocol => $protocol);
            is $made->{stored}, 'STORED', "$protocol: stored";
            wait_until { $redis->cmd('EXISTS', cache_key($made->{session})) } 5, 'the session in the store';
            is $b->visit(protocol => $protocol, session => $made->{session})->{status}, 'HIT', 'resumed from the store';
            $redis->kill;
            wait_until { $made = $_->visit(protocol => $protocol); $made->{stored} eq 'TICKET' } 10, 'a ticket' for $b, $a;
            resumed($b->visit(protocol => $protocol, session => $made->{session}), 'the store is away');
            $redis->start;
            wait_until { $_->visit(protocol => $protocol)->{stored} eq 'STORED' } 10, 'the store is back' for $a, $b;
            resumed($b->visit(protocol => $protocol, session => $made->{session}), 'a ticket is resumed with the store there');
        }
        $_->nothing_else('is not available') for $a, $b;
    };
}

done_testing;
