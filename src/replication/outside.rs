//! Tables outside of the tenants' schemas that rules and groups name: their publication, and what the log does not have of them.
//!
//! As [`super::catalog`] does for the tables of tenants, an examination compares the catalogs with the recorded state in one
//! transaction: it sets the replica identity of tables and adds them to the publication where the engine's role may, resyncs
//! the tenants whose devices may hold other rows than Postgres, and records what it found. An engine does that when it starts
//! and with each look at the catalogs, `posduif publication sync` at once. A table is new to it when a rule first names it: its
//! rows are in no stream yet, and so its tenants are resynced, too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use postgres_types::Type;
use tokio_postgres::{Row, Transaction};

use super::difference::{self, Difference, Kind, Table, cause, is_locked};
use crate::contract::control::Command;
use crate::core::tenant::quote_identifier;
use crate::postgres::{Database, Param, publication, sql, tenants};
use crate::route::router::Router;

/// A table as the catalogs have it, with its recorded state.
#[derive(Debug)]
struct Examined {
    schema: String,
    root_schema: String,
    difference: Difference,
    has_virtual: bool,
    is_ours: bool,
}

impl Examined {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            schema: row.try_get("schema")?,
            root_schema: row.try_get("root_schema")?,
            difference: Difference::read(row)?,
            has_virtual: row.try_get::<_, Option<bool>>("has_virtual")?.unwrap_or(false),
            is_ours: row.try_get::<_, Option<bool>>("is_ours")?.unwrap_or(false),
        })
    }

    /// What happened, when readers may hold other rows than Postgres.
    fn kind(&self) -> Option<Kind> {
        let difference = &self.difference;
        match (&difference.present, &difference.known) {
            (Some(table), None) if table.parent == 0 => difference.has_pages.then_some(Kind::Rule),
            (Some(_), None) => difference.has_pages.then_some(Kind::Partition),
            _ => difference.kind(),
        }
    }

    fn name(&self) -> String {
        format!("{}.{}", self.schema, self.difference.name())
    }

    fn quoted(&self) -> String {
        format!(
            "{}.{}",
            quote_identifier(&self.schema),
            quote_identifier(self.difference.name())
        )
    }

    /// The replica identity that it needs.
    fn wanted_identity(&self) -> &'static str {
        if self.has_virtual { "default" } else { "full" }
    }
}

/// What an examination changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Tables that were added to the publication.
    pub added: Vec<String>,
    /// Tables and partitions whose replica identity was set, with the identity.
    pub identified: Vec<(String, &'static str)>,
    /// Tables and partitions that need one of both, which only their owner may do.
    pub others: Vec<String>,
    /// Tenants whose streams are recreated.
    pub resynced: Vec<String>,
    /// What happened to tables.
    pub kinds: Vec<Kind>,
}

impl Changes {
    /// Whether a table left the rules or returned, or a schema was renamed.
    pub fn has_moved(&self) -> bool {
        self.kinds.contains(&Kind::Moved)
    }
}

/// Compares the tables that rules name with their recorded state.
///
/// # Errors
/// When a table is locked; nothing is changed then.
pub async fn examine(database: &Database, publication: &str, router: &Router) -> Result<Changes> {
    let places = Places::of(router);
    let rows = database
        .query(
            &sql!("replication/outside_differences"),
            &places.params(&publication, &false, &false),
        )
        .await
        .context("cannot compare the tables of rules with the catalogs; `posduif migrate up` creates the table with their state")?;
    if rows.is_empty() {
        return Ok(Changes::default());
    }
    let mut client = database.connect_dedicated().await?;
    let mut transaction = difference::begin(&mut client).await?;
    let rows = transaction
        .query_typed(
            &sql!("replication/outside_differences"),
            &places.params(&publication, &true, &false),
        )
        .await?;
    let mut tables = rows.iter().map(Examined::read).collect::<Result<Vec<_>>>()?;
    let mut kinds: Vec<Option<Kind>> = tables.iter().map(Examined::kind).collect();
    let mut changes = Changes::default();
    for (table, kind) in tables.iter_mut().zip(&mut kinds) {
        if repair(&mut transaction, publication, table, &mut changes).await? {
            kind.get_or_insert(Kind::Rule);
        }
    }
    let concerned: Vec<(&Examined, Kind)> = tables
        .iter()
        .zip(&kinds)
        .filter_map(|(table, kind)| Some((table, (*kind)?)))
        .collect();
    let mut reports = Vec::new();
    for tenant in tenants::list(database).await? {
        let mut causes: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
        for (table, kind) in &concerned {
            let mut roots = table.difference.roots();
            if roots.any(|root| router.may_be(&table.root_schema, root, &tenant.name)) {
                causes.entry(*kind).or_default().insert(table.name());
            }
        }
        if causes.is_empty() {
            continue;
        }
        for (kind, names) in causes {
            reports.push(Command::ReportTable {
                tenant: tenant.name.as_str().into(),
                cause: cause(kind, &names.iter().map(String::as_str).collect()),
            });
        }
        changes.resynced.push(tenant.name);
    }
    let resynced: Vec<&str> = changes.resynced.iter().map(String::as_str).collect();
    tenants::resync_within(&transaction, &resynced).await?;
    tenants::send_all_within(&transaction, &reports).await?;
    for table in &tables {
        record(&transaction, table).await?;
    }
    transaction.commit().await?;
    changes.kinds = kinds.into_iter().flatten().collect();
    for (table, kind) in &concerned {
        let (table, kind, tenants) = (table.name(), kind.as_str(), changes.resynced.len());
        // Without tenants there is no device that could lack a row.
        if tenants > 0 {
            tracing::warn!(
                table,
                kind,
                tenants,
                "table of a rule changed outside of the log; streams of its tenants recreated"
            );
        }
    }
    if !changes.others.is_empty() {
        tracing::error!(
            tables = changes.others.join(", "),
            "tables of rules belong to another role: not published, or without the replica identity; `posduif routes check` \
             has the statements for their owner"
        );
    }
    Ok(changes)
}

/// The named tables as arrays.
struct Places<'r> {
    schemas: Vec<&'r str>,
    tables: Vec<&'r str>,
}

impl<'r> Places<'r> {
    fn of(router: &'r Router) -> Self {
        let (schemas, tables) = router.outside().into_iter().unzip();
        Self { schemas, tables }
    }

    fn params<'p>(&'p self, publication: &'p &'p str, is_deep: &'p bool, is_all: &'p bool) -> [Param<'p>; 5] {
        [
            (publication, Type::TEXT),
            (&self.schemas, Type::TEXT_ARRAY),
            (&self.tables, Type::TEXT_ARRAY),
            (is_deep, Type::BOOL),
            (is_all, Type::BOOL),
        ]
    }
}

/// Sets the identity of a table and publishes it, where this role may. Returns whether a table was added that has rows.
async fn repair(
    transaction: &mut Transaction<'_>,
    publication: &str,
    table: &mut Examined,
    changes: &mut Changes,
) -> Result<bool> {
    let Some(present) = &table.difference.present else {
        return Ok(false);
    };
    let (lacks_identity, lacks_publication) = (!table.difference.is_identified, !present.is_published);
    if !lacks_identity && !lacks_publication {
        return Ok(false);
    }
    if !table.is_ours {
        changes.others.push(table.name());
        return Ok(false);
    }
    let (name, identity) = (table.quoted(), table.wanted_identity());
    let savepoint = transaction.transaction().await?;
    let identity_if_lacking = lacks_identity.then_some(identity);
    let published =
        publication::publish_outside(&savepoint, publication, &name, identity_if_lacking, lacks_publication).await;
    let has_rows = match published {
        Ok(has_rows) => {
            savepoint.commit().await?;
            has_rows
        }
        // The next look tries again.
        Err(error) if is_locked(&error) => return Err(error),
        Err(error) => {
            savepoint.rollback().await?;
            tracing::error!(
                table = table.name(),
                cause = format!("{error:#}"),
                "table of a rule not published; `posduif routes check` has the fix"
            );
            return Ok(false);
        }
    };
    let shown = table.name();
    if let Some(present) = &mut table.difference.present {
        if lacks_identity {
            present.identity = identity.into();
            changes.identified.push((shown.clone(), identity));
        }
        if lacks_publication {
            present.is_published = true;
            changes.added.push(shown);
        }
    }
    table.difference.is_identified = true;
    Ok(has_rows)
}

async fn record(transaction: &Transaction<'_>, table: &Examined) -> Result<()> {
    let relation = &table.difference.relation;
    let is_covered = table.difference.is_covered();
    let Some(Table {
        name,
        root,
        parent,
        filenode,
        identity,
        is_published,
        columns,
    }) = &table.difference.present
    else {
        transaction
            .query_typed(&sql!("replication/outside_forget"), &[(relation, Type::OID)])
            .await?;
        return Ok(());
    };
    let params: [Param<'_>; 11] = [
        (relation, Type::OID),
        (&table.schema, Type::TEXT),
        (name, Type::TEXT),
        (&table.root_schema, Type::TEXT),
        (root, Type::TEXT),
        (parent, Type::OID),
        (filenode, Type::OID),
        (identity, Type::TEXT),
        (is_published, Type::BOOL),
        (columns, Type::TEXT_ARRAY),
        (&is_covered, Type::BOOL),
    ];
    transaction
        .query_typed(&sql!("replication/outside_record"), &params)
        .await?;
    Ok(())
}
