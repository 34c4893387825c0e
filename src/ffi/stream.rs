//! `stream{}`, which distributions have as a module by itself: what is in it is looked up by name, so
//! that this module loads without it.

use core::ffi::{CStr, c_void};
use core::ptr::{self, NonNull};
use std::string::String;
use std::vec::Vec;

#[cfg(not(nginx_stream_servers))]
use nginx_sys::ngx_stream_listen_t;
#[cfg(not(nginx_stream_ssl_srv_conf))]
pub(super) use nginx_sys::ngx_stream_ssl_conf_t as ngx_stream_ssl_srv_conf_t;
#[cfg(nginx_stream_ssl_srv_conf)]
pub(super) use nginx_sys::ngx_stream_ssl_srv_conf_t;
use nginx_sys::{
    ngx_connection_t, ngx_cycle_t, ngx_int_t, ngx_module_t, ngx_stream_conf_ctx_t,
    ngx_stream_core_main_conf_t, ngx_stream_core_srv_conf_t, ngx_stream_session_t,
    ngx_stream_variable_value_t,
};
#[cfg(nginx_stream_servers)]
use nginx_sys::{ngx_stream_conf_addr_t, ngx_stream_conf_port_t};

use session_core::origin::Verification;

use super::block::{self, Block, Configured, Id, Server, Socket};
use super::conf::{Conf, Place, Refusal};
use super::openssl::{Cross, SSL_CTX};
use super::resolver::Resolver;
use super::shim;
use super::symbol;
use super::tls::Context;
use super::variable::{self, Variable};

/// `stream{}`
pub struct Stream;

impl Block for Stream {
    unsafe fn main_conf<T>(cycle: &ngx_cycle_t, module: &ngx_module_t) -> Option<NonNull<T>> {
        // SAFETY: the caller's.
        unsafe { NonNull::new((*context(cycle)?.main_conf.add(module.ctx_index)).cast()) }
    }

    fn servers(cf: &Conf) -> Vec<Server> {
        // SAFETY: in postconfiguration the modules of stream{} have merged their configurations, which
        // stay as long as the cycle, and nginx has yet to free the list of ports.
        unsafe {
            let core = module(c"ngx_stream_core_module");
            let main = core.and_then(|core| Self::main_conf(&*cf.raw().cycle, core));
            let Some(main) = main else { return Vec::new() };
            let main: &ngx_stream_core_main_conf_t = main.as_ref();
            let server = |server: &ngx_stream_core_srv_conf_t| {
                let ssl = ssl_of((*server.ctx).srv_conf)?;
                Some(Configured {
                    id: id_of(server),
                    context: Context::from_ptr(ssl.ssl.ctx.cross())?,
                    verification: Verification {
                        verify: ssl.verify as u64,
                        depth: ssl.verify_depth as u64,
                        #[cfg(nginx_stream_ocsp)]
                        ocsp: ssl.ocsp as u64,
                        #[cfg(not(nginx_stream_ocsp))]
                        ocsp: 0,
                        by_name: !ssl.certificate_values.is_null(),
                        ..Verification::default()
                    },
                    has_ticket_key_files: !ssl.session_ticket_keys.is_null(),
                    #[cfg(nginx_stream_servers)]
                    name: String::from_utf8_lossy(server.server_name.as_bytes()).into_owned(),
                    #[cfg(not(nginx_stream_servers))]
                    name: String::new(),
                    place: Place::new(CStr::from_ptr(server.file_name.cast()), server.line),
                })
            };
            let servers = main.servers.as_slice::<&ngx_stream_core_srv_conf_t>();
            let servers = servers.iter().filter_map(|one| server(one)).collect();
            block::listening(servers, &sockets(main))
        }
    }

    /// Before virtual servers came a socket has one server, whose context the connection has.
    #[cfg(not(nginx_stream_servers))]
    unsafe fn find_servers(
        c: NonNull<ngx_connection_t>,
        _: Option<&[u8]>,
        found: &mut dyn FnMut(*mut SSL_CTX),
    ) {
        // SAFETY: the caller's; a connection in its handshake has the TLS part.
        if let Some(ssl) = unsafe { (*c.as_ptr()).ssl.as_ref() } {
            found(ssl.session_ctx.cross());
        }
    }

    #[cfg(nginx_stream_servers)]
    unsafe fn find_servers(
        c: NonNull<ngx_connection_t>,
        name: Option<&[u8]>,
        found: &mut dyn FnMut(*mut SSL_CTX),
    ) {
        // SAFETY: the caller's: data is an ngx_stream_session_t, as ngx_stream_ssl_servername() has
        // it, and its configuration that of the default server before the name was dispatched. A
        // name's server is never null.
        unsafe {
            let session = (*c.as_ptr()).data.cast::<ngx_stream_session_t>();
            let default = context_of((*session).srv_conf);
            // A server without certificates leaves the connection to the default one.
            let mut or_default = |context: *mut SSL_CTX| {
                found(if context.is_null() { default } else { context });
            };
            let (Some(names), Some(name)) = ((*session).virtual_names.as_ref(), name) else {
                return or_default(default);
            };
            let named = block::server_named::<ngx_stream_core_srv_conf_t>(&names.names, name);
            if !named.is_null() {
                return or_default(context_of((*(*named).ctx).srv_conf));
            }
            // Any of the regular expressions may match, or none.
            or_default(default);
            for n in 0..names.nregex {
                or_default(context_of((*(*(*names.regex.add(n)).server).ctx).srv_conf));
            }
        }
    }

    fn resolver(cf: &mut Conf) -> Option<Resolver> {
        // SAFETY: in postconfiguration there is a context of stream{}, whose resolver belongs to this
        // configuration.
        unsafe {
            let core = module(c"ngx_stream_core_module")?;
            let conf = *context(&*cf.raw().cycle)?.srv_conf.add(core.ctx_index);
            let core = conf.cast::<ngx_stream_core_srv_conf_t>().as_ref()?;
            Resolver::configured(core.resolver, core.resolver_timeout, cf)
        }
    }

    fn add_variable<V: Variable>(cf: &mut Conf) -> Result<(), Refusal> {
        // SAFETY: the type is of this function.
        let add: shim::stream_add_variable =
            unsafe { symbol::function(c"ngx_stream_add_variable") };
        let Some(add) = add else {
            return Err(cf.refuse(format_args!("this nginx hides \"ngx_stream_add_variable\"")));
        };
        // SAFETY: it is called while the configuration is read, as nginx asks for.
        unsafe {
            let variable = add(cf.as_ptr(), &mut variable::name::<V>(), 0);
            let variable = variable.as_mut().ok_or(Refusal::Said)?;
            // Of a "map" or a "set".
            if variable.get_handler.is_some() {
                return Err(cf.refuse(format_args!("the duplicate \"{}\" variable", V::NAME)));
            }
            variable.get_handler = Some(get::<V>);
        }
        Ok(())
    }
}

/// The context of the block, by hand: `ngx` has none of stream{}. That of `ngx_conf_t` is the last
/// server's when the block has been read (ngx_stream_block()).
///
/// # Safety
/// The block is being read, or was read.
unsafe fn context(cycle: &ngx_cycle_t) -> Option<&ngx_stream_conf_ctx_t> {
    let block = module(c"ngx_stream_module")?;
    // SAFETY: the caller's. A module that is loaded, and not of this cycle, may have the index of
    // another one; without the block there is no context.
    unsafe {
        let modules = core::slice::from_raw_parts(cycle.modules, cycle.modules_n);
        if !modules.iter().any(|&one| ptr::eq(one, block)) {
            return None;
        }
        (*cycle.conf_ctx.add(block.index)).cast::<ngx_stream_conf_ctx_t>().as_ref()
    }
}

/// A module, if it is loaded.
fn module(name: &CStr) -> Option<&'static ngx_module_t> {
    // SAFETY: what has the name of a module is one. It stays loaded as long as this one.
    symbol::find(name).map(|at| unsafe { at.cast().as_ref() })
}

unsafe extern "C" fn get<V: Variable>(
    session: *mut ngx_stream_session_t,
    to: *mut ngx_stream_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: a session has a connection, that a pool, and there is a place for the value.
    unsafe {
        let connection = (*session).connection;
        variable::get::<V>(connection, (*connection).pool, to)
    }
}

/// What ngx_stream_ssl_module has read for a server.
///
/// # Safety
/// `srv_conf` is that of a server, in the order of `ctx_index`.
unsafe fn ssl_of<'a>(srv_conf: *mut *mut c_void) -> Option<&'a ngx_stream_ssl_srv_conf_t> {
    let ssl = module(c"ngx_stream_ssl_module")?;
    // SAFETY: the caller's; a server has a configuration of each module that is loaded.
    unsafe { (*srv_conf.add(ssl.ctx_index)).cast::<ngx_stream_ssl_srv_conf_t>().as_ref() }
}

#[cfg(nginx_stream_servers)]
fn id_of(server: &ngx_stream_core_srv_conf_t) -> Id {
    ptr::from_ref(server).cast()
}

/// The sockets of the servers.
///
/// # Safety
/// The list of ports is there.
#[cfg(nginx_stream_servers)]
unsafe fn sockets(main: &ngx_stream_core_main_conf_t) -> Vec<Socket> {
    // SAFETY: the caller's; the arrays hold what stream core puts there (ngx_stream_add_listen()).
    unsafe {
        let ports = main.ports.as_ref().map_or(&[][..], |ports| ports.as_slice());
        let addresses =
            ports.iter().flat_map(|port: &ngx_stream_conf_port_t| port.addrs.as_slice());
        let socket = |addr: &ngx_stream_conf_addr_t| Socket {
            default: addr.default_server.cast_const().cast(),
            servers: addr.servers.as_slice().to_vec(),
            is_tls: shim::stream_is_tls(addr),
            is_quic: false,
        };
        addresses.map(socket).collect()
    }
}

/// A socket knows the configurations of its server.
#[cfg(not(nginx_stream_servers))]
fn id_of(server: &ngx_stream_core_srv_conf_t) -> Id {
    server.ctx.cast_const().cast()
}

/// The same before virtual servers came: each socket has one server.
///
/// # Safety
/// The block has been read.
#[cfg(not(nginx_stream_servers))]
unsafe fn sockets(main: &ngx_stream_core_main_conf_t) -> Vec<Socket> {
    // SAFETY: the caller's; the array holds what ngx_stream_core_listen() puts there.
    unsafe {
        let socket = |listen: &ngx_stream_listen_t| Socket {
            default: listen.ctx.cast_const().cast(),
            servers: std::vec![listen.ctx.cast_const().cast()],
            is_tls: shim::stream_is_tls(listen),
            is_quic: false,
        };
        main.listen.as_slice().iter().map(socket).collect()
    }
}

/// The context of a server, if it has one.
///
/// # Safety
/// `srv_conf` is that of a server, in the order of `ctx_index`.
#[cfg(nginx_stream_servers)]
unsafe fn context_of(srv_conf: *mut *mut c_void) -> *mut SSL_CTX {
    // SAFETY: the caller's.
    unsafe { ssl_of(srv_conf) }.map_or(ptr::null_mut(), |ssl| ssl.ssl.ctx.cross())
}
