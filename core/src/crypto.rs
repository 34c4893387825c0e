//! What is needed of a cryptographic library.

/// Length of a key of AES-256, in bytes.
pub const AES_KEY_LEN: usize = 32;
/// Length of a nonce of AES-GCM, in bytes.
pub const NONCE_LEN: usize = 12;
/// Length of a tag of AES-GCM, in bytes.
pub const TAG_LEN: usize = 16;

/// The library has refused. It has no memory, or no randomness, or does not have the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// The algorithms, as a library has them.
pub trait Crypto {
    /// Fills `out` with bytes that nobody can predict.
    fn random(&self, out: &mut [u8]) -> Result<(), Failed>;

    /// Encrypts `data` in place with AES-256-GCM (NIST SP 800-38D). The tag covers `aad`, too.
    fn encrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed>;

    /// Undoes [`Crypto::encrypt`]. Whether `tag` is right; if it is not, what is in `data` is of
    /// no use, and the caller's to wipe.
    fn decrypt(
        &self,
        key: &[u8; AES_KEY_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<bool, Failed>;
}
