//! Another token for a device that has lost its own and proves itself by its key.
//!
//! The device signs a [challenge](super::challenge) of this server, which covers the present token of the device. So it works
//! once, however many nodes there are: the proof replaces the token, and with it every challenge that was given for the former
//! one. A device that gets no answer proves itself again with another challenge. Times are those of Postgres, which all nodes
//! share; the clock of the device does not matter.
//!
//! The key replaces the token and gives no other right: it is refused when the token would be, that is for a revoked device and
//! for a user who is disabled or deleted. A new password ends neither. A client without the private key cannot find out
//! whether a device exists, is revoked, or has a key: all of them get a challenge, and the same error for the same work.

use std::net::IpAddr;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::authentication::Devices;
use super::challenge::parse;
use super::id::check_device_id;
use super::key::{AuthKey, Signature};
use super::token::{Token, TokenHash};
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::sql;

/// The first line of the signed text. The key signs nothing else that begins so.
const PURPOSE: &str = "posduif-device-token:v1";

/// What a device sends to prove itself.
#[derive(Debug, Clone, Copy)]
pub struct Proof<'a> {
    /// The name of the tenant, which may be none.
    pub tenant: &'a str,
    pub device_id: &'a str,
    /// The base URL of this server.
    pub audience: &'a str,
    pub challenge: &'a str,
    pub signature: &'a Signature,
}

impl Proof<'_> {
    /// What the device signs. No part contains a line break.
    fn text(&self) -> String {
        let Self {
            tenant,
            device_id,
            audience,
            challenge,
            ..
        } = self;
        format!("{PURPOSE}\n{audience}\n{tenant}\n{device_id}\n{challenge}")
    }
}

/// The result of a proof.
#[derive(Debug)]
pub enum Proven {
    /// The device has this token and no other.
    Renewed { token: String, user: Uuid },
    /// There is no such device, or it has no key, or the key has not signed this text.
    Refused,
    /// The device is revoked, or its user disabled or deleted.
    Revoked,
    /// The key has signed the text, and the challenge has expired, was used, or is none for this device.
    Outdated,
}

/// What a proof is checked against.
struct Known {
    token: Option<TokenHash>,
    key: Option<AuthKey>,
    is_revoked: bool,
    /// The time of Postgres, in seconds since 1970.
    now: i64,
}

impl Devices {
    /// A challenge for a device, which need not exist.
    ///
    /// # Errors
    /// [`Error::NotFound`] for what cannot be the id of a device.
    pub async fn challenge(&self, tenant: &str, device_id: &str) -> Result<String, Error> {
        let known = self.known(tenant, device_id).await?;
        self.challenges.make(tenant, device_id, known.token, known.now)
    }

    /// Replaces the token of a device that proves itself. This process refuses the former one at once, other nodes when the
    /// log delivers the change.
    ///
    /// # Errors
    /// [`Error::NotFound`] for what cannot be the id of a device, [`Error::Invalid`] for what cannot be a challenge,
    /// [`Error::Limited`] for too many good proofs of a device.
    pub async fn prove(&self, proof: Proof<'_>, address: IpAddr) -> Result<Proven, Error> {
        let Proof { tenant, device_id, .. } = proof;
        let challenge = parse(proof.challenge)?;
        let known = self.known(tenant, device_id).await?;
        // In every case, so that the time does not show whether there is a key.
        let has_signed = known
            .key
            .unwrap_or(AuthKey::DECOY)
            .has_signed(proof.text().as_bytes(), proof.signature);
        let (Some(key), Some(former), Some(tenant), true) = (known.key, known.token, Tenant::named(tenant), has_signed)
        else {
            return Ok(Proven::Refused);
        };
        if known.is_revoked {
            return Ok(Proven::Revoked);
        }
        if !self
            .challenges
            .is_current(&challenge, &tenant.name, device_id, former, known.now)
        {
            return Ok(Proven::Outdated);
        }
        self.proofs
            .take((tenant.name.clone(), device_id.to_owned()))
            .map_err(Error::Limited)?;
        let token = Token::generate()?;
        let row = self
            .database
            .query_opt(
                &sql!("accounts/device_renew_token", tenant),
                &[
                    (&tenant.name, Type::TEXT),
                    (&device_id, Type::TEXT),
                    (&former.as_bytes(), Type::BYTEA),
                    (&key.spki().as_slice(), Type::BYTEA),
                    (&token.hash.as_bytes(), Type::BYTEA),
                    (&address, Type::INET),
                ],
            )
            .await?
            .ok_or_else(|| Error::Internal("the renewal of a token returned no row".into()))?;
        if !row.try_get::<_, bool>("may_act")? {
            return Ok(Proven::Revoked);
        }
        let Some(user) = row.try_get("user_id")? else {
            // Another proof or an enrollment was faster.
            return Ok(Proven::Outdated);
        };
        self.invalidate_written(&tenant.name, user).await;
        tracing::info!(tenant = tenant.name, %user, device = device_id, "device token renewed");
        Ok(Proven::Renewed {
            token: token.text,
            user,
        })
    }

    /// One statement, whether there is such a device or not.
    async fn known(&self, tenant: &str, device_id: &str) -> Result<Known, Error> {
        if check_device_id(device_id).is_err() {
            return Err(Error::NotFound("device"));
        }
        let row = self
            .database
            .query_opt(
                &sql!("accounts/device_to_prove"),
                &[(&tenant, Type::TEXT), (&device_id, Type::TEXT)],
            )
            .await?
            .ok_or_else(|| Error::Internal("the look for a device returned no row".into()))?;
        let token: Option<&[u8]> = row.try_get("token_hash")?;
        let key: Option<&[u8]> = row.try_get("auth_key")?;
        Ok(Known {
            token: token.and_then(TokenHash::from_bytes),
            key: key.and_then(AuthKey::from_spki),
            is_revoked: row.try_get("is_revoked")?,
            now: row.try_get("now")?,
        })
    }
}
