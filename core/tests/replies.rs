//! Replies that come in pieces: an answer is the same however it was cut.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

use std::ops::Range;

use session_core::codec::{Answer, Codec, DecodeError, Expected, Place};
use session_core::memcached::Memcached;
use session_core::resp::Redis;

/// The longest value of a test.
const LIMIT: usize = 40;

/// What a connection has heard: its answers, each with where it ended, and its end.
type Heard = (Vec<(Answer, usize)>, Option<DecodeError>);

/// Reads `wire` as it comes, up to each of `ends` in turn. Ranges are places in `wire`.
fn hear(codec: &dyn Codec, array: bool, wire: &[u8], ends: impl Iterator<Item = usize>) -> Heard {
    let expected = Expected { limit: LIMIT, array };
    let mut place = Place::default();
    let mut answers = Vec::new();
    let mut begin = 0;
    for end in ends {
        while begin < end {
            match codec.decode(&wire[begin..end], &expected, &mut place) {
                Ok(Some((answer, used))) => {
                    let skipped = if let Answer::TooLarge(len) = answer { len } else { 0 };
                    answers.push((answer.shifted(begin), begin + used));
                    begin += used + skipped;
                }
                Ok(None) => break,
                Err(error) => return (answers, Some(error)),
            }
        }
    }
    (answers, None)
}

#[test]
fn an_answer_is_the_same_in_one_piece_and_byte_by_byte() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut complete = [0; 2];
    for round in 0..20_000 {
        let redis = round % 2 == 0;
        let codec: &dyn Codec = if redis { &Redis::default() } else { &Memcached };
        let mut wire = Vec::new();
        for _ in 0..random.within(1..6) {
            if redis { reply(&mut random, 0, &mut wire) } else { line(&mut random, &mut wire) }
        }
        // Half of them are broken somewhere.
        if random.chance(2) {
            let at = random.within(0..wire.len());
            wire[at] = *random.of(b"\r\n$*:+-_>0159VAHDEN cx\0");
        }
        let array = !random.chance(4);

        let whole = hear(codec, array, &wire, [wire.len()].into_iter());
        let dripped = hear(codec, array, &wire, 1..=wire.len());
        assert_eq!(dripped, whole, "{}", wire.escape_ascii());
        let mut end = 0;
        let pieces = std::iter::from_fn(|| {
            let next = (end + random.within(1..20)).min(wire.len());
            (next > std::mem::replace(&mut end, next)).then_some(next)
        });
        assert_eq!(hear(codec, array, &wire, pieces), whole, "{}", wire.escape_ascii());
        complete[usize::from(redis)] += usize::from(whole.1.is_none() && !whole.0.is_empty());
    }
    // Most of what is not broken is a number of answers.
    assert!(complete.iter().all(|&rounds| rounds > 4000), "{complete:?}");
}

/// A reply of Redis, at most four levels deep.
fn reply(random: &mut Random, depth: usize, wire: &mut Vec<u8>) {
    let kinds = if depth < 4 { 11 } else { 7 };
    match random.within(0..kinds) {
        0 => wire.extend(b"+OK\r\n"),
        1 => wire.extend(format!(":{}\r\n", random.within(0..2000)).bytes()),
        2 => wire.extend(b"$-1\r\n"),
        3 => wire.extend(*random.of(&[&b"_\r\n"[..], b"*-1\r\n"])),
        4 => {
            let errors =
                ["ERR x", "MOVED 7 a.b:80", "MOVED 1 :1", "ASK 16383 ::1:6379", "ASK 1 ?:9"];
            wire.extend(format!("-{}\r\n", random.of(&errors)).bytes());
        }
        5 | 6 => {
            // Some are longer than the limit.
            let len = random.within(0..LIMIT + 5);
            wire.extend(format!("${len}\r\n").bytes());
            wire.extend((0..len).map(|_| *random.of(b"\r\n$*ab")));
            wire.extend(b"\r\n");
        }
        kind => {
            let members = random.within(0..4);
            // A push stands for itself.
            let head = if depth == 0 && kind == 7 { '>' } else { '*' };
            wire.extend(format!("{head}{members}\r\n").bytes());
            for _ in 0..members {
                reply(random, depth + 1, wire);
            }
        }
    }
}

/// A reply of memcached.
fn line(random: &mut Random, wire: &mut Vec<u8>) {
    match random.within(0..4) {
        0 => {
            let lines = [&b"HD\r\n"[..], b"EN\r\n", b"NF \r\n", b"VERSION 1.6.18\r\n", b"NS\r\n"];
            wire.extend(*random.of(&lines));
        }
        1 => wire.extend(b"SERVER_ERROR out of memory storing object\r\n"),
        _ => {
            let len = random.within(0..LIMIT + 5);
            let flags = *random.of(&["", " ", " c17", " W c5 t-1"]);
            wire.extend(format!("VA {len}{flags}\r\n").bytes());
            wire.extend((0..len).map(|_| *random.of(b"\r\nVA b")));
            wire.extend(b"\r\n");
        }
    }
}

/// Numbers without a pattern, the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn within(&mut self, range: Range<usize>) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + (self.0 >> 32) as usize % range.len()
    }

    fn of<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[self.within(0..these.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.within(0..one_in) == 0
    }
}
