//! The heartbeat: a transactional message, once a second, that passes all stages up to the clients' read path.
//!
//! Its age there is the freshness. It also advances the slot of an idle database, and the statement that emits it reads
//! the snapshot by which the publisher closes its window, and the state of the slot.

use std::time::Duration;

use postgres_types::Type;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::slot::SlotSample;
use crate::core::snapshot::Snapshot;
use crate::postgres::{self, Database, sql};

/// Prefix of heartbeats; the slot's name follows, since a slot also delivers the heartbeats for other slots.
pub const PREFIX: &str = "posduif.heartbeat:";

/// How long one heartbeat may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Where heartbeats report what they read.
#[derive(Debug)]
pub struct Findings {
    pub snapshot: watch::Sender<Snapshot>,
    pub sample: watch::Sender<Option<SlotSample>>,
    /// Postgres accepts no sessions, because it shuts down. It then waits until each walsender's client has confirmed
    /// the end of the log, which the replicator never does, since it confirms whole transactions only.
    pub shutting_down: watch::Sender<bool>,
}

/// Emits heartbeats until cancelled. The first of several failures is logged.
pub async fn run(
    database: Database,
    slot: String,
    interval: Duration,
    findings: Findings,
    cancelled: CancellationToken,
) {
    let prefix = format!("{PREFIX}{slot}");
    let mut client = None;
    let mut failing = false;
    let mut in_danger = false;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cancelled.cancelled() => return,
        }
        let heartbeat = async {
            let held = match &client {
                Some(client) => client,
                None => client.insert(connect(&database).await?),
            };
            let sql = &sql!("replication/heartbeat");
            let params: [postgres::Param<'_>; 2] = [(&prefix, Type::TEXT), (&slot, Type::NAME)];
            let rows = database.counted(sql, held.query_typed(sql, &params)).await?;
            match rows.first() {
                Some(row) => Ok::<_, postgres::Error>(Some((row.try_get("snapshot")?, SlotSample::read(row)?))),
                None => Ok(None),
            }
        };
        let result = tokio::select! {
            result = tokio::time::timeout(TIMEOUT, heartbeat) => result,
            () = cancelled.cancelled() => return,
        };
        let shuts_down = matches!(&result, Ok(Err(error)) if error.is_cannot_connect_now());
        findings
            .shutting_down
            .send_if_modified(|before| std::mem::replace(before, shuts_down) != shuts_down);
        let cause = match result {
            Ok(Ok(found)) => {
                failing = false;
                if let Some((text, sample)) = found {
                    let text: String = text;
                    warn_of_danger(&slot, &sample, &mut in_danger);
                    findings.sample.send_replace(Some(sample));
                    if let Some(snapshot) = Snapshot::parse(&text) {
                        findings.snapshot.send_replace(snapshot);
                    }
                }
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
        };
        // A lost connection is replaced at once, which shows whether Postgres is still there.
        if client.take().is_some_and(|client| client.is_closed()) {
            ticks.reset_immediately();
        }
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(cause, "heartbeat failed; data age grows until one succeeds");
        }
    }
}

/// Logs once when the slot gets into danger, and once when it no longer is.
fn warn_of_danger(slot: &str, sample: &SlotSample, in_danger: &mut bool) {
    let is_in_danger = sample.is_in_danger();
    if std::mem::replace(in_danger, is_in_danger) == is_in_danger {
        return;
    }
    let (retained_bytes, safe_bytes) = (sample.retained_wal_bytes(), sample.safe_wal_bytes);
    if is_in_danger {
        tracing::warn!(
            slot,
            wal_status = sample.wal_status,
            retained_bytes,
            safe_bytes,
            "replication slot is about to be lost: beyond max_slot_wal_keep_size Postgres removes the WAL that it needs, \
             which requires a new epoch and a snapshot for each device; check why nothing is acknowledged, or raise \
             max_slot_wal_keep_size"
        );
    } else {
        tracing::info!(
            slot,
            retained_bytes,
            safe_bytes,
            "replication slot is no longer in danger"
        );
    }
}

async fn connect(database: &Database) -> Result<tokio_postgres::Client, postgres::Error> {
    let client = database.connect_dedicated().await?;
    // A slow synchronous standby must not delay the measurement of the data's age.
    client.batch_execute("SET synchronous_commit = local").await?;
    Ok(client)
}
