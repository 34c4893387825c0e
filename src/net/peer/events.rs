//! The connection of a peer: what happens in events of our own.
//!
//! Nothing is borrowed while handlers of nginx's may run: these may end clients, and OpenSSL may make
//! requests while they do.

use std::rc::{Rc, Weak};

use session_core::conversation::{self, Conversation, Ends};
use session_core::inflight::Kind;
use session_core::stats::server as stats;

use super::{Line, Peer, Phase, RequestToken, State, Tick, Work};
use crate::ffi::clock;
use crate::ffi::event::Handle;
use crate::ffi::link::{Io, Link, LinkOwner};
use crate::ffi::log::Log;
use crate::ffi::resolver::{ResolveError, Resolved, ResolverOwner};
use crate::ffi::tls;
use crate::ffi::turn::Turn;
use crate::net::address_book::Resolution;
use crate::net::failure::Failure;
use crate::net::wording;
use crate::{debug, log_at};

/// How much is read at once, in bytes.
const READ_CHUNK: usize = 16 * 1024;
/// How many of those in one turn of the event loop, so that one server cannot hold up the others.
const READ_CHUNKS: usize = 16;

impl Peer {
    /// Closes the connection when what was asked has been answered; no request is made any more.
    /// Whether it is closed.
    pub fn retire(&self, turn: &Turn) -> bool {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.retired = true;
        }
        self.close_if_done(turn);
        self.state.try_borrow().is_ok_and(|state| state.conversation.is_none())
    }

    /// Writes what waits and closes the connection; the worker exits.
    pub fn close(&self, turn: &Turn) {
        self.write(turn);
        self.hang_up(turn);
        self.tick.cancel();
    }

    /// Asks for the addresses of the server's name, where that is due.
    fn resolve(&self, turn: &mut Turn) {
        let due = self.book.try_borrow().ok().and_then(|book| {
            let (resolver, name, port) = book.due(clock::unix_time())?;
            Some((resolver.clone(), std::boxed::Box::<str>::from(name), port))
        });
        if let Some((resolver, name, port)) = due {
            let question = resolver.resolve(turn, self.this.clone(), &name, port);
            if let Ok(mut book) = self.book.try_borrow_mut() {
                book.asked(question);
            }
        }
    }

    /// Writes what waits. An error shows again, and is dealt with, when reading.
    fn write(&self, turn: &Turn) {
        let Some(line) = self.line.get(turn) else { return };
        let (Some(link), Phase::Open) = (&line.link, line.phase) else { return };
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let state = &mut *state;
        let Some(conversation) = &mut state.conversation else { return };
        let us = clock::now_us();
        let mut wrote = false;
        loop {
            let unsent = conversation.unsent(us / 1000);
            if unsent.is_empty() {
                link.wrote_all();
                break;
            }
            let Io::Bytes(n) = link.write(turn, unsent) else { break };
            let all = n >= unsent.len();
            self.count.add(stats::SENT, n as u64);
            conversation.sent(n);
            wrote = true;
            if all {
                link.wrote_all();
                break;
            }
        }
        state.hold.release(us, wrote);
    }

    /// Reads what there is and takes the answers out of it.
    fn receive(&self, turn: &Turn) -> Result<(), Failure> {
        let Some(mut line) = self.line.get(turn) else { return Ok(()) };
        let line = &mut *line;
        let Ok(mut state) = self.state.try_borrow_mut() else { return Ok(()) };
        let state = &mut *state;
        for _ in 0..READ_CHUNKS {
            let (Some(link), Some(conversation)) = (&line.link, &mut state.conversation) else {
                return Ok(());
            };
            match link.read(turn, conversation.input(), READ_CHUNK) {
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
            let more = link.has_more();
            let was_open = conversation.is_open();
            let result = conversation.received();
            let (open, ends) = (conversation.is_open(), conversation.has_ends());
            self.judge(state);
            self.keep_session(line);
            if open && !was_open {
                // Requests have waited for the server to accept the greeting.
                self.work.post();
            }
            result?;
            if !more || ends {
                // Values lie in the input: they are told before it goes on.
                return Ok(());
            }
        }
        if let Some(link) = &line.link {
            link.read_later();
        }
        Ok(())
    }

    /// Takes note of what the server has shown.
    fn judge(&self, state: &mut State) {
        let Some(conversation) = &mut state.conversation else { return };
        let conversation::Counts { late, refused } = conversation.take_counts();
        self.count.add(stats::LATE, late);
        self.count.add(stats::REFUSED, refused);
        if conversation.take_good() && state.breaker.succeeded() {
            self.count.add(stats::UP, 1);
            log_at!(Log::cycle(), Notice, "{self} is up again{}", self.doing(None));
        }
    }

    /// Keeps the session that the server has given the connection, for the next one.
    pub(super) fn keep_session(&self, line: &mut Line) {
        if let Some(session) = line.link.as_ref().and_then(Link::take_session) {
            line.session = self.address().map(|address| (address, session));
        }
    }

    /// Ends an event: gives the connection up if it has failed, tells what has ended, and sets the
    /// timer. Whether something was told.
    pub(super) fn settle(&self, turn: &Turn, result: Result<(), Failure>) -> bool {
        let ends = match result {
            Ok(()) => {
                let Ok(mut state) = self.state.try_borrow_mut() else { return false };
                if clock::is_exiting() {
                    // The exit waits for what is under way.
                    self.arm(&mut state);
                } else {
                    self.show(&state);
                }
                self.told.set(state.number);
                state.conversation.as_mut().and_then(Conversation::take_ends)
            }
            Err(failure) => self.give_up(turn, &failure),
        };
        let told = ends.is_some();
        if let Some(ends) = ends {
            self.tell(turn, &ends);
            if let Ok(mut state) = self.state.try_borrow_mut() {
                // Whoever was told may have ended the conversation, and begun another one.
                if state.number == self.told.get() {
                    if let Some(conversation) = &mut state.conversation {
                        conversation.put_back(ends);
                    }
                }
            }
        }
        self.close_if_done(turn);
        told
    }

    /// Tells the ends of requests, with nothing borrowed.
    fn tell(&self, turn: &Turn, ends: &Ends<RequestToken>) {
        let Some(replies) = self.replies.upgrade() else { return };
        for end in ends.iter() {
            if let Some(refusal) = &end.refusal {
                let times = self.state.try_borrow_mut().ok();
                if let Some(times) = times.and_then(|mut state| state.refused.pass(clock::now_ms()))
                {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{self} refused {times} requests, the last with \"{refusal}\"{}",
                        self.doing(Some(wording::action(end.kind)))
                    );
                }
            }
            match (end.reply, end.kind, end.kind.waiter()) {
                (Some(reply), _, Some(waiter)) => {
                    replies.replied(turn, self, waiter, end.deadline, reply);
                }
                (Some(reply), Kind::Query, None) => replies.learned(turn, self, reply),
                _ => {}
            }
        }
    }

    /// Gives the connection up, and unless the server has shown that it works counts a failure. What
    /// has ended with it has still to be told.
    fn give_up(&self, turn: &Turn, failure: &Failure) -> Option<Ends<RequestToken>> {
        let now = clock::now_ms();
        let mut line = self.line.get(turn)?;
        let Ok(mut state) = self.state.try_borrow_mut() else { return None };
        let state = &mut *state;
        self.judge(state);
        let conversation = state.conversation.take()?;
        let action = match line.phase {
            Phase::Idle | Phase::Connecting { .. } => Some("connecting to backend"),
            Phase::Handshaking { .. } => Some("SSL handshaking to backend"),
            Phase::Open => conversation.front().map(wording::action),
        };
        let doing = self.doing(action);
        let asked = conversation.unanswered() > 0;
        let (proven, refused) = (conversation.is_proven(), conversation.has_refused());
        let (lost, ends) = conversation.fail(failure.outcome());
        self.count.add(stats::LOST, lost as u64);
        let trips = match failure {
            // A server may end a connection that nobody uses.
            Failure::Closed | Failure::Io(_) | Failure::Tls(_) => (asked || refused) && !proven,
            Failure::Conversation(conversation::Failure::Suspect) => !proven,
            Failure::Local | Failure::OutOfMemory | Failure::Shutdown => false,
            _ => true,
        };
        if trips {
            self.count.add(stats::FAILURES, 1);
            // If it was the session that the server did not like, the next one is not.
            line.session = None;
        }
        // A probe that cannot be made has failed, too: another one has to follow.
        let was_open = state.breaker.is_open();
        let failed = trips || was_open;
        if failed && state.breaker.failed(now, clock::random()) {
            self.count.add(stats::DOWN, 1);
            log_at!(Log::cycle(), Error, "{self} is down: {failure}{doing}");
        } else if was_open {
            debug!(Log::cycle(), "SSL session backend {self} is still down: {failure}{doing}");
        } else if matches!(failure, Failure::Shutdown) {
            if lost > 0 {
                log_at!(
                    Log::cycle(),
                    Warn,
                    "{self}: {lost} requests without an answer, as \"worker_shutdown_timeout\" is \
                     over{doing}"
                );
            }
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
        self.told.set(state.number);
        self.tick.cancel();
        line.phase = Phase::Idle;
        if let Some(link) = line.link.take() {
            link.close(turn);
        }
        self.show(state);
        Some(ends)
    }

    /// Ends the connection and the conversation over it.
    fn hang_up(&self, turn: &Turn) {
        let Some(mut line) = self.line.get(turn) else { return };
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        state.conversation = None;
        line.phase = Phase::Idle;
        if let Some(link) = line.link.take() {
            link.close(turn);
        }
        self.show(&state);
    }

    /// An exiting worker does not keep a connection that has nothing to do.
    fn close_if_done(&self, turn: &Turn) {
        let closing = self
            .line
            .get(turn)
            .is_some_and(|line| line.link.as_ref().is_some_and(|link| link.is_closing()));
        let done = self.state.try_borrow().is_ok_and(|state| {
            let idle = |c: &Conversation<RequestToken>| c.unanswered() == 0 && !c.has_ends();
            let leaves = closing || state.retired || clock::is_exiting();
            leaves && state.conversation.as_ref().is_some_and(idle)
        });
        if done {
            self.hang_up(turn);
            self.tick.cancel();
        }
    }

    fn phase(&self, turn: &Turn) -> Phase {
        self.line.get(turn).map_or(Phase::Idle, |line| line.phase)
    }

    /// Reads what came together with the connection, which is not reported again.
    fn read_on(&self, turn: &mut Turn) {
        let more = self.line.get(turn).is_some_and(|line| {
            line.phase == Phase::Open && line.link.as_ref().is_some_and(Link::has_more)
        });
        if more {
            self.readable(turn);
        }
    }
}

impl LinkOwner for Peer {
    fn readable(&self, turn: &mut Turn) {
        let overdue = |line: &Line| line.link.as_ref().is_some_and(Link::is_overdue);
        if self.line.get(turn).is_some_and(|line| overdue(&line)) {
            self.settle(turn, Err(Failure::Shutdown));
            return;
        }
        match self.phase(turn) {
            Phase::Idle | Phase::Handshaking { .. } => {}
            Phase::Connecting { .. } => {
                // A failed attempt may show on this side; a good one shows on the other.
                let result = self.check_connect(turn, false);
                self.settle(turn, result);
            }
            Phase::Open => loop {
                let result = self.receive(turn);
                let told = self.settle(turn, result);
                let more = self
                    .line
                    .get(turn)
                    .is_some_and(|line| line.link.as_ref().is_some_and(Link::has_more));
                if !(told && more) {
                    return;
                }
            },
        }
    }

    fn writable(&self, turn: &mut Turn) {
        match self.phase(turn) {
            Phase::Connecting { .. } => {
                let result = self.check_connect(turn, true);
                self.settle(turn, result);
                self.read_on(turn);
            }
            Phase::Open => self.write(turn),
            Phase::Idle | Phase::Handshaking { .. } => {}
        }
    }

    fn handshaken(&self, turn: &mut Turn) {
        if let Phase::Handshaking { .. } = self.phase(turn) {
            let result = self.handshake(turn);
            self.settle(turn, result);
        }
        self.read_on(turn);
    }
}

impl ResolverOwner for Peer {
    fn resolved(&self, turn: &mut Turn, answer: Result<Resolved, ResolveError>) {
        let resolution = match self.book.try_borrow_mut() {
            Ok(mut book) => book.learn(clock::unix_time(), answer),
            Err(_) => return,
        };
        let (addresses, has) = match resolution {
            Resolution::Same | Resolution::Failed { first: false, .. } => return,
            Resolution::Failed { error, first: true } => {
                if let Ok(book) = self.book.try_borrow() {
                    let doing = self.doing(Some("resolving backend"));
                    log_at!(Log::cycle(), Error, "{self}: \"{}\" {error}{doing}", book.name());
                }
                return;
            }
            Resolution::Moved(addresses) => (addresses, "has moved to"),
            Resolution::Found(addresses) => (addresses, "is at"),
        };
        let book = match self.book.try_borrow_mut() {
            Ok(mut book) => book.successor(addresses),
            Err(_) => return,
        };
        let successor = Peer::with_book(
            book,
            self.tls.clone(),
            self.breaker,
            Rc::clone(&self.codec),
            self.limits.clone(),
            Weak::clone(&self.replies),
        );
        let doing = self.doing(None);
        log_at!(Log::cycle(), Notice, "{self} {has} {successor}{doing}");
        if let Some(replies) = self.replies.upgrade() {
            replies.moved(turn, self, successor);
        }
    }
}

impl Handle<Work> for Peer {
    fn fired(&self, turn: &mut Turn) {
        self.resolve(turn);
        let us = clock::now_us();
        let held = {
            let Ok(mut state) = self.state.try_borrow_mut() else { return };
            let state = &mut *state;
            let Some(conversation) = &mut state.conversation else { return };
            if !conversation.is_open() {
                conversation.submit(us / 1000);
            }
            if state.demoted {
                Err(conversation::Failure::NotMaster)
            } else if conversation.is_suspect() {
                Err(conversation::Failure::Suspect)
            } else {
                Ok(state.hold.goes_on(us, tls::steps(), conversation.waiting()))
            }
        };
        match (held, self.phase(turn)) {
            (Err(failure), _) => {
                self.settle(turn, Err(failure.into()));
            }
            (Ok(_), Phase::Idle) => self.open(turn),
            (Ok(true), _) => self.work.post_next(),
            (Ok(false), _) => self.write(turn),
        }
    }
}

impl Handle<Tick> for Peer {
    fn fired(&self, turn: &mut Turn) {
        let now = clock::now_ms();
        let overdue = {
            let Ok(mut state) = self.state.try_borrow_mut() else { return };
            let next = state.conversation.as_mut().and_then(Conversation::next_deadline);
            next.is_some_and(|deadline| deadline <= now)
        };
        // What has happened by now counts, although nginx has not told of it: the turn may have taken
        // longer than the server had.
        let mut result = match self.phase(turn) {
            Phase::Connecting { deadline } if deadline <= now => {
                let settled = self
                    .line
                    .get(turn)
                    .is_some_and(|line| line.link.as_ref().is_some_and(Link::has_settled));
                if settled { self.check_connect(turn, true) } else { Err(Failure::ConnectTimeout) }
            }
            Phase::Handshaking { deadline } if deadline <= now => match self.handshake(turn) {
                Ok(()) if self.phase(turn) == (Phase::Handshaking { deadline }) => {
                    Err(Failure::HandshakeTimeout)
                }
                result => result,
            },
            Phase::Open if overdue => {
                // All of it: what one read has of it is told before the next.
                self.readable(turn);
                self.write(turn);
                Ok(())
            }
            _ => Ok(()),
        };
        if let (Ok(()), Ok(mut state)) = (&result, self.state.try_borrow_mut()) {
            let state = &mut *state;
            if let Some(conversation) = &mut state.conversation {
                result = conversation.tick(now).map_err(Failure::from);
            }
            self.judge(state);
        }
        let told = self.settle(turn, result);
        if let Ok(mut state) = self.state.try_borrow_mut() {
            self.arm(&mut state);
        }
        if let Phase::Connecting { deadline } | Phase::Handshaking { deadline } = self.phase(turn) {
            self.tick.at(deadline, self.holds_exit());
        }
        if told {
            self.read_on(turn);
        }
    }
}
