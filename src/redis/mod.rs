//! Redis: connections, reading streams, replies that several parts need.

pub mod cluster;
pub mod connect;
pub mod entries;
pub mod error;
pub mod info;
mod merge;
pub mod range;
pub mod read_position;
pub mod reading;
pub mod shared;
pub mod standing;
pub mod store;
mod wrong_type;
