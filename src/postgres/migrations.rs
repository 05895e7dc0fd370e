//! Schema versions. The control schema `posduif` and each tenant's schema have their own numbered migrations and their
//! own version in `posduif.schema_migrations`, which exists before any migration.
//!
//! Each migration runs in one transaction together with the update of the version. `dirty`, golang-migrate's mark of a
//! migration that failed half-way, is therefore never set by Posduif; a version that another tool left dirty stops `up` and
//! `down` until `force` corrects it.
//!
//! All work on schemas holds one advisory lock: any number of engines may start at the same time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Transaction};

use crate::config;
use crate::core::tenant::Tenant;
use crate::core::tenant::quote_identifier;
use crate::postgres::sql;
use crate::postgres::tenants;
use crate::postgres::{Database, publication};

/// Name of the control schema.
pub const CONTROL_SCHEMA: &str = "posduif";

/// Key of the advisory lock over all work on schemas ("posduif" and a 1, as a number).
const LOCK: i64 = 0x706f_7364_7569_6601;

/// One step of a schema, and its rollback.
#[derive(Debug)]
struct Migration {
    number: i32,
    name: &'static str,
    up: &'static str,
    down: &'static str,
    /// The tables that it creates.
    tables: &'static [&'static str],
    /// The columns that it adds to tables of earlier migrations.
    columns: &'static [(&'static str, &'static str)],
}

/// Embeds the two files of a migration. What it creates is listed for messages, so that no SQL has to be parsed.
macro_rules! migration {
    ($number:literal, $folder:literal, $name:literal, tables: $tables:expr, columns: $columns:expr) => {
        Migration {
            number: $number,
            name: $name,
            up: include_str!(concat!("../../migrations/", $folder, "/", $name, ".up.sql")),
            down: include_str!(concat!("../../migrations/", $folder, "/", $name, ".down.sql")),
            tables: &$tables,
            columns: &$columns,
        }
    };
    ($number:literal, $folder:literal, $name:literal) => {
        migration!($number, $folder, $name, tables: [], columns: [])
    };
}

const CONTROL: &[Migration] = &[
    migration!(
        1,
        "control",
        "0001_control",
        tables: ["epochs", "enrollment_tokens", "devices", "credentials", "tenants"],
        columns: []
    ),
    migration!(
        2,
        "control",
        "0002_upload_ledger",
        tables: ["upload_results", "upload_devices"],
        columns: []
    ),
    migration!(3, "control", "0003_tables", tables: ["tables"], columns: []),
    migration!(
        4,
        "control",
        "0004_stamps",
        tables: [],
        columns: [("credentials", "stamp"), ("credentials", "kept_session")]
    ),
    migration!(5, "control", "0005_commands", tables: ["commands"], columns: []),
    migration!(6, "control", "0006_audit", tables: ["audit"], columns: []),
    migration!(
        7,
        "control",
        "0007_identities",
        tables: ["identities"],
        columns: [("credentials", "stamped_at")]
    ),
    migration!(8, "control", "0008_outside_tables", tables: ["outside_tables"], columns: []),
    migration!(9, "control", "0009_second_factors", tables: ["second_factors"], columns: []),
    migration!(
        10,
        "control",
        "0010_verified_addresses",
        tables: [],
        columns: [("credentials", "unverified_email"), ("credentials", "email_stamp")]
    ),
    migration!(
        11,
        "control",
        "0011_device_keys",
        tables: [],
        columns: [("devices", "auth_key")]
    ),
    migration!(12, "control", "0012_routing", tables: ["routing"], columns: []),
    migration!(13, "control", "0013_lanes", tables: [], columns: [("tenants", "lane")]),
];
const TENANT: &[Migration] = &[
    migration!(
        1,
        "tenant",
        "0001_tenant",
        tables: [
            "encrypted_states",
            "sync_metadata",
            "enrollments",
            "message_conflicts",
            "messages",
            "devices",
            "users"
        ],
        columns: []
    ),
    migration!(2, "tenant", "0002_upload"),
    migration!(3, "tenant", "0003_conflicts"),
    migration!(4, "tenant", "0004_upload_rows"),
    migration!(5, "tenant", "0005_conflict_pages"),
    migration!(
        6,
        "tenant",
        "0006_state",
        tables: [],
        columns: [
            ("devices", "public_key_changed_at"),
            ("encrypted_states", "creation"),
            ("users", "state_floor")
        ]
    ),
    migration!(7, "tenant", "0007_message_lists"),
    migration!(
        8,
        "tenant",
        "0008_upload_once",
        tables: [],
        columns: [
            ("messages", "revision"),
            ("message_conflicts", "table_name"),
            ("message_conflicts", "row_id")
        ]
    ),
    migration!(9, "tenant", "0009_roles", tables: [], columns: [("users", "role")]),
    migration!(10, "tenant", "0010_outbox", tables: ["outbox"], columns: []),
    migration!(11, "tenant", "0011_conflicts", tables: [], columns: []),
    migration!(12, "tenant", "0012_outside_tables"),
    migration!(13, "tenant", "0013_uploads_of_active_users"),
    migration!(14, "tenant", "0014_conflicts_bound"),
    migration!(15, "tenant", "0015_late_state_writes"),
    migration!(16, "tenant", "0016_upload_results"),
    migration!(
        17,
        "tenant",
        "0017_token_renewals",
        tables: [],
        columns: [("devices", "token_renewed_at")]
    ),
    migration!(18, "tenant", "0018_unseen_versions"),
    migration!(19, "tenant", "0019_rows_of_results"),
    migration!(
        20,
        "tenant",
        "0020_group_messages",
        tables: ["message_reads"],
        columns: [
            ("messages", "number"),
            ("messages", "group_id"),
            ("messages", "group_name")
        ]
    ),
];

/// The schemas of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every tenant's schema. The control schema, which holds the list of tenants, must be named.
    Tenants,
    /// The control schema.
    Control,
    /// One tenant's schema.
    Tenant(Tenant),
}

impl Target {
    /// Parses `all`, `posduif` or `tenant_<name>`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::Tenants),
            CONTROL_SCHEMA => Ok(Self::Control),
            _ => text
                .strip_prefix("tenant_")
                .and_then(Tenant::named)
                .map(Self::Tenant)
                .ok_or_else(|| "allowed are `all` (every tenant), `posduif` and `tenant_<name>`".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Up,
    Down,
}

/// A migration that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub schema: String,
    /// The migration, for example `0001_tenant`.
    pub migration: &'static str,
    pub direction: Direction,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.direction {
            Direction::Up => "applied",
            Direction::Down => "rolled back",
        };
        write!(f, "{} {verb} {}", self.schema, self.migration)
    }
}

/// The version of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub schema: String,
    /// Number of the last applied migration, 0 for none.
    pub version: i32,
    /// Whether another tool failed half-way.
    pub dirty: bool,
    /// Whether the schema does not exist: it was dropped or renamed. Serialized only when true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// Migrations that `up` would apply.
    pub pending: Vec<&'static str>,
}

/// Applies every missing migration: first to the control schema, then to each tenant's that lacks one or has a table that is
/// not published as required, each in one transaction with the publication of its new tables. The others cost nothing. Creates the publication. After an error, the migrations of the
/// schemas before the failed one stay applied.
pub async fn up(database: &Database, replication: &config::Replication) -> Result<Vec<Step>> {
    up_with_progress(database, replication, |_, _| {}).await
}

/// [`up`]. `progress` receives the number of processed schemas and their total.
pub async fn up_with_progress(
    database: &Database,
    replication: &config::Replication,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Step>> {
    let mut client = locked(database).await?;
    let transaction = client.transaction().await?;
    bootstrap(&transaction).await?;
    let mut steps = apply(&transaction, CONTROL_SCHEMA, CONTROL).await?;
    let whole_schemas = publication::prepare(&transaction, &replication.publication).await?;
    transaction.commit().await?;
    let mut tenants = tenants::list(database).await?;
    let due = incomplete(&client, &replication.publication, whole_schemas, &tenants).await?;
    tenants.retain(|tenant| due.contains(&tenant.schema));
    for (index, tenant) in tenants.iter().enumerate() {
        progress(index + 1, tenants.len() + 1);
        let transaction = client.transaction().await?;
        let applied = up_tenant(&transaction, tenant).await?;
        publication::include_whole(&transaction, &replication.publication, tenant).await?;
        transaction.commit().await?;
        steps.extend(applied);
    }
    Ok(steps)
}

/// The schemas of tenants that [`up`] changes.
async fn incomplete(
    client: &Client,
    publication: &str,
    whole_schemas: bool,
    tenants: &[Tenant],
) -> Result<HashSet<String>> {
    let newest = TENANT.last().map_or(0, |migration| migration.number);
    let read = |rows: Vec<Row>| -> Result<HashSet<String>, tokio_postgres::Error> {
        rows.iter().map(|row| row.try_get("schema_name")).collect()
    };
    let mut whole = HashSet::new();
    if whole_schemas {
        let rows = client
            .query_typed(&sql!("postgres/publication_schemas"), &[(&publication, Type::TEXT)])
            .await?;
        whole = read(rows)?;
    }
    let published: Vec<&str> = whole.iter().map(String::as_str).collect();
    let rows = client
        .query_typed(
            &sql!("postgres/tenants_incomplete"),
            &[
                (&publication, Type::TEXT),
                (&newest, Type::INT4),
                (&published, Type::TEXT_ARRAY),
            ],
        )
        .await
        .context("cannot read which tenants are complete")?;
    let mut schemas = read(rows)?;
    if whole_schemas {
        let lacking = tenants.iter().filter(|tenant| !whole.contains(&tenant.schema));
        schemas.extend(lacking.map(|tenant| tenant.schema.clone()));
    }
    Ok(schemas)
}

/// Rolls back the last `count` migrations of each schema of the target, newest first. The data of dropped tables and columns
/// is lost. `progress` receives the number of processed schemas and their total.
///
/// # Errors
/// When the control schema would lose its list of tenants while there are tenants.
pub async fn down(
    database: &Database,
    target: &Target,
    count: u32,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Step>> {
    let mut client = locked(database).await?;
    let mut steps = Vec::new();
    let schemas = schemas(database, target).await?;
    let total = schemas.len();
    // Before the transaction, whose locks on the list this connection would wait for.
    let has_tenants = *target == Target::Control && !tenants::list(database).await?.is_empty();
    for (index, (schema, migrations)) in schemas.into_iter().enumerate() {
        progress(index, total);
        let transaction = client.transaction().await?;
        for _ in 0..count {
            let version = clean_version(&transaction, &schema).await?;
            let Some(migration) = migrations.iter().find(|migration| migration.number == version) else {
                if version == 0 {
                    break;
                }
                bail!("{schema} is at version {version}, which this release does not contain; use the newer release");
            };
            if has_tenants && version == 1 {
                bail!("{CONTROL_SCHEMA} holds the list of tenants, which is not empty; drop the tenants first");
            }
            transaction
                .batch_execute(&in_schema(migration.down, &schema))
                .await
                .with_context(|| format!("{schema}: {} cannot be rolled back", migration.name))?;
            let former = migrations.iter().map(|migration| migration.number);
            let former = former.filter(|number| *number < version).max().unwrap_or(0);
            record(&transaction, &schema, former).await?;
            steps.push(Step {
                schema: schema.clone(),
                migration: migration.name,
                direction: Direction::Down,
            });
        }
        transaction.commit().await?;
    }
    Ok(steps)
}

/// A migration that [`down`] would roll back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// The migration, for example `0001_tenant`.
    pub migration: &'static str,
    /// The schemas to which it is applied.
    pub schemas: Vec<String>,
    /// The tables that it drops.
    pub tables: &'static [&'static str],
    /// The columns that it drops from other tables.
    pub columns: &'static [(&'static str, &'static str)],
}

/// The migrations that [`down`] would roll back, newest first.
pub async fn down_plan(database: &Database, target: &Target, count: u32) -> Result<Vec<Rollback>> {
    let versions: BTreeMap<String, i32> = status(database)
        .await?
        .into_iter()
        .map(|status| (status.schema, status.version))
        .collect();
    let mut plan: BTreeMap<Reverse<i32>, Rollback> = BTreeMap::new();
    for (schema, migrations) in schemas(database, target).await? {
        let version = versions.get(&schema).copied().unwrap_or(0);
        let applied = migrations.iter().rev().filter(|migration| migration.number <= version);
        for migration in applied.take(count as usize) {
            let rollback = plan.entry(Reverse(migration.number)).or_insert_with(|| Rollback {
                migration: migration.name,
                schemas: Vec::new(),
                tables: migration.tables,
                columns: migration.columns,
            });
            rollback.schemas.push(schema.clone());
        }
    }
    Ok(plan.into_values().collect())
}

/// The versions of the control schema and of each tenant's schema.
pub async fn status(database: &Database) -> Result<Vec<Status>> {
    let client = database.get().await?;
    let exists = client.query_typed_one(&sql!("postgres/migrations_exist"), &[]).await?;
    let mut found = Vec::new();
    if exists.try_get(0)? {
        for row in client.query_typed(&sql!("postgres/migrations_status"), &[]).await? {
            found.push((
                row.try_get::<_, String>("schema_name")?,
                row.try_get::<_, i32>("version")?,
                row.try_get::<_, bool>("dirty")?,
                !row.try_get::<_, bool>("exists")?,
            ));
        }
    }
    if !found.iter().any(|(schema, ..)| schema == CONTROL_SCHEMA) {
        found.insert(0, (CONTROL_SCHEMA.to_owned(), 0, false, false));
    }
    Ok(found
        .into_iter()
        .map(|(schema, version, dirty, missing)| {
            let migrations = if schema == CONTROL_SCHEMA { CONTROL } else { TENANT };
            let pending = migrations
                .iter()
                .filter(|migration| migration.number > version)
                .map(|migration| migration.name)
                .collect();
            Status {
                schema,
                version,
                dirty,
                missing,
                pending,
            }
        })
        .collect())
}

/// The tables that a tenant's schema has at a version.
pub(crate) fn tenant_tables(version: i32) -> Vec<&'static str> {
    let applied = TENANT.iter().filter(|migration| migration.number <= version);
    applied.flat_map(|migration| migration.tables).copied().collect()
}

/// Records that the schemas are at this version, and clean, without running a migration.
pub async fn force(database: &Database, target: &Target, version: i32) -> Result<Vec<String>> {
    let mut client = locked(database).await?;
    let mut forced = Vec::new();
    let transaction = client.transaction().await?;
    for (schema, migrations) in schemas(database, target).await? {
        let newest = migrations.last().map_or(0, |migration| migration.number);
        if !(0..=newest).contains(&version) {
            bail!("{schema} has no version {version}; allowed are 0 to {newest}");
        }
        record(&transaction, &schema, version).await?;
        forced.push(schema);
    }
    transaction.commit().await?;
    Ok(forced)
}

/// Applies a tenant's missing migrations in the caller's transaction. The caller holds the lock.
pub(crate) async fn up_tenant(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<Vec<Step>> {
    apply(transaction, &tenant.schema, TENANT).await
}

/// Forgets the version of a tenant's schema. The caller holds the lock.
pub(crate) async fn forget(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<()> {
    transaction
        .query_typed(&sql!("postgres/migrations_forget"), &[(&tenant.schema, Type::TEXT)])
        .await?;
    Ok(())
}

/// Creates the control schema, empty, unless it exists. The caller holds the lock.
pub(crate) async fn bootstrap(transaction: &Transaction<'_>) -> Result<()> {
    transaction
        .batch_execute(&sql!("postgres/migrations_bootstrap"))
        .await
        .context("cannot create the schema posduif; the engine's role needs CREATE on the database")
}

/// Takes the lock over all work on schemas until the transaction ends.
pub(crate) async fn lock_for_transaction(transaction: &Transaction<'_>) -> Result<()> {
    transaction
        .query_typed(&sql!("postgres/schema_lock_transaction"), &[(&LOCK, Type::INT8)])
        .await?;
    Ok(())
}

/// A connection that holds the lock over all work on schemas until it is dropped.
async fn locked(database: &Database) -> Result<Client> {
    let client = database.connect_dedicated().await?;
    client
        .query_typed(&sql!("postgres/schema_lock"), &[(&LOCK, Type::INT8)])
        .await?;
    Ok(client)
}

/// The schemas of a target, each with its migrations.
async fn schemas(database: &Database, target: &Target) -> Result<Vec<(String, &'static [Migration])>> {
    Ok(match target {
        Target::Control => vec![(CONTROL_SCHEMA.to_owned(), CONTROL)],
        Target::Tenant(tenant) => {
            if tenants::find(database, &tenant.name).await?.is_none() {
                bail!("there is no tenant {}; `posduif tenant list` shows them", tenant.name);
            }
            vec![(tenant.schema.clone(), TENANT)]
        }
        Target::Tenants => tenants::list(database)
            .await?
            .into_iter()
            .map(|tenant| (tenant.schema, TENANT))
            .collect(),
    })
}

/// Runs the migrations above the schema's version.
async fn apply(transaction: &Transaction<'_>, schema: &str, migrations: &[Migration]) -> Result<Vec<Step>> {
    let version = clean_version(transaction, schema).await?;
    let mut steps = Vec::new();
    for migration in migrations.iter().filter(|migration| migration.number > version) {
        transaction
            .batch_execute(&in_schema(migration.up, schema))
            .await
            .with_context(|| format!("{schema}: {} failed", migration.name))?;
        record(transaction, schema, migration.number).await?;
        steps.push(Step {
            schema: schema.to_owned(),
            migration: migration.name,
            direction: Direction::Up,
        });
    }
    Ok(steps)
}

/// The schema's version, 0 when it has none. A dirty version is an error.
async fn clean_version(transaction: &Transaction<'_>, schema: &str) -> Result<i32> {
    let row = transaction
        .query_typed_opt(&sql!("postgres/migrations_version"), &[(&schema, Type::TEXT)])
        .await?;
    let Some(row) = row else { return Ok(0) };
    let version = row.try_get("version")?;
    if row.try_get("dirty")? {
        bail!(
            "{schema} is marked dirty at version {version}: another tool failed half-way; repair the schema, then \
             `posduif migrate force {version} --schema {schema}`"
        );
    }
    Ok(version)
}

async fn record(transaction: &Transaction<'_>, schema: &str, version: i32) -> Result<()> {
    transaction
        .execute_typed(
            &sql!("postgres/migrations_record"),
            &[(&schema, Type::TEXT), (&version, Type::INT4)],
        )
        .await?;
    Ok(())
}

fn in_schema(statement: &str, schema: &str) -> String {
    statement.replace("{schema}", &quote_identifier(schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_have_consecutive_numbers() {
        for migrations in [CONTROL, TENANT] {
            for (index, migration) in migrations.iter().enumerate() {
                assert_eq!(migration.number as usize, index + 1);
                assert!(
                    migration.name.starts_with(&format!("{:04}_", migration.number)),
                    "{}",
                    migration.name
                );
            }
        }
    }

    #[test]
    fn migration_lists_what_its_rollback_drops() {
        for (schema, migrations) in [("posduif", CONTROL), ("{schema}", TENANT)] {
            for migration in migrations {
                let (name, down) = (migration.name, migration.down);
                assert_eq!(migration.tables.len(), down.matches("DROP TABLE").count(), "{name}");
                assert_eq!(migration.columns.len(), down.matches("DROP COLUMN").count(), "{name}");
                for table in migration.tables {
                    assert!(
                        down.contains(&format!("DROP TABLE {schema}.{table};")),
                        "{name}: {table}"
                    );
                }
                for (table, column) in migration.columns {
                    let statement = format!("ALTER TABLE {schema}.{table} DROP COLUMN {column};");
                    assert!(down.contains(&statement), "{name}: {table}.{column}");
                }
            }
        }
    }

    #[test]
    fn target_is_parsed_from_a_schema_name() {
        assert_eq!(Target::parse("all"), Ok(Target::Tenants));
        assert_eq!(Target::parse("posduif"), Ok(Target::Control));
        assert!(matches!(Target::parse("tenant_demo"), Ok(Target::Tenant(tenant)) if tenant.name == "demo"));
        for bad in ["", "public", "tenant_", "tenant_A"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
