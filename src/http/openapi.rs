//! `GET /openapi.json`: the API's description, which is written by hand as `docs/openapi.yaml`; the tests check each of
//! their answers against it, and that it has each route of the table.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use super::App;
use super::error::Error;
use super::request::Request;
use super::response::{self, Response};

/// The description (OpenAPI 3.1).
///
/// # Errors
/// When it is no YAML, which is a mistake here.
pub fn document() -> anyhow::Result<Value> {
    serde_saphyr::from_str(include_str!("../../docs/openapi.yaml")).context("docs/openapi.yaml")
}

/// The description as it is served.
///
/// # Errors
/// As [`document`].
pub(super) fn encoded() -> anyhow::Result<Bytes> {
    Ok(serde_json::to_vec(&document()?)?.into())
}

/// `GET /openapi.json`.
///
/// # Errors
/// None.
pub async fn openapi(app: Arc<App>, _request: Request) -> Result<Response, Error> {
    Ok(response::with_type(
        StatusCode::OK,
        "application/json",
        app.openapi.clone(),
    ))
}
