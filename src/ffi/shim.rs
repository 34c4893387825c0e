//! What `shim.h` says, in Rust. Its types are those of openssl-sys and nginx-sys.

#![allow(missing_docs, non_camel_case_types, non_upper_case_globals)]

#[cfg(all(ngx_feature = "stream_ssl", nginx_stream_servers))]
use nginx_sys::ngx_stream_conf_addr_t;
#[cfg(all(ngx_feature = "stream_ssl", not(nginx_stream_servers)))]
use nginx_sys::ngx_stream_listen_t;
use nginx_sys::{
    ngx_buf_t, ngx_connection_t, ngx_event_t, ngx_http_conf_addr_t, ngx_http_request_t, ngx_int_t,
    ngx_msec_t, ngx_peer_connection_t, ngx_queue_t, ngx_resolver_ctx_t, ngx_resolver_t,
    ngx_slab_pool_t, ngx_ssl_connection_t, ngx_url_t, ngx_variable_value_t, u_char,
};
#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::{ngx_conf_t, ngx_str_t, ngx_stream_variable_t, ngx_uint_t};

use super::openssl::{BIO, SSL, SSL_CTX, SSL_SESSION, X509, X509_STORE};

include!(concat!(env!("OUT_DIR"), "/shim.rs"));
