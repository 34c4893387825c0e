//! Lines and numbers of text protocols.

use crate::codec::DecodeError;

/// The longest line (status, error, number or length) that is waited for, in bytes. That of a Redis
/// in protected mode has 1067.
pub(crate) const MAX_LINE: usize = 4096;

/// The line that begins at `start` of `buf`, and where what follows its CRLF begins, once the line
/// has come to its end.
///
/// `searched` is where the search goes on if that is behind `start`, and then where it has ended.
pub(crate) fn line_at<'a>(
    buf: &'a [u8],
    start: usize,
    searched: &mut usize,
) -> Result<Option<(&'a [u8], usize)>, DecodeError> {
    let limit = start.saturating_add(MAX_LINE);
    let from = start.max(*searched);
    let fresh = buf.get(from..limit.min(buf.len())).unwrap_or_default();
    let found = fresh.iter().position(|&c| c == b'\n');
    let end = from.saturating_add(found.unwrap_or(fresh.len()));
    #[cfg(test)]
    looked::at(end.saturating_sub(from));
    *searched = end;
    if found.is_some() {
        let line = buf.get(start..end).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.ok_or(DecodeError::BadLine)?;
        #[cfg(test)]
        looked::at(line.len());
        return Ok(Some((line, end.saturating_add(1))));
    }
    if end >= limit { Err(DecodeError::BadLine) } else { Ok(None) }
}

/// A number in decimal digits and nothing else. `None` if it is none, or too large.
pub(crate) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// A number in decimal digits, without an allocation.
pub(crate) struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The digits of `n`, without leading zeros.
    pub(crate) fn new(mut n: u64) -> Self {
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

    /// The digits.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

/// Counts how often bytes are looked at: once when the end of their line is searched, once more when
/// the line is read. All else about an answer takes the same time whatever its length.
#[cfg(test)]
pub(crate) mod looked {
    use core::cell::Cell;

    std::thread_local! {
        static TIMES: Cell<usize> = const { Cell::new(0) };
    }

    pub(crate) fn at(bytes: usize) {
        TIMES.set(TIMES.get() + bytes);
    }

    /// How often since the last call.
    pub(crate) fn times() -> usize {
        TIMES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_crlf_and_within_the_limit() {
        let line = |buf| line_at(buf, 0, &mut 0);
        assert_eq!(line(b""), Ok(None));
        assert_eq!(line(b"abc\r"), Ok(None));
        assert_eq!(line(b"abc\r\nrest"), Ok(Some((&b"abc"[..], 5))));
        assert_eq!(line(b"\r\n"), Ok(Some((&b""[..], 2))));
        assert_eq!(line(b"abc\nrest"), Err(DecodeError::BadLine));
        assert_eq!(line(&[b'x'; MAX_LINE - 1]), Ok(None));
        assert_eq!(line(&[b'x'; MAX_LINE]), Err(DecodeError::BadLine));
    }

    #[test]
    fn a_line_begins_where_it_is_said_to() {
        assert_eq!(line_at(b"a\r\nbc\r\n", 3, &mut 0), Ok(Some((&b"bc"[..], 7))));
        assert_eq!(line_at(b"a\r\n", 3, &mut 1), Ok(None));
        assert_eq!(line_at(b"a\r\n", 4, &mut 0), Ok(None));
        let long = [b'x'; MAX_LINE + 2];
        assert_eq!(line_at(&long[1..], 2, &mut 0), Ok(None));
        assert_eq!(line_at(&long, 2, &mut 0), Err(DecodeError::BadLine));
    }

    #[test]
    fn the_search_for_the_end_of_a_line_goes_on_where_it_ended() {
        let buf = [&[b'x'; 500][..], b"\r\n"].concat();
        let mut searched = 0;
        looked::times();
        for n in 0..buf.len() {
            assert_eq!(line_at(&buf[..n], 0, &mut searched), Ok(None), "{n}");
        }
        assert_eq!(looked::times(), 501);
        // Twice, as a line is read again that announces what has not come.
        for _ in 0..2 {
            assert_eq!(line_at(&buf, 0, &mut searched), Ok(Some((&buf[..500], 502))));
            assert_eq!(looked::times(), 500);
        }
    }

    #[test]
    fn numbers_are_written_and_read_in_full() {
        for n in [0, 9, 10, 65535, u64::MAX] {
            let decimal = Decimal::new(n);
            assert_eq!(decimal.as_bytes(), std::format!("{n}").as_bytes());
            assert_eq!(parse_decimal(decimal.as_bytes()), Some(n));
        }
        for text in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"0x1", b"18446744073709551616"] {
            assert_eq!(parse_decimal(text), None, "{text:?}");
        }
    }
}
