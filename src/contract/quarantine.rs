//! Entries of a tenant's quarantine: position, kind and cause, followed by the fields of an [`EntryBody`]. The kind decides
//! what settles an entry (`src/admin/quarantine.rs`).

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::entry::EntryBody;
use crate::core::position::StreamId;
use crate::core::resp;

/// Names of the fields before those of the change.
pub const FIELDS: [&str; 3] = [POSITION, KIND, CAUSE];

const POSITION: &str = "position";
const KIND: &str = "kind";
const CAUSE: &str = "cause";

/// What was quarantined, which decides what resolves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineKind {
    /// A row that names a recipient who is no user. Its other recipients received it.
    Recipient,
    /// A row of a table that a rule does not fit. Recipients by other rules received it.
    Rule,
    /// A row that no stream can hold.
    Row,
    /// A message that is malformed.
    Message,
    /// A stream that takes no entries.
    Stream,
    /// A table that changed in a way that the log does not have: its tenant's streams were reset.
    Table,
}

impl QuarantineKind {
    pub const ALL: [Self; 6] = [
        Self::Recipient,
        Self::Rule,
        Self::Row,
        Self::Message,
        Self::Stream,
        Self::Table,
    ];

    /// The field `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Rule => "rule",
            Self::Row => "row",
            Self::Message => "message",
            Self::Stream => "stream",
            Self::Table => "table",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// An entry of the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineEntry {
    /// Its ID in the quarantine, by the clock of Redis.
    pub id: StreamId,
    /// Stream ID of the change; `None` when the entry is about a stream as a whole.
    pub position: Option<StreamId>,
    /// `None` in an entry of an older engine.
    pub kind: Option<QuarantineKind>,
    pub cause: String,
    /// The change's own fields: `schema`, `table`, `ts`, `xid`, and as far as they could be written `row` and `old`; of a
    /// malformed message `content`.
    pub fields: BTreeMap<String, String>,
}

impl QuarantineEntry {
    /// Reads the fields of an entry.
    pub fn parse(id: StreamId, mut fields: BTreeMap<String, String>) -> Self {
        Self {
            id,
            position: fields.remove(POSITION).and_then(|position| position.parse().ok()),
            kind: fields.remove(KIND).and_then(|kind| QuarantineKind::parse(&kind)),
            cause: fields.remove(CAUSE).unwrap_or_default(),
            fields,
        }
    }

    /// The table of the change.
    pub fn table(&self) -> Option<&str> {
        self.fields.get("table").map(String::as_str)
    }

    /// The row as JSON.
    pub fn row(&self) -> Option<&str> {
        self.fields.get("row").map(String::as_str)
    }

    /// The old row as JSON.
    pub fn old(&self) -> Option<&str> {
        self.fields.get("old").map(String::as_str)
    }

    /// The content of a malformed message.
    pub fn content(&self) -> Option<&str> {
        self.fields.get("content").map(String::as_str)
    }
}

/// How many arguments [`write()`] appends.
pub fn arguments(body: Option<&EntryBody>) -> usize {
    2 * FIELDS.len() + body.map_or(0, EntryBody::arguments)
}

/// Appends the fields of an entry as arguments of a command.
pub fn write(
    out: &mut BytesMut,
    position: Option<StreamId>,
    kind: QuarantineKind,
    cause: &str,
    body: Option<&EntryBody>,
) {
    let position = position.map(|id| id.to_string()).unwrap_or_default();
    for (name, value) in [(POSITION, &*position), (KIND, kind.as_str()), (CAUSE, cause)] {
        resp::argument(out, name.as_bytes());
        resp::argument(out, value.as_bytes());
    }
    if let Some(body) = body {
        out.extend_from_slice(body.encoded());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::entry::Source;
    use crate::core::resp::Reader;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quarantine_entry_reads_as_written(
            position in any::<Option<(u64, u64)>>(),
            kind in prop::sample::select(QuarantineKind::ALL.to_vec()),
            cause in any::<String>(),
            texts in any::<Option<[String; 3]>>(),
        ) {
            let position = position.map(|(ms, seq)| StreamId { ms, seq });
            let body = texts.as_ref().map(|[table, row, old]| {
                let mut body = EntryBody::default();
                body.begin(&Source { schema: "s", table, commit_ts: 1, xid: 2 });
                body.row(row.as_bytes());
                body.old(old.as_bytes());
                body
            });
            let mut out = BytesMut::new();
            write(&mut out, position, kind, &cause, body.as_ref());
            let reply = [format!("*{}\r\n", arguments(body.as_ref())).as_bytes(), &out].concat();
            let words: Vec<String> = Reader::new(&reply).texts().unwrap().into_iter().flatten().collect();
            let (pairs, _) = words.as_chunks::<2>();
            let fields = pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect();
            let entry = QuarantineEntry::parse(StreamId::ZERO, fields);
            prop_assert_eq!((entry.position, entry.kind, &entry.cause), (position, Some(kind), &cause));
            let texts = texts.as_ref().map(|texts| texts.each_ref().map(String::as_str));
            let read = body.is_some().then(|| [entry.table(), entry.row(), entry.old()].map(Option::unwrap_or_default));
            prop_assert_eq!(read, texts);
        }
    }
}
