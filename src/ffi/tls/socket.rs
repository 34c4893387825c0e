//! What the filter reads from, and the buffer that it fills.

use core::ffi::{c_char, c_int};
use core::ptr;
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use nginx_sys::{ngx_err_t, ngx_errno};

use crate::ffi::openssl::{BIO_read, BIO_should_retry, BioRef, ask};

/// The client's socket.
pub type Socket = BioRef;

/// What reading from the socket came to.
#[derive(Debug, PartialEq, Eq)]
pub enum SocketRead {
    /// That many bytes.
    Bytes(usize),
    /// Nothing there now.
    Again,
    /// The socket has ended.
    Ended(Ending),
    /// There is no memory for what could be read.
    OutOfMemory,
}

/// How a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What `BIO_read()` returned.
    pub(super) result: c_int,
    /// What errno was then.
    pub(super) errno: ngx_err_t,
}

impl Ending {
    /// There was no memory for what came.
    pub const OUT_OF_MEMORY: Ending = Ending { result: -1, errno: libc::ENOMEM };
}

ask! { Socket:
    fn should_retry() -> bool = BIO_should_retry;
}

impl Socket {
    /// Reads at most `max` bytes to the end of `buf`.
    pub fn read(&self, buf: &mut Vec<u8>, max: usize) -> SocketRead {
        if buf.try_reserve_exact(max).is_err() {
            return SocketRead::OutOfMemory;
        }
        let spare = buf.spare_capacity_mut();
        let room = c_int::try_from(spare.len().min(max)).unwrap_or(c_int::MAX);
        // SAFETY: BIO_read(3) writes at most `room` bytes into the buffer's spare memory.
        let n = unsafe { BIO_read(self.as_ptr(), spare.as_mut_ptr().cast(), room) };
        match usize::try_from(n) {
            Ok(read) if read > 0 => {
                // SAFETY: that many were written.
                unsafe { buf.set_len(buf.len().saturating_add(read)) };
                SocketRead::Bytes(read)
            }
            _ if self.should_retry() => SocketRead::Again,
            _ => SocketRead::Ended(Ending { result: n, errno: ngx_errno() }),
        }
    }
}

/// OpenSSL's buffer for what it reads.
pub struct Sink {
    pub(super) to: *mut c_char,
    pub(super) room: usize,
}

impl Sink {
    /// Puts as much of `bytes` into it as there is room for, and says how much. To be called once.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.room);
        // SAFETY: there is room for `room` bytes (BIO_read(3)), in a buffer that nobody else has.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.to.cast(), len) };
        self.room = 0;
        len
    }
}
