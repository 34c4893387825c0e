//! Whether comparisons of secrets take the same time, whatever the secrets are: run under
//! valgrind's memcheck, which is told that secrets are undefined, and reports each branch and each
//! address that depends on them (the method of Adam Langley's ctgrind).
//!
//! ```text
//! constant-time session-id    comparisons of session IDs
//! constant-time tag           comparisons of the tags of session IDs with the MACs of a key ring
//! ```
//!
//! and, to be reported, or memcheck would see nothing:
//!
//! ```text
//! constant-time session-id-slices    the same session IDs, compared with == of slices
//! constant-time tag-slices           the same tags, compared with == of slices
//! constant-time tag-early-exit       the same tags, compared up to the first difference
//! ```
//!
//! `tools/constant-time/run` runs all of them.

#[path = "../../../core/tests/rust_crypto/mod.rs"]
mod rust_crypto;

use crabgrind::memcheck::{MemState, mark_memory};
use crabgrind::valgrind::running_mode;
use hmac::Hmac;
use rust_crypto::RustCrypto;
use session_core::crypto::Failed;
use session_core::hello::SessionId;
use session_core::key_ring::{ID_LEN, KEY_LEN, KeyRing, MAC_LEN, MacKey, Tls};
use sha2::Sha256;
use std::cell::Cell;
use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use zeroize::Zeroizing;

type Ring = KeyRing<&'static RustCrypto, Marking>;

/// Where the tag of a session ID begins, and its length.
const TAG: usize = 20;
const ID_TAG_LEN: usize = ID_LEN - TAG;

fn main() -> ExitCode {
    if !running_mode().is_valgrind() {
        eprintln!("to be run under valgrind");
        return ExitCode::FAILURE;
    }
    match env::args().nth(1).as_deref() {
        Some("session-id") => session_id(),
        Some("tag") => tag(compared_by_key_ring),
        Some("session-id-slices") => session_id_slices(),
        Some("tag-slices") => tag(|_, id| compared_by_hand(id, same_slices)),
        Some("tag-early-exit") => tag(|_, id| compared_by_hand(id, same_bytes)),
        _ => {
            eprintln!("usage: constant-time session-id|tag|CONTROL");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Tells memcheck that the bytes depend on a secret.
fn secret(bytes: &mut [u8]) {
    mark(bytes, MemState::Undefined);
}

/// Tells memcheck that anybody may know the bytes.
fn public(bytes: &mut [u8]) {
    mark(bytes, MemState::Defined);
}

/// The bytes are borrowed to be changed, so that none of them is taken from a register afterwards,
/// where no mark is.
fn mark(bytes: &mut [u8], state: MemState) {
    let bytes = black_box(bytes);
    mark_memory(bytes.as_ptr().cast(), bytes.len(), state).expect("valgrind");
    black_box(bytes);
}

/// What came of a comparison is no secret, once it is made.
fn answer(equal: bool) -> bool {
    let mut answer = [u8::from(equal)];
    public(&mut answer);
    answer == [1]
}

/// As a client sends it: the compiler does not know how long it is, and cannot compare a few words
/// where what ships has to compare bytes.
fn session_id_of(bytes: &[u8]) -> SessionId {
    SessionId::new(black_box(bytes)).expect("32 bytes")
}

/// Session IDs that are equal, and that differ in one byte: all of their bytes are secrets.
fn session_id() {
    for place in 0..=ID_LEN {
        let (mut one, mut other) = ([7; ID_LEN], [7; ID_LEN]);
        other.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 0x40);
        secret(&mut one);
        secret(&mut other);
        let ids = [&one, &other].map(|id| session_id_of(id));
        assert_eq!(answer(ids[0] == ids[1]), place == ID_LEN);
    }
}

/// The same with `==` of slices, whose lengths the compiler does not know.
fn session_id_slices() {
    let (mut one, mut other) = ([7; ID_LEN], [7; ID_LEN]);
    secret(&mut one);
    secret(&mut other);
    let ids = [&one[..], &other[..]].map(black_box);
    assert!(answer(ids[0] == ids[1]));
}

/// Tags that differ in one byte, each in another place. That byte of the MAC is public, all others
/// are secrets, and equal to those of the tag.
///
/// [`KeyRing::known`] branches on the outcome of the comparison, as it must, and nothing is done
/// here to hide that branch: a byte which is known to differ decides about the outcome whatever
/// the others are, and memcheck, which follows single bits through "and" and "or", sees that the
/// outcome is known. A comparison that looks at the bytes one by one and ends at a difference comes
/// to secret bytes before it comes to that one, in all places but the first, and is reported; so is
/// one that goes by words, wherever it begins.
fn tag(known: fn(&Ring, &SessionId) -> bool) {
    let mut ring = Ring::new(Box::leak(Box::default()));
    ring.add(&[1; 32]).expect("works");
    let issued = ring.issue(Tls::V13).expect("works");
    assert!(known(&ring, &session_id_of(&issued)));
    for place in 0..ID_TAG_LEN {
        let mut forged = issued;
        forged[TAG + place] ^= 0x40;
        PUBLIC_BYTE.set(Some(place));
        assert!(!known(&ring, &session_id_of(&forged)));
        PUBLIC_BYTE.set(None);
        assert_eq!(MARKED.take(), 1, "a MAC was asked for");
    }
}

fn compared_by_key_ring(ring: &Ring, id: &SessionId) -> bool {
    ring.known(id, Tls::V13).is_some()
}

fn compared_by_hand(id: &SessionId, same: fn(&[u8], &[u8]) -> bool) -> bool {
    let (body, tag) = id.as_bytes().split_at(TAG);
    let key = Marking::new(&[1; 32]).expect("works");
    let mac = key.of(b"tls13", body);
    // Of a length that the compiler does not know: it compares few bytes at once, and is right.
    same(&mac[..black_box(tag.len())], tag)
}

fn same_slices(one: &[u8], other: &[u8]) -> bool {
    one == other
}

fn same_bytes(one: &[u8], other: &[u8]) -> bool {
    one.iter().zip(other).all(|(one, other)| black_box(one) == other)
}

/// Keys whose MACs are secrets, but for one byte, while there is one that is public.
struct Marking(Hmac<Sha256>);

thread_local! {
    static PUBLIC_BYTE: Cell<Option<usize>> = const { Cell::new(None) };
    /// How many MACs were marked.
    static MARKED: Cell<usize> = const { Cell::new(0) };
}

impl MacKey for Marking {
    fn new(secret: &[u8; KEY_LEN]) -> Result<Self, Failed> {
        MacKey::new(secret).map(Marking)
    }

    fn of(&self, label: &[u8], data: &[u8]) -> Zeroizing<[u8; MAC_LEN]> {
        let mut mac = self.0.of(label, data);
        if let Some(place) = PUBLIC_BYTE.get() {
            secret(&mut *mac);
            public(&mut mac[place..=place]);
            MARKED.set(MARKED.get() + 1);
        }
        mac
    }
}
