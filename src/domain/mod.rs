//! Users, devices, enrollment, messages, encrypted state and uploads: rows and rules, without transport. Sessions, tickets
//! and limits are no rows: they live in Redis.
//!
//! Functions here check what they are given as far as rows depend on it and say in [`Error`] what is wrong; which
//! status code that makes is for [`crate::http`] to know. Who is allowed in is settled before: a function trusts the
//! user and the tenant it is called with.
//!
//! Nothing here publishes anything. A row is the event.

pub mod caches;
pub mod conflicts;
pub mod devices;
pub mod enrollment;
pub mod limits;
pub mod loader;
pub mod messages;
pub mod password;
pub mod sessions;
pub mod states;
pub mod tickets;
pub mod uploads;
pub mod users;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use crate::database;
use crate::database::snapshot::Snapshot;

/// Why the domain refuses.
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
    Database(#[from] database::Error),
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

/// Which part of a long list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: i64,
    /// Where it begins.
    pub start: Start,
}

/// Where a page begins. What `before` and `after` mean is the order of the list's key: times, or names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// After so many rows of the list.
    Offset(i64),
    /// Right before the row of this id: what is older, or comes earlier by name.
    Before(String),
    /// Right after the row of this id.
    After(String),
}

impl Page {
    /// The first rows of a list.
    pub fn first(limit: i64) -> Self {
        Self {
            limit,
            start: Start::Offset(0),
        }
    }

    /// Rows of the list before it, where that is how it is named.
    fn offset(&self) -> i64 {
        match self.start {
            Start::Offset(offset) => offset,
            Start::Before(_) | Start::After(_) => 0,
        }
    }

    /// The row that the page is before or after, and which of the two, if it names one.
    fn place(&self) -> Option<(&'static str, &str)> {
        match &self.start {
            Start::Offset(_) => None,
            Start::Before(id) => Some(("before", id)),
            Start::After(id) => Some(("after", id)),
        }
    }

    /// The id of that row, in a list whose rows have UUIDs.
    fn place_uuid(&self) -> Result<Option<Uuid>, Error> {
        let place = self.place();
        place
            .map(|(field, id)| Uuid::try_parse(id).map_err(|_| unknown_place(field)))
            .transpose()
    }

    /// Whether the page lies after its row.
    fn is_after(&self) -> bool {
        matches!(self.start, Start::After(_))
    }

    /// How many rows to ask for: one more than wanted tells whether there are more.
    fn rows_max(&self) -> i64 {
        self.limit.saturating_add(1)
    }
}

fn unknown_place(field: &'static str) -> Error {
    Error::invalid(field, "must be the id of a row of this list")
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<T> {
    /// The rows, in the list's order.
    pub rows: Vec<T>,
    /// How many there are in the whole list; of a page by `before` or `after` nobody counts.
    pub total: Option<i64>,
    /// Whether there are more in the direction of the page.
    pub has_more: bool,
}

impl<T> Rows<T> {
    /// [`Rows::read`], and which transactions the look has seen.
    fn read_seen(
        rows: &[Row],
        page: &Page,
        is_upwards: bool,
        read: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<(Self, Snapshot), Error> {
        let found = Self::read(rows, page, is_upwards, read)?;
        let snapshot = rows.first().map(Snapshot::from_row).transpose()?;
        Ok((found, snapshot.unwrap_or_default()))
    }

    /// Reads a page out of rows that each bear whether the row beside which the page lies is known, the list's length if it
    /// was counted, and then the columns of one of the list, the first of which is never null there; one more than the page
    /// may have if there are more, in the list's order. That one is the first when the page goes against the order.
    fn read(
        rows: &[Row],
        page: &Page,
        is_upwards: bool,
        read: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Self, Error> {
        let first = rows
            .first()
            .ok_or_else(|| Error::Internal("a list gave no row".into()))?;
        if let (false, Some((field, _))) = (first.try_get("is_known")?, page.place()) {
            return Err(unknown_place(field));
        }
        let total = first.try_get("total")?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            if row.try_get::<_, Option<Anything>>(2)?.is_some() {
                found.push(read(row)?);
            }
        }
        let has_more = found.len() as u64 > page.limit.unsigned_abs();
        if has_more {
            found.remove(if is_upwards { 0 } else { found.len() - 1 });
        }
        Ok(Self {
            rows: found,
            total,
            has_more,
        })
    }
}

/// A value of which only matters that it is there.
struct Anything;

impl<'a> FromSql<'a> for Anything {
    fn from_sql(_: &Type, _: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Checks a text from outside: not empty, not longer than `chars_max`, and free of NUL, which Postgres cannot store.
///
/// # Errors
/// [`Error::Invalid`] with the field.
pub fn check_text(field: &'static str, text: &str, chars_max: usize) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if text.contains('\0') {
        return Err(Error::invalid(field, "must not contain the character NUL"));
    }
    if text.chars().count() > chars_max {
        return Err(Error::invalid(
            field,
            format!("must not be longer than {chars_max} characters"),
        ));
    }
    Ok(())
}

/// Checks a short text that people read in lists: as [`check_text`], and free of control characters, by which it could
/// speak to somebody's terminal.
///
/// # Errors
/// [`Error::Invalid`] with the field.
pub fn check_line(field: &'static str, text: &str, chars_max: usize) -> Result<(), Error> {
    check_text(field, text, chars_max)?;
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

/// Whether a text somewhere in it has a control character, NUL among them. How deep a value can be is bounded by the
/// parser's limit.
pub fn has_control(value: &Value) -> bool {
    has_character(value, char::is_control)
}

/// Whether a text somewhere in it has the character NUL, which Postgres cannot store. How deep a value can be is bounded
/// by the parser's limit.
pub fn has_nul(value: &Value) -> bool {
    has_character(value, |c| c == '\0')
}

fn has_character(value: &Value, is_it: fn(char) -> bool) -> bool {
    match value {
        Value::String(text) => text.contains(is_it),
        Value::Array(items) => items.iter().any(|item| has_character(item, is_it)),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key.contains(is_it) || has_character(value, is_it)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A time as the API prints it: RFC 3339 in UTC with `Z`, microseconds without trailing zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub DateTime<Utc>);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        Self(Utc::now())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: lists have hundreds of them, and chrono reads its format anew for each.
        let (date, time) = (self.0.date_naive(), self.0.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            date.year(),
            date.month(),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        )?;
        // A leap second is the second before it, beyond its end.
        let mut micros = time.nanosecond() / 1000 % 1_000_000;
        if micros > 0 {
            let mut digits = 6;
            while micros.is_multiple_of(10) {
                micros /= 10;
                digits -= 1;
            }
            write!(f, ".{micros:0digits$}")?;
        }
        f.write_str("Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        DateTime::<Utc>::from_sql(ty, raw).map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        <DateTime<Utc> as FromSql<'_>>::accepts(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_no_trailing_zeros() {
        for (text, printed) in [
            ("2024-01-15T10:30:00Z", "2024-01-15T10:30:00Z"),
            ("2024-01-15T10:30:20.120000Z", "2024-01-15T10:30:20.12Z"),
            ("2024-01-15T12:30:00.000001+02:00", "2024-01-15T10:30:00.000001Z"),
            ("2024-01-15T10:30:00.1234567Z", "2024-01-15T10:30:00.123456Z"),
        ] {
            let time = DateTime::parse_from_rfc3339(text).expect("a timestamp").to_utc();
            assert_eq!(Timestamp(time).to_string(), printed);
        }
    }

    #[test]
    fn texts_are_checked() {
        assert!(check_text("f", "ä", 1).is_ok());
        for bad in ["", "a\0", "ab"] {
            assert!(check_text("f", bad, 1).is_err(), "{bad:?}");
        }
    }
}
