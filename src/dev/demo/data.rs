//! The demo's tenant, users, tables and rows. Creating them is idempotent: an earlier run may have been killed in between, and
//! what people changed since stays.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{PASSWORD, ROUTING, TENANT};
use crate::accounts::users::{self, NewUser, Role, UserType};
use crate::config::Config;
use crate::core::tenant::Tenant;
use crate::postgres::{Database, Statement, migrations, publication, sql, tenants};

const USERS: [(&str, UserType, Role); 4] = [
    ("bob", UserType::Web, Role::Admin),
    ("jane", UserType::Web, Role::Member),
    ("joe", UserType::Mobile, Role::Member),
    ("sally", UserType::Mobile, Role::Member),
];

/// The id of the shared list, the same everywhere, so that a second start does not create it again.
const LIST: Uuid = Uuid::from_u128(0x6c69_7374_0000_4000_8000_0000_0000_0001);

/// Its name.
pub(super) const LIST_NAME: &str = "Groceries";

/// The users who share it.
const MEMBERS: [&str; 2] = ["bob", "joe"];

const TASKS: [&str; 3] = ["Milk", "Bread", "Apples"];

/// What the demo's page needs of the data.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The ids of the users by name.
    pub users: BTreeMap<String, Uuid>,
    /// The shared list; `None` without the demo's tables.
    pub list: Option<Uuid>,
}

/// The demo's tenant.
///
/// # Errors
/// Never: its name is valid.
pub(super) fn tenant() -> Result<Tenant> {
    Tenant::named(TENANT).context("invalid name of the demo tenant")
}

/// Adds the demo's groups and routes to settings without any. Returns whether the settings have them: not if there are others,
/// or tables of the same names in another form in any tenant.
pub async fn add_routing(config: &mut Config, database: &Database) -> Result<bool> {
    let demo = Config::from_sources(ROUTING, []).context("config/demo.yaml")?;
    let has_none = config.groups.is_empty() && config.routes.is_empty();
    let has_demo = config.groups == demo.groups && config.routes == demo.routes;
    if !has_none && !has_demo {
        return Ok(false);
    }
    let taken = database.query(&sql!("dev/demo_tables_taken"), &[]).await?;
    if let Some(row) = taken.first() {
        let (schema, table): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        tracing::warn!(
            schema,
            table,
            "a tenant has a table of this name in another form: the demo runs without its list"
        );
        return Ok(false);
    }
    config.groups = demo.groups;
    config.routes = demo.routes;
    Ok(true)
}

/// Creates the tenant, missing users and, where the engine routes them, the tables and the shared list.
pub async fn prepare(database: &Database, config: &Config, has_tables: bool) -> Result<Prepared> {
    tenants::create(database, &config.replication, TENANT, crate::core::lane::MAIN)
        .await
        .context("cannot create the demo tenant")?;
    let tenant = tenant()?;
    create_users(database, config, &tenant).await?;
    let mut has_tables = has_tables;
    if has_tables && let Err(error) = create_tables(database, config, &tenant).await {
        // The role of a Postgres that is not private may lack the right.
        let cause = format!("{error:#}");
        tracing::warn!(cause, "cannot create the tables of the demo: it runs without its list");
        has_tables = false;
    }
    let names = USERS.map(|(name, ..)| name);
    let rows = database
        .query(&sql!("dev/demo_users", tenant), &[(&&names[..], Type::TEXT_ARRAY)])
        .await?;
    let users: Result<_, tokio_postgres::Error> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect();
    Ok(Prepared {
        users: users?,
        list: has_tables.then_some(LIST),
    })
}

async fn create_users(database: &Database, config: &Config, tenant: &Tenant) -> Result<()> {
    let names = USERS.map(|(name, ..)| name);
    let statement = &sql!("admin/demo_users_missing", tenant);
    // Checked one by one: an earlier run may have been killed between two users.
    for row in database.query(statement, &[(&&names[..], Type::TEXT_ARRAY)]).await? {
        let missing: &str = row.try_get(0)?;
        for (name, user_type, role) in USERS.into_iter().filter(|(name, ..)| *name == missing) {
            let user = NewUser {
                username: name.to_owned(),
                user_type,
                role,
                email: None,
                is_email_unverified: false,
                password: Some(PASSWORD.to_owned()),
            };
            users::create(database, &config.auth, TENANT, user)
                .await
                .with_context(|| format!("cannot create the demo user {name}"))?;
        }
    }
    Ok(())
}

async fn create_tables(database: &Database, config: &Config, tenant: &Tenant) -> Result<()> {
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await?;
    migrations::lock_for_transaction(&transaction).await?;
    transaction.batch_execute(&sql!("dev/demo_tables", tenant)).await?;
    // Where whole schemas are not published, each table is added.
    publication::include(&transaction, &config.replication.publication, tenant).await?;
    let statement: &Statement = &sql!("dev/demo_list_create", tenant);
    transaction
        .execute_typed(
            statement,
            &[
                (&LIST, Type::UUID),
                (&LIST_NAME, Type::TEXT),
                (&&MEMBERS[..], Type::TEXT_ARRAY),
                (&&TASKS[..], Type::TEXT_ARRAY),
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_routing_is_valid_and_has_nothing_else() {
        let demo = Config::from_sources(ROUTING, []).unwrap();
        let tables: Vec<&str> = demo.routes.iter().map(|rule| rule.table.as_str()).collect();
        assert_eq!(tables, ["lists", "list_members", "tasks"]);
        let others = Config {
            groups: demo.groups,
            routes: demo.routes,
            ..Config::default()
        };
        assert_eq!(Config::from_sources(ROUTING, []).unwrap(), others);
    }
}
