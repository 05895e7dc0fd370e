//! `/api/conflicts`: messages, and rows of own tables, that the caller's devices and another client changed concurrently.
//! A conflict about a row of an own table is resolved with `server` only.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;

use crate::api::App;
use crate::api::messages::checked_content;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::query::PAGE_ROWS;
use crate::http::request::required;
use crate::http::response::{self, Response};
use crate::messages::conflicts::{self, Filter, Resolution};

/// `GET /api/conflicts?status=&limit=&offset=&before=&after=`, newest first.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let query = &request.query;
    let filter = Filter {
        id: None,
        is_open: match query.get("status") {
            None | Some("open") => Some(true),
            Some("resolved") => Some(false),
            Some("all") => None,
            Some(_) => return Err(Error::invalid("status", "must be open, resolved or all")),
        },
        page: query.page(PAGE_ROWS)?,
    };
    let caller = request.caller()?;
    let (tenant, user) = (caller.tenant(), caller.user_id());
    let found = conflicts::list(&app.database, tenant, user, &filter, app.config.sync.batch_bytes_max).await?;
    response::page("conflicts", &found, &filter.page)
}

#[derive(Deserialize)]
struct Decision {
    resolution: Option<String>,
    content: Option<String>,
    base_version: Option<i64>,
}

/// `POST /api/conflicts/:id/resolve` by the user whose device made the change. Idempotent.
///
/// # Errors
/// 400, 403, 404, 409 if it was resolved differently or the message has changed since.
pub async fn resolve(app: Arc<App>, mut request: Request) -> Result<Response, Error> {
    let id = request.param_id("id", "conflict")?;
    let body: Decision = request.json(app.config.server.body_bytes_max).await?;
    let resolution = match (required("resolution", body.resolution)?.as_str(), body.content) {
        ("client", None) => Resolution::Client,
        ("server", None) => Resolution::Server,
        ("merged", content) => Resolution::Merged(checked_content(&app, content)?),
        ("client" | "server", Some(_)) => {
            return Err(Error::invalid("content", "is allowed with the resolution merged only"));
        }
        _ => return Err(Error::invalid("resolution", "must be client, server or merged")),
    };
    if body.base_version.is_some_and(|base| base < 1) {
        return Err(Error::invalid("base_version", "must be a positive integer"));
    }
    let caller = request.caller()?;
    if resolution != Resolution::Server {
        app.budgets.check(&caller.tenant().name)?;
    }
    let conflict = conflicts::resolve(
        &app.messages,
        caller.tenant(),
        caller.user_id(),
        id,
        &resolution,
        body.base_version,
    )
    .await?;
    response::json(StatusCode::OK, &conflict)
}
