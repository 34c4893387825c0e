//! The algorithms, as OpenSSL has them.

use openssl::rand::rand_bytes;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use session_core::crypto::{AES_KEY_LEN, Crypto, Failed, NONCE_LEN, TAG_LEN};
use zeroize::Zeroizing;

/// Those of OpenSSL.
pub struct OpenSsl;

impl Crypto for OpenSsl {
    fn random(&self, out: &mut [u8]) -> Result<(), Failed> {
        rand_bytes(out).map_err(|_| Failed)
    }

    fn encrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        let mut tag = [0; TAG_LEN];
        let cipher = Cipher::aes_256_gcm();
        let sealed =
            encrypt_aead(cipher, key, Some(nonce), aad, data, &mut tag).map_err(|_| Failed)?;
        data.iter_mut().zip(sealed).for_each(|(to, from)| *to = from);
        Ok(tag)
    }

    fn decrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<bool, Failed> {
        let Ok(opened) = decrypt_aead(Cipher::aes_256_gcm(), key, Some(nonce), aad, data, tag)
        else {
            return Ok(false);
        };
        let opened = Zeroizing::new(opened);
        data.iter_mut().zip(opened.iter()).for_each(|(to, from)| *to = *from);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encrypted_opens_and_nothing_else() {
        let (key, nonce) = ([7; AES_KEY_LEN], [9; NONCE_LEN]);
        let mut data = *b"a session";
        let tag = OpenSsl.encrypt(&key, &nonce, b"aad", &mut data).unwrap();
        let mut other = data;
        assert_eq!(OpenSsl.decrypt(&key, &nonce, b"other", &mut other, &tag), Ok(false));
        assert_eq!(OpenSsl.decrypt(&key, &nonce, b"aad", &mut data, &tag), Ok(true));
        assert_eq!(&data, b"a session");
    }
}
