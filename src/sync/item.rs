//! What a batch holds, and how stream entries become it: the newest version of each row once, in commit order.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::deliver::entry::{Entry, Op};

/// A changed row of a table that has no list of its own, or a row that has gone.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The table.
    pub table: String,
    /// `insert`, `update`, `delete`, or `message` for one that is no row.
    pub op: &'static str,
    /// The row's id.
    pub id: Option<String>,
    /// The row, null when it has gone.
    pub row: Option<Box<RawValue>>,
    /// The log left columns out; the row must be completed before a client sees it.
    #[serde(skip)]
    pub is_partial: bool,
}

/// One row of a batch.
#[derive(Debug)]
pub enum Item {
    /// A message as the API shows it.
    Message(Box<RawValue>),
    /// A user as other users see them.
    User(Box<RawValue>),
    /// Anything else.
    Change(Change),
}

impl Item {
    /// Roughly its length in JSON.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Message(json) | Self::User(json) => json.get().len(),
            Self::Change(change) => 64 + change.row.as_ref().map_or(0, |row| row.get().len()),
        }
    }
}

/// The columns of a message that clients see, in the API's order; values are passed on as they are.
#[derive(Serialize, Deserialize)]
struct MessageColumns<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    sender_id: &'a RawValue,
    #[serde(borrow)]
    recipient_id: &'a RawValue,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    status: &'a RawValue,
    #[serde(borrow)]
    version: &'a RawValue,
    #[serde(borrow)]
    created_at: &'a RawValue,
    #[serde(borrow)]
    updated_at: &'a RawValue,
    #[serde(borrow)]
    synced_at: &'a RawValue,
    #[serde(borrow)]
    read_at: &'a RawValue,
}

/// The columns of a user that other users see.
#[derive(Serialize, Deserialize)]
struct UserColumns<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    username: &'a RawValue,
    #[serde(borrow)]
    user_type: &'a RawValue,
    #[serde(borrow)]
    created_at: &'a RawValue,
    #[serde(borrow)]
    updated_at: &'a RawValue,
}

/// Takes only the known columns of a row.
fn project<'a, T: Deserialize<'a> + Serialize>(row: &'a str) -> Option<Box<RawValue>> {
    let columns: T = serde_json::from_str(row).ok()?;
    serde_json::value::to_raw_value(&columns).ok()
}

/// Cuts off what follows from where a row comes again that went before, and says whether it did.
///
/// Such a row may begin anew with a lower version. In one batch its end would be left out for the newer row, and a
/// client that holds a higher version would keep that for ever.
pub fn end_before_return(entries: &mut Vec<Entry>) -> bool {
    let mut gone: HashSet<(String, Option<String>)> = HashSet::new();
    let returned = entries.iter().position(|entry| match entry.op {
        Op::Delete => {
            gone.insert((entry.table.clone(), entry.row_id()));
            false
        }
        Op::Insert | Op::Update if !gone.is_empty() => gone.contains(&(entry.table.clone(), entry.row_id())),
        _ => false,
    });
    if let Some(end) = returned {
        entries.truncate(end);
    }
    returned.is_some()
}

/// Turns entries in commit order into items: of several versions of a row only the newest stays, at its place.
pub fn collapse(entries: Vec<Entry>) -> Vec<Item> {
    let mut items: Vec<Option<Item>> = Vec::with_capacity(entries.len());
    let mut newest: HashMap<(String, String), usize> = HashMap::new();
    for entry in entries {
        if matches!(entry.op, Op::Reset | Op::Other) {
            continue;
        }
        let id = entry.row_id();
        if let Some(id) = &id
            && let Some(older) = newest.insert((entry.table.clone(), id.clone()), items.len())
        {
            items[older] = None;
        }
        items.push(item(entry, id));
    }
    items.into_iter().flatten().collect()
}

fn item(entry: Entry, id: Option<String>) -> Option<Item> {
    let row = if entry.op == Op::Delete { None } else { entry.row };
    match (entry.table.as_str(), &row) {
        ("messages", Some(row)) => {
            if let Some(json) = project::<MessageColumns<'_>>(row) {
                return Some(Item::Message(json));
            }
        }
        ("users", Some(row)) => {
            if let Some(json) = project::<UserColumns<'_>>(row) {
                return Some(Item::User(json));
            }
        }
        _ => {}
    }
    let row = match row {
        Some(row) => Some(RawValue::from_string(row).ok()?),
        None => None,
    };
    Some(Item::Change(Change {
        is_partial: row.is_some() && entry.unchanged.is_some(),
        table: entry.table,
        op: entry.op.as_str(),
        id,
        row,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;

    fn entry(seq: u64, op: Op, id: &str, content: &str) -> Entry {
        let row = format!(
            r#"{{"id":"{id}","sender_id":"s","recipient_id":"r","content":"{content}","status":"pending_sync","version":1,"created_at":"c","updated_at":"u","synced_at":null,"read_at":null,"deleted_at":null,"device_id":"x"}}"#
        );
        Entry {
            id: StreamId { ms: 1, seq },
            op,
            table: "messages".into(),
            event: String::new(),
            xid: 1,
            commit_ts: 1,
            row: Some(row.clone()),
            old: Some(row),
            unchanged: None,
        }
    }

    fn show(items: &[Item]) -> Vec<String> {
        items
            .iter()
            .map(|item| match item {
                Item::Message(json) => {
                    let value: serde_json::Value = serde_json::from_str(json.get()).unwrap();
                    assert!(value.get("device_id").is_none() && value.get("deleted_at").is_none());
                    format!(
                        "{}={}",
                        value["id"].as_str().unwrap(),
                        value["content"].as_str().unwrap()
                    )
                }
                Item::Change(change) => format!("{}-{}", change.op, change.id.as_deref().unwrap_or("?")),
                Item::User(_) => "user".into(),
            })
            .collect()
    }

    #[test]
    fn only_the_newest_version_stays_and_keeps_its_place() {
        let items = collapse(vec![
            entry(1, Op::Insert, "a", "1"),
            entry(2, Op::Insert, "b", "1"),
            entry(3, Op::Update, "a", "2"),
            entry(4, Op::Delete, "b", "1"),
        ]);
        assert_eq!(show(&items), ["a=2", "delete-b"]);
    }

    #[test]
    fn entries_end_before_a_row_comes_again_that_went() {
        let mut entries = vec![
            entry(1, Op::Insert, "a", "1"),
            entry(2, Op::Delete, "a", "1"),
            entry(3, Op::Insert, "b", "1"),
            entry(4, Op::Insert, "a", "anew"),
        ];
        assert!(end_before_return(&mut entries));
        assert_eq!(show(&collapse(entries)), ["delete-a", "b=1"]);
        let mut entries = vec![entry(1, Op::Update, "a", "1"), entry(2, Op::Delete, "a", "1")];
        assert!(!end_before_return(&mut entries));
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn a_deleted_row_never_shows_its_content() {
        let items = collapse(vec![entry(1, Op::Delete, "a", "secret")]);
        assert!(
            !serde_json::to_string(match &items[0] {
                Item::Change(change) => change,
                _ => panic!("a delete is a change"),
            })
            .unwrap()
            .contains("secret")
        );
    }
}
