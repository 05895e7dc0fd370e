//! Devices that an account adds: by an enrollment, or by a request of its user.
//!
//! A new device is a new row of `devices`, and one that is added again gets another `created_at`: by the built-in rule of that
//! table all devices and pages of the user receive the event `device_added`.

use serde_json::Value;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::authentication::Devices;
use super::device::{DeviceType, check_name, check_public_key, too_many};
use super::id::check_device_id;
use super::key::AuthKey;
use super::token::Token;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::sql;

/// A device to add to an account.
#[derive(Debug, Clone, Copy)]
pub struct NewDevice<'a> {
    pub id: &'a str,
    pub name: Option<&'a str>,
    /// By default that of the known device, or mobile.
    pub device_type: Option<DeviceType>,
    /// Must be that of the known device, if it has one.
    pub public_key: Option<&'a str>,
    /// The key by which the device proves itself. Without one, a former key ends as the former token does: it may be
    /// that of a device that was lost and revoked.
    pub auth_key: Option<AuthKey>,
    /// By default that of the known device, or empty.
    pub info: Option<&'a Value>,
}

impl NewDevice<'_> {
    pub(in crate::accounts) fn check(&self, name_field: &'static str) -> Result<(), Error> {
        check_device_id(self.id)?;
        check_name(name_field, self.name)?;
        check_public_key(self.public_key)
    }

    /// Adds the device to an active user, who is locked until the transaction ends, and returns its token. A device of
    /// the same user is added again: its former token ends.
    ///
    /// # Errors
    /// [`Error::Conflict`] for another user's device, for a device with another public key, and when the user has
    /// `devices_max` devices.
    pub(in crate::accounts) async fn add(
        &self,
        transaction: &Transaction<'_>,
        tenant: &Tenant,
        user: Uuid,
        devices_max: usize,
        by: &Actor,
    ) -> Result<String, Error> {
        let [actor, address] = by.params();
        let token = Token::generate()?;
        let auth_key = self.auth_key.map(|key| key.spki());
        let most = i64::try_from(devices_max).unwrap_or(i64::MAX);
        let row = transaction
            .query_typed_one(
                &sql!("accounts/device_add", tenant),
                &[
                    (&self.id, Type::TEXT),
                    (&user, Type::UUID),
                    (&self.name, Type::TEXT),
                    (&self.device_type.map(DeviceType::as_str), Type::TEXT),
                    (&self.public_key, Type::TEXT),
                    (&self.info, Type::JSONB),
                    (&tenant.name, Type::TEXT),
                    (&token.hash.as_bytes(), Type::BYTEA),
                    (&most, Type::INT8),
                    actor,
                    address,
                    (&auth_key.as_ref().map(<[u8; _]>::as_slice), Type::BYTEA),
                ],
            )
            .await?;
        if row.try_get("is_added")? {
            return Ok(token.text);
        }
        let id = self.id;
        Err(Error::Conflict(if !row.try_get::<_, bool>("has_room")? {
            too_many(devices_max)
        } else if row.try_get("is_own")? {
            format!("the device {id:?} has another public key: replace it as that device, or choose another device id")
        } else {
            format!("the device id {id:?} is another user's device")
        }))
    }
}

impl Devices {
    /// Adds a device to the account of a user, and returns its token.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when the user is disabled or deleted, [`Error::Invalid`], and as of [`NewDevice::add`].
    pub async fn add(
        &self,
        tenant: &Tenant,
        user: Uuid,
        device: &NewDevice<'_>,
        devices_max: usize,
        by: &Actor,
    ) -> Result<String, Error> {
        device.check("name")?;
        let mut client = self.database.get_for(tenant).await?;
        let transaction = client.transaction().await?;
        transaction
            .query_typed_opt(&sql!("accounts/user_lock", tenant), &[(&user, Type::UUID)])
            .await?
            .ok_or(Error::Unauthorized("this user is disabled or deleted"))?;
        let token = device.add(&transaction, tenant, user, devices_max, by).await?;
        transaction.commit().await?;
        self.added(tenant, user, device.id).await;
        Ok(token)
    }

    /// This process has added a device. A token that it replaces must not stay in the cache.
    pub(in crate::accounts) async fn added(&self, tenant: &Tenant, user: Uuid, device_id: &str) {
        tracing::info!(tenant = tenant.name, %user, device = device_id, "device added");
        self.invalidate_written(&tenant.name, user).await;
    }
}
