//! The names of entries in a backend.

use base64ct::{Base64UrlUnpadded, Encoding};

use crate::hello::SessionId;

/// The longest prefix of a cache key, in bytes. With a name in base64url after it, a key stays
/// below the 250 bytes that memcached allows.
pub const MAX_PREFIX: usize = 128;

/// The longest [`Name`], in bytes.
pub const MAX_NAME: usize = 32;

/// A name of 32 bytes in base64url without padding.
const MAX_ENCODED: usize = 43;

/// The longest text of [`CacheKey::verbatim`], in bytes: shorter than any name that is a MAC, so
/// that it is none.
pub const MAX_TEXT: usize = 32;

/// What an entry is called within a tier: up to 32 bytes. Where sessions are not sealed it is the
/// session ID itself, and no less a secret.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl Name {
    /// The name of a session's entry where there are no keys.
    pub fn of_id(id: &SessionId) -> Self {
        let mut bytes = [0; MAX_NAME];
        bytes.iter_mut().zip(id.as_bytes()).for_each(|(to, from)| *to = *from);
        Name { bytes, len: id.as_bytes().len() }
    }

    /// The name that a key makes of a session ID.
    pub const fn of_mac(mac: [u8; MAX_NAME]) -> Self {
        Name { bytes: mac, len: MAX_NAME }
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// The key of an entry in a backend: a prefix and the name in base64url (RFC 4648 §5), so that
/// it is readable in a backend's own tools and needs no quoting.
#[derive(Clone)]
pub struct CacheKey {
    bytes: [u8; MAX_PREFIX + MAX_ENCODED],
    len: usize,
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl CacheKey {
    /// The key of the entry `name`. `None` if the prefix is longer than [`MAX_PREFIX`].
    pub fn new(prefix: &[u8], name: &Name) -> Option<Self> {
        let mut bytes = Self::prefixed(prefix)?;
        let encoded =
            Base64UrlUnpadded::encode(name.as_bytes(), bytes.get_mut(prefix.len()..)?).ok()?.len();
        Some(CacheKey { bytes, len: prefix.len().checked_add(encoded)? })
    }

    /// A key that ends in `text`. `None` if the prefix is longer than [`MAX_PREFIX`], or the text
    /// than [`MAX_TEXT`].
    pub fn verbatim(prefix: &[u8], text: &[u8]) -> Option<Self> {
        let mut bytes = Self::prefixed(prefix)?;
        let len = prefix.len().checked_add(text.len()).filter(|_| text.len() <= MAX_TEXT)?;
        bytes.get_mut(prefix.len()..len)?.copy_from_slice(text);
        Some(CacheKey { bytes, len })
    }

    fn prefixed(prefix: &[u8]) -> Option<[u8; MAX_PREFIX + MAX_ENCODED]> {
        let mut bytes = [0; MAX_PREFIX + MAX_ENCODED];
        bytes
            .get_mut(..prefix.len())
            .filter(|_| prefix.len() <= MAX_PREFIX)?
            .copy_from_slice(prefix);
        Some(bytes)
    }

    /// The key.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &[u8]) -> Name {
        Name::of_id(&SessionId::new(id).unwrap())
    }

    #[test]
    fn a_key_is_the_prefix_and_the_name_in_base64url() {
        let key = CacheKey::new(b"tls:", &name(&[0xfb; 32])).unwrap();
        assert_eq!(key.as_bytes(), b"tls:-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s");
        let same = CacheKey::new(b"tls:", &Name::of_mac([0xfb; 32])).unwrap();
        assert!(key == same);
        assert_eq!(CacheKey::new(b"", &name(&[1])).unwrap().as_bytes(), b"AQ");
    }

    #[test]
    fn a_prefix_has_a_limit() {
        let name = name(&[0; 32]);
        assert_eq!(CacheKey::new(&[b'p'; 128], &name).unwrap().as_bytes().len(), 171);
        assert!(CacheKey::new(&[b'p'; 129], &name).is_none());
    }

    #[test]
    fn a_text_is_left_as_it_is_and_shorter_than_a_name() {
        assert_eq!(CacheKey::verbatim(b"tls:", b"epoch").unwrap().as_bytes(), b"tls:epoch");
        assert!(CacheKey::verbatim(&[b'p'; 128], &[b't'; 32]).is_some());
        assert!(CacheKey::verbatim(b"", &[b't'; 33]).is_none());
        assert!(CacheKey::verbatim(&[b'p'; 129], b"t").is_none());
    }
}
