//! `ssl_session_backend NAME { ... }`

use core::ffi::CStr;
use core::mem;
use std::boxed::Box;
use std::rc::Rc;
use std::string::ToString;
use std::vec::Vec;

use nginx_sys::{NGX_CONF_TAKE1, ngx_command_t};
use session_core::cache_key::MAX_PREFIX;
use session_core::resp::Redis;

use crate::ffi::conf::{
    Conf, DUPLICATE, Directive, Msec, Num, Refusal, Slot, Str, directive, slot,
};
use crate::ffi::link::Address;
use crate::ffi::module::{BLOCK_CONF, Commands};
use crate::handshake::MAX_SESSION;
use crate::net::peer::{Limits, Peer};

/// The port of Redis where none is given.
pub const REDIS_PORT: u16 = 6379;
/// What cache keys begin with where nothing else is said.
pub const KEY_PREFIX: &[u8] = b"tls:";

/// Default of `connect_timeout`, in milliseconds.
const CONNECT_TIMEOUT: u64 = 100;
/// Default of `fetch_timeout`, in milliseconds.
const FETCH_TIMEOUT: u64 = 50;
/// Default of `store_timeout`, in milliseconds.
const STORE_TIMEOUT: u64 = 1000;
/// Default of `queue`.
const QUEUE: usize = 4096;

/// The directives of the block.
pub static BACKEND_COMMANDS: Commands<[ngx_command_t; 7]> = Commands::new([
    directive::<Server>(BLOCK_CONF | NGX_CONF_TAKE1),
    value(c"key_prefix", Slot::Str, mem::offset_of!(Backend, key_prefix)),
    value(c"connect_timeout", Slot::Msec, mem::offset_of!(Backend, connect_timeout)),
    value(c"fetch_timeout", Slot::Msec, mem::offset_of!(Backend, fetch_timeout)),
    value(c"store_timeout", Slot::Msec, mem::offset_of!(Backend, store_timeout)),
    value(c"queue", Slot::Num, mem::offset_of!(Backend, queue)),
    ngx_command_t::empty(),
]);

const fn value(name: &'static CStr, kind: Slot, offset: usize) -> ngx_command_t {
    slot(name, BLOCK_CONF | NGX_CONF_TAKE1, kind, offset)
}

/// What the block says. nginx writes to the fields that are in the table above.
#[repr(C)]
pub struct Backend {
    key_prefix: Str,
    connect_timeout: Msec,
    fetch_timeout: Msec,
    store_timeout: Msec,
    queue: Num,
    /// The addresses of the server's name.
    addresses: Vec<Address>,
}

struct Server;

impl Directive for Server {
    type Conf = Backend;
    const NAME: &'static CStr = c"server";

    fn set(cf: &mut Conf, backend: &mut Backend) -> Result<(), Refusal> {
        if !backend.addresses.is_empty() {
            return Err(DUPLICATE);
        }
        let address = cf.words().nth(1).unwrap_or_default().to_string();
        backend.addresses = cf.addresses(&address, REDIS_PORT)?;
        Ok(())
    }
}

impl Backend {
    /// Reads the block and checks it.
    pub fn read(cf: &mut Conf, name: &str) -> Result<Self, Refusal> {
        let mut backend = Backend {
            key_prefix: Str::UNSET,
            connect_timeout: Msec::UNSET,
            fetch_timeout: Msec::UNSET,
            store_timeout: Msec::UNSET,
            queue: Num::UNSET,
            addresses: Vec::new(),
        };
        cf.block(crate::backend_module(), &mut backend)?;

        if backend.addresses.is_empty() {
            return Err(cf.refuse(format_args!("no \"server\" in ssl_session_backend \"{name}\"")));
        }
        let limits = backend.limits();
        let zero = [
            ("connect_timeout", limits.connect_timeout),
            ("fetch_timeout", limits.fetch_timeout),
            ("store_timeout", limits.store_timeout),
            ("queue", limits.queue as u64),
        ];
        if let Some((directive, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return Err(cf.refuse(format_args!(
                "\"{directive}\" must not be 0 in ssl_session_backend \"{name}\""
            )));
        }
        if backend.prefix().len() > MAX_PREFIX {
            return Err(cf.refuse(format_args!(
                "\"key_prefix\" is longer than {MAX_PREFIX} bytes in ssl_session_backend \"{name}\""
            )));
        }
        Ok(backend)
    }

    /// The connection to the server, and what cache keys begin with.
    pub fn into_peer(self) -> (Rc<Peer>, Vec<u8>) {
        let prefix = self.prefix().to_vec();
        let limits = self.limits();
        (Peer::new(Box::new(Redis { database: 0 }), self.addresses, limits), prefix)
    }

    fn prefix(&self) -> &[u8] {
        self.key_prefix.get().unwrap_or(KEY_PREFIX)
    }

    fn limits(&self) -> Limits {
        Limits {
            connect_timeout: self.connect_timeout.or(CONNECT_TIMEOUT),
            fetch_timeout: self.fetch_timeout.or(FETCH_TIMEOUT),
            store_timeout: self.store_timeout.or(STORE_TIMEOUT),
            queue: self.queue.or(QUEUE),
            max_value: MAX_SESSION,
        }
    }
}

/// The limits of a server that is given without a block.
pub fn default_limits() -> Limits {
    Limits {
        connect_timeout: CONNECT_TIMEOUT,
        fetch_timeout: FETCH_TIMEOUT,
        store_timeout: STORE_TIMEOUT,
        queue: QUEUE,
        max_value: MAX_SESSION,
    }
}
