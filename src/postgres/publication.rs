//! The publication: one for all tenants, made before the slot and never dropped, because a slot that stands before
//! its publication's making can never decode.
//!
//! A superuser on Postgres 15 or newer publishes whole schemas, so that a tenant's new table joins by itself. Such a
//! table has no replica identity to speak of, and its owner's first UPDATE would fail; therefore an event trigger
//! gives it REPLICA IDENTITY FULL in the transaction that makes it, and the trigger exists before any schema joins.
//! Everybody else publishes a list of tables, and a new table joins with the next `posduif migrate up`; when it has rows
//! by then, the tenant's streams begin anew.

use anyhow::{Context, Result};
use serde::Serialize;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use crate::core::tenant::Tenant;
use crate::core::tenant::quote_identifier;
use crate::postgres::sql;
use crate::postgres::tenants;
use crate::postgres::{Database, Param, migrations};

/// Makes the publication, without tables, unless it exists; and the event trigger where that is possible.
///
/// # Errors
/// When Postgres refuses, for example for want of the right to CREATE in the database.
pub async fn ensure(database: &Database, publication: &str) -> Result<()> {
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    migrations::bootstrap(&transaction).await?;
    prepare(&transaction, publication).await?;
    transaction.commit().await?;
    Ok(())
}

/// What a tenant's tables needed to be published whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Included {
    /// Tables that joined the publication.
    pub added: Vec<String>,
    /// Tables, partitions too, that got REPLICA IDENTITY FULL.
    pub identified: Vec<String>,
    /// Those that went back to the identity of their primary key, because they have virtual generated columns.
    pub keyed: Vec<String>,
    /// Whether one of those that joined holds rows already, which no stream has.
    pub has_rows: bool,
}

/// Puts all of a tenant's tables into the publication, making that first if need be. The caller holds the schema lock.
///
/// # Errors
/// When Postgres refuses, for example because a table has another owner.
pub(crate) async fn include(transaction: &Transaction<'_>, publication: &str, tenant: &Tenant) -> Result<Included> {
    let whole_schemas = prepare(transaction, publication).await?;
    let params = [
        (&publication as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT),
        (&tenant.schema, Type::TEXT),
    ];
    // Before they join: without identity a published table's owner cannot update.
    let mut included = identity(transaction, tenant).await?;
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
        let table: String = row.try_get("relname")?;
        let quoted = quote_identifier(&table);
        // Locked against writers, so that no row comes between the look and the joining.
        let lock = format!("LOCK TABLE {{schema}}.{quoted} IN SHARE MODE");
        let join = format!("ALTER PUBLICATION {name} ADD TABLE {{schema}}.{quoted}");
        let statements = if whole_schemas { lock } else { format!("{lock}; {join}") };
        transaction
            .batch_execute(&tenant.sql(&statements))
            .await
            .with_context(|| format!("cannot add {}.{table} to the publication", tenant.schema))?;
        let look = tenant.sql(&format!("SELECT FROM {{schema}}.{quoted} LIMIT 1"));
        included.has_rows |= !transaction.query_typed(&look, &[]).await?.is_empty();
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

/// [`include()`], and the tenant's streams begin anew when they lack rows of a table that joined.
pub(crate) async fn include_whole(
    transaction: &Transaction<'_>,
    publication: &str,
    tenant: &Tenant,
) -> Result<Included> {
    let included = include(transaction, publication, tenant).await?;
    if included.has_rows {
        tracing::warn!(
            tenant = tenant.name,
            "a table with rows joins the publication: the tenant's streams begin anew"
        );
        tenants::resync_within(transaction, &tenant.name).await?;
    }
    Ok(included)
}

/// Puts into the publication whatever of all tenants it lacks, as [`migrations::up`] does; gives the tenants for which
/// something was to be done, with what it was.
///
/// # Errors
/// Names the table that failed; tenants before it stay as they are by then.
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

/// A tenant's table as the publication has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The tenant's name.
    pub tenant: String,
    /// Its schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// Whether the publication has it.
    pub published: bool,
    /// `full`; or `default`, `index` or `nothing`, with which changes lack columns, or fail.
    pub replica_identity: String,
    /// Whether it has virtual generated columns (Postgres 18), with which it must not have the identity `full`.
    pub virtual_columns: bool,
    /// Whether our role owns it, as the changes to it ask for.
    #[serde(skip)]
    pub is_ours: bool,
}

impl Table {
    /// Whether it has the identity that it should have.
    pub fn is_identified(&self) -> bool {
        (self.replica_identity == "full") != self.virtual_columns
    }
}

/// What a publication covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// Whether it exists.
    pub exists: bool,
    /// Whether this role publishes whole schemas, so that new tables join by themselves.
    pub whole_schemas: bool,
    /// Which of `insert`, `update`, `delete` and `truncate` it publishes.
    pub operations: Vec<&'static str>,
    /// Whether it publishes partitions under their root's name.
    pub via_partition_root: bool,
    /// All tenants' tables.
    pub tables: Vec<Table>,
}

impl Coverage {
    /// Tables that no stream hears of.
    pub fn missing(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.published)
    }

    /// Tables that have not the identity that they should have: the log does not carry their old rows, or they refuse updates.
    pub fn unidentified(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.is_identified())
    }

    /// Whether it publishes all that there is.
    pub fn is_complete(&self) -> bool {
        self.exists
            && self.operations.len() == OPERATIONS.len()
            && self.via_partition_root
            && self.missing().next().is_none()
            && self.unidentified().next().is_none()
    }
}

/// What a publication can publish.
const OPERATIONS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// What the publication covers.
///
/// # Errors
/// When Postgres does not answer, or has no control schema yet.
pub async fn coverage(database: &Database, publication: &str) -> Result<Coverage> {
    let name: [Param<'_>; 1] = [(&publication, Type::TEXT)];
    let rights = database
        .query_opt(&sql!("postgres/publication_rights"), &name)
        .await?
        .context("Postgres says nothing of our rights")?;
    let publication = database.query_opt(&sql!("postgres/publication_get"), &name).await?;
    let rows = database
        .query(&sql!("postgres/publication_coverage"), &name)
        .await
        .context(tenants::UNREADABLE)?;
    let flag = |column: &str| publication.as_ref().is_some_and(|row| row.get(column));
    let flags = ["pubinsert", "pubupdate", "pubdelete", "pubtruncate"].map(flag);
    let tables = rows.iter().map(|row| {
        Ok(Table {
            tenant: row.try_get("tenant")?,
            schema: row.try_get("schema")?,
            table: row.try_get("name")?,
            published: row.try_get("is_published")?,
            replica_identity: row.try_get("identity")?,
            virtual_columns: row.try_get("has_virtual_columns")?,
            is_ours: row.try_get("is_ours")?,
        })
    });
    Ok(Coverage {
        exists: publication.is_some(),
        whole_schemas: rights.try_get("whole_schemas")?,
        operations: OPERATIONS
            .into_iter()
            .zip(flags)
            .filter_map(|(name, is_published)| is_published.then_some(name))
            .collect(),
        via_partition_root: flag("pubviaroot"),
        tables: tables.collect::<Result<_>>()?,
    })
}

/// Gives every table of the tenant the replica identity that it should have, and says which needed it.
async fn identity(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<Included> {
    let tables = transaction
        .query_typed(
            &sql!("postgres/tables_of_other_identity"),
            &[(&tenant.schema, Type::TEXT)],
        )
        .await?;
    let mut included = Included::default();
    for row in tables {
        let table: String = row.try_get("relname")?;
        let identity: &str = row.try_get("identity")?;
        let quoted = quote_identifier(&table);
        transaction
            .batch_execute(&tenant.sql(&format!("ALTER TABLE {{schema}}.{quoted} REPLICA IDENTITY {identity}")))
            .await
            .with_context(|| format!("cannot give {}.{table} REPLICA IDENTITY {identity}", tenant.schema))?;
        match identity {
            "FULL" => included.identified.push(table),
            _ => included.keyed.push(table),
        }
    }
    Ok(included)
}

/// Makes the publication and, where possible, the event trigger. Gives whether whole schemas can be published. The
/// caller holds the schema lock.
pub(crate) async fn prepare(transaction: &Transaction<'_>, publication: &str) -> Result<bool> {
    let rights = transaction
        .query_typed_one(&sql!("postgres/publication_rights"), &[(&publication, Type::TEXT)])
        .await?;
    let name = quote_identifier(publication);
    let knows_generated: bool = rights.try_get("knows_generated")?;
    if !rights.try_get::<_, bool>("publication_exists")? {
        // From Postgres 18 on a replica identity must not hold a column that is not published, so that owners of tables
        // with stored generated columns could not update. Before, such columns are never published, and nobody minds.
        let generated = if knows_generated {
            ", publish_generated_columns = stored"
        } else {
            ""
        };
        // Rules name the partitioned table, so changes are published under its name, not under each partition's.
        transaction
            .batch_execute(&format!(
                "CREATE PUBLICATION {name} WITH (publish_via_partition_root = true{generated})"
            ))
            .await
            .with_context(|| {
                format!("cannot make the publication {publication}; the engine's role needs CREATE on the database")
            })?;
    } else if knows_generated && !rights.try_get::<_, bool>("publishes_generated")? {
        // Made before an upgrade.
        transaction
            .batch_execute(&format!(
                "ALTER PUBLICATION {name} SET (publish_generated_columns = stored)"
            ))
            .await
            .with_context(|| format!("cannot let the publication {publication} publish stored generated columns"))?;
    }
    let whole_schemas: bool = rights.try_get("whole_schemas")?;
    if whole_schemas {
        transaction
            .batch_execute(&sql!("postgres/full_identity_function"))
            .await
            .context("cannot make the function posduif.full_identity")?;
        if !rights.try_get::<_, bool>("trigger_exists")? {
            transaction
                .batch_execute(&sql!("postgres/full_identity_trigger"))
                .await
                .context("cannot make the event trigger posduif_full_identity")?;
        }
    }
    Ok(whole_schemas)
}
