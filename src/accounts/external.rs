//! Users who are identified by another provider.
//!
//! The id of the user follows from the tenant and the subject ([`crate::core::subject`]). `posduif.identities` holds which
//! provider identifies a user: no other provider may, whatever its tokens say. The first token of a subject creates the user
//! where the provider's settings allow it, or links a user who exists under this id without a password and without a device
//! so far; any other existing user is never linked by a token, or a provider could take over accounts.
//!
//! The role follows the newest token, so that a token from before a change does not undo it. Everything else that a token says
//! is used when the user is created.

use std::net::IpAddr;
use std::time::Duration;

use moka::sync::Cache;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::failed_logins::{FailedLogins, RefusedIdentity};
use crate::accounts::standing::{StampProof, Standing, Standings};
use crate::accounts::user_names;
use crate::accounts::users::{NewUser, Role, UserType, Users};
use crate::config::NewUserType;
use crate::feature::Error;
use crate::oidc::{RefusedClaim, VerifiedToken};
use crate::postgres::audit::Actor;
use crate::postgres::{Database, sql, tenants};

/// How long a refusal is cached, so that a repeated token costs no query each time.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(2);

/// Most cached refusals.
const REFUSALS_MAX: u64 = 10_000;

/// Why the user of a genuine token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// There is no such tenant.
    Tenant,
    /// The user does not exist, and may not be created.
    NotProvisioned,
    /// Another provider, or another subject, identifies the user.
    OtherIdentity,
    /// The user exists, and was used before any provider identified the user.
    OtherUser,
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "unknown_tenant",
            Self::NotProvisioned => "not_provisioned",
            Self::OtherIdentity => "other_identity",
            Self::OtherUser => "other_user",
        }
    }

    fn error(self) -> Error {
        Error::Forbidden(match self {
            Self::Tenant => TENANT_REFUSED,
            Self::NotProvisioned => "this user does not exist here; an operator creates users",
            Self::OtherIdentity => "this user is identified by another provider",
            Self::OtherUser => "this user was not created for the provider of the token",
        })
    }
}

/// The same for a tenant that does not exist: the response must not reveal which ones do.
const TENANT_REFUSED: &str = "the access token names no tenant that it may use here";

/// The text for a claim that is refused.
pub fn claim_refused(claim: RefusedClaim) -> &'static str {
    match claim {
        RefusedClaim::Tenant => TENANT_REFUSED,
        RefusedClaim::User | RefusedClaim::Prefix => "the access token names no user that it may identify here",
        RefusedClaim::Role => "the role of the access token is neither a text nor a list of texts",
    }
}

/// The user of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalUser {
    pub id: Uuid,
    pub user_type: UserType,
}

/// Finds, links and creates the users of tokens.
#[derive(Debug)]
pub struct ExternalUsers {
    database: Database,
    standings: Standings,
    users: Users,
    failed_logins: FailedLogins,
    /// By the session of the token.
    refused: Cache<Uuid, Refusal>,
}

impl ExternalUsers {
    pub fn new(database: Database, standings: Standings, users: Users, failed_logins: FailedLogins) -> Self {
        Self {
            database,
            standings,
            users,
            failed_logins,
            refused: Cache::builder()
                .max_capacity(REFUSALS_MAX)
                .time_to_live(REFUSAL_LIFETIME)
                .build(),
        }
    }

    /// The user of a verified token. Whether the token is from before the end of all sessions is not checked.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a user whom the token does not identify, [`Error::Unauthorized`] for one who is disabled or
    /// deleted.
    pub async fn resolve(&self, token: &VerifiedToken, address: IpAddr) -> Result<ExternalUser, Error> {
        if let Some(refusal) = self.refused.get(&token.session) {
            return Err(refusal.error());
        }
        match self.try_resolve(token, address).await? {
            Ok(user) => Ok(user),
            Err(refusal) => {
                self.refused.insert(token.session, refusal);
                let refused = RefusedIdentity {
                    tenant: Some(&token.tenant.name),
                    issuer: &token.issuer,
                    subject: Some(token.subject.as_str()),
                    reason: refusal.as_str(),
                };
                self.failed_logins.note_identity(address, refused).await;
                Err(refusal.error())
            }
        }
    }

    async fn try_resolve(
        &self,
        token: &VerifiedToken,
        address: IpAddr,
    ) -> Result<Result<ExternalUser, Refusal>, Error> {
        let id = token.subject.user_id(&token.tenant);
        let mut standing = self.standings.get(&token.tenant, id).await?;
        if standing.as_ref().is_none_or(|standing| standing.identity.is_none()) {
            if let Err(refusal) = self.admit(token, id, address).await? {
                return Ok(Err(refusal));
            }
            standing = self.standings.read(&token.tenant, id).await?;
        }
        let standing = standing.ok_or(DISABLED)?;
        let identity = match &standing.identity {
            Some(identity) if identity.issuer == *token.issuer && identity.subject == token.subject.as_str() => {
                identity
            }
            _ => return Ok(Err(Refusal::OtherIdentity)),
        };
        if let Some(is_admin) = token.is_admin
            && token.issued_at > identity.claims_at
            && permits(&standing, token)
        {
            self.apply_role(token, id, role(is_admin), address).await?;
        }
        Ok(Ok(ExternalUser {
            id,
            user_type: standing.user_type,
        }))
    }

    /// Links or creates the user of a first token.
    async fn admit(&self, token: &VerifiedToken, id: Uuid, address: IpAddr) -> Result<Result<(), Refusal>, Error> {
        let tenant = &token.tenant;
        if tenants::find(&self.database, &tenant.name).await?.is_none() {
            return Ok(Err(Refusal::Tenant));
        }
        let row = self
            .database
            .query_opt(&sql!("accounts/user_may_act", tenant), &[(&id, Type::UUID)])
            .await?;
        let is_done = match row {
            Some(row) if row.try_get("may_act")? => self.link(token, id, address).await?,
            Some(_) => return Err(DISABLED),
            None => match token.new_user {
                Some(user_type) => self.provision(token, id, user_type, address).await?,
                None => return Ok(Err(Refusal::NotProvisioned)),
            },
        };
        self.standings.invalidate(tenant, id);
        if is_done {
            self.users.invalidate(&tenant.name, id);
            return Ok(Ok(()));
        }
        // Another request with a token of the same user may have done it meanwhile.
        let standing = self.standings.read(tenant, id).await?;
        let is_linked = standing.is_some_and(|standing| standing.identity.is_some());
        Ok(if is_linked { Ok(()) } else { Err(Refusal::OtherUser) })
    }

    /// Links a user who exists; false if the user may not be linked.
    async fn link(&self, token: &VerifiedToken, id: Uuid, address: IpAddr) -> Result<bool, Error> {
        let tenant = &token.tenant;
        let by = Actor::user(id, address);
        let [actor, address] = by.params();
        let row = self
            .database
            .query_opt(
                &sql!("accounts/identity_link", tenant),
                &[
                    (&tenant.name, Type::TEXT),
                    (&id, Type::UUID),
                    (&&*token.issuer, Type::TEXT),
                    (&token.subject.as_str(), Type::TEXT),
                    actor,
                    address,
                ],
            )
            .await?;
        if row.is_some() {
            tracing::info!(tenant = tenant.name, user = %id, issuer = &*token.issuer, "identity linked");
        }
        Ok(row.is_some())
    }

    /// Creates the user; false if another request has. A name that is taken is changed, an email that is taken omitted.
    async fn provision(
        &self,
        token: &VerifiedToken,
        id: Uuid,
        user_type: NewUserType,
        address: IpAddr,
    ) -> Result<bool, Error> {
        let mut emails = vec![None];
        emails.extend(token.email.clone().map(Some));
        for username in usernames(
            token.name.as_deref(),
            token.email.as_deref(),
            token.subject.as_str(),
            id,
        ) {
            // With the email first.
            for email in emails.iter().rev() {
                let new = NewUser {
                    username: username.clone(),
                    user_type: match user_type {
                        NewUserType::Web => UserType::Web,
                        NewUserType::Mobile => UserType::Mobile,
                    },
                    role: role(token.is_admin.unwrap_or(false)),
                    email: email.clone(),
                    is_email_unverified: false,
                    password: None,
                };
                if user_names::check(&new).is_err() {
                    continue;
                }
                match self.insert(token, id, &new, address).await {
                    Err(Error::Conflict(_)) => {}
                    result => return result,
                }
            }
        }
        Err(Error::Internal(format!("no username is free for the new user {id}")))
    }

    async fn insert(&self, token: &VerifiedToken, id: Uuid, new: &NewUser, address: IpAddr) -> Result<bool, Error> {
        let tenant = &token.tenant;
        let by = Actor::user(id, address);
        let [actor, address] = by.params();
        let row = self
            .database
            .query_opt(
                &sql!("accounts/identity_provision", tenant),
                &[
                    (&tenant.name, Type::TEXT),
                    (&id, Type::UUID),
                    (&&*token.issuer, Type::TEXT),
                    (&token.subject.as_str(), Type::TEXT),
                    (&new.username, Type::TEXT),
                    (&new.user_type.as_str(), Type::TEXT),
                    (&new.email, Type::TEXT),
                    (&new.role.as_str(), Type::TEXT),
                    (&token.issued_at, Type::INT8),
                    actor,
                    address,
                ],
            )
            .await
            .map_err(|error| crate::accounts::users::taken(error, &new.username))?;
        if row.is_some() {
            tracing::info!(tenant = tenant.name, user = %id, issuer = &*token.issuer, "user created for an identity");
        }
        Ok(row.is_some())
    }

    async fn apply_role(&self, token: &VerifiedToken, id: Uuid, role: Role, address: IpAddr) -> Result<(), Error> {
        let tenant = &token.tenant;
        let by = Actor::user(id, address);
        let [actor, address] = by.params();
        self.database
            .query_opt(
                &sql!("accounts/identity_role", tenant),
                &[
                    (&tenant.name, Type::TEXT),
                    (&id, Type::UUID),
                    (&role.as_str(), Type::TEXT),
                    (&token.issued_at, Type::INT8),
                    (&&*token.issuer, Type::TEXT),
                    actor,
                    address,
                ],
            )
            .await?;
        self.standings.invalidate(tenant, id);
        self.users.invalidate(&tenant.name, id);
        Ok(())
    }
}

const DISABLED: Error = Error::Unauthorized("this user is disabled or deleted");

fn role(is_admin: bool) -> Role {
    if is_admin { Role::Admin } else { Role::Member }
}

fn permits(standing: &Standing, token: &VerifiedToken) -> bool {
    standing.permits(token.session, StampProof::IssuedAt(token.issued_at))
}

/// Usernames for a new user, by preference; the last one is free.
fn usernames(name: Option<&str>, email: Option<&str>, subject: &str, id: Uuid) -> Vec<String> {
    let wanted: Vec<&str> = [name, email, Some(subject)].into_iter().flatten().collect();
    let short = &id.simple().to_string()[..8];
    let plain = wanted.iter().map(|name| (*name).to_owned());
    let distinct = wanted.iter().map(|name| format!("{name} ({short})"));
    plain.chain(distinct).chain([id.to_string()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_prefer_the_name_and_end_with_the_id() {
        let id = Uuid::from_u128(0x1234_5678 << 96);
        assert_eq!(
            usernames(Some("Ann"), None, "auth0|1", id),
            [
                "Ann",
                "auth0|1",
                "Ann (12345678)",
                "auth0|1 (12345678)",
                "12345678-0000-0000-0000-000000000000"
            ]
        );
        assert_eq!(
            usernames(None, Some("ann@example.com"), "7", id)[..2],
            ["ann@example.com", "7"]
        );
    }
}
