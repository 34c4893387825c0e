# What was recorded cannot be opened once the key of its ticket has ended: nobody has that key any more,
# neither as it is nor as it was sealed.

use strict;
use warnings;
no warnings 'portable';

use lib 't/lib';
use SSLSession::Fixture;
use SSLSession::Sealing qw(ticket_head_id ticket_key_id unseal);
use Test::More;

my $certs = certs();

plan skip_all => 'a sanitizer keeps what is freed, in terabytes of its own' if $ENV{TEST_NGINX_SANITIZE};
plan skip_all => 'the memory of a process cannot be read' if !eval { memory($$); 1 };

# All that a process can write to, as it is now.
sub memory {
    my ($pid) = @_;
    my $all = '';
    open my $maps, '<', "/proc/$pid/maps" or die "maps: $!";
    open my $mem, '<:raw', "/proc/$pid/mem" or die "mem: $!";
    while (<$maps>) {
        my ($from, $to) = /^([0-9a-f]+)-([0-9a-f]+) rw/ or next;
        my ($at, $len) = (hex $from, hex($to) - hex $from);
        sysseek $mem, $at, 0 or next;
        while ($len > 0) {
            my $n = sysread $mem, my $part, $len > 1 << 20 ? 1 << 20 : $len;
            last if !$n;
            $all .= $part;
            $len -= $n;
        }
    }
    return $all;
}

sub conf {
    my ($port, $target, $backend) = @_;
    return <<"CONF";
    $backend
    ssl_session_ticket_keys $target period=1s keep=1;
    ssl_session_fetch   $target;
    ssl_session_store   $target;
    ssl_session_tickets off;
    ssl_session_fallback tickets;
    ssl_session_timeout 1s;
    ssl_certificate     $certs->{ec_crt};
    ssl_certificate_key $certs->{ec_key};
    ssl_protocols       TLSv1.2 TLSv1.3;
    server { listen 127.0.0.1:$port ssl; location / { return 200 "\$ssl_session_fetch_status"; } }
    server { listen 127.0.0.1:${\ ($port + 0) } ssl; server_name on; ssl_session_tickets on; location / { return 200 "\$ssl_session_fetch_status"; } }
CONF
}

my $redis = redis();
my %port  = map { $_ => free_port() } qw(A B);
my $backend = "ssl_session_backend store { server ${\ $redis->address}; }";
my %nginx = map { $_ => nginx(log => 'info', workers => 2, conf => conf($port{$_}, 'store', $backend)) } sort keys %port;

sub visit { my ($who) = @_; tls_client(port => $port{$who}, sni => 'on', protocol => 'TLSv1.3')->request // die 'no answer' }

my ($entry, $head, $key) = (cache_key_of(ticket_head_id()));
sub cache_key_of { SSLSession::Sealing::cache_key($_[0]) }

wait_until { ($head = $redis->cmd('GET', $entry)) && ($key = unseal(ticket_head_id(), $head)) } 10, 'a head';
my ($name, $secret) = unpack 'x a16 a64', $key;
my $own;
wait_until { $own = $redis->cmd('GET', cache_key_of(ticket_key_id($name))) } 5, 'its own entry';
my %secret = (
    'what encrypts' => substr($secret, 0, 32), 'what authenticates' => substr($secret, 32),
    'the sealed head' => substr($head, 14, 80), 'the sealed key' => substr($own, 14, 80),
);

# Both have it by now, and use it a second later.
my %seen;
wait_until {
    visit($_) for qw(A B);
    for my $who (qw(A B)) { $seen{$who} += index(memory($_), $secret{'what encrypts'}) >= 0 for $nginx{$who}->workers }
    ($seen{A} // 0) >= 2 && ($seen{B} // 0) >= 2;
} 10, 'the key in the memory of workers';
pass 'it is found while it is in use';

# A period as the next one, one in use, one more to decrypt, and one for who has heard of it late.
my $gone = sub { !$redis->cmd('EXISTS', cache_key_of(ticket_key_id($name))) };
wait_until { visit($_) for qw(A B); $gone->() } 15, 'the end of its entry';
my $changes = $nginx{A}->log_count(qr/ticket key has changed/);
wait_until { visit($_) for qw(A B); $nginx{A}->log_count(qr/ticket key has changed/) >= $changes + 2 } 10, 'two changes more';

for my $who (qw(A B)) {
    for my $pid ($nginx{$who}->pid, $nginx{$who}->workers) {
        my $memory = memory($pid);
        for my $what (sort keys %secret) {
            cmp_ok index($memory, $secret{$what}), '<', 0, "$who, process: $what is not there";
        }
    }
}
for my $one (@{ $redis->cmd('KEYS', '*') }) {
    my $value = $redis->cmd('GET', $one);
    ok index($value, $secret{$_}) < 0, "store: $_ is not there" for sort keys %secret;
}
is_deeply [ $nginx{$_}->errors(warn => 1) ], [], "$_: nothing in the log" for qw(A B);

done_testing;
