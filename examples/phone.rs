//! The reference phone: a complete client in one file, with its state in SQLite. It implements `docs/sync-protocol.md`.
//! The tests and `posduif demo` use this code.
//!
//! ```sh
//! cargo run --example phone -- enroll http://127.0.0.1:8080/api/enrollment/<token>     # the URL in the QR code
//! cargo run --example phone -- send bob "Hello"
//! cargo run --example phone -- watch
//! ```
//!
//! Six tables hold the state:
//!
//! - `rows`: the rows of all tables, as received from the server.
//! - `groups`: the groups of the user. A row that groups see is kept while one of them, or the user, is among its `via`.
//! - `settled`: which of them the result of an upload brought, ahead of the batches.
//! - `outbox`: changes of the user without a result from the server, by sequence number.
//! - `refused`: changes that the server rejected, for the user.
//! - `memory`: identity, cursor, id of the last event, highest number with a result.
//!
//! The user sees `rows` with the outbox applied ([`Phone::view`]); the two are stored separately.
//!
//! Six rules make it exact, whatever is lost, repeated or killed:
//!
//! 1. Rows and cursor are stored in **one transaction**. A phone that dies requests again what it has not stored.
//! 2. A cursor is sent **only after its rows are stored**, because sending it acknowledges them.
//! 3. A row **replaces** the stored one unless that is newer: by its revision, or by the result of an own upload that batches
//!    have not reached. Duplicates have no effect.
//! 4. Each change gets the next **sequence number**. Without a response the same items are **repeated** unchanged, and the
//!    server returns their first results.
//! 5. A change names **what the user saw**: the version of the row, or the own change in the outbox on which it stands. It
//!    never guesses a version.
//! 6. An item leaves the outbox only in the transaction that stores **its result**, and in order.
//!
//! It uses plain HTTP; an app uses the HTTPS client of its platform.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

// ---------------------------------------------------------------------------------------------- state

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS rows (
    tbl   TEXT NOT NULL,
    id    TEXT NOT NULL,
    row   TEXT NOT NULL,              -- JSON, as received
    stale INTEGER NOT NULL DEFAULT 0, -- 1 during a snapshot that has not delivered it yet
    via   TEXT,                       -- JSON: who sees it, of tables that groups see; [] if only a result brought it
    PRIMARY KEY (tbl, id)
);
CREATE TABLE IF NOT EXISTS groups (
    name TEXT PRIMARY KEY             -- a group of which the user is a member, `list:42`
);
CREATE TABLE IF NOT EXISTS outbox (
    seq          INTEGER PRIMARY KEY, -- counted from 1, without gaps
    op           TEXT NOT NULL,       -- create, edit, delete, read
    tbl          TEXT NOT NULL,
    id           TEXT NOT NULL,       -- of the row
    row          TEXT NOT NULL,       -- JSON: the columns to write
    base_seq     INTEGER,             -- the own item that the user saw, or
    base_version INTEGER,             -- the version that the user saw; for an item with a base_seq, that of its result
    created_at   TEXT NOT NULL,
    sent         INTEGER NOT NULL DEFAULT 0 -- 1 after the first attempt, 2 if the row was deleted after that, 3 if a snapshot began
);
CREATE TABLE IF NOT EXISTS settled ( -- rows as the results of own changes left them, which no batch has reached yet
    tbl    TEXT NOT NULL,
    id     TEXT NOT NULL,
    number INTEGER NOT NULL,          -- `revision` or `version` of the result
    PRIMARY KEY (tbl, id)
);
CREATE TABLE IF NOT EXISTS refused (
    place  INTEGER PRIMARY KEY,
    op     TEXT NOT NULL,
    tbl    TEXT NOT NULL,
    id     TEXT NOT NULL,
    row    TEXT NOT NULL,
    code   TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS memory (key TEXT PRIMARY KEY, value TEXT NOT NULL);
";

const MESSAGES: &str = "messages";

/// The code of 413: more items than the server accepts at once, or an item that is too large by itself.
const TOO_LARGE: &str = "PAYLOAD_TOO_LARGE";

/// Most items in one upload; the server's default limit is 1,000.
const UPLOAD_ITEMS_MAX: usize = 500;

/// Timeout of one response.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Timeout of an event stream without data; the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(50);

/// Most events that wait for a sync; while there are so many, the stream is not read.
const EVENTS_MAX: usize = 1000;

/// The time between syncs without a stream, until the server has named one.
const SYNC_INTERVAL_SECONDS: u64 = 300;

/// A message as the user sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Chosen by the sender.
    pub(crate) id: String,
    pub(crate) sender_id: String,
    pub(crate) recipient_id: String,
    pub(crate) content: String,
    /// The server increments it by each change of the content.
    pub(crate) version: i64,
    /// Incremented by each change of the row, receipts included: the higher one is newer.
    #[serde(default)]
    pub(crate) revision: i64,
    /// RFC 3339.
    pub(crate) created_at: String,
    #[serde(default)]
    pub(crate) read_at: Option<String>,
}

/// A change of the user without a result from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its number.
    pub(crate) seq: i64,
    /// `create`, `edit`, `delete` or `read`.
    pub(crate) op: String,
    pub(crate) table: String,
    /// Id of the row.
    pub(crate) id: String,
    /// The columns to write.
    pub(crate) row: Value,
    /// The own item that the change is based on.
    pub(crate) base_seq: Option<i64>,
    /// The version that the change is based on. With `base_seq` it is that of the item's result, if there is one.
    pub(crate) base_version: Option<i64>,
    created_at: String,
    /// The row was deleted after its first attempt, or replaced by one that does not compare.
    is_overtaken: bool,
    /// It was sent before the last snapshot began.
    is_earlier: bool,
}

/// A change that the server rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) op: String,
    pub(crate) table: String,
    pub(crate) id: String,
    pub(crate) row: Value,
    /// The code of the server, such as `NOT_FOUND`.
    pub(crate) code: String,
    pub(crate) reason: String,
}

/// The states of `docs/sync-protocol.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No token: never enrolled, or revoked. Rows and outbox are kept.
    Unenrolled,
    /// A token, but no cursor.
    Fresh,
    /// Taking a snapshot: some rows may be outdated.
    Snapshot,
    /// Following the stream.
    Stream,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// No response, or a temporary failure. Whether the request took effect is unknown; repeating it is safe.
    #[error("not now: {cause}")]
    Later {
        cause: String,
        /// `Retry-After`.
        after: Option<Duration>,
    },
    /// The token is no longer valid: enroll again.
    #[error("this device's enrollment has ended")]
    Ended,
    #[error("this phone is not enrolled")]
    Unenrolled,
    /// A permanent failure.
    #[error("refused, {code}: {message}")]
    Refused {
        code: String,
        message: String,
        /// For a wrong sequence number: the next one.
        expected: Option<i64>,
    },
    /// An invalid request by the user.
    #[error("{0}")]
    Misuse(String),
    /// The SQLite file fails.
    #[error("the phone's file: {0}")]
    File(#[from] rusqlite::Error),
}

impl Trouble {
    pub(crate) fn later(cause: impl ToString) -> Self {
        Self::Later {
            cause: cause.to_string(),
            after: None,
        }
    }

    fn is_refusal(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

/// The result of a sync.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) batches: usize,
    pub(crate) rows: usize,
}

/// A sync that the user needs while the phone follows the event stream: they have made a change.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// They wait for it: it begins at once, also during a delay. The answer is whether it succeeded.
    pub(crate) asker: Option<oneshot::Sender<bool>>,
}

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

fn timer(live: &impl Live, duration: Duration) -> Timer {
    Box::pin(live.pause(duration))
}

/// An open stream, and the time after which it counts as broken.
struct Stream<E> {
    events: E,
    silence: Timer,
}

impl<E> Stream<E> {
    fn of(events: E, live: &impl Live) -> Self {
        Self {
            events,
            silence: timer(live, SILENCE_MAX),
        }
    }
}

/// The events that have arrived on a stream.
async fn arrived<L: Live>(stream: &mut Option<Stream<L::Events>>, live: &L) -> Result<Vec<Event>, Trouble> {
    let Some(stream) = stream else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        received = stream.events.receive() => {
            stream.silence = timer(live, SILENCE_MAX);
            received
        }
        () = &mut stream.silence => Err(Trouble::later("no heartbeat came")),
    }
}

/// Ready when the time has passed, once.
async fn over(timer: &mut Option<Timer>) {
    match timer {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
    *timer = None;
}

/// A phone: its SQLite file.
pub(crate) struct Phone {
    database: Connection,
    /// Rows per batch; default of the server if unset.
    pub(crate) batch_rows: Option<usize>,
    /// Most items in one upload.
    pub(crate) upload_items: usize,
}

impl Phone {
    /// Opens or creates the file. Every operation can be interrupted at any point and resumed from the file.
    pub(crate) fn open(path: &Path) -> Result<Self, Trouble> {
        let database = Connection::open(path)?;
        database.execute_batch(SCHEMA)?;
        Ok(Self {
            database,
            batch_rows: None,
            upload_items: UPLOAD_ITEMS_MAX,
        })
    }

    pub(crate) fn state(&self) -> Result<State, Trouble> {
        let has = |key| self.recall(key).map(|value| value.is_some());
        Ok(match (has("device_token")?, has("cursor")?, has("in_snapshot")?) {
            (false, _, _) => State::Unenrolled,
            (true, false, _) => State::Fresh,
            (true, true, true) => State::Snapshot,
            (true, true, false) => State::Stream,
        })
    }

    // ------------------------------------------------------------------------------------------------------ enrolling

    /// Exchanges the token of the QR code for a token of this device. After a lost response the same call returns a new
    /// token.
    pub(crate) async fn enroll(&mut self, network: &impl Network, token: &str) -> Result<(), Trouble> {
        let mut answer = self.complete_enrollment(network, token).await;
        if matches!(&answer, Err(trouble) if trouble.is_refusal("CONFLICT")) {
            // The device may belong to another user there. With another id it can be enrolled.
            forget(&self.database, "device_id")?;
            forget(&self.database, "device_token")?;
            remember(&self.database, "is_another_device", "1")?;
            answer = self.complete_enrollment(network, token).await;
        }
        let enrolled: Enrolled = read(&answer?)?;
        let is_another_user = self.recall("user_id")?.is_some_and(|known| known != enrolled.user_id);
        let is_another_device = self.recall("is_another_device")?.is_some();
        let transaction = self.database.transaction()?;
        if is_another_user {
            // Rows and outbox of one user are private to that user.
            transaction.execute_batch(
                "DELETE FROM rows; DELETE FROM groups; DELETE FROM settled; DELETE FROM outbox; DELETE FROM refused",
            )?;
            ["cursor", "in_snapshot", "last_event_id", "acked_seq"]
                .iter()
                .try_for_each(|key| forget(&transaction, key))?;
        } else if is_another_device {
            // Cursor, numbers and last event are those of the former device.
            let first = transaction.query_row("SELECT min(seq) FROM outbox", [], |row| row.get(0));
            renumber(&transaction, first.optional()?.flatten().unwrap_or(1), 1)?;
            forget(&transaction, "last_event_id")?;
        }
        forget(&transaction, "is_another_device")?;
        remember(&transaction, "device_token", &enrolled.device_token)?;
        remember(&transaction, "user_id", &enrolled.user_id)?;
        transaction.commit()?;
        Ok(())
    }

    async fn complete_enrollment(&mut self, network: &impl Network, token: &str) -> Result<Answer, Trouble> {
        // Stored before it is sent: only the same device may repeat a request with a lost response.
        let device_id = match self.recall("device_id")? {
            Some(device_id) => device_id,
            None => format!("phone-{}", uuid::Uuid::new_v4().simple()),
        };
        remember(&self.database, "device_id", &device_id)?;
        let request = Request {
            method: Method::POST,
            path: "/api/enrollment/complete".to_owned(),
            headers: Vec::new(),
            body: Some(json!({
                "token": token,
                "device_id": device_id,
                "device_info": {"platform": "sqlite", "version": "1", "model": "reference phone"},
            })),
        };
        classify(network.exchange(request).await).map_err(|trouble| match trouble {
            // An invalid enrollment token, unlike that of a device, is 404 or 400.
            Trouble::Ended => Trouble::later("the server requires credentials for an enrollment"),
            trouble => trouble,
        })
    }

    // -------------------------------------------------------------------------------------------------------- syncing

    /// Sends the outbox, then fetches what is new.
    pub(crate) async fn sync(&mut self, network: &impl Network) -> Result<Synced, Trouble> {
        let uploaded = self.upload(network).await;
        if let Err(trouble) = uploaded {
            // Uploads need only Postgres, batches mostly Redis: one may work without the other.
            if matches!(trouble, Trouble::Later { .. }) {
                self.fetch(network).await?;
            }
            return Err(trouble);
        }
        self.fetch(network).await
    }

    /// Fetches batches until there is no more.
    pub(crate) async fn fetch(&mut self, network: &impl Network) -> Result<Synced, Trouble> {
        let mut synced = Synced::default();
        loop {
            let cursor = self.recall("cursor")?;
            let mut path = "/api/sync/incoming?".to_owned();
            if let Some(rows) = self.batch_rows {
                path.push_str(&format!("limit={rows}&"));
            }
            if let Some(cursor) = &cursor {
                path.push_str(&format!("cursor={cursor}"));
            }
            let batch: Batch = match self.request(network, Method::GET, path, None).await {
                Ok(answer) => read(&answer)?,
                // Of another device, or signed with a former secret. Without a cursor a snapshot begins.
                Err(trouble) if trouble.is_refusal("INVALID_CURSOR") && cursor.is_some() => {
                    forget(&self.database, "cursor")?;
                    continue;
                }
                Err(trouble) => return Err(trouble),
            };
            self.store(&batch)?;
            synced.batches += 1;
            synced.rows += batch.messages.len() + batch.users.len() + batch.changes.len();
            if batch.has_more && cursor.as_ref() == Some(&batch.cursor) {
                return Err(Trouble::later(
                    "the server has more rows, but the cursor does not advance",
                ));
            }
            if !batch.has_more {
                break;
            }
        }
        if synced.rows > 0 {
            // The next request would acknowledge the last batch as well, but may be much later.
            let cursor = self.recall("cursor")?;
            let path = "/api/sync/ack".to_owned();
            self.request(network, Method::POST, path, Some(json!({"cursor": cursor})))
                .await?;
        }
        Ok(synced)
    }

    /// Stores a batch and its cursor (rules 1 and 3).
    fn store(&mut self, batch: &Batch) -> Result<(), Trouble> {
        let is_snapshot = batch.reset || self.recall("in_snapshot")?.is_some();
        // Behind a snapshot, and behind the rows of a group, the stream may repeat what is older.
        let is_ahead = is_snapshot || batch.scope.is_some();
        let user_id = self.recall("user_id")?.unwrap_or_default();
        let transaction = self.database.transaction()?;
        if batch.reset {
            // A snapshot begins. Rows that it does not deliver are deleted at its end; until then they remain visible.
            transaction.execute("UPDATE rows SET stale = 1", [])?;
            // Results of what was sent before may be older than the snapshot.
            transaction.execute("UPDATE outbox SET sent = 3 WHERE sent = 1", [])?;
            // The snapshot names them all again.
            transaction.execute("DELETE FROM groups", [])?;
            remember(&transaction, "in_snapshot", "1")?;
        }
        for (table, rows) in [("messages", &batch.messages), ("users", &batch.users)] {
            for row in rows {
                if let Some(id) = row.get("id").and_then(Value::as_str) {
                    receive(&transaction, table, id, row, None, is_ahead)?;
                }
            }
        }
        for change in &batch.changes {
            match (change.op.as_str(), &change.id, &change.row) {
                ("join", Some(id), _) => {
                    let group = format!("{}:{id}", change.group);
                    let join = "INSERT OR IGNORE INTO groups (name) VALUES (?1)";
                    // The rows of a snapshot are as of now already.
                    if transaction.execute(join, [&group])? > 0 && !batch.reset {
                        forget_audience(&transaction, &group)?;
                    }
                }
                ("leave", Some(id), _) => {
                    let leave = "DELETE FROM groups WHERE name = ?1";
                    transaction.execute(leave, [format!("{}:{id}", change.group)])?;
                    forget_unseen(&transaction, &user_id)?;
                }
                ("insert" | "update", Some(id), Some(row))
                    if is_seen(&transaction, change.via.as_deref(), &user_id)? =>
                {
                    let via = change.via.as_ref().map(|via| json!(via).to_string());
                    receive(&transaction, &change.table, id, row, via.as_deref(), is_ahead)?;
                }
                ("delete" | "insert" | "update", Some(id), _) => {
                    remove(&transaction, &change.table, id)?;
                    overtake(&transaction, &change.table, id)?;
                    unsettle(&transaction, &change.table, id)?;
                }
                // A `message` is not a row; an app that uses messages handles it here.
                _ => {}
            }
        }
        if !batch.has_more {
            transaction.execute("DELETE FROM rows WHERE stale", [])?;
            forget(&transaction, "in_snapshot")?;
        }
        if is_snapshot && !batch.has_more {
            // A snapshot does not mention deleted rows.
            overtake_absent(&transaction)?;
            transaction.execute(
                "DELETE FROM settled
                 WHERE NOT EXISTS (SELECT 1 FROM rows WHERE rows.tbl = settled.tbl AND rows.id = settled.id)",
                [],
            )?;
        }
        remember(&transaction, "cursor", &batch.cursor)?;
        transaction.commit()?;
        Ok(())
    }

    /// Sends the outbox in order, until each item has a result.
    pub(crate) async fn upload(&mut self, network: &impl Network) -> Result<(), Trouble> {
        let mut items_max = self.upload_items;
        loop {
            let mut items = self.waiting()?;
            let count = items.len();
            items.truncate(items_max);
            let (Some(first), Some(last)) = (items.first(), items.last()) else {
                return Ok(());
            };
            let mark = "UPDATE outbox SET sent = 1 WHERE seq <= ?1 AND sent = 0";
            self.database.execute(mark, [last.seq])?;
            let body = json!({
                "items": items.iter().map(Item::to_json).collect::<Vec<_>>(),
                "acked_seq": self.acked_seq()?,
                "pending_count": count - items.len(),
            });
            let path = "/api/sync/outgoing".to_owned();
            match self.request(network, Method::POST, path, Some(body)).await {
                Ok(answer) => {
                    let left = self.settle(&items, &read::<UploadAnswer>(&answer)?.results)?;
                    if left > 0 {
                        return Err(Trouble::later(format!("{left} items must be sent again")));
                    }
                }
                Err(Trouble::Refused { code, expected, .. }) if is_about_items(&code) => {
                    match (code.as_str(), expected) {
                        // Of a restored phone, the first items may be repeats; they get their results when they are sent alone.
                        (TOO_LARGE | "DEVICE_RESTORED", _) if items.len() > 1 => items_max = items.len() / 2,
                        (TOO_LARGE, _) => {
                            self.drop_oversized(first)?;
                            items_max = self.upload_items;
                        }
                        (_, Some(expected)) if expected != first.seq => {
                            let transaction = self.database.transaction()?;
                            renumber(&transaction, first.seq, expected)?;
                            transaction.commit()?;
                            items_max = self.upload_items;
                        }
                        _ => return Err(Trouble::later("the server refuses the number that it expects")),
                    }
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Stores results (rule 6), which are in the order of the items; returns the number of items to be sent again.
    fn settle(&mut self, items: &[Item], results: &[ItemResult]) -> Result<usize, Trouble> {
        let user_id = self.recall("user_id")?.unwrap_or_default();
        let transaction = self.database.transaction()?;
        let mut done = 0;
        for (item, result) in items.iter().zip(results) {
            let mut is_in_effect = true;
            match (result.status.as_str(), &result.server) {
                ("duplicate", _) => {}
                // Batches have brought, or bring, what others made of the row.
                ("applied", _) if result.overtaken => {}
                ("applied", Some(_)) if item.is_overtaken => {}
                // Merged with changes of others, which the user sees from now on.
                ("applied", Some(server)) => {
                    settle(&transaction, item, number(&item.table, server))?;
                    put_result(&transaction, &item.table, &item.id, server)?;
                }
                // Stored at once, so that the user does not see the former row, and change that, until the stream delivers
                // the change.
                ("applied", None) => item.store_effect(&transaction, result, &user_id)?,
                // Another client changed it, too. The server decides which version applies, and keeps both.
                ("conflict", server) => {
                    is_in_effect = result.winner.as_deref() == Some("mine");
                    match server {
                        _ if item.is_overtaken => {}
                        Some(server) => {
                            settle(&transaction, item, number(&item.table, server))?;
                            put_result(&transaction, &item.table, &item.id, server)?;
                        }
                        None if item.table == MESSAGES && stored(&transaction, MESSAGES, &item.id)?.is_some() => {
                            settle(&transaction, item, result.number(&item.table))?;
                            remove(&transaction, MESSAGES, &item.id)?;
                        }
                        // The deletion of a row of an own table comes by the stream. One that is not there stays unsettled: if
                        // its id is used again, the numbers start again.
                        None => {}
                    }
                }
                ("rejected", _) => {
                    is_in_effect = false;
                    refuse(
                        &transaction,
                        item,
                        result.code.as_deref().unwrap_or_default(),
                        result.message.as_deref().unwrap_or("no reason given"),
                    )?;
                }
                // `retry`, and statuses of newer servers: this item and those behind it keep their numbers.
                _ => break,
            }
            // What items that stand on this one fall back on when it is no longer in the outbox.
            transaction.execute(
                "UPDATE outbox SET base_version = ?2 WHERE base_seq = ?1",
                params![item.seq, result.version.filter(|_| is_in_effect)],
            )?;
            transaction.execute("DELETE FROM outbox WHERE seq = ?1", [item.seq])?;
            remember(&transaction, "acked_seq", &item.seq.to_string())?;
            done += 1;
        }
        transaction.commit()?;
        Ok(items.len() - done)
    }

    /// Takes the first item out of the outbox, which is too large for the server by itself. Its number was not used up.
    fn drop_oversized(&mut self, item: &Item) -> Result<(), Trouble> {
        let transaction = self.database.transaction()?;
        refuse(&transaction, item, TOO_LARGE, "it is too large")?;
        transaction.execute("DELETE FROM outbox WHERE seq = ?1", [item.seq])?;
        transaction.execute(
            "UPDATE outbox SET base_seq = ?2, base_version = ?3 WHERE base_seq = ?1",
            params![item.seq, item.base_seq, item.base_version],
        )?;
        shift(&transaction, item.seq, -1)?;
        transaction.commit()?;
        Ok(())
    }

    /// The highest number whose result is stored.
    fn acked_seq(&self) -> Result<i64, Trouble> {
        let stored = self.recall("acked_seq")?;
        Ok(stored.and_then(|seq| seq.parse().ok()).unwrap_or(0))
    }

    /// Sends a request as this device.
    async fn request(
        &mut self,
        network: &impl Network,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> Result<Answer, Trouble> {
        let headers = self.credentials()?;
        let request = Request {
            method,
            path,
            headers,
            body,
        };
        let answer = classify(network.exchange(request).await);
        if let Err(Trouble::Ended) = answer {
            forget(&self.database, "device_token")?;
        }
        answer
    }

    fn credentials(&self) -> Result<Vec<(&'static str, String)>, Trouble> {
        match (self.recall("device_id")?, self.recall("device_token")?) {
            (Some(id), Some(token)) => Ok(vec![("x-device-id", id), ("authorization", format!("Bearer {token}"))]),
            _ => Err(Trouble::Unenrolled),
        }
    }

    // ------------------------------------------------------------------------------------------------- staying up to date

    /// Follows the event stream. Syncs when it opens, at its events and at the user's wishes, and at the interval of the server
    /// while there is none. Returns only on permanent failures.
    pub(crate) async fn watch<L: Live>(
        &mut self,
        live: &L,
        wishes: &mut mpsc::Receiver<Wish>,
        mut on_event: impl FnMut(&Self, &Event),
    ) -> Result<(), Trouble> {
        let interval = self.sync_interval(live).await?;
        let (mut opening, mut syncing) = (Backoff::default(), Backoff::default());
        let mut stream: Option<Stream<L::Events>> = None;
        // Until the stream may be opened, until a sync may be repeated, and until one is due without a stream.
        let (mut closed, mut held, mut alone): (Option<Timer>, Option<Timer>, Option<Timer>) = (None, None, None);
        let mut is_due = true;
        // Events that no sync has followed, and users who wait for one.
        let (mut events, mut askers): (Vec<Event>, Vec<oneshot::Sender<bool>>) = (Vec::new(), Vec::new());
        loop {
            if stream.is_none() && closed.is_none() {
                match self.listen(live).await {
                    // Once it is open, so that no change is missed in between.
                    Ok(opened) => (stream, is_due) = (Some(Stream::of(opened, live)), true),
                    Err(Trouble::Later { after, .. }) => closed = Some(timer(live, opening.next(after))),
                    Err(trouble) => return Err(trouble),
                }
            }
            // What arrives during a sync, and how the stream ends then.
            let (mut news, mut end) = (Vec::new(), None);
            if is_due && held.is_none() {
                let sync = self.sync(live);
                tokio::pin!(sync);
                let outcome = loop {
                    tokio::select! {
                        biased;
                        outcome = &mut sync => break outcome,
                        received = arrived(&mut stream, live), if end.is_none() && news.len() < EVENTS_MAX => {
                            match received {
                                Ok(received) => news.extend(received),
                                Err(trouble) => end = Some(trouble),
                            }
                        }
                    }
                };
                for asker in askers.drain(..) {
                    asker.send(outcome.is_ok()).ok();
                }
                match outcome {
                    Ok(_) => {
                        (is_due, syncing) = (false, Backoff::default());
                        if stream.is_some() {
                            opening = Backoff::default();
                        }
                        alone = Some(timer(live, interval));
                    }
                    Err(Trouble::Later { after, .. }) => held = Some(timer(live, syncing.next(after))),
                    Err(trouble) => return Err(trouble),
                }
            }
            if !is_due {
                // One sync covers all events received before it.
                for event in events.drain(..) {
                    self.saw(&event)?;
                    on_event(self, &event);
                }
            }
            if news.is_empty() && end.is_none() && !(is_due && held.is_none()) {
                tokio::select! {
                    biased;
                    received = arrived(&mut stream, live), if events.len() < EVENTS_MAX => match received {
                        Ok(received) => news = received,
                        Err(trouble) => end = Some(trouble),
                    },
                    Some(wish) = wishes.recv() => {
                        is_due = true;
                        if let Some(asker) = wish.asker {
                            held = None;
                            askers.push(asker);
                        }
                    }
                    () = over(&mut closed) => {}
                    () = over(&mut held) => {}
                    () = over(&mut alone), if stream.is_none() => is_due = true,
                }
            }
            for event in news {
                // Events only signal a change; the rows come by sync.
                is_due |= event.id.is_some();
                match event.name.as_str() {
                    "revoked" => end = Some(Trouble::Ended),
                    "bye" => {
                        let pause = event.field("reconnect_ms").and_then(|ms| ms.as_u64());
                        let pause = Duration::from_millis(pause.unwrap_or(1000));
                        (stream, closed) = (None, Some(timer(live, pause)));
                    }
                    _ => {}
                }
                events.push(event);
            }
            match end {
                Some(Trouble::Ended) => {
                    forget(&self.database, "device_token")?;
                    return Err(Trouble::Ended);
                }
                Some(_) if stream.take().is_some() => closed = Some(timer(live, opening.next(None))),
                _ => {}
            }
        }
    }

    /// How often to sync without a stream, as the server says.
    async fn sync_interval(&mut self, network: &impl Network) -> Result<Duration, Trouble> {
        let path = "/api/app-instructions".to_owned();
        match self.request(network, Method::GET, path, None).await {
            Ok(answer) => {
                let seconds = answer.body.pointer("/sync_config/sync_interval_seconds");
                if let Some(seconds) = seconds.and_then(Value::as_u64) {
                    remember(&self.database, "sync_interval", &seconds.to_string())?;
                }
            }
            // The last known one.
            Err(Trouble::Later { .. } | Trouble::Refused { .. }) => {}
            Err(trouble) => return Err(trouble),
        }
        let seconds = self.recall("sync_interval")?.and_then(|seconds| seconds.parse().ok());
        Ok(Duration::from_secs(seconds.unwrap_or(SYNC_INTERVAL_SECONDS)))
    }

    /// Stores the id of an event, after which the next stream begins.
    pub(crate) fn saw(&self, event: &Event) -> Result<(), Trouble> {
        match &event.id {
            Some(id) => remember(&self.database, "last_event_id", id),
            None => Ok(()),
        }
    }

    /// Opens the event stream after the last event that this phone has received.
    pub(crate) async fn listen<L: Live>(&mut self, live: &L) -> Result<L::Events, Trouble> {
        loop {
            let mut headers = self.credentials()?;
            let device_id = self.recall("device_id")?.unwrap_or_default();
            let last_event_id = self.recall("last_event_id")?;
            // The id of an event is not a cursor for `fetch`: that would acknowledge rows that are not stored (rule 2).
            headers.extend(last_event_id.iter().map(|id| ("last-event-id", id.clone())));
            let path = format!("/sse/mobile/{device_id}");
            match live.events(path, headers).await {
                Err(trouble) if trouble.is_refusal("INVALID_CURSOR") && last_event_id.is_some() => {
                    forget(&self.database, "last_event_id")?;
                }
                Err(Trouble::Ended) => {
                    forget(&self.database, "device_token")?;
                    return Err(Trouble::Ended);
                }
                answer => return answer,
            }
        }
    }

    // -------------------------------------------------------------------------------------------- changes by the user

    /// Writes a message, online or not; returns its id.
    pub(crate) fn send(&mut self, recipient_id: &str, content: &str) -> Result<String, Trouble> {
        let row = json!({"recipient_id": recipient_id, "content": content, "created_at": now()});
        self.create_row(MESSAGES, row)
    }

    pub(crate) fn edit(&mut self, id: &str, content: &str) -> Result<(), Trouble> {
        self.edit_row(MESSAGES, id, json!({"content": content}))
    }

    pub(crate) fn delete(&mut self, id: &str) -> Result<(), Trouble> {
        self.delete_row(MESSAGES, id)
    }

    /// Marks a message as read.
    pub(crate) fn read(&mut self, id: &str) -> Result<(), Trouble> {
        self.queue("read", MESSAGES, id, json!({}))
    }

    /// Adds a row to a table that the server lets devices write; returns its id.
    pub(crate) fn create_row(&mut self, table: &str, row: Value) -> Result<String, Trouble> {
        let id = uuid::Uuid::new_v4().to_string();
        self.queue("create", table, &id, row)?;
        Ok(id)
    }

    /// Changes columns of a row.
    pub(crate) fn edit_row(&mut self, table: &str, id: &str, columns: Value) -> Result<(), Trouble> {
        self.queue("edit", table, id, columns)
    }

    pub(crate) fn delete_row(&mut self, table: &str, id: &str) -> Result<(), Trouble> {
        self.queue("delete", table, id, json!({}))
    }

    /// Adds a change to the outbox with the next number (rule 4) and its base (rule 5).
    pub(crate) fn queue(&mut self, op: &str, table: &str, id: &str, row: Value) -> Result<(), Trouble> {
        if op != "create" && !self.view(table)?.contains_key(id) {
            return Err(Trouble::Misuse(format!("there is no row {id} of {table} here")));
        }
        // Reading contests nothing, and a new row has no base.
        let (base_seq, base_version) = match op {
            "edit" | "delete" => self.base(table, id)?,
            _ => (None, None),
        };
        let acked_seq = self.acked_seq()?;
        self.database.execute(
            "INSERT INTO outbox (seq, op, tbl, id, row, base_seq, base_version, created_at)
             VALUES ((SELECT coalesce(max(seq), ?1) + 1 FROM outbox), ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![acked_seq, op, table, id, row.to_string(), base_seq, base_version, now()],
        )?;
        Ok(())
    }

    /// What the user sees of a row is the last own change in the outbox, or else a version of the server.
    fn base(&self, table: &str, id: &str) -> Result<(Option<i64>, Option<i64>), Trouble> {
        let own: Option<i64> = self.database.query_row(
            "SELECT max(seq) FROM outbox WHERE tbl = ?1 AND id = ?2 AND op <> 'read'",
            [table, id],
            |row| row.get(0),
        )?;
        Ok(match own {
            Some(seq) => (Some(seq), None),
            None => {
                let row = stored(&self.database, table, id)?;
                (None, row.and_then(|row| row.get("version")?.as_i64()))
            }
        })
    }

    // ------------------------------------------------------------------------------------------------ what the user sees

    /// All messages between users by id, with the outbox applied; those to groups are in the view of the table.
    pub(crate) fn messages(&self) -> Result<BTreeMap<String, Message>, Trouble> {
        let messages = self.view(MESSAGES)?.into_iter();
        Ok(messages
            .filter_map(|(id, row)| Some((id, Message::deserialize(row).ok()?)))
            .collect())
    }

    /// All rows of a table by id, with the outbox applied.
    pub(crate) fn view(&self, table: &str) -> Result<BTreeMap<String, Value>, Trouble> {
        let user_id = self.recall("user_id")?.unwrap_or_default();
        let mut rows = self.rows(table)?;
        for item in self.waiting()?.into_iter().filter(|item| item.table == table) {
            if let Some(after) = item.change(rows.remove(&item.id), &user_id) {
                rows.insert(item.id, after);
            }
        }
        Ok(rows)
    }

    /// All rows of a table by id, as received.
    pub(crate) fn rows(&self, table: &str) -> Result<BTreeMap<String, Value>, Trouble> {
        let mut statement = self.database.prepare("SELECT id, row FROM rows WHERE tbl = ?1")?;
        let rows = statement.query_map([table], |row| Ok((row.get(0)?, parse(&row.get::<_, String>(1)?))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Changes without a result, in their order.
    pub(crate) fn waiting(&self) -> Result<Vec<Item>, Trouble> {
        let mut statement = self.database.prepare("SELECT * FROM outbox ORDER BY seq")?;
        let items = statement.query_map([], |row| {
            Ok(Item {
                seq: row.get("seq")?,
                op: row.get("op")?,
                table: row.get("tbl")?,
                id: row.get("id")?,
                row: parse(&row.get::<_, String>("row")?),
                base_seq: row.get("base_seq")?,
                base_version: row.get("base_version")?,
                created_at: row.get("created_at")?,
                is_overtaken: row.get::<_, i64>("sent")? == 2,
                is_earlier: row.get::<_, i64>("sent")? == 3,
            })
        })?;
        Ok(items.collect::<Result<_, _>>()?)
    }

    /// Rejected changes.
    pub(crate) fn refused(&self) -> Result<Vec<Refused>, Trouble> {
        let mut statement = self.database.prepare("SELECT * FROM refused ORDER BY place")?;
        let items = statement.query_map([], |row| {
            Ok(Refused {
                op: row.get("op")?,
                table: row.get("tbl")?,
                id: row.get("id")?,
                row: parse(&row.get::<_, String>("row")?),
                code: row.get("code")?,
                reason: row.get("reason")?,
            })
        })?;
        Ok(items.collect::<Result<_, _>>()?)
    }

    /// A value of `memory`: `device_id`, `user_id`, `cursor`, `last_event_id` and the like.
    pub(crate) fn recall(&self, key: &str) -> Result<Option<String>, Trouble> {
        let found = self
            .database
            .query_row("SELECT value FROM memory WHERE key = ?1", [key], |row| row.get(0));
        Ok(found.optional()?)
    }
}

impl Item {
    /// The row after the change; `None` if it deletes the row or there is none.
    fn change(&self, before: Option<Value>, user_id: &str) -> Option<Value> {
        let mut row = match self.op.as_str() {
            "create" if self.table == MESSAGES => {
                json!({"id": self.id, "sender_id": user_id, "version": 1, "revision": 1, "read_at": null})
            }
            "create" => json!({"id": self.id}),
            "delete" => return None,
            _ => before?,
        };
        let columns = row.as_object_mut()?;
        columns.extend(self.row.as_object()?.clone());
        if self.op == "read" && columns.get("read_at").is_none_or(Value::is_null) {
            columns.insert("read_at".to_owned(), json!(self.created_at));
        }
        Some(row)
    }

    /// Stores the row after the change, with what its result adds. If the item was sent before, batches may have delivered the
    /// change since, and others after it: a row that is not older stays, and a deleted one stays deleted.
    fn store_effect(&self, transaction: &Transaction<'_>, result: &ItemResult, user_id: &str) -> Result<(), Trouble> {
        let before = stored(transaction, &self.table, &self.id)?;
        let is_older = |row: &Value| {
            let numbers = number(&self.table, row).zip(result.number(&self.table));
            numbers.is_none_or(|(row, result)| row < result)
        };
        let is_gone = before.is_none() && self.op != "create";
        if self.is_overtaken || is_gone || before.as_ref().is_some_and(|row| !is_older(row)) {
            return Ok(());
        }
        settle(transaction, self, result.number(&self.table))?;
        // Only the snapshot decides whether such a row is still there.
        let is_uncertain = self.is_earlier
            && transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM memory WHERE key = 'in_snapshot')
                    AND NOT EXISTS (SELECT 1 FROM rows WHERE tbl = ?1 AND id = ?2 AND NOT stale)",
                [&self.table, &self.id],
                |row| row.get(0),
            )?;
        let Some(mut after) = self.change(before, user_id) else {
            return remove(transaction, &self.table, &self.id);
        };
        for (name, value) in [("version", result.version), ("revision", result.revision)] {
            if let (Some(columns), Some(value)) = (after.as_object_mut(), value) {
                columns.insert(name.to_owned(), json!(value));
            }
        }
        put_result(transaction, &self.table, &self.id, &after)?;
        let keep = "UPDATE rows SET stale = 1 WHERE ?3 AND tbl = ?1 AND id = ?2";
        transaction.execute(keep, params![self.table, self.id, is_uncertain])?;
        Ok(())
    }

    /// The item in an upload: the same each time.
    pub(crate) fn to_json(&self) -> Value {
        let mut item = json!({"seq": self.seq, "table": self.table, "op": self.op, "id": self.id, "row": self.row});
        match self.base_seq {
            Some(seq) => item["base_seq"] = json!(seq),
            None => item["base_version"] = json!(self.base_version),
        }
        item
    }
}

/// What grows with each change of a row: `revision` of messages, `version` of rows of other tables, if they have one. A
/// column `revision` of an own table is one of the app.
fn number(table: &str, row: &Value) -> Option<i64> {
    let name = if table == MESSAGES { "revision" } else { "version" };
    row.get(name)?.as_i64()
}

impl ItemResult {
    fn number(&self, table: &str) -> Option<i64> {
        if table == MESSAGES { self.revision } else { self.version }
    }
}

/// Whether a refusal of an upload is about the number of its items or their sequence numbers.
fn is_about_items(code: &str) -> bool {
    matches!(code, TOO_LARGE | "DEVICE_RESTORED" | "SEQUENCE_GAP")
}

/// Stores a row and who sees it, unless the stored one is newer. Only messages have revisions; of other rows the last one
/// applies. Stale rows are of another epoch, whose revisions do not compare.
fn put(transaction: &Transaction<'_>, table: &str, id: &str, row: &Value, via: Option<&str>) -> Result<(), Trouble> {
    transaction.execute(
        "INSERT INTO rows (tbl, id, row, stale, via) VALUES (?1, ?2, ?3, 0, ?4)
         ON CONFLICT (tbl, id) DO UPDATE SET row = excluded.row, stale = 0, via = excluded.via
         WHERE rows.stale OR rows.tbl <> 'messages' OR excluded.row ->> 'revision' >= rows.row ->> 'revision'",
        params![table, id, row.to_string(), via],
    )?;
    Ok(())
}

/// Stores a row of a result, which does not say who sees it. What the stored row says counts, but not that of a stale one:
/// the snapshot may not show the row any more. Without it, a batch says so. A message of the user's own stays in any case.
fn put_result(transaction: &Transaction<'_>, table: &str, id: &str, row: &Value) -> Result<(), Trouble> {
    let query = "SELECT via, stale FROM rows WHERE tbl = ?1 AND id = ?2";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let stored: Option<(Option<String>, bool)> = transaction.query_row(query, [table, id], read).optional()?;
    let via = match stored {
        Some((via, false)) => via,
        Some((None, true)) | None if table == MESSAGES => None,
        _ => Some("[]".to_owned()),
    };
    put(transaction, table, id, row, via.as_deref())
}

/// Stores a row of a batch, unless the result of an own change has brought a newer one: the batches have not reached that
/// change yet, and the user goes on from what they see.
fn receive(
    transaction: &Transaction<'_>,
    table: &str,
    id: &str,
    row: &Value,
    via: Option<&str>,
    is_ahead: bool,
) -> Result<(), Trouble> {
    let created_at = |row: &Value| chrono::DateTime::parse_from_rfc3339(row.get("created_at")?.as_str()?).ok();
    let before = stored(transaction, table, id)?;
    // Another row with the same id, whose numbers start again.
    let is_other = |before: &Value| created_at(before).is_some() && created_at(before) != created_at(row);
    let is_other = before.as_ref().is_some_and(is_other);
    let query = "SELECT number FROM settled WHERE tbl = ?1 AND id = ?2";
    let settled: Option<i64> = transaction.query_row(query, [table, id], |row| row.get(0)).optional()?;
    match (settled, number(table, row)) {
        (Some(settled), Some(number)) if number < settled && !is_ahead && !is_other => {
            // Who sees the row is what batches say, also behind the result.
            let set = "UPDATE rows SET via = coalesce(?3, via) WHERE tbl = ?1 AND id = ?2";
            transaction.execute(set, params![table, id, via])?;
            return Ok(());
        }
        // The numbers of a snapshot are those that count: it may be of a restored server. Entries of before it may follow.
        (Some(_), Some(number)) if is_ahead => {
            let update = "UPDATE settled SET number = ?3 WHERE tbl = ?1 AND id = ?2";
            transaction.execute(update, params![table, id, number])?;
        }
        (Some(_), _) => unsettle(transaction, table, id)?,
        (None, _) => {}
    }
    let own = "SELECT 1 FROM outbox WHERE tbl = ?1 AND id = ?2 AND op = 'create'";
    let is_new = before.is_none() && !transaction.prepare(own)?.exists([table, id])?;
    if is_other || is_new || number(table, row).is_none() {
        overtake(transaction, table, id)?;
    }
    put(transaction, table, id, row, via)
}

/// Whether a user sees a row: every row without audiences, else one that names the user, a group of theirs, or the tenant.
fn is_seen(database: &Connection, via: Option<&[String]>, user_id: &str) -> Result<bool, Trouble> {
    let Some(via) = via else {
        return Ok(true);
    };
    let own = format!("user:{user_id}");
    let mut is_member = database.prepare("SELECT 1 FROM groups WHERE name = ?1")?;
    for audience in via {
        if *audience == own || audience == "tenant" || is_member.exists([audience])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Rows with their audiences, of tables that groups see.
fn shared(transaction: &Transaction<'_>) -> Result<Vec<(String, String, Vec<String>)>, Trouble> {
    let mut statement = transaction.prepare("SELECT tbl, id, via FROM rows WHERE via IS NOT NULL")?;
    let rows = statement.query_map([], |row| {
        let via: String = row.get(2)?;
        Ok((row.get(0)?, row.get(1)?, serde_json::from_str(&via).unwrap_or_default()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes a group that the user joined out of what rows say: they may have left it before, of which the batches have nothing.
/// The rows that the group has now follow, and name it again.
fn forget_audience(transaction: &Transaction<'_>, group: &str) -> Result<(), Trouble> {
    for (table, id, mut via) in shared(transaction)? {
        if via.iter().any(|audience| audience == group) {
            via.retain(|audience| audience != group);
            let set = "UPDATE rows SET via = ?3 WHERE tbl = ?1 AND id = ?2";
            transaction.execute(set, params![table, id, json!(via).to_string()])?;
        }
    }
    Ok(())
}

/// Deletes the rows that no audience shows the user any more, after a group was left. Rows that results brought, ahead of the
/// batches, go as well: they come with a batch if they are still seen, but not as they were before the result.
fn forget_unseen(transaction: &Transaction<'_>, user_id: &str) -> Result<(), Trouble> {
    for (table, id, via) in shared(transaction)? {
        if !is_seen(transaction, Some(&via), user_id)? {
            remove(transaction, &table, &id)?;
            if !via.is_empty() {
                unsettle(transaction, &table, &id)?;
            }
        }
    }
    overtake_absent(transaction)
}

/// Notes that a row is as the result of an own change left it, or that the change deleted it.
fn settle(transaction: &Transaction<'_>, item: &Item, number: Option<i64>) -> Result<(), Trouble> {
    match number {
        Some(number) => transaction.execute(
            "INSERT OR REPLACE INTO settled (tbl, id, number) VALUES (?1, ?2, ?3)",
            params![item.table, item.id, number],
        )?,
        None => return unsettle(transaction, &item.table, &item.id),
    };
    Ok(())
}

fn unsettle(transaction: &Transaction<'_>, table: &str, id: &str) -> Result<(), Trouble> {
    transaction.execute("DELETE FROM settled WHERE tbl = ?1 AND id = ?2", [table, id])?;
    Ok(())
}

/// Marks the items of a row that were sent: what they changed is no longer there.
fn overtake(transaction: &Transaction<'_>, table: &str, id: &str) -> Result<(), Trouble> {
    let mark = "UPDATE outbox SET sent = 2 WHERE sent IN (1, 3) AND tbl = ?1 AND id = ?2";
    transaction.execute(mark, [table, id])?;
    Ok(())
}

/// Marks the items that were sent and whose row is not there: what their results bring may be gone.
fn overtake_absent(transaction: &Transaction<'_>) -> Result<(), Trouble> {
    transaction.execute(
        "UPDATE outbox SET sent = 2
         WHERE sent IN (1, 3) AND NOT EXISTS (SELECT 1 FROM rows WHERE rows.tbl = outbox.tbl AND rows.id = outbox.id)",
        [],
    )?;
    Ok(())
}

/// A row as received.
fn stored(database: &Connection, table: &str, id: &str) -> Result<Option<Value>, Trouble> {
    let query = "SELECT row FROM rows WHERE tbl = ?1 AND id = ?2";
    let row = database.query_row(query, [table, id], |row| row.get::<_, String>(0));
    Ok(row.optional()?.map(|row| parse(&row)))
}

fn remove(transaction: &Transaction<'_>, table: &str, id: &str) -> Result<(), Trouble> {
    transaction.execute("DELETE FROM rows WHERE tbl = ?1 AND id = ?2", [table, id])?;
    Ok(())
}

/// Keeps a change that will never succeed, for the user.
fn refuse(transaction: &Transaction<'_>, item: &Item, code: &str, reason: &str) -> Result<(), Trouble> {
    transaction.execute(
        "INSERT INTO refused (op, tbl, id, row, code, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![item.op, item.table, item.id, item.row.to_string(), code, reason],
    )?;
    Ok(())
}

/// Numbers the outbox from what the server expects, and lets a snapshot begin. Either this phone was restored from a backup
/// (or copied) and has used its numbers before, or the server was restored and does not have the last ones.
fn renumber(transaction: &Transaction<'_>, first: i64, expected: i64) -> Result<(), Trouble> {
    // The results of these bases are stored, and the versions in them.
    transaction.execute("UPDATE outbox SET base_seq = NULL WHERE base_seq < ?1", [first])?;
    shift(transaction, first - 1, expected - first)?;
    remember(transaction, "acked_seq", &(expected - 1).to_string())?;
    forget(transaction, "cursor")
}

/// Adds `by` to the numbers above `last`, also where they are bases.
fn shift(transaction: &Transaction<'_>, last: i64, by: i64) -> Result<(), Trouble> {
    // In two steps by way of negative numbers, because a number must not be there twice in between.
    transaction.execute("UPDATE outbox SET seq = -(seq + ?2) WHERE seq > ?1", [last, by])?;
    transaction.execute("UPDATE outbox SET seq = -seq WHERE seq < 0", [])?;
    transaction.execute(
        "UPDATE outbox SET base_seq = base_seq + ?2 WHERE base_seq > ?1",
        [last, by],
    )?;
    Ok(())
}

fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

fn remember(database: &Connection, key: &str, value: &str) -> Result<(), Trouble> {
    database.execute(
        "INSERT INTO memory (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )?;
    Ok(())
}

fn forget(database: &Connection, key: &str) -> Result<(), Trouble> {
    database.execute("DELETE FROM memory WHERE key = ?1", [key])?;
    Ok(())
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

// -------------------------------------------------------------------------------------------------- responses

/// Response to a completed enrollment.
#[derive(Deserialize)]
struct Enrolled {
    user_id: String,
    device_token: String,
}

/// Response of `GET /api/sync/incoming`.
#[derive(Deserialize)]
struct Batch {
    messages: Vec<Value>,
    users: Vec<Value>,
    changes: Vec<Change>,
    /// For the next request, which acknowledges this batch.
    cursor: String,
    /// Request the next batch at once.
    has_more: bool,
    /// The first batch of a snapshot: it replaces the stored rows.
    reset: bool,
    /// The group of which it has the rows of before the user joined.
    scope: Option<String>,
}

/// A row of another table, a deleted row of any table, or a group that the user joined or left.
#[derive(Deserialize)]
struct Change {
    #[serde(default)]
    table: String,
    /// The name of the group.
    #[serde(default)]
    group: String,
    op: String,
    /// Of the row, or of the group.
    id: Option<String>,
    row: Option<Value>,
    /// Who sees the row, of tables that groups see.
    via: Option<Vec<String>>,
}

/// Response of `POST /api/sync/outgoing`.
#[derive(Deserialize)]
struct UploadAnswer {
    results: Vec<ItemResult>,
}

/// Result of one uploaded item.
#[derive(Deserialize)]
struct ItemResult {
    /// `applied`, `duplicate`, `conflict`, `rejected` or `retry`.
    status: String,
    code: Option<String>,
    message: Option<String>,
    version: Option<i64>,
    revision: Option<i64>,
    /// Of a conflict: `mine` or `theirs`.
    winner: Option<String>,
    /// Of a conflict or a merged edit: the server's current row; null if it was deleted.
    server: Option<Value>,
    /// Of an item that comes again: the row is not any more as the item left it.
    #[serde(default)]
    overtaken: bool,
}

/// Parses a body. A failure is temporary: an intermediary, such as a captive portal, may have answered.
fn read<T: for<'de> Deserialize<'de>>(answer: &Answer) -> Result<T, Trouble> {
    T::deserialize(&answer.body).map_err(Trouble::later)
}

/// Classifies a response.
fn classify(answer: Result<Answer, Lost>) -> Result<Answer, Trouble> {
    let answer = answer.map_err(Trouble::later)?;
    let error = |name| {
        let text = answer.body.get("error")?.get(name)?.as_str()?;
        Some(text.to_owned())
    };
    let (code, message) = (
        error("code").unwrap_or_default(),
        error("message").unwrap_or_else(|| answer.status.to_string()),
    );
    match answer.status {
        status if status.is_success() => Ok(answer),
        StatusCode::UNAUTHORIZED => Err(Trouble::Ended),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Trouble::Later {
            cause: message,
            after: answer.retry_after,
        }),
        status if status.is_server_error() => Err(Trouble::Later {
            cause: message,
            after: answer.retry_after,
        }),
        _ => Err(Trouble::Refused {
            code,
            message,
            expected: answer.body.pointer("/error/details/expected").and_then(Value::as_i64),
        }),
    }
}

/// Exponential backoff with jitter, so that phones that lost the server together do not reconnect together.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay: 1 s to 1 min and up to as much again, and at least what the server requests.
    pub(crate) fn next(&mut self, requested: Option<Duration>) -> Duration {
        let seconds = 1_u64 << self.failures.min(6);
        self.failures += 1;
        let least = Duration::from_secs(seconds.min(60)).max(requested.unwrap_or_default());
        let random = getrandom::u64().map_or(0.5, |random| random as f64 / u64::MAX as f64);
        least.mul_f64(1.0 + random)
    }
}

// ----------------------------------------------------------------------------------------------------------- the network

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// Without those of the body.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// JSON.
    pub(crate) body: Option<Value>,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// JSON; null for anything else.
    pub(crate) body: Value,
}

/// No response. Whether the request arrived is unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no response: {0}")]
pub(crate) struct Lost(pub(crate) String);

/// The network between phone and server. Tests replace it by one that loses requests and responses.
pub(crate) trait Network: Sync {
    /// Sends a request and waits for the response.
    fn exchange(&self, request: Request) -> impl Future<Output = Result<Answer, Lost>> + Send;
}

/// A network that brings events, and the time by which a phone waits. The driver of the conformance kit has a time of its own.
pub(crate) trait Live: Network {
    type Events: EventSource;

    /// Opens a stream of events.
    fn events(
        &self,
        path: String,
        headers: Vec<(&'static str, String)>,
    ) -> impl Future<Output = Result<Self::Events, Trouble>> + Send;

    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static;
}

/// An open stream of events.
pub(crate) trait EventSource: Send {
    /// The events that have arrived; none after a heartbeat. It may be cancelled.
    fn receive(&mut self) -> impl Future<Output = Result<Vec<Event>, Trouble>> + Send;
}

/// HTTP to one server.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Timeout of one response.
    pub(crate) timeout: Duration,
}

impl Http {
    /// A client of the server at a URL of the form `http://host:port`.
    pub(crate) fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        // Requests are small and wait for their response.
        connector.set_nodelay(true);
        Self {
            base: base.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            timeout: TIMEOUT,
        }
    }

    /// Opens a stream of events.
    pub(crate) async fn events(&self, path: String, headers: Vec<(&'static str, String)>) -> Result<Events, Trouble> {
        let request = Request {
            method: Method::GET,
            path,
            headers,
            body: None,
        };
        let response = tokio::time::timeout(self.timeout, self.begin(request))
            .await
            .map_err(Trouble::later)?
            .map_err(Trouble::later)?;
        if response.status() == StatusCode::OK {
            return Ok(Events {
                body: response.into_body(),
                parser: EventParser::default(),
            });
        }
        // With these credentials there will be no stream again.
        if response.status() == StatusCode::NO_CONTENT {
            return Err(Trouble::Ended);
        }
        classify(self.end(response).await)?;
        Err(Trouble::later("the response is not an event stream"))
    }

    async fn begin(&self, request: Request) -> Result<hyper::Response<Incoming>, Lost> {
        let mut builder = hyper::Request::builder()
            .method(request.method)
            .uri(format!("{}{}", self.base, request.path));
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        let body = match request.body {
            Some(body) => {
                builder = builder.header("content-type", "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = builder.body(Full::new(body)).map_err(|error| Lost(error.to_string()))?;
        let response = self.client.request(request).await;
        response.map_err(|error| Lost(format!("{} does not answer: {error}", self.base)))
    }

    async fn end(&self, response: hyper::Response<Incoming>) -> Result<Answer, Lost> {
        let status = response.status();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| Lost(format!("the response was interrupted: {error}")))?;
        Ok(Answer {
            status,
            retry_after,
            body: serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null),
        })
    }
}

impl Network for Http {
    async fn exchange(&self, request: Request) -> Result<Answer, Lost> {
        let exchange = async { self.end(self.begin(request).await?).await };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Lost(format!("no response within {} s", self.timeout.as_secs()))),
        }
    }
}

impl Live for Http {
    type Events = Events;

    async fn events(&self, path: String, headers: Vec<(&'static str, String)>) -> Result<Events, Trouble> {
        self.events(path, headers).await
    }

    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        tokio::time::sleep(duration)
    }
}

/// A live event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The field `event`, default `message`.
    pub(crate) name: String,
    /// Where to resume.
    pub(crate) id: Option<String>,
    /// The lines of `data`, joined by line feeds: JSON.
    pub(crate) data: String,
}

impl Event {
    /// A field of the data.
    pub(crate) fn field(&self, name: &str) -> Option<Value> {
        parse(&self.data).get(name).cloned()
    }
}

/// An open stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    parser: EventParser,
}

impl EventSource for Events {
    async fn receive(&mut self) -> Result<Vec<Event>, Trouble> {
        match self.body.frame().await {
            Some(frame) => {
                let frame = frame.map_err(Trouble::later)?;
                self.parser.push(frame.data_ref().map_or(&[][..], |bytes| bytes));
                Ok(self.parser.take())
            }
            None => Err(Trouble::later("the server ended the stream")),
        }
    }
}

/// Parses events as the HTML standard defines them, except that a lone carriage return does not end a line.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    /// Bytes after the last whole line.
    rest: Vec<u8>,
    name: String,
    id: Option<String>,
    data: Option<String>,
    ready: VecDeque<Event>,
}

impl EventParser {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        }
    }

    /// Removes and returns the complete events.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.ready.drain(..).collect()
    }

    fn line(&mut self, line: &str) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            // The empty line ends an event. Without data there is none, as for a comment, which begins with a colon.
            "" if line.is_empty() => {
                let (name, id) = (std::mem::take(&mut self.name), self.id.take());
                if let Some(data) = self.data.take() {
                    let name = if name.is_empty() { "message".to_owned() } else { name };
                    self.ready.push_back(Event { name, id, data });
                }
            }
            "event" => value.clone_into(&mut self.name),
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => *data = format!("{data}\n{value}"),
                None => self.data = Some(value.to_owned()),
            },
            // `retry` is for clients without a backoff of their own.
            _ => {}
        }
    }
}

// ------------------------------------------------------------------------------------------------------- the command line

#[derive(Parser)]
#[command(about = "The reference phone: an example of a Posduif client")]
struct Arguments {
    /// The phone's SQLite file
    #[arg(long, default_value = "phone.sqlite")]
    file: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enroll this phone
    Enroll {
        /// The URL of the enrollment, as in the QR code
        url: String,
    },
    /// Send and fetch once
    Sync,
    /// Write a message, sent by the next sync
    Send {
        /// A user's name or id
        to: String,
        content: String,
    },
    /// Edit a message
    Edit { id: String, content: String },
    /// Delete a message
    Delete { id: String },
    /// Mark a message as read
    Read { id: String },
    /// List all messages
    List,
    /// Follow the event stream, sync, and print each event
    Watch,
}

/// Lets changes be uploaded that other commands add to the outbox.
async fn notice_changes(file: &Path, user: &mpsc::Sender<Wish>) -> Result<(), Trouble> {
    let phone = Phone::open(file)?;
    let mut known = None;
    loop {
        let last = phone.waiting()?.last().map(|item| item.seq);
        if last > known {
            user.send(Wish::default()).await.ok();
        }
        known = last;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { file, command } = Arguments::parse();
    let mut phone = Phone::open(&file)?;
    if let Command::Enroll { url } = &command {
        let (base, token) = url
            .split_once("/api/enrollment/")
            .context("the URL of an enrollment is http://host:port/api/enrollment/<token>")?;
        phone.enroll(&Http::new(base), token).await?;
        remember(&phone.database, "server", base)?;
    }
    let http = Http::new(&phone.recall("server")?.ok_or(Trouble::Unenrolled)?);
    match command {
        Command::Enroll { .. } | Command::Sync => {
            let synced = phone.sync(&http).await?;
            println!("{} rows in {} batches", synced.rows, synced.batches);
        }
        Command::Send { to, content } => {
            let users = phone.rows("users")?;
            let named = users.iter().find(|(_, user)| user["username"] == to.as_str());
            println!("{}", phone.send(named.map_or(&to, |(id, _)| id), &content)?);
        }
        Command::Edit { id, content } => phone.edit(&id, &content)?,
        Command::Delete { id } => phone.delete(&id)?,
        Command::Read { id } => phone.read(&id)?,
        Command::List => {
            let mut messages: Vec<Message> = phone.messages()?.into_values().collect();
            messages.sort_by(|one, other| one.created_at.cmp(&other.created_at));
            for message in messages {
                println!("{}  {}", message.id, message.content);
            }
            println!("{:?}, {} pending uploads", phone.state()?, phone.waiting()?.len());
            for item in phone.refused()? {
                println!("refused: {} {}: {}", item.op, item.id, item.reason);
            }
        }
        Command::Watch => {
            let print = |_: &Phone, event: &Event| println!("{} {}", event.name, event.data);
            let (user, mut wishes) = mpsc::channel(1);
            tokio::select! {
                ended = phone.watch(&http, &mut wishes, print) => ended?,
                ended = notice_changes(&file, &user) => ended?,
            }
        }
    }
    Ok(())
}
