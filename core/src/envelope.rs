//! What an entry looks like when its session is sealed.
//!
//! ```text
//! offset  bytes
//!      0      1  version, 1
//!      1      1  key id of the key that has issued the session ID
//!      2     12  nonce, random
//!     14      n  the session in DER, encrypted: AES-256-GCM (NIST SP 800-38D)
//!   14+n     16  tag
//! ```
//!
//! The tag covers the first 14 bytes and the session ID, which is not in the envelope: an entry
//! that is put in another one's place does not open. docs/envelope.md has test vectors.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use zeroize::Zeroize;

use crate::crypto::{AES_KEY_LEN, Crypto, Failed, NONCE_LEN, TAG_LEN};
use crate::hello::{MAX_SESSION_ID, SessionId};

/// The version of the layout. No session in DER begins with it, so that an entry which was stored
/// without a key is told apart.
pub const VERSION: u8 = 1;

/// Version, key id and nonce, in bytes.
pub const HEADER_LEN: usize = 2 + NONCE_LEN;

/// By how many bytes an envelope is longer than what is in it.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// Why an envelope cannot be opened. The texts are log fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Not even a header and a tag are there.
    Short,
    /// The layout is another one, or the entry is no envelope.
    Version(u8),
    /// The entry says that another key has sealed it.
    Key,
    /// The tag is not that of these bytes, this key and this session ID.
    Tag,
    /// The cryptography did not work; nothing is known about the entry.
    Failed,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Short => f.write_str("too short for an envelope"),
            OpenError::Version(version) => write!(f, "envelope of version {version}"),
            OpenError::Key => f.write_str("sealed with another key"),
            OpenError::Tag => f.write_str("does not open"),
            OpenError::Failed => f.write_str("could not be opened"),
        }
    }
}

impl core::error::Error for OpenError {}

/// Seals what follows the first [`HEADER_LEN`] bytes of `buf`, which are overwritten. After a failure
/// `buf` is the caller's to wipe.
pub fn seal<C: Crypto>(
    crypto: &C,
    key_id: u8,
    key: &[u8; AES_KEY_LEN],
    session_id: &SessionId,
    buf: &mut Vec<u8>,
) -> Result<(), Failed> {
    let (header, data) = buf.split_first_chunk_mut::<HEADER_LEN>().ok_or(Failed)?;
    let [version, id, nonce @ ..] = header;
    *version = VERSION;
    *id = key_id;
    crypto.random(nonce)?;
    let nonce = *nonce;
    let tag = crypto.encrypt(key, &nonce, &Aad::new(header, session_id), data)?;
    // Not before: a buffer that grows leaves in memory what was in it.
    buf.try_reserve(TAG_LEN).map_err(|_| Failed)?;
    buf.extend_from_slice(&tag);
    Ok(())
}

/// Opens an envelope: its content is in `out` then, which is empty before and after a failure.
pub fn open<C: Crypto>(
    crypto: &C,
    key_id: u8,
    key: &[u8; AES_KEY_LEN],
    session_id: &SessionId,
    envelope: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let (header, rest) = envelope.split_first_chunk::<HEADER_LEN>().ok_or(OpenError::Short)?;
    let [version, id, nonce @ ..] = header;
    if *version != VERSION {
        return Err(OpenError::Version(*version));
    }
    let (data, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError::Short)?;
    if *id != key_id {
        return Err(OpenError::Key);
    }
    out.clear();
    out.try_reserve(data.len()).map_err(|_| OpenError::Failed)?;
    out.extend_from_slice(data);
    let opened = match crypto.decrypt(key, nonce, &Aad::new(header, session_id), out, tag) {
        Ok(true) => return Ok(()),
        Ok(false) => OpenError::Tag,
        Err(Failed) => OpenError::Failed,
    };
    // What was decrypted before the tag was looked at is nobody's.
    out.zeroize();
    Err(opened)
}

/// What is only authenticated: the header and the session ID.
struct Aad {
    bytes: [u8; HEADER_LEN + MAX_SESSION_ID],
    len: usize,
}

impl Aad {
    fn new(header: &[u8; HEADER_LEN], session_id: &SessionId) -> Self {
        let mut bytes = [0; HEADER_LEN + MAX_SESSION_ID];
        let id = session_id.as_bytes();
        if let Some((head, rest)) = bytes.split_first_chunk_mut::<HEADER_LEN>() {
            *head = *header;
            rest.iter_mut().zip(id).for_each(|(to, from)| *to = *from);
        }
        let len = HEADER_LEN.saturating_add(id.len());
        Aad { bytes, len }
    }
}

impl Deref for Aad {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
