//! Responses.

use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::error::Error;
use crate::core::page::{Page, Rows, Start};

/// A complete body or a stream.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

pub type Response = hyper::Response<Body>;

/// A complete body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON response.
pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Response, Error> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| Error::internal(format!("cannot serialize a response: {error}")))?;
    Ok(with_type(status, "application/json", bytes))
}

/// A JSON response of status 200.
pub fn ok(value: &impl Serialize) -> Result<Response, Error> {
    json(StatusCode::OK, value)
}

/// A JSON response of status 201.
pub fn created(value: &impl Serialize) -> Result<Response, Error> {
    json(StatusCode::CREATED, value)
}

/// A page of a list under its name, with whether there is more in its direction; by offset also with the offset and the total.
pub fn page<T: Serialize>(name: &str, found: &Rows<T>, page: &Page) -> Result<Response, Error> {
    json(StatusCode::OK, &ListPage { name, found, page })
}

struct ListPage<'a, T> {
    name: &'a str,
    found: &'a Rows<T>,
    page: &'a Page,
}

impl<T: Serialize> Serialize for ListPage<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(self.name, &self.found.rows)?;
        map.serialize_entry("limit", &self.page.limit)?;
        map.serialize_entry("has_more", &self.found.has_more)?;
        if let (Some(total), Start::Offset(offset)) = (self.found.total, &self.page.start) {
            map.serialize_entry("total", &total)?;
            map.serialize_entry("offset", offset)?;
        }
        map.end()
    }
}

/// A plain text response.
pub fn text(status: StatusCode, text: &'static str) -> Response {
    with_type(status, "text/plain; charset=utf-8", text)
}

/// 303 to another address.
///
/// # Errors
/// When a header cannot have the address as its value.
pub fn see_other(location: &str) -> Result<Response, Error> {
    let location = HeaderValue::from_str(location)
        .map_err(|error| Error::internal(format!("cannot redirect to {location:?}: {error}")))?;
    let mut response = hyper::Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// A stream of events (SSE) over hyper.
pub fn event_stream(body: Body) -> Response {
    let mut response = hyper::Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// 204.
pub fn no_content() -> Response {
    let mut response = hyper::Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// 304.
pub fn not_modified() -> Response {
    let mut response = no_content();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// A response with a body of this content type.
pub fn with_type(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(full(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
