//! The callbacks of a context.

use core::cell::Cell;
use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::rc::Rc;

use foreign_types::{ForeignType, ForeignTypeRef};
use nginx_sys::ngx_cycle;
#[cfg(nginx_early_servername)]
use nginx_sys::ngx_ssl_client_hello_arg_index;
use session_core::ticket_keys::{KeyName, NAME_LEN, TicketKey};

use super::attached::attached_of;
use super::connection::{Connection, HelloRef};
use super::context::Differences;
use super::handler::{Found, Handler, Hello, ReadTicket, TicketVerdict};
use super::index::Indexes;
use super::origin::{Common, FindServers, Judge};
use super::session::{Session, SessionRef};
#[cfg(nginx_early_servername)]
use crate::ffi::openssl::client_hello_callback;
use crate::ffi::openssl::{
    Algorithm, AlgorithmRef, Ctx, CtxRef, EVP_CIPHER_CTX, EVP_CipherInit_ex2, EVP_MAC_CTX,
    EVP_MAC_CTX_set_params, OSSL_PARAM_construct_end, OSSL_PARAM_construct_octet_string,
    OSSL_PARAM_construct_utf8_string, RAND_bytes, SSL, SSL_AD_CLOSE_NOTIFY, SSL_AD_USER_CANCELLED,
    SSL_CB_ACCEPT_LOOP, SSL_CB_ALERT, SSL_CB_HANDSHAKE_DONE, SSL_CB_HANDSHAKE_START,
    SSL_CLIENT_HELLO_ERROR, SSL_CLIENT_HELLO_RETRY, SSL_CLIENT_HELLO_SUCCESS, SSL_SESSION,
    SSL_TICKET_EMPTY, SSL_TICKET_RETURN, SSL_TICKET_RETURN_IGNORE, SSL_TICKET_RETURN_IGNORE_RENEW,
    SSL_TICKET_RETURN_USE, SSL_TICKET_RETURN_USE_RENEW, SSL_TICKET_STATUS, SSL_TICKET_SUCCESS,
    SSL_TICKET_SUCCESS_RENEW, SSL3_AL_FATAL, SslRef, clear_errors, lent,
};
use crate::ffi::{shim, symbol};

/// What the callbacks of a context find there.
pub(super) struct Hooks<H: Handler> {
    pub(super) ctx: Ctx,
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
    /// What encrypts stateless tickets, where that is ours to do.
    pub(super) ticket_cipher: Option<Algorithm>,
    // The callbacks that ours replaced, and call.
    pub(super) info: InfoCallback,
    pub(super) new: NewCallback,
    pub(super) get: GetCallback,
    /// OpenSSL does not show it.
    pub(super) hello: HelloCallback,
    /// What the replaced `get` may return that is no session, or null.
    pub(super) pending: *mut SSL_SESSION,
}

pub(super) type InfoCallback = Option<unsafe extern "C" fn(*const SSL, c_int, c_int)>;
pub(super) type NewCallback = Option<unsafe extern "C" fn(*mut SSL, *mut SSL_SESSION) -> c_int>;
pub(super) type GetCallback =
    Option<unsafe extern "C" fn(*mut SSL, *const c_uchar, c_int, *mut c_int) -> *mut SSL_SESSION>;
pub(super) type HelloCallback =
    Option<unsafe extern "C" fn(*mut SSL, *mut c_int, *mut c_void) -> c_int>;

/// What a callback returns that is to be asked again later, on an OpenSSL that knows it (OpenResty's
/// patch, for `ssl_session_fetch_by_lua`): an address that is no session's. Null on any other.
pub(super) fn pending_session() -> *mut SSL_SESSION {
    // SAFETY: the type is of this function.
    let pending: shim::SSL_magic_pending_session_ptr =
        unsafe { symbol::function(c"SSL_magic_pending_session_ptr") };
    // SAFETY: it only returns the address of a static.
    pending.map_or(ptr::null_mut(), |pending| unsafe { pending() })
}

/// The hooks of a context. Hooked::hook() has set them, and takes them out before it frees them.
pub(super) fn hooks<H: Handler>(ctx: &CtxRef) -> Option<&Hooks<H>> {
    let hooks = ctx.data(Indexes::get()?.hooks).cast::<Hooks<H>>();
    // SAFETY: what is there is of this type, and is there as long as a callback runs.
    unsafe { hooks.as_ref() }
}

impl Connection {
    /// The hooks of the context that it began with, whose session callbacks OpenSSL calls.
    pub(super) fn session_hooks<H: Handler>(&self) -> Option<&Hooks<H>> {
        hooks(self.session_ctx()?)
    }
}

static STEPS: AtomicUsize = AtomicUsize::new(0);

/// How far this worker has come with its clients: it is another one after each turn in which it had
/// something to do for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps of handshakes, and alerts.
    steps: usize,
    /// Connections that nobody has: one less when a client was accepted, which is all that a turn may
    /// have done.
    free: usize,
}

/// How far this worker has come.
pub fn progress() -> Progress {
    // SAFETY: nginx's current cycle.
    let free = unsafe { (*ngx_cycle).free_connection_n };
    Progress { steps: STEPS.load(Ordering::Relaxed), free }
}

pub(super) unsafe extern "C" fn info<H: Handler>(ssl: *const SSL, what: c_int, ret: c_int) {
    // SAFETY: OpenSSL calls with a valid object, whose current context has this callback.
    let ssl = unsafe { SslRef::from_ptr(ssl.cast_mut()) };
    let Some(hooks) = ssl.ctx().and_then(hooks::<H>) else { return };
    // One thread counts.
    STEPS.store(STEPS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    if what & SSL_CB_ALERT != 0 {
        alert::<H>(ssl, ret);
    } else {
        hooks.step(ssl, what);
    }
    if let Some(kept) = hooks.info {
        // SAFETY: called as OpenSSL would.
        unsafe { kept(ssl.as_ptr(), what, ret) };
    }
}

/// Reports a fatal alert: the session must not be resumed any more (RFC 5246 §7.2.2, RFC 8446 §6).
///
/// OpenSSL has a callback for that (SSL_CTX_sess_set_remove_cb(3)), which is left to nginx. It does not
/// say whose connection it is, so that one who has proved to have the session's secret cannot be told
/// from one who has shown a session ID; it is also called for what has only expired or given way to
/// another session, and where a connection has ended in order and OpenSSL has forgotten that.
/// An alert that cannot be written is not reported.
fn alert<H: Handler>(ssl: &SslRef, alert: c_int) {
    let (level, description) = (alert >> 8, alert & 0xff);
    let (Some(connection), Some(attached)) = (Connection::of(ssl), attached_of::<H>(ssl)) else {
        return;
    };
    // TLS 1.3 does not ask for the level (RFC 8446 §6).
    let is_fatal = match connection.is_tls13() {
        true => !matches!(description, SSL_AD_CLOSE_NOTIFY | SSL_AD_USER_CANCELLED),
        false => level == SSL3_AL_FATAL,
    };
    if let Some(session) = ssl.session().filter(|_| is_fatal) {
        attached.handler().connection_failed(&connection, attached, session);
    }
}

impl Connection {
    /// In what the server that will answer may differ from the one that the connection began with,
    /// which is known until OpenSSL asks for a session.
    pub fn differences<H: Handler>(&self) -> Differences {
        self.session_hooks::<H>().map_or(Differences::default(), |hooks| hooks.differences)
    }
}

impl<H: Handler> Hooks<H> {
    fn step(&self, ssl: &SslRef, what: c_int) {
        if what & SSL_CB_HANDSHAKE_START != 0 {
            let connection = Connection::of(ssl).filter(|_| ssl.is_server());
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
        let attached = attached_of::<H>(ssl);
        if let Some(attached) = attached {
            if self.ticket_cipher.is_some() {
                if let Some(connection) = Connection::of(ssl) {
                    self.handler.stepped(&connection, attached);
                }
            }
            if attached.has_filter() && self.handler.is_through(attached) {
                attached.remove_filter();
            }
        }
        if done {
            if let Some(connection) = Connection::of(ssl) {
                let (paused, first) = connection.is_paused();
                self.handler.handshake_done(&connection, attached, paused, first);
            }
        }
    }
}

/// The callback of all contexts of `http{}`, in a fork that sets one by itself and without an argument.
pub(super) fn http_hello() -> HelloCallback {
    // SAFETY: the type is of this function.
    let hello: shim::http_client_hello =
        unsafe { symbol::function(c"ngx_http_ssl_client_hello_callback") };
    hello
}

/// nginx's own callback of a context of nginx's. OpenSSL has no function that returns it.
#[cfg(nginx_early_servername)]
pub(super) fn kept_hello(ctx: &CtxRef) -> HelloCallback {
    // SAFETY: a static of nginx's, which it sets when it starts.
    let index = unsafe { ngx_ssl_client_hello_arg_index };
    // ngx_ssl_set_client_hello_callback() sets both or none.
    (!ctx.data(index).is_null()).then(client_hello_callback)
}

/// nginx before 1.29.2, and a fork of it, has no such callback.
#[cfg(not(nginx_early_servername))]
pub(super) fn kept_hello(_: &CtxRef) -> HelloCallback {
    None
}

pub(super) unsafe extern "C" fn hello<H: Handler>(
    ssl: *mut SSL,
    alert: *mut c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SSL_CTX_set_client_hello_cb(3): the object is valid.
    let this = unsafe { SslRef::from_ptr(ssl) };
    if let Some(attached) = attached_of::<H>(this).filter(|attached| !attached.has_filter()) {
        match attached.handler().hello(attached, HelloRef::of(this)) {
            Hello::GoOn => {}
            Hello::Wait => return SSL_CLIENT_HELLO_RETRY,
            Hello::End => {
                // SAFETY: SSL_CTX_set_client_hello_cb(3): there is room for an alert.
                unsafe { *alert = SSL_AD_USER_CANCELLED };
                return SSL_CLIENT_HELLO_ERROR;
            }
        }
    }
    let connection = Connection::of(this);
    let result = match connection.as_ref().and_then(|c| c.session_hooks::<H>()?.hello) {
        // SAFETY: called as OpenSSL would.
        Some(kept) => unsafe { kept(ssl, alert, argument) },
        None => SSL_CLIENT_HELLO_SUCCESS,
    };
    if let Some(connection) = connection.filter(|_| result == SSL_CLIENT_HELLO_SUCCESS) {
        let hooks = connection.session_hooks::<H>();
        if let Some(hooks) = hooks.filter(|hooks| hooks.ticket_cipher.is_some()) {
            hooks.handler.hello_read(&connection, HelloRef::of(this));
        }
    }
    result
}

pub(super) unsafe extern "C" fn get<H: Handler>(
    ssl: *mut SSL,
    id: *const c_uchar,
    len: c_int,
    copy: *mut c_int,
) -> *mut SSL_SESSION {
    // SAFETY: SSL_CTX_sess_set_get_cb(3): a valid object, and an ID of `len` bytes; with *copy = 0 the
    // caller takes the reference that is returned.
    let (connection, bytes) = unsafe {
        *copy = 0;
        (Connection::of(SslRef::from_ptr(ssl)), lent(id, usize::try_from(len).unwrap_or(0)))
    };
    let Some(connection) = connection else { return ptr::null_mut() };
    let Some(hooks) = connection.session_hooks::<H>() else { return ptr::null_mut() };
    let kept = match (hooks.handler.session(&connection, bytes), hooks.get) {
        (Found::Session(session), _) => return session.into_ptr(),
        (Found::NotHere, Some(kept)) => kept,
        (Found::NotHere | Found::Nowhere, _) => return ptr::null_mut(),
    };
    // SAFETY: called as OpenSSL would; what it returns is a session, unless it is null or the one that is
    // none. With *copy = 0 the reference is ours to free.
    unsafe {
        *copy = 1;
        let session = kept(ssl, id, len, copy);
        if session.is_null()
            || session == hooks.pending
            || hooks.handler.allows(&connection, SessionRef::from_ptr(session))
        {
            return session;
        }
        if *copy == 0 {
            drop(Session::from_ptr(session));
        }
    }
    ptr::null_mut()
}

pub(super) unsafe extern "C" fn generate<H: Handler>(
    ssl: *mut SSL,
    id: *mut c_uchar,
    len: *mut c_uint,
) -> c_int {
    // SAFETY: SSL_CTX_set_generate_session_id(3): a valid object, and room for *len bytes, all of which
    // are used.
    let (connection, room) = unsafe {
        let room = core::slice::from_raw_parts_mut(id, *len as usize);
        (Connection::of(SslRef::from_ptr(ssl)), room)
    };
    let issued = connection.and_then(|c| c.session_hooks::<H>()?.handler.issue_id(&c));
    match issued {
        Some(issued) if issued.len() == room.len() => {
            room.copy_from_slice(&issued);
            1
        }
        // Nobody can find the session by this ID later, but the handshake goes on.
        // SAFETY: RAND_bytes(3) fills the room.
        _ => unsafe { RAND_bytes(room.as_mut_ptr(), c_int::try_from(room.len()).unwrap_or(0)) },
    }
}

pub(super) unsafe extern "C" fn early_data<H: Handler>(ssl: *mut SSL, _: *mut c_void) -> c_int {
    // SAFETY: SSL_CTX_set_allow_early_data_cb(3): a valid object.
    let connection = Connection::of(unsafe { SslRef::from_ptr(ssl) });
    let allowed = connection.is_some_and(|connection| {
        let hooks = connection.session_hooks::<H>();
        hooks.is_some_and(|hooks| hooks.handler.allows_early_data(&connection))
    });
    allowed.into()
}

pub(super) unsafe extern "C" fn new<H: Handler>(ssl: *mut SSL, session: *mut SSL_SESSION) -> c_int {
    // SAFETY: SSL_CTX_sess_set_new_cb(3): both are valid, and lent.
    let (this, made) = unsafe { (SslRef::from_ptr(ssl), SessionRef::from_ptr(session)) };
    let Some(connection) = Connection::of(this) else { return 0 };
    let Some(hooks) = connection.session_hooks::<H>() else { return 0 };
    hooks.handler.session_made(&connection, made);
    // The reference is taken over only with a result of 1, which is for the kept callback to say.
    // SAFETY: called as OpenSSL would.
    hooks.new.map_or(0, |kept| unsafe { kept(ssl, session) })
}

/// A ticket is about to be made of the connection's session.
pub(super) unsafe extern "C" fn make_ticket<H: Handler>(ssl: *mut SSL, _: *mut c_void) -> c_int {
    // SAFETY: SSL_CTX_set_session_ticket_cb(3): a valid object.
    let ssl = unsafe { SslRef::from_ptr(ssl) };
    if let (Some(connection), Some(session)) = (Connection::of(ssl), ssl.session()) {
        if let Some(hooks) = connection.session_hooks::<H>() {
            hooks.handler.ticket_made(&connection, session);
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
    // SAFETY: SSL_CTX_set_session_ticket_cb(3): a valid object, and a session where the ticket was good.
    let (connection, ticket) = unsafe {
        let ticket = match status {
            SSL_TICKET_EMPTY => ReadTicket::Empty,
            SSL_TICKET_SUCCESS | SSL_TICKET_SUCCESS_RENEW => ReadTicket::Good {
                session: SessionRef::from_ptr(session),
                renew: status == SSL_TICKET_SUCCESS_RENEW,
            },
            _ => ReadTicket::Foreign,
        };
        (Connection::of(SslRef::from_ptr(ssl)), ticket)
    };
    let hooks = connection.as_ref().and_then(Connection::session_hooks::<H>);
    let (Some(connection), Some(hooks)) = (&connection, hooks) else {
        return SSL_TICKET_RETURN_IGNORE_RENEW;
    };
    match hooks.handler.ticket_read(connection, &ticket) {
        TicketVerdict::Use => SSL_TICKET_RETURN_USE,
        TicketVerdict::UseAndRenew => SSL_TICKET_RETURN_USE_RENEW,
        TicketVerdict::Ignore => SSL_TICKET_RETURN_IGNORE,
        TicketVerdict::Renew => SSL_TICKET_RETURN_IGNORE_RENEW,
    }
}

/// What OpenSSL takes for "there is no such key", and goes on without a ticket.
const NO_KEY: c_int = 0;
/// It has its key.
const KEY: c_int = 1;
/// And should get another one.
const OLD_KEY: c_int = 2;

/// Prepares OpenSSL for encrypting or decrypting a stateless ticket.
///
/// This one goes before the callback that nginx may have set, which is of another kind
/// (`SSL_CTX_set_tlsext_ticket_key_cb()`), and which nginx's rotation of keys depends on.
pub(super) unsafe extern "C" fn ticket_key<H: Handler>(
    ssl: *mut SSL,
    name: *mut c_uchar,
    iv: *mut c_uchar,
    cipher: *mut EVP_CIPHER_CTX,
    mac: *mut EVP_MAC_CTX,
    encrypts: c_int,
) -> c_int {
    // SAFETY: SSL_CTX_set_tlsext_ticket_key_evp_cb(3): a valid object.
    let connection = Connection::of(unsafe { SslRef::from_ptr(ssl) });
    let hooks = connection.as_ref().and_then(Connection::session_hooks::<H>);
    let (Some(connection), Some(hooks)) = (&connection, hooks) else { return NO_KEY };
    let Some(algorithm) = &hooks.ticket_cipher else { return NO_KEY };
    let (name, iv) = (name.cast::<[u8; NAME_LEN]>(), iv.cast::<[u8; IV_LEN]>());
    let encrypts = encrypts != 0;
    // SAFETY: the same: a name, and the initialisation vector of a cipher, which are written when a ticket
    // is made, and else are the client's, to be read; contexts that are new.
    unsafe {
        let wanted = if encrypts { None } else { Some(KeyName(*name)) };
        let Some((key, is_current)) = hooks.handler.ticket_key(connection, wanted.as_ref()) else {
            return NO_KEY;
        };
        if encrypts {
            *name = key.name.0;
            if !hooks.handler.random(&mut *iv) {
                return NO_KEY;
            }
        }
        match prepare(algorithm, &key, &*iv, cipher, mac, encrypts) {
            true if is_current => KEY,
            true => OLD_KEY,
            false => {
                clear_errors();
                NO_KEY
            }
        }
    }
}

/// Length of an initialisation vector of AES-CBC, in bytes.
const IV_LEN: usize = 16;

/// Gives a cipher and a MAC their keys. Whether that was possible.
///
/// # Safety
/// The contexts are valid, the one of the MAC is of HMAC.
unsafe fn prepare(
    algorithm: &AlgorithmRef,
    key: &TicketKey,
    iv: &[u8; IV_LEN],
    cipher: *mut EVP_CIPHER_CTX,
    mac: *mut EVP_MAC_CTX,
    encrypts: bool,
) -> bool {
    let (cipher_key, mac_key) = (key.cipher_key(), key.mac_key());
    // SAFETY: the caller's. The key and the vector have the lengths of AES-256-CBC; parameters are only
    // read, and copied (EVP_MAC_CTX_set_params(3)).
    unsafe {
        let params = [
            OSSL_PARAM_construct_octet_string(
                c"key".as_ptr(),
                mac_key.as_ptr().cast_mut().cast(),
                mac_key.len(),
            ),
            OSSL_PARAM_construct_utf8_string(c"digest".as_ptr(), c"SHA256".as_ptr().cast_mut(), 0),
            OSSL_PARAM_construct_end(),
        ];
        let key = cipher_key.as_ptr();
        EVP_CipherInit_ex2(
            cipher,
            algorithm.as_ptr(),
            key,
            iv.as_ptr(),
            encrypts.into(),
            ptr::null(),
        ) == 1
            && EVP_MAC_CTX_set_params(mac, params.as_ptr()) == 1
    }
}
