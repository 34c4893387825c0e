//! What is not counted, and is looked at when somebody asks.

use std::string::{String, ToString};
use std::vec::Vec;

use session_core::stats::{Kind, Record, epoch, zone};

use crate::ffi::version;
use crate::handshake::{Policy, Watch};
use crate::tier::Tier;

/// The version of the module.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which module this is, and what it runs in.
pub fn build() -> Record {
    let (running, built) = (version::openssl(), version::openssl_built());
    // Only where it says something new: that is easy to ask for.
    let built = if built == running { String::new() } else { built.into_owned() };
    let labels = [VERSION.to_string(), version::nginx().into_owned(), running.into_owned(), built];
    Record::info(Kind::Build, labels.into())
}

/// What there is to see of a policy; `block` is `http` or `stream`.
pub fn of(block: &str, policy: &Policy) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for tier in policy.tiers() {
        let zone = zone_record(&**tier);
        records.extend(zone.filter(|zone| records.iter().all(|one| one.labels != zone.labels)));
    }
    let ids = policy.rules().ring.key_ids().zip(1_usize..);
    records.extend(ids.map(|(id, position)| {
        let labels = [block.to_string(), std::format!("{id:02x}"), position.to_string()];
        Record::info(Kind::Key, labels.into())
    }));
    records.extend(policy.rules().epoch.as_ref().and_then(|watch| epoch_record(block, watch)));
    records
}

fn zone_record(tier: &dyn Tier) -> Option<Record> {
    let fill = tier.fill()?;
    let mut numbers = std::vec![0; Kind::Zone.width()];
    set(&mut numbers, zone::SIZE, fill.size as u64);
    set(&mut numbers, zone::FREE, fill.free as u64);
    set(&mut numbers, zone::ENTRIES, fill.entries as u64);
    Some(Record { kind: Kind::Zone, labels: [tier.name().to_string()].into(), numbers })
}

fn epoch_record(block: &str, watch: &Watch) -> Option<Record> {
    let known = watch.epoch()?;
    let at = known.at().and_then(|at| u64::try_from(at).ok()).unwrap_or_default();
    let mut numbers = std::vec![0; Kind::Epoch.width()];
    set(&mut numbers, epoch::AT, at);
    set(&mut numbers, epoch::HEARD, known.is_heard().into());
    let labels = [block.to_string(), watch.name().to_string()].into();
    Some(Record { kind: Kind::Epoch, labels, numbers })
}

fn set(numbers: &mut [u64], place: usize, n: u64) {
    if let Some(number) = numbers.get_mut(place) {
        *number = n;
    }
}
