//! The connections of a peer: what happens in events of our own.
//!
//! Nothing is borrowed while handlers of nginx's may run: these may end clients, and OpenSSL may make
//! requests while they do.

use std::rc::{Rc, Weak};

use session_core::conversation::{self, Conversation, Ends, Refusal};
use session_core::hint::Hinted;
use session_core::inflight::Kind;
use session_core::stats::server as stats;

use super::line::{Lane, Line, Phase, Tick, Wire, Work};
use super::verdict::Facts;
use super::{Kept, Peer, RequestToken};
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

/// What one read came to.
enum Took {
    /// There is nothing to read.
    Nothing,
    /// Something was read.
    Some {
        /// Whether there may be more.
        more: bool,
    },
}

impl Line {
    /// Writes what waits. An error shows again, and is dealt with, when reading.
    pub(super) fn write(&self, turn: &Turn, peer: &Peer) {
        let us = clock::now_us();
        // What waits may be removals of entries that are good.
        if self.lane == Lane::Stores && peer.is_suspect() {
            // It is not looked at any more: if all is well after all, the next request has it written.
            self.talk(|talk| talk.hold.release(us, false));
            return;
        }
        let Some(wire) = self.wire.get(turn) else { return };
        let (Some(link), Phase::Open) = (&wire.link, wire.phase) else { return };
        self.talk(|talk| {
            let Some(conversation) = &mut talk.conversation else { return };
            let mut wrote = false;
            loop {
                let unsent = conversation.unsent(us / 1000);
                if unsent.is_empty() {
                    link.wrote_all();
                    break;
                }
                let Io::Bytes(n) = link.write(turn, unsent) else { break };
                let all = n >= unsent.len();
                peer.count.add(stats::SENT, n as u64);
                conversation.sent(n);
                wrote = true;
                if all {
                    link.wrote_all();
                    break;
                }
            }
            talk.hold.release(us, wrote);
        });
        // What was made until then was to be written.
        self.work.cancel();
        drop(wire);
        // It is looked at sooner than a request is late.
        if self.with(|it| it.is_stale()).unwrap_or(false) {
            self.arm();
        }
    }

    /// Reads what there is and takes the answers out of it.
    fn receive(&self, turn: &Turn, peer: &Peer) -> Result<(), Failure> {
        for _ in 0..READ_CHUNKS {
            let Took::Some { more } = self.read(turn, peer)? else { return Ok(()) };
            if !more || self.with(|it| it.has_ends()).unwrap_or(false) {
                // Values lie in the input: they are told before it goes on.
                return Ok(());
            }
        }
        if let Some(link) = self.wire.get(turn).as_ref().and_then(|wire| wire.link.as_ref()) {
            link.read_later();
        }
        Ok(())
    }

    /// Reads once.
    fn read(&self, turn: &Turn, peer: &Peer) -> Result<Took, Failure> {
        let Some(wire) = self.wire.get(turn) else { return Ok(Took::Nothing) };
        let Some(link) = &wire.link else { return Ok(Took::Nothing) };
        let read = self.with(|conversation| {
            match link.read(turn, conversation.input(), READ_CHUNK) {
                Io::Bytes(n) => peer.count.add(stats::RECEIVED, n as u64),
                Io::Again => return Ok(Took::Nothing),
                Io::Closed => return Err(Failure::Closed),
                Io::Failed(errno) => {
                    // Over TLS an errno says little; nginx has said more.
                    let said = link.last_error().filter(|_| peer.tls.is_some());
                    return Err(said.map_or(Failure::Io(errno), |said| Failure::Tls(said.into())));
                }
                Io::OutOfMemory => return Err(Failure::OutOfMemory),
            }
            let more = link.has_more();
            let was_open = conversation.is_open();
            let result = conversation.received(clock::now_ms());
            if conversation.is_open() && !was_open {
                // Requests have waited for the server to accept the greeting.
                self.work.post();
            }
            result?;
            Ok(Took::Some { more })
        });
        peer.keep_session(turn, link, wire.generation);
        drop(wire);
        if self.with(|it| !it.is_silent()).unwrap_or(false) {
            self.doubted.set(false);
        }
        peer.judge(self);
        read.unwrap_or(Ok(Took::Nothing))
    }

    /// Ends an event: gives the connection up if it has failed, tells what has ended, and sets the
    /// timer. Whether something was told.
    pub(super) fn settle(&self, turn: &Turn, result: Result<(), Failure>) -> bool {
        let Some(peer) = self.peer.upgrade() else { return false };
        let ends = match result {
            Ok(()) => {
                if clock::is_exiting() {
                    // The exit waits for what is under way.
                    self.arm();
                }
                peer.show();
                self.with(Conversation::take_ends).flatten()
            }
            Err(failure) => self.give_up(turn, &peer, &failure),
        };
        let told = ends.is_some();
        if let Some(ends) = ends {
            self.tell(turn, &peer, &ends);
            // Whoever was told may have ended the conversation.
            self.with(|conversation| conversation.put_back(ends));
        }
        self.close_if_done(turn);
        told
    }

    /// Tells the ends of requests, with nothing borrowed.
    fn tell(&self, turn: &Turn, peer: &Rc<Peer>, ends: &Ends<RequestToken>) {
        let Some(replies) = peer.replies.upgrade() else { return };
        peer.telling.replace(Weak::clone(&self.this));
        for end in ends.iter() {
            if let Some(refusal) = &end.refusal {
                let times = peer.state.try_borrow_mut().ok();
                if let Some(times) = times.and_then(|mut state| state.refused.pass(clock::now_ms()))
                {
                    let hint = Hinted(refusal.hint(&*peer.codec));
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{peer} refused {times} requests, the last with \"{refusal}\"{hint}{}",
                        peer.doing(Some(wording::action(end.kind)))
                    );
                }
            }
            // Nobody may wait for what was refused.
            if let Some(Refusal::Error(text)) = end.refusal {
                peer.leads_elsewhere(text);
            }
            match (end.reply, end.kind, end.kind.waiter()) {
                (Some(reply), _, Some(waiter)) => {
                    replies.replied(turn, peer, waiter, end.deadline, reply);
                }
                (Some(reply), Kind::Query, None) => replies.learned(turn, peer, reply),
                _ => {}
            }
        }
        peer.telling.replace(Weak::new());
    }

    /// The server has refused the password: where there is another one by now the connection is made
    /// anew, and is greeted with that. The requests that wait for it wait on; the server has failed in
    /// nothing.
    fn greets_anew(&self, turn: &Turn, peer: &Peer, failure: &Failure) -> bool {
        if !matches!(failure, Failure::Conversation(conversation::Failure::Password(_))) {
            return false;
        }
        let password = peer.password(turn, true);
        if !self.with(|conversation| conversation.restart(&password)).unwrap_or(false) {
            return false;
        }
        debug!(Log::cycle(), "SSL session backend {peer}: greeted anew with another password");
        self.shut(turn);
        self.arm();
        self.work.post();
        true
    }

    /// Ends the connection, which has failed. What has ended with it has still to be told.
    fn give_up(&self, turn: &Turn, peer: &Peer, failure: &Failure) -> Option<Ends<RequestToken>> {
        peer.judge(self);
        if self.greets_anew(turn, peer, failure) {
            return self.with(Conversation::take_ends).flatten();
        }
        let conversation = self.talk(|talk| talk.conversation.take()).flatten()?;
        let action = match self.phase(turn) {
            Phase::Idle | Phase::Connecting { .. } => Some("connecting to backend"),
            Phase::Handshaking { .. } => Some("SSL handshaking to backend"),
            Phase::Open => conversation.front().map(wording::action),
        };
        let of_link = matches!(
            failure,
            Failure::Conversation(
                conversation::Failure::Dead(_) | conversation::Failure::Oversized(_)
            )
        );
        let step = match conversation.front() {
            Some(Kind::Greeting(step)) => Some(step),
            _ => None,
        };
        let heard = conversation.is_heard();
        let hint = failure.hint(&*peer.codec, step, peer.tls.is_some(), heard);
        let (asked, stale) = (conversation.unanswered() > 0, conversation.is_stale());
        let (proven, refused) = (conversation.is_proven(), conversation.has_refused());
        let made = conversation.is_open();
        let (lost, ends) = conversation.fail(failure.outcome(), stale || of_link);
        self.shut(turn);
        let facts = Facts { action, hint: Hinted(hint), asked, stale, proven, refused, lost, made };
        peer.ended(turn, self, failure, &facts);
        Some(ends)
    }

    /// Ends the connection and the conversation over it, in which nobody waits for anything.
    pub(super) fn hang_up(&self, turn: &Turn) {
        self.talk(|talk| talk.conversation = None);
        self.shut(turn);
        if let Some(peer) = self.peer.upgrade() {
            peer.forget(self);
            peer.show();
        }
    }

    fn shut(&self, turn: &Turn) {
        self.tick.cancel();
        let Some(mut wire) = self.wire.get(turn) else { return };
        wire.phase = Phase::Idle;
        if let Some(link) = wire.link.take() {
            link.close(turn);
        }
    }

    /// An exiting worker does not keep a connection that has nothing to do.
    pub(super) fn close_if_done(&self, turn: &Turn) {
        let closing = self
            .wire
            .get(turn)
            .is_some_and(|wire| wire.link.as_ref().is_some_and(|link| link.is_closing()));
        let leaves = closing || self.leaves.get() || clock::is_exiting();
        let idle = |it: &mut Conversation<RequestToken>| it.awaited() == 0 && !it.has_ends();
        if leaves && self.with(idle).unwrap_or(false) {
            self.hang_up(turn);
        }
    }

    /// Whether there may be more to read now.
    fn has_more(&self, turn: &Turn) -> bool {
        self.wire.get(turn).is_some_and(|wire| {
            wire.phase == Phase::Open && wire.link.as_ref().is_some_and(Link::has_more)
        })
    }

    /// Reads what came together with the connection, which is not reported again.
    fn read_on(&self, turn: &mut Turn) {
        if self.has_more(turn) {
            self.readable(turn);
        }
    }

    /// Reads all there is, and tells of it.
    pub(super) fn read_all(&self, turn: &Turn) {
        let Some(peer) = self.peer.upgrade() else { return };
        loop {
            let result = self.receive(turn, &peer);
            let told = self.settle(turn, result);
            if !(told && self.has_more(turn)) {
                return;
            }
        }
    }
}

impl LinkOwner for Line {
    fn readable(&self, turn: &mut Turn) {
        let overdue = |wire: &Wire| wire.link.as_ref().is_some_and(Link::is_overdue);
        if self.wire.get(turn).is_some_and(|wire| overdue(&wire)) {
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
            Phase::Open => self.read_all(turn),
        }
    }

    fn writable(&self, turn: &mut Turn) {
        match self.phase(turn) {
            Phase::Connecting { .. } => {
                let result = self.check_connect(turn, true);
                self.settle(turn, result);
                self.read_on(turn);
            }
            // epoll reports this with each answer. What waits for others is looked at soon.
            Phase::Open if self.talk(|talk| talk.hold.holds()) == Some(true) => {}
            Phase::Open => {
                if let Some(peer) = self.peer.upgrade() {
                    self.write(turn, &peer);
                }
            }
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

impl Handle<Work> for Line {
    fn fired(&self, turn: &mut Turn) {
        let Some(peer) = self.peer.upgrade() else { return };
        let us = clock::now_us();
        let held = self.talk(|talk| {
            let conversation = talk.conversation.as_mut()?;
            if !conversation.is_open() {
                conversation.submit(us / 1000);
            }
            Some(if self.demoted.get() {
                Err(conversation::Failure::NotMaster)
            } else if conversation.is_suspect() {
                Err(conversation::Failure::Suspect)
            } else {
                Ok(talk.hold.goes_on(us, tls::progress(), conversation.waiting()))
            })
        });
        match (held.flatten(), self.phase(turn)) {
            (None, _) => {}
            (Some(Err(failure)), _) => {
                self.settle(turn, Err(failure.into()));
            }
            (Some(Ok(_)), Phase::Idle) => self.open(turn, &peer),
            (Some(Ok(true)), _) => self.work.post_next(),
            (Some(Ok(false)), _) => self.write(turn, &peer),
        }
        if self.leaves.get() {
            self.close_if_done(turn);
        }
    }
}

impl Handle<Tick> for Line {
    fn fired(&self, turn: &mut Turn) {
        let Some(peer) = self.peer.upgrade() else { return };
        let now = clock::now_ms();
        let next = self.with(Conversation::next_deadline).flatten();
        let overdue = next.is_some_and(|deadline| deadline <= now);
        // What has happened by now counts, although nginx has not told of it: the turn may have taken
        // longer than the server had.
        let mut result = match self.phase(turn) {
            Phase::Connecting { deadline } if deadline <= now => {
                let settled = self
                    .wire
                    .get(turn)
                    .is_some_and(|wire| wire.link.as_ref().is_some_and(Link::has_settled));
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
                self.read_all(turn);
                self.write(turn, &peer);
                Ok(())
            }
            _ => Ok(()),
        };
        if result.is_ok() {
            let ticked = self.with(|conversation| conversation.tick(now));
            result = ticked.unwrap_or(Ok(())).map_err(Failure::from);
            peer.judge(self);
        }
        if result.is_ok() && self.is_silent() {
            peer.silent(self);
            let muted = self.with(Conversation::take_muted).flatten();
            if let Some(since) = muted.filter(|_| self.lane == Lane::Lookups) {
                if !peer.mute(self, since, now) {
                    let ms = now.saturating_sub(since);
                    result = Err(conversation::Failure::Silent(ms).into());
                }
            }
        }
        let told = self.settle(turn, result);
        self.arm();
        if let Phase::Connecting { deadline } | Phase::Handshaking { deadline } = self.phase(turn) {
            self.tick.at(deadline, self.holds_exit());
        }
        if told {
            self.read_on(turn);
        }
    }
}

impl Peer {
    /// Closes the connections when what was asked has been answered; no request is made any more.
    /// Whether they are closed.
    pub fn retire(&self, turn: &Turn) -> bool {
        let lines = match self.state.try_borrow_mut() {
            Ok(mut state) => {
                state.retired = true;
                state.lines()
            }
            Err(_) => return false,
        };
        for line in lines {
            line.leaves.set(true);
            line.close_if_done(turn);
        }
        self.show();
        self.state.try_borrow().is_ok_and(|state| state.lines().is_empty())
    }

    /// Writes what waits and closes the connections; the worker exits.
    pub fn close(&self, turn: &Turn) {
        let lines = self.state.try_borrow().map(|state| state.lines()).unwrap_or_default();
        for line in lines {
            line.write(turn, self);
            line.hang_up(turn);
        }
    }

    /// Reads the answers to lookups that have come, although nginx has not told of them: the turn may
    /// have taken long.
    pub fn catch_up(&self, turn: &Turn) {
        if let Some(line) = self.lookups().filter(|line| line.phase(turn) == Phase::Open) {
            line.read_all(turn);
        }
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

    pub(super) fn next_address(&self) {
        if let Ok(mut book) = self.book.try_borrow_mut() {
            book.advance();
        }
    }

    /// Keeps the session that the server has given a connection, for the next one.
    pub(super) fn keep_session(&self, turn: &Turn, link: &Link, generation: u64) {
        let Some(session) = link.take_session() else { return };
        if let Some(mut kept) = self.session.get(turn) {
            *kept = self.address().map(|address| Kept { address, generation, session });
        }
    }
}

impl Handle<super::Work> for Peer {
    fn fired(&self, turn: &mut Turn) {
        self.resolve(turn);
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
            self.password.clone(),
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
