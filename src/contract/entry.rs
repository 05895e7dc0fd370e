//! Stream entries as readers see them.

use std::fmt;
use std::io;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

use crate::config::rule::Rule;
use crate::contract::json::members;
use crate::core::position::StreamId;
use crate::core::resp;
use crate::core::resp::Reader;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Op {
    /// A row has come.
    Insert,
    /// A row has changed.
    Update,
    /// A row has gone, for this reader at least.
    Delete,
    /// History breaks here, or all rows of a table have gone: only a snapshot tells what is.
    Reset,
    /// A message for users, which is no row.
    Message,
    /// Something that no reader cares for.
    #[default]
    Other,
}

impl Op {
    /// Reads the field `op`, and the same texts in notices.
    pub fn parse(text: &str) -> Self {
        match text {
            "insert" => Self::Insert,
            "update" => Self::Update,
            "delete" => Self::Delete,
            "reset" | "truncate" => Self::Reset,
            "message" => Self::Message,
            _ => Self::Other,
        }
    }

    /// The text that clients see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Reset => "reset",
            Self::Message => "message",
            Self::Other => "other",
        }
    }
}

/// A text that shares the memory of the reply that it came in. It is UTF-8 as everything that Postgres printed; who needs
/// a `str` pays for the proof, who passes it on does not.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Text(Bytes);

impl Text {
    /// The text; empty when it is no UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The text as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A part of it.
    fn part(&self, part: &[u8]) -> Self {
        Self(self.0.slice_ref(part))
    }
}

impl From<Bytes> for Text {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// An entry of an inbox or a shared stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its place.
    pub id: StreamId,
    /// What happened.
    pub op: Op,
    /// The table.
    pub table: Text,
    /// The live event's name.
    pub event: Text,
    /// Transaction id.
    pub xid: u32,
    /// The row as JSON.
    pub row: Option<Text>,
    /// The old row as JSON.
    pub old: Option<Text>,
    /// Columns that the log left out, as a JSON array.
    pub unchanged: Option<Text>,
}

impl Entry {
    /// Reads the entries of a reply that is one range, as Redis sent it.
    ///
    /// # Errors
    /// When the reply has another form, or is an error.
    pub fn parse_range(reply: &Bytes) -> io::Result<Vec<Self>> {
        Self::read_range(&mut Reader::new(reply), reply)
    }

    /// Reads the entries of a range. Fields that are missing or malformed are taken as empty, an entry without a
    /// position is left out.
    ///
    /// # Errors
    /// When the reply has another form, or is an error.
    pub(crate) fn read_range(reader: &mut Reader<'_>, reply: &Bytes) -> io::Result<Vec<Self>> {
        let count = reader.array()?;
        let mut entries = Vec::with_capacity(count.min(reply.len() / 16));
        for _ in 0..count {
            entries.extend(Self::read(reader, reply)?);
        }
        Ok(entries)
    }

    fn read(reader: &mut Reader<'_>, reply: &Bytes) -> io::Result<Option<Self>> {
        fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
            std::str::from_utf8(text).ok()?.parse().ok()
        }
        reader.array()?;
        let id = parse(reader.text()?);
        let mut entry = Self {
            id: id.unwrap_or_default(),
            ..Self::default()
        };
        for _ in 0..reader.array()? / 2 {
            let (name, value) = (reader.text()?, reader.text()?);
            let text = || Text(reply.slice_ref(value));
            match name {
                b"op" => entry.op = Op::parse(std::str::from_utf8(value).unwrap_or_default()),
                b"table" => entry.table = text(),
                b"event" => entry.event = text(),
                b"xid" => entry.xid = parse(value).unwrap_or_default(),
                b"row" => entry.row = Some(text()),
                b"old" => entry.old = Some(text()),
                b"unchanged" => entry.unchanged = Some(text()),
                _ => {}
            }
        }
        Ok(id.map(|_| entry))
    }

    /// What live events tell beside the row's id, JSON: the data of a message, some columns of some tables.
    pub fn told(&self) -> Option<Text> {
        if self.op == Op::Message {
            return self.row.clone();
        }
        let columns = Rule::live_columns(self.table.as_str());
        if columns.is_empty() {
            return None;
        }
        let row = self.row.as_ref().or(self.old.as_ref())?;
        let mut told = vec![b'{'];
        for (name, value) in members(row.as_bytes()) {
            if columns.iter().any(|column| column.as_bytes() == name) {
                if told.len() > 1 {
                    told.push(b',');
                }
                told.push(b'"');
                told.extend_from_slice(name);
                told.extend_from_slice(b"\":");
                told.extend_from_slice(value);
            }
        }
        told.push(b'}');
        Some(Bytes::from(told).into())
    }

    /// The row's `id`, new or old, as text; of a device its `device_id`. A message is told from others by its place.
    pub fn row_id(&self) -> Option<Text> {
        if self.op == Op::Message {
            return Some(self.id.to_string().into());
        }
        [&self.row, &self.old]
            .into_iter()
            .flatten()
            .find_map(|row| self.id_of(row))
    }

    /// The id by which a reader knew the row until now, where that was another one.
    pub fn former_id(&self) -> Option<Text> {
        let (row, old) = (self.row.as_ref()?, self.old.as_ref()?);
        let former = self.id_of(old)?;
        (self.id_of(row)? != former).then_some(former)
    }

    fn id_of(&self, row: &Text) -> Option<Text> {
        let column: &[u8] = match self.table.as_bytes() {
            b"devices" => b"device_id",
            _ => b"id",
        };
        let (_, id) = members(row.as_bytes()).find(|(name, _)| *name == column)?;
        match id {
            b"null" => None,
            [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => Some(row.part(plain)),
            [b'"', ..] => serde_json::from_slice::<String>(id).ok().map(Text::from),
            _ => Some(row.part(id)),
        }
    }

    /// Roughly how much memory it takes.
    pub fn bytes(&self) -> usize {
        let length = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.as_bytes().len());
        128 + length(&self.row) + length(&self.old)
    }
}

/// The parts of an entry that are the same for all its audiences, encoded once.
#[derive(Debug, Default)]
pub struct EntryBody {
    pub encoded: BytesMut,
    pub arguments: usize,
}

/// Where a change comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Schema of the table.
    pub schema: &'a str,
    /// The table.
    pub table: &'a str,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    /// Transaction id.
    pub xid: u32,
}

impl EntryBody {
    /// Starts anew for another change.
    pub fn begin(&mut self, source: &Source<'_>) {
        self.encoded.clear();
        self.arguments = 0;
        self.field("schema", source.schema.as_bytes());
        self.field("table", source.table.as_bytes());
        self.field("ts", itoa::Buffer::new().format(source.commit_ts).as_bytes());
        self.field("xid", itoa::Buffer::new().format(source.xid).as_bytes());
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// Adds a field.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        resp::argument(&mut self.encoded, name.as_bytes());
        resp::argument(&mut self.encoded, value);
        self.arguments += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_id(row: &str) -> Option<String> {
        let reply = format!(
            "*1\r\n*2\r\n$3\r\n7-1\r\n*4\r\n$2\r\nop\r\n$6\r\ninsert\r\n$3\r\nrow\r\n${}\r\n{row}\r\n",
            row.len()
        );
        let reply = Bytes::from(reply);
        let entries = Entry::parse_range(&reply).unwrap();
        assert_eq!(
            (entries.len(), entries[0].id, entries[0].op),
            (1, StreamId { ms: 7, seq: 1 }, Op::Insert)
        );
        entries[0].row_id().map(|id| id.to_string())
    }

    #[test]
    fn of_encrypted_state_live_events_tell_key_version_and_device_and_no_bytes() {
        let row =
            r#"{"id":"i","user_id":"u","key":"a\"b","state":"c2VjcmV0","nonce":"bg==","version":3,"device_id":null}"#;
        let mut entry = Entry {
            op: Op::Update,
            table: "encrypted_states".to_owned().into(),
            row: Some(row.to_owned().into()),
            ..Entry::default()
        };
        let told = entry.told().map(|told| told.to_string());
        assert_eq!(told.as_deref(), Some(r#"{"key":"a\"b","version":3,"device_id":null}"#));
        entry.table = "messages".to_owned().into();
        assert_eq!(entry.told(), None);
    }

    #[test]
    fn a_rows_id_is_its_text_whatever_its_type() {
        assert_eq!(row_id(r#"{"name":"id","id":"a-b"}"#).as_deref(), Some("a-b"));
        assert_eq!(row_id(r#"{"id":17,"owner":null}"#).as_deref(), Some("17"));
        assert_eq!(row_id(r#"{"id":"a\"b"}"#).as_deref(), Some("a\"b"));
        assert_eq!(row_id(r#"{"id":null}"#), None);
        assert_eq!(row_id(r#"{"other":1}"#), None);
    }
}
