//! A Redis Cluster.

use core::mem;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::resp;
use session_core::throttle::Throttle;
use session_core::topology::{self, SlotMap, hash_slot};

use super::{Choice, Links, Replicas, Retired};
use crate::ffi::address::Address;
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::net::peer::{Node, Peer, Replies, Reply};
use crate::net::wording::QUERYING;
use crate::{debug, log_at};

/// A map of the slots is trusted for so long, in milliseconds, where nothing says that it is wrong.
const MAP_AGE: u64 = 60_000;
/// How many nodes that are not in the map are connected to.
const MAX_GUESTS: usize = 64;

/// The masters of a Redis Cluster.
pub struct Cluster {
    pub(super) links: Links,
    replies: Weak<dyn Replies>,
    /// The servers of the configuration.
    pub(super) seeds: Vec<Rc<Peer>>,
    pub(super) map: Option<SlotMap>,
    /// The nodes of the map, in its order.
    pub(super) nodes: Vec<Rc<Peer>>,
    /// Nodes that others have named, and the map has not.
    pub(super) guests: Vec<Rc<Peer>>,
    /// The replicas of each node, where these are asked.
    pub(super) replicas: Vec<Replicas>,
    /// Nodes that are not needed any more and have something to answer still.
    pub(super) retired: Retired,
    /// When the map was learned.
    learned: u64,
    /// Whose turn it is to be asked.
    turn: usize,
    /// For lines about the map.
    trouble: Throttle,
    /// For lines about where nodes send on to: what is wrong with the map shows there as well, and
    /// more often.
    astray: Throttle,
}

impl Cluster {
    /// A cluster that knows its first servers.
    pub fn new(links: Links, seeds: Vec<Rc<Peer>>, replies: Weak<dyn Replies>) -> Self {
        Cluster {
            links,
            replies,
            seeds,
            map: None,
            nodes: Vec::new(),
            guests: Vec::new(),
            replicas: Vec::new(),
            retired: Retired::default(),
            learned: 0,
            turn: 0,
            trouble: Throttle::new(),
            astray: Throttle::new(),
        }
    }

    pub fn find(&mut self, key: &[u8]) -> Choice {
        let Some(map) = &self.map else {
            let seed = self.seeds.iter().find(|seed| seed.is_usable());
            return seed.map_or(Choice::Nobody, |seed| Choice::Guess(Rc::clone(seed)));
        };
        let node = map.index(hash_slot(key)).and_then(|n| self.nodes.get(n));
        match node.filter(|node| node.is_usable()) {
            Some(node) if clock::now_ms().saturating_sub(self.learned) > MAP_AGE => {
                Choice::Guess(Rc::clone(node))
            }
            Some(node) => Choice::Peer(Rc::clone(node)),
            None => Choice::Nobody,
        }
    }

    /// A replica of the node that has the slot of a key.
    pub fn replica(&self, key: &[u8]) -> Option<Rc<Peer>> {
        let node = self.map.as_ref()?.index(hash_slot(key))?;
        self.replicas.get(node)?.find(key)
    }

    pub fn ask(&mut self) -> bool {
        let count = self.nodes.len().saturating_add(self.seeds.len());
        let all = self.nodes.iter().chain(&self.seeds);
        let in_turn = all.clone().chain(all).skip(self.turn.checked_rem(count).unwrap_or(0));
        let asked = in_turn
            .take(count)
            .any(|peer| peer.is_usable() && peer.query(resp::cluster_slots).is_ok());
        self.turn = self.turn.wrapping_add(1);
        asked
    }

    pub fn learned(&mut self, turn: &Turn, peer: &Peer, reply: &Reply<'_>) {
        self.retired.sweep(turn);
        let map = match reply {
            Reply::Array(reply) => SlotMap::parse(reply),
            // The peer has said it, or is down.
            _ => return,
        };
        let map = match map {
            // A node that is new to the cluster, or was put out of it, knows nobody.
            Ok(map) if map.nodes().is_empty() => return,
            Ok(map) => map,
            Err(error) => {
                if let Some(times) = self.trouble.pass(clock::now_ms()) {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{peer}: invalid reply to CLUSTER SLOTS: {error} ({times} times){}",
                        peer.doing(Some(QUERYING))
                    );
                }
                return;
            }
        };
        let mut nodes: Vec<Rc<Peer>> = Vec::new();
        for node in map.nodes() {
            let host = if node.host.is_empty() { host_of(peer) } else { node.host.clone() };
            match self.node(&host, node.port) {
                Some(node) => nodes.push(node),
                None => {
                    if let Some(times) = self.trouble.pass(clock::now_ms()) {
                        log_at!(
                            Log::cycle(),
                            Error,
                            "{peer}: CLUSTER SLOTS names \"{host}\", and there is no \"resolver\" to \
                             find it with ({times} times){}",
                            peer.doing(Some(QUERYING))
                        );
                    }
                    return;
                }
            }
        }
        debug!(Log::cycle(), "SSL session backend {peer}: {} masters", nodes.len());
        let gone = mem::replace(&mut self.nodes, nodes);
        let guests = mem::take(&mut self.guests);
        for peer in gone.into_iter().chain(guests) {
            let stays = self.nodes.iter().chain(&self.seeds).any(|other| Rc::ptr_eq(other, &peer));
            if !stays {
                self.retired.add(turn, peer);
            }
        }
        self.learn_replicas(turn, peer, &map);
        self.map = Some(map);
        self.learned = clock::now_ms();
    }

    /// Makes peers of the replicas that a map has, if they are asked, and retires others.
    fn learn_replicas(&mut self, turn: &Turn, peer: &Peer, map: &SlotMap) {
        let Some(links) = self.links.of_replicas() else { return };
        let known: Vec<Rc<Peer>> =
            mem::take(&mut self.replicas).into_iter().flat_map(|it| it.peers).collect();
        let host = |node: &topology::Node| {
            if node.host.is_empty() { host_of(peer) } else { node.host.clone() }
        };
        let replicas = |n| {
            let nodes = map.replicas(n).iter().map(|node| (host(node), node.port));
            Replicas::announced(&nodes.collect::<Vec<_>>(), &known, &links, &self.replies)
        };
        self.replicas = (0..map.nodes().len()).map(replicas).collect();
        for peer in known {
            if !self.replicas.iter().any(|replicas| replicas.have(&peer)) {
                self.retired.add(turn, peer);
            }
        }
    }

    /// The peer of a node: one that is there already, or a new one. `None` if it has a name that
    /// nobody resolves.
    fn node(&self, host: &str, port: u16) -> Option<Rc<Peer>> {
        let mut known = self.nodes.iter().chain(&self.seeds).chain(&self.guests);
        let known = known.find(|peer| peer.is_announced_as(host, port));
        known.cloned().or_else(|| self.links.found(host, port, &self.replies))
    }

    pub fn redirected(&mut self, from: &Peer, to: &Node<'_>) -> Option<Rc<Peer>> {
        let host = if to.host.is_empty() { host_of(from) } else { to.host.to_string() };
        let known = self.map.as_ref().and_then(|map| {
            map.nodes().iter().position(|node| node.host == host && node.port == to.port)
        });
        let peer = match known.and_then(|n| self.nodes.get(n)) {
            Some(peer) => Some(Rc::clone(peer)),
            None => self.node(&host, to.port),
        };
        let Some(peer) = peer else {
            if let Some(times) = self.astray.pass(clock::now_ms()) {
                log_at!(
                    Log::cycle(),
                    Error,
                    "{from} sends to \"{host}\", and there is no \"resolver\" to find it with \
                     ({times} times){}",
                    from.doing(None)
                );
            }
            return None;
        };
        // One that the map does not have is not put into it on the word of another.
        if let (false, Some(map), Some(node)) = (to.ask, &mut self.map, known) {
            map.assign(to.slot, node);
        }
        let mut known = self.nodes.iter().chain(&self.seeds).chain(&self.guests);
        if !known.any(|known| Rc::ptr_eq(known, &peer)) {
            if self.guests.len() >= MAX_GUESTS {
                if let Some(times) = self.astray.pass(clock::now_ms()) {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{from} sends to more than {MAX_GUESTS} nodes that CLUSTER SLOTS does not \
                         name ({times} times){}",
                        from.doing(None)
                    );
                }
                return None;
            }
            self.guests.push(Rc::clone(&peer));
        }
        Some(peer)
    }
}

/// The IP address that a peer is connected to, in words: it is there that it has the port.
fn host_of(peer: &Peer) -> String {
    peer.address().as_ref().and_then(Address::ip).map(|ip| ip.to_string()).unwrap_or_default()
}
