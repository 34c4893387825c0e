//! TLS sessions.

use core::ffi::{CStr, c_int, c_long, c_uchar, c_uint};
use core::ptr;
use std::vec::Vec;

use foreign_types::{ForeignType, ForeignTypeRef};

use crate::ffi::openssl::{
    CertificateRef, SSL_SESSION_get_compress_id, SSL_SESSION_get_id,
    SSL_SESSION_get_max_fragment_length, SSL_SESSION_get_protocol_version, SSL_SESSION_get_time,
    SSL_SESSION_get_timeout, SSL_SESSION_get0_cipher, SSL_SESSION_get0_hostname,
    SSL_SESSION_get0_peer, SSL_SESSION_set_timeout, Suite, TLS1_3_VERSION, ask, clear_errors,
    d2i_SSL_SESSION, i2d_SSL_SESSION, lent,
};
pub use crate::ffi::openssl::{Session, SessionRef};

ask! { SessionRef:
    /// When the session was made, in seconds since the epoch.
    pub fn made() -> i64 = SSL_SESSION_get_time;
    /// How long it is good from then on, in seconds.
    pub fn timeout() -> i64 = SSL_SESSION_get_timeout;
    /// The version of TLS, as on the wire.
    pub fn protocol() -> c_int = SSL_SESSION_get_protocol_version;
    /// The fragments that the client has asked for, by their number in `max_fragment_length` (RFC 6066
    /// §4); 0 if it has not.
    pub fn max_fragment_length() -> u8 = SSL_SESSION_get_max_fragment_length;
    fn compression() -> c_uint = SSL_SESSION_get_compress_id;
    /// The certificate that the client has shown.
    fn certificate() -> Option<&CertificateRef> = SSL_SESSION_get0_peer;
    pub(super) fn suite() -> Option<&Suite> = SSL_SESSION_get0_cipher;
}

impl Session {
    /// Decodes what [`SessionRef::to_der`] made. `None` if it is not exactly that.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let len = c_long::try_from(der.len()).ok()?;
        let mut next = der.as_ptr();
        // SAFETY: d2i_SSL_SESSION(3) reads at most `len` bytes and moves `next` behind what it
        // read.
        let session = unsafe { d2i_SSL_SESSION(ptr::null_mut(), &raw mut next, len) };
        if session.is_null() {
            clear_errors();
            return None;
        }
        // SAFETY: a new session, ours to free.
        let session = unsafe { Session::from_ptr(session) };
        (next == der.as_ptr_range().end).then_some(session)
    }
}

impl SessionRef {
    /// The session ID, up to 32 bytes.
    pub fn id(&self) -> &[u8] {
        let mut len: c_uint = 0;
        // SAFETY: SSL_SESSION_get_id(3) returns memory of the session and its length.
        unsafe { lent(SSL_SESSION_get_id(self.as_ptr(), &raw mut len), len as usize) }
    }

    /// The last second in which the session is good, since the epoch: when its timeout or the
    /// client's certificate expires, whichever is first. `now` is the current second.
    pub fn expires(&self, now: i64) -> i64 {
        let own = self.made().saturating_add(self.timeout());
        self.certificate_left().map_or(own, |left| own.min(now.saturating_add(left)))
    }

    /// Makes the session good for so many seconds from when it was made on.
    pub fn set_timeout(&self, seconds: i64) {
        // SAFETY: SSL_SESSION_set_timeout(3): the session is valid, and of one connection alone.
        unsafe { SSL_SESSION_set_timeout(self.as_ptr(), seconds as c_long) };
    }

    /// Whether the client has shown a certificate.
    pub fn has_certificate(&self) -> bool {
        self.certificate().is_some()
    }

    /// The name of the server that the client asked for when the session was made.
    pub fn server_name(&self) -> Option<&[u8]> {
        // SAFETY: SSL_SESSION_get0_hostname(3) lends a string of the session's, or returns null.
        unsafe {
            let name = SSL_SESSION_get0_hostname(self.as_ptr());
            (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes())
        }
    }

    /// Whether its records are compressed, as far as this OpenSSL can do that.
    pub fn is_compressed(&self) -> bool {
        self.compression() != 0
    }

    /// How many seconds are left until the client's certificate expires, if there is one. A
    /// certificate whose time cannot be read has expired.
    fn certificate_left(&self) -> Option<i64> {
        let end = self.certificate()?.end();
        Some(end.and_then(|end| end.seconds_from(None)).unwrap_or(-1))
    }

    /// Whether it is of TLS 1.3.
    pub fn is_tls13(&self) -> bool {
        self.protocol() == TLS1_3_VERSION
    }

    /// Appends the session in DER, if it is no longer than `max` bytes.
    pub fn to_der(&self, out: &mut Vec<u8>, max: usize) -> Result<(), DerError> {
        // SAFETY: without a buffer i2d_SSL_SESSION(3) only counts.
        let len = unsafe { i2d_SSL_SESSION(self.as_ptr(), ptr::null_mut()) };
        let len = usize::try_from(len).unwrap_or(0);
        if len > max {
            return Err(DerError::TooLarge(len));
        }
        out.try_reserve(len).map_err(|_| DerError::OutOfMemory)?;
        let mut next = out.spare_capacity_mut().as_mut_ptr().cast::<c_uchar>();
        // SAFETY: there is room for the length that i2d_SSL_SESSION() has just given; the session
        // has not changed since, so that much is written, unless memory is short.
        unsafe {
            let written = i2d_SSL_SESSION(self.as_ptr(), &raw mut next);
            if written <= 0 || usize::try_from(written) != Ok(len) {
                return Err(DerError::OutOfMemory);
            }
            out.set_len(out.len().saturating_add(len));
        }
        Ok(())
    }
}

/// Why a session cannot be had in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerError {
    /// It is longer than asked for: its length in bytes.
    TooLarge(usize),
    /// There is no memory for it.
    OutOfMemory,
}
