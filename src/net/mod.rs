//! Connections to the servers of a backend.

mod address_book;
pub mod backend;
mod failure;
mod hold;
pub mod password;
pub mod peer;
pub mod route;
mod wording;
