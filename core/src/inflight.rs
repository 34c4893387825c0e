//! The requests of one connection that have not been answered.
//!
//! Answers come in order, so the oldest request is the one that the next answer belongs to. A
//! request whose deadline passes keeps its place until its answer, which nobody wants any more, has
//! come.
//!
//! A deadline counts from when the request is submitted, at the end of the turn in which it is made:
//! a turn may take longer than an answer. Where there is a connection that is when the request is
//! written. Where there is none, nobody waits longer for connection and answer than for an answer.

use alloc::collections::VecDeque;

use crate::codec::OutOfMemory;

/// The kind of a request, which says which answers it may get. Each class of kinds has one timeout,
/// so that the deadlines of a class pass in the order of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<W> {
    /// A step of the greeting, counted from 0. It has no deadline of its own.
    Greeting(usize),
    /// A handshake waits for the entry.
    Fetch(W),
    /// A handshake waits for the entry, which is removed.
    Take(W),
    /// A handshake waits to learn whether the entry is its own.
    Claim(W),
    /// Something is changed. A waiter, if there is one, wants to know whether another server has to
    /// be asked.
    Update(Option<W>),
    /// What goes before a request that follows an `ASK`. It ends with that one as far as anybody is
    /// concerned, and has no deadline of its own.
    Asking,
    /// The servers are asked about themselves.
    Query,
}

/// Kinds that have the same timeout.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Lookups,
    Updates,
}

impl<W: Copy> Kind<W> {
    /// Who waits for the answer.
    pub fn waiter(self) -> Option<W> {
        match self {
            Kind::Fetch(waiter) | Kind::Take(waiter) | Kind::Claim(waiter) => Some(waiter),
            Kind::Update(waiter) => waiter,
            Kind::Greeting(_) | Kind::Asking | Kind::Query => None,
        }
    }

    /// Whether anybody wants to know how the request ends.
    pub fn is_awaited(self) -> bool {
        self.waiter().is_some() || matches!(self, Kind::Query)
    }

    /// Whether a handshake, or a question about the servers, waits for the answer.
    pub fn is_lookup(self) -> bool {
        self.class() == Some(Class::Lookups)
    }

    fn class(self) -> Option<Class> {
        match self {
            Kind::Greeting(_) | Kind::Asking => None,
            Kind::Fetch(_) | Kind::Take(_) | Kind::Claim(_) | Kind::Query => Some(Class::Lookups),
            Kind::Update(_) => Some(Class::Updates),
        }
    }
}

/// A request that has not been answered. Times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Request<W> {
    /// What kind of request it is.
    pub kind: Kind<W>,
    /// When it was submitted, or else made.
    pub since: u64,
    /// When it was written.
    pub written: Option<u64>,
    /// How long the server has for an answer.
    pub timeout: u64,
    /// When nobody wants the answer any more.
    pub deadline: u64,
    /// Whether the deadline stays as it is when the request is submitted.
    pub fixed: bool,
    /// Whether the deadline has passed, and the waiter was told.
    pub expired: bool,
}

impl<W> Request<W> {
    /// The deadline counts from now on.
    fn submit(&mut self, now: u64) {
        self.since = now;
        if !self.fixed && !self.expired {
            self.deadline = now.saturating_add(self.timeout);
        }
    }
}

/// The requests of one connection that have not been answered, oldest first.
///
/// Requests are numbered in the order in which they are made.
#[derive(Debug)]
pub struct InFlight<W> {
    queue: VecDeque<Request<W>>,
    /// The number of the request in front.
    front: u64,
    /// The numbers of the first request that was not submitted, and of the first that was not
    /// written.
    unsubmitted: u64,
    unwritten: u64,
    /// For each class the number of a request before which no deadline of the class is left.
    lookups: u64,
    updates: u64,
    /// The requests with fixed deadlines that have not expired: number and deadline. They are few.
    fixed: VecDeque<(u64, u64)>,
}

impl<W: Copy> InFlight<W> {
    /// No requests.
    pub const fn new() -> Self {
        InFlight {
            queue: VecDeque::new(),
            front: 0,
            unsubmitted: 0,
            unwritten: 0,
            lookups: 0,
            updates: 0,
            fixed: VecDeque::new(),
        }
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
        self.queue.try_reserve(requests).map_err(|_| OutOfMemory)?;
        self.fixed.try_reserve(requests).map_err(|_| OutOfMemory)
    }

    /// Adds a request that is made at `now` and has `timeout` milliseconds, counted from when it is
    /// submitted. A `deadline` is a fixed one. There is room, see [`InFlight::reserve`].
    pub fn push(&mut self, kind: Kind<W>, now: u64, timeout: u64, deadline: Option<u64>) {
        let number = self.end();
        if let Some(deadline) = deadline {
            self.fixed.push_back((number, deadline));
        }
        self.queue.push_back(Request {
            kind,
            since: now,
            written: None,
            timeout,
            deadline: deadline.unwrap_or(now.saturating_add(timeout)),
            fixed: deadline.is_some(),
            expired: false,
        });
    }

    /// All requests so far are submitted at `now`.
    pub fn submitted(&mut self, now: u64) {
        let first = self.place(self.unsubmitted);
        self.queue.range_mut(first..).for_each(|request| request.submit(now));
        self.unsubmitted = self.end();
    }

    /// All requests so far are written at `now`.
    pub fn written(&mut self, now: u64) {
        let end = self.end();
        // What is written is submitted before, or now.
        let (first, unsubmitted) = (self.place(self.unwritten), self.place(self.unsubmitted));
        for (place, request) in self.queue.range_mut(first..).enumerate() {
            if first.saturating_add(place) >= unsubmitted {
                request.submit(now);
            }
            request.written = Some(now);
        }
        self.unsubmitted = end;
        self.unwritten = end;
    }

    /// How many are unanswered whose deadline has not passed.
    pub fn awaited(&self) -> usize {
        let awaited = |one: &&Request<W>| one.kind.class().is_some() && !one.expired;
        self.queue.iter().filter(awaited).count()
    }

    /// The number of the next request.
    fn end(&self) -> u64 {
        self.front.saturating_add(self.queue.len() as u64)
    }

    /// The oldest request: the one that the next answer belongs to.
    pub fn front(&self) -> Option<&Request<W>> {
        self.queue.front()
    }

    /// Takes out the oldest request, whose answer has come or never will.
    pub fn pop(&mut self) -> Option<Request<W>> {
        let request = self.queue.pop_front()?;
        if request.fixed {
            self.fixed.retain(|(number, _)| *number != self.front);
        }
        self.front = self.front.saturating_add(1);
        Some(request)
    }

    /// The next request whose deadline has passed at `now`, which is marked as expired. To be
    /// called until there is none.
    pub fn expire(&mut self, now: u64) -> Option<Request<W>> {
        let number = match self.fixed.iter().position(|(_, deadline)| *deadline <= now) {
            Some(at) => {
                let (number, _) = self.fixed.remove(at)?;
                number
            }
            None => {
                let due = |class, this: &mut Self| {
                    this.first_of(class).is_some_and(|request| request.deadline <= now)
                };
                let class = match (due(Class::Lookups, self), due(Class::Updates, self)) {
                    (true, _) => Class::Lookups,
                    (false, true) => Class::Updates,
                    (false, false) => return None,
                };
                let next = self.next_of(class);
                *next = next.saturating_add(1);
                next.saturating_sub(1)
            }
        };
        let place = self.place(number);
        let request = self.queue.get_mut(place)?;
        request.expired = true;
        Some(*request)
    }

    /// When the next deadline passes.
    pub fn next_deadline(&mut self) -> Option<u64> {
        let fixed = self.fixed.iter().map(|(_, deadline)| *deadline).min();
        let lookups = self.first_of(Class::Lookups).map(|request| request.deadline);
        let updates = self.first_of(Class::Updates).map(|request| request.deadline);
        [fixed, lookups, updates].into_iter().flatten().min()
    }

    fn next_of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Lookups => &mut self.lookups,
            Class::Updates => &mut self.updates,
        }
    }

    /// Where the request of a number is in the queue, which may be its end.
    fn place(&self, number: u64) -> usize {
        let place = usize::try_from(number.saturating_sub(self.front)).unwrap_or(usize::MAX);
        place.min(self.queue.len())
    }

    /// The oldest request of a class with a deadline that is not fixed and has not passed; its
    /// number is left in the class's counter.
    fn first_of(&mut self, class: Class) -> Option<&Request<W>> {
        let front = self.front;
        let next = *self.next_of(class);
        let next = next.max(front);
        let skip = self.place(next);
        let of_class = |request: &Request<W>| request.kind.class() == Some(class) && !request.fixed;
        let found = self.queue.range(skip..).position(of_class);
        let ahead = found.unwrap_or_else(|| self.queue.len().saturating_sub(skip));
        *self.next_of(class) = next.saturating_add(ahead as u64);
        self.queue.get(skip.saturating_add(found?))
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
        std::iter::from_fn(|| inflight.expire(now)).map(|request| request.kind).collect()
    }

    #[test]
    fn deadlines_of_both_classes_pass_in_their_order() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Update(None), 0, 1000, None);
        inflight.push(Kind::Fetch(1), 10, 50, None);
        inflight.push(Kind::Update(None), 20, 1000, None);
        inflight.push(Kind::Fetch(2), 30, 50, None);
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
    fn a_deadline_counts_from_when_the_request_is_submitted() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50, None);
        inflight.submitted(300);
        assert_eq!(inflight.next_deadline(), Some(350));
        // Writing it later does not make the waiter wait longer.
        inflight.written(340);
        assert_eq!(inflight.next_deadline(), Some(350));
        let request = inflight.expire(350).unwrap();
        assert_eq!((request.since, request.written), (300, Some(340)));
    }

    #[test]
    fn what_is_written_is_submitted() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50, None);
        inflight.push(Kind::Fetch(2), 10, 50, None);
        assert_eq!(inflight.next_deadline(), Some(50));
        inflight.written(300);
        assert_eq!(inflight.next_deadline(), Some(350));
        inflight.push(Kind::Fetch(3), 310, 50, None);
        assert_eq!(expire(&mut inflight, 349), []);
        assert_eq!(expire(&mut inflight, 350), [Kind::Fetch(1), Kind::Fetch(2)]);
        assert_eq!(inflight.next_deadline(), Some(360));
        inflight.written(320);
        assert_eq!(inflight.next_deadline(), Some(370));
    }

    #[test]
    fn what_expired_before_it_was_written_stays_expired() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50, None);
        assert_eq!(expire(&mut inflight, 50), [Kind::Fetch(1)]);
        inflight.written(60);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(expire(&mut inflight, 1000), []);
        let request = inflight.pop().unwrap();
        assert!(request.expired);
        assert_eq!(request.written, Some(60));
    }

    #[test]
    fn a_fixed_deadline_stays() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50, None);
        inflight.push(Kind::Claim(2), 0, 50, Some(20));
        inflight.push(Kind::Fetch(3), 0, 50, None);
        assert_eq!(inflight.next_deadline(), Some(20));
        inflight.written(10);
        assert_eq!(inflight.next_deadline(), Some(20));
        assert_eq!(expire(&mut inflight, 20), [Kind::Claim(2)]);
        assert_eq!(inflight.next_deadline(), Some(60));
        assert_eq!(expire(&mut inflight, 60), [Kind::Fetch(1), Kind::Fetch(3)]);
        inflight.pop();
        inflight.pop();
        inflight.pop();
        inflight.push(Kind::Claim(4), 100, 50, Some(120));
        inflight.pop();
        assert_eq!(inflight.next_deadline(), None);
    }

    #[test]
    fn what_goes_before_requests_has_no_deadline() {
        let mut inflight: InFlight<u32> = InFlight::new();
        inflight.push(Kind::Greeting(0), 0, 0, None);
        inflight.push(Kind::Asking, 0, 0, None);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(expire(&mut inflight, 1000), []);
    }

    #[test]
    fn an_expired_request_keeps_its_place_for_its_late_answer() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Fetch(1), 0, 50, None);
        inflight.push(Kind::Fetch(2), 40, 50, None);
        assert_eq!(expire(&mut inflight, 60), [Kind::Fetch(1)]);
        let first = inflight.pop().unwrap();
        assert!(first.expired);
        let second = inflight.pop().unwrap();
        assert!(!second.expired);
        assert_eq!(second.kind, Kind::Fetch(2));
        assert!(inflight.pop().is_none());
        inflight.push(Kind::Fetch(3), 100, 50, None);
        assert_eq!(inflight.next_deadline(), Some(150));
        assert_eq!(expire(&mut inflight, 150), [Kind::Fetch(3)]);
    }

    #[test]
    fn those_that_have_expired_are_not_awaited() {
        let mut inflight = InFlight::new();
        inflight.push(Kind::Greeting(0), 0, 0, None);
        inflight.push(Kind::Asking, 0, 0, None);
        inflight.push(Kind::Fetch(1), 0, 50, None);
        inflight.push(Kind::Update(None), 0, 1000, None);
        assert_eq!((inflight.len(), inflight.awaited()), (4, 2));
        assert_eq!(expire(&mut inflight, 50), [Kind::Fetch(1)]);
        assert_eq!((inflight.len(), inflight.awaited()), (4, 1));
    }

    #[test]
    fn answered_requests_do_not_expire() {
        let mut inflight = InFlight::new();
        for n in 0..10 {
            inflight.push(Kind::Fetch(n), u64::from(n), 50, None);
        }
        for _ in 0..9 {
            inflight.pop();
        }
        assert_eq!(expire(&mut inflight, 1000), [Kind::Fetch(9)]);
    }
}
