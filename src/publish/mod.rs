//! Writes the streams: each entry exactly once, and in order.
//!
//! A [`batch::Batch`] gathers commands while the one before it is in flight; [`connection::Connection`] sends it as one
//! `MULTI`/`EXEC` guarded by `WATCH` on the [checkpoint](crate::contract::checkpoint), which the same `EXEC` advances.
//! So Redis holds either all of a batch and its checkpoint, or nothing of both; [`outcome`] interprets the replies.
//! [`progress`] keeps the four positions apart, and [`durability`] decides by the readings of [`aof`] when Redis can no
//! longer lose them. [`probe`] tries what all of this needs of a server.

pub mod aof;
pub mod batch;
pub mod connection;
pub mod cut;
pub mod durability;
pub mod outcome;
pub mod probe;
pub mod progress;
