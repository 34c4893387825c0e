//! Which server has an entry.

use core::net::IpAddr;
use core::{mem, ptr, slice};
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::string::String;
use std::vec::Vec;

use session_core::breaker;
use session_core::codec::Codec;
use session_core::topology::{self, SlotMap};

use super::password::Password;
use super::peer::{Limits, Node, Peer, Replies, Reply, Server, Tls};
use crate::ffi::address::Address;
use crate::ffi::client::{TlsClient, TlsName};
use crate::ffi::resolver::Resolver;
use crate::ffi::turn::Turn;

mod cluster;
mod replicas;
mod sentinel;
mod servers;

pub use cluster::Cluster;
pub use replicas::Replicas;
pub use sentinel::Sentinel;
pub use servers::{Member, Servers};

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
pub enum Choice {
    /// It is this one.
    Peer(Rc<Peer>),
    /// It may be this one, which will know better. More should be found out.
    Guess(Rc<Peer>),
    /// It is not there. More should be found out.
    Nobody,
}

impl Route {
    /// The server of an entry.
    pub fn find(&mut self, key: &[u8]) -> Choice {
        match self {
            Route::Servers(servers) => servers.find(key),
            Route::Cluster(cluster) => cluster.find(key),
            Route::Sentinel(sentinel) => sentinel.find(),
        }
    }

    /// Whether what is to be stored would arrive, whatever its key, as far as is known.
    pub fn accepts_stores(&self) -> bool {
        let accepts = |peer: &Rc<Peer>| peer.accepts_stores();
        match self {
            Route::Servers(Servers { peers, backups, .. }) => {
                peers.iter().chain(backups).any(accepts)
            }
            Route::Cluster(Cluster { map: None, seeds, .. }) => seeds.iter().any(accepts),
            Route::Cluster(Cluster { nodes, .. }) => nodes.iter().all(accepts),
            Route::Sentinel(Sentinel { master, .. }) => {
                master.as_ref().is_some_and(|master| accepts(&master.peer))
            }
        }
    }

    /// A server that has the entries of the one that [`Route::find`] names.
    pub fn replica(&self, key: &[u8]) -> Option<Rc<Peer>> {
        match self {
            Route::Servers(servers) => servers.replicas.find(key),
            Route::Cluster(cluster) => cluster.replica(key),
            Route::Sentinel(sentinel) => sentinel.replicas.find(key),
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
    pub fn learned(&mut self, turn: &Turn, peer: &Peer, reply: &Reply<'_>) {
        match self {
            Route::Servers(_) => {}
            Route::Cluster(cluster) => cluster.learned(turn, peer, reply),
            Route::Sentinel(sentinel) => sentinel.learned(turn, peer, reply),
        }
    }

    /// The server that another one sends us to.
    pub fn redirected(&mut self, from: &Peer, to: &Node<'_>) -> Option<Rc<Peer>> {
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
            Route::Sentinel(sentinel) => {
                let demoted = text.starts_with(b"READONLY") || text.starts_with(b"MASTERDOWN");
                // A replica is none that has to be a master.
                if demoted && !sentinel.replicas.have(peer) {
                    peer.demoted();
                }
                demoted
            }
        }
    }

    /// Puts a server in the place of another one, whose connection is closed when it has answered
    /// what it was asked.
    pub fn replace(&mut self, turn: &Turn, old: &Peer, new: Rc<Peer>) {
        let nobody: &mut [Rc<Peer>] = &mut [];
        let (retired, places, replicas, stays) = match self {
            Route::Servers(Servers { peers, backups, replicas, retired, .. }) => {
                let replicas = slice::from_mut(replicas);
                (retired, [peers, backups.as_mut_slice(), nobody], replicas, false)
            }
            Route::Cluster(Cluster { seeds, nodes, guests, replicas, retired, map, .. }) => {
                // A node that was announced by its address stays there, and so does one that was
                // announced by none: it is where it was asked.
                let announced = map.iter().flat_map(SlotMap::nodes);
                let by_address = |node: &topology::Node| {
                    node.host.is_empty() || node.host.parse::<IpAddr>().is_ok()
                };
                let stays = announced
                    .zip(nodes.iter())
                    .any(|(node, peer)| by_address(node) && ptr::eq(Rc::as_ptr(peer), old));
                let nodes = if stays { nobody } else { nodes.as_mut_slice() };
                let replicas = replicas.as_mut_slice();
                (retired, [seeds, nodes, guests.as_mut_slice()], replicas, stays)
            }
            Route::Sentinel(Sentinel { sentinels, master, replicas, retired, .. }) => {
                let master = master.as_mut().map(|master| slice::from_mut(&mut master.peer));
                let replicas = slice::from_mut(replicas);
                (retired, [sentinels, master.unwrap_or(nobody), &mut []], replicas, false)
            }
        };
        let replicas = replicas.iter_mut().flat_map(|replicas| &mut replicas.peers);
        retired.sweep(turn);
        let is_old = |place: &&mut Rc<Peer>| ptr::eq(Rc::as_ptr(place), old);
        for place in places.into_iter().flatten().chain(replicas).filter(is_old) {
            let old = mem::replace(place, Rc::clone(&new));
            if !stays {
                retired.add(turn, old);
            }
        }
    }

    /// Says who resolves the names of servers from now on.
    pub fn set_resolver(&mut self, resolver: &Resolver) {
        let links = match self {
            Route::Servers(_) => None,
            Route::Cluster(Cluster { links, .. }) | Route::Sentinel(Sentinel { links, .. }) => {
                Some(links)
            }
        };
        if let Some(links) = links {
            links.resolver = Some(resolver.clone());
        }
        for peer in self.peers() {
            peer.set_resolver(resolver);
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
        let (known, found, guests, replicas, retired) = match self {
            Route::Servers(Servers { peers, backups, replicas, retired, .. }) => {
                (peers, backups.as_slice(), none, slice::from_ref(replicas), retired.0.as_slice())
            }
            Route::Cluster(Cluster { seeds, nodes, guests, replicas, retired, .. }) => {
                let replicas = replicas.as_slice();
                (seeds, nodes.as_slice(), guests.as_slice(), replicas, retired.0.as_slice())
            }
            Route::Sentinel(Sentinel { sentinels, master, replicas, retired, .. }) => {
                let master = master.as_ref().map_or(none, |master| slice::from_ref(&master.peer));
                (sentinels, master, none, slice::from_ref(replicas), retired.0.as_slice())
            }
        };
        let replicas = replicas.iter().flat_map(|replicas| &replicas.peers);
        known.iter().chain(found).chain(guests).chain(replicas).chain(retired)
    }
}

/// Servers that are not needed any more and have something to answer still.
#[derive(Default)]
pub(super) struct Retired(Vec<Rc<Peer>>);

impl Retired {
    /// Closes the connection to a server, once it has answered what it was asked.
    fn add(&mut self, turn: &Turn, peer: Rc<Peer>) {
        if !peer.retire(turn) {
            self.0.push(peer);
        }
    }

    /// Forgets those that have.
    fn sweep(&mut self, turn: &Turn) {
        self.0.retain(|peer| !peer.retire(turn));
    }
}

/// How servers are connected to.
#[derive(Clone)]
pub struct Links {
    /// What they speak.
    pub codec: Rc<dyn Codec>,
    /// What they want to hear first.
    pub password: Password,
    /// The same for replicas, if these are asked.
    pub replica_codec: Option<Rc<dyn Codec>>,
    /// Limits of each.
    pub limits: Limits,
    /// How connections are secured.
    pub tls: Option<TlsSettings>,
    /// When a server that was found at run time counts as down.
    pub breaker: breaker::Config,
    /// Who resolves names, if anybody does.
    pub resolver: Option<Resolver>,
}

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
        let password = self.password.clone();
        let server = Server { addresses, name, tls, password, breaker };
        let codec = Rc::clone(&self.codec);
        let peer = Peer::new(server, codec, self.limits.clone(), Weak::clone(replies));
        if let Some(resolver) = &self.resolver {
            peer.set_resolver(resolver);
        }
        peer
    }

    /// How replicas are connected to, if they are.
    pub fn of_replicas(&self) -> Option<Links> {
        let codec = self.replica_codec.clone()?;
        Some(Links { codec, ..self.clone() })
    }

    /// A peer for a server that others have announced. `None` if that is a name and nobody resolves it.
    fn found(&self, host: &str, port: u16, replies: &Weak<dyn Replies>) -> Option<Rc<Peer>> {
        let (addresses, name) = match host.parse::<IpAddr>() {
            Ok(ip) => (Vec::from([Address::from_ip(ip, port)]), None),
            Err(_) if self.resolver.is_none() => return None,
            Err(_) => (Vec::new(), Some((host.into(), port))),
        };
        let peer = self.peer(host, addresses, name, self.breaker, replies);
        peer.resolve_soon();
        Some(peer)
    }
}
