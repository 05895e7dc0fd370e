//! What a phone did and does not know the outcome of, while its user and the row move.

use serde_json::json;
use uuid::Uuid;

use super::case::Case;
use super::story::{Change, Place, Table};
use crate::support::story::Pick;
use crate::support::unreliable::Fate;

/// What a user does with a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Edit,
    Put,
    Delete,
    Add,
}

/// The same change, but of this user and this row.
fn aimed(change: &Change, at: (Pick, Option<(Table, Pick)>)) -> Change {
    let mut change = change.clone();
    let (owner, of_row) = at;
    match &mut change {
        Change::Join { user, .. }
        | Change::Leave { user, .. }
        | Change::SoftLeave { user, .. }
        | Change::MoveMember { user, .. }
        | Change::GiveMember { user, .. }
        | Change::Rejoin { user, .. } => *user = owner,
        Change::Edit { table, row }
        | Change::Put { table, row, .. }
        | Change::Delete { table, row }
        | Change::SoftDelete { table, row, .. }
        | Change::Again { table, row, .. }
        | Change::Rename { table, row } => {
            if let Some(of_row) = of_row {
                (*table, *row) = of_row;
            }
        }
        _ => {}
    }
    change
}

impl Case<'_> {
    /// Does something at a phone; the id of the row.
    fn act(&mut self, phone: Pick, table: Table, act: Act, row: Pick, place: Place) -> Option<String> {
        if matches!(act, Act::Add) {
            return Some(self.add(phone, table, place));
        }
        let mut columns = self.columns(phone, table, place);
        if table == Table::Messages || matches!(act, Act::Edit) {
            columns = json!({table.text(): columns[table.text()]});
        }
        let device = phone.of_mut(&mut self.devices);
        let id = device.row(table, row, true)?;
        match act {
            Act::Delete => device.act("delete", table, &id, json!({})),
            _ => device.act("edit", table, &id, columns),
        }
        Some(id)
    }

    /// The number of the phone's user, and that of a row.
    fn aim(&self, phone: Pick, table: Table, id: Option<&str>) -> (Pick, Option<(Table, Pick)>) {
        let user = phone.of(&self.devices).user;
        let owner = self.users.iter().position(|known| *known == user).unwrap_or_default();
        let id: Option<Uuid> = id.and_then(|id| id.parse().ok());
        let row = self.rows[&table].iter().position(|known| Some(*known) == id);
        let row = row.and_then(|row| u8::try_from(row).ok());
        (Pick(owner as u8), row.map(|row| (table, Pick(row))))
    }

    /// An upload whose answer is lost; then others change the row and the user's memberships, and batches come.
    pub(super) async fn lapse(
        &mut self,
        (phone, table, act, row, place): (Pick, Table, Act, Pick, Place),
        changes: &[Change],
        fates: &[Fate],
    ) -> Result<(), String> {
        let id = self.act(phone, table, act, row, place);
        let device = phone.of_mut(&mut self.devices);
        device.set_fates(&[Fate::LoseAnswer]);
        let outcome = device.phone.upload(&device.network).await;
        device.outlive(outcome)?;
        let aim = self.aim(phone, table, id.as_deref());
        for change in changes {
            self.commit(&[aimed(change, aim)], true).await?;
        }
        if place.how.0.is_multiple_of(2) {
            self.stage.published().await;
        }
        let device = phone.of_mut(&mut self.devices);
        device.set_fates(fates);
        let outcome = device.phone.fetch(&device.network).await.map(drop);
        device.outlive(outcome)?;
        let outcome = device.phone.upload(&device.network).await;
        device.outlive(outcome)?;
        self.stage.tally("answers lost");
        Ok(())
    }

    /// A phone goes back to before its last upload; its user and the row have moved, and it does something else than then.
    pub(super) async fn relapse(
        &mut self,
        (phone, table, act, row, place): (Pick, Table, Act, Pick, Place),
        changes: &[Change],
    ) -> Result<(), String> {
        phone.of_mut(&mut self.devices).save();
        let id = self.act(phone, table, act, row, place);
        let device = phone.of_mut(&mut self.devices);
        let outcome = device.phone.sync(&device.network).await.map(drop);
        device.outlive(outcome)?;
        device.go_back();
        let aim = self.aim(phone, table, id.as_deref());
        for change in changes {
            self.commit(&[aimed(change, aim)], true).await?;
        }
        self.act(phone, table, act, row, place);
        self.stage.tally("phones restored");
        Ok(())
    }
}
