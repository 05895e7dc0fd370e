//! Whose rows a table has: all are one tenant's, or a column names the tenant of each.

use std::borrow::Cow;
use std::sync::Arc;

use super::row::{ColumnValue, Row};
use crate::config::placement::TenantOf;
use crate::decode::relation::Relation;

/// The tenants of a table's rows.
#[derive(Debug, Clone)]
pub enum Tenancy {
    /// All rows are this tenant's.
    Whole(Arc<str>),
    /// A column names the tenant of each row.
    ByColumn(ByColumn),
}

/// The column that names the tenant of a row.
#[derive(Debug, Clone)]
pub struct ByColumn {
    of: TenantOf,
    /// `None` if the table does not have it.
    index: Option<usize>,
}

/// The tenant of a row before or after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowTenant<'a> {
    /// There is no row.
    NoRow,
    /// A tenant of this name, whether or not it exists.
    Named(Cow<'a, str>),
    /// The column is NULL, or no tenant can have its value.
    Nameless,
    /// The log does not have the value.
    Unknown,
}

impl Tenancy {
    /// The tenant of all rows; `None` if a column names it.
    pub fn whole(&self) -> Option<&Arc<str>> {
        match self {
            Self::Whole(tenant) => Some(tenant),
            Self::ByColumn(_) => None,
        }
    }

    /// Whether some row may be the tenant's.
    pub fn may_be(&self, tenant: &str) -> bool {
        match self {
            Self::Whole(whole) => **whole == *tenant,
            Self::ByColumn(column) => column.of.may_be(tenant),
        }
    }

    pub(super) fn outside(of: &TenantOf, relation: &Relation) -> Self {
        if of.column.is_empty() {
            return Self::Whole(of.constant.as_str().into());
        }
        Self::ByColumn(ByColumn {
            of: of.clone(),
            index: relation.column(&of.column),
        })
    }
}

impl ByColumn {
    /// The name of the column, if the table does not have it.
    pub fn missing(&self) -> Option<&str> {
        self.index.is_none().then_some(self.of.column.as_str())
    }

    /// The tenants of a row before and after its change.
    pub fn of<'a>(&'a self, relation: &Relation, row: &Row<'a>) -> (RowTenant<'a>, RowTenant<'a>) {
        let Some(index) = self.index else {
            return (RowTenant::Unknown, RowTenant::Unknown);
        };
        let after = match row.has_after() {
            true => self.named(row.after(index)),
            false => RowTenant::NoRow,
        };
        let before = match row.has_before() {
            // Postgres omits the old row when no column of the replica identity has changed.
            true if row.old_row().is_none() && relation.columns.get(index).is_some_and(|column| column.is_key) => {
                after.clone()
            }
            true => self.named(row.before(index)),
            false => RowTenant::NoRow,
        };
        (before, after)
    }

    fn named<'a>(&'a self, value: ColumnValue<'a>) -> RowTenant<'a> {
        match value {
            ColumnValue::Null => RowTenant::Nameless,
            ColumnValue::Unknown => RowTenant::Unknown,
            ColumnValue::Text(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| self.of.tenant_of(text))
                .map_or(RowTenant::Nameless, RowTenant::Named),
        }
    }
}
