//! What a client has sent ahead of OpenSSL.

use core::cell::RefCell;
use std::vec::Vec;

use session_core::hello::{HelloReader, Progress};

use crate::ffi::tls::{Ending, Read, Sink, Socket, SocketRead};

/// How much is read at once, in bytes: a record of TLS, with all that comes with it.
pub const READ: usize = 16 * 1024 + 512;
/// The most that is buffered of a ClientHello that is not complete, in bytes. One cut into tiny
/// records takes several times its length; beyond this it is left to OpenSSL.
const MAX_HELLO: usize = 64 * 1024;
/// The most that is buffered while a handshake is suspended, in bytes: a ClientHello, the 16 KB of
/// early data that nginx allows, and what records add to it.
pub const MAX_SUSPENDED: usize = MAX_HELLO + 24 * 1024;

/// The bytes that were read from a client before OpenSSL asked for them.
pub struct Intake {
    buf: Vec<u8>,
    /// How much of `buf` OpenSSL has got.
    replayed: usize,
    /// How the socket ended, for OpenSSL to be told after `buf`.
    ending: Option<Ending>,
    reader: HelloReader,
}

impl Intake {
    /// Nothing has been read.
    pub fn new() -> Self {
        Intake { buf: Vec::new(), replayed: 0, ending: None, reader: HelloReader::new() }
    }

    /// Reads what is there into `wire` and keeps it. The buffer of all handshakes is long enough
    /// for all that comes at once, that of this one takes no more room than what is in it.
    pub fn fill(&mut self, socket: &Socket, wire: &RefCell<Vec<u8>>) -> SocketRead {
        let Ok(mut wire) = wire.try_borrow_mut() else { return SocketRead::OutOfMemory };
        wire.clear();
        let read = socket.read(&mut wire, READ);
        if self.buf.try_reserve_exact(wire.len()).is_err() {
            // What was read is lost.
            return SocketRead::Ended(Ending::OUT_OF_MEMORY);
        }
        self.buf.extend_from_slice(&wire);
        read
    }

    /// Reads the ClientHello on.
    pub fn read_hello(&mut self) -> Progress {
        self.reader.read(&self.buf)
    }

    /// Whether a ClientHello that is not complete is left to OpenSSL.
    pub fn is_hello_too_long(&self) -> bool {
        self.buf.len() >= MAX_HELLO
    }

    /// Whether the client has sent more than is buffered for a suspended handshake.
    pub fn is_full(&self) -> bool {
        self.buf.len() >= MAX_SUSPENDED
    }

    /// The socket has ended: OpenSSL is told after the bytes.
    pub fn set_ending(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// How many bytes OpenSSL has still to get.
    pub fn pending(&self) -> usize {
        self.buf.len().saturating_sub(self.replayed)
    }

    /// Gives OpenSSL the bytes as they came, then the end of the socket or the socket itself.
    pub fn replay(&mut self, sink: &mut Sink) -> Read {
        let rest = self.buf.get(self.replayed..).unwrap_or_default();
        if rest.is_empty() {
            return self.ending.take().map_or(Read::Socket, Read::Ended);
        }
        let n = sink.put(rest);
        self.replayed = self.replayed.saturating_add(n);
        if self.pending() == 0 {
            self.buf = Vec::new();
            self.replayed = 0;
        }
        Read::Data(n)
    }

    /// Whether OpenSSL has got all, and may read from the socket.
    pub fn is_replayed(&self) -> bool {
        self.pending() == 0 && self.ending.is_none()
    }
}
