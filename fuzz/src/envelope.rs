//! Entries of a store that anybody may have written to.

use session_core::envelope::{HEADER_LEN, OVERHEAD, OpenError, VERSION};
use session_core::hello::SessionId;
use session_core::key_ring::{Entry, KeyRing, Tls};

use super::rust_crypto::RustCrypto;

/// The first byte says how many bytes of changes to an envelope come before what is stored.
pub fn run(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((changes, stored)) = rest.split_at_checked(usize::from(count)) else { return };

    let crypto = RustCrypto::default();
    let mut ring = KeyRing::new(&crypto);
    ring.add(&[1; 32]).unwrap();
    ring.add(&[2; 32]).unwrap();
    let issue = || {
        let id = SessionId::new(&ring.issue(Tls::V13).unwrap()).unwrap();
        ring.known(&id, Tls::V13).unwrap()
    };
    let (entry, other) = (issue(), issue());

    // What a ring has not sealed does not open. A ring of its own that seals nothing: of one that
    // does the fuzzer learns envelopes, as it sees what is compared.
    let crypto = RustCrypto::default();
    let mut unused = KeyRing::new(&crypto);
    unused.add(&[3; 32]).unwrap();
    let unseen = SessionId::new(&unused.issue(Tls::V13).unwrap()).unwrap();
    let error = open(&unused, &unused.issued(&unseen, Tls::V13), stored).unwrap_err();
    match *stored {
        [version, ..] if version != VERSION && stored.len() >= HEADER_LEN => {
            assert_eq!(error, OpenError::Version(version));
        }
        _ => assert_eq!(error == OpenError::Short, stored.len() < OVERHEAD),
    }

    // What it has sealed does, unless anything of it is different.
    let envelope = seal(&ring, &entry, stored);
    assert_eq!(envelope.len(), stored.len() + OVERHEAD);
    assert_eq!(open(&ring, &entry, &envelope).as_deref(), Ok(stored));
    assert_eq!(open(&ring, &other, &envelope), Err(OpenError::Tag));
    let changed = change(envelope.clone(), changes);
    if changed != envelope {
        assert!(open(&ring, &entry, &changed).is_err());
    }
    assert_ne!(seal(&ring, &entry, stored), envelope, "nonces differ");
}

/// Carries out changes of three bytes each.
fn change(mut envelope: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(3) {
        let [what, at, byte] = [change[0], change[1], change[2]];
        let place = match usize::from(at) {
            at if at < 128 => at,
            // From the end.
            at => envelope.len().saturating_sub(256 - at),
        };
        match what % 4 {
            0 => envelope.truncate(place),
            1 => envelope.insert(place.min(envelope.len()), byte),
            2 if place < envelope.len() => drop(envelope.remove(place)),
            _ => envelope.iter_mut().skip(place).take(1).for_each(|old| *old ^= byte),
        }
    }
    envelope
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
    assert!(opened.is_ok() || out.is_empty(), "what does not open leaves nothing behind");
    opened
}
