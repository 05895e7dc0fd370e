//! From pgoutput's bytes to messages, and from column texts to JSON. Pure: no IO, no clock.

pub mod pgoutput;
pub mod relation;
pub mod value;
