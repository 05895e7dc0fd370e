//! Reads and writes the state of each device, one Redis hash a device.
//!
//! It is in Redis so that a poll needs no Postgres statement; the [`super::metadata`] writer copies the times to Postgres in
//! bulk. Losing it only slows trimming and leaves statuses `pending_sync` a little longer.

use redis::AsyncCommands;

pub use crate::contract::device_state::{DeliveredBatch, DeviceState, SyncStatus, Update};

use crate::contract::device_state::LIFETIME_SECONDS;
use crate::redis::store::{Error, Store};

/// Batches that can still be acknowledged by their `sync_timestamp`.
const GIVEN_MAX: usize = 4;

/// Reads a device's state.
pub async fn read(store: &Store, tenant: &str, device_id: &str) -> Result<DeviceState, Error> {
    let key = store.keys().device(tenant, device_id);
    Ok(DeviceState::parse(&store.connection().hgetall(key).await?))
}

/// Adds a batch to those delivered and drops the oldest.
pub fn with_given(mut given: Vec<DeliveredBatch>, new: DeliveredBatch) -> Vec<DeliveredBatch> {
    given.push(new);
    let excess = given.len().saturating_sub(GIVEN_MAX);
    given.drain(..excess);
    given
}

/// Writes what changed.
pub async fn write(store: &Store, tenant: &str, device_id: &str, update: &Update) -> Result<(), Error> {
    let fields = update.fields();
    if fields.is_empty() {
        return Ok(());
    }
    let key = store.keys().device(tenant, device_id);
    let mut pipe = redis::pipe();
    pipe.hset_multiple(&key, &fields)
        .ignore()
        .expire(&key, LIFETIME_SECONDS)
        .ignore();
    let () = pipe.query_async(&mut store.connection()).await?;
    Ok(())
}
