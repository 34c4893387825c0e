//! The servers of a backend: which of them has a session, and what becomes of a request.
//!
//! A request goes to one server. Identical lookups under way are one request. Redirections of a
//! Redis Cluster, and the second half of a take, happen within the deadline of the lookup.

use core::cell::{OnceCell, RefCell};
use core::fmt;
use core::hash::{BuildHasher, BuildHasherDefault, Hasher};
use core::mem;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::cache_key::CacheKey;
use session_core::codec::{Expiry, OutOfMemory};
use session_core::outcome::Outcome;
use session_core::slots::{Slots, Token};
use zeroize::Zeroizing;

use super::buffer;
use super::node::Node;
use super::peer::{Command, Peer, Refused, Replies, Reply, Request};
use super::route::{Found, Route};
use crate::ffi::clock;
use crate::ffi::event::{Event, On};
use crate::ffi::resolver::Resolver;

/// How often one lookup is sent on. A cluster that is being changed needs two.
const MAX_REDIRECTS: u8 = 4;
/// The least time between two questions about the servers, in milliseconds.
const REFRESH_PAUSE: u64 = 250;

/// Who waits for the answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The handshake.
    pub token: Token,
    /// Which of its lookups.
    pub index: usize,
}

/// Takes the answers to lookups. Called from events only, never while a lookup is begun.
pub trait Answers {
    /// A lookup has ended. `value` is the entry of a hit and empty otherwise. Whether anybody was
    /// there to hear it: the first of several who wait for one answer and do is told that it is
    /// `first`, and does what there is to do about the entry.
    fn answered(&self, waiter: Waiter, outcome: Outcome, value: &[u8], first: bool) -> bool;
}

/// The servers of a backend.
pub struct Backend {
    answers: OnceCell<Weak<dyn Answers>>,
    fetch_timeout: u64,
    /// Whether what is stored and removed may have to be sent on.
    moves: bool,
    hasher: RandomState,
    state: RefCell<State>,
    /// A lookup that was sent on is to end.
    overdue: Event<Backend, Overdue>,
    /// It is time to ask about the servers.
    refresh: Event<Backend, Refresh>,
}

struct Overdue;
struct Refresh;

struct State {
    route: Route,
    pending: Slots<Pending>,
    /// Lookups that others may join, by the hash of their keys.
    lookups: HashMap<u64, Token, BuildHasherDefault<Hashed>>,
    /// Ends of lookups that no peer keeps.
    deadlines: Vec<(u64, Token)>,
    /// Whether a question about the servers is under way.
    asking: bool,
    /// When the next one may be asked.
    next_query: u64,
}

/// Hashes what is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not called: the keys are u64.
        self.0 = bytes.iter().fold(self.0, |hash, &byte| hash.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A request that is under way.
struct Pending {
    key: CacheKey,
    /// Of the key, where others may join; else of no meaning.
    hash: u64,
    what: What,
    /// When a lookup has to be over.
    deadline: u64,
    redirects: u8,
    waiter: Option<Waiter>,
    /// Others that have joined.
    joined: Vec<Waiter>,
}

enum What {
    Get,
    Take,
    /// The second half of a take, with the entry.
    Claim(Zeroizing<Vec<u8>>),
    Set(Zeroizing<Vec<u8>>, Expiry),
    Delete,
}

impl What {
    fn command(&self) -> Command<'_> {
        match self {
            What::Get => Command::Get,
            // What a claim was for has moved: it is taken there.
            What::Take | What::Claim(_) => Command::Take,
            What::Set(value, expiry) => Command::Set { value, expiry: *expiry },
            What::Delete => Command::Delete,
        }
    }

    fn is_lookup(&self) -> bool {
        matches!(self, What::Get | What::Take | What::Claim(_))
    }
}

impl Backend {
    /// A backend whose servers `route` makes and chooses. `moves`: its entries may move between
    /// servers.
    pub fn new(
        fetch_timeout: u64,
        moves: bool,
        route: impl FnOnce(Weak<dyn Replies>) -> Route,
    ) -> Rc<Self> {
        Rc::new_cyclic(|this: &Weak<Backend>| Backend {
            answers: OnceCell::new(),
            fetch_timeout,
            moves,
            hasher: RandomState::new(),
            state: RefCell::new(State {
                route: route(this.clone()),
                pending: Slots::new(),
                lookups: HashMap::default(),
                deadlines: Vec::new(),
                asking: false,
                next_query: 0,
            }),
            overdue: Event::new(this.clone()),
            refresh: Event::new(this.clone()),
        })
    }

    /// Says who takes the answers; once.
    pub fn set_answers(&self, answers: Weak<dyn Answers>) {
        // A second list of tiers with this backend has the same taker.
        let _ = self.answers.set(answers);
    }

    /// Says who resolves the names of servers from now on; once.
    pub fn set_resolver(&self, resolver: &Resolver) {
        let Ok(state) = self.state.try_borrow() else { return };
        for peer in state.route.peers() {
            peer.set_resolver(resolver);
        }
    }

    /// Looks an entry up; [`Answers::answered`] tells the end. Whether it waits for the answer to
    /// an earlier lookup.
    pub fn fetch(&self, key: &CacheKey, waiter: Waiter) -> Result<bool, Refused> {
        let hash = self.hash(key);
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        let state = &mut *state;
        if let Some(&token) = state.lookups.get(&hash) {
            let same = state.pending.get_mut(token).filter(|same| same.key == *key);
            if let Some(same) = same {
                same.joined.try_reserve(1).map_err(|_| Refused::OutOfMemory)?;
                same.joined.push(waiter);
                return Ok(true);
            }
        }
        state.lookups.try_reserve(1).map_err(|_| Refused::OutOfMemory)?;
        let token = self.begin(state, key, hash, What::Get, Some(waiter))?;
        state.lookups.insert(hash, token);
        Ok(false)
    }

    /// Looks an entry up and removes it, so that nobody else gets it.
    pub fn take(&self, key: &CacheKey, waiter: Waiter) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        self.begin(&mut state, key, 0, What::Take, Some(waiter)).map(|_| ())
    }

    /// Stores an entry.
    pub fn store(&self, key: &CacheKey, value: &[u8], expiry: Expiry) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        if !self.moves {
            return self.send(&mut state, key, Command::Set { value, expiry });
        }
        let kept = buffer::copy(value).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        self.begin(&mut state, key, 0, What::Set(kept, expiry), None).map(|_| ())
    }

    /// Removes an entry.
    pub fn remove(&self, key: &CacheKey) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        if !self.moves {
            return self.send(&mut state, key, Command::Delete);
        }
        self.begin(&mut state, key, 0, What::Delete, None).map(|_| ())
    }

    /// The server of this entry has given another one.
    pub fn mistrust(&self, key: &CacheKey) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        if let Found::Peer(peer) = state.route.find(key.as_bytes()) {
            peer.mistrust();
        }
    }

    /// The server of this entry has given the one that was asked for. Whether any server is still
    /// to be mistrusted.
    pub fn trust(&self, key: &CacheKey) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return true };
        if let Found::Peer(peer) = state.route.find(key.as_bytes()) {
            peer.trust();
        }
        state.route.peers().any(|peer| peer.is_mistrusted())
    }

    /// Sends what waits and closes the connections; the worker exits.
    pub fn close(&self) {
        let Ok(state) = self.state.try_borrow() else { return };
        for peer in state.route.peers() {
            peer.close();
        }
        self.overdue.cancel();
        self.refresh.cancel();
    }

    /// The server of an entry, for a log.
    pub fn server(&self, key: &CacheKey) -> Option<String> {
        match self.state.try_borrow_mut().ok()?.route.find(key.as_bytes()) {
            Found::Peer(peer) | Found::Guess(peer) => Some(peer.to_string()),
            Found::Nobody => None,
        }
    }

    /// Who is not available when a request is refused, for a log.
    pub fn unavailable(&self) -> impl fmt::Display + '_ {
        Unavailable(self)
    }

    fn hash(&self, key: &CacheKey) -> u64 {
        self.hasher.hash_one(key.as_bytes())
    }

    /// Sends a request, of which the outcome is of interest.
    fn begin(
        &self,
        state: &mut State,
        key: &CacheKey,
        hash: u64,
        what: What,
        waiter: Option<Waiter>,
    ) -> Result<Token, Refused> {
        let deadline = clock::now_ms().saturating_add(self.fetch_timeout);
        let pending = Pending {
            key: key.clone(),
            hash,
            what,
            deadline,
            redirects: 0,
            waiter,
            joined: Vec::new(),
        };
        let token = state.pending.insert(pending).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        let peer = self.find(state, key);
        let sent = match (peer, state.pending.get(token)) {
            (Some(peer), Some(Pending { what, .. })) => {
                let command = what.command();
                peer.send(&Request { key: key.as_bytes(), command, asking: false }, Some(token))
            }
            _ => Err(Refused::Down),
        };
        if sent.is_err() {
            state.pending.remove(token);
        }
        sent.map(|()| token)
    }

    /// Sends a request whose outcome is nobody's business.
    fn send(&self, state: &mut State, key: &CacheKey, command: Command<'_>) -> Result<(), Refused> {
        let peer = self.find(state, key).ok_or(Refused::Down)?;
        peer.send(&Request { key: key.as_bytes(), command, asking: false }, None)
    }

    /// The server of an entry.
    fn find(&self, state: &mut State, key: &CacheKey) -> Option<Rc<Peer>> {
        match state.route.find(key.as_bytes()) {
            Found::Peer(peer) => Some(peer),
            Found::Guess(peer) => {
                self.ask_soon(state);
                Some(peer)
            }
            Found::Nobody => {
                self.ask_soon(state);
                None
            }
        }
    }

    /// Asks about the servers, as soon as that may be.
    fn ask_soon(&self, state: &mut State) {
        if !state.asking && state.route.can_ask() && !clock::is_exiting() {
            self.refresh.at(state.next_query.max(clock::now_ms()), false);
        }
    }

    /// A request is over: forgets it.
    fn end(&self, state: &mut State, token: Token) -> Option<Pending> {
        let pending = state.pending.remove(token)?;
        if state.lookups.get(&pending.hash) == Some(&token) {
            state.lookups.remove(&pending.hash);
        }
        Some(pending)
    }

    /// Tells those who wait, with nothing borrowed.
    fn tell(&self, pending: Pending, outcome: Outcome, value: &[u8]) {
        let Some(answers) = self.answers.get().and_then(Weak::upgrade) else { return };
        let mut first = true;
        for waiter in pending.waiter.into_iter().chain(pending.joined) {
            first &= !answers.answered(waiter, outcome, value, first);
        }
    }

    /// Ends a request with an outcome.
    fn finish(&self, token: Token, outcome: Outcome, value: &[u8]) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let Some(pending) = self.end(&mut state, token) else { return };
        drop(state);
        self.tell(pending, outcome, value);
    }

    /// Notes that a lookup ends at its own deadline, whatever its peer has still to say.
    fn watch(&self, state: &mut State, token: Token, deadline: u64) -> Result<(), Refused> {
        state.deadlines.try_reserve(1).map_err(|_| Refused::OutOfMemory)?;
        state.deadlines.push((deadline, token));
        self.overdue.at(deadline, false);
        Ok(())
    }

    /// Takes the second step of a take. `Err` is the outcome of the lookup.
    fn claim(&self, peer: &Peer, token: Token, value: &[u8], claim: u64) -> Result<(), Outcome> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Outcome::Error)?;
        let state = &mut *state;
        let Some(pending) = state.pending.get_mut(token) else { return Ok(()) };
        pending.what = What::Claim(buffer::copy(value).map_err(|OutOfMemory| Outcome::Error)?);
        let deadline = pending.deadline;
        let key = pending.key.clone();
        self.watch(state, token, deadline).map_err(|_| Outcome::Error)?;
        let command = Command::Claim(claim);
        let request = Request { key: key.as_bytes(), command, asking: false };
        peer.send(&request, Some(token)).map_err(|_| Outcome::Down)
    }

    /// Sends a request on to another node. `Err` is the outcome of the lookup.
    fn redirect(&self, from: &Peer, token: Token, to: &Node<'_>) -> Result<(), Outcome> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Outcome::Error)?;
        let state = &mut *state;
        if !to.ask {
            self.ask_soon(state);
        }
        let Some(pending) = state.pending.get_mut(token) else { return Ok(()) };
        pending.redirects = pending.redirects.saturating_add(1);
        let (redirects, deadline) = (pending.redirects, pending.deadline);
        let is_lookup = pending.what.is_lookup();
        if is_lookup && deadline <= clock::now_ms() {
            return Err(Outcome::Timeout);
        }
        if redirects > MAX_REDIRECTS {
            return Err(Outcome::Error);
        }
        let Some(peer) = state.route.redirected(from, to) else {
            self.ask_soon(state);
            return Err(Outcome::Error);
        };
        if is_lookup {
            self.watch(state, token, deadline).map_err(|_| Outcome::Error)?;
        }
        let Some(pending) = state.pending.get(token) else { return Ok(()) };
        let request = Request {
            key: pending.key.as_bytes(),
            command: pending.what.command(),
            asking: to.ask,
        };
        peer.send(&request, Some(token)).map_err(|_| Outcome::Down)
    }
}

impl Replies for Backend {
    fn replied(&self, peer: &Peer, waiter: Token, reply: Reply<'_>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let Some(pending) = state.pending.get_mut(waiter) else { return };
        // The entry of a take that is now certain.
        let claimed = match (&mut pending.what, &reply) {
            (What::Claim(value), Reply::Done) => Some(mem::take(value)),
            _ => None,
        };
        let asks = match &reply {
            Reply::Failed(_) => true,
            Reply::Refused(text) => state.route.is_news(peer, text),
            _ => false,
        };
        if asks {
            self.ask_soon(&mut state);
        }
        drop(state);
        let outcome = match reply {
            Reply::Value(value) => return self.finish(waiter, Outcome::Hit, value),
            Reply::Claim(value, claim) => match self.claim(peer, waiter, value, claim) {
                Ok(()) => return,
                Err(outcome) => outcome,
            },
            Reply::Redirect(to) => match self.redirect(peer, waiter, &to) {
                Ok(()) => return,
                Err(outcome) => outcome,
            },
            Reply::Done => match claimed {
                Some(value) => return self.finish(waiter, Outcome::Hit, &value),
                None => Outcome::Miss,
            },
            Reply::Missing => Outcome::Miss,
            Reply::Array(_) | Reply::Refused(_) => Outcome::Error,
            Reply::Failed(outcome) => outcome,
        };
        self.finish(waiter, outcome, &[]);
    }

    fn learned(&self, peer: &Peer, reply: Reply<'_>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.asking = false;
        state.next_query = clock::now_ms().saturating_add(REFRESH_PAUSE);
        state.route.learned(peer, &reply);
    }

    fn moved(&self, peer: &Peer, successor: Rc<Peer>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.route.replace(peer, successor);
    }
}

impl On<Overdue> for Backend {
    fn on(&self) {
        let now = clock::now_ms();
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let mut deadlines = mem::take(&mut state.deadlines);
        drop(state);
        // Nothing is borrowed: who is told may begin other lookups.
        deadlines.retain(|&(deadline, token)| {
            let is_due = deadline <= now;
            if is_due {
                self.finish(token, Outcome::Timeout, &[]);
            }
            !is_due
        });
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        // Those that have come meanwhile are few, if any.
        deadlines.append(&mut state.deadlines);
        state.deadlines = deadlines;
        if let Some(next) = state.deadlines.iter().map(|(deadline, _)| *deadline).min() {
            self.overdue.at(next, false);
        }
    }
}

impl On<Refresh> for Backend {
    fn on(&self) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        if state.asking {
            return;
        }
        state.next_query = clock::now_ms().saturating_add(REFRESH_PAUSE);
        state.asking = state.route.ask();
    }
}

struct Unavailable<'a>(&'a Backend);

impl fmt::Display for Unavailable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(state) = self.0.state.try_borrow() else { return Ok(()) };
        match state.route.only() {
            Some(peer) => write!(f, "{peer} is not available"),
            None => f.write_str("no server is available"),
        }
    }
}
