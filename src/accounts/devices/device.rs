//! A device as others see it: lists, one device, its update and revocation.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::id::check_device_id;
use crate::accounts::users::UserType;
use crate::core::page::{Page, Rows};
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error, check_line, check_text};
use crate::live::presence::{Entry, Status};
use crate::postgres::audit::Actor;
use crate::postgres::{Database, sql};

pub(super) const FORBIDDEN: Error = Error::Forbidden("this device is another user's, or revoked");

/// Revokes a device, for the command line. Engines receive the change through the log. Returns its user, or `None` when there
/// is no such device or it is revoked already.
pub async fn revoke(database: &Database, tenant: &Tenant, device_id: &str) -> Result<Option<Uuid>, Error> {
    revoke_by(&Actor::cli(), database, tenant, device_id).await
}

/// [`revoke`] by anybody.
pub async fn revoke_by(
    by: &Actor,
    database: &Database,
    tenant: &Tenant,
    device_id: &str,
) -> Result<Option<Uuid>, Error> {
    if check_device_id(device_id).is_err() {
        return Ok(None);
    }
    let [actor, address] = by.params();
    let row = database
        .query_opt(
            &sql!("accounts/device_revoke", tenant),
            &[(&tenant.name, Type::TEXT), (&device_id, Type::TEXT), actor, address],
        )
        .await?;
    Ok(row.map(|row| row.try_get("user_id")).transpose()?)
}

/// A device as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    pub device_id: String,
    pub user_id: Uuid,
    /// Not part of the API's object.
    #[serde(skip)]
    pub username: String,
    pub name: Option<String>,
    /// `mobile`, `desktop` or `browser`.
    pub device_type: String,
    /// The public key for end-to-end encryption, in the app's format.
    pub public_key: Option<String>,
    /// When the public key was replaced; null for the first one.
    pub public_key_changed_at: Option<Timestamp>,
    /// The app's description of itself.
    pub device_info: Value,
    pub created_at: Timestamp,
    /// Time of the last sync or open stream, accurate to some seconds.
    pub last_seen_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// Whether the device has a key by which it proves itself when it has lost its token.
    pub has_auth_key: bool,
    /// When the device has got another token by that key for the last time.
    pub token_renewed_at: Option<Timestamp>,
    /// Presence, where requested; see [`Device::set_presence`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<Status>,
}

impl Device {
    pub(super) fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            device_id: row.try_get("device_id")?,
            user_id: row.try_get("user_id")?,
            username: row.try_get("username")?,
            name: row.try_get("name")?,
            device_type: row.try_get("device_type")?,
            public_key: row.try_get("public_key")?,
            public_key_changed_at: row.try_get("public_key_changed_at")?,
            device_info: row.try_get("device_info")?,
            created_at: row.try_get("created_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            revoked_at: row.try_get("revoked_at")?,
            has_auth_key: row.try_get("has_auth_key")?,
            token_renewed_at: row.try_get("token_renewed_at")?,
            presence: None,
        })
    }

    /// Applies the user's presence entry: a present device was last seen now.
    pub fn set_presence(&mut self, entry: Option<&Entry>) {
        let present = entry.and_then(|entry| entry.devices.iter().find(|(id, _)| *id == self.device_id));
        self.presence = Some(present.map_or(Status::Offline, |(_, status)| *status));
        if present.is_some() {
            self.last_seen_at = Some(Timestamp::now());
        }
    }
}

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    /// A phone or tablet.
    Mobile,
    /// A computer's app.
    Desktop,
    /// A browser.
    Browser,
}

impl DeviceType {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::Desktop => "desktop",
            Self::Browser => "browser",
        }
    }

    /// The default for a user of this type.
    pub(super) fn default_of(user_type: UserType) -> Self {
        match user_type {
            UserType::Web => Self::Browser,
            UserType::Mobile => Self::Mobile,
        }
    }
}

/// Records that a device of the user was seen. Returns false when there is no such device or it is revoked.
pub async fn seen(database: &Database, tenant: &Tenant, user: Uuid, device_id: &str) -> Result<bool, Error> {
    let statement = sql!("accounts/device_seen", tenant);
    let row = database
        .query_opt(&statement, &[(&user, Type::UUID), (&device_id, Type::TEXT)])
        .await?;
    Ok(row.is_some())
}

/// Those of some devices that belong to the user and are not revoked.
pub(crate) async fn usable(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    device_ids: &[&str],
) -> Result<HashSet<String>, Error> {
    let statement = sql!("accounts/devices_usable", tenant);
    let rows = database
        .query(&statement, &[(&user, Type::UUID), (&device_ids, Type::TEXT_ARRAY)])
        .await?;
    Ok(rows
        .iter()
        .map(|row| row.try_get("device_id"))
        .collect::<Result<_, _>>()?)
}

/// Which devices to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Only of this user.
    pub user: Option<Uuid>,
    pub device_id: Option<&'a str>,
    /// Only revoked devices, or only others.
    pub is_revoked: Option<bool>,
    pub page: Page,
}

/// A page of devices, newest first by `(created_at, device_id)`: those of one user, or all of the tenant.
///
/// # Errors
/// [`Error::Invalid`] when the row of `before` or `after` is no such device.
pub async fn list(database: &Database, tenant: &Tenant, filter: &Filter<'_>) -> Result<Rows<Device>, Error> {
    let page = &filter.page;
    let (place, is_after) = (page.place().map(|(_, id)| id), page.is_after());
    let rows = database
        .query(
            &sql!("accounts/device_list", tenant),
            &[
                (&filter.user, Type::UUID),
                (&filter.device_id, Type::TEXT),
                (&filter.is_revoked, Type::BOOL),
                (&page.rows_max(), Type::INT8),
                (&page.offset(), Type::INT8),
                (&place, Type::TEXT),
                (&is_after, Type::BOOL),
                (&tenant.name, Type::TEXT),
            ],
        )
        .await?;
    feature::read_page(&rows, page, is_after, Device::from_row)
}

/// One device, of this user if one is given.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Forbidden`] when it is another user's.
pub async fn get(database: &Database, tenant: &Tenant, user: Option<Uuid>, device_id: &str) -> Result<Device, Error> {
    let one = Filter {
        user,
        device_id: Some(device_id),
        is_revoked: None,
        page: Page::first(1),
    };
    // Postgres could refuse such an id, with a NUL for example.
    if check_device_id(device_id).is_err() {
        return Err(Error::NotFound("device"));
    }
    let mut devices = list(database, tenant, &one).await?.rows;
    match devices.pop() {
        Some(device) => Ok(device),
        None => Err(not_found_or_forbidden(database, tenant, device_id).await?),
    }
}

/// The error for a device that is not among the user's.
async fn not_found_or_forbidden(database: &Database, tenant: &Tenant, device_id: &str) -> Result<Error, Error> {
    let exists = exists(database, tenant, device_id).await?;
    Ok(if exists { FORBIDDEN } else { Error::NotFound("device") })
}

/// New values of a device; `None` keeps a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    pub name: Option<&'a str>,
    pub public_key: Option<&'a str>,
}

/// Updates a device of the user.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Forbidden`] for another user's or a revoked device, [`Error::Invalid`].
pub async fn update(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    device_id: &str,
    update: Update<'_>,
) -> Result<(), Error> {
    check_name("name", update.name)?;
    check_public_key(update.public_key)?;
    if check_device_id(device_id).is_err() {
        return Err(Error::NotFound("device"));
    }
    let updated = database
        .query_opt(
            &sql!("accounts/device_update", tenant),
            &[
                (&user, Type::UUID),
                (&device_id, Type::TEXT),
                (&update.name, Type::TEXT),
                (&update.public_key, Type::TEXT),
            ],
        )
        .await?;
    match updated {
        Some(_) => Ok(()),
        None => Err(not_found_or_forbidden(database, tenant, device_id).await?),
    }
}

/// The error text when a user may have no further device.
pub(super) fn too_many(devices_max: usize) -> String {
    format!("this user has {devices_max} devices: revoke one that is no longer used")
}

/// Checks the name that a user gives a device.
pub(super) fn check_name(field: &'static str, name: Option<&str>) -> Result<(), Error> {
    name.map_or(Ok(()), |name| check_line(field, name, 255))
}

pub(super) fn check_public_key(key: Option<&str>) -> Result<(), Error> {
    key.map_or(Ok(()), |key| check_text("public_key", key, 16_384))
}

/// Whether the tenant has such a device, revoked or not.
pub async fn exists(database: &Database, tenant: &Tenant, device_id: &str) -> Result<bool, Error> {
    let statement = sql!("accounts/device_exists", tenant);
    Ok(database
        .query_opt(&statement, &[(&device_id, Type::TEXT)])
        .await?
        .is_some())
}
