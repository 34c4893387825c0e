//! The lookups of one handshake.

use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

use session_core::hello::{SessionId, WantedIds};
use session_core::outcome::Outcome;
use session_core::ticket_keys::KeyName;

use super::lookup::{Lookup, Status};
use super::policy::Policy;
use super::reject::Reject;
use super::tickets::OfferedTicket;
use crate::debug;
use crate::ffi::log::Log;
use crate::ffi::tls::HandshakeToken;
use crate::net::backend::{Answered, Waiter};

/// In place of the number of a lookup: the question about the epoch.
const EPOCH: usize = usize::MAX;
/// And the one for the key of a ticket.
const TICKET_KEY: usize = usize::MAX - 1;

/// The lookups of the session IDs that a client has offered.
pub struct Lookups {
    lookups: Vec<Lookup>,
    /// The name of a ticket's key that was asked for.
    ticket_key: Option<KeyName>,
    /// How many answers have not come yet.
    waiting: usize,
    started: Option<Instant>,
}

impl Lookups {
    /// No lookup yet.
    pub fn new() -> Self {
        Lookups { lookups: Vec::new(), ticket_key: None, waiting: 0, started: None }
    }

    /// Makes room for so many lookups. Whether there is memory for them.
    pub fn reserve(&mut self, lookups: usize) -> bool {
        self.lookups.try_reserve_exact(lookups).is_ok()
    }

    /// Begins to look up the session IDs, for which there is room, and asks for the epoch. Those that
    /// none of the keys has issued are left out: OpenSSL may not even ask for them.
    /// A ticket is a reason to ask for the epoch, too, and for its key if that is not known.
    pub fn begin(
        &mut self,
        policy: &Policy,
        log: &Log,
        token: HandshakeToken,
        ids: &WantedIds,
        ticket: OfferedTicket,
    ) {
        self.started = Some(Instant::now());
        self.waiting = 0;
        let mut takes = false;
        for (id, tls) in ids.iter() {
            // OpenSSL uses one ticket; to take another would waste it.
            if takes && policy.takes(tls) {
                continue;
            }
            match policy.lookup(id, tls) {
                Some(lookup) => {
                    takes |= lookup.is_take();
                    self.lookups.push(lookup);
                }
                None => {
                    debug!(log, "SSL session fetch {:08x}: not one of ours", id.short_hash());
                }
            }
        }
        // First, so that the server which has the session may have told of the epoch before.
        let resumes = !matches!(ticket, OfferedTicket::None) || !self.lookups.is_empty();
        if let Some(epoch) = policy.rules.epoch.as_ref().filter(|_| resumes) {
            self.waiting = epoch.ask(Waiter::Handshake { token, index: EPOCH }).into();
        }
        if let (OfferedTicket::Unknown(name), Some(tickets)) = (ticket, &policy.rules.tickets) {
            if tickets.keeper.ask_now(&name, Waiter::Handshake { token, index: TICKET_KEY }) {
                self.ticket_key = Some(name);
                self.waiting = self.waiting.saturating_add(1);
            }
        }
        for (index, lookup) in self.lookups.iter_mut().enumerate() {
            let waiter = Waiter::Handshake { token, index };
            if lookup.run(&policy.rules.fetch, waiter, log) == Status::Waiting {
                self.waiting = self.waiting.saturating_add(1);
            }
        }
    }

    /// Whether an answer has not come yet.
    pub fn are_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// An answer has come from one tier. The lookup may go on in the next.
    pub fn answered(&mut self, policy: &Policy, log: &Log, answer: Answered<'_>) {
        let Waiter::Handshake { index, .. } = answer.waiter else { return };
        if index == EPOCH {
            if let Some(epoch) = policy.rules.epoch.as_ref().filter(|_| answer.first) {
                epoch.answered(answer.outcome, answer.value);
            }
            return self.lookup_ended();
        }
        if index == TICKET_KEY {
            if let (Some(name), Some(tickets)) = (self.ticket_key.take(), &policy.rules.tickets) {
                tickets.keeper.heard(&name, answer.outcome, answer.value);
            }
            return self.lookup_ended();
        }
        let Some(lookup) = self.lookups.get_mut(index) else { return };
        if answer.outcome == Outcome::Corrupt && answer.first {
            if let Some(tier) = lookup.asked().and_then(|tier| policy.rules.fetch.get(tier)) {
                policy.discard(log, lookup, &**tier, Reject::TooLarge);
            }
        }
        if lookup.answered(&policy.rules.fetch, answer, log) == Status::Ended {
            self.lookup_ended();
        }
    }

    fn lookup_ended(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// How the lookups have ended.
    pub fn outcome(&self) -> Option<Outcome> {
        self.lookups.iter().map(Lookup::outcome).reduce(Outcome::or)
    }

    /// How long they took.
    pub fn time(&self) -> Duration {
        self.started.map(|started| started.elapsed()).unwrap_or_default()
    }

    /// Whether a session was taken out of its tier, so that nobody else has it.
    pub fn have_taken(&self) -> bool {
        self.lookups.iter().any(|lookup| lookup.is_take() && lookup.is_hit())
    }

    /// Takes the lookup of `id` out.
    pub fn remove(&mut self, id: &SessionId) -> Option<Lookup> {
        let place = self.lookups.iter().position(|lookup| lookup.id() == id)?;
        Some(self.lookups.swap_remove(place))
    }

    /// Puts a lookup in; without memory for it, it is dropped.
    pub fn insert(&mut self, lookup: Lookup) {
        if self.lookups.try_reserve(1).is_ok() {
            self.lookups.push(lookup);
        }
    }

    /// Drops the lookups, with what they have found. Answers are not waited for any more.
    pub fn clear(&mut self) {
        self.lookups = Vec::new();
        self.waiting = 0;
    }
}
