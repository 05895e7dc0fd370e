//! Reports of how a device's sync went: to Redis for all nodes, and to [`Metadata`] for Postgres.

use std::time::Duration;

use chrono::Utc;

use super::device_state::{self, SyncStatus, Update};
use super::metadata::Metadata;
use crate::accounts::devices::DevicePrincipal;
use crate::redis::store::Store;

/// How long Redis may take for a report; the response does not depend on it.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes reports. Clones share the metadata.
#[derive(Debug, Clone)]
pub struct Reports {
    pub store: Store,
    pub metadata: Metadata,
}

impl Reports {
    /// Reports a successful upload; `pending` is the length of the device's own queue.
    pub async fn uploaded(&self, device: &DevicePrincipal, pending: Option<u32>) {
        self.metadata
            .succeeded(&device.tenant, &device.device_id, None, pending);
        let update = Update {
            last_sync_ms: Some(Utc::now().timestamp_millis()),
            pending_outgoing: pending,
            error: Some(String::new()),
            ..Update::default()
        };
        self.write(device, &update).await;
    }

    /// Reports a successful read or acknowledgement, which has recorded its status in Redis already.
    pub async fn received(&self, device: &DevicePrincipal, status: SyncStatus, pending: Option<u32>) {
        self.metadata
            .succeeded(&device.tenant, &device.device_id, Some(status), pending);
        if pending.is_some() {
            let update = Update {
                pending_outgoing: pending,
                ..Update::default()
            };
            self.write(device, &update).await;
        }
    }

    pub async fn failed(&self, device: &DevicePrincipal, error: String) {
        self.metadata.failed(&device.tenant, &device.device_id, error.clone());
        let update = Update {
            error: Some(error),
            ..Update::default()
        };
        self.write(device, &update).await;
    }

    /// A lost report is harmless, so a failure of Redis is not an error.
    async fn write(&self, device: &DevicePrincipal, update: &Update) {
        let write = device_state::write(&self.store, &device.tenant.name, &device.device_id, update);
        if !matches!(tokio::time::timeout(WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
            tracing::debug!(device = device.device_id, "cannot write the device's report to Redis");
        }
    }
}
