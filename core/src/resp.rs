//! RESP, the protocol of Redis and Valkey.
//!
//! A codec of our own: the module sends a dozen commands and reads scalar replies, in place and
//! with a limit that holds before the bytes have come; replies of several values are only
//! measured, and read by [`crate::topology`]. The codec crates build owned frames, or bring a
//! parser library, for the whole of RESP3.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::ops::Range;

use crate::buffer;
use crate::codec::{
    Answer, Codec, DecodeError, Expected, Expiry, MAX_DEPTH, Members, OutOfMemory, Place, Redirect,
    Unfit,
};
use crate::hint::{Hint, has};
use crate::line::{Decimal, line_at, parse_decimal};

/// How many slots a cluster divides its keys into (Redis Cluster specification, "Key distribution
/// model").
pub const SLOTS: u16 = 16384;

/// The longest string that Redis has unless its limit is raised, in bytes
/// (`proto-max-bulk-len`). A longer one is taken for nonsense.
const MAX_STRING: usize = 512 * 1024 * 1024;

/// The longest reply of several values, in bytes. `CLUSTER SLOTS` takes some 200 for each range
/// of slots with a master and a replica.
const MAX_ARRAY: usize = 1024 * 1024;

/// How many values such a reply may announce, on all levels together.
const MAX_ELEMENTS: usize = 128 * 1024;

/// The longest push, in bytes. None is asked for, and none is of interest.
const MAX_PUSH: usize = 64 * 1024;

/// The longest name of a host, in bytes (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 255;

/// Redis or Valkey, version 2 of the protocol.
///
/// It never answers with [`Answer::Claim`]: a take is one step.
#[derive(Clone, Default)]
pub struct Redis {
    /// The user to authenticate as; `default` if there is none.
    pub username: Option<Vec<u8>>,
    /// Whether to authenticate, with the password that a greeting is given.
    pub authenticates: bool,
    /// What the connection is called in the server's list of clients.
    pub client_name: Option<Vec<u8>>,
    /// The logical database to select; 0 is where a connection begins.
    pub database: u32,
    /// Whether the server has to be a master.
    pub master: bool,
    /// Whether the server is a replica, which is only read from.
    pub replica: bool,
    /// Whether a node of a cluster is to answer for its master (`READONLY`).
    pub read_only: bool,
    /// Whether the server is a Sentinel.
    pub sentinel: bool,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("username", &self.username)
            .field("authenticates", &self.authenticates)
            .field("client_name", &self.client_name)
            .field("database", &self.database)
            .field("master", &self.master)
            .field("replica", &self.replica)
            .field("read_only", &self.read_only)
            .field("sentinel", &self.sentinel)
            .finish()
    }
}

/// A request of the greeting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Authenticate,
    Name,
    Select,
    ReadOnly,
    Role,
    Ping,
}

/// A right that one of our commands needs.
struct Right {
    /// The command, as the server quotes it.
    command: &'static str,
    /// The step of the greeting that it is.
    step: Option<Step>,
    /// The right, as `ACL SETUSER` has it.
    right: &'static str,
    /// What there is to do where the server does not know the command.
    unknown: Hint<'static>,
}

/// What is sent.
const RIGHTS: [Right; 14] = {
    const fn right(command: &'static str, right: &'static str, unknown: Hint<'static>) -> Right {
        Right { command, step: None, right, unknown }
    }
    const fn step(
        step: Step,
        command: &'static str,
        needed: &'static str,
        unknown: Hint<'static>,
    ) -> Right {
        Right { step: Some(step), ..right(command, needed, unknown) }
    }
    [
        right("get", "+get", Hint::Command),
        right("set", "+set", Hint::Command),
        right("del", "+del", Hint::Command),
        right("getdel", "+getdel", Hint::Take),
        right("asking", "+asking", Hint::NotCluster),
        right("cluster", "+cluster|slots", Hint::NotCluster),
        right("sentinel|replicas", "+sentinel|replicas", Hint::NotSentinel),
        right("sentinel", "+sentinel|get-master-addr-by-name", Hint::NotSentinel),
        step(Step::Authenticate, "auth", "+auth", Hint::PasswordNotNeeded { of: "" }),
        step(Step::Name, "client", "+client|setname", Hint::ClientName),
        step(Step::Select, "select", "+select", Hint::Database),
        step(Step::ReadOnly, "readonly", "+readonly", Hint::NotCluster),
        step(Step::Role, "role", "+role", Hint::Role),
        step(Step::Ping, "ping", "+ping", Hint::Command),
    ]
};

impl Right {
    /// Whether it is of the command that the server quotes, alone or with a subcommand, or else of
    /// the step that it answers.
    fn is_named_in(&self, text: &[u8], step: Option<Step>) -> bool {
        let quote = |&c: &u8| matches!(c, b'\'' | b'`' | b'"');
        match text.iter().position(quote).and_then(|at| text.get(at.saturating_add(1)..)) {
            Some(quoted) => {
                quoted.split_at_checked(self.command.len()).is_some_and(|(name, rest)| {
                    let ends = rest.first().is_some_and(|c| quote(c) || *c == b'|');
                    name.eq_ignore_ascii_case(self.command.as_bytes()) && ends
                })
            }
            None => step.is_some() && self.step == step,
        }
    }
}

/// What there is to do where the server does not know a command.
fn unknown(text: &[u8], step: Option<Step>, of: &'static str) -> Option<Hint<'static>> {
    let right = RIGHTS.iter().find(|right| right.is_named_in(text, step));
    Some(match right.map(|right| right.unknown) {
        Some(Hint::PasswordNotNeeded { .. }) => Hint::PasswordNotNeeded { of },
        Some(hint) => hint,
        None => Hint::Command,
    })
}

/// Whether a text has the password in it.
fn is_in(text: &[u8], password: &[u8]) -> bool {
    !password.is_empty() && text.windows(password.len()).any(|words| words == password)
}

/// Whether `AUTH` was refused for the password, or the user, and another password might do. Redis
/// before 6 has other words for it.
fn refuses_password(text: &[u8]) -> bool {
    match split_word(text) {
        (b"WRONGPASS" | b"NOAUTH", _) => true,
        (b"ERR", rest) => has(rest, "invalid password"),
        _ => false,
    }
}

/// The first word of a text, and what follows it.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&c| c == b' ').unwrap_or(text.len());
    text.split_at(end)
}

impl Redis {
    /// The requests of a greeting with a probe, in their order.
    ///
    /// A server that loads its data, or a replica that has lost its master, accepts `AUTH`,
    /// `SELECT` and `ROLE` all the same: only `PING` shows that it works.
    fn steps(&self) -> impl Iterator<Item = Step> {
        [
            (self.authenticates, Step::Authenticate),
            (self.client_name.is_some(), Step::Name),
            (self.database != 0, Step::Select),
            (self.read_only, Step::ReadOnly),
            (self.master, Step::Role),
            (true, Step::Ping),
        ]
        .into_iter()
        .filter_map(|(wanted, step)| wanted.then_some(step))
    }

    /// Those of a greeting.
    fn greeting(&self, probe: bool) -> impl Iterator<Item = Step> {
        self.steps().filter(move |&step| probe || step != Step::Ping)
    }

    /// What has to be allowed where a user lacks a right, by the server's words.
    fn lacks(&self, text: &[u8], step: Option<Step>) -> Hint<'_> {
        let user = self.username.as_deref().unwrap_or(b"default");
        match RIGHTS.iter().find(|right| right.is_named_in(text, step)) {
            Some(right) => Hint::Allow { user, right: right.right },
            None if has(text, "key") => Hint::AllowKeys { user },
            None => Hint::Allow { user, right: "+get +set +del" },
        }
    }

    /// Calls `f` with the words of one of these requests.
    fn with_words<R>(&self, step: Step, password: &[u8], f: impl FnOnce(&[&[u8]]) -> R) -> R {
        match step {
            Step::Authenticate => match &self.username {
                Some(username) => f(&[b"AUTH", username, password]),
                None => f(&[b"AUTH", password]),
            },
            Step::Name => {
                f(&[b"CLIENT", b"SETNAME", self.client_name.as_deref().unwrap_or_default()])
            }
            Step::Select => f(&[b"SELECT", Decimal::new(u64::from(self.database)).as_bytes()]),
            Step::ReadOnly => f(&[b"READONLY"]),
            Step::Role => f(&[b"ROLE"]),
            Step::Ping => f(&[b"PING"]),
        }
    }
}

impl Codec for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn default_port(&self) -> u16 {
        6379
    }

    fn greeting_steps(&self, probe: bool) -> usize {
        self.greeting(probe).count()
    }

    /// Makes room for all of it first: a buffer that grew later would leave a copy of the password
    /// in the memory it had before.
    fn greet(&self, probe: bool, password: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        let need = self
            .greeting(probe)
            .fold(0, |sum: usize, step| sum.saturating_add(self.with_words(step, password, room)));
        buffer::reserve(out, need)?;
        self.greeting(probe)
            .try_for_each(|step| self.with_words(step, password, |words| command(out, words)))
    }

    fn greeted(
        &self,
        step: usize,
        answer: &Answer,
        buf: &[u8],
        password: &[u8],
    ) -> Result<(), Unfit> {
        let bytes = |range: &Range<usize>| buf.get(range.clone()).unwrap_or_default();
        match (self.steps().nth(step), answer) {
            (None, _) => Err(Unfit::OutOfStep),
            // Names must not hold spaces, and the command may be forbidden. It is only a name.
            (Some(Step::Name), Answer::Refused(_)) => Ok(()),
            // A server that cannot save, or a user without this right, still answers requests.
            (Some(Step::Ping), Answer::Refused(text))
                if bytes(text).starts_with(b"MISCONF ") || bytes(text).starts_with(b"NOPERM ") =>
            {
                Ok(())
            }
            (Some(Step::Authenticate), Answer::Refused(text)) => {
                let text = bytes(text);
                Err(if is_in(text, password) {
                    Unfit::RefusedAloud
                } else if refuses_password(text) {
                    Unfit::Password
                } else {
                    Unfit::Refused
                })
            }
            (Some(_), Answer::Refused(_)) => Err(Unfit::Refused),
            (Some(Step::Role), Answer::Array(reply)) => {
                let mut values = Values::new(bytes(reply));
                match values.array().and_then(|_| values.bulk()) {
                    Some(b"master") => Ok(()),
                    Some(_) => Err(Unfit::NotMaster),
                    None => Err(Unfit::OutOfStep),
                }
            }
            (Some(Step::Role), _) => Err(Unfit::OutOfStep),
            (Some(_), Answer::Done) => Ok(()),
            (Some(_), _) => Err(Unfit::OutOfStep),
        }
    }

    fn refuses_connection(&self, text: &[u8]) -> bool {
        text.starts_with(b"DENIED ") || text.starts_with(b"ERR max number of clients")
    }

    /// What a replica says is nothing of the connection where it was asked as one, or where Sentinels
    /// say who the master is.
    fn is_of_connection(&self, text: &[u8]) -> bool {
        match split_word(text).0 {
            _ if self.replica => false,
            b"READONLY" | b"MASTERDOWN" => !self.master,
            // It knew who is there.
            b"NOAUTH" => self.authenticates,
            word => word == b"LOADING",
        }
    }

    fn hint(&self, text: &[u8], step: Option<usize>) -> Option<Hint<'_>> {
        let step = step.and_then(|step| self.steps().nth(step));
        let of = if self.sentinel { "sentinel_" } else { "" };
        let (word, rest) = split_word(text);
        match word {
            b"DENIED" => Some(Hint::ProtectedMode),
            b"NOAUTH" => Some(Hint::PasswordNeeded { of }),
            b"WRONGPASS" => Some(Hint::Credentials { of }),
            b"NOPERM" => Some(self.lacks(rest, step)),
            b"MOVED" | b"ASK" => Some(Hint::Cluster),
            b"MASTERDOWN" if self.replica => None,
            b"READONLY" | b"MASTERDOWN" => Some(Hint::Replica),
            b"OOM" => Some(Hint::Memory),
            b"MISCONF" => Some(Hint::Save),
            b"NOREPLICAS" => Some(Hint::Replicas),
            b"WRONGTYPE" => Some(Hint::Keys),
            b"ERR" if has(rest, "max number of clients") => Some(Hint::MaxClients),
            b"ERR" if has(rest, "without any password") || has(rest, "no password is set") => {
                Some(Hint::PasswordNotNeeded { of })
            }
            b"ERR" if has(rest, "cluster mode") => Some(Hint::Cluster),
            b"ERR" if has(rest, "cluster support disabled") => Some(Hint::NotCluster),
            b"ERR" if has(rest, "unknown") || has(rest, "unsupported") => unknown(rest, step, of),
            b"LOADING" | b"BUSY" => None,
            _ => match step? {
                Step::Authenticate
                    if has(rest, "number of arguments") && self.username.is_some() =>
                {
                    Some(Hint::NoUsers { of })
                }
                Step::Authenticate => Some(Hint::Credentials { of }),
                Step::Select => Some(Hint::Database),
                Step::Name => Some(Hint::ClientName),
                Step::Role => Some(Hint::Role),
                Step::ReadOnly | Step::Ping => None,
            },
        }
    }

    fn missing(&self, step: usize) -> Option<Hint<'_>> {
        match self.steps().nth(step)? {
            Step::Authenticate | Step::ReadOnly | Step::Ping => None,
            Step::Name => Some(Hint::ClientName),
            Step::Select => Some(Hint::Database),
            Step::Role => Some(Hint::Role),
        }
    }

    fn greeting_is_array(&self, step: usize) -> bool {
        self.steps().nth(step) == Some(Step::Role)
    }

    fn get(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"GET", key])
    }

    /// Needs Redis 6.2; an older server refuses it.
    fn take(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"GETDEL", key])
    }

    /// Never called, as no answer is an [`Answer::Claim`]. Removes the entry, whichever it is.
    fn claim(&self, key: &[u8], _claim: u64, out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        self.delete(key, out)
    }

    fn set(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        let ttl = Decimal::new(u64::from(expiry.ttl));
        command(out, &[b"SET", key, value, b"EX", ttl.as_bytes()])
    }

    fn add(
        &self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        let ttl = Decimal::new(u64::from(expiry.ttl));
        command(out, &[b"SET", key, value, b"NX", b"EX", ttl.as_bytes()])
    }

    fn delete(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        command(out, &[b"DEL", key])
    }

    fn decode(
        &self,
        buf: &[u8],
        expected: &Expected,
        place: &mut Place,
    ) -> Result<Option<(Answer, usize)>, DecodeError> {
        let answer = read(buf, expected, place);
        if !matches!(answer, Ok(None)) {
            *place = Place::default();
        }
        answer
    }
}

fn read(
    buf: &[u8],
    expected: &Expected,
    place: &mut Place,
) -> Result<Option<(Answer, usize)>, DecodeError> {
    let Some(&kind) = buf.first().filter(|_| buf.len() >= place.need) else {
        return Ok(None);
    };
    if let Some(members) = place.members.take() {
        return read_members(kind, members, buf, place);
    }
    if !matches!(kind, b'+' | b'-' | b':' | b'$' | b'*' | b'_' | b'>') {
        return Err(DecodeError::UnexpectedType(kind));
    }
    let Some((line, head)) = line_at(buf, 1, &mut place.searched)? else {
        return Ok(None);
    };

    let answer = match kind {
        b'-' => parse_redirect(line, 1)
            .map_or(Answer::Refused(1..line.len().saturating_add(1)), Answer::Redirect),
        b'$' | b'*' if line == b"-1" => Answer::Missing,
        b'_' if line.is_empty() => Answer::Missing,
        b'_' => return Err(DecodeError::BadLine),
        b'$' => {
            let len = parse_length(line).ok_or(DecodeError::BadLength)?;
            if len > expected.limit.max(MAX_STRING) {
                return Err(DecodeError::BadLength);
            }
            if len > expected.limit {
                let whole = len.checked_add(2).ok_or(DecodeError::BadLength)?;
                return Ok(Some((Answer::TooLarge(whole), head)));
            }
            let value = bulk_at(buf, head, len, place)?;
            return Ok(value.map(|(value, used)| (Answer::Value(value), used)));
        }
        b'*' | b'>' => {
            let count = parse_length(line).ok_or(DecodeError::BadLength)?;
            if kind == b'*' && !expected.array {
                return Err(DecodeError::UnexpectedType(kind));
            }
            return read_members(kind, Members::new(count, head)?, buf, place);
        }
        _ => Answer::Done,
    };
    Ok(Some((answer, head)))
}

/// Goes on with an array or a push.
fn read_members(
    kind: u8,
    mut members: Members,
    buf: &[u8],
    place: &mut Place,
) -> Result<Option<(Answer, usize)>, DecodeError> {
    let limit = if kind == b'*' { MAX_ARRAY } else { MAX_PUSH };
    // What lies beyond the limit cannot belong to it.
    let within = buf.get(..limit).unwrap_or(buf);
    if members.skip(within, place)? {
        let answer = if kind == b'*' { Answer::Array(0..members.at) } else { Answer::Aside };
        return Ok(Some((answer, members.at)));
    }
    if within.len() >= limit {
        return Err(DecodeError::BadLength);
    }
    place.need = place.need.min(limit);
    place.members = Some(members);
    Ok(None)
}

/// Appends what makes a node of a cluster carry out the next request although the slot is only
/// about to move to it: what goes before a request that follows an `ASK`.
pub fn asking(out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
    command(out, &[b"ASKING"])
}

/// Appends a request for the slots of a cluster and their nodes.
pub fn cluster_slots(out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
    command(out, &[b"CLUSTER", b"SLOTS"])
}

/// Appends a request for the address of the master that a sentinel watches under `name`.
pub fn master_address(name: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
    command(out, &[b"SENTINEL", b"get-master-addr-by-name", name])
}

/// Appends a request for the replicas of that master.
pub fn replicas(name: &[u8], out: &mut Vec<u8>) -> Result<(), OutOfMemory> {
    command(out, &[b"SENTINEL", b"replicas", name])
}

/// A reply of several values, read from its beginning. Each reader moves on by what it has read;
/// `None` is a value of another kind, or none.
pub(crate) struct Values<'a> {
    rest: &'a [u8],
}

/// One value, or the beginning of an array of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Array(usize),
    Bulk(&'a [u8]),
    Integer(&'a [u8]),
    Null,
    /// A status or an error.
    Text,
}

impl<'a> Values<'a> {
    /// Begins to read `reply`.
    pub(crate) fn new(reply: &'a [u8]) -> Self {
        Values { rest: reply }
    }

    /// Whether everything has been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next value. The members of an array come after it.
    pub(crate) fn value(&mut self) -> Option<Value<'a>> {
        let (value, end) = value_at(self.rest, 0, &mut Place::default()).ok()??;
        self.rest = self.rest.get(end..)?;
        Some(value)
    }

    /// The beginning of an array: how many members come next.
    pub(crate) fn array(&mut self) -> Option<usize> {
        match self.value()? {
            Value::Array(count) => Some(count),
            _ => None,
        }
    }

    /// A string.
    pub(crate) fn bulk(&mut self) -> Option<&'a [u8]> {
        match self.value()? {
            Value::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub(crate) fn integer(&mut self) -> Option<usize> {
        match self.value()? {
            Value::Integer(digits) => parse_length(digits),
            _ => None,
        }
    }

    /// Leaves `count` values out, arrays with all that is in them.
    pub(crate) fn skip(&mut self, count: usize) -> Option<()> {
        let mut members = Members::new(count, 0).ok()?;
        if !members.skip(self.rest, &mut Place::default()).ok()? {
            return None;
        }
        self.rest = self.rest.get(members.at..)?;
        Some(())
    }
}

impl Members {
    /// So many values, the first of which begins at `at`.
    fn new(count: usize, at: usize) -> Result<Self, DecodeError> {
        let mut members = Members { missing: [0; MAX_DEPTH], level: 0, budget: MAX_ELEMENTS, at };
        members.announce(count)?;
        Ok(members)
    }

    /// So many values are to come on the level that was just entered.
    fn announce(&mut self, count: usize) -> Result<(), DecodeError> {
        let missing = self.missing.get_mut(self.level);
        let missing = missing.ok_or(DecodeError::UnexpectedType(b'*'))?;
        self.budget = self.budget.checked_sub(count).ok_or(DecodeError::BadLength)?;
        *missing = count;
        Ok(())
    }

    /// Goes over the values that are complete. Whether all are.
    fn skip(&mut self, buf: &[u8], place: &mut Place) -> Result<bool, DecodeError> {
        while let Some(missing) = self.missing.get_mut(self.level) {
            if let Some(fewer) = missing.checked_sub(1) {
                let Some((value, end)) = value_at(buf, self.at, place)? else {
                    return Ok(false);
                };
                *missing = fewer;
                self.at = end;
                if let Value::Array(count) = value {
                    self.level = self.level.saturating_add(1);
                    self.announce(count)?;
                }
            } else if let Some(outer) = self.level.checked_sub(1) {
                self.level = outer;
            } else {
                break;
            }
        }
        Ok(true)
    }
}

/// The value that begins at `at`, once it is complete, and where what follows it begins. The
/// members of an array follow it.
fn value_at<'a>(
    buf: &'a [u8],
    at: usize,
    place: &mut Place,
) -> Result<Option<(Value<'a>, usize)>, DecodeError> {
    let Some(&kind) = buf.get(at) else {
        return Ok(None);
    };
    if !matches!(kind, b'+' | b'-' | b':' | b'$' | b'*' | b'_') {
        return Err(DecodeError::UnexpectedType(kind));
    }
    let Some((line, head)) = line_at(buf, at.saturating_add(1), &mut place.searched)? else {
        return Ok(None);
    };
    let value = match kind {
        b':' => Value::Integer(line),
        b'$' | b'*' if line == b"-1" => Value::Null,
        b'_' if line.is_empty() => Value::Null,
        b'_' => return Err(DecodeError::BadLine),
        b'*' => Value::Array(parse_length(line).ok_or(DecodeError::BadLength)?),
        b'$' => {
            let len = parse_length(line).filter(|&len| len <= MAX_ARRAY);
            let len = len.ok_or(DecodeError::BadLength)?;
            let Some((range, end)) = bulk_at(buf, head, len, place)? else {
                return Ok(None);
            };
            return Ok(Some((Value::Bulk(buf.get(range).unwrap_or_default()), end)));
        }
        _ => Value::Text,
    };
    Ok(Some((value, head)))
}

/// Where a string of `len` bytes that begins at `start` lies, once it is complete, and where what
/// follows its CRLF begins.
fn bulk_at(
    buf: &[u8],
    start: usize,
    len: usize,
    place: &mut Place,
) -> Result<Option<(Range<usize>, usize)>, DecodeError> {
    let end = start.checked_add(len).ok_or(DecodeError::BadLength)?;
    let after = end.checked_add(2).ok_or(DecodeError::BadLength)?;
    match buf.get(end..after) {
        Some(b"\r\n") => Ok(Some((start..end, after))),
        Some(_) => Err(DecodeError::BadLine),
        None => {
            place.need = after;
            Ok(None)
        }
    }
}

/// Reads `MOVED slot host:port` or `ASK slot host:port`, a line that begins at `start`. An IPv6
/// address has no brackets: the port is what follows the last colon.
fn parse_redirect(line: &[u8], start: usize) -> Option<Redirect> {
    let mut words = line.split(|&c| c == b' ');
    let ask = match words.next()? {
        b"ASK" => true,
        b"MOVED" => false,
        _ => return None,
    };
    let slot = parse_slot(parse_length(words.next()?)?)?;
    let place = words.next()?;
    if words.next().is_some() {
        return None;
    }
    let mut parts = place.rsplitn(2, |&c| c == b':');
    let port = parse_port(parse_length(parts.next()?)?)?;
    let host = parse_host(parts.next()?)?;
    // The place is the last word of the line.
    let from = start.saturating_add(line.len().saturating_sub(place.len()));
    Some(Redirect { ask, slot, host: from..from.saturating_add(host.len()), port })
}

/// A number of a slot.
pub(crate) fn parse_slot(n: usize) -> Option<u16> {
    u16::try_from(n).ok().filter(|&slot| slot < SLOTS)
}

/// A port that can be connected to.
pub(crate) fn parse_port(n: usize) -> Option<u16> {
    u16::try_from(n).ok().filter(|&port| port != 0)
}

/// An IP address without brackets, or a name. Empty if the node does not know it: it then says
/// nothing, or `?` where it should have a name and has none (`cluster-preferred-endpoint-type`).
///
/// Nothing else passes, as what a server says is connected to: a path or a port in it would lead
/// elsewhere.
pub(crate) fn parse_host(host: &[u8]) -> Option<&str> {
    if host == b"?" {
        return Some("");
    }
    let plain = |&c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let text = core::str::from_utf8(host).ok()?;
    let fits = host.len() <= MAX_HOST && host.iter().all(plain);
    (fits || text.parse::<IpAddr>().is_ok()).then_some(text)
}

/// Appends a command as an array of bulk strings.
fn command(out: &mut Vec<u8>, args: &[&[u8]]) -> Result<(), OutOfMemory> {
    buffer::reserve(out, room(args))?;

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

/// How many bytes a command takes at most.
fn room(args: &[&[u8]]) -> usize {
    // A type, at most 20 digits and two line ends around each argument.
    const OVERHEAD: usize = 1 + 20 + 2 + 2;
    args.iter().fold(OVERHEAD, |sum, arg| sum.saturating_add(arg.len()).saturating_add(OVERHEAD))
}

/// Decimal digits, and nothing else.
pub(crate) fn parse_length(digits: &[u8]) -> Option<usize> {
    usize::try_from(parse_decimal(digits)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::looked;
    use std::format;
    use std::string::String;
    use std::vec;

    const REDIS: Redis = Redis {
        username: None,
        authenticates: false,
        client_name: None,
        database: 0,
        master: false,
        replica: false,
        read_only: false,
        sentinel: false,
    };
    const EXPIRY: Expiry = Expiry { ttl: 4294967295, at: 0 };
    const PASSWORD: &[u8] = b"pa\r\nss";

    /// Everything that a greeting may begin with.
    fn full() -> Redis {
        Redis {
            username: Some(b"nginx".to_vec()),
            authenticates: true,
            client_name: Some(b"web1".to_vec()),
            database: 12,
            master: true,
            replica: false,
            read_only: false,
            sentinel: false,
        }
    }

    fn greeting(redis: &Redis, probe: bool) -> (usize, String) {
        let mut out = vec![];
        redis.greet(probe, PASSWORD, &mut out).unwrap();
        (redis.greeting_steps(probe), String::from_utf8(out).unwrap())
    }

    const EXPECTED: Expected = Expected { limit: 100, array: true };

    fn decode(buf: &[u8]) -> Result<Option<(Answer, usize)>, DecodeError> {
        REDIS.decode(buf, &EXPECTED, &mut Place::default())
    }

    /// What becomes of a reply that comes byte by byte, and how often its bytes are looked at.
    fn dripped(reply: &[u8]) -> (Result<Option<(Answer, usize)>, DecodeError>, usize) {
        let mut place = Place::default();
        looked::times();
        for n in 0..=reply.len() {
            let answer = REDIS.decode(&reply[..n], &EXPECTED, &mut place);
            if answer != Ok(None) {
                return (answer, looked::times());
            }
        }
        (Ok(None), looked::times())
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let mut out = vec![];
        REDIS.get(b"k1", &mut out).unwrap();
        REDIS.set(b"k\r\n2", b"", EXPIRY, &mut out).unwrap();
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
    fn requests_to_clusters_and_sentinels_are_arrays_too() {
        let mut out = vec![];
        asking(&mut out).unwrap();
        cluster_slots(&mut out).unwrap();
        master_address(b"fleet", &mut out).unwrap();
        assert_eq!(
            out,
            b"*1\r\n$6\r\nASKING\r\n*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n\
              *3\r\n$8\r\nSENTINEL\r\n$23\r\nget-master-addr-by-name\r\n$5\r\nfleet\r\n"
        );
    }

    #[test]
    fn what_an_operator_can_do_follows_from_the_servers_words() {
        let named = Redis { username: Some(b"nginx".to_vec()), ..REDIS };
        let allow = |right| Some(Hint::Allow { user: b"nginx", right });
        for (text, hint) in [
            ("NOAUTH Authentication required.", Some(Hint::PasswordNeeded { of: "" })),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Some(Hint::Credentials { of: "" }),
            ),
            ("NOPERM this user has no permissions to run the 'getdel' command", allow("+getdel")),
            ("NOPERM User nginx has no permissions to run the 'get' command", allow("+get")),
            (
                "NOPERM this user has no permissions to run the 'cluster|slots' command",
                allow("+cluster|slots"),
            ),
            (
                "NOPERM this user has no permissions to run the 'client' command or its subcommand",
                allow("+client|setname"),
            ),
            ("NOPERM this user has no permissions to run the '...", allow("+get +set +del")),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Some(Hint::AllowKeys { user: b"nginx" }),
            ),
            ("NOPERM No permissions to access a key", Some(Hint::AllowKeys { user: b"nginx" })),
            ("ERR max number of clients reached", Some(Hint::MaxClients)),
            ("ERR max number of clients + cluster connections reached", Some(Hint::MaxClients)),
            ("ERR unknown command 'GETDEL', with args beginning with: '...", Some(Hint::Take)),
            ("ERR unknown command `getdel`, with args beginning with: ", Some(Hint::Take)),
            ("ERR unsupported command 'SELECT'", Some(Hint::Database)),
            ("ERR unknown command 'SENTINEL', with args beginning with: ", Some(Hint::NotSentinel)),
            ("ERR unknown command 'gets'", Some(Hint::Command)),
            ("ERR Unsupported command", Some(Hint::Command)),
            ("ERR This instance has cluster support disabled", Some(Hint::NotCluster)),
            ("MOVED 1 127.0.0.1:7000", Some(Hint::Cluster)),
            ("READONLY You can't write against a read only replica.", Some(Hint::Replica)),
            ("MASTERDOWN Link with MASTER is down and", Some(Hint::Replica)),
            ("OOM command not allowed when used memory > 'maxmemory'.", Some(Hint::Memory)),
            ("MISCONF Redis is configured to save RDB snapshots", Some(Hint::Save)),
            ("NOREPLICAS Not enough good replicas to write.", Some(Hint::Replicas)),
            ("WRONGTYPE Operation against a key", Some(Hint::Keys)),
            ("LOADING Redis is loading the dataset in memory", None),
            ("BUSY Redis is busy running a script.", None),
            ("ERR something else", None),
            ("", None),
        ] {
            assert_eq!(named.hint(text.as_bytes(), None), hint, "{text}");
        }
        let sentinel = Redis { sentinel: true, ..REDIS };
        let of = "sentinel_";
        assert_eq!(sentinel.hint(b"NOAUTH no", None), Some(Hint::PasswordNeeded { of }));
        assert_eq!(sentinel.hint(b"WRONGPASS no", None), Some(Hint::Credentials { of }));
        let unknown = b"ERR unknown command 'AUTH'";
        assert_eq!(sentinel.hint(unknown, None), Some(Hint::PasswordNotNeeded { of }));
        let default = Hint::Allow { user: b"default", right: "+get" };
        assert_eq!(REDIS.hint(b"NOPERM to run the 'get' command", None), Some(default));
    }

    #[test]
    fn what_an_operator_can_do_follows_from_the_step_of_the_greeting() {
        let full = full();
        let unset =
            "ERR AUTH <password> called without any password configured for the default user.";
        for (text, step, hint) in [
            (unset, 0, Hint::PasswordNotNeeded { of: "" }),
            ("ERR Client sent AUTH, but no password is set", 0, Hint::PasswordNotNeeded { of: "" }),
            ("ERR wrong number of arguments for 'auth' command", 0, Hint::NoUsers { of: "" }),
            ("ERR invalid password", 0, Hint::Credentials { of: "" }),
            ("(the password)", 0, Hint::Credentials { of: "" }),
            ("ERR Unsupported command", 0, Hint::PasswordNotNeeded { of: "" }),
            ("ERR Unsupported command", 1, Hint::ClientName),
            ("ERR Unsupported command", 2, Hint::Database),
            ("ERR DB index is out of range", 2, Hint::Database),
            ("ERR SELECT is not allowed in cluster mode", 2, Hint::Cluster),
            ("ERR unknown command 'ROLE'", 3, Hint::Role),
        ] {
            assert_eq!(full.hint(text.as_bytes(), Some(step)), Some(hint), "{text} {step}");
        }
        assert_eq!(full.hint(b"ERR no", Some(4)), None);
    }

    #[test]
    fn what_a_replica_says_may_be_of_the_connection_unless_sentinels_know_better() {
        let watched = Redis { master: true, ..REDIS };
        let replica = Redis { replica: true, ..REDIS };
        for (text, of_connection, with_sentinels) in [
            ("READONLY You can't write against a read only replica.", true, false),
            ("MASTERDOWN Link with MASTER is down", true, false),
            ("LOADING Redis is loading the dataset in memory", true, true),
            ("READONLYX", false, false),
            ("OOM", false, false),
            ("", false, false),
        ] {
            assert_eq!(REDIS.is_of_connection(text.as_bytes()), of_connection, "{text}");
            assert_eq!(watched.is_of_connection(text.as_bytes()), with_sentinels, "{text}");
            // Where it was asked as a replica its master is asked next.
            assert!(!replica.is_of_connection(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_refusal_of_the_connection_is_told_from_one_of_a_request() {
        for text in
            ["DENIED Redis is running in protected mode", "ERR max number of clients reached"]
        {
            assert!(REDIS.refuses_connection(text.as_bytes()), "{text}");
        }
        for text in ["ERR max", "NOAUTH Authentication required.", "LOADING", ""] {
            assert!(!REDIS.refuses_connection(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_connection_begins_with_nothing_that_is_not_configured() {
        assert_eq!(greeting(&REDIS, false), (0, String::new()));
        assert_eq!(greeting(&REDIS, true), (1, "*1\r\n$4\r\nPING\r\n".into()));
        let named_only = Redis { username: Some(b"nginx".to_vec()), ..REDIS };
        assert_eq!(greeting(&named_only, false), (0, String::new()));
    }

    #[test]
    fn a_connection_begins_with_all_that_is_configured_in_order() {
        let expected = "*3\r\n$4\r\nAUTH\r\n$5\r\nnginx\r\n$6\r\npa\r\nss\r\n\
            *3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$4\r\nweb1\r\n\
            *2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n*1\r\n$4\r\nROLE\r\n";
        assert_eq!(greeting(&full(), false), (4, expected.into()));
        assert_eq!(greeting(&full(), true), (5, format!("{expected}*1\r\n$4\r\nPING\r\n")));
    }

    #[test]
    fn a_node_of_a_cluster_is_told_that_it_is_read_as_a_replica() {
        let redis = Redis { replica: true, read_only: true, ..REDIS };
        assert_eq!(greeting(&redis, false), (1, "*1\r\n$8\r\nREADONLY\r\n".into()));
        assert_eq!(greeting(&redis, true).0, 2);
        assert_eq!(redis.greeted(0, &Answer::Done, b"", b""), Ok(()));
        let text = b"NOPERM this user has no permissions to run the 'readonly' command";
        let hint = Hint::Allow { user: b"default", right: "+readonly" };
        assert_eq!(redis.hint(text, Some(0)), Some(hint));
        assert_eq!(redis.hint(b"MASTERDOWN Link with MASTER is down", None), None);
    }

    #[test]
    fn a_user_at_the_sentinels_is_told_which_right_it_lacks() {
        for (command, right) in [
            ("sentinel|get-master-addr-by-name", "+sentinel|get-master-addr-by-name"),
            ("sentinel|replicas", "+sentinel|replicas"),
        ] {
            let text =
                format!("NOPERM this user has no permissions to run the '{command}' command");
            let hint = Hint::Allow { user: b"default", right };
            assert_eq!(REDIS.hint(text.as_bytes(), None), Some(hint));
        }
    }

    #[test]
    fn a_password_alone_is_the_default_users() {
        let redis = Redis { authenticates: true, ..REDIS };
        let expected = "*2\r\n$4\r\nAUTH\r\n$6\r\npa\r\nss\r\n";
        assert_eq!(greeting(&redis, false), (1, expected.into()));
    }

    #[test]
    fn a_buffer_moves_at_most_once_for_a_greeting_and_before_the_password_is_in_it() {
        let redis = Redis { client_name: Some(vec![b'n'; 10_000]), ..full() };
        let steps: usize = redis.steps().map(|step| redis.with_words(step, PASSWORD, room)).sum();
        let mut out = Vec::with_capacity(steps);
        let before = out.as_ptr();
        redis.greet(true, PASSWORD, &mut out).unwrap();
        assert_eq!(out.as_ptr(), before);

        let mut grown = vec![];
        redis.greet(true, PASSWORD, &mut grown).unwrap();
        assert!(grown.capacity() >= steps);
        assert_eq!(grown, out);
    }

    #[test]
    fn a_greeting_succeeds_when_each_step_does() {
        let buf = b"before*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\nafter";
        let role = Answer::Array(6..buf.len() - 5);
        let redis = full();
        let answers = [Answer::Done, Answer::Done, Answer::Done, role, Answer::Done];
        for (step, answer) in answers.iter().enumerate() {
            assert_eq!(redis.greeted(step, answer, buf, PASSWORD), Ok(()), "{step}");
            assert_eq!(redis.greeting_is_array(step), matches!(answer, Answer::Array(_)), "{step}");
        }
        assert_eq!(redis.greeted(5, &Answer::Done, buf, PASSWORD), Err(Unfit::OutOfStep));
        assert_eq!(REDIS.greeted(0, &Answer::Done, buf, PASSWORD), Ok(()));
        assert_eq!(REDIS.greeted(1, &Answer::Done, buf, PASSWORD), Err(Unfit::OutOfStep));
        assert!(!redis.greeting_is_array(5));
        assert!(!REDIS.greeting_is_array(0));
    }

    #[test]
    fn a_refused_step_makes_the_connection_unfit_but_for_its_name() {
        let buf = b"-NOAUTH Authentication required.\r\n";
        let refused = Answer::Refused(1..buf.len() - 2);
        let redis = full();
        assert_eq!(redis.greeted(0, &refused, buf, PASSWORD), Err(Unfit::Password));
        for step in [2, 3, 4] {
            assert_eq!(redis.greeted(step, &refused, buf, PASSWORD), Err(Unfit::Refused), "{step}");
        }
        assert_eq!(redis.greeted(1, &refused, buf, PASSWORD), Ok(()));
        assert_eq!(REDIS.greeted(0, &refused, buf, PASSWORD), Err(Unfit::Refused));
    }

    #[test]
    fn another_password_may_do_where_the_server_has_refused_the_password() {
        let auth = |text: &str| {
            full().greeted(0, &Answer::Refused(0..text.len()), text.as_bytes(), PASSWORD)
        };
        for (text, unfit) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", Unfit::Password),
            ("ERR invalid password", Unfit::Password),
            ("NOAUTH Authentication required.", Unfit::Password),
            ("ERR AUTH <password> called without any password configured", Unfit::Refused),
            ("ERR unknown command 'AUTH'", Unfit::Refused),
            ("NOPERM this user has no permissions", Unfit::Refused),
            ("WRONGPASS pa\r\nss", Unfit::RefusedAloud),
        ] {
            assert_eq!(auth(text), Err(unfit), "{text}");
        }
    }

    #[test]
    fn who_has_authenticated_is_forgotten_with_the_connection_and_not_by_the_server() {
        let noauth = b"NOAUTH Authentication required.";
        assert!(full().is_of_connection(noauth));
        assert!(!REDIS.is_of_connection(noauth));
    }

    #[test]
    fn an_answer_of_the_wrong_kind_is_out_of_step() {
        let redirect = Answer::Redirect(Redirect { ask: false, slot: 0, host: 0..1, port: 1 });
        let wrong = [
            Answer::Value(0..0),
            Answer::Claim(0..0, 1),
            Answer::Missing,
            Answer::TooLarge(1),
            Answer::Array(0..4),
            Answer::Aside,
            redirect,
        ];
        let redis = full();
        for answer in &wrong {
            for step in 0..5 {
                let result = redis.greeted(step, answer, b"*0\r\n", PASSWORD);
                assert_eq!(result, Err(Unfit::OutOfStep), "{step} {answer:?}");
            }
        }
        assert_eq!(redis.greeted(3, &Answer::Done, b"", PASSWORD), Err(Unfit::OutOfStep));
    }

    #[test]
    fn only_a_master_passes_for_one() {
        let greeted =
            |reply: &[u8]| full().greeted(3, &Answer::Array(0..reply.len()), reply, PASSWORD);
        // Redis 7.0.15: a master with a replica, a replica, a sentinel.
        let master = b"*3\r\n$6\r\nmaster\r\n:14\r\n\
            *1\r\n*3\r\n$9\r\n127.0.0.1\r\n$5\r\n21713\r\n$2\r\n14\r\n";
        let replica =
            b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:21711\r\n$9\r\nhandshake\r\n:-1\r\n";
        let sentinel = b"*2\r\n$8\r\nsentinel\r\n*1\r\n$1\r\nm\r\n";
        assert_eq!(greeted(master), Ok(()));
        assert_eq!(greeted(replica), Err(Unfit::NotMaster));
        assert_eq!(greeted(sentinel), Err(Unfit::NotMaster));
        assert_eq!(greeted(b"*0\r\n"), Err(Unfit::OutOfStep));
        assert_eq!(greeted(b"*1\r\n:1\r\n"), Err(Unfit::OutOfStep));
    }

    #[test]
    fn answers_are_read_in_place() {
        assert_eq!(decode(b"$5\r\na\r\n\0b\r\n+"), Ok(Some((Answer::Value(4..9), 11))));
        assert_eq!(decode(b"$0\r\n\r\n"), Ok(Some((Answer::Value(4..4), 6))));
        assert_eq!(decode(b"$-1\r\n$"), Ok(Some((Answer::Missing, 5))));
        assert_eq!(decode(b"+OK\r\n"), Ok(Some((Answer::Done, 5))));
        assert_eq!(decode(b":1\r\n"), Ok(Some((Answer::Done, 4))));
        assert_eq!(decode(b"_\r\n+"), Ok(Some((Answer::Missing, 3))));
        assert_eq!(decode(b"*-1\r\n+"), Ok(Some((Answer::Missing, 5))));
        assert_eq!(
            decode(b"-LOADING Redis is loading\r\n"),
            Ok(Some((Answer::Refused(1..25), 27)))
        );
    }

    #[test]
    fn every_truncation_waits_for_more() {
        for whole in [
            &b"$5\r\nhello\r\n"[..],
            b"$-1\r\n",
            b"+OK\r\n",
            b"-ERR x\r\n",
            b":12\r\n",
            b"_\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"-MOVED 12182 ::1:21712\r\n",
            b"*4\r\n*2\r\n:1\r\n*0\r\n$3\r\na\r\n\r\n*-1\r\n_\r\n",
            b">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
        ] {
            for n in 0..whole.len() {
                assert_eq!(decode(&whole[..n]), Ok(None), "{n} of {}", whole.escape_ascii());
            }
            assert_eq!(decode(whole).unwrap().unwrap().1, whole.len());
            assert_eq!(dripped(whole).0, decode(whole));
        }
    }

    #[test]
    fn the_place_after_an_answer_is_where_the_next_one_begins() {
        let mut place = Place::default();
        let array = b"*2\r\n$5\r\na\r\nbc\r\n*1\r\n:1\r\n";
        for reply in [
            &array[..],
            b"$5\r\nhello\r\n",
            b"*0\r\n",
            b">1\r\n+a\r\n",
            b"+OK\r\n",
            b"*2\r\n*1\r\n%",
        ] {
            for n in 0..reply.len() {
                assert_eq!(REDIS.decode(&reply[..n], &EXPECTED, &mut place), Ok(None), "{n}");
            }
            // An error once is one for good.
            let again = if decode(reply).is_err() { 2 } else { 1 };
            for _ in 0..again {
                assert_eq!(REDIS.decode(reply, &EXPECTED, &mut place), decode(reply));
            }
        }
    }

    #[test]
    fn a_buffer_that_is_not_the_one_before_is_no_danger() {
        let replies =
            [&b"*3\r\n$50\r\n"[..], b"*1\r\n:1", b"", b"$90\r\nab", b">2\r\n$5\r\nab", b"x", b"+a"];
        for first in replies {
            for second in replies {
                let mut place = Place::default();
                let _ = REDIS.decode(first, &EXPECTED, &mut place);
                if let Ok(Some((_, used))) = REDIS.decode(second, &EXPECTED, &mut place) {
                    assert!(used <= second.len());
                }
            }
        }
    }

    #[test]
    fn redirects_name_the_slot_and_the_node() {
        // But for the last two, what Redis 7.0.15 said.
        for (line, ask, host, port) in [
            ("MOVED 12182 127.0.0.1:21711", false, "127.0.0.1", 21711),
            ("MOVED 12182 ::1:21712", false, "::1", 21712),
            ("MOVED 12182 node1.example.com:21711", false, "node1.example.com", 21711),
            ("MOVED 12182 :21711", false, "", 21711),
            ("MOVED 12182 ?:21712", false, "", 21712),
            ("ASK 12182 10.0.0.1:1", true, "10.0.0.1", 1),
            ("ASK 12182 2001:db8::ffff:65535", true, "2001:db8::ffff", 65535),
        ] {
            let reply = format!("-{line}\r\n+OK\r\n");
            let Ok(Some((Answer::Redirect(redirect), used))) = decode(reply.as_bytes()) else {
                panic!("{line}");
            };
            assert_eq!(used, line.len() + 3);
            assert_eq!(&reply.as_bytes()[redirect.host.clone()], host.as_bytes(), "{line}");
            let expected = Redirect { ask, slot: 12182, host: redirect.host.clone(), port };
            assert_eq!(redirect, expected);
        }
    }

    #[test]
    fn a_redirect_to_nowhere_is_a_refusal() {
        for line in [
            "MOVED",
            "MOVED 1",
            "MOVED 1 ",
            "MOVED 1 a",
            "MOVED 1 a:",
            "MOVED 1 a:0",
            "MOVED 1 a:65536",
            "MOVED 1 a:+1",
            "MOVED 1 a:1 b",
            "MOVED  1 a:1",
            "MOVED x a:1",
            "MOVED -1 a:1",
            "MOVED 16384 a:1",
            "MOVED 1 unix:/tmp/s:1",
            "MOVED 1 a:b:1",
            "MOVED 1 [::1]:1",
            "MOVED 1 a/b:1",
            "MOVED 1 \u{e4}:1",
            "moved 1 a:1",
            "ASKED 1 a:1",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN Hash slot not served",
        ] {
            let reply = format!("-{line}\r\n");
            let answer = Answer::Refused(1..1 + line.len());
            assert_eq!(decode(reply.as_bytes()), Ok(Some((answer, reply.len()))), "{line}");
        }
        let long = format!("-MOVED 1 {}:1\r\n", "a".repeat(256));
        assert!(matches!(decode(long.as_bytes()), Ok(Some((Answer::Refused(_), _)))));
    }

    #[test]
    fn arrays_are_answered_whole() {
        let reply = b"*3\r\n$6\r\nmaster\r\n:-14\r\n*1\r\n*2\r\n+OK\r\n-ERR\r\n";
        let mut buf = reply.to_vec();
        buf.extend_from_slice(b"*1\r\n");
        assert_eq!(decode(&buf), Ok(Some((Answer::Array(0..reply.len()), reply.len()))));
    }

    #[test]
    fn an_array_that_is_not_expected_is_refused_at_its_first_line() {
        let expected = Expected { array: false, ..EXPECTED };
        let decode = |buf: &[u8]| REDIS.decode(buf, &expected, &mut Place::default());
        for array in [&b"*0\r\n"[..], b"*1\r\n", b"*131072\r\n", b"*18446744073709551615\r\n"] {
            assert_eq!(decode(array), Err(DecodeError::UnexpectedType(b'*')));
            assert_eq!(decode(&array[..array.len() - 1]), Ok(None));
        }
        assert_eq!(decode(b"*-1\r\n"), Ok(Some((Answer::Missing, 5))));
        assert_eq!(decode(b"*-2\r\n"), Err(DecodeError::BadLength));
        // Pushes come whatever is expected.
        assert_eq!(decode(b">1\r\n*1\r\n+a\r\n"), Ok(Some((Answer::Aside, 12))));
    }

    #[test]
    fn a_byte_is_looked_at_twice_however_small_the_pieces_are() {
        let integers = String::from("*130001\r\n") + &":1\r\n".repeat(130_000);
        let strings =
            String::from("*30000\r\n") + &"$1\r\n\n\r\n*1\r\n$3\r\nabc\r\n".repeat(15_000);
        let string = format!("*1\r\n$500000\r\n{}\r\n", "\n".repeat(500_000));
        // A line of which most says nothing.
        let padded = format!("*1\r\n${}500000\r\n{}\r\n", "0".repeat(1000), "x".repeat(500_000));
        let lines = String::from("*500\r\n") + &format!("+{}\r\n", "x".repeat(1000)).repeat(500);
        for (reply, complete) in [
            (integers.clone() + "$100\r\n" + &"x".repeat(100), false),
            (integers + ":1\r\n", true),
            (strings, true),
            (string, true),
            (padded, true),
            (lines, true),
        ] {
            let (answer, times) = dripped(reply.as_bytes());
            let whole = Some((Answer::Array(0..reply.len()), reply.len()));
            assert_eq!(answer, Ok(whole.filter(|_| complete)));
            assert!(times <= 2 * reply.len(), "{times} for {} bytes", reply.len());
        }
        let pushed = String::from(">16000\r\n") + &"_\r\n".repeat(16_000);
        let (answer, times) = dripped(pushed.as_bytes());
        assert_eq!(answer, Ok(Some((Answer::Aside, pushed.len()))));
        assert!(times <= 2 * pushed.len(), "{times}");
    }

    #[test]
    fn a_header_is_read_twice_however_slowly_its_value_comes() {
        let reply = format!("${}100\r\n{}\r\n", "0".repeat(1000), "\n".repeat(100));
        let (answer, times) = dripped(reply.as_bytes());
        assert_eq!(answer, Ok(Some((Answer::Value(1006..1106), reply.len()))));
        // Searched for its end once, and read before the value comes and when it has come.
        assert!(times <= 3 * 1006, "{times}");
    }

    #[test]
    fn a_push_is_set_aside() {
        // Redis 7.0.15, after `HELLO 3`, which the module never says.
        let push = b">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n";
        let mut buf = push.to_vec();
        buf.extend_from_slice(b"$-1\r\n");
        assert_eq!(decode(&buf), Ok(Some((Answer::Aside, push.len()))));
        assert_eq!(decode(b">0\r\n"), Ok(Some((Answer::Aside, 4))));
        assert_eq!(decode(b">-1\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*1\r\n>0\r\n"), Err(DecodeError::UnexpectedType(b'>')));
    }

    #[test]
    fn a_push_is_no_longer_than_its_limit() {
        // 12 bytes before the string, 2 after it.
        let push = |len: usize| {
            [format!(">1\r\n${len}\r\n").as_bytes(), &vec![b'x'; len], b"\r\n"].concat()
        };
        let longest = push(MAX_PUSH - 14);
        assert_eq!(longest.len(), MAX_PUSH);
        assert_eq!(decode(&longest), Ok(Some((Answer::Aside, MAX_PUSH))));
        assert_eq!(decode(&longest[..MAX_PUSH - 1]), Ok(None));
        let longer = push(MAX_PUSH - 13);
        assert_eq!(decode(&longer[..MAX_PUSH - 1]), Ok(None));
        assert_eq!(decode(&longer[..MAX_PUSH]), Err(DecodeError::BadLength));
        assert_eq!(decode(&longer), Err(DecodeError::BadLength));
        assert_eq!(dripped(&longer).0, Err(DecodeError::BadLength));
        // The limit of an array is its own.
        let mut array = push(MAX_PUSH);
        array[0] = b'*';
        assert_eq!(decode(&array), Ok(Some((Answer::Array(0..array.len()), array.len()))));
    }

    #[test]
    fn arrays_are_nested_five_deep_and_no_deeper() {
        for deepest in ["*0\r\n", "*1\r\n:1\r\n", "*2\r\n*-1\r\n$-1\r\n"] {
            let reply = "*1\r\n".repeat(4) + deepest;
            let answer = Answer::Array(0..reply.len());
            assert_eq!(decode(reply.as_bytes()), Ok(Some((answer, reply.len()))));
            let deeper = "*1\r\n".repeat(5) + deepest;
            assert_eq!(decode(deeper.as_bytes()), Err(DecodeError::UnexpectedType(b'*')));
            assert_eq!(dripped(deeper.as_bytes()).0, Err(DecodeError::UnexpectedType(b'*')));
        }
        let endless = "*1\r\n".repeat(200_000);
        assert_eq!(decode(endless.as_bytes()), Err(DecodeError::UnexpectedType(b'*')));
        // Side by side is not nested.
        let wide = String::from("*1000\r\n") + &"*1\r\n*0\r\n".repeat(1000);
        assert!(matches!(decode(wide.as_bytes()), Ok(Some((Answer::Array(_), 8007)))));
    }

    #[test]
    fn arrays_announce_no_more_values_than_the_limit() {
        for announced in ["*131073\r\n", ">131073\r\n", "*18446744073709551615\r\n"] {
            assert_eq!(decode(announced.as_bytes()), Err(DecodeError::BadLength));
        }
        assert_eq!(decode(b"*131072\r\n"), Ok(None));
        assert_eq!(decode(b"*1\r\n*131071\r\n"), Ok(None));
        assert_eq!(decode(b"*1\r\n*131072\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*2\r\n*65536\r\n"), Ok(None));
        let full = String::from("*131072\r\n") + &":1\r\n".repeat(131_072);
        let answer = Answer::Array(0..full.len());
        assert_eq!(decode(full.as_bytes()), Ok(Some((answer, full.len()))));
    }

    #[test]
    fn arrays_are_no_longer_than_the_limit() {
        assert_eq!(decode(b"*1\r\n$1048577\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*1\r\n$1048576\r\n"), Ok(None));
        // 14 bytes before the string, 2 after it.
        let mut reply = b"*1\r\n$1048560\r\n".to_vec();
        reply.resize(14 + 1_048_560, b'x');
        reply.extend_from_slice(b"\r\n");
        assert_eq!(reply.len(), MAX_ARRAY);
        assert_eq!(decode(&reply), Ok(Some((Answer::Array(0..MAX_ARRAY), MAX_ARRAY))));
        assert_eq!(decode(&reply[..MAX_ARRAY - 1]), Ok(None));

        let mut longer = b"*1\r\n$1048561\r\n".to_vec();
        longer.resize(MAX_ARRAY - 1, b'x');
        assert_eq!(decode(&longer), Ok(None));
        longer.push(b'x');
        assert_eq!(decode(&longer), Err(DecodeError::BadLength));
        assert_eq!(dripped(&longer).0, Err(DecodeError::BadLength));
        longer.extend_from_slice(b"\r\n+OK\r\n");
        assert_eq!(decode(&longer), Err(DecodeError::BadLength));
    }

    #[test]
    fn a_value_over_the_limit_is_not_waited_for() {
        assert_eq!(decode(b"$101\r\n"), Ok(Some((Answer::TooLarge(103), 6))));
        let largest = Answer::TooLarge(536_870_914);
        assert_eq!(decode(b"$536870912\r\n"), Ok(Some((largest, 12))));
        assert_eq!(decode(b"$536870913\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$18446744073709551615\r\n"), Err(DecodeError::BadLength));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert_eq!(decode(b"HTTP/1.1 400\r\n"), Err(DecodeError::UnexpectedType(b'H')));
        assert_eq!(decode(b"%1\r\n"), Err(DecodeError::UnexpectedType(b'%')));
        assert_eq!(decode(b"*1\r\n%0\r\n"), Err(DecodeError::UnexpectedType(b'%')));
        assert_eq!(decode(b"*x\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*-2\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*1\r\n*\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*1\r\n$-2\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"*1\r\n$2\r\nabcd"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"*1\r\n:1\n"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"*1\r\n_x\r\n"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"_x\r\n"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"$x\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$-2\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"$+1\r\n"), Err(DecodeError::BadLength));
        assert_eq!(decode(b"+OK\n"), Err(DecodeError::BadLine));
        assert_eq!(decode(b"$2\r\nabcd"), Err(DecodeError::BadLine));
        assert_eq!(decode(&[b'+'; 5000]), Err(DecodeError::BadLine));
    }
}
