//! What each device was given and has acknowledged, in one Redis hash a device.
//!
//! It is kept in Redis so that a poll costs no Postgres statement; the [`super::metadata`] writer carries the times to
//! Postgres in bulk. Losing it costs nothing but a slower trim and statuses that stay `pending_sync` a little longer.

use std::collections::HashMap;

use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::redis::store::{Error, Store};

/// Answers that can still be acknowledged by their `sync_timestamp`.
const GIVEN_MAX: usize = 4;

/// Seconds after which the state of a device that is never heard of again goes.
const LIFETIME_SECONDS: i64 = 400 * 86_400;

/// Longest text of a failure that is kept.
const ERROR_CHARS_MAX: usize = 500;

/// An answer that a device was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveredBatch {
    /// Its `sync_timestamp`, unique for the device.
    pub timestamp: String,
    /// Its cursor.
    pub cursor: String,
    /// Ids of messages in it that came from a snapshot and were `pending_sync`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Uuid>,
}

/// A device's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// All up to here it has, in this epoch.
    pub acknowledged: Option<(EpochId, StreamId)>,
    /// Up to here the statuses of what it has have moved on; never beyond what it has.
    pub settled: Option<StreamId>,
    /// All up to here it was given, in this epoch; it may not have arrived.
    pub read: Option<(EpochId, StreamId)>,
    /// The last answers, newest last.
    pub given: Vec<DeliveredBatch>,
    /// Rows that it was given since it began to catch up; 0 when it has come to the end.
    pub catching_up: u64,
    /// Why its last sync failed, if it did.
    pub error: Option<String>,
    /// When it last synced, ms since 1970.
    pub last_sync_ms: Option<i64>,
    /// What it last reported as waiting to be sent.
    pub pending_outgoing: u32,
}

impl DeviceState {
    /// The acknowledged range whose statuses are not flushed yet.
    pub fn behind(&self) -> Option<(StreamId, StreamId)> {
        let (_, acknowledged) = self.acknowledged?;
        self.settled
            .filter(|settled| *settled < acknowledged)
            .map(|settled| (settled, acknowledged))
    }

    /// The state after an update.
    #[must_use]
    pub fn updated(mut self, update: &Update) -> Self {
        self.acknowledged = update.acknowledged.or(self.acknowledged);
        self.settled = update.settled.or(self.settled);
        self.read = update.read.or(self.read);
        self.catching_up = update.catching_up.unwrap_or(self.catching_up);
        if let Some(error) = &update.error {
            self.error = Some(error.clone()).filter(|error| !error.is_empty());
        }
        if let Some(given) = &update.given {
            self.given.clone_from(given);
        }
        self.last_sync_ms = update.last_sync_ms.or(self.last_sync_ms);
        self.pending_outgoing = update.pending_outgoing.unwrap_or(self.pending_outgoing);
        self
    }

    /// The status of its sync.
    pub fn status(&self) -> SyncStatus {
        match self {
            Self { error: Some(_), .. } => SyncStatus::Error,
            Self { catching_up: 0, .. } => SyncStatus::Idle,
            _ => SyncStatus::Syncing,
        }
    }
}

/// The status of a device's sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncStatus {
    /// It has received everything.
    Idle,
    /// More is pending, or a snapshot is in progress.
    Syncing,
    /// Its last sync failed.
    Error,
}

impl SyncStatus {
    /// The value in Postgres.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Syncing => "syncing",
            Self::Error => "error",
        }
    }
}

/// Reads a device's state.
///
/// # Errors
/// When Redis fails.
pub async fn read(store: &Store, tenant: &str, device_id: &str) -> Result<DeviceState, Error> {
    let key = store.keys().device(tenant, device_id);
    let fields: HashMap<String, String> = store.connection().hgetall(key).await?;
    let field = |name: &str| fields.get(name).map(String::as_str);
    let acknowledged = match (field("epoch"), field("ack")) {
        (Some(epoch), Some(ack)) => epoch.parse().ok().zip(ack.parse().ok()),
        _ => None,
    };
    Ok(DeviceState {
        acknowledged,
        settled: field("settled").and_then(|text| text.parse().ok()),
        read: field("read").and_then(|text| {
            let (epoch, position) = text.split_once(' ')?;
            epoch.parse().ok().zip(position.parse().ok())
        }),
        given: field("given")
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default(),
        catching_up: field("catching_up")
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        error: fields.get("error").filter(|error| !error.is_empty()).cloned(),
        last_sync_ms: field("last_sync").and_then(|text| text.parse().ok()),
        pending_outgoing: field("pending").and_then(|text| text.parse().ok()).unwrap_or_default(),
    })
}

/// What a request changes.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// A new acknowledged place.
    pub acknowledged: Option<(EpochId, StreamId)>,
    /// How far statuses have moved on.
    pub settled: Option<StreamId>,
    /// How far it was given.
    pub read: Option<(EpochId, StreamId)>,
    /// The whole list of given answers, oldest first.
    pub given: Option<Vec<DeliveredBatch>>,
    /// Rows given since it began to catch up.
    pub catching_up: Option<u64>,
    /// Why its sync failed; an empty text when it did not.
    pub error: Option<String>,
    /// When it synced, ms since 1970.
    pub last_sync_ms: Option<i64>,
    /// What it reports as waiting.
    pub pending_outgoing: Option<u32>,
}

/// Adds an answer to those given, forgetting the oldest.
pub fn with_given(mut given: Vec<DeliveredBatch>, new: DeliveredBatch) -> Vec<DeliveredBatch> {
    given.push(new);
    let excess = given.len().saturating_sub(GIVEN_MAX);
    given.drain(..excess);
    given
}

/// Writes what changed.
///
/// # Errors
/// When Redis fails.
pub async fn write(store: &Store, tenant: &str, device_id: &str, update: &Update) -> Result<(), Error> {
    let key = store.keys().device(tenant, device_id);
    let mut fields: Vec<(&str, String)> = Vec::new();
    if let Some((epoch, position)) = update.acknowledged {
        fields.push(("epoch", epoch.to_string()));
        fields.push(("ack", position.to_string()));
    }
    if let Some(settled) = update.settled {
        fields.push(("settled", settled.to_string()));
    }
    if let Some((epoch, position)) = update.read {
        fields.push(("read", format!("{epoch} {position}")));
    }
    if let Some(rows) = update.catching_up {
        fields.push(("catching_up", rows.to_string()));
    }
    if let Some(error) = &update.error {
        fields.push(("error", error.chars().take(ERROR_CHARS_MAX).collect()));
    }
    if let Some(given) = &update.given {
        fields.push(("given", serde_json::to_string(given).unwrap_or_default()));
    }
    if let Some(time) = update.last_sync_ms {
        fields.push(("last_sync", time.to_string()));
    }
    if let Some(pending) = update.pending_outgoing {
        fields.push(("pending", pending.to_string()));
    }
    if fields.is_empty() {
        return Ok(());
    }
    let mut pipe = redis::pipe();
    pipe.hset_multiple(&key, &fields)
        .ignore()
        .expire(&key, LIFETIME_SECONDS)
        .ignore();
    let () = pipe.query_async(&mut store.connection()).await?;
    Ok(())
}
