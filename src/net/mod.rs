//! Connections to the servers of a backend.

pub mod peer;
