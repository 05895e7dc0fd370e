//! Errors of statements.

use std::error::Error as _;
use std::io;

use deadpool::managed::PoolError;
use tokio_postgres::error::SqlState;

use crate::telemetry;

/// A failed statement, classified by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres cannot be reached, is overloaded, timed out or chose this statement to resolve a deadlock: the same
    /// statement may succeed later.
    #[error("Postgres is unavailable: {message}{}", suffix(.code.as_ref()))]
    Unavailable {
        /// The SQLSTATE; `None` when Postgres sent no error.
        code: Option<SqlState>,
        message: String,
    },
    /// The rows violate a constraint.
    #[error("constraint {name} refuses the row: {message}{}", suffix(Some(.code)))]
    Constraint {
        code: SqlState,
        /// The constraint or unique index.
        name: String,
        message: String,
    },
    /// Postgres refused the statement: a mistake in it or in the schema.
    #[error("Postgres refused a statement")]
    Statement(#[source] tokio_postgres::Error),
}

fn suffix(code: Option<&SqlState>) -> String {
    code.map(|code| format!(" (SQLSTATE {})", code.code()))
        .unwrap_or_default()
}

impl Error {
    /// [`Error::Unavailable`] without a SQLSTATE.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            code: None,
            message: message.into(),
        }
    }

    /// The SQLSTATE (Postgres, appendix A), if Postgres sent an error.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Unavailable { code, .. } => code.as_ref(),
            Self::Constraint { code, .. } => Some(code),
            Self::Statement(error) => error.code(),
        }
    }

    /// Whether the same statement may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether Postgres accepts connections but no sessions: it starts, recovers or shuts down.
    pub fn is_cannot_connect_now(&self) -> bool {
        self.code() == Some(&SqlState::CANNOT_CONNECT_NOW)
    }

    /// Whether the failure concerns one object, not the server: a table that is missing, invalid or locked, or a statement
    /// on it that exceeded the statement timeout. Work on other objects can continue.
    pub fn is_object_error(&self) -> bool {
        match self {
            Self::Statement(_) | Self::Constraint { .. } => true,
            Self::Unavailable { code, .. } => code
                .as_ref()
                .is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED].contains(code)),
        }
    }

    /// Whether this is a violation of the named constraint or unique index.
    pub fn violates(&self, constraint: &str) -> bool {
        matches!(self, Self::Constraint { name, .. } if name == constraint)
    }

    /// The label of metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Constraint { .. } => "constraint",
            Self::Statement(_) => "statement",
        }
    }

    /// The error of an attempt to connect. A client can only retry, whatever the cause, wrong credentials included.
    pub(super) fn of_connecting(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Unavailable {
                code: Some(refusal.code().clone()),
                message: refusal.message().to_owned(),
            },
            // tokio-postgres prints only its own level; the cause names the host.
            None => Self::unavailable(telemetry::chain(error)),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            let is_broken = error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>());
            return if is_broken {
                Self::unavailable(telemetry::chain(&error))
            } else {
                Self::Statement(error)
            };
        };
        let code = refusal.code().clone();
        let message = refusal.message().to_owned();
        // The first two characters are the class.
        match code.code().get(..2) {
            Some("23") => Self::Constraint {
                name: refusal.constraint().unwrap_or_default().to_owned(),
                code,
                message,
            },
            // Connection, serialization and deadlock, resources, operator intervention (timeouts and shutdown too).
            Some("08" | "40" | "53" | "57" | "58") => Self::Unavailable {
                code: Some(code),
                message,
            },
            // A lock timeout; a former primary that is read-only now.
            _ if code == SqlState::LOCK_NOT_AVAILABLE || code == SqlState::READ_ONLY_SQL_TRANSACTION => {
                Self::Unavailable {
                    code: Some(code),
                    message,
                }
            }
            _ => Self::Statement(error),
        }
    }
}

impl From<PoolError<tokio_postgres::Error>> for Error {
    fn from(error: PoolError<tokio_postgres::Error>) -> Self {
        match error {
            PoolError::Backend(error) => Self::of_connecting(&error),
            PoolError::Timeout(kind) => Self::unavailable(format!(
                "no connection within the timeout ({kind:?}); see `postgres.pool_size`"
            )),
            other => Self::unavailable(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_keeps_its_code_and_prints_it() {
        let locked = Error::Unavailable {
            code: Some(SqlState::LOCK_NOT_AVAILABLE),
            message: "canceling statement due to lock timeout".into(),
        };
        assert!(locked.is_retryable() && locked.is_object_error());
        assert_eq!(
            locked.to_string(),
            "Postgres is unavailable: canceling statement due to lock timeout (SQLSTATE 55P03)"
        );
        let away = Error::unavailable("connection refused");
        assert!(away.is_retryable() && !away.is_object_error() && !away.is_cannot_connect_now());
        assert_eq!(away.to_string(), "Postgres is unavailable: connection refused");
    }
}
