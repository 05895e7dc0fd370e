//! `posduif user`: users of a tenant.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{self, outln};
use super::table::{Cell, NOTHING, Tone};
use super::{Global, known_tenant};
use crate::accounts::password::Passwords;
use crate::accounts::sessions::Sessions;
use crate::accounts::users::{self, Account, Filter, NewUser, UserType};
use crate::config::Config;
use crate::core::page::{Page, Start};
use crate::core::tenant::Tenant;
use crate::postgres::Database;

/// Arguments of `posduif user`.
#[derive(Debug, Args)]
pub(super) struct User {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a user
    Create(Create),
    /// Show a tenant's users
    List {
        /// The tenant; without it `server.default_tenant`
        #[arg(long)]
        tenant: Option<String>,
        /// Only users of this type
        #[arg(long = "type", value_parser = user_type())]
        user_type: Option<UserType>,
    },
    /// Set a user's password; their sessions end, and with them their streams
    Passwd {
        #[command(flatten)]
        who: Who,
        /// At least 8 characters; better typed, or as a line on stdin, since arguments are visible to everybody on the machine
        #[arg(long, env = "POSDUIF_PASSWORD", hide_env_values = true)]
        password: Option<String>,
    },
    /// Disable a user: logins, devices, sessions and open streams end at once, access tokens run out
    Disable {
        #[command(flatten)]
        who: Who,
    },
    /// Let a disabled user act again
    Enable {
        #[command(flatten)]
        who: Who,
    },
}

/// Which user.
#[derive(Debug, Args)]
struct Who {
    /// The user, by name or id
    user: String,
    /// The tenant; without it `server.default_tenant`
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Debug, Args)]
struct Create {
    /// The tenant; without it `server.default_tenant`
    #[arg(long)]
    tenant: Option<String>,
    /// Unique within the tenant
    #[arg(long)]
    username: String,
    /// A web user logs in; a mobile user has a phone
    #[arg(long = "type", value_parser = user_type())]
    user_type: UserType,
    /// Another name to log in with
    #[arg(long)]
    email: Option<String>,
    /// At least 8 characters; a web user's may also come as a line on stdin, or be typed
    #[arg(long, env = "POSDUIF_PASSWORD", hide_env_values = true)]
    password: Option<String>,
}

/// Users that one listing asks for at a time.
const PAGE: i64 = 1000;

impl User {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Create(create) => create.run(global, &config).await,
            Verb::List { tenant, user_type } => list(global, &config, tenant, user_type).await,
            Verb::Passwd { who, password } => who.set_password(global, &config, password).await,
            Verb::Disable { who } => who.set_disabled(global, &config, true).await,
            Verb::Enable { who } => who.set_disabled(global, &config, false).await,
        }
    }
}

impl Who {
    async fn find(&self, config: &Config) -> Result<(Database, Tenant, Account)> {
        let (database, tenant) = known_tenant(config, self.tenant.clone()).await?;
        let account = users::find(&database, &tenant, &self.user).await.with_context(|| {
            format!(
                "the tenant {name} has no user {:?}; `posduif user list --tenant {name}` shows them",
                self.user,
                name = tenant.name
            )
        })?;
        Ok((database, tenant, account))
    }

    async fn set_password(&self, global: &Global, config: &Config, password: Option<String>) -> Result<()> {
        let password = match password {
            Some(password) => password,
            None => read_password()?,
        };
        let (database, tenant, account) = self.find(config).await?;
        // Asked first, so that the sessions of a password that may be known to others do not go on.
        let store = super::redis(config).await?;
        let passwords = Passwords::new(&config.auth)?;
        users::set_password(&database, &passwords, &tenant, account.id, &password).await?;
        Sessions::new(store, config)
            .end_all(&tenant, account.id, None)
            .await
            .context("the password is set, but sessions of the old one go on; try again")?;
        if global.json {
            return outln!(
                "{}",
                json!({"id": account.id, "tenant": tenant.name, "username": account.username})
            );
        }
        outln!(
            "set the password of {}; sessions with the old one have ended",
            account.username
        )
    }

    async fn set_disabled(&self, global: &Global, config: &Config, disabled: bool) -> Result<()> {
        let (database, tenant, account) = self.find(config).await?;
        let changed = users::set_disabled(&database, &tenant, account.id, disabled).await?;
        if global.json {
            return outln!(
                "{}",
                json!({
                    "id": account.id, "tenant": tenant.name, "username": account.username, "disabled": disabled,
                    "changed": changed,
                })
            );
        }
        let name = &account.username;
        match (disabled, changed) {
            (true, true) => outln!("disabled {name}: logins, devices, sessions and open streams end"),
            (true, false) => outln!("{name} was disabled already"),
            (false, true) => outln!("{name} may act again"),
            (false, false) => outln!("{name} was not disabled"),
        }
    }
}

impl Create {
    async fn run(self, global: &Global, config: &Config) -> Result<()> {
        let password = match (self.password, self.user_type) {
            (Some(password), _) => Some(password),
            (None, UserType::Web) => Some(read_password()?),
            (None, UserType::Mobile) => None,
        };
        let (database, tenant) = known_tenant(config, self.tenant).await?;
        let user = NewUser {
            username: self.username.clone(),
            user_type: self.user_type,
            email: self.email,
            password,
        };
        let id = users::create(&database, &config.auth, &tenant.name, user).await?;
        if global.json {
            outln!(
                "{}",
                json!({"id": id, "tenant": tenant.name, "username": self.username, "user_type": self.user_type})
            )?;
        } else {
            outln!(
                "made the {} user {} of {}: {id}",
                self.user_type,
                self.username,
                tenant.name
            )?;
        }
        Ok(())
    }
}

fn user_type() -> impl TypedValueParser<Value = UserType> {
    PossibleValuesParser::new([UserType::Web.as_str(), UserType::Mobile.as_str()])
        .try_map(|text| text.parse::<UserType>())
}

async fn list(global: &Global, config: &Config, tenant: Option<String>, user_type: Option<UserType>) -> Result<()> {
    let (database, tenant) = known_tenant(config, tenant).await?;
    let mut found: Vec<users::User> = Vec::new();
    loop {
        // Beside the last one, so that none is missed or comes twice while users come and go.
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
        found.extend(page.rows);
        if !page.has_more {
            break;
        }
    }
    if global.json {
        // Who is online is known to a running engine only.
        let rows: Vec<_> = found
            .iter()
            .map(|user| {
                json!({
                    "id": user.id, "username": user.username, "user_type": user.user_type,
                    "device_id": user.device_id, "last_seen": user.last_seen, "created_at": user.created_at,
                    "disabled_at": user.disabled_at,
                })
            })
            .collect();
        output::json(&rows)?;
    } else {
        super::print_table(
            ["USERNAME", "TYPE", "STATE", "ID", "DEVICE", "LAST SEEN"],
            found.into_iter().map(|user| {
                let (state, tone) = match user.disabled_at {
                    Some(_) => ("disabled", Tone::Warning),
                    None => ("active", Tone::Plain),
                };
                [
                    Cell::from(user.username),
                    Cell::from(user.user_type.as_str()),
                    Cell::from(state).toned(tone),
                    Cell::from(user.id.to_string()),
                    Cell::from(user.device_id.unwrap_or_else(|| NOTHING.to_owned())),
                    Cell::from(
                        user.last_seen
                            .map_or_else(|| "never".to_owned(), |time| time.to_string()),
                    ),
                ]
            }),
        )?;
    }
    Ok(())
}

/// A password from whoever is there: asked for twice, without echo, on a terminal; else a line of stdin.
fn read_password() -> Result<String> {
    const NONE: &str = "a password is needed: --password, POSDUIF_PASSWORD, or a line on stdin";
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let terminal = console::Term::stderr();
        if !terminal.is_term() {
            bail!(NONE);
        }
        let ask = |prompt: &str| {
            terminal.write_str(prompt)?;
            terminal.read_secure_line()
        };
        let password = ask("Password: ").context("cannot read a password from the terminal")?;
        if !password.is_empty() && ask("Once more: ").context("cannot read a password from the terminal")? != password {
            bail!("the two passwords differ; nothing was changed");
        }
        password
    } else {
        let mut line = String::new();
        stdin
            .lock()
            .read_line(&mut line)
            .context("cannot read a password from stdin")?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() {
        bail!(NONE);
    }
    Ok(password)
}
