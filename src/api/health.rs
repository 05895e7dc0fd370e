//! `/health`: the process is alive. `/ready`: what clients see is fresh. Every role answers these.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::http::error::Error;
use crate::http::request::Request;
use crate::http::response::{self, Response};
use crate::live::hub::Hub;
use crate::postgres::Database;
use crate::redis::store::Store;
use crate::replication::report::{ReplicationStatus, ReplicatorState};
use crate::telemetry::metrics::Metrics;

/// How long a server may take for a sign of life.
const PATIENCE: Duration = Duration::from_secs(1);

/// What tells how the process is; one for the whole process, whatever its role.
#[derive(Debug)]
pub struct Diagnostics {
    /// The settings.
    pub config: Arc<Config>,
    /// Ordinary SQL.
    pub database: Database,
    /// Reads the streams.
    pub store: Store,
    /// What the live tail has seen, and who is connected here.
    pub hub: Hub,
    /// What this process's replicator does; `None` without one.
    pub replication: Option<ReplicationStatus>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// `GET /health`.
///
/// # Errors
/// None.
pub async fn health(_vitals: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    Ok(response::text(StatusCode::OK, "OK"))
}

/// `GET /ready`: 503 while a check fails, with each check's detail.
///
/// # Errors
/// None; a failed check is an answer.
pub async fn ready(vitals: Arc<Diagnostics>, _request: Request) -> Result<Response, Error> {
    let (postgres, redis) = tokio::join!(
        tokio::time::timeout(PATIENCE, vitals.database.check()),
        tokio::time::timeout(PATIENCE, vitals.store.view()),
    );
    let mut checks = Map::new();
    let mut ready = true;
    let mut note = |name: &str, problem: Option<String>, mut detail: Value| {
        ready &= problem.is_none();
        detail["ok"] = problem.is_none().into();
        detail["detail"] = problem.into();
        checks.insert(name.to_owned(), detail);
    };
    let seconds = PATIENCE.as_secs();
    let postgres = match postgres {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "Postgres fails its check");
            Some("unavailable".to_owned())
        }
        Err(_) => Some(format!("no answer within {seconds} s")),
    };
    note("postgres", postgres, json!({}));
    let redis = match redis {
        Ok(Ok(view)) => (
            None,
            json!({"epoch": view.epoch.to_string(), "published": view.published.to_string()}),
        ),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Redis fails its check");
            let problem = match error {
                crate::redis::store::Error::Redis(_) | crate::redis::store::Error::WrongType { .. } => "unavailable",
                crate::redis::store::Error::Paused
                | crate::redis::store::Error::Stopped
                | crate::redis::store::Error::NotPublished
                | crate::redis::store::Error::NoCheckpoint => "holds no checkpoint: nothing was published yet",
            };
            (Some(problem.to_owned()), json!({}))
        }
        Err(_) => {
            vitals.store.renew();
            (Some(format!("no answer within {seconds} s")), json!({}))
        }
    };
    note("redis", redis.0, redis.1);
    if let Some(shown) = &vitals.replication {
        let state = shown.state.borrow().clone();
        let (problem, mut detail) = match state {
            ReplicatorState::Streaming {
                epoch,
                progress,
                refused,
                ..
            } => (
                refused.map(|cause| format!("Redis takes no entries: {cause}")),
                json!({
                    "state": "streaming",
                    "epoch": epoch.to_string(),
                    "received": progress.received().to_string(),
                    "published": progress.published().to_string(),
                    "durable": progress.durable().to_string(),
                    "acknowledged": progress.acknowledged().to_string(),
                }),
            ),
            // Another engine publishes; freshness tells whether it does.
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
        if let Some(lag) = shown.lag() {
            detail["lag_bytes"] = json!({
                "received": lag.received,
                "published": lag.published,
                "durable": lag.durable,
                "acknowledged": lag.acknowledged,
            });
        }
        note("replication", problem, detail);
    }
    let bound = Duration::from_secs(vitals.config.health.freshness_bound_seconds);
    let age = vitals.hub.freshness().borrow().age();
    let problem = match age {
        None => Some("no heartbeat has come through yet".to_owned()),
        Some(age) if age > bound => Some(format!(
            "what clients see is {:.1} s old; allowed are {} s",
            age.as_secs_f64(),
            bound.as_secs()
        )),
        Some(_) => None,
    };
    let detail = json!({"age_seconds": age.map(|age| age.as_secs_f64()), "bound_seconds": bound.as_secs()});
    note("freshness", problem, detail);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    response::json(status, &json!({"ready": ready, "checks": checks}))
}
