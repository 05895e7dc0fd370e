//! `posduif migrate`: versions of the control schema and of each tenant's schema.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Global;
use super::output::{self, outln};
use super::progress::Progress;
use super::table::Cell;
use crate::postgres::Database;
use crate::postgres::migrations::{self, Rollback, Step, Target};

/// Schemas that are named when a rollback is only told of; of more the number is said.
const SCHEMAS_NAMED_MAX: usize = 8;

/// Arguments of `posduif migrate`.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Apply every missing migration, to the control schema and to every tenant's
    Up,
    /// Roll back the last N migrations of each schema; its data goes with them
    Down {
        /// How many migrations of each schema
        #[arg(default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Which schema: `all` (every tenant's, not the control schema), `posduif` or `tenant_<name>`
        #[arg(long, default_value = "all", value_parser = Target::parse)]
        schema: Target,
        /// Yes, lose what the tables of these migrations hold
        #[arg(long)]
        yes: bool,
    },
    /// Show the version of every schema and what is pending
    Status,
    /// Show the version of every schema
    Version,
    /// Write down that a schema is at version N, and clean, without running anything
    Force {
        /// The version that is true
        #[arg(value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
        number: i32,
        /// Which schema: `all` (every tenant's, not the control schema), `posduif` or `tenant_<name>`
        #[arg(long, value_parser = Target::parse)]
        schema: Target,
    },
}

impl Migrate {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::Up => {
                let told = telling(global);
                let steps = migrations::up_with_progress(&database, &config.replication, told).await?;
                show_steps(global, &steps)
            }
            Verb::Down {
                count,
                schema,
                yes: false,
            } => {
                let plan = migrations::down_plan(&database, &schema, count).await?;
                if plan.is_empty() {
                    return show_steps(global, &[]);
                }
                let plan: Vec<String> = plan.iter().map(told).collect();
                bail!(
                    "this would roll back {}; what they hold would be lost; `--yes` does it",
                    plan.join("; ")
                );
            }
            Verb::Down { count, schema, .. } => {
                let steps = migrations::down(&database, &schema, count, telling(global)).await?;
                show_steps(global, &steps)
            }
            Verb::Status => {
                let status = migrations::status(&database).await?;
                if global.json {
                    output::json(&status)?;
                    return Ok(());
                }
                let rows = status.into_iter().map(|schema| {
                    let pending = match schema.pending.as_slice() {
                        [] => "-".to_owned(),
                        names => names.join(", "),
                    };
                    let state = match (schema.missing, schema.dirty) {
                        (true, _) => "missing",
                        (_, true) => "dirty",
                        _ => "clean",
                    };
                    [
                        Cell::from(schema.schema),
                        Cell::number(schema.version),
                        state.into(),
                        pending.into(),
                    ]
                });
                super::print_table(["SCHEMA", "VERSION", "STATE", "PENDING"], rows)
            }
            Verb::Version => {
                let status = migrations::status(&database).await?;
                if global.json {
                    let versions: serde_json::Map<_, _> = status
                        .into_iter()
                        .map(|schema| (schema.schema, json!({"version": schema.version, "dirty": schema.dirty})))
                        .collect();
                    output::json(&versions)?;
                    return Ok(());
                }
                for schema in status {
                    let dirty = if schema.dirty { " (dirty)" } else { "" };
                    outln!("{} {}{dirty}", schema.schema, schema.version)?;
                }
                Ok(())
            }
            Verb::Force { number, schema } => {
                let forced = migrations::force(&database, &schema, number).await?;
                if global.json {
                    outln!("{}", json!({"forced": forced, "version": number}))?;
                } else {
                    for schema in forced {
                        outln!("{schema} is now at version {number}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A rollback in words: `0006_state of tenant_acme, with the columns users.state_floor`.
fn told(rollback: &Rollback) -> String {
    let named = rollback.schemas.iter().take(SCHEMAS_NAMED_MAX);
    let mut told = format!(
        "{} of {}",
        rollback.migration,
        named.map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    if let Some(rest @ 1..) = rollback.schemas.len().checked_sub(SCHEMAS_NAMED_MAX) {
        told.push_str(&format!(" and {rest} more"));
    }
    let columns = rollback
        .columns
        .iter()
        .map(|(table, column)| format!("{table}.{column}"));
    for (kind, lost) in [
        (
            "tables",
            rollback.tables.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ),
        ("columns", columns.collect()),
    ] {
        if !lost.is_empty() {
            told.push_str(&format!(", with the {kind} {}", lost.join(", ")));
        }
    }
    told
}

/// Shows how many schemas are done.
fn telling(global: &Global) -> impl FnMut(usize, usize) {
    let mut progress = Progress::new(global, "migrating", None);
    let mut known = 0;
    move |done, total| {
        if std::mem::replace(&mut known, total) != total {
            progress.turn_to("migrating schemas", Some(total as u64));
        }
        progress.set(done as u64);
    }
}

fn show_steps(global: &Global, steps: &[Step]) -> Result<()> {
    if global.json {
        output::json(&steps)?;
    } else if steps.is_empty() {
        outln!("nothing to do")?;
    } else {
        for step in steps {
            outln!("{step}")?;
        }
    }
    Ok(())
}
