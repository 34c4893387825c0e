//! What nginx has in some builds only, or in modules that may not be loaded.

use core::ffi::{CStr, c_void};
use core::ptr::NonNull;

/// A function or a static of nginx's, or of a module that is loaded.
pub fn find(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: dlsym(3) with a string. nginx loads modules so that all see their symbols
    // (ngx_dlopen.h).
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}
