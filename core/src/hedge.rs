//! When a lookup without an answer is made at a second server, too.
//!
//! All lookups wait for the same time, so that they are due in the order in which they were made: one
//! queue and one timer are enough. The time counts from the end of the turn in which a lookup was
//! made, as its deadline does: a turn with hundreds of handshakes takes longer than that.
//!
//! A server that is slow for all would have twice the requests to answer, and so would the others. So
//! only a share of the lookups is made twice: each lookup pays in a part of what a second one costs.
//!
//! Times are in milliseconds of a clock that does not go back.

use alloc::collections::VecDeque;

use crate::codec::OutOfMemory;

/// One lookup in so many may be made twice.
pub const SHARE: u32 = 20;
/// So many may be made twice at once, after as many times [`SHARE`] that were not.
pub const SAVED: u32 = 10;

/// The lookups that may be made twice, oldest first. `T` names one.
#[derive(Debug)]
pub struct Hedges<T> {
    /// How long a lookup waits.
    delay: u64,
    /// Each with when it is due.
    queue: VecDeque<(T, u64)>,
    /// How many of those, at the end, were made in this turn: their time is still to be set.
    fresh: usize,
    /// What was paid in and not spent. A second lookup costs [`SHARE`].
    balance: u32,
}

impl<T> Hedges<T> {
    /// No lookups, of which each will wait for `delay`. What may be saved is there.
    pub const fn new(delay: u64) -> Self {
        let balance = SHARE.saturating_mul(SAVED);
        Hedges { delay, queue: VecDeque::new(), fresh: 0, balance }
    }

    /// A lookup is made. Forgets those in front that are over: a server that answers in time leaves
    /// hardly any.
    pub fn made(&mut self, lookup: T, is_over: impl Fn(&T) -> bool) -> Result<(), OutOfMemory> {
        self.balance = self.balance.saturating_add(1).min(SHARE.saturating_mul(SAVED));
        while self.queue.front().is_some_and(|(first, _)| is_over(first)) {
            self.queue.pop_front();
        }
        self.fresh = self.fresh.min(self.queue.len());
        self.queue.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.queue.push_back((lookup, u64::MAX));
        self.fresh = self.fresh.saturating_add(1);
        Ok(())
    }

    /// The turn ends in which lookups were made: they wait from `now` on.
    pub fn submitted(&mut self, now: u64) {
        let due = now.saturating_add(self.delay);
        let old = self.queue.len().saturating_sub(self.fresh);
        self.queue.range_mut(old..).for_each(|(_, at)| *at = due);
        self.fresh = 0;
    }

    /// The next lookup that has waited for long enough at `now`, and since when. To be called until
    /// there is none.
    pub fn pop_due(&mut self, now: u64) -> Option<(T, u64)> {
        self.queue.front().filter(|(_, due)| *due <= now)?;
        let (lookup, due) = self.queue.pop_front()?;
        Some((lookup, due.saturating_sub(self.delay)))
    }

    /// When the next one has.
    pub fn next_due(&self) -> Option<u64> {
        self.queue.front().map(|(_, due)| *due).filter(|due| *due < u64::MAX)
    }

    /// Whether a lookup may be made twice now. If so, that is paid for.
    pub fn spend(&mut self) -> bool {
        match self.balance.checked_sub(SHARE) {
            Some(rest) => {
                self.balance = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn due(hedges: &mut Hedges<u32>, now: u64) -> Vec<(u32, u64)> {
        std::iter::from_fn(|| hedges.pop_due(now)).collect()
    }

    fn make(hedges: &mut Hedges<u32>, lookup: u32) {
        hedges.made(lookup, |_| false).unwrap();
    }

    #[test]
    fn lookups_are_due_in_the_order_in_which_they_were_made() {
        let mut hedges = Hedges::new(5);
        make(&mut hedges, 1);
        make(&mut hedges, 2);
        hedges.submitted(100);
        make(&mut hedges, 3);
        hedges.submitted(102);
        assert_eq!(hedges.next_due(), Some(105));
        assert_eq!(due(&mut hedges, 104), []);
        assert_eq!(due(&mut hedges, 105), [(1, 100), (2, 100)]);
        assert_eq!(hedges.next_due(), Some(107));
        assert_eq!(due(&mut hedges, 1000), [(3, 102)]);
        assert_eq!(hedges.next_due(), None);
    }

    #[test]
    fn time_counts_from_the_end_of_the_turn() {
        let mut hedges = Hedges::new(5);
        make(&mut hedges, 1);
        assert_eq!(hedges.next_due(), None);
        assert_eq!(due(&mut hedges, 1_000_000), []);
        hedges.submitted(300);
        assert_eq!(hedges.next_due(), Some(305));
        // Those of earlier turns keep theirs.
        make(&mut hedges, 2);
        hedges.submitted(303);
        assert_eq!(due(&mut hedges, 305), [(1, 300)]);
        assert_eq!(due(&mut hedges, 308), [(2, 303)]);
    }

    #[test]
    fn what_is_over_does_not_stay_in_the_queue() {
        let mut hedges = Hedges::new(5);
        for n in 0..1000 {
            // All before have been answered.
            hedges.made(n, |&lookup| lookup < n).unwrap();
        }
        assert_eq!(hedges.queue.len(), 1);
        hedges.submitted(10);
        assert_eq!(due(&mut hedges, 15), [(999, 10)]);
        // Behind one that is not answered they wait for its time.
        hedges.made(0, |_| true).unwrap();
        hedges.made(1, |_| false).unwrap();
        hedges.made(2, |&lookup| lookup == 1).unwrap();
        assert_eq!(hedges.queue.len(), 3);
        hedges.submitted(20);
        assert_eq!(due(&mut hedges, 25), [(0, 20), (1, 20), (2, 20)]);
    }

    #[test]
    fn one_lookup_in_twenty_is_made_twice() {
        let mut hedges = Hedges::new(5);
        // What may be saved is there at the beginning, so that the first outage is helped, too.
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), 10);
        let mut twice = 0;
        for n in 0..2000 {
            make(&mut hedges, n);
            twice += u32::from(hedges.spend());
        }
        assert_eq!(twice, 100);
    }

    #[test]
    fn no_more_than_ten_are_saved() {
        let mut hedges = Hedges::new(5);
        for n in 0..100_000 {
            make(&mut hedges, n);
        }
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), 10);
        // Nineteen pay for nothing.
        for n in 0..19 {
            make(&mut hedges, n);
            assert!(!hedges.spend());
        }
        make(&mut hedges, 19);
        assert!(hedges.spend());
        assert!(!hedges.spend());
    }
}
