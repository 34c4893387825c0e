//! What operators see.

pub mod page;
pub mod variables;
