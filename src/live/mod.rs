//! Live delivery: the tail of the live stream, its fan-out to the readers of this process, and presence.

pub mod feed;
pub mod gate;
mod held;
pub mod hub;
pub mod presence;
pub mod tail;
pub mod visibility;
