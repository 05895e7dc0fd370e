//! A phone: what it keeps in its SQLite file, and how it syncs. Whoever writes an app can follow this module.
//!
//! Three tables hold everything:
//!
//! - `messages`: the rows as last seen, one's own changes already made in them, so that the app shows them at once.
//! - `outbox`: one's own changes that the server has not answered for yet, oldest first.
//! - `memory`: who the phone is (device id and token, user id), the sync cursor, the last event's id.
//!
//! The rules that make it exact:
//!
//! 1. Rows and cursor are stored in **one transaction**. So a phone that dies between two batches asks again for what
//!    it has not stored, and for nothing else.
//! 2. A row replaces what is stored when its `version` is **not older**. So a row that comes twice does no harm.
//! 3. A change and its outbox entry are stored in one transaction, with an **id that the phone chose**. So an upload
//!    whose answer was lost is simply sent again: the server answers `duplicate`.
//! 4. An outbox entry goes only when the server has answered for it; `retry` keeps it.
//! 5. A cursor that the server refuses is dropped, never the outbox.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use hyper::{Method, StatusCode};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, Caller, encode};

/// Rows asked for at once; few, so that the demo shows paging.
const BATCH_ROWS: usize = 2;

const SCHEMA: &str = "
CREATE TABLE messages (
    id           TEXT PRIMARY KEY,
    sender_id    TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    content      TEXT NOT NULL,
    version      INTEGER NOT NULL,
    created_at   TEXT NOT NULL,
    read_at      TEXT
);
CREATE TABLE outbox (
    place        INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL,
    op           TEXT NOT NULL,
    content      TEXT NOT NULL,
    base_version INTEGER
);
CREATE TABLE memory (key TEXT PRIMARY KEY, value TEXT NOT NULL);
";

/// A message, as the API shows it and as the phone keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// Chosen by whoever writes it.
    pub(super) id: String,
    /// Who wrote it.
    pub(super) sender_id: String,
    /// Who is to read it.
    pub(super) recipient_id: String,
    /// What it says.
    pub(super) content: String,
    /// Grows with every change of the message.
    pub(super) version: i64,
    /// When it was written, RFC 3339.
    pub(super) created_at: String,
    /// When its recipient read it.
    pub(super) read_at: Option<String>,
    /// Set once it is deleted; the phone then forgets it.
    #[serde(default, skip_serializing)]
    pub(super) deleted_at: Option<String>,
}

/// One answer of `GET /api/sync/incoming`.
#[derive(Debug, Deserialize)]
pub(super) struct Batch {
    messages: Vec<Message>,
    /// Rows of other tables, and rows that have gone.
    #[serde(default)]
    changes: Vec<Change>,
    /// Where the next batch begins; asking with it acknowledges this one.
    cursor: String,
    has_more: bool,
    /// From here on all there is comes again: rows of before that do not come are gone.
    reset: bool,
}

/// A row that came, changed or went, of any table.
#[derive(Debug, Deserialize)]
struct Change {
    table: String,
    op: String,
    id: Option<String>,
}

/// What the server made of one uploaded item.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Outcome {
    /// Id of the message.
    pub(super) id: String,
    /// `applied`, `duplicate`, `conflict`, `rejected` or `retry`.
    pub(super) status: String,
    /// Why, when it was refused.
    #[serde(default)]
    message: Option<String>,
    /// The message as the server has it now.
    #[serde(default)]
    server: Option<Value>,
}

/// Items of the outbox on their way to the server.
#[derive(Debug, Default)]
pub(super) struct Upload {
    items: Vec<Value>,
    last_place: i64,
}

#[derive(Debug, Deserialize)]
struct UploadAnswer {
    results: Vec<Outcome>,
}

/// What a sync brought.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// Answers read.
    pub(super) batches: usize,
    /// Rows in them.
    pub(super) rows: usize,
}

/// The phone.
#[derive(Debug)]
pub(super) struct Phone {
    database: Connection,
    /// Who it is to the server.
    pub(super) caller: Caller,
    /// Its user.
    pub(super) user_id: String,
    /// The id that it chose for itself.
    pub(super) device_id: String,
}

impl Phone {
    /// A phone that has just been enrolled, with an empty database in this file.
    pub(super) fn new(file: &Path, device_id: &str, device_token: &str, user_id: &str) -> Result<Self> {
        let mut database =
            Connection::open(file).with_context(|| format!("cannot open the SQLite file {}", file.display()))?;
        database.execute_batch(SCHEMA).context("making the phone's tables")?;
        let transaction = database.transaction()?;
        remember(&transaction, "device_id", device_id)?;
        remember(&transaction, "device_token", device_token)?;
        remember(&transaction, "user_id", user_id)?;
        transaction.commit()?;
        Ok(Self {
            database,
            caller: Caller::Device {
                id: device_id.to_owned(),
                token: device_token.to_owned(),
            },
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
        })
    }

    /// Reads batches until there is no more, storing each with its cursor.
    pub(super) async fn sync(&mut self, api: &Api) -> Result<Synced> {
        let mut synced = Synced::default();
        loop {
            let cursor = self.recall("cursor")?;
            let path = match &cursor {
                Some(cursor) => format!("/api/sync/incoming?limit={BATCH_ROWS}&cursor={}", encode(cursor)),
                None => format!("/api/sync/incoming?limit={BATCH_ROWS}"),
            };
            let reply = api.send(&self.caller, Method::GET, &path, None).await?;
            if reply.error_code() == Some("INVALID_CURSOR") && cursor.is_some() {
                self.database.execute("DELETE FROM memory WHERE key = 'cursor'", [])?;
                continue;
            }
            if reply.status != StatusCode::OK {
                bail!("GET {path} answered {}: {}", reply.status, reply.body);
            }
            let batch = Batch::deserialize(&reply.body).with_context(|| format!("GET {path}: {}", reply.body))?;
            if batch.has_more && cursor.as_ref() == Some(&batch.cursor) {
                bail!("GET {path} says that there is more but gives the same cursor again");
            }
            self.store(&batch)?;
            synced.batches += 1;
            synced.rows += batch.messages.len();
            if !batch.has_more {
                return Ok(synced);
            }
        }
    }

    /// Rules 1 and 2.
    fn store(&mut self, batch: &Batch) -> Result<()> {
        let transaction = self.database.transaction()?;
        if batch.reset {
            transaction.execute("DELETE FROM messages WHERE id NOT IN (SELECT id FROM outbox)", [])?;
        }
        for change in &batch.changes {
            if change.table == "messages" && change.op == "delete" {
                transaction.execute("DELETE FROM messages WHERE id = ?1", [&change.id])?;
            }
        }
        for message in &batch.messages {
            put(&transaction, message)?;
        }
        remember(&transaction, "cursor", &batch.cursor)?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes a message, on line or not (rule 3).
    pub(super) fn write(&mut self, recipient_id: &str, content: &str) -> Result<Message> {
        let message = Message {
            id: uuid::Uuid::new_v4().to_string(),
            sender_id: self.user_id.clone(),
            recipient_id: recipient_id.to_owned(),
            content: content.to_owned(),
            version: 1,
            created_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
            read_at: None,
            deleted_at: None,
        };
        let transaction = self.database.transaction()?;
        put(&transaction, &message)?;
        queue(&transaction, &message.id, "create", content, None)?;
        transaction.commit()?;
        Ok(message)
    }

    /// Changes what a message says. The version that the phone knew goes along, so that the server can tell whether
    /// somebody else changed the message meanwhile.
    pub(super) fn edit(&mut self, id: &str, content: &str) -> Result<()> {
        let transaction = self.database.transaction()?;
        let base_version: i64 =
            transaction.query_row("SELECT version FROM messages WHERE id = ?1", [id], |row| row.get(0))?;
        transaction.execute("UPDATE messages SET content = ?2 WHERE id = ?1", [id, content])?;
        queue(&transaction, id, "edit", content, Some(base_version))?;
        transaction.commit()?;
        Ok(())
    }

    /// What is in the outbox now, as an upload. It can be sent again unchanged when the answer was lost.
    pub(super) fn outbox(&self) -> Result<Upload> {
        let mut statement = self.database.prepare(
            "SELECT outbox.*, messages.sender_id, messages.recipient_id, messages.created_at
             FROM outbox JOIN messages USING (id) ORDER BY outbox.place",
        )?;
        let items = statement.query_map([], |row| {
            let item = json!({
                "op": row.get::<_, String>("op")?,
                "base_version": row.get::<_, Option<i64>>("base_version")?,
                "id": row.get::<_, String>("id")?,
                "sender_id": row.get::<_, String>("sender_id")?,
                "recipient_id": row.get::<_, String>("recipient_id")?,
                "content": row.get::<_, String>("content")?,
                "status": "pending_sync",
                "created_at": row.get::<_, String>("created_at")?,
            });
            Ok((row.get::<_, i64>("place")?, item))
        })?;
        let mut upload = Upload::default();
        for item in items {
            let (place, item) = item?;
            upload.last_place = place;
            upload.items.push(item);
        }
        Ok(upload)
    }

    /// Uploads and settles what the server answered for (rule 4).
    pub(super) async fn upload(&mut self, api: &Api, upload: &Upload) -> Result<Vec<Outcome>> {
        let body = json!({"messages": upload.items, "compressed": false});
        let answer: UploadAnswer = api
            .call(&self.caller, Method::POST, "/api/sync/outgoing", Some(body))
            .await?;
        let transaction = self.database.transaction()?;
        for outcome in &answer.results {
            match outcome.status.as_str() {
                "applied" | "duplicate" | "conflict" => {
                    // What was queued for the same message since then has not been answered for.
                    transaction.execute(
                        "DELETE FROM outbox WHERE id = ?1 AND place <= ?2",
                        params![outcome.id, upload.last_place],
                    )?;
                    // After a conflict the server's word counts; both versions are kept there.
                    if let Some(server) = outcome.server.as_ref().and_then(|row| Message::deserialize(row).ok()) {
                        put(&transaction, &server)?;
                    }
                }
                "retry" => {}
                status => bail!(
                    "the upload of {} is {status}: {}",
                    outcome.id,
                    outcome.message.as_deref().unwrap_or("no reason given")
                ),
            }
        }
        transaction.commit()?;
        Ok(answer.results)
    }

    /// Entries in the outbox.
    pub(super) fn pending(&self) -> Result<u32> {
        Ok(self
            .database
            .query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?)
    }

    /// All messages by id.
    pub(super) fn messages(&self) -> Result<BTreeMap<String, Message>> {
        let mut statement = self.database.prepare("SELECT * FROM messages")?;
        let rows = statement.query_map([], |row| {
            Ok(Message {
                id: row.get("id")?,
                sender_id: row.get("sender_id")?,
                recipient_id: row.get("recipient_id")?,
                content: row.get("content")?,
                version: row.get("version")?,
                created_at: row.get("created_at")?,
                read_at: row.get("read_at")?,
                deleted_at: None,
            })
        })?;
        rows.map(|row| row.map(|message| (message.id.clone(), message)).map_err(Into::into))
            .collect()
    }

    /// The id of the last event that it has seen, from which it resumes the stream.
    pub(super) fn last_event_id(&self) -> Result<Option<String>> {
        self.recall("last_event_id")
    }

    /// Keeps the id of the last event that it has seen.
    pub(super) fn saw_event(&self, id: Option<&str>) -> Result<()> {
        match id {
            Some(id) => remember(&self.database, "last_event_id", id),
            None => Ok(()),
        }
    }

    fn recall(&self, key: &str) -> Result<Option<String>> {
        recall(&self.database, key)
    }
}

/// Rule 2.
fn put(transaction: &Transaction<'_>, message: &Message) -> Result<()> {
    if message.deleted_at.is_some() {
        transaction.execute("DELETE FROM messages WHERE id = ?1", [&message.id])?;
        return Ok(());
    }
    transaction.execute(
        "INSERT INTO messages (id, sender_id, recipient_id, content, version, created_at, read_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE
         SET content = excluded.content, version = excluded.version, read_at = excluded.read_at
         WHERE excluded.version >= messages.version",
        params![
            message.id,
            message.sender_id,
            message.recipient_id,
            message.content,
            message.version,
            message.created_at,
            message.read_at
        ],
    )?;
    Ok(())
}

fn queue(transaction: &Transaction<'_>, id: &str, op: &str, content: &str, base_version: Option<i64>) -> Result<()> {
    transaction.execute(
        "INSERT INTO outbox (id, op, content, base_version) VALUES (?1, ?2, ?3, ?4)",
        params![id, op, content, base_version],
    )?;
    Ok(())
}

fn remember(database: &Connection, key: &str, value: &str) -> Result<()> {
    database.execute(
        "INSERT INTO memory (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )?;
    Ok(())
}

fn recall(database: &Connection, key: &str) -> Result<Option<String>> {
    let found = database.query_row("SELECT value FROM memory WHERE key = ?1", [key], |row| row.get(0));
    Ok(found.optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phone() -> Phone {
        Phone::new(Path::new(":memory:"), "device", "token", "me").unwrap()
    }

    fn batch(text: Value) -> Batch {
        Batch::deserialize(text).unwrap()
    }

    fn row(id: &str, version: i64, content: &str) -> Value {
        json!({"id": id, "sender_id": "you", "recipient_id": "me", "content": content, "status": "pending_sync",
            "version": version, "created_at": "2026-01-01T00:00:00Z", "read_at": null})
    }

    #[test]
    fn an_older_row_never_replaces_a_newer_one() {
        let mut phone = phone();
        let rows = [row("a", 2, "new"), row("a", 1, "old")];
        let whole = batch(json!({"messages": rows, "cursor": "c1", "has_more": false, "reset": false}));
        phone.store(&whole).unwrap();
        assert_eq!(phone.messages().unwrap()["a"].content, "new");
        assert_eq!(phone.recall("cursor").unwrap().as_deref(), Some("c1"));
    }

    #[test]
    fn a_reset_in_two_batches_drops_what_came_before_it_but_not_the_outbox() {
        let mut phone = phone();
        let before =
            batch(json!({"messages": [row("gone", 1, "x")], "cursor": "1", "has_more": false, "reset": false}));
        phone.store(&before).unwrap();
        let mine = phone.write("you", "mine").unwrap();
        for (id, is_first) in [("a", true), ("b", false)] {
            let page = json!({"messages": [row(id, 1, "x")], "cursor": id, "has_more": is_first, "reset": is_first});
            let part = batch(page);
            phone.store(&part).unwrap();
        }
        let kept = phone.messages().unwrap();
        assert!(kept.contains_key("a") && kept.contains_key("b") && kept.contains_key(&mine.id));
        assert!(!kept.contains_key("gone"));
        assert_eq!(phone.pending().unwrap(), 1);
    }

    #[test]
    fn a_deleted_message_is_forgotten() {
        let mut phone = phone();
        let first = json!({"messages": [row("a", 1, "x")], "cursor": "1", "has_more": false, "reset": false});
        phone.store(&batch(first)).unwrap();
        let gone = [json!({"table": "messages", "op": "delete", "id": "a", "row": null})];
        let second = json!({"messages": [], "changes": gone, "cursor": "2", "has_more": false, "reset": false});
        phone.store(&batch(second)).unwrap();
        assert!(phone.messages().unwrap().is_empty());
    }

    #[test]
    fn the_outbox_keeps_its_order_and_tells_the_version_that_an_edit_was_based_on() {
        let mut phone = phone();
        let first = phone.write("you", "one").unwrap();
        phone.edit(&first.id, "two").unwrap();
        let items = phone.outbox().unwrap().items;
        let ops: Vec<&Value> = items.iter().map(|item| &item["op"]).collect();
        assert_eq!(ops, ["create", "edit"]);
        assert_eq!(
            (&items[0]["content"], &items[1]["content"]),
            (&json!("one"), &json!("two"))
        );
        assert_eq!(
            (&items[0]["base_version"], &items[1]["base_version"]),
            (&Value::Null, &json!(1))
        );
    }

    #[test]
    fn a_row_that_arrives_does_not_change_what_waits_in_the_outbox() {
        let mut phone = phone();
        let mine = phone.write("you", "mine").unwrap();
        let rows = [row(&mine.id, 2, "theirs")];
        let whole = batch(json!({"messages": rows, "cursor": "1", "has_more": false, "reset": false}));
        phone.store(&whole).unwrap();
        assert_eq!(phone.outbox().unwrap().items[0]["content"], "mine");
    }
}
