//! Conflicts: a device changed a message, or a row of an own table, based on an older version than the row's. Both versions
//! are kept; under `sync.conflict_strategy: manual` the user who made the change resolves the conflict. One about a row of
//! an own table is open under either strategy, names the row by `table` and `row_id`, and is resolved with `server` only.
//!
//! An open conflict is a row that all devices and pages of its user receive, and that they remove when it is resolved.
//! Resolved conflicts stay in the table, including those that `last_write_wins` resolved.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{Json, Type};
use uuid::Uuid;

use crate::core::page::{Page, Rows};
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error};
use crate::messages::Messages;
use crate::postgres::{Database, sql};

/// A conflict as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conflict {
    pub id: Uuid,
    /// `None` for a row of an own table, which `table` and `row_id` name.
    pub message_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_id: Option<String>,
    /// The user whose device made the change.
    pub user_id: Uuid,
    pub device_id: Option<String>,
    /// The version on which the change is based; 0 for a creation.
    pub base_version: i64,
    /// The message as the device sent it, or `row` for a row of an own table; `op` is `create`, `edit` or `delete`.
    pub client_version: Value,
    /// The message or row as it was when the device's change arrived.
    pub server_version: Value,
    /// The message as it is now; null when it was deleted, and for a row of an own table.
    pub message: Option<Value>,
    /// The strategy in force: `last_write_wins` or `manual`.
    pub strategy: String,
    /// `client`, `server` or `merged`; null while it is open.
    pub resolution: Option<String>,
    /// The user who resolved it; null for the engine.
    pub resolved_by: Option<Uuid>,
    /// When the device's change arrived.
    pub created_at: Timestamp,
    pub resolved_at: Option<Timestamp>,
}

impl Conflict {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            message_id: row.try_get("message_id")?,
            table: row.try_get("table_name")?,
            row_id: row.try_get("row_id")?,
            user_id: row.try_get("user_id")?,
            device_id: row.try_get("device_id")?,
            base_version: row.try_get("base_version")?,
            client_version: row.try_get("client_version")?,
            server_version: row.try_get("server_version")?,
            message: row.try_get("message")?,
            strategy: row.try_get("strategy")?,
            resolution: row.try_get("resolution")?,
            resolved_by: row.try_get("resolved_by")?,
            created_at: row.try_get("created_at")?,
            resolved_at: row.try_get("resolved_at")?,
        })
    }
}

/// Which conflicts to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only one.
    pub id: Option<Uuid>,
    /// Only open ones, or only resolved ones.
    pub is_open: Option<bool>,
    pub page: Page,
}

/// A page of a user's conflicts, newest first by `(created_at, id)`. It ends early at `bytes_max` bytes: each conflict has two
/// versions of a row.
///
/// # Errors
/// [`Error::Invalid`] when the row of `before` or `after` is no conflict of the user.
pub async fn list(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    filter: &Filter,
    bytes_max: usize,
) -> Result<Rows<Conflict>, Error> {
    let page = &filter.page;
    let (place, is_after) = (feature::page_row_id(page)?, page.is_after());
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let each = |row: Row| {
        bytes += row.raw_size_bytes();
        rows.push(row);
        bytes < bytes_max
    };
    let is_whole = database
        .query_each(
            &sql!("messages/conflict_list", tenant),
            &[
                (&user, Type::UUID),
                (&filter.id, Type::UUID),
                (&filter.is_open, Type::BOOL),
                (&page.rows_max(), Type::INT8),
                (&page.offset(), Type::INT8),
                (&place, Type::UUID),
                (&is_after, Type::BOOL),
            ],
            each,
        )
        .await?;
    if is_after {
        rows.reverse();
    }
    let mut found = feature::read_page(&rows, page, is_after, Conflict::from_row)?;
    found.has_more |= !is_whole;
    Ok(found)
}

/// The decision about a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The device's version replaces the message.
    Client,
    /// The message does not change.
    Server,
    /// The message gets this content, which the caller has checked.
    Merged(String),
}

/// Resolves a user's conflict. A repetition with the same resolution changes nothing. `base` is the version of the message
/// on which the decision is based, by default the one in the conflict.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`] for another user's conflict, or one in a group that the user left,
/// [`Error::Conflict`] when it was resolved in another way or the message has changed since.
pub async fn resolve(
    messages: &Messages,
    tenant: &Tenant,
    user: Uuid,
    id: Uuid,
    resolution: &Resolution,
    base: Option<i64>,
) -> Result<Conflict, Error> {
    let (word, merged) = match resolution {
        Resolution::Client => ("client", None),
        Resolution::Server => ("server", None),
        Resolution::Merged(text) => ("merged", Some(text.as_str())),
    };
    let lists = Json(messages.lists(tenant, user).await?);
    let row = messages
        .database()
        .query_opt(
            &sql!("messages/conflict_resolve", tenant),
            &[
                (&user, Type::UUID),
                (&id, Type::UUID),
                (&word, Type::TEXT),
                (&merged, Type::TEXT),
                (&base, Type::INT8),
                (&tenant.schema, Type::TEXT),
                (&lists, Type::JSONB),
            ],
        )
        .await?
        .ok_or_else(|| Error::Internal("resolving a conflict returned no row".into()))?;
    match (row.try_get("outcome")?, row.try_get::<_, Option<i64>>("version")?) {
        ("resolved", _) => {}
        ("closed", _) => return Err(Error::Conflict("the conflict was resolved in another way".into())),
        ("moved", Some(version)) => {
            return Err(Error::Conflict(format!(
                "the message has version {version}: read it and resolve with base_version {version}"
            )));
        }
        ("moved", None) => return Err(not_a_message(messages, tenant, user, id).await?),
        ("left", _) => {
            let text = "the message is in a group of which you are no member: resolve with `server`";
            return Err(Error::Forbidden(text));
        }
        ("foreign", _) => return Err(Error::Forbidden("this conflict is another user's")),
        _ => return Err(Error::NotFound("conflict")),
    }
    let conflict = get(messages.database(), tenant, user, id).await?;
    messages.invalidate(tenant, conflict.message_id, &[user]);
    Ok(conflict)
}

async fn get(database: &Database, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<Conflict, Error> {
    let one = Filter {
        id: Some(id),
        is_open: None,
        page: Page::first(1),
    };
    let mut conflicts = list(database, tenant, user, &one, usize::MAX).await?.rows;
    conflicts.pop().ok_or(Error::NotFound("conflict"))
}

/// Why a conflict can only be resolved with `server`: there is no message to write to.
async fn not_a_message(messages: &Messages, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<Error, Error> {
    let conflict = get(messages.database(), tenant, user, id).await?;
    Ok(Error::Conflict(match conflict.table {
        Some(table) => format!(
            "a conflict of a row of {table} is resolved with `server`; to apply another content, upload an edit that is \
             based on the row's version"
        ),
        None => "the message was deleted".into(),
    }))
}
