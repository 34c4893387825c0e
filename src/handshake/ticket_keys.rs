//! `ssl_session_ticket_keys`: the keys of stateless tickets that the fleet shares, kept in a tier.
//!
//! One worker of a machine at a time asks the tier, and has what it learns put down in shared memory,
//! where all of them read it. What the keys are, and when they change, is in `session_core::ticket_keys`.

use core::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::vec::Vec;

use session_core::codec::OutOfMemory;
use session_core::crypto::Failed;
use session_core::key_ring::{Entry, KeyRing};
use session_core::outcome::Outcome;
use session_core::throttle::Throttle;
use session_core::ticket_keys::{
    Adopted, Head, KeyName, MAX_KEYS, Successor, TicketKey, TicketKeys, Times, decode_key,
    encode_key,
};
use zeroize::Zeroizing;

use super::messages::pass;
use crate::ffi::clock;
use crate::ffi::crypto::Evp;
use crate::ffi::event::{Event, Handle};
use crate::ffi::log::Log;
use crate::ffi::shared_value::SharedValue;
use crate::ffi::turn::Turn;
use crate::log_at;
use crate::net::backend::Waiter;
use crate::tier::Tier;

/// How often the tier is asked in a period.
const ASKED_IN_PERIOD: u64 = 8;
/// The bounds of the time between two questions, in milliseconds.
const PAUSES: (u64, u64) = (100, 60_000);
/// When the tier is asked again after it was given something, in milliseconds.
const SOON: u64 = 50;
/// When it is asked again that had no answer, in milliseconds.
const AGAIN: u64 = 1000;
/// How many names of keys that clients have are asked for at once.
const MAX_WANTED: usize = 8;
/// How long a key that the tier does not have is not asked for again, in milliseconds.
const FORGOTTEN: u64 = 10_000;

/// How many names that are ours are remembered: of the key that encrypts, and those before it.
const OURS: usize = 4;

/// In place of the number of a key: the head.
const HEAD: usize = usize::MAX;

/// Keeps the keys of a machine up to date.
pub struct Keeper {
    tier: Rc<dyn Tier>,
    ring: Rc<KeyRing<Evp>>,
    zone: SharedValue<TicketKeys>,
    times: Times,
    /// The configuration that it began in.
    began: Cell<usize>,
    tick: Event<Keeper, Tick>,
    /// Clients have keys that are not known.
    want: Event<Keeper, Want>,
    /// Names that keys of the ring have made, the last one first.
    ours: Cell<[Option<KeyName>; OURS]>,
    /// Names that are asked for, by number.
    asked: RefCell<Vec<Option<KeyName>>>,
    /// Names to be asked for, and those that were not there, with the time until when that holds.
    wanted: RefCell<Vec<KeyName>>,
    missed: RefCell<Vec<(KeyName, u64)>>,
    /// Whether the log has it that the keys do not change.
    said_old: Cell<bool>,
    invalid: RefCell<Throttle>,
    failed: RefCell<Throttle>,
}

struct Tick;
struct Want;

impl Keeper {
    /// Keeps the keys that lie in a tier, and what is known of them in a zone. They are sealed with
    /// `ring`, which has keys.
    pub fn new(
        tier: Rc<dyn Tier>,
        ring: Rc<KeyRing<Evp>>,
        zone: SharedValue<TicketKeys>,
        times: Times,
    ) -> Rc<Self> {
        Rc::new_cyclic(|this: &Weak<Keeper>| Keeper {
            tier,
            ring,
            zone,
            times,
            began: Cell::new(0),
            tick: Event::new(this.clone()),
            want: Event::new(this.clone()),
            ours: Cell::new([None; OURS]),
            asked: RefCell::new(Vec::new()),
            wanted: RefCell::new(Vec::new()),
            missed: RefCell::new(Vec::new()),
            said_old: Cell::new(false),
            invalid: RefCell::new(Throttle::new()),
            failed: RefCell::new(Throttle::new()),
        })
    }

    /// The tier.
    pub fn tier(&self) -> &Rc<dyn Tier> {
        &self.tier
    }

    /// The worker begins.
    pub fn begin(&self) {
        self.began.set(clock::configuration());
        self.forget_foreign();
        let now = clock::now_ms();
        // Whoever had to ask may not have known what this one does not know any more.
        if let Some(keys) = self.zone.get().filter(|keys| !keys.has_current()) {
            keys.lend_until(now);
        }
        self.tick.at(now, false);
    }

    /// The worker exits.
    pub fn close(&self) {
        self.tick.cancel();
    }

    /// Whether another configuration has taken the place of this one, or is about to: that may not have the
    /// zone any more, or not the key of the ring that has named what was asked for.
    fn is_over(&self) -> bool {
        clock::is_exiting() || clock::configuration() != self.began.get()
    }

    /// Forgets the keys that a configuration before this one had, and that belong to no key of the ring
    /// any more: whoever has taken that away wants their tickets to be void.
    fn forget_foreign(&self) {
        self.zone.alone(|keys| keys.retain(|name| self.ring.has_named(name)));
    }

    /// Whether there is a key to encrypt with.
    pub fn has_current(&self) -> bool {
        self.zone.get().is_some_and(TicketKeys::has_current)
    }

    /// The key that encrypts.
    pub fn current(&self) -> Option<TicketKey> {
        // As in find().
        self.zone.get()?.current().filter(|key| self.is_ours(&key.name))
    }

    /// The key of that name, and whether it is the one that encrypts. One that is ours and not known is
    /// asked for: the next client that has it may find it.
    pub fn find(&self, name: &KeyName) -> Option<(TicketKey, bool)> {
        // A worker of the configuration before may have put it down again.
        if !self.is_ours(name) {
            return None;
        }
        let found = self.zone.get()?.find(name, clock::now_ms());
        if found.is_none() {
            self.want(name);
        }
        found
    }

    /// Whether a key of the ring has made a name. Those of the last ones are remembered: that is a MAC less
    /// for a handshake.
    pub fn is_ours(&self, name: &KeyName) -> bool {
        let mut ours = self.ours.get();
        if ours.contains(&Some(*name)) {
            return true;
        }
        let is_ours = self.ring.has_named(name);
        if is_ours {
            ours.rotate_right(1);
            if let Some(first) = ours.first_mut() {
                *first = Some(*name);
            }
            self.ours.set(ours);
        }
        is_ours
    }

    /// Whether the key of that name is known.
    pub fn is_known(&self, name: &KeyName) -> bool {
        self.zone.get().is_some_and(|keys| keys.knows(name, clock::now_ms()))
    }

    /// Asks for a key that is ours and not known, on behalf of a handshake. Whether that waits for
    /// [`Keeper::heard`].
    pub fn ask_now(&self, name: &KeyName, waiter: Waiter) -> bool {
        let Some(entry) = self.ring.ticket_entry(name).filter(|_| !self.tier.is_local()) else {
            return false;
        };
        !self.is_missed(name) && self.tier.fetch_there(entry.name(), waiter).is_ok()
    }

    /// The tier has answered a question for a key.
    pub fn heard(&self, name: &KeyName, outcome: Outcome, value: &[u8]) {
        match outcome {
            Outcome::Hit => self.key_found(name, value),
            Outcome::Miss => {
                let now = clock::now_ms();
                if let Ok(mut missed) = self.missed.try_borrow_mut() {
                    missed.retain(|(_, until)| *until > now);
                    if missed.len() < MAX_KEYS && missed.try_reserve(1).is_ok() {
                        missed.push((*name, now.saturating_add(FORGOTTEN)));
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether the tier did not have a key when it was asked last.
    fn is_missed(&self, name: &KeyName) -> bool {
        let now = clock::now_ms();
        let is = |(other, until): &(KeyName, u64)| other == name && *until > now;
        self.missed.try_borrow().is_ok_and(|missed| missed.iter().any(is))
    }

    /// Asks for a key that is ours and not known, in an event of its own: the next client that has it may
    /// find it.
    pub fn want(&self, name: &KeyName) {
        let now = clock::now_ms();
        let (Ok(mut wanted), Ok(mut missed)) =
            (self.wanted.try_borrow_mut(), self.missed.try_borrow_mut())
        else {
            return;
        };
        missed.retain(|(_, until)| *until > now);
        let is_known = wanted.contains(name) || missed.iter().any(|(other, _)| other == name);
        if !is_known && wanted.len() < MAX_WANTED && wanted.try_reserve(1).is_ok() {
            wanted.push(*name);
            self.want.post();
        }
    }

    /// The time between two questions, in milliseconds.
    fn pause(&self) -> u64 {
        let (least, most) = PAUSES;
        (self.times.period / ASKED_IN_PERIOD).clamp(least, most)
    }

    /// Has the tier asked again in so many milliseconds, by this worker or another one.
    fn ask_in(&self, pause: u64) {
        let next = clock::now_ms().saturating_add(pause);
        if let Some(keys) = self.zone.get() {
            keys.lend_until(next);
        }
        self.tick.at(next, false);
    }

    /// Asks for an entry. What is heard is taken in at once if the tier is local.
    fn ask(&self, entry: &Entry, index: usize) {
        let mut value = Zeroizing::new(Vec::new());
        let outcome = match self.tier.fetch_now(entry.name(), &mut value) {
            Some(outcome) => outcome,
            None => match self.tier.fetch_there(entry.name(), Waiter::TicketKeys { index }) {
                Ok(()) => return,
                Err(outcome) => outcome,
            },
        };
        self.answered(index, outcome, &value);
    }

    fn ask_for_key(&self, name: &KeyName) {
        let Some(entry) = self.ring.ticket_entry(name) else { return };
        let Some(index) = self.number(name) else { return };
        self.ask(&entry, index);
    }

    /// The number of a name that is about to be asked for; none if it is asked for already.
    fn number(&self, name: &KeyName) -> Option<usize> {
        let mut asked = self.asked.try_borrow_mut().ok()?;
        if asked.contains(&Some(*name)) {
            return None;
        }
        if let Some((index, place)) = asked.iter_mut().enumerate().find(|(_, it)| it.is_none()) {
            *place = Some(*name);
            return Some(index);
        }
        if asked.len() >= MAX_KEYS || asked.try_reserve(1).is_err() {
            return None;
        }
        asked.push(Some(*name));
        asked.len().checked_sub(1)
    }

    /// The tier has answered.
    pub fn answered(&self, index: usize, outcome: Outcome, value: &[u8]) {
        if self.is_over() {
            return;
        }
        if index == HEAD {
            match outcome {
                Outcome::Hit => self.head_found(value),
                Outcome::Miss => self.succeed(false),
                _ => self.ask_in(AGAIN.min(self.pause())),
            }
            return self.look_at_age();
        }
        let name = self.asked.try_borrow_mut().ok().and_then(|mut asked| {
            // Nobody else has the number from now on.
            asked.get_mut(index).and_then(Option::take)
        });
        let Some(name) = name else { return };
        self.heard(&name, outcome, value);
    }

    fn head_found(&self, value: &[u8]) {
        let entry = self.ring.ticket_head();
        let head = entry.and_then(|entry| self.opened(&entry, value, Head::decode));
        let Some(head) = head else { return self.is_invalid() };
        // It was made when the ring had a key that was taken away since.
        let encrypts = head.earlier.first().map_or(&head.next.name, |earlier| &earlier.name);
        if !self.ring.has_named(&head.next.name) || !self.ring.has_named(encrypts) {
            return self.succeed(true);
        }
        let now = clock::now_ms();
        let Some(Adopted { has_changed, missing, orphans }) =
            self.zone.alone(|keys| keys.adopt(&head, now, &self.times))
        else {
            return;
        };
        for (key, left) in &orphans {
            self.put(key, *left);
        }
        for earlier in &missing {
            if !self.is_missed(&earlier.name) {
                self.ask_for_key(&earlier.name);
            }
        }
        if has_changed {
            self.has_changed();
        }
    }

    /// Another key encrypts than before.
    fn has_changed(&self) {
        let (tier, keys) = (self.tier.name(), self.zone.get().map_or(0, TicketKeys::len));
        log_at!(
            Log::cycle(),
            Info,
            "SSL session ticket key has changed in \"{tier}\", {keys} are known"
        );
    }

    fn key_found(&self, name: &KeyName, value: &[u8]) {
        let key = self.ring.ticket_entry(name).and_then(|entry| {
            self.opened(&entry, value, |bytes| {
                decode_key(bytes).filter(|(key, _)| key.name == *name)
            })
        });
        match key {
            Some((key, left)) => {
                let now = clock::now_ms();
                let learn = |keys: &TicketKeys| keys.learn(&key, left, now, &self.times);
                if self.zone.alone(learn).unwrap_or(false) {
                    self.has_changed();
                }
            }
            None => self.is_invalid(),
        }
    }

    /// What an envelope has in it, if it opens and is read.
    fn opened<T>(
        &self,
        entry: &Entry,
        value: &[u8],
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let mut room = Zeroizing::new(Vec::new());
        read(self.ring.open(entry, value, &mut room).ok()?)
    }

    /// Gives the tier a head, where it has none or in place of that which it has.
    fn succeed(&self, replaces: bool) {
        let now = clock::now_ms();
        let Some(keys) = self.zone.get() else { return };
        let successor = keys.successor(now, &self.times, || self.ring.new_ticket_key());
        let given = successor.and_then(|Successor { head, ttl, keys, .. }| {
            // First, so that who finds the head finds them.
            for (key, left) in &keys {
                self.put(key, *left);
            }
            let entry = self.ring.ticket_head().ok_or(Failed)?;
            let sealed = self.sealed(&entry, |out| head.encode(out))?;
            let put = |name| match replaces {
                true => self.tier.put(name, &sealed, expires(ttl)),
                false => self.tier.add(name, &sealed, expires(ttl)),
            };
            Ok(put(entry.name()))
        });
        match given {
            Ok(true) => self.ask_in(SOON),
            Ok(false) => self.ask_in(AGAIN.min(self.pause())),
            Err(Failed) => {
                if let Some(times) = pass(&self.failed) {
                    log_at!(
                        Log::cycle(),
                        Alert,
                        "SSL session ticket key could not be made, {times} times"
                    );
                }
            }
        }
    }

    /// Puts a key into the tier, for those that do not know it.
    fn put(&self, key: &TicketKey, left: u64) {
        let Some(entry) = self.ring.ticket_entry(&key.name) else { return };
        if let Ok(sealed) = self.sealed(&entry, |out| encode_key(key, left, out)) {
            // Who does not find it makes full handshakes.
            let _ = self.tier.put(entry.name(), &sealed, expires(left));
        }
    }

    fn sealed(
        &self,
        entry: &Entry,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), OutOfMemory>,
    ) -> Result<Zeroizing<Vec<u8>>, Failed> {
        let mut buf = Zeroizing::new(Vec::new());
        self.ring.begin(&mut buf)?;
        encode(&mut buf).map_err(|OutOfMemory| Failed)?;
        self.ring.seal(entry, &mut buf)?;
        Ok(buf)
    }

    /// Says so when a key is in use for longer than it should be.
    fn look_at_age(&self) {
        let Some(age) = self.zone.get().and_then(|keys| keys.age(clock::now_ms())) else { return };
        let late = age > self.times.period.saturating_add(self.pause().saturating_mul(2));
        if late == self.said_old.replace(late) {
            return;
        }
        let tier = self.tier.name();
        if late {
            log_at!(
                Log::cycle(),
                Warn,
                "SSL session ticket key is in use for longer than {} s: it cannot be changed in \"{tier}\"",
                self.times.period / 1000
            );
        } else {
            log_at!(Log::cycle(), Notice, "SSL session ticket key changes again in \"{tier}\"");
        }
    }

    fn is_invalid(&self) {
        if let Some(times) = pass(&self.invalid) {
            let tier = self.tier.name();
            log_at!(
                Log::cycle(),
                Error,
                "invalid SSL session ticket keys in \"{tier}\", {times} times: \
                 are they of another \"ssl_session_key\"?"
            );
        }
    }
}

/// The second in which an entry expires that is of use for so many milliseconds.
fn expires(left: u64) -> i64 {
    let seconds = i64::try_from(left.div_ceil(1000)).unwrap_or(i64::MAX);
    clock::unix_time().saturating_add(seconds)
}

impl Handle<Tick> for Keeper {
    fn fired(&self, _: &mut Turn) {
        if self.is_over() {
            return;
        }
        let (now, pause) = (clock::now_ms(), self.pause());
        let Some(keys) = self.zone.get() else { return };
        let mine = keys.lease(now, pause);
        self.tick.at(mine.err().unwrap_or(now.saturating_add(pause)), false);
        if mine.is_err() {
            return;
        }
        let ended = self.zone.alone(|keys| keys.wipe(now)).unwrap_or_default();
        if self.tier.is_local() {
            // It keeps what has expired until it needs the room.
            for entry in ended.iter().filter_map(|name| self.ring.ticket_entry(name)) {
                self.tier.remove(entry.name());
            }
        }
        self.forget_foreign();
        if let Some(entry) = self.ring.ticket_head() {
            self.ask(&entry, HEAD);
        }
    }
}

impl Handle<Want> for Keeper {
    fn fired(&self, _: &mut Turn) {
        let wanted = self.wanted.try_borrow_mut().map(|mut it| core::mem::take(&mut *it));
        for name in wanted.unwrap_or_default() {
            self.ask_for_key(&name);
        }
    }
}
