//! Rows of the stream whose unchanged columns the log omits, completed from Postgres.

use std::collections::HashMap;

use super::{Error, Incoming};
use crate::accounts::devices::DevicePrincipal;
use crate::contract::entry::Text;
use crate::sync::item::{self, Change, Item};
use crate::sync::range::Range;
use crate::sync::tables;

/// Rows of the first query, before their size is known, and the factor by which each further one may have more.
const FIRST_ROWS: usize = 32;
const GROWTH: usize = 8;

/// A table, and the id of a row.
type RowId = (Text, Text);

/// The rows, each with its audiences; `None` for one that Postgres does not show to the user any more.
#[derive(Debug, Default)]
pub(super) struct Completed {
    rows: HashMap<RowId, Option<(Text, Option<Text>)>>,
    bytes: usize,
}

impl Incoming {
    /// Reads the rows that a range names without all of their columns. A few bytes in the log may stand for a large row, so
    /// the range is cut where the rows have `bytes_max` bytes.
    pub(super) async fn complete(
        &self,
        device: &DevicePrincipal,
        range: &mut Range,
        bytes_max: usize,
    ) -> Result<Completed, Error> {
        let mut completed = Completed::default();
        let mut rows_max = FIRST_ROWS;
        loop {
            let partial = item::partial_rows(&range.versions);
            let mut wanted = partial.into_iter().filter(|(_, row)| !completed.rows.contains_key(row));
            let Some((place, row)) = wanted.next() else {
                return Ok(completed);
            };
            if completed.bytes < bytes_max {
                let next = wanted.take(rows_max - 1).map(|(_, row)| row);
                let rows = std::iter::once(row).chain(next).collect();
                self.read_rows(device, rows, &mut completed, bytes_max).await?;
                rows_max *= GROWTH;
            } else if range.versions.first().is_some_and(|first| first.place < place) {
                range.end_before(place);
            } else {
                // A batch has at least the rows of one change.
                self.read_rows(device, vec![row], &mut completed, usize::MAX).await?;
            }
        }
    }

    /// Reads rows until there are `bytes_max` bytes.
    async fn read_rows(
        &self,
        device: &DevicePrincipal,
        rows: Vec<RowId>,
        completed: &mut Completed,
        bytes_max: usize,
    ) -> Result<(), Error> {
        let mut tables: HashMap<Text, Vec<String>> = HashMap::new();
        for (table, id) in rows {
            tables.entry(table).or_default().push(id.to_string());
        }
        for (table, ids) in tables {
            let each = |row: tables::Row| {
                completed.bytes += row.json.as_bytes().len();
                let id = (table.clone(), Text::from(row.id));
                completed.rows.insert(id, Some((row.json, row.via)));
                completed.bytes < bytes_max
            };
            let (database, tenant, user) = (&self.database, &device.tenant, device.user_id);
            let is_whole = tables::by_id(database, tenant, user, self.routing(), table.as_str(), &ids, each).await?;
            if !is_whole {
                return Ok(());
            }
            for id in ids {
                completed.rows.entry((table.clone(), id.into())).or_default();
            }
        }
        Ok(())
    }
}

impl Completed {
    /// Completes items. A row that was deleted meanwhile is left out: its deletion follows.
    pub(super) fn fill(&mut self, items: &mut Vec<Item>) {
        items.retain_mut(|item| {
            let Item::Change(change @ Change { is_partial: true, .. }) = item else {
                return true;
            };
            let id = change.id.clone().map(|id| (change.table.clone(), id));
            let Some(Some((json, via))) = id.and_then(|id| self.rows.remove(&id)) else {
                return false;
            };
            let (json, via) = item::shown(change.table.as_str(), json, via);
            change.row = Some(json);
            change.via = via;
            change.is_partial = false;
            true
        });
    }
}
