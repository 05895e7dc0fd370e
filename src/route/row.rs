//! A changed row as routing sees it.

use uuid::Uuid;

use crate::core::operation::Operation;
use crate::core::subject::UserNames;
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
    /// The row comes from another tenant, which alone has seen what it was before.
    arrives: bool,
}

impl<'a> Row<'a> {
    pub fn inserted(new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Insert,
            new: Some(new),
            old: None,
            arrives: false,
        }
    }

    pub fn updated(old: Option<&'a Old<'a>>, new: &'a Tuple<'a>) -> Self {
        Self {
            operation: Operation::Update,
            new: Some(new),
            old,
            arrives: false,
        }
    }

    pub fn deleted(old: &'a Old<'a>) -> Self {
        Self {
            operation: Operation::Delete,
            new: None,
            old: Some(old),
            arrives: false,
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

    /// An updated row, for the tenant that it leaves: the old row alone.
    #[must_use]
    pub fn departing(self) -> Self {
        Self { new: None, ..self }
    }

    /// An updated row, for the tenant that it comes to: the new row alone, without values that the log omits.
    #[must_use]
    pub fn arriving(self, new: &'a Tuple<'a>) -> Self {
        Self {
            new: Some(new),
            old: None,
            arrives: true,
            ..self
        }
    }

    /// Whether there was a row before the change.
    pub fn has_before(&self) -> bool {
        self.operation != Operation::Insert && !self.arrives
    }

    /// Whether there is a row after the change.
    pub fn has_after(&self) -> bool {
        self.new.is_some()
    }

    /// The change as the tenant sees it.
    pub fn effect(&self) -> Operation {
        match self.operation {
            Operation::Update if !self.has_after() => Operation::Delete,
            Operation::Update if self.arrives => Operation::Insert,
            operation => operation,
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
        if !self.has_before() || !self.has_after() {
            return true;
        }
        if let Some(Cell::Unchanged) = self.new.and_then(|tuple| tuple.get(column)) {
            return false;
        }
        let (old, new) = (self.before(column), self.after(column));
        old == ColumnValue::Unknown || old != new
    }
}

/// Reads a user id out of a column.
pub fn user_id(value: ColumnValue<'_>) -> Result<Option<Uuid>, NotAUserId> {
    named_user(&UserNames::Ids, "", value)
}

/// The user of a tenant whom a column names.
pub fn named_user(names: &UserNames, tenant: &str, value: ColumnValue<'_>) -> Result<Option<Uuid>, NotAUserId> {
    match value {
        ColumnValue::Null | ColumnValue::Unknown => Ok(None),
        ColumnValue::Text(text) => names.user_id(tenant, text).map(Some).ok_or_else(|| NotAUserId {
            value: String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned(),
            expected: match names {
                UserNames::Ids => "a user id (a UUID)",
                UserNames::Subjects(_) | UserNames::Both(_) => {
                    "a subject: it is empty, too long or has control characters"
                }
            },
        }),
    }
}

/// The value of a recipient column that names no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct NotAUserId {
    pub value: String,
    pub expected: &'static str,
}
