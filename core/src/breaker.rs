//! Whether a server is worth asking.

/// The first pause after a failure, in milliseconds; each further failure doubles it.
pub const FIRST_PAUSE: u64 = 100;
/// The longest pause, in milliseconds.
pub const LONGEST_PAUSE: u64 = 5000;

/// What to do with a request for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Go,
    /// Do not send it, but find out whether the server is back.
    Probe,
    /// Do not send it.
    Refuse,
}

/// A circuit breaker. A failure opens it; after a pause one probe at a time may close it again.
/// Times are milliseconds of a clock that does not go back.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: u64 },
    Probing,
}

impl Breaker {
    /// A closed breaker: the server counts as good until it shows otherwise.
    pub const fn new() -> Self {
        Breaker { state: State::Closed, failures: 0 }
    }

    /// Whether requests are refused.
    pub const fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// What to do with a request. After [`Verdict::Probe`] a probe has begun, and its end has to
    /// be told by [`Breaker::succeeded`] or [`Breaker::failed`].
    pub fn ask(&mut self, now: u64) -> Verdict {
        match self.state {
            State::Closed => Verdict::Go,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                Verdict::Probe
            }
            State::Open { .. } | State::Probing => Verdict::Refuse,
        }
    }

    /// The server answered as it should. Returns whether that closed the breaker.
    pub fn succeeded(&mut self) -> bool {
        let was_open = self.is_open();
        *self = Breaker::new();
        was_open
    }

    /// The server failed. Returns whether that opened the breaker.
    ///
    /// `random` spreads the pause over 75 to 100 % of its length, so that a fleet does not come
    /// back all at once.
    pub fn failed(&mut self, now: u64, random: u32) -> bool {
        let was_closed = !self.is_open();
        let full = FIRST_PAUSE
            .saturating_mul(1u64.checked_shl(self.failures).unwrap_or(u64::MAX))
            .min(LONGEST_PAUSE);
        let jitter = (full / 4).saturating_mul(u64::from(random)) >> 32;
        let pause = full.saturating_sub(jitter);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Open { until: now.saturating_add(pause) };
        was_closed
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_probe_at_a_time_closes_an_open_breaker() {
        let mut breaker = Breaker::new();
        assert_eq!(breaker.ask(0), Verdict::Go);
        assert!(breaker.failed(1000, 0));
        assert_eq!(breaker.ask(1000 + FIRST_PAUSE - 1), Verdict::Refuse);
        assert_eq!(breaker.ask(1000 + FIRST_PAUSE), Verdict::Probe);
        assert_eq!(breaker.ask(u64::MAX), Verdict::Refuse);
        assert!(breaker.succeeded());
        assert!(!breaker.succeeded());
        assert_eq!(breaker.ask(u64::MAX), Verdict::Go);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut breaker = Breaker::new();
        let mut pauses = std::vec![];
        for _ in 0..70 {
            breaker.failed(0, 0);
            let State::Open { until } = breaker.state else { panic!() };
            pauses.push(until);
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[69], LONGEST_PAUSE);
        breaker.succeeded();
        breaker.failed(0, 0);
        assert!(matches!(breaker.state, State::Open { until: FIRST_PAUSE }));
    }

    #[test]
    fn jitter_takes_off_a_quarter_at_most() {
        let mut breaker = Breaker::new();
        breaker.failed(0, u32::MAX);
        let State::Open { until } = breaker.state else { panic!() };
        assert!((75..=77).contains(&until), "{until}");
    }

    #[test]
    fn a_second_failure_is_no_transition() {
        let mut breaker = Breaker::new();
        assert!(breaker.failed(0, 0));
        assert!(!breaker.failed(0, 0));
        assert_eq!(breaker.ask(u64::MAX), Verdict::Probe);
        assert!(!breaker.failed(0, 0));
    }
}
