//! Whether so many of the sessions that were found are of no use that somebody should look.

/// How many of the last sessions that were found are looked at together.
const SPAN: u32 = 32;
/// One in so many is worth a line: with two kinds of servers in a fleet that cannot resume each
/// other's sessions it is about every second one, and a client that has been elsewhere is rare.
const ONE_IN: u32 = 4;
/// How long a line speaks for what comes after it, in milliseconds.
const QUIET: u64 = 10 * 60 * 1000;

/// Counts sessions that were found, and those of them that OpenSSL did not resume.
#[derive(Debug, Default)]
pub struct Unusable {
    found: u32,
    unusable: u32,
    said: Option<u64>,
}

impl Unusable {
    /// Nothing found yet.
    pub const fn new() -> Self {
        Unusable { found: 0, unusable: 0, said: None }
    }

    /// Adds one that was found. If it is time for a line, how many of how many were of no use.
    /// `now` is in milliseconds.
    pub fn add(&mut self, unusable: bool, now: u64) -> Option<(u32, u32)> {
        self.found = self.found.saturating_add(1);
        self.unusable = self.unusable.saturating_add(unusable.into());
        if self.found < SPAN {
            return None;
        }
        let seen = (self.unusable, self.found);
        (self.found, self.unusable) = (0, 0);
        let quiet = self.said.is_some_and(|said| now.saturating_sub(said) < QUIET);
        if quiet || seen.0 < SPAN / ONE_IN {
            return None;
        }
        self.said = Some(now);
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// What is said of a thousand, every `nth` of which is of no use, one each `ms`.
    fn said(nth: u32, ms: u64) -> Vec<(u32, (u32, u32))> {
        let mut unusable = Unusable::new();
        let each = |n: u32| unusable.add(n % nth == 0, u64::from(n) * ms).map(|seen| (n, seen));
        (1..=1000).filter_map(each).collect()
    }

    #[test]
    fn one_line_says_how_many() {
        assert_eq!(said(1, 1), [(32, (32, 32))]);
        assert_eq!(said(2, 1), [(32, (16, 32))]);
        assert_eq!(said(4, 1), [(32, (8, 32))]);
    }

    #[test]
    fn a_few_are_nothing_special() {
        assert_eq!(said(5, 1), []);
        assert_eq!(said(2000, 1), []);
    }

    #[test]
    fn it_is_said_again_after_ten_minutes() {
        let lines: Vec<u32> = said(1, 1000).iter().map(|(n, _)| *n).collect();
        assert_eq!(lines, [32, 640]);
    }
}
