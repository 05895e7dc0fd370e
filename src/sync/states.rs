//! What changed in a user's encrypted state, for whoever asks: all of it, then change by change.
//!
//! There is no log of these changes beside the streams. Without a usable cursor the answer lists what is there, from
//! Postgres, and hands over to the stream without a gap, as a device's snapshot does; behind that, each change is an entry
//! of the user's inbox, in commit order. Reading acknowledges nothing.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::cursor::{Cursor, CursorKey, Owner, PageStart};
use super::incoming::Error;
use super::snapshot;
use crate::config::rule::ENCRYPTED_STATES;
use crate::contract::entry::{Entry, Op};
use crate::core::tenant::Tenant;
use crate::postgres::Database;
use crate::redis::store::{Place, Read, Store};
use crate::state::{self, State};

/// Entries of a user's streams that are looked at for one answer; those of other tables cost time, too.
const ENTRIES_MAX: usize = 10_000;

/// Entries read at once while nobody knows how large they are.
const FIRST_ENTRIES: usize = 64;

/// Bytes of entries that are read at once, as the ones before let expect.
const READ_BYTES: usize = 1024 * 1024;

/// A change, or a state as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateChange {
    /// The key.
    pub key: String,
    /// `create`, `update` or `delete`; in a list of what is there, `create`.
    pub kind: &'static str,
    /// The key's version with it.
    pub version: i64,
    /// The device that made it.
    pub device_id: Option<String>,
    /// Its place in the order of commits; none in a list of what is there.
    pub sequence: Option<String>,
    /// The encrypted bytes; none when the key was deleted.
    pub state: Option<Value>,
    /// What they were encrypted with; none when the key was deleted.
    pub nonce: Option<Value>,
    /// When it was made.
    pub updated_at: Value,
}

/// An answer.
#[derive(Debug, Serialize)]
pub struct Page {
    /// Changes in commit order, or what is there.
    pub states: Vec<StateChange>,
    /// What to ask with next time.
    pub cursor: String,
    /// There is more to fetch at once.
    pub has_more: bool,
    /// What the viewer holds is to be replaced: this is the first page of what is there.
    pub reset: bool,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The tenant.
    pub tenant: &'a Tenant,
    /// The user.
    pub user: Uuid,
    /// Whose cursor it is.
    pub owner: Owner<'a>,
    /// The cursor.
    pub cursor: Option<&'a str>,
    /// Most rows.
    pub limit: usize,
    /// Bytes of rows at which the answer ends.
    pub bytes_max: usize,
}

/// Where answers come from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Ordinary SQL.
    pub database: &'a Database,
    /// The streams.
    pub store: &'a Store,
    /// Makes and checks cursors.
    pub cursors: &'a CursorKey,
}

/// What follows the question's cursor.
///
/// # Errors
/// See [`Error`].
pub async fn page(sources: Sources<'_>, question: Question<'_>) -> Result<Page, Error> {
    let tenant = &question.tenant.name;
    let decode = |text| sources.cursors.decode(tenant, question.owner, text);
    let cursor = question.cursor.map(decode).transpose()?;
    let answer = match cursor {
        Some(Cursor { place, page: None }) => changes(sources, question, place).await?,
        Some(Cursor {
            place,
            page: Some(page),
        }) if page.phase == snapshot::STATES => {
            // A list whose stream has gone meanwhile would end in another one.
            match sources.store.read(tenant, question.user, place, 1).await? {
                Read::Slice(_) => Some(list(sources, question, Some((place, page))).await?),
                Read::Broken(_) => None,
            }
        }
        // None, or of a device's snapshot.
        _ => None,
    };
    let answer = match answer {
        Some(answer) => answer,
        None => list(sources, question, None).await?,
    };
    Ok(Page {
        states: answer.states,
        cursor: sources.cursors.encode(tenant, question.owner, &answer.cursor),
        has_more: answer.has_more,
        reset: answer.reset,
    })
}

struct Answer {
    states: Vec<StateChange>,
    cursor: Cursor,
    has_more: bool,
    reset: bool,
}

/// A page of what is there.
async fn list(
    sources: Sources<'_>,
    question: Question<'_>,
    resumed: Option<(Place, PageStart)>,
) -> Result<Answer, Error> {
    let reset = resumed.is_none();
    let (place, mut after) = match resumed {
        Some((place, page)) => (place, Uuid::parse_str(&page.id).unwrap_or(Uuid::nil())),
        None => {
            let place = snapshot::begin(sources.database, sources.store, question.tenant, question.user).await?;
            (place, Uuid::nil())
        }
    };
    let owner = state::Owner {
        tenant: question.tenant,
        user: question.user,
    };
    let mut found = Vec::new();
    let mut bytes = 0;
    let is_end = 'all: loop {
        // By pieces, because all rows of a page would be in memory however large they are.
        let want = (question.limit - found.len()).min(FIRST_ENTRIES);
        let rows = state::page(sources.database, owner, after, want as i64).await?;
        let is_last = rows.len() < want;
        for (id, state) in rows {
            after = id;
            bytes += state.state.0.len();
            found.push(shown(state)?);
            if bytes >= question.bytes_max || found.len() >= question.limit {
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
    Ok(Answer {
        states: found,
        cursor: Cursor {
            place,
            page: (!is_end).then_some(next),
        },
        has_more,
        reset,
    })
}

fn shown(state: State) -> Result<StateChange, Error> {
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

/// What follows a place in the stream; `None` when history does not reach back.
async fn changes(sources: Sources<'_>, question: Question<'_>, mut place: Place) -> Result<Option<Answer>, Error> {
    let mut found: Vec<StateChange> = Vec::new();
    let (mut bytes, mut looked) = (0, 0);
    let has_more = 'all: loop {
        let count = match looked {
            0 => FIRST_ENTRIES,
            looked => (READ_BYTES / (bytes / looked).max(1)).max(1),
        };
        let read = sources.store.read(&question.tenant.name, question.user, place, count);
        let Read::Slice(slice) = read.await? else {
            return Ok(None);
        };
        looked += slice.entries.len();
        for entry in slice.entries {
            if found.len() >= question.limit || bytes >= question.bytes_max {
                break 'all true;
            }
            place.position = entry.id;
            bytes += entry.bytes();
            if entry.table.as_bytes() == ENCRYPTED_STATES.as_bytes() {
                match change(&entry) {
                    Some(change) => found.push(change),
                    // The log left columns out: only a list tells them.
                    None => return Ok(None),
                }
            }
        }
        place.position = slice.end;
        if !slice.has_more {
            break false;
        }
        if looked >= ENTRIES_MAX {
            break true;
        }
    };
    Ok(Some(Answer {
        states: found,
        cursor: Cursor { place, page: None },
        has_more,
        reset: false,
    }))
}

/// The columns of a row that matter here.
#[derive(Deserialize)]
struct Columns {
    key: String,
    version: i64,
    device_id: Option<String>,
    state: Value,
    nonce: Value,
    updated_at: Value,
}

fn change(entry: &Entry) -> Option<StateChange> {
    let kind = kind(entry.op)?;
    let row = entry.row.as_ref().or(entry.old.as_ref())?;
    let columns: Columns = serde_json::from_slice(row.as_bytes()).ok()?;
    let is_there = entry.op != Op::Delete;
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

/// What an operation is called here; none of what is no change of a state.
pub fn kind(op: Op) -> Option<&'static str> {
    match op {
        Op::Insert => Some("create"),
        Op::Update => Some("update"),
        Op::Delete => Some("delete"),
        Op::Reset | Op::Message | Op::Other => None,
    }
}
