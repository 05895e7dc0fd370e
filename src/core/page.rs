//! Pages of lists: which part is wanted, and what is found.

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
    pub fn offset(&self) -> i64 {
        match self.start {
            Start::Offset(offset) => offset,
            Start::Before(_) | Start::After(_) => 0,
        }
    }

    /// The row that the page is before or after, and which of the two, if it names one.
    pub fn place(&self) -> Option<(&'static str, &str)> {
        match &self.start {
            Start::Offset(_) => None,
            Start::Before(id) => Some(("before", id)),
            Start::After(id) => Some(("after", id)),
        }
    }

    /// Whether the page lies after its row.
    pub fn is_after(&self) -> bool {
        matches!(self.start, Start::After(_))
    }

    /// How many rows to ask for: one more than wanted shows whether there are more.
    pub fn rows_max(&self) -> i64 {
        self.limit.saturating_add(1)
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<T> {
    /// The rows, in the list's order.
    pub rows: Vec<T>,
    /// How many there are in the whole list; not counted for a page by `before` or `after`.
    pub total: Option<i64>,
    /// Whether there are more in the direction of the page.
    pub has_more: bool,
}
