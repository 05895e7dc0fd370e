//! From Postgres to the publisher: the only place that speaks the replication protocol.
//!
//! [`replicator`] runs one [`session`] after another. [`startup`] connects both servers and decides with [`epoch`]
//! whether replication continues; the session then moves frames from the [`connection`] ([`frame`], `login`) through
//! the [`pipeline`] to the publisher, until it [ends](end). [`slot`], [`heartbeat`], [`catalog`] and [`outside`], which share
//! [`difference`], are ordinary SQL beside the stream, and [`trim`] decides what the streams may drop; [`bounds`] keeps
//! them within their bounds by the [`ledger`] of what was written, and [`budget`] chooses what a tenant loses; `relief` chooses
//! the tenant when Redis is full. [`report`] is what other parts see of all this. `durability_watch` follows the disk of Redis and its replicas. `undecodable` leads past transactions
//! that Postgres fails to send. `unseen` is what is published and no snapshot sees yet.

pub mod bounds;
pub mod budget;
pub mod catalog;
pub mod connection;
pub mod difference;
mod durability_watch;
pub mod end;
pub mod epoch;
pub mod frame;
pub mod heartbeat;
pub mod ledger;
mod login;
pub mod outside;
pub mod pipeline;
mod relief;
pub mod replicator;
pub mod report;
mod row_json;
mod rules;
pub mod session;
pub mod slot;
pub mod startup;
pub mod trim;
mod undecodable;
mod unseen;
