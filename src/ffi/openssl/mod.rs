//! OpenSSL, as the headers have it that nginx is built with. Nothing else names openssl-sys.
//!
//! What is one object of OpenSSL's to C is one type here ([`Session`], and [`SessionRef`] where it is lent),
//! with methods for what OpenSSL tells of it. What has rules of its own is called by its C name, where it is
//! used.

mod errors;
mod handles;

#[cfg(nginx_early_servername)]
use core::ffi::{c_int, c_void};

pub use openssl_sys::*;

pub use self::errors::{clear_errors, unheard};
pub(in crate::ffi) use self::handles::ask;
pub use self::handles::{
    Algorithm, AlgorithmRef, Answer, Bio, BioMethod, BioRef, Certificate, CertificateRef, Cipher,
    CipherRef, Ctx, CtxRef, Key, NameRef, Session, SessionRef, Ssl, SslRef, Stack, Store, StoreRef,
    Suite, Time, lent,
};
pub use super::shim::*;

/// A pointer to an object of OpenSSL's: nginx-sys has types of its own for these.
pub trait Cross {
    /// The pointer in the other family of types.
    type Other;

    /// Takes it over.
    fn cross(self) -> Self::Other;
}

macro_rules! cross {
    ($($name:ident)*) => { $(
        impl Cross for *mut nginx_sys::$name {
            type Other = *mut $name;

            fn cross(self) -> *mut $name {
                self.cast()
            }
        }

        impl Cross for *mut $name {
            type Other = *mut nginx_sys::$name;

            fn cross(self) -> *mut nginx_sys::$name {
                self.cast()
            }
        }
    )* };
}

cross!(SSL SSL_CTX SSL_SESSION);

/// A callback for the ClientHello (SSL_CTX_set_client_hello_cb(3)).
#[cfg(nginx_early_servername)]
type HelloCallback = unsafe extern "C" fn(*mut SSL, *mut c_int, *mut c_void) -> c_int;

/// nginx's own callback for the ClientHello, itself: what is put back into a context must not lie in this
/// module, which may go first.
#[cfg(nginx_early_servername)]
pub fn client_hello_callback() -> HelloCallback {
    type Theirs = unsafe extern "C" fn(*mut nginx_sys::SSL, *mut c_int, *mut c_void) -> c_int;
    // SAFETY: the two types differ in what nginx-sys and openssl-sys call the same object.
    unsafe {
        core::mem::transmute::<Theirs, HelloCallback>(nginx_sys::ngx_ssl_client_hello_callback)
    }
}
