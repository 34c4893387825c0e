//! The blocks of nginx's configuration whose servers speak TLS.

use core::ptr::NonNull;
use std::vec::Vec;

use nginx_sys::{ngx_connection_t, ngx_cycle_t, ngx_module_t};
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
    /// Where its block begins.
    pub place: Place,
    /// Whether any of its listening sockets has `ssl`.
    pub listens_tls: bool,
    /// Whether any of them has `quic`.
    pub listens_quic: bool,
    /// In what other servers differ from it on the sockets whose default server it is.
    pub differences: Differences,
}
