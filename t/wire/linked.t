# The module uses the OpenSSL of the nginx that loads it: it neither asks for one nor has any of one in it.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

plan skip_all => 'the module is in nginx' if $ENV{TEST_NGINX_STATIC};

my $module = module_path();

sub lines {
    my (@command) = @_;
    local $ENV{LC_ALL} = 'C';
    open my $out, '-|', @command, $module or die "$command[0]: $!";
    my @lines = <$out>;
    close $out or die "$command[0]: failed on $module";
    return @lines;
}

# By the families that OpenSSL's functions are of.
sub openssl { return grep {/^(?:lib)?(?:SSL|TLS|DTLS|OPENSSL|OSSL|CRYPTO|BIO|EVP|ERR|X509|ASN1|RAND|d2i|i2d)_/} @_ }

# Names of symbols, the last word of a line; a version may follow it.
sub symbols {
    return map {/(\S+?)(?:@\S+)?$/} lines('nm', @_);
}

my @used = openssl(symbols(qw(-D --undefined-only)));
cmp_ok scalar @used, '>', 50, 'functions of OpenSSL are looked up when it is loaded';
ok +(grep { $_ eq 'SSL_CTX_set_info_callback' } @used), '... that of the info callback among them';

is_deeply [ openssl(symbols(qw(-D --defined-only))) ], [], 'it offers none';
is_deeply [ openssl(symbols(qw(--defined-only))) ],    [], 'and has none for itself';

my @needed = map {/\(NEEDED\).*\[(.*)\]/} lines('readelf', '-d');
ok +(grep {/^libc\./} @needed), 'it asks for libraries';
is_deeply [ grep {/^lib(?:ssl|crypto)\b/} @needed ], [], '... but not for those of OpenSSL';

done_testing;
