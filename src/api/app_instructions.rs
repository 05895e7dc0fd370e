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
    let config = &app.config;
    let sync = &config.sync;
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
            "conflict_strategy": sync.conflict_strategy,
            "limits": {
                "batch_size_max": sync.batch_size_max,
                "upload_items_max": sync.upload_items_max,
                "upload_bytes_max": sync.upload_bytes_max,
                "body_bytes_max": config.server.body_bytes_max,
                "content_chars_max": config.messages.content_chars_max,
                "state_bytes_max": config.state.bytes_max,
                "state_nonce_bytes_max": config.state.nonce_bytes_max,
                "state_keys_max": config.state.keys_max,
                "state_batch_items_max": config.state.batch_items_max,
                "state_batch_bytes_max": config.state.batch_bytes_max,
                "websocket_message_bytes_max": config.websocket.message_bytes_max,
                "websocket_items_max": config.websocket.items_max,
                "streams_per_user_max": config.live.streams_per_user_max,
            },
        }),
    )
}
