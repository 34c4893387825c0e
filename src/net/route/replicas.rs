//! Servers that have the same entries as another one, and are only read from.

use core::alloc::Layout;
use core::ptr;
use std::alloc::handle_alloc_error;
use std::rc::{Rc, Weak};
use std::string::String;
use std::vec::Vec;

use session_core::rendezvous::Rendezvous;

use super::Links;
use crate::ffi::clock;
use crate::net::peer::{Peer, Replies};

/// The replicas of one server. Of those that are near the key chooses one, so that they share the
/// lookups evenly, and the lookups of one that is down go to all others.
pub struct Replicas {
    choice: Rendezvous,
    pub(super) peers: Vec<Rc<Peer>>,
}

impl Replicas {
    /// Those that were announced, of which each has a peer: one of `known`, or a new one.
    pub fn announced(
        nodes: &[(String, u16)],
        known: &[Rc<Peer>],
        links: &Links,
        replies: &Weak<dyn Replies>,
    ) -> Self {
        let peer = |host: &str, port| {
            let known = known.iter().find(|peer| peer.is_announced_as(host, port));
            known.cloned().or_else(|| links.found(host, port, replies))
        };
        // One with a name that nobody resolves is none.
        let member = |(host, port): &(String, u16)| {
            Some((std::format!("{host}:{port}"), 1, peer(host, *port)?))
        };
        Replicas::new(nodes.iter().filter_map(member).collect())
    }

    /// The replicas given, by name and weight.
    pub fn new(replicas: Vec<(String, u32, Rc<Peer>)>) -> Self {
        let names = replicas.iter().map(|(name, weight, _)| (name.as_bytes(), *weight));
        let choice = Rendezvous::new(names)
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Rendezvous>()));
        Replicas { choice, peers: replicas.into_iter().map(|(_, _, peer)| peer).collect() }
    }

    /// None.
    pub fn none() -> Self {
        Replicas::new(Vec::new())
    }

    /// Whether it is one of them.
    pub fn have(&self, peer: &Peer) -> bool {
        self.peers.iter().any(|replica| ptr::eq(&**replica, peer))
    }

    /// The one to be asked for a key.
    pub fn find(&self, key: &[u8]) -> Option<Rc<Peer>> {
        if let [only] = self.peers.as_slice() {
            return only.is_usable().then(|| Rc::clone(only));
        }
        let usable = |n| self.peers.get(n).filter(|peer: &&Rc<Peer>| peer.is_usable());
        let nearest = (0..self.peers.len()).filter_map(|n| usable(n)?.nearness().time()).min();
        let now = clock::now_ms();
        let wanted = |n| usable(n).is_some_and(|peer| peer.nearness().is_wanted(now, nearest));
        let near = self.choice.pick(key, wanted);
        let place = near.or_else(|| self.choice.pick(key, |n| usable(n).is_some()))?;
        self.peers.get(place).map(Rc::clone)
    }
}
