//! `http{}`.

use core::ffi::CStr;
use core::ptr::{self, NonNull};
use std::vec::Vec;

use nginx_sys::{
    ngx_connection_t, ngx_cycle_t, ngx_hash_find_combined, ngx_hash_key, ngx_http_add_variable,
    ngx_http_conf_addr_t, ngx_http_conf_port_t, ngx_http_connection_t, ngx_http_core_main_conf_t,
    ngx_http_core_srv_conf_t, ngx_http_request_t, ngx_http_variable_value_t, ngx_int_t,
    ngx_module_t,
};
use ngx::http::{
    HttpModuleConfExt, HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf,
    NgxHttpCoreModule, NgxHttpSslModule,
};

use session_core::origin::Verification;

use super::block::{Block, Server};
use super::conf::{Conf, Place, Refusal};
use super::openssl::{Cross, SSL_CTX};
use super::resolver::Resolver;
use super::shim;
use super::tls::{Context, Differences};
use super::variable::{self, Variable};

/// `http{}`
pub struct Http;

impl Block for Http {
    unsafe fn main_conf<T>(cycle: &ngx_cycle_t, module: &ngx_module_t) -> Option<NonNull<T>> {
        // SAFETY: the caller's.
        unsafe { cycle.http_main_conf_unchecked(module) }
    }

    fn servers(cf: &Conf) -> Vec<Server> {
        let Some(main) = NgxHttpCoreModule::main_conf(cf.raw()) else { return Vec::new() };
        // SAFETY: in postconfiguration the modules of http{} have merged their configurations, and
        // nginx has yet to free the list of ports.
        unsafe {
            main.servers
                .as_slice::<*mut ngx_http_core_srv_conf_t>()
                .iter()
                .filter_map(|&server| {
                    let ssl = NgxHttpSslModule::server_conf(server.as_ref()?)?;
                    let context = Context::from_ptr(ssl.ssl.ctx.cross())?;
                    let listens = |is_of_kind: unsafe extern "C" fn(*const _) -> bool| {
                        addresses(main)
                            .filter(|&addr| is_of_kind(addr))
                            .any(|addr| servers_of(addr).contains(&server))
                    };
                    Some(Server {
                        context,
                        verification: Verification {
                            verify: ssl.verify as u64,
                            depth: ssl.verify_depth as u64,
                            ocsp: ssl.ocsp as u64,
                            by_name: !ssl.certificate_values.is_null(),
                            ..Verification::default()
                        },
                        place: Place::new(
                            CStr::from_ptr((*server).file_name.cast()),
                            (*server).line,
                        ),
                        listens_tls: listens(shim::http_is_tls),
                        listens_quic: listens(shim::http_is_quic),
                        differences: addresses(main)
                            .filter(|addr| addr.default_server == server)
                            .flat_map(|addr| servers_of(addr))
                            .filter_map(|&other| Context::from_ptr(context_of(other)))
                            .map(|other| context.differences(other))
                            .fold(Differences::default(), Differences::and),
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
        let core = NgxHttpCoreModule::location_conf(cf.raw())?;
        // SAFETY: the resolver belongs to this configuration.
        unsafe { Resolver::configured(core.resolver, core.resolver_timeout, cf) }
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

/// The context of a server, if it has one.
///
/// # Safety
/// `server` is one of a configuration that was read.
unsafe fn context_of(server: *const ngx_http_core_srv_conf_t) -> *mut SSL_CTX {
    // SAFETY: the caller's.
    unsafe { server.as_ref() }
        .and_then(NgxHttpSslModule::server_conf)
        .map_or(ptr::null_mut(), |ssl| ssl.ssl.ctx.cross())
}

/// The addresses that servers listen on.
///
/// # Safety
/// As in [`Block::servers`].
unsafe fn addresses(
    main: &ngx_http_core_main_conf_t,
) -> impl Iterator<Item = &ngx_http_conf_addr_t> {
    // SAFETY: the caller's; the arrays hold what http core puts there (ngx_http_add_listen()).
    unsafe {
        let ports = main.ports.as_ref().map_or(&[][..], |ports| ports.as_slice());
        ports.iter().flat_map(|port: &ngx_http_conf_port_t| port.addrs.as_slice())
    }
}

/// The servers that listen on an address.
///
/// # Safety
/// As in [`addresses`].
unsafe fn servers_of(addr: &ngx_http_conf_addr_t) -> &[*mut ngx_http_core_srv_conf_t] {
    // SAFETY: the caller's.
    unsafe { addr.servers.as_slice() }
}
