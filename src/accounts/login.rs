//! Logins with a password.

use std::net::IpAddr;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::accounts::limits::{Attempt, Limits, Subject};
use crate::accounts::names::check_name;
use crate::accounts::password::{Passwords, Turn};
use crate::accounts::standing::Standing;
use crate::accounts::users::{Role, UserType};
use crate::core::slots::Slot;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::{Database, sql, tenants};

/// A user who may act.
#[derive(Debug, Clone)]
pub struct Login {
    pub tenant: Tenant,
    pub id: Uuid,
    pub username: String,
    pub user_type: UserType,
    /// The security stamp, as of when the user was read.
    pub stamp: Uuid,
    pub role: Role,
}

impl Login {
    fn from_row(row: &Row, tenant: Tenant) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            stamp: row.try_get("stamp")?,
            role: row.try_get::<_, &str>("role")?.parse()?,
            tenant,
        })
    }
}

/// A user who may act, with a password or an identity at another provider.
#[derive(Debug, Clone)]
pub struct ActiveUser {
    pub login: Login,
    pub standing: Standing,
    password_hash: Option<String>,
}

/// The user, unless disabled or deleted. `None` also when the tenant does not exist.
pub async fn active(database: &Database, tenant: &Tenant, user: Uuid) -> Result<Option<ActiveUser>, Error> {
    if tenants::find(database, &tenant.name).await?.is_none() {
        return Ok(None);
    }
    active_in(database, tenant, user).await
}

/// [`active`] in a tenant that exists.
pub async fn active_in(database: &Database, tenant: &Tenant, user: Uuid) -> Result<Option<ActiveUser>, Error> {
    let row = database
        .query_opt(
            &sql!("accounts/user_active", tenant),
            &[(&tenant.name, Type::TEXT), (&user, Type::UUID)],
        )
        .await?;
    row.map(|row| {
        Ok(ActiveUser {
            login: Login::from_row(&row, tenant.clone())?,
            standing: Standing::from_row(&row)?,
            password_hash: row.try_get("password_hash")?,
        })
    })
    .transpose()
}

/// What a client logs in with.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    pub tenant: &'a str,
    /// Username or email.
    pub name: &'a str,
    pub password: &'a str,
}

/// Checks passwords within the limits of attempts.
#[derive(Debug, Clone, Copy)]
pub struct Verifier<'a> {
    pub database: &'a Database,
    pub passwords: &'a Passwords,
    pub limits: &'a Limits,
}

impl Verifier<'_> {
    /// Checks a password. Whatever is wrong (tenant, name, password, a disabled user), the error and the time it takes are
    /// the same. A wrong one counts against the limits. They are checked before the attempt queues for a hash computation,
    /// and again when it has its turn, so that no more passwords are tried than they allow.
    pub async fn verify(self, address: IpAddr, credentials: Credentials<'_>) -> Result<Login, Error> {
        let waiting = self.limits.wait_at(address)?;
        let (name, account) = self.find(credentials).await?;
        let attempt = match &account {
            Some(account) => self
                .limits
                .attempt(&account.tenant.name, Subject::User(account.user), address),
            None => self.limits.attempt(credentials.tenant, Subject::Name(&name), address),
        };
        self.check(attempt, waiting, account, credentials.password).await
    }

    /// Checks the password of a user who is logged in. Attempts count like those of logins.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a wrong one, [`Error::Limited`].
    pub async fn confirm(self, address: IpAddr, user: &ActiveUser, password: &str) -> Result<Login, Error> {
        let waiting = self.limits.wait_at(address)?;
        let login = &user.login;
        let attempt = self
            .limits
            .attempt(&login.tenant.name, Subject::User(login.id), address);
        let account = Account {
            tenant: login.tenant.clone(),
            user: login.id,
            hash: user.password_hash.clone(),
        };
        let checked = self.check(attempt, waiting, Some(account), password).await;
        checked.map_err(|error| match error {
            Error::Unauthorized(_) => Error::Forbidden("current: this is not the password"),
            other => other,
        })
    }

    async fn check(
        self,
        attempt: Attempt,
        waiting: Slot<IpAddr>,
        account: Option<Account>,
        password: &str,
    ) -> Result<Login, Error> {
        self.limits.begin(&attempt).await?;
        let turn = self.passwords.turn().await?;
        self.limits.check(&attempt).await?;
        let check = Check {
            database: self.database.clone(),
            limits: self.limits.clone(),
            attempt,
            account,
            password: password.to_owned(),
        };
        // A task of its own, so that the attempt is counted when the client disconnects.
        tokio::spawn(async move {
            let result = check.run(turn).await;
            drop(waiting);
            result
        })
        .await
        .map_err(|error| Error::Internal(format!("checking a password failed: {error}")))?
    }

    /// The name as names are compared, and its user.
    async fn find(self, credentials: Credentials<'_>) -> Result<(String, Option<Account>), Error> {
        // Names beyond the bounds are no user's; a longer one is not sent to Postgres.
        if check_name("username", credentials.name).is_err() {
            return Ok((credentials.name.to_lowercase(), None));
        }
        let tenant = tenants::find(self.database, credentials.tenant).await?;
        let row = match &tenant {
            Some(tenant) => {
                let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                    [(&credentials.name, Type::TEXT), (&tenant.name, Type::TEXT)];
                let statement = sql!("accounts/user_credentials", tenant);
                self.database.query_opt(&statement, &parameters).await?
            }
            None => {
                let statement = sql!("accounts/name_folded");
                let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&credentials.name, Type::TEXT)];
                self.database.query_opt(&statement, &parameters).await?
            }
        };
        let row = row.ok_or_else(|| Error::Internal("the lookup of a name gave no row".into()))?;
        let name = row.try_get("name")?;
        let Some(tenant) = tenant else {
            return Ok((name, None));
        };
        let account = match row.try_get("id")? {
            Some(user) => Some(Account {
                tenant,
                user,
                hash: row.try_get("password_hash")?,
            }),
            None => None,
        };
        Ok((name, account))
    }
}

/// A user and the stored hash of the password.
struct Account {
    tenant: Tenant,
    user: Uuid,
    hash: Option<String>,
}

/// The check of one attempt.
struct Check {
    database: Database,
    limits: Limits,
    attempt: Attempt,
    account: Option<Account>,
    password: String,
}

impl Check {
    /// The turn ends when the attempt is counted, so that the next one sees it in the limits.
    async fn run(self, turn: Turn) -> Result<Login, Error> {
        let hash = self.account.as_ref().and_then(|account| account.hash.clone());
        // Without an account a hash is computed as well: the time must not show whether the name exists.
        let is_right = turn.verify(&self.password, hash.clone()).await?;
        let (Some(account), Some(hash), true) = (&self.account, hash, is_right) else {
            self.limits.failed(&self.attempt).await?;
            return Err(Error::Unauthorized(WRONG));
        };
        // The attempt has waited, and the password may be another by now.
        let Some(login) = self.verified(account, &hash).await? else {
            return Err(Error::Unauthorized(WRONG));
        };
        self.limits.succeeded(&self.attempt).await?;
        if let Err(error) = self.renew_hash(&turn, account, &hash).await {
            tracing::warn!(cause = crate::telemetry::chain(&error), "password hash not renewed");
        }
        Ok(login)
    }

    /// The user, if this is still the hash and the user may act, with the stamp that belongs to it.
    async fn verified(&self, account: &Account, hash: &str) -> Result<Option<Login>, Error> {
        let tenant = &account.tenant;
        let row = self
            .database
            .query_opt(
                &sql!("accounts/user_verified", tenant),
                &[
                    (&tenant.name, Type::TEXT),
                    (&account.user, Type::UUID),
                    (&hash, Type::TEXT),
                ],
            )
            .await?;
        row.map(|row| Login::from_row(&row, tenant.clone())).transpose()
    }

    /// Hashes the password again when the cost of Argon2 has changed.
    async fn renew_hash(&self, turn: &Turn, account: &Account, stored: &str) -> Result<(), Error> {
        let Some(renewed) = turn.renew(&self.password, stored).await? else {
            return Ok(());
        };
        self.database
            .query(
                &sql!("accounts/credentials_rehash"),
                &[
                    (&account.tenant.name, Type::TEXT),
                    (&account.user, Type::UUID),
                    (&stored, Type::TEXT),
                    (&renewed, Type::TEXT),
                ],
            )
            .await?;
        Ok(())
    }
}

/// The text for everything that is wrong with a login.
pub const WRONG: &str = "wrong tenant, username or password";
