//! `posduif completions` and `posduif man`: completion scripts and manual pages, generated from the parser.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::{Cli, Global};
use crate::telemetry;

const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "success"),
    ("1", "failure; the error is on stderr"),
    ("2", "wrong usage"),
];

const ENVIRONMENT: [(&str, &str); 5] = [
    ("DATABASE_URL", "Postgres (postgres.url)"),
    ("REDIS_URL", "Redis (redis.url)"),
    (
        "POSDUIF__SECTION__KEY",
        "any setting; overrides the file, for example POSDUIF__SERVER__PORT=8080",
    ),
    ("POSDUIF_PASSWORD", "the password for user create and user passwd"),
    ("NO_COLOR", "disables colours"),
];

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        global.refuse_json("a completion script")?;
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "posduif", &mut script);
        output::write(&String::from_utf8(script)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write posduif.1 and one page per command into this folder, instead of printing the first
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        // `help` needs no page.
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let Some(folder) = &self.out else {
            global.refuse_json("a manual page")?;
            return output::write(&String::from_utf8(page(&command)?)?);
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
        write_pages(&command, folder)?;
        output::print(global, &Written { folder })
    }
}

#[derive(Serialize)]
struct Written<'a> {
    folder: &'a Path,
}

impl Render for Written<'_> {
    fn text(&self, out: &mut Text) {
        outln!(out, "wrote the manual pages to {}", self.folder.display());
    }
}

/// Writes the pages of a command and its subcommands.
fn write_pages(command: &Command, folder: &Path) -> Result<()> {
    let path = folder.join(format!("{}.1", name(command)));
    std::fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| write_pages(command, folder))
}

/// A manual page. The page of `posduif` also covers what is common to all commands.
fn page(command: &Command) -> Result<Vec<u8>> {
    let is_first = name(command) == "posduif";
    let page = clap_mangen::Man::new(command.clone())
        // Quoted, because an empty word would make the next one the date.
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
            .text([roman("default of --config")]);
    } else {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("posduif"), roman("(1)")]);
    }
    rest.to_writer(&mut text)?;
    Ok(text)
}

/// The full name of a command: `posduif-slot-drop`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}
