//! What a user must see, read from Redis with one round trip.
//!
//! Each read is a `MULTI`/`EXEC`, so that inbox, shared stream, trim points and checkpoint are of the same moment: read
//! one after the other, an entry of the inbox could be missed while a later one of the shared stream is seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use postgres_types::PgLsn;
use redis::{Pipeline, RedisError};
use uuid::Uuid;

use crate::config;
use crate::contract::checkpoint::Checkpoint;
use crate::contract::entry::{Entry, Op};
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::contract::window::WindowEntry;
use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::core::resp;
use crate::core::resp::transaction;
use crate::core::tenant::PAUSED;
use crate::redis::range::Connections;
use crate::redis::shared::SharedConnection;
use crate::telemetry::metrics::Operations;

/// Most entries read at once from one stream.
const READ_MAX: usize = 1000;

/// Fields of the checkpoint that make a [`View`].
const VIEW: [&str; 4] = ["epoch", "base", "position", "published"];

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis failed or did not answer in time.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// Something else is in a key's place.
    #[error("the key {key} holds a {found}, which is not ours; {fix}")]
    WrongType {
        /// The key.
        key: String,
        /// The name of the type that it holds.
        found: String,
        /// What mends it, in words.
        fix: String,
    },
    /// The replicator has not written a checkpoint yet.
    #[error("no checkpoint: the replicator has not started, or Redis was emptied")]
    NoCheckpoint,
    /// The replicator has not come far enough in the log.
    #[error("the replicator has not come that far yet")]
    NotPublished,
    /// A stream of the user takes no entries, and all that it has is read: what follows is missing.
    #[error("a stream of this user has stopped: `posduif stream list` says why")]
    Stopped,
    /// The operator has paused the tenant's delivery.
    #[error("the tenant is paused")]
    Paused,
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Redis(error.into())
    }
}

/// What the checkpoint says to readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The current epoch.
    pub epoch: EpochId,
    /// Its base.
    pub base: u64,
    /// Last entry written.
    pub position: StreamId,
    /// Last complete transaction.
    pub published: StreamId,
}

/// A reader's place in one tenant's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The epoch that the position belongs to.
    pub epoch: EpochId,
    /// The tenant's generation that it belongs to.
    pub generation: i64,
    /// All up to here was seen.
    pub position: StreamId,
}

/// A stretch of what a user must see.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Entries of the inbox and the shared stream in commit order.
    pub entries: Vec<Entry>,
    /// All up to here is in it.
    pub end: StreamId,
    /// There is more behind it.
    pub has_more: bool,
    /// The checkpoint at that moment.
    pub view: View,
}

/// What reading from a place gives.
#[derive(Debug, Clone)]
pub enum Read {
    /// What follows.
    Slice(Slice),
    /// History does not reach back to the place, or breaks behind it: a snapshot is needed.
    Broken(View),
}

/// The beginning of a snapshot, read before the snapshot is taken.
#[derive(Debug, Clone)]
pub struct Handoff {
    /// The checkpoint.
    pub view: View,
    /// The tenant's generation.
    pub generation: i64,
    /// Transactions that a snapshot may not see yet.
    pub window: Vec<WindowEntry>,
    /// Streams that should be there and are not.
    pub missing: Missing,
    /// Nothing is to be delivered for now.
    pub is_paused: bool,
}

/// How far publishing has come, as somebody sees who waits for a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Commit of the transaction that the last entry belongs to.
    pub commit_lsn: PgLsn,
    /// Changes of it that are published; 0 as long as it lies before the place that is waited for.
    pub ordinal: u64,
}

/// Which of a user's streams do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The tenant's shared stream or meta hash.
    pub tenant: bool,
    /// The user's inbox.
    pub inbox: bool,
}

impl Missing {
    /// Whether any is missing.
    pub fn any(self) -> bool {
        self.tenant || self.inbox
    }
}

/// Reads streams and devices' sync states. Cloning shares all of it, as every live stream does.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    connection: SharedConnection,
    /// For stretches of streams.
    ranges: Connections,
    keys: Keys,
    /// What Redis is asked.
    operations: Operations,
    /// The last entry that anybody was given here.
    furthest: Mutex<StreamId>,
    /// How long an answer may take.
    patience: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("keys", &self.0.keys)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A store whose connection is made when first needed and anew when lost.
    ///
    /// # Errors
    /// When the URL is none of Redis', or a certificate cannot be read.
    pub fn new(config: &config::Redis) -> Result<Self, Error> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        let operations = Operations::new("command");
        Ok(Self(Arc::new(Shared {
            connection: SharedConnection::new(config, timeout, operations.clone())?,
            ranges: Connections::new(config, operations.clone()),
            keys: Keys::new(&config.prefix),
            furthest: Mutex::new(StreamId::ZERO),
            operations,
            patience: timeout,
        })))
    }

    /// The shared connection.
    pub fn connection(&self) -> SharedConnection {
        self.0.connection.clone()
    }

    /// What Redis was asked, by the shared connections of this process.
    pub fn operations(&self) -> &Operations {
        &self.0.operations
    }

    /// Makes the connections anew, in case that they lead nowhere, or to a server that nobody writes to any more.
    pub fn renew(&self) {
        self.0.connection.renew();
        self.0.ranges.renew();
    }

    /// Names of keys.
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Runs commands that may run twice, once more when the connection turns out to be lost: it is made anew in between.
    pub(crate) async fn query<T: redis::FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, RedisError> {
        match pipe.query_async(&mut self.connection()).await {
            Err(error) if error.is_io_error() && !error.is_timeout() => pipe.query_async(&mut self.connection()).await,
            result => result,
        }
    }

    /// [`Store::query`] about one key, of a tenant if any: says what is in its place when it cannot be what we wrote.
    pub(crate) async fn query_key<T: redis::FromRedisValue>(
        &self,
        pipe: &Pipeline,
        tenant: Option<&str>,
        key: &str,
    ) -> Result<T, Error> {
        let error = match self.query(pipe).await {
            Err(error) if error.to_string().contains("WRONGTYPE") => error,
            result => return Ok(result?),
        };
        let mut pipe = redis::pipe();
        pipe.cmd("TYPE").arg(key);
        match self.query::<(String,)>(&pipe).await {
            Ok((kind,)) => Err(self.wrong_type(tenant, key, &kind)),
            Err(_) => Err(error.into()),
        }
    }

    /// What is said of a key that holds something else than what we write, and what mends it.
    pub(crate) fn wrong_type(&self, tenant: Option<&str>, key: &str, kind: &str) -> Error {
        let keys = &self.0.keys;
        let fix = match tenant {
            Some(tenant) if key == keys.meta(tenant) => format!("`posduif tenant resync {tenant} --yes` makes it anew"),
            Some(tenant) if key != keys.quarantine(tenant) => {
                format!("`posduif stream rebuild --tenant {tenant} --yes` makes it anew")
            }
            _ => format!("`redis-cli -u \"$REDIS_URL\" DEL '{key}'` removes it"),
        };
        Error::WrongType {
            key: key.to_owned(),
            found: kind.to_owned(),
            fix,
        }
    }

    /// The whole checkpoint; `None` before the first epoch.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NoCheckpoint`] when what is there is none, since somebody else wrote to it.
    pub async fn checkpoint(&self) -> Result<Option<Checkpoint>, Error> {
        let (mut pipe, key) = (redis::pipe(), self.0.keys.checkpoint());
        pipe.hgetall(&key);
        let (fields,): (HashMap<String, String>,) = self.query_key(&pipe, None, &key).await?;
        Checkpoint::parse(&fields).map_err(|_| Error::NoCheckpoint)
    }

    /// What the checkpoint says to readers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn view(&self) -> Result<View, Error> {
        let mut pipe = redis::pipe();
        checkpoint_command(&mut pipe, &self.0.keys);
        let key = self.0.keys.checkpoint();
        let (fields,): (Vec<Option<String>>,) = self.query_key(&pipe, None, &key).await?;
        parse_view(&fields)
    }

    /// Asks for a sign of life, no longer than `redis.response_timeout_seconds`.
    ///
    /// # Errors
    /// When Redis gives none.
    pub async fn check(&self) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("PING").ignore();
        match tokio::time::timeout(self.0.patience, self.query::<()>(&pipe)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer within {} s", self.0.patience.as_secs()),
            )
            .into()),
        }
    }

    /// The server's version and how many bytes it uses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn server(&self) -> Result<(String, u64), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("INFO").arg("server").cmd("INFO").arg("memory");
        let (server, memory): (String, String) = self.query(&pipe).await?;
        let field = |text: &str, name: &str| {
            let mut fields = text.lines().filter_map(|line| line.trim().split_once(':'));
            fields.find_map(|(found, value)| (found == name).then(|| value.to_owned()))
        };
        let version = field(&server, "redis_version").unwrap_or_default();
        let used = field(&memory, "used_memory").and_then(|used| used.parse().ok());
        Ok((version, used.unwrap_or_default()))
    }

    /// Streams that take no entries, each with the cause.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stopped(&self) -> Result<std::collections::BTreeMap<String, String>, Error> {
        let (mut pipe, key) = (redis::pipe(), self.0.keys.stopped());
        pipe.hgetall(&key);
        let (stopped,) = self.query_key(&pipe, None, &key).await?;
        Ok(stopped)
    }

    /// Waits until all up to a place in the log is published. Each look at the checkpoint is told to `seen`.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotPublished`] when that takes longer than `patience` without any progress.
    pub async fn published(
        &self,
        place: PgLsn,
        patience: Duration,
        mut seen: impl FnMut(Reached),
    ) -> Result<(), Error> {
        let mut last = None;
        let mut deadline = tokio::time::Instant::now() + patience;
        loop {
            let mut pipe = redis::pipe();
            pipe.hmget(self.0.keys.checkpoint(), &["end_lsn", "base", "position"]);
            let (fields,): (Vec<Option<String>>,) = self.query(&pipe).await?;
            let field = |index: usize| fields.get(index).and_then(Option::as_deref);
            let end = field(0).and_then(|end| end.parse::<PgLsn>().ok());
            // Later: its EXEC is then over too.
            if end.is_some_and(|end| end > place) {
                return Ok(());
            }
            let base = field(1).and_then(|base| base.parse::<u64>().ok());
            let position = field(2).and_then(|position| position.parse::<StreamId>().ok());
            if let (Some(base), Some(position)) = (base, position) {
                let commit_lsn = PgLsn::from(position.ms.saturating_sub(base));
                seen(Reached {
                    commit_lsn,
                    // A commit's record begins where its last message ends.
                    ordinal: if commit_lsn >= place { position.seq } else { 0 },
                });
            }
            // Inside of a large transaction it is the position alone that moves.
            let now = tokio::time::Instant::now();
            if last.replace(position) != Some(position) {
                deadline = now + patience;
            } else if now > deadline {
                return Err(Error::NotPublished);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all up to a place in the log is published, then removes every key of a tenant that has been dropped.
    /// Gives their number, which `removed` is told as it grows.
    ///
    /// # Errors
    /// See [`Error`]; also when nothing is published within `patience`.
    pub async fn remove_tenant(
        &self,
        tenant: &str,
        dropped: PgLsn,
        patience: Duration,
        mut removed: impl FnMut(u64),
    ) -> Result<u64, Error> {
        self.published(dropped, patience, |_| {}).await?;
        let pattern = self.0.keys.of_tenant(tenant);
        let (mut count, mut cursor) = (0, 0_u64);
        loop {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg(&["MATCH", &pattern, "COUNT", "1000"])
                .query_async(&mut self.connection())
                .await?;
            if !keys.is_empty() {
                let unlinked: u64 = redis::cmd("UNLINK")
                    .arg(keys)
                    .query_async(&mut self.connection())
                    .await?;
                count += unlinked;
                removed(count);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(count);
            }
        }
    }

    /// What follows a place, up to about this many entries, but no more than 1,000 of each stream at once. All of them
    /// are in memory together, so who cannot tell how large they are asks for few.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read(&self, tenant: &str, user: Uuid, place: Place, limit: usize) -> Result<Read, Error> {
        let (inbox, shared) = (self.0.keys.inbox(tenant, &user.to_string()), self.0.keys.shared(tenant));
        let (meta, checkpoint) = (self.0.keys.meta(tenant), self.0.keys.checkpoint());
        let stopped = self.0.keys.stopped();
        let name: Arc<str> = tenant.into();
        let names = [Target::Inbox(name.clone(), user), Target::Shared(name)].map(|target| target.name());
        let count = limit.clamp(1, READ_MAX);
        let (from, count_text) = (place.position.next().to_string(), count.to_string());
        let commands: [&[&str]; 6] = [
            &["XRANGE", &inbox, &from, "+", "COUNT", &count_text],
            &["XRANGE", &shared, &from, "+", "COUNT", &count_text],
            &["EXISTS", &inbox, &shared],
            &[
                "HMGET",
                &meta,
                "generation",
                &Keys::trim_inbox_field(user),
                "trim:shared",
                "state",
            ],
            &["HMGET", &checkpoint, VIEW[0], VIEW[1], VIEW[2], VIEW[3]],
            &["HMGET", &stopped, &names[0], &names[1]],
        ];
        let reply = self.transact(&commands).await?;
        let mut replies = transaction(&reply, commands.len())?;
        let mine = Entry::read_range(&mut replies, &reply)?;
        let common = Entry::read_range(&mut replies, &reply)?;
        let existing = replies.integer()?;
        let (meta, checkpoint, stopped) = (replies.texts()?, replies.texts()?, replies.texts()?);

        let view = parse_view(&checkpoint)?;
        let meta = |index: usize| meta.get(index).and_then(Option::as_deref);
        if meta(3) == Some(PAUSED) {
            return Err(Error::Paused);
        }
        let generation: Option<i64> = meta(0).and_then(|text| text.parse().ok());
        // Entries below a trim point are gone; those at it are there.
        let is_trimmed = [meta(1), meta(2)].into_iter().flatten().any(|text| {
            text.parse::<StreamId>()
                .map_or(true, |first_kept| place.position.next() < first_kept)
        });
        if view.epoch != place.epoch || generation != Some(place.generation) || existing != 2 || is_trimmed {
            return Ok(Read::Broken(view));
        }
        let read = merge(mine, common, count, place.position, view);
        if let Read::Slice(slice) = &read {
            let Some(last) = slice.entries.last() else {
                return match stopped.iter().any(Option::is_some) {
                    true => Err(Error::Stopped),
                    false => Ok(read),
                };
            };
            let mut furthest = self.0.furthest.lock().unwrap_or_else(PoisonError::into_inner);
            *furthest = last.id.max(*furthest);
        }
        Ok(read)
    }

    /// The last entry that anybody was given here: what is remembered must not be older.
    pub fn furthest(&self) -> StreamId {
        *self.0.furthest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// History begins anew, and may count from lower.
    pub fn forget_furthest(&self) {
        *self.0.furthest.lock().unwrap_or_else(PoisonError::into_inner) = StreamId::ZERO;
    }

    /// A stretch of a user's inbox as it is now, from behind `after` up to and with `until`; up to so many entries.
    ///
    /// # Errors
    /// See [`Error`].
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

    /// The replies to commands of one moment, as they came.
    async fn transact(&self, commands: &[&[&str]]) -> Result<bytes::Bytes, RedisError> {
        let mut encoded = BytesMut::with_capacity(1024);
        resp::command(&mut encoded, &[b"MULTI"]);
        for command in commands {
            resp::begin(&mut encoded, command.len());
            command
                .iter()
                .for_each(|argument| resp::argument(&mut encoded, argument.as_bytes()));
        }
        resp::command(&mut encoded, &[b"EXEC"]);
        self.0.ranges.ask(&encoded, commands.len() + 2).await
    }

    /// What a snapshot's beginning needs, before the snapshot is taken.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn handoff(&self, tenant: &str, user: Uuid) -> Result<Handoff, Error> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("EXISTS").arg(self.0.keys.inbox(tenant, &user.to_string()));
        pipe.cmd("EXISTS").arg(self.0.keys.shared(tenant));
        pipe.cmd("HMGET")
            .arg(self.0.keys.meta(tenant))
            .arg(&["generation", "state"]);
        pipe.cmd("HGETALL").arg(self.0.keys.window());
        checkpoint_command(&mut pipe, &self.0.keys);
        type Meta = (Option<i64>, Option<String>);
        type Answer = (bool, bool, Meta, HashMap<String, String>, Vec<Option<String>>);
        let (inbox, shared, (generation, state), window, checkpoint): Answer = self.query(&pipe).await?;
        Ok(Handoff {
            view: parse_view(&checkpoint)?,
            generation: generation.unwrap_or(0),
            window: window
                .iter()
                .filter_map(|(first, runs)| WindowEntry::parse(first, runs))
                .collect(),
            missing: Missing {
                tenant: !shared || generation.is_none(),
                inbox: !inbox,
            },
            is_paused: state.as_deref() == Some(PAUSED),
        })
    }
}

fn checkpoint_command<'a>(pipe: &'a mut Pipeline, keys: &Keys) -> &'a mut Pipeline {
    pipe.cmd("HMGET").arg(keys.checkpoint()).arg(&VIEW)
}

fn parse_view(fields: &[Option<String>]) -> Result<View, Error> {
    fn field<T: std::str::FromStr>(fields: &[Option<String>], index: usize) -> Result<T, Error> {
        let text = fields.get(index).and_then(Option::as_deref);
        text.and_then(|text| text.parse().ok()).ok_or(Error::NoCheckpoint)
    }
    Ok(View {
        epoch: field(fields, 0)?,
        base: field(fields, 1)?,
        position: field(fields, 2)?,
        published: field(fields, 3)?,
    })
}

/// Merges two ranges that were each cut at `count` entries.
fn merge(mine: Vec<Entry>, common: Vec<Entry>, count: usize, after: StreamId, view: View) -> Read {
    // Behind the last entry of a cut range there may be others, so the merge ends there.
    let cut = |entries: &[Entry]| entries.last().filter(|_| entries.len() >= count).map(|last| last.id);
    let horizon = match (cut(&mine), cut(&common)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    // Behind what is published there can only be somebody else's, and a reader's place there would pass over ours.
    let horizon = horizon.filter(|horizon| *horizon < view.position);
    let end = horizon.unwrap_or(view.position);
    let mut entries = mine;
    entries.extend(common);
    entries.retain(|entry| entry.id <= end);
    // Both are sorted. A change that is something else for the user than for all is in both, and the user's own counts.
    entries.sort_by_key(|entry| entry.id);
    if entries.iter().any(|entry| entry.op == Op::Reset) {
        return Read::Broken(view);
    }
    entries.dedup_by_key(|entry| entry.id);
    Read::Slice(Slice {
        end: entries.last().map_or(after, |entry| entry.id),
        has_more: horizon.is_some(),
        entries,
        view,
    })
}
