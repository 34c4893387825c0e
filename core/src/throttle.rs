//! Log lines that are worth one a second.

/// Lets one message a second through and counts the others.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<u64>,
    held_back: u64,
}

impl Throttle {
    /// A throttle that lets the next message through.
    pub const fn new() -> Self {
        Throttle { last: None, held_back: 0 }
    }

    /// Whether to write a message at `now` (milliseconds), and how many it speaks for, itself
    /// included.
    pub fn pass(&mut self, now: u64) -> Option<u64> {
        self.held_back = self.held_back.saturating_add(1);
        self.release(now)
    }

    /// Whether to write a message that was held back, and how many it speaks for.
    pub fn release(&mut self, now: u64) -> Option<u64> {
        match self.last {
            _ if self.held_back == 0 => None,
            Some(last) if now.saturating_sub(last) < 1000 => None,
            _ => {
                self.last = Some(now);
                Some(core::mem::take(&mut self.held_back))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_a_second_speaks_for_all() {
        let mut throttle = Throttle::new();
        assert_eq!(throttle.pass(0), Some(1));
        assert_eq!(throttle.pass(1), None);
        assert_eq!(throttle.pass(999), None);
        assert_eq!(throttle.pass(1000), Some(3));
        assert_eq!(throttle.pass(5000), Some(1));
    }

    #[test]
    fn what_was_held_back_is_written_later_and_once() {
        let mut throttle = Throttle::new();
        assert_eq!(throttle.release(0), None);
        assert_eq!(throttle.pass(0), Some(1));
        assert_eq!(throttle.pass(500), None);
        assert_eq!(throttle.release(999), None);
        assert_eq!(throttle.release(1000), Some(1));
        assert_eq!(throttle.release(5000), None);
    }
}
