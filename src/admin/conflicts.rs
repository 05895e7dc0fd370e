//! Conflicts of all users of a tenant, for its operator.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::postgres::{Database, Error, sql};

/// A conflict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConflictReport {
    pub id: Uuid,
    /// `messages`, or the own table.
    pub table: String,
    pub row_id: Option<String>,
    pub user_id: Uuid,
    pub username: Option<String>,
    pub device_id: Option<String>,
    pub base_version: i64,
    /// What the device sent.
    pub client: Value,
    /// The row as it was then.
    pub server: Value,
    pub strategy: String,
    /// `client`, `server` or `merged`; `None` while it is open.
    pub resolution: Option<String>,
    pub created_at: Timestamp,
    pub resolved_at: Option<Timestamp>,
}

impl ConflictReport {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let (message, table): (Option<Uuid>, Option<String>) = (row.try_get("message_id")?, row.try_get("table_name")?);
        let row_id: Option<String> = row.try_get("row_id")?;
        Ok(Self {
            id: row.try_get("id")?,
            table: table.unwrap_or_else(|| "messages".to_owned()),
            row_id: row_id.or_else(|| message.map(|id| id.to_string())),
            user_id: row.try_get("user_id")?,
            username: row.try_get("username")?,
            device_id: row.try_get("device_id")?,
            base_version: row.try_get("base_version")?,
            client: row.try_get("client_version")?,
            server: row.try_get("server_version")?,
            strategy: row.try_get("strategy")?,
            resolution: row.try_get("resolution")?,
            created_at: row.try_get("created_at")?,
            resolved_at: row.try_get("resolved_at")?,
        })
    }
}

/// The conflicts of a tenant: open ones first, then the newest.
///
/// # Errors
/// When Postgres fails.
pub async fn list(database: &Database, tenant: &Tenant, most: i64) -> Result<Vec<ConflictReport>, Error> {
    let rows = database
        .query(&sql!("admin/conflicts_of_tenant", tenant), &[(&most, Type::INT8)])
        .await?;
    rows.iter().map(ConflictReport::from_row).collect()
}

/// The user of a conflict, if there is one.
///
/// # Errors
/// When Postgres fails.
pub async fn user_of(database: &Database, tenant: &Tenant, id: Uuid) -> Result<Option<Uuid>, Error> {
    let row = database
        .query_opt(&sql!("admin/conflict_user", tenant), &[(&id, Type::UUID)])
        .await?;
    row.map(|row| Ok(row.try_get("user_id")?)).transpose()
}
