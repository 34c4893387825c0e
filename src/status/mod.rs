//! What operators see.

pub mod variables;
