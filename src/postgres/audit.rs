//! The audit log, `posduif.audit`: who did what, and from where.
//!
//! An act that is a statement adds its entry in that statement; [`record`] adds the others. The table is append-only: a
//! trigger refuses updates, and deletes of what is younger than a week.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::core::time::Timestamp;
use crate::postgres::{Database, Error, Param, sql};
use crate::telemetry;

/// All actions, in alphabetical order.
pub const ACTIONS: [&str; 37] = [
    "conflict_resolved",
    "console_opened",
    "device_added",
    "device_proof_refused",
    "device_revoked",
    "device_token_renewed",
    "email_verified",
    "enrollment_completed",
    "enrollment_created",
    "enrollment_withdrawn",
    "identity_linked",
    "identity_refused",
    "login_failed",
    "password_changed",
    "quarantine_dropped",
    "quarantine_retried",
    "recovery_code_used",
    "recovery_codes_renewed",
    "registration_closed",
    "registration_opened",
    "role_changed",
    "second_factor_added",
    "second_factor_removed",
    "session_ended",
    "sessions_ended",
    "slot_dropped",
    "tenant_created",
    "tenant_dropped",
    "tenant_moved",
    "tenant_paused",
    "tenant_resumed",
    "tenant_resynced",
    "user_created",
    "user_disabled",
    "user_enabled",
    "user_erased",
    "user_resynced",
];

/// Interval of the removal of old entries.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Entries that one statement removes.
const PRUNE_ROWS: i64 = 10_000;

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    name: String,
    address: Option<IpAddr>,
}

impl Actor {
    /// An operator, by the command line.
    pub fn cli() -> Self {
        Self {
            name: "cli".to_owned(),
            address: None,
        }
    }

    /// An operator, by the console or the admin API.
    pub fn console(address: IpAddr) -> Self {
        Self {
            name: "console".to_owned(),
            address: Some(address),
        }
    }

    /// A user, by a request from an address.
    pub fn user(id: Uuid, address: IpAddr) -> Self {
        Self {
            name: id.to_string(),
            address: Some(address),
        }
    }

    /// A client without credentials.
    pub fn anonymous(address: IpAddr) -> Self {
        Self {
            name: "anonymous".to_owned(),
            address: Some(address),
        }
    }

    /// The parameters of statements that add an entry: the name and the address.
    pub fn params(&self) -> [Param<'_>; 2] {
        [(&self.name, Type::TEXT), (&self.address, Type::INET)]
    }
}

/// An entry to add.
#[derive(Debug, Clone)]
pub struct Act<'a> {
    pub tenant: Option<&'a str>,
    pub actor: &'a Actor,
    /// One of [`ACTIONS`].
    pub action: &'static str,
    pub subject: Option<String>,
    pub detail: Value,
}

impl Act<'_> {
    fn params(&self) -> [Param<'_>; 6] {
        let [name, address] = self.actor.params();
        [
            (&self.tenant, Type::TEXT),
            name,
            address,
            (&self.action, Type::TEXT),
            (&self.subject, Type::TEXT),
            (&self.detail, Type::JSONB),
        ]
    }
}

/// Adds an entry for an act that is done. It cannot be undone, so a failure is logged.
pub async fn record(database: &Database, act: Act<'_>) {
    if let Err(error) = database.query(&sql!("postgres/audit_insert"), &act.params()).await {
        tracing::error!(
            action = act.action,
            tenant = act.tenant,
            subject = act.subject,
            cause = telemetry::chain(&error),
            "cannot add an entry to the audit log"
        );
    }
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    pub id: i64,
    pub at: Timestamp,
    pub tenant: Option<String>,
    pub actor: String,
    pub action: String,
    pub subject: Option<String>,
    pub address: Option<IpAddr>,
    pub detail: Value,
}

impl Entry {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            at: row.try_get("at")?,
            tenant: row.try_get("tenant")?,
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            address: row.try_get("address")?,
            detail: row.try_get("detail")?,
        })
    }
}

/// Which entries to read; `None` is any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant: Option<String>,
    pub actor: Option<String>,
    pub action: Option<String>,
    pub subject: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Only entries with greater ids.
    pub after: i64,
    /// Only entries with lower ids.
    pub before: Option<i64>,
}

/// The newest entries that pass the filter, newest first.
pub async fn list(database: &Database, filter: &Filter, most: i64) -> Result<Vec<Entry>, Error> {
    let rows = database
        .query(
            &sql!("postgres/audit_list"),
            &[
                (&filter.tenant, Type::TEXT),
                (&filter.actor, Type::TEXT),
                (&filter.action, Type::TEXT),
                (&filter.since, Type::TIMESTAMPTZ),
                (&filter.after, Type::INT8),
                (&most, Type::INT8),
                (&filter.before, Type::INT8),
                (&filter.subject, Type::TEXT),
            ],
        )
        .await?;
    rows.iter().map(Entry::from_row).collect()
}

/// Removes entries that are older than so many days, and returns their number.
pub async fn prune(database: &Database, days: u64) -> Result<u64, Error> {
    let days = i64::try_from(days).unwrap_or(i64::MAX);
    let mut total = 0;
    loop {
        let params: [Param<'_>; 2] = [(&days, Type::INT8), (&PRUNE_ROWS, Type::INT8)];
        let row = database.query_opt(&sql!("postgres/audit_prune"), &params).await?;
        let pruned: i64 = row.map_or(Ok(0), |row| row.try_get("pruned"))?;
        total += pruned.unsigned_abs();
        if pruned < PRUNE_ROWS {
            return Ok(total);
        }
    }
}

/// Removes old entries once an hour until `stop`.
pub async fn run_pruning(database: Database, days: u64, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PRUNE_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match stop.run_until_cancelled(prune(&database, days)).await {
            Some(Ok(0)) | None => {}
            Some(Ok(entries)) => tracing::info!(entries, "old entries of the audit log removed"),
            Some(Err(error)) => {
                tracing::warn!(
                    cause = telemetry::chain(&error),
                    "cannot remove old entries of the audit log"
                );
            }
        }
    }
}
