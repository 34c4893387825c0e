//! nginx and OpenSSL, made safe: the only home of `unsafe`.
//!
//! Types are those of `nginx-sys` and, by way of `openssl`, of `openssl-sys`, both made from the headers
//! that nginx was built with. The module links no OpenSSL and so cannot meet a second one at run time.
//!
//! A worker is one process with one thread. nginx's thread pools run none of this code, so no
//! type here is, or has to be, `Send` or `Sync`; what is declared `Sync` says so beside it.
//!
//! Memory that a packet, a peer or a handshake asks for is asked for fallibly. What a
//! configuration needs once is not: there `nginx -t` ends.

#![allow(unsafe_code)]

use nginx_sys::ngx_str_t;

pub mod address;
pub mod block;
mod capture;
pub mod client;
pub mod clock;
pub mod conf;
pub mod content;
pub mod counters;
pub mod crypto;
pub mod event;
pub mod file;
pub mod http;
mod layout;
pub mod link;
pub mod log;
pub mod module;
mod openssl;
mod pool;
pub mod proof;
mod quic;
pub mod resolver;
#[cfg(ngx_feature = "stream_ssl")]
pub mod shared_value;
mod shim;
mod slab;
pub mod stream;
mod symbol;
pub mod tls;
pub mod turn;
pub mod variable;
pub mod version;
pub mod zone;

/// A text for nginx, which only reads it.
const fn text(text: &[u8]) -> ngx_str_t {
    ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() }
}
