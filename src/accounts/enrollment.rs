//! Enrollment: the registration of a phone as a device with its own token.
//!
//! A user creates an enrollment and shows its token as a QR code; the phone completes it once and receives a device token.
//! Members enroll devices of their own, and web users new mobile users; admins enroll devices for any user. The creator must
//! still have that right when the enrollment is completed.
//!
//! Both tokens are random and stored only as SHA-256. The response to a completion may be lost, so the same device may
//! complete again within `enrollment.retry_seconds`, as long as it has not used the token.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use crate::accounts::devices::{AuthKey, Devices, NewDevice, Token};
use crate::accounts::user_names::check_name;
use crate::accounts::users::taken;
use crate::config;
use crate::core::page::{Page, Rows};
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error};
use crate::postgres::audit::Actor;
use crate::postgres::{Database, sql};

/// A new enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub id: Uuid,
    /// The token that the phone presents. Only its hash is stored.
    pub token: Uuid,
    pub expires_at: Timestamp,
}

/// Creates an enrollment. With `user_id` the device belongs to that user: the creator, or for an admin any user. Without
/// it, the completion creates a mobile user.
///
/// # Errors
/// [`Error::Forbidden`] when the creator may not enroll that user, [`Error::NotFound`] for the user,
/// [`Error::Unauthorized`] when the creator is disabled or deleted.
pub async fn create(
    database: &Database,
    tenant: &Tenant,
    created_by: Uuid,
    user_id: Option<Uuid>,
    lifetime: Duration,
    address: IpAddr,
) -> Result<Created, Error> {
    let by = Actor::user(created_by, address);
    let [actor, address] = by.params();
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
                actor,
                address,
            ],
        )
        .await?
        .ok_or_else(|| Error::Internal("inserting an enrollment returned no row".into()))?;
    match row.try_get("is_allowed")? {
        Some(true) => {}
        Some(false) if user_id.is_some() => {
            return Err(Error::Forbidden("only admins enroll devices for other users"));
        }
        Some(false) => {
            return Err(Error::Forbidden(
                "only web users enroll new users; set user_id to your own id for a device of yours",
            ));
        }
        None => return Err(Error::Unauthorized("this user is disabled or deleted")),
    }
    Ok(Created {
        id: row.try_get::<_, Option<Uuid>>("id")?.ok_or(Error::NotFound("user"))?,
        token,
        // From the row, rounded to the precision of Postgres.
        expires_at: row
            .try_get::<_, Option<Timestamp>>("expires_at")?
            .ok_or(Error::NotFound("user"))?,
    })
}

/// An open enrollment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenEnrollment {
    pub id: Uuid,
    /// The creator's username.
    pub created_by: String,
    /// The user who gets the device; null for a new one.
    pub user_id: Option<Uuid>,
    pub username: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

impl OpenEnrollment {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            created_by: row.try_get("created_by")?,
            user_id: row.try_get("user_id")?,
            username: row.try_get("username")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
        })
    }
}

/// A page of the open enrollments, newest first: of one creator, or all of the tenant.
///
/// # Errors
/// [`Error::Invalid`] when the row of `before` or `after` is no such enrollment.
pub async fn list(
    database: &Database,
    tenant: &Tenant,
    created_by: Option<Uuid>,
    page: &Page,
) -> Result<Rows<OpenEnrollment>, Error> {
    let (place, is_after) = (feature::page_row_id(page)?, page.is_after());
    let rows = database
        .query(
            &sql!("accounts/enrollment_list", tenant),
            &[
                (&created_by, Type::UUID),
                (&page.rows_max(), Type::INT8),
                (&page.offset(), Type::INT8),
                (&place, Type::UUID),
                (&is_after, Type::BOOL),
            ],
        )
        .await?;
    feature::read_page(&rows, page, is_after, OpenEnrollment::from_row)
}

/// Withdraws an open enrollment, by its id or its token: of one creator, or any of the tenant.
///
/// # Errors
/// [`Error::NotFound`] when there is no such open enrollment.
pub async fn withdraw(
    database: &Database,
    tenant: &Tenant,
    created_by: Option<Uuid>,
    id_or_token: Uuid,
    by: &Actor,
) -> Result<(), Error> {
    let [actor, address] = by.params();
    database
        .query_opt(
            &sql!("accounts/enrollment_withdraw", tenant),
            &[
                (&id_or_token, Type::UUID),
                (&hash(id_or_token).as_slice(), Type::BYTEA),
                (&tenant.name, Type::TEXT),
                (&created_by, Type::UUID),
                actor,
                address,
            ],
        )
        .await?
        .map(|_| ())
        .ok_or(Error::NotFound("enrollment"))
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
/// [`Error::NotFound`] for an unknown token, [`Error::EnrollmentUsed`], [`Error::EnrollmentExpired`].
pub async fn get(database: &Database, token: Uuid) -> Result<Details, Error> {
    let (tenant, id) = find(database, token).await?;
    let row = database
        .query_opt(&sql!("accounts/enrollment_get", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("enrollment"))?;
    if row.try_get::<_, bool>("is_used")? {
        return Err(Error::EnrollmentUsed);
    }
    let expires_at: Timestamp = row.try_get("expires_at")?;
    if row.try_get::<_, bool>("is_expired")? {
        return Err(Error::EnrollmentExpired);
    }
    Ok(Details {
        created_by: row.try_get("created_by")?,
        expires_at,
        tenant: tenant.name,
    })
}

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
    /// The key by which the device proves itself.
    pub auth_key: Option<AuthKey>,
    /// Platform, model and the like: a JSON object without control characters.
    pub device_info: Value,
}

impl Completion {
    fn device(&self) -> NewDevice<'_> {
        NewDevice {
            id: &self.device_id,
            name: self.device_name.as_deref(),
            device_type: None,
            public_key: self.public_key.as_deref(),
            auth_key: self.auth_key,
            info: Some(&self.device_info),
        }
    }
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
/// [`Error::NotFound`] for an unknown token, and for one whose creator may no longer enroll the device;
/// [`Error::EnrollmentUsed`], [`Error::EnrollmentExpired`], [`Error::Conflict`] for a taken username, and as of
/// [`NewDevice::add`].
pub async fn complete(
    devices: &Devices,
    settings: &config::Enrollment,
    devices_max: usize,
    completion: &Completion,
    address: IpAddr,
) -> Result<Enrolled, Error> {
    completion.device().check("device_name")?;
    if let Some(username) = &completion.username {
        check_name("username", username)?;
        if username.contains('@') {
            return Err(Error::invalid("username", "must not contain @"));
        }
    }
    let (tenant, id) = find(devices.database(), completion.token).await?;
    let mut client = devices.database().get_for(&tenant).await?;
    let transaction = client.transaction().await?;
    // The locks serialize completions of one enrollment, and of one user.
    let row = transaction
        .query_typed_opt(&sql!("accounts/enrollment_lock", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("enrollment"))?;
    if !row.try_get::<_, bool>("is_allowed")? {
        return Err(Error::NotFound("enrollment"));
    }
    let user_id: Option<Uuid> = row.try_get("user_id")?;
    let device_id: Option<String> = row.try_get("device_id")?;
    let used_at: Option<DateTime<Utc>> = row.try_get("used_at")?;
    let now: DateTime<Utc> = row.try_get("now")?;
    let enrolled = match used_at {
        Some(used_at) => {
            let retry_ends = used_at + Duration::from_secs(settings.retry_seconds);
            if device_id.as_ref() != Some(&completion.device_id) || now > retry_ends {
                return Err(Error::EnrollmentUsed);
            }
            replace_token(&transaction, &tenant, completion).await?
        }
        None if row.try_get::<_, bool>("is_expired")? => return Err(Error::EnrollmentExpired),
        None => {
            let enrolled = enroll(&transaction, &tenant, user_id, devices_max, completion, address).await?;
            let by = Actor::user(enrolled.user_id, address);
            let [actor, client] = by.params();
            transaction
                .query_typed(
                    &sql!("accounts/enrollment_use", tenant),
                    &[
                        (&id, Type::UUID),
                        (&completion.device_id, Type::TEXT),
                        (&tenant.name, Type::TEXT),
                        actor,
                        client,
                    ],
                )
                .await?;
            enrolled
        }
    };
    transaction.commit().await?;
    devices.added(&tenant, enrolled.user_id, &enrolled.device_id).await;
    Ok(enrolled)
}

/// Creates the device, and the user where the enrollment names none.
async fn enroll(
    transaction: &Transaction<'_>,
    tenant: &Tenant,
    user_id: Option<Uuid>,
    devices_max: usize,
    completion: &Completion,
    address: IpAddr,
) -> Result<Enrolled, Error> {
    let (user_id, username) = match user_id {
        Some(user_id) => {
            let row = transaction
                .query_typed_opt(&sql!("accounts/user_lock", tenant), &[(&user_id, Type::UUID)])
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
    let device_token = completion
        .device()
        .add(
            transaction,
            tenant,
            user_id,
            devices_max,
            &Actor::user(user_id, address),
        )
        .await?;
    Ok(Enrolled {
        tenant: tenant.clone(),
        user_id,
        username,
        device_id: completion.device_id.clone(),
        device_token,
    })
}

/// Replaces the token of the same device, which may not have received it. The key is replaced as well: that of another client
/// with this enrollment must not stay, and a device may have made another one since.
async fn replace_token(
    transaction: &Transaction<'_>,
    tenant: &Tenant,
    completion: &Completion,
) -> Result<Enrolled, Error> {
    let device_id = &completion.device_id;
    let token = Token::generate()?;
    let auth_key = completion.auth_key.map(|key| key.spki());
    let row = transaction
        .query_typed_opt(
            &sql!("accounts/enrollment_retry", tenant),
            &[
                (&tenant.name, Type::TEXT),
                (&device_id, Type::TEXT),
                (&token.hash.as_bytes(), Type::BYTEA),
                (&auth_key.as_ref().map(<[u8; _]>::as_slice), Type::BYTEA),
            ],
        )
        .await?
        .ok_or(Error::EnrollmentUsed)?;
    Ok(Enrolled {
        tenant: tenant.clone(),
        user_id: row.try_get("user_id")?,
        username: row.try_get("username")?,
        device_id: device_id.clone(),
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
