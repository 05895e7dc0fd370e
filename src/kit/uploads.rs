//! Uploads of devices: sequence numbers with stored results, conflicts, refusals.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::history::{History, Key};

/// What a case says about the result of the next item of a row.
#[derive(Debug, Clone)]
pub struct Scripted {
    pub id: String,
    pub result: Value,
}

/// A refusal of a whole upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    TooLarge,
    Gap { expected: u64 },
    Restored { expected: u64 },
    Invalid(String),
}

#[derive(Debug, Clone)]
struct Device {
    expected: u64,
    /// Items with their results, by number.
    results: BTreeMap<u64, (Value, Value)>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            expected: 1,
            results: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Uploads {
    devices: BTreeMap<String, Device>,
    /// More items than this are too many.
    pub items_max: Option<usize>,
    /// An item of this row is too large.
    pub oversized: Option<String>,
    /// Conflicts of messages are decided by hand instead of by the last write.
    pub is_manual: bool,
    /// What uploads write enters no stream.
    pub is_silent: bool,
    pub scripted: Vec<Scripted>,
}

impl Uploads {
    /// The number that the server expects next of a device.
    pub fn expected(&self, device: &str) -> u64 {
        self.devices.get(device).map_or(1, |device| device.expected)
    }

    /// The highest number with a result.
    pub fn answered(&self, device: &str) -> u64 {
        self.expected(device) - 1
    }

    /// Applies an upload in its order.
    ///
    /// # Errors
    /// For one that is refused as a whole.
    pub fn apply(&mut self, history: &mut History, device: &str, user: &str, body: &Value) -> Result<Value, Refusal> {
        let none = Vec::new();
        let items = body.get("items").and_then(Value::as_array).unwrap_or(&none);
        let is_oversized = |item: &Value| self.oversized.as_deref().is_some_and(|id| item["id"] == id);
        if self.items_max.is_some_and(|max| items.len() > max) || items.iter().any(is_oversized) {
            return Err(Refusal::TooLarge);
        }
        self.check(device, items)?;
        let mut results = Vec::new();
        for item in items {
            let seq = item["seq"].as_u64().unwrap_or(0);
            let stored = self.devices.get(device).and_then(|device| device.results.get(&seq));
            if let Some((item, result)) = stored {
                results.push(current(history, user, item, result.clone()));
                continue;
            }
            let mut result = self.apply_item(history, device, user, item);
            if let Value::Object(result) = &mut result {
                for name in ["seq", "table", "id"] {
                    result.insert(name.to_owned(), item[name].clone());
                }
            }
            let is_final = matches!(
                result["status"].as_str(),
                Some("applied" | "duplicate" | "conflict" | "rejected")
            );
            results.push(result.clone());
            if !is_final {
                let rest = items.iter().skip(results.len());
                let later = rest.map(|item| json!({"seq": item["seq"], "table": item["table"], "id": item["id"], "status": "retry", "code": "SYNC_ERROR"}));
                results.extend(later.collect::<Vec<_>>());
                break;
            }
            let device = self.devices.entry(device.to_owned()).or_default();
            device.results.insert(seq, (item.clone(), result));
            device.expected = seq + 1;
        }
        Ok(json!({"results": results, "synced_count": results.len(), "failed_count": 0, "failed_messages": []}))
    }

    fn check(&self, device: &str, items: &[Value]) -> Result<(), Refusal> {
        let expected = self.expected(device);
        let mut next = None;
        for item in items {
            let seq = item["seq"].as_u64().filter(|seq| *seq > 0);
            let seq = seq.ok_or_else(|| Refusal::Invalid("seq must be a number from 1".to_owned()))?;
            if next.is_some_and(|next| next != seq) || seq > expected && next.is_none() {
                return Err(Refusal::Gap { expected });
            }
            next = Some(seq + 1);
            if seq < expected {
                let known = self.devices.get(device).and_then(|device| device.results.get(&seq));
                if known.is_none_or(|(known, _)| known != item) {
                    return Err(Refusal::Restored { expected });
                }
            }
        }
        Ok(())
    }

    fn apply_item(&mut self, history: &mut History, device: &str, user: &str, item: &Value) -> Value {
        let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
        let key: Key = (text("table"), text("id"));
        if let Some(at) = self.scripted.iter().position(|scripted| scripted.id == key.1) {
            return self.scripted.remove(at).result;
        }
        let columns = item
            .get("row")
            .filter(|row| row.is_object())
            .cloned()
            .unwrap_or_else(|| json!({}));
        let operation = item["op"].as_str().unwrap_or("create");
        let Some(row) = history.row(&key).cloned() else {
            return match operation {
                "create" => {
                    let list = columns["list_id"].as_str();
                    let via = list.map(|list| vec![format!("list:{list}")]);
                    history.put(key.clone(), created(&key, user, columns), via, &[user], self.is_silent);
                    applied(history, &key)
                }
                _ => rejected("NOT_FOUND", "the row does not exist or was deleted"),
            };
        };
        match operation {
            "create" if contains(&row.columns, &columns) => json!({"status": "duplicate"}),
            "create" => json!({"status": "conflict", "code": "CONFLICT", "winner": "theirs", "server": row.columns}),
            "read" => {
                history.read(&key);
                applied(history, &key)
            }
            "edit" | "delete" => match self.base(device, item) {
                Base::Failed => rejected("DEPENDS_ON_FAILED", "the change it is based on was not applied"),
                Base::Missing if row.columns.contains_key("version") => {
                    rejected("VALIDATION_ERROR", "an edit or delete needs a base")
                }
                Base::Version(base) if base < row.number("version") => {
                    if key.0 != "messages" || self.is_manual {
                        return json!({"status": "conflict", "code": "CONFLICT", "winner": "theirs", "server": row.columns});
                    }
                    let mut result = write(history, &key, operation, columns);
                    result["status"] = "conflict".into();
                    result["winner"] = "mine".into();
                    result["server"] = history
                        .row(&key)
                        .map_or(Value::Null, |row| Value::Object(row.columns.clone()));
                    result
                }
                _ => write(history, &key, operation, columns),
            },
            _ => rejected("VALIDATION_ERROR", "op must be one of create, edit, delete, read"),
        }
    }

    fn base(&self, device: &str, item: &Value) -> Base {
        if let Some(version) = item["base_version"].as_u64() {
            return Base::Version(version);
        }
        let Some(seq) = item["base_seq"].as_u64() else {
            return Base::Missing;
        };
        let found = self.devices.get(device).and_then(|device| device.results.get(&seq));
        match found {
            Some((_, result)) if result["status"] == "rejected" || result["winner"] == "theirs" => Base::Failed,
            Some((_, result)) => result["version"].as_u64().map_or(Base::Missing, Base::Version),
            None => Base::Failed,
        }
    }
}

enum Base {
    Version(u64),
    Missing,
    Failed,
}

/// The columns of a new row that the server fills in.
fn created(key: &Key, user: &str, columns: Value) -> Value {
    let mut columns = columns;
    let owner = if key.0 == "messages" { "sender_id" } else { "owner_id" };
    columns[owner] = super::history::user_id(user).into();
    columns
}

/// Whether a row has these columns already.
fn contains(row: &Map<String, Value>, columns: &Value) -> bool {
    let Value::Object(columns) = columns else { return true };
    columns
        .iter()
        .filter(|(name, _)| *name != "created_at")
        .all(|(name, value)| row.get(name) == Some(value))
}

fn write(history: &mut History, key: &Key, operation: &str, columns: Value) -> Value {
    if operation == "delete" {
        let numbers = history
            .row(key)
            .map(|row| (row.number("version") + 1, row.number("revision") + 1));
        history.remove(key, false);
        let (version, revision) = numbers.unwrap_or_default();
        return numbered(key, version, revision);
    }
    history.put(key.clone(), columns, None, &[], false);
    applied(history, key)
}

fn applied(history: &History, key: &Key) -> Value {
    let numbers = history
        .row(key)
        .map(|row| (row.number("version"), row.number("revision")));
    let (version, revision) = numbers.unwrap_or_default();
    numbered(key, version, revision)
}

fn numbered(key: &Key, version: u64, revision: u64) -> Value {
    let mut result = json!({"status": "applied"});
    if version > 0 {
        result["version"] = version.into();
    }
    if key.0 == "messages" {
        result["revision"] = revision.into();
    }
    result
}

fn rejected(code: &str, message: &str) -> Value {
    json!({"status": "rejected", "code": code, "message": message})
}

/// A stored result as a repeat gets it: `server` is the row as it is now, and `overtaken` says that the row is not any more as
/// the item left it.
fn current(history: &History, user: &str, item: &Value, mut result: Value) -> Value {
    let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
    let row = history
        .row(&(text("table"), text("id")))
        .filter(|row| history.sees(user, row));
    if result["status"] == "applied" {
        let left = result["version"].as_u64().unwrap_or(0);
        let is_deleted = item["op"] == "delete";
        if row.map_or(!is_deleted, |row| is_deleted || row.number("version") < left) {
            result["overtaken"] = true.into();
        }
    }
    if result.get("server").is_some() {
        result["server"] = row.map_or(Value::Null, |row| Value::Object(row.columns.clone()));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::history::uuid_of;

    fn item(seq: u64, op: &str, rest: Value) -> Value {
        let mut item = json!({"seq": seq, "table": "tasks", "op": op, "id": uuid_of("a")});
        for (name, value) in rest.as_object().expect("an object") {
            item[name] = value.clone();
        }
        item
    }

    #[test]
    fn numbers_return_their_first_result_and_refuse_others() {
        let (mut history, mut uploads) = (History::new(&["alice"]), Uploads::default());
        let mut send = |items: &[Value]| uploads.apply(&mut history, "d", "alice", &json!({"items": items}));
        let create = item(1, "create", json!({"row": {"title": "a"}}));
        let edit = item(2, "edit", json!({"row": {"title": "b"}, "base_seq": 1}));
        let first = send(&[create.clone(), edit.clone()]).expect("results");
        assert_eq!(first["results"][1]["version"], 2);
        assert_eq!(send(&[create.clone(), edit]).expect("results"), first);
        assert_eq!(send(&[item(4, "delete", json!({}))]), Err(Refusal::Gap { expected: 3 }));
        let other = item(1, "create", json!({"row": {"title": "other"}}));
        assert_eq!(send(&[other]), Err(Refusal::Restored { expected: 3 }));
        let late = item(3, "edit", json!({"row": {"title": "c"}, "base_version": 1}));
        let late = send(&[late]).expect("results");
        assert_eq!(
            (
                late["results"][0]["status"].as_str(),
                &late["results"][0]["server"]["title"]
            ),
            (Some("conflict"), &json!("b"))
        );
        let next = send(&[item(4, "edit", json!({"row": {}, "base_seq": 3}))]).expect("results");
        assert_eq!(next["results"][0]["code"], "DEPENDS_ON_FAILED");
    }
}
