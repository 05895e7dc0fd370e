//! Begins a new session whenever one ends, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::epoch::Break;
use super::heartbeat;
use super::session::{self, Cause, End, SessionContext, State};
use super::slot::Sample;
use crate::config::Config;
use crate::contract::control::Trim;
use crate::core::snapshot::Snapshot;
use crate::postgres::Database;
use crate::publish::progress::Progress;
use crate::telemetry::metrics::Metrics;

/// Waits between sessions: first, longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often a waiting engine asks whether the slot is free.
const SLOT_POLL: Duration = Duration::from_millis(500);

/// Where a replicator shows what it does.
#[derive(Debug)]
pub struct Report {
    /// What it does now.
    pub state: watch::Sender<State>,
    /// How far it came, in this session or the one before; `None` when another engine may have gone on since.
    pub reached: watch::Sender<Option<Progress>>,
    /// The last look at the slot.
    pub sample: watch::Sender<Option<Sample>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What a replicator shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What it does now.
    pub state: watch::Receiver<State>,
    /// How far it came.
    pub reached: watch::Receiver<Option<Progress>>,
    /// The last look at the slot.
    pub sample: watch::Receiver<Option<Sample>>,
}

/// How many bytes of the log each stage is behind its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Not read from Postgres.
    pub received: u64,
    /// Not in Redis' memory.
    pub published: u64,
    /// Not on Redis' disk.
    pub durable: u64,
    /// Not confirmed to Postgres.
    pub acknowledged: u64,
}

impl Report {
    /// A place to show things, and the view on it.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Shown) {
        let (state, states) = watch::channel(State::Starting);
        let (reached, progress) = watch::channel(None);
        let (sample, samples) = watch::channel(None);
        let report = Self {
            state,
            reached,
            sample,
            metrics,
        };
        let shown = Shown {
            state: states,
            reached: progress,
            sample: samples,
        };
        (report, shown)
    }
}

impl Shown {
    /// How far each stage was behind when a heartbeat looked last; `None` before this replicator has followed the log.
    pub fn lag(&self) -> Option<Lag> {
        let reached = (*self.reached.borrow())?;
        let sample = self.sample.borrow();
        let sample = sample.as_ref()?;
        Some(Lag {
            received: sample.behind(reached.received()),
            published: sample.behind(reached.published()),
            durable: sample.behind(reached.durable()),
            acknowledged: sample.behind(reached.acknowledged()),
        })
    }
}

/// Follows the log until `stop`, whatever happens to the connections.
///
/// # Errors
/// Only when going on would lose data: the stream holds what this version does not understand.
pub async fn run(
    config: &Config,
    database: &Database,
    mut trims: mpsc::Receiver<Trim>,
    report: &Report,
    stop: CancellationToken,
) -> Result<()> {
    let (seen, snapshots) = watch::channel(Snapshot::default());
    let (leaves, leaving) = watch::channel(false);
    let heartbeats = tokio::spawn(heartbeat::run(
        database.clone(),
        config.replication.slot.clone(),
        Duration::from_millis(config.replication.heartbeat_interval_ms),
        heartbeat::Findings {
            seen,
            sample: report.sample.clone(),
            leaves,
        },
        stop.clone(),
    ));
    let result = sessions(config, database, &mut trims, report, (&snapshots, &leaving), &stop).await;
    stop.cancel();
    let _ = heartbeats.await;
    result
}

async fn sessions(
    config: &Config,
    database: &Database,
    trims: &mut mpsc::Receiver<Trim>,
    report: &Report,
    (snapshots, leaving): (&watch::Receiver<Snapshot>, &watch::Receiver<bool>),
    stop: &CancellationToken,
) -> Result<()> {
    let state = &report.state;
    let mut forced: Option<Break> = None;
    let mut wait = BACKOFF.0;
    loop {
        let surroundings = SessionContext {
            config,
            database,
            snapshots: snapshots.clone(),
            leaving: leaving.clone(),
            trims,
            report,
            stop: stop.clone(),
        };
        // A stop must not wait for a connection that does not come.
        let end = tokio::select! {
            end = session::run(surroundings, forced.clone()) => end,
            () = stopped_while_starting(stop, state) => End::Stopped,
        };
        let was_streaming = matches!(&*state.borrow(), State::Streaming { .. });
        // Until an epoch has begun, what has broken stays so.
        if was_streaming {
            forced = None;
        }
        let pause = match end {
            End::Stopped => return Ok(()),
            End::Fatal(error) => {
                state.send_replace(State::Failed(format!("{error:#}")));
                return Err(error);
            }
            End::SlotInUse => {
                if !matches!(&*state.borrow(), State::Waiting) {
                    tracing::info!(
                        slot = config.replication.slot,
                        "another engine reads from the slot; waiting"
                    );
                }
                state.send_replace(State::Waiting);
                report.reached.send_replace(None);
                SLOT_POLL
            }
            End::Broken(broken) => {
                tracing::warn!(reason = %broken, "history has broken");
                report.metrics.replication.restarted(Cause::Broken);
                state.send_replace(State::Failed(format!("history has broken: {broken}")));
                forced = Some(broken);
                BACKOFF.0
            }
            End::Failed(cause, error) => {
                report.metrics.replication.restarted(cause);
                tracing::warn!(cause = format!("{error:#}"), "replication interrupted; trying again");
                state.send_replace(State::Failed(format!("{error:#}")));
                wait = if was_streaming {
                    BACKOFF.0
                } else {
                    (wait * 2).min(BACKOFF.1)
                };
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Completes when a stop comes before streaming; a streaming session ends by itself.
async fn stopped_while_starting(stop: &CancellationToken, state: &watch::Sender<State>) {
    stop.cancelled().await;
    if matches!(&*state.borrow(), State::Streaming { .. }) {
        std::future::pending::<()>().await;
    }
}
