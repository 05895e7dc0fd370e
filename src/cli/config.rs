//! `posduif config`: show or check the settings that a command here and now would run with.

use clap::{Args, Subcommand};

use super::Global;
use super::output::{self, outln};
use crate::engine::{self, Role};

/// Arguments of `posduif config`.
#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check every key, URL and file as `serve` does, and say what is wrong
    Check {
        /// For which parts; a replicator needs no secret
        #[arg(long, value_enum, default_value = "all")]
        role: Role,
    },
    /// Print the settings in force, secrets hidden
    Show,
}

impl ConfigCommand {
    /// Runs the command.
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Check { role } => {
                engine::check(&config, role)?;
                if global.json {
                    outln!("{}", serde_json::json!({"valid": true}))?;
                } else {
                    outln!("the configuration is valid")?;
                }
            }
            Verb::Show if global.json => output::json(&config)?,
            Verb::Show => output::print(&serde_saphyr::to_string(&config)?)?,
        }
        Ok(())
    }
}
