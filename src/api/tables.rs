//! `/api/tables`: rows of the operator's own tables, for pages that do not sync.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::api::App;
use crate::api::request::Request;
use crate::core::page::Rows;
use crate::http::error::{Code, Error};
use crate::http::query::PAGE_ROWS;
use crate::http::response::{self, Response};
use crate::sync::tables::{self, Routing, Row};

/// `GET /api/tables/:table?limit=&before=&after=`: the rows that the caller sees, in the order of their ids as text.
///
/// # Errors
/// 404 for a table that no rule names, or that the tenant does not have.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let page = request.query.page(PAGE_ROWS)?;
    if page.offset() > 0 {
        return Err(Error::invalid("offset", "is not supported here: use before or after"));
    }
    let (caller, table) = (request.caller()?, request.param("table"));
    let (user, routing) = (caller.user_id(), Routing::configured(&app.config));
    let bytes_max = app.config.sync.batch_bytes_max;
    let found = tables::page(&app.database, caller.tenant(), user, routing, table, &page, bytes_max).await?;
    let found = found.ok_or_else(|| Error::new(Code::NOT_FOUND, "table not found"))?;
    let rows: Result<Vec<Box<RawValue>>, Error> = found.rows.iter().map(body).collect();
    let rows = Rows {
        rows: rows?,
        total: found.total,
        has_more: found.has_more,
    };
    response::page("rows", &rows, &page)
}

/// `GET /api/tables/:table/:id`.
///
/// # Errors
/// 404 for a row that the caller does not see.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Error> {
    let (caller, table) = (request.caller()?, request.param("table"));
    let (user, routing) = (caller.user_id(), Routing::configured(&app.config));
    let ids = [request.param("id").to_owned()];
    let is_routed = routing.rules.iter().any(|rule| rule.table == table);
    let mut found = None;
    if is_routed {
        let each = |row| {
            found = Some(row);
            true
        };
        tables::by_id(&app.database, caller.tenant(), user, routing, table, &ids, each).await?;
    }
    let row = found.ok_or_else(|| Error::new(Code::NOT_FOUND, "row not found"))?;
    response::json(hyper::StatusCode::OK, &body(&row)?)
}

fn body(row: &Row) -> Result<Box<RawValue>, Error> {
    serde_json::from_slice(row.json.as_bytes())
        .map_err(|error| Error::internal(format!("a row of an own table is not JSON: {error}")))
}
