//! Whether the rules have changed since an engine held the slot.
//!
//! Rows that a new rule shows, or that a former one showed, are in no stream: devices that took their snapshot before would hold
//! other rows than Postgres shows to them. So the engine that holds the slot records by which rules it routes, and where they
//! differ from the recorded ones, it resyncs the tenants that have rows of the table in one transaction with the new record; and
//! those that may have had some by a former rule: their end may be in a part of the log that no engine reads by that rule.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use postgres_types::{Json, Type};
use serde_json::{Value, json};
use tokio_postgres::Row;

use super::difference::{self, Kind, cause};
use super::report::Report;
use crate::config::Config;
use crate::config::placement::Placement;
use crate::config::rule::{Recipient, Rule};
use crate::contract::control::Command;
use crate::core::digest;
use crate::postgres::{Database, sql, tenants};

/// A digest for each table, by schema and name. The schema is empty for the tables of tenants.
type Digests = BTreeMap<String, BTreeMap<String, String>>;

/// Compares the rules with the recorded ones; only for the holder of the slot. The report counts the tables whose rules differ.
///
/// # Errors
/// When Postgres cannot be reached, or a table stays locked; nothing is changed then.
pub(super) async fn examine(config: &Config, database: &Database, report: &Report) -> Result<()> {
    let present = digests(config);
    let recorded = database
        .query_opt(&sql!("replication/rules_read"), &[])
        .await
        .context("cannot read the recorded rules; `posduif migrate up` creates their table")?;
    if recorded.as_ref().map(read).transpose()?.as_ref() == Some(&present) {
        return Ok(());
    }
    let mut client = database.connect_dedicated().await?;
    let transaction = difference::begin(&mut client).await?;
    let rows = transaction.query_typed(&sql!("replication/rules_read"), &[]).await?;
    let recorded = rows.first().map(read).transpose()?;
    // Before the first record there is nothing to compare with.
    let changed = recorded
        .as_ref()
        .map(|recorded| changes(recorded, &present))
        .unwrap_or_default();
    if !changed.is_empty() {
        let names: Vec<String> = if changed.iter().all(|(schema, _)| schema.is_empty()) {
            let tables: Vec<&str> = changed.iter().map(|(_, table)| *table).collect();
            let had_rules = |table: &&str| {
                let of_tenants = recorded.as_ref().and_then(|recorded| recorded.get(""));
                of_tenants.is_some_and(|recorded| recorded.contains_key(*table))
            };
            let former: Vec<&str> = tables.iter().copied().filter(had_rules).collect();
            let rows = transaction
                .query_typed(
                    &sql!("replication/rules_tenants"),
                    &[(&tables, Type::TEXT_ARRAY), (&former, Type::TEXT_ARRAY)],
                )
                .await?;
            rows.iter().map(|row| row.try_get("name")).collect::<Result<_, _>>()?
        } else {
            // A former rule no longer says whose rows they are.
            let all = tenants::list(database).await?;
            all.into_iter().map(|tenant| tenant.name).collect()
        };
        let cause = cause(Kind::Rule, &changed.iter().map(|(_, table)| *table).collect());
        let reports: Vec<Command> = names
            .iter()
            .map(|name| Command::ReportTable {
                tenant: name.as_str().into(),
                cause: cause.clone(),
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        tenants::resync_within(&transaction, &names).await?;
        tenants::send_all_within(&transaction, &reports).await?;
        tracing::warn!(tenants = names.len(), cause, "rules changed; streams recreated");
    }
    transaction
        .query_typed(&sql!("replication/rules_record"), &[(&Json(&present), Type::JSONB)])
        .await?;
    transaction.commit().await?;
    for _ in changed {
        report.metrics.replication.catalog_changed(Kind::Rule.as_str());
    }
    Ok(())
}

fn read(row: &Row) -> Result<Digests> {
    Ok(row.try_get::<_, Json<Digests>>("tables")?.0)
}

/// The tables whose rules differ. A table outside of tenants' schemas that is new is left to [`super::outside`].
fn changes<'d>(recorded: &'d Digests, present: &'d Digests) -> BTreeSet<(&'d str, &'d str)> {
    let digest = |digests: &'d Digests, (schema, table)| digests.get(schema)?.get(table);
    let mut names: BTreeSet<(&str, &str)> = names(recorded).chain(names(present)).collect();
    names.retain(|name| {
        let before = digest(recorded, *name);
        before != digest(present, *name) && (before.is_some() || name.0.is_empty())
    });
    names
}

fn names(digests: &Digests) -> impl Iterator<Item = (&str, &str)> {
    digests
        .iter()
        .flat_map(|(schema, tables)| tables.keys().map(move |table| (schema.as_str(), table.as_str())))
}

/// What of the rules and groups of each table says who sees which rows, and which of their columns.
fn digests(config: &Config) -> Digests {
    let mut views: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
    for rule in &config.routes {
        views
            .entry(name(rule.placement()))
            .or_default()
            .push(view(rule, config));
    }
    for (group, definition) in &config.groups {
        let view = json!({"group": group, "definition": definition});
        views.entry(name(definition.placement())).or_default().push(view);
    }
    let mut digests = Digests::new();
    for ((schema, table), views) in views {
        let digest = format!("{:016x}", digest::short(Value::from(views).to_string()));
        digests
            .entry(schema.to_owned())
            .or_default()
            .insert(table.to_owned(), digest);
    }
    digests
}

fn name(place: Placement<'_>) -> (&str, &str) {
    (place.outside.map_or("", |(schema, _)| schema), place.table)
}

/// A rule without what changes no rows of devices: the name of its event, and what they may write.
fn view(rule: &Rule, config: &Config) -> Value {
    let groups: BTreeMap<&str, Value> = rule
        .to
        .iter()
        .filter_map(Recipient::group)
        .map(|(name, _)| (name.as_str(), json!(config.groups.get(name))))
        .collect();
    json!({
        "tenant": rule.tenant, "subjects": rule.subjects, "to": rule.to, "columns": rule.columns,
        "when": rule.when, "groups": groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: Value) -> Config {
        let mut config = Config {
            routes: serde_json::from_value(routes).expect("rules"),
            ..Config::default()
        };
        let group = json!({"table": "list_members", "id": "list_id", "user": "user_id"});
        config
            .groups
            .insert("list".into(), serde_json::from_value(group).expect("a group"));
        config
    }

    #[test]
    fn change_of_what_a_rule_shows_is_a_change_of_its_table() {
        let before = config(json!([
            {"table": "tasks", "to": ["owner_id"]},
            {"table": "notes", "to": [{"list": "list_id"}]},
            {"table": "orders", "schema": "public", "tenant": {"column": "org"}, "to": ["tenant"]},
        ]));
        let differing = |after: &Config| {
            let (before, after) = (digests(&before), digests(after));
            let found = changes(&before, &after).into_iter();
            found.map(|(_, table)| table.to_owned()).collect::<Vec<_>>()
        };
        let changed = |change: fn(&mut Config)| {
            let mut after = before.clone();
            change(&mut after);
            differing(&after)
        };
        assert!(differing(&before).is_empty());
        assert!(changed(|config| config.routes[0].event = "task".into()).is_empty());
        assert_eq!(
            changed(|config| config.routes[0].to.push("helper_id".into())),
            ["tasks"]
        );
        assert_eq!(
            changed(|config| config.routes[0].columns = vec!["title".into()]),
            ["tasks"]
        );
        assert_eq!(
            changed(|config| config
                .groups
                .values_mut()
                .for_each(|group| group.user = "member".into())),
            ["list_members", "notes"]
        );
        assert_eq!(changed(|config| config.routes.clear()), ["notes", "tasks", "orders"]);
        // A new table outside is examined with its rows.
        let mut without = before.clone();
        without.routes.clear();
        let (without, before) = (digests(&without), digests(&before));
        let found: Vec<_> = changes(&without, &before).into_iter().collect();
        assert_eq!(found, [("", "notes"), ("", "tasks")]);
    }
}
