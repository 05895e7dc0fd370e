//! `/api/sync`: batches from and to devices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, HeaderValue, VARY};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::devices::DevicePrincipal;
use crate::api::App;
use crate::config::ConflictStrategy;
use crate::contract::entry::Text;
use crate::core::time::Timestamp;
use crate::decode::value::write_string;
use crate::http::error::{Code, Error};
use crate::http::gzip;
use crate::http::request::{Request, required};
use crate::http::response::{self, Response};
use crate::redis::store;
use crate::sync::device_state::{self, SyncStatus, Update};
use crate::sync::incoming::{self, Batch, Question};
use crate::sync::item::{Change, Item};
use crate::sync::outgoing::{self, ItemResult, Items, Outcome, Rules, Uploaded};
use crate::sync::tables;

#[derive(Deserialize)]
struct Upload {
    messages: Option<Vec<Value>>,
    #[serde(default)]
    changes: Vec<Value>,
    // `compressed` repeats what Content-Encoding says and is ignored.
    pending_count: Option<u32>,
}

/// `POST /api/sync/outgoing`: what a device did while it was alone.
///
/// # Errors
/// 400 for a batch of wrong form, 413 for too large a one. An item's fault is in its result.
pub async fn outgoing(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let settings = &app.config.sync;
    let body: Upload = request.json_inflated(settings.upload_bytes_max).await?;
    let messages = match body.messages {
        None if !body.changes.is_empty() => Vec::new(),
        messages => required("messages", messages)?,
    };
    if messages.len() + body.changes.len() > settings.upload_items_max {
        return Err(Error::new(
            Code::PayloadTooLarge,
            format!(
                "messages: must not be more than {}, with changes",
                settings.upload_items_max
            ),
        )
        .with("field", "messages")
        .with("items_max", settings.upload_items_max));
    }
    let pending = match body.pending_count {
        Some(pending) => Some(pending),
        None => reported_pending(&request)?,
    };
    let items = Items {
        messages: &messages,
        changes: &body.changes,
    };
    let uploaded = upload(&app, request.device()?, items, pending).await?;
    // A client that knows counts only shall neither repeat what stands nor count what does not as done.
    let stands = |result: &ItemResult| match result.status {
        Outcome::Applied | Outcome::Duplicate => true,
        Outcome::Conflict => result.table.is_none() && settings.conflict_strategy == ConflictStrategy::LastWriteWins,
        Outcome::Rejected | Outcome::Retry => false,
    };
    let failed: Vec<Value> = uploaded
        .results
        .iter()
        .filter(|result| !stands(result))
        .map(|result| match &result.table {
            None => json!({"message_id": result.id, "error": result.message}),
            Some(table) => json!({"table": table, "id": result.id, "error": result.message}),
        })
        .collect();
    response::json(
        StatusCode::OK,
        &json!({
            "synced_count": uploaded.results.len() - failed.len(),
            "failed_count": failed.len(),
            "sync_timestamp": uploaded.at,
            "results": uploaded.results,
            "failed_messages": failed,
            "position": app.stream_id_of(uploaded.lsn).await.map(|id| id.to_string()),
        }),
    )
}

/// Applies what a device did, on whichever way it came, and notes that for the status. `pending` is what the device says
/// of its own queue.
///
/// # Errors
/// 503 while Postgres is away. An item's fault is in its result.
pub(crate) async fn upload(
    app: &App,
    device: &DevicePrincipal,
    items: Items<'_>,
    pending: Option<u32>,
) -> Result<Uploaded, Error> {
    let rules = Rules {
        content_chars_max: app.config.messages.content_chars_max,
        strategy: app.config.sync.conflict_strategy,
        tables: &app.config.routes,
    };
    let started = Instant::now();
    let mut uploaded = match outgoing::apply(&app.database, device, items, rules).await {
        Ok(uploaded) => uploaded,
        Err(error) => {
            report_failure(app, device, error.to_string()).await;
            return Err(error.into());
        }
    };
    let took = started.elapsed();
    let results = &uploaded.results;
    app.metrics
        .sync
        .uploaded(results.iter().map(|result| result.status.as_str()), took);
    let count = |wanted| results.iter().filter(|result| result.status == wanted).count();
    tracing::info!(
        device = device.device_id,
        tenant = device.tenant.name,
        items = results.len(),
        applied = count(Outcome::Applied),
        duplicate = count(Outcome::Duplicate),
        conflict = count(Outcome::Conflict),
        rejected = count(Outcome::Rejected),
        retry = count(Outcome::Retry),
        pending,
        ms = took.as_millis() as u64,
        "outgoing sync"
    );
    let changed = uploaded.results.iter().filter(|result| result.table.is_none());
    let changed = changed.filter_map(|result| Uuid::try_parse(result.id.as_deref()?).ok());
    app.messages.uploaded(&device.tenant, device.user_id, changed);
    report(app, device, pending).await;
    show_contested(app, device, &mut uploaded.results).await;
    Ok(uploaded)
}

/// Adds the rows of own tables that devices contested. Postgres' absence costs only these: the rows come with the next
/// batch too.
async fn show_contested(app: &App, device: &DevicePrincipal, results: &mut [ItemResult]) {
    let mut contested: HashMap<String, Vec<&mut ItemResult>> = HashMap::new();
    for result in results {
        if let (Outcome::Conflict, Some(table)) = (result.status, &result.table) {
            contested.entry(table.clone()).or_default().push(result);
        }
    }
    for (table, mut results) in contested {
        let ids: Vec<String> = results.iter().filter_map(|result| result.id.clone()).collect();
        let rows = match tables::by_id(&app.database, &device.tenant, &table, &ids).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(
                    tenant = device.tenant.name,
                    table,
                    cause = crate::telemetry::chain(&error),
                    "contested rows are not shown"
                );
                return;
            }
        };
        for row in rows {
            for result in results.iter_mut().filter(|result| result.id.as_ref() == Some(&row.id)) {
                result.server = serde_json::from_slice(row.json.as_bytes()).ok();
            }
        }
    }
}

/// What a device says of its own queue, in the header `X-Pending-Outgoing`.
fn reported_pending(request: &Request) -> Result<Option<u32>, Error> {
    let Some(text) = request.header("x-pending-outgoing") else {
        return Ok(None);
    };
    let count = text
        .parse()
        .map_err(|_| Error::invalid("X-Pending-Outgoing", "must be a number of 0 or more"))?;
    Ok(Some(count))
}

/// Notes an upload that worked, for the status.
async fn report(app: &App, device: &DevicePrincipal, pending: Option<u32>) {
    app.metadata.succeeded(&device.tenant, &device.device_id, None, pending);
    let update = Update {
        last_sync_ms: Some(Utc::now().timestamp_millis()),
        pending_outgoing: pending,
        error: Some(String::new()),
        ..Update::default()
    };
    note(app, device, update).await;
}

/// Like [`report`], where the sync itself has noted how it stands.
async fn report_pending(app: &App, device: &DevicePrincipal, status: SyncStatus, pending: Option<u32>) {
    app.metadata
        .succeeded(&device.tenant, &device.device_id, Some(status), pending);
    if pending.is_some() {
        let update = Update {
            pending_outgoing: pending,
            ..Update::default()
        };
        note(app, device, update).await;
    }
}

/// Notes a sync that did not work, where other nodes see it as well.
async fn report_failure(app: &App, device: &DevicePrincipal, error: String) {
    app.metadata.failed(&device.tenant, &device.device_id, error.clone());
    let update = Update {
        error: Some(error),
        ..Update::default()
    };
    note(app, device, update).await;
}

/// Losing a note costs nothing, so Redis' absence is no error.
async fn note(app: &App, device: &DevicePrincipal, update: Update) {
    let write = device_state::write(&app.store, &device.tenant.name, &device.device_id, &update);
    if !matches!(tokio::time::timeout(crate::api::PATIENCE, write).await, Ok(Ok(()))) {
        tracing::debug!(device = device.device_id, "Redis does not take the device's report");
    }
}

impl From<incoming::Error> for Error {
    fn from(error: incoming::Error) -> Self {
        let text = error.to_string();
        match error {
            incoming::Error::InvalidCursor(_) => Self::new(Code::InvalidCursor, text).with("field", "cursor"),
            incoming::Error::Store(error) => error.into(),
            incoming::Error::Domain(error) => error.into(),
            incoming::Error::Snapshot(cause) => {
                let mut error = Self::new(Code::SyncError, "a snapshot cannot begin now; try again in a moment");
                error.cause = Some(cause);
                error
            }
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Redis(_) | store::Error::WrongType { .. } => {
                Self::new(Code::RedisError, "Redis is unavailable; try again in a moment")
            }
            store::Error::Paused => Self::new(
                Code::TenantPaused,
                "this tenant is paused; what waits is delivered when it goes on",
            ),
            store::Error::Stopped => Self::new(
                Code::SyncError,
                "what follows cannot be given until the operator has mended the user's stream",
            ),
            store::Error::NoCheckpoint | store::Error::NotPublished => Self::new(
                Code::SyncError,
                "the replicator has published nothing yet; try again in a moment",
            ),
        }
        .caused_by(&error)
    }
}

/// `GET /api/sync/incoming`: what the device does not have yet.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor that is not this device's, 503 while Redis or, for a snapshot, Postgres is away.
pub async fn incoming(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let started = Instant::now();
    let settings = &app.config.sync;
    let device = request.device()?;
    let since = match request.query.get("since") {
        Some(text) => {
            let at = DateTime::parse_from_rfc3339(text).map_err(|_| {
                Error::invalid(
                    "since",
                    "must be a time as in RFC 3339, for example 2026-01-15T10:45:00Z",
                )
            })?;
            Some((text, at.with_timezone(&Utc)))
        }
        None => None,
    };
    let question = Question {
        cursor: request.query.get("cursor"),
        since,
        limit: request
            .query
            .number("limit", settings.batch_size, 1..=settings.batch_size_max)?,
        bytes_max: settings.batch_bytes_max,
    };
    let pending = reported_pending(&request)?;
    let batch = match app.incoming.batch(device, question).await {
        Ok(batch) => batch,
        Err(error) => {
            if !matches!(error, incoming::Error::InvalidCursor(_)) {
                report_failure(&app, device, error.to_string()).await;
            }
            return Err(error.into());
        }
    };
    report_pending(&app, device, batch.status, pending).await;

    // The rows are nearly all of the answer, so their size decides.
    let bytes: usize = batch.items.iter().map(Item::bytes).sum();
    let is_compressed = settings.compression && bytes >= settings.compression_threshold_bytes && accepts_gzip(&request);
    let plain = body(&batch, bytes, is_compressed)?;
    let took = started.elapsed();
    let (rows, plain_bytes, ms) = (batch.items.len(), plain.len(), took.as_millis() as u64);
    app.metrics.sync.delivered(batch.source, rows, took);
    let (reset, has_more, source) = (batch.reset, batch.has_more, batch.source.as_str());
    let is_news = rows > 0 || reset;
    let mut answer = if is_compressed {
        drop(batch);
        let packed = gzip::pack(plain, settings.compression_level, &app.metrics).await?;
        tracing::info!(
            device = device.device_id,
            tenant = device.tenant.name,
            rows,
            plain_bytes,
            packed_bytes = packed.bytes.len(),
            ms,
            source,
            reset,
            has_more,
            gzip_ms = packed.took.as_millis() as u64,
            "incoming sync"
        );
        let mut answer = response::with_type(StatusCode::OK, "application/json", packed.bytes);
        answer
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer
    } else {
        if is_news {
            tracing::info!(
                device = device.device_id,
                tenant = device.tenant.name,
                rows,
                plain_bytes,
                source,
                reset,
                has_more,
                ms,
                "incoming sync"
            );
        }
        response::with_type(StatusCode::OK, "application/json", plain)
    };
    answer
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(answer)
}

/// The answer to `GET /api/sync/incoming` in JSON. Rows are JSON already, and copied once.
fn body(batch: &Batch, rows_bytes: usize, is_compressed: bool) -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    struct Tail<'a> {
        cursor: Option<&'a str>,
        has_more: bool,
        reset: bool,
        position: String,
        compressed: bool,
        sync_timestamp: Timestamp,
    }
    let mut out = Vec::with_capacity(rows_bytes + 2 * batch.items.len() + 1024);
    let items = batch.items.iter();
    let messages = items.clone().filter_map(|item| match item {
        Item::Message(json) => Some(json),
        _ => None,
    });
    let users = items.clone().filter_map(|item| match item {
        Item::User(json) => Some(json),
        _ => None,
    });
    let changes = items.filter_map(|item| match item {
        Item::Change(change) => Some(change),
        _ => None,
    });
    append_list(&mut out, "{\"messages\":[", messages, append);
    append_list(&mut out, ",\"users\":[", users, append);
    append_list(&mut out, ",\"changes\":[", changes, append_change);
    let tail = Tail {
        cursor: batch.cursor.as_deref(),
        has_more: batch.has_more,
        reset: batch.reset,
        position: batch.position.to_string(),
        compressed: is_compressed,
        sync_timestamp: batch.timestamp,
    };
    let start = out.len();
    serde_json::to_writer(&mut out, &tail).map_err(|error| Error::internal(format!("a batch is no JSON: {error}")))?;
    // The object that was begun goes on.
    out[start] = b',';
    Ok(out)
}

/// A list that begins so, of what each item is in JSON.
fn append_list<'a, T: 'a>(
    out: &mut Vec<u8>,
    beginning: &str,
    items: impl Iterator<Item = &'a T>,
    append: fn(&mut Vec<u8>, &T),
) {
    out.extend_from_slice(beginning.as_bytes());
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        append(out, item);
    }
    out.push(b']');
}

fn append(out: &mut Vec<u8>, json: &Text) {
    out.extend_from_slice(json.as_bytes());
}

fn append_change(out: &mut Vec<u8>, change: &Change) {
    out.extend_from_slice(b"{\"table\":");
    write_string(change.table.as_str(), out);
    out.extend_from_slice(b",\"op\":");
    write_string(change.op, out);
    out.extend_from_slice(b",\"id\":");
    match &change.id {
        Some(id) => write_string(id.as_str(), out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"row\":");
    out.extend_from_slice(change.row.as_ref().map_or(b"null", Text::as_bytes));
    out.push(b'}');
}

/// Whether the client takes gzip (RFC 9110, section 12.5.3).
fn accepts_gzip(request: &Request) -> bool {
    request.header("accept-encoding").is_some_and(takes_gzip)
}

fn takes_gzip(accepted: &str) -> bool {
    let weight_of = |wanted: &str| {
        accepted.split(',').find_map(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let (_, q) = weight.split_once('=').unwrap_or(("q", "1"));
            let is_it = name.trim().eq_ignore_ascii_case(wanted);
            is_it.then(|| q.trim().parse::<f32>().is_ok_and(|q| q > 0.0))
        })
    };
    // What is named goes before what stands for all others.
    weight_of("gzip").or_else(|| weight_of("*")).unwrap_or(false)
}

#[derive(Deserialize)]
struct Acknowledgement {
    cursor: Option<String>,
}

/// `POST /api/sync/ack`: the device has all up to the cursor.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor that is not this device's, 503 while Redis or Postgres is away.
pub async fn acknowledge(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: Acknowledgement = request.json(app.config.server.body_bytes_max).await?;
    let cursor = required("cursor", body.cursor)?;
    let device = request.device()?;
    let pending = reported_pending(&request)?;
    take_acknowledgement(&app, device, &cursor, pending).await?;
    response::json(
        StatusCode::OK,
        &json!({"acknowledged": true, "sync_timestamp": Timestamp::now()}),
    )
}

/// Notes that a device has all up to a cursor, on whichever way it says so.
///
/// # Errors
/// As [`acknowledge`].
pub(crate) async fn take_acknowledgement(
    app: &App,
    device: &DevicePrincipal,
    cursor: &str,
    pending: Option<u32>,
) -> Result<(), Error> {
    let started = Instant::now();
    let status = app.incoming.acknowledge(device, cursor).await?;
    app.metrics.sync.acknowledged();
    tracing::info!(
        device = device.device_id,
        tenant = device.tenant.name,
        ms = started.elapsed().as_millis() as u64,
        "sync acknowledged"
    );
    report_pending(app, device, status, pending).await;
    Ok(())
}

/// `GET /api/sync/status`: how the device's sync stands.
///
/// # Errors
/// 503 while Redis is away.
pub async fn status(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let device = request.device()?;
    let state = device_state::read(&app.store, &device.tenant.name, &device.device_id).await?;
    let pending = app.incoming.pending(device).await?;
    let last_sync = state
        .last_sync_ms
        .and_then(DateTime::from_timestamp_millis)
        .map(Timestamp);
    // A failure of Redis could be noted here only.
    let has_failed = app.metadata.has_failed(&device.tenant, &device.device_id);
    let sync_status = if has_failed { SyncStatus::Error } else { state.status() };
    response::json(
        StatusCode::OK,
        &json!({
            "device_id": device.device_id,
            "last_sync_timestamp": last_sync,
            "pending_outgoing_count": state.pending_outgoing,
            "pending_incoming_count": pending,
            "sync_status": sync_status,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for accepted in [
            "gzip",
            "GZIP",
            "br, gzip",
            "deflate;q=0, gzip;q=0.5",
            "*",
            "*;q=0.1",
            "gzip; q=1.0, *;q=0",
        ] {
            assert!(takes_gzip(accepted), "{accepted}");
        }
        for accepted in [
            "",
            "br",
            "gzip;q=0",
            "gzip;q=0.0, *",
            "*;q=0",
            "identity",
            "gzip;q=x",
            "xgzip",
        ] {
            assert!(!takes_gzip(accepted), "{accepted}");
        }
    }
}
