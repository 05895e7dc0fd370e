//! Rows as the JSON of entries and notices.

use crate::contract::entry::{EntryBody, Source};
use crate::decode::pgoutput::{Begin, Cell, Old, Tuple};
use crate::decode::relation::Relation;
use crate::decode::value::{self, NotUtf8};
use crate::route::row::{ColumnValue, Row};

pub(super) fn source<'a>(relation: &'a Relation, begin: &Begin) -> Source<'a> {
    Source {
        schema: &relation.schema,
        table: &relation.table,
        commit_ts: begin.commit_ts,
        xid: begin.xid,
    }
}

/// Adds `row`, `old` and `unchanged`, as far as the log has them: of all columns, or of those that are shown.
pub(super) fn write_rows(
    relation: &Relation,
    row: &Row<'_>,
    shown: Option<&[bool]>,
    json: &mut Vec<u8>,
    body: &mut EntryBody,
) -> Result<(), NotUtf8> {
    if let Some(new) = row.new_tuple() {
        let old = row.old_row();
        json.clear();
        write_object(relation, new, shown, |column| whole_old_cell(old, column), json)?;
        body.row(json);
        json.clear();
        for (index, (column, cell)) in relation.columns.iter().zip(new).enumerate() {
            if *cell == Cell::Unchanged && whole_old_cell(old, index).is_none() && is_shown(shown, index) {
                json.push(if json.is_empty() { b'[' } else { b',' });
                value::write_string(&column.name, json);
            }
        }
        if !json.is_empty() {
            json.push(b']');
            body.unchanged(json);
        }
    }
    match row.old_row() {
        Some(Old::Full(old)) => {
            json.clear();
            write_object(relation, old, shown, |_| None, json)?;
            body.old(json);
        }
        Some(Old::Key(old)) => {
            // Columns outside the key are NULL here, whatever their value, and those of a key never are.
            let key: Tuple<'_> = old
                .iter()
                .map(|cell| if *cell == Cell::Null { Cell::Unchanged } else { *cell })
                .collect();
            json.clear();
            write_object(relation, &key, shown, |_| None, json)?;
            body.old(json);
        }
        None => {}
    }
    Ok(())
}

/// Adds what readers need to remove a row: the id that they know it by, which is the first column, and others as they were
/// last.
pub(super) fn write_removal(
    relation: &Relation,
    columns: &[usize],
    row: &Row<'_>,
    json: &mut Vec<u8>,
    body: &mut EntryBody,
) -> Result<(), NotUtf8> {
    let known_by = |id| match row.before(id) {
        ColumnValue::Unknown => row.after(id),
        value => value,
    };
    let id = columns.first().copied();
    let value_of = |column| match Some(column) == id {
        true => known_by(column),
        false => row.latest(column),
    };
    write_columns(relation, columns, value_of, json)?;
    let is_renamed = id.is_some_and(|id| row.has_after() && known_by(id) != row.after(id));
    body.removed(json, is_renamed);
    Ok(())
}

/// Writes a JSON object of some columns of the new row, or of the old row of a delete; values that the log lacks are
/// left out.
pub(super) fn write_payload(
    relation: &Relation,
    columns: &[usize],
    row: &Row<'_>,
    json: &mut Vec<u8>,
) -> Result<(), NotUtf8> {
    write_columns(relation, columns, |column| row.latest(column), json)
}

fn write_columns<'a>(
    relation: &Relation,
    columns: &[usize],
    value_of: impl Fn(usize) -> ColumnValue<'a>,
    json: &mut Vec<u8>,
) -> Result<(), NotUtf8> {
    json.clear();
    json.push(b'{');
    for &index in columns {
        let (Some(column), value) = (relation.columns.get(index), value_of(index)) else {
            continue;
        };
        if value == ColumnValue::Unknown {
            continue;
        }
        if json.len() > 1 {
            json.push(b',');
        }
        json.extend_from_slice(&column.json_key);
        match value {
            ColumnValue::Text(text) => value::write_json(column.kind, text, json)?,
            ColumnValue::Null | ColumnValue::Unknown => json.extend_from_slice(b"null"),
        }
    }
    json.push(b'}');
    Ok(())
}

fn is_shown(shown: Option<&[bool]>, column: usize) -> bool {
    shown.is_none_or(|shown| shown.get(column) == Some(&true))
}

pub(super) fn whole_old_cell<'a>(old: Option<&Old<'a>>, index: usize) -> Option<Cell<'a>> {
    match old {
        Some(Old::Full(tuple)) => tuple.get(index).copied().filter(|cell| *cell != Cell::Unchanged),
        _ => None,
    }
}

/// Writes a JSON object of the columns that have a value; an unchanged one may be supplied.
pub(super) fn write_object<'a>(
    relation: &Relation,
    tuple: &Tuple<'a>,
    shown: Option<&[bool]>,
    supplied: impl Fn(usize) -> Option<Cell<'a>>,
    json: &mut Vec<u8>,
) -> Result<(), NotUtf8> {
    json.push(b'{');
    let start = json.len();
    for (index, (column, cell)) in relation.columns.iter().zip(tuple).enumerate() {
        if !is_shown(shown, index) {
            continue;
        }
        let cell = match cell {
            Cell::Unchanged => match supplied(index) {
                Some(cell) => cell,
                None => continue,
            },
            cell => *cell,
        };
        if json.len() > start {
            json.push(b',');
        }
        json.extend_from_slice(&column.json_key);
        match cell {
            Cell::Null => json.extend_from_slice(b"null"),
            Cell::Text(text) => value::write_json(column.kind, text, json)?,
            // The option `binary` is off.
            Cell::Binary(_) | Cell::Unchanged => json.extend_from_slice(b"null"),
        }
    }
    json.push(b'}');
    Ok(())
}
