//! Items that are messages.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::ItemCode;
use super::form::{Refusal, base_version, fields, operation};
use crate::config::Config;
use crate::config::group::Groups;
use crate::feature::Error;
use crate::messages::check_content;
use crate::messages::groups::GroupOfMessage;

/// Checks an item and converts it to the form that `upload_items()` takes. With numbers its columns are in `row`.
pub(super) fn parse(item: &Value, is_numbered: bool, user: Uuid, config: &Config) -> Result<Value, Refusal> {
    let fields = fields(item)?;
    let none = Map::new();
    let row = match fields.get("row") {
        _ if !is_numbered => fields,
        Some(Value::Object(row)) => row,
        None | Some(Value::Null) => &none,
        Some(_) => return Err(Refusal::invalid("row: must be an object of columns and values")),
    };
    let op = operation(fields, &["create", "edit", "delete", "read"])?;
    let id = uuid(fields, "id")?.ok_or_else(|| Refusal::invalid("id: is missing"))?;
    // The sender of a message that is marked as read is another user.
    if op != "read" && uuid(row, "sender_id")?.is_some_and(|sender| sender != user) {
        return Err(Refusal {
            code: ItemCode::Forbidden,
            message: "sender_id: must be this device's user".into(),
        });
    }
    let (recipient, group) = match op {
        "create" => match (uuid(row, "recipient_id")?, group(row, &config.groups)?) {
            (None, None) => return Err(Refusal::invalid("recipient_id: is missing, and so is group")),
            (Some(_), Some(_)) => return Err(Refusal::invalid("group: is not allowed together with recipient_id")),
            audience => audience,
        },
        _ => (None, None),
    };
    let content = match op {
        "create" | "edit" => Some(content(row, config.messages.content_chars_max)?),
        _ => None,
    };
    Ok(json!({
        "id": id, "op": op, "recipient": recipient, "group": group, "content": content, "base": base_version(fields)?,
        "written_at": created_at(row)?,
    }))
}

/// The group to which a message goes.
fn group(row: &Map<String, Value>, groups: &Groups) -> Result<Option<GroupOfMessage>, Refusal> {
    let Some(group) = row.get("group").filter(|group| !group.is_null()) else {
        return Ok(None);
    };
    let group = serde_json::from_value(group.clone()).map_err(|error| Refusal::invalid(format!("group: {error}")))?;
    GroupOfMessage::checked(group, groups)
        .map(Some)
        .map_err(|error| Refusal::invalid(error.to_string()))
}

fn created_at(row: &Map<String, Value>) -> Result<Option<DateTime<Utc>>, Refusal> {
    match row.get("created_at") {
        None | Some(Value::Null) => Ok(None),
        Some(time) => time
            .as_str()
            .and_then(|text| DateTime::parse_from_rfc3339(text).ok())
            .map(|time| time.to_utc())
            // Earlier times are mistakes; some are out of the range of Postgres.
            .filter(|time| *time > DateTime::UNIX_EPOCH)
            .map(Some)
            .ok_or_else(|| Refusal::invalid("created_at: must be an RFC 3339 timestamp after 1970")),
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
        Some(_) => return Err(Refusal::invalid("content: must be a string")),
    };
    check_content(text, chars_max).map_err(|error| Refusal {
        code: match error {
            Error::EmptyMessage => ItemCode::EmptyMessage,
            _ => ItemCode::Invalid,
        },
        message: error.to_string(),
    })?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn parse(item: &Value, is_numbered: bool) -> Result<Value, Refusal> {
        let mut config = Config::default();
        config.messages.content_chars_max = 10;
        config.groups = serde_json::from_value(json!({"list": {"table": "m", "id": "list", "user": "u"}})).unwrap();
        super::parse(item, is_numbered, USER, &config)
    }

    fn code(item: Value) -> Option<ItemCode> {
        parse(&item, false).err().map(|refusal| refusal.code)
    }

    #[test]
    fn item_without_op_is_a_create() {
        let id = Uuid::from_u128(3);
        let item = json!({
            "id": id, "sender_id": USER, "recipient_id": OTHER, "content": "hi", "status": "pending_sync",
            "created_at": "2024-01-15T10:50:00+01:00", "base_version": null, "whatever": 1,
        });
        assert_eq!(
            parse(&item, false),
            Ok(json!({
                "id": id, "op": "create", "recipient": OTHER, "group": null, "content": "hi", "base": null,
                "written_at": "2024-01-15T09:50:00Z",
            }))
        );
        let numbered = json!({"seq": 1, "id": id, "row": {"recipient_id": OTHER, "content": "hi"}});
        let entry = parse(&numbered, true).expect("a valid item");
        assert_eq!((&entry["recipient"], &entry["content"]), (&json!(OTHER), &json!("hi")));
        assert!(parse(&json!({"id": id, "op": "edit", "content": "hi"}), true).is_err());
    }

    #[test]
    fn invalid_items_are_refused_with_their_code() {
        let id = Uuid::from_u128(3);
        let create = |key: &str, value: Value| {
            let mut item = json!({"id": id, "sender_id": USER, "recipient_id": OTHER, "content": "hi"});
            item[key] = value;
            code(item)
        };
        assert_eq!(create("op", json!("create")), None);
        assert_eq!(create("sender_id", json!(OTHER)), Some(ItemCode::Forbidden));
        assert_eq!(create("content", json!("  ")), Some(ItemCode::EmptyMessage));
        assert_eq!(create("content", Value::Null), Some(ItemCode::EmptyMessage));
        assert_eq!(create("content", json!("a\0")), Some(ItemCode::Invalid));
        assert_eq!(create("content", json!("12345678901")), Some(ItemCode::Invalid));
        assert_eq!(create("content", json!(1)), Some(ItemCode::Invalid));
        assert_eq!(create("id", json!("x")), Some(ItemCode::Invalid));
        assert_eq!(create("id", Value::Null), Some(ItemCode::Invalid));
        assert_eq!(create("recipient_id", Value::Null), Some(ItemCode::Invalid));
        assert_eq!(
            create("group", json!({"name": "list", "id": "1"})),
            Some(ItemCode::Invalid)
        );
        assert_eq!(create("op", json!("drop")), Some(ItemCode::Invalid));
        assert_eq!(create("op", json!(1)), Some(ItemCode::Invalid));
        assert_eq!(create("base_version", json!(0)), Some(ItemCode::Invalid));
        assert_eq!(create("base_version", json!(1e300)), Some(ItemCode::Invalid));
        assert_eq!(create("created_at", json!("yesterday")), Some(ItemCode::Invalid));
        assert_eq!(code(json!([1])), Some(ItemCode::Invalid));
        assert_eq!(code(json!({"id": id, "op": "read", "sender_id": OTHER})), None);
        assert_eq!(code(json!({"id": id, "op": "delete"})), None);
        assert_eq!(code(json!({"id": id, "op": "edit"})), Some(ItemCode::EmptyMessage));
    }

    #[test]
    fn message_to_a_group_names_a_configured_one() {
        let item = |group: Value| json!({"id": Uuid::from_u128(3), "group": group, "content": "hi"});
        let entry = parse(&item(json!({"name": "list", "id": "4:2"})), false).expect("a valid item");
        assert_eq!(
            (&entry["recipient"], &entry["group"]),
            (&Value::Null, &json!({"name": "list", "id": "4:2"}))
        );
        for bad in [
            json!("list:42"),
            json!({"name": "list"}),
            json!({"name": "list", "id": 42}),
            json!({"name": "list", "id": ""}),
            json!({"name": "list", "id": "a b"}),
            json!({"name": "other", "id": "42"}),
        ] {
            assert_eq!(code(item(bad.clone())), Some(ItemCode::Invalid), "{bad}");
        }
    }
}
