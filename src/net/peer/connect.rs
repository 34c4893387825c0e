//! The beginning of a connection of a peer: addresses, TCP, TLS.

use std::rc::Weak;

use session_core::conversation::Conversation;
use session_core::stats::{Kind as Counted, server as stats};

use super::{Peer, Phase, RequestToken};
use crate::debug;
use crate::ffi::clock;
use crate::ffi::link::{ConnectError, Handshake, Link, Progress};
use crate::ffi::log::Log;
use crate::ffi::turn::Turn;
use crate::net::failure::Failure;

impl Peer {
    /// Opens the connection for which the conversation waits.
    pub(super) fn open(&self, turn: &mut Turn) {
        let addresses = self.book.try_borrow().map_or(0, |book| book.len());
        if let Some(mut line) = self.line.get(turn) {
            line.untried = addresses;
        }
        let result = self.connect(turn);
        self.settle(turn, result);
    }

    /// Connects to the first of the addresses that are left to try and does not fail at once.
    pub(super) fn connect(&self, turn: &mut Turn) -> Result<(), Failure> {
        let mut errno = 0;
        loop {
            match self.line.get(turn) {
                Some(mut line) if line.untried > 0 => line.untried = line.untried.saturating_sub(1),
                _ => return Err(Failure::Connect(errno)),
            }
            let Some(address) = self.address() else { return Err(Failure::Connect(errno)) };
            self.count.begin(Counted::Server, &[&self.limits.backend, &std::format!("{self}")]);
            match Link::connect(turn, Weak::clone(&self.this), &address) {
                Ok((link, progress)) => {
                    debug!(Log::cycle(), "SSL session backend {self}: {progress:?}");
                    self.begin(turn, Some(link), |deadline| Phase::Connecting { deadline });
                    return match progress {
                        Progress::Connected => self.connected(turn),
                        Progress::Connecting => Ok(()),
                    };
                }
                Err(ConnectError::Refused(e)) => errno = e,
                Err(ConnectError::Local) => return Err(Failure::Local),
            }
            if self.line.get(turn).is_some_and(|line| line.untried > 0) {
                self.next_address();
            }
        }
    }

    /// Enters a phase that may take as long as connecting.
    pub(super) fn begin(&self, turn: &Turn, link: Option<Link>, phase: impl FnOnce(u64) -> Phase) {
        let Some(mut line) = self.line.get(turn) else { return };
        let deadline = clock::now_ms().saturating_add(self.limits.connect_timeout);
        line.phase = phase(deadline);
        if link.is_some() {
            line.link = link;
        }
        self.tick.at(deadline, self.holds_exit());
    }

    /// Whether an exiting worker waits for this server.
    pub(super) fn holds_exit(&self) -> bool {
        let asked = |c: &Conversation<RequestToken>| c.unanswered() > 0;
        let state = self.state.try_borrow();
        clock::is_exiting() && state.is_ok_and(|s| s.conversation.as_ref().is_some_and(asked))
    }

    /// Looks how the attempt to connect goes. `ended`: it has come to its end.
    pub(super) fn check_connect(&self, turn: &mut Turn, ended: bool) -> Result<(), Failure> {
        let connected =
            self.line.get(turn).and_then(|line| line.link.as_ref().map(Link::connected));
        match connected {
            Some(Ok(())) if ended => self.connected(turn),
            Some(Err(errno)) => {
                let left = self.line.get(turn).map_or(0, |mut line| {
                    line.phase = Phase::Idle;
                    line.link = None;
                    line.untried
                });
                if left == 0 {
                    return Err(Failure::Connect(errno));
                }
                self.next_address();
                self.connect(turn)
            }
            Some(Ok(())) | None => Ok(()),
        }
    }

    pub(super) fn next_address(&self) {
        if let Ok(mut book) = self.book.try_borrow_mut() {
            book.advance();
        }
    }

    /// The connection is there. With TLS the handshake begins.
    pub(super) fn connected(&self, turn: &Turn) -> Result<(), Failure> {
        if self.tls.is_none() {
            self.ready(turn);
            return Ok(());
        }
        self.begin(turn, None, |deadline| Phase::Handshaking { deadline });
        self.handshake(turn)
    }

    /// Goes on with the TLS handshake.
    pub(super) fn handshake(&self, turn: &Turn) -> Result<(), Failure> {
        let Some(mut line) = self.line.get(turn) else { return Ok(()) };
        let (Some(tls), Some(link)) = (&self.tls, &line.link) else { return Ok(()) };
        let address = self.address();
        let earlier = line.session.as_ref().filter(|(of, _)| Some(of) == address.as_ref());
        match link.handshake(turn, &tls.client, &tls.name, earlier.map(|(_, session)| session)) {
            Handshake::Done => {
                let reused = link.was_resumed();
                self.count.add(if reused { stats::TLS_REUSED } else { stats::TLS_NEW }, 1);
                let resumed = if reused { ", session reused" } else { "" };
                debug!(Log::cycle(), "SSL session backend {self}: SSL handshake done{resumed}");
                self.keep_session(&mut line);
                drop(line);
                self.ready(turn);
                Ok(())
            }
            Handshake::Again => Ok(()),
            Handshake::Failed(error) => Err(Failure::Handshake(error)),
        }
    }

    /// The connection can be written to.
    pub(super) fn ready(&self, turn: &Turn) {
        self.count.add(stats::CONNECTIONS, 1);
        let Some(mut line) = self.line.get(turn) else { return };
        line.phase = Phase::Open;
        if line.link.as_ref().is_some_and(|link| !link.begin()) {
            // The next read or write says why.
            debug!(Log::cycle(), "SSL session backend {self}: event registration failed");
        }
        if let Ok(mut state) = self.state.try_borrow_mut() {
            if let Some(conversation) = &mut state.conversation {
                conversation.connected(clock::now_ms());
            }
            self.arm(&mut state);
        }
        self.work.post();
    }
}
