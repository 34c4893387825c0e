//! nginx and OpenSSL, made safe: the only home of `unsafe`.
//!
//! Types of OpenSSL are those of `nginx-sys`, generated from the headers that nginx was built
//! with; the module links no OpenSSL of its own and so cannot meet a second one at run time.
//!
//! A worker is one process with one thread. nginx's thread pools run none of this code, so no
//! type here is, or has to be, `Send` or `Sync`; what is declared `Sync` says so beside it.
//!
//! Memory that a packet, a peer or a handshake asks for is asked for fallibly. What a
//! configuration needs once is not: there `nginx -t` ends.

#![allow(unsafe_code)]

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
pub mod http;
pub mod link;
pub mod log;
pub mod module;
mod quic;
pub mod resolver;
#[cfg(ngx_feature = "stream_ssl")]
pub mod shared_value;
pub mod stream;
mod symbol;
pub mod tls;
pub mod turn;
pub mod variable;
pub mod zone;
