//! The lookup of one session ID in the tiers.

use core::fmt;
use std::rc::Rc;
use std::time::Instant;
use std::vec::Vec;

use session_core::hello::SessionId;
use session_core::key_ring::Entry;
use session_core::outcome::Outcome;
use session_core::stats::tier as stats;
use zeroize::Zeroizing;

use crate::debug;
use crate::ffi::log::Log;
use crate::net::backend::{Answered, Giver, Waiter};
use crate::tier::Tier;

/// One session ID on its way through the tiers.
pub struct Lookup {
    entry: Entry,
    /// Whether the entry is taken out of its tier; then no other tier is asked or told.
    take: bool,
    /// The tier that is asked, or that had the entry, or the number of tiers.
    tier: usize,
    outcome: Outcome,
    /// The tier that had an entry of no use, or a session that is withheld.
    spoilt: Option<usize>,
    value: Zeroizing<Vec<u8>>,
    hit: Option<HitCount>,
    /// When the current tier was asked, if that takes time.
    asked_at: Option<Instant>,
    /// Whether the tiers before that of a hit have still to be told.
    refill: bool,
    /// Whether this one does what there is to do about the entry, of all who waited for it.
    first: bool,
    giver: Giver,
}

/// Whether a lookup has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A tier was asked, and answers later.
    Waiting,
    /// The outcome is known.
    Ended,
}

impl Lookup {
    /// A lookup that has asked nobody yet.
    pub fn new(entry: Entry) -> Self {
        Lookup {
            entry,
            take: false,
            tier: 0,
            outcome: Outcome::Miss,
            spoilt: None,
            value: Zeroizing::new(Vec::new()),
            hit: None,
            asked_at: None,
            refill: true,
            first: true,
            giver: Giver::default(),
        }
    }

    /// A lookup that takes the entry out of a tier.
    pub fn take(entry: Entry, tier: usize) -> Self {
        Lookup { take: true, tier, refill: false, ..Lookup::new(entry) }
    }

    /// The session ID.
    pub fn id(&self) -> &SessionId {
        self.entry.id()
    }

    /// Whose session it looks for.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether the entry was taken out of its tier.
    pub fn is_take(&self) -> bool {
        self.take
    }

    /// The server that has given the entry, where the entry does not belong to it.
    pub fn giver(&self) -> &Giver {
        &self.giver
    }

    /// The outcome so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the session was found.
    pub fn is_hit(&self) -> bool {
        self.outcome == Outcome::Hit
    }

    /// The tier that had the session, be it withheld, or an entry of no use in its place.
    pub fn tier(&self) -> Option<usize> {
        if self.is_hit() { Some(self.tier) } else { self.spoilt }
    }

    /// The tier that is asked.
    pub fn asked(&self) -> Option<usize> {
        (!self.is_hit()).then_some(self.tier)
    }

    /// The entry as the tier has it.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// How many tiers, from the first, lack the entry of a hit. Answered once.
    pub fn take_refill(&mut self) -> Option<usize> {
        let refill = core::mem::take(&mut self.refill) && self.first;
        refill.then_some(self.tier).filter(|&tier| tier > 0)
    }

    /// Whether this lookup does what there is to do about the entry.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The entry has turned out to be of no use, or its session is withheld: that is a `Miss`.
    pub fn spoil(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.spoilt = matches!(outcome, Outcome::Corrupt | Outcome::Miss).then_some(self.tier);
        self.value = Zeroizing::new(Vec::new());
        // What is withheld was there all the same.
        if let Some(hit) = self.hit.as_mut().filter(|_| outcome != Outcome::Miss) {
            hit.outcome = outcome;
        }
    }

    /// Asks the tiers from the current one on.
    pub fn run(&mut self, tiers: &[Rc<dyn Tier>], waiter: Waiter, log: &Log) -> Status {
        while let Some(tier) = tiers.get(self.tier) {
            let outcome = match self.ask_local(&**tier) {
                Some(outcome) => outcome,
                None => match self.ask_remote(&**tier, waiter) {
                    Ok(()) => {
                        debug!(log, "SSL session fetch {self}: asked \"{}\"", tier.name());
                        return Status::Waiting;
                    }
                    Err(outcome) => outcome,
                },
            };
            if self.record(tiers, outcome, log) {
                return Status::Ended;
            }
        }
        Status::Ended
    }

    /// Asks the local tiers only. Whether one had the entry.
    pub fn run_local(&mut self, tiers: &[Rc<dyn Tier>], log: &Log) -> bool {
        while let Some(tier) = tiers.get(self.tier) {
            match self.ask_local(&**tier) {
                Some(outcome) if self.record(tiers, outcome, log) => return true,
                Some(_) => {}
                None => self.leave(),
            }
        }
        false
    }

    /// Goes on to the next tier. After the one that an entry is taken out of there is none.
    fn leave(&mut self) {
        self.tier = if self.take { usize::MAX } else { self.tier.saturating_add(1) };
    }

    /// The tier that was asked has answered.
    pub fn answered(&mut self, tiers: &[Rc<dyn Tier>], answer: Answered<'_>, log: &Log) -> Status {
        let Answered { waiter, outcome, value, first, giver } = answer;
        self.first = first;
        self.giver = giver.clone();
        let outcome = match outcome {
            Outcome::Hit if self.value.try_reserve_exact(value.len()).is_err() => Outcome::Error,
            outcome => outcome,
        };
        if outcome == Outcome::Hit {
            self.value.extend_from_slice(value);
        }
        if self.record(tiers, outcome, log) { Status::Ended } else { self.run(tiers, waiter, log) }
    }

    /// The outcome in a local tier; `None` if the tier is not local.
    fn ask_local(&mut self, tier: &dyn Tier) -> Option<Outcome> {
        if self.take {
            tier.take_now(self.entry.name(), &mut self.value)
        } else {
            tier.fetch_now(self.entry.name(), &mut self.value)
        }
    }

    /// Asks a tier that answers later. `Err` is the outcome if it cannot be asked.
    fn ask_remote(&mut self, tier: &dyn Tier, waiter: Waiter) -> Result<(), Outcome> {
        let name = self.entry.name();
        if self.take {
            tier.take(name, waiter)?
        } else {
            tier.fetch(name, waiter)?
        };
        self.asked_at = Some(Instant::now());
        Ok(())
    }

    /// Counts and keeps the outcome of the current tier. Whether it ends the lookup.
    fn record(&mut self, tiers: &[Rc<dyn Tier>], outcome: Outcome, log: &Log) -> bool {
        if let Some(tier) = tiers.get(self.tier) {
            let count = tier.count();
            if outcome == Outcome::Hit {
                self.hit = Some(HitCount { tier: Rc::clone(tier), outcome });
            } else {
                count.add(stats::lookups(outcome), 1);
            }
            if self.take {
                count.add(stats::TAKES, 1);
            }
            if outcome == Outcome::Hit {
                count.add(stats::BYTES_FETCHED, self.value.len() as u64);
            }
            let time = self.asked_at.take().map(|asked| asked.elapsed());
            if let Some(time) = time {
                count.add_time(stats::LOOKED_UP, time);
            }
            debug!(
                log,
                "SSL session fetch {self}: {outcome} in \"{}\", {} bytes, {} us",
                tier.name(),
                self.value.len(),
                time.unwrap_or_default().as_micros()
            );
        }
        self.outcome = self.outcome.or(outcome);
        if outcome == Outcome::Hit {
            return true;
        }
        if outcome == Outcome::Corrupt {
            self.spoilt = self.spoilt.or(Some(self.tier));
        }
        self.leave();
        false
    }
}

/// Counts a hit when it is dropped: whether the entry is of use shows later than the hit.
struct HitCount {
    tier: Rc<dyn Tier>,
    outcome: Outcome,
}

impl Drop for HitCount {
    fn drop(&mut self) {
        self.tier.count().add(stats::lookups(self.outcome), 1);
    }
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.id().short_hash())
    }
}
