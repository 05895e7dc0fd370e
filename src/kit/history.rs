//! The history in memory: rows with versions, the stream of each user, groups, and the batches that devices read of them.
//!
//! It stands for Postgres and the streams in Redis. A change enters the streams of the users who see its row, and a batch
//! is a function of the cursor alone, as `docs/sync-protocol.md` promises.

use std::collections::{BTreeMap, BTreeSet};

use chrono::DateTime;
use serde_json::{Map, Value, json};

/// Seconds since 1970 of the first change; each change takes one second.
const BEGINNING: i64 = 1_767_225_600;

/// Table and id.
pub type Key = (String, String);

/// A table without a column `version`.
pub const UNVERSIONED: &str = "marks";

/// The tables of the history.
pub const TABLES: [&str; 4] = ["messages", "users", "tasks", UNVERSIONED];

#[derive(Debug, Clone)]
pub struct Row {
    pub columns: Map<String, Value>,
    /// The audiences that see it, in tables of groups.
    pub via: Option<Vec<String>>,
    /// Who sees it without groups.
    pub users: BTreeSet<String>,
}

impl Row {
    pub fn number(&self, column: &str) -> u64 {
        self.columns.get(column).and_then(Value::as_u64).unwrap_or(0)
    }
}

/// What a stream has.
#[derive(Debug, Clone)]
pub enum Change {
    Row(Key, Row),
    Gone(Key),
    Join(String),
    Leave(String),
    /// An outbox message: an event, not a row.
    Message(String, Value),
}

#[derive(Debug, Clone, Default)]
struct User {
    groups: BTreeSet<String>,
    stream: Vec<Change>,
    /// Cursors before this place get a `reset`.
    floor: usize,
    /// Where the stream ends for readers, while it is behind the rows.
    horizon: Option<usize>,
    /// The place of the last restore: later cursors of former epochs are of a lost history.
    fork: usize,
}

impl User {
    fn end(&self) -> usize {
        self.horizon.unwrap_or(self.stream.len()).min(self.stream.len())
    }
}

/// Where a cursor stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Stream(usize),
    /// In a snapshot, which began at this place of the stream.
    Snapshot {
        start: usize,
        after: Option<Key>,
    },
    /// In the rows of a group, before the stream goes on.
    Group {
        name: String,
        after: Option<Key>,
        then: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: u64,
    pub place: Place,
}

/// A batch before it has the text of its cursor.
#[derive(Debug)]
pub struct Batch {
    pub body: Value,
    pub next: Cursor,
}

#[derive(Debug, Clone, Default)]
pub struct History {
    users: BTreeMap<String, User>,
    rows: BTreeMap<Key, Row>,
    seconds: i64,
    epoch: u64,
    /// Changes since they were last taken, for live events: whose, where in the stream, of which row.
    news: Vec<(String, usize, Change)>,
}

/// The id of a user by name.
pub fn user_id(name: &str) -> String {
    uuid_of(&format!("u {name}"))
}

/// The UUID of a short name in a case.
pub fn uuid_of(name: &str) -> String {
    let hex: String = name.bytes().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("00000000-0000-4000-8000-{hex:0>12}")
}

impl History {
    /// A history with these users.
    pub fn new(users: &[&str]) -> Self {
        let mut new = Self::default();
        for name in users {
            new.users.insert((*name).to_owned(), User::default());
        }
        for name in users {
            let columns = json!({"username": name, "user_type": "mobile"});
            new.put(("users".to_owned(), user_id(name)), columns, None, users, false);
        }
        new
    }

    pub fn now(&mut self) -> String {
        self.seconds += 1;
        let time = DateTime::from_timestamp(BEGINNING + self.seconds, 0).unwrap_or_default();
        time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    pub fn row(&self, key: &Key) -> Option<&Row> {
        self.rows.get(key)
    }

    /// The rows that a user sees, by table and id.
    pub fn rows_of(&self, user: &str) -> BTreeMap<Key, Value> {
        let seen = self.rows.iter().filter(|(_, row)| self.sees(user, row));
        seen.map(|(key, row)| (key.clone(), Value::Object(row.columns.clone())))
            .collect()
    }

    pub fn sees(&self, user: &str, row: &Row) -> bool {
        match &row.via {
            Some(via) => via.iter().any(|audience| self.is_audience(user, audience)),
            None => row.users.contains(user),
        }
    }

    fn is_audience(&self, user: &str, audience: &str) -> bool {
        audience == "tenant"
            || audience.strip_prefix("user:").is_some_and(|id| id == user_id(user))
            || self.users.get(user).is_some_and(|user| user.groups.contains(audience))
    }

    /// Writes a row: the columns that are given, the next version, and the times. A silent change enters no stream.
    pub fn put(&mut self, key: Key, columns: Value, via: Option<Vec<String>>, users: &[&str], is_silent: bool) {
        let now = self.now();
        let before = self.rows.get(&key).cloned();
        let mut row = before.clone().unwrap_or_else(|| Row {
            columns: Map::from_iter([
                ("id".to_owned(), key.1.clone().into()),
                ("created_at".to_owned(), now.clone().into()),
            ]),
            via: None,
            users: users.iter().map(|name| (*name).to_owned()).collect(),
        });
        if let Value::Object(columns) = columns {
            row.columns.extend(columns);
        }
        let (version, revision) = (row.number("version") + 1, row.number("revision") + 1);
        if matches!(key.0.as_str(), "messages" | "tasks") {
            row.columns.insert("version".to_owned(), version.into());
        }
        if key.0 == "messages" {
            row.columns.insert("revision".to_owned(), revision.into());
            row.columns.entry("read_at").or_insert(Value::Null);
        }
        row.columns.insert("updated_at".to_owned(), now.into());
        if via.is_some() {
            row.via = via;
        }
        self.replace(key, Some(row), is_silent);
    }

    /// Marks a message as read, which raises its revision only.
    pub fn read(&mut self, key: &Key) {
        let now = self.now();
        let Some(mut row) = self.rows.get(key).cloned() else {
            return;
        };
        row.columns.insert("read_at".to_owned(), now.into());
        let revision = row.number("revision") + 1;
        row.columns.insert("revision".to_owned(), revision.into());
        self.replace(key.clone(), Some(row), false);
    }

    pub fn remove(&mut self, key: &Key, is_silent: bool) {
        self.replace(key.clone(), None, is_silent);
    }

    fn replace(&mut self, key: Key, row: Option<Row>, is_silent: bool) {
        let before = match &row {
            Some(row) => self.rows.insert(key.clone(), row.clone()),
            None => self.rows.remove(&key),
        };
        if is_silent {
            return;
        }
        let names: Vec<String> = self.users.keys().cloned().collect();
        for name in names {
            let seen = row.as_ref().filter(|row| self.sees(&name, row));
            let was_seen = before.as_ref().is_some_and(|row| self.sees(&name, row));
            match seen {
                Some(row) => self.add(&name, Change::Row(key.clone(), row.clone())),
                None if was_seen => {
                    // A row that others still see comes with its audiences, none of which is the device's.
                    let others = row.as_ref().filter(|row| row.via.is_some());
                    let change = others.map_or(Change::Gone(key.clone()), |row| Change::Row(key.clone(), row.clone()));
                    self.add(&name, change);
                }
                None => {}
            }
        }
    }

    /// An outbox message for a user.
    pub fn send(&mut self, user: &str, event: &str, data: Value) {
        self.add(user, Change::Message(event.to_owned(), data));
    }

    pub fn join(&mut self, user: &str, group: &str) {
        if let Some(found) = self.users.get_mut(user) {
            found.groups.insert(group.to_owned());
            self.add(user, Change::Join(group.to_owned()));
        }
    }

    pub fn leave(&mut self, user: &str, group: &str) {
        if let Some(found) = self.users.get_mut(user) {
            found.groups.remove(group);
            self.add(user, Change::Leave(group.to_owned()));
        }
    }

    fn add(&mut self, user: &str, change: Change) {
        if let Some(found) = self.users.get_mut(user) {
            found.stream.push(change.clone());
            self.news.push((user.to_owned(), found.stream.len(), change));
        }
    }

    /// The changes since the last call.
    pub fn take_news(&mut self) -> Vec<(String, usize, Change)> {
        std::mem::take(&mut self.news)
    }

    /// Trims the streams: each cursor of before gets a `reset`.
    pub fn trim(&mut self) {
        for user in self.users.values_mut() {
            user.stream.push(Change::Message("trim".to_owned(), Value::Null));
            user.floor = user.stream.len();
        }
    }

    /// Ends the streams here for readers; `None` shows all again.
    pub fn hold(&mut self, is_held: bool) {
        for user in self.users.values_mut() {
            user.horizon = is_held.then_some(user.stream.len());
        }
    }

    /// Lets so many more changes through.
    pub fn let_through(&mut self, count: usize) {
        for user in self.users.values_mut() {
            user.horizon = user.horizon.map(|horizon| horizon + count);
        }
    }

    /// Continues from an older copy of itself, as a server that was restored.
    pub fn restore(&mut self, copy: &Self) {
        let epoch = self.epoch + 1;
        let seconds = self.seconds;
        *self = copy.clone();
        (self.epoch, self.seconds) = (epoch, seconds);
        for user in self.users.values_mut() {
            user.fork = user.stream.len();
        }
    }

    /// Repeats the last change of a row that readers have seen, as streams do behind a snapshot.
    pub fn repeat(&mut self, key: &Key) {
        for user in self.users.values_mut() {
            let end = user.end();
            let is_of_row = |change: &&Change| matches!(change, Change::Row(found, _) if found == key);
            let Some(change) = user.stream.iter().take(end).rev().find(is_of_row).cloned() else {
                continue;
            };
            user.stream.insert(end, change);
            user.horizon = user.horizon.map(|horizon| horizon + 1);
        }
    }

    /// The place after everything that a user's devices may read.
    pub fn end_of(&self, user: &str) -> usize {
        self.users.get(user).map_or(0, User::end)
    }

    pub fn cursor(&self, place: Place) -> Cursor {
        Cursor {
            epoch: self.epoch,
            place,
        }
    }

    /// Whether a place is in the history that is still there.
    fn is_known(&self, user: &User, cursor: &Cursor) -> bool {
        let at = match &cursor.place {
            Place::Stream(at) => *at,
            Place::Snapshot { start, .. } => *start,
            Place::Group { then, .. } => *then,
        };
        at >= user.floor && (cursor.epoch == self.epoch || at <= user.fork)
    }

    /// The batch behind a cursor, of at most so many rows.
    pub fn batch(&self, name: &str, cursor: Option<&Cursor>, rows_max: usize) -> Batch {
        let unknown = User::default();
        let user = self.users.get(name).unwrap_or(&unknown);
        let known = cursor
            .filter(|cursor| self.is_known(user, cursor))
            .map(|cursor| &cursor.place);
        let mut body = Body::default();
        let next = match known {
            None => {
                body.is_reset = true;
                for group in &user.groups {
                    body.membership("join", group);
                }
                self.page(name, user, &mut body, None, user.end(), rows_max)
            }
            Some(Place::Snapshot { start, after }) => {
                self.page(name, user, &mut body, after.as_ref(), *start, rows_max)
            }
            Some(Place::Group {
                name: group,
                after,
                then,
            }) => self.group_page(name, &mut body, group, after.as_ref(), *then, rows_max),
            Some(Place::Stream(at)) => stream(user, &mut body, *at, rows_max),
        };
        let has_more = match &next {
            Place::Stream(at) => *at < user.end(),
            _ => true,
        };
        Batch {
            body: body.into_value(has_more),
            next: self.cursor(next),
        }
    }

    fn page(
        &self,
        name: &str,
        user: &User,
        body: &mut Body,
        after: Option<&Key>,
        start: usize,
        rows_max: usize,
    ) -> Place {
        let rest = self
            .rows
            .iter()
            .filter(|(key, row)| after.is_none_or(|after| *key > after) && self.sees(name, row));
        let rows: Vec<(&Key, &Row)> = rest.take(rows_max + 1).collect();
        for (key, row) in rows.iter().take(rows_max) {
            body.row(key, row);
        }
        match rows.get(rows_max.wrapping_sub(1)) {
            Some((last, _)) if rows.len() > rows_max => Place::Snapshot {
                start,
                after: Some((*last).clone()),
            },
            _ => Place::Stream(start.max(user.floor)),
        }
    }

    fn group_page(
        &self,
        name: &str,
        body: &mut Body,
        group: &str,
        after: Option<&Key>,
        then: usize,
        rows_max: usize,
    ) -> Place {
        body.scope = Some(group.to_owned());
        let is_of_group = |row: &Row| {
            row.via
                .as_ref()
                .is_some_and(|via| via.iter().any(|audience| audience == group))
        };
        let rest = self
            .rows
            .iter()
            .filter(|(key, row)| after.is_none_or(|after| *key > after) && is_of_group(row) && self.sees(name, row));
        let rows: Vec<(&Key, &Row)> = rest.take(rows_max + 1).collect();
        for (key, row) in rows.iter().take(rows_max) {
            body.row(key, row);
        }
        match rows.get(rows_max.wrapping_sub(1)) {
            Some((last, _)) if rows.len() > rows_max => Place::Group {
                name: group.to_owned(),
                after: Some((*last).clone()),
                then,
            },
            _ => Place::Stream(then),
        }
    }
}

/// The changes of a stream after a place: each row once, up to a `join`, or to a row that is created again.
fn stream(user: &User, body: &mut Body, mut at: usize, rows_max: usize) -> Place {
    let mut newest: BTreeMap<&Key, usize> = BTreeMap::new();
    let first = at;
    let mut joined = None;
    while at < user.end() && newest.len() < rows_max && joined.is_none() {
        match &user.stream[at] {
            Change::Row(key, _)
                if newest
                    .get(key)
                    .is_some_and(|at| matches!(user.stream[*at], Change::Gone(_))) =>
            {
                break;
            }
            Change::Row(key, _) | Change::Gone(key) => {
                newest.insert(key, at);
            }
            Change::Join(group) => joined = Some(group.clone()),
            Change::Leave(_) | Change::Message(..) => {}
        }
        at += 1;
    }
    for (place, change) in user.stream.iter().enumerate().take(at).skip(first) {
        match change {
            Change::Row(key, row) if newest.get(key) == Some(&place) => body.row(key, row),
            Change::Gone(key) if newest.get(key) == Some(&place) => body.gone(key),
            Change::Join(group) => body.membership("join", group),
            Change::Leave(group) => body.membership("leave", group),
            Change::Message(event, data) if event != "trim" => body.changes.push(json!({
                "table": format!("posduif:{event}"), "op": "message", "id": place.to_string(), "row": data,
            })),
            _ => {}
        }
    }
    match joined {
        Some(name) => Place::Group {
            name,
            after: None,
            then: at,
        },
        None => Place::Stream(at),
    }
}

/// The parts of a batch.
#[derive(Debug, Default)]
struct Body {
    messages: Vec<Value>,
    users: Vec<Value>,
    changes: Vec<Value>,
    is_reset: bool,
    scope: Option<String>,
}

impl Body {
    fn row(&mut self, (table, id): &Key, row: &Row) {
        let columns = Value::Object(row.columns.clone());
        match table.as_str() {
            "messages" => self.messages.push(columns),
            "users" => self.users.push(columns),
            _ => {
                let mut change = json!({"table": table, "op": "update", "id": id, "row": columns});
                if let Some(via) = &row.via {
                    change["via"] = json!(via);
                }
                self.changes.push(change);
            }
        }
    }

    fn gone(&mut self, (table, id): &Key) {
        self.changes
            .push(json!({"table": table, "op": "delete", "id": id, "row": null}));
    }

    fn membership(&mut self, op: &str, group: &str) {
        let (name, id) = group.split_once(':').unwrap_or((group, ""));
        self.changes.push(json!({"op": op, "group": name, "id": id}));
    }

    fn into_value(self, has_more: bool) -> Value {
        let mut value = json!({
            "messages": self.messages, "users": self.users, "changes": self.changes,
            "has_more": has_more, "reset": self.is_reset, "compressed": false,
        });
        if let Some(scope) = self.scope {
            value["scope"] = scope.into();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        ("tasks".to_owned(), uuid_of(id))
    }

    fn ids(batch: &Batch) -> Vec<String> {
        let changes = batch.body["changes"].as_array().expect("a list");
        let shown = |change: &Value| {
            let id = change["id"].as_str().expect("an id");
            format!(
                "{}:{}",
                change["op"].as_str().expect("an op"),
                &id[id.len().saturating_sub(2)..]
            )
        };
        changes.iter().map(shown).collect()
    }

    #[test]
    fn batches_page_a_snapshot_and_go_on_with_the_stream() {
        let mut history = History::new(&["alice"]);
        for id in ["a", "b", "c"] {
            history.put(key(id), json!({"title": id}), None, &["alice"], false);
        }
        let first = history.batch("alice", None, 2);
        assert!(first.body["reset"] == true && first.body["has_more"] == true);
        assert_eq!(ids(&first), ["update:61", "update:62"]);
        history.remove(&key("a"), false);
        let second = history.batch("alice", Some(&first.next), 2);
        assert!(second.body["reset"] == false && second.body["has_more"] == true);
        let third = history.batch("alice", Some(&second.next), 2);
        assert_eq!(ids(&third), ["delete:61"]);
        assert_eq!(third.body["has_more"], false);
        history.trim();
        assert_eq!(history.batch("alice", Some(&third.next), 9).body["reset"], true);
    }

    #[test]
    fn joined_group_comes_with_its_rows_before_the_stream() {
        let mut history = History::new(&["alice"]);
        let start = history.batch("alice", None, 9).next;
        history.put(key("a"), json!({}), Some(vec!["list:1".to_owned()]), &[], false);
        history.join("alice", "list:1");
        history.put(key("b"), json!({}), Some(vec!["list:1".to_owned()]), &[], false);
        let join = history.batch("alice", Some(&start), 9);
        assert_eq!(ids(&join), ["join:1"]);
        let rows = history.batch("alice", Some(&join.next), 9);
        assert_eq!((rows.body["scope"].as_str(), ids(&rows).len()), (Some("list:1"), 2));
        assert_eq!(ids(&history.batch("alice", Some(&rows.next), 9)), ["update:62"]);
    }
}
