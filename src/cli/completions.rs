//! `posduif completions` and `posduif man`: what shells and manuals know of the command line, written from the same
//! description that is parsed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::output::{self, outln};
use super::{Cli, Global};
use crate::telemetry;

/// What the exit code of every command means.
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "done"),
    ("1", "failed; stderr says what, why and what to do"),
    ("2", "wrong usage"),
];

/// Variables that every command heeds.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("DATABASE_URL", "Postgres (postgres.url)"),
    ("REDIS_URL", "Redis (redis.url)"),
    (
        "POSDUIF__SECTION__KEY",
        "any setting; wins over the file, as in POSDUIF__SERVER__PORT=8080",
    ),
    ("POSDUIF_PASSWORD", "the password for user create and user passwd"),
    ("NO_COLOR", "when set, no colours"),
];

/// Arguments of `posduif completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        global.refuse_json("a script for a shell")?;
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
        // Its own page would only say how to ask for help.
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let Some(folder) = &self.out else {
            global.refuse_json("a manual page")?;
            return output::print(&String::from_utf8(page(&command)?)?);
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        write_pages(&command, folder)?;
        if global.json {
            return outln!("{}", serde_json::json!({"folder": folder}));
        }
        outln!("wrote the manual pages to {}", folder.display())
    }
}

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: &Command, folder: &Path) -> Result<()> {
    let path = folder.join(format!("{}.1", name(command)));
    std::fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| write_pages(command, folder))
}

/// A manual page. The first one also has what holds for all commands.
fn page(command: &Command) -> Result<Vec<u8>> {
    let is_first = name(command) == "posduif";
    let page = clap_mangen::Man::new(command.clone())
        // Quotes, since an empty word would make the next one the date. The version tells the age.
        .date("\"\"")
        .source(format!("posduif {}", telemetry::VERSION))
        .manual("Posduif");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let mut rest = Roff::new();
    if is_first {
        rest.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_STATUS {
            rest.control("TP", []).text([bold(code)]).text([roman(meaning)]);
        }
        rest.control("SH", ["ENVIRONMENT"]);
        for (variable, meaning) in ENVIRONMENT {
            rest.control("TP", []).text([bold(variable)]).text([roman(meaning)]);
        }
        rest.control("SH", ["FILES"]);
        rest.control("TP", [])
            .text([bold("config/config.yaml")])
            .text([roman("the settings, where --config names no other file")]);
    } else {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("posduif"), roman("(1)")]);
    }
    rest.to_writer(&mut text)?;
    Ok(text)
}

/// The command's name in full: `posduif-slot-drop`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}
