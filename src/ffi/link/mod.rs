//! A connection to a server, over nginx's event loop.

use core::cell::{Cell, UnsafeCell};
use core::ffi::c_int;
use core::mem;
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::rc::Weak;
use std::string::String;
use std::vec::Vec;

use foreign_types::ForeignType;
use nginx_sys::{
    NGX_LOG_EMERG, NGX_LOG_INFO, ngx_close_connection, ngx_connection_t, ngx_destroy_pool,
    ngx_errno, ngx_event_connect_peer, ngx_event_get_peer, ngx_event_t, ngx_handle_read_event,
    ngx_handle_write_event, ngx_log_t, ngx_peer_connection_t, ngx_posted_next_events,
    ngx_ssl_shutdown, ngx_tcp_nodelay, ngx_uint_t,
};
use ngx::core::Status;
use session_core::buffer;

use crate::ffi::capture::Captured;
use crate::ffi::log::Log;
use crate::ffi::openssl::{Cross, Ssl, clear_errors};
use crate::ffi::tls::Session;
use crate::ffi::turn::Turn;
use crate::ffi::{shim, text};

mod tls;

pub use crate::ffi::address::Address;
pub use tls::Handshake;

/// How often the system asks in vain whether the other side is still there.
const KEEPALIVE_PROBES: u32 = 3;

/// Is called when something happens on a [`Link`].
pub trait LinkOwner {
    /// There is something to read, the connection has ended, or the worker wants idle
    /// connections closed.
    fn readable(&self, turn: &mut Turn);
    /// There is room to write, or the attempt to connect has ended.
    fn writable(&self, turn: &mut Turn);
    /// A handshake that was [`Handshake::Again`] may go on: [`Link::handshake`] is to be called
    /// again. Until it has ended, this is called in place of the other two. Owners that do no
    /// handshakes have no need of it.
    fn handshaken(&self, _: &mut Turn) {}
}

/// One connection to a server. [`Link::close`] closes it; one that speaks TLS says so to the server
/// first, if there is room. A link that is dropped with its owner is closed in the same way: nothing
/// that closing calls runs handlers of nginx's (ngx_ssl_shutdown(), ngx_close_connection()).
pub struct Link {
    connection: NonNull<ngx_connection_t>,
    context: NonNull<Context>,
    /// Frees `context`, whose type nobody else has to know.
    free: unsafe fn(NonNull<Context>),
    is_tcp: bool,
}

/// What nginx's connection and its log refer to.
#[repr(C)]
struct Context {
    /// The connection's log, which writes nowhere: what nginx says about the connection is for the
    /// owner to tell, once.
    log: UnsafeCell<ngx_log_t>,
    /// What nginx said last.
    said: Captured,
    stage: Cell<Stage>,
    /// A session the server has given, counted up.
    session: Cell<Option<Session>>,
}

#[repr(C)]
struct OwnedContext<T> {
    context: Context,
    owner: Weak<T>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Plain,
    Shaking,
    Tls,
    Failed,
}

/// How an attempt to connect begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is through.
    Connected,
    /// [`LinkOwner::writable`] tells when it has ended.
    Connecting,
}

/// Why an attempt to connect could not begin.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The server's side: an errno of `connect()`.
    Refused(i32),
    /// Our own: no connection is left in `worker_connections`, or no socket to be had.
    Local,
}

/// What reading or writing came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Io {
    /// That many bytes.
    Bytes(usize),
    /// Not now; the owner is called when it makes sense to try again.
    Again,
    /// The server closed the connection.
    Closed,
    /// It failed, with this errno; [`Link::last_error`] says more.
    Failed(i32),
    /// There is no memory for what could be read.
    OutOfMemory,
}

impl Link {
    /// Begins to connect. On a worker that has few free connections nginx ends idle clients for it.
    pub fn connect<T: LinkOwner>(
        _: &mut Turn,
        owner: Weak<T>,
        address: &Address,
    ) -> Result<(Self, Progress), ConnectError> {
        // SAFETY: the cycle's log is valid; a log is plain data.
        let log = unsafe { *Log::cycle().as_ptr() };
        let context = Box::new(OwnedContext {
            context: Context {
                log: UnsafeCell::new(log),
                said: Captured::default(),
                stage: Cell::new(Stage::Plain),
                session: Cell::new(None),
            },
            owner,
        });
        let context: NonNull<OwnedContext<T>> = NonNull::from(Box::leak(context));
        let free = free_context::<T>;

        // nginx would write a line for each attempt that fails at once; the owner writes one for
        // each change of state.
        let mut quiet = ngx_log_t { log_level: NGX_LOG_EMERG as ngx_uint_t, ..log };

        // SAFETY: zero is the initial state that ngx_event_connect_peer() expects; it reads
        // sockaddr, name and log only during the call.
        let (rc, connection) = unsafe {
            let mut peer: ngx_peer_connection_t = mem::zeroed();
            let mut server = text(address.name().as_bytes());
            (peer.sockaddr, peer.socklen) = address.raw();
            peer.name = &raw mut server;
            peer.get = Some(ngx_event_get_peer);
            peer.log = &raw mut quiet;
            // Resets and the like: the owner tells of them, once.
            shim::set_log_error_info(&raw mut peer);
            let rc = Status(ngx_event_connect_peer(&raw mut peer));
            (rc, NonNull::new(peer.connection))
        };
        // Only what connect() itself says is about the server (ngx_event_connect_peer()).
        let error = match rc {
            Status::NGX_ERROR => ConnectError::Local,
            _ => ConnectError::Refused(ngx_errno()),
        };

        let Some(connection) = connection else {
            // SAFETY: made above, and nobody else has it.
            unsafe { free(context.cast()) };
            return Err(error);
        };
        // From here on dropping the link cleans up.
        let link = Link { connection, context: context.cast(), free, is_tcp: !address.is_unix() };
        let c = connection.as_ptr();
        // SAFETY: the connection is ours until ngx_close_connection(). The log points into the
        // context, which outlives the connection (see Drop).
        unsafe {
            let log = (*link.context.as_ptr()).log.get();
            (*log).log_level = (*log).log_level.max(NGX_LOG_INFO as ngx_uint_t);
            (*log).connection = (*c).number;
            (*log).handler = None;
            Captured::fill_from(&raw const (*link.context.as_ptr()).said, log);
            (*c).log = log;
            (*(*c).read).log = log;
            (*(*c).write).log = log;
        }
        if rc != Status::NGX_OK && rc != Status::NGX_AGAIN {
            return Err(error);
        }
        // SAFETY: as above. An idle connection is told when the worker exits gracefully
        // (ngx_close_idle_connections() in ngx_connection.c).
        unsafe {
            (*c).data = context.as_ptr().cast();
            (*(*c).read).handler = Some(on_readable::<T>);
            (*(*c).write).handler = Some(on_writable::<T>);
            shim::set_idle(c);
        }
        let progress = if rc.is_ok() { Progress::Connected } else { Progress::Connecting };
        Ok((link, progress))
    }

    /// How the attempt to connect ended, once [`LinkOwner::writable`] was called; `Err` is an
    /// errno.
    pub fn connected(&self) -> Result<(), i32> {
        let mut errno: c_int = 0;
        let mut len = mem::size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open; option value and length are ours.
        let rc = unsafe {
            libc::getsockopt(
                (*self.connection.as_ptr()).fd,
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut errno).cast(),
                &raw mut len,
            )
        };
        match (rc, errno) {
            (0, 0) => Ok(()),
            (0, errno) => Err(errno),
            _ => Err(ngx_errno()),
        }
    }

    /// What nginx has said last about the connection, in its own words: why a handshake, reading
    /// or writing failed.
    pub fn last_error(&self) -> Option<String> {
        self.context().said.last()
    }

    fn context(&self) -> &Context {
        // SAFETY: made in connect(), freed in drop(); changed through cells only.
        unsafe { self.context.as_ref() }
    }

    /// Reads what is there, at most `max` bytes, to the end of `buf`.
    pub fn read(&self, _: &Turn, buf: &mut Vec<u8>, max: usize) -> Io {
        if buffer::reserve(buf, max).is_err() {
            return Io::OutOfMemory;
        }
        let c = self.connection.as_ptr();
        let spare = buf.spare_capacity_mut();
        let room = spare.len().min(max);
        // SAFETY: recv is set by ngx_event_connect_peer(); it writes at most `room` bytes to the
        // buffer's own spare memory, and says how many.
        let n = unsafe {
            match (*c).recv {
                Some(recv) => recv(c, spare.as_mut_ptr().cast(), room),
                None => Status::NGX_ERROR.into(),
            }
        };
        if n > 0 {
            // SAFETY: recv has written n bytes there.
            unsafe { buf.set_len(buf.len().saturating_add((n as usize).min(room))) };
            if !self.has_more() {
                // An event method that reports levels is not asked for this one while there is
                // more to read, as after a TLS handshake. A failure shows when reading again.
                // SAFETY: the event is the connection's own.
                let _ = unsafe { ngx_handle_read_event((*c).read, 0) };
            }
            return Io::Bytes(n as usize);
        }
        // SAFETY: the event is the connection's own.
        self.not_transferred(n, Status(unsafe { ngx_handle_read_event((*c).read, 0) }))
    }

    /// Writes from `bytes` as much as there is room for. After [`Io::Again`] the next call begins
    /// with the same bytes: OpenSSL may have sealed some of them already.
    pub fn write(&self, _: &Turn, bytes: &[u8]) -> Io {
        if bytes.is_empty() {
            return Io::Bytes(0);
        }
        let c = self.connection.as_ptr();
        // SAFETY: send is set by ngx_event_connect_peer() and only reads.
        let n = unsafe {
            match (*c).send {
                Some(send) => send(c, bytes.as_ptr().cast_mut(), bytes.len()),
                None => Status::NGX_ERROR.into(),
            }
        };
        if n > 0 {
            return Io::Bytes(n as usize);
        }
        // SAFETY: the event is the connection's own.
        self.not_transferred(n, Status(unsafe { ngx_handle_write_event((*c).write, 0) }))
    }

    fn not_transferred(&self, n: isize, registered: Status) -> Io {
        match n {
            0 => Io::Closed,
            n if Status(n) == Status::NGX_AGAIN && registered.is_ok() => Io::Again,
            _ => {
                let errno = ngx_errno();
                clear_errors();
                Io::Failed(errno)
            }
        }
    }

    /// Gets a connected link going: registers for reading, which nginx does not do by itself for
    /// connections it opens, and sends small requests at once. Whether that worked.
    pub fn begin(&self) -> bool {
        let c = self.connection.as_ptr();
        // SAFETY: the connection is ours, and so is its event.
        unsafe {
            if self.is_tcp && !Status(ngx_tcp_nodelay(c)).is_ok() {
                return false;
            }
            Status(ngx_handle_read_event((*c).read, 0)).is_ok()
        }
    }

    /// Has the system ask whether the other side is still there, once nothing was heard for so many
    /// seconds and then every third of that, and end the connection when that was in vain three times.
    /// What is on the way does not forget a connection on which that happens often enough.
    pub fn keep_alive(&self, seconds: u32) {
        let every = (seconds / KEEPALIVE_PROBES).max(1);
        for (level, option, value) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, every),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
        ] {
            let value = c_int::try_from(value).unwrap_or(c_int::MAX);
            if !self.is_tcp {
                return;
            }
            // SAFETY: the descriptor is open; option value and length are ours. Where the system does
            // not take one there is none.
            unsafe {
                libc::setsockopt(
                    (*self.connection.as_ptr()).fd,
                    level,
                    option,
                    (&raw const value).cast(),
                    mem::size_of::<c_int>() as libc::socklen_t,
                );
            }
        }
    }

    /// There is nothing to write. An event method that reports levels would go on to report that
    /// there is room.
    pub fn wrote_all(&self) {
        // SAFETY: the event is the connection's own. A failure shows when writing again.
        let _ = unsafe { ngx_handle_write_event((*self.connection.as_ptr()).write, 0) };
    }

    /// Closes the connection.
    pub fn close(self, _: &Turn) {}

    /// Whether the attempt to connect has come to its end, of which nginx may not have told yet.
    pub fn has_settled(&self) -> bool {
        // SAFETY: the descriptor is open; poll(2) reads and writes the one entry.
        unsafe {
            let fd = (*self.connection.as_ptr()).fd;
            let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
            libc::poll(&raw mut entry, 1, 0) == 1
        }
    }

    /// Calls [`LinkOwner::readable`] in the next turn of the event loop.
    pub fn read_later(&self) {
        // SAFETY: the event is the connection's own; it is taken back when that is closed.
        unsafe {
            shim::post_event((*self.connection.as_ptr()).read, &raw mut ngx_posted_next_events);
        }
    }

    /// Whether there may be more to read now.
    pub fn has_more(&self) -> bool {
        // SAFETY: the connection is ours; nginx clears `ready` after a read that came up short.
        unsafe { shim::is_ready((*self.connection.as_ptr()).read) }
    }

    /// Whether nginx does not wait for it any longer: the worker exits, and its time is up
    /// (ngx_shutdown_timer_handler() in ngx_cycle.c).
    pub fn is_overdue(&self) -> bool {
        // SAFETY: the connection is ours.
        unsafe { shim::is_overdue(self.connection.as_ptr()) }
    }

    /// Whether the worker wants the connection closed.
    pub fn is_closing(&self) -> bool {
        // SAFETY: the connection is ours.
        unsafe { shim::is_closing(self.connection.as_ptr()) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let c = self.connection.as_ptr();
        // SAFETY: all is ours. ngx_ssl_shutdown() frees the SSL object and sets ssl to null,
        // unless there is no room for its alert; then it is freed here. The connection goes before
        // the pool, where ssl was, and that before the log in the context, to which both refer.
        // ngx_close_connection() takes back its events and timers.
        unsafe {
            if let Some(ssl) = (*c).ssl.as_mut() {
                shim::set_shutdown(ssl, self.context().stage.get() != Stage::Tls);
                ssl.save_session = None;
                ngx_ssl_shutdown(c);
                if let Some(ssl) = (*c).ssl.as_ref() {
                    drop(Ssl::from_ptr(ssl.connection.cross()));
                    (*c).ssl = ptr::null_mut();
                }
                clear_errors();
            }
            let pool = mem::replace(&mut (*c).pool, ptr::null_mut());
            ngx_close_connection(c);
            if !pool.is_null() {
                ngx_destroy_pool(pool);
            }
            (self.free)(self.context);
        }
    }
}

/// # Safety
/// `context` is one of [`Link::connect`] for the same `T`, and not used again.
unsafe fn free_context<T>(context: NonNull<Context>) {
    // SAFETY: the caller's; the context is the first field of a repr(C) struct.
    drop(unsafe { Box::from_raw(context.cast::<OwnedContext<T>>().as_ptr()) });
}

/// The owner, and whether a handshake is under way.
fn owner<T>(event: *mut ngx_event_t) -> Option<(std::rc::Rc<T>, bool)> {
    // SAFETY: the event is of a connection of Link::connect(), which has set its data; nginx calls
    // no handler of a connection that is closed.
    unsafe {
        let c = (*event).data.cast::<ngx_connection_t>();
        let context = (*c).data.cast::<OwnedContext<T>>();
        let shaking = (*context).context.stage.get() == Stage::Shaking;
        Some(((*context).owner.upgrade()?, shaking))
    }
}

unsafe extern "C" fn on_readable<T: LinkOwner>(event: *mut ngx_event_t) {
    // SAFETY: nginx's event loop calls. The connection is no client's, and never one that is ended
    // for want of a free one: that is for those which are made reusable (ngx_reusable_connection()).
    unsafe {
        Turn::lend(|turn| match owner::<T>(event) {
            Some((owner, true)) => owner.handshaken(turn),
            Some((owner, false)) => owner.readable(turn),
            None => {}
        });
    }
}

unsafe extern "C" fn on_writable<T: LinkOwner>(event: *mut ngx_event_t) {
    // SAFETY: nginx's event loop calls. The connection is no client's, and never one that is ended
    // for want of a free one: that is for those which are made reusable (ngx_reusable_connection()).
    unsafe {
        Turn::lend(|turn| match owner::<T>(event) {
            Some((owner, true)) => owner.handshaken(turn),
            Some((owner, false)) => owner.writable(turn),
            None => {}
        });
    }
}
