//! The proof that an event of our own is being handled.

use core::cell::{RefCell, RefMut};
use core::marker::PhantomData;

/// The proof that nginx handles an event of ours: neither OpenSSL nor a handler of a client's
/// connection is on the stack. It is made by the trampolines of our own events only, and lent for
/// the length of one.
///
/// Where a worker has few free connections, `ngx_get_connection()` runs the read handlers of idle
/// clients (`ngx_drain_connections()` in ngx_connection.c), and these close their connections. If
/// OpenSSL is at work for such a client, what it works on is freed beneath it. So what may run
/// handlers of nginx's takes a `&mut Turn`, which no callback of OpenSSL's has; and what such a
/// handler may free is lent for as long as a `&Turn`, so that it cannot be kept over such a call.
///
/// | takes | because it |
/// |---|---|
/// | `&mut Turn` | may run handlers of nginx's: connect, resolve, go on with a handshake of QUIC |
/// | `&Turn` | moves bytes, closes, resumes: that is for our events to do, and nobody is freed by it |
pub struct Turn(PhantomData<*mut ()>);

impl Turn {
    /// Lends a turn to `f`.
    ///
    /// # Safety
    /// nginx's event loop, or the exit of a worker, is what calls: neither OpenSSL nor a handler of
    /// a client's connection is on the stack, and no other turn is lent.
    pub(super) unsafe fn lend<R>(f: impl FnOnce(&mut Turn) -> R) -> R {
        f(&mut Turn(PhantomData))
    }
}

/// What is used in our own events only. It is not in use while handlers of nginx's run: it is lent
/// for as long as a `&Turn`.
pub struct Outside<T>(RefCell<T>);

impl<T> Outside<T> {
    /// Keeps a value.
    pub const fn new(value: T) -> Self {
        Outside(RefCell::new(value))
    }

    /// The value, unless it is in use.
    pub fn get<'a>(&'a self, _: &'a Turn) -> Option<RefMut<'a, T>> {
        self.0.try_borrow_mut().ok()
    }
}
