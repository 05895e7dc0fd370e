//! What a device did while it was alone: a batch of creates, edits, deletes and reads, with a result for each.
//!
//! An item's form is checked here, its effect is the work of `upload_messages()` in the tenant's schema, which takes
//! the whole batch in one statement and says for each item what became of it (its rules stand in
//! `migrations/tenant/0002_upload.up.sql`). One bad item never fails another. Everything is idempotent: a device that
//! lost the answer sends the batch again and gets `duplicate`.
//!
//! An edit or delete made upon an older version than the row's is a conflict. Both versions are kept in
//! `message_conflicts`. Under [`ConflictStrategy::LastWriteWins`] the device's change then stands (it arrived last);
//! under [`ConflictStrategy::Manual`] the row stays until somebody decides. Without a base an item contests nothing.

use chrono::{DateTime, Utc};
use futures_util::future;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_postgres::types::{PgLsn, Type};
use uuid::Uuid;

use super::devices::DevicePrincipal;
use super::messages::check_content;
use super::{Error, Timestamp};
use crate::config::ConflictStrategy;
use crate::database::{self, Database};

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
}

/// An item's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ItemResult {
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
    /// The row as it is now, for a conflict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Value>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// In the order of the items.
    pub results: Vec<ItemResult>,
    /// An upper bound of the batch's own commit in the write-ahead log.
    pub lsn: PgLsn,
    /// When it was done.
    pub at: Timestamp,
}

/// Rules for a batch, out of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Longest content in characters.
    pub content_chars_max: usize,
    /// What happens to conflicts.
    pub strategy: ConflictStrategy,
}

/// Applies a batch of items as JSON, in one round trip to Postgres.
///
/// # Errors
/// Only when Postgres does not do it, and then nothing of the batch is done.
pub async fn apply(
    database: &Database,
    device: &DevicePrincipal,
    items: &[Value],
    rules: Rules,
) -> Result<Uploaded, Error> {
    let mut results: Vec<Option<ItemResult>> = Vec::with_capacity(items.len());
    let mut batch = Batch::default();
    for (index, item) in items.iter().enumerate() {
        match Item::parse(item, device.user_id, rules.content_chars_max) {
            Ok(item) => {
                batch.push(index, item);
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
    let statement = device.tenant.sql(include_str!("../../sql/upload_messages.sql"));
    let params: [database::Param<'_>; 9] = [
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
    // Sent right behind the upload on the same connection, so it runs when that has committed, and costs no wait.
    // futures' `join` polls the first first; tokio's does not promise to.
    let (rows, position) = future::join(
        client.query_typed(&statement, &params),
        client.query_typed_one(include_str!("../../sql/wal_position.sql"), &[]),
    )
    .await;
    for row in rows? {
        let number: i32 = row.try_get("item")?;
        let index = usize::try_from(number - 1)
            .ok()
            .and_then(|number| batch.indexes.get(number))
            .copied();
        let (Some(index), Some(outcome)) = (index, parse_outcome(row.try_get("status")?)) else {
            return Err(Error::Internal(
                "upload_messages() gave a result of no known form".into(),
            ));
        };
        let code: Option<String> = row.try_get("code")?;
        results[index] = Some(ItemResult {
            id: sent_id(&items[index]),
            status: outcome,
            message: code
                .as_deref()
                .and_then(|code| explain(code, outcome))
                .map(str::to_owned),
            code,
            version: row.try_get("version")?,
            server: row.try_get("server")?,
        });
    }
    let position = position?;
    let results: Option<Vec<ItemResult>> = results.into_iter().collect();
    Ok(Uploaded {
        results: results.ok_or_else(|| Error::Internal("upload_messages() left out an item".into()))?,
        lsn: position.try_get("lsn")?,
        at: Timestamp(position.try_get("now")?),
    })
}

/// Items as the parallel arrays that the statement takes, and each one's index in the request.
#[derive(Default)]
struct Batch {
    indexes: Vec<usize>,
    ids: Vec<Uuid>,
    ops: Vec<&'static str>,
    recipients: Vec<Option<Uuid>>,
    contents: Vec<Option<String>>,
    bases: Vec<Option<i64>>,
    times: Vec<Option<DateTime<Utc>>>,
}

impl Batch {
    fn push(&mut self, index: usize, item: Item) {
        self.indexes.push(index);
        self.ids.push(item.id);
        self.ops.push(item.op);
        self.recipients.push(item.recipient);
        self.contents.push(item.content);
        self.bases.push(item.base);
        self.times.push(item.created_at);
    }
}

/// An item whose form is right.
#[derive(Debug, PartialEq)]
struct Item {
    id: Uuid,
    op: &'static str,
    recipient: Option<Uuid>,
    content: Option<String>,
    base: Option<i64>,
    created_at: Option<DateTime<Utc>>,
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
            id: sent_id(item),
            status: Outcome::Rejected,
            code: Some(self.code.to_owned()),
            message: Some(self.message),
            version: None,
            server: None,
        }
    }
}

impl Item {
    fn parse(item: &Value, user: Uuid, content_chars_max: usize) -> Result<Self, Refusal> {
        let Value::Object(fields) = item else {
            return Err(Refusal::invalid("an item must be an object"));
        };
        let op = match fields.get("op") {
            None | Some(Value::Null) => "create",
            Some(op) => ["create", "edit", "delete", "read"]
                .into_iter()
                .find(|known| op.as_str() == Some(known))
                .ok_or_else(|| Refusal::invalid("op: must be create, edit, delete or read"))?,
        };
        let id = uuid(fields, "id")?.ok_or_else(|| Refusal::invalid("id: is missing"))?;
        // The sender of a message that one reads is somebody else.
        if op != "read" && uuid(fields, "sender_id")?.is_some_and(|sender| sender != user) {
            return Err(Refusal {
                code: "FORBIDDEN",
                message: "sender_id: must be this device's user".into(),
            });
        }
        let recipient = match op {
            "create" => {
                Some(uuid(fields, "recipient_id")?.ok_or_else(|| Refusal::invalid("recipient_id: is missing"))?)
            }
            _ => None,
        };
        let content = match op {
            "create" | "edit" => Some(content(fields, content_chars_max)?),
            _ => None,
        };
        let base = match fields.get("base_version") {
            None | Some(Value::Null) => None,
            Some(base) => Some(
                base.as_i64()
                    .filter(|base| *base > 0)
                    .ok_or_else(|| Refusal::invalid("base_version: must be a positive whole number"))?,
            ),
        };
        let created_at = match fields.get("created_at") {
            None | Some(Value::Null) => None,
            Some(time) => Some(
                time.as_str()
                    .and_then(|text| DateTime::parse_from_rfc3339(text).ok())
                    .map(|time| time.to_utc())
                    // What Postgres can store and people can mean.
                    .filter(|time| *time > DateTime::UNIX_EPOCH)
                    .ok_or_else(|| Refusal::invalid("created_at: must be an RFC 3339 timestamp after 1970"))?,
            ),
        };
        Ok(Self {
            id,
            op,
            recipient,
            content,
            base,
            created_at,
        })
    }
}

fn uuid(fields: &Map<String, Value>, name: &str) -> Result<Option<Uuid>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_str()
            .and_then(|text| Uuid::try_parse(text).ok())
            .map(Some)
            .ok_or_else(|| Refusal::invalid(format!("{name}: must be a UUID"))),
    }
}

fn content(fields: &Map<String, Value>, chars_max: usize) -> Result<String, Refusal> {
    let text = match fields.get("content") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => return Err(Refusal::invalid("content: must be a text")),
    };
    check_content(text, chars_max).map_err(|error| Refusal {
        code: match error {
            Error::EmptyMessage => "EMPTY_MESSAGE",
            _ => "VALIDATION_ERROR",
        },
        message: error.to_string(),
    })?;
    Ok(text.to_owned())
}

/// The id as the device knows it, cut to a sensible length when it is none of ours.
fn sent_id(item: &Value) -> Option<String> {
    let id = item.get("id")?.as_str()?;
    Some(id.chars().take(64).collect())
}

fn parse_outcome(text: &str) -> Option<Outcome> {
    match text {
        "applied" => Some(Outcome::Applied),
        "duplicate" => Some(Outcome::Duplicate),
        "conflict" => Some(Outcome::Conflict),
        "rejected" => Some(Outcome::Rejected),
        _ => None,
    }
}

/// Texts for the codes that `upload_messages()` gives.
fn explain(code: &str, outcome: Outcome) -> Option<&'static str> {
    match (code, outcome) {
        ("INVALID_RECIPIENT", _) => Some("the recipient does not exist"),
        ("FORBIDDEN", _) => Some("this is not for this device's user to do"),
        ("NOT_FOUND", _) => Some("there is no such message, or it was deleted"),
        ("CONFLICT", Outcome::Conflict) => Some("the message had changed since this device last saw it"),
        ("CONFLICT", _) => Some("the id is taken by another message"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USER: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn code(item: Value) -> &'static str {
        match Item::parse(&item, USER, 10) {
            Ok(_) => "ok",
            Err(refusal) => refusal.code,
        }
    }

    #[test]
    fn an_item_without_op_is_a_create() {
        let id = Uuid::from_u128(3);
        let item = json!({
            "id": id, "sender_id": USER, "recipient_id": OTHER, "content": "hi", "status": "pending_sync",
            "created_at": "2024-01-15T10:50:00+01:00", "base_version": null, "whatever": 1,
        });
        assert_eq!(
            Item::parse(&item, USER, 10),
            Ok(Item {
                id,
                op: "create",
                recipient: Some(OTHER),
                content: Some("hi".into()),
                base: None,
                created_at: DateTime::from_timestamp(1_705_312_200, 0),
            })
        );
    }

    #[test]
    fn items_of_wrong_form_are_refused_each_with_its_code() {
        let id = Uuid::from_u128(3);
        let create = |key: &str, value: Value| {
            let mut item = json!({"id": id, "sender_id": USER, "recipient_id": OTHER, "content": "hi"});
            item[key] = value;
            code(item)
        };
        assert_eq!(create("op", json!("create")), "ok");
        assert_eq!(create("sender_id", json!(OTHER)), "FORBIDDEN");
        assert_eq!(create("content", json!("  ")), "EMPTY_MESSAGE");
        assert_eq!(create("content", Value::Null), "EMPTY_MESSAGE");
        assert_eq!(create("content", json!("a\0")), "VALIDATION_ERROR");
        assert_eq!(create("content", json!("12345678901")), "VALIDATION_ERROR");
        assert_eq!(create("content", json!(1)), "VALIDATION_ERROR");
        assert_eq!(create("id", json!("x")), "VALIDATION_ERROR");
        assert_eq!(create("id", Value::Null), "VALIDATION_ERROR");
        assert_eq!(create("recipient_id", Value::Null), "VALIDATION_ERROR");
        assert_eq!(create("op", json!("drop")), "VALIDATION_ERROR");
        assert_eq!(create("op", json!(1)), "VALIDATION_ERROR");
        assert_eq!(create("base_version", json!(0)), "VALIDATION_ERROR");
        assert_eq!(create("base_version", json!(1e300)), "VALIDATION_ERROR");
        assert_eq!(create("created_at", json!("yesterday")), "VALIDATION_ERROR");
        assert_eq!(code(json!([1])), "VALIDATION_ERROR");
        assert_eq!(code(json!({"id": id, "op": "read", "sender_id": OTHER})), "ok");
        assert_eq!(code(json!({"id": id, "op": "delete"})), "ok");
        assert_eq!(code(json!({"id": id, "op": "edit"})), "EMPTY_MESSAGE");
    }
}
