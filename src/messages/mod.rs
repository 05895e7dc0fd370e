//! Messages between web users and mobile users.
//!
//! Sender and recipient may see a message; the sender may edit it and take it back (a soft delete, for both sides);
//! the recipient may mark it read. A deleted message is as absent as one that never was. Nobody else may know more of
//! a message than that its id is not theirs.
//!
//! The trigger `messages_new_version` counts versions, so no statement here does.

pub mod conflicts;

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::caches::Caches;
use crate::core::page::{Page, Rows};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error, check_text};
use crate::postgres::{Database, sql};

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No device of the recipient has acknowledged it.
    PendingSync,
    /// A device of the recipient has; or it came from a phone and has reached the server.
    Synced,
    /// The recipient has read it.
    Read,
}

impl Status {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingSync => "pending_sync",
            Self::Synced => "synced",
            Self::Read => "read",
        }
    }

    /// The status of this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::PendingSync, Self::Synced, Self::Read]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A message as the API shows one: always all fields, null when unset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Its id.
    pub id: Uuid,
    /// Who wrote it.
    pub sender_id: Uuid,
    /// Who gets it.
    pub recipient_id: Uuid,
    /// The text.
    pub content: String,
    /// How far it has come.
    pub status: Status,
    /// Grows with every change of what it says.
    pub version: i64,
    /// When it was written, by the clock of whoever wrote it.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it became `synced`.
    pub synced_at: Option<Timestamp>,
    /// When it was read.
    pub read_at: Option<Timestamp>,
}

impl Message {
    /// Reads the columns named like the fields.
    ///
    /// # Errors
    /// When a column is missing or of another type.
    pub fn from_row(row: &Row) -> Result<Self, Error> {
        let status: &str = row.try_get("status")?;
        Ok(Self {
            id: row.try_get("id")?,
            sender_id: row.try_get("sender_id")?,
            recipient_id: row.try_get("recipient_id")?,
            content: row.try_get("content")?,
            status: Status::parse(status)
                .ok_or_else(|| Error::Internal(format!("a message has the unknown status {status:?}")))?,
            version: row.try_get("version")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            synced_at: row.try_get("synced_at")?,
            read_at: row.try_get("read_at")?,
        })
    }
}

/// Checks a message's text.
///
/// # Errors
/// [`Error::EmptyMessage`] when it is empty or blank, [`Error::Invalid`] when it is too long or has a NUL.
pub fn check_content(content: &str, chars_max: usize) -> Result<(), Error> {
    if content.trim().is_empty() {
        return Err(Error::EmptyMessage);
    }
    check_text("content", content, chars_max)
}

/// Writes a message from a web user to a mobile user. The caller has checked the content.
///
/// # Errors
/// [`Error::InvalidRecipient`], [`Error::Forbidden`] when the recipient is a web user, [`Error::Unauthorized`] when
/// the sender is disabled or deleted.
pub async fn create(
    database: &Database,
    caches: &Caches,
    tenant: &Tenant,
    sender: Uuid,
    recipient: Uuid,
    content: &str,
) -> Result<Message, Error> {
    let row = database
        .query_often(
            &sql!("messages/message_insert", tenant),
            &[(&sender, Type::UUID), (&recipient, Type::UUID), (&content, Type::TEXT)],
        )
        .await?
        .ok_or_else(|| Error::Internal("inserting a message gave no row".into()))?;
    if !row.try_get::<_, bool>("sender_is_active")? {
        return Err(Error::Unauthorized("this user is disabled or deleted"));
    }
    match row.try_get::<_, Option<&str>>("recipient_type")? {
        None => Err(Error::InvalidRecipient),
        Some("mobile") => {
            caches.invalidate_counts(&tenant.name, [sender, recipient]);
            Message::from_row(&row)
        }
        Some(_) => Err(Error::Forbidden("web users write to mobile users only")),
    }
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only to this recipient.
    pub recipient: Option<Uuid>,
    /// Only with this status.
    pub status: Option<Status>,
    /// Which part of the list.
    pub page: Page,
}

/// A page of the messages that the user sent or got, newest first by `(created_at, id)`. A page before or after a message
/// costs the same however long the list is, and the message may be deleted meanwhile. The length of the whole list, without
/// filters, is remembered.
///
/// # Errors
/// [`Error::Invalid`] when the page is beside no message of the user's; when Postgres cannot be asked.
pub async fn list(
    database: &Database,
    caches: &Caches,
    tenant: &Tenant,
    user: Uuid,
    filter: &Filter,
) -> Result<Rows<Message>, Error> {
    let (page, place) = (&filter.page, feature::page_row_id(&filter.page)?);
    let statement = &sql!("messages/message_list", tenant);
    let ask = |is_counted: bool| async move {
        let rows = database
            .query(
                statement,
                &[
                    (&user, Type::UUID),
                    (&filter.recipient, Type::UUID),
                    (&filter.status.map(Status::as_str), Type::TEXT),
                    (&page.rows_max(), Type::INT8),
                    (&page.offset(), Type::INT8),
                    (&place, Type::UUID),
                    (&page.is_after(), Type::BOOL),
                    (&is_counted, Type::BOOL),
                ],
            )
            .await?;
        feature::read_page_seen(&rows, page, page.is_after(), Message::from_row)
    };
    match filter {
        Filter {
            recipient: None,
            status: None,
            ..
        } if place.is_none() => caches.messages_page(tenant, user, ask).await,
        _ => Ok(ask(place.is_none()).await?.0),
    }
}

/// How many messages to this user are unread, and what the count has seen.
pub(crate) async fn unread_count(database: &Database, tenant: &Tenant, user: Uuid) -> Result<(i64, Snapshot), Error> {
    let row = database
        .query_often(&sql!("messages/message_unread_count", tenant), &[(&user, Type::UUID)])
        .await?
        .ok_or_else(|| Error::Internal("counting gave no row".into()))?;
    Ok((row.try_get("unread_count")?, Snapshot::from_row(&row)?))
}

/// One message, and what the look has seen.
pub(crate) async fn find(database: &Database, tenant: &Tenant, id: Uuid) -> Result<(Message, Snapshot), Error> {
    let row = database
        .query_often(&sql!("messages/message_get", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("message"))?;
    Ok((Message::from_row(&row)?, Snapshot::from_row(&row)?))
}

/// One message.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Forbidden`] when the user neither sent nor got it.
pub async fn get(caches: &Caches, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<Message, Error> {
    let message = caches.message(tenant, id).await?;
    if message.sender_id != user && message.recipient_id != user {
        return Err(Error::Forbidden("this message is between other users"));
    }
    Ok(message)
}

/// Gives a message another text. The same text is no change. The caller has checked the content.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Forbidden`] when the user is not the sender.
pub async fn edit(
    database: &Database,
    caches: &Caches,
    tenant: &Tenant,
    user: Uuid,
    id: Uuid,
    content: &str,
) -> Result<Message, Error> {
    let row = database
        .query_often(
            &sql!("messages/message_edit", tenant),
            &[(&id, Type::UUID), (&user, Type::UUID), (&content, Type::TEXT)],
        )
        .await?;
    changed(caches, tenant, row, "only the sender may edit a message")
}

/// Marks a message read, once: a repeat changes nothing.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Forbidden`] when the user is not the recipient.
pub async fn mark_read(
    database: &Database,
    caches: &Caches,
    tenant: &Tenant,
    user: Uuid,
    id: Uuid,
) -> Result<Message, Error> {
    let row = database
        .query_often(
            &sql!("messages/message_mark_read", tenant),
            &[(&id, Type::UUID), (&user, Type::UUID)],
        )
        .await?;
    changed(caches, tenant, row, "only the recipient may mark a message read")
}

/// Takes a message back, for both sides.
///
/// # Errors
/// [`Error::NotFound`], also for the second time, or [`Error::Forbidden`] when the user is not the sender.
pub async fn delete(database: &Database, caches: &Caches, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<(), Error> {
    let row = database
        .query_opt(
            &sql!("messages/message_delete", tenant),
            &[(&id, Type::UUID), (&user, Type::UUID)],
        )
        .await?;
    changed(caches, tenant, row, "only the sender may delete a message").map(drop)
}

/// Reads what a changing statement gave: no row for no message, `allowed`, and the message as it is now.
fn changed(caches: &Caches, tenant: &Tenant, row: Option<Row>, forbidden: &'static str) -> Result<Message, Error> {
    let row = row.ok_or(Error::NotFound("message"))?;
    if !row.try_get::<_, bool>("allowed")? {
        return Err(Error::Forbidden(forbidden));
    }
    // Deleted between the statement's look and its change.
    if row.try_get::<_, Option<Uuid>>("id")?.is_none() {
        return Err(Error::NotFound("message"));
    }
    let message = Message::from_row(&row)?;
    caches.invalidate_messages(&tenant.name, [message.id]);
    caches.invalidate_counts(&tenant.name, [message.sender_id, message.recipient_id]);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_checked() {
        assert!(check_content("hi", 2).is_ok());
        assert!(matches!(check_content("", 2), Err(Error::EmptyMessage)));
        assert!(matches!(check_content(" \n", 2), Err(Error::EmptyMessage)));
        assert!(matches!(check_content("abc", 2), Err(Error::Invalid { .. })));
        assert!(matches!(check_content("a\0", 2), Err(Error::Invalid { .. })));
    }
}
