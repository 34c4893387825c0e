//! Requests on a pipelined connection that have not been answered.
//!
//! Answers come in order, so the oldest request is the one that the next answer belongs to. A
//! request whose deadline has passed keeps its place until its answer, now of no interest, has
//! come.

use alloc::collections::VecDeque;

use crate::codec::OutOfMemory;

/// What kind of request it is, and so which answers it may get. What changes nothing has
/// one timeout, all else another one, so that the deadlines of each class come in the order in which
/// the requests were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<W> {
    /// What a connection begins with; counted from 0.
    Greeting(usize),
    /// A handshake waits for the entry.
    Fetch(W),
    /// A handshake waits to hear whether the entry is its own.
    Claim(W),
    /// Something is changed. Where there is a waiter, it wants to know if that has to be done
    /// elsewhere.
    Update(Option<W>),
    /// The servers are asked about themselves.
    Query,
}

impl<W: Copy> Kind<W> {
    /// Who waits for the answer.
    pub fn waiter(self) -> Option<W> {
        match self {
            Kind::Fetch(waiter) | Kind::Claim(waiter) => Some(waiter),
            Kind::Update(waiter) => waiter,
            Kind::Greeting(_) | Kind::Query => None,
        }
    }

    /// Whether anybody wants to know how it ends.
    pub fn is_awaited(self) -> bool {
        self.waiter().is_some() || matches!(self, Kind::Query)
    }

    fn is_fetch(self) -> bool {
        matches!(self, Kind::Fetch(_) | Kind::Claim(_) | Kind::Query)
    }
}

/// One unanswered request.
#[derive(Clone, Copy, Debug)]
pub struct Request<W> {
    /// Its kind; the waiter of a fetch stays in it when the deadline has passed.
    pub kind: Kind<W>,
    /// When it was made, in milliseconds.
    pub since: u64,
    /// When its answer stops being of interest, in milliseconds.
    pub deadline: u64,
    /// Whether the deadline has passed and the waiter was told.
    pub expired: bool,
}

/// The unanswered requests of one connection, oldest first.
#[derive(Debug)]
pub struct InFlight<W> {
    queue: VecDeque<Request<W>>,
    /// How many requests have left the queue: the number of the one in front.
    gone: u64,
    /// Numbers of the requests from which on the deadlines of a class have not passed.
    fetches: u64,
    others: u64,
}

/// A request whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired<W> {
    /// Its kind, with the waiter to be told.
    pub kind: Kind<W>,
    /// When it was made, in milliseconds.
    pub since: u64,
    /// How long it has had, in milliseconds.
    pub timeout: u64,
}

impl<W: Copy> InFlight<W> {
    /// No requests.
    pub const fn new() -> Self {
        InFlight { queue: VecDeque::new(), gone: 0, fetches: 0, others: 0 }
    }

    /// How many are unanswered.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Makes room for so many requests more.
    pub fn reserve(&mut self, requests: usize) -> Result<(), OutOfMemory> {
        self.queue.try_reserve(requests).map_err(|_| OutOfMemory)
    }

    /// Adds a request, made at `now`, to be answered within `timeout` milliseconds. There is room
    /// for it, see [`InFlight::reserve`].
    pub fn push(&mut self, kind: Kind<W>, now: u64, timeout: u64) {
        self.queue.push_back(Request {
            kind,
            since: now,
            deadline: now.saturating_add(timeout),
            expired: false,
        });
    }

    /// The oldest request: the one that the next answer belongs to.
    pub fn front(&self) -> Option<&Request<W>> {
        self.queue.front()
    }

    /// Takes out the oldest request, whose answer has come or never will.
    pub fn pop(&mut self) -> Option<Request<W>> {
        let request = self.queue.pop_front()?;
        self.gone = self.gone.saturating_add(1);
        Some(request)
    }

    /// The next request whose deadline has passed at `now`. To be called until there is none.
    pub fn expire(&mut self, now: u64) -> Option<Expired<W>> {
        [true, false].into_iter().find_map(|fetches| {
            let request = self.first_due(fetches)?;
            if request.deadline > now {
                return None;
            }
            request.expired = true;
            let timeout = request.deadline.saturating_sub(request.since);
            let expired = Expired { kind: request.kind, since: request.since, timeout };
            let next = if fetches { &mut self.fetches } else { &mut self.others };
            *next = next.saturating_add(1);
            Some(expired)
        })
    }

    /// When the next deadline passes.
    pub fn next_deadline(&mut self) -> Option<u64> {
        let fetch = self.first_due(true).map(|request| request.deadline);
        let other = self.first_due(false).map(|request| request.deadline);
        match (fetch, other) {
            (Some(fetch), Some(other)) => Some(fetch.min(other)),
            (one, None) => one,
            (None, one) => one,
        }
    }

    /// The oldest request of a class whose deadline has not been dealt with; its number is left
    /// in the class's counter.
    fn first_due(&mut self, fetches: bool) -> Option<&mut Request<W>> {
        let next = if fetches { &mut self.fetches } else { &mut self.others };
        *next = (*next).max(self.gone);
        let skip = usize::try_from(next.saturating_sub(self.gone)).ok()?;
        let found = self
            .queue
            .range(skip.min(self.queue.len())..)
            .position(|request| request.kind.is_fetch() == fetches);
        let ahead = found.unwrap_or_else(|| self.queue.len().saturating_sub(skip));
        *next = next.saturating_add(ahead as u64);
        self.queue.get_mut(skip.saturating_add(found?))
    }
}

impl<W: Copy> Default for InFlight<W> {
    fn default() -> Self {
        InFlight::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn expire(inflight: &mut InFlight<u32>, now: u64) -> Vec<Kind<u32>> {
        std::iter::from_fn(|| inflight.expire(now)).map(|expired| expired.kind).collect()
    }

    #[test]
    fn deadlines_of_both_classes_pass_in_their_order() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Update(None), 0, 1000);
        inflight.push(Kind::Fetch(1), 10, 50);
        inflight.push(Kind::Update(None), 20, 1000);
        inflight.push(Kind::Fetch(2), 30, 50);
        assert_eq!(inflight.next_deadline(), Some(60));
        assert_eq!(expire(&mut inflight, 59), []);
        assert_eq!(expire(&mut inflight, 60), [Kind::Fetch(1)]);
        assert_eq!(expire(&mut inflight, 60), []);
        assert_eq!(inflight.next_deadline(), Some(80));
        assert_eq!(expire(&mut inflight, 1010), [Kind::Fetch(2), Kind::Update(None)]);
        assert_eq!(inflight.next_deadline(), Some(1020));
        assert_eq!(expire(&mut inflight, 5000), [Kind::Update(None)]);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(inflight.len(), 4);
    }

    #[test]
    fn an_expired_request_keeps_its_place_for_its_late_answer() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50);
        inflight.push(Kind::Fetch(2), 40, 50);
        assert_eq!(expire(&mut inflight, 60), [Kind::Fetch(1)]);
        let first = inflight.pop().unwrap();
        assert!(first.expired);
        let second = inflight.pop().unwrap();
        assert!(!second.expired);
        assert_eq!(second.kind, Kind::Fetch(2));
        assert!(inflight.pop().is_none());
        inflight.push(Kind::Fetch(3), 100, 50);
        assert_eq!(inflight.next_deadline(), Some(150));
        assert_eq!(expire(&mut inflight, 150), [Kind::Fetch(3)]);
    }

    #[test]
    fn answered_requests_do_not_expire() {
        let mut inflight = InFlight::new();
        for n in 0..10 {
            inflight.push(Kind::Fetch(n), u64::from(n), 50);
        }
        for _ in 0..9 {
            inflight.pop();
        }
        assert_eq!(expire(&mut inflight, 1000), [Kind::Fetch(9)]);
    }
}
