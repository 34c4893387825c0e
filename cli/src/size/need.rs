//! What a fleet needs, by what was measured.

use super::measured::Measured;
use super::number::percent;
use super::{Fleet, Store};
use crate::out::Fault;

/// The fleet where no other is described: handshakes a second of a machine, and the fewest machines.
const PER_MACHINE: f64 = 2000.0;
const FEWEST: u64 = 2;
/// A worker has a connection for lookups and one for stores to each server; while the one for lookups
/// is silent, another one beside it.
pub const LINKS: u64 = 2;
const LINKS_AT_MOST: u64 = 3;
/// docs/stores.md, "A Redis that is full".
const POLICY: &str = "volatile-lru";
/// A megabyte.
const MB: f64 = 1024.0 * 1024.0;
/// The versions of TLS, as what was measured names them.
const VERSIONS: [&str; 2] = ["1.2", "1.3"];

type Result<T> = std::result::Result<T, Fault>;

/// What a fleet needs, in bytes, seconds, and numbers a second.
pub struct Need {
    /// Handshakes.
    pub rate: f64,
    /// Machines with nginx.
    pub machines: u64,
    /// Workers of each.
    pub workers: u64,
    /// Sessions in the store.
    pub sessions: f64,
    /// Those of TLS 1.2, and those of TLS 1.3.
    pub stored: [f64; 2],
    /// Requests that store, look up, and take.
    pub stores: f64,
    /// Lookups that leave the entry where it is.
    pub lookups: f64,
    /// Those that remove what they find.
    pub takes: f64,
    /// What that takes of what has the sessions.
    pub holder: Holder,
}

/// What has the sessions.
pub enum Holder {
    /// A zone on each machine, for what it makes itself.
    Zone {
        /// Bytes of all.
        memory: f64,
        /// Bytes of one.
        zone: f64,
        /// How large one has to be.
        zone_mb: u64,
    },
    /// Servers.
    Servers(Servers),
}

/// What servers need, all of them and each.
pub struct Servers {
    /// Bytes, as the server counts them.
    pub memory: f64,
    /// Those of one shard.
    pub memory_of_shard: f64,
    /// Those that the machine sees.
    pub resident_of_shard: f64,
    /// How many shards.
    pub shards: u64,
    /// As many as memory needs.
    pub shards_by_memory: u64,
    /// As many as CPU needs.
    pub shards_by_cpu: u64,
    /// Requests a second, as the server counts them.
    pub operations: f64,
    /// Those of one shard.
    pub operations_of_shard: f64,
    /// Bytes a second.
    pub bytes_to_store: f64,
    /// Bytes a second.
    pub bytes_from_store: f64,
    /// Connections to one shard.
    pub connections_of_shard: u64,
    /// Connections to all.
    pub connections: u64,
    /// CPUs of a store that has much to do.
    pub cpus: f64,
    /// CPUs of one that does each operation by itself.
    pub cpus_at_most: f64,
    /// CPUs that removing what has expired takes.
    pub cpus_of_expiry: f64,
    /// CPUs of one shard.
    pub cpus_of_shard: f64,
    /// CPUs of one shard.
    pub cpus_of_shard_at_most: f64,
    /// `maxmemory`, or `-m`.
    pub limit_mb: u64,
    /// The most connections to one shard, for a time.
    pub max_connections: u64,
    /// What a Redis is to do when it is full.
    pub policy: Option<&'static str>,
}

/// What is asked of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Store,
    Fetch,
    Take,
}

impl Ask {
    const ALL: [Ask; 3] = [Ask::Store, Ask::Fetch, Ask::Take];

    /// Its name among what was measured.
    fn name(self) -> &'static str {
        match self {
            Ask::Store => "store",
            Ask::Fetch => "fetch",
            Ask::Take => "take",
        }
    }
}

/// Requests a second of one version of TLS.
#[derive(Clone, Copy)]
struct Asked {
    version: &'static str,
    store: f64,
    fetch: f64,
    take: f64,
}

impl Asked {
    fn of(&self, ask: Ask) -> f64 {
        match ask {
            Ask::Store => self.store,
            Ask::Fetch => self.fetch,
            Ask::Take => self.take,
        }
    }
}

/// What a fleet needs.
pub fn need(rate: f64, fleet: &Fleet, measured: &Measured) -> Result<Need> {
    if fleet.fill == 0.0 || fleet.busy == 0.0 {
        return Err(Fault::usage("--fill and --busy may not be 0"));
    }
    let asked = requests(rate, fleet);
    let [tls12, tls13] = asked;
    let mut stored = [tls12.store * fleet.lifetime, tls13.store * fleet.lifetime];
    if fleet.single_use {
        // A ticket that is used is gone from then on.
        let left = fleet.lifetime - fleet.comes_back.unwrap_or(fleet.lifetime).min(fleet.lifetime);
        let [_, tickets] = &mut stored;
        *tickets -= tls13.take * left;
    }
    let sum = |ask| asked.iter().map(|of| of.of(ask)).sum::<f64>();
    let machines = fleet.machines.unwrap_or_else(|| upward(rate / PER_MACHINE).max(FEWEST));
    let mut entries = 0.0;
    for (version, number) in VERSIONS.into_iter().zip(stored) {
        let path = [fleet.store.name(), "entry", version, fleet.certificates.name()];
        entries += number * measured.number(&path)?;
    }
    let holder = if fleet.store == Store::Shared {
        let zone = entries / machines as f64;
        Holder::Zone { memory: entries, zone, zone_mb: upward(zone / fleet.fill / MB) }
    } else {
        Holder::Servers(servers(fleet, machines, measured, &asked, &stored, entries)?)
    };
    Ok(Need {
        rate,
        machines,
        workers: fleet.workers,
        sessions: stored.iter().sum(),
        stored,
        stores: sum(Ask::Store),
        lookups: sum(Ask::Fetch),
        takes: sum(Ask::Take),
        holder,
    })
}

fn requests(rate: f64, fleet: &Fleet) -> [Asked; 2] {
    let (tls12, tls13) = (rate * (1.0 - fleet.tls13), rate * fleet.tls13);
    let full = 1.0 - fleet.resumed;
    // OpenSSL gives one ticket after a resumption, whatever it gives after a full handshake.
    let tickets = full * fleet.tickets as f64 + fleet.resumed;
    let found = tls13 * fleet.resumed;
    let (fetch, take) = if fleet.single_use { (0.0, found) } else { (found, 0.0) };
    let [v12, v13] = VERSIONS;
    [
        Asked { version: v12, store: tls12 * full, fetch: tls12 * fleet.resumed, take: 0.0 },
        Asked { version: v13, store: tls13 * tickets, fetch, take },
    ]
}

fn servers(
    fleet: &Fleet,
    machines: u64,
    measured: &Measured,
    asked: &[Asked],
    stored: &[f64],
    entries: f64,
) -> Result<Servers> {
    let (store, kind) = (fleet.store.name(), fleet.certificates.name());
    let number = |path: &[&str]| measured.number(&[&[store], path].concat());
    let cost = |ask: Ask, version| number(&["cpu", ask.name(), version, kind]);
    // The sum over all requests of something that each of a kind has.
    let total = |what: &dyn Fn(Ask, &'static str) -> Result<f64>| {
        let mut sum = 0.0;
        for of in asked {
            for ask in Ask::ALL {
                if of.of(ask) != 0.0 {
                    sum += of.of(ask) * what(ask, of.version)?;
                }
            }
        }
        Ok::<f64, Fault>(sum)
    };
    let is_redis = fleet.store == Store::Redis;

    // memcached removes nothing that has expired.
    let mut expiry = 0.0;
    if is_redis {
        for of in asked {
            // What is stored either expires or is taken.
            expiry += (of.store - of.take) * number(&["cpu", "expire", of.version, kind])?;
        }
        expiry /= 1e6;
    }
    let cpus = total(&cost)? / 1e6 + expiry;
    // A store that has little to do takes more for each: it is measured for sessions of TLS 1.3.
    let alone = |ask| {
        let like = if ask == Ask::Take { Ask::Fetch } else { ask };
        let busy = number(&["cpu", like.name(), "1.3", "none"])?;
        Ok::<f64, Fault>(number(&["alone", like.name()])? / busy)
    };
    let most = total(&|ask, version| Ok(cost(ask, version)? * alone(ask)?))? / 1e6 + expiry;

    let links = LINKS.saturating_mul(machines).saturating_mul(fleet.workers);
    let own = if is_redis {
        number(&["empty"])? + links as f64 * number(&["link", "used"])?
    } else {
        0.0
    };
    let room = fleet.shard_memory * fleet.fill - own;
    if room <= 0.0 {
        let fill = percent(fleet.fill);
        return Err(Fault::usage(format!(
            "{links} connections take more than {fill} of --shard-memory: name more"
        )));
    }
    let (by_memory, by_cpu) = (upward(entries / room), upward(most / fleet.busy));
    let shards = fleet.shards.unwrap_or_else(|| by_memory.max(by_cpu).max(1));
    let each = |of: f64| of / shards as f64;
    let of_shard = each(entries) + own;
    let resident = if is_redis {
        of_shard * number(&["resident"])?
    } else {
        let mut all = 0.0;
        for (version, sessions) in VERSIONS.into_iter().zip(stored) {
            all += sessions * number(&["resident", version, kind])?;
        }
        number(&["empty"])? + each(all)
    };
    // Two steps of memcached take a session.
    let steps = |ask, _| Ok(if ask == Ask::Take && !is_redis { 2.0 } else { 1.0 });
    let operations = total(&steps)?;
    let wire = |way: usize| {
        total(&|ask, version| measured.numbers(&[store, "wire", ask.name(), version, kind], way))
    };
    Ok(Servers {
        memory: of_shard * shards as f64,
        memory_of_shard: of_shard,
        resident_of_shard: resident,
        shards,
        shards_by_memory: by_memory,
        shards_by_cpu: by_cpu,
        operations,
        operations_of_shard: each(operations),
        bytes_to_store: wire(0)?,
        bytes_from_store: wire(1)?,
        connections_of_shard: links,
        connections: links.saturating_mul(shards),
        cpus,
        cpus_at_most: most,
        cpus_of_expiry: expiry,
        cpus_of_shard: each(cpus),
        cpus_of_shard_at_most: each(most),
        limit_mb: upward(of_shard / fleet.fill / MB),
        max_connections: (links / LINKS).saturating_mul(LINKS_AT_MOST),
        policy: is_redis.then_some(POLICY),
    })
}

/// The next whole number.
fn upward(number: f64) -> u64 {
    number.ceil() as u64
}
