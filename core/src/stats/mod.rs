//! What the module counts of itself, and how that is shown.
//!
//! A *record* is what is counted of one thing: a listening address, a version of TLS, a target, a
//! server of a backend. It has a kind, labels that say which one it is, and a row of numbers, whose
//! meaning the kind knows. Where records lie, and who adds to them, is not known here.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::ops::Range;

use crate::outcome::Outcome;

pub mod histogram;

use histogram::{BUCKETS, upper_bound};

/// What each name of a metric begins with.
const PREFIX: &str = "nginx_ssl_session_";

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
}

/// All kinds, in the order in which they are shown.
pub const KINDS: [Kind; 4] = [Kind::Listen, Kind::Protocol, Kind::Tier, Kind::Server];

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
    Outcome::Forged.as_str(),
    Outcome::Corrupt.as_str(),
];

/// The place of an outcome among its words, which are in the order of [`Outcome`].
pub const fn status(outcome: Outcome) -> usize {
    outcome as usize
}

/// The places of the numbers of [`Kind::Listen`].
pub mod listen {
    /// Full handshakes.
    pub const FULL: usize = 0;
    /// Resumed handshakes.
    pub const RESUMED: usize = 1;
    /// Handshakes by the outcome of their lookup, see [`super::status`].
    pub const FETCHED: usize = 2;
}

/// The places of the numbers of [`Kind::Protocol`].
pub mod protocol {
    /// How long handshakes were suspended.
    pub const SUSPENDED: usize = super::Kind::Protocol.times_at();
}

/// The places of the numbers of [`Kind::Tier`].
pub mod tier {
    /// Lookups by outcome, see [`super::status`].
    pub const LOOKUPS: usize = 0;
    /// Lookups that take the entry.
    pub const TAKES: usize = 7;
    /// Entries that were handed over, to be stored.
    pub const STORED: usize = 8;
    /// Entries that were not, as the tier has no room, or is not available.
    pub const DROPPED: usize = 9;
    /// Removals.
    pub const REMOVALS: usize = 10;
    /// Bytes of entries that were found.
    pub const BYTES_FETCHED: usize = 11;
    /// Bytes of entries that were handed over.
    pub const BYTES_STORED: usize = 12;
    /// How long lookups took.
    pub const LOOKED_UP: usize = super::Kind::Tier.times_at();
}

/// The places of the numbers of [`Kind::Server`].
pub mod server {
    /// Requests.
    pub const REQUESTS: usize = 0;
    /// Requests that were not made, as the queue was full.
    pub const FULL: usize = 1;
    /// Connections that were made.
    pub const CONNECTIONS: usize = 2;
    /// TLS handshakes with a new session.
    pub const TLS_NEW: usize = 3;
    /// TLS handshakes with a session that was reused.
    pub const TLS_REUSED: usize = 4;
    /// How often it was found to be down.
    pub const DOWN: usize = 5;
    /// How often it was up again.
    pub const UP: usize = 6;
    /// Bytes received.
    pub const RECEIVED: usize = 7;
    /// Bytes sent.
    pub const SENT: usize = 8;
    /// Requests without an answer.
    pub const IN_FLIGHT: usize = 9;
    /// Workers that take it for available.
    pub const AVAILABLE: usize = 10;
}

const LISTEN: &[Family] = &[
    counter("handshakes_total", "TLS handshakes that have come to their end.")
        .by("result", &["full", "resumed"]),
    counter("fetches_total", "Handshakes that offered a session, by what its lookup came to.")
        .by("status", STATUSES),
];
const TIER: &[Family] = &[
    counter("tier_lookups_total", "Lookups in a target.").by("status", STATUSES),
    counter("tier_takes_total", "Lookups that remove what they find."),
    counter("tier_stores_total", "Sessions for a target.").by("result", &["stored", "dropped"]),
    counter("tier_removals_total", "Sessions that were removed from a target."),
    counter("tier_bytes_total", "Bytes of the sessions that were moved.")
        .by("direction", &["fetched", "stored"]),
];
const SERVER: &[Family] = &[
    counter("server_requests_total", "Requests to a server."),
    counter("server_queue_full_total", "Requests that were not made, as too many had no answer."),
    counter("server_connections_total", "Connections to a server."),
    counter("server_tls_handshakes_total", "TLS handshakes with a server.")
        .by("session", &["new", "reused"]),
    counter("server_transitions_total", "How often a server was found to be down, and up again.")
        .by("to", &["down", "up"]),
    counter("server_bytes_total", "Bytes on the connections to a server.")
        .by("direction", &["received", "sent"]),
    gauge("server_in_flight", "Requests to a server that have no answer."),
    gauge("server_available_workers", "Workers that take a server for available."),
];

impl Kind {
    /// The names of the labels of a record of this kind.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Kind::Listen => &["listen", "protocol"],
            Kind::Protocol => &["protocol"],
            Kind::Tier => &["tier"],
            Kind::Server => &["backend", "server"],
        }
    }

    const fn families(self) -> &'static [Family] {
        match self {
            Kind::Listen => LISTEN,
            Kind::Protocol => &[],
            Kind::Tier => TIER,
            Kind::Server => SERVER,
        }
    }

    const fn times(self) -> Option<Times> {
        match self {
            Kind::Protocol => Some(Times {
                name: "suspension_seconds",
                help: "How long handshakes waited for a session.",
            }),
            Kind::Tier => Some(Times {
                name: "tier_lookup_seconds",
                help: "How long a target took for a lookup.",
            }),
            Kind::Listen | Kind::Server => None,
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
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// Which one: the values of [`Kind::labels`].
    pub labels: Vec<String>,
    /// [`Kind::width`] numbers.
    pub numbers: Vec<u64>,
}

impl Record {
    fn at(&self, place: usize) -> u64 {
        self.numbers.get(place).copied().unwrap_or_default()
    }

    fn places(&self, places: Range<usize>) -> &[u64] {
        self.numbers.get(places).unwrap_or_default()
    }
}

/// Writes records in the text format of Prometheus, version 0.0.4.
pub fn prometheus(records: &[Record], out: &mut impl Write) -> fmt::Result {
    for kind in KINDS {
        let of_kind = || records.iter().filter(move |record| record.kind == kind);
        if of_kind().next().is_none() {
            continue;
        }
        let mut place: usize = 0;
        for family in kind.families() {
            head(out, family.name, family.help, if family.gauge { "gauge" } else { "counter" })?;
            for record in of_kind() {
                for (n, value) in family.values.iter().enumerate() {
                    write!(out, "{PREFIX}{}{{{}", family.name, Labels(record))?;
                    if !family.label.is_empty() {
                        write!(out, ",{}=\"{value}\"", family.label)?;
                    }
                    writeln!(out, "}} {}", record.at(place.saturating_add(n)))?;
                }
            }
            place = place.saturating_add(family.values.len());
        }
        if let Some(Times { name, help }) = kind.times() {
            head(out, name, help, "histogram")?;
            for record in of_kind() {
                times(record, name, out)?;
            }
        }
    }
    Ok(())
}

fn head(out: &mut impl Write, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}")
}

fn times(record: &Record, name: &str, out: &mut impl Write) -> fmt::Result {
    let at = record.kind.times_at();
    let first = at.saturating_add(1);
    let mut below: u64 = 0;
    for (bucket, n) in record.places(first..first.saturating_add(BUCKETS)).iter().enumerate() {
        below = below.saturating_add(*n);
        write!(out, "{PREFIX}{name}_bucket{{{},le=\"", Labels(record))?;
        match upper_bound(bucket) {
            Some(us) => write!(out, "{}", Seconds(us))?,
            None => out.write_str("+Inf")?,
        }
        writeln!(out, "\"}} {below}")?;
    }
    writeln!(out, "{PREFIX}{name}_sum{{{}}} {}", Labels(record), Seconds(record.at(at)))?;
    writeln!(out, "{PREFIX}{name}_count{{{}}} {below}", Labels(record))
}

/// Microseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        write!(f, "{whole}.{rest:06}")
    }
}

/// The labels of a record, as Prometheus has them.
struct Labels<'a>(&'a Record);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, value)) in self.0.kind.labels().iter().zip(&self.0.labels).enumerate() {
            if n > 0 {
                f.write_char(',')?;
            }
            write!(f, "{name}=\"")?;
            for c in value.chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    c => f.write_char(c)?,
                }
            }
            f.write_char('"')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    fn record(kind: Kind, labels: &[&str]) -> Record {
        let labels = labels.iter().map(ToString::to_string).collect();
        Record { kind, labels, numbers: vec![0; kind.width()] }
    }

    fn text(records: &[Record]) -> String {
        let mut text = String::new();
        prometheus(records, &mut text).unwrap();
        text
    }

    #[test]
    fn places_are_those_of_the_families() {
        assert_eq!(listen::FETCHED + STATUSES.len(), Kind::Listen.width());
        assert_eq!(tier::BYTES_STORED + 1, tier::LOOKED_UP);
        assert_eq!(protocol::SUSPENDED, 0);
        assert_eq!(server::AVAILABLE + 1, Kind::Server.width());
        let gauges: vec::Vec<usize> = Kind::Server.gauges().collect();
        assert_eq!(gauges, [server::IN_FLIGHT, server::AVAILABLE]);
        assert_eq!(Kind::Tier.gauges().count(), 0);
        for (n, outcome) in [
            Outcome::Hit,
            Outcome::Miss,
            Outcome::Timeout,
            Outcome::Error,
            Outcome::Down,
            Outcome::Forged,
            Outcome::Corrupt,
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(status(outcome), n);
            assert_eq!(STATUSES[n], outcome.as_str());
        }
    }

    #[test]
    fn numbers_stand_with_their_labels() {
        let mut one = record(Kind::Listen, &["0.0.0.0:443", "TLSv1.3"]);
        one.numbers[listen::RESUMED] = 7;
        one.numbers[listen::FETCHED + status(Outcome::Timeout)] = 3;
        let text = text(&[one]);
        for line in [
            "# TYPE nginx_ssl_session_handshakes_total counter",
            "nginx_ssl_session_handshakes_total{listen=\"0.0.0.0:443\",protocol=\"TLSv1.3\",result=\"full\"} 0",
            "nginx_ssl_session_handshakes_total{listen=\"0.0.0.0:443\",protocol=\"TLSv1.3\",result=\"resumed\"} 7",
            "nginx_ssl_session_fetches_total{listen=\"0.0.0.0:443\",protocol=\"TLSv1.3\",status=\"TIMEOUT\"} 3",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn times_are_a_histogram_that_adds_up() {
        let mut one = record(Kind::Tier, &["shared:tls"]);
        let at = Kind::Tier.times_at();
        for us in [5, 40, 40, 3_000_000, 60_000_000] {
            one.numbers[at] += us;
            one.numbers[at + 1 + histogram::bucket(us)] += 1;
        }
        let text = text(&[one]);
        for line in [
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"0.000008\"} 1",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"0.000040\"} 3",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"8.388608\"} 4",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"+Inf\"} 5",
            "nginx_ssl_session_tier_lookup_seconds_sum{tier=\"shared:tls\"} 63.000085",
            "nginx_ssl_session_tier_lookup_seconds_count{tier=\"shared:tls\"} 5",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_metric_has_one_head_and_labels_are_escaped() {
        let odd = record(Kind::Server, &["a\"b\\c\nd", "redis 10.0.0.7:6379"]);
        let text = text(&[odd, record(Kind::Server, &["store", "redis 10.0.0.8:6379"])]);
        assert!(text.contains("backend=\"a\\\"b\\\\c\\nd\",server=\"redis 10.0.0.7:6379\""));
        let heads: vec::Vec<&str> =
            text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(heads.len(), SERVER.len());
        assert!(!text.contains("handshakes_total{listen"));
    }
}
