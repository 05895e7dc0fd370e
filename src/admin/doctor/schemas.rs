//! Checks of schemas, tenants and the publication.

use crate::admin::doctor::postgres::{Facts, shell_identifier};
use crate::admin::doctor::{Check, Level, first_names};
use crate::admin::routes::{self, TableReport};
use crate::config::Config;
use crate::config::group::Group;
use crate::config::rule::Rule;
use crate::core::tenant::quote_identifier;
use crate::postgres::migrations::{self, Status};
use crate::postgres::publication::{self, Coverage, Table};
use crate::postgres::tenants::{self, Listed};
use crate::postgres::{Database, Error};
use crate::sync::tables;

/// Checks schemas, and if there are any, tenants and the publication.
pub(super) async fn examine(database: &Database, config: &Config, facts: &Facts) -> Vec<Check> {
    let status = match migrations::status(database).await {
        Ok(status) => status,
        Err(error) => {
            return vec![Check::fail(
                SCHEMAS,
                format!("{error:#}"),
                "Their versions cannot be read",
            )];
        }
    };
    let mut checks = vec![schemas(&status)];
    if is_fresh(&status) {
        return checks;
    }
    checks.push(tenants(database).await);
    if config.routes.iter().any(|rule| rule.upload.is_some()) {
        checks.push(upload_ids(database, config).await);
    }
    if !config.groups.is_empty() {
        checks.push(group_members(database, config).await);
    }
    let places = config.routes.iter().map(Rule::placement);
    let mut places = places.chain(config.groups.values().map(Group::placement));
    if places.any(|place| place.outside.is_some()) {
        checks.push(outside_tables(database, config, facts).await);
    }
    let name = &config.replication.publication;
    match publication::coverage(database, name, &[]).await {
        Ok(coverage) => checks.extend([publication(&coverage, name, facts), replica_identity(&coverage, facts)]),
        Err(error) => checks.push(Check::fail(PUBLICATION, format!("{error:#}"), "It cannot be read")),
    }
    checks
}

const SCHEMAS: &str = "postgres.schemas";
const PUBLICATION: &str = "postgres.publication";

fn is_fresh(status: &[Status]) -> bool {
    status.iter().all(|schema| schema.version == 0)
}

fn schemas(status: &[Status]) -> Check {
    if let Some(schema) = status.iter().find(|schema| schema.dirty) {
        return Check::fail(
            SCHEMAS,
            format!("{} is marked dirty", schema.schema),
            "A migration by another tool failed halfway: repair the schema, then record its true version",
        )
        .fix(format!(
            "posduif migrate force {} --schema {}",
            schema.version, schema.schema
        ));
    }
    if is_fresh(status) {
        return Check::ok(SCHEMAS, "created by the first engine, or `posduif migrate up`");
    }
    let pending: usize = status.iter().map(|schema| schema.pending.len()).sum();
    if pending > 0 {
        return Check::warn(
            SCHEMAS,
            format!("{pending} migrations are pending"),
            "The next start of an engine applies them, too",
        )
        .fix("posduif migrate up");
    }
    Check::ok(SCHEMAS, format!("{} are up to date", status.len()))
}

/// Whether each registered tenant has its schema and tables.
async fn tenants(database: &Database) -> Check {
    const NAME: &str = "postgres.tenants";
    let read = async {
        let directory = tenants::directory(database).await?;
        let tables = tenants::missing_tables(database, None).await?;
        Ok::<_, Error>((directory, tables))
    };
    let (directory, tables) = match read.await {
        Ok(found) => found,
        Err(error) => return Check::fail(NAME, format!("{error:#}"), "They cannot be read"),
    };
    let without_schema: Vec<&Listed> = directory.iter().filter(|listed| !listed.has_schema()).collect();
    if without_schema.is_empty() && tables.is_empty() {
        return Check::ok(NAME, format!("all {} have their schema and tables", directory.len()));
    }
    let schemas = without_schema
        .iter()
        .map(|listed| format!("the schema {}", listed.tenant.schema));
    let missing: Vec<String> = schemas.chain(tables).collect();
    let alternative = without_schema.first().map_or_else(String::new, |listed| {
        let name = &listed.tenant.name;
        format!(
            ". To start over with an empty tenant, drop it with its devices and credentials by `posduif tenant drop {name} \
             --yes`, and recreate it by `posduif tenant create {name}`"
        )
    });
    Check::fail(
        NAME,
        format!("missing: {}", first_names(missing)),
        format!("Dropped or renamed: the tenant cannot work. Restore it from a backup{alternative}"),
    )
}

/// Whether the ids of the tables with uploads are unique.
async fn upload_ids(database: &Database, config: &Config) -> Check {
    const NAME: &str = "postgres.upload_ids";
    let tables = match tables::without_unique_id(database, &config.routes).await {
        Ok(tables) => tables,
        Err(error) => return Check::fail(NAME, error.to_string(), "The tables with uploads cannot be read"),
    };
    if tables.is_empty() {
        return Check::ok(NAME, "unique in all tables with uploads");
    }
    let names = tables.iter().map(|(schema, table)| format!("{schema}.{table}"));
    let check = Check::fail(
        NAME,
        format!("not unique in {}", first_names(names.collect())),
        "Devices upload into these tables, and rows of two users may have the same id, which identifies a row to clients",
    );
    tables.iter().fold(check, |check, (schema, table)| {
        check.fix(format!(
            "psql \"$DATABASE_URL\" -c 'CREATE UNIQUE INDEX CONCURRENTLY ON {}.{} (id)'",
            shell_identifier(schema),
            shell_identifier(table)
        ))
    })
}

/// Whether each membership of a group stands once in its table.
async fn group_members(database: &Database, config: &Config) -> Check {
    const NAME: &str = "postgres.group_members";
    let tables = match tables::ambiguous_members(database, &config.groups).await {
        Ok(tables) => tables,
        Err(error) => return Check::fail(NAME, error.to_string(), "The tables with memberships cannot be read"),
    };
    if tables.is_empty() {
        return Check::ok(NAME, "each group and member stand once");
    }
    let names = tables.iter().map(|found| format!("{}.{}", found.schema, found.table));
    let check = Check::fail(
        NAME,
        format!("not unique in {}", first_names(names.collect())),
        "A group and a member may stand twice in these tables, and the end of one row ends the membership",
    );
    tables.iter().fold(check, |check, found| {
        let [id, user] = found.columns.each_ref().map(|column| shell_identifier(column));
        check.fix(format!(
            "psql \"$DATABASE_URL\" -c 'CREATE UNIQUE INDEX CONCURRENTLY ON {}.{} ({id}, {user})'",
            shell_identifier(&found.schema),
            shell_identifier(&found.table)
        ))
    })
}

/// Whether the tables of rules outside of tenants' schemas can be delivered and written.
async fn outside_tables(database: &Database, config: &Config, facts: &Facts) -> Check {
    const NAME: &str = "postgres.routes";
    let report = match routes::check(database, config, None, false).await {
        Ok(report) => report,
        Err(error) => return Check::fail(NAME, format!("{error:#}"), "The tables of rules cannot be read"),
    };
    // Other checks examine those in tenants' schemas.
    let outside: Vec<&TableReport> = report.tables.iter().filter(|table| table.tenant.is_none()).collect();
    let level = outside.iter().map(|table| table.level()).max().unwrap_or(Level::Ok);
    if level == Level::Ok {
        return Check::ok(
            NAME,
            format!(
                "all {} tables outside of tenants' schemas are deliverable",
                outside.len()
            ),
        );
    }
    let findings = outside
        .iter()
        .flat_map(|table| table.findings.iter().map(move |finding| (table, finding)));
    let worst: Vec<_> = findings.filter(|(_, finding)| finding.level == level).collect();
    let found = worst.iter().map(|(table, finding)| {
        let text = finding.text.split([':', '.']).next().unwrap_or_default();
        format!("{}.{}: {text}", table.schema, table.table)
    });
    let meaning = "`posduif routes check` has the details. Rows are not delivered, or not as they should be";
    let check = Check::new(NAME, level, first_names(found.collect()), meaning);
    worst.iter().fold(check, |check, (_, finding)| {
        let commands = finding
            .fix
            .iter()
            .map(|statement| facts.command(statement, finding.by_owner));
        commands.fold(check, Check::fix)
    })
}

fn publication(coverage: &Coverage, name: &str, facts: &Facts) -> Check {
    if !coverage.exists {
        return Check::warn(
            PUBLICATION,
            format!("{name} is missing"),
            "The next engine creates it, too",
        )
        .fix("posduif publication sync");
    }
    if coverage.operations.len() < 4 || !coverage.via_partition_root {
        return Check::fail(
            PUBLICATION,
            format!("{name} publishes {} only", coverage.operations.join(", ")),
            "It was altered: changes are lost, or arrive under the name of a partition",
        )
        .fix(format!(
            "psql \"$DATABASE_URL\" -c 'ALTER PUBLICATION {} SET (publish = '\\''insert, update, delete, truncate'\\'', \
             publish_via_partition_root = true)'",
            quote_identifier(name)
        ));
    }
    let missing: Vec<&Table> = coverage.missing().collect();
    if missing.is_empty() {
        return Check::ok(PUBLICATION, format!("{name} has all {} tables", coverage.tables.len()));
    }
    let check = Check::fail(
        PUBLICATION,
        format!("{name} lacks {}", first_names(names(&missing))),
        "Changes of these tables are not delivered. If one has rows, the fix recreates the streams of its tenant",
    );
    with_owner_fixes(check, &missing, facts).fix("posduif publication sync")
}

fn replica_identity(coverage: &Coverage, facts: &Facts) -> Check {
    const NAME: &str = "postgres.replica_identity";
    let unidentified: Vec<&Table> = coverage.unidentified().collect();
    if unidentified.is_empty() {
        let total = coverage.tables.len();
        let keyed = coverage.tables.iter().filter(|table| table.virtual_columns).count();
        let found = match keyed {
            0 => format!("full for all {total} tables"),
            _ => format!(
                "full for {} tables, of the primary key for {keyed} with virtual columns",
                total - keyed
            ),
        };
        return Check::ok(NAME, found);
    }
    let check = Check::fail(
        NAME,
        format!("not as required for {}", first_names(names(&unidentified))),
        "The log lacks old rows: users who may no longer see a row do not receive its removal, or an UPDATE fails",
    );
    with_owner_fixes(check, &unidentified, facts).fix("posduif publication sync")
}

fn names(tables: &[&Table]) -> Vec<String> {
    tables
        .iter()
        .map(|table| format!("{}.{}", table.schema, table.table))
        .collect()
}

/// Adds the change of owner of each table that is not ours: only its owner can alter and publish a table.
fn with_owner_fixes(check: Check, tables: &[&Table], facts: &Facts) -> Check {
    let others: Vec<&&Table> = tables.iter().filter(|table| !table.is_ours).collect();
    if others.is_empty() {
        return check;
    }
    let mut check = Check {
        meaning: format!(
            "{}. A table of another owner must first belong to {}",
            check.meaning, facts.role
        ),
        ..check
    };
    for table in others {
        check = check.fix(facts.as_superuser(&format!(
            "ALTER TABLE {}.{} OWNER TO {}",
            shell_identifier(&table.schema),
            shell_identifier(&table.table),
            shell_identifier(&facts.role)
        )));
    }
    check
}
