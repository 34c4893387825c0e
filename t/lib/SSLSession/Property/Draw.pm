package SSLSession::Property::Draw;

# A draw: some configurations, the servers that begin with them, and what clients do there; all of it
# plain data, made from a seed. Another machine makes the same draw from the same seed.
#
#     { seed  => 7, stream => 1,          # in stream{} in place of http{}
#       confs => [{ http    => { fetch => ['redis'], store => ['redis'], ... },
#                   servers => [{ listen => [0, 1], names => ['a.example.test'], cert => 'ec',
#                                 verify => 'on', ca => 'x', ... }] }],
#       nodes => [0, 1],                 # the configuration that each of them starts with
#       old   => [1],                    # those that have an older module, if there is one to test with
#       steps => [{ id => 1, node => 0, socket => 0, sni => 'a.example.test',
#                   host => 'a.example.test', who => 'good', tls => '1.3',
#                   offer => 0, ticket => 0 },   # the session of another step
#                 { id => 2, reload => 0, conf => 1 },
#                 { id => 3, epoch => 1 }] }   # sessions made up to now are withdrawn
#
# What a server or http{} does not say has nginx's default. Servers of one configuration are much
# alike, and so are configurations: what differs much resumes nothing.

use strict;
use warnings;

use Digest::MD5 qw(md5);
use Exporter qw(import);

our @EXPORT_OK = qw(draw copy who);

my @names = map { "$_.example.test" } qw(a b c);
# Asked for by clients besides those.
my @other_names = ('x.b.example.test', 'unknown.example.test', 'A.Example.Test');

# Clients' certificates.
my @who = qw(none good good other renewed revoked deep leaf self expired);
sub who { my %once = map { $_ => 1 } @who; return sort keys %once }

my ($seed, $count);

sub number { my ($below) = @_; return unpack('N', md5("$seed " . $count++)) % $below }
sub one    { return $_[ number(scalar @_) ] }
sub chance { my ($percent) = @_; return number(100) < $percent }

# Deep copy of plain data.
sub copy {
    my ($from) = @_;
    return ref $from eq 'HASH' ? { map { $_ => copy($from->{$_}) } keys %$from }
        : ref $from eq 'ARRAY' ? [ map { copy($_) } @$from ]
        : $from;
}

# steps => 50, ems => 0: no server has extended master secrets switched off, stream => 0: http{} only
sub draw {
    ($seed, my %arg) = @_;
    $count = 0;
    my @confs = _conf(\%arg);
    push @confs, chance(85) ? _variant($confs[0], \%arg) : _conf(\%arg) for 1 .. one(0, 1, 1, 1, 2, 2, 3);
    my @nodes = (0, map { number(scalar @confs) } 1 .. one(0, 0, 1, 1, 2));
    my %draw = (seed => $seed, confs => \@confs, nodes => \@nodes, steps => _steps(\@confs, \@nodes, $arg{steps} // 50));
    if (($arg{stream} // 1) && chance(12)) {
        $draw{stream} = 1;
        # Older nginx has no such thing there.
        delete $_->{reject} for map { @{ $_->{servers} } } @confs;
    }
    # Only where there is an older module (OLD_MODULE).
    $draw{old} = [ grep { chance(40) } 0 .. $#nodes ];
    return \%draw;
}

# --- configurations ---

sub _conf {
    my ($arg) = @_;
    my %http = (
        fetch => one(map { [ split ] } ('redis') x 4, 'shared', ('shared redis') x 2),
        tickets => one('off', 'off', 'off', 'on'),
    );
    $http{store} = chance(85) ? $http{fetch} : one(map { [ split ] } 'redis', 'shared', 'shared redis');
    $http{bind} = 'names' if chance(40);
    _draw_ticket_keys(\%http) if chance(45);
    _change_http(\%http) for 1 .. one(0, 0, 1, 2);

    my %like = (cert => one('ec', 'ec', 'ec', 'rsa', 'var'), listen => [0]);
    _change_verification(\%like) if chance(85);
    _change(\%like, $arg) for 1 .. one(0, 0, 1);
    my @servers;
    for my $n (0 .. one(0, 1, 1, 1, 2, 2, 3)) {
        my $server = copy(\%like);
        $server->{names} = [ $n < @names ? $names[$n] : one(@names) ];
        _change($server, $arg) for 1 .. one(0, 1, 1, 2);
        push @servers, $server;
    }
    if (chance(40)) {
        # Another socket: with the same servers, or with others of the same names.
        for my $server (@servers[ 0 .. $#servers ]) {
            if (chance(60)) {
                my $other = copy($server);
                $other->{listen} = [1];
                _change($other, $arg) for 1 .. one(0, 1, 1, 2);
                push @servers, $other;
            } else {
                $server->{listen} = [ 0, 1 ];
            }
        }
        @servers = reverse @servers if chance(30);
    }
    return { http => \%http, servers => \@servers };
}

# Stateless tickets under keys of the fleet, and where they are made.
sub _draw_ticket_keys {
    my ($http) = @_;
    $http->{ticket_keys} = one(qw(redis redis redis shared));
    $http->{tickets} = one(qw(on on off));
    $http->{fallback} = 1 if chance(50);
    $http->{fallback_timeout} = one('1s', '1h') if chance(20);
    $http->{tickets_tls12} = 1 if chance(40);
}

sub _variant {
    my ($from, $arg) = @_;
    my $conf = copy($from);
    my $servers = $conf->{servers};
    for (1 .. one(0, 1, 1, 1, 2, 3)) {
        my $what = number(100);
        if    ($what < 70) { _change(one(@$servers), $arg) }
        elsif ($what < 80) { _change_http($conf->{http}) }
        elsif ($what < 90) { @$servers = reverse @$servers }
        elsif (@$servers > 1) { splice @$servers, number(scalar @$servers), 1 }
    }
    if (chance(6) && ($arg->{ems} // 1)) { $_->{no_ems} = 1 for @$servers }
    # The default server says most: let all change alike.
    if (chance(25)) {
        my %change;
        _change_verification(\%change);
        @$_{ keys %change } = values %change for @$servers;
    }
    return $conf;
}

sub _change_http {
    my ($http) = @_;
    my $what = one(qw(fetch store single_use no_client_cert lifetime epoch tickets cache timeout shared_key bind
                      ticket_keys fallback tickets_tls12));
    if    ($what eq 'fetch')    { $http->{fetch} = one([], ['redis'], ['shared'], [qw(shared redis)]) }
    elsif ($what eq 'store')    { $http->{store} = one([], ['redis'], ['shared'], [qw(shared redis)]) }
    elsif ($what eq 'lifetime') { $http->{lifetime} = one('1s', '60s', '2h') }
    elsif ($what eq 'tickets')  { $http->{tickets} = one(qw(on off)) }
    elsif ($what eq 'cache')    { $http->{cache} = one(qw(none builtin shared off), 'builtin shared') }
    elsif ($what eq 'bind')     { $http->{bind} = one(qw(certificate names)) }
    elsif ($what eq 'timeout')  { $http->{timeout} = one('2s', '10m') }
    elsif ($what eq 'ticket_keys') { $http->{ticket_keys} ? delete $http->{ticket_keys} : _draw_ticket_keys($http) }
    # Stateless tickets of one node are good at the others.
    elsif ($what eq 'shared_key') { $http->{shared_key} = 1; $http->{tickets} = 'on' }
    else                        { $http->{$what} = 1 }
}

sub _change_verification {
    my ($server) = @_;
    my $what = number(100);
    $server->{verify} = one(qw(on on on optional optional optional_no_ca off))
        if $what < 50 || !defined $server->{verify};
    $server->{ca} = one(qw(x x x y renewed bundle)) if $what >= 40 || !defined $server->{ca};
}

sub _change {
    my ($server, $arg) = @_;
    my $what = number(100);
    if    ($what < 35) { _change_verification($server) }
    elsif ($what < 42) { $server->{depth} = one(0, 1, 2, 3) }
    elsif ($what < 48) { $server->{crl} = 1 }
    elsif ($what < 54) { $server->{trusted} = one(qw(x y renewed bundle)) }
    elsif ($what < 60) { $server->{cert} = one(qw(ec ec2 rsa var)) }
    elsif ($what < 66) { $server->{protocols} = one('1.2', '1.3', '1.2 1.3') }
    elsif ($what < 69) { $server->{early} = 1 }
    elsif ($what < 75) { $server->{no_ems} = 1 if $arg->{ems} // 1 }
    elsif ($what < 77) { $server->{curve} = 'prime256v1' }
    elsif ($what < 79) { $server->{reject} = 1 }
    elsif ($what < 82) { $server->{tickets} = one(qw(on off)) }
    elsif ($what < 85) { $server->{cache} = one(qw(none builtin shared off)) }
    elsif ($what < 88) { $server->{default} = 1 }
    elsif ($what < 98) {
        push @{ $server->{names} },
            one(@names, '*.example.test', '*.b.example.test', '.c.example.test', '~^[ab]\.', '~^(?<name>\w+)\.example\.test$', '');
        shift @{ $server->{names} } if @{ $server->{names} } > 1 && chance(50);
    } else { $server->{timeout} = one('2s', '10m') }
}

# --- what clients do ---

sub _steps {
    my ($confs, $nodes, $steps) = @_;
    my @clients = map { _client() } 0 .. 2 + number(3);
    my @steps;
    my @visits;
    for my $id (0 .. $steps - 1) {
        my $what = number(100);
        # The first visits make sessions.
        if ($id > 8 && $what < 4 && @$confs > 1) {
            push @steps, { id => $id, reload => number(scalar @$nodes), conf => number(scalar @$confs) };
        } elsif ($id > 8 && $what < 5) {
            push @steps, { id => $id, epoch => 1 };
        } else {
            my $from = $id > 2 && chance(75) ? one(@visits) : undef;
            my $step = { id => $id, _visit($nodes, \@clients, $from) };
            push @steps, $step;
            push @visits, $step;
        }
    }
    return \@steps;
}

sub _client {
    my %client = (who => one(@who), tls => one('1.2', '1.2', '1.3', '1.3', 'any'));
    $client{no_ticket} = 1 if chance(10);
    $client{no_ems}    = 1 if chance(5);
    return \%client;
}

sub _visit {
    my ($nodes, $clients, $from) = @_;
    my $sni   = chance(15) ? undef : chance(10) ? one(@other_names) : one(@names);
    my %visit = (node => number(scalar @$nodes), socket => number(2), %{ one(@$clients) });
    if ($from) {
        $visit{offer}  = $from->{id};
        $visit{ticket} = number(2);
        $sni = $from->{sni} if chance(55);
        $visit{$_} = $from->{$_} for chance(60) ? qw(who tls) : chance(70) ? 'tls' : ();
        $visit{early} = 1 if $visit{tls} ne '1.2' && chance(4);
    }
    $visit{sni}  = $sni;
    $visit{host} = chance(85) && defined $sni ? $sni : one(@names);
    return %visit;
}

1;
