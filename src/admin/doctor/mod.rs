//! Looks at everything that an engine depends on, and says what is wrong, what that means and what mends it.
//!
//! Each part is looked at by itself, so that one that is away hides nothing of the others. What is judged is read
//! first: [`postgres`], [`redis`] and [`streams`] checks plain facts, and [`host`] this machine and the way to the engine.
//!
//! Commands name the servers as `"$DATABASE_URL"` and `"$REDIS_URL"`, so that no secret is printed.

pub mod host;
pub mod postgres;
pub mod redis;
pub mod streams;

use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::config::Config;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and will hurt some day.
    Warn,
    /// It does not work, or loses something.
    Fail,
}

impl Level {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is, for example `postgres.wal_level`.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// How it is.
    pub found: String,
    /// What that means; empty when all is well.
    pub meaning: String,
    /// Commands for a shell that mend it, in this order.
    pub fix: Vec<String>,
    /// What is to be done behind them, for which there is no command that fits every system.
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

/// Looks at everything, and for the engine at this base URL. What cannot be reached is a failed check; each part takes no longer than its timeouts in the
/// settings.
pub async fn examine(config: &Config, url: &str) -> Vec<Check> {
    let (postgres, redis, streams, host) = tokio::join!(
        postgres::examine(config),
        redis::examine(&config.redis),
        streams::examine(config),
        host::examine(config, url)
    );
    [postgres, redis, streams, host].concat()
}

/// The first of these, and how many more there are.
fn some_of(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(3);
    let mut text = names.into_iter().take(3).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// How far a server's clock may be from ours, in seconds: beyond this it is worth a look.
const SKEW_SECONDS: f64 = 1.0;

/// How far a clock that was read between `began` and now is ahead of ours, in seconds, without what the way may account
/// for.
fn skew(there: DateTime<Utc>, began: Instant) -> f64 {
    let way = began.elapsed() / 2;
    #[expect(clippy::cast_precision_loss, reason = "the difference of two clocks")]
    let seconds = (there - (Utc::now() - way)).num_milliseconds() as f64 / 1000.0;
    seconds.signum() * (seconds.abs() - way.as_secs_f64()).max(0.0)
}

/// What the difference of a server's clock from ours means. `bound_seconds` is that of the freshness.
fn clock(name: &'static str, whose: &str, skew_seconds: f64, bound_seconds: u64) -> Check {
    let found = format!(
        "{:.3} s {}",
        skew_seconds.abs(),
        if skew_seconds < 0.0 { "behind" } else { "ahead" }
    );
    #[expect(clippy::cast_precision_loss, reason = "at most 3,600")]
    let bound = bound_seconds as f64;
    let meaning = format!(
        "The clocks of {whose} and of this machine differ. The freshness is the difference between both, and red beyond \
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
    fn clocks_may_differ_a_little() {
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
