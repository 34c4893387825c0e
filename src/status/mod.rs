//! What operators see.

pub mod facts;
pub mod page;
pub mod variables;
