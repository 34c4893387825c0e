//! The master that Redis Sentinels name.

use core::mem;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::resp;
use session_core::throttle::Throttle;
use session_core::topology::{parse_master_address, parse_replicas};

use super::{Choice, Links, Replicas, Retired};
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::log_at;
use crate::net::peer::{Peer, Replies, Reply};
use crate::net::wording::QUERYING;

/// A master is trusted for so long, in milliseconds: it takes its Sentinels seconds to tell it
/// that it is one no more.
const MASTER_AGE: u64 = 1000;
/// Its replicas are asked for as often, in milliseconds, and when there is another master.
const REPLICAS_AGE: u64 = 10_000;

/// The master that Redis Sentinels watch.
pub struct Sentinel {
    pub(super) links: Links,
    replies: Weak<dyn Replies>,
    /// The name that the Sentinels have for it.
    name: Vec<u8>,
    pub(super) sentinels: Vec<Rc<Peer>>,
    pub(super) master: Option<Master>,
    /// When the master was learned.
    learned: u64,
    /// The replicas of the master, where these are asked.
    pub(super) replicas: Replicas,
    /// When they are to be asked for.
    replicas_due: u64,
    /// Former masters that have something to answer still.
    pub(super) retired: Retired,
    /// Whose turn it is to be asked.
    turn: usize,
    unknown: Throttle,
}

pub(super) struct Master {
    host: String,
    port: u16,
    pub(super) peer: Rc<Peer>,
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
            replicas: Replicas::none(),
            replicas_due: 0,
            retired: Retired::default(),
            turn: 0,
            unknown: Throttle::new(),
        }
    }

    pub fn find(&self) -> Choice {
        match self.master.as_ref().filter(|master| master.peer.is_usable()) {
            Some(master) if clock::now_ms().saturating_sub(self.learned) > MASTER_AGE => {
                Choice::Guess(Rc::clone(&master.peer))
            }
            Some(master) => Choice::Peer(Rc::clone(&master.peer)),
            None => Choice::Nobody,
        }
    }

    /// Asks the Sentinel that was asked last, as long as the master it has named is one: others
    /// may not know yet.
    pub fn ask(&mut self) -> bool {
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

    pub fn learned(&mut self, turn: &Turn, sentinel: &Peer, reply: &Reply<'_>) {
        self.retired.sweep(turn);
        let address = match reply {
            Reply::Array(reply) => match parse_master_address(reply) {
                None if self.learn_replicas(turn, reply) => return,
                address => address,
            },
            Reply::Missing => None,
            // The peer has said it, or is down.
            _ => {
                self.turn = self.turn.wrapping_add(1);
                return;
            }
        };
        let name = String::from_utf8_lossy(&self.name);
        let known = |(host, port): &(&str, u16)| {
            self.master.as_ref().is_some_and(|known| known.host == *host && known.port == *port)
        };
        let found = match address {
            Some(address) if known(&address) => {
                self.learned = clock::now_ms();
                return self.ask_for_replicas(sentinel);
            }
            Some((host, port)) => match self.links.found(host, port, &self.replies) {
                Some(master) => Ok(Master { host: host.to_string(), port, peer: master }),
                None => Err(" a name, and there is no \"resolver\" to find it with,"),
            },
            None => Err(" no address"),
        };
        let master = match found {
            Ok(master) => master,
            Err(trouble) => {
                self.turn = self.turn.wrapping_add(1);
                if let Some(times) = self.unknown.pass(clock::now_ms()) {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{sentinel} knows{trouble} of master \"{name}\" ({times} times){}",
                        sentinel.doing(Some(QUERYING))
                    );
                }
                return;
            }
        };
        self.learned = clock::now_ms();
        let peer = Rc::clone(&master.peer);
        log_at!(Log::cycle(), Notice, "master \"{name}\" is {peer}{}", peer.doing(None));
        if let Some(former) = self.master.replace(master) {
            self.retired.add(turn, former.peer);
        }
        self.replicas_due = 0;
        self.ask_for_replicas(sentinel);
    }

    /// Asks a Sentinel that has just named the master for its replicas, if they are asked and that is
    /// due.
    fn ask_for_replicas(&mut self, sentinel: &Peer) {
        let now = clock::now_ms();
        if self.links.replica_codec.is_none() || self.replicas_due > now {
            return;
        }
        let name = self.name.as_slice();
        if sentinel.query(|out| resp::replicas(name, out)).is_ok() {
            self.replicas_due = now.saturating_add(REPLICAS_AGE);
        }
    }

    /// Makes peers of the replicas that a Sentinel names, and retires others. Whether the reply is of
    /// that.
    fn learn_replicas(&mut self, turn: &Turn, reply: &[u8]) -> bool {
        let (Some(links), Ok(nodes)) = (self.links.of_replicas(), parse_replicas(reply)) else {
            return false;
        };
        let nodes: Vec<_> = nodes.into_iter().map(|node| (node.host, node.port)).collect();
        let known = mem::replace(&mut self.replicas, Replicas::none()).peers;
        self.replicas = Replicas::announced(&nodes, &known, &links, &self.replies);
        for peer in known {
            if !self.replicas.have(&peer) {
                self.retired.add(turn, peer);
            }
        }
        true
    }
}
