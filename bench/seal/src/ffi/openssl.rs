//! What the module's own file of this name passes on, as far as it is needed here.

#[path = "../../../../src/ffi/openssl/errors.rs"]
mod errors;
#[path = "../../../../src/ffi/openssl/handles.rs"]
mod handles;

pub use openssl_sys::*;

pub use self::errors::{clear_errors, unheard};
pub(in crate::ffi) use self::handles::ask;
pub use self::handles::{Algorithm, Answer, Cipher, CipherRef};
