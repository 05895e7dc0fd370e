//! A snapshot from Postgres, and the place where the stream takes over from it.
//!
//! A walsender can ship a commit that `SELECT` does not see yet, so "read the position, then the tables" can miss a
//! row. Here the position and the window of recently published transactions are read first, then Postgres' snapshot;
//! the stream begins below every published transaction that the snapshot does not see. What was published after the
//! position was read lies behind it anyway. Pages read later only see more, and what they see twice is the same row.

use std::time::{Duration, Instant};

use postgres_types::Type;
use uuid::Uuid;

use super::cursor::PageStart;
use super::item::Item;
use crate::database::Database;
use crate::database::snapshot::Snapshot;
use crate::database::tenants::Tenant;
use crate::deliver::store::{Handoff, Place, Store};
use crate::domain::messages::{Message, Status};
use crate::domain::{self, Timestamp};
use crate::replication::pipeline::{INBOX_PREFIX, TENANT_PREFIX};

/// How long to wait for the replicator to create a missing stream.
const BIRTH_WAIT: Duration = Duration::from_secs(5);

/// How often to look for it.
const BIRTH_POLL: Duration = Duration::from_millis(20);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis failed.
    #[error(transparent)]
    Store(#[from] crate::deliver::store::Error),
    /// Postgres failed.
    #[error(transparent)]
    Domain(#[from] domain::Error),
    /// The streams of the user do not come to be.
    #[error("the replicator did not create the user's streams within {} s", BIRTH_WAIT.as_secs())]
    NoStreams,
}

impl From<crate::database::Error> for Error {
    fn from(error: crate::database::Error) -> Self {
        Self::Domain(error.into())
    }
}

/// Kinds of rows in the order of pages.
const RECEIVED: u8 = 0;
const SENT: u8 = 1;
const USERS: u8 = 2;
const END: u8 = 3;

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

/// The first page's start.
pub const FIRST: PageStart = PageStart {
    phase: RECEIVED,
    created_at: i64::MIN,
    id: Uuid::nil(),
};

/// Finds the place from which the stream goes on behind a snapshot that begins now.
///
/// # Errors
/// See [`Error`].
pub async fn begin(database: &Database, store: &Store, tenant: &Tenant, user: Uuid) -> Result<Place, Error> {
    let handoff = complete_handoff(database, store, tenant, user).await?;
    let rows = database
        .query(include_str!("../../sql/current_snapshot.sql"), &[])
        .await?;
    let snapshot = rows
        .first()
        .and_then(|row| Snapshot::parse(row.get("snapshot")))
        .ok_or_else(|| domain::Error::Internal("pg_current_snapshot() is not understood".into()))?;
    let unseen = handoff
        .window
        .iter()
        .filter(|(_, low, high)| !snapshot.sees_all(*low, *high));
    let position = unseen.map(|(first, ..)| first.previous()).min();
    Ok(Place {
        epoch: handoff.view.epoch,
        generation: handoff.generation,
        position: position.map_or(handoff.view.position, |position| position.min(handoff.view.position)),
    })
}

/// Reads the handoff; streams that are missing are asked for by way of the log, like everything that is published.
async fn complete_handoff(database: &Database, store: &Store, tenant: &Tenant, user: Uuid) -> Result<Handoff, Error> {
    let handoff = store.handoff(&tenant.name, user).await?;
    if !handoff.missing.tenant && !handoff.missing.inbox {
        return Ok(handoff);
    }
    tracing::warn!(tenant = tenant.name, %user, missing = ?handoff.missing, "streams are missing and are asked for");
    if handoff.missing.tenant {
        // The trim points went with the meta hash, so all cursors of the tenant must end.
        database
            .query(
                include_str!("../../sql/tenant_rebirth.sql"),
                &[(&tenant.name, Type::TEXT), (&TENANT_PREFIX, Type::TEXT)],
            )
            .await?;
    }
    if handoff.missing.inbox {
        let content = format!("{} {user}", tenant.name);
        database
            .query(
                include_str!("../../sql/emit_message.sql"),
                &[(&INBOX_PREFIX, Type::TEXT), (&content, Type::TEXT)],
            )
            .await?;
    }
    let deadline = Instant::now() + BIRTH_WAIT;
    while Instant::now() < deadline {
        tokio::time::sleep(BIRTH_POLL).await;
        let handoff = store.handoff(&tenant.name, user).await?;
        if !handoff.missing.tenant && !handoff.missing.inbox {
            return Ok(handoff);
        }
    }
    Err(Error::NoStreams)
}

/// Reads a page of at most `limit` rows and about `bytes_max` bytes.
///
/// # Errors
/// See [`Error`].
pub async fn page(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    start: PageStart,
    limit: usize,
    bytes_max: usize,
) -> Result<Page, Error> {
    let mut page = Page {
        items: Vec::new(),
        pending: Vec::new(),
        next: Some(start),
    };
    let mut bytes = 0;
    while let Some(start) = page.next.filter(|start| start.phase < END) {
        let room = limit - page.items.len();
        let rows = rows(database, tenant, user, start, room).await?;
        let is_last = rows.len() < room;
        for row in rows {
            bytes += row.item.bytes();
            page.items.push(row.item);
            page.pending.extend(row.pending);
            page.next = Some(PageStart {
                phase: start.phase,
                created_at: row.created_at,
                id: row.id,
            });
            if bytes >= bytes_max {
                return Ok(page);
            }
        }
        if !is_last {
            return Ok(page);
        }
        page.next = Some(PageStart {
            phase: start.phase + 1,
            ..FIRST
        });
    }
    page.next = None;
    Ok(page)
}

struct SnapshotRow {
    item: Item,
    pending: Option<Uuid>,
    created_at: i64,
    id: Uuid,
}

async fn rows(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    start: PageStart,
    limit: usize,
) -> Result<Vec<SnapshotRow>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let statement = match start.phase {
        RECEIVED => include_str!("../../sql/snapshot_received.sql"),
        SENT => include_str!("../../sql/snapshot_sent.sql"),
        _ => include_str!("../../sql/snapshot_users.sql"),
    };
    let rows = database
        .query(
            &tenant.sql(statement),
            &[
                (&user, Type::UUID),
                (&start.created_at, Type::INT8),
                (&start.id, Type::UUID),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (item, pending) = if start.phase == USERS {
            #[derive(serde::Serialize)]
            struct User<'a> {
                id: Uuid,
                username: &'a str,
                user_type: &'a str,
                created_at: Timestamp,
                updated_at: Timestamp,
            }
            let user = User {
                id: row.get("id"),
                username: row.get("username"),
                user_type: row.get("user_type"),
                created_at: row.get("created_at"),
                updated_at: row.get("updated_at"),
            };
            (Item::User(raw(&user)?), None)
        } else {
            let message = Message::from_row(row)?;
            let is_pending = start.phase == RECEIVED && message.status == Status::PendingSync;
            (Item::Message(raw(&message)?), is_pending.then_some(message.id))
        };
        found.push(SnapshotRow {
            item,
            pending,
            created_at: row.get("created_at_micros"),
            id: row.get("id"),
        });
    }
    Ok(found)
}

fn raw(value: &impl serde::Serialize) -> Result<Box<serde_json::value::RawValue>, domain::Error> {
    serde_json::value::to_raw_value(value).map_err(|error| domain::Error::Internal(error.to_string()))
}
