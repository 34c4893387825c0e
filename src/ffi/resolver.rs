//! Names of servers, resolved at run time by the `resolver` of the configuration.
//!
//! By hand: the resolver of `ngx` takes `NGX_NO_RESOLVER` for a context, and its waker may run a task
//! while nginx goes through a list of those that wait.

use core::cell::{Cell, RefCell};
use core::ffi::CStr;
use core::fmt;
use core::ptr::{self, NonNull};
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::vec::Vec;

use nginx_sys::{
    NGX_CONF_UNSET, ngx_int_t, ngx_msec_t, ngx_resolve_name, ngx_resolve_name_done,
    ngx_resolver_ctx_t, ngx_resolver_strerror, ngx_resolver_t, ngx_str_t,
};
use ngx::core::Status;

use super::address::{Address, ip_of};
use super::conf::Conf;
use super::event::{Event, Handle};
use super::pool;
use super::shim;
use super::turn::Turn;

/// The resolver of a block.
#[derive(Clone)]
pub struct Resolver {
    resolver: NonNull<ngx_resolver_t>,
    /// How long an answer may take, in milliseconds.
    timeout: ngx_msec_t,
    /// The resolver's configuration has gone, and all its questions with it.
    gone: Rc<Cell<bool>>,
}

/// Is told what a name resolves to.
pub trait ResolverOwner: 'static {
    /// The answer to [`Resolver::resolve`].
    fn resolved(&self, turn: &mut Turn, answer: Result<Resolved, ResolveError>);
}

/// What a name resolves to.
pub struct Resolved {
    /// The addresses, with the port asked for; at least one.
    pub addresses: Vec<Address>,
    /// How long that holds, in seconds since the epoch.
    pub valid_until: i64,
}

/// Why a name does not resolve. The text is what follows the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// No memory, or no name server.
    Local,
    /// A code of DNS, or an errno of nginx's resolver.
    Code(ngx_int_t),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ResolveError::Local => f.write_str("could not be resolved"),
            ResolveError::Code(code) => {
                // SAFETY: ngx_resolver_strerror() gives literals, for any code.
                let text = unsafe { CStr::from_ptr(ngx_resolver_strerror(code)) };
                write!(f, "could not be resolved ({code}: {})", text.to_string_lossy())
            }
        }
    }
}

/// A question that is under way. Dropping it takes it back: there is no answer then.
pub struct Query(#[allow(dead_code, reason = "held for its Drop")] Box<dyn Pending>);

trait Pending {}

/// Default of `resolver_timeout`, in milliseconds.
const TIMEOUT: ngx_msec_t = 30000;

impl Resolver {
    /// The resolver that a block's core module has, with its `resolver_timeout`.
    ///
    /// # Safety
    /// Both belong to the configuration `cf`, which has been read.
    pub(super) unsafe fn configured(
        resolver: *mut ngx_resolver_t,
        timeout: ngx_msec_t,
        cf: &mut Conf,
    ) -> Option<Self> {
        let resolver = NonNull::new(resolver)?;
        // SAFETY: the caller's. A resolver that nginx makes where none is configured has no
        // connections (ngx_http_core_merge_loc_conf(), ngx_stream_core_merge_srv_conf()).
        if unsafe { resolver.as_ref() }.connections.nelts == 0 {
            return None;
        }
        let timeout = match timeout {
            unset if unset == NGX_CONF_UNSET as ngx_msec_t => TIMEOUT,
            timeout => timeout,
        };
        let gone = Rc::new(Cell::new(false));
        // SAFETY: the configuration has a pool. Cleanups run last in, first out: this one before that
        // which frees the questions (ngx_resolver_cleanup()), and was added with the resolver.
        unsafe { pool::keep(cf.raw().pool, Going(Rc::clone(&gone)))? };
        Some(Resolver { resolver, timeout, gone })
    }

    /// Asks for the addresses of a name, not of an IP address. The owner is told, unless the query
    /// is dropped before. nginx may need a connection for it (ngx_udp_connect() in ngx_resolver.c).
    pub fn resolve<T: ResolverOwner>(
        &self,
        _: &mut Turn,
        owner: Weak<T>,
        name: &str,
        port: u16,
    ) -> Query {
        let question = Rc::new_cyclic(|this: &Weak<Question<T>>| Question {
            ctx: Cell::new(ptr::null_mut()),
            gone: Rc::clone(&self.gone),
            name: RefCell::new(name.as_bytes().into()),
            port,
            answer: RefCell::new(None),
            tell: Event::new(this.clone()),
            owner,
        });
        if !self.ask(&question) {
            question.end(Err(ResolveError::Local));
        }
        Query(Box::new(Asked(question)))
    }

    fn ask<T: ResolverOwner>(&self, question: &Rc<Question<T>>) -> bool {
        if self.gone.get() {
            return false;
        }
        let Ok(mut name) = question.name.try_borrow_mut() else { return false };
        // SAFETY: the resolver is there, as its configuration is. The name, which nginx turns into
        // lower case, and the question stay until on_answer() or the question's drop end the
        // context. ngx_resolve_name() may answer at once, and frees the context if it fails.
        unsafe {
            let ctx = shim::resolve_start(self.resolver.as_ptr());
            if ctx.is_null() {
                return false;
            }
            (*ctx).name = ngx_str_t { len: name.len(), data: name.as_mut_ptr() };
            drop(name);
            (*ctx).handler = Some(on_answer::<T>);
            (*ctx).data = Rc::as_ptr(question).cast_mut().cast();
            (*ctx).timeout = self.timeout;
            question.ctx.set(ctx);
            if !Status(ngx_resolve_name(ctx)).is_ok() {
                question.ctx.set(ptr::null_mut());
                return false;
            }
        }
        true
    }
}

/// Is dropped when the resolver's configuration goes.
struct Going(Rc<Cell<bool>>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

struct Question<T: ResolverOwner> {
    /// nginx's side of it, until it has been answered.
    ctx: Cell<*mut ngx_resolver_ctx_t>,
    gone: Rc<Cell<bool>>,
    name: RefCell<Box<[u8]>>,
    port: u16,
    answer: RefCell<Option<Result<Resolved, ResolveError>>>,
    tell: Event<Question<T>, Tell>,
    owner: Weak<T>,
}

struct Tell;

/// The end of the question that [`Query`] holds.
struct Asked<T: ResolverOwner>(Rc<Question<T>>);

impl<T: ResolverOwner> Pending for Asked<T> {}

impl<T: ResolverOwner> Drop for Asked<T> {
    fn drop(&mut self) {
        self.0.done();
        if let Ok(mut answer) = self.0.answer.try_borrow_mut() {
            *answer = None;
        }
    }
}

impl<T: ResolverOwner> Question<T> {
    /// Ends nginx's side of the question.
    fn done(&self) {
        let ctx = self.ctx.replace(ptr::null_mut());
        if !ctx.is_null() && !self.gone.get() {
            // SAFETY: the context is live: it was not answered, and its resolver is there. A
            // question may be taken back at any time but within the answer to another one, and
            // on_answer() calls nobody.
            unsafe { ngx_resolve_name_done(ctx) };
        }
    }

    /// Keeps the answer. The owner is told later, as nginx goes on with a list of those that wait
    /// for the same name, and must find them all.
    fn end(&self, answer: Result<Resolved, ResolveError>) {
        if let Ok(mut kept) = self.answer.try_borrow_mut() {
            *kept = Some(answer);
        }
        self.tell.post();
    }
}

impl<T: ResolverOwner> Handle<Tell> for Question<T> {
    fn fired(&self, turn: &mut Turn) {
        let answer = self.answer.try_borrow_mut().ok().and_then(|mut answer| answer.take());
        if let (Some(answer), Some(owner)) = (answer, self.owner.upgrade()) {
            owner.resolved(turn, answer);
        }
    }
}

unsafe extern "C" fn on_answer<T: ResolverOwner>(ctx: *mut ngx_resolver_ctx_t) {
    // SAFETY: the context is that of Resolver::ask(), whose question lives as long as it is not
    // done; the addresses are valid during this call.
    unsafe {
        let question = &*(*ctx).data.cast::<Question<T>>();
        let answer = addresses(&*ctx, question.port);
        question.done();
        question.end(answer);
    }
}

/// # Safety
/// The context has been answered, and is not done.
unsafe fn addresses(ctx: &ngx_resolver_ctx_t, port: u16) -> Result<Resolved, ResolveError> {
    if !Status(ctx.state).is_ok() {
        return Err(ResolveError::Code(ctx.state));
    }
    let mut addresses = Vec::new();
    addresses.try_reserve(ctx.naddrs).map_err(|_| ResolveError::Local)?;
    for n in 0..ctx.naddrs {
        // SAFETY: there are naddrs addresses.
        let ip = unsafe {
            let addr = &*ctx.addrs.add(n);
            ip_of(addr.sockaddr, addr.socklen)
        };
        addresses.extend(ip.map(|(ip, _)| Address::from_ip(ip, port)));
    }
    if addresses.is_empty() {
        return Err(ResolveError::Local);
    }
    Ok(Resolved { addresses, valid_until: ctx.valid })
}
