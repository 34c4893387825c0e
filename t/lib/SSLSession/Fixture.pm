package SSLSession::Fixture;

# What a test in t/wire stands on: one import, plain functions.
#
#     use lib 't/lib';
#     use SSLSession::Fixture;
#     use Test::More;
#
# Whatever is started here ends with the test, in the reverse order, and leaves nothing behind.
# Nothing sleeps: wait_until() waits for what the test is about.

use strict;
use warnings;

# Util first, so that its END runs last.
use SSLSession::Util qw(root tmpdir new_dir free_port free_node_port wait_until patience slurp spew
                        state_of freeze nginx_binary module_path $doing $gone);
use SSLSession::Certs qw(certs);
use SSLSession::Process;
use SSLSession::Nginx;
use SSLSession::OpenSSL;
use SSLSession::Redis;
use SSLSession::Memcached;
use SSLSession::Cluster;
use SSLSession::Sentinel;
use SSLSession::NameServer;
use SSLSession::Prometheus;
use SSLSession::Relay;
use SSLSession::TlsRelay;
use SSLSession::Wire;
use SSLSession::Client;
use SSLSession::Browser;
use SSLSession::Sealing qw(session_key new_session_key issue_id unknown_status seal unseal);

use Exporter qw(import);

# What hangs must fail, and stop what it has started. TEST_DEADLINE gives a test more seconds.
$SIG{ALRM} = sub { print STDERR "# the test took too long\n"; exit 1 };
alarm(($ENV{TEST_DEADLINE} || 600) * patience());

our @EXPORT = qw($doing $gone root tmpdir new_dir free_port free_node_port wait_until patience slurp spew state_of freeze
                 nginx_binary module_path certs nginx nginx_version nginx_patched event_methods conf_test redis
                 redis_cluster redis_sentinel memcached name_server prometheus relay fake_server tls_relay wire
                 s_server s_client s_client_start tls_client browser refragment session_name
                 session_id with_session_id without_secret beside_ticket has_stream has_stream_servers cache_key
                 plain_key session_key
                 new_session_key issue_id unknown_status made_up_status seal unseal);

sub nginx          { SSLSession::Nginx->new(@_) }
sub nginx_version  { SSLSession::Nginx->version }
sub has_stream     { defined SSLSession::Nginx->stream_module }
sub has_stream_servers { SSLSession::Nginx->stream_servers }
# Whether it has the patch of patches/: OpenSSL has read the ClientHello then while a lookup waits,
# and what follows is still in the socket, unless the event method reports levels.
sub nginx_patched  { my ($method) = (@_, 'epoll'); return $ENV{TEST_NGINX_PATCHED} && $method eq 'epoll' }
sub event_methods  { SSLSession::Nginx->event_methods }
sub conf_test      { SSLSession::Nginx->new(@_, start => 0)->conf_test }
sub redis          { SSLSession::Redis->new(@_) }
sub redis_cluster  { SSLSession::Cluster->new(@_) }
sub redis_sentinel { SSLSession::Sentinel->new(@_) }
sub memcached      { SSLSession::Memcached->new(@_) }
sub prometheus     { SSLSession::Prometheus->new(@_) }
sub relay          { SSLSession::Relay->new(@_) }
sub name_server    { SSLSession::NameServer->new }
sub fake_server    { SSLSession::Relay->new(@_) }
sub tls_relay      { SSLSession::TlsRelay->new(@_) }
sub wire           { SSLSession::Wire->new }
sub s_server       { SSLSession::OpenSSL::Server->new(@_) }
sub s_client       { SSLSession::OpenSSL->run(@_) }
sub s_client_start { SSLSession::OpenSSL->start(@_) }
sub tls_client     { SSLSession::Client->new(@_) }
sub browser        { SSLSession::Browser->new(@_) }
sub refragment     { SSLSession::Client::refragment(@_) }
sub session_name   { SSLSession::Client::session_name(@_) }
sub session_id     { SSLSession::Client::session_id(@_) }
sub with_session_id { SSLSession::Client::with_session_id(@_) }
sub without_secret { SSLSession::Client::without_secret(@_) }
sub beside_ticket  { SSLSession::Client::beside_ticket(@_) }

# How the lookup of the session ID ends that a client has made up for its ClientHello.
sub made_up_status {
    my ($client, $file) = @_;
    # record (5), handshake (4), version (2), random (32)
    return unknown_status(unpack('x43 C/a', $client->client_hello), $file);
}

# The name of a session's entry: without keys, and with the key of nginx() or of that file.
sub plain_key { return SSLSession::Sealing::plain_key(session_id($_[0])) }
sub cache_key { my ($session, $file) = @_; return SSLSession::Sealing::cache_key(session_id($session), $file) }

1;
