//! Logins with a password.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::limits::{Attempt, Limits};
use crate::accounts::names::check_name;
use crate::accounts::password::{Passwords, Turn};
use crate::accounts::users::UserType;
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
}

impl Login {
    fn from_row(row: &Row, tenant: Tenant) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            tenant,
        })
    }
}

/// The user, unless disabled or deleted. `None` also when the tenant does not exist.
pub async fn active(database: &Database, tenant: &Tenant, user: Uuid) -> Result<Option<Login>, Error> {
    if tenants::find(database, &tenant.name).await?.is_none() {
        return Ok(None);
    }
    let statement = sql!("accounts/user_active", tenant);
    let row = database.query_opt(&statement, &[(&user, Type::UUID)]).await?;
    row.map(|row| Login::from_row(&row, tenant.clone())).transpose()
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
    pub async fn verify(self, attempt: &Attempt, credentials: Credentials<'_>) -> Result<Login, Error> {
        self.limits.check(attempt).await?;
        let account = self.find(credentials).await?;
        let turn = self.passwords.turn().await?;
        self.limits.check(attempt).await?;
        let check = Check {
            database: self.database.clone(),
            limits: self.limits.clone(),
            attempt: attempt.clone(),
            account,
            password: credentials.password.to_owned(),
        };
        // A task of its own, so that the attempt is counted when the client disconnects.
        tokio::spawn(check.run(turn))
            .await
            .map_err(|error| Error::Internal(format!("checking a password failed: {error}")))?
    }

    async fn find(self, credentials: Credentials<'_>) -> Result<Option<Account>, Error> {
        let Some(tenant) = tenants::find(self.database, credentials.tenant).await? else {
            return Ok(None);
        };
        if check_name("username", credentials.name).is_err() {
            return Ok(None);
        }
        let row = self
            .database
            .query_opt(
                &sql!("accounts/user_credentials", tenant),
                &[(&credentials.name, Type::TEXT), (&tenant.name, Type::TEXT)],
            )
            .await?;
        row.map(|row| {
            Ok(Account {
                hash: row.try_get("password_hash")?,
                login: Login::from_row(&row, tenant)?,
            })
        })
        .transpose()
    }
}

/// A user and the stored hash of the password.
struct Account {
    login: Login,
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
        let is_right = turn.verify(&self.password, hash).await?;
        match &self.account {
            Some(account) if is_right => {
                self.limits.succeeded(&self.attempt).await?;
                if let Err(error) = self.renew_hash(&turn, account).await {
                    tracing::warn!(cause = crate::telemetry::chain(&error), "password hash not renewed");
                }
                Ok(account.login.clone())
            }
            _ => {
                self.limits.failed(&self.attempt).await?;
                Err(Error::Unauthorized(WRONG))
            }
        }
    }

    /// Hashes the password again when the cost of Argon2 has changed.
    async fn renew_hash(&self, turn: &Turn, account: &Account) -> Result<(), Error> {
        let Some(stored) = &account.hash else { return Ok(()) };
        let Some(renewed) = turn.renew(&self.password, stored).await? else {
            return Ok(());
        };
        self.database
            .query(
                &sql!("accounts/credentials_rehash"),
                &[
                    (&account.login.tenant.name, Type::TEXT),
                    (&account.login.id, Type::UUID),
                    (stored, Type::TEXT),
                    (&renewed, Type::TEXT),
                ],
            )
            .await?;
        Ok(())
    }
}

const WRONG: &str = "wrong tenant, username or password";
