//! Incoming batches: what a device gets, and how it says that it has it.
//!
//! What a device gets depends on its [`cursor`] only. No cursor, or one that history no longer reaches, begins a
//! [`snapshot`] from Postgres ([`tables`] reads the operator's own), which hands over to the stream without a gap;
//! [`incoming`] joins both; it gathers a
//! [`stretch`] at a time, the next one [`prefetch`] of its request, and
//! [`device_state`] remembers, in Redis, what each device was given and has acknowledged; [`statuses`] tells Postgres.
//! [`states`] gives changes of encrypted state alone, to whoever asks.

pub mod cursor;
pub mod device_state;
pub mod incoming;
pub mod item;
pub mod metadata;
pub mod outgoing;
pub mod prefetch;
pub mod snapshot;
pub mod states;
pub mod statuses;
pub mod stretch;
pub mod tables;
