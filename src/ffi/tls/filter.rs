//! The filter between the socket and OpenSSL: a BIO through which a handshake is suspended.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use nginx_sys::ngx_set_errno;
use session_core::codec::OutOfMemory;

use super::attached::Attached;
use super::connection::Connection;
use super::handler::{Handler, Read};
use super::socket::{Sink, Socket};
use crate::ffi::openssl::{
    BIO, BIO_CTRL_DUP, BIO_CTRL_PENDING, BIO_CTRL_POP, BIO_CTRL_PUSH, BIO_FLAGS_RWS,
    BIO_FLAGS_SHOULD_RETRY, BIO_METHOD, BIO_TYPE_FILTER, BIO_clear_retry_flags, BIO_ctrl, BIO_free,
    BIO_get_data, BIO_get_retry_reason, BIO_meth_new, BIO_meth_set_create__fixed_rust,
    BIO_meth_set_ctrl__fixed_rust, BIO_meth_set_destroy__fixed_rust, BIO_meth_set_read__fixed_rust,
    BIO_meth_set_write__fixed_rust, BIO_new, BIO_read, BIO_set_data, BIO_set_flags, BIO_set_init,
    BIO_set_retry_read, BIO_set_retry_reason, BIO_test_flags, BIO_up_ref, BIO_write, SSL_get_rbio,
    SSL_set0_rbio,
};

impl Connection {
    /// Puts the filter in front of the socket, for reading. OpenSSL then asks [`Handler::read`],
    /// until [`Handler::is_through`].
    pub fn suspendable<H: Handler>(&self, attached: &Attached<H>) -> Result<(), OutOfMemory> {
        let method = method::<H>().ok_or(OutOfMemory)?;
        // SAFETY: SSL_get_rbio() lends the socket's BIO; the filter gets a reference of its own.
        // SSL_set0_rbio() takes the filter and drops the reference that the SSL object had.
        unsafe {
            let socket = SSL_get_rbio(self.ssl.as_ptr());
            if socket.is_null() || !attached.filter.get().is_null() {
                return Err(OutOfMemory);
            }
            let filter = BIO_new(method.as_ptr());
            if filter.is_null() {
                return Err(OutOfMemory);
            }
            BIO_up_ref(socket);
            BIO_set_data(filter, (&raw const *attached).cast_mut().cast());
            attached.socket.set(socket);
            attached.filter.set(filter);
            SSL_set0_rbio(self.ssl.as_ptr(), filter);
        }
        Ok(())
    }
}

impl<H: Handler> Attached<H> {
    /// Takes the filter out. Never from within its own read.
    pub(super) fn remove_filter(&self) {
        let ssl = self.connection().ssl.as_ptr();
        // SAFETY: SSL_set0_rbio() takes the reference that is counted up for it and drops the
        // filter, whose destruction drops the filter's own (bio_destroy()).
        unsafe {
            let socket = self.socket.get();
            if SSL_get_rbio(ssl) == self.filter.get() && !socket.is_null() {
                BIO_up_ref(socket);
                SSL_set0_rbio(ssl, socket);
            }
        }
    }
}

static METHOD: AtomicPtr<BIO_METHOD> = AtomicPtr::new(ptr::null_mut());

/// OpenSSL's table of the filter's functions, of which a process has one. Hooking a context makes it,
/// so that callbacks can count on it.
#[inline]
pub(super) fn method<H: Handler>() -> Option<NonNull<BIO_METHOD>> {
    NonNull::new(METHOD.load(Ordering::Relaxed)).or_else(make_method::<H>)
}

#[cold]
fn make_method<H: Handler>() -> Option<NonNull<BIO_METHOD>> {
    // SAFETY: plain registrations with OpenSSL, by the only thread; the method is never freed, since
    // BIOs refer to it.
    unsafe {
        let made =
            NonNull::new(BIO_meth_new(BIO_TYPE_FILTER, c"nginx SSL session fetch".as_ptr()))?;
        let method = made.as_ptr();
        if BIO_meth_set_read__fixed_rust(method, Some(bio_read::<H>)) != 1
            || BIO_meth_set_write__fixed_rust(method, Some(bio_write::<H>)) != 1
            || BIO_meth_set_ctrl__fixed_rust(method, Some(bio_ctrl::<H>)) != 1
            || BIO_meth_set_create__fixed_rust(method, Some(bio_create)) != 1
            || BIO_meth_set_destroy__fixed_rust(method, Some(bio_destroy::<H>)) != 1
        {
            return None;
        }
        METHOD.store(method, Ordering::Relaxed);
        Some(made)
    }
}

/// The state of the connection that a filter belongs to.
///
/// # Safety
/// `bio` is a filter of [`Connection::suspendable`].
unsafe fn attached_to<'a, H: Handler>(bio: *mut BIO) -> Option<&'a Attached<H>> {
    // SAFETY: the data is what suspendable() set; Attached::drop() takes it out.
    unsafe { BIO_get_data(bio).cast::<Attached<H>>().as_ref() }
}

unsafe extern "C" fn bio_read<H: Handler>(bio: *mut BIO, to: *mut c_char, len: c_int) -> c_int {
    // SAFETY: BIO_meth_set_read(3): a filter of ours and room for `len` bytes.
    unsafe {
        BIO_clear_retry_flags(bio);
        let Some(attached) = attached_to::<H>(bio) else { return -1 };
        let Some(socket) = NonNull::new(attached.socket.get()) else { return -1 };
        let mut sink = Sink { to, room: usize::try_from(len).unwrap_or(0) };
        match attached.handler().read(attached, &Socket(socket), &mut sink) {
            Read::Data(n) => c_int::try_from(n).unwrap_or(-1),
            Read::Ended(ending) => {
                // nginx logs it (ngx_ssl_handshake()).
                ngx_set_errno(ending.errno);
                ending.result
            }
            Read::Suspended => {
                BIO_set_retry_read(bio);
                -1
            }
            Read::Socket => {
                let n = BIO_read(socket.as_ptr(), to.cast(), len);
                copy_retry(bio, socket.as_ptr());
                n
            }
        }
    }
}

unsafe extern "C" fn bio_write<H: Handler>(
    bio: *mut BIO,
    from: *const c_char,
    len: c_int,
) -> c_int {
    // SAFETY: BIO_meth_set_write(3). OpenSSL writes through a BIO of its own; this is for others.
    unsafe {
        let Some(attached) = attached_to::<H>(bio) else { return -1 };
        let n = BIO_write(attached.socket.get(), from.cast(), len);
        copy_retry(bio, attached.socket.get());
        n
    }
}

unsafe extern "C" fn bio_ctrl<H: Handler>(
    bio: *mut BIO,
    command: c_int,
    number: c_long,
    data: *mut c_void,
) -> c_long {
    // SAFETY: BIO_meth_set_ctrl(3). The filter is in no chain, so nothing about chains is passed
    // on.
    unsafe {
        let Some(attached) = attached_to::<H>(bio) else { return 0 };
        match command {
            BIO_CTRL_PUSH | BIO_CTRL_POP | BIO_CTRL_DUP => 0,
            BIO_CTRL_PENDING => match attached.handler().pending(attached) {
                0 => BIO_ctrl(attached.socket.get(), command, number, data),
                n => c_long::try_from(n).unwrap_or(c_long::MAX),
            },
            _ => BIO_ctrl(attached.socket.get(), command, number, data),
        }
    }
}

unsafe extern "C" fn bio_create(bio: *mut BIO) -> c_int {
    // SAFETY: BIO_meth_set_create(3).
    unsafe { BIO_set_init(bio, 1) };
    1
}

unsafe extern "C" fn bio_destroy<H: Handler>(bio: *mut BIO) -> c_int {
    // SAFETY: BIO_meth_set_destroy(3); the reference to the socket is the filter's own.
    unsafe {
        if let Some(attached) = attached_to::<H>(bio) {
            attached.filter.set(ptr::null_mut());
            BIO_free(attached.socket.replace(ptr::null_mut()));
        }
    }
    1
}

/// Sets the socket's "ask again" flags in the filter, for whoever asked the filter.
unsafe fn copy_retry(filter: *mut BIO, socket: *mut BIO) {
    const FLAGS: c_int = BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY;
    // SAFETY: BIO_copy_next_retry() for a BIO that is not chained.
    unsafe {
        BIO_clear_retry_flags(filter);
        BIO_set_flags(filter, BIO_test_flags(socket, FLAGS));
        BIO_set_retry_reason(filter, BIO_get_retry_reason(socket));
    }
}
