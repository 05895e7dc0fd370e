//! What the log does not have: changes of tables that only the catalogs show.
//!
//! Postgres logs no rows when a table is rewritten, dropped, attached, detached or unpublished, or when a partition is
//! truncated; a table that lost its replica identity logs no whole old rows; and a walsender of Postgres 15 or older goes on
//! to name a renamed schema as before. A look compares the catalogs with what the last look recorded, in one statement. It
//! repairs what this role may, and resyncs the tenants whose readers may hold other rows than Postgres. [`super::outside`] does
//! the same for tables that are in no tenant's schema. One transaction has the repair, the resync and the record, so that no
//! change is missed or acted upon twice, across restarts too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres_types::Type;
use tokio::sync::watch;
use tokio_postgres::{Client, Row, Transaction};
use tokio_util::sync::CancellationToken;

use super::difference::{self, Difference, Kind, cause, is_locked};
use super::outside::{Failures, Outside};
use super::report::Report;
use super::rules;
use crate::config::Config;
use crate::contract::control::Command;
use crate::core::lane::Lanes;
use crate::core::tenant::Tenant;
use crate::decode::pgoutput::{Cell, Tuple};
use crate::decode::relation::Relation;
use crate::postgres::publication::{self, Included};
use crate::postgres::{Database, Param, sql, tenants};
use crate::route::router::Router;

/// A look takes at most this part of the time.
const LOAD_MAX: u32 = 20;

/// Cause of a quarantined change whose old row the log does not have whole.
pub(super) const OLD_ROW_MISSING: &str = "the log lacks the old row: the table or partition needs REPLICA IDENTITY \
     FULL; all devices of the tenant take a snapshot for each such change; `posduif publication sync` repairs the identity";

/// Which columns of a partitioned table an old row must have to be whole. Its partitions have replica identities of their own,
/// and the walsender marks old rows by the identity of the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Columns that are never NULL.
    required: BTreeSet<String>,
    /// Columns that may be in a replica identity.
    identifying: BTreeSet<String>,
}

impl Outline {
    /// Whether an old row has more than the columns of an identity, by which columns are NULL. One whose columns beside the
    /// identity are all NULL counts as having no more.
    pub fn is_whole(&self, relation: &Relation, old: &Tuple<'_>) -> bool {
        let columns = || relation.columns.iter().zip(old);
        let lacks_required =
            columns().any(|(column, cell)| *cell == Cell::Null && self.required.contains(&column.name));
        let mut others = columns()
            .filter(|(column, _)| !self.identifying.contains(&column.name))
            .peekable();
        let has_only_identity = others.peek().is_some() && others.all(|(_, cell)| *cell == Cell::Null);
        !lacks_required && !has_only_identity
    }
}

/// The outline of a table; `None` when it is not partitioned.
pub async fn outline(database: &Database, relation: u32) -> Result<Option<Outline>> {
    let row = database
        .query_opt(&sql!("replication/catalog_outline"), &[(&relation, Type::OID)])
        .await
        .context("cannot read the columns of a table")?;
    let names = |row: &Row, column| row.try_get::<_, Vec<String>>(column).map(BTreeSet::from_iter);
    row.map(|row| {
        Ok(Outline {
            required: names(&row, "required")?,
            identifying: names(&row, "identifying")?,
        })
    })
    .transpose()
}

/// The schema in which a table is by now; `None` when the table is gone. One that has left its tenant's schema is marked, so
/// that the next look at it in that schema resyncs the tenant.
pub async fn place(database: &Database, relation: u32) -> Result<Option<String>> {
    let row = database
        .query_opt(&sql!("replication/catalog_place"), &[(&relation, Type::OID)])
        .await
        .context("cannot read the schema of a table")?;
    Ok(row.map(|row| row.try_get("schema")).transpose()?)
}

/// Looks periodically until `stop`, while this engine holds the slot of any lane: one look is for all of them. `moved` counts
/// tables that left a tenant's schema or returned.
pub async fn run(
    config: &Config,
    database: Database,
    reports: &Lanes<Arc<Report>>,
    moved: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let interval = Duration::from_secs(config.replication.catalog_interval_seconds);
    let mut watcher = Watcher {
        config,
        publication: &config.replication.publication,
        router: Router::configured(config),
        database,
        reports,
        moved,
        failures: Failures::default(),
        waited: Duration::ZERO,
    };
    let mut delay = interval;
    loop {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = stop.cancelled() => return,
        }
        if !reports.iter().any(|(_, report)| report.state().is_streaming()) {
            continue;
        }
        let started = Instant::now();
        tokio::select! {
            result = watcher.look() => if let Err(error) = result {
                tracing::warn!(cause = format!("{error:#}"), "look at the catalogs failed");
            },
            () = stop.cancelled() => return,
        }
        // A locked table of an application is tried again at intervals of its own, and must not delay the others.
        let worked = started.elapsed().saturating_sub(std::mem::take(&mut watcher.waited));
        delay = interval.max(worked * LOAD_MAX);
    }
}

struct Watcher<'a> {
    config: &'a Config,
    publication: &'a str,
    router: Router,
    database: Database,
    reports: &'a Lanes<Arc<Report>>,
    moved: watch::Sender<u64>,
    failures: Failures,
    /// How long this look has waited for locks of tables outside of tenants' schemas, or of their record.
    waited: Duration,
}

impl Watcher<'_> {
    async fn look(&mut self) -> Result<()> {
        let every_tenant: Option<&str> = None;
        let rows = self
            .database
            .query(
                &sql!("replication/catalog_differences"),
                &[(&self.publication, Type::TEXT), (&every_tenant, Type::TEXT)],
            )
            .await
            .context("cannot compare the tables with the catalogs")?;
        let names = rows.iter().map(|row| row.try_get("tenant"));
        let names = names.collect::<Result<BTreeSet<String>, _>>()?;
        if !names.is_empty() {
            let mut client = self.database.connect_dedicated().await?;
            for tenant in names.iter().filter_map(|name| Tenant::named(name)) {
                // A locked table of one tenant must not delay the others.
                if let Err(error) = self.examine(&mut client, &tenant).await {
                    tracing::warn!(
                        tenant = tenant.name,
                        cause = format!("{error:#}"),
                        "changes of tables not handled; trying again"
                    );
                }
            }
        }
        // Compared at the start, which may have failed.
        rules::examine(self.config, &self.database, self.reports.main()).await?;
        let outside = Outside {
            database: &self.database,
            publication: self.publication,
            router: &self.router,
        };
        let started = Instant::now();
        let looked = outside.look(&mut self.failures).await;
        self.waited = self.failures.take_waited();
        match looked {
            Ok(changes) => {
                for kind in &changes.kinds {
                    self.reports.main().metrics.replication.catalog_changed(kind.as_str());
                }
                if changes.has_moved() {
                    self.moved.send_modify(|count| *count += 1);
                }
            }
            Err(error) => {
                if is_locked(&error) {
                    self.waited = started.elapsed();
                }
                tracing::warn!(
                    cause = format!("{error:#}"),
                    "changes of tables outside of tenants' schemas not handled; trying again"
                );
            }
        }
        let rows = self
            .database
            .query(
                &sql!("replication/catalog_uncovered"),
                &[(&self.publication, Type::TEXT)],
            )
            .await?;
        let uncovered = rows.iter().map(|row| row.try_get("name"));
        let uncovered = uncovered.collect::<Result<Vec<String>, _>>()?;
        let lacks_commands = uncovered.iter().any(|name| name == publication::COMMANDS);
        for (_, report) in self.reports.iter() {
            report.uncovered.send_replace(uncovered.clone());
        }
        if lacks_commands {
            self.publish_commands().await?;
        }
        Ok(())
    }

    /// Publishes the table of commands again. What was commanded meanwhile is in no log: the next session reads the tenants
    /// from their table, and each tenant's streams are recreated.
    async fn publish_commands(&self) -> Result<()> {
        publication::ensure(&self.database, self.publication).await?;
        tracing::warn!(
            table = publication::COMMANDS,
            publication = self.publication,
            "table of commands was not published; recreating the streams of all tenants"
        );
        for tenant in tenants::list(&self.database).await? {
            tenants::resync(&self.database, &tenant.name).await?;
        }
        self.moved.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Repairs, resyncs and records what differs in a tenant.
    async fn examine(&self, client: &mut Client, tenant: &Tenant) -> Result<()> {
        let mut transaction = difference::begin(client).await?;
        let params: [Param<'_>; 2] = [(&self.publication, Type::TEXT), (&tenant.name, Type::TEXT)];
        let rows = transaction
            .query_typed(&sql!("replication/catalog_differences"), &params)
            .await?;
        let mut differences = rows.iter().map(Difference::read).collect::<Result<Vec<_>>>()?;
        let is_repairable = |difference: &Difference| difference.present.is_some() && !difference.is_covered();
        let kinds: Vec<Option<Kind>> = differences.iter().map(Difference::kind).collect();
        let mut included = Included::default();
        if differences.iter().any(is_repairable) {
            included = repair(&mut transaction, self.publication, tenant).await?;
        }
        let mut causes: BTreeMap<Kind, BTreeSet<&str>> = BTreeMap::new();
        for (difference, kind) in differences.iter().zip(&kinds) {
            if let Some(kind) = kind
                && difference.roots().any(|root| self.router.covers(root))
            {
                causes.entry(*kind).or_default().insert(difference.name());
            }
        }
        let causes: Vec<String> = causes.into_iter().map(|(kind, names)| cause(kind, &names)).collect();
        // Without its schema, a tenant has nothing that devices could receive. It is resynced when that returns.
        let has_schema = differences.iter().any(|difference| difference.has_schema);
        if (!causes.is_empty() && has_schema) || included.has_rows {
            tenants::resync_within(&transaction, &[&tenant.name]).await?;
        }
        for cause in &causes {
            let command = Command::ReportTable {
                tenant: tenant.name.as_str().into(),
                cause: cause.clone(),
            };
            tenants::send_within(&transaction, &command).await?;
        }
        for difference in &mut differences {
            record(&transaction, tenant, difference, &included).await?;
        }
        transaction.commit().await?;
        for kind in kinds.iter().flatten() {
            self.reports.main().metrics.replication.catalog_changed(kind.as_str());
        }
        for cause in causes {
            tracing::warn!(
                tenant = tenant.name,
                cause,
                "tables changed outside of the log; streams recreated"
            );
        }
        if kinds.contains(&Some(Kind::Moved)) {
            self.moved.send_modify(|count| *count += 1);
        }
        Ok(())
    }
}

/// Sets identities and adds tables, each as far as this role may.
async fn repair(transaction: &mut Transaction<'_>, publication: &str, tenant: &Tenant) -> Result<Included> {
    let mut included = Included::default();
    for step in [publication::Repair::Identities, publication::Repair::Membership] {
        let savepoint = transaction.transaction().await?;
        match publication::repair(&savepoint, publication, tenant, step).await {
            Ok(repaired) => {
                savepoint.commit().await?;
                included.merge(repaired);
            }
            // The next look tries again.
            Err(error) if is_locked(&error) => return Err(error),
            Err(error) => {
                savepoint.rollback().await?;
                tracing::error!(
                    tenant = tenant.name,
                    cause = format!("{error:#}"),
                    "tables not repaired; `posduif doctor` has the fix"
                );
            }
        }
    }
    Ok(included)
}

/// Records a table as it was read, and as it was repaired.
async fn record(
    transaction: &Transaction<'_>,
    tenant: &Tenant,
    difference: &mut Difference,
    included: &Included,
) -> Result<()> {
    let Some(table) = &mut difference.present else {
        let params: [Param<'_>; 2] = [(&tenant.name, Type::TEXT), (&difference.relation, Type::OID)];
        transaction
            .query_typed(&sql!("replication/catalog_forget"), &params)
            .await?;
        return Ok(());
    };
    if included.identified.contains(&table.name) {
        table.identity = "full".into();
        difference.is_identified = true;
    }
    if included.keyed.contains(&table.name) {
        table.identity = "default".into();
        difference.is_identified = true;
    }
    table.is_published |= included.added.contains(&table.name);
    let is_covered = table.is_published && difference.is_identified;
    let params: [Param<'_>; 10] = [
        (&tenant.name, Type::TEXT),
        (&difference.relation, Type::OID),
        (&table.name, Type::TEXT),
        (&table.root, Type::TEXT),
        (&table.parent, Type::OID),
        (&table.filenode, Type::OID),
        (&table.identity, Type::TEXT),
        (&table.is_published, Type::BOOL),
        (&table.columns, Type::TEXT_ARRAY),
        (&is_covered, Type::BOOL),
    ];
    transaction
        .query_typed(&sql!("replication/catalog_record"), &params)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::pgoutput::ReplicaIdentity;
    use crate::decode::relation::Column;
    use crate::decode::value::Kind as ValueKind;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn old_row_is_whole_unless_all_beside_the_key_is_null() {
        let column = |name: &str| Column {
            name: name.to_owned(),
            is_key: true,
            kind: ValueKind::Text,
            json_key: Vec::new(),
        };
        let relation = Relation {
            oid: 1,
            schema: "tenant_acme".into(),
            table: "notes".into(),
            replica_identity: ReplicaIdentity::Full,
            columns: ["id", "day", "owner", "body"].map(column).into(),
        };
        let of = |required: &[&str]| Outline {
            required: strings(required).into_iter().collect(),
            identifying: strings(&["id", "day"]).into_iter().collect(),
        };
        let (text, null) = (Cell::Text(b"x"), Cell::Null);
        let key = vec![text, text, null, null];
        let whole = vec![text, text, text, null];
        assert!(!of(&["id", "day"]).is_whole(&relation, &key));
        assert!(of(&["id", "day"]).is_whole(&relation, &whole));
        assert!(!of(&["id", "day", "body"]).is_whole(&relation, &whole));
        let keys = Relation {
            columns: relation.columns[..2].to_vec(),
            ..relation
        };
        assert!(of(&["id", "day"]).is_whole(&keys, &vec![text, text]));
    }
}
