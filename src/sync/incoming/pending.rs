//! How much is pending for a device.

use std::collections::HashSet;

use postgres_types::Type;
use uuid::Uuid;

use super::{Error, Incoming};
use crate::accounts::devices::DevicePrincipal;
use crate::accounts::loader::{Found, TenantLoader};
use crate::core::tenant::Tenant;
use crate::postgres::{Database, sql};
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::store;
use crate::sync::device_state;
use crate::sync::range::FIRST_ENTRIES;

/// Entries beyond which pending rows are no longer counted exactly.
const PENDING_MAX: usize = 1000;

/// Counts the pending messages of users whose devices have never acknowledged anything.
pub fn never_synced(database: Database) -> TenantLoader<i64> {
    TenantLoader::new(database, pending_counts)
}

async fn pending_counts(database: Database, tenant: Tenant, users: Vec<Uuid>) -> Found<Uuid, i64> {
    let statement = &sql!("sync/messages_pending_counts", tenant);
    let rows = database.query(statement, &[(&users, Type::UUID_ARRAY)]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("recipient_id")?, row.try_get("count")?)))
        .collect()
}

impl Incoming {
    /// The number of rows pending for a device, counted up to a limit.
    pub async fn pending(&self, device: &DevicePrincipal) -> Result<usize, Error> {
        let tenant = &device.tenant;
        let state = device_state::read(&self.store, &tenant.name, &device.device_id).await?;
        let Some((epoch, acknowledged)) = state.acknowledged else {
            let count = self.never_synced.load(tenant, device.user_id).await?;
            return Ok(usize::try_from(count.unwrap_or(0)).unwrap_or(0));
        };
        let standing = self.store.standing(&tenant.name, device.user_id).await?;
        let mut place = ReadPosition {
            epoch,
            generation: standing.generation,
            // Both are of one Redis.
            term: standing.view.term,
            position: acknowledged,
            resets_covered: None,
            is_incomplete: false,
        };
        let mut rows = HashSet::new();
        let mut entries = 0;
        while entries < PENDING_MAX {
            let read = self.store.read(&tenant.name, device.user_id, place, FIRST_ENTRIES);
            let slice = match read.await {
                Ok(Read::Slice(slice)) => slice,
                // A snapshot is pending: at least one row.
                Ok(Read::Broken(_)) | Err(store::Error::Stopped) => return Ok(rows.len().max(1)),
                // Nothing can be delivered.
                Err(store::Error::Paused) => return Ok(0),
                Err(error) => return Err(error.into()),
            };
            entries += slice.entries.len();
            rows.extend(slice.entries.iter().map(|entry| (entry.table.clone(), entry.row_id())));
            if !slice.has_more {
                break;
            }
            (place.position, place.term) = (slice.end, slice.view.term);
        }
        Ok(rows.len())
    }
}
