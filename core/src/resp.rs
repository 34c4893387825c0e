//! RESP, the protocol of Redis and Valkey.
//!
//! A codec of our own: the module sends six commands and reads scalar replies, in place and with
//! a limit that holds before the bytes have come. The codec crates build owned frames, or bring a
//! parser library, for the whole of RESP3.

use alloc::vec::Vec;

use crate::codec::{Answer, Codec, DecodeError, OutOfMemory};

/// The longest line (status, error, integer or length) that is waited for, in bytes.
const MAX_LINE: usize = 1024;

/// The longest value that is skipped, in bytes. A server that sends a longer one is not worth its
/// connection.
const MAX_SKIPPED: usize = 1024 * 1024;

/// Redis or Valkey, version 2 of the protocol.
#[derive(Debug)]
pub struct Redis {
    /// The logical database to select; 0 is where a connection begins.
    pub database: u32,
}

impl Codec for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn greet(&self, probe: bool, out: &mut Vec<u8>) -> Result<usize, OutOfMemory> {
        if self.database != 0 {
            let database = Decimal::new(u64::from(self.database));
            command(out, &[b"SELECT", database.as_bytes()])?;
            return Ok(1);
        }
        if probe {
            command(out, &[b"PING"])?;
            return Ok(1);
        }
        Ok(0)
    }

    fn get(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"GET", key])
    }

    fn take(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"GETDEL", key])
    }

    fn set(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        let ttl = Decimal::new(u64::from(ttl));
        command(out, &[b"SET", key, value, b"EX", ttl.as_bytes()])
    }

    fn delete(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"DEL", key])
    }

    fn decode<'a>(
        &self,
        buf: &'a [u8],
        limit: usize,
    ) -> Result<Option<(Answer<'a>, usize)>, DecodeError> {
        let Some((&kind, rest)) = buf.split_first() else {
            return Ok(None);
        };
        if !matches!(kind, b'+' | b'-' | b':' | b'$') {
            return Err(DecodeError::UnexpectedType(kind));
        }
        let Some((line, rest)) = split_line(rest)? else {
            return Ok(None);
        };
        // The kind, the line and its CRLF.
        let head = line.len().saturating_add(3);

        match kind {
            b'-' => Ok(Some((Answer::Refused(line), head))),
            b'$' if line == b"-1" => Ok(Some((Answer::Missing, head))),
            b'$' => {
                let len = parse_length(line).ok_or(DecodeError::BadLength)?;
                let whole = len.checked_add(2).ok_or(DecodeError::BadLength)?;
                if len > limit.max(MAX_SKIPPED) {
                    return Err(DecodeError::BadLength);
                }
                if len > limit {
                    return Ok(Some((Answer::TooLarge(whole), head)));
                }
                match rest.get(len..whole) {
                    Some(b"\r\n") => {
                        let value = head..head.saturating_add(len);
                        Ok(Some((Answer::Value(value), head.saturating_add(whole))))
                    }
                    Some(_) => Err(DecodeError::BadLine),
                    None => Ok(None),
                }
            }
            _ => Ok(Some((Answer::Done, head))),
        }
    }
}

/// Appends a command as an array of bulk strings.
fn command(out: &mut Vec<u8>, args: &[&[u8]]) -> Result<(), OutOfMemory> {
    // A type, at most 20 digits and two line ends around each argument.
    const OVERHEAD: usize = 1 + 20 + 2 + 2;
    let need = args
        .iter()
        .fold(OVERHEAD, |sum, arg| sum.saturating_add(arg.len()).saturating_add(OVERHEAD));
    out.try_reserve(need).map_err(|_| OutOfMemory)?;

    out.push(b'*');
    out.extend_from_slice(Decimal::new(args.len() as u64).as_bytes());
    out.extend_from_slice(b"\r\n");
    for arg in args {
        out.push(b'$');
        out.extend_from_slice(Decimal::new(arg.len() as u64).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

/// A line, and what comes after its CRLF.
type Line<'a> = (&'a [u8], &'a [u8]);

/// The line at the beginning of `buf`, once it has come to its end.
fn split_line(buf: &[u8]) -> Result<Option<Line<'_>>, DecodeError> {
    match buf.iter().take(MAX_LINE).position(|&c| c == b'\n') {
        Some(end) => {
            let (line, rest) = buf.split_at(end);
            let line = line.strip_suffix(b"\r").ok_or(DecodeError::BadLine)?;
            Ok(Some((line, rest.get(1..).unwrap_or_default())))
        }
        None if buf.len() >= MAX_LINE => Err(DecodeError::BadLine),
        None => Ok(None),
    }
}

fn parse_length(line: &[u8]) -> Option<usize> {
    if line.is_empty() || !line.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(line).ok()?.parse().ok()
}

/// A number in decimal digits, without an allocation.
struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    fn new(mut n: u64) -> Self {
        let mut decimal = Decimal { digits: [b'0'; 20], start: 20 };
        loop {
            decimal.start = decimal.start.saturating_sub(1);
            if let Some(digit) = decimal.digits.get_mut(decimal.start) {
                *digit = b'0' | (n % 10) as u8;
            }
            n /= 10;
            if n == 0 {
                return decimal;
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const REDIS: Redis = Redis { database: 0 };

    fn decode(buf: &[u8]) -> Result<Option<(Answer<'_>, usize)>, DecodeError> {
        REDIS.decode(buf, 100)
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let mut out = vec![];
        REDIS.get(b"k1", &mut out).unwrap();
        REDIS.set(b"k\r\n2", b"", 4294967295, &mut out).unwrap();
        assert_eq!(
            out,
            b"*2\r\n$3\r\nGET\r\n$2\r\nk1\r\n\
              *5\r\n$3\r\nSET\r\n$4\r\nk\r\n2\r\n$0\r\n\r\n$2\r\nEX\r\n$10\r\n4294967295\r\n"
        );
        out.clear();
        REDIS.take(b"k", &mut out).unwrap();
        REDIS.delete(b"0123456789", &mut out).unwrap();
        assert_eq!(
            out,
            b"*2\r\n$6\r\nGETDEL\r\n$1\r\nk\r\n*2\r\n$3\r\nDEL\r\n$10\r\n0123456789\r\n"
        );
    }

    #[test]
    fn a_connection_begins_with_its_database_or_a_probe() {
        let mut out = vec![];
        assert_eq!(REDIS.greet(false, &mut out), Ok(0));
        assert_eq!(out, b"");
        assert_eq!(REDIS.greet(true, &mut out), Ok(1));
        assert_eq!(out, b"*1\r\n$4\r\nPING\r\n");
        out.clear();
        assert_eq!(Redis { database: 12 }.greet(true, &mut out), Ok(1));
        assert_eq!(out, b"*2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n");
    }

    #[test]
    fn answers_are_read_in_place() {
        assert_eq!(decode(b"$5\r\na\r\n\0b\r\n+"), Ok(Some((Answer::Value(4..9), 11))));
        assert_eq!(decode(b"$0\r\n\r\n"), Ok(Some((Answer::Value(4..4), 6))));
        assert_eq!(decode(b"$-1\r\n$"), Ok(Some((Answer::Missing, 5))));
        assert_eq!(decode(b"+OK\r\n"), Ok(Some((Answer::Done, 5))));
        assert_eq!(decode(b":1\r\n"), Ok(Some((Answer::Done, 4))));
        assert_eq!(
            decode(b"-LOADING Redis is loading\r\n"),
            Ok(Some((Answer::Refused(b"LOADING Redis is loading"), 27)))
        );
    }

    #[test]
    fn every_truncation_waits_for_more() {
        for whole in [&b"$5\r\nhello\r\n"[..], b"$-1\r\n", b"+OK\r\n", b"-ERR x\r\n", b":12\r\n"] {
            for n in 0..whole.len() {
                assert_eq!(decode(&whole[..n]), Ok(None), "{n} of {whole:?}");
            }
            assert_eq!(decode(whole).unwrap().unwrap().1, whole.len());
        }
    }

    #[test]
    fn a_value_over_the_limit_is_skipped_without_waiting_for_it() {
        assert_eq!(decode(b"$101\r\n"), Ok(Some((Answer::TooLarge(103), 6))));
        assert_eq!(decode(b"$1048576\r\n"), Ok(Some((Answer::TooLarge(1048578), 10))));
        assert_eq!(decode(b"$1048577\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$18446744073709551615\r\n"), Err(DecodeError::BadLength));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert_eq!(decode(b"HTTP/1.1 400\r\n"), Err(DecodeError::UnexpectedType(b'H')));
        assert_eq!(decode(b"*1\r\n"), Err(DecodeError::UnexpectedType(b'*')));
        assert_eq!(decode(b"$x\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$-2\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$+1\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"+OK\n"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"$2\r\nabcd"), Err(DecodeError::BadLine));
        assert_eq!(decode(&[b'+'; 2000]), Err(DecodeError::BadLine));
    }

    #[test]
    fn numbers_are_written_in_full() {
        for n in [0, 9, 10, 65535, u64::MAX] {
            assert_eq!(Decimal::new(n).as_bytes(), std::format!("{n}").as_bytes());
        }
    }
}
