//! Which of several servers with the same entries are near.
//!
//! What counts is the shortest time that a lookup took. Most of what makes a lookup longer, a busy
//! worker or a server that is at something else, is not distance, and happens to near servers as well.
//! A server that has moved away is noticed all the same, as the time grows slowly with each lookup.
//!
//! A server that is not near is asked now and then, with a lookup of somebody's: it may be near by
//! now. Nobody waits for a probe, and nothing is asked where there are no lookups.
//!
//! Times of lookups are in microseconds, others in milliseconds of a clock that does not go back.

/// How long a server that is not near is left alone.
const PAUSE: u64 = 60_000;
/// As near as the nearest is also what takes longer by this part of its time, and by so much.
const SLACK_PART: u64 = 4;
const SLACK: u64 = 200;
/// The part of itself by which the time grows at most with a lookup that took longer. So it takes
/// some thirty in a row to make a near server a far one.
const GROWTH: u64 = 64;

/// How near a server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nearness {
    /// The time of a lookup.
    time: Option<u64>,
    /// When it was last asked.
    asked: Option<u64>,
}

impl Nearness {
    /// It is asked at `now`.
    pub fn asked(&mut self, now: u64) {
        self.asked = Some(now);
    }

    /// What it was asked last says nothing about it: the connection had still to be made.
    pub fn unknown(&mut self) {
        self.asked = None;
    }

    /// A lookup has taken `time` there.
    pub fn took(&mut self, time: u64) {
        let known = self.time.unwrap_or(time);
        let most = known.saturating_add(known / GROWTH).saturating_add(1);
        self.time = Some(time.min(most));
    }

    /// How long a lookup takes there, if any was made.
    pub fn time(&self) -> Option<u64> {
        self.time
    }

    /// Whether a lookup goes there, if it takes `nearest` at the nearest server that is known.
    pub fn is_wanted(&self, now: u64, nearest: Option<u64>) -> bool {
        let is_due = self.asked.is_none_or(|asked| now.saturating_sub(asked) >= PAUSE);
        is_due || self.time.zip(nearest).is_some_and(|(time, nearest)| is_near(time, nearest))
    }
}

fn is_near(time: u64, nearest: u64) -> bool {
    time <= nearest.saturating_add(nearest / SLACK_PART).saturating_add(SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has taken so long.
    fn measured(times: &[u64]) -> Nearness {
        let mut nearness = Nearness::default();
        nearness.asked(0);
        times.iter().for_each(|&time| nearness.took(time));
        nearness
    }

    #[test]
    fn the_nearest_are_wanted_and_those_that_are_about_as_near() {
        for (time, near) in [(1000, true), (1450, true), (1451, false), (20_000, false)] {
            assert_eq!(measured(&[time]).is_wanted(1, Some(1000)), near, "{time}");
        }
        // On one machine everything is near.
        assert!(measured(&[250]).is_wanted(1, Some(50)));
    }

    #[test]
    fn each_is_asked_once_to_be_known() {
        let mut unknown = Nearness::default();
        assert!(unknown.is_wanted(5, Some(100)));
        assert!(unknown.is_wanted(5, None));
        unknown.asked(5);
        // Others have to wait for what this one finds out.
        assert!(!unknown.is_wanted(5, Some(100)));
        assert!(!unknown.is_wanted(60_004, None));
        unknown.took(120);
        assert!(unknown.is_wanted(6, Some(100)));
        // It has had to be connected to first.
        let mut unknown = Nearness::default();
        unknown.asked(5);
        unknown.unknown();
        assert!(unknown.is_wanted(6, Some(100)));
        assert_eq!(unknown.time(), None);
    }

    #[test]
    fn one_that_is_far_is_asked_once_a_minute() {
        let mut far = measured(&[30_000]);
        assert!(!far.is_wanted(59_999, Some(500)));
        assert!(far.is_wanted(60_000, Some(500)));
        far.asked(60_000);
        assert!(!far.is_wanted(60_001, Some(500)));
        // It has moved.
        far.took(400);
        assert!(far.is_wanted(60_001, Some(500)));
    }

    #[test]
    fn a_long_lookup_does_not_make_a_server_far() {
        assert_eq!(measured(&[500, 20_000, 20_000]).time(), Some(516));
        assert_eq!(measured(&[20_000, 500]).time(), Some(500));
        assert!(measured(&[500, 10_000]).is_wanted(1, Some(500)));
    }

    #[test]
    fn many_in_a_row_do() {
        let mut moved = measured(&[500]);
        let slow = |nearness: &mut Nearness| {
            (1..1000).find(|_| {
                nearness.took(20_000);
                !nearness.is_wanted(1, Some(500))
            })
        };
        assert_eq!(slow(&mut moved), Some(31));
        moved.took(500);
        assert_eq!(slow(&mut moved), Some(31), "one that is fast begins it anew");
        for _ in 0..500 {
            moved.took(20_000);
        }
        assert_eq!(moved.time(), Some(20_000));
    }
}
