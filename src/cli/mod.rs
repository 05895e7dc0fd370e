//! The command line: `posduif <noun> <verb>`; one file a noun. Exit 0 for success, 1 for failure, 2 for wrong usage.
//! What is asked of Postgres and Redis is known to the modules beside this one; here it is only printed.

// `println!` panics when nobody reads: see `output::outln!`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod completions;
mod config;
mod demo;
mod dev;
mod device;
mod doctor;
mod human;
mod migrate;
mod notify;
mod output;
mod progress;
mod publication;
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

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use self::table::print_table;
use crate::config::Config;
use crate::core::tenant::Tenant;
use crate::net;
use crate::postgres::Database;
use crate::postgres::tenants::{self, Listed};
use crate::redis::store::Store;

/// A WAL-driven change-data-capture sync engine: Postgres rows to phones and browsers, and their work back.
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

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Configuration file; without it config/config.yaml where that exists, else the defaults
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// Refuses `--json` of a command that prints a text for other programs.
    ///
    /// # Errors
    /// [`output::WrongUsage`].
    fn refuse_json(&self, what: &str) -> Result<()> {
        if self.json {
            output::usage_error!("{what} has no JSON: leave out `--json`");
        }
        Ok(())
    }

    /// The settings for this command.
    fn load(&self) -> Result<Config> {
        let usual = PathBuf::from("config/config.yaml");
        match &self.config {
            Some(path) => Config::load(Some(path)),
            None if usual.exists() => Config::load(Some(&usual)),
            None => Config::load(None),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine: replicator, API, or both
    Serve(serve::Serve),
    /// Run everything on this machine: own Postgres, own Redis, demo tenant, engine
    Dev(dev::Dev),
    /// Play the whole story against a running engine, with a SQLite file as the phone
    Demo(demo::Demo),
    /// Look at every setting that an engine depends on, and say what mends what is wrong
    Doctor(doctor::Doctor),
    /// One look at everything: engine, servers, freshness, epoch, lag, slot, tenants
    Status(status::Status),
    /// Bring the schemas to a version
    Migrate(migrate::Migrate),
    /// Tenants: each has its own schema
    Tenant(tenant::Tenant),
    /// Users of a tenant
    User(user::User),
    /// Devices of a tenant's users
    Device(device::Device),
    /// Replication slots: what each costs, and what to do about it
    Slot(slot::Slot),
    /// The publication: which tables the write-ahead log carries to us
    Publication(publication::Publication),
    /// What Redis holds: streams, their readers, their trimming
    Stream(stream::Stream),
    /// Show or check the configuration
    Config(config::ConfigCommand),
    /// Print a script that completes commands in a shell
    Completions(completions::Completions),
    /// Print the manual page, or write a page for each command
    Man(completions::Man),
}

/// Runs the command line and gives the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(command) => command.run(&cli.global).await,
        Command::Dev(command) => command.run(&cli.global).await,
        Command::Demo(command) => command.run(&cli.global).await,
        Command::Doctor(command) => command.run(&cli.global).await,
        Command::Status(command) => command.run(&cli.global).await,
        Command::Migrate(command) => command.run(&cli.global).await,
        Command::Tenant(command) => command.run(&cli.global).await,
        Command::User(command) => command.run(&cli.global).await,
        Command::Device(command) => command.run(&cli.global).await,
        Command::Slot(command) => command.run(&cli.global).await,
        Command::Publication(command) => command.run(&cli.global).await,
        Command::Stream(command) => command.run(&cli.global).await,
        Command::Config(command) => command.run(&cli.global),
        Command::Completions(command) => command.run(&cli.global),
        Command::Man(command) => command.run(&cli.global),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::NobodyReads>() => ExitCode::SUCCESS,
        Err(error) if error.is::<output::WrongUsage>() => {
            output::warn_line(format_args!("{error:#}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
        Err(error) => {
            output::warn_line(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Where the running engine is looked for: where the command line or `POSDUIF_URL` says, else where clients do.
fn engine_url(named: Option<String>, config: &Config) -> String {
    match named {
        Some(url) if !url.is_empty() => url.trim_end_matches('/').to_owned(),
        _ => config.public_url(),
    }
}

/// A store whose Redis answers, so that its absence is told before anything is done.
///
/// # Errors
/// Says where Redis was looked for.
async fn redis(config: &Config) -> Result<Store> {
    let store = Store::new(&config.redis).context("key `redis.url`")?;
    store.check().await.with_context(|| {
        format!(
            "cannot use Redis at {}; check that it runs and `redis.url` (or REDIS_URL)",
            net::redis::place(&config.redis)
        )
    })?;
    Ok(store)
}

/// The tenant of this name, else of `server.default_tenant`, and Postgres, which has it.
///
/// # Errors
/// When neither names one that exists, or Postgres cannot be reached.
async fn known_tenant(config: &Config, name: Option<String>) -> Result<(Database, Tenant)> {
    let name = name.unwrap_or_else(|| config.server.default_tenant.clone());
    if name.is_empty() {
        output::usage_error!("name the tenant with --tenant; `server.default_tenant` is not set");
    }
    let database = Database::connect(&config.postgres).await?;
    let tenant = find_tenant(&database, &name).await?;
    Ok((database, tenant))
}

/// The tenant of this name.
///
/// # Errors
/// When there is none, or its schema is gone.
async fn find_tenant(database: &Database, name: &str) -> Result<Tenant> {
    let listed = find_registered(database, name).await?;
    listed.check()?;
    Ok(listed.tenant)
}

/// The tenant of this name, its schema may be gone.
///
/// # Errors
/// When there is none.
async fn find_registered(database: &Database, name: &str) -> Result<Listed> {
    tenants::registered(database, name)
        .await
        .context(tenants::UNREADABLE)?
        .with_context(|| format!("there is no tenant {name}; `posduif tenant list` shows all"))
}

/// All tenants that are registered.
///
/// # Errors
/// When they cannot be read.
async fn directory(database: &Database) -> Result<Vec<Listed>> {
    tenants::directory(database).await.context(tenants::UNREADABLE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
