//! The steps of a script that others and the server do.

use serde_json::{Map, Value, json};

use super::case::Step;
use super::failure::Failure;
use super::history::{Key, user_id, uuid_of};
use super::stage::Inner;
use super::uploads::Scripted;

/// The columns with the UUIDs of names that begin with `@`.
pub fn with_ids(row: &Map<String, Value>) -> Map<String, Value> {
    let value = |value: &Value| match value.as_str().and_then(|text| text.strip_prefix('@')) {
        Some(user @ ("alice" | "bob")) => user_id(user).into(),
        Some(name) => uuid_of(name).into(),
        None => value.clone(),
    };
    row.iter().map(|(name, given)| (name.clone(), value(given))).collect()
}

/// What others and the server do.
pub fn outside(inner: &mut Inner, step: &Step) -> Option<Failure> {
    let key = |table: &str, id: &str| -> Key { (table.to_owned(), uuid_of(id)) };
    match step {
        Step::Put {
            table,
            id,
            row,
            via,
            by,
            silent,
        } => {
            let users = if table == "messages" {
                vec!["alice", "bob"]
            } else {
                vec![by.as_str()]
            };
            inner.history.put(
                key(table, id),
                Value::Object(with_ids(row)),
                via.clone(),
                &users,
                *silent,
            );
        }
        Step::Remove { table, id, silent } => inner.history.remove(&key(table, id), *silent),
        Step::Join { group } => inner.history.join("alice", group),
        Step::Leave { group } => inner.history.leave("alice", group),
        Step::Message { event } => inner.history.send("alice", event, json!({"text": "hello"})),
        Step::Page { rows } => inner.page = *rows,
        Step::Trim {} => inner.history.trim(),
        Step::Mark {} => inner.copy = Some((inner.history.clone(), inner.uploads.clone())),
        Step::Restore {} => {
            let Some((history, uploads)) = inner.copy.clone() else {
                return Some(Failure::Kit("`restore` needs a `mark` before".to_owned()));
            };
            inner.history.restore(&history);
            inner.uploads = uploads;
            inner.has_gone_back = true;
        }
        Step::Lag {} => inner.history.hold(true),
        Step::Repeat { table, id } => inner.history.repeat(&key(table, id)),
        Step::Quiet {} => inner.uploads.is_silent = true,
        Step::CatchUp { changes: Some(changes) } => inner.history.let_through(*changes),
        Step::CatchUp { changes: None } => inner.history.hold(false),
        Step::Fault(fault) => inner.faults.push(fault.clone()),
        Step::Offline {} => inner.is_offline = true,
        Step::Online {} => inner.is_offline = false,
        Step::Result {
            id,
            status,
            code,
            winner,
            gone,
            server,
        } => {
            let mut result = json!({"status": status});
            if let Some(code) = code {
                result["code"] = code.clone().into();
                result["message"] = "by the case".into();
            }
            if let Some(winner) = winner {
                result["winner"] = winner.clone().into();
            }
            if *gone {
                result["server"] = Value::Null;
            }
            if let Some(server) = server {
                result["version"] = server.get("version").cloned().unwrap_or_default();
                result["server"] = Value::Object(server.clone());
                result["server"]["id"] = uuid_of(id).into();
            }
            inner.uploads.scripted.push(Scripted {
                id: uuid_of(id),
                result,
            });
        }
        Step::TooLarge { items, id } => {
            inner.uploads.items_max = *items;
            inner.uploads.oversized = id.as_deref().map(uuid_of);
        }
        Step::Manual {} => inner.uploads.is_manual = true,
        Step::Revoke { user, silent } => inner.revoke(user, *silent),
        Step::Event { name, data, id } => inner.send_event(name, &Value::Object(data.clone()), *id),
        Step::Heartbeat {} => inner.send_heartbeat(),
        Step::HalfOpen {} => inner.leave_streams_half_open(),
        Step::ForgetEvents {} => inner.forget_event_ids(),
        Step::Watch {} => inner.log.watched = inner.log.records.len(),
        other => return Some(Failure::Kit(format!("no step of the server: {other:?}"))),
    }
    None
}
