# LWP: default|cache URL N. It makes a context for each connection, and what is in its cache ends with it.
use strict;
use warnings;
use IO::Socket::SSL;
use LWP::UserAgent;

my ($how, $url, $visits) = @ARGV;
my %tls = (SSL_ca_file => $ENV{CLIENT_CA});
$tls{SSL_reuse_ctx} = IO::Socket::SSL::SSL_Context->new(%tls, SSL_verify_mode => 1, SSL_session_cache_size => 100)
    if $how eq 'cache';
my $agent = LWP::UserAgent->new(ssl_opts => \%tls);
for (1 .. $visits) {
    my $response = $agent->get($url);
    print $response->is_success ? $response->content : die $response->status_line, "\n";
}
