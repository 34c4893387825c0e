//! One server, with the connections to it while there are any.
//!
//! Two worlds meet here. Requests are made at any time, also while OpenSSL is at work for a client:
//! that is in this file and in `line.rs`, and only changes memory. Connecting, reading, writing and
//! closing happen in events of our own, which have a [`Turn`]: that is in `connect.rs` and
//! `events.rs`. A request posts such an event. What follows from the end of a connection is in
//! `verdict.rs`.

use core::cell::{Cell, OnceCell, RefCell};
use core::fmt;
use core::hash::{Hash, Hasher};
use std::boxed::Box;
use std::hash::DefaultHasher;
use std::rc::{Rc, Weak};
use std::vec::Vec;

use session_core::breaker::{self, Board, Boards, Breaker, News, Verdict};
use session_core::codec::{Codec, OutOfMemory};
use session_core::conversation;
use session_core::inflight::Kind;
use session_core::nearness::Nearness;
use session_core::outcome::Outcome;
use session_core::slots::Token;
use session_core::stats::{Kind as Counted, server as stats};
use session_core::throttle::Throttle;

pub use session_core::conversation::{Command, Node, Reply, Request};

use super::address_book::AddressBook;
use super::password::Password;
use super::wording::{self, Context};
use crate::ffi::address::Address;
use crate::ffi::client::{TlsClient, TlsName};
use crate::ffi::clock;
use crate::ffi::counters::Count;
use crate::ffi::event::Event;
use crate::ffi::log::Log;
use crate::ffi::resolver::Resolver;
use crate::ffi::shared_value::SharedValue;
use crate::ffi::tls::Session;
use crate::ffi::turn::{Outside, Turn};
use crate::log_at;

mod connect;
mod events;
mod line;
mod verdict;

use line::{Lane, Line};
use verdict::Verdict as SecondLook;

/// After how many timeouts in which no connection for lookups is answered a server is mute.
const MUTE: u64 = 4;
/// After how many timeouts of silence a connection for lookups is given up: while a server is down it may
/// be answered all the same. And one for what is stored and removed, which a server may have reasons to
/// let wait.
const SILENCE: u64 = 200;
const SILENCE_OF_STORES: u64 = 10;

/// Tells requests that wait for an answer from others that have tokens.
#[derive(Debug)]
pub enum Requests {}

/// Refers to a request that somebody waits for.
pub type RequestToken = Token<Requests>;

type Conversation = conversation::Conversation<RequestToken>;

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
    /// What it wants to hear first.
    pub password: Password,
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
    /// After how many seconds of silence the system asks whether the other side of a connection is
    /// still there, if it does.
    pub keepalive: Option<u32>,
    /// How many requests may be unanswered.
    pub queue: usize,
    /// The longest value, in bytes.
    pub max_value: usize,
    /// Whether redirections are replies, and no errors.
    pub redirects: bool,
    /// The name of the backend.
    pub backend: Rc<str>,
    /// What the workers know of servers together.
    pub boards: Option<SharedValue<Boards>>,
    /// Tells the configuration from others.
    pub generation: u16,
}

impl Limits {
    /// The longest that a probe can take, with what a busy worker adds.
    fn longest_probe(&self) -> u64 {
        let connected = self.connect_timeout.saturating_mul(2);
        connected.saturating_add(self.fetch_timeout.saturating_mul(2))
    }

    fn of_conversation(&self, lane: Lane, probe: bool) -> conversation::Limits {
        conversation::Limits {
            fetch_timeout: self.fetch_timeout,
            store_timeout: self.store_timeout,
            // As long as connecting may take, and as a fetch has to be answered. A probe is to show
            // that the server is as fast as lookups want it to be.
            greet_timeout: match probe {
                true => self.fetch_timeout,
                false => self.connect_timeout.max(self.fetch_timeout),
            },
            mute: MUTE,
            silence: match lane {
                Lane::Lookups => SILENCE,
                Lane::Stores => SILENCE_OF_STORES,
            },
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

/// A server, with the connections to it while there are any.
pub struct Peer {
    this: Weak<Peer>,
    codec: Rc<dyn Codec>,
    tls: Option<Tls>,
    password: Password,
    breaker: breaker::Config,
    limits: Limits,
    replies: Weak<dyn Replies>,
    book: RefCell<AddressBook>,
    state: RefCell<State>,
    /// The TLS session of the last connection.
    session: Outside<Option<Kept>>,
    /// The connection whose ends are being told.
    telling: RefCell<Weak<Line>>,
    /// The addresses are to be asked for.
    work: Event<Peer, Work>,
    /// A second connection has shown that the server works.
    verdict: Event<Peer, SecondLook>,
    count: Count,
    /// The place of its board, if there is one.
    place: OnceCell<Option<usize>>,
    /// How near it is, as lookups have shown that might go elsewhere as well.
    nearness: Cell<Nearness>,
}

struct Work;

/// A TLS session, and what a connection has to have in common with the one that it is of.
struct Kept {
    address: Address,
    /// [`TlsClient::generation`]
    generation: u64,
    session: Session,
}

/// What requests are made of: memory.
struct State {
    /// The connection for lookups, and the one for what is stored and removed.
    lookups: Option<Rc<Line>>,
    stores: Option<Rc<Line>>,
    /// A connection that is to show whether the server works: a probe while it is down, else beside
    /// one that is silent.
    second: Option<Rc<Line>>,
    /// Connections on which no more is asked, and which have something to answer.
    leaving: Vec<Rc<Line>>,
    breaker: Breaker,
    /// Opened by what befalls one of the connections while the server is reached by others.
    lookups_breaker: Breaker,
    stores_breaker: Breaker,
    /// Whether the server is to be forgotten when it has answered what it was asked.
    retired: bool,
    /// When the connections were last renewed.
    renewed: Option<u64>,
    /// Whether the log has it that the server is down.
    said_down: bool,
    down: Throttle,
    up: Throttle,
    full: Throttle,
    refused: Throttle,
    closed: Throttle,
    unusable: Throttle,
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
        Self::with_book(book, server.tls, server.password, server.breaker, codec, limits, replies)
    }

    fn with_book(
        book: AddressBook,
        tls: Option<Tls>,
        password: Password,
        breaker: breaker::Config,
        codec: Rc<dyn Codec>,
        limits: Limits,
        replies: Weak<dyn Replies>,
    ) -> Rc<Self> {
        let shows = limits.fetch_timeout.saturating_mul(MUTE);
        Rc::new_cyclic(|this| Peer {
            this: this.clone(),
            codec,
            tls,
            password,
            breaker,
            limits,
            replies,
            book: RefCell::new(book),
            state: RefCell::new(State {
                lookups: None,
                stores: None,
                second: None,
                leaving: Vec::new(),
                breaker: Breaker::new(breaker).showing(shows),
                lookups_breaker: Breaker::new(breaker).showing(shows),
                stores_breaker: Breaker::new(breaker),
                retired: false,
                renewed: None,
                said_down: false,
                down: Throttle::new(),
                up: Throttle::new(),
                full: Throttle::new(),
                refused: Throttle::new(),
                closed: Throttle::new(),
                unusable: Throttle::new(),
            }),
            session: Outside::new(None),
            telling: RefCell::new(Weak::new()),
            work: Event::new(this.clone()),
            verdict: Event::new(this.clone()),
            count: Count::default(),
            place: OnceCell::new(),
            nearness: Cell::new(Nearness::default()),
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

    /// Whether it is the server that was announced with this address or name.
    pub fn is_announced_as(&self, host: &str, port: u16) -> bool {
        match host.parse() {
            Ok(ip) => self.address() == Some(Address::from_ip(ip, port)),
            Err(_) => self.is_called(host, port),
        }
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

    /// Whether a request would be taken now. Has a probe of a server that is down begun where one is
    /// due.
    pub fn is_usable(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        self.admit(&mut state, clock::now_ms()).is_ok()
    }

    /// Whether what is to be stored would arrive, as far as is known: the server is not down, and no
    /// connection to it is silent or has its queue full. Has a probe begun where one is due.
    pub fn accepts_stores(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let now = clock::now_ms();
        // Nobody else may make the probe: no store is tried then.
        if self.admit(&mut state, now).is_err()
            || self.admit_lane(&mut state, Lane::Stores, now).is_err()
        {
            return false;
        }
        let has_room = |line: &Rc<Line>| line.unanswered() < self.limits.queue;
        state.lookups.as_ref().is_none_or(|line| !line.is_silent())
            && state.stores.as_ref().is_none_or(|line| !line.is_silent() && has_room(line))
    }

    /// The peer itself, to be kept.
    pub fn this(&self) -> Option<Rc<Peer>> {
        self.this.upgrade()
    }

    /// Whether it is another server than `other`, by their addresses.
    pub fn is_elsewhere(&self, other: &Peer) -> bool {
        self.address().is_some_and(|address| other.address().as_ref() != Some(&address))
    }

    /// A lookup was made here as well, as another server had not answered.
    pub fn hedged(&self) {
        // It may be the first request.
        self.begin_count();
        self.count.add(stats::HEDGED, 1);
    }

    /// It is counted from now on what becomes of the server.
    fn begin_count(&self) {
        self.count.begin(Counted::Server, &[&self.limits.backend, &std::format!("{self}")]);
    }

    /// The answer to such a lookup was the first.
    pub fn hedge_won(&self) {
        self.count.add(stats::HEDGES_WON, 1);
    }

    /// How near it is.
    pub fn nearness(&self) -> Nearness {
        self.nearness.get()
    }

    /// A lookup is about to be made of which the time will tell how near the server is. When that is,
    /// in microseconds; `None` if it has to wait for the connection, and tells nothing.
    pub fn measure(&self) -> Option<u64> {
        let us = clock::now_us();
        let mut nearness = self.nearness.get();
        nearness.asked(us / 1000);
        self.nearness.set(nearness);
        let line = self.lookups()?;
        line.with(|conversation| conversation.is_open())?.then_some(us)
    }

    /// Such a lookup has ended.
    pub fn measured(&self, since: Option<u64>, outcome: Outcome) {
        let mut nearness = self.nearness.get();
        match (outcome, since) {
            (Outcome::Timeout, _) => nearness.took(self.limits.fetch_timeout.saturating_mul(1000)),
            (Outcome::Hit | Outcome::Miss, Some(since)) => {
                nearness.took(clock::now_us().saturating_sub(since));
            }
            _ => nearness.unknown(),
        }
        self.nearness.set(nearness);
    }

    /// A lookup ended here without an entry, and is made where the entry belongs.
    pub fn passed_on(&self) {
        self.count.add(stats::REPLICA_MISSES, 1);
    }

    /// Makes a request; [`Replies::replied`] tells the waiter how it ends. A `deadline` holds in place
    /// of the timeout.
    pub fn send(
        &self,
        request: &Request<'_>,
        waiter: Option<RequestToken>,
        deadline: Option<u64>,
    ) -> Result<(), Refused> {
        let lane = match request.command {
            Command::Get | Command::Take | Command::Claim(_) => Lane::Lookups,
            Command::Set { .. } | Command::Add { .. } | Command::Delete => Lane::Stores,
        };
        self.request(lane, request.command.kind(waiter), |conversation, now| {
            conversation.request(now, request, waiter, deadline)
        })
    }

    /// Asks the server about itself and its like; [`Replies::learned`] tells the answer.
    pub fn query(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<(), Refused> {
        self.request(Lane::Lookups, Kind::Query, |conversation, now| {
            conversation.query(now, encode)
        })
    }

    fn request(
        &self,
        lane: Lane,
        kind: Kind<RequestToken>,
        make: impl FnOnce(&mut Conversation, u64) -> Result<u64, conversation::Refused>,
    ) -> Result<(), Refused> {
        let us = clock::now_us();
        let now = us / 1000;
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        let state = &mut *state;
        self.admit(state, now)?;
        let line = self.line(state, lane, now)?;
        match line.request(us, make).ok_or(Refused::Down)? {
            Ok(()) => {}
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
        self.show_state(state);
        Ok(())
    }

    /// Whether a request may be made now. Has a probe begun where one is due, in an event of its own.
    fn admit(&self, state: &mut State, now: u64) -> Result<(), Refused> {
        if state.retired {
            return Err(Refused::Down);
        }
        if !self.resolve_soon() {
            return Err(Refused::Down);
        }
        if let Some(board) = self.board() {
            match state.breaker.hear(board, now) {
                News::None => {}
                News::Up => {
                    // Who has made the probe has said it.
                    state.said_down = false;
                    state.wake();
                    self.show_state(state);
                }
                News::Down => {
                    // Who has found that out has said it.
                    state.said_down = true;
                    state.rest();
                    // It may have had no connection yet.
                    self.begin_count();
                    self.show_state(state);
                }
            }
        }
        if state.second.is_none() {
            // Whatever became of a probe, there has to be another one.
            state.breaker.dropped(now);
        }
        match state.breaker.ask(now) {
            Verdict::Go => Ok(()),
            Verdict::Refuse => Err(Refused::Down),
            Verdict::Probe => {
                let most = self.limits.longest_probe();
                if self.board().is_some_and(|board| !state.breaker.claims(board, now, most)) {
                    return Err(Refused::Down);
                }
                let Ok(line) = Line::new(self, Lane::Lookups, true) else {
                    // Another one has to follow.
                    state.breaker.failed(now, clock::random());
                    self.tell(state, now);
                    return Err(Refused::OutOfMemory);
                };
                state.second = Some(line);
                Err(Refused::Down)
            }
        }
    }

    /// Whether something may be asked on a connection now, which may have failed while others reach the
    /// server. Has a probe of the connection begun where one is due.
    fn admit_lane(&self, state: &mut State, lane: Lane, now: u64) -> Result<(), Refused> {
        let (breaker, place) = match lane {
            Lane::Lookups => (&mut state.lookups_breaker, &mut state.lookups),
            Lane::Stores => (&mut state.stores_breaker, &mut state.stores),
        };
        if place.is_none() {
            // The probe may have been left with the server.
            breaker.dropped(now);
        }
        match breaker.ask(now) {
            Verdict::Go => return Ok(()),
            Verdict::Refuse => {}
            Verdict::Probe => match Line::again(self, lane) {
                Ok(line) => *place = Some(line),
                Err(OutOfMemory) => {
                    breaker.failed(now, clock::random());
                }
            },
        }
        Err(Refused::Down)
    }

    /// What the workers know of the server together.
    fn board(&self) -> Option<Board<'_>> {
        let (boards, place) = self.place()?;
        boards.board(place, self.limits.generation)
    }

    fn place(&self) -> Option<(&Boards, usize)> {
        let boards = self.limits.boards.as_ref()?.get()?;
        let place = *self.place.get_or_init(|| {
            // The same in all workers, which are of one binary.
            let mut hasher = DefaultHasher::new();
            (&self.limits.backend, std::format!("{self}")).hash(&mut hasher);
            boards.place(hasher.finish())
        });
        Some((boards, place?))
    }

    /// Tells the other workers how the server stands.
    fn tell(&self, state: &State, now: u64) {
        if let Some(board) = self.board() {
            state.breaker.tell(board, now);
        }
    }

    /// The connection for a request, which is opened if it is not there.
    fn line(&self, state: &mut State, lane: Lane, now: u64) -> Result<Rc<Line>, Refused> {
        self.admit_lane(state, lane, now)?;
        let place = match lane {
            Lane::Lookups => &mut state.lookups,
            Lane::Stores => &mut state.stores,
        };
        if let Some(line) = place {
            return Ok(Rc::clone(line));
        }
        let line = Line::new(self, lane, false).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        *place = Some(Rc::clone(&line));
        Ok(line)
    }

    /// An answer may have been for another request than it seemed. Once, that is an entry in the
    /// wrong place; again and again, the connection is out of step.
    pub fn suspect(&self) {
        if let Some(line) = self.lookups() {
            line.with(|conversation| conversation.suspect());
            line.work.post();
        }
    }

    /// An answer was for the request that it seemed to be for.
    pub fn trust(&self) {
        if let Some(line) = self.lookups() {
            line.with(|conversation| conversation.trust());
        }
    }

    /// Whether an answer is suspect, and no later one has shown otherwise.
    pub fn is_doubtful(&self) -> bool {
        self.lookups().and_then(|line| line.with(|it| it.is_doubtful())).unwrap_or(false)
    }

    /// Whether so many answers are suspect that the connection has to end.
    fn is_suspect(&self) -> bool {
        self.lookups().is_some_and(|line| line.is_suspect())
    }

    fn lookups(&self) -> Option<Rc<Line>> {
        self.state.try_borrow().ok()?.lookups.clone()
    }

    /// The server has shown, by the reply that is being told, that it is no longer the master.
    pub fn demoted(&self) {
        let telling = self.telling.try_borrow().ok().and_then(|line| line.upgrade());
        if let Some(line) = telling {
            line.demoted.set(true);
            line.work.post();
        }
    }

    /// What a line of the log ends with: what was being done, and for which backend.
    pub fn doing(&self, action: Option<&'static str>) -> impl fmt::Display + use<> {
        Context { action, backend: Rc::clone(&self.limits.backend) }
    }

    /// Shows how the server stands.
    fn show(&self) {
        if let Ok(state) = self.state.try_borrow() {
            self.show_state(&state);
        }
    }

    /// One that has been left is not there any more.
    fn show_state(&self, state: &State) {
        let down = state.breaker.is_open();
        let current = [&state.lookups, &state.stores, &state.second].into_iter().flatten();
        let (mut lines, mut unanswered) = (0_usize, 0_usize);
        for line in current.chain(&state.leaving) {
            lines = lines.saturating_add(1);
            unanswered = unanswered.saturating_add(line.unanswered());
        }
        let here = !state.retired || lines > 0;
        self.count.set(stats::IN_FLIGHT, unanswered as u64);
        self.count.set(stats::AVAILABLE, u64::from(here && !down));
        self.count.set(stats::IS_DOWN, u64::from(here && down));
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
