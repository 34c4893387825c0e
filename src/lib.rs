//! nginx module that lets a fleet of servers resume each other's TLS sessions.
//!
//! The rooms, each of which uses only those after it: [`conf`] makes a policy of the directives;
//! [`handshake`] carries it out and [`status`] shows it; [`tier`] is where sessions are kept;
//! [`net`] speaks to servers; [`ffi`] is nginx and OpenSSL. What needs neither is in the crate
//! `session_core`.

#![deny(unsafe_code)]

use nginx_sys::{ngx_http_module_t, ngx_module_t};

use conf::MainConf;
use ffi::conf::{Conf, Refusal};
use ffi::module::HttpModule;

mod conf;
mod ffi;
mod handshake;
mod net;
mod status;
mod tier;

struct SslSession;

impl HttpModule for SslSession {
    type MainConf = MainConf;

    fn module() -> *const ngx_module_t {
        module()
    }

    fn preconfiguration(cf: &mut Conf) -> Result<(), Refusal> {
        MainConf::prepare(cf)
    }

    fn postconfiguration(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        conf.apply(cf)
    }

    fn begin_worker(conf: &MainConf) {
        conf.begin();
    }

    fn exit_worker(conf: &MainConf) {
        conf.close();
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

/// What nginx looks for in a dynamic module (ngx_load_module() in nginx.c).
#[cfg(not(feature = "static"))]
mod dynamic {
    use core::ffi::c_char;
    use core::ptr;

    use nginx_sys::ngx_module_t;

    use super::{ngx_http_ssl_session_backend_module, ngx_http_ssl_session_module};

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_modules: [*const ngx_module_t; 3] = [
        &raw const ngx_http_ssl_session_module,
        &raw const ngx_http_ssl_session_backend_module,
        ptr::null(),
    ];

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_module_names: [*const c_char; 3] = [
        c"ngx_http_ssl_session_module".as_ptr(),
        c"ngx_http_ssl_session_backend_module".as_ptr(),
        ptr::null(),
    ];

    #[allow(unsafe_code, non_upper_case_globals, missing_docs)]
    #[unsafe(no_mangle)]
    pub static mut ngx_module_order: [*const c_char; 1] = [ptr::null()];
}
