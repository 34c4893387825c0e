//! Connections to the servers of a backend.

pub mod backend;
mod buffer;
mod failure;
mod node;
pub mod peer;
pub mod route;
