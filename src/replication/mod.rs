//! From Postgres to the publisher: the only place that speaks the replication protocol.
//!
//! [`connection`] holds the replication connection and [`frame`] what flows on it; [`slot`] and [`heartbeat`] are
//! ordinary SQL beside it, as is [`slots`], what an operator asks of all slots; [`epoch`] decides whether history has broken; [`session`] ties the stages together for as
//! long as both connections last, and [`replicator`] begins a new session whenever one ends.

pub mod connection;
pub mod epoch;
pub mod frame;
pub mod heartbeat;
pub mod pipeline;
pub mod replicator;
pub mod session;
pub mod slot;
pub mod trim;
