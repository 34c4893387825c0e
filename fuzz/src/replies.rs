//! What holds for the replies of every protocol.

use session_core::codec::{Answer, Codec, DecodeError, Expected, Place};

use super::arrivals::arrivals;

/// What a connection has received: each answer, and what became of the bytes after the last one.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    answers: Vec<Kept>,
    error: Option<DecodeError>,
    left: usize,
}

/// An answer that has outlived its buffer.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Value(Vec<u8>, Option<u64>),
    TooLarge(usize),
    Array(Vec<u8>),
    Other(String),
}

/// How much comes byte by byte, where that is how it comes.
const DRIPPED: usize = 256;

/// Reads `wire` in pieces, byte by byte, and all of it at once: all hear the same, whether an array
/// is expected or not. Each answer is handed to `check` with the bytes that it took.
pub fn stream(
    codec: &dyn Codec,
    lengths: &[u8],
    wire: &[u8],
    limit: usize,
    check: impl Fn(&Answer, &[u8]),
) {
    let [with, without] = [true, false].map(|array| {
        let expected = Expected { limit, array };
        let whole = hear(codec, [wire.len()], wire, &expected, &check);
        let pieces = hear(codec, arrivals(lengths, wire.len()), wire, &expected, &check);
        assert_eq!(pieces, whole);
        let bytes = (1..wire.len().min(DRIPPED)).chain([wire.len()]);
        assert_eq!(hear(codec, bytes, wire, &expected, &check), whole);
        whole
    });
    assert!(!without.answers.iter().any(|answer| matches!(answer, Kept::Array(_))));
    // No more than the arrays is at stake.
    if with != without {
        assert_eq!(without.error, Some(DecodeError::UnexpectedType(b'*')));
        assert!(with.answers.starts_with(&without.answers));
    }
}

fn hear(
    codec: &dyn Codec,
    ends: impl IntoIterator<Item = usize>,
    wire: &[u8],
    expected: &Expected,
    check: impl Fn(&Answer, &[u8]),
) -> Heard {
    let mut heard = Heard { answers: Vec::new(), error: None, left: wire.len() };
    let mut place = Place::default();
    let mut begin = 0;
    for end in ends {
        // A copy, so that a look beyond what has arrived is one beyond an allocation.
        let arrived = wire[..end].to_vec();
        while let Some(buf) = arrived.get(begin..).filter(|buf| !buf.is_empty()) {
            let (answer, used) = match codec.decode(buf, expected, &mut place) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => break,
                Err(error) => {
                    heard.error = Some(error);
                    return heard;
                }
            };
            let Some(bytes) = buf.get(..used).filter(|bytes| !bytes.is_empty()) else {
                panic!("{used} of {} bytes", buf.len());
            };
            general(codec, &answer, bytes, expected);
            check(&answer, bytes);
            begin += used;
            heard.answers.push(match answer {
                Answer::Value(range) => Kept::Value(bytes[range].to_vec(), None),
                Answer::Claim(range, claim) => Kept::Value(bytes[range].to_vec(), Some(claim)),
                Answer::TooLarge(skipped) => {
                    begin += skipped;
                    Kept::TooLarge(skipped)
                }
                Answer::Array(range) => Kept::Array(bytes[range].to_vec()),
                other => Kept::Other(format!("{other:?}")),
            });
            heard.left = wire.len().saturating_sub(begin);
        }
    }
    // Another buffer than the place is for leads to nonsense, and to no more than that.
    if let Ok(Some((_, used))) = codec.decode(&wire[..begin.min(wire.len())], expected, &mut place)
    {
        assert!(used <= begin);
    }
    heard
}

fn general(codec: &dyn Codec, answer: &Answer, bytes: &[u8], expected: &Expected) {
    let limit = expected.limit;
    let whole = Ok(Some((answer.clone(), bytes.len())));
    let again = codec.decode(bytes, expected, &mut Place::default());
    assert_eq!(again, whole, "what follows is not looked at");
    let short = &bytes[..bytes.len() - 1];
    let mut place = Place::default();
    assert_eq!(codec.decode(short, expected, &mut place), Ok(None), "the last byte is needed");
    assert_eq!(codec.decode(bytes, expected, &mut place), whole, "and nothing but that byte");
    match answer {
        Answer::Value(range) | Answer::Claim(range, _) => {
            assert!(range.len() <= limit && bytes.get(range.clone()).is_some());
            assert!(bytes.ends_with(b"\r\n") && range.end == bytes.len() - 2);
        }
        // The line end is skipped too.
        Answer::TooLarge(skipped) => {
            assert!(*skipped > limit + 2 && *skipped <= 2 + 1024 * 1024 * 1024);
        }
        Answer::Refused(range) => {
            let text = &bytes[range.clone()];
            assert!(range.end == bytes.len() - 2);
            assert!(text.len() < 4096 && !text.contains(&b'\n'));
            said(text);
        }
        Answer::Redirect(redirect) => {
            assert!(redirect.slot < 16384 && redirect.port != 0 && redirect.host.len() <= 255);
            let host = std::str::from_utf8(&bytes[redirect.host.clone()]).unwrap();
            assert!(host.is_ascii() && !host.contains(['/', '@', ' ', '[', ']']));
        }
        Answer::Array(range) => assert_eq!(*range, 0..bytes.len()),
        Answer::Missing | Answer::Done | Answer::Aside => {}
    }
}

/// What a log shows of a server's words is short and printable, and nothing that was sent.
pub fn said(text: &[u8]) {
    let show = |text: &[u8]| session_core::said::Said(text).to_string();
    let shown = show(text);
    assert!(shown.len() <= 4 * 200 + "...".len());
    assert!(shown.bytes().all(|c| matches!(c, b' '..=b'~')));
    let echo = |text: &[u8]| {
        show(&[b"ERR unknown command 'AUTH', with args beginning with: '", text, b"' "].concat())
    };
    assert_eq!(echo(text), echo(b""));
    if text.len() > 16 && !text[..17].contains(&b'\'') {
        assert_eq!(show(&[b"ERR bad key '", text, b"'"].concat()), "ERR bad key '...");
    }
}
