//! Stream entries as readers see them.

use std::collections::HashMap;

use redis::streams::StreamId as RawEntry;
use redis::{FromRedisValue, Value};
use serde::Deserialize;

use crate::change::StreamId;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A row has come.
    Insert,
    /// A row has changed.
    Update,
    /// A row has gone, for this reader at least.
    Delete,
    /// History breaks here, or all rows of a table have gone: only a snapshot tells what is.
    Reset,
    /// A message for users, which is no row.
    Message,
    /// Something that no reader cares for.
    Other,
}

impl Op {
    /// Reads the field `op`, and the same texts in notices.
    pub fn parse(text: &str) -> Self {
        match text {
            "insert" => Self::Insert,
            "update" => Self::Update,
            "delete" => Self::Delete,
            "reset" | "truncate" => Self::Reset,
            "message" => Self::Message,
            _ => Self::Other,
        }
    }

    /// The text that clients see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Reset => "reset",
            Self::Message => "message",
            Self::Other => "other",
        }
    }
}

/// An entry of an inbox or a shared stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub id: StreamId,
    /// What happened.
    pub op: Op,
    /// The table.
    pub table: String,
    /// The live event's name.
    pub event: String,
    /// Transaction id.
    pub xid: u32,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    /// The row as JSON.
    pub row: Option<String>,
    /// The old row as JSON.
    pub old: Option<String>,
    /// Columns that the log left out, as a JSON array.
    pub unchanged: Option<String>,
}

impl Entry {
    /// Reads an entry; fields that are missing or malformed are taken as empty.
    pub fn parse(raw: RawEntry) -> Option<Self> {
        let id = raw.id.parse().ok()?;
        let mut fields: HashMap<String, Value> = raw.map;
        let mut text = |name: &str| {
            fields
                .remove(name)
                .and_then(|value| String::from_redis_value(value).ok())
        };
        Some(Self {
            id,
            op: Op::parse(&text("op").unwrap_or_default()),
            table: text("table").unwrap_or_default(),
            event: text("event").unwrap_or_default(),
            xid: text("xid").and_then(|text| text.parse().ok()).unwrap_or_default(),
            commit_ts: text("ts").and_then(|text| text.parse().ok()).unwrap_or_default(),
            row: text("row"),
            old: text("old"),
            unchanged: text("unchanged"),
        })
    }

    /// The row's `id`, new or old, as text. A message is told from others by its place.
    pub fn row_id(&self) -> Option<String> {
        if self.op == Op::Message {
            return Some(self.id.to_string());
        }
        #[derive(Deserialize)]
        struct Identified {
            id: serde_json::Value,
        }
        [&self.row, &self.old].into_iter().flatten().find_map(|json| {
            match serde_json::from_str::<Identified>(json).ok()?.id {
                serde_json::Value::String(text) => Some(text),
                serde_json::Value::Null => None,
                other => Some(other.to_string()),
            }
        })
    }

    /// Roughly how much memory it takes.
    pub fn bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        128 + length(&self.row) + length(&self.old)
    }
}
