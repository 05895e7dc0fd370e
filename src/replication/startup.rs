//! The start of a session, from the first connection to the position from which it publishes.
//!
//! The order excludes other engines: first the slot, then the checkpoint. When continuity was lost, a new epoch begins
//! here, before the session follows the log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use postgres_types::{PgLsn, Type};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connection::{self, Connection, StreamRequest, SystemIdentity};
use super::end::{FailureCause, SessionEnd};
use super::epoch::{self, Break, Replay, Server};
use super::outside::Outside;
use super::report::Report;
use super::rules;
use super::slot;
use crate::config::Config;
use crate::contract::checkpoint::{Checkpoint, Epoch};
use crate::contract::keys::Keys;
use crate::contract::membership_log::groups_digest;
use crate::contract::stream_name::Target;
use crate::core::position::{EpochId, StreamId};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::{PAUSED, Tenant};
use crate::core::time::unix_micros;
use crate::net;
use crate::postgres::tenants::Listed;
use crate::postgres::{self, Database, sql};
use crate::publish::batch::{Batch, Marks};
use crate::publish::connection::{self as redis_connection, Claim};
use crate::publish::cut::CutRequest;
use crate::publish::durability::Persistence;
use crate::publish::outcome::{Outcome, error_code};
use crate::route::router::Router;

/// Status updates are sent at least this often, far below any `wal_sender_timeout`.
pub(super) const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the response timeout of Redis is checked.
const TIMEOUT_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Most cuts behind one transaction.
pub(super) const CUTS_MAX: usize = 100;

/// `reset` entries in one transaction when an epoch begins.
const RESETS_PER_BATCH: usize = 1000;

/// What a session works with.
#[derive(Debug)]
pub struct SessionContext<'a> {
    pub config: &'a Config,
    pub database: &'a Database,
    /// The snapshot of the last heartbeat.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Whether Postgres shuts down: it waits until no walsender is left.
    pub shutting_down: watch::Receiver<bool>,
    /// Counts tables that left a tenant's schema or returned.
    pub moved: watch::Receiver<u64>,
    pub cuts: &'a mut mpsc::Receiver<CutRequest>,
    /// The commit of a transaction that Postgres fails to send each time.
    pub undecodable: Option<PgLsn>,
    pub report: &'a Report,
    pub stop: CancellationToken,
}

impl SessionContext<'_> {
    /// The same for one session.
    pub(super) fn reborrow(&mut self) -> SessionContext<'_> {
        SessionContext {
            config: self.config,
            database: self.database,
            snapshots: self.snapshots.clone(),
            shutting_down: self.shutting_down.clone(),
            moved: self.moved.clone(),
            cuts: self.cuts,
            undecodable: self.undecodable,
            report: self.report,
            stop: self.stop.clone(),
        }
    }
}

/// Both connections of a session, and where it continues.
pub(super) struct Started {
    pub(super) postgres: Connection,
    pub(super) prepared: Prepared,
}

/// What the start found on both servers while the slot was held.
pub(super) struct Prepared {
    pub(super) redis: redis_connection::Connection,
    pub(super) claim: Claim,
    pub(super) server: Server,
    pub(super) origin: Origin,
    pub(super) tenants: HashSet<Arc<str>>,
    /// Tenants of other lanes.
    pub(super) elsewhere: HashSet<Arc<str>>,
}

/// From where a session publishes.
pub(super) struct Origin {
    pub(super) epoch: Epoch,
    pub(super) position: StreamId,
    /// Behind it, an entry may have failed unnoticed.
    pub(super) seen: StreamId,
    pub(super) replay: Replay,
    /// `acknowledged` in the checkpoint.
    pub(super) acknowledged: PgLsn,
}

/// A break that a session met, until a new epoch has begun.
#[derive(Debug, Clone)]
pub struct MetBreak {
    pub cause: Break,
    /// The number of the epoch, if it was known: another engine may begin the next one.
    pub epoch: Option<i64>,
}

impl MetBreak {
    /// Whether no later epoch has begun. `current` is the number of the epoch in the checkpoint.
    fn is_due(&self, current: Option<i64>) -> bool {
        match (self.epoch, current) {
            (Some(met), Some(current)) => current <= met,
            _ => true,
        }
    }
}

/// How Postgres is reached in replication mode.
pub(super) struct Upstream {
    server: net::postgres::Server,
    connect_timeout: Duration,
    sender_timeout: Duration,
}

impl Upstream {
    /// Reads the URL and its files for each session, so that renewed certificates are used.
    pub(super) fn parse(config: &Config) -> Result<Self> {
        Ok(Self {
            server: net::postgres::Server::parse(config.postgres.url.expose()).context("key `postgres.url`")?,
            connect_timeout: Duration::from_secs(config.postgres.connect_timeout_seconds),
            sender_timeout: Duration::from_secs(config.replication.wal_sender_timeout_seconds),
        })
    }

    pub(super) async fn connect(&self) -> Result<Connection, connection::Error> {
        Connection::connect(&self.server, self.connect_timeout, self.sender_timeout).await
    }

    /// Waits for an answer of Postgres, at most for the connect timeout.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, connection::Error>>,
    ) -> Result<T, SessionEnd> {
        within(self.connect_timeout, answer).await
    }
}

/// Waits for an answer of Postgres, at most for `timeout`.
pub(super) async fn within<T, E: Into<SessionEnd>>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, SessionEnd> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(SessionEnd::Failed(
            FailureCause::Postgres,
            anyhow!("no answer from Postgres within {} s", timeout.as_secs()),
        )),
    }
}

/// Starts a session: slot, replication stream, checkpoint and, if continuity was lost or `forced` says so, a new epoch.
pub(super) async fn start(context: &mut SessionContext<'_>, forced: Option<MetBreak>) -> Result<Started, SessionEnd> {
    // If Postgres is still shutting down, the next statements fail.
    context.shutting_down.mark_unchanged();
    // This session reads the present names.
    context.moved.mark_unchanged();
    let settings = &context.config.replication;
    let upstream = Upstream::parse(context.config)?;
    let slot_created = ensure_slot(context).await?;
    let mut postgres = upstream.connect().await?;
    let identity = upstream.within(postgres.identify_system()).await?;
    // What is asked beside the stream must be of the same server.
    context.database.require_timeline(identity.timeline);
    // 0/0 means the slot's confirmed position.
    let request = stream_request(settings, PgLsn::from(0));
    let starting = postgres.start_replication(&request);
    upstream.within(starting).await?;
    // The preparation may take long, and Postgres ends a stream without status updates.
    let prepared = tokio::select! {
        prepared = prepare(context, &upstream, identity, slot_created, forced) => prepared?,
        failed = postgres.keep_alive(STATUS_INTERVAL) => match failed? {},
    };
    let Origin { epoch, position, .. } = prepared.origin;
    tracing::info!(
        slot = settings.slot, confirmed = %prepared.server.confirmed, %position,
        epoch = %epoch.id, number = epoch.number, base = epoch.base,
        "replication started"
    );
    Ok(Started { postgres, prepared })
}

/// The stream that a session reads.
pub(super) fn stream_request(settings: &crate::config::Replication, from: PgLsn) -> StreamRequest<'_> {
    StreamRequest {
        slot: &settings.slot,
        publication: &settings.publication,
        from,
        is_binary: false,
        message_bytes_max: settings.row_bytes_max,
    }
}

/// Makes sure that the slot exists and can be read; true when it was created.
async fn ensure_slot(context: &SessionContext<'_>) -> Result<bool> {
    let settings = &context.config.replication;
    match slot::state(context.database, &settings.slot).await? {
        Some(state) if state.wal_status != "lost" => return Ok(false),
        Some(lost) => {
            tracing::error!(
                slot = settings.slot,
                reason = lost.lost_by,
                "replication slot lost: Postgres removed WAL that it needed (max_slot_wal_keep_size, \
                 idle_replication_slot_timeout); recreating it"
            );
            slot::drop(context.database, &settings.slot).await?;
        }
        None => {}
    }
    // A slot that is older than its publication can never decode, so the publication comes first.
    postgres::publication::ensure(context.database, &settings.publication).await?;
    let lsn = slot::create(context.database, &settings.slot).await?;
    tracing::info!(slot = settings.slot, %lsn, "replication slot created");
    Ok(true)
}

/// Claims the checkpoint and decides where the session continues.
async fn prepare(
    context: &mut SessionContext<'_>,
    upstream: &Upstream,
    mut identity: SystemIdentity,
    slot_created: bool,
    forced: Option<MetBreak>,
) -> Result<Prepared, SessionEnd> {
    examine_outside(context).await?;
    let confirmed = slot::state(context.database, &context.config.replication.slot)
        .await?
        .context("the replication slot disappeared during the start")?
        .confirmed;
    let (redis, live_entries_max) = (&context.config.redis, context.config.streams.live_entries_max);
    let connecting = redis_connection::Connection::connect(redis, live_entries_max);
    let mut redis = connecting.await.map_err(SessionEnd::by_redis)?;
    let mut claim = redis
        .claim(&groups_digest(&context.config.groups))
        .await
        .map_err(SessionEnd::by_redis)?;
    if claim.persistence == Persistence::Off {
        tracing::warn!("Redis persistence is off (appendonly no): a crash of Redis resets all devices");
    }
    // Read after the claim: another engine may have published until then, which must not look like a rewind.
    identity.wal_end = wal_end(context.database).await?;
    let server = Server {
        timeline_history: timeline_history(upstream, &identity, claim.checkpoint.as_ref()).await?,
        identity,
        slot_created,
        confirmed,
    };
    let forced = forced.filter(|met| met.is_due(claim.checkpoint.as_ref().map(|checkpoint| checkpoint.epoch.number)));
    let verdict = match forced {
        Some(met) => Err(met.cause),
        None => epoch::detect_break(&server, claim.checkpoint.as_ref()),
    };
    let origin = match (verdict, &claim.checkpoint) {
        (Ok(replay), Some(checkpoint)) => Origin {
            epoch: checkpoint.epoch,
            position: checkpoint.position,
            seen: checkpoint.seen,
            replay,
            acknowledged: checkpoint.acknowledged,
        },
        (Ok(_), None) => {
            let error = anyhow!("Redis holds no checkpoint, but no new epoch begins");
            return Err(SessionEnd::Failed(FailureCause::Other, error));
        }
        (Err(broken), _) => {
            let beginning = Box::pin(begin_epoch(context, &mut redis, &server, &claim, &broken));
            let origin = beginning.await.map_err(SessionEnd::by_redis)?;
            // Its IDs are of the epoch before.
            claim.window.clear();
            origin
        }
    };
    let lane = context.config.lane.as_str();
    let listed = postgres::tenants::directory(context.database).await;
    let listed = listed.context("cannot list the tenants")?.into_iter();
    let (here, elsewhere): (Vec<_>, Vec<_>) = listed.partition(|listed| listed.lane == lane);
    let here = here.into_iter().filter(Listed::has_schema);
    Ok(Prepared {
        redis,
        claim,
        server,
        origin,
        tenants: here.map(|listed| listed.tenant.name.into()).collect(),
        elsewhere: elsewhere.into_iter().map(|listed| listed.tenant.name.into()).collect(),
    })
}

/// Examines the tables outside of tenants' schemas before anything is published: an engine with other rules may have held the slot
/// until now, and passed their changes.
async fn examine_outside(context: &SessionContext<'_>) -> Result<(), SessionEnd> {
    let outside = Outside {
        database: context.database,
        publication: &context.config.replication.publication,
        router: &Router::configured(context.config),
    };
    outside.forget_unrouted().await?;
    examine_rules(context).await;
    match outside.examine().await {
        Ok(changes) => {
            for kind in &changes.kinds {
                context.report.metrics.replication.catalog_changed(kind.as_str());
            }
            // The walsender has started, and may have read a former name.
            if changes.has_moved() {
                return Err(SessionEnd::moved());
            }
        }
        Err(error) => tracing::warn!(
            cause = format!("{error:#}"),
            "tables outside of tenants' schemas not examined; the next look at the catalogs tries again"
        ),
    }
    Ok(())
}

/// Compares the rules with those of the engine that held the slot until now.
async fn examine_rules(context: &SessionContext<'_>) {
    if let Err(error) = rules::examine(context.config, context.database, context.report).await {
        tracing::warn!(
            cause = format!("{error:#}"),
            "rules not compared with those of before; the next look at the catalogs tries again"
        );
    }
}

async fn wal_end(database: &Database) -> Result<PgLsn> {
    let row = database
        .query_opt(&sql!("postgres/wal_position"), &[])
        .await
        .context("cannot read the end of the write-ahead log")?;
    let row = row.context("Postgres gave no end of the write-ahead log")?;
    Ok(row.try_get("lsn")?)
}

/// The history of the server's timeline, when the checkpoint is of another one.
async fn timeline_history(
    upstream: &Upstream,
    identity: &SystemIdentity,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<String>, SessionEnd> {
    if checkpoint.is_none_or(|checkpoint| checkpoint.timeline == identity.timeline) {
        return Ok(None);
    }
    // A connection that streams takes no further command.
    let mut other = upstream.connect().await?;
    let history = upstream.within(other.timeline_history(identity.timeline)).await?;
    other.close().await;
    Ok(history)
}

/// Begins a new epoch: Postgres records it, each stream gets a `reset` entry, then the checkpoint names it.
///
/// A crash before the last step leaves the old checkpoint, so that the next start detects the same break.
async fn begin_epoch(
    context: &mut SessionContext<'_>,
    redis: &mut redis_connection::Connection,
    server: &Server,
    claim: &Claim,
    broken: &Break,
) -> Result<Origin> {
    let database = context.database;
    let keys = Keys::new(&context.config.redis.keys_prefix());
    let tenants = database
        .query(
            &sql!("replication/tenant_generations"),
            &[(&context.config.lane.as_str(), Type::TEXT)],
        )
        .await
        .context("cannot list the tenants")?;
    let checkpoint = claim.checkpoint.as_ref();
    let slot = &context.config.replication.slot;
    let epoch = next_epoch(database, slot, redis, &keys, server, checkpoint, &tenants).await?;
    let position = StreamId {
        ms: u64::from(server.confirmed).saturating_add(epoch.base),
        seq: 0,
    };
    tracing::warn!(
        reason = %broken, number = epoch.number, id = %epoch.id, base = epoch.base,
        "new epoch begins"
    );
    record_epoch(database, slot, &epoch, server, broken).await?;
    let mut guard = Guarded {
        redis,
        cuts: context.cuts,
        report: context.report,
        // Until the new checkpoint is written, the old one stays as it is.
        epoch: checkpoint.map_or(epoch, |checkpoint| checkpoint.epoch),
        marks: Marks {
            acknowledged: checkpoint.map_or(PgLsn::from(0), |checkpoint| checkpoint.acknowledged),
            seen: checkpoint.map_or(StreamId::ZERO, |checkpoint| checkpoint.seen),
        },
    };
    let idle_days = context.config.streams.device_idle_days;
    for row in &tenants {
        let (name, state): (String, String) = (row.try_get("name")?, row.try_get("state")?);
        let Some(tenant) = Tenant::named(&name) else { continue };
        let mut batch = Batch::new(keys.clone());
        batch.reset_meta(&name, row.try_get("generation")?, state == PAUSED, None);
        // Their places are of the epoch before.
        batch.forget_memberships(&name);
        reset_streams(database, &mut guard, &keys, &tenant, (position, idle_days), batch).await?;
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
        seen: position,
        acknowledged: server.confirmed,
        live: checkpoint.map_or(StreamId::ZERO, |checkpoint| checkpoint.live),
        torn: None,
        run_id: claim.run_id.clone(),
    });
    guard.epoch = epoch;
    guard.marks = Marks {
        acknowledged: server.confirmed,
        seen: position,
    };
    guard.exchange(batch).await?;
    context.report.metrics.replication.epoch_began(broken.kind());
    Ok(Origin {
        epoch,
        position,
        seen: position,
        replay: Replay::free(),
        acknowledged: server.confirmed,
    })
}

/// A new epoch whose stream IDs come after all that exist.
async fn next_epoch(
    database: &Database,
    slot: &str,
    redis: &mut redis_connection::Connection,
    keys: &Keys,
    server: &Server,
    checkpoint: Option<&Checkpoint>,
    tenants: &[Row],
) -> Result<Epoch> {
    let last = database
        .query_opt(&sql!("replication/epoch_last"), &[(&slot, Type::TEXT)])
        .await
        .context("cannot read the last epoch")?;
    let (last_number, last_base): (i64, i64) = match last {
        Some(row) => (row.try_get("number")?, row.try_get("base")?),
        None => (0, 0),
    };
    let old = checkpoint.map(|checkpoint| checkpoint.epoch);
    let previous_base = old.map_or(0, |old| old.base).max(u64::try_from(last_base).unwrap_or(0));
    let last_ms = match checkpoint {
        Some(checkpoint) => checkpoint.position.ms.max(checkpoint.live.ms),
        // Streams may have outlived their checkpoint, written from this log or from one that was rewound since.
        None => {
            let mut last = redis.last_id(&keys.live(0)).await?;
            for row in tenants {
                last = last.max(redis.last_id(&keys.changes(row.try_get("name")?)).await?);
            }
            if last == StreamId::ZERO && last_number == 0 {
                0
            } else {
                let log_end = u64::from(server.identity.wal_end).saturating_add(previous_base);
                last.ms.max(log_end)
            }
        }
    };
    Ok(Epoch {
        id: EpochId::random().context("no random bits from the operating system")?,
        number: old.map_or(0, |old| old.number).max(last_number) + 1,
        base: epoch::base_above(last_ms, previous_base, server.confirmed),
    })
}

async fn record_epoch(database: &Database, slot: &str, epoch: &Epoch, server: &Server, broken: &Break) -> Result<()> {
    database
        .query(
            &sql!("replication/epoch_insert"),
            &[
                (&slot, Type::TEXT),
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
    Ok(())
}

/// Adds a `reset` entry to the streams of a tenant, and of its inboxes to those that are likely to be read, in batches of
/// which the first is given.
async fn reset_streams(
    database: &Database,
    guard: &mut Guarded<'_>,
    keys: &Keys,
    tenant: &Tenant,
    (position, idle_days): (StreamId, u64),
    mut batch: Batch,
) -> Result<()> {
    let (name, now): (Arc<str>, i64) = (tenant.name.as_str().into(), unix_micros());
    for target in [Target::Changes(name.clone()), Target::Shared(name.clone())] {
        batch.create_stream(target, position, now);
    }
    let mut after = Uuid::nil();
    loop {
        let users = reader_ids(database, tenant, after, idle_days).await?;
        for user in &users {
            batch.create_stream(Target::Inbox(name.clone(), *user), position, now);
        }
        let full = std::mem::replace(&mut batch, Batch::new(keys.clone()));
        guard.exchange(full).await?;
        match users.last() {
            Some(last) if users.len() == RESETS_PER_BATCH => after = *last,
            _ => return Ok(()),
        }
    }
}

/// A page of a tenant's users whose inbox is likely to be read.
async fn reader_ids(database: &Database, tenant: &Tenant, after: Uuid, idle_days: u64) -> Result<Vec<Uuid>> {
    let (page, days) = (RESETS_PER_BATCH as i64, i32::try_from(idle_days).unwrap_or(i32::MAX));
    let rows = database
        .query(
            &sql!("accounts/reader_ids", tenant),
            &[(&after, Type::UUID), (&page, Type::INT8), (&days, Type::INT4)],
        )
        .await;
    let rows = match rows {
        // A broken table of one tenant must not block the epoch. Cursors end with the old epoch in any case, and a
        // missing inbox is created when it is first read.
        Err(error) if error.is_object_error() => {
            tracing::error!(
                tenant = tenant.name, %error,
                "cannot list users; skipping the reset entries of this tenant's inboxes"
            );
            Vec::new()
        }
        rows => rows.with_context(|| format!("cannot list the users of tenant {}", tenant.name))?,
    };
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// The connection to Redis, and what batches write to the checkpoint.
struct Guarded<'a> {
    redis: &'a mut redis_connection::Connection,
    cuts: &'a mut mpsc::Receiver<CutRequest>,
    report: &'a Report,
    epoch: Epoch,
    marks: Marks,
}

impl Guarded<'_> {
    /// Sends one batch and waits for its outcome.
    ///
    /// A command that Redis forbids for one stream is left out: the first entry of that stream will be forbidden too,
    /// and then that stream alone stops.
    async fn exchange(&mut self, batch: Batch) -> Result<()> {
        // What was cut to free a full Redis for the attempt before.
        let cuts = std::iter::from_fn(|| self.cuts.try_recv().ok())
            .take(CUTS_MAX)
            .collect();
        self.redis.send(batch, &self.epoch, self.marks, cuts);
        loop {
            match self.redis.outcome()? {
                Some(Outcome::Written(_)) => return Ok(()),
                Some(Outcome::Denied { batch, streams, keys }) => {
                    for (target, cause) in streams {
                        tracing::error!(
                            ?target,
                            cause,
                            "Redis forbids to create a stream; check the ACL against the documentation"
                        );
                    }
                    for (key, cause) in keys {
                        tracing::error!(key, cause, "Redis forbids a key of a tenant; check the ACL");
                    }
                    self.redis.send(batch, &self.epoch, self.marks, Vec::new());
                }
                Some(Outcome::Refused { cause, .. }) => {
                    if error_code(&cause) == "OOM" {
                        self.report.ledger.refuse(self.redis.take_cut_results().removed);
                    }
                    return Err(anyhow!("Redis refused the start of a new epoch: {cause}"));
                }
                None => {
                    self.redis.check_timeout(Instant::now())?;
                    tokio::time::timeout(TIMEOUT_CHECK_INTERVAL, self.redis.progress())
                        .await
                        .unwrap_or(Ok(()))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_is_forgotten_once_another_engine_began_the_next_epoch() {
        let met = |epoch| MetBreak {
            cause: Break::TornTransaction("a reply".into()),
            epoch,
        };
        assert!(met(Some(3)).is_due(Some(3)) && met(Some(3)).is_due(Some(2)));
        assert!(!met(Some(3)).is_due(Some(4)));
        assert!(met(None).is_due(Some(4)) && met(Some(3)).is_due(None));
    }
}
