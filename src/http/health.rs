//! `/health`: the process is alive. `/ready`: what clients see is fresh.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::App;
use super::error::Error;
use super::request::Request;
use super::response::{self, Response};
use crate::replication::session::State;

/// How long a server may take for a sign of life.
const PATIENCE: Duration = Duration::from_secs(1);

/// `GET /health`.
///
/// # Errors
/// None.
pub async fn health(_app: Arc<App>, _request: Request) -> Result<Response, Error> {
    Ok(response::text(StatusCode::OK, "OK"))
}

/// `GET /ready`: 503 while a check fails, with each check's detail.
///
/// # Errors
/// None; a failed check is an answer.
pub async fn ready(app: Arc<App>, _request: Request) -> Result<Response, Error> {
    let (postgres, redis) = tokio::join!(
        tokio::time::timeout(PATIENCE, app.database.check()),
        tokio::time::timeout(PATIENCE, app.store.view()),
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
                crate::deliver::store::Error::Redis(_) => "unavailable",
                crate::deliver::store::Error::Paused
                | crate::deliver::store::Error::NotPublished
                | crate::deliver::store::Error::NoCheckpoint => "holds no checkpoint: nothing was published yet",
            };
            (Some(problem.to_owned()), json!({}))
        }
        Err(_) => {
            app.store.renew();
            (Some(format!("no answer within {seconds} s")), json!({}))
        }
    };
    note("redis", redis.0, redis.1);
    if let Some(replication) = &app.replication {
        let state = replication.borrow().clone();
        let (problem, detail) = match state {
            State::Streaming {
                epoch,
                progress,
                refused,
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
            State::Waiting => (None, json!({"state": "waiting for the slot"})),
            State::Starting => (Some("starting".to_owned()), json!({"state": "starting"})),
            State::Failed(cause) => (Some(cause), json!({"state": "interrupted"})),
        };
        note("replication", problem, detail);
    }
    let bound = Duration::from_secs(app.config.health.freshness_bound_seconds);
    let age = app.hub.freshness().borrow().age();
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
