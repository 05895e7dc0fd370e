//! Users of a tenant, and their cache.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::accounts::loader::TenantLoader;
use crate::accounts::password::Passwords;
use crate::accounts::user_names;
use crate::config;
use crate::core::operation::Operation;
use crate::core::page::{Page, Rows, Start};
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::feature::cache::{Key, Lookup, RowCache, Settings};
use crate::feature::{self, Error};
use crate::live::presence::Entry;
use crate::live::tail::{ChangeListener, Notice};
use crate::postgres::audit::Actor;
use crate::postgres::tenants;
use crate::postgres::{self, Database, sql};
use crate::telemetry::metrics;

/// The kind of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserType {
    /// Logs in with a password and writes to mobile users.
    Web,
    /// Has devices, which a web user enrolls.
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

/// What a user may do beyond the own account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Adds and manages own devices.
    #[default]
    Member,
    /// Adds and manages the devices of all users of the tenant.
    Admin,
}

impl Role {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "member" => Ok(Self::Member),
            "admin" => Ok(Self::Admin),
            _ => Err(Error::invalid("role", "must be member or admin")),
        }
    }
}

/// A user as the API shows one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    pub id: Uuid,
    /// Unique within the tenant, case-insensitively.
    pub username: String,
    pub user_type: UserType,
    pub role: Role,
    /// The device that was enrolled last and is not revoked.
    pub device_id: Option<String>,
    /// Whether it is online or away. Comes from presence, not from the row; see [`User::set_presence`].
    pub online_status: bool,
    pub last_seen: Option<Timestamp>,
    pub created_at: Timestamp,
    /// Not part of the API: operators read it.
    #[serde(skip)]
    pub disabled_at: Option<Timestamp>,
}

impl User {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            username: row.try_get("username")?,
            user_type: row.try_get::<_, &str>("user_type")?.parse()?,
            role: row.try_get::<_, &str>("role")?.parse()?,
            device_id: row.try_get("device_id")?,
            online_status: false,
            last_seen: row.try_get("last_seen")?,
            created_at: row.try_get("created_at")?,
            disabled_at: row.try_get("disabled_at")?,
        })
    }

    /// Applies the presence entry: a present user was last seen now.
    pub fn set_presence(&mut self, entry: &Entry) {
        self.online_status = entry.status.is_present();
        let seen = if self.online_status {
            Some(Timestamp::now())
        } else {
            DateTime::from_timestamp_millis(entry.seen_ms).map(Timestamp)
        };
        self.last_seen = self.last_seen.max(seen);
    }
}

/// A user to create.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// 1 to 255 characters.
    pub username: String,
    pub user_type: UserType,
    pub role: Role,
    /// A second name to log in with.
    pub email: Option<String>,
    /// Whether only the user says that the email is the user's.
    pub is_email_unverified: bool,
    /// Without a password the user cannot log in.
    pub password: Option<String>,
}

/// Creates a user and its credentials in one transaction, for the command line.
///
/// # Errors
/// [`Error::Conflict`] when the username or email is taken, [`Error::NotFound`] for the tenant, [`Error::Invalid`].
pub async fn create(database: &Database, auth: &config::Auth, tenant: &str, new: NewUser) -> Result<Uuid, Error> {
    user_names::check(&new)?;
    let tenant = tenants::find(database, tenant)
        .await?
        .ok_or(Error::NotFound("tenant"))?;
    let passwords = Passwords::new(auth).map_err(|error| Error::Internal(error.to_string()))?;
    insert(database, &passwords, &tenant, &new, &Actor::cli()).await
}

/// The tenant, if it exists and its registration is open, there or `everywhere`.
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

/// Creates a user whose names were checked. Errors as of [`create`].
pub async fn insert(
    database: &Database,
    passwords: &Passwords,
    tenant: &Tenant,
    new: &NewUser,
    by: &Actor,
) -> Result<Uuid, Error> {
    let hash = match &new.password {
        Some(password) => Some(passwords.hash(password, &new.username).await?),
        None => None,
    };
    let [actor, address] = by.params();
    let created = database
        .query_opt(
            &sql!("accounts/user_insert", tenant),
            &[
                (&new.username, Type::TEXT),
                (&new.user_type.as_str(), Type::TEXT),
                (&new.email, Type::TEXT),
                (&tenant.name, Type::TEXT),
                (&hash, Type::TEXT),
                (&new.role.as_str(), Type::TEXT),
                actor,
                address,
                (&new.is_email_unverified, Type::BOOL),
            ],
        )
        .await
        .map_err(|error| taken(error, &new.username))?
        .ok_or_else(|| Error::Internal("inserting a user gave no row".into()))?;
    Ok(created.try_get("id")?)
}

/// Which users to list.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only this type.
    pub user_type: Option<UserType>,
    /// Only usernames that contain this, case-insensitively.
    pub username: Option<String>,
    pub among: Option<Among>,
    pub page: Page,
}

/// A restriction to some users.
#[derive(Debug, Clone)]
pub enum Among {
    These(Vec<Uuid>),
    Others(Vec<Uuid>),
}

/// The users of a process's tenants, with a cache of users and of the number of mobile users. Cloning shares the cache. The
/// change stream keeps it consistent as long as the hub has it among its listeners.
#[derive(Debug, Clone)]
pub struct Users(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Database,
    users: RowCache<User>,
    totals: RowCache<i64>,
}

impl Users {
    pub fn new(database: Database, settings: &Settings) -> Self {
        Self(Arc::new(Shared {
            database,
            users: RowCache::new(metrics::Cache::User, settings),
            totals: RowCache::new(metrics::Cache::UsersTotal, settings),
        }))
    }

    /// One user, as offline: see [`User::set_presence`].
    ///
    /// # Errors
    /// [`Error::NotFound`] when it does not exist or is deleted.
    pub async fn get(&self, tenant: &Tenant, id: Uuid) -> Result<User, Error> {
        let ticket = match self.0.users.lookup(Key::new(&tenant.name, id)) {
            Lookup::Hit(user) => return Ok(user),
            Lookup::Miss(ticket) => ticket,
        };
        let (user, snapshot) = fetch(&self.0.database, tenant, id).await?;
        if let Some(ticket) = ticket {
            self.0.users.insert(ticket, user.clone(), snapshot);
        }
        Ok(user)
    }

    /// Like [`list`]. The number of all mobile users is cached.
    pub async fn list(&self, tenant: &Tenant, filter: &Filter) -> Result<Rows<User>, Error> {
        let database = &self.0.database;
        let is_total = matches!(
            filter,
            Filter {
                user_type: Some(UserType::Mobile),
                username: None,
                among: None,
                page: Page {
                    start: Start::Offset(_),
                    ..
                },
            }
        );
        if !is_total {
            return list(database, tenant, filter).await;
        }
        match self.0.totals.lookup(Key::tenant(&tenant.name)) {
            Lookup::Hit(total) => {
                let mut page = fetch_page(database, tenant, filter, false).await?.0;
                page.total = Some(total);
                Ok(page)
            }
            Lookup::Miss(ticket) => {
                let (page, snapshot) = fetch_page(database, tenant, filter, true).await?;
                if let Some(ticket) = ticket {
                    self.0.totals.insert(ticket, page.total.unwrap_or_default(), snapshot);
                }
                Ok(page)
            }
        }
    }

    /// This process has changed a user or a device of the user.
    pub(crate) fn invalidate(&self, tenant: &str, user: Uuid) {
        self.0.users.invalidate_written(&Key::new(tenant, user));
        self.0.totals.invalidate_written(&Key::tenant(tenant));
    }
}

impl Users {
    /// Changes of a tenant were missed.
    fn lost_of(&self, tenant: &str) {
        self.0.users.invalidate_tenant(tenant);
        self.0.totals.invalidate_tenant(tenant);
    }
}

impl ChangeListener for Users {
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>) {
        let Shared {
            users: rows, totals, ..
        } = &*self.0;
        match (&*notice.table, users) {
            _ if notice.op == Operation::Reset => self.lost_of(tenant),
            ("users", recipients) => {
                // All users of the tenant receive the creation, deletion or visible change of a user.
                if recipients.is_none() {
                    totals.invalidate_changed(&Key::tenant(tenant), notice.xid);
                }
                match notice.row_uuid() {
                    Some(id) => rows.invalidate_changed(&Key::new(tenant, id), notice.xid),
                    None => rows.invalidate_tenant(tenant),
                }
            }
            // A user is shown with the id of a device.
            ("devices", Some(users)) => {
                for user in users {
                    rows.invalidate_changed(&Key::new(tenant, *user), notice.xid);
                }
            }
            ("devices" | "", None) => self.lost_of(tenant),
            _ => {}
        }
    }

    fn lost(&self) {
        self.0.users.invalidate_all();
        self.0.totals.invalidate_all();
    }
}

/// A page of the users that pass the filter, by username (case-insensitively) and id.
///
/// # Errors
/// [`Error::Invalid`] when the row of `before` or `after` is no user of the tenant.
pub async fn list(database: &Database, tenant: &Tenant, filter: &Filter) -> Result<Rows<User>, Error> {
    let is_counted = filter.page.place().is_none();
    Ok(fetch_page(database, tenant, filter, is_counted).await?.0)
}

/// A page, and the snapshot of its statement.
async fn fetch_page(
    database: &Database,
    tenant: &Tenant,
    filter: &Filter,
    is_counted: bool,
) -> Result<(Rows<User>, Snapshot), Error> {
    let (is_among, ids) = match &filter.among {
        Some(Among::These(ids)) => (Some(true), ids.as_slice()),
        Some(Among::Others(ids)) => (Some(false), ids.as_slice()),
        None => (None, [].as_slice()),
    };
    let (page, user_type) = (&filter.page, filter.user_type.map(UserType::as_str));
    let place = feature::page_row_id(page)?;
    // Names are in ascending order, so the rows before one are read in descending order.
    let is_before = place.is_some() && !page.is_after();
    let rows = database
        .query(
            &sql!("accounts/user_list", tenant),
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
}

/// Loads the types of active users; concurrent requests share a statement.
pub fn types(database: Database) -> TenantLoader<UserType> {
    TenantLoader::new(database, |database, tenant, users| async move {
        active_types(&database, &tenant, &users).await
    })
}

/// The types of those of these users that are neither disabled nor deleted, by id.
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

/// Whether the user is an admin who may act. Read from the row, so that a new role counts at once.
pub async fn is_admin(database: &Database, tenant: &Tenant, user: Uuid) -> Result<bool, Error> {
    let statement = sql!("accounts/user_role", tenant);
    let row = database.query_opt(&statement, &[(&user, Type::UUID)]).await?;
    Ok(match row {
        Some(row) => row.try_get::<_, &str>("role")?.parse::<Role>()? == Role::Admin,
        None => false,
    })
}

/// One user, and the snapshot of the statement.
async fn fetch(database: &Database, tenant: &Tenant, id: Uuid) -> Result<(User, Snapshot), Error> {
    let row = database
        .query_often(&sql!("accounts/user_get", tenant), &[(&id, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("user"))?;
    Ok((User::from_row(&row)?, Snapshot::from_row(&row)?))
}

/// Ids of a tenant's users in ascending order, deleted users included, greater than `after`.
pub async fn ids(database: &Database, tenant: &Tenant, after: Uuid, limit: i64) -> Result<Vec<Uuid>, Error> {
    let rows = database
        .query(
            &sql!("accounts/user_ids", tenant),
            &[(&after, Type::UUID), (&limit, Type::INT8)],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// A user as the command line shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: Uuid,
    pub username: String,
    pub user_type: UserType,
    pub disabled_at: Option<Timestamp>,
}

/// The user of a name, case-insensitively, or of an id; disabled ones too. For the command line.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn find(database: &Database, tenant: &Tenant, name: &str) -> Result<Account, Error> {
    const NONE: Error = Error::NotFound("user");
    user_names::check_name("username", name).map_err(|_| NONE)?;
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

/// A password to set.
#[derive(Clone, Copy)]
pub struct NewPassword<'a> {
    pub by: &'a Actor,
    pub password: &'a str,
    /// The user's name, which the password must not be.
    pub username: &'a str,
    /// The security stamp that it replaces; `None` for whichever there is.
    pub replaced: Option<Uuid>,
    /// The session that goes on.
    pub kept: Option<Uuid>,
}

/// Sets a user's password and changes the security stamp. Streams end when [`super::sessions::Sessions::end_all`] is
/// called afterwards.
///
/// # Errors
/// [`Error::Invalid`] when it is too short, too long or easily guessed, [`Error::Conflict`] when the stamp is another
/// by now, or the user is deleted.
pub async fn set_password(
    database: &Database,
    passwords: &Passwords,
    tenant: &Tenant,
    user: Uuid,
    new: NewPassword<'_>,
) -> Result<(), Error> {
    let hash = passwords.hash(new.password, new.username).await?;
    let [actor, address] = new.by.params();
    database
        .query_opt(
            &sql!("accounts/user_set_password", tenant),
            &[
                (&tenant.name, Type::TEXT),
                (&user, Type::UUID),
                (&hash, Type::TEXT),
                (&new.kept, Type::UUID),
                (&new.replaced, Type::UUID),
                actor,
                address,
            ],
        )
        .await?
        .map(|_| ())
        .ok_or_else(|| {
            Error::Conflict("the password was changed, or the user deleted, by another request meanwhile".into())
        })
}

/// Sets a user's role, for the command line. Returns false when nothing changed.
pub async fn set_role(database: &Database, tenant: &Tenant, user: Uuid, role: Role) -> Result<bool, Error> {
    let by = Actor::cli();
    let [actor, address] = by.params();
    let row = database
        .query_opt(
            &sql!("accounts/user_set_role", tenant),
            &[
                (&user, Type::UUID),
                (&role.as_str(), Type::TEXT),
                (&tenant.name, Type::TEXT),
                actor,
                address,
            ],
        )
        .await?;
    Ok(row.is_some())
}

/// Disables or enables a user, for the command line, and changes the security stamp. Engines receive the change through the
/// log and end the streams, devices and sessions of a disabled user. Returns false when nothing changed.
pub async fn set_disabled(database: &Database, tenant: &Tenant, user: Uuid, disabled: bool) -> Result<bool, Error> {
    let by = Actor::cli();
    let [actor, address] = by.params();
    let row = database
        .query_opt(
            &sql!("accounts/user_set_disabled", tenant),
            &[
                (&user, Type::UUID),
                (&disabled, Type::BOOL),
                (&tenant.name, Type::TEXT),
                actor,
                address,
            ],
        )
        .await?;
    Ok(row.is_some())
}

/// Maps a violation of the unique indexes of names to [`Error::Conflict`].
pub(crate) fn taken(error: postgres::Error, username: &str) -> Error {
    if error.violates("users_username") {
        Error::Conflict(format!("the username {username:?} is taken"))
    } else if error.violates("users_email") {
        Error::Conflict("the email is taken".into())
    } else {
        error.into()
    }
}
