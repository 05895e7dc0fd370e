//! Statuses of messages: an acknowledgement changes `pending_sync` to `synced` in Postgres.
//!
//! Rows take precedence. An `UPDATE` is many times as expensive as the delivery of a row, and the log carries it to the
//! sender. So while a device catches up, its acknowledgements only advance its own position, and the statuses are flushed
//! in bulk when it reaches the end, or after a few seconds. Their position (`settled`) is part of the device's state: the
//! streams keep what is not flushed, and if this process ends, the device's next request continues.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::device_state::{self, Update};
use super::incoming::Error;
use crate::accounts::devices::DevicePrincipal;
use crate::contract::entry::Entry;
use crate::contract::json::members;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::feature;
use crate::messages::{Messages, Status};
use crate::redis::store::Store;

/// Messages updated in one statement, and entries read for it.
const CHUNK: usize = 1000;

/// How long statuses wait for the end of a catch-up.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Devices with pending statuses in this process; others wait for their next request.
const BEHIND_MAX: usize = 10_000;

/// Devices flushed concurrently; each needs a connection to Postgres.
const AT_ONCE_MAX: usize = 2;

/// Tenant and device.
type Key = (String, String);

/// Flushes statuses. Clones share the pending ones.
#[derive(Debug, Clone)]
pub struct Statuses {
    messages: Messages,
    store: Store,
    /// Devices with pending statuses, each with a signal to flush them now.
    behind: Arc<Mutex<HashMap<Key, Arc<Notify>>>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Statuses {
    /// Background flushes end with `stop`.
    pub fn new(messages: Messages, store: Store, stop: CancellationToken) -> Self {
        Self {
            messages,
            store,
            behind: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            stop,
        }
    }

    /// Marks messages as received by the device's user.
    pub async fn mark(&self, device: &DevicePrincipal, ids: &[Uuid]) -> Result<(), feature::Error> {
        for chunk in ids.chunks(CHUNK) {
            self.messages.mark_synced(&device.tenant, device.user_id, chunk).await?;
        }
        Ok(())
    }

    /// Flushes the statuses of a range of the inbox, or of its first chunk; returns the position that they have reached.
    pub async fn flush(&self, device: &DevicePrincipal, after: StreamId, until: StreamId) -> Result<StreamId, Error> {
        let inbox = self
            .store
            .inbox(&device.tenant.name, device.user_id, after, until, CHUNK);
        let entries = inbox.await?;
        let ids: Vec<Uuid> = entries
            .iter()
            .filter_map(|entry| pending(entry, device.user_id))
            .collect();
        self.mark(device, &ids).await?;
        Ok(match entries.last() {
            Some(last) if entries.len() == CHUNK => last.id,
            _ => until,
        })
    }

    /// Schedules a background flush of the device's statuses: now if `is_end`, else after a while.
    pub fn follow(&self, device: &DevicePrincipal, is_end: bool) {
        let key = (device.tenant.name.clone(), device.device_id.clone());
        let mut behind = self.behind.lock();
        if behind.len() >= BEHIND_MAX && !behind.contains_key(&key) {
            return;
        }
        let end = behind.entry(key.clone()).or_insert_with(|| {
            let end = Arc::new(Notify::new());
            let (statuses, device, waiting) = (self.clone(), device.clone(), end.clone());
            tokio::spawn(async move {
                let stop = statuses.stop.clone();
                tokio::select! {
                    () = statuses.wait_and_flush(&key, &device, &waiting) => {}
                    () = stop.cancelled() => {}
                }
            });
            end
        });
        if is_end {
            end.notify_one();
        }
    }

    async fn wait_and_flush(&self, key: &Key, device: &DevicePrincipal, end: &Notify) {
        tokio::time::timeout(FLUSH_TIMEOUT, end.notified()).await.ok();
        // Before the state is read, so that a later acknowledgement schedules another flush.
        self.behind.lock().remove(key);
        let Ok(_permit) = self.permits.acquire().await else {
            return;
        };
        if let Err(error) = self.flush_all(device).await {
            tracing::warn!(
                device = device.device_id,
                tenant = device.tenant.name,
                cause = crate::telemetry::chain(&error),
                "cannot flush statuses; the device's next request retries"
            );
        }
    }

    async fn flush_all(&self, device: &DevicePrincipal) -> Result<(), Error> {
        let (tenant, id) = (&device.tenant.name, &device.device_id);
        while let Some((after, until)) = device_state::read(&self.store, tenant, id).await?.behind() {
            let update = Update {
                settled: Some(self.flush(device, after, until).await?),
                ..Update::default()
            };
            device_state::write(&self.store, tenant, id, &update).await?;
        }
        Ok(())
    }
}

/// The message of an entry, if it is addressed to the user and waits for an acknowledgement.
fn pending(entry: &Entry, user: Uuid) -> Option<Uuid> {
    if entry.table.as_bytes() != b"messages" || !matches!(entry.op, Operation::Insert | Operation::Update) {
        return None;
    }
    let (mut id, mut recipient, mut status) = (None, None, None);
    for (name, value) in members(entry.row.as_ref()?.as_bytes()) {
        let text = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        match name {
            b"id" => id = text,
            b"recipient_id" => recipient = text,
            b"status" => status = text,
            _ => {}
        }
    }
    let is_pending = status? == Status::PendingSync.as_str().as_bytes()
        && Uuid::try_parse_ascii(recipient?).is_ok_and(|recipient| recipient == user);
    is_pending.then(|| Uuid::try_parse_ascii(id?).ok()).flatten()
}
