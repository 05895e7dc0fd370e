//! The field `head` of the entries that devices and pages read: what happened to a row, without the row. [`Head`] writes it,
//! [`Parts`] are what is read of it.
//!
//! It is a JSON array `[operation, event, table, commit time, xid]`, and an object may follow with what few entries have:
//! `unchanged`, `via`, `memberships` and `old`. Redis works on each field of an entry, so that one is cheaper than one for
//! each of these (docs/benchmarks.md).

use std::borrow::Cow;

use bytes::BytesMut;

use super::json::{elements, members};
use crate::core::json::write_string;
use crate::core::operation::Operation;
use crate::core::resp;

/// Name of the field.
pub const NAME: &str = "head";

/// Names in the object at the end.
pub const UNCHANGED: &str = "unchanged";
pub const VIA: &str = "via";
pub const MEMBERSHIPS: &str = "memberships";
pub const OLD: &str = "old";

/// What all entries of one change have in common, encoded once.
#[derive(Debug, Default)]
pub struct Head {
    /// `,"<table>",<commit time>,<xid>`.
    place: Vec<u8>,
    /// Members of the object, each behind a comma.
    members: Vec<u8>,
}

impl Head {
    /// Replaces the content by another change's.
    pub fn begin(&mut self, table: &str, commit_ts: i64, xid: u32) {
        self.members.clear();
        self.place.clear();
        self.place.push(b',');
        write_string(table, &mut self.place);
        for number in [itoa::Buffer::new().format(commit_ts), itoa::Buffer::new().format(xid)] {
            self.place.push(b',');
            self.place.extend_from_slice(number.as_bytes());
        }
    }

    /// Adds a member, whose value is JSON, to the entries that follow.
    pub fn member(&mut self, name: &str, json: &[u8]) {
        push_member(&mut self.members, name, json);
    }

    /// Appends the field as an argument of a command. `own` are members of this entry alone.
    pub fn write(&self, out: &mut BytesMut, op: Operation, event: Option<&str>, own: &[(&str, &[u8])]) {
        let mut more = Cow::Borrowed(&*self.members);
        for (name, json) in own {
            push_member(more.to_mut(), name, json);
        }
        let mut event_json = Cow::Borrowed(b"\"\"".as_slice());
        if let Some(event) = event {
            write_string(event, {
                event_json = Cow::Owned(Vec::with_capacity(event.len() + 2));
                event_json.to_mut()
            });
        }
        let op = op.as_str().as_bytes();
        match more.split_first() {
            // The comma before the first member is the one before the object.
            Some((_, members)) => {
                let parts: [&[u8]; 8] = [b"[\"", op, b"\",", &event_json, &self.place, b",{", members, b"}]"];
                resp::argument_of(out, &parts);
            }
            None => {
                let parts: [&[u8]; 6] = [b"[\"", op, b"\",", &event_json, &self.place, b"]"];
                resp::argument_of(out, &parts);
            }
        }
    }
}

fn push_member(members: &mut Vec<u8>, name: &str, json: &[u8]) {
    members.push(b',');
    write_string(name, members);
    members.push(b':');
    members.extend_from_slice(json);
}

/// The parts of the field, as they are written. One that is missing is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts<'a> {
    pub op: Operation,
    /// A JSON string, `""` without an event.
    pub event: &'a [u8],
    /// A JSON string.
    pub table: &'a [u8],
    /// Commit time, µs since 1970.
    pub commit_ts: &'a [u8],
    pub xid: &'a [u8],
    object: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Reads the field.
    pub fn of(head: &'a [u8]) -> Self {
        let mut elements = elements(head);
        let mut next = || elements.next().unwrap_or_default();
        Self {
            op: match next() {
                [b'"', op @ .., b'"'] => Operation::parse(op),
                _ => Operation::Other,
            },
            event: next(),
            table: next(),
            commit_ts: next(),
            xid: next(),
            object: next(),
        }
    }

    /// Names and values of the object at the end.
    pub fn members(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        members(self.object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_those_that_were_written(
            op in prop::sample::select(Operation::ALL.to_vec()),
            (table, event) in any::<(String, Option<String>)>(),
            (commit_ts, xid) in any::<(i64, u32)>(),
            (common, own) in any::<(Option<String>, Option<String>)>(),
        ) {
            let quoted = |text: &str| serde_json::to_string(text).unwrap();
            let mut head = Head::default();
            head.begin("another", 1, 2);
            head.member(VIA, b"[]");
            head.begin(&table, commit_ts, xid);
            if let Some(text) = &common { head.member(VIA, quoted(text).as_bytes()); }
            let own_json = own.as_deref().map(quoted);
            let own_members: Vec<(&str, &[u8])> = own_json.iter().map(|json| (OLD, json.as_bytes())).collect();
            let mut out = BytesMut::new();
            head.write(&mut out, op, event.as_deref(), &own_members);

            let mut reader = resp::Reader::new(&out);
            let text = reader.text().unwrap();
            // Any parser of JSON reads it.
            prop_assert!(serde_json::from_slice::<serde_json::Value>(text).is_ok());
            let parts = Parts::of(text);
            let read = |json: &[u8]| serde_json::from_slice::<String>(json).unwrap();
            prop_assert_eq!(parts.op, op);
            prop_assert_eq!(read(parts.event), event.unwrap_or_default());
            prop_assert_eq!(read(parts.table), table);
            prop_assert_eq!(std::str::from_utf8(parts.commit_ts).unwrap(), commit_ts.to_string());
            prop_assert_eq!(std::str::from_utf8(parts.xid).unwrap(), xid.to_string());
            let found: Vec<(&[u8], String)> = parts.members().map(|(name, json)| (name, read(json))).collect();
            let expected = common.map(|text| (VIA.as_bytes(), text)).into_iter().chain(own.map(|text| (OLD.as_bytes(), text)));
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }

        #[test]
        fn no_head_makes_reading_panic(text in any::<String>(), nearly in "[{}\\[\\]\",:a\\\\ 0-9]{0,40}") {
            for text in [text, nearly] {
                let _ = Parts::of(text.as_bytes()).members().count();
            }
        }
    }
}
