//! The formats in Redis: names of keys, entries, notices, hashes, commands, and the Lua scripts. Each format is in one
//! file, both directions.

pub mod budget;
#[cfg(test)]
pub mod catalog;
pub mod checkpoint;
pub mod control;
pub mod device_state;
pub mod entry;
pub mod group;
pub mod head;
pub mod json;
pub mod keys;
pub mod lua;
pub mod members;
pub mod membership_log;
pub mod meta;
pub mod notice;
pub mod push;
pub mod quarantine;
pub mod stream_name;
pub mod terms;
pub mod window;
