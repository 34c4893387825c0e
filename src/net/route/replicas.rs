//! Servers that have the same entries as another one, and are only read from.

use core::alloc::Layout;
use std::alloc::handle_alloc_error;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use session_core::rendezvous::Rendezvous;

use crate::net::peer::Peer;

/// The replicas of one server. The key chooses one, so that they share the lookups evenly, and the
/// lookups of one that is down go to all others.
pub struct Replicas {
    choice: Rendezvous,
    pub(super) peers: Vec<Rc<Peer>>,
}

impl Replicas {
    /// The replicas given, by name and weight.
    pub fn new(replicas: Vec<(String, u32, Rc<Peer>)>) -> Self {
        let names = replicas.iter().map(|(name, weight, _)| (name.as_bytes(), *weight));
        let choice = Rendezvous::new(names)
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Rendezvous>()));
        Replicas { choice, peers: replicas.into_iter().map(|(_, _, peer)| peer).collect() }
    }

    /// The one to be asked for a key.
    pub fn find(&self, key: &[u8]) -> Option<Rc<Peer>> {
        let usable = |n| self.peers.get(n).is_some_and(|peer: &Rc<Peer>| peer.is_usable());
        self.peers.get(self.choice.pick(key, usable)?).map(Rc::clone)
    }
}
