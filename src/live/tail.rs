//! The live tail: one reader of the live stream a process, which delivers its notices to the [`crate::live::hub`].

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config;
use crate::config::rule::MESSAGES;
use crate::contract::entry::Entry;
use crate::contract::group::{self, GroupId, Membership};
use crate::contract::keys::Keys;
use crate::contract::notice::{ChangeNotice, LiveEntry, Recipients};
use crate::core::backoff::Backoff;
use crate::core::event;
use crate::core::operation::Operation;
use crate::core::position::{EpochId, StreamId, TermId};
use crate::core::time::age_of;
use crate::live::hub::Hub;
use crate::net;
use crate::redis::cluster;
use crate::redis::store::Store;

/// How long one read waits for entries.
const BLOCK: Duration = Duration::from_millis(1000);

/// Entries taken at once; each is a batch of notices.
const COUNT: usize = 64;

/// After this time without an entry, longer than between any two heartbeats, connections are replaced.
const SILENCE: Duration = Duration::from_secs(15);

/// First and longest delay before a reconnect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A change as a live reader receives it, without the row. For one recipient or a whole tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notice {
    /// The change's place.
    pub id: StreamId,
    /// The term in which it was published; unknown where it was read from a stream.
    pub term: TermId,
    /// The table.
    pub table: String,
    /// The row's id.
    pub row_id: Option<String>,
    /// Transaction id.
    pub xid: u32,
    /// What it is for the recipient.
    pub op: Operation,
    /// The live event's name.
    pub event: String,
    /// The payload, JSON: the data of an outbox message, the group of a message, some columns of some tables.
    pub data: Option<String>,
    /// What clients receive, written once for all of them; see [`Notice::rendered`].
    pub(crate) rendered: OnceLock<Box<str>>,
}

impl Notice {
    /// What clients receive, written when it is first needed.
    pub fn rendered(&self, render: impl FnOnce(&Self) -> String) -> &str {
        self.rendered.get_or_init(|| render(self).into())
    }
}

impl Notice {
    /// The group that the recipients joined or left, if the event is about one.
    pub fn membership(&self) -> Option<Membership> {
        Membership::from_event(&self.event, self.data.as_deref()?)
    }

    /// The groups that the recipients left and joined by the change, in the order in which it happens.
    pub fn memberships(&self) -> Vec<Membership> {
        let data = self.data.as_deref();
        data.map_or(Vec::new(), |data| group::of_notice(&self.event, data))
    }

    /// The events that readers are given, where it has several memberships: one for each.
    pub fn parts(&self) -> Vec<Self> {
        let memberships = match group::is_about_membership(&self.event) {
            true => self.memberships(),
            false => return Vec::new(),
        };
        let parts = memberships.iter().map(|membership| Self {
            event: membership.event().to_owned(),
            data: Some(membership.payload()),
            rendered: OnceLock::new(),
            ..self.clone()
        });
        parts.collect()
    }

    /// The group to which a message goes: its name and id.
    pub fn group_of_message(&self) -> Option<serde_json::Value> {
        let is_there = self.table == MESSAGES && self.op != Operation::Delete;
        let data = self.data.as_ref().filter(|_| is_there)?;
        Some(serde_json::from_str::<serde_json::Value>(data).ok()?["group"].take())
    }

    /// The row's id, if it is a UUID.
    pub fn row_uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(self.row_id.as_deref()?).ok()
    }
}

impl From<Entry> for Notice {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            term: TermId::default(),
            row_id: entry.row_id().map(|id| id.to_string()),
            table: entry.table.to_string(),
            xid: entry.xid.unwrap_or_default(),
            op: entry.op,
            event: entry.event_name().to_owned(),
            data: entry.payload().map(|payload| payload.to_string()),
            rendered: OnceLock::new(),
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
    /// When that was received, by the monotonic clock.
    pub received_at: Option<Instant>,
    /// The epoch, once known.
    pub epoch: Option<EpochId>,
    /// The last entry seen.
    pub position: StreamId,
    /// Whether the tail follows now, with nothing behind it to be read.
    pub is_connected: bool,
}

impl Freshness {
    /// Whether the age is known and within a bound.
    pub fn is_within(&self, bound: Duration) -> bool {
        self.age().is_some_and(|age| age <= bound)
    }

    /// Age of what clients can see; `None` before the first heartbeat.
    pub fn age(&self) -> Option<Duration> {
        let received_at = self.received_at?;
        // The clocks of two machines may differ, and one may be set back.
        Some(age_of(self.heartbeat_ts).max(received_at.elapsed()))
    }
}

/// Receives each change before any reader of the hub does: caches of rows, for example. Calls must not block.
pub trait ChangeListener: std::fmt::Debug + Send + Sync {
    /// A change of a tenant, for these users or all; a notice comes once for each group of users.
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>);

    /// A change of a tenant, for the members of these groups; a call of [`Self::changed`] with the users precedes it.
    fn changed_for_groups(&self, _tenant: &str, _notice: &Notice, _groups: &[GroupId]) {}

    /// Changes may have been missed.
    fn lost(&self);

    /// Whether it needs changes now; without any active listener or reader, notices are not parsed.
    fn is_active(&self) -> bool {
        true
    }
}

/// Follows the live stream until `stop`. When it is silent, the connections of `store` are replaced as well.
pub async fn run(config: config::Redis, store: Store, hub: Hub, stop: CancellationToken) {
    let work = async {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut last: Option<StreamId> = None;
        loop {
            match follow(&config, &store, &hub, &mut last, &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => {
                    hub.set_connected(false);
                    tracing::warn!(%error, "live tail interrupted; reconnecting");
                }
            }
            tokio::time::sleep(backoff.next()).await;
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
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, redis::RedisError> {
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    cluster::locate(config).await?;
    let client = net::redis::client(config)?;
    let settings = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(BLOCK + timeout));
    let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
    let key = Keys::new(&config.keys_prefix()).live(0);
    let options = StreamReadOptions::default()
        .count(COUNT)
        .block(BLOCK.as_millis() as usize);
    let mut received_at = Instant::now();
    loop {
        let from = match *last {
            Some(last) => last,
            None => *last.insert(newest(&mut connection, &key).await?),
        };
        let reply: Option<StreamReadReply> = connection.xread_options(&[&key], &[from.to_string()], &options).await?;
        backoff.reset();
        let entries = reply
            .into_iter()
            .flat_map(|reply| reply.keys)
            .flat_map(|stream| stream.ids);
        let mut count = 0;
        for raw in entries {
            count += 1;
            let Ok(id) = raw.id.parse::<StreamId>() else { continue };
            let entry = LiveEntry::parse(|name| raw.get(name));
            receive(hub, id, &entry, last);
            store.note_tail(entry.epoch, id);
        }
        if count == 0 {
            // A stream that was recreated can have lower IDs: then no entry would ever follow.
            let newest = newest(&mut connection, &key).await?;
            if newest < from {
                *last = Some(StreamId::ZERO);
                hub.deliver_gap(StreamId::ZERO);
                continue;
            }
            if received_at.elapsed() > SILENCE {
                // No engine publishes, or none does so here any more: the address may lead to another server by now.
                store.renew();
                if cluster::locate(config).await? {
                    // The slot has moved to another node of the cluster.
                    return Err(std::io::Error::other("the lane is at another node").into());
                }
                connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
                received_at = Instant::now();
            }
        } else {
            received_at = Instant::now();
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

/// Delivers one entry. One that does not follow `last`, or is malformed, opens a gap: readers return to their streams.
pub fn receive(hub: &Hub, id: StreamId, entry: &LiveEntry, last: &mut Option<StreamId>) {
    let previous = *hub.freshness_sender().borrow();
    let is_gap = entry.previous != *last;
    let is_break = previous.epoch.is_some() && previous.epoch != entry.epoch;
    *last = Some(id);
    if is_gap || is_break {
        hub.deliver_gap(entry.previous.unwrap_or_default());
    }
    // A process without readers only needs the freshness.
    if hub.has_readers() {
        match entry.changes() {
            Ok(changes) => changes.into_iter().for_each(|change| dispatch(hub, entry.term, change)),
            Err(error) => {
                tracing::error!(%id, %error, "live entry is malformed; readers return to their streams");
                hub.deliver_gap(id);
            }
        }
    }
    hub.freshness_sender().send_modify(|freshness| {
        freshness.epoch = entry.epoch;
        freshness.position = id;
        if let Some(ts) = entry.heartbeat_ts {
            freshness.heartbeat_ts = ts;
            freshness.received_at = Some(Instant::now());
        }
    });
}

/// Delivers one notice: caches first, so that no reader finds a stale one, then devices, listeners and readers.
fn dispatch(hub: &Hub, term: TermId, change: ChangeNotice) {
    let tenant = change.tenant;
    let data = change.payload.map(|payload| String::from(Box::<str>::from(payload)));
    let mut notices: Vec<(Notice, Recipients)> = Vec::with_capacity(change.recipients.len());
    for recipients in change.recipients {
        let notice = Notice {
            id: change.id,
            term,
            table: change.table.clone(),
            row_id: change.row_id.clone(),
            xid: change.xid,
            op: recipients.operation,
            event: recipients.event.clone(),
            data: data.clone(),
            rendered: OnceLock::new(),
        };
        notices.push((notice, recipients));
    }
    // A reader takes a change once: one that is gone for one audience may be there by another.
    notices.sort_by_key(|(notice, _)| notice.op == Operation::Delete);
    for listener in hub.listeners().iter() {
        for (notice, recipients) in &notices {
            listener.changed(&tenant, notice, recipients.users.as_deref());
            if !recipients.groups.is_empty() {
                listener.changed_for_groups(&tenant, notice, &recipients.groups);
            }
        }
    }
    for (notice, Recipients { users, groups, .. }) in notices {
        if notice.event == event::DEVICE_CHANGED {
            match &users {
                None => hub.send_device_change(DeviceChange::Any),
                Some(users) => {
                    for &user in users {
                        let tenant = tenant.clone();
                        let xid = change.xid;
                        hub.send_device_change(DeviceChange::One { tenant, user, xid });
                    }
                }
            }
        }
        if let Some(users) = &users {
            for membership in notice.memberships() {
                hub.change_membership(&tenant, users, notice.id, &membership);
            }
        }
        hub.deliver(&tenant, users.as_deref(), &groups, notice);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn freshness_ages_whatever_the_wall_clocks_say() {
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seen = |heartbeat: Duration, received_at: Option<Instant>| Freshness {
            heartbeat_ts: i64::try_from(heartbeat.as_micros()).expect("a time of this age"),
            received_at,
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
