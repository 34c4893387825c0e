//! Session IDs that clients offer: known are those alone that a key of the ring has issued.

use hmac::{Hmac, KeyInit, Mac};
use session_core::cache_key::CacheKey;
use session_core::hello::SessionId;
use session_core::key_ring::{Entry, KeyRing, Tls};
use sha2::Sha256;

use super::rust_crypto::RustCrypto;

/// A session ID that a client offers, and after 32 bytes a change to one that was issued.
pub fn run(data: &[u8]) {
    let crypto = RustCrypto::default();
    let ring = |keys: &[u8]| {
        let mut ring = KeyRing::new(&crypto);
        keys.iter().for_each(|&key| ring.add(&[key; 32]).unwrap());
        ring
    };
    let (old, both, new) = (ring(&[1]), ring(&[2, 1]), ring(&[2]));

    let (offered, change) = data.split_at(data.len().min(32));
    match SessionId::new(offered) {
        None => assert!(offered.is_empty()),
        Some(id) => {
            assert_eq!(id.as_bytes(), offered);
            assert!(SessionId::new(offered) == Some(id));
            let known = [&old, &new].map(|ring| name(ring, &id));
            assert_eq!(known[0], by_hand(1, offered));
            assert_eq!(known[1], by_hand(2, offered));
            let [first, second] = known;
            assert_eq!(name(&both, &id), second.or(first), "the ring knows what its keys know");
            assert_eq!(name(&ring(&[]), &id).as_deref(), Some(offered));
            let claimed =
                offered.len() == 32 && [1, 2].iter().any(|&key| key_id(key) == offered[0]);
            assert_eq!(both.is_claimed(&id), claimed, "by its length and key id");
        }
    }

    // Those that the ring issues are its own, and the first key's.
    crypto.next.set(*offered.first().unwrap_or(&0));
    let issued = both.issue(Tls::V13).unwrap();
    let id = SessionId::new(&issued).unwrap();
    assert!(name(&both, &id).is_some());
    assert_eq!(name(&both, &id), name(&new, &id));
    assert_eq!(name(&both, &id), Some(both.issued(&id, Tls::V13).name().as_bytes().to_vec()));
    assert_eq!(name(&old, &id), None);

    // And with any change nobody's.
    let mut changed = issued;
    changed.iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
    if changed != issued {
        let changed = SessionId::new(&changed).unwrap();
        assert!(changed != id);
        assert_eq!(name(&both, &changed), None);
    }
    assert_eq!(name(&both, &SessionId::new(&issued[..31]).unwrap()), None);
}

/// The name of the entry, if the ring knows the ID.
fn name(ring: &KeyRing<&RustCrypto>, id: &SessionId) -> Option<Vec<u8>> {
    let entry = ring.known(id, Tls::V13)?;
    assert!(entry.id() == id);
    let key = CacheKey::new(b"tls:", entry.name()).unwrap();
    let encoded = key.as_bytes().strip_prefix(b"tls:").unwrap();
    let plain = |&c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    assert!((2..=43).contains(&encoded.len()) && encoded.iter().all(plain));
    Some(Entry::name(&entry).as_bytes().to_vec())
}

/// The same for one key, as docs/envelope.md has it.
fn by_hand(key: u8, id: &[u8]) -> Option<Vec<u8>> {
    let (body, tag) = id.split_at_checked(20)?;
    let issued = body[0] == key_id(key) && mac(key, b"tls13", body)[..12] == *tag;
    issued.then(|| mac(key, b"name", id))
}

fn key_id(key: u8) -> u8 {
    mac(key, b"keyid", b"")[0]
}

fn mac(key: u8, label: &[u8], data: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(&[key; 32]).unwrap();
    mac.chain_update(label).chain_update(data).finalize().into_bytes().to_vec()
}
