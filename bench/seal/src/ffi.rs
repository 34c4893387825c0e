//! The module's own files, by the paths that they have there.

#![allow(dead_code, unused_imports, reason = "what else they are for is not here")]

#[path = "../../../src/ffi/crypto.rs"]
pub mod crypto;
pub mod openssl;
