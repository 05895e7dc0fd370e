//! `posduif publication`: which tables of which tenants the log carries to us.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{self, outln};
use super::table::{Cell, Tone, table};
use super::{Global, human};
use crate::postgres::Database;
use crate::postgres::publication::{self, Coverage};

/// Arguments of `posduif publication`.
#[derive(Debug, Args)]
pub(super) struct Publication {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show which tables are published, which are missing, and which lack a replica identity
    Show {
        /// Only tables where something is missing
        #[arg(long)]
        missing: bool,
    },
    /// Add what is missing, as `migrate up` does; a table that has rows begins its tenant's streams anew
    Sync,
}

impl Publication {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        let name = &config.replication.publication;
        match self.verb {
            Verb::Show { missing } => {
                let mut coverage = publication::coverage(&database, name).await?;
                let is_complete = coverage.is_complete();
                if missing {
                    let is_whole = |table: &publication::Table| table.published && table.is_identified();
                    coverage.tables.retain(|table| !is_whole(table));
                }
                if global.json {
                    return output::json(&json!({
                        "publication": name,
                        "exists": coverage.exists,
                        "complete": is_complete,
                        "whole_schemas": coverage.whole_schemas,
                        "operations": coverage.operations,
                        "via_partition_root": coverage.via_partition_root,
                        "tables": coverage.tables,
                    }));
                }
                output::print(&show(name, &coverage))
            }
            Verb::Sync => {
                let done = publication::sync(&database, name).await?;
                if global.json {
                    let done: Vec<_> = done
                        .iter()
                        .map(|(tenant, included)| {
                            json!({
                                "tenant": tenant.name, "added": included.added, "identified": included.identified,
                                "keyed": included.keyed,
                                "resynced": included.has_rows,
                            })
                        })
                        .collect();
                    return output::json(&done);
                }
                if done.is_empty() {
                    return outln!("nothing to do");
                }
                for (tenant, included) in done {
                    for added in &included.added {
                        outln!("{}.{added} joined the publication {name}", tenant.schema)?;
                    }
                    for identified in &included.identified {
                        outln!("{}.{identified} has REPLICA IDENTITY FULL now", tenant.schema)?;
                    }
                    for keyed in &included.keyed {
                        outln!(
                            "{}.{keyed} has the replica identity of its primary key now, for its virtual columns",
                            tenant.schema
                        )?;
                    }
                    if included.has_rows {
                        outln!(
                            "the streams of {} begin anew, since they lack rows of what joined: its devices take a snapshot",
                            tenant.name
                        )?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn show(name: &str, coverage: &Coverage) -> String {
    let mut text = String::new();
    if !coverage.tables.is_empty() {
        let rows = coverage.tables.iter().map(|row| {
            let (is, tone) = if row.published {
                ("yes", Tone::Good)
            } else {
                ("MISSING", Tone::Bad)
            };
            let whole = if row.is_identified() { Tone::Plain } else { Tone::Bad };
            let identity = if row.virtual_columns {
                format!("{}, virtual columns", row.replica_identity)
            } else {
                row.replica_identity.clone()
            };
            [
                Cell::from(row.tenant.clone()),
                Cell::from(row.table.clone()),
                Cell::from(is).toned(tone),
                Cell::from(identity).toned(whole),
            ]
        });
        text.push_str(&table(["TENANT", "TABLE", "PUBLISHED", "REPLICA IDENTITY"], rows));
        text.push('\n');
    }
    if !coverage.exists {
        text.push_str(&format!(
            "the publication {name} does not exist: run `posduif publication sync`\n"
        ));
        return text;
    }
    let how = if coverage.whole_schemas {
        "whole schemas; new tables join by themselves"
    } else {
        "tables one by one; new ones join with `posduif publication sync`, `migrate up` or an engine's start"
    };
    let (missing, unidentified) = (coverage.missing().count(), coverage.unidentified().count());
    text.push_str(&format!(
        "{name} publishes {} of {how}\n",
        coverage.operations.join(", ")
    ));
    if !coverage.via_partition_root {
        text.push_str(
            "it publishes partitions under their own names, which no rule knows: drop it while no engine runs\n",
        );
    }
    if missing + unidentified > 0 {
        text.push_str(&format!(
            "{} missing, {} of another replica identity than needed: run `posduif publication sync`\n",
            human::count(missing, "table"),
            human::count(unidentified, "table")
        ));
    }
    text
}
