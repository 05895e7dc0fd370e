//! The replication slot: it holds the confirmed position, and one engine at a time can read from it.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use postgres_types::{PgLsn, ToSql, Type};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::postgres::{Database, Error, sql};

/// A slot is in danger when less than this part (1/n) of the WAL that it may retain is left.
const SAFE_SHARE: u64 = 5;

/// The slot's row in `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// The confirmed position.
    pub confirmed: PgLsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Why it is lost (Postgres 17 or newer): `wal_removed`, `idle_timeout`.
    pub lost_by: Option<String>,
}

/// The slot and the log at a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSample {
    /// The end of the log.
    pub wal_position: PgLsn,
    /// Postgres retains WAL for the slot from here on; `None` without a slot, and for a lost one.
    pub restart: Option<PgLsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` without a slot.
    pub wal_status: Option<String>,
    /// Bytes of WAL that can be written before the slot may be lost; `None` without a limit.
    pub safe_wal_bytes: Option<u64>,
    /// Whether the walsender works, and does not wait for this client or for the log: printing a large row takes long.
    pub is_working: bool,
    pub at: Instant,
}

impl SlotSample {
    /// Reads the row of the statement `heartbeat`.
    pub fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let safe: Option<i64> = row.try_get("safe_wal_size")?;
        Ok(Self {
            wal_position: row.try_get("wal_position")?,
            restart: row.try_get("restart_lsn")?,
            wal_status: row.try_get("wal_status")?,
            // Negative beyond the limit, while the slot is not yet lost.
            safe_wal_bytes: safe.map(|safe| u64::try_from(safe).unwrap_or(0)),
            is_working: row.try_get("is_working")?,
            at: Instant::now(),
        })
    }

    /// Bytes of WAL that Postgres retains for the slot.
    pub fn retained_wal_bytes(&self) -> Option<u64> {
        self.restart.map(|restart| self.bytes_behind(restart))
    }

    /// Distance of a position from the end of the log.
    pub fn bytes_behind(&self, position: PgLsn) -> u64 {
        u64::from(self.wal_position).saturating_sub(position.into())
    }

    /// Whether the slot may soon be lost.
    pub fn is_in_danger(&self) -> bool {
        let is_narrow = match (self.safe_wal_bytes, self.retained_wal_bytes()) {
            (Some(safe), Some(retained)) => safe < safe.saturating_add(retained) / SAFE_SHARE,
            _ => false,
        };
        is_narrow || self.wal_status.as_deref() == Some("unreserved")
    }
}

/// Reads the slot's state.
///
/// # Errors
/// Also when the slot uses another plugin than pgoutput.
pub async fn state(database: &Database, slot: &str) -> Result<Option<SlotState>> {
    let row = database
        .query_opt(&sql!("replication/slot_state"), &[(&slot, Type::NAME)])
        .await
        .context("cannot read the state of the replication slot")?;
    let Some(row) = row else { return Ok(None) };
    let plugin: Option<String> = row.try_get("plugin")?;
    if plugin.as_deref() != Some("pgoutput") {
        bail!("replication slot {slot} uses plugin {plugin:?}: drop it, or set `replication.slot` to another name");
    }
    let confirmed: Option<PgLsn> = row.try_get("confirmed_flush_lsn")?;
    Ok(Some(SlotState {
        confirmed: confirmed.unwrap_or(PgLsn::from(0)),
        wal_status: row.try_get("wal_status")?,
        lost_by: row.try_get("lost_by")?,
    }))
}

/// Bytes of WAL that Postgres retains for the slot; `None` without a slot.
pub async fn retained(database: &Database, slot: &str) -> Result<Option<u64>> {
    let row = database
        .query_opt(&sql!("replication/slot_retained"), &[(&slot, Type::NAME)])
        .await
        .context("cannot read the WAL that the replication slot retains")?;
    let bytes: Option<i64> = row.map(|row| row.try_get("bytes")).transpose()?.flatten();
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()))
}

/// How often the creation of a slot logs the transaction that it waits for.
const WAIT_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Creates the slot, as a failover slot where the server supports it (Postgres 17), so that standbys which synchronize
/// slots have it.
///
/// Postgres completes the creation when all transactions have ended that were open at its start (Postgres chapter
/// 49.2.3), however long that takes; meanwhile the oldest one is logged. Postgres completes it even if the caller is
/// cancelled.
///
/// # Errors
/// When Postgres refuses: `wal_level` is not `logical`, no slot is left, or the role may not replicate.
pub async fn create(database: &Database, slot: &str) -> Result<PgLsn> {
    let can_failover = database
        .query_opt(&sql!("replication/slot_can_failover"), &[])
        .await
        .context("cannot read the version of Postgres")?
        .map_or(Ok(false), |row| row.try_get("can_failover"))?;
    let statement = if can_failover {
        &sql!("replication/slot_create_failover")
    } else {
        &sql!("replication/slot_create")
    };
    // Sessions of the pool have a lock timeout.
    let dedicated = database.connect_dedicated().await?;
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&slot, Type::NAME)];
    let mut creating = pin!(dedicated.query_typed(statement, params));
    let rows = loop {
        tokio::select! {
            rows = &mut creating => break rows,
            () = tokio::time::sleep(WAIT_LOG_INTERVAL) => log_oldest_transaction(database, slot).await,
        }
    };
    let rows = rows.map_err(|error| {
        let fix = error.code().and_then(fix_of).unwrap_or_default();
        anyhow!(Error::from(error)).context(format!("cannot create the replication slot {slot}{fix}"))
    })?;
    let row = rows
        .first()
        .context("Postgres gave no row for the new replication slot")?;
    Ok(row.try_get("lsn")?)
}

/// What the operator can do about a refusal.
fn fix_of(code: &SqlState) -> Option<&'static str> {
    match code {
        code if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => {
            Some(": run `ALTER SYSTEM SET wal_level = 'logical'` and restart Postgres")
        }
        code if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            Some(": raise max_replication_slots, or drop a slot that `posduif slot list` reports as abandoned")
        }
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            Some(": the role needs the attribute REPLICATION (`ALTER ROLE ... REPLICATION`)")
        }
        _ => None,
    }
}

async fn log_oldest_transaction(database: &Database, slot: &str) {
    let oldest = database.query_opt(&sql!("replication/transaction_oldest"), &[]).await;
    let Ok(Some(oldest)) = oldest else { return };
    let (Ok(pid), Ok(seconds)) = (
        oldest.try_get::<_, i32>("pid"),
        oldest.try_get::<_, Option<f64>>("seconds"),
    ) else {
        return;
    };
    tracing::warn!(
        slot,
        pid,
        open_for_seconds = seconds,
        "replication slot creation waits for open transactions to end; this is the oldest"
    );
}

/// Drops the slot, which must not be in use.
pub async fn drop(database: &Database, slot: &str) -> Result<()> {
    database
        .query(&sql!("replication/slot_drop"), &[(&slot, Type::NAME)])
        .await
        .with_context(|| format!("cannot drop the replication slot {slot}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wal_status: &str, retained: u64, safe: Option<u64>) -> SlotSample {
        SlotSample {
            wal_position: (1000 + retained).into(),
            restart: Some(1000.into()),
            wal_status: Some(wal_status.to_owned()),
            safe_wal_bytes: safe,
            is_working: false,
            at: Instant::now(),
        }
    }

    #[test]
    fn slot_is_in_danger_with_little_wal_left_or_unreserved() {
        assert!(!sample("reserved", 0, Some(100)).is_in_danger());
        assert!(!sample("extended", 80, Some(20)).is_in_danger());
        assert!(sample("extended", 81, Some(19)).is_in_danger());
        assert!(sample("unreserved", 120, Some(0)).is_in_danger());
        assert!(!sample("extended", 1 << 40, None).is_in_danger(), "no limit");
    }

    #[test]
    fn distances_never_go_below_zero() {
        let sample = sample("reserved", 50, None);
        assert_eq!(sample.retained_wal_bytes(), Some(50));
        assert_eq!(
            (sample.bytes_behind(1040.into()), sample.bytes_behind(2000.into())),
            (10, 0)
        );
    }
}
