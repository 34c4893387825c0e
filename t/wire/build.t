# What tools/build-module refuses before it builds anything, and what it calls the nginx that it builds for;
# and how tools/configure-as prepares the sources of one.

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

# An nginx that says how it was configured, and sources whose configure says what it is given.
sub configure_as {
    my ($arguments, $version) = @_;
    my $dir = tree(configure => qq{#!/bin/sh\nprintf '%s\\n' "\$@"\n});
    my $nginx = spew("$dir/nginx", sprintf qq{#!/bin/sh\ncat >&2 <<'END'\nnginx version: nginx/%s\nconfigure arguments: %s\nEND\n},
        $version // '9.8.7', $arguments);
    chmod 0755, $nginx, "$dir/configure";
    my $out = `'${\ root() }/tools/configure-as' '$nginx' '$dir' '$dir/of-it' 2>&1`;
    my $exit = $? >> 8;
    return ($exit, $out) if $exit;
    my @given = split /\n/, slurp("$dir/of-it/configure.log");
    is pop @given, "--builddir=$dir/of-it", 'the build directory is the one that is named';
    return ($exit, @given);
}

($code, my @given) = configure_as(q{--prefix=/etc/nginx --with-compat --with-stream=dynamic --with-http_ssl_module});
is $code, 0, 'an nginx is configured again';
is_deeply \@given, [qw(--prefix=/etc/nginx --with-compat --with-stream=dynamic --with-http_ssl_module)], 'as it was';

($code, @given) = configure_as(q{--with-http_v3_module --with-cc-opt='-O2 -flto=auto -DTCP_FASTOPEN=23 -specs=/x -Wp,-D_FORTIFY_SOURCE=2 -I../y'}
    . q{ --with-ld-opt='-Wl,-z,now -pie' --with-http_perl_module=dynamic --add-dynamic-module=/gone --name='a b'});
is_deeply \@given, [ '--with-http_v3_module', '--with-cc-opt=-DTCP_FASTOPEN=23 -I../y', '--name=a b' ],
    '... but for other modules, and what the compiler makes of the same code';

($code, $said) = configure_as('--with-compat', '9.8.6');
is $code, 1, 'the sources of another nginx';
like $said, qr{is nginx 9\.8\.6, and the source in \S+ is 9\.8\.7$}, 'are refused, with both versions';

($code, $said) = configure_as('--with-openssl=/build/openssl');
is $code, 1, 'an nginx with an OpenSSL of its own';
like $said, qr{has an OpenSSL of its own \(--with-openssl=/build/openssl\)}, 'is refused: its headers are not here';

done_testing;
