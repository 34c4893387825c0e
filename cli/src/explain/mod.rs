//! `explain`: what an access log says of resumption.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::time;
use crate::tls::plain;
use cause::{Cause, cause};
use format::Format;

mod cause;
mod format;

/// The format of docs/troubleshooting.md.
const FORMAT: &str = "$remote_addr [$time_local] $ssl_protocol reused=$ssl_session_reused \
    fetch=$ssl_session_fetch_status tier=$ssl_session_fetch_tier \
    time=$ssl_session_fetch_time store=$ssl_session_store_status request=$connection_requests";
/// Where causes are described.
const PAGE: &str = "docs/troubleshooting.md";
/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 64 * 1024;
/// The longest outcome or protocol, in bytes.
const MAX_WORD: usize = 16;
/// How many different ones there may be; hours of a year are fewer.
const MAX_KINDS: usize = 10_000;
/// How many hours people are shown.
const HOURS: usize = 24;
/// How many lines there are between two words about how far it is.
const STEP: usize = 100_000;

/// What an access log says: who is resumed, who is not, and the most likely cause
#[derive(clap::Args)]
#[command(
    after_help = "Without --format lines are those of the log_format in docs/troubleshooting.md."
)]
pub struct Args {
    /// Access log; - is standard input
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// The log_format by which it was written, as nginx.conf has it: with $ssl_session_reused, and
    /// best with $ssl_session_fetch_status, $ssl_session_fetch_tier, $ssl_session_store_status,
    /// $ssl_session_fetch_time, $ssl_protocol, $time_local, $connection_requests
    #[arg(long, value_name = "TEXT")]
    format: Option<String>,
}

/// What a line says of its handshake.
#[derive(Default)]
struct Line<'a> {
    reused: &'a str,
    fetch: &'a str,
    /// The target that had the session.
    tier: Option<&'a str>,
    store: Option<&'a str>,
    protocol: Option<&'a str>,
    requests: Option<&'a str>,
    time: Option<f64>,
    hour: Option<String>,
}

/// An outcome of handshakes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Outcome {
    resumed: bool,
    /// How the lookup ended.
    fetch: String,
    /// What became of the new session.
    store: Option<String>,
    /// Of a `MISS`: whether a target had the session all the same.
    withheld: Option<bool>,
}

impl Outcome {
    fn cause(&self) -> &'static Cause {
        cause(self.resumed, &self.fetch, self.store.as_deref(), self.withheld)
    }
}

/// Handshakes, and those of them that were resumed.
#[derive(Clone, Copy, Default)]
struct Count {
    all: u64,
    resumed: u64,
}

impl Count {
    fn add(&mut self, resumed: bool) {
        self.all = self.all.saturating_add(1);
        self.resumed = self.resumed.saturating_add(u64::from(resumed));
    }

    fn json(&self, name: &str, of: &str) -> Value {
        json!({ name: of, "handshakes": self.all, "resumed": self.resumed })
    }
}

/// What was counted.
#[derive(Default)]
struct Counts {
    lines: usize,
    unreadable: usize,
    later: usize,
    plain: usize,
    all: Count,
    outcomes: BTreeMap<Outcome, (u64, Times)>,
    protocols: BTreeMap<String, Count>,
    hours: BTreeMap<String, Count>,
}

/// Times, each to two digits: as many as there may be take little room.
#[derive(Default)]
struct Times {
    microseconds: BTreeMap<u64, u64>,
    count: u64,
}

impl Times {
    fn add(&mut self, seconds: f64) {
        let microseconds = (seconds * 1e6).clamp(0.0, 1e12) as u64;
        let digits = microseconds.checked_ilog10().unwrap_or_default().saturating_sub(1);
        let unit = 10u64.saturating_pow(digits);
        let rounded =
            microseconds.saturating_sub(microseconds.checked_rem(unit).unwrap_or_default());
        let count = self.microseconds.entry(rounded).or_default();
        *count = count.saturating_add(1);
        self.count = self.count.saturating_add(1);
    }

    /// The time in seconds that so much of them, in hundredths, are not longer than.
    fn quantile(&self, hundredths: u64) -> Option<f64> {
        let mut left = self.count.saturating_mul(hundredths) / 100;
        for (microseconds, count) in &self.microseconds {
            if *count > left {
                return Some(*microseconds as f64 / 1e6);
            }
            left = left.saturating_sub(*count);
        }
        self.microseconds.keys().next_back().map(|microseconds| *microseconds as f64 / 1e6)
    }
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    let format = args.format.as_deref().unwrap_or(FORMAT);
    let format = Format::parse(format).map_err(|why| Fault::usage(format!("--format: {why}")))?;
    if !format.has("ssl_session_reused") {
        return Err(Fault::usage(
            "--format: $ssl_session_reused is not in it: add it to the log_format",
        ));
    }
    let mut counts = Counts::default();
    for file in &args.file {
        let fault =
            |error: io::Error| Fault::unknown(format!("{}: {}", file.display(), plain(&error)));
        if file == Path::new("-") {
            counts.read(&format, &mut io::stdin().lock(), out).map_err(fault)?;
        } else {
            let opened = File::open(file).map_err(fault)?;
            counts.read(&format, &mut BufReader::new(opened), out).map_err(fault)?;
        }
    }
    out.progressed();
    if counts.unreadable.saturating_mul(2) > counts.lines {
        return Err(Fault::unknown(format!(
            "{} of {} lines are not of that format: give --format the text of their log_format",
            counts.unreadable, counts.lines
        )));
    }
    if counts.all.all == 0 {
        return Err(Fault::unknown(
            "no handshake is in there: name a log of a server that speaks TLS",
        ));
    }
    if args.format.is_some() && !format.has("connection_requests") {
        out.note(
            "requests are counted, not handshakes: add $connection_requests to the log_format",
        );
    }
    Ok(counts.print(out))
}

impl Counts {
    fn read(&mut self, format: &Format, input: &mut impl BufRead, out: &Out) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if input.take(MAX_LINE).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                continue;
            }
            self.lines = self.lines.saturating_add(1);
            if self.lines % STEP == 0 {
                out.progress(format!("{} lines", self.lines));
            }
            self.count(format, line);
        }
    }

    fn count(&mut self, format: &Format, line: &str) {
        let mut said = Line::default();
        let readable = format.read(line, |name, value| {
            let value = if value == "-" { "" } else { value };
            match name {
                "ssl_session_reused" => said.reused = value,
                "ssl_session_fetch_status" => said.fetch = value,
                "ssl_session_fetch_tier" => said.tier = Some(value),
                "ssl_session_store_status" => said.store = Some(value),
                "ssl_session_fetch_time" => said.time = value.parse().ok(),
                "ssl_protocol" => said.protocol = Some(value),
                "connection_requests" => said.requests = Some(value),
                "time_local" | "time_iso8601" | "msec" => said.hour = hour(name, value),
                _ => {}
            }
        });
        let words = [Some(said.fetch), said.store, said.protocol];
        let readable = readable && words.iter().flatten().all(|word| is_word(word));
        if !readable || !matches!(said.reused, "r" | "." | "") {
            self.unreadable = self.unreadable.saturating_add(1);
        } else if said.reused.is_empty() {
            self.plain = self.plain.saturating_add(1);
        } else if said.requests.is_some_and(|requests| requests != "1") {
            // Of a connection that is there: its handshake was counted.
            self.later = self.later.saturating_add(1);
        } else {
            self.add(said);
        }
    }

    fn add(&mut self, said: Line<'_>) {
        let resumed = said.reused == "r";
        let outcome = Outcome {
            resumed,
            fetch: said.fetch.to_string(),
            store: said.store.map(Into::into),
            withheld: said.tier.filter(|_| said.fetch == "MISS").map(|tier| !tier.is_empty()),
        };
        let Some((count, times)) = entry(&mut self.outcomes, outcome) else {
            self.unreadable = self.unreadable.saturating_add(1);
            return;
        };
        *count = count.saturating_add(1);
        said.time.into_iter().for_each(|time| times.add(time));
        self.all.add(resumed);
        let protocol = said.protocol.and_then(|name| entry(&mut self.protocols, name.into()));
        protocol.into_iter().for_each(|count| count.add(resumed));
        let hour = said.hour.and_then(|hour| entry(&mut self.hours, hour));
        hour.into_iter().for_each(|count| count.add(resumed));
    }

    /// The outcomes, most frequent first, each with its share, its cause, and whether that is one
    /// too many.
    fn outcomes(&self) -> Vec<(&Outcome, u64, &Times, f64, &'static Cause, bool)> {
        let mut rows: Vec<_> = self
            .outcomes
            .iter()
            .map(|(outcome, (count, times))| {
                let cause = outcome.cause();
                let share = percent(*count, self.all.all);
                (
                    outcome,
                    *count,
                    times,
                    share,
                    cause,
                    cause.limit.is_some_and(|limit| share >= limit),
                )
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.1));
        rows
    }

    fn print(&self, out: &mut Out) -> Done {
        let outcomes = self.outcomes();
        let done =
            if outcomes.iter().any(|(.., wrong)| *wrong) { Done::Finding } else { Done::Well };
        if out.is_json() {
            out.value(&self.json(&outcomes, done));
            return done;
        }
        let Count { all, resumed } = self.all;
        out.line(format!("{all} handshakes, {:.1} % resumed", percent(resumed, all)));
        out.line("");
        let titles = ["share", "count", "reused", "fetch", "store", "median", "p99", "most likely"];
        let mut rows = vec![titles.map(Cell::head).to_vec()];
        for (outcome, count, times, share, cause, wrong) in &outcomes {
            let Outcome { resumed, fetch, store, .. } = outcome;
            let dash = |text: &str| Cell::from(if text.is_empty() { "-" } else { text });
            let look = match (*wrong, *resumed) {
                (true, _) => Look::Bad,
                (_, true) => Look::Good,
                _ => Look::Plain,
            };
            rows.push(vec![
                Cell::new(format!("{share:.1} %"), look),
                Cell::from(count),
                Cell::from(if *resumed { "r" } else { "." }),
                dash(fetch),
                dash(store.as_deref().unwrap_or_default()),
                dash(&length(times.quantile(50))),
                dash(&length(times.quantile(99))),
                Cell::new(cause.words, look),
            ]);
        }
        out.table(&rows);
        for (name, counts) in [("protocol", &self.protocols), ("hour", &self.hours)] {
            if !counts.is_empty() {
                out.line("");
                table(name, counts, out);
            }
        }
        let mut told = Vec::new();
        for (.., cause, wrong) in &outcomes {
            if let (Some(section), false) = (cause.section, told.contains(&cause.words)) {
                if told.is_empty() {
                    out.line("");
                }
                told.push(cause.words);
                let look = if *wrong { Look::Bad } else { Look::Plain };
                out.lined(format!("{}: {PAGE}#{section}", cause.words), look);
            }
        }
        let left = [
            (self.later, "were further requests of a connection"),
            (self.plain, "were without TLS"),
            (self.unreadable, "are not of that format"),
        ];
        let left = left.iter().filter(|(count, _)| *count > 0);
        let left: Vec<_> = left.map(|(count, what)| format!("{count} {what}")).collect();
        if !left.is_empty() {
            out.line("");
            out.lined(
                format!("not counted: of {} lines {}", self.lines, left.join(", ")),
                Look::Dim,
            );
        }
        done
    }

    fn json(
        &self,
        outcomes: &[(&Outcome, u64, &Times, f64, &'static Cause, bool)],
        done: Done,
    ) -> Value {
        let outcomes = outcomes.iter().map(|(outcome, count, times, share, cause, wrong)| {
            let Outcome { resumed, fetch, store, withheld } = outcome;
            json!({
                "reused": resumed, "fetch": fetch, "withheld": withheld, "store": store, "count": count,
                "percent": (share * 100.0).round() / 100.0, "p50": times.quantile(50),
                "p99": times.quantile(99), "cause": cause.words, "finding": wrong,
                "section": cause.section.map(|section| format!("{PAGE}#{section}")),
            })
        });
        let list = |name: &str, counts: &BTreeMap<String, Count>| -> Vec<_> {
            counts.iter().map(|(of, count)| count.json(name, of)).collect()
        };
        json!({
            "ok": done == Done::Well, "handshakes": self.all.all, "resumed": self.all.resumed,
            "outcomes": outcomes.collect::<Vec<_>>(), "protocols": list("protocol", &self.protocols),
            "hours": list("hour", &self.hours), "lines": self.lines, "unreadable": self.unreadable,
            "further_requests": self.later, "without_tls": self.plain,
        })
    }
}

/// Whether it may be an outcome or a protocol: what clients send can look like a line of the log.
fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    text.len() <= MAX_WORD && text.bytes().all(plain)
}

/// The entry of a map that does not grow beyond all bounds.
fn entry<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K) -> Option<&mut V> {
    let is_full = map.len() >= MAX_KINDS && !map.contains_key(&key);
    (!is_full).then(|| map.entry(key).or_default())
}

fn table(name: &str, counts: &BTreeMap<String, Count>, out: &mut Out) {
    let mut rows = vec![[name, "handshakes", "resumed"].map(Cell::head).to_vec()];
    let hidden = counts.len().saturating_sub(HOURS);
    rows.extend(counts.iter().skip(hidden).map(|(of, count)| {
        let share = format!("{:.1} %", percent(count.resumed, count.all));
        vec![Cell::from(of), Cell::from(count.all), Cell::from(share)]
    }));
    out.table(&rows);
    if hidden > 0 {
        out.lined(format!("and {hidden} earlier: --json has all"), Look::Dim);
    }
}

fn percent(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 * 100.0 / of as f64 }
}

/// A time of a lookup, for people; nothing for none.
fn length(seconds: Option<f64>) -> String {
    match seconds {
        None => String::new(),
        Some(seconds) if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2} s"),
    }
}

/// The hour of a time, as one of nginx's variables has it: `2026-11-26 10h`.
fn hour(name: &str, value: &str) -> Option<String> {
    let hour = hour_as_it_is(name, value)?;
    let mask = "0000-00-00 00h";
    let alike = hour.bytes().zip(mask.bytes()).all(|(byte, mask)| match mask {
        b'0' => byte.is_ascii_digit(),
        _ => byte == mask,
    });
    Some(hour).filter(|hour| alike && hour.len() == mask.len())
}

fn hour_as_it_is(name: &str, value: &str) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    match name {
        // 26/Nov/2026:10:14:03 +0000
        "time_local" => {
            let (day, rest) = value.split_once('/')?;
            let (month, rest) = rest.split_once('/')?;
            let (year, rest) = rest.split_once(':')?;
            let hour = rest.get(..2)?;
            let month = (1..).zip(MONTHS).find(|(_, name)| *name == month)?.0;
            Some(format!("{year}-{month:02}-{day} {hour}h"))
        }
        "time_iso8601" => Some(format!("{} {}h", value.get(..10)?, value.get(11..13)?)),
        _ => {
            let seconds = value.split('.').next()?.parse().ok()?;
            hour_as_it_is("time_iso8601", &time::utc(seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_that_of_the_page() {
        let page = include_str!("../../../docs/troubleshooting.md");
        let (_, rest) = page.split_once("log_format  resumption").unwrap();
        let (text, _) = rest.split_once(';').unwrap();
        let format = Format::parse(&format!("log_format resumption {text};")).unwrap();
        assert_eq!(format!("{format:?}"), format!("{:?}", Format::parse(FORMAT).unwrap()));
    }

    #[test]
    fn hours_are_read_of_all_times_of_nginx() {
        let expected = Some("2026-11-26 10h".to_string());
        assert_eq!(hour("time_local", "26/Nov/2026:10:14:03 +0000"), expected);
        assert_eq!(hour("time_iso8601", "2026-11-26T10:14:03+00:00"), expected);
        assert_eq!(hour("msec", "1795688043.117"), expected);
        for wrong in
            ["-", "26/Nov/2026", "x/Nov/2026:10:14:03", "26/Nov/x:10:14:03", "026/Nov/2026:10"]
        {
            assert_eq!(hour("time_local", wrong), None, "{wrong}");
        }
        assert_eq!(hour("msec", "-1000000000000000"), None);
    }

    #[test]
    fn what_is_no_outcome_is_not_counted_as_one() {
        let format = Format::parse("$ssl_session_reused $ssl_session_fetch_status").unwrap();
        let mut counts = Counts::default();
        counts.count(&format, "r HIT");
        counts.count(&format, ". a value of a client's");
        counts.count(&format, &format!(". {}", "A".repeat(17)));
        assert_eq!((counts.all.all, counts.unreadable), (1, 2));
        for number in 0..MAX_KINDS {
            counts.count(&format, &format!(". {number}"));
        }
        counts.count(&format, "r HIT");
        assert_eq!((counts.outcomes.len(), counts.unreadable), (MAX_KINDS, 3));
        assert_eq!(counts.all.resumed, 2, "those that are known are counted on");
    }

    #[test]
    fn times_are_told_to_two_digits() {
        let mut times = Times::default();
        (1..=100).for_each(|ms| times.add(f64::from(ms) / 1000.0));
        assert_eq!(times.quantile(50), Some(0.051));
        assert_eq!(times.quantile(99), Some(0.1));
        assert_eq!(Times::default().quantile(50), None);
    }
}
