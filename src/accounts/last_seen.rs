//! Copies the times at which users and devices were last seen from presence to Postgres, in bulk: each user is at most one
//! row an interval, and one process at a time writes.
//!
//! No rule watches these columns, so the change is in the tenant's `changes` but in no inbox.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use postgres_types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::config::lane::LaneName;
use crate::core::tenant::Tenant;
use crate::live::presence::{LastSeen, Presence};
use crate::postgres::{Database, sql, tenants};

/// Rows in one statement.
const ROWS_MAX: usize = 1000;

/// Statements for one tenant in a round; what is left waits for the next.
const STATEMENTS_MAX: usize = 100;

/// Writes the times of the tenants of a lane in each interval until `stop`.
pub async fn run(presence: Presence, database: Database, config: Arc<Config>, stop: CancellationToken) {
    let interval = Duration::from_secs(config.presence.last_seen_interval_seconds);
    // Each interval belongs to one process; a shorter turn keeps the others from starting just before it ends.
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let round = async {
            match presence.claim_last_seen(interval.mul_f64(0.9)).await {
                Ok(true) => write_all(&presence, &database, &config.lane).await,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "last seen times not read; retrying in the next round"),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = round => {}
        }
    }
}

async fn write_all(presence: &Presence, database: &Database, lane: &LaneName) {
    let tenants = match tenants::list_of(database, lane).await {
        Ok(tenants) => tenants,
        Err(error) => {
            tracing::warn!(%error, "last seen times not written; retrying in the next round");
            return;
        }
    };
    for tenant in tenants {
        if let Err(cause) = write_tenant(presence, database, &tenant).await {
            tracing::warn!(
                tenant = tenant.name,
                cause = format!("{cause:#}"),
                "last seen times not written; retrying in the next round"
            );
        }
    }
}

async fn write_tenant(presence: &Presence, database: &Database, tenant: &Tenant) -> anyhow::Result<()> {
    let mut written: Vec<LastSeen> = Vec::new();
    for _ in 0..STATEMENTS_MAX {
        let seen = presence.last_seen(&tenant.name, &written, ROWS_MAX).await?;
        if seen.is_empty() {
            return Ok(());
        }
        write(database, tenant, &seen).await?;
        written = seen;
    }
    presence.last_seen(&tenant.name, &written, 0).await?;
    Ok(())
}

async fn write(database: &Database, tenant: &Tenant, seen: &[LastSeen]) -> anyhow::Result<()> {
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
