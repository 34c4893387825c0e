//! What the module counts of itself, and how that is shown.
//!
//! A *record* is what is counted of one thing: a listening address, a version of TLS, a target, a
//! server of a backend. It has a kind, labels that say which one it is, and a row of numbers, whose
//! meaning the kind knows. Where records lie, and who adds to them, is not known here.
//!
//! Some kinds are not counted, and are looked at when somebody asks: zones, keys, epochs, the build.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::outcome::Outcome;
use crate::stored::Stored;

pub mod histogram;
pub mod json;
pub mod prometheus;

use histogram::BUCKETS;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Handshakes on a listening address in a version of TLS.
    Listen,
    /// Handshakes in a version of TLS.
    Protocol,
    /// A target of `ssl_session_fetch` or `ssl_session_store`.
    Tier,
    /// A server of a backend.
    Server,
    /// A zone of sessions.
    Zone,
    /// An `ssl_session_key`.
    Key,
    /// An `ssl_session_epoch`.
    Epoch,
    /// The module, and what it runs in. There is one.
    Build,
}

/// All kinds, in the order in which they are shown.
pub const KINDS: [Kind; 8] = [
    Kind::Listen,
    Kind::Protocol,
    Kind::Tier,
    Kind::Server,
    Kind::Zone,
    Kind::Key,
    Kind::Epoch,
    Kind::Build,
];

/// Numbers of a record that differ in one label, or a single one.
struct Family {
    name: &'static str,
    help: &'static str,
    gauge: bool,
    /// The name of the label, if there is one, and its values.
    label: &'static str,
    values: &'static [&'static str],
}

/// Times of a record: their sum in microseconds, and [`BUCKETS`] buckets.
struct Times {
    name: &'static str,
    help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, help, gauge: false, label: "", values: &[""] }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, help, gauge: true, label: "", values: &[""] }
}

impl Family {
    const fn by(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Family { label, values, ..self }
    }
}

const STATUSES: &[&str] = &[
    Outcome::Hit.as_str(),
    Outcome::Miss.as_str(),
    Outcome::Timeout.as_str(),
    Outcome::Error.as_str(),
    Outcome::Down.as_str(),
    Outcome::Corrupt.as_str(),
    Outcome::Forged.as_str(),
    Outcome::Foreign.as_str(),
    Outcome::Ticket.as_str(),
    Outcome::Skipped.as_str(),
];
/// Of those the ones that a target has: it is asked neither for what is not ours nor for what is in a ticket,
/// and what is skipped asks nobody.
const TIER_STATUSES: &[&str] = STATUSES.split_at(Outcome::Forged as usize).0;

/// The place of an outcome among its words, which are in the order of [`Outcome`].
const fn status(outcome: Outcome) -> usize {
    outcome as usize
}

/// The places of the numbers of [`Kind::Listen`].
pub mod listen {
    /// Full handshakes.
    pub const FULL: usize = 0;
    /// Resumed handshakes.
    pub const RESUMED: usize = 1;
    const FETCHED: usize = 2;
    /// Handshakes that were full although the session was found.
    pub const UNUSABLE: usize = FETCHED.saturating_add(super::STATUSES.len());
    const NEW: usize = UNUSABLE.saturating_add(1);

    /// Handshakes by the outcome of their lookup.
    pub const fn fetched(outcome: super::Outcome) -> usize {
        FETCHED.saturating_add(super::status(outcome))
    }

    /// New sessions by what became of them.
    pub const fn new_sessions(stored: super::Stored) -> usize {
        NEW.saturating_add(stored as usize)
    }
}

/// The places of the numbers of [`Kind::Protocol`].
pub mod protocol {
    /// How long handshakes were suspended.
    pub const SUSPENDED: usize = super::Kind::Protocol.times_at();
}

/// The places of the numbers of [`Kind::Tier`].
pub mod tier {
    const LOOKUPS: usize = 0;
    /// Lookups that take the entry.
    pub const TAKES: usize = 6;
    /// Entries that were handed over, to be stored.
    pub const STORED: usize = 7;
    const DROPPED: usize = 8;
    /// Lookups that have waited for the answer to an earlier one.
    pub const MERGED: usize = 12;
    /// Removals.
    pub const REMOVALS: usize = 13;
    /// Entries of a zone that gave way to newer ones before they had expired.
    pub const EVICTIONS: usize = 14;
    /// Bytes of entries that were found.
    pub const BYTES_FETCHED: usize = 15;
    /// Bytes of entries that were handed over.
    pub const BYTES_STORED: usize = 16;
    /// How long lookups took.
    pub const LOOKED_UP: usize = super::Kind::Tier.times_at();

    /// Lookups by outcome.
    pub const fn lookups(outcome: super::Outcome) -> usize {
        LOOKUPS.saturating_add(super::status(outcome))
    }

    /// Entries that were not handed over for that reason.
    pub const fn dropped(reason: super::DropReason) -> usize {
        DROPPED.saturating_add(reason as usize)
    }
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No server is available.
    Unavailable,
    /// The server has left too many requests without an answer.
    QueueFull,
    /// The zone has no room.
    NoRoom,
    /// The worker has no memory.
    NoMemory,
}

const DROPS: &[&str] = &["unavailable", "queue_full", "no_room", "no_memory"];

/// The places of the numbers of [`Kind::Server`].
pub mod server {
    /// Requests.
    pub const REQUESTS: usize = 0;
    /// Requests that were not made, as the queue was full.
    pub const FULL: usize = 1;
    /// Requests that the server has refused.
    pub const REFUSED: usize = 2;
    /// Requests that were not answered in time.
    pub const LATE: usize = 3;
    /// Requests whose connection was lost.
    pub const LOST: usize = 4;
    /// Requests that the server has sent on, and that were not.
    pub const MISDIRECTED: usize = 5;
    /// Connections that were made.
    pub const CONNECTIONS: usize = 6;
    /// Failures, as the breaker counts them.
    pub const FAILURES: usize = 7;
    /// TLS handshakes with a new session.
    pub const TLS_NEW: usize = 8;
    /// TLS handshakes with a session that was reused.
    pub const TLS_REUSED: usize = 9;
    /// How often it was found to be down.
    pub const DOWN: usize = 10;
    /// How often it was up again.
    pub const UP: usize = 11;
    /// Bytes received.
    pub const RECEIVED: usize = 12;
    /// Bytes sent.
    pub const SENT: usize = 13;
    /// Lookups that it was asked for as well, because another server had not answered.
    pub const HEDGED: usize = 14;
    /// Those of them of which its answer was the first.
    pub const HEDGES_WON: usize = 15;
    /// Lookups that ended here without an entry and were made where the entry belongs.
    pub const REPLICA_MISSES: usize = 16;
    /// Requests without an answer.
    pub const IN_FLIGHT: usize = 17;
    /// Workers that take it for available.
    pub const AVAILABLE: usize = 18;
    /// Workers that take it for down.
    pub const IS_DOWN: usize = 19;
}

/// The places of the numbers of [`Kind::Zone`].
pub mod zone {
    /// Bytes that there are for entries.
    pub const SIZE: usize = 0;
    /// Those of them that no entry has.
    pub const FREE: usize = 1;
    /// Entries, with those that have expired and are still there.
    pub const ENTRIES: usize = 2;
}

/// The places of the numbers of [`Kind::Epoch`].
pub mod epoch {
    /// The epoch, in seconds since 1970; 0 if there is none.
    pub const AT: usize = 0;
    /// 1 if the store has ever answered.
    pub const HEARD: usize = 1;
}

const LISTEN: &[Family] = &[
    counter("handshakes_total", "Completed TLS handshakes.").by("result", &["full", "resumed"]),
    counter(
        "fetches_total",
        "TLS handshakes whose client offered a session, by the outcome of its lookup.",
    )
    .by("status", STATUSES),
    counter(
        "unusable_hits_total",
        "Full TLS handshakes whose session was found and could not be resumed.",
    ),
    counter("new_sessions_total", "New TLS sessions, by whether they were stored.").by(
        "status",
        &[
            Stored::Stored.as_str(),
            Stored::Skipped.as_str(),
            Stored::Dropped.as_str(),
            Stored::Ticket.as_str(),
        ],
    ),
];
const TIER: &[Family] = &[
    counter("tier_lookups_total", "Lookups of sessions in a target.").by("status", TIER_STATUSES),
    counter("tier_takes_total", "Lookups of sessions in a target that remove what they find."),
    counter("tier_stores_total", "Sessions handed to a target to be stored."),
    counter("tier_drops_total", "Sessions not handed to a target, and so not stored there.")
        .by("reason", DROPS),
    counter(
        "tier_merged_lookups_total",
        "Lookups that shared the answer to an earlier lookup of the same session.",
    ),
    counter("tier_removals_total", "Removals of sessions sent to a target."),
    counter(
        "tier_evictions_total",
        "Sessions removed from a zone before they had expired, to make room for newer ones.",
    ),
    counter("tier_bytes_total", "Bytes of sessions fetched from and stored in a target.")
        .by("direction", &["fetched", "stored"]),
];
const SERVER: &[Family] = &[
    counter("server_requests_total", "Requests made to a server."),
    counter("server_queue_full_total", "Requests not made because the queue of a server was full."),
    counter("server_errors_total", "Requests to a server that failed.")
        .by("error", &["refused", "timeout", "lost", "redirect"]),
    counter("server_connections_total", "Connections established to a server."),
    counter(
        "server_failures_total",
        "Failures of a server; max_fails of them within fail_timeout make it count as down.",
    ),
    counter("server_tls_handshakes_total", "TLS handshakes with a server.")
        .by("session", &["new", "reused"]),
    counter(
        "server_transitions_total",
        "Changes of the state of a server for all workers, to down or to up.",
    )
    .by("to", &["down", "up"]),
    counter("server_bytes_total", "Bytes received from and sent to a server.")
        .by("direction", &["received", "sent"]),
    counter(
        "server_hedged_lookups_total",
        "Lookups made at a server as well, because another server had not answered yet.",
    ),
    counter(
        "server_hedges_won_total",
        "Hedged lookups that ended with the answer of this server, the other being slower.",
    ),
    counter(
        "server_replica_misses_total",
        "Lookups that a replica had no session for, or refused, and that its master was asked for.",
    ),
    gauge("server_in_flight", "Requests to a server that have no answer yet."),
    gauge("server_available_workers", "Workers for which a server is available."),
    gauge("server_down_workers", "Workers for which a server counts as down."),
];
const ZONE: &[Family] = &[
    gauge("zone_size_bytes", "Shared memory of a zone that can hold sessions."),
    gauge("zone_free_bytes", "Shared memory of a zone that holds no session."),
    gauge("zone_entries", "Sessions in a zone, including expired ones that are still there."),
];
const KEY: &[Family] = &[gauge(
    "key_info",
    "Keys that sessions are sealed with; the one at position 1 seals new sessions. Always 1.",
)];
const EPOCH: &[Family] = &[
    gauge(
        "epoch_seconds",
        "Time up to which sessions are withdrawn, in seconds since 1970; 0 if there is none.",
    ),
    gauge(
        "epoch_heard",
        "Whether the store has answered what the epoch is; until then no session is resumed.",
    ),
];
const BUILD: &[Family] = &[gauge(
    "build_info",
    "Versions of the module, nginx and OpenSSL. openssl_built is what the module was built for, if that is another. Always 1.",
)];

impl Kind {
    /// What records of this kind are called.
    const fn plural(self) -> &'static str {
        match self {
            Kind::Listen => "listens",
            Kind::Protocol => "protocols",
            Kind::Tier => "tiers",
            Kind::Server => "servers",
            Kind::Zone => "zones",
            Kind::Key => "keys",
            Kind::Epoch => "epochs",
            Kind::Build => "build",
        }
    }

    /// The names of the labels of a record of this kind.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Kind::Listen => &["listen", "protocol"],
            Kind::Protocol => &["protocol"],
            Kind::Tier => &["tier"],
            Kind::Server => &["backend", "server"],
            Kind::Zone => &["tier"],
            Kind::Key => &["block", "key_id", "position"],
            Kind::Epoch => &["block", "name"],
            Kind::Build => &["version", "nginx", "openssl", "openssl_built"],
        }
    }

    /// Whether a record of this kind says all by its labels, so that its number is 1.
    const fn is_info(self) -> bool {
        matches!(self, Kind::Key | Kind::Build)
    }

    const fn families(self) -> &'static [Family] {
        match self {
            Kind::Listen => LISTEN,
            Kind::Protocol => &[],
            Kind::Tier => TIER,
            Kind::Server => SERVER,
            Kind::Zone => ZONE,
            Kind::Key => KEY,
            Kind::Epoch => EPOCH,
            Kind::Build => BUILD,
        }
    }

    const fn times(self) -> Option<Times> {
        match self {
            Kind::Protocol => Some(Times {
                name: "suspension_seconds",
                help: "Time that TLS handshakes were suspended for a lookup.",
            }),
            Kind::Tier => Some(Times {
                name: "tier_lookup_seconds",
                help: "Time that a lookup in a remote target took.",
            }),
            _ => None,
        }
    }

    /// The place of the sum of the times, in microseconds; the buckets follow.
    pub const fn times_at(self) -> usize {
        let (mut at, mut rest): (usize, _) = (0, self.families());
        while let [family, others @ ..] = rest {
            at = at.saturating_add(family.values.len());
            rest = others;
        }
        at
    }

    /// The places of the numbers that may become less.
    pub fn gauges(self) -> impl Iterator<Item = usize> {
        let places = self.families().iter().flat_map(|one| one.values.iter().map(|_| one.gauge));
        places.enumerate().filter_map(|(place, gauge)| gauge.then_some(place))
    }

    /// How many numbers a record of this kind has.
    pub fn width(self) -> usize {
        let times = if self.times().is_some() { BUCKETS.saturating_add(1) } else { 0 };
        self.times_at().saturating_add(times)
    }
}

/// A record as it was at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// Which one: the values of [`Kind::labels`].
    pub labels: Vec<String>,
    /// [`Kind::width`] numbers.
    pub numbers: Vec<u64>,
}

impl Record {
    /// A record of a kind that says all by its labels.
    pub fn info(kind: Kind, labels: Vec<String>) -> Self {
        Record { kind, labels, numbers: Vec::from([1]) }
    }

    fn at(&self, place: usize) -> u64 {
        self.numbers.get(place).copied().unwrap_or_default()
    }

    /// The sum of the times, in microseconds.
    fn sum(&self) -> u64 {
        self.at(self.kind.times_at())
    }

    /// How many times are in each bucket.
    fn buckets(&self) -> &[u64] {
        let first = self.kind.times_at().saturating_add(1);
        self.numbers.get(first..first.saturating_add(BUCKETS)).unwrap_or_default()
    }
}

/// Microseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        write!(f, "{whole}.{rest:06}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    /// A record of zeroes.
    pub(super) fn record(kind: Kind, labels: &[&str]) -> Record {
        let labels = labels.iter().map(ToString::to_string).collect();
        Record { kind, labels, numbers: vec![0; kind.width()] }
    }

    #[test]
    fn places_are_those_of_the_families() {
        assert_eq!(listen::fetched(Outcome::Skipped) + 1, listen::UNUSABLE);
        assert_eq!(listen::new_sessions(Stored::Ticket) + 1, Kind::Listen.width());
        assert_eq!(tier::lookups(Outcome::Corrupt) + 1, tier::TAKES);
        assert_eq!(tier::dropped(DropReason::NoMemory) + 1, tier::MERGED);
        assert_eq!(tier::BYTES_STORED + 1, tier::LOOKED_UP);
        assert_eq!(protocol::SUSPENDED, 0);
        assert_eq!(server::IS_DOWN + 1, Kind::Server.width());
        assert_eq!(zone::ENTRIES + 1, Kind::Zone.width());
        assert_eq!(epoch::HEARD + 1, Kind::Epoch.width());
        for kind in KINDS.into_iter().filter(|kind| kind.is_info()) {
            assert_eq!(kind.width(), Record::info(kind, Vec::new()).numbers.len());
        }
        let gauges: vec::Vec<usize> = Kind::Server.gauges().collect();
        assert_eq!(gauges, [server::IN_FLIGHT, server::AVAILABLE, server::IS_DOWN]);
        assert_eq!(Kind::Tier.gauges().count(), 0);
        for (n, outcome) in [
            Outcome::Hit,
            Outcome::Miss,
            Outcome::Timeout,
            Outcome::Error,
            Outcome::Down,
            Outcome::Corrupt,
            Outcome::Forged,
            Outcome::Foreign,
            Outcome::Ticket,
            Outcome::Skipped,
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(status(outcome), n);
            assert_eq!(STATUSES[n], outcome.as_str());
        }
    }
}
