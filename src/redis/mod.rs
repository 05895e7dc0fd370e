//! Connections to Redis and reads of the streams.

pub mod range;
pub mod shared;
pub mod store;
