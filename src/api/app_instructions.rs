//! `GET /api/app-instructions`: widgets, tables and sync settings of an enrolled app.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use crate::api::App;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::response::{self, Response};
use crate::sync::tables;

/// `GET /api/app-instructions`.
pub async fn instructions(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let sync = &app.config.sync;
    let tables = tables::forms(&app.database, &request.device()?.tenant, &app.config.routes).await?;
    response::json(
        StatusCode::OK,
        &json!({
            "version": app.config.app.version,
            "tenant_id": request.device()?.tenant.name,
            "api_base_url": app.config.public_url(),
            "widgets": app.config.app.widgets,
            "tables": tables,
            "sync_config": {
                "batch_size": sync.batch_size,
                "compression": sync.compression,
                "sync_interval_seconds": sync.interval_seconds,
            },
        }),
    )
}
