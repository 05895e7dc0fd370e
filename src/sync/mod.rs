//! Sync of devices: incoming batches and uploads.
//!
//! [`incoming`]: what a device gets depends on its [`cursor`] only. Without a cursor, or with one that the streams no longer
//! reach back to, it gets a [`snapshot`] from Postgres ([`tables`] reads the operator's own tables), which hands over to the
//! stream without a gap. The stream is read one [`range`] at a time, the next one [`prefetch`]ed. [`device_state`] keeps, in
//! Redis, what each device was given and has acknowledged; [`statuses`] updates Postgres. [`states`] lists the changes of a
//! user's encrypted state. [`visibility`] tells pages' streams what Postgres shows.
//!
//! [`lookup`] reads rows for operators. [`outgoing`]: what a device changed offline. [`report`] and [`metadata`] record how each sync went.

pub mod cursor;
mod described;
pub mod device_state;
pub mod incoming;
pub mod item;
pub mod lookup;
pub mod members;
pub mod metadata;
pub mod outgoing;
pub mod prefetch;
pub mod range;
pub mod report;
pub mod snapshot;
pub mod states;
pub mod statuses;
pub mod tables;
pub mod visibility;
