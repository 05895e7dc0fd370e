//! The slot: where Postgres remembers how far we are, and the lock that makes one engine the leader.

use anyhow::{Context, Result, bail};
use postgres_types::{PgLsn, Type};

use crate::database::Database;

/// What Postgres says of our slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Everything before this is confirmed.
    pub confirmed: PgLsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
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
    }))
}

/// Makes the slot.
///
/// # Errors
/// When Postgres refuses: `wal_level` is not `logical`, no slot is left, or the role may not replicate.
pub async fn create(database: &Database, slot: &str) -> Result<PgLsn> {
    let rows = database
        .query(include_str!("../../sql/slot_create.sql"), &[(&slot, Type::NAME)])
        .await
        .with_context(|| {
            format!(
                "cannot create the replication slot {slot}; needed are wal_level=logical, a free slot \
                 (max_replication_slots) and a role with REPLICATION"
            )
        })?;
    let row = rows.first().context("no answer to the slot's creation")?;
    Ok(row.get("lsn"))
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
