//! The meta commands of memcached's text protocol (memcached's doc/protocol.txt, "Meta Commands"),
//! in the syntax that memcached has from 1.6.10 on.
//!
//! A key goes into a request as it is: a space or a line end in it would become part of the
//! command, and a server answers a `ms` with a key that is too long with one line for the command
//! and more for the data, which it takes for commands. So a key must be one that [`key_problem`]
//! has nothing against.

use alloc::vec::Vec;
use core::fmt;

use crate::buffer;
use crate::codec::{Answer, Codec, DecodeError, Expected, Expiry, OutOfMemory, Place, Unfit};
use crate::hint::Hint;
use crate::line::{Decimal, line_at, parse_decimal};

/// The longest key that memcached takes, in bytes.
pub const MAX_KEY: usize = 250;

/// The first version with today's meta commands.
const OLDEST: [u64; 3] = [1, 6, 10];

/// What follows the prefix in a cache key: 32 bytes in base64url without padding.
const ENCODED_ID: usize = 43;

/// The longest value that memcached can be told to take, in bytes (option `-I`). A longer one is
/// taken for nonsense.
const MAX_ITEM: usize = 1024 * 1024 * 1024;

/// The longest ttl that memcached takes as a length of time, in seconds. It reads a larger one as
/// a point in time.
const MAX_TTL: u32 = 30 * 24 * 60 * 60;

/// The last point in time that memcached can hold, in seconds since the epoch: it reads 32 bits
/// with a sign, and a larger one becomes an entry that is stored and gone at once.
const MAX_TIME: i64 = i32::MAX as i64;

/// What memcached says to a connection that is one too many.
const TOO_MANY: &[u8] = b"ERROR Too many open connections";

/// memcached.
#[derive(Clone, Copy, Debug)]
pub struct Memcached;

/// Why memcached would not take the keys that begin with a prefix. The text ends a sentence that
/// names the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyProblem {
    /// A space or a control character.
    Character(u8),
    /// The keys would be longer than [`MAX_KEY`].
    TooLong,
}

impl fmt::Display for KeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyProblem::Character(b' ') => f.write_str("memcached allows no space in a key"),
            KeyProblem::Character(c) => {
                write!(f, "memcached allows no control character (0x{c:02x}) in a key")
            }
            KeyProblem::TooLong => {
                write!(f, "memcached allows no key longer than {MAX_KEY} bytes")
            }
        }
    }
}

/// What memcached has against cache keys that begin with `prefix`; `None` if it takes them.
pub fn key_problem(prefix: &[u8]) -> Option<KeyProblem> {
    if let Some(&c) = prefix.iter().find(|&&c| c == b' ' || c.is_ascii_control()) {
        return Some(KeyProblem::Character(c));
    }
    if prefix.len() > MAX_KEY.saturating_sub(ENCODED_ID) {
        return Some(KeyProblem::TooLong);
    }
    None
}

impl Codec for Memcached {
    fn name(&self) -> &'static str {
        "memcached"
    }

    fn default_port(&self) -> u16 {
        11211
    }

    fn greeting_steps(&self, _probe: bool) -> usize {
        2
    }

    /// Asks for the version, and for a meta command that does nothing: a server older than
    /// [`OLDEST`] would take the value of an entry for commands, and so would a proxy that has a
    /// version of its own and no meta commands.
    fn greet(&self, _probe: bool, _: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        append(out, &[b"version\r\nmn\r\n"])
    }

    fn greeted(
        &self,
        step: usize,
        answer: &Answer,
        buf: &[u8],
        _password: &[u8],
    ) -> Result<(), Unfit> {
        let word: &[u8] = if step == 0 { b"VERSION" } else { b"MN" };
        match answer {
            Answer::Done if buf.starts_with(word) => Ok(()),
            Answer::Refused(_) => Err(Unfit::Refused),
            _ => Err(Unfit::OutOfStep),
        }
    }

    fn refuses_connection(&self, text: &[u8]) -> bool {
        text.starts_with(TOO_MANY)
    }

    /// One memcached is as good as another.
    fn is_of_connection(&self, _text: &[u8]) -> bool {
        false
    }

    fn hint(&self, text: &[u8], _step: Option<usize>) -> Option<Hint<'_>> {
        let begins = |words: &[u8]| text.starts_with(words);
        if begins(TOO_MANY) {
            Some(Hint::MemcachedConnections)
        } else if begins(b"CLIENT_ERROR unauthenticated") {
            Some(Hint::MemcachedPassword)
        } else if begins(b"SERVER_ERROR object too large") {
            Some(Hint::MemcachedItemSize)
        } else if begins(b"SERVER_ERROR out of memory") {
            Some(Hint::MemcachedMemory)
        } else if begins(b"VERSION") || begins(b"ERROR") || begins(b"CLIENT_ERROR") {
            Some(Hint::MetaCommands)
        } else {
            None
        }
    }

    fn missing(&self, _step: usize) -> Option<Hint<'_>> {
        Some(Hint::MetaCommands)
    }

    fn greeting_is_array(&self, _step: usize) -> bool {
        false
    }

    fn get(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        append(out, &[b"mg ", key, b" v\r\n"])
    }

    fn take(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        append(out, &[b"mg ", key, b" v c\r\n"])
    }

    /// A server without CAS (option `-C`) gives each entry the claim 0 and removes the entry
    /// whatever it is now: it still does so for one of several claims only.
    fn claim(&self, key: &[u8], claim: u64, out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        append(out, &[b"md ", key, b" C", Decimal::new(claim).as_bytes(), b"\r\n"])
    }

    fn set(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        store(key, value, expiry, b"\r\n", out)
    }

    fn add(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        store(key, value, expiry, b" ME\r\n", out)
    }

    fn delete(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        append(out, &[b"md ", key, b"\r\n"])
    }

    fn decode(
        &self,
        buf: &[u8],
        expected: &Expected,
        place: &mut Place,
    ) -> Result<Option<(Answer, usize)>, DecodeError> {
        let answer = read(buf, expected.limit, place);
        if !matches!(answer, Ok(None)) {
            *place = Place::default();
        }
        answer
    }
}

/// Appends a request that stores an entry, in the mode that `end` says.
fn store(
    key: &[u8],
    value: &[u8],
    expiry: Expiry,
    end: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), OutOfMemory> {
    let len = Decimal::new(value.len() as u64);
    let time = Decimal::new(exptime(expiry));
    append(out, &[b"ms ", key, b" ", len.as_bytes(), b" T", time.as_bytes(), end, value, b"\r\n"])
}

fn read(
    buf: &[u8],
    limit: usize,
    place: &mut Place,
) -> Result<Option<(Answer, usize)>, DecodeError> {
    let Some(&kind) = buf.first().filter(|_| buf.len() >= place.need) else {
        return Ok(None);
    };
    if !matches!(kind, b'C' | b'E' | b'H' | b'M' | b'N' | b'S' | b'V') {
        return Err(DecodeError::UnexpectedType(kind));
    }
    let Some((line, head)) = line_at(buf, 0, &mut place.searched)? else {
        return Ok(None);
    };
    let code_len = line.iter().position(|&c| c == b' ').unwrap_or(line.len());
    let (code, args) = line.split_at(code_len);

    let answer = match code {
        b"VA" => return read_value(args, buf, head, limit, place),
        b"VERSION" if is_new_enough(args) => Answer::Done,
        b"VERSION" => Answer::Refused(0..line.len()),
        b"ERROR" | b"CLIENT_ERROR" | b"SERVER_ERROR" => Answer::Refused(0..line.len()),
        // Before 1.6.18 memcached ends some of these lines with a space.
        _ if args.iter().any(|&c| c != b' ') => return Err(DecodeError::BadLine),
        b"HD" | b"MN" => Answer::Done,
        // "NS" answers what was to be added, and is there.
        b"EN" | b"NF" | b"EX" | b"NS" => Answer::Missing,
        _ => return Err(DecodeError::UnexpectedType(kind)),
    };
    Ok(Some((answer, head)))
}

/// Reads an entry: `args` is what follows `VA` in its line, which takes the first `head` bytes of
/// `buf`.
fn read_value(
    args: &[u8],
    buf: &[u8],
    head: usize,
    limit: usize,
    place: &mut Place,
) -> Result<Option<(Answer, usize)>, DecodeError> {
    let mut words = args.strip_prefix(b" ").unwrap_or_default().split(|&c| c == b' ');
    let len = words.next().and_then(parse_decimal).ok_or(DecodeError::BadLength)?;
    let len = usize::try_from(len).map_err(|_| DecodeError::BadLength)?;
    let whole = len.checked_add(2).ok_or(DecodeError::BadLength)?;
    if len > limit.max(MAX_ITEM) {
        return Err(DecodeError::BadLength);
    }
    // Other flags say what is known of an entry that was invalidated, which ours never are.
    let claim = match words.find_map(|flag| flag.strip_prefix(b"c")) {
        Some(digits) => Some(parse_decimal(digits).ok_or(DecodeError::BadLine)?),
        None => None,
    };
    if len > limit {
        return Ok(Some((Answer::TooLarge(whole), head)));
    }
    let (end, used) = (head.saturating_add(len), head.saturating_add(whole));
    match buf.get(end..used) {
        Some(b"\r\n") => {
            let answer = match claim {
                Some(claim) => Answer::Claim(head..end, claim),
                None => Answer::Value(head..end),
            };
            Ok(Some((answer, used)))
        }
        Some(_) => Err(DecodeError::BadLine),
        None => {
            place.need = used;
            Ok(None)
        }
    }
}

/// Whether a version, as `VERSION` has it, is at least [`OLDEST`].
fn is_new_enough(version: &[u8]) -> bool {
    let mut numbers = version.strip_prefix(b" ").unwrap_or_default().split(|&c| c == b'.');
    let mut next = || {
        let digits = numbers.next().unwrap_or_default();
        let end = digits.iter().position(|c| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits.get(..end).and_then(parse_decimal).unwrap_or(0)
    };
    [next(), next(), next()] >= OLDEST
}

/// An expiry as memcached reads it: up to 30 days a length of time, over that a point in time, by
/// the server's clock. One that it cannot hold becomes 30 days.
fn exptime(expiry: Expiry) -> u64 {
    if expiry.ttl <= MAX_TTL {
        // 0 would be for ever.
        return u64::from(expiry.ttl.max(1));
    }
    match u64::try_from(expiry.at) {
        Ok(at) if at > u64::from(MAX_TTL) && expiry.at <= MAX_TIME => at,
        _ => u64::from(MAX_TTL),
    }
}

/// Appends all `parts`, or none.
fn append(out: &mut Vec<u8>, parts: &[&[u8]]) -> Result<(), OutOfMemory> {
    let need = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
    buffer::reserve(out, need)?;
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{MAX_LINE, looked};
    use std::string::ToString;
    use std::vec;

    const EXPECTED: Expected = Expected { limit: 100, array: false };

    fn decode(buf: &[u8]) -> Result<Option<(Answer, usize)>, DecodeError> {
        Memcached.decode(buf, &EXPECTED, &mut Place::default())
    }

    #[test]
    fn requests_are_meta_commands() {
        let mut out = vec![];
        Memcached.get(b"tls:k", &mut out).unwrap();
        Memcached.take(b"tls:k", &mut out).unwrap();
        Memcached.claim(b"tls:k", u64::MAX, &mut out).unwrap();
        Memcached.delete(b"tls:k", &mut out).unwrap();
        assert_eq!(
            out,
            b"mg tls:k v\r\nmg tls:k v c\r\nmd tls:k C18446744073709551615\r\nmd tls:k\r\n"
        );
        out.clear();
        let expiry = Expiry { ttl: 300, at: 2_000_000_300 };
        Memcached.set(b"k", b"\r\n\0", expiry, &mut out).unwrap();
        Memcached.set(b"k", b"", expiry, &mut out).unwrap();
        assert_eq!(out, b"ms k 3 T300\r\n\r\n\0\r\nms k 0 T300\r\n\r\n");
    }

    #[test]
    fn an_old_server_is_refused() {
        for version in ["1.6.10", "1.6.18", "1.10.0", "2.0.0", "1.6.10-beta1", "1.6.21_5"] {
            let line = std::format!("VERSION {version}\r\n");
            assert_eq!(decode(line.as_bytes()), Ok(Some((Answer::Done, line.len()))), "{version}");
        }
        for version in ["1.6.9", "1.5.22", "1.6", "1", "0.9.9", "", "mcrouter 1.0", "1.6.x"] {
            let line = std::format!("VERSION {version}\r\n");
            let refused = Answer::Refused(0..line.len() - 2);
            assert_eq!(decode(line.as_bytes()), Ok(Some((refused, line.len()))), "{version}");
        }
    }

    #[test]
    fn a_ttl_over_30_days_is_sent_as_a_point_in_time() {
        for (ttl, at, sent) in [
            (1, 2_000_000_000, 1),
            (2_592_000, 2_000_000_000, 2_592_000),
            (2_592_001, 2_000_000_000, 2_000_000_000),
            (u32::MAX, 2_147_483_647, 2_147_483_647),
            // What a server cannot hold, or would read as something else.
            (2_592_001, 2_147_483_648, 2_592_000),
            (2_592_001, i64::MAX, 2_592_000),
            (2_592_001, 2_592_000, 2_592_000),
            (2_592_001, 0, 2_592_000),
            (2_592_001, -1, 2_592_000),
            (0, 2_000_000_000, 1),
        ] {
            assert_eq!(exptime(Expiry { ttl, at }), sent, "{ttl} {at}");
        }
    }

    #[test]
    fn a_connection_begins_with_the_version_and_a_meta_command() {
        let mut out = vec![];
        assert_eq!(Memcached.greet(false, b"", &mut out), Ok(()));
        assert_eq!(Memcached.greeting_steps(false), 2);
        assert_eq!(out, b"version\r\nmn\r\n");
        let greeted = |step, buf: &[u8]| {
            let (answer, _) = decode(buf).unwrap().unwrap();
            Memcached.greeted(step, &answer, buf, b"")
        };
        assert_eq!(greeted(0, b"VERSION 1.6.18\r\n"), Ok(()));
        assert_eq!(greeted(1, b"MN\r\n"), Ok(()));
        for step in [0, 1] {
            assert_eq!(greeted(step, b"CLIENT_ERROR unauthenticated\r\n"), Err(Unfit::Refused));
            for stray in [&b"HD\r\n"[..], b"EN\r\n", b"VA 0\r\n\r\n"] {
                assert_eq!(greeted(step, stray), Err(Unfit::OutOfStep));
            }
        }
        assert_eq!(greeted(0, b"MN\r\n"), Err(Unfit::OutOfStep));
        assert_eq!(greeted(1, b"VERSION 1.6.18\r\n"), Err(Unfit::OutOfStep));
        assert!(!Memcached.greeting_is_array(0));
    }

    #[test]
    fn what_an_operator_can_do_follows_from_the_servers_words() {
        for (text, hint) in [
            ("VERSION 1.5.22", Some(Hint::MetaCommands)),
            ("VERSION mcrouter 1.0", Some(Hint::MetaCommands)),
            ("ERROR", Some(Hint::MetaCommands)),
            ("CLIENT_ERROR bad command line format", Some(Hint::MetaCommands)),
            ("ERROR Too many open connections", Some(Hint::MemcachedConnections)),
            ("CLIENT_ERROR unauthenticated", Some(Hint::MemcachedPassword)),
            ("SERVER_ERROR object too large for cache", Some(Hint::MemcachedItemSize)),
            ("SERVER_ERROR out of memory storing object", Some(Hint::MemcachedMemory)),
            ("SERVER_ERROR", None),
            ("NS", None),
        ] {
            assert_eq!(Memcached.hint(text.as_bytes(), None), hint, "{text}");
        }
        assert!(Memcached.refuses_connection(b"ERROR Too many open connections"));
        assert!(!Memcached.refuses_connection(b"ERROR"));
    }

    #[test]
    fn answers_are_read_in_place() {
        assert_eq!(decode(b"VA 5\r\na\r\n\0b\r\nVA"), Ok(Some((Answer::Value(6..11), 13))));
        assert_eq!(decode(b"VA 0\r\n\r\n"), Ok(Some((Answer::Value(6..6), 8))));
        assert_eq!(decode(b"VA 2 c17\r\nab\r\n"), Ok(Some((Answer::Claim(10..12, 17), 14))));
        assert_eq!(decode(b"VA 1 c0\r\na\r\n"), Ok(Some((Answer::Claim(9..10, 0), 12))));
        assert_eq!(decode(b"VA 1 W X c5 t-1\r\na\r\n").unwrap().unwrap().0, {
            Answer::Claim(17..18, 5)
        });
        assert_eq!(decode(b"VA 1 W Z\r\na\r\n").unwrap().unwrap().0, Answer::Value(10..11));
        assert_eq!(decode(b"HD\r\n"), Ok(Some((Answer::Done, 4))));
        assert_eq!(decode(b"MN\r\n"), Ok(Some((Answer::Done, 4))));
        assert_eq!(decode(b"VERSION 1.6.18\r\nHD"), Ok(Some((Answer::Done, 16))));
        for missing in [b"EN\r\n", b"NF\r\n", b"EX\r\n", b"NS\r\n"] {
            assert_eq!(decode(missing), Ok(Some((Answer::Missing, 4))));
        }
    }

    #[test]
    fn a_space_at_the_end_of_a_line_is_what_older_servers_send() {
        assert_eq!(decode(b"HD \r\n"), Ok(Some((Answer::Done, 5))));
        assert_eq!(decode(b"NF \r\n"), Ok(Some((Answer::Missing, 5))));
        assert_eq!(decode(b"EX  \r\n"), Ok(Some((Answer::Missing, 6))));
        assert_eq!(decode(b"VA 1 \r\na\r\n"), Ok(Some((Answer::Value(7..8), 10))));
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        for text in [
            &b"ERROR"[..],
            b"ERROR Too many open connections",
            b"CLIENT_ERROR bad command line format",
            b"SERVER_ERROR object too large for cache",
        ] {
            let line = [text, b"\r\n"].concat();
            assert_eq!(decode(&line), Ok(Some((Answer::Refused(0..text.len()), line.len()))));
        }
    }

    #[test]
    fn every_truncation_waits_for_more() {
        for whole in [
            &b"VA 5\r\nhello\r\n"[..],
            b"VA 7 c1234\r\n\r\nVA 1\r\r\n",
            b"HD\r\n",
            b"EN\r\n",
            b"VERSION 1.6.18\r\n",
            b"NS\r\n",
            b"SERVER_ERROR out of memory storing object\r\n",
        ] {
            let mut place = Place::default();
            for n in 0..whole.len() {
                assert_eq!(decode(&whole[..n]), Ok(None), "{n} of {whole:?}");
                assert_eq!(Memcached.decode(&whole[..n], &EXPECTED, &mut place), Ok(None));
            }
            assert_eq!(decode(whole).unwrap().unwrap().1, whole.len());
            assert_eq!(Memcached.decode(whole, &EXPECTED, &mut place), decode(whole));
        }
    }

    #[test]
    fn a_header_is_read_twice_however_slowly_its_value_comes() {
        let reply = std::format!("VA {}8192\r\n{}\r\n", "0".repeat(1000), "\n".repeat(8192));
        let expected = Expected { limit: 8192, ..EXPECTED };
        let mut place = Place::default();
        looked::times();
        for n in 0..reply.len() {
            let answer = Memcached.decode(&reply.as_bytes()[..n], &expected, &mut place);
            assert_eq!(answer, Ok(None), "{n}");
        }
        let answer = Memcached.decode(reply.as_bytes(), &expected, &mut place);
        assert_eq!(answer, Ok(Some((Answer::Value(1009..9201), reply.len()))));
        let times = looked::times();
        assert!(times <= 3 * 1009, "{times}");
    }

    #[test]
    fn a_value_over_the_limit_is_not_waited_for() {
        assert_eq!(decode(b"VA 100\r\n"), Ok(None));
        assert_eq!(decode(b"VA 101\r\n"), Ok(Some((Answer::TooLarge(103), 8))));
        assert_eq!(decode(b"VA 101 c3\r\nab"), Ok(Some((Answer::TooLarge(103), 11))));
        let largest = Answer::TooLarge(1_073_741_826);
        assert_eq!(decode(b"VA 1073741824\r\n"), Ok(Some((largest, 15))));
        assert_eq!(decode(b"VA 1073741825\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"VA 18446744073709551615\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"VA 18446744073709551616\r\n"), Err(DecodeError::BadLength));
    }

    #[test]
    fn nonsense_is_an_error() {
        for (buf, error) in [
            (&b"+OK\r\n"[..], DecodeError::UnexpectedType(b'+')),
            (b"OK\r\n", DecodeError::UnexpectedType(b'O')),
            (b"END\r\n", DecodeError::UnexpectedType(b'E')),
            (b"VALUE k 0 1\r\na\r\n", DecodeError::BadLine),
            (b"HDX\r\n", DecodeError::UnexpectedType(b'H')),
            (b"ERRORS\r\n", DecodeError::UnexpectedType(b'E')),
            (b"hd\r\n", DecodeError::UnexpectedType(b'h')),
            (b"\r\n", DecodeError::UnexpectedType(b'\r')),
            (b"HD c5\r\n", DecodeError::BadLine),
            (b"EN x\r\n", DecodeError::BadLine),
            (b"HD\n", DecodeError::BadLine),
            (b"VA\r\n", DecodeError::BadLength),
            (b"VA \r\n", DecodeError::BadLength),
            (b"VA x\r\n", DecodeError::BadLength),
            (b"VA  5\r\nhello\r\n", DecodeError::BadLength),
            (b"VA -1\r\n", DecodeError::BadLength),
            (b"VA +1\r\n", DecodeError::BadLength),
            (b"VA 1 c\r\na\r\n", DecodeError::BadLine),
            (b"VA 1 c-1\r\na\r\n", DecodeError::BadLine),
            (b"VA 1 c18446744073709551616\r\na\r\n", DecodeError::BadLine),
            (b"VA 2\r\nabcd", DecodeError::BadLine),
            (&[b'S'; MAX_LINE], DecodeError::BadLine),
        ] {
            assert_eq!(decode(buf), Err(error), "{buf:?}");
        }
    }

    #[test]
    fn a_prefix_that_memcached_would_not_take_is_found() {
        assert_eq!(key_problem(b""), None);
        assert_eq!(key_problem(b"tls:"), None);
        assert_eq!(key_problem("sélection:".as_bytes()), None);
        assert_eq!(key_problem(b"a b"), Some(KeyProblem::Character(b' ')));
        assert_eq!(key_problem(b"a\r\nflush_all"), Some(KeyProblem::Character(b'\r')));
        assert_eq!(key_problem(b"\0"), Some(KeyProblem::Character(0)));
        assert_eq!(key_problem(b"\x7f"), Some(KeyProblem::Character(0x7f)));
        assert_eq!(key_problem(&[b'p'; 207]), None);
        assert_eq!(key_problem(&[b'p'; 208]), Some(KeyProblem::TooLong));
        assert_eq!(
            KeyProblem::Character(b'\t').to_string(),
            "memcached allows no control character (0x09) in a key"
        );
    }
}
