//! A changed row as routing sees it.

use uuid::Uuid;

use super::rule::Operation;
use crate::decode::pgoutput::{Cell, Old, Tuple};

/// What is known of one column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    /// SQL NULL.
    Null,
    /// As Postgres prints it.
    Text(&'a [u8]),
    /// The WAL does not deliver.
    Unknown,
}

impl<'a> ColumnValue<'a> {
    fn of(cell: Option<&Cell<'a>>) -> Self {
        match cell {
            Some(Cell::Null) => Self::Null,
            Some(Cell::Text(text)) => Self::Text(text),
            Some(Cell::Unchanged | Cell::Binary(_)) | None => Self::Unknown,
        }
    }

    /// Whether a value is there.
    pub fn is_set(self) -> bool {
        matches!(self, Self::Text(_))
    }
}

/// A changed row: its new and old values by column index.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// What happened.
    pub operation: Operation,
    new: Option<&'a Tuple<'a>>,
    old: Option<&'a Old<'a>>,
}

impl<'a> Row<'a> {
    /// An inserted row.
    pub fn inserted(new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Insert,
            new: Some(new),
            old: None,
        }
    }

    /// An updated row.
    pub fn updated(old: Option<&'a Old<'a>>, new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Update,
            new: Some(new),
            old,
        }
    }

    /// A deleted row.
    pub fn deleted(old: &'a Old<'a>) -> Self {
        Self {
            operation: Operation::Delete,
            new: None,
            old: Some(old),
        }
    }

    /// The row as it is, as if it had just come.
    #[must_use]
    pub fn as_new(self) -> Self {
        Self {
            operation: match self.operation {
                Operation::Update => Operation::Insert,
                other => other,
            },
            ..self
        }
    }

    /// The new row's cells.
    pub fn new_tuple(&self) -> Option<&'a Tuple<'a>> {
        self.new
    }

    /// The old row's cells.
    pub fn old_row(&self) -> Option<&'a Old<'a>> {
        self.old
    }

    /// A column before the change.
    pub fn before(&self, column: usize) -> ColumnValue<'a> {
        match self.old {
            Some(Old::Full(tuple)) => ColumnValue::of(tuple.get(column)),
            // Outside the key a NULL only means "not kept".
            Some(Old::Key(tuple)) => match ColumnValue::of(tuple.get(column)) {
                ColumnValue::Null => ColumnValue::Unknown,
                seen => seen,
            },
            None => ColumnValue::Unknown,
        }
    }

    /// A column after the change; an unchanged TOAST value is taken from the old row where the WAL has it.
    pub fn after(&self, column: usize) -> ColumnValue<'a> {
        match self.new.and_then(|tuple| tuple.get(column)) {
            Some(Cell::Unchanged) => self.before(column),
            cell => ColumnValue::of(cell),
        }
    }

    /// A column of the row as it is, or as it last was when deleted.
    pub fn latest(&self, column: usize) -> ColumnValue<'a> {
        if self.new.is_some() {
            self.after(column)
        } else {
            self.before(column)
        }
    }

    /// Whether an update changed a column. What the WAL does not deliver counts as changed.
    pub fn has_changed(&self, column: usize) -> bool {
        if let Some(Cell::Unchanged) = self.new.and_then(|tuple| tuple.get(column)) {
            return false;
        }
        let (old, new) = (self.before(column), self.after(column));
        old == ColumnValue::Unknown || old != new
    }
}

/// A user id as a column holds it.
///
/// # Errors
/// When the text is no UUID.
pub fn user_id(seen: ColumnValue<'_>) -> Result<Option<Uuid>, NotAUserId> {
    match seen {
        ColumnValue::Null | ColumnValue::Unknown => Ok(None),
        ColumnValue::Text(text) => Uuid::try_parse_ascii(text)
            .map(Some)
            .map_err(|_| NotAUserId(String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned())),
    }
}

/// A recipient column whose value is no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a user id (a UUID)")]
pub struct NotAUserId(pub String);
