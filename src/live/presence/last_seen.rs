//! When users and devices were last seen, carried to Postgres in bulk: however often somebody comes and goes, it is one
//! row an interval, and one process at a time writes.
//!
//! It changes nothing that rules watch, so it is in the tenant's `changes` but in nobody's stream.

use std::time::Duration;

use chrono::{DateTime, Utc};
use postgres_types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config;
use crate::core::tenant::Tenant;
use crate::live::presence::Error;
use crate::live::presence::store::{PresenceStore, Seen};
use crate::postgres::tenants;
use crate::postgres::{Database, sql};

/// Rows in one statement.
const ROWS_MAX: usize = 1000;

/// Statements for one tenant in a round; what is left waits for the next.
const STATEMENTS_MAX: usize = 100;

/// Writes what has gathered, again and again until `stop`.
pub(crate) async fn run(
    store: &PresenceStore,
    database: &Database,
    settings: &config::Presence,
    stop: &CancellationToken,
) {
    let interval = Duration::from_secs(settings.last_seen_interval_seconds);
    // Several processes take turns, so none comes exactly when another's turn ends.
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let round = async {
            match store.takes_turn(interval.mul_f64(0.9)).await {
                Ok(true) => carry(store, database).await,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "last seen times wait"),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = round => {}
        }
    }
}

async fn carry(store: &PresenceStore, database: &Database) {
    let tenants = match tenants::list(database).await {
        Ok(tenants) => tenants,
        Err(error) => {
            tracing::warn!(%error, "last seen times are not written; the next round does it");
            return;
        }
    };
    for tenant in tenants {
        if let Err(cause) = carry_tenant(store, database, &tenant).await {
            tracing::warn!(
                tenant = tenant.name,
                cause = format!("{cause:#}"),
                "last seen times are not written; the next round does it"
            );
        }
    }
}

async fn carry_tenant(store: &PresenceStore, database: &Database, tenant: &Tenant) -> anyhow::Result<()> {
    let mut written: Vec<Seen> = Vec::new();
    for _ in 0..STATEMENTS_MAX {
        let seen = store.unwritten(&tenant.name, &written, ROWS_MAX).await?;
        if seen.is_empty() {
            return Ok(());
        }
        write(database, tenant, &seen).await?;
        written = seen;
    }
    store
        .unwritten(&tenant.name, &written, 0)
        .await
        .map_err(Error::into)
        .map(drop)
}

async fn write(database: &Database, tenant: &Tenant, seen: &[Seen]) -> anyhow::Result<()> {
    let users: Vec<Uuid> = seen.iter().map(|seen| seen.user).collect();
    let devices: Vec<Option<&str>> = seen.iter().map(|seen| seen.device.as_deref()).collect();
    let times: Vec<DateTime<Utc>> = seen
        .iter()
        .map(|seen| DateTime::from_timestamp_millis(seen.at_ms).unwrap_or_default())
        .collect();
    database
        .query(
            &sql!("accounts/last_seen_write", tenant),
            &[
                (&users, Type::UUID_ARRAY),
                (&devices, Type::TEXT_ARRAY),
                (&times, Type::TIMESTAMPTZ_ARRAY),
            ],
        )
        .await?;
    Ok(())
}
