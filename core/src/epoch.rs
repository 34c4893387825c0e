//! The moment up to which sessions have been withdrawn, as an operator has put it into a store.

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

/// What is known about it. It never goes back.
#[derive(Debug, Default)]
pub struct Epoch {
    at: Option<i64>,
    heard: Option<u64>,
    answered: Option<u64>,
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

impl Epoch {
    /// Nothing is known.
    pub const fn new() -> Self {
        Epoch { at: None, heard: None, answered: None }
    }

    /// Whether the store has to be asked at `now`, in milliseconds.
    pub fn is_due(&self, now: u64) -> bool {
        self.heard.is_none_or(|heard| now.saturating_sub(heard) >= GOOD_FOR)
    }

    /// The question has ended at `now`, in milliseconds, with an answer or without.
    pub fn heard(&mut self, now: u64, answered: bool) {
        self.heard = Some(now);
        if answered {
            self.answered = Some(now);
        }
    }

    /// Whether a ticket that a resumption gives at `now`, in milliseconds, may be kept. `made` is
    /// the second of the session that was resumed.
    pub fn lets_renew(&self, made: i64, now: u64) -> bool {
        let fresh = |answered| now.saturating_sub(answered) <= FRESH;
        self.answered.is_some_and(fresh) && !self.withdraws(made)
    }

    /// Reads an entry: a number of seconds since 1970 in decimal digits. `now` is in seconds.
    pub fn learn(&mut self, entry: &[u8], now: i64) -> News {
        let digits = entry.trim_ascii();
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let number = core::str::from_utf8(digits).ok().filter(|_| is_number);
        let at = number.and_then(|number| number.parse().ok());
        match at.filter(|&at: &i64| at <= now.saturating_add(MAX_AHEAD)) {
            None => News::Invalid,
            Some(at) if self.at.is_some_and(|known| at <= known) => News::None,
            Some(at) => {
                self.at = Some(at);
                News::Withdrawn(at)
            }
        }
    }

    /// Whether a session that was made in that second is withdrawn.
    pub fn withdraws(&self, made: i64) -> bool {
        self.at.is_some_and(|at| made <= at.saturating_add(GRACE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn sessions_up_to_it_are_withdrawn() {
        let mut epoch = Epoch::new();
        assert!(!epoch.withdraws(0));
        assert_eq!(epoch.learn(b"1799999999", NOW), News::Withdrawn(NOW - 1));
        assert!(epoch.withdraws(NOW - 2));
        assert!(epoch.withdraws(NOW - 1));
        assert!(epoch.withdraws(NOW - 1 + GRACE));
        assert!(!epoch.withdraws(NOW + GRACE));
    }

    #[test]
    fn it_never_goes_back() {
        let mut epoch = Epoch::new();
        assert_eq!(epoch.learn(b"1799999999\n", NOW), News::Withdrawn(NOW - 1));
        assert_eq!(epoch.learn(b"1799999999", NOW), News::None);
        assert_eq!(epoch.learn(b"0", NOW), News::None);
        assert!(epoch.withdraws(NOW - 1));
        assert_eq!(epoch.learn(b"1800000060", NOW), News::Withdrawn(NOW + 60));
    }

    #[test]
    fn what_is_no_second_changes_nothing() {
        let mut epoch = Epoch::new();
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
            assert_eq!(epoch.learn(entry.as_bytes(), NOW), News::Invalid, "{entry}");
        }
        assert_eq!(epoch.learn(b"\xff", NOW), News::Invalid);
        assert!(!epoch.withdraws(0));
        assert_eq!(epoch.learn(b"1800000300", NOW), News::Withdrawn(NOW + 300));
    }

    #[test]
    fn it_is_asked_for_once_a_second() {
        let mut epoch = Epoch::new();
        assert!(epoch.is_due(0));
        epoch.heard(5000, true);
        assert!(!epoch.is_due(5999));
        assert!(epoch.is_due(6000));
        epoch.heard(6000, false);
        assert!(!epoch.is_due(6999));
    }

    #[test]
    fn a_resumption_renews_only_what_is_surely_not_withdrawn() {
        let mut epoch = Epoch::new();
        assert!(!epoch.lets_renew(NOW, 0), "nothing was heard");
        epoch.heard(1000, false);
        assert!(!epoch.lets_renew(NOW, 1000), "nothing was answered");
        epoch.heard(2000, true);
        assert!(epoch.lets_renew(NOW, 2000));
        assert!(epoch.lets_renew(NOW, 2000 + FRESH));
        assert!(!epoch.lets_renew(NOW, 2001 + FRESH), "the answer is old");
        epoch.learn(b"1800000000", NOW);
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
