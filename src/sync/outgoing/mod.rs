//! What a device did while it was alone: a batch of creates, edits, deletes and reads, with a result for each.
//!
//! An item's form is checked here, its effect is the work of a function in the tenant's schema, which takes the whole
//! batch in one statement and says for each item what became of it: `upload_messages()` for messages (its rules stand
//! in `migrations/tenant/0002_upload.up.sql`), `upload_rows()` for rows of the operator's own tables
//! (`0004_upload_rows.up.sql`). One bad item never fails another. Everything is idempotent: a device that lost the
//! answer sends the batch again and gets `duplicate`.
//!
//! An edit or delete made upon an older version than the row's is a conflict. Versions decide, not clocks: of two
//! changes upon the same version the one that reaches Postgres first is no conflict, and the later one is. Both versions
//! of a message are kept in `message_conflicts`. Under [`ConflictStrategy::LastWriteWins`] the device's change then
//! stands (it arrived last); under [`ConflictStrategy::Manual`] the row stays until somebody decides (see
//! [`crate::messages::conflicts`]). A row of an own table always stays. Without a base an item contests nothing.

mod messages;
mod rows;

use futures_util::future;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use crate::accounts::devices::DevicePrincipal;
use crate::config::ConflictStrategy;
use crate::config::rule::Rule;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::postgres::{self, Database, sql};

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Applied,
    /// It had been done before.
    Duplicate,
    /// The row had changed meanwhile; see the module for what then happens.
    Conflict,
    /// It cannot be done, now or later.
    Rejected,
    /// It cannot be done now; sent again later it may be.
    Retry,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Applied,
        Self::Duplicate,
        Self::Conflict,
        Self::Rejected,
        Self::Retry,
    ];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Retry => "retry",
        }
    }
}

/// An item's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ItemResult {
    /// The table of a row; messages have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The item's id as it was sent; null when it was no text.
    pub id: Option<String>,
    /// What became of it.
    pub status: Outcome,
    /// Why it was not simply applied: an error code of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The row's version now: the base of the device's next change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The row as it is now, for a conflict. That of an own table is for the caller to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Value>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// In the order of the items, messages first.
    pub results: Vec<ItemResult>,
    /// An upper bound of the batch's own commit in the write-ahead log.
    pub lsn: PgLsn,
    /// When it was done.
    pub at: Timestamp,
}

/// A batch as it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    /// Messages.
    pub messages: &'a [Value],
    /// Rows of own tables.
    pub changes: &'a [Value],
}

/// Rules for a batch, out of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Longest content in characters.
    pub content_chars_max: usize,
    /// What happens to conflicts.
    pub strategy: ConflictStrategy,
    /// Which tables are open for uploads.
    pub tables: &'a [Rule],
}

/// Applies a batch of items as JSON, in one round trip to Postgres: the messages in one transaction, then the rows in
/// another.
///
/// # Errors
/// Only when Postgres does not do it. Then nothing of the batch is done, or only the messages; sent again, all is right.
pub async fn apply(
    database: &Database,
    device: &DevicePrincipal,
    items: Items<'_>,
    rules: Rules<'_>,
) -> Result<Uploaded, Error> {
    let mut results: Vec<Option<ItemResult>> = Vec::with_capacity(items.messages.len() + items.changes.len());
    let mut batch = messages::Batch::default();
    for (index, item) in items.messages.iter().enumerate() {
        match messages::Item::parse(item, device.user_id, rules.content_chars_max) {
            Ok(item) => {
                batch.push(index, item);
                results.push(None);
            }
            Err(refusal) => results.push(Some(refusal.result(item))),
        }
    }
    let (mut rows, mut row_indexes): (Vec<Value>, Vec<usize>) = (Vec::new(), Vec::new());
    for item in items.changes {
        match rows::parse(item, rules.tables) {
            Ok(row) => {
                rows.push(row);
                row_indexes.push(results.len());
                results.push(None);
            }
            Err(refusal) => results.push(Some(refusal.result(item))),
        }
    }
    let strategy = match rules.strategy {
        ConflictStrategy::LastWriteWins => "last_write_wins",
        ConflictStrategy::Manual => "manual",
    };
    let client = database.get().await?;
    let upload_messages = sql!("sync/upload_messages", device.tenant);
    let message_params: [postgres::Param<'_>; 9] = [
        (&device.user_id, Type::UUID),
        (&device.device_id, Type::TEXT),
        (&strategy, Type::TEXT),
        (&batch.ids, Type::UUID_ARRAY),
        (&batch.ops, Type::TEXT_ARRAY),
        (&batch.recipients, Type::UUID_ARRAY),
        (&batch.contents, Type::TEXT_ARRAY),
        (&batch.bases, Type::INT8_ARRAY),
        (&batch.times, Type::TIMESTAMPTZ_ARRAY),
    ];
    let upload_rows = sql!("sync/upload_rows", device.tenant);
    let has_rows = !rows.is_empty();
    let rows = Value::Array(rows);
    let row_params: [postgres::Param<'_>; 3] = [
        (&device.user_id, Type::UUID),
        (&device.tenant.schema, Type::TEXT),
        (&rows, Type::JSONB),
    ];
    // Each is sent right behind the one before it on the same connection, so it runs when that has committed, and costs
    // no wait. futures' `join` polls in order; tokio's does not promise to.
    let (of_messages, of_rows, position) = future::join3(
        async {
            match batch.indexes.is_empty() {
                true => Ok(Vec::new()),
                false => {
                    let asking = client.query_typed(&upload_messages, &message_params);
                    database.counted(&upload_messages, asking).await
                }
            }
        },
        async {
            match has_rows {
                true => {
                    let asking = client.query_typed(&upload_rows, &row_params);
                    database.counted(&upload_rows, asking).await
                }
                false => Ok(Vec::new()),
            }
        },
        client.query_typed_one(&sql!("postgres/wal_position"), &[]),
    )
    .await;
    for row in of_messages? {
        let index = item_index(&row, &batch.indexes)?;
        let (status, code) = outcome(&row)?;
        results[index] = Some(ItemResult {
            table: None,
            id: sent_id(&items.messages[index]),
            status,
            message: explain(code.as_deref(), status, "message"),
            code,
            version: row.try_get("version")?,
            server: row.try_get("server")?,
        });
    }
    for row in of_rows? {
        let index = item_index(&row, &row_indexes)?;
        let (status, code) = outcome(&row)?;
        let item = &items.changes[index - items.messages.len()];
        let message: Option<String> = row.try_get("message")?;
        results[index] = Some(ItemResult {
            table: sent_table(item),
            id: sent_id(item),
            status,
            message: message.or_else(|| explain(code.as_deref(), status, "row")),
            code,
            version: row.try_get("version")?,
            server: None,
        });
    }
    let position = position?;
    let results: Option<Vec<ItemResult>> = results.into_iter().collect();
    Ok(Uploaded {
        results: results.ok_or_else(|| Error::Internal("an upload's item was left out".into()))?,
        lsn: position.try_get("lsn")?,
        at: Timestamp(position.try_get("now")?),
    })
}

/// The index of the item that a row of the answer is about.
fn item_index(row: &Row, indexes: &[usize]) -> Result<usize, Error> {
    let number: i32 = row.try_get("item")?;
    usize::try_from(number - 1)
        .ok()
        .and_then(|number| indexes.get(number))
        .copied()
        .ok_or_else(|| {
            Error::Internal(format!(
                "an upload's answer is about the item {number}, which was not sent"
            ))
        })
}

fn outcome(row: &Row) -> Result<(Outcome, Option<String>), Error> {
    let status = match row.try_get("status")? {
        "applied" => Outcome::Applied,
        "duplicate" => Outcome::Duplicate,
        "conflict" => Outcome::Conflict,
        "rejected" => Outcome::Rejected,
        "retry" => Outcome::Retry,
        other => return Err(Error::Internal(format!("an upload's item became {other:?}"))),
    };
    Ok((status, row.try_get("code")?))
}

/// Texts for the codes that the functions in Postgres give.
fn explain(code: Option<&str>, outcome: Outcome, noun: &str) -> Option<String> {
    Some(match (code?, outcome) {
        ("INVALID_RECIPIENT", _) => "the recipient does not exist".into(),
        ("FORBIDDEN", _) => "this is not for this device's user to do".into(),
        ("NOT_FOUND", _) => format!("there is no such {noun}, or it was deleted"),
        ("CONFLICT", Outcome::Conflict) => format!("the {noun} had changed since this device last saw it"),
        ("CONFLICT", _) => format!("the id is taken by another {noun}"),
        _ => return None,
    })
}

/// Why an item is not even tried.
#[derive(Debug, PartialEq)]
struct Refusal {
    code: &'static str,
    message: String,
}

impl Refusal {
    fn invalid(message: impl Into<String>) -> Self {
        Self {
            code: "VALIDATION_ERROR",
            message: message.into(),
        }
    }

    fn result(self, item: &Value) -> ItemResult {
        ItemResult {
            table: sent_table(item),
            id: sent_id(item),
            status: Outcome::Rejected,
            code: Some(self.code.to_owned()),
            message: Some(self.message),
            version: None,
            server: None,
        }
    }
}

/// An item's fields.
fn fields(item: &Value) -> Result<&Map<String, Value>, Refusal> {
    item.as_object()
        .ok_or_else(|| Refusal::invalid("an item must be an object"))
}

/// The version that the device saw.
fn base_version(fields: &Map<String, Value>) -> Result<Option<i64>, Refusal> {
    match fields.get("base_version") {
        None | Some(Value::Null) => Ok(None),
        Some(base) => base
            .as_i64()
            .filter(|base| *base > 0)
            .map(Some)
            .ok_or_else(|| Refusal::invalid("base_version: must be a positive whole number")),
    }
}

/// The operation, out of those that are allowed; the first is the default.
fn operation(fields: &Map<String, Value>, allowed: &[&'static str]) -> Result<&'static str, Refusal> {
    match fields.get("op") {
        None | Some(Value::Null) => Ok(allowed[0]),
        Some(op) => allowed
            .iter()
            .copied()
            .find(|known| op.as_str() == Some(known))
            .ok_or_else(|| Refusal::invalid(format!("op: must be one of {}", allowed.join(", ")))),
    }
}

/// The id as the device knows it, cut to a sensible length when it is none of ours.
fn sent_id(item: &Value) -> Option<String> {
    match item.get("id")? {
        Value::String(id) => Some(id.chars().take(rows::ID_CHARS_MAX).collect()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

fn sent_table(item: &Value) -> Option<String> {
    Some(item.get("table")?.as_str()?.chars().take(63).collect())
}
