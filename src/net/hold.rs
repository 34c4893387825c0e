//! When requests are written: at once, or together with those that follow.
//!
//! Requests of one turn of the event loop leave in one write. nginx accepts one connection in a
//! turn, and a write with the read of its answers costs a busy worker more than all else about a
//! lookup. So requests that follow another write closely wait for others to go with, as long as each
//! turn has handshakes to go on with.

use core::mem;

/// Requests that follow a write within this time wait for others, and no longer than this, in
/// microseconds.
const HOLD: u64 = 500;
/// This much does not wait, in bytes.
const MOST: usize = 16 * 1024;

/// Whether requests wait. Times in microseconds.
#[derive(Default)]
pub struct Hold {
    /// When something was written last.
    wrote: Option<u64>,
    held: Option<Held>,
}

struct Held {
    since: u64,
    /// How many steps of handshakes the worker had seen when that was last looked at.
    steps: usize,
}

/// When the requests that wait are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At the end of this turn.
    ThisTurn,
    /// In the next turn.
    NextTurn,
}

impl Hold {
    /// A request was made. `None` if others wait already.
    pub fn request(&mut self, now: u64, steps: usize) -> Option<When> {
        if self.held.is_some() {
            return None;
        }
        if self.wrote.is_none_or(|wrote| now.saturating_sub(wrote) >= HOLD) {
            return Some(When::ThisTurn);
        }
        self.held = Some(Held { since: now, steps });
        Some(When::NextTurn)
    }

    /// Whether `len` bytes of requests wait for one more turn: the worker has had handshakes to go
    /// on with since that was looked at.
    pub fn goes_on(&mut self, now: u64, steps: usize, len: usize) -> bool {
        self.held.as_mut().is_some_and(|held| {
            let busy = steps != mem::replace(&mut held.steps, steps);
            busy && len < MOST && now.saturating_sub(held.since) < HOLD
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
