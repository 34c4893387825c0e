//! How a handshake waits for the lookups of its session.
//!
//! The filter in front of the socket reads the ClientHello before OpenSSL does. While a lookup
//! waits, OpenSSL's reads find nothing, and what the client sends is buffered: an event method that
//! reports levels would otherwise report it without end. When the answers are there, the filter
//! replays all bytes to OpenSSL as they came, and then passes the socket through.

use core::cell::{Cell, RefCell};
use std::rc::Rc;

use session_core::hello::{
    ClientHello, Progress, ServerPolicy, SessionId, SessionIds, Setting, Unreadable, WantedIds,
    wanted_ids,
};
use session_core::outcome::Outcome;
use session_core::stored::Stored;

use super::intake::{Intake, MAX_SUSPENDED, READ};
use super::lookup::Lookup;
use super::lookups::Lookups;
use super::messages::FETCHING;
use super::policy::Policy;
use super::report::{Report, Reports};
use super::tickets::{OfferedTicket, TicketState};
use crate::ffi::tls::{
    Attached, Connection, Hello, HelloRef, Read, Sink, Socket, SocketRead, Waits,
};
use crate::ffi::turn::Turn;
use crate::net::backend::Answered;
use crate::{debug, log_at};

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

    /// What OpenSSL will ask for, as far as the server's side decides it. Where the server that will
    /// answer is not known yet, the tag of an ID tells what it is. Without keys nothing does: it is
    /// taken for an ID of the default server's.
    fn server(&self, connection: &Connection) -> ServerPolicy {
        let differences = Some(connection.differences::<Self>()).filter(|_| self.has_keys());
        let differences = differences.unwrap_or_default();
        ServerPolicy {
            tls13: match differences.tls13 && connection.may_allow_tls13() {
                true => Setting::Differs,
                false => connection.allows_tls13().into(),
            },
            tickets: match differences.tickets {
                true => Setting::Differs,
                false => connection.has_tickets().into(),
            },
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
pub struct State {
    reports: Reports,
    tickets: TicketState,
    /// How many session IDs that OpenSSL has asked for none of the keys has issued.
    unknown: Cell<u8>,
    handshake: RefCell<Handshake>,
}

/// A handshake that can be suspended.
struct Handshake {
    phase: Phase,
    intake: Intake,
    lookups: Lookups,
}

/// What a handshake waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The end of the ClientHello.
    AwaitHello,
    /// The answers to lookups: the handshake is suspended.
    AwaitAnswers,
    /// OpenSSL, which is to read what was read ahead.
    Replay,
    /// Nothing: OpenSSL reads from the socket.
    Passthrough,
}

impl State {
    /// The beginning of a handshake.
    fn new() -> Self {
        State {
            reports: Reports::default(),
            tickets: TicketState::default(),
            unknown: Cell::new(0),
            handshake: RefCell::new(Handshake {
                phase: Phase::AwaitHello,
                intake: Intake::new(),
                lookups: Lookups::new(),
            }),
        }
    }

    /// What is reported of the handshake.
    pub(super) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// What was done about stateless tickets.
    pub(super) fn tickets(&self) -> &TicketState {
        &self.tickets
    }

    /// How the session was looked up.
    pub fn report(&self) -> Report {
        self.reports.fetched()
    }

    /// What became of the sessions that were made; nothing if none was to be stored.
    pub fn stored(&self) -> Option<Stored> {
        self.reports.stored()
    }

    /// How many session IDs were looked at that none of the keys has issued.
    pub(super) fn unknown(&self) -> u8 {
        self.unknown.get()
    }

    /// One more was looked at.
    pub(super) fn add_unknown(&self) {
        self.unknown.set(self.unknown().saturating_add(1));
    }

    /// Whether OpenSSL has got all that was read ahead.
    pub fn is_through(&self) -> bool {
        self.handshake.try_borrow().is_ok_and(|handshake| handshake.phase == Phase::Passthrough)
    }

    /// How many bytes are buffered for OpenSSL to read now.
    pub fn pending(&self) -> usize {
        match self.handshake.try_borrow() {
            Ok(handshake) if handshake.phase == Phase::Replay => handshake.intake.pending(),
            _ => 0,
        }
    }

    /// The handshake is over: only the reports stay.
    pub fn release(&self) {
        if let Ok(mut handshake) = self.handshake.try_borrow_mut() {
            handshake.lookups.clear();
        }
    }

    /// Whether a session was taken out of its tier, so that nobody else has it.
    pub fn has_taken(&self) -> bool {
        self.handshake.try_borrow().is_ok_and(|handshake| handshake.lookups.have_taken())
    }

    /// The lookup of `id`, until it is put back.
    pub fn take_lookup(&self, id: &SessionId) -> Option<Lookup> {
        self.handshake.try_borrow_mut().ok()?.lookups.remove(id)
    }

    /// Puts a lookup back, or keeps one that was made without suspending.
    pub fn put_lookup(&self, lookup: Lookup) {
        if let Ok(mut handshake) = self.handshake.try_borrow_mut() {
            handshake.lookups.insert(lookup);
        }
    }

    /// What becomes of a handshake that waits for OpenSSL's callback.
    pub fn hello(&self, policy: &Policy, attached: &Attached<Policy>, hello: &HelloRef) -> Hello {
        self.handshake
            .try_borrow_mut()
            .map_or(Hello::GoOn, |mut handshake| handshake.hello(policy, attached, hello))
    }

    /// What OpenSSL gets when it reads.
    pub fn read(
        &self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
        sink: &mut Sink,
    ) -> Read {
        self.handshake
            .try_borrow_mut()
            .map_or(Read::Suspended, |mut handshake| handshake.read(policy, attached, socket, sink))
    }

    /// An answer has come to a lookup, from one tier.
    pub fn answered(
        &self,
        policy: &Policy,
        turn: &Turn,
        attached: &Attached<Policy>,
        answer: Answered<'_>,
    ) {
        if let Ok(mut handshake) = self.handshake.try_borrow_mut() {
            handshake.answered(policy, turn, attached, answer);
        }
    }
}

/// Whether nginx lets the handshake wait in OpenSSL's callback for the ClientHello.
fn waits_in_callback(attached: &Attached<Policy>) -> bool {
    attached.connection().waits() == Waits::InCallback
}

impl Handshake {
    fn hello(&mut self, policy: &Policy, attached: &Attached<Policy>, hello: &HelloRef) -> Hello {
        match self.phase {
            // Attached only when OpenSSL asked for a session, or a ticket was looked at: this is the second
            // ClientHello, of a handshake that need not wait, or cannot.
            Phase::AwaitHello if !policy.suspends() || !waits_in_callback(attached) => {}
            Phase::AwaitHello => match hello.read() {
                Some(hello) => self.look_up_offered(policy, attached, &hello),
                None => debug!(attached.log(), "SSL session fetch: {}", Unreadable::Malformed),
            },
            Phase::AwaitAnswers if attached.has_left() => {
                self.client_gone(attached);
                return Hello::End;
            }
            Phase::AwaitAnswers | Phase::Replay | Phase::Passthrough => {}
        }
        if self.phase == Phase::AwaitAnswers {
            return Hello::Wait;
        }
        self.phase = Phase::Passthrough;
        Hello::GoOn
    }

    fn read(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
        sink: &mut Sink,
    ) -> Read {
        if self.phase == Phase::AwaitHello {
            if let Some(read) = self.read_hello(policy, attached, socket) {
                return read;
            }
        }
        if self.phase == Phase::AwaitAnswers {
            if let Some(read) = self.buffer_while_suspended(policy, attached, socket) {
                return read;
            }
        }
        let read = self.intake.replay(sink);
        if self.intake.is_replayed() {
            self.phase = Phase::Passthrough;
        }
        read
    }

    fn answered(
        &mut self,
        policy: &Policy,
        turn: &Turn,
        attached: &Attached<Policy>,
        answer: Answered<'_>,
    ) {
        if self.phase != Phase::AwaitAnswers {
            return;
        }
        self.lookups.answered(policy, attached.log(), answer);
        if !self.lookups.are_waiting() {
            self.lookups_ended(attached, true);
            debug!(attached.log(), "SSL session fetch: handshake goes on");
            attached.resume(turn);
        }
    }

    /// Reads until the ClientHello is complete. `None` if there is something to go on with.
    fn read_hello(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
    ) -> Option<Read> {
        loop {
            let n = match self.intake.fill(socket, &policy.wire) {
                SocketRead::Bytes(n) => n,
                SocketRead::Again => return Some(Read::Suspended),
                SocketRead::Ended(ending) => {
                    self.intake.set_ending(ending);
                    self.phase = Phase::Replay;
                    return None;
                }
                SocketRead::OutOfMemory => {
                    self.phase = Phase::Replay;
                    return None;
                }
            };
            match self.intake.read_hello() {
                Progress::Complete(hello) => self.look_up_offered(policy, attached, &hello),
                Progress::Unreadable(why) => {
                    debug!(attached.log(), "SSL session fetch: {why}");
                    self.phase = Phase::Replay;
                }
                Progress::Incomplete if self.intake.is_hello_too_long() => {
                    debug!(attached.log(), "SSL session fetch: ClientHello in too many records");
                    self.phase = Phase::Replay;
                }
                Progress::Incomplete => {}
            }
            match self.phase {
                // The loop reads until the socket is empty: the end of the connection may have come
                // with these bytes, and an event method that reports changes does not report it
                // again.
                Phase::AwaitHello => {}
                // Here a read that came up short is enough: an end that is not seen now is seen
                // when the answers are there.
                Phase::AwaitAnswers if n < READ => return Some(Read::Suspended),
                _ => return None,
            }
        }
    }

    /// Buffers what the client sends while a lookup waits. `None` if it waits no longer.
    fn buffer_while_suspended(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        socket: &Socket,
    ) -> Option<Read> {
        loop {
            if self.intake.is_full() {
                log_at!(
                    &attached.log().during(FETCHING),
                    Info,
                    "client sent more than {MAX_SUSPENDED} bytes while its SSL session was fetched"
                );
                self.abort(attached, Some(Outcome::Timeout));
                return None;
            }
            match self.intake.fill(socket, &policy.wire) {
                SocketRead::Bytes(n) if n >= READ => {}
                SocketRead::Bytes(_) | SocketRead::Again => return Some(Read::Suspended),
                SocketRead::Ended(ending) => {
                    self.client_gone(attached);
                    return Some(Read::Ended(ending));
                }
                SocketRead::OutOfMemory => {
                    self.abort(attached, Some(Outcome::Timeout));
                    return None;
                }
            }
        }
    }

    /// Looks up what a ClientHello offers.
    fn look_up_offered(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        hello: &ClientHello,
    ) {
        let connection = attached.connection();
        let mut ids = wanted_ids(hello, &policy.server(&connection));
        if !ids.tickets.is_empty() && connection.has_anti_replay() {
            // OpenSSL would resume none of them.
            ids.tickets = SessionIds::default();
        }
        let ticket = policy.offered_ticket(&connection, hello);
        if !matches!(ticket, OfferedTicket::None) && !connection.has_tickets() {
            // It comes first, so that OpenSSL asks for no other; one that is taken would be lost.
            ids.tickets = SessionIds::default();
        }
        self.look_up(policy, attached, &ids, ticket);
    }

    /// Looks the session IDs up, and suspends the handshake if that takes time.
    fn look_up(
        &mut self,
        policy: &Policy,
        attached: &Attached<Policy>,
        ids: &WantedIds,
        ticket: OfferedTicket,
    ) {
        self.phase = Phase::Replay;
        debug!(attached.log(), "SSL session fetch: {} session IDs to look up", ids.len());
        let nothing = ids.is_empty() && matches!(ticket, OfferedTicket::None);
        if nothing || !self.lookups.reserve(ids.len()) {
            return;
        }
        let Ok(token) = attached.token() else { return };
        self.lookups.begin(policy, attached.log(), token, ids, ticket);
        if self.lookups.are_waiting() {
            self.phase = Phase::AwaitAnswers;
            debug!(attached.log(), "SSL session fetch: handshake suspended");
        } else {
            self.lookups_ended(attached, false);
        }
    }

    /// All lookups have ended: the handshake goes on. How they ended is reported when OpenSSL asks for
    /// their sessions: it may ask for others, or for none.
    fn lookups_ended(&mut self, attached: &Attached<Policy>, suspended: bool) {
        attached.forget();
        self.phase = Phase::Replay;
        let time = self.lookups.time();
        attached.state().reports.set_time(time, suspended);
        if let Some(outcome) = self.lookups.outcome() {
            debug!(attached.log(), "SSL session fetch: {outcome} in {} us", time.as_micros());
        }
    }

    /// The client has closed the connection while a lookup waits.
    fn client_gone(&mut self, attached: &Attached<Policy>) {
        debug!(attached.log(), "client gone while its SSL session was fetched");
        self.abort(attached, None);
    }

    /// Ends the lookups without their answers, and reports `outcome` of them.
    fn abort(&mut self, attached: &Attached<Policy>, outcome: Option<Outcome>) {
        self.lookups.clear();
        self.lookups_ended(attached, true);
        if let Some(outcome) = outcome {
            attached.state().reports.add(outcome, None);
        }
    }
}
