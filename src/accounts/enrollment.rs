//! Enrollment: how a phone becomes a device with a token of its own.
//!
//! A web user makes an enrollment and shows its token as a QR code; the phone completes it once and gets a device
//! token. Both tokens are random and kept only as SHA-256. The answer to a completion may get lost on its way, so the
//! same device may complete again for a while, as long as it has not used the token it may have got.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::devices::{check_description, check_device_id, hash_token, new_token};
use crate::accounts::users::{check_name, taken};
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::postgres::{self, Database, sql};

/// An enrollment that has just been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// What the phone has to show. It cannot be read again.
    pub token: Uuid,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Makes an enrollment. With `user_id` the device will be that user's, who is the creator or a mobile user; without,
/// completing makes a new mobile user.
///
/// # Errors
/// [`Error::NotFound`] for the user, [`Error::Forbidden`] for another web user, [`Error::Unauthorized`] when the
/// creator is disabled or deleted.
pub async fn create(
    database: &Database,
    tenant: &Tenant,
    created_by: Uuid,
    user_id: Option<Uuid>,
    lifetime: Duration,
) -> Result<Created, Error> {
    let token = Uuid::new_v4();
    let expires_at = Utc::now() + lifetime;
    let row = database
        .query_opt(
            &sql!("accounts/enrollment_insert", tenant),
            &[
                (&created_by, Type::UUID),
                (&user_id, Type::UUID),
                (&expires_at, Type::TIMESTAMPTZ),
                (&hash(token).as_slice(), Type::BYTEA),
                (&tenant.name, Type::TEXT),
            ],
        )
        .await?
        .ok_or_else(|| Error::Internal("inserting an enrollment gave no row".into()))?;
    if !row.try_get::<_, bool>("creator_is_active")? {
        return Err(Error::Unauthorized("this user is disabled or deleted"));
    }
    if user_id.is_some() && !row.try_get::<_, bool>("user_exists")? {
        return Err(Error::NotFound("user"));
    }
    // From the row, as rounded to what Postgres keeps.
    let expires_at = row
        .try_get::<_, Option<Timestamp>>("expires_at")?
        .ok_or(Error::Forbidden("a device for another web user is theirs to enroll"))?;
    Ok(Created { token, expires_at })
}

/// A valid enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Its tenant.
    pub tenant: String,
    /// Username of who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What a token is good for.
///
/// # Errors
/// [`Error::NotFound`] for an unknown token, [`Error::Invalid`] for one that is used or has expired.
pub async fn get(database: &Database, token: Uuid) -> Result<Details, Error> {
    let (tenant, id) = find(database, token).await?;
    let row = database
        .query_opt(&sql!("accounts/enrollment_get", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("enrollment"))?;
    if row.try_get::<_, bool>("is_used")? {
        return Err(Error::invalid("token", USED));
    }
    let expires_at: Timestamp = row.try_get("expires_at")?;
    if row.try_get::<_, bool>("is_expired")? {
        return Err(Error::invalid("token", format!("has expired at {expires_at}")));
    }
    Ok(Details {
        created_by: row.try_get("created_by")?,
        expires_at,
        tenant: tenant.name,
    })
}

const USED: &str = "was already used";

/// What a phone tells about itself.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The enrollment's token.
    pub token: Uuid,
    /// The id that the device chose.
    pub device_id: String,
    /// Name of the new user; generated when absent.
    pub username: Option<String>,
    /// What the owner calls the device.
    pub device_name: Option<String>,
    /// The device's public key.
    pub public_key: Option<String>,
    /// Platform, model and the like: a JSON object without control characters.
    pub device_info: Value,
}

/// An enrolled device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Its tenant.
    pub tenant: Tenant,
    /// The user whose device it is.
    pub user_id: Uuid,
    /// That user's name.
    pub username: String,
    /// Its id.
    pub device_id: String,
    /// What it proves itself with. It cannot be read again.
    pub device_token: String,
}

/// Makes the device, and the user where the enrollment names none, in one transaction.
///
/// # Errors
/// [`Error::NotFound`] for an unknown or expired token, [`Error::Invalid`] for a used one, [`Error::Conflict`] for a
/// taken username or device id.
pub async fn complete(
    database: &Database,
    settings: &config::Enrollment,
    completion: &Completion,
) -> Result<Enrolled, Error> {
    check_device_id(&completion.device_id)?;
    if let Some(username) = &completion.username {
        check_name("username", username)?;
        if username.contains('@') {
            return Err(Error::invalid("username", "must not contain @"));
        }
    }
    check_description(
        ("device_name", completion.device_name.as_deref()),
        completion.public_key.as_deref(),
    )?;
    let (tenant, id) = find(database, completion.token).await?;
    let mut client = database.get().await?;
    let transaction = client.transaction().await?;
    // The row's lock makes completions of one enrollment take turns.
    let row = transaction
        .query_typed_opt(&sql!("accounts/enrollment_lock", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("enrollment"))?;
    let enrollment = Enrollment {
        id,
        user_id: row.try_get("user_id")?,
        device_id: row.try_get("device_id")?,
    };
    let used_at: Option<DateTime<Utc>> = row.try_get("used_at")?;
    let now: DateTime<Utc> = row.try_get("now")?;
    let enrolled = match used_at {
        Some(used_at) => {
            let retry_ends = used_at + Duration::from_secs(settings.retry_seconds);
            if enrollment.device_id.as_ref() != Some(&completion.device_id) || now > retry_ends {
                return Err(Error::invalid("token", USED));
            }
            answer_again(&transaction, &tenant, &completion.device_id).await?
        }
        None if row.try_get::<_, bool>("is_expired")? => return Err(Error::NotFound("enrollment")),
        None => enroll(&transaction, &tenant, &enrollment, completion).await?,
    };
    transaction.commit().await?;
    Ok(enrolled)
}

/// The locked row.
struct Enrollment {
    id: Uuid,
    user_id: Option<Uuid>,
    device_id: Option<String>,
}

/// Makes user, device, directory entry, and marks the enrollment used.
async fn enroll(
    transaction: &Transaction<'_>,
    tenant: &Tenant,
    enrollment: &Enrollment,
    completion: &Completion,
) -> Result<Enrolled, Error> {
    let (user_id, username) = match enrollment.user_id {
        Some(user_id) => {
            let row = transaction
                .query_typed_opt(&sql!("accounts/enrollment_user", tenant), &[(&user_id, Type::UUID)])
                .await?
                .ok_or(Error::NotFound("user"))?;
            let username: String = row.try_get("username")?;
            if let Some(wanted) = &completion.username
                && wanted.to_lowercase() != username.to_lowercase()
            {
                return Err(Error::Conflict(format!("this enrollment is for the user {username:?}")));
            }
            (user_id, username)
        }
        None => {
            let username = match &completion.username {
                Some(username) => username.clone(),
                None => format!("mobile_{:08x}", Uuid::new_v4().as_fields().0),
            };
            let row = transaction
                .query_typed_one(
                    &sql!("accounts/enrollment_new_user", tenant),
                    &[(&username, Type::TEXT)],
                )
                .await
                .map_err(|error| taken(error.into(), &username))?;
            (row.try_get("id")?, username)
        }
    };
    let device_token = new_token()?;
    let rows = transaction
        .query_typed(
            &sql!("accounts/enrollment_device", tenant),
            &[
                (&completion.device_id, Type::TEXT),
                (&user_id, Type::UUID),
                (&completion.device_name, Type::TEXT),
                (&completion.public_key, Type::TEXT),
                (&completion.device_info, Type::JSONB),
                (&tenant.name, Type::TEXT),
                (&hash_token(&device_token).as_slice(), Type::BYTEA),
                (&enrollment.id, Type::UUID),
            ],
        )
        .await
        .map_err(postgres::Error::from)?;
    if rows.is_empty() {
        return Err(Error::Conflict(format!(
            "the device id {:?} is another user's device",
            completion.device_id
        )));
    }
    Ok(Enrolled {
        tenant: tenant.clone(),
        user_id,
        username,
        device_id: completion.device_id.clone(),
        device_token,
    })
}

/// Gives the same device a fresh token in place of the one that may have got lost.
async fn answer_again(transaction: &Transaction<'_>, tenant: &Tenant, device_id: &str) -> Result<Enrolled, Error> {
    let device_token = new_token()?;
    let row = transaction
        .query_typed_opt(
            &sql!("accounts/enrollment_retry", tenant),
            &[
                (&tenant.name, Type::TEXT),
                (&device_id, Type::TEXT),
                (&hash_token(&device_token).as_slice(), Type::BYTEA),
            ],
        )
        .await?
        .ok_or_else(|| Error::invalid("token", USED))?;
    Ok(Enrolled {
        tenant: tenant.clone(),
        user_id: row.try_get("user_id")?,
        username: row.try_get("username")?,
        device_id: device_id.to_owned(),
        device_token,
    })
}

/// The tenant and row that a token stands for.
async fn find(database: &Database, token: Uuid) -> Result<(Tenant, Uuid), Error> {
    const NONE: Error = Error::NotFound("enrollment");
    let row = database
        .query_opt(
            &sql!("accounts/enrollment_find"),
            &[(&hash(token).as_slice(), Type::BYTEA)],
        )
        .await?
        .ok_or(NONE)?;
    let tenant = Tenant::named(row.try_get("tenant")?).ok_or(NONE)?;
    Ok((tenant, row.try_get("enrollment_id")?))
}

/// What is kept of an enrollment's token: of its 16 bytes, so that its spelling does not matter.
fn hash(token: Uuid) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
