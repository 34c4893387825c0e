//! `http{}`.

use core::ffi::CStr;
use core::ptr::{self, NonNull};
use std::string::String;
use std::vec::Vec;

use nginx_sys::{
    ngx_connection_t, ngx_cycle_t, ngx_http_add_variable, ngx_http_conf_addr_t,
    ngx_http_conf_port_t, ngx_http_connection_t, ngx_http_core_main_conf_t,
    ngx_http_core_srv_conf_t, ngx_http_request_t, ngx_http_variable_value_t, ngx_int_t,
    ngx_module_t,
};
use ngx::http::{
    HttpModuleConfExt, HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf,
    NgxHttpCoreModule, NgxHttpSslModule,
};

use session_core::origin::Verification;

use super::block::{self, Block, Configured, Server, Socket};
use super::conf::{Conf, Place, Refusal};
use super::openssl::{Cross, SSL_CTX};
use super::resolver::Resolver;
use super::shim;
use super::tls::Context;
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
        // SAFETY: in postconfiguration the modules of http{} have merged their configurations, which
        // stay as long as the cycle, and nginx has yet to free the list of ports.
        unsafe {
            let server = |server: &ngx_http_core_srv_conf_t| {
                let ssl = NgxHttpSslModule::server_conf(server)?;
                Some(Configured {
                    id: ptr::from_ref(server).cast(),
                    context: Context::of_http(ssl.ssl.ctx.cross())?,
                    verification: Verification {
                        verify: ssl.verify as u64,
                        depth: ssl.verify_depth as u64,
                        ocsp: ssl.ocsp as u64,
                        by_name: !ssl.certificate_values.is_null(),
                        ..Verification::default()
                    },
                    has_ticket_key_files: !ssl.session_ticket_keys.is_null(),
                    name: String::from_utf8_lossy(server.server_name.as_bytes()).into_owned(),
                    place: Place::new(CStr::from_ptr(server.file_name.cast()), server.line),
                })
            };
            let servers = main.servers.as_slice::<&ngx_http_core_srv_conf_t>();
            let servers = servers.iter().filter_map(|one| server(one)).collect();
            block::listening(servers, &sockets(main))
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
            let named = block::server_named::<ngx_http_core_srv_conf_t>(&names.names, name);
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

/// The sockets of the servers.
///
/// # Safety
/// The list of ports is there.
unsafe fn sockets(main: &ngx_http_core_main_conf_t) -> Vec<Socket> {
    // SAFETY: the caller's; the arrays hold what http core puts there (ngx_http_add_listen()).
    unsafe {
        let ports = main.ports.as_ref().map_or(&[][..], |ports| ports.as_slice());
        let addresses = ports.iter().flat_map(|port: &ngx_http_conf_port_t| port.addrs.as_slice());
        let socket = |addr: &ngx_http_conf_addr_t| Socket {
            default: addr.default_server.cast_const().cast(),
            servers: addr.servers.as_slice().to_vec(),
            is_tls: shim::http_is_tls(addr),
            is_quic: shim::http_is_quic(addr),
        };
        addresses.map(socket).collect()
    }
}
