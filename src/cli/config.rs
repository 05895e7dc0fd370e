//! `posduif config`: show or check the settings that a command here and now would run with.

use clap::{Args, Subcommand};

use super::Global;
use super::output::{self, say};

/// Arguments of `posduif config`.
#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check every key and say what is wrong
    Check,
    /// Print the settings in force, secrets hidden
    Show,
}

impl ConfigCommand {
    /// Runs the command.
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Check if global.json => say!("{}", serde_json::json!({"valid": true}))?,
            Verb::Check => say!("the configuration is valid")?,
            Verb::Show if global.json => output::json(&config)?,
            Verb::Show => output::print(&serde_saphyr::to_string(&config)?)?,
        }
        Ok(())
    }
}
