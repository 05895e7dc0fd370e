//! Reading the streams: ranges for batches and replays, the live tail and its fan-out, presence, the streams `push`, trimming.
//!
//! [`store`] reads what a user must see with one round trip and no Postgres, an [`entry`] at a time; [`live`] follows the live stream once per
//! process, and the [`hub`] wakes the readers that it names; [`feed`] joins both for one reader: history first, then live.
//!
//! For operators, [`streams`] tells what a stream is like, [`tail`] follows several of them, [`groups`] are the consumers
//! of `changes`, and [`quarantine`] holds what could not be routed or stored.

pub mod entry;
pub mod feed;
pub mod groups;
pub mod hub;
pub mod json;
pub mod live;
pub mod presence;
pub mod push;
pub mod quarantine;
mod range;
pub mod store;
pub mod streams;
pub mod tail;
pub mod trim;
