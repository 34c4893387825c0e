//! The bytes of a client while its session is looked up.
//!
//! The filter in front of the socket reads the ClientHello before OpenSSL does. If a lookup has to
//! wait, reads find nothing, and what the client sends meanwhile is kept: an event method that
//! reports levels would otherwise report it without end. When the answer is there, OpenSSL gets
//! all bytes as they came, and then the socket.

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;
use std::time::Instant;
use std::vec::Vec;

use session_core::hello::{
    ClientHello, HelloReader, Progress, ServerPolicy, SessionId, Unreadable, wanted_ids,
};
use session_core::key_ring::Tls;
use session_core::outcome::Outcome;
use session_core::stored::Stored;

use super::lookup::{Lookup, Status};
use super::messages::FETCHING;
use super::policy::{Policy, tls};
use super::reject::Reject;
use super::report::Report;
use crate::debug;
use crate::ffi::tls::{
    Attached, Connection, Ending, Hello, HelloRef, Read, Sink, Socket, SocketRead, Waits,
};
use crate::log_at;
use crate::net::backend::Waiter;

/// How much is read at once, in bytes: a record of TLS, with all that comes with it.
const READ: usize = 16 * 1024 + 512;
/// The most that is kept of a ClientHello that has not come to its end, in bytes. One cut into
/// tiny records takes several times its length; beyond this it is left to OpenSSL.
const MAX_READING: usize = 64 * 1024;
/// The most that is kept while a lookup waits, in bytes: a ClientHello, the 16 KB of early data
/// that nginx allows, and what records add to it.
const MAX_WAITING: usize = MAX_READING + 24 * 1024;

/// In place of the number of a lookup: the question about the epoch.
const EPOCH: usize = usize::MAX;

impl Policy {
    /// Prepares a handshake that has begun for waiting, where lookups may take time.
    pub(super) fn make_suspendable(self: &Rc<Self>, connection: &Connection) {
        if !self.suspends {
            return;
        }
        let attach = || connection.attach(self, State::new());
        let ready = match connection.waits() {
            Waits::InCallback => attach().map(|_| ()),
            Waits::InFilter => attach().and_then(|attached| connection.suspendable(attached)),
            Waits::Not => Ok(()),
        };
        if ready.is_err() {
            let log = connection.log().during(FETCHING);
            log_at!(&log, Alert, "no memory to fetch an SSL session");
        }
    }

    /// What is attached to a connection, from now on.
    pub(super) fn attached<'a>(
        self: &Rc<Self>,
        connection: &'a Connection,
    ) -> Option<&'a Attached<Policy>> {
        connection.attached().or_else(|| connection.attach(self, State::new()).ok())
    }
}

/// What is known about one handshake.
pub struct State(RefCell<Inner>);

struct Inner {
    phase: Phase,
    /// What was read from the socket.
    buf: Vec<u8>,
    /// How much of `buf` OpenSSL has got.
    given: usize,
    /// How the socket ended, for OpenSSL to be told after `buf`.
    ending: Option<Ending>,
    reader: HelloReader,
    lookups: Vec<Lookup>,
    /// When the session was made that is resumed, in seconds since the epoch.
    resumed: Option<i64>,
    /// Whether a session ID was forged, so that there is no lookup of it.
    forged: bool,
    /// For how many answers it waits.
    waiting: usize,
    started: Option<Instant>,
    report: Report,
    stored: Option<Stored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// For the end of the ClientHello.
    AwaitHello,
    /// For the answers to lookups.
    AwaitAnswers,
    /// For OpenSSL to take what was read.
    AwaitReader,
    /// Nothing; OpenSSL reads from the socket.
    Through,
}

impl State {
    /// The beginning of a handshake.
    pub fn new() -> Self {
        State(RefCell::new(Inner {
            phase: Phase::AwaitHello,
            buf: Vec::new(),
            given: 0,
            ending: None,
            reader: HelloReader::new(),
            lookups: Vec::new(),
            resumed: None,
            forged: false,
            waiting: 0,
            started: None,
            report: Report::default(),
            stored: None,
        }))
    }

    /// What became of the sessions that were made; nothing if none was to be stored.
    pub fn stored(&self) -> Option<Stored> {
        self.0.try_borrow().ok()?.stored
    }

    /// Notes what became of one.
    pub fn set_stored(&self, stored: Stored) {
        if let Ok(mut inner) = self.0.try_borrow_mut() {
            inner.stored = inner.stored.max(Some(stored));
        }
    }

    /// How the session was looked up.
    pub fn report(&self) -> Report {
        self.0.try_borrow().map(|inner| inner.report).unwrap_or_default()
    }

    /// Changes the outcome that is reported, and whose it was.
    pub fn report_outcome(&self, outcome: Outcome, tier: Option<usize>) {
        if let Ok(mut inner) = self.0.try_borrow_mut() {
            inner.report.outcome = Some(outcome);
            inner.report.tier = tier;
        }
    }

    /// Reports a lookup that took no time worth measuring. Several for one handshake are one.
    pub fn report_now(&self, outcome: Outcome, tier: Option<usize>) -> Duration {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return Duration::ZERO };
        let report = &mut inner.report;
        report.outcome = Some(report.outcome.map_or(outcome, |earlier| earlier.or(outcome)));
        report.tier = report.tier.or(tier);
        report.time
    }

    /// Whether OpenSSL has got all that was read ahead.
    pub fn is_through(&self) -> bool {
        self.0.try_borrow().is_ok_and(|inner| inner.phase == Phase::Through)
    }

    /// How many bytes are kept for OpenSSL.
    pub fn pending(&self) -> usize {
        match self.0.try_borrow() {
            Ok(inner) if inner.phase == Phase::AwaitReader => {
                inner.buf.len().saturating_sub(inner.given)
            }
            _ => 0,
        }
    }

    /// The handshake is over: only the report stays.
    pub fn release(&self) {
        if let Ok(mut inner) = self.0.try_borrow_mut() {
            inner.lookups = Vec::new();
        }
    }

    /// Notes when the session was made that is about to be resumed.
    pub fn set_resumed(&self, made: i64) {
        if let Ok(mut inner) = self.0.try_borrow_mut() {
            inner.resumed = Some(made);
        }
    }

    /// When the session was made that has been resumed, if it came through us.
    pub fn resumed(&self) -> Option<i64> {
        self.0.try_borrow().ok()?.resumed
    }

    /// Whether a session was taken out of its tier, so that nobody else has it.
    pub fn has_taken(&self) -> bool {
        let taken = |lookup: &Lookup| lookup.is_take() && lookup.is_hit();
        self.0.try_borrow().is_ok_and(|inner| inner.lookups.iter().any(taken))
    }

    /// The lookup of `id`, until it is put back.
    pub fn take_lookup(&self, id: &SessionId) -> Option<Lookup> {
        let mut inner = self.0.try_borrow_mut().ok()?;
        let place = inner.lookups.iter().position(|lookup| lookup.id() == id)?;
        Some(inner.lookups.swap_remove(place))
    }

    /// Puts a lookup back, or keeps one that was made without suspending.
    pub fn put_lookup(&self, lookup: Lookup) {
        if let Ok(mut inner) = self.0.try_borrow_mut() {
            if inner.lookups.try_reserve(1).is_ok() {
                inner.lookups.push(lookup);
            }
        }
    }

    /// What becomes of a handshake that waits for OpenSSL's callback.
    pub fn hello(&self, policy: &Policy, attached: &Attached<Policy>, hello: &HelloRef) -> Hello {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return Hello::GoOn };
        match inner.phase {
            // What is attached since OpenSSL has asked: the ClientHello is the second one.
            Phase::AwaitHello if !policy.suspends() => {}
            Phase::AwaitHello => match hello.read() {
                Some(hello) => inner.offered(policy, attached, &hello),
                None => debug!(attached.log(), "SSL session fetch: {}", Unreadable::Malformed),
            },
            Phase::AwaitAnswers if attached.has_left() => {
                inner.left(attached);
                return Hello::End;
            }
            Phase::AwaitAnswers | Phase::AwaitReader | Phase::Through => {}
        }
        if inner.phase == Phase::AwaitAnswers {
            return Hello::Wait;
        }
        inner.phase = Phase::Through;
        Hello::GoOn
    }

    /// What OpenSSL gets when it reads.
    pub fn read(
        &self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
        sink: &mut Sink,
    ) -> Read {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return Read::Suspended };
        let inner = &mut *inner;
        if inner.phase == Phase::AwaitHello {
            if let Some(read) = inner.read_hello(policy, attached, socket) {
                return read;
            }
        }
        if inner.phase == Phase::AwaitAnswers {
            if let Some(read) = inner.keep(policy, attached, socket) {
                return read;
            }
        }
        inner.hand_over(sink)
    }

    /// A lookup has ended, in one tier.
    pub fn answered(
        &self,
        policy: &Policy,
        attached: &Attached<Policy>,
        waiter: Waiter,
        outcome: Outcome,
        value: &[u8],
        first: bool,
    ) {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return };
        if inner.phase != Phase::AwaitAnswers {
            return;
        }
        if waiter.index == EPOCH {
            if let Some(epoch) = policy.rules.epoch.as_ref().filter(|_| first) {
                epoch.answered(outcome, value);
            }
            return inner.ended(attached);
        }
        let Some(lookup) = inner.lookups.get_mut(waiter.index) else { return };
        if outcome == Outcome::Corrupt && first {
            if let Some(tier) = lookup.asked().and_then(|tier| policy.rules.fetch.get(tier)) {
                policy.discard(attached.log(), lookup.entry(), &**tier, Reject::TooLarge);
            }
        }
        lookup.set_first(first);
        if lookup.answered(&policy.rules.fetch, waiter, outcome, value, attached.log())
            == Status::Ended
        {
            inner.ended(attached);
        }
    }
}

impl Inner {
    /// Reads until the ClientHello is whole. `None` if there is something to go on with.
    fn read_hello(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
    ) -> Option<Read> {
        loop {
            let n = match self.read_socket(policy, socket) {
                SocketRead::Bytes(n) => n,
                SocketRead::Again => return Some(Read::Suspended),
                SocketRead::Ended(ending) => {
                    self.ending = Some(ending);
                    self.phase = Phase::AwaitReader;
                    return None;
                }
                SocketRead::OutOfMemory => {
                    self.phase = Phase::AwaitReader;
                    return None;
                }
            };
            match self.reader.read(&self.buf) {
                Progress::Complete(hello) => self.offered(policy, attached, &hello),
                Progress::Unreadable(why) => {
                    debug!(attached.log(), "SSL session fetch: {why}");
                    self.phase = Phase::AwaitReader;
                }
                Progress::Incomplete if self.buf.len() >= MAX_READING => {
                    debug!(attached.log(), "SSL session fetch: ClientHello in too many records");
                    self.phase = Phase::AwaitReader;
                }
                Progress::Incomplete => {}
            }
            match self.phase {
                // On, until the socket has no more: its end may have come with this, and an event
                // method that reports changes does not report it again.
                Phase::AwaitHello => {}
                // The same, but a read that came up short is enough: an end that is not seen now
                // is seen when the answers are there.
                Phase::AwaitAnswers if n < READ => return Some(Read::Suspended),
                _ => return None,
            }
        }
    }

    /// Keeps what the client sends while a lookup waits. `None` if it waits no longer.
    fn keep(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
    ) -> Option<Read> {
        loop {
            if self.buf.len() >= MAX_WAITING {
                log_at!(
                    &attached.log().during(FETCHING),
                    Info,
                    "client sent more than {MAX_WAITING} bytes while its SSL session was fetched"
                );
                self.abort(attached, Outcome::Timeout);
                return None;
            }
            match self.read_socket(policy, socket) {
                SocketRead::Bytes(n) if n >= READ => {}
                SocketRead::Bytes(_) | SocketRead::Again => return Some(Read::Suspended),
                SocketRead::Ended(ending) => {
                    self.left(attached);
                    return Some(Read::Ended(ending));
                }
                SocketRead::OutOfMemory => {
                    self.abort(attached, Outcome::Timeout);
                    return None;
                }
            }
        }
    }

    /// Reads what is there. The buffer of all handshakes is long enough for it, that of this one
    /// takes no more room than what is in it.
    fn read_socket(&mut self, policy: &Policy, socket: &Socket) -> SocketRead {
        let Ok(mut wire) = policy.wire.try_borrow_mut() else { return SocketRead::OutOfMemory };
        wire.clear();
        let read = socket.read(&mut wire, READ);
        if self.buf.try_reserve_exact(wire.len()).is_err() {
            // What was read is lost.
            return SocketRead::Ended(Ending::OUT_OF_MEMORY);
        }
        self.buf.extend_from_slice(&wire);
        read
    }

    /// Gives OpenSSL what was read, and after it the socket.
    fn hand_over(&mut self, sink: &mut Sink) -> Read {
        let rest = self.buf.get(self.given..).unwrap_or_default();
        if rest.is_empty() {
            self.phase = Phase::Through;
            return self.ending.take().map_or(Read::Socket, Read::Ended);
        }
        let n = sink.put(rest);
        self.given = self.given.saturating_add(n);
        if self.given >= self.buf.len() {
            self.buf = Vec::new();
            self.given = 0;
            if self.ending.is_none() {
                self.phase = Phase::Through;
            }
        }
        Read::Data(n)
    }

    /// Looks up what a ClientHello offers.
    fn offered(&mut self, policy: &Policy, attached: &Attached<Policy>, hello: &ClientHello) {
        let server = server_policy(&attached.connection());
        let ids = wanted_ids(hello, &server);
        let tls = tls(hello.offers_tls13 && server.tls13);
        // OpenSSL uses one ticket; to take another would waste it.
        let most = if policy.takes(tls) { 1 } else { ids.as_slice().len() };
        self.look_up(policy, attached, ids.as_slice().get(..most).unwrap_or_default(), tls);
    }

    /// The client has gone while a lookup waits.
    fn left(&mut self, attached: &Attached<Policy>) {
        debug!(attached.log(), "client gone while its SSL session was fetched");
        self.abort(attached, Outcome::Miss);
        self.report.outcome = None;
    }

    /// Looks the session IDs up.
    fn look_up(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        ids: &[SessionId],
        tls: Tls,
    ) {
        self.phase = Phase::AwaitReader;
        debug!(attached.log(), "SSL session fetch: {} session IDs to look up", ids.len());
        if ids.is_empty() || self.lookups.try_reserve_exact(ids.len()).is_err() {
            return;
        }
        let Ok(token) = attached.token() else { return };
        self.started = Some(Instant::now());
        self.phase = Phase::AwaitAnswers;
        self.waiting = 0;
        for id in ids {
            match policy.lookup(id, tls) {
                Some(lookup) => self.lookups.push(lookup),
                None => {
                    debug!(attached.log(), "SSL session fetch {:08x}: forged", id.short_hash());
                    self.forged = true;
                }
            }
        }
        // First, so that the server which has the session may have told of the epoch before.
        if let Some(epoch) = policy.rules.epoch.as_ref().filter(|_| !self.lookups.is_empty()) {
            self.waiting = epoch.ask(Waiter { token, index: EPOCH }).into();
        }
        for (index, lookup) in self.lookups.iter_mut().enumerate() {
            if lookup.run(&policy.rules.fetch, Waiter { token, index }, attached.log())
                == Status::Waiting
            {
                self.waiting = self.waiting.saturating_add(1);
            }
        }
        if self.waiting == 0 {
            self.finish(attached, false);
        } else {
            debug!(attached.log(), "SSL session fetch: handshake suspended");
        }
    }

    /// One of those that wait has ended.
    fn ended(&mut self, attached: &Attached<Policy>) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.finish(attached, true);
            debug!(attached.log(), "SSL session fetch: handshake goes on");
            attached.resume();
        }
    }

    /// All lookups have ended.
    fn finish(&mut self, attached: &Attached<Policy>, suspended: bool) {
        attached.forget();
        self.phase = Phase::AwaitReader;
        let forged = self.forged.then_some(Outcome::Forged);
        let outcomes = self.lookups.iter().map(Lookup::outcome);
        let outcome = forged.into_iter().chain(outcomes).reduce(Outcome::or);
        self.report = Report {
            outcome,
            time: self.started.map(|started| started.elapsed()).unwrap_or_default(),
            tier: self.lookups.iter().find_map(Lookup::tier),
            suspended,
        };
        if let Some(outcome) = outcome {
            debug!(
                attached.log(),
                "SSL session fetch: {outcome} in {} us",
                self.report.time.as_micros()
            );
        }
    }

    /// Ends the lookups without their answers.
    fn abort(&mut self, attached: &Attached<Policy>, outcome: Outcome) {
        self.lookups = Vec::new();
        self.waiting = 0;
        self.finish(attached, true);
        self.report.outcome = Some(outcome);
    }
}

/// What OpenSSL will ask for, as far as the server's side decides it.
fn server_policy(connection: &Connection) -> ServerPolicy {
    ServerPolicy { tls13: connection.allows_tls13(), tickets: connection.has_tickets() }
}
