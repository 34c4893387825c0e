//! The conversation over one connection to a server, without I/O.
//!
//! Bytes and a clock go in; bytes, the ends of requests and the next deadline come out. Who moves
//! the bytes calls [`Conversation::connected`], with the password as it is then, writes what [`Conversation::unsent`] has, reads into
//! [`Conversation::input`], and hands what [`Conversation::take_ends`] gives to whoever waits. A
//! connection that is lost, or of no more use, ends with [`Conversation::fail`]: nothing of it is
//! left.
//!
//! What holds here:
//!
//! - A request ends once: with its answer, at its deadline, or with the connection.
//! - Answers come in the order of the requests. A request whose deadline passes keeps its place, so
//!   that its late answer is discarded in its turn.
//! - Nothing but the greeting is written before the server has accepted the greeting: it would be
//!   carried out all the same, as somebody else or somewhere else.
//! - Only a complete answer is a sign of life. A connection on which none has come in the whole
//!   timeout of the request in front is silent: whoever moves the bytes finds out by another one
//!   whether the server works. Nothing ends by it but what is late. After [`Limits::silence`] of
//!   such timeouts the connection is given up.
//! - A connection that was idle may be dead without anybody having said so. It is silent sooner:
//!   there has to be time to ask again.
//!
//! Times are in milliseconds of a clock that does not go back, and that does not stand still while
//! other work is done.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::ops::Range;
use core::str;

use crate::buffer::{self, Secret};
use crate::codec::{
    Answer, Codec, DecodeError, Expected, Expiry, OutOfMemory, Place, Redirect, Unfit,
};
use crate::hint::Hint;
use crate::inflight::{self, InFlight, Kind};
use crate::outcome::Outcome;
use crate::resp;
use crate::said::Said;

/// The most that waits to be written, in bytes. Beyond it the queue counts as full.
const MAX_UNSENT: usize = 4 * 1024 * 1024;
/// The most that may come between two answers and answer nothing, in bytes.
const MAX_ASIDE: usize = 64 * 1024;
/// Who has said nothing for so long may have been forgotten by what is between, in milliseconds.
pub const IDLE: u64 = 1000;
/// After so many timeouts without a lookup that is answered in time the server is too slow.
const SLOW: u64 = 20;
/// The longest value that is skipped, in bytes. What lies behind a longer one had better be asked
/// for again, on another connection.
const MAX_SKIPPED: usize = 64 * 1024;
/// So many suspect replies in a row end a connection, before any more entries are removed for it: they
/// may be good.
const MAX_SUSPECT: u32 = 2;

/// Limits of a conversation. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a handshake waits for an answer.
    pub fetch_timeout: u64,
    /// How long anything else waits for one.
    pub store_timeout: u64,
    /// How long the server has to accept the greeting.
    pub greet_timeout: u64,
    /// After how many timeouts of silence the server counts as mute.
    pub mute: u64,
    /// After how many timeouts of silence the connection is given up.
    pub silence: u64,
    /// How many requests may be unanswered, those included whose deadline has passed.
    pub queue: usize,
    /// The longest value, in bytes.
    pub max_value: usize,
    /// Whether redirections are replies, and no refusals.
    pub redirects: bool,
}

/// A request about one entry.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The name of the entry.
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
    /// Write it if there is none.
    Add {
        /// The entry.
        value: &'a [u8],
        /// How long it is kept.
        expiry: Expiry,
    },
    /// Remove it.
    Delete,
}

impl Command<'_> {
    /// What kind of request it is, with whoever waits for its end.
    pub fn kind<W>(&self, waiter: Option<W>) -> Kind<W> {
        match (self, waiter) {
            (Command::Get, Some(waiter)) => Kind::Fetch(waiter),
            (Command::Take, Some(waiter)) => Kind::Take(waiter),
            (Command::Claim(_), Some(waiter)) => Kind::Claim(waiter),
            (_, waiter) => Kind::Update(waiter),
        }
    }
}

/// Why a request was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many requests have no answer.
    Full,
    /// There is no memory.
    OutOfMemory,
}

/// How a request ended.
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
    /// There was no proper answer.
    Failed(Outcome),
    /// There was no answer, for which the connection is to blame and not the server. Only of a
    /// request that changes nothing: it may be made again, on another connection, or ends so.
    Again(Outcome),
}

/// The server that another one sends a request to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Whether this holds for the one request only (`ASK`), or for the slot (`MOVED`).
    pub ask: bool,
    /// The slot of the entry's key.
    pub slot: u16,
    /// The server's address or name; empty for the host of the server that said it.
    pub host: &'a str,
    /// The server's port.
    pub port: u16,
}

/// What a server said when it refused a request, for a log.
#[derive(Clone, Copy, Debug)]
pub enum Refusal<'a> {
    /// An error, in the server's words.
    Error(&'a [u8]),
    /// Another server, where none is to be followed.
    Redirect(Node<'a>),
}

impl Refusal<'_> {
    /// What an operator can do about it.
    pub fn hint<'c>(&self, codec: &'c dyn Codec) -> Option<Hint<'c>> {
        match self {
            Refusal::Error(text) => codec.hint(text, None),
            Refusal::Redirect(_) => Some(Hint::Cluster),
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Error(text) => Said(text).fmt(f),
            Refusal::Redirect(Node { ask, slot, host, port }) => {
                let word = if *ask { "ASK" } else { "MOVED" };
                write!(f, "{word} {slot} {host}:{port}")
            }
        }
    }
}

/// Why a connection is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No complete answer came for so many milliseconds.
    Silent(u64),
    /// Lookups were answered, but none in time for so many milliseconds.
    Slow(u64),
    /// No complete answer came for so many milliseconds, while the server answered on another
    /// connection.
    Dead(u64),
    /// An entry of so many bytes, which are not waited for. Its lookup has ended.
    Oversized(usize),
    /// A reply that no request leads to.
    OutOfStep,
    /// Replies with other sessions than those asked for.
    Suspect,
    /// More that answers no request than is let pass.
    Unasked,
    /// The server is not, or no longer, the master.
    NotMaster,
    /// What came is no reply.
    Decode(DecodeError),
    /// The server did not accept the greeting, in its words.
    Greeting(Box<str>),
    /// The server did not accept the password, in its words.
    Password(Box<str>),
}

impl Failure {
    /// What this means for those who wait.
    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::Silent(_) | Failure::Slow(_) | Failure::Dead(_) => Outcome::Timeout,
            _ => Outcome::Error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Silent(ms) => write!(f, "no answer within {ms} ms"),
            Failure::Slow(ms) => write!(f, "no answer in time for {ms} ms"),
            Failure::Dead(ms) => write!(f, "no answer within {ms} ms on this connection"),
            Failure::Oversized(len) => write!(f, "entry of {len} bytes"),
            Failure::OutOfStep => f.write_str("reply to no request"),
            Failure::Suspect => f.write_str("reply with another session"),
            Failure::Unasked => f.write_str("too many messages that answer no request"),
            Failure::NotMaster => f.write_str("server is not the master"),
            Failure::Decode(error) => error.fmt(f),
            Failure::Greeting(text) | Failure::Password(text) => {
                write!(f, "server refused: \"{text}\"")
            }
        }
    }
}

/// The conversation over one connection. `W` names who waits for an answer.
pub struct Conversation<W> {
    codec: Rc<dyn Codec>,
    limits: Limits,
    stage: Stage,
    inflight: InFlight<W>,
    /// Requests that have still to be written, and how much of them, or of the greeting before it
    /// is accepted, has been.
    out: Vec<u8>,
    sent: usize,
    /// The greeting while it has to be written, in a buffer of its own, which does not grow and
    /// leave a password behind.
    greeting: Vec<u8>,
    /// The password that is in it, until it is accepted.
    password: Option<Secret>,
    /// How many steps of the greeting have no answer.
    steps: usize,
    /// Whether the greeting is a probe, and so shows that the server works.
    probe: bool,
    /// What has been read, how much of it has been decoded, and how far the answer after that.
    input: Vec<u8>,
    decoded: usize,
    place: Place,
    /// How many bytes of a value that is too long are still to come.
    skip: usize,
    /// How many bytes have answered nothing since the last answer.
    aside: usize,
    /// When the last answer was complete, or else when requests could be written.
    heard: u64,
    /// Whether it has shown nothing since it was idle.
    stale: bool,
    /// Whether it is silent, as [`Conversation::tick`] has found.
    silent: bool,
    /// Whether it has been silent for so long that the server may be down, and since when, until that is
    /// asked.
    mute: bool,
    muted: Option<u64>,
    /// When the first lookup was late after the last one that was not.
    late_since: Option<u64>,
    /// How many answers in a row may have belonged to another request.
    suspect: u32,
    /// Whether the server has given a proper answer to a request, and whether it has given one in
    /// time since [`Conversation::take_good`].
    proven: bool,
    good: bool,
    /// Whether anything has come.
    is_heard: bool,
    /// Whether a probe was accepted since [`Conversation::take_accepted`].
    accepted: bool,
    /// Whether anything but a step of the greeting was answered, or the greeting to its end, since
    /// [`Conversation::take_answered`].
    answered: bool,
    /// Whether the server has refused a request.
    has_refused: bool,
    ends: Vec<End<W>>,
    counts: Counts,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is not there.
    Opening,
    /// The server has the greeting, or is about to get it, and has to accept it.
    Greeting { since: u64, by: u64 },
    /// Requests are written.
    Open,
}

/// Nothing has been heard since `since`, of which the connection has to be asked about from `from`
/// on, which the server is blamed for from `mute` on, and which ends it at `until`.
struct Silence {
    since: u64,
    from: u64,
    mute: u64,
    until: u64,
}

/// What happened since it was counted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose deadline has passed.
    pub late: u64,
    /// Requests that the server has refused.
    pub refused: u64,
}

/// The end of a request, with places in what was read.
struct End<W> {
    kind: Kind<W>,
    deadline: u64,
    answer: Result<Answer, Outcome>,
    /// Whether it may be made again, having no answer.
    again: bool,
    /// Whether nobody has to be told: the waiter was told earlier, or there is none.
    told: bool,
    /// Whether the server refused the request.
    refused: bool,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended<'a, W> {
    /// What kind of request it was.
    pub kind: Kind<W>,
    /// When nobody would have wanted the answer any more.
    pub deadline: u64,
    /// How it ended, if anybody wants to know.
    pub reply: Option<Reply<'a>>,
    /// What the server said if it refused the request.
    pub refusal: Option<Refusal<'a>>,
}

/// Requests that have ended, with the bytes in which their answers lie.
pub struct Ends<W> {
    ends: Vec<End<W>>,
    input: Vec<u8>,
}

impl<W> Drop for Ends<W> {
    fn drop(&mut self) {
        buffer::wipe(&mut self.input);
    }
}

impl<W: Copy> Ends<W> {
    /// The requests, in the order in which they have ended.
    pub fn iter(&self) -> impl Iterator<Item = Ended<'_, W>> {
        self.ends.iter().map(|end| end.show(&self.input))
    }
}

impl<W: Copy> End<W> {
    fn show<'a>(&'a self, input: &'a [u8]) -> Ended<'a, W> {
        let bytes = |place: &Range<usize>| input.get(place.clone()).unwrap_or_default();
        let node = |redirect: &Redirect| Node {
            ask: redirect.ask,
            slot: redirect.slot,
            host: str::from_utf8(bytes(&redirect.host)).unwrap_or_default(),
            port: redirect.port,
        };
        let refusal = match &self.answer {
            Ok(Answer::Refused(place)) if self.refused => Some(Refusal::Error(bytes(place))),
            Ok(Answer::Redirect(redirect)) if self.refused => {
                Some(Refusal::Redirect(node(redirect)))
            }
            _ => None,
        };
        let reply = match &self.answer {
            Ok(Answer::Value(place)) => Reply::Value(bytes(place)),
            Ok(Answer::Claim(place, claim)) => Reply::Claim(bytes(place), *claim),
            Ok(Answer::Missing) => Reply::Missing,
            Ok(Answer::Done) => Reply::Done,
            Ok(Answer::Redirect(redirect)) if !self.refused => Reply::Redirect(node(redirect)),
            Ok(Answer::Array(place)) => Reply::Array(bytes(place)),
            Ok(Answer::Refused(place)) => Reply::Refused(bytes(place)),
            Ok(Answer::Redirect(_) | Answer::TooLarge(_) | Answer::Aside) => {
                Reply::Failed(Outcome::Error)
            }
            Err(outcome) if self.again => Reply::Again(*outcome),
            Err(outcome) => Reply::Failed(*outcome),
        };
        let Self { kind, deadline, .. } = *self;
        Ended { kind, deadline, reply: (!self.told).then_some(reply), refusal }
    }
}

impl<W: Copy> Conversation<W> {
    /// A conversation that begins with the codec's greeting. `probe`: nothing is asked of the
    /// server but whether it works.
    pub fn new(codec: Rc<dyn Codec>, limits: Limits, probe: bool) -> Result<Self, OutOfMemory> {
        let steps = codec.greeting_steps(probe);
        let mut inflight = InFlight::new();
        inflight.reserve(steps)?;
        for step in 0..steps {
            inflight.push(Kind::Greeting(step), 0, 0, None);
        }
        Ok(Conversation {
            codec,
            limits,
            stage: Stage::Opening,
            inflight,
            out: Vec::new(),
            sent: 0,
            greeting: Vec::new(),
            password: None,
            steps,
            probe,
            input: Vec::new(),
            decoded: 0,
            place: Place::default(),
            skip: 0,
            aside: 0,
            heard: 0,
            stale: false,
            silent: false,
            mute: false,
            muted: None,
            late_since: None,
            suspect: 0,
            proven: false,
            good: false,
            is_heard: false,
            accepted: false,
            answered: false,
            has_refused: false,
            ends: Vec::new(),
            counts: Counts::default(),
        })
    }

    /// Makes a request. Its waiter, if there is one, is among [`Conversation::take_ends`] once. A
    /// `deadline` holds in place of the timeout. Returns the deadline as it is now; it may become a
    /// later one.
    pub fn request(
        &mut self,
        now: u64,
        request: &Request<'_>,
        waiter: Option<W>,
        deadline: Option<u64>,
    ) -> Result<u64, Refused> {
        let Request { key, command, asking } = *request;
        self.push(now, command.kind(waiter), asking, deadline, |codec, out| match command {
            Command::Get => codec.get(key, out),
            Command::Take => codec.take(key, out),
            Command::Claim(claim) => codec.claim(key, claim, out),
            Command::Set { value, expiry } => codec.set(key, value, expiry, out),
            Command::Add { value, expiry } => codec.add(key, value, expiry, out),
            Command::Delete => codec.delete(key, out),
        })
    }

    /// Asks the server about itself and its like. Returns the deadline, as
    /// [`Conversation::request`].
    pub fn query(
        &mut self,
        now: u64,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<u64, Refused> {
        self.push(now, Kind::Query, false, None, |_, out| encode(out))
    }

    fn push(
        &mut self,
        now: u64,
        kind: Kind<W>,
        asking: bool,
        deadline: Option<u64>,
        encode: impl FnOnce(&dyn Codec, &mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<u64, Refused> {
        let unanswered = self.inflight.len().saturating_sub(self.steps);
        if unanswered >= self.limits.queue || self.waiting() >= MAX_UNSENT {
            return Err(Refused::Full);
        }
        // Room for the end of each, so that none can be forgotten for want of memory.
        let pending = self.inflight.len().saturating_add(2);
        self.ends.try_reserve(pending).map_err(|_| Refused::OutOfMemory)?;
        self.inflight.reserve(2).map_err(|OutOfMemory| Refused::OutOfMemory)?;
        let start = self.out.len();
        let asked = if asking { resp::asking(&mut self.out) } else { Ok(()) };
        if asked.and_then(|()| encode(&*self.codec, &mut self.out)).is_err() {
            self.out.truncate(start);
            return Err(Refused::OutOfMemory);
        }
        if self.is_open() && self.inflight.is_empty() {
            self.stale |= now.saturating_sub(self.heard) >= IDLE;
        }
        if asking {
            self.inflight.push(Kind::Asking, now, 0, None);
        }
        let timeout = match kind {
            Kind::Update(_) => self.limits.store_timeout,
            Kind::Fetch(_) | Kind::Take(_) | Kind::Claim(_) | Kind::Query => {
                self.limits.fetch_timeout
            }
            Kind::Greeting(_) | Kind::Asking => 0,
        };
        self.inflight.push(kind, now, timeout, deadline);
        Ok(deadline.unwrap_or(now.saturating_add(timeout)))
    }

    /// The turn ends in which requests were made. Those that have to wait for the connection do so
    /// from `now` on.
    pub fn submit(&mut self, now: u64) {
        self.inflight.submitted(now);
    }

    /// The connection can be written to. It is greeted with this password, where one is wanted.
    pub fn connected(&mut self, now: u64, password: &Secret) -> Result<(), OutOfMemory> {
        if self.stage != Stage::Opening {
            return Ok(());
        }
        self.codec.greet(self.probe, password, &mut self.greeting)?;
        self.password = Some(Rc::clone(password));
        self.heard = now;
        let by = now.saturating_add(self.limits.greet_timeout);
        self.stage = if self.steps == 0 { Stage::Open } else { Stage::Greeting { since: now, by } };
        Ok(())
    }

    /// The connection has ended with [`Failure::Password`], and there is another password: waits for
    /// another connection, to be greeted with that. What waits to be asked goes on waiting; nothing
    /// of it was written. `false`, and nothing is changed, if it is the password that was refused.
    pub fn restart(&mut self, password: &[u8]) -> bool {
        let refused = self.password.as_ref().is_some_and(|sent| sent.as_slice() == password);
        let nothing_accepted = self.steps == self.codec.greeting_steps(self.probe);
        if refused || !nothing_accepted || !matches!(self.stage, Stage::Greeting { .. }) {
            return false;
        }
        self.stage = Stage::Opening;
        self.password = None;
        self.sent = 0;
        self.decoded = 0;
        self.place = Place::default();
        self.aside = 0;
        self.is_heard = false;
        buffer::empty(&mut self.greeting);
        buffer::empty(&mut self.input);
        true
    }

    /// What is to be written at `now`; empty if there is nothing. Requests that are made since the
    /// last call, and are in it, have their whole timeout from now on.
    ///
    /// Nothing is written once [`Conversation::is_suspect`], whoever is first to write or to end the
    /// connection: what waits are removals of entries that may be good.
    pub fn unsent(&mut self, now: u64) -> &[u8] {
        if self.is_suspect() {
            return &[];
        }
        let bytes = match self.stage {
            Stage::Opening => return &[],
            Stage::Greeting { .. } => &self.greeting,
            Stage::Open => {
                self.inflight.written(now);
                &self.out
            }
        };
        bytes.get(self.sent..).unwrap_or_default()
    }

    /// So many of the unsent bytes were written.
    pub fn sent(&mut self, n: usize) {
        let greets = self.stage != Stage::Open;
        let buf = if greets { &mut self.greeting } else { &mut self.out };
        self.sent = self.sent.saturating_add(n);
        if self.sent >= buf.len() {
            self.sent = 0;
            buffer::empty(buf);
            self.open_if_greeted();
        } else if !greets && self.sent > buffer::KEPT {
            // A server that is always a little behind must not make the buffer grow.
            buffer::shift(buf, mem::take(&mut self.sent));
        }
    }

    /// Lets requests be written once the server has accepted the whole greeting.
    fn open_if_greeted(&mut self) {
        let greeting = matches!(self.stage, Stage::Greeting { .. });
        if greeting && self.steps == 0 && self.greeting.is_empty() {
            self.stage = Stage::Open;
            self.password = None;
        }
    }

    /// How many bytes of requests have not been written.
    pub fn waiting(&self) -> usize {
        let sent = if self.is_open() { self.sent } else { 0 };
        self.out.len().saturating_sub(sent)
    }

    /// Whether requests are written.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Where what is read goes, at the end. [`Conversation::received`] is to be called then.
    pub fn input(&mut self) -> &mut Vec<u8> {
        &mut self.input
    }

    /// Takes the answers out of what was read at `now`. What has ended by then is in
    /// [`Conversation::take_ends`], with an error as without.
    ///
    /// A request stays in the line until its answer is accepted, so that a failure finds it there.
    pub fn received(&mut self, now: u64) -> Result<(), Failure> {
        self.is_heard |= !self.input.is_empty();
        let result = self.decode(now);
        if self.ends.is_empty() {
            self.forget_decoded();
        }
        result
    }

    fn decode(&mut self, now: u64) -> Result<(), Failure> {
        loop {
            let at = self.decoded;
            let rest = self.input.get(at..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            if self.skip > 0 {
                let skipped = self.skip.min(rest.len());
                self.skip = self.skip.saturating_sub(skipped);
                self.decoded = at.saturating_add(skipped);
                if self.skip == 0 {
                    self.heard(now);
                }
                continue;
            }
            let front = self.inflight.front().copied();
            let array = match front.map(|request| request.kind) {
                Some(Kind::Query) => true,
                Some(Kind::Greeting(step)) => self.codec.greeting_is_array(step),
                _ => false,
            };
            let expected = Expected { limit: self.limits.max_value, array };
            let decoded = self.codec.decode(rest, &expected, &mut self.place);
            let Some((answer, used)) = decoded.map_err(Failure::Decode)? else {
                return Ok(());
            };
            if let Answer::Aside = answer {
                self.aside = self.aside.saturating_add(used);
                if self.aside > MAX_ASIDE {
                    return Err(Failure::Unasked);
                }
                self.decoded = at.saturating_add(used);
                continue;
            }
            // It may be read before what was asked is written, or after it.
            if let (Answer::Refused(text), false) = (&answer, self.proven) {
                if self.codec.refuses_connection(rest.get(text.clone()).unwrap_or_default()) {
                    return Err(unaccepted(Unfit::Refused, &answer, rest));
                }
            }
            // What was not asked cannot be answered, though it may wait to be asked.
            let asked = |request: &inflight::Request<W>| {
                request.written.is_some() || matches!(request.kind, Kind::Greeting(_))
            };
            let Some(request) = front.filter(asked) else {
                // A server that has too many clients says so before it is asked.
                return Err(match &answer {
                    Answer::Refused(_) => unaccepted(Unfit::Refused, &answer, rest),
                    _ => Failure::OutOfStep,
                });
            };
            let mut skip = 0;
            let end = match (answer, request.kind) {
                (answer, Kind::Greeting(step)) => {
                    let password = self.password.as_ref().map_or(&b""[..], |it| it.as_slice());
                    self.codec
                        .greeted(step, &answer, rest, password)
                        .map_err(|unfit| unaccepted(unfit, &answer, rest))?;
                    self.steps = self.steps.saturating_sub(1);
                    Ok(Answer::Done)
                }
                (Answer::TooLarge(len), Kind::Fetch(_) | Kind::Take(_)) => {
                    skip = len;
                    Err(Outcome::Corrupt)
                }
                (answer @ Answer::Missing, _)
                | (
                    answer @ (Answer::Value(_) | Answer::Claim(..)),
                    Kind::Fetch(_) | Kind::Take(_),
                )
                | (answer @ Answer::Done, Kind::Claim(_) | Kind::Update(_) | Kind::Asking)
                | (answer @ Answer::Array(_), Kind::Query)
                | (answer @ (Answer::Refused(_) | Answer::Redirect(_)), _) => Ok(answer),
                _ => return Err(Failure::OutOfStep),
            };
            let refused = match &end {
                Ok(Answer::Refused(_)) => true,
                Ok(Answer::Redirect(_)) => !self.follows(request.kind),
                _ => false,
            };
            if refused {
                self.has_refused = true;
                self.counts.refused = self.counts.refused.saturating_add(1);
            }
            self.inflight.pop();
            self.decoded = at.saturating_add(used);
            self.skip = skip;
            self.aside = 0;
            if skip == 0 {
                self.heard(now);
            }
            if request.kind.is_lookup() && !request.expired {
                self.late_since = None;
            }
            self.answered |= !matches!(request.kind, Kind::Greeting(_)) || self.steps == 0;
            // A server that greets and then says nothing is no good.
            match request.kind {
                Kind::Greeting(_) => self.accepted |= self.probe && self.steps == 0,
                _ if refused => {}
                _ => {
                    self.proven = true;
                    self.good |= !request.expired;
                }
            }
            self.open_if_greeted();
            let told = request.expired || !request.kind.is_awaited();
            if refused || !told {
                let answer = end.map(|answer| answer.shifted(at));
                let inflight::Request { kind, deadline, .. } = request;
                self.ends.push(End { kind, deadline, answer, again: false, told, refused });
            }
            if skip > MAX_SKIPPED {
                return Err(Failure::Oversized(skip));
            }
        }
    }

    /// An answer was complete.
    fn heard(&mut self, now: u64) {
        self.heard = now;
        self.stale = false;
        self.silent = false;
        self.mute = false;
        self.muted = None;
    }

    /// Whether a redirection is for the waiter to follow.
    fn follows(&self, kind: Kind<W>) -> bool {
        self.limits.redirects && kind.waiter().is_some()
    }

    /// Notes that a request has ended without an answer, if anybody wants to know. Room was made for
    /// it when it began.
    fn give_up(&mut self, request: &inflight::Request<W>, outcome: Outcome, again: bool) {
        if request.kind.is_awaited() {
            let inflight::Request { kind, deadline, .. } = *request;
            let again = again && matches!(kind, Kind::Fetch(_));
            let answer = Err(outcome);
            self.ends.push(End { kind, deadline, answer, again, told: false, refused: false });
        }
    }

    /// What has ended, if anything has. Nothing is to be read until [`Conversation::put_back`].
    pub fn take_ends(&mut self) -> Option<Ends<W>> {
        if self.ends.is_empty() {
            return None;
        }
        Some(Ends { ends: mem::take(&mut self.ends), input: mem::take(&mut self.input) })
    }

    /// Whether [`Conversation::take_ends`] has something.
    pub fn has_ends(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Everybody was told. The memory is used again.
    pub fn put_back(&mut self, mut told: Ends<W>) {
        told.ends.clear();
        if self.ends.is_empty() && self.ends.capacity() < told.ends.capacity() {
            self.ends = mem::take(&mut told.ends);
        }
        if self.input.is_empty() {
            self.input = mem::take(&mut told.input);
            self.forget_decoded();
        }
    }

    /// Removes from the input what has been decoded.
    fn forget_decoded(&mut self) {
        let decoded = mem::take(&mut self.decoded).min(self.input.len());
        if decoded == self.input.len() {
            buffer::empty(&mut self.input);
        } else {
            buffer::shift(&mut self.input, decoded);
        }
    }

    /// Whether the server has given a proper answer to a request, in time, since this was asked
    /// last.
    pub fn take_good(&mut self) -> bool {
        mem::take(&mut self.good)
    }

    /// Whether the server has accepted a probe since this was asked last.
    pub fn take_accepted(&mut self) -> bool {
        mem::take(&mut self.accepted)
    }

    /// Whether the server has answered since this was asked last: a request, in time or not, or all of
    /// the greeting. A part of that shows nothing: the next part may be refused.
    pub fn take_answered(&mut self) -> bool {
        mem::take(&mut self.answered)
    }

    /// What happened since this was asked last.
    pub fn take_counts(&mut self) -> Counts {
        mem::take(&mut self.counts)
    }

    /// Ends the requests whose deadline has passed at `now`. To be called when
    /// [`Conversation::next_deadline`] has come, after what there is to read and to write was read
    /// and written.
    pub fn tick(&mut self, now: u64) -> Result<(), Failure> {
        let mut slow = false;
        while let Some(request) = self.inflight.expire(now) {
            self.counts.late = self.counts.late.saturating_add(1);
            self.give_up(&request, Outcome::Timeout, false);
            // The server has the whole timeout from when it was asked.
            let until = request.written.map(|written| written.saturating_add(request.timeout));
            slow |= request.kind.is_lookup() && until.is_some_and(|until| until <= now);
        }
        if let Stage::Greeting { since, by } = self.stage {
            if by <= now {
                return Err(Failure::Silent(now.saturating_sub(since)));
            }
        }
        if let Some(silence) = self.silence() {
            self.silent |= silence.from <= now;
            if silence.until <= now {
                return Err(Failure::Silent(now.saturating_sub(silence.since)));
            }
            if silence.mute <= now && !self.mute {
                self.mute = true;
                self.muted = Some(silence.since);
            }
        }
        if slow {
            let late = now.saturating_sub(*self.late_since.get_or_insert(now));
            if late >= self.limits.fetch_timeout.saturating_mul(SLOW) {
                return Err(Failure::Slow(late));
            }
        }
        Ok(())
    }

    /// When [`Conversation::tick`] is to be called.
    pub fn next_deadline(&mut self) -> Option<u64> {
        let greeting = match self.stage {
            Stage::Greeting { by, .. } => Some(by),
            Stage::Opening | Stage::Open => None,
        };
        let silence = self.silence();
        let silence = silence.map(|it| match (self.silent, self.mute) {
            (false, _) => it.from,
            (true, false) => it.mute.min(it.until),
            (true, true) => it.until,
        });
        [greeting, silence, self.inflight.next_deadline()].into_iter().flatten().min()
    }

    /// How long the request in front has been without an answer, and any other with it.
    fn silence(&self) -> Option<Silence> {
        let front = self.inflight.front().filter(|_| self.is_open())?;
        let since = front.written?.max(self.heard);
        let timeout = if front.timeout == 0 { self.limits.fetch_timeout } else { front.timeout };
        // Half of the time is left to ask again.
        let patience =
            if self.stale { (self.limits.fetch_timeout / 2).max(1).min(timeout) } else { timeout };
        Some(Silence {
            since,
            from: since.saturating_add(patience),
            mute: since.saturating_add(timeout.saturating_mul(self.limits.mute)),
            until: since.saturating_add(timeout.saturating_mul(self.limits.silence)),
        })
    }

    /// Whether the connection is silent.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the silence is so long by now that the server may be down, with when it began. Told once
    /// for each silence.
    pub fn take_muted(&mut self) -> Option<u64> {
        self.muted.take()
    }

    /// Whether something came since the last answer, and no answer to its end. What drips is read for
    /// nothing.
    pub fn is_amid_reply(&self) -> bool {
        self.input.len() > self.decoded || self.skip > 0 || self.aside > 0
    }

    /// The server is not asked any more for a while: that answers were late before counts no more.
    pub fn rest(&mut self) {
        self.late_since = None;
    }

    /// For how long nothing has been heard, with something to be answered.
    pub fn silent_for(&self, now: u64) -> u64 {
        self.silence().map_or(0, |silence| now.saturating_sub(silence.since))
    }

    /// Whether the connection was idle, and has shown nothing since.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether nothing was said for so long, nor is there anything to say, that it would be stale.
    pub fn is_idle(&self, now: u64) -> bool {
        self.inflight.is_empty() && now.saturating_sub(self.heard) >= IDLE
    }

    /// An answer may have been for another request than it seemed. Once, that is an entry in the
    /// wrong place; again and again, the connection is out of step: [`Conversation::is_suspect`].
    pub fn suspect(&mut self) {
        self.suspect = self.suspect.saturating_add(1);
    }

    /// An answer was for the request that it seemed to be for: the connection is in step, unless too
    /// much speaks against it.
    pub fn trust(&mut self) {
        if !self.is_suspect() {
            self.suspect = 0;
        }
    }

    /// Whether an answer may have been for another request, and no later one has shown otherwise.
    pub fn is_doubtful(&self) -> bool {
        self.suspect > 0
    }

    /// Whether so many answers may have been for other requests that the connection has to end.
    pub fn is_suspect(&self) -> bool {
        self.suspect >= MAX_SUSPECT
    }

    /// How many requests have no answer.
    pub fn unanswered(&self) -> usize {
        self.inflight.len()
    }

    /// How many requests have no answer and time for one.
    pub fn awaited(&self) -> usize {
        self.inflight.awaited()
    }

    /// What the server is asked for now.
    pub fn front(&self) -> Option<Kind<W>> {
        self.inflight.front().map(|request| request.kind)
    }

    /// Whether anything has come on this connection.
    pub fn is_heard(&self) -> bool {
        self.is_heard
    }

    /// Whether the server has given a proper answer to a request on this connection.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether the server has refused a request on this connection.
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    /// Ends the conversation: every request that has no answer ends with `outcome`; with `again` as
    /// [`Reply::Again`] has it. How many requests are lost, without those that may be made again, and
    /// what has ended.
    pub fn fail(mut self, outcome: Outcome, again: bool) -> (usize, Ends<W>) {
        let mut lost: usize = 0;
        while let Some(request) = self.inflight.pop() {
            let awaited = request.kind.is_awaited() && !request.expired;
            let again = again && matches!(request.kind, Kind::Fetch(_));
            if awaited && !again || matches!(request.kind, Kind::Update(_)) {
                lost = lost.saturating_add(1);
            }
            if !request.expired {
                self.give_up(&request, outcome, again);
            }
        }
        (lost, Ends { ends: mem::take(&mut self.ends), input: mem::take(&mut self.input) })
    }
}

impl<W> Drop for Conversation<W> {
    fn drop(&mut self) {
        for buf in [&mut self.out, &mut self.greeting, &mut self.input] {
            buffer::wipe(buf);
        }
    }
}

/// Why the answer to a step of the greeting makes the connection useless.
fn unaccepted(unfit: Unfit, answer: &Answer, buf: &[u8]) -> Failure {
    match (unfit, answer) {
        (Unfit::Refused, Answer::Refused(place)) => {
            let text = buf.get(place.clone()).unwrap_or_default();
            Failure::Greeting(Said(text).to_string().into())
        }
        (Unfit::Password, Answer::Refused(place)) => {
            let text = buf.get(place.clone()).unwrap_or_default();
            Failure::Password(Said(text).to_string().into())
        }
        (Unfit::RefusedAloud, _) => Failure::Greeting("(the password)".into()),
        (Unfit::NotMaster, _) => Failure::NotMaster,
        _ => Failure::OutOfStep,
    }
}
