//! Entries of the live stream: [`LiveEntry`] has their fields, [`NoticeWriter`] and [`ChangeNotice`] are the two directions
//! of the notices in them.
//!
//! A notice is a JSON array `[id, tenant, table, row id or null, xid, commit time, [[event, op, users or null, groups], …]]`, where
//! `groups` is left out without any. A
//! payload may follow as the last element: the data of an outbox message, the group of a message, or some columns of the row.

use std::io::Write as _;

use bytes::BytesMut;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::entry::Source;
use super::group::GroupId;
use super::stream_name::Audience;
use crate::core::json::write_string;
use crate::core::operation::Operation;
use crate::core::position::{EpochId, StreamId, TermId};
use crate::core::resp;

/// Names of a live entry's fields: the ID of the entry before it, the epoch, the term, the commit time of the last heartbeat
/// in it (empty when there is none), and the notices.
pub const FIELDS: [&str; 5] = ["prev", "epoch", "term", "heartbeat", "notices"];

/// A live entry. Each names the entry before it, so a missing one shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveEntry {
    pub previous: Option<StreamId>,
    pub epoch: Option<EpochId>,
    pub term: TermId,
    /// Commit time of the last heartbeat in it, µs since 1970.
    pub heartbeat_ts: Option<i64>,
    /// The notices, a JSON array.
    pub notices: String,
}

impl LiveEntry {
    /// Reads the texts of [`FIELDS`], which `field` returns by name. A field that is missing or malformed is empty.
    pub fn parse(field: impl Fn(&str) -> Option<String>) -> Self {
        fn parse<T: std::str::FromStr>(text: Option<String>) -> Option<T> {
            text?.parse().ok()
        }
        let [previous, epoch, term, heartbeat, notices] = FIELDS;
        Self {
            previous: parse(field(previous)),
            epoch: parse(field(epoch)),
            term: parse(field(term)).unwrap_or(TermId::EARLIER_VERSIONS),
            heartbeat_ts: parse(field(heartbeat)),
            notices: field(notices).unwrap_or_default(),
        }
    }

    /// Its notices.
    pub fn changes(&self) -> Result<Vec<ChangeNotice>, serde_json::Error> {
        serde_json::from_str(&self.notices)
    }
}

/// How many arguments [`write_entry`] appends.
pub const ARGUMENTS: usize = 2 * FIELDS.len();

/// Appends the fields of a live entry as arguments of a command.
pub fn write_entry(
    out: &mut BytesMut,
    previous: StreamId,
    (epoch, term): (EpochId, TermId),
    heartbeat_ts: Option<i64>,
    notices: &NoticeWriter,
) {
    let texts = [
        previous.to_string(),
        epoch.to_string(),
        term.to_string(),
        heartbeat_ts.map(|ts| ts.to_string()).unwrap_or_default(),
    ];
    let [names @ .., notices_name] = FIELDS;
    for (name, text) in names.iter().zip(&texts) {
        resp::argument(out, name.as_bytes());
        resp::argument(out, text.as_bytes());
    }
    resp::argument(out, notices_name.as_bytes());
    resp::argument_of(out, &[&b"["[..], notices.json(), b"]"]);
}

/// A change, as API nodes receive it.
#[derive(Debug, Deserialize)]
pub struct ChangeNotice {
    #[serde(deserialize_with = "stream_id")]
    pub id: StreamId,
    pub tenant: String,
    /// The table, empty when the notice is about streams or the tenant.
    pub table: String,
    pub row_id: Option<String>,
    /// Transaction id.
    pub xid: u32,
    /// Commit time, µs since 1970.
    pub commit_ts: i64,
    pub recipients: Vec<Recipients>,
    /// The data of an outbox message, the group of a message, or some columns of the row.
    #[serde(default)]
    pub payload: Option<Box<RawValue>>,
}

/// The recipients of one event.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Recipients {
    /// The live event's name.
    pub event: String,
    #[serde(deserialize_with = "operation")]
    pub operation: Operation,
    /// `None` is every user of the tenant.
    pub users: Option<Vec<Uuid>>,
    /// Groups whose members are recipients beside these users.
    #[serde(default, deserialize_with = "groups")]
    pub groups: Vec<GroupId>,
}

fn groups<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<GroupId>, D::Error> {
    let texts = <Vec<std::borrow::Cow<'de, str>>>::deserialize(deserializer)?;
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn stream_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StreamId, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn operation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Operation, D::Error> {
    Ok(Operation::parse(<&str>::deserialize(deserializer)?.as_bytes()))
}

/// Notices of one batch, appended one after the other.
#[derive(Debug, Default)]
pub struct NoticeWriter {
    /// JSON without the brackets around the list.
    json: Vec<u8>,
}

impl NoticeWriter {
    /// Removes all notices, but keeps the memory.
    pub fn clear(&mut self) {
        self.json.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }

    /// The notices so far, as JSON without the brackets around the list.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Appends a notice about a change for these recipients, each with event and operation. Recipients with the same
    /// event and operation become one group.
    pub fn push<'a>(
        &mut self,
        id: StreamId,
        tenant: &str,
        source: &Source<'_>,
        row_id: Option<&[u8]>,
        recipients: impl Iterator<Item = (&'a str, Operation, &'a Audience)> + Clone,
        payload: Option<&[u8]>,
    ) {
        self.begin(id, tenant, source, row_id);
        // Events come from rules, so there are few groups however many recipients there are.
        let mut groups: Vec<(&str, Operation)> = Vec::new();
        for (event, operation, _) in recipients.clone() {
            let group = (event, operation);
            if groups.last() == Some(&group) || groups.contains(&group) {
                continue;
            }
            groups.push(group);
            let of_group = recipients.clone().filter(|other| (other.0, other.1) == group);
            self.group(event, operation, of_group.map(|(_, _, audience)| audience));
        }
        self.end(payload);
    }

    fn begin(&mut self, id: StreamId, tenant: &str, source: &Source<'_>, row_id: Option<&[u8]>) {
        let out = &mut self.json;
        if !out.is_empty() {
            out.push(b',');
        }
        let _ = write!(out, "[\"{id}\",");
        write_string(tenant, out);
        out.push(b',');
        write_string(source.table, out);
        out.push(b',');
        match row_id.and_then(|bytes| std::str::from_utf8(bytes).ok()) {
            Some(text) => write_string(text, out),
            None => out.extend_from_slice(b"null"),
        }
        let _ = write!(out, ",{},{},[", source.xid, source.commit_ts);
    }

    fn group<'a>(&mut self, event: &str, operation: Operation, audiences: impl Iterator<Item = &'a Audience> + Clone) {
        let out = &mut self.json;
        if out.last() == Some(&b']') {
            out.push(b',');
        }
        out.push(b'[');
        write_string(event, out);
        let _ = write!(out, ",\"{}\",", operation.as_str());
        let start = out.len();
        out.push(b'[');
        for audience in audiences.clone() {
            match audience {
                Audience::User(user) => {
                    if out.len() > start + 1 {
                        out.push(b',');
                    }
                    out.push(b'"');
                    out.extend_from_slice(user.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
                    out.push(b'"');
                }
                Audience::Tenant => {
                    out.truncate(start);
                    out.extend_from_slice(b"null]");
                    return;
                }
                Audience::Group(_) => {}
            }
        }
        out.push(b']');
        let mut is_first = true;
        for audience in audiences {
            if let Audience::Group(group) = audience {
                out.extend_from_slice(if is_first { b",[" } else { b"," });
                is_first = false;
                write_string(&group.to_string(), out);
            }
        }
        if !is_first {
            out.push(b']');
        }
        out.push(b']');
    }

    fn end(&mut self, payload: Option<&[u8]>) {
        self.json.push(b']');
        if let Some(payload) = payload {
            self.json.push(b',');
            self.json.extend_from_slice(payload);
        }
        self.json.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::resp::Reader;
    use proptest::prelude::*;

    fn recipients() -> impl Strategy<Value = Vec<(String, Operation, Audience)>> {
        let audience = prop_oneof![
            4 => any::<u128>().prop_map(|id| Audience::User(Uuid::from_u128(id))),
            1 => Just(Audience::Tenant),
            2 => "[!-~]{1,9}".prop_map(|id| Audience::Group(GroupId::new(&"list".into(), id.as_bytes()).unwrap())),
        ];
        let operation = prop::sample::select(Operation::ALL.to_vec());
        proptest::collection::vec(("[a-c]", operation, audience), 1..12)
    }

    /// The groups in the order of their first recipients.
    fn grouped(recipients: &[(String, Operation, Audience)]) -> Vec<Recipients> {
        let mut groups: Vec<Recipients> = Vec::new();
        for (event, operation, audience) in recipients {
            let is_same = |group: &&mut Recipients| group.event == *event && group.operation == *operation;
            let group = match groups.iter_mut().find(is_same) {
                Some(group) => group,
                None => {
                    groups.push(Recipients {
                        event: event.clone(),
                        operation: *operation,
                        users: Some(Vec::new()),
                        groups: Vec::new(),
                    });
                    groups.last_mut().unwrap()
                }
            };
            match (audience, &mut group.users) {
                (Audience::User(user), Some(users)) => users.push(*user),
                (Audience::Tenant, users) => {
                    *users = None;
                    group.groups.clear();
                }
                (Audience::Group(id), Some(_)) => group.groups.push(id.clone()),
                (Audience::User(_) | Audience::Group(_), None) => {}
            }
        }
        groups
    }

    proptest! {
        #[test]
        fn live_entry_and_its_notices_read_as_written(
            notices in proptest::collection::vec(
                (
                    any::<(u64, u64)>(), any::<String>(), any::<Option<String>>(), any::<(u32, i64)>(),
                    recipients(), any::<Option<i64>>(),
                ),
                0..4,
            ),
            (epoch, heartbeat_ts) in any::<(u64, Option<i64>)>(),
        ) {
            let (previous, epoch) = (StreamId { ms: epoch, seq: 1 }, EpochId(epoch));
            let mut writer = NoticeWriter::default();
            for ((ms, seq), table, row_id, (xid, commit_ts), recipients, payload) in &notices {
                let source = Source { schema: "s", table, commit_ts: *commit_ts, xid: *xid };
                let recipients = recipients.iter().map(|(event, operation, audience)| (&**event, *operation, audience));
                let payload = payload.map(|payload| payload.to_string());
                let row_id = row_id.as_ref().map(|text| text.as_bytes());
                let payload = payload.as_ref().map(|text| text.as_bytes());
                writer.push(StreamId { ms: *ms, seq: *seq }, "acme", &source, row_id, recipients, payload);
            }
            let mut out = BytesMut::new();
            let term = TermId(!epoch.0);
            write_entry(&mut out, previous, (epoch, term), heartbeat_ts, &writer);
            let reply = [format!("*{ARGUMENTS}\r\n").as_bytes(), &out].concat();
            let texts: Vec<String> = Reader::new(&reply).texts().unwrap().into_iter().flatten().collect();
            let (pairs, _) = texts.as_chunks::<2>();
            let field = |name: &str| pairs.iter().find(|[key, _]| key == name).map(|[_, value]| value.clone());
            let entry = LiveEntry::parse(field);
            prop_assert_eq!((entry.previous, entry.epoch, entry.heartbeat_ts), (Some(previous), Some(epoch), heartbeat_ts));
            prop_assert_eq!(entry.term, term);
            let read = entry.changes().unwrap();
            prop_assert_eq!(read.len(), notices.len());
            for (read, ((ms, seq), table, row_id, (xid, commit_ts), recipients, payload)) in read.iter().zip(&notices) {
                prop_assert_eq!(read.id, StreamId { ms: *ms, seq: *seq });
                prop_assert_eq!((&*read.tenant, &read.table, &read.row_id), ("acme", table, row_id));
                prop_assert_eq!((read.xid, read.commit_ts), (*xid, *commit_ts));
                prop_assert_eq!(&read.recipients, &grouped(recipients));
                let read = read.payload.as_ref().map(|payload| payload.get().to_owned());
                prop_assert_eq!(read, payload.map(|payload| payload.to_string()));
            }
        }
    }
}
