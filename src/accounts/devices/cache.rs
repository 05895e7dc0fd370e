//! The cache of authenticated devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use uuid::Uuid;

use super::authentication::DevicePrincipal;
use super::token::TokenHash;
use crate::telemetry::metrics::CacheUse;

/// Most cached principals, unless twice `server.connections_max` is more.
const ENTRIES_MAX: u64 = 100_000;

/// What a device presents.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Proof {
    pub(super) hash: TokenHash,
    pub(super) device_id: String,
}

/// A device to which a session is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct BoundDevice {
    pub(super) tenant: String,
    pub(super) user: Uuid,
    pub(super) device_id: String,
}

/// Results of checks, and the changes since. Each result has the number of the last change before its check: a later change
/// of the same user invalidates it.
#[derive(Debug)]
pub(super) struct PrincipalCache {
    principals: Cache<Proof, (Arc<DevicePrincipal>, u64)>,
    /// Usable devices to which sessions are bound.
    bound: Cache<BoundDevice, u64>,
    /// The last change of each tenant's user, kept for longer than a result.
    changes: Cache<(String, Uuid), u64>,
    /// Counts changes.
    sequence: AtomicU64,
    uses: CacheUse,
}

impl PrincipalCache {
    pub(super) fn new(lifetime: Duration, connections_max: usize, uses: CacheUse) -> Self {
        let principals: Cache<Proof, (Arc<DevicePrincipal>, u64)> = Cache::builder()
            .max_capacity(ENTRIES_MAX.max(2 * connections_max as u64))
            .time_to_live(lifetime)
            .build();
        let counted = principals.clone();
        uses.set_size(move || counted.entry_count());
        Self {
            principals,
            uses,
            bound: Cache::builder()
                .max_capacity(ENTRIES_MAX)
                .time_to_live(lifetime)
                .build(),
            changes: Cache::builder().time_to_live(2 * lifetime).build(),
            sequence: AtomicU64::new(0),
        }
    }

    pub(super) async fn get(&self, proof: &Proof) -> Option<Arc<DevicePrincipal>> {
        let found = self.find(proof).await;
        self.uses.lookup(found.is_some());
        found
    }

    async fn find(&self, proof: &Proof) -> Option<Arc<DevicePrincipal>> {
        let (principal, checked) = self.principals.get(proof).await?;
        let is_current = self.is_current(&principal.tenant.name, principal.user_id, checked);
        is_current.await.then_some(principal)
    }

    pub(super) async fn insert(&self, proof: Proof, principal: Arc<DevicePrincipal>, sequence: u64) {
        self.principals.insert(proof, (principal, sequence)).await;
    }

    pub(super) async fn is_bound(&self, device: &BoundDevice) -> bool {
        match self.bound.get(device).await {
            Some(checked) => self.is_current(&device.tenant, device.user, checked).await,
            None => false,
        }
    }

    pub(super) async fn insert_bound(&self, device: BoundDevice, sequence: u64) {
        self.bound.insert(device, sequence).await;
    }

    /// Whether no change of the user came after the check with this number.
    async fn is_current(&self, tenant: &str, user: Uuid, checked: u64) -> bool {
        let changed = self.changes.get(&(tenant.to_owned(), user)).await;
        changed.is_none_or(|changed| changed <= checked)
    }

    /// The number of the last change.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::SeqCst)
    }

    pub(super) async fn invalidate(&self, tenant: &str, user: Uuid) {
        let change = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        self.changes.insert((tenant.to_owned(), user), change).await;
    }

    pub(super) fn invalidate_all(&self) {
        self.principals.invalidate_all();
        self.bound.invalidate_all();
    }
}
