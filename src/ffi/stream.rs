//! `stream{}`, which distributions have as a module by itself: what is in it is looked up by name, so
//! that this module loads without it.

use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::{self, NonNull};
use std::vec::Vec;

#[cfg(not(nginx_1_25_5))]
use nginx_sys::ngx_stream_listen_t;
#[cfg(not(nginx_1_25_5))]
use nginx_sys::ngx_stream_ssl_conf_t as ngx_stream_ssl_srv_conf_t;
use nginx_sys::{
    ngx_conf_t, ngx_connection_t, ngx_int_t, ngx_module_t, ngx_str_t, ngx_stream_conf_ctx_t,
    ngx_stream_core_main_conf_t, ngx_stream_core_srv_conf_t, ngx_stream_session_t,
    ngx_stream_variable_t, ngx_stream_variable_value_t, ngx_uint_t,
};
#[cfg(nginx_1_25_5)]
use nginx_sys::{
    ngx_hash_find_combined, ngx_hash_key, ngx_stream_conf_addr_t, ngx_stream_conf_port_t,
    ngx_stream_ssl_srv_conf_t,
};

use session_core::origin::Verification;

use super::block::{Block, Server};
use super::conf::{Conf, Place, Refusal};
use super::openssl::{Cross, SSL_CTX};
use super::resolver::Resolver;
use super::symbol;
use super::tls::{Context, Differences};
use super::variable::{self, Variable};

/// `stream{}`
pub struct Stream;

impl Block for Stream {
    fn module() -> *const ngx_module_t {
        static_module(c"ngx_stream_module")
    }

    unsafe fn main_confs(ctx: *mut c_void) -> *mut *mut c_void {
        // SAFETY: the caller's.
        unsafe { (*ctx.cast::<ngx_stream_conf_ctx_t>()).main_conf }
    }

    fn servers(cf: &Conf) -> Vec<Server> {
        // SAFETY: in postconfiguration the modules of stream{} have merged their configurations, and
        // nginx has yet to free the list of ports.
        unsafe {
            let (Some(core), Some(_)) = (core().as_ref(), ssl().as_ref()) else {
                return Vec::new();
            };
            let Some(ctx) = context(cf).as_ref() else { return Vec::new() };
            let main = *ctx.main_conf.add(core.ctx_index);
            let Some(main) = main.cast::<ngx_stream_core_main_conf_t>().as_ref() else {
                return Vec::new();
            };
            main.servers
                .as_slice::<*mut ngx_stream_core_srv_conf_t>()
                .iter()
                .filter_map(|&server| {
                    let ssl = ssl_of((*(*server).ctx).srv_conf);
                    let context = Context::from_ptr(ssl.as_ref()?.ssl.ctx.cross())?;
                    Some(Server {
                        context,
                        verification: Verification {
                            verify: (*ssl).verify as u64,
                            depth: (*ssl).verify_depth as u64,
                            #[cfg(nginx_1_27_2)]
                            ocsp: (*ssl).ocsp as u64,
                            #[cfg(not(nginx_1_27_2))]
                            ocsp: 0,
                            by_name: !(*ssl).certificate_values.is_null(),
                            ..Verification::default()
                        },
                        place: Place::new(
                            CStr::from_ptr((*server).file_name.cast()),
                            (*server).line,
                        ),
                        listens_tls: listens_tls(main, server),
                        listens_quic: false,
                        differences: differences(main, server, context),
                    })
                })
                .collect()
        }
    }

    /// Before virtual servers came a socket has one server, whose context the connection has.
    #[cfg(not(nginx_1_25_5))]
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

    #[cfg(nginx_1_25_5)]
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
            let named = ngx_hash_find_combined(
                (&raw const names.names).cast_mut(),
                ngx_hash_key(name.as_ptr().cast_mut(), name.len()),
                name.as_ptr().cast_mut(),
                name.len(),
            )
            .cast::<ngx_stream_core_srv_conf_t>();
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
            let conf = *context(cf).as_ref()?.srv_conf.add(core().as_ref()?.ctx_index);
            let core = conf.cast::<ngx_stream_core_srv_conf_t>().as_ref()?;
            Resolver::configured(core.resolver, core.resolver_timeout, cf)
        }
    }

    fn add_variable<V: Variable>(cf: &mut Conf) -> Result<(), Refusal> {
        type Add = unsafe extern "C" fn(
            *mut ngx_conf_t,
            *mut ngx_str_t,
            ngx_uint_t,
        ) -> *mut ngx_stream_variable_t;
        let Some(add) = symbol::find(c"ngx_stream_add_variable") else {
            return Err(cf.refuse(format_args!("this nginx hides \"ngx_stream_add_variable\"")));
        };
        // SAFETY: ngx_stream_add_variable() (ngx_stream_variables.h) is called while the configuration
        // is read, as nginx asks for.
        unsafe {
            let add = mem::transmute::<NonNull<c_void>, Add>(add);
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

/// The context of the block. That of `cf` is the last server's when the block has been read
/// (ngx_stream_block()).
///
/// # Safety
/// The block is being read.
unsafe fn context(cf: &Conf) -> *const ngx_stream_conf_ctx_t {
    // SAFETY: the caller's; the module is loaded, and its context is set before the block is read.
    unsafe {
        let cycle = cf.cycle();
        (*(*cycle).conf_ctx.add((*Stream::module()).index)).cast::<ngx_stream_conf_ctx_t>()
    }
}

fn static_module(name: &CStr) -> *const ngx_module_t {
    symbol::find(name).map_or(ptr::null(), |at| at.as_ptr().cast::<ngx_module_t>())
}

fn core() -> *const ngx_module_t {
    static_module(c"ngx_stream_core_module")
}

fn ssl() -> *const ngx_module_t {
    static_module(c"ngx_stream_ssl_module")
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
unsafe fn ssl_of(srv_conf: *mut *mut c_void) -> *const ngx_stream_ssl_srv_conf_t {
    // SAFETY: the caller's; a server has a configuration of each module that is loaded.
    unsafe {
        let Some(ssl) = ssl().as_ref() else { return ptr::null() };
        (*srv_conf.add(ssl.ctx_index)).cast()
    }
}

/// Whether a server has a listening socket with `ssl`.
///
/// # Safety
/// As in [`Block::servers`].
#[cfg(nginx_1_25_5)]
unsafe fn listens_tls(
    main: &ngx_stream_core_main_conf_t,
    server: *mut ngx_stream_core_srv_conf_t,
) -> bool {
    // SAFETY: the caller's; the arrays hold what stream core puts there (ngx_stream_add_listen()).
    unsafe {
        let Some(ports) = main.ports.as_ref() else { return false };
        ports
            .as_slice::<ngx_stream_conf_port_t>()
            .iter()
            .flat_map(|port| port.addrs.as_slice::<ngx_stream_conf_addr_t>())
            .filter(|addr| addr.opt.ssl() != 0)
            .any(|addr| {
                addr.servers.as_slice::<*mut ngx_stream_core_srv_conf_t>().contains(&server)
            })
    }
}

/// In what other servers differ from this one, of the context, where it is the default server.
///
/// # Safety
/// As in [`Block::servers`].
#[cfg(nginx_1_25_5)]
unsafe fn differences(
    main: &ngx_stream_core_main_conf_t,
    server: *mut ngx_stream_core_srv_conf_t,
    context: Context,
) -> Differences {
    // SAFETY: as in listens_tls().
    unsafe {
        let Some(ports) = main.ports.as_ref() else { return Differences::default() };
        ports
            .as_slice::<ngx_stream_conf_port_t>()
            .iter()
            .flat_map(|port| port.addrs.as_slice::<ngx_stream_conf_addr_t>())
            .filter(|addr| addr.default_server == server)
            .flat_map(|addr| addr.servers.as_slice::<*mut ngx_stream_core_srv_conf_t>())
            .filter_map(|&other| Context::from_ptr(context_of((*(*other).ctx).srv_conf)))
            .fold(Differences::default(), |all, other| all.and(context.differences(other)))
    }
}

/// Before virtual servers came each socket has one server.
///
/// # Safety
/// None is needed.
#[cfg(not(nginx_1_25_5))]
unsafe fn differences(
    _: &ngx_stream_core_main_conf_t,
    _: *mut ngx_stream_core_srv_conf_t,
    _: Context,
) -> Differences {
    Differences::default()
}

/// The same before virtual servers came: each socket has one server.
#[cfg(not(nginx_1_25_5))]
unsafe fn listens_tls(
    main: &ngx_stream_core_main_conf_t,
    server: *mut ngx_stream_core_srv_conf_t,
) -> bool {
    // SAFETY: the caller's; the array holds what ngx_stream_core_listen() puts there.
    unsafe {
        let listens = main.listen.as_slice::<ngx_stream_listen_t>();
        listens.iter().any(|listen| listen.ssl() != 0 && listen.ctx == (*server).ctx)
    }
}

/// The context of a server, if it has one.
///
/// # Safety
/// `srv_conf` is that of a server, in the order of `ctx_index`.
#[cfg(nginx_1_25_5)]
unsafe fn context_of(srv_conf: *mut *mut c_void) -> *mut SSL_CTX {
    // SAFETY: the caller's.
    unsafe { ssl_of(srv_conf).as_ref() }.map_or(ptr::null_mut(), |ssl| ssl.ssl.ctx.cross())
}
