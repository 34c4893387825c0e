//! `store`: what lies in the store.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use session_core::cache_key::CacheKey;
use session_core::epoch::{Epoch, News};
use session_core::target::{Redacted, Target, TargetError};

use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::time;
use link::{Store, Trust};

mod inspect;
mod link;

/// How a session in DER begins, which is stored without a key.
const DER: u8 = 0x30;
/// How an envelope begins (docs/envelope.md).
const ENVELOPE: u8 = 1;
/// How long the names of entries are: 32 bytes in base64url.
const NAME_LEN: usize = 43;

/// Look into the store: how many sessions, what one says, up to when they are withdrawn
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count entries: sizes, lives, key ids
    Stats {
        #[command(flatten)]
        at: At,
        /// Look at this many entries at most
        #[arg(long, value_name = "NUMBER", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        limit: u64,
    },
    /// Show what an entry says; never its secrets
    Inspect {
        #[command(flatten)]
        at: At,
        /// Session ID (64 hexadecimal digits), a file of "openssl s_client -sess_out", or the name
        /// of an entry, of which only the outside can be seen
        name: String,
        /// File of the ssl_session_key that opens it
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show up to when sessions are withdrawn (ssl_session_epoch), or set it
    Epoch {
        #[command(flatten)]
        at: At,
        /// "set", to change it
        #[arg(value_parser = ["set"], requires = "time")]
        set: Option<String>,
        /// "now", or seconds since 1970
        time: Option<String>,
        /// Name of the entry
        #[arg(long, default_value = "epoch")]
        name: String,
    },
}

/// Where the store is.
#[derive(clap::Args)]
struct At {
    /// As in ssl_session_fetch: redis://[[user]:password@]host[:port][/database], rediss://...,
    /// memcached://host[:port]; unix:/path in place of host and port
    target: String,
    /// What the names of entries begin with (key_prefix)
    #[arg(long, default_value = "tls:")]
    prefix: String,
    /// File that has the password, in one line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Verify rediss:// by these CAs [default: those of the system]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time::duration)]
    timeout: Duration,
}

impl At {
    fn open(&self) -> std::result::Result<Store, Fault> {
        let shown = Redacted(&self.target);
        let server = match Target::parse(&self.target) {
            Ok(Target::Server(server)) => server,
            Ok(_) => {
                return Err(Fault::usage(format!(
                    "{shown}: redis://, rediss:// or memcached:// and a host expected"
                )));
            }
            Err(TargetError::NoPassword) if self.password_file.is_some() => {
                return Err(Fault::usage(format!(
                    "{shown}: \"user:@\" expected, as --password-file has the password"
                )));
            }
            Err(error) => return Err(Fault::usage(format!("{shown}: {error}"))),
        };
        let trust =
            Trust { cacert: self.cacert.as_deref(), password_file: self.password_file.as_deref() };
        Store::open(&server, trust, self.timeout)
    }
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    match &args.command {
        Command::Stats { at, limit } => {
            stats(at, usize::try_from(*limit).unwrap_or(usize::MAX), out)
        }
        Command::Inspect { at, name, key } => {
            inspect::run(&mut at.open()?, &at.prefix, name, key.as_deref(), out)
        }
        Command::Epoch { at, set: _, time, name } => epoch(at, time.as_deref(), name, out),
    }
}

/// What is known of an entry from outside.
pub struct Outside {
    /// Its length, in bytes.
    pub size: usize,
    /// How long it lives on, in seconds; `None` for ever.
    pub ttl: Option<i64>,
    /// Its first two bytes, as far as it has them.
    pub begin: Vec<u8>,
}

/// What an entry is, by its first bytes, and the key id where it is sealed.
fn sealed(begin: &[u8]) -> (&'static str, Option<u8>) {
    match begin {
        [ENVELOPE, id, ..] => ("sealed", Some(*id)),
        [DER, ..] => ("not sealed", None),
        _ => ("unknown", None),
    }
}

fn stats(at: &At, limit: usize, out: &mut Out) -> Result {
    let mut store = at.open()?;
    let (names, sample) = store.names(at.prefix.as_bytes(), limit, out)?;
    let len = at.prefix.len().saturating_add(NAME_LEN);
    let (entries, others): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| name.len() == len && name.starts_with(at.prefix.as_bytes()));
    let seen = store.outsides(&entries, out)?;
    out.progressed();

    let mut sizes: Vec<i64> = Vec::new();
    let mut ttls: Vec<i64> = Vec::new();
    let (mut endless, mut kinds) = (0usize, std::collections::BTreeMap::new());
    for outside in &seen {
        sizes.push(i64::try_from(outside.size).unwrap_or(i64::MAX));
        match outside.ttl {
            Some(ttl) => ttls.push(ttl),
            None => endless = endless.saturating_add(1),
        }
        let count = kinds.entry(sealed(&outside.begin)).or_insert(0usize);
        *count = count.saturating_add(1);
    }
    let plain = kinds.iter().any(|((kind, _), _)| *kind != "sealed");
    let done = if plain || endless > 0 { Done::Finding } else { Done::Well };
    let (size, ttl) = (spread(&mut sizes), spread(&mut ttls));
    if out.is_json() {
        let spread = |spread: Option<[i64; 3]>| {
            spread.map(|[min, median, max]| json!({ "min": min, "median": median, "max": max }))
        };
        let kinds = kinds.iter().map(|((kind, id), count)| {
            json!({ "entries": kind, "key_id": id.map(|id| format!("{id:02x}")), "count": count })
        });
        out.value(&json!({
            "ok": done == Done::Well, "prefix": at.prefix, "entries": seen.len(), "sample": sample,
            "bytes": spread(size), "ttl": spread(ttl), "without_end": endless,
            "kinds": kinds.collect::<Vec<_>>(), "others": others.len(),
        }));
        return Ok(done);
    }
    let mut count = format!("{} with the prefix {}", seen.len(), at.prefix);
    if sample {
        let _ = write!(count, ", a sample: there are more than --limit {limit}");
    }
    let mut rows = vec![vec![Cell::head("entries"), Cell::from(count)]];
    let of = |spread: [i64; 3], unit: &dyn Fn(i64) -> String| {
        let [min, median, max] = spread.map(unit);
        format!("min {min}, median {median}, max {max}")
    };
    if let Some(size) = size {
        rows.push(vec![Cell::head("bytes"), Cell::from(of(size, &|bytes| bytes.to_string()))]);
    }
    if let Some(ttl) = ttl {
        rows.push(vec![Cell::head("expires in"), Cell::from(of(ttl, &time::span))]);
    }
    if endless > 0 {
        let text = format!("{endless}: the module did not store these");
        rows.push(vec![Cell::head("never expires"), Cell::new(text, Look::Bad)]);
    }
    for ((kind, id), count) in &kinds {
        let (text, look) = match (*kind, id) {
            (_, Some(id)) => (format!("{count} with key id {id:02x}"), Look::Plain),
            ("not sealed", _) => {
                (format!("{count}: whoever reads them can decrypt; set ssl_session_key"), Look::Bad)
            }
            _ => (format!("{count}: neither envelopes nor sessions"), Look::Bad),
        };
        rows.push(vec![Cell::head(kind), Cell::new(text, look)]);
    }
    if !others.is_empty() {
        let text = format!("{}, such as the epoch", others.len());
        rows.push(vec![Cell::head("other names"), Cell::new(text, Look::Dim)]);
    }
    out.table(&rows);
    Ok(done)
}

/// The least, the one in the middle and the greatest.
fn spread(values: &mut [i64]) -> Option<[i64; 3]> {
    values.sort_unstable();
    Some([*values.first()?, *values.get(values.len() / 2)?, *values.last()?])
}

fn epoch(at: &At, set: Option<&str>, name: &str, out: &mut Out) -> Result {
    let key = CacheKey::verbatim(at.prefix.as_bytes(), name.as_bytes());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let key = key.filter(|_| !name.is_empty() && name.chars().all(plain));
    let key = key.ok_or_else(|| {
        Fault::usage(format!(
            "--name {name}: 1 to 32 letters, digits, and \".\", \"_\" or \"-\" expected"
        ))
    })?;
    let now = time::now();
    let number = match set {
        None => None,
        Some("now") => Some(now),
        Some(digits) => {
            Some(digits.parse().ok().filter(|number| *number >= 0).ok_or_else(|| {
                Fault::usage(format!("{digits}: \"now\" or seconds since 1970 expected"))
            })?)
        }
    };
    let mut store = at.open()?;
    let before = store.get(key.as_bytes())?;
    if let Some(number) = number {
        let text = number.to_string();
        if Epoch::new().hear(Some(text.as_bytes()), now, 1) == News::Invalid {
            return Err(Fault::usage(format!(
                "{number} is more than five minutes ahead, which servers do not believe: say now"
            )));
        }
        let old =
            before.as_ref().and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
        if let Some(old) = old.filter(|old: &i64| *old > number && *old <= now.saturating_add(300))
        {
            return Err(Fault::usage(format!(
                "it is {old} already, and servers take none back that they have heard: name a later one"
            )));
        }
        store.set(key.as_bytes(), text.as_bytes())?;
    }
    let value = if number.is_some() { store.get(key.as_bytes())? } else { before };
    if let Some(number) =
        number.filter(|number| value.as_deref() != Some(number.to_string().as_bytes()))
    {
        return Err(Fault::unknown(format!(
            "the store has taken {number} and has something else now: somebody else sets it, or it is full"
        )));
    }
    let entry = String::from_utf8_lossy(key.as_bytes()).into_owned();
    let Some(value) = value else {
        if out.is_json() {
            out.value(&json!({ "ok": true, "entry": entry, "epoch": null }));
        } else {
            out.line(format!("{entry}: there is none, and no session is withdrawn"));
        }
        return Ok(Done::Well);
    };
    let text = String::from_utf8_lossy(&value).trim().to_string();
    let valid = match Epoch::new().hear(Some(&value), now, 1) {
        News::Withdrawn(epoch) => Some(epoch),
        News::None | News::Invalid => None,
    };
    if out.is_json() {
        out.value(&json!({ "ok": valid.is_some(), "entry": entry, "epoch": valid, "value": text }));
    } else if let Some(epoch) = valid {
        let age = now.saturating_sub(epoch);
        let age = if age < 0 {
            format!("{} ahead", time::span(age.saturating_neg()))
        } else {
            format!("{} ago", time::span(age))
        };
        let moment = time::utc(epoch);
        out.line(format!(
            "{entry} is {epoch} ({moment}, {age}): sessions made until then are withdrawn"
        ));
    } else {
        let text = format!(
            "{entry} is \"{text}\": not a number, or more than five minutes ahead; servers do not heed it: set now"
        );
        out.lined(text, Look::Bad);
    }
    Ok(if valid.is_some() { Done::Well } else { Done::Finding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_least_the_middle_and_the_greatest() {
        assert_eq!(spread(&mut []), None);
        assert_eq!(spread(&mut [3]), Some([3, 3, 3]));
        assert_eq!(spread(&mut [5, 1, 3]), Some([1, 3, 5]));
    }

    #[test]
    fn an_entry_is_told_by_its_first_bytes() {
        assert_eq!(sealed(&[1, 0x5c]), ("sealed", Some(0x5c)));
        assert_eq!(sealed(&[0x30, 0x82]), ("not sealed", None));
        assert_eq!(sealed(b""), ("unknown", None));
    }
}
