//! What happens in a handshake: sessions are looked up, suspended over where that takes time, and
//! stored.

use core::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use session_core::hello::{ServerPolicy, SessionId};
use session_core::outcome::Outcome;
use session_core::throttle::Throttle;
use zeroize::Zeroize;

use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::tls::{
    Attached, Connection, DerError, Handler, Read, Session, SessionRef, Sink, Socket, Waiters,
};
use crate::net::backend::{Answers, Waiter};
use crate::tier::Tier;
use crate::{debug, log_at};

mod lookup;
mod suspend;

pub use suspend::{Report, State};

/// The longest session that is stored or taken from a store, in bytes of DER. nginx's own cache
/// has 8192; sessions with a client's certificate chain take a few kilobytes.
pub const MAX_SESSION: usize = 16 * 1024;

/// What is done about sessions, for all servers of a configuration.
pub struct Policy {
    /// Where sessions are looked up, in this order.
    fetch: Vec<Rc<dyn Tier>>,
    /// Whether a ticket of TLS 1.3 is good for one handshake only.
    single_use: bool,
    /// Where they are stored.
    store: Vec<Rc<dyn Tier>>,
    /// Whether a lookup may have to wait. Otherwise OpenSSL's question is answered when it comes,
    /// and nothing has to be read ahead of it.
    suspends: bool,
    waiters: Waiters<Policy>,
    /// A session in DER, for as long as it takes to store it.
    scratch: RefCell<Vec<u8>>,
    too_large: RefCell<Throttle>,
    corrupt: RefCell<Throttle>,
}

impl Policy {
    /// Looks up in the tiers of `fetch`, in order, and stores in all of `store`. With `single_use`
    /// sessions of TLS 1.3 are taken out of the last tier of `fetch`; those before it may have
    /// copies, and are not asked.
    pub fn new(fetch: Vec<Rc<dyn Tier>>, single_use: bool, store: Vec<Rc<dyn Tier>>) -> Self {
        Policy {
            suspends: fetch.iter().any(|tier| !tier.is_local()),
            fetch,
            single_use,
            store,
            waiters: Waiters::new(),
            scratch: RefCell::new(Vec::new()),
            too_large: RefCell::new(Throttle::new()),
            corrupt: RefCell::new(Throttle::new()),
        }
    }

    /// Whether there is nothing to do in any handshake.
    pub fn is_idle(&self) -> bool {
        self.fetch.is_empty() && self.store.is_empty()
    }

    /// The name of a tier of lookups.
    pub fn tier_name(&self, tier: usize) -> Option<&str> {
        self.fetch.get(tier).map(|tier| tier.name())
    }

    /// The worker exits.
    pub fn close(&self) {
        for tier in self.fetch.iter().chain(&self.store) {
            tier.close();
        }
    }

    /// Whether a session of this connection is good for one handshake only.
    fn takes(&self, connection: &Connection) -> bool {
        self.single_use && connection.is_tls13()
    }

    fn lookup(&self, id: SessionId, take: bool) -> lookup::Lookup {
        if take { lookup::Lookup::take(id, self.fetch.len()) } else { lookup::Lookup::new(id) }
    }

    /// Looks for a session that no lookup was made for: the ClientHello could not be read ahead
    /// of OpenSSL, or it has changed after a HelloRetryRequest, or all tiers are local.
    fn session_at_hand(
        self: &Rc<Self>,
        connection: &Connection,
        id: &SessionId,
    ) -> Option<Session> {
        if self.fetch.is_empty() {
            return None;
        }
        let attached = match connection.attached::<Policy>() {
            Some(attached) => attached,
            None => connection.attach(self, State::new()).ok()?,
        };
        let mut lookup = self.lookup(*id, self.takes(connection));
        let found = lookup.run_local(&self.fetch);
        let outcome = lookup.outcome();
        let report = attached.state().report_now(outcome, lookup.tier());
        debug!(
            connection.log(),
            "SSL session fetch {:08x}: {outcome} in {} us",
            id.short_hash(),
            report.as_micros()
        );
        let session = if found { self.open(attached, &mut lookup) } else { None };
        if lookup.is_take() {
            // It is nowhere else now, and OpenSSL asks again after a HelloRetryRequest.
            attached.state().put_lookup(lookup);
        }
        session
    }

    /// Makes a session of what a lookup has found. An entry that is not the session asked for is
    /// removed.
    fn open(&self, attached: &Attached<Policy>, lookup: &mut lookup::Lookup) -> Option<Session> {
        let id = *lookup.id();
        let decoded = Session::from_der(lookup.value());
        let is_session = decoded.is_some();
        let Some(session) = decoded.filter(|s| SessionId::new(s.id()) == Some(id)) else {
            let tier = lookup.tier().filter(|_| lookup.is_first());
            if let Some(tier) = tier.and_then(|tier| self.fetch.get(tier)) {
                self.discard(attached, &id, &**tier);
                if is_session {
                    tier.mistrust(&id);
                }
            }
            attached.state().report_outcome(Outcome::Corrupt);
            lookup.spoil();
            return None;
        };
        if let Some(nearer) = lookup.take_refill().and_then(|tier| self.fetch.get(..tier)) {
            for tier in nearer {
                tier.store(&id, lookup.value(), session.expires());
            }
        }
        Some(session)
    }

    /// Removes an entry that is of no use.
    fn discard(&self, attached: &Attached<Policy>, id: &SessionId, tier: &dyn Tier) {
        tier.remove(id);
        if let Some(times) = pass(&self.corrupt) {
            log_at!(
                attached.log(),
                Error,
                "corrupt SSL session {:08x} in \"{}\", {times} times",
                id.short_hash(),
                tier.name()
            );
        }
    }
}

impl Handler for Policy {
    type State = State;

    fn waiters(&self) -> &Waiters<Self> {
        &self.waiters
    }

    fn handshake_started(self: &Rc<Self>, connection: &Connection) {
        // nginx's QUIC feeds OpenSSL by other ways than this BIO.
        if !self.suspends || connection.is_quic() {
            return;
        }
        let ready = connection
            .attach(self, State::new())
            .and_then(|attached| connection.suspendable(attached));
        if ready.is_err() {
            log_at!(connection.log(), Alert, "no memory to fetch an SSL session");
        }
    }

    fn read(&self, attached: &Attached<Self>, socket: &Socket, sink: &mut Sink) -> Read {
        attached.state().read(self, attached, socket, sink)
    }

    fn pending(&self, attached: &Attached<Self>) -> usize {
        attached.state().pending()
    }

    fn is_through(&self, attached: &Attached<Self>) -> bool {
        attached.state().is_through()
    }

    fn handshake_done(&self, attached: &Attached<Self>) {
        attached.state().release();
    }

    fn session(self: &Rc<Self>, connection: &Connection, id: &[u8]) -> Option<Session> {
        let id = SessionId::new(id)?;
        let attached = connection.attached::<Policy>();
        let lookup = attached.and_then(|attached| attached.state().take_lookup(&id));
        // What was read as a session ID must not pass for a ticket that was taken.
        let mut lookup = match lookup.filter(|one| one.is_take() || !self.takes(connection)) {
            Some(lookup) => lookup,
            None => return self.session_at_hand(connection, &id),
        };
        let attached = attached?;
        let session = if lookup.is_hit() { self.open(attached, &mut lookup) } else { None };
        // OpenSSL asks again after a HelloRetryRequest.
        attached.state().put_lookup(lookup);
        session
    }

    fn is_only_source(&self, connection: &Connection) -> bool {
        self.takes(connection)
    }

    fn session_made(&self, connection: &Connection, session: &SessionRef) {
        if self.store.is_empty() {
            return;
        }
        // The session of a stateless ticket is with the client.
        if connection.is_tls13() && connection.has_tickets() {
            return;
        }
        let Some(id) = SessionId::new(session.id()) else { return };
        let now = clock::unix_time();
        if session.expires() <= now {
            return;
        }
        let Ok(mut der) = self.scratch.try_borrow_mut() else { return };
        match session.to_der(&mut der, MAX_SESSION) {
            Ok(()) => {
                debug!(
                    connection.log(),
                    "SSL session store {:08x}: {} bytes for {} s",
                    id.short_hash(),
                    der.len(),
                    session.expires().saturating_sub(now)
                );
                for tier in &self.store {
                    tier.store(&id, &der, session.expires());
                }
            }
            Err(DerError::TooLarge(len)) => {
                if let Some(times) = pass(&self.too_large) {
                    log_at!(
                        connection.log(),
                        Warn,
                        "{times} SSL sessions larger than {MAX_SESSION} bytes not stored, \
                         the last of {len}"
                    );
                }
            }
            // The client has its session; only others cannot resume it.
            Err(DerError::OutOfMemory) => {}
        }
        // Not the whole capacity, which one large session would make long.
        der.as_mut_slice().zeroize();
        der.clear();
    }

    fn session_removed(&self, session: &SessionRef) {
        let Some(id) = SessionId::new(session.id()) else { return };
        debug!(Log::cycle(), "SSL session remove {:08x}", id.short_hash());
        for tier in &self.store {
            tier.remove(&id);
        }
    }
}

impl Answers for Policy {
    fn answered(&self, waiter: Waiter, outcome: Outcome, value: &[u8], first: bool) -> bool {
        let heard = self.waiters.with(waiter.token, |attached| {
            attached.state().answered(self, attached, waiter, outcome, value, first);
        });
        heard.is_some()
    }
}

/// Whether to write a message now, and how many it speaks for.
fn pass(throttle: &RefCell<Throttle>) -> Option<u64> {
    throttle.try_borrow_mut().ok()?.pass(clock::now_ms())
}

/// What OpenSSL will ask for, as far as the server's side decides it.
fn server_policy(connection: &Connection) -> ServerPolicy {
    ServerPolicy { tls13: connection.allows_tls13(), tickets: connection.has_tickets() }
}
