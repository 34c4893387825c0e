//! The keys by which session IDs are issued and known again, entries named, and sessions sealed.
//!
//! A session ID that was issued with a key is
//!
//! ```text
//! offset  bytes
//!      0      1  key id
//!      1     19  random
//!     20     12  the first bytes of HMAC-SHA256(key, label ‖ the 20 bytes before)
//! ```
//!
//! The label is "tls13" for a ticket of TLS 1.3 and "tls12" for a session ID of the versions before:
//! who has seen the one cannot show it as the other, and so have a session looked at, or taken, in a
//! handshake that it is of no use for.
//!
//! The key id is the first byte of HMAC-SHA256(key, "keyid"). Of the session ID follow
//!
//! - the name of the entry: HMAC-SHA256(key, "name" ‖ session ID),
//! - the key of its envelope: HMAC-SHA256(key, "seal" ‖ session ID).
//!
//! The keys of stateless tickets have entries, too, and in place of a session ID HMAC-SHA256(key,
//! "tkhead") for the head, and HMAC-SHA256(key, "tkentry" ‖ name) for a ticket key of that name. The name
//! is the key id, 7 random bytes, and the first 8 of HMAC-SHA256(key, "tkname" ‖ the 8 bytes before), so
//! that nobody is asked for a ticket key whose name a client has made up.
//!
//! No label is the beginning of another one, so that what one MAC is of, no other is. A ring
//! without keys leaves all as it is: entries are named by the session IDs, sessions are not sealed.

use alloc::vec::Vec;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::cache_key::Name;
use crate::crypto::{Crypto, Failed};
use crate::envelope::{self, HEADER_LEN, OpenError};
use crate::hello::SessionId;
use crate::ticket_keys::{KeyName, NAME_LEN, TicketKey};

/// Length of a key, in bytes.
pub const KEY_LEN: usize = 32;

/// Length of HMAC-SHA256 (RFC 2104), in bytes.
pub const MAC_LEN: usize = 32;

/// Length of the session IDs that are issued, in bytes: the longest that there are.
pub const ID_LEN: usize = 32;

/// Key id and randomness, in bytes: what the tag of a session ID is of.
const BODY_LEN: usize = 20;

const KEY_ID: &[u8] = b"keyid";
const NAME: &[u8] = b"name";
const SEAL: &[u8] = b"seal";
const TICKET_HEAD: &[u8] = b"tkhead";
const TICKET_NAME: &[u8] = b"tkname";
const TICKET_ENTRY: &[u8] = b"tkentry";

/// What the tag in the name of a ticket key is of, in bytes: key id and randomness.
const TICKET_BODY_LEN: usize = NAME_LEN / 2;

/// What a session ID is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The session ID of TLS 1.2 and before (RFC 5246 §7.4.1.2).
    UpTo12,
    /// The ticket of TLS 1.3 (RFC 8446 §4.6.1).
    V13,
}

impl Tls {
    /// The label of the tag.
    const fn label(self) -> &'static [u8] {
        match self {
            Tls::UpTo12 => b"tls12",
            Tls::V13 => b"tls13",
        }
    }
}

/// Keys. The first one issues session IDs, and all know theirs again.
pub struct KeyRing<C, M = Hmac<Sha256>> {
    crypto: C,
    keys: Vec<Key<M>>,
}

/// A key of HMAC-SHA256 (RFC 2104), made ready for use, which is half of what a MAC costs. It is
/// wiped when it is dropped.
pub trait MacKey: Sized {
    /// Makes a key ready for use.
    fn new(secret: &[u8; KEY_LEN]) -> Result<Self, Failed>;

    /// The MAC of `label`, and `data` after it.
    fn of(&self, label: &[u8], data: &[u8]) -> Zeroizing<[u8; MAC_LEN]>;
}

impl MacKey for Hmac<Sha256> {
    fn new(secret: &[u8; KEY_LEN]) -> Result<Self, Failed> {
        Self::new_from_slice(secret).map_err(|_| Failed)
    }

    fn of(&self, label: &[u8], data: &[u8]) -> Zeroizing<[u8; MAC_LEN]> {
        let whole = self.clone().chain_update(label).chain_update(data);
        Zeroizing::new(whole.finalize().into_bytes().into())
    }
}

struct Key<M> {
    id: u8,
    mac: M,
}

impl<M: MacKey> Key<M> {
    fn new(secret: &[u8; KEY_LEN]) -> Result<Self, Failed> {
        let mac = M::new(secret)?;
        let [id, ..] = *mac.of(KEY_ID, b"");
        Ok(Key { id, mac })
    }

    /// Whether the session ID has the form of those that this key issues: its length, and the key id,
    /// which is no secret.
    fn is_named_by(&self, id: &SessionId) -> bool {
        let id = id.as_bytes();
        id.len() == ID_LEN && id.first() == Some(&self.id)
    }

    /// Whether this key has issued the session ID.
    fn has_issued(&self, id: &SessionId, tls: Tls) -> bool {
        if !self.is_named_by(id) {
            return false;
        }
        let Some((body, tag)) = id.as_bytes().split_first_chunk::<BODY_LEN>() else { return false };
        // What makes a forged ID a true one.
        let mac = self.mac.of(tls.label(), body);
        let mac = mac.get(..tag.len()).unwrap_or_default();
        mac.ct_eq(tag).into()
    }

    /// The entry of a session ID that this key, at that place of the ring, has issued.
    fn entry(&self, id: &SessionId, tls: Tls, place: usize) -> Entry {
        let name = Name::of_mac(*self.mac.of(NAME, id.as_bytes()));
        Entry { id: *id, tls, name, key: Some(place) }
    }

    /// Whether this key has made the name of a ticket key.
    fn has_named(&self, name: &KeyName) -> bool {
        let Some((body, tag)) = name.0.split_first_chunk::<TICKET_BODY_LEN>() else { return false };
        if body.first() != Some(&self.id) {
            return false;
        }
        let mac = self.mac.of(TICKET_NAME, body);
        mac.get(..tag.len()).unwrap_or_default().ct_eq(tag).into()
    }

    /// The entry of what is no session. No client can offer its ID: it has no tag.
    fn entry_of(&self, label: &[u8], data: &[u8], place: usize) -> Option<Entry> {
        let id = SessionId::new(&*self.mac.of(label, data))?;
        Some(self.entry(&id, Tls::V13, place))
    }

    /// The key of an envelope.
    fn sealing_key(&self, id: &SessionId) -> Zeroizing<[u8; MAC_LEN]> {
        self.mac.of(SEAL, id.as_bytes())
    }
}

/// A session ID that is ours, and where its session is.
#[derive(Clone)]
pub struct Entry {
    id: SessionId,
    tls: Tls,
    name: Name,
    /// The place of the key that has issued the ID; none without keys.
    key: Option<usize>,
}

impl Entry {
    /// The session ID.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// What the session ID is for.
    pub fn tls(&self) -> Tls {
        self.tls
    }

    /// The name of the entry, in every tier.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl<C: Crypto, M: MacKey> KeyRing<C, M> {
    /// A ring without keys.
    pub const fn new(crypto: C) -> Self {
        KeyRing { crypto, keys: Vec::new() }
    }

    /// Adds a key, after those that are there. Fails if there is no memory.
    pub fn add(&mut self, secret: &[u8; KEY_LEN]) -> Result<(), Failed> {
        self.keys.try_reserve(1).map_err(|_| Failed)?;
        self.keys.push(Key::new(secret)?);
        Ok(())
    }

    /// Whether there are keys.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The key ids, in the order of the keys. What else there is of a key is secret.
    pub fn key_ids(&self) -> impl Iterator<Item = u8> + '_ {
        self.keys.iter().map(|key| key.id)
    }

    /// Issues a session ID. Only with keys.
    pub fn issue(&self, tls: Tls) -> Result<[u8; ID_LEN], Failed> {
        let key = self.keys.first().ok_or(Failed)?;
        let mut id = [0; ID_LEN];
        if let Some((body, tag)) = id.split_first_chunk_mut::<BODY_LEN>() {
            let [key_id, random @ ..] = body;
            *key_id = key.id;
            self.crypto.random(random)?;
            let mac = key.mac.of(tls.label(), body);
            tag.iter_mut().zip(mac.iter()).for_each(|(to, from)| *to = *from);
        }
        Ok(id)
    }

    /// The entry of a session ID that was offered; none if it is not one that we have issued.
    pub fn known(&self, id: &SessionId, tls: Tls) -> Option<Entry> {
        if !self.has_keys() {
            return Some(Self::unsealed(id, tls));
        }
        // Different keys may have one key id.
        let mut keys = self.keys.iter().enumerate();
        let (place, key) = keys.find(|(_, key)| key.has_issued(id, tls))?;
        Some(key.entry(id, tls, place))
    }

    /// Whether a session ID that is not known claims to be of one of the keys, by its length and key id.
    /// One in 256 that are made up at random does so for each key.
    pub fn is_claimed(&self, id: &SessionId) -> bool {
        self.keys.iter().any(|key| key.is_named_by(id))
    }

    /// The entry of a session ID that has been issued just now.
    pub fn issued(&self, id: &SessionId, tls: Tls) -> Entry {
        match self.keys.first() {
            Some(key) => key.entry(id, tls, 0),
            None => Self::unsealed(id, tls),
        }
    }

    /// The entry of the head of the ticket keys. Only with keys.
    pub fn ticket_head(&self) -> Option<Entry> {
        self.keys.first()?.entry_of(TICKET_HEAD, b"", 0)
    }

    /// Whether a key of ours has made the name of a ticket key.
    pub fn has_named(&self, name: &KeyName) -> bool {
        self.keys.iter().any(|key| key.has_named(name))
    }

    /// The entry of a ticket key; none if no key of ours has made its name.
    pub fn ticket_entry(&self, name: &KeyName) -> Option<Entry> {
        let mut keys = self.keys.iter().enumerate();
        let (place, key) = keys.find(|(_, key)| key.has_named(name))?;
        key.entry_of(TICKET_ENTRY, &name.0, place)
    }

    /// Makes a ticket key. Only with keys.
    pub fn new_ticket_key(&self) -> Result<TicketKey, Failed> {
        let key = self.keys.first().ok_or(Failed)?;
        let mut name = [0; NAME_LEN];
        if let Some((body, tag)) = name.split_first_chunk_mut::<TICKET_BODY_LEN>() {
            let [key_id, random @ ..] = body;
            *key_id = key.id;
            self.crypto.random(random)?;
            let mac = key.mac.of(TICKET_NAME, body);
            tag.iter_mut().zip(mac.iter()).for_each(|(to, from)| *to = *from);
        }
        TicketKey::new(KeyName(name), |secret| self.crypto.random(secret))
    }

    /// Fills `out` with bytes that nobody can predict.
    pub fn random(&self, out: &mut [u8]) -> Result<(), Failed> {
        self.crypto.random(out)
    }

    fn unsealed(id: &SessionId, tls: Tls) -> Entry {
        Entry { id: *id, tls, name: Name::of_id(id), key: None }
    }

    /// Makes room for what [`KeyRing::seal`] puts before the session, in an empty buffer.
    pub fn begin(&self, buf: &mut Vec<u8>) -> Result<(), Failed> {
        if self.has_keys() {
            buf.try_reserve(HEADER_LEN).map_err(|_| Failed)?;
            buf.resize(HEADER_LEN, 0);
        }
        Ok(())
    }

    /// Makes an entry of a session in DER that was appended to a buffer of [`KeyRing::begin`]. On
    /// failure the buffer is empty.
    pub fn seal(&self, entry: &Entry, buf: &mut Vec<u8>) -> Result<(), Failed> {
        let sealed = self.key_of(entry).and_then(|key| match key {
            None => Ok(()),
            Some(key) => {
                let sealing_key = key.sealing_key(&entry.id);
                envelope::seal(&self.crypto, key.id, &sealing_key, &entry.id, buf)
            }
        });
        if sealed.is_err() {
            buf.zeroize();
        }
        sealed
    }

    /// The session in DER that is in an entry. It may lie in `out`, which is empty, and the
    /// caller's to wipe.
    pub fn open<'a>(
        &self,
        entry: &Entry,
        value: &'a [u8],
        out: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], OpenError> {
        let key = self.key_of(entry).map_err(|Failed| OpenError::Failed)?;
        let Some(key) = key else { return Ok(value) };
        let sealing_key = key.sealing_key(&entry.id);
        envelope::open(&self.crypto, key.id, &sealing_key, &entry.id, value, out)?;
        Ok(out)
    }

    /// The key of an entry; none without keys. Fails with an entry of another ring, so that no
    /// session leaves a ring that has keys without being sealed, nor comes in.
    fn key_of(&self, entry: &Entry) -> Result<Option<&Key<M>>, Failed> {
        match entry.key {
            None if !self.has_keys() => Ok(None),
            None => Err(Failed),
            Some(place) => self.keys.get(place).map(Some).ok_or(Failed),
        }
    }
}
