//! The servers of a backend: which of them has a session, and what becomes of a request.
//!
//! A request goes to one server. Identical lookups under way are one request. Redirections of a
//! Redis Cluster, and the second half of a take, happen within the deadline of the lookup.

use core::cell::{OnceCell, RefCell};
use core::fmt;
use core::hash::{BuildHasher, BuildHasherDefault, Hasher};
use core::{mem, ptr};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::rc::{Rc, Weak};
use std::string::{String, ToString};
use std::vec::Vec;

use session_core::buffer;
use session_core::cache_key::CacheKey;
use session_core::codec::{Expiry, OutOfMemory};
use session_core::hint::{Hint, Hinted};
use session_core::outcome::Outcome;
use session_core::slots::Slots;
use session_core::throttle::Throttle;
use zeroize::Zeroizing;

use super::peer::{Command, Node, Peer, Refused, Replies, Reply, Request, RequestToken, Requests};
use super::route::{Choice, Route};
use crate::ffi::clock;
use crate::ffi::event::{Event, Handle};
use crate::ffi::log::Log;
use crate::ffi::resolver::Resolver;
use crate::ffi::tls::HandshakeToken;
use crate::ffi::turn::Turn;
use crate::{debug, log_at};
use hedge::{Hedging, Next};

mod hedge;

/// How often one lookup is sent on. A cluster that is being changed needs two.
const MAX_REDIRECTS: u8 = 4;
/// The least time between two questions about the servers, in milliseconds.
const REFRESH_PAUSE: u64 = 250;

/// Who waits for the answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A handshake.
    Handshake {
        /// Which one.
        token: HandshakeToken,
        /// Which of its lookups.
        index: usize,
    },
    /// The worker, for the keys of stateless tickets.
    TicketKeys {
        /// Which of its lookups.
        index: usize,
    },
}

/// What became of a lookup.
#[derive(Clone, Copy)]
pub struct Answered<'a> {
    /// Who has asked.
    pub waiter: Waiter,
    /// Whether the backend has the entry.
    pub outcome: Outcome,
    /// The entry of a hit; empty otherwise.
    pub value: &'a [u8],
    /// Whether nobody else was there to hear it, of those who wait for the same answer: this one does
    /// what there is to do about the entry.
    pub first: bool,
    /// Who has given the entry of a hit.
    pub giver: &'a Giver,
}

/// Who may answer a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Whoever has the entry, also one that may not have heard of the last change.
    Any,
    /// The server that the entry belongs to, and no other.
    Owner,
}

/// The server that has given an entry, where the entry does not belong to it.
#[derive(Clone, Default)]
pub struct Giver(Option<Rc<Peer>>);

/// How a backend looks entries up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways {
    /// Whether entries may move between servers.
    pub moves: bool,
    /// How long a lookup may have no answer before it is made at a second server, in milliseconds.
    pub hedge: Option<u64>,
    /// Whether replicas are asked first.
    pub replica_reads: bool,
    /// The most that a lookup takes, in milliseconds.
    pub fetch_timeout: u64,
}

/// Takes the answers to lookups. Called in events of our own only, never while a lookup is begun.
pub trait Answers {
    /// A lookup has ended. Whether its waiter is still there.
    fn answered(&self, turn: &Turn, answer: Answered<'_>) -> bool;
}

/// The servers of a backend.
pub struct Backend {
    answers: OnceCell<Weak<dyn Answers>>,
    /// Whether what is stored and removed may have to be sent on.
    moves: bool,
    /// Whether lookups go to replicas first.
    replica_reads: bool,
    hasher: RandomState,
    state: RefCell<State>,
    /// It is time to ask about the servers.
    refresh: Event<Backend, Refresh>,
    /// It is time to make lookups at a second server.
    second: Event<Backend, Hedging>,
}

struct Refresh;

struct State {
    route: Route,
    pending: Slots<Requests, Pending>,
    /// Lookups that others may join, by the hash of their keys.
    lookups: HashMap<u64, RequestToken, BuildHasherDefault<Hashed>>,
    /// Lookups that are made at a second server when they have had no answer for some time.
    hedging: Option<Hedging>,
    /// Whether a question about the servers is under way.
    asking: bool,
    /// When the next one may be asked.
    next_query: u64,
    /// Of what nodes send on, and cannot be.
    misdirected: Throttle,
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
    redirects: u8,
    /// Whether it was made a second time.
    again: bool,
    /// When it was made at a replica, in microseconds, if its time tells how near that is.
    since: Option<u64>,
    waiter: Option<Waiter>,
    /// Others that have joined.
    joined: Vec<Waiter>,
}

impl Pending {
    /// A request of which nobody waits for the end.
    fn new(key: CacheKey, what: What) -> Self {
        Pending {
            key,
            hash: 0,
            what,
            redirects: 0,
            again: false,
            since: None,
            waiter: None,
            joined: Vec::new(),
        }
    }
}

enum What {
    Get(Get),
    /// The lookup of that request at a second server, which is a replica or the one that the entry
    /// belongs to.
    Hedge {
        of: RequestToken,
        replica: bool,
    },
    Take,
    /// The second half of a take, with the entry.
    Claim(Zeroizing<Vec<u8>>),
    Set(Zeroizing<Vec<u8>>, Expiry),
    Add(Zeroizing<Vec<u8>>, Expiry),
    Delete,
}

/// How a lookup that changes nothing goes on.
#[derive(Default)]
struct Get {
    at: At,
    /// It was made at a second server, where it has not ended.
    hedge: Option<RequestToken>,
    /// How it has ended at the first one, while it goes on at the second.
    ended: Option<Outcome>,
}

/// Who is asked for an entry.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    /// The server that it belongs to.
    #[default]
    Owner,
    /// A replica of that one.
    Replica,
    /// The server that it belongs to, and nobody else: a replica has not had it, or may not be asked.
    OwnerAlone,
}

impl What {
    fn command(&self) -> Command<'_> {
        match self {
            What::Get(_) | What::Hedge { .. } => Command::Get,
            // What a claim was for has moved: it is taken there.
            What::Take | What::Claim(_) => Command::Take,
            What::Set(value, expiry) => Command::Set { value, expiry: *expiry },
            What::Add(value, expiry) => Command::Add { value, expiry: *expiry },
            What::Delete => Command::Delete,
        }
    }

    fn is_lookup(&self) -> bool {
        self.changes_nothing() || matches!(self, What::Take | What::Claim(_))
    }

    fn is_at_replica(&self) -> bool {
        matches!(self, What::Get(Get { at: At::Replica, .. }) | What::Hedge { replica: true, .. })
    }

    fn changes_nothing(&self) -> bool {
        matches!(self, What::Get(_) | What::Hedge { .. })
    }
}

impl Backend {
    /// A backend whose servers `route` makes and chooses.
    pub fn new(ways: Ways, route: impl FnOnce(Weak<dyn Replies>) -> Route) -> Rc<Self> {
        Rc::new_cyclic(|this: &Weak<Backend>| Backend {
            answers: OnceCell::new(),
            moves: ways.moves,
            replica_reads: ways.replica_reads,
            hasher: RandomState::new(),
            state: RefCell::new(State {
                route: route(this.clone()),
                pending: Slots::new(),
                lookups: HashMap::default(),
                hedging: ways.hedge.map(|delay| Hedging::new(delay, ways.fetch_timeout)),
                asking: false,
                next_query: 0,
                misdirected: Throttle::new(),
            }),
            refresh: Event::new(this.clone()),
            second: Event::new(this.clone()),
        })
    }

    /// Says who takes the answers; once.
    pub fn set_answers(&self, answers: Weak<dyn Answers>) {
        // A second list of tiers with this backend has the same taker.
        let _ = self.answers.set(answers);
    }

    /// Says who resolves the names of servers from now on; once.
    pub fn set_resolver(&self, resolver: &Resolver) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.route.set_resolver(resolver);
        }
    }

    /// Looks an entry up; [`Answers::answered`] tells the end. Whether it waits for the answer to
    /// an earlier lookup.
    pub fn fetch(&self, key: &CacheKey, waiter: Waiter, source: Source) -> Result<bool, Refused> {
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
        let near = match self.replica_reads && source == Source::Any {
            true => {
                // Whether the servers have to be asked for is seen where the entry belongs.
                self.find(state, key);
                state.route.replica(key.as_bytes())
            }
            false => None,
        };
        let at = match (source, &near) {
            (Source::Owner, _) => At::OwnerAlone,
            (Source::Any, None) => At::Owner,
            (Source::Any, Some(_)) => At::Replica,
        };
        let begun = self.begin_get(state, key, hash, waiter, at, near);
        let token = match (begun, source) {
            (Err(refused), Source::Any) if state.hedging.is_some() => {
                // A server that is down is not waited for, and costs no share.
                let replica = state.route.replica(key.as_bytes()).ok_or(refused)?;
                self.begin_get(state, key, hash, waiter, At::Replica, Some(replica))?
            }
            (begun, _) => begun?,
        };
        state.lookups.insert(hash, token);
        if source == Source::Any {
            self.may_hedge(state, token);
        }
        Ok(false)
    }

    /// Looks an entry up and removes it, so that nobody else gets it.
    pub fn take(&self, key: &CacheKey, waiter: Waiter) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        self.begin(&mut state, key, 0, What::Take, Some(waiter), None).map(|_| ())
    }

    /// Stores an entry.
    pub fn store(&self, key: &CacheKey, value: &[u8], expiry: Expiry) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        if !self.moves {
            return self.send(&mut state, key, Command::Set { value, expiry });
        }
        let kept = buffer::copy(value).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        self.begin(&mut state, key, 0, What::Set(kept, expiry), None, None).map(|_| ())
    }

    /// Stores an entry if there is none.
    pub fn add(&self, key: &CacheKey, value: &[u8], expiry: Expiry) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        let kept = buffer::copy(value).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        self.begin(&mut state, key, 0, What::Add(kept, expiry), None, None).map(|_| ())
    }

    /// Removes an entry.
    pub fn remove(&self, key: &CacheKey) -> Result<(), Refused> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Refused::Down)?;
        if !self.moves {
            return self.send(&mut state, key, Command::Delete);
        }
        self.begin(&mut state, key, 0, What::Delete, None, None).map(|_| ())
    }

    /// Whether what is to be stored would arrive, as far as is known.
    pub fn accepts_stores(&self) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let accepts = state.route.accepts_stores();
        if !accepts {
            // Nobody else may do so: there are no requests then.
            self.ask_soon(&mut state);
        }
        accepts
    }

    /// Another entry was given than the one that was asked for.
    pub fn suspect(&self, key: &CacheKey, giver: &Giver) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        if let Some(peer) = state.giver(key, giver) {
            peer.suspect();
        }
    }

    /// The entry was given that was asked for. Whether any server is still doubtful.
    pub fn trust(&self, key: &CacheKey, giver: &Giver) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return true };
        if let Some(peer) = state.giver(key, giver) {
            peer.trust();
        }
        state.route.peers().any(|peer| peer.is_doubtful())
    }

    /// Sends what waits and closes the connections; the worker exits.
    pub fn close(&self, turn: &Turn) {
        let Ok(state) = self.state.try_borrow() else { return };
        for peer in state.route.peers() {
            peer.close(turn);
        }
        self.refresh.cancel();
        self.second.cancel();
    }

    /// The server that has given an entry, for a log.
    pub fn server(&self, key: &CacheKey, giver: &Giver) -> Option<String> {
        if let Giver(Some(peer)) = giver {
            return Some(peer.to_string());
        }
        match self.state.try_borrow_mut().ok()?.route.find(key.as_bytes()) {
            Choice::Peer(peer) | Choice::Guess(peer) => Some(peer.to_string()),
            Choice::Nobody => None,
        }
    }

    /// Who is not available when a request is refused, for a log.
    pub fn unavailable(&self) -> impl fmt::Display + '_ {
        Unavailable(self)
    }

    fn hash(&self, key: &CacheKey) -> u64 {
        self.hasher.hash_one(key.as_bytes())
    }

    /// Begins a lookup that changes nothing: at `near`, or where the entry belongs.
    fn begin_get(
        &self,
        state: &mut State,
        key: &CacheKey,
        hash: u64,
        waiter: Waiter,
        at: At,
        near: Option<Rc<Peer>>,
    ) -> Result<RequestToken, Refused> {
        let what = What::Get(Get { at, ..Get::default() });
        self.begin(state, key, hash, what, Some(waiter), near)
    }

    /// Sends a request, of which the outcome is of interest: to `near`, if that takes it.
    fn begin(
        &self,
        state: &mut State,
        key: &CacheKey,
        hash: u64,
        what: What,
        waiter: Option<Waiter>,
        near: Option<Rc<Peer>>,
    ) -> Result<RequestToken, Refused> {
        let pending = Pending { hash, waiter, ..Pending::new(key.clone(), what) };
        let token = state.pending.insert(pending).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        if let Some(near) = near {
            if state.ask_replica(&near, token, None).is_ok() {
                return Ok(token);
            }
            if let Some(Pending { what: What::Get(get), .. }) = state.pending.get_mut(token) {
                get.at = At::OwnerAlone;
            }
        }
        let peer = self.find(state, key);
        let sent = peer.map_or(Err(Refused::Down), |peer| state.ask(&peer, token, None));
        if sent.is_err() {
            state.pending.remove(token);
        }
        sent.map(|()| token)
    }

    /// Sends a request whose outcome is nobody's business.
    fn send(&self, state: &mut State, key: &CacheKey, command: Command<'_>) -> Result<(), Refused> {
        let peer = self.find(state, key).ok_or(Refused::Down)?;
        peer.send(&Request { key: key.as_bytes(), command, asking: false }, None, None)
    }

    /// The server of an entry.
    fn find(&self, state: &mut State, key: &CacheKey) -> Option<Rc<Peer>> {
        match state.route.find(key.as_bytes()) {
            Choice::Peer(peer) => Some(peer),
            Choice::Guess(peer) => {
                self.ask_soon(state);
                Some(peer)
            }
            Choice::Nobody => {
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
    fn end(&self, state: &mut State, token: RequestToken) -> Option<Pending> {
        let pending = state.pending.remove(token)?;
        if state.lookups.get(&pending.hash) == Some(&token) {
            state.lookups.remove(&pending.hash);
        }
        Some(pending)
    }

    /// Tells those who wait, with nothing borrowed.
    fn tell(&self, turn: &Turn, pending: Pending, ended: &Ended<'_>) {
        let Some(answers) = self.answers.get().and_then(Weak::upgrade) else { return };
        let Ended { outcome, value, giver } = ended;
        let (outcome, mut first) = (*outcome, true);
        for waiter in pending.waiter.into_iter().chain(pending.joined) {
            first &= !answers.answered(turn, Answered { waiter, outcome, value, first, giver });
        }
    }

    /// A request has ended at `peer`: ends it, unless it goes on at another server.
    fn finish(
        &self,
        turn: &Turn,
        peer: &Peer,
        token: RequestToken,
        deadline: u64,
        (outcome, value): (Outcome, &[u8]),
    ) {
        let Ok(mut guard) = self.state.try_borrow_mut() else { return };
        let state = &mut *guard;
        let mut ended = Ended { outcome, value, giver: Giver::default() };
        let mut token = token;
        if let Some(pending) = state.pending.get(token).filter(|it| it.what.is_at_replica()) {
            peer.measured(pending.since, outcome);
        }
        let hedges = state.hedging.is_some();
        match state.pending.get_mut(token).map(|pending| &mut pending.what) {
            Some(What::Hedge { .. }) => match state.hedge_ended(peer, token, ended) {
                Some((first, how)) => (token, ended) = (first, how),
                None => return,
            },
            Some(What::Get(get)) if get.at == At::Replica && outcome == Outcome::Hit => {
                ended.giver = Giver(peer.this());
            }
            Some(What::Get(get)) => {
                let next = get.next(outcome, deadline > clock::now_ms(), hedges);
                let waits = match next {
                    Next::End => false,
                    Next::Wait => true,
                    Next::AskReplica => state.goes_on_elsewhere(token, deadline),
                    Next::AskOwner => match self.ask_owner(state, peer, token, deadline) {
                        Ok(()) => return,
                        Err(_) => {
                            ended.outcome = Outcome::Down;
                            false
                        }
                    },
                };
                if let (true, Some(get)) = (waits, state.get(token)) {
                    get.ended = Some(outcome);
                    return;
                }
            }
            _ => {}
        }
        let Some(pending) = self.end(state, token) else { return };
        drop(guard);
        self.tell(turn, pending, &ended);
    }

    /// A replica has ended a lookup without an entry: makes it at the server that the entry belongs to.
    fn ask_owner(
        &self,
        state: &mut State,
        replica: &Peer,
        token: RequestToken,
        deadline: u64,
    ) -> Result<(), Refused> {
        replica.passed_on();
        let Some(Pending { key, what: What::Get(get), again, .. }) = state.pending.get_mut(token)
        else {
            return Err(Refused::Down);
        };
        get.at = At::OwnerAlone;
        // That was a connection to the replica.
        *again = false;
        let key = key.clone();
        let owner = self.find(state, &key).ok_or(Refused::Down)?;
        debug!(Log::cycle(), "SSL session backend {replica}: has no answer, {owner} is asked");
        state.ask(&owner, token, Some(deadline))
    }

    /// Takes the second step of a take. `Err` is the outcome of the lookup.
    fn claim(
        &self,
        peer: &Peer,
        token: RequestToken,
        deadline: u64,
        value: &[u8],
        claim: u64,
    ) -> Result<(), Outcome> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Outcome::Error)?;
        let state = &mut *state;
        let Some(pending) = state.pending.get_mut(token) else { return Ok(()) };
        pending.what = What::Claim(buffer::copy(value).map_err(|OutOfMemory| Outcome::Error)?);
        let key = pending.key.clone();
        let command = Command::Claim(claim);
        let request = Request { key: key.as_bytes(), command, asking: false };
        peer.send(&request, Some(token), Some(deadline)).map_err(|_| Outcome::Down)
    }

    /// Makes a request a second time, as the connection was to blame that it has no answer, or was
    /// `refused`. Whether that was possible.
    fn again(&self, peer: &Peer, token: RequestToken, deadline: u64, refused: bool) -> bool {
        let Ok(mut state) = self.state.try_borrow_mut() else { return false };
        let Some(pending) = state.pending.get_mut(token) else { return false };
        let first = !mem::replace(&mut pending.again, true);
        // What changes something, and was not refused, may have been carried out.
        let harmless = refused || pending.what.changes_nothing();
        let deadline = pending.what.is_lookup().then_some(deadline);
        if !first || !harmless || deadline.is_some_and(|deadline| deadline <= clock::now_ms()) {
            return false;
        }
        state.ask(peer, token, deadline).is_ok()
    }

    /// Sends a request on to another node. `Err` is the outcome of the lookup.
    fn redirect(
        &self,
        from: &Peer,
        token: RequestToken,
        deadline: u64,
        to: &Node<'_>,
    ) -> Result<(), Outcome> {
        let mut state = self.state.try_borrow_mut().map_err(|_| Outcome::Error)?;
        let state = &mut *state;
        if !to.ask {
            self.ask_soon(state);
        }
        let Some(pending) = state.pending.get_mut(token) else { return Ok(()) };
        pending.redirects = pending.redirects.saturating_add(1);
        let redirects = pending.redirects;
        let is_lookup = pending.what.is_lookup();
        if let What::Get(get) = &mut pending.what {
            if get.at == At::Replica {
                from.passed_on();
                get.at = At::OwnerAlone;
            }
        }
        // The one that it would be sent to is asked already.
        if matches!(pending.what, What::Hedge { replica: true, .. }) {
            return Err(Outcome::Error);
        }
        if is_lookup && deadline <= clock::now_ms() {
            return Err(Outcome::Timeout);
        }
        if redirects > MAX_REDIRECTS {
            from.misdirected();
            if let Some(times) = state.misdirected.pass(clock::now_ms()) {
                log_at!(
                    Log::cycle(),
                    Error,
                    "{from} sends on what was sent on {MAX_REDIRECTS} times ({times} times){}",
                    from.doing(None)
                );
            }
            return Err(Outcome::Error);
        }
        let Some(peer) = state.route.redirected(from, to) else {
            from.misdirected();
            self.ask_soon(state);
            return Err(Outcome::Error);
        };
        // Another node has its place, at an address that leads to both.
        if ptr::eq(Rc::as_ptr(&peer), from) && !from.renew() {
            from.misdirected();
            if let Some(times) = state.misdirected.pass(clock::now_ms()) {
                let hint = Hinted(Some(Hint::OwnAddress));
                log_at!(
                    Log::cycle(),
                    Error,
                    "{from} sends to its own address ({times} times){hint}{}",
                    from.doing(None)
                );
            }
            return Err(Outcome::Error);
        }
        let Some(pending) = state.pending.get(token) else { return Ok(()) };
        let request = Request {
            key: pending.key.as_bytes(),
            command: pending.what.command(),
            asking: to.ask,
        };
        peer.send(&request, Some(token), is_lookup.then_some(deadline)).map_err(|_| Outcome::Down)
    }
}

/// How a request has ended.
struct Ended<'a> {
    outcome: Outcome,
    value: &'a [u8],
    giver: Giver,
}

impl State {
    /// Makes a request that is under way at a server.
    fn ask(&self, peer: &Peer, token: RequestToken, deadline: Option<u64>) -> Result<(), Refused> {
        let Some(Pending { key, what, .. }) = self.pending.get(token) else {
            return Err(Refused::Down);
        };
        let request = Request { key: key.as_bytes(), command: what.command(), asking: false };
        peer.send(&request, Some(token), deadline)
    }

    /// The same of a lookup at a replica.
    fn ask_replica(
        &mut self,
        peer: &Peer,
        token: RequestToken,
        deadline: Option<u64>,
    ) -> Result<(), Refused> {
        if let Some(pending) = self.pending.get_mut(token) {
            pending.since = peer.measure();
        }
        self.ask(peer, token, deadline)
    }

    /// A lookup that changes nothing.
    fn get(&mut self, token: RequestToken) -> Option<&mut Get> {
        match &mut self.pending.get_mut(token)?.what {
            What::Get(get) => Some(get),
            _ => None,
        }
    }

    /// The server that has given an entry.
    fn giver(&mut self, key: &CacheKey, giver: &Giver) -> Option<Rc<Peer>> {
        match (giver, self.route.find(key.as_bytes())) {
            (Giver(Some(peer)), _) => Some(Rc::clone(peer)),
            (_, Choice::Peer(peer)) => Some(peer),
            _ => None,
        }
    }
}

impl Replies for Backend {
    fn replied(
        &self,
        turn: &Turn,
        peer: &Peer,
        waiter: RequestToken,
        deadline: u64,
        reply: Reply<'_>,
    ) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        // The entry of a take that is now certain.
        let claimed = match (state.pending.get_mut(waiter).map(|it| &mut it.what), &reply) {
            (Some(What::Claim(value)), Reply::Done) => Some(mem::take(value)),
            _ => None,
        };
        // Also of a lookup that has ended with the answer of another server.
        let asks = match &reply {
            Reply::Failed(_) => true,
            Reply::Refused(text) => state.route.is_news(peer, text),
            _ => false,
        };
        if asks {
            self.ask_soon(&mut state);
        }
        drop(state);
        let finish = |ended| self.finish(turn, peer, waiter, deadline, ended);
        let outcome = match reply {
            Reply::Value(value) => return finish((Outcome::Hit, value)),
            Reply::Claim(value, claim) => match self.claim(peer, waiter, deadline, value, claim) {
                Ok(()) => return,
                Err(outcome) => outcome,
            },
            Reply::Redirect(to) => match self.redirect(peer, waiter, deadline, &to) {
                Ok(()) => return,
                Err(outcome) => outcome,
            },
            Reply::Done => match claimed {
                Some(value) => return finish((Outcome::Hit, &value)),
                None => Outcome::Miss,
            },
            Reply::Missing => Outcome::Miss,
            Reply::Refused(text) if peer.leads_elsewhere(text) => {
                match self.again(peer, waiter, deadline, true) {
                    true => return,
                    false => Outcome::Error,
                }
            }
            Reply::Array(_) | Reply::Refused(_) => Outcome::Error,
            Reply::Failed(outcome) => outcome,
            Reply::Again(outcome) => match self.again(peer, waiter, deadline, false) {
                true => return,
                false => outcome,
            },
        };
        finish((outcome, &[]));
    }

    fn learned(&self, turn: &Turn, peer: &Peer, reply: Reply<'_>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.asking = false;
        state.next_query = clock::now_ms().saturating_add(REFRESH_PAUSE);
        state.route.learned(turn, peer, &reply);
    }

    fn moved(&self, turn: &Turn, peer: &Peer, successor: Rc<Peer>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.route.replace(turn, peer, successor);
    }
}

impl Handle<Refresh> for Backend {
    fn fired(&self, _: &mut Turn) {
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
