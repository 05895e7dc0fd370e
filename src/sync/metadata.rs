//! Sync times and statuses of devices, written to Postgres in bulk: one statement for each tenant and interval, independent
//! of how often devices poll.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use postgres_types::Type;
use tokio_util::sync::CancellationToken;

use super::device_state::SyncStatus;
use crate::core::tenant::Tenant;
use crate::postgres::{Database, sql};

/// A device's last sync.
#[derive(Debug, Clone)]
struct SyncRecord {
    seen: DateTime<Utc>,
    /// The last successful sync.
    synced: Option<DateTime<Utc>>,
    pending_outgoing: Option<i32>,
    /// `None` after an upload, which does not show what is pending for the device.
    status: Option<SyncStatus>,
    error: Option<String>,
}

/// Collects syncs until they are written.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    records: Arc<Mutex<HashMap<Tenant, HashMap<String, SyncRecord>>>>,
}

impl Metadata {
    /// Records a successful sync and the device's status after it.
    pub fn succeeded(
        &self,
        tenant: &Tenant,
        device_id: &str,
        status: Option<SyncStatus>,
        pending_outgoing: Option<u32>,
    ) {
        self.record(tenant, device_id, |record| {
            record.status = match (status, record.status) {
                (None, Some(SyncStatus::Error)) => None,
                (None, before) => before,
                (status, _) => status,
            };
            record.synced = Some(record.seen);
            record.error = None;
            if let Some(pending) = pending_outgoing {
                record.pending_outgoing = Some(i32::try_from(pending).unwrap_or(i32::MAX));
            }
        });
    }

    /// Records a failed sync.
    pub fn failed(&self, tenant: &Tenant, device_id: &str, error: String) {
        self.record(tenant, device_id, |record| {
            record.status = Some(SyncStatus::Error);
            record.error = Some(error);
        });
    }

    /// Whether the device's last sync failed in this process and is not written yet.
    pub fn has_failed(&self, tenant: &Tenant, device_id: &str) -> bool {
        let records = self.records.lock();
        records
            .get(tenant)
            .and_then(|devices| devices.get(device_id))
            .is_some_and(|record| record.error.is_some())
    }

    fn record(&self, tenant: &Tenant, device_id: &str, change: impl FnOnce(&mut SyncRecord)) {
        let mut records = self.records.lock();
        let device = records.entry(tenant.clone()).or_default().entry(device_id.to_owned());
        let record = device.or_insert_with(|| SyncRecord {
            seen: Utc::now(),
            synced: None,
            pending_outgoing: None,
            status: None,
            error: None,
        });
        record.seen = Utc::now();
        change(record);
    }

    /// Writes the records at each interval, and once more at the end.
    pub async fn run(self, database: Database, interval: Duration, stop: CancellationToken) {
        loop {
            let is_last = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = stop.cancelled() => true,
            };
            self.write(&database).await;
            if is_last {
                return;
            }
        }
    }

    async fn write(&self, database: &Database) {
        let records = std::mem::take(&mut *self.records.lock());
        for (tenant, devices) in records {
            let (mut ids, mut seen, mut synced, mut pending) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (mut statuses, mut errors) = (Vec::new(), Vec::new());
            for (id, record) in devices {
                ids.push(id);
                seen.push(record.seen);
                synced.push(record.synced);
                pending.push(record.pending_outgoing);
                statuses.push(record.status.map(SyncStatus::as_str));
                errors.push(record.error);
            }
            let result = database
                .query(
                    &sql!("sync/sync_metadata_write", tenant),
                    &[
                        (&ids, Type::TEXT_ARRAY),
                        (&seen, Type::TIMESTAMPTZ_ARRAY),
                        (&synced, Type::TIMESTAMPTZ_ARRAY),
                        (&pending, Type::INT4_ARRAY),
                        (&statuses, Type::TEXT_ARRAY),
                        (&errors, Type::TEXT_ARRAY),
                    ],
                )
                .await;
            if let Err(error) = result {
                tracing::warn!(
                    tenant = tenant.name,
                    cause = crate::telemetry::chain(&error),
                    "cannot write sync times"
                );
            }
        }
    }
}
