//! What is reported of a handshake.

use core::cell::Cell;
use core::time::Duration;

use session_core::outcome::Outcome;
use session_core::stored::Stored;

/// How the session of a connection was looked up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// The outcome; none if no lookup was needed.
    pub outcome: Option<Outcome>,
    /// How long it took.
    pub time: Duration,
    /// The number of the tier that had the session.
    pub tier: Option<usize>,
    /// Whether the handshake was suspended.
    pub suspended: bool,
}

/// All that is reported of one handshake.
#[derive(Default)]
pub struct Reports {
    fetched: Cell<Report>,
    stored: Cell<Option<Stored>>,
    resumed: Cell<Option<i64>>,
    finished: Cell<bool>,
}

impl Reports {
    /// How the session was looked up.
    pub fn fetched(&self) -> Report {
        self.fetched.get()
    }

    /// Reports how long lookups took that were made ahead of OpenSSL's question.
    pub fn set_time(&self, time: Duration, suspended: bool) {
        self.fetched.set(Report { time, suspended, ..self.fetched.get() });
    }

    /// Adds the lookup of a session that OpenSSL has asked for. The time of one in local tiers is not
    /// worth measuring.
    pub fn add(&self, outcome: Outcome, tier: Option<usize>) {
        let mut report = self.fetched.get();
        report.outcome = Some(report.outcome.map_or(outcome, |earlier| earlier.or(outcome)));
        report.tier = if outcome == Outcome::Hit { tier } else { report.tier.or(tier) };
        self.fetched.set(report);
    }

    /// What became of the sessions that the handshake has made; nothing if none was to be stored.
    pub fn stored(&self) -> Option<Stored> {
        self.stored.get()
    }

    /// Adds what became of one new session: the worst is reported.
    pub fn add_stored(&self, stored: Stored) {
        self.stored.set(self.stored.get().max(Some(stored)));
    }

    /// When the session was made that has been resumed, in seconds since the epoch; nothing if
    /// neither the module nor a cache that it checks had the session.
    pub fn resumed(&self) -> Option<i64> {
        self.resumed.get()
    }

    /// Notes when the session was made that is about to be resumed.
    pub fn set_resumed(&self, made: i64) {
        self.resumed.set(Some(made));
    }

    /// Notes that the handshake is over, with the client's Finished. A pause for early data is not:
    /// whoever has recorded a first flight can come as far as that.
    pub fn set_finished(&self) {
        self.finished.set(true);
    }

    /// Whether the client has proved that the session of its connection is its own: it has finished a
    /// handshake in which that was made and stored, or was found by its ID and `resumed`.
    ///
    /// A session that was resumed from a stateless ticket is neither: OpenSSL gives it the session ID
    /// that the client has put beside its ticket, which may be anybody's.
    pub fn is_proved(&self, resumed: bool) -> bool {
        // Sessions are made after the client's Finished.
        let made = matches!(self.stored.get(), Some(Stored::Stored | Stored::Dropped));
        made || (resumed && self.finished.get() && self.resumed.get().is_some())
    }
}
