//! Replies of memcached, and the requests that a key goes into as it is.

use session_core::cache_key::{CacheKey, Name};
use session_core::codec::{Answer, Codec, Expiry};
use session_core::memcached::{MAX_KEY, Memcached, key_problem};

use super::arrivals::split;
use super::replies::stream;

/// The longest value that is read here. Small, so that the fuzzer gets beyond it.
const LIMIT: usize = 64;

/// Lengths of pieces, then what a server sends.
pub fn run(data: &[u8]) {
    let Some((lengths, wire)) = split(data) else { return };
    stream(&Memcached, lengths, wire, LIMIT, memcached);
    requests(lengths, wire);
}

fn memcached(answer: &Answer, bytes: &[u8]) {
    assert!(!matches!(answer, Answer::Array(_) | Answer::Redirect(_) | Answer::Aside));
    for (step, word) in [&b"VERSION"[..], b"MN"].into_iter().enumerate() {
        let greeted = Memcached.greeted(step, answer, bytes, b"");
        assert_eq!(greeted.is_ok(), *answer == Answer::Done && bytes.starts_with(word));
    }
    if let Answer::Refused(text) = answer {
        super::resp::hints(&Memcached, &bytes[text.clone()], 1);
    }
    if bytes.starts_with(b"VERSION") {
        assert!(matches!(answer, Answer::Done | Answer::Refused(_)));
    }
}

/// With a prefix that nothing is said against a request is one line of so many words, and a value.
fn requests(prefix: &[u8], value: &[u8]) {
    let Some(key) = CacheKey::new(prefix, &Name::of_mac([0xff; 32])) else { return };
    let key = key.as_bytes();
    if key_problem(prefix).is_some() {
        return;
    }
    assert!(key.len() <= MAX_KEY);
    let words = |out: &[u8]| {
        let line = out.strip_suffix(b"\r\n").unwrap();
        assert!(!line.iter().any(u8::is_ascii_control));
        let words: Vec<_> = line.split(|&c| c == b' ').map(<[u8]>::to_vec).collect();
        assert_eq!(words[1], key);
        words.len()
    };
    let mut out = [const { Vec::new() }; 5];
    Memcached.get(key, &mut out[0]).unwrap();
    Memcached.take(key, &mut out[1]).unwrap();
    Memcached.claim(key, u64::MAX, &mut out[2]).unwrap();
    Memcached.delete(key, &mut out[3]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|n| words(&out[n])), [3, 4, 3, 2]);
    Memcached.set(key, value, Expiry { ttl: u32::MAX, at: i64::MAX }, &mut out[4]).unwrap();
    let line = out[4].len() - value.len() - 2;
    assert_eq!(words(&out[4][..line]), 4);
    assert_eq!(out[4][line..], [value, b"\r\n"].concat());
}
