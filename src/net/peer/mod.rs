//! One server, with the connection to it while there is one.
//!
//! Two worlds meet here. Requests are made at any time, also while OpenSSL is at work for a client:
//! that is in this file, and only changes memory. Connecting, reading, writing and closing happen in
//! events of our own, which have a [`Turn`]: that is in `events.rs`. A request posts such an event.

use core::cell::{Cell, RefCell};
use core::fmt;
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::vec::Vec;

use session_core::breaker::{self, Breaker, Verdict};
use session_core::codec::{Codec, OutOfMemory};
use session_core::conversation::{self, Conversation};
use session_core::inflight::Kind;
use session_core::slots::Token;
use session_core::stats::server as stats;
use session_core::throttle::Throttle;

pub use session_core::conversation::{Command, Node, Reply, Request};

use super::address_book::AddressBook;
use super::hold::{Hold, When};
use super::wording::{self, Context};
use crate::ffi::address::Address;
use crate::ffi::client::{TlsClient, TlsName};
use crate::ffi::clock;
use crate::ffi::counters::Count;
use crate::ffi::event::Event;
use crate::ffi::link::Link;
use crate::ffi::log::Log;
use crate::ffi::resolver::Resolver;
use crate::ffi::tls::{self, Session};
use crate::ffi::turn::{Outside, Turn};
use crate::log_at;

mod connect;
mod events;

/// Tells requests that wait for an answer from others that have tokens.
#[derive(Debug)]
pub enum Requests {}

/// Refers to a request that somebody waits for.
pub type RequestToken = Token<Requests>;

/// Takes the ends of requests. Called in events of the peer only, never while a request is made.
pub trait Replies {
    /// A request with a waiter has ended. `deadline`: when the waiter would not have wanted the
    /// answer any more.
    fn replied(
        &self,
        turn: &Turn,
        peer: &Peer,
        waiter: RequestToken,
        deadline: u64,
        reply: Reply<'_>,
    );

    /// [`Peer::query`] has ended.
    fn learned(&self, turn: &Turn, peer: &Peer, reply: Reply<'_>);

    /// The server is somewhere else now, where `successor` is for.
    fn moved(&self, turn: &Turn, peer: &Peer, successor: Rc<Peer>);
}

/// A server as it was configured or found.
pub struct Server {
    /// The addresses of its name, in the order in which they are tried. None if the name has still to
    /// be resolved.
    pub addresses: Vec<Address>,
    /// The name and port, if the name is worth resolving again.
    pub name: Option<(Box<str>, u16)>,
    /// How to secure connections.
    pub tls: Option<Tls>,
    /// When it counts as down.
    pub breaker: breaker::Config,
}

/// How to secure connections to a server.
#[derive(Clone)]
pub struct Tls {
    /// What is common to all servers of the backend.
    pub client: Rc<TlsClient>,
    /// The server's own name.
    pub name: TlsName,
}

/// Limits of a peer. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long connecting may take.
    pub connect_timeout: u64,
    /// How long a handshake waits for an answer.
    pub fetch_timeout: u64,
    /// How long anything else waits for one.
    pub store_timeout: u64,
    /// How many requests may be unanswered.
    pub queue: usize,
    /// The longest value, in bytes.
    pub max_value: usize,
    /// Whether redirections are replies, and no errors.
    pub redirects: bool,
    /// The name of the backend.
    pub backend: Rc<str>,
}

impl Limits {
    fn of_conversation(&self) -> conversation::Limits {
        conversation::Limits {
            fetch_timeout: self.fetch_timeout,
            store_timeout: self.store_timeout,
            // As long as connecting may take, and as a fetch has to be answered.
            greet_timeout: self.connect_timeout.max(self.fetch_timeout),
            queue: self.queue,
            max_value: self.max_value,
            redirects: self.redirects,
        }
    }
}

/// Why a request was not made.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// The server is down, or none is known.
    Down,
    /// Too many requests have no answer.
    Full,
    /// There is no memory.
    OutOfMemory,
}

/// A server, with the connection to it while there is one.
pub struct Peer {
    this: Weak<Peer>,
    codec: Rc<dyn Codec>,
    tls: Option<Tls>,
    breaker: breaker::Config,
    limits: Limits,
    replies: Weak<dyn Replies>,
    book: RefCell<AddressBook>,
    state: RefCell<State>,
    line: Outside<Line>,
    /// The number of the conversation whose ends were told last.
    told: Cell<u64>,
    /// The next deadline.
    tick: Event<Peer, Tick>,
    /// Something is to be opened, written or closed.
    work: Event<Peer, Work>,
    count: Count,
}

struct Tick;
struct Work;

/// What requests are made of: memory.
struct State {
    /// What is said over the connection, also while it has still to be opened. There is a connection
    /// only while there is a conversation; they end together.
    conversation: Option<Conversation<RequestToken>>,
    /// Counts the conversations.
    number: u64,
    breaker: Breaker,
    hold: Hold,
    /// Whether the server is to be forgotten when it has answered what it was asked.
    retired: bool,
    /// Whether the server has shown that it is no master.
    demoted: bool,
    full: Throttle,
    refused: Throttle,
    closed: Throttle,
}

/// The connection.
struct Line {
    link: Option<Link>,
    phase: Phase,
    /// How many addresses are left to try.
    untried: usize,
    /// The TLS session of the last connection, and the address it belongs to.
    session: Option<(Address, Session)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
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

impl Peer {
    /// A server that is connected to when the first request is made.
    pub fn new(
        server: Server,
        codec: Rc<dyn Codec>,
        limits: Limits,
        replies: Weak<dyn Replies>,
    ) -> Rc<Self> {
        let book = AddressBook::new(server.addresses, server.name);
        Self::with_book(book, server.tls, server.breaker, codec, limits, replies)
    }

    fn with_book(
        book: AddressBook,
        tls: Option<Tls>,
        breaker: breaker::Config,
        codec: Rc<dyn Codec>,
        limits: Limits,
        replies: Weak<dyn Replies>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|this| Peer {
            this: this.clone(),
            codec,
            tls,
            breaker,
            limits,
            replies,
            book: RefCell::new(book),
            state: RefCell::new(State {
                conversation: None,
                number: 0,
                breaker: Breaker::new(breaker),
                hold: Hold::default(),
                retired: false,
                demoted: false,
                full: Throttle::new(),
                refused: Throttle::new(),
                closed: Throttle::new(),
            }),
            line: Outside::new(Line { link: None, phase: Phase::Idle, untried: 0, session: None }),
            told: Cell::new(0),
            tick: Event::new(this.clone()),
            work: Event::new(this.clone()),
            count: Count::default(),
        })
    }

    /// Says who resolves the server's name from now on.
    pub fn set_resolver(&self, resolver: &Resolver) {
        if let Ok(mut book) = self.book.try_borrow_mut() {
            book.set_resolver(resolver);
        }
    }

    /// The address in use.
    pub fn address(&self) -> Option<Address> {
        self.book.try_borrow().ok()?.current().cloned()
    }

    /// Whether it was configured or announced by that name.
    pub fn is_called(&self, name: &str, port: u16) -> bool {
        self.book.try_borrow().is_ok_and(|book| book.place() == Some((name, port)))
    }

    /// Has the server's name resolved, if that is due, at the end of this turn. Whether there is an
    /// address by now.
    pub fn resolve_soon(&self) -> bool {
        let Ok(book) = self.book.try_borrow() else { return false };
        if book.due(clock::unix_time()).is_some() {
            self.work.post();
        }
        book.current().is_some()
    }

    /// Whether a request would be taken now. Has a connection opened if need be, and a probe of a
    /// server that is down begun where one is due.
    pub fn is_usable(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        self.admit(&mut state, clock::now_ms()).is_ok()
    }

    /// Makes a request; [`Replies::replied`] tells the waiter how it ends. A `deadline` holds in place
    /// of the timeout.
    pub fn send(
        &self,
        request: &Request<'_>,
        waiter: Option<RequestToken>,
        deadline: Option<u64>,
    ) -> Result<(), Refused> {
        self.request(request.command.kind(waiter), |conversation, now| {
            conversation.request(now, request, waiter, deadline)
        })
    }

    /// Asks the server about itself and its like; [`Replies::learned`] tells the answer.
    pub fn query(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<(), Refused> {
        self.request(Kind::Query, |conversation, now| conversation.query(now, encode))
    }

    fn request(
        &self,
        kind: Kind<RequestToken>,
        make: impl FnOnce(&mut Conversation<RequestToken>, u64) -> Result<u64, conversation::Refused>,
    ) -> Result<(), Refused> {
        let us = clock::now_us();
        let now = us / 1000;
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        let state = &mut *state;
        self.admit(state, now)?;
        let Some(conversation) = &mut state.conversation else { return Err(Refused::Down) };
        match make(conversation, now) {
            // Those of earlier requests, of which one may be the next, have been set.
            Ok(deadline) => self.tick.at(deadline, clock::is_exiting()),
            Err(conversation::Refused::Full) => {
                self.count.add(stats::FULL, 1);
                if let Some(times) = state.full.pass(now) {
                    log_at!(
                        Log::cycle(),
                        Warn,
                        "{self}: queue of {} is full, {times} requests dropped{}",
                        self.limits.queue,
                        self.doing(Some(wording::action(kind)))
                    );
                }
                return Err(Refused::Full);
            }
            Err(conversation::Refused::OutOfMemory) => return Err(Refused::OutOfMemory),
        }
        self.count.add(stats::REQUESTS, 1);
        if !conversation.is_open() {
            // It is submitted at the end of this turn.
            self.work.post();
        } else if !self.work.is_posted() {
            match state.hold.request(us, tls::steps()) {
                Some(When::ThisTurn) => self.work.post(),
                Some(When::NextTurn) => self.work.post_next(),
                None => {}
            }
        }
        self.show(state);
        Ok(())
    }

    /// Whether a request may be made now. Has a connection opened if need be, in an event of our
    /// own.
    fn admit(&self, state: &mut State, now: u64) -> Result<(), Refused> {
        if state.retired {
            return Err(Refused::Down);
        }
        if !self.resolve_soon() {
            return Err(Refused::Down);
        }
        if state.conversation.is_some() {
            // While a probe is under way nothing else is sent.
            return if state.breaker.is_open() { Err(Refused::Down) } else { Ok(()) };
        }
        let probe = match state.breaker.ask(now) {
            Verdict::Go => false,
            Verdict::Probe => true,
            Verdict::Refuse => return Err(Refused::Down),
        };
        let limits = self.limits.of_conversation();
        match Conversation::new(Rc::clone(&self.codec), limits, probe) {
            Ok(conversation) => state.conversation = Some(conversation),
            Err(OutOfMemory) => {
                if probe {
                    // Another one has to follow.
                    state.breaker.failed(now, clock::random());
                }
                return Err(Refused::OutOfMemory);
            }
        }
        state.number = state.number.wrapping_add(1);
        state.hold = Hold::default();
        state.demoted = false;
        self.work.post();
        if probe { Err(Refused::Down) } else { Ok(()) }
    }

    /// An answer may have been for another request than it seemed. Once, that is an entry in the
    /// wrong place; again and again, the connection is out of step.
    pub fn suspect(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if let Some(conversation) = &mut state.conversation {
                conversation.suspect();
                self.work.post();
            }
        }
    }

    /// An answer was for the request that it seemed to be for.
    pub fn trust(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if let Some(conversation) = &mut state.conversation {
                conversation.trust();
            }
        }
    }

    /// Whether an answer is suspect, and no later one has shown otherwise.
    pub fn is_doubtful(&self) -> bool {
        let doubtful = |state: &State| state.conversation.as_ref().is_some_and(|c| c.is_doubtful());
        self.state.try_borrow().is_ok_and(|state| doubtful(&state))
    }

    /// The server has shown, by the reply that is being told, that it is no longer the master.
    pub fn demoted(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if state.conversation.is_some() && state.number == self.told.get() {
                state.demoted = true;
                self.work.post();
            }
        }
    }

    /// What a line of the log ends with: what was being done, and for which backend.
    pub fn doing(&self, action: Option<&'static str>) -> impl fmt::Display + use<> {
        Context { action, backend: Rc::clone(&self.limits.backend) }
    }

    /// Shows how the server stands. One that has been left is not there any more.
    fn show(&self, state: &State) {
        let down = state.breaker.is_open();
        let here = !state.retired || state.conversation.is_some();
        let unanswered = state.conversation.as_ref().map_or(0, Conversation::unanswered);
        self.count.set(stats::IN_FLIGHT, unanswered as u64);
        self.count.set(stats::AVAILABLE, u64::from(here && !down));
        self.count.set(stats::IS_DOWN, u64::from(here && down));
    }

    /// Sets the timer for the next deadline of a request.
    fn arm(&self, state: &mut State) {
        self.show(state);
        let Some(conversation) = &mut state.conversation else { return };
        if let Some(deadline) = conversation.next_deadline() {
            let holds_exit = clock::is_exiting() && conversation.unanswered() > 0;
            self.tick.at(deadline, holds_exit);
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.codec.name())?;
        let Ok(book) = self.book.try_borrow() else { return Ok(()) };
        match (book.current(), book.place()) {
            (Some(address), _) => f.write_str(address.name()),
            (None, Some((name, port))) => write!(f, "{name}:{port}"),
            (None, None) => Ok(()),
        }
    }
}
