//! Reads a user's entries from Redis with one round trip.
//!
//! Each read is a `MULTI`/`EXEC`, so that inbox, shared stream, trim points and checkpoint are of the same moment.
//! Otherwise a read could miss an entry of the inbox and return a later one of the shared stream.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use lru::LruCache;
use parking_lot::Mutex;
use redis::{Pipeline, RedisError};
use uuid::Uuid;

use crate::config;
use crate::config::group::Groups;
use crate::contract::checkpoint::{Checkpoint, Published, View};
use crate::contract::entry::Entry;
use crate::contract::group::GroupId;
use crate::contract::keys::Keys;
use crate::contract::lua;
use crate::contract::members::Members;
use crate::contract::meta::{self, Meta};
use crate::contract::stream_name::Target;
use crate::contract::terms::Continuity;
use crate::contract::window::WindowEntry;
use crate::core::position::{EpochId, StreamId, TermId};
use crate::core::resp::{self, RespError, transaction};
use crate::redis::merge::merge;
use crate::redis::range::Connections;
use crate::redis::read_position::{ReadPosition, verify};
use crate::redis::shared::SharedConnection;
use crate::telemetry::metrics::Operations;

/// Most entries read at once from one stream.
const READ_MAX: usize = 1000;

/// Fewest entries read at once from each stream of a user with groups.
const GROUP_ENTRIES_MIN: usize = 16;

/// Users whose memberships are remembered.
const ASSUMED_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// How often a read is repeated because the user joined or left a group meanwhile.
const MEMBERSHIP_READS_MAX: usize = 5;

/// How long a reader ahead of the streams waits for them, before it counts as one of a lost history. A stale server is
/// replaced within this time, or a session of the publisher begins, which decides.
const AHEAD_GRACE: Duration = Duration::from_secs(5);

/// Shortest time between two renewals of connections by doubtful reads.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

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

/// A range of a user's entries.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Entries of the user's streams in commit order.
    pub entries: Vec<Entry>,
    /// Everything up to here is in it.
    pub end: StreamId,
    /// There is more behind it.
    pub has_more: bool,
    /// See [`ReadPosition::is_incomplete`]: the reader was, or has passed a reset that its snapshot covers.
    pub is_incomplete: bool,
    /// The checkpoint at that moment.
    pub view: View,
    /// The user's memberships at that moment; empty without groups.
    pub members: Arc<Members>,
}

/// The result of a read.
#[derive(Debug, Clone)]
pub enum Read {
    /// What follows.
    Slice(Slice),
    /// The streams do not reach back to the position, or their continuity ends behind it: a snapshot is needed.
    Broken(View),
}

impl Read {
    /// The checkpoint at that moment.
    fn view(&self) -> &View {
        match self {
            Self::Slice(slice) => &slice.view,
            Self::Broken(view) => view,
        }
    }
}

/// Where the streams of a user are.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The checkpoint.
    pub view: View,
    /// The tenant's generation.
    pub generation: i64,
    /// Streams that must exist and do not.
    pub missing: Missing,
    /// Delivery is paused.
    pub is_paused: bool,
    /// The user's memberships; empty without groups.
    pub members: Arc<Members>,
    /// The memberships are not known, but must be.
    pub lacks_members: bool,
    /// Groups of the user whose stream does not exist.
    pub missing_groups: Vec<GroupId>,
}

/// What a snapshot needs before it is taken.
#[derive(Debug, Clone)]
pub struct Handoff {
    pub standing: Standing,
    /// Transactions that a snapshot may not see yet.
    pub window: Vec<WindowEntry>,
}

impl Standing {
    /// The place behind everything that is published.
    pub fn place(&self) -> ReadPosition {
        ReadPosition {
            epoch: self.view.epoch,
            generation: self.generation,
            term: self.view.term,
            position: self.view.position,
            resets_covered: None,
            is_incomplete: false,
        }
    }
}

/// Which of a user's streams do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The tenant's shared stream or meta hash.
    pub tenant: bool,
    /// The user's inbox.
    pub inbox: bool,
    /// The user's memberships, or the stream of one of the groups.
    pub groups: bool,
}

impl Missing {
    /// Whether any is missing.
    pub fn any(self) -> bool {
        self.tenant || self.inbox || self.groups
    }
}

/// Reads streams. Cloning shares the connections.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    connection: SharedConnection,
    /// For ranges of streams.
    ranges: Connections,
    keys: Keys,
    /// The groups of which it reads the streams.
    groups: Groups,
    /// Memberships as last read, by tenant and user: what the next read of the user assumes.
    assumed: Mutex<LruCache<(String, Uuid), Arc<Members>>>,
    operations: Operations,
    /// The last entry that a reader of this process received.
    furthest: Mutex<StreamId>,
    /// What the live tail has received.
    tail: Mutex<Option<(EpochId, StreamId)>>,
    /// Since when a reader is ahead of the streams of a term, and how far.
    ahead: Mutex<Option<NotReached>>,
    /// When a doubtful read last renewed the connections.
    renewed: Mutex<Option<Instant>>,
    timeout: Duration,
}

struct NotReached {
    term: TermId,
    position: StreamId,
    since: Instant,
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
            keys: Keys::new(&config.prefix),
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

    /// How far publishing is.
    pub async fn published(&self) -> Result<Published, Error> {
        let mut pipe = redis::pipe();
        pipe.hmget(self.0.keys.checkpoint(), &Published::FIELDS);
        let (values,): (Vec<Option<String>>,) = self.query(&pipe).await?;
        Ok(Published::parse(&values))
    }

    /// The entries behind a position, up to about `limit`, but no more than 1,000 of each stream. All of them are in
    /// memory together, so a caller that does not know their size passes a small limit.
    pub async fn read(&self, tenant: &str, user: Uuid, place: ReadPosition, limit: usize) -> Result<Read, Error> {
        let mut reading = self.read_once(tenant, user, place, limit).await?;
        if self.is_doubtful(&reading) && self.renew_if_due() {
            reading = self.read_once(tenant, user, place, limit).await?;
        }
        let (read, continuity) = reading;
        match continuity {
            Continuity::NotReached if self.is_awaited(read.view(), place.reach()) => Err(Error::NotReached),
            _ => Ok(read),
        }
    }

    /// Whether a read may be of a server that lags: the reader, or the live tail, has received more.
    fn is_doubtful(&self, (read, continuity): &(Read, Continuity)) -> bool {
        let view = read.view();
        let is_behind = |(epoch, position)| epoch != view.epoch || position > view.position;
        matches!(continuity, Continuity::NotReached | Continuity::Unknown) || self.0.tail.lock().is_some_and(is_behind)
    }

    /// Renews the connections, unless that was done a moment ago.
    fn renew_if_due(&self) -> bool {
        let mut renewed = self.0.renewed.lock();
        if renewed.is_some_and(|at| at.elapsed() < RENEW_INTERVAL) {
            return false;
        }
        *renewed = Some(Instant::now());
        self.renew();
        true
    }

    /// Whether the streams are expected to reach a position that is ahead of them.
    fn is_awaited(&self, view: &View, position: StreamId) -> bool {
        let mut ahead = self.0.ahead.lock();
        match &mut *ahead {
            // Behind the former position, the streams have made up for it.
            Some(ahead) if ahead.term == view.term && ahead.position > view.position => {
                ahead.position = ahead.position.max(position);
                ahead.since.elapsed() < AHEAD_GRACE
            }
            _ => {
                *ahead = Some(NotReached {
                    term: view.term,
                    position,
                    since: Instant::now(),
                });
                true
            }
        }
    }

    /// Records what the live tail has received: a read below is of a server that lags.
    pub fn note_tail(&self, epoch: Option<EpochId>, position: StreamId) {
        *self.0.tail.lock() = epoch.map(|epoch| (epoch, position));
    }

    /// The checkpoint, and whether everything up to a place of its epoch is in the streams.
    pub async fn verify(&self, place: ReadPosition) -> Result<(View, Continuity), Error> {
        let (mut pipe, terms) = (redis::pipe(), self.0.keys.terms());
        pipe.atomic();
        checkpoint_command(&mut pipe, &self.0.keys);
        pipe.hget(&terms, place.term.to_string());
        let (fields, ended): (Vec<Option<String>>, Option<String>) = self.query(&pipe).await?;
        let view = parse_view(&fields)?;
        Ok((view, verify(place, &view, ended)))
    }

    async fn read_once(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        limit: usize,
    ) -> Result<(Read, Continuity), Error> {
        let mut members = self.assumed(tenant, user).await?;
        for _ in 0..MEMBERSHIP_READS_MAX {
            match self.read_assuming(tenant, user, place, limit, &members).await? {
                Reading::Done(read, continuity) => return Ok((read, continuity)),
                Reading::OtherMembers(now) => {
                    members = Arc::new(now);
                    self.assume(tenant, user, &members);
                }
            }
        }
        Err(std::io::Error::other("the user's memberships changed with each read").into())
    }

    /// The groups that a read of a user assumes.
    async fn assumed(&self, tenant: &str, user: Uuid) -> Result<Arc<Members>, Error> {
        if !self.has_groups() {
            return Ok(Arc::default());
        }
        if let Some(assumed) = self.0.assumed.lock().get(&(tenant.to_owned(), user)) {
            return Ok(assumed.clone());
        }
        let mut pipe = redis::pipe();
        pipe.hgetall(self.0.keys.members(tenant, &user.to_string()));
        let (fields,): (HashMap<String, String>,) = self.query(&pipe).await?;
        let members = Arc::new(Members::parse(&fields));
        self.assume(tenant, user, &members);
        Ok(members)
    }

    fn assume(&self, tenant: &str, user: Uuid, members: &Arc<Members>) {
        self.0.assumed.lock().put((tenant.to_owned(), user), members.clone());
    }

    /// Reads the streams of a user with these memberships, and checks in the same transaction that they are right.
    async fn read_assuming(
        &self,
        tenant: &str,
        user: Uuid,
        place: ReadPosition,
        limit: usize,
        assumed: &Arc<Members>,
    ) -> Result<Reading, Error> {
        let (name, user_text): (Arc<str>, String) = (tenant.into(), user.to_string());
        let own = [Target::Inbox(name.clone(), user), Target::Shared(name.clone())];
        let mut streams: Vec<(Target, StreamId)> = own.map(|target| (target, place.position)).into();
        // Rows of before the user joined come by a snapshot of the group.
        let groups = assumed.groups.iter();
        streams.extend(groups.map(|(group, joined)| {
            let target = Target::Group(name.clone(), group.clone());
            (target, place.position.max(*joined))
        }));
        let count = match streams.len() {
            2 => limit,
            // All of them are in memory together.
            streams => (limit / streams).max(GROUP_ENTRIES_MIN),
        }
        .clamp(1, READ_MAX);
        let keys: Vec<String> = streams.iter().map(|(target, _)| target.key(&self.0.keys)).collect();
        let names: Vec<String> = streams.iter().map(|(target, _)| target.name()).collect();
        let from: Vec<String> = streams.iter().map(|(_, after)| after.next().to_string()).collect();
        let (meta, checkpoint) = (self.0.keys.meta(tenant), self.0.keys.checkpoint());
        let (stopped, terms, term) = (self.0.keys.stopped(), self.0.keys.terms(), place.term.to_string());
        let (members, count_text) = (self.0.keys.members(tenant, &user_text), count.to_string());
        let meta_fields = meta::fields_of_reader(user, assumed.groups.keys());
        let mut commands: Vec<Vec<&str>> = Vec::with_capacity(streams.len() + 6);
        for (key, from) in keys.iter().zip(&from) {
            commands.push(vec!["XRANGE", key, from, "+", "COUNT", &count_text]);
        }
        let exist = std::iter::once("EXISTS").chain(keys.iter().map(String::as_str));
        commands.push(exist.collect());
        commands.push(
            ["HMGET", &meta]
                .into_iter()
                .chain(meta_fields.iter().map(String::as_str))
                .collect(),
        );
        commands.push(["HMGET", &checkpoint].into_iter().chain(View::FIELDS).collect());
        commands.push(
            ["HMGET", &stopped]
                .into_iter()
                .chain(names.iter().map(String::as_str))
                .collect(),
        );
        commands.push(vec!["HMGET", &terms, &term]);
        if self.has_groups() {
            commands.push(vec!["HGETALL", &members]);
        }
        let reply = self.transact(&commands).await?;
        let mut replies = transaction(&reply, commands.len())?;
        let mut ranges = Vec::with_capacity(streams.len());
        for _ in &streams {
            ranges.push(Entry::read_range(&mut replies, &reply)?);
        }
        let existing = replies.integer()?;
        let (meta, checkpoint, stopped) = (replies.texts()?, replies.texts()?, replies.texts()?);
        let ended = replies.texts()?.into_iter().flatten().next();
        let members = if self.has_groups() {
            replies.texts()?
        } else {
            Vec::new()
        };

        let view = parse_view(&checkpoint)?;
        let meta = Meta::parse(meta);
        if meta.is_paused {
            return Err(Error::Paused);
        }
        let is_known = view.epoch == place.epoch && meta.generation == Some(place.generation);
        if !is_known || meta.is_trimmed_after(place.position) {
            return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
        }
        let mut held = assumed.clone();
        if self.has_groups() {
            let members = Members::parse(&pairs(members));
            let is_complete = members.is_of(view.epoch, meta.generation, meta.groups_reset)
                && members.since.is_some_and(|since| since <= place.position);
            if !is_complete {
                return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
            }
            if members.groups != assumed.groups {
                return Ok(Reading::OtherMembers(members));
            }
            held = Arc::new(members);
        }
        if existing != i64::try_from(streams.len()).unwrap_or(i64::MAX) {
            return Ok(Reading::Done(Read::Broken(view), Continuity::Valid));
        }
        let continuity = verify(place, &view, ended);
        if continuity != Continuity::Valid {
            return Ok(Reading::Done(Read::Broken(view), continuity));
        }
        let read = merge(ranges, count, place, view, (user, held));
        if let Read::Slice(slice) = &read {
            let Some(last) = slice.entries.last() else {
                return if !slice.has_more && stopped.iter().any(Option::is_some) {
                    Err(Error::Stopped)
                } else {
                    Ok(Reading::Done(read, continuity))
                };
            };
            let mut furthest = self.0.furthest.lock();
            *furthest = last.id.max(*furthest);
        }
        Ok(Reading::Done(read, continuity))
    }

    /// The last entry that a reader of this process received: cached rows must not be older.
    pub fn furthest(&self) -> StreamId {
        *self.0.furthest.lock()
    }

    /// Forgets it: IDs of the next epoch may be lower.
    pub fn forget_furthest(&self) {
        *self.0.furthest.lock() = StreamId::ZERO;
    }

    /// The entries of a user's inbox behind `after` up to and including `until`, at most `count`.
    pub async fn inbox(
        &self,
        tenant: &str,
        user: Uuid,
        after: StreamId,
        until: StreamId,
        count: usize,
    ) -> Result<Vec<Entry>, Error> {
        let inbox = self.0.keys.inbox(tenant, &user.to_string());
        let (from, until, count) = (after.next().to_string(), until.to_string(), count.to_string());
        let commands: [&[&str]; 1] = [&["XRANGE", &inbox, &from, &until, "COUNT", &count]];
        let reply = self.transact(&commands).await?;
        Ok(Entry::read_range(&mut transaction(&reply, commands.len())?, &reply)?)
    }

    /// Runs commands as one transaction and returns the replies as Redis sent them.
    async fn transact<'c>(&self, commands: &[impl AsRef<[&'c str]>]) -> Result<bytes::Bytes, RedisError> {
        let mut encoded = BytesMut::with_capacity(1024);
        resp::command(&mut encoded, &[b"MULTI"]);
        for command in commands {
            let command = command.as_ref();
            resp::begin(&mut encoded, command.len());
            command
                .iter()
                .for_each(|argument| resp::argument(&mut encoded, argument.as_bytes()));
        }
        resp::command(&mut encoded, &[b"EXEC"]);
        self.0.ranges.request(&encoded, commands.len() + 2).await
    }

    /// Where the streams of a user are now.
    pub async fn standing(&self, tenant: &str, user: Uuid) -> Result<Standing, Error> {
        let replies: StandingReplies = self.query(&self.standing_commands(tenant, user)).await?;
        self.stand(tenant, replies).await
    }

    /// What a snapshot needs before it is taken.
    pub async fn handoff(&self, tenant: &str, user: Uuid) -> Result<Handoff, Error> {
        let mut pipe = self.standing_commands(tenant, user);
        pipe.cmd("HGETALL").arg(self.0.keys.window());
        type Replies = (bool, bool, Values, Values, Fields, Fields);
        let (inbox, shared, meta, checkpoint, members, window): Replies = self.query(&pipe).await?;
        let standing = self.stand(tenant, (inbox, shared, meta, checkpoint, members)).await?;
        Ok(Handoff {
            standing,
            window: WindowEntry::parse_all(&window),
        })
    }

    fn standing_commands(&self, tenant: &str, user: Uuid) -> Pipeline {
        let mut pipe = redis::pipe();
        pipe.atomic();
        let user = user.to_string();
        pipe.cmd("EXISTS").arg(self.0.keys.inbox(tenant, &user));
        pipe.cmd("EXISTS").arg(self.0.keys.shared(tenant));
        pipe.cmd("HMGET")
            .arg(self.0.keys.meta(tenant))
            .arg(&[meta::GENERATION, meta::STATE, meta::GROUPS_RESET]);
        checkpoint_command(&mut pipe, &self.0.keys);
        pipe.cmd("HGETALL").arg(self.0.keys.members(tenant, &user));
        pipe
    }

    async fn stand(&self, tenant: &str, replies: StandingReplies) -> Result<Standing, Error> {
        let (inbox, shared, meta, checkpoint, members) = replies;
        let (meta, view) = (Meta::parse(meta), parse_view(&checkpoint)?);
        let mut members = Members::parse(&members);
        let mut missing_groups: Vec<GroupId> = Vec::new();
        let mut lacks_members = false;
        if self.has_groups() {
            lacks_members = !members.is_of(view.epoch, meta.generation, meta.groups_reset) || members.since.is_none();
            missing_groups = self.without_streams(tenant, members.groups.keys()).await?;
        } else {
            members = Members::default();
        }
        Ok(Standing {
            view,
            generation: meta.generation.unwrap_or(0),
            missing: Missing {
                tenant: !shared || meta.generation.is_none(),
                inbox: !inbox,
                groups: lacks_members || !missing_groups.is_empty(),
            },
            is_paused: meta.is_paused,
            members: Arc::new(members),
            lacks_members,
            missing_groups,
        })
    }

    /// Those of the groups that have no stream.
    async fn without_streams(
        &self,
        tenant: &str,
        groups: impl Iterator<Item = &GroupId> + Clone,
    ) -> Result<Vec<GroupId>, Error> {
        let mut pipe = redis::pipe();
        for group in groups.clone() {
            pipe.cmd("EXISTS").arg(self.0.keys.group(tenant, group));
        }
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        let exist: Vec<bool> = self.query(&pipe).await?;
        let missing = groups.zip(exist).filter(|(_, exists)| !exists);
        Ok(missing.map(|(group, _)| group.clone()).collect())
    }

    /// Lets the publisher keep a user's memberships from here on; gives what is published. `None` without a checkpoint or the
    /// tenant's streams.
    pub async fn mark_members(&self, tenant: &str, user: Uuid) -> Result<Option<StreamId>, Error> {
        let keys = [
            self.0.keys.members(tenant, &user.to_string()),
            self.0.keys.checkpoint(),
            self.0.keys.meta(tenant),
        ];
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(lua::MARK_MEMBERS).arg(keys.len()).arg(&keys);
        let (marked,): (Option<String>,) = self.query(&pipe).await?;
        Ok(marked.and_then(|marked| marked.parse().ok()))
    }

    /// Adds a user's memberships from Postgres, complete up to `since`, to what the publisher recorded since the mark.
    pub async fn add_members(
        &self,
        tenant: &str,
        user: Uuid,
        (mark, since): (StreamId, StreamId),
        groups: &[GroupId],
    ) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(lua::ADD_MEMBERS).arg(1);
        pipe.arg(self.0.keys.members(tenant, &user.to_string()));
        pipe.arg(mark.to_string()).arg(since.to_string());
        for group in groups {
            pipe.arg(group.to_string());
        }
        pipe.ignore();
        Ok(self.query::<()>(&pipe).await?)
    }
}

/// What came of a read that assumed a user's memberships.
enum Reading {
    Done(Read, Continuity),
    /// The user has these.
    OtherMembers(Members),
}

type Values = Vec<Option<String>>;
type Fields = HashMap<String, String>;

/// Whether the inbox and `shared` exist, the tenant's meta hash, the checkpoint, and the user's memberships.
type StandingReplies = (bool, bool, Values, Values, Fields);

/// Names and values that alternate.
fn pairs(texts: Values) -> Fields {
    let mut texts = texts.into_iter().flatten();
    std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect()
}

fn checkpoint_command<'a>(pipe: &'a mut Pipeline, keys: &Keys) -> &'a mut Pipeline {
    pipe.cmd("HMGET").arg(keys.checkpoint()).arg(&View::FIELDS)
}

fn parse_view(values: &[Option<String>]) -> Result<View, Error> {
    View::parse(values).ok_or(Error::NoCheckpoint)
}
