//! Uploads: a batch of creates, edits, deletes and reads that a device made offline, with a result for each item.
//!
//! The form of an item is checked here. Its effect is the work of the function `upload_items()` in the tenant's schema
//! (`migrations/tenant/0008_upload_once.up.sql`), which applies the whole batch in its order and in one transaction and
//! returns a row for each item. An invalid item never fails another one.
//!
//! A device numbers its items ([`Items::Numbered`]): each number is applied once, and a repeated one gets its first result,
//! whatever has happened since. Items without numbers are recognised by their content, which is enough for one edit of a
//! row at a time: a device that did not receive the response sends the batch again and gets `duplicate`.
//!
//! An edit or delete based on an older version than the row's is a conflict. Versions decide, not clocks: of two changes
//! based on the same version, the first one that reaches Postgres is applied and the second one is a conflict. A numbered
//! item may be based on an earlier item of the device (`base_seq`); if that one was not applied, this one is not either.
//! Both versions are kept in `message_conflicts`. Under [`ConflictStrategy::LastWriteWins`] the device's change of a message
//! is applied (it arrived last); under [`ConflictStrategy::Manual`] the message stays until a user decides (see
//! [`crate::messages::conflicts`]). A row of an own table always stays.

mod apply;
mod current;
mod form;
mod messages;
mod rows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use super::report::Reports;
use crate::accounts::devices::DevicePrincipal;
use crate::config::Config;
#[cfg(doc)]
use crate::config::ConflictStrategy;
pub use crate::config::rule::MESSAGES;
use crate::contract::checkpoint::View;
use crate::core::position::StreamId;
use crate::core::time::Timestamp;
use crate::feature;
use crate::feature::budgets::Budgets;
use crate::feature::turns::Turns;
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
    /// The item on which it is based was not applied.
    DependsOnFailed,
    /// Another transaction is in the way.
    Unavailable,
}

impl ItemCode {
    pub const ALL: [Self; 8] = [
        Self::Invalid,
        Self::EmptyMessage,
        Self::InvalidRecipient,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::DependsOnFailed,
        Self::Unavailable,
    ];

    /// The code in results, also as Postgres stores it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "VALIDATION_ERROR",
            Self::EmptyMessage => "EMPTY_MESSAGE",
            Self::InvalidRecipient => "INVALID_RECIPIENT",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::DependsOnFailed => "DEPENDS_ON_FAILED",
            Self::Unavailable => "SYNC_ERROR",
        }
    }
}

/// Whose change stands after a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Winner {
    Mine,
    Theirs,
}

/// What is wrong with the sequence numbers of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Numbers before the first one are missing.
    Gap,
    /// A number that was processed comes again with another content: the device was restored from a backup, or copied.
    Restored,
}

/// Why an upload was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the sequence numbers do not continue at {expected}")]
    OutOfSequence {
        fault: Fault,
        /// The next number.
        expected: i64,
    },
    /// The token was checked before that was known.
    #[error("the device was revoked, or its user disabled or deleted")]
    Revoked,
    #[error(transparent)]
    Feature(#[from] feature::Error),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Feature(error.into())
    }
}

/// The result of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemResult {
    /// The sequence number, if the upload is numbered.
    pub seq: Option<i64>,
    /// The table as it was sent; `None` for a message without a number.
    pub table: Option<String>,
    /// The id as it was sent, truncated; `None` if it was not text.
    pub id: Option<String>,
    pub status: Outcome,
    pub code: Option<ItemCode>,
    /// Explains the code to people.
    pub message: Option<String>,
    /// For a conflict.
    pub winner: Option<Winner>,
    /// The conflict that was kept.
    pub conflict_id: Option<Uuid>,
    /// The row's current version: the base of the device's next change.
    pub version: Option<i64>,
    /// Counts every change of the row, receipts included.
    pub revision: Option<i64>,
    /// The current row, for a conflict and a merged edit; `None` if it was deleted.
    pub server: Option<Value>,
    /// It is the stored result of an earlier upload.
    pub is_repeated: bool,
    /// It was merged with changes that the device had not seen.
    pub is_merged: bool,
    /// Of a repeated result: the row is not any more as the item left it.
    pub is_overtaken: bool,
}

impl ItemResult {
    fn is_message(&self) -> bool {
        self.table.as_deref().is_none_or(|table| table == MESSAGES)
    }
}

/// The result of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// In the order of the items.
    pub results: Vec<ItemResult>,
    /// An upper bound of the batch's own commit in the write-ahead log.
    pub lsn: PgLsn,
    pub at: Timestamp,
}

/// A batch as it was sent.
#[derive(Debug, Clone, Copy)]
pub enum Items<'a> {
    /// Without sequence numbers: messages, then rows of own tables.
    Unnumbered {
        messages: &'a [Value],
        changes: &'a [Value],
    },
    /// With consecutive sequence numbers, messages and rows in one order.
    Numbered {
        items: &'a [Value],
        first_seq: i64,
        /// The device has stored the results up to this number.
        acked_seq: i64,
    },
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
    pub budgets: Budgets,
    /// Uploads of a user wait for each other in Postgres.
    pub turns: Turns,
}

impl Outgoing {
    /// Applies a batch and reports it. `pending` is the length of the device's own queue, as the device reports it.
    ///
    /// # Errors
    /// [`Error::OutOfSequence`], [`Error::Revoked`], when Postgres fails, when too many uploads of the user wait, or when the
    /// tenant is beyond its budget; an invalid item is a result. Nothing of the batch is applied then, and the same batch can be sent again.
    pub async fn upload(
        &self,
        device: &DevicePrincipal,
        items: Items<'_>,
        pending: Option<u32>,
    ) -> Result<Uploaded, Error> {
        let started = Instant::now();
        // Without items it stores nothing that is delivered.
        if !items.is_empty() {
            self.budgets.check(&device.tenant.name)?;
        }
        let _turn = self
            .turns
            .take(
                &device.tenant,
                device.user_id,
                "too many uploads of this user are in progress",
            )
            .await?;
        let mut uploaded = match apply::apply(&self.database, device, items, &self.config).await {
            Ok(uploaded) => uploaded,
            Err(error) => {
                if let Error::Feature(error) = &error {
                    self.reports.failed(device, error.to_string()).await;
                }
                return Err(error);
            }
        };
        self.record(device, &uploaded.results, pending, started.elapsed());
        self.invalidate_caches(device, &uploaded.results);
        self.reports.uploaded(device, pending).await;
        let results = &mut uploaded.results;
        Box::pin(current::mark_overtaken(
            &self.database,
            device,
            items,
            results,
            &self.config,
        ))
        .await?;
        Box::pin(current::add_rows(&self.database, device, results, &self.config)).await?;
        Ok(uploaded)
    }

    /// Whether the device's change is in effect.
    pub fn is_in_effect(result: &ItemResult) -> bool {
        match result.status {
            Outcome::Applied | Outcome::Duplicate => true,
            Outcome::Conflict => result.winner == Some(Winner::Mine),
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
        for code in results
            .iter()
            .filter(|result| result.status == Outcome::Rejected)
            .filter_map(|result| result.code)
        {
            self.metrics.sync.rejected(code.as_str());
        }
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
        let messages = results.iter().filter(|result| result.is_message());
        let ids = messages.filter_map(|result| Uuid::try_parse(result.id.as_deref()?).ok());
        self.messages.uploaded(&device.tenant, device.user_id, ids);
    }
}
