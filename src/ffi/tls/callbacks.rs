//! The callbacks of a context.

use core::cell::Cell;
use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};
use std::rc::Rc;

use foreign_types::ForeignTypeRef;
use nginx_sys::ngx_connection_t;
#[cfg(nginx_1_29_2)]
use nginx_sys::ngx_ssl_client_hello_arg_index;

use super::attached::attached_of;
use super::connection::{Connection, HelloRef};
use super::context::Differences;
use super::handler::{Found, Handler, Hello};
use super::index::Indexes;
use super::origin::{Common, FindServers, Judge};
use super::session::SessionRef;
#[cfg(nginx_1_29_2)]
use crate::ffi::openssl::ngx_ssl_client_hello_callback;
use crate::ffi::openssl::{
    Cross, RAND_bytes, SSL, SSL_AD_CLOSE_NOTIFY, SSL_AD_USER_CANCELLED, SSL_CB_ACCEPT_LOOP,
    SSL_CB_ALERT, SSL_CB_HANDSHAKE_DONE, SSL_CB_HANDSHAKE_START, SSL_CLIENT_HELLO_ERROR,
    SSL_CLIENT_HELLO_RETRY, SSL_CLIENT_HELLO_SUCCESS, SSL_CTX, SSL_CTX_get_ex_data, SSL_SESSION,
    SSL_SESSION_free, SSL_TICKET_RETURN, SSL_TICKET_RETURN_IGNORE_RENEW, SSL_TICKET_RETURN_USE,
    SSL_TICKET_RETURN_USE_RENEW, SSL_TICKET_STATUS, SSL_TICKET_SUCCESS, SSL_TICKET_SUCCESS_RENEW,
    SSL_get_SSL_CTX, SSL_get_session, SSL_is_server, SSL3_AL_FATAL,
};
use crate::ffi::symbol;

/// What the callbacks of a context find there.
pub(super) struct Hooks<H: Handler> {
    /// Counted up.
    pub(super) ctx: NonNull<SSL_CTX>,
    pub(super) handler: Rc<H>,
    /// The server offers resumption. If not, only the info callback and those for stateless tickets
    /// are ours: a handshake that began with another server may be handed to this one.
    pub(super) resumes: bool,
    /// How the server judges clients.
    pub(super) judge: Judge,
    /// How all servers of the configuration judge clients.
    pub(super) common: Rc<Cell<Common>>,
    pub(super) find: FindServers,
    /// In what other servers may answer in place of this one.
    pub(super) differences: Differences,
    // The callbacks that ours replaced, and call.
    pub(super) info: InfoCallback,
    pub(super) new: NewCallback,
    pub(super) get: GetCallback,
    /// What the replaced `get` may return that is no session, or null.
    pub(super) pending: *mut SSL_SESSION,
}

type InfoCallback = Option<unsafe extern "C" fn(*const SSL, c_int, c_int)>;
type NewCallback = Option<unsafe extern "C" fn(*mut SSL, *mut SSL_SESSION) -> c_int>;
type GetCallback =
    Option<unsafe extern "C" fn(*mut SSL, *const c_uchar, c_int, *mut c_int) -> *mut SSL_SESSION>;
type HelloCallback = Option<unsafe extern "C" fn(*mut SSL, *mut c_int, *mut c_void) -> c_int>;

/// What a callback returns that is to be asked again later, on an OpenSSL that knows it (OpenResty's
/// patch, for `ssl_session_fetch_by_lua`): an address that is no session's. Null on any other.
pub(super) fn pending_session() -> *mut SSL_SESSION {
    type Pending = unsafe extern "C" fn() -> *mut SSL_SESSION;
    symbol::find(c"SSL_magic_pending_session_ptr").map_or(ptr::null_mut(), |at| {
        // SAFETY: the function of that name takes nothing, and returns the address of a static.
        unsafe { mem::transmute::<NonNull<c_void>, Pending>(at)() }
    })
}

/// The hooks of a context.
///
/// # Safety
/// `ctx` is valid, and so is the result for the current callback.
pub(super) unsafe fn hooks<'a, H: Handler>(ctx: *mut SSL_CTX) -> Option<&'a Hooks<H>> {
    let indexes = Indexes::get()?;
    // SAFETY: the caller's; what is there was set by Hooked::hook() and is taken out before it is
    // freed.
    unsafe { SSL_CTX_get_ex_data(ctx, indexes.hooks).cast::<Hooks<H>>().as_ref() }
}

/// The hooks of the context that a connection began with, whose session callbacks OpenSSL calls.
///
/// # Safety
/// `c` is a TLS connection of nginx.
pub(super) unsafe fn session_hooks<'a, H: Handler>(
    c: NonNull<ngx_connection_t>,
) -> Option<&'a Hooks<H>> {
    // SAFETY: the caller's; nginx keeps the context in session_ctx (ngx_ssl_create_connection()).
    unsafe { hooks((*c.as_ptr()).ssl.as_ref()?.session_ctx.cross()) }
}

static STEPS: AtomicUsize = AtomicUsize::new(0);

/// How many steps of handshakes this worker has seen: a measure of how busy it was.
pub fn steps() -> usize {
    STEPS.load(Ordering::Relaxed)
}

pub(super) unsafe extern "C" fn info<H: Handler>(ssl: *const SSL, what: c_int, ret: c_int) {
    // SAFETY: OpenSSL calls with a valid object, whose current context has this callback.
    let Some(hooks) = (unsafe { hooks::<H>(SSL_get_SSL_CTX(ssl)) }) else { return };
    // One thread counts.
    STEPS.store(steps().wrapping_add(1), Ordering::Relaxed);
    if what & SSL_CB_ALERT != 0 {
        // SAFETY: the object is valid.
        unsafe { alert::<H>(ssl.cast_mut(), ret) };
    } else {
        hooks.step(ssl.cast_mut(), what);
    }
    if let Some(kept) = hooks.info {
        // SAFETY: called as OpenSSL would.
        unsafe { kept(ssl, what, ret) };
    }
}

/// Reports a fatal alert: the session must not be resumed any more (RFC 5246 §7.2.2, RFC 8446 §6).
///
/// OpenSSL has a callback for that (SSL_CTX_sess_set_remove_cb(3)), which is left to nginx. It does not
/// say whose connection it is, so that one who has proved to have the session's secret cannot be told
/// from one who has shown a session ID; it is also called for what has only expired or given way to
/// another session, and where a connection has ended in order and OpenSSL has forgotten that.
/// An alert that cannot be written is not reported.
///
/// # Safety
/// `ssl` is valid for the current call.
unsafe fn alert<H: Handler>(ssl: *mut SSL, alert: c_int) {
    let (level, description) = (alert >> 8, alert & 0xff);
    // SAFETY: the caller's; the session is the SSL object's, which does not change in this call.
    unsafe {
        let (Some(connection), Some(attached)) = (Connection::of(ssl), attached_of::<H>(ssl))
        else {
            return;
        };
        // TLS 1.3 does not ask for the level (RFC 8446 §6).
        let is_fatal = match connection.is_tls13() {
            true => !matches!(description, SSL_AD_CLOSE_NOTIFY | SSL_AD_USER_CANCELLED),
            false => level == SSL3_AL_FATAL,
        };
        let session = SSL_get_session(ssl);
        if is_fatal && !session.is_null() {
            let session = SessionRef::from_ptr(session);
            attached.handler().connection_failed(&connection, attached, session);
        }
    }
}

impl Connection {
    /// In what the server that will answer may differ from the one that the connection began with,
    /// which is known until OpenSSL asks for a session.
    pub fn differences<H: Handler>(&self) -> Differences {
        // SAFETY: it is a TLS connection of nginx.
        unsafe { session_hooks::<H>(self.c) }
            .map_or(Differences::default(), |hooks| hooks.differences)
    }
}

impl<H: Handler> Hooks<H> {
    fn step(&self, ssl: *mut SSL, what: c_int) {
        if what & SSL_CB_HANDSHAKE_START != 0 {
            // SAFETY: OpenSSL calls with a valid object.
            let connection = unsafe {
                if SSL_is_server(ssl) != 1 {
                    return;
                }
                Connection::of(ssl)
            };
            if let Some(connection) =
                connection.filter(|c| self.resumes && c.attached::<H>().is_none())
            {
                self.handler.handshake_started(&connection);
            }
            return;
        }
        let done = what & SSL_CB_HANDSHAKE_DONE != 0;
        if !done && what & SSL_CB_ACCEPT_LOOP != SSL_CB_ACCEPT_LOOP {
            return;
        }
        // SAFETY: OpenSSL calls with a valid object.
        let attached = unsafe { attached_of::<H>(ssl) };
        if let Some(attached) = attached {
            if !attached.filter.get().is_null() && self.handler.is_through(attached) {
                attached.remove_filter();
            }
        }
        if done {
            // SAFETY: OpenSSL calls with a valid object.
            if let Some(connection) = unsafe { Connection::of(ssl) } {
                let (paused, first) = connection.is_paused();
                self.handler.handshake_done(&connection, attached, paused, first);
            }
        }
    }
}

/// nginx's own callback of a context. OpenSSL has no function that returns it.
///
/// # Safety
/// `ctx` is a context of nginx's.
#[cfg(nginx_1_29_2)]
pub(super) unsafe fn kept_hello(ctx: *mut SSL_CTX) -> HelloCallback {
    // SAFETY: the caller's; ngx_ssl_set_client_hello_callback() sets both or none.
    let argument = unsafe { SSL_CTX_get_ex_data(ctx, ngx_ssl_client_hello_arg_index) };
    (!argument.is_null()).then_some(ngx_ssl_client_hello_callback)
}

/// nginx before 1.29.2 has no such callback.
#[cfg(not(nginx_1_29_2))]
pub(super) unsafe fn kept_hello(_: *mut SSL_CTX) -> HelloCallback {
    None
}

pub(super) unsafe extern "C" fn hello<H: Handler>(
    ssl: *mut SSL,
    alert: *mut c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SSL_CTX_set_client_hello_cb(3).
    unsafe {
        if let (Some(attached), Some(this)) = (attached_of::<H>(ssl), NonNull::new(ssl)) {
            if attached.filter.get().is_null() {
                match attached.handler().hello(attached, &HelloRef(this)) {
                    Hello::GoOn => {}
                    Hello::Wait => return SSL_CLIENT_HELLO_RETRY,
                    Hello::End => {
                        *alert = SSL_AD_USER_CANCELLED;
                        return SSL_CLIENT_HELLO_ERROR;
                    }
                }
            }
        }
        match Connection::of(ssl)
            .and_then(|c| kept_hello((*c.c.as_ptr()).ssl.as_ref()?.session_ctx.cross()))
        {
            Some(kept) => kept(ssl, alert, argument),
            None => SSL_CLIENT_HELLO_SUCCESS,
        }
    }
}

pub(super) unsafe extern "C" fn get<H: Handler>(
    ssl: *mut SSL,
    id: *const c_uchar,
    len: c_int,
    copy: *mut c_int,
) -> *mut SSL_SESSION {
    // SAFETY: SSL_CTX_sess_set_get_cb(3): an ID of `len` bytes; with *copy = 0 the caller takes
    // the reference that is returned.
    unsafe {
        *copy = 0;
        let Some(connection) = Connection::of(ssl) else { return ptr::null_mut() };
        let Some(hooks) = session_hooks::<H>(connection.c) else { return ptr::null_mut() };
        let bytes = core::slice::from_raw_parts(id, usize::try_from(len).unwrap_or(0));
        match (hooks.handler.session(&connection, bytes), hooks.get) {
            (Found::Session(session), _) => session.into_ptr(),
            (Found::NotHere, Some(kept)) => {
                let session = kept(ssl, id, len, copy);
                if session.is_null()
                    || session == hooks.pending
                    || hooks.handler.allows(&connection, SessionRef::from_ptr(session))
                {
                    return session;
                }
                if *copy == 0 {
                    SSL_SESSION_free(session);
                }
                ptr::null_mut()
            }
            (Found::NotHere | Found::Nowhere, _) => ptr::null_mut(),
        }
    }
}

pub(super) unsafe extern "C" fn generate<H: Handler>(
    ssl: *mut SSL,
    id: *mut c_uchar,
    len: *mut c_uint,
) -> c_int {
    // SAFETY: SSL_CTX_set_generate_session_id(3): room for *len bytes, all of which are used.
    unsafe {
        let room = core::slice::from_raw_parts_mut(id, *len as usize);
        let issued = Connection::of(ssl)
            .and_then(|connection| session_hooks::<H>(connection.c)?.handler.issue_id(&connection));
        match issued {
            Some(issued) if issued.len() == room.len() => {
                room.copy_from_slice(&issued);
                1
            }
            // Nobody can find the session by this ID later, but the handshake goes on.
            _ => RAND_bytes(id, c_int::try_from(room.len()).unwrap_or(0)),
        }
    }
}

pub(super) unsafe extern "C" fn early_data<H: Handler>(ssl: *mut SSL, _: *mut c_void) -> c_int {
    // SAFETY: SSL_CTX_set_allow_early_data_cb(3).
    let allowed = unsafe {
        Connection::of(ssl).is_some_and(|connection| {
            session_hooks::<H>(connection.c)
                .is_some_and(|hooks| hooks.handler.allows_early_data(&connection))
        })
    };
    allowed.into()
}

pub(super) unsafe extern "C" fn new<H: Handler>(ssl: *mut SSL, session: *mut SSL_SESSION) -> c_int {
    // SAFETY: SSL_CTX_sess_set_new_cb(3): the session is lent; its reference is taken over only
    // with a result of 1, which is for the kept callback to say.
    unsafe {
        let Some(connection) = Connection::of(ssl) else { return 0 };
        let Some(hooks) = session_hooks::<H>(connection.c) else { return 0 };
        hooks.handler.session_made(&connection, SessionRef::from_ptr(session));
        hooks.new.map_or(0, |kept| kept(ssl, session))
    }
}

/// A ticket is about to be made of the connection's session.
pub(super) unsafe extern "C" fn make_ticket<H: Handler>(ssl: *mut SSL, _: *mut c_void) -> c_int {
    // SAFETY: SSL_CTX_set_session_ticket_cb(3); the session is the connection's.
    unsafe {
        let session = SSL_get_session(ssl);
        if let (Some(connection), false) = (Connection::of(ssl), session.is_null()) {
            if let Some(hooks) = session_hooks::<H>(connection.c) {
                hooks.handler.ticket_made(&connection, SessionRef::from_ptr(session));
            }
        }
    }
    // The handshake goes on in any case.
    1
}

/// A stateless ticket was looked at, with that result.
pub(super) unsafe extern "C" fn read_ticket<H: Handler>(
    ssl: *mut SSL,
    session: *mut SSL_SESSION,
    _: *const c_uchar,
    _: usize,
    status: SSL_TICKET_STATUS,
    _: *mut c_void,
) -> SSL_TICKET_RETURN {
    let good = match status {
        SSL_TICKET_SUCCESS => SSL_TICKET_RETURN_USE,
        SSL_TICKET_SUCCESS_RENEW => SSL_TICKET_RETURN_USE_RENEW,
        // What OpenSSL does without this callback.
        _ => return SSL_TICKET_RETURN_IGNORE_RENEW,
    };
    // SAFETY: SSL_CTX_set_session_ticket_cb(3): there is a session where the ticket was good.
    let allowed = unsafe {
        Connection::of(ssl).is_some_and(|connection| {
            session_hooks::<H>(connection.c).is_none_or(|hooks| {
                hooks.handler.allows_ticket(&connection, SessionRef::from_ptr(session))
            })
        })
    };
    if allowed { good } else { SSL_TICKET_RETURN_IGNORE_RENEW }
}
