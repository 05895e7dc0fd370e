//! Shared by the features (accounts, messages, state, sync): their error, a cache of rows, budgets of tenants, pages of lists,
//! checks of input, lines of users before the pool, and
//! users as members of groups.

pub mod budgets;
pub mod cache;
mod check;
mod page;
pub mod turns;
pub mod viewer;

pub use self::check::{check_line, check_text, has_control, has_nul};
pub use self::page::{page_row_id, read_page, read_page_seen};

use std::time::Duration;

use crate::postgres;

/// The error of a request. The API maps it to a status code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Malformed input.
    #[error("{field}: {message}")]
    Invalid {
        /// The field, as the API spells it.
        field: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Input beyond its bound.
    #[error("{field}: must not be longer than {bytes_max} bytes")]
    TooLarge {
        /// The field, as the API spells it.
        field: &'static str,
        bytes_max: usize,
    },
    /// A token of an enrollment that was used, by another device or too long ago to be repeated.
    #[error("token: the enrollment was already used")]
    EnrollmentUsed,
    #[error("token: the enrollment has expired")]
    EnrollmentExpired,
    /// A message without content.
    #[error("a message needs content")]
    EmptyMessage,
    /// The recipient of a message does not exist.
    #[error("the recipient does not exist")]
    InvalidRecipient,
    /// No such object, or none that the caller may know of.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The object exists, and the caller may not use it.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The caller is not authenticated, or no longer valid.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The password is right, and a code is needed as well.
    #[error("code: this account has a second factor: send a code of the authenticator app, or a recovery code")]
    CodeRequired,
    #[error("code: is wrong, or was used before: wait for the next one")]
    CodeInvalid,
    /// A conflict with an existing object.
    #[error("{0}")]
    Conflict(String),
    /// Too many concurrent requests; a later one succeeds.
    #[error("{0}")]
    Busy(&'static str),
    /// Too many failed attempts; the next is allowed after this time.
    #[error("too many attempts; try again later")]
    Limited(Duration),
    /// The streams of the tenant hold more than they may although they were cut.
    #[error("the tenant uses {used} of {budget} bytes; try again later")]
    BudgetExceeded { budget: u64, used: u64 },
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    #[error(transparent)]
    Database(#[from] postgres::Error),
    /// An unexpected condition.
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
