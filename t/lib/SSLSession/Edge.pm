package SSLSession::Edge;

# An nginx server with one backend, of which a test gives the lines, and what its clients get.

use strict;
use warnings;

use SSLSession::Fixture;
use List::Util qw(sum0);
use Time::HiRes qw(time);

# backend => 'lines of the block', fetch => 'single_use', http => 'more lines of http{}'
sub new {
    my ($class, %arg) = @_;
    my $certs = certs();
    my ($port, $shown) = (free_port(), free_port());
    my $nginx = nginx(log => 'info', conf => <<"CONF");
    ${\ ($arg{http} // '') }
    ssl_session_backend store { $arg{backend} }
    ssl_session_fetch   store ${\ ($arg{fetch} // '') };
    ssl_session_store   store;
    ssl_session_tickets off;
    ssl_protocols       TLSv1.2 TLSv1.3;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    server {
        listen 127.0.0.1:$port ssl;
        location / { return 200 "\$ssl_session_fetch_status"; }
    }
    server { listen 127.0.0.1:$shown; location / { ssl_session_status; } }
CONF
    return bless { nginx => $nginx, port => $port, shown => $shown }, $class;
}

sub errors { my ($self, @args) = @_; return $self->{nginx}->errors(@args) }
sub said   { my ($self, $line, @args) = @_; return $self->{nginx}->log_count($line, @args) }

# What is offered: { protocol, session }.
sub client {
    my ($self, $offer) = @_;
    return tls_client(port => $self->{port}, protocol => $offer->{protocol} // 'TLSv1.2', session => $offer->{session});
}

# The outcome of a client's lookup, with which its handshake agrees.
sub answer {
    my ($client) = @_;
    my $status = $client->request // die 'no answer: ' . $client->error;
    die "$status, reused: " . $client->reused if $client->reused != ($status eq 'HIT');
    return $status;
}

sub status { my ($self, $offer) = @_; return answer($self->client($offer)) }

# How often each outcome comes when these are offered.
sub statuses { my ($self, @offers) = @_; my %n; $n{ $self->status($_) }++ for @offers; return \%n }

# The outcome, and how many milliseconds it took.
sub timed { my ($self, $offer) = @_; my $at = time; my $status = $self->status($offer); return ($status, 1000 * (time - $at)) }

sub made {
    my ($self, $protocol) = @_;
    my $client = $self->client({ protocol => $protocol });
    answer($client);
    my $session = $client->session;
    return { protocol => $protocol, session => $session, key => cache_key($session) };
}

# N sessions, each of which is in as many of these stores as there are to have it.
sub sessions {
    my ($self, $n, $protocol, $copies, @stores) = @_;
    my @found;
    # The first ones may come before the servers are known.
    wait_until {
        my $made = $self->made($protocol);
        push @found, $made if eval { wait_until { $copies == grep { $_->cmd('KEYS', $made->{key})->[0] } @stores } 2 };
        @found == $n;
    } 30, 'sessions in the stores';
    return @found;
}

# A metric of servers, the sum of all, or of those with this address.
sub metric {
    my ($self, $name, $address) = @_;
    my $page = `curl -fsS http://127.0.0.1:$self->{shown}/`;
    my $of = defined $address ? qr/[^}]*server="redis \Q$address\E"[^}]*/ : qr/[^}]*/;
    return sum0($page =~ /^nginx_ssl_session_server_${name}_total\{$of\} (\S+)$/mg);
}

1;
