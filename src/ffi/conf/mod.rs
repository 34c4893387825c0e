//! nginx's configuration, while it is read.
//!
//! A [`Directive`] is an entry in a module's table ([`directive()`]), and is carried out with the
//! [`Conf`] that is being read; it can refuse ([`Refusal`]). Other entries only store a value
//! ([`slot`]). What directives need beyond their words is in `server_url`, `secret` and `memory`.

mod directive;
mod memory;
mod reading;
mod secret;
mod server_url;
mod values;

pub use directive::{Directive, Slot, directive, slot};
pub(super) use memory::MIN_ZONE_PAGES;
pub use reading::{BLOCK_CONF, Conf, DUPLICATE, Place, Refusal};
pub use server_url::{ServerUrl, Unresolved};
pub use values::{Flag, KeyVals, Msec, Num, Passwords, Protocols, Str};
