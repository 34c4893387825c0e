//! The keys of stateless tickets (RFC 5077, RFC 8446 §4.6.1) that a fleet shares, and how they change.
//!
//! A key is made a period before it encrypts, so that all machines have learned it by then. It encrypts
//! for a period, and decrypts for some time after. Its life is counted by those who have it, and by the
//! ttl of its entries: no two clocks are compared.
//!
//! A store has two kinds of entries. The *head* is the key that comes next, with the names of those
//! before it. Its ttl is a period: when it is gone, whoever sees that first makes the next one, and puts
//! it where there is none. So it is the store's clock that changes the keys. Each key has an entry by its
//! name as well, for those that have just begun.
//!
//! The workers of a machine have the keys in one table of shared memory, all of which is atomic: readers
//! wait for nobody. One at a time writes, under a mutex that its caller has.

use alloc::vec::Vec;
use core::array;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use zeroize::Zeroizing;

use crate::codec::OutOfMemory;
use crate::crypto::{AES_KEY_LEN, Failed};

/// Length of the name of a key, in bytes: what a ticket begins with (RFC 5077 §4).
pub const NAME_LEN: usize = 16;

/// Length of the secret of a key, in bytes: 32 for AES-256-CBC, and as many for HMAC-SHA256.
pub const SECRET_LEN: usize = 64;

/// How many keys a machine knows at most.
pub const MAX_KEYS: usize = u64::BITS as usize;

/// How many earlier keys a head names at most.
const MAX_EARLIER: usize = MAX_KEYS - 1;

/// In front of a head and of a key.
const HEAD: u8 = 1;
const KEY: u8 = 2;

/// The end of a key that has none yet, as it encrypts or is going to.
const NEVER: u64 = u64::MAX;
/// The end of no key.
const FREE: u64 = 0;

/// How often a reader looks at a key that is being written. It is written at one go.
const TRIES: usize = 64;

/// What a ticket says its key by. It is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyName(pub [u8; NAME_LEN]);

/// A key. It is wiped when it is dropped.
pub struct TicketKey {
    /// Its name.
    pub name: KeyName,
    secret: Zeroizing<[u8; SECRET_LEN]>,
}

impl TicketKey {
    /// A key of that name, and of a secret that `random` makes.
    pub fn new(
        name: KeyName,
        random: impl FnOnce(&mut [u8]) -> Result<(), Failed>,
    ) -> Result<Self, Failed> {
        let mut secret = Zeroizing::new([0; SECRET_LEN]);
        random(&mut *secret)?;
        Ok(TicketKey { name, secret })
    }

    /// What encrypts and decrypts: a key of AES-256.
    pub fn cipher_key(&self) -> &[u8] {
        self.secret.get(..AES_KEY_LEN).unwrap_or_default()
    }

    /// What authenticates: a key of HMAC-SHA256.
    pub fn mac_key(&self) -> &[u8] {
        self.secret.get(AES_KEY_LEN..).unwrap_or_default()
    }
}

/// How long keys live, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a key is the next one, and how long it encrypts.
    pub period: u64,
    /// How long it decrypts after that.
    pub keep: u64,
}

impl Times {
    /// How long a key is of use that is the next one now.
    const fn whole(&self) -> u64 {
        self.period.saturating_mul(2).saturating_add(self.keep)
    }
}

/// A key before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Its name.
    pub name: KeyName,
    /// For how long it was still of use, in milliseconds, when the head was made.
    pub left: u64,
}

/// The next key, and those before it, newest first. The first of those encrypts.
pub struct Head {
    /// The next key.
    pub next: TicketKey,
    /// Those before it.
    pub earlier: Vec<Earlier>,
}

impl Head {
    /// Whether a key of that name is among its own.
    fn names(&self, name: &KeyName) -> bool {
        self.next.name == *name || self.earlier.iter().any(|earlier| earlier.name == *name)
    }

    /// Appends the head in its layout, which docs/envelope.md has.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        let earlier = self.earlier.get(..MAX_EARLIER).unwrap_or(&self.earlier);
        let len = earlier.len().saturating_mul(NAME_LEN.saturating_add(8));
        let len = len.saturating_add(2).saturating_add(NAME_LEN).saturating_add(SECRET_LEN);
        out.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
        out.push(HEAD);
        put_key(&self.next, out);
        out.push(u8::try_from(earlier.len()).unwrap_or_default());
        for Earlier { name, left } in earlier {
            out.extend_from_slice(&name.0);
            out.extend_from_slice(&left.to_be_bytes());
        }
        Ok(())
    }

    /// Reads what [`Head::encode`] has written. `None` if it is not exactly that.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[HEAD], rest) = bytes.split_first_chunk()? else { return None };
        let (next, rest) = take_key(rest)?;
        let (&[count], mut rest) = rest.split_first_chunk()?;
        let count = usize::from(count);
        let mut earlier = Vec::new();
        earlier.try_reserve_exact(count.min(MAX_EARLIER)).ok()?;
        for _ in 0..count {
            let (name, after) = rest.split_first_chunk()?;
            let (left, after) = after.split_first_chunk()?;
            if earlier.len() < MAX_EARLIER {
                earlier.push(Earlier { name: KeyName(*name), left: u64::from_be_bytes(*left) });
            }
            rest = after;
        }
        rest.is_empty().then_some(Head { next, earlier })
    }
}

/// Appends a key in its layout: it is of use for `left` milliseconds from now on.
pub fn encode_key(key: &TicketKey, left: u64, out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
    let len = NAME_LEN.saturating_add(SECRET_LEN).saturating_add(9);
    out.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    out.push(KEY);
    put_key(key, out);
    out.extend_from_slice(&left.to_be_bytes());
    Ok(())
}

/// Reads what [`encode_key`] has written: the key, and for how many milliseconds it was of use.
/// `None` if it is not exactly that.
pub fn decode_key(bytes: &[u8]) -> Option<(TicketKey, u64)> {
    let (&[KEY], rest) = bytes.split_first_chunk()? else { return None };
    let (key, rest) = take_key(rest)?;
    Some((key, u64::from_be_bytes(rest.try_into().ok()?)))
}

fn put_key(key: &TicketKey, out: &mut Vec<u8>) {
    out.extend_from_slice(&key.name.0);
    out.extend_from_slice(&*key.secret);
}

fn take_key(bytes: &[u8]) -> Option<(TicketKey, &[u8])> {
    let (name, rest) = bytes.split_first_chunk()?;
    let (secret, rest) = rest.split_first_chunk()?;
    Some((TicketKey { name: KeyName(*name), secret: Zeroizing::new(*secret) }, rest))
}

/// What a store without a head is to be given: entries and their ttl in milliseconds.
pub struct Successor {
    /// The head, which goes where there is none.
    pub head: Head,
    /// Its ttl.
    pub ttl: u64,
    /// Each key, and for how long it is of use.
    pub keys: Vec<(TicketKey, u64)>,
    /// Whether the head has a new key. Else it is the one that is known, and that the store has lost.
    pub is_new: bool,
}

/// What follows from a head that was taken in.
#[derive(Default)]
pub struct Adopted {
    /// Whether another key encrypts than before.
    pub has_changed: bool,
    /// Keys that it names and that are not known.
    pub missing: Vec<Earlier>,
    /// Keys that are known, and that it does not name: whoever has made it has not heard of them. They
    /// are of use for so many milliseconds.
    pub orphans: Vec<(TicketKey, u64)>,
}

/// A place for a key. A reader sees by the sequence whether it was written meanwhile: that is odd as long
/// as somebody writes.
#[derive(Debug, Default)]
struct Slot {
    sequence: AtomicU64,
    name: [AtomicU64; NAME_LEN / 8],
    secret: [AtomicU64; SECRET_LEN / 8],
    /// When it is wiped, in milliseconds, or [`FREE`] or [`NEVER`].
    ends: AtomicU64,
}

impl Slot {
    /// The key, and when it ends. None while it is free, or if it does not hold still.
    fn read(&self) -> Option<(TicketKey, u64)> {
        for _ in 0..TRIES {
            let sequence = self.sequence.load(Ordering::Acquire);
            let (mut name, mut secret) = ([0; NAME_LEN], Zeroizing::new([0; SECRET_LEN]));
            load(&self.name, &mut name);
            load(&self.secret, &mut *secret);
            let ends = self.ends.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence {
                let key = TicketKey { name: KeyName(name), secret };
                return (ends != FREE).then_some((key, ends));
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Whether it has the key of that name.
    fn is(&self, name: &KeyName) -> bool {
        self.name() == *name && self.ends() != FREE
    }

    fn name(&self) -> KeyName {
        let mut name = [0; NAME_LEN];
        load(&self.name, &mut name);
        KeyName(name)
    }

    fn ends(&self) -> u64 {
        self.ends.load(Ordering::Relaxed)
    }

    fn write(&self, name: &KeyName, secret: &[u8; SECRET_LEN], ends: u64) {
        let sequence = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        store(&self.name, &name.0);
        store(&self.secret, secret);
        self.ends.store(ends, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }

    fn wipe(&self) {
        self.write(&KeyName([0; NAME_LEN]), &[0; SECRET_LEN], FREE);
    }
}

fn load(from: &[AtomicU64], to: &mut [u8]) {
    for (bytes, word) in to.chunks_exact_mut(8).zip(from) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
}

fn store(to: &[AtomicU64], from: &[u8]) {
    for (bytes, word) in from.chunks_exact(8).zip(to) {
        word.store(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
    }
}

/// The keys that a machine knows. All times are of one clock of the machine, in milliseconds, that does
/// not go back.
#[derive(Debug)]
pub struct TicketKeys {
    slots: [Slot; MAX_KEYS],
    /// Which of the slots have been used, a bit each: readers do not look at the others.
    used: AtomicU64,
    /// The places of the next key and of the one that encrypts, each of which is known if it is not
    /// [`MAX_KEYS`].
    next: AtomicU64,
    current: AtomicU64,
    /// The name of the key that is to encrypt, as the head says.
    wanted: [AtomicU64; NAME_LEN / 8],
    /// Since when the next key is the next one.
    since: AtomicU64,
    /// Until when somebody has the store to ask.
    leased: AtomicU64,
}

impl Default for TicketKeys {
    fn default() -> Self {
        TicketKeys {
            slots: array::from_fn(|_| Slot::default()),
            used: AtomicU64::new(0),
            next: AtomicU64::new(MAX_KEYS as u64),
            current: AtomicU64::new(MAX_KEYS as u64),
            wanted: Default::default(),
            since: AtomicU64::new(0),
            leased: AtomicU64::new(0),
        }
    }
}

impl TicketKeys {
    /// The key that encrypts, if there is one.
    pub fn current(&self) -> Option<TicketKey> {
        self.slot(&self.current)?.read().map(|(key, _)| key)
    }

    /// Whether there is a key that encrypts.
    pub fn has_current(&self) -> bool {
        self.slot(&self.current).is_some_and(|slot| slot.ends() != FREE)
    }

    /// The key of that name, if it is good at `now`, and whether it is the one that encrypts.
    pub fn find(&self, name: &KeyName, now: u64) -> Option<(TicketKey, bool)> {
        let place = self.place(name)?;
        let (key, ends) = self.slots.get(place)?.read()?;
        let is_current = self.current.load(Ordering::Relaxed) == place as u64;
        (key.name == *name && ends > now).then_some((key, is_current))
    }

    /// Whether there is a key of that name that is good at `now`.
    pub fn knows(&self, name: &KeyName, now: u64) -> bool {
        self.place(name).and_then(|place| self.slots.get(place)).is_some_and(|it| it.ends() > now)
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.ends() != FREE).count()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For how long the next key has been the next one at `now`. `None` if none is known.
    pub fn age(&self, now: u64) -> Option<u64> {
        self.slot(&self.next).filter(|slot| slot.ends() != FREE)?;
        Some(now.saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// Has the caller, of the machine's workers, ask the store at `now`, and no other for `pause`
    /// milliseconds. `Err` is until when another one has that to do.
    pub fn lease(&self, now: u64, pause: u64) -> Result<(), u64> {
        let leased = self.leased.load(Ordering::Relaxed);
        let until = now.saturating_add(pause);
        // A time that lies further ahead is of another pause.
        if leased > now && leased <= until {
            return Err(leased);
        }
        self.leased
            .compare_exchange(leased, until, Ordering::Relaxed, Ordering::Relaxed)
            .map(|_| ())
    }

    /// Lets another worker ask from then on, or the same one.
    pub fn lend_until(&self, until: u64) {
        self.leased.store(until, Ordering::Relaxed);
    }

    /// The slot of a role. Acquire: who hears of a key has to see it. The role releases it, and what came
    /// before.
    fn slot(&self, role: &AtomicU64) -> Option<&Slot> {
        self.slots.get(usize::try_from(role.load(Ordering::Acquire)).ok()?)
    }

    /// The place of a key.
    fn place(&self, name: &KeyName) -> Option<usize> {
        // Acquire: insert() releases the key.
        let mut used = self.used.load(Ordering::Acquire);
        while used != 0 {
            let place = used.trailing_zeros() as usize;
            if self.slots.get(place)?.is(name) {
                return Some(place);
            }
            used &= used.wrapping_sub(1);
        }
        None
    }

    /// Takes in the head of the store. Under the mutex.
    pub fn adopt(&self, head: &Head, now: u64, times: &Times) -> Adopted {
        self.wipe(now);
        let mut adopted = Adopted::default();
        let is_new = self.slot(&self.next).is_none_or(|slot| !slot.is(&head.next.name));
        if is_new {
            let known = self.slots.iter().filter_map(Slot::read);
            let orphans = known.filter(|(key, _)| !head.names(&key.name));
            if adopted.orphans.try_reserve_exact(MAX_KEYS).is_ok() {
                adopted.orphans.extend(orphans.map(|(key, ends)| {
                    let left = if ends == NEVER { times.keep } else { ends.saturating_sub(now) };
                    (key, left)
                }));
            }
        }
        let Some(next) = self.insert(&head.next, NEVER) else { return adopted };
        let first = head.earlier.first().map_or(head.next.name, |earlier| earlier.name);
        store(&self.wanted, &first.0);
        if is_new {
            self.since.store(now, Ordering::Relaxed);
        }
        self.next.store(next as u64, Ordering::Release);
        adopted.has_changed = self.place(&first).is_some_and(|place| self.encrypt_with(place));
        self.retire(now, times);
        let unknown = |earlier: &&Earlier| self.place(&earlier.name).is_none();
        if adopted.missing.try_reserve_exact(head.earlier.len()).is_ok() {
            adopted.missing.extend(head.earlier.iter().filter(unknown));
        }
        adopted
    }

    /// Has the key in a place encrypt. Whether another one did before, or none.
    fn encrypt_with(&self, place: usize) -> bool {
        self.current.swap(place as u64, Ordering::AcqRel) != place as u64
    }

    /// Takes in a key that is of use for `left` milliseconds. Under the mutex. Whether another key encrypts
    /// than before.
    pub fn learn(&self, key: &TicketKey, left: u64, now: u64, times: &Times) -> bool {
        self.wipe(now);
        if self.place(&key.name).is_some() || left == 0 {
            return false;
        }
        let mut wanted = [0; NAME_LEN];
        load(&self.wanted, &mut wanted);
        let encrypts = key.name.0 == wanted;
        let ends = now.saturating_add(left.min(times.whole()));
        let Some(place) = self.insert(key, if encrypts { NEVER } else { ends }) else {
            return false;
        };
        let has_changed = encrypts && self.encrypt_with(place);
        if has_changed {
            self.retire(now, times);
        }
        has_changed
    }

    /// Wipes what has ended, and says what that was. Under the mutex.
    pub fn wipe(&self, now: u64) -> Vec<KeyName> {
        self.wipe_if(|slot| {
            // Whoever has left it odd has died in the middle.
            let is_torn = slot.sequence.load(Ordering::Relaxed) & 1 != 0;
            is_torn || (slot.ends() != FREE && slot.ends() <= now)
        })
    }

    /// Wipes the keys whose names are none of `ours`, also those that encrypt. Under the mutex.
    pub fn retain(&self, ours: impl Fn(&KeyName) -> bool) {
        let mut wanted = KeyName([0; NAME_LEN]);
        load(&self.wanted, &mut wanted.0);
        if !ours(&wanted) {
            store(&self.wanted, &[0; NAME_LEN]);
        }
        self.wipe_if(|slot| slot.ends() != FREE && !ours(&slot.name()));
    }

    fn wipe_if(&self, ends: impl Fn(&Slot) -> bool) -> Vec<KeyName> {
        let mut wiped = Vec::new();
        for (place, slot) in self.slots.iter().enumerate() {
            if !ends(slot) {
                continue;
            }
            // The next key in this place is none of these.
            for role in [&self.next, &self.current] {
                if role.load(Ordering::Relaxed) == place as u64 {
                    role.store(MAX_KEYS as u64, Ordering::Relaxed);
                }
            }
            if wiped.try_reserve(1).is_ok() {
                wiped.push(slot.name());
            }
            slot.wipe();
        }
        wiped
    }

    /// What the store is to be given if it has no head at `now`. `fresh` makes keys.
    pub fn successor(
        &self,
        now: u64,
        times: &Times,
        mut fresh: impl FnMut() -> Result<TicketKey, Failed>,
    ) -> Result<Successor, Failed> {
        let current = self.current();
        let known = self.slot(&self.next).and_then(Slot::read);
        let age = self.age(now).unwrap_or_default();
        // The store has lost it. Others may have it already, so that it is used as it was meant to.
        let is_new = !(known.is_some() && current.is_some() && age < times.period / 2);
        let mut keys = Vec::new();
        keys.try_reserve_exact(MAX_KEYS.saturating_add(2)).map_err(|_| Failed)?;
        let encrypts = match (known, current, is_new) {
            (Some((next, _)), Some(current), false) => {
                keys.push((next, times.whole()));
                current
            }
            (Some((next, _)), _, _) => {
                keys.push((fresh()?, times.whole().saturating_add(times.period)));
                next
            }
            (None, Some(current), _) => {
                keys.push((fresh()?, times.whole().saturating_add(times.period)));
                current
            }
            (None, None, _) => {
                keys.push((fresh()?, times.whole().saturating_add(times.period)));
                fresh()?
            }
        };
        keys.push((encrypts, times.whole()));
        for slot in &self.slots {
            let Some((key, ends)) = slot.read() else { continue };
            let left = if ends == NEVER { times.keep } else { ends.saturating_sub(now) };
            if left > 0 && !keys.iter().any(|(other, _)| other.name == key.name) {
                keys.push((key, left));
            }
        }
        // Those that are of use for longest come first: they were the last ones.
        if let Some(kept) = keys.get_mut(2..) {
            kept.sort_unstable_by_key(|(_, left)| u64::MAX.saturating_sub(*left));
        }
        let next = keys.first().ok_or(Failed)?;
        let next = TicketKey { name: next.0.name, secret: next.0.secret.clone() };
        let mut earlier = Vec::new();
        earlier.try_reserve_exact(keys.len()).map_err(|_| Failed)?;
        let rest = keys.iter().skip(1);
        earlier.extend(rest.map(|(key, left)| Earlier { name: key.name, left: *left }));
        let ttl = if is_new { times.period } else { times.period.saturating_sub(age).max(1) };
        Ok(Successor { head: Head { next, earlier }, ttl, keys, is_new })
    }

    /// Puts a key in its place, or in a free one, or in that of the key that ends first.
    fn insert(&self, key: &TicketKey, ends: u64) -> Option<usize> {
        if let Some(place) = self.place(&key.name) {
            return Some(place);
        }
        // A free place ends before all others, and keys that encrypt, or will, never do.
        let first = self.slots.iter().enumerate().min_by_key(|(_, slot)| slot.ends());
        let (place, slot) = first.filter(|(_, slot)| slot.ends() != NEVER)?;
        slot.write(&key.name, &key.secret, ends);
        self.used.fetch_or(1_u64.checked_shl(place as u32)?, Ordering::Release);
        Some(place)
    }

    /// Lets what does not encrypt, and is not going to, end some time from now on.
    fn retire(&self, now: u64, times: &Times) {
        let roles = [&self.next, &self.current].map(|role| role.load(Ordering::Relaxed));
        for (place, slot) in self.slots.iter().enumerate() {
            let has_role = roles.contains(&(place as u64));
            match slot.ends() {
                FREE => {}
                NEVER if !has_role => {
                    slot.ends.store(now.saturating_add(times.keep), Ordering::Relaxed);
                }
                _ if has_role => slot.ends.store(NEVER, Ordering::Relaxed),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    const TIMES: Times = Times { period: 1000, keep: 3000 };

    fn key(n: u8) -> TicketKey {
        TicketKey::new(KeyName([n; NAME_LEN]), |secret| {
            secret.fill(n);
            Ok(())
        })
        .unwrap()
    }

    fn head(next: u8, earlier: &[u8]) -> Head {
        let earlier = earlier.iter().map(|&n| Earlier { name: KeyName([n; NAME_LEN]), left: 3000 });
        Head { next: key(next), earlier: earlier.collect() }
    }

    fn current(keys: &TicketKeys) -> Option<u8> {
        keys.current().map(|key| key.name.0[0])
    }

    fn knows(keys: &TicketKeys, n: u8, now: u64) -> bool {
        let found = keys.find(&KeyName([n; NAME_LEN]), now);
        assert!(found.as_ref().is_none_or(|(key, _)| *key.secret == [n; SECRET_LEN]));
        found.is_some()
    }

    #[test]
    fn a_head_and_a_key_come_back_as_they_were() {
        let mut bytes = Vec::new();
        head(3, &[2, 1]).encode(&mut bytes).unwrap();
        let read = Head::decode(&bytes).unwrap();
        assert_eq!(read.next.name, KeyName([3; NAME_LEN]));
        assert_eq!(*read.next.secret, [3; SECRET_LEN]);
        assert_eq!(read.earlier.iter().map(|one| one.left).collect::<Vec<_>>(), [3000, 3000]);
        assert_eq!(read.earlier[1].name, KeyName([1; NAME_LEN]));

        let mut one = Vec::new();
        encode_key(&key(7), 42, &mut one).unwrap();
        let (read, left) = decode_key(&one).unwrap();
        assert_eq!((read.name, left), (KeyName([7; NAME_LEN]), 42));
        assert_eq!((read.cipher_key(), read.mac_key()), (&[7; 32][..], &[7; 32][..]));
    }

    #[test]
    fn nothing_else_is_read() {
        let (mut bytes, mut one) = (Vec::new(), Vec::new());
        head(3, &[2, 1]).encode(&mut bytes).unwrap();
        encode_key(&key(7), 42, &mut one).unwrap();
        for len in 0..bytes.len() {
            assert!(Head::decode(&bytes[..len]).is_none(), "{len}");
        }
        for len in 0..one.len() {
            assert!(decode_key(&one[..len]).is_none(), "{len}");
        }
        assert!(Head::decode(&one).is_none() && decode_key(&bytes).is_none());
        bytes.push(0);
        one.push(0);
        assert!(Head::decode(&bytes).is_none() && decode_key(&one).is_none());
    }

    #[test]
    fn a_key_encrypts_a_period_after_it_became_known_and_decrypts_for_some_time() {
        let keys = TicketKeys::default();
        assert_eq!(current(&keys), None);
        let adopted = keys.adopt(&head(1, &[0]), 0, &TIMES);
        assert_eq!(adopted.missing, [Earlier { name: KeyName([0; NAME_LEN]), left: 3000 }]);
        assert_eq!(current(&keys), None, "it is not known yet");
        assert!(!adopted.has_changed);
        assert!(keys.learn(&key(0), 3000, 10, &TIMES));
        assert!(
            !keys.learn(&key(0), 3000, 10, &TIMES)
                && !keys.adopt(&head(1, &[0]), 20, &TIMES).has_changed
        );
        assert_eq!(current(&keys), Some(0));
        assert!(knows(&keys, 1, 10), "learned ahead");
        let adopted = keys.adopt(&head(2, &[1, 0]), 1000, &TIMES);
        assert!(adopted.missing.is_empty() && adopted.has_changed);
        assert_eq!(current(&keys), Some(1));
        assert!(knows(&keys, 0, 3999) && !knows(&keys, 0, 4000));
        keys.adopt(&head(3, &[2, 1, 0]), 2000, &TIMES);
        assert_eq!((current(&keys), keys.len()), (Some(2), 4));
        keys.wipe(4000);
        assert_eq!(keys.len(), 3, "wiped");
        keys.wipe(5000);
        assert_eq!(keys.len(), 2, "what encrypts and what is next have no end");
    }

    #[test]
    fn the_head_says_which_key_encrypts_even_an_earlier_one() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        keys.adopt(&head(2, &[1, 0]), 1000, &TIMES);
        keys.adopt(&head(1, &[0]), 1100, &TIMES);
        assert_eq!(current(&keys), Some(0));
        keys.wipe(100_000);
        assert!(knows(&keys, 0, 100_000) && knows(&keys, 1, 100_000) && !knows(&keys, 2, 100_000));
    }

    #[test]
    fn where_the_key_that_encrypts_is_not_known_the_last_one_goes_on() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        keys.adopt(&head(9, &[8]), 1000, &TIMES);
        assert_eq!(current(&keys), Some(0));
        keys.learn(&key(8), 3000, 1100, &TIMES);
        assert_eq!(current(&keys), Some(8));
    }

    #[test]
    fn keys_of_others_are_forgotten_even_those_that_encrypt() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.learn(&key(5), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        keys.retain(|_| true);
        assert_eq!((current(&keys), keys.len()), (Some(0), 3));
        keys.retain(|name| name.0[0] == 5);
        assert_eq!((current(&keys), keys.len(), keys.age(10)), (None, 1, None));
        assert!(knows(&keys, 5, 10));
        keys.learn(&key(6), 3000, 10, &TIMES);
        assert_eq!(current(&keys), None, "a place that is free has no role");
        let given = keys.successor(10, &TIMES, || Ok(key(9))).unwrap();
        assert!(given.is_new);
        assert!(given.keys.iter().all(|(key, _)| ![0, 1].contains(&key.name.0[0])));
    }

    #[test]
    fn what_is_learned_for_no_time_is_not_kept_and_nothing_for_longer_than_a_whole_life() {
        let keys = TicketKeys::default();
        keys.learn(&key(1), 0, 0, &TIMES);
        assert!(keys.is_empty());
        keys.learn(&key(1), u64::MAX, 0, &TIMES);
        assert!(knows(&keys, 1, 4999) && !knows(&keys, 1, 5000));
    }

    #[test]
    fn a_full_table_gives_up_what_ends_first_and_never_what_encrypts() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        for n in 2..=MAX_KEYS as u8 {
            keys.learn(&key(n), 1000 + u64::from(n), 0, &TIMES);
        }
        assert_eq!(keys.len(), MAX_KEYS);
        assert!(knows(&keys, 0, 0) && knows(&keys, 1, 0));
        assert!(!knows(&keys, 2, 0) && knows(&keys, 3, 0));
    }

    #[test]
    fn one_worker_at_a_time_asks() {
        let keys = TicketKeys::default();
        assert_eq!(keys.lease(1000, 100), Ok(()));
        assert_eq!(keys.lease(1000, 100), Err(1100));
        assert_eq!(keys.lease(1099, 100), Err(1100));
        assert_eq!(keys.lease(1100, 100), Ok(()));
        assert_eq!(keys.lease(1101, 10), Ok(()), "a pause that is shorter now");
        keys.lend_until(1105);
        assert_eq!(keys.lease(1104, 100), Err(1105));
        assert_eq!(keys.lease(1105, 100), Ok(()));
    }

    #[test]
    fn a_store_that_has_lost_a_young_head_gets_it_back() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        let none = || -> Result<TicketKey, Failed> { panic!("no new key") };
        let given = keys.successor(300, &TIMES, none).unwrap();
        assert!(!given.is_new);
        assert_eq!((given.head.next.name, given.ttl), (KeyName([1; NAME_LEN]), 700));
        assert_eq!(given.head.earlier[0].name, KeyName([0; NAME_LEN]));
        assert_eq!(given.keys.len(), 2);
        assert!(keys.successor(600, &TIMES, || Ok(key(9))).unwrap().is_new);
    }

    #[test]
    fn a_machine_without_keys_makes_two() {
        let mut made = vec![key(1), key(2)];
        let keys = TicketKeys::default();
        let given = keys.successor(0, &TIMES, || made.pop().ok_or(Failed)).unwrap();
        assert!(given.is_new && given.ttl == 1000);
        assert_eq!(given.head.next.name, KeyName([2; NAME_LEN]));
        assert_eq!(given.head.earlier, [Earlier { name: KeyName([1; NAME_LEN]), left: 5000 }]);
        assert!(keys.is_empty(), "another machine may have been first");
    }

    /// A store: what it has and until when.
    #[derive(Default)]
    struct Store {
        head: Option<(Vec<u8>, u64)>,
        keys: HashMap<[u8; NAME_LEN], (Vec<u8>, u64)>,
    }

    impl Store {
        fn put(&mut self, key: &TicketKey, left: u64, now: u64) {
            let mut bytes = Vec::new();
            encode_key(key, left, &mut bytes).unwrap();
            self.keys.insert(key.name.0, (bytes, now + left));
        }

        /// What a worker does when it is its turn.
        fn visit(&mut self, keys: &TicketKeys, now: u64, number: &mut u64) {
            self.keys.retain(|_, (_, ends)| *ends > now);
            self.head = self.head.take().filter(|(_, ends)| *ends > now);
            keys.wipe(now);
            if self.head.is_none() {
                let fresh = || {
                    *number += 1;
                    let mut name = [0; NAME_LEN];
                    name[..8].copy_from_slice(&number.to_be_bytes());
                    TicketKey::new(KeyName(name), |secret| {
                        secret.fill(*number as u8);
                        Ok(())
                    })
                };
                let given = keys.successor(now, &TIMES, fresh).unwrap();
                for (key, left) in &given.keys {
                    self.put(key, *left, now);
                }
                let mut bytes = Vec::new();
                given.head.encode(&mut bytes).unwrap();
                self.head = Some((bytes, now + given.ttl));
            }
            let head = Head::decode(&self.head.as_ref().unwrap().0).unwrap();
            let adopted = keys.adopt(&head, now, &TIMES);
            for (key, left) in &adopted.orphans {
                self.put(key, *left, now);
            }
            for missing in adopted.missing {
                if let Some((bytes, _)) = self.keys.get(&missing.name.0) {
                    let (key, left) = decode_key(bytes).unwrap();
                    keys.learn(&key, left, now, &TIMES);
                }
            }
        }
    }

    #[test]
    fn no_machine_that_is_there_refuses_what_another_one_encrypts() {
        // Machines that come and go, and a store that forgets and is away. Of those that have been in
        // touch within the last half period, and since the store has last forgotten, each knows what
        // the others encrypt with, or finds it in the store.
        let mut random = 1_u64;
        let mut draw = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            (random >> 33) % limit
        };
        let (mut store, mut number) = (Store::default(), 0);
        let mut machines: Vec<(TicketKeys, u64)> = Vec::new();
        let (mut checks, mut by_name) = (0_u64, 0_u64);
        let (mut now, mut changes, mut last, mut lost) = (10_000, 0, None, 0);
        for _ in 0..60_000 {
            now += 5;
            match draw(10_000) {
                0 => store.head = None,
                1 => (store, lost) = (Store::default(), now),
                2 => now += draw(20_000),
                3..6 if machines.len() > 2 => {
                    machines.swap_remove(draw(machines.len() as u64) as usize);
                }
                6..12 if machines.len() < 8 => machines.push((TicketKeys::default(), 0)),
                _ => {}
            }
            let n = draw(8) as usize;
            if let Some((keys, seen)) = machines.get_mut(n) {
                store.visit(keys, now, &mut number);
                *seen = now;
            }
            let there =
                |(_, seen): &&(TicketKeys, u64)| now - seen < TIMES.period / 2 && *seen > lost;
            for (from, _) in machines.iter().filter(there) {
                let Some(key) = from.current() else { continue };
                if last != Some(key.name) {
                    (changes, last) = (changes + 1, Some(key.name));
                }
                for (to, _) in machines.iter().filter(there) {
                    let knows = to.knows(&key.name, now);
                    checks += 1;
                    by_name += u64::from(!knows);
                    assert!(knows || store.keys.contains_key(&key.name.0), "{now}");
                }
            }
        }
        assert!(changes > 250, "{changes}");
        assert!(by_name * 1000 < checks, "{by_name} of {checks}");
    }

    #[test]
    fn no_key_outlives_its_time() {
        let (mut store, mut number) = (Store::default(), 0);
        let (one, other) = (TicketKeys::default(), TicketKeys::default());
        let mut born = HashMap::new();
        for now in (10_000..200_000).step_by(50) {
            store.visit(&one, now, &mut number);
            if now % 700 == 0 {
                store.visit(&other, now, &mut number);
            }
            other.wipe(now);
            for slot in one.slots.iter().chain(&other.slots) {
                let Some((key, _)) = slot.read() else { continue };
                let age = now - *born.entry(key.name.0).or_insert(now);
                // Next, encrypting, kept; and as long as somebody has not been told.
                assert!(age <= 2 * TIMES.period + TIMES.keep + 1000, "{age}");
            }
        }
        assert!(born.len() > 150);
    }

    #[test]
    fn readers_get_whole_keys() {
        let keys = Arc::new(TicketKeys::default());
        let done = Arc::new(AtomicBool::new(false));
        let reader = {
            let (keys, done) = (Arc::clone(&keys), Arc::clone(&done));
            thread::spawn(move || {
                let mut seen = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    if let Some(key) = keys.current() {
                        assert!(key.secret.iter().all(|&byte| byte == key.name.0[0]));
                        seen += 1;
                    }
                }
                seen
            })
        };
        for round in 0..20_000_u64 {
            let n = (round % 250) as u8;
            keys.adopt(&head(n + 1, &[n]), round * 1000, &TIMES);
            keys.learn(&key(n), 3000, round * 1000, &TIMES);
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    }

    /// Not every processor shows others what is written in the order that it is written in, nor does Miri.
    #[test]
    fn who_hears_of_a_key_sees_it() {
        for _ in 0..20 {
            let keys = Arc::new(TicketKeys::default());
            let writer = {
                let keys = Arc::clone(&keys);
                thread::spawn(move || {
                    keys.learn(&key(1), 3000, 5000, &TIMES);
                    keys.adopt(&head(2, &[1]), 5000, &TIMES);
                })
            };
            let waits_for = |role: &AtomicU64| {
                while role.load(Ordering::Relaxed) == MAX_KEYS as u64 {
                    thread::yield_now();
                }
            };
            waits_for(&keys.next);
            assert_eq!(keys.age(5000), Some(0));
            waits_for(&keys.current);
            assert_eq!(current(&keys), Some(1));
            assert!(knows(&keys, 1, 5000) && knows(&keys, 2, 5000));
            writer.join().unwrap();
        }
    }

    #[test]
    fn a_key_that_was_left_in_the_middle_is_wiped() {
        let keys = TicketKeys::default();
        keys.learn(&key(0), 3000, 0, &TIMES);
        keys.adopt(&head(1, &[0]), 0, &TIMES);
        let place = keys.place(&KeyName([0; NAME_LEN])).unwrap();
        keys.slots[place].sequence.fetch_add(1, Ordering::Relaxed);
        assert_eq!(current(&keys), None, "nobody reads it");
        keys.wipe(1);
        assert!(!keys.has_current());
        assert_eq!(keys.adopt(&head(1, &[0]), 1, &TIMES).missing.len(), 1, "it is asked for again");
    }
}
