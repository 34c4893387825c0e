//! Entries that are of no use, and why.

use core::fmt;
use std::format;
use std::string::String;

use session_core::envelope::OpenError;

use super::lookup::Lookup;
use super::messages::{FETCHING, pass};
use super::policy::Policy;
use crate::ffi::log::Log;
use crate::tier::Tier;
use crate::{debug, log_at};

/// Why an entry that was found is no session to be resumed. The texts are log fragments.
#[derive(Clone, Copy, Debug)]
pub enum Reject {
    /// It is longer than any session that is stored.
    TooLarge,
    /// It does not open.
    Envelope(OpenError),
    /// What is in it is no session.
    NotSession,
    /// It is the session of another ID.
    OtherSession,
    /// It is a session of TLS 1.3 for a session ID of the versions before, or the other way round.
    Protocol,
    /// The session has ended.
    Expired,
}

impl Reject {
    /// Whether it may be the answer to another question.
    pub fn is_stray(self) -> bool {
        matches!(
            self,
            Reject::OtherSession
                | Reject::Envelope(OpenError::Key)
                | Reject::Envelope(OpenError::Tag)
        )
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reject::TooLarge => f.write_str("too large"),
            Reject::Envelope(error) => error.fmt(f),
            Reject::NotSession => f.write_str("not a session"),
            Reject::OtherSession => f.write_str("another session"),
            Reject::Protocol => f.write_str("session of another protocol"),
            Reject::Expired => f.write_str("expired"),
        }
    }
}

impl Policy {
    /// Removes an entry that is of no use.
    pub(super) fn discard(&self, log: &Log, lookup: &Lookup, tier: &dyn Tier, reject: Reject) {
        let (entry, giver) = (lookup.entry(), lookup.giver());
        debug!(log, "SSL session fetch {:08x}: {reject}", entry.id().short_hash());
        tier.remove(entry.name());
        if reject.is_stray() {
            tier.suspect(entry.name(), giver);
        }
        if let Some(times) = pass(&self.corrupt) {
            let server = tier.server(entry.name(), giver);
            let server = server.map_or_else(String::new, |at| format!(", {at}"));
            log_at!(
                &log.during(FETCHING),
                Error,
                "corrupt SSL session {:08x} in \"{}\"{server}, {times} times: {reject}",
                entry.id().short_hash(),
                tier.name()
            );
        }
    }
}
