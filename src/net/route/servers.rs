//! Servers of the configuration.

use core::alloc::Layout;
use std::alloc::handle_alloc_error;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use session_core::rendezvous::Rendezvous;

use super::{Choice, Replicas, Retired};
use crate::net::peer::Peer;

/// Servers of which the key chooses one, by weighted rendezvous hashing.
pub struct Servers {
    choice: Rendezvous,
    pub(super) peers: Vec<Rc<Peer>>,
    backup_choice: Rendezvous,
    pub(super) backups: Vec<Rc<Peer>>,
    /// Those that have the same entries.
    pub(super) replicas: Replicas,
    /// Those that have moved and have something to answer still.
    pub(super) retired: Retired,
}

/// A server with what decides about its share.
pub struct Member {
    /// Its name, the same on all machines.
    pub name: String,
    /// Its share.
    pub weight: u32,
    /// Whether it is only asked when no other is usable.
    pub backup: bool,
    /// Whether it has the entries of the others, and is only read from.
    pub replica: bool,
    /// Its connection.
    pub peer: Rc<Peer>,
}

impl Servers {
    /// The servers given.
    pub fn new(members: Vec<Member>) -> Self {
        let (replicas, members): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.replica);
        let (backups, servers): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.backup);
        let choice = |members: &[Member]| {
            // What a configuration asks for once is asked for plainly.
            Rendezvous::new(members.iter().map(|member| (member.name.as_bytes(), member.weight)))
                .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Rendezvous>()))
        };
        let peers = |members: Vec<Member>| members.into_iter().map(|member| member.peer).collect();
        Servers {
            choice: choice(&servers),
            peers: peers(servers),
            backup_choice: choice(&backups),
            backups: peers(backups),
            replicas: Replicas::new(
                replicas.into_iter().map(|it| (it.name, it.weight, it.peer)).collect(),
            ),
            retired: Retired::default(),
        }
    }

    pub fn find(&self, key: &[u8]) -> Choice {
        if let ([peer], []) = (self.peers.as_slice(), self.backups.as_slice()) {
            return Choice::Peer(Rc::clone(peer));
        }
        let pick = |choice: &Rendezvous, peers: &[Rc<Peer>]| {
            let usable = |n| peers.get(n).is_some_and(|peer: &Rc<Peer>| peer.is_usable());
            choice.pick(key, usable).and_then(|n| peers.get(n)).map(Rc::clone)
        };
        pick(&self.choice, &self.peers)
            .or_else(|| pick(&self.backup_choice, &self.backups))
            .map_or(Choice::Nobody, Choice::Peer)
    }
}
