//! The second factor of logins with a password: codes of an authenticator app (TOTP, RFC 6238), and recovery codes.
//!
//! A user begins with a new secret and confirms it with a first code. From then on a login needs a code, and so does each
//! act that needs the password. Postgres decides whether a code is new: the statement that accepts one writes its time step,
//! and accepts none of that step or before, on any number of nodes. Adding and removing a factor changes the security stamp,
//! so that other sessions end, and with them a login that was in progress.

mod code;
mod seal;

use std::time::Duration;

use chrono::Utc;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use self::code::Code;
use self::seal::Seal;
use crate::accounts::login::Login;
use crate::accounts::random::random;
use crate::config;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::Error;
use crate::postgres::audit::Actor;
use crate::postgres::{Database, Param, sql};

/// How long a secret waits for its first code.
const CONFIRM_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Rows of a page of secrets.
const PAGE_ROWS: i64 = 1000;

/// What stays as it is in the label of an otpauth URI (RFC 3986, unreserved).
const LABEL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The confirmed factor of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factor {
    id: Uuid,
    sealed: Vec<u8>,
}

impl Factor {
    /// Of the columns `factor_id` and `factor_secret`, which are null without one.
    pub(super) fn from_row(row: &Row) -> Result<Option<Self>, Error> {
        let id: Option<Uuid> = row.try_get("factor_id")?;
        let Some(id) = id else { return Ok(None) };
        Ok(Some(Self {
            id,
            sealed: row.try_get("factor_secret")?,
        }))
    }
}

/// A secret that waits for its first code.
#[derive(Debug, Clone)]
pub struct Pending {
    /// In base32.
    pub secret: String,
    /// What a QR code for the app contains.
    pub otpauth_uri: String,
    pub expires_at: Timestamp,
}

/// Adds, checks and removes second factors. Cloning shares the keys.
#[derive(Debug, Clone)]
pub struct SecondFactors {
    database: Database,
    seal: Seal,
    issuer: String,
}

impl SecondFactors {
    pub fn new(database: Database, settings: &config::Auth) -> anyhow::Result<Self> {
        Ok(Self {
            database,
            seal: Seal::new(settings)?,
            issuer: settings.jwt_issuer.clone(),
        })
    }

    /// A new secret for a user whose password was checked. One that was not confirmed is replaced.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the user has a factor, or the password was changed meanwhile.
    pub async fn begin(&self, login: &Login) -> Result<Pending, Error> {
        let secret = random::<{ code::SECRET_BYTES }>()?;
        let tenant = &login.tenant.name;
        let sealed = self.seal.seal(tenant, login.id, &secret)?;
        let row = self
            .database
            .query_opt(
                &sql!("accounts/second_factor_begin"),
                &[
                    (tenant, Type::TEXT),
                    (&login.id, Type::UUID),
                    (&login.stamp, Type::UUID),
                    (&sealed, Type::BYTEA),
                ],
            )
            .await?
            .ok_or_else(|| Error::Conflict("this account has a second factor already; remove it first".into()))?;
        let begun_at: Timestamp = row.try_get("begun_at")?;
        let secret = code::base32(&secret);
        Ok(Pending {
            otpauth_uri: otpauth_uri(&self.issuer, &login.username, &secret),
            secret,
            expires_at: Timestamp(begun_at.0 + CONFIRM_WITHIN),
        })
    }

    /// Makes the pending secret the second factor, if this is one of its codes. Returns the recovery codes, of which only
    /// the hashes are stored; `None` for a wrong code. The session that is `kept` goes on, all others have a former stamp.
    ///
    /// # Errors
    /// [`Error::Conflict`] when no secret waits for a code, or the stamp was changed meanwhile.
    pub async fn confirm(
        &self,
        login: &Login,
        text: &str,
        kept: Uuid,
        by: &Actor,
    ) -> Result<Option<Vec<String>>, Error> {
        let tenant = &login.tenant.name;
        let seconds = i64::try_from(CONFIRM_WITHIN.as_secs()).unwrap_or(i64::MAX);
        let none = || Error::Conflict("no second factor waits for a code: begin again".into());
        let row = self
            .database
            .query_opt(
                &sql!("accounts/second_factor_pending"),
                &[(tenant, Type::TEXT), (&login.id, Type::UUID), (&seconds, Type::INT8)],
            )
            .await?
            .ok_or_else(none)?;
        let id: Uuid = row.try_get("id")?;
        let secret = self.open(&login.tenant, login.id, row.try_get("secret")?)?;
        let Some(Code::App(code)) = Code::parse(text) else {
            return Ok(None);
        };
        let Some(step) = code::step(&secret, &code, now())? else {
            return Ok(None);
        };
        let (codes, hashes) = code::recovery_codes()?;
        let [actor, address] = by.params();
        self.database
            .query_opt(
                &sql!("accounts/second_factor_confirm"),
                &[
                    (tenant, Type::TEXT),
                    (&login.id, Type::UUID),
                    (&id, Type::UUID),
                    (&login.stamp, Type::UUID),
                    (&step, Type::INT8),
                    (&hashes, Type::BYTEA_ARRAY),
                    (&kept, Type::UUID),
                    actor,
                    address,
                ],
            )
            .await?
            .ok_or_else(none)?;
        Ok(Some(codes))
    }

    /// Replaces the recovery codes of a user whose password and code were checked. Returns the new ones; `None` without a
    /// factor, or when the stamp was changed meanwhile.
    pub async fn renew_recovery_codes(&self, login: &Login, by: &Actor) -> Result<Option<Vec<String>>, Error> {
        let (codes, hashes) = code::recovery_codes()?;
        let [actor, address] = by.params();
        let renewed = self
            .database
            .query_opt(
                &sql!("accounts/second_factor_renew"),
                &[
                    (&login.tenant.name, Type::TEXT),
                    (&login.id, Type::UUID),
                    (&login.stamp, Type::UUID),
                    (&hashes, Type::BYTEA_ARRAY),
                    actor,
                    address,
                ],
            )
            .await?;
        Ok(renewed.map(|_| codes))
    }

    /// Whether this is a code of the factor that was never accepted before. It is used up by that.
    pub async fn accept(
        &self,
        tenant: &Tenant,
        user: Uuid,
        factor: &Factor,
        text: &str,
        by: &Actor,
    ) -> Result<bool, Error> {
        let name: Param<'_> = (&tenant.name, Type::TEXT);
        let (id, factor_id): (Param<'_>, Param<'_>) = ((&user, Type::UUID), (&factor.id, Type::UUID));
        let used = match Code::parse(text) {
            None => None,
            Some(Code::App(code)) => {
                let secret = self.open(tenant, user, &factor.sealed)?;
                let Some(step) = code::step(&secret, &code, now())? else {
                    return Ok(false);
                };
                let statement = sql!("accounts/second_factor_use");
                let parameters: [Param<'_>; 4] = [name, id, factor_id, (&step, Type::INT8)];
                self.database.query_opt(&statement, &parameters).await?
            }
            Some(Code::Recovery(hash)) => {
                let [actor, address] = by.params();
                let hash = hash.as_slice();
                let statement = sql!("accounts/second_factor_recover");
                let parameters: [Param<'_>; 6] = [name, id, factor_id, (&hash, Type::BYTEA), actor, address];
                self.database.query_opt(&statement, &parameters).await?
            }
        };
        Ok(used.is_some())
    }

    /// Replaces the encryption of all secrets that a former key encrypts.
    pub async fn reseal(&self) -> Result<(), Error> {
        let (mut tenant, mut user) = (String::new(), Uuid::nil());
        let name = self.seal.name();
        loop {
            let page = self
                .database
                .query(
                    &sql!("accounts/second_factors_outdated"),
                    &[
                        (&name.as_slice(), Type::BYTEA),
                        (&tenant, Type::TEXT),
                        (&user, Type::UUID),
                        (&PAGE_ROWS, Type::INT8),
                    ],
                )
                .await?;
            for row in &page {
                (tenant, user) = (row.try_get("tenant")?, row.try_get("user_id")?);
                let former: Vec<u8> = row.try_get("secret")?;
                let Some(secret) = self.seal.open(&tenant, user, &former) else {
                    tracing::warn!(tenant, %user, "{UNREADABLE}");
                    continue;
                };
                let sealed = self.seal.seal(&tenant, user, &secret)?;
                self.database
                    .query(
                        &sql!("accounts/second_factor_reseal"),
                        &[
                            (&tenant, Type::TEXT),
                            (&user, Type::UUID),
                            (&former, Type::BYTEA),
                            (&sealed, Type::BYTEA),
                        ],
                    )
                    .await?;
            }
            if i64::try_from(page.len()).unwrap_or(i64::MAX) < PAGE_ROWS {
                return Ok(());
            }
        }
    }

    fn open(&self, tenant: &Tenant, user: Uuid, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        self.seal
            .open(&tenant.name, user, sealed)
            .ok_or_else(|| Error::Internal(format!("user {user} of {}: {UNREADABLE}", tenant.name)))
    }
}

const UNREADABLE: &str = "the secret of the second factor is encrypted with another key: add the former auth.jwt_secret to \
                          auth.jwt_previous_secrets, or remove the factor with `posduif user remove-second-factor`";

/// Removes the second factor of a user, and changes the security stamp. Returns false when there is none, or the stamp is
/// not `replaced` by now. Streams end when [`super::sessions::Sessions::end_all`] is called afterwards.
pub async fn remove(
    database: &Database,
    tenant: &Tenant,
    user: Uuid,
    replaced: Option<Uuid>,
    kept: Option<Uuid>,
    by: &Actor,
) -> Result<bool, Error> {
    let [actor, address] = by.params();
    let removed = database
        .query_opt(
            &sql!("accounts/second_factor_remove"),
            &[
                (&tenant.name, Type::TEXT),
                (&user, Type::UUID),
                (&replaced, Type::UUID),
                (&kept, Type::UUID),
                actor,
                address,
            ],
        )
        .await?;
    Ok(removed.is_some())
}

fn now() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or_default()
}

/// What a QR code for an authenticator app contains.
fn otpauth_uri(issuer: &str, username: &str, secret: &str) -> String {
    let [issuer, username] = [issuer, username].map(|text| utf8_percent_encode(text, LABEL).to_string());
    let step = code::STEP_SECONDS;
    format!("otpauth://totp/{issuer}:{username}?secret={secret}&issuer={issuer}&algorithm=SHA1&digits=6&period={step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_for_the_app_escapes_names() {
        assert_eq!(
            otpauth_uri("posduif", "bob&secret=A:b@example.com", "ABC"),
            "otpauth://totp/posduif:bob%26secret%3DA%3Ab%40example.com?secret=ABC&issuer=posduif&algorithm=SHA1&digits=6\
             &period=30"
        );
    }
}
