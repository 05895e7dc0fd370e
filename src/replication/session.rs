//! One session: from a successful start to the first lost connection.
//!
//! One task owns both connections. [`Event`] lists every reason to wake, [`Session::next_event`] waits for the first of
//! them, [`Session::handle`] acts on it. While a batch is in flight the next one grows; when that is full, Postgres is
//! not read, so that memory stays bounded however slow Redis is.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use postgres_types::PgLsn;
use tokio::sync::{mpsc, watch};

use super::catalog;
use super::connection::{self, Connection, ServerError};
use super::durability_watch::DurabilityWatch;
use super::end::{FailureCause, SessionEnd};
use super::frame::Frame;
use super::heartbeat;
use super::pipeline::{Answer, Pipeline, Question, Start};
use super::report::ReplicatorState;
use super::startup::{self, CUTS_MAX, MetBreak, Prepared, STATUS_INTERVAL, SessionContext, Started};
use super::undecodable;
use super::unseen::UnseenTransactions;
use crate::config;
use crate::contract::checkpoint::Epoch;
use crate::contract::keys::Keys;
use crate::contract::stream_name::Target;
use crate::core::backoff::Backoff;
use crate::core::position::StreamId;
use crate::core::time::{age_of, unix_micros};
use crate::postgres::Database;
use crate::publish::aof::{self, Written};
use crate::publish::batch::{Batch, Marks};
use crate::publish::connection as redis_connection;
use crate::publish::cut::CutRequest;
use crate::publish::durability::Durable;
use crate::publish::outcome::{Outcome, WrittenBatch, error_code};
use crate::publish::progress::Progress;
use crate::route::router::Router;
use crate::telemetry::journal::{Step, StepKind};
use crate::telemetry::metrics::ReplicationCounts;
use crate::telemetry::traces;

/// How often timeouts are checked and a status update is due.
const TICK: Duration = Duration::from_millis(250);

/// While a batch is in flight, bytes from Postgres could not be sent on. Reading waits until this many have arrived, or
/// for this long, since Postgres may request a status update.
const GATHER_BYTES: usize = 16 * 1024;
const GATHER: Duration = Duration::from_millis(100);

/// Delays before a refused batch is sent again: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long the catalogs may take to answer, during which no status update is sent.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a stop waits for the batch in flight.
const DRAIN: Duration = Duration::from_secs(3);

/// Every reason to wake.
#[derive(Debug)]
enum Event {
    /// Bytes arrived from Postgres.
    Received,
    /// A status update was sent.
    StatusWritten,
    /// Bytes were exchanged with Redis.
    Redis,
    /// The state of Redis' append-only file was read.
    Aof(aof::Reading),
    /// A heartbeat read a snapshot.
    Snapshot,
    /// The catalogs were asked about a table.
    Answer(Answer),
    /// A schema was renamed, or a table moved out of one.
    Moved,
    /// Postgres shuts down, or no longer does.
    ShuttingDown,
    /// A stream is to be trimmed.
    Cut(CutRequest),
    /// Timeouts, the status update and a refused batch are due.
    Tick,
    Stop,
}

struct Session<'a> {
    context: SessionContext<'a>,
    postgres: Connection,
    redis: redis_connection::Connection,
    pipeline: Pipeline,
    epoch: Epoch,
    progress: Progress,
    durable: DurabilityWatch,
    in_flight: InFlight,
    refused: Refused,
    /// What is sent before the next batch of the pipeline, above all streams to be recreated.
    urgent: Option<Batch>,
    /// What is trimmed behind the next batch.
    cuts: Vec<CutRequest>,
    /// The replies to everything up to here are read and recorded.
    seen: StreamId,
    unseen: UnseenTransactions,
    /// The part of the pipeline's counts that the metrics include.
    reported: ReplicationCounts,
    last_received: Instant,
    last_status: Instant,
    ticks: tokio::time::Interval,
}

/// About the batch in flight, which the connection to Redis holds.
struct InFlight {
    sent_at: Instant,
    /// `acknowledged` in the checkpoint that it writes.
    acknowledged: PgLsn,
}

/// A batch that Redis refused.
struct Refused {
    /// The batch, and when to send it again.
    batch: Option<(Batch, Instant)>,
    /// The error, until a batch is written.
    cause: Option<String>,
    backoff: Backoff,
}

/// Runs one session.
pub async fn run(mut context: SessionContext<'_>, forced: Option<MetBreak>) -> SessionEnd {
    match Box::pin(startup::start(&mut context, forced)).await {
        Ok(started) => Box::pin(Session::new(context, started).run()).await,
        Err(end) => end,
    }
}

/// What a session writes first; `None` when nothing.
///
/// Streams that an earlier session stopped lack entries: they are recreated with a `reset` entry, which their readers
/// receive. A stream that refuses even that is stopped again. When the server continues on a new timeline that includes
/// all that is published, the checkpoint takes over that timeline.
fn opening_batch(keys: &Keys, stopped: &[Target], position: StreamId, new_timeline: Option<i32>) -> Option<Batch> {
    let mut batch = Batch::new(keys.clone());
    if let Some(timeline) = new_timeline {
        let (key, timeline) = (keys.checkpoint(), timeline.to_string());
        batch.other(&[b"HSET", key.as_bytes(), b"timeline", timeline.as_bytes()]);
    }
    for target in stopped {
        tracing::warn!(
            stream = target.key(keys),
            reason = "stopped",
            "stream recreated with a reset entry"
        );
        batch.recreate_stream(target.clone(), position, unix_micros());
    }
    (!batch.is_empty()).then_some(batch)
}

impl<'a> Session<'a> {
    fn new(context: SessionContext<'a>, started: Started) -> Self {
        let Started { postgres, prepared } = started;
        let Prepared {
            redis,
            mut claim,
            server,
            origin,
            tenants,
            elsewhere,
        } = prepared;
        let keys = Keys::new(&context.config.redis.keys_prefix());
        let timeline = server.identity.timeline;
        let has_switched = claim
            .checkpoint
            .as_ref()
            .is_some_and(|checkpoint| checkpoint.timeline != timeline);
        let urgent = opening_batch(&keys, &claim.stopped, origin.position, has_switched.then_some(timeline));
        let replicas_min = context.config.redis.replicas_min;
        let (written, _) = watch::channel(Written {
            published: server.confirmed,
            acknowledged: origin.acknowledged,
        });
        let (sender, readings) = mpsc::channel(1);
        // Without a file, too: that can be switched on.
        tokio::spawn(aof::watch(context.config.redis.clone(), written.subscribe(), sender));
        claim.window.sort_unstable_by_key(|entry| entry.first);
        let router = Router::configured(context.config);
        let start = Start {
            base: origin.epoch.base,
            position: origin.position,
            seen: origin.seen,
            replay: origin.replay,
            lane: context.config.lane.as_str().into(),
            tenants,
            elsewhere,
            logical_messages: context.config.outbox.logical_messages,
        };
        let now = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            pipeline: Pipeline::new(keys, router, &context.config.replication.slot, start),
            context,
            postgres,
            redis,
            epoch: origin.epoch,
            progress: Progress::starting_at(server.confirmed),
            durable: DurabilityWatch::new(&claim, written, readings, replicas_min),
            in_flight: InFlight {
                sent_at: now,
                acknowledged: origin.acknowledged,
            },
            refused: Refused {
                batch: None,
                cause: None,
                backoff: Backoff::new(RETRY.0, RETRY.1),
            },
            urgent,
            cuts: Vec::new(),
            seen: origin.seen,
            unseen: UnseenTransactions::new(claim.window),
            reported: ReplicationCounts::default(),
            last_received: now,
            last_status: now,
            ticks,
        }
    }

    async fn run(mut self) -> SessionEnd {
        self.context.report.ledger.begin(self.redis.writer());
        self.report_state();
        let end = loop {
            self.send_when_possible();
            let event = match self.next_event().await {
                Ok(event) => event,
                Err(end) => break end,
            };
            match self.handle(event) {
                Ok(false) => {}
                Ok(true) => break self.drain().await,
                Err(SessionEnd::Undecodable(lsn, error)) if self.context.undecodable == Some(lsn) => {
                    if let Err(end) = Box::pin(self.pass_undecodable(lsn, &error)).await {
                        break end;
                    }
                }
                Err(end) => break end,
            }
        };
        self.context.report.ledger.end();
        let counts = self.pipeline.counts();
        let metrics = &self.context.report.metrics.replication;
        metrics.add(counts, &mut self.reported);
        tracing::info!(
            transactions = counts.transactions,
            changes = counts.changes,
            replayed = counts.replayed,
            quarantined = counts.quarantined,
            acknowledged = %self.progress.acknowledged(),
            "replication stopped"
        );
        self.postgres.close().await;
        end
    }

    /// Goes on behind a transaction that Postgres fails to send. Its tenants are resynced before, so that no crash can leave
    /// them without it.
    async fn pass_undecodable(&mut self, commit_lsn: PgLsn, error: &ServerError) -> Result<(), SessionEnd> {
        if !matches!(self.drain().await, SessionEnd::Stopped) || !self.redis.is_idle() {
            return Err(SessionEnd::Undecodable(commit_lsn, error.clone()));
        }
        let pass = undecodable::Pass {
            config: self.context.config,
            database: self.context.database,
            tenants: self.pipeline.tenant_names().cloned().collect(),
        };
        let from = tokio::select! {
            from = pass.resync(commit_lsn, error) => from?,
            () = self.context.stop.cancelled() => return Err(SessionEnd::Stopped),
        };
        self.pipeline.abandon_transaction(from)?;
        self.postgres = pass.connect(from).await?;
        self.last_received = Instant::now();
        Ok(())
    }

    fn is_full(&mut self) -> bool {
        let settings = &self.context.config.replication;
        let batch = self.pipeline.batch();
        batch.changes() >= settings.batch_changes_max || batch.bytes() >= settings.batch_bytes_max
    }

    async fn next_event(&mut self) -> Result<Event, SessionEnd> {
        if let Some(question) = self.pipeline.question() {
            let reading = ask(self.context.database, question);
            return Ok(Event::Answer(startup::within(CATALOG_TIMEOUT, reading).await?));
        }
        let may_read = !self.is_full();
        let may_gather = !self.redis.is_idle() && self.in_flight.sent_at.elapsed() < GATHER;
        self.postgres
            .set_receive_low_water(if may_gather { GATHER_BYTES } else { 1 });
        tokio::select! {
            () = self.context.stop.cancelled() => Ok(Event::Stop),
            result = self.redis.progress(), if !self.redis.is_idle() => {
                result?;
                Ok(Event::Redis)
            }
            result = self.postgres.progress(may_read), if may_read || self.postgres.has_outbound() => {
                Ok(if result? { Event::Received } else { Event::StatusWritten })
            }
            Some(reading) = self.durable.readings.recv() => Ok(Event::Aof(reading)),
            Ok(()) = self.context.snapshots.changed() => Ok(Event::Snapshot),
            Ok(()) = self.context.moved.changed() => Ok(Event::Moved),
            Ok(()) = self.context.shutting_down.changed() => Ok(Event::ShuttingDown),
            Some(cut) = self.context.cuts.recv(), if self.cuts.len() < CUTS_MAX => Ok(Event::Cut(cut)),
            _ = self.ticks.tick() => Ok(Event::Tick),
        }
    }

    /// Acts on an event; true when the session must end.
    fn handle(&mut self, event: Event) -> Result<bool, SessionEnd> {
        match event {
            Event::Received => {
                self.last_received = Instant::now();
                self.apply_frames()?;
            }
            Event::StatusWritten => {}
            Event::Redis => {
                while let Some(outcome) = self.redis.outcome()? {
                    self.conclude(outcome)?;
                    self.send_when_possible();
                }
                // The full batch may have left frames in the buffer.
                self.apply_frames()?;
            }
            // A restarted Redis may lack entries that it had confirmed before, although its file is complete.
            Event::Aof(reading) if reading.run_id != self.durable.run_id => {
                return Err(SessionEnd::Failed(
                    FailureCause::Redis,
                    anyhow!("Redis restarted; publishing again what it lost"),
                ));
            }
            Event::Aof(reading) => {
                if let Some(before) = self.durable.state.adapt(reading.persistence) {
                    tracing::warn!(
                        ?before, now = ?reading.persistence,
                        "the settings appendonly or appendfsync of Redis were changed; following them"
                    );
                    let Written {
                        published,
                        acknowledged,
                    } = *self.durable.written.borrow();
                    let durable = self.durable.state.published(published, acknowledged);
                    self.advance(durable);
                }
                let Written {
                    published,
                    acknowledged,
                } = reading.written;
                let durable = self
                    .durable
                    .state
                    .observe(reading.observation, published, acknowledged, Instant::now());
                self.advance(durable);
                let durable = self.durable.note_replicas(&reading);
                self.advance(durable);
            }
            Event::Snapshot => {
                let snapshot = self.context.snapshots.borrow_and_update().clone();
                self.unseen.remove_seen(&snapshot, self.seen, self.pipeline.batch());
            }
            Event::Answer(answer) => {
                self.pipeline.answer(answer);
                self.apply_frames()?;
            }
            // Until Postgres 15, a walsender does not learn that a schema has another name; a new one does.
            Event::Moved => return Err(SessionEnd::moved()),
            Event::ShuttingDown => {
                if *self.context.shutting_down.borrow_and_update() {
                    return Err(SessionEnd::Failed(
                        FailureCause::Postgres,
                        anyhow!("Postgres is shutting down"),
                    ));
                }
            }
            Event::Cut(cut) => self.cuts.push(cut),
            Event::Tick => self.tick()?,
            Event::Stop => return Ok(true),
        }
        Ok(false)
    }

    /// Applies the frames in the buffer until it is empty or the batch is full.
    fn apply_frames(&mut self) -> Result<(), SessionEnd> {
        let (started, mut bytes) = (Instant::now(), 0);
        while !self.is_full() && self.pipeline.question().is_none() {
            let frame = match self.postgres.peek() {
                Err(connection::Error::Server(error)) if error.is_undecodable() => {
                    return Err(match self.pipeline.open_transaction() {
                        Some(begin) => SessionEnd::Undecodable(begin.final_lsn, error),
                        None => connection::Error::from(error).into(),
                    });
                }
                frame => frame?,
            };
            match frame {
                None => break,
                Some(Frame::XLogData { payload, .. }) => {
                    bytes += payload.len();
                    self.pipeline.apply(payload)?;
                }
                Some(Frame::Oversized { head, bytes }) => self.pipeline.apply_oversized(head, bytes)?,
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
            if self.refused.batch.is_none() && self.urgent.is_none() {
                self.redis.send_prefix(self.pipeline.batch());
            }
            return;
        }
        // The reply to DISCARD comes first.
        if self.urgent.is_some() && self.redis.discard_prefix() {
            return;
        }
        if let Some(batch) = self.next_batch() {
            self.send(batch);
        }
    }

    /// What is sent next: a refused batch when it is due, then what is urgent, then what was decoded.
    fn next_batch(&mut self) -> Option<Batch> {
        match self.refused.batch.take() {
            // What is cut may make room for it.
            Some((batch, at)) if Instant::now() < at && self.cuts.is_empty() => {
                self.refused.batch = Some((batch, at));
                None
            }
            Some((batch, _)) => Some(batch),
            // Recreations go first: later changes come after them in their streams.
            None => match self.urgent.take() {
                Some(urgent) => Some(urgent),
                None if self.pipeline.batch().is_empty() && self.cuts.is_empty() => None,
                None => Some(self.pipeline.take_batch()),
            },
        }
    }

    fn send(&mut self, batch: Batch) {
        // Postgres may have received the value in the checkpoint, so it never goes back.
        if !self.pipeline.is_unverified() {
            self.in_flight.acknowledged = self.in_flight.acknowledged.max(self.acknowledgeable());
        }
        self.in_flight.sent_at = Instant::now();
        let marks = Marks {
            acknowledged: self.in_flight.acknowledged,
            seen: self.seen,
        };
        self.unseen.send(&batch);
        let cuts = std::mem::take(&mut self.cuts);
        self.redis.send(batch, &self.epoch, marks, cuts);
    }

    /// What Postgres may forget: what is durable, but nothing from the first commit on that snapshots may not see yet. A
    /// new epoch begins where Postgres was confirmed, and its devices take a snapshot, so such a commit must come behind
    /// that place.
    fn acknowledgeable(&self) -> PgLsn {
        let unseen = self.unseen.first();
        let unseen = unseen.map(|first| PgLsn::from(first.ms.saturating_sub(self.epoch.base)));
        let durable = self.progress.durable();
        unseen.map_or(durable, |unseen| unseen.min(durable))
    }

    /// Records what became of the batch in flight.
    fn conclude(&mut self, outcome: Outcome) -> Result<(), SessionEnd> {
        let cuts = self.redis.take_cut_results();
        for (key, cause) in cuts.failed {
            tracing::error!(key, cause, "Redis refuses to trim; check the ACL and the key's type");
        }
        match outcome {
            Outcome::Written(written) => self.written(written),
            Outcome::Refused { batch, cause } => self.refused(batch, cause, cuts.removed)?,
            Outcome::Denied { batch, streams, keys } => self.denied(batch, streams, keys),
        }
        Ok(())
    }

    /// A batch is published. What the next `EXEC` must record with the replies comes before `seen`, which is in it, too.
    fn written(&mut self, written: WrittenBatch) {
        let WrittenBatch {
            batch,
            missing,
            failed,
            recreated,
            wrong_type,
            live_failed,
        } = written;
        if self.refused.cause.take().is_some() {
            tracing::info!("Redis accepts writes again");
        }
        self.refused.backoff.reset();
        self.context.report.ledger.note(batch.written());
        self.measure(&batch, failed.len());
        self.trace(&batch);
        self.unseen.publish(&batch, self.pipeline.batch());
        if let Some(mark) = batch.complete_transaction() {
            self.progress.publish(mark.end_lsn);
        }
        self.recreate(missing, batch.position());
        self.seen = batch.position().unwrap_or(self.seen);
        self.pipeline.recycle(batch);
        for (target, cause) in failed {
            self.pipeline.stop_stream(target, &cause, self.urgent.as_mut());
        }
        recreated.iter().for_each(|target| self.pipeline.batch().unstop(target));
        for (key, cause) in wrong_type {
            tracing::error!(key, cause, "key of a tenant has the wrong type; remove it");
        }
        if let Some(cause) = live_failed {
            tracing::error!(cause, "XADD to the live stream failed; recreating it");
            let key = Keys::new(&self.context.config.redis.keys_prefix()).live(0);
            self.pipeline.batch().other(&[b"DEL", key.as_bytes()]);
        }
        let (published, acknowledged) = (self.progress.published(), self.in_flight.acknowledged);
        self.durable.written.send_replace(Written {
            published,
            acknowledged,
        });
        let durable = self.durable.state.published(published, acknowledged);
        self.advance(durable);
    }

    /// Counts a batch that is published.
    fn measure(&mut self, batch: &Batch, failed: usize) {
        let metrics = &self.context.report.metrics.replication;
        metrics.wrote(
            self.in_flight.sent_at.elapsed(),
            batch.entries().saturating_sub(failed),
            batch.changes(),
            batch.bytes(),
        );
        metrics.add(self.pipeline.counts(), &mut self.reported);
        if let Some(mark) = batch.complete_transaction() {
            let journal = &self.context.report.metrics.journal;
            journal.latency(age_of(mark.commit_ts));
            journal.note(|| Step {
                kind: StepKind::Published(mark.end_lsn),
                at: unix_micros(),
            });
        }
    }

    /// A batch was refused as a whole, and is sent again later.
    fn refused(&mut self, batch: Batch, cause: String, removed: i64) -> Result<(), SessionEnd> {
        self.context.report.metrics.replication.refused(&cause);
        if error_code(&cause) == "READONLY" {
            // Another server may be the primary now, and this one may stay a replica.
            let cause = anyhow!("Redis is now a replica; reconnecting: {cause}");
            return Err(SessionEnd::Failed(FailureCause::Redis, cause));
        }
        if self.refused.cause.as_ref() != Some(&cause) {
            tracing::warn!(cause, "Redis refuses writes; retrying the batch");
        }
        if error_code(&cause) == "OOM" {
            self.context.report.ledger.refuse(removed);
        }
        self.refused.cause = Some(cause);
        // What was trimmed behind the batch may have made room for it.
        let delay = match removed {
            0 => self.refused.backoff.next(),
            _ => Duration::ZERO,
        };
        let retry_at = Instant::now() + delay;
        self.refused.batch = Some((batch, retry_at));
        self.report_state();
        Ok(())
    }

    /// Redis forbids parts of a batch, which is sent again without them.
    fn denied(&mut self, mut batch: Batch, streams: HashMap<Target, String>, keys: HashMap<String, String>) {
        if let Some(cause) = streams.values().chain(keys.values()).next() {
            self.context.report.metrics.replication.refused(cause);
        }
        // The marks are in the same EXEC as the checkpoint that passes the entries: no crash comes in between.
        for (target, cause) in streams {
            self.pipeline.stop_stream(target, &cause, Some(&mut batch));
        }
        for (key, cause) in keys {
            tracing::error!(
                key,
                cause,
                "Redis forbids a key of a tenant; check the ACL against the documentation"
            );
        }
        self.refused.batch = Some((batch, Instant::now()));
    }

    /// Sends the spans of the transactions that are now published, where their traces are sampled.
    fn trace(&self, batch: &Batch) {
        if batch.traced().is_empty() {
            return;
        }
        let answered = SystemTime::now();
        let sent = answered - self.in_flight.sent_at.elapsed();
        for (last, commit_ts) in batch.traced() {
            if let Some(transaction) = traces::Transaction::of(self.epoch.id, *last) {
                transaction.published(*commit_ts, sent, answered, batch.changes());
            }
        }
    }

    /// Recreates streams that are missing with a `reset` entry, which their readers receive. An inbox is recreated when
    /// a device of its user takes a snapshot, since only the API can check that the user exists; the stream of a group when
    /// one of a member does.
    fn recreate(&mut self, missing: Vec<Target>, position: Option<StreamId>) {
        let Some(position) = position else { return };
        for target in missing {
            if matches!(target, Target::Inbox(..) | Target::Group(..)) {
                tracing::debug!(?target, "stream missing");
                continue;
            }
            let keys = Keys::new(&self.context.config.redis.keys_prefix());
            tracing::warn!(
                stream = target.key(&keys),
                reason = "missing",
                "stream recreated with a reset entry"
            );
            let urgent = self.urgent.get_or_insert_with(|| Batch::new(keys));
            urgent.recreate_stream(target, position, unix_micros());
        }
    }

    fn advance(&mut self, durable: Option<Durable>) {
        let Some(durable) = durable else { return };
        self.progress.make_durable(durable.published);
        self.context.report.metrics.journal.note(|| Step {
            kind: StepKind::Durable(self.progress.durable()),
            at: unix_micros(),
        });
        let before = self.progress.acknowledged();
        if !self.pipeline.is_unverified() {
            self.progress.acknowledge(durable.acknowledged);
        }
        if self.progress.acknowledged() > before {
            self.queue_status();
        }
        self.report_state();
    }

    fn tick(&mut self) -> Result<(), SessionEnd> {
        let now = Instant::now();
        self.redis.check_timeout(now)?;
        let quiet = now.duration_since(self.last_received);
        // While the batch is full nothing is read, so that silence means nothing.
        if self.is_full() {
            self.last_received = now;
        } else if quiet > idle_timeout(&self.context.config.replication) && !self.is_walsender_working() {
            return Err(SessionEnd::Failed(
                FailureCause::Postgres,
                anyhow!(
                    "no data from Postgres for {} s; closing the connection",
                    quiet.as_secs()
                ),
            ));
        }
        if now.duration_since(self.last_status) >= STATUS_INTERVAL {
            self.queue_status();
        }
        let metrics = &self.context.report.metrics.replication;
        metrics.add(self.pipeline.counts(), &mut self.reported);
        metrics.waiting(
            self.pipeline.batch().changes(),
            self.context.cuts.len() + self.cuts.len(),
        );
        metrics.tenants(self.pipeline.tenants());
        let (published, durable) = (self.progress.published(), self.progress.durable());
        self.durable.note_progress(published, durable, now);
        self.report_state();
        Ok(())
    }

    /// Whether the walsender was at work at the last heartbeat, a moment ago. One that prints a row of hundreds of megabytes
    /// sends nothing meanwhile, and would begin again for the next connection.
    fn is_walsender_working(&self) -> bool {
        let interval = Duration::from_millis(self.context.config.replication.heartbeat_interval_ms);
        let sample = self.context.report.sample.borrow();
        sample
            .as_ref()
            .is_some_and(|sample| sample.is_working && sample.at.elapsed() < 2 * interval + heartbeat::TIMEOUT)
    }

    fn queue_status(&mut self) {
        self.last_status = Instant::now();
        // A walsender that skips changes outside the publication, or reads what is already confirmed, sends nothing
        // meanwhile. A request for a reply shows that it is alive.
        let reply_requested = self.last_received.elapsed() >= STATUS_INTERVAL;
        let (received, acknowledged) = (self.progress.received(), self.progress.acknowledged());
        self.postgres.queue_status(received, acknowledged, reply_requested);
    }

    fn report_state(&self) {
        self.context.report.progress.send_replace(Some(self.progress));
        self.context.report.set_state(ReplicatorState::Streaming {
            epoch: self.epoch.id,
            number: self.epoch.number,
            stopped_streams: self.pipeline.stopped_streams(),
            progress: self.progress,
            replicas: self.durable.replicas(),
            problem: self.problem(),
        });
    }

    /// What is wrong with Redis.
    fn problem(&self) -> Option<String> {
        let refused = self.refused.cause.as_ref();
        let refused = refused.map(|cause| format!("Redis refuses entries: {cause}"));
        refused.or_else(|| self.durable.problem())
    }

    /// Publishes the batch in flight and the one being filled, so that a restart has little to replay.
    async fn drain(&mut self) -> SessionEnd {
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline && self.refused.batch.is_none() {
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
        SessionEnd::Stopped
    }
}

/// Asks the catalogs about a table.
async fn ask(database: &Database, question: Question) -> anyhow::Result<Answer> {
    Ok(match question {
        Question::Outline(relation) => Answer::Outline(catalog::outline(database, relation).await?),
        Question::Place(relation) => Answer::Place(catalog::place(database, relation).await?),
    })
}

/// How long Postgres may send nothing: more than half of its sender timeout, since a busy walsender does not reply
/// earlier.
fn idle_timeout(settings: &config::Replication) -> Duration {
    let seconds = settings
        .idle_timeout_seconds
        .max(settings.wal_sender_timeout_seconds / 2 + 1);
    Duration::from_secs(seconds)
}
