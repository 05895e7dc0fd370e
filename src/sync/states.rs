//! Changes of a user's encrypted state: a list of the current state, then change by change.
//!
//! Changes are read from the streams; there is no other log of them. Without a valid cursor the response lists the current
//! state from Postgres and hands over to the stream without a gap, as a device's snapshot does; after that, each change is
//! an entry of the user's inbox, in commit order. Reading acknowledges nothing.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::cursor::{Cursor, CursorKey, Owner, PageStart};
use super::incoming::Error;
use super::snapshot;
use crate::config::rule::ENCRYPTED_STATES;
use crate::contract::entry::Entry;
use crate::core::operation::Operation;
use crate::core::tenant::Tenant;
use crate::postgres::Database;
use crate::redis::read_position::ReadPosition;
use crate::redis::reading::Read;
use crate::redis::store::Store;
use crate::state::{self, State};
use crate::sync::tables::Routing;

/// Entries read for one response, those of other tables included.
const ENTRIES_MAX: usize = 10_000;

/// Entries of the first read, before their size is known.
const FIRST_ENTRIES: usize = 64;

/// Expected bytes of one read.
const READ_BYTES: usize = 1024 * 1024;

/// A change, or a current state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateChange {
    pub key: String,
    /// `create`, `update` or `delete`; in a list of the current state, `create`.
    pub kind: &'static str,
    /// The version of the key after the change.
    pub version: i64,
    /// The device that made the change.
    pub device_id: Option<String>,
    /// The position in commit order; `None` in a list of the current state.
    pub sequence: Option<String>,
    /// The encrypted bytes; `None` if the key was deleted.
    pub state: Option<Value>,
    /// The nonce of the encryption; `None` if the key was deleted.
    pub nonce: Option<Value>,
    pub updated_at: Value,
}

/// A page of changes.
#[derive(Debug, Serialize)]
pub struct Page {
    /// Changes in commit order, or the current state.
    pub states: Vec<StateChange>,
    /// The cursor of the next request.
    pub cursor: String,
    /// More can be fetched immediately.
    pub has_more: bool,
    /// This is the first page of the current state, which replaces the viewer's data.
    pub reset: bool,
}

/// What a viewer requests.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub tenant: &'a Tenant,
    pub user: Uuid,
    /// The owner of the cursor.
    pub owner: Owner<'a>,
    pub cursor: Option<&'a str>,
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which the page ends.
    pub bytes_max: usize,
}

/// Where changes are read from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub database: &'a Database,
    pub store: &'a Store,
    pub cursors: &'a CursorKey,
    pub routing: Routing<'a>,
}

/// What follows the request's cursor.
pub async fn page(sources: Sources<'_>, request: Request<'_>) -> Result<Page, Error> {
    let tenant = &request.tenant.name;
    let decode = |text| sources.cursors.decode(tenant, request.owner, text);
    let cursor = request.cursor.map(decode).transpose()?;
    let found = match cursor {
        Some(Cursor { place, page: None }) => {
            let Sources { database, store, .. } = sources;
            let due = snapshot::is_due_again(database, store, request.tenant, request.user, place);
            match Box::pin(due).await? {
                true => None,
                false => changes(sources, request, place).await?,
            }
        }
        Some(Cursor {
            place,
            page: Some(page),
        }) if page.phase == snapshot::STATES => {
            // If the stream has gone, this list would end in another one.
            match sources.store.read(tenant, request.user, place, 1).await? {
                Read::Slice(_) => Some(list(sources, request, Some((place, page))).await?),
                Read::Broken(_) => None,
            }
        }
        // No cursor, or one of a device's snapshot.
        _ => None,
    };
    let found = match found {
        Some(found) => found,
        None => list(sources, request, None).await?,
    };
    Ok(Page {
        states: found.states,
        cursor: sources.cursors.encode(tenant, request.owner, &found.cursor),
        has_more: found.has_more,
        reset: found.reset,
    })
}

struct Found {
    states: Vec<StateChange>,
    cursor: Cursor,
    has_more: bool,
    reset: bool,
}

/// A page of the current state.
async fn list(
    sources: Sources<'_>,
    request: Request<'_>,
    resumed: Option<(ReadPosition, PageStart)>,
) -> Result<Found, Error> {
    let reset = resumed.is_none();
    let (place, mut after) = match resumed {
        Some((place, page)) => (place, Uuid::parse_str(&page.id).unwrap_or(Uuid::nil())),
        None => {
            let beginning = snapshot::begin(
                sources.database,
                sources.store,
                request.tenant,
                request.user,
                sources.routing,
            )
            .await?;
            (beginning.place, Uuid::nil())
        }
    };
    let owner = state::Owner {
        tenant: request.tenant,
        user: request.user,
    };
    let mut found = Vec::new();
    let mut bytes = 0;
    let is_end = 'all: loop {
        // In chunks, which bounds the memory of large rows.
        let want = (request.limit - found.len()).min(FIRST_ENTRIES);
        let rows = state::page(sources.database, owner, after, want as i64).await?;
        let is_last = rows.len() < want;
        for (id, state) in rows {
            after = id;
            bytes += state.state.0.len();
            found.push(to_change(state)?);
            if bytes >= request.bytes_max || found.len() >= request.limit {
                break 'all false;
            }
        }
        if is_last {
            break true;
        }
    };
    let next = PageStart {
        id: after.to_string(),
        ..snapshot::phase_start(snapshot::STATES)
    };
    let has_more = !is_end || sources.store.view().await?.position > place.position;
    Ok(Found {
        states: found,
        cursor: Cursor {
            place,
            page: (!is_end).then_some(next),
        },
        has_more,
        reset,
    })
}

fn to_change(state: State) -> Result<StateChange, Error> {
    let json =
        |value: serde_json::Result<Value>| value.map_err(|error| crate::feature::Error::Internal(error.to_string()));
    Ok(StateChange {
        kind: "create",
        version: state.version,
        sequence: None,
        state: Some(json(serde_json::to_value(&state.state))?),
        nonce: Some(json(serde_json::to_value(&state.nonce))?),
        updated_at: json(serde_json::to_value(state.updated_at))?,
        device_id: state.device_id,
        key: state.key,
    })
}

/// What follows a place in the stream; `None` if the streams do not reach back to it.
async fn changes(sources: Sources<'_>, request: Request<'_>, mut place: ReadPosition) -> Result<Option<Found>, Error> {
    let mut found: Vec<StateChange> = Vec::new();
    let (mut bytes, mut read_entries) = (0, 0);
    let has_more = 'all: loop {
        let count = match read_entries {
            0 => FIRST_ENTRIES,
            read_entries => (READ_BYTES / (bytes / read_entries).max(1)).max(1),
        };
        let read = sources.store.read(&request.tenant.name, request.user, place, count);
        let Read::Slice(slice) = read.await? else {
            return Ok(None);
        };
        read_entries += slice.entries.len();
        (place.term, place.is_incomplete) = (slice.view.term, slice.is_incomplete);
        for entry in slice.entries {
            if found.len() >= request.limit || bytes >= request.bytes_max {
                break 'all true;
            }
            place.position = entry.id;
            bytes += entry.bytes();
            if entry.table.as_bytes() == ENCRYPTED_STATES.as_bytes() {
                match change(&entry) {
                    Some(change) => found.push(change),
                    // The log omits unchanged columns: only a list has them.
                    None => return Ok(None),
                }
            }
        }
        place.position = slice.end;
        if !slice.has_more {
            break false;
        }
        if read_entries >= ENTRIES_MAX {
            break true;
        }
    };
    Ok(Some(Found {
        states: found,
        cursor: Cursor { place, page: None },
        has_more,
        reset: false,
    }))
}

/// The relevant columns of a row.
#[derive(Deserialize)]
struct Columns {
    key: String,
    version: i64,
    device_id: Option<String>,
    /// Null in what is left of a deleted row.
    #[serde(default)]
    state: Value,
    #[serde(default)]
    nonce: Value,
    updated_at: Value,
}

fn change(entry: &Entry) -> Option<StateChange> {
    let kind = kind(entry.op)?;
    let row = entry.row.as_ref().or(entry.old.as_ref())?;
    let columns: Columns = serde_json::from_slice(row.as_bytes()).ok()?;
    let is_there = entry.op != Operation::Delete;
    Some(StateChange {
        key: columns.key,
        kind,
        version: columns.version,
        device_id: columns.device_id,
        sequence: Some(entry.id.to_string()),
        state: is_there.then_some(columns.state),
        nonce: is_there.then_some(columns.nonce),
        updated_at: columns.updated_at,
    })
}

/// The kind of an operation; `None` for one that does not change a state.
pub fn kind(op: Operation) -> Option<&'static str> {
    match op {
        Operation::Insert => Some("create"),
        Operation::Update => Some("update"),
        Operation::Delete => Some("delete"),
        Operation::Truncate | Operation::Reset | Operation::Message | Operation::Member | Operation::Other => None,
    }
}
