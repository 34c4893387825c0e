# What tools/build-module refuses before it builds anything, and what it calls the nginx that it builds for.

use strict;
use warnings;

use lib 't/lib';
use SSLSession::Fixture;
use Test::More;

# A source tree with these files, configured with these directories of headers.
sub tree {
    my (%file) = @_;
    my $dir  = new_dir('tree');
    my $incs = delete $file{includes} // '';
    my %all  = (
        'src/core/nginx.h'      => qq{#define NGINX_VERSION "9.8.7"\n#define NGINX_VER "nginx/" NGINX_VERSION\n},
        'objs/Makefile'         => "CFLAGS = -O\n\nALL_INCS = -I src/core \\\n\t$incs-I objs\n",
        'objs/ngx_auto_config.h' => '',
        %file,
    );
    for my $name (keys %all) {
        my ($parent) = "$dir/$name" =~ m{^(.*)/};
        system('mkdir', '-p', $parent);
        spew("$dir/$name", $all{$name});
    }
    return $dir;
}

# What it says about a tree: (exit code, output).
sub tool {
    my ($dir, @what) = @_;
    local %ENV = (%ENV, NGINX_SOURCE_DIR => $dir, NGINX_BUILD_DIR => "$dir/objs");
    my $said = `'${\ root() }/tools/build-module' @what 2>&1`;
    return ($? >> 8, $said);
}

my ($code, $said) = tool(tree(), 'env');
is $code, 0, 'a tree of nginx' or diag $said;
like $said, qr{^export OPENSSL_INCLUDE_DIR=/usr/(?:local/)?include$}m, 'has the OpenSSL of the system';

my $own = tree(includes => '-I ../openssl/.openssl/include -I lib/.openssl/include ', 'src/lib/.gitkeep' => '');
($code, $said) = tool($own, 'env');
is $code, 1, 'an OpenSSL that is to be built with nginx, and is not yet';
like $said, qr{the OpenSSL of --with-openssl is not built yet \(\.\./openssl/\.openssl/include\): run make in \Q$own\E first}, 'is missed';
unlike $said, qr{OPENSSL_INCLUDE_DIR=}, 'and not replaced by that of the system';

my $made = tree(includes => '-I lib/.openssl/include ', 'lib/.openssl/include/openssl/opensslv.h' => '');
($code, $said) = tool($made, 'env');
is $code, 0, 'once it is' or diag $said;
like $said, qr{^export OPENSSL_INCLUDE_DIR=\Q$made\E/lib/\.openssl/include$}m, 'it is found';

($code, $said) = tool(tree('src/core/angie.h' => ''), 'env');
is $code, 1, 'Angie';
like $said, qr/^the nginx in \S+ is Angie, which the module is not for$/, 'is refused in a sentence';

is((tool(tree(), 'name'))[1], "nginx version: nginx/9.8.7\n", 'nginx is called as it calls itself');
is((tool(tree('src/core/nginx.h' => qq{#define NGINX_NAME "freenginx"\n#define NGINX_VER NGINX_NAME "/1.2.3"\n}), 'name'))[1],
    "nginx version: freenginx/1.2.3\n", '... and a fork, too');

done_testing;
