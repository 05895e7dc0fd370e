//! Consumer groups on `changes`: how other services read a tenant's changes, and how far each has come.
//!
//! A group here is Redis' own; groups of users who share rows are in [`crate::config::group`]. Trimming does not wait for it:
//! `changes` is cut only by its bound (`streams.changes_entries_max`), so a group that is further behind than that has lost
//! entries, which shows here.

use std::sync::Arc;

use redis::streams::{StreamInfoConsumersReply, StreamInfoGroupsReply, StreamPendingCountReply};
use redis::{ErrorKind, RedisError};

use crate::admin::streams;
use crate::contract::stream_name::Target;
use crate::core::position::StreamId;
use crate::redis::error::{has_code, is_missing_key, is_wrong_type};
use crate::redis::store::{Error, Store};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Consumers that it knows.
    pub consumers: u64,
    /// Entries that consumers were given and have not acknowledged.
    pub pending: u64,
    /// The last entry that a consumer was given.
    pub last_delivered: StreamId,
    /// Entries that no consumer was given yet.
    pub lag: Lag,
    /// Entries that were trimmed away before a consumer was given them: they are lost to the group.
    pub missed: Missed,
    /// The oldest pending entry, and how long ago it was given, in ms.
    pub oldest_pending: Option<Pending>,
}

/// How far a group is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// So many entries, those included that were trimmed away meanwhile.
    Entries(u64),
    /// At least so many. Redis does not report the lag of a group that began in the middle of a stream, and entries are
    /// not counted further.
    AtLeast(u64),
}

/// Entries that are counted where Redis reports no number.
const COUNTED_MAX: u64 = 10_000;

/// What trimming has taken from a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    Nothing,
    /// So many entries.
    Entries(u64),
    /// Some; Redis does not report how many.
    Some,
}

/// An entry that was given and not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its ID.
    pub id: StreamId,
    /// Whom it was given.
    pub consumer: String,
    /// Since it was given last, in ms.
    pub idle_ms: u64,
    /// How often.
    pub deliveries: u64,
}

/// A consumer of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Entries that it was given and has not acknowledged.
    pub pending: u64,
    /// Since it asked last, in ms.
    pub idle_ms: u64,
}

/// Whether Redis says that there is no such key or group, or another thing in its place.
fn is_absent(error: &RedisError) -> bool {
    is_wrong_type(error) || has_code(error, "NOGROUP") || is_missing_key(error)
}

/// The groups of a tenant's `changes`, by name; `None` when there is no such stream.
///
/// # Errors
/// When Redis fails.
pub async fn list(store: &Store, tenant: &str) -> Result<Option<Vec<Group>>, Error> {
    let target = Target::Changes(Arc::from(tenant));
    let key = target.key(store.keys());
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("GROUPS").arg(&key);
    pipe.cmd("XLEN").arg(&key);
    let answer: Result<(StreamInfoGroupsReply, u64), _> = store.query(&pipe).await;
    let (reply, length) = match answer {
        Ok(answer) => answer,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let trimmed = streams::trim_point(store, &target).await?;
    let mut groups = Vec::with_capacity(reply.groups.len());
    for group in reply.groups {
        let last_delivered: StreamId = group.last_delivered_id.parse().unwrap_or_default();
        let reported = group.lag.map(|lag| lag as u64);
        let lag = match reported {
            Some(lag) => Lag::Entries(lag),
            None => match streams::count(store, &key, last_delivered.next(), None, COUNTED_MAX).await? {
                counted if counted < COUNTED_MAX => Lag::Entries(counted),
                counted => Lag::AtLeast(counted),
            },
        };
        let has_missed = trimmed.is_some_and(|first_kept| last_delivered.next() < first_kept);
        let pending = match group.pending {
            0 => Vec::new(),
            _ => pending(store, tenant, &group.name, 1).await?,
        };
        groups.push(Group {
            consumers: group.consumers as u64,
            pending: group.pending as u64,
            last_delivered,
            lag,
            missed: match (reported, group.entries_read) {
                _ if !has_missed => Missed::Nothing,
                // All that is there it has still before it, and the rest of its lag is gone. Of a group that began in
                // the middle and has read nothing yet, Redis counts only what is there.
                (Some(lag), Some(_)) => Missed::Entries(lag.saturating_sub(length)),
                _ => Missed::Some,
            },
            oldest_pending: pending.into_iter().next(),
            name: group.name,
        });
    }
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(groups))
}

/// The consumers of a group, by name.
///
/// # Errors
/// When Redis fails, or there is no such group.
pub async fn consumers(store: &Store, tenant: &str, group: &str) -> Result<Vec<Consumer>, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO")
        .arg("CONSUMERS")
        .arg(store.keys().changes(tenant))
        .arg(group);
    let (reply,): (StreamInfoConsumersReply,) = store.query(&pipe).await?;
    let mut consumers: Vec<Consumer> = reply
        .consumers
        .into_iter()
        .map(|consumer| Consumer {
            name: consumer.name,
            pending: consumer.pending as u64,
            idle_ms: consumer.idle as u64,
        })
        .collect();
    consumers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(consumers)
}

/// The oldest entries that a group's consumers have not acknowledged.
///
/// # Errors
/// When Redis fails, or there is no such group.
pub async fn pending(store: &Store, tenant: &str, group: &str, most: usize) -> Result<Vec<Pending>, Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("XPENDING")
        .arg(store.keys().changes(tenant))
        .arg(group)
        .arg(&["-", "+"])
        .arg(most);
    let (reply,): (StreamPendingCountReply,) = store.query(&pipe).await?;
    let pending = reply.ids.into_iter().filter_map(|pending| {
        Some(Pending {
            id: pending.id.parse().ok()?,
            consumer: pending.consumer,
            idle_ms: pending.last_delivered_ms as u64,
            deliveries: pending.times_delivered as u64,
        })
    });
    Ok(pending.collect())
}

/// What became of a wish to make a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is made.
    New,
    /// One of this name was there, and stays as it is.
    Exists,
    /// There is no stream to make it on.
    NoStream,
}

/// Makes a group whose first entry is the one behind `after`.
///
/// # Errors
/// When Redis fails.
pub async fn create(store: &Store, tenant: &str, group: &str, after: StreamId) -> Result<Created, Error> {
    let made: Result<(), RedisError> = redis::cmd("XGROUP")
        .arg("CREATE")
        .arg(store.keys().changes(tenant))
        .arg(group)
        .arg(after.to_string())
        .query_async(&mut store.connection())
        .await;
    match made {
        Ok(()) => Ok(Created::New),
        Err(error) if has_code(&error, "BUSYGROUP") => Ok(Created::Exists),
        Err(error) if is_absent(&error) => Ok(Created::NoStream),
        Err(error) => Err(error.into()),
    }
}

/// Drops a group, and with it what it knows of pending entries. Gives false when there was none.
///
/// # Errors
/// When Redis fails.
pub async fn drop(store: &Store, tenant: &str, group: &str) -> Result<bool, Error> {
    let dropped: Result<i64, RedisError> = redis::cmd("XGROUP")
        .arg("DESTROY")
        .arg(store.keys().changes(tenant))
        .arg(group)
        .query_async(&mut store.connection())
        .await;
    match dropped {
        Ok(dropped) => Ok(dropped > 0),
        Err(error) if is_absent(&error) || error.kind() == ErrorKind::Server(redis::ServerErrorKind::ResponseError) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
