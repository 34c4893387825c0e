//! The names of entries in a backend.

use base64ct::{Base64UrlUnpadded, Encoding};

use crate::hello::SessionId;

/// The longest prefix of a cache key, in bytes. With a session ID in base64url after it, a key
/// stays below the 250 bytes that memcached allows.
pub const MAX_PREFIX: usize = 128;

/// A session ID of 32 bytes in base64url without padding.
const MAX_ENCODED_ID: usize = 43;

/// The name of a session's entry: a prefix and the session ID in base64url (RFC 4648 §5), so that
/// it is readable in a backend's own tools and needs no quoting.
#[derive(Clone)]
pub struct CacheKey {
    bytes: [u8; MAX_PREFIX + MAX_ENCODED_ID],
    len: usize,
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl CacheKey {
    /// The key of `id`. `None` if the prefix is longer than [`MAX_PREFIX`].
    pub fn new(prefix: &[u8], id: &SessionId) -> Option<Self> {
        let mut bytes = [0; MAX_PREFIX + MAX_ENCODED_ID];
        bytes
            .get_mut(..prefix.len())
            .filter(|_| prefix.len() <= MAX_PREFIX)?
            .copy_from_slice(prefix);
        let encoded =
            Base64UrlUnpadded::encode(id.as_bytes(), bytes.get_mut(prefix.len()..)?).ok()?.len();
        Some(CacheKey { bytes, len: prefix.len().checked_add(encoded)? })
    }

    /// The key.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_prefix_and_the_id_in_base64url() {
        let id = SessionId::new(&[0xfb; 32]).unwrap();
        let key = CacheKey::new(b"tls:", &id).unwrap();
        assert_eq!(key.as_bytes(), b"tls:-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s");
        let short = SessionId::new(&[1]).unwrap();
        assert_eq!(CacheKey::new(b"", &short).unwrap().as_bytes(), b"AQ");
    }

    #[test]
    fn a_prefix_has_a_limit() {
        let id = SessionId::new(&[0; 32]).unwrap();
        assert_eq!(CacheKey::new(&[b'p'; 128], &id).unwrap().as_bytes().len(), 171);
        assert!(CacheKey::new(&[b'p'; 129], &id).is_none());
    }
}
