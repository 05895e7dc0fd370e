//! `posduif doctor`: everything that an engine depends on, and what mends what is wrong.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::table::Tone;
use super::{Global, human, output};
use crate::admin::doctor::{self, Check, Level};

/// Arguments of `posduif doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Show only what is wrong
    #[arg(long)]
    wrong: bool,
    /// Base URL of the engine; without it `server.public_url`
    #[arg(long, env = "POSDUIF_URL")]
    url: Option<String>,
}

impl Doctor {
    /// Runs the command.
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let mut checks = doctor::examine(&config, &super::engine_url(self.url, &config)).await;
        let count = |level| checks.iter().filter(|check| check.level == level).count();
        let (failed, warned, well) = (count(Level::Fail), count(Level::Warn), count(Level::Ok));
        if self.wrong {
            checks.retain(|check| check.level != Level::Ok);
        }
        if global.json {
            output::json(&json!({
                "ok": failed == 0, "failed": failed, "warned": warned, "well": well, "checks": checks,
            }))?;
        } else {
            output::print(&text(&checks))?;
            output::print(&format!("{failed} failed, {warned} to look at, {well} well\n"))?;
        }
        if failed > 0 {
            bail!("{}", human::count(failed, "check") + " failed");
        }
        Ok(())
    }
}

/// The checks, each in a line, and below those that are not well what it means and what mends it.
fn text(checks: &[Check]) -> String {
    let colours = output::has_colours();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    let mut has_fixes = false;
    for check in checks {
        let tone = match check.level {
            Level::Ok => Tone::Good,
            Level::Warn => Tone::Warning,
            Level::Fail => Tone::Bad,
        };
        let level = tone.paint(&format!("{:<4}", check.level.as_str()), colours);
        text.push_str(&format!(
            "{level}  {:<width$}  {}\n",
            check.name,
            output::printable_lines(&check.found)
        ));
        if !check.meaning.is_empty() {
            text.push_str(&format!("      {}.\n", check.meaning));
        }
        for fix in &check.fix {
            has_fixes = true;
            text.push_str(&format!("      fix: {fix}\n"));
        }
        if let Some(then) = check.then {
            text.push_str(&format!("      then: {then}\n"));
        }
    }
    if has_fixes {
        text.push_str("\nDATABASE_URL and REDIS_URL stand for `postgres.url` and `redis.url`.\n");
    }
    text
}
