//! From `pending_sync` to `synced`: what an acknowledgement changes in Postgres.
//!
//! Rows come first. An `UPDATE` costs many times what it costs to give a row, and the log carries it on to the sender; so
//! while a device catches up on much, its acknowledgements only move its own place, and the statuses follow in bulk when
//! it has come to the end, at the latest after some seconds. How far they have come (`settled`) is kept with the device's
//! state: the streams keep what is behind, and if this process ends, the device's next request finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::device_state::{self, Update};
use super::incoming::Error;
use crate::accounts::devices::DevicePrincipal;
use crate::contract::entry::{Entry, Op};
use crate::contract::json::members;
use crate::core::position::StreamId;
use crate::feature;
use crate::messages::{Messages, Status};
use crate::redis::store::Store;

/// Messages whose statuses move in one statement, and entries looked at for it.
const CHUNK: usize = 1000;

/// How long statuses wait at most for the end of a catch-up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Devices whose statuses may be behind at this node; others wait for their next request.
const BEHIND_MAX: usize = 10_000;

/// Devices whose statuses move on at once; each needs a connection to Postgres.
const AT_ONCE_MAX: usize = 2;

/// Tenant and device.
type Key = (String, String);

/// Moves statuses on. Cloning shares what is under way.
#[derive(Debug, Clone)]
pub struct Statuses {
    messages: Messages,
    store: Store,
    /// Devices whose statuses wait, each with what ends the waiting.
    behind: Arc<Mutex<HashMap<Key, Arc<Notify>>>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Statuses {
    /// Nothing under way; what will be ends with `stop`.
    pub fn new(messages: Messages, store: Store, stop: CancellationToken) -> Self {
        Self {
            messages,
            store,
            behind: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            stop,
        }
    }

    /// Notes that the device's user has these messages.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn mark(&self, device: &DevicePrincipal, ids: &[Uuid]) -> Result<(), feature::Error> {
        for chunk in ids.chunks(CHUNK) {
            self.messages.mark_synced(&device.tenant, device.user_id, chunk).await?;
        }
        Ok(())
    }

    /// Moves the statuses of a stretch of the inbox on, or of its first part; gives how far they have come.
    ///
    /// # Errors
    /// See [`Error`].
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

    /// Statuses of the device are behind its place: they follow when `is_end`, or after a while.
    pub fn follow(&self, device: &DevicePrincipal, is_end: bool) {
        let key = (device.tenant.name.clone(), device.device_id.clone());
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
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
        let _either = tokio::time::timeout(PATIENCE, end.notified()).await;
        // Before the state is read, so that who moves the place meanwhile begins anew.
        self.behind.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let Ok(_permit) = self.permits.acquire().await else {
            return;
        };
        if let Err(error) = self.flush_all(device).await {
            tracing::warn!(
                device = device.device_id,
                tenant = device.tenant.name,
                cause = crate::telemetry::chain(&error),
                "statuses stay behind until the device's next request"
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

/// The message that an entry brought to a user, if it waits for its acknowledgement.
fn pending(entry: &Entry, user: Uuid) -> Option<Uuid> {
    if entry.table.as_bytes() != b"messages" || !matches!(entry.op, Op::Insert | Op::Update) {
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
