//! Uploads: a batch of creates, edits, deletes and reads that a device made offline, with a result for each item.
//!
//! The form of an item is checked here. Its effect is the work of a function in the tenant's schema, which takes the whole
//! batch in one statement and returns a row for each item: `upload_messages()` for messages (its rules are in
//! `migrations/tenant/0002_upload.up.sql`), `upload_rows()` for rows of the operator's own tables
//! (`0004_upload_rows.up.sql`). An invalid item never fails another one. Uploads are idempotent: a device that did not
//! receive the response sends the batch again and gets `duplicate`.
//!
//! An edit or delete based on an older version than the row's is a conflict. Versions decide, not clocks: of two changes
//! based on the same version, the first one that reaches Postgres is applied and the second one is a conflict. Both
//! versions of a message are kept in `message_conflicts`. Under [`ConflictStrategy::LastWriteWins`] the device's change is
//! applied (it arrived last); under [`ConflictStrategy::Manual`] the row stays until a user decides (see
//! [`crate::messages::conflicts`]). A row of an own table always stays. An item without a base is never a conflict.

mod apply;
mod form;
mod messages;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use super::report::Reports;
use super::tables;
use crate::accounts::devices::DevicePrincipal;
use crate::config::{Config, ConflictStrategy};
use crate::contract::checkpoint::View;
use crate::core::position::StreamId;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::messages::Messages;
use crate::postgres::Database;
use crate::redis::store::Store;
use crate::telemetry::metrics::Metrics;

/// How long Redis may take to convert the position of an upload; the response can do without it.
const POSITION_TIMEOUT: Duration = Duration::from_millis(500);

/// The outcome of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Applied,
    /// It was applied by an earlier upload.
    Duplicate,
    /// The row has changed since the device read it; see the module.
    Conflict,
    /// It is invalid and will never be applied.
    Rejected,
    /// It cannot be applied now; a later upload of it may succeed.
    Retry,
}

impl Outcome {
    pub const ALL: [Self; 5] = [
        Self::Applied,
        Self::Duplicate,
        Self::Conflict,
        Self::Rejected,
        Self::Retry,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Retry => "retry",
        }
    }
}

/// Why an item was not simply applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemCode {
    Invalid,
    EmptyMessage,
    InvalidRecipient,
    Forbidden,
    NotFound,
    Conflict,
    /// Another transaction is in the way.
    Unavailable,
}

/// The result of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemResult {
    /// The table, for an item of an own table.
    pub table: Option<String>,
    /// The id as it was sent, truncated; `None` if it was not text.
    pub id: Option<String>,
    pub status: Outcome,
    pub code: Option<ItemCode>,
    /// Explains the code to people.
    pub message: Option<String>,
    /// The row's current version: the base of the device's next change.
    pub version: Option<i64>,
    /// The current row, for a conflict.
    pub server: Option<Value>,
}

/// The result of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// In the order of the items, messages first.
    pub results: Vec<ItemResult>,
    /// An upper bound of the batch's own commit in the write-ahead log.
    pub lsn: PgLsn,
    pub at: Timestamp,
}

/// A batch as it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    pub messages: &'a [Value],
    /// Rows of own tables.
    pub changes: &'a [Value],
}

/// Takes uploads.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub database: Database,
    pub store: Store,
    pub messages: Messages,
    pub reports: Reports,
    pub metrics: Arc<Metrics>,
    pub config: Arc<Config>,
}

impl Outgoing {
    /// Applies a batch and reports it. `pending` is the length of the device's own queue, as the device reports it.
    ///
    /// # Errors
    /// Only when Postgres fails; an invalid item is a result. Nothing of the batch is applied then, or its messages only;
    /// the same batch can be sent again.
    pub async fn upload(
        &self,
        device: &DevicePrincipal,
        items: Items<'_>,
        pending: Option<u32>,
    ) -> Result<Uploaded, Error> {
        let started = Instant::now();
        let mut uploaded = match apply::apply(&self.database, device, items, &self.config).await {
            Ok(uploaded) => uploaded,
            Err(error) => {
                self.reports.failed(device, error.to_string()).await;
                return Err(error);
            }
        };
        self.record(device, &uploaded.results, pending, started.elapsed());
        self.invalidate_caches(device, &uploaded.results);
        self.reports.uploaded(device, pending).await;
        self.add_conflicting_rows(device, &mut uploaded.results).await;
        Ok(uploaded)
    }

    /// Whether the device's change is in effect.
    pub fn is_in_effect(&self, result: &ItemResult) -> bool {
        match result.status {
            Outcome::Applied | Outcome::Duplicate => true,
            Outcome::Conflict => {
                let strategy = self.config.sync.conflict_strategy;
                result.table.is_none() && strategy == ConflictStrategy::LastWriteWins
            }
            Outcome::Rejected | Outcome::Retry => false,
        }
    }

    /// The stream ID of a position in the write-ahead log; `None` while Redis does not provide the epoch.
    pub async fn position_of(&self, lsn: PgLsn) -> Option<StreamId> {
        let view = tokio::time::timeout(POSITION_TIMEOUT, self.store.view());
        let View { base, .. } = view.await.ok()?.ok()?;
        Some(StreamId {
            ms: u64::from(lsn).saturating_add(base),
            seq: 0,
        })
    }

    fn record(&self, device: &DevicePrincipal, results: &[ItemResult], pending: Option<u32>, took: Duration) {
        let statuses = results.iter().map(|result| result.status.as_str());
        self.metrics.sync.uploaded(statuses, took);
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
    }

    fn invalidate_caches(&self, device: &DevicePrincipal, results: &[ItemResult]) {
        let messages = results.iter().filter(|result| result.table.is_none());
        let ids = messages.filter_map(|result| Uuid::try_parse(result.id.as_deref()?).ok());
        self.messages.uploaded(&device.tenant, device.user_id, ids);
    }

    /// Adds the current rows to the conflicts of own tables. Without Postgres they are left out: the rows come with the
    /// next incoming batch too.
    async fn add_conflicting_rows(&self, device: &DevicePrincipal, results: &mut [ItemResult]) {
        let mut conflicts: HashMap<String, Vec<&mut ItemResult>> = HashMap::new();
        for result in results {
            if let (Outcome::Conflict, Some(table)) = (result.status, &result.table) {
                conflicts.entry(table.clone()).or_default().push(result);
            }
        }
        for (table, mut results) in conflicts {
            let ids: Vec<String> = results.iter().filter_map(|result| result.id.clone()).collect();
            let rows = match tables::by_id(&self.database, &device.tenant, &table, &ids).await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(
                        tenant = device.tenant.name,
                        table,
                        cause = crate::telemetry::chain(&error),
                        "cannot read the rows of conflicts; results are sent without them"
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
}
