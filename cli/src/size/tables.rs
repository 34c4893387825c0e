//! The tables of docs/sizing.md, in Markdown.

use serde_json::{Value, json};

use super::measured::Measured;
use super::need::Holder;
use super::number::{bytes, grouped, percent, short, whole};
use super::{Args, json_of};
use crate::out::Fault;

/// Handshakes a second, and `ssl_session_timeout`.
const RATES: [u32; 4] = [1000, 10_000, 100_000, 1_000_000];
const LIFETIMES: [&str; 3] = ["5m", "1h", "1d"];
/// What another fleet, or another store, makes of one of them.
const VARIANTS: [&str; 11] = [
    "",
    "--tls13 0",
    "--tickets 1",
    "--resumed 0",
    "--single-use",
    "--single-use --return 10m",
    "--certificates ecdsa",
    "--certificates rsa",
    "--store memcached",
    "--store memcached --single-use",
    "--store shared",
];

fn of_rate(rate: u32, lifetime: &str) -> Result<Args, Fault> {
    Args::of(&format!("--rate {rate} --lifetime {lifetime}"))
}

fn variant(words: &str) -> Result<Args, Fault> {
    Args::of(&format!("--rate 10000 {words}"))
}

/// What fleets of all sizes need, and what makes it more or less.
pub fn fleets(measured: &Measured) -> Result<String, Fault> {
    let mut rows = Vec::new();
    for rate in RATES {
        for lifetime in LIFETIMES {
            let need = of_rate(rate, lifetime)?.need(measured)?;
            let Holder::Servers(of) = &need.holder else { continue };
            rows.push(vec![
                whole(rate.into()),
                lifetime.into(),
                whole(need.sessions),
                bytes(of.memory),
                whole(of.shards as f64),
                whole(of.connections_of_shard as f64),
                whole(of.operations),
                bytes(of.bytes_to_store),
                bytes(of.bytes_from_store),
                format!("{:.2} to {:.2}", of.cpus, of.cpus_at_most),
                format!("{}mb", whole(of.limit_mb as f64)),
            ]);
        }
    }
    let head = [
        "handshakes/s",
        "lifetime",
        "sessions",
        "memory",
        "shards",
        "connections to each",
        "operations/s",
        "bytes/s to",
        "bytes/s from",
        "Redis CPUs",
        "`maxmemory` of each",
    ];
    let fleets = markdown(&head, rows);

    let mut rows = Vec::new();
    for words in VARIANTS {
        let need = variant(words)?.need(measured)?;
        let mut row = vec![
            if words.is_empty() { String::new() } else { format!("`{words}`") },
            whole(need.sessions),
        ];
        match &need.holder {
            Holder::Zone { memory, .. } => {
                row.push(bytes(*memory));
                row.extend(["-"; 3].map(String::from));
            }
            Holder::Servers(of) => row.extend([
                bytes(of.memory),
                whole(of.shards as f64),
                whole(of.operations),
                format!("{:.2} to {:.2}", of.cpus, of.cpus_at_most),
            ]),
        }
        rows.push(row);
    }
    let head = ["10,000 handshakes/s, 1h", "sessions", "memory", "shards", "operations/s", "CPUs"];
    Ok(format!("{fleets}\n{}", markdown(&head, rows)))
}

/// The same for programs.
pub fn fleets_json(measured: &Measured) -> Result<Value, Fault> {
    let (mut fleets, mut variants) = (Vec::new(), Vec::new());
    for rate in RATES {
        for lifetime in LIFETIMES {
            let need = json_of(&of_rate(rate, lifetime)?.need(measured)?);
            fleets.push(json!({ "lifetime": lifetime, "needs": need }));
        }
    }
    for words in VARIANTS {
        let need = json_of(&variant(words)?.need(measured)?);
        variants.push(json!({ "options": words, "needs": need }));
    }
    Ok(json!({ "fleets": fleets, "variants": variants }))
}

/// What was measured, and when.
pub fn measured(known: &Measured) -> String {
    let tables =
        [sizes(known), numbers(known), requests(known), servers(known), run(known), parts(known)];
    tables.join("\n")
}

/// Versions of TLS, and what clients show.
fn kinds(known: &Measured) -> Vec<(&str, &str)> {
    let versions = known.names(&["entry"]).into_iter();
    versions
        .flat_map(|version| {
            known.names(&["entry", version]).into_iter().map(move |kind| (version, kind))
        })
        .collect()
}

fn sizes(known: &Measured) -> String {
    let columns: [(&str, &[&str]); 9] = [
        ("entry", &["entry"]),
        ("Redis: `MEMORY USAGE`", &["redis", "usage"]),
        ("10^6", &["redis", "entry"]),
        ("1.1 × 10^6", &["redis", "doubled"]),
        ("memcached: item", &["memcached", "item"]),
        ("chunk", &["memcached", "chunk"]),
        ("slabs", &["memcached", "entry"]),
        ("resident", &["memcached", "resident"]),
        ("`shared:`", &["shared", "entry"]),
    ];
    let rows = kinds(known).into_iter().map(|(version, kind)| {
        let of = known.at(&["certificate", kind]).as_u64().unwrap_or_default();
        let of = if of > 0 { format!(", {of} bytes") } else { String::new() };
        let figure = |path: &[&str]| {
            let figure = known.at(&[path, &[version, kind]].concat()).as_f64();
            figure.map_or_else(dash, |figure| short(figure, 6))
        };
        let first = std::iter::once(format!("TLS {version}, {kind}{of}"));
        first.chain(columns.iter().map(|(_, path)| figure(path))).collect()
    });
    let head = columns.iter().map(|(name, _)| *name);
    let head: Vec<_> = std::iter::once("session, client's certificate").chain(head).collect();
    markdown(&head, rows.collect())
}

fn numbers(known: &Measured) -> String {
    let kinds = known.names(&["certificate"]);
    let columns: Vec<_> = ["redis", "memcached"]
        .into_iter()
        .flat_map(|store| kinds.iter().map(move |kind| (store, *kind)))
        .collect();
    let rows = known.names(&["redis", "each", "none"]).into_iter().map(|number| {
        let figures = columns
            .iter()
            .map(|(store, kind)| grouped(&word(known.at(&[store, "each", kind, number]))));
        std::iter::once(grouped(number)).chain(figures).collect()
    });
    let head = columns.iter().map(|(store, kind)| format!("{store}, {kind}"));
    let head: Vec<_> = std::iter::once("entries of TLS 1.3".to_string()).chain(head).collect();
    markdown(&head, rows.collect())
}

fn requests(known: &Measured) -> String {
    let mut rows = Vec::new();
    for store in ["redis", "memcached"] {
        for (version, kind) in kinds(known) {
            let wire = |ask| match known.at(&[store, "wire", ask, version, kind]).as_array() {
                Some(both) => both.iter().map(word).collect::<Vec<_>>().join(" / "),
                None => dash(),
            };
            let cpu = |ask| word(known.at(&[store, "cpu", ask, version, kind]));
            let first = std::iter::once(format!("{store}, TLS {version}, {kind}"));
            let wires = ["fetch", "store", "take"].map(wire);
            rows.push(
                first.chain(wires).chain(["fetch", "store", "take", "expire"].map(cpu)).collect(),
            );
        }
    }
    let head = [
        "store, session",
        "lookup: bytes to / from",
        "store",
        "take",
        "lookup: CPU, µs",
        "store",
        "take",
        "expiry",
    ];
    markdown(&head, rows)
}

fn servers(known: &Measured) -> String {
    let rows = ["redis", "memcached"].map(|store| {
        let of = |path: &[&str]| word(known.at(&[&[store], path].concat()));
        let busy = known.at(&[store, "busy"]).as_f64();
        vec![
            store.into(),
            grouped(&of(&["empty"])),
            grouped(&of(&["link", "used"])),
            grouped(&of(&["link", "idle"])),
            // Of memcached it depends on the entry, and is in another table.
            if store == "redis" { of(&["resident"]) } else { dash() },
            busy.map_or_else(dash, percent),
            of(&["alone", "fetch"]),
            of(&["alone", "store"]),
        ]
    });
    let head = [
        "server",
        "empty",
        "connection in use",
        "idle",
        "resident / `used_memory`",
        "busy",
        "lookup alone: CPU, µs",
        "store alone",
    ];
    markdown(&head, rows.to_vec())
}

/// The fleet that was measured, beside what is computed for it.
fn run(known: &Measured) -> String {
    let rows = known.names(&["fleet", "pairs"]).into_iter().map(|name| {
        let number = |place| {
            let pair = known.numbers(&["fleet", "pairs", name], place);
            pair.unwrap_or(f64::NAN)
        };
        let (measured, computed) = (number(0), number(1));
        let digits = if measured > 1000.0 { 0 } else { 1 };
        let shown = |number: f64| grouped(&format!("{number:.digits$}"));
        let deviation = format!("{:+.1} %", 100.0 * (measured / computed - 1.0));
        vec![name.into(), shown(measured), shown(computed), deviation]
    });
    markdown(&["10^6 sessions, 16 Redis", "measured", "computed", "deviation"], rows.collect())
}

fn parts(known: &Measured) -> String {
    let path = ["measured", "parts"];
    let rows = known.names(&path).into_iter().map(|part| {
        let of = |name| known.at(&["measured", "parts", part, name]);
        let load = of("load average").as_array().map_or(&[][..], Vec::as_slice);
        let load: Vec<_> = load.iter().map(word).collect();
        vec![part.into(), word(of("date")), word(of("seconds")), load.join(", ")]
    });
    markdown(&["part", "on", "seconds", "load average before, after"], rows.collect())
}

/// A number or a word as it stands there.
fn word(value: &Value) -> String {
    match value {
        Value::Null => dash(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn dash() -> String {
    "-".into()
}

fn markdown<S: AsRef<str>>(head: &[S], rows: Vec<Vec<String>>) -> String {
    let mut text = String::new();
    let head = head.iter().map(|cell| cell.as_ref().to_string()).collect::<Vec<_>>();
    let line = vec!["---".to_string(); head.len()];
    for row in [head, line].into_iter().chain(rows) {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}
