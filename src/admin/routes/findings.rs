//! What is wrong with a table for the rules and groups that name it. Pure.

use super::{Finding, Found, Named, user_columns};
use crate::admin::level::Level;
use crate::config::Config;
use crate::config::rule::{Rule, user_names};
use crate::core::subject::UserNames;
use crate::core::tenant::quote_identifier;

/// Types whose columns can hold ids of users and of groups.
const ID_TYPES: [&str; 6] = ["uuid", "text", "character varying", "bigint", "integer", "smallint"];

fn fail(text: impl Into<String>) -> Finding {
    Finding {
        level: Level::Fail,
        text: text.into(),
        fix: Vec::new(),
        by_owner: false,
    }
}

fn warn(text: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warn,
        ..fail(text)
    }
}

impl Finding {
    fn fix(mut self, statement: impl Into<String>) -> Self {
        self.fix.push(statement.into());
        self
    }
}

/// Everything that is wrong with a table.
pub(super) fn of(named: &Named<'_>, found: &Found, config: &Config) -> Vec<Finding> {
    let table = named.placement.table;
    let Some(kind) = found.kind.as_deref() else {
        let where_ = match (&found.schema, named.placement.outside) {
            (Some(schema), _) => format!("the schema {schema} has no table {table}"),
            (None, Some((schema, _))) => format!("there is no schema {schema}"),
            (None, None) => "the tenant's schema is missing".to_owned(),
        };
        // Not every tenant needs every table.
        let is_outside = named.placement.outside.is_some();
        return vec![if is_outside { fail(where_) } else { warn(where_) }];
    };
    if !matches!(kind, "r" | "p") {
        let text = "it is a view or a foreign table: Postgres replicates tables only. Name the table behind it";
        return vec![fail(text)];
    }
    if found.is_partition {
        return vec![fail(
            "it is a partition: its changes arrive under the name of its table. Name that table",
        )];
    }
    if !found.is_permanent {
        let text = "it is unlogged: its changes are not in the log";
        return vec![fail(text).fix(format!("ALTER TABLE {} SET LOGGED", found.quoted()))];
    }
    let mut findings = Vec::new();
    columns(named, found, &mut findings);
    users(named, found, config, &mut findings);
    replication(found, &config.replication.publication, &mut findings);
    keys(named, found, &mut findings);
    privileges(named, found, &mut findings);
    for finding in &mut findings {
        finding.by_owner |= !found.is_ours && !finding.fix.is_empty();
    }
    findings
}

fn columns(named: &Named<'_>, found: &Found, findings: &mut Vec<Finding>) {
    if !named.rules.is_empty() && !found.has("id") {
        findings.push(fail("it has no column id, by which devices know a row"));
    }
    let is_padded = |column: &str| {
        let at = found.columns.iter().position(|name| name == column);
        at.is_some_and(|at| found.types[at].starts_with("character("))
    };
    if let Some(column) = named.placement.tenant_column().filter(|column| is_padded(column)) {
        findings.push(fail(format!(
            "the column {column}, which names the tenant, is padded with spaces (character): use text or varchar"
        )));
    }
    for (key, column) in named.needed() {
        if !found.has(column) {
            findings.push(fail(format!("`{key}` names the column {column}, which does not exist")));
        }
    }
}

fn users(named: &Named<'_>, found: &Found, config: &Config, findings: &mut Vec<Finding>) {
    let of_rules = named.rules.iter().flat_map(|rule| {
        let owner = rule.upload.iter().filter_map(|upload| upload.owner.as_deref());
        let columns = user_columns(rule).chain(owner);
        columns.map(move |column| (column, user_names(rule.subjects.as_ref(), &config.auth.providers)))
    });
    let of_group = named.group.map(|(_, group)| {
        let names = user_names(group.subjects.as_ref(), &config.auth.providers);
        (group.user.as_str(), names)
    });
    let mut seen: Vec<&str> = Vec::new();
    for (column, names) in of_rules.chain(of_group) {
        let Some(at) = found.columns.iter().position(|name| name == column) else {
            continue;
        };
        if seen.contains(&column) {
            continue;
        }
        seen.push(column);
        let type_name = found.types[at].split('(').next().unwrap_or_default().trim();
        let holds_numbers = matches!(type_name, "bigint" | "integer" | "smallint");
        if !ID_TYPES.contains(&type_name) {
            findings.push(warn(format!(
                "the column {column} with users is of the type {type_name}"
            )));
        }
        match names {
            UserNames::Ids if holds_numbers => findings.push(fail(format!(
                "the column {column} with users is of the type {type_name}, and ids of users are UUIDs. Set `subjects` to the \
                 issuer of the provider whose subjects it holds"
            ))),
            UserNames::Subjects(prefix) if type_name == "uuid" && !prefix.is_empty() => {
                findings.push(warn(format!(
                    "the column {column} holds subjects of a provider with the prefix {prefix:?}: its UUIDs are not ids of users"
                )));
            }
            _ => {}
        }
        if !found.leading.iter().any(|first| first == column) {
            let text =
                format!("no index begins with {column}: each snapshot and each list of rows reads the whole table");
            findings.push(warn(text).fix(index(found, "", &[column])));
        }
    }
}

fn index(found: &Found, unique: &str, columns: &[&str]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
    let concurrently = if found.kind.as_deref() == Some("p") {
        ""
    } else {
        "CONCURRENTLY "
    };
    format!(
        "CREATE {unique}INDEX {concurrently}ON {} ({})",
        found.quoted(),
        columns.join(", ")
    )
}

fn replication(found: &Found, publication: &str, findings: &mut Vec<Finding>) {
    let is_identified = (found.identity == "full") != found.has_virtual;
    let whose = match (&found.owner, found.is_ours) {
        (Some(owner), false) => format!(
            ". The table belongs to {owner}: run this as {owner} for the table, and as a superuser for the publication"
        ),
        _ => ". An engine repairs that when it starts and at its looks at the catalogs, `posduif publication sync` at once"
            .to_owned(),
    };
    if !is_identified {
        let identity = if found.has_virtual { "DEFAULT" } else { "FULL" };
        findings.push(
            fail(format!(
                "its replica identity is {}: the log lacks old rows, and so each UPDATE and DELETE makes all devices of the \
                 tenants take a snapshot{whose}",
                found.identity
            ))
            .fix(format!("ALTER TABLE {} REPLICA IDENTITY {identity}", found.quoted())),
        );
    }
    if !found.is_published {
        findings.push(
            fail(format!(
                "the publication {publication} lacks it: its changes are not delivered{whose}"
            ))
            .fix(format!(
                "ALTER PUBLICATION {} ADD TABLE {}",
                quote_identifier(publication),
                found.quoted()
            )),
        );
    }
}

fn keys(named: &Named<'_>, found: &Found, findings: &mut Vec<Finding>) {
    let tenant = named.placement.tenant_column();
    let within = |columns: &[&str]| {
        let in_tenant: Vec<&str> = columns.iter().copied().chain(tenant).collect();
        found.is_unique(columns) || tenant.is_some() && found.is_unique(&in_tenant)
    };
    if let Some(column) = tenant
        && !found.leading.iter().any(|first| first == column)
    {
        let text = format!("no index begins with {column}, which names the tenant");
        findings.push(warn(text).fix(index(found, "", &[column])));
    }
    if !named.rules.is_empty() && found.has("id") && !within(&["id"]) {
        let text = "two rows may have the same id, by which devices know a row";
        let finding = if named.upload().is_some() {
            fail(text)
        } else {
            warn(text)
        };
        findings.push(finding.fix(index(found, "UNIQUE ", &["id"])));
    }
    if let Some((name, group)) = named.group
        && !within(&[&group.id, &group.user])
    {
        let text =
            format!("a member of a group {name} may stand in it twice, and the end of one row ends the membership");
        findings.push(fail(text).fix(index(found, "UNIQUE ", &[&group.id, &group.user])));
    }
    if named.upload().is_some() {
        let hides = |column: &str| found.has(column) && named.rules.iter().any(|rule| !rule.delivers(column));
        if hides("version") {
            findings.push(warn(
                "`columns` lacks version: devices know the version of a row by the results of their uploads only",
            ));
        }
        match found.id_source.as_str() {
            "always" => findings.push(warn(
                "only Postgres makes its ids (GENERATED ALWAYS): devices edit and delete rows, and cannot create them",
            )),
            "sequence" => findings.push(warn(
                "its ids come from a sequence, and devices choose the ids of rows that they create: an id of a device may be the \
                 next one of the sequence, whose INSERT then fails. Let devices use ids beyond it, such as negative ones",
            )),
            _ => {}
        }
    }
}

fn privileges(named: &Named<'_>, found: &Found, findings: &mut Vec<Finding>) {
    let role = quote_identifier(&found.role);
    if !found.may_use {
        let schema = quote_identifier(found.schema.as_deref().unwrap_or_default());
        findings.push(
            fail(format!("the role {} may not use the schema", found.role))
                .fix(format!("GRANT USAGE ON SCHEMA {schema} TO {role}")),
        );
    }
    let mut wanted = vec!["SELECT"];
    if named.upload().is_some() {
        let is_soft = found.has(Rule::gone_column(named.placement.table));
        wanted.push("UPDATE");
        if found.id_source != "always" {
            wanted.push("INSERT");
        }
        if !is_soft {
            wanted.push("DELETE");
        }
    }
    wanted.retain(|wanted| !found.privileges.iter().any(|privilege| privilege == wanted));
    if !wanted.is_empty() {
        let list = wanted.join(", ");
        findings.push(
            fail(format!("the role {} lacks {list}", found.role))
                .fix(format!("GRANT {list} ON {} TO {role}", found.quoted())),
        );
    }
    if found.is_filtered {
        findings.push(
            fail(format!(
                "row level security hides rows from the role {}, which the log has nevertheless: snapshots would lack them",
                found.role
            ))
            .fix(format!("ALTER ROLE {role} BYPASSRLS")),
        );
    }
}
