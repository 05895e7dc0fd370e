//! Erasing an account: the user is deleted with names, credentials and devices, and so is what the user wrote.
//!
//! Postgres decides between the erasure and requests of the user that run at the same time: uploads take turns under an
//! advisory lock, all other writes lock the user's row and look at it. The erasure takes both locks first. What was
//! written before is erased; what comes later finds the user deleted.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use crate::contract::control::Command;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::{self, Database, Param, Statement, sql};

/// Deletes a user: names, credentials, devices, encrypted state, sent messages and conflicts, in one transaction. What others
/// wrote to the user stays theirs. Engines end the user's streams, and remove the inbox, at that place of the log. Rows of
/// own tables stay.
///
/// # Errors
/// [`Error::NotFound`] when there is no such user, [`Error::Busy`] when requests of the user last longer than a statement
/// of the pool may. Nothing is erased then.
pub async fn erase(database: &Database, tenant: &Tenant, user: Uuid, by: &Actor) -> Result<(), Error> {
    // As many messages as a user may have take longer than a statement of the pool may.
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await.map_err(postgres::Error::from)?;
    erase_within(database, &transaction, tenant, user, by)
        .await
        .map_err(|error| match error {
            Error::Database(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                Error::Busy("requests of this user are still running, and nothing was erased; try again in a moment")
            }
            error => error,
        })?;
    transaction.commit().await?;
    Ok(())
}

async fn erase_within(
    database: &Database,
    transaction: &Transaction<'_>,
    tenant: &Tenant,
    user: Uuid,
    by: &Actor,
) -> Result<(), Error> {
    let run = async |statement: Statement, parameters: &[Param<'_>]| -> Result<Vec<Row>, postgres::Error> {
        let rows = transaction.query_typed(&statement, parameters);
        database.counted(&statement, rows).await
    };
    let wait_ms = database.statement_timeout().as_millis();
    transaction
        .batch_execute(&format!("SET LOCAL lock_timeout = {wait_ms}"))
        .await?;
    let locked = run(sql!("accounts/user_erase_lock", tenant), &[(&user, Type::UUID)]).await?;
    if locked.is_empty() {
        return Err(Error::NotFound("user"));
    }
    let inbox = Target::Inbox(tenant.name.as_str().into(), user);
    let (command, arguments) = Command::RemoveStream(inbox).encode();
    let [actor, address] = by.params();
    let parameters: [Param<'_>; 6] = [
        (&user, Type::UUID),
        (&tenant.name, Type::TEXT),
        actor,
        address,
        (&command, Type::TEXT),
        (&arguments, Type::TEXT),
    ];
    run(sql!("accounts/user_erase", tenant), &parameters).await?;
    for statement in [
        sql!("accounts/user_erase_messages", tenant),
        sql!("accounts/user_erase_conflicts", tenant),
        sql!("accounts/user_erase_states", tenant),
    ] {
        run(statement, &[(&user, Type::UUID)]).await?;
    }
    Ok(())
}
