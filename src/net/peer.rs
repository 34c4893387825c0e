//! One pipelined connection to one server, over TLS where that is configured.
//!
//! Requests of one turn of the event loop leave in one write, and under load those of a few turns;
//! answers come in the order of the requests. A request whose deadline passes is told so and keeps its place in the line. The
//! connection is given up when nothing at all has come for the whole timeout of a request.

use core::cell::{Cell, OnceCell, RefCell, RefMut};
use core::fmt;
use core::mem;
use core::ops::Range;
use core::time::Duration;
use std::boxed::Box;
use std::rc::{Rc, Weak};
use std::string::ToString;
use std::time::Instant;
use std::vec::Vec;

use session_core::breaker::{self, Breaker, Verdict};
use session_core::codec::{Answer, Codec, Expected, Expiry, OutOfMemory, Place, Redirect, Unfit};
use session_core::inflight::{InFlight, Kind};
use session_core::outcome::Outcome;
use session_core::resp;
use session_core::said::Said;
use session_core::slots::Token;
use session_core::stats::{Kind as Counted, server as stats};
use session_core::throttle::Throttle;

use super::buffer;
use super::failure::Failure;
use super::node::Node;
use crate::ffi::client::{TlsClient, TlsName};
use crate::ffi::clock;
use crate::ffi::counters::Count;
use crate::ffi::event::{Event, On};
use crate::ffi::link::{Address, ConnectError, Handshake, Io, Link, LinkOwner, Progress};
use crate::ffi::log::Log;
use crate::ffi::resolver::{Query, ResolveError, Resolved, Resolver, ResolverOwner};
use crate::ffi::tls::{self, Session};
use crate::{debug, log_at};

/// How long a name that does not resolve is left alone, in seconds.
const RESOLVE_PAUSE: i64 = 10;
/// How much is read at once, in bytes.
const READ_CHUNK: usize = 16 * 1024;
/// How many of those in one turn of the event loop, so that one server cannot hold up the others.
const READ_CHUNKS: usize = 16;
/// The most that waits to be written, in bytes. Beyond it requests are refused as if the queue
/// were full.
const MAX_UNSENT: usize = 4 * 1024 * 1024;

/// Requests that follow a write within this time wait for others to go with, as long as each turn of
/// the event loop has handshakes to go on with, and no longer than this. A write and the read of its
/// answers cost a busy worker more than all else about a lookup, and nginx accepts one connection in a
/// turn.
const HOLD: Duration = Duration::from_micros(500);
/// This much does not wait, in bytes.
const HELD: usize = 16 * 1024;

/// So many answers in a row that may belong to other requests end a connection, before the last of
/// those entries is removed: it may be good.
const MAX_STRANGERS: u32 = 2;
/// What is done with [`Peer::query`], for a log.
pub const QUERYING: &str = "querying backend";

/// Takes what becomes of requests. Called from events of the peer only, never while a request is
/// made.
pub trait Replies {
    /// A request with a waiter has ended.
    fn replied(&self, peer: &Peer, waiter: Token, reply: Reply<'_>);

    /// [`Peer::query`] has ended.
    fn learned(&self, peer: &Peer, reply: Reply<'_>);

    /// The server is somewhere else now, where `successor` is for.
    fn moved(&self, peer: &Peer, successor: Rc<Peer>);
}

/// What became of a request.
#[derive(Debug)]
pub enum Reply<'a> {
    /// The entry asked for.
    Value(&'a [u8]),
    /// The entry asked for, once the claim of that number is accepted.
    Claim(&'a [u8], u64),
    /// There is no such entry.
    Missing,
    /// The request was carried out.
    Done,
    /// Another server has to be asked.
    Redirect(Node<'a>),
    /// A reply of several values.
    Array(&'a [u8]),
    /// The server refused, in these words.
    Refused(&'a [u8]),
    /// There was no proper reply.
    Failed(Outcome),
}

/// A request about one entry.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of the entry.
    pub key: &'a [u8],
    /// What to do.
    pub command: Command<'a>,
    /// Whether the server is to answer although the entry's slot is only on its way there.
    pub asking: bool,
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// Read it.
    Get,
    /// Read and remove it.
    Take,
    /// Remove it, as [`Reply::Claim`] has it.
    Claim(u64),
    /// Write it.
    Set {
        /// The entry.
        value: &'a [u8],
        /// How long it is kept.
        expiry: Expiry,
    },
    /// Remove it.
    Delete,
}

/// A server as it was configured or found.
pub struct Server {
    /// The addresses of its name, in the order in which they are tried; not empty.
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
    addresses: RefCell<Vec<Address>>,
    name: Option<(Box<str>, u16)>,
    resolver: OnceCell<Resolver>,
    tls: Option<Tls>,
    breaker: breaker::Config,
    limits: Limits,
    replies: Weak<dyn Replies>,
    /// Which address is in use.
    address: Cell<usize>,
    state: RefCell<State>,
    /// The connection whose replies were told last.
    told: Cell<u64>,
    /// The next deadline.
    tick: Event<Peer, Tick>,
    /// Something waits to be written.
    flush: Event<Peer, Flush>,
    count: Count,
}

struct Tick;
struct Flush;

struct State {
    link: Option<Link>,
    phase: Phase,
    /// A connection is to be opened, in an event of our own.
    opening: bool,
    breaker: Breaker,
    /// How many addresses are left to try.
    untried: usize,
    inflight: InFlight<Token>,
    out: Vec<u8>,
    /// How much of `out` has been written.
    sent: usize,
    /// When something was last written, and what waits for others to go with.
    wrote: Option<Instant>,
    held: Option<Held>,
    /// What the connection begins with, and how many answers to it are awaited: until the server
    /// has accepted it nothing else is written, as it would be carried out all the same. In a
    /// buffer of its own, which does not grow and leave a password behind.
    greeting: Vec<u8>,
    greetings: usize,
    /// When the greeting has to be accepted, once it can be sent.
    greet_by: u64,
    input: Vec<u8>,
    /// How much of `input` has been decoded.
    decoded: usize,
    /// How far what follows has been read.
    place: Place,
    /// How many bytes of an entry that is too large are still to come.
    skip: usize,
    /// When the connection was there, and when something was last read from it.
    ready: u64,
    heard: u64,
    /// A request that was not answered in time.
    doubt: Option<Doubt>,
    /// Counts the connections.
    generation: u64,
    /// The TLS session of the last connection, and the address it belongs to.
    session: Option<(Address, Session)>,
    /// The question for the server's addresses that is under way, when the next one is due in
    /// seconds since the epoch, and whether the last one has failed.
    question: Option<Query>,
    resolve_at: i64,
    unresolved: bool,
    /// Whether the server is to be forgotten when it has answered what it was asked.
    retired: bool,
    /// Whether the server has shown that it is no master.
    demoted: bool,
    /// How many answers in a row may have belonged to another request.
    strangers: u32,
    /// Whether this connection has given a proper answer, and whether it has refused a request.
    proven: bool,
    has_refused: bool,
    /// Ends of fetches that are still to be told; kept for its memory.
    ended: Vec<Ended>,
    full: Throttle,
    refused: Throttle,
    closed: Throttle,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Connecting {
        deadline: u64,
    },
    Handshaking {
        deadline: u64,
    },
    Ready,
}

/// Requests that wait for others.
struct Held {
    since: Instant,
    /// What the worker had done when that was last looked at.
    steps: usize,
}

/// Whether the server says anything at all: it has until then to answer what was asked.
struct Doubt {
    since: u64,
    asked: u64,
    until: u64,
}

/// A request that has ended; the value is that range of what was read.
struct Ended {
    kind: Kind<Token>,
    end: End,
    value: Range<usize>,
}

/// What became of a request, see [`Reply`].
enum End {
    Value,
    Claim(u64),
    Missing,
    Done,
    Redirect { ask: bool, slot: u16, host: Box<str>, port: u16 },
    Array,
    Refused,
    Failed(Outcome),
}

impl Peer {
    /// A server that is connected to when the first request is made.
    pub fn new(
        server: Server,
        codec: Rc<dyn Codec>,
        limits: Limits,
        replies: Weak<dyn Replies>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|this| Peer {
            this: this.clone(),
            codec,
            addresses: RefCell::new(server.addresses),
            name: server.name,
            resolver: OnceCell::new(),
            tls: server.tls,
            breaker: server.breaker,
            limits,
            replies,
            address: Cell::new(0),
            state: RefCell::new(State::new(server.breaker)),
            told: Cell::new(0),
            tick: Event::new(this.clone()),
            flush: Event::new(this.clone()),
            count: Count::default(),
        })
    }

    /// Says who resolves the server's name from now on; once.
    pub fn set_resolver(&self, resolver: &Resolver) {
        if self.name.is_some() {
            // A second time it is the same.
            let _ = self.resolver.set(resolver.clone());
        }
    }

    /// The address in use.
    pub fn address(&self) -> Option<Address> {
        self.addresses.try_borrow().ok()?.get(self.address.get()).cloned()
    }

    /// Whether a request would be taken now. Has a connection opened if need be, and a probe of a
    /// server that is down begun where one is due.
    pub fn is_usable(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        self.admit(&mut state, clock::now_ms()).is_ok()
    }

    /// Makes a request; [`Replies::replied`] tells the waiter its end.
    pub fn send(&self, request: &Request<'_>, waiter: Option<Token>) -> Result<(), Refused> {
        let Request { key, command, asking } = *request;
        let kind = match (command, waiter) {
            (Command::Get | Command::Take, Some(waiter)) => Kind::Fetch(waiter),
            (Command::Claim(_), Some(waiter)) => Kind::Claim(waiter),
            _ => Kind::Update(waiter),
        };
        self.request(kind, asking, |codec, out| match command {
            Command::Get => codec.get(key, out),
            Command::Take => codec.take(key, out),
            Command::Claim(claim) => codec.claim(key, claim, out),
            Command::Set { value, expiry } => codec.set(key, value, expiry, out),
            Command::Delete => codec.delete(key, out),
        })
    }

    /// Asks the server about itself and its like.
    pub fn query(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<(), Refused> {
        self.request(Kind::Query, false, |_, out| encode(out))
    }

    /// An answer may have been for another request than it seemed. Once, that is an entry in the
    /// wrong place; again and again, the connection is out of step.
    pub fn mistrust(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.strangers = state.strangers.saturating_add(1);
            self.flush.soon();
        }
    }

    /// An answer was for the request that it seemed to be for: the connection is in step, unless
    /// too much speaks against it.
    pub fn trust(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if state.strangers < MAX_STRANGERS {
                state.strangers = 0;
            }
        }
    }

    /// Whether there is an unresolved doubt of that kind.
    pub fn is_mistrusted(&self) -> bool {
        self.state.try_borrow().is_ok_and(|state| state.strangers > 0)
    }

    /// The server has shown, by the reply that is being told, that it is no longer the master.
    pub fn demoted(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if state.link.is_some() && state.generation == self.told.get() {
                state.demoted = true;
                self.flush.soon();
            }
        }
    }

    /// Closes the connection when what was asked has been answered; no request is made any more.
    /// Whether it is closed.
    pub fn retire(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        state.retired = true;
        self.close_if_done(&mut state);
        state.link.is_none()
    }

    /// Closes the connection; the worker exits.
    pub fn close(&self) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        self.write(&mut state);
        state.reset();
        self.tick.cancel();
    }

    fn request(
        &self,
        kind: Kind<Token>,
        asking: bool,
        encode: impl FnOnce(&dyn Codec, &mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<(), Refused> {
        let now = clock::now_ms();
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        self.admit(&mut state, now)?;

        let unsent = state.out.len().saturating_sub(state.sent);
        if state.inflight.len() >= self.limits.queue || unsent >= MAX_UNSENT {
            self.count.add(stats::FULL, 1);
            if let Some(times) = state.full.pass(now) {
                log_at!(
                    Log::cycle(),
                    Warn,
                    "{self}: queue of {} is full, {times} requests dropped{}",
                    self.limits.queue,
                    self.doing(Some(action(kind)))
                );
            }
            return Err(Refused::Full);
        }
        // Room to tell the end of each, so that none can be forgotten for want of memory.
        let pending = state.inflight.len().saturating_add(2);
        state.ended.try_reserve(pending).map_err(|_| Refused::OutOfMemory)?;
        let start = state.out.len();
        state.inflight.reserve(2).map_err(|_| Refused::OutOfMemory)?;
        if asking {
            resp::asking(&mut state.out).map_err(|_| Refused::OutOfMemory)?;
        }
        if encode(&*self.codec, &mut state.out).is_err() {
            state.out.truncate(start);
            return Err(Refused::OutOfMemory);
        }
        if asking {
            state.inflight.push(Kind::Update(None), now, self.limits.store_timeout);
        }
        let timeout = match kind {
            Kind::Greeting(_) | Kind::Update(_) => self.limits.store_timeout,
            Kind::Fetch(_) | Kind::Claim(_) | Kind::Query => self.limits.fetch_timeout,
        };
        state.inflight.push(kind, now, timeout);
        self.count.add(stats::REQUESTS, 1);
        self.arm(&mut state);
        if state.phase == Phase::Ready {
            self.write_soon(&mut state);
        }
        Ok(())
    }

    /// Writes at the end of this turn of the event loop what waits, or holds it.
    fn write_soon(&self, state: &mut State) {
        if state.held.is_some() || self.flush.is_due() {
            return;
        }
        let now = Instant::now();
        if state.wrote.is_some_and(|wrote| now.duration_since(wrote) < HOLD) {
            state.held = Some(Held { since: now, steps: tls::steps() });
            self.flush.next_turn();
        } else {
            self.flush.soon();
        }
    }

    /// Whether a request may be made now. Has a connection opened if need be, at the end of this
    /// turn of the event loop: this may be called while OpenSSL handles a client, and connecting
    /// closes clients' connections where a worker has no free one (ngx_drain_connections()).
    fn admit(&self, state: &mut State, now: u64) -> Result<(), Refused> {
        if state.retired {
            return Err(Refused::Down);
        }
        if self.is_resolving_due(state) {
            self.flush.soon();
        }
        if state.link.is_some() || state.opening {
            // While a probe is under way nothing else is sent.
            return if state.breaker.is_open() { Err(Refused::Down) } else { Ok(()) };
        }
        let probe = match state.breaker.ask(now) {
            Verdict::Go => false,
            Verdict::Probe => true,
            Verdict::Refuse => return Err(Refused::Down),
        };
        let greeted = self.codec.greet(probe, &mut state.greeting).and_then(|answers| {
            state.greetings = answers;
            state.inflight.reserve(answers)?;
            for step in 0..answers {
                state.inflight.push(Kind::Greeting(step), now, self.limits.store_timeout);
            }
            Ok(())
        });
        if let Err(OutOfMemory) = greeted {
            self.give_up(state, now, &Failure::OutOfMemory);
            return Err(Refused::Down);
        }
        state.opening = true;
        self.flush.soon();
        if probe { Err(Refused::Down) } else { Ok(()) }
    }

    /// Opens the connection that [`Peer::admit`] has asked for.
    fn open(&self, state: &mut State, now: u64) {
        state.untried = self.addresses.try_borrow().map_or(0, |addresses| addresses.len());
        if let Err(failure) = self.connect(state, now) {
            self.give_up(state, now, &failure);
        }
    }

    /// Connects to the first of the addresses that are left to try and does not fail at once.
    fn connect(&self, state: &mut State, now: u64) -> Result<(), Failure> {
        self.count.begin(Counted::Server, &[&self.limits.backend, &self.to_string()]);
        let mut errno = 0;
        while state.untried > 0 {
            state.untried = state.untried.saturating_sub(1);
            let Some(address) = self.address() else { break };
            match Link::connect(self.this.clone(), &address) {
                Ok((link, progress)) => {
                    debug!(Log::cycle(), "SSL session backend {self}: {progress:?}");
                    state.link = Some(link);
                    state.heard = 0;
                    let deadline = now.saturating_add(self.limits.connect_timeout);
                    state.phase = Phase::Connecting { deadline };
                    if progress == Progress::Connected {
                        self.connected(state, now)?;
                    }
                    self.arm(state);
                    return Ok(());
                }
                Err(ConnectError::Refused(e)) => errno = e,
                Err(ConnectError::Local) => return Err(Failure::Local),
            }
            if state.untried > 0 {
                self.next_address();
            }
        }
        Err(Failure::Connect(errno))
    }

    /// Looks how an attempt to connect goes. `ended`: it has come to its end.
    fn check_connect(&self, state: &mut State, now: u64, ended: bool) {
        let result = state.link.as_ref().map_or(Ok(()), Link::connected);
        let result = match result {
            Ok(()) if ended => self.connected(state, now),
            Ok(()) => Ok(()),
            Err(errno) => {
                state.link = None;
                state.phase = Phase::Idle;
                match state.untried {
                    0 => Err(Failure::Connect(errno)),
                    _ => {
                        self.next_address();
                        self.connect(state, now)
                    }
                }
            }
        };
        if let Err(failure) = result {
            self.give_up(state, now, &failure);
        }
        self.close_if_done(state);
        self.arm(state);
    }

    fn next_address(&self) {
        let next = self.address.get().saturating_add(1);
        let count = self.addresses.try_borrow().map_or(0, |addresses| addresses.len());
        self.address.set(if next < count { next } else { 0 });
    }

    /// Whether the addresses of the server's name have to be asked for.
    fn is_resolving_due(&self, state: &State) -> bool {
        self.resolver.get().is_some()
            && self.name.is_some()
            && state.question.is_none()
            && state.resolve_at <= clock::unix_time()
    }

    /// Asks for the addresses of the server's name, where that is due.
    fn resolve(&self, state: &mut State) {
        let (Some(resolver), Some((name, port))) = (self.resolver.get(), &self.name) else {
            return;
        };
        if self.is_resolving_due(state) {
            state.question = Some(resolver.resolve(self.this.clone(), name, *port));
        }
    }

    /// The connection is there. With TLS the handshake begins.
    fn connected(&self, state: &mut State, now: u64) -> Result<(), Failure> {
        if self.tls.is_none() {
            self.ready(state, now);
            return Ok(());
        }
        let deadline = now.saturating_add(self.limits.connect_timeout);
        state.phase = Phase::Handshaking { deadline };
        self.handshake(state, now)
    }

    /// Goes on with the TLS handshake.
    fn handshake(&self, state: &mut State, now: u64) -> Result<(), Failure> {
        let (Some(tls), Some(link)) = (&self.tls, &state.link) else { return Ok(()) };
        let address = self.address();
        let earlier = state.session.as_ref().filter(|(of, _)| Some(of) == address.as_ref());
        match link.handshake(&tls.client, &tls.name, earlier.map(|(_, session)| session)) {
            Handshake::Done => {
                let reused = link.was_resumed();
                self.count.add(if reused { stats::TLS_REUSED } else { stats::TLS_NEW }, 1);
                let resumed = if reused { ", session reused" } else { "" };
                debug!(Log::cycle(), "SSL session backend {self}: SSL handshake done{resumed}");
                self.keep_session(state);
                self.ready(state, now);
            }
            Handshake::Again => {}
            Handshake::Failed(error) => return Err(Failure::Handshake(error)),
        }
        Ok(())
    }

    /// The connection can be written to.
    fn ready(&self, state: &mut State, now: u64) {
        let Limits { connect_timeout, fetch_timeout, .. } = self.limits;
        self.count.add(stats::CONNECTIONS, 1);
        state.phase = Phase::Ready;
        state.ready = now;
        // As long as connecting may take, and as a fetch has to be answered.
        state.greet_by = now.saturating_add(connect_timeout.max(fetch_timeout));
        if state.link.as_ref().is_some_and(|link| !link.begin()) {
            // The next read or write says why.
            debug!(Log::cycle(), "SSL session backend {self}: event registration failed");
        }
        self.flush.soon();
    }

    /// Writes what waits. An error shows again, and is dealt with, when reading.
    fn write(&self, state: &mut State) {
        if state.phase != Phase::Ready {
            return;
        }
        let Some(link) = &state.link else { return };
        state.held = None;
        let greets = state.greetings > 0 || !state.greeting.is_empty();
        let out = if greets { &state.greeting } else { &state.out };
        while let Some(unsent) = out.get(state.sent..).filter(|unsent| !unsent.is_empty()) {
            match link.write(unsent) {
                Io::Bytes(n) => {
                    self.count.add(stats::SENT, n as u64);
                    state.sent = state.sent.saturating_add(n);
                }
                _ => break,
            }
            state.wrote = Some(Instant::now());
        }
        if state.sent >= out.len() {
            link.wrote_all();
        }
        if greets {
            if state.sent >= state.greeting.len() {
                state.sent = 0;
                buffer::empty(&mut state.greeting);
            }
        } else if state.sent >= state.out.len() {
            state.sent = 0;
            buffer::empty(&mut state.out);
        } else if state.sent > buffer::KEPT {
            // A server that is always a little behind must not make the buffer grow.
            let sent = mem::take(&mut state.sent);
            buffer::shift(&mut state.out, sent);
        }
    }

    /// Shows how the server stands. One that has been left is not there any more.
    fn show(&self, state: &State) {
        let down = state.breaker.is_open();
        let here = !state.retired || state.link.is_some();
        self.count.set(stats::IN_FLIGHT, state.inflight.len() as u64);
        self.count.set(stats::AVAILABLE, u64::from(here && !down));
        self.count.set(stats::IS_DOWN, u64::from(here && down));
    }

    /// Sets the timer for the next deadline.
    fn arm(&self, state: &mut State) {
        self.show(state);
        let connect = match state.phase {
            Phase::Connecting { deadline } | Phase::Handshaking { deadline } => Some(deadline),
            Phase::Idle | Phase::Ready => None,
        };
        let greeted = state.is_greeting().then_some(state.greet_by);
        let doubt = state.doubt.as_ref().map(|doubt| doubt.until);
        let inflight = state.inflight.next_deadline();
        let next = [connect, greeted, doubt, inflight].into_iter().flatten().min();
        if let Some(deadline) = next {
            let holds_exit = clock::is_exiting() && !state.inflight.is_empty();
            self.tick.at(deadline, holds_exit);
        }
    }

    /// Reads what there is and takes the answers out of it.
    fn receive(&self, state: &mut State, now: u64) -> Result<(), Failure> {
        for _ in 0..READ_CHUNKS {
            let Some(link) = &state.link else { return Ok(()) };
            match link.read(&mut state.input, READ_CHUNK) {
                Io::Bytes(n) => self.count.add(stats::RECEIVED, n as u64),
                Io::Again => return Ok(()),
                Io::Closed => return Err(Failure::Closed),
                Io::Failed(errno) => {
                    // Over TLS an errno says little; nginx has said more.
                    let said = link.last_error().filter(|_| self.tls.is_some());
                    return Err(said.map_or(Failure::Io(errno), |said| Failure::Tls(said.into())));
                }
                Io::OutOfMemory => return Err(Failure::OutOfMemory),
            }
            state.heard = now;
            self.keep_session(state);
            self.decode(state, now)?;
            let more = state.link.as_ref().is_some_and(Link::has_more);
            if !more || !state.ended.is_empty() {
                // Values lie in the input: they are told before it goes on.
                return Ok(());
            }
            state.forget_decoded();
        }
        if let Some(link) = &state.link {
            link.read_later();
        }
        Ok(())
    }

    /// Takes the answers out of the input. Values stay where they are until they were told; a
    /// request stays in the line until its answer is accepted, so that a failure finds it there.
    fn decode(&self, state: &mut State, now: u64) -> Result<(), Failure> {
        loop {
            let at = state.decoded;
            let rest = state.input.get(at..).unwrap_or_default();
            if state.skip > 0 && !rest.is_empty() {
                let skipped = state.skip.min(rest.len());
                state.skip = state.skip.saturating_sub(skipped);
                state.decoded = at.saturating_add(skipped);
                continue;
            }
            let array = match state.inflight.front().map(|request| request.kind) {
                Some(Kind::Greeting(step)) => self.codec.greeting_is_array(step),
                kind => matches!(kind, Some(Kind::Query)),
            };
            let expected = Expected { limit: self.limits.max_value, array };
            let (answer, used) = match self.codec.decode(rest, &expected, &mut state.place) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Failure::Decode(error)),
            };
            if answer == Answer::Aside {
                state.decoded = at.saturating_add(used);
                continue;
            }
            let Some(&request) = state.inflight.front() else { return Err(Failure::OutOfStep) };
            let bytes = |range: &Range<usize>| rest.get(range.clone()).unwrap_or_default();
            let mut value = 0..0;
            let mut skip = 0;
            let end = match (answer, request.kind) {
                (answer, Kind::Greeting(step)) => {
                    let greeted = self.codec.greeted(step, &answer, rest);
                    greeted.map_err(|unfit| match (unfit, &answer) {
                        (Unfit::Refused, Answer::Refused(text)) => {
                            Failure::Greeting(Said(bytes(text)).to_string().into())
                        }
                        (Unfit::RefusedAloud, _) => Failure::Greeting("(the password)".into()),
                        (Unfit::NotMaster, _) => Failure::NotMaster,
                        _ => Failure::OutOfStep,
                    })?;
                    state.greetings = state.greetings.saturating_sub(1);
                    self.flush.soon();
                    End::Done
                }
                (Answer::Value(place), Kind::Fetch(_)) => {
                    value = at.saturating_add(place.start)..at.saturating_add(place.end);
                    End::Value
                }
                (Answer::Claim(place, claim), Kind::Fetch(_)) => {
                    value = at.saturating_add(place.start)..at.saturating_add(place.end);
                    End::Claim(claim)
                }
                (Answer::TooLarge(len), Kind::Fetch(_)) => {
                    skip = len;
                    End::Failed(Outcome::Corrupt)
                }
                (Answer::Missing, _) => End::Missing,
                (Answer::Done, Kind::Claim(_) | Kind::Update(_)) => End::Done,
                (Answer::Array(_), Kind::Query) => {
                    value = at..at.saturating_add(used);
                    End::Array
                }
                (Answer::Redirect(Redirect { ask, slot, host, port }), kind) => {
                    // In ASCII, or it would be a refusal.
                    let host = core::str::from_utf8(bytes(&host)).unwrap_or_default();
                    if self.limits.redirects && kind.waiter().is_some() {
                        End::Redirect { ask, slot, host: host.into(), port }
                    } else {
                        let word = if ask { "ASK" } else { "MOVED" };
                        let text = format_args!("{word} {slot} {host}:{port}");
                        self.refused(&mut state.refused, now, kind, &text);
                        End::Failed(Outcome::Error)
                    }
                }
                (Answer::Refused(place), _) => {
                    self.refused(&mut state.refused, now, request.kind, &Said(bytes(&place)));
                    value = at.saturating_add(place.start)..at.saturating_add(place.end);
                    End::Refused
                }
                _ => return Err(Failure::OutOfStep),
            };
            if matches!(end, End::Refused) {
                state.has_refused = true;
                self.count.add(stats::REFUSED, 1);
            }
            let good = !matches!(end, End::Refused | End::Failed(Outcome::Error));
            // A server that greets and then says nothing is no good. A probe is a greeting.
            let counts = !matches!(request.kind, Kind::Greeting(_)) || state.breaker.is_open();
            if good && counts && state.greetings == 0 {
                state.proven = true;
                if state.breaker.succeeded() {
                    self.count.add(stats::UP, 1);
                    let doing = self.doing(None);
                    log_at!(Log::cycle(), Notice, "{self} is up again{doing}");
                }
            }
            state.inflight.pop();
            state.decoded = at.saturating_add(used);
            state.skip = skip;
            if !request.expired {
                state.end(request.kind, end, value);
            }
        }
    }

    /// The server has refused a request.
    fn refused(
        &self,
        throttle: &mut Throttle,
        now: u64,
        kind: Kind<Token>,
        text: &dyn fmt::Display,
    ) {
        if let Some(times) = throttle.pass(now) {
            log_at!(
                Log::cycle(),
                Error,
                "{self} refused {times} requests, the last with \"{text}\"{}",
                self.doing(Some(action(kind)))
            );
        }
    }

    /// What a line of the log ends with: what was being done, and for which backend.
    pub fn doing(&self, action: Option<&'static str>) -> impl fmt::Display + use<> {
        Doing { action, backend: Rc::clone(&self.limits.backend) }
    }

    /// Keeps the session that the server has given the connection, for the next one.
    fn keep_session(&self, state: &mut State) {
        if let Some(session) = state.link.as_ref().and_then(Link::take_session) {
            state.session = self.address().map(|address| (address, session));
        }
    }

    /// Gives the connection up: what waits is told, and unless the server has shown that it works
    /// the breaker opens.
    fn give_up(&self, state: &mut State, now: u64, failure: &Failure) {
        let doing = self.doing(state.action());
        let asked = !state.inflight.is_empty();
        let mut updates: usize = 0;
        let outcome = failure.outcome();
        while let Some(request) = state.inflight.pop() {
            if let Kind::Update(_) = request.kind {
                updates = updates.saturating_add(1);
            }
            if !request.expired {
                state.end(request.kind, End::Failed(outcome), 0..0);
            }
        }
        let lost = state.ended.len().saturating_add(updates);
        self.count.add(stats::LOST, lost as u64);
        let trips = match failure {
            // A server may end a connection that nobody uses.
            Failure::Closed | Failure::Io(_) | Failure::Tls(_) => {
                (asked || state.has_refused) && !state.proven
            }
            Failure::Mistrusted => !state.proven,
            Failure::Local | Failure::OutOfMemory => false,
            _ => true,
        };
        if trips {
            self.count.add(stats::FAILURES, 1);
            // If it was the session that the server did not like, the next one is not.
            state.session = None;
        }
        // A probe that cannot be made has failed, too: another one has to follow.
        let failed = trips || state.breaker.is_open();
        let was_open = state.breaker.is_open();
        if failed && state.breaker.failed(now, clock::random()) {
            self.count.add(stats::DOWN, 1);
            log_at!(Log::cycle(), Error, "{self} is down: {failure}{doing}");
        } else if was_open {
            debug!(Log::cycle(), "SSL session backend {self} is still down: {failure}{doing}");
        } else if trips || lost > 0 || !failure.is_end() {
            if let Some(times) = state.closed.pass(now) {
                log_at!(Log::cycle(), Error, "{self}: {failure} ({times} times){doing}");
            }
        } else {
            debug!(Log::cycle(), "SSL session backend {self}: {failure}{doing}");
        }
        if failed {
            self.next_address();
        }
        state.reset();
        self.show(state);
    }

    /// Tells the ends of fetches, with nothing borrowed, and cleans up behind them.
    fn tell(&self, mut state: RefMut<'_, State>) {
        if state.ended.is_empty() {
            state.forget_decoded();
            return;
        }
        let mut ended = mem::take(&mut state.ended);
        let mut input = mem::take(&mut state.input);
        let generation = state.generation;
        self.told.set(generation);
        drop(state);
        if let Some(replies) = self.replies.upgrade() {
            for Ended { kind, end, value } in &ended {
                let value = input.get(value.clone()).unwrap_or_default();
                match kind.waiter() {
                    Some(waiter) => replies.replied(self, waiter, end.reply(value)),
                    None => replies.learned(self, end.reply(value)),
                }
            }
        }
        ended.clear();
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if state.ended.is_empty() && state.ended.capacity() < ended.capacity() {
                state.ended = ended;
            }
            if state.generation == generation {
                state.input = input;
                state.forget_decoded();
            } else {
                buffer::empty(&mut input);
            }
        }
    }

    /// Tells, and reads what came together with the connection, which is not reported again.
    fn go_on(&self, state: RefMut<'_, State>) {
        let more = state.phase == Phase::Ready && state.link.as_ref().is_some_and(Link::has_more);
        self.tell(state);
        if more {
            self.readable();
        }
    }

    /// An exiting worker does not keep a connection that has nothing to do.
    fn close_if_done(&self, state: &mut State) {
        let closing = state.link.as_ref().is_some_and(|link| link.is_closing());
        if (closing || state.retired || clock::is_exiting()) && state.inflight.is_empty() {
            state.reset();
            self.tick.cancel();
            self.show(state);
        }
    }
}

impl End {
    fn reply<'a>(&'a self, value: &'a [u8]) -> Reply<'a> {
        match self {
            End::Value => Reply::Value(value),
            End::Claim(claim) => Reply::Claim(value, *claim),
            End::Missing => Reply::Missing,
            End::Done => Reply::Done,
            End::Redirect { ask, slot, host, port } => {
                Reply::Redirect(Node { ask: *ask, slot: *slot, host, port: *port })
            }
            End::Array => Reply::Array(value),
            End::Refused => Reply::Refused(value),
            End::Failed(outcome) => Reply::Failed(*outcome),
        }
    }
}

impl State {
    fn new(breaker: breaker::Config) -> Self {
        State {
            link: None,
            phase: Phase::Idle,
            opening: false,
            breaker: Breaker::new(breaker),
            untried: 0,
            inflight: InFlight::new(),
            out: Vec::new(),
            sent: 0,
            wrote: None,
            held: None,
            greeting: Vec::new(),
            greetings: 0,
            greet_by: 0,
            input: Vec::new(),
            decoded: 0,
            place: Place::default(),
            skip: 0,
            ready: 0,
            heard: 0,
            doubt: None,
            generation: 0,
            session: None,
            question: None,
            resolve_at: 0,
            unresolved: false,
            retired: false,
            demoted: false,
            strangers: 0,
            proven: false,
            has_refused: false,
            ended: Vec::new(),
            full: Throttle::new(),
            refused: Throttle::new(),
            closed: Throttle::new(),
        }
    }

    /// Notes the end of a request, for which room was made when it began.
    fn end(&mut self, kind: Kind<Token>, end: End, value: Range<usize>) {
        if kind.is_awaited() {
            self.ended.push(Ended { kind, end, value });
        }
    }

    /// What is being done, for a log.
    fn action(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Idle | Phase::Connecting { .. } => Some("connecting to backend"),
            Phase::Handshaking { .. } => Some("SSL handshaking to backend"),
            Phase::Ready => self.inflight.front().map(|request| action(request.kind)),
        }
    }

    /// Whether the server has the greeting, or will have it now, and has to accept it.
    fn is_greeting(&self) -> bool {
        self.phase == Phase::Ready && self.greetings > 0
    }

    /// Whether what is held may wait for more.
    fn holds_on(&mut self) -> bool {
        let len = self.out.len();
        self.held.as_mut().is_some_and(|held| {
            let steps = tls::steps();
            let busy = steps != mem::replace(&mut held.steps, steps);
            busy && len < HELD && held.since.elapsed() < HOLD
        })
    }

    /// Closes the connection and forgets what belonged to it.
    fn reset(&mut self) {
        self.link = None;
        self.phase = Phase::Idle;
        self.opening = false;
        self.generation = self.generation.wrapping_add(1);
        self.strangers = 0;
        self.demoted = false;
        self.doubt = None;
        self.greetings = 0;
        self.sent = 0;
        self.held = None;
        self.place = Place::default();
        self.skip = 0;
        self.proven = false;
        self.has_refused = false;
        buffer::empty(&mut self.out);
        buffer::empty(&mut self.greeting);
        while self.inflight.pop().is_some() {}
        self.decoded = self.input.len();
    }

    /// Removes from the input what has been decoded and told.
    fn forget_decoded(&mut self) {
        let decoded = mem::take(&mut self.decoded).min(self.input.len());
        if decoded == self.input.len() {
            buffer::empty(&mut self.input);
        } else {
            buffer::shift(&mut self.input, decoded);
        }
    }
}

impl LinkOwner for Peer {
    fn readable(&self) {
        let now = clock::now_ms();
        loop {
            let Ok(mut state) = self.state.try_borrow_mut() else { return };
            if let Phase::Handshaking { .. } = state.phase {
                return;
            }
            if let Phase::Connecting { .. } = state.phase {
                // A failed attempt may show on this side; a good one shows on the other.
                self.check_connect(&mut state, now, false);
                self.tell(state);
                return;
            }
            let result = self.receive(&mut state, now);
            let more = !state.ended.is_empty() && result.is_ok();
            if let Err(failure) = result {
                self.give_up(&mut state, now, &failure);
            }
            self.close_if_done(&mut state);
            self.arm(&mut state);
            let more = more && state.link.as_ref().is_some_and(|link| link.has_more());
            self.tell(state);
            if !more {
                return;
            }
        }
    }

    fn writable(&self) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        match state.phase {
            Phase::Connecting { .. } => {
                self.check_connect(&mut state, clock::now_ms(), true);
                self.go_on(state);
            }
            Phase::Ready => self.write(&mut state),
            Phase::Idle | Phase::Handshaking { .. } => {}
        }
    }

    fn handshaken(&self) {
        let now = clock::now_ms();
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        if let Phase::Handshaking { .. } = state.phase {
            if let Err(failure) = self.handshake(&mut state, now) {
                self.give_up(&mut state, now, &failure);
            }
            self.close_if_done(&mut state);
            self.arm(&mut state);
        }
        self.go_on(state);
    }
}

impl ResolverOwner for Peer {
    fn resolved(&self, answer: Result<Resolved, ResolveError>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let now = clock::unix_time();
        state.question = None;
        let Resolved { addresses, valid_until } = match answer {
            Ok(resolved) => resolved,
            Err(error) => {
                state.resolve_at = now.saturating_add(RESOLVE_PAUSE);
                if !mem::replace(&mut state.unresolved, true) {
                    let name = self.name.as_ref().map_or("", |(name, _)| name);
                    let doing = self.doing(Some("resolving backend"));
                    log_at!(Log::cycle(), Error, "{self}: \"{name}\" {error}{doing}");
                }
                return;
            }
        };
        state.resolve_at = valid_until.max(now.saturating_add(1));
        state.unresolved = false;
        let current = self.address();
        if let Some(place) = addresses.iter().position(|address| Some(address) == current.as_ref())
        {
            if let Ok(mut known) = self.addresses.try_borrow_mut() {
                *known = addresses;
                self.address.set(place);
            }
            return;
        }
        let server = Server {
            addresses,
            name: self.name.clone(),
            tls: self.tls.clone(),
            breaker: self.breaker,
        };
        let (codec, replies) = (Rc::clone(&self.codec), Weak::clone(&self.replies));
        let successor = Peer::new(server, codec, self.limits.clone(), replies);
        if let (Ok(mut next), Some(resolver)) =
            (successor.state.try_borrow_mut(), self.resolver.get())
        {
            successor.set_resolver(resolver);
            next.resolve_at = state.resolve_at;
        }
        // This one has told where its name has gone.
        state.resolve_at = i64::MAX;
        drop(state);
        let doing = self.doing(None);
        log_at!(Log::cycle(), Notice, "{self} has moved to {successor}{doing}");
        if let Some(replies) = self.replies.upgrade() {
            replies.moved(self, successor);
        }
    }
}

impl On<Flush> for Peer {
    fn on(&self) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        self.resolve(&mut state);
        if mem::take(&mut state.opening) {
            self.open(&mut state, clock::now_ms());
            self.close_if_done(&mut state);
            self.arm(&mut state);
            self.tell(state);
            return;
        }
        let failure = match (state.demoted, state.strangers) {
            (true, _) => Some(Failure::NotMaster),
            (false, MAX_STRANGERS..) => Some(Failure::Mistrusted),
            _ => None,
        };
        if let Some(failure) = failure {
            self.give_up(&mut state, clock::now_ms(), &failure);
            self.tell(state);
            return;
        }
        if state.holds_on() {
            self.flush.next_turn();
        } else {
            self.write(&mut state);
        }
    }
}

impl On<Tick> for Peer {
    fn on(&self) {
        let now = clock::now_ms();
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let mut failure = match state.phase {
            Phase::Connecting { deadline } if deadline <= now => Some(Failure::ConnectTimeout),
            Phase::Handshaking { deadline } if deadline <= now => Some(Failure::HandshakeTimeout),
            _ => None,
        };
        while let Some(expired) = state.inflight.expire(now) {
            self.count.add(stats::LATE, 1);
            state.end(expired.kind, End::Failed(Outcome::Timeout), 0..0);
            if state.phase != Phase::Ready || matches!(expired.kind, Kind::Greeting(_)) {
                continue;
            }
            // What was asked while connecting: the server has the whole timeout from then on.
            let asked = expired.since.max(state.ready);
            if state.doubt.is_none() {
                let until = asked.saturating_add(expired.timeout);
                state.doubt = Some(Doubt { since: expired.since, asked, until });
            }
        }
        if let Some(doubt) = state.doubt.take_if(|doubt| doubt.until <= now) {
            if state.heard < doubt.since {
                failure = Some(Failure::Silent(now.saturating_sub(doubt.asked)));
            }
        }
        if state.is_greeting() && state.greet_by <= now {
            failure = Some(Failure::Silent(now.saturating_sub(state.ready)));
        }
        if let Some(failure) = failure {
            self.give_up(&mut state, now, &failure);
        }
        self.close_if_done(&mut state);
        self.arm(&mut state);
        self.tell(state);
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address();
        write!(f, "{} {}", self.codec.name(), address.as_ref().map_or("", Address::name))
    }
}

/// What a request does, for a log.
fn action(kind: Kind<Token>) -> &'static str {
    match kind {
        Kind::Greeting(_) => "greeting backend",
        Kind::Fetch(_) | Kind::Claim(_) => "fetching SSL session",
        Kind::Update(_) => "storing SSL session",
        Kind::Query => QUERYING,
    }
}

/// The end of a line of the log, in nginx's form.
struct Doing {
    action: Option<&'static str>,
    backend: Rc<str>,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(action) = self.action {
            write!(f, " while {action}")?;
        }
        write!(f, ", backend: \"{}\"", self.backend)
    }
}
