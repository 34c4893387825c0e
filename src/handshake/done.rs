//! What is counted and logged when a handshake has ended.

use core::fmt;

use session_core::outcome::Outcome;

use super::messages::FETCHING;
use super::policy::Policy;
use super::report::Report;
use crate::ffi::clock;
use crate::ffi::log::Log;
use crate::ffi::tls::Connection;
use crate::{debug, log_at};

impl Policy {
    /// Counts a handshake that has ended, and logs how.
    pub(super) fn count_handshake(&self, connection: &Connection, report: Report) {
        let found = report.outcome == Some(Outcome::Hit);
        let unusable = found && !connection.is_resumed();
        self.tally.handshake(connection, report, unusable);
        if found {
            self.warn_if_unusable(unusable);
        }
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

    /// Says so when many of the sessions that are found are of no use: then servers differ that should
    /// not.
    fn warn_if_unusable(&self, unusable: bool) {
        let Ok(mut seen) = self.unusable.try_borrow_mut() else { return };
        if let Some((unusable, found)) = seen.add(unusable, clock::now_ms()) {
            log_at!(
                Log::cycle(),
                Warn,
                "{unusable} of the last {found} SSL sessions that were found could not be resumed: \
                 they are of other certificates, of the same in another order, or of other settings"
            );
        }
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
