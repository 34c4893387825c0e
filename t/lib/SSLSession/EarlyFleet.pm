package SSLSession::EarlyFleet;

# nginx servers that accept early data, one upstream behind them that counts what it is asked to do,
# and clients whose flights are sent again.

use strict;
use warnings;

use SSLSession::Certs qw(certs);
use SSLSession::Client;
use SSLSession::EarlyData qw(record_flight send_flight settle);
use SSLSession::Nginx;
use SSLSession::Sealing qw(cache_key);
use SSLSession::Util qw(free_port freeze slurp wait_until);

use Carp qw(croak);
use IO::Socket::INET;

# How many connections are made at the same moment.
use constant CROWD => 100;

# http     what stands in http{} of each
# edges    2, workers => 2 of each, module => 1, log => 'notice', as nginx() has them
# servers  [lines of the default server, lines of another one, ...]; [''] without it
# store    where new sessions go, if tickets() is to wait until they are there: it has keys()
sub new {
    my ($class, %arg) = @_;
    my $self = bless { store => $arg{store}, back => free_port(), asked => 0 }, $class;
    $self->{upstream} = SSLSession::Nginx->new(module => 0, log => 'notice', conf => <<"CONF");
    log_format asked '\$request_uri|\$http_early_data';
    server {
        listen     127.0.0.1:$self->{back};
        access_log asked.log asked;
        # A line is written when the answer is, whatever else the connection has to wait for.
        lingering_close off;
        location / { return 200 "\$http_tls\\n"; }
    }
CONF
    $self->{ports} = [ map { free_port() } 1 .. $arg{edges} // 2 ];
    $self->{edges} = [ map {
        SSLSession::Nginx->new(workers => $arg{workers} // 2, log => $arg{log} // 'notice', module => $arg{module} // 1,
            conf => $self->_conf($_, %arg));
    } @{ $self->{ports} } ];
    return $self;
}

sub _conf {
    my ($self, $port, %arg) = @_;
    my $certs   = certs();
    my @said    = qw(reused);
    push @said, map { "fetch_$_" } qw(status tier) if $arg{module} // 1;
    my $said    = join ' ', map { "\$ssl_session_$_" } @said;
    my $servers = '';
    for my $lines (@{ $arg{servers} // [''] }) {
        my $reuseport = $servers eq '' ? 'reuseport' : '';
        $servers .= <<"CONF";
    server {
        listen 127.0.0.1:$port ssl $reuseport;
        $lines
        location / {
            proxy_pass       http://127.0.0.1:$self->{back};
            proxy_set_header Early-Data \$ssl_early_data;
            proxy_set_header Tls        "$said";
            # Who sends a flight again does not wait for what comes of it.
            proxy_ignore_client_abort on;
        }
    }
CONF
    }
    # What servers have said of themselves is not said for all.
    my $all = join '', @{ $arg{servers} // [] };
    my @default = grep { my ($name) = /^(\S+)/; $all !~ /\b$name\b/ && $arg{http} !~ /\b$name\b/ }
        'ssl_session_tickets off;', 'ssl_early_data on;';
    return <<"CONF";
    $arg{http}
    @default
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
$servers
CONF
}

sub edges { @{ $_[0]{edges} } }
sub ports { @{ $_[0]{ports} } }

# A new client's tickets: two sessions in DER, each for early data.
sub tickets {
    my ($self, %arg) = @_;
    my $client = SSLSession::Client->new(port => $self->{ports}[0], protocol => 'TLSv1.3', %arg);
    defined $client->request('/first-visit') or croak 'no answer: ' . $client->error;
    my @tickets = $client->sessions;
    if (my $store = $self->{store}) {
        my %wanted = map { cache_key(SSLSession::Client::session_id($_)) => 1 } @tickets;
        wait_until { 2 == grep { $wanted{$_} } $store->keys } 5, 'the sessions in the store';
    }
    return @tickets;
}

# The flights of two clients that have come at the same moment, each with a ticket of its own: one
# to send again, and one that tells whether OpenSSL finds both too old. It refuses early data by
# itself when a ClientHello is some ten seconds late (RFC 8446, 8.3).
sub flights {
    my ($self, $path, %arg) = @_;
    my @tickets = $self->tickets(%arg);
    return map {
        record_flight(%arg, session => $tickets[$_], path => $path . ('', '-witness')[$_]);
    } 0, 1;
}

# Sends a flight so many times, to the edges in turn: what settle() says. Those of the first crowd
# are all there before any worker can answer; each later one comes when the one before it has ended.
sub replay {
    my ($self, $flight, $times) = @_;
    my %sum     = (answered => 0, resumed => 0);
    my @workers = map { $_->workers } $self->edges;
    while ($times > 0) {
        my $crowd = $times > CROWD ? CROWD : $times;
        $times -= $crowd;
        freeze(@workers);
        my @sent = eval { send_flight($flight, $crowd, $self->ports) };
        my $err = $@;
        kill CONT => @workers;
        die $err if $err;
        @workers = ();
        my $came = settle(@sent);
        $sum{$_} += $came->{$_} for keys %sum;
    }
    return \%sum;
}

# How the upstream was asked for a path, once for each time: "1" in early data, "" otherwise.
sub executed {
    my ($self, $path) = @_;
    # It has one worker: what it writes of this comes after all that it was asked before.
    my $mark = '/asked-' . ++$self->{asked};
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{back}) or croak "upstream: $@";
    syswrite $sock, "GET $mark HTTP/1.0\r\n\r\n";
    my $log = $self->{upstream}->dir . '/asked.log';
    wait_until { slurp($log) =~ /^\Q$mark\E\|/m } 10, 'the upstream';
    return map { tr/-//dr } slurp($log) =~ /^\Q$path\E\|(.*)$/mg;
}

1;
