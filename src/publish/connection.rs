//! The publisher's connection to Redis: one guarded transaction under way at a time, every reply read.
//!
//! It never reconnects by itself. After a lost connection nobody knows whether the last `EXEC` happened; only a new
//! session, which reads the checkpoint again and replays from the slot, finds out.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::batch::{Batch, Purpose, Tail, Written};
use super::durability::Persistence;
use crate::config;
use crate::contract::checkpoint::{Checkpoint, Epoch};
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::contract::window::WindowEntry;
use crate::core::position::StreamId;
use crate::core::resp;
use crate::core::resp::Reply;
use crate::net::{self, BoxStream};

const READ_BYTES_MIN: usize = 32 * 1024;

/// Fewest bytes of an answer to a command inside `MULTI`: `+QUEUED`, CR and LF. Errors are longer.
const QUEUED_BYTES: usize = 9;

/// Bytes of answers for which we wait at most before reading; the kernel wants to have room for more.
const WAKE_BYTES_MAX: usize = 32 * 1024;

/// Bytes of the next batch from which they go ahead; fewer are not worth a write of their own.
const AHEAD_BYTES_MIN: usize = 64 * 1024;

/// What became of a batch.
#[derive(Debug)]
pub enum Outcome {
    /// All of it is in Redis, but for what is listed.
    Written {
        /// The batch as sent.
        batch: Batch,
        /// Streams that do not exist: their readers must be told.
        missing: Vec<Target>,
        /// Streams that took an entry ill, with Redis' words.
        failed: Vec<(Target, String)>,
        /// Streams that had a hole, and tell it now.
        reborn: Vec<Target>,
        /// Other keys of tenants that hold something else, with Redis' words.
        spoilt: Vec<(String, String)>,
        /// The live stream took its entry ill; it must be made anew, which its readers notice.
        live_failed: Option<String>,
    },
    /// Nothing of it is in Redis, which cannot take it now (OOM, READONLY, MISCONF, LOADING); try again later.
    Refused {
        /// The batch as it was.
        batch: Batch,
        /// Redis' words.
        cause: String,
    },
    /// Nothing of it is in Redis, because one command is not allowed (NOPERM). The batch comes back without it.
    Denied {
        /// The batch without the command.
        batch: Batch,
        /// What the command was for.
        purpose: Option<Purpose>,
        /// Redis' words.
        cause: String,
    },
}

/// Why the connection must not be used any more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Another engine has become the writer, or somebody wrote to the checkpoint. Nothing of the batch is in Redis.
    #[error("another writer has taken over the checkpoint")]
    Fenced,
    /// Parts of a batch may be in Redis, and nothing tells which: only a new epoch is safe.
    #[error("a transaction was not held together by Redis: {0}")]
    TornTransaction(String),
    /// The socket or the protocol failed; whether the batch is in Redis is unknown until the checkpoint is read.
    #[error("connection to Redis lost")]
    Io(#[from] io::Error),
}

impl From<resp::RespError> for Failure {
    fn from(error: resp::RespError) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Bytes on their way to Redis. The commands of the batch under way are written from where they are: they go between
/// the two buffers.
#[derive(Default)]
struct Outbound {
    before: BytesMut,
    /// How much of the batch's commands is written.
    sent: usize,
    after: BytesMut,
}

impl Outbound {
    /// What is left, in order.
    fn parts<'a>(&'a self, in_flight: Option<&'a InFlight>) -> [IoSlice<'a>; 3] {
        let commands = in_flight.map_or(&[][..], |in_flight| in_flight.batch.commands().0);
        [&self.before, commands.get(self.sent..).unwrap_or_default(), &self.after].map(IoSlice::new)
    }

    /// So many bytes of [`Self::parts`] are written.
    fn advance(&mut self, written: usize, commands: usize) {
        let before = written.min(self.before.len());
        self.before.advance(before);
        let sent = (written - before).min(commands.saturating_sub(self.sent));
        self.sent += sent;
        self.after.advance(written - before - sent);
    }
}

/// How much of the next batch has gone ahead. Redis queues its commands while we read what became of the transaction
/// before it; nothing of them happens without the `EXEC`, which follows only when that one has worked.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    commands: usize,
    bytes: usize,
}

/// What went ahead is being taken back.
#[derive(Debug, Clone, Copy)]
struct Discarding {
    /// Replies read, and to read: to MULTI, to each command, to DISCARD, and the guard's two.
    replies: usize,
    total: usize,
    since: Instant,
}

/// A transaction under way.
struct InFlight {
    batch: Batch,
    /// Replies read.
    replies: usize,
    /// First refusal at queueing: command index and text.
    refusal: Option<(usize, String)>,
    /// What EXEC answered.
    result: Option<Reply>,
    written: Written,
    /// When it was sent, or bytes of it or of its answer last moved: a large row over a slow link takes its time.
    moved_at: Instant,
}

/// The publisher's connection.
pub struct Connection {
    stream: BoxStream,
    /// Bytes at which the stream wakes us.
    wakes_at: usize,
    inbound: BytesMut,
    outbound: Outbound,
    keys: Keys,
    writer: String,
    lane: u32,
    live: StreamId,
    live_entries_max: u64,
    sequence: u64,
    in_flight: Option<InFlight>,
    ahead: Option<Ahead>,
    discarding: Option<Discarding>,
    timeout: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

/// What the new writer found.
#[derive(Debug)]
pub struct Claim {
    /// The checkpoint, `None` on an empty Redis.
    pub checkpoint: Option<Checkpoint>,
    /// Identity of the Redis process.
    pub run_id: String,
    /// What protects its memory.
    pub persistence: Persistence,
    /// The window's entries.
    pub window: Vec<WindowEntry>,
    /// Streams that took no entries, and have a hole since.
    pub stopped: Vec<Target>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When Redis cannot be reached or refuses the login.
    pub async fn connect(config: &config::Redis, live_entries_max: u64) -> Result<Self> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        let (stream, login) = net::redis::open(config, timeout).await?;
        let mut connection = Self {
            stream,
            wakes_at: 1,
            inbound: BytesMut::with_capacity(READ_BYTES_MIN),
            outbound: Outbound::default(),
            keys: Keys::new(&config.prefix),
            writer: uuid::Uuid::new_v4().simple().to_string(),
            lane: 0,
            live: StreamId::ZERO,
            live_entries_max,
            sequence: 0,
            in_flight: None,
            ahead: None,
            discarding: None,
            timeout,
        };
        if let Some(password) = login.password() {
            let user = login.username().unwrap_or("default");
            connection
                .expect_ok(&[b"AUTH", user.as_bytes(), password.as_bytes()])
                .await
                .with_context(|| {
                    format!("Redis refuses the login of user {user}: check `redis.url` (or REDIS_URL) and its ACL")
                })?;
        }
        if login.db() != 0 {
            connection
                .expect_ok(&[b"SELECT", login.db().to_string().as_bytes()])
                .await?;
        }
        Ok(connection)
    }

    /// Becomes the writer: from here on no other engine's `EXEC` succeeds. Then reads the checkpoint and watches it.
    ///
    /// # Errors
    /// When Redis does not answer, or the checkpoint makes no sense.
    pub async fn claim(&mut self) -> Result<Claim> {
        let key = self.keys.checkpoint();
        let run_id = self.info("server", "run_id").await?;
        let persistence = self.persistence().await?;
        let writer = self.writer.clone();
        let claim: [&[u8]; 6] = [
            b"HSET",
            key.as_bytes(),
            b"writer",
            writer.as_bytes(),
            b"run_id",
            run_id.as_bytes(),
        ];
        match self.request(&claim).await? {
            Reply::Integer(_) => {}
            other => bail!("Redis refused the writer's claim: {other:?}"),
        }
        let checkpoint = Checkpoint::parse(&self.hash(&key).await?)?;
        let window = self.hash(&self.keys.window()).await?;
        let window = window
            .iter()
            .filter_map(|(first, runs)| WindowEntry::parse(first, runs))
            .collect();
        let stopped = self.hash(&self.keys.stopped()).await?;
        self.live = checkpoint.as_ref().map_or(StreamId::ZERO, |checkpoint| checkpoint.live);
        self.guard().await?;
        Ok(Claim {
            checkpoint,
            run_id,
            persistence,
            window,
            stopped: stopped.keys().filter_map(|name| Target::parse(name)).collect(),
        })
    }

    /// The last entry of a stream, zero when there is none.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn last_id(&mut self, key: &str) -> Result<StreamId> {
        let newest = self
            .request(&[b"XREVRANGE", key.as_bytes(), b"+", b"-", b"COUNT", b"1"])
            .await?;
        let Reply::Array(entries) = newest else {
            return Ok(StreamId::ZERO);
        };
        let id = match entries.first() {
            Some(Reply::Array(entry)) => match entry.first() {
                Some(Reply::Bulk(id)) => String::from_utf8_lossy(id).parse().ok(),
                _ => None,
            },
            _ => None,
        };
        Ok(id.unwrap_or(StreamId::ZERO))
    }

    async fn hash(&mut self, key: &str) -> Result<HashMap<String, String>> {
        let Reply::Array(replies) = self.request(&[b"HGETALL", key.as_bytes()]).await? else {
            bail!("Redis refused to show the hash {key}");
        };
        let mut texts = replies.into_iter().map(|reply| match reply {
            Reply::Bulk(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        });
        let mut fields = HashMap::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            fields.insert(name, value);
        }
        Ok(fields)
    }

    /// Watches the checkpoint and makes sure that we are still its writer.
    async fn guard(&mut self) -> Result<()> {
        let key = self.keys.checkpoint();
        self.expect_ok(&[b"WATCH", key.as_bytes()]).await?;
        match self.request(&[b"HGET", key.as_bytes(), b"writer"]).await? {
            Reply::Bulk(writer) if writer == self.writer.as_bytes() => Ok(()),
            _ => Err(Failure::Fenced.into()),
        }
    }

    async fn persistence(&mut self) -> Result<Persistence> {
        if self.info("persistence", "aof_enabled").await? != "1" {
            return Ok(Persistence::Off);
        }
        // Managed servers may forbid CONFIG; the slower rule is safe for every policy.
        Ok(match self.request(&[b"CONFIG", b"GET", b"appendfsync"]).await? {
            Reply::Array(pair) => match pair.get(1) {
                Some(Reply::Bulk(policy)) if &policy[..] == b"always" => Persistence::Always,
                Some(Reply::Bulk(policy)) if &policy[..] == b"no" => Persistence::Off,
                _ => Persistence::EverySecond,
            },
            _ => Persistence::EverySecond,
        })
    }

    async fn info(&mut self, section: &str, field: &str) -> Result<String> {
        let Reply::Bulk(bytes) = self.request(&[b"INFO", section.as_bytes()]).await? else {
            bail!("Redis refused INFO {section}");
        };
        let text = String::from_utf8_lossy(&bytes);
        let value = text
            .lines()
            .filter_map(|line| line.trim().split_once(':'))
            .find(|(name, _)| *name == field);
        Ok(value.map(|(_, value)| value.to_owned()).unwrap_or_default())
    }

    /// One command, one reply, outside any transaction.
    async fn request(&mut self, arguments: &[&[u8]]) -> Result<Reply, Failure> {
        self.set_receive_low_water(1);
        resp::command(&mut self.outbound.before, arguments);
        let timeout = self.timeout;
        let exchange = async {
            self.stream.write_all_buf(&mut self.outbound.before).await?;
            loop {
                if let Some(reply) = resp::parse(&mut self.inbound)? {
                    return Ok(reply);
                }
                self.fill().await?;
            }
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(Failure::Io(timed_out(timeout))))
    }

    async fn expect_ok(&mut self, arguments: &[&[u8]]) -> Result<()> {
        match self.request(arguments).await? {
            Reply::Status(_) => Ok(()),
            Reply::Error(error) => bail!("Redis: {error}"),
            other => bail!("Redis answered {other:?}"),
        }
    }

    /// Nothing is under way; a batch can be sent.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.discarding.is_none()
    }

    /// Lets commands of the next batch go ahead of its `EXEC`; only while another one is under way. The batch may still
    /// grow, and must be the next one sent, or be taken back by [`Connection::discard`].
    pub fn send_prefix(&mut self, next: &Batch) {
        let (commands, _) = next.commands();
        let gone = self.ahead.map_or(0, |ahead| ahead.bytes);
        if self.in_flight.is_none() || commands.len() < gone + AHEAD_BYTES_MIN {
            return;
        }
        // Behind all of the transaction under way.
        let out = &mut self.outbound.after;
        if self.ahead.is_none() {
            resp::command(out, &[b"MULTI"]);
        }
        out.extend_from_slice(&commands[gone..]);
        self.ahead = Some(Ahead {
            commands: next.command_count(),
            bytes: commands.len(),
        });
    }

    /// Takes back what went ahead; false when nothing did.
    pub fn discard(&mut self) -> bool {
        let Some(ahead) = self.ahead.take() else { return false };
        let (out, key) = (&mut self.outbound.after, self.keys.checkpoint());
        resp::command(out, &[b"DISCARD"]);
        // DISCARD forgets what is watched.
        resp::command(out, &[b"WATCH", key.as_bytes()]);
        resp::command(out, &[b"HGET", key.as_bytes(), b"writer"]);
        self.discarding = Some(Discarding {
            replies: 0,
            total: ahead.commands + 4,
            since: Instant::now(),
        });
        true
    }

    /// Queues a batch as one guarded transaction. Only when idle.
    pub fn send(&mut self, batch: Batch, epoch: &Epoch, acknowledged: postgres_types::PgLsn) {
        let tail = Tail {
            lane: self.lane,
            epoch,
            live: self.live,
            live_entries_max: self.live_entries_max,
            sequence: self.sequence,
            acknowledged,
        };
        match self.ahead.take() {
            // What went ahead and is not written yet comes before the rest.
            Some(ahead) => {
                self.outbound.before = std::mem::take(&mut self.outbound.after);
                self.outbound.sent = ahead.bytes;
            }
            None => {
                self.outbound.sent = 0;
                resp::command(&mut self.outbound.before, &[b"MULTI"]);
            }
        }
        let out = &mut self.outbound.after;
        let written = batch.write_tail(&tail, out);
        resp::command(out, &[b"EXEC"]);
        // The next transaction's guard rides along, so that it costs no round trip.
        let key = self.keys.checkpoint();
        resp::command(out, &[b"WATCH", key.as_bytes()]);
        resp::command(out, &[b"HGET", key.as_bytes(), b"writer"]);
        self.sequence += 1;
        self.in_flight = Some(InFlight {
            batch,
            replies: 0,
            refusal: None,
            result: None,
            written,
            moved_at: Instant::now(),
        });
    }

    /// Fails when Redis has not answered for too long.
    ///
    /// # Errors
    /// [`Failure::Io`] with the time that has passed.
    pub fn check_timeout(&self, now: Instant) -> Result<(), Failure> {
        let in_flight = self.in_flight.as_ref().map(|in_flight| in_flight.moved_at);
        let since = in_flight.or(self.discarding.map(|discarding| discarding.since));
        match since {
            Some(since) if now.duration_since(since) > self.timeout => Err(Failure::Io(timed_out(self.timeout))),
            _ => Ok(()),
        }
    }

    /// Writes and reads whatever is possible now, at least one byte in one direction. Safe to cancel.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn progress(&mut self) -> Result<(), Failure> {
        self.set_receive_low_water(self.answer_bytes_min());
        self.inbound.reserve(READ_BYTES_MIN);
        let commands = self
            .in_flight
            .as_ref()
            .map_or(0, |in_flight| in_flight.batch.commands().0.len());
        let parts = self.outbound.parts(self.in_flight.as_ref());
        let has_outbound = parts.iter().any(|part| !part.is_empty());
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        tokio::select! {
            written = writer.write_vectored(&parts), if has_outbound => match written? {
                0 => return Err(Failure::Io(io::ErrorKind::WriteZero.into())),
                written => self.outbound.advance(written, commands),
            },
            read = reader.read_buf(&mut self.inbound) => {
                if read? == 0 {
                    return Err(Failure::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by Redis")));
                }
            }
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.moved_at = Instant::now();
        }
        Ok(())
    }

    /// At least so many bytes are still to come before the outcome of what is under way can be known. Redis writes its
    /// answers to queued commands in many small pieces, none of which is worth waking for.
    fn answer_bytes_min(&self) -> usize {
        let queued = self.in_flight.as_ref().map_or(0, |in_flight| {
            (in_flight.written.commands + 1).saturating_sub(in_flight.replies.max(1))
        });
        (queued * QUEUED_BYTES)
            .saturating_sub(self.inbound.len())
            .clamp(1, WAKE_BYTES_MAX)
    }

    fn set_receive_low_water(&mut self, bytes: usize) {
        if bytes != self.wakes_at {
            self.stream.set_receive_low_water(bytes);
            self.wakes_at = bytes;
        }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.inbound.reserve(READ_BYTES_MIN);
        match self.stream.read_buf(&mut self.inbound).await? {
            0 => Err(Failure::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by Redis",
            ))),
            _ => Ok(()),
        }
    }

    /// Takes replies from the buffer, without IO; the outcome once all of them are there.
    ///
    /// # Errors
    /// When we are no longer the writer, or the transaction did not hold together.
    pub fn outcome(&mut self) -> Result<Option<Outcome>, Failure> {
        loop {
            if self.in_flight.is_none() && self.discarding.is_some() && !self.take_discarded()? {
                return Ok(None);
            }
            let Some(in_flight) = &mut self.in_flight else {
                return Ok(None);
            };
            let Some(reply) = resp::parse(&mut self.inbound)? else {
                return Ok(None);
            };
            let exec = in_flight.written.commands + 1;
            match in_flight.replies {
                0 => match reply {
                    Reply::Status(_) => {}
                    // Without MULTI the commands behind it run one by one.
                    other => return Err(Failure::TornTransaction(format!("MULTI was answered with {other:?}"))),
                },
                index if index < exec => match reply {
                    Reply::Queued => {}
                    Reply::Error(text) => {
                        in_flight.refusal.get_or_insert((index - 1, text));
                    }
                    other => {
                        return Err(Failure::TornTransaction(format!(
                            "a queued command was answered with {other:?}"
                        )));
                    }
                },
                index if index == exec => in_flight.result = Some(reply),
                index if index == exec + 1 => match reply {
                    Reply::Status(_) => {}
                    other => {
                        return Err(Failure::Io(io::Error::other(format!(
                            "WATCH was answered with {other:?}"
                        ))));
                    }
                },
                _ => {
                    let is_writer = matches!(&reply, Reply::Bulk(writer) if writer == self.writer.as_bytes());
                    let Some(in_flight) = self.in_flight.take() else {
                        return Ok(None);
                    };
                    let outcome = self.conclude(in_flight, is_writer)?;
                    if !matches!(outcome, Outcome::Written { .. }) {
                        // This batch comes before the one that went ahead.
                        self.discard();
                    }
                    return Ok(Some(outcome));
                }
            }
            in_flight.replies += 1;
        }
    }

    /// Reads the replies to what is taken back; false when more of them are to come.
    fn take_discarded(&mut self) -> Result<bool, Failure> {
        while let Some(discarding) = &mut self.discarding {
            let Some(reply) = resp::parse(&mut self.inbound)? else {
                return Ok(false);
            };
            discarding.replies += 1;
            let (replies, total) = (discarding.replies, discarding.total);
            match (replies, reply) {
                (1, Reply::Status(_)) => {}
                (1, other) => return Err(Failure::TornTransaction(format!("MULTI was answered with {other:?}"))),
                (_, Reply::Bulk(writer)) if replies == total && writer == self.writer.as_bytes() => {
                    self.discarding = None;
                }
                (_, _) if replies == total => return Err(Failure::Fenced),
                (_, Reply::Status(_)) if replies + 3 > total => {}
                (_, other) if replies + 3 > total => {
                    return Err(Failure::TornTransaction(format!(
                        "DISCARD or WATCH was answered with {other:?}"
                    )));
                }
                (_, Reply::Queued | Reply::Error(_)) => {}
                (_, other) => {
                    return Err(Failure::TornTransaction(format!(
                        "a queued command was answered with {other:?}"
                    )));
                }
            }
        }
        Ok(true)
    }

    fn conclude(&mut self, in_flight: InFlight, is_writer: bool) -> Result<Outcome, Failure> {
        let InFlight {
            mut batch,
            refusal,
            result,
            written,
            ..
        } = in_flight;
        if let Some((index, cause)) = refusal {
            // EXECABORT: nothing was written.
            if !matches!(&result, Some(Reply::Error(text)) if text.starts_with("EXECABORT")) {
                return Err(Failure::TornTransaction(format!(
                    "{cause}, but EXEC answered {result:?}"
                )));
            }
            if !is_writer {
                return Err(Failure::Fenced);
            }
            if cause.starts_with("NOPERM") && batch.purpose(index).is_some() {
                let purpose = batch.remove(index);
                return Ok(Outcome::Denied { batch, purpose, cause });
            }
            return Ok(Outcome::Refused { batch, cause });
        }
        let results = match result {
            Some(Reply::Array(results)) => results,
            Some(Reply::Nil) => return Err(Failure::Fenced),
            // At EXEC itself Redis may still refuse all of it (OOM, READONLY after a failover).
            Some(Reply::Error(cause)) if !cause.starts_with("ERR EXEC without MULTI") => {
                return if is_writer {
                    Ok(Outcome::Refused { batch, cause })
                } else {
                    Err(Failure::Fenced)
                };
            }
            other => return Err(Failure::TornTransaction(format!("EXEC was answered with {other:?}"))),
        };
        self.live = written.live;
        let (mut missing, mut failed, mut live_failed) = (Vec::new(), Vec::new(), None);
        let (mut reborn, mut spoilt) = (Vec::new(), Vec::new());
        for (index, result) in results.into_iter().enumerate() {
            match (batch.purpose(index), result) {
                (Some(Purpose::Entry(target)), Reply::Nil) if !missing.contains(target) => missing.push(target.clone()),
                (Some(Purpose::Entry(target)), Reply::Error(text)) => failed.push((target.clone(), text)),
                // A creation that is refused as too old meets a stream that has gone on: it exists, which is the point.
                (Some(Purpose::Create(target)), Reply::Error(text)) if text.starts_with("WRONGTYPE") => {
                    failed.push((target.clone(), text));
                }
                (Some(Purpose::Recreate(target)), Reply::Error(text)) => failed.push((target.clone(), text)),
                (Some(Purpose::Recreate(target)), _) => reborn.push(target.clone()),
                (Some(Purpose::Tenant(key)), Reply::Error(text)) => spoilt.push((key.clone(), text)),
                (None, Reply::Error(text)) if written.live_index == Some(index) => live_failed = Some(text),
                (None | Some(Purpose::Other), Reply::Error(text)) => {
                    return Err(Failure::TornTransaction(format!(
                        "command {index} of a transaction failed: {text}"
                    )));
                }
                _ => {}
            }
        }
        if !is_writer {
            return Err(Failure::Fenced);
        }
        Ok(Outcome::Written {
            batch,
            missing,
            failed,
            reborn,
            spoilt,
            live_failed,
        })
    }
}

fn timed_out(timeout: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {} s", timeout.as_secs()),
    )
}
