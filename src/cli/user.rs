//! `posduif user`: users of a tenant.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Global;
use crate::config::Config;
use crate::database::{Database, tenants};
use crate::domain::Page;
use crate::domain::users::{self, Filter, NewUser, UserType};

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
        #[arg(long = "type", value_enum)]
        user_type: Option<UserType>,
    },
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
    #[arg(long = "type", value_enum)]
    user_type: UserType,
    /// Another name to log in with
    #[arg(long)]
    email: Option<String>,
    /// At least 8 characters; a web user's may also come as a line on stdin
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
        }
    }
}

impl Create {
    async fn run(self, global: &Global, config: &Config) -> Result<()> {
        let tenant = tenant_or_default(config, self.tenant)?;
        let password = match (self.password, self.user_type) {
            (Some(password), _) => Some(password),
            (None, UserType::Web) => Some(password_from_stdin()?),
            (None, UserType::Mobile) => None,
        };
        let database = Database::connect(&config.postgres).await?;
        let user = NewUser {
            username: self.username.clone(),
            user_type: self.user_type,
            email: self.email,
            password,
        };
        let id = users::create(&database, &config.auth, &tenant, user).await?;
        if global.json {
            println!(
                "{}",
                json!({"id": id, "tenant": tenant, "username": self.username, "user_type": self.user_type})
            );
        } else {
            println!("made the {} user {} of {tenant}: {id}", self.user_type, self.username);
        }
        Ok(())
    }
}

async fn list(global: &Global, config: &Config, tenant: Option<String>, user_type: Option<UserType>) -> Result<()> {
    let name = tenant_or_default(config, tenant)?;
    let database = Database::connect(&config.postgres).await?;
    let tenant = tenants::find(&database, &name)
        .await?
        .with_context(|| format!("there is no tenant {name:?}; `posduif tenant list` shows them"))?;
    let mut found = Vec::new();
    loop {
        let filter = Filter {
            user_type,
            username: None,
            among: None,
            page: Page {
                limit: PAGE,
                offset: i64::try_from(found.len())?,
            },
        };
        let (page, total) = users::list(&database, &tenant, &filter).await?;
        let is_last = page.is_empty();
        found.extend(page);
        if is_last || found.len() as i64 >= total {
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
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        super::print_table(
            ["USERNAME", "TYPE", "ID", "DEVICE", "LAST SEEN"],
            found.into_iter().map(|user| {
                [
                    user.username,
                    user.user_type.to_string(),
                    user.id.to_string(),
                    user.device_id.unwrap_or_else(|| "-".to_owned()),
                    user.last_seen
                        .map_or_else(|| "never".to_owned(), |time| time.to_string()),
                ]
            }),
        );
    }
    Ok(())
}

fn tenant_or_default(config: &Config, tenant: Option<String>) -> Result<String> {
    match tenant {
        Some(tenant) => Ok(tenant),
        None if config.server.default_tenant.is_empty() => {
            bail!("name the tenant with --tenant; `server.default_tenant` is not set")
        }
        None => Ok(config.server.default_tenant.clone()),
    }
}

fn password_from_stdin() -> Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        bail!("a web user needs a password: --password, POSDUIF_PASSWORD, or a line on stdin");
    }
    let mut line = String::new();
    stdin
        .lock()
        .read_line(&mut line)
        .context("cannot read a password from stdin")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("a web user needs a password: --password, POSDUIF_PASSWORD, or a line on stdin");
    }
    Ok(password.to_owned())
}
