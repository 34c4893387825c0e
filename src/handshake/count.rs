//! What is counted of handshakes.

use core::cell::{OnceCell, RefCell};
use core::ffi::c_int;
use core::time::Duration;
use std::vec::Vec;

use session_core::stats::{self, Kind, histogram, listen};

use super::Report;
use crate::ffi::counters::{Count, Counters};
use crate::ffi::tls::Connection;

/// Versions of TLS, as on the wire and as they are called.
const PROTOCOLS: [(c_int, &str); 4] =
    [(0x0301, "TLSv1"), (0x0302, "TLSv1.1"), (0x0303, "TLSv1.2"), (0x0304, "TLSv1.3")];

/// Counts the handshakes of a worker.
#[derive(Default)]
pub struct Tally {
    counters: OnceCell<Counters>,
    protocols: [Count; PROTOCOLS.len()],
    /// By the number of the listening address.
    listens: RefCell<Vec<(usize, [Count; PROTOCOLS.len()])>>,
}

impl Tally {
    /// The worker begins.
    pub fn begin(&self, counters: Counters) {
        // A second time it is the same.
        let _ = self.counters.set(counters);
        for (count, (_, protocol)) in self.protocols.iter().zip(PROTOCOLS) {
            count.begin(&counters, Kind::Protocol, &[protocol]);
        }
    }

    /// A handshake has come to its end.
    pub fn handshake(&self, connection: &Connection, report: Report) {
        let version = connection.protocol();
        let Some(place) = PROTOCOLS.iter().position(|(number, _)| *number == version) else {
            return;
        };
        self.on_listening(connection, place, |count| {
            let result = if connection.is_resumed() { listen::RESUMED } else { listen::FULL };
            count.add(result, 1);
            if let Some(outcome) = report.outcome {
                count.add(listen::FETCHED.saturating_add(stats::status(outcome)), 1);
            }
        });
        if let Some(count) = self.protocols.get(place).filter(|_| report.suspended) {
            count_time(count, Kind::Protocol, report.time);
        }
    }

    fn on_listening(&self, connection: &Connection, place: usize, add: impl FnOnce(&Count)) {
        let (Some(counters), Some((number, address)), Ok(mut listens)) =
            (self.counters.get(), connection.listening(), self.listens.try_borrow_mut())
        else {
            return;
        };
        let found = listens.iter().position(|(known, _)| *known == number).or_else(|| {
            listens.try_reserve(1).ok()?;
            let counts: [Count; PROTOCOLS.len()] = Default::default();
            for (count, (_, protocol)) in counts.iter().zip(PROTOCOLS) {
                count.begin(counters, Kind::Listen, &[address, protocol]);
            }
            listens.push((number, counts));
            listens.len().checked_sub(1)
        });
        if let Some(count) = found.and_then(|at| listens.get(at)?.1.get(place)) {
            add(count);
        }
    }
}

/// Counts a time.
pub fn count_time(count: &Count, kind: Kind, time: Duration) {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let at = kind.times_at();
    count.add(at, us);
    count.add(at.saturating_add(1).saturating_add(histogram::bucket(us)), 1);
}
