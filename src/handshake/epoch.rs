//! `ssl_session_epoch`: the moment up to which sessions are withdrawn, read from a tier.

use core::cell::{Cell, RefCell};
use std::rc::Rc;
use std::string::String;

use session_core::epoch::{Epoch, News, Standing};
use session_core::outcome::Outcome;
use session_core::throttle::Throttle;

use super::pass;
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::shared_value::SharedValue;
use crate::log_at;
use crate::net::backend::Waiter;
use crate::tier::Tier;

/// Asks for the epoch at most once a second, ahead of a lookup. What was heard lies in shared
/// memory: it is in force in all workers, and outlives them.
pub struct Watch {
    name: String,
    tier: Rc<dyn Tier>,
    zone: SharedValue<Epoch>,
    /// When this worker last asked in vain, in milliseconds.
    failed: Cell<Option<u64>>,
    invalid: RefCell<Throttle>,
    unheard: RefCell<Throttle>,
}

impl Watch {
    /// Reads the entry `name` of a tier, and keeps what it says in a zone.
    pub fn new(name: String, tier: Rc<dyn Tier>, zone: SharedValue<Epoch>) -> Self {
        Watch {
            name,
            tier,
            zone,
            failed: Cell::new(None),
            invalid: RefCell::new(Throttle::new()),
            unheard: RefCell::new(Throttle::new()),
        }
    }

    /// The name of the entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of it; `None` while the configuration is read.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.zone.get()
    }

    /// Asks, if what is known is too old. Whether the waiter has to wait.
    pub fn ask(&self, waiter: Waiter) -> bool {
        if !self.is_due() {
            return false;
        }
        let asked = self.tier.fetch_text(&self.name, waiter).is_ok();
        if !asked {
            // Not for each handshake while the tier is down.
            self.failed.set(Some(clock::now_ms()));
        }
        asked
    }

    /// The tier has answered. What is known stays in force when it has nothing to tell.
    pub fn answered(&self, outcome: Outcome, entry: &[u8]) {
        let heard = match outcome {
            Outcome::Hit => Some(Some(entry)),
            Outcome::Miss => Some(None),
            _ => None,
        };
        let news = match (heard, self.zone.get()) {
            (Some(entry), Some(epoch)) => epoch.hear(entry, clock::unix_time(), clock::now_ms()),
            _ => {
                self.failed.set(Some(clock::now_ms()));
                if outcome != Outcome::Corrupt {
                    return;
                }
                News::Invalid
            }
        };
        let (name, tier) = (&self.name, self.tier.name());
        match news {
            News::None => {}
            News::Withdrawn(at) => log_at!(
                Log::cycle(),
                Notice,
                "SSL session epoch \"{name}\" in \"{tier}\" is {at}: \
                 sessions made until then are not resumed"
            ),
            News::Invalid => {
                if let Some(times) = pass(&self.invalid) {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "invalid SSL session epoch \"{name}\" in \"{tier}\", {times} times"
                    );
                }
            }
        }
    }

    /// What becomes of a session made in that second that could be resumed. While that is not known, the log says so.
    pub fn standing(&self, made: i64) -> Standing {
        let standing = self.zone.get().map_or(Standing::Unknown, |epoch| epoch.standing(made));
        if standing == Standing::Unknown {
            if let Some(times) = pass(&self.unheard) {
                let (name, tier) = (&self.name, self.tier.name());
                log_at!(
                    Log::cycle(),
                    Warn,
                    "SSL session epoch \"{name}\" in \"{tier}\" has not been heard yet: \
                     no session is resumed until then, {times} were not"
                );
            }
        }
        standing
    }

    /// Whether what is known is too old to let a session be resumed that nobody has asked for in
    /// time.
    pub fn is_due(&self) -> bool {
        let (failed, now) = (self.failed.get(), clock::now_ms());
        self.zone.get().is_none_or(|epoch| epoch.is_due(failed, now))
    }

    /// Whether a ticket may be stored that is given because of a session made in that second.
    pub fn lets_renew(&self, made: i64) -> bool {
        self.zone.get().is_some_and(|epoch| epoch.lets_renew(made, clock::now_ms()))
    }
}
