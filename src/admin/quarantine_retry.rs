//! Delivers quarantined changes whose cause is fixed, and removes them from the quarantine.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postgres_types::PgLsn;
use serde::Serialize;

use super::published;
use super::quarantine::{self, Remedy};
use super::tenants::dropped_meanwhile;
use crate::config::Config;
use crate::contract::quarantine::QuarantineEntry;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, tenants};
use crate::redis::store::Store;

/// What a retry needs.
#[derive(Debug, Clone, Copy)]
pub struct Retry<'a> {
    pub config: &'a Config,
    pub database: &'a Database,
    pub store: &'a Store,
    pub tenant: &'a Tenant,
    /// How long publishing may make no progress.
    pub timeout: Duration,
}

/// The result of a retry.
#[derive(Debug, Serialize)]
pub struct Retried {
    pub tenant: String,
    /// Changes that were delivered, or whose row is gone.
    pub settled: usize,
    pub left: Vec<Left>,
}

/// A change that stays in quarantine.
#[derive(Debug, Serialize)]
pub struct Left {
    pub id: String,
    pub reason: String,
}

/// A row by table and id, with the quarantined changes of it.
type Rows = BTreeMap<(String, String), Vec<StreamId>>;

/// Why changes stay in quarantine.
type Reasons = BTreeMap<StreamId, String>;

impl Retry<'_> {
    /// Touches the rows, so that the log has their present state for all users who see them now.
    ///
    /// # Errors
    /// When Redis fails, or when publishing makes no progress.
    pub async fn by_rows(self, remedies: Vec<(StreamId, Remedy)>, actor: &Actor) -> Result<Retried> {
        let (store, tenant) = (self.store, &self.tenant.name);
        let newest = quarantine::newest(store, tenant, 1).await?;
        let newest = newest.first().map_or(StreamId::ZERO, |newest| newest.id);
        let (mut left, mut rows) = (Reasons::new(), Rows::new());
        for (id, remedy) in remedies {
            match remedy {
                Remedy::Row { table, id: row } => rows.entry((table, row)).or_default().push(id),
                other => {
                    left.insert(id, other.to_string());
                }
            }
        }
        self.touch(&rows, &mut left).await?;
        let repeated = self.repeated(newest, &rows, &mut left).await?;
        let settled: Vec<StreamId> = rows
            .into_values()
            .flatten()
            .filter(|id| !left.contains_key(id))
            .collect();
        quarantine::forget(store, tenant, &[repeated, settled.clone()].concat()).await?;
        Ok(self.done(settled.len(), left, actor).await)
    }

    /// Recreates the tenant's streams, which settles all changes except messages.
    ///
    /// # Errors
    /// When the tenant is dropped meanwhile, when a server fails, or when publishing makes no progress.
    pub async fn by_resync(self, remedies: Vec<(StreamId, Remedy)>, actor: &Actor) -> Result<Retried> {
        let (mut settled, mut left) = (Vec::new(), Reasons::new());
        for (id, remedy) in remedies {
            match remedy {
                Remedy::Row { .. } | Remedy::Resync(_) => settled.push(id),
                Remedy::Sender => {
                    left.insert(id, remedy.to_string());
                }
            }
        }
        if !settled.is_empty() {
            let tenant = &self.tenant.name;
            let position = tenants::resync(self.database, tenant)
                .await?
                .with_context(|| dropped_meanwhile(tenant))?;
            self.wait(position).await?;
            quarantine::forget(self.store, tenant, &settled).await?;
        }
        Ok(self.done(settled.len(), left, actor).await)
    }

    async fn done(self, settled: usize, left: Reasons, actor: &Actor) -> Retried {
        let tenant = &self.tenant.name;
        if settled > 0 {
            quarantine::record(self.database, tenant, "quarantine_retried", settled as u64, actor).await;
        }
        let left = left.into_iter().map(|(id, reason)| Left {
            id: id.to_string(),
            reason,
        });
        Retried {
            tenant: tenant.clone(),
            settled,
            left: left.collect(),
        }
    }

    async fn wait(self, position: PgLsn) -> Result<()> {
        published::wait(self.store, position, self.timeout, |_| {})
            .await
            .context(
                "requested, but not published yet: it takes effect when an engine replicates; `posduif status` shows whether \
                 one does",
            )
    }

    /// Touches the rows and waits until an engine has published that.
    async fn touch(self, rows: &Rows, left: &mut Reasons) -> Result<()> {
        let mut last = None;
        for ((table, row), ids) in rows {
            let schema = self.config.schema_of(table, self.tenant);
            match tenants::touch_rows(self.database, self.tenant, (schema, table), row).await {
                Ok(Some(position)) => last = Some(position),
                // The row is gone, and there is nothing to deliver.
                Ok(None) => {}
                Err(error) => left.extend(ids.iter().map(|id| (*id, format!("{error:#}")))),
            }
        }
        match last {
            Some(position) => self.wait(position).await,
            None => Ok(()),
        }
    }

    /// Entries after `newest` that a retry of these rows has caused. They repeat the ones retried, which are left.
    async fn repeated(self, newest: StreamId, rows: &Rows, left: &mut Reasons) -> Result<Vec<StreamId>> {
        let (mut repeated, mut causes) = (Vec::new(), BTreeMap::new());
        let visit = |entry: QuarantineEntry| {
            if let Some(row) = quarantine::row(&entry).filter(|row| rows.contains_key(row)) {
                repeated.push(entry.id);
                causes.insert(row, entry.cause);
            }
        };
        quarantine::each(self.store, &self.tenant.name, newest, visit).await?;
        for (row, cause) in causes {
            let ids = rows.get(&row).into_iter().flatten();
            left.extend(ids.map(|id| (*id, format!("the cause is not fixed: {cause}"))));
        }
        Ok(repeated)
    }
}
