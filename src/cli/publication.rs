//! `posduif publication`: inspects and completes the publication.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::table::{Cell, Tone};
use super::{Global, human};
use crate::core::tenant::Tenant;
use crate::postgres::Database;
use crate::postgres::publication::{self, Coverage, Included, Table};
use crate::replication::outside::{Failures, Outside, Published};
use crate::route::router::Router;

#[derive(Debug, Args)]
pub(super) struct Publication {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the tables: published or missing, and their replica identity
    Show {
        /// Only tables that are missing or lack a replica identity
        #[arg(long)]
        missing: bool,
    },
    /// Add missing tables, as `migrate up` does; if one has rows, the streams of its tenant are recreated
    Sync,
}

impl Publication {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        let router = Router::configured(&config);
        let name = config.replication.publication;
        match self.verb {
            Verb::Show { missing } => {
                let coverage = publication::coverage(&database, &name, &router.outside()).await?;
                output::print(global, &Report::of(name, coverage, missing))
            }
            Verb::Sync => {
                let changes = publication::sync(&database, &name).await?;
                let outside = Outside {
                    database: &database,
                    publication: &name,
                    router: &router,
                };
                let mut outside = outside.publish(&mut Failures::default()).await?;
                let (others, failed) = (std::mem::take(&mut outside.others), std::mem::take(&mut outside.failed));
                let mut changes: Vec<TenantChanges> = changes.into_iter().map(TenantChanges::of).collect();
                changes.extend(TenantChanges::of_outside(outside));
                let has_failed = !failed.is_empty();
                output::print(
                    global,
                    &Synced {
                        changes,
                        name,
                        others,
                        has_failed,
                    },
                )?;
                if has_failed {
                    let causes: Vec<String> = failed
                        .iter()
                        .map(|(table, cause)| format!("{table}: {cause}"))
                        .collect();
                    bail!("not published: {}", causes.join("; "));
                }
                Ok(())
            }
        }
    }
}

#[derive(Serialize)]
struct Report {
    publication: String,
    exists: bool,
    complete: bool,
    whole_schemas: bool,
    operations: Vec<&'static str>,
    via_partition_root: bool,
    tables: Vec<Table>,
    /// Tables that are not published.
    #[serde(skip)]
    missing: usize,
    /// Tables without the required replica identity.
    #[serde(skip)]
    unidentified: usize,
}

impl Report {
    fn of(publication: String, coverage: Coverage, only_missing: bool) -> Self {
        let (missing, unidentified) = (coverage.missing().count(), coverage.unidentified().count());
        let complete = coverage.is_complete();
        let mut tables = coverage.tables;
        if only_missing {
            tables.retain(|table| !table.published || !table.is_identified());
        }
        Self {
            publication,
            exists: coverage.exists,
            complete,
            whole_schemas: coverage.whole_schemas,
            operations: coverage.operations,
            via_partition_root: coverage.via_partition_root,
            tables,
            missing,
            unidentified,
        }
    }
}

impl Render for Report {
    fn text(&self, out: &mut Text) {
        let name = &self.publication;
        if !self.tables.is_empty() {
            let header = ["TENANT", "TABLE", "PUBLISHED", "REPLICA IDENTITY"];
            out.table(header, self.tables.iter().map(row));
            out.blank();
        }
        if !self.exists {
            outln!(
                out,
                "the publication {name} does not exist: run `posduif publication sync`"
            );
            return;
        }
        let how = if self.whole_schemas {
            "whole schemas; new tables are included automatically"
        } else {
            "listed tables; new tables are added by `posduif publication sync`, `migrate up` or the start of an engine"
        };
        outln!(out, "{name} publishes {} of {how}", self.operations.join(", "));
        if !self.via_partition_root {
            outln!(
                out,
                "it publishes partitions under their own names, which match no rule: drop it while no engine runs"
            );
        }
        if self.missing + self.unidentified > 0 {
            outln!(
                out,
                "{} missing, {} without the required replica identity: run `posduif publication sync`",
                human::count(self.missing, "table"),
                human::count(self.unidentified, "table")
            );
        }
    }
}

fn row(table: &Table) -> [Cell; 4] {
    let (published, tone) = if table.published {
        ("yes", Tone::Good)
    } else {
        ("MISSING", Tone::Bad)
    };
    let identity = if table.virtual_columns {
        format!("{}, virtual columns", table.replica_identity)
    } else {
        table.replica_identity.clone()
    };
    let identity_tone = if table.is_identified() { Tone::Plain } else { Tone::Bad };
    [
        Cell::from(table.tenant.clone().unwrap_or_else(|| "-".to_owned())),
        Cell::from(match table.tenant {
            Some(_) => table.table.clone(),
            None => format!("{}.{}", table.schema, table.table),
        }),
        Cell::from(published).toned(tone),
        Cell::from(identity).toned(identity_tone),
    ]
}

#[derive(Serialize)]
#[serde(transparent)]
struct Synced {
    changes: Vec<TenantChanges>,
    #[serde(skip)]
    name: String,
    /// Tables that only their owner can publish.
    #[serde(skip)]
    others: Vec<String>,
    #[serde(skip)]
    has_failed: bool,
}

#[derive(Serialize)]
struct TenantChanges {
    /// `None` for tables that are in no tenant's schema, whose names are qualified.
    tenant: Option<String>,
    added: Vec<String>,
    identified: Vec<String>,
    keyed: Vec<String>,
    resynced: bool,
    #[serde(skip)]
    schema: String,
}

impl TenantChanges {
    fn of((tenant, included): (Tenant, Included)) -> Self {
        Self {
            tenant: Some(tenant.name),
            added: included.added,
            identified: included.identified,
            keyed: included.keyed,
            resynced: included.has_rows,
            schema: format!("{}.", tenant.schema),
        }
    }

    fn of_outside(changes: Published) -> Option<Self> {
        let names = |identity| {
            let tables = changes.identified.iter().filter(move |(_, set)| *set == identity);
            tables.map(|(table, _)| table.clone()).collect()
        };
        let (identified, keyed) = (names("full"), names("default"));
        let is_something = !changes.added.is_empty() || !changes.identified.is_empty();
        is_something.then(|| Self {
            tenant: None,
            identified,
            keyed,
            added: changes.added,
            // By the engine that delivers them.
            resynced: false,
            schema: String::new(),
        })
    }
}

impl Render for Synced {
    fn text(&self, out: &mut Text) {
        if self.changes.is_empty() && self.others.is_empty() && !self.has_failed {
            outln!(out, "nothing to do");
        }
        for table in &self.others {
            outln!(
                out,
                "{table} belongs to another role: `posduif routes check` has the statements for its owner"
            );
        }
        for TenantChanges {
            tenant,
            added,
            identified,
            keyed,
            resynced,
            schema,
        } in &self.changes
        {
            for table in added {
                outln!(out, "added {schema}{table} to the publication {}", self.name);
            }
            for table in identified {
                outln!(out, "set REPLICA IDENTITY FULL on {schema}{table}");
            }
            for table in keyed {
                outln!(
                    out,
                    "set the replica identity of {schema}{table} to its primary key, because of its virtual columns"
                );
            }
            match tenant {
                Some(tenant) if *resynced => outln!(
                    out,
                    "the streams of {tenant} lack existing rows of the added tables and are recreated: its devices take a \
                     snapshot"
                ),
                Some(_) => {}
                None => outln!(
                    out,
                    "the engine that delivers these tables makes the devices of their tenants take a snapshot"
                ),
            }
        }
    }
}
