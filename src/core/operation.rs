//! What a change does: the field `op` of entries and notices.

use serde::{Deserialize, Serialize};

/// What a change does. A rule's condition accepts `insert`, `update` and `delete` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Insert,
    Update,
    /// The row is gone, for this reader at least.
    Delete,
    /// All rows of a table are gone. Only a snapshot shows what each reader holds.
    #[serde(skip)]
    Truncate,
    /// Continuity ends here. Only a snapshot shows the current state.
    #[serde(skip)]
    Reset,
    /// An outbox message, which is no row.
    #[serde(skip)]
    Message,
    /// The reader joined or left a group, and sees no row of the change itself.
    #[serde(skip)]
    Member,
    /// An operation of another version, or none at all.
    #[default]
    #[serde(skip)]
    Other,
}

impl Operation {
    /// Every operation that an entry can have.
    pub const ALL: [Self; 7] = [
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Truncate,
        Self::Message,
        Self::Member,
        Self::Reset,
    ];

    /// The text in entries and notices, and for clients.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Reset => "reset",
            Self::Message => "message",
            Self::Member => "member",
            Self::Other => "other",
        }
    }

    /// Reads [`Self::as_str`]; an unknown text is [`Self::Other`].
    pub fn parse(text: &[u8]) -> Self {
        match text {
            b"insert" => Self::Insert,
            b"update" => Self::Update,
            b"delete" => Self::Delete,
            b"truncate" => Self::Truncate,
            b"reset" => Self::Reset,
            b"message" => Self::Message,
            b"member" => Self::Member,
            _ => Self::Other,
        }
    }

    /// Readers must take a snapshot.
    pub const fn is_break(self) -> bool {
        matches!(self, Self::Truncate | Self::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_text_parses_back() {
        for operation in Operation::ALL.into_iter().chain([Operation::Other]) {
            assert_eq!(Operation::parse(operation.as_str().as_bytes()), operation);
        }
        assert_eq!(Operation::parse(b"upsert"), Operation::Other);
    }

    #[test]
    fn operation_of_a_rule_is_insert_update_or_delete() {
        let read = |text: &str| serde_json::from_str::<Operation>(&format!("{text:?}"));
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            assert_eq!(read(operation.as_str()).ok(), Some(operation));
        }
        for text in ["truncate", "reset", "message", "other"] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains("expected one of `insert`, `update`, `delete`"),
                "{error}"
            );
        }
    }
}
