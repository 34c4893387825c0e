//! What a backend's wire protocol has to offer to a pipelined connection.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// An answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The entry asked for: where it lies in the buffer.
    Value(Range<usize>),
    /// There is no such entry.
    Missing,
    /// The request was carried out.
    Done,
    /// The server refused the request; its own words, without a line end.
    Refused(&'a [u8]),
    /// An entry longer than the limit. That many bytes, not yet received, have to be skipped.
    TooLarge(usize),
}

/// Why the bytes of a server cannot be an answer. The connection is out of step after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A type of reply that none of our requests leads to, or no reply at all.
    UnexpectedType(u8),
    /// A length that is not a number or out of range.
    BadLength,
    /// A line that does not end, or ends wrongly.
    BadLine,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::UnexpectedType(c) => write!(f, "reply of unexpected type 0x{c:02x}"),
            DecodeError::BadLength => f.write_str("reply with an invalid length"),
            DecodeError::BadLine => f.write_str("reply with an invalid line"),
        }
    }
}

/// There is no memory for the request. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// A backend's protocol: requests out, answers in, in order.
pub trait Codec {
    /// Name of the protocol, for logs.
    fn name(&self) -> &'static str;

    /// Appends what a new connection begins with. Returns how many answers it leads to; each has
    /// to be [`Answer::Done`].
    ///
    /// With `probe` there is at least one, so that the server shows that it works.
    fn greet(&self, probe: bool, out: &mut Vec<u8>) -> Result<usize, OutOfMemory>;

    /// Appends a request for the entry `key`.
    fn get(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Appends a request for the entry `key` that removes it in the same step.
    fn take(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Appends a request that sets the entry `key` for `ttl` seconds.
    fn set(&self, key: &[u8], value: &[u8], ttl: u32, out: &mut Vec<u8>)
    -> Result<(), OutOfMemory>;

    /// Appends a request that removes the entry `key`.
    fn delete(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Reads one answer from the beginning of `buf`: the answer and how many bytes it took, or
    /// `None` when more have to come. Values longer than `limit` bytes are not waited for, see
    /// [`Answer::TooLarge`].
    fn decode<'a>(
        &self,
        buf: &'a [u8],
        limit: usize,
    ) -> Result<Option<(Answer<'a>, usize)>, DecodeError>;
}
