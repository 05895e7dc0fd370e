//! Devices that are registered by a login.

use std::net::IpAddr;

use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::authentication::Devices;
use super::device::{self, Device, DeviceType, FORBIDDEN, check_name, check_public_key, exists};
use super::id::check_device_id;
use crate::accounts::login::Login;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::sql;

/// The device in a login request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Generated when absent.
    pub id: Option<String>,
    pub name: Option<String>,
    pub device_type: Option<DeviceType>,
    pub public_key: Option<String>,
}

impl DeviceInfo {
    pub fn check(&self) -> Result<(), Error> {
        if let Some(id) = &self.id {
            check_device_id(id)?;
        }
        check_name("name", self.name.as_deref())?;
        check_public_key(self.public_key.as_deref())
    }
}

/// The device of a login.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegisteredDevice {
    #[serde(flatten)]
    pub device: Device,
    /// Whether this login registered it.
    pub is_new: bool,
}

impl Devices {
    /// Registers the device of a login, or updates it with what the login contains.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for another user's or a revoked device, [`Error::Conflict`] when the user has `devices_max`
    /// devices.
    pub async fn register(
        &self,
        login: &Login,
        info: &DeviceInfo,
        devices_max: usize,
        address: IpAddr,
    ) -> Result<RegisteredDevice, Error> {
        let tenant = &login.tenant;
        let id = info.id.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        let most = i64::try_from(devices_max).unwrap_or(i64::MAX);
        let by = Actor::user(login.id, address);
        // Of two concurrent logins with the same new device, the second one finds it when it repeats the statement.
        for _ in 0..2 {
            let [actor, address] = by.params();
            let row = self
                .database
                .query_opt(
                    &sql!("accounts/device_login", tenant),
                    &[
                        (&login.id, Type::UUID),
                        (&id, Type::TEXT),
                        (&info.name, Type::TEXT),
                        (&info.device_type.map(DeviceType::as_str), Type::TEXT),
                        (&info.public_key, Type::TEXT),
                        (&DeviceType::default_of(login.user_type).as_str(), Type::TEXT),
                        (&most, Type::INT8),
                        (&tenant.name, Type::TEXT),
                        actor,
                        address,
                    ],
                )
                .await?;
            if let Some(row) = row {
                let is_new = row.try_get("is_new")?;
                if is_new {
                    self.added(tenant, login.id, &id).await;
                }
                return Ok(RegisteredDevice {
                    device: Device::from_row(&row)?,
                    is_new,
                });
            }
            if !exists(&self.database, tenant, &id).await? {
                return Err(Error::Conflict(device::too_many(devices_max)));
            }
        }
        Err(FORBIDDEN)
    }
}
