//! What is read of DER (X.690): values of up to 64 KB, with tags of one byte.

/// The value that is tagged so, which is all there is.
pub fn alone(tag: u8, der: &[u8]) -> Option<&[u8]> {
    value(tag, der).and_then(|(value, after)| after.is_empty().then_some(value))
}

/// The value that is tagged so at the beginning of `der`, and what comes after it.
pub fn value(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (len, rest) = match first {
        len @ ..=0x7f => (usize::from(len), rest),
        0x81 => rest.split_first().map(|(&len, rest)| (usize::from(len), rest))?,
        0x82 => rest
            .split_first_chunk()
            .map(|(&len, rest)| (usize::from(u16::from_be_bytes(len)), rest))?,
        _ => return None,
    };
    rest.split_at_checked(len)
}
