//! A snapshot from Postgres, and the place where the stream takes over from it.
//!
//! A walsender can ship a commit that `SELECT` does not see yet, so "read the position, then the tables" can miss a
//! row. Here the position and the window of recently published transactions are read first, then Postgres' snapshot;
//! the stream begins below every published transaction that the snapshot does not see. What was published after the
//! position was read lies behind it anyway. Pages read later only see more, and what they see twice is the same row.

use std::time::{Duration, Instant};

use postgres_types::Type;
use uuid::Uuid;

use super::cursor::{ID_BYTES_MAX, PageStart};
use super::item::{Change, Item};
use super::tables;
use crate::config::rule::Rule;
use crate::contract::control::INBOX_PREFIX;
use crate::contract::entry::{Op, Text};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature;
use crate::messages::{Message, Status};
use crate::postgres::tenants;
use crate::postgres::{Database, sql};
use crate::redis::store::{self, Handoff, Place, Store};

/// How long to wait for the replicator to create a missing stream.
const BIRTH_WAIT: Duration = Duration::from_secs(5);

/// How often to look for it.
const BIRTH_POLL: Duration = Duration::from_millis(20);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis failed.
    #[error(transparent)]
    Store(#[from] crate::redis::store::Error),
    /// Postgres failed.
    #[error(transparent)]
    Domain(#[from] feature::Error),
    /// The streams of the user do not come to be.
    #[error("the replicator did not create the user's streams within {} s", BIRTH_WAIT.as_secs())]
    NoStreams,
}

impl From<crate::postgres::Error> for Error {
    fn from(error: crate::postgres::Error) -> Self {
        Self::Domain(error.into())
    }
}

/// Kinds of rows in the order of pages.
const RECEIVED: u8 = 0;
const SENT: u8 = 1;
const USERS: u8 = 2;
/// The first of the rules' tables; one phase each.
const TABLES: u8 = 3;
/// No phase of a device's snapshot: pages of a user's encrypted state alone, see [`super::states`].
pub const STATES: u8 = u8::MAX;

/// A page of a snapshot.
#[derive(Debug)]
pub struct Page {
    /// Its rows.
    pub items: Vec<Item>,
    /// Received messages in it that nobody has acknowledged yet.
    pub pending: Vec<Uuid>,
    /// Where the next page begins; `None` when the stream takes over.
    pub next: Option<PageStart>,
}

/// The start of a phase; phase 0 is the first page's.
pub fn phase_start(phase: u8) -> PageStart {
    PageStart {
        phase,
        created_at: i64::MIN,
        id: String::new(),
    }
}

/// Whether a phase is one of snapshots under these rules.
pub fn is_phase(phase: u8, rules: &[Rule]) -> bool {
    usize::from(phase) < usize::from(TABLES) + rules.len()
}

/// Whose snapshot it is, and of what.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Ordinary SQL.
    pub database: &'a Database,
    /// The tenant.
    pub tenant: &'a Tenant,
    /// The user.
    pub user: Uuid,
    /// Rules of tables that have no phase of their own.
    pub rules: &'a [Rule],
}

/// Finds the place from which the stream goes on behind a snapshot that begins now.
///
/// # Errors
/// See [`Error`].
pub async fn begin(database: &Database, store: &Store, tenant: &Tenant, user: Uuid) -> Result<Place, Error> {
    let handoff = ensure_streams(database, store, tenant, user).await?;
    if handoff.is_paused {
        return Err(store::Error::Paused.into());
    }
    let rows = database.query(&sql!("postgres/current_snapshot"), &[]).await?;
    let snapshot = rows
        .first()
        .and_then(|row| Snapshot::parse(row.get("snapshot")))
        .ok_or_else(|| feature::Error::Internal("pg_current_snapshot() is not understood".into()))?;
    let unseen = handoff.window.iter().filter(|entry| !entry.is_seen_by(&snapshot));
    let position = unseen.map(|entry| entry.first.previous()).min();
    Ok(Place {
        epoch: handoff.view.epoch,
        generation: handoff.generation,
        position: position.map_or(handoff.view.position, |position| position.min(handoff.view.position)),
    })
}

/// Reads the handoff; streams that are missing are asked for by way of the log, like everything that is published.
///
/// # Errors
/// See [`Error`].
pub async fn ensure_streams(database: &Database, store: &Store, tenant: &Tenant, user: Uuid) -> Result<Handoff, Error> {
    let handoff = store.handoff(&tenant.name, user).await?;
    if !handoff.missing.any() {
        return Ok(handoff);
    }
    tracing::warn!(tenant = tenant.name, %user, missing = ?handoff.missing, "streams are missing and are asked for");
    if handoff.missing.tenant {
        // The trim points went with the meta hash, so all cursors of the tenant must end.
        tenants::resync(database, &tenant.name).await?;
    }
    if handoff.missing.inbox {
        let content = format!("{} {user}", tenant.name);
        database
            .query(
                &sql!("postgres/emit_message"),
                &[(&INBOX_PREFIX, Type::TEXT), (&content, Type::TEXT)],
            )
            .await?;
    }
    let deadline = Instant::now() + BIRTH_WAIT;
    while Instant::now() < deadline {
        tokio::time::sleep(BIRTH_POLL).await;
        let handoff = store.handoff(&tenant.name, user).await?;
        if !handoff.missing.any() {
            return Ok(handoff);
        }
    }
    Err(Error::NoStreams)
}

/// Reads a page of at most `limit` rows and about `bytes_max` bytes.
///
/// # Errors
/// See [`Error`].
pub async fn page(scope: Scope<'_>, start: PageStart, limit: usize, bytes_max: usize) -> Result<Page, Error> {
    let end = usize::from(TABLES) + scope.rules.len();
    let mut page = Page {
        items: Vec::new(),
        pending: Vec::new(),
        next: None,
    };
    let mut bytes = 0;
    let mut start = start;
    while usize::from(start.phase) < end {
        let room = limit - page.items.len();
        let phase = start.phase;
        let rows = rows(scope, &start, room).await?;
        let is_last = rows.len() < room;
        for row in rows {
            if row.next.id.len() > ID_BYTES_MAX {
                return Err(feature::Error::Internal("a row's id is too long to page by".into()).into());
            }
            bytes += row.item.bytes();
            page.items.push(row.item);
            page.pending.extend(row.pending);
            start = row.next;
            if bytes >= bytes_max {
                page.next = Some(start);
                return Ok(page);
            }
        }
        if !is_last {
            page.next = Some(start);
            return Ok(page);
        }
        start = phase_start(phase + 1);
    }
    Ok(page)
}

struct SnapshotRow {
    item: Item,
    pending: Option<Uuid>,
    next: PageStart,
}

async fn rows(scope: Scope<'_>, start: &PageStart, limit: usize) -> Result<Vec<SnapshotRow>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let statement = match start.phase {
        RECEIVED => sql!("sync/snapshot_received"),
        SENT => sql!("sync/snapshot_sent"),
        USERS => sql!("sync/snapshot_users"),
        phase => match scope.rules.get(usize::from(phase - TABLES)) {
            Some(rule) => return table_rows(scope, rule, start, limit).await,
            None => return Ok(Vec::new()),
        },
    };
    let after = Uuid::parse_str(&start.id).unwrap_or(Uuid::nil());
    let rows = scope
        .database
        .query(
            &statement.in_schema(scope.tenant),
            &[
                (&scope.user, Type::UUID),
                (&start.created_at, Type::INT8),
                (&after, Type::UUID),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (item, pending) = if start.phase == USERS {
            (Item::User(shown(&UserShown::from_row(row)?)?), None)
        } else {
            let message = Message::from_row(row)?;
            let is_pending = start.phase == RECEIVED && message.status == Status::PendingSync;
            (Item::Message(shown(&message)?), is_pending.then_some(message.id))
        };
        found.push(SnapshotRow {
            item,
            pending,
            next: PageStart {
                phase: start.phase,
                created_at: row.try_get("created_at_micros").map_err(feature::Error::from)?,
                id: row.try_get::<_, Uuid>("id").map_err(feature::Error::from)?.to_string(),
            },
        });
    }
    Ok(found)
}

/// A user as other users see them.
#[derive(serde::Serialize)]
struct UserShown<'a> {
    id: Uuid,
    username: &'a str,
    user_type: &'a str,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl<'a> UserShown<'a> {
    fn from_row(row: &'a tokio_postgres::Row) -> Result<Self, feature::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get("user_type")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

async fn table_rows(scope: Scope<'_>, rule: &Rule, start: &PageStart, limit: i64) -> Result<Vec<SnapshotRow>, Error> {
    let rows = tables::visible(scope.database, scope.tenant, scope.user, rule, &start.id, limit).await?;
    let row = |row: tables::Row| SnapshotRow {
        item: Item::Change(Change {
            table: rule.table.clone().into(),
            op: Op::Insert.as_str(),
            id: Some(row.id.clone().into()),
            row: Some(row.json),
            is_partial: false,
        }),
        pending: None,
        next: PageStart {
            id: row.id,
            ..start.clone()
        },
    };
    Ok(rows.into_iter().map(row).collect())
}

fn shown(value: &impl serde::Serialize) -> Result<Text, feature::Error> {
    serde_json::to_string(value)
        .map(Text::from)
        .map_err(|error| feature::Error::Internal(error.to_string()))
}
