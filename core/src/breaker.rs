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
//! up for as long as it was down, or could have been, and as a failure takes to show, has passed.
//!
//! The workers of a machine have a [`Board`] in common for each server, on which the one that finds
//! it down, or up again, puts that down for the others. While it is up the board has the time of the
//! last answer that one of them got. A connection that cannot be made says little while others work:
//! many machines that connect at once make a server slow to accept. So long as it was
//! [reached](Board::reached) the failure is the connection's, which has a [`Breaker`] of its own that
//! nobody else hears of.

use core::sync::atomic::{AtomicU64, Ordering};

/// The first pause after a breaker opened, in milliseconds; each further failure doubles it.
pub const FIRST_PAUSE: u64 = 100;
/// The longest pause, in milliseconds, unless `fail_timeout` is shorter.
pub const LONGEST_PAUSE: u64 = 5000;
/// How long before an attempt to connect an answer to somebody else counts for it, in milliseconds.
pub const LATELY: u64 = 1000;
/// How exact the time of the last answer is, in milliseconds: it is not written for each.
const EXACT: u64 = 100;

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

/// What the workers of a machine know of a server together: one word in shared memory, so that nobody
/// waits for a lock that a dead worker holds. A configuration knows nothing of what the one before it
/// has put down: it may be right about what that was wrong about.
#[derive(Clone, Copy, Debug)]
pub struct Board<'a> {
    word: &'a AtomicU64,
    /// Tells configurations apart.
    generation: u16,
}

/// What is on a [`Board`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// The server is down, and left alone until then. `pauses`: how many there were, with this one.
    Down { until: u64, pauses: u32 },
    /// It is up. When it has last answered somebody; 0 if it has not, or a connection was lost since.
    Up { heard: u64 },
}

/// How many servers there are boards for. Those that come later have none.
const SERVERS: usize = 512;

/// The boards of all servers, in memory that the workers share.
#[derive(Debug)]
pub struct Boards {
    places: [Place; SERVERS],
}

/// The word of a server, and the number that it goes by; 0 if nobody has taken the place.
#[derive(Debug)]
struct Place {
    server: AtomicU64,
    word: AtomicU64,
    /// Until when a worker asks on a second connection whether the server works.
    doubt: AtomicU64,
}

impl Boards {
    /// The place of a server, which has a number of its own, for ever. `None` if there is no room.
    pub fn place(&self, server: u64) -> Option<usize> {
        let server = server.max(1);
        self.places.iter().position(|place| {
            let relaxed = Ordering::Relaxed;
            match place.server.compare_exchange(0, server, relaxed, relaxed) {
                Ok(_) => true,
                Err(taken) => taken == server,
            }
        })
    }

    /// Whether a worker may ask the server at a place, on a second connection, why it is silent; else
    /// another one does. One that dies over it has it for `most` milliseconds.
    pub fn doubts(&self, place: usize, now: u64, most: u64) -> bool {
        let Some(Place { doubt, .. }) = self.places.get(place) else { return true };
        let relaxed = Ordering::Relaxed;
        let until = doubt.load(relaxed);
        let next = now.saturating_add(most);
        until <= now && doubt.compare_exchange(until, next, relaxed, relaxed).is_ok()
    }

    /// The worker that asked has its answer, or none.
    pub fn doubted(&self, place: usize) {
        if let Some(Place { doubt, .. }) = self.places.get(place) {
            doubt.store(0, Ordering::Relaxed);
        }
    }

    /// The board at a place, as a configuration sees it.
    pub fn board(&self, place: usize, generation: u16) -> Option<Board<'_>> {
        self.places.get(place).map(|place| Board::new(&place.word, generation))
    }
}

impl Default for Boards {
    fn default() -> Self {
        Boards {
            places: [const {
                Place {
                    server: AtomicU64::new(0),
                    word: AtomicU64::new(0),
                    doubt: AtomicU64::new(0),
                }
            }; SERVERS],
        }
    }
}

/// The bits of a word: the generation, the pauses, which are none while the server is up, and the time
/// in milliseconds.
const TIME_BITS: u32 = 42;
const PAUSES_BITS: u32 = 6;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const PAUSES_MASK: u64 = (1 << PAUSES_BITS) - 1;
/// How long what another configuration has put down is in the way, in milliseconds after the time.
const FOREIGN: u64 = 2 * LONGEST_PAUSE;

impl<'a> Board<'a> {
    /// The board in a word, which is 0 at first.
    pub const fn new(word: &'a AtomicU64, generation: u16) -> Self {
        Board { word, generation }
    }

    fn pack(self, note: Note) -> u64 {
        let (time, pauses) = match note {
            Note::Down { until, pauses } => (until, u64::from(pauses).clamp(1, PAUSES_MASK)),
            Note::Up { heard } => (heard, 0),
        };
        let generation = u64::from(self.generation) << (TIME_BITS + PAUSES_BITS);
        generation | pauses << TIME_BITS | time.min(TIME_MASK)
    }

    fn unpack(word: u64) -> Note {
        let time = word & TIME_MASK;
        match u32::try_from(word >> TIME_BITS & PAUSES_MASK).unwrap_or(0) {
            0 => Note::Up { heard: time },
            pauses => Note::Down { until: time, pauses },
        }
    }

    /// Whether a word was written by this configuration.
    fn is_own(self, word: u64) -> bool {
        word >> (TIME_BITS + PAUSES_BITS) == u64::from(self.generation)
    }

    /// What is on it, unless it is another configuration's.
    fn read(self) -> Option<Note> {
        let word = self.word.load(Ordering::Relaxed);
        self.is_own(word).then_some(Self::unpack(word))
    }

    /// Whether a word may be replaced by what this configuration knows at `now`: another one's that has
    /// the server down stays as long as that counts.
    fn may_replace(self, word: u64, now: u64) -> bool {
        self.is_own(word)
            || match Self::unpack(word) {
                Note::Down { until, .. } => until.saturating_add(FOREIGN) < now,
                Note::Up { .. } => true,
            }
    }

    /// Puts a note in the place of what is there, unless that is news.
    fn write(self, note: Note, now: u64) {
        if self.may_replace(self.word.load(Ordering::Relaxed), now) {
            self.word.store(self.pack(note), Ordering::Relaxed);
        }
    }

    /// The server has answered. Cheap: it is written once in a while, and never over that it is down.
    pub fn heard(self, now: u64) {
        let word = self.word.load(Ordering::Relaxed);
        let due = match (self.is_own(word), Self::unpack(word)) {
            (true, Note::Up { heard }) => now.saturating_sub(heard) >= EXACT,
            (true, Note::Down { .. }) => false,
            (false, _) => self.may_replace(word, now),
        };
        if due {
            self.exchange(word, Note::Up { heard: now });
        }
    }

    /// A connection that worked was lost: what was heard before may be the last of the server.
    pub fn lost(self) {
        let word = self.word.load(Ordering::Relaxed);
        if self.is_own(word) && matches!(Self::unpack(word), Note::Up { .. }) {
            self.exchange(word, Note::Up { heard: 0 });
        }
    }

    /// Whether the server has answered anybody after `since`, and no connection was lost after that.
    pub fn reached(self, since: u64) -> bool {
        matches!(self.read(), Some(Note::Up { heard }) if heard > since)
    }

    /// Puts a note in the place of a word, unless somebody was faster. Whether it is there.
    fn exchange(self, word: u64, note: Note) -> bool {
        let relaxed = Ordering::Relaxed;
        self.word.compare_exchange(word, self.pack(note), relaxed, relaxed).is_ok()
    }

    /// Takes the probe that is due, for so long as it may take. Whether nobody else was first.
    fn claim(self, now: u64, most: u64) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        match Self::unpack(word) {
            Note::Down { until, pauses } if self.is_own(word) && until <= now => {
                self.exchange(word, Note::Down { until: now.saturating_add(most), pauses })
            }
            _ => false,
        }
    }
}

/// What a worker learns from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// The server is down.
    Down,
    /// It is up again.
    Up,
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
    /// How long a failure takes to show.
    shows: u64,
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
        Breaker { config, shows: 0, state: State::GOOD }
    }

    /// The same, of a server whose failures take so many milliseconds to show: a trial lasts as long, at
    /// least, and counts no more of it than [`LONGEST_PAUSE`].
    pub fn showing(mut self, ms: u64) -> Self {
        self.shows = ms.min(LONGEST_PAUSE);
        self
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

    /// Takes over what others know. To be called before [`Breaker::ask`].
    pub fn hear(&mut self, board: Board<'_>, now: u64) -> News {
        let Some(note) = board.read() else { return News::None };
        match (&mut self.state, note) {
            (State::Closed { .. }, Note::Down { until, pauses }) => {
                self.state = State::Open { until, down: Down { since: now, pauses } };
                News::Down
            }
            (State::Open { .. }, Note::Up { .. }) => {
                self.recovered(now);
                News::Up
            }
            (State::Open { until, down }, Note::Down { until: others, pauses }) => {
                *until = others;
                down.pauses = pauses;
                News::None
            }
            (State::Closed { .. }, Note::Up { .. }) | (State::Probing { .. }, _) => News::None,
        }
    }

    /// Tells others how the server stands now.
    pub fn tell(&self, board: Board<'_>, now: u64) {
        let note = match self.state {
            State::Open { until, down } => Note::Down { until, pauses: down.pauses },
            State::Closed { .. } => Note::Up { heard: now },
            State::Probing { .. } => return,
        };
        if board.read() != Some(note) {
            board.write(note, now);
        }
    }

    /// Whether the probe that [`Breaker::ask`] has given is nobody else's; else it is taken back. A
    /// worker that dies with it has it for `most` milliseconds.
    pub fn claims(&mut self, board: Board<'_>, now: u64, most: u64) -> bool {
        let State::Probing { down } = self.state else { return false };
        if board.read().is_none() || board.claim(now, most) {
            return true;
        }
        // Another one has begun, or is through with it: that is heard before the next request.
        self.state = State::Open { until: now, down };
        false
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

    /// The probe was dropped: another one is due.
    pub fn dropped(&mut self, now: u64) {
        if let State::Probing { down } = self.state {
            self.state = State::Open { until: now, down };
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
        // Chance may have made the pauses shorter than a failure takes to show.
        let whole = (0..down.pauses).fold(0u64, |sum, n| sum.saturating_add(self.whole_pause(n)));
        let trial = now.saturating_sub(down.since).max(whole).max(self.shows);
        let until = now.saturating_add(trial);
        let trial = Some(Trial { until, pauses: down.pauses });
        self.state = State::Closed { fails: 0, since: 0, trial };
        true
    }

    /// Whether one more failure would open it.
    pub fn is_about_to_open(&self, now: u64) -> bool {
        let State::Closed { fails, since, trial } = self.state else { return false };
        let (fails, _) = self.count(fails, since, now);
        let opens = self.config.max_fails != 0 && fails >= self.config.max_fails;
        opens || trial.is_some_and(|trial| now < trial.until)
    }

    /// The server failed. Returns whether that opened the breaker.
    ///
    /// `random` takes off any part of the pause, so that a fleet does not come back all at once: what a
    /// server can take of it is over in a moment, and the rest of it had better not try at the same time
    /// again.
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

    /// How long the pause after so many is, at the most.
    fn whole_pause(&self, pauses: u32) -> u64 {
        FIRST_PAUSE
            .saturating_mul(1u64.checked_shl(pauses).unwrap_or(u64::MAX))
            .min(self.config.longest_pause())
    }

    /// The pause after those that there were.
    fn pause(&self, down: Down, now: u64, random: u32) -> State {
        let full = self.whole_pause(down.pauses);
        let jitter = full.saturating_mul(u64::from(random)) >> 32;
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
    fn a_failure_that_is_slow_to_show_comes_within_the_trial() {
        for (shows, failed_again, last) in [(0, 800, 100), (800, 800, 200), (800, 801, 100)] {
            let mut breaker = Breaker::new(Config::DEFAULT).showing(shows);
            breaker.failed(0, 0);
            assert_eq!(breaker.ask(100), Verdict::Probe);
            assert!(breaker.recovered(100));
            assert!(breaker.failed(100 + failed_again - 1, 0), "{shows}");
            assert_eq!(until(&breaker), 100 + failed_again - 1 + last, "{shows}, {failed_again}");
        }
        let longest = Breaker::new(Config::DEFAULT).showing(60_000).shows;
        assert_eq!(longest, LONGEST_PAUSE, "of what shows after a minute");
    }

    #[test]
    fn pauses_that_chance_made_short_make_no_shorter_trial() {
        let mut breaker = Breaker::default();
        for now in [1000, 1001, 1002] {
            breaker.failed(now, u32::MAX);
            assert_eq!(breaker.ask(now + 1), Verdict::Probe);
        }
        assert!(breaker.recovered(1003));
        assert!(breaker.failed(1003 + 699, 0));
        assert_eq!(until(&breaker), 1003 + 699 + 800, "as after 100, 200 and 400 ms");
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
    fn jitter_takes_off_any_part_of_a_pause() {
        for (random, pause) in [(0, 100), (1 << 30, 75), (1 << 31, 50), (u32::MAX, 1)] {
            let mut breaker = Breaker::default();
            breaker.failed(0, random);
            assert_eq!(until(&breaker), pause);
            // The next one is as long as if this one had been.
            breaker.failed(0, 0);
            assert_eq!(until(&breaker), 2 * FIRST_PAUSE);
        }
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
    fn what_one_worker_finds_down_others_do_not_ask() {
        let word = AtomicU64::new(0);
        let board = Board::new(&word, 7);
        let mut workers = [Breaker::default(), Breaker::default(), Breaker::default()];
        for worker in &mut workers {
            assert_eq!(worker.hear(board, 900), News::None);
            assert_eq!(worker.ask(900), Verdict::Go);
        }
        assert!(workers[0].failed(1000, 0));
        workers[0].tell(board, 1000);
        for worker in &mut workers[1..] {
            assert_eq!(worker.hear(board, 1010), News::Down);
            assert_eq!(worker.ask(1010), Verdict::Refuse);
            assert_eq!(worker.hear(board, 1010), News::None, "it is told once");
        }
        // One of them has the probe.
        let mut probes = 0;
        for worker in &mut workers {
            worker.hear(board, 1100);
            if worker.ask(1100) == Verdict::Probe && worker.claims(board, 1100, 300) {
                probes += 1;
            }
        }
        assert_eq!(probes, 1);
        assert_eq!(workers[1].hear(board, 1399), News::None);
        assert_eq!(workers[1].ask(1399), Verdict::Refuse);
        // It fails: all of them wait for the next pause to end.
        assert!(!workers[0].failed(1150, 0));
        workers[0].tell(board, 1150);
        for worker in &mut workers {
            worker.hear(board, 1349);
            assert_eq!(worker.ask(1349), Verdict::Refuse);
        }
        // Another one has the next, and finds the server up.
        workers[2].hear(board, 1350);
        assert_eq!(workers[2].ask(1350), Verdict::Probe);
        assert!(workers[2].claims(board, 1350, 300));
        assert!(workers[2].recovered(1360));
        workers[2].tell(board, 1360);
        for worker in &mut workers[..2] {
            assert_eq!(worker.hear(board, 1361), News::Up);
            assert_eq!(worker.ask(1361), Verdict::Go);
        }
        // For each it is on trial.
        assert!(workers[1].failed(1370, 0));
        assert_eq!(until(&workers[1]), 1370 + 400);
    }

    #[test]
    fn each_server_has_a_word_of_its_own_while_there_is_room() {
        let boards = Boards::default();
        let servers = (0..SERVERS as u64).map(|n| 7 + 1000 * n);
        let word = |server| boards.board(boards.place(server).unwrap(), 7).unwrap().word;
        for server in servers.clone() {
            assert_eq!(word(server).fetch_add(server, Ordering::Relaxed), 0, "nobody else has it");
        }
        for server in servers {
            assert_eq!(word(server).load(Ordering::Relaxed), server);
        }
        assert!(boards.place(3).is_none() && boards.board(SERVERS, 7).is_none());
        assert!(Boards::default().place(0).is_some());
    }

    #[test]
    fn a_probe_of_a_worker_that_is_gone_is_due_again() {
        let word = AtomicU64::new(0);
        let board = Board::new(&word, 7);
        let (mut dead, mut other) = (Breaker::default(), Breaker::default());
        dead.failed(0, 0);
        dead.tell(board, 0);
        assert_eq!(dead.ask(100), Verdict::Probe);
        assert!(dead.claims(board, 100, 300));
        for (now, verdict) in [(399, Verdict::Refuse), (400, Verdict::Probe)] {
            other.hear(board, now);
            assert_eq!(other.ask(now), verdict);
        }
        assert!(other.claims(board, 400, 300));
    }

    #[test]
    fn what_one_worker_hears_of_a_server_counts_for_all() {
        let word = AtomicU64::new(0);
        let board = Board::new(&word, 7);
        assert!(!board.reached(0), "nobody has heard anything");
        board.heard(5000);
        assert!(board.reached(4999));
        assert!(!board.reached(5000), "an answer of before shows nothing");
        // It is written once in a while.
        board.heard(5000 + EXACT - 1);
        assert!(!board.reached(5000));
        board.heard(5000 + EXACT);
        assert!(board.reached(5000));
        let mut worker = Breaker::default();
        assert_eq!(worker.hear(board, 5200), News::None, "it goes on counting as up");
        assert_eq!(worker.ask(5200), Verdict::Go);
    }

    #[test]
    fn a_lost_connection_takes_back_what_was_heard() {
        let word = AtomicU64::new(0);
        let board = Board::new(&word, 7);
        board.heard(5000);
        board.lost();
        assert!(!board.reached(0));
        board.heard(5001);
        assert!(board.reached(5000), "others are answered still");
    }

    #[test]
    fn an_answer_does_not_take_from_the_board_that_a_server_is_down() {
        let word = AtomicU64::new(0);
        let board = Board::new(&word, 7);
        let (mut worker, mut other) = (Breaker::default(), Breaker::default());
        board.heard(900);
        worker.failed(1000, 0);
        worker.tell(board, 1000);
        board.heard(1050);
        board.lost();
        assert!(!board.reached(0), "a server that is down was not reached");
        assert_eq!(other.hear(board, 1060), News::Down);
        assert_eq!(other.ask(1100), Verdict::Probe);
        assert!(other.claims(board, 1100, 300));
        // Up again, which is an answer.
        other.recovered(1110);
        other.tell(board, 1110);
        assert!(board.reached(1109));
        assert_eq!(worker.hear(board, 1111), News::Up);
        assert!(!worker.claims(board, 1112, 300), "there is no probe to be had");
    }

    #[test]
    fn what_another_configuration_has_heard_shows_nothing_and_is_not_in_the_way() {
        let word = AtomicU64::new(0);
        let (old, new) = (Board::new(&word, 7), Board::new(&word, 8));
        old.heard(1000);
        assert!(!new.reached(0));
        new.lost();
        assert!(old.reached(999));
        new.heard(1001);
        assert!(new.reached(1000));
        // That it has the server down stays.
        let mut worker = Breaker::default();
        worker.failed(1010, 0);
        worker.tell(old, 1010);
        new.heard(1200);
        assert!(!new.reached(0));
        assert_eq!(old.read(), Some(Note::Down { until: 1110, pauses: 1 }));
    }

    #[test]
    fn one_worker_at_a_time_asks_why_a_server_is_silent() {
        let boards = Boards::default();
        let place = boards.place(3).unwrap();
        assert!(boards.doubts(place, 1000, 300));
        assert!(!boards.doubts(place, 1299, 300));
        assert!(boards.doubts(place, 1300, 300), "who has it may have died");
        boards.doubted(place);
        assert!(boards.doubts(place, 1301, 300));
        assert!(boards.doubts(boards.place(4).unwrap(), 1301, 300), "of each server");
    }

    #[test]
    fn it_is_known_whether_a_failure_would_open_it() {
        let mut breaker = breaker(2, 1000);
        assert!(!breaker.is_about_to_open(0));
        breaker.failed(0, 0);
        assert!(breaker.is_about_to_open(1000));
        assert!(!breaker.is_about_to_open(1001), "that one is forgotten");
        breaker.failed(10, 0);
        assert!(!breaker.is_about_to_open(10), "it is open");
        assert!(on_trial(2).is_about_to_open(1710));
        assert!(!self::breaker(0, 1000).is_about_to_open(0));
    }

    #[test]
    fn a_probe_that_is_dropped_is_due_again() {
        let mut breaker = Breaker::default();
        breaker.failed(0, 0);
        assert_eq!(breaker.ask(100), Verdict::Probe);
        breaker.dropped(120);
        assert_eq!(breaker.ask(120), Verdict::Probe);
        breaker.recovered(130);
        breaker.dropped(140);
        assert_eq!(breaker.ask(140), Verdict::Go);
    }

    #[test]
    fn a_configuration_does_not_hear_what_another_one_has_told() {
        let word = AtomicU64::new(0);
        let (old, new) = (Board::new(&word, 7), Board::new(&word, 8));
        let mut worker = Breaker::default();
        worker.failed(1000, 0);
        worker.tell(old, 1000);
        let mut next = Breaker::default();
        assert_eq!(next.hear(new, 1001), News::None);
        assert_eq!(next.ask(1001), Verdict::Go);
        // Nor does it take the board away while that counts.
        next.failed(1002, 0);
        next.tell(new, 1002);
        assert_eq!(old.read(), Some(Note::Down { until: 1100, pauses: 1 }));
        assert_eq!(next.ask(1102), Verdict::Probe);
        assert!(next.claims(new, 1102, 300), "each probes for itself");
        next.failed(12_000, 0);
        next.tell(new, 12_000);
        assert_eq!(old.read(), None);
        assert_eq!(new.read(), Some(Note::Down { until: 12_200, pauses: 2 }));
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
