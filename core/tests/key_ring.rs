//! Session IDs, names and envelopes, with the algorithms of another library than nginx's.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod rust_crypto;

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use rust_crypto::RustCrypto;
use session_core::cache_key::CacheKey;
use session_core::crypto::Failed;
use session_core::envelope::{HEADER_LEN, OVERHEAD, OpenError, VERSION};
use session_core::hello::SessionId;
use session_core::key_ring::{Entry, KeyRing, Tls};
use session_core::ticket_keys::{Earlier, Head, encode_key};
use sha2::Sha256;

const SESSION: &[u8] = b"a session in DER";

fn secret(byte: u8) -> [u8; 32] {
    [byte; 32]
}

fn ring<'a>(crypto: &'a RustCrypto, secrets: &[u8]) -> KeyRing<&'a RustCrypto> {
    let mut ring = KeyRing::new(crypto);
    secrets.iter().for_each(|byte| ring.add(&secret(*byte)).unwrap());
    ring
}

fn issue(ring: &KeyRing<&RustCrypto>) -> SessionId {
    SessionId::new(&ring.issue(Tls::V13).unwrap()).unwrap()
}

/// The key ids of keys, as RFC 2104 and docs/envelope.md have them.
fn key_ids(secrets: &[u8]) -> BTreeSet<u8> {
    let id = |&byte| {
        let mac = Hmac::<Sha256>::new_from_slice(&secret(byte)).unwrap();
        mac.chain_update(b"keyid").finalize().into_bytes()[0]
    };
    secrets.iter().map(id).collect()
}

fn known(ring: &KeyRing<&RustCrypto>, id: &SessionId) -> Option<Entry> {
    ring.known(id, Tls::V13)
}

fn seal(ring: &KeyRing<&RustCrypto>, entry: &Entry, session: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    ring.begin(&mut buf).unwrap();
    buf.extend_from_slice(session);
    ring.seal(entry, &mut buf).unwrap();
    buf
}

fn open(ring: &KeyRing<&RustCrypto>, entry: &Entry, value: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut out = Vec::new();
    let opened = ring.open(entry, value, &mut out).map(<[u8]>::to_vec);
    if opened.is_err() {
        assert!(out.is_empty(), "what does not open leaves nothing behind");
    }
    opened
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// docs/envelope.md has the same, for whoever writes another implementation.
#[test]
fn the_vectors_of_the_documentation() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/envelope.md");
    let document = std::fs::read_to_string(document).unwrap();
    let said = |name: &str| {
        let after = document.split_once(&format!("\n    {name} ")).unwrap().1;
        after.lines().next().unwrap().trim().to_owned()
    };

    let crypto = RustCrypto::default();
    let mut ring = KeyRing::new(&crypto);
    let key: Vec<u8> = (0..32).collect();
    ring.add(key.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(said("key"), hex(&key));

    let issue = |tls| {
        crypto.next.set(0x40);
        SessionId::new(&ring.issue(tls).unwrap()).unwrap()
    };
    let (id, ticket) = (issue(Tls::UpTo12), issue(Tls::V13));
    assert_eq!(said("random"), hex(&id.as_bytes()[1..20]));
    assert_eq!(said("session-id"), hex(id.as_bytes()));
    assert_eq!(said("ticket"), hex(ticket.as_bytes()));

    let entry = ring.known(&id, Tls::UpTo12).unwrap();
    let cache_key = CacheKey::new(b"tls:", entry.name()).unwrap();
    assert_eq!(said("cache-key").as_bytes(), cache_key.as_bytes());

    crypto.next.set(0x80);
    let envelope = seal(&ring, &entry, SESSION);
    assert_eq!(said("session"), hex(SESSION));
    assert_eq!(said("nonce"), hex(&envelope[2..HEADER_LEN]));
    assert_eq!(said("envelope"), hex(&envelope));

    crypto.next.set(0x40);
    let ticket_key = ring.new_ticket_key().unwrap();
    let mut bytes = Vec::new();
    encode_key(&ticket_key, 43_200_000, &mut bytes).unwrap();
    assert_eq!(said("ticket-key-name"), hex(&ticket_key.name.0));
    assert_eq!(said("ticket-key-entry"), hex(&bytes));
    let entry = ring.ticket_entry(&ticket_key.name).unwrap();
    let cache_key = CacheKey::new(b"tls:", entry.name()).unwrap();
    assert_eq!(said("ticket-key-cache-key").as_bytes(), cache_key.as_bytes());
    let mut bytes = Vec::new();
    let earlier = vec![Earlier { name: ticket_key.name, left: 43_200_000 }];
    crypto.next.set(0xa0);
    let next = ring.new_ticket_key().unwrap();
    Head { next, earlier }.encode(&mut bytes).unwrap();
    assert_eq!(said("ticket-head"), hex(&bytes));
    let cache_key = CacheKey::new(b"tls:", ring.ticket_head().unwrap().name()).unwrap();
    assert_eq!(said("ticket-head-cache-key").as_bytes(), cache_key.as_bytes());
}

#[test]
fn a_key_id_is_the_first_byte_of_what_the_key_issues() {
    let crypto = RustCrypto::default();
    let ids: Vec<u8> = ring(&crypto, &[3, 1, 2]).key_ids().collect();
    for (n, byte) in [3, 1, 2].into_iter().enumerate() {
        assert_eq!(issue(&ring(&crypto, &[byte])).as_bytes()[0], ids[n]);
    }
    assert_eq!(ring(&crypto, &[]).key_ids().count(), 0);
}

#[test]
fn an_issued_id_is_known_and_random() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let (one, other) = (issue(&ring), issue(&ring));
    assert_eq!(one.as_bytes().len(), 32);
    assert_eq!(one.as_bytes()[0], other.as_bytes()[0], "key id");
    assert_ne!(one.as_bytes()[1..20], other.as_bytes()[1..20], "random");
    assert_ne!(one.as_bytes()[20..], other.as_bytes()[20..], "tag");
    assert_eq!(known(&ring, &one).unwrap().id(), &one);
    assert_eq!(
        known(&ring, &one).unwrap().name().as_bytes(),
        ring.issued(&one, Tls::V13).name().as_bytes()
    );
}

#[test]
fn an_id_with_any_bit_flipped_is_forged() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1, 2]);
    let id = issue(&ring);
    for bit in 0..256 {
        let mut bytes: [u8; 32] = id.as_bytes().try_into().unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let flipped = SessionId::new(&bytes).unwrap();
        assert!(known(&ring, &flipped).is_none(), "bit {bit}");
        assert_eq!(ring.is_claimed(&flipped), key_ids(&[1, 2]).contains(&bytes[0]), "bit {bit}");
    }
}

#[test]
fn an_id_claims_to_be_of_a_key_by_its_first_byte() {
    let crypto = RustCrypto::default();
    for secrets in [&[1][..], &[1, 2], &[]] {
        let ring = ring(&crypto, secrets);
        let key_ids = key_ids(secrets);
        assert_eq!(key_ids.len(), secrets.len(), "different key ids");
        for byte in 0..=255 {
            let mut bytes = [7; 32];
            bytes[0] = byte;
            let id = SessionId::new(&bytes).unwrap();
            assert_eq!(ring.is_claimed(&id), key_ids.contains(&byte), "{secrets:?}, {byte}");
        }
    }
}

#[test]
fn an_id_is_good_for_what_it_was_issued_for() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1, 2]);
    for (tls, other) in [(Tls::UpTo12, Tls::V13), (Tls::V13, Tls::UpTo12)] {
        let id = SessionId::new(&ring.issue(tls).unwrap()).unwrap();
        assert_eq!(ring.known(&id, tls).unwrap().tls(), tls);
        assert!(ring.known(&id, other).is_none());
    }
}

#[test]
fn an_id_of_another_length_is_foreign() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let id = issue(&ring);
    assert!(ring.is_claimed(&id));
    for len in 1..32 {
        let shorter = SessionId::new(&id.as_bytes()[..len]).unwrap();
        assert!(known(&ring, &shorter).is_none(), "{len}");
        assert!(!ring.is_claimed(&shorter), "{len}");
    }
}

#[test]
fn keys_are_rotated_without_losing_a_session() {
    let crypto = RustCrypto::default();
    let (old, both, new) = (ring(&crypto, &[1]), ring(&crypto, &[2, 1]), ring(&crypto, &[2]));
    let before = issue(&old);
    let sealed = seal(&old, &known(&old, &before).unwrap(), SESSION);

    let entry = known(&both, &before).unwrap();
    assert_eq!(entry.name().as_bytes(), known(&old, &before).unwrap().name().as_bytes());
    assert_eq!(open(&both, &entry, &sealed).unwrap(), SESSION);
    let after = issue(&both);
    assert!(known(&old, &after).is_none(), "the first key issues");
    assert!(known(&new, &after).is_some());
    assert!(known(&new, &before).is_none(), "a key that was dropped knows nothing");
}

#[test]
fn keys_of_one_key_id_are_told_apart() {
    let crypto = RustCrypto::default();
    let id_of = |byte| issue(&ring(&crypto, &[byte])).as_bytes()[0];
    let (one, other) = (0..=255_u8)
        .flat_map(|one| (0..one).map(move |other| (one, other)))
        .find(|(one, other)| id_of(*one) == id_of(*other))
        .unwrap();
    let both = ring(&crypto, &[one, other]);
    for secret in [one, other] {
        let alone = ring(&crypto, &[secret]);
        let id = issue(&alone);
        let sealed = seal(&alone, &known(&alone, &id).unwrap(), SESSION);
        let entry = known(&both, &id).unwrap();
        assert_eq!(open(&both, &entry, &sealed).unwrap(), SESSION);
    }
}

#[test]
fn an_envelope_is_longer_by_what_is_documented_and_opens() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let entry = known(&ring, &issue(&ring)).unwrap();
    for session in [&[][..], SESSION, &[7; 20_000]] {
        let envelope = seal(&ring, &entry, session);
        assert_eq!(envelope.len(), session.len() + OVERHEAD);
        assert_eq!(envelope[0], VERSION);
        assert_eq!(open(&ring, &entry, &envelope).unwrap(), session);
        if !session.is_empty() {
            assert!(!envelope.windows(session.len()).any(|bytes| bytes == session));
        }
    }
    assert_ne!(seal(&ring, &entry, SESSION), seal(&ring, &entry, SESSION), "nonces differ");
}

#[test]
fn an_envelope_with_any_bit_flipped_does_not_open() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let entry = known(&ring, &issue(&ring)).unwrap();
    let envelope = seal(&ring, &entry, SESSION);
    for bit in 0..envelope.len() * 8 {
        let mut bad = envelope.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            0 => OpenError::Version(bad[0]),
            1 => OpenError::Key,
            _ => OpenError::Tag,
        };
        assert_eq!(open(&ring, &entry, &bad), Err(expected), "bit {bit}");
    }
}

#[test]
fn an_envelope_that_is_cut_or_extended_does_not_open() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let entry = known(&ring, &issue(&ring)).unwrap();
    let envelope = seal(&ring, &entry, SESSION);
    for len in 0..envelope.len() {
        let expected = if len < OVERHEAD { OpenError::Short } else { OpenError::Tag };
        assert_eq!(open(&ring, &entry, &envelope[..len]), Err(expected), "{len} bytes");
    }
    let longer = [&envelope[..], b"\0"].concat();
    assert_eq!(open(&ring, &entry, &longer), Err(OpenError::Tag));
    assert_eq!(open(&ring, &entry, SESSION), Err(OpenError::Version(b'a')), "not sealed");
}

#[test]
fn an_envelope_opens_for_its_own_session_id_only() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1, 2]);
    let (one, other) = (known(&ring, &issue(&ring)), known(&ring, &issue(&ring)));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.name().as_bytes(), other.name().as_bytes());
    assert_eq!(open(&ring, &other, &seal(&ring, &one, SESSION)), Err(OpenError::Tag));

    let foreign = self::ring(&crypto, &[3]);
    let sealed = seal(&foreign, &known(&foreign, &issue(&foreign)).unwrap(), SESSION);
    let error = open(&ring, &one, &sealed).unwrap_err();
    assert!(matches!(error, OpenError::Key | OpenError::Tag), "{error}");
}

#[test]
fn without_keys_all_stays_as_it_is() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[]);
    assert!(!ring.has_keys());
    assert_eq!(ring.issue(Tls::V13), Err(Failed));
    for bytes in [&[1][..], &[9; 32]] {
        let id = SessionId::new(bytes).unwrap();
        let entry = known(&ring, &id).unwrap();
        assert_eq!(entry.name().as_bytes(), bytes);
        assert_eq!(ring.issued(&id, Tls::V13).name().as_bytes(), bytes);
        assert_eq!(seal(&ring, &entry, SESSION), SESSION);
        assert_eq!(open(&ring, &entry, SESSION).unwrap(), SESSION);
    }
}

#[test]
fn an_entry_of_another_ring_is_an_error_and_no_session_goes_unsealed() {
    let crypto = RustCrypto::default();
    let (none, one, two) = (ring(&crypto, &[]), ring(&crypto, &[2]), ring(&crypto, &[2, 1]));
    let id = issue(&ring(&crypto, &[1]));
    let (bare, second) = (known(&none, &id).unwrap(), known(&two, &id).unwrap());
    for (ring, entry) in [(&one, &bare), (&one, &second), (&none, &second)] {
        let mut buf = SESSION.to_vec();
        assert_eq!(ring.seal(entry, &mut buf), Err(Failed));
        assert!(buf.is_empty());
        assert_eq!(open(ring, entry, SESSION), Err(OpenError::Failed));
    }
}

#[test]
fn a_library_that_fails_is_an_error_and_leaves_no_session_behind() {
    let crypto = RustCrypto::default();
    let ring = ring(&crypto, &[1]);
    let id = issue(&ring);
    let entry = known(&ring, &id).unwrap();
    let envelope = seal(&ring, &entry, SESSION);
    let mut buf = Vec::new();
    ring.begin(&mut buf).unwrap();
    buf.extend_from_slice(SESSION);
    crypto.broken.set(true);
    assert_eq!(ring.issue(Tls::V13), Err(Failed));
    assert_eq!(open(&ring, &entry, &envelope), Err(OpenError::Failed));
    assert_eq!(ring.seal(&entry, &mut buf), Err(Failed));
    assert!(buf.is_empty());
}

#[test]
fn errors_are_log_fragments() {
    for (error, text) in [
        (OpenError::Short, "too short for an envelope"),
        (OpenError::Version(48), "envelope of version 48"),
        (OpenError::Key, "sealed with another key"),
        (OpenError::Tag, "does not open"),
        (OpenError::Failed, "could not be opened"),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
