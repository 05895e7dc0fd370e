//! `/api/sync`: batches from and to devices.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, HeaderValue, VARY};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::App;
use crate::api::batch_body;
use crate::api::item_body::ItemBody;
use crate::api::request::Request;
use crate::core::time::Timestamp;
use crate::http::error::{Code, Error};
use crate::http::gzip;
use crate::http::raw_json::RawItems;
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::sync::incoming;
use crate::sync::item::Item;
use crate::sync::outgoing::{ItemResult, Items, Outgoing};

#[derive(Deserialize)]
struct Upload {
    messages: Option<RawItems>,
    changes: Option<RawItems>,
    items: Option<RawItems>,
    acked_seq: Option<i64>,
    // `compressed` repeats Content-Encoding and is ignored.
    pending_count: Option<u32>,
}

/// Items whose sequence numbers are positive and consecutive. Without items the results are acknowledged only.
pub(crate) fn numbered(items: &[Value], acked_seq: Option<i64>) -> Result<Items<'_>, Error> {
    let acked_seq = acked_seq.unwrap_or_default();
    if acked_seq < 0 {
        return Err(Error::invalid("acked_seq", "must be an integer of 0 or more"));
    }
    let seq = |item: &Value| item.get("seq").and_then(Value::as_i64);
    let first_seq = items
        .first()
        .map_or(Some(acked_seq.saturating_add(1)), seq)
        .unwrap_or_default();
    let is_consecutive = |(expected, item): (i64, &Value)| seq(item) == Some(expected);
    if first_seq < 1 || !(first_seq..).zip(items).all(is_consecutive) {
        return Err(Error::invalid(
            "seq",
            "must be a positive integer, one more than that of the item before",
        ));
    }
    Ok(Items::Numbered {
        items,
        first_seq,
        acked_seq,
    })
}

/// `POST /api/sync/outgoing`: what a device changed offline.
///
/// # Errors
/// 400 for a malformed batch, 413 for a too large one, 409 for wrong sequence numbers, 507 while the tenant is beyond its
/// budget. An invalid item is a result, not an error.
pub async fn outgoing(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let settings = &app.config.sync;
    let items_max = settings.upload_items_max;
    let body: Upload = request.json_inflated(settings.upload_bytes_max).await?;
    app.rates.take_of_bytes(request.caller()?, request.memory.bytes())?;
    let parse = |field, items: &Option<RawItems>| match items {
        Some(items) => items.parse(field, items_max),
        None => Ok(Vec::new()),
    };
    let (messages, changes) = (parse("messages", &body.messages)?, parse("changes", &body.changes)?);
    let own = parse("items", &body.items)?;
    let items = match (&body.items, &body.messages) {
        (Some(_), None) if changes.is_empty() => numbered(&own, body.acked_seq)?,
        (Some(_), _) => {
            return Err(Error::invalid(
                "items",
                "is not allowed together with messages or changes",
            ));
        }
        (None, None) if changes.is_empty() => return Err(Error::invalid("messages", "is missing")),
        (None, _) => Items::Unnumbered {
            messages: &messages,
            changes: &changes,
        },
    };
    if items.len() > items_max {
        let text = format!("messages: must not exceed {items_max} items, changes included");
        return Err(Error::new(Code::PAYLOAD_TOO_LARGE, text)
            .with("field", "messages")
            .with("items_max", items_max));
    }
    let pending = match body.pending_count {
        Some(pending) => Some(pending),
        None => reported_pending(&request)?,
    };
    let device = request.device()?;
    let outgoing = &app.lane(&device.tenant.name).outgoing;
    let uploaded = outgoing.upload(device, items, pending).await?;
    // For clients that read counts only: an item counts as synced if its change is in effect.
    let failed: Vec<Value> = uploaded
        .results
        .iter()
        .filter(|result| !Outgoing::is_in_effect(result))
        .map(failed_item)
        .collect();
    let synced = uploaded.results.len() - failed.len();
    let position = outgoing.position_of(uploaded.lsn).await;
    let results: Vec<ItemBody> = uploaded.results.into_iter().map(ItemBody::from).collect();
    response::json(
        StatusCode::OK,
        &json!({
            "synced_count": synced,
            "failed_count": failed.len(),
            "sync_timestamp": uploaded.at,
            "results": results,
            "failed_messages": failed,
            "position": position.map(|position| position.to_string()),
        }),
    )
}

fn failed_item(result: &ItemResult) -> Value {
    match &result.table {
        None => json!({"message_id": result.id, "error": result.message}),
        Some(table) => json!({"table": table, "id": result.id, "error": result.message}),
    }
}

/// The length of the device's own queue, from the header `X-Pending-Outgoing`.
fn reported_pending(request: &Request) -> Result<Option<u32>, Error> {
    let Some(text) = request.header("x-pending-outgoing") else {
        return Ok(None);
    };
    let count = text
        .parse()
        .map_err(|_| Error::invalid("X-Pending-Outgoing", "must be a non-negative integer"))?;
    Ok(Some(count))
}

/// `GET /api/sync/incoming`: what the device has not received yet.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor of another device, 503 while Redis or, for a snapshot, Postgres is unavailable.
pub async fn incoming(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let started = Instant::now();
    let settings = &app.config.sync;
    let device = request.device()?;
    let wanted = incoming::Request {
        cursor: request.query.get("cursor"),
        since: request.query.get("since").map(since).transpose()?,
        limit: request
            .query
            .number("limit", settings.batch_size, 1..=settings.batch_size_max)?,
        bytes_max: settings.batch_bytes_max,
        pending_outgoing: reported_pending(&request)?,
    };
    let batch = app.lane(&device.tenant.name).incoming.batch(device, wanted).await?;

    let content = &batch.content;
    // Rows make up nearly all of the response, so their size decides.
    let rows_bytes: usize = content.items.iter().map(Item::bytes).sum();
    let is_compressed = settings.compression
        && rows_bytes >= settings.compression_threshold_bytes
        && gzip::is_accepted(&request.headers);
    let plain = batch_body::encode(&batch, rows_bytes, is_compressed)?;
    let took = started.elapsed();
    let (rows, source, reset, has_more) = (content.items.len(), content.source, content.reset, content.has_more);
    app.metrics.sync.delivered(source, rows, took);
    let plain_bytes = plain.len();
    let (bytes, gzip_ms) = if is_compressed {
        drop(batch);
        let compressed = gzip::compress(plain, settings.compression_level, &app.metrics).await?;
        (compressed.bytes, Some(compressed.took.as_millis() as u64))
    } else {
        (plain, None)
    };
    if rows > 0 || reset || is_compressed {
        tracing::info!(
            device = device.device_id,
            tenant = device.tenant.name,
            rows,
            plain_bytes,
            compressed_bytes = is_compressed.then_some(bytes.len()),
            source = source.as_str(),
            reset,
            has_more,
            ms = took.as_millis() as u64,
            gzip_ms,
            "incoming sync"
        );
    }
    let mut response = response::with_type(StatusCode::OK, "application/json", bytes);
    let headers = response.headers_mut();
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(response)
}

/// A `since`: its text, by which a delivered batch is found, and its time.
fn since(text: &str) -> Result<(&str, DateTime<Utc>), Error> {
    let at = DateTime::parse_from_rfc3339(text).map_err(|_| {
        let allowed = "must be an RFC 3339 timestamp, for example 2026-01-15T10:45:00Z";
        Error::invalid("since", allowed)
    })?;
    Ok((text, at.to_utc()))
}

#[derive(Deserialize)]
struct Acknowledgement {
    cursor: Option<String>,
}

/// `POST /api/sync/ack`: the device has received everything before the cursor.
///
/// # Errors
/// 400 `INVALID_CURSOR` for a cursor of another device, 503 while Redis or Postgres is unavailable.
pub async fn acknowledge(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let body: Acknowledgement = request.json(app.config.server.body_bytes_max).await?;
    let cursor = required("cursor", body.cursor)?;
    let pending = reported_pending(&request)?;
    let device = request.device()?;
    let incoming = &app.lane(&device.tenant.name).incoming;
    incoming.acknowledge(device, &cursor, pending).await?;
    response::json(
        StatusCode::OK,
        &json!({"acknowledged": true, "sync_timestamp": Timestamp::now()}),
    )
}

/// `GET /api/sync/status`: how the device's sync stands.
pub async fn status(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let device = request.device()?;
    let sync = app.lane(&device.tenant.name).incoming.status(device).await?;
    response::json(
        StatusCode::OK,
        &json!({
            "device_id": device.device_id,
            "last_sync_timestamp": sync.last_sync,
            "pending_outgoing_count": sync.pending_outgoing,
            "pending_incoming_count": sync.pending_incoming,
            "sync_status": sync.status,
        }),
    )
}
