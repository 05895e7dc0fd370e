//! The connections of readers, the checkpoint, and why nothing could be read. [`super::reading`] reads streams,
//! [`super::standing`] what a snapshot needs.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use redis::{Pipeline, RedisError};
use uuid::Uuid;

use crate::config;
use crate::config::group::Groups;
use crate::contract::budget::Exceeded;
use crate::contract::checkpoint::{Checkpoint, Published, View};
use crate::contract::keys::Keys;
use crate::contract::members::Members;
use crate::contract::meta::{self, Meta};
use crate::contract::window::WindowEntry;
use crate::core::position::{EpochId, StreamId, TermId};
use crate::core::resp::RespError;
use crate::redis::range::Connections;
use crate::redis::shared::SharedConnection;
use crate::telemetry::metrics::Operations;

/// Users whose memberships are remembered.
const ASSUMED_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis failed or did not answer in time.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// A key holds another type.
    #[error("the key {key} holds a {found}, which Posduif did not write; {fix}")]
    WrongType {
        key: String,
        /// The name of the type that it holds.
        found: String,
        /// What fixes it, in words.
        fix: String,
    },
    /// The replicator has not written a checkpoint yet.
    #[error("no checkpoint: the replicator has not started, or Redis was emptied")]
    NoCheckpoint,
    /// The replicator has not published that position.
    #[error("the replicator has not published that position yet")]
    NotPublished,
    /// The reader is ahead of the streams.
    #[error("the reader's position is beyond what is published: Redis lags or was set back")]
    NotReached,
    /// A stream of the user takes no entries, and all that it has is read: what follows is missing.
    #[error("a stream of this user has stopped: `posduif stream list` shows the cause")]
    Stopped,
    /// The operator has paused the tenant's delivery.
    #[error("the tenant is paused")]
    Paused,
}

impl From<RespError> for Error {
    fn from(error: RespError) -> Self {
        std::io::Error::from(error).into()
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Redis(error.into())
    }
}

/// Reads streams. Cloning shares the connections.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) connection: SharedConnection,
    /// For ranges of streams.
    pub(super) ranges: Connections,
    pub(super) keys: Keys,
    /// The groups of which it reads the streams.
    pub(super) groups: Groups,
    /// Memberships as last read, by tenant and user: what the next read of the user assumes.
    pub(super) assumed: Mutex<LruCache<(String, Uuid), Arc<Members>>>,
    pub(super) operations: Operations,
    /// The last entry that a reader of this process received.
    pub(super) furthest: Mutex<StreamId>,
    /// What the live tail has received.
    pub(super) tail: Mutex<Option<(EpochId, StreamId)>>,
    /// Since when a reader is ahead of the streams of a term, and how far.
    pub(super) ahead: Mutex<Option<NotReached>>,
    /// When a doubtful read last renewed the connections.
    pub(super) renewed: Mutex<Option<Instant>>,
    pub(super) timeout: Duration,
}

/// A reader that is ahead of the streams.
pub(super) struct NotReached {
    pub(super) term: TermId,
    pub(super) position: StreamId,
    pub(super) since: Instant,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("keys", &self.0.keys)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A store that connects when it is first used, and reads no streams of groups.
    pub fn new(config: &config::Redis) -> Result<Self, Error> {
        Self::with_groups(config, Groups::new())
    }

    /// A store for readers of users' streams, with those of groups.
    pub fn with_groups(config: &config::Redis, groups: Groups) -> Result<Self, Error> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        let operations = Operations::new("command");
        Ok(Self(Arc::new(Shared {
            connection: SharedConnection::new(config, timeout, operations.clone())?,
            ranges: Connections::new(config, operations.clone()),
            keys: Keys::new(&config.keys_prefix()),
            groups,
            assumed: Mutex::new(LruCache::new(ASSUMED_MAX)),
            furthest: Mutex::new(StreamId::ZERO),
            tail: Mutex::default(),
            ahead: Mutex::default(),
            renewed: Mutex::default(),
            operations,
            timeout,
        })))
    }

    /// The groups of which it reads the streams.
    pub fn groups(&self) -> &Groups {
        &self.0.groups
    }

    /// Whether there are any.
    pub fn has_groups(&self) -> bool {
        !self.0.groups.is_empty()
    }

    /// The shared connection.
    pub fn connection(&self) -> SharedConnection {
        self.0.connection.clone()
    }

    /// Counts of commands on the shared connections of this process.
    pub fn operations(&self) -> &Operations {
        &self.0.operations
    }

    /// Replaces the connections, in case that they are half-open, or lead to a server without a writer.
    pub fn renew(&self) {
        self.0.connection.renew();
        self.0.ranges.renew();
    }

    /// Names of keys.
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Runs commands that may run twice: they are repeated when the connection is lost.
    pub(crate) async fn query<T: redis::FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, RedisError> {
        match pipe.query_async(&mut self.connection()).await {
            Err(error) if error.is_io_error() && !error.is_timeout() => pipe.query_async(&mut self.connection()).await,
            result => result,
        }
    }

    /// The whole checkpoint; `None` before the first epoch.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] also when the checkpoint is malformed.
    pub async fn checkpoint(&self) -> Result<Option<Checkpoint>, Error> {
        let (mut pipe, key) = (redis::pipe(), self.0.keys.checkpoint());
        pipe.hgetall(&key);
        let (fields,): (HashMap<String, String>,) = self.query_key(&pipe, None, &key).await?;
        Checkpoint::parse(&fields).map_err(|_| Error::NoCheckpoint)
    }

    /// The part of the checkpoint that readers need.
    pub async fn view(&self) -> Result<View, Error> {
        let mut pipe = redis::pipe();
        checkpoint_command(&mut pipe, &self.0.keys);
        let key = self.0.keys.checkpoint();
        let (fields,): (Vec<Option<String>>,) = self.query_key(&pipe, None, &key).await?;
        parse_view(&fields)
    }

    /// Behind which position nothing was trimmed of the streams of a user.
    pub async fn kept_behind(&self, tenant: &str, user: Uuid, members: &Members) -> Result<StreamId, Error> {
        let mut pipe = redis::pipe();
        let fields = meta::fields_of_reader(user, members.groups.keys());
        pipe.cmd("HMGET").arg(self.0.keys.meta(tenant)).arg(fields);
        let (values,): (Values,) = self.query(&pipe).await?;
        Ok(Meta::parse(values).kept_behind())
    }

    /// The checkpoint, and the transactions that a snapshot may not see yet.
    pub async fn window(&self) -> Result<(View, Vec<WindowEntry>), Error> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        checkpoint_command(&mut pipe, &self.0.keys);
        pipe.hgetall(self.0.keys.window());
        let (checkpoint, window): (Values, Fields) = self.query(&pipe).await?;
        Ok((parse_view(&checkpoint)?, WindowEntry::parse_all(&window)))
    }

    /// Sends `PING`, with `redis.response_timeout_seconds` as the timeout.
    pub async fn check(&self) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("PING").ignore();
        match tokio::time::timeout(self.0.timeout, self.query::<()>(&pipe)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer within {} s", self.0.timeout.as_secs()),
            )
            .into()),
        }
    }

    /// Streams that take no entries, each with the cause.
    pub async fn stopped(&self) -> Result<std::collections::BTreeMap<String, String>, Error> {
        let (mut pipe, key) = (redis::pipe(), self.0.keys.stopped());
        pipe.hgetall(&key);
        let (stopped,) = self.query_key(&pipe, None, &key).await?;
        Ok(stopped)
    }

    /// Tenants that use more than their budget.
    pub async fn exceeded(&self) -> Result<BTreeMap<String, Exceeded>, Error> {
        let (mut pipe, key) = (redis::pipe(), self.0.keys.exceeded());
        pipe.hgetall(&key);
        let (tenants,): (BTreeMap<String, String>,) = self.query_key(&pipe, None, &key).await?;
        let exceeded = tenants.into_iter();
        Ok(exceeded
            .filter_map(|(tenant, text)| Some((tenant, text.parse().ok()?)))
            .collect())
    }

    /// How far publishing is.
    pub async fn published(&self) -> Result<Published, Error> {
        let mut pipe = redis::pipe();
        pipe.hmget(self.0.keys.checkpoint(), &Published::FIELDS);
        let (values,): (Vec<Option<String>>,) = self.query(&pipe).await?;
        Ok(Published::parse(&values))
    }
}

pub(super) type Values = Vec<Option<String>>;
pub(super) type Fields = HashMap<String, String>;

pub(super) fn checkpoint_command<'a>(pipe: &'a mut Pipeline, keys: &Keys) -> &'a mut Pipeline {
    pipe.cmd("HMGET").arg(keys.checkpoint()).arg(&View::FIELDS)
}

pub(super) fn parse_view(values: &[Option<String>]) -> Result<View, Error> {
    View::parse(values).ok_or(Error::NoCheckpoint)
}
