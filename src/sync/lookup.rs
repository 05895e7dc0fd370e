//! Rows and members for operators, whatever users see.

use postgres_types::Type;
use uuid::Uuid;

use super::described::{Parameters, Table};
use super::members::MemberTable;
use super::tables::{Routing, printed};
use crate::config::placement::Placement;
use crate::core::tenant::Tenant;
use crate::feature;
use crate::postgres::{Database, Statement};

/// The values of a row, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowValues(Vec<(String, Option<String>)>);

impl RowValues {
    /// The value of a column, if it has one.
    pub fn value(&self, column: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == column)?.1.as_deref()
    }
}

/// What a table has of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The table has no rows of the tenant.
    NotOfTenant,
    NoTable,
    NoRow,
    /// A row of another tenant, with the value that names it.
    OtherTenant(Option<String>),
    Row(RowValues),
}

/// The row with this id, for a tenant.
///
/// # Errors
/// When Postgres fails.
pub async fn row(
    database: &Database,
    tenant: &Tenant,
    placement: Placement<'_>,
    id: &str,
) -> Result<Lookup, feature::Error> {
    let Some(table) = Table::read(database, tenant, placement).await? else {
        return Ok(Lookup::NotOfTenant);
    };
    let mut parameters = Parameters::default();
    let (Some(is_of_tenant), Some(id_column)) = (table.is_of_tenant("t", &mut parameters), table.column("id")) else {
        return Ok(Lookup::NoTable);
    };
    let has_id = id_column.equals("t", id, &mut parameters);
    let columns: Vec<String> = table.columns.iter().map(|column| printed(&column.name)).collect();
    let statement = format!(
        "SELECT coalesce({is_of_tenant}, false), {} FROM {} AS t WHERE {has_id} ORDER BY 1 DESC LIMIT 1",
        columns.join(", "),
        table.name
    );
    let rows = database
        .query(
            &Statement::composed(statement).for_tenant(tenant),
            &parameters.as_params(),
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Lookup::NoRow);
    };
    let mut values = Vec::with_capacity(table.columns.len());
    for (index, column) in table.columns.iter().enumerate() {
        values.push((column.name.clone(), row.try_get(index + 1)?));
    }
    let values = RowValues(values);
    if !row.try_get::<_, bool>(0)? {
        let column = placement.tenant_column().unwrap_or_default();
        return Ok(Lookup::OtherTenant(values.value(column).map(str::to_owned)));
    }
    Ok(Lookup::Row(values))
}

/// The members of a group of a tenant, at most `limit`. A value that names no user is left out.
///
/// # Errors
/// When Postgres fails.
pub async fn members_of(
    database: &Database,
    tenant: &Tenant,
    routing: Routing<'_>,
    group: &str,
    id: &str,
    limit: usize,
) -> Result<Vec<Uuid>, feature::Error> {
    let Some(settings) = routing.groups.get(group) else {
        return Ok(Vec::new());
    };
    let Some(table) = MemberTable::read(database, tenant, settings, routing).await? else {
        return Ok(Vec::new());
    };
    let mut parameters = Parameters::default();
    let limit = parameters.add(i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8);
    let Some(statement) = table.members(id, &limit, &mut parameters) else {
        return Ok(Vec::new());
    };
    let rows = database
        .query(
            &Statement::composed(statement).for_tenant(tenant),
            &parameters.as_params(),
        )
        .await?;
    let mut members = Vec::with_capacity(rows.len());
    for row in &rows {
        let value: Option<&str> = row.try_get(0)?;
        members.extend(value.and_then(|value| table.names.user_id(&tenant.name, value.as_bytes())));
    }
    Ok(members)
}
