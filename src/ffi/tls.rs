//! OpenSSL's server side of nginx: callbacks of a context, sessions, and the BIO through which a
//! handshake is suspended.

use core::cell::{Cell, OnceCell, RefCell};
use core::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_uint, c_void};
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

use foreign_types::{ForeignType, ForeignTypeRef, foreign_type};
use nginx_sys::{
    ASN1_TIME_diff, BIO, BIO_CTRL_DUP, BIO_CTRL_PENDING, BIO_CTRL_POP, BIO_CTRL_PUSH,
    BIO_FLAGS_READ, BIO_FLAGS_RWS, BIO_FLAGS_SHOULD_RETRY, BIO_METHOD, BIO_TYPE_FILTER,
    BIO_clear_flags, BIO_ctrl, BIO_free, BIO_get_data, BIO_get_retry_reason, BIO_meth_new,
    BIO_meth_set_create, BIO_meth_set_ctrl, BIO_meth_set_destroy, BIO_meth_set_read,
    BIO_meth_set_write, BIO_new, BIO_read, BIO_set_data, BIO_set_flags, BIO_set_init,
    BIO_set_retry_reason, BIO_test_flags, BIO_up_ref, BIO_write, CRYPTO_EX_INDEX_SSL,
    CRYPTO_EX_INDEX_SSL_CTX, CRYPTO_EX_INDEX_SSL_SESSION, CRYPTO_get_ex_new_index, ERR_clear_error,
    ERR_pop_to_mark, ERR_set_mark, NGX_ALIGNMENT, NGX_USE_LEVEL_EVENT,
    OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA, RAND_bytes, SSL, SSL_AD_CLOSE_NOTIFY,
    SSL_AD_USER_CANCELLED, SSL_CB_ACCEPT_LOOP, SSL_CB_ALERT, SSL_CB_HANDSHAKE_DONE,
    SSL_CB_HANDSHAKE_START, SSL_CB_WRITE, SSL_CLIENT_HELLO_ERROR, SSL_CLIENT_HELLO_RETRY,
    SSL_CLIENT_HELLO_SUCCESS, SSL_CTRL_GET_MAX_PROTO_VERSION, SSL_CTRL_GET_SESS_CACHE_MODE,
    SSL_CTRL_SET_SESS_CACHE_MODE, SSL_CTX, SSL_CTX_ctrl, SSL_CTX_free, SSL_CTX_get_ex_data,
    SSL_CTX_get_info_callback, SSL_CTX_get_options, SSL_CTX_sess_get_get_cb,
    SSL_CTX_sess_get_new_cb, SSL_CTX_sess_get_remove_cb, SSL_CTX_sess_set_get_cb,
    SSL_CTX_sess_set_new_cb, SSL_CTX_sess_set_remove_cb, SSL_CTX_set_allow_early_data_cb,
    SSL_CTX_set_client_hello_cb, SSL_CTX_set_ex_data, SSL_CTX_set_generate_session_id,
    SSL_CTX_set_info_callback, SSL_CTX_up_ref, SSL_RECEIVED_SHUTDOWN,
    SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_SERVER,
    SSL_SESSION, SSL_SESSION_free, SSL_SESSION_get_ex_data, SSL_SESSION_get_id,
    SSL_SESSION_get_protocol_version, SSL_SESSION_get_time, SSL_SESSION_get_timeout,
    SSL_SESSION_get0_hostname, SSL_SESSION_get0_peer, SSL_SESSION_set_ex_data,
    SSL_client_hello_get0_ext, SSL_client_hello_get0_session_id, SSL_ctrl, SSL_get_SSL_CTX,
    SSL_get_ex_data, SSL_get_options, SSL_get_rbio, SSL_get_session, SSL_get_shutdown,
    SSL_get_state, SSL_is_server, SSL_session_reused, SSL_set_ex_data, SSL_set0_rbio, SSL_version,
    SSL3_AL_FATAL, SSL3_AL_WARNING, TLS1_3_VERSION, TLSEXT_TYPE_server_name, X509_get0_notAfter,
    d2i_SSL_SESSION, i2d_SSL_SESSION, ngx_connection_t, ngx_err_t, ngx_errno, ngx_event_flags,
    ngx_pool_cleanup_add, ngx_post_event, ngx_posted_events, ngx_set_errno,
    ngx_ssl_connection_index,
};
#[cfg(nginx_1_29_2)]
use nginx_sys::{ngx_ssl_client_hello_arg_index, ngx_ssl_client_hello_callback};
use session_core::codec::OutOfMemory;
use session_core::hello::{ClientHello, server_name};
use session_core::key_ring::ID_LEN;
use session_core::slots::{Slots, Token};

use super::log::Log;
use super::quic;

/// `SSL_OP_NO_TICKET` (openssl/ssl.h; the header's macro is beyond bindgen).
const SSL_OP_NO_TICKET: u64 = 1 << 14;
/// `SSL_OP_NO_TLSv1_3`, likewise.
const SSL_OP_NO_TLSV1_3: u64 = 1 << 29;

/// Whether nginx takes `SSL_CLIENT_HELLO_RETRY` for an order to wait (patches/).
const LETS_CALLBACK_WAIT: bool = cfg!(nginx_client_hello_retry);

/// What the module does in a handshake. One implementation serves all contexts of a
/// configuration.
pub trait Handler: Sized + 'static {
    /// What is kept for one connection.
    type State: 'static;

    /// The states that wait for something.
    fn waiters(&self) -> &Waiters<Self>;

    /// A handshake begins; nothing has been read.
    fn handshake_started(self: &Rc<Self>, connection: &Connection);

    /// OpenSSL has read the ClientHello of a handshake that can wait for its callback.
    fn hello(&self, attached: &Attached<Self>, hello: &HelloRef) -> Hello;

    /// OpenSSL wants to read, and the filter of [`Connection::suspendable`] is asked.
    fn read(&self, attached: &Attached<Self>, socket: &Socket, sink: &mut Sink) -> Read;

    /// How many bytes the filter holds back for OpenSSL.
    fn pending(&self, attached: &Attached<Self>) -> usize;

    /// Whether the filter has no more to do.
    fn is_through(&self, attached: &Attached<Self>) -> bool;

    /// A handshake has come to its end, or is `paused` for early data; `first`: nothing was said of
    /// it before. What was paused may come to its end without a word.
    fn handshake_done(
        &self,
        connection: &Connection,
        attached: Option<&Attached<Self>>,
        paused: bool,
        first: bool,
    );

    /// OpenSSL asks for the session of `id`.
    fn session(self: &Rc<Self>, connection: &Connection, id: &[u8]) -> Found;

    /// Whether a session that somebody else had may be resumed.
    fn allows(&self, connection: &Connection, session: &SessionRef) -> bool;

    /// Whether [`Handler::issue_id`] is asked for the IDs of new sessions.
    fn issues_ids(&self) -> bool;

    /// The ID of a new session; OpenSSL makes one by itself if there is none.
    fn issue_id(&self, connection: &Connection) -> Option<[u8; ID_LEN]>;

    /// Whether [`Handler::allows_early_data`] is asked.
    fn restricts_early_data(&self) -> bool;

    /// Whether the early data (RFC 8446 §4.2.10) of a handshake that resumes is accepted.
    fn allows_early_data(&self, connection: &Connection) -> bool;

    /// A session was made that can be resumed later.
    fn session_made(self: &Rc<Self>, connection: &Connection, session: &SessionRef);

    /// A session must not be resumed any more.
    fn session_removed(&self, session: &SessionRef);
}

/// What is known of a session that OpenSSL asks for.
pub enum Found {
    /// It is here.
    Session(Session),
    /// It is not here; others may be asked.
    NotHere,
    /// Nobody else is to be asked.
    Nowhere,
}

/// What becomes of a handshake whose ClientHello OpenSSL has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It goes on.
    GoOn,
    /// It waits for [`Attached::resume`], and is asked again then.
    Wait,
    /// It ends.
    End,
}

/// How a handshake can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// In [`Handler::hello`].
    InCallback,
    /// Behind the filter of [`Connection::suspendable`].
    InFilter,
    /// It cannot.
    Not,
}

/// Whether handshakes of QUIC can wait.
pub fn quic_waits() -> bool {
    LETS_CALLBACK_WAIT || quic::waits_in_filter()
}

/// What the filter has for OpenSSL.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// That many bytes were put into the sink; not 0.
    Data(usize),
    /// The handshake is suspended, until [`Attached::resume`].
    Suspended,
    /// OpenSSL may read from the socket itself.
    Socket,
    /// The socket has ended.
    Ended(Ending),
}

/// How a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What `BIO_read()` returned.
    result: c_int,
    /// What errno was then.
    errno: ngx_err_t,
}

impl Ending {
    /// There was no memory for what came.
    pub const OUT_OF_MEMORY: Ending = Ending { result: -1, errno: libc::ENOMEM };
}

foreign_type! {
    /// A TLS session.
    pub unsafe type Session {
        type CType = SSL_SESSION;
        fn drop = SSL_SESSION_free;
    }
}

impl Session {
    /// Decodes what [`SessionRef::to_der`] made. `None` if it is not exactly that.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let len = c_long::try_from(der.len()).ok()?;
        let mut next = der.as_ptr();
        // SAFETY: d2i_SSL_SESSION(3) reads at most `len` bytes and moves `next` behind what it
        // read.
        let session = unsafe { d2i_SSL_SESSION(ptr::null_mut(), &raw mut next, len) };
        if session.is_null() {
            // SAFETY: OpenSSL's queue of this thread. What is in it is no error of this handshake:
            // such a one would have ended it.
            unsafe { ERR_clear_error() };
            return None;
        }
        // SAFETY: a new session, ours to free.
        let session = unsafe { Session::from_ptr(session) };
        (next == der.as_ptr_range().end).then_some(session)
    }

    /// Gives the reference away.
    fn into_ptr(self) -> *mut SSL_SESSION {
        let ptr = self.as_ptr();
        mem::forget(self);
        ptr
    }
}

impl SessionRef {
    /// The session ID, up to 32 bytes.
    pub fn id(&self) -> &[u8] {
        let mut len: c_uint = 0;
        // SAFETY: SSL_SESSION_get_id(3) returns memory of the session and its length.
        unsafe {
            let id = SSL_SESSION_get_id(self.as_ptr(), &raw mut len);
            if id.is_null() { &[] } else { core::slice::from_raw_parts(id, len as usize) }
        }
    }

    /// When the session was made, in seconds since the epoch.
    pub fn made(&self) -> i64 {
        // SAFETY: the session is valid.
        unsafe { SSL_SESSION_get_time(self.as_ptr()) }
    }

    /// The last second in which the session is good, since the epoch: that of its own life, or of
    /// its client's certificate. `now` is the current one.
    pub fn expires(&self, now: i64) -> i64 {
        // SAFETY: the session is valid.
        let timeout = unsafe { SSL_SESSION_get_timeout(self.as_ptr()) };
        let own = self.made().saturating_add(timeout);
        self.certificate_left().map_or(own, |left| own.min(now.saturating_add(left)))
    }

    /// Whether the client has shown a certificate.
    pub fn has_certificate(&self) -> bool {
        // SAFETY: SSL_SESSION_get0_peer(3) lends, or returns null.
        unsafe { !SSL_SESSION_get0_peer(self.as_ptr()).is_null() }
    }

    /// The name of the server that the client has asked for when the session was made.
    pub fn server_name(&self) -> Option<&[u8]> {
        // SAFETY: SSL_SESSION_get0_hostname(3) lends a string of the session's, or returns null.
        unsafe {
            let name = SSL_SESSION_get0_hostname(self.as_ptr());
            (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes())
        }
    }

    /// How many seconds are left of the life of the client's certificate, if there is one. A time
    /// that cannot be read has passed.
    fn certificate_left(&self) -> Option<i64> {
        let (mut days, mut seconds) = (0, 0);
        // SAFETY: SSL_SESSION_get0_peer(3) and X509_get0_notAfter(3) lend what is valid as long
        // as the session; without a first time ASN1_TIME_diff(3) takes the current one.
        let known = unsafe {
            let certificate = SSL_SESSION_get0_peer(self.as_ptr());
            if certificate.is_null() {
                return None;
            }
            let end = X509_get0_notAfter(certificate);
            ERR_set_mark();
            let known = ASN1_TIME_diff(&raw mut days, &raw mut seconds, ptr::null(), end);
            ERR_pop_to_mark();
            known
        };
        let left = i64::from(days).saturating_mul(24 * 60 * 60).saturating_add(seconds.into());
        Some(if known == 1 { left } else { -1 })
    }

    /// Whether it is of TLS 1.3.
    pub fn is_tls13(&self) -> bool {
        self.protocol() == TLS1_3_VERSION as c_int
    }

    /// The version of TLS, as on the wire.
    pub fn protocol(&self) -> c_int {
        // SAFETY: the session is valid.
        unsafe { SSL_SESSION_get_protocol_version(self.as_ptr()) }
    }

    /// Appends the session in DER, if it is no longer than `max` bytes.
    pub fn to_der(&self, out: &mut Vec<u8>, max: usize) -> Result<(), DerError> {
        // SAFETY: without a buffer i2d_SSL_SESSION(3) only counts.
        let len = unsafe { i2d_SSL_SESSION(self.as_ptr(), ptr::null_mut()) };
        let len = usize::try_from(len).unwrap_or(0);
        if len > max {
            return Err(DerError::TooLarge(len));
        }
        out.try_reserve(len).map_err(|_| DerError::OutOfMemory)?;
        let mut next = out.spare_capacity_mut().as_mut_ptr().cast::<c_uchar>();
        // SAFETY: there is room for the length that i2d_SSL_SESSION() has just given; the session
        // has not changed since, so that much is written, unless memory is short.
        unsafe {
            let written = i2d_SSL_SESSION(self.as_ptr(), &raw mut next);
            if written <= 0 || usize::try_from(written) != Ok(len) {
                return Err(DerError::OutOfMemory);
            }
            out.set_len(out.len().saturating_add(len));
        }
        Ok(())
    }
}

/// Why a session cannot be had in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerError {
    /// It is longer than asked for: its length in bytes.
    TooLarge(usize),
    /// There is no memory for it.
    OutOfMemory,
}

/// A context of a configured server.
pub struct Context(NonNull<SSL_CTX>);

impl Context {
    /// # Safety
    /// `ctx` is valid as long as the result.
    pub(super) unsafe fn from_ptr(ctx: *mut SSL_CTX) -> Option<Self> {
        NonNull::new(ctx).map(Context)
    }

    /// Whether the server offers resumption at all: not with `ssl_session_cache off`.
    pub fn offers_resumption(&self) -> bool {
        self.cache_mode() & SSL_SESS_CACHE_SERVER != 0
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { SSL_CTX_get_options(self.0.as_ptr()) & SSL_OP_NO_TICKET == 0 }
    }

    /// Puts OpenSSL's own cache of the context out of use. Whether it was in use.
    pub fn forget_own_cache(&self) -> bool {
        let mode = self.cache_mode();
        let no_internal = SSL_SESS_CACHE_NO_INTERNAL_LOOKUP | SSL_SESS_CACHE_NO_INTERNAL_STORE;
        // SAFETY: SSL_CTX_set_session_cache_mode(3), which is this macro.
        unsafe {
            SSL_CTX_ctrl(
                self.0.as_ptr(),
                SSL_CTRL_SET_SESS_CACHE_MODE as c_int,
                (mode | no_internal).into(),
                ptr::null_mut(),
            );
        }
        mode & SSL_SESS_CACHE_SERVER != 0 && mode & no_internal == 0
    }

    fn cache_mode(&self) -> u32 {
        // SAFETY: SSL_CTX_get_session_cache_mode(3), which is this macro.
        unsafe {
            SSL_CTX_ctrl(self.0.as_ptr(), SSL_CTRL_GET_SESS_CACHE_MODE as c_int, 0, ptr::null_mut())
                as u32
        }
    }
}

/// Contexts with our callbacks in place of those they had, which ours call. Dropping it puts
/// those back.
pub struct Hooked<H: Handler>(
    #[allow(clippy::vec_box, reason = "OpenSSL knows them by their addresses")] Vec<Box<Hooks<H>>>,
);

struct Hooks<H: Handler> {
    /// Counted up.
    ctx: NonNull<SSL_CTX>,
    handler: Rc<H>,
    /// The server offers resumption. If not, only the info callback is ours: the server may be
    /// the one that a handshake which began elsewhere comes to.
    resumes: bool,
    /// OpenSSL keeps sessions too. What it removes then may only have given way to another.
    keeps_sessions: bool,
    info: InfoCallback,
    new: NewCallback,
    get: GetCallback,
    remove: RemoveCallback,
}

type InfoCallback = Option<unsafe extern "C" fn(*const SSL, c_int, c_int)>;
type NewCallback = Option<unsafe extern "C" fn(*mut SSL, *mut SSL_SESSION) -> c_int>;
type GetCallback =
    Option<unsafe extern "C" fn(*mut SSL, *const c_uchar, c_int, *mut c_int) -> *mut SSL_SESSION>;
type HelloCallback = Option<unsafe extern "C" fn(*mut SSL, *mut c_int, *mut c_void) -> c_int>;
type RemoveCallback = Option<unsafe extern "C" fn(*mut SSL_CTX, *mut SSL_SESSION)>;

/// OpenSSL has no memory left.
#[derive(Debug)]
pub struct HookError;

impl<H: Handler> Default for Hooked<H> {
    fn default() -> Self {
        Hooked(Vec::new())
    }
}

impl<H: Handler> Hooked<H> {
    /// Puts our callbacks into a context, unless it has them.
    pub fn hook(&mut self, context: &Context, handler: &Rc<H>) -> Result<(), HookError> {
        let globals = Globals::get::<H>().ok_or(HookError)?;
        let ctx = context.0;
        // SAFETY: the context is valid, and counted up before it is kept. The hooks are boxed,
        // so that their address holds until drop() has taken them out of the context.
        unsafe {
            if !SSL_CTX_get_ex_data(ctx.as_ptr(), globals.ctx_index).is_null() {
                return Ok(());
            }
            if SSL_CTX_up_ref(ctx.as_ptr()) != 1 {
                return Err(HookError);
            }
            let hooks = Box::new(Hooks {
                ctx,
                handler: Rc::clone(handler),
                resumes: context.offers_resumption(),
                keeps_sessions: context.cache_mode() & SSL_SESS_CACHE_NO_INTERNAL_STORE == 0,
                info: SSL_CTX_get_info_callback(ctx.as_ptr()),
                new: SSL_CTX_sess_get_new_cb(ctx.as_ptr()),
                get: SSL_CTX_sess_get_get_cb(ctx.as_ptr()),
                remove: SSL_CTX_sess_get_remove_cb(ctx.as_ptr()),
            });
            let data = (&raw const *hooks).cast_mut().cast::<c_void>();
            // From here on dropping the hooks counts down.
            if SSL_CTX_set_ex_data(ctx.as_ptr(), globals.ctx_index, data) != 1 {
                return Err(HookError);
            }
            SSL_CTX_set_info_callback(ctx.as_ptr(), Some(info::<H>));
            if LETS_CALLBACK_WAIT && hooks.resumes {
                SSL_CTX_set_client_hello_cb(ctx.as_ptr(), Some(hello::<H>), no_data());
            }
            if handler.restricts_early_data() {
                SSL_CTX_set_allow_early_data_cb(ctx.as_ptr(), Some(early_data::<H>), no_data());
            }
            if hooks.resumes {
                if handler.issues_ids() {
                    SSL_CTX_set_generate_session_id(ctx.as_ptr(), Some(generate::<H>));
                }
                SSL_CTX_sess_set_new_cb(ctx.as_ptr(), Some(new::<H>));
                SSL_CTX_sess_set_get_cb(ctx.as_ptr(), Some(get::<H>));
                SSL_CTX_sess_set_remove_cb(ctx.as_ptr(), Some(remove::<H>));
            }
            self.0.push(hooks);
        }
        Ok(())
    }
}

impl<H: Handler> Drop for Hooks<H> {
    fn drop(&mut self) {
        let ctx = self.ctx.as_ptr();
        // SAFETY: the context is counted up, so it is valid until the last line.
        unsafe {
            SSL_CTX_set_info_callback(ctx, self.info);
            if LETS_CALLBACK_WAIT && self.resumes {
                SSL_CTX_set_client_hello_cb(ctx, kept_hello(ctx), no_data());
            }
            // OpenSSL does not tell what was there before; nginx sets neither.
            SSL_CTX_set_generate_session_id(ctx, None);
            SSL_CTX_set_allow_early_data_cb(ctx, None, no_data());
            SSL_CTX_sess_set_new_cb(ctx, self.new);
            SSL_CTX_sess_set_get_cb(ctx, self.get);
            SSL_CTX_sess_set_remove_cb(ctx, self.remove);
            if let Some(globals) = Globals::get::<H>() {
                SSL_CTX_set_ex_data(ctx, globals.ctx_index, ptr::null_mut());
            }
            SSL_CTX_free(ctx);
        }
    }
}

/// What OpenSSL gives once per process. No callbacks go with the indexes: OpenSSL would call them
/// even after the module was unloaded.
#[derive(Clone, Copy)]
struct Globals {
    ssl_index: c_int,
    /// Of what is not null once it was said that the handshake has paused.
    paused_index: c_int,
    ctx_index: c_int,
    /// Of what is not null in a session whose connection was closed in order.
    closed_index: c_int,
    method: NonNull<BIO_METHOD>,
}

static SSL_INDEX: AtomicI32 = AtomicI32::new(-1);
static PAUSED_INDEX: AtomicI32 = AtomicI32::new(-1);
static CTX_INDEX: AtomicI32 = AtomicI32::new(-1);
static CLOSED_INDEX: AtomicI32 = AtomicI32::new(-1);
static METHOD: AtomicPtr<BIO_METHOD> = AtomicPtr::new(ptr::null_mut());

impl Globals {
    /// They exist once a context was hooked, so that callbacks can count on them.
    #[inline]
    fn get<H: Handler>() -> Option<Self> {
        if let Some(method) = NonNull::new(METHOD.load(Ordering::Relaxed)) {
            return Some(Globals {
                ssl_index: SSL_INDEX.load(Ordering::Relaxed),
                paused_index: PAUSED_INDEX.load(Ordering::Relaxed),
                ctx_index: CTX_INDEX.load(Ordering::Relaxed),
                closed_index: CLOSED_INDEX.load(Ordering::Relaxed),
                method,
            });
        }
        Self::register::<H>()
    }

    #[cold]
    fn register<H: Handler>() -> Option<Self> {
        // SAFETY: plain registrations with OpenSSL, by the only thread; the method is never freed,
        // since BIOs refer to it.
        unsafe {
            let index = |class: u32| {
                CRYPTO_get_ex_new_index(class as c_int, 0, ptr::null_mut(), None, None, None)
            };
            let globals = Globals {
                ssl_index: index(CRYPTO_EX_INDEX_SSL),
                paused_index: index(CRYPTO_EX_INDEX_SSL),
                ctx_index: index(CRYPTO_EX_INDEX_SSL_CTX),
                closed_index: index(CRYPTO_EX_INDEX_SSL_SESSION),
                method: NonNull::new(BIO_meth_new(
                    BIO_TYPE_FILTER as c_int,
                    c"nginx SSL session fetch".as_ptr(),
                ))?,
            };
            let method = globals.method.as_ptr();
            if globals.ssl_index < 0
                || globals.paused_index < 0
                || globals.ctx_index < 0
                || globals.closed_index < 0
                || BIO_meth_set_read(method, Some(bio_read::<H>)) != 1
                || BIO_meth_set_write(method, Some(bio_write::<H>)) != 1
                || BIO_meth_set_ctrl(method, Some(bio_ctrl::<H>)) != 1
                || BIO_meth_set_create(method, Some(bio_create)) != 1
                || BIO_meth_set_destroy(method, Some(bio_destroy::<H>)) != 1
            {
                return None;
            }
            SSL_INDEX.store(globals.ssl_index, Ordering::Relaxed);
            PAUSED_INDEX.store(globals.paused_index, Ordering::Relaxed);
            CTX_INDEX.store(globals.ctx_index, Ordering::Relaxed);
            CLOSED_INDEX.store(globals.closed_index, Ordering::Relaxed);
            METHOD.store(method, Ordering::Relaxed);
            Some(globals)
        }
    }
}

/// A client's connection to nginx in TLS, for the length of one call.
pub struct Connection {
    c: NonNull<ngx_connection_t>,
    ssl: NonNull<SSL>,
}

impl Connection {
    /// The connection of an SSL object that nginx made.
    ///
    /// # Safety
    /// `ssl` is valid for the current call.
    unsafe fn of(ssl: *mut SSL) -> Option<Self> {
        // SAFETY: the caller's; ngx_ssl_create_connection() has set the connection.
        let c = unsafe { SSL_get_ex_data(ssl, ngx_ssl_connection_index) };
        Some(Connection { c: NonNull::new(c.cast())?, ssl: NonNull::new(ssl)? })
    }

    /// The connection of a request.
    ///
    /// # Safety
    /// `c` is valid for the current call.
    pub(super) unsafe fn of_nginx(c: *mut ngx_connection_t) -> Option<Self> {
        let c = NonNull::new(c)?;
        // SAFETY: the caller's; nginx sets ssl and its connection together.
        let ssl = unsafe { (*c.as_ptr()).ssl.as_ref()?.connection };
        Some(Connection { c, ssl: NonNull::new(ssl)? })
    }

    /// The connection's log.
    pub fn log(&self) -> &Log {
        // SAFETY: nginx sets a log with every connection.
        unsafe { Log::from_raw((*self.c.as_ptr()).log) }
    }

    /// A number of the listening address that it came to, and its text.
    pub fn listening(&self) -> Option<(usize, &str)> {
        // SAFETY: the connection is valid; what it was accepted from lives as long as the cycle,
        // and so does its text.
        unsafe {
            let listening = (*self.c.as_ptr()).listening;
            let text = listening.as_ref()?.addr_text;
            let text = core::slice::from_raw_parts(text.data, text.len);
            Some((listening.addr(), core::str::from_utf8(text).ok()?))
        }
    }

    /// Whether it is QUIC.
    pub fn is_quic(&self) -> bool {
        // SAFETY: the connection is valid.
        unsafe { (*self.c.as_ptr()).type_ == libc::SOCK_DGRAM }
    }

    /// How its handshake can wait.
    pub fn waits(&self) -> Waits {
        // SAFETY: a static of nginx's, set before connections come.
        let levels = unsafe { ngx_event_flags } & NGX_USE_LEVEL_EVENT as usize != 0;
        match self.is_quic() {
            true if quic::waits_in_filter() => Waits::InFilter,
            true if LETS_CALLBACK_WAIT => Waits::InCallback,
            true => Waits::Not,
            // What is not read would be reported again and again.
            false if LETS_CALLBACK_WAIT && !levels => Waits::InCallback,
            false => Waits::InFilter,
        }
    }

    /// Whether TLS 1.3 may be negotiated, as far as the server's side goes.
    pub fn allows_tls13(&self) -> bool {
        // SAFETY: SSL_get_max_proto_version(3), which is this macro; 0 is "no limit".
        let max = unsafe {
            SSL_ctrl(self.ssl.as_ptr(), SSL_CTRL_GET_MAX_PROTO_VERSION as c_int, 0, ptr::null_mut())
        };
        self.options() & SSL_OP_NO_TLSV1_3 == 0
            && (max == 0 || max >= c_long::from(TLS1_3_VERSION as i32))
    }

    /// Whether TLS 1.3 was negotiated.
    pub fn is_tls13(&self) -> bool {
        self.protocol() == TLS1_3_VERSION as c_int
    }

    /// The version of TLS that was negotiated, as on the wire.
    pub fn protocol(&self) -> c_int {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_version(self.ssl.as_ptr()) }
    }

    /// Whether a session was resumed.
    pub fn is_resumed(&self) -> bool {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_session_reused(self.ssl.as_ptr()) == 1 }
    }

    /// The name of the server that the client asks for. To be called while OpenSSL reads the
    /// ClientHello: later it is gone.
    pub fn server_name(&self) -> Option<&[u8]> {
        // SAFETY: the SSL object is valid, and the caller's.
        server_name(unsafe { extension(self.ssl, TLSEXT_TYPE_server_name) }?)
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        self.options() & SSL_OP_NO_TICKET == 0
    }

    fn options(&self) -> u64 {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_get_options(self.ssl.as_ptr()) }
    }

    /// Whether the handshake that OpenSSL says is done only pauses for early data, and whether it
    /// says so of this one for the first time.
    fn is_paused<H: Handler>(&self) -> (bool, bool) {
        let Some(globals) = Globals::get::<H>() else { return (false, true) };
        let (ssl, index) = (self.ssl.as_ptr(), globals.paused_index);
        // SAFETY: the SSL object is valid; the data is only compared with null.
        unsafe {
            let first = SSL_get_ex_data(ssl, index).is_null();
            let paused = SSL_get_state(ssl) == OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA;
            if paused {
                // Without memory it is counted twice.
                SSL_set_ex_data(ssl, index, ptr::from_ref(&PAUSED_INDEX).cast_mut().cast());
            }
            (paused, first)
        }
    }

    /// What was attached, if anything.
    pub fn attached<H: Handler>(&self) -> Option<&Attached<H>> {
        // SAFETY: the SSL object is valid.
        unsafe { attached_of(self.ssl.as_ptr()) }
    }

    /// Attaches `state` to the connection, once. It is dropped when the connection closes.
    pub fn attach<H: Handler>(
        &self,
        handler: &Rc<H>,
        state: H::State,
    ) -> Result<&Attached<H>, OutOfMemory> {
        const { assert!(mem::align_of::<Attached<H>>() <= NGX_ALIGNMENT) };
        let globals = Globals::get::<H>().ok_or(OutOfMemory)?;
        // SAFETY: the memory comes from the connection's pool, aligned (ngx_palloc()) and of the
        // size asked for; the cleanup runs when the pool goes, and only once there is something to
        // drop.
        unsafe {
            let pool = (*self.c.as_ptr()).pool;
            let cleanup = ngx_pool_cleanup_add(pool, mem::size_of::<Attached<H>>());
            if cleanup.is_null() {
                return Err(OutOfMemory);
            }
            let attached = (*cleanup).data.cast::<Attached<H>>();
            attached.write(Attached {
                state,
                handler: Rc::clone(handler),
                c: self.c,
                ssl: self.ssl,
                socket: Cell::new(ptr::null_mut()),
                filter: Cell::new(ptr::null_mut()),
                token: Cell::new(None),
                wake: OnceCell::new(),
            });
            (*cleanup).handler = Some(detach::<H>);
            if SSL_set_ex_data(self.ssl.as_ptr(), globals.ssl_index, attached.cast()) != 1 {
                return Err(OutOfMemory);
            }
            Ok(&*attached)
        }
    }

    /// Puts the filter in front of the socket, for reading. From now on [`Handler::read`] is
    /// asked, until [`Handler::is_through`].
    pub fn suspendable<H: Handler>(&self, attached: &Attached<H>) -> Result<(), OutOfMemory> {
        let globals = Globals::get::<H>().ok_or(OutOfMemory)?;
        // SAFETY: SSL_get_rbio() lends the socket's BIO; the filter gets a reference of its own.
        // SSL_set0_rbio() takes the filter and drops the reference that the SSL object had.
        unsafe {
            let socket = SSL_get_rbio(self.ssl.as_ptr());
            if socket.is_null() || !attached.filter.get().is_null() {
                return Err(OutOfMemory);
            }
            let filter = BIO_new(globals.method.as_ptr());
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

/// The data of an extension of the ClientHello.
///
/// # Safety
/// `ssl` is valid, and OpenSSL reads its ClientHello.
unsafe fn extension<'a>(ssl: NonNull<SSL>, kind: u32) -> Option<&'a [u8]> {
    let (mut data, mut len) = (ptr::null(), 0);
    // SAFETY: SSL_client_hello_get0_ext(3): it lends what is valid as long as OpenSSL reads the
    // ClientHello, that is beyond the current callback.
    unsafe {
        let there = SSL_client_hello_get0_ext(ssl.as_ptr(), kind, &raw mut data, &raw mut len);
        if there != 1 {
            return None;
        }
        // An empty one may have no data.
        Some(if data.is_null() { &[] } else { core::slice::from_raw_parts(data, len) })
    }
}

/// The ClientHello that OpenSSL has just read.
pub struct HelloRef(NonNull<SSL>);

impl HelloRef {
    /// What it says about sessions; `None` if that is malformed.
    pub fn read(&self) -> Option<ClientHello> {
        let mut id = ptr::null();
        // SAFETY: SSL_client_hello_get0_session_id(3) lends for as long as the callback takes.
        let id = unsafe {
            let len = SSL_client_hello_get0_session_id(self.0.as_ptr(), &raw mut id);
            if id.is_null() { &[] } else { core::slice::from_raw_parts(id, len) }
        };
        // SAFETY: this is made for a callback in which OpenSSL reads the ClientHello.
        ClientHello::from_parts(id, |kind| unsafe { extension(self.0, kind.into()) })
    }
}

/// What is attached to a connection, if anything.
///
/// # Safety
/// `ssl` is valid for the current call.
unsafe fn attached_of<'a, H: Handler>(ssl: *const SSL) -> Option<&'a Attached<H>> {
    let globals = Globals::get::<H>()?;
    // SAFETY: the caller's; the data of this index is what attach() set, in memory of the
    // connection's pool, which lives longer than the SSL object (ngx_ssl_shutdown() frees that
    // first).
    unsafe { SSL_get_ex_data(ssl, globals.ssl_index).cast::<Attached<H>>().as_ref() }
}

/// A state in its place beside a connection.
pub struct Attached<H: Handler> {
    state: H::State,
    handler: Rc<H>,
    c: NonNull<ngx_connection_t>,
    ssl: NonNull<SSL>,
    /// The socket's BIO, counted up, while there is a filter.
    socket: Cell<*mut BIO>,
    /// The filter, while there is one; it belongs to the SSL object.
    filter: Cell<*mut BIO>,
    token: Cell<Option<Token>>,
    /// Goes on with a handshake of QUIC.
    wake: OnceCell<Rc<quic::Wake>>,
}

impl<H: Handler> Attached<H> {
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

    /// The connection. Only for use while a handshake is under way, as the TLS side of a
    /// connection ends before what is attached to it.
    pub fn connection(&self) -> Connection {
        Connection { c: self.c, ssl: self.ssl }
    }

    /// The token by which [`Waiters::with`] finds this; good until [`Attached::forget`] or the
    /// end of the connection.
    pub fn token(&self) -> Result<Token, OutOfMemory> {
        if let Some(token) = self.token.get() {
            return Ok(token);
        }
        let mut slots = self.handler.waiters().0.try_borrow_mut().map_err(|_| OutOfMemory)?;
        let token = slots.insert(NonNull::from(self))?;
        self.token.set(Some(token));
        Ok(token)
    }

    /// Makes the token stale.
    pub fn forget(&self) {
        if let Some(token) = self.token.take() {
            if let Ok(mut slots) = self.handler.waiters().0.try_borrow_mut() {
                slots.remove(token);
            }
        }
    }

    /// Takes the filter out. Never from within its own read.
    fn remove_filter(&self) {
        // SAFETY: SSL_set0_rbio() takes the reference that is counted up for it and drops the
        // filter, whose destruction drops the filter's own (bio_destroy()).
        unsafe {
            let socket = self.socket.get();
            if SSL_get_rbio(self.ssl.as_ptr()) == self.filter.get() && !socket.is_null() {
                BIO_up_ref(socket);
                SSL_set0_rbio(self.ssl.as_ptr(), socket);
            }
        }
    }

    /// Whether the client has gone: nothing of what it may still get would be of use.
    pub fn has_left(&self) -> bool {
        if self.connection().is_quic() {
            return false;
        }
        let mut byte = 0_u8;
        // SAFETY: the connection is valid; recv(2) writes one byte at most.
        unsafe {
            let c = self.c.as_ptr();
            if (*(*c).read).pending_eof() != 0 {
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
    pub fn resume(&self) {
        if self.connection().is_quic() {
            // SAFETY: the connection and its SSL object are valid during a handshake; what wakes
            // it goes with what is attached, before them.
            let wake = self.wake.get_or_init(|| unsafe { quic::Wake::new(self.c, self.ssl) });
            wake.soon();
            return;
        }
        // SAFETY: the connection and its read event live as long as its pool; nginx takes a posted
        // event back when it closes the connection (ngx_close_connection()).
        unsafe { ngx_post_event((*self.c.as_ptr()).read, &raw mut ngx_posted_events) };
    }
}

impl<H: Handler> Drop for Attached<H> {
    fn drop(&mut self) {
        self.forget();
        let filter = self.filter.get();
        if !filter.is_null() {
            // SAFETY: the SSL object is freed before the pool, and its filter with it. Should it
            // outlive the pool all the same, the filter must not find what is gone.
            unsafe { BIO_set_data(filter, ptr::null_mut()) };
        }
    }
}

unsafe extern "C" fn detach<H: Handler>(data: *mut c_void) {
    // SAFETY: the cleanup of attach(), which wrote an Attached<H> there.
    unsafe { ptr::drop_in_place(data.cast::<Attached<H>>()) };
}

/// Attached states that somebody waits for, by token.
pub struct Waiters<H: Handler>(RefCell<Slots<NonNull<Attached<H>>>>);

impl<H: Handler> Waiters<H> {
    /// None yet.
    pub const fn new() -> Self {
        Waiters(RefCell::new(Slots::new()))
    }

    /// Calls `f` with the state of `token`, unless its connection is gone or has forgotten it.
    pub fn with<R>(&self, token: Token, f: impl FnOnce(&Attached<H>) -> R) -> Option<R> {
        let attached = self.0.try_borrow().ok()?.get(token).copied()?;
        // SAFETY: Attached::drop() takes its token out, so what is found is alive. It stays so
        // during the call: connections are closed by nginx's handlers only, and none runs within
        // it.
        Some(f(unsafe { attached.as_ref() }))
    }
}

/// The client's socket.
pub struct Socket(NonNull<BIO>);

/// What reading from the socket came to.
#[derive(Debug, PartialEq, Eq)]
pub enum SocketRead {
    /// That many bytes.
    Bytes(usize),
    /// Nothing there now.
    Again,
    /// The socket has ended.
    Ended(Ending),
    /// There is no memory for what could be read.
    OutOfMemory,
}

impl Socket {
    /// Reads at most `max` bytes to the end of `buf`.
    pub fn read(&self, buf: &mut Vec<u8>, max: usize) -> SocketRead {
        if buf.try_reserve_exact(max).is_err() {
            return SocketRead::OutOfMemory;
        }
        let spare = buf.spare_capacity_mut();
        let room = c_int::try_from(spare.len().min(max)).unwrap_or(c_int::MAX);
        // SAFETY: BIO_read(3) writes at most `room` bytes into the buffer's spare memory.
        unsafe {
            let n = BIO_read(self.0.as_ptr(), spare.as_mut_ptr().cast(), room);
            match usize::try_from(n) {
                Ok(read) if read > 0 => {
                    buf.set_len(buf.len().saturating_add(read));
                    SocketRead::Bytes(read)
                }
                _ if should_retry(self.0.as_ptr()) => SocketRead::Again,
                _ => SocketRead::Ended(Ending { result: n, errno: ngx_errno() }),
            }
        }
    }
}

/// OpenSSL's buffer for what it reads.
pub struct Sink {
    to: *mut c_char,
    room: usize,
}

impl Sink {
    /// Puts as much of `bytes` into it as there is room for, and says how much. To be called once.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.room);
        // SAFETY: there is room for `room` bytes (BIO_read(3)), in a buffer that nobody else has.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.to.cast(), len) };
        self.room = 0;
        len
    }
}

/// The hooks of a context.
///
/// # Safety
/// `ctx` is valid, and so is the result for the current callback.
unsafe fn hooks<'a, H: Handler>(ctx: *mut SSL_CTX) -> Option<&'a Hooks<H>> {
    let globals = Globals::get::<H>()?;
    // SAFETY: the caller's; what is there was set by Hooked::hook() and is taken out before it is
    // freed.
    unsafe { SSL_CTX_get_ex_data(ctx, globals.ctx_index).cast::<Hooks<H>>().as_ref() }
}

/// The hooks of the context that a connection began with, whose session callbacks OpenSSL calls.
///
/// # Safety
/// `c` is a TLS connection of nginx.
unsafe fn session_hooks<'a, H: Handler>(c: NonNull<ngx_connection_t>) -> Option<&'a Hooks<H>> {
    // SAFETY: the caller's; nginx keeps the context in session_ctx (ngx_ssl_create_connection()).
    unsafe { hooks((*c.as_ptr()).ssl.as_ref()?.session_ctx) }
}

static STEPS: AtomicUsize = AtomicUsize::new(0);

/// How many steps of handshakes this worker has seen: what it was busy with.
pub fn steps() -> usize {
    STEPS.load(Ordering::Relaxed)
}

unsafe extern "C" fn info<H: Handler>(ssl: *const SSL, what: c_int, ret: c_int) {
    // SAFETY: OpenSSL calls with a valid object, whose current context has this callback.
    let Some(hooks) = (unsafe { hooks::<H>(SSL_get_SSL_CTX(ssl)) }) else { return };
    // One thread counts.
    STEPS.store(steps().wrapping_add(1), Ordering::Relaxed);
    if what as u32 & SSL_CB_ALERT != 0 {
        // SAFETY: the object is valid.
        unsafe { alert(ssl, what as u32, ret) };
    } else {
        hooks.step(ssl.cast_mut(), what as u32);
    }
    if let Some(kept) = hooks.info {
        // SAFETY: called as OpenSSL would.
        unsafe { kept(ssl, what, ret) };
    }
}

/// Marks the session of a connection that is closed in order. Where nginx waits for the client to do
/// so, too, as in `stream{}`, and the client only closes its socket, OpenSSL forgets that it has sent a
/// close_notify (`SSL_OP_IGNORE_UNEXPECTED_EOF`, which nginx sets), and removes the session for that.
///
/// # Safety
/// `ssl` is valid for the current call.
unsafe fn alert(ssl: *const SSL, what: u32, alert: c_int) {
    const CLOSE_NOTIFY: c_int = (SSL3_AL_WARNING << 8 | SSL_AD_CLOSE_NOTIFY) as c_int;
    let index = CLOSED_INDEX.load(Ordering::Relaxed);
    // SAFETY: the caller's; the data is only compared with null.
    unsafe {
        let waits = || SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN as c_int == 0;
        let mark = if alert >> 8 == SSL3_AL_FATAL as c_int {
            ptr::null_mut()
        } else if what & SSL_CB_WRITE != 0 && alert == CLOSE_NOTIFY && waits() {
            ptr::from_ref(&CLOSED_INDEX).cast_mut().cast()
        } else {
            return;
        };
        let session = SSL_get_session(ssl);
        // Without memory it is removed.
        if !session.is_null() && SSL_SESSION_get_ex_data(session, index) != mark {
            SSL_SESSION_set_ex_data(session, index, mark);
        }
    }
}

impl<H: Handler> Hooks<H> {
    fn step(&self, ssl: *mut SSL, what: u32) {
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
                let (paused, first) = connection.is_paused::<H>();
                self.handler.handshake_done(&connection, attached, paused, first);
            }
        }
    }
}

/// nginx's own callback of a context, which OpenSSL does not tell.
///
/// # Safety
/// `ctx` is a context of nginx's.
#[cfg(nginx_1_29_2)]
unsafe fn kept_hello(ctx: *mut SSL_CTX) -> HelloCallback {
    // SAFETY: the caller's; ngx_ssl_set_client_hello_callback() sets both or none.
    let argument = unsafe { SSL_CTX_get_ex_data(ctx, ngx_ssl_client_hello_arg_index) };
    (!argument.is_null()).then_some(ngx_ssl_client_hello_callback)
}

/// Before 1.29.2 nginx has none.
#[cfg(not(nginx_1_29_2))]
unsafe fn kept_hello(_: *mut SSL_CTX) -> HelloCallback {
    None
}

unsafe extern "C" fn hello<H: Handler>(
    ssl: *mut SSL,
    alert: *mut c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SSL_CTX_set_client_hello_cb(3).
    unsafe {
        if let (Some(attached), Some(this)) = (attached_of::<H>(ssl), NonNull::new(ssl)) {
            if attached.filter.get().is_null() {
                match attached.handler.hello(attached, &HelloRef(this)) {
                    Hello::GoOn => {}
                    Hello::Wait => return SSL_CLIENT_HELLO_RETRY,
                    Hello::End => {
                        *alert = SSL_AD_USER_CANCELLED as c_int;
                        return SSL_CLIENT_HELLO_ERROR as c_int;
                    }
                }
            }
        }
        match Connection::of(ssl)
            .and_then(|c| kept_hello((*c.c.as_ptr()).ssl.as_ref()?.session_ctx))
        {
            Some(kept) => kept(ssl, alert, argument),
            None => SSL_CLIENT_HELLO_SUCCESS as c_int,
        }
    }
}

unsafe extern "C" fn get<H: Handler>(
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

unsafe extern "C" fn generate<H: Handler>(
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
            // Nobody can find such a session later, but the handshake goes on.
            _ => RAND_bytes(id, c_int::try_from(room.len()).unwrap_or(0)),
        }
    }
}

unsafe extern "C" fn early_data<H: Handler>(ssl: *mut SSL, _: *mut c_void) -> c_int {
    // SAFETY: SSL_CTX_set_allow_early_data_cb(3).
    let allowed = unsafe {
        Connection::of(ssl).is_some_and(|connection| {
            session_hooks::<H>(connection.c)
                .is_some_and(|hooks| hooks.handler.allows_early_data(&connection))
        })
    };
    allowed.into()
}

/// Our callbacks find what they need by the connection.
const fn no_data() -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C" fn new<H: Handler>(ssl: *mut SSL, session: *mut SSL_SESSION) -> c_int {
    // SAFETY: SSL_CTX_sess_set_new_cb(3): the session is lent; its reference is taken over only
    // with a result of 1, which is for the kept callback to say.
    unsafe {
        let Some(connection) = Connection::of(ssl) else { return 0 };
        let Some(hooks) = session_hooks::<H>(connection.c) else { return 0 };
        hooks.handler.session_made(&connection, SessionRef::from_ptr(session));
        hooks.new.map_or(0, |kept| kept(ssl, session))
    }
}

unsafe extern "C" fn remove<H: Handler>(ctx: *mut SSL_CTX, session: *mut SSL_SESSION) {
    // SAFETY: SSL_CTX_sess_set_remove_cb(3): both are lent.
    unsafe {
        let Some(hooks) = hooks::<H>(ctx) else { return };
        let closed = SSL_SESSION_get_ex_data(session, CLOSED_INDEX.load(Ordering::Relaxed));
        if !hooks.keeps_sessions && closed.is_null() {
            hooks.handler.session_removed(SessionRef::from_ptr(session));
        }
        if let Some(kept) = hooks.remove {
            kept(ctx, session);
        }
    }
}

/// What a filter belongs to.
///
/// # Safety
/// `bio` is a filter of [`Connection::suspendable`].
unsafe fn attached_to<'a, H: Handler>(bio: *mut BIO) -> Option<&'a Attached<H>> {
    // SAFETY: the data is what suspendable() set; Attached::drop() takes it out.
    unsafe { BIO_get_data(bio).cast::<Attached<H>>().as_ref() }
}

unsafe fn should_retry(bio: *mut BIO) -> bool {
    // SAFETY: BIO_should_retry(3), which is this macro.
    unsafe { BIO_test_flags(bio, BIO_FLAGS_SHOULD_RETRY as c_int) != 0 }
}

/// Hands the socket's wish to be asked again on to whoever asked the filter.
unsafe fn copy_retry(filter: *mut BIO, socket: *mut BIO) {
    const FLAGS: c_int = (BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY) as c_int;
    // SAFETY: BIO_copy_next_retry() for a BIO that is not chained.
    unsafe {
        BIO_clear_flags(filter, FLAGS);
        BIO_set_flags(filter, BIO_test_flags(socket, FLAGS));
        BIO_set_retry_reason(filter, BIO_get_retry_reason(socket));
    }
}

unsafe extern "C" fn bio_read<H: Handler>(bio: *mut BIO, to: *mut c_char, len: c_int) -> c_int {
    // SAFETY: BIO_meth_set_read(3): a filter of ours and room for `len` bytes.
    unsafe {
        BIO_clear_flags(bio, (BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY) as c_int);
        let Some(attached) = attached_to::<H>(bio) else { return -1 };
        let Some(socket) = NonNull::new(attached.socket.get()) else { return -1 };
        let mut sink = Sink { to, room: usize::try_from(len).unwrap_or(0) };
        match attached.handler.read(attached, &Socket(socket), &mut sink) {
            Read::Data(n) => c_int::try_from(n).unwrap_or(-1),
            Read::Ended(ending) => {
                // nginx logs it (ngx_ssl_handshake()).
                ngx_set_errno(ending.errno);
                ending.result
            }
            Read::Suspended => {
                BIO_set_flags(bio, (BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY) as c_int);
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
        match command as u32 {
            BIO_CTRL_PUSH | BIO_CTRL_POP | BIO_CTRL_DUP => 0,
            BIO_CTRL_PENDING => match attached.handler.pending(attached) {
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
