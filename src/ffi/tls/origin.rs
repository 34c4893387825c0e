//! What sessions say about the full handshake that they come from, and what the server would say that
//! the client comes to.

use core::cell::Cell;
use core::ffi::{CStr, c_int};
use core::ptr::{self, NonNull};
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use nginx_sys::ngx_connection_t;
use session_core::origin::{self, Binding, Fingerprint, Origin, ServerName, Verification};

use super::callbacks::hooks;
use super::connection::Connection;
use super::handler::Handler;
use super::session::SessionRef;
use crate::ffi::openssl::{
    Answer, CtxRef, SSL_CTX, SSL_CTX_get_cert_store, SSL_CTX_get_security_level,
    SSL_CTX_get_verify_mode, SSL_CTX_get0_verify_cert_store, SSL_SESSION_get0_ticket_appdata,
    SSL_SESSION_set1_ticket_appdata, SSL_get_servername, StoreRef, TLSEXT_NAMETYPE_host_name, Time,
    ask, lent,
};

/// Shows the contexts of the servers that a client may come to: of the one of that name at the
/// connection's address, or the default one without a name. Where regular expressions decide, of all
/// that they may lead to.
///
/// # Safety
/// OpenSSL reads the ClientHello of a client's connection, whose data is still what nginx has set
/// for its handshake.
pub type FindServers = unsafe fn(
    c: NonNull<ngx_connection_t>,
    name: Option<&[u8]>,
    found: &mut dyn FnMut(*mut SSL_CTX),
);

/// What some servers have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Common {
    /// There is no server yet.
    #[default]
    Nothing,
    /// All judge alike, whatever the name.
    Binding(Binding),
    /// Some judge otherwise than others.
    No,
}

impl Common {
    /// That of one more server.
    fn with(self, binding: Option<Binding>) -> Self {
        match (self, binding) {
            (Common::Nothing, Some(binding)) => Common::Binding(binding),
            (Common::Binding(common), Some(binding)) if common == binding => self,
            _ => Common::No,
        }
    }
}

/// How a server judges clients.
pub(super) struct Judge {
    verification: Verification,
    binding: Binding,
    /// When a revocation list begins or ceases to count, in seconds since the epoch.
    moments: Vec<i64>,
}

impl Judge {
    /// Reads what a server's context verifies clients by. `None` without memory.
    pub(super) fn new(ctx: &CtxRef, verification: &Verification) -> Option<Self> {
        let (mode, level) = (ctx.verify_mode() as u64, ctx.security_level() as u64);
        let verification = Verification { mode, level, ..*verification };
        let mut trusted = Trusted::default();
        if verification.asks() {
            trusted.read(ctx)?;
        }
        let Trusted { mut fingerprints, moments } = trusted;
        let binding = Binding::of(&verification, &mut fingerprints);
        Some(Judge { verification, binding, moments })
    }

    /// Adds the server to those of the configuration.
    pub(super) fn add_to(&self, common: &Cell<Common>) {
        // Where the name counts it has to be read.
        let binding = (!self.verification.by_name).then_some(self.binding);
        common.set(common.get().with(binding));
    }

    fn binding(&self, name: Option<&ServerName>) -> Binding {
        if !self.verification.by_name {
            return self.binding;
        }
        self.binding.for_name(name.map(ServerName::as_bytes))
    }
}

/// What a context verifies clients by.
#[derive(Default)]
struct Trusted {
    /// Of the certificates and revocation lists.
    fingerprints: Vec<Fingerprint>,
    moments: Vec<i64>,
}

ask! { CtxRef:
    fn verify_mode() -> c_int = SSL_CTX_get_verify_mode;
    fn security_level() -> c_int = SSL_CTX_get_security_level;
    fn verify_store() -> Option<&StoreRef> = SSL_CTX_get0_verify_cert_store;
    fn own_store() -> Option<&StoreRef> = SSL_CTX_get_cert_store;
}

impl Trusted {
    /// Reads the store of a context. `None` if OpenSSL has no memory.
    fn read(&mut self, ctx: &CtxRef) -> Option<()> {
        // `ssl_conf_command` can set one that goes before nginx's.
        let store = ctx.verify_store().or(ctx.own_store())?;
        for object in store.objects().iter() {
            if let Some(certificate) = object.certificate() {
                self.fingerprints.push(certificate.sha256()?);
            }
            if let Some(list) = object.crl() {
                self.fingerprints.push(list.sha256()?);
                // A list without an end has none; one that cannot be read verifies nobody.
                let epoch = Time::epoch()?;
                let moments = [list.begin(), list.end()].into_iter().flatten();
                self.moments.extend(moments.filter_map(|time| time.seconds_from(Some(&epoch))));
            }
        }
        Some(())
    }
}

impl SessionRef {
    /// What was left in its tickets; `None` if OpenSSL does not say.
    fn appdata(&self) -> Option<&[u8]> {
        let (mut data, mut len) = (ptr::null_mut(), 0);
        // SAFETY: SSL_SESSION_get0_ticket_appdata(3) lends bytes of the session's, and their number.
        unsafe {
            let asked = SSL_SESSION_get0_ticket_appdata(self.as_ptr(), &raw mut data, &raw mut len);
            (asked == 1).then(|| lent(data.cast(), len))
        }
    }

    /// What the session says about its full handshake; none if it was made by a version that did not
    /// know of it.
    pub fn origin(&self) -> Option<Origin> {
        Origin::decode(self.appdata()?)
    }

    /// Lets the session say it. What somebody else has left there stays; without memory nothing is
    /// said.
    pub fn set_origin(&self, origin: &Origin) {
        let bytes = origin.encode();
        if self.appdata().is_some_and(<[u8]>::is_empty) {
            let (ptr, len) = (bytes.as_ptr().cast(), bytes.len());
            // SAFETY: SSL_SESSION_set1_ticket_appdata(3) copies.
            unsafe { SSL_SESSION_set1_ticket_appdata(self.as_ptr(), ptr, len) };
        }
    }
}

impl Connection {
    /// How the server that the client comes to judges clients. None if it is not known which server
    /// that is. Only while OpenSSL reads the ClientHello.
    pub fn server_binding<H: Handler>(&self) -> Option<Binding> {
        let own = self.session_hooks::<H>()?;
        if let Common::Binding(binding) = own.common.get() {
            return Some(binding);
        }
        let name = match self.server_name() {
            Some(name) => Some(ServerName::new(name)?),
            None => None,
        };
        let mut common = Common::Nothing;
        let mut add = |ctx: Option<&CtxRef>| {
            let hooks = ctx.and_then(hooks::<H>);
            common = common.with(hooks.map(|hooks| hooks.judge.binding(name.as_ref())));
        };
        if cfg!(nginx_early_servername) {
            // The name was dispatched before OpenSSL asks for a session.
            add(self.ssl().ctx());
        } else {
            let name = name.as_ref().map(ServerName::as_bytes);
            // SAFETY: the connection is valid, and in its handshake; what is found is a context or null.
            unsafe { (own.find)(self.c, name, &mut |ctx: *mut SSL_CTX| add(Answer::of(ctx))) };
        }
        match common {
            Common::Binding(binding) => Some(binding),
            Common::Nothing | Common::No => None,
        }
    }

    /// Lets the session of a full handshake say what that was judged by. What is resumed says so
    /// already, and hands it on.
    pub fn mark_origin<H: Handler>(&self, session: &SessionRef, now: i64) {
        if self.is_resumed() || session.origin().is_some() {
            return;
        }
        let Some(hooks) = self.ssl().ctx().and_then(hooks::<H>) else { return };
        let judge = &hooks.judge;
        // SAFETY: the connection's handshake has come to its verdict. The name is of OpenSSL's own memory,
        // or null.
        let name = unsafe {
            let name = SSL_get_servername(self.ssl.as_ptr(), TLSEXT_NAMETYPE_host_name);
            (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes())
        };
        let binding = match name.map(ServerName::new) {
            Some(None) if judge.verification.by_name => return,
            name => judge.binding(name.flatten().as_ref()),
        };
        let chain_ends = self.chain_ends(judge, now);
        let usable = self.is_repeatable(judge, session);
        session.set_origin(&Origin { at: now, chain_ends, binding, usable });
    }

    /// Whether a resumption comes to what the full handshake did.
    fn is_repeatable(&self, judge: &Judge, session: &SessionRef) -> bool {
        let verification = &judge.verification;
        if !verification.asks() {
            return true;
        }
        let certificate = session.has_certificate();
        // On the server's side the client's own certificate is not in it.
        let sent = self.ssl().peer_chain().len() > 0;
        let result = self.ssl().verify_result();
        // A session keeps the client's own certificate only, and `ssl_ocsp` makes nginx verify it
        // again (ngx_ssl_ocsp_validate()), which fails without the others.
        verification.lets_in(certificate, result) && !(verification.ocsp != 0 && sent)
    }

    /// The last second in which the chain would be verified as it was. OpenSSL takes the second of an
    /// end for the end.
    fn chain_ends(&self, judge: &Judge, now: i64) -> Option<i64> {
        let ends = self.ssl().verified_chain().iter().map(|certificate| {
            // What cannot be read has ended.
            let left = certificate.end().and_then(|end| end.seconds_from(None)).unwrap_or(0);
            now.saturating_add(left)
        });
        let end = ends.min()?;
        let end = origin::next(&judge.moments, now).map_or(end, |next| end.min(next));
        Some(end.saturating_sub(1))
    }
}
