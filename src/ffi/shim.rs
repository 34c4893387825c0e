//! What `shim.h` says, in Rust. Its types are those of openssl-sys and nginx-sys.

#![allow(missing_docs, non_upper_case_globals)]

use super::openssl::{BIO, SSL, SSL_CTX, X509, X509_STORE};

include!(concat!(env!("OUT_DIR"), "/shim.rs"));
