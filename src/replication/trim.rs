//! Decides what the streams may drop. The publisher, which alone writes to them, does the trimming.
//!
//! An inbox keeps the entries that the slowest active device of its user has not acknowledged, or whose statuses are
//! not settled, and keeps acknowledged ones for some time, so that a live reader can resume at an older position.
//! Bounds take precedence, see [`super::bounds`]: a device that falls behind them takes a snapshot.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres_types::Type;
use redis::streams::StreamRangeReply;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::bounds::{Cuts, Look};
use crate::config::Config;
use crate::contract::device_state::{self, TRIM_FIELDS};
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::core::tenant::Tenant;
use crate::core::time::age_of;
use crate::postgres::tenants;
use crate::postgres::{self, Database, sql};
use crate::publish::cut::{Cut, Keep};
use crate::redis::entries;
use crate::redis::error::is_wrong_type;
use crate::redis::store::Store;

/// Users per query.
pub(super) const PAGE: usize = 500;

/// Delay after a look at bounds that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Entries read at once from one stream.
const ENTRIES_PAGE: usize = 2000;

/// Trims periodically, and what is beyond its bounds as soon as that shows, until `stop`.
pub async fn run(config: Arc<Config>, database: Database, store: Store, cuts: Cuts, stop: CancellationToken) {
    let ticks = || {
        let mut ticks = tokio::time::interval(Duration::from_secs(config.streams.trim_interval_seconds));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    };
    let rounds = async {
        let mut ticks = ticks();
        loop {
            ticks.tick().await;
            if let Err(error) = round(&config, &database, &store, &cuts).await {
                tracing::warn!(cause = format!("{error:#}"), "trimming postponed");
            }
        }
    };
    let look = Look {
        config: &config,
        database: &database,
        store: &store,
        cuts: &cuts,
    };
    // Beside the rounds, which may take long.
    let relief = async {
        loop {
            cuts.ledger.full.notified().await;
            if let Err(error) = Box::pin(look.relieve()).await {
                tracing::warn!(cause = format!("{error:#}"), "Redis is full, and nothing was cut");
            }
        }
    };
    let looks = async {
        let mut ticks = ticks();
        loop {
            let is_round = tokio::select! {
                _ = ticks.tick() => true,
                () = cuts.ledger.urgent.notified() => false,
            };
            if let Err(error) = Box::pin(look.run(is_round)).await {
                tracing::warn!(cause = format!("{error:#}"), "bounds of streams not kept; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        () = looks => {}
        () = relief => {}
        () = stop.cancelled() => {}
    }
}

async fn round(config: &Config, database: &Database, store: &Store, cuts: &Cuts) -> Result<()> {
    for tenant in tenants::list_of(database, &config.lane)
        .await
        .context("cannot list the tenants")?
    {
        match round_of(&tenant, config, database, store, cuts).await {
            // A broken table of one tenant must not stop the trimming of the others.
            Err(error) if error.downcast_ref().is_some_and(postgres::Error::is_object_error) => {
                tracing::error!(
                    tenant = tenant.name,
                    cause = format!("{error:#}"),
                    "inboxes of the tenant not trimmed"
                );
            }
            result => result?,
        }
    }
    Ok(())
}

async fn round_of(tenant: &Tenant, config: &Config, database: &Database, store: &Store, cuts: &Cuts) -> Result<()> {
    let name: Arc<str> = tenant.name.as_str().into();
    let mut after = Uuid::nil();
    loop {
        let page = inboxes(config, database, tenant, after).await?;
        for (user, devices) in &page {
            after = *user;
            match inbox(config, store, &name, *user, devices).await {
                Ok(Some(cut)) => cuts.send(cut).await?,
                Ok(None) => {}
                Err(error) => skip_wrong_type(store, &Target::Inbox(name.clone(), *user), error)?,
            }
        }
        if page.len() < PAGE {
            break;
        }
    }
    Ok(())
}

/// Logs a key that holds no stream; other errors are returned.
fn skip_wrong_type(store: &Store, target: &Target, error: anyhow::Error) -> Result<()> {
    let refusal = error.downcast_ref::<redis::RedisError>();
    if !refusal.is_some_and(is_wrong_type) {
        return Err(error);
    }
    warn_of_type(store, target);
    Ok(())
}

/// Logs a key that holds no stream.
pub(super) fn warn_of_type(store: &Store, target: &Target) {
    tracing::warn!(
        key = target.key(store.keys()),
        "key not trimmed: it is no stream; run `posduif stream rebuild --tenant {}`",
        target.tenant()
    );
}

/// A page of users with their active devices.
pub(super) async fn inboxes(
    config: &Config,
    database: &Database,
    tenant: &Tenant,
    after: Uuid,
) -> Result<Vec<(Uuid, Vec<String>)>> {
    let idle_days = config.streams.device_idle_days as f64;
    let rows = database
        .query(
            &sql!("replication/trim_users", tenant),
            &[
                (&after, Type::UUID),
                (&(PAGE as i64), Type::INT8),
                (&idle_days, Type::FLOAT8),
            ],
        )
        .await
        .with_context(|| format!("cannot list the devices of tenant {}", tenant.name))?;
    rows.iter()
        .map(|row| Ok((row.try_get("user_id")?, row.try_get("devices")?)))
        .collect()
}

async fn inbox(
    config: &Config,
    store: &Store,
    tenant: &Arc<str>,
    user: Uuid,
    devices: &[String],
) -> Result<Option<Cut>> {
    let target = Target::Inbox(tenant.clone(), user);
    if devices.is_empty() {
        return Ok(None);
    }
    let mut pipe = redis::pipe();
    for device in devices {
        pipe.hmget(store.keys().device(tenant, device), &TRIM_FIELDS);
    }
    let positions: Vec<Vec<Option<String>>> = pipe.query_async(&mut store.connection()).await?;
    // A device that never acknowledged will take a snapshot and needs no entries.
    let Some(slowest) = positions
        .iter()
        .filter_map(|values| device_state::trim_point(values))
        .min()
    else {
        return Ok(None);
    };
    let key = target.key(store.keys());
    let reply: StreamRangeReply = redis::cmd("XRANGE")
        .arg(&key)
        .arg("-")
        .arg(slowest.to_string())
        .arg("COUNT")
        .arg(ENTRIES_PAGE)
        .query_async(&mut store.connection())
        .await?;
    let retention = Duration::from_secs(config.streams.retention_after_ack_seconds);
    let last_old = reply
        .ids
        .iter()
        .take_while(|entry| entries::commit_ts(entry).is_none_or(|ts| age_of(ts) > retention))
        .filter_map(|entry| entry.id.parse::<StreamId>().ok())
        .last();
    Ok(last_old.map(|id| Cut {
        target,
        keep: Keep::From(id.next()),
    }))
}

/// The nth entry of a stream, or its last one when it has fewer. Redis has no index by number, so this reads the stream
/// page by page.
pub async fn nth(store: &Store, key: &str, n: u64) -> Result<Option<StreamId>> {
    let mut left = n;
    let mut last: Option<StreamId> = None;
    while left > 0 {
        let page = left.min(ENTRIES_PAGE as u64);
        let reply: StreamRangeReply = redis::cmd("XRANGE")
            .arg(key)
            .arg(last.map_or("-".to_owned(), |id| id.next().to_string()))
            .arg("+")
            .arg("COUNT")
            .arg(page)
            .query_async(&mut store.connection())
            .await?;
        let Some(id) = reply.ids.last().and_then(|raw| raw.id.parse::<StreamId>().ok()) else {
            break;
        };
        last = Some(id);
        left -= page;
    }
    Ok(last)
}
