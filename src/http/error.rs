//! Errors as the API shows them, and the only place that turns the domain's into statuses and codes.

use hyper::StatusCode;
use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE};
use serde_json::{Map, Value, json};

use super::response::{self, Response};
use crate::feature;
use crate::postgres;
use crate::telemetry;

/// Seconds that a client is told to wait while a dependency is down or too much is asked.
const RETRY_AFTER_SECONDS: &str = "2";

const REDIS_AWAY: &str = "Redis is unavailable; try again in a moment";

/// What kind of error: its code and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Malformed request: 400.
    ValidationError,
    /// A message without content: 400.
    EmptyMessage,
    /// A cursor that is malformed or another reader's: 400.
    InvalidCursor,
    /// No credentials, or bad ones: 401.
    Unauthorized,
    /// Not the caller's: 403.
    Forbidden,
    /// Absent: 404.
    NotFound,
    /// The recipient is absent: 404.
    InvalidRecipient,
    /// The path exists, not with this method: 405.
    MethodNotAllowed,
    /// Collides with what exists: 409.
    Conflict,
    /// What is there is not what the request was made upon: 412.
    PreconditionFailed,
    /// The request does not say what it is made upon: 428.
    PreconditionRequired,
    /// Too large a body: 413.
    PayloadTooLarge,
    /// Not JSON: 415.
    UnsupportedMediaType,
    /// No opening of a WebSocket: 426.
    UpgradeRequired,
    /// Too much at once: 429.
    RateLimited,
    /// A mistake here: 500.
    InternalError,
    /// Postgres is down or too slow: 503.
    DatabaseError,
    /// Redis is down or too slow: 503.
    RedisError,
    /// The stream cannot be read just now: 503.
    SyncError,
    /// The operator has paused the tenant's delivery: 503.
    TenantPaused,
    /// The request took too long: 503.
    Timeout,
}

impl Code {
    /// All there are.
    pub const ALL: [Self; 21] = [
        Self::ValidationError,
        Self::EmptyMessage,
        Self::InvalidCursor,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::InvalidRecipient,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::PreconditionRequired,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::UpgradeRequired,
        Self::RateLimited,
        Self::InternalError,
        Self::DatabaseError,
        Self::RedisError,
        Self::SyncError,
        Self::TenantPaused,
        Self::Timeout,
    ];

    /// The word in the envelope.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ValidationError => "VALIDATION_ERROR",
            Self::EmptyMessage => "EMPTY_MESSAGE",
            Self::InvalidCursor => "INVALID_CURSOR",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::InvalidRecipient => "INVALID_RECIPIENT",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::Conflict => "CONFLICT",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::PreconditionRequired => "PRECONDITION_REQUIRED",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::UpgradeRequired => "UPGRADE_REQUIRED",
            Self::RateLimited => "RATE_LIMITED",
            Self::InternalError => "INTERNAL_ERROR",
            Self::DatabaseError => "DATABASE_ERROR",
            Self::RedisError => "REDIS_ERROR",
            Self::SyncError => "SYNC_ERROR",
            Self::TenantPaused => "TENANT_PAUSED",
            Self::Timeout => "TIMEOUT",
        }
    }

    /// Its status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::ValidationError | Self::EmptyMessage | Self::InvalidCursor => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::InvalidRecipient => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DatabaseError | Self::RedisError | Self::SyncError | Self::TenantPaused | Self::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::DatabaseError
                | Self::RedisError
                | Self::SyncError
                | Self::TenantPaused
                | Self::Timeout
        )
    }
}

/// An error as a client sees it, and what only the log sees.
#[derive(Debug)]
pub struct Error {
    /// Code and status.
    pub code: Code,
    /// For people, without secrets and without the inner workings.
    pub message: String,
    /// For programs.
    pub details: Map<String, Value>,
    /// The methods that the path has, for 405.
    pub allow: Option<Box<str>>,
    /// The cause, for the log.
    pub cause: Option<String>,
    /// Where a mistake here was noticed, for the log, when that is asked for.
    pub backtrace: Option<Box<std::backtrace::Backtrace>>,
    /// Seconds to wait before the next attempt, where they are known.
    pub retry_after_seconds: Option<u64>,
}

impl Error {
    /// An error with a code and a text for people.
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

    /// 400 with the field at fault.
    pub fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self::new(Code::ValidationError, format!("{field}: {message}")).with("field", field)
    }

    /// 500; the client learns only the request's id, the log the cause.
    pub fn internal(cause: impl Into<String>) -> Self {
        Self {
            cause: Some(cause.into()),
            backtrace: telemetry::backtrace(),
            ..Self::new(
                Code::InternalError,
                "something went wrong here; the request_id leads to it in the log",
            )
        }
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: &dyn std::error::Error) -> Self {
        self.cause = Some(telemetry::chain(cause));
        self
    }

    /// Adds a detail for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// The answer that shows this error.
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
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == Code::UpgradeRequired {
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

impl From<feature::Error> for Error {
    fn from(error: feature::Error) -> Self {
        use feature::Error as Domain;
        let text = error.to_string();
        match error {
            Domain::Invalid { field, message } => Self::invalid(field, message),
            Domain::TooLarge { field, bytes_max } => Self::new(Code::PayloadTooLarge, text)
                .with("field", field)
                .with("bytes_max", bytes_max),
            Domain::EmptyMessage => Self::new(Code::EmptyMessage, text).with("field", "content"),
            Domain::InvalidRecipient => Self::new(Code::InvalidRecipient, text).with("field", "recipient_id"),
            Domain::NotFound(_) => Self::new(Code::NotFound, text),
            Domain::Forbidden(_) => Self::new(Code::Forbidden, text),
            Domain::Unauthorized(_) => Self::new(Code::Unauthorized, text),
            Domain::Conflict(_) => Self::new(Code::Conflict, text),
            Domain::Busy(_) => Self::new(Code::RateLimited, text),
            Domain::Limited(wait) => {
                // Rounded up: earlier it would be refused again.
                let seconds = wait.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX);
                Self {
                    retry_after_seconds: Some(seconds),
                    ..Self::new(Code::RateLimited, text)
                }
            }
            Domain::Redis(error) => Self::new(Code::RedisError, REDIS_AWAY).caused_by(&error),
            Domain::Database(error) => error.into(),
            Domain::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        match error {
            error if error.is_retryable() => Self {
                cause: Some(error.to_string()),
                ..Self::new(
                    Code::DatabaseError,
                    "the database is unavailable; try again in a moment",
                )
            },
            other => {
                let mut cause = telemetry::chain(&other);
                if let postgres::Error::Statement(inner) = &other
                    && let Some(refusal) = inner.as_db_error()
                {
                    cause = format!("{cause} (SQLSTATE {})", refusal.code().code());
                }
                Self::internal(cause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_error_shows_itself_in_the_envelope() {
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

    #[test]
    fn what_is_worth_repeating_says_so_and_when_and_nothing_else_does() {
        use Code as C;
        for code in [
            C::ValidationError,
            C::EmptyMessage,
            C::InvalidCursor,
            C::Unauthorized,
            C::Forbidden,
            C::NotFound,
            C::InvalidRecipient,
            C::MethodNotAllowed,
            C::Conflict,
            C::PreconditionFailed,
            C::PreconditionRequired,
            C::PayloadTooLarge,
            C::UnsupportedMediaType,
            C::UpgradeRequired,
            C::RateLimited,
            C::InternalError,
            C::DatabaseError,
            C::RedisError,
            C::SyncError,
            C::TenantPaused,
            C::Timeout,
        ] {
            let is_worth_repeating = matches!(code.status().as_u16(), 429 | 503);
            assert_eq!(code.is_retryable(), is_worth_repeating, "{code:?}");
            let response = Error::new(code, "text").into_response("r1");
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                is_worth_repeating,
                "{code:?}"
            );
        }
    }

    #[test]
    fn a_dependency_that_is_down_says_when_to_come_back_and_hides_its_cause() {
        let error = Error::from(postgres::Error::unavailable("host 10.0.0.1 refused"));
        assert!(!error.message.contains("10.0.0.1"));
        let response = error.into_response("r1");
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }
}
