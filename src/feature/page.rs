//! Reads pages of lists out of rows.

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

/// [`read_page`], and which transactions the look has seen.
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

/// Reads a page out of rows that each bear whether the row beside which the page lies is known, the list's length if it
/// was counted, and then the columns of one of the list, the first of which is never null there; one more than the page
/// may have if there are more, in the list's order. That one is the first when the page goes against the order.
pub fn read_page<T>(
    rows: &[Row],
    page: &Page,
    is_upwards: bool,
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Rows<T>, Error> {
    let first = rows
        .first()
        .ok_or_else(|| Error::Internal("a list gave no row".into()))?;
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

/// A value of which only matters that it is there.
struct Anything;

impl<'a> FromSql<'a> for Anything {
    fn from_sql(_: &Type, _: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
