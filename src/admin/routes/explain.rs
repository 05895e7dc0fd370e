//! Who sees a row now, by which rule, and why; or why no user does.

use anyhow::{Context, Result};
use postgres_types::Type;
use serde::Serialize;
use uuid::Uuid;

use super::{Named, Report, check};
use crate::admin::level::Level;
use crate::config::Config;
use crate::config::rule::{Recipient, Rule, user_names};
use crate::core::subject::UserNames;
use crate::core::tenant::Tenant;
use crate::postgres::{Database, sql};
use crate::sync::lookup::{self, Lookup, RowValues};
use crate::sync::tables::Routing;

/// Members of a group that are listed.
const MEMBERS_MAX: usize = 100;

/// A user who is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeenBy {
    pub id: Uuid,
    /// `None` if the tenant has no such user.
    pub username: Option<String>,
    /// The user is disabled or deleted.
    pub is_inactive: bool,
}

/// An audience of the row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audience {
    /// The column that names it; null for the whole tenant.
    pub column: Option<String>,
    pub value: Option<String>,
    /// `user`, `tenant`, or the name of a group.
    pub kind: String,
    /// The users, at most 100; null for the whole tenant.
    pub users: Option<Vec<SeenBy>>,
    /// Why no user sees it.
    pub note: Option<String>,
}

/// What a rule says of the row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleExplanation {
    /// The key of the configuration: `routes[0]`.
    pub rule: String,
    pub event: String,
    /// Whether it shows the row.
    pub shows: bool,
    /// Why it does not, and what limits its events.
    pub notes: Vec<String>,
    pub audiences: Vec<Audience>,
}

/// Who sees a row.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    pub tenant: String,
    pub table: String,
    pub id: String,
    /// Whether some user sees it.
    pub seen: bool,
    /// Why no user sees it, whatever the rules say, and what prevents its changes from being delivered.
    pub reasons: Vec<String>,
    pub rules: Vec<RuleExplanation>,
}

/// Explains who sees a row of a tenant.
///
/// # Errors
/// When Postgres fails.
pub async fn explain(
    database: &Database,
    config: &Config,
    tenant: &Tenant,
    table: &str,
    id: &str,
) -> Result<Explanation> {
    let mut explanation = Explanation {
        tenant: tenant.name.clone(),
        table: table.to_owned(),
        id: id.to_owned(),
        seen: false,
        reasons: Vec::new(),
        rules: Vec::new(),
    };
    let all = Named::all(config);
    let named = all.iter().find(|named| named.placement.table == table);
    let Some(named) = named.filter(|named| !named.rules.is_empty()) else {
        explanation.reasons.push(match Rule::has_built_in(table) {
            true => format!("the rule of {table} is built in; see `posduif stream tail`"),
            false => "no rule of `routes` names the table".to_owned(),
        });
        return Ok(explanation);
    };
    explanation.reasons.extend(obstacles(
        &check(database, config, Some(&tenant.name), false).await?,
        table,
    ));
    let routing = Routing::configured(config);
    let row = lookup::row(database, tenant, named.placement, id).await?;
    let row = match row {
        Lookup::Row(row) => row,
        other => {
            explanation.reasons.push(missing(&other, tenant));
            return Ok(explanation);
        }
    };
    let rules = config.routes.iter().enumerate().filter(|(_, rule)| rule.table == table);
    for (index, rule) in rules {
        let mut explained = RuleExplanation {
            rule: format!("routes[{index}]"),
            event: rule.event.clone(),
            shows: true,
            notes: Vec::new(),
            audiences: Vec::new(),
        };
        hides(rule, &row, &mut explained);
        if explained.shows {
            audiences(database, config, routing, tenant, (rule, &row), &mut explained).await?;
            let has_user = |audience: &Audience| {
                let mut users = audience.users.iter().flatten();
                audience.kind == "tenant" || users.any(|user| user.username.is_some() && !user.is_inactive)
            };
            explanation.seen |= explained.audiences.iter().any(has_user);
        }
        explanation.rules.push(explained);
    }
    Ok(explanation)
}

/// Failures of the table, which concern each of its rows.
fn obstacles(report: &Report, table: &str) -> Vec<String> {
    let tables = report.tables.iter().filter(|report| report.table == table);
    let findings = tables.flat_map(|table| &table.findings);
    findings
        .filter(|finding| finding.level == Level::Fail)
        .map(|finding| finding.text.clone())
        .collect()
}

fn missing(lookup: &Lookup, tenant: &Tenant) -> String {
    match lookup {
        Lookup::NotOfTenant => format!("the table has no rows of tenant {}", tenant.name),
        Lookup::NoTable => {
            "the table does not exist, or lacks the column id or the one that names the tenant".to_owned()
        }
        Lookup::OtherTenant(value) => format!(
            "the row is not of tenant {}: its column names {}",
            tenant.name,
            value.as_deref().map_or("NULL".to_owned(), |value| format!("{value:?}"))
        ),
        Lookup::NoRow | Lookup::Row(_) => "there is no such row".to_owned(),
    }
}

/// Why a rule does not show the row, and what limits its events.
fn hides(rule: &Rule, row: &RowValues, explained: &mut RuleExplanation) {
    let gone = Rule::gone_column(&rule.table);
    if row.value(gone).is_some() {
        explained.shows = false;
        explained.notes.push(format!("the row is deleted: {gone} is set"));
    }
    for (column, wanted) in &rule.when.equals {
        let value = row.value(column);
        if value != Some(wanted.as_str()) {
            explained.shows = false;
            let found = value.map_or("NULL".to_owned(), |value| format!("{value:?}"));
            explained
                .notes
                .push(format!("when.equals: {column} is {found}, not {wanted:?}"));
        }
    }
    if !rule.when.op.is_empty() {
        let operations: Vec<&str> = rule.when.op.iter().map(|op| op.as_str()).collect();
        explained.notes.push(format!(
            "when.op: only {} is delivered; snapshots have the row",
            operations.join(", ")
        ));
    }
    if !rule.when.changed.is_empty() {
        explained.notes.push(format!(
            "when.changed: only updates that change {} are delivered",
            rule.when.changed.join(", ")
        ));
    }
}

async fn audiences(
    database: &Database,
    config: &Config,
    routing: Routing<'_>,
    tenant: &Tenant,
    (rule, row): (&Rule, &RowValues),
    explained: &mut RuleExplanation,
) -> Result<()> {
    if rule.is_for_tenant() {
        explained.audiences.push(Audience {
            column: None,
            value: None,
            kind: "tenant".to_owned(),
            users: None,
            note: None,
        });
        return Ok(());
    }
    for recipient in &rule.to {
        let value = row.value(recipient.column()).map(str::to_owned);
        let mut audience = Audience {
            column: Some(recipient.column().to_owned()),
            kind: recipient.group().map_or("user", |(group, _)| group).to_owned(),
            users: Some(Vec::new()),
            note: value.is_none().then(|| "the column is NULL".to_owned()),
            value,
        };
        if let Some(value) = audience.value.clone() {
            let (ids, note) = named_by(database, config, routing, tenant, (rule, recipient), &value).await?;
            audience.users = Some(users(database, tenant, &ids).await?);
            audience.note = note;
        }
        explained.audiences.push(audience);
    }
    Ok(())
}

/// The users whom a value names, and why there is none.
async fn named_by(
    database: &Database,
    config: &Config,
    routing: Routing<'_>,
    tenant: &Tenant,
    (rule, recipient): (&Rule, &Recipient),
    value: &str,
) -> Result<(Vec<Uuid>, Option<String>)> {
    let Some((name, _)) = recipient.group() else {
        let names = user_names(rule.subjects.as_ref(), &config.auth.providers);
        let user = names.user_id(&tenant.name, value.as_bytes());
        let note = match (&user, &names) {
            (None, UserNames::Ids) => Some("the value is no id of a user (a UUID)".to_owned()),
            (None, _) => Some("the value is no subject".to_owned()),
            (Some(_), _) => None,
        };
        return Ok((user.into_iter().collect(), note));
    };
    let members = lookup::members_of(database, tenant, routing, name, value, MEMBERS_MAX + 1).await?;
    let note = match members.len() {
        0 => Some("the group has no members".to_owned()),
        count if count > MEMBERS_MAX => Some(format!("the first {MEMBERS_MAX} members are listed")),
        _ => None,
    };
    Ok((members.into_iter().take(MEMBERS_MAX).collect(), note))
}

async fn users(database: &Database, tenant: &Tenant, ids: &[Uuid]) -> Result<Vec<SeenBy>> {
    let rows = database
        .query(&sql!("admin/users_named", tenant), &[(&ids, Type::UUID_ARRAY)])
        .await
        .context("cannot read the users")?;
    let mut known = Vec::with_capacity(ids.len());
    for row in &rows {
        known.push(SeenBy {
            id: row.try_get("id")?,
            username: Some(row.try_get("username")?),
            is_inactive: row.try_get::<_, bool>("is_disabled")? || row.try_get::<_, bool>("is_deleted")?,
        });
    }
    let unknown = ids.iter().filter(|id| !known.iter().any(|user| user.id == **id));
    let unknown: Vec<SeenBy> = unknown
        .map(|id| SeenBy {
            id: *id,
            username: None,
            is_inactive: false,
        })
        .collect();
    known.extend(unknown);
    Ok(known)
}
