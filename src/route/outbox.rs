//! The transactional outbox: a message that any session puts into the log, for users named in it.
//!
//! ```sql
//! SELECT pg_logical_emit_message(true, 'posduif:order_shipped',
//!     '{"tenant": "acme", "to": ["5f1a…"], "data": {"order": 7}}');
//! ```
//!
//! It is published if and when its transaction commits, in that transaction's place, and needs no table. It is an event
//! and no state: a device that takes a snapshot afterwards does not learn of it.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::rule::{TENANT, is_event_name};
use crate::contract::stream_name::Audience;
use crate::core::tenant::is_valid_name;

/// Prefix of such messages; the event's name follows.
pub const PREFIX: &str = "posduif:";

/// Longest content in bytes: it travels in live entries too, which hold no rows. What is larger belongs into a table.
pub const CONTENT_BYTES_MAX: usize = 64 * 1024;

/// Most recipients of one message.
pub const RECIPIENTS_MAX: usize = 1000;

/// Events that the server itself tells clients.
const RESERVED: [&str; 9] = [
    "bye",
    "device_changed",
    "hello",
    "presence",
    "reset",
    "revoked",
    "sync_required",
    "tenant_paused",
    "tenant_resumed",
];

/// A message for users.
#[derive(Debug)]
pub struct OutboxMessage<'a> {
    /// Name of the live event.
    pub event: &'a str,
    /// The tenant's name.
    pub tenant: &'a str,
    /// Who sees it.
    pub to: Vec<Audience>,
    /// What it says, JSON; `null` unless given.
    pub data: &'a str,
}

/// A message that reaches nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message {event:?}: {cause}")]
pub struct Undeliverable {
    /// The event's name as given.
    pub event: String,
    /// The tenant, if at least that is clear.
    pub tenant: Option<String>,
    /// What is wrong with it, and what is allowed.
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
    /// Reads a message whose prefix, without [`PREFIX`], is `event`.
    ///
    /// # Errors
    /// When the name or the content has another form, or exceeds its bound.
    pub fn parse(event: &'a str, content: &'a [u8]) -> Result<Self, Undeliverable> {
        let refused = |tenant: Option<&str>, cause: String| Undeliverable {
            event: event.chars().take(64).collect(),
            tenant: tenant.map(str::to_owned),
            cause,
        };
        if content.len() > CONTENT_BYTES_MAX {
            let cause = format!(
                "{} bytes; allowed are {CONTENT_BYTES_MAX}, what is larger belongs into a table",
                content.len()
            );
            return Err(refused(tenant_of(content), cause));
        }
        let parsed: Content<'a> = serde_json::from_slice(content).map_err(|error| {
            let cause = format!(
                "{error}; the form is {{\"tenant\": name, \"to\": [user ids] or \"{TENANT}\", \"data\": any JSON}}"
            );
            refused(tenant_of(content), cause)
        })?;
        if !is_valid_name(parsed.tenant) {
            return Err(refused(None, "no tenant can have this name".into()));
        }
        let refused = |cause: &str| refused(Some(parsed.tenant), cause.into());
        if !is_event_name(event) {
            return Err(refused("an event's name is 1 to 64 of a-z, 0-9 and _"));
        }
        if RESERVED.contains(&event) {
            return Err(refused("the name is the server's own; choose another"));
        }
        let to = match parsed.to {
            To::Word(word) if word == TENANT => vec![Audience::Tenant],
            To::Word(_) => return Err(refused("`to` is a list of user ids, or \"tenant\"")),
            To::Users(users) if users.len() > RECIPIENTS_MAX => {
                return Err(refused(
                    "more than 1,000 recipients; send several messages, or to \"tenant\"",
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

/// The tenant of a content that is otherwise not understood, so that its quarantine gets it.
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
    fn a_message_names_tenant_users_and_data() {
        let content = format!(r#"{{"tenant": "acme", "to": ["{USER}", "{USER}"], "data": {{"order":  7}}}}"#);
        let letter = OutboxMessage::parse("order_shipped", content.as_bytes()).unwrap();
        assert_eq!(
            (letter.event, letter.tenant, letter.data),
            ("order_shipped", "acme", r#"{"order":  7}"#)
        );
        assert_eq!(letter.to, [Audience::User(USER.parse().unwrap())]);
        let letter = OutboxMessage::parse("news", br#"{"tenant": "acme", "to": "tenant"}"#).unwrap();
        assert_eq!((letter.to, letter.data), (vec![Audience::Tenant], "null"));
    }

    #[test]
    fn what_is_wrong_is_named_and_so_is_the_tenant_if_it_is_clear() {
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
