//! Lines and numbers of text protocols.

use crate::codec::DecodeError;

/// The longest line (status, error, number or length) that is waited for, in bytes.
pub(crate) const MAX_LINE: usize = 1024;

/// A line, and what comes after its CRLF.
type Line<'a> = (&'a [u8], &'a [u8]);

/// The line at the beginning of `buf`, once it has come to its end.
pub(crate) fn split_line(buf: &[u8]) -> Result<Option<Line<'_>>, DecodeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_crlf_and_within_the_limit() {
        assert_eq!(split_line(b""), Ok(None));
        assert_eq!(split_line(b"abc\r"), Ok(None));
        assert_eq!(split_line(b"abc\r\nrest"), Ok(Some((&b"abc"[..], &b"rest"[..]))));
        assert_eq!(split_line(b"\r\n"), Ok(Some((&b""[..], &b""[..]))));
        assert_eq!(split_line(b"abc\nrest"), Err(DecodeError::BadLine));
        assert_eq!(split_line(&[b'x'; MAX_LINE - 1]), Ok(None));
        assert_eq!(split_line(&[b'x'; MAX_LINE]), Err(DecodeError::BadLine));
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
