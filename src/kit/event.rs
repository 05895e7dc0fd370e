//! Live events, as each kind of stream carries them, and what else a stream is sent.

use serde_json::{Value, json};

/// The code of a WebSocket's end after which a device does not reconnect.
pub const REVOKED: u16 = 4401;

/// What a stream is sent.
#[derive(Debug, Clone)]
pub enum Frame {
    Event(LiveEvent),
    /// A comment or a ping.
    Heartbeat,
    /// The server neither reads nor writes any more.
    HalfOpen,
    /// The connection closes; a WebSocket with this code, or without a closing frame.
    End(Option<u16>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct LiveEvent {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl LiveEvent {
    pub fn new(name: &str, id: Option<String>, data: &Value) -> Self {
        let mut data = data.clone();
        if data.get("type").is_none() {
            data["type"] = name.into();
        }
        Self {
            name: name.to_owned(),
            id,
            data,
        }
    }

    /// As a part of a stream of server-sent events.
    pub fn to_text(&self) -> String {
        let id = self.id.as_ref().map_or_else(String::new, |id| format!("id: {id}\n"));
        format!("event: {}\n{id}data: {}\n\n", self.name, self.data)
    }

    /// As a frame of a WebSocket.
    pub fn to_frame(&self) -> Value {
        let mut frame = json!({"event": self.name, "data": self.data});
        if let Some(id) = &self.id {
            frame["id"] = id.as_str().into();
        }
        frame
    }
}
