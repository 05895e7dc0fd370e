//! Tenants: each has a schema `tenant_<name>` with its own tables, and a row in `posduif.tenants`.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio_postgres::types::{PgLsn, Type};
use uuid::Uuid;

use crate::config;
use crate::config::lane::LaneName;
use crate::contract::control::{CREATE_TENANT, Command, DROP_TENANT, RECREATE_STREAM, SET_STATE};
use crate::contract::stream_name::Target;
use crate::core::lane;
use crate::core::tenant::{SCHEMA_MISSING, Tenant, is_valid_name, quote_identifier, state_name};
use crate::core::time::Timestamp;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, Error, migrations, publication, sql};

/// Context of an error while the tenants are read.
pub const UNREADABLE: &str = "cannot read the tenants; `posduif migrate up` creates the tables of the control schema";

/// Creates a tenant: schema, tables, publication entry and directory row, in one transaction with the command on which the
/// replicator of its lane creates the tenant's streams. Returns false when the tenant exists.
pub async fn create(
    database: &Database,
    replication: &config::Replication,
    name: &str,
    lane: &str,
) -> anyhow::Result<bool> {
    let Some(tenant) = Tenant::named(name) else {
        bail!("{name:?} is no valid tenant name: allowed are a letter and up to 47 of a-z, 0-9 and _");
    };
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    let inserted = transaction
        .execute_typed(
            &sql!("postgres/tenant_insert"),
            &[
                (&tenant.name, Type::TEXT),
                (&tenant.schema, Type::TEXT),
                (&lane, Type::TEXT),
            ],
        )
        .await
        .context("cannot register the tenant; `posduif migrate up` creates the tables of the control schema")?;
    if inserted == 0 {
        transaction.rollback().await?;
        if let Some(listed) = registered(database, &tenant.name).await? {
            listed.check()?;
        }
        return Ok(false);
    }
    transaction
        .batch_execute(&tenant.sql("CREATE SCHEMA {schema}"))
        .await
        .with_context(|| format!("cannot create the schema {}", tenant.schema))?;
    // A former schema of this name may have been dropped by SQL, which leaves its version behind.
    migrations::forget(&transaction, &tenant).await?;
    migrations::up_tenant(&transaction, &tenant).await?;
    publication::include(&transaction, &replication.publication, &tenant).await?;
    let announcement = Command::CreateTenant {
        tenant: tenant.name.as_str().into(),
        generation: 1,
        is_paused: false,
        lane: lane.into(),
    };
    send_within(&transaction, &announcement).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Pauses or resumes a tenant's delivery; changes that are published meanwhile stay in its streams. Returns false when there is
/// no such tenant.
pub async fn set_paused(database: &Database, name: &str, paused: bool, by: &Actor) -> Result<bool, Error> {
    let state = state_name(paused);
    let [actor, address] = by.params();
    let rows = database
        .query(
            &sql!("postgres/tenant_set_state"),
            &[
                (&name, Type::TEXT),
                (&state, Type::TEXT),
                (&SET_STATE, Type::TEXT),
                actor,
                address,
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Opens or closes the registration of a tenant. Returns false when there is no such tenant.
pub async fn set_registration(database: &Database, name: &str, open: bool) -> Result<bool, Error> {
    let rows = database
        .query(
            &sql!("postgres/tenant_set_registration"),
            &[(&name, Type::TEXT), (&open, Type::BOOL)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Recreates a tenant's streams: every device takes a snapshot, every other reader receives a `reset`. Returns the LSN of the
/// request, or `None` when there is no such tenant.
pub async fn resync(database: &Database, name: &str) -> Result<Option<PgLsn>, Error> {
    let row = database
        .query_opt(
            &sql!("postgres/tenant_resync"),
            &[(&[name].as_slice(), Type::TEXT_ARRAY), (&CREATE_TENANT, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.try_get("lsn")).transpose()?)
}

/// Moves a tenant to another lane: every device takes a snapshot, every other reader receives a `reset`. Returns the LSN of the
/// request, or `None` when there is no such tenant, or it is in that lane.
pub async fn move_to(database: &Database, name: &str, lane: &str) -> Result<Option<PgLsn>, Error> {
    let row = database
        .query_opt(
            &sql!("postgres/tenant_move"),
            &[(&name, Type::TEXT), (&lane, Type::TEXT), (&CREATE_TENANT, Type::TEXT)],
        )
        .await?;
    Ok(row.map(|row| row.try_get("lsn")).transpose()?)
}

/// The tenants that are not in the main lane, with their lane.
pub async fn in_other_lanes(database: &Database) -> Result<HashMap<String, Arc<str>>, Error> {
    let rows = database
        .query(&sql!("postgres/tenant_lanes"), &[(&lane::MAIN, Type::TEXT)])
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, row.try_get::<_, String>("lane")?.into())))
        .collect()
}

/// Recreates a user's inbox: each device of the user takes a snapshot, every other reader receives a `reset`. Returns the LSN of
/// the request.
pub async fn resync_user(database: &Database, tenant: &Tenant, user: Uuid) -> Result<PgLsn, Error> {
    let inbox = Target::Inbox(tenant.name.as_str().into(), user);
    send(database, &Command::RecreateStream(inbox)).await
}

/// A rebuild that was requested through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuild {
    /// The LSN of the request.
    pub lsn: PgLsn,
    /// Recreated inboxes: one for each user, deleted ones included.
    pub inboxes: i64,
    /// The tenant's next generation.
    pub generation: i64,
}

/// Requests a rebuild of a tenant's streams: recreates the inbox of each user and `shared`, and removes the given streams, of
/// which `changes` is recreated. One transaction carries all requests, the next generation last, so that every device takes a
/// snapshot. Returns `None` when there is no such tenant.
pub async fn rebuild(database: &Database, name: &str, gone: &[Target]) -> anyhow::Result<Option<Rebuild>> {
    let Some(tenant) = Tenant::named(name) else {
        return Ok(None);
    };
    let shared = Target::Shared(name.into());
    // As many commands as users may take longer than a statement of the pool may.
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    for target in gone.iter().chain([&shared]) {
        send_within(&transaction, &Command::RemoveStream(target.clone())).await?;
    }
    let inboxes = transaction
        .query_typed(
            &sql!("postgres/tenant_inboxes_recreate", tenant),
            &[(&name, Type::TEXT), (&RECREATE_STREAM, Type::TEXT)],
        )
        .await
        .with_context(|| format!("cannot list the users of tenant {name}"))?;
    let next = transaction
        .query_typed(
            &sql!("postgres/tenant_resync"),
            &[(&[name].as_slice(), Type::TEXT_ARRAY), (&CREATE_TENANT, Type::TEXT)],
        )
        .await?;
    let Some(next) = next.first() else { return Ok(None) };
    let rebuild = Rebuild {
        lsn: next.try_get("lsn")?,
        inboxes: inboxes.first().map_or(Ok(0), |row| row.try_get("inboxes"))?,
        generation: next.try_get("generation")?,
    };
    transaction.commit().await?;
    Ok(Some(rebuild))
}

/// Sends a command to the engine by way of the WAL. Returns the LSN behind which it is executed.
pub async fn send(database: &Database, command: &Command) -> Result<PgLsn, Error> {
    let (name, arguments) = command.encode();
    let row = database
        .query_opt(
            &sql!("postgres/command_send"),
            &[
                (&[name].as_slice(), Type::TEXT_ARRAY),
                (&[arguments].as_slice(), Type::TEXT_ARRAY),
            ],
        )
        .await?;
    row.map_or(Ok(PgLsn::from(0)), |row| Ok(row.try_get("lsn")?))
}

/// [`send`] as a part of a transaction.
pub(crate) async fn send_within(
    transaction: &tokio_postgres::Transaction<'_>,
    command: &Command,
) -> anyhow::Result<PgLsn> {
    send_all_within(transaction, std::slice::from_ref(command)).await
}

/// [`send_within`] for several commands, in one statement.
pub(crate) async fn send_all_within(
    transaction: &tokio_postgres::Transaction<'_>,
    commands: &[Command],
) -> anyhow::Result<PgLsn> {
    let (names, arguments): (Vec<&str>, Vec<String>) = commands.iter().map(Command::encode).unzip();
    let row = transaction
        .query_typed_one(
            &sql!("postgres/command_send"),
            &[(&names, Type::TEXT_ARRAY), (&arguments, Type::TEXT_ARRAY)],
        )
        .await
        .with_context(|| format!("cannot send the command {}", names.first().unwrap_or(&"")))?;
    Ok(row.try_get("lsn")?)
}

/// Writes a row of a table again unchanged, so that all its readers receive it as a new row. Returns the LSN of the request, or
/// `None` when there is no such row.
pub async fn touch_rows(
    database: &Database,
    tenant: &Tenant,
    (schema, table): (&str, &str),
    id: &str,
) -> anyhow::Result<Option<PgLsn>> {
    let name = format!("{}.{}", quote_identifier(schema), quote_identifier(table));
    let columns = database
        .query_opt(&sql!("postgres/table_row_columns"), &[(&name, Type::TEXT)])
        .await
        .with_context(|| format!("cannot read the columns of the table {name}"))?;
    let Some(columns) = columns else { return Ok(None) };
    let id_type: String = columns.try_get("id_type")?;
    let column = quote_identifier(columns.try_get("free_column")?);
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    let retry = Command::Retry {
        tenant: tenant.name.as_str().into(),
    };
    let lsn = send_within(&transaction, &retry).await?;
    let condition = format!("id = ($1::text)::{id_type}");
    let row = transaction
        .query_typed(
            &format!("SELECT FROM {name} WHERE {condition} FOR UPDATE"),
            &[(&id, Type::TEXT)],
        )
        .await
        .with_context(|| format!("cannot read the row {id} of {name}"))?;
    if row.is_empty() {
        return Ok(None);
    }
    let written = transaction
        .execute_typed(
            &format!("UPDATE {name} SET {column} = {column} WHERE {condition}"),
            &[(&id, Type::TEXT)],
        )
        .await
        .with_context(|| format!("cannot update the row {id} of {name}"))?;
    if written == 0 {
        bail!("a trigger or a policy prevents the update of the row {id} of {name}");
    }
    transaction.commit().await?;
    Ok(Some(lsn))
}

/// Those of these users that the tenant does not have, not even deleted.
pub async fn unknown_users(database: &Database, tenant: &Tenant, users: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    let rows = database
        .query(
            &sql!("postgres/user_ids_unknown", tenant),
            &[(&users, Type::UUID_ARRAY)],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Drops a tenant: its schema with all rows, its credentials and devices. Returns the LSN after which nothing is published for
/// it, or `None` when there is no such tenant.
pub async fn drop(database: &Database, name: &str) -> anyhow::Result<Option<PgLsn>> {
    let Some(tenant) = Tenant::named(name) else {
        return Ok(None);
    };
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    let rows = transaction
        .query_typed(
            &sql!("postgres/tenant_drop"),
            &[(&name, Type::TEXT), (&DROP_TENANT, Type::TEXT)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    transaction
        .batch_execute(&tenant.sql("DROP SCHEMA IF EXISTS {schema} CASCADE"))
        .await
        .with_context(|| format!("cannot drop the schema {}", tenant.schema))?;
    migrations::forget(&transaction, &tenant).await?;
    let lsn = row.try_get("lsn")?;
    transaction.commit().await?;
    Ok(Some(lsn))
}

/// [`resync`] of several tenants as a part of a transaction, in one statement.
pub(crate) async fn resync_within(transaction: &tokio_postgres::Transaction<'_>, names: &[&str]) -> anyhow::Result<()> {
    transaction
        .query_typed(
            &sql!("postgres/tenant_resync"),
            &[(&names, Type::TEXT_ARRAY), (&CREATE_TENANT, Type::TEXT)],
        )
        .await
        .with_context(|| format!("cannot recreate the streams of the tenants {}", names.join(", ")))?;
    Ok(())
}

/// The number of a tenant's devices that are not revoked.
pub async fn count_devices(database: &Database, name: &str) -> Result<i64, Error> {
    let row = database
        .query_opt(&sql!("postgres/tenant_device_count"), &[(&name, Type::TEXT)])
        .await?;
    Ok(row.map_or(Ok(0), |row| row.try_get("count"))?)
}

/// What a tenant has, as Postgres knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantStats {
    /// `active` or `paused`.
    pub state: String,
    /// Counts its resyncs.
    pub generation: i64,
    /// Whether any client may register.
    pub registration_open: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Web users, disabled ones too.
    pub web_users: i64,
    /// Mobile users, disabled ones too.
    pub mobile_users: i64,
    /// Disabled users of either kind.
    pub disabled_users: i64,
    /// Devices that may sync.
    pub devices: i64,
    /// Devices that were revoked.
    pub revoked_devices: i64,
    /// Conflicts that are not resolved.
    pub open_conflicts: i64,
}

/// What a tenant has; `None` when there is no such tenant.
pub async fn tenant_stats(database: &Database, tenant: &Tenant) -> Result<Option<TenantStats>, Error> {
    let row = database
        .query_opt(&sql!("postgres/tenant_counts", tenant), &[(&tenant.name, Type::TEXT)])
        .await?;
    row.map(|row| {
        Ok(TenantStats {
            state: row.try_get("state")?,
            generation: row.try_get("generation")?,
            registration_open: row.try_get("registration_open")?,
            created_at: row.try_get("created_at")?,
            web_users: row.try_get("web")?,
            mobile_users: row.try_get("mobile")?,
            disabled_users: row.try_get("disabled")?,
            devices: row.try_get("enrolled")?,
            revoked_devices: row.try_get("revoked")?,
            open_conflicts: row.try_get("open_conflicts")?,
        })
    })
    .transpose()
}

/// A tenant as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name and schema.
    pub tenant: Tenant,
    /// `active`, `paused`, or [`SCHEMA_MISSING`].
    pub state: String,
    /// The lane that has its streams.
    pub lane: String,
}

impl Listed {
    /// Whether its schema exists.
    pub fn has_schema(&self) -> bool {
        self.state != SCHEMA_MISSING
    }

    /// # Errors
    /// When its schema is gone: says what can be done.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.has_schema() {
            return Ok(());
        }
        let Tenant { name, schema } = &self.tenant;
        bail!(
            "the schema {schema} of tenant {name} is missing: restore it from a backup, or remove the tenant with \
             `posduif tenant drop {name} --yes` and create it again"
        )
    }
}

/// All tenants that are registered, with their state, by name: also those whose schema is gone.
pub async fn directory(database: &Database) -> Result<Vec<Listed>, Error> {
    listed(database, None, None).await
}

/// The tenant of this name, also when its schema is gone.
pub async fn registered(database: &Database, name: &str) -> Result<Option<Listed>, Error> {
    // An impossible name (one with a NUL, say) must not reach Postgres.
    if !is_valid_name(name) {
        return Ok(None);
    }
    Ok(listed(database, Some(name), None).await?.pop())
}

async fn listed(database: &Database, name: Option<&str>, lane: Option<&str>) -> Result<Vec<Listed>, Error> {
    let sql = &sql!("postgres/tenant_list");
    let rows = database.query(sql, &[(&name, Type::TEXT), (&lane, Type::TEXT)]).await?;
    rows.iter()
        .map(|row| {
            Ok(Listed {
                tenant: Tenant {
                    name: row.try_get("name")?,
                    schema: row.try_get("schema_name")?,
                },
                state: row.try_get("state")?,
                lane: row.try_get("lane")?,
            })
        })
        .collect()
}

/// The tables of migrations that were dropped or renamed, as `schema.table`: of one tenant or of all. Tenants without a schema
/// are skipped.
pub async fn missing_tables(database: &Database, name: Option<&str>) -> Result<Vec<String>, Error> {
    let sql = &sql!("postgres/tenant_tables");
    let mut missing = Vec::new();
    for row in database.query(sql, &[(&name, Type::TEXT)]).await? {
        let schema: String = row.try_get("schema_name")?;
        let found: Vec<String> = row.try_get("tables")?;
        let wanted = migrations::tenant_tables(row.try_get("version")?);
        let gone = wanted
            .into_iter()
            .filter(|table| !found.iter().any(|found| found == table));
        missing.extend(gone.map(|table| format!("{schema}.{table}")));
    }
    Ok(missing)
}

/// All tenants that have their schema, by name.
pub async fn list(database: &Database) -> Result<Vec<Tenant>, Error> {
    Ok(with_schema(directory(database).await?))
}

/// The same of one lane.
pub async fn list_of(database: &Database, lane: &LaneName) -> Result<Vec<Tenant>, Error> {
    Ok(with_schema(listed(database, None, Some(lane.as_str())).await?))
}

fn with_schema(listed: Vec<Listed>) -> Vec<Tenant> {
    let existing = listed.into_iter().filter(Listed::has_schema);
    existing.map(|listed| listed.tenant).collect()
}

/// The tenant of this name, if it exists.
pub async fn find(database: &Database, name: &str) -> Result<Option<Tenant>, Error> {
    // An impossible name (one with a NUL, say) must not reach Postgres.
    let Some(tenant) = Tenant::named(name) else {
        return Ok(None);
    };
    let row = database
        .query_opt(&sql!("postgres/tenant_find"), &[(&tenant.name, Type::TEXT)])
        .await?;
    Ok(row.map(|_| tenant))
}
