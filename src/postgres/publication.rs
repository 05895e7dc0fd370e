//! The publication: one for all tenants, created before the slot and never dropped, because a slot whose position is older
//! than its publication cannot decode.
//!
//! A superuser on Postgres 15 or newer publishes whole schemas, which include new tables. A new table may lack a replica
//! identity, and its first UPDATE would fail; therefore an event trigger sets REPLICA IDENTITY FULL in the transaction that
//! creates the table. The trigger exists before any schema is added. Other roles publish a list of tables, to which the next
//! look at the catalogs ([`crate::replication`]) or `posduif migrate up` adds new tables; when such a table has rows by then,
//! the tenant's streams are recreated.

use anyhow::{Context, Result};
use serde::Serialize;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};

use crate::core::tenant::{Tenant, quote_identifier};
use crate::postgres::{Database, Param, migrations, sql, tenants};

/// The table of commands to the engine, which every publication has.
pub(crate) const COMMANDS: &str = "posduif.commands";

/// Creates the publication, with the table of commands, unless it exists; and the event trigger where possible. The role needs CREATE on
/// the database.
pub async fn ensure(database: &Database, publication: &str) -> Result<()> {
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    migrations::bootstrap(&transaction).await?;
    prepare(&transaction, publication).await?;
    transaction.commit().await?;
    Ok(())
}

/// The changes that publishing a tenant's tables required.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Included {
    /// Tables that were added to the publication.
    pub added: Vec<String>,
    /// Tables and partitions that were set to REPLICA IDENTITY FULL.
    pub identified: Vec<String>,
    /// Tables and partitions that were set to REPLICA IDENTITY DEFAULT, because they have virtual generated columns.
    pub keyed: Vec<String>,
    /// Whether an added table has rows, which no stream contains.
    pub has_rows: bool,
}

impl Included {
    /// Adds the changes of another part.
    pub(crate) fn merge(&mut self, other: Self) {
        self.added.extend(other.added);
        self.identified.extend(other.identified);
        self.keyed.extend(other.keyed);
        self.has_rows |= other.has_rows;
    }
}

/// Adds all of a tenant's tables to the publication, and creates it if necessary. The caller holds the schema lock and the
/// role owns the tables.
pub(crate) async fn include(transaction: &Transaction<'_>, publication: &str, tenant: &Tenant) -> Result<Included> {
    let whole_schemas = prepare(transaction, publication).await?;
    // Before the tables are added: without an identity a published table cannot be updated.
    let mut included = set_identities(transaction, publication, tenant, Owners::All).await?;
    included.merge(add_tables(transaction, publication, tenant, Owners::All, whole_schemas).await?);
    Ok(included)
}

/// Whose tables are changed; changes to a table of another owner fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owners {
    All,
    /// Only tables that this role owns.
    Ours,
}

/// A part of [`include()`] that may fail by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    Identities,
    Membership,
}

/// Does a part of [`include()`] for the tables that this role owns.
pub(crate) async fn repair(
    transaction: &Transaction<'_>,
    publication: &str,
    tenant: &Tenant,
    part: Repair,
) -> Result<Included> {
    match part {
        Repair::Identities => set_identities(transaction, publication, tenant, Owners::Ours).await,
        Repair::Membership => {
            let whole_schemas = prepare(transaction, publication).await?;
            add_tables(transaction, publication, tenant, Owners::Ours, whole_schemas).await
        }
    }
}

/// Adds the tables of a tenant that the publication lacks.
async fn add_tables(
    transaction: &Transaction<'_>,
    publication: &str,
    tenant: &Tenant,
    owners: Owners,
    whole_schemas: bool,
) -> Result<Included> {
    let params: [Param<'_>; 2] = [(&publication, Type::TEXT), (&tenant.schema, Type::TEXT)];
    let mut included = Included::default();
    if whole_schemas {
        let present = transaction
            .query_typed(&sql!("postgres/publication_has_schema"), &params)
            .await?;
        if !present.is_empty() {
            return Ok(included);
        }
    }
    let missing = transaction
        .query_typed(&sql!("postgres/publication_missing_tables"), &params)
        .await?;
    let name = quote_identifier(publication);
    for row in missing {
        if owners == Owners::Ours && !row.try_get::<_, bool>("is_ours")? {
            continue;
        }
        let table: String = row.try_get("relname")?;
        let quoted = quote_identifier(&table);
        // Locked against writers, so that no row is inserted between the check and the addition.
        let lock = format!("LOCK TABLE {{schema}}.{quoted} IN SHARE MODE");
        let add = format!("ALTER PUBLICATION {name} ADD TABLE {{schema}}.{quoted}");
        let statements = if whole_schemas { lock } else { format!("{lock}; {add}") };
        transaction
            .batch_execute(&tenant.sql(&statements))
            .await
            .with_context(|| format!("cannot add {}.{table} to the publication", tenant.schema))?;
        let any_row = tenant.sql(&format!("SELECT FROM {{schema}}.{quoted} LIMIT 1"));
        included.has_rows |= !transaction.query_typed(&any_row, &[]).await?.is_empty();
        included.added.push(table);
    }
    if whole_schemas {
        transaction
            .batch_execute(&tenant.sql(&format!("ALTER PUBLICATION {name} ADD TABLES IN SCHEMA {{schema}}")))
            .await
            .with_context(|| format!("cannot add the schema {} to the publication", tenant.schema))?;
    }
    Ok(included)
}

/// Sets the replica identity of a table outside of tenants' schemas, and adds it to the publication, where it lacks them. The
/// role owns the table.
pub(crate) async fn publish_outside(transaction: &Transaction<'_>, publication: &str, table: &Table) -> Result<()> {
    let quoted = format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.table));
    if !table.is_identified() {
        let identity = table.required_identity();
        transaction
            .batch_execute(&format!("ALTER TABLE {quoted} REPLICA IDENTITY {identity}"))
            .await
            .with_context(|| format!("cannot set REPLICA IDENTITY {identity} of {quoted}"))?;
    }
    if !table.published {
        prepare(transaction, publication).await?;
        // Locked against writers: a row that is written before the addition must be visible to all snapshots after it.
        transaction
            .batch_execute(&format!(
                "LOCK TABLE {quoted} IN SHARE MODE; ALTER PUBLICATION {} ADD TABLE {quoted}",
                quote_identifier(publication)
            ))
            .await
            .with_context(|| format!("cannot add {quoted} to the publication {publication}"))?;
    }
    Ok(())
}

/// [`include()`]. Recreates the tenant's streams when an added table has rows.
pub(crate) async fn include_whole(
    transaction: &Transaction<'_>,
    publication: &str,
    tenant: &Tenant,
) -> Result<Included> {
    let included = include(transaction, publication, tenant).await?;
    if included.has_rows {
        tracing::warn!(
            tenant = tenant.name,
            reason = "a table with rows was added to the publication",
            "streams recreated"
        );
        tenants::resync_within(transaction, &[&tenant.name]).await?;
    }
    Ok(included)
}

/// Adds missing tables of all tenants to the publication, as [`migrations::up`] does. Returns the tenants that changed. After
/// an error, the changes of the tenants before the failed one stay.
pub async fn sync(database: &Database, publication: &str) -> Result<Vec<(Tenant, Included)>> {
    ensure(database, publication).await?;
    let mut client = database.connect_dedicated().await?;
    let mut done = Vec::new();
    for tenant in tenants::list(database).await? {
        let transaction = client.transaction().await?;
        migrations::lock_for_transaction(&transaction).await?;
        let included = include_whole(&transaction, publication, &tenant).await?;
        transaction.commit().await?;
        if included != Included::default() {
            done.push((tenant, included));
        }
    }
    Ok(done)
}

/// A tenant's table or one that a rule names, and its state in the publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// `None` for a table that is in no tenant's schema.
    pub tenant: Option<String>,
    pub schema: String,
    pub table: String,
    pub published: bool,
    /// `full`; with `default`, `index` or `nothing` old rows lack columns, or updates fail.
    pub replica_identity: String,
    /// Whether it has virtual generated columns (Postgres 18), which exclude the identity `full`.
    pub virtual_columns: bool,
    /// Whether the engine's role owns it, as changes to its identity require.
    #[serde(skip)]
    pub is_ours: bool,
    #[serde(skip)]
    pub owner: String,
    /// Whether it is neither unlogged nor temporary.
    #[serde(skip)]
    is_permanent: bool,
}

impl Table {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            tenant: row.try_get("tenant")?,
            schema: row.try_get("schema")?,
            table: row.try_get("name")?,
            published: row.try_get("is_published")?,
            replica_identity: row.try_get("identity")?,
            virtual_columns: row.try_get("has_virtual_columns")?,
            is_ours: row.try_get("is_ours")?,
            owner: row.try_get("owner")?,
            is_permanent: row.try_get("is_permanent")?,
        })
    }

    /// Whether it has the required replica identity.
    pub fn is_identified(&self) -> bool {
        (self.replica_identity == "full") != self.virtual_columns
    }

    /// The replica identity that it needs.
    pub(crate) fn required_identity(&self) -> &'static str {
        if self.virtual_columns { "default" } else { "full" }
    }

    /// Schema and name.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

/// The coverage of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    pub exists: bool,
    /// Whether this role publishes whole schemas, which include new tables.
    pub whole_schemas: bool,
    /// Which of `insert`, `update`, `delete` and `truncate` it publishes.
    pub operations: Vec<&'static str>,
    /// Whether it publishes partitions under their root's name.
    pub via_partition_root: bool,
    /// The tables of all tenants, and those that rules name.
    pub tables: Vec<Table>,
}

impl Coverage {
    /// Tables whose changes no stream contains.
    pub fn missing(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.published)
    }

    /// Tables without the required replica identity: the log lacks their old rows, or updates fail.
    pub fn unidentified(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.is_identified())
    }

    /// Whether it publishes all operations on all tables.
    pub fn is_complete(&self) -> bool {
        self.exists
            && self.operations.len() == OPERATIONS.len()
            && self.via_partition_root
            && self.missing().next().is_none()
            && self.unidentified().next().is_none()
    }
}

const OPERATIONS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// Reads the coverage of the publication: the tables of tenants, and those outside of their schemas that are named by schema and
/// name.
pub async fn coverage(database: &Database, publication: &str, outside: &[(&str, &str)]) -> Result<Coverage> {
    let name: [Param<'_>; 1] = [(&publication, Type::TEXT)];
    let every_schema: Option<&str> = None;
    let rights = database
        .query_opt(&sql!("postgres/publication_rights"), &name)
        .await?
        .context("reading the role's privileges returned no row")?;
    let row = database.query_opt(&sql!("postgres/publication_get"), &name).await?;
    let rows = database
        .query(
            &sql!("postgres/publication_coverage"),
            &[(&publication, Type::TEXT), (&every_schema, Type::TEXT)],
        )
        .await
        .context(tenants::UNREADABLE)?;
    let flag = |column: &str| row.as_ref().map_or(Ok(false), |row| row.try_get(column));
    let mut operations = Vec::new();
    for operation in OPERATIONS {
        if flag(&format!("pub{operation}"))? {
            operations.push(operation);
        }
    }
    let mut tables = rows.iter().map(Table::from_row).collect::<Result<Vec<_>>>()?;
    tables.retain(|table| table.is_permanent);
    tables.extend(outside_coverage(database, publication, outside).await?);
    Ok(Coverage {
        exists: row.is_some(),
        whole_schemas: rights.try_get("whole_schemas")?,
        operations,
        via_partition_root: flag("pubviaroot")?,
        tables,
    })
}

/// The tables outside of tenants' schemas that are named by schema and name, and those of their partitions that lack the required
/// replica identity.
pub(crate) async fn outside_coverage(
    database: &Database,
    publication: &str,
    outside: &[(&str, &str)],
) -> Result<Vec<Table>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = outside.iter().copied().unzip();
    let params: [Param<'_>; 3] = [
        (&publication, Type::TEXT),
        (&schemas, Type::TEXT_ARRAY),
        (&names, Type::TEXT_ARRAY),
    ];
    let rows = database.query(&sql!("postgres/outside_coverage"), &params).await?;
    let mut tables = rows.iter().map(Table::from_row).collect::<Result<Vec<_>>>()?;
    tables.retain(|table| table.is_permanent);
    Ok(tables)
}

/// Sets the required replica identity of every table of the tenant.
async fn set_identities(
    transaction: &Transaction<'_>,
    publication: &str,
    tenant: &Tenant,
    owners: Owners,
) -> Result<Included> {
    let rows = transaction
        .query_typed(
            &sql!("postgres/publication_coverage"),
            &[(&publication, Type::TEXT), (&tenant.schema, Type::TEXT)],
        )
        .await?;
    let mut included = Included::default();
    for row in &rows {
        let table = Table::from_row(row)?;
        if table.is_identified() || (owners == Owners::Ours && !table.is_ours) {
            continue;
        }
        let (identity, changed) = if table.virtual_columns {
            ("DEFAULT", &mut included.keyed)
        } else {
            ("FULL", &mut included.identified)
        };
        let table = table.table;
        let quoted = quote_identifier(&table);
        transaction
            .batch_execute(&tenant.sql(&format!("ALTER TABLE {{schema}}.{quoted} REPLICA IDENTITY {identity}")))
            .await
            .with_context(|| format!("cannot set REPLICA IDENTITY {identity} of {}.{table}", tenant.schema))?;
        changed.push(table);
    }
    Ok(included)
}

/// Creates the publication and, where possible, the event trigger. Returns whether whole schemas can be published. The caller
/// holds the schema lock.
pub(crate) async fn prepare(transaction: &Transaction<'_>, publication: &str) -> Result<bool> {
    let rights = transaction
        .query_typed_one(&sql!("postgres/publication_rights"), &[(&publication, Type::TEXT)])
        .await?;
    let name = quote_identifier(publication);
    let knows_generated: bool = rights.try_get("knows_generated")?;
    if !rights.try_get::<_, bool>("publication_exists")? {
        // Since Postgres 18 a replica identity must not contain an unpublished column, so that tables with stored generated
        // columns could not be updated. Earlier releases never publish such columns and allow the updates.
        let generated = if knows_generated {
            ", publish_generated_columns = stored"
        } else {
            ""
        };
        // Rules name the partitioned table, so its changes are published under its name.
        transaction
            .batch_execute(&format!(
                "CREATE PUBLICATION {name} WITH (publish_via_partition_root = true{generated})"
            ))
            .await
            .with_context(|| {
                format!("cannot create the publication {publication}; the engine's role needs CREATE on the database")
            })?;
    } else if knows_generated && !rights.try_get::<_, bool>("publishes_generated")? {
        // The publication is older than an upgrade.
        transaction
            .batch_execute(&format!(
                "ALTER PUBLICATION {name} SET (publish_generated_columns = stored)"
            ))
            .await
            .with_context(|| format!("cannot publish stored generated columns in the publication {publication}"))?;
    }
    if rights.try_get::<_, bool>("lacks_commands")? {
        transaction
            .batch_execute(&format!("ALTER PUBLICATION {name} ADD TABLE {COMMANDS}"))
            .await
            .with_context(|| format!("cannot add {COMMANDS} to the publication {publication}"))?;
    }
    let whole_schemas: bool = rights.try_get("whole_schemas")?;
    if whole_schemas {
        transaction
            .batch_execute(&sql!("postgres/full_identity_function"))
            .await
            .context("cannot create the function posduif.full_identity")?;
        if !rights.try_get::<_, bool>("trigger_exists")? {
            transaction
                .batch_execute(&sql!("postgres/full_identity_trigger"))
                .await
                .context("cannot create the event trigger posduif_full_identity")?;
        }
    }
    Ok(whole_schemas)
}
