//! nginx module that lets a fleet of servers resume each other's TLS sessions.
//!
//! The rooms, each of which uses only those after it: [`conf`] makes a policy of the directives;
//! [`handshake`] carries it out and [`status`] shows it; [`tier`] is where sessions are kept;
//! [`net`] speaks to servers; [`ffi`] is nginx and OpenSSL. What needs neither is in the crate
//! `session_core`.

#![deny(unsafe_code)]

#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::ngx_stream_module_t;
use nginx_sys::{ngx_http_module_t, ngx_module_t};

use conf::MainConf;
use ffi::http::Http;
use ffi::module::Module;
#[cfg(ngx_feature = "stream_ssl")]
use ffi::stream::Stream;

mod conf;
mod ffi;
mod handshake;
mod net;
mod status;
mod tier;

/// The module in `http{}`.
struct SslSession;

impl Module for SslSession {
    type Block = Http;
    type MainConf = MainConf;

    fn module() -> *const ngx_module_t {
        module()
    }

    fn main_conf() -> MainConf {
        MainConf::new("")
    }
}

/// The same in `stream{}`.
#[cfg(ngx_feature = "stream_ssl")]
struct StreamSslSession;

#[cfg(ngx_feature = "stream_ssl")]
impl Module for StreamSslSession {
    type Block = Stream;
    type MainConf = MainConf;

    fn module() -> *const ngx_module_t {
        &raw const ngx_stream_ssl_session_module
    }

    fn main_conf() -> MainConf {
        MainConf::new("stream:")
    }
}

/// The module, for what nginx wants to know of it.
fn module() -> *const ngx_module_t {
    &raw const ngx_http_ssl_session_module
}

/// The module of the directives in `ssl_session_backend`.
fn backend_module() -> *const ngx_module_t {
    &raw const ngx_http_ssl_session_backend_module
}

static CONTEXT: ngx_http_module_t = ffi::module::http_context::<SslSession>();

#[allow(non_upper_case_globals)]
#[cfg_attr(feature = "static", allow(unsafe_code), unsafe(no_mangle))]
static mut ngx_http_ssl_session_module: ngx_module_t =
    ffi::module::http_module::<SslSession>(&CONTEXT, &conf::COMMANDS);

#[allow(non_upper_case_globals)]
#[cfg_attr(feature = "static", allow(unsafe_code), unsafe(no_mangle))]
static mut ngx_http_ssl_session_backend_module: ngx_module_t =
    ffi::module::block_module(&conf::BACKEND_COMMANDS);

#[cfg(ngx_feature = "stream_ssl")]
static STREAM_CONTEXT: ngx_stream_module_t = ffi::module::stream_context::<StreamSslSession>();

#[cfg(ngx_feature = "stream_ssl")]
#[allow(non_upper_case_globals)]
#[cfg_attr(feature = "static", allow(unsafe_code), unsafe(no_mangle))]
static mut ngx_stream_ssl_session_module: ngx_module_t =
    ffi::module::stream_module::<StreamSslSession>(&STREAM_CONTEXT, &conf::STREAM_COMMANDS);

/// What nginx looks for in a dynamic module (ngx_load_module() in nginx.c). Lists end with a null.
#[cfg(not(feature = "static"))]
mod dynamic {
    use core::ffi::c_char;
    use core::ptr;

    use nginx_sys::ngx_module_t;

    #[cfg(ngx_feature = "stream_ssl")]
    use super::ngx_stream_ssl_session_module;
    use super::{ngx_http_ssl_session_backend_module, ngx_http_ssl_session_module};

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_modules: [*const ngx_module_t; 4] = [
        &raw const ngx_http_ssl_session_module,
        &raw const ngx_http_ssl_session_backend_module,
        #[cfg(ngx_feature = "stream_ssl")]
        &raw const ngx_stream_ssl_session_module,
        #[cfg(not(ngx_feature = "stream_ssl"))]
        ptr::null(),
        ptr::null(),
    ];

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_module_names: [*const c_char; 4] = [
        c"ngx_http_ssl_session_module".as_ptr(),
        c"ngx_http_ssl_session_backend_module".as_ptr(),
        c"ngx_stream_ssl_session_module".as_ptr(),
        ptr::null(),
    ];

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_module_order: [*const c_char; 1] = [ptr::null()];
}
