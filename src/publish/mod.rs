//! Writing the streams, exactly once each and in order.
//!
//! A [`batch::Batch`] gathers commands while the one before it is under way; [`connection::Connection`] sends it as
//! one `MULTI`/`EXEC` guarded by `WATCH` on the [`checkpoint`], which the same `EXEC` moves on. So either all of a
//! batch is in Redis and the checkpoint says so, or nothing is. [`progress`] keeps the four positions apart, and
//! [`durability`] tells when Redis can no longer lose what it holds, by what [`aof`] asks it.

pub mod aof;
pub mod batch;
pub mod connection;
pub mod durability;
pub mod outcome;
pub mod progress;
