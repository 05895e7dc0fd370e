//! Log lines on stderr, as text or as JSON with one object per line. The level can be changed at run time. Panics are logged,
//! too.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::io::{self, IsTerminal as _};

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config;

/// The log of the process; changes its level.
#[derive(Debug, Clone)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Initializes logging. It may be called once per process.
pub fn init(log: &config::Log) -> Result<Logging> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let lines = match log.format {
        config::LogFormat::Text => lines.boxed(),
        config::LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| anyhow!("cannot initialize logging: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let (payload, text) = (panic.payload(), "panic without a message");
        let text = payload.downcast_ref::<&str>().copied().unwrap_or(text);
        let text = payload.downcast_ref::<String>().map_or(text, String::as_str);
        let thread = std::thread::current();
        tracing::error!(
            place,
            thread = thread.name(),
            backtrace = backtrace().map(|here| here.to_string()),
            "thread panicked: {text}"
        );
    }));
    Ok(Logging { filter: handle })
}

impl Logging {
    /// Changes the filter. Malformed directives leave the current filter in force.
    pub fn set_level(&self, level: &str) -> Result<()> {
        self.filter
            .reload(filter(level)?)
            .context("cannot change the log level")
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    // The crate traces the contents of frames, which are private data of users.
    Ok(config::parse_level(level)?.add_directive("tungstenite=info".parse()?))
}

/// An error with all its causes, separated by colons. A cause that its effect already contains is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The current backtrace if `RUST_BACKTRACE=1` is set; it costs nothing otherwise.
pub fn backtrace() -> Option<Box<Backtrace>> {
    let here = Backtrace::capture();
    (here.status() == BacktraceStatus::Captured).then(|| Box::new(here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] io::Error);

    #[test]
    fn error_chain_contains_each_cause_once() {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "no listener");
        assert_eq!(
            chain(&Outer("cannot connect", refused())),
            "cannot connect: no listener"
        );
        assert_eq!(chain(&Outer("no: no listener", refused())), "no: no listener");
        assert_eq!(chain(&refused()), "no listener");
    }
}
