//! Which nginx and OpenSSL there are.

use core::ffi::{CStr, c_char};
use std::borrow::Cow;

use nginx_sys::NGINX_VERSION;

use super::shim;

/// The version of nginx: it loads no module that was built for another one.
pub fn nginx() -> Cow<'static, str> {
    NGINX_VERSION.to_string_lossy()
}

/// The version of the OpenSSL that runs.
pub fn openssl() -> Cow<'static, str> {
    // SAFETY: a string that OpenSSL has for as long as it is loaded.
    unsafe { text(shim::openssl_running()) }
}

/// The version of the OpenSSL whose headers the module was built with.
pub fn openssl_built() -> Cow<'static, str> {
    // SAFETY: a string of this module.
    unsafe { text(shim::openssl_built()) }
}

/// # Safety
/// It is a string that stays.
unsafe fn text(text: *const c_char) -> Cow<'static, str> {
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}
