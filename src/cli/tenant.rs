//! `posduif tenant`: each tenant has its own schema.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Global;
use crate::database::{Database, tenants};

/// Arguments of `posduif tenant`.
#[derive(Debug, Args)]
pub(super) struct Tenant {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a tenant: schema, tables and publication entry; one that exists stays as it is
    Create {
        /// A letter and up to 47 of a-z, 0-9 and _
        name: String,
    },
    /// Show all tenants
    List,
}

impl Tenant {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::Create { name } => {
                let created = tenants::create(&database, &config.replication, &name).await?;
                if global.json {
                    println!("{}", json!({"name": name, "created": created}));
                } else if created {
                    println!("made the tenant {name}, schema tenant_{name}");
                } else {
                    println!("the tenant {name} exists already");
                }
            }
            Verb::List => {
                let tenants = tenants::list(&database).await?;
                if global.json {
                    let tenants: Vec<_> = tenants
                        .iter()
                        .map(|tenant| json!({"name": tenant.name, "schema": tenant.schema}))
                        .collect();
                    println!("{}", serde_json::to_string_pretty(&tenants)?);
                } else {
                    super::print_table(
                        ["TENANT", "SCHEMA"],
                        tenants.into_iter().map(|tenant| [tenant.name, tenant.schema]),
                    );
                }
            }
        }
        Ok(())
    }
}
