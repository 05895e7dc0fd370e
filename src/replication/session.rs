//! One session: from a successful `START_REPLICATION` and a claimed checkpoint to the first lost connection.
//!
//! One task owns both connections. [`Event`] lists every reason to wake, [`Session::next_event`] waits for the first of
//! them, [`Session::handle`] acts on it. While a batch is under way the next one grows; when it is full, Postgres is
//! not read, so that nothing piles up here however long Redis takes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use postgres_types::{PgLsn, Type};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connection::{self, Connection, unix_micros};
use super::epoch::{self, Break, Replay, Server};
use super::frame::Frame;
use super::pipeline::{self, Counts, Pipeline, Start};
use super::replicator::Report;
use super::slot;
use crate::config::{self, Config};
use crate::contract::checkpoint::{Checkpoint, Epoch};
use crate::contract::control::Trim;
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::contract::window::WindowEntry;
use crate::core::position::EpochId;
use crate::core::position::StreamId;
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::net;
use crate::postgres::Database;
use crate::publish::aof::{self, Written};
use crate::publish::batch::{Batch, Purpose};
use crate::publish::connection::{self as redis_connection, Claim};
use crate::publish::durability::{Durability, Persistence};
use crate::publish::outcome::{Failure, Outcome, error_code};
use crate::publish::progress::Progress;
use crate::route::router::Router;
use crate::telemetry::traces;

/// How often timeouts are looked at and a status update is due.
const TICK: Duration = Duration::from_millis(250);

/// While a batch is under way, what Postgres sends waits for company: it could not be sent on yet. So many bytes are worth
/// taking in meanwhile, and after so long a time any are, since Postgres may ask whether we live.
const GATHER_BYTES: usize = 16 * 1024;
const GATHER: Duration = Duration::from_millis(100);

/// Status updates are sent at least this often, far below any `wal_sender_timeout`.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// First and longest wait before a refused batch is sent again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// `reset` entries in one transaction when an epoch begins.
const BIRTHS_PER_BATCH: usize = 1000;

/// How long a stop waits for the batch under way.
const DRAIN: Duration = Duration::from_secs(3);

/// What the session is doing, for readiness and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Connecting.
    Starting,
    /// Another engine reads from the slot; this one takes over when it goes.
    Waiting,
    /// Following the log.
    Streaming {
        /// The epoch.
        epoch: EpochId,
        /// Its number.
        number: i64,
        /// Streams that take no entries.
        stopped_streams: usize,
        /// How far.
        progress: Progress,
        /// Why Redis takes nothing at the moment.
        refused: Option<String>,
    },
    /// The last session ended; another begins soon.
    Failed(String),
}

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// As asked.
    Stopped,
    /// What came is not understood, and skipping it would lose data.
    Fatal(anyhow::Error),
    /// Another engine has the slot.
    SlotInUse,
    /// A new epoch must begin.
    Broken(Break),
    /// Anything else; try again.
    Failed(Cause, anyhow::Error),
}

/// Who or what ended a session against our will, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Postgres, or the way to it.
    Postgres,
    /// Redis, or the way to it.
    Redis,
    /// Another engine became the writer.
    Fenced,
    /// History has broken.
    Broken,
    /// Anything else.
    Other,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Postgres, Self::Redis, Self::Fenced, Self::Broken, Self::Other];

    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Fenced => "fenced",
            Self::Broken => "broken",
            Self::Other => "other",
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        let is_postgres = |cause: &(dyn std::error::Error + 'static)| {
            cause.is::<connection::Error>()
                || cause.is::<crate::postgres::Error>()
                || cause.is::<tokio_postgres::Error>()
        };
        if error.chain().any(is_postgres) {
            Self::Postgres
        } else {
            Self::Other
        }
    }
}

/// What a session works with.
#[derive(Debug)]
pub struct SessionContext<'a> {
    /// The settings.
    pub config: &'a Config,
    /// Ordinary SQL.
    pub database: &'a Database,
    /// What heartbeats saw.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Postgres shuts down: it waits until nobody follows its log any more.
    pub leaving: watch::Receiver<bool>,
    /// What is to be trimmed.
    pub trims: &'a mut mpsc::Receiver<Trim>,
    /// Where all is shown.
    pub report: &'a Report,
    /// Ends the session.
    pub stop: CancellationToken,
}

/// Every reason to wake.
#[derive(Debug)]
enum Event {
    /// Postgres sent something.
    Received,
    /// A status update went out.
    StatusWritten,
    /// Redis took or answered something.
    Redis,
    /// Redis told about its AOF.
    Aof(aof::Reading),
    /// A heartbeat saw a snapshot.
    Seen,
    /// Postgres shuts down, or does so no longer.
    Leaving,
    /// A stream is to be trimmed.
    Trim(Trim),
    /// Time to look at timeouts, the status update and a refused batch.
    Tick,
    /// The session shall end.
    Stop,
}

struct Session<'a> {
    context: SessionContext<'a>,
    postgres: Connection,
    redis: redis_connection::Connection,
    pipeline: Pipeline,
    epoch: Epoch,
    progress: Progress,
    durability: Durability,
    /// Identity of the Redis process that the publisher writes to.
    run_id: String,
    written: watch::Sender<Written>,
    aof: mpsc::Receiver<aof::Reading>,
    /// What `acknowledged` says in the batch under way.
    sending_acknowledged: PgLsn,
    /// What goes before the next batch, above all streams to be born.
    births: Option<Batch>,
    /// Transactions that a snapshot may not see yet.
    window: Vec<WindowEntry>,
    /// A batch that Redis refused, and when to try it again.
    refused: Option<(Batch, Instant)>,
    refusal: Option<String>,
    /// How long to wait after the next refusal.
    retry_wait: Duration,
    /// When the batch under way was sent.
    sent_at: Instant,
    /// What of the pipeline's counts is in the metrics.
    reported: Counts,
    last_received: Instant,
    last_status: Instant,
    ticks: tokio::time::Interval,
}

/// Runs one session.
pub async fn run(context: SessionContext<'_>, forced: Option<Break>) -> End {
    match start(context, forced).await {
        Ok(session) => session.run().await,
        Err(end) => end,
    }
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure.into(),
            Err(error) => Self::Failed(Cause::of(&error), error),
        }
    }
}

impl End {
    /// The end by an error that is Redis' unless it says otherwise.
    fn by_redis(error: anyhow::Error) -> Self {
        match error.into() {
            Self::Failed(Cause::Other, error) => Self::Failed(Cause::Redis, error),
            end => end,
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TornTransaction(_) => {
                tracing::error!(%failure, "a new epoch must begin");
                Self::Broken(Break::TornTransaction)
            }
            Failure::Fenced => Self::Failed(Cause::Fenced, failure.into()),
            Failure::Io(_) => Self::Failed(Cause::Redis, failure.into()),
        }
    }
}

impl From<connection::Error> for End {
    fn from(error: connection::Error) -> Self {
        match &error {
            connection::Error::Server(server) if server.is_slot_in_use() => Self::SlotInUse,
            connection::Error::Protocol(_) => Self::Fatal(error.into()),
            _ => Self::Failed(Cause::Postgres, error.into()),
        }
    }
}

impl From<pipeline::Error> for End {
    fn from(error: pipeline::Error) -> Self {
        match error {
            pipeline::Error::Broken(broken) => Self::Broken(broken),
            error => Self::Fatal(error.into()),
        }
    }
}

/// Connects, in the order that fences others out: the slot first, then the checkpoint.
async fn start(mut context: SessionContext<'_>, forced: Option<Break>) -> Result<Session<'_>, End> {
    // If Postgres still shuts down, the next statements tell.
    context.leaving.mark_unchanged();
    let settings = &context.config.replication;
    let timeout = Duration::from_secs(context.config.postgres.connect_timeout_seconds);
    // Read anew for each session, so that renewed certificates are taken.
    let upstream = net::postgres::Server::parse(context.config.postgres.url.expose()).context("key `postgres.url`")?;

    let slot_created = match slot::state(context.database, &settings.slot).await? {
        Some(state) if state.wal_status != "lost" => false,
        found => {
            if let Some(lost) = found {
                tracing::error!(
                    slot = settings.slot,
                    lost_by = lost.lost_by,
                    "Postgres removed WAL that the slot needed (max_slot_wal_keep_size, idle_replication_slot_timeout); \
                     it is made anew"
                );
                slot::drop(context.database, &settings.slot).await?;
            }
            // A slot positioned before its publication fails for good, so the publication comes first.
            crate::postgres::publication::ensure(context.database, &settings.publication).await?;
            let lsn = slot::create(context.database, &settings.slot).await?;
            tracing::info!(slot = settings.slot, %lsn, "replication slot created");
            true
        }
    };
    let sender_timeout = Duration::from_secs(settings.sender_timeout_seconds);
    let mut postgres = Connection::connect(&upstream, timeout, sender_timeout).await?;
    let mut identity = within(timeout, postgres.identify_system()).await?;
    let mut timeline_history = None;
    let starting = postgres.start_replication(&settings.slot, &settings.publication);
    within(timeout, starting).await?;

    // All that may take long: until the slot is read, somebody must keep it.
    let preparing = async {
        let confirmed = slot::state(context.database, &settings.slot)
            .await?
            .context("the slot disappeared while it was started")?
            .confirmed;
        let mut redis =
            redis_connection::Connection::connect(&context.config.redis, context.config.streams.live_entries_max)
                .await
                .map_err(End::by_redis)?;
        let claim = redis.claim().await.map_err(End::by_redis)?;
        // Asked after the claim: another engine may have published until then, and that must not look like a rewind.
        let end = context
            .database
            .query_opt(include_str!("../../sql/wal_position.sql"), &[])
            .await
            .context("cannot read the end of the log")?;
        identity.wal_end = end.context("the log has no end")?.get("lsn");
        if claim.persistence == Persistence::Off {
            tracing::warn!("Redis does not persist durably (appendonly no): its crash costs a reset of all devices");
        }
        if let Some(checkpoint) = &claim.checkpoint
            && checkpoint.timeline != identity.timeline
        {
            // A connection that streams takes no further command.
            let mut other = Connection::connect(&upstream, timeout, sender_timeout).await?;
            timeline_history = within(timeout, other.timeline_history(identity.timeline)).await?;
            other.close().await;
        }
        let server = Server {
            identity,
            slot_created,
            confirmed,
            timeline_history,
        };
        let verdict = match forced {
            Some(broken) => Err(broken),
            None => epoch::detect_break(&server, claim.checkpoint.as_ref()),
        };
        let (epoch, position, replay, acknowledged) = match (verdict, &claim.checkpoint) {
            (Ok(replay), Some(checkpoint)) => (checkpoint.epoch, checkpoint.position, replay, checkpoint.acknowledged),
            (Ok(_), None) => return Err(End::Failed(Cause::Other, anyhow!("no checkpoint, yet no new epoch"))),
            (Err(broken), _) => {
                let (epoch, position) = begin_epoch(&context, &mut redis, &server, &claim, &broken)
                    .await
                    .map_err(End::by_redis)?;
                (epoch, position, Replay::free(), confirmed)
            }
        };
        Ok::<_, End>((confirmed, redis, claim, server, (epoch, position, replay, acknowledged)))
    };
    let prepared = tokio::select! {
        prepared = preparing => prepared?,
        failed = postgres.keep_alive(STATUS_INTERVAL) => match failed? {},
    };
    let (confirmed, redis, claim, server, (epoch, position, replay, acknowledged)) = prepared;
    tracing::info!(
        slot = settings.slot, %confirmed, %position, epoch = %epoch.id, number = epoch.number, base = epoch.base,
        "following the write-ahead log"
    );

    let keys = Keys::new(&context.config.redis.prefix);
    let start = Start {
        base: epoch.base,
        position,
        replay,
        tenants: tenants(context.database).await?,
    };
    let (written, _) = watch::channel(Written {
        published: confirmed,
        acknowledged,
    });
    let (aof_sender, aof) = mpsc::channel(1);
    let durability = Durability::new(claim.persistence);
    if durability.wants_state() {
        tokio::spawn(aof::watch(
            context.config.redis.clone(),
            written.subscribe(),
            aof_sender,
        ));
    }
    let timeline = claim.checkpoint.as_ref().map(|checkpoint| checkpoint.timeline);
    let has_switched = timeline.is_some_and(|timeline| timeline != server.identity.timeline);
    let opening = opening(
        &keys,
        &claim.stopped,
        position,
        has_switched.then_some(server.identity.timeline),
    );
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Ok(Session {
        pipeline: Pipeline::new(
            keys.clone(),
            Router::new(context.config.routes.clone()),
            &settings.slot,
            start,
        ),
        context,
        postgres,
        redis,
        epoch,
        progress: Progress::starting_at(confirmed),
        durability,
        run_id: claim.run_id,
        written,
        aof,
        sending_acknowledged: acknowledged,
        births: opening,
        window: claim.window,
        refused: None,
        refusal: None,
        retry_wait: RETRY.0,
        sent_at: Instant::now(),
        reported: Counts::default(),
        last_received: Instant::now(),
        last_status: Instant::now(),
        ticks,
    })
}

/// Waits for an answer of Postgres no longer than this.
async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, connection::Error>>) -> Result<T, End> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(End::Failed(
            Cause::Postgres,
            anyhow!("no answer from Postgres within {} s", limit.as_secs()),
        )),
    }
}

/// What a session writes before all else.
///
/// Streams that an earlier session had to stop have a hole: they are born anew, which tells their readers. One that does
/// not take even that is stopped again. And when the server went on on a timeline that holds all that is published,
/// the next session must compare with that one.
fn opening(keys: &Keys, stopped: &[Target], position: StreamId, timeline: Option<i32>) -> Option<Batch> {
    let mut batch = Batch::new(keys.clone());
    if let Some(timeline) = timeline {
        let (key, timeline) = (keys.checkpoint(), timeline.to_string());
        batch.other(&[b"HSET", key.as_bytes(), b"timeline", timeline.as_bytes()]);
    }
    for target in stopped {
        tracing::warn!(
            stream = target.key(keys),
            "stream was stopped and is born anew with a reset"
        );
        batch.recreate_stream(target.clone(), position, unix_micros());
    }
    (!batch.is_empty()).then_some(batch)
}

/// Begins a new epoch: Postgres records it, each stream gets a `reset` entry, then the checkpoint says so.
///
/// A crash before the last step leaves the old checkpoint, so that the next start finds the same break.
async fn begin_epoch(
    context: &SessionContext<'_>,
    redis: &mut redis_connection::Connection,
    server: &Server,
    claim: &Claim,
    broken: &Break,
) -> Result<(Epoch, StreamId)> {
    let slot = &context.config.replication.slot;
    let last = context
        .database
        .query_opt(include_str!("../../sql/epoch_last.sql"), &[(slot, Type::TEXT)])
        .await
        .context("cannot read the last epoch")?;
    let (last_number, last_base) = last.map_or((0, 0), |row| (row.get::<_, i64>("number"), row.get::<_, i64>("base")));
    let checkpoint = claim.checkpoint.as_ref();
    let old = checkpoint.map(|checkpoint| checkpoint.epoch);
    let previous_base = old.map_or(0, |old| old.base).max(u64::try_from(last_base).unwrap_or(0));
    let keys = Keys::new(&context.config.redis.prefix);
    let tenants = context
        .database
        .query(include_str!("../../sql/tenant_generations.sql"), &[])
        .await
        .context("cannot list the tenants")?;
    let last_ms = match checkpoint {
        Some(checkpoint) => checkpoint.position.ms.max(checkpoint.live.ms),
        // Streams may have outlived their checkpoint, in this log or in one that was rewound since.
        None => {
            let mut last = redis.last_id(&keys.live(0)).await?;
            for row in &tenants {
                last = last.max(redis.last_id(&keys.changes(row.get("name"))).await?);
            }
            match last {
                StreamId::ZERO if last_number == 0 => 0,
                last => last
                    .ms
                    .max(u64::from(server.identity.wal_end).saturating_add(previous_base)),
            }
        }
    };
    let epoch = Epoch {
        id: EpochId::random().context("no random bits from the operating system")?,
        number: old.map_or(0, |old| old.number).max(last_number) + 1,
        base: epoch::base_above(last_ms, previous_base, server.confirmed),
    };
    let position = StreamId {
        ms: u64::from(server.confirmed).saturating_add(epoch.base),
        seq: 0,
    };
    tracing::warn!(reason = %broken, number = epoch.number, id = %epoch.id, base = epoch.base, "a new epoch begins");
    context
        .database
        .query(
            include_str!("../../sql/epoch_insert.sql"),
            &[
                (slot, Type::TEXT),
                (&epoch.number, Type::INT8),
                (&epoch.id.to_string(), Type::TEXT),
                (&i64::try_from(epoch.base).unwrap_or(i64::MAX), Type::INT8),
                (&server.identity.system_id, Type::TEXT),
                (&server.identity.timeline, Type::INT4),
                (&server.confirmed, Type::PG_LSN),
                (&broken.to_string(), Type::TEXT),
            ],
        )
        .await
        .context("cannot record the new epoch")?;

    let now = unix_micros();
    let acknowledged = checkpoint.map_or(PgLsn::from(0), |checkpoint| checkpoint.acknowledged);
    let old = old.unwrap_or(epoch);
    for row in &tenants {
        let (name, generation): (String, i64) = (row.get("name"), row.get("generation"));
        let state: String = row.get("state");
        let Some(tenant) = Tenant::named(&name) else { continue };
        let shared_name: std::sync::Arc<str> = name.as_str().into();
        let mut batch = Batch::new(keys.clone());
        batch.reset_meta(&name, generation, &state);
        for target in [
            Target::Changes(shared_name.clone()),
            Target::Shared(shared_name.clone()),
        ] {
            batch.create_stream(target, position, now);
        }
        let mut after = Uuid::nil();
        loop {
            let page = BIRTHS_PER_BATCH as i64;
            let users = context
                .database
                .query(
                    &tenant.sql(include_str!("../../sql/user_ids.sql")),
                    &[(&after, Type::UUID), (&page, Type::INT8)],
                )
                .await;
            let users = match users {
                // What is wrong with one tenant's table must not keep the epoch from beginning. Cursors end with the epoch
                // all the same, and an inbox that is missing is born when its user's device comes for a snapshot.
                Err(error) if error.is_object_error() => {
                    tracing::error!(tenant = name, %error, "the tenant's inboxes get no reset: its users cannot be listed");
                    Vec::new()
                }
                users => users.with_context(|| format!("cannot list the users of tenant {name}"))?,
            };
            for user in &users {
                after = user.get("id");
                batch.create_stream(Target::Inbox(shared_name.clone(), after), position, now);
            }
            exchange(
                redis,
                std::mem::replace(&mut batch, Batch::new(keys.clone())),
                &old,
                acknowledged,
            )
            .await?;
            if users.len() < BIRTHS_PER_BATCH {
                break;
            }
        }
    }
    let mut batch = Batch::new(keys);
    batch.begin_epoch(&Checkpoint {
        epoch,
        system_id: server.identity.system_id.clone(),
        timeline: server.identity.timeline,
        position,
        published: position,
        transaction: None,
        open: None,
        acknowledged: server.confirmed,
        live: checkpoint.map_or(StreamId::ZERO, |checkpoint| checkpoint.live),
        run_id: claim.run_id.clone(),
    });
    exchange(redis, batch, &epoch, server.confirmed).await?;
    context.report.metrics.replication.epoch_began(broken);
    Ok((epoch, position))
}

async fn tenants(database: &Database) -> Result<HashSet<Arc<str>>> {
    let tenants = crate::postgres::tenants::list(database)
        .await
        .context("cannot list the tenants")?;
    Ok(tenants.into_iter().map(|tenant| tenant.name.into()).collect())
}

/// Sends one batch and waits for its outcome.
///
/// What Redis forbids for one stream is left out: its first entry will be forbidden too, and stop that stream alone.
async fn exchange(
    redis: &mut redis_connection::Connection,
    batch: Batch,
    epoch: &Epoch,
    acknowledged: PgLsn,
) -> Result<()> {
    redis.send(batch, epoch, acknowledged);
    loop {
        match redis.outcome()? {
            Some(Outcome::Written { .. }) => return Ok(()),
            Some(Outcome::Denied { batch, purpose, cause }) => {
                tracing::error!(
                    ?purpose,
                    cause,
                    "Redis forbids a stream to be born; see the ACL in the docs"
                );
                redis.send(batch, epoch, acknowledged);
            }
            Some(Outcome::Refused { cause, .. }) => {
                return Err(anyhow!("Redis refused the beginning of an epoch: {cause}"));
            }
            None => {
                redis.check_timeout(Instant::now())?;
                tokio::time::timeout(TICK, redis.progress()).await.unwrap_or(Ok(()))?;
            }
        }
    }
}

impl Session<'_> {
    async fn run(mut self) -> End {
        self.show_state();
        let end = loop {
            self.send_when_possible();
            let event = match self.next_event().await {
                Ok(event) => event,
                Err(end) => break end,
            };
            match self.handle(event) {
                Ok(false) => {}
                Ok(true) => break self.drain().await,
                Err(end) => break end,
            }
        };
        let counts = self.pipeline.counts();
        let metrics = &self.context.report.metrics.replication;
        metrics.add(counts, &mut self.reported);
        tracing::info!(
            transactions = counts.transactions,
            changes = counts.changes,
            replayed = counts.replayed,
            quarantined = counts.quarantined,
            acknowledged = %self.progress.acknowledged(),
            "stopped following the write-ahead log"
        );
        self.postgres.close().await;
        end
    }

    fn is_full(&mut self) -> bool {
        let settings = &self.context.config.replication;
        let batch = self.pipeline.batch();
        batch.changes() >= settings.batch_changes_max || batch.bytes() >= settings.batch_bytes_max
    }

    async fn next_event(&mut self) -> Result<Event, End> {
        let may_read = !self.is_full();
        self.postgres.set_receive_low_water(match self.redis.is_idle() {
            false if self.sent_at.elapsed() < GATHER => GATHER_BYTES,
            _ => 1,
        });
        tokio::select! {
            () = self.context.stop.cancelled() => Ok(Event::Stop),
            result = self.redis.progress(), if !self.redis.is_idle() => {
                result?;
                Ok(Event::Redis)
            }
            result = self.postgres.progress(may_read), if may_read || self.postgres.has_outbound() => {
                Ok(if result? { Event::Received } else { Event::StatusWritten })
            }
            Some(reading) = self.aof.recv() => Ok(Event::Aof(reading)),
            Ok(()) = self.context.snapshots.changed() => Ok(Event::Seen),
            Ok(()) = self.context.leaving.changed() => Ok(Event::Leaving),
            Some(trim) = self.context.trims.recv(), if may_read => Ok(Event::Trim(trim)),
            _ = self.ticks.tick() => Ok(Event::Tick),
        }
    }

    /// Acts on an event; true when the session shall end.
    fn handle(&mut self, event: Event) -> Result<bool, End> {
        match event {
            Event::Received => {
                self.last_received = Instant::now();
                self.take_frames()?;
            }
            Event::StatusWritten => {}
            Event::Redis => {
                while let Some(outcome) = self.redis.outcome()? {
                    self.conclude(outcome)?;
                    self.send_when_possible();
                }
                // There may be frames that the full batch left in the buffer.
                self.take_frames()?;
            }
            // A Redis that has come back may lack what the one before it had taken, though its file is complete.
            Event::Aof(reading) if reading.run_id != self.run_id => {
                return Err(End::Failed(
                    Cause::Redis,
                    anyhow!("Redis has restarted: what it lost is published again"),
                ));
            }
            Event::Aof(reading) => {
                let Written {
                    published,
                    acknowledged,
                } = reading.written;
                let durable = self
                    .durability
                    .observe(reading.sight, published, acknowledged, Instant::now());
                self.advance(durable);
            }
            Event::Seen => self.close_window(),
            Event::Leaving => {
                if *self.context.leaving.borrow_and_update() {
                    return Err(End::Failed(Cause::Postgres, anyhow!("Postgres shuts down")));
                }
            }
            Event::Trim(trim) => self.pipeline.batch().trim(&trim),
            Event::Tick => self.tick()?,
            Event::Stop => return Ok(true),
        }
        Ok(false)
    }

    /// Takes frames out of the buffer until it is empty or the batch full.
    fn take_frames(&mut self) -> Result<(), End> {
        let (started, mut bytes) = (Instant::now(), 0);
        while !self.is_full() {
            match self.postgres.peek()? {
                None => break,
                Some(Frame::XLogData { payload, .. }) => {
                    bytes += payload.len();
                    self.pipeline.apply(payload)?;
                }
                Some(Frame::Keepalive { reply_requested, .. }) => {
                    if reply_requested {
                        self.queue_status();
                    }
                }
            }
            self.postgres.consume();
        }
        self.progress.receive(self.pipeline.received());
        if bytes > 0 {
            let metrics = &self.context.report.metrics.replication;
            metrics.decoded(bytes, started.elapsed());
        }
        Ok(())
    }

    fn send_when_possible(&mut self) {
        if !self.redis.is_idle() {
            if self.refused.is_none() && self.births.is_none() {
                self.redis.send_prefix(self.pipeline.batch());
            }
            return;
        }
        if self.births.is_some() && self.redis.discard_prefix() {
            return;
        }
        let batch = match self.refused.take() {
            Some((batch, at)) if Instant::now() < at => {
                self.refused = Some((batch, at));
                return;
            }
            Some((batch, _)) => batch,
            // Creations go first: what follows them in the log comes after them in their streams.
            None => match self.births.take() {
                Some(births) => births,
                None if self.pipeline.batch().is_empty() => return,
                None => self.pipeline.take_batch(),
            },
        };
        // What the checkpoint said before may have been sent before, so it never goes back.
        if !self.pipeline.is_unverified() {
            self.sending_acknowledged = self.sending_acknowledged.max(self.progress.durable());
        }
        self.sent_at = Instant::now();
        self.redis.send(batch, &self.epoch, self.sending_acknowledged);
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<(), End> {
        match outcome {
            Outcome::Written {
                batch,
                missing,
                failed,
                recreated,
                wrong_type,
                live_failed,
            } => {
                if self.refusal.take().is_some() {
                    tracing::info!("Redis takes entries again");
                }
                self.retry_wait = RETRY.0;
                let entries = batch.entries().saturating_sub(failed.len());
                let metrics = &self.context.report.metrics.replication;
                metrics.wrote(self.sent_at.elapsed(), entries, batch.changes(), batch.bytes());
                metrics.add(self.pipeline.counts(), &mut self.reported);
                self.trace(&batch);
                self.window.extend(batch.window().cloned());
                if let Some(mark) = batch.complete_transaction() {
                    self.progress.publish(mark.end_lsn);
                }
                self.repair(missing, batch.position());
                self.pipeline.recycle(batch);
                for (target, cause) in failed {
                    self.pipeline.stop_stream(target, &cause);
                }
                recreated.iter().for_each(|target| self.pipeline.batch().unstop(target));
                for (key, cause) in wrong_type {
                    tracing::error!(key, cause, "a tenant's key holds something else; remove it");
                }
                if let Some(cause) = live_failed {
                    tracing::error!(cause, "the live stream took its entry ill and is made anew");
                    let key = Keys::new(&self.context.config.redis.prefix).live(0);
                    self.pipeline.batch().other(&[b"DEL", key.as_bytes()]);
                }
                let (published, acknowledged) = (self.progress.published(), self.sending_acknowledged);
                self.written.send_replace(Written {
                    published,
                    acknowledged,
                });
                let durable = self.durability.published(published, acknowledged);
                self.advance(durable);
            }
            Outcome::Refused { batch, cause } => {
                self.context.report.metrics.replication.refused(&cause);
                if error_code(&cause) == "READONLY" {
                    // Another server may be the primary by now, and the one at hand may stay a replica for ever.
                    let cause = anyhow!("Redis has become a replica ({cause}): connecting anew");
                    return Err(End::Failed(Cause::Redis, cause));
                }
                if self.refusal.as_ref() != Some(&cause) {
                    tracing::warn!(cause, "Redis takes nothing at the moment; the batch waits");
                }
                self.refusal = Some(cause);
                self.refused = Some((batch, Instant::now() + self.retry_wait));
                self.retry_wait = (self.retry_wait * 2).min(RETRY.1);
                self.show_state();
            }
            Outcome::Denied { batch, purpose, cause } => {
                self.context.report.metrics.replication.refused(&cause);
                if let Some(Purpose::Entry(target) | Purpose::Create(target) | Purpose::Recreate(target)) = purpose {
                    self.pipeline.stop_stream(target, &cause);
                } else {
                    tracing::error!(
                        cause,
                        "Redis forbids a command of the publisher; see the ACL in the docs"
                    );
                }
                self.refused = Some((batch, Instant::now()));
            }
        }
        Ok(())
    }

    /// Tells of the transactions that Redis took to their end, where their traces are sampled.
    fn trace(&self, batch: &Batch) {
        if batch.traced().is_empty() {
            return;
        }
        let answered = SystemTime::now();
        let sent = answered - self.sent_at.elapsed();
        for (last, commit_ts) in batch.traced() {
            if let Some(transaction) = traces::Transaction::of(self.epoch.id, *last) {
                transaction.published(*commit_ts, sent, answered, batch.changes());
            }
        }
    }

    /// Streams that should be there are not. The tenant's own are born anew, which tells their readers; an inbox is
    /// born anew when its user's device comes for a snapshot, since only the API knows whether there is such a user.
    fn repair(&mut self, missing: Vec<Target>, position: Option<StreamId>) {
        let Some(position) = position else { return };
        for target in missing {
            if matches!(target, Target::Inbox(..)) {
                tracing::debug!(?target, "no such inbox");
                continue;
            }
            tracing::warn!(?target, "stream was missing and is born anew with a reset");
            let keys = Keys::new(&self.context.config.redis.prefix);
            let births = self.births.get_or_insert_with(|| Batch::new(keys));
            births.recreate_stream(target, position, unix_micros());
        }
    }

    fn advance(&mut self, durable: Option<crate::publish::durability::Durable>) {
        let Some(durable) = durable else { return };
        self.progress.make_durable(durable.published);
        let before = self.progress.acknowledged();
        if !self.pipeline.is_unverified() {
            self.progress.acknowledge(durable.acknowledged);
        }
        if self.progress.acknowledged() > before {
            self.queue_status();
        }
        self.show_state();
    }

    fn close_window(&mut self) {
        let snapshot = self.context.snapshots.borrow_and_update().clone();
        let mut seen = Vec::new();
        self.window.retain(|entry| {
            let is_seen = entry.is_seen_by(&snapshot);
            if is_seen {
                seen.push(entry.first.to_string());
            }
            !is_seen
        });
        if !seen.is_empty() {
            self.pipeline.batch().close_window(seen);
        }
    }

    fn tick(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.redis.check_timeout(now)?;
        let quiet = now.duration_since(self.last_received);
        // While the batch is full nothing is read, and silence says nothing.
        if self.is_full() {
            self.last_received = now;
        } else if quiet > wire_timeout(&self.context.config.replication) {
            return Err(End::Failed(
                Cause::Postgres,
                anyhow!(
                    "no byte from Postgres for {} s: the connection counts as dead",
                    quiet.as_secs()
                ),
            ));
        }
        if now.duration_since(self.last_status) >= STATUS_INTERVAL {
            self.queue_status();
        }
        let metrics = &self.context.report.metrics.replication;
        metrics.add(self.pipeline.counts(), &mut self.reported);
        metrics.waiting(self.pipeline.batch().changes(), self.context.trims.len());
        metrics.tenants(self.pipeline.tenants());
        self.show_state();
        Ok(())
    }

    fn queue_status(&mut self) {
        self.last_status = Instant::now();
        // A walsender that passes over what nobody is to get, or reads again what is long confirmed, sends nothing for as long
        // as that takes; asked, it shows that it lives.
        let wants_answer = self.last_received.elapsed() >= STATUS_INTERVAL;
        let (received, acknowledged) = (self.progress.received(), self.progress.acknowledged());
        self.postgres.queue_status(received, acknowledged, wants_answer);
    }

    fn show_state(&self) {
        self.context.report.reached.send_replace(Some(self.progress));
        self.context.report.state.send_replace(State::Streaming {
            epoch: self.epoch.id,
            number: self.epoch.number,
            stopped_streams: self.pipeline.stopped_streams(),
            progress: self.progress,
            refused: self.refusal.clone(),
        });
    }

    /// Finishes the batch under way and the one being filled, so that a restart has little to replay.
    async fn drain(&mut self) -> End {
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline && self.refused.is_none() {
            self.send_when_possible();
            if self.redis.is_idle() {
                break;
            }
            match tokio::time::timeout(TICK, self.redis.progress()).await {
                Ok(Ok(())) => match self.redis.outcome() {
                    Ok(Some(outcome)) => {
                        if let Err(end) = self.conclude(outcome) {
                            return end;
                        }
                    }
                    Ok(None) => {}
                    Err(failure) => return failure.into(),
                },
                Ok(Err(failure)) => return failure.into(),
                Err(_) => {}
            }
        }
        End::Stopped
    }
}

/// How long Postgres may be silent: more than half of its sender timeout, since in the midst of work it does not answer
/// before that.
fn wire_timeout(settings: &config::Replication) -> Duration {
    let seconds = settings
        .wire_timeout_seconds
        .max(settings.sender_timeout_seconds / 2 + 1);
    Duration::from_secs(seconds)
}
