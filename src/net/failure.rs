//! Why a connection to a server is given up.

use core::fmt;
use std::boxed::Box;

use session_core::codec::{Codec, DecodeError};
use session_core::conversation;
use session_core::hint::Hint;
use session_core::outcome::Outcome;

use crate::ffi::client::{self, TlsError};
use crate::ffi::file::Errno;

/// What a record begins with by which TLS ends a connection (RFC 8446, section 5.1).
const TLS_ALERT: u8 = 21;

/// Why a connection is given up. The text is what follows `SERVER is down: `.
pub enum Failure {
    /// No connection of nginx, or no socket, was left.
    Local,
    /// Connecting failed with this errno.
    Connect(i32),
    /// Connecting took too long.
    ConnectTimeout,
    /// The TLS handshake failed.
    Handshake(TlsError),
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// The server closed the connection.
    Closed,
    /// Reading failed with this errno.
    Io(i32),
    /// Reading over TLS failed, in OpenSSL's words.
    Tls(Box<str>),
    /// There was no memory for what came.
    OutOfMemory,
    /// nginx ends an exiting worker (`worker_shutdown_timeout`).
    Shutdown,
    /// The conversation has failed.
    Conversation(conversation::Failure),
}

impl From<conversation::Failure> for Failure {
    fn from(failure: conversation::Failure) -> Self {
        Failure::Conversation(failure)
    }
}

impl Failure {
    /// Whether the connection has merely ended.
    pub fn is_end(&self) -> bool {
        matches!(self, Failure::Closed | Failure::Io(_) | Failure::Tls(_) | Failure::Shutdown)
    }

    /// What an operator can do about it. `step`: of the greeting, if that was under way; `tls`:
    /// over TLS; `heard`: something has come on the connection.
    pub fn hint<'a>(
        &self,
        codec: &'a dyn Codec,
        step: Option<usize>,
        tls: bool,
        heard: bool,
    ) -> Option<Hint<'a>> {
        match self {
            Failure::Conversation(
                conversation::Failure::Greeting(text) | conversation::Failure::Password(text),
            ) => codec.hint(text.as_bytes(), step),
            Failure::Conversation(conversation::Failure::Decode(DecodeError::UnexpectedType(
                TLS_ALERT,
            ))) if !tls => Some(Hint::SpeaksTls),
            Failure::Closed | Failure::Io(_) if !tls && !heard => Some(Hint::WantsTls),
            Failure::Tls(text) => client::hint(text).or_else(|| codec.missing(step?)),
            Failure::Closed | Failure::Io(_) => codec.missing(step?),
            Failure::Handshake(error) => error.hint(),
            Failure::ConnectTimeout => Some(Hint::ConnectTimeout),
            Failure::HandshakeTimeout => Some(Hint::NoTlsInTime),
            Failure::Conversation(conversation::Failure::Slow(_)) => Some(Hint::FetchTimeout),
            _ => None,
        }
    }

    /// Whether no connection was made.
    pub fn is_of_connecting(&self) -> bool {
        matches!(
            self,
            Failure::Connect(_)
                | Failure::ConnectTimeout
                | Failure::Handshake(_)
                | Failure::HandshakeTimeout
        )
    }

    /// What this means for the lookups that wait.
    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::Local | Failure::Connect(_) | Failure::Shutdown => Outcome::Down,
            Failure::ConnectTimeout | Failure::HandshakeTimeout => Outcome::Timeout,
            Failure::Conversation(failure) => failure.outcome(),
            _ => Outcome::Error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Local => f.write_str("no connection or socket left"),
            Failure::Connect(errno) => write!(f, "connect() failed ({})", Errno(*errno)),
            Failure::ConnectTimeout => f.write_str("connect() timed out"),
            Failure::Handshake(error) => write!(f, "SSL handshake failed: {error}"),
            Failure::HandshakeTimeout => f.write_str("SSL handshake timed out"),
            Failure::Closed => f.write_str("server closed connection"),
            Failure::Io(errno) => write!(f, "connection failed ({})", Errno(*errno)),
            Failure::Tls(text) => f.write_str(text),
            Failure::OutOfMemory => f.write_str("no memory"),
            Failure::Shutdown => f.write_str("worker shuts down"),
            Failure::Conversation(failure) => failure.fmt(f),
        }
    }
}
