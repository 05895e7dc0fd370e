//! The JSON of an item's result, in the response to an upload and on a WebSocket.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::http::error::Error;
use crate::sync::outgoing::{ItemCode, ItemResult, Outcome, Winner};

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct ItemBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    /// The id as it was sent; null if it is not valid.
    id: Value,
    pub(crate) status: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The number with which the next item must come, where numbers are out of sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<Value>,
    /// What the tenant may use, and what it uses, where that is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    winner: Option<Winner>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<i64>,
    /// Of a conflict always, null if the row was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
    /// The item was applied by an earlier upload, and the row is not any more as it left it.
    #[serde(skip_serializing_if = "Option::is_none")]
    overtaken: Option<bool>,
}

impl From<ItemResult> for ItemBody {
    fn from(result: ItemResult) -> Self {
        let is_conflict = result.status == Outcome::Conflict;
        Self {
            seq: result.seq,
            table: result.table,
            id: result.id.into(),
            status: result.status,
            code: result.code.map(ItemCode::as_str),
            message: result.message,
            expected: None,
            budget: None,
            used: None,
            winner: result.winner,
            conflict_id: result.conflict_id,
            version: result.version,
            revision: result.revision,
            server: result.server.or(is_conflict.then_some(Value::Null)),
            overtaken: result.is_overtaken.then_some(true),
        }
    }
}

impl ItemBody {
    /// An applied item; `server` is the row after it.
    pub(crate) fn applied(id: Value, server: Option<Value>) -> Self {
        Self {
            version: server.as_ref().and_then(|row| row["version"].as_i64()),
            revision: server.as_ref().and_then(|row| row["revision"].as_i64()),
            server,
            ..Self::plain(id, Outcome::Applied)
        }
    }

    /// An item that failed with an error.
    pub(crate) fn failed(id: Value, error: &Error) -> Self {
        if let Some(cause) = &error.cause {
            tracing::error!(code = error.code.as_str(), cause, "WebSocket item failed");
        }
        let detail = |name: &str| error.details.get(name).cloned();
        // Items out of sequence are good: they come again under other numbers.
        let expected = detail("expected");
        let status = if error.code.is_retryable() || expected.is_some() {
            Outcome::Retry
        } else {
            Outcome::Rejected
        };
        Self {
            code: Some(error.code.as_str()),
            message: Some(error.message.clone()),
            expected,
            budget: detail("budget"),
            used: detail("used"),
            ..Self::plain(id, status)
        }
    }

    fn plain(id: Value, status: Outcome) -> Self {
        Self {
            seq: None,
            table: None,
            id,
            status,
            code: None,
            message: None,
            expected: None,
            budget: None,
            used: None,
            winner: None,
            conflict_id: None,
            version: None,
            revision: None,
            server: None,
            overtaken: None,
        }
    }

    /// The same result under another id.
    #[must_use]
    pub(crate) fn with_id(self, id: Value) -> Self {
        Self { id, ..self }
    }
}
