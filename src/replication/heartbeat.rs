//! The heartbeat: a transactional message, once a second, that travels the whole way to the clients' read path.
//!
//! Its age there is the freshness. It also lets an idle database's slot move on, and brings the snapshot by which the
//! publisher forgets transactions that every later reader sees, and a look at the slot.

use std::time::Duration;

use postgres_types::Type;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::slot::Sample;
use crate::core::snapshot::Snapshot;
use crate::postgres::{self, Database};

/// Prefix of heartbeats; the slot's name follows, since each engine of several hears the others' too.
pub const PREFIX: &str = "posduif.heartbeat:";

/// What heartbeats find out.
#[derive(Debug)]
pub struct Findings {
    /// The last snapshot.
    pub seen: watch::Sender<Snapshot>,
    /// The last look at the slot.
    pub sample: watch::Sender<Option<Sample>>,
    /// Postgres takes no sessions, because it shuts down. It then waits for whoever follows its log to have confirmed
    /// its very end, which we never do, since only transactions are confirmed.
    pub leaves: watch::Sender<bool>,
}

/// Emits heartbeats until cancelled, and passes on what each saw. A failure is logged once and tried again.
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
        let beat = async {
            let held = match &client {
                Some(client) => client,
                None => client.insert(connect(&database).await?),
            };
            let sql = include_str!("../../sql/heartbeat.sql");
            let params: [postgres::Param<'_>; 2] = [(&prefix, Type::TEXT), (&slot, Type::NAME)];
            let rows = database.counted(sql, held.query_typed(sql, &params)).await?;
            match rows.first() {
                Some(row) => Ok::<_, postgres::Error>(Some((row.try_get("snapshot")?, Sample::read(row)?))),
                None => Ok(None),
            }
        };
        let result = tokio::select! {
            result = tokio::time::timeout(Duration::from_secs(5), beat) => result,
            () = cancelled.cancelled() => return,
        };
        let is_leaving = matches!(&result, Ok(Err(error)) if error.is_cannot_connect_now());
        findings
            .leaves
            .send_if_modified(|leaves| std::mem::replace(leaves, is_leaving) != is_leaving);
        let cause = match result {
            Ok(Ok(found)) => {
                failing = false;
                if let Some((text, sample)) = found {
                    report(&slot, &sample, &mut in_danger);
                    findings.sample.send_replace(Some(sample));
                    let text: String = text;
                    if let Some(snapshot) = Snapshot::parse(&text) {
                        findings.seen.send_replace(snapshot);
                    }
                }
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 5 s".to_owned(),
        };
        // A connection that was lost is made anew at once, which tells whether Postgres is still there.
        if client.take().is_some_and(|client| client.is_closed()) {
            ticks.reset_immediately();
        }
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(cause, "heartbeat failed; freshness will show it");
        }
    }
}

/// Says once when the slot gets into danger, and once when it is out of it.
fn report(slot: &str, sample: &Sample, in_danger: &mut bool) {
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
            "the slot is about to be lost: beyond max_slot_wal_keep_size Postgres removes the WAL that it needs, which \
             costs a new epoch and a snapshot for each device; find out why nothing is acknowledged, or raise \
             max_slot_wal_keep_size"
        );
    } else {
        tracing::info!(slot, retained_bytes, safe_bytes, "the slot is out of danger");
    }
}

async fn connect(database: &Database) -> Result<tokio_postgres::Client, postgres::Error> {
    let client = database.connect_dedicated().await?;
    // A standby that holds up commits must not hold up the measure of how old clients' data is.
    client.batch_execute("SET synchronous_commit = local").await?;
    Ok(client)
}
