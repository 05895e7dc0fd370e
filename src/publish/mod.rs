//! Being built.
pub mod progress {}
