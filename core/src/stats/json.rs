//! JSON (RFC 8259), for programs other than Prometheus.
//!
//! An object with a list for each [`Kind`], but for [`Kind::Build`], of which there is one; each record is an
//! object of its labels and its numbers, which have the names of the metrics without what all of a kind have
//! in common. Where the labels say all there is no number.

use core::fmt::{self, Write};
use core::time::Duration;

use super::histogram::{quantile, upper_bound};
use super::{Family, KINDS, Kind, Record, Seconds};

/// What changes with the meaning of what is there, and not when something is added.
const VERSION: u32 = 2;

/// Shares of a histogram that are told, in thousandths.
const QUANTILES: [(&str, u64); 3] = [("p50", 500), ("p90", 900), ("p99", 990)];

/// Writes records as they were at a time since 1970.
pub fn write(records: &[Record], at: Duration, out: &mut impl Write) -> fmt::Result {
    write!(out, "{{\"version\":{VERSION},\"time\":{}.{:03}", at.as_secs(), at.subsec_millis())?;
    for kind in KINDS {
        write!(out, ",\"{}\":", kind.plural())?;
        let mut of_kind = records.iter().filter(|one| one.kind == kind);
        if kind == Kind::Build {
            match of_kind.next() {
                Some(one) => record(one, out)?,
                None => out.write_str("null")?,
            }
            continue;
        }
        out.write_char('[')?;
        let mut comma = "";
        for one in of_kind {
            out.write_str(comma)?;
            record(one, out)?;
            comma = ",";
        }
        out.write_char(']')?;
    }
    out.write_str("}\n")
}

fn record(record: &Record, out: &mut impl Write) -> fmt::Result {
    let mut before = '{';
    for (name, value) in record.kind.labels().iter().zip(&record.labels) {
        write!(out, "{before}\"{name}\":{}", Text(value))?;
        before = ',';
    }
    let mut place: usize = 0;
    let families = if record.kind.is_info() { &[] } else { record.kind.families() };
    for family in families {
        write!(out, ",\"{}\":", key(record.kind, family.name))?;
        numbers(record, place, family, out)?;
        place = place.saturating_add(family.values.len());
    }
    if let Some(times) = record.kind.times() {
        write!(out, ",\"{}\":", key(record.kind, times.name))?;
        histogram(record, out)?;
    }
    out.write_char('}')
}

/// A number, or an object with one for each value of the label.
fn numbers(record: &Record, place: usize, family: &Family, out: &mut impl Write) -> fmt::Result {
    if family.label.is_empty() {
        return write!(out, "{}", record.at(place));
    }
    let mut before = '{';
    for (n, value) in family.values.iter().enumerate() {
        write!(out, "{before}\"{value}\":{}", record.at(place.saturating_add(n)))?;
        before = ',';
    }
    out.write_char('}')
}

/// Count, sum, quantiles, and the buckets that are not empty: upper bound and count.
fn histogram(record: &Record, out: &mut impl Write) -> fmt::Result {
    let buckets = record.buckets();
    let count = buckets.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    write!(out, "{{\"count\":{count},\"sum\":{}", Seconds(record.sum()))?;
    for (name, per_mille) in QUANTILES {
        write!(out, ",\"{name}\":{}", Bound(quantile(buckets, per_mille)))?;
    }
    out.write_str(",\"buckets\":[")?;
    let mut comma = "";
    for (bucket, n) in buckets.iter().enumerate().filter(|(_, n)| **n > 0) {
        write!(out, "{comma}[{},{n}]", Bound(upper_bound(bucket)))?;
        comma = ",";
    }
    out.write_str("]}")
}

/// The name of a family without what is said by where it stands.
fn key(kind: Kind, name: &str) -> &str {
    let of_kind = match kind {
        Kind::Tier => "tier_",
        Kind::Server => "server_",
        Kind::Zone => "zone_",
        Kind::Epoch => "epoch_",
        Kind::Listen | Kind::Protocol | Kind::Key | Kind::Build => "",
    };
    let name = name.strip_prefix(of_kind).unwrap_or(name);
    name.strip_suffix("_total").unwrap_or(name)
}

/// Microseconds as seconds; `null` beyond the greatest bound, and where there is none.
struct Bound(Option<u64>);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(us) => Seconds(us).fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// A string.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::super::{histogram, listen, server, tier};
    use super::*;
    use crate::outcome::Outcome;
    use std::string::String;

    fn text(records: &[Record]) -> String {
        let mut text = String::new();
        write(records, Duration::from_millis(1_764_000_000_250), &mut text).unwrap();
        text
    }

    #[test]
    fn without_records_the_lists_are_empty() {
        assert_eq!(
            text(&[]),
            "{\"version\":2,\"time\":1764000000.250,\
             \"listens\":[],\"protocols\":[],\"tiers\":[],\"servers\":[],\
             \"zones\":[],\"keys\":[],\"epochs\":[],\"build\":null}\n"
        );
    }

    #[test]
    fn records_are_objects_of_labels_and_numbers() {
        let mut one = record(Kind::Listen, &["0.0.0.0:443", "TLSv1.3"]);
        one.numbers[listen::RESUMED] = 7;
        one.numbers[listen::fetched(Outcome::Hit)] = 6;
        let mut other = record(Kind::Server, &["a\"b\\c\nd", "redis 10.0.0.7:6379"]);
        other.numbers[server::AVAILABLE] = 2;
        let text = text(&[other, one]);
        for part in [
            "{\"listen\":\"0.0.0.0:443\",\"protocol\":\"TLSv1.3\",\
             \"handshakes\":{\"full\":0,\"resumed\":7},\"fetches\":{\"HIT\":6,\"MISS\":0,",
            "{\"backend\":\"a\\\"b\\\\c\\u000ad\",\"server\":\"redis 10.0.0.7:6379\",\"requests\":0,",
            "\"available_workers\":2,",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn where_labels_say_all_there_is_no_number() {
        let key = ["http", "57", "1"].into_iter().map(String::from).collect();
        let build = ["1.2.3", "1.22.1", "3.0.19", ""].into_iter().map(String::from).collect();
        let (key, build) = (Record::info(Kind::Key, key), Record::info(Kind::Build, build));
        let text = text(&[build, key, record(Kind::Epoch, &["http", "e"])]);
        assert!(text.contains(
            "\"keys\":[{\"block\":\"http\",\"key_id\":\"57\",\"position\":\"1\"}],\
             \"epochs\":[{\"block\":\"http\",\"name\":\"e\",\"seconds\":0,\"heard\":0}],\
             \"build\":{\"version\":\"1.2.3\",\"nginx\":\"1.22.1\",\"openssl\":\"3.0.19\",\
             \"openssl_built\":\"\"}}"
        ));
    }

    #[test]
    fn histograms_have_quantiles_and_the_buckets_that_are_not_empty() {
        let mut one = record(Kind::Tier, &["store"]);
        let nothing = text(&[one.clone()]);
        assert!(nothing.contains(
            "\"lookup_seconds\":{\"count\":0,\"sum\":0.000000,\
             \"p50\":null,\"p90\":null,\"p99\":null,\"buckets\":[]}"
        ));
        for us in [40, 40, 40, 900, 60_000_000] {
            one.numbers[tier::LOOKED_UP] += us;
            one.numbers[tier::LOOKED_UP + 1 + histogram::bucket(us)] += 1;
        }
        let some = text(&[one]);
        assert!(
            some.contains(
                "\"lookup_seconds\":{\"count\":5,\"sum\":60.001020,\
             \"p50\":0.000040,\"p90\":null,\"p99\":null,\
             \"buckets\":[[0.000040,3],[0.001024,1],[null,1]]}"
            ),
            "{some}"
        );
    }
}
