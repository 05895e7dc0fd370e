//! `posduif migrate`: versions of the control schema and of each tenant's schema.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::progress::Progress;
use super::table::{Cell, NOTHING};
use super::{Confirm, Global};
use crate::postgres::Database;
use crate::postgres::migrations::{self, Rollback, Status, Step, Target};

/// Schemas that the dry run of a rollback names; of more it prints the number.
const SCHEMAS_NAMED_MAX: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Apply all pending migrations to the control schema and to every tenant's schema
    Up,
    /// Roll back the last N migrations of each schema, and lose their data
    Down {
        /// Number of migrations per schema
        #[arg(default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// `all` (every tenant's schema, not the control schema), `posduif` or `tenant_<name>`
        #[arg(long, default_value = "all", value_parser = Target::parse)]
        schema: Target,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Show the version and the pending migrations of every schema
    Status,
    /// Show the version of every schema
    Version,
    /// Record that a schema is clean at version N, without running a migration
    Force {
        /// The version to record
        #[arg(value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
        number: i32,
        /// `all` (every tenant's schema, not the control schema), `posduif` or `tenant_<name>`
        #[arg(long, value_parser = Target::parse)]
        schema: Target,
    },
}

impl Migrate {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::Up => {
                let steps = migrations::up_with_progress(&database, &config.replication, progress(global)).await?;
                output::print(global, &Steps(steps))
            }
            Verb::Down { count, schema, confirm } => {
                let steps = down(global, &database, &schema, count, confirm).await?;
                output::print(global, &Steps(steps))
            }
            Verb::Status => output::print(global, &Statuses(migrations::status(&database).await?)),
            Verb::Version => {
                let status = migrations::status(&database).await?;
                output::print(global, &Versions::of(status))
            }
            Verb::Force { number, schema } => {
                let forced = migrations::force(&database, &schema, number).await?;
                output::print(
                    global,
                    &Forced {
                        forced,
                        version: number,
                    },
                )
            }
        }
    }
}

async fn down(
    global: &Global,
    database: &Database,
    schema: &Target,
    count: u32,
    confirm: Confirm,
) -> Result<Vec<Step>> {
    let plan = migrations::down_plan(database, schema, count).await?;
    if plan.is_empty() {
        return Ok(Vec::new());
    }
    confirm.check(|| {
        let plan: Vec<String> = plan.iter().map(rollback_text).collect();
        format!("this would roll back {}; the data would be lost", plan.join("; "))
    })?;
    migrations::down(database, schema, count, progress(global)).await
}

/// A rollback in words: `0006_state of tenant_acme, with the columns users.state_floor`.
fn rollback_text(rollback: &Rollback) -> String {
    let named = rollback.schemas.iter().take(SCHEMAS_NAMED_MAX);
    let mut text = format!(
        "{} of {}",
        rollback.migration,
        named.map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    if let Some(rest @ 1..) = rollback.schemas.len().checked_sub(SCHEMAS_NAMED_MAX) {
        text.push_str(&format!(" and {rest} more"));
    }
    let columns = rollback.columns.iter();
    let columns: Vec<String> = columns.map(|(table, column)| format!("{table}.{column}")).collect();
    for (kind, lost) in [("tables", rollback.tables.join(", ")), ("columns", columns.join(", "))] {
        if !lost.is_empty() {
            text.push_str(&format!(", with the {kind} {lost}"));
        }
    }
    text
}

/// Reports how many schemas are done.
fn progress(global: &Global) -> impl FnMut(usize, usize) {
    let mut progress = Progress::new(global, "migrating", None);
    let mut known = 0;
    move |done, total| {
        if std::mem::replace(&mut known, total) != total {
            progress.turn_to("migrating schemas", Some(total as u64));
        }
        progress.set(done as u64);
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Steps(Vec<Step>);

impl Render for Steps {
    fn text(&self, out: &mut Text) {
        if self.0.is_empty() {
            outln!(out, "nothing to do");
        }
        for step in &self.0 {
            outln!(out, "{step}");
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Statuses(Vec<Status>);

impl Render for Statuses {
    fn text(&self, out: &mut Text) {
        let row = |schema: &Status| {
            let pending = match schema.pending.as_slice() {
                [] => NOTHING.to_owned(),
                names => names.join(", "),
            };
            let state = match (schema.missing, schema.dirty) {
                (true, _) => "missing",
                (_, true) => "dirty",
                _ => "clean",
            };
            [
                Cell::from(schema.schema.clone()),
                Cell::number(schema.version),
                state.into(),
                pending.into(),
            ]
        };
        out.table(["SCHEMA", "VERSION", "STATE", "PENDING"], self.0.iter().map(row));
    }
}

#[derive(Serialize)]
struct Version {
    version: i32,
    dirty: bool,
}

/// Versions by schema; the control schema is first in the text.
#[derive(Serialize)]
#[serde(transparent)]
struct Versions {
    versions: BTreeMap<String, Version>,
    #[serde(skip)]
    order: Vec<String>,
}

impl Versions {
    fn of(status: Vec<Status>) -> Self {
        Self {
            order: status.iter().map(|schema| schema.schema.clone()).collect(),
            versions: status
                .into_iter()
                .map(|schema| {
                    let Status { version, dirty, .. } = schema;
                    (schema.schema, Version { version, dirty })
                })
                .collect(),
        }
    }
}

impl Render for Versions {
    fn text(&self, out: &mut Text) {
        for schema in &self.order {
            if let Some(Version { version, dirty }) = self.versions.get(schema) {
                outln!(out, "{schema} {version}{}", if *dirty { " (dirty)" } else { "" });
            }
        }
    }
}

#[derive(Serialize)]
struct Forced {
    forced: Vec<String>,
    version: i32,
}

impl Render for Forced {
    fn text(&self, out: &mut Text) {
        for schema in &self.forced {
            outln!(out, "{schema} is now at version {}", self.version);
        }
    }
}
