//! What each fuzz target does with the bytes that it is given. An assertion that fails is a
//! finding.
//!
//! core/tests/corpus.rs has these modules as well, and runs them over the corpus wherever the tests
//! of session-core run: without libFuzzer, and under whatever watches those tests.

#[path = "../../core/tests/rust_crypto/mod.rs"]
mod rust_crypto;

mod arrivals;
pub mod conversation;
pub mod envelope;
pub mod hello;
pub mod memcached;
pub mod parameter;
mod replies;
pub mod resp;
pub mod session_der;
pub mod session_id;
pub mod target;
pub mod topology;
