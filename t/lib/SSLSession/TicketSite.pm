package SSLSession::TicketSite;

# Servers whose stateless tickets the fleet's keys encrypt (ssl_session_ticket_keys), and their clients.
#
#     my $site = SSLSession::TicketSite->new(kind => 'fallback', more => 'ssl_session_epoch epoch;');
#     my ($a, $b) = map { $site->server } 1 .. 2;
#     my $made = $a->made(protocol => 'TLSv1.3');
#     my $seen = $b->visit(protocol => 'TLSv1.3', session => $made->{session});

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Client;
use SSLSession::Nginx;
use SSLSession::Redis;
use SSLSession::Util qw(free_port patience wait_until);

use Exporter qw(import);

our @EXPORT_OK = qw(@kinds resumed full);

# native: "ssl_session_tickets on"; fallback: sessions go to a store that is never there.
our @kinds = qw(native fallback);

my %of_kind = (
    native   => 'ssl_session_tickets on; ssl_session_store off;',
    fallback => 'ssl_session_tickets off; ssl_session_store gone; ssl_session_fallback tickets;',
    tls12    => 'ssl_session_tickets off; ssl_session_store live; ssl_session_tickets_tls12 on;',
    none     => 'ssl_session_tickets off; ssl_session_store off;',
);

# kind     one of these, or what http{} has in its place
# redis    of the keys; live: the address of it that servers have (a relay's)
# keys     parameters of ssl_session_ticket_keys
# fetch    'live', and parameters
# store    parameters of ssl_session_store, for the fallback
# timeout  of sessions, '50s'
# more     what else http{} has
sub new {
    my ($class, %arg) = @_;
    return bless { redis => $arg{redis} // SSLSession::Redis->new, timeout => '50s', fetch => 'live', keys => '', more => '', %arg }, $class;
}

sub redis { $_[0]{redis} }

# The text of http{}: servers of these texts, or one that listens on that port.
sub conf {
    my ($self, @servers) = @_;
    my $certs = certs();
    my $wait  = 3000 * patience() . 'ms';
    my $kind  = $of_kind{ $self->{kind} } // $self->{kind};
    $kind =~ s/ssl_session_store gone\K/ $self->{store}/ if $self->{store};
    my $live = $self->{live} // $self->{redis}->address;
    return <<"CONF";
    ssl_session_backend live { server $live; connect_timeout $wait; fetch_timeout $wait; store_timeout $wait; }
    ssl_session_backend gone { server 127.0.0.1:1; }
    ssl_session_ticket_keys live $self->{keys};
    ssl_session_fetch   $self->{fetch};
    $kind
    ssl_session_timeout $self->{timeout};
    $self->{more}
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
@servers
CONF
}

# A server block. (name => 'one', port => another one, listen => parameters, more => what it has)
sub block {
    my ($port, %arg) = @_;
    return <<"CONF";
    server {
        listen 127.0.0.1:${\ ($arg{port} // $port) } ssl ${\ ($arg{listen} // '') };
        server_name ${\ ($arg{name} // 'one') };
        ${\ ($arg{more} // '') }
        location / { return 200 "\$ssl_session_fetch_status|\$ssl_session_store_status|\$pid|\$ssl_client_verify"; }
    }
CONF
}

# The same for stream{}, which has no names before 1.25.5.
sub stream_block {
    my ($port, %arg) = @_;
    return <<"CONF";
    server {
        listen 127.0.0.1:$port ssl ${\ ($arg{listen} // '') };
        ${\ ($arg{more} // '') }
        return "\$ssl_session_fetch_status|\$ssl_session_store_status|\$pid|\$ssl_client_verify";
    }
CONF
}

# An nginx that has keys. servers => [[name => ..., more => ...], ...]; in => 'stream', or 'both', with a
# server in each of them; port; the rest is for nginx().
sub server {
    my ($self, %arg) = @_;
    my ($in, $servers, $port) = map { delete $arg{$_} } qw(in servers port);
    $in      //= 'http';
    $servers //= [ [] ];
    $port    //= free_port();
    my $other = free_port() if $in eq 'both';
    my $conf  = $in eq 'stream' ? '' : $self->conf(map { block($port, @$_) } @$servers);
    my $stream_port = $in eq 'both' ? $other : $port;
    my %stream = $in eq 'http' ? () : (stream => $self->conf(map { stream_block($stream_port, @$_) } @$servers));
    my $nginx  = SSLSession::Nginx->new(conf => $conf, log => 'info', %stream, %arg);
    my $make   = sub {
        my (%own) = @_;
        my $server = bless { site => $self, nginx => $nginx, %own }, 'SSLSession::TicketSite::Server';
        return $server->ready;
    };
    return $make->(port => $port, in => $in) if $in ne 'both';
    return ($make->(port => $port, in => 'http'), $make->(port => $other, in => 'stream'));
}

# For Test::More: what became of a visit. Functions.
sub resumed {
    my ($seen, $what) = @_;
    return Test::More::is_deeply([ @$seen{qw(status reused)} ], [ 'TICKET', 1 ], "$what: resumed");
}

sub full {
    my ($seen, $what) = @_;
    return Test::More::is($seen->{reused}, 0, "$what: a full handshake") && Test::More::isnt($seen->{status}, 'TICKET', 'as is told');
}

package SSLSession::TicketSite::Server;

use SSLSession::Util qw(wait_until);

sub port  { $_[0]{port} }
sub nginx { $_[0]{nginx} }

# Waits until it has keys.
sub ready {
    my ($self, %arg) = @_;
    my $store = $self->{in} eq 'stream' ? 'stream:live' : 'live';
    wait_until { $self->{nginx}->log_count(qr/SSL session ticket key has changed in "$store"/, %arg) } 10, 'ticket keys';
    return $self;
}

# { code, status, stored, pid, verify, reused, session, sessions, client }
sub visit {
    my ($self, %arg) = @_;
    my $client = SSLSession::Client->new(port => $self->{port}, sni => 'one', %arg);
    my ($head, $body) = $self->{in} eq 'stream' ? _said($client) : $client->request;
    my %seen = (client => $client, error => $client->error, code => 0);
    return \%seen if !defined $head;
    ($seen{code}) = $head =~ m{^\S+ (\d+)};
    @seen{qw(status stored pid verify)} = split /\|/, $body, -1 if $seen{code} eq 200;
    $seen{reused}   = $client->reused;
    $seen{sessions} = [ $client->sessions ];
    # The first one: nginx has the last one removed when it refuses the client.
    $seen{session}  = $client->protocol eq 'TLSv1.3' ? ($client->sessions)[0] : $client->session;
    return \%seen;
}

# What stream{} says, as if it were an answer in HTTP.
sub _said {
    my ($client) = @_;
    $client->handshake or return;
    my $said = '';
    while (length(my $more = $client->read // '')) { $said .= $more }
    return length $said ? ('HTTP/1.1 200 OK', $said) : ();
}

# A first visit, which has brought a ticket: that the store is away may not be known at once.
sub made {
    my ($self, %arg) = @_;
    my $fallback = $self->{site}{kind} eq 'fallback';
    return wait_until {
        my $made = $self->visit(%arg);
        die "no answer: $made->{error}" if !$made->{code};
        !$fallback || ($made->{stored} // '') eq 'TICKET' ? $made : undef;
    } 10, 'a ticket';
}

# What a resumption brings is a ticket, or nothing that lasts.
sub nothing_else {
    my ($self, @but) = @_;
    # A store that was killed may have had something to answer.
    push @but, 'connection failed \(104: ', 'server closed connection' if !$self->{site}->redis->process->alive;
    my $but = join '|', '"gone".*(?:is down|is not available)', 'is down: ', @but;
    Test::More::is_deeply([ $self->{nginx}->errors(warn => 1, except => qr/$but/) ], [], 'nothing else in the log');
}

1;
