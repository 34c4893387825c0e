# The rest of config: how nginx's Makefile makes the library.

cat << END >> $NGX_MAKEFILE

$ngx_ssl_session_user: $ngx_ssl_session_lib

# An OpenSSL that is built with nginx has its headers when CORE_DEPS are there. cargo knows whether there is
# anything to do. What it makes is this rule's own target: make then looks at
# the library anew, and links nginx again when it has changed.
.PHONY: ngx_http_ssl_session_always
$ngx_ssl_session_lib: \$(CORE_DEPS) ngx_http_ssl_session_always
	objs=\$\$(cd "$NGX_OBJS" && pwd) src=\$\$PWD && cd "$ngx_addon_dir" && \\
	openssl=\$\$(tools/openssl-include "\$\$src" "\$\$objs") && \\
	NGINX_SOURCE_DIR="\$\$src" NGINX_BUILD_DIR="\$\$objs" OPENSSL_INCLUDE_DIR="\$\$openssl" \\
	cargo rustc --release --locked --lib --crate-type staticlib --features static \\
		--target-dir "\$\$objs/cargo" && \\
	new="\$\$objs/cargo/release/libngx_http_ssl_session_module.a" && \\
	{ cmp -s "\$\$new" "\$\$objs/libngx_http_ssl_session_module.a" || cp "\$\$new" "\$\$objs"; }

END
