//! The descriptions of the public and of the admin API, `docs/openapi.yaml` and `docs/openapi-admin.yaml`. The tests check each
//! response against them, and that they contain each route of the tables.

use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use crate::api::App;
use crate::api::console::Console;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::response::{self, Response};

/// The description (OpenAPI 3.1).
pub fn document() -> anyhow::Result<Value> {
    serde_saphyr::from_str(include_str!("../../docs/openapi.yaml")).context("docs/openapi.yaml")
}

/// The description of the admin API (OpenAPI 3.1).
pub fn admin_document() -> anyhow::Result<Value> {
    serde_saphyr::from_str(include_str!("../../docs/openapi-admin.yaml")).context("docs/openapi-admin.yaml")
}

/// The description of the admin API as JSON; encoded on the first request.
static ADMIN_ENCODED: LazyLock<anyhow::Result<Bytes>> =
    LazyLock::new(|| Ok(serde_json::to_vec(&admin_document()?)?.into()));

/// The description as JSON; encoded on the first request.
static ENCODED: LazyLock<anyhow::Result<Bytes>> = LazyLock::new(|| Ok(serde_json::to_vec(&document()?)?.into()));

/// `GET /openapi.json`.
pub async fn openapi(_app: Arc<App>, _request: Request) -> Result<Response, Error> {
    respond(&ENCODED)
}

/// `GET /admin/openapi.json`.
pub async fn admin_openapi(_console: Arc<Console>, _request: Request) -> Result<Response, Error> {
    respond(&ADMIN_ENCODED)
}

fn respond(encoded: &anyhow::Result<Bytes>) -> Result<Response, Error> {
    let encoded = encoded
        .as_ref()
        .map_err(|error| Error::internal(format!("{error:#}")))?;
    Ok(response::with_type(StatusCode::OK, "application/json", encoded.clone()))
}
