//! `posduif stream`: what Redis holds, and what can be done about it.

mod groups;
mod list;
mod place;
mod quarantine;
mod rebuild;
mod show;
mod tail;
mod trim;

use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::{Global, human};
use crate::accounts::users;
use crate::admin::published;
use crate::admin::streams::{self, Found, Ids, Mark};
use crate::config::Config;
use crate::contract::checkpoint::View;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::feature;
use crate::postgres::Database;
use crate::postgres::tenants;
use crate::redis::store::{Error, Store};

/// How long a command waits for an engine to publish what it has asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `posduif stream`.
#[derive(Debug, Args)]
pub(super) struct Stream {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show each tenant's streams: how long, from when to when, how large, trimmed where, stopped why
    List(list::List),
    /// Show one stream in detail
    Show(show::Show),
    /// Follow changes as they are published, of tenants that come meanwhile, too
    Tail(tail::Tail),
    /// Forget a stream's oldest entries
    Trim(trim::Trim),
    /// Make a tenant's inboxes anew from Postgres
    Rebuild(rebuild::Rebuild),
    /// Consumer groups: other services that read `changes`
    Groups(groups::Groups),
    /// What could not be routed or stored, and why
    Quarantine(quarantine::Quarantine),
}

/// Whose streams are shown.
#[derive(Debug, Default, Args)]
struct Tenants {
    /// Only this tenant's; may be given several times
    #[arg(long = "tenant", value_name = "TENANT")]
    named: Vec<String>,
}

impl Stream {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let bench = Bench::open(global).await?;
        match self.verb {
            Verb::List(list) => list.run(&bench).await,
            Verb::Show(show) => show.run(&bench).await,
            Verb::Tail(tail) => tail.run(&bench).await,
            Verb::Trim(trim) => trim.run(&bench).await,
            Verb::Rebuild(rebuild) => rebuild.run(&bench).await,
            Verb::Groups(groups) => groups.run(&bench).await,
            Verb::Quarantine(quarantine) => quarantine.run(&bench).await,
        }
    }
}

/// What every verb works with.
struct Bench<'a> {
    global: &'a Global,
    config: Config,
    database: Database,
    store: Store,
    /// The checkpoint; `None` before an engine has published anything.
    view: Option<View>,
}

impl<'a> Bench<'a> {
    async fn open(global: &'a Global) -> Result<Self> {
        let config = global.load()?;
        let database = Database::connect(&config.postgres).await?;
        let store = super::redis(&config).await?;
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

    /// What the IDs of published streams are.
    fn positions(&self) -> Ids {
        Ids::Positions(self.view.map_or(0, |view| view.base))
    }

    /// A tenant that must exist.
    async fn tenant(&self, name: &str) -> Result<Tenant> {
        super::find_tenant(&self.database, name).await
    }

    /// These tenants, which must exist, or all.
    async fn tenants(&self, Tenants { named }: &Tenants) -> Result<Vec<Tenant>> {
        if named.is_empty() {
            return tenants::list(&self.database)
                .await
                .context("cannot list the tenants; `posduif migrate up` makes the tables that hold them");
        }
        let mut found = Vec::with_capacity(named.len());
        for name in named {
            found.push(self.tenant(name).await?);
        }
        Ok(found)
    }

    /// A user of a tenant, by name, or by an id, which need not be any user's: its inbox may have outlived them.
    async fn user(&self, tenant: &Tenant, user: &str) -> Result<Uuid> {
        match users::find(&self.database, tenant, user).await {
            Ok(account) => Ok(account.id),
            Err(feature::Error::NotFound(_)) => user.parse().ok().with_context(|| {
                format!(
                    "there is no user {user:?} in tenant {name}; `posduif user list --tenant {name}` shows all",
                    name = tenant.name
                )
            }),
            Err(error) => Err(error).context("cannot ask for the user"),
        }
    }

    /// Waits until what was asked for by way of the log is done.
    async fn done(&self, place: postgres_types::PgLsn, seen: impl FnMut(published::Reached)) -> Result<()> {
        published::wait(&self.store, place, PATIENCE, seen).await.context(
            "asked for, and not done yet: it happens as soon as an engine replicates; `posduif status` shows whether \
             one does",
        )
    }
}

/// A stream as it is shown.
#[derive(Debug, Serialize)]
struct StreamView {
    stream: String,
    key: String,
    /// `stream`, `none`, or what else is in its place.
    #[serde(rename = "type")]
    kind: String,
    length: u64,
    first: Option<Mark>,
    last: Option<Mark>,
    memory_bytes: u64,
    /// Entries below this ID were trimmed.
    trimmed_below: Option<String>,
    /// Why it takes no entries.
    stopped: Option<String>,
}

impl StreamView {
    async fn look(bench: &Bench<'_>, stream: &str, key: String, ids: Ids) -> Result<(Self, Found)> {
        let found = streams::look(&bench.store, &key, ids).await?;
        let mut view = Self {
            stream: stream.to_owned(),
            key,
            kind: "none".to_owned(),
            length: 0,
            first: None,
            last: None,
            memory_bytes: 0,
            trimmed_below: None,
            stopped: None,
        };
        match &found {
            Found::Missing => {}
            Found::WrongType(kind) => view.kind.clone_from(kind),
            Found::Stream(shape) => {
                view.kind = "stream".to_owned();
                view.length = shape.length;
                view.first.clone_from(&shape.first);
                view.last.clone_from(&shape.last);
                view.memory_bytes = shape.memory_bytes;
            }
        }
        Ok((view, found))
    }

    /// A stream that the publisher writes.
    async fn look_at(bench: &Bench<'_>, target: &Target, stopped: &[streams::Stopped]) -> Result<(Self, Found)> {
        let key = target.key(bench.store.keys());
        let (mut view, found) = Self::look(bench, &target.stream(), key, bench.positions()).await?;
        view.trimmed_below = match streams::trim_point(&bench.store, target).await {
            Ok(point) => point.map(|id| id.to_string()),
            // Who looks at the tenant says so.
            Err(Error::WrongType { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        view.stopped = stopped
            .iter()
            .find(|stopped| stopped.target == *target)
            .map(|stopped| stopped.cause.clone());
        Ok((view, found))
    }

    /// What is wrong with it, in a few words.
    fn complaint(&self) -> Option<String> {
        match (&self.stopped, &*self.kind) {
            (Some(cause), _) => Some(format!("stopped: {cause}")),
            (None, "stream") => None,
            (None, "none") => Some("missing".to_owned()),
            (None, kind) => Some(format!("no stream but a {kind}")),
        }
    }
}

/// A place in a stream for people.
fn mark(mark: Option<&Mark>) -> String {
    match mark {
        None => "-".to_owned(),
        Some(mark) => match mark.time {
            None => mark.id.to_string(),
            Some(time) => format!("{} ({})", mark.id, seconds(time)),
        },
    }
}

/// A time for people: UTC, seconds.
fn seconds(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// A length of time for people, from ms.
fn duration(ms: u64) -> String {
    human::duration(Duration::from_millis(ms).as_secs_f64())
}

/// An ID that may be missing, for people.
fn dash(id: Option<impl ToString>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

/// Whether a text can be the name of a consumer group: what a terminal and a Redis command show as it is.
fn group_name(text: &str) -> Result<String, String> {
    let is_plain = !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic());
    is_plain
        .then(|| text.to_owned())
        .ok_or_else(|| "allowed are 1 to 128 visible ASCII characters without spaces".to_owned())
}
