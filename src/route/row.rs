//! A changed row as routing sees it.

use uuid::Uuid;

use crate::core::operation::Operation;
use crate::decode::pgoutput::{Cell, Old, Tuple};

/// A column's value, as far as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    Null,
    /// In the text form of Postgres.
    Text(&'a [u8]),
    /// The log does not have it.
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

    /// Whether it is known and not NULL.
    pub fn is_set(self) -> bool {
        matches!(self, Self::Text(_))
    }
}

/// A changed row: its new and old values by column index.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub operation: Operation,
    new: Option<&'a Tuple<'a>>,
    old: Option<&'a Old<'a>>,
}

impl<'a> Row<'a> {
    pub fn inserted(new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Insert,
            new: Some(new),
            old: None,
        }
    }

    pub fn updated(old: Option<&'a Old<'a>>, new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Update,
            new: Some(new),
            old,
        }
    }

    pub fn deleted(old: &'a Old<'a>) -> Self {
        Self {
            operation: Operation::Delete,
            new: None,
            old: Some(old),
        }
    }

    /// The new row, as if it were just inserted.
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

    /// The row with another old part.
    #[must_use]
    pub fn with_old(self, old: &'a Old<'a>) -> Self {
        Self { old: Some(old), ..self }
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
            // Outside the key, NULL means that the log lacks the value.
            Some(Old::Key(tuple)) => match ColumnValue::of(tuple.get(column)) {
                ColumnValue::Null => ColumnValue::Unknown,
                value => value,
            },
            None => ColumnValue::Unknown,
        }
    }

    /// A column after the change; an unchanged TOAST value comes from the old row where the log has that.
    pub fn after(&self, column: usize) -> ColumnValue<'a> {
        match self.new.and_then(|tuple| tuple.get(column)) {
            Some(Cell::Unchanged) => self.before(column),
            cell => ColumnValue::of(cell),
        }
    }

    /// A column of the new row, or of the old row when it was deleted.
    pub fn latest(&self, column: usize) -> ColumnValue<'a> {
        if self.new.is_some() {
            self.after(column)
        } else {
            self.before(column)
        }
    }

    /// Whether an update changed a column. A value that the log lacks counts as changed.
    pub fn has_changed(&self, column: usize) -> bool {
        if let Some(Cell::Unchanged) = self.new.and_then(|tuple| tuple.get(column)) {
            return false;
        }
        let (old, new) = (self.before(column), self.after(column));
        old == ColumnValue::Unknown || old != new
    }
}

/// Reads a user id out of a column.
pub fn user_id(value: ColumnValue<'_>) -> Result<Option<Uuid>, NotAUserId> {
    match value {
        ColumnValue::Null | ColumnValue::Unknown => Ok(None),
        ColumnValue::Text(text) => Uuid::try_parse_ascii(text)
            .map(Some)
            .map_err(|_| NotAUserId(String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned())),
    }
}

/// The value of a recipient column that is no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a user id (a UUID)")]
pub struct NotAUserId(pub String);
