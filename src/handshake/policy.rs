//! What is done about sessions, as far as the configuration says it.

use core::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use session_core::buffer;
use session_core::hello::SessionId;
use session_core::key_ring::{KeyRing, Tls};
use session_core::stats::Kind;
use session_core::throttle::Throttle;
use session_core::unusable::Unusable;

use super::count::Tally;
use super::epoch::Watch;
use super::lookup::Lookup;
use super::messages::pass;
use super::tickets::Tickets;
use crate::ffi::crypto::Evp;
use crate::ffi::log::Log;
use crate::ffi::tls::{Connection, Waiters};
use crate::ffi::turn::Turn;
use crate::log_at;
use crate::tier::Tier;

/// What the configuration says about sessions.
pub struct Rules {
    /// Where sessions are looked up, in this order.
    pub fetch: Vec<Rc<dyn Tier>>,
    /// Set where a ticket of TLS 1.3 is good for one handshake only.
    pub single_use: Option<SingleUse>,
    /// Where they are stored: in all of these.
    pub store: Vec<Rc<dyn Tier>>,
    /// Whether those of clients that have shown a certificate are stored, too.
    pub client_certificates: bool,
    /// What they are sealed with.
    pub ring: Rc<KeyRing<Evp>>,
    /// What is done with stateless tickets, where their keys are the fleet's.
    pub tickets: Option<Tickets>,
    /// Which are withdrawn.
    pub epoch: Option<Watch>,
    /// How long after its full handshake a session may be resumed, in seconds.
    pub lifetime: i64,
}

/// Where the tickets are that are good for one handshake.
pub struct SingleUse {
    /// The tier of `fetch` that they are taken out of. No other one is asked for them.
    pub tier: usize,
    /// Where they are stored. That is one place for all machines: of two copies each could be taken, by
    /// machines that do not agree on the tier.
    pub store: Vec<Rc<dyn Tier>>,
}

/// What is done about sessions, for all servers of a configuration.
pub struct Policy {
    pub(super) rules: Rules,
    /// Whether a lookup may have to wait. Otherwise OpenSSL's question is answered when it comes,
    /// and nothing has to be read ahead of it.
    pub(super) suspends: bool,
    pub(super) tally: Tally,
    pub(super) waiters: Waiters<Policy>,
    /// A session in DER, for as long as it takes to store or decode it.
    pub(super) scratch: RefCell<Vec<u8>>,
    /// What was read from a socket just now.
    pub(super) wire: RefCell<Vec<u8>>,
    pub(super) too_large: RefCell<Throttle>,
    pub(super) corrupt: RefCell<Throttle>,
    pub(super) unusable: RefCell<Unusable>,
    failed: RefCell<Throttle>,
}

impl Policy {
    /// Carries out `rules`.
    pub fn new(rules: Rules) -> Self {
        Policy {
            suspends: rules.fetch.iter().any(|tier| !tier.is_local()),
            rules,
            tally: Tally::default(),
            waiters: Waiters::new(),
            scratch: RefCell::new(Vec::new()),
            wire: RefCell::new(Vec::new()),
            too_large: RefCell::new(Throttle::new()),
            corrupt: RefCell::new(Throttle::new()),
            unusable: RefCell::new(Unusable::new()),
            failed: RefCell::new(Throttle::new()),
        }
    }

    /// Whether a lookup may have to wait.
    pub fn suspends(&self) -> bool {
        self.suspends
    }

    /// The name of a tier of lookups.
    pub fn tier_name(&self, tier: usize) -> Option<&str> {
        self.rules.fetch.get(tier).map(|tier| tier.name())
    }

    /// What the configuration says.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// All tiers. One that is both fetched from and stored in is there twice.
    pub fn tiers(&self) -> impl Iterator<Item = &Rc<dyn Tier>> {
        let keys = self.rules.tickets.iter().map(|tickets| tickets.keeper.tier());
        self.rules.fetch.iter().chain(&self.rules.store).chain(keys)
    }

    /// What happens is counted from now on.
    pub fn count(&self) {
        self.tally.begin();
        for tier in self.tiers() {
            tier.count().begin(Kind::Tier, &[tier.name()]);
        }
    }

    /// The worker begins.
    pub fn begin(&self) {
        if let Some(tickets) = &self.rules.tickets {
            tickets.keeper.begin();
        }
    }

    /// The worker exits.
    pub fn close(&self, turn: &Turn) {
        for tier in self.rules.fetch.iter().chain(&self.rules.store) {
            tier.close(turn);
        }
        if let Some(tickets) = &self.rules.tickets {
            tickets.keeper.close();
            tickets.keeper.tier().close(turn);
        }
    }

    /// Whether session IDs have tags.
    pub(super) fn has_keys(&self) -> bool {
        self.rules.ring.has_keys()
    }

    /// Whether a session is good for one handshake only.
    pub(super) fn takes(&self, tls: Tls) -> bool {
        self.single_use(tls).is_some()
    }

    fn single_use(&self, tls: Tls) -> Option<&SingleUse> {
        self.rules.single_use.as_ref().filter(|_| tls == Tls::V13)
    }

    /// Where a session is stored.
    pub(super) fn targets(&self, tls: Tls) -> &[Rc<dyn Tier>] {
        self.single_use(tls).map_or(&self.rules.store, |single_use| &single_use.store)
    }

    /// A lookup of a session ID that was offered; none if no key has issued the ID.
    pub(super) fn lookup(&self, id: &SessionId, tls: Tls) -> Option<Lookup> {
        let entry = self.rules.ring.known(id, tls)?;
        Some(match self.single_use(tls) {
            Some(single_use) => Lookup::take(entry, single_use.tier),
            None => Lookup::new(entry),
        })
    }

    /// Logs that OpenSSL could not seal, open, or make random bytes.
    pub(super) fn crypto_failed(&self) {
        if let Some(times) = pass(&self.failed) {
            log_at!(Log::cycle(), Alert, "sealing of SSL sessions failed, {times} times");
        }
    }
}

/// What session IDs are for.
pub(super) fn tls(is_tls13: bool) -> Tls {
    if is_tls13 { Tls::V13 } else { Tls::UpTo12 }
}

/// Whether the sessions of a handshake are for OpenSSL's own cache alone: it protects early data in
/// TLS 1.3 by taking them out of there, and resumes no others.
pub(super) fn only_openssl_resumes(connection: &Connection) -> bool {
    connection.is_tls13() && connection.has_anti_replay()
}

/// Wipes what was in a buffer, and not its whole capacity, which one large session would make
/// long.
pub(super) fn wipe(buf: &mut Vec<u8>) {
    buffer::wipe(buf);
    buf.clear();
}
