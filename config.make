# The rest of config: how nginx's Makefile makes the library.

cat << END >> $NGX_MAKEFILE

$NGX_OBJS/nginx: $ngx_ssl_session_lib

.PHONY: ngx_http_ssl_session_cargo
$ngx_ssl_session_lib: ngx_http_ssl_session_cargo

ngx_http_ssl_session_cargo:
	objs=\$\$(cd "$NGX_OBJS" && pwd) src=\$\$PWD && cd "$ngx_addon_dir" && \\
	openssl=\$\$(tools/openssl-include "\$\$src" "\$\$objs") && \\
	NGINX_SOURCE_DIR="\$\$src" NGINX_BUILD_DIR="\$\$objs" OPENSSL_INCLUDE_DIR="\$\$openssl" \\
	cargo rustc --release --locked --lib --crate-type staticlib --features static \\
		--target-dir "\$\$objs/cargo" && \\
	cp "\$\$objs/cargo/release/libngx_http_ssl_session_module.a" "\$\$objs"

END
