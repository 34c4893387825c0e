//! The blocks of nginx's configuration whose servers speak TLS.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use std::collections::HashMap;
use std::string::String;
use std::vec::Vec;

use nginx_sys::{
    ngx_connection_t, ngx_cycle_t, ngx_hash_combined_t, ngx_hash_find_combined, ngx_hash_key,
    ngx_module_t,
};
use session_core::origin::Verification;

use super::conf::{Conf, Place, Refusal};
use super::openssl::SSL_CTX;
use super::resolver::Resolver;
#[allow(unused_imports, reason = "for the documentation")]
use super::tls::FindServers;
use super::tls::{Context, Differences};
use super::variable::Variable;

/// `http{}` or `stream{}`.
pub trait Block: 'static {
    /// The main configuration of a module of the block; none without the block.
    ///
    /// # Safety
    /// The block of the cycle is being read or was read, and the module keeps a `T`.
    unsafe fn main_conf<T>(cycle: &ngx_cycle_t, module: &ngx_module_t) -> Option<NonNull<T>>;

    /// The servers that have a TLS context, in the order of the configuration. To be called when the
    /// block has been read.
    fn servers(cf: &Conf) -> Vec<Server>;

    /// Shows the contexts of the servers that a client may come to.
    ///
    /// # Safety
    /// As [`FindServers`] has it.
    unsafe fn find_servers(
        c: NonNull<ngx_connection_t>,
        name: Option<&[u8]>,
        found: &mut dyn FnMut(*mut SSL_CTX),
    );

    /// The `resolver` of the block, if there is one. To be called when it has been read.
    fn resolver(cf: &mut Conf) -> Option<Resolver>;

    /// Makes a variable known to nginx.
    fn add_variable<V: Variable>(cf: &mut Conf) -> Result<(), Refusal>;
}

/// A server that speaks TLS.
pub struct Server {
    /// Its context.
    pub context: Context,
    /// How it verifies clients.
    pub verification: Verification,
    /// Whether it has `ssl_session_ticket_key`.
    pub has_ticket_key_files: bool,
    /// Its first `server_name`; empty without one.
    pub name: String,
    /// Where its block begins.
    pub place: Place,
    /// Whether any of its listening sockets has `ssl`.
    pub listens_tls: bool,
    /// Whether any of them has `quic`.
    pub listens_quic: bool,
    /// In what other servers differ from it on the sockets whose default server it is.
    pub differences: Differences,
}

impl Server {
    /// Its name as it is shown after the word "server", if it has one.
    pub fn shown_name(&self) -> String {
        if self.name.is_empty() { String::new() } else { std::format!(" \"{}\"", self.name) }
    }
}

/// Tells servers apart.
pub(super) type Id = *const c_void;

/// A socket that servers listen on.
pub(super) struct Socket {
    /// The default server.
    pub(super) default: Id,
    /// All of them.
    pub(super) servers: Vec<Id>,
    /// Whether it has `ssl`.
    pub(super) is_tls: bool,
    /// Whether it has `quic`.
    pub(super) is_quic: bool,
}

/// A server, without its sockets.
pub(super) struct Configured {
    pub(super) id: Id,
    pub(super) context: Context,
    pub(super) verification: Verification,
    pub(super) has_ticket_key_files: bool,
    pub(super) name: String,
    pub(super) place: Place,
}

/// Finds the sockets of servers.
pub(super) fn listening(servers: Vec<Configured>, sockets: &[Socket]) -> Vec<Server> {
    let contexts: HashMap<Id, Context> =
        servers.iter().map(|server| (server.id, server.context)).collect();
    let with_sockets = |server| {
        let Configured { id, context, verification, has_ticket_key_files, name, place } = server;
        let own = || sockets.iter().filter(|socket| socket.servers.contains(&id));
        Server {
            context,
            verification,
            has_ticket_key_files,
            name,
            place,
            listens_tls: own().any(|socket| socket.is_tls),
            listens_quic: own().any(|socket| socket.is_quic),
            differences: sockets
                .iter()
                .filter(|socket| socket.default == id)
                .flat_map(|socket| &socket.servers)
                .filter_map(|other| contexts.get(other))
                .map(|other| context.differences(*other))
                .fold(Differences::default(), Differences::and),
        }
    };
    servers.into_iter().map(with_sockets).collect()
}

/// The server of a name, unless it is one of a regular expression's or of none; null then.
///
/// # Safety
/// The names are those of an address of the configuration, and lead to servers of that type.
pub(super) unsafe fn server_named<S>(names: &ngx_hash_combined_t, name: &[u8]) -> *mut S {
    let at = name.as_ptr().cast_mut();
    // SAFETY: the caller's; the name and the hash are only read.
    unsafe {
        let key = ngx_hash_key(at, name.len());
        ngx_hash_find_combined(ptr::from_ref(names).cast_mut(), key, at, name.len()).cast()
    }
}
