//! What becomes of new sessions, and of those that must not be resumed any more.

use core::ffi::CStr;
use core::ptr;
use std::rc::Rc;
use std::vec::Vec;

use session_core::crypto::Failed;
use session_core::envelope::OVERHEAD;
use session_core::hello::SessionId;
use session_core::key_ring::Entry;
use session_core::stored::Stored;

use super::messages::pass;
use super::policy::{Policy, Rules, only_openssl_resumes, tls, wipe};
use crate::ffi::clock;
use crate::ffi::tls::{Connection, DerError, SessionRef, Waits};
use crate::tier::Tier;
use crate::{debug, log_at};

/// The longest session that is stored or taken from a store, in bytes of DER. nginx's own cache
/// has 8192; sessions with a client's certificate chain take a few kilobytes.
pub(super) const MAX_SESSION: usize = 16 * 1024;
/// The longest entry, in bytes.
pub const MAX_ENTRY: usize = MAX_SESSION + OVERHEAD;

/// What is being done, for a log.
const STORING: &CStr = c"storing SSL session";

impl Policy {
    /// Whether a new session is one to store: that of a stateless ticket is with the client.
    pub(super) fn stores(&self, connection: &Connection) -> bool {
        let stateless = || {
            connection.is_tls13() && connection.has_tickets() && !only_openssl_resumes(connection)
        };
        !self.rules.store.is_empty() && !stateless()
    }

    /// Stores a session in all targets that are for it.
    pub(super) fn store(&self, connection: &Connection, session: &SessionRef) -> Stored {
        if !self.rules.client_certificates && session.has_certificate() {
            return Stored::Skipped;
        }
        if only_openssl_resumes(connection) || session.origin().is_some_and(|origin| !origin.usable)
        {
            return Stored::Skipped;
        }
        // A ticket of a resumption must not outlive the withdrawal of what was resumed.
        if let Some(epoch) = self.rules.epoch.as_ref().filter(|_| connection.is_resumed()) {
            let resumed = connection.attached::<Policy>().and_then(|attached| {
                let state = attached.state();
                state.reports().resumed().or(state.tickets().resumed())
            });
            if !resumed.is_some_and(|made| epoch.lets_renew(made)) {
                return Stored::Skipped;
            }
        }
        // A client that cannot wait for a store will not get the session from there.
        let only_local = self.suspends && connection.waits() == Waits::Not;
        let targets = self.targets(tls(connection.is_tls13()));
        let mut tiers = targets.iter().filter(|tier| tier.is_local() || !only_local).peekable();
        if tiers.peek().is_none() {
            return Stored::Skipped;
        }
        let Some(id) = SessionId::new(session.id()) else { return Stored::Skipped };
        let now = clock::unix_time();
        let expires = self.expires(session, now);
        if expires <= now {
            return Stored::Skipped;
        }
        let Ok(mut buf) = self.scratch.try_borrow_mut() else { return Stored::Dropped };
        let stored = match self.sealed(session, &id, &mut buf) {
            Ok(entry) => {
                debug!(
                    connection.log(),
                    "SSL session store {:08x}: {} bytes for {} s",
                    id.short_hash(),
                    buf.len(),
                    expires.saturating_sub(now)
                );
                let mut stored = Stored::Stored;
                for tier in tiers {
                    if !tier.store(entry.name(), &buf, expires) {
                        debug!(connection.log(), "SSL session store: not in \"{}\"", tier.name());
                        stored = Stored::Dropped;
                    }
                }
                stored
            }
            Err(DerError::TooLarge(len)) => {
                if let Some(times) = pass(&self.too_large) {
                    log_at!(
                        &connection.log().during(STORING),
                        Warn,
                        "{times} SSL sessions larger than {MAX_SESSION} bytes not stored, \
                         the last of {len}"
                    );
                }
                Stored::Skipped
            }
            // The client has its session; only others cannot resume it.
            Err(DerError::OutOfMemory) => Stored::Dropped,
        };
        wipe(&mut buf);
        stored
    }

    /// Makes an entry of a session, in an empty buffer.
    fn sealed(
        &self,
        session: &SessionRef,
        id: &SessionId,
        buf: &mut Vec<u8>,
    ) -> Result<Entry, DerError> {
        let ring = &self.rules.ring;
        let failed = |Failed| {
            self.crypto_failed();
            DerError::OutOfMemory
        };
        let entry = ring.issued(id, tls(session.is_tls13()));
        ring.begin(buf).map_err(failed)?;
        session.to_der(buf, MAX_SESSION)?;
        ring.seal(&entry, buf).map_err(failed)?;
        Ok(entry)
    }

    /// Removes a session from wherever it is stored or may be fetched from: a hit was copied into
    /// nearer tiers.
    pub(super) fn remove(&self, connection: &Connection, session: &SessionRef) {
        let Some(id) = SessionId::new(session.id()) else { return };
        let known = self.rules.ring.known(&id, tls(session.is_tls13()));
        let Some(entry) = known else { return };
        debug!(connection.log(), "SSL session remove {:08x}", id.short_hash());
        let Rules { fetch, store, .. } = &self.rules;
        let is_stored_in = |tier: &Rc<dyn Tier>| {
            store.iter().any(|other| ptr::addr_eq(Rc::as_ptr(other), Rc::as_ptr(tier)))
        };
        for tier in store.iter().chain(fetch.iter().filter(|tier| !is_stored_in(tier))) {
            tier.remove(entry.name());
        }
    }
}
