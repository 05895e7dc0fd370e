//! Entries of a tenant's streams: [`EntryBody`] writes their fields, [`Entry`] reads them.
//!
//! `changes` is an interface for other programs: each of its entries has a field for each thing, and the old row. The streams
//! that devices and pages read, `shared`, `inbox` and those of groups, have two fields, `head` ([`super::head`]) and `row`:
//! Redis works on each field, and a change has one entry for each of its readers. Of the old row they have what a reader
//! needs to remove it. Entries of `quarantine` contain an [`EntryBody`] as well.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

use super::group::{self, Membership};
use super::head::{self, Head};
use super::json::members;
use crate::core::json::write_string;
use crate::core::operation::Operation;
use crate::core::position::StreamId;
use crate::core::resp::{self, Reader, RespError};

use crate::config::rule::{MESSAGE_READS, MESSAGES};

pub use crate::config::rule::ENCRYPTED_STATES;

const OP: &[u8] = b"op";
const SCHEMA: &[u8] = b"schema";
const TABLE: &[u8] = b"table";
const TS: &[u8] = b"ts";
const XID: &[u8] = b"xid";
const ROW: &[u8] = b"row";
const OLD: &[u8] = b"old";
const UNCHANGED: &[u8] = b"unchanged";
const CONTENT: &[u8] = b"content";
const HEAD: &[u8] = head::NAME.as_bytes();

/// Names of an entry's fields; no other file contains them as names of fields.
pub const FIELDS: [&str; 9] = ["op", "schema", "table", "ts", "xid", "row", "old", "unchanged", "head"];

/// Names of the fields of an entry of `changes`.
pub const CHANGES_FIELDS: [&str; 8] = ["op", "schema", "table", "ts", "xid", "row", "old", "unchanged"];

/// Names of the fields of an entry that devices and pages read; `op` and `ts` are those of the `reset` with which a stream
/// starts.
pub const DELIVERED_FIELDS: [&str; 4] = ["op", "ts", "head", "row"];

/// Names of the fields that an [`EntryBody`] adds to an entry of the quarantine.
pub const QUARANTINED_FIELDS: [&str; 8] = ["schema", "table", "ts", "xid", "row", "old", "unchanged", "content"];

/// The columns of a table, in the order of rows, whose values live events contain beside the row's id.
pub fn live_columns(table: &str) -> &'static [&'static str] {
    match table {
        ENCRYPTED_STATES => &["key", "version", "device_id"],
        "devices" => &["device_id", "name", "device_type"],
        MESSAGE_READS => &["group_name", "group_id", "number"],
        _ => &[],
    }
}

/// The columns of a table that readers need when the row is deleted or its id changes: first the one with the id that they
/// know the row by, then what events about it contain.
pub fn removal_columns(table: &str) -> &'static [&'static str] {
    match table {
        ENCRYPTED_STATES => &["id", "key", "version", "device_id", "updated_at"],
        "devices" => live_columns(table),
        _ => &["id"],
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
    /// Schema of the table; only in `changes`.
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
    /// The old row as JSON; beside `changes` only [`removal_columns`], where the row is deleted or its id has changed.
    pub old: Option<Text>,
    /// Columns that the WAL left out, as a JSON array.
    pub unchanged: Option<Text>,
    /// The audiences that see the row after the change, as a JSON array; only of tables that a group sees, and of messages to
    /// groups.
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
            ROW => self.row = Some(Text(bytes())),
            OLD => self.old = Some(Text(bytes())),
            UNCHANGED => self.unchanged = Some(Text(bytes())),
            HEAD => self.set_head(&bytes()),
            _ => {}
        }
    }

    fn set_head(&mut self, head: &Bytes) {
        let parts = head::Parts::of(head);
        self.op = parts.op;
        self.table = text(head, parts.table).unwrap_or_default();
        self.event = text(head, parts.event).filter(|event| !event.as_bytes().is_empty());
        self.commit_ts = parse(parts.commit_ts);
        self.xid = parse(parts.xid);
        for (name, json) in parts.members() {
            let value = Some(Text(head.slice_ref(json)));
            match std::str::from_utf8(name) {
                Ok(head::OLD) => self.old = value,
                Ok(head::UNCHANGED) => self.unchanged = value,
                Ok(head::VIA) => self.via = value,
                Ok(head::MEMBERSHIPS) => self.member = text(head, json),
                _ => {}
            }
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

    /// What live events contain beside the row's id, JSON: the data of an outbox message, the group of a message, some columns
    /// of some tables.
    pub fn payload(&self) -> Option<Text> {
        if self.op == Operation::Message {
            return self.row.clone();
        }
        if let Some(payload) = group::payload(&self.memberships()) {
            return Some(payload.into());
        }
        if self.table.as_bytes() == MESSAGES.as_bytes() {
            let via = self.via.as_ref().filter(|_| self.op != Operation::Delete)?;
            return Some(group::message_payload(&group::of_message(via.as_str())?).into());
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
            [b'"', ..] => text(&row.0, id),
            _ => Some(Text(row.0.slice_ref(id))),
        }
    }

    /// Roughly how much memory it takes.
    pub fn bytes(&self) -> usize {
        let length = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.as_bytes().len());
        128 + length(&self.row) + length(&self.old)
    }
}

/// The text of a JSON string within bytes, whose memory it shares where it has no escapes.
fn text(bytes: &Bytes, json: &[u8]) -> Option<Text> {
    match json {
        [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => Some(Text(bytes.slice_ref(plain))),
        _ => serde_json::from_slice::<String>(json).ok().map(Text::from),
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

/// What the entries of a change have in common, encoded once.
#[derive(Debug, Default)]
pub struct EntryBody {
    /// The fields of an entry of `changes`, beside its operation.
    encoded: BytesMut,
    arguments: usize,
    /// Where the field `row` is in them.
    row: Range<usize>,
    head: Head,
    /// What readers need to remove the row, JSON.
    removed: Vec<u8>,
    /// The id has changed, so that readers of the new row need it as well.
    is_renamed: bool,
    /// A reader for whom the row is deleted may see it as a member of a group.
    has_via: bool,
}

impl EntryBody {
    /// Replaces the content by the fields of another change's source.
    pub fn begin(&mut self, source: &Source<'_>) {
        self.encoded.clear();
        self.arguments = 0;
        self.row = 0..0;
        self.removed.clear();
        self.is_renamed = false;
        self.has_via = false;
        self.head.begin(source.table, source.commit_ts, source.xid);
        self.field(SCHEMA, source.schema.as_bytes());
        self.field(TABLE, source.table.as_bytes());
        self.field(TS, itoa::Buffer::new().format(source.commit_ts).as_bytes());
        self.field(XID, itoa::Buffer::new().format(source.xid).as_bytes());
    }

    /// Adds the row, or the data of an outbox message, as JSON.
    pub fn row(&mut self, json: &[u8]) {
        let start = self.encoded.len();
        self.field(ROW, json);
        self.row = start..self.encoded.len();
    }

    /// Adds the old row as JSON.
    pub fn old(&mut self, json: &[u8]) {
        self.field(OLD, json);
    }

    /// Adds what readers need to remove the row, a JSON object of [`removal_columns`].
    pub fn removed(&mut self, json: &[u8], is_renamed: bool) {
        self.removed.clear();
        self.removed.extend_from_slice(json);
        self.is_renamed = is_renamed;
    }

    /// Adds the names of the columns that the WAL left out, as a JSON array.
    pub fn unchanged(&mut self, json: &[u8]) {
        self.field(UNCHANGED, json);
        self.head.member(head::UNCHANGED, json);
    }

    /// Adds for readers who sees the row after the change, as a JSON array.
    pub fn via(&mut self, json: &[u8]) {
        self.head.member(head::VIA, json);
        self.has_via = true;
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
    pub fn changes_arguments(&self) -> usize {
        2 + self.arguments
    }

    /// Appends the fields of an entry of `changes` as arguments of a command.
    pub fn write(&self, out: &mut BytesMut, op: Operation) {
        resp::argument(out, OP);
        resp::argument(out, op.as_str().as_bytes());
        out.extend_from_slice(&self.encoded);
    }

    /// How many arguments [`EntryBody::write_delivered`] appends.
    pub fn delivered_arguments(&self, op: Operation) -> usize {
        if self.row_of(op).is_empty() { 2 } else { 4 }
    }

    /// Appends the fields of an entry that devices and pages read as arguments of a command.
    pub fn write_delivered(&self, out: &mut BytesMut, op: Operation, event: Option<&str>, memberships: &[Membership]) {
        let mut own: Vec<(&str, &[u8])> = Vec::new();
        let mut json = Vec::new();
        if (op == Operation::Delete || self.is_renamed) && !self.removed.is_empty() {
            own.push((head::OLD, &self.removed));
        }
        if !memberships.is_empty() {
            write_string(&group::write(memberships), &mut json);
            own.push((head::MEMBERSHIPS, &json));
        }
        resp::argument(out, HEAD);
        self.head.write(out, op, event, &own);
        out.extend_from_slice(self.row_of(op));
    }

    /// The field `row`, encoded; a reader who no longer sees the row by any way needs none.
    fn row_of(&self, op: Operation) -> &[u8] {
        match op {
            Operation::Delete if !self.has_via => &[],
            _ => &self.encoded[self.row.clone()],
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

    /// An entry of these fields, read from a reply and from a client library.
    fn read(arguments: &[u8], count: usize, names: &[&str]) -> [Entry; 2] {
        let range = format!("*1\r\n*2\r\n$3\r\n7-1\r\n*{count}\r\n");
        let range = Bytes::from([range.as_bytes(), arguments].concat());
        let mut entries = Entry::parse_range(&range).unwrap();
        assert_eq!(entries.len(), 1);
        let fields = fields(arguments, count);
        assert!(
            fields.iter().all(|(name, _)| names.contains(&name.as_str())),
            "{fields:?}"
        );
        let pairs = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        [entries.remove(0), Entry::from_fields(StreamId { ms: 7, seq: 1 }, pairs)]
    }

    proptest! {
        #[test]
        fn entry_reads_what_the_body_wrote(
            operation in prop::sample::select(Operation::ALL.to_vec()),
            (schema, table) in any::<(String, String)>(),
            (commit_ts, xid) in any::<(i64, u32)>(),
            texts in any::<[Option<String>; 5]>(),
            (joins, is_renamed) in any::<(bool, bool)>(),
        ) {
            let mut body = EntryBody::default();
            body.begin(&Source { schema: "former", table: "former", commit_ts: 1, xid: 2 });
            body.row(b"{}");
            body.via(b"[]");
            body.removed(b"{}", true);
            body.begin(&Source { schema: &schema, table: &table, commit_ts, xid });
            let json = |text: String| serde_json::json!({ "id": text }).to_string();
            let [event, row, old, unchanged, via] = texts;
            let [row, old, unchanged, via] = [row, old, unchanged, via].map(|text| text.map(json));
            let event = event.filter(|event| !event.is_empty());
            let memberships: Vec<Membership> = joins.then(|| Membership::Join("list:42".parse().unwrap())).into_iter().collect();
            if let Some(row) = &row { body.row(row.as_bytes()); }
            if let Some(old) = &old {
                body.old(old.as_bytes());
                body.removed(old.as_bytes(), is_renamed);
            }
            if let Some(unchanged) = &unchanged { body.unchanged(unchanged.as_bytes()); }
            if let Some(via) = &via { body.via(via.as_bytes()); }
            let text = |text: &Option<String>| text.clone().map(Text::from);
            let in_changes = Entry {
                id: StreamId { ms: 7, seq: 1 },
                op: operation,
                schema: schema.into(),
                table: table.into(),
                commit_ts: Some(commit_ts),
                xid: Some(xid),
                row: text(&row),
                old: text(&old),
                unchanged: text(&unchanged),
                ..Entry::default()
            };
            let is_deleted = operation == Operation::Delete;
            let delivered = Entry {
                schema: Text::default(),
                event: text(&event),
                row: in_changes.row.clone().filter(|_| !is_deleted || via.is_some()),
                old: in_changes.old.clone().filter(|_| is_deleted || is_renamed),
                via: text(&via),
                member: joins.then(|| "+list:42".to_owned().into()),
                ..in_changes.clone()
            };

            let mut out = BytesMut::new();
            body.write(&mut out, operation);
            for entry in read(&out, body.changes_arguments(), &CHANGES_FIELDS) {
                prop_assert_eq!(&entry, &in_changes);
            }
            out.clear();
            body.write_delivered(&mut out, operation, event.as_deref(), &memberships);
            for entry in read(&out, body.delivered_arguments(operation), &DELIVERED_FIELDS) {
                prop_assert_eq!(&entry, &delivered);
            }
        }
    }

    #[test]
    fn names_of_fields_are_those_of_both_forms() {
        let both = CHANGES_FIELDS.iter().chain(&DELIVERED_FIELDS);
        let both: std::collections::BTreeSet<&str> = both.copied().collect();
        assert_eq!(both, FIELDS.into_iter().collect());
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
