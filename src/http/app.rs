//! `GET /api/app-instructions`: what an enrolled app shows and how it syncs.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::App;
use super::error::Error;
use super::request::Request;
use super::response::{self, Response};

/// `GET /api/app-instructions`.
///
/// # Errors
/// None beyond admission.
pub async fn instructions(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let sync = &app.config.sync;
    response::json(
        StatusCode::OK,
        &json!({
            "version": app.config.app.version,
            "tenant_id": request.device()?.tenant.name,
            "api_base_url": app.config.public_url(),
            "widgets": app.config.app.widgets,
            "sync_config": {
                "batch_size": sync.batch_size,
                "compression": sync.compression,
                "sync_interval_seconds": sync.interval_seconds,
            },
        }),
    )
}
