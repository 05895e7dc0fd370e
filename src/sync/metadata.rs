//! The devices' sync times and statuses, written to Postgres in bulk: one statement per tenant and interval, however often they poll.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use postgres_types::Type;
use tokio_util::sync::CancellationToken;

use super::device_state::SyncStatus;
use crate::core::tenant::Tenant;
use crate::postgres::{Database, sql};

/// What a device's last sync was like.
#[derive(Debug, Clone)]
struct Note {
    seen: DateTime<Utc>,
    /// The last that worked.
    synced: Option<DateTime<Utc>>,
    pending_outgoing: Option<i32>,
    /// Nothing when it only uploaded, which says nothing of what it still has to get.
    status: Option<SyncStatus>,
    error: Option<String>,
}

/// Gathers what devices did until it is written.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    notes: Arc<Mutex<HashMap<Tenant, HashMap<String, Note>>>>,
}

impl Metadata {
    /// Notes a sync that worked, and how the device's sync stands with it.
    pub fn succeeded(
        &self,
        tenant: &Tenant,
        device_id: &str,
        status: Option<SyncStatus>,
        pending_outgoing: Option<u32>,
    ) {
        self.note(tenant, device_id, |note| {
            note.status = match (status, note.status) {
                (None, Some(SyncStatus::Error)) => None,
                (None, before) => before,
                (status, _) => status,
            };
            note.synced = Some(note.seen);
            note.error = None;
            if let Some(pending) = pending_outgoing {
                note.pending_outgoing = Some(i32::try_from(pending).unwrap_or(i32::MAX));
            }
        });
    }

    /// Notes a sync that did not.
    pub fn failed(&self, tenant: &Tenant, device_id: &str, error: String) {
        self.note(tenant, device_id, |note| {
            note.status = Some(SyncStatus::Error);
            note.error = Some(error);
        });
    }

    /// Whether the device's last sync here failed, as far as it is not written yet.
    pub fn has_failed(&self, tenant: &Tenant, device_id: &str) -> bool {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes
            .get(tenant)
            .and_then(|devices| devices.get(device_id))
            .is_some_and(|note| note.error.is_some())
    }

    fn note(&self, tenant: &Tenant, device_id: &str, change: impl FnOnce(&mut Note)) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let device = notes.entry(tenant.clone()).or_default().entry(device_id.to_owned());
        let note = device.or_insert_with(|| Note {
            seen: Utc::now(),
            synced: None,
            pending_outgoing: None,
            status: None,
            error: None,
        });
        note.seen = Utc::now();
        change(note);
    }

    /// Writes what has gathered, again and again, and once more at the end.
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
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        for (tenant, devices) in notes {
            let (mut ids, mut seen, mut synced, mut pending) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (mut statuses, mut errors) = (Vec::new(), Vec::new());
            for (id, note) in devices {
                ids.push(id);
                seen.push(note.seen);
                synced.push(note.synced);
                pending.push(note.pending_outgoing);
                statuses.push(note.status.map(SyncStatus::as_str));
                errors.push(note.error);
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
                    "sync times are not written; the next ones will be"
                );
            }
        }
    }
}
