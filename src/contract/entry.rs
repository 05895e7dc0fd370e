//! Entries of the streams `changes`, `shared` and `inbox`: [`EntryBody`] writes their fields, [`Entry`] reads them. Entries
//! of `quarantine` contain an [`EntryBody`] as well.

use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

use super::group::{self, Membership};
use super::json::members;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::core::resp::{self, Reader, RespError};

pub use crate::config::rule::ENCRYPTED_STATES;

const OP: &[u8] = b"op";
const SCHEMA: &[u8] = b"schema";
const TABLE: &[u8] = b"table";
const TS: &[u8] = b"ts";
const XID: &[u8] = b"xid";
const EVENT: &[u8] = b"event";
const ROW: &[u8] = b"row";
const OLD: &[u8] = b"old";
const UNCHANGED: &[u8] = b"unchanged";
const VIA: &[u8] = b"via";
const MEMBER: &[u8] = b"memberships";
const CONTENT: &[u8] = b"content";

/// Names of an entry's fields; no other file contains them as names of fields.
pub const FIELDS: [&str; 11] = [
    "op",
    "schema",
    "table",
    "ts",
    "xid",
    "event",
    "row",
    "old",
    "unchanged",
    "via",
    "memberships",
];

/// Names of the fields of an entry of `changes`.
pub const CHANGES_FIELDS: [&str; 8] = ["op", "schema", "table", "ts", "xid", "row", "old", "unchanged"];

/// Names of the fields that an [`EntryBody`] adds to an entry of the quarantine.
pub const QUARANTINED_FIELDS: [&str; 8] = ["schema", "table", "ts", "xid", "row", "old", "unchanged", "content"];

/// The columns of a table, in the order of rows, whose values live events contain beside the row's id.
pub fn live_columns(table: &str) -> &'static [&'static str] {
    match table {
        ENCRYPTED_STATES => &["key", "version", "device_id"],
        "devices" => &["device_id", "name", "device_type"],
        _ => &[],
    }
}

/// A text that shares the memory of the reply that contained it. Postgres printed it, so it is UTF-8; only
/// [`Text::as_str`] checks that.
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

/// An entry. A field that is missing or malformed is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    pub id: StreamId,
    pub op: Operation,
    /// Schema of the table.
    pub schema: Text,
    pub table: Text,
    /// Commit time, µs since 1970.
    pub commit_ts: Option<i64>,
    /// Transaction id.
    pub xid: Option<u32>,
    /// The live event's name; not in `changes`.
    pub event: Option<Text>,
    /// The row as JSON.
    pub row: Option<Text>,
    /// The old row as JSON.
    pub old: Option<Text>,
    /// Columns that the WAL left out, as a JSON array.
    pub unchanged: Option<Text>,
    /// The audiences that see the row after the change, as a JSON array; only of tables that a group sees.
    pub via: Option<Text>,
    /// Groups that the user joined or left by the change, see [`super::group::read`].
    pub member: Option<Text>,
}

impl Entry {
    /// Reads the entries of a reply that is one range.
    pub fn parse_range(reply: &Bytes) -> Result<Vec<Self>, RespError> {
        Self::read_range(&mut Reader::new(reply), reply)
    }

    /// Reads the entries of a range. An entry without a position is left out.
    pub(crate) fn read_range(reader: &mut Reader<'_>, reply: &Bytes) -> Result<Vec<Self>, RespError> {
        let count = reader.array()?;
        let mut entries = Vec::with_capacity(count.min(reply.len() / 16));
        for _ in 0..count {
            entries.extend(Self::read(reader, reply)?);
        }
        Ok(entries)
    }

    fn read(reader: &mut Reader<'_>, reply: &Bytes) -> Result<Option<Self>, RespError> {
        reader.array()?;
        let id = parse(reader.text()?);
        let mut entry = Self {
            id: id.unwrap_or_default(),
            ..Self::default()
        };
        for _ in 0..reader.array()? / 2 {
            let (name, value) = (reader.text()?, reader.text()?);
            entry.set(name, value, || reply.slice_ref(value));
        }
        Ok(id.map(|_| entry))
    }

    /// Reads an entry from the reply of a client library.
    pub fn from_fields<'a>(id: StreamId, fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut entry = Self { id, ..Self::default() };
        for (name, value) in fields {
            entry.set(name.as_bytes(), value, || Bytes::copy_from_slice(value));
        }
        entry
    }

    fn set(&mut self, name: &[u8], value: &[u8], bytes: impl FnOnce() -> Bytes) {
        match name {
            OP => self.op = Operation::parse(value),
            SCHEMA => self.schema = Text(bytes()),
            TABLE => self.table = Text(bytes()),
            TS => self.commit_ts = parse(value),
            XID => self.xid = parse(value),
            EVENT => self.event = Some(Text(bytes())),
            ROW => self.row = Some(Text(bytes())),
            OLD => self.old = Some(Text(bytes())),
            UNCHANGED => self.unchanged = Some(Text(bytes())),
            VIA => self.via = Some(Text(bytes())),
            MEMBER => self.member = Some(Text(bytes())),
            _ => {}
        }
    }

    /// The live event's name, empty when there is none.
    pub fn event_name(&self) -> &str {
        self.event.as_ref().map_or("", Text::as_str)
    }

    /// Groups that the user joined or left by the change, those left first.
    pub fn memberships(&self) -> Vec<Membership> {
        self.member
            .as_ref()
            .map_or(Vec::new(), |text| group::read(text.as_str()))
    }

    /// What live events contain beside the row's id, JSON: the data of a message, some columns of some tables.
    pub fn payload(&self) -> Option<Text> {
        if self.op == Operation::Message {
            return self.row.clone();
        }
        if let Some(membership) = self.memberships().last() {
            return Some(membership.payload().into());
        }
        let columns = live_columns(self.table.as_str());
        if columns.is_empty() {
            return None;
        }
        let row = self.row.as_ref().or(self.old.as_ref())?;
        let mut payload = vec![b'{'];
        for (name, value) in members(row.as_bytes()) {
            if columns.iter().any(|column| column.as_bytes() == name) {
                if payload.len() > 1 {
                    payload.push(b',');
                }
                payload.push(b'"');
                payload.extend_from_slice(name);
                payload.extend_from_slice(b"\":");
                payload.extend_from_slice(value);
            }
        }
        payload.push(b'}');
        Some(Bytes::from(payload).into())
    }

    /// The row's `id`, new or old, as text; of a device its `device_id`. The id of a message is its position.
    pub fn row_id(&self) -> Option<Text> {
        if self.op == Operation::Message {
            return Some(self.id.to_string().into());
        }
        [&self.row, &self.old]
            .into_iter()
            .flatten()
            .find_map(|row| self.id_of(row))
    }

    /// The row's previous id, when the change replaced it.
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

fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Where a change comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Schema of the table.
    pub schema: &'a str,
    pub table: &'a str,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    /// Transaction id.
    pub xid: u32,
}

/// The fields of an entry that are the same for all its audiences, encoded once.
#[derive(Debug, Default)]
pub struct EntryBody {
    encoded: BytesMut,
    arguments: usize,
}

impl EntryBody {
    /// Replaces the content by the fields of another change's source.
    pub fn begin(&mut self, source: &Source<'_>) {
        self.encoded.clear();
        self.arguments = 0;
        self.field(SCHEMA, source.schema.as_bytes());
        self.field(TABLE, source.table.as_bytes());
        self.field(TS, itoa::Buffer::new().format(source.commit_ts).as_bytes());
        self.field(XID, itoa::Buffer::new().format(source.xid).as_bytes());
    }

    /// Adds the row, or the data of an outbox message, as JSON.
    pub fn row(&mut self, json: &[u8]) {
        self.field(ROW, json);
    }

    /// Adds the old row as JSON.
    pub fn old(&mut self, json: &[u8]) {
        self.field(OLD, json);
    }

    /// Adds the names of the columns that the WAL left out, as a JSON array.
    pub fn unchanged(&mut self, json: &[u8]) {
        self.field(UNCHANGED, json);
    }

    /// Adds who sees the row after the change, as a JSON array.
    pub fn via(&mut self, json: &[u8]) {
        self.field(VIA, json);
    }

    /// Adds the content of a malformed outbox message.
    pub fn content(&mut self, content: &[u8]) {
        self.field(CONTENT, content);
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// How many arguments of a command its fields are.
    pub fn arguments(&self) -> usize {
        self.arguments
    }

    /// Its fields, encoded as arguments of a command.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// How many arguments [`EntryBody::write`] appends.
    pub fn entry_arguments(&self, event: Option<&str>, memberships: &[Membership]) -> usize {
        2 + self.arguments + 2 * usize::from(event.is_some()) + 2 * usize::from(!memberships.is_empty())
    }

    /// Appends the fields of an entry as arguments of a command.
    pub fn write(&self, out: &mut BytesMut, op: Operation, event: Option<&str>, memberships: &[Membership]) {
        resp::argument(out, OP);
        resp::argument(out, op.as_str().as_bytes());
        out.extend_from_slice(&self.encoded);
        if let Some(event) = event {
            resp::argument(out, EVENT);
            resp::argument(out, event.as_bytes());
        }
        if !memberships.is_empty() {
            resp::argument(out, MEMBER);
            resp::argument(out, group::write(memberships).as_bytes());
        }
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        resp::argument(&mut self.encoded, name);
        resp::argument(&mut self.encoded, value);
        self.arguments += 2;
    }
}

/// How many arguments [`write_reset`] appends.
pub const RESET_ARGUMENTS: usize = 4;

/// Appends the fields of a `reset` entry, with which a stream starts, as arguments of a command.
pub fn write_reset(out: &mut BytesMut, commit_ts: i64) {
    resp::argument(out, OP);
    resp::argument(out, Operation::Reset.as_str().as_bytes());
    resp::argument(out, TS);
    resp::argument(out, itoa::Buffer::new().format(commit_ts).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row_id(row: &str) -> Option<String> {
        let reply = format!(
            "*1\r\n*2\r\n$3\r\n7-1\r\n*4\r\n$2\r\nop\r\n$6\r\ninsert\r\n$3\r\nrow\r\n${}\r\n{row}\r\n",
            row.len()
        );
        let reply = Bytes::from(reply);
        let entries = Entry::parse_range(&reply).unwrap();
        assert_eq!(
            (entries.len(), entries[0].id, entries[0].op),
            (1, StreamId { ms: 7, seq: 1 }, Operation::Insert)
        );
        entries[0].row_id().map(|id| id.to_string())
    }

    #[test]
    fn payload_of_encrypted_state_has_key_version_and_device() {
        let row =
            r#"{"id":"i","user_id":"u","key":"a\"b","state":"c2VjcmV0","nonce":"bg==","version":3,"device_id":null}"#;
        let mut entry = Entry {
            op: Operation::Update,
            table: ENCRYPTED_STATES.to_owned().into(),
            row: Some(row.to_owned().into()),
            ..Entry::default()
        };
        let payload = entry.payload().map(|payload| payload.to_string());
        assert_eq!(
            payload.as_deref(),
            Some(r#"{"key":"a\"b","version":3,"device_id":null}"#)
        );
        entry.table = "messages".to_owned().into();
        assert_eq!(entry.payload(), None);
    }

    #[test]
    fn row_id_of_any_type_is_its_text() {
        assert_eq!(row_id(r#"{"name":"id","id":"a-b"}"#).as_deref(), Some("a-b"));
        assert_eq!(row_id(r#"{"id":17,"owner":null}"#).as_deref(), Some("17"));
        assert_eq!(row_id(r#"{"id":"a\"b"}"#).as_deref(), Some("a\"b"));
        assert_eq!(row_id(r#"{"id":null}"#), None);
        assert_eq!(row_id(r#"{"other":1}"#), None);
    }

    /// The pairs of fields that were written as arguments of a command.
    fn fields(arguments: &[u8], count: usize) -> Vec<(String, Vec<u8>)> {
        let reply = [format!("*{count}\r\n").as_bytes(), arguments].concat();
        let mut reader = Reader::new(&reply);
        let count = reader.array().unwrap();
        let mut pair = || {
            let name = String::from_utf8(reader.text().unwrap().to_vec()).unwrap();
            (name, reader.text().unwrap().to_vec())
        };
        (0..count / 2).map(|_| pair()).collect()
    }

    proptest! {
        #[test]
        fn entry_reads_what_the_body_wrote(
            operation in prop::sample::select(Operation::ALL.to_vec()),
            (schema, table) in any::<(String, String)>(),
            (commit_ts, xid) in any::<(i64, u32)>(),
            texts in any::<[Option<String>; 5]>(),
            joins in any::<bool>(),
        ) {
            let mut body = EntryBody::default();
            body.begin(&Source { schema: &schema, table: &table, commit_ts, xid });
            let [event, row, old, unchanged, via] = texts;
            let memberships: Vec<Membership> = joins.then(|| Membership::Join("list:42".parse().unwrap())).into_iter().collect();
            if let Some(row) = &row { body.row(row.as_bytes()); }
            if let Some(old) = &old { body.old(old.as_bytes()); }
            if let Some(unchanged) = &unchanged { body.unchanged(unchanged.as_bytes()); }
            if let Some(via) = &via { body.via(via.as_bytes()); }
            let mut out = BytesMut::new();
            body.write(&mut out, operation, event.as_deref(), &memberships);

            let arguments = body.entry_arguments(event.as_deref(), &memberships);
            let range = format!("*1\r\n*2\r\n$3\r\n7-1\r\n*{arguments}\r\n");
            let range = Bytes::from([range.as_bytes(), &out].concat());
            let text = |text: Option<String>| text.map(Text::from);
            let expected = Entry {
                id: StreamId { ms: 7, seq: 1 },
                op: operation,
                schema: schema.into(),
                table: table.into(),
                commit_ts: Some(commit_ts),
                xid: Some(xid),
                event: text(event),
                row: text(row),
                old: text(old),
                unchanged: text(unchanged),
                via: text(via),
                member: joins.then(|| "+list:42".to_owned().into()),
            };
            prop_assert_eq!(&Entry::parse_range(&range).unwrap(), std::slice::from_ref(&expected));
            let fields = fields(&out, arguments);
            prop_assert!(fields.iter().all(|(name, _)| FIELDS.contains(&name.as_str())));
            let pairs = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            prop_assert_eq!(Entry::from_fields(expected.id, pairs), expected);
        }
    }

    #[test]
    fn body_of_a_malformed_message_has_the_quarantined_fields() {
        let mut body = EntryBody::default();
        body.begin(&Source {
            schema: "s",
            table: "t",
            commit_ts: 1,
            xid: 2,
        });
        body.content(b"c");
        body.row(b"{}");
        body.old(b"{}");
        body.unchanged(b"[]");
        let mut names: Vec<String> = fields(body.encoded(), body.arguments())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let mut expected = QUARANTINED_FIELDS.map(str::to_owned).to_vec();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn reset_entry_has_operation_and_time() {
        let mut out = BytesMut::new();
        write_reset(&mut out, 17);
        let fields = fields(&out, RESET_ARGUMENTS);
        let pairs = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let entry = Entry::from_fields(StreamId::ZERO, pairs);
        assert_eq!((entry.op, entry.commit_ts), (Operation::Reset, Some(17)));
    }
}
