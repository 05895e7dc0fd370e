//! The kinds of quarantined entries.

/// What was put aside, which tells what can settle it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineKind {
    /// A row that names somebody who is no user. Whom it names rightly was told.
    Recipient,
    /// A row of a table that a rule does not fit. Who sees it by other rules was told.
    Rule,
    /// A row that no stream can hold.
    Row,
    /// A message that is malformed.
    Message,
    /// A stream that takes no entries.
    Stream,
}

impl QuarantineKind {
    const ALL: [Self; 5] = [Self::Recipient, Self::Rule, Self::Row, Self::Message, Self::Stream];

    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Rule => "rule",
            Self::Row => "row",
            Self::Message => "message",
            Self::Stream => "stream",
        }
    }

    /// Reads an [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}
