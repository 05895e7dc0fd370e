//! How the catalogs differ from what was recorded of a table, and what that means for its readers.

use std::collections::BTreeSet;

use anyhow::Result;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Transaction};

use crate::postgres::migrations;

/// How long a look waits for a lock; the next one tries again.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '1s'";

/// Longest cause in the quarantine in characters.
pub(super) const CAUSE_LENGTH_MAX: usize = 2048;

/// What happened to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its replica identity does not log whole old rows.
    Identity,
    /// It joined or left the publication, or that publishes other operations.
    Publication,
    /// It became a partition, or ceased to be one.
    Partition,
    /// Its rows were written again, or truncated.
    Rewrite,
    /// Its columns changed.
    Columns,
    Renamed,
    Dropped,
    /// It left the tenant's schema, or returned: most often the schema was renamed.
    Moved,
    /// Its rules changed, or one names it for the first time.
    Rule,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Identity,
        Self::Publication,
        Self::Partition,
        Self::Rewrite,
        Self::Columns,
        Self::Renamed,
        Self::Dropped,
        Self::Moved,
        Self::Rule,
    ];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Publication => "publication",
            Self::Partition => "partition",
            Self::Rewrite => "rewrite",
            Self::Columns => "columns",
            Self::Renamed => "renamed",
            Self::Dropped => "dropped",
            Self::Moved => "moved",
            Self::Rule => "rule",
        }
    }

    /// The cause as the quarantine has it.
    fn cause(self) -> &'static str {
        match self {
            Self::Identity => "the log had no whole old rows, because REPLICA IDENTITY was not as required",
            Self::Publication => "changes were not published, because the publication lacked the table or operations",
            Self::Partition => "rows came or went with a partition, by ATTACH, DETACH or CREATE TABLE",
            Self::Rewrite => "the table was rewritten or truncated, which is not in the log",
            Self::Columns => "the columns changed, which is not in the log",
            Self::Renamed => "the table was renamed",
            Self::Dropped => "the table was dropped, which is not in the log",
            Self::Moved => "the table left its schema or the rules, or returned, or a table or schema was renamed",
            Self::Rule => "its rules are new or changed, and no stream has the rows that they show",
        }
    }
}

/// A table as the catalogs have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) root: String,
    pub(super) parent: u32,
    pub(super) filenode: u32,
    pub(super) identity: String,
    pub(super) is_published: bool,
    pub(super) columns: Vec<String>,
}

/// A table whose state differs from the recorded one.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) relation: u32,
    pub(super) present: Option<Table>,
    /// Whether it has the required replica identity.
    pub(super) is_identified: bool,
    pub(super) known: Option<Table>,
    /// Whether it was in the schema when it was recorded.
    was_present: bool,
    pub(super) has_schema: bool,
    still_exists: bool,
    /// Whether it has rows, or had some.
    pub(super) has_pages: bool,
}

impl Difference {
    pub(super) fn read(row: &Row) -> Result<Self> {
        let table = |[name, root, parent, filenode, identity, published, columns]: [&str; 7]| {
            let Some(name) = row.try_get::<_, Option<String>>(name)? else {
                return Ok::<_, tokio_postgres::Error>(None);
            };
            Ok(Some(Table {
                name,
                root: row.try_get(root)?,
                parent: row.try_get(parent)?,
                filenode: row.try_get(filenode)?,
                identity: row.try_get(identity)?,
                is_published: row.try_get(published)?,
                columns: row.try_get(columns)?,
            }))
        };
        Ok(Self {
            relation: row.try_get("relation")?,
            present: table([
                "name",
                "root",
                "parent",
                "filenode",
                "identity",
                "is_published",
                "columns",
            ])?,
            is_identified: row.try_get::<_, Option<bool>>("is_identified")?.unwrap_or(false),
            known: table([
                "known_name",
                "known_root",
                "known_parent",
                "known_filenode",
                "known_identity",
                "known_published",
                "known_columns",
            ])?,
            was_present: row.try_get::<_, Option<bool>>("was_present")?.unwrap_or(false),
            has_schema: row.try_get("has_schema")?,
            still_exists: row.try_get("still_exists")?,
            has_pages: row.try_get("has_pages")?,
        })
    }

    /// What happened, when readers may hold other rows than Postgres; `None` when the log has all of it.
    pub(super) fn kind(&self) -> Option<Kind> {
        let (present, known) = match (&self.present, &self.known) {
            (None, _) if self.still_exists => return Some(Kind::Moved),
            (None, _) => return Some(Kind::Dropped),
            (Some(present), None) => return self.kind_of_new(present),
            (Some(present), Some(known)) => (present, known),
        };
        if !self.was_present {
            return Some(Kind::Moved);
        }
        if present.parent != known.parent {
            return Some(Kind::Partition);
        }
        if (&present.name, &present.root) != (&known.name, &known.root) {
            return Some(Kind::Renamed);
        }
        if present.identity != known.identity && !self.is_identified {
            return Some(Kind::Identity);
        }
        if present.is_published != known.is_published {
            return Some(Kind::Publication);
        }
        // The log has a TRUNCATE of a table that is no partition.
        let is_truncated = present.parent == 0 && !self.has_pages;
        if present.filenode != known.filenode && !is_truncated {
            return Some(Kind::Rewrite);
        }
        (!only_adds_nulls(&known.columns, &present.columns)).then_some(Kind::Columns)
    }

    /// The same for a table that was not recorded, also when none of its tenant is: it may have changed since it was created, or
    /// since Postgres was restored. One that never had a row needs no resync.
    fn kind_of_new(&self, present: &Table) -> Option<Kind> {
        if !self.has_pages {
            return None;
        }
        if !self.is_identified {
            return Some(Kind::Identity);
        }
        if !present.is_published {
            return Some(Kind::Publication);
        }
        if present.parent != 0 {
            return Some(Kind::Partition);
        }
        // The first file of a table has the table's OID as its name.
        (present.filenode != self.relation).then_some(Kind::Rewrite)
    }

    /// Whether it is there, and published with the identity that it needs.
    pub(super) fn is_covered(&self) -> bool {
        self.is_identified && self.present.as_ref().is_some_and(|table| table.is_published)
    }

    /// The names under which its rows are or were published.
    pub(super) fn roots(&self) -> impl Iterator<Item = &str> {
        self.present.iter().chain(&self.known).map(|table| &*table.root)
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.present
            .as_ref()
            .or(self.known.as_ref())
            .map_or("", |table| &*table.name)
    }
}

/// Whether the only change is that columns were added which are NULL in all rows.
fn only_adds_nulls(known: &[String], present: &[String]) -> bool {
    let has_no_value = |column: &&String| column.split(' ').nth(2) == Some("-");
    known.iter().all(|column| present.contains(column))
        && present
            .iter()
            .filter(|column| !known.contains(column))
            .all(|column| has_no_value(&column))
}

/// Begins a transaction that excludes other work on schemas, and fails when a lock is not free soon.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK_TIMEOUT).await?;
    migrations::lock_for_transaction(&transaction).await?;
    Ok(transaction)
}

/// What happened to these tables, as the quarantine has it.
pub(super) fn cause(kind: Kind, names: &BTreeSet<&str>) -> String {
    let names: Vec<&str> = names.iter().copied().collect();
    let mut cause = format!("{}: {}", names.join(", "), kind.cause());
    if cause.len() > CAUSE_LENGTH_MAX {
        let count = names.len();
        cause = format!(
            "{} and others, {count} tables: {}",
            names.first().unwrap_or(&""),
            kind.cause()
        );
    }
    cause
}

/// Whether a lock was not free in time.
pub(super) fn is_locked(error: &anyhow::Error) -> bool {
    let errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    errors.filter_map(tokio_postgres::Error::code).any(|code| {
        [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::QUERY_CANCELED,
        ]
        .contains(code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn columns_that_are_null_everywhere_are_no_change() {
        let known = strings(&["1 23 - id", "2 25 - body"]);
        let with = |column: &str| [known.clone(), strings(&[column])].concat();
        assert!(only_adds_nulls(&known, &with("3 25 - tag")));
        assert!(!only_adds_nulls(&known, &with("3 25 d41d8cd9 tag")));
        assert!(!only_adds_nulls(&known, &known[..1]));
        assert!(!only_adds_nulls(&known, &strings(&["1 23 - id", "2 1043 - body"])));
    }
}
