//! Cross-origin requests (Fetch standard, "CORS protocol").

use std::io;
use std::time::Duration;

use hyper::Method;
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::request_id::X_REQUEST_ID;
use crate::config;

/// How long a browser may cache a preflight response.
const MAX_AGE: Duration = Duration::from_secs(600);

const ALLOWED_HEADERS: [HeaderName; 11] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    IF_MATCH,
    IF_NONE_MATCH,
    X_REQUEST_ID,
    HeaderName::from_static("x-device-id"),
    HeaderName::from_static("x-tenant"),
    HeaderName::from_static("x-pending-outgoing"),
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("traceparent"),
];

/// The layer for `server.cors_origins`; `None` when no origin is listed.
pub fn layer(settings: &config::Server) -> io::Result<Option<CorsLayer>> {
    if settings.cors_origins.is_empty() {
        return Ok(None);
    }
    let origins = if settings.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = settings.cors_origins.iter().map(|origin| HeaderValue::from_str(origin));
        AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?)
    };
    Ok(Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(ALLOWED_HEADERS)
            .expose_headers([X_REQUEST_ID, RETRY_AFTER, ETAG])
            .max_age(MAX_AGE),
    ))
}
