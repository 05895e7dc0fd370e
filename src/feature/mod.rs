//! What the features (accounts, messages, state, sync) have in common: the error that a request can meet, pages of lists,
//! and checks of texts from outside.

pub mod cache;
mod check;
mod page;

pub use self::check::{check_line, check_text, has_control, has_nul};
pub use self::page::{page_row_id, read_page, read_page_seen};

use std::time::Duration;

use crate::postgres;

/// Why a request is refused. [`crate::api`] maps it to a status code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the caller gave is malformed.
    #[error("{field}: {message}")]
    Invalid {
        /// The field at fault, as the API spells it.
        field: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Bytes of the caller's beyond their bound.
    #[error("{field}: must not be longer than {bytes_max} bytes")]
    TooLarge {
        /// The field at fault, as the API spells it.
        field: &'static str,
        /// Its bound.
        bytes_max: usize,
    },
    /// A message without content.
    #[error("a message needs content")]
    EmptyMessage,
    /// The recipient of a message does not exist.
    #[error("the recipient does not exist")]
    InvalidRecipient,
    /// There is no such thing, at least none that the caller may know of.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// It exists, but is not the caller's to touch.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The caller did not prove who they are, or no longer are who they were.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// It would collide with what exists.
    #[error("{0}")]
    Conflict(String),
    /// Too much is asked at once; later it will work.
    #[error("{0}")]
    Busy(&'static str),
    /// Too often wrong; tried again after this time, it is looked at anew.
    #[error("too many attempts; try again later")]
    Limited(Duration),
    /// Redis did not do it.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Postgres did not do it.
    #[error(transparent)]
    Database(#[from] postgres::Error),
    /// Something that should not happen did.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            message: message.into(),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}
