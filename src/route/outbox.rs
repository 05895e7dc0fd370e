//! The transactional outbox: a message that any session writes to the log, for users that it names.
//!
//! ```sql
//! SELECT pg_logical_emit_message(true, 'posduif:order_shipped',
//!     '{"tenant": "acme", "to": ["5f1a…"], "data": {"order": 7}}');
//! ```
//!
//! It is published when its transaction commits, in commit order, and needs no table. It is an event, not state: a
//! device that takes a snapshot afterwards does not receive it.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::config::rule::{TENANT, is_event_name};
use crate::contract::stream_name::Audience;
use crate::core::tenant::is_valid_name;

/// Prefix of outbox messages; the event's name follows.
pub const PREFIX: &str = "posduif:";

/// Longest content in bytes: live entries hold it too, although they hold no rows. Larger data belongs in a table.
pub const CONTENT_BYTES_MAX: usize = 64 * 1024;

/// Most recipients of one message.
pub const RECIPIENTS_MAX: usize = 1000;

/// Events that the server itself sends to clients.
const RESERVED: [&str; 10] = [
    "bye",
    "device_added",
    "device_changed",
    "hello",
    "presence",
    "reset",
    "revoked",
    "sync_required",
    "tenant_paused",
    "tenant_resumed",
];

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
}

impl<'a> OutboxMessage<'a> {
    /// Parses a message whose prefix, without [`PREFIX`], is `event`.
    pub fn parse(event: &'a str, content: &'a [u8]) -> Result<Self, Undeliverable> {
        let refused = |tenant: Option<&str>, cause: String| Undeliverable {
            event: event.chars().take(64).collect(),
            tenant: tenant.map(str::to_owned),
            cause,
        };
        if content.len() > CONTENT_BYTES_MAX {
            let cause = format!(
                "content has {} bytes; at most {CONTENT_BYTES_MAX} are allowed, store larger data in a table",
                content.len()
            );
            return Err(refused(tenant_of(content), cause));
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
        let refused = |cause: &str| refused(Some(parsed.tenant), cause.into());
        if !is_event_name(event) {
            return Err(refused("an event name has 1 to 64 characters of a-z, 0-9 and _"));
        }
        if RESERVED.contains(&event) {
            return Err(refused("the event name is reserved for the server; use another"));
        }
        let to = match parsed.to {
            To::Word(word) if word == TENANT => vec![Audience::Tenant],
            To::Word(_) => return Err(refused("`to` must be a list of user ids, or \"tenant\"")),
            To::Users(users) if users.len() > RECIPIENTS_MAX => {
                return Err(refused(
                    "more than 1,000 recipients; send several messages, or one to \"tenant\"",
                ));
            }
            To::Users(mut users) => {
                users.sort_unstable();
                users.dedup();
                users.into_iter().map(Audience::User).collect()
            }
        };
        Ok(Self {
            event,
            tenant: parsed.tenant,
            to,
            data: parsed.data.map_or("null", RawValue::get),
        })
    }
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
