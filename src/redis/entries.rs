//! Entries as the `redis` crate returns them.

use redis::Value;

use crate::contract::entry::Entry;
use crate::contract::notice::LiveEntry;
use crate::core::position::StreamId;

/// Reads an entry of `changes`, `shared` or an inbox; `None` when its ID is malformed.
pub fn entry(raw: &redis::streams::StreamId) -> Option<Entry> {
    let id: StreamId = raw.id.parse().ok()?;
    let fields = raw.map.iter().filter_map(|(name, value)| match value {
        Value::BulkString(bytes) => Some((name.as_str(), bytes.as_slice())),
        _ => None,
    });
    Some(Entry::from_fields(id, fields))
}

/// The commit time of an entry, µs since 1970; of a live entry that of the last heartbeat in it.
pub fn commit_ts(raw: &redis::streams::StreamId) -> Option<i64> {
    let commit_ts = entry(raw)?.commit_ts;
    commit_ts.or_else(|| LiveEntry::parse(|name| raw.get(name)).heartbeat_ts)
}
