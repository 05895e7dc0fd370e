//! `posduif stream`: inspects and manages the streams in Redis.

mod groups;
mod list;
mod position;
mod quarantine;
mod rebuild;
mod show;
mod tail;
mod trim;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use postgres_types::PgLsn;
use uuid::Uuid;

use super::user::no_user;
use super::{Global, human};
use crate::accounts::users;
use crate::admin::published::{self, Reached};
use crate::admin::status::connect_redis;
use crate::admin::stream_report::Sources;
use crate::admin::streams::{Ids, Mark};
use crate::config::Config;
use crate::contract::checkpoint::View;
use crate::core::tenant::Tenant;
use crate::feature;
use crate::postgres::Database;
use crate::postgres::tenants;
use crate::redis::store::{Error, Store};

/// How long a command waits for an engine to publish its request.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Stream {
    /// The lane that has the streams
    #[arg(long, global = true, value_name = "LANE", default_value = crate::core::lane::MAIN)]
    lane: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the streams of each tenant: length, range, memory, trim point, stopped
    List(list::List),
    /// Show one stream in detail
    Show(show::Show),
    /// Follow changes as they are published
    Tail(tail::Tail),
    /// Trim the oldest entries of a stream
    Trim(trim::Trim),
    /// Recreate the inboxes of a tenant from Postgres
    Rebuild(rebuild::Rebuild),
    /// Consumer groups: other services that read `changes`
    Groups(groups::Groups),
    /// Changes that could not be routed or stored
    Quarantine(quarantine::Quarantine),
}

#[derive(Debug, Default, Args)]
struct Tenants {
    /// Only this tenant; may be repeated
    #[arg(long = "tenant", value_name = "TENANT")]
    named: Vec<String>,
}

impl Stream {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let context = Context::open(global, &self.lane).await?;
        match self.verb {
            Verb::List(list) => list.run(&context).await,
            Verb::Show(show) => show.run(&context).await,
            Verb::Tail(tail) => tail.run(&context).await,
            Verb::Trim(trim) => trim.run(&context).await,
            Verb::Rebuild(rebuild) => rebuild.run(&context).await,
            Verb::Groups(groups) => groups.run(&context).await,
            Verb::Quarantine(quarantine) => quarantine.run(&context).await,
        }
    }
}

/// What every verb works with.
struct Context<'a> {
    global: &'a Global,
    config: Config,
    database: Database,
    store: Store,
    /// The checkpoint; `None` before an engine has published anything.
    view: Option<View>,
}

impl<'a> Context<'a> {
    async fn open(global: &'a Global, lane: &str) -> Result<Self> {
        let config = super::of_lane(&global.load()?, lane)?;
        let database = Database::connect(&config.postgres).await?;
        let store = connect_redis(&config).await?;
        let view = match store.view().await {
            Ok(view) => Some(view),
            Err(Error::NoCheckpoint) => None,
            Err(error) => return Err(error).context("cannot read the checkpoint"),
        };
        Ok(Self {
            global,
            config,
            database,
            store,
            view,
        })
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            database: &self.database,
            store: &self.store,
            view: self.view,
            settings: &self.config.streams,
        }
    }

    /// What the IDs of published streams are.
    fn positions(&self) -> Ids {
        self.sources().positions()
    }

    /// A tenant that must exist.
    async fn tenant(&self, name: &str) -> Result<Tenant> {
        let listed = super::find_registered(&self.database, name).await?;
        listed.check()?;
        if listed.lane != self.config.lane.as_str() {
            bail!("the tenant {name} is in the lane {0}: add `--lane {0}`", listed.lane);
        }
        Ok(listed.tenant)
    }

    /// The named tenants, which must exist, or all.
    async fn tenants(&self, Tenants { named }: &Tenants) -> Result<Vec<Tenant>> {
        if named.is_empty() {
            let lane = &self.config.lane;
            return tenants::list_of(&self.database, lane)
                .await
                .context(tenants::UNREADABLE);
        }
        let mut found = Vec::with_capacity(named.len());
        for name in named {
            found.push(self.tenant(name).await?);
        }
        Ok(found)
    }

    /// A user by name, or any id: an inbox may outlive its user.
    async fn user(&self, tenant: &Tenant, user: &str) -> Result<Uuid> {
        match users::find(&self.database, tenant, user).await {
            Ok(account) => Ok(account.id),
            Err(feature::Error::NotFound(_)) => user.parse().ok().with_context(|| no_user(tenant, user)),
            Err(error) => Err(error).context("cannot query the user"),
        }
    }

    /// Waits until an engine has published a request that was written to the log at `position`.
    async fn wait_until_published(&self, position: PgLsn, progress: impl FnMut(Reached)) -> Result<()> {
        published::wait(&self.store, position, PUBLISH_TIMEOUT, progress)
            .await
            .context(
                "requested, but not published yet: it takes effect when an engine replicates; `posduif status` shows \
                 whether one does",
            )
    }
}

/// The ID and time of an entry, for people.
fn mark(mark: Option<&Mark>) -> String {
    match mark {
        None => super::table::NOTHING.to_owned(),
        Some(mark) => match mark.time {
            None => mark.id.to_string(),
            Some(time) => format!("{} ({})", mark.id, seconds(time)),
        },
    }
}

/// A time in UTC with seconds.
fn seconds(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// A duration in ms, for people.
fn duration(ms: u64) -> String {
    human::duration(Duration::from_millis(ms).as_secs_f64())
}
