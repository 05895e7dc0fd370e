//! Tenants: each has a schema `tenant_<name>` with its own tables, and a row in `posduif.tenants`.

use anyhow::{Context, bail};
use tokio_postgres::types::{PgLsn, Type};

use super::{Database, Error, migrations, publication, quote_identifier};
use crate::config;
use crate::replication::pipeline::{DROPPED_PREFIX, STATE_PREFIX, TENANT_PREFIX};

/// A tenant's state while it is delivered.
pub const ACTIVE: &str = "active";

/// A tenant's state while it is published but not delivered.
pub const PAUSED: &str = "paused";

/// A tenant's name and schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// What people and tokens call it, for example `demo`.
    pub name: String,
    /// The schema that holds its tables, for example `tenant_demo`.
    pub schema: String,
}

impl Tenant {
    /// The tenant of this name, whether or not it exists; `None` when no tenant can have this name.
    pub fn named(name: &str) -> Option<Self> {
        is_valid_name(name).then(|| Self {
            name: name.to_owned(),
            schema: format!("tenant_{name}"),
        })
    }

    /// A statement with `{schema}` replaced by this tenant's schema, quoted.
    pub fn sql(&self, statement: &str) -> String {
        statement.replace("{schema}", &quote_identifier(&self.schema))
    }
}

/// Whether a text can name a tenant: a letter, then up to 47 of a-z, 0-9 and _.
pub fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    matches!(bytes.next(), Some(b'a'..=b'z'))
        && name.len() <= 48
        && bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Makes a tenant: schema, tables, publication entry and directory row, in one transaction that also carries the
/// message `posduif.tenant`, on which the replicator makes the tenant's streams. Gives false when it existed already.
///
/// # Errors
/// When the name cannot be one, the control schema is missing, or Postgres refuses.
pub async fn create(database: &Database, replication: &config::Replication, name: &str) -> anyhow::Result<bool> {
    let Some(tenant) = Tenant::named(name) else {
        bail!("{name:?} cannot name a tenant: allowed are a letter and up to 47 of a-z, 0-9 and _");
    };
    let mut client = database.connect_alone().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    let inserted = transaction
        .execute_typed(
            include_str!("../../sql/tenant_insert.sql"),
            &[(&tenant.name, Type::TEXT), (&tenant.schema, Type::TEXT)],
        )
        .await
        .context("cannot register the tenant; `posduif migrate up` makes the tables that hold tenants")?;
    if inserted == 0 {
        return Ok(false);
    }
    transaction
        .batch_execute(&tenant.sql("CREATE SCHEMA {schema}"))
        .await
        .with_context(|| format!("cannot make the schema {}", tenant.schema))?;
    migrations::up_tenant(&transaction, &tenant).await?;
    publication::include(&transaction, &replication.publication, &tenant).await?;
    transaction
        .query_typed(
            include_str!("../../sql/tenant_announce.sql"),
            &[(&tenant.name, Type::TEXT)],
        )
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// The word for a tenant's state, in Postgres, in the log and in Redis.
pub fn state_name(paused: bool) -> &'static str {
    if paused { PAUSED } else { ACTIVE }
}

/// Pauses a tenant's delivery or lets it go on; what is published meanwhile waits in its streams. Gives false when
/// there is no such tenant.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn set_paused(database: &Database, name: &str, paused: bool) -> Result<bool, Error> {
    let state = state_name(paused);
    let rows = database
        .query(
            include_str!("../../sql/tenant_set_state.sql"),
            &[(&name, Type::TEXT), (&state, Type::TEXT), (&STATE_PREFIX, Type::TEXT)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Lets anybody register in a tenant, or nobody. Gives false when there is no such tenant.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn set_registration(database: &Database, name: &str, open: bool) -> Result<bool, Error> {
    let rows = database
        .query(
            include_str!("../../sql/tenant_set_registration.sql"),
            &[(&name, Type::TEXT), (&open, Type::BOOL)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Begins a tenant's streams anew: every device of it takes a snapshot, every other reader is told by a `reset`. Gives
/// false when there is no such tenant.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn resync(database: &Database, name: &str) -> Result<bool, Error> {
    let rows = database
        .query(
            include_str!("../../sql/tenant_rebirth.sql"),
            &[(&name, Type::TEXT), (&TENANT_PREFIX, Type::TEXT)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Drops a tenant: its schema with all rows, its credentials and devices. Gives the place in the log behind which
/// nothing is published for it, or `None` when there was no such tenant.
///
/// # Errors
/// When Postgres refuses, for example because others hold locks on its tables.
pub async fn drop(database: &Database, name: &str) -> anyhow::Result<Option<PgLsn>> {
    let Some(tenant) = Tenant::named(name) else {
        return Ok(None);
    };
    let mut client = database.connect_alone().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    let rows = transaction
        .query_typed(
            include_str!("../../sql/tenant_drop.sql"),
            &[(&name, Type::TEXT), (&DROPPED_PREFIX, Type::TEXT)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    transaction
        .batch_execute(&tenant.sql("DROP SCHEMA IF EXISTS {schema} CASCADE"))
        .await
        .with_context(|| format!("cannot drop the schema {}", tenant.schema))?;
    transaction
        .query_typed(
            include_str!("../../sql/migrations_forget.sql"),
            &[(&tenant.schema, Type::TEXT)],
        )
        .await?;
    let lsn: String = row.try_get("lsn")?;
    transaction.commit().await?;
    lsn.parse()
        .map(Some)
        .map_err(|_| anyhow::anyhow!("Postgres gave {lsn:?} as a place in the log"))
}

/// [`resync`] as a part of a transaction.
pub(super) async fn resync_within(transaction: &tokio_postgres::Transaction<'_>, name: &str) -> anyhow::Result<()> {
    transaction
        .query_typed(
            include_str!("../../sql/tenant_rebirth.sql"),
            &[(&name, Type::TEXT), (&TENANT_PREFIX, Type::TEXT)],
        )
        .await
        .with_context(|| format!("cannot begin the streams of tenant {name} anew"))?;
    Ok(())
}

/// Devices of a tenant that are not revoked.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn count_devices(database: &Database, name: &str) -> Result<i64, Error> {
    let row = database
        .query_opt(
            include_str!("../../sql/tenant_device_count.sql"),
            &[(&name, Type::TEXT)],
        )
        .await?;
    Ok(row.map_or(0, |row| row.get("count")))
}

/// A tenant as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name and schema.
    pub tenant: Tenant,
    /// `active` or `paused`.
    pub state: String,
}

/// All tenants with their state, by name.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn directory(database: &Database) -> Result<Vec<Listed>, Error> {
    let rows = database.query(include_str!("../../sql/tenant_list.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Listed {
                tenant: Tenant {
                    name: row.try_get("name")?,
                    schema: row.try_get("schema_name")?,
                },
                state: row.try_get("state")?,
            })
        })
        .collect()
}

/// All tenants, by name.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn list(database: &Database) -> Result<Vec<Tenant>, Error> {
    Ok(directory(database)
        .await?
        .into_iter()
        .map(|listed| listed.tenant)
        .collect())
}

/// The tenant of this name, if it exists.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn find(database: &Database, name: &str) -> Result<Option<Tenant>, Error> {
    // An impossible name (one with a NUL, say) must not reach Postgres.
    let Some(tenant) = Tenant::named(name) else {
        return Ok(None);
    };
    let row = database
        .query_opt(include_str!("../../sql/tenant_find.sql"), &[(&tenant.name, Type::TEXT)])
        .await?;
    Ok(row.map(|_| tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tenants() {
        for good in ["a", "demo", "a_1", &"x".repeat(48)] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "1a", "_a", "A", "a-b", "a b", "a\0", "ä", &"x".repeat(49)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn statements_name_the_quoted_schema() {
        let tenant = Tenant::named("demo").expect("a valid name");
        assert_eq!(
            tenant.sql("SELECT FROM {schema}.users"),
            "SELECT FROM \"tenant_demo\".users"
        );
    }
}
