//! Users of a tenant: people at the web and people with a phone.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::caches::Caches;
use crate::accounts::limits::{Attempt, Limits};
use crate::accounts::loader::Loader;
use crate::accounts::password::{Passwords, Turn};
use crate::config;
use crate::core::page::{Page, Rows};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::{self, Error, check_line, check_text};
use crate::live::presence::Entry;
use crate::postgres::tenants;
use crate::postgres::{self, Database, sql};

/// Where a user works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UserType {
    /// At the web; logs in with a password and writes to mobile users.
    Web,
    /// On a phone; enrolled by a web user.
    Mobile,
}

impl UserType {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Mobile => "mobile",
        }
    }
}

impl fmt::Display for UserType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UserType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "web" => Ok(Self::Web),
            "mobile" => Ok(Self::Mobile),
            _ => Err(Error::invalid("user_type", "must be web or mobile")),
        }
    }
}

/// A user as the API shows one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Its id.
    pub id: Uuid,
    /// Unique within the tenant, whatever the case of its letters.
    pub username: String,
    /// Web or mobile.
    pub user_type: UserType,
    /// The device that was enrolled last and is not revoked.
    pub device_id: Option<String>,
    /// Whether it is online or away. Comes from presence, not from the row; see [`User::set_presence`].
    pub online_status: bool,
    /// When it was last seen.
    pub last_seen: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was disabled, which is for the operator to know.
    #[serde(skip)]
    pub disabled_at: Option<Timestamp>,
}

impl User {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            device_id: row.try_get("device_id")?,
            online_status: false,
            last_seen: row.try_get("last_seen")?,
            created_at: row.try_get("created_at")?,
            disabled_at: row.try_get("disabled_at")?,
        })
    }

    /// Takes over what presence knows: who is here is seen at this moment.
    pub fn set_presence(&mut self, entry: &Entry) {
        self.online_status = entry.status.is_present();
        let seen = match self.online_status {
            true => Some(Timestamp::now()),
            false => DateTime::from_timestamp_millis(entry.seen_ms).map(Timestamp),
        };
        self.last_seen = self.last_seen.max(seen);
    }
}

/// A user to be made.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// 1 to 255 characters.
    pub username: String,
    /// Web or mobile.
    pub user_type: UserType,
    /// Another name to log in with.
    pub email: Option<String>,
    /// Without one, nobody can log in as this user.
    pub password: Option<String>,
}

/// Makes a user, and its credentials in the same transaction. For the command line and set-up.
///
/// # Errors
/// [`Error::Conflict`] when the username or email is taken, [`Error::NotFound`] for the tenant, [`Error::Invalid`].
pub async fn create(database: &Database, auth: &config::Auth, tenant: &str, new: NewUser) -> Result<Uuid, Error> {
    check(&new)?;
    let tenant = tenants::find(database, tenant)
        .await?
        .ok_or(Error::NotFound("tenant"))?;
    let passwords = Passwords::new(auth).map_err(|error| Error::Internal(error.to_string()))?;
    insert(database, &passwords, &tenant, &new).await
}

/// Whether anybody may register in a tenant: that is its operator's word, or `everywhere`. `None` when there is no such
/// tenant.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn open_to_all(database: &Database, tenant: &str, everywhere: bool) -> Result<Option<Tenant>, Error> {
    let Some(tenant) = Tenant::named(tenant) else {
        return Ok(None);
    };
    let row = database
        .query_opt(
            &sql!("accounts/tenant_registration"),
            &[(&tenant.name, Type::TEXT), (&everywhere, Type::BOOL)],
        )
        .await?;
    Ok(row.map(|_| tenant))
}

/// Checks names and email of a user to be made.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check(new: &NewUser) -> Result<(), Error> {
    check_name("username", &new.username)?;
    let email = new.email.as_deref();
    if let Some(email) = email {
        check_email(email)?;
    }
    // Else one could stand in the way of another's login by email.
    let is_same = email.is_some_and(|email| email.to_lowercase() == new.username.to_lowercase());
    if new.username.contains('@') && !is_same {
        return Err(Error::invalid("username", "must not contain @, unless it is the email"));
    }
    Ok(())
}

/// Checks the form of an email: what browsers take for one (WHATWG HTML, section 4.10.5.1.5), and letters beyond ASCII
/// (RFC 6531). Whether it exists, only a mail to it can tell.
fn check_email(email: &str) -> Result<(), Error> {
    const LOCAL: &str = ".!#$%&'*+/=?^_`{|}~-";
    check_text("email", email, 254)?;
    let is_outbox_message = |c: char| c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_alphanumeric());
    let is_local = |local: &str| {
        (1..=64).contains(&local.len()) && local.chars().all(|c| is_outbox_message(c) || LOCAL.contains(c))
    };
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| is_outbox_message(c) || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match email.split_once('@') {
        Some((local, domain)) if is_local(local) && domain.split('.').all(is_label) => Ok(()),
        _ => Err(Error::invalid(
            "email",
            "must be an email address, such as bob@example.com",
        )),
    }
}

/// Makes a user whose names were checked.
///
/// # Errors
/// Like [`create`].
pub async fn insert(database: &Database, passwords: &Passwords, tenant: &Tenant, new: &NewUser) -> Result<Uuid, Error> {
    let hash = match &new.password {
        Some(password) => Some(passwords.hash(password).await?),
        None => None,
    };
    let created = database
        .query_opt(
            &sql!("accounts/user_insert", tenant),
            &[
                (&new.username, Type::TEXT),
                (&new.user_type.as_str(), Type::TEXT),
                (&new.email, Type::TEXT),
                (&tenant.name, Type::TEXT),
                (&hash, Type::TEXT),
            ],
        )
        .await
        .map_err(|error| taken(error, &new.username))?
        .ok_or_else(|| Error::Internal("inserting a user gave no row".into()))?;
    Ok(created.try_get("id")?)
}

/// What to list.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only this type.
    pub user_type: Option<UserType>,
    /// Only usernames that contain this, whatever the case.
    pub username: Option<String>,
    /// Only those among these, or only others.
    pub among: Option<(bool, Vec<Uuid>)>,
    /// Which part of the list.
    pub page: Page,
}

/// A page of the users that pass the filter, by username (whatever the case) and id. How many mobile users there are is
/// remembered where there are caches.
///
/// # Errors
/// [`Error::Invalid`] when the page is beside no user of the tenant; when Postgres cannot be asked.
pub async fn list(
    database: &Database,
    caches: Option<&Caches>,
    tenant: &Tenant,
    filter: &Filter,
) -> Result<Rows<User>, Error> {
    let (is_among, ids) = match &filter.among {
        Some((is_among, ids)) => (Some(*is_among), ids.as_slice()),
        None => (None, [].as_slice()),
    };
    let (page, user_type) = (&filter.page, filter.user_type.map(UserType::as_str));
    // Names go up the alphabet, so before a row is against the order.
    let place = feature::page_row_id(page)?;
    let is_before = place.is_some() && !page.is_after();
    let statement = &sql!("accounts/user_list", tenant);
    let ask = |is_counted: bool| async move {
        let rows = database
            .query(
                statement,
                &[
                    (&user_type, Type::TEXT),
                    (&filter.username, Type::TEXT),
                    (&is_among, Type::BOOL),
                    (&ids, Type::UUID_ARRAY),
                    (&page.rows_max(), Type::INT8),
                    (&page.offset(), Type::INT8),
                    (&place, Type::UUID),
                    (&is_before, Type::BOOL),
                    (&is_counted, Type::BOOL),
                ],
            )
            .await?;
        feature::read_page_seen(&rows, page, is_before, User::from_row)
    };
    match (filter, caches) {
        (
            Filter {
                user_type: Some(UserType::Mobile),
                username: None,
                among: None,
                ..
            },
            Some(caches),
        ) if place.is_none() => caches.users_page(tenant, ask).await,
        _ => Ok(ask(place.is_none()).await?.0),
    }
}

/// Tells the types of users who may act, for all who ask at the same time together.
pub fn types(database: Database) -> Loader<(Tenant, Uuid), UserType> {
    Loader::by_tenant(database, |database, tenant, users| async move {
        active_types(&database, &tenant, &users).await
    })
}

/// The types of those of these users who may act, by their ids.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn active_types(
    database: &Database,
    tenant: &Tenant,
    users: &[Uuid],
) -> Result<HashMap<Uuid, UserType>, Error> {
    let statement = sql!("accounts/users_active_type", tenant);
    let rows = database.query(&statement, &[(&users, Type::UUID_ARRAY)]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get::<_, &str>("user_type")?.parse()?)))
        .collect()
}

/// Whether the user exists and is neither disabled nor deleted.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn is_active(database: &Database, tenant: &Tenant, user: Uuid) -> Result<bool, Error> {
    let statement = sql!("accounts/user_active_type", tenant);
    Ok(database.query_opt(&statement, &[(&user, Type::UUID)]).await?.is_some())
}

/// One user, as if nobody were online, and what the look has seen.
///
/// # Errors
/// [`Error::NotFound`] when it does not exist or is deleted.
pub(crate) async fn fetch(database: &Database, tenant: &Tenant, id: Uuid) -> Result<(User, Snapshot), Error> {
    let row = database
        .query_often(&sql!("accounts/user_get", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("user"))?;
    Ok((User::from_row(&row)?, Snapshot::from_row(&row)?))
}

/// Ids of a tenant's users in their order, deleted users included, behind `after`.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn ids(database: &Database, tenant: &Tenant, after: Uuid, limit: i64) -> Result<Vec<Uuid>, Error> {
    let rows = database
        .query(
            &sql!("accounts/user_ids", tenant),
            &[(&after, Type::UUID), (&limit, Type::INT8)],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Who a user is, and whether they may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Their id.
    pub id: Uuid,
    /// Their username, as it is written.
    pub username: String,
    /// Web or mobile.
    pub user_type: UserType,
    /// When they were disabled.
    pub disabled_at: Option<Timestamp>,
}

/// The user of a name, whatever the case of its letters, or of an id; disabled ones too. For the command line.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn find(database: &Database, tenant: &Tenant, name: &str) -> Result<Account, Error> {
    const NONE: Error = Error::NotFound("user");
    check_name("username", name).map_err(|_| NONE)?;
    let row = database
        .query_opt(
            &sql!("accounts/user_find", tenant),
            &[(&name, Type::TEXT), (&Uuid::try_parse(name).ok(), Type::UUID)],
        )
        .await?
        .ok_or(NONE)?;
    Ok(Account {
        id: row.try_get("id")?,
        username: row.try_get("username")?,
        user_type: row.try_get::<_, &str>("user_type")?.parse()?,
        disabled_at: row.try_get("disabled_at")?,
    })
}

/// Sets a user's password. Their sessions go on; who wants them to end ends them.
///
/// # Errors
/// [`Error::Invalid`] when it is too short or too long.
pub async fn set_password(
    database: &Database,
    passwords: &Passwords,
    tenant: &Tenant,
    user: Uuid,
    password: &str,
) -> Result<(), Error> {
    let hash = passwords.hash(password).await?;
    database
        .query(
            &sql!("accounts/user_set_password"),
            &[(&tenant.name, Type::TEXT), (&user, Type::UUID), (&hash, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Disables a user, or lets one act again. Engines learn of it by the log: streams, devices and sessions of a disabled
/// user end at once. Gives false when nothing changed.
///
/// # Errors
/// When Postgres does not do it.
pub async fn set_disabled(database: &Database, tenant: &Tenant, user: Uuid, disabled: bool) -> Result<bool, Error> {
    let row = database
        .query_opt(
            &sql!("accounts/user_set_disabled", tenant),
            &[(&user, Type::UUID), (&disabled, Type::BOOL)],
        )
        .await?;
    Ok(row.is_some())
}

/// Who logged in.
#[derive(Debug, Clone)]
pub struct Login {
    /// Their tenant.
    pub tenant: Tenant,
    /// Their id.
    pub id: Uuid,
    /// Their username, as it is written.
    pub username: String,
    /// Web or mobile.
    pub user_type: UserType,
}

/// Who may act as this user: it exists and is neither disabled nor deleted. `None` also when the tenant is gone.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn active(database: &Database, tenant: &Tenant, user: Uuid) -> Result<Option<Login>, Error> {
    if tenants::find(database, &tenant.name).await?.is_none() {
        return Ok(None);
    }
    let statement = sql!("accounts/user_active", tenant);
    let row = database.query_opt(&statement, &[(&user, Type::UUID)]).await?;
    row.map(|row| {
        Ok(Login {
            id: user,
            username: row.try_get("username")?,
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            tenant: tenant.clone(),
        })
    })
    .transpose()
}

/// Checks a password for a username or an email. Whatever is wrong (tenant, name, password, a disabled user), the
/// error and the time it takes are the same. A wrong one counts against the limits; they are asked when the check's turn
/// has come, so that no more passwords are tried than they allow, and before, so that nobody beyond them waits in line.
///
/// # Errors
/// [`Error::Unauthorized`], [`Error::Limited`], or what keeps the check from being made.
pub async fn verify_password(
    database: &Database,
    (passwords, limits): (&Passwords, &Limits),
    attempt: &Attempt,
    tenant: &str,
    name: &str,
    password: &str,
) -> Result<Login, Error> {
    limits.check(attempt).await?;
    let mut stored: Option<String> = None;
    let mut login = None;
    if let Some(tenant) = tenants::find(database, tenant).await?
        && check_name("username", name).is_ok()
    {
        let row = database
            .query_opt(
                &sql!("accounts/user_credentials", tenant),
                &[(&name, Type::TEXT), (&tenant.name, Type::TEXT)],
            )
            .await?;
        if let Some(row) = row {
            stored = row.try_get("password_hash")?;
            login = Some(Login {
                id: row.try_get("id")?,
                username: row.try_get("username")?,
                user_type: row.try_get::<_, &str>("user_type")?.parse()?,
                tenant,
            });
        }
    }
    let turn = passwords.turn().await?;
    limits.check(attempt).await?;
    let (limits, attempt, password) = (limits.clone(), attempt.clone(), password.to_owned());
    let user = login.as_ref().map(|login| (login.tenant.name.clone(), login.id));
    let database = database.clone();
    // A task of its own, which goes on when the client leaves: nobody guesses uncounted.
    let checking = tokio::spawn(async move {
        let is_right = turn.verify(&password, stored.clone()).await? && user.is_some();
        if is_right {
            limits.succeeded(&attempt).await?;
            if let (Some((tenant, user)), Some(stored)) = (user, stored)
                && let Err(error) = renew_hash(&database, &turn, &tenant, user, &password, &stored).await
            {
                tracing::warn!(%error, "a password's hash stays at its former cost until the next login");
            }
        } else {
            limits.failed(&attempt).await?;
        }
        // The next may look at the limits when this one is counted.
        drop(turn);
        Ok::<_, Error>(is_right)
    });
    let is_right = checking
        .await
        .map_err(|error| Error::Internal(format!("checking a password failed: {error}")))??;
    login.filter(|_| is_right).ok_or(Error::Unauthorized(WRONG))
}

/// After a change of Argon2's cost: a login is when the password is there to be hashed anew.
async fn renew_hash(
    database: &Database,
    turn: &Turn,
    tenant: &str,
    user: Uuid,
    password: &str,
    stored: &str,
) -> Result<(), Error> {
    let Some(renewed) = turn.renew(password, stored).await? else {
        return Ok(());
    };
    database
        .query(
            &sql!("accounts/credentials_rehash"),
            &[
                (&tenant, Type::TEXT),
                (&user, Type::UUID),
                (&stored, Type::TEXT),
                (&renewed, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

const WRONG: &str = "wrong tenant, username or password";

/// Checks a username or email.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), Error> {
    check_line(field, name, 255)?;
    if name.trim() != name {
        return Err(Error::invalid(field, "must not begin or end with a space"));
    }
    Ok(())
}

/// Tells a taken name from other errors.
pub(crate) fn taken(error: postgres::Error, username: &str) -> Error {
    if error.violates("users_username") {
        Error::Conflict(format!("the username {username:?} is taken"))
    } else if error.violates("users_email") {
        Error::Conflict("the email is taken".into())
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails_are_checked() {
        for good in [
            "bob@example.com",
            "Bob.Smith+tag@mail.example.co.uk",
            "o'hara@example.com",
            "b@localhost",
            "jürgen@bücher.example",
        ] {
            assert!(check_email(good).is_ok(), "{good}");
        }
        let long = format!("{}@example.com", "x".repeat(65));
        for bad in [
            "",
            "bob",
            "@",
            "bob@",
            "@example.com",
            "a@b@c",
            "a b@example.com",
            "bob@exam ple.com",
            " bob@example.com",
            "bob@-example.com",
            "bob@example-.com",
            "bob@example..com",
            "bob@.com",
            "bob@example.com.",
            "a@b\0",
            "bob@example.com\n",
            "<bob@example.com>",
            &long,
        ] {
            assert!(check_email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_username_is_no_other_users_email() {
        let user = |username: &str, email: Option<&str>| NewUser {
            username: username.into(),
            user_type: UserType::Web,
            email: email.map(str::to_owned),
            password: None,
        };
        assert!(check(&user("bob", Some("bob@example.com"))).is_ok());
        assert!(check(&user("Bob@example.com", Some("bob@Example.com"))).is_ok());
        assert!(check(&user("bob@example.com", None)).is_err());
        assert!(check(&user("bob@example.com", Some("eve@example.com"))).is_err());
    }
}
