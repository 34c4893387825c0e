//! What a backend's wire protocol has to offer to a pipelined connection.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::hint::Hint;

/// How deep the arrays of an answer may be nested, the answer itself counted. `CLUSTER SLOTS` needs
/// four levels.
pub(crate) const MAX_DEPTH: usize = 5;

/// An answer to one request. All ranges are places in the buffer that [`Codec::decode`] was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The entry asked for.
    Value(Range<usize>),
    /// The entry asked for by [`Codec::take`], and what [`Codec::claim`] has to name. The entry is
    /// taken once the claim is [`Answer::Done`].
    Claim(Range<usize>, u64),
    /// There is no such entry.
    Missing,
    /// The request was carried out.
    Done,
    /// The server refused the request; its own words, without a line end.
    Refused(Range<usize>),
    /// Another node of the cluster has the entry.
    Redirect(Redirect),
    /// An entry longer than the limit. That many bytes, not yet received, belong to it.
    TooLarge(usize),
    /// A reply of several values, as the server wrote it: the whole of it.
    Array(Range<usize>),
    /// A message that answers no request and is of no interest.
    Aside,
}

impl Answer {
    /// The same answer in a buffer in which it lies `by` bytes further on.
    pub fn shifted(self, by: usize) -> Self {
        let shift =
            |range: Range<usize>| range.start.saturating_add(by)..range.end.saturating_add(by);
        match self {
            Answer::Value(range) => Answer::Value(shift(range)),
            Answer::Claim(range, claim) => Answer::Claim(shift(range), claim),
            Answer::Refused(range) => Answer::Refused(shift(range)),
            Answer::Redirect(redirect) => {
                Answer::Redirect(Redirect { host: shift(redirect.host), ..redirect })
            }
            Answer::Array(range) => Answer::Array(shift(range)),
            Answer::Missing | Answer::Done | Answer::TooLarge(_) | Answer::Aside => self,
        }
    }
}

/// Where a node of a cluster sends a request that it does not answer itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Whether this holds for the one request only (`ASK`), or for the slot (`MOVED`).
    pub ask: bool,
    /// The slot of the entry's key.
    pub slot: u16,
    /// The node's address or name, in ASCII; empty for the host of the node that said it.
    pub host: Range<usize>,
    /// The node's port.
    pub port: u16,
}

/// What the request that is answered next may be answered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The longest value, in bytes.
    pub limit: usize,
    /// Whether it may be a reply of several values.
    pub array: bool,
}

/// How far an answer that is not complete has been read, so that the next look at it goes on there.
/// The default is the place at the beginning of a connection.
#[derive(Debug, Default)]
pub struct Place {
    /// How long the buffer has to be before it can say more than it did.
    pub(crate) need: usize,
    /// Where the search for the end of a line goes on, unless the line begins behind it.
    pub(crate) searched: usize,
    /// What is still to come of a reply of several values, once its first line is complete.
    pub(crate) members: Option<Members>,
}

/// What is still to come of a reply of several values.
#[derive(Debug)]
pub(crate) struct Members {
    /// How many values are missing on each level.
    pub(crate) missing: [usize; MAX_DEPTH],
    /// The level of the next value.
    pub(crate) level: usize,
    /// How many values may still be announced.
    pub(crate) budget: usize,
    /// Where the next value begins.
    pub(crate) at: usize,
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
    /// The server refused the password.
    Password,
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

    /// How many answers the greeting leads to, with which a new connection begins. Each goes to
    /// [`Codec::greeted`].
    ///
    /// With `probe` there is at least one, so that the server shows that it works.
    fn greeting_steps(&self, probe: bool) -> usize;

    /// Appends the greeting. `password`: the one to authenticate with, where that is a step of it.
    fn greet(&self, probe: bool, password: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Whether the answer to the `step`-th request of the greeting, counted from 0, lets the
    /// connection be used. `password`: what was sent.
    ///
    /// The answer is one of [`Codec::decode`] for `buf`.
    fn greeted(
        &self,
        step: usize,
        answer: &Answer,
        buf: &[u8],
        password: &[u8],
    ) -> Result<(), Unfit>;

    /// Whether a refusal in these words is of the connection, whatever it answers: the server says
    /// it before it is asked, and closes the connection.
    fn refuses_connection(&self, text: &[u8]) -> bool;

    /// Whether a refusal in these words may be of the connection more than of the server that is
    /// meant: behind a stable address servers change places, and a connection stays with the one
    /// that it was made to.
    fn is_of_connection(&self, text: &[u8]) -> bool;

    /// What an operator can do about a refusal in these words, as they are or as a log has them, to
    /// the `step`-th request of the greeting or to another request.
    fn hint(&self, text: &[u8], step: Option<usize>) -> Option<Hint<'_>>;

    /// What an operator can do about a server that closes the connection instead of an answer to
    /// the `step`-th request of the greeting: proxies do so for what they do not know.
    fn missing(&self, step: usize) -> Option<Hint<'_>>;

    /// Whether the answer to the `step`-th request of the greeting is a reply of several values.
    fn greeting_is_array(&self, step: usize) -> bool;

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

    /// Appends a request that sets the entry `key` if there is none. [`Answer::Done`] says that there was
    /// none, and [`Answer::Missing`] that there was one.
    fn add(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory>;

    /// Appends a request that removes the entry `key`.
    fn delete(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory>;

    /// Reads one answer from the beginning of `buf`: the answer and how many bytes it took, or
    /// `None` when more have to come. Values longer than [`Expected::limit`] are not waited for,
    /// see [`Answer::TooLarge`]. A reply of several values is an error where none is expected.
    ///
    /// After `None` the next call has the same `place`, and a `buf` that begins at the same byte
    /// and has only grown: however small the pieces are that an answer comes in, each byte of it
    /// is looked at a few times in all. Once there is an answer, or an error, the place is the one
    /// that the next answer begins with.
    fn decode(
        &self,
        buf: &[u8],
        expected: &Expected,
        place: &mut Place,
    ) -> Result<Option<(Answer, usize)>, DecodeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_answer_lies_further_on() {
        let redirect = |host| Answer::Redirect(Redirect { ask: true, slot: 1, host, port: 2 });
        for (answer, shifted) in [
            (Answer::Value(1..3), Answer::Value(11..13)),
            (Answer::Claim(1..3, 5), Answer::Claim(11..13, 5)),
            (Answer::Refused(1..1), Answer::Refused(11..11)),
            (redirect(1..3), redirect(11..13)),
            (Answer::Array(0..3), Answer::Array(10..13)),
            (Answer::TooLarge(3), Answer::TooLarge(3)),
            (Answer::Missing, Answer::Missing),
            (Answer::Done, Answer::Done),
            (Answer::Aside, Answer::Aside),
        ] {
            assert_eq!(answer.clone().shifted(0), answer);
            assert_eq!(answer.shifted(10), shifted);
        }
    }
}
