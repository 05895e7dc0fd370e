//! What operators see: streams, consumer groups, quarantine, slots, and `doctor`.

pub mod doctor;
pub mod groups;
pub mod published;
pub mod quarantine;
pub mod slot_report;
pub mod streams;
pub mod tail;
