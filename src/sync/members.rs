//! The tables with the memberships of groups.

use std::collections::HashMap;

use postgres_types::Type;
use uuid::Uuid;

use super::described::{Column, Parameters, Table};
use super::tables::{FIRST_USER_OID, Routing};
use crate::config::group::Group;
use crate::config::rule::{Recipient, Rule};
use crate::contract::group::GroupId;
use crate::core::subject::UserNames;
use crate::core::tenant::{Tenant, quote_identifier};
use crate::feature;
use crate::feature::viewer::Viewer;
use crate::postgres::{Database, Statement};

/// The table with the memberships of a group.
pub(super) struct MemberTable {
    table: Table,
    pub(super) id: Column,
    user: Column,
    pub(super) names: UserNames,
}

impl MemberTable {
    pub(super) async fn read(
        database: &Database,
        tenant: &Tenant,
        group: &Group,
        routing: Routing<'_>,
    ) -> Result<Option<Self>, feature::Error> {
        let Some(table) = Table::read(database, tenant, group.placement()).await? else {
            return Ok(None);
        };
        let column = |name: &str| table.column(name).cloned();
        let columns = column(&group.id).zip(column(&group.user));
        let names = routing.names(group.subjects.as_ref());
        Ok(columns.map(|(id, user)| Self { table, id, user, names }))
    }

    /// The condition under which the row `m` says that a user is a member.
    fn is_of(&self, viewer: &Viewer<'_>, parameters: &mut Parameters) -> Option<String> {
        let is_user = self.user.is_one_of("m", &viewer.values(&self.names), parameters);
        let is_valid = self.is_valid(parameters)?;
        Some(format!("{is_user} AND {is_valid}"))
    }

    /// The condition under which the row `m` is a membership of the tenant.
    fn is_valid(&self, parameters: &mut Parameters) -> Option<String> {
        let is_of_tenant = self.table.is_of_tenant("m", parameters)?;
        let gone = Rule::gone_column("");
        let is_there = match self.table.column(gone) {
            Some(_) => format!(" AND m.{gone} IS NULL"),
            None => String::new(),
        };
        Some(format!("{is_of_tenant}{is_there}"))
    }

    /// A statement that reads the members of a group.
    pub(super) fn members(&self, id: &str, limit: &str, parameters: &mut Parameters) -> Option<String> {
        let has_id = self.id.equals("m", id, parameters);
        let (is_valid, user) = (self.is_valid(parameters)?, quote_identifier(&self.user.name));
        let name = &self.table.name;
        Some(format!(
            "SELECT m.{user}::text FROM {name} AS m WHERE {has_id} AND {is_valid} ORDER BY 1 LIMIT {limit}"
        ))
    }

    /// A statement that reads a page of the members of a group. It compares in the column's own type where it can, so that an
    /// index serves.
    fn page(&self, id: &str, after: Option<&str>, limit: usize, parameters: &mut Parameters) -> Option<String> {
        let has_id = self.id.equals("m", id, parameters);
        let (is_valid, user) = (self.is_valid(parameters)?, quote_identifier(&self.user.name));
        let is_built_in = self.user.type_oid < FIRST_USER_OID;
        let (order, cast) = match is_built_in {
            true => (
                format!("m.{user}"),
                format!("::{}", quote_identifier(&self.user.type_name)),
            ),
            false => (format!("m.{user}::text"), String::new()),
        };
        let is_behind = match after {
            None => format!("m.{user} IS NOT NULL"),
            Some(after) => format!("{order} > {}::text{cast}", parameters.text(after)),
        };
        let (name, limit) = (
            &self.table.name,
            parameters.add(i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8),
        );
        Some(format!(
            "SELECT m.{user}::text FROM {name} AS m WHERE {has_id} AND {is_valid} AND {is_behind} ORDER BY {order} \
             LIMIT {limit}"
        ))
    }

    /// The condition under which a user is a member of the group in a column of `t`.
    pub(super) fn includes(&self, column: &Column, viewer: &Viewer<'_>, parameters: &mut Parameters) -> Option<String> {
        let (own, of_group) = (quote_identifier(&column.name), quote_identifier(&self.id.name));
        // A plain comparison can use an index.
        let cast = if column.type_oid == self.id.type_oid {
            ""
        } else {
            "::text"
        };
        let (name, is_of_user) = (&self.table.name, self.is_of(viewer, parameters)?);
        Some(format!(
            "t.{own}{cast} IN (SELECT m.{of_group}{cast} FROM {name} AS m WHERE {is_of_user})"
        ))
    }

    /// The condition under which a user is a member of the group whose id is this parameter.
    pub(super) fn has(&self, id: &str, viewer: &Viewer<'_>, parameters: &mut Parameters) -> Option<String> {
        let (name, of_group) = (&self.table.name, quote_identifier(&self.id.name));
        let is_of_user = self.is_of(viewer, parameters)?;
        Some(format!(
            "EXISTS (SELECT FROM {name} AS m WHERE m.{of_group}::text = {id} AND {is_of_user})"
        ))
    }
}

/// Groups by name, as far as the tenant has their tables.
pub(super) type MemberTables = HashMap<String, MemberTable>;

/// The tables of the groups to which these rules send rows.
pub(super) async fn member_tables<'r>(
    database: &Database,
    tenant: &Tenant,
    rules: impl Iterator<Item = &'r Rule>,
    routing: Routing<'_>,
) -> Result<MemberTables, feature::Error> {
    let mut tables = MemberTables::new();
    for (name, _) in rules.flat_map(|rule| &rule.to).filter_map(Recipient::group) {
        if let (Some(group), false) = (routing.groups.get(name), tables.contains_key(name)) {
            let table = MemberTable::read(database, tenant, group, routing).await?;
            tables.extend(table.map(|table| (name.clone(), table)));
        }
    }
    Ok(tables)
}

/// The groups of which a user is a member, at most so many.
pub(super) async fn groups_of(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    groups_max: usize,
) -> Result<Vec<GroupId>, feature::Error> {
    let mut found = Vec::new();
    let names = routing
        .groups
        .values()
        .map(|group| routing.names(group.subjects.as_ref()));
    let viewer = Viewer::of(database, tenant, user, names).await?;
    let limit = i64::try_from(groups_max).unwrap_or(i64::MAX);
    for (name, group) in routing.groups {
        let Some(table) = MemberTable::read(database, tenant, group, routing).await? else {
            continue;
        };
        let mut parameters = Parameters::default();
        let limit = parameters.add(limit, Type::INT8);
        let Some(is_of_user) = table.is_of(&viewer, &mut parameters) else {
            continue;
        };
        let statement = format!(
            "SELECT DISTINCT m.{}::text FROM {} AS m WHERE {is_of_user} LIMIT {limit}",
            quote_identifier(&table.id.name),
            table.table.name,
        );
        let rows = database
            .query(
                &Statement::composed(statement).for_tenant(tenant),
                &parameters.as_params(),
            )
            .await?;
        let name = name.as_str().into();
        for row in &rows {
            // An id that no group can have is in quarantine.
            let id: Option<&str> = row.try_get(0)?;
            found.extend(id.and_then(|id| GroupId::new(&name, id.as_bytes()).ok()));
        }
    }
    found.truncate(groups_max);
    Ok(found)
}

/// Members of a group.
#[derive(Debug, Default)]
pub struct MembersPage {
    pub users: Vec<Uuid>,
    /// The value behind which the next page begins; `None` behind the last page.
    pub after: Option<String>,
}

/// A page of the members of a group, in the order of the column that names them. A group that the configuration or the
/// tenant does not have has none.
///
/// # Errors
/// When Postgres fails.
pub async fn page(
    database: &Database,
    tenant: &Tenant,
    group: &GroupId,
    routing: Routing<'_>,
    after: Option<&str>,
    limit: usize,
) -> Result<MembersPage, feature::Error> {
    let Some(configured) = routing.groups.get(group.name()) else {
        return Ok(MembersPage::default());
    };
    let Some(table) = MemberTable::read(database, tenant, configured, routing).await? else {
        return Ok(MembersPage::default());
    };
    let mut parameters = Parameters::default();
    let Some(statement) = table.page(group.id(), after, limit, &mut parameters) else {
        return Ok(MembersPage::default());
    };
    let rows = database
        .query(
            &Statement::composed(statement).for_tenant(tenant),
            &parameters.as_params(),
        )
        .await?;
    let mut page = MembersPage::default();
    for row in &rows {
        let value: String = row.try_get(0)?;
        // A value that names no user is in quarantine.
        page.users.extend(table.names.user_id(&tenant.name, value.as_bytes()));
        page.after = Some(value);
    }
    if rows.len() < limit {
        page.after = None;
    }
    Ok(page)
}
