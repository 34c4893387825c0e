# The rest of config: how nginx's Makefile makes the library.

cat << END >> $NGX_MAKEFILE

$NGX_OBJS/nginx: $ngx_ssl_session_lib

.PHONY: ngx_http_ssl_session_cargo
$ngx_ssl_session_lib: ngx_http_ssl_session_cargo

ngx_http_ssl_session_cargo:
	objs=\$\$(cd "$NGX_OBJS" && pwd) src=\$\$PWD && cd "$ngx_addon_dir" && \\
	NGINX_SOURCE_DIR="\$\$src" NGINX_BUILD_DIR="\$\$objs" \\
	cargo rustc --release --locked --lib --crate-type staticlib --features static \\
		--target-dir "\$\$objs/cargo" && \\
	cp "\$\$objs/cargo/release/libngx_http_ssl_session_module.a" "\$\$objs"

END
