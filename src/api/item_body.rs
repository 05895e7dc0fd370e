//! The JSON of an item's result, in the response to an upload and on a WebSocket.

use serde::Serialize;
use serde_json::Value;

use crate::http::error::{Code, Error};
use crate::sync::outgoing::{ItemResult, Outcome};

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct ItemBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    /// The id as it was sent; null if it is not valid.
    id: Value,
    pub(crate) status: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
}

impl From<ItemResult> for ItemBody {
    fn from(result: ItemResult) -> Self {
        Self {
            table: result.table,
            id: result.id.into(),
            status: result.status,
            code: result.code.map(|code| Code::from(code).as_str()),
            message: result.message,
            version: result.version,
            server: result.server,
        }
    }
}

impl ItemBody {
    /// An applied item; `server` is the row after it.
    pub(crate) fn applied(id: Value, server: Option<Value>) -> Self {
        Self {
            table: None,
            id,
            status: Outcome::Applied,
            code: None,
            message: None,
            version: server.as_ref().and_then(|row| row["version"].as_i64()),
            server,
        }
    }

    /// An item that failed with an error.
    pub(crate) fn failed(id: Value, error: &Error) -> Self {
        if let Some(cause) = &error.cause {
            tracing::error!(code = error.code.as_str(), cause, "WebSocket item failed");
        }
        Self {
            table: None,
            id,
            status: if error.code.is_retryable() {
                Outcome::Retry
            } else {
                Outcome::Rejected
            },
            code: Some(error.code.as_str()),
            message: Some(error.message.clone()),
            version: None,
            server: None,
        }
    }

    /// The same result under another id.
    #[must_use]
    pub(crate) fn with_id(self, id: Value) -> Self {
        Self { id, ..self }
    }
}
