//! The text format of Prometheus.

use core::fmt::{self, Write};

use super::histogram::Shown;
use super::{KINDS, Record, Seconds, Times};

/// What each name of a metric begins with.
const PREFIX: &str = "nginx_ssl_session_";

/// Writes records in the text format of Prometheus, version 0.0.4.
pub fn write(records: &[Record], shown: Shown, out: &mut impl Write) -> fmt::Result {
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
                histogram(record, name, shown, out)?;
            }
        }
    }
    Ok(())
}

fn head(out: &mut impl Write, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}")
}

fn histogram(record: &Record, name: &str, shown: Shown, out: &mut impl Write) -> fmt::Result {
    let mut all: u64 = 0;
    for (bound, below) in shown.of(record.buckets()) {
        write!(out, "{PREFIX}{name}_bucket{{{},le=\"", Labels(record))?;
        match bound {
            Some(us) => write!(out, "{}", Seconds(us))?,
            None => out.write_str("+Inf")?,
        }
        writeln!(out, "\"}} {below}")?;
        all = below;
    }
    writeln!(out, "{PREFIX}{name}_sum{{{}}} {}", Labels(record), Seconds(record.sum()))?;
    writeln!(out, "{PREFIX}{name}_count{{{}}} {all}", Labels(record))
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
    use super::super::tests::record;
    use super::super::{Kind, SERVER, histogram, listen};
    use super::*;
    use crate::outcome::Outcome;
    use std::string::String;
    use std::vec;

    fn text(records: &[Record]) -> String {
        let mut text = String::new();
        write(records, Shown::Some, &mut text).unwrap();
        text
    }

    #[test]
    fn numbers_stand_with_their_labels() {
        let mut one = record(Kind::Listen, &["0.0.0.0:443", "TLSv1.3"]);
        one.numbers[listen::RESUMED] = 7;
        one.numbers[listen::fetched(Outcome::Timeout)] = 3;
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
        let text = text(&[one.clone()]);
        for line in [
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"0.000064\"} 3",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"1.048576\"} 3",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"+Inf\"} 5",
            "nginx_ssl_session_tier_lookup_seconds_sum{tier=\"shared:tls\"} 63.000085",
            "nginx_ssl_session_tier_lookup_seconds_count{tier=\"shared:tls\"} 5",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        let mut all = String::new();
        write(&[one], Shown::All, &mut all).unwrap();
        assert!(all.lines().filter(|line| line.contains("_bucket{")).count() == histogram::BUCKETS);
        for line in text.lines() {
            assert!(all.lines().any(|one| one == line), "{line}\n{all}");
        }
        for line in [
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"0.000008\"} 1",
            "nginx_ssl_session_tier_lookup_seconds_bucket{tier=\"shared:tls\",le=\"8.388608\"} 4",
        ] {
            assert!(all.lines().any(|one| one == line), "{line}\n{all}");
        }
    }

    #[test]
    fn what_is_said_by_labels_is_1() {
        let labels = ["1.2.3", "1.22.1", "3.0.19", ""].into_iter().map(String::from).collect();
        let text = text(&[Record::info(Kind::Build, labels)]);
        let line = "nginx_ssl_session_build_info\
            {version=\"1.2.3\",nginx=\"1.22.1\",openssl=\"3.0.19\",openssl_built=\"\"} 1";
        assert!(text.lines().any(|one| one == line), "{text}");
        assert!(text.contains("# TYPE nginx_ssl_session_build_info gauge"));
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
