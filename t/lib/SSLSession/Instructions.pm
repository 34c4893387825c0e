package SSLSession::Instructions;

# What a worker executes for one handshake, counted by callgrind: within a tenth of a per cent the
# same each time, with the same nginx, OpenSSL and compiler, whatever else the machine does.

use strict;
use warnings;

use SSLSession::Fixture;

use Carp qw(croak);
use Exporter qw(import);

our @EXPORT_OK = qw(measure recorded record_file);

# Handshakes per count. What belongs to none of them, as a timer, is shared out among so many.
use constant TIMES => 30;
# Handshakes before, for what is done once.
use constant WARM_UP => 5;

my @full    = map { [ "full, TLS $_"    => sub { full("TLSv$_[0]", $_[1]) },    $_ ] } qw(1.2 1.3);
my @resumed = map { [ "resumed, TLS $_" => sub { resumed("TLSv$_[0]", $_[1]) }, $_ ] } qw(1.2 1.3);
my @forged  = map { [ "forged, TLS $_"  => sub { forged("TLSv$_[0]", $_[1]) },  $_ ] } qw(1.2 1.3);

my ($redis, $memcached);

# A machine that is busy must not make lookups time out.
my $patient = 'connect_timeout 60s; fetch_timeout 60s; store_timeout 60s;';

sub backend {
    my ($server, $words) = @_;
    return "ssl_session_backend fleet { server $server; $words $patient } ssl_session_fetch fleet; ssl_session_store fleet;";
}

# Configurations of the module, what of nginx's own each is compared with, and the handshakes.
my @configurations = (
    [ 'idle'      => 'no cache',     sub {''}, @full ],
    [ 'shared:'   => 'shared cache', sub {'ssl_session_fetch shared:tls:4m; ssl_session_store shared:tls:4m;'}, @full, @resumed, @forged ],
    [ 'redis'     => 'shared cache', sub { backend('127.0.0.1:' . ($redis //= redis())->port, '') }, @full, @resumed, @forged ],
    [ 'redis, counted' => 'shared cache',
        sub { backend('127.0.0.1:' . ($redis //= redis())->port, '') . " server { listen unix:@{[ tmpdir() ]}/status; location / { ssl_session_status; } }" },
        @full, @resumed ],
    [ 'tickets' => 'tickets', sub {'ssl_session_tickets on; ssl_session_ticket_keys shared:keys:1m;'}, @full, @resumed ],
    [ 'redis, tickets' => 'tickets',
        sub { 'ssl_session_tickets on; ' . backend('127.0.0.1:' . ($redis //= redis())->port, '') . ' ssl_session_ticket_keys fleet;' }, @full, @resumed ],
    [ 'memcached' => 'shared cache', sub { backend('127.0.0.1:' . ($memcached //= memcached())->port, 'protocol memcached;') }, @resumed ],
);
my %own = (
    'no cache' => sub {''}, 'shared cache' => sub {'ssl_session_cache shared:own:4m;'},
    'tickets' => sub { 'ssl_session_tickets on; ssl_session_ticket_key ' . ticket_key_file() . ';' },
);

# A key as nginx wants it: 48 bytes would be of AES-128.
sub ticket_key_file {
    my $file = tmpdir() . '/ticket.key';
    spew($file, join '', map { chr int rand 256 } 1 .. 80);
    return $file;
}

# Lines [ configuration, handshake, all, more, module, allocations ]: instructions per handshake;
# how many more than nginx without the module; how many in the module itself; and how many
# allocations more than nginx without it.
sub measure {
    my %without;
    return map {
        my ($name, $beside, $with, @kinds) = @$_;
        my @others = $beside eq 'tickets' ? () : @forged;
        my $own = $without{$beside} //= count(module => 0, with => $own{$beside}->(), kinds => [ @full, @resumed, @others ]);
        my $ours = count(with => $with->(), kinds => \@kinds);
        map {
            my $kind = $_->[0];
            my ($with, $without) = ($ours->{$kind}, $own->{$kind});
            [ $name, $kind, $with->{all}, $with->{all} - $without->{all}, $with->{module}, $with->{allocations} - $without->{allocations} ]
        } @kinds;
    } @configurations;
}

sub record_file { return root() . '/t/instructions.tsv' }

# The lines that were recorded, by configuration and handshake.
sub recorded {
    my %lines;
    for my $line (grep { !/^#/ } split /\n/, slurp(record_file())) {
        my ($name, $kind, @counts) = split /\t/, $line;
        $lines{$name}{$kind} = \@counts;
    }
    return \%lines;
}

sub visit {
    my ($protocol, $port, %arg) = @_;
    my $client = tls_client(port => $port, protocol => $protocol, %arg);
    defined $client->request or croak 'no answer: ' . $client->error;
    return $client;
}

sub full {
    my ($protocol, $port) = @_;
    return sub { visit($protocol, $port)->reused and croak 'resumed' };
}

sub resumed {
    my ($protocol, $port) = @_;
    my $session;
    my $visit = sub { visit($protocol, $port, session => $session)->reused };
    # Without a cache there is nothing to resume, and nothing to compare with. Ticket keys may have to come.
    wait_until { $session = (visit($protocol, $port)->sessions)[0]; $visit->() } 20, 'a session that resumes';
    return sub { $visit->() or croak 'not resumed' };
}

sub forged {
    my ($protocol, $port) = @_;
    my $session = (visit($protocol, $port)->sessions)[0];
    my $id      = session_id($session);
    substr $id, -1, 1, chr(ord(substr $id, -1) ^ 1);
    my $forged = with_session_id($session, $id);
    return sub { visit($protocol, $port, session => $forged)->reused and croak 'resumed' };
}

# { handshake => { all, module, allocations } } of an nginx, per handshake.
sub count {
    my (%arg) = @_;
    my $port  = free_port();
    my $certs = certs();
    my $dir   = new_dir('callgrind');
    local $ENV{TEST_NGINX_USE_VALGRIND} =
        "--tool=callgrind --dump-before=ngx_reopen_files --callgrind-out-file=$dir/%p --log-file=$dir/log.%p";
    my $nginx = nginx(module => $arg{module} // 1, log => 'notice', no_hup => 1, conf => <<"CONF");
    $arg{with}
    ${\ ($arg{with} =~ /ssl_session_tickets/ ? '' : 'ssl_session_tickets off;') }
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    access_log off;
    keepalive_timeout 0;
    server {
        listen 127.0.0.1:$port ssl;
        return 204;
    }
CONF
    my ($worker) = $nginx->workers;
    my %count;
    for my $line (@{ $arg{kinds} }) {
        my ($kind, $make, $version) = @$line;
        next if !length $arg{with} && $kind !~ /^full/;
        my $handshake = $make->($version, $port);
        $handshake->() for 1 .. WARM_UP;
        profile($dir, $worker);
        $handshake->() for 1 .. TIMES;
        my $sums = sums(profile($dir, $worker));
        $count{$kind} = { map { $_ => $sums->{$_} / TIMES } keys %$sums };
    }
    $nginx->quit(60);
    my @errors = $nginx->errors;
    croak "nginx: @errors" if @errors;
    return \%count;
}

# The profile since the last one: made where nginx reopens its logs, once the worker is at rest.
sub profile {
    my ($dir, $worker) = @_;
    my %before = map { $_ => 1 } glob "$dir/$worker.*";
    my $cpu = '';
    # wait_until() looks again after a while. A worker that waits for a processor does not run either, and
    # a signal that comes before it waits for events is not seen until there is one.
    wait_until {
        my $last = $cpu;
        $cpu = slurp("/proc/$worker/schedstat");
        $last eq $cpu && state_of($worker) eq 'S';
    } 20, 'the worker at rest';
    kill USR1 => $worker;
    my $new;
    wait_until {
        ($new) = grep { !$before{$_} } glob "$dir/$worker.*";
        defined $new && slurp($new) =~ /^totals: /m;
    } 20, 'a profile';
    return $new;
}

# What a profile adds up to.
sub sums {
    my ($file) = @_;
    my (%name, $object, $called);
    my %sum = (all => 0, module => 0, allocations => 0);
    open my $in, '<', $file or croak "$file: $!";
    while (defined(my $line = <$in>)) {
        if ($line =~ /^(c?)(ob|fn)=\((\d+)\)(?: (.*))?$/) {
            my $name = defined $4 ? ($name{$2}{$3} = $4) : $name{$2}{$3};
            if    ($1)         { $called = $name if $2 eq 'fn' }
            elsif ($2 eq 'ob') { $object = $name }
        } elsif (my ($times) = $line =~ /^calls=(\d+)/) {
            $sum{allocations} += $times if $called =~ /^(?:malloc|calloc|realloc|posix_memalign)(?:'\d+)?\z/;
            # The next line is what was called, and counts there.
            <$in>;
        } elsif (my ($cost) = $line =~ /^[+*-]?\d*\*? (\d+)$/) {
            $sum{all} += $cost;
            $sum{module} += $cost if $object =~ /ngx_http_ssl_session_module/;
        }
    }
    return \%sum;
}

1;
