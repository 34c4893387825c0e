//! What nginx and OpenSSL have in some builds only, or is in modules that may not be loaded.

use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::{self, NonNull};
use std::sync::OnceLock;

/// A function of nginx's, or of a module that is loaded.
///
/// # Safety
/// `F` is a pointer to it, of the type that the headers give it (shim.h).
pub unsafe fn function<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(mem::size_of::<F>() == mem::size_of::<NonNull<c_void>>()) };
    // SAFETY: the caller's.
    find(name).map(|at| unsafe { mem::transmute_copy::<NonNull<c_void>, F>(&at) })
}

/// A function or a static of nginx's, of a library's, or of a module that is loaded.
pub fn find(name: &CStr) -> Option<NonNull<c_void>> {
    static PROGRAM: OnceLock<usize> = OnceLock::new();
    // SAFETY: dlopen(3) without a name gives a handle for the program and for all that was loaded
    // for all to see, as nginx loads modules (ngx_dlopen.h). RTLD_DEFAULT would do as well, and keep
    // a module loaded in which something was found, as long as this one is.
    let program = PROGRAM
        .get_or_init(|| unsafe { libc::dlopen(ptr::null(), libc::RTLD_LAZY).expose_provenance() });
    // SAFETY: dlsym(3) with a handle that is never closed.
    NonNull::new(unsafe { libc::dlsym(ptr::with_exposed_provenance_mut(*program), name.as_ptr()) })
}
