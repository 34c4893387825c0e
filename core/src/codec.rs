//! What a backend's wire protocol has to offer to a pipelined connection.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// An answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The entry asked for: where it lies in the buffer.
    Value(Range<usize>),
    /// The entry asked for by [`Codec::take`]: where it lies in the buffer, and what
    /// [`Codec::claim`] has to name. It is taken once the claim is [`Answer::Done`].
    Claim(Range<usize>, u64),
    /// There is no such entry.
    Missing,
    /// The request was carried out.
    Done,
    /// The server refused the request; its own words, without a line end.
    Refused(&'a [u8]),
    /// Another node of the cluster has the entry.
    Redirect(Redirect<'a>),
    /// An entry longer than the limit. That many bytes, not yet received, have to be skipped.
    TooLarge(usize),
    /// A reply of several values, as the server wrote it.
    Array(&'a [u8]),
    /// A message that answers no request and is of no interest.
    Aside,
}

/// Where a node of a cluster sends a request that it does not answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect<'a> {
    /// Whether this holds for the one request only (`ASK`), or for the slot (`MOVED`).
    pub ask: bool,
    /// The slot of the entry's key.
    pub slot: u16,
    /// The node's address or name; empty for the host of the node that said it.
    pub host: &'a str,
    /// The node's port.
    pub port: u16,
}

/// How long an entry is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// From now on, in seconds; not 0.
    pub ttl: u32,
    /// The same as a point in time, in seconds since the epoch.
    pub at: i64,
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

/// Why a connection is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The server refused what was asked.
    Refused,
    /// The server refused the password, and repeats it.
    RefusedAloud,
    /// The answer is of a kind that the request cannot lead to.
    OutOfStep,
    /// The server is not, or no longer, the master.
    NotMaster,
}

/// There is no memory for the request. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// A backend's protocol: requests out, answers in, in order.
pub trait Codec {
    /// Name of the protocol, for logs.
    fn name(&self) -> &'static str;

    /// The port of a server that is given without one.
    fn default_port(&self) -> u16;

    /// Appends what a new connection begins with. Returns how many answers it leads to; each goes
    /// to [`Codec::greeted`].
    ///
    /// With `probe` there is at least one, so that the server shows that it works.
    fn greet(&self, probe: bool, out: &mut Vec<u8>) -> Result<usize, OutOfMemory>;

    /// Whether the answer to the `step`-th request of the greeting, counted from 0, lets the
    /// connection be used.
    fn greeted(&self, step: usize, answer: &Answer<'_>) -> Result<(), Unfit>;

    /// Appends a request for the entry `key`.
    fn get(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Appends a request for the entry `key` that removes it in the same step, or that leads to
    /// an [`Answer::Claim`].
    fn take(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Appends a request that removes the entry `key` if it still is the one of an
    /// [`Answer::Claim`]. [`Answer::Done`] says that it was.
    fn claim(&self, key: &[u8], claim: u64, out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Appends a request that sets the entry `key`.
    fn set(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory>;

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
