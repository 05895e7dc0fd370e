//! The built-in rule for messages: sender and recipient see each version; changes of the delivery status go only to the
//! sender.

use super::router::Delivery;
use super::row::{ColumnValue, NotAUserId, Row, user_id};
use crate::contract::stream_name::Audience;
use crate::core::event;
use crate::core::operation::Operation;
use crate::decode::relation::Relation;

/// Indexes of the columns of a tenant's `messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    sender: usize,
    recipient: usize,
    status: usize,
    synced_at: usize,
    /// Schemas of earlier versions do not have it.
    revision: Option<usize>,
    read_at: usize,
    deleted_at: usize,
    count: usize,
}

impl Columns {
    /// # Errors
    /// The name of a missing column.
    pub(super) fn of(relation: &Relation) -> Result<Self, &'static str> {
        let find = |name: &'static str| relation.column(name).ok_or(name);
        Ok(Self {
            sender: find("sender_id")?,
            recipient: find("recipient_id")?,
            status: find("status")?,
            synced_at: find("synced_at")?,
            revision: relation.column("revision"),
            read_at: find("read_at")?,
            deleted_at: find("deleted_at")?,
            count: relation.columns.len(),
        })
    }

    /// Appends the deliveries of a changed message.
    pub(super) fn route(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), NotAUserId> {
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

    fn appear(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), NotAUserId> {
        let recipient = user_id(row.after(self.recipient))?;
        let sender = user_id(row.after(self.sender))?;
        if let Some(user) = recipient {
            out.push(Delivery::stored(
                Audience::User(user),
                Operation::Insert,
                event::NEW_MESSAGE,
            ));
        }
        // The sender's other devices show what was sent.
        if let Some(user) = sender.filter(|user| Some(*user) != recipient) {
            out.push(Delivery::stored(
                Audience::User(user),
                Operation::Insert,
                event::MESSAGE_UPDATED,
            ));
        }
        Ok(())
    }

    fn disappear(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), NotAUserId> {
        // The old row names the viewers; after a soft delete that also moved the message, the new row does not.
        let viewer = |column| match row.before(column) {
            ColumnValue::Unknown => user_id(row.latest(column)),
            value => user_id(value),
        };
        let recipient = viewer(self.recipient)?;
        let sender = viewer(self.sender)?;
        for user in recipient
            .into_iter()
            .chain(sender.filter(|user| Some(*user) != recipient))
        {
            out.push(Delivery::stored(
                Audience::User(user),
                Operation::Delete,
                event::MESSAGE_DELETED,
            ));
        }
        Ok(())
    }

    fn change(&self, row: &Row<'_>, out: &mut Vec<Delivery<'_>>) -> Result<(), NotAUserId> {
        let mut changed = (0..self.count).filter(|column| row.has_changed(*column)).peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        let bookkeeping =
            changed.all(|column| column == self.status || column == self.synced_at || Some(column) == self.revision);
        let (old_recipient, old_sender) = (user_id(row.before(self.recipient))?, user_id(row.before(self.sender))?);
        let (recipient, sender) = (user_id(row.after(self.recipient))?, user_id(row.after(self.sender))?);

        let is_party = |user| Some(user) == recipient || Some(user) == sender;
        for user in old_recipient
            .into_iter()
            .chain(old_sender.filter(|user| Some(*user) != old_recipient))
        {
            if !is_party(user) {
                out.push(Delivery::stored(
                    Audience::User(user),
                    Operation::Delete,
                    event::MESSAGE_DELETED,
                ));
            }
        }
        let was_read = row.before(self.read_at) == ColumnValue::Null && row.after(self.read_at).is_set();
        let event = match row.after(self.status) {
            _ if was_read => event::MESSAGE_READ,
            ColumnValue::Text(b"synced") if bookkeeping => event::MESSAGE_SYNCED,
            ColumnValue::Text(b"read") if bookkeeping => event::MESSAGE_READ,
            _ => event::MESSAGE_UPDATED,
        };
        if let Some(user) = recipient {
            if old_recipient.is_some() && old_recipient != recipient {
                out.push(Delivery::stored(
                    Audience::User(user),
                    Operation::Insert,
                    event::NEW_MESSAGE,
                ));
            } else if !bookkeeping {
                out.push(Delivery::stored(Audience::User(user), Operation::Update, event));
            }
        }
        if let Some(user) = sender.filter(|user| Some(*user) != recipient) {
            out.push(Delivery::stored(Audience::User(user), Operation::Update, event));
        }
        Ok(())
    }
}
