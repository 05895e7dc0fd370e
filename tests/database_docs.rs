//! docs/database.md describes the schema that the migrations create.

use std::collections::{BTreeMap, BTreeSet};

use posduif::postgres::migrations;

use crate::support::World;

const DOCS: &str = include_str!("../docs/database.md");

/// Type, nullability and default of a column.
type Column = (String, bool, String);

/// The columns of each table in the manual: `posduif.<table>` or `<table>`.
fn documented() -> BTreeMap<String, BTreeMap<String, Column>> {
    let mut tables: BTreeMap<String, BTreeMap<String, Column>> = BTreeMap::new();
    let mut current = String::new();
    for line in DOCS.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            current = heading.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, column, kind, null @ ("yes" | "no"), default, ..] = *cells.as_slice() {
            let name = column.trim_matches('`').to_owned();
            let column = (kind.to_owned(), null == "yes", default.trim_matches('`').to_owned());
            tables.entry(current.clone()).or_default().insert(name, column);
        }
    }
    tables
}

/// A database with a tenant.
async fn migrated() -> World {
    let world = World::new().await;
    migrations::up(&world.database().await, &world.config.replication)
        .await
        .unwrap();
    world.tenant("acme").await;
    world
}

#[tokio::test]
async fn database_manual_describes_every_table_and_column() {
    let world = migrated().await;
    let psql = world.psql().await;
    let rows = psql
        .query(
            "SELECT CASE schema.nspname WHEN 'posduif' THEN 'posduif.' ELSE '' END || class.relname AS name,
                    attribute.attname::text AS column, format_type(attribute.atttypid, attribute.atttypmod) AS type,
                    NOT attribute.attnotnull AS is_nullable,
                    coalesce(pg_get_expr(initial.adbin, initial.adrelid), '') AS initial
             FROM pg_class class
             JOIN pg_namespace schema ON schema.oid = class.relnamespace
             JOIN pg_attribute attribute ON attribute.attrelid = class.oid
             LEFT JOIN pg_attrdef initial ON initial.adrelid = class.oid AND initial.adnum = attribute.attnum
             WHERE schema.nspname IN ('posduif', 'tenant_acme') AND class.relkind IN ('r', 'p')
               AND attribute.attnum > 0 AND NOT attribute.attisdropped",
            &[],
        )
        .await
        .unwrap();
    let mut live: BTreeMap<String, BTreeMap<String, Column>> = BTreeMap::new();
    for row in rows {
        let kind = match row.get("type") {
            "timestamp with time zone" => "timestamptz",
            kind => kind,
        };
        // Without the cast: 'active'::text.
        let initial: &str = row.get("initial");
        let initial = initial.split("::").next().unwrap_or_default();
        live.entry(row.get("name")).or_default().insert(
            row.get("column"),
            (kind.to_owned(), row.get("is_nullable"), initial.to_owned()),
        );
    }
    assert_eq!(documented(), live);
}

#[tokio::test]
async fn database_manual_names_every_index_trigger_and_function() {
    let world = migrated().await;
    let psql = world.psql().await;
    let rows = psql
        .query(
            "SELECT class.relname::text AS name FROM pg_class class
             JOIN pg_namespace schema ON schema.oid = class.relnamespace
             WHERE schema.nspname IN ('posduif', 'tenant_acme') AND class.relkind = 'i'
             UNION
             SELECT trigger.tgname::text FROM pg_trigger trigger
             JOIN pg_class class ON class.oid = trigger.tgrelid
             JOIN pg_namespace schema ON schema.oid = class.relnamespace
             WHERE schema.nspname IN ('posduif', 'tenant_acme') AND NOT trigger.tgisinternal
             UNION
             SELECT function.proname || '()' FROM pg_proc function
             JOIN pg_namespace schema ON schema.oid = function.pronamespace
             WHERE schema.nspname = 'tenant_acme'",
            &[],
        )
        .await
        .unwrap();
    let missing: BTreeSet<String> = rows
        .iter()
        .map(|row| row.get("name"))
        .filter(|name: &String| !DOCS.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/database.md does not name {missing:?}");
}
