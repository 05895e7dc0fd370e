//! Events of live streams, whatever form they take on the wire.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::deliver::feed::Change;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What kind it is, as metrics count it.
    pub name: &'static str,
    /// The name that a rule of the configuration gives it, if that is another.
    pub own_name: Option<String>,
    /// The cursor of its place; ephemeral ones have none.
    pub id: Option<String>,
    /// What it says, JSON without line breaks.
    pub data: Arc<str>,
}

impl Event {
    /// An event that says this.
    pub fn new(name: &'static str, data: &Value) -> Self {
        Self {
            name,
            own_name: None,
            id: None,
            data: data.to_string().into(),
        }
    }

    /// The name that clients see.
    pub fn shown_name(&self) -> &str {
        self.own_name.as_deref().unwrap_or(self.name)
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
    pub fn presence(data: Arc<str>) -> Self {
        Self {
            name: "presence",
            own_name: None,
            id: None,
            data,
        }
    }

    /// A change, thin: the row itself comes by sync or request.
    pub fn change(change: &Change) -> Self {
        let name = match change.event.as_str() {
            "new_message" => "new_message",
            "message_read" => "message_read",
            "message_synced" => "message_synced",
            "message_updated" => "message_updated",
            "message_deleted" => "message_deleted",
            "state_changed" => "state_changed",
            _ => "change",
        };
        if change.table == "messages" {
            return Self::new(name, &json!({"type": name, "message_id": change.row_id}));
        }
        let mut data =
            json!({"type": change.event, "table": change.table, "op": change.op.as_str(), "id": change.row_id});
        if let Some(said) = change.data.as_ref().and_then(|text| serde_json::from_str(text).ok()) {
            data["data"] = said;
        }
        Self {
            own_name: (name != change.event).then(|| change.event.clone()),
            ..Self::new(name, &data)
        }
    }

    /// A new message, with how many the reader has not read; `None` when that is not known.
    pub fn new_message(change: &Change, unread: Option<i64>) -> Self {
        Self::new(
            "new_message",
            &json!({"type": "new_message", "message_id": change.row_id, "unread_count": unread}),
        )
    }
}
