//! `posduif completions` and `posduif man`: what shells and manuals know of the command line, written from the same
//! description that is parsed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::output::{self, say};
use super::{Cli, Global};

/// Arguments of `posduif completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "posduif", &mut script);
        output::print(&String::from_utf8(script)?)
    }
}

/// Arguments of `posduif man`.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write posduif.1 and a page for each command into this folder, instead of printing the first
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Man {
    /// Runs the command.
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let Some(folder) = &self.out else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            return output::print(&String::from_utf8(page)?);
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        clap_mangen::generate_to(Cli::command(), folder)
            .with_context(|| format!("cannot write manual pages to {}", folder.display()))?;
        if global.json {
            return say!("{}", serde_json::json!({"folder": folder}));
        }
        say!("wrote the manual pages to {}", folder.display())
    }
}
