//! `posduif config`: shows or checks the settings in force for a command here and now.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output::{self, Render, Text, outln};
use crate::config::Config;
use crate::engine::{self, Role};

#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check every key, URL and file as `serve` does
    Check {
        /// The parts to check for; a replicator needs no secret
        #[arg(long, value_enum, default_value = "all")]
        role: Role,
    },
    /// Print the settings in force, without secrets
    Show,
}

impl ConfigCommand {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = global.load()?;
        match self.verb {
            Verb::Check { role } => {
                engine::check(&config, role)?;
                output::print(global, &Valid { valid: true })
            }
            Verb::Show => {
                let yaml = serde_saphyr::to_string(&config)?;
                output::print(global, &Settings { config, yaml })
            }
        }
    }
}

#[derive(Serialize)]
struct Valid {
    valid: bool,
}

impl Render for Valid {
    fn text(&self, out: &mut Text) {
        outln!(out, "the configuration is valid");
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Settings {
    config: Config,
    #[serde(skip)]
    yaml: String,
}

impl Render for Settings {
    fn text(&self, out: &mut Text) {
        out.line(self.yaml.trim_end());
    }
}
