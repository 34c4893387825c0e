//! What is reported of a handshake.

use core::time::Duration;

use session_core::outcome::Outcome;

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
