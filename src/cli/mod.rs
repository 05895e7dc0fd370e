//! The command line: `posduif <noun> <verb>`; one file a noun. Exit 0 for success, 1 for failure, 2 for wrong usage.

mod config;
mod demo;
mod dev;
mod migrate;
mod serve;
mod table;
mod tenant;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::table::print_table;
use crate::config::Config;

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
    /// The settings for this command.
    fn load(&self) -> anyhow::Result<Config> {
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
    /// Bring the schemas to a version
    Migrate(migrate::Migrate),
    /// Tenants: each has its own schema
    Tenant(tenant::Tenant),
    /// Users of a tenant
    User(user::User),
    /// Show or check the configuration
    Config(config::ConfigCommand),
}

/// Runs the command line and gives the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(command) => command.run(&cli.global).await,
        Command::Dev(command) => command.run(&cli.global).await,
        Command::Demo(command) => command.run(&cli.global).await,
        Command::Migrate(command) => command.run(&cli.global).await,
        Command::Tenant(command) => command.run(&cli.global).await,
        Command::User(command) => command.run(&cli.global).await,
        Command::Config(command) => command.run(&cli.global),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("posduif: {error:#}");
            ExitCode::FAILURE
        }
    }
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
