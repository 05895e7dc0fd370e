//! Log lines: to stderr, as text for people or as JSON, one object a line.

use std::io::{self, IsTerminal as _};

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config;

/// Begins logging with the form and the filter of the settings. Once a process.
///
/// # Errors
/// When `log.level` is no filter, or logging has begun already.
pub fn init(log: &config::Log) -> Result<()> {
    let filter = EnvFilter::try_new(&log.level).with_context(|| {
        format!(
            "key `log.level` is \"{}\": allowed are a level or directives, for example info or \
             info,posduif::publish=debug",
            log.level
        )
    })?;
    // It traces what frames hold, which is nobody's but its users'.
    let filter = filter.add_directive("tungstenite=info".parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let started = match log.format {
        config::LogFormat::Text => builder.finish().try_init(),
        config::LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| anyhow!("logging cannot begin: {error}"))
}
