//! The live tail: one reader of the live stream a process, which tells the [`crate::live::hub`] what it names.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands, FromRedisValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config;
use crate::contract::entry::{Entry, Op};
use crate::contract::keys::Keys;
use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::live::hub::Hub;
use crate::net;
use crate::redis::store::Store;

/// How long one read waits for entries.
const BLOCK: Duration = Duration::from_millis(1000);

/// Entries taken at once; each is a batch of notices.
const COUNT: usize = 64;

/// After so long without an entry, longer than between any two heartbeats, connections are made anew.
const SILENCE: Duration = Duration::from_secs(15);

/// Pauses before a lost connection is made anew: first, longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A change as a live reader learns of it: thin, the row itself comes by sync or request. For one recipient or a whole
/// tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notice {
    /// The change's place.
    pub id: StreamId,
    /// The table.
    pub table: String,
    /// The row's id.
    pub row_id: Option<String>,
    /// Transaction id.
    pub xid: u32,
    /// What it is for the recipient.
    pub op: Op,
    /// The live event's name.
    pub event: String,
    /// What is told of it, JSON: what a message says, some columns of some tables.
    pub data: Option<String>,
    /// What clients are told of it, written down once for all of them; see [`Notice::told`].
    pub(crate) told: OnceLock<Box<str>>,
}

impl Notice {
    /// What clients are told of it, made when it is first needed.
    pub fn told(&self, make: impl FnOnce(&Self) -> String) -> &str {
        self.told.get_or_init(|| make(self).into())
    }
}

impl Notice {
    /// The row's id, if it is a UUID.
    pub fn row_uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(self.row_id.as_deref()?).ok()
    }
}

impl From<Entry> for Notice {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            row_id: entry.row_id().map(|id| id.to_string()),
            table: entry.table.to_string(),
            xid: entry.xid,
            op: entry.op,
            event: entry.event.to_string(),
            data: entry.told().map(|told| told.to_string()),
            told: OnceLock::new(),
        }
    }
}

/// Devices have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChange {
    /// One of this user.
    One {
        /// The tenant's name.
        tenant: String,
        /// The device's user.
        user: Uuid,
        /// Transaction id.
        xid: u32,
    },
    /// Maybe any: notices were missed.
    Any,
}

/// How fresh the read path is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Commit time of the last heartbeat seen here, µs since 1970; 0 before the first.
    pub heartbeat_ts: i64,
    /// When that was seen, by a clock that nobody sets.
    pub heard_at: Option<Instant>,
    /// The epoch, once known.
    pub epoch: Option<EpochId>,
    /// The last entry seen.
    pub position: StreamId,
    /// Whether the tail follows now, with nothing behind it to be read.
    pub is_connected: bool,
}

impl Freshness {
    /// Age of what clients can see; `None` before the first heartbeat.
    pub fn age(&self) -> Option<Duration> {
        let heard_at = self.heard_at?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = Duration::from_micros(self.heartbeat_ts.unsigned_abs());
        // The clocks of two machines may differ, and one may be set back.
        Some(now.saturating_sub(then).max(heard_at.elapsed()))
    }
}

/// Who must know of each change before any reader is told of it: what remembers rows. Calls must not block.
pub trait ChangeListener: std::fmt::Debug + Send + Sync {
    /// A change of a tenant, for these users or all; a notice comes once for each group of users.
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>);

    /// Changes may have been missed.
    fn lost(&self);
}

/// A notice as the live stream holds it.
#[derive(Debug, Deserialize)]
struct RawNotice(
    String,
    String,
    String,
    Option<String>,
    u32,
    i64,
    Vec<(String, String, Option<Vec<Uuid>>)>,
    #[serde(default)] Option<Box<RawValue>>,
);

/// Follows the live stream until `stop`. When that is silent, the connections of `store` are made anew as well.
pub async fn run(config: config::Redis, store: Store, hub: Hub, stop: CancellationToken) {
    let work = async {
        let mut wait = BACKOFF.0;
        let mut last: Option<StreamId> = None;
        loop {
            match follow(&config, &store, &hub, &mut last, &mut wait).await {
                Ok(never) => match never {},
                Err(error) => {
                    hub.set_connected(false);
                    tracing::warn!(%error, "live tail interrupted; trying again");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn follow(
    config: &config::Redis,
    store: &Store,
    hub: &Hub,
    last: &mut Option<StreamId>,
    wait: &mut Duration,
) -> Result<std::convert::Infallible, redis::RedisError> {
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let client = net::redis::client(config)?;
    let settings = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(BLOCK + timeout));
    let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
    let key = Keys::new(&config.prefix).live(0);
    let options = StreamReadOptions::default()
        .count(COUNT)
        .block(BLOCK.as_millis() as usize);
    let mut heard_at = Instant::now();
    loop {
        let from = match *last {
            Some(last) => last,
            None => *last.insert(newest(&mut connection, &key).await?),
        };
        let reply: Option<StreamReadReply> = connection.xread_options(&[&key], &[from.to_string()], &options).await?;
        *wait = BACKOFF.0;
        let entries = reply
            .into_iter()
            .flat_map(|reply| reply.keys)
            .flat_map(|stream| stream.ids);
        let mut count = 0;
        for raw in entries {
            count += 1;
            let Ok(id) = raw.id.parse::<StreamId>() else { continue };
            take_entry(hub, id, from_map(&raw.map), last);
        }
        if count == 0 {
            // A stream that was made anew can be behind us: then nothing would ever come.
            let newest = newest(&mut connection, &key).await?;
            if newest < from {
                *last = Some(StreamId::ZERO);
                hub.deliver_gap();
                continue;
            }
            if heard_at.elapsed() > SILENCE {
                // Nobody publishes, or nobody does so here any more: the address may lead to another server by now.
                store.renew();
                connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
                heard_at = Instant::now();
            }
        } else {
            heard_at = Instant::now();
        }
        // Behind a full read there may be more.
        if count < COUNT {
            hub.set_connected(true);
        }
    }
}

async fn newest(connection: &mut MultiplexedConnection, key: &str) -> Result<StreamId, redis::RedisError> {
    let reply: redis::streams::StreamRangeReply = connection.xrevrange_count(key, "+", "-", 1).await?;
    Ok(reply
        .ids
        .first()
        .and_then(|raw| raw.id.parse().ok())
        .unwrap_or(StreamId::ZERO))
}

fn from_map(map: &HashMap<String, redis::Value>) -> impl Fn(&str) -> String + '_ {
    |name| {
        map.get(name)
            .and_then(|value| String::from_redis_value_ref(value).ok())
            .unwrap_or_default()
    }
}

/// Takes in one entry, whose fields `field` gives (empty when absent), behind the entry `last`. What is not understood
/// sends readers back to their streams.
pub fn take_entry(hub: &Hub, id: StreamId, field: impl Fn(&str) -> String, last: &mut Option<StreamId>) {
    let previous = *hub.noted_freshness().borrow();
    let epoch = field("epoch").parse::<EpochId>().ok();
    // Each entry names the one before it, so a trimmed or lost one shows.
    let is_gap = field("prev").parse::<StreamId>().ok() != *last;
    let is_break = previous.epoch.is_some() && previous.epoch != epoch;
    *last = Some(id);
    if is_gap || is_break {
        hub.deliver_gap();
    }
    // A process that only replicates wants to know how fresh this is, and has nobody to tell.
    let notices = if hub.has_readers() {
        field("notices")
    } else {
        "[]".to_owned()
    };
    match serde_json::from_str::<Vec<RawNotice>>(&notices) {
        Ok(notices) => notices.into_iter().for_each(|notice| dispatch(hub, notice)),
        Err(error) => {
            tracing::error!(%id, %error, "live entry is not understood; readers go back to their streams");
            hub.deliver_gap();
        }
    }
    hub.noted_freshness().send_modify(|freshness| {
        freshness.epoch = epoch;
        freshness.position = id;
        if let Ok(ts) = field("heartbeat").parse() {
            freshness.heartbeat_ts = ts;
            freshness.heard_at = Some(Instant::now());
        }
    });
}

fn dispatch(hub: &Hub, notice: RawNotice) {
    let RawNotice(id, tenant, table, row_id, xid, _commit_ts, groups, data) = notice;
    let Ok(id) = id.parse::<StreamId>() else { return };
    let notices: Vec<(Notice, Option<Vec<Uuid>>)> = groups
        .into_iter()
        .map(|(event, op, users)| {
            let notice = Notice {
                id,
                table: table.clone(),
                row_id: row_id.clone(),
                xid,
                op: Op::parse(&op),
                event,
                data: data.as_ref().map(|data| data.get().to_owned()),
                told: OnceLock::new(),
            };
            (notice, users)
        })
        .collect();
    for listener in hub.listeners() {
        for (notice, users) in &notices {
            listener.changed(&tenant, notice, users.as_deref());
        }
    }
    for (notice, users) in notices {
        if notice.event == "device_changed" {
            match &users {
                None => hub.tell_device_change(DeviceChange::Any),
                Some(users) => {
                    for &user in users {
                        let tenant = tenant.clone();
                        hub.tell_device_change(DeviceChange::One { tenant, user, xid });
                    }
                }
            }
        }
        hub.heard().note(&tenant, &notice.event, users.as_deref());
        hub.deliver(&tenant, users.as_deref(), notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_long_ago_is_old_whatever_the_clocks_say() {
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seen = |heartbeat: Duration, heard_at: Option<Instant>| Freshness {
            heartbeat_ts: i64::try_from(heartbeat.as_micros()).expect("a time of this age"),
            heard_at,
            ..Freshness::default()
        };
        let just_now = Instant::now();
        assert_eq!(seen(now, None).age(), None);
        assert!(seen(now + hour, Some(just_now)).age().is_some_and(|age| age < hour));
        assert!(seen(now - hour, Some(just_now)).age().is_some_and(|age| age >= hour));
        let long_ago = just_now
            .checked_sub(Duration::from_secs(60))
            .expect("a machine that runs for a minute");
        assert!(
            seen(now + hour, Some(long_ago))
                .age()
                .is_some_and(|age| age >= Duration::from_secs(60))
        );
    }
}
