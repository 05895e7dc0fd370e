//! Events of live streams, independent of the transport.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::config::rule::{ENCRYPTED_STATES, MESSAGES};
use crate::core::event;
use crate::core::operation::Operation;
use crate::live::tail::Notice;
use crate::sync::states;

/// An event. Readers of the same notice share its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The kind, as metrics count it.
    pub name: &'static str,
    /// The name from a rule of the configuration, if it differs.
    pub own_name: Option<&'a str>,
    /// The cursor of its place; `None` for ephemeral events.
    pub id: Option<&'a str>,
    /// JSON without line breaks.
    pub data: Cow<'a, str>,
}

impl<'a> Event<'a> {
    pub fn new(name: &'static str, data: &Value) -> Self {
        Self {
            name,
            own_name: None,
            id: None,
            data: data.to_string().into(),
        }
    }

    /// The same event at a place.
    #[must_use]
    pub fn at(self, cursor: &'a str) -> Self {
        Self {
            id: Some(cursor),
            ..self
        }
    }

    /// The name that clients see.
    pub fn shown_name(&self) -> &str {
        self.own_name.unwrap_or(self.name)
    }

    /// `hello`: the start of the stream.
    pub fn hello(cursor: &str) -> Self {
        Self::new("hello", &json!({"type": "hello", "cursor": cursor}))
    }

    /// `sync_required`: this many rows are pending.
    pub fn sync_required(pending: usize) -> Self {
        Self::new(
            "sync_required",
            &json!({"type": "sync_required", "pending_count": pending}),
        )
    }

    /// `reset`: the reader needs a snapshot.
    pub fn reset() -> Self {
        Self::new("reset", &json!({"type": "reset"}))
    }

    /// `revoked`: access was revoked.
    pub fn revoked() -> Self {
        Self::new("revoked", &json!({"type": "revoked"}))
    }

    /// `bye`: the server shuts down, or the access token of another provider has expired; reconnect after this many
    /// milliseconds.
    pub fn bye(reconnect_ms: u64) -> Self {
        Self::new("bye", &json!({"type": "bye", "reconnect_ms": reconnect_ms}))
    }

    /// `presence`: the same text for all readers of a tenant.
    pub fn presence(data: &'a str) -> Self {
        Self {
            name: "presence",
            own_name: None,
            id: None,
            data: data.into(),
        }
    }

    /// A change without its row, which the client reads by sync or request.
    pub fn change(notice: &'a Notice) -> Self {
        let name = kind(&notice.event);
        let data = notice.rendered(|notice| {
            if notice.table == MESSAGES {
                let mut data = json!({"type": name, "message_id": notice.row_id});
                if let Some(group) = notice.group_of_message() {
                    data["group"] = group;
                }
                return data.to_string();
            }
            if let Some(membership) = notice.membership() {
                let group = membership.group();
                return json!({"type": notice.event, "group": group.name(), "id": group.id()}).to_string();
            }
            let mut data =
                json!({"type": notice.event, "table": notice.table, "op": notice.op.as_str(), "id": notice.row_id});
            let columns = notice.data.as_ref().and_then(|text| serde_json::from_str(text).ok());
            match (columns, data.as_object_mut()) {
                // The content of an outbox message has a field of its own.
                (Some(content), _) if notice.op == Operation::Message => data["data"] = content,
                (Some(Value::Object(columns)), Some(data)) => {
                    data.extend(columns);
                    if notice.table == ENCRYPTED_STATES {
                        data.insert("kind".to_owned(), states::kind(notice.op).into());
                    }
                }
                _ => {}
            }
            data.to_string()
        });
        let is_own = name != notice.event && notice.table != MESSAGES;
        Self {
            name,
            own_name: is_own.then_some(notice.event.as_str()),
            id: None,
            data: data.into(),
        }
    }

    /// A new message, with the reader's unread count if it is known.
    pub fn new_message(notice: &Notice, unread: Option<i64>) -> Self {
        Self::new(
            event::NEW_MESSAGE,
            &json!({"type": event::NEW_MESSAGE, "message_id": notice.row_id, "unread_count": unread}),
        )
    }
}

/// The kind of a change by the name of its live event.
fn kind(event: &str) -> &'static str {
    match event {
        event::NEW_MESSAGE => event::NEW_MESSAGE,
        event::MESSAGE_READ => event::MESSAGE_READ,
        event::MESSAGE_SYNCED => event::MESSAGE_SYNCED,
        event::MESSAGE_UPDATED => event::MESSAGE_UPDATED,
        event::MESSAGE_DELETED => event::MESSAGE_DELETED,
        event::STATE_CHANGED => event::STATE_CHANGED,
        _ => event::CHANGE,
    }
}
