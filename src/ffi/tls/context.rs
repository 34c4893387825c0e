//! The contexts of configured servers, and the module's callbacks in them.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

use nginx_sys::{
    SSL_CTRL_GET_SESS_CACHE_MODE, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_CTX, SSL_CTX_ctrl,
    SSL_CTX_free, SSL_CTX_get_ex_data, SSL_CTX_get_info_callback, SSL_CTX_get_max_early_data,
    SSL_CTX_get_options, SSL_CTX_sess_get_get_cb, SSL_CTX_sess_get_new_cb, SSL_CTX_sess_set_get_cb,
    SSL_CTX_sess_set_new_cb, SSL_CTX_set_allow_early_data_cb, SSL_CTX_set_client_hello_cb,
    SSL_CTX_set_ex_data, SSL_CTX_set_generate_session_id, SSL_CTX_set_info_callback,
    SSL_CTX_set_session_ticket_cb, SSL_CTX_up_ref, SSL_SESS_CACHE_NO_INTERNAL_LOOKUP,
    SSL_SESS_CACHE_NO_INTERNAL_STORE, SSL_SESS_CACHE_SERVER,
};

use session_core::origin::Verification;

use super::callbacks::{self, Hooks};
use super::connection::{LETS_CALLBACK_WAIT, SSL_OP_NO_TICKET, SSL_OP_NO_TLSV1_3, has_anti_replay};
use super::filter;
use super::handler::Handler;
use super::index::Indexes;
use super::origin::{Common, FindServers, Judge};

/// A context of a configured server.
#[derive(Clone, Copy)]
pub struct Context(NonNull<SSL_CTX>);

impl Context {
    /// # Safety
    /// `ctx` is valid as long as the result.
    pub(in crate::ffi) unsafe fn from_ptr(ctx: *mut SSL_CTX) -> Option<Self> {
        NonNull::new(ctx).map(Context)
    }

    /// Whether the server offers resumption at all: not with `ssl_session_cache off`.
    pub fn offers_resumption(&self) -> bool {
        self.cache_mode() & SSL_SESS_CACHE_SERVER != 0
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        self.options() & SSL_OP_NO_TICKET == 0
    }

    /// In what another server differs.
    pub fn differences(&self, other: Context) -> Differences {
        let differ = self.options() ^ other.options();
        Differences {
            tls13: differ & SSL_OP_NO_TLSV1_3 != 0,
            tickets: differ & SSL_OP_NO_TICKET != 0,
        }
    }

    pub(super) fn as_ptr(&self) -> *mut SSL_CTX {
        self.0.as_ptr()
    }

    fn options(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { SSL_CTX_get_options(self.0.as_ptr()) }
    }

    /// Whether OpenSSL itself protects early data (`SSL_OP_NO_ANTI_REPLAY` was taken away). It then
    /// resumes sessions of TLS 1.3 that its own cache has, and no others.
    pub fn has_anti_replay(&self) -> bool {
        let ctx = self.0.as_ptr();
        // SAFETY: the context is valid.
        unsafe { has_anti_replay(SSL_CTX_get_options(ctx), SSL_CTX_get_max_early_data(ctx)) }
    }

    /// Puts OpenSSL's own cache of the context out of use, and says whether it was in use.
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
        if cfg!(nginx_1_29_2) { self } else { Differences::default() }
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
        let ctx = context.0;
        // SAFETY: the context is valid, and counted up before it is kept. The hooks are boxed,
        // so that their address holds until drop() has taken them out of the context.
        unsafe {
            if !SSL_CTX_get_ex_data(ctx.as_ptr(), indexes.hooks).is_null() {
                return Ok(());
            }
            let judge = Judge::new(ctx.as_ptr(), verification).ok_or(HookError)?;
            if SSL_CTX_up_ref(ctx.as_ptr()) != 1 {
                return Err(HookError);
            }
            judge.add_to(&self.common);
            let hooks = Box::new(Hooks {
                ctx,
                handler: Rc::clone(handler),
                resumes: context.offers_resumption(),
                judge,
                common: Rc::clone(&self.common),
                find,
                differences: differences.that_count(),
                info: SSL_CTX_get_info_callback(ctx.as_ptr()),
                new: SSL_CTX_sess_get_new_cb(ctx.as_ptr()),
                get: SSL_CTX_sess_get_get_cb(ctx.as_ptr()),
                pending: callbacks::pending_session(),
            });
            let data = (&raw const *hooks).cast_mut().cast::<c_void>();
            // From here on dropping the hooks counts down.
            if SSL_CTX_set_ex_data(ctx.as_ptr(), indexes.hooks, data) != 1 {
                return Err(HookError);
            }
            SSL_CTX_set_info_callback(ctx.as_ptr(), Some(callbacks::info::<H>));
            if LETS_CALLBACK_WAIT && hooks.resumes {
                SSL_CTX_set_client_hello_cb(ctx.as_ptr(), Some(callbacks::hello::<H>), no_data());
            }
            if handler.restricts_early_data() {
                SSL_CTX_set_allow_early_data_cb(
                    ctx.as_ptr(),
                    Some(callbacks::early_data::<H>),
                    no_data(),
                );
            }
            // Stateless tickets resume with "ssl_session_cache off", too.
            SSL_CTX_set_session_ticket_cb(
                ctx.as_ptr(),
                Some(callbacks::make_ticket::<H>),
                Some(callbacks::read_ticket::<H>),
                no_data(),
            );
            if hooks.resumes {
                if handler.issues_ids() {
                    SSL_CTX_set_generate_session_id(ctx.as_ptr(), Some(callbacks::generate::<H>));
                }
                SSL_CTX_sess_set_new_cb(ctx.as_ptr(), Some(callbacks::new::<H>));
                SSL_CTX_sess_set_get_cb(ctx.as_ptr(), Some(callbacks::get::<H>));
            }
            self.hooks.push(hooks);
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
                SSL_CTX_set_client_hello_cb(ctx, callbacks::kept_hello(ctx), no_data());
            }
            // OpenSSL does not tell which callbacks were there before; nginx sets neither.
            SSL_CTX_set_generate_session_id(ctx, None);
            SSL_CTX_set_allow_early_data_cb(ctx, None, no_data());
            SSL_CTX_set_session_ticket_cb(ctx, None, None, no_data());
            SSL_CTX_sess_set_new_cb(ctx, self.new);
            SSL_CTX_sess_set_get_cb(ctx, self.get);
            if let Some(indexes) = Indexes::get() {
                SSL_CTX_set_ex_data(ctx, indexes.hooks, ptr::null_mut());
            }
            SSL_CTX_free(ctx);
        }
    }
}

/// Our callbacks find what they need by the connection.
const fn no_data() -> *mut c_void {
    ptr::null_mut()
}
