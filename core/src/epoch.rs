//! The moment up to which sessions have been withdrawn, as an operator has put it into a store.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How long an answer about it is good, in milliseconds.
pub const GOOD_FOR: u64 = 1000;

/// How far it may lie ahead of our clock, in seconds: clocks differ. Beyond that it is a mistake,
/// such as milliseconds in place of seconds, after which nothing would be resumed any more.
const MAX_AHEAD: i64 = 5 * 60;

/// How long after it sessions are still withdrawn, in seconds. In TLS 1.3 a resumption gives a ticket
/// that is as new as any. One whose server had not yet heard of the epoch must not outlive it: such a
/// ticket is kept only if the store has answered within [`FRESH`], and so is older than this.
const GRACE: i64 = 6;

/// How old an answer of the store may be for a resumption to give a ticket, in milliseconds.
const FRESH: u64 = 5000;

/// In place of the moment: there is none.
const NONE: i64 = i64::MIN;
/// In place of a time: the store has never answered. A clock that stands at 0 is read as 1.
const NEVER: u64 = 0;

/// What is known about it. The workers of a machine have one in common, in shared memory, so that
/// all of it is atomic. The moment never goes back.
///
/// Their clock is one, but each worker reads it once in a turn of its event loop: a time of another
/// worker may lie a little ahead.
#[derive(Debug)]
pub struct Epoch {
    /// The moment, in seconds since 1970.
    at: AtomicI64,
    /// When the store answered last, in milliseconds.
    answered: AtomicU64,
}

/// What an entry has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing new.
    None,
    /// Sessions made up to this second, since 1970, are withdrawn.
    Withdrawn(i64),
    /// It is no such second.
    Invalid,
}

/// What becomes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be resumed.
    Good,
    /// It is withdrawn.
    Withdrawn,
    /// The store has never answered: it may be withdrawn.
    Unknown,
}

impl Default for Epoch {
    fn default() -> Self {
        Epoch::new()
    }
}

impl Epoch {
    /// Nothing is known.
    pub const fn new() -> Self {
        Epoch { at: AtomicI64::new(NONE), answered: AtomicU64::new(NEVER) }
    }

    /// Whether a worker has to ask the store at `now`, in milliseconds. `failed` is when it last
    /// asked in vain: another worker may reach the store all the same, so each has its own.
    pub fn is_due(&self, failed: Option<u64>, now: u64) -> bool {
        let is_good = |time| now.abs_diff(time) < GOOD_FOR;
        !self.answered().is_some_and(is_good) && !failed.is_some_and(is_good)
    }

    /// The store has answered at `now_ms`, in milliseconds: with an entry, which is read as a number
    /// of seconds since 1970 in decimal digits, or that there is none. `now` is in seconds.
    pub fn hear(&self, entry: Option<&[u8]>, now: i64, now_ms: u64) -> News {
        let news = entry.map_or(News::None, |entry| self.learn(entry, now));
        // Who reads this time has to see the moment that came with it, and those that came with
        // earlier answers, of other workers: a release, and an acquire of what is replaced.
        self.answered.swap(now_ms.max(NEVER.saturating_add(1)), Ordering::AcqRel);
        news
    }

    /// Whether a ticket that a resumption gives at `now`, in milliseconds, may be kept. `made` is
    /// the second of the session that was resumed.
    pub fn lets_renew(&self, made: i64, now: u64) -> bool {
        let fresh = |answered| now.abs_diff(answered) <= FRESH;
        self.answered().is_some_and(fresh) && self.standing(made) == Standing::Good
    }

    /// What becomes of a session that was made in that second.
    pub fn standing(&self, made: i64) -> Standing {
        if self.answered().is_none() {
            return Standing::Unknown;
        }
        // Relaxed: answered() has acquired it.
        let at = self.at.load(Ordering::Relaxed);
        if made <= at.saturating_add(GRACE) { Standing::Withdrawn } else { Standing::Good }
    }

    /// The moment up to which sessions are withdrawn, in seconds since 1970. `None` if there is none, or the
    /// store has never answered.
    pub fn at(&self) -> Option<i64> {
        self.answered()?;
        // Relaxed: answered() has acquired it.
        Some(self.at.load(Ordering::Relaxed)).filter(|&at| at != NONE)
    }

    /// Whether the store has ever answered.
    pub fn is_heard(&self) -> bool {
        self.answered().is_some()
    }

    fn learn(&self, entry: &[u8], now: i64) -> News {
        let digits = entry.trim_ascii();
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let number = core::str::from_utf8(digits).ok().filter(|_| is_number);
        let at = number.and_then(|number| number.parse().ok());
        match at.filter(|&at: &i64| at <= now.saturating_add(MAX_AHEAD)) {
            None => News::Invalid,
            // Relaxed: hear() releases it. Of several workers that learn it one brings the news.
            Some(at) if self.at.fetch_max(at, Ordering::Relaxed) < at => News::Withdrawn(at),
            Some(_) => News::None,
        }
    }

    fn answered(&self) -> Option<u64> {
        Some(self.answered.load(Ordering::Acquire)).filter(|&time| time != NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::*;
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// What an entry tells, at some time.
    fn hear(epoch: &Epoch, entry: &str) -> News {
        epoch.hear(Some(entry.as_bytes()), NOW, 1000)
    }

    #[test]
    fn sessions_up_to_it_are_withdrawn() {
        let epoch = Epoch::new();
        assert_eq!(epoch.hear(None, NOW, 1000), News::None);
        assert_eq!(epoch.standing(0), Good);
        assert_eq!(hear(&epoch, "1799999999"), News::Withdrawn(NOW - 1));
        assert_eq!(epoch.standing(NOW - 2), Withdrawn);
        assert_eq!(epoch.standing(NOW - 1), Withdrawn);
        assert_eq!(epoch.standing(NOW - 1 + GRACE), Withdrawn);
        assert_eq!(epoch.standing(NOW + GRACE), Good);
    }

    #[test]
    fn nothing_is_known_of_any_session_before_the_first_answer() {
        let epoch = Epoch::new();
        for made in [0, NOW, NOW + MAX_AHEAD + GRACE + 1, i64::MAX] {
            assert_eq!(epoch.standing(made), Unknown);
            assert!(!epoch.lets_renew(made, 0));
        }
        assert_eq!(epoch.hear(None, NOW, 0), News::None);
        assert_eq!(epoch.standing(NOW), Good, "an answer at the very beginning of the clock");
    }

    #[test]
    fn it_says_what_it_is_and_whether_it_was_heard() {
        let epoch = Epoch::new();
        assert_eq!((epoch.is_heard(), epoch.at()), (false, None));
        assert_eq!(epoch.hear(None, NOW, 0), News::None);
        assert_eq!((epoch.is_heard(), epoch.at()), (true, None));
        assert_eq!(hear(&epoch, "1799999999"), News::Withdrawn(NOW - 1));
        assert_eq!((epoch.is_heard(), epoch.at()), (true, Some(NOW - 1)));
        assert_eq!(epoch.hear(None, NOW, 9000), News::None);
        assert_eq!(epoch.at(), Some(NOW - 1), "the entry is gone");
    }

    #[test]
    fn it_never_goes_back() {
        let epoch = Epoch::new();
        assert_eq!(hear(&epoch, "1799999999\n"), News::Withdrawn(NOW - 1));
        assert_eq!(hear(&epoch, "1799999999"), News::None);
        assert_eq!(hear(&epoch, "0"), News::None);
        assert_eq!(epoch.standing(NOW - 1), Withdrawn);
        assert_eq!(epoch.hear(None, NOW, 9000), News::None);
        assert_eq!(epoch.standing(NOW - 1), Withdrawn, "the entry is gone");
        assert_eq!(hear(&epoch, "1800000060"), News::Withdrawn(NOW + 60));
    }

    #[test]
    fn what_is_no_second_changes_nothing() {
        let epoch = Epoch::new();
        for entry in [
            "",
            " ",
            "-1",
            "+1",
            "1.5",
            "0x10",
            "1800000000000",
            "1800000301",
            "99999999999999999999",
        ] {
            assert_eq!(hear(&epoch, entry), News::Invalid, "{entry}");
        }
        assert_eq!(epoch.hear(Some(b"\xff"), NOW, 1000), News::Invalid);
        assert_eq!(epoch.standing(0), Good);
        assert_eq!(hear(&epoch, "1800000300"), News::Withdrawn(NOW + 300));
    }

    #[test]
    fn it_is_asked_for_once_a_second() {
        let epoch = Epoch::new();
        assert!(epoch.is_due(None, 0));
        epoch.hear(None, NOW, 5000);
        assert!(!epoch.is_due(None, 5999));
        assert!(epoch.is_due(None, 6000));
        assert!(!epoch.is_due(None, 4900), "another worker's clock is a little behind");
        assert!(epoch.is_due(None, 3000), "the clock was set back");
    }

    #[test]
    fn a_worker_that_asked_in_vain_asks_again_after_a_second() {
        let epoch = Epoch::new();
        assert!(!epoch.is_due(Some(5000), 5999));
        assert!(epoch.is_due(Some(5000), 6000));
        assert!(epoch.is_due(None, 5999), "and another one at once");
        epoch.hear(None, NOW, 5500);
        assert!(!epoch.is_due(Some(5000), 6000), "which has been answered");
    }

    #[test]
    fn a_resumption_renews_only_what_is_surely_not_withdrawn() {
        let epoch = Epoch::new();
        assert!(!epoch.lets_renew(NOW, 0), "nothing was answered");
        epoch.hear(None, NOW, 2000);
        assert!(epoch.lets_renew(NOW, 2000));
        assert!(epoch.lets_renew(NOW, 1990), "another worker's clock is a little behind");
        assert!(epoch.lets_renew(NOW, 2000 + FRESH));
        assert!(!epoch.lets_renew(NOW, 2001 + FRESH), "the answer is old");
        epoch.hear(Some(b"1800000000"), NOW, 2000);
        assert!(!epoch.lets_renew(NOW, 2000), "it is withdrawn");
        assert!(epoch.lets_renew(NOW + 1 + GRACE, 2000));
    }

    #[test]
    fn no_ticket_of_a_withdrawn_session_outlives_it() {
        // Set at the end of a second, right after a server has heard that there is none. The last
        // ticket that the server keeps is of the last moment in which that answer is fresh.
        let (set_ms, at) = (999, 0);
        let last_ticket = (set_ms + FRESH as i64) / 1000;
        assert!(last_ticket <= at + GRACE);
    }
}
