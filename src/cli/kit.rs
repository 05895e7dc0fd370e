//! `posduif kit`: tests whether a client keeps to the sync protocol.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::Global;
use super::output::{self, Render, Text, outln};
use crate::kit::case::{self, Case, Feature};
use crate::kit::protocol;
use crate::kit::report::{self, CaseReport, Report, Verdict};

#[derive(Debug, Args)]
pub(super) struct Kit {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the cases
    List {
        /// Only those of a level; may be repeated
        #[arg(long, value_enum)]
        level: Vec<Level>,
    },
    /// Explain a case: what it tests, and its steps
    Explain {
        /// As `posduif kit list` prints it
        id: String,
    },
    /// Run the cases against a client, which a driver controls (docs/conformance.md)
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// The command that starts the driver, as a shell reads it
    #[arg(long, value_name = "COMMAND")]
    driver: String,
    /// Only the cases of a level; may be repeated
    #[arg(long, value_enum)]
    level: Vec<Level>,
    /// Only this case; may be repeated
    #[arg(long, value_name = "ID")]
    case: Vec<String>,
    /// Run the cases of this YAML file instead of those of the program
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// For random values: the same seed repeats them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the report as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// It keeps a copy of the user's rows
    Reader,
    /// It uploads the user's changes
    Writer,
    /// It follows a stream of events, and waits as long as it must
    Live,
    /// It keeps users and credentials apart
    Secure,
}

impl From<Level> for case::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Reader => Self::Reader,
            Level::Writer => Self::Writer,
            Level::Live => Self::Live,
            Level::Secure => Self::Secure,
        }
    }
}

impl Kit {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        match self.verb {
            Verb::List { level } => output::print(global, &List::of(&chosen(&level, &[])?)),
            Verb::Explain { id } => {
                let cases = chosen(&[], &[id])?;
                let case = cases.first().context("no case")?;
                output::print(global, &Explanation::of(case))
            }
            Verb::Run(run) => Box::pin(run.run(global)).await,
        }
    }
}

/// The cases of these levels and ids; all without any.
fn chosen(levels: &[Level], ids: &[String]) -> Result<Vec<Case>> {
    select(case::all()?, levels, ids)
}

fn select(mut cases: Vec<Case>, levels: &[Level], ids: &[String]) -> Result<Vec<Case>> {
    if let Some(unknown) = ids.iter().find(|id| cases.iter().all(|case| case.id != **id)) {
        output::usage_error!("there is no case {unknown:?}; `posduif kit list` lists all");
    }
    cases.retain(|case| ids.is_empty() || ids.contains(&case.id));
    cases.retain(|case| levels.is_empty() || levels.iter().any(|level| case::Level::from(*level) == case.level()));
    Ok(cases)
}

impl Run {
    async fn run(self, global: &Global) -> Result<()> {
        let cases = match &self.file {
            None => case::all()?,
            Some(file) => {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
                case::read(&name, case::Level::Reader, &text)?
            }
        };
        let cases = select(cases, &self.level, &self.case)?;
        if cases.is_empty() {
            output::usage_error!("no case of --case has the --level; `posduif kit list` lists all");
        }
        let is_json = global.json;
        let mut failed_to_print = None;
        let report = report::run(&cases, &self.driver, self.seed, |case| {
            if !is_json && failed_to_print.is_none() {
                failed_to_print = output::write(&output::text_of(case)).err();
            }
        });
        let report = report.await?;
        if let Some(error) = failed_to_print {
            return Err(error);
        }
        save(self.junit.as_deref(), || report::junit(&report))?;
        save(self.html.as_deref(), || report::html(&report))?;
        output::print(global, &report)?;
        if report.has_failed() {
            bail!("the client does not conform: {}", report.summary());
        }
        Ok(())
    }
}

fn save(file: Option<&Path>, text: impl FnOnce() -> String) -> Result<()> {
    match file {
        None => Ok(()),
        Some(file) => std::fs::write(file, text()).with_context(|| format!("cannot write {}", file.display())),
    }
}

#[derive(Serialize)]
struct List {
    cases: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    id: String,
    level: case::Level,
    title: String,
    /// The features of the driver that it needs.
    needs: Vec<&'static str>,
}

impl List {
    fn of(cases: &[Case]) -> Self {
        let listed = cases.iter().map(|case| Listed {
            id: case.id.clone(),
            level: case.level(),
            title: case.title.clone(),
            needs: case.needs().into_iter().map(Feature::name).collect(),
        });
        Self {
            cases: listed.collect(),
        }
    }
}

impl Render for List {
    fn text(&self, out: &mut Text) {
        let row = |case: &Listed| {
            [
                case.id.clone(),
                case.level.name().to_owned(),
                case.needs.join(" "),
                case.title.clone(),
            ]
        };
        out.table(["CASE", "LEVEL", "NEEDS", "TITLE"], self.cases.iter().map(row));
    }
}

#[derive(Serialize)]
struct Explanation {
    id: String,
    level: case::Level,
    title: String,
    heading: String,
    link: String,
    needs: Vec<&'static str>,
    rules: Vec<String>,
    steps: Vec<String>,
}

impl Explanation {
    fn of(case: &Case) -> Self {
        let heading = protocol::heading_of(&case.id);
        let rules = case.rows.iter().filter_map(|row| protocol::row_of(row));
        Self {
            id: case.id.clone(),
            level: case.level(),
            title: case.title.clone(),
            heading: heading.map(|heading| heading.title.clone()).unwrap_or_default(),
            link: heading.map_or(protocol::PATH.to_owned(), |heading| {
                format!("{}#{}", protocol::PATH, heading.anchor)
            }),
            needs: case.needs().into_iter().map(Feature::name).collect(),
            rules: rules.map(|row| format!("{}: {}", row.event, row.action)).collect(),
            steps: case.script.clone(),
        }
    }
}

impl Render for Explanation {
    fn text(&self, out: &mut Text) {
        out.facts([
            ("case", self.id.clone()),
            ("level", self.level.name().to_owned()),
            ("title", self.title.clone()),
            ("heading", self.heading.clone()),
            ("text", self.link.clone()),
            ("needs", self.needs.join(" ")),
        ]);
        for (title, lines) in [("rules", &self.rules), ("steps", &self.steps)] {
            if !lines.is_empty() {
                out.blank();
                out.line(title);
                lines.iter().for_each(|line| outln!(out, "  {line}"));
            }
        }
    }
}

impl Render for CaseReport {
    fn text(&self, out: &mut Text) {
        outln!(out, "{:<20}  {}", self.verdict.name(), self.id);
        if let Some(reason) = self.reason.as_deref().filter(|_| self.verdict != Verdict::Passed) {
            outln!(out, "    {reason}");
        }
        if self.verdict == Verdict::Failed {
            outln!(out, "    heading: {} ({})", self.heading, self.link);
            self.rules.iter().for_each(|rule| outln!(out, "    rule: {rule}"));
            self.transcript.iter().for_each(|line| outln!(out, "      {line}"));
        }
    }
}

impl Render for Report {
    fn text(&self, out: &mut Text) {
        outln!(out, "{}: {}", self.client, self.summary());
    }
}
