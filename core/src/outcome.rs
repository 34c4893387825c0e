//! How a lookup ended.

use core::fmt;

/// The outcome of one lookup. The words are the same in variables, counters and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has the session.
    Hit,
    /// The backend does not have it.
    Miss,
    /// No answer before the deadline.
    Timeout,
    /// The backend answered nonsense, refused the command or closed the connection.
    Error,
    /// The backend was not asked: it is known to be down, or too much is waiting for it.
    Down,
    /// There is an entry, but it does not open, is not a session, or not the one that was asked for.
    Corrupt,
    /// The session ID has the key id of one of our keys, and not that key's tag: nobody was asked.
    Forged,
    /// The session ID does not claim to be of one of our keys: the client has made it up, or a server
    /// has issued it that has none of them. Nobody was asked.
    Foreign,
    /// Nobody had to be asked: the client has a stateless ticket under a key of the fleet.
    Ticket,
    /// Nobody was asked: the handshake could not wait.
    Skipped,
}

impl Outcome {
    /// The word of this outcome.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "HIT",
            Outcome::Miss => "MISS",
            Outcome::Timeout => "TIMEOUT",
            Outcome::Error => "ERROR",
            Outcome::Down => "DOWN",
            Outcome::Corrupt => "CORRUPT",
            Outcome::Forged => "FORGED",
            Outcome::Foreign => "FOREIGN",
            Outcome::Ticket => "TICKET",
            Outcome::Skipped => "SKIPPED",
        }
    }

    /// The outcome of two lookups for one handshake: a hit stands, else the first trouble, else a
    /// foreign ID, else a miss. One that was not made says least.
    pub const fn or(self, later: Outcome) -> Outcome {
        match (self, later) {
            (Outcome::Hit, _) | (_, Outcome::Hit) => Outcome::Hit,
            (Outcome::Ticket, _) | (_, Outcome::Ticket) => Outcome::Ticket,
            (earlier, Outcome::Skipped) => earlier,
            (Outcome::Miss | Outcome::Skipped, later) => later,
            (Outcome::Foreign, Outcome::Miss) => Outcome::Foreign,
            (Outcome::Foreign, later) => later,
            (earlier, _) => earlier,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome::*;

    #[test]
    fn a_hit_stands_and_trouble_outlives_a_miss() {
        assert_eq!(Miss.or(Hit), Hit);
        assert_eq!(Hit.or(Timeout), Hit);
        assert_eq!(Timeout.or(Miss), Timeout);
        assert_eq!(Miss.or(Down), Down);
        assert_eq!(Down.or(Error), Down);
        assert_eq!(Miss.or(Miss), Miss);
    }

    #[test]
    fn a_foreign_id_outlives_a_miss_and_hides_no_trouble() {
        assert_eq!(Foreign.or(Hit), Hit);
        assert_eq!(Foreign.or(Ticket), Ticket);
        assert_eq!(Foreign.or(Miss), Foreign);
        assert_eq!(Miss.or(Foreign), Foreign);
        for trouble in [Timeout, Error, Down, Corrupt, Forged] {
            assert_eq!(Foreign.or(trouble), trouble);
            assert_eq!(trouble.or(Foreign), trouble);
        }
    }

    #[test]
    fn a_lookup_that_was_not_made_counts_where_no_other_was() {
        assert_eq!(Skipped.or(Skipped), Skipped);
        for other in [Hit, Miss, Timeout, Error, Down, Corrupt, Forged, Foreign, Ticket] {
            assert_eq!(Skipped.or(other), other);
            assert_eq!(other.or(Skipped), other);
        }
    }
}
