//! Erasing an account: the user is deleted with names, credentials and devices, and so is what the user wrote.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::contract::control::Command;
use crate::contract::stream_name::Target;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::{self, Database, Param, sql};

/// The longest wait for requests that were running, and the pause between two looks. A statement ends after
/// `postgres.query_timeout_seconds`.
const SETTLING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(200));

/// Deletes a user: names, credentials, devices, encrypted state, sent messages and conflicts, in one transaction. What others
/// wrote to the user stays theirs. Engines end the user's streams, and remove the inbox, at that place of the log. Rows of
/// own tables stay.
///
/// # Errors
/// [`Error::NotFound`] when there is no such user.
pub async fn erase(database: &Database, tenant: &Tenant, user: Uuid, by: &Actor) -> Result<(), Error> {
    let inbox = Target::Inbox(tenant.name.as_str().into(), user);
    let (command, arguments) = Command::RemoveStream(inbox).encode();
    let [actor, address] = by.params();
    // As many messages as a user may have take longer than a statement of the pool may.
    let mut client = database.connect_dedicated().await?;
    let transaction = client.transaction().await.map_err(postgres::Error::from)?;
    erase_content(database, &transaction, tenant, user).await?;
    let statement = sql!("accounts/user_erase", tenant);
    let parameters: [Param<'_>; 6] = [
        (&user, Type::UUID),
        (&tenant.name, Type::TEXT),
        actor,
        address,
        (&command, Type::TEXT),
        (&arguments, Type::TEXT),
    ];
    let rows = transaction.query_typed(&statement, &parameters);
    let rows = database.counted(&statement, rows).await?;
    let erased = rows.first().ok_or(Error::NotFound("user"))?;
    let at: DateTime<Utc> = erased.try_get("erased_at").map_err(postgres::Error::from)?;
    transaction.commit().await.map_err(postgres::Error::from)?;
    // A request of the user that was running may have written since.
    settle(database, at).await?;
    erase_content(database, &client, tenant, user).await?;
    Ok(())
}

async fn erase_content(
    database: &Database,
    client: &impl GenericClient,
    tenant: &Tenant,
    user: Uuid,
) -> Result<(), Error> {
    for statement in [
        sql!("accounts/user_erase_messages", tenant),
        sql!("accounts/user_erase_conflicts", tenant),
        sql!("accounts/user_erase_states", tenant),
    ] {
        let parameters: [Param<'_>; 1] = [(&user, Type::UUID)];
        let running = client.execute_typed(&statement, &parameters);
        database.counted(&statement, running).await?;
    }
    Ok(())
}

/// Waits until requests that were running at a time have ended.
async fn settle(database: &Database, at: DateTime<Utc>) -> Result<(), Error> {
    let (longest, pause) = SETTLING;
    let deadline = Instant::now() + longest;
    let statement = sql!("accounts/user_erase_settled");
    while Instant::now() < deadline {
        let row = database.query_opt(&statement, &[(&at, Type::TIMESTAMPTZ)]).await?;
        if row
            .map_or(Ok(true), |row| row.try_get("settled"))
            .map_err(postgres::Error::from)?
        {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
