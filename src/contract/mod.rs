//! What Redis holds: key names, entries, notices, the checkpoint, and the Lua scripts that change it. Both directions of each
//! format are in one file.

pub mod checkpoint;
pub mod control;
pub mod entry;
pub mod json;
pub mod keys;
pub mod quarantine;
pub mod stream_name;
pub mod window;
