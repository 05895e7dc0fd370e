//! Errors as clients see them: a status, a code and a text in one JSON envelope.

use hyper::StatusCode;
use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE};
use serde_json::{Map, Value, json};

use super::response::{self, Response};
use crate::telemetry;

/// `Retry-After` of a retryable error whose delay is unknown, in seconds.
const RETRY_AFTER_SECONDS: &str = "2";

/// A machine-readable code and the status that it is sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    name: &'static str,
    status: StatusCode,
}

/// The codes of plumbing; the API adds its own.
impl Code {
    pub const VALIDATION_ERROR: Self = Self::new("VALIDATION_ERROR", StatusCode::BAD_REQUEST);
    pub const NOT_FOUND: Self = Self::new("NOT_FOUND", StatusCode::NOT_FOUND);
    pub const METHOD_NOT_ALLOWED: Self = Self::new("METHOD_NOT_ALLOWED", StatusCode::METHOD_NOT_ALLOWED);
    pub const PAYLOAD_TOO_LARGE: Self = Self::new("PAYLOAD_TOO_LARGE", StatusCode::PAYLOAD_TOO_LARGE);
    pub const UNSUPPORTED_MEDIA_TYPE: Self = Self::new("UNSUPPORTED_MEDIA_TYPE", StatusCode::UNSUPPORTED_MEDIA_TYPE);
    pub const UPGRADE_REQUIRED: Self = Self::new("UPGRADE_REQUIRED", StatusCode::UPGRADE_REQUIRED);
    pub const INTERNAL_ERROR: Self = Self::new("INTERNAL_ERROR", StatusCode::INTERNAL_SERVER_ERROR);
    /// The server has no room for the request now.
    pub const OVERLOADED: Self = Self::new("OVERLOADED", StatusCode::SERVICE_UNAVAILABLE);

    pub const fn new(name: &'static str, status: StatusCode) -> Self {
        Self { name, status }
    }

    /// The code in the envelope.
    pub fn as_str(self) -> &'static str {
        self.name
    }

    pub fn status(self) -> StatusCode {
        self.status
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_retryable(self) -> bool {
        matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE
        )
    }
}

/// An error as a client sees it, and what only the log shows.
#[derive(Debug)]
pub struct Error {
    pub code: Code,
    /// For people; contains no secrets and no internals.
    pub message: String,
    /// For programs.
    pub details: Map<String, Value>,
    /// The allowed methods, for 405.
    pub allow: Option<Box<str>>,
    /// The cause, for the log.
    pub cause: Option<Box<str>>,
    /// Where an internal error was raised, for the log, if backtraces are enabled.
    pub backtrace: Option<Box<std::backtrace::Backtrace>>,
    /// Seconds to wait before the next attempt, if known.
    pub retry_after_seconds: Option<u32>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            allow: None,
            cause: None,
            backtrace: None,
            retry_after_seconds: None,
        }
    }

    /// 400 with the invalid field.
    pub fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self::new(Code::VALIDATION_ERROR, format!("{field}: {message}")).with("field", field)
    }

    /// 500; the cause is logged, the client gets the request id only.
    pub fn internal(cause: impl Into<Box<str>>) -> Self {
        Self {
            cause: Some(cause.into()),
            backtrace: telemetry::backtrace(),
            ..Self::new(
                Code::INTERNAL_ERROR,
                "internal error; the log shows its cause under request_id",
            )
        }
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: &dyn std::error::Error) -> Self {
        self.cause = Some(telemetry::chain(cause).into());
        self
    }

    /// Adds a detail for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// The response that carries this error.
    pub fn into_response(self, request_id: &str) -> Response {
        let envelope = json!({
            "error": {
                "code": self.code.as_str(),
                "message": self.message,
                "details": self.details,
                "retryable": self.code.is_retryable(),
                "request_id": request_id,
            }
        });
        let mut response = response::with_type(self.code.status(), "application/json", envelope.to_string());
        let headers = response.headers_mut();
        if self.code.is_retryable() {
            let seconds = self.retry_after_seconds.map(HeaderValue::from);
            headers.insert(
                RETRY_AFTER,
                seconds.unwrap_or(HeaderValue::from_static(RETRY_AFTER_SECONDS)),
            );
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code.status() == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110, section 15.5.22, and RFC 6455, section 4.4.
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn error_response_is_the_envelope() {
        let response = Error::invalid("limit", "must be 1 to 1000").into_response("r1");
        assert_eq!(response.status(), 400);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(
            serde_json::from_slice::<Value>(&body).expect("JSON"),
            json!({"error": {
                "code": "VALIDATION_ERROR", "message": "limit: must be 1 to 1000", "details": {"field": "limit"},
                "retryable": false, "request_id": "r1",
            }})
        );
    }
}
