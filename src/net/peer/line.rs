//! One connection to a server, and what is said over it. Here is what happens in either world: only
//! memory changes. The rest is in `connect.rs` and `events.rs`.

use core::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use session_core::codec::OutOfMemory;
use session_core::conversation::{self, Conversation};

use super::{Peer, RequestToken};
use crate::ffi::clock;
use crate::ffi::event::Event;
use crate::ffi::link::Link;
use crate::ffi::tls;
use crate::ffi::turn::{Outside, Turn};
use crate::net::hold::{Hold, Wait, When};

/// What a connection is for. What is stored and removed does not stand in the way of lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Lookups,
    Stores,
}

/// A connection. It is opened in an event of our own, and lives as long as its conversation.
pub(super) struct Line {
    pub(super) this: Weak<Line>,
    pub(super) peer: Weak<Peer>,
    pub(super) lane: Lane,
    talk: RefCell<Talk>,
    pub(super) wire: Outside<Wire>,
    /// Whether nothing more is asked: it is closed when nobody waits for an answer any more.
    pub(super) leaves: Cell<bool>,
    /// Whether the server has shown that it is no master.
    pub(super) demoted: Cell<bool>,
    /// Whether another connection was opened for its silence.
    pub(super) doubted: Cell<bool>,
    /// When it was begun.
    pub(super) since: u64,
    /// The next deadline.
    pub(super) tick: Event<Line, Tick>,
    /// Something is to be opened, written or closed.
    pub(super) work: Event<Line, Work>,
}

pub(super) struct Tick;
pub(super) struct Work;

/// What requests are made of: memory.
pub(super) struct Talk {
    /// Also while the connection has still to be opened; `None` when it has ended.
    pub(super) conversation: Option<Conversation<RequestToken>>,
    pub(super) hold: Hold,
}

/// The connection itself.
pub(super) struct Wire {
    pub(super) link: Option<Link>,
    pub(super) phase: Phase,
    /// How many addresses are left to try.
    pub(super) untried: usize,
    /// [`TlsClient::generation`](crate::ffi::client::TlsClient::generation) of the connection.
    pub(super) generation: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    Connecting {
        deadline: u64,
    },
    Handshaking {
        deadline: u64,
    },
    Open,
}

impl Line {
    /// A connection that is opened at the end of this turn. `probe`: nothing is asked of the server
    /// but whether it works.
    pub(super) fn new(peer: &Peer, lane: Lane, probe: bool) -> Result<Rc<Self>, OutOfMemory> {
        Self::begun(peer, lane, probe, peer.limits.of_conversation(lane, probe))
    }

    /// The same in the place of one that could not be made while others reach the server: that is to be
    /// made, however long that takes, before anything is asked.
    pub(super) fn again(peer: &Peer, lane: Lane) -> Result<Rc<Self>, OutOfMemory> {
        Self::begun(peer, lane, true, peer.limits.of_conversation(lane, false))
    }

    fn begun(
        peer: &Peer,
        lane: Lane,
        probe: bool,
        limits: conversation::Limits,
    ) -> Result<Rc<Self>, OutOfMemory> {
        let conversation = Conversation::new(Rc::clone(&peer.codec), limits, probe)?;
        let wait = match lane {
            Lane::Lookups => Wait::Idle,
            Lane::Stores => Wait::Time,
        };
        let hold = Hold::new(peer.limits.fetch_timeout, wait);
        let talk = Talk { conversation: Some(conversation), hold };
        let line = Rc::new_cyclic(|this| Line {
            this: this.clone(),
            peer: peer.this.clone(),
            lane,
            talk: RefCell::new(talk),
            wire: Outside::new(Wire { link: None, phase: Phase::Idle, untried: 0, generation: 0 }),
            leaves: Cell::new(false),
            demoted: Cell::new(false),
            doubted: Cell::new(false),
            since: clock::now_ms(),
            tick: Event::new(this.clone()),
            work: Event::new(this.clone()),
        });
        line.work.post();
        Ok(line)
    }

    /// Does something with what is said; `None` if that has ended.
    pub(super) fn talk<R>(&self, f: impl FnOnce(&mut Talk) -> R) -> Option<R> {
        let mut talk = self.talk.try_borrow_mut().ok()?;
        Some(f(&mut talk))
    }

    /// Does something with the conversation; `None` if it has ended.
    pub(super) fn with<R>(
        &self,
        f: impl FnOnce(&mut Conversation<RequestToken>) -> R,
    ) -> Option<R> {
        self.talk(|talk| talk.conversation.as_mut().map(f))?
    }

    /// Makes a request; `None` if the conversation has ended.
    pub(super) fn request(
        &self,
        us: u64,
        make: impl FnOnce(&mut Conversation<RequestToken>, u64) -> Result<u64, conversation::Refused>,
    ) -> Option<Result<(), conversation::Refused>> {
        let made = self.talk(|talk| {
            let conversation = talk.conversation.as_mut()?;
            let deadline = match make(conversation, us / 1000) {
                Ok(deadline) => deadline,
                Err(refused) => return Some(Err(refused)),
            };
            // Those of earlier requests, of which one may be the next, have been set.
            self.tick.at(deadline, clock::is_exiting());
            if !conversation.is_open() {
                // It is submitted at the end of this turn.
                self.work.post();
            } else if talk.hold.holds() || !self.work.is_posted() {
                match talk.hold.request(us, conversation.waiting(), tls::progress) {
                    None => {}
                    Some(When::ThisTurn) => self.work.post(),
                    Some(When::NextTurn) => self.work.post_next(),
                    Some(When::At(us)) => self.work.at(us / 1000, clock::is_exiting()),
                }
            }
            Some(Ok(()))
        });
        made.flatten()
    }

    /// How many requests have no answer.
    pub(super) fn unanswered(&self) -> usize {
        self.with(|conversation| conversation.unanswered()).unwrap_or(0)
    }

    /// Whether the server has accepted the connection, and is not silent on it.
    pub(super) fn is_well(&self) -> bool {
        self.with(|it| it.is_open() && !it.is_silent()).unwrap_or(false)
    }

    /// Whether the connection is silent.
    pub(super) fn is_silent(&self) -> bool {
        self.with(|it| it.is_silent()).unwrap_or(false)
    }

    /// Whether so many answers were another request's that it has to end.
    pub(super) fn is_suspect(&self) -> bool {
        self.with(|it| it.is_suspect()).unwrap_or(false)
    }

    /// Whether an exiting worker waits for this connection.
    pub(super) fn holds_exit(&self) -> bool {
        clock::is_exiting() && self.with(|it| it.awaited() > 0).unwrap_or(false)
    }

    /// Sets the timer for the next deadline.
    pub(super) fn arm(&self) {
        let deadline = self.with(|conversation| {
            let holds_exit = clock::is_exiting() && conversation.awaited() > 0;
            conversation.next_deadline().map(|deadline| (deadline, holds_exit))
        });
        if let Some((deadline, holds_exit)) = deadline.flatten() {
            self.tick.at(deadline, holds_exit);
        }
    }

    pub(super) fn phase(&self, turn: &Turn) -> Phase {
        self.wire.get(turn).map_or(Phase::Idle, |wire| wire.phase)
    }
}
