//! Revocation of devices: invalidation of cached principals by this process and by the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, broadcast};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::authentication::Devices;
use super::device;
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::live::tail::DeviceChange;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, sql};

/// Interval of the polls for the visibility of a transaction.
const VISIBLE_POLL: Duration = Duration::from_millis(10);

/// How long a snapshot is reused for the transactions that it sees.
const SNAPSHOT_LIFETIME: Duration = Duration::from_secs(1);

/// How long the visibility of a transaction is polled. Beyond it `auth.device_cache_seconds` is the bound.
const VISIBLE_WAIT: Duration = Duration::from_secs(2);

/// Whether statements that begin now see a transaction: the log can deliver a commit before Postgres shows it. Cloning shares
/// the last snapshot, because one transaction may change many devices.
#[derive(Debug, Clone)]
pub(super) struct VisibilityBarrier {
    database: Database,
    last: Arc<Mutex<Option<(Instant, Snapshot)>>>,
}

impl VisibilityBarrier {
    pub(super) fn new(database: Database) -> Self {
        Self {
            database,
            last: Arc::default(),
        }
    }

    async fn sees(&self, xid: u32) -> Result<bool, Error> {
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = &*last {
            let is_seen = snapshot.sees_all(xid, xid);
            // What is visible stays visible, but a restore reuses transaction ids.
            let lifetime = if is_seen { SNAPSHOT_LIFETIME } else { VISIBLE_POLL };
            if at.elapsed() < lifetime {
                return Ok(is_seen);
            }
        }
        let row = self
            .database
            .query_opt(&sql!("postgres/current_snapshot"), &[])
            .await?
            .ok_or_else(|| Error::Internal("pg_current_snapshot() returned no row".into()))?;
        let Some(snapshot) = Snapshot::parse(row.try_get("snapshot")?) else {
            return Ok(true);
        };
        let is_seen = snapshot.sees_all(xid, xid);
        *last = Some((Instant::now(), snapshot));
        Ok(is_seen)
    }

    async fn wait(&self, xid: u32) {
        let poll = async {
            while !matches!(self.sees(xid).await, Ok(true)) {
                tokio::time::sleep(VISIBLE_POLL).await;
            }
        };
        if tokio::time::timeout(VISIBLE_WAIT, poll).await.is_err() {
            tracing::debug!(xid, "transaction of a device change not visible yet");
        }
    }
}

impl Devices {
    /// Invalidates the cache by the changes of the log until `stop`, whichever node made them.
    pub async fn follow(self, mut changes: broadcast::Receiver<DeviceChange>, stop: CancellationToken) {
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => change,
            };
            match change {
                Ok(DeviceChange::One { tenant, user, xid }) => {
                    self.invalidate(&tenant, user).await;
                    if self.cache.is_some() {
                        // A check between the log's delivery and the commit's visibility has cached the old state.
                        self.await_visible(xid).await;
                        self.invalidate(&tenant, user).await;
                    }
                }
                // Any device may be among the missed changes.
                Ok(DeviceChange::Any) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    if let Some(cache) = &self.cache {
                        cache.invalidate_all();
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Whether checks that begin now see the effects of this transaction.
    pub async fn sees(&self, xid: u32) -> Result<bool, Error> {
        self.barrier.sees(xid).await
    }

    /// Waits until [`Devices::sees`], for a bounded time.
    pub(crate) async fn await_visible(&self, xid: u32) {
        self.barrier.wait(xid).await;
    }

    /// Invalidates cached checks of a user's devices.
    pub(super) async fn invalidate(&self, tenant: &str, user: Uuid) {
        if let Some(cache) = &self.cache {
            cache.invalidate(tenant, user).await;
        }
    }

    /// Revokes a device. This process refuses its token at once, other nodes when the log delivers the change. Returns its
    /// user, or `None` when there is no such device or it is revoked already.
    pub async fn revoke(&self, tenant: &Tenant, device_id: &str, by: &Actor) -> Result<Option<Uuid>, Error> {
        let user = device::revoke_by(by, &self.database, tenant, device_id).await?;
        if let Some(user) = user {
            self.invalidate_written(&tenant.name, user).await;
        }
        Ok(user)
    }

    /// This process has changed the tokens of a user's devices.
    pub(in crate::accounts) async fn invalidate_written(&self, tenant: &str, user: Uuid) {
        self.invalidate(tenant, user).await;
        self.users.invalidate(tenant, user);
    }
}
