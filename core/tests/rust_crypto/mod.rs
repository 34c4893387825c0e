//! The algorithms as the RustCrypto crates have them.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hmac::{Hmac, Mac};
use session_core::crypto::{Crypto, Failed, MAC_LEN, NONCE_LEN, TAG_LEN};
use sha2::Sha256;
use std::cell::Cell;

/// Its "random" bytes count up from a number that a test can set, as vectors need it.
#[derive(Default)]
pub struct RustCrypto {
    pub next: Cell<u8>,
    /// Nothing works any more.
    pub broken: Cell<bool>,
    /// No two MACs are alike, as with a library that does not start anew.
    pub restarts_wrongly: Cell<bool>,
}

impl RustCrypto {
    fn works(&self) -> Result<(), Failed> {
        if self.broken.get() { Err(Failed) } else { Ok(()) }
    }
}

impl Crypto for &RustCrypto {
    type Key = Hmac<Sha256>;

    fn key(&self, secret: &[u8]) -> Result<Self::Key, Failed> {
        self.works()?;
        Mac::new_from_slice(secret).map_err(|_| Failed)
    }

    fn mac(
        &self,
        key: &Self::Key,
        label: &[u8],
        data: &[u8],
        mac: &mut [u8; MAC_LEN],
    ) -> Result<(), Failed> {
        self.works()?;
        *mac = key.clone().chain_update(label).chain_update(data).finalize().into_bytes().into();
        if self.restarts_wrongly.get() {
            mac[0] = mac[0].wrapping_add(self.next.replace(self.next.get().wrapping_add(1)));
        }
        Ok(())
    }

    fn random(&self, out: &mut [u8]) -> Result<(), Failed> {
        self.works()?;
        out.fill_with(|| self.next.replace(self.next.get().wrapping_add(1)));
        Ok(())
    }

    fn encrypt(
        &self,
        key: &[u8; MAC_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: [&[u8]; 2],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        self.works()?;
        let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| Failed)?;
        let nonce = Nonce::from_slice(nonce);
        let tag = cipher.encrypt_in_place_detached(nonce, &aad.concat(), data);
        tag.map(Into::into).map_err(|_| Failed)
    }

    fn decrypt(
        &self,
        key: &[u8; MAC_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: [&[u8]; 2],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<bool, Failed> {
        self.works()?;
        let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| Failed)?;
        let nonce = Nonce::from_slice(nonce);
        let tag = Tag::from_slice(tag);
        Ok(cipher.decrypt_in_place_detached(nonce, &aad.concat(), data, tag).is_ok())
    }
}
