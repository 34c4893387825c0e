//! Which server has an entry.

use core::alloc::Layout;
use core::net::IpAddr;
use core::{mem, ptr, slice};
use std::alloc::handle_alloc_error;
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::breaker;
use session_core::codec::{Codec, Redirect};
use session_core::rendezvous::Ring;
use session_core::resp;
use session_core::throttle::Throttle;
use session_core::topology::{SlotMap, hash_slot, parse_master_address};

use super::peer::{Limits, Peer, Replies, Reply, Server, Tls};
use crate::ffi::client::{TlsClient, TlsName};
use crate::ffi::clock;
use crate::ffi::link::Address;
use crate::ffi::log::Log;
use crate::{debug, log_at};

/// A map of the slots is trusted for so long, in milliseconds, where nothing says that it is wrong.
const MAP_AGE: u64 = 60_000;
/// The same for a master: it takes its Sentinels seconds to tell it that it is one no more.
const MASTER_AGE: u64 = 1000;

/// How servers are connected to.
#[derive(Clone)]
pub struct Links {
    /// What they speak.
    pub codec: Rc<dyn Codec>,
    /// Limits of each.
    pub limits: Limits,
    /// How connections are secured.
    pub tls: Option<TlsSettings>,
    /// When a server that was found at run time counts as down.
    pub breaker: breaker::Config,
}

/// How many nodes that are not in the map are connected to.
const MAX_GUESTS: usize = 64;

/// How connections are secured.
#[derive(Clone)]
pub struct TlsSettings {
    /// What is common to all servers.
    pub client: Rc<TlsClient>,
    /// The name of all servers, where it was given; else each has its own.
    pub name: Option<String>,
    /// Whether the name is sent.
    pub sni: bool,
}

impl Links {
    /// A peer for a server of the configuration.
    pub fn peer(
        &self,
        host: &str,
        addresses: Vec<Address>,
        name: Option<(Box<str>, u16)>,
        breaker: breaker::Config,
        replies: &Weak<dyn Replies>,
    ) -> Rc<Peer> {
        let tls = self.tls.as_ref().map(|tls| Tls {
            client: Rc::clone(&tls.client),
            name: TlsName::new(tls.name.as_deref().unwrap_or(host), tls.sni),
        });
        let server = Server { addresses, name, tls, breaker };
        let codec = Rc::clone(&self.codec);
        Peer::new(server, codec, self.limits.clone(), Weak::clone(replies))
    }

    /// A peer for a server that was found at run time.
    fn found(&self, host: &str, address: Address, replies: &Weak<dyn Replies>) -> Rc<Peer> {
        self.peer(host, Vec::from([address]), None, self.breaker, replies)
    }
}

/// Where the servers are known from.
pub enum Route {
    /// From the configuration; the key decides.
    Servers(Servers),
    /// From a Redis Cluster.
    Cluster(Cluster),
    /// From Redis Sentinels.
    Sentinel(Sentinel),
}

/// The server of an entry.
pub enum Found {
    /// It is this one.
    Peer(Rc<Peer>),
    /// It may be this one, which will know better. More should be found out.
    Guess(Rc<Peer>),
    /// It is not there. More should be found out.
    Nobody,
}

impl Route {
    /// The server of an entry.
    pub fn find(&mut self, key: &[u8]) -> Found {
        match self {
            Route::Servers(servers) => servers.find(key),
            Route::Cluster(cluster) => cluster.find(key),
            Route::Sentinel(sentinel) => sentinel.find(),
        }
    }

    /// Whether there is anybody to ask about the servers.
    pub fn can_ask(&self) -> bool {
        !matches!(self, Route::Servers(_))
    }

    /// Asks about the servers. Whether the question is under way; its answer goes to
    /// [`Route::learned`].
    pub fn ask(&mut self) -> bool {
        match self {
            Route::Servers(_) => false,
            Route::Cluster(cluster) => cluster.ask(),
            Route::Sentinel(sentinel) => sentinel.ask(),
        }
    }

    /// What became of a question about the servers.
    pub fn learned(&mut self, peer: &Peer, reply: &Reply<'_>) {
        match self {
            Route::Servers(_) => {}
            Route::Cluster(cluster) => cluster.learned(peer, reply),
            Route::Sentinel(sentinel) => sentinel.learned(peer, reply),
        }
    }

    /// The server that another one sends us to.
    pub fn redirected(&mut self, from: &Peer, to: &Redirect<'_>) -> Option<Rc<Peer>> {
        match self {
            Route::Cluster(cluster) => cluster.redirected(from, to),
            Route::Servers(_) | Route::Sentinel(_) => None,
        }
    }

    /// Whether these words of a server mean that it is not the one to be asked any more.
    pub fn is_news(&self, peer: &Peer, text: &[u8]) -> bool {
        match self {
            Route::Servers(_) => false,
            Route::Cluster(_) => text.starts_with(b"CLUSTERDOWN"),
            Route::Sentinel(_) => {
                let demoted = text.starts_with(b"READONLY") || text.starts_with(b"MASTERDOWN");
                if demoted {
                    peer.demoted();
                }
                demoted
            }
        }
    }

    /// Puts a server in the place of another one, whose connection is closed when it has answered
    /// what it was asked.
    pub fn replace(&mut self, old: &Peer, new: Rc<Peer>) {
        let nobody: &mut [Rc<Peer>] = &mut [];
        let (known, others, retired, in_use) = match self {
            Route::Servers(Servers { peers, backups, retired, .. }) => {
                (peers, backups.as_mut_slice(), retired, [].as_slice())
            }
            // A node of the map stays where the map says it is.
            Route::Cluster(Cluster { seeds, nodes, retired, .. }) => {
                (seeds, nobody, retired, nodes.as_slice())
            }
            Route::Sentinel(Sentinel { sentinels, retired, .. }) => {
                (sentinels, nobody, retired, [].as_slice())
            }
        };
        retired.retain(|peer| !peer.retire());
        for place in known.iter_mut().chain(others) {
            if ptr::eq(Rc::as_ptr(place), old) {
                let old = mem::replace(place, Rc::clone(&new));
                let stays = in_use.iter().any(|peer| Rc::ptr_eq(peer, &old));
                if !stays && !old.retire() {
                    retired.push(old);
                }
            }
        }
    }

    /// The server, if there is only one.
    pub fn only(&self) -> Option<&Rc<Peer>> {
        match self {
            Route::Servers(servers) if servers.backups.is_empty() => match &*servers.peers {
                [peer] => Some(peer),
                _ => None,
            },
            _ => None,
        }
    }

    /// All servers that may have a connection.
    pub fn peers(&self) -> impl Iterator<Item = &Rc<Peer>> {
        let none: &[Rc<Peer>] = &[];
        let (known, found, guests, retired) = match self {
            Route::Servers(Servers { peers, backups, retired, .. }) => {
                (peers, backups.as_slice(), none, retired.as_slice())
            }
            Route::Cluster(Cluster { seeds, nodes, guests, retired, .. }) => {
                (seeds, nodes.as_slice(), guests.as_slice(), retired.as_slice())
            }
            Route::Sentinel(Sentinel { sentinels, master, retired, .. }) => {
                let master = master.as_ref().map(|master| &master.peer);
                (sentinels, master.map_or(none, slice::from_ref), none, retired.as_slice())
            }
        };
        known.iter().chain(found).chain(guests).chain(retired)
    }
}

/// Servers of which the key chooses one, by weighted rendezvous hashing.
pub struct Servers {
    ring: Ring,
    peers: Vec<Rc<Peer>>,
    backup_ring: Ring,
    backups: Vec<Rc<Peer>>,
    /// Those that have moved and have something to answer still.
    retired: Vec<Rc<Peer>>,
}

/// A server with what decides about its share.
pub struct Member {
    /// Its name, the same on all machines.
    pub name: String,
    /// Its share.
    pub weight: u32,
    /// Whether it is only asked when no other is usable.
    pub backup: bool,
    /// Its connection.
    pub peer: Rc<Peer>,
}

impl Servers {
    /// The servers given.
    pub fn new(members: Vec<Member>) -> Self {
        let (backups, servers): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.backup);
        let ring = |members: &[Member]| {
            // What a configuration asks for once is asked for plainly.
            Ring::new(members.iter().map(|member| (member.name.as_bytes(), member.weight)))
                .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Ring>()))
        };
        let peers = |members: Vec<Member>| members.into_iter().map(|member| member.peer).collect();
        Servers {
            ring: ring(&servers),
            peers: peers(servers),
            backup_ring: ring(&backups),
            backups: peers(backups),
            retired: Vec::new(),
        }
    }

    fn find(&self, key: &[u8]) -> Found {
        if let ([peer], []) = (self.peers.as_slice(), self.backups.as_slice()) {
            return Found::Peer(Rc::clone(peer));
        }
        let pick = |ring: &Ring, peers: &[Rc<Peer>]| {
            let usable = |n| peers.get(n).is_some_and(|peer: &Rc<Peer>| peer.is_usable());
            ring.pick(key, usable).and_then(|n| peers.get(n)).map(Rc::clone)
        };
        pick(&self.ring, &self.peers)
            .or_else(|| pick(&self.backup_ring, &self.backups))
            .map_or(Found::Nobody, Found::Peer)
    }
}

/// The masters of a Redis Cluster.
pub struct Cluster {
    links: Links,
    replies: Weak<dyn Replies>,
    /// The servers of the configuration.
    seeds: Vec<Rc<Peer>>,
    map: Option<SlotMap>,
    /// The nodes of the map, in its order.
    nodes: Vec<Rc<Peer>>,
    /// Nodes that others have named, and the map has not.
    guests: Vec<Rc<Peer>>,
    /// Nodes that are not needed any more and have something to answer still.
    retired: Vec<Rc<Peer>>,
    /// When the map was learned.
    learned: u64,
    /// Whose turn it is to be asked.
    turn: usize,
    trouble: Throttle,
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
            retired: Vec::new(),
            learned: 0,
            turn: 0,
            trouble: Throttle::new(),
        }
    }

    fn find(&mut self, key: &[u8]) -> Found {
        let Some(map) = &self.map else {
            let seed = self.seeds.iter().find(|seed| seed.is_usable());
            return seed.map_or(Found::Nobody, |seed| Found::Guess(Rc::clone(seed)));
        };
        let node = map.index(hash_slot(key)).and_then(|n| self.nodes.get(n));
        match node.filter(|node| node.is_usable()) {
            Some(node) if clock::now_ms().saturating_sub(self.learned) > MAP_AGE => {
                Found::Guess(Rc::clone(node))
            }
            Some(node) => Found::Peer(Rc::clone(node)),
            None => Found::Nobody,
        }
    }

    fn ask(&mut self) -> bool {
        let count = self.nodes.len().saturating_add(self.seeds.len());
        let all = self.nodes.iter().chain(&self.seeds);
        let in_turn = all.clone().chain(all).skip(self.turn.checked_rem(count).unwrap_or(0));
        let asked = in_turn
            .take(count)
            .any(|peer| peer.is_usable() && peer.query(resp::cluster_slots).is_ok());
        self.turn = self.turn.wrapping_add(1);
        asked
    }

    fn learned(&mut self, peer: &Peer, reply: &Reply<'_>) {
        self.retired.retain(|peer| !peer.retire());
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
                        "{peer}: invalid reply to CLUSTER SLOTS: {error} ({times} times)"
                    );
                }
                return;
            }
        };
        let nodes: Option<Vec<Rc<Peer>>> = map
            .nodes()
            .iter()
            .map(|node| {
                let host = if node.host.is_empty() { host_of(peer) } else { node.host.clone() };
                self.node(&host, node.ip, node.port)
            })
            .collect();
        let Some(nodes) = nodes else {
            if let Some(times) = self.trouble.pass(clock::now_ms()) {
                log_at!(
                    Log::cycle(),
                    Error,
                    "{peer}: CLUSTER SLOTS names nodes without an IP address ({times} times)"
                );
            }
            return;
        };
        debug!(Log::cycle(), "SSL session backend {peer}: {} masters", nodes.len());
        let gone = mem::replace(&mut self.nodes, nodes);
        let guests = mem::take(&mut self.guests);
        for peer in gone.into_iter().chain(guests) {
            let stays = self.nodes.iter().chain(&self.seeds).any(|other| Rc::ptr_eq(other, &peer));
            if !stays && !peer.retire() {
                self.retired.push(peer);
            }
        }
        self.map = Some(map);
        self.learned = clock::now_ms();
    }

    /// The peer of a node: one that is there already, or a new one.
    fn node(&self, host: &str, address: Option<IpAddr>, port: u16) -> Option<Rc<Peer>> {
        let ip = address.or_else(|| host.parse().ok())?;
        let address = Address::from_ip(ip, port);
        let known = self
            .nodes
            .iter()
            .chain(&self.seeds)
            .chain(&self.guests)
            .find(|peer| peer.address().is_some_and(|known| known == address));
        if let Some(known) = known {
            return Some(Rc::clone(known));
        }
        Some(self.links.found(host, address, &self.replies))
    }

    fn redirected(&mut self, from: &Peer, to: &Redirect<'_>) -> Option<Rc<Peer>> {
        let host = if to.host.is_empty() { host_of(from) } else { to.host.to_string() };
        let known = self.map.as_ref().and_then(|map| {
            map.nodes().iter().position(|node| node.host == host && node.port == to.port)
        });
        let peer = match known.and_then(|n| self.nodes.get(n)) {
            Some(peer) => Some(Rc::clone(peer)),
            None => self.node(&host, None, to.port),
        };
        let Some(peer) = peer else {
            if let Some(times) = self.trouble.pass(clock::now_ms()) {
                log_at!(
                    Log::cycle(),
                    Error,
                    "{from} sends to \"{host}\", whose address is not known ({times} times)"
                );
            }
            return None;
        };
        // One that the map does not have is not put into it on the word of another.
        if let (false, Some(map), Some(_)) = (to.ask, &mut self.map, known) {
            let _ = map.moved(to.slot, &host, to.port);
        }
        let mut known = self.nodes.iter().chain(&self.seeds).chain(&self.guests);
        if !known.any(|known| Rc::ptr_eq(known, &peer)) {
            if self.guests.len() >= MAX_GUESTS {
                return None;
            }
            self.guests.push(Rc::clone(&peer));
        }
        Some(peer)
    }
}

/// The master that Redis Sentinels watch.
pub struct Sentinel {
    links: Links,
    replies: Weak<dyn Replies>,
    /// The name that the Sentinels have for it.
    name: Vec<u8>,
    sentinels: Vec<Rc<Peer>>,
    master: Option<Master>,
    /// When the master was learned.
    learned: u64,
    /// Former masters that have something to answer still.
    retired: Vec<Rc<Peer>>,
    /// Whose turn it is to be asked.
    turn: usize,
    unknown: Throttle,
}

struct Master {
    host: String,
    port: u16,
    peer: Rc<Peer>,
}

impl Sentinel {
    /// The master of that name.
    pub fn new(
        links: Links,
        name: Vec<u8>,
        sentinels: Vec<Rc<Peer>>,
        replies: Weak<dyn Replies>,
    ) -> Self {
        Sentinel {
            links,
            replies,
            name,
            sentinels,
            master: None,
            learned: 0,
            retired: Vec::new(),
            turn: 0,
            unknown: Throttle::new(),
        }
    }

    fn find(&self) -> Found {
        match self.master.as_ref().filter(|master| master.peer.is_usable()) {
            Some(master) if clock::now_ms().saturating_sub(self.learned) > MASTER_AGE => {
                Found::Guess(Rc::clone(&master.peer))
            }
            Some(master) => Found::Peer(Rc::clone(&master.peer)),
            None => Found::Nobody,
        }
    }

    /// Asks the Sentinel that was asked last, as long as the master it has named is one: others
    /// may not know yet.
    fn ask(&mut self) -> bool {
        if !self.master.as_ref().is_some_and(|master| master.peer.is_usable()) {
            self.turn = self.turn.wrapping_add(1);
        }
        let count = self.sentinels.len();
        let name = self.name.as_slice();
        let first = self.turn.checked_rem(count).unwrap_or(0);
        let mut in_turn = self.sentinels.iter().enumerate().cycle().skip(first).take(count);
        let asked = in_turn.find(|(_, peer)| {
            peer.is_usable() && peer.query(|out| resp::master_address(name, out)).is_ok()
        });
        if let Some((turn, _)) = asked {
            self.turn = turn;
        }
        asked.is_some()
    }

    fn learned(&mut self, peer: &Peer, reply: &Reply<'_>) {
        self.retired.retain(|peer| !peer.retire());
        let address = match reply {
            Reply::Array(reply) => parse_master_address(reply),
            Reply::Missing => None,
            // The peer has said it, or is down.
            _ => {
                self.turn = self.turn.wrapping_add(1);
                return;
            }
        };
        let name = String::from_utf8_lossy(&self.name);
        let found = match address.map(|(host, port)| (host, host.parse::<IpAddr>(), port)) {
            Some((host, Ok(ip), port)) => Ok((host.to_string(), port, Address::from_ip(ip, port))),
            Some(_) => Err("has a name in place of an IP address"),
            None => Err("knows no address"),
        };
        let (host, port, address) = match found {
            Ok(found) => found,
            Err(trouble) => {
                self.turn = self.turn.wrapping_add(1);
                if let Some(times) = self.unknown.pass(clock::now_ms()) {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{peer} {trouble} of master \"{name}\" ({times} times)"
                    );
                }
                return;
            }
        };
        self.learned = clock::now_ms();
        if self.master.as_ref().is_some_and(|known| known.host == host && known.port == port) {
            return;
        }
        let peer = self.links.found(&host, address, &self.replies);
        log_at!(Log::cycle(), Notice, "master \"{name}\" is {peer}");
        if let Some(former) = self.master.replace(Master { host, port, peer }) {
            if !former.peer.retire() {
                self.retired.push(former.peer);
            }
        }
    }
}

/// The IP address that a peer is connected to, in words.
fn host_of(peer: &Peer) -> String {
    peer.address().as_ref().and_then(Address::ip).map(|ip| ip.to_string()).unwrap_or_default()
}
