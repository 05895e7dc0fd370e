//! Rows of the operator's own tables, read from Postgres in the form of the stream.
//!
//! The rule that routes a table's changes also determines which rows a user sees. Values are printed by Postgres' output
//! functions and converted to JSON by the same code as those of the log.

use bytes::Bytes;
use postgres_types::Type;
use serde::Serialize;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::config::rule::{Rule, TENANT};
use crate::contract::entry::Text;
use crate::core::page::{Page, Rows, Start};
use crate::core::tenant::{Tenant, quote_identifier};
use crate::decode::relation::Types;
use crate::decode::value::{self, Kind};
use crate::feature;
use crate::postgres::{Database, Statement, sql};

/// OID of the type `uuid`.
const UUID_OID: u32 = 2950;

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
    rule: &Rule,
    after: &str,
    limit: i64,
) -> Result<Vec<Row>, feature::Error> {
    let Some(table) = describe(database, tenant, &rule.table).await? else {
        return Ok(Vec::new());
    };
    let user = user.to_string();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&user, Type::TEXT), (&after, Type::TEXT), (&limit, Type::INT8)];
    let Some(sees) = table.condition(rule, &mut parameters) else {
        return Ok(Vec::new());
    };
    let statement = format!(
        "{} WHERE {sees} AND t.id::text COLLATE \"C\" > $2 ORDER BY t.id::text COLLATE \"C\" LIMIT $3",
        table.select(),
    );
    table.read(database, statement, &parameters).await
}

/// A page of the rows that a user sees by the rules of a table, in the order of their ids as text. `None` if no rule names the
/// table, or the tenant does not have it.
pub async fn page(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    rules: &[Rule],
    table: &str,
    page: &Page,
) -> Result<Option<Rows<Row>>, feature::Error> {
    let rules: Vec<&Rule> = rules.iter().filter(|rule| rule.table == table).collect();
    if rules.is_empty() {
        return Ok(None);
    }
    let Some(described) = describe(database, tenant, table).await? else {
        return Ok(None);
    };
    let user = user.to_string();
    let (place, limit) = (page.place().map(|(_, id)| id), page.rows_max());
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&user, Type::TEXT), (&place, Type::TEXT), (&limit, Type::INT8)];
    let sees = rules
        .iter()
        .filter_map(|rule| described.condition(rule, &mut parameters));
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
        found.rows = described.read(database, statement, &parameters).await?;
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
    rules: &[Rule],
    table: &str,
    ids: &[String],
) -> Result<Vec<Row>, feature::Error> {
    let Some(described) = describe(database, tenant, table).await? else {
        return Ok(Vec::new());
    };
    let user = user.to_string();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&user, Type::TEXT), (&ids, Type::TEXT_ARRAY)];
    let built_in = Rule::all_built_in();
    let rules = built_in.iter().chain(rules).filter(|rule| rule.table == table);
    let sees = rules.filter_map(|rule| described.condition(rule, &mut parameters));
    let sees: Vec<String> = sees.collect();
    if sees.is_empty() {
        return Ok(Vec::new());
    }
    let statement = format!(
        "{} WHERE t.id::text = ANY($2) AND ({})",
        described.select(),
        sees.join(" OR ")
    );
    described.read(database, statement, &parameters).await
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

async fn describe(database: &Database, tenant: &Tenant, table: &str) -> Result<Option<Table>, feature::Error> {
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
    let table = Table { name, columns };
    Ok(table.column("id").is_some().then_some(table))
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
    /// if the table lacks a column of the rule.
    fn condition<'p>(&self, rule: &'p Rule, parameters: &mut Vec<(&'p (dyn ToSql + Sync), Type)>) -> Option<String> {
        let mut conditions = vec!["$1::text IS NOT NULL".to_owned()];
        if rule.to != [TENANT] {
            let mut recipients = Vec::new();
            for column in &rule.to {
                let column = self.column(column)?;
                let name = quote_identifier(&column.name);
                // A plain comparison of UUIDs can use an index.
                recipients.push(match column.type_oid {
                    UUID_OID => format!("t.{name} = $1::uuid"),
                    _ => format!("t.{name}::text = $1"),
                });
            }
            conditions.push(format!("({})", recipients.join(" OR ")));
        }
        for (column, text) in &rule.when.equals {
            let column = self.column(column)?;
            parameters.push((text, Type::TEXT));
            conditions.push(format!("{} = ${}", printed(&column.name), parameters.len()));
        }
        let gone = Rule::gone_column(&rule.table);
        if self.column(gone).is_some() {
            conditions.push(format!("t.{gone} IS NULL"));
        }
        Some(format!("({})", conditions.join(" AND ")))
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
    ) -> Result<Vec<Row>, feature::Error> {
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
            found.push(Row {
                id: row.try_get(0)?,
                json: Bytes::from(json).into(),
            });
        }
        Ok(found)
    }
}
