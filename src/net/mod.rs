//! Connections to the servers of a backend.

pub mod backend;
pub mod peer;
pub mod route;
