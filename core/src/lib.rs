//! The pure part of nginx-ssl-session: protocol readers, decisions and state machines that know
//! neither nginx nor OpenSSL. Clock, randomness and I/O are passed in.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod breaker;
pub mod buffer;
pub mod cache_key;
pub mod certificate_names;
pub mod codec;
pub mod conversation;
pub mod crypto;
pub mod der;
pub mod envelope;
pub mod epoch;
pub mod hedge;
pub mod hello;
pub mod hint;
pub mod inflight;
pub mod key_ring;
mod line;
pub mod memcached;
pub mod nearness;
pub mod origin;
pub mod outcome;
pub mod parameter;
pub mod rendezvous;
pub mod resp;
pub mod said;
pub mod session_der;
pub mod slots;
pub mod stats;
pub mod stored;
pub mod target;
pub mod throttle;
pub mod ticket_keys;
pub mod topology;
pub mod unusable;
