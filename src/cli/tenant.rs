//! `posduif tenant`: each tenant has its own schema.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Global;
use crate::database::{Database, tenants};
use crate::deliver::store::Store;

/// How long a drop waits for the replicator before it removes keys.
const DROP_PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `posduif tenant`.
#[derive(Debug, Args)]
pub(super) struct Tenant {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a tenant: schema, tables and publication entry; one that exists keeps all but what is named here
    Create {
        /// A letter and up to 47 of a-z, 0-9 and _
        name: String,
        /// Whether anybody may register as a web user; closed in a new tenant
        #[arg(long)]
        registration: Option<Registration>,
    },
    /// Show all tenants
    List,
    /// Stop a tenant's delivery; what is published meanwhile waits in its streams, uploads are taken
    Pause {
        /// The tenant
        name: String,
    },
    /// Let a paused tenant's delivery go on
    Resume {
        /// The tenant
        name: String,
    },
    /// Drop a tenant: its schema with all rows, its streams, users and devices
    Drop {
        /// The tenant
        name: String,
        /// Do it: without this, only what would be lost is said
        #[arg(long)]
        yes: bool,
    },
    /// Begin a tenant's streams anew: each of its devices takes a snapshot, other readers get a reset
    Resync {
        /// The tenant
        name: String,
        /// Do it: without this, only what would happen is said
        #[arg(long)]
        yes: bool,
    },
}

/// Whether anybody may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Registration {
    Open,
    Closed,
}

impl Tenant {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::Create { name, registration } => {
                let created = tenants::create(&database, &config.replication, &name).await?;
                if let Some(registration) = registration {
                    tenants::set_registration(&database, &name, registration == Registration::Open).await?;
                }
                let word = registration.map(|registration| match registration {
                    Registration::Open => "open",
                    Registration::Closed => "closed",
                });
                if global.json {
                    let mut made = json!({"name": name, "created": created});
                    if let Some(word) = word {
                        made["registration"] = word.into();
                    }
                    println!("{made}");
                } else {
                    let state = word.map_or(String::new(), |word| format!("; its registration is {word}"));
                    if created {
                        println!("made the tenant {name}, schema tenant_{name}{state}");
                    } else {
                        println!("the tenant {name} exists already{state}");
                    }
                }
            }
            Verb::Pause { name } => set_paused(&database, global, &name, true).await?,
            Verb::Resume { name } => set_paused(&database, global, &name, false).await?,
            Verb::Drop { name, yes } => {
                if tenants::find(&database, &name).await?.is_none() {
                    bail!("there is no tenant {name}; `posduif tenant list` shows all");
                }
                let devices = tenants::count_devices(&database, &name).await?;
                if !yes {
                    bail!(
                        "the schema tenant_{name} with all its rows, its streams and {devices} devices would be lost; \
                         `--yes` does it"
                    );
                }
                let store = Store::new(&config.redis).context("key `redis.url`")?;
                let Some(dropped) = tenants::drop(&database, &name).await? else {
                    bail!("the tenant {name} was dropped by somebody else just now");
                };
                let keys = store.remove_tenant(&name, dropped, DROP_PATIENCE).await.with_context(|| {
                    format!(
                        "the tenant {name} is dropped, its keys in Redis are not; once an engine replicates, make it \
                         again and drop it"
                    )
                })?;
                if global.json {
                    println!("{}", json!({"name": name, "dropped": true, "keys": keys}));
                } else {
                    println!("dropped the tenant {name}, and {keys} keys in Redis");
                }
            }
            Verb::Resync { name, yes } => {
                if tenants::find(&database, &name).await?.is_none() {
                    bail!("there is no tenant {name}; `posduif tenant list` shows all");
                }
                let devices = tenants::count_devices(&database, &name).await?;
                if !yes {
                    bail!("the {devices} devices of tenant {name} would each take a snapshot; `--yes` does it");
                }
                tenants::resync(&database, &name).await?;
                if global.json {
                    println!("{}", json!({"name": name, "devices": devices}));
                } else {
                    println!("the {devices} devices of tenant {name} take a snapshot with their next sync");
                }
            }
            Verb::List => {
                let tenants = tenants::directory(&database).await?;
                if global.json {
                    let tenants: Vec<_> = tenants
                        .iter()
                        .map(|listed| json!({"name": listed.tenant.name, "schema": listed.tenant.schema, "state": listed.state}))
                        .collect();
                    println!("{}", serde_json::to_string_pretty(&tenants)?);
                } else {
                    super::print_table(
                        ["TENANT", "SCHEMA", "STATE"],
                        tenants
                            .into_iter()
                            .map(|listed| [listed.tenant.name, listed.tenant.schema, listed.state]),
                    );
                }
            }
        }
        Ok(())
    }
}

async fn set_paused(database: &Database, global: &Global, name: &str, paused: bool) -> Result<()> {
    if !tenants::set_paused(database, name, paused).await? {
        bail!("there is no tenant {name}; `posduif tenant list` shows all");
    }
    let state = tenants::state_name(paused);
    if global.json {
        println!("{}", json!({"name": name, "state": state}));
    } else {
        println!("the tenant {name} is {state}");
    }
    Ok(())
}
