//! Logins with a password.

use std::net::IpAddr;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::accounts::login_limits::{Attempt, Limits, Subject};
use crate::accounts::password::{Passwords, Turn};
use crate::accounts::second_factor::{Factor, SecondFactors};
use crate::accounts::standing::Standing;
use crate::accounts::user_names::check_name;
use crate::accounts::users::{Role, UserType};
use crate::core::slots::Slot;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::audit::Actor;
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
    factor: Option<Factor>,
    pub email: Option<String>,
    /// The address that no mail has verified.
    pub unverified_email: Option<String>,
    /// Tokens of mails to verify an address carry it.
    pub email_stamp: Uuid,
    /// How many recovery codes are left; `None` without a second factor.
    pub recovery_codes: Option<i32>,
}

impl ActiveUser {
    pub fn has_password(&self) -> bool {
        self.password_hash.is_some()
    }
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
            factor: Factor::from_row(&row)?,
            email: row.try_get("email")?,
            unverified_email: row.try_get("unverified_email")?,
            email_stamp: row.try_get("email_stamp")?,
            recovery_codes: row.try_get("recovery_codes")?,
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
    /// Of the second factor.
    pub code: Option<&'a str>,
}

/// Checks passwords and codes within the limits of attempts.
#[derive(Debug, Clone, Copy)]
pub struct Verifier<'a> {
    pub database: &'a Database,
    pub passwords: &'a Passwords,
    pub limits: &'a Limits,
    pub factors: &'a SecondFactors,
}

impl Verifier<'_> {
    /// Checks a password. Whatever is wrong (tenant, name, password, a disabled user), the error and the time it takes are
    /// the same. A wrong one counts against the limits. They are checked before the attempt queues for a hash computation,
    /// and again when it has its turn, so that no more passwords are tried than they allow. A user with a second factor needs a
    /// code as well, which is looked at when the password was right.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::CodeRequired`], [`Error::CodeInvalid`], [`Error::Limited`], [`Error::Busy`].
    pub async fn verify(self, address: IpAddr, credentials: Credentials<'_>) -> Result<Login, Error> {
        let waiting = self.limits.wait_at(address)?;
        let (name, account) = self.find(credentials).await?;
        let attempt = match &account {
            Some(account) => self
                .limits
                .attempt(&account.tenant.name, Subject::User(account.user), address),
            None => self.limits.attempt(credentials.tenant, Subject::Name(&name), address),
        };
        let secrets = (credentials.password, credentials.code);
        self.check(attempt, waiting, account, secrets, address).await
    }

    /// Checks the password of a user who is logged in, and the code where there is a second factor. Attempts count like those
    /// of logins.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a wrong password, the other ones of [`Verifier::verify`].
    pub async fn confirm(
        self,
        address: IpAddr,
        user: &ActiveUser,
        password: &str,
        code: Option<&str>,
    ) -> Result<Login, Error> {
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
        let secrets = (password, code);
        let checked = self.check(attempt, waiting, Some(account), secrets, address).await;
        checked.map_err(|error| match error {
            Error::Unauthorized(_) => Error::Forbidden("current: this is not the password"),
            other => other,
        })
    }

    /// Checks the code of a user who is logged in and has confirmed to be there by other means than the password.
    ///
    /// # Errors
    /// [`Error::CodeRequired`], [`Error::CodeInvalid`], [`Error::Limited`].
    pub async fn confirm_code(self, address: IpAddr, user: &ActiveUser, code: Option<&str>) -> Result<(), Error> {
        let (limits, factors) = (self.limits.clone(), self.factors.clone());
        let (login, factor) = (user.login.clone(), user.factor.clone());
        let code = code.map(str::to_owned);
        let checking = async move {
            let check = CodeCheck {
                limits: &limits,
                factors: &factors,
                address,
            };
            check.run(&login, factor.as_ref(), code.as_deref()).await
        };
        // A task of its own, as for a password.
        tokio::spawn(checking)
            .await
            .map_err(|error| Error::Internal(format!("checking a code failed: {error}")))?
    }

    async fn check(
        self,
        attempt: Attempt,
        waiting: Slot<IpAddr>,
        account: Option<Account>,
        (password, code): (&str, Option<&str>),
        address: IpAddr,
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
            factors: self.factors.clone(),
            code: code.map(str::to_owned),
            address,
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
    factors: SecondFactors,
    code: Option<String>,
    address: IpAddr,
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
        let Some((login, factor)) = self.verified(account, &hash).await? else {
            return Err(Error::Unauthorized(WRONG));
        };
        // Before the mark of a login at this address, which a password alone does not earn.
        let check = CodeCheck {
            limits: &self.limits,
            factors: &self.factors,
            address: self.address,
        };
        check.run(&login, factor.as_ref(), self.code.as_deref()).await?;
        self.limits.succeeded(&self.attempt).await?;
        if let Err(error) = self.renew_hash(&turn, account, &hash).await {
            tracing::warn!(cause = crate::telemetry::chain(&error), "password hash not renewed");
        }
        Ok(login)
    }

    /// The user, if this is still the hash and the user may act, with the stamp and the second factor that belong to it: a
    /// factor that is added later changes the stamp.
    async fn verified(&self, account: &Account, hash: &str) -> Result<Option<(Login, Option<Factor>)>, Error> {
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
        row.map(|row| Ok((Login::from_row(&row, tenant.clone())?, Factor::from_row(&row)?)))
            .transpose()
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

/// The check of the code of a user whose password was right.
struct CodeCheck<'a> {
    limits: &'a Limits,
    factors: &'a SecondFactors,
    address: IpAddr,
}

impl CodeCheck<'_> {
    async fn run(self, login: &Login, factor: Option<&Factor>, code: Option<&str>) -> Result<(), Error> {
        let Some(factor) = factor else { return Ok(()) };
        let code = code.filter(|code| !code.is_empty()).ok_or(Error::CodeRequired)?;
        let (tenant, user, address) = (&login.tenant, login.id, self.address);
        let attempt = self.limits.take_code(&tenant.name, user, address).await?;
        let by = Actor::user(user, address);
        if !self.factors.accept(tenant, user, factor, code, &by).await? {
            return Err(Error::CodeInvalid);
        }
        self.limits.right_code(attempt).await
    }
}

/// The text for everything that is wrong with a login.
pub const WRONG: &str = "wrong tenant, username or password";
