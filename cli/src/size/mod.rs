//! `size`: what the store of a fleet has to be. docs/sizing.md has the formula.

use std::cmp::Ordering;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::out::{Cell, Done, Fault, Out, Result};
use measured::Measured;
use need::{Holder, LINKS, Need, Servers, need};
use number::{bytes, count, percent, positive, seconds, share, size, span, whole};

mod measured;
mod need;
mod number;
mod tables;

/// Compute what the store of a fleet needs: memory, requests, shards, connections, CPU
#[derive(clap::Args)]
pub struct Args {
    /// Handshakes a second of the whole fleet
    #[arg(long, value_name = "N", value_parser = positive, required_unless_present_any = ["table", "constants"])]
    rate: Option<f64>,
    #[command(flatten)]
    fleet: Fleet,
    /// Print the tables of docs/sizing.md about fleets
    #[arg(long, conflicts_with_all = ["rate", "constants"])]
    table: bool,
    /// Print what was measured, with which this is computed
    #[arg(long, conflicts_with = "rate")]
    constants: bool,
}

/// What a fleet is like, and its store.
#[derive(clap::Args)]
struct Fleet {
    /// Which share of them is TLS 1.3
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share)]
    tls13: f64,
    /// Which share of them is resumed
    #[arg(long, value_name = "SHARE", default_value = "0.6", value_parser = share)]
    resumed: f64,
    /// ssl_session_timeout: 300, 5m, 1h or 1d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    lifetime: f64,
    /// What clients show
    #[arg(long, value_name = "KIND", default_value = "none")]
    certificates: Certificates,
    /// Tickets of TLS 1.3 after a full handshake
    #[arg(long, value_name = "N", default_value = "2", value_parser = count)]
    tickets: u64,
    /// Tickets are good for one handshake
    #[arg(long)]
    single_use: bool,
    /// With it, after how long a ticket is used on average [default: never]
    #[arg(long = "return", value_name = "TIME", value_parser = seconds)]
    comes_back: Option<f64>,
    /// Of the fleet [default: one for 2,000 handshakes/s, and 2 at least]
    #[arg(long, value_name = "N", value_parser = count)]
    machines: Option<u64>,
    /// Of nginx on each machine
    #[arg(long, value_name = "N", default_value = "8", value_parser = count)]
    workers: u64,
    /// What has the sessions: redis, memcached or shared
    #[arg(long, value_name = "KIND", default_value = "redis", hide_possible_values = true)]
    store: Store,
    /// The most that a shard has: 512m or 16g
    #[arg(long, value_name = "SIZE", default_value = "16g", value_parser = size)]
    shard_memory: f64,
    /// Which share of it is to be in use
    #[arg(long, value_name = "SHARE", default_value = "0.75", value_parser = share)]
    fill: f64,
    /// Which share of one CPU a shard may use
    #[arg(long, value_name = "SHARE", default_value = "0.5", value_parser = share)]
    busy: f64,
    /// So many, whatever the last three say
    #[arg(long, value_name = "N", value_parser = count)]
    shards: Option<u64>,
}

/// What clients show of themselves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Certificates {
    None,
    Ecdsa,
    Rsa,
}

impl Certificates {
    /// Its name among what was measured.
    fn name(self) -> &'static str {
        match self {
            Certificates::None => "none",
            Certificates::Ecdsa => "ecdsa",
            Certificates::Rsa => "rsa",
        }
    }
}

/// What has the sessions.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Redis,
    Memcached,
    Shared,
}

impl Store {
    /// Its name among what was measured.
    fn name(self) -> &'static str {
        match self {
            Store::Redis => "redis",
            Store::Memcached => "memcached",
            Store::Shared => "shared",
        }
    }
}

/// The options as words, for the fleets of the tables.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    args: Args,
}

impl Args {
    /// What these options come to.
    fn need(&self, measured: &Measured) -> std::result::Result<Need, Fault> {
        let rate = self.rate.ok_or_else(|| Fault::usage("--rate is missing"))?;
        need(rate, &self.fleet, measured)
    }

    /// What options in words come to.
    fn of(words: &str) -> std::result::Result<Args, Fault> {
        let words = std::iter::once("size").chain(words.split_whitespace());
        Ok(Words::try_parse_from(words).map_err(Fault::usage)?.args)
    }
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    let measured = Measured::new()?;
    if args.constants && out.is_json() {
        out.value(measured.all());
    } else if args.constants {
        out.raw(&tables::measured(&measured));
    } else if args.table && out.is_json() {
        out.value(&tables::fleets_json(&measured)?);
    } else if args.table {
        out.raw(&tables::fleets(&measured)?);
    } else {
        let need = args.need(&measured)?;
        if out.is_json() {
            out.value(&json_of(&need));
        } else {
            print(&args.fleet, &need, out);
        }
    }
    Ok(Done::Well)
}

/// Everything, in bytes, seconds, and numbers a second.
fn json_of(need: &Need) -> Value {
    let [tls12, tls13] = need.stored;
    let mut value = json!({
        "rate": need.rate, "machines": need.machines, "workers": need.workers,
        "sessions": need.sessions, "sessions_by_tls": { "1.2": tls12, "1.3": tls13 },
        "stores": need.stores, "lookups": need.lookups, "takes": need.takes,
    });
    let more = match &need.holder {
        Holder::Zone { memory, zone, zone_mb } => {
            json!({ "memory": memory, "zone": zone, "zone_mb": zone_mb })
        }
        Holder::Servers(of) => json!({
            "memory": of.memory, "memory_of_shard": of.memory_of_shard,
            "resident_of_shard": of.resident_of_shard, "shards": of.shards,
            "shards_by_memory": of.shards_by_memory, "shards_by_cpu": of.shards_by_cpu,
            "operations": of.operations, "operations_of_shard": of.operations_of_shard,
            "bytes_to_store": of.bytes_to_store, "bytes_from_store": of.bytes_from_store,
            "connections_of_shard": of.connections_of_shard, "connections": of.connections,
            "cpus": of.cpus, "cpus_at_most": of.cpus_at_most, "cpus_of_expiry": of.cpus_of_expiry,
            "cpus_of_shard": of.cpus_of_shard, "cpus_of_shard_at_most": of.cpus_of_shard_at_most,
            "limit_mb": of.limit_mb, "max_connections": of.max_connections, "policy": of.policy,
        }),
    };
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}

/// What there is to say of a fleet.
fn print(fleet: &Fleet, need: &Need, out: &mut Out) {
    let certificates = match fleet.certificates {
        Certificates::None => "no client certificates".to_string(),
        kind => format!("client certificates ({})", kind.name()),
    };
    let single_use = if fleet.single_use { ", single_use" } else { "" };
    let [_, tls13] = need.stored;
    let mut lines = vec![
        (
            "handshakes",
            format!(
                "{}/s, {} TLS 1.3, {} resumed, {certificates}{single_use}",
                whole(need.rate),
                percent(fleet.tls13),
                percent(fleet.resumed)
            ),
        ),
        (
            "sessions",
            format!(
                "{} for {}; of TLS 1.3 {}, {} after a full handshake",
                whole(need.sessions),
                span(fleet.lifetime),
                whole(tls13),
                fleet.tickets
            ),
        ),
    ];
    match &need.holder {
        Holder::Zone { zone, zone_mb, .. } => {
            lines.push(("zone", format!("{} on each of {} machines", bytes(*zone), need.machines)));
            let fill = percent(fleet.fill);
            let zone = format!("shared:NAME:{zone_mb}m, of which {fill} is in use");
            lines.push(("configuration", zone));
        }
        Holder::Servers(servers) => lines.extend(lines_of(fleet, need, servers)),
    }
    let rows = lines.into_iter().map(|(name, text)| vec![Cell::head(name), Cell::from(text)]);
    out.table(&rows.collect::<Vec<_>>());
}

/// What there is to say of servers.
fn lines_of(fleet: &Fleet, need: &Need, of: &Servers) -> Vec<(&'static str, String)> {
    let mut asked = format!("{} lookups, {} stores", whole(need.lookups), whole(need.stores));
    if fleet.single_use {
        asked = format!("{asked}, {} takes", whole(need.takes));
    }
    let why = match fleet.shards {
        Some(_) => "as given".to_string(),
        None => format!("{} by memory, {} by CPU", of.shards_by_memory, of.shards_by_cpu),
    };
    let limit = of.limit_mb;
    // The setting, and what it is by default.
    let (mut settings, connections, default) = match of.policy {
        Some(policy) => {
            (format!("maxmemory {limit}mb, maxmemory-policy {policy}"), ", maxclients", 10_000)
        }
        None => (format!("-m {limit}"), " -c", 1024),
    };
    if of.max_connections.cmp(&default) == Ordering::Greater {
        settings = format!("{settings}{connections} {}", of.max_connections);
    }
    vec![
        ("operations", format!("{}/s: {asked}", whole(of.operations))),
        (
            "bytes",
            format!(
                "{}/s to the store, {}/s from it",
                bytes(of.bytes_to_store),
                bytes(of.bytes_from_store)
            ),
        ),
        ("CPU", format!("{:.2} to {:.2} CPUs of the store's", of.cpus, of.cpus_at_most)),
        ("memory", format!("{} in all", bytes(of.memory))),
        ("shards", format!("{} ({why})", whole(of.shards as f64))),
        (
            "each shard",
            format!(
                "{} ({} of the machine's), {} operations/s, {:.2} to {:.2} CPUs",
                bytes(of.memory_of_shard),
                bytes(of.resident_of_shard),
                whole(of.operations_of_shard),
                of.cpus_of_shard,
                of.cpus_of_shard_at_most
            ),
        ),
        (
            "connections",
            format!(
                "{} to each shard: {LINKS} of each of {} workers of {} machines",
                whole(of.connections_of_shard as f64),
                need.workers,
                need.machines
            ),
        ),
        ("configuration", settings),
    ]
}
