//! `GET /openapi.json`: the API's description, which is written by hand as `docs/openapi.yaml`; the tests check each of
//! their answers against it, and that it has each route of the table.

use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use crate::api::App;
use crate::http::error::Error;
use crate::http::request::Request;
use crate::http::response::{self, Response};

/// The description (OpenAPI 3.1).
///
/// # Errors
/// When it is no YAML, which is a mistake here.
pub fn document() -> anyhow::Result<Value> {
    serde_saphyr::from_str(include_str!("../../docs/openapi.yaml")).context("docs/openapi.yaml")
}

/// The description as it is served; made when somebody first asks for it.
static ENCODED: LazyLock<anyhow::Result<Bytes>> = LazyLock::new(|| Ok(serde_json::to_vec(&document()?)?.into()));

/// `GET /openapi.json`.
///
/// # Errors
/// None in practice: the tests read it.
pub async fn openapi(_app: Arc<App>, _request: Request) -> Result<Response, Error> {
    let encoded = ENCODED
        .as_ref()
        .map_err(|error| Error::internal(format!("{error:#}")))?;
    Ok(response::with_type(StatusCode::OK, "application/json", encoded.clone()))
}
