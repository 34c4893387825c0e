//! What is counted and logged when a handshake has ended.

use core::fmt;

use session_core::outcome::Outcome;

use super::messages::FETCHING;
use super::policy::Policy;
use super::report::Report;
use crate::ffi::tls::Connection;
use crate::{debug, log_at};

impl Policy {
    /// Counts a handshake that has ended, and logs how.
    pub(super) fn count_handshake(&self, connection: &Connection, report: Report) {
        let unusable = report.outcome == Some(Outcome::Hit) && !connection.is_resumed();
        self.tally.handshake(connection, report, unusable);
        if unusable {
            log_at!(
                &connection.log().during(FETCHING),
                Info,
                "SSL session was found and not resumed: it is of another certificate, \
                 or of other settings"
            );
        }
        debug!(connection.log(), "{}", Done { connection, report });
    }
}

/// How a handshake has ended, for a log.
struct Done<'a> {
    connection: &'a Connection,
    report: Report,
}

impl fmt::Display for Done<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handshake = if self.connection.is_resumed() { "resumed" } else { "full" };
        let us = self.report.time.as_micros();
        match self.report.outcome {
            Some(outcome) => write!(f, "SSL session: {handshake} handshake, {outcome} in {us} us"),
            None => write!(f, "SSL session: {handshake} handshake, no lookup"),
        }
    }
}
