//! `posduif doctor`: checks everything that an engine depends on, and prints a fix for each problem.

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::output::{self, Render, Text, outln};
use super::table::Tone;
use super::{EngineAddress, Global, human};
use crate::admin::doctor::{self, Check, Level};

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print only failures and warnings
    #[arg(long)]
    failing: bool,
    #[command(flatten)]
    engine: EngineAddress,
}

impl Doctor {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let mut checks = Box::pin(doctor::examine(&config, &self.engine.urls(&config))).await;
        let count = |level| checks.iter().filter(|check| check.level == level).count();
        let (failed, warned, well) = (count(Level::Fail), count(Level::Warn), count(Level::Ok));
        if self.failing {
            checks.retain(|check| check.level != Level::Ok);
        }
        let report = Report {
            ok: failed == 0,
            failed,
            warned,
            well,
            checks,
        };
        output::print(global, &report)?;
        if failed > 0 {
            bail!("{} failed", human::count(failed, "check"));
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    failed: usize,
    warned: usize,
    well: usize,
    checks: Vec<Check>,
}

impl Render for Report {
    fn text(&self, out: &mut Text) {
        let width = self
            .checks
            .iter()
            .map(|check| check.name.len())
            .max()
            .unwrap_or_default();
        for check in &self.checks {
            let tone = match check.level {
                Level::Ok => Tone::Good,
                Level::Warn => Tone::Warning,
                Level::Fail => Tone::Bad,
            };
            let level = format!("{:<4}", check.level.as_str());
            out.toned_line(tone, &level, &format!("  {:<width$}  {}", check.name, check.found));
            if !check.meaning.is_empty() {
                outln!(out, "      {}.", check.meaning);
            }
            for fix in &check.fix {
                outln!(out, "      fix: {fix}");
            }
            if let Some(then) = check.then {
                outln!(out, "      then: {then}");
            }
        }
        if self.checks.iter().any(|check| !check.fix.is_empty()) {
            out.blank();
            outln!(
                out,
                "DATABASE_URL and REDIS_URL stand for `postgres.url` and `redis.url`."
            );
        }
        outln!(
            out,
            "{} failed, {}, {} passed",
            self.failed,
            human::count(self.warned, "warning"),
            self.well
        );
    }
}
