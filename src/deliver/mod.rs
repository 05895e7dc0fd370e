//! Being built.
pub mod presence;
