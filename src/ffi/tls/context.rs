//! The contexts of configured servers, and the module's callbacks in them.

use core::cell::Cell;
use core::ffi::{c_long, c_void};
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use session_core::origin::Verification;

use super::callbacks::{self, GetCallback, HelloCallback, Hooks, InfoCallback, NewCallback};
use super::connection::{LETS_CALLBACK_WAIT, has_anti_replay};
use super::filter;
use super::handler::Handler;
use super::index::Indexes;
use super::origin::{Common, FindServers, Judge};
use crate::ffi::openssl::{
    Algorithm, CtxRef, SSL_CTX, SSL_CTX_get_info_callback, SSL_CTX_get_max_early_data,
    SSL_CTX_get_num_tickets, SSL_CTX_get_options, SSL_CTX_get_session_cache_mode,
    SSL_CTX_get_timeout, SSL_CTX_sess_get_get_cb, SSL_CTX_sess_get_new_cb, SSL_CTX_sess_set_get_cb,
    SSL_CTX_sess_set_new_cb, SSL_CTX_set_allow_early_data_cb, SSL_CTX_set_client_hello_cb,
    SSL_CTX_set_ex_data, SSL_CTX_set_generate_session_id, SSL_CTX_set_info_callback,
    SSL_CTX_set_num_tickets, SSL_CTX_set_session_cache_mode, SSL_CTX_set_session_ticket_cb,
    SSL_CTX_set_tlsext_ticket_key_evp_cb, SSL_OP_NO_TICKET, SSL_OP_NO_TLSv1_3,
    SSL_SESS_CACHE_NO_INTERNAL_LOOKUP, SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_SERVER,
    ask,
};

ask! { CtxRef:
    pub(super) fn options() -> u64 = SSL_CTX_get_options;
    /// How long sessions are good, in seconds.
    pub(super) fn session_timeout() -> i64 = SSL_CTX_get_timeout;
    fn max_early_data() -> u32 = SSL_CTX_get_max_early_data;
    fn cache_mode() -> c_long = SSL_CTX_get_session_cache_mode;
    fn info_callback() -> InfoCallback = SSL_CTX_get_info_callback;
    fn new_callback() -> NewCallback = SSL_CTX_sess_get_new_cb;
    fn get_callback() -> GetCallback = SSL_CTX_sess_get_get_cb;
}

impl CtxRef {
    /// As [`Context::offers_resumption`].
    pub(super) fn offers_resumption(&self) -> bool {
        self.cache_mode() & SSL_SESS_CACHE_SERVER != 0
    }
}

/// How many tickets a full handshake of TLS 1.3 brings where nobody says anything
/// (SSL_CTX_set_num_tickets(3)).
const TICKETS_BY_DEFAULT: usize = 2;

/// A context of a configured server, and the callback for the ClientHello that all of its block have.
#[derive(Clone, Copy)]
pub struct Context(NonNull<SSL_CTX>, HelloCallback);

impl Context {
    /// A context of `stream{}`.
    ///
    /// # Safety
    /// `ctx` is valid as long as the result.
    pub(in crate::ffi) unsafe fn from_ptr(ctx: *mut SSL_CTX) -> Option<Self> {
        NonNull::new(ctx).map(|ctx| Context(ctx, None))
    }

    /// One of `http{}`.
    ///
    /// # Safety
    /// The same.
    pub(in crate::ffi) unsafe fn of_http(ctx: *mut SSL_CTX) -> Option<Self> {
        NonNull::new(ctx).map(|ctx| Context(ctx, callbacks::http_hello()))
    }

    pub(super) fn ctx(&self) -> &CtxRef {
        // SAFETY: it is valid as long as this.
        unsafe { CtxRef::from_ptr(self.0.as_ptr()) }
    }

    /// Whether the server offers resumption at all: not with `ssl_session_cache off`.
    pub fn offers_resumption(&self) -> bool {
        self.ctx().offers_resumption()
    }

    /// How long sessions are good, in seconds.
    pub fn session_timeout(&self) -> i64 {
        self.ctx().session_timeout()
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        self.ctx().options() & SSL_OP_NO_TICKET == 0
    }

    /// Lets a full handshake of TLS 1.3 bring so many tickets; a resumption brings one
    /// (SSL_CTX_set_num_tickets(3)). A server that was told another number by `ssl_conf_command
    /// NumTickets` keeps it.
    pub fn set_ticket_count(&self, count: usize) {
        // SAFETY: the context is valid.
        unsafe {
            if SSL_CTX_get_num_tickets(self.0.as_ptr()) == TICKETS_BY_DEFAULT {
                SSL_CTX_set_num_tickets(self.0.as_ptr(), count);
            }
        }
    }

    /// In what another server differs.
    pub fn differences(&self, other: Context) -> Differences {
        let differ = self.ctx().options() ^ other.ctx().options();
        Differences {
            tls13: differ & SSL_OP_NO_TLSv1_3 != 0,
            tickets: differ & SSL_OP_NO_TICKET != 0,
        }
    }

    /// Whether OpenSSL itself protects early data (`SSL_OP_NO_ANTI_REPLAY` was taken away). It then
    /// resumes sessions of TLS 1.3 that its own cache has, and no others.
    pub fn has_anti_replay(&self) -> bool {
        has_anti_replay(self.ctx().options(), self.ctx().max_early_data())
    }

    /// Puts OpenSSL's own cache of the context out of use, and says whether it was in use.
    pub fn forget_own_cache(&self) -> bool {
        let mode = self.ctx().cache_mode();
        let no_internal = SSL_SESS_CACHE_NO_INTERNAL_LOOKUP | SSL_SESS_CACHE_NO_INTERNAL_STORE;
        // SAFETY: the context is valid.
        unsafe { SSL_CTX_set_session_cache_mode(self.0.as_ptr(), mode | no_internal) };
        mode & SSL_SESS_CACHE_SERVER != 0 && mode & no_internal == 0
    }
}

/// In what servers of one socket differ, of that which decides about session IDs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Differences {
    /// Whether TLS 1.3 is enabled.
    pub tls13: bool,
    /// Whether stateless tickets are on.
    pub tickets: bool,
}

impl Differences {
    /// These and others.
    pub fn and(self, others: Self) -> Self {
        Differences { tls13: self.tls13 | others.tls13, tickets: self.tickets | others.tickets }
    }

    /// Those that count before OpenSSL has asked for a session. Before 1.29.2 nginx dispatches to
    /// a virtual server later, so that the default server's settings are those that count.
    fn that_count(self) -> Self {
        if cfg!(nginx_early_servername) { self } else { Differences::default() }
    }
}

/// Contexts with our callbacks in place of those they had, which ours call. Dropping it puts the
/// old ones back.
pub struct Hooked<H: Handler> {
    #[allow(clippy::vec_box, reason = "OpenSSL knows them by their addresses")]
    hooks: Vec<Box<Hooks<H>>>,
    /// How all of them judge clients.
    common: Rc<Cell<Common>>,
}

/// OpenSSL has no memory left.
#[derive(Debug)]
pub struct HookError;

impl<H: Handler> Default for Hooked<H> {
    fn default() -> Self {
        Hooked { hooks: Vec::new(), common: Rc::default() }
    }
}

impl<H: Handler> Hooked<H> {
    /// Puts our callbacks into a context, unless it has them already.
    /// `verification` is how its server verifies clients, and `find` finds servers of its block; in
    /// the `differences` other servers of its sockets may answer in its place.
    pub fn hook(
        &mut self,
        context: &Context,
        verification: &Verification,
        differences: Differences,
        find: FindServers,
        handler: &Rc<H>,
    ) -> Result<(), HookError> {
        let indexes = Indexes::get().ok_or(HookError)?;
        filter::method::<H>().ok_or(HookError)?;
        let ctx = context.ctx();
        if !ctx.data(indexes.hooks).is_null() {
            return Ok(());
        }
        let judge = Judge::new(ctx, verification).ok_or(HookError)?;
        let ticket_cipher = match handler.has_ticket_keys() {
            true => Some(Algorithm::fetch(c"AES-256-CBC").ok_or(HookError)?),
            false => None,
        };
        judge.add_to(&self.common);
        let hooks = Box::new(Hooks {
            ctx: ctx.to_owned(),
            handler: Rc::clone(handler),
            resumes: context.offers_resumption(),
            judge,
            common: Rc::clone(&self.common),
            find,
            differences: differences.that_count(),
            ticket_cipher,
            info: ctx.info_callback(),
            new: ctx.new_callback(),
            get: ctx.get_callback(),
            hello: callbacks::kept_hello(ctx).or(context.1),
            pending: callbacks::pending_session(),
        });
        let (ctx, data) = (ctx.as_ptr(), (&raw const *hooks).cast_mut().cast::<c_void>());
        // SAFETY: the context is valid, and the hooks keep it. They are boxed, so that their address holds
        // until drop() has taken them out of it.
        unsafe {
            if SSL_CTX_set_ex_data(ctx, indexes.hooks, data) != 1 {
                return Err(HookError);
            }
            SSL_CTX_set_info_callback(ctx, Some(callbacks::info::<H>));
            if hooks.reads_hello() {
                SSL_CTX_set_client_hello_cb(ctx, Some(callbacks::hello::<H>), no_data());
            }
            if hooks.ticket_cipher.is_some() {
                SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, Some(callbacks::ticket_key::<H>));
            }
            if handler.restricts_early_data() {
                SSL_CTX_set_allow_early_data_cb(ctx, Some(callbacks::early_data::<H>), no_data());
            }
            // Stateless tickets resume with "ssl_session_cache off", too.
            SSL_CTX_set_session_ticket_cb(
                ctx,
                Some(callbacks::make_ticket::<H>),
                Some(callbacks::read_ticket::<H>),
                no_data(),
            );
            if hooks.resumes {
                if handler.issues_ids() {
                    SSL_CTX_set_generate_session_id(ctx, Some(callbacks::generate::<H>));
                }
                SSL_CTX_sess_set_new_cb(ctx, Some(callbacks::new::<H>));
                SSL_CTX_sess_set_get_cb(ctx, Some(callbacks::get::<H>));
            }
        }
        self.hooks.push(hooks);
        Ok(())
    }
}

impl<H: Handler> Hooks<H> {
    /// Whether the callback for the ClientHello is ours.
    fn reads_hello(&self) -> bool {
        (LETS_CALLBACK_WAIT && self.resumes) || self.ticket_cipher.is_some()
    }
}

impl<H: Handler> Drop for Hooks<H> {
    fn drop(&mut self) {
        let ctx = self.ctx.as_ptr();
        // SAFETY: the hooks keep the context.
        unsafe {
            SSL_CTX_set_info_callback(ctx, self.info);
            if self.reads_hello() {
                SSL_CTX_set_client_hello_cb(ctx, self.hello, no_data());
            }
            SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, None);
            // OpenSSL does not tell which callbacks were there before; nginx sets none of these.
            SSL_CTX_set_generate_session_id(ctx, None);
            SSL_CTX_set_allow_early_data_cb(ctx, None, no_data());
            SSL_CTX_set_session_ticket_cb(ctx, None, None, no_data());
            SSL_CTX_sess_set_new_cb(ctx, self.new);
            SSL_CTX_sess_set_get_cb(ctx, self.get);
            if let Some(indexes) = Indexes::get() {
                SSL_CTX_set_ex_data(ctx, indexes.hooks, ptr::null_mut());
            }
        }
    }
}

/// Our callbacks find what they need by the connection.
const fn no_data() -> *mut c_void {
    ptr::null_mut()
}
