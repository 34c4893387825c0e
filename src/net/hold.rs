//! When requests are written: at once, or together with those that follow.
//!
//! Requests of one turn of the event loop leave in one write. nginx accepts one connection in a
//! turn, and a write with the read of its answers costs a busy worker more than all else about a
//! lookup, and the store more than the request. So requests that follow another write closely wait
//! for others to go with. Handshakes wait for lookups: these wait as long as the worker has something
//! to do in each turn, and what would sleep writes first. No handshake waits for what is stored, and
//! full handshakes leave a worker idle in between: that waits for some time, where much is stored.

use core::mem;

use crate::ffi::tls::Progress;

/// What part of `fetch_timeout` requests wait for others at most.
const SHARE: u64 = 32;
/// The longest that requests wait, in microseconds, whatever `fetch_timeout` is.
const LONGEST: u64 = 2000;
/// What is stored waits if it follows a write as closely as this, in microseconds. Where less is stored, a
/// client may come back, here or elsewhere, sooner than what waits would be written.
const CLOSELY: u64 = 500;
/// So many do not wait for more: what another one would save is little by then, and what is answered at once
/// goes on in one turn, in which other clients wait.
const ENOUGH: usize = 32;
/// This much does not wait, in bytes.
const MOST: usize = 16 * 1024;

/// What requests wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A turn in which the worker has nothing to do.
    Idle,
    /// A time.
    Time,
}

/// Whether requests wait. Times in microseconds.
pub struct Hold {
    wait: Wait,
    /// How long requests wait at most.
    most: u64,
    /// How long after a write the next ones do.
    closely: u64,
    /// When something was written last.
    wrote: Option<u64>,
    held: Option<Held>,
}

struct Held {
    since: u64,
    requests: usize,
    /// How far the worker had come when that was last looked at.
    progress: Progress,
}

/// When the requests that wait are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At the end of this turn.
    ThisTurn,
    /// In the next turn.
    NextTurn,
    /// At a time, or a little earlier.
    At(u64),
}

impl Hold {
    /// Nothing waits. `fetch_timeout` is in milliseconds.
    pub fn new(fetch_timeout: u64, wait: Wait) -> Self {
        let most = (fetch_timeout.saturating_mul(1000) / SHARE).min(LONGEST);
        let closely = match wait {
            Wait::Idle => most,
            Wait::Time => most.min(CLOSELY),
        };
        Hold { wait, most, closely, wrote: None, held: None }
    }

    /// Whether requests wait for others.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// A request was made, and with it `len` bytes wait. When they are looked at, unless that is settled.
    pub fn request(
        &mut self,
        now: u64,
        len: usize,
        progress: impl FnOnce() -> Progress,
    ) -> Option<When> {
        if let Some(held) = &mut self.held {
            held.requests = held.requests.saturating_add(1);
            let is_next = self.wait == Wait::Time && held.is_enough(len);
            return is_next.then_some(When::ThisTurn);
        }
        if self.wrote.is_none_or(|wrote| now.saturating_sub(wrote) >= self.closely) {
            return Some(When::ThisTurn);
        }
        self.held = Some(Held { since: now, requests: 1, progress: progress() });
        Some(match self.wait {
            Wait::Idle => When::NextTurn,
            Wait::Time => When::At(now.saturating_add(self.most)),
        })
    }

    /// Whether `len` bytes of requests wait for one more turn: the worker has had something to do
    /// since that was looked at.
    pub fn goes_on(&mut self, now: u64, progress: Progress, len: usize) -> bool {
        let (wait, most) = (self.wait, self.most);
        self.held.as_mut().filter(|_| wait == Wait::Idle).is_some_and(|held| {
            let busy = progress != mem::replace(&mut held.progress, progress);
            busy && !held.is_enough(len) && now.saturating_sub(held.since) < most
        })
    }

    /// What waits is written; `wrote`: something was.
    pub fn release(&mut self, now: u64, wrote: bool) {
        self.held = None;
        if wrote {
            self.wrote = Some(now);
        }
    }
}

impl Held {
    fn is_enough(&self, len: usize) -> bool {
        self.requests >= ENOUGH || len >= MOST
    }
}
