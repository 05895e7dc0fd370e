//! The items of a batch, made from stream entries: the newest version of each row, in commit order.

use std::collections::HashSet;

use bytes::{BufMut as _, BytesMut};

use crate::config::group::USER as USER_AUDIENCE;
use crate::config::rule::MESSAGES;
use crate::contract::entry::{Entry, Text};
use crate::contract::group::{GroupId, Membership};
use crate::contract::json::members;
use crate::core::operation::Operation;
use crate::core::position::StreamId;

/// A changed row of a table without a list of its own, or a deleted row.
#[derive(Debug, Clone)]
pub struct Change {
    pub table: Text,
    /// `insert`, `update`, `delete`, or `message` for an event without a row.
    pub op: &'static str,
    pub id: Option<Text>,
    /// The row as JSON; `None` if it was deleted.
    pub row: Option<Text>,
    /// The log omits unchanged columns; the row must be completed before it is delivered.
    pub is_partial: bool,
    /// The audiences that see the row as a JSON array, where a rule sends rows of the table to groups.
    pub via: Option<Text>,
}

/// One row of a batch.
#[derive(Debug)]
pub enum Item {
    /// A message as JSON of the API.
    Message(Text),
    /// A user as JSON, as other users see them.
    User(Text),
    Change(Change),
    /// The user joined or left a group.
    Membership(Membership),
}

impl Item {
    /// The approximate length in JSON.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Message(json) | Self::User(json) => json.as_bytes().len(),
            Self::Change(change) => 64 + change.row.as_ref().map_or(0, |row| row.as_bytes().len()),
            Self::Membership(_) => 64,
        }
    }
}

/// A column of a row as clients see it: its name, and the JSON before its value, which is copied.
type Shown = (&'static str, &'static str);

/// The visible columns of a message between users in the API's order.
const MESSAGE: [Shown; 11] = [
    ("id", "{\"id\":"),
    ("sender_id", ",\"sender_id\":"),
    ("recipient_id", ",\"recipient_id\":"),
    ("content", ",\"content\":"),
    ("status", ",\"status\":"),
    ("version", ",\"version\":"),
    ("revision", ",\"revision\":"),
    ("created_at", ",\"created_at\":"),
    ("updated_at", ",\"updated_at\":"),
    ("synced_at", ",\"synced_at\":"),
    ("read_at", ",\"read_at\":"),
];

/// Those of a message to a group.
const GROUP_MESSAGE: [Shown; 13] = [
    ("id", "{\"id\":"),
    ("sender_id", ",\"sender_id\":"),
    ("group_name", ",\"group\":{\"name\":"),
    ("group_id", ",\"id\":"),
    ("number", "},\"number\":"),
    ("content", ",\"content\":"),
    ("status", ",\"status\":"),
    ("version", ",\"version\":"),
    ("revision", ",\"revision\":"),
    ("created_at", ",\"created_at\":"),
    ("updated_at", ",\"updated_at\":"),
    ("synced_at", ",\"synced_at\":"),
    ("read_at", ",\"read_at\":"),
];

/// The visible columns of a user.
const USER: [Shown; 5] = [
    ("id", "{\"id\":"),
    ("username", ",\"username\":"),
    ("user_type", ",\"user_type\":"),
    ("created_at", ",\"created_at\":"),
    ("updated_at", ",\"updated_at\":"),
];

/// Allocation size of the buffer for projected rows.
const PIECE_BYTES: usize = 128 * 1024;

/// A version of a row, from an entry of the stream.
#[derive(Debug)]
pub struct Version {
    /// The entry's place.
    pub place: StreamId,
    /// Table and id; `None` without an id.
    row: Option<(Text, Text)>,
    /// Table and previous id, if the id has changed.
    former: Option<Box<(Text, Text)>>,
    /// What a client sees, if anything.
    item: Option<Item>,
}

impl Version {
    /// The group that the user joined.
    pub fn joined(&self) -> Option<&GroupId> {
        match &self.item {
            Some(Item::Membership(Membership::Join(group))) => Some(group),
            _ => None,
        }
    }

    fn is_deletion(&self) -> bool {
        matches!(&self.item, Some(Item::Change(change)) if change.op == Operation::Delete.as_str())
    }
}

/// Converts entries: one version each, and one for each group that the user joined or left by it.
pub fn versions(entries: Vec<Entry>) -> impl Iterator<Item = Version> {
    let mut memory = BytesMut::new();
    entries.into_iter().flat_map(move |entry| {
        let (place, memberships) = (entry.id, entry.memberships());
        let memberships = memberships.into_iter().map(move |membership| Version {
            place,
            row: None,
            former: None,
            item: Some(Item::Membership(membership)),
        });
        std::iter::once(version(entry, &mut memory)).chain(memberships)
    })
}

/// The version of the row that an entry has; one without content if it has none.
fn version(entry: Entry, memory: &mut BytesMut) -> Version {
    let place = entry.id;
    if entry.op.is_break() || matches!(entry.op, Operation::Member | Operation::Other) {
        return Version {
            place,
            row: None,
            former: None,
            item: None,
        };
    }
    let (id, former) = match entry.op {
        // The reader has the row under its former id.
        Operation::Delete => (entry.former_id().or_else(|| entry.row_id()), None),
        Operation::Update => (entry.row_id(), entry.former_id()),
        _ => (entry.row_id(), None),
    };
    let former = former.map(|id| Box::new((entry.table.clone(), id)));
    let mut row = entry.row.filter(|_| entry.op != Operation::Delete);
    let mut is_partial = row.is_some() && entry.unchanged.is_some();
    let shown = row.as_ref().and_then(|row| match entry.table.as_bytes() {
        // One that a group sees comes with its audiences, as rows of own tables.
        b"messages" if entry.via.is_none() => project(row, &MESSAGE, memory).map(Item::Message),
        b"users" => project(row, &USER, memory).map(Item::User),
        _ => None,
    });
    if entry.table.as_bytes() == b"messages"
        && entry.via.is_some()
        && let Some(message) = row.as_ref().and_then(|row| message(row, memory))
    {
        (row, is_partial) = (Some(message), false);
    }
    let item = shown.unwrap_or_else(|| {
        Item::Change(Change {
            is_partial,
            table: entry.table.clone(),
            op: entry.op.as_str(),
            id: id.clone(),
            via: entry.via.filter(|_| row.is_some()),
            row,
        })
    });
    Version {
        place,
        row: id.map(|id| (entry.table, id)),
        former,
        item: Some(item),
    }
}

/// Truncates behind the first group that the user joined, of which the older rows come next; returns the group.
pub fn end_at_join(versions: &mut Vec<Version>) -> Option<GroupId> {
    let (at, group) = versions
        .iter()
        .enumerate()
        .find_map(|(at, version)| Some((at, version.joined()?.clone())))?;
    versions.truncate(at + 1);
    Some(group)
}

/// Truncates before a row that returns after its deletion; returns whether there was one.
///
/// Such a row may restart with a lower version. In one batch its deletion would be omitted for the newer row, and a client
/// that has a higher version would keep it indefinitely.
pub fn end_before_return(versions: &mut Vec<Version>) -> bool {
    let mut gone: HashSet<&(Text, Text)> = HashSet::new();
    let returned = versions.iter().position(|version| {
        let is_back = match &version.row {
            Some(row) if version.is_deletion() => {
                gone.insert(row);
                false
            }
            Some(row) => gone.contains(row),
            None => false,
        };
        gone.extend(version.former.as_deref());
        is_back
    });
    if let Some(end) = returned {
        versions.truncate(end);
    }
    returned.is_some()
}

/// Keeps only the newest version of each row, at its place. A row whose id has changed is deleted under its former id.
pub fn newest(versions: Vec<Version>) -> Vec<Item> {
    let mut seen: HashSet<&(Text, Text)> = HashSet::with_capacity(versions.len());
    let mut kept = vec![(true, true); versions.len()];
    for (version, (is_newest, is_gone)) in versions.iter().zip(&mut kept).rev() {
        *is_newest = version.row.as_ref().is_none_or(|row| seen.insert(row));
        *is_gone = version.former.as_deref().is_some_and(|former| seen.insert(former));
    }
    let mut items = Vec::with_capacity(versions.len());
    for (version, (is_newest, is_gone)) in versions.into_iter().zip(kept) {
        if let Some(former) = version.former.filter(|_| is_gone) {
            let (table, id) = *former;
            items.push(Item::Change(Change {
                table,
                op: Operation::Delete.as_str(),
                id: Some(id),
                row: None,
                is_partial: false,
                via: None,
            }));
        }
        items.extend(version.item.filter(|_| is_newest));
    }
    items
}

/// The rows whose newest version is partial, in the order of these versions.
pub fn partial_rows(versions: &[Version]) -> Vec<(StreamId, (Text, Text))> {
    let mut seen: HashSet<&(Text, Text)> = HashSet::new();
    let mut found = Vec::new();
    for version in versions.iter().rev() {
        let is_partial = matches!(&version.item, Some(Item::Change(change)) if change.is_partial);
        if let Some(row) = version.row.as_ref().filter(|row| seen.insert(row) && is_partial) {
            found.push((version.place, row.clone()));
        }
        seen.extend(version.former.as_deref());
    }
    found.reverse();
    found
}

/// A message as the API shows it; `None` if a column is missing.
fn message(row: &Text, memory: &mut BytesMut) -> Option<Text> {
    let is_group = |(name, value): (&[u8], &[u8])| name == b"group_id" && value != b"null";
    match members(row.as_bytes()).any(is_group) {
        true => project(row, &GROUP_MESSAGE, memory),
        false => project(row, &MESSAGE, memory),
    }
}

/// A row that was read from Postgres as clients see it, and who sees it.
pub(super) fn shown(table: &str, row: Text, via: Option<Text>) -> (Text, Option<Text>) {
    if table != MESSAGES {
        return (row, via);
    }
    let value = |column: &[u8]| {
        let (_, value) = members(row.as_bytes()).find(|(name, _)| *name == column)?;
        serde_json::from_slice::<Option<String>>(value).ok()?
    };
    let of_group = value(b"group_name").zip(value(b"group_id")).zip(value(b"sender_id"));
    let Some((((name, id), sender), message)) = of_group.zip(message(&row, &mut BytesMut::new())) else {
        return (row, None);
    };
    (message, Some(audiences(&name, &id, &sender)))
}

/// Who sees a message to a group, a JSON array: the members, and the sender in any case.
pub(super) fn audiences(name: &str, id: &str, sender: &str) -> Text {
    serde_json::json!([format!("{name}:{id}"), format!("{USER_AUDIENCE}:{sender}")])
        .to_string()
        .into()
}

/// Projects a row to these columns; `None` if one is missing.
fn project<const N: usize>(row: &Text, columns: &[Shown; N], memory: &mut BytesMut) -> Option<Text> {
    let mut values: [Option<&[u8]>; N] = [None; N];
    // Rows usually have the columns in the same order, so the next one is tried first.
    let mut expected = 0;
    for (name, value) in members(row.as_bytes()) {
        let is = |(column, _): &Shown| column.as_bytes() == name;
        let rest = columns[expected..].iter().position(is).map(|at| expected + at);
        if let Some(at) = rest.or_else(|| columns.iter().position(is)) {
            values[at] = Some(value);
            expected = at + 1;
        }
    }
    // The projection is never longer than the row.
    if memory.capacity() < row.as_bytes().len() {
        memory.reserve(row.as_bytes().len().max(PIECE_BYTES));
    }
    for ((_, before), value) in columns.iter().zip(values) {
        let Some(value) = value else {
            memory.clear();
            return None;
        };
        memory.put_slice(before.as_bytes());
        memory.put_slice(value);
    }
    memory.put_u8(b'}');
    Some(memory.split().freeze().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::StreamId;

    fn entry(seq: u64, op: Operation, id: &str, content: &str) -> Entry {
        let row = format!(
            r#"{{"id":"{id}","sender_id":"s","recipient_id":"r","content":"{content}","status":"pending_sync","version":1,"revision":1,"created_at":"c","updated_at":"u","synced_at":null,"read_at":null,"deleted_at":null,"device_id":"x"}}"#
        );
        Entry {
            id: StreamId { ms: 1, seq },
            op,
            table: "messages".to_owned().into(),
            row: Some(row.clone().into()),
            old: Some(row.into()),
            ..Entry::default()
        }
    }

    fn show(items: &[Item]) -> Vec<String> {
        items
            .iter()
            .map(|item| match item {
                Item::Message(json) => {
                    let value: serde_json::Value = serde_json::from_slice(json.as_bytes()).unwrap();
                    assert!(value.get("device_id").is_none() && value.get("deleted_at").is_none());
                    format!(
                        "{}={}",
                        value["id"].as_str().unwrap(),
                        value["content"].as_str().unwrap()
                    )
                }
                Item::Change(change) => format!("{}-{}", change.op, change.id.as_ref().map_or("?", Text::as_str)),
                Item::User(_) => "user".into(),
                Item::Membership(membership) => membership.to_string(),
            })
            .collect()
    }

    fn collapse(entries: Vec<Entry>) -> Vec<Item> {
        newest(versions(entries).collect())
    }

    #[test]
    fn newest_version_is_kept_at_its_place() {
        let items = collapse(vec![
            entry(1, Operation::Insert, "a", "1"),
            entry(2, Operation::Insert, "b", "1"),
            entry(3, Operation::Update, "a", "2"),
            entry(4, Operation::Delete, "b", "1"),
        ]);
        assert_eq!(show(&items), ["a=2", "delete-b"]);
    }

    #[test]
    fn partial_rows_are_those_whose_newest_version_is_partial() {
        let whole = |id, op, row| Entry {
            table: "tasks".to_owned().into(),
            ..entry(id, op, row, "1")
        };
        let partial = |id, row| Entry {
            unchanged: Some("[\"body\"]".to_owned().into()),
            ..whole(id, Operation::Update, row)
        };
        let entries = vec![
            partial(1, "a"),
            partial(2, "b"),
            whole(3, Operation::Update, "b"),
            partial(4, "a"),
            partial(5, "c"),
            whole(6, Operation::Delete, "c"),
            partial(7, "d"),
        ];
        let versions: Vec<Version> = versions(entries).collect();
        let found = partial_rows(&versions).into_iter();
        let found: Vec<(u64, String)> = found.map(|(place, (_, id))| (place.seq, id.to_string())).collect();
        assert_eq!(found, [(4, "a".to_owned()), (7, "d".to_owned())]);
    }

    #[test]
    fn versions_end_at_the_first_group_that_the_user_joins() {
        let mut moved = entry(2, Operation::Insert, "b", "1");
        moved.member = Some("-list:1 +list:2".to_owned().into());
        let mut joined = entry(4, Operation::Member, "", "");
        joined.member = Some("+list:3".to_owned().into());
        let entries = vec![
            entry(1, Operation::Insert, "a", "1"),
            moved,
            entry(3, Operation::Insert, "c", "1"),
            joined,
        ];
        let mut whole: Vec<Version> = versions(entries).collect();
        let mut rest = whole.split_off(4);
        assert_eq!(
            end_at_join(&mut whole).map(|group| group.to_string()).as_deref(),
            Some("list:2")
        );
        assert_eq!(show(&newest(whole)), ["a=1", "b=1", "-list:1", "+list:2"]);
        assert_eq!(
            end_at_join(&mut rest).map(|group| group.to_string()).as_deref(),
            Some("list:3")
        );
        assert_eq!(show(&newest(rest)), ["c=1", "+list:3"]);
    }

    #[test]
    fn versions_end_before_a_deleted_row_returns() {
        let entries = vec![
            entry(1, Operation::Insert, "a", "1"),
            entry(2, Operation::Delete, "a", "1"),
            entry(3, Operation::Insert, "b", "1"),
            entry(4, Operation::Insert, "a", "again"),
        ];
        let mut cut: Vec<Version> = versions(entries).collect();
        assert!(end_before_return(&mut cut));
        assert_eq!(show(&newest(cut)), ["delete-a", "b=1"]);
        let entries = vec![
            entry(1, Operation::Update, "a", "1"),
            entry(2, Operation::Delete, "a", "1"),
        ];
        let mut whole: Vec<Version> = versions(entries).collect();
        assert!(!end_before_return(&mut whole));
        assert_eq!(whole.len(), 2);
    }

    #[test]
    fn renamed_row_is_deleted_under_its_former_id_unless_reused() {
        let renamed = |seq, from: &str, to: &str| Entry {
            old: entry(0, Operation::Insert, from, "").row,
            ..entry(seq, Operation::Update, to, "1")
        };
        let items = collapse(vec![entry(1, Operation::Insert, "a", "1"), renamed(2, "a", "b")]);
        assert_eq!(show(&items), ["delete-a", "b=1"]);
        assert_eq!(
            show(&collapse(vec![renamed(1, "a", "b"), renamed(2, "b", "c")])),
            ["delete-a", "delete-b", "c=1"]
        );
        let gone = Entry {
            op: Operation::Delete,
            ..renamed(1, "a", "b")
        };
        assert_eq!(show(&collapse(vec![gone])), ["delete-a"]);
        let entries = vec![renamed(1, "a", "b"), entry(2, Operation::Insert, "a", "2")];
        let mut cut: Vec<Version> = versions(entries).collect();
        assert!(end_before_return(&mut cut));
        assert_eq!(show(&newest(cut)), ["delete-a", "b=1"]);
    }

    #[test]
    fn deleted_row_has_no_content() {
        let items = collapse(vec![entry(1, Operation::Delete, "a", "secret")]);
        assert!(matches!(&items[..], [Item::Change(Change { row: None, .. })]));
    }

    #[test]
    fn message_that_a_group_sees_is_a_change_with_its_audiences() {
        let of_group = |content: &str| {
            let row = entry(1, Operation::Insert, "a", content).row.unwrap();
            let with_group = row.as_str().replace(
                r#""recipient_id":"r""#,
                r#""recipient_id":null,"group_name":"list","group_id":"4\"2","number":7"#,
            );
            Text::from(with_group)
        };
        let mut sent = entry(1, Operation::Insert, "a", "");
        let via = r#"["list:4\"2","user:s"]"#;
        (sent.row, sent.via) = (Some(of_group("hi")), Some(via.to_owned().into()));
        let mut moved = entry(2, Operation::Update, "b", "direct");
        moved.via = Some(r#"["user:r","user:s"]"#.to_owned().into());
        let items = collapse(vec![sent, moved]);
        let [Item::Change(sent), Item::Change(moved)] = &items[..] else {
            panic!("{items:?}");
        };
        let row: serde_json::Value = serde_json::from_slice(sent.row.as_ref().unwrap().as_bytes()).unwrap();
        assert_eq!(
            row,
            serde_json::json!({"id": "a", "sender_id": "s", "group": {"name": "list", "id": "4\"2"}, "number": 7,
                "content": "hi", "status": "pending_sync", "version": 1, "revision": 1, "created_at": "c",
                "updated_at": "u", "synced_at": null, "read_at": null})
        );
        assert!(!sent.is_partial);
        let row: serde_json::Value = serde_json::from_slice(moved.row.as_ref().unwrap().as_bytes()).unwrap();
        assert_eq!(
            (&row["recipient_id"], &row["group"]),
            (&"r".into(), &serde_json::Value::Null)
        );

        // The same, read from Postgres.
        let (json, found) = shown("messages", of_group("hi"), None);
        assert_eq!((Some(&json), found.unwrap().as_str()), (sent.row.as_ref(), via));
        let direct = entry(1, Operation::Insert, "a", "1").row.unwrap();
        assert_eq!(
            shown("messages", direct.clone(), Some(via.to_owned().into())),
            (direct, None)
        );
    }

    #[test]
    fn message_without_a_column_is_a_partial_change() {
        let mut partial = entry(1, Operation::Update, "a", "text");
        partial.row = Some(r#"{"id":"a","status":"synced"}"#.to_owned().into());
        partial.unchanged = Some(r#"["content"]"#.to_owned().into());
        let items = collapse(vec![partial, entry(2, Operation::Insert, "b", "next")]);
        assert_eq!(show(&items), ["update-a", "b=next"]);
        assert!(matches!(&items[0], Item::Change(Change { is_partial: true, .. })));
    }
}
