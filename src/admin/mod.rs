//! What operators see and do: tenants, rules, streams, consumer groups, quarantine, slots, the whole system, and `doctor`. The
//! values are serializable; the command line only renders them.

pub mod access;
pub mod client_types;
pub mod conflicts;
pub mod consumer_groups;
pub mod devices;
pub mod doctor;
pub mod figures;
pub mod level;
pub mod published;
pub mod quarantine;
pub mod quarantine_retry;
pub mod routes;
pub mod slot_report;
pub mod status;
pub mod stream_report;
pub mod streams;
pub mod tail;
pub mod tenants;
pub mod trace;
pub mod verdict;
