//! Checks everything that an engine depends on; each problem has its meaning and its fix.
//!
//! The parts are checked independently, so that an unreachable one does not hide problems of the others. Facts are read
//! first and checked by pure functions: [`postgres`], `slots`, `schemas`, [`redis`], [`streams`], `providers` of
//! identities, and [`host`] for this machine and the engine.
//!
//! Commands name the servers as `"$DATABASE_URL"` and `"$REDIS_URL"`, so that no secret is printed.

pub mod host;
pub mod postgres;
mod providers;
pub mod redis;
mod schemas;
mod slots;
pub mod streams;

use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use crate::admin::level::Level;
use crate::admin::status::EngineUrls;
use crate::config::Config;
use crate::core::lane::MAIN;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// For example `postgres.wal_level`.
    pub name: &'static str,
    pub level: Level,
    /// The actual state.
    pub found: String,
    /// The consequence; empty if the check passed.
    pub meaning: String,
    /// Shell commands that fix it, in order.
    pub fix: Vec<String>,
    /// A further step without a portable command.
    pub then: Option<&'static str>,
}

impl Check {
    fn new(name: &'static str, level: Level, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            name,
            level,
            found: found.into(),
            meaning: meaning.into(),
            fix: Vec::new(),
            then: None,
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, found, "")
    }

    fn warn(name: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(name, Level::Warn, found, meaning)
    }

    fn fail(name: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(name, Level::Fail, found, meaning)
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }

    fn then(mut self, what: &'static str) -> Self {
        self.then = Some(what);
        self
    }
}

/// Checks everything, including the engine at these URLs. An unreachable part is a failed check; each part is bounded by
/// its timeouts in the settings.
pub async fn examine(config: &Config, urls: &EngineUrls) -> Vec<Check> {
    let (postgres, lanes, providers, host) = tokio::join!(
        postgres::examine(config),
        examine_lanes(config),
        providers::examine(config),
        host::examine(config, urls)
    );
    [postgres, lanes, providers, host].concat()
}

/// Checks the Redis of each lane, and the streams there.
async fn examine_lanes(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, config) in config.of_lanes().iter() {
        let (redis, streams) = tokio::join!(redis::examine(&config.redis), streams::examine(config));
        checks.extend([redis, streams].concat().into_iter().map(|mut check| {
            if name != MAIN {
                check.found = format!("lane {name}: {}", check.found);
            }
            check
        }));
    }
    checks
}

/// The first names, and the number of the others.
fn first_names(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(3);
    let mut text = names.into_iter().take(3).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Tolerated difference between the clock of a server and ours, in seconds.
const SKEW_SECONDS: f64 = 1.0;

/// How far a clock that was read between `began` and now is ahead of ours, in seconds, less the network delay.
fn skew(there: DateTime<Utc>, began: Instant) -> f64 {
    let delay = began.elapsed() / 2;
    #[expect(clippy::cast_precision_loss, reason = "the difference of two clocks")]
    let seconds = (there - (Utc::now() - delay)).num_milliseconds() as f64 / 1000.0;
    seconds.signum() * (seconds.abs() - delay.as_secs_f64()).max(0.0)
}

/// Checks the difference between a server's clock and ours. `bound_seconds` is the freshness bound.
fn clock(name: &'static str, server: &str, skew_seconds: f64, bound_seconds: u64) -> Check {
    let found = format!(
        "{:.3} s {}",
        skew_seconds.abs(),
        if skew_seconds < 0.0 { "behind" } else { "ahead" }
    );
    #[expect(clippy::cast_precision_loss, reason = "at most 3,600")]
    let bound = bound_seconds as f64;
    let meaning = format!(
        "The clocks of {server} and of this machine differ. Freshness is measured between both, and fails beyond \
         {bound_seconds} s. Run this where the clock is wrong"
    );
    let check = match skew_seconds.abs() {
        skew if skew <= SKEW_SECONDS => return Check::ok(name, found),
        skew if skew < bound / 2.0 => Check::warn(name, found, meaning),
        _ => Check::fail(name, found, meaning),
    };
    check.fix("timedatectl set-ntp true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_level_follows_its_difference() {
        let level = |skew| clock("postgres.clock", "Postgres", skew, 10).level;
        assert_eq!(
            [
                level(0.2),
                level(-0.9),
                level(1.5),
                level(-4.9),
                level(5.0),
                level(-86_400.0)
            ],
            [Level::Ok, Level::Ok, Level::Warn, Level::Warn, Level::Fail, Level::Fail]
        );
    }
}
