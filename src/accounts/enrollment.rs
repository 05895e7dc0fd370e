//! Enrollment: the registration of a phone as a device with its own token.
//!
//! A web user creates an enrollment and shows its token as a QR code; the phone completes it once and receives a device token.
//! Both tokens are random and stored only as SHA-256. The response to a completion may be lost, so the same device may
//! complete again within `enrollment.retry_seconds`, as long as it has not used the token.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::devices::{self, Devices, Token, check_device_id, check_public_key};
use crate::accounts::names::check_name;
use crate::accounts::users::taken;
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::postgres::{self, Database, sql};

/// A new enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The token that the phone presents. Only its hash is stored.
    pub token: Uuid,
    pub expires_at: Timestamp,
}

/// Creates an enrollment. With `user_id` the device belongs to that user, who is the creator or a mobile user; without it,
/// the completion creates a mobile user.
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
        .ok_or_else(|| Error::Internal("inserting an enrollment returned no row".into()))?;
    if !row.try_get::<_, bool>("creator_is_active")? {
        return Err(Error::Unauthorized("this user is disabled or deleted"));
    }
    if user_id.is_some() && !row.try_get::<_, bool>("user_exists")? {
        return Err(Error::NotFound("user"));
    }
    // From the row, rounded to the precision of Postgres.
    let expires_at = row
        .try_get::<_, Option<Timestamp>>("expires_at")?
        .ok_or(Error::Forbidden(
            "only that web user may enroll a device for themselves",
        ))?;
    Ok(Created { token, expires_at })
}

/// A valid enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    pub tenant: String,
    /// The creator's username.
    pub created_by: String,
    pub expires_at: Timestamp,
}

/// The enrollment of a token.
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

/// The request that completes an enrollment.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The token of the enrollment.
    pub token: Uuid,
    pub device_id: String,
    /// Name of the new user; by default a generated one.
    pub username: Option<String>,
    pub device_name: Option<String>,
    pub public_key: Option<String>,
    /// Platform, model and the like: a JSON object without control characters.
    pub device_info: Value,
}

/// An enrolled device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub tenant: Tenant,
    pub user_id: Uuid,
    pub username: String,
    pub device_id: String,
    /// Only its hash is stored.
    pub device_token: String,
}

/// Creates the device, and the user where the enrollment has none, in one transaction.
///
/// # Errors
/// [`Error::NotFound`] for an unknown or expired token, [`Error::Invalid`] for a used one, [`Error::Conflict`] for a
/// taken username or device id.
pub async fn complete(
    devices: &Devices,
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
    devices::check_name("device_name", completion.device_name.as_deref())?;
    check_public_key(completion.public_key.as_deref())?;
    let (tenant, id) = find(devices.database(), completion.token).await?;
    let mut client = devices.database().get().await?;
    let transaction = client.transaction().await?;
    // The row lock serializes completions of one enrollment.
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
            replace_token(&transaction, &tenant, &completion.device_id).await?
        }
        None if row.try_get::<_, bool>("is_expired")? => return Err(Error::NotFound("enrollment")),
        None => enroll(&transaction, &tenant, &enrollment, completion).await?,
    };
    transaction.commit().await?;
    // A token that this one replaces must not stay in the cache.
    devices
        .invalidate_written(&enrolled.tenant.name, enrolled.user_id)
        .await;
    Ok(enrolled)
}

/// The locked row.
struct Enrollment {
    id: Uuid,
    user_id: Option<Uuid>,
    device_id: Option<String>,
}

/// Creates user, device and directory entry, and marks the enrollment used.
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
    let token = Token::generate()?;
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
                (&token.hash.as_bytes(), Type::BYTEA),
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
        device_token: token.text,
    })
}

/// Replaces the token of the same device, which may not have received it.
async fn replace_token(transaction: &Transaction<'_>, tenant: &Tenant, device_id: &str) -> Result<Enrolled, Error> {
    let token = Token::generate()?;
    let row = transaction
        .query_typed_opt(
            &sql!("accounts/enrollment_retry", tenant),
            &[
                (&tenant.name, Type::TEXT),
                (&device_id, Type::TEXT),
                (&token.hash.as_bytes(), Type::BYTEA),
            ],
        )
        .await?
        .ok_or_else(|| Error::invalid("token", USED))?;
    Ok(Enrolled {
        tenant: tenant.clone(),
        user_id: row.try_get("user_id")?,
        username: row.try_get("username")?,
        device_id: device_id.to_owned(),
        device_token: token.text,
    })
}

/// The tenant and the row of a token.
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

/// The stored hash: of the UUID's 16 bytes, so that its spelling does not matter.
fn hash(token: Uuid) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
