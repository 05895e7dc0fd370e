//! `/api/sync`: batches from and to devices.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::error::{Code, Error};
use super::request::{Request, required};
use super::response::{self, Response};
use crate::config::ConflictStrategy;
use crate::domain::uploads::{self, ItemResult, Outcome, Rules};

#[derive(Deserialize)]
struct Upload {
    messages: Option<Vec<Value>>,
    // `compressed` repeats what Content-Encoding says and is ignored.
    #[allow(dead_code, reason = "checked for its form; its keeping belongs to the sync status")]
    pending_count: Option<u32>,
}

/// `POST /api/sync/outgoing`: what a device did while it was alone.
///
/// # Errors
/// 400 for a batch of wrong form, 413 for too large a one. An item's fault is in its result.
pub async fn outgoing(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let settings = &app.config.sync;
    let body: Upload = request.json_inflated(settings.upload_bytes_max).await?;
    let items = required("messages", body.messages)?;
    if items.len() > settings.upload_items_max {
        return Err(Error::new(
            Code::PayloadTooLarge,
            format!("messages: must not be more than {}", settings.upload_items_max),
        )
        .with("field", "messages")
        .with("items_max", settings.upload_items_max));
    }
    let rules = Rules {
        content_chars_max: app.config.messages.content_chars_max,
        strategy: settings.conflict_strategy,
    };
    let uploaded = uploads::apply(&app.database, request.device()?, &items, rules).await?;
    // A client that knows counts only shall neither repeat what stands nor count what does not as done.
    let stands = |result: &ItemResult| match result.status {
        Outcome::Applied | Outcome::Duplicate => true,
        Outcome::Conflict => settings.conflict_strategy == ConflictStrategy::LastWriteWins,
        Outcome::Rejected => false,
    };
    let failed: Vec<Value> = uploaded
        .results
        .iter()
        .filter(|result| !stands(result))
        .map(|result| json!({"message_id": result.id, "error": result.message}))
        .collect();
    response::json(
        StatusCode::OK,
        &json!({
            "synced_count": uploaded.results.len() - failed.len(),
            "failed_count": failed.len(),
            "sync_timestamp": uploaded.at,
            "results": uploaded.results,
            "failed_messages": failed,
            "position": app.stream_id_of(uploaded.lsn).map(|id| id.to_string()),
        }),
    )
}
