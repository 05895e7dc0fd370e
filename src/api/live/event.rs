//! Events of live streams, whatever form they take on the wire.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::config::rule::ENCRYPTED_STATES;
use crate::contract::entry::Op;
use crate::live::tail::Notice;
use crate::sync::states;

/// An event. What it says is shared by all who are told the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// What kind it is, as metrics count it.
    pub name: &'static str,
    /// The name that a rule of the configuration gives it, if that is another.
    pub own_name: Option<&'a str>,
    /// The cursor of its place; ephemeral ones have none.
    pub id: Option<&'a str>,
    /// What it says, JSON without line breaks.
    pub data: Cow<'a, str>,
}

impl<'a> Event<'a> {
    /// An event that says this.
    pub fn new(name: &'static str, data: &Value) -> Self {
        Self {
            name,
            own_name: None,
            id: None,
            data: data.to_string().into(),
        }
    }

    /// The same at a place.
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

    /// `hello`: where the stream begins.
    pub fn hello(cursor: &str) -> Self {
        Self::new("hello", &json!({"type": "hello", "cursor": cursor}))
    }

    /// `sync_required`: so many things wait.
    pub fn sync_required(pending: usize) -> Self {
        Self::new(
            "sync_required",
            &json!({"type": "sync_required", "pending_count": pending}),
        )
    }

    /// `reset`: only a snapshot tells what is.
    pub fn reset() -> Self {
        Self::new("reset", &json!({"type": "reset"}))
    }

    /// `revoked`: the reader has lost its standing.
    pub fn revoked() -> Self {
        Self::new("revoked", &json!({"type": "revoked"}))
    }

    /// `bye`: the server goes away; connect again in so many milliseconds.
    pub fn bye(reconnect_ms: u64) -> Self {
        Self::new("bye", &json!({"type": "bye", "reconnect_ms": reconnect_ms}))
    }

    /// `presence`: who is here, the same text for all readers of a tenant.
    pub fn presence(data: &'a str) -> Self {
        Self {
            name: "presence",
            own_name: None,
            id: None,
            data: data.into(),
        }
    }

    /// A change, thin: the row itself comes by sync or request.
    pub fn change(notice: &'a Notice) -> Self {
        let name = kind(&notice.event);
        let data = notice.told(|notice| {
            if notice.table == "messages" {
                return json!({"type": name, "message_id": notice.row_id}).to_string();
            }
            let mut data =
                json!({"type": notice.event, "table": notice.table, "op": notice.op.as_str(), "id": notice.row_id});
            let told = notice.data.as_ref().and_then(|text| serde_json::from_str(text).ok());
            match (told, data.as_object_mut()) {
                // What a message says is its author's, so it has a place of its own.
                (Some(said), _) if notice.op == Op::Message => data["data"] = said,
                (Some(Value::Object(told)), Some(data)) => {
                    data.extend(told);
                    if notice.table == ENCRYPTED_STATES {
                        data.insert("kind".to_owned(), states::kind(notice.op).into());
                    }
                }
                _ => {}
            }
            data.to_string()
        });
        let is_own = name != notice.event && notice.table != "messages";
        Self {
            name,
            own_name: is_own.then_some(notice.event.as_str()),
            id: None,
            data: data.into(),
        }
    }

    /// A new message, with how many the reader has not read; `None` when that is not known.
    pub fn new_message(notice: &Notice, unread: Option<i64>) -> Self {
        Self::new(
            "new_message",
            &json!({"type": "new_message", "message_id": notice.row_id, "unread_count": unread}),
        )
    }
}

/// The kind of a change by the name of its live event.
fn kind(event: &str) -> &'static str {
    match event {
        "new_message" => "new_message",
        "message_read" => "message_read",
        "message_synced" => "message_synced",
        "message_updated" => "message_updated",
        "message_deleted" => "message_deleted",
        "state_changed" => "state_changed",
        _ => "change",
    }
}
