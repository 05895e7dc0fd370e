//! `/health`: the process is alive. `/ready`: it can do its work.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;

use super::App;
use super::error::Error;
use super::request::Request;
use super::response::{self, Response};

/// How long Postgres may take for a sign of life.
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
    let postgres = match tokio::time::timeout(PATIENCE, app.database.check()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "Postgres fails its check");
            Some("unavailable")
        }
        Err(_) => Some("no answer within 1 s"),
    };
    let ready = postgres.is_none();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    response::json(
        status,
        &json!({"ready": ready, "checks": {"postgres": {"ok": postgres.is_none(), "detail": postgres}}}),
    )
}
