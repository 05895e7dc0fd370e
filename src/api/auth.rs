//! Who sends a request: a user with an access token, or a device with its credentials.

use std::sync::Arc;

use uuid::Uuid;

use crate::accounts::devices::DevicePrincipal;
use crate::accounts::sessions::SessionClaim;
use crate::accounts::standing::StampProof;
use crate::accounts::users::UserType;
use crate::core::tenant::Tenant;
use crate::sync::cursor::Owner;

/// A user who sends an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebPrincipal {
    pub tenant: Tenant,
    pub user_id: Uuid,
    /// A mobile user with a password can log in too.
    pub user_type: UserType,
    /// The session that the token belongs to.
    pub session: Uuid,
    /// The user's security stamp when the token was issued, or that time.
    pub proof: StampProof,
    /// When streams of the token end, in seconds since 1970; those of an own one end with its session.
    pub expires_at: Option<i64>,
    /// The device that the session is bound to, if any.
    pub device_id: Option<String>,
}

impl WebPrincipal {
    /// The session as the token names it.
    pub fn session_claim(&self) -> SessionClaim {
        SessionClaim {
            tenant: self.tenant.clone(),
            user: self.user_id,
            session: self.session,
            proof: self.proof,
        }
    }
}

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    Web(WebPrincipal),
    Device(Arc<DevicePrincipal>),
}

impl Principal {
    pub fn tenant(&self) -> &Tenant {
        match self {
            Self::Web(user) => &user.tenant,
            Self::Device(device) => &device.tenant,
        }
    }

    pub fn user_type(&self) -> UserType {
        match self {
            Self::Web(user) => user.user_type,
            Self::Device(device) => device.user_type,
        }
    }

    /// The user, or the device's user.
    pub fn user_id(&self) -> Uuid {
        match self {
            Self::Web(user) => user.user_id,
            Self::Device(device) => device.user_id,
        }
    }

    /// The device, or the device that the session is bound to.
    pub fn device_id(&self) -> Option<&str> {
        match self {
            Self::Web(user) => user.device_id.as_deref(),
            Self::Device(device) => Some(&device.device_id),
        }
    }

    /// The owner of the caller's cursors.
    pub fn cursor_owner(&self) -> Owner<'_> {
        match self {
            Self::Web(user) => Owner::User(user.user_id),
            Self::Device(device) => Owner::Device(&device.device_id),
        }
    }
}
