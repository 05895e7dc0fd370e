//! The heartbeat: a transactional message, once a second, that travels the whole way to the clients' read path.
//!
//! Its age there is the freshness. It also lets an idle database's slot move on, and brings the snapshot by which the
//! publisher forgets transactions that every later reader sees.

use std::time::Duration;

use postgres_types::Type;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::database::snapshot::Snapshot;
use crate::database::{self, Database};

/// Prefix of heartbeats; the slot's name follows, since each engine of several hears the others' too.
pub const PREFIX: &str = "posduif.heartbeat:";

/// What heartbeats find out.
#[derive(Debug)]
pub struct Findings {
    /// The last snapshot.
    pub seen: watch::Sender<Snapshot>,
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
            let rows = held
                .query_typed(include_str!("../../sql/heartbeat.sql"), &[(&prefix, Type::TEXT)])
                .await?;
            Ok::<_, database::Error>(rows.first().map(|row| row.get::<_, String>("snapshot")))
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
            Ok(Ok(text)) => {
                failing = false;
                if let Some(snapshot) = text.and_then(|text| Snapshot::parse(&text)) {
                    findings.seen.send_replace(snapshot);
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

async fn connect(database: &Database) -> Result<tokio_postgres::Client, database::Error> {
    let client = database.connect_alone().await?;
    // A standby that holds up commits must not hold up the measure of how old clients' data is.
    client.batch_execute("SET synchronous_commit = local").await?;
    Ok(client)
}
