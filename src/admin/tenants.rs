//! Tenants for their operator: the directory, and what one tenant has in Postgres and Redis.

use anyhow::{Context, Result, bail};
use postgres_types::PgLsn;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::admin::stream_report::each_inbox;
use crate::admin::streams::{self, GroupTotals, Length, Lengths};
use crate::config;
use crate::core::tenant::Tenant;
use crate::postgres::audit::{self, Act, Actor};
use crate::postgres::tenants::{Listed, TenantStats};
use crate::postgres::{self, Database, tenants};
use crate::redis::store::Store;

/// A tenant of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantRecord {
    pub name: String,
    pub schema: String,
    /// The lane that has its streams.
    pub lane: String,
    /// `active`, `paused` or `schema missing`.
    pub state: String,
    /// Why the tenant cannot work. Only [`TenantRecord::of_broken`] sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl TenantRecord {
    pub fn of(listed: Listed) -> Self {
        Self {
            name: listed.tenant.name,
            schema: listed.tenant.schema,
            lane: listed.lane,
            state: listed.state,
            error: None,
        }
    }

    /// A record with the reason why the tenant cannot work.
    pub fn of_broken(listed: Listed, error: &anyhow::Error) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::of(listed)
        }
    }
}

/// What a tenant has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantReport {
    pub name: String,
    pub schema: String,
    #[serde(flatten)]
    pub stats: TenantStats,
    pub streams: StreamTotals,
}

/// Entries of a tenant's streams; `None` where a key has the wrong type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamTotals {
    #[serde(flatten)]
    pub lengths: Lengths,
    pub inboxes: u64,
    pub inbox_entries: u64,
    pub longest_inbox: u64,
    /// The streams of groups.
    pub groups: GroupTotals,
    /// Memory of all streams.
    pub memory_bytes: u64,
    /// What they may take.
    pub budget_bytes: u64,
    /// They take more although they were cut: writes of the tenant are refused.
    pub exceeded: bool,
    pub error: Option<String>,
}

/// Counts what a tenant has.
///
/// # Errors
/// When tables of the tenant are missing.
pub async fn report(
    database: &Database,
    store: &Store,
    tenant: &Tenant,
    settings: &config::Streams,
) -> Result<TenantReport> {
    let missing = tenants::missing_tables(database, Some(&tenant.name)).await?;
    if !missing.is_empty() {
        bail!(
            "tables of tenant {} are missing: {}; restore them from a backup",
            tenant.name,
            missing.join(", ")
        );
    }
    let stats = tenants::tenant_stats(database, tenant)
        .await?
        .with_context(|| dropped_meanwhile(&tenant.name))?;
    Ok(TenantReport {
        name: tenant.name.clone(),
        schema: tenant.schema.clone(),
        stats,
        streams: StreamTotals {
            budget_bytes: settings.tenant_bytes_max,
            ..stream_totals(database, store, tenant).await?
        },
    })
}

/// Recreates a tenant's streams, and records who did it. Returns the LSN of the request, or `None` when there is no such tenant.
///
/// # Errors
/// When Postgres fails.
pub async fn resync(database: &Database, name: &str, by: &Actor) -> Result<Option<PgLsn>, postgres::Error> {
    let requested = tenants::resync(database, name).await?;
    if requested.is_some() {
        let act = Act {
            tenant: Some(name),
            actor: by,
            action: "tenant_resynced",
            subject: None,
            detail: json!({}),
        };
        audit::record(database, act).await;
    }
    Ok(requested)
}

/// Recreates a user's inbox, and records who did it: each device of the user takes a snapshot. Returns the LSN of the request.
///
/// # Errors
/// When Postgres fails.
pub async fn resync_user(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    by: &Actor,
) -> Result<PgLsn, postgres::Error> {
    let requested = tenants::resync_user(database, tenant, user).await?;
    let act = Act {
        tenant: Some(&tenant.name),
        actor: by,
        action: "user_resynced",
        subject: Some(user.to_string()),
        detail: json!({}),
    };
    audit::record(database, act).await;
    Ok(requested)
}

async fn stream_totals(database: &Database, store: &Store, tenant: &Tenant) -> Result<StreamTotals> {
    let mut totals = StreamTotals {
        lengths: streams::lengths_of(store, &tenant.name).await?,
        exceeded: store.exceeded().await?.contains_key(&tenant.name),
        ..StreamTotals::default()
    };
    let (names, name) = (store.keys(), &tenant.name);
    let keys = [
        names.changes(name),
        names.shared(name),
        names.quarantine(name),
        names.push(name),
    ];
    totals.memory_bytes = streams::memory(store, &keys).await?.into_iter().sum();
    totals.groups = streams::totals_of_groups(store, name).await?;
    totals.memory_bytes += totals.groups.memory_bytes;
    each_inbox(database, store, tenant, |_, key, length, bytes| match length {
        Length::Missing => {}
        Length::Entries(length) => {
            totals.inboxes += 1;
            totals.memory_bytes += bytes;
            totals.inbox_entries += length;
            totals.longest_inbox = totals.longest_inbox.max(length);
        }
        Length::WrongType(kind) => totals.lengths.note(store, &tenant.name, &key, &kind),
    })
    .await?;
    totals.error = totals.lengths.error();
    Ok(totals)
}

/// The error text for a tenant that was dropped between two statements of a command.
pub fn dropped_meanwhile(name: &str) -> String {
    format!("the tenant {name} was dropped by another process meanwhile")
}
