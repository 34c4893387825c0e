//! Whether a server is worth asking.
//!
//! `max_fails` and `fail_timeout` mean what nginx's documentation of `upstream` says: that many
//! failures within that time make a server unavailable. What differs is the way back: nginx lets a
//! request try the server once `fail_timeout` has passed; here a probe, which no request waits
//! for, tries it sooner.
//!
//! A server may answer probes and fail requests. So the length of the pauses is not forgotten when a
//! probe succeeds: the server is on trial, and the next failure opens the breaker at once, with the
//! pause that was due. Each request that is answered takes one doubling back, and a server that was
//! up for as long as it was down has passed.

/// The first pause after a breaker opened, in milliseconds; each further failure doubles it.
pub const FIRST_PAUSE: u64 = 100;
/// The longest pause, in milliseconds, unless `fail_timeout` is shorter.
pub const LONGEST_PAUSE: u64 = 5000;

/// What opens a breaker. The default is nginx's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many failures open it; 0 for never.
    pub max_fails: u32,
    /// Within how many milliseconds. Also the most that passes before the next probe.
    pub fail_timeout: u64,
}

impl Config {
    /// nginx's defaults: one failure, 10 seconds.
    pub const DEFAULT: Self = Config { max_fails: 1, fail_timeout: 10_000 };

    /// The longest pause, in milliseconds.
    fn longest_pause(&self) -> u64 {
        self.fail_timeout.min(LONGEST_PAUSE)
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::DEFAULT
    }
}

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

/// A circuit breaker. Failures open it; after a pause one probe at a time may close it again.
/// Times are milliseconds of a clock that does not go back.
///
/// A router with several servers chooses among those whose breaker [`is_usable`], and then asks
/// it. After [`Verdict::Probe`] it starts the probe and chooses again: while the probe is under
/// way the breaker is not usable, so that the request goes to another server, and each round
/// leaves one server less to choose from.
///
/// [`is_usable`]: Breaker::is_usable
#[derive(Debug)]
pub struct Breaker {
    config: Config,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Requests pass.
    Closed {
        /// Failures in the current window.
        fails: u32,
        /// The first of them.
        since: u64,
        /// Whether it was down shortly before.
        trial: Option<Trial>,
    },
    /// Requests are refused; from `until` on one may become a probe.
    Open { until: u64, down: Down },
    /// Requests are refused; a probe is under way.
    Probing { down: Down },
}

impl State {
    const GOOD: Self = State::Closed { fails: 0, since: 0, trial: None };
}

/// A server that is down.
#[derive(Clone, Copy, Debug)]
struct Down {
    since: u64,
    /// How many pauses there were so far, with this one.
    pauses: u32,
}

/// A server of which nothing is known but that it has answered a probe.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// When it has passed without anything else.
    until: u64,
    pauses: u32,
}

impl Breaker {
    /// A closed breaker: the server counts as good until it shows otherwise.
    pub const fn new(config: Config) -> Self {
        Breaker { config, state: State::GOOD }
    }

    /// Whether requests are refused.
    pub const fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Whether [`Breaker::ask`] would say something else than [`Verdict::Refuse`]. Starts no
    /// probe.
    pub const fn is_usable(&self, now: u64) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, .. } => now >= until,
            State::Probing { .. } => false,
        }
    }

    /// What to do with a request. After [`Verdict::Probe`] a probe has begun, and its end has to
    /// be told by [`Breaker::recovered`] or [`Breaker::failed`].
    pub fn ask(&mut self, now: u64) -> Verdict {
        match self.state {
            State::Closed { .. } => Verdict::Go,
            State::Open { until, down } if now >= until => {
                self.state = State::Probing { down };
                Verdict::Probe
            }
            State::Open { .. } | State::Probing { .. } => Verdict::Refuse,
        }
    }

    /// The server answered a request as it should: the failures so far are forgotten, and one of the
    /// pauses that came before the last probe.
    pub fn succeeded(&mut self) {
        if let State::Closed { trial, .. } = self.state {
            let trial =
                trial.map(|trial| Trial { pauses: trial.pauses.saturating_sub(1), ..trial });
            let trial = trial.filter(|trial| trial.pauses > 0);
            self.state = State::Closed { fails: 0, since: 0, trial };
        }
    }

    /// The server answered a probe. Returns whether that closed the breaker.
    pub fn recovered(&mut self, now: u64) -> bool {
        let (State::Open { down, .. } | State::Probing { down }) = self.state else { return false };
        let until = now.saturating_add(now.saturating_sub(down.since));
        let trial = Some(Trial { until, pauses: down.pauses });
        self.state = State::Closed { fails: 0, since: 0, trial };
        true
    }

    /// The server failed. Returns whether that opened the breaker.
    ///
    /// `random` spreads the pause over 75 to 100 % of its length, so that a fleet does not come
    /// back all at once.
    pub fn failed(&mut self, now: u64, random: u32) -> bool {
        match self.state {
            State::Closed { fails, since, trial } => {
                let trial = trial.filter(|trial| now < trial.until);
                let (fails, since) = self.count(fails, since, now);
                let opens = self.config.max_fails != 0 && fails >= self.config.max_fails;
                let opens = opens || trial.is_some();
                self.state = if opens {
                    let pauses = trial.map_or(0, |trial| trial.pauses);
                    self.pause(Down { since: now, pauses }, now, random)
                } else {
                    State::Closed { fails, since, trial: None }
                };
                opens
            }
            State::Open { down, .. } | State::Probing { down } => {
                self.state = self.pause(down, now, random);
                false
            }
        }
    }

    /// One failure more in the window that began at `since`, or the first of a new one.
    fn count(&self, fails: u32, since: u64, now: u64) -> (u32, u64) {
        // At its very end a window still holds, as in ngx_http_upstream_get_peer().
        if fails == 0 || now.saturating_sub(since) > self.config.fail_timeout {
            (1, now)
        } else {
            (fails.saturating_add(1), since)
        }
    }

    /// The pause after those that there were.
    fn pause(&self, down: Down, now: u64, random: u32) -> State {
        let full = FIRST_PAUSE
            .saturating_mul(1u64.checked_shl(down.pauses).unwrap_or(u64::MAX))
            .min(self.config.longest_pause());
        let jitter = (full / 4).saturating_mul(u64::from(random)) >> 32;
        let until = now.saturating_add(full.saturating_sub(jitter));
        State::Open { until, down: Down { pauses: down.pauses.saturating_add(1), ..down } }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker::new(Config::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::Rendezvous;
    use std::vec;

    fn breaker(max_fails: u32, fail_timeout: u64) -> Breaker {
        Breaker::new(Config { max_fails, fail_timeout })
    }

    fn until(breaker: &Breaker) -> u64 {
        let State::Open { until, .. } = breaker.state else { panic!("{breaker:?}") };
        until
    }

    #[test]
    fn one_probe_at_a_time_closes_an_open_breaker() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.ask(0), Verdict::Go);
        assert!(breaker.failed(1000, 0));
        assert_eq!(breaker.ask(1000 + FIRST_PAUSE - 1), Verdict::Refuse);
        assert_eq!(breaker.ask(1000 + FIRST_PAUSE), Verdict::Probe);
        assert_eq!(breaker.ask(u64::MAX), Verdict::Refuse);
        assert!(breaker.recovered(1200));
        assert!(!breaker.recovered(1200));
        assert_eq!(breaker.ask(u64::MAX), Verdict::Go);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut breaker = Breaker::default();
        let mut pauses = vec![];
        for _ in 0..70 {
            breaker.failed(0, 0);
            pauses.push(until(&breaker));
            assert_eq!(breaker.ask(u64::MAX), Verdict::Probe);
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[69], LONGEST_PAUSE);
    }

    /// A breaker that has been open for 400 ms, with its third pause, when a probe succeeds at 1400.
    fn on_trial(max_fails: u32) -> Breaker {
        let mut breaker = breaker(max_fails, 10_000);
        for _ in 0..max_fails {
            breaker.failed(1000, 0);
        }
        for now in [1100, 1300] {
            assert_eq!(breaker.ask(now), Verdict::Probe);
            breaker.failed(now, 0);
        }
        assert_eq!(until(&breaker), 1700);
        assert_eq!(breaker.ask(1700), Verdict::Probe);
        assert!(breaker.recovered(1700));
        breaker
    }

    #[test]
    fn a_probe_that_succeeds_does_not_make_the_pauses_short_again() {
        for max_fails in [1, 5] {
            let mut breaker = on_trial(max_fails);
            assert_eq!(breaker.ask(1700), Verdict::Go);
            assert!(breaker.failed(1710, 0), "the first failure is enough");
            assert_eq!(until(&breaker), 1710 + 800);
            assert_eq!(breaker.ask(2510), Verdict::Probe);
            assert!(breaker.recovered(2510));
            assert!(breaker.failed(2511, 0));
            assert_eq!(until(&breaker), 2511 + 1600);
        }
    }

    #[test]
    fn requests_that_are_answered_make_the_pauses_short_again() {
        let mut breaker = on_trial(1);
        breaker.succeeded();
        assert!(breaker.failed(1710, 0));
        assert_eq!(until(&breaker), 1710 + 400);
        breaker.ask(2110);
        breaker.recovered(2110);
        (0..3).for_each(|_| breaker.succeeded());
        assert!(breaker.failed(2120, 0));
        assert_eq!(until(&breaker), 2120 + FIRST_PAUSE);
    }

    #[test]
    fn after_as_long_up_as_it_was_down_the_pauses_are_short_again() {
        for (now, pause) in [(2399, 800), (2400, FIRST_PAUSE)] {
            let mut breaker = on_trial(1);
            assert!(breaker.failed(now, 0));
            assert_eq!(until(&breaker), now + pause);
        }
        let mut breaker = on_trial(2);
        assert!(!breaker.failed(2400, 0), "and it takes as many failures as ever");
        assert!(breaker.failed(2400, 0));
    }

    #[test]
    fn an_answer_does_not_close_an_open_breaker() {
        let mut breaker = Breaker::default();
        breaker.failed(0, 0);
        breaker.succeeded();
        assert!(breaker.is_open());
        assert_eq!(breaker.ask(FIRST_PAUSE), Verdict::Probe);
        breaker.succeeded();
        assert!(breaker.is_open());
    }

    #[test]
    fn no_pause_is_longer_than_fail_timeout() {
        let mut breaker = breaker(1, 250);
        let mut pauses = vec![];
        for _ in 0..4 {
            breaker.failed(0, 0);
            pauses.push(until(&breaker));
        }
        assert_eq!(pauses, [100, 200, 250, 250]);
    }

    #[test]
    fn jitter_takes_off_a_quarter_at_most() {
        let mut breaker = Breaker::default();
        breaker.failed(0, u32::MAX);
        assert!((75..=77).contains(&until(&breaker)), "{breaker:?}");
    }

    #[test]
    fn a_second_failure_is_no_transition() {
        let mut breaker = Breaker::default();
        assert!(breaker.failed(0, 0));
        assert!(!breaker.failed(0, 0));
        assert_eq!(breaker.ask(u64::MAX), Verdict::Probe);
        assert!(!breaker.failed(0, 0));
    }

    #[test]
    fn max_fails_failures_within_fail_timeout_open_it() {
        let mut breaker = breaker(3, 1000);
        assert!(!breaker.failed(5000, 0));
        assert!(!breaker.failed(5500, 0));
        assert_eq!(breaker.ask(5600), Verdict::Go);
        assert!(breaker.failed(6000, 0));
        assert_eq!(breaker.ask(6001), Verdict::Refuse);
    }

    #[test]
    fn the_first_failure_after_fail_timeout_begins_a_new_window() {
        let mut breaker = breaker(2, 1000);
        assert!(!breaker.failed(0, 0));
        assert!(!breaker.failed(1001, 0));
        assert!(!breaker.failed(2002, 0));
        assert!(breaker.failed(3002, 0));
    }

    #[test]
    fn a_success_resets_the_count() {
        let mut breaker = breaker(2, 1000);
        for _ in 0..10 {
            assert!(!breaker.failed(0, 0));
            breaker.succeeded();
        }
        assert!(!breaker.failed(0, 0));
        assert!(breaker.failed(0, 0));
    }

    #[test]
    fn max_fails_0_never_opens() {
        let mut breaker = breaker(0, 1000);
        for _ in 0..1000 {
            assert!(!breaker.failed(0, 0));
        }
        assert!(!breaker.is_open());
        assert_eq!(breaker.ask(0), Verdict::Go);
    }

    #[test]
    fn to_be_usable_is_not_to_be_refused() {
        let mut breaker = Breaker::default();
        assert!(breaker.is_usable(0));
        breaker.failed(0, 0);
        for now in [0, FIRST_PAUSE - 1] {
            assert!(!breaker.is_usable(now));
            assert_eq!(breaker.ask(now), Verdict::Refuse);
        }
        assert!(breaker.is_usable(FIRST_PAUSE));
        assert!(breaker.is_usable(FIRST_PAUSE), "to ask this starts no probe");
        assert_eq!(breaker.ask(FIRST_PAUSE), Verdict::Probe);
        assert!(!breaker.is_usable(u64::MAX));
    }

    #[test]
    fn a_router_sends_the_request_elsewhere_while_the_probe_starts() {
        let rendezvous = Rendezvous::new([("a", 1), ("b", 1)]).unwrap();
        let mut breakers = [Breaker::default(), Breaker::default()];
        let home = rendezvous.pick(b"key", |_| true).unwrap();
        breakers[home].failed(0, 0);
        let mut route = |now| {
            let mut probes = 0;
            loop {
                let place = rendezvous.pick(b"key", |n| breakers[n].is_usable(now))?;
                match breakers[place].ask(now) {
                    Verdict::Go => return Some((place, probes)),
                    Verdict::Probe => probes += 1,
                    Verdict::Refuse => panic!("usable, and refused"),
                }
            }
        };
        assert_eq!(route(0), Some((1 - home, 0)));
        assert_eq!(route(FIRST_PAUSE), Some((1 - home, 1)));
        assert_eq!(route(FIRST_PAUSE), Some((1 - home, 0)));
    }
}
