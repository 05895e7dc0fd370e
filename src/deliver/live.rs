//! The live tail: one reader of the live stream a process, and its fan-out to everybody connected here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands, FromRedisValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::entry::Op;
use super::push::Heard;
use crate::change::StreamId;
use crate::config;
use crate::keys::Keys;
use crate::publish::checkpoint::EpochId;
use crate::transport;

/// How long one read waits for entries.
const BLOCK: Duration = Duration::from_millis(1000);

/// Entries taken at once; each is a batch of notices.
const COUNT: usize = 64;

/// Changed devices that may wait for who follows them.
const DEVICE_CHANGES_MAX: usize = 1024;

/// Pauses before a lost connection is made anew: first, longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// One change, for one recipient or a whole tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The change's place.
    pub id: StreamId,
    /// The table.
    pub table: String,
    /// The row's id.
    pub row_id: Option<String>,
    /// Transaction id.
    pub xid: u32,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    /// What it is for the recipient.
    pub op: Op,
    /// The live event's name.
    pub event: String,
    /// What a message says, JSON.
    pub data: Option<String>,
}

/// What a subscriber is woken with.
#[derive(Debug, Clone)]
pub enum Signal {
    /// A change.
    Notice(Arc<Notice>),
    /// Notices were missed or history broke: read the streams from the last seen place.
    Gap,
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
        if self.heartbeat_ts == 0 {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = Duration::from_micros(self.heartbeat_ts.unsigned_abs());
        Some(now.saturating_sub(then))
    }
}

/// Who must know of each change before any reader is told of it: what remembers rows. Calls must not block.
pub trait Follower: std::fmt::Debug + Send + Sync {
    /// A change of a tenant, for these users or all; a notice comes once for each group of users.
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>);

    /// Changes may have been missed.
    fn lost(&self);
}

/// A subscriber as the hub sees it.
#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Signal>,
    /// A signal did not fit. Until the reader has seen this it gets no more, so that nothing comes behind a hole.
    has_missed: Arc<AtomicBool>,
}

type Subscribers = HashMap<u64, Subscriber>;

#[derive(Debug, Default)]
struct Readers {
    by_user: HashMap<Uuid, Subscribers>,
}

/// Who is connected here, and how to reach them.
#[derive(Debug, Clone)]
pub struct Hub {
    tenants: Arc<Mutex<HashMap<String, Readers>>>,
    next: Arc<AtomicU64>,
    freshness: watch::Sender<Freshness>,
    device_changes: broadcast::Sender<DeviceChange>,
    heard: Arc<Heard>,
    follower: Arc<OnceLock<Arc<dyn Follower>>>,
    queue: usize,
}

/// A place in the hub; dropping it leaves.
#[derive(Debug)]
pub struct Subscription {
    signals: mpsc::Receiver<Signal>,
    has_missed: Arc<AtomicBool>,
    hub: Hub,
    tenant: String,
    user: Uuid,
    number: u64,
}

impl Subscription {
    /// The next signal, in order. After a burst that did not fit the queue, what fitted comes first and then a
    /// [`Signal::Gap`]. `None` when the hub is gone. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Signal> {
        match self.try_recv() {
            Some(signal) => Some(signal),
            None => self.signals.recv().await,
        }
    }

    /// A signal that waits already.
    pub fn try_recv(&mut self) -> Option<Signal> {
        match self.signals.try_recv() {
            Ok(signal) => Some(signal),
            // The queue was full when the flag was set, so whoever reads on comes by here.
            Err(_) => self.has_missed.swap(false, Ordering::SeqCst).then_some(Signal::Gap),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove(&self.tenant, self.user, self.number);
    }
}

impl Hub {
    /// A hub whose subscribers each hold up to this many signals.
    pub fn new(queue: usize) -> Self {
        Self {
            tenants: Arc::default(),
            next: Arc::default(),
            freshness: watch::Sender::default(),
            device_changes: broadcast::Sender::new(DEVICE_CHANGES_MAX),
            heard: Arc::default(),
            follower: Arc::default(),
            queue,
        }
    }

    /// Registers a reader. Signals from here on are queued, so register first and then read history.
    pub fn subscribe(&self, tenant: &str, user: Uuid) -> Subscription {
        let (queue, signals) = mpsc::channel(self.queue);
        let has_missed = Arc::new(AtomicBool::new(false));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = tenants.entry(tenant.to_owned()).or_default();
        let subscriber = Subscriber {
            queue,
            has_missed: has_missed.clone(),
        };
        readers.by_user.entry(user).or_default().insert(number, subscriber);
        Subscription {
            signals,
            has_missed,
            hub: self.clone(),
            tenant: tenant.to_owned(),
            user,
            number,
        }
    }

    /// Lets somebody know of each change first. There can be one.
    pub fn lead(&self, follower: Arc<dyn Follower>) {
        let _is_there = self.follower.set(follower);
    }

    fn set_connected(&self, is_connected: bool) {
        self.freshness.send_if_modified(|freshness| {
            let changes = freshness.is_connected != is_connected;
            freshness.is_connected = is_connected;
            changes
        });
    }

    /// Whether anybody here wants to know of changes.
    fn has_readers(&self) -> bool {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        !tenants.is_empty()
            || self.device_changes.receiver_count() > 0
            || self.follower.get().is_some()
            || self.heard.is_listening()
    }

    /// Freshness, as it changes.
    pub fn freshness(&self) -> watch::Receiver<Freshness> {
        self.freshness.subscribe()
    }

    /// Who got something, for who wakes devices.
    pub fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// Devices that changed, for caches of who may what.
    pub fn device_changes(&self) -> broadcast::Receiver<DeviceChange> {
        self.device_changes.subscribe()
    }

    /// How many readers there are.
    pub fn subscribers(&self) -> usize {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenants = tenants.values().flat_map(|readers| readers.by_user.values());
        of_tenants.map(HashMap::len).sum()
    }

    fn remove(&self, tenant: &str, user: Uuid, number: u64) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readers) = tenants.get_mut(tenant) else { return };
        if let Some(subscribers) = readers.by_user.get_mut(&user) {
            subscribers.remove(&number);
            if subscribers.is_empty() {
                readers.by_user.remove(&user);
            }
        }
        if readers.by_user.is_empty() {
            tenants.remove(tenant);
        }
    }

    /// Sends to a user's readers. One whose queue is full reads its streams when it has emptied the queue.
    fn send(subscribers: &Subscribers, signal: &Signal) {
        for subscriber in subscribers.values() {
            if !subscriber.has_missed.load(Ordering::SeqCst) && subscriber.queue.try_send(signal.clone()).is_err() {
                subscriber.has_missed.store(true, Ordering::SeqCst);
            }
        }
    }

    fn deliver(&self, tenant: &str, users: Option<&[Uuid]>, notice: Notice) {
        let signal = Signal::Notice(Arc::new(notice));
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readers) = tenants.get(tenant) else { return };
        match users {
            Some(users) => {
                for user in users {
                    if let Some(subscribers) = readers.by_user.get(user) {
                        Self::send(subscribers, &signal);
                    }
                }
            }
            None => readers
                .by_user
                .values()
                .for_each(|subscribers| Self::send(subscribers, &signal)),
        }
    }

    fn deliver_gap(&self) {
        if let Some(follower) = self.follower.get() {
            follower.lost();
        }
        let _ = self.device_changes.send(DeviceChange::Any);
        self.heard.note_gap();
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        for readers in tenants.values() {
            readers
                .by_user
                .values()
                .for_each(|subscribers| Self::send(subscribers, &Signal::Gap));
        }
    }
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

/// Follows the live stream until `stop`.
pub async fn run(config: config::Redis, hub: Hub, stop: CancellationToken) {
    let work = async {
        let mut wait = BACKOFF.0;
        let mut last: Option<StreamId> = None;
        loop {
            match follow(&config, &hub, &mut last, &mut wait).await {
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
    hub: &Hub,
    last: &mut Option<StreamId>,
    wait: &mut Duration,
) -> Result<std::convert::Infallible, redis::RedisError> {
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let client = transport::redis::client(config)?;
    let settings = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(BLOCK + timeout));
    let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
    let key = Keys::new(&config.prefix).live(0);
    let options = StreamReadOptions::default()
        .count(COUNT)
        .block(BLOCK.as_millis() as usize);
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
    let previous = *hub.freshness.borrow();
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
    hub.freshness.send_modify(|freshness| {
        freshness.epoch = epoch;
        freshness.position = id;
        if let Ok(ts) = field("heartbeat").parse() {
            freshness.heartbeat_ts = ts;
        }
    });
}

fn dispatch(hub: &Hub, notice: RawNotice) {
    let RawNotice(id, tenant, table, row_id, xid, commit_ts, groups, data) = notice;
    let Ok(id) = id.parse::<StreamId>() else { return };
    let notices: Vec<(Notice, Option<Vec<Uuid>>)> = groups
        .into_iter()
        .map(|(event, op, users)| {
            let notice = Notice {
                id,
                table: table.clone(),
                row_id: row_id.clone(),
                xid,
                commit_ts,
                op: Op::parse(&op),
                event,
                data: data.as_ref().map(|data| data.get().to_owned()),
            };
            (notice, users)
        })
        .collect();
    if let Some(follower) = hub.follower.get() {
        for (notice, users) in &notices {
            follower.changed(&tenant, notice, users.as_deref());
        }
    }
    for (notice, users) in notices {
        if notice.event == "device_changed" {
            let tell = |change| {
                let _ = hub.device_changes.send(change);
            };
            match &users {
                None => tell(DeviceChange::Any),
                Some(users) => {
                    for &user in users {
                        let tenant = tenant.clone();
                        tell(DeviceChange::One { tenant, user, xid });
                    }
                }
            }
        }
        hub.heard.note(&tenant, &notice.event, users.as_deref());
        hub.deliver(&tenant, users.as_deref(), notice);
    }
}
