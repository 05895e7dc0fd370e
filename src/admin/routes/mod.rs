//! What each rule and group matches in the database, and what prevents it from being delivered or written; and who sees a row,
//! by which rule and why.

mod explain;
mod findings;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use postgres_types::Type;
use serde::Serialize;
use tokio_postgres::Row;

pub use self::explain::{Audience, Explanation, RuleExplanation, SeenBy, explain};
use crate::admin::level::Level;
use crate::config::Config;
use crate::config::group::Group;
use crate::config::placement::Placement;
use crate::config::rule::{Recipient, Rule, TENANT};
use crate::core::tenant::quote_identifier;
use crate::postgres::{Database, Statement, sql, tenants};

/// Values of a column that name no tenant of which a report has the names.
const VALUES_MAX: i64 = 20;

/// Values of a column that are counted.
const DISTINCT_MAX: i64 = 10_000;

/// A problem, or something to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub text: String,
    /// Statements that fix it, in order.
    pub fix: Vec<String>,
    /// Whether another role than the engine's must run them.
    pub by_owner: bool,
}

/// A column, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnReport {
    pub name: String,
    /// As Postgres prints it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Whether devices receive it.
    pub delivered: bool,
}

/// A table of rules and groups.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    /// The tenant whose schema has it; `None` for a table outside of the tenants' schemas.
    pub tenant: Option<String>,
    pub schema: String,
    pub table: String,
    /// Keys of the configuration that name it: `routes[0]`, `groups.list`.
    pub named_by: Vec<String>,
    /// Whose rows it has: `tenant acme`, or `by column org_id`.
    pub rows_of: String,
    /// Who receives its rows: `assignee_id`, `list:list_id`, `tenant`.
    pub to: Vec<String>,
    pub columns: Vec<ColumnReport>,
    /// Null if the table does not exist.
    pub replica_identity: Option<String>,
    pub published: bool,
    pub findings: Vec<Finding>,
}

impl TableReport {
    /// The worst level of its findings.
    pub fn level(&self) -> Level {
        self.findings
            .iter()
            .map(|finding| finding.level)
            .max()
            .unwrap_or(Level::Ok)
    }
}

/// What the rules and groups match.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub ok: bool,
    pub failed: usize,
    pub warned: usize,
    pub tables: Vec<TableReport>,
}

/// What the configuration says of one table.
struct Named<'c> {
    placement: Placement<'c>,
    keys: Vec<String>,
    rules: Vec<&'c Rule>,
    group: Option<(&'c str, &'c Group)>,
}

impl<'c> Named<'c> {
    fn all(config: &'c Config) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut of = |placement: Placement<'c>, key: String, rule: Option<&'c Rule>, group| {
            let at = all.iter().position(|named| named.placement.table == placement.table);
            let at = at.unwrap_or_else(|| {
                all.push(Self {
                    placement,
                    keys: Vec::new(),
                    rules: Vec::new(),
                    group: None,
                });
                all.len() - 1
            });
            let named = &mut all[at];
            named.keys.push(key);
            named.rules.extend(rule);
            named.group = named.group.or(group);
        };
        for (index, rule) in config.routes.iter().enumerate() {
            of(rule.placement(), format!("routes[{index}]"), Some(rule), None);
        }
        for (name, group) in &config.groups {
            of(
                group.placement(),
                format!("groups.{name}"),
                None,
                Some((name.as_str(), group)),
            );
        }
        all
    }

    fn upload(&self) -> Option<&'c crate::config::rule::Upload> {
        self.rules.iter().find_map(|rule| rule.upload.as_ref())
    }

    fn to(&self) -> Vec<String> {
        let recipients = self.rules.iter().flat_map(|rule| &rule.to);
        let mut to: Vec<String> = recipients
            .map(|to| match to.group() {
                Some((group, column)) => format!("{group}:{column}"),
                None => to.column().to_owned(),
            })
            .collect();
        let mut seen = BTreeSet::new();
        to.retain(|to| seen.insert(to.clone()));
        to
    }

    fn rows_of(&self, tenant: Option<&str>) -> String {
        match (self.placement.outside, self.placement.tenant_column()) {
            (None, _) => format!("tenant {}", tenant.unwrap_or_default()),
            (Some(_), Some(column)) => format!("by column {column}"),
            (Some((_, of)), None) => format!("tenant {}", of.constant),
        }
    }

    /// The columns that rules and groups name, with the key that does.
    fn needed(&self) -> Vec<(String, &'c str)> {
        let mut needed = Vec::new();
        let tenant = self.placement.tenant_column();
        needed.extend(tenant.map(|column| ("tenant".to_owned(), column)));
        for rule in &self.rules {
            let users = rule.to.iter().filter(|_| !rule.is_for_tenant());
            needed.extend(users.map(|to| ("to".to_owned(), to.column())));
            needed.extend(
                rule.columns
                    .iter()
                    .map(|column| ("columns".to_owned(), column.as_str())),
            );
            needed.extend(
                rule.when
                    .changed
                    .iter()
                    .map(|column| ("when.changed".to_owned(), column.as_str())),
            );
            needed.extend(
                rule.when
                    .equals
                    .keys()
                    .map(|column| ("when.equals".to_owned(), column.as_str())),
            );
            if let Some(upload) = &rule.upload {
                let by = upload.by.values().chain(&upload.owner).chain(&upload.columns);
                needed.extend(by.map(|column| ("upload".to_owned(), column.as_str())));
            }
        }
        if let Some((name, group)) = self.group {
            needed.extend([&group.id, &group.user].map(|column| (format!("group {name}"), column.as_str())));
        }
        needed
    }
}

/// What Postgres has of a table that is named.
struct Found {
    tenant: Option<String>,
    schema: Option<String>,
    /// `None` if there is no such table.
    name: Option<String>,
    kind: Option<String>,
    is_partition: bool,
    is_permanent: bool,
    identity: String,
    has_virtual: bool,
    is_published: bool,
    is_ours: bool,
    owner: Option<String>,
    role: String,
    may_use: bool,
    privileges: Vec<String>,
    is_filtered: bool,
    columns: Vec<String>,
    types: Vec<String>,
    /// `always`, `sequence`, or empty.
    id_source: String,
    /// Columns of unique indexes, sorted and joined with commas.
    uniques: Vec<String>,
    leading: Vec<String>,
}

impl Found {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            tenant: row.try_get("tenant")?,
            schema: row.try_get("schema")?,
            name: row.try_get("name")?,
            kind: row.try_get("kind")?,
            is_partition: row.try_get("is_partition")?,
            is_permanent: row.try_get("is_permanent")?,
            identity: row.try_get("identity")?,
            has_virtual: row.try_get("has_virtual")?,
            is_published: row.try_get("is_published")?,
            is_ours: row.try_get("is_ours")?,
            owner: row.try_get("owner")?,
            role: row.try_get("role")?,
            may_use: row.try_get("may_use")?,
            privileges: row.try_get("privileges")?,
            is_filtered: row.try_get("is_filtered")?,
            columns: row.try_get("columns")?,
            types: row.try_get("types")?,
            id_source: row.try_get("id_source")?,
            uniques: row.try_get("uniques")?,
            leading: row.try_get("leading")?,
        })
    }

    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|found| found == column)
    }

    fn is_unique(&self, columns: &[&str]) -> bool {
        let mut sorted = columns.to_vec();
        sorted.sort_unstable();
        self.uniques.contains(&sorted.join(","))
    }

    /// Qualified and quoted.
    fn quoted(&self) -> String {
        let part = |name: &Option<String>| quote_identifier(name.as_deref().unwrap_or_default());
        format!("{}.{}", part(&self.schema), part(&self.name))
    }
}

/// Checks what the rules and groups match, for all tenants or one. `is_deep` also reads the columns that name tenants, which
/// takes as long as reading the tables.
///
/// # Errors
/// When Postgres fails.
pub async fn check(database: &Database, config: &Config, tenant: Option<&str>, is_deep: bool) -> Result<Report> {
    let named = Named::all(config);
    let schemas: Vec<&str> = named
        .iter()
        .map(|named| named.placement.outside.map_or("", |(schema, _)| schema))
        .collect();
    let names: Vec<&str> = named.iter().map(|named| named.placement.table).collect();
    let publication = &config.replication.publication;
    let rows = database
        .query(
            &sql!("admin/routes_tables"),
            &[
                (publication, Type::TEXT),
                (&schemas, Type::TEXT_ARRAY),
                (&names, Type::TEXT_ARRAY),
                (&tenant, Type::TEXT),
            ],
        )
        .await
        .context(tenants::UNREADABLE)?;
    let mut tables = Vec::with_capacity(rows.len());
    for row in &rows {
        let number: i64 = row.try_get("number")?;
        let at = usize::try_from(number - 1)?;
        let (Some(named), found) = (named.get(at), Found::read(row)?) else {
            continue;
        };
        let mut findings = findings::of(named, &found, config);
        if is_deep && findings.iter().all(|finding| finding.level != Level::Fail) {
            findings.extend(strangers(database, named, &found).await?);
        }
        tables.push(report(named, found, findings));
    }
    let count = |level| tables.iter().filter(|table| table.level() == level).count();
    let (failed, warned) = (count(Level::Fail), count(Level::Warn));
    Ok(Report {
        ok: failed == 0,
        failed,
        warned,
        tables,
    })
}

fn report(named: &Named<'_>, found: Found, findings: Vec<Finding>) -> TableReport {
    let exists = found.name.is_some();
    let columns = found
        .columns
        .iter()
        .zip(&found.types)
        .map(|(name, type_name)| ColumnReport {
            name: name.clone(),
            type_name: type_name.clone(),
            delivered: named.rules.first().is_some_and(|rule| rule.delivers(name)),
        });
    TableReport {
        rows_of: named.rows_of(found.tenant.as_deref()),
        schema: found
            .schema
            .or_else(|| named.placement.outside.map(|(schema, _)| schema.to_owned()))
            .unwrap_or_else(|| format!("tenant_{}", found.tenant.as_deref().unwrap_or_default())),
        table: named.placement.table.to_owned(),
        named_by: named.keys.clone(),
        to: named.to(),
        columns: columns.collect(),
        replica_identity: exists.then_some(found.identity),
        published: found.is_published,
        tenant: found.tenant,
        findings,
    }
}

/// Rows whose column names no tenant that exists.
async fn strangers(database: &Database, named: &Named<'_>, found: &Found) -> Result<Option<Finding>> {
    let (Some((_, of)), Some(column)) = (named.placement.outside, named.placement.tenant_column()) else {
        return Ok(None);
    };
    let existing: BTreeSet<String> = tenants::list(database)
        .await?
        .into_iter()
        .map(|tenant| tenant.name)
        .collect();
    let statement = format!(
        "SELECT t.{column}::text AS value, count(*) AS rows FROM {} AS t GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $1",
        found.quoted(),
        column = quote_identifier(column),
    );
    let rows = database
        .query(&Statement::composed(statement), &[(&DISTINCT_MAX, Type::INT8)])
        .await
        .context("cannot read the column that names tenants")?;
    let (mut count, mut shown, mut more) = (0, Vec::new(), 0);
    for row in &rows {
        let (value, rows): (Option<String>, i64) = (row.try_get("value")?, row.try_get("rows")?);
        let tenant = value.as_deref().and_then(|value| of.tenant_of(value));
        if tenant.is_some_and(|tenant| existing.contains(&*tenant)) {
            continue;
        }
        count += rows;
        if shown.len() < usize::try_from(VALUES_MAX)? {
            shown.push(value.map_or("NULL".to_owned(), |value| format!("{value:?}")));
        } else {
            more += 1;
        }
    }
    if shown.is_empty() {
        return Ok(None);
    }
    let others = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Ok(Some(Finding {
        level: Level::Warn,
        text: format!(
            "{count} rows are not delivered: their {column} names no tenant that exists: {}{others}. `posduif tenant create` \
             creates one",
            shown.join(", ")
        ),
        fix: Vec::new(),
        by_owner: false,
    }))
}

/// The recipients of a rule that are users.
fn user_columns(rule: &Rule) -> impl Iterator<Item = &str> {
    let columns = rule.to.iter().filter(|to| to.group().is_none()).map(Recipient::column);
    columns.filter(|column| *column != TENANT)
}
