//! What is kept for one connection, in its pool.

use core::cell::{Cell, OnceCell, RefCell};
use core::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_sys::{ngx_connection_t, ngx_errno, ngx_posted_events};
use session_core::codec::OutOfMemory;
use session_core::slots::{Slots, Token};

use super::connection::Connection;
use super::index::Indexes;
use crate::ffi::log::Log;
use crate::ffi::openssl::{BIO, BIO_set_data, Bio, SSL, SSL_set_ex_data, SslRef};
use crate::ffi::turn::Turn;
use crate::ffi::{pool, quic, shim};

/// Tells handshakes that wait from others that have tokens.
#[derive(Debug)]
pub enum Handshake {}

/// Refers to a handshake that waits.
pub type HandshakeToken = Token<Handshake>;

/// Keeps a state for each connection, as every handler does.
pub trait Keeper: Sized + 'static {
    /// What is kept for one connection.
    type State: 'static;

    /// The states that wait for something.
    fn waiting(&self) -> &Waiters<Self>;
}

/// A state in its place in a connection's pool.
pub struct Attached<H: Keeper> {
    state: H::State,
    handler: Rc<H>,
    c: NonNull<ngx_connection_t>,
    ssl: NonNull<SSL>,
    /// The socket, while there is a filter.
    pub(super) socket: RefCell<Option<Bio>>,
    /// The filter, while there is one; it belongs to the SSL object.
    pub(super) filter: Cell<*mut BIO>,
    token: Cell<Option<HandshakeToken>>,
    /// Goes on with a handshake of QUIC.
    wake: OnceCell<Rc<quic::Wake>>,
}

impl<H: Keeper> Attached<H> {
    /// What was attached.
    pub fn state(&self) -> &H::State {
        &self.state
    }

    /// The connection's log.
    pub fn log(&self) -> &Log {
        // SAFETY: the connection lives as long as its pool, of which this is a part.
        unsafe { Log::from_raw((*self.c.as_ptr()).log) }
    }

    /// The handler it was attached for.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Whether there is a filter.
    pub(super) fn has_filter(&self) -> bool {
        !self.filter.get().is_null()
    }

    /// The connection. Only for use while a handshake is under way: the SSL object of a connection
    /// is freed before what is attached to it.
    pub fn connection(&self) -> Connection {
        Connection { c: self.c, ssl: self.ssl }
    }

    /// The token by which [`Waiters::get`] finds this; good until [`Attached::forget`] or the
    /// end of the connection.
    pub fn token(&self) -> Result<HandshakeToken, OutOfMemory> {
        if let Some(token) = self.token.get() {
            return Ok(token);
        }
        let mut slots = self.handler.waiting().0.try_borrow_mut().map_err(|_| OutOfMemory)?;
        let token = slots.insert(NonNull::from(self))?;
        self.token.set(Some(token));
        Ok(token)
    }

    /// Makes the token stale.
    pub fn forget(&self) {
        if let Some(token) = self.token.take() {
            if let Ok(mut slots) = self.handler.waiting().0.try_borrow_mut() {
                slots.remove(token);
            }
        }
    }

    /// Whether the client has closed its connection, so that an answer is of no use.
    pub fn has_left(&self) -> bool {
        if self.connection().is_quic() {
            return false;
        }
        let mut byte = 0_u8;
        // SAFETY: the connection is valid; recv(2) writes one byte at most.
        unsafe {
            let c = self.c.as_ptr();
            if shim::is_pending_eof((*c).read) {
                return true;
            }
            match libc::recv((*c).fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK) {
                0 => true,
                n if n < 0 => ngx_errno() != libc::EAGAIN,
                _ => false,
            }
        }
    }

    /// Lets nginx go on with a suspended handshake, at the end of this turn of the event loop.
    pub fn resume(&self, _: &Turn) {
        if self.connection().is_quic() {
            // SAFETY: the connection and its SSL object are valid during a handshake; what wakes
            // it goes with what is attached, before them.
            let wake = self.wake.get_or_init(|| unsafe { quic::Wake::new(self.c, self.ssl) });
            wake.post();
            return;
        }
        // SAFETY: the connection and its read event live as long as its pool; nginx takes a posted
        // event back when it closes the connection (ngx_close_connection()).
        unsafe { shim::post_event((*self.c.as_ptr()).read, &raw mut ngx_posted_events) };
    }
}

impl<H: Keeper> Drop for Attached<H> {
    fn drop(&mut self) {
        self.forget();
        let filter = self.filter.get();
        if !filter.is_null() {
            // SAFETY: the SSL object is freed before the pool, and its filter with it. Should the
            // filter outlive the pool all the same, it must not find what is freed here.
            unsafe { BIO_set_data(filter, ptr::null_mut()) };
        }
    }
}

/// Attached states that somebody waits for, by token.
pub struct Waiters<H: Keeper>(RefCell<Slots<Handshake, NonNull<Attached<H>>>>);

impl<H: Keeper> Waiters<H> {
    /// None yet.
    pub const fn new() -> Self {
        Waiters(RefCell::new(Slots::new()))
    }

    /// The state of `token`, unless its connection is gone or has forgotten it.
    pub fn get<'a>(&self, _: &'a Turn, token: HandshakeToken) -> Option<&'a Attached<H>> {
        let attached = self.0.try_borrow().ok()?.get(token).copied()?;
        // SAFETY: Attached::drop() takes its token out, so what is found is alive. Connections are
        // closed by nginx's handlers only; what may run one takes the turn mutably, which is lent
        // as long as the state is.
        Some(unsafe { attached.as_ref() })
    }
}

impl Connection {
    /// What was attached, if anything.
    pub fn attached<H: Keeper>(&self) -> Option<&Attached<H>> {
        attached_of(self.ssl())
    }

    /// Attaches `state` to the connection, once. It is dropped when the connection closes.
    pub fn attach<H: Keeper>(
        &self,
        handler: &Rc<H>,
        state: H::State,
    ) -> Result<&Attached<H>, OutOfMemory> {
        let indexes = Indexes::get().ok_or(OutOfMemory)?;
        let attached = Attached {
            state,
            handler: Rc::clone(handler),
            c: self.c,
            ssl: self.ssl,
            socket: RefCell::new(None),
            filter: Cell::new(ptr::null_mut()),
            token: Cell::new(None),
            wake: OnceCell::new(),
        };
        // SAFETY: the connection and its SSL object are valid; what is attached lives as long as the
        // connection's pool.
        unsafe {
            let attached = pool::keep((*self.c.as_ptr()).pool, attached).ok_or(OutOfMemory)?;
            let data = attached.as_ptr().cast();
            if SSL_set_ex_data(self.ssl.as_ptr(), indexes.attached, data) != 1 {
                return Err(OutOfMemory);
            }
            Ok(attached.as_ref())
        }
    }
}

/// What is attached to a connection, if anything.
pub(super) fn attached_of<H: Keeper>(ssl: &SslRef) -> Option<&Attached<H>> {
    let attached = ssl.data(Indexes::get()?.attached).cast::<Attached<H>>();
    // SAFETY: it is what attach() has set, in memory of the connection's pool, which lives longer than
    // the SSL object (ngx_ssl_shutdown() frees that first).
    unsafe { attached.as_ref() }
}
