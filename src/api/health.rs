//! `/health`: the process is alive. `/ready`: what clients see is fresh. Every role serves both, on both listeners; only
//! the admin listener shows the details of the checks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::api::lane::Lane;
use crate::api::request::Request;
use crate::config::Config;
use crate::core::lane::Lanes;
use crate::http::error::Error;
use crate::http::response::{self, Response};
use crate::postgres::Database;
use crate::redis::store;
use crate::replication::report::{ReplicationStatus, ReplicatorState};
use crate::telemetry::metrics::Metrics;

/// Maximum duration of the check of a server.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long the public `/ready` uses the result of a check of the servers: any client may send it often.
const PROBE_LIFETIME: Duration = Duration::from_secs(1);

/// The parts of a process that report its state; the same for all roles.
#[derive(Debug)]
pub struct Diagnostics {
    pub config: Arc<Config>,
    pub database: Database,
    pub lanes: Lanes<Lane>,
    pub metrics: Arc<Metrics>,
    /// The last check of the servers for the public `/ready`.
    pub probe: Probe,
}

/// The last check of the servers, and when it ended.
pub type Probe = Mutex<Option<(Instant, [bool; 2])>>;

/// The result of a check: the problem, if there is one, and details.
type Check = (Option<String>, Value);

/// `GET /health`.
pub async fn health(_diagnostics: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    Ok(response::text(StatusCode::OK, "OK"))
}

/// `GET /ready`: 503 while a check fails, with the names of the failed checks.
pub async fn ready(diagnostics: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    let [postgres, redis] = probe(&diagnostics).await;
    let replication = diagnostics.lanes.main().replication.as_ref().map(replication);
    let failed: Vec<&str> = [
        ("postgres", !postgres),
        ("redis", !redis),
        ("replication", replication.is_some_and(|(problem, _)| problem.is_some())),
        ("freshness", freshness(&diagnostics).0.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, has_failed)| has_failed.then_some(name))
    .collect();
    let ready = failed.is_empty();
    response::json(status(ready), &json!({"ready": ready, "failed": failed}))
}

/// Whether Postgres and Redis pass their checks. Concurrent requests share one check.
async fn probe(diagnostics: &Diagnostics) -> [bool; 2] {
    let mut last = diagnostics.probe.lock().await;
    if let Some((at, results)) = *last
        && at.elapsed() < PROBE_LIFETIME
    {
        return results;
    }
    let (postgres, redis) = tokio::join!(postgres(diagnostics), redis(diagnostics));
    let results = [postgres.0.is_none(), redis.0.is_none()];
    *last = Some((Instant::now(), results));
    results
}

fn status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// `GET /ready` of the admin listener: 503 while a check fails, with the detail of each check.
pub async fn ready_in_full(diagnostics: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    let (postgres, redis) = tokio::join!(postgres(&diagnostics), redis(&diagnostics));
    let results = [
        ("postgres", Some(postgres)),
        ("redis", Some(redis)),
        (
            "replication",
            diagnostics.lanes.main().replication.as_ref().map(replication),
        ),
        ("freshness", Some(freshness(&diagnostics))),
    ];
    let mut ready = true;
    let mut checks = Map::new();
    for (name, result) in results {
        let Some((problem, mut detail)) = result else { continue };
        ready &= problem.is_none();
        detail["ok"] = problem.is_none().into();
        detail["detail"] = problem.into();
        checks.insert(name.to_owned(), detail);
    }
    // Of lanes beside the main one: a problem concerns the tenants of one only, so the process stays ready.
    let mut lanes = Map::new();
    for (name, lane) in diagnostics.lanes.others() {
        let replication = lane.replication.as_ref().map(replication);
        let freshness = freshness_of(&diagnostics, lane);
        let problem = replication
            .as_ref()
            .and_then(|(problem, _)| problem.clone())
            .or(freshness.0);
        let detail = json!({
            "ok": problem.is_none(),
            "detail": problem,
            "replication": replication.map(|(_, detail)| detail),
            "freshness": freshness.1,
        });
        lanes.insert(name.to_owned(), detail);
    }
    let mut body = json!({"ready": ready, "checks": checks});
    if !lanes.is_empty() {
        body["lanes"] = lanes.into();
    }
    response::json(status(ready), &body)
}

fn timed_out() -> Option<String> {
    Some(format!("no response within {} s", TIMEOUT.as_secs()))
}

async fn postgres(diagnostics: &Diagnostics) -> Check {
    let problem = match tokio::time::timeout(TIMEOUT, diagnostics.database.check()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "check of Postgres failed");
            Some("unavailable".to_owned())
        }
        Err(_) => timed_out(),
    };
    (problem, json!({}))
}

async fn redis(diagnostics: &Diagnostics) -> Check {
    match tokio::time::timeout(TIMEOUT, diagnostics.lanes.main().store.view()).await {
        Ok(Ok(view)) => (
            None,
            json!({"epoch": view.epoch.to_string(), "published": view.published.to_string()}),
        ),
        Ok(Err(error)) => {
            tracing::debug!(%error, "check of Redis failed");
            let problem = match error {
                store::Error::Redis(_) | store::Error::WrongType { .. } => "unavailable",
                store::Error::Paused
                | store::Error::Stopped
                | store::Error::NotReached
                | store::Error::NotPublished
                | store::Error::NoCheckpoint => "no checkpoint: nothing has been published yet",
            };
            (Some(problem.to_owned()), json!({}))
        }
        Err(_) => {
            diagnostics.lanes.main().store.renew();
            (timed_out(), json!({}))
        }
    }
}

fn replication(shown: &ReplicationStatus) -> Check {
    let state = shown.state.borrow().clone();
    let (problem, mut detail) = match state {
        ReplicatorState::Streaming {
            epoch,
            progress,
            replicas,
            problem,
            ..
        } => (
            problem,
            json!({
                "replicas": replicas,
                "state": "streaming",
                "epoch": epoch.to_string(),
                "received": progress.received().to_string(),
                "published": progress.published().to_string(),
                "durable": progress.durable().to_string(),
                "acknowledged": progress.acknowledged().to_string(),
            }),
        ),
        // Another engine publishes; the check of freshness covers it.
        ReplicatorState::Waiting => (None, json!({"state": "waiting for the slot"})),
        ReplicatorState::Starting => (Some("starting".to_owned()), json!({"state": "starting"})),
        ReplicatorState::Failed(cause) => (Some(cause), json!({"state": "interrupted"})),
    };
    if let Some(sample) = &*shown.sample.borrow() {
        detail["wal_position"] = sample.wal_position.to_string().into();
        detail["wal_status"] = sample.wal_status.clone().into();
        detail["retained_wal_bytes"] = sample.retained_wal_bytes().into();
        detail["safe_wal_size_bytes"] = sample.safe_wal_bytes.into();
        detail["sample_age_seconds"] = sample.at.elapsed().as_secs_f64().into();
    }
    let unrepaired = shown.uncovered.borrow().clone();
    if !unrepaired.is_empty() {
        detail["unrepaired_tables"] = unrepaired.into();
    }
    if let Some(lag) = shown.lag() {
        detail["lag_bytes"] = json!({
            "received": lag.received,
            "published": lag.published,
            "durable": lag.durable,
            "acknowledged": lag.acknowledged,
        });
    }
    (problem, detail)
}

fn freshness(diagnostics: &Diagnostics) -> Check {
    freshness_of(diagnostics, diagnostics.lanes.main())
}

fn freshness_of(diagnostics: &Diagnostics, lane: &Lane) -> Check {
    let bound = Duration::from_secs(diagnostics.config.health.max_staleness_seconds);
    let age = lane.hub.freshness().borrow().age();
    let problem = match age {
        None => Some("no heartbeat received yet".to_owned()),
        Some(age) if age > bound => Some(format!(
            "clients see data {:.1} s old; the maximum is {} s",
            age.as_secs_f64(),
            bound.as_secs()
        )),
        Some(_) => None,
    };
    let detail = json!({"age_seconds": age.map(|age| age.as_secs_f64()), "bound_seconds": bound.as_secs()});
    (problem, detail)
}
