//! `posduif tenant`: each tenant has its own schema.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::output::{self, outln};
use super::progress::Progress;
use super::table::{Cell, NOTHING, Tone, facts};
use super::{Global, find_registered, find_tenant};
use crate::accounts::users;
use crate::admin::published;
use crate::admin::streams::{self, Length};
use crate::config::Config;
use crate::postgres::tenants::Listed;
use crate::postgres::{Database, tenants};
use crate::redis::store::Store;

/// How long a drop waits for the replicator before it removes keys.
const DROP_PATIENCE: Duration = Duration::from_secs(30);

/// How long a resync waits for the replicator. It need not: what is asked for stands in the log.
const RESYNC_PATIENCE: Duration = Duration::from_secs(5);

/// Inboxes that are measured at a time.
const PAGE: i64 = 1000;

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
        #[arg(value_parser = new_name)]
        name: String,
        /// Whether anybody may register as a web user; closed in a new tenant
        #[arg(long)]
        registration: Option<Registration>,
    },
    /// Show all tenants
    List,
    /// Show what a tenant has: users, devices, conflicts, streams
    Show {
        /// The tenant
        name: String,
    },
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

/// Whether a text can name a tenant.
fn new_name(text: &str) -> Result<String, String> {
    crate::core::tenant::is_valid_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "allowed are a letter and up to 47 of a-z, 0-9 and _".to_owned())
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
                    outln!("{made}")?;
                } else {
                    let state = word.map_or(String::new(), |word| format!("; its registration is {word}"));
                    if created {
                        outln!("made the tenant {name}, schema tenant_{name}{state}")?;
                    } else {
                        outln!("the tenant {name} exists already{state}")?;
                    }
                }
            }
            Verb::Pause { name } => set_paused(&database, global, &name, true).await?,
            Verb::Resume { name } => set_paused(&database, global, &name, false).await?,
            Verb::Drop { name, yes } => {
                find_registered(&database, &name).await?;
                let devices = tenants::count_devices(&database, &name).await?;
                if !yes {
                    bail!(
                        "the schema tenant_{name} with all its rows, its streams and {devices} devices would be lost; \
                         `--yes` does it"
                    );
                }
                // Asked first, so that the keys are not left behind.
                let store = super::redis(&config).await?;
                let mut progress = Progress::new(global, "dropping the schema", None);
                let Some(dropped) = tenants::drop(&database, &name).await? else {
                    bail!("the tenant {name} was dropped by somebody else just now");
                };
                progress.turn_to("removing keys in Redis", None);
                let removing =
                    published::remove_tenant(&store, &name, dropped, DROP_PATIENCE, |keys| progress.set(keys));
                let keys = removing.await.with_context(|| {
                    format!(
                        "the tenant {name} is dropped, its keys in Redis are not; once an engine replicates, make it \
                         again and drop it"
                    )
                })?;
                drop(progress);
                if global.json {
                    outln!("{}", json!({"name": name, "dropped": true, "keys": keys}))?;
                } else {
                    outln!("dropped the tenant {name}, and {keys} keys in Redis")?;
                }
            }
            Verb::Resync { name, yes } => {
                find_tenant(&database, &name).await?;
                let devices = tenants::count_devices(&database, &name).await?;
                if !yes {
                    bail!("the {devices} devices of tenant {name} would each take a snapshot; `--yes` does it");
                }
                let store = Store::new(&config.redis).context("key `redis.url`")?;
                let Some(asked) = tenants::resync(&database, &name).await? else {
                    bail!("the tenant {name} was dropped by somebody else just now");
                };
                let progress = Progress::new(global, "waiting for the engine", None);
                let is_done = published::wait(&store, asked, RESYNC_PATIENCE, |_| {}).await.is_ok();
                drop(progress);
                if global.json {
                    outln!("{}", json!({"name": name, "devices": devices, "published": is_done}))?;
                } else if is_done {
                    outln!("the {devices} devices of tenant {name} take a snapshot with their next sync")?;
                } else {
                    outln!(
                        "the {devices} devices of tenant {name} take a snapshot with their next sync, once an engine \
                         replicates; none has published it yet"
                    )?;
                }
            }
            Verb::Show { name } => {
                let tenant = find_registered(&database, &name).await?;
                return show(global, &config, &database, &tenant).await;
            }
            Verb::List => {
                let tenants = super::directory(&database).await?;
                if global.json {
                    let tenants: Vec<_> = tenants
                        .iter()
                        .map(|listed| json!({"name": listed.tenant.name, "schema": listed.tenant.schema, "state": listed.state}))
                        .collect();
                    output::json(&tenants)?;
                } else {
                    super::print_table(
                        ["TENANT", "SCHEMA", "STATE"],
                        tenants
                            .into_iter()
                            .map(|listed| [listed.tenant.name, listed.tenant.schema, listed.state]),
                    )?;
                }
            }
        }
        Ok(())
    }
}

async fn show(global: &Global, config: &Config, database: &Database, listed: &Listed) -> Result<()> {
    let tenant = &listed.tenant;
    if let Err(error) = listed.check() {
        if !global.json {
            return Err(error);
        }
        output::json(&json!({
            "name": tenant.name, "schema": tenant.schema, "state": listed.state, "error": error.to_string(),
        }))?;
        return Err(error);
    }
    let missing = tenants::missing_tables(database, Some(&tenant.name)).await?;
    if !missing.is_empty() {
        bail!(
            "of tenant {} these tables are missing: {}; bring them back from a backup",
            tenant.name,
            missing.join(", ")
        );
    }
    let store = super::redis(config).await?;
    let tenant_stats = tenants::tenant_stats(database, tenant)
        .await?
        .with_context(|| format!("the tenant {} was dropped by somebody else just now", tenant.name))?;
    let mut lengths = streams::lengths_of(&store, &tenant.name).await?;
    let (mut inboxes, mut inbox_entries, mut longest) = (0_u64, 0_u64, 0_u64);
    let mut after = Uuid::nil();
    loop {
        let page = users::ids(database, tenant, after, PAGE).await?;
        let Some(&last) = page.last() else { break };
        let key = |user: &Uuid| store.keys().inbox(&tenant.name, &user.to_string());
        let keys: Vec<String> = page.iter().map(key).collect();
        for (key, length) in keys.iter().zip(streams::lengths(&store, &keys).await?) {
            match length {
                Length::Missing => {}
                Length::Entries(length) => {
                    inboxes += 1;
                    inbox_entries += length;
                    longest = longest.max(length);
                }
                Length::WrongType(kind) => lengths.note(&store, &tenant.name, key, &kind),
            }
        }
        after = last;
    }
    if global.json {
        let mut shown = serde_json::to_value(&tenant_stats)?;
        shown["name"] = tenant.name.clone().into();
        shown["schema"] = tenant.schema.clone().into();
        shown["streams"] = json!({
            "changes": lengths.changes, "shared": lengths.shared, "quarantine": lengths.quarantine,
            "inboxes": inboxes, "inbox_entries": inbox_entries, "longest_inbox": longest,
            "error": lengths.error(),
        });
        return output::json(&shown);
    }
    let is_paused = tenant_stats.state == crate::core::tenant::PAUSED;
    let length = |length: Option<u64>| length.map_or_else(|| NOTHING.to_owned(), |length| length.to_string());
    let quarantine = Cell::from(length(lengths.quarantine));
    let mut shown = vec![
        ("tenant", Cell::from(tenant.name.clone())),
        ("schema", tenant.schema.clone().into()),
        (
            "state",
            Cell::from(tenant_stats.state).toned(if is_paused { Tone::Warning } else { Tone::Good }),
        ),
        ("made", tenant_stats.created_at.to_string().into()),
        ("generation", tenant_stats.generation.to_string().into()),
        (
            "registration",
            if tenant_stats.registration_open {
                "open"
            } else {
                "closed"
            }
            .into(),
        ),
        (
            "users",
            format!(
                "{} web, {} mobile, {} of them disabled",
                tenant_stats.web_users, tenant_stats.mobile_users, tenant_stats.disabled_users
            )
            .into(),
        ),
        (
            "devices",
            format!("{}, and {} revoked", tenant_stats.devices, tenant_stats.revoked_devices).into(),
        ),
        ("open conflicts", tenant_stats.open_conflicts.to_string().into()),
        (
            "quarantine",
            quarantine.toned(if lengths.quarantine != Some(0) {
                Tone::Warning
            } else {
                Tone::Plain
            }),
        ),
        ("changes", format!("{} entries", length(lengths.changes)).into()),
        ("shared", format!("{} entries", length(lengths.shared)).into()),
        (
            "inboxes",
            format!("{inboxes}, with {inbox_entries} entries, {longest} in the longest").into(),
        ),
    ];
    if let Some(error) = lengths.error() {
        shown.push(("wrong", Cell::from(error).toned(Tone::Bad)));
    }
    output::print(&facts(shown))
}

async fn set_paused(database: &Database, global: &Global, name: &str, paused: bool) -> Result<()> {
    if !tenants::set_paused(database, name, paused).await? {
        bail!("there is no tenant {name}; `posduif tenant list` shows all");
    }
    let state = crate::core::tenant::state_name(paused);
    if global.json {
        outln!("{}", json!({"name": name, "state": state}))?;
    } else {
        outln!("the tenant {name} is {state}")?;
    }
    Ok(())
}
