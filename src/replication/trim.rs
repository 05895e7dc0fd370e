//! Decides what the streams may drop. The publisher, which alone writes to them, does the trimming.
//!
//! An inbox keeps the entries that the slowest active device of its user has not acknowledged, or whose statuses are
//! not settled, and keeps acknowledged ones for some time, so that a live reader can resume at an older position.
//! Limits on the number of entries take precedence: a device that falls behind them takes a snapshot.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres_types::Type;
use redis::streams::StreamRangeReply;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

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
use crate::redis::info::Info;
use crate::redis::store::Store;

/// Users per query.
const PAGE: usize = 500;

/// Entries read at once from one stream.
const ENTRIES_PAGE: usize = 2000;

/// Most entries that one round trims from a stream beyond its limit; the next round continues.
const TRIM_MAX: u64 = 500_000;

/// Checks all streams periodically until `stop`.
pub async fn run(
    config: Arc<Config>,
    database: Database,
    store: Store,
    cuts: mpsc::Sender<Cut>,
    full: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(config.streams.trim_interval_seconds));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let rounds = async {
        loop {
            ticks.tick().await;
            if let Err(error) = round(&config, &database, &store, &cuts).await {
                tracing::warn!(cause = format!("{error:#}"), "trimming postponed");
            }
        }
    };
    // Beside the rounds, which may take long.
    let relief = async {
        loop {
            full.notified().await;
            if let Err(error) = relieve(&database, &store, &cuts).await {
                tracing::warn!(cause = format!("{error:#}"), "Redis is full, and nothing was cut");
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        () = relief => {}
        () = stop.cancelled() => {}
    }
}

/// Cuts the largest `changes` of all tenants to half, since Redis is full and what was due freed nothing. Services that
/// read it find the trim point; devices do not read it. While that is not enough, Redis refuses the next batch too, and
/// this is repeated.
async fn relieve(database: &Database, store: &Store, cuts: &mpsc::Sender<Cut>) -> Result<()> {
    let tenants = tenants::list(database).await.context("cannot list the tenants")?;
    let mut sizes: Vec<(u64, &Tenant)> = Vec::new();
    for page in tenants.chunks(PAGE) {
        let mut pipe = redis::pipe();
        for tenant in page {
            let key = store.keys().changes(&tenant.name);
            pipe.cmd("MEMORY").arg("USAGE").arg(key);
        }
        let bytes: Vec<Option<u64>> = pipe.query_async(&mut store.connection()).await?;
        sizes.extend(bytes.into_iter().map(Option::unwrap_or_default).zip(page));
    }
    // To cut what cannot be enough would only lose history.
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query_async(&mut store.connection())
        .await?;
    let info = Info::parse(&info);
    let [used, limit] = ["used_memory", "maxmemory"].map(|field| info.number(field).unwrap_or_default());
    let held = sizes.iter().map(|(bytes, _)| *bytes).sum();
    if used.saturating_sub(limit) > held {
        tracing::error!(
            used,
            limit,
            held,
            "Redis is full beyond what all `changes` hold; raise maxmemory"
        );
        return Ok(());
    }
    sizes.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    for (bytes, tenant) in sizes {
        let target = Target::Changes(tenant.name.as_str().into());
        let key = target.key(store.keys());
        let length = redis::cmd("XLEN").arg(&key).query_async(&mut store.connection()).await;
        let entries: u64 = match length {
            // Not ours to cut.
            Err(error) if is_wrong_type(&error) => continue,
            length => length?,
        };
        if entries > 1 {
            tracing::warn!(
                stream = key,
                bytes,
                entries,
                "Redis is full; cutting the largest `changes` to half"
            );
            let keep = Keep::Newest(entries / 2);
            cuts.send(Cut { target, keep }).await?;
            return Ok(());
        }
    }
    tracing::error!("Redis is full, and no tenant's `changes` has anything left to cut; raise maxmemory");
    Ok(())
}

async fn round(config: &Config, database: &Database, store: &Store, cuts: &mpsc::Sender<Cut>) -> Result<()> {
    for tenant in tenants::list(database).await.context("cannot list the tenants")? {
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

async fn round_of(
    tenant: &Tenant,
    config: &Config,
    database: &Database,
    store: &Store,
    cuts: &mpsc::Sender<Cut>,
) -> Result<()> {
    let name: Arc<str> = tenant.name.as_str().into();
    for (target, entries_max) in [
        (Target::Changes(name.clone()), config.streams.changes_entries_max),
        (Target::Shared(name.clone()), config.streams.shared_entries_max),
    ] {
        // A key of the wrong type must not stop the trimming of other streams.
        match beyond_limit(store, target.clone(), entries_max).await {
            Ok(Some(cut)) => cuts.send(cut).await?,
            Ok(None) => {}
            Err(error) => skip_wrong_type(store, &target, error)?,
        }
    }
    if !config.groups.is_empty() {
        groups(config, store, &name, cuts).await?;
    }
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

/// Trims the streams of groups that are beyond their limit.
async fn groups(config: &Config, store: &Store, tenant: &Arc<str>, cuts: &mpsc::Sender<Cut>) -> Result<()> {
    let entries_max = config.streams.group_entries_max;
    let mut cursor = "0".to_owned();
    loop {
        let (next, names): (String, Vec<String>) = redis::cmd("SSCAN")
            .arg(store.keys().groups(tenant))
            .arg(&cursor)
            .arg("COUNT")
            .arg(PAGE)
            .query_async(&mut store.connection())
            .await?;
        let groups = names.iter().filter_map(|name| name.parse().ok());
        let targets: Vec<Target> = groups.map(|group| Target::Group(tenant.clone(), group)).collect();
        let mut pipe = redis::pipe();
        for target in &targets {
            pipe.cmd("XLEN").arg(target.key(store.keys()));
        }
        // A key of the wrong type is an error of its own, below.
        let lengths: Vec<redis::Value> = match targets.is_empty() {
            true => Vec::new(),
            false => pipe.ignore_errors().query_async(&mut store.connection()).await?,
        };
        for (target, length) in targets.into_iter().zip(lengths) {
            if matches!(length, redis::Value::Int(length) if u64::try_from(length).is_ok_and(|length| length <= entries_max))
            {
                continue;
            }
            match beyond_limit(store, target.clone(), entries_max).await {
                Ok(Some(cut)) => cuts.send(cut).await?,
                Ok(None) => {}
                Err(error) => skip_wrong_type(store, &target, error)?,
            }
        }
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// Logs a key that holds no stream; other errors are returned.
fn skip_wrong_type(store: &Store, target: &Target, error: anyhow::Error) -> Result<()> {
    let refusal = error.downcast_ref::<redis::RedisError>();
    if !refusal.is_some_and(is_wrong_type) {
        return Err(error);
    }
    tracing::warn!(
        key = target.key(store.keys()),
        "key not trimmed: it is no stream; run `posduif stream rebuild --tenant {}`",
        target.tenant()
    );
    Ok(())
}

/// A page of users with their active devices.
async fn inboxes(
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
    if let Some(cut) = beyond_limit(store, target.clone(), config.streams.inbox_entries_max).await? {
        return Ok(Some(cut));
    }
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

/// The trim that brings a stream back to its limit.
async fn beyond_limit(store: &Store, target: Target, entries_max: u64) -> Result<Option<Cut>> {
    let key = target.key(store.keys());
    let length: u64 = redis::cmd("XLEN")
        .arg(&key)
        .query_async(&mut store.connection())
        .await?;
    let Some(excess) = length.checked_sub(entries_max).filter(|excess| *excess > 0) else {
        return Ok(None);
    };
    let last = nth(store, &key, excess.min(TRIM_MAX)).await?;
    Ok(last.map(|id| Cut {
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
