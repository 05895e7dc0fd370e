//! Why a session ended, and what the errors of its parts mean for it.

use postgres_types::PgLsn;

use super::connection::{self, ServerError};
use super::epoch::Break;
use super::pipeline;
use crate::publish::outcome::PublishError;

/// Why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The engine stops.
    Stopped,
    /// The stream holds what this version does not understand, and skipping it would lose data.
    Fatal(anyhow::Error),
    /// Another engine reads from the slot.
    SlotInUse,
    /// Continuity was lost: a new epoch must begin.
    Broken(Break),
    /// Postgres failed to send a change of the transaction that commits here.
    Undecodable(PgLsn, ServerError),
    /// Anything else; another session may succeed.
    Failed(FailureCause, anyhow::Error),
}

/// What made a session fail, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// Postgres, or the connection to it.
    Postgres,
    /// Redis, or the connection to it.
    Redis,
    /// Another engine became the writer.
    Fenced,
    /// Replication continuity was lost.
    Broken,
    Other,
}

impl FailureCause {
    pub const ALL: [Self; 5] = [Self::Postgres, Self::Redis, Self::Fenced, Self::Broken, Self::Other];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Fenced => "fenced",
            Self::Broken => "broken",
            Self::Other => "other",
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        let is_postgres = |cause: &(dyn std::error::Error + 'static)| {
            cause.is::<connection::Error>()
                || cause.is::<crate::postgres::Error>()
                || cause.is::<tokio_postgres::Error>()
        };
        if error.chain().any(is_postgres) {
            Self::Postgres
        } else {
            Self::Other
        }
    }
}

impl SessionEnd {
    /// The end by a table or schema that has another name: the next session reads it.
    pub(super) fn moved() -> Self {
        let cause = "a schema was renamed, or a table moved out of one or of the rules; reading the present names";
        Self::Failed(FailureCause::Other, anyhow::anyhow!(cause))
    }

    /// The end by an error of Redis, unless the error belongs to Postgres.
    pub(super) fn by_redis(error: anyhow::Error) -> Self {
        match error.into() {
            Self::Failed(FailureCause::Other, error) => Self::Failed(FailureCause::Redis, error),
            end => end,
        }
    }
}

impl From<anyhow::Error> for SessionEnd {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<PublishError>() {
            Ok(error) => error.into(),
            Err(error) => Self::Failed(FailureCause::of(&error), error),
        }
    }
}

impl From<PublishError> for SessionEnd {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::TornTransaction(cause) => Self::Broken(Break::TornTransaction(cause)),
            PublishError::Fenced => Self::Failed(FailureCause::Fenced, error.into()),
            PublishError::Io(_) => Self::Failed(FailureCause::Redis, error.into()),
        }
    }
}

impl From<connection::Error> for SessionEnd {
    fn from(error: connection::Error) -> Self {
        match &error {
            connection::Error::Server(server) if server.is_slot_in_use() => Self::SlotInUse,
            connection::Error::Protocol(_) => Self::Fatal(error.into()),
            _ => Self::Failed(FailureCause::Postgres, error.into()),
        }
    }
}

impl From<pipeline::Error> for SessionEnd {
    fn from(error: pipeline::Error) -> Self {
        match error {
            pipeline::Error::Broken(broken) => Self::Broken(broken),
            error => Self::Fatal(error.into()),
        }
    }
}
