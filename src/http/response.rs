//! Answers.

use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::json;

use super::error::Error;
use crate::domain::Page;

/// Any body: a whole one or a stream.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer.
pub type Response = hyper::Response<Body>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer in JSON.
///
/// # Errors
/// When the value cannot be JSON, which is a mistake here.
pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Response, Error> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::internal(format!("an answer is no JSON: {error}")))?;
    Ok(with_type(status, "application/json", bytes))
}

/// A page of a list under its name, with where in the list it is.
///
/// # Errors
/// As [`json`].
pub fn page<T: Serialize>(name: &str, rows: &[T], total: i64, page: Page) -> Result<Response, Error> {
    json(
        StatusCode::OK,
        &json!({name: rows, "total": total, "limit": page.limit, "offset": page.offset}),
    )
}

/// An answer in plain text.
pub fn text(status: StatusCode, text: &'static str) -> Response {
    with_type(status, "text/plain; charset=utf-8", text)
}

/// 204: done, and nothing to say.
pub fn no_content() -> Response {
    let mut response = hyper::Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// 304: the client has what is asked for.
pub fn not_modified() -> Response {
    let mut response = no_content();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// An answer with a body of this type.
pub fn with_type(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(full(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
