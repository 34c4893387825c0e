//! The tier of this machine: a zone of shared memory.

use core::cell::RefCell;
use std::string::String;
use std::vec::Vec;

use session_core::cache_key::Name;
use session_core::outcome::Outcome;
use session_core::stats::{DropReason, tier as stats};
use session_core::throttle::Throttle;

use super::Tier;
use crate::ffi::clock;
use crate::ffi::counters::Count;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::ffi::zone::{Fill, Zone};
use crate::log_at;
use crate::net::backend::{Giver, Waiter};

/// Sessions in a zone that the workers of this machine share.
pub struct Shared {
    name: String,
    zone: Zone,
    full: RefCell<Throttle>,
    count: Count,
}

impl Shared {
    /// A tier over `zone`; `name` is for logs and variables.
    pub fn new(name: String, zone: Zone) -> Self {
        Shared { name, zone, full: RefCell::new(Throttle::new()), count: Count::default() }
    }
}

impl Tier for Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn count(&self) -> &Count {
        &self.count
    }

    fn is_local(&self) -> bool {
        true
    }

    fn fill(&self) -> Option<Fill> {
        self.zone.fill()
    }

    fn fetch_now(&self, name: &Name, value: &mut Vec<u8>) -> Option<Outcome> {
        let found = self.zone.get(name.as_bytes(), clock::unix_time(), value);
        Some(if found { Outcome::Hit } else { Outcome::Miss })
    }

    fn fetch(&self, _: &Name, _: Waiter) -> Result<(), Outcome> {
        // Not asked: fetch_now() answers.
        Err(Outcome::Miss)
    }

    fn take_now(&self, name: &Name, value: &mut Vec<u8>) -> Option<Outcome> {
        let found = self.zone.take(name.as_bytes(), clock::unix_time(), value);
        Some(if found { Outcome::Hit } else { Outcome::Miss })
    }

    fn take(&self, _: &Name, _: Waiter) -> Result<(), Outcome> {
        // Not asked: take_now() answers.
        Err(Outcome::Miss)
    }

    fn store(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        let now = clock::unix_time();
        if let Ok(evicted) = self.zone.put(name.as_bytes(), value, now, expires) {
            self.count.add(stats::STORED, 1);
            self.count.add(stats::EVICTIONS, evicted);
            self.count.add(stats::BYTES_STORED, value.len() as u64);
            return true;
        }
        self.count.add(stats::dropped(DropReason::NoRoom), 1);
        let times = self.full.try_borrow_mut().ok().and_then(|mut t| t.pass(clock::now_ms()));
        if let Some(times) = times {
            let (name, len) = (&self.name, value.len());
            log_at!(
                Log::cycle(),
                Warn,
                "{name} has no room, {times} SSL sessions not stored, the last of {len} bytes"
            );
        }
        false
    }

    fn fetch_there(&self, _: &Name, _: Waiter) -> Result<(), Outcome> {
        // Not asked: fetch_now() answers.
        Err(Outcome::Miss)
    }

    fn add(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        self.zone.add(name.as_bytes(), value, clock::unix_time(), expires).is_ok()
    }

    fn put(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        self.zone.put(name.as_bytes(), value, clock::unix_time(), expires).is_ok()
    }

    fn accepts(&self) -> bool {
        true
    }

    fn remove(&self, name: &Name) {
        self.zone.remove(name.as_bytes());
        self.count.add(stats::REMOVALS, 1);
    }

    fn fetch_text(&self, _: &str, _: Waiter) -> Result<(), Outcome> {
        // Nobody can have put it here.
        Err(Outcome::Miss)
    }

    fn server(&self, _: &Name, _: &Giver) -> Option<String> {
        None
    }

    fn suspect(&self, _: &Name, _: &Giver) {}

    fn trust(&self, _: &Name, _: &Giver) {}

    fn close(&self, _: &Turn) {}
}
