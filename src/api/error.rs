//! Which status and code each error of a feature is sent with. No other file maps them.

use hyper::StatusCode;

use crate::feature;
use crate::http::error::{Code, Error};
use crate::live::presence;
use crate::postgres;
use crate::redis::store;
use crate::sync::incoming;
use crate::sync::outgoing::{self, Fault};
use crate::telemetry;

/// The codes of the API; plumbing has its own.
impl Code {
    pub const EMPTY_MESSAGE: Self = Self::new("EMPTY_MESSAGE", StatusCode::BAD_REQUEST);
    /// A malformed cursor, or one of another reader.
    pub const INVALID_CURSOR: Self = Self::new("INVALID_CURSOR", StatusCode::BAD_REQUEST);
    /// The token of an enrollment was used: the user needs a new one.
    pub const ENROLLMENT_USED: Self = Self::new("ENROLLMENT_USED", StatusCode::BAD_REQUEST);
    pub const ENROLLMENT_EXPIRED: Self = Self::new("ENROLLMENT_EXPIRED", StatusCode::BAD_REQUEST);
    pub const UNAUTHORIZED: Self = Self::new("UNAUTHORIZED", StatusCode::UNAUTHORIZED);
    /// An expired access token: a refresh gives another.
    pub const TOKEN_EXPIRED: Self = Self::new("TOKEN_EXPIRED", StatusCode::UNAUTHORIZED);
    /// The session of an access token was ended, or its user disabled.
    pub const SESSION_ENDED: Self = Self::new("SESSION_ENDED", StatusCode::UNAUTHORIZED);
    /// The device was revoked, or its user disabled.
    pub const DEVICE_REVOKED: Self = Self::new("DEVICE_REVOKED", StatusCode::UNAUTHORIZED);
    pub const FORBIDDEN: Self = Self::new("FORBIDDEN", StatusCode::FORBIDDEN);
    /// The account has a second factor: the same request with a code may succeed.
    pub const CODE_REQUIRED: Self = Self::new("CODE_REQUIRED", StatusCode::FORBIDDEN);
    /// A wrong code of a second factor, or one that was used.
    pub const CODE_INVALID: Self = Self::new("CODE_INVALID", StatusCode::FORBIDDEN);
    pub const INVALID_RECIPIENT: Self = Self::new("INVALID_RECIPIENT", StatusCode::NOT_FOUND);
    pub const CONFLICT: Self = Self::new("CONFLICT", StatusCode::CONFLICT);
    /// Numbers of an upload are missing.
    pub const SEQUENCE_GAP: Self = Self::new("SEQUENCE_GAP", StatusCode::CONFLICT);
    /// A number of an upload comes again with another content.
    pub const DEVICE_RESTORED: Self = Self::new("DEVICE_RESTORED", StatusCode::CONFLICT);
    pub const PRECONDITION_FAILED: Self = Self::new("PRECONDITION_FAILED", StatusCode::PRECONDITION_FAILED);
    pub const PRECONDITION_REQUIRED: Self = Self::new("PRECONDITION_REQUIRED", StatusCode::PRECONDITION_REQUIRED);
    pub const RATE_LIMITED: Self = Self::new("RATE_LIMITED", StatusCode::TOO_MANY_REQUESTS);
    /// The tenant uses more than its budget.
    pub const QUOTA_EXCEEDED: Self = Self::new("QUOTA_EXCEEDED", StatusCode::INSUFFICIENT_STORAGE);
    /// The keys of the provider of an access token cannot be read.
    pub const PROVIDER_UNAVAILABLE: Self = Self::new("PROVIDER_UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE);
    pub const DATABASE_ERROR: Self = Self::new("DATABASE_ERROR", StatusCode::SERVICE_UNAVAILABLE);
    pub const REDIS_ERROR: Self = Self::new("REDIS_ERROR", StatusCode::SERVICE_UNAVAILABLE);
    /// The stream cannot be read now.
    pub const SYNC_ERROR: Self = Self::new("SYNC_ERROR", StatusCode::SERVICE_UNAVAILABLE);
    pub const TENANT_PAUSED: Self = Self::new("TENANT_PAUSED", StatusCode::SERVICE_UNAVAILABLE);
    pub const TIMEOUT: Self = Self::new("TIMEOUT", StatusCode::SERVICE_UNAVAILABLE);

    /// A link of the console that was used, is too old, or another engine's.
    pub const LINK_INVALID: Self = Self::new("LINK_INVALID", StatusCode::UNAUTHORIZED);
    /// Not `admin.token`.
    pub const TOKEN_INVALID: Self = Self::new("TOKEN_INVALID", StatusCode::UNAUTHORIZED);
    /// The console only shows (`admin.actions`).
    pub const ACTIONS_DISABLED: Self = Self::new("ACTIONS_DISABLED", StatusCode::FORBIDDEN);
    /// The operator typed another name.
    pub const CONFIRM_MISMATCH: Self = Self::new("CONFIRM_MISMATCH", StatusCode::BAD_REQUEST);
    /// Postgres or Redis is unavailable, with the cause, for operators.
    pub const UNAVAILABLE: Self = Self::new("UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE);

    /// The codes of the admin API beside those of the public one.
    pub const CONSOLE: [Self; 5] = [
        Self::LINK_INVALID,
        Self::TOKEN_INVALID,
        Self::ACTIONS_DISABLED,
        Self::CONFIRM_MISMATCH,
        Self::UNAVAILABLE,
    ];

    /// The codes of the public API.
    pub const ALL: [Self; 33] = [
        Self::VALIDATION_ERROR,
        Self::EMPTY_MESSAGE,
        Self::INVALID_CURSOR,
        Self::ENROLLMENT_USED,
        Self::ENROLLMENT_EXPIRED,
        Self::UNAUTHORIZED,
        Self::TOKEN_EXPIRED,
        Self::SESSION_ENDED,
        Self::DEVICE_REVOKED,
        Self::FORBIDDEN,
        Self::CODE_REQUIRED,
        Self::CODE_INVALID,
        Self::NOT_FOUND,
        Self::INVALID_RECIPIENT,
        Self::METHOD_NOT_ALLOWED,
        Self::CONFLICT,
        Self::SEQUENCE_GAP,
        Self::DEVICE_RESTORED,
        Self::PRECONDITION_FAILED,
        Self::PRECONDITION_REQUIRED,
        Self::PAYLOAD_TOO_LARGE,
        Self::UNSUPPORTED_MEDIA_TYPE,
        Self::UPGRADE_REQUIRED,
        Self::RATE_LIMITED,
        Self::INTERNAL_ERROR,
        Self::PROVIDER_UNAVAILABLE,
        Self::DATABASE_ERROR,
        Self::REDIS_ERROR,
        Self::SYNC_ERROR,
        Self::TENANT_PAUSED,
        Self::OVERLOADED,
        Self::TIMEOUT,
        Self::QUOTA_EXCEEDED,
    ];
}

/// After this time a tenant beyond its budget may have been cut further.
const BUDGET_RETRY_SECONDS: u32 = 10;

pub(crate) fn unauthorized(message: &str) -> Error {
    Error::new(Code::UNAUTHORIZED, message)
}

/// 401 for a device that may not act any more.
pub(crate) fn device_revoked() -> Error {
    let text = "the device was revoked, or its user disabled; enroll it again";
    Error::new(Code::DEVICE_REVOKED, text)
}

fn redis_unavailable(cause: &dyn std::error::Error) -> Error {
    Error::new(Code::REDIS_ERROR, "Redis is unavailable; try again in a moment").caused_by(cause)
}

impl From<feature::Error> for Error {
    fn from(error: feature::Error) -> Self {
        use feature::Error as Feature;
        let text = error.to_string();
        match error {
            Feature::Invalid { field, message } => Self::invalid(field, message),
            Feature::TooLarge { field, bytes_max } => Self::new(Code::PAYLOAD_TOO_LARGE, text)
                .with("field", field)
                .with("bytes_max", bytes_max),
            Feature::EnrollmentUsed => Self::new(Code::ENROLLMENT_USED, text).with("field", "token"),
            Feature::EnrollmentExpired => Self::new(Code::ENROLLMENT_EXPIRED, text).with("field", "token"),
            Feature::EmptyMessage => Self::new(Code::EMPTY_MESSAGE, text).with("field", "content"),
            Feature::InvalidRecipient => Self::new(Code::INVALID_RECIPIENT, text).with("field", "recipient_id"),
            Feature::NotFound(_) => Self::new(Code::NOT_FOUND, text),
            Feature::Forbidden(_) => Self::new(Code::FORBIDDEN, text),
            Feature::Unauthorized(_) => Self::new(Code::UNAUTHORIZED, text),
            Feature::CodeRequired => Self::new(Code::CODE_REQUIRED, text).with("field", "code"),
            Feature::CodeInvalid => Self::new(Code::CODE_INVALID, text).with("field", "code"),
            Feature::Conflict(_) => Self::new(Code::CONFLICT, text),
            Feature::Busy(_) => Self::new(Code::RATE_LIMITED, text),
            Feature::Limited(wait) => {
                // Rounded up: an earlier attempt would be refused again.
                let seconds = wait.as_millis().div_ceil(1000).try_into().unwrap_or(u32::MAX);
                Self {
                    retry_after_seconds: Some(seconds),
                    ..Self::new(Code::RATE_LIMITED, text)
                }
            }
            Feature::BudgetExceeded { budget, used } => Self {
                retry_after_seconds: Some(BUDGET_RETRY_SECONDS),
                ..Self::new(Code::QUOTA_EXCEEDED, text)
            }
            .with("budget", budget)
            .with("used", used),
            Feature::Redis(error) => redis_unavailable(&error),
            Feature::Database(error) => error.into(),
            Feature::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<outgoing::Error> for Error {
    fn from(error: outgoing::Error) -> Self {
        let (fault, expected) = match error {
            outgoing::Error::Feature(error) => return error.into(),
            outgoing::Error::Revoked => return device_revoked(),
            outgoing::Error::OutOfSequence { fault, expected } => (fault, expected),
        };
        let (code, text) = match fault {
            Fault::Gap => (
                Code::SEQUENCE_GAP,
                format!("seq: items before the first one are missing; the next number is {expected}"),
            ),
            Fault::Restored => (
                Code::DEVICE_RESTORED,
                format!(
                    "seq: a number was used before for another item; number the waiting items from {expected}, and take \
                     a snapshot"
                ),
            ),
        };
        Self::new(code, text).with("field", "seq").with("expected", expected)
    }
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        match error {
            error if error.is_retryable() => Self {
                cause: Some(error.to_string().into()),
                ..Self::new(
                    Code::DATABASE_ERROR,
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

impl From<presence::Error> for Error {
    fn from(error: presence::Error) -> Self {
        redis_unavailable(&error)
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        let (code, text) = match &error {
            store::Error::Redis(_) | store::Error::WrongType { .. } => return redis_unavailable(&error),
            store::Error::Paused => (
                Code::TENANT_PAUSED,
                "this tenant is paused; pending changes are delivered when it resumes",
            ),
            store::Error::Stopped => (
                Code::SYNC_ERROR,
                "the user's stream is stopped; an operator must repair it",
            ),
            store::Error::NotReached => (
                Code::SYNC_ERROR,
                "the streams do not reach this cursor yet; try again in a moment",
            ),
            store::Error::NoCheckpoint | store::Error::NotPublished => (
                Code::SYNC_ERROR,
                "the replicator has not published anything yet; try again in a moment",
            ),
        };
        Self::new(code, text).caused_by(&error)
    }
}

impl From<incoming::Error> for Error {
    fn from(error: incoming::Error) -> Self {
        let text = error.to_string();
        match error {
            incoming::Error::InvalidCursor(_) => Self::new(Code::INVALID_CURSOR, text).with("field", "cursor"),
            incoming::Error::Store(error) => error.into(),
            incoming::Error::Feature(error) => error.into(),
            incoming::Error::Snapshot(cause) => Self {
                cause: Some(cause.into()),
                ..Self::new(Code::SYNC_ERROR, "a snapshot cannot start now; try again in a moment")
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::RETRY_AFTER;

    use super::*;

    #[test]
    fn retryable_codes_are_429_503_and_507_and_set_retry_after() {
        for code in Code::ALL {
            let is_retryable = matches!(code.status().as_u16(), 429 | 503 | 507);
            assert_eq!(code.is_retryable(), is_retryable, "{code:?}");
            let response = Error::new(code, "text").into_response("r1");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), is_retryable, "{code:?}");
        }
    }

    #[test]
    fn unavailable_database_sets_retry_after_and_hides_its_cause() {
        let error = Error::from(postgres::Error::unavailable("host 10.0.0.1 refused"));
        assert!(!error.message.contains("10.0.0.1"));
        let response = error.into_response("r1");
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }
}
