//! `GET /openapi.json`: the description of the API, `docs/openapi.yaml`. The tests check each response against it, and that
//! it contains each route of the table.

use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use crate::api::App;
use crate::api::request::Request;
use crate::http::error::Error;
use crate::http::response::{self, Response};

/// The description (OpenAPI 3.1).
pub fn document() -> anyhow::Result<Value> {
    serde_saphyr::from_str(include_str!("../../docs/openapi.yaml")).context("docs/openapi.yaml")
}

/// The description as JSON; encoded on the first request.
static ENCODED: LazyLock<anyhow::Result<Bytes>> = LazyLock::new(|| Ok(serde_json::to_vec(&document()?)?.into()));

/// `GET /openapi.json`.
pub async fn openapi(_app: Arc<App>, _request: Request) -> Result<Response, Error> {
    let encoded = ENCODED
        .as_ref()
        .map_err(|error| Error::internal(format!("{error:#}")))?;
    Ok(response::with_type(StatusCode::OK, "application/json", encoded.clone()))
}
