//! The algorithms as the RustCrypto crates have them.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use session_core::crypto::{AES_KEY_LEN, Crypto, Failed, NONCE_LEN, TAG_LEN};
use std::cell::Cell;

/// Its "random" bytes count up from a number that a test can set, as vectors need it.
#[derive(Default)]
pub struct RustCrypto {
    pub next: Cell<u8>,
    /// Nothing works any more.
    pub broken: Cell<bool>,
}

impl RustCrypto {
    fn works(&self) -> Result<(), Failed> {
        if self.broken.get() { Err(Failed) } else { Ok(()) }
    }
}

impl Crypto for &RustCrypto {
    fn random(&self, out: &mut [u8]) -> Result<(), Failed> {
        self.works()?;
        out.fill_with(|| self.next.replace(self.next.get().wrapping_add(1)));
        Ok(())
    }

    fn encrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        self.works()?;
        let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| Failed)?;
        let nonce = Nonce::from_slice(nonce);
        let tag = cipher.encrypt_in_place_detached(nonce, aad, data);
        tag.map(Into::into).map_err(|_| Failed)
    }

    fn decrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<bool, Failed> {
        self.works()?;
        let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| Failed)?;
        let nonce = Nonce::from_slice(nonce);
        let tag = Tag::from_slice(tag);
        Ok(cipher.decrypt_in_place_detached(nonce, aad, data, tag).is_ok())
    }
}
