//! The publication: one for all tenants, made before the slot and never dropped, because a slot that stands before
//! its publication's making can never decode.
//!
//! A superuser on Postgres 15 or newer publishes whole schemas, so that a tenant's new table joins by itself. Such a
//! table has no replica identity to speak of, and its owner's first UPDATE would fail; therefore an event trigger
//! gives it REPLICA IDENTITY FULL in the transaction that makes it, and the trigger exists before any schema joins.
//! Everybody else publishes a list of tables, and a new table joins with the next `posduif migrate up`; when it has rows
//! by then, the tenant's streams begin anew.

use anyhow::{Context, Result};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::tenants::Tenant;
use super::{Database, migrations, quote_identifier};

/// Makes the publication, without tables, unless it exists; and the event trigger where that is possible.
///
/// # Errors
/// When Postgres refuses, for example for want of the right to CREATE in the database.
pub async fn ensure(database: &Database, publication: &str) -> Result<()> {
    let mut client = database.connect_alone().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    prepare(&transaction, publication).await?;
    transaction.commit().await?;
    Ok(())
}

/// Puts all of a tenant's tables into the publication, making that first if need be; gives whether a table joined that
/// holds rows already, which no stream has. The caller holds the schema lock.
///
/// # Errors
/// When Postgres refuses, for example because a table has another owner.
pub(super) async fn include(transaction: &Transaction<'_>, publication: &str, tenant: &Tenant) -> Result<bool> {
    let whole_schemas = prepare(transaction, publication).await?;
    let params = [
        (&publication as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT),
        (&tenant.schema, Type::TEXT),
    ];
    if whole_schemas {
        let present = transaction
            .query_typed(include_str!("../../sql/publication_has_schema.sql"), &params)
            .await?;
        if present.is_empty() {
            // Tables that were in the schema before have to have their identity first; see `identity`.
            identity(transaction, tenant).await?;
            let name = quote_identifier(publication);
            transaction
                .batch_execute(&tenant.sql(&format!("ALTER PUBLICATION {name} ADD TABLES IN SCHEMA {{schema}}")))
                .await
                .with_context(|| format!("cannot add the schema {} to the publication", tenant.schema))?;
        }
        return Ok(false);
    }
    identity(transaction, tenant).await?;
    let missing = transaction
        .query_typed(include_str!("../../sql/publication_missing_tables.sql"), &params)
        .await?;
    let mut has_rows = false;
    for row in missing {
        let table: String = row.try_get("relname")?;
        let (name, quoted) = (quote_identifier(publication), quote_identifier(&table));
        // Locked against writers, so that no row comes between the look and the joining.
        let join = format!(
            "LOCK TABLE {{schema}}.{quoted} IN SHARE MODE; ALTER PUBLICATION {name} ADD TABLE {{schema}}.{quoted}"
        );
        transaction
            .batch_execute(&tenant.sql(&join))
            .await
            .with_context(|| format!("cannot add {}.{table} to the publication", tenant.schema))?;
        let look = tenant.sql(&format!("SELECT FROM {{schema}}.{quoted} LIMIT 1"));
        has_rows |= !transaction.query_typed(&look, &[]).await?.is_empty();
    }
    Ok(has_rows)
}

/// Gives every table of the tenant REPLICA IDENTITY FULL, virtual generated columns permitting. Without identity a
/// published table's owner cannot update.
async fn identity(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<()> {
    let tables = transaction
        .query_typed(
            include_str!("../../sql/tables_without_full_identity.sql"),
            &[(&tenant.schema, Type::TEXT)],
        )
        .await?;
    for row in tables {
        let table: String = row.try_get("relname")?;
        let quoted = quote_identifier(&table);
        transaction
            .batch_execute(&tenant.sql(&format!("ALTER TABLE {{schema}}.{quoted} REPLICA IDENTITY FULL")))
            .await
            .with_context(|| format!("cannot give {}.{table} REPLICA IDENTITY FULL", tenant.schema))?;
    }
    Ok(())
}

/// Makes the publication and, where possible, the event trigger. Gives whether whole schemas can be published. The
/// caller holds the schema lock.
pub(super) async fn prepare(transaction: &Transaction<'_>, publication: &str) -> Result<bool> {
    let rights = transaction
        .query_typed_one(
            include_str!("../../sql/publication_rights.sql"),
            &[(&publication, Type::TEXT)],
        )
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
            .batch_execute(include_str!("../../sql/full_identity_function.sql"))
            .await
            .context("cannot make the function posduif.full_identity")?;
        if !rights.try_get::<_, bool>("trigger_exists")? {
            transaction
                .batch_execute(include_str!("../../sql/full_identity_trigger.sql"))
                .await
                .context("cannot make the event trigger posduif_full_identity")?;
        }
    }
    Ok(whole_schemas)
}
