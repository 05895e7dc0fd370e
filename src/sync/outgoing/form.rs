//! The form that all items have in common.

use serde_json::{Map, Value};

use super::{ItemCode, rows};

/// Longest name of a table that a result repeats: Postgres' own limit.
const TABLE_CHARS_MAX: usize = 63;

/// Why an item is rejected before it reaches Postgres.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: ItemCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self {
            code: ItemCode::Invalid,
            message: message.into(),
        }
    }
}

pub(super) fn fields(item: &Value) -> Result<&Map<String, Value>, Refusal> {
    item.as_object()
        .ok_or_else(|| Refusal::invalid("an item must be an object"))
}

/// The version that the device's change is based on.
pub(super) fn base_version(fields: &Map<String, Value>) -> Result<Option<i64>, Refusal> {
    match fields.get("base_version") {
        None | Some(Value::Null) => Ok(None),
        Some(base) => base
            .as_i64()
            .filter(|base| *base > 0)
            .map(Some)
            .ok_or_else(|| Refusal::invalid("base_version: must be a positive integer")),
    }
}

/// The operation, one of those allowed; the first is the default.
pub(super) fn operation(fields: &Map<String, Value>, allowed: &[&'static str]) -> Result<&'static str, Refusal> {
    match fields.get("op") {
        None | Some(Value::Null) => Ok(allowed[0]),
        Some(op) => allowed
            .iter()
            .copied()
            .find(|known| op.as_str() == Some(known))
            .ok_or_else(|| Refusal::invalid(format!("op: must be one of {}", allowed.join(", ")))),
    }
}

/// The id as it was sent, truncated.
pub(super) fn sent_id(item: &Value) -> Option<String> {
    match item.get("id")? {
        Value::String(id) => Some(id.chars().take(rows::ID_CHARS_MAX).collect()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

pub(super) fn sent_table(item: &Value) -> Option<String> {
    Some(item.get("table")?.as_str()?.chars().take(TABLE_CHARS_MAX).collect())
}
