//! The beginning of a connection: addresses, TCP, TLS.

use std::rc::Weak;

use session_core::buffer::Secret;
use session_core::codec::OutOfMemory;
use session_core::stats::server as stats;

use super::line::{Line, Phase};
use super::{Peer, Turn};
use crate::ffi::clock;
use crate::ffi::file::Unusable;
use crate::ffi::link::{ConnectError, Handshake, Link, Progress};
use crate::ffi::log::Log;
use crate::net::failure::Failure;
use crate::{debug, log_at};

impl Line {
    /// Opens the connection for which the conversation waits.
    pub(super) fn open(&self, turn: &mut Turn, peer: &Peer) {
        let addresses = peer.book.try_borrow().map_or(0, |book| book.len());
        if let Some(mut wire) = self.wire.get(turn) {
            wire.untried = addresses;
        }
        let result = self.connect(turn, peer);
        self.settle(turn, result);
    }

    /// Connects to the first of the addresses that are left to try and does not fail at once.
    pub(super) fn connect(&self, turn: &mut Turn, peer: &Peer) -> Result<(), Failure> {
        let mut errno = 0;
        loop {
            match self.wire.get(turn) {
                Some(mut wire) if wire.untried > 0 => wire.untried = wire.untried.saturating_sub(1),
                _ => return Err(Failure::Connect(errno)),
            }
            let Some(address) = peer.address() else { return Err(Failure::Connect(errno)) };
            peer.begin_count();
            match Link::connect(turn, Weak::clone(&self.this), &address) {
                Ok((link, progress)) => {
                    debug!(Log::cycle(), "SSL session backend {peer}: {progress:?}");
                    self.begin(turn, peer, Some(link), |deadline| Phase::Connecting { deadline });
                    return match progress {
                        Progress::Connected => self.connected(turn, peer),
                        Progress::Connecting => Ok(()),
                    };
                }
                Err(ConnectError::Refused(e)) => errno = e,
                Err(ConnectError::Local) => return Err(Failure::Local),
            }
            if self.wire.get(turn).is_some_and(|wire| wire.untried > 0) {
                peer.next_address();
            }
        }
    }

    /// Enters a phase that may take as long as connecting.
    fn begin(
        &self,
        turn: &Turn,
        peer: &Peer,
        link: Option<Link>,
        phase: impl FnOnce(u64) -> Phase,
    ) {
        let Some(mut wire) = self.wire.get(turn) else { return };
        let deadline = clock::now_ms().saturating_add(peer.limits.connect_timeout);
        wire.phase = phase(deadline);
        if link.is_some() {
            wire.link = link;
        }
        self.tick.at(deadline, self.holds_exit());
    }

    /// Looks how the attempt to connect goes. `ended`: it has come to its end.
    pub(super) fn check_connect(&self, turn: &mut Turn, ended: bool) -> Result<(), Failure> {
        let Some(peer) = self.peer.upgrade() else { return Ok(()) };
        let connected =
            self.wire.get(turn).and_then(|wire| wire.link.as_ref().map(Link::connected));
        match connected {
            Some(Ok(())) if ended => self.connected(turn, &peer),
            Some(Err(errno)) => {
                let left = self.wire.get(turn).map_or(0, |mut wire| {
                    wire.phase = Phase::Idle;
                    wire.link = None;
                    wire.untried
                });
                if left == 0 {
                    return Err(Failure::Connect(errno));
                }
                peer.next_address();
                self.connect(turn, &peer)
            }
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// The connection is there. With TLS the handshake begins.
    fn connected(&self, turn: &Turn, peer: &Peer) -> Result<(), Failure> {
        let Some(tls) = &peer.tls else { return self.ready(turn, peer) };
        for (file, read) in tls.client.refresh(turn) {
            peer.say_of_file(file.path(), &read);
        }
        if let Some(mut wire) = self.wire.get(turn) {
            wire.generation = tls.client.generation();
        }
        self.begin(turn, peer, None, |deadline| Phase::Handshaking { deadline });
        self.handshake(turn)
    }

    /// Goes on with the TLS handshake.
    pub(super) fn handshake(&self, turn: &Turn) -> Result<(), Failure> {
        let Some(peer) = self.peer.upgrade() else { return Ok(()) };
        let Some(wire) = self.wire.get(turn) else { return Ok(()) };
        let (Some(tls), Some(link)) = (&peer.tls, &wire.link) else { return Ok(()) };
        let handshake = {
            let address = peer.address();
            let Some(kept) = peer.session.get(turn) else { return Ok(()) };
            let earlier = kept.as_ref().filter(|kept| {
                Some(&kept.address) == address.as_ref() && kept.generation == wire.generation
            });
            link.handshake(turn, &tls.client, &tls.name, earlier.map(|kept| &kept.session))
        };
        match handshake {
            Handshake::Done => {
                let reused = link.was_resumed();
                peer.count.add(if reused { stats::TLS_REUSED } else { stats::TLS_NEW }, 1);
                let resumed = if reused { ", session reused" } else { "" };
                debug!(Log::cycle(), "SSL session backend {peer}: SSL handshake done{resumed}");
                peer.keep_session(turn, link, wire.generation);
                drop(wire);
                self.ready(turn, &peer)
            }
            Handshake::Again => Ok(()),
            Handshake::Failed(error) => Err(Failure::Handshake(error)),
        }
    }

    /// The connection can be written to.
    fn ready(&self, turn: &Turn, peer: &Peer) -> Result<(), Failure> {
        peer.count.add(stats::CONNECTIONS, 1);
        let Some(mut wire) = self.wire.get(turn) else { return Ok(()) };
        wire.phase = Phase::Open;
        if let (Some(link), Some(seconds)) = (&wire.link, peer.limits.keepalive) {
            link.keep_alive(seconds);
        }
        if wire.link.as_ref().is_some_and(|link| !link.begin()) {
            // The next read or write says why.
            debug!(Log::cycle(), "SSL session backend {peer}: event registration failed");
        }
        drop(wire);
        let password = peer.password(turn, false);
        let greeted = self.with(|it| it.connected(clock::now_ms(), &password));
        greeted.unwrap_or(Ok(())).map_err(|OutOfMemory| Failure::OutOfMemory)?;
        self.arm();
        self.work.post();
        Ok(())
    }
}

impl Peer {
    /// The password to greet with. Its file is read where it has changed, or where the server has
    /// refused what was read before: that goes on being used if the file is of no use.
    pub(super) fn password(&self, turn: &Turn, refused: bool) -> Secret {
        let read = self.password.refresh(turn, refused);
        if let Some(file) = self.password.file() {
            self.say_of_file(file.path(), &read);
        }
        self.password.current()
    }

    /// Says what became of a file that was to be read again.
    fn say_of_file(&self, path: &str, read: &Result<bool, Unusable>) {
        match read {
            Ok(false) => {}
            Ok(true) => {
                let doing = self.doing(None);
                log_at!(
                    Log::cycle(),
                    Notice,
                    "{self}: \"{path}\" has changed, new connections use it{doing}"
                );
            }
            Err(unusable) => {
                let times = self.state.try_borrow_mut().ok();
                let times = times.and_then(|mut state| state.unusable.pass(clock::now_ms()));
                if let Some(times) = times {
                    log_at!(
                        Log::cycle(),
                        Error,
                        "{self}: {}, what was read before is used ({times} times){}",
                        unusable.of(path),
                        self.doing(None)
                    );
                }
            }
        }
    }
}
