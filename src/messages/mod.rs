//! Messages between web users and mobile users, and to groups, and their caches.
//!
//! Sender and recipient, or the members of the group, may read a message; the sender may edit and delete it (a soft delete, for
//! all sides); the recipient may mark it read. A deleted message is not found. For all other users a message is forbidden, and
//! nothing of it is shown. [`groups`] has what is special about groups.
//!
//! The trigger `messages_new_version` increments versions, no statement here does.

pub mod conflicts;
pub mod groups;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::{Json, Type};
use uuid::Uuid;

use self::groups::{GroupOfMessage, NO_MEMBER};
use crate::config::Config;
use crate::core::operation::Operation;
use crate::core::page::{Page, Rows, Start};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::cache::{Key, Lookup, RowCache, Settings, Ticket};
use crate::feature::{self, Error, check_text};
use crate::live::tail::{ChangeListener, Notice};
use crate::postgres::{Database, sql};
use crate::telemetry::metrics;

/// How often an unread count is repeated until it sees a commit.
const VISIBLE_TRIES: u32 = 5;

/// Pause between the repetitions.
const VISIBLE_POLL: Duration = Duration::from_millis(10);

/// Weight of a cached message without its content, in bytes.
const MESSAGE_BYTES: usize = 320;

/// The progress of a message's delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No device of the recipient has acknowledged the message.
    PendingSync,
    /// A device of the recipient has acknowledged it, or it was uploaded by a device.
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
    pub id: Uuid,
    pub sender_id: Uuid,
    /// Of a message between users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient_id: Option<Uuid>,
    /// Of a message to a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupOfMessage>,
    /// The place in the group, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    pub content: String,
    pub status: Status,
    /// Increases with every change of the content.
    pub version: i64,
    /// Increases with every change of the row, receipts included.
    pub revision: i64,
    /// By the clock of the writing device.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub synced_at: Option<Timestamp>,
    pub read_at: Option<Timestamp>,
}

impl Message {
    /// Reads the columns named like the fields.
    pub fn from_row(row: &Row) -> Result<Self, Error> {
        let status: &str = row.try_get("status")?;
        let group = (row.try_get("group_name")?, row.try_get("group_id")?);
        Ok(Self {
            id: row.try_get("id")?,
            sender_id: row.try_get("sender_id")?,
            recipient_id: row.try_get("recipient_id")?,
            group: match group {
                (Some(name), Some(id)) => Some(GroupOfMessage { name, id }),
                _ => None,
            },
            number: row.try_get("number")?,
            content: row.try_get("content")?,
            status: Status::parse(status)
                .ok_or_else(|| Error::Internal(format!("a message has the unknown status {status:?}")))?,
            version: row.try_get("version")?,
            revision: row.try_get("revision")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            synced_at: row.try_get("synced_at")?,
            read_at: row.try_get("read_at")?,
        })
    }
}

/// Checks the content of a message.
///
/// # Errors
/// [`Error::EmptyMessage`] when it is empty or blank, [`Error::Invalid`] when it is too long or has a NUL.
pub fn check_content(content: &str, chars_max: usize) -> Result<(), Error> {
    if content.trim().is_empty() {
        return Err(Error::EmptyMessage);
    }
    check_text("content", content, chars_max)
}

/// Which messages to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only to this recipient.
    pub recipient: Option<Uuid>,
    /// Only to this group, of which the user must be a member; without other filters.
    pub group: Option<GroupOfMessage>,
    /// Only with this status.
    pub status: Option<Status>,
    pub page: Page,
}

/// The messages of a process's tenants, with a cache of messages and of the numbers of each user's messages and unread
/// messages. Cloning shares the cache. The change stream keeps it consistent as long as the hub has it among its listeners.
#[derive(Debug, Clone)]
pub struct Messages(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Database,
    config: Arc<Config>,
    messages: RowCache<Message>,
    unread: RowCache<i64>,
    totals: RowCache<i64>,
}

impl Messages {
    pub fn new(database: Database, settings: &Settings, config: &Arc<Config>) -> Self {
        Self(Arc::new(Shared {
            database,
            config: config.clone(),
            messages: RowCache::weighted(
                metrics::Cache::Message,
                settings,
                settings.messages_bytes_max,
                |message: &Message| message.content.len() + MESSAGE_BYTES,
            ),
            unread: RowCache::new(metrics::Cache::UnreadCount, settings),
            totals: RowCache::new(metrics::Cache::MessagesTotal, settings),
        }))
    }

    fn database(&self) -> &Database {
        &self.0.database
    }

    /// Creates a message from a web user to a mobile user. The caller has checked the content.
    ///
    /// # Errors
    /// [`Error::InvalidRecipient`], [`Error::Forbidden`] when the recipient is a web user, [`Error::Unauthorized`] when
    /// the sender is disabled or deleted.
    pub async fn create(
        &self,
        tenant: &Tenant,
        sender: Uuid,
        recipient: Uuid,
        content: &str,
    ) -> Result<Message, Error> {
        let row = self
            .database()
            .query_often(
                &sql!("messages/message_insert", tenant),
                &[(&sender, Type::UUID), (&recipient, Type::UUID), (&content, Type::TEXT)],
            )
            .await?
            .ok_or_else(|| Error::Internal("inserting a message returned no row".into()))?;
        if !row.try_get::<_, bool>("sender_is_active")? {
            return Err(Error::Unauthorized("this user is disabled or deleted"));
        }
        match row.try_get::<_, Option<&str>>("recipient_type")? {
            None => Err(Error::InvalidRecipient),
            Some("mobile") => {
                self.invalidate_counts(tenant, &[sender, recipient]);
                Message::from_row(&row)
            }
            Some(_) => Err(Error::Forbidden("web users write to mobile users only")),
        }
    }

    /// A page of the messages that the user sent or received, newest first by `(created_at, id)`; those of a group are listed by
    /// their number. A page before or after a message costs the same however long the list is, and the message may be deleted
    /// meanwhile. The length of the list without filters is cached.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the row of `before` or `after` is no message of the list, [`Error::Forbidden`] for a group of
    /// which the user is no member.
    pub async fn list(&self, tenant: &Tenant, user: Uuid, filter: &Filter) -> Result<Rows<Message>, Error> {
        if let Some(group) = &filter.group {
            return self.list_of_group(tenant, user, group, &filter.page).await;
        }
        let is_total = matches!(
            filter,
            Filter {
                recipient: None,
                group: None,
                status: None,
                page: Page {
                    start: Start::Offset(_),
                    ..
                },
            }
        );
        if !is_total {
            let is_counted = filter.page.place().is_none();
            return Ok(self.fetch_page(tenant, user, filter, is_counted).await?.0);
        }
        match self.0.totals.lookup(Key::new(&tenant.name, user)) {
            Lookup::Hit(total) => {
                let mut page = self.fetch_page(tenant, user, filter, false).await?.0;
                page.total = Some(total);
                Ok(page)
            }
            Lookup::Miss(ticket) => {
                let (page, snapshot) = self.fetch_page(tenant, user, filter, true).await?;
                if let Some(ticket) = ticket {
                    self.0.totals.insert(ticket, page.total.unwrap_or_default(), snapshot);
                }
                Ok(page)
            }
        }
    }

    /// A page, and the snapshot of its statement.
    async fn fetch_page(
        &self,
        tenant: &Tenant,
        user: Uuid,
        filter: &Filter,
        is_counted: bool,
    ) -> Result<(Rows<Message>, Snapshot), Error> {
        let page = &filter.page;
        let rows = self
            .database()
            .query(
                &sql!("messages/message_list", tenant),
                &[
                    (&user, Type::UUID),
                    (&filter.recipient, Type::UUID),
                    (&filter.status.map(Status::as_str), Type::TEXT),
                    (&page.rows_max(), Type::INT8),
                    (&page.offset(), Type::INT8),
                    (&feature::page_row_id(page)?, Type::UUID),
                    (&page.is_after(), Type::BOOL),
                    (&is_counted, Type::BOOL),
                ],
            )
            .await?;
        feature::read_page_seen(&rows, page, page.is_after(), Message::from_row)
    }

    /// The number of unread messages to this user.
    pub async fn unread_count(&self, tenant: &Tenant, user: Uuid) -> Result<i64, Error> {
        let ticket = match self.0.unread.lookup(Key::new(&tenant.name, user)) {
            Lookup::Hit(count) => return Ok(count),
            Lookup::Miss(ticket) => ticket,
        };
        let (count, snapshot) = self.fetch_unread_count(tenant, user).await?;
        self.insert_unread_count(ticket, count, snapshot);
        Ok(count)
    }

    /// The number of unread messages to this user, including the one of transaction `xid`.
    ///
    /// The log can deliver a message before a snapshot sees it: shortly on any server, longer while a commit waits for a
    /// standby. The count therefore waits a short time for it, and then adds it.
    pub async fn unread_count_including(&self, tenant: &Tenant, user: Uuid, xid: u32) -> Result<i64, Error> {
        let ticket = match self.0.unread.lookup_seeing(Key::new(&tenant.name, user), xid) {
            Lookup::Hit(count) => return Ok(count),
            Lookup::Miss(ticket) => ticket,
        };
        let mut tries = 0;
        loop {
            let (count, snapshot) = self.fetch_unread_count(tenant, user).await?;
            if snapshot.sees_all(xid, xid) {
                self.insert_unread_count(ticket, count, snapshot);
                return Ok(count);
            }
            if tries == VISIBLE_TRIES {
                return Ok(count + 1);
            }
            tries += 1;
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    async fn fetch_unread_count(&self, tenant: &Tenant, user: Uuid) -> Result<(i64, Snapshot), Error> {
        let row = self
            .database()
            .query_often(&sql!("messages/message_unread_count", tenant), &[(&user, Type::UUID)])
            .await?
            .ok_or_else(|| Error::Internal("counting messages returned no row".into()))?;
        Ok((row.try_get("unread_count")?, Snapshot::from_row(&row)?))
    }

    fn insert_unread_count(&self, ticket: Option<Ticket>, count: i64, snapshot: Snapshot) {
        if let Some(ticket) = ticket {
            self.0.unread.insert(ticket, count, snapshot);
        }
    }

    /// One message.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Forbidden`] when the user is neither sender nor recipient, nor a member of the group.
    pub async fn get(&self, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<Message, Error> {
        let message = self.find(tenant, id).await?;
        if message.sender_id == user || message.recipient_id == Some(user) {
            return Ok(message);
        }
        match &message.group {
            Some(group) if self.is_member(tenant, user, group).await? => Ok(message),
            Some(_) => Err(Error::Forbidden(NO_MEMBER)),
            None => Err(Error::Forbidden("this message is between other users")),
        }
    }

    /// One message, without a check of the user.
    async fn find(&self, tenant: &Tenant, id: Uuid) -> Result<Message, Error> {
        let ticket = match self.0.messages.lookup(Key::new(&tenant.name, id)) {
            Lookup::Hit(message) => return Ok(message),
            Lookup::Miss(ticket) => ticket,
        };
        let row = self
            .database()
            .query_often(&sql!("messages/message_get", tenant), &[(&id, Type::UUID)])
            .await?
            .ok_or(Error::NotFound("message"))?;
        let message = Message::from_row(&row)?;
        // The change stream does not carry the acknowledgement of a message to oneself.
        if let Some(ticket) = ticket
            && Some(message.sender_id) != message.recipient_id
        {
            self.0
                .messages
                .insert(ticket, message.clone(), Snapshot::from_row(&row)?);
        }
        Ok(message)
    }

    /// Replaces the content of a message. The same content is no change. The caller has checked the content.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Forbidden`] when the user is not the sender, or no more a member of the group.
    pub async fn edit(&self, tenant: &Tenant, user: Uuid, id: Uuid, content: &str) -> Result<Message, Error> {
        let lists = Json(self.lists(tenant, user).await?);
        let row = self
            .database()
            .query_often(
                &sql!("messages/message_edit", tenant),
                &[
                    (&id, Type::UUID),
                    (&user, Type::UUID),
                    (&content, Type::TEXT),
                    (&tenant.schema, Type::TEXT),
                    (&lists, Type::JSONB),
                ],
            )
            .await?;
        let forbidden = "only the sender may edit a message, and one to a group only as a member of it";
        self.changed(tenant, row, forbidden)
    }

    /// Marks a message read. A repetition changes nothing. In a group it moves the user's mark to the message, and changes
    /// nothing of the message.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Forbidden`] when the user is not the recipient, nor a member of the group.
    pub async fn mark_read(&self, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<Message, Error> {
        let lists = Json(self.lists(tenant, user).await?);
        let row = self
            .database()
            .query_often(
                &sql!("messages/message_mark_read", tenant),
                &[
                    (&id, Type::UUID),
                    (&user, Type::UUID),
                    (&tenant.schema, Type::TEXT),
                    (&lists, Type::JSONB),
                ],
            )
            .await?;
        let forbidden = "only the recipient may mark a message read, and in a group its members";
        self.changed(tenant, row, forbidden)
    }

    /// Deletes a message, for both sides.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is deleted already, or [`Error::Forbidden`] when the user is not the sender.
    pub async fn delete(&self, tenant: &Tenant, user: Uuid, id: Uuid) -> Result<(), Error> {
        let row = self
            .database()
            .query_opt(
                &sql!("messages/message_delete", tenant),
                &[(&id, Type::UUID), (&user, Type::UUID)],
            )
            .await?;
        self.changed(tenant, row, "only the sender may delete a message")
            .map(drop)
    }

    /// Reads the row of a changing statement: no row for no message, `allowed`, and the message after the change.
    fn changed(&self, tenant: &Tenant, row: Option<Row>, forbidden: &'static str) -> Result<Message, Error> {
        let row = row.ok_or(Error::NotFound("message"))?;
        if !row.try_get::<_, bool>("allowed")? {
            return Err(Error::Forbidden(forbidden));
        }
        // Another statement deleted the message between the check and the change.
        if row.try_get::<_, Option<Uuid>>("id")?.is_none() {
            return Err(Error::NotFound("message"));
        }
        let message = Message::from_row(&row)?;
        let recipient = message.recipient_id.unwrap_or(message.sender_id);
        self.invalidate(tenant, [message.id], &[message.sender_id, recipient]);
        Ok(message)
    }

    /// Moves messages to this user from `pending_sync` to `synced`.
    pub async fn mark_synced(&self, tenant: &Tenant, user: Uuid, ids: &[Uuid]) -> Result<(), Error> {
        self.database()
            .query(
                &sql!("messages/messages_mark_synced", tenant),
                &[(&user, Type::UUID), (&ids, Type::UUID_ARRAY)],
            )
            .await?;
        self.invalidate(tenant, ids.iter().copied(), &[]);
        Ok(())
    }

    /// An upload of this user has written messages.
    pub fn uploaded(&self, tenant: &Tenant, user: Uuid, ids: impl IntoIterator<Item = Uuid>) {
        self.invalidate(tenant, ids, &[user]);
    }

    /// This process has changed messages, and the counts of users.
    fn invalidate(&self, tenant: &Tenant, ids: impl IntoIterator<Item = Uuid>, users: &[Uuid]) {
        for id in ids {
            self.0.messages.invalidate_written(&Key::new(&tenant.name, id));
        }
        self.invalidate_counts(tenant, users);
    }

    fn invalidate_counts(&self, tenant: &Tenant, users: &[Uuid]) {
        for user in users {
            let key = Key::new(&tenant.name, *user);
            self.0.unread.invalidate_written(&key);
            self.0.totals.invalidate_written(&key);
        }
    }
}

impl Messages {
    /// Changes of a tenant were missed.
    fn lost_of(&self, tenant: &str) {
        self.0.messages.invalidate_tenant(tenant);
        self.0.unread.invalidate_tenant(tenant);
        self.0.totals.invalidate_tenant(tenant);
    }
}

impl ChangeListener for Messages {
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>) {
        match (&*notice.table, users) {
            _ if notice.op == Operation::Reset => self.lost_of(tenant),
            ("messages", Some(users)) => {
                for user in users {
                    let key = Key::new(tenant, *user);
                    self.0.unread.invalidate_changed(&key, notice.xid);
                    self.0.totals.invalidate_changed(&key, notice.xid);
                }
                match notice.row_uuid() {
                    Some(id) => self.0.messages.invalidate_changed(&Key::new(tenant, id), notice.xid),
                    None => self.0.messages.invalidate_tenant(tenant),
                }
            }
            ("messages" | "", None) => self.lost_of(tenant),
            _ => {}
        }
    }

    fn lost(&self) {
        self.0.messages.invalidate_all();
        self.0.unread.invalidate_all();
        self.0.totals.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_must_be_nonblank_and_within_its_bound() {
        assert!(check_content("hi", 2).is_ok());
        assert!(matches!(check_content("", 2), Err(Error::EmptyMessage)));
        assert!(matches!(check_content(" \n", 2), Err(Error::EmptyMessage)));
        assert!(matches!(check_content("abc", 2), Err(Error::Invalid { .. })));
        assert!(matches!(check_content("a\0", 2), Err(Error::Invalid { .. })));
    }
}
