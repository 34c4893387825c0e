//! `ssl_session_epoch`: the moment up to which sessions are withdrawn, read from a tier.

use core::cell::RefCell;
use std::rc::Rc;
use std::string::String;

use session_core::epoch::{Epoch, News};
use session_core::outcome::Outcome;
use session_core::throttle::Throttle;

use super::pass;
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::tls::SessionRef;
use crate::log_at;
use crate::net::backend::Waiter;
use crate::tier::Tier;

/// Asks for the epoch at most once a second, ahead of a lookup.
pub struct Watch {
    name: String,
    tier: Rc<dyn Tier>,
    epoch: RefCell<Epoch>,
    invalid: RefCell<Throttle>,
}

impl Watch {
    /// Reads the entry `name` of a tier.
    pub fn new(name: String, tier: Rc<dyn Tier>) -> Self {
        Watch {
            name,
            tier,
            epoch: RefCell::new(Epoch::new()),
            invalid: RefCell::new(Throttle::new()),
        }
    }

    /// Asks, if what is known is too old. Whether the waiter has to wait.
    pub fn ask(&self, waiter: Waiter) -> bool {
        if !self.is_due() {
            return false;
        }
        let asked = self.tier.fetch_text(&self.name, waiter).is_ok();
        if !asked {
            // Not for each handshake while the tier is down.
            self.heard(false);
        }
        asked
    }

    /// The tier has answered. What is known stays in force when it has nothing to tell.
    pub fn answered(&self, outcome: Outcome, entry: &[u8]) {
        self.heard(matches!(outcome, Outcome::Hit | Outcome::Miss));
        let news = match outcome {
            Outcome::Hit => match self.epoch.try_borrow_mut() {
                Ok(mut epoch) => epoch.learn(entry, clock::unix_time()),
                Err(_) => return,
            },
            Outcome::Corrupt => News::Invalid,
            _ => return,
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

    /// Whether the session is withdrawn.
    pub fn withdraws(&self, session: &SessionRef) -> bool {
        self.epoch.try_borrow().is_ok_and(|epoch| epoch.withdraws(session.made()))
    }

    /// Whether what is known is too old to let a session be resumed that nobody has asked for in
    /// time.
    pub fn is_due(&self) -> bool {
        self.epoch.try_borrow().is_ok_and(|epoch| epoch.is_due(clock::now_ms()))
    }

    /// Whether a ticket may be stored that is given because of a session made in that second.
    pub fn lets_renew(&self, made: i64) -> bool {
        self.epoch.try_borrow().is_ok_and(|epoch| epoch.lets_renew(made, clock::now_ms()))
    }

    fn heard(&self, answered: bool) {
        if let Ok(mut epoch) = self.epoch.try_borrow_mut() {
            epoch.heard(clock::now_ms(), answered);
        }
    }
}
