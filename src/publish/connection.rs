//! The publisher's connection to Redis: one guarded transaction in flight at a time, every reply read.
//!
//! It never reconnects by itself. After a lost connection it is unknown whether the last `EXEC` ran; only a new
//! session, which reads the checkpoint again and replays from the slot, can determine that.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::batch::{Batch, Marks, Tail, WrittenTail};
use super::cut::CutRequest;
use super::durability::Persistence;
use super::outcome::{self, Exchange, Outcome, PublishError, Replies};
use crate::config;
use crate::contract::checkpoint::{Checkpoint, Epoch, Torn, WRITER};
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::contract::window::WindowEntry;
use crate::contract::{lua, terms};
use crate::core::position::{StreamId, TermId};
use crate::core::resp;
use crate::core::resp::Reply;
use crate::net::BoxStream;
use crate::redis::connect;
use crate::redis::info::Info;

const READ_BYTES_MIN: usize = 32 * 1024;

/// Most bytes of replies to wait for before reading; the kernel needs room for more.
const RECEIVE_LOW_WATER_MAX: usize = 32 * 1024;

/// Fewest bytes of the next batch that are sent as a prefix; fewer are not worth a write of their own.
const PREFIX_BYTES_MIN: usize = 64 * 1024;

/// Bytes to be written. The commands of the batch in flight are written from the batch itself, between the two buffers.
#[derive(Default)]
struct Outbound {
    before: BytesMut,
    /// Written bytes of the batch's commands.
    sent: usize,
    after: BytesMut,
}

impl Outbound {
    /// The unwritten parts, in order.
    fn parts<'a>(&'a self, in_flight: Option<&'a InFlight>) -> [IoSlice<'a>; 3] {
        let commands = in_flight.map_or(&[][..], |in_flight| in_flight.batch.commands().0);
        [&self.before, commands.get(self.sent..).unwrap_or_default(), &self.after].map(IoSlice::new)
    }

    /// Records that this many bytes of [`Self::parts`] are written.
    fn advance(&mut self, written: usize, commands: usize) {
        let before = written.min(self.before.len());
        self.before.advance(before);
        let sent = (written - before).min(commands.saturating_sub(self.sent));
        self.sent += sent;
        self.after.advance(written - before - sent);
    }
}

/// How much of the next batch Redis has been sent. Redis queues these commands while we read the replies to the
/// transaction before them; none of them runs without the `EXEC`, which follows only when that transaction has
/// succeeded.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    commands: usize,
    bytes: usize,
}

/// A transaction whose `EXEC` is sent.
struct InFlight {
    batch: Batch,
    written: WrittenTail,
    /// What is cut behind it, whatever becomes of it.
    cuts: Vec<CutRequest>,
}

/// What became of cuts.
#[derive(Debug, Default)]
pub struct CutResults {
    /// Entries that were removed.
    pub removed: i64,
    /// Keys of tenants that Redis could not change, with the error.
    pub failed: Vec<(String, String)>,
}

/// The publisher's connection.
pub struct Connection {
    stream: BoxStream,
    /// Bytes at which the stream becomes readable.
    receive_low_water: usize,
    inbound: BytesMut,
    outbound: Outbound,
    keys: Keys,
    term: TermId,
    writer: String,
    lane: u32,
    live: StreamId,
    live_entries_max: u64,
    sequence: u64,
    in_flight: Option<InFlight>,
    prefix: Option<Prefix>,
    replies: Replies,
    cut_results: CutResults,
    /// When the exchange under way began, or bytes of it last moved: a large row over a slow link takes its time.
    moved_at: Instant,
    timeout: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

/// What a new writer finds in Redis.
#[derive(Debug)]
pub struct Claim {
    /// `None` on an empty Redis.
    pub checkpoint: Option<Checkpoint>,
    /// Identity of the Redis process.
    pub run_id: String,
    pub persistence: Persistence,
    pub window: Vec<WindowEntry>,
    /// Streams that an earlier session stopped: they lack entries.
    pub stopped: Vec<Target>,
}

impl Connection {
    /// Connects and logs in.
    pub async fn connect(config: &config::Redis, live_entries_max: u64) -> Result<Self> {
        let timeout = Duration::from_secs(config.response_timeout_seconds);
        let term = TermId::random().context("no random bits from the operating system")?;
        Ok(Self {
            stream: connect::open(config, timeout).await?,
            receive_low_water: 1,
            inbound: BytesMut::with_capacity(READ_BYTES_MIN),
            outbound: Outbound::default(),
            keys: Keys::new(&config.keys_prefix()),
            term,
            writer: term.to_string(),
            lane: 0,
            live: StreamId::ZERO,
            live_entries_max,
            sequence: 0,
            in_flight: None,
            prefix: None,
            replies: Replies::default(),
            cut_results: CutResults::default(),
            moved_at: Instant::now(),
            timeout,
        })
    }

    /// The name by which the checkpoint knows this writer.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Records for the engine that comes next that Redis ran only parts of a transaction.
    pub async fn record_torn(&mut self, torn: &Torn) -> Result<()> {
        let key = self.keys.checkpoint();
        let (number, text) = (torn.number.to_string(), torn.to_string());
        let record: [&[u8]; 6] = [
            b"EVAL",
            lua::TORN.as_bytes(),
            b"1",
            key.as_bytes(),
            number.as_bytes(),
            text.as_bytes(),
        ];
        match self.request(&record).await? {
            Reply::Integer(_) => Ok(()),
            other => bail!("Redis refused the mark of a torn transaction: {other:?}"),
        }
    }

    /// Becomes the writer: from now on no `EXEC` of another engine succeeds. Then reads the checkpoint and watches it. `groups`
    /// identifies the configured groups.
    pub async fn claim(&mut self, groups: &str) -> Result<Claim> {
        let key = self.keys.checkpoint();
        let run_id = self.info("server", "run_id").await?;
        let persistence = self.persistence().await?;
        let writer = self.writer.clone();
        let ended = self.keys.terms();
        let claim: [&[u8]; 9] = [
            b"EVAL",
            lua::TERM.as_bytes(),
            b"2",
            key.as_bytes(),
            ended.as_bytes(),
            writer.as_bytes(),
            run_id.as_bytes(),
            terms::KEPT_MAX.as_bytes(),
            groups.as_bytes(),
        ];
        match self.request(&claim).await? {
            Reply::Integer(_) => {}
            other => bail!("Redis refused the claim of the checkpoint: {other:?}"),
        }
        let checkpoint = Checkpoint::parse(&self.hash(&key).await?)?;
        let window = WindowEntry::parse_all(&self.hash(&self.keys.window()).await?);
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

    /// The ID of the last entry of a stream, zero when it has none.
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
            bail!("Redis refused HGETALL {key}");
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

    /// Watches the checkpoint and checks that this connection is still its writer.
    async fn guard(&mut self) -> Result<()> {
        let key = self.keys.checkpoint();
        self.expect_ok(&[b"WATCH", key.as_bytes()]).await?;
        let writer = self.request(&[b"HGET", key.as_bytes(), WRITER.as_bytes()]).await?;
        if !self.is_own(&writer) {
            return Err(PublishError::Fenced.into());
        }
        Ok(())
    }

    async fn persistence(&mut self) -> Result<Persistence> {
        let is_enabled = self.info("persistence", "aof_enabled").await? == "1";
        let policy = match self.request(&[b"CONFIG", b"GET", b"appendfsync"]).await? {
            Reply::Array(pair) => match pair.get(1) {
                Some(Reply::Bulk(policy)) => String::from_utf8_lossy(policy).into_owned(),
                _ => String::new(),
            },
            _ => String::new(),
        };
        Ok(Persistence::of(is_enabled, &policy))
    }

    async fn info(&mut self, section: &str, field: &str) -> Result<String> {
        let Reply::Bulk(bytes) = self.request(&[b"INFO", section.as_bytes()]).await? else {
            bail!("Redis refused INFO {section}");
        };
        Ok(Info::parse(&String::from_utf8_lossy(&bytes)).get(field).to_owned())
    }

    /// One command, one reply, outside any transaction.
    async fn request(&mut self, arguments: &[&[u8]]) -> Result<Reply, PublishError> {
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
            .unwrap_or_else(|_| Err(PublishError::Io(timed_out(timeout))))
    }

    async fn expect_ok(&mut self, arguments: &[&[u8]]) -> Result<()> {
        match self.request(arguments).await? {
            Reply::Status(_) => Ok(()),
            Reply::Error(error) => bail!("Redis: {error}"),
            other => bail!("Redis answered {other:?}"),
        }
    }

    /// Whether a batch can be sent.
    pub fn is_idle(&self) -> bool {
        !self.replies.has_exchange()
    }

    /// Sends commands of the next batch before its `EXEC`, while another batch is in flight. The batch may still grow,
    /// and must be the next one sent, or be discarded by [`Connection::discard_prefix`].
    pub fn send_prefix(&mut self, next: &Batch) {
        let (commands, _) = next.commands();
        let sent = self.prefix.unwrap_or(Prefix { commands: 0, bytes: 0 });
        if self.in_flight.is_none() || commands.len() < sent.bytes + PREFIX_BYTES_MIN {
            return;
        }
        // Behind the whole transaction in flight.
        let out = &mut self.outbound.after;
        if self.prefix.is_none() {
            resp::command(out, &[b"MULTI"]);
            self.replies.expect_multi();
        }
        out.extend_from_slice(&commands[sent.bytes..]);
        self.replies.expect_queued(next.command_count() - sent.commands);
        self.prefix = Some(Prefix {
            commands: next.command_count(),
            bytes: commands.len(),
        });
    }

    /// Discards the prefix of the next batch; false when none was sent.
    pub fn discard_prefix(&mut self) -> bool {
        if self.prefix.take().is_none() {
            return false;
        }
        resp::command(&mut self.outbound.after, &[b"DISCARD"]);
        // DISCARD also ends the WATCH.
        self.push_guard();
        self.replies.expect_discard();
        self.moved_at = Instant::now();
        true
    }

    /// Queues a batch as one guarded transaction, and cuts behind it. Only when idle.
    ///
    /// The cuts are no part of the transaction, since a full Redis refuses that as a whole: they free memory although
    /// the batch is refused.
    pub fn send(&mut self, batch: Batch, epoch: &Epoch, marks: Marks, cuts: Vec<CutRequest>) {
        let tail = Tail {
            lane: self.lane,
            epoch,
            term: self.term,
            live: self.live,
            live_entries_max: self.live_entries_max,
            sequence: self.sequence,
            marks,
        };
        let sent = self.prefix.take();
        match sent {
            // What of the prefix is not written yet comes before the rest.
            Some(prefix) => {
                self.outbound.before = std::mem::take(&mut self.outbound.after);
                self.outbound.sent = prefix.bytes;
            }
            None => {
                self.outbound.sent = 0;
                resp::command(&mut self.outbound.before, &[b"MULTI"]);
                self.replies.expect_multi();
            }
        }
        let out = &mut self.outbound.after;
        let written = batch.write_tail(&tail, out);
        resp::command(out, &[b"EXEC"]);
        for CutRequest { cut, .. } in &cuts {
            cut.write(&self.keys, &self.writer, out);
        }
        // The guard of the next transaction is sent along, so that it costs no round trip.
        self.push_guard();
        self.replies
            .expect_queued(written.commands - sent.map_or(0, |prefix| prefix.commands));
        self.replies.expect_exec(cuts.len());
        self.sequence += 1;
        self.in_flight = Some(InFlight { batch, written, cuts });
        self.moved_at = Instant::now();
    }

    /// Queues the guard: it watches the checkpoint, then reads its writer.
    fn push_guard(&mut self) {
        let key = self.keys.checkpoint();
        resp::command(&mut self.outbound.after, &[b"WATCH", key.as_bytes()]);
        resp::command(&mut self.outbound.after, &[b"HGET", key.as_bytes(), WRITER.as_bytes()]);
    }

    fn is_own(&self, writer: &Reply) -> bool {
        matches!(writer, Reply::Bulk(writer) if writer == self.writer.as_bytes())
    }

    /// Fails when no byte of the exchange under way has moved within the response timeout.
    ///
    /// # Errors
    /// [`PublishError::Io`] with the time that has passed.
    pub fn check_timeout(&self, now: Instant) -> Result<(), PublishError> {
        if !self.is_idle() && now.duration_since(self.moved_at) > self.timeout {
            return Err(PublishError::Io(timed_out(self.timeout)));
        }
        Ok(())
    }

    /// Writes or reads what is possible now, at least one byte. Cancel-safe.
    pub async fn progress(&mut self) -> Result<(), PublishError> {
        self.set_receive_low_water(self.receive_bytes_min());
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
                0 => return Err(PublishError::Io(io::ErrorKind::WriteZero.into())),
                written => self.outbound.advance(written, commands),
            },
            read = reader.read_buf(&mut self.inbound) => {
                if read? == 0 {
                    return Err(PublishError::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "Redis closed the connection")));
                }
            }
        }
        self.moved_at = Instant::now();
        Ok(())
    }

    /// Bytes to wait for before reading. Redis writes its replies to queued commands in many small pieces, none of
    /// which is worth a wake-up.
    fn receive_bytes_min(&self) -> usize {
        self.replies
            .bytes_min()
            .saturating_sub(self.inbound.len())
            .clamp(1, RECEIVE_LOW_WATER_MAX)
    }

    fn set_receive_low_water(&mut self, bytes: usize) {
        if bytes != self.receive_low_water {
            self.stream.set_receive_low_water(bytes);
            self.receive_low_water = bytes;
        }
    }

    async fn fill(&mut self) -> Result<(), PublishError> {
        self.inbound.reserve(READ_BYTES_MIN);
        match self.stream.read_buf(&mut self.inbound).await? {
            0 => Err(PublishError::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "Redis closed the connection",
            ))),
            _ => Ok(()),
        }
    }

    /// Interprets the replies in the buffer, without IO; gives the outcome of the batch once all of its replies have
    /// arrived.
    ///
    /// # Errors
    /// [`PublishError::Fenced`] when this connection is no longer the writer, [`PublishError::TornTransaction`] when
    /// the replies contradict an atomic transaction.
    pub fn outcome(&mut self) -> Result<Option<Outcome>, PublishError> {
        if self.is_idle() {
            return Ok(None);
        }
        while let Some(reply) = resp::parse(&mut self.inbound)? {
            if let Some(exchange) = self.replies.receive(reply)? {
                return self.conclude(exchange);
            }
        }
        Ok(None)
    }

    /// Takes what became of the cuts so far.
    pub fn take_cut_results(&mut self) -> CutResults {
        std::mem::take(&mut self.cut_results)
    }

    /// Ends an exchange: a batch that was run, or a prefix that was discarded.
    fn conclude(&mut self, mut exchange: Exchange) -> Result<Option<Outcome>, PublishError> {
        let is_writer = self.is_own(&exchange.writer);
        let Some(InFlight { batch, written, cuts }) = self.in_flight.take() else {
            return if is_writer { Ok(None) } else { Err(PublishError::Fenced) };
        };
        for (CutRequest { cut, answer }, reply) in cuts.into_iter().zip(exchange.cuts.drain(..)) {
            let result = match reply {
                Reply::Integer(removed) => {
                    self.cut_results.removed += removed;
                    Ok(u64::try_from(removed).unwrap_or(0))
                }
                Reply::Error(cause) => {
                    self.cut_results.failed.push((cut.meta(&self.keys), cause.clone()));
                    Err(cause)
                }
                _ => continue,
            };
            if let Some(answer) = answer {
                // It may have given up waiting.
                let _ = answer.send(result);
            }
        }
        let outcome = outcome::conclude(batch, &written, exchange, is_writer)?;
        if matches!(outcome, Outcome::Written(_)) {
            self.live = written.live;
        } else {
            // This batch comes before the one whose prefix was sent.
            self.discard_prefix();
        }
        Ok(Some(outcome))
    }
}

fn timed_out(timeout: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {} s", timeout.as_secs()),
    )
}
