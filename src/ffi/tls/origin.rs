//! What sessions say about the full handshake that they come from, and what the server would say that
//! the client comes to.

use core::cell::Cell;
use core::ffi::{CStr, c_int, c_uint, c_void};
use core::ptr::{self, NonNull};
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use nginx_sys::ngx_connection_t;
use session_core::origin::{self, Binding, Fingerprint, Origin, ServerName, Verification};

use super::callbacks::{hooks, session_hooks};
use super::connection::Connection;
use super::handler::Handler;
use super::session::SessionRef;
use crate::ffi::openssl::{
    ASN1_TIME, ASN1_TIME_diff, ASN1_TIME_free, ASN1_TIME_set, ERR_pop_to_mark, ERR_set_mark,
    EVP_sha256, OPENSSL_STACK, OPENSSL_sk_num, OPENSSL_sk_value, SSL_CTX, SSL_CTX_get_cert_store,
    SSL_CTX_get_security_level, SSL_CTX_get_verify_mode, SSL_CTX_get0_verify_cert_store,
    SSL_SESSION_get0_ticket_appdata, SSL_SESSION_set1_ticket_appdata, SSL_get_SSL_CTX,
    SSL_get_peer_cert_chain, SSL_get_servername, SSL_get_verify_result, SSL_get0_verified_chain,
    TLSEXT_NAMETYPE_host_name, X509, X509_CRL, X509_CRL_digest, X509_CRL_get0_lastUpdate,
    X509_CRL_get0_nextUpdate, X509_LOOKUP_TYPE_X509_LU_CRL as X509_LU_CRL,
    X509_LOOKUP_TYPE_X509_LU_X509 as X509_LU_X509, X509_OBJECT, X509_OBJECT_get_type,
    X509_OBJECT_get0_X509, X509_OBJECT_get0_X509_CRL, X509_STORE_get0_objects, X509_digest,
    X509_get0_notAfter,
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
    ///
    /// # Safety
    /// `ctx` is valid.
    pub(super) unsafe fn new(ctx: *mut SSL_CTX, verification: &Verification) -> Option<Self> {
        // SAFETY: the caller's.
        let verification = unsafe {
            Verification {
                mode: SSL_CTX_get_verify_mode(ctx) as u64,
                level: SSL_CTX_get_security_level(ctx) as u64,
                ..*verification
            }
        };
        let mut trusted = Trusted::default();
        if verification.asks() {
            // SAFETY: the caller's.
            unsafe { trusted.read(ctx)? };
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

impl Trusted {
    /// Reads the store of a context. `None` if OpenSSL has no memory.
    ///
    /// # Safety
    /// `ctx` is valid.
    unsafe fn read(&mut self, ctx: *mut SSL_CTX) -> Option<()> {
        // SAFETY: the caller's. SSL_CTX_get_cert_store(3), SSL_CTX_get0_verify_cert_store(3) and
        // X509_STORE_get0_objects(3) lend; a stack of OpenSSL's is one of pointers,
        // whatever its type says.
        unsafe {
            // `ssl_conf_command` can set one that goes before nginx's.
            let mut store = SSL_CTX_get0_verify_cert_store(ctx);
            if store.is_null() {
                store = SSL_CTX_get_cert_store(ctx);
            }
            let objects = X509_STORE_get0_objects(store).cast::<OPENSSL_STACK>();
            for n in 0..OPENSSL_sk_num(objects).max(0) {
                let object = OPENSSL_sk_value(objects, n).cast::<X509_OBJECT>();
                match X509_OBJECT_get_type(object) {
                    X509_LU_X509 => {
                        let certificate = X509_OBJECT_get0_X509(object);
                        self.add(|to, len| X509_digest(certificate, EVP_sha256(), to, len))?;
                    }
                    X509_LU_CRL => {
                        let list = X509_OBJECT_get0_X509_CRL(object);
                        self.add(|to, len| X509_CRL_digest(list, EVP_sha256(), to, len))?;
                        self.add_moments(list)?;
                    }
                    _ => {}
                }
            }
        }
        Some(())
    }

    /// Adds what `digest` writes: at most the 32 bytes of a SHA-256.
    fn add(&mut self, digest: impl FnOnce(*mut u8, *mut c_uint) -> c_int) -> Option<()> {
        let mut fingerprint: Fingerprint = [0; 32];
        let mut len: c_uint = 0;
        let done = digest(fingerprint.as_mut_ptr(), &raw mut len);
        if done != 1 || len as usize != fingerprint.len() {
            return None;
        }
        self.fingerprints.push(fingerprint);
        Some(())
    }

    /// # Safety
    /// `list` is valid.
    unsafe fn add_moments(&mut self, list: *const X509_CRL) -> Option<()> {
        // SAFETY: the caller's; both lend, and the second may return null. The first moment of the
        // epoch is ours to free.
        unsafe {
            let epoch = ASN1_TIME_set(ptr::null_mut(), 0);
            if epoch.is_null() {
                return None;
            }
            for time in [X509_CRL_get0_lastUpdate(list), X509_CRL_get0_nextUpdate(list)] {
                // A list without an end has none; one that cannot be read verifies nobody.
                if !time.is_null() {
                    self.moments.extend(seconds_between(epoch, time));
                }
            }
            ASN1_TIME_free(epoch);
        }
        Some(())
    }
}

/// How many seconds it is from one time, or from now where it is null, to another. `None` if one
/// cannot be read.
///
/// # Safety
/// `to` is valid, and so is `from` if it is not null.
unsafe fn seconds_between(from: *const ASN1_TIME, to: *const ASN1_TIME) -> Option<i64> {
    let (mut days, mut seconds) = (0, 0);
    // SAFETY: the caller's; ASN1_TIME_diff(3) writes two numbers.
    let known = unsafe {
        ERR_set_mark();
        let known = ASN1_TIME_diff(&raw mut days, &raw mut seconds, from, to);
        ERR_pop_to_mark();
        known
    };
    let seconds = i64::from(days).saturating_mul(86_400).saturating_add(seconds.into());
    (known == 1).then_some(seconds)
}

impl SessionRef {
    /// What the session says about its full handshake; none if it was made by a version that did not
    /// know of it.
    pub fn origin(&self) -> Option<Origin> {
        let (mut data, mut len) = (ptr::null_mut::<c_void>(), 0);
        // SAFETY: SSL_SESSION_get0_ticket_appdata(3) lends bytes of the session's, and their number.
        let bytes = unsafe {
            if SSL_SESSION_get0_ticket_appdata(self.as_ptr(), &raw mut data, &raw mut len) != 1
                || data.is_null()
            {
                return None;
            }
            core::slice::from_raw_parts(data.cast::<u8>(), len)
        };
        Origin::decode(bytes)
    }

    /// Lets the session say it. What somebody else has left there stays; without memory nothing is
    /// said.
    pub fn set_origin(&self, origin: &Origin) {
        let (mut data, mut len) = (ptr::null_mut::<c_void>(), 0);
        let bytes = origin.encode();
        // SAFETY: as in origin(). SSL_SESSION_set1_ticket_appdata(3) copies.
        unsafe {
            let asked = SSL_SESSION_get0_ticket_appdata(self.as_ptr(), &raw mut data, &raw mut len);
            if asked == 1 && len == 0 {
                SSL_SESSION_set1_ticket_appdata(self.as_ptr(), bytes.as_ptr().cast(), bytes.len());
            }
        }
    }
}

impl Connection {
    /// How the server that the client comes to judges clients. None if it is not known which server
    /// that is. Only while OpenSSL reads the ClientHello.
    pub fn server_binding<H: Handler>(&self) -> Option<Binding> {
        // SAFETY: the connection is valid, and in its handshake.
        unsafe {
            let own = session_hooks::<H>(self.c)?;
            if let Common::Binding(binding) = own.common.get() {
                return Some(binding);
            }
            let name = match self.server_name() {
                Some(name) => Some(ServerName::new(name)?),
                None => None,
            };
            let mut common = Common::Nothing;
            let mut add = |ctx: *mut SSL_CTX| {
                let binding = || Some(hooks::<H>(ctx)?.judge.binding(name.as_ref()));
                common = common.with(if ctx.is_null() { None } else { binding() });
            };
            if cfg!(nginx_1_29_2) {
                // The name was dispatched before OpenSSL asks for a session.
                add(SSL_get_SSL_CTX(self.ssl.as_ptr()));
            } else {
                (own.find)(self.c, name.as_ref().map(ServerName::as_bytes), &mut add);
            }
            match common {
                Common::Binding(binding) => Some(binding),
                Common::Nothing | Common::No => None,
            }
        }
    }

    /// Lets the session of a full handshake say what that was judged by. What is resumed says so
    /// already, and hands it on.
    pub fn mark_origin<H: Handler>(&self, session: &SessionRef, now: i64) {
        if self.is_resumed() || session.origin().is_some() {
            return;
        }
        // SAFETY: the connection is valid, and its handshake has come to its verdict. The name is of
        // OpenSSL's own memory, or null.
        let (judge, name) = unsafe {
            let Some(hooks) = hooks::<H>(SSL_get_SSL_CTX(self.ssl.as_ptr())) else { return };
            let name = SSL_get_servername(self.ssl.as_ptr(), TLSEXT_NAMETYPE_host_name);
            (&hooks.judge, (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes()))
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
        // SAFETY: the connection is valid. SSL_get_peer_cert_chain(3) lends, or returns null; on the
        // server's side the client's own certificate is not in it.
        let (result, sent) = unsafe {
            let chain = SSL_get_peer_cert_chain(self.ssl.as_ptr());
            let sent = OPENSSL_sk_num(chain.cast::<OPENSSL_STACK>()) > 0;
            (SSL_get_verify_result(self.ssl.as_ptr()), sent)
        };
        // A session keeps the client's own certificate only, and `ssl_ocsp` makes nginx verify it
        // again (ngx_ssl_ocsp_validate()), which fails without the others.
        verification.lets_in(certificate, result) && !(verification.ocsp != 0 && sent)
    }

    /// The last second in which the chain would be verified as it was. OpenSSL takes the second of an
    /// end for the end.
    fn chain_ends(&self, judge: &Judge, now: i64) -> Option<i64> {
        // SAFETY: SSL_get0_verified_chain(3) lends, or returns null, whose number is -1.
        let end = unsafe {
            let chain = SSL_get0_verified_chain(self.ssl.as_ptr()).cast::<OPENSSL_STACK>();
            (0..OPENSSL_sk_num(chain).max(0))
                .map(|n| {
                    let end = X509_get0_notAfter(OPENSSL_sk_value(chain, n).cast::<X509>());
                    // What cannot be read has ended.
                    let left = seconds_between(ptr::null(), end).unwrap_or(0);
                    now.saturating_add(left)
                })
                .min()?
        };
        let end = origin::next(&judge.moments, now).map_or(end, |next| end.min(next));
        Some(end.saturating_sub(1))
    }
}
