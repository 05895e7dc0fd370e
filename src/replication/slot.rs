//! The slot: where Postgres remembers how far we are, and the lock that makes one engine the leader.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use postgres_types::{PgLsn, ToSql, Type};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::postgres::{Database, Error};

/// A slot in danger is reported when less than this part of what it may hold back is left.
const SAFE_SHARE: u64 = 5;

/// What Postgres says of our slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Everything before this is confirmed.
    pub confirmed: PgLsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Why it is lost, where Postgres tells (17 or newer): `wal_removed`, `idle_timeout`.
    pub lost_by: Option<String>,
}

/// What a heartbeat saw of the slot and of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Where the log ended.
    pub wal_position: PgLsn,
    /// From where on Postgres keeps WAL for the slot; `None` without a slot, and for a lost one.
    pub restart: Option<PgLsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` without a slot.
    pub wal_status: Option<String>,
    /// Bytes of WAL that can be written before the slot may be lost; `None` when there is no bound.
    pub safe_wal_bytes: Option<u64>,
    /// When this was.
    pub at: Instant,
}

impl Sample {
    /// Reads the row of `sql/heartbeat.sql`.
    ///
    /// # Errors
    /// When a column is missing, or of another type.
    pub fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let safe: Option<i64> = row.try_get("safe_wal_size")?;
        Ok(Self {
            wal_position: row.try_get("wal_position")?,
            restart: row.try_get("restart_lsn")?,
            wal_status: row.try_get("wal_status")?,
            // Beyond the bound, but not yet lost, it is negative.
            safe_wal_bytes: safe.map(|safe| u64::try_from(safe).unwrap_or(0)),
            at: Instant::now(),
        })
    }

    /// Bytes of WAL that Postgres keeps for the slot.
    pub fn retained_wal_bytes(&self) -> Option<u64> {
        self.restart.map(|restart| self.behind(restart))
    }

    /// How many bytes of WAL a position is behind the end of the log.
    pub fn behind(&self, position: PgLsn) -> u64 {
        u64::from(self.wal_position).saturating_sub(position.into())
    }

    /// Whether the slot may be lost soon.
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
/// When Postgres does not answer, or the slot is not one of ours.
pub async fn state(database: &Database, slot: &str) -> Result<Option<SlotState>> {
    let row = database
        .query_opt(include_str!("../../sql/slot_state.sql"), &[(&slot, Type::NAME)])
        .await
        .context("cannot read the slot's state")?;
    let Some(row) = row else { return Ok(None) };
    let plugin: Option<String> = row.get("plugin");
    if plugin.as_deref() != Some("pgoutput") {
        bail!("slot {slot} uses the plugin {plugin:?}: drop it, or set `replication.slot` to another name");
    }
    let confirmed: Option<PgLsn> = row.get("confirmed_flush_lsn");
    Ok(Some(SlotState {
        confirmed: confirmed.unwrap_or(PgLsn::from(0)),
        wal_status: row.get("wal_status"),
        lost_by: row.get("lost_by"),
    }))
}

/// While the slot is being made, it is said this often what it waits for.
const WAITING: Duration = Duration::from_secs(5);

/// Makes the slot, as a failover slot where the server can (Postgres 17), so that standbys which synchronize slots have it.
///
/// Postgres makes it once all transactions have ended that were open when it began (Postgres chapter 49.2.3), however long
/// that takes; the log says which is the oldest. Once begun it is made, also when the caller has gone.
///
/// # Errors
/// When Postgres refuses: `wal_level` is not `logical`, no slot is left, or the role may not replicate.
pub async fn create(database: &Database, slot: &str) -> Result<PgLsn> {
    let can_failover = database
        .query_opt(include_str!("../../sql/slot_can_failover.sql"), &[])
        .await
        .context("cannot ask for the version of Postgres")?
        .is_some_and(|row| row.get("can_failover"));
    let statement = if can_failover {
        include_str!("../../sql/slot_create_failover.sql")
    } else {
        include_str!("../../sql/slot_create.sql")
    };
    // Statements of the pool wait for locks for so long only.
    let alone = database.connect_dedicated().await?;
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&slot, Type::NAME)];
    let mut making = pin!(alone.query_typed(statement, params));
    let rows = loop {
        tokio::select! {
            rows = &mut making => break rows,
            () = tokio::time::sleep(WAITING) => tell_what_is_open(database, slot).await,
        }
    };
    let rows = rows.map_err(|error| {
        let fix = error.code().and_then(fix_of).unwrap_or_default();
        anyhow!(Error::from(error)).context(format!("cannot create the replication slot {slot}{fix}"))
    })?;
    let row = rows.first().context("no answer to the slot's creation")?;
    Ok(row.get("lsn"))
}

/// What to do about a refusal.
fn fix_of(code: &SqlState) -> Option<&'static str> {
    match code {
        code if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => {
            Some(": run `ALTER SYSTEM SET wal_level = 'logical'` and restart Postgres")
        }
        code if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            Some(": raise max_replication_slots, or drop a slot that `posduif slot list` calls abandoned")
        }
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            Some(": the role needs REPLICATION, `ALTER ROLE ... REPLICATION`")
        }
        _ => None,
    }
}

async fn tell_what_is_open(database: &Database, slot: &str) {
    let oldest = database
        .query_opt(include_str!("../../sql/transaction_oldest.sql"), &[])
        .await;
    let Ok(Some(oldest)) = oldest else { return };
    let (pid, seconds): (i32, Option<f64>) = (oldest.get("pid"), oldest.get("seconds"));
    tracing::warn!(
        slot,
        pid,
        open_for_seconds = seconds,
        "the replication slot is made once the transactions that are open have ended; this is the oldest"
    );
}

/// Drops the slot, which must not be in use.
///
/// # Errors
/// When Postgres refuses.
pub async fn drop(database: &Database, slot: &str) -> Result<()> {
    database
        .query(include_str!("../../sql/slot_drop.sql"), &[(&slot, Type::NAME)])
        .await
        .with_context(|| format!("cannot drop the replication slot {slot}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wal_status: &str, retained: u64, safe: Option<u64>) -> Sample {
        Sample {
            wal_position: (1000 + retained).into(),
            restart: Some(1000.into()),
            wal_status: Some(wal_status.to_owned()),
            safe_wal_bytes: safe,
            at: Instant::now(),
        }
    }

    #[test]
    fn a_slot_is_in_danger_when_little_is_left_or_its_wal_may_go() {
        assert!(!sample("reserved", 0, Some(100)).is_in_danger());
        assert!(!sample("extended", 80, Some(20)).is_in_danger());
        assert!(sample("extended", 81, Some(19)).is_in_danger());
        assert!(sample("unreserved", 120, Some(0)).is_in_danger());
        assert!(!sample("extended", 1 << 40, None).is_in_danger(), "no bound, no danger");
    }

    #[test]
    fn distances_are_never_below_zero() {
        let sample = sample("reserved", 50, None);
        assert_eq!(sample.retained_wal_bytes(), Some(50));
        assert_eq!((sample.behind(1040.into()), sample.behind(2000.into())), (10, 0));
    }
}
