//! `posduif user`: manages the users of a tenant.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::output::{self, Render, Text, outln};
use super::table::{Cell, Tone, or_nothing};
use super::{Confirm, Global, known_tenant};
use crate::accounts::erasure;
use crate::accounts::password::Passwords;
use crate::accounts::second_factor;
use crate::accounts::sessions::Sessions;
use crate::accounts::standing::Standings;
use crate::accounts::users::{self, Account, Filter, NewPassword, NewUser, Role, UserType};
use crate::admin::status::connect_redis;
use crate::config::Config;
use crate::core::lane::Lanes;
use crate::core::page::{Page, Start};
use crate::core::tenant::Tenant;
use crate::core::time::Timestamp;
use crate::postgres::Database;
use crate::postgres::audit::Actor;
use crate::redis::store::Store;

#[derive(Debug, Args)]
pub(super) struct User {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a user
    Create(Create),
    /// List the users of a tenant
    List {
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        /// Only users of this type
        #[arg(long = "type", value_parser = user_type())]
        user_type: Option<UserType>,
    },
    /// Set the password of a user; ends the user's sessions and their event streams
    Passwd {
        #[command(flatten)]
        target: TargetUser,
        /// At least 8 characters. Prefer the prompt or a line on stdin: arguments are visible to all users of the machine
        #[arg(long, env = "POSDUIF_PASSWORD", hide_env_values = true)]
        password: Option<String>,
    },
    /// Set the role of a user, which counts from the user's next request on
    Role {
        /// The user, by name or id
        #[arg(long)]
        user: String,
        /// The tenant [default: `server.default_tenant`]
        #[arg(long)]
        tenant: Option<String>,
        /// Members manage their own devices, admins those of all users of the tenant
        #[arg(value_parser = role())]
        role: Role,
    },
    /// Remove the second factor of a user who has lost it; ends the user's sessions and their event streams
    RemoveSecondFactor {
        #[command(flatten)]
        target: TargetUser,
    },
    /// Disable a user: logins, devices, sessions and event streams end at once; access tokens too
    Disable {
        #[command(flatten)]
        target: TargetUser,
    },
    /// Delete a user for good, with names, devices, sent messages and encrypted state
    Erase {
        #[command(flatten)]
        target: TargetUser,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Enable a disabled user
    Enable {
        #[command(flatten)]
        target: TargetUser,
    },
}

#[derive(Debug, Args)]
struct TargetUser {
    /// The user, by name or id
    user: String,
    /// The tenant [default: `server.default_tenant`]
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Debug, Args)]
struct Create {
    /// The tenant [default: `server.default_tenant`]
    #[arg(long)]
    tenant: Option<String>,
    /// Unique within the tenant
    #[arg(long)]
    username: String,
    /// A web user logs in; a mobile user has a phone
    #[arg(long = "type", value_parser = user_type())]
    user_type: UserType,
    /// Members manage their own devices, admins those of all users of the tenant
    #[arg(long, value_parser = role(), default_value = Role::Member.as_str())]
    role: Role,
    /// Alternative login name
    #[arg(long)]
    email: Option<String>,
    /// At least 8 characters. For a web user, prefer the prompt or a line on stdin
    #[arg(long, env = "POSDUIF_PASSWORD", hide_env_values = true)]
    password: Option<String>,
}

/// Users per query of a listing.
const PAGE: i64 = 1000;

impl User {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Create(create) => output::print(global, &create.run(&config).await?),
            Verb::List { tenant, user_type } => output::print(global, &list(&config, tenant, user_type).await?),
            Verb::Passwd { target, password } => output::print(global, &target.set_password(&config, password).await?),
            Verb::Role { user, tenant, role } => {
                output::print(global, &TargetUser { user, tenant }.set_role(&config, role).await?)
            }
            Verb::RemoveSecondFactor { target } => output::print(global, &target.remove_second_factor(&config).await?),
            Verb::Disable { target } => output::print(global, &target.set_disabled(&config, true).await?),
            Verb::Erase { target, confirm } => output::print(global, &target.erase(&config, confirm).await?),
            Verb::Enable { target } => output::print(global, &target.set_disabled(&config, false).await?),
        }
    }
}

#[derive(Serialize)]
struct PasswordSet {
    id: Uuid,
    tenant: String,
    username: String,
}

impl Render for PasswordSet {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "set the password of {}; sessions with the old one have ended",
            self.username
        );
    }
}

#[derive(Serialize)]
struct SecondFactorRemoved {
    id: Uuid,
    tenant: String,
    username: String,
    changed: bool,
}

impl Render for SecondFactorRemoved {
    fn text(&self, out: &mut Text) {
        let name = &self.username;
        if self.changed {
            outln!(out, "removed the second factor of {name}; sessions have ended");
        } else {
            outln!(out, "{name} has no second factor");
        }
    }
}

#[derive(Serialize)]
struct RoleSet {
    id: Uuid,
    tenant: String,
    username: String,
    role: Role,
    changed: bool,
}

impl Render for RoleSet {
    fn text(&self, out: &mut Text) {
        let (name, role) = (&self.username, self.role);
        if self.changed {
            outln!(out, "{name} has the role {role}");
        } else {
            outln!(out, "{name} had the role {role} already");
        }
    }
}

#[derive(Serialize)]
struct Disabled {
    id: Uuid,
    tenant: String,
    username: String,
    disabled: bool,
    changed: bool,
}

impl Render for Disabled {
    fn text(&self, out: &mut Text) {
        let name = &self.username;
        match (self.disabled, self.changed) {
            (true, true) => outln!(out, "disabled {name}: logins, devices, sessions and event streams end"),
            (true, false) => outln!(out, "{name} was disabled already"),
            (false, true) => outln!(out, "enabled {name}"),
            (false, false) => outln!(out, "{name} was not disabled"),
        }
    }
}

impl TargetUser {
    async fn find(&self, config: &Config) -> Result<(Database, Tenant, Account)> {
        let (database, tenant) = known_tenant(config, self.tenant.clone()).await?;
        let account = find_user(&database, &tenant, &self.user).await?;
        Ok((database, tenant, account))
    }

    async fn set_password(&self, config: &Config, password: Option<String>) -> Result<PasswordSet> {
        let password = match password {
            Some(password) => password,
            None => read_password()?,
        };
        let (database, tenant, account) = self.find(config).await?;
        // Connected first: sessions with a password that may be compromised must not outlive it.
        let store = connect_redis(config).await?;
        let passwords = Passwords::new(&config.auth)?;
        let by = Actor::cli();
        let new = NewPassword {
            by: &by,
            password: &password,
            username: &account.username,
            replaced: None,
            kept: None,
        };
        users::set_password(&database, &passwords, &tenant, account.id, new).await?;
        sessions(config, database, store)
            .end_all(&tenant, account.id, None)
            .await
            .context("the password is set, but sessions with the old one have not ended; try again")?;
        Ok(PasswordSet {
            id: account.id,
            tenant: tenant.name,
            username: account.username,
        })
    }

    async fn remove_second_factor(&self, config: &Config) -> Result<SecondFactorRemoved> {
        let (database, tenant, account) = self.find(config).await?;
        let store = connect_redis(config).await?;
        let changed = second_factor::remove(&database, &tenant, account.id, None, None, &Actor::cli()).await?;
        if changed {
            sessions(config, database, store)
                .end_all(&tenant, account.id, None)
                .await
                .context("the second factor is removed, but event streams have not ended; they end within moments")?;
        }
        Ok(SecondFactorRemoved {
            id: account.id,
            tenant: tenant.name,
            username: account.username,
            changed,
        })
    }

    async fn set_role(&self, config: &Config, role: Role) -> Result<RoleSet> {
        let (database, tenant, account) = self.find(config).await?;
        let changed = users::set_role(&database, &tenant, account.id, role).await?;
        Ok(RoleSet {
            id: account.id,
            tenant: tenant.name,
            username: account.username,
            role,
            changed,
        })
    }

    async fn erase(&self, config: &Config, confirm: Confirm) -> Result<Erased> {
        let (database, tenant, account) = self.find(config).await?;
        confirm.check(|| {
            format!(
                "{}, the user's devices, sent messages and encrypted state would be deleted for good",
                account.username
            )
        })?;
        erasure::erase(&database, &tenant, account.id, &Actor::cli()).await?;
        Ok(Erased {
            id: account.id,
            tenant: tenant.name,
            username: account.username,
            erased: true,
        })
    }

    async fn set_disabled(&self, config: &Config, disabled: bool) -> Result<Disabled> {
        let (database, tenant, account) = self.find(config).await?;
        let changed = users::set_disabled(&database, &tenant, account.id, disabled).await?;
        Ok(Disabled {
            id: account.id,
            tenant: tenant.name,
            username: account.username,
            disabled,
            changed,
        })
    }
}

/// The sessions of users. Without a receiver of changes, nothing is cached here.
fn sessions(config: &Config, database: Database, store: Store) -> Sessions {
    let standings = Standings::new(database, config, Lanes::of_main(watch::Sender::default().subscribe()));
    Sessions::new(store, standings, config)
}

/// A user of a tenant, by name or id.
pub(super) async fn find_user(database: &Database, tenant: &Tenant, user: &str) -> Result<Account> {
    let account = users::find(database, tenant, user).await;
    account.with_context(|| no_user(tenant, user))
}

pub(super) fn no_user(tenant: &Tenant, user: &str) -> String {
    format!(
        "the tenant {name} has no user {user:?}; `posduif user list --tenant {name}` lists them",
        name = tenant.name
    )
}

#[derive(Serialize)]
struct Erased {
    id: Uuid,
    tenant: String,
    username: String,
    erased: bool,
}

impl Render for Erased {
    fn text(&self, out: &mut Text) {
        outln!(out, "erased the user {} of {}", self.username, self.tenant);
    }
}

#[derive(Serialize)]
struct Created {
    id: Uuid,
    tenant: String,
    username: String,
    user_type: UserType,
    role: Role,
}

impl Render for Created {
    fn text(&self, out: &mut Text) {
        outln!(
            out,
            "created the {} user {} of {}: {}",
            self.user_type,
            self.username,
            self.tenant,
            self.id
        );
    }
}

impl Create {
    async fn run(self, config: &Config) -> Result<Created> {
        let password = match (self.password, self.user_type) {
            (Some(password), _) => Some(password),
            (None, UserType::Web) => Some(read_password()?),
            (None, UserType::Mobile) => None,
        };
        let (database, tenant) = known_tenant(config, self.tenant).await?;
        let user = NewUser {
            username: self.username.clone(),
            user_type: self.user_type,
            role: self.role,
            email: self.email,
            is_email_unverified: false,
            password,
        };
        Ok(Created {
            id: users::create(&database, &config.auth, &tenant.name, user).await?,
            tenant: tenant.name,
            username: self.username,
            user_type: self.user_type,
            role: self.role,
        })
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct UserList(Vec<UserRecord>);

/// A user without presence, which only a running engine has.
#[derive(Serialize)]
struct UserRecord {
    id: Uuid,
    username: String,
    user_type: UserType,
    role: Role,
    device_id: Option<String>,
    last_seen: Option<Timestamp>,
    created_at: Timestamp,
    disabled_at: Option<Timestamp>,
}

async fn list(config: &Config, tenant: Option<String>, user_type: Option<UserType>) -> Result<UserList> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let mut found: Vec<UserRecord> = Vec::new();
    loop {
        // Continues after the last user, so that concurrent changes neither skip nor repeat one.
        let start = match found.last() {
            Some(last) => Start::After(last.id.to_string()),
            None => Start::Offset(0),
        };
        let filter = Filter {
            user_type,
            username: None,
            among: None,
            page: Page { limit: PAGE, start },
        };
        let page = users::list(&database, &tenant, &filter).await?;
        found.extend(page.rows.into_iter().map(|user| UserRecord {
            id: user.id,
            username: user.username,
            user_type: user.user_type,
            role: user.role,
            device_id: user.device_id,
            last_seen: user.last_seen,
            created_at: user.created_at,
            disabled_at: user.disabled_at,
        }));
        if !page.has_more {
            return Ok(UserList(found));
        }
    }
}

impl Render for UserList {
    fn text(&self, out: &mut Text) {
        let row = |user: &UserRecord| {
            let (state, tone) = match user.disabled_at {
                Some(_) => ("disabled", Tone::Warning),
                None => ("active", Tone::Plain),
            };
            [
                Cell::from(user.username.clone()),
                Cell::from(user.user_type.as_str()),
                Cell::from(user.role.as_str()),
                Cell::from(state).toned(tone),
                Cell::from(user.id.to_string()),
                Cell::from(or_nothing(user.device_id.as_ref())),
                Cell::from(or_never(user.last_seen)),
            ]
        };
        let header = ["USERNAME", "TYPE", "ROLE", "STATE", "ID", "DEVICE", "LAST SEEN"];
        out.table(header, self.0.iter().map(row));
    }
}

/// A time, or `never`.
pub(super) fn or_never(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| time.to_string())
}

/// Reads a password: twice, without echo, on a terminal; else a line of stdin.
fn read_password() -> Result<String> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        prompt_password()?
    } else {
        let mut line = String::new();
        stdin
            .lock()
            .read_line(&mut line)
            .context("cannot read a password from stdin")?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() {
        bail!(NO_PASSWORD);
    }
    Ok(password)
}

const NO_PASSWORD: &str = "a password is required: --password, POSDUIF_PASSWORD, or a line on stdin";

fn prompt_password() -> Result<String> {
    let terminal = console::Term::stderr();
    if !terminal.is_term() {
        bail!(NO_PASSWORD);
    }
    let prompt = |text: &str| {
        terminal.write_str(text)?;
        terminal.read_secure_line()
    };
    let password = prompt("Password: ").context("cannot read a password from the terminal")?;
    if !password.is_empty()
        && prompt("Repeat password: ").context("cannot read a password from the terminal")? != password
    {
        bail!("the two passwords differ; nothing was changed");
    }
    Ok(password)
}

fn user_type() -> impl TypedValueParser<Value = UserType> {
    PossibleValuesParser::new([UserType::Web.as_str(), UserType::Mobile.as_str()])
        .try_map(|text| text.parse::<UserType>())
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new([Role::Member.as_str(), Role::Admin.as_str()]).try_map(|text| text.parse::<Role>())
}
