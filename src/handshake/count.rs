//! What is counted of handshakes.

use core::cell::RefCell;
use core::ffi::c_int;
use std::vec::Vec;

use session_core::stats::{Kind, listen, protocol};
use session_core::stored::Stored;

use super::report::Report;
use crate::ffi::counters::Count;
use crate::ffi::tls::Connection;

/// Versions of TLS, as on the wire and as they are called.
const PROTOCOLS: [(c_int, &str); 4] =
    [(0x0301, "TLSv1"), (0x0302, "TLSv1.1"), (0x0303, "TLSv1.2"), (0x0304, "TLSv1.3")];

/// Counts the handshakes of a worker.
#[derive(Default)]
pub struct Tally {
    protocols: [Count; PROTOCOLS.len()],
    /// By the number of the listening address, in its order.
    listens: RefCell<Vec<(usize, [Count; PROTOCOLS.len()])>>,
}

impl Tally {
    /// The worker begins.
    pub fn begin(&self) {
        for (count, (_, protocol)) in self.protocols.iter().zip(PROTOCOLS) {
            count.begin(Kind::Protocol, &[protocol]);
        }
    }

    /// A handshake has come to its end. `unusable`: the session was found, and not resumed.
    pub fn handshake(&self, connection: &Connection, report: Report, unusable: bool) {
        let Some(place) = place(connection) else { return };
        self.on_listening(connection, place, |count| {
            let result = if connection.is_resumed() { listen::RESUMED } else { listen::FULL };
            count.add(result, 1);
            if let Some(outcome) = report.outcome {
                count.add(listen::fetched(outcome), 1);
            }
            if unusable {
                count.add(listen::UNUSABLE, 1);
            }
        });
        if let Some(count) = self.protocols.get(place).filter(|_| report.suspended) {
            count.add_time(protocol::SUSPENDED, report.time);
        }
    }

    /// A handshake has made a session.
    pub fn session(&self, connection: &Connection, stored: Stored) {
        if let Some(place) = place(connection) {
            self.on_listening(connection, place, |count| {
                count.add(listen::new_sessions(stored), 1)
            });
        }
    }

    fn on_listening(&self, connection: &Connection, place: usize, add: impl FnOnce(&Count)) {
        let (Some((number, address)), Ok(mut listens)) =
            (connection.listening(), self.listens.try_borrow_mut())
        else {
            return;
        };
        let at = match listens.binary_search_by_key(&number, |(known, _)| *known) {
            Ok(at) => at,
            Err(at) => {
                if listens.try_reserve(1).is_err() {
                    return;
                }
                let counts: [Count; PROTOCOLS.len()] = Default::default();
                for (count, (_, protocol)) in counts.iter().zip(PROTOCOLS) {
                    count.begin(Kind::Listen, &[address, protocol]);
                }
                listens.insert(at, (number, counts));
                at
            }
        };
        if let Some(count) = listens.get(at).and_then(|(_, counts)| counts.get(place)) {
            add(count);
        }
    }
}

/// The place of a connection's version of TLS.
fn place(connection: &Connection) -> Option<usize> {
    let version = connection.protocol();
    PROTOCOLS.iter().position(|(number, _)| *number == version)
}
