//! The built-in rule for messages: sender and recipient, or the members of the group, see each version; changes of the
//! delivery status go only to the sender.

use std::sync::Arc;

use uuid::Uuid;

use super::router::{Delivery, RouteError};
use super::row::{ColumnValue, Row, user_id};
use crate::contract::group::GroupId;
use crate::contract::stream_name::Audience;
use crate::core::event;
use crate::core::operation::Operation;
use crate::decode::relation::Relation;

/// Indexes of the columns of a tenant's `messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    sender: usize,
    recipient: usize,
    /// The columns with the name and the id of the group. Schemas of earlier versions do not have them.
    group: Option<(usize, usize)>,
    status: usize,
    synced_at: usize,
    /// Schemas of earlier versions do not have it.
    revision: Option<usize>,
    read_at: usize,
    deleted_at: usize,
    count: usize,
}

/// The two sides of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parties {
    sender: Option<Uuid>,
    /// The recipient, or the group.
    recipient: Option<Audience>,
}

impl Parties {
    /// Both, each once. Of the deliveries of a change a reader takes the first: the sender learns of a message to a group
    /// that it was sent, the recipient of one between users that it is new.
    fn audiences(&self) -> impl Iterator<Item = Audience> + use<> {
        let recipient = self.recipient.clone();
        let sender = self.sender.map(Audience::User);
        let sender = sender.filter(|sender| Some(sender) != recipient.as_ref());
        let both = match recipient {
            Some(Audience::Group(_)) => [sender, recipient],
            _ => [recipient, sender],
        };
        both.into_iter().flatten()
    }

    fn include(&self, audience: &Audience) -> bool {
        self.recipient.as_ref() == Some(audience) || self.sender.map(Audience::User).as_ref() == Some(audience)
    }
}

impl Columns {
    /// # Errors
    /// The name of a missing column.
    pub(super) fn of(relation: &Relation) -> Result<Self, &'static str> {
        let find = |name: &'static str| relation.column(name).ok_or(name);
        Ok(Self {
            sender: find("sender_id")?,
            recipient: find("recipient_id")?,
            group: relation.column("group_name").zip(relation.column("group_id")),
            status: find("status")?,
            synced_at: find("synced_at")?,
            revision: relation.column("revision"),
            read_at: find("read_at")?,
            deleted_at: find("deleted_at")?,
            count: relation.columns.len(),
        })
    }

    /// Who sees a message after the change, the group first, if it goes to a group, or went to one before. `None` as well if
    /// no user sees it.
    pub(super) fn audiences(&self, row: &Row<'_>) -> Option<Vec<Audience>> {
        let (_, id) = self.group?;
        let is_visible = row.has_after() && !row.after(self.deleted_at).is_set();
        if !is_visible || !row.before(id).is_set() && !row.after(id).is_set() {
            return None;
        }
        let after = self.parties(|column| row.after(column)).ok()?;
        let mut audiences: Vec<Audience> = after.audiences().collect();
        audiences.sort_by_key(|audience| !matches!(audience, Audience::Group(_)));
        Some(audiences)
    }

    /// Appends the deliveries of a changed message.
    pub(super) fn route(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), RouteError> {
        match row.operation {
            // A message that is or was already deleted softly is visible to no user.
            Operation::Insert if row.after(self.deleted_at).is_set() => Ok(()),
            Operation::Delete if row.before(self.deleted_at).is_set() => Ok(()),
            Operation::Insert => self.appear(row, out),
            Operation::Delete => self.disappear(row, out),
            // No operations of a row.
            Operation::Truncate | Operation::Reset | Operation::Message | Operation::Member | Operation::Other => {
                Ok(())
            }
            Operation::Update => {
                let was_deleted = row.before(self.deleted_at).is_set();
                let is_deleted = row.after(self.deleted_at).is_set();
                match (was_deleted, is_deleted) {
                    (true, true) => Ok(()),
                    (true, false) => self.appear(row, out),
                    (false, true) => self.disappear(row, out),
                    (false, false) => self.change(row, out),
                }
            }
        }
    }

    /// Whom these values name.
    fn parties<'a>(&self, value: impl Fn(usize) -> ColumnValue<'a>) -> Result<Parties, RouteError> {
        let user = |column: usize, name: &str| {
            user_id(value(column)).map_err(|cause| RouteError::Recipient {
                column: name.into(),
                cause,
            })
        };
        let group = match self.group.map(|(name, id)| (value(name), value(id))) {
            Some((ColumnValue::Text(name), ColumnValue::Text(id))) => Some((name, id)),
            _ => None,
        };
        let recipient = match group {
            Some((name, id)) => {
                let name: Arc<str> = String::from_utf8_lossy(name).into();
                let group = GroupId::new(&name, id).map_err(|cause| RouteError::Group {
                    column: "group_id".into(),
                    cause,
                })?;
                Some(Audience::Group(group))
            }
            None => user(self.recipient, "recipient_id")?.map(Audience::User),
        };
        let sender = user(self.sender, "sender_id")?;
        Ok(Parties { sender, recipient })
    }

    fn appear(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), RouteError> {
        let parties = self.parties(|column| row.after(column))?;
        for audience in parties.audiences() {
            // The sender's other devices show what was sent.
            let event = match parties.recipient.as_ref() == Some(&audience) {
                true => event::NEW_MESSAGE,
                false => event::MESSAGE_UPDATED,
            };
            out.push(Delivery::stored(audience, Operation::Insert, event));
        }
        Ok(())
    }

    fn disappear(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), RouteError> {
        // The old row names the viewers; after a soft delete that also moved the message, the new row does not.
        let parties = self.parties(|column| match row.before(column) {
            ColumnValue::Unknown => row.latest(column),
            value => value,
        })?;
        for audience in parties.audiences() {
            out.push(Delivery::stored(audience, Operation::Delete, event::MESSAGE_DELETED));
        }
        Ok(())
    }

    fn change(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), RouteError> {
        let mut changed = (0..self.count).filter(|column| row.has_changed(*column)).peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        let bookkeeping =
            changed.all(|column| column == self.status || column == self.synced_at || Some(column) == self.revision);
        let old = self.parties(|column| row.before(column))?;
        let new = self.parties(|column| row.after(column))?;
        for audience in old.audiences() {
            if !new.include(&audience) {
                out.push(Delivery::stored(audience, Operation::Delete, event::MESSAGE_DELETED));
            }
        }
        let was_read = row.before(self.read_at) == ColumnValue::Null && row.after(self.read_at).is_set();
        let event = match row.after(self.status) {
            _ if was_read => event::MESSAGE_READ,
            ColumnValue::Text(b"synced") if bookkeeping => event::MESSAGE_SYNCED,
            ColumnValue::Text(b"read") if bookkeeping => event::MESSAGE_READ,
            _ => event::MESSAGE_UPDATED,
        };
        for audience in new.audiences() {
            let is_recipient = new.recipient.as_ref() == Some(&audience);
            if is_recipient && old.recipient.is_some() && old.recipient != new.recipient {
                out.push(Delivery::stored(audience, Operation::Insert, event::NEW_MESSAGE));
            } else if !is_recipient || !bookkeeping {
                out.push(Delivery::stored(audience, Operation::Update, event));
            }
        }
        Ok(())
    }
}
