//! When requests are written: at once, or together with those that follow.
//!
//! Requests of one turn of the event loop leave in one write. nginx accepts one connection in a
//! turn, and a write with the read of its answers costs a busy worker more than all else about a
//! lookup. So requests that follow another write closely wait for others to go with, as long as the
//! worker has something to do in each turn: what would sleep writes first.

use core::mem;

use crate::ffi::tls::Progress;

/// What part of `fetch_timeout` requests wait for others at most, and so long after a write the next
/// ones do.
const SHARE: u64 = 32;
/// The longest that lookups wait, in microseconds, whatever `fetch_timeout` is.
pub const LOOKUPS: u64 = 2000;
/// And the longest that what is stored does: its client may be at another machine soon.
pub const STORES: u64 = 500;
/// So many do not wait for more: what another one would save is little by then, and what is answered at once
/// goes on in one turn, in which other clients wait.
const ENOUGH: usize = 32;
/// This much does not wait, in bytes.
const MOST: usize = 16 * 1024;

/// Whether requests wait. Times in microseconds.
pub struct Hold {
    /// How long requests wait at most.
    most: u64,
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
}

impl Hold {
    /// Nothing waits. `fetch_timeout` is in milliseconds; `longest`: [`LOOKUPS`] or [`STORES`].
    pub fn new(fetch_timeout: u64, longest: u64) -> Self {
        let most = (fetch_timeout.saturating_mul(1000) / SHARE).min(longest);
        Hold { most, wrote: None, held: None }
    }

    /// A request was made. Whether it waits with others, which are looked at already.
    pub fn joined(&mut self) -> bool {
        let Some(held) = &mut self.held else { return false };
        held.requests = held.requests.saturating_add(1);
        true
    }

    /// Whether requests wait for others.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// A request was made, and none waits.
    pub fn request(&mut self, now: u64, progress: Progress) -> When {
        if self.wrote.is_none_or(|wrote| now.saturating_sub(wrote) >= self.most) {
            return When::ThisTurn;
        }
        self.held = Some(Held { since: now, requests: 1, progress });
        When::NextTurn
    }

    /// Whether `len` bytes of requests wait for one more turn: the worker has had something to do
    /// since that was looked at.
    pub fn goes_on(&mut self, now: u64, progress: Progress, len: usize) -> bool {
        let most = self.most;
        self.held.as_mut().is_some_and(|held| {
            let busy = progress != mem::replace(&mut held.progress, progress);
            let enough = held.requests >= ENOUGH || len >= MOST;
            busy && !enough && now.saturating_sub(held.since) < most
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
