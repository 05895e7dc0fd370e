//! Being built.
pub mod tenants;
