//! `http{}`.

use core::ffi::{CStr, c_void};
use core::ptr::NonNull;
use std::vec::Vec;

use nginx_sys::{
    ngx_connection_t, ngx_hash_find_combined, ngx_hash_key, ngx_http_add_variable,
    ngx_http_conf_addr_t, ngx_http_conf_ctx_t, ngx_http_conf_port_t, ngx_http_connection_t,
    ngx_http_core_loc_conf_t, ngx_http_core_main_conf_t, ngx_http_core_module,
    ngx_http_core_srv_conf_t, ngx_http_module, ngx_http_request_t, ngx_http_ssl_module,
    ngx_http_ssl_srv_conf_t, ngx_http_variable_value_t, ngx_int_t, ngx_module_t,
};

use session_core::origin::Verification;

use super::block::{Block, Server};
use super::conf::{Conf, Place, Refusal};
use super::openssl::{Cross, SSL_CTX};
use super::resolver::Resolver;
use super::tls::{Context, Differences};
use super::variable::{self, Variable};

/// `http{}`
pub struct Http;

impl Block for Http {
    fn module() -> *const ngx_module_t {
        &raw const ngx_http_module
    }

    unsafe fn main_confs(ctx: *mut c_void) -> *mut *mut c_void {
        // SAFETY: the caller's.
        unsafe { (*ctx.cast::<ngx_http_conf_ctx_t>()).main_conf }
    }

    fn servers(cf: &Conf) -> Vec<Server> {
        // SAFETY: in postconfiguration ctx is that of http{}; its modules have merged their
        // configurations, and nginx has yet to free the list of ports.
        unsafe {
            let ctx = cf.context().cast::<ngx_http_conf_ctx_t>();
            let main = *(*ctx).main_conf.add(ngx_http_core_module.ctx_index);
            let Some(main) = main.cast::<ngx_http_core_main_conf_t>().as_ref() else {
                return Vec::new();
            };
            main.servers
                .as_slice::<*mut ngx_http_core_srv_conf_t>()
                .iter()
                .filter_map(|&server| {
                    let ssl = ssl_of(server);
                    let context = Context::from_ptr((*ssl).ssl.ctx.cross())?;
                    Some(Server {
                        context,
                        verification: Verification {
                            verify: (*ssl).verify as u64,
                            depth: (*ssl).verify_depth as u64,
                            ocsp: (*ssl).ocsp as u64,
                            by_name: !(*ssl).certificate_values.is_null(),
                            ..Verification::default()
                        },
                        place: Place::new(
                            CStr::from_ptr((*server).file_name.cast()),
                            (*server).line,
                        ),
                        listens_tls: listens(main, server, |addr| addr.opt.ssl() != 0),
                        listens_quic: listens(main, server, is_quic),
                        differences: differences(main, server, context),
                    })
                })
                .collect()
        }
    }

    unsafe fn find_servers(
        c: NonNull<ngx_connection_t>,
        name: Option<&[u8]>,
        found: &mut dyn FnMut(*mut SSL_CTX),
    ) {
        // SAFETY: the caller's: until a request begins, or a session of HTTP/3, data is an
        // ngx_http_connection_t, as ngx_http_ssl_servername() has it, and its address one of the
        // configuration's. A name's server is never null.
        unsafe {
            let http = (*c.as_ptr()).data.cast::<ngx_http_connection_t>();
            let Some(address) = (*http).addr_conf.as_ref() else { return };
            let default = context_of(address.default_server);
            // A server without certificates leaves the connection to the default one.
            let mut or_default = |context: *mut SSL_CTX| {
                found(if context.is_null() { default } else { context });
            };
            let (Some(names), Some(name)) = (address.virtual_names.as_ref(), name) else {
                return or_default(default);
            };
            let named = ngx_hash_find_combined(
                (&raw const names.names).cast_mut(),
                ngx_hash_key(name.as_ptr().cast_mut(), name.len()),
                name.as_ptr().cast_mut(),
                name.len(),
            )
            .cast::<ngx_http_core_srv_conf_t>();
            if !named.is_null() {
                return or_default(context_of(named));
            }
            // Any of the regular expressions may match, or none.
            or_default(default);
            for n in 0..names.nregex {
                or_default(context_of((*names.regex.add(n)).server));
            }
        }
    }

    fn resolver(cf: &mut Conf) -> Option<Resolver> {
        // SAFETY: in postconfiguration ctx is that of http{}, whose resolver belongs to this
        // configuration.
        unsafe {
            let ctx = cf.context().cast::<ngx_http_conf_ctx_t>();
            let conf = *(*ctx).loc_conf.add(ngx_http_core_module.ctx_index);
            let core = conf.cast::<ngx_http_core_loc_conf_t>().as_ref()?;
            Resolver::configured(core.resolver, core.resolver_timeout, cf)
        }
    }

    fn add_variable<V: Variable>(cf: &mut Conf) -> Result<(), Refusal> {
        // SAFETY: called while the configuration is read, as nginx asks for.
        unsafe {
            let variable = ngx_http_add_variable(cf.as_ptr(), &mut variable::name::<V>(), 0);
            variable.as_mut().ok_or(Refusal::Said)?.get_handler = Some(get::<V>);
        }
        Ok(())
    }
}

unsafe extern "C" fn get<V: Variable>(
    request: *mut ngx_http_request_t,
    to: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: a request has a connection, a pool and a place for the value.
    unsafe { variable::get::<V>((*request).connection, (*request).pool, to) }
}

/// What ngx_http_ssl_module has read for a server.
///
/// # Safety
/// `server` is one of a configuration that was read.
unsafe fn ssl_of(server: *mut ngx_http_core_srv_conf_t) -> *const ngx_http_ssl_srv_conf_t {
    // SAFETY: the caller's; a server has a configuration of each module that is loaded.
    unsafe { (*(*(*server).ctx).srv_conf.add(ngx_http_ssl_module.ctx_index)).cast() }
}

/// The context of a server, if it has one.
///
/// # Safety
/// `server` is one of a configuration that was read.
unsafe fn context_of(server: *mut ngx_http_core_srv_conf_t) -> *mut SSL_CTX {
    // SAFETY: the caller's.
    unsafe { (*ssl_of(server)).ssl.ctx.cross() }
}

/// Whether a server has a listening socket of that kind.
///
/// # Safety
/// As in [`Block::servers`].
unsafe fn listens(
    main: &ngx_http_core_main_conf_t,
    server: *mut ngx_http_core_srv_conf_t,
    is_of_kind: impl Fn(&ngx_http_conf_addr_t) -> bool,
) -> bool {
    // SAFETY: the caller's; the arrays hold what http core puts there (ngx_http_add_listen()).
    unsafe {
        let Some(ports) = main.ports.as_ref() else { return false };
        ports
            .as_slice::<ngx_http_conf_port_t>()
            .iter()
            .flat_map(|port| port.addrs.as_slice::<ngx_http_conf_addr_t>())
            .filter(|addr| is_of_kind(addr))
            .any(|addr| addr.servers.as_slice::<*mut ngx_http_core_srv_conf_t>().contains(&server))
    }
}

/// In what other servers differ from this one, of the context, where it is the default server.
///
/// # Safety
/// As in [`Block::servers`].
unsafe fn differences(
    main: &ngx_http_core_main_conf_t,
    server: *mut ngx_http_core_srv_conf_t,
    context: Context,
) -> Differences {
    // SAFETY: as in listens().
    unsafe {
        let Some(ports) = main.ports.as_ref() else { return Differences::default() };
        ports
            .as_slice::<ngx_http_conf_port_t>()
            .iter()
            .flat_map(|port| port.addrs.as_slice::<ngx_http_conf_addr_t>())
            .filter(|addr| addr.default_server == server)
            .flat_map(|addr| addr.servers.as_slice::<*mut ngx_http_core_srv_conf_t>())
            .filter_map(|&other| Context::from_ptr(context_of(other)))
            .fold(Differences::default(), |all, other| all.and(context.differences(other)))
    }
}

#[cfg(nginx_1_25_0)]
fn is_quic(addr: &ngx_http_conf_addr_t) -> bool {
    addr.opt.quic() != 0
}

#[cfg(not(nginx_1_25_0))]
fn is_quic(_: &ngx_http_conf_addr_t) -> bool {
    false
}
