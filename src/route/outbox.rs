//! The transactional outbox: an event for users that its writer names, published when its transaction commits, in commit
//! order. It is a row of a tenant's table `outbox`:
//!
//! ```sql
//! INSERT INTO tenant_acme.outbox (event, recipients, data)
//! VALUES ('order_shipped', '["5f1a…"]', '{"order": 7}');
//! ```
//!
//! or, where `outbox.logical_messages` is on, a logical decoding message:
//!
//! ```sql
//! SELECT pg_logical_emit_message(true, 'posduif:order_shipped',
//!     '{"tenant": "acme", "to": ["5f1a…"], "data": {"order": 7}}');
//! ```
//!
//! It is not state: a device that takes a snapshot afterwards does not receive it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::config::rule::{TENANT, is_event_name};
use crate::contract::group::GroupId;
use crate::contract::stream_name::Audience;
use crate::core::event::RESERVED;
use crate::core::tenant::is_valid_name;

/// The table in a tenant's schema.
pub const TABLE: &str = "outbox";

/// Prefix of logical decoding messages, and of the table's name in entries; the event's name follows.
pub const PREFIX: &str = "posduif:";

/// Longest content in bytes: live entries hold it too, although they hold no rows. Larger data belongs in a table.
pub const CONTENT_BYTES_MAX: usize = 64 * 1024;

/// Most recipients of one message.
pub const RECIPIENTS_MAX: usize = 1000;

/// An outbox message.
#[derive(Debug)]
pub struct OutboxMessage<'a> {
    /// Name of the live event.
    pub event: &'a str,
    pub tenant: &'a str,
    pub to: Vec<Audience>,
    /// JSON; `null` unless given.
    pub data: &'a str,
}

/// A message that cannot be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message {event:?}: {cause}")]
pub struct Undeliverable {
    pub event: String,
    /// The tenant, if the content names one.
    pub tenant: Option<String>,
    pub cause: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'a> {
    tenant: &'a str,
    to: To,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum To {
    Word(String),
    Users(Vec<Uuid>),
    /// A group: its name and id.
    Group(BTreeMap<String, String>),
}

impl<'a> OutboxMessage<'a> {
    /// Reads a row of a tenant's outbox; `None` for a value that the row lacks or that is no UTF-8.
    pub fn from_row(
        tenant: &'a str,
        event: Option<&'a str>,
        recipients: Option<&str>,
        data: Option<&'a str>,
    ) -> Result<Self, Undeliverable> {
        let refused = |cause: String| Undeliverable {
            event: event.unwrap_or_default().chars().take(64).collect(),
            tenant: Some(tenant.to_owned()),
            cause,
        };
        let (Some(event), Some(recipients)) = (event, recipients) else {
            return Err(refused("the row lacks `event` or `recipients`".into()));
        };
        let data = data.unwrap_or("null");
        if data.len() > CONTENT_BYTES_MAX {
            return Err(refused(too_large(data.len())));
        }
        let to: To = serde_json::from_str(recipients).map_err(|_| {
            refused(format!(
                "`recipients` must be a list of user ids, a group such as {{\"list\": \"42\"}}, or \"{TENANT}\""
            ))
        })?;
        Self::addressed(tenant, event, to, data).map_err(|cause| refused(cause.into()))
    }

    /// Parses a logical decoding message whose prefix, without [`PREFIX`], is `event`.
    pub fn parse(event: &'a str, content: &'a [u8]) -> Result<Self, Undeliverable> {
        let refused = |tenant: Option<&str>, cause: String| Undeliverable {
            event: event.chars().take(64).collect(),
            tenant: tenant.map(str::to_owned),
            cause,
        };
        if content.len() > CONTENT_BYTES_MAX {
            return Err(refused(tenant_of(content), too_large(content.len())));
        }
        let parsed: Content<'a> = serde_json::from_slice(content).map_err(|error| {
            let cause = format!(
                "{error}; expected {{\"tenant\": name, \"to\": [user ids] or \"{TENANT}\", \"data\": any JSON}}"
            );
            refused(tenant_of(content), cause)
        })?;
        if !is_valid_name(parsed.tenant) {
            return Err(refused(None, "invalid tenant name".into()));
        }
        let data = parsed.data.map_or("null", RawValue::get);
        Self::addressed(parsed.tenant, event, parsed.to, data)
            .map_err(|cause| refused(Some(parsed.tenant), cause.into()))
    }

    fn addressed(tenant: &'a str, event: &'a str, to: To, data: &'a str) -> Result<Self, &'static str> {
        if !is_event_name(event) {
            return Err("an event name has 1 to 64 characters of a-z, 0-9 and _");
        }
        if RESERVED.contains(&event) {
            return Err("the event name is reserved for the server; use another");
        }
        let to = match to {
            To::Word(word) if word == TENANT => vec![Audience::Tenant],
            To::Word(_) => return Err("recipients must be a list of user ids, or \"tenant\""),
            To::Users(users) if users.len() > RECIPIENTS_MAX => {
                return Err("more than 1,000 recipients; send several messages, or one to \"tenant\"");
            }
            To::Users(mut users) => {
                users.sort_unstable();
                users.dedup();
                users.into_iter().map(Audience::User).collect()
            }
            To::Group(group) => {
                let mut groups = group.iter();
                let (Some((name, id)), None) = (groups.next(), groups.next()) else {
                    return Err("recipients that are a group must name one, such as {\"list\": \"42\"}");
                };
                let group = GroupId::new(&name.as_str().into(), id.as_bytes());
                vec![Audience::Group(
                    group.map_err(|_| "the id of the group is none that a group can have")?,
                )]
            }
        };
        Ok(Self {
            event,
            tenant,
            to,
            data,
        })
    }
}

fn too_large(bytes: usize) -> String {
    format!("content has {bytes} bytes; at most {CONTENT_BYTES_MAX} are allowed, store larger data in a table")
}

/// The tenant of an invalid content, for its quarantine.
fn tenant_of(content: &[u8]) -> Option<&str> {
    #[derive(Deserialize)]
    struct Addressed<'a> {
        tenant: &'a str,
    }
    let addressed: Addressed<'_> = serde_json::from_slice(content).ok()?;
    is_valid_name(addressed.tenant).then_some(addressed.tenant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "5f1a6f4e-0000-4000-8000-000000000001";

    #[test]
    fn message_names_tenant_users_and_data() {
        let content = format!(r#"{{"tenant": "acme", "to": ["{USER}", "{USER}"], "data": {{"order":  7}}}}"#);
        let message = OutboxMessage::parse("order_shipped", content.as_bytes()).unwrap();
        assert_eq!(
            (message.event, message.tenant, message.data),
            ("order_shipped", "acme", r#"{"order":  7}"#)
        );
        assert_eq!(message.to, [Audience::User(USER.parse().unwrap())]);
        let message = OutboxMessage::parse("news", br#"{"tenant": "acme", "to": "tenant"}"#).unwrap();
        assert_eq!((message.to, message.data), (vec![Audience::Tenant], "null"));
    }

    #[test]
    fn postgres_refuses_reserved_events() {
        let migration = include_str!("../../migrations/tenant/0010_outbox.up.sql");
        let (_, list) = migration.split_once("NOT IN (").unwrap();
        let (list, _) = list.split_once(')').unwrap();
        let names: Vec<&str> = list.split(',').map(|name| name.trim().trim_matches('\'')).collect();
        assert_eq!(names, RESERVED);
    }

    #[test]
    fn row_names_event_recipients_and_data() {
        let recipients = format!(r#"["{USER}"]"#);
        let of = |event, recipients, data| OutboxMessage::from_row("acme", event, recipients, data);
        let message = of(Some("ping"), Some(&recipients), Some("[1]")).unwrap();
        assert_eq!((message.event, message.tenant, message.data), ("ping", "acme", "[1]"));
        assert_eq!(message.to, [Audience::User(USER.parse().unwrap())]);
        let message = of(Some("news"), Some(r#""tenant""#), None).unwrap();
        assert_eq!((message.to, message.data), (vec![Audience::Tenant], "null"));
        let large = "x".repeat(CONTENT_BYTES_MAX + 1);
        for (event, recipients, data) in [
            (None, Some("[]"), None),
            (Some("x"), None, None),
            (Some("x"), Some("{}"), None),
            (Some("x"), Some(r#"["joe"]"#), None),
            (Some("x"), Some(r#""joe""#), None),
            (Some("X"), Some("[]"), None),
            (Some("reset"), Some("[]"), None),
            (Some("x"), Some("[]"), Some(&*large)),
        ] {
            let refused = of(event, recipients, data).unwrap_err();
            assert_eq!(refused.tenant.as_deref(), Some("acme"), "{refused}");
        }
    }

    #[test]
    fn invalid_message_keeps_its_tenant_if_named() {
        let tenant_of =
            |event: &str, content: &str| OutboxMessage::parse(event, content.as_bytes()).unwrap_err().tenant;
        assert_eq!(tenant_of("x", "nonsense"), None);
        assert_eq!(tenant_of("x", r#"{"tenant": "No", "to": []}"#), None);
        for (event, content) in [
            ("x", r#"{"tenant": "acme"}"#),
            ("x", r#"{"tenant": "acme", "to": "joe"}"#),
            ("x", r#"{"tenant": "acme", "to": ["joe"]}"#),
            ("x", r#"{"tenant": "acme", "to": [], "dta": 1}"#),
            ("", r#"{"tenant": "acme", "to": []}"#),
            ("X", r#"{"tenant": "acme", "to": []}"#),
            ("reset", r#"{"tenant": "acme", "to": []}"#),
        ] {
            assert_eq!(tenant_of(event, content).as_deref(), Some("acme"), "{event} {content}");
        }
        let large = format!(
            r#"{{"tenant": "acme", "to": [], "data": "{}"}}"#,
            "x".repeat(CONTENT_BYTES_MAX)
        );
        assert_eq!(tenant_of("x", &large).as_deref(), Some("acme"));
    }
}
