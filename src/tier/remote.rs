//! The tier of a backend: servers that other machines share.

use core::cell::{Cell, RefCell};
use core::fmt;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use session_core::cache_key::{CacheKey, Name};
use session_core::codec::Expiry;
use session_core::outcome::Outcome;
use session_core::stats::{DropReason, tier as stats};
use session_core::throttle::Throttle;

use super::Tier;
use crate::ffi::clock;
use crate::ffi::counters::Count;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::ffi::zone::Fill;
use crate::log_at;
use crate::net::backend::{Backend, Giver, Source, Waiter};
use crate::net::peer::Refused;

/// Sessions on the servers of a backend.
pub struct Remote {
    name: String,
    /// What every cache key begins with; no longer than `CacheKey` allows.
    prefix: Vec<u8>,
    backend: Rc<Backend>,
    /// Whether it may be that a server gives other entries than those asked for.
    mistrusted: Cell<bool>,
    dropped: RefCell<Throttle>,
    count: Count,
}

impl Remote {
    /// A tier over `backend`; `name` is for logs and variables.
    pub fn new(name: String, prefix: Vec<u8>, backend: Rc<Backend>) -> Self {
        let (mistrusted, dropped) = (Cell::new(false), RefCell::new(Throttle::new()));
        Remote { name, prefix, backend, mistrusted, dropped, count: Count::default() }
    }
}

impl Remote {
    /// The key of an entry, and how long it is kept. `None` if that is no time.
    fn expiring(&self, name: &Name, expires: i64) -> Option<(CacheKey, Expiry)> {
        let ttl = expires.saturating_sub(clock::unix_time());
        let ttl = u32::try_from(ttl).ok().filter(|&ttl| ttl > 0)?;
        Some((CacheKey::new(&self.prefix, name)?, Expiry { ttl, at: expires }))
    }
}

impl Tier for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn count(&self) -> &Count {
        &self.count
    }

    fn is_local(&self) -> bool {
        false
    }

    fn fill(&self) -> Option<Fill> {
        None
    }

    fn fetch_now(&self, _: &Name, _: &mut Vec<u8>) -> Option<Outcome> {
        None
    }

    fn fetch(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome> {
        let key = CacheKey::new(&self.prefix, name).ok_or(Outcome::Error)?;
        let merged = self.backend.fetch(&key, waiter, Source::Any);
        let merged = merged.map_err(|_| Outcome::Down)?;
        self.count.add(stats::MERGED, merged.into());
        Ok(())
    }

    fn take_now(&self, _: &Name, _: &mut Vec<u8>) -> Option<Outcome> {
        None
    }

    fn take(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome> {
        let key = CacheKey::new(&self.prefix, name).ok_or(Outcome::Error)?;
        self.backend.take(&key, waiter).map_err(|_| Outcome::Down)
    }

    fn fetch_there(&self, name: &Name, waiter: Waiter) -> Result<(), Outcome> {
        let key = CacheKey::new(&self.prefix, name).ok_or(Outcome::Error)?;
        let asked = self.backend.fetch(&key, waiter, Source::Owner);
        asked.map(|_| ()).map_err(|_| Outcome::Down)
    }

    fn add(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        self.expiring(name, expires)
            .is_some_and(|(key, expiry)| self.backend.add(&key, value, expiry).is_ok())
    }

    fn put(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        self.expiring(name, expires)
            .is_some_and(|(key, expiry)| self.backend.store(&key, value, expiry).is_ok())
    }

    fn accepts(&self) -> bool {
        self.backend.accepts_stores()
    }

    fn store(&self, name: &Name, value: &[u8], expires: i64) -> bool {
        let Some((key, expiry)) = self.expiring(name, expires) else { return false };
        let reason = match self.backend.store(&key, value, expiry) {
            Ok(()) => {
                self.count.add(stats::STORED, 1);
                self.count.add(stats::BYTES_STORED, value.len() as u64);
                return true;
            }
            Err(Refused::Down) => DropReason::Unavailable,
            Err(Refused::Full) => DropReason::QueueFull,
            Err(Refused::OutOfMemory) => DropReason::NoMemory,
        };
        self.count.add(stats::dropped(reason), 1);
        let times = self.dropped.try_borrow_mut().ok().and_then(|mut t| t.pass(clock::now_ms()));
        if let Some(times) = times {
            let (name, unavailable) = (&self.name, self.backend.unavailable());
            let why: &dyn fmt::Display = match reason {
                DropReason::QueueFull => &"the queue is full",
                DropReason::NoMemory => &"there is no memory",
                _ => &unavailable,
            };
            log_at!(Log::cycle(), Warn, "{times} SSL sessions not stored in \"{name}\", {why}");
        }
        false
    }

    fn remove(&self, name: &Name) {
        if let Some(key) = CacheKey::new(&self.prefix, name) {
            // An entry that cannot be removed expires; nothing else depends on it.
            let _ = self.backend.remove(&key);
            self.count.add(stats::REMOVALS, 1);
        }
    }

    fn fetch_text(&self, text: &str, waiter: Waiter) -> Result<(), Outcome> {
        let key = CacheKey::verbatim(&self.prefix, text.as_bytes()).ok_or(Outcome::Error)?;
        let asked = self.backend.fetch(&key, waiter, Source::Owner);
        asked.map(|_| ()).map_err(|_| Outcome::Down)
    }

    fn server(&self, name: &Name, giver: &Giver) -> Option<String> {
        self.backend.server(&CacheKey::new(&self.prefix, name)?, giver)
    }

    fn suspect(&self, name: &Name, giver: &Giver) {
        if let Some(key) = CacheKey::new(&self.prefix, name) {
            self.backend.suspect(&key, giver);
            self.mistrusted.set(true);
        }
    }

    fn trust(&self, name: &Name, giver: &Giver) {
        if self.mistrusted.get() {
            if let Some(key) = CacheKey::new(&self.prefix, name) {
                self.mistrusted.set(self.backend.trust(&key, giver));
            }
        }
    }

    fn close(&self, turn: &Turn) {
        self.backend.close(turn);
    }
}
