//! The filter between the socket and OpenSSL: a BIO through which a handshake is suspended.

use core::cell::Ref;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use foreign_types::{ForeignType, ForeignTypeRef};
use nginx_sys::ngx_set_errno;
use session_core::codec::OutOfMemory;

use super::attached::Attached;
use super::connection::Connection;
use super::handler::{Handler, Read};
use super::socket::Sink;
use crate::ffi::openssl::{
    BIO, BIO_CTRL_DUP, BIO_CTRL_PENDING, BIO_CTRL_POP, BIO_CTRL_PUSH, BIO_METHOD, BIO_TYPE_FILTER,
    BIO_clear_retry_flags, BIO_copy_retry, BIO_ctrl, BIO_get_data, BIO_meth_new,
    BIO_meth_set_create__fixed_rust, BIO_meth_set_ctrl__fixed_rust,
    BIO_meth_set_destroy__fixed_rust, BIO_meth_set_read__fixed_rust,
    BIO_meth_set_write__fixed_rust, BIO_new, BIO_read, BIO_set_data, BIO_set_init,
    BIO_set_retry_read, BIO_write, Bio, BioMethod, BioRef, SSL_set0_rbio, SslRef, ask,
};

ask! { BioRef:
    fn data() -> *mut c_void = BIO_get_data;
    fn clear_retry() -> () = BIO_clear_retry_flags;
    fn set_retry_read() -> () = BIO_set_retry_read;
}

impl SslRef {
    /// Has it read from another BIO.
    fn set_rbio(&self, bio: Bio) {
        // SAFETY: SSL_set0_rbio() takes the reference, and drops the one to what was read from.
        unsafe { SSL_set0_rbio(self.as_ptr(), bio.into_ptr()) };
    }
}

impl Connection {
    /// Puts the filter in front of the socket, for reading. OpenSSL then asks [`Handler::read`],
    /// until [`Handler::is_through`].
    pub fn suspendable<H: Handler>(&self, attached: &Attached<H>) -> Result<(), OutOfMemory> {
        let method = method::<H>().ok_or(OutOfMemory)?;
        let Some(socket) = self.ssl().rbio().filter(|_| !attached.has_filter()) else {
            return Err(OutOfMemory);
        };
        // SAFETY: what is made is ours; Attached::drop() takes the data out.
        let filter = unsafe {
            let filter = NonNull::new(BIO_new(method.as_ptr())).ok_or(OutOfMemory)?;
            BIO_set_data(filter.as_ptr(), (&raw const *attached).cast_mut().cast());
            Bio::from_ptr(filter.as_ptr())
        };
        *attached.socket.try_borrow_mut().map_err(|_| OutOfMemory)? = Some(socket.to_owned());
        attached.filter.set(filter.as_ptr());
        self.ssl().set_rbio(filter);
        Ok(())
    }
}

impl<H: Handler> Attached<H> {
    /// Takes the filter out. Never from within its own read.
    pub(super) fn remove_filter(&self) {
        let connection = self.connection();
        let is_read = connection.ssl().rbio().is_some_and(|bio| bio.as_ptr() == self.filter.get());
        let socket = self.socket.try_borrow().ok().and_then(|socket| socket.clone());
        if let Some(socket) = socket.filter(|_| is_read) {
            // That destroys the filter, and with it its reference to the socket (bio_destroy()).
            connection.ssl().set_rbio(socket);
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
    let name = c"nginx SSL session fetch".as_ptr();
    // SAFETY: plain registrations with OpenSSL, by the only thread; what is made is ours.
    let made = unsafe {
        let made = NonNull::new(BIO_meth_new(BIO_TYPE_FILTER, name))?;
        let (method, made) = (made.as_ptr(), BioMethod::from_ptr(made.as_ptr()));
        if BIO_meth_set_read__fixed_rust(method, Some(bio_read::<H>)) != 1
            || BIO_meth_set_write__fixed_rust(method, Some(bio_write::<H>)) != 1
            || BIO_meth_set_ctrl__fixed_rust(method, Some(bio_ctrl::<H>)) != 1
            || BIO_meth_set_create__fixed_rust(method, Some(bio_create)) != 1
            || BIO_meth_set_destroy__fixed_rust(method, Some(bio_destroy::<H>)) != 1
        {
            return None;
        }
        made
    };
    // It is never freed, since BIOs refer to it.
    METHOD.store(made.into_ptr(), Ordering::Relaxed);
    NonNull::new(METHOD.load(Ordering::Relaxed))
}

/// The state of the connection that a filter of [`Connection::suspendable`] belongs to.
fn attached_to<H: Handler>(filter: &BioRef) -> Option<&Attached<H>> {
    // SAFETY: the data is what suspendable() set; Attached::drop() takes it out.
    unsafe { filter.data().cast::<Attached<H>>().as_ref() }
}

/// The same, and the socket.
fn parts<H: Handler>(filter: &BioRef) -> Option<(&Attached<H>, Ref<'_, Bio>)> {
    let attached = attached_to::<H>(filter)?;
    let socket = Ref::filter_map(attached.socket.try_borrow().ok()?, Option::as_ref).ok()?;
    Some((attached, socket))
}

unsafe extern "C" fn bio_read<H: Handler>(bio: *mut BIO, to: *mut c_char, len: c_int) -> c_int {
    // SAFETY: BIO_meth_set_read(3): a filter of ours.
    let filter = unsafe { BioRef::from_ptr(bio) };
    filter.clear_retry();
    let Some((attached, socket)) = parts::<H>(filter) else { return -1 };
    let mut sink = Sink { to, room: usize::try_from(len).unwrap_or(0) };
    match attached.handler().read(attached, &socket, &mut sink) {
        Read::Data(n) => c_int::try_from(n).unwrap_or(-1),
        Read::Ended(ending) => {
            // nginx logs it (ngx_ssl_handshake()).
            ngx_set_errno(ending.errno);
            ending.result
        }
        Read::Suspended => {
            filter.set_retry_read();
            -1
        }
        Read::Socket => {
            // SAFETY: BIO_meth_set_read(3): there is room for `len` bytes.
            let n = unsafe { BIO_read(socket.as_ptr(), to.cast(), len) };
            copy_retry(filter, &socket);
            n
        }
    }
}

unsafe extern "C" fn bio_write<H: Handler>(
    bio: *mut BIO,
    from: *const c_char,
    len: c_int,
) -> c_int {
    // SAFETY: BIO_meth_set_write(3): a filter of ours. OpenSSL writes through a BIO of its own; this is
    // for others.
    let filter = unsafe { BioRef::from_ptr(bio) };
    let Some((_, socket)) = parts::<H>(filter) else { return -1 };
    // SAFETY: BIO_meth_set_write(3): there are `len` bytes.
    let n = unsafe { BIO_write(socket.as_ptr(), from.cast(), len) };
    copy_retry(filter, &socket);
    n
}

unsafe extern "C" fn bio_ctrl<H: Handler>(
    bio: *mut BIO,
    command: c_int,
    number: c_long,
    data: *mut c_void,
) -> c_long {
    // SAFETY: BIO_meth_set_ctrl(3): a filter of ours.
    let filter = unsafe { BioRef::from_ptr(bio) };
    let Some((attached, socket)) = parts::<H>(filter) else { return 0 };
    let held = match command {
        // The filter is in no chain, so nothing about chains is passed on.
        BIO_CTRL_PUSH | BIO_CTRL_POP | BIO_CTRL_DUP => return 0,
        BIO_CTRL_PENDING => attached.handler().pending(attached),
        _ => 0,
    };
    match held {
        // SAFETY: the socket is valid, and the rest the caller's.
        0 => unsafe { BIO_ctrl(socket.as_ptr(), command, number, data) },
        n => c_long::try_from(n).unwrap_or(c_long::MAX),
    }
}

unsafe extern "C" fn bio_create(bio: *mut BIO) -> c_int {
    // SAFETY: BIO_meth_set_create(3).
    unsafe { BIO_set_init(bio, 1) };
    1
}

unsafe extern "C" fn bio_destroy<H: Handler>(bio: *mut BIO) -> c_int {
    // SAFETY: BIO_meth_set_destroy(3): a filter of ours.
    let filter = unsafe { BioRef::from_ptr(bio) };
    if let Some(attached) = attached_to::<H>(filter) {
        attached.filter.set(ptr::null_mut());
        // It is borrowed within the filter's other functions only.
        drop(attached.socket.try_borrow_mut().ok().and_then(|mut socket| socket.take()));
    }
    1
}

/// Sets the socket's "ask again" flags in the filter, for whoever asked the filter.
fn copy_retry(filter: &BioRef, socket: &BioRef) {
    // SAFETY: both are valid.
    unsafe { BIO_copy_retry(filter.as_ptr(), socket.as_ptr()) };
}
