//! Items that are messages, by their form.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::feature::Error;
use crate::messages::check_content;
use crate::sync::outgoing::{Refusal, base_version, fields, operation};

/// Items as the parallel arrays that the statement takes, and each one's index in the request.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) indexes: Vec<usize>,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) ops: Vec<&'static str>,
    pub(crate) recipients: Vec<Option<Uuid>>,
    pub(crate) contents: Vec<Option<String>>,
    pub(crate) bases: Vec<Option<i64>>,
    pub(crate) times: Vec<Option<DateTime<Utc>>>,
}

impl Batch {
    pub(crate) fn push(&mut self, index: usize, item: Item) {
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
pub(crate) struct Item {
    id: Uuid,
    op: &'static str,
    recipient: Option<Uuid>,
    content: Option<String>,
    base: Option<i64>,
    created_at: Option<DateTime<Utc>>,
}

impl Item {
    pub(crate) fn parse(item: &Value, user: Uuid, content_chars_max: usize) -> Result<Self, Refusal> {
        let fields = fields(item)?;
        let op = operation(fields, &["create", "edit", "delete", "read"])?;
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
        let base = base_version(fields)?;
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
