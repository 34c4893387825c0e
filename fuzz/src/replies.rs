//! What holds for the replies of every protocol.

use session_core::codec::{Answer, Codec, DecodeError};

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
    Other(String),
}

/// Reads `wire` in pieces, and all of it at once: both hear the same. Each answer is handed to
/// `check` with the bytes that it took.
pub fn stream(
    codec: &dyn Codec,
    lengths: &[u8],
    wire: &[u8],
    limit: usize,
    check: impl Fn(&Answer<'_>, &[u8]),
) {
    let whole = hear(codec, [wire.len()], wire, limit, &check);
    let pieces = hear(codec, arrivals(lengths, wire.len()), wire, limit, &check);
    assert_eq!(pieces, whole);
}

fn hear(
    codec: &dyn Codec,
    ends: impl IntoIterator<Item = usize>,
    wire: &[u8],
    limit: usize,
    check: impl Fn(&Answer<'_>, &[u8]),
) -> Heard {
    let mut heard = Heard { answers: Vec::new(), error: None, left: wire.len() };
    let mut begin = 0;
    for end in ends {
        // A copy, so that a look beyond what has arrived is one beyond an allocation.
        let arrived = wire[..end].to_vec();
        while let Some(buf) = arrived.get(begin..).filter(|buf| !buf.is_empty()) {
            let (answer, used) = match codec.decode(buf, limit) {
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
            general(codec, &answer, bytes, limit);
            check(&answer, bytes);
            begin += used;
            heard.answers.push(match answer {
                Answer::Value(range) => Kept::Value(bytes[range].to_vec(), None),
                Answer::Claim(range, claim) => Kept::Value(bytes[range].to_vec(), Some(claim)),
                Answer::TooLarge(skipped) => {
                    begin += skipped;
                    Kept::TooLarge(skipped)
                }
                other => Kept::Other(format!("{other:?}")),
            });
            heard.left = wire.len().saturating_sub(begin);
        }
    }
    heard
}

fn general(codec: &dyn Codec, answer: &Answer<'_>, bytes: &[u8], limit: usize) {
    let again = codec.decode(bytes, limit);
    assert_eq!(again, Ok(Some((answer.clone(), bytes.len()))), "what follows is not looked at");
    let short = &bytes[..bytes.len() - 1];
    assert_eq!(codec.decode(short, limit), Ok(None), "the last byte is needed");
    match answer {
        Answer::Value(range) | Answer::Claim(range, _) => {
            assert!(range.len() <= limit && bytes.get(range.clone()).is_some());
            assert!(bytes.ends_with(b"\r\n") && range.end == bytes.len() - 2);
        }
        // The line end is skipped too.
        Answer::TooLarge(skipped) => {
            assert!(*skipped > limit + 2 && *skipped <= 2 + 1024 * 1024);
        }
        Answer::Refused(text) => {
            assert!(text.len() < 1024 && !text.contains(&b'\n'));
            said(text);
        }
        Answer::Redirect(redirect) => {
            assert!(redirect.slot < 16384 && redirect.port != 0 && redirect.host.len() <= 255);
            assert!(!redirect.host.contains(['/', '@', ' ', '[', ']']));
        }
        Answer::Array(reply) => assert_eq!(*reply, bytes),
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
