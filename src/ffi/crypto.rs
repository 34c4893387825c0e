//! OpenSSL's cryptography, for what is sealed.
//!
//! Algorithms are fetched, and contexts made, once. On the way of a handshake the contexts are
//! started anew; none is allocated here. They hold the key that they were last used with, which is
//! derived from one that is in memory all the time; OpenSSL wipes both when they are freed.

use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::ptr;

use foreign_types::{ForeignType, ForeignTypeRef};
use session_core::crypto::{AES_KEY_LEN, Crypto, Failed, NONCE_LEN, TAG_LEN};
use zeroize::{Zeroize, Zeroizing};

use super::openssl::{
    Algorithm, Cipher, CipherRef, EVP_CIPHER_CTX_ctrl, EVP_CTRL_GCM_GET_TAG, EVP_CTRL_GCM_SET_TAG,
    EVP_CipherFinal_ex, EVP_CipherInit_ex2, EVP_CipherUpdate, RAND_bytes, clear_errors,
};

/// The algorithms of OpenSSL's default context: its configuration says which providers they come
/// from.
pub struct Evp {
    encrypt: Cipher,
    decrypt: Cipher,
    pool: RefCell<Pool>,
}

/// How much randomness is fetched at once, in bytes: for eight tickets. RAND_bytes(3) takes a
/// microsecond, however little is asked for.
const POOL_LEN: usize = 256;

/// Randomness that was fetched and not used yet. It is filled when it is first used, by a handshake:
/// so a process that was forked has its own.
struct Pool {
    bytes: Zeroizing<[u8; POOL_LEN]>,
    /// How many of `bytes`, from the first, are still good.
    left: usize,
}

impl Pool {
    /// Fills `out`, which is shorter than the pool, with what nobody else gets.
    fn take(&mut self, out: &mut [u8]) -> Result<(), Failed> {
        if self.left < out.len() {
            self.left = 0;
            // SAFETY: RAND_bytes(3) fills that many bytes.
            done(unsafe { RAND_bytes(self.bytes.as_mut_ptr(), POOL_LEN as c_int) })?;
            self.left = POOL_LEN;
        }
        let rest = self.left.checked_sub(out.len()).ok_or(Failed)?;
        let taken = self.bytes.get_mut(rest..self.left).ok_or(Failed)?;
        out.copy_from_slice(taken);
        taken.zeroize();
        self.left = rest;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Way {
    Decrypt = 0,
    Encrypt = 1,
}

impl Evp {
    /// Fetches the algorithms.
    pub fn new() -> Result<Self, Failed> {
        let pool = RefCell::new(Pool { bytes: Zeroizing::new([0; POOL_LEN]), left: 0 });
        let (encrypt, decrypt) = (Cipher::aes_gcm(Way::Encrypt)?, Cipher::aes_gcm(Way::Decrypt)?);
        Ok(Evp { encrypt, decrypt, pool })
    }
}

impl Crypto for Evp {
    fn random(&self, out: &mut [u8]) -> Result<(), Failed> {
        self.pool.try_borrow_mut().map_err(|_| Failed)?.take(out)
    }

    fn encrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        let mut tag = [0; TAG_LEN];
        self.encrypt.start(key, nonce, Way::Encrypt)?;
        self.encrypt.run(aad, data)?;
        self.encrypt.finish()?;
        self.encrypt.tag(EVP_CTRL_GCM_GET_TAG, &mut tag)?;
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
        self.decrypt.start(key, nonce, Way::Decrypt)?;
        self.decrypt.run(aad, data)?;
        self.decrypt.tag(EVP_CTRL_GCM_SET_TAG, &mut tag.clone())?;
        Ok(self.decrypt.finish().is_ok())
    }
}

impl Cipher {
    /// AES-256-GCM, without a key.
    fn aes_gcm(way: Way) -> Result<Self, Failed> {
        let context = Cipher::new().ok_or(Failed)?;
        let Some(algorithm) = Algorithm::fetch(c"AES-256-GCM") else {
            clear_errors();
            return Err(Failed);
        };
        let (null, ctx) = (ptr::null(), context.as_ptr());
        // SAFETY: EVP_EncryptInit(3): the context counts the algorithm up.
        done(unsafe {
            EVP_CipherInit_ex2(ctx, algorithm.as_ptr(), null, null, way as c_int, ptr::null())
        })?;
        Ok(context)
    }
}

impl CipherRef {
    fn start(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        way: Way,
    ) -> Result<(), Failed> {
        // SAFETY: key and nonce have the lengths of AES-256 and of GCM's default (96 bits).
        done(unsafe {
            EVP_CipherInit_ex2(
                self.as_ptr(),
                ptr::null(),
                key.as_ptr(),
                nonce.as_ptr(),
                way as c_int,
                ptr::null(),
            )
        })
    }

    /// Takes in what is only authenticated, and changes `data` in place.
    fn run(&self, aad: &[u8], data: &mut [u8]) -> Result<(), Failed> {
        let mut len = 0;
        let aad_len = c_int::try_from(aad.len()).map_err(|_| Failed)?;
        // SAFETY: EVP_EncryptInit(3), "AEAD Interface": without a place for it nothing is written.
        done(unsafe {
            let nowhere = ptr::null_mut();
            EVP_CipherUpdate(self.as_ptr(), nowhere, &raw mut len, aad.as_ptr(), aad_len)
        })?;
        let data_len = c_int::try_from(data.len()).map_err(|_| Failed)?;
        let place = data.as_mut_ptr();
        // SAFETY: GCM writes as many bytes as it reads; in and out may be the same.
        done(unsafe { EVP_CipherUpdate(self.as_ptr(), place, &raw mut len, place, data_len) })?;
        if len == data_len { Ok(()) } else { Err(Failed) }
    }

    /// Ends the work. When decrypting it fails if the tag was wrong.
    fn finish(&self) -> Result<(), Failed> {
        let (mut rest, mut len) = ([0; TAG_LEN], 0);
        // SAFETY: GCM leaves nothing for the end; there is room for a block all the same.
        done(unsafe { EVP_CipherFinal_ex(self.as_ptr(), rest.as_mut_ptr(), &raw mut len) })
    }

    fn tag(&self, control: c_int, tag: &mut [u8; TAG_LEN]) -> Result<(), Failed> {
        // SAFETY: the tag is read or written, as the control says, and has the length given.
        done(unsafe {
            let place = tag.as_mut_ptr().cast::<c_void>();
            EVP_CIPHER_CTX_ctrl(self.as_ptr(), control, TAG_LEN as c_int, place)
        })
    }
}

/// What goes wrong here is kept out of the error queue, where OpenSSL would take it for an error of
/// the handshake that is under way. There is nothing else in it: what that handshake had got wrong
/// would have ended it.
fn done(result: c_int) -> Result<(), Failed> {
    if result == 1 {
        return Ok(());
    }
    clear_errors();
    Err(Failed)
}
