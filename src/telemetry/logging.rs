//! Log lines: to stderr, as text for people or as JSON, one object a line. What is logged can be changed while the process
//! runs; panics are lines as well.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::io::{self, IsTerminal as _};

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config;

/// The log of the process, to change what it lets through.
#[derive(Debug, Clone)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Begins logging with the form and the filter of the settings. Once a process.
///
/// # Errors
/// When `log.level` is no filter, or logging has begun already.
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
        .map_err(|error| anyhow!("logging cannot begin: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let (payload, text) = (panic.payload(), "a panic without a text");
        let text = payload.downcast_ref::<&str>().copied().unwrap_or(text);
        let text = payload.downcast_ref::<String>().map_or(text, String::as_str);
        let thread = std::thread::current();
        tracing::error!(
            place,
            thread = thread.name(),
            backtrace = backtrace().map(|here| here.to_string()),
            "a thread panicked: {text}"
        );
    }));
    Ok(Logging { filter: handle })
}

impl Logging {
    /// Lets through what these directives say, from now on.
    ///
    /// # Errors
    /// When they are no filter; what held before goes on.
    pub fn set_level(&self, level: &str) -> Result<()> {
        self.filter.reload(filter(level)?).context("the log cannot be changed")
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!(
            "key `log.level` is \"{level}\": allowed are a level or directives, for example info or \
             info,posduif::publish=debug"
        )
    })?;
    // It traces what frames hold, which is nobody's but its users'.
    Ok(filter.add_directive("tungstenite=info".parse()?))
}

/// An error with all its causes, each behind a colon. One that its effect repeats is said once.
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

/// How the program came here, when that is asked for by `RUST_BACKTRACE=1`; costs nothing else.
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
    fn an_error_tells_all_its_causes_once() {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens");
        assert_eq!(
            chain(&Outer("cannot connect", refused())),
            "cannot connect: nobody listens"
        );
        assert_eq!(chain(&Outer("no: nobody listens", refused())), "no: nobody listens");
        assert_eq!(chain(&refused()), "nobody listens");
    }
}
