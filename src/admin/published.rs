//! Waiting until a position in the WAL is published.

use std::time::Duration;

use postgres_types::PgLsn;
use tokio::time::Instant;

use crate::config::lane::LaneName;
use crate::contract::lua;
use crate::postgres::{Database, tenants};
use crate::redis::store::{Error, Store};

/// Delay between two reads of the checkpoint.
const INTERVAL: Duration = Duration::from_millis(50);

/// How far publishing is on its way to a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Commit of the transaction that the last entry belongs to.
    pub commit_lsn: PgLsn,
    /// Changes of it that are published; 0 as long as it lies before the awaited position.
    pub ordinal: u64,
}

/// Waits until everything up to an LSN is published, and reports each read of the checkpoint to `progress`.
///
/// # Errors
/// [`Error::NotPublished`] when publishing makes no progress for `timeout`.
pub async fn wait(
    store: &Store,
    lsn: PgLsn,
    timeout: Duration,
    mut progress: impl FnMut(Reached),
) -> Result<(), Error> {
    let mut last = None;
    let mut deadline = Instant::now() + timeout;
    loop {
        let published = store.published().await?;
        // Beyond the LSN: then the EXEC that published it is over, too.
        if published.end_lsn.is_some_and(|end| end > lsn) {
            return Ok(());
        }
        if let Some((position, commit_lsn)) = published.position {
            progress(Reached {
                commit_lsn,
                // A commit's record begins where its last message ends.
                ordinal: if commit_lsn >= lsn { position.seq } else { 0 },
            });
        }
        // Inside a large transaction only the position moves.
        let position = published.position.map(|(position, _)| position);
        let now = Instant::now();
        if last.replace(position) != Some(position) {
            deadline = now + timeout;
        } else if now > deadline {
            return Err(Error::NotPublished);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until the drop of a tenant, or its move to another lane, is published in the lane that it has left, then removes every
/// key of the tenant there, as long as there is no tenant of that name in it again. Returns their number, which `progress`
/// receives as it grows.
///
/// # Errors
/// [`Error::NotPublished`] when publishing makes no progress for `timeout`.
pub async fn remove_tenant(
    database: &Database,
    (store, lane): (&Store, &LaneName),
    tenant: &str,
    dropped: PgLsn,
    timeout: Duration,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<u64> {
    wait(store, dropped, timeout, |_| {}).await?;
    let pattern = store.keys().of_tenant(tenant);
    let (mut count, mut cursor) = (0, 0_u64);
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg(&["MATCH", &pattern, "COUNT", "1000"])
            .query_async(&mut store.connection())
            .await?;
        let listed = tenants::registered(database, tenant).await?;
        if listed.is_some_and(|listed| listed.lane == lane.as_str()) {
            return Ok(count);
        }
        if !keys.is_empty() {
            // The next tenant of this name may come in between.
            let unlinked: i64 = redis::cmd("EVAL")
                .arg(lua::REMOVE_KEYS)
                .arg(keys.len() + 1)
                .arg(store.keys().meta(tenant))
                .arg(keys)
                .query_async(&mut store.connection())
                .await?;
            let Ok(unlinked) = u64::try_from(unlinked) else {
                return Ok(count);
            };
            count += unlinked;
            progress(count);
        }
        cursor = next;
        if cursor == 0 {
            return Ok(count);
        }
    }
}
