//! Begins a new session whenever one ends, until it is told to stop.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::epoch::Break;
use super::heartbeat;
use super::session::{self, End, State, Surroundings};
use crate::config::Config;
use crate::database::Database;
use crate::database::snapshot::Snapshot;
use crate::publish::batch::Trim;

/// Waits between sessions: first, longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often a waiting engine asks whether the slot is free.
const SLOT_POLL: Duration = Duration::from_millis(500);

/// Follows the log until `stop`, whatever happens to the connections.
///
/// # Errors
/// Only when going on would lose data: the stream holds what this version does not understand.
pub async fn run(
    config: &Config,
    database: &Database,
    mut trims: mpsc::Receiver<Trim>,
    state: &watch::Sender<State>,
    stop: CancellationToken,
) -> Result<()> {
    let (seen, snapshots) = watch::channel(Snapshot::default());
    let (leaves, leaving) = watch::channel(false);
    let heartbeats = tokio::spawn(heartbeat::run(
        database.clone(),
        config.replication.slot.clone(),
        Duration::from_millis(config.replication.heartbeat_interval_ms),
        heartbeat::Findings { seen, leaves },
        stop.clone(),
    ));
    let result = sessions(config, database, &mut trims, state, (&snapshots, &leaving), &stop).await;
    stop.cancel();
    let _ = heartbeats.await;
    result
}

async fn sessions(
    config: &Config,
    database: &Database,
    trims: &mut mpsc::Receiver<Trim>,
    state: &watch::Sender<State>,
    (snapshots, leaving): (&watch::Receiver<Snapshot>, &watch::Receiver<bool>),
    stop: &CancellationToken,
) -> Result<()> {
    let mut forced: Option<Break> = None;
    let mut wait = BACKOFF.0;
    loop {
        let surroundings = Surroundings {
            config,
            database,
            snapshots: snapshots.clone(),
            leaving: leaving.clone(),
            trims,
            state,
            stop: stop.clone(),
        };
        // A stop must not wait for a connection that does not come.
        let end = tokio::select! {
            end = session::run(surroundings, forced.take()) => end,
            () = stopped_while_starting(stop, state) => End::Stopped,
        };
        let was_streaming = matches!(&*state.borrow(), State::Streaming { .. });
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
                SLOT_POLL
            }
            End::Broken(broken) => {
                tracing::warn!(reason = %broken, "history has broken");
                state.send_replace(State::Failed(format!("history has broken: {broken}")));
                forced = Some(broken);
                BACKOFF.0
            }
            End::Failed(error) => {
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
