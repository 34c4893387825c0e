//! What became of a new session.

/// What became of the sessions that a handshake has made: of several the worst, which comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// It was handed to all targets.
    Stored,
    /// It is one that is not stored.
    Skipped,
    /// A target has no room, or none of its servers is available.
    Dropped,
    /// It could not be stored, and the client has it in a stateless ticket.
    Ticket,
}

impl Stored {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stored::Stored => "STORED",
            Stored::Skipped => "SKIPPED",
            Stored::Dropped => "DROPPED",
            Stored::Ticket => "TICKET",
        }
    }
}
