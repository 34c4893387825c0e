//! The tier of a backend: a server that other machines share.

use core::cell::RefCell;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use session_core::cache_key::CacheKey;
use session_core::hello::SessionId;
use session_core::outcome::Outcome;
use session_core::throttle::Throttle;

use super::Tier;
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::log_at;
use crate::net::peer::{Peer, Waiter};

/// Sessions on a server.
pub struct Remote {
    name: String,
    /// What every cache key begins with; no longer than `CacheKey` allows.
    prefix: Vec<u8>,
    peer: Rc<Peer>,
    dropped: RefCell<Throttle>,
}

impl Remote {
    /// A tier over `peer`; `name` is for logs and variables.
    pub fn new(name: String, prefix: Vec<u8>, peer: Rc<Peer>) -> Self {
        Remote { name, prefix, peer, dropped: RefCell::new(Throttle::new()) }
    }
}

impl Tier for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_local(&self) -> bool {
        false
    }

    fn fetch_now(&self, _: &SessionId, _: &mut Vec<u8>) -> Option<Outcome> {
        None
    }

    fn fetch(&self, id: &SessionId, waiter: Waiter) -> Result<(), Outcome> {
        let key = CacheKey::new(&self.prefix, id).ok_or(Outcome::Error)?;
        self.peer.fetch(key.as_bytes(), waiter).map_err(|_| Outcome::Down)
    }

    fn store(&self, id: &SessionId, value: &[u8], expires: i64) {
        let Some(key) = CacheKey::new(&self.prefix, id) else { return };
        let ttl = expires.saturating_sub(clock::unix_time());
        let Some(ttl) = u32::try_from(ttl).ok().filter(|&ttl| ttl > 0) else { return };
        if self.peer.store(key.as_bytes(), value, ttl).is_ok() {
            return;
        }
        let times = self.dropped.try_borrow_mut().ok().and_then(|mut t| t.pass(clock::now_ms()));
        if let Some(times) = times {
            let (name, peer) = (&self.name, &self.peer);
            log_at!(
                Log::cycle(),
                Warn,
                "{times} SSL sessions not stored in \"{name}\", {peer} is not available"
            );
        }
    }

    fn remove(&self, id: &SessionId) {
        if let Some(key) = CacheKey::new(&self.prefix, id) {
            // An entry that cannot be removed expires; nothing else depends on it.
            let _ = self.peer.remove(key.as_bytes());
        }
    }

    fn mistrust(&self) {
        self.peer.mistrust();
    }

    fn close(&self) {
        self.peer.close();
    }
}
