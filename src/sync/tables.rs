//! Rows of the operator's own tables, read from Postgres in the form of the stream.
//!
//! The rule that routes a table's changes also determines which rows a user sees. Values are printed by Postgres' output
//! functions and converted to JSON by the same code as those of the log.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use postgres_types::Type;
use serde::Serialize;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::config::Config;
use crate::config::group::{Group, Groups};
use crate::config::rule::{Recipient, Rule};
use crate::contract::entry::Text;
use crate::contract::group::GroupId;
use crate::contract::members::GROUPS_MAX;
use crate::contract::stream_name::Audience;
use crate::core::page::{Page, Rows, Start};
use crate::core::tenant::{Tenant, quote_identifier};
use crate::decode::relation::Types;
use crate::decode::value::{self, Kind};
use crate::feature;
use crate::postgres::{Database, Statement, sql};

/// Parameters of a statement.
type Parameters<'p> = Vec<(&'p (dyn ToSql + Sync), Type)>;

/// OIDs below are of types that Postgres brings.
const FIRST_USER_OID: u32 = 16_384;

/// OID of the type `uuid`.
const UUID_OID: u32 = 2950;

/// Who sees which rows: the rules, and the groups that they name.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    pub rules: &'a [Rule],
    pub groups: &'a Groups,
}

#[derive(Debug)]
struct Table {
    /// Qualified and quoted.
    name: String,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    name: String,
    type_oid: u32,
    type_name: String,
    kind: Kind,
}

#[derive(Debug)]
pub struct Row {
    /// The column `id`, as text.
    pub id: String,
    /// The whole row as JSON.
    pub json: Text,
    /// The audiences that see it as a JSON array, where a rule sends rows of the table to groups.
    pub via: Option<Text>,
}

/// The table with the memberships of a group.
struct MemberTable {
    /// Qualified and quoted.
    name: String,
    id: Column,
    user: Column,
    has_gone: bool,
}

impl MemberTable {
    /// The condition under which the row `m` says that the user of parameter 1 is a member.
    fn is_of_user(&self) -> String {
        let user = quote_identifier(&self.user.name);
        let is_user = match self.user.type_oid {
            UUID_OID => format!("m.{user} = $1::uuid"),
            _ => format!("m.{user}::text = $1"),
        };
        let gone = Rule::gone_column("");
        let is_there = if self.has_gone {
            format!(" AND m.{gone} IS NULL")
        } else {
            String::new()
        };
        format!("{is_user}{is_there}")
    }

    /// The condition under which the user of parameter 1 is a member of the group in a column of `t`.
    fn includes(&self, column: &Column) -> String {
        let (own, of_group) = (quote_identifier(&column.name), quote_identifier(&self.id.name));
        // A plain comparison can use an index.
        let cast = if column.type_oid == self.id.type_oid {
            ""
        } else {
            "::text"
        };
        let (name, is_of_user) = (&self.name, self.is_of_user());
        format!("t.{own}{cast} IN (SELECT m.{of_group}{cast} FROM {name} AS m WHERE {is_of_user})")
    }
}

/// Groups by name, as far as the tenant has their tables.
type MemberTables = HashMap<String, MemberTable>;

async fn member_tables<'r>(
    database: &Database,
    tenant: &Tenant,
    rules: impl Iterator<Item = &'r Rule>,
    groups: &Groups,
) -> Result<MemberTables, feature::Error> {
    let mut tables = MemberTables::new();
    for (name, _) in rules.flat_map(|rule| &rule.to).filter_map(Recipient::group) {
        if let (Some(group), false) = (groups.get(name), tables.contains_key(name)) {
            let table = member_table(database, tenant, group).await?;
            tables.extend(table.map(|table| (name.clone(), table)));
        }
    }
    Ok(tables)
}

async fn member_table(
    database: &Database,
    tenant: &Tenant,
    group: &Group,
) -> Result<Option<MemberTable>, feature::Error> {
    let Table { name, mut columns } = read_columns(database, tenant, &group.table).await?;
    let has_gone = columns
        .iter()
        .any(|column| column.name == Rule::gone_column(&group.table));
    let mut take = |name: &str| {
        let at = columns.iter().position(|column| column.name == name)?;
        Some(columns.swap_remove(at))
    };
    Ok(take(&group.id).zip(take(&group.user)).map(|(id, user)| MemberTable {
        name,
        id,
        user,
        has_gone,
    }))
}

/// The groups of which a user is a member, at most one more than allowed.
pub async fn groups_of(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    groups: &Groups,
) -> Result<Vec<GroupId>, feature::Error> {
    let (mut found, user) = (Vec::new(), user.to_string());
    let limit = i64::try_from(GROUPS_MAX + 1).unwrap_or(i64::MAX);
    for (name, group) in groups {
        let Some(table) = member_table(database, tenant, group).await? else {
            continue;
        };
        let statement = format!(
            "SELECT DISTINCT m.{}::text FROM {} AS m WHERE $1::text IS NOT NULL AND {} LIMIT $2",
            quote_identifier(&table.id.name),
            table.name,
            table.is_of_user(),
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&user, Type::TEXT), (&limit, Type::INT8)];
        let rows = database.query(&Statement::composed(statement), &parameters).await?;
        let name = name.as_str().into();
        for row in &rows {
            // An id that no group can have is in quarantine.
            let id: Option<&str> = row.try_get(0)?;
            found.extend(id.and_then(|id| GroupId::new(&name, id.as_bytes()).ok()));
        }
    }
    found.truncate(GROUPS_MAX + 1);
    Ok(found)
}

/// The form of a table, from which an app can create its own.
#[derive(Debug, PartialEq, Serialize)]
pub struct TableForm {
    /// The name under `changes`.
    pub name: String,
    /// In Postgres' order.
    pub columns: Vec<ColumnForm>,
    /// Columns that devices may write.
    pub writable: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ColumnForm {
    pub name: String,
    /// Postgres' name of its type: `uuid`, `int8`, `_text` for an array of texts.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// The tables of these rules that exist in the tenant, each once.
pub async fn forms(database: &Database, tenant: &Tenant, rules: &[Rule]) -> Result<Vec<TableForm>, feature::Error> {
    let mut forms: Vec<TableForm> = Vec::new();
    for rule in rules {
        let writable = rule.upload.iter().flat_map(|upload| upload.columns.iter().cloned());
        if let Some(known) = forms.iter_mut().find(|form| form.name == rule.table) {
            known.writable.extend(writable);
        } else if let Some(table) = describe(database, tenant, &rule.table).await? {
            let columns = table.columns.into_iter().map(|column| ColumnForm {
                name: column.name,
                type_name: column.type_name,
            });
            forms.push(TableForm {
                name: rule.table.clone(),
                columns: columns.collect(),
                writable: writable.collect(),
            });
        }
    }
    Ok(forms)
}

/// A page of the rows that a user sees by a rule, in the order of their ids as text. A table that does not exist in the
/// tenant, or lacks `id` or a column of the rule, has none.
pub async fn visible(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    selection: Selection<'_>,
    after: &str,
    limit: i64,
) -> Result<Vec<Row>, feature::Error> {
    let Selection { rule, group } = selection;
    let Some(table) = describe(database, tenant, &rule.table).await? else {
        return Ok(Vec::new());
    };
    let members = member_tables(database, tenant, std::iter::once(rule), routing.groups).await?;
    let user = user.to_string();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&user, Type::TEXT), (&after, Type::TEXT), (&limit, Type::INT8)];
    let id = group.map(GroupId::id);
    let sees = match (group, &id) {
        (Some(group), Some(id)) => table.condition_of_group(rule, group, &members, id, &mut parameters),
        _ => table.condition(rule, &members, &mut parameters),
    };
    let Some(sees) = sees else {
        return Ok(Vec::new());
    };
    let statement = format!(
        "{} WHERE {sees} AND t.id::text COLLATE \"C\" > $2 ORDER BY t.id::text COLLATE \"C\" LIMIT $3",
        table.select(),
    );
    table
        .read(database, statement, &parameters, routing.of(&rule.table))
        .await
}

/// Rows that a user sees by a rule: all of them, or those of one group.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    pub rule: &'a Rule,
    pub group: Option<&'a GroupId>,
}

impl<'a> Routing<'a> {
    /// That of the configuration.
    pub fn configured(config: &'a Config) -> Self {
        Self {
            rules: &config.routes,
            groups: &config.groups,
        }
    }

    /// The rules of a table.
    fn of(self, table: &str) -> Vec<&'a Rule> {
        self.rules.iter().filter(|rule| rule.table == table).collect()
    }
}

/// A page of the rows that a user sees by the rules of a table, in the order of their ids as text. `None` if no rule names the
/// table, or the tenant does not have it.
pub async fn page(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    table: &str,
    page: &Page,
) -> Result<Option<Rows<Row>>, feature::Error> {
    let rules = routing.of(table);
    if rules.is_empty() {
        return Ok(None);
    }
    let Some(described) = describe(database, tenant, table).await? else {
        return Ok(None);
    };
    let members = member_tables(database, tenant, rules.iter().copied(), routing.groups).await?;
    let user = user.to_string();
    let (place, limit) = (page.place().map(|(_, id)| id), page.rows_max());
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&user, Type::TEXT), (&place, Type::TEXT), (&limit, Type::INT8)];
    let sees = rules
        .iter()
        .filter_map(|rule| described.condition(rule, &members, &mut parameters));
    let sees: Vec<String> = sees.collect();
    let mut found = Rows {
        rows: Vec::new(),
        total: None,
        has_more: false,
    };
    if !sees.is_empty() {
        let is_upwards = matches!(page.start, Start::Before(_));
        let (beyond, order) = if is_upwards { ("<", "DESC") } else { (">", "ASC") };
        let id = "t.id::text COLLATE \"C\"";
        let statement = format!(
            "{} WHERE ({}) AND ($2::text IS NULL OR {id} {beyond} $2) ORDER BY {id} {order} LIMIT $3",
            described.select(),
            sees.join(" OR ")
        );
        found.rows = described.read(database, statement, &parameters, rules).await?;
        found.has_more = found.rows.len() as u64 > page.limit.unsigned_abs();
        if found.has_more {
            found.rows.pop();
        }
        if is_upwards {
            found.rows.reverse();
        }
    }
    Ok(Some(found))
}

/// Those of the rows with these ids that a user sees by the rules of the table, among them the built-in ones.
pub async fn by_id(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    routing: Routing<'_>,
    table: &str,
    ids: &[String],
) -> Result<Vec<Row>, feature::Error> {
    let Some(described) = describe(database, tenant, table).await? else {
        return Ok(Vec::new());
    };
    let own = routing.of(table);
    let members = member_tables(database, tenant, own.iter().copied(), routing.groups).await?;
    let user = user.to_string();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&user, Type::TEXT), (&ids, Type::TEXT_ARRAY)];
    let built_in = Rule::all_built_in();
    let rules = built_in
        .iter()
        .filter(|rule| rule.table == table)
        .chain(own.iter().copied());
    let sees = rules.filter_map(|rule| described.condition(rule, &members, &mut parameters));
    let sees: Vec<String> = sees.collect();
    if sees.is_empty() {
        return Ok(Vec::new());
    }
    let statement = format!(
        "{} WHERE t.id::text = ANY($2) AND ({})",
        described.select(),
        sees.join(" OR ")
    );
    described.read(database, statement, &parameters, own).await
}

/// The tables of the tenants into which devices upload by these rules, and in which ids are not unique: two users may have
/// rows of the same id.
pub async fn without_unique_id(database: &Database, rules: &[Rule]) -> Result<Vec<(String, String)>, feature::Error> {
    let uploads = rules.iter().filter(|rule| rule.upload.is_some());
    let names: Vec<&str> = uploads.map(|rule| rule.table.as_str()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows = database
        .query(&sql!("sync/tables_without_unique_id"), &[(&names, Type::TEXT_ARRAY)])
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("schema")?, row.try_get("table")?)))
        .collect()
}

/// A table in which a group and a member may stand twice.
#[derive(Debug, PartialEq)]
pub struct AmbiguousMembers {
    pub schema: String,
    pub table: String,
    /// The columns with the group and the member.
    pub columns: [String; 2],
}

/// The tables of the tenants with memberships in which a group and a member may stand twice: the end of one row would end the
/// membership, although the other row is there.
pub async fn ambiguous_members(database: &Database, groups: &Groups) -> Result<Vec<AmbiguousMembers>, feature::Error> {
    let column =
        |get: fn(&Group) -> &String| -> Vec<&str> { groups.values().map(|group| get(group).as_str()).collect() };
    let (tables, ids, users) = (
        column(|group| &group.table),
        column(|group| &group.id),
        column(|group| &group.user),
    );
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let rows = database
        .query(
            &sql!("sync/tables_without_unique_members"),
            &[
                (&tables, Type::TEXT_ARRAY),
                (&ids, Type::TEXT_ARRAY),
                (&users, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let found = rows.iter().map(|row| {
        Ok(AmbiguousMembers {
            schema: row.try_get("schema")?,
            table: row.try_get("table")?,
            columns: [row.try_get("id_column")?, row.try_get("user_column")?],
        })
    });
    found.collect()
}

/// A table that can be read by the ids of its rows.
async fn describe(database: &Database, tenant: &Tenant, table: &str) -> Result<Option<Table>, feature::Error> {
    let table = read_columns(database, tenant, table).await?;
    Ok(table.column("id").is_some().then_some(table))
}

async fn read_columns(database: &Database, tenant: &Tenant, table: &str) -> Result<Table, feature::Error> {
    let name = format!("{}.{}", quote_identifier(&tenant.schema), quote_identifier(table));
    let rows = database
        .query(&sql!("sync/table_columns"), &[(&name, Type::TEXT)])
        .await?;
    let mut types = Types::default();
    let mut columns = Vec::with_capacity(rows.len());
    for row in &rows {
        let type_oid: u32 = row.try_get("type_oid")?;
        // Built-in types are identified by their OID.
        if Kind::of_type(type_oid) == Kind::Text {
            types.insert(type_oid, row.try_get("namespace")?, row.try_get("type_name")?);
        }
        columns.push(Column {
            name: row.try_get("name")?,
            type_oid,
            type_name: row.try_get("type_name")?,
            kind: types.kind(type_oid),
        });
    }
    Ok(Table { name, columns })
}

/// Who sees a row with these values that is not deleted, as [`crate::route`] finds it for a change: a JSON array.
fn audiences<'v>(rules: &[&Rule], value: impl Fn(&str) -> Option<&'v str>) -> Text {
    let mut found: Vec<String> = Vec::new();
    let shows = |rule: &&&Rule| {
        let mut equals = rule.when.equals.iter();
        equals.all(|(column, text)| value(column) == Some(text.as_str()))
    };
    for rule in rules.iter().filter(shows) {
        if rule.is_for_tenant() {
            found.push(Audience::Tenant.to_string());
            continue;
        }
        for recipient in &rule.to {
            let Some(text) = value(recipient.column()) else {
                continue;
            };
            // Ids that are none are in quarantine.
            let audience = match recipient.group() {
                Some((group, _)) => GroupId::new(&group.as_str().into(), text.as_bytes())
                    .ok()
                    .map(Audience::Group),
                None => text.parse().ok().map(Audience::User),
            };
            found.extend(audience.map(|audience| audience.to_string()));
        }
    }
    let mut seen = HashSet::new();
    found.retain(|audience| seen.insert(audience.clone()));
    serde_json::Value::from(found).to_string().into()
}

/// An expression that prints a column by its type's output function; a cast to text differs for some types.
fn printed(column: &str) -> String {
    let column = quote_identifier(column);
    format!("CASE WHEN t.{column} IS NOT NULL THEN format('%s', t.{column}) END")
}

impl Table {
    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The condition under which the user of parameter 1 sees a row by a rule, whose values become further parameters. `None`
    /// if the table lacks a column of the rule, or the tenant the table of a group.
    fn condition<'p>(&self, rule: &'p Rule, members: &MemberTables, parameters: &mut Parameters<'p>) -> Option<String> {
        let mut conditions = vec!["$1::text IS NOT NULL".to_owned()];
        if !rule.is_for_tenant() {
            let mut recipients = Vec::new();
            for recipient in &rule.to {
                let column = self.column(recipient.column())?;
                let name = quote_identifier(&column.name);
                // A plain comparison of UUIDs can use an index.
                recipients.push(match (recipient.group(), column.type_oid) {
                    (Some((group, _)), _) => members.get(group)?.includes(column),
                    (None, UUID_OID) => format!("t.{name} = $1::uuid"),
                    (None, _) => format!("t.{name}::text = $1"),
                });
            }
            conditions.push(format!("({})", recipients.join(" OR ")));
        }
        conditions.extend(self.conditions_of_rows(rule, parameters)?);
        Some(format!("({})", conditions.join(" AND ")))
    }

    /// The same for the rows of one group, of which the user must be a member.
    fn condition_of_group<'p>(
        &self,
        rule: &'p Rule,
        group: &GroupId,
        members: &MemberTables,
        id: &'p (dyn ToSql + Sync),
        parameters: &mut Parameters<'p>,
    ) -> Option<String> {
        parameters.push((id, Type::TEXT));
        let (id, table) = (parameters.len(), members.get(group.name())?);
        let mut recipients = Vec::new();
        let of_group = rule.to.iter().filter_map(Recipient::group);
        for (_, column) in of_group.filter(|(name, _)| *name == group.name()) {
            let column = self.column(column)?;
            let name = quote_identifier(&column.name);
            recipients.push(match column.type_oid {
                // The id was printed from a value of this type, so it is one, and an index serves.
                oid if oid == table.id.type_oid && oid < FIRST_USER_OID => {
                    format!("t.{name} = ${id}::text::{}", quote_identifier(&column.type_name))
                }
                _ => format!("t.{name}::text = ${id}"),
            });
        }
        if recipients.is_empty() {
            return None;
        }
        let (name, of_group) = (&table.name, quote_identifier(&table.id.name));
        let mut conditions = vec![
            format!("({})", recipients.join(" OR ")),
            format!(
                "EXISTS (SELECT FROM {name} AS m WHERE m.{of_group}::text = ${id} AND {})",
                table.is_of_user()
            ),
        ];
        conditions.extend(self.conditions_of_rows(rule, parameters)?);
        Some(format!("({})", conditions.join(" AND ")))
    }

    /// What a rule demands of a row for all readers.
    fn conditions_of_rows<'p>(&self, rule: &'p Rule, parameters: &mut Parameters<'p>) -> Option<Vec<String>> {
        let mut conditions = Vec::new();
        for (column, text) in &rule.when.equals {
            let column = self.column(column)?;
            parameters.push((text, Type::TEXT));
            conditions.push(format!("{} = ${}", printed(&column.name), parameters.len()));
        }
        let gone = Rule::gone_column(&rule.table);
        if self.column(gone).is_some() {
            conditions.push(format!("t.{gone} IS NULL"));
        }
        Some(conditions)
    }

    fn select(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| printed(&column.name)).collect();
        format!("SELECT t.id::text, {} FROM {} AS t", columns.join(", "), self.name)
    }

    async fn read(
        &self,
        database: &Database,
        statement: String,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        rules: Vec<&Rule>,
    ) -> Result<Vec<Row>, feature::Error> {
        let names_audiences = rules.iter().flat_map(|rule| &rule.to).any(|to| to.group().is_some());
        let rows = database.query(&Statement::composed(statement), parameters).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut json = vec![b'{'];
            for (index, column) in self.columns.iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                value::write_string(&column.name, &mut json);
                json.push(b':');
                match row.try_get::<_, Option<&str>>(index + 1)? {
                    Some(text) => value::write_text(column.kind, text, &mut json),
                    None => json.extend_from_slice(b"null"),
                }
            }
            json.push(b'}');
            let value = |name: &str| {
                let index = self.columns.iter().position(|column| column.name == name)?;
                row.try_get::<_, Option<&str>>(index + 1).ok().flatten()
            };
            found.push(Row {
                id: row.try_get(0)?,
                json: Bytes::from(json).into(),
                via: names_audiences.then(|| audiences(&rules, value)),
            });
        }
        Ok(found)
    }
}
