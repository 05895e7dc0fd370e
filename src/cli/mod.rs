//! The command line: `posduif <noun> <verb>`, one file per noun. Exit code 0 for success, 1 for failure, 2 for wrong
//! usage. A command queries and changes the system by [`crate::admin`] and the features, builds one value, and prints it
//! by [`output::print`].

// `println!` panics on a closed pipe; `output::write` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod client;
mod completions;
mod config;
mod console;
#[cfg(feature = "demo")]
mod demo;
mod dev;
mod device;
mod doctor;
mod human;
mod kit;
mod lane;
mod migrate;
mod notify;
mod output;
mod progress;
mod publication;
mod routes;
mod serve;
mod slot;
mod status;
mod stream;
mod table;
mod tenant;
mod user;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::admin::status::EngineUrls;
use crate::config::Config;
use crate::core::tenant::Tenant;
use crate::postgres::Database;
use crate::postgres::tenants::{self, Listed};

/// A WAL-driven change-data-capture sync engine: streams Postgres rows to phones and browsers, and applies their uploads
#[derive(Debug, Parser)]
#[command(
    name = "posduif",
    version = crate::telemetry::VERSION,
    about,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The configuration file unless another one is given.
const DEFAULT_FILE: &str = "config/config.yaml";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Configuration file [default: config/config.yaml if it exists, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE", env = "POSDUIF_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// Refuses `--json` for a command whose output has no JSON form.
    fn refuse_json(&self, what: &str) -> Result<()> {
        if self.json {
            output::usage_error!("{what} has no JSON form; remove `--json`");
        }
        Ok(())
    }

    /// The configuration file that [`Self::load`] reads, if there is one.
    fn file(&self) -> Option<PathBuf> {
        let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|default| default.exists());
        self.config.clone().or_else(default)
    }

    fn load(&self) -> Result<Config> {
        Config::load(self.file().as_deref())
    }
}

/// Confirmation of a change that loses something.
#[derive(Debug, Clone, Copy, Args)]
struct Confirm {
    /// Apply the change. Without it, print what would be lost (dry run)
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Fails with the effect of the change unless it is confirmed.
    fn check(self, effect: impl FnOnce() -> String) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        anyhow::bail!("{}; add `--yes` to apply", effect())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine: replicator, API, or both
    Serve(serve::Serve),
    /// Run a complete system on this machine: private Postgres and Redis, demo tenant, engine
    Dev(dev::Dev),
    /// Run a scripted conversation against a running engine, with a SQLite file as the phone
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    /// Check every setting that an engine depends on, and print a fix for each problem
    Doctor(doctor::Doctor),
    /// Show the state of the system: engine, servers, freshness, epoch, lag, slot, tenants
    Status(status::Status),
    /// Apply, roll back and inspect schema migrations
    Migrate(migrate::Migrate),
    /// Print a link that opens the console of a running engine, once
    Console(console::Console),
    /// Manage tenants; each has its own schema
    Tenant(tenant::Tenant),
    /// Inspect the lanes: which Redis and which replication slot have the streams of which tenants
    Lane(lane::LaneCommand),
    /// Manage the users of a tenant
    User(user::User),
    /// Manage the devices of a tenant's users
    Device(device::Device),
    /// Inspect and manage replication slots
    Slot(slot::SlotCommand),
    /// Inspect and complete the publication
    Publication(publication::Publication),
    /// Check the rules of `routes` and groups against the database, and explain who sees a row
    Routes(routes::Routes),
    /// Inspect and manage the streams in Redis
    Stream(stream::Stream),
    /// Print what developers of clients need
    Client(client::Client),
    /// Test whether a client keeps to the sync protocol
    Kit(kit::Kit),
    /// Show the audit log: logins that failed, and acts of users and operators
    Audit(audit::Audit),
    /// Show or check the configuration
    Config(config::ConfigCommand),
    /// Print a completion script for a shell
    Completions(completions::Completions),
    /// Print the manual page, or write one page per command
    Man(completions::Man),
}

/// Runs the command and returns the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(command) => command.run(&cli.global).await,
        Command::Dev(command) => command.run(&cli.global).await,
        #[cfg(feature = "demo")]
        Command::Demo(command) => command.run(&cli.global).await,
        Command::Doctor(command) => Box::pin(command.run(&cli.global)).await,
        Command::Status(command) => Box::pin(command.run(&cli.global)).await,
        Command::Migrate(command) => command.run(&cli.global).await,
        Command::Console(command) => command.run(&cli.global).await,
        Command::Tenant(command) => command.run(&cli.global).await,
        Command::Lane(command) => command.run(&cli.global).await,
        Command::User(command) => command.run(&cli.global).await,
        Command::Device(command) => command.run(&cli.global).await,
        Command::Slot(command) => command.run(&cli.global).await,
        Command::Publication(command) => command.run(&cli.global).await,
        Command::Routes(command) => command.run(&cli.global).await,
        Command::Stream(command) => command.run(&cli.global).await,
        Command::Client(command) => command.run(&cli.global).await,
        Command::Kit(command) => Box::pin(command.run(&cli.global)).await,
        Command::Audit(command) => command.run(&cli.global).await,
        Command::Config(command) => command.run(&cli.global),
        Command::Completions(command) => command.run(&cli.global),
        Command::Man(command) => command.run(&cli.global),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::OutputClosed>() => ExitCode::SUCCESS,
        Err(error) if error.is::<output::UsageError>() => {
            output::warn(format_args!("{error:#}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
        Err(error) => {
            output::warn(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The addresses of a running engine.
#[derive(Debug, Args)]
struct EngineAddress {
    /// Base URL of the engine [default: `server.public_url`]
    #[arg(long, env = "POSDUIF_URL")]
    url: Option<String>,
    /// Base URL of its admin listener, which has the details [default: `admin.listen`, unless --url is given]
    #[arg(long, env = "POSDUIF_ADMIN_URL")]
    admin_url: Option<String>,
}

impl EngineAddress {
    /// The URLs that are given, else those of the configuration. The admin listener of the configuration may be that of
    /// another engine than the URL.
    fn urls(self, config: &Config) -> EngineUrls {
        let given = |url: Option<String>| {
            url.filter(|url| !url.is_empty())
                .map(|url| url.trim_end_matches('/').to_owned())
        };
        let (public, admin) = (given(self.url), given(self.admin_url));
        EngineUrls {
            admin: admin.or_else(|| public.is_none().then(|| config.admin.url()).flatten()),
            public: public.unwrap_or_else(|| config.public_url()),
        }
    }
}

/// The named tenant, else `server.default_tenant`, with the Postgres that has it.
async fn known_tenant(config: &Config, name: Option<String>) -> Result<(Database, Tenant)> {
    let name = name.unwrap_or_else(|| config.server.default_tenant.clone());
    if name.is_empty() {
        output::usage_error!("`--tenant` is required: `server.default_tenant` is not set");
    }
    let database = Database::connect(&config.postgres).await?;
    let tenant = find_tenant(&database, &name).await?;
    Ok((database, tenant))
}

/// A tenant that must exist and have its schema.
async fn find_tenant(database: &Database, name: &str) -> Result<Tenant> {
    let listed = find_registered(database, name).await?;
    listed.check()?;
    Ok(listed.tenant)
}

/// A tenant that must exist; its schema may be missing.
async fn find_registered(database: &Database, name: &str) -> Result<Listed> {
    tenants::registered(database, name)
        .await
        .context(tenants::UNREADABLE)?
        .with_context(|| no_tenant(name))
}

/// The settings of the lane that has a tenant, which must exist.
async fn in_lane(config: &Config, database: &Database, tenant: &str) -> Result<Config> {
    let listed = find_registered(database, tenant).await?;
    of_lane(config, &listed.lane)
}

/// The settings of a lane.
fn of_lane(config: &Config, lane: &str) -> Result<Config> {
    let lanes = config.of_lanes();
    let found = lanes.named(lane).cloned();
    found.with_context(|| format!("there is no lane {lane} in the configuration; `posduif lane list` lists all"))
}

fn no_tenant(name: &str) -> String {
    format!("there is no tenant {name}; `posduif tenant list` lists all")
}

/// All registered tenants.
async fn directory(database: &Database) -> Result<Vec<Listed>> {
    tenants::directory(database).await.context(tenants::UNREADABLE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_passes_debug_assert() {
        Cli::command().debug_assert();
    }
}
