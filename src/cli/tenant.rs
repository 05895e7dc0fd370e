//! `posduif tenant`: manages tenants.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::human;
use super::output::{self, Render, Text, outln};
use super::progress::Progress;
use super::table::{Cell, Tone, or_nothing};
use super::{Confirm, Global, find_registered, find_tenant};
use crate::admin::status::connect_redis;
use crate::admin::streams::GroupTotals;
use crate::admin::tenants::{TenantRecord, TenantReport, dropped_meanwhile, report};
use crate::admin::{self, published};
use crate::config::Config;
use crate::core::lane;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, tenants};
use crate::redis::store::Store;

/// How long a drop waits for the replicator before it removes keys.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a resync waits for the replicator. The request is in the log and takes effect in any case.
pub(super) const RESYNC_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Tenant {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a tenant: schema, tables and publication entry. Applies the options to a tenant that exists
    Create {
        /// A letter and up to 47 of a-z, 0-9 and _
        #[arg(value_parser = new_name)]
        name: String,
        /// Whether web users may register themselves [default for a new tenant: closed]
        #[arg(long)]
        registration: Option<Registration>,
        /// The lane that has its streams; a tenant that exists stays where it is
        #[arg(long, default_value = lane::MAIN)]
        lane: String,
    },
    /// List all tenants
    List,
    /// Show the users, devices, conflicts and streams of a tenant
    Show {
        /// The tenant
        name: String,
    },
    /// Pause delivery to a tenant; changes accumulate in its streams, uploads are accepted
    Pause {
        /// The tenant
        name: String,
    },
    /// Resume delivery to a paused tenant
    Resume {
        /// The tenant
        name: String,
    },
    /// Drop a tenant: its schema with all rows, its streams, users and devices
    Drop {
        /// The tenant
        name: String,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Recreate the streams of a tenant: each of its devices takes a snapshot, other readers receive a reset
    Resync {
        /// The tenant
        name: String,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Move a tenant to another lane: each of its devices takes a snapshot, other readers receive a reset
    Move {
        /// The tenant
        name: String,
        /// The lane, one of `posduif lane list`
        lane: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Registration {
    Open,
    Closed,
}

fn registration_text(is_open: bool) -> &'static str {
    if is_open { "open" } else { "closed" }
}

fn new_name(text: &str) -> Result<String, String> {
    crate::core::tenant::is_valid_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "allowed are a letter and up to 47 of a-z, 0-9 and _".to_owned())
}

impl Tenant {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        match self.verb {
            Verb::Create {
                name,
                registration,
                lane,
            } => output::print(global, &create(&config, &database, name, registration, &lane).await?),
            Verb::Move { name, lane, confirm } => {
                output::print(global, &move_to(global, &config, &database, name, lane, confirm).await?)
            }
            Verb::Pause { name } => output::print(global, &set_paused(&database, name, true).await?),
            Verb::Resume { name } => output::print(global, &set_paused(&database, name, false).await?),
            Verb::Drop { name, confirm } => {
                output::print(global, &drop(global, &config, &database, name, confirm).await?)
            }
            Verb::Resync { name, confirm } => {
                output::print(global, &resync(global, &config, &database, name, confirm).await?)
            }
            Verb::Show { name } => show(global, &config, &database, &name).await,
            Verb::List => {
                let tenants = super::directory(&database).await?.into_iter().map(TenantRecord::of);
                output::print(global, &TenantList(tenants.collect()))
            }
        }
    }
}

#[derive(Serialize)]
struct Created {
    name: String,
    created: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration: Option<Registration>,
}

async fn create(
    config: &Config,
    database: &Database,
    name: String,
    registration: Option<Registration>,
    lane: &str,
) -> Result<Created> {
    super::of_lane(config, lane)?;
    let created = tenants::create(database, &config.replication, &name, lane).await?;
    if let Some(registration) = registration {
        tenants::set_registration(database, &name, registration == Registration::Open).await?;
    }
    Ok(Created {
        name,
        created,
        registration,
    })
}

impl Render for Created {
    fn text(&self, out: &mut Text) {
        let Self { name, .. } = self;
        let registration = self.registration.map_or_else(String::new, |registration| {
            let state = registration_text(registration == Registration::Open);
            format!("; registration is {state}")
        });
        if self.created {
            outln!(out, "created the tenant {name}, schema tenant_{name}{registration}");
        } else {
            outln!(out, "the tenant {name} exists already{registration}");
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct TenantList(Vec<TenantRecord>);

impl Render for TenantList {
    fn text(&self, out: &mut Text) {
        let row = |tenant: &TenantRecord| {
            let TenantRecord {
                name,
                schema,
                lane,
                state,
                ..
            } = tenant.clone();
            [name, schema, lane, state]
        };
        out.table(["TENANT", "SCHEMA", "LANE", "STATE"], self.0.iter().map(row));
    }
}

impl Render for TenantRecord {
    fn text(&self, out: &mut Text) {
        out.facts([
            ("tenant", &*self.name),
            ("schema", &self.schema),
            ("state", &self.state),
        ]);
    }
}

#[derive(Serialize)]
struct PauseState {
    name: String,
    state: &'static str,
}

async fn set_paused(database: &Database, name: String, paused: bool) -> Result<PauseState> {
    if !tenants::set_paused(database, &name, paused, &Actor::cli()).await? {
        bail!(super::no_tenant(&name));
    }
    let state = crate::core::tenant::state_name(paused);
    Ok(PauseState { name, state })
}

impl Render for PauseState {
    fn text(&self, out: &mut Text) {
        outln!(out, "the tenant {} is {}", self.name, self.state);
    }
}

#[derive(Serialize)]
struct Dropped {
    name: String,
    dropped: bool,
    keys: u64,
}

async fn drop(
    global: &Global,
    config: &Config,
    database: &Database,
    name: String,
    confirm: Confirm,
) -> Result<Dropped> {
    find_registered(database, &name).await?;
    let devices = tenants::count_devices(database, &name).await?;
    confirm.check(|| {
        format!("the schema tenant_{name} with all its rows, its streams and {devices} devices would be lost")
    })?;
    // Connected first, so that no keys are left behind.
    let config = super::in_lane(config, database, &name).await?;
    let store = connect_redis(&config).await?;
    let mut progress = Progress::new(global, "dropping the schema", None);
    let dropped = tenants::drop(database, &name)
        .await?
        .with_context(|| dropped_meanwhile(&name))?;
    progress.turn_to("removing keys in Redis", None);
    let removing = published::remove_tenant(database, (&store, &config.lane), &name, dropped, DROP_TIMEOUT, |keys| {
        progress.set(keys)
    });
    let keys = removing.await.with_context(|| {
        format!(
            "the tenant {name} is dropped, but its keys in Redis are not removed; when an engine replicates, create the \
             tenant and drop it again"
        )
    })?;
    Ok(Dropped {
        name,
        dropped: true,
        keys,
    })
}

impl Render for Dropped {
    fn text(&self, out: &mut Text) {
        outln!(out, "dropped the tenant {}, and {} keys in Redis", self.name, self.keys);
    }
}

#[derive(Serialize)]
struct Resynced {
    name: String,
    devices: i64,
    /// Whether an engine has published the request.
    published: bool,
}

async fn resync(
    global: &Global,
    config: &Config,
    database: &Database,
    name: String,
    confirm: Confirm,
) -> Result<Resynced> {
    find_tenant(database, &name).await?;
    let devices = tenants::count_devices(database, &name).await?;
    confirm.check(|| format!("the {devices} devices of tenant {name} would each take a snapshot"))?;
    let config = super::in_lane(config, database, &name).await?;
    let store = Store::new(&config.redis).context("key `redis.url`")?;
    let requested = admin::tenants::resync(database, &name, &Actor::cli())
        .await?
        .with_context(|| dropped_meanwhile(&name))?;
    let _progress = Progress::new(global, "waiting for the engine", None);
    let published = published::wait(&store, requested, RESYNC_TIMEOUT, |_| {}).await.is_ok();
    Ok(Resynced {
        name,
        devices,
        published,
    })
}

#[derive(Serialize)]
struct Moved {
    name: String,
    from: String,
    to: String,
    devices: i64,
    /// Whether the engine of the new lane has published the request.
    published: bool,
    /// Whether its keys in the former lane are removed.
    removed: bool,
}

async fn move_to(
    global: &Global,
    config: &Config,
    database: &Database,
    name: String,
    to: String,
    confirm: Confirm,
) -> Result<Moved> {
    let from = find_registered(database, &name).await?.lane;
    let (old, new) = (super::of_lane(config, &from), super::of_lane(config, &to)?);
    if from == to {
        bail!("the tenant {name} is in the lane {to} already");
    }
    let devices = tenants::count_devices(database, &name).await?;
    confirm.check(|| format!("the {devices} devices of tenant {name} would each take a snapshot"))?;
    let store = Store::new(&new.redis).context("its `redis_url`")?;
    let requested = tenants::move_to(database, &name, &to)
        .await?
        .with_context(|| dropped_meanwhile(&name))?;
    let mut progress = Progress::new(global, "waiting for the engine", None);
    let published = published::wait(&store, requested, RESYNC_TIMEOUT, |_| {}).await.is_ok();
    progress.turn_to("removing keys in the former lane", None);
    // The lane may be left because its Redis is gone; its engine removes the streams when that returns.
    let removing = async {
        let old = old?;
        let store = Store::new(&old.redis)?;
        let place = (&store, &old.lane);
        published::remove_tenant(database, place, &name, requested, RESYNC_TIMEOUT, |keys| {
            progress.set(keys)
        })
        .await
    };
    let removed = removing.await.is_ok();
    Ok(Moved {
        name,
        from,
        to,
        devices,
        published,
        removed,
    })
}

impl Render for Moved {
    fn text(&self, out: &mut Text) {
        let Self {
            name,
            from,
            to,
            devices,
            ..
        } = self;
        outln!(
            out,
            "moved the tenant {name} from the lane {from} to {to}; its {devices} devices take a snapshot at their next sync{}",
            later(self.published)
        );
        if !self.removed {
            outln!(
                out,
                "its keys of users and devices in {from} are not removed: no engine has published the move there"
            );
        }
    }
}

/// What follows "at the next sync" in a sentence.
pub(super) fn later(published: bool) -> &'static str {
    if published {
        ""
    } else {
        " after an engine has published the request; none has yet"
    }
}

impl Render for Resynced {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "the {} devices of tenant {} take a snapshot at their next sync{}",
            self.devices,
            self.name,
            later(self.published)
        );
    }
}

async fn show(global: &Global, config: &Config, database: &Database, name: &str) -> Result<()> {
    let listed = find_registered(database, name).await?;
    if let Err(error) = listed.check() {
        // The error repeats what the text would show.
        if global.json {
            output::print(global, &TenantRecord::of_broken(listed, &error))?;
        }
        return Err(error);
    }
    let config = &super::of_lane(config, &listed.lane)?;
    let store = connect_redis(config).await?;
    output::print(
        global,
        &report(database, &store, &listed.tenant, &config.streams).await?,
    )
}

/// How many groups have a stream, and which takes most.
fn groups(totals: &GroupTotals) -> String {
    match &totals.largest {
        None => "0".to_owned(),
        Some(largest) => format!(
            "{}, with {} entries; the largest is {}, {} entries, {}",
            totals.count,
            totals.entries,
            largest.group,
            largest.entries,
            human::bytes(largest.memory_bytes)
        ),
    }
}

/// What the streams of a tenant take of its budget.
pub(super) fn budget(used: u64, budget: u64, is_exceeded: bool) -> Cell {
    let text = format!("{} of {}", human::bytes(used), human::bytes(budget));
    if is_exceeded {
        Cell::from(format!("{text}; writes are refused")).toned(Tone::Bad)
    } else {
        text.into()
    }
}

impl Render for TenantReport {
    fn text(&self, out: &mut Text) {
        let (stats, streams) = (&self.stats, &self.streams);
        let state_tone = if stats.state == crate::core::tenant::PAUSED {
            Tone::Warning
        } else {
            Tone::Good
        };
        let quarantine_tone = if streams.lengths.quarantine == Some(0) {
            Tone::Plain
        } else {
            Tone::Warning
        };
        out.facts([
            ("tenant", Cell::from(self.name.clone())),
            ("schema", self.schema.clone().into()),
            ("state", Cell::from(stats.state.clone()).toned(state_tone)),
            ("created", stats.created_at.to_string().into()),
            ("generation", stats.generation.to_string().into()),
            ("registration", registration_text(stats.registration_open).into()),
            (
                "users",
                format!(
                    "{} web, {} mobile, {} of them disabled",
                    stats.web_users, stats.mobile_users, stats.disabled_users
                )
                .into(),
            ),
            (
                "devices",
                format!("{}, and {} revoked", stats.devices, stats.revoked_devices).into(),
            ),
            ("open conflicts", stats.open_conflicts.to_string().into()),
            (
                "quarantine",
                Cell::from(or_nothing(streams.lengths.quarantine)).toned(quarantine_tone),
            ),
            (
                "changes",
                format!("{} entries", or_nothing(streams.lengths.changes)).into(),
            ),
            (
                "shared",
                format!("{} entries", or_nothing(streams.lengths.shared)).into(),
            ),
            (
                "inboxes",
                format!(
                    "{}, with {} entries, {} in the longest",
                    streams.inboxes, streams.inbox_entries, streams.longest_inbox
                )
                .into(),
            ),
            ("groups", groups(&streams.groups).into()),
            (
                "memory",
                budget(streams.memory_bytes, streams.budget_bytes, streams.exceeded),
            ),
        ]);
        if let Some(error) = &streams.error {
            out.facts([("error", Cell::from(error.clone()).toned(Tone::Bad))]);
        }
    }
}
