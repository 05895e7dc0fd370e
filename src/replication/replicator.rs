//! Runs session after session until the engine stops.

use std::time::Duration;

use anyhow::Result;
use postgres_types::PgLsn;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::end::{FailureCause, SessionEnd};
use super::epoch::Break;
use super::heartbeat;
use super::report::{ReplicatorState, Report};
use super::session;
use super::startup::{MetBreak, SessionContext};
use crate::config::Config;
use crate::contract::checkpoint::Torn;
use crate::core::backoff::Backoff;
use crate::core::snapshot::Snapshot;
use crate::postgres::Database;
use crate::publish::connection::Connection;
use crate::publish::cut::CutRequest;

/// Delays between sessions: first, longest.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often a waiting engine checks whether the slot is free.
const SLOT_POLL: Duration = Duration::from_millis(500);

/// How often a transaction is requested before it is left out: a lack of memory may be over soon.
const DECODE_ATTEMPTS: u32 = 2;

/// Follows the log for one lane until `stop`, across lost connections. `moved` counts tables that left a tenant's schema or
/// returned, see [`super::catalog::run`].
///
/// # Errors
/// Only when to continue would lose data: the stream holds what this version does not understand.
pub async fn run(
    config: &Config,
    database: &Database,
    mut cuts: mpsc::Receiver<CutRequest>,
    moved: watch::Receiver<u64>,
    report: &Report,
    stop: CancellationToken,
) -> Result<()> {
    let (snapshot, snapshots) = watch::channel(Snapshot::default());
    let (shuts_down, shutting_down) = watch::channel(false);
    let heartbeats = tokio::spawn(heartbeat::run(
        database.clone(),
        config.replication.slot.clone(),
        Duration::from_millis(config.replication.heartbeat_interval_ms),
        heartbeat::Findings {
            snapshot,
            sample: report.sample.clone(),
            shutting_down: shuts_down,
        },
        stop.clone(),
    ));
    let mut context = SessionContext {
        config,
        database,
        snapshots,
        shutting_down,
        moved,
        cuts: &mut cuts,
        undecodable: None,
        report,
        stop: stop.clone(),
    };
    let result = sessions(&mut context).await;
    stop.cancel();
    let _ = heartbeats.await;
    result
}

async fn sessions(context: &mut SessionContext<'_>) -> Result<()> {
    let (report, stop) = (context.report, context.stop.clone());
    let metrics = &report.metrics.replication;
    let mut forced: Option<MetBreak> = None;
    let mut failures: Option<(PgLsn, u32)> = None;
    let mut backoff = Backoff::new(RESTART.0, RESTART.1);
    loop {
        // A stop must not wait for a connection attempt.
        let end = tokio::select! {
            end = Box::pin(session::run(context.reborrow(), forced.clone())) => end,
            () = stopped_while_starting(&stop, report) => SessionEnd::Stopped,
        };
        // A break stays until a new epoch has begun. A session that streamed has begun it, if one was due.
        let epoch = match *report.state() {
            ReplicatorState::Streaming { number, .. } => Some(number),
            _ => None,
        };
        if epoch.is_some() {
            forced = None;
            backoff.reset();
        }
        let delay = match end {
            SessionEnd::Stopped => return Ok(()),
            SessionEnd::Fatal(error) => {
                report.set_state(ReplicatorState::Failed(format!("{error:#}")));
                return Err(error);
            }
            SessionEnd::SlotInUse => {
                if *report.state() != ReplicatorState::Waiting {
                    let slot = &context.config.replication.slot;
                    tracing::info!(slot, "replication slot in use by another engine; waiting");
                }
                report.set_state(ReplicatorState::Waiting);
                report.progress.send_replace(None);
                SLOT_POLL
            }
            SessionEnd::Broken(broken) => {
                tracing::warn!(reason = %broken, "replication continuity lost; starting a new epoch");
                metrics.restarted(FailureCause::Broken.as_str());
                let cause = format!("replication continuity lost: {broken}");
                report.set_state(ReplicatorState::Failed(cause));
                if let (Break::TornTransaction(cause), Some(number)) = (&broken, epoch) {
                    record_torn(context.config, &Torn::new(number, cause)).await;
                }
                forced = Some(MetBreak { cause: broken, epoch });
                backoff.reset();
                backoff.next()
            }
            SessionEnd::Undecodable(commit_lsn, error) => {
                failures = match failures {
                    Some((lsn, count)) if lsn == commit_lsn => Some((lsn, count + 1)),
                    _ => Some((commit_lsn, 1)),
                };
                context.undecodable = failures
                    .filter(|(_, count)| *count >= DECODE_ATTEMPTS)
                    .map(|(lsn, _)| lsn);
                metrics.restarted(FailureCause::Postgres.as_str());
                tracing::warn!(%commit_lsn, cause = %error, "Postgres failed to send a transaction; retrying");
                report.set_state(ReplicatorState::Failed(error.to_string()));
                backoff.next()
            }
            SessionEnd::Failed(cause, error) => {
                metrics.restarted(cause.as_str());
                tracing::warn!(cause = format!("{error:#}"), "replication interrupted; retrying");
                report.set_state(ReplicatorState::Failed(format!("{error:#}")));
                backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Records a torn transaction for the engine that takes over, in case that this one does not begin the new epoch.
async fn record_torn(config: &Config, torn: &Torn) {
    let recording = async {
        let mut redis = Connection::connect(&config.redis, config.streams.live_entries_max).await?;
        redis.record_torn(torn).await
    };
    if let Err(error) = recording.await {
        tracing::warn!(
            cause = format!("{error:#}"),
            "torn transaction not recorded in the checkpoint"
        );
    }
}

/// Completes when a stop comes before streaming; a streaming session ends by itself.
async fn stopped_while_starting(stop: &CancellationToken, report: &Report) {
    stop.cancelled().await;
    if report.state().is_streaming() {
        std::future::pending::<()>().await;
    }
}
