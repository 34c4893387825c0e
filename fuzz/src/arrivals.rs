//! Bytes that arrive in pieces.

/// The most pieces that an input is cut into: each is read from the beginning by one side of a
/// comparison.
const MAX_PIECES: usize = 64;

/// Splits an input into the lengths of pieces and the bytes that come in them. The first byte says
/// how many lengths follow it; none stands for one piece.
pub fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = data.split_first()?;
    rest.split_at_checked(usize::from(count % 16))
}

/// How many bytes have arrived after each piece, in order; in the end all `total`. The lengths are
/// used in turn. Those from 128 on are large, so that whole records go by.
pub fn arrivals(lengths: &[u8], total: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut end = 0;
    for &length in lengths.iter().cycle().take(MAX_PIECES) {
        end += match length {
            0 => 1,
            1..=127 => usize::from(length),
            _ => (usize::from(length) - 127) * 64,
        };
        if end >= total {
            break;
        }
        ends.push(end);
    }
    ends.push(total);
    ends
}
