//! Reads pages of lists from rows.

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use super::Error;
use crate::core::page::{Page, Rows};
use crate::core::snapshot::Snapshot;

/// The id of the row that a page is before or after, in a list whose rows have UUIDs.
pub fn page_row_id(page: &Page) -> Result<Option<Uuid>, Error> {
    let place = page.place();
    place
        .map(|(field, id)| Uuid::try_parse(id).map_err(|_| unknown_place(field)))
        .transpose()
}

fn unknown_place(field: &'static str) -> Error {
    Error::invalid(field, "must be the id of a row of this list")
}

/// [`read_page`], and the snapshot of the statement.
pub fn read_page_seen<T>(
    rows: &[Row],
    page: &Page,
    is_upwards: bool,
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<(Rows<T>, Snapshot), Error> {
    let found = read_page(rows, page, is_upwards, read)?;
    let snapshot = rows.first().map(Snapshot::from_row).transpose()?;
    Ok((found, snapshot.unwrap_or_default()))
}

/// Reads a page from rows in the order of the list. Each row contains `is_known`, whether the row of `before` or `after` exists;
/// `total`, the length of the list if it was counted; and the columns of an element, of which the first is never null. There
/// is one row more than the page may have when the list continues: the first one if the page is read upwards.
pub fn read_page<T>(
    rows: &[Row],
    page: &Page,
    is_upwards: bool,
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Rows<T>, Error> {
    let first = rows
        .first()
        .ok_or_else(|| Error::Internal("a list returned no row".into()))?;
    if let (false, Some((field, _))) = (first.try_get("is_known")?, page.place()) {
        return Err(unknown_place(field));
    }
    let total = first.try_get("total")?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        if row.try_get::<_, Option<Anything>>(2)?.is_some() {
            found.push(read(row)?);
        }
    }
    let has_more = found.len() as u64 > page.limit.unsigned_abs();
    if has_more {
        found.remove(if is_upwards { 0 } else { found.len() - 1 });
    }
    Ok(Rows {
        rows: found,
        total,
        has_more,
    })
}

/// A value whose content is ignored.
struct Anything;

impl<'a> FromSql<'a> for Anything {
    fn from_sql(_: &Type, _: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
